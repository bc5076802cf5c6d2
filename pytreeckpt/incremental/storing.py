"""The chunks of a new data file, encoded or copied, and the file itself."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import NamedTuple

from pytreeckpt.codecs import RAW, Compression
from pytreeckpt.commit import Durability
from pytreeckpt.content import close
from pytreeckpt.errors import NotDurableError, PytreeckptError, StorageError
from pytreeckpt.incremental.data_files import stream_data_file
from pytreeckpt.incremental.deciding import Wanted
from pytreeckpt.incremental.known import ChunkKey, Place, data_path
from pytreeckpt.incremental.progress import Halves
from pytreeckpt.incremental.usable import is_there
from pytreeckpt.index import DataFile
from pytreeckpt.limits import Limits
from pytreeckpt.pipeline import ordered_map
from pytreeckpt.planning import ChunkTask, batched
from pytreeckpt.reading import ChunkRow, RangedSource, check_chunk, read
from pytreeckpt.storage import Storage, with_errno
from pytreeckpt.streaming import EncodedBatch, EncodedChunk, batch_of, encode_task
from pytreeckpt.wire import Footer, align, xxh128
from pytreeckpt.writer import publish


class Job(NamedTuple):
    """A chunk to be stored: its task, what it is, and where it may be copied from."""

    task: ChunkTask
    wanted: Wanted
    copied: Place | None

    @property
    def nbytes(self) -> int:
        """Raw bytes of the chunk."""
        return self.task.nbytes


class StoredFile(NamedTuple):
    """A data file that was written: where its chunks are, and its length in bytes."""

    places: Mapping[ChunkKey, Place]
    nbytes: int


class _IsThereError(Exception):
    """The file is there already, and need not be published."""

    def __init__(self, written: tuple[Footer, list[ChunkRow]]) -> None:
        super().__init__()
        self.written = written


def write_data_file(
    storage: Storage,
    path: str,
    jobs: Sequence[Job],
    *,
    compression: Compression,
    few_small: bool,
    limits: Limits,
    durability: Durability,
    threads: int,
    report: Halves,
    new: list[str],
) -> StoredFile:
    """Write the data file of a checkpoint that is to be at `path`: durable, if that is asked for, when this returns.

    Its path is put into `new` before it is there, unless there is such a file already. That has the same bytes, which
    the root determines, or is damaged. It is replaced, unless the new one would not be durable and the old one may be.
    """
    keys = [job.wanted.key for job in jobs]
    batches = list(batched(jobs))

    def named(written: tuple[Footer, list[ChunkRow]]) -> str:
        file = DataFile(written[0].file_nbytes, written[0].root)
        name = data_path(path, file.name)
        if not storage.exists(name):
            new.append(name)
        elif durability == "atomic" and is_there(storage, path, file):
            raise _IsThereError(written)
        return name

    def reported(encoded: Iterable[EncodedBatch]) -> Generator[EncodedBatch, None, None]:
        for batch in encoded:
            yield batch
            report.halves(batch.raw_nbytes)

    with ExitStack() as stack:
        sources = _open_copied(storage, path, jobs, stack)
        encoded = ordered_map(
            lambda some: batch_of([_store(job, sources, compression, few_small=few_small) for job in some]),
            batches,
            threads=threads,
        )
        pieces = stream_data_file(keys, reported(encoded), n_batches=len(batches), limits=limits)
        # A name for errors: the real one is known at the end.
        target = data_path(path, "new.ptck")
        try:
            footer, rows = publish(storage, target, pieces, if_exists="replace", durability=durability, named=named)
        except _IsThereError as there:
            footer, rows = there.written
        except NotDurableError as error:
            raise with_errno(StorageError(f"{path} was not published: {error}"), error) from error
    file = DataFile(footer.file_nbytes, footer.root)
    return StoredFile({key: Place(file, row) for key, row in zip(keys, rows, strict=True)}, file.nbytes)


def _open_copied(storage: Storage, path: str, jobs: Sequence[Job], stack: ExitStack) -> dict[DataFile, RangedSource]:
    """The data files that chunks are copied from, as far as they are there."""
    sources: dict[DataFile, RangedSource] = {}
    for file in sorted({job.copied.file for job in jobs if job.copied is not None}):
        with suppress(PytreeckptError):
            source = sources[file] = storage.open(data_path(path, file.name))
            stack.callback(close, [source])
    return sources


def _store(
    job: Job, sources: Mapping[DataFile, RangedSource], compression: Compression, *, few_small: bool
) -> EncodedChunk:
    """The chunk as it is stored: copied, if what is there is whole, or encoded."""
    if job.copied is not None and job.copied.file in sources:
        with suppress(PytreeckptError):
            return _copy(sources[job.copied.file], job.copied.row)
    chunk = encode_task(job.task, compression, few_small=few_small)
    digest = chunk.digest
    if chunk.codec == RAW.number and not job.task.source.immutable:
        # What is written later would be what the array is by then, and be taken by later steps for what it was.
        chunk = chunk._replace(pieces=[bytes(piece) for piece in chunk.pieces])
        digest = xxh128(chunk.pieces[0])
    if digest != job.wanted.digest:
        raise PytreeckptError(
            "an array was changed while it was being saved, and nothing was published; save it when nothing writes to "
            "it, or in the background, which takes a copy first"
        )
    return chunk


def _copy(source: RangedSource, row: ChunkRow) -> EncodedChunk:
    stored = memoryview(read(source, row.offset, align(row.stored)))
    check_chunk(row, stored[: row.stored], stored[row.stored :])
    return EncodedChunk([stored], row.stored, row.raw, row.codec, row.check, row.digest)
