"""Boxes, grids and linear ranges of n-dimensional arrays, as plain tuples of ints.

One decomposition serves staging, assembling and slicing: a run of items of an array in C order is a few boxes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from typing import Any, NamedTuple

Shape = tuple[int, ...]


class Box(NamedTuple):
    """A part of an array: `offset` and `shape`, both of the array's rank, in items."""

    offset: Shape
    shape: Shape

    @property
    def slices(self) -> tuple[slice, ...]:
        """The slices that this box is of its array."""
        return tuple(slice(start, start + extent) for start, extent in zip(self.offset, self.shape, strict=True))

    @property
    def selection(self) -> tuple[Any, ...]:
        """As `slices`, with an ellipsis, so that what is selected from an array of rank 0 is an array."""
        return (*self.slices, ...)

    def intersect(self, other: Box) -> Box | None:
        """The common part, or None if it is empty."""
        offset: list[int] = []
        shape: list[int] = []
        for start, extent, other_start, other_extent in zip(*self, *other, strict=True):
            low = max(start, other_start)
            high = min(start + extent, other_start + other_extent)
            if low >= high:
                return None
            offset.append(low)
            shape.append(high - low)
        return Box(tuple(offset), tuple(shape))

    def relative_to(self, origin: Shape) -> Box:
        """The same box with offsets counted from `origin`."""
        return Box(tuple(start - base for start, base in zip(self.offset, origin, strict=True)), self.shape)


def whole(shape: Shape) -> Box:
    """The box of the whole array."""
    return Box((0,) * len(shape), shape)


def grid(shape: Shape, cuts: Sequence[Sequence[int]]) -> Iterator[Box]:
    """The cells of an array cut at `cuts` (per axis), last axis fastest."""
    spans = [list(pairwise([0, *axis, extent])) for axis, extent in zip(cuts, shape, strict=True)]
    for cell in product(*spans):
        yield Box(tuple(low for low, _ in cell), tuple(high - low for low, high in cell))


class Run(NamedTuple):
    """A box of an array that is contiguous in a run of items, and where in the run it begins."""

    box: Box
    start: int


def runs(shape: Shape, start: int, stop: int) -> Iterator[Run]:
    """Items `start` to `stop` of an array in C order as boxes: at most 2·rank − 1 of them, in order."""
    return _runs(shape, start, stop, (), 0)


def _runs(shape: Shape, start: int, stop: int, prefix: Shape, at: int) -> Iterator[Run]:
    if start >= stop:
        return
    if not shape:
        yield Run(Box(prefix, (1,) * len(prefix)), at)
        return
    row = math.prod(shape[1:])
    first, head = divmod(start, row)
    last, tail = divmod(stop, row)
    if first == last:
        yield from _runs(shape[1:], head, tail, (*prefix, first), at)
        return
    if head:
        yield from _runs(shape[1:], head, row, (*prefix, first), at)
        at += row - head
        first += 1
    if first < last:
        rest = shape[1:]
        offset = (*prefix, first, *(0 for _ in rest))
        yield Run(Box(offset, (*(1 for _ in prefix), last - first, *rest)), at)
        at += (last - first) * row
    if tail:
        yield from _runs(shape[1:], 0, tail, (*prefix, last), at)


def covering_ranges(shape: Shape, region: Box, min_items: int) -> Iterator[tuple[int, int]]:
    """Ranges of items in C order that together hold `region`, ascending, none joined that are `min_items` or more
    apart.

    As many leading axes are told apart as have rows of at least `min_items`, so the number of ranges is bounded by
    the size of the array over `min_items`.
    """
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    outer = 0
    while outer < len(shape) and strides[outer] >= max(min_items, 1):
        outer += 1
    inner_low = sum(low * stride for low, stride in zip(region.offset[outer:], strides[outer:], strict=True))
    inner_high = 1 + sum(
        (low + extent - 1) * stride
        for low, extent, stride in zip(region.offset[outer:], region.shape[outer:], strides[outer:], strict=True)
    )
    spans = [range(low, low + extent) for low, extent in zip(region.offset[:outer], region.shape[:outer], strict=True)]
    for cell in product(*spans):
        base = sum(index * stride for index, stride in zip(cell, strides[:outer], strict=True))
        yield base + inner_low, base + inner_high


def extent(shape: Shape, strides: Shape, itemsize: int) -> tuple[int, int]:
    """The first byte of a strided array and that after its last, counted from its first item; equal if it has none."""
    if 0 in shape:
        return 0, 0
    reaches = [stride * (n - 1) for stride, n in zip(strides, shape, strict=True)]
    return sum(reach for reach in reaches if reach < 0), sum(reach for reach in reaches if reach > 0) + itemsize


def is_injective(shape: Shape, strides: Shape, itemsize: int) -> bool:
    """Whether no two items overlap. Some odd arrays whose items happen not to are said to."""
    if 0 in shape:
        return True
    reach = itemsize
    for stride, n in sorted((abs(stride), n) for stride, n in zip(strides, shape, strict=True)):
        if n > 1:
            if stride < reach:
                return False
            reach += stride * (n - 1)
    return True


def dense_axes(shape: Shape, strides: Shape, itemsize: int) -> Shape | None:
    """The axes from slowest to fastest of an array that is dense in some order of its axes, or None if it is not.

    Extents of 1 have no order of their own and stand where they stand in the array.
    """
    order = sorted((axis for axis in range(len(shape)) if shape[axis] != 1), key=lambda axis: -strides[axis])
    expected = itemsize
    for axis in reversed(order):
        if strides[axis] != expected:
            return None
        expected *= shape[axis]
    moved = iter(order)
    return tuple(axis if shape[axis] == 1 else next(moved) for axis in range(len(shape)))
