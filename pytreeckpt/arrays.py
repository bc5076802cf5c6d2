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
from pytreeckpt.geometry import Shape, dense_axes, runs

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
    """

    dtype: AnyDType
    shape: Shape
    boxes: Sequence[ReadRun]
    axes: Shape | None = None
    cuts: Sequence[Sequence[int]] | None = None
    identity: Hashable = None

    @property
    def nbytes(self) -> int:
        """Bytes of the array in C order."""
        return math.prod(self.shape) * self.dtype.itemsize


def source_of(array: AnyArray, *, identity: Hashable = None) -> ArraySource:
    """The source of a numpy array of any layout, read from the array's own memory when it is asked for."""
    stored, axes = stored_order(array)
    return ArraySource(array.dtype, array.shape, (run_reader(stored),), axes=axes, identity=identity)


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
            _assign(part, array[run.box.slices], padded=padded)
        return staged

    return read


def _assign(target: AnyArray, values: AnyArray, *, padded: bool) -> None:
    if padded and target.dtype.names is not None:
        # Field by field: assigning whole items would copy their padding.
        for name, field in fields_of(target.dtype).items():
            _assign(target[name], values[name], padded=has_padding(field[0]))
    elif padded:
        significant = 10  # bytes of an x87 float; the 6 after it are padding
        bytes_out = target.reshape(-1).view(np.uint8).reshape(-1, 16) if target.flags.c_contiguous else None
        if bytes_out is None:
            clean = np.zeros(target.shape, target.dtype)
            _assign(clean, values, padded=True)
            target[...] = clean
        else:
            bytes_out[:, :significant] = (
                np.ascontiguousarray(values).reshape(-1).view(np.uint8).reshape(-1, 16)[:, :significant]
            )
    else:
        target[...] = values


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
