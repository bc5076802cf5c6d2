"""Arrays in pieces, and sources of bytes that remember what was read of them."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt.reading import BytesSource


class RecordingSource:
    """Bytes in memory, and the ranges that were read."""

    def __init__(self, file: bytes) -> None:
        self.inner = BytesSource(memoryview(file))
        self.nbytes = self.inner.nbytes
        self.ranges: list[tuple[int, int]] = []
        self.lock = threading.Lock()

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> None:
        with self.lock:
            self.ranges.append((offset, offset + sum(map(len, buffers))))
        self.inner.read_into(offset, buffers)

    def close(self) -> None:
        pass


def open_bytes(file: bytes) -> ptc.Checkpoint:
    return ptc.Checkpoint(BytesSource(memoryview(file)), None)


def in_boxes(
    array: np.ndarray, cuts: Sequence[Sequence[int]], axes: Sequence[int] | None = None, identity: Any = None
) -> ptc.ArraySource:
    """A source that gives the array, transposed by `axes`, in the boxes that the cuts make."""
    stored = array if axes is None else array.transpose(axes)
    pieces = [stored]
    for axis, at in enumerate(cuts):
        pieces = [part for piece in pieces for part in np.split(piece, at, axis)]
    flat = [np.ascontiguousarray(piece).reshape(-1) for piece in pieces]
    return ptc.ArraySource(
        array.dtype,
        array.shape,
        [lambda start, stop, items=items: items[start:stop] for items in flat],
        axes=None if axes is None else tuple(axes),
        cuts=[list(axis) for axis in cuts],
        identity=identity,
    )


@st.composite
def grids(draw: st.DrawFn, array: np.ndarray) -> ptc.ArraySource:
    """The array in a grid of boxes, in some order of its axes."""
    axes = draw(st.permutations(range(array.ndim)))
    if list(axes) == list(range(array.ndim)):
        axes = None
    shape = array.shape if axes is None else tuple(array.shape[axis] for axis in axes)
    cuts = [sorted(draw(st.sets(st.integers(1, extent - 1), max_size=3))) if extent > 1 else [] for extent in shape]
    return in_boxes(array, cuts, axes)
