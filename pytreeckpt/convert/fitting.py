"""Which layouts a layer may have: those whose names and shapes go with what is on both sides, and what they come to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from pytreeckpt.convert.layers.variants import Layout, Move, Side, Variant
from pytreeckpt.convert.lookup import Place
from pytreeckpt.convert.names import text_of
from pytreeckpt.convert.operations import Flip, Operations, Permute, Reshape, describe_operations
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
    found: list[tuple[Fit, Mapping[str, _Origin]]] = []
    for fit in fits:
        origins = _origins(fit.variant)
        if not any(_same(origins, each, shapes) for _, each in found):
            found.append((fit, origins))
    # One that leaves out what another one takes is not the layer that is here.
    most = max(len(origins) for _, origins in found)
    return [fit for fit, origins in found if len(origins) == most]


@dataclass(frozen=True, slots=True)
class _Origin:
    """What a leaf of the other side is made of: the result with this number of operations on these leaves."""

    sources: tuple[str, ...]
    operations: Operations
    number: int


def _origins(variant: Variant) -> Mapping[str, _Origin]:
    return {
        rel: _Origin(move.sources, move.operations, number)
        for move in variant.moves
        for number, rel in enumerate(move.targets)
    }


def _same(a: Mapping[str, _Origin], b: Mapping[str, _Origin], shapes: Shapes) -> bool:
    return a.keys() == b.keys() and all(_same_values(a[rel], b[rel], shapes) for rel in a)


def _same_values(a: _Origin, b: _Origin, shapes: Shapes) -> bool:
    """Whether two ways to make a leaf give the same for all values."""
    if a == b:
        return True
    if a.sources != b.sources:
        return False
    if len(a.sources) == 1 and all(isinstance(each, _ON_AXES) for each in (*a.operations, *b.operations)):
        shape = shapes[a.sources[0]]
        return np.array_equal(_items(a.operations, shape), _items(b.operations, shape))
    given = [shapes[rel] for rel in a.sources]
    starts = np.cumsum([0, *map(math.prod, given)])
    numbered = [
        np.arange(start, start + math.prod(shape), dtype=np.float64).reshape(shape)
        for start, shape in zip(starts.tolist(), given, strict=False)
    ]
    one, other = (run(each.operations, numbered)[each.number] for each in (a, b))
    return np.array_equal(one, other)


# They move items of one array by its axes.
_ON_AXES: Final = (Permute, Reshape, Flip)
_MAX_ITEMS: Final = 4096


def _items(operations: Operations, shape: Shape) -> npt.NDArray[np.int64]:
    """Which items of an array come to be the first, second, … of what operations on axes make of it: all or, of more
    than a few thousand, some at random. Two ways that differ do so in half of the items or more, as each item of the
    result is found by the digits of its number, in mixed radix, in another order.
    """
    shapes = [shape]
    for operation in operations:
        shapes += result_shapes((operation,), shapes[-1:])
    size = math.prod(shape)
    items: npt.NDArray[np.int64] = (
        np.arange(size) if size <= _MAX_ITEMS else np.random.default_rng(0).integers(size, size=_MAX_ITEMS)
    )
    for operation, before, after in reversed(list(zip(operations, shapes[:-1], shapes[1:], strict=True))):
        if isinstance(operation, Reshape) or not items.size:
            continue
        places = list(np.unravel_index(items, after))
        if isinstance(operation, Permute):
            places = [places[operation.axes.index(axis)] for axis in range(len(before))]
        elif isinstance(operation, Flip):
            places = [
                before[axis] - 1 - place if axis in operation.axes else place for axis, place in enumerate(places)
            ]
        items = np.ravel_multi_index(places, before) if places else items
    return items


def layer_text(name: Name) -> str:
    """A layer by name, for people."""
    return text_of(name) or "the model itself"


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
        f"{layer_text(pair.name)} ({owned}) admits {len(fits)} layouts; decide with a rule such as {rule}:\n"
        + "\n".join(f"      {line}" for line in lines)
    )
