"""Basic selections of an array (ints, slices, `...`) as the box that holds them."""

from __future__ import annotations

import operator
from types import EllipsisType
from typing import cast

from pytreeckpt.geometry import Box, Shape

Item = int | slice | EllipsisType
Selection = Item | tuple[Item, ...]


def bounding_box(shape: Shape, selection: Selection) -> tuple[Box, tuple[int | slice, ...]]:
    """The smallest box of an array of `shape` that holds `selection`, and the selection within that box.

    Raises `IndexError` as numpy would, and `TypeError` for anything but ints, slices and one `...`.
    """
    items = list(selection) if isinstance(selection, tuple) else [selection]
    for item in items:
        # Arrays of one item have `__index__` too, and select something else.
        is_int = hasattr(item, "__index__") and not isinstance(item, bool) and not hasattr(item, "__len__")
        if not (item is ... or isinstance(item, slice) or is_int):
            raise TypeError(
                f"{item!r} cannot select from a stored array: use ints, slices and ..., or read it all first"
            )
    if sum(item is ... for item in items) > 1:
        raise IndexError("an index can have only one ...")
    if len(items) - (... in items) > len(shape):
        raise IndexError(f"{len(items)} indices for an array of {len(shape)} axes")
    if ... not in items:
        items.append(...)
    at = items.index(...)
    items[at : at + 1] = [slice(None)] * (len(shape) - len(items) + 1)
    offset: list[int] = []
    extent: list[int] = []
    within: list[int | slice] = []
    for axis, (item, length) in enumerate(zip(items, shape, strict=True)):
        if isinstance(item, slice):
            chosen = range(*item.indices(length))
            low, high = (min(chosen[0], chosen[-1]), max(chosen[0], chosen[-1]) + 1) if chosen else (0, 0)
            within.append(slice(None, None, chosen.step) if chosen else slice(0, 0))
        else:
            position = operator.index(cast("int", item))
            if not -length <= position < length:
                raise IndexError(f"index {position} is out of bounds for axis {axis} with size {length}")
            low = position % length
            high = low + 1
            within.append(0)
        offset.append(low)
        extent.append(high - low)
    return Box(tuple(offset), tuple(extent)), tuple(within)
