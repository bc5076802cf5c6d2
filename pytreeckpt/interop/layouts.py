"""How foreign arrays lie in their files: what must be true of their pieces, and the same array turned or in parts."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from itertools import product
from typing import Final

from pytreeckpt.arrays import AnyArray, ArraySource, ReadRun, run_reader
from pytreeckpt.dtypes import has_padding
from pytreeckpt.errors import CorruptionError, LimitError
from pytreeckpt.geometry import Box, Shape, runs, whole
from pytreeckpt.index import MAX_RANK
from pytreeckpt.interop.foreign import ForeignArray, Piece, allocate, contiguous_strides, cropped, reach, read_region

# How many corners of pieces are looked at.
_MAX_CORNERS: Final = 1 << 24


def check_array(array: ForeignArray) -> None:
    """Check what a reader of a format promises: an array that numpy can hold, and pieces that lie within their sources
    and cover it without overlaps. Raises `CorruptionError` and `LimitError`.
    """
    shape = array.shape
    if len(shape) > MAX_RANK:
        raise LimitError(f"an array of {len(shape)} axes: there can be {MAX_RANK}")
    for length in shape:
        if type(length) is not int or length < 0:
            raise CorruptionError(f"{list(shape)} is not the shape of an array", rule="bounds")
    if 0 in shape:
        return
    for piece in array.pieces:
        low, high = reach(piece.box.shape, piece.strides, piece.itemsize(array.dtype))
        if piece.offset + low < 0 or piece.offset + high > piece.source.nbytes:
            raise CorruptionError(
                f"a piece of an array lies at bytes {piece.offset + low} to {piece.offset + high} of "
                f"{piece.source.nbytes}",
                rule="bounds",
            )
    if len(array.pieces) == 1 and array.pieces[0].box == whole(shape):
        return
    boxes = [piece.box for piece in array.pieces]
    if not _tile(shape, boxes):
        raise CorruptionError(
            f"the {len(boxes)} pieces of an array of the shape {list(shape)} overlap, or leave items out", rule="bounds"
        )


def _tile(shape: Shape, boxes: Sequence[Box]) -> bool:
    """Whether boxes cover an array of this shape, each item once.

    The corners of a box, each taken twice as never, determine it; so, if those that are left of all boxes are those of
    the array, each item is in an odd number of boxes, and in one if their sizes add up.
    """
    for box in boxes:
        places = zip(box.offset, box.shape, shape, strict=True)
        if not all(start >= 0 and n > 0 and start + n <= length for start, n, length in places):
            return False
    if sum(math.prod(box.shape) for box in boxes) != math.prod(shape):
        return False
    axes = [axis for axis, length in enumerate(shape) if any(box.shape[axis] != length for box in boxes)]
    if len(boxes) << len(axes) > _MAX_CORNERS:
        raise LimitError(f"an array is cut into {len(boxes)} pieces along {len(axes)} axes, which is too much to check")
    odd: set[Shape] = set()
    for box in boxes:
        odd.symmetric_difference_update(
            product(*((box.offset[axis], box.offset[axis] + box.shape[axis]) for axis in axes))
        )
    return odd == set(product(*((0, shape[axis]) for axis in axes)))


def memory_axes(array: ForeignArray) -> Shape | None:
    """The axes from slowest to fastest of an array that is dense in another order than C's; None for all others.

    An axis with one item stands where a dense array has the same stride, if there is such a place, so that a tensor of
    torch comes back with the strides that it had.
    """
    if len(array.pieces) != 1:
        return None
    piece = array.pieces[0]
    shape, strides, expected = array.shape, piece.strides, piece.itemsize(array.dtype)
    if strides == contiguous_strides(shape, expected):
        return None
    order = sorted(range(len(shape)), key=lambda axis: (-strides[axis], shape[axis] == 1))
    for axis in reversed(order):
        if shape[axis] != 1 and strides[axis] != expected:
            return None
        expected *= shape[axis]
    return None if order == list(range(len(shape))) else tuple(order)


def transposed(array: ForeignArray, axes: Shape | None) -> ForeignArray:
    """The array with its axes in this order; as it is for None."""
    if axes is None:
        return array

    def moved(lengths: Shape) -> Shape:
        return tuple(lengths[axis] for axis in axes)

    pieces = tuple(
        piece._replace(box=Box(moved(piece.box.offset), moved(piece.box.shape)), strides=moved(piece.strides))
        for piece in array.pieces
    )
    return ForeignArray(array.dtype, moved(array.shape), pieces)


def is_contiguous(array: ForeignArray) -> bool:
    """Whether all items are one after the other, in C order, in one source, as they are."""
    if len(array.pieces) != 1 or array.pieces[0].change is not None:
        return False
    piece = array.pieces[0]
    return _same_strides(array.shape, piece.strides, contiguous_strides(array.shape, array.dtype.itemsize))


def _same_strides(shape: Shape, strides: Shape, others: Shape) -> bool:
    """Where there is but one item along an axis, its stride means nothing."""
    return all(length == 1 or a == b for length, a, b in zip(shape, strides, others, strict=True))


def array_source(array: ForeignArray, *, identity: Hashable = None) -> ArraySource:
    """The array as what a save takes: read run by run, when it is asked for, in the order in which it lies."""
    axes = memory_axes(array)
    return ArraySource(array.dtype, array.shape, (_run_reader(transposed(array, axes)),), axes=axes, identity=identity)


def _run_reader(array: ForeignArray) -> ReadRun:
    padded = has_padding(array.dtype)

    def read(start: int, stop: int) -> AnyArray:
        items = allocate((stop - start,), array.dtype)
        for run in runs(array.shape, start, stop):
            part = items[run.start : run.start + math.prod(run.box.shape)]
            read_region(array, run.box, out=part.reshape(run.box.shape))
        # What lies between the fields of a struct is not stored.
        return run_reader(items)(0, len(items)) if padded else items

    return read


def split(array: ForeignArray, out: AnyArray | None, nbytes: int) -> Iterator[tuple[ForeignArray, AnyArray | None]]:
    """An array in parts of about `nbytes` bytes, each with the part of `out` (of the array's shape) that it goes to."""
    size = math.prod(array.shape)
    if size * array.dtype.itemsize <= nbytes or size == 1 or not array.pieces:
        yield array, out
    elif is_contiguous(array) and (out is None or out.flags.c_contiguous):
        piece = array.pieces[0]
        step = max(1, nbytes // array.dtype.itemsize)
        flat = None if out is None else out.reshape(-1)
        for start in range(0, size, step):
            stop = min(start + step, size)
            offset = piece.offset + start * array.dtype.itemsize
            part = Piece(whole((stop - start,)), piece.source, offset, (array.dtype.itemsize,))
            yield ForeignArray(array.dtype, (stop - start,), (part,)), None if flat is None else flat[start:stop]
    else:
        axis = next(axis for axis, length in enumerate(array.shape) if length > 1)
        length = array.shape[axis]
        step = max(1, nbytes * length // (size * array.dtype.itemsize))
        for start in range(0, length, step):
            begin = (*(0 for _ in range(axis)), start, *(0 for _ in array.shape[axis + 1 :]))
            box = Box(begin, (*array.shape[:axis], min(step, length - start), *array.shape[axis + 1 :]))
            yield cropped(array, box), None if out is None else out[box.selection]
