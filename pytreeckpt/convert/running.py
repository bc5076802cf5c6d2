"""Operations, run on arrays of numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pytreeckpt.arrays import AnyArray
from pytreeckpt.convert.operations import (
    Affine,
    Cast,
    Concat,
    Crop,
    Drop,
    Fill,
    First,
    Flip,
    Operation,
    Pad,
    Permute,
    PermuteEach,
    Recall,
    Repeat,
    Reshape,
    Split,
    SplitSum,
    Stack,
    SumPair,
    Tie,
    Unstack,
    Widths,
    describe_operation,
)
from pytreeckpt.convert.shapes import result_shapes, widened
from pytreeckpt.convert.values import cast_to, dtype_named, filled, require_kept, same_bits
from pytreeckpt.geometry import Shape


def run(operations: Sequence[Operation], arrays: Sequence[AnyArray], *, keeps_nonzero: bool = False) -> list[AnyArray]:
    """What the operations make of arrays. Those may share memory with what comes out. `keeps_nonzero`: nothing may be
    rounded to 0. Raises `ValueError`.
    """
    found = list(arrays)
    for operation in operations:
        result_shapes((operation,), [array.shape for array in found])
        # A NaN stays one, and is no news.
        with np.errstate(all="ignore"):
            made = _run(operation, found, keeps_nonzero=keeps_nonzero)
        # Of arrays of rank 0 numpy may make scalars.
        found = [np.asarray(array) for array in made]
    return found


def _run(operation: Operation, arrays: list[AnyArray], *, keeps_nonzero: bool) -> list[AnyArray]:
    match operation:
        case Permute(axes):
            return [array.transpose(axes) for array in arrays]
        case PermuteEach(orders):
            return [array.transpose(axes) for array, axes in zip(arrays, orders, strict=True)]
        case Reshape(_, after):
            return [array.reshape(after) for array in arrays]
        case Flip(axes):
            return [np.flip(array, axes) for array in arrays]
        case Split(axis, sizes):
            return list(np.split(arrays[0], np.cumsum(sizes)[:-1].tolist(), axis))
        case Concat(axis, _):
            return [_joined(arrays, lambda views: np.concatenate(views, axis))]
        case Stack(axis, _):
            return [_joined(arrays, lambda views: np.stack(views, axis))]
        case Unstack(axis, count):
            return [arrays[0].take(index, axis) for index in range(count)]
        case Pad(widths, value):
            return [_padded(array, widths, value) for array in arrays]
        case Crop(widths, _):
            return [array[_inner(array.shape, widths)] for array in arrays]
        case Affine(scale, offset):
            return [_affine(array, scale, offset, keeps_nonzero=keeps_nonzero) for array in arrays]
        case SumPair():
            return [(arrays[0] + arrays[1]).astype(arrays[0].dtype, copy=False)]
        case SplitSum():
            return [arrays[0], np.zeros_like(arrays[0])]
        case First():
            return arrays[:1]
        case Tie():
            if not all(same_bits(arrays[0], array) for array in arrays[1:]):
                raise ValueError("they should be equal, and are not")
            return arrays[:1]
        case Repeat(count, _):
            return arrays * count
        case Cast(_, after):
            return [cast_to(array, dtype_named(after), keeps_nonzero=keeps_nonzero) for array in arrays]
        case Drop(_, fill):
            if fill is not None and fill.implied and not bool(np.all(arrays[0] == fill.value)):
                raise ValueError(f"it holds other values than {fill.value:g}")
            return []
        case Recall():
            raise ValueError("what was dropped is not in the arrays")
        case Fill(shape, dtype, value, _):
            return [filled(shape, value, dtype_named(dtype))]


def _joined(arrays: list[AnyArray], join: Any) -> AnyArray:
    dtypes = {array.dtype for array in arrays}
    if len(dtypes) > 1:
        raise ValueError(f"their dtypes differ: {', '.join(sorted(map(str, dtypes)))}")
    joined: AnyArray = join(arrays)
    return joined


def _inner(shape: Shape, widths: Widths) -> tuple[slice, ...]:
    return tuple(slice(before, extent - after) for extent, (before, after) in zip(shape, widths, strict=True))


def _padded(array: AnyArray, widths: Widths, value: float) -> AnyArray:
    padded = filled(widened(array.shape, widths, 1), value, array.dtype)
    padded[_inner(padded.shape, widths)] = array
    return padded


def _affine(array: AnyArray, scale: float, offset: float, *, keeps_nonzero: bool) -> AnyArray:
    if array.dtype.kind in "biu":
        raise ValueError(f"{describe_operation(Affine(scale, offset))} is for floats, not for {array.dtype}")
    # In the dtype itself: a float of Python would take numpy's scalars of ml_dtypes to float64.
    scaled = array * array.dtype.type(scale) if scale != 1 else array
    moved = scaled + array.dtype.type(offset) if offset else scaled
    after = moved.astype(array.dtype, copy=False)
    require_kept(array, after, keeps_nonzero=keeps_nonzero)
    return after
