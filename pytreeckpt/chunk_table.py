"""The chunk table of an index (section 8 of the format): decoded, and held against the arrays and pools that it is of.

Total, as `index_decoding` is.
"""

from __future__ import annotations

import math
from itertools import accumulate

import numpy as np

from pytreeckpt.codecs import codec_of
from pytreeckpt.dtypes import AnyDType
from pytreeckpt.errors import CorruptionError, LimitError
from pytreeckpt.index import ArrayEntry, Chunks, Index, column
from pytreeckpt.limits import Limits
from pytreeckpt.wire import ALIGNMENT, PREAMBLE_NBYTES


def decode_chunks(document: dict[str, bytes]) -> Chunks:
    """The chunk table, with what is wrong in its columns alone (I-3, C-1)."""
    file = column(document, "file", "<u4")
    columns = {
        name: column(document, name, dtype)
        for name, dtype in {"offset": "<u8", "stored": "<u4", "raw": "<u4", "codec": "u1"}.items()
    }
    lengths = {len(column) for column in columns.values()} | {len(file)}
    if len(lengths) != 1 or len(document["check"]) != 8 * len(file) or len(document["digest"]) != 16 * len(file):
        raise CorruptionError("the columns of the chunk table differ in length", rule="I-3")
    if file.any():
        raise CorruptionError("a chunk lies in another file", rule="C-1")
    return Chunks(**columns, check=document["check"], digest=document["digest"])


def first_chunks(arrays: list[ArrayEntry], pools: list[int], n_rows: int) -> list[int]:
    """A-8: the first row of each chunked array; of others, any."""
    counts = [0 if entry.pooled else sum(entry.chunk_counts) for entry in arrays]
    first_chunk = list(accumulate(counts, initial=0))
    n_chunked = first_chunk.pop()
    if n_chunked + sum(pools) != n_rows or 0 in pools or any(0 in entry.chunk_counts for entry in arrays):
        raise CorruptionError("the chunk counts of arrays and pools do not match the chunk table", rule="A-8")
    return first_chunk


def check_chunks(index: Index, *, index_offset: int, limits: Limits) -> None:
    """C-2 to C-6, A-9 and A-10; sets where the pooled arrays of the index are."""
    _check_codecs(index.chunks, limits)
    _check_chunked(index.arrays, index.dtypes, index.chunks)
    _locate_pooled(index)
    _check_ranges(index.chunks, index_offset)


def _check_codecs(chunks: Chunks, limits: Limits) -> None:
    """C-2."""
    if len(chunks) and int(chunks.raw.max()) > limits.chunk_nbytes:
        raise LimitError(
            f"a chunk has {int(chunks.raw.max())} raw bytes, more than the limit of {limits.chunk_nbytes}; raise it "
            "with pytreeckpt.limits(chunk_nbytes=…)"
        )
    for number in np.unique(chunks.codec).tolist():
        codec_of(number)


def _check_chunked(arrays: list[ArrayEntry], dtypes: list[AnyDType], chunks: Chunks) -> None:
    """C-3 and C-4 for the chunks of boxes."""
    row = 0
    raw: list[int] = chunks.raw.tolist()
    for entry in arrays:
        if not entry.chunk_counts or entry.pooled:
            continue
        itemsize = dtypes[entry.dtype].itemsize
        for box, count in zip(entry.boxes, entry.chunk_counts, strict=True):
            end = row + count
            if sum(raw[row:end]) != math.prod(box.shape) * itemsize or any(not n or n % itemsize for n in raw[row:end]):
                raise CorruptionError(
                    f"chunks {row} to {end - 1} do not make up their box of shape {box.shape}", rule="C-3"
                )
            _check_stored(chunks, row, end, itemsize)
            row = end


def _check_stored(chunks: Chunks, start: int, stop: int, itemsize: int) -> None:
    rows = slice(start, stop)
    columns = (chunks.codec[rows].tolist(), chunks.stored[rows].tolist(), chunks.raw[rows].tolist())
    for row, (codec, stored, raw) in enumerate(zip(*columns, strict=True), start):
        if not codec_of(codec).stored_fits(stored, raw, itemsize):
            raise CorruptionError(f"chunk {row} has {stored} stored bytes for {raw} raw ones", rule="C-4")


def _locate_pooled(index: Index) -> None:
    """Set where each pooled array is (A-9, A-10). C-3 and C-4 for the chunks of pools."""
    chunks = index.chunks
    members: dict[int, list[int]] = {}
    for number, entry in enumerate(index.arrays):
        if entry.pooled:
            members.setdefault(entry.dtype, []).append(number)
    if len(members) != len(index.pools):
        raise CorruptionError(
            f"{len(members)} dtypes have pooled arrays, and there are {len(index.pools)} pools", rule="A-9"
        )
    row = len(chunks) - sum(index.pools)
    for dtype_id, count in zip(sorted(members), index.pools, strict=True):
        numbers = members[dtype_id]
        itemsize = index.dtypes[dtype_id].itemsize
        raw = chunks.raw[row : row + count].astype(np.int64)
        chunk_ends = np.cumsum(raw)
        # Python's integers, because the sizes of a stranger's arrays may have any sum.
        ends = list(accumulate(index.sizes[number] for number in numbers))
        if ends[-1] != int(chunk_ends[-1]) or bool((raw % itemsize != 0).any()) or not bool(raw.all()):
            raise CorruptionError(
                f"chunks {row} to {row + count - 1} do not make up the pool of dtype {dtype_id}", rule="C-3"
            )
        array_ends = np.array(ends, np.int64)
        if not bool(np.isin(chunk_ends, array_ends).all()):
            raise CorruptionError(f"an array of the pool of dtype {dtype_id} is in two chunks", rule="A-10")
        _check_stored(chunks, row, row + count, itemsize)
        array_starts = np.concatenate([[0], array_ends[:-1]])
        of_pool = np.searchsorted(chunk_ends, array_starts, side="right")
        within = array_starts - (chunk_ends - raw)[of_pool]
        for number, first, start in zip(numbers, (of_pool + row).tolist(), within.tolist(), strict=True):
            index.first_chunk[number] = first
            index.starts[number] = start
        row += count


def _check_ranges(chunks: Chunks, index_offset: int) -> None:
    checks = np.frombuffer(chunks.check, "V8")
    raw_rows = np.flatnonzero(chunks.codec == 0)
    if not np.array_equal(checks[raw_rows], np.frombuffer(chunks.digest, "V8")[::2][raw_rows]):
        raise CorruptionError("the check of a raw chunk is not the beginning of its digest", rule="C-5")
    if len(chunks) and int(chunks.offset.max()) >= index_offset:
        raise CorruptionError("a chunk begins at the index or behind it", rule="C-6")
    # C-6, for all rows at once. Offsets are those of a file, so that no sum overflows.
    _, first_at, number = np.unique(chunks.offset, return_index=True, return_inverse=True)
    first = first_at[number]
    digests = np.frombuffer(chunks.digest, "V16")
    for values in (chunks.stored, chunks.raw, chunks.codec, checks, digests):
        different = np.flatnonzero(values != values[first])
        if different.size:
            row = int(different[0])
            raise CorruptionError(f"chunks {first[row]} and {row} are at the same offset and differ", rule="C-6")
    rows = np.sort(first_at)
    ends = -(-(chunks.offset[rows].astype(np.int64) + chunks.stored[rows]) // ALIGNMENT) * ALIGNMENT
    due = np.concatenate([[PREAMBLE_NBYTES], ends])
    wrong = np.flatnonzero(due != np.concatenate([chunks.offset[rows].astype(np.int64), [index_offset]]))
    if wrong.size:
        place = int(wrong[0])
        what = f"chunk {rows[place]}" if place < len(rows) else "the index"
        raise CorruptionError(f"{what} does not begin at {due[place]}, where it is due", rule="C-6")
