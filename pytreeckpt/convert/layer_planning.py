"""What is known of layers decides: each layer of torch, the outermost first, finds its counterpart by name, and the
table of layouts says what becomes of its leaves.

Where nobody recorded what a layer is, all layouts that its names and shapes admit are tried, and that of leaves that
stay as they are; if these differ in what they come to, it is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from pytreeckpt.convert.draft import Draft
from pytreeckpt.convert.fitting import Candidate, Fit, Pair, ambiguity, as_it_is, different, layer_text, tried
from pytreeckpt.convert.flattening import ENDS, Surroundings, doubt, flattened_variant, images_of, suspicion
from pytreeckpt.convert.layers.variants import Move, Side, Table
from pytreeckpt.convert.lookup import Names, layers_of, possible_names, renamed, scanned
from pytreeckpt.convert.names import match_name, text_of
from pytreeckpt.convert.operations import Drop, Fill
from pytreeckpt.convert.records import Layer, Leaf, Name
from pytreeckpt.convert.rules import Choose, Flattened, Rename, Rule, Scan, of_type
from pytreeckpt.convert.stacking import Stacked


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
    around = Surroundings.of(draft.source) if draft.target.convention == "flax" else None
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
                draft.unmatched[name] = renamed(name, of_type(rules, Rename))
            continue
        if len(others) > 1:
            draft.ambiguous.append(
                f"{layer_text(name)} may be {' or '.join(map(layer_text, others))}: say which with a rename"
            )
            continue
        there = {rel: leaf for rel, leaf in targets.within(others[0]).items() if leaf.name not in draft.targets}
        pair = Pair(name, others[0], own, there, place, known is not None)
        fit = _decided(draft, pair, candidates, _other_side(pair, targets, scheme), choices)
        if fit is not None and around is not None:
            fit = _with_flattening(draft, pair, fit, around, of_type(rules, Flattened))
        if fit is not None:
            _add(draft, pair, fit, stacked)
    stacked.finish(draft)
    draft.mismatched += [
        f"the rule choose {each.rule.layers!r}: none can be {each.rule.variant!r}; there is {', '.join(each.layouts)}"
        for each in choices
        if each.layouts and not each.is_made
    ]


def _other_side(pair: Pair, targets: Names, scheme: str | None) -> Side:
    recorded = targets.layer(pair.other)
    config = dict(recorded.config) if recorded is not None else {}
    if scheme is not None:
        config["scheme"] = scheme
    return Side(pair.other_shapes, recorded.kind if recorded is not None else None, config)


def _candidates(known: Layer | None, own: Mapping[str, Leaf], table: Table) -> list[Candidate]:
    """The layouts to be tried for a layer: its own, or all of them where nobody knows what it is."""
    if known is not None:
        kind = next((kind for kind in (known.cls, known.kind) if kind in table), None)
        return [] if kind is None else [Candidate(kind, table[kind], known)]
    if not any("/" not in rel or rel.startswith("parametrizations/") for rel in own):
        return []
    return [Candidate(kind, layout, Layer(kind, kind)) for kind, layout in table.items()]


def _counterparts(layer: Name, draft: Draft, targets: Names, renames: Sequence[Rename]) -> list[Name]:
    names = [renamed(layer, renames), *(renamed(each, renames) for each in possible_names(layer, draft.source.layers))]
    return [name for name in dict.fromkeys(names) if targets.has_layer(name, apart_from=draft.targets)]


def _decided(
    draft: Draft, pair: Pair, candidates: Sequence[Candidate], other: Side, choices: Sequence[_Choice]
) -> Fit | None:
    """The one layout that a pair has. If there is none, or more than one, that is said, and None returned."""
    fits, misfits = tried(pair, candidates, other)
    if not pair.is_known:
        fits += [as_is for fit in fits if (as_is := as_it_is(fit, pair)) is not None]
    fits = _chosen(fits, [choice for choice in choices if match_name(choice.rule.layers, pair.name) is not None])
    if not fits:
        if pair.is_known and misfits:
            draft.mismatched.append(f"{layer_text(pair.name)}, to {layer_text(pair.other)}: {'; '.join(misfits)}")
            _tell_once(draft, pair, pair.own, pair.there)
        return None
    distinct = different(fits, pair.shapes)
    if len(distinct) == 1:
        return distinct[0]
    draft.ambiguous.append(ambiguity(pair, distinct))
    moves = [move for fit in distinct for move in fit.variant.moves]
    _tell_once(
        draft,
        pair,
        (rel for move in moves for rel in move.sources),
        (rel for move in moves for rel in move.targets),
    )
    return None


def _with_flattening(
    draft: Draft, pair: Pair, fit: Fit, around: Surroundings, rules: Sequence[Flattened]
) -> Fit | None:
    """The layout of a layer that may read or give a flattened image; None if that has to be declared first."""
    images = images_of(pair.name, fit.kind, around, rules)
    for rule in (each for each in images if each.shape):
        if (note := doubt(pair.name, rule, around)) is not None:
            draft.note(note, pair.name)
        try:
            fit = Fit(fit.kind, flattened_variant(fit.variant, fit.kind, pair.shapes, rule.shape, rule.side))
        except ValueError as error:
            draft.mismatched.append(f"{layer_text(pair.name)}, with the rule {rule}: {error}")
            _tell_once(draft, pair, pair.own, pair.there)
            return None
    settled = {rule.side for rule in images}
    for end in ENDS:
        found = suspicion(pair.name, fit.kind, pair.shapes, end, around) if end not in settled else None
        if found is not None:
            draft.ambiguous.append(
                f"{found.why}: torch and Flax order its features differently; declare {found.rule}, or without a shape "
                "if it is nothing like that"
            )
            _tell_once(draft, pair, pair.own, pair.there)
            return None
    return fit


def _chosen(fits: list[Fit], choices: Sequence[_Choice]) -> list[Fit]:
    """Those of the layouts that a rule chooses; all of them, if none does."""
    for choice in choices:
        chosen = [fit for fit in fits if fit.variant.name == choice.rule.variant]
        choice.is_made = choice.is_made or bool(chosen)
        choice.layouts.update(dict.fromkeys(fit.variant.name for fit in fits))
        if chosen:
            return chosen
    return fits


def _tell_once(draft: Draft, pair: Pair, sources: Iterable[str], targets: Iterable[str]) -> None:
    """Leaves of which it was said what is wrong are not also said to be left over."""
    draft.sources.update(pair.own[rel].name for rel in sources)
    # What is in a layer there is its own, but in the whole model.
    draft.targets.update(pair.there[rel].name for rel in targets if pair.other or "/" not in rel)


def _add(draft: Draft, pair: Pair, fit: Fit, stacked: Stacked) -> None:
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
            draft.mismatched.append(f"{layer_text(pair.name)}: {error}")
    for rel, why in variant.drops.items():
        draft.add([pair.own[rel]], [], (Drop(),), f"{fit.kind}: {why}")
    for rel, value in variant.fills.items():
        leaf = pair.there[rel]
        if leaf.name not in draft.targets:
            is_implied = rel not in variant.unread
            fill = Fill(leaf.shape, leaf.dtype.name, value, implied=is_implied)
            draft.add([], [leaf], (fill,), f"{fit.kind} has none: {value:g}")
    for rel, leaf in pair.there.items():
        neutral = _NEUTRAL.get(rel.rpartition("/")[2])
        if neutral is not None and leaf.name not in draft.targets and pair.place is None:
            draft.lacking[leaf.name] = (
                f"there is none in {layer_text(pair.name)}, and nobody says that it was made without; if it was, "
                f'declare Fill("{text_of(leaf.name)}", {neutral})'
            )
    for note in (*variant.notes, *_own_forward(draft.source.layers.get(pair.name), fit)):
        draft.note(note, pair.name)


# What changes nothing, of leaves that layers may be made without.
_NEUTRAL: Final = {"bias": 0, "mean": 0, "scale": 1, "weight": 1, "var": 1}


def _own_forward(layer: Layer | None, fit: Fit) -> Sequence[str]:
    """A class that computes otherwise than the kind that it is of may need other values, which only its code tells."""
    if layer is None or layer.cls == fit.kind or layer.config.get("forward") != "own":
        return ()
    note = (
        f"forward: {layer.cls} has one of its own, and is converted as a {layer.kind}: see that the layer there "
        "computes the same, or write a rule for its values"
    )
    return (note,)
