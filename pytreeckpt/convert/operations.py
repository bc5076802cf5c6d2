"""What a conversion does to arrays: a closed set of operations, as records.

An operation takes a list of arrays and gives a list. Those that are said to act on each array keep their number; the
others take all of them. `inverse_of` is another operation of the set. `of_moment` is what an operation on parameters
means for what an optimizer knows of them: for y = a·x + b, gradients and first moments are divided by a, second
moments by a².

Structural operations move bits, and their inverses are exact. Of the others, `LOSSY` and `INEXACT`, what was there is
kept as a residual wherever the inverse would not give it back (`pytreeckpt.convert.applying`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from pytreeckpt.geometry import Shape

Widths = tuple[tuple[int, int], ...]
"""How many items lie before and after, per axis."""

Orders = tuple[Shape, ...]
"""Axes of several arrays."""


@dataclass(frozen=True, slots=True)
class Permute:
    """Each array with its axes in this order."""

    axes: Shape


@dataclass(frozen=True, slots=True)
class PermuteEach:
    """As many arrays as there are orders, each with its axes in its own."""

    orders: Orders


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
    """One array `count` times; `equal`: whether the way back refuses those that differ by then, or takes the first."""

    count: int
    equal: bool = True


@dataclass(frozen=True, slots=True)
class Cast:
    """Each array in another dtype. Floats are rounded; integers that do not fit, and finite floats that would become
    infinite or NaN, are refused.
    """

    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Fill:
    """No array to one of a single value. `implied`: nobody declared it, and only that value goes back to nothing."""

    shape: Shape
    dtype: str
    value: float = 0.0
    implied: bool = False


@dataclass(frozen=True, slots=True)
class Drop:
    """`count` arrays to none; `fill` is what the way back makes of one if nobody knows better. Raises `ValueError` for
    other values than those of a fill that is implied.
    """

    count: int = 1
    fill: Fill | None = None


@dataclass(frozen=True, slots=True)
class Recall:
    """No array to `count` that were dropped: what was kept of them, or what the target has there already."""

    count: int = 1


Operation = (
    Permute
    | PermuteEach
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
    "permute-each": PermuteEach,
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
            return Permute(_order_back(axes))
        case PermuteEach(orders):
            return PermuteEach(tuple(map(_order_back, orders)))
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
        case First(count):
            return Repeat(count, equal=False)
        case Tie(count):
            return Repeat(count)
        case Repeat(count, equal):
            return Tie(count) if equal else First(count)
        case Cast(before, after):
            return Cast(after, before)
        case Drop(count, fill):
            return Recall(count) if fill is None else fill
        case Recall(count):
            return Drop(count)
        case Fill():
            return Drop(1, operation)


def _order_back(axes: Shape) -> Shape:
    return tuple(int(axis) for axis in np.argsort(axes))


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


def describe_operation(operation: Operation) -> str:
    """An operation in a few words, for reports and errors."""
    match operation:
        case Permute(axes):
            return f"permute {_listed(axes)}"
        case PermuteEach(orders):
            return f"permute each its way, {', '.join(map(_listed, orders))}"
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
        case Repeat(count, _):
            return f"the same {count} times"
        case Cast(before, after):
            return f"{before} to {after}"
        case Drop():
            return "drop, kept as residual"
        case Recall():
            return "what was dropped"
        case Fill(shape, dtype, value, _):
            return f"fill {dtype}{_listed(shape)} with {value:g}"


def describe_operations(operations: Operations) -> str:
    """Operations in a few words."""
    return ", ".join(map(describe_operation, operations)) or "as it is"


def _listed(values: Sequence[object]) -> str:
    return "[" + ", ".join(_listed(value) if isinstance(value, tuple) else str(value) for value in values) + "]"
