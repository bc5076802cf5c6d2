"""Reading what an index describes, given only a way to read ranges: chunks, whole arrays, regions. No I/O of its
own.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple, Protocol

import numpy as np

from pytreeckpt import zstd
from pytreeckpt.arrays import AnyArray, copy_items
from pytreeckpt.codecs import CODECS, RAW
from pytreeckpt.errors import CorruptionError, LimitError
from pytreeckpt.geometry import Box, covering_ranges, runs, whole
from pytreeckpt.index import ArrayEntry, Index
from pytreeckpt.index_decoding import decode_index
from pytreeckpt.limits import Limits, current_limits
from pytreeckpt.scratch import scratch
from pytreeckpt.wire import (
    FOOTER_NBYTES,
    PREAMBLE_NBYTES,
    Buffer,
    Footer,
    align,
    check_preamble,
    decode_footer,
    sha256,
    xxh64,
    xxh128,
)


class RangedSource(Protocol):
    """Bytes that can be read at any offset, from several threads at once."""

    @property
    def nbytes(self) -> int:
        """The length of the whole."""
        ...

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers, one after the other, with the bytes from `offset` on, or raise `CorruptionError` at
        the end of the data.
        """
        ...


@dataclass(frozen=True, slots=True)
class BytesSource:
    """A checkpoint in memory."""

    data: memoryview

    @property
    def nbytes(self) -> int:
        """The length of the whole."""
        return len(self.data)

    def view(self, start: int, stop: int) -> memoryview:
        """The bytes from `start` to `stop`, where they are."""
        return self.data[start:stop]

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Copy from the memory."""
        for buffer in buffers:
            buffer[:] = self.data[offset : offset + len(buffer)]
            offset += len(buffer)


def read(source: RangedSource, offset: int, nbytes: int) -> bytearray:
    """`nbytes` bytes from `offset` on."""
    buffer = bytearray(nbytes)
    source.read_into(offset, [memoryview(buffer)])
    return buffer


def read_footer(source: RangedSource) -> Footer:
    """Check preamble and footer (F-1 to F-10)."""
    preamble = bytes(read(source, 0, min(PREAMBLE_NBYTES, source.nbytes)))
    check_preamble(preamble)
    footer = (
        bytes(read(source, source.nbytes - FOOTER_NBYTES, FOOTER_NBYTES)) if source.nbytes >= FOOTER_NBYTES else b""
    )
    return decode_footer(preamble, footer, source.nbytes)


def read_index(source: RangedSource, footer: Footer, limits: Limits) -> Index:
    """Read and check the index (F-11 to C-6, C-11 to C-13). Data files are not looked for."""
    if footer.index_raw_nbytes > limits.index_nbytes:
        raise LimitError(
            f"the index has {footer.index_raw_nbytes} bytes, more than the limit of {limits.index_nbytes}; raise it "
            "with pytreeckpt.limits(index_nbytes=…)"
        )
    stored_nbytes = footer.index_stored_nbytes
    buffer = read(source, footer.index_offset, align(stored_nbytes))
    stored = memoryview(buffer)[:stored_nbytes]
    if xxh128(stored) != footer.index_digest:
        raise CorruptionError("the index is damaged: its digest does not match", rule="F-11")
    if any(buffer[stored_nbytes:]):
        raise CorruptionError("the bytes between the index and the footer are not zero", rule="F-12")
    try:
        raw = bytes(stored) if footer.index_codec == RAW.number else zstd.decompress(stored, footer.index_raw_nbytes)
        if sha256(raw) != footer.root:
            raise CorruptionError("the index is damaged: its SHA-256 is not the root", rule="F-14")
        return decode_index(raw, index_offset=footer.index_offset, limits=limits, features=footer.features)
    except MemoryError:
        raise LimitError(f"an index of {footer.index_raw_nbytes} bytes needs more memory than there is") from None


class ChunkRow(NamedTuple):
    """A row of the chunk table. Offset, in the file of that number, and lengths in bytes. `identity` is empty in a file
    without data files.
    """

    offset: int
    stored: int
    raw: int
    codec: int
    check: bytes
    digest: bytes
    file: int = 0
    identity: bytes = b""

    @property
    def end(self) -> int:
        """Where the zero bytes after the chunk end."""
        return self.offset + align(self.stored)


def chunk_row(index: Index, row: int) -> ChunkRow:
    """One row of the chunk table."""
    return chunk_rows(index, row, row + 1)[0]


def chunk_rows(index: Index, start: int, stop: int) -> list[ChunkRow]:
    """Rows `start` to `stop` of the chunk table."""
    chunks = index.chunks
    columns = (chunks.offset, chunks.stored, chunks.raw, chunks.codec)
    numbers = (column[start:stop].tolist() for column in columns)
    checks = (chunks.check[at : at + 8] for at in range(8 * start, 8 * stop, 8))
    digests = (chunks.digest[at : at + 16] for at in range(16 * start, 16 * stop, 16))
    if not chunks.identity:
        return list(map(ChunkRow, *numbers, checks, digests))
    identities = (chunks.identity[at : at + 32] for at in range(32 * start, 32 * stop, 32))
    return list(map(ChunkRow, *numbers, checks, digests, chunks.file[start:stop].tolist(), identities))


def read_chunk(source: RangedSource, row: ChunkRow, itemsize: int, out: memoryview, *, verify: bool = True) -> None:
    """Read, check and decode one chunk into `out`, which has exactly its raw length (C-7 to C-10).

    Without `verify` neither check nor digest is computed; what decoding itself finds is still an error.
    """
    gap = memoryview(bytearray(row.end - row.offset - row.stored))
    if row.codec == RAW.number:
        # Into its place at once.
        source.read_into(row.offset, [out, gap])
        check_chunk(row, out, gap, verify=verify)
    else:
        stored = scratch("stored", row.end - row.offset).data
        source.read_into(row.offset, [stored])
        decode_chunk(row, stored, itemsize, out, verify=verify)


def decode_chunk(row: ChunkRow, stored: memoryview, itemsize: int, out: memoryview, *, verify: bool = True) -> None:
    """As `read_chunk`, from the stored bytes and the zero bytes after them."""
    payload = stored[: row.stored]
    check_chunk(row, payload, stored[row.stored :], verify=verify)
    CODECS[row.codec].decode(payload, out, itemsize)
    if verify and row.codec != RAW.number and xxh128(out) != row.digest:
        raise CorruptionError("digest mismatch", rule="C-10")


def check_chunk(row: ChunkRow, payload: memoryview, gap: Buffer, *, verify: bool = True) -> None:
    """Check the stored bytes of a chunk, and for a raw one with them the raw bytes (C-7, C-8)."""
    if any(gap):
        raise CorruptionError("the bytes after the chunk are not zero", rule="C-7")
    if not verify:
        return
    if row.codec == RAW.number:
        if xxh128(payload) != row.digest:
            raise CorruptionError("digest mismatch", rule="C-8")
    elif xxh64(payload) != row.check:
        raise CorruptionError("the stored bytes are damaged: their check does not match", rule="C-8")


def check_total(nbytes: int) -> None:
    """Raise `LimitError` if this is more than one call may read."""
    if nbytes > current_limits().arrays_nbytes:
        raise LimitError(
            f"what is to be read has {nbytes} bytes, more than the limit of {current_limits().arrays_nbytes}; "
            "raise it with pytreeckpt.limits(arrays_nbytes=…), or read a part with select= or a slice"
        )


def empty_stored(index: Index, array: int) -> AnyArray:
    """A new array in stored order for an array of the index."""
    entry = index.arrays[array]
    return allocate(entry.stored_shape, index, entry)


def allocate(shape: tuple[int, ...], index: Index, entry: ArrayEntry) -> AnyArray:
    """A new C-ordered array of the entry's dtype."""
    dtype = index.dtypes[entry.dtype]
    try:
        return np.ndarray(shape, dtype)
    except (MemoryError, ValueError) as error:
        nbytes = math.prod(shape) * dtype.itemsize
        raise LimitError(f"an array of shape {shape} and dtype {dtype} needs {nbytes} bytes: {error}") from None


def as_logical(stored: AnyArray, entry: ArrayEntry) -> AnyArray:
    """The array itself, from its stored order."""
    return stored if entry.axes is None else stored.transpose(np.argsort(entry.axes))


def inline_array(index: Index, array: int) -> AnyArray:
    """A copy of an inline array, in stored order."""
    entry = index.arrays[array]
    dtype = index.dtypes[entry.dtype]
    if dtype.kind in "biufc" and entry.axes is None:
        # Where numpy copies items bit by bit, which it does not promise for others.
        view: AnyArray = np.ndarray(entry.shape, dtype, index.inline, index.starts[array])
        return view.copy()
    return array_within(index, array, memoryview(index.inline))


def array_within(index: Index, array: int, memory: memoryview) -> AnyArray:
    """A copy of an inline or pooled array, in stored order, from the memory that it is in."""
    stored = empty_stored(index, array)
    start = index.starts[array]
    flat_bytes(stored)[:] = memory[start : start + stored.nbytes]
    return stored


def scalar_value(index: Index, array: int) -> object:
    """The numpy scalar that an array of rank 0 stands for."""
    values = inline_array(index, array)
    try:
        match values.dtype.kind:
            # Indexing would drop zeros at the end of the string.
            case "S":
                return np.bytes_(values.tobytes())
            case "U":
                order = "utf-32-be" if values.dtype.byteorder == ">" else "utf-32-le"
                return np.str_(values.tobytes().decode(order, "surrogatepass"))
    except UnicodeDecodeError as error:
        raise CorruptionError(
            f"a scalar of dtype {values.dtype} is not made of code points: {error}", rule="N-11"
        ) from None
    return values[()]


def flat_bytes(array: AnyArray) -> memoryview:
    """The memory of a C-contiguous array as bytes."""
    if array.nbytes == 0:
        return memoryview(bytearray())
    # As bytes, because ml_dtypes arrays have no buffer protocol of their own.
    return array.reshape(-1).view(np.uint8).data


@dataclass(frozen=True, slots=True)
class ChunkRead:
    """One chunk to be read for an array: its row, its box, and the items of that box that it holds."""

    row: int
    box: Box
    start: int
    stop: int


def chunk_reads(index: Index, array: int, region: Box | None = None) -> list[ChunkRead]:
    """The chunks of a chunked array that hold items of `region`, in stored order; all of them without one."""
    entry = index.arrays[array]
    itemsize = index.dtypes[entry.dtype].itemsize
    if entry.pooled:
        return [ChunkRead(index.first_chunk[array], entry.boxes[0], 0, math.prod(entry.shape))]
    reads: list[ChunkRead] = []
    row = index.first_chunk[array]
    for box, count in zip(entry.boxes, entry.chunk_counts, strict=True):
        common = box if region is None else box.intersect(region)
        if common is not None:
            raw = index.chunks.raw[row : row + count].tolist()
            ends = [0, *accumulate(nbytes // itemsize for nbytes in raw)]
            reads += [ChunkRead(row + place, box, ends[place], ends[place + 1]) for place in _places(box, common, ends)]
        row += count
    return reads


def _places(box: Box, common: Box, ends: list[int]) -> list[int]:
    """Which chunks of a box, ending at these items, hold items of `common`."""
    n_chunks = len(ends) - 1
    if common == box or n_chunks == 1:
        return list(range(n_chunks))
    # But for the last, which holds what was left over.
    smallest = min(high - low for low, high in pairwise(ends[:-1]))
    places: set[int] = set()
    for low, high in covering_ranges(box.shape, common.relative_to(box.offset), smallest):
        places.update(range(bisect_right(ends, low) - 1, bisect_right(ends, high - 1)))
    return sorted(places)


def place_items(read_: ChunkRead, items: AnyArray, region: Box, out: AnyArray) -> None:
    """Put those items of a chunk that lie in `region` into `out`, which is that region of the array in stored order."""
    for run in runs(read_.box.shape, read_.start, read_.stop):
        part = Box(tuple(map(sum, zip(run.box.offset, read_.box.offset, strict=True))), run.box.shape)
        common = part.intersect(region)
        if common is not None:
            values = items[run.start : run.start + math.prod(run.box.shape)].reshape(run.box.shape)
            copy_items(
                out[common.relative_to(region.offset).selection],
                values[common.relative_to(part.offset).selection],
            )


def whole_region(index: Index, array: int) -> Box:
    """The region of a whole array in stored order."""
    return whole(index.arrays[array].stored_shape)
