"""What every foreign file comes to: a tree of plain values and records, whose arrays are still in the file.

A reader of a format is a function that makes a `ForeignTree` of ranged sources. What wraps an array in the framework
that saved it (`torch.Tensor`, `torch.nn.Parameter`) is a `Record` of the registered type, as if the tree had been saved
by pytreeckpt; a class that nobody registered is a `Record` of its name and data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import mul
from typing import Any, Final, NamedTuple, Protocol

import numpy as np

from pytreeckpt.arrays import AnyArray, copy_items
from pytreeckpt.dtypes import AnyDType
from pytreeckpt.errors import CorruptionError, LimitError
from pytreeckpt.geometry import Box, Shape, extent, is_injective, whole
from pytreeckpt.limits import current_limits
from pytreeckpt.reading import RangedSource, flat_bytes

# Items that lie apart are read together with what lies between them, up to so much at once …
_BLOCK_NBYTES: Final = 1 << 20
# … and where less than this lies between them.
_GAP_NBYTES: Final = 64 << 10
# Items that overlap are read from all that they span, read once, if it is no more than this or than the items …
_SPAN_NBYTES: Final = 64 << 20
# … and are refused if what they span would be read so many times over.
_MAX_REREADS: Final = 4


class Folder(Protocol):
    """A folder whose files can be read. Names are those of files directly or deeper in it, with `/`, never outside."""

    def names(self) -> Sequence[str]:
        """All files in it and in its folders, sorted."""
        ...

    def open(self, name: str) -> RangedSource:
        """One of them. Raises `CheckpointNotFoundError` for a name that is not there, or leads outside."""
        ...


class Change(NamedTuple):
    """What the items of a source become when they are read: those of `dtype` go through the functions of flat arrays,
    one after the other.
    """

    dtype: AnyDType
    steps: tuple[Callable[[AnyArray], AnyArray], ...]

    def __call__(self, items: AnyArray) -> AnyArray:
        """Changed items, of the dtype that they are meant to have."""
        for step in self.steps:
            items = step(items)
        return items


class Piece(NamedTuple):
    """A box of an array, and where its items are: the first at `offset` of `source`, the others by `strides`, both in
    bytes. `source` is always the one that has the bytes, as checksums are of them; what must be done to the items
    afterwards is the `change`.
    """

    box: Box
    source: RangedSource
    offset: int
    strides: Shape
    change: Change | None = None

    def itemsize(self, dtype: AnyDType) -> int:
        """Bytes of an item where it lies; `dtype` is that of the array."""
        return dtype.itemsize if self.change is None else self.change.dtype.itemsize


@dataclass(frozen=True, slots=True, eq=False)
class ForeignArray:
    """An array that has not been read. Arrays with equal `identity` (other than None) are one shared array.

    The pieces cover the array without overlaps; an array without items may have none.
    """

    dtype: AnyDType
    shape: Shape
    pieces: tuple[Piece, ...]
    identity: Hashable = None

    @property
    def nbytes(self) -> int:
        """Bytes of the array in C order."""
        return math.prod(self.shape) * self.dtype.itemsize


class Check(NamedTuple):
    """A CRC-32 that a file keeps of all bytes of a source, such as those of a zip member; `name` is what it is of."""

    name: str
    source: RangedSource
    crc32: int


@dataclass(frozen=True, slots=True)
class ForeignTree:
    """A foreign file, read but for its arrays.

    `format`: its name for people, such as "torch zip"; `metadata`: what it says of itself, in plain values; `notes`:
    what is worth knowing of how it was read, such as classes that became records.
    """

    format: str
    tree: object
    metadata: object = None
    notes: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    sources: tuple[RangedSource, ...] = field(default=())
    """Those that the reader opened itself, to be closed with the checkpoint."""


def reach(shape: Shape, strides: Shape, itemsize: int) -> tuple[int, int]:
    """`extent` of an array that has items, quicker for the many whose strides are not negative."""
    if not strides or min(strides) >= 0:
        return 0, sum(map(mul, shape, strides)) - sum(strides) + itemsize
    return extent(shape, strides, itemsize)


def contiguous_strides(shape: Shape, itemsize: int) -> Shape:
    """The strides of an array in C order, in bytes."""
    return tuple(accumulate(shape[:0:-1], mul, initial=itemsize))[::-1] if shape else ()


def contiguous(
    source: RangedSource, offset: int, dtype: AnyDType, shape: Shape, *, identity: Hashable = None
) -> ForeignArray:
    """An array in C order at `offset`. Raises `CorruptionError` if the source ends before it does."""
    return strided(source, offset, dtype, shape, contiguous_strides(shape, dtype.itemsize), identity=identity)


def strided(
    source: RangedSource, offset: int, dtype: AnyDType, shape: Shape, strides: Shape, *, identity: Hashable = None
) -> ForeignArray:
    """An array of any layout, its first item at `offset`. Raises `CorruptionError` if an item lies outside."""
    if 0 in shape:
        return ForeignArray(dtype, shape, (), identity)
    low, high = reach(shape, strides, dtype.itemsize)
    if offset + low < 0 or offset + high > source.nbytes:
        raise CorruptionError(
            f"an array of {dtype}{list(shape)} lies at bytes {offset + low} to {offset + high} of {source.nbytes}",
            rule="bounds",
        )
    return ForeignArray(dtype, shape, (Piece(whole(shape), source, offset, strides),), identity)


def cropped(array: ForeignArray, region: Box) -> ForeignArray:
    """A region of an array, as an array."""
    pieces: list[Piece] = []
    for piece in array.pieces:
        common = piece.box.intersect(region)
        if common is not None:
            within = common.relative_to(piece.box.offset)
            offset = piece.offset + sum(a * b for a, b in zip(within.offset, piece.strides, strict=True))
            pieces.append(piece._replace(box=common.relative_to(region.offset), offset=offset))
    return ForeignArray(array.dtype, region.shape, tuple(pieces))


def read_region(array: ForeignArray, region: Box, *, out: AnyArray | None = None) -> AnyArray:
    """The items of a region, in `out` (of the region's shape and the array's dtype) or a new array in C order.

    Raises `LimitError` for more than there is memory, and `CorruptionError` where a source ends or is damaged.
    """
    return read_whole(cropped(array, region), out=out)


def read_whole(array: ForeignArray, *, out: AnyArray | None = None) -> AnyArray:
    """All of an array, in `out` or a new array in C order. Raises as `read_region`."""
    if out is None:
        out = allocate(array.shape, array.dtype)
    for piece in array.pieces:
        _fill(piece, out[piece.box.selection])
    return out


def allocate(shape: Shape, dtype: AnyDType) -> AnyArray:
    """A new array in C order. Raises `LimitError` for one that is beyond the limits, or than there is memory for."""
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes > current_limits().arrays_nbytes:
        raise LimitError(
            f"an array of {dtype}{list(shape)} has {nbytes} bytes, more than the limit of "
            f"{current_limits().arrays_nbytes}; raise it with pytreeckpt.limits(arrays_nbytes=…)"
        )
    try:
        return np.ndarray(shape, dtype)
    except (MemoryError, ValueError) as error:
        raise LimitError(f"an array of {dtype}{list(shape)} needs {nbytes} bytes: {error}") from None


def _fill(piece: Piece, target: AnyArray) -> None:
    """Read a piece, of which `target` has the shape."""
    if piece.change is not None:
        _fill_changed(piece, piece.change, target)
        return
    if target.flags.c_contiguous and piece.strides == contiguous_strides(target.shape, target.itemsize):
        # The most by far.
        piece.source.read_into(piece.offset, [flat_bytes(target)])
        return
    # As an array whose axes all have several items, that of the largest step first, and no step backwards.
    axes = [axis for axis, length in enumerate(target.shape) if length > 1]
    axes.sort(key=lambda axis: -abs(piece.strides[axis]))
    steps = list(zip(target.shape, piece.strides, strict=True))
    offset = piece.offset + sum((length - 1) * stride for length, stride in steps if stride < 0)
    ahead = target[(*(0 if n == 1 else slice(None, None, -1 if stride < 0 else 1) for n, stride in steps), ...)]
    kept = [axis for axis, length in enumerate(target.shape) if length > 1]
    ordered = ahead.transpose([kept.index(axis) for axis in axes])
    strides = tuple(abs(piece.strides[axis]) for axis in axes)
    if is_injective(ordered.shape, strides, ordered.itemsize) or not _copy_span(piece.source, offset, strides, ordered):
        _copy(piece.source, offset, strides, ordered)


def _fill_changed(piece: Piece, change: Change, target: AnyArray) -> None:
    """Read a piece whose items are changed, some at a time: they are twice in memory meanwhile."""
    axis = max(range(target.ndim), key=target.shape.__getitem__, default=None)
    nbytes = target.size * change.dtype.itemsize
    if axis is None or nbytes <= _BLOCK_NBYTES or target.shape[axis] == 1:
        stored = allocate(target.shape, change.dtype)
        _fill(piece._replace(change=None), stored)
        copy_items(target, change(stored.reshape(-1)).reshape(target.shape))
        return
    length = target.shape[axis]
    step = max(1, _BLOCK_NBYTES * length // nbytes)
    for start in range(0, length, step):
        some: tuple[Any, ...] = (*[slice(None)] * axis, slice(start, start + step), ...)
        _fill_changed(piece._replace(offset=piece.offset + start * piece.strides[axis]), change, target[some])


def _copy_span(source: RangedSource, offset: int, strides: Shape, target: AnyArray) -> bool:
    """Read overlapping items, whose strides descend, from all that they span; False where that is not worth it: then
    they can be read as those that do not overlap. Raises `LimitError` where neither can be.
    """
    _, span = extent(target.shape, strides, target.itemsize)
    cost = _cost(target.shape, strides, target.itemsize)
    if cost <= span:
        return False
    if span > max(_SPAN_NBYTES, target.nbytes):
        if cost > _MAX_REREADS * max(span, target.nbytes):
            raise LimitError(
                f"the items of an array overlap so that reading {target.nbytes} bytes of it takes {cost} bytes of the "
                f"{span} that it spans, each many times, which no program writes by itself; read it in parts"
            )
        return False
    block = allocate((span,), np.dtype(np.uint8))
    source.read_into(offset, [block.data])
    items: AnyArray = np.ndarray(target.shape, target.dtype, block.data, 0, strides)
    copy_items(target, items)
    return True


def _cost(shape: Shape, strides: Shape, itemsize: int) -> int:
    """The bytes that `_copy` reads for an array, where none are read for less than the gap that it reads over."""
    if strides == contiguous_strides(shape, itemsize):
        return max(_GAP_NBYTES, math.prod(shape) * itemsize)
    spanned, count = _block(shape, strides, itemsize)
    if count == 0:
        return shape[0] * _cost(shape[1:], strides[1:], itemsize)
    n_blocks = -(-shape[0] // count)
    return max(_GAP_NBYTES * n_blocks, (shape[0] - n_blocks) * strides[0] + n_blocks * spanned)


def _copy(source: RangedSource, offset: int, strides: Shape, target: AnyArray) -> None:
    """Read what lies `strides` apart, which descend, from `offset` on."""
    if target.flags.c_contiguous and strides == contiguous_strides(target.shape, target.itemsize):
        source.read_into(offset, [flat_bytes(target)])
        return
    step = strides[0]
    spanned, count = _block(target.shape, strides, target.itemsize)
    if count == 0:
        for index in range(len(target)):
            _copy(source, offset + index * step, strides[1:], target[index, ...])
        return
    for start in range(0, len(target), count):
        part = target[start : start + count]
        block = np.empty((len(part) - 1) * step + spanned, np.uint8)
        source.read_into(offset + start * step, [block.data])
        items: AnyArray = np.ndarray(part.shape, part.dtype, block.data, 0, strides)
        copy_items(part, items)


def _block(shape: Shape, strides: Shape, itemsize: int) -> tuple[int, int]:
    """The bytes that one index of the first axis spans, and how many of these are read together with what lies between
    them; 0 where each is better read by itself.
    """
    _, spanned = extent(shape[1:], strides[1:], itemsize)
    if strides[0] - spanned >= _GAP_NBYTES or spanned >= _BLOCK_NBYTES:
        return spanned, 0
    return spanned, shape[0] if strides[0] == 0 else 1 + (_BLOCK_NBYTES - spanned) // strides[0]
