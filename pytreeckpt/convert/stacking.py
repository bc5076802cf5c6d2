"""Layers that are one on the other side, with a new axis: what `nn.scan` makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pytreeckpt.convert.draft import Draft, listed
from pytreeckpt.convert.layers.variants import Move
from pytreeckpt.convert.lookup import Place
from pytreeckpt.convert.names import text_of
from pytreeckpt.convert.operations import (
    Crop,
    Flip,
    Operation,
    Operations,
    Pad,
    Permute,
    Reshape,
    Split,
    Stack,
    Unstack,
)
from pytreeckpt.convert.records import Leaf, Name
from pytreeckpt.geometry import Shape


@dataclass(slots=True)
class Stacked:
    """What has been found of each stacked leaf so far, by the names of its targets."""

    found: dict[tuple[Name, ...], _Stack] = field(default_factory=dict)

    def add(self, place: Place, sources: Sequence[Leaf], targets: Sequence[Leaf], move: Move, reason: str) -> None:
        """Add one layer's part of stacked leaves."""
        key = tuple(leaf.name for leaf in targets)
        stack = self.found.setdefault(
            key, _Stack(_axis_of(targets[0].shape, place.scan.axis), targets, move.operations, reason)
        )
        stack.layers.append((place.number, sources))

    def finish(self, draft: Draft) -> None:
        """Add the entries: the layers of each, stacked in their order."""
        for key, stack in self.found.items():
            stack.layers.sort(key=lambda layer: layer[0])
            sources = [each for _, layer in stack.layers for each in layer]
            # They were counted as taken when they were found.
            draft.sources.difference_update(leaf.name for leaf in sources)
            problem = stack.problem()
            if problem is not None:
                draft.mismatched.append(f"{text_of(key[0])}: {problem}")
                draft.sources.update(leaf.name for leaf in sources)
                draft.targets.update(key)
                continue
            draft.add(sources, stack.targets, stack.operations_of_all(), f"{stack.reason}, stacked")


@dataclass(slots=True)
class _Stack:
    """The layers of a stack with their numbers, and what is done to each."""

    axis: int
    targets: Sequence[Leaf]
    operations: Operations
    reason: str
    layers: list[tuple[int, Sequence[Leaf]]] = field(default_factory=list)

    def problem(self) -> str | None:
        count = self.targets[0].shape[self.axis]
        if [number for number, _ in self.layers] != list(range(count)):
            return f"there are {len(self.layers)} layers for an axis of {count}"
        several = next((layer for _, layer in self.layers if len(layer) > 1), None)
        if several is not None:
            return f"{listed(several)} come together, which cannot be stacked as well; write a rule for each"
        return None

    def operations_of_all(self) -> Operations:
        count, rank = self.targets[0].shape[self.axis], len(self.targets[0].shape)
        order = (*range(1, self.axis + 1), 0, *range(self.axis + 1, rank))
        moved = (Permute(order),) if self.axis else ()
        return (Stack(0, count), *(beyond_axis(each, count) for each in self.operations), *moved)


def without_axis(shape: Shape, axis: int) -> Shape:
    """The shape of one layer of a stacked leaf, whose `axis` may be counted from the last one; a leaf that has not that
    axis is no such leaf, and fits nothing.
    """
    if not -len(shape) <= axis < len(shape):
        return (-1,)
    place = _axis_of(shape, axis)
    return (*shape[:place], *shape[place + 1 :])


def _axis_of(shape: Shape, axis: int) -> int:
    """An axis that may be counted from the last one."""
    return axis % len(shape)


def beyond_axis(operation: Operation, count: int) -> Operation:
    """What an operation on one layer is for `count` of them, stacked along a new first axis."""
    match operation:
        case Permute(axes):
            return Permute((0, *(axis + 1 for axis in axes)))
        case Reshape(before, after):
            return Reshape((count, *before), (count, *after))
        case Flip(axes):
            return Flip(tuple(axis + 1 for axis in axes))
        case Split(axis, sizes):
            return Split(axis + 1, sizes)
        case Pad(widths, value):
            return Pad(((0, 0), *widths), value)
        case Crop(widths, value):
            return Crop(((0, 0), *widths), value)
        case Unstack(axis, count):
            return Unstack(axis + 1, count)
    return operation
