"""What is known of layers decides: each layer of torch, the outermost first, finds its counterpart by name, and the
table of layouts says what becomes of its leaves.

Where nobody recorded what a layer is, all layouts that its names and shapes admit are tried, and that of leaves that
stay as they are; if these differ in what they come to, it is an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pytreeckpt.arrays import AnyArray
from pytreeckpt.convert.draft import Draft
from pytreeckpt.convert.flattening import declared, flattened_variant, suspicion
from pytreeckpt.convert.layers.variants import Layout, Move, Side, Table, Variant
from pytreeckpt.convert.lookup import Names, Place, close_names, layers_of, possible_names, renamed, scanned
from pytreeckpt.convert.names import match_name, text_of
from pytreeckpt.convert.operations import Drop, Fill, describe_operations, result_shapes, run
from pytreeckpt.convert.records import Layer, Leaf, Name
from pytreeckpt.convert.rules import Choose, Flattened, Rename, Rule, Scan, of_type
from pytreeckpt.convert.stacking import Stacked, without_axis
from pytreeckpt.geometry import Shape

_Shapes = Mapping[str, Shape]


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A layout that is tried for a layer, and what the layer is then."""

    kind: str
    layout: Layout
    layer: Layer


@dataclass(frozen=True, slots=True)
class _Pair:
    """A layer of torch and its counterpart, with the leaves of both that are not taken, by their names within it.

    `place`: where the layer goes in a stack of its like. `is_known`: whether it was recorded or declared what it is.
    """

    name: Name
    other: Name
    own: Mapping[str, Leaf]
    there: Mapping[str, Leaf]
    place: Place | None
    is_known: bool

    @property
    def shapes(self) -> _Shapes:
        """The shapes of torch's leaves."""
        return {rel: leaf.shape for rel, leaf in self.own.items()}

    @property
    def other_shapes(self) -> _Shapes:
        """The shapes of the others, of which a stack is seen as one of its layers."""
        axis = None if self.place is None else self.place.scan.axis
        return {rel: leaf.shape if axis is None else without_axis(leaf.shape, axis) for rel, leaf in self.there.items()}


@dataclass(frozen=True, slots=True)
class _Fit:
    """A layout that goes with the names and shapes of both sides."""

    kind: str
    variant: Variant

    def __str__(self) -> str:
        return f"{self.variant.name} ({self.kind})" if self.kind != self.variant.name else self.kind


@dataclass(slots=True)
class _Choice:
    """A rule that chooses a layout: whether any layer has had it, and the layouts that its layers may have."""

    rule: Choose
    is_made: bool = False
    layouts: dict[str, None] = field(default_factory=dict)


def plan_layers(draft: Draft, table: Table, rules: Sequence[Rule], *, scheme: str | None = None) -> None:
    """Add entries for all layers whose layout is decided. `scheme`: what the target was named, if it was not given."""
    sources, targets = Names(draft.source), Names(draft.target)
    stacked = Stacked()
    choices = [_Choice(rule) for rule in of_type(rules, Choose)]
    for name in layers_of(draft.source):
        own = {rel: leaf for rel, leaf in sources.within(name).items() if leaf.name not in draft.sources}
        known = draft.source.layers.get(name)
        candidates = _candidates(known, own, table)
        if not candidates:
            continue
        place = scanned(name, of_type(rules, Scan))
        others = [place.name] if place is not None else _counterparts(name, draft, targets, of_type(rules, Rename))
        if not others:
            if known is not None:
                draft.unmatched[name] = _nowhere(name, targets, of_type(rules, Rename))
            continue
        if len(others) > 1:
            draft.ambiguous.append(
                f"{text_of(name)} may be {' or '.join(map(text_of, others))}: say which with a rename"
            )
            continue
        there = {rel: leaf for rel, leaf in targets.within(others[0]).items() if leaf.name not in draft.targets}
        pair = _Pair(name, others[0], own, there, place, known is not None)
        fit = _decided(draft, pair, candidates, _other_side(pair, targets, scheme), choices)
        if fit is not None and draft.target.convention == "flax":
            fit = _with_flattening(draft, pair, fit, of_type(rules, Flattened))
        if fit is not None:
            _add(draft, pair, fit, stacked)
    stacked.finish(draft)
    draft.mismatched += [
        f"the rule choose {each.rule.layers!r}: none can be {each.rule.variant!r}; there is {', '.join(each.layouts)}"
        for each in choices
        if each.layouts and not each.is_made
    ]


def _other_side(pair: _Pair, targets: Names, scheme: str | None) -> Side:
    recorded = targets.layer(pair.other)
    config = dict(recorded.config) if recorded is not None else {}
    if scheme is not None:
        config["scheme"] = scheme
    return Side(pair.other_shapes, recorded.kind if recorded is not None else None, config)


def _candidates(known: Layer | None, own: Mapping[str, Leaf], table: Table) -> list[_Candidate]:
    """The layouts to be tried for a layer: its own, or all of them where nobody knows what it is."""
    if known is not None:
        kind = next((kind for kind in (known.cls, known.kind) if kind in table), None)
        return [] if kind is None else [_Candidate(kind, table[kind], known)]
    if not any("/" not in rel or rel.startswith("parametrizations/") for rel in own):
        return []
    return [_Candidate(kind, layout, Layer(kind, kind)) for kind, layout in table.items()]


def _counterparts(layer: Name, draft: Draft, targets: Names, renames: Sequence[Rename]) -> list[Name]:
    names = [renamed(layer, renames), *(renamed(each, renames) for each in possible_names(layer, draft.source.layers))]
    return [name for name in dict.fromkeys(names) if targets.has_layer(name)]


def _nowhere(layer: Name, targets: Names, renames: Sequence[Rename]) -> str:
    name = renamed(layer, renames)
    layers = list(dict.fromkeys(each[:-1] for each in targets.model.leaves))
    close = close_names(name, layers)
    return f"there is no layer {text_of(name)}" + (f"; there is {', '.join(close)}" if close else "")


def _decided(
    draft: Draft, pair: _Pair, candidates: Sequence[_Candidate], other: Side, choices: Sequence[_Choice]
) -> _Fit | None:
    """The one layout that a pair has. If there is none, or more than one, that is said, and None returned."""
    fits, misfits = _tried(pair, candidates, other)
    if not pair.is_known:
        fits += [as_is for fit in fits if (as_is := _as_is(fit, pair)) is not None]
    fits = _chosen(fits, [choice for choice in choices if match_name(choice.rule.layers, pair.name) is not None])
    if not fits:
        if pair.is_known and misfits:
            draft.mismatched.append(f"{text_of(pair.name)}, to {text_of(pair.other)}: {'; '.join(misfits)}")
            _tell_once(draft, pair, pair.own, pair.there)
        return None
    different = _different(fits, pair.shapes)
    if len(different) == 1:
        return different[0]
    draft.ambiguous.append(_ambiguity(pair, different))
    moves = [move for fit in different for move in fit.variant.moves]
    _tell_once(
        draft,
        pair,
        (rel for move in moves for rel in move.sources),
        (rel for move in moves for rel in move.targets),
    )
    return None


def _with_flattening(draft: Draft, pair: _Pair, fit: _Fit, rules: Sequence[Flattened]) -> _Fit | None:
    """The layout of a linear layer that may read a flattened image; None if that has to be declared first."""
    rule = declared(pair.name, rules)
    if rule is not None and rule.shape:
        try:
            return _Fit(fit.kind, flattened_variant(fit.variant, pair.shapes, rule.shape))
        except ValueError as error:
            draft.mismatched.append(f"{text_of(pair.name)}, with the rule {rule}: {error}")
            _tell_once(draft, pair, pair.own, pair.there)
            return None
    weight = pair.shapes.get("weight", ())
    found = suspicion(pair.name, draft.source.layers, weight[1]) if rule is None and len(weight) == 2 else None
    if found is None:
        return fit
    certainty, why = found
    advice = (
        f'Flattened("{text_of(pair.name)}", (channels, height, width)), or without a shape if it is nothing like that'
    )
    if certainty == "possible":
        draft.note(f"{why}: if that is a flattened image, declare {advice}", pair.name)
        return fit
    draft.ambiguous.append(f"{why}, after a Flatten: torch and Flax order its features differently; declare {advice}")
    _tell_once(draft, pair, pair.own, pair.there)
    return None


def _chosen(fits: list[_Fit], choices: Sequence[_Choice]) -> list[_Fit]:
    """Those of the layouts that a rule chooses; all of them, if none does."""
    for choice in choices:
        chosen = [fit for fit in fits if fit.variant.name == choice.rule.variant]
        choice.is_made = choice.is_made or bool(chosen)
        choice.layouts.update(dict.fromkeys(fit.variant.name for fit in fits))
        if chosen:
            return chosen
    return fits


def _tried(pair: _Pair, candidates: Sequence[_Candidate], other: Side) -> tuple[list[_Fit], list[str]]:
    """The layouts that fit, and why others do not."""
    fits: list[_Fit] = []
    misfits: dict[str, None] = {}
    for candidate in candidates:
        layer = candidate.layer
        try:
            variants = candidate.layout(Side(pair.shapes, layer.kind, layer.config), other)
        except ValueError as error:
            misfits[f"{candidate.kind}: {error}"] = None
            continue
        for variant in variants:
            if not variant.moves and not pair.is_known:
                # Nothing of the layer is in it.
                continue
            problem = _misfit(variant, pair)
            if problem is None:
                fits.append(_Fit(candidate.kind, variant))
            else:
                misfits[f"{variant.name}: {problem}"] = None
    return fits, list(misfits)


def _tell_once(draft: Draft, pair: _Pair, sources: Iterable[str], targets: Iterable[str]) -> None:
    """Leaves of which it was said what is wrong are not also said to be left over; those of layers within are."""
    draft.sources.update(pair.own[rel].name for rel in sources if "/" not in rel)
    draft.targets.update(pair.there[rel].name for rel in targets if "/" not in rel)


def _misfit(variant: Variant, pair: _Pair) -> str | None:
    """Why a variant does not go with what is there, or None if it does."""
    shapes, others = pair.shapes, pair.other_shapes
    moved = [rel for move in variant.moves for rel in move.sources]
    absent = [rel for rel in (*moved, *variant.drops) if rel not in shapes]
    if absent:
        return f"there is no {', '.join(absent)}"
    reached = [rel for move in variant.moves for rel in move.targets]
    absent = [rel for rel in (*reached, *variant.fills) if rel not in others]
    if absent:
        return f"the other side has no {', '.join(absent)}"
    for move in variant.moves:
        before = [shapes[rel] for rel in move.sources]
        wanted = [others[rel] for rel in move.targets]
        try:
            after = result_shapes(move.operations, before)
        except ValueError as error:
            return str(error)
        if after != wanted:
            texts = [", ".join(str(list(shape)) for shape in each) for each in (before, after, wanted)]
            return f"{', '.join(move.sources)} of {texts[0]} come to {texts[1]}, and there is {texts[2]}"
    return None


def _as_is(fit: _Fit, pair: _Pair) -> _Fit | None:
    """The same leaves without any operation, if that is possible too."""
    moves = tuple(Move(move.sources, move.targets) for move in fit.variant.moves)
    plain = Variant("as it is", moves, fit.variant.drops, fit.variant.fills)
    return _Fit("as it is", plain) if _misfit(plain, pair) is None else None


def _different(fits: Sequence[_Fit], shapes: _Shapes) -> list[_Fit]:
    """The fits that do not come to the same, the first of each."""
    if len(fits) == 1:
        return list(fits)
    found: list[tuple[_Fit, Mapping[str, AnyArray]]] = []
    for fit in fits:
        effect = _effect(fit.variant, shapes)
        if not any(_same(effect, each) for _, each in found):
            found.append((fit, effect))
    # One that leaves out what another one takes is not the layer that is here.
    most = max(len(effect) for _, effect in found)
    return [fit for fit, effect in found if len(effect) == most]


def _effect(variant: Variant, shapes: _Shapes) -> Mapping[str, AnyArray]:
    """What a variant makes of arrays that are numbered through."""
    start = 1
    numbered: dict[str, AnyArray] = {}
    for rel, shape in shapes.items():
        size = math.prod(shape)
        numbered[rel] = np.arange(start, start + size, dtype=np.float64).reshape(shape)
        start += size
    return {
        rel: array
        for move in variant.moves
        for rel, array in zip(move.targets, run(move.operations, [numbered[rel] for rel in move.sources]), strict=True)
    }


def _same(a: Mapping[str, AnyArray], b: Mapping[str, AnyArray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[rel], b[rel]) for rel in a)


def _ambiguity(pair: _Pair, fits: Sequence[_Fit]) -> str:
    lines: list[str] = []
    for fit in fits:
        moves = [
            f"{', '.join(move.sources)} → {', '.join(move.targets)}: {describe_operations(move.operations)}"
            for move in fit.variant.moves
            if move.operations
        ]
        lines.append(f"{fit}: {'; '.join(moves) or 'as it is'}")
    owned = ", ".join(f"{rel}{list(shape)}" for rel, shape in list(pair.shapes.items())[:6])
    name = text_of(pair.name)
    kinds = [fit.kind.removeprefix("torch.nn.") for fit in fits if fit.kind != fit.variant.name]
    rule = f'Choose("{name}", "{fits[0].variant.name}")' if pair.is_known else f'Kind("{name}", "{kinds[0]}")'
    return (
        f"{name or 'the model itself'} ({owned}) admits {len(fits)} layouts; decide with a rule such as {rule}:\n"
        + "\n".join(f"      {line}" for line in lines)
    )


def _add(draft: Draft, pair: _Pair, fit: _Fit, stacked: Stacked) -> None:
    reason = f"{fit}" if pair.is_known else f"the only layout that fits: {fit}"
    variant = fit.variant
    for move in variant.moves:
        sources = [pair.own[rel] for rel in move.sources]
        targets = [pair.there[rel] for rel in move.targets]
        if pair.place is not None:
            stacked.add(pair.place, sources, targets, Move(move.sources, move.targets, move.operations), reason)
            draft.sources.update(leaf.name for leaf in sources)
            continue
        try:
            draft.add(sources, targets, move.operations, reason)
        except ValueError as error:
            draft.mismatched.append(f"{text_of(pair.name)}: {error}")
    for rel, why in variant.drops.items():
        draft.add([pair.own[rel]], [], (Drop(),), f"{fit.kind}: {why}")
    for rel, value in variant.fills.items():
        leaf = pair.there[rel]
        if leaf.name not in draft.targets:
            draft.add([], [leaf], (Fill(leaf.shape, leaf.dtype.name, value),), f"{fit.kind} has none: {value:g}")
    for note in variant.notes:
        draft.note(note, pair.name)
