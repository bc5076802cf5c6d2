"""The file table and the chunk table of an index (section 8 of the format): decoded, and held against each other and
the arrays and pools that they are of.

Total, as `index_decoding` is.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any, Final

import msgpack
import numpy as np

from pytreeckpt.codecs import codec_of
from pytreeckpt.dtypes import AnyDType
from pytreeckpt.errors import CorruptionError, LimitError
from pytreeckpt.index import THIS_FILE, ArrayEntry, Chunks, DataFile, Index, IntArray, column
from pytreeckpt.limits import Limits
from pytreeckpt.wire import ALIGNMENT, DATA_FILES, FOOTER_NBYTES, IDENTITY_NBYTES, PREAMBLE_NBYTES, ROOT_NBYTES

_MAX_NBYTES: Final = 1 << 63


def decode_files(entries: list[Any], features: int, limits: Limits) -> tuple[DataFile, ...]:
    """The data files of a file with these features (C-1)."""
    # Compared as bytes, because False equals 0.
    if not entries or msgpack.packb(entries[0]) != msgpack.packb(THIS_FILE):
        raise CorruptionError("the file table does not begin with the entry for this file", rule="C-1")
    if (len(entries) > 1) is not bool(features & DATA_FILES):
        raise CorruptionError(
            f"the file table has {len(entries) - 1} data files, and the preamble says "
            f"that there are {'some' if features & DATA_FILES else 'none'}",
            rule="C-1",
        )
    if len(entries) - 1 > limits.data_files:
        raise LimitError(
            f"the checkpoint lies in {len(entries) - 1} data files, more than the limit of {limits.data_files}; raise "
            "it with pytreeckpt.limits(data_files=…)"
        )
    files = tuple(_decode_file(entry) for entry in entries[1:])
    if len({file.root for file in files}) != len(files):
        raise CorruptionError("the file table has a data file twice", rule="C-1")
    return files


def _decode_file(entry: Any) -> DataFile:
    match entry:
        case [str(name), int(nbytes), bytes(root)] if not isinstance(nbytes, bool) and 0 <= nbytes < _MAX_NBYTES:
            file = DataFile(nbytes, root)
            # Nothing in a file chooses what is opened: a name is its root, or is refused.
            if len(root) == ROOT_NBYTES and name == file.name:
                return file
    raise CorruptionError(
        "a further entry of the file table is not [name, length, root] with the name that its root gives", rule="C-1"
    )


def decode_chunks(document: dict[str, bytes], n_files: int) -> Chunks:
    """The chunk table of a file with so many data files, with what is wrong in its columns alone (I-3, C-11, C-12)."""
    file = column(document, "file", "<u4")
    columns = {
        name: column(document, name, dtype)
        for name, dtype in {"offset": "<u8", "stored": "<u4", "raw": "<u4", "codec": "u1"}.items()
    }
    lengths = {len(column) for column in columns.values()} | {len(file)}
    if len(lengths) != 1 or len(document["check"]) != 8 * len(file) or len(document["digest"]) != 16 * len(file):
        raise CorruptionError("the columns of the chunk table differ in length", rule="I-3")
    identity = document["identity"]
    if len(identity) % IDENTITY_NBYTES:
        raise CorruptionError(f"column identity of {len(identity)} bytes has entries of {IDENTITY_NBYTES}", rule="I-3")
    _check_files(file.astype(np.int64), n_files)
    n_due = len(file) if n_files else 0
    if len(identity) != IDENTITY_NBYTES * n_due:
        raise CorruptionError(
            f"there are {len(identity) // IDENTITY_NBYTES} identities, and {n_due} are due", rule="C-12"
        )
    return Chunks(**columns, check=document["check"], digest=document["digest"], file=file, identity=identity)


def _check_files(file: IntArray, n_files: int) -> None:
    """C-11."""
    further = file[file != 0]
    highest = np.maximum.accumulate(further)
    if bool((further > np.concatenate([[0], highest])[: len(further)] + 1).any()):
        raise CorruptionError("the chunks do not name the data files in the order of the file table", rule="C-11")
    n_used = int(highest[-1]) if len(highest) else 0
    if n_used != n_files:
        raise CorruptionError(f"there are {n_files} data files, and the chunks lie in {n_used}", rule="C-11")


def first_chunks(arrays: list[ArrayEntry], pools: list[int], n_rows: int) -> list[int]:
    """A-8: the first row of each chunked array; of others, any."""
    counts = [0 if entry.pooled else sum(entry.chunk_counts) for entry in arrays]
    first_chunk = list(accumulate(counts, initial=0))
    n_chunked = first_chunk.pop()
    if n_chunked + sum(pools) != n_rows or 0 in pools or any(0 in entry.chunk_counts for entry in arrays):
        raise CorruptionError("the chunk counts of arrays and pools do not match the chunk table", rule="A-8")
    return first_chunk


def check_chunks(index: Index, *, index_offset: int, limits: Limits) -> None:
    """C-2 to C-6, C-13, A-9 and A-10; sets where the pooled arrays of the index are."""
    _check_codecs(index.chunks, limits)
    _check_chunked(index.arrays, index.dtypes, index.chunks)
    _locate_pooled(index)
    _check_ranges(index, index_offset)


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


def _check_ranges(index: Index, index_offset: int) -> None:
    chunks = index.chunks
    raw_rows = np.flatnonzero(chunks.codec == 0)
    checks = np.frombuffer(chunks.check, "V8")
    if not np.array_equal(checks[raw_rows], np.frombuffer(chunks.digest, "V8")[::2][raw_rows]):
        raise CorruptionError("the check of a raw chunk is not the beginning of its digest", rule="C-5")
    own, *further = chunks.by_file(len(index.files))
    _check_own_ranges(chunks, own, index_offset)
    for file, rows in zip(index.files, further, strict=True):
        _check_further_ranges(chunks, rows, file)


def _check_own_ranges(chunks: Chunks, rows: IntArray, index_offset: int) -> None:
    """C-6. The rows are those of this file."""
    if len(rows) and int(chunks.offset[rows].max()) >= index_offset:
        raise CorruptionError("a chunk begins at the index or behind it", rule="C-6")
    # In the order of the table, which is that of the file.
    rows = np.sort(_distinct(chunks, rows, rule="C-6", where=""))
    offsets = chunks.offset[rows].astype(np.int64)
    # Offsets are those of a file, so that no sum overflows.
    ends = -(-(offsets + chunks.stored[rows]) // ALIGNMENT) * ALIGNMENT
    due = np.concatenate([[PREAMBLE_NBYTES], ends])
    wrong = np.flatnonzero(due != np.concatenate([offsets, [index_offset]]))
    if wrong.size:
        place = int(wrong[0])
        what = f"chunk {rows[place]}" if place < len(rows) else "the index"
        raise CorruptionError(f"{what} does not begin at {due[place]}, where it is due", rule="C-6")


def _check_further_ranges(chunks: Chunks, rows: IntArray, file: DataFile) -> None:
    """C-13. The rows are those of a data file."""
    rows = _distinct(chunks, rows, rule="C-13", where=f" of {file.name}")
    # Unsigned: an offset may be any, and a file nearly 2^63 bytes long.
    offsets = chunks.offset[rows].astype(np.uint64)
    last = file.nbytes - FOOTER_NBYTES - ALIGNMENT
    if int(offsets[-1]) >= max(last, 0) or int(offsets[0]) < PREAMBLE_NBYTES or bool((offsets % ALIGNMENT).any()):
        raise CorruptionError(
            f"a chunk does not begin at a multiple of {ALIGNMENT} among the chunks of the data file {file.name}",
            rule="C-13",
        )
    ends = offsets + -(-chunks.stored[rows].astype(np.int64) // ALIGNMENT * ALIGNMENT).astype(np.uint64)
    beyond = np.flatnonzero(ends > np.append(offsets[1:], np.uint64(last)))
    if beyond.size:
        raise CorruptionError(
            f"chunk {rows[beyond[0]]} overlaps another or the index of the data file {file.name}", rule="C-13"
        )


def _distinct(chunks: Chunks, rows: IntArray, *, rule: str, where: str) -> IntArray:
    """The first of the rows at each offset of one file, ascending by offset; the others must be equal to them."""
    _, first_at, number = np.unique(chunks.offset[rows], return_index=True, return_inverse=True)
    first = rows[first_at[number]]
    columns = [np.frombuffer(chunks.check, "V8"), np.frombuffer(chunks.digest, "V16")]
    if chunks.identity:
        columns.append(np.frombuffer(chunks.identity, f"V{IDENTITY_NBYTES}"))
    for values in (chunks.stored, chunks.raw, chunks.codec, *columns):
        different = np.flatnonzero(values[rows] != values[first])
        if different.size:
            at = int(different[0])
            raise CorruptionError(
                f"chunks {first[at]} and {rows[at]}{where} are at the same offset and differ", rule=rule
            )
    return rows[first_at]
