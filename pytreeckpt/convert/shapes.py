"""The shapes and dtypes that operations come to, and whether they go with what they are given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

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
    Operations,
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
from pytreeckpt.convert.values import dtype_named
from pytreeckpt.dtypes import AnyDType
from pytreeckpt.geometry import Shape

_MOST_NAMES: Final = 1 << 20
# The least whose inverse is finite too.
_LEAST_SCALE: Final = 2.0**-1022


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
        case PermuteEach(orders):
            fits = len(orders) == len(shapes) > 0 and all(
                sorted(axes) == list(range(len(shape))) for axes, shape in zip(orders, shapes, strict=True)
            )
            _require(fits, operation, shapes)
            return [tuple(shape[axis] for axis in axes) for axes, shape in zip(orders, shapes, strict=True)]
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
            fits = len(shapes) == 1 and 0 <= axis < len(shapes[0]) and 0 < count <= _MOST_NAMES
            _require(fits and shapes[0][axis] == count, operation, shapes)
            return [(*shapes[0][:axis], *shapes[0][axis + 1 :])] * count
        case Pad(widths, _):
            _require(_are_widths(widths) and all(len(shape) == len(widths) for shape in shapes), operation, shapes)
            return [widened(shape, widths, 1) for shape in shapes]
        case Crop(widths, _):
            _require(_are_widths(widths) and all(len(shape) == len(widths) for shape in shapes), operation, shapes)
            cropped = [widened(shape, widths, -1) for shape in shapes]
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
        case Repeat(count, _):
            _require(len(shapes) == 1 and 0 < count <= _MOST_NAMES, operation, shapes)
            return shapes * count
        case Drop(count, fill):
            _require(len(shapes) == count, operation, shapes)
            _require(fill is None or shapes == [fill.shape], operation, shapes)
            return []
        case Recall():
            raise ValueError("what was dropped has no shape of its own")
        case Fill(shape, _, _, _):
            _require(not shapes and min(shape, default=0) >= 0, operation, shapes)
            return [shape]
        case Affine(scale, offset):
            # So that there is a way back.
            finite = math.isfinite(scale) and math.isfinite(offset) and abs(scale) >= _LEAST_SCALE
            _require(finite and math.isfinite(offset / scale), operation, shapes)
            return shapes
        case Cast():
            return shapes


def result_dtypes(operations: Operations, dtypes: Sequence[AnyDType]) -> list[AnyDType]:
    """The dtypes that arrays of these dtypes come to, where the shapes fit. Raises `ValueError` for those that do not
    go together, and for casts of another dtype.
    """
    found = list(dtypes)
    for operation in operations:
        match operation:
            case Cast(before, after):
                if any(dtype.name != before for dtype in found):
                    raise ValueError(f"{describe_operation(operation)} does not go with {_listed(found)}")
                found = [dtype_named(after)] * len(found)
            case Concat() | Stack() | SumPair() | Tie() | First():
                if len(set(found)) > 1:
                    raise ValueError(f"their dtypes differ: {_listed(found)}")
                found = found[:1]
            case Split(_, sizes):
                found *= len(sizes)
            case Unstack(_, count) | Repeat(count, _):
                found *= count
            case SplitSum():
                found *= 2
            case Fill(_, dtype, _, _):
                found = [dtype_named(dtype)]
            case Drop(_, fill):
                if fill is not None and found != [dtype_named(fill.dtype)]:
                    raise ValueError(f"what is dropped is {_listed(found)}, and the way back makes {fill.dtype}")
                found = []
            case Affine():
                if any(dtype.kind in "biu" for dtype in found):
                    raise ValueError(f"{describe_operation(operation)} is for floats, not for {_listed(found)}")
            case _:
                continue
    return found


def _listed(dtypes: Sequence[AnyDType]) -> str:
    return ", ".join(sorted({dtype.name for dtype in dtypes})) or "nothing"


def _require(fits: bool, operation: Operation, shapes: Sequence[Shape]) -> None:  # noqa: FBT001 - what was just found
    if not fits:
        raise ValueError(f"{describe_operation(operation)} does not go with {', '.join(map(str, map(list, shapes)))}")


def _are_widths(widths: Widths) -> bool:
    return all(min(each) >= 0 for each in widths)


def _with_extent(shape: Shape, axis: int, extent: int) -> Shape:
    return (*shape[:axis], extent, *shape[axis + 1 :])


def widened(shape: Shape, widths: Widths, sign: int) -> Shape:
    """A shape with these widths added, or with a `sign` of −1 taken off."""
    return tuple(extent + sign * (before + after) for extent, (before, after) in zip(shape, widths, strict=True))
