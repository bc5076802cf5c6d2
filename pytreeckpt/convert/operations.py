"""What a conversion does to arrays: a closed set of operations, as records.

An operation takes a list of arrays and gives a list. Those that are said to act on each array keep their number; the
others take all of them. `inverse_of` is another operation of the set. `of_moment` is what an operation on parameters
means for what an optimizer knows of them: for y = a·x + b, gradients and first moments are divided by a, second
moments by a².

Structural operations move bits, and their inverses are exact. Of the others, `LOSSY` and `INEXACT`, what was there is
kept as a residual wherever the inverse would not give it back (`pytreeckpt.convert.applying`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np

from pytreeckpt.arrays import AnyArray
from pytreeckpt.dtypes import AnyDType
from pytreeckpt.geometry import Shape

Widths = tuple[tuple[int, int], ...]
"""How many items lie before and after, per axis."""


@dataclass(frozen=True, slots=True)
class Permute:
    """Each array with its axes in this order."""

    axes: Shape


@dataclass(frozen=True, slots=True)
class Reshape:
    """Each array, of shape `before`, in C order as one of shape `after`."""

    before: Shape
    after: Shape


@dataclass(frozen=True, slots=True)
class Flip:
    """Each array with these axes reversed."""

    axes: Shape


@dataclass(frozen=True, slots=True)
class Split:
    """One array to parts of these sizes along an axis."""

    axis: int
    sizes: Shape


@dataclass(frozen=True, slots=True)
class Concat:
    """Arrays of these sizes along an axis to one."""

    axis: int
    sizes: Shape


@dataclass(frozen=True, slots=True)
class Stack:
    """`count` arrays of one shape to one with a new axis."""

    axis: int
    count: int


@dataclass(frozen=True, slots=True)
class Unstack:
    """The items along an axis of length `count`, without it."""

    axis: int
    count: int


@dataclass(frozen=True, slots=True)
class Pad:
    """Each array with more items around it, of one value."""

    widths: Widths
    value: float = 0.0


@dataclass(frozen=True, slots=True)
class Crop:
    """Each array without items around it; `value` is what the way back puts there if nobody knows better."""

    widths: Widths
    value: float = 0.0


@dataclass(frozen=True, slots=True)
class Affine:
    """scale · x + offset, for each array, in its own dtype."""

    scale: float
    offset: float = 0.0


@dataclass(frozen=True, slots=True)
class SumPair:
    """Two arrays to their sum: two biases that are only ever added."""


@dataclass(frozen=True, slots=True)
class SplitSum:
    """One array to two whose sum it is: all of it, and zeros."""


@dataclass(frozen=True, slots=True)
class First:
    """The first of `count` arrays, which should be equal and need not be."""

    count: int


@dataclass(frozen=True, slots=True)
class Tie:
    """`count` equal arrays to one. Raises `ValueError` where they differ."""

    count: int


@dataclass(frozen=True, slots=True)
class Repeat:
    """One array `count` times."""

    count: int


@dataclass(frozen=True, slots=True)
class Cast:
    """Each array in another dtype. Values that only one of both can hold are rounded; integers that do not fit are
    refused.
    """

    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Fill:
    """No array to one of a single value."""

    shape: Shape
    dtype: str
    value: float = 0.0


@dataclass(frozen=True, slots=True)
class Drop:
    """`count` arrays to none; `fill` is what the way back makes of one if nobody knows better."""

    count: int = 1
    fill: Fill | None = None


@dataclass(frozen=True, slots=True)
class Recall:
    """No array to `count` that were dropped: what was kept of them, or what the target has there already."""

    count: int = 1


Operation = (
    Permute
    | Reshape
    | Flip
    | Split
    | Concat
    | Stack
    | Unstack
    | Pad
    | Crop
    | Affine
    | SumPair
    | SplitSum
    | First
    | Tie
    | Repeat
    | Cast
    | Drop
    | Recall
    | Fill
)
Operations = tuple[Operation, ...]

OPERATIONS: Final = {
    "permute": Permute,
    "reshape": Reshape,
    "flip": Flip,
    "split": Split,
    "concat": Concat,
    "stack": Stack,
    "unstack": Unstack,
    "pad": Pad,
    "crop": Crop,
    "affine": Affine,
    "sum-pair": SumPair,
    "split-sum": SplitSum,
    "first": First,
    "tie": Tie,
    "repeat": Repeat,
    "cast": Cast,
    "drop": Drop,
    "recall": Recall,
    "fill": Fill,
}
"""The operations by the names that documents and rules give them."""

LOSSY: Final = (Crop, First, Cast, Drop)
INEXACT: Final = (Affine, SumPair, SplitSum)


def inverse_of(operation: Operation) -> Operation:
    """The operation that goes back."""
    match operation:
        case Permute(axes):
            return Permute(tuple(int(axis) for axis in np.argsort(axes)))
        case Reshape(before, after):
            return Reshape(after, before)
        case Flip():
            return operation
        case Split(axis, sizes):
            return Concat(axis, sizes)
        case Concat(axis, sizes):
            return Split(axis, sizes)
        case Stack(axis, count):
            return Unstack(axis, count)
        case Unstack(axis, count):
            return Stack(axis, count)
        case Pad(widths, value):
            return Crop(widths, value)
        case Crop(widths, value):
            return Pad(widths, value)
        case Affine(scale, offset):
            return Affine(1 / scale, -offset / scale)
        case SumPair():
            return SplitSum()
        case SplitSum():
            return SumPair()
        case First(count) | Tie(count):
            return Repeat(count)
        case Repeat(count):
            return Tie(count)
        case Cast(before, after):
            return Cast(after, before)
        case Drop(count, fill):
            return Recall(count) if fill is None else fill
        case Recall(count):
            return Drop(count)
        case Fill():
            return Drop(1, operation)


def inverse(operations: Operations) -> Operations:
    """The operations that go back."""
    return tuple(map(inverse_of, reversed(operations)))


def of_moment(operation: Operation, order: int) -> Operation:
    """What an operation on a parameter does to its moments of an order (1: gradients too)."""
    match operation:
        case Affine(scale, _):
            return Affine(scale**-order)
        case SumPair():
            # Both have the gradient of the sum.
            return First(2)
        case SplitSum():
            return Repeat(2)
        case Pad(widths, _):
            return Pad(widths)
        case Crop(widths, _):
            return Crop(widths)
        case _:
            return operation


# Shapes.

_MOST_NAMES: Final = 1 << 20


def result_shapes(operations: Operations, shapes: Sequence[Shape]) -> list[Shape]:
    """The shapes that arrays of these shapes come to. Raises `ValueError` for what does not fit."""
    found = list(shapes)
    for operation in operations:
        found = _result_shapes(operation, found)
    return found


def _result_shapes(operation: Operation, shapes: list[Shape]) -> list[Shape]:
    match operation:
        case Permute(axes):
            _require(all(sorted(axes) == list(range(len(shape))) for shape in shapes), operation, shapes)
            return [tuple(shape[axis] for axis in axes) for shape in shapes]
        case Reshape(before, after):
            _require(all(shape == before for shape in shapes), operation, shapes)
            _require(math.prod(before) == math.prod(after) and min(after, default=0) >= 0, operation, shapes)
            return [after] * len(shapes)
        case Flip(axes):
            _require(all(0 <= axis < len(shape) for shape in shapes for axis in axes), operation, shapes)
            return shapes
        case Split(axis, sizes):
            fits = len(shapes) == 1 and bool(sizes) and min(sizes) >= 0 and 0 <= axis < len(shapes[0])
            _require(fits and shapes[0][axis] == sum(sizes), operation, shapes)
            return [_with_extent(shapes[0], axis, size) for size in sizes]
        case Concat(axis, sizes):
            fits = len(shapes) == len(sizes) > 0 and all(
                0 <= axis < len(shape) and shape == _with_extent(shapes[0], axis, size)
                for shape, size in zip(shapes, sizes, strict=True)
            )
            _require(fits, operation, shapes)
            return [_with_extent(shapes[0], axis, sum(sizes))]
        case Stack(axis, count):
            _require(len(shapes) == count and len(set(shapes)) == 1 and 0 <= axis <= len(shapes[0]), operation, shapes)
            return [(*shapes[0][:axis], count, *shapes[0][axis:])]
        case Unstack(axis, count):
            # Of none, the shape would be lost.
            fits = len(shapes) == 1 and 0 <= axis < len(shapes[0]) and count > 0
            _require(fits and shapes[0][axis] == count, operation, shapes)
            return [(*shapes[0][:axis], *shapes[0][axis + 1 :])] * count
        case Pad(widths, _):
            _require(_are_widths(widths) and all(len(shape) == len(widths) for shape in shapes), operation, shapes)
            return [_widened(shape, widths, 1) for shape in shapes]
        case Crop(widths, _):
            _require(_are_widths(widths) and all(len(shape) == len(widths) for shape in shapes), operation, shapes)
            cropped = [_widened(shape, widths, -1) for shape in shapes]
            _require(all(extent >= 0 for shape in cropped for extent in shape), operation, shapes)
            return cropped
        case SumPair():
            _require(len(shapes) == 2 and shapes[0] == shapes[1], operation, shapes)
            return shapes[:1]
        case SplitSum():
            _require(len(shapes) == 1, operation, shapes)
            return shapes * 2
        case First(count) | Tie(count):
            _require(len(shapes) == count and len(set(shapes)) == 1, operation, shapes)
            return shapes[:1]
        case Repeat(count):
            _require(len(shapes) == 1 and 0 < count <= _MOST_NAMES, operation, shapes)
            return shapes * count
        case Drop(count, _):
            _require(len(shapes) == count, operation, shapes)
            return []
        case Recall():
            raise ValueError("what was dropped has no shape of its own")
        case Fill(shape, _, _):
            _require(not shapes, operation, shapes)
            return [shape]
        case Affine(scale, offset):
            _require(scale != 0 and math.isfinite(scale) and math.isfinite(offset), operation, shapes)
            return shapes
        case Cast():
            return shapes


def _require(fits: bool, operation: Operation, shapes: Sequence[Shape]) -> None:  # noqa: FBT001 - what was just found
    if not fits:
        raise ValueError(f"{describe_operation(operation)} does not go with {', '.join(map(str, map(list, shapes)))}")


def _are_widths(widths: Widths) -> bool:
    return all(min(each) >= 0 for each in widths)


def _with_extent(shape: Shape, axis: int, extent: int) -> Shape:
    return (*shape[:axis], extent, *shape[axis + 1 :])


def _widened(shape: Shape, widths: Widths, sign: int) -> Shape:
    return tuple(extent + sign * (before + after) for extent, (before, after) in zip(shape, widths, strict=True))


# Values.


def run(operations: Sequence[Operation], arrays: Sequence[AnyArray]) -> list[AnyArray]:
    """What the operations make of arrays. Those may share memory with what comes out. Raises `ValueError`."""
    found = list(arrays)
    for operation in operations:
        _result_shapes(operation, [array.shape for array in found])
        # A NaN stays one, and is no news.
        with np.errstate(all="ignore"):
            found = _run(operation, found)
    return found


def _run(operation: Operation, arrays: list[AnyArray]) -> list[AnyArray]:
    match operation:
        case Permute(axes):
            return [array.transpose(axes) for array in arrays]
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
            return [_affine(array, scale, offset) for array in arrays]
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
        case Repeat(count):
            return arrays * count
        case Cast(_, after):
            return [cast_to(array, dtype_named(after)) for array in arrays]
        case Drop():
            return []
        case Recall():
            raise ValueError("what was dropped is not in the arrays")
        case Fill(shape, dtype, value):
            return [np.full(shape, value, dtype_named(dtype))]


def _joined(arrays: list[AnyArray], join: Any) -> AnyArray:
    dtypes = {array.dtype for array in arrays}
    if len(dtypes) > 1:
        raise ValueError(f"their dtypes differ: {', '.join(sorted(map(str, dtypes)))}")
    joined: AnyArray = join(arrays)
    return joined


def _inner(shape: Shape, widths: Widths) -> tuple[slice, ...]:
    return tuple(slice(before, extent - after) for extent, (before, after) in zip(shape, widths, strict=True))


def _padded(array: AnyArray, widths: Widths, value: float) -> AnyArray:
    padded: AnyArray = np.full(_widened(array.shape, widths, 1), value, array.dtype)
    padded[_inner(padded.shape, widths)] = array
    return padded


def _affine(array: AnyArray, scale: float, offset: float) -> AnyArray:
    # In the dtype itself: a float of Python would take numpy's scalars of ml_dtypes to float64.
    scaled = array * array.dtype.type(scale) if scale != 1 else array
    moved = scaled + array.dtype.type(offset) if offset else scaled
    return moved.astype(array.dtype, copy=False)


def dtype_named(name: str) -> AnyDType:
    """The dtype of numpy or ml_dtypes with this name. Raises `ValueError` for a name that neither has."""
    if name in _NAMES:
        return _NAMES[name]
    raise ValueError(f"{name!r} is no dtype of arrays that are converted; there is {', '.join(sorted(_NAMES))}")


_NUMPY: Final = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)
_ML: Final = ("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")
_NAMES: Final[dict[str, AnyDType]] = {
    **{name: np.dtype(name) for name in _NUMPY},
    **{name: np.dtype(getattr(ml_dtypes, name)) for name in _ML if hasattr(ml_dtypes, name)},
}


def is_float(dtype: AnyDType) -> bool:
    """Whether a dtype is of real floats, ml_dtypes' too."""
    return dtype.kind == "f" or (dtype.kind == "V" and dtype.name.startswith(("bfloat", "float")))


def cast_to(array: AnyArray, dtype: AnyDType) -> AnyArray:
    """The array in another dtype. Raises `ValueError` for integers that the dtype does not hold."""
    if array.dtype == dtype:
        return array
    with np.errstate(all="ignore"):
        cast = array.astype(dtype)
        if dtype.kind in "iu" and array.size and not bool(np.all(cast.astype(array.dtype) == array)):
            raise ValueError(f"{array.dtype} values that {dtype} cannot hold")
    return cast


def same_bits(a: AnyArray, b: AnyArray) -> bool:
    """Whether two arrays have the same shape, dtype and bits."""
    if a is b:
        return True
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    # Integers of the same width: NaNs are compared by their bits, and -0.0 is not 0.0.
    if a.dtype.itemsize in {1, 2, 4, 8}:
        bits = np.dtype(f"u{a.dtype.itemsize}")
        return bool(np.array_equal(np.ascontiguousarray(a).view(bits), np.ascontiguousarray(b).view(bits)))
    return bool(np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes())


def describe_operation(operation: Operation) -> str:
    """An operation in a few words, for reports and errors."""
    match operation:
        case Permute(axes):
            return f"permute {_listed(axes)}"
        case Reshape(before, after):
            return f"reshape {_listed(before)} to {_listed(after)}"
        case Flip(axes):
            return f"flip {_listed(axes)}"
        case Split(axis, sizes):
            return f"split axis {axis} into {_listed(sizes)}"
        case Concat(axis, sizes):
            return f"concatenate {_listed(sizes)} along axis {axis}"
        case Stack(axis, count):
            return f"stack {count} along axis {axis}"
        case Unstack(axis, count):
            return f"unstack {count} along axis {axis}"
        case Pad(widths, value):
            return f"pad {_listed(widths)} with {value:g}"
        case Crop(widths, _):
            return f"crop {_listed(widths)}"
        case Affine(scale, offset):
            return f"times {scale:g}, plus {offset:g}" if offset else f"times {scale:g}"
        case SumPair():
            return "add both"
        case SplitSum():
            return "all to the first, zeros to the second"
        case First(count):
            return f"first of {count}"
        case Tie(count):
            return f"{count} tied names to one"
        case Repeat(count):
            return f"the same {count} times"
        case Cast(before, after):
            return f"{before} to {after}"
        case Drop():
            return "drop, kept as residual"
        case Recall():
            return "what was dropped"
        case Fill(shape, dtype, value):
            return f"fill {dtype}{_listed(shape)} with {value:g}"


def describe_operations(operations: Operations) -> str:
    """Operations in a few words."""
    return ", ".join(map(describe_operation, operations)) or "as it is"


def _listed(values: Sequence[object]) -> str:
    return "[" + ", ".join(_listed(value) if isinstance(value, tuple) else str(value) for value in values) + "]"
