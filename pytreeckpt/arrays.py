"""Arrays on their way into a checkpoint: what adapters hand over, and how a run of items is staged.

An `ArraySource` describes an array without copying it; the writer asks for runs of items chunk by chunk, so that
device arrays and strided arrays need no second copy as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pytreeckpt.dtypes import AnyDType, fields_of, has_padding
from pytreeckpt.geometry import Box, Shape, dense_axes, grid, runs, whole

# Any: structured arrays index by field name, which the stubs know for void alone.
AnyArray = np.ndarray[tuple[int, ...], np.dtype[Any]]
ReadRun = Callable[[int, int], AnyArray]
"""`read(start, stop)`: items start to stop of a box in C order, as a contiguous 1-d array of the source's dtype."""


@dataclass(frozen=True, slots=True)
class ArraySource:
    """An array to be stored.

    `shape` is the shape of the array; `axes`, `cuts` and `boxes` are as in section 7 of the format: the array
    transposed by `axes` is cut at `cuts` into boxes, and `boxes[i]` reads the items of box i. Sources with equal
    `identity` (other than None) are the same array: it is stored once and comes back shared.

    What a save in the background does before the program goes on: nothing, if the array is `immutable` (nothing that
    the program does afterwards changes what the boxes read); `snapshot()`, if given; else it reads all boxes into host
    memory.
    """

    dtype: AnyDType
    shape: Shape
    boxes: Sequence[ReadRun]
    axes: Shape | None = None
    cuts: Sequence[Sequence[int]] | None = None
    identity: Hashable = None
    immutable: bool = False
    snapshot: Callable[[], PendingSnapshot] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the array in C order."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def cells(self) -> list[Box]:
        """The box of each reader, in the array transposed by `axes`."""
        stored = self.shape if self.axes is None else tuple(self.shape[axis] for axis in self.axes)
        return [whole(stored)] if self.cuts is None else list(grid(stored, self.cuts))


@dataclass(frozen=True, slots=True)
class PendingSnapshot:
    """A copy that has been begun, of an array that may change: `wait` returns when it is complete, and from then on
    `source` reads it.
    """

    source: ArraySource
    wait: Callable[[], None]


def source_of(array: AnyArray, *, identity: Hashable = None, immutable: bool = False) -> ArraySource:
    """The source of a numpy array of any layout, read from the array's own memory when it is asked for."""
    stored, axes = stored_order(array)
    return ArraySource(array.dtype, array.shape, (run_reader(stored),), axes, None, identity, immutable)


def stored_order(array: AnyArray) -> tuple[AnyArray, Shape | None]:
    """The array transposed into the order in which it is stored, and the axes of that order (None: as it is)."""
    if array.flags.c_contiguous or array.size == 0:
        return array, None
    axes = dense_axes(array.shape, array.strides, array.itemsize)
    if axes is None or axes == tuple(range(array.ndim)):
        return array, None
    return array.transpose(axes), axes


def run_reader(array: AnyArray) -> ReadRun:
    """Reads runs of `array` in C order: views where it is contiguous, copies where it is not.

    Padding bytes within items are zeroed, because they would make the file depend on what was in memory before.
    """
    padded = has_padding(array.dtype)
    if array.flags.c_contiguous and not padded:
        flat = array.reshape(-1)
        return lambda start, stop: flat[start:stop]

    def read(start: int, stop: int) -> AnyArray:
        staged = np.zeros(stop - start, array.dtype) if padded else np.empty(stop - start, array.dtype)
        for run in runs(array.shape, start, stop):
            part = staged[run.start : run.start + math.prod(run.box.shape)].reshape(run.box.shape)
            # The ellipsis keeps an array of rank 0 one: a scalar would not have all of its bits.
            _assign(part, array[run.box.selection], padded=padded)
        return staged

    return read


def copy_items(target: AnyArray, values: AnyArray) -> None:
    """Copy all items into an array of the same shape and dtype, bit by bit: assigned as values, some would change
    (big-endian timedeltas without a unit, in numpy 2.4).
    """
    if target.itemsize:
        opaque = np.dtype(f"u{target.itemsize}" if target.itemsize in {1, 2, 4, 8} else f"V{target.itemsize}")
        target.view(opaque)[...] = values.view(opaque)


def _assign(target: AnyArray, values: AnyArray, *, padded: bool) -> None:
    if not padded:
        copy_items(target, values)
        return
    # Field by field: whole items would be copied with their padding.
    for name, field in fields_of(target.dtype).items():
        _assign(target[name], values[name], padded=has_padding(field[0]))
    if target.dtype.names is None:
        # x87 floats: 10 bytes, and 6 of padding.
        for offset in range(0, target.itemsize, 16):
            layout = np.dtype({"names": ["bits"], "formats": ["V10"], "offsets": [offset], "itemsize": target.itemsize})
            copy_items(target.view(layout)["bits"], values.view(layout)["bits"])


def array_identity(array: AnyArray) -> Hashable:
    """Equal for the same array object, and for views that show exactly the same memory in the same way."""
    base = array.base
    if base is None:
        return id(array)
    if type(base) is np.ndarray and base.base is None and _same_view(array, base):
        return id(base)
    if array.nbytes == 0:
        return id(array)
    return (array.__array_interface__["data"][0], array.shape, array.strides, array.dtype)


def _same_view(array: AnyArray, base: AnyArray) -> bool:
    return (
        array.shape == base.shape
        and array.strides == base.strides
        and array.dtype == base.dtype
        and array.__array_interface__["data"] == base.__array_interface__["data"]
    )
