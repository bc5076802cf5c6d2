"""Which layouts a layer may have: those whose names and shapes go with what is on both sides, and what they come to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pytreeckpt.arrays import AnyArray
from pytreeckpt.convert.layers.variants import Layout, Move, Side, Variant
from pytreeckpt.convert.lookup import Place
from pytreeckpt.convert.names import text_of
from pytreeckpt.convert.operations import describe_operations
from pytreeckpt.convert.records import Layer, Leaf, Name
from pytreeckpt.convert.running import run
from pytreeckpt.convert.shapes import result_shapes
from pytreeckpt.convert.stacking import without_axis
from pytreeckpt.geometry import Shape

Shapes = Mapping[str, Shape]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A layout that is tried for a layer, and what the layer is then."""

    kind: str
    layout: Layout
    layer: Layer


@dataclass(frozen=True, slots=True)
class Pair:
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
    def shapes(self) -> Shapes:
        """The shapes of torch's leaves."""
        return {rel: leaf.shape for rel, leaf in self.own.items()}

    @property
    def other_shapes(self) -> Shapes:
        """The shapes of the others, of which a stack is seen as one of its layers."""
        axis = None if self.place is None else self.place.scan.axis
        return {rel: leaf.shape if axis is None else without_axis(leaf.shape, axis) for rel, leaf in self.there.items()}


@dataclass(frozen=True, slots=True)
class Fit:
    """A layout that goes with the names and shapes of both sides."""

    kind: str
    variant: Variant

    def __str__(self) -> str:
        return f"{self.variant.name} ({self.kind})" if self.kind != self.variant.name else self.kind


def tried(pair: Pair, candidates: Sequence[Candidate], other: Side) -> tuple[list[Fit], list[str]]:
    """The layouts that fit, and why others do not."""
    fits: list[Fit] = []
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
            problem = misfit_of(variant, pair)
            if problem is None:
                fits.append(Fit(candidate.kind, variant))
            else:
                misfits[f"{variant.name}: {problem}"] = None
    return fits, list(misfits)


def misfit_of(variant: Variant, pair: Pair) -> str | None:
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


def as_it_is(fit: Fit, pair: Pair) -> Fit | None:
    """The same leaves without any operation, if that is possible too."""
    moves = tuple(Move(move.sources, move.targets) for move in fit.variant.moves)
    plain = Variant("as it is", moves, fit.variant.drops, fit.variant.fills)
    return Fit("as it is", plain) if misfit_of(plain, pair) is None else None


def different(fits: Sequence[Fit], shapes: Shapes) -> list[Fit]:
    """The fits that do not come to the same, the first of each."""
    if len(fits) == 1:
        return list(fits)
    found: list[tuple[Fit, Mapping[str, AnyArray]]] = []
    for fit in fits:
        effect = _effect(fit.variant, shapes)
        if not any(_same(effect, each) for _, each in found):
            found.append((fit, effect))
    # One that leaves out what another one takes is not the layer that is here.
    most = max(len(effect) for _, effect in found)
    return [fit for fit, effect in found if len(effect) == most]


def _effect(variant: Variant, shapes: Shapes) -> Mapping[str, AnyArray]:
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


def ambiguity(pair: Pair, fits: Sequence[Fit]) -> str:
    """What a layer may be, for an error: the layouts with what they do, and a rule that decides."""
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
