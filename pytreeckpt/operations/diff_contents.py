"""What two indexes alone tell of whether two arrays hold the same: the digests of their chunks, if they are cut alike.

Two arrays are comparable only if the dtype and shape are the same; who asks has made sure of that.
"""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from pytreeckpt.dtypes import has_padding
from pytreeckpt.geometry import Shape
from pytreeckpt.index import ArrayEntry, Index

_DIGEST_NBYTES = 16


def same_dtype(a: Index, array_a: int, b: Index, array_b: int) -> bool:
    """Whether two arrays have the same dtype."""
    return a.descriptors[a.arrays[array_a].dtype] == b.descriptors[b.arrays[array_b].dtype]


def memory_order(entry: ArrayEntry) -> Shape | None:
    """The axes of an array from slowest to fastest, but for those that have no order; None for C order."""
    if entry.axes is None or 0 in entry.shape:
        return None
    axes = tuple(axis for axis in entry.axes if entry.shape[axis] != 1)
    return None if axes == tuple(sorted(axes)) else axes


def same_content(a: Index, array_a: int, b: Index, array_b: int) -> bool | None:
    """Whether two arrays of one dtype and shape hold the same items, bit by bit; None if the indexes do not tell."""
    if a.nbytes(array_a) == 0:
        return True
    entry_a, entry_b = a.arrays[array_a], b.arrays[array_b]
    if entry_a.axes != entry_b.axes or entry_a.foreign or entry_b.foreign:
        return None
    if entry_a.inline and entry_b.inline:
        same = _inline_bytes(a, array_a) == _inline_bytes(b, array_b)
    elif entry_a.pooled and entry_b.pooled:
        # Of a chunk with others, its digest tells only that all of them are the same.
        place_a, place_b = (index.starts[array] for index, array in ((a, array_a), (b, array_b)))
        return True if place_a == place_b and _rows(a, array_a) == _rows(b, array_b) else None
    elif layout(a, array_a) == layout(b, array_b):
        same = _digests(a, array_a) == _digests(b, array_b)
    else:
        return None
    # Bytes that no value determines may differ where the values do not.
    return True if same else None if has_padding(a.dtypes[entry_a.dtype]) else False


def layout(index: Index, array: int) -> Hashable:
    """Equal for arrays of one dtype and shape whose chunks hold the same items."""
    entry = index.arrays[array]
    first = index.first_chunk[array]
    raw = index.chunks.raw[first : first + sum(entry.chunk_counts)]
    where = "foreign" if entry.foreign else "pooled" if entry.pooled else "inline" if entry.inline else ""
    return where, entry.axes, entry.cuts, entry.chunk_counts, np.asarray(raw, np.int64).tobytes()


def content(index: Index, array: int) -> bytes:
    """Equal for arrays of one dtype, shape and `layout`, neither pooled nor foreign, that hold the same bytes."""
    return _inline_bytes(index, array) if index.arrays[array].inline else _digests(index, array)


def _inline_bytes(index: Index, array: int) -> bytes:
    start = index.starts[array]
    return index.inline[start : start + index.nbytes(array)]


def _digests(index: Index, array: int) -> bytes:
    first = index.first_chunk[array]
    last = first + sum(index.arrays[array].chunk_counts)
    return index.chunks.digest[_DIGEST_NBYTES * first : _DIGEST_NBYTES * last]


def _rows(index: Index, array: int) -> tuple[bytes, int]:
    """The digest and raw length of the chunk of a pooled array."""
    return _digests(index, array), int(index.chunks.raw[index.first_chunk[array]])
