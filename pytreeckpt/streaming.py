"""The bytes of a file as a stream: chunk after chunk is encoded, then come the index and the footer.

Nothing here opens a file, so a checkpoint in memory and one on disk are the same thing.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pytreeckpt import codecs, zstd
from pytreeckpt.codecs import Compression, encode_chunk
from pytreeckpt.errors import LimitError
from pytreeckpt.index import ArrayTable, Chunks, DataFile, IntArray, encode_index
from pytreeckpt.limits import Limits
from pytreeckpt.nodes import Nodes
from pytreeckpt.planes import cut_of
from pytreeckpt.planning import ChunkTask, SavePlan, batched
from pytreeckpt.wire import (
    ALIGNMENT,
    DATA_FILES,
    FOOTER_NBYTES,
    PREAMBLE_NBYTES,
    Buffer,
    Footer,
    align,
    encode_footer,
    encode_preamble,
    padding,
    sha256,
    xxh64,
    xxh128,
)

_INDEX_LEVEL = 1


class EncodedChunk(NamedTuple):
    """A chunk as it is stored, in pieces, with the zero bytes that follow it."""

    pieces: Sequence[Buffer]
    stored_nbytes: int
    raw_nbytes: int
    codec: int
    check: bytes
    digest: bytes


class EncodedBatch(NamedTuple):
    """Chunks that were encoded together: the bytes of them all, in pieces, and a row for each of stored length, raw
    length and codec.
    """

    pieces: Sequence[Buffer]
    rows: IntArray
    checks: bytes
    digests: bytes

    @property
    def raw_nbytes(self) -> int:
        """Bytes of the arrays in these chunks."""
        return int(self.rows[:, 1].sum())


@dataclass(frozen=True, slots=True)
class Written:
    """What a stream of pieces came to, known at its end. Sizes in bytes."""

    file_nbytes: int
    raw_nbytes: int
    stored_nbytes: int
    n_chunks: int
    root: str


def encode_batch(tasks: Sequence[ChunkTask], compression: Compression, *, few_small: bool) -> EncodedBatch:
    """Stage, compress and digest chunks. Safe to call from several threads, and deterministic."""
    return batch_of([encode_task(task, compression, few_small=few_small) for task in tasks])


def batch_of(chunks: Sequence[EncodedChunk]) -> EncodedBatch:
    """The chunks as a batch."""
    pieces = [piece for chunk in chunks for piece in chunk.pieces]
    return EncodedBatch(
        # Many small pieces are as much work to write as large ones.
        pieces if len(chunks) == 1 else [b"".join(pieces)],
        np.array([(chunk.stored_nbytes, chunk.raw_nbytes, chunk.codec) for chunk in chunks], np.int64),
        b"".join([chunk.check for chunk in chunks]),
        b"".join([chunk.digest for chunk in chunks]),
    )


def read_task(task: ChunkTask) -> memoryview:
    """The raw bytes of one chunk."""
    raw = task.source.boxes[task.box](task.start, task.stop).view(np.uint8).data
    if raw.nbytes != task.nbytes:
        raise ValueError(f"an ArraySource gave {raw.nbytes} bytes for its items {task.start} to {task.stop}")
    return raw


def encode_task(task: ChunkTask, compression: Compression, *, few_small: bool) -> EncodedChunk:
    """Stage, compress and digest one chunk."""
    dtype = task.source.dtype
    raw = read_task(task)
    codec, pieces = encode_chunk(raw, dtype.itemsize, compression, cut_of(dtype), few_small=few_small)
    stored_nbytes = sum(map(len, pieces))
    digest = xxh128(raw)
    # C-5: one hash is enough for a raw chunk.
    check = digest[:8] if codec is codecs.RAW else xxh64(*pieces)
    if stored_nbytes % ALIGNMENT:
        pieces = [*pieces, padding(stored_nbytes)]
    return EncodedChunk(pieces, stored_nbytes, len(raw), codec.number, check, digest)


EncodeAll = Callable[
    [Callable[[Sequence[ChunkTask]], EncodedBatch], Iterable[Sequence[ChunkTask]]], Iterable[EncodedBatch]
]
"""How batches are encoded: `map`, or something that does the same in threads, in order."""


def stream(plan: SavePlan, compression: Compression, encode_all: EncodeAll = map) -> Generator[Buffer, None, Written]:
    """The pieces of the file, in order. The generator's return value is a `Written`."""
    yield encode_preamble()
    few_small = plan.few_small
    batches = list(batched(plan.tasks))
    encoded = encode_all(lambda tasks: encode_batch(tasks, compression, few_small=few_small), batches)
    chunks = yield from stream_chunks(encoded, n_batches=len(batches))
    footer = yield from stream_end(plan.nodes, plan.table, chunks, limits=plan.limits)
    return Written(
        footer.file_nbytes,
        plan.raw_nbytes + len(plan.table.inline),
        int(chunks.stored.sum()) + len(plan.table.inline),
        len(chunks),
        footer.root.hex(),
    )


def stream_chunks(encoded: Iterable[EncodedBatch], *, n_batches: int) -> Generator[Buffer, None, Chunks]:
    """The pieces of the chunks of a file, which follow its preamble. The generator's return value is their table."""
    rows: list[IntArray] = [np.empty((0, 3), np.int64)]
    checks: list[bytes] = []
    digests: list[bytes] = []
    # Strict: a StopIteration from a source would end a `map` early, and with it the file.
    for _, batch in zip(range(n_batches), encoded, strict=True):
        rows.append(batch.rows)
        checks.append(batch.checks)
        digests.append(batch.digests)
        yield from batch.pieces
    stored, raw, codec = np.concatenate(rows).T
    ends = PREAMBLE_NBYTES + np.cumsum(-(-stored // ALIGNMENT) * ALIGNMENT)
    offsets = np.concatenate([[PREAMBLE_NBYTES], ends])[:-1]
    return Chunks(offsets, stored, raw, codec, b"".join(checks), b"".join(digests), np.zeros_like(codec))


def stream_end(
    nodes: Nodes,
    table: ArrayTable,
    chunks: Chunks,
    *,
    limits: Limits,
    files: Sequence[DataFile] = (),
    compress_index: bool = True,
) -> Generator[Buffer, None, Footer]:
    """The pieces of a file from its index on: behind those of its chunks that lie in itself, or behind its preamble.
    The generator's return value is its footer.
    """
    raw_index = encode_index(nodes, table, chunks, files)
    if len(raw_index) > limits.index_nbytes:
        raise LimitError(
            f"the index has {len(raw_index)} bytes, more than the limit of {limits.index_nbytes}: the tree has "
            "very many or very long names or values; raise it with pytreeckpt.limits(index_nbytes=…), for reading "
            "too"
        )
    codec, stored = codecs.RAW, raw_index
    if compress_index and len(compressed := zstd.compress(raw_index, _INDEX_LEVEL)) < len(raw_index):
        codec, stored = codecs.ZSTD, compressed
    own = chunks.file == 0
    ends = chunks.offset[own] + -(-chunks.stored[own] // ALIGNMENT) * ALIGNMENT
    at = int(ends.max(initial=PREAMBLE_NBYTES))
    footer = Footer(
        at,
        len(stored),
        len(raw_index),
        codec.number,
        xxh128(stored),
        sha256(raw_index),
        at + align(len(stored)) + FOOTER_NBYTES,
        DATA_FILES if files else 0,
    )
    yield stored
    yield padding(len(stored))
    yield encode_footer(footer)
    return footer
