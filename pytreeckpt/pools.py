"""Pools: small arrays of one dtype that share chunks, because a row of the chunk table and a frame for each of very
many would cost more than their bytes do.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import numpy as np

from pytreeckpt.arrays import AnyArray, ArraySource, run_reader, stored_order
from pytreeckpt.dtypes import AnyDType
from pytreeckpt.geometry import Shape
from pytreeckpt.index import ArrayEntry


class Pool:
    """The arrays of a pool, one after the other as they are added."""

    def __init__(self, dtype: AnyDType, dtype_id: int) -> None:
        self.dtype = dtype
        self.dtype_id = dtype_id
        self.parts: list[AnyArray | ArraySource] = []
        # The items before each part, and at last those of all.
        self.ends = [0]
        self.entries: dict[Shape, ArrayEntry] = {}

    def add(self, array: AnyArray | ArraySource) -> ArrayEntry:
        """Add an array, or a source of one box, and say what the index tells of it."""
        axes: Shape | None = None
        if isinstance(array, ArraySource):
            self.parts.append(array)
            axes = None if array.axes is None else tuple(array.axes)
            if axes == tuple(range(len(array.shape))):
                axes = None
        else:
            stored, axes = stored_order(array)
            self.parts.append(stored)
        self.ends.append(self.ends[-1] + array.nbytes // self.dtype.itemsize)
        if axes is not None:
            return ArrayEntry(self.dtype_id, array.shape, axes, None, (1,), pooled=True)
        entry = self.entries.get(array.shape)
        if entry is None:
            entry = self.entries[array.shape] = ArrayEntry(self.dtype_id, array.shape, None, None, (1,), pooled=True)
        return entry

    def cuts(self, max_nitems: int) -> list[tuple[int, int]]:
        """Where chunks of at most so many items begin and end, each between two arrays."""
        found: list[tuple[int, int]] = []
        at = 0
        while at < len(self.parts):
            end = max(bisect_right(self.ends, self.ends[at] + max_nitems) - 1, at + 1)
            found.append((self.ends[at], self.ends[end]))
            at = end
        return found

    @property
    def source(self) -> ArraySource:
        """All items, to be read from one array's beginning to another's end."""
        return ArraySource(self.dtype, (self.ends[-1],), (self.read,))

    def read(self, start: int, stop: int) -> AnyArray:
        """The items of whole arrays."""
        parts = self.parts[bisect_left(self.ends, start) : bisect_left(self.ends, stop)]
        flat = [_flat(part) for part in parts]
        if self.dtype.isnative and self.dtype.kind in "biufc":
            return np.concatenate(flat)
        # As bytes, which numpy joins as they are.
        return np.concatenate([items.view(np.uint8) for items in flat]).view(self.dtype)


def _flat(part: AnyArray | ArraySource) -> AnyArray:
    if isinstance(part, ArraySource):
        return part.boxes[0](0, part.nbytes // part.dtype.itemsize)
    return part.reshape(-1) if part.flags.c_contiguous else run_reader(part)(0, part.size)
