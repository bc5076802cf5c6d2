"""What every foreign file comes to: a tree of plain values and records, whose arrays are still in the file.

A reader of a format is a function that makes a `ForeignTree` of ranged sources. What wraps an array in the framework
that saved it (`torch.Tensor`, `torch.nn.Parameter`) is a `Record` of the registered type, as if the tree had been saved
by pytreeckpt; a class that nobody registered is a `Record` of its name and data.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np

from pytreeckpt.arrays import AnyArray, copy_items
from pytreeckpt.dtypes import AnyDType
from pytreeckpt.errors import CorruptionError, LimitError
from pytreeckpt.geometry import Box, Shape, extent, whole
from pytreeckpt.limits import current_limits
from pytreeckpt.reading import RangedSource, flat_bytes

# Items that lie apart are read together with what lies between them, up to so much at once …
_BLOCK_NBYTES: Final = 1 << 20
# … and where less than this lies between them.
_GAP_NBYTES: Final = 64 << 10


class Folder(Protocol):
    """A folder whose files can be read. Names are those of files directly or deeper in it, with `/`, never outside."""

    def names(self) -> Sequence[str]:
        """All files in it and in its folders, sorted."""
        ...

    def open(self, name: str) -> RangedSource:
        """One of them. Raises `CheckpointNotFoundError` for a name that is not there, or leads outside."""
        ...


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of an array, and where its items are: the first at `offset` of `source`, the others by `strides`, both in
    bytes.
    """

    box: Box
    source: RangedSource
    offset: int
    strides: Shape


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


@dataclass(frozen=True, slots=True, eq=False)
class Check:
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


def contiguous_strides(shape: Shape, itemsize: int) -> Shape:
    """The strides of an array in C order, in bytes."""
    strides: list[int] = []
    step = itemsize
    for length in reversed(shape):
        strides.append(step)
        step *= length
    return tuple(reversed(strides))


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
    low, high = extent(shape, strides, dtype.itemsize)
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
            pieces.append(Piece(common.relative_to(region.offset), piece.source, offset, piece.strides))
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
    _copy(piece.source, offset, tuple(abs(piece.strides[axis]) for axis in axes), ordered)


def _copy(source: RangedSource, offset: int, strides: Shape, target: AnyArray) -> None:
    """Read what lies `strides` apart, which descend, from `offset` on."""
    if target.flags.c_contiguous and strides == contiguous_strides(target.shape, target.itemsize):
        source.read_into(offset, [flat_bytes(target)])
        return
    step = strides[0]
    # The bytes that one index of the first axis spans.
    _, reach = extent(target.shape[1:], strides[1:], target.itemsize)
    if step - reach >= _GAP_NBYTES or reach >= _BLOCK_NBYTES:
        for index in range(len(target)):
            _copy(source, offset + index * step, strides[1:], target[index, ...])
        return
    count = len(target) if step == 0 else 1 + (_BLOCK_NBYTES - reach) // step
    for start in range(0, len(target), count):
        part = target[start : start + count]
        block = np.empty((len(part) - 1) * step + reach, np.uint8)
        source.read_into(offset + start * step, [block.data])
        items: AnyArray = np.ndarray(part.shape, part.dtype, block.data, 0, strides)
        copy_items(part, items)
