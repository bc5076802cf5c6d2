"""Run a commit on a storage: apply its operations, and leave nothing behind when one fails."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import cast

from pytreeckpt.codecs import Compression
from pytreeckpt.commit import (
    Durability,
    IfExists,
    LinkFile,
    Operation,
    RenameFile,
    Result,
    SyncDirectory,
    Target,
    commit,
)
from pytreeckpt.errors import CheckpointExistsError, NotDurableError, PytreeckptError
from pytreeckpt.pipeline import Progress, ReportProgress, ordered_map, threads_for
from pytreeckpt.planning import ChunkTask, SavePlan
from pytreeckpt.storage import Storage, storage_error, with_errno
from pytreeckpt.streaming import EncodedBatch, Written, stream
from pytreeckpt.wire import Buffer


def write_checkpoint(
    storage: Storage,
    path: str,
    plan: SavePlan,
    *,
    compression: Compression,
    if_exists: IfExists,
    durability: Durability,
    progress: ReportProgress | None = None,
    threads: int | None = None,
) -> Written:
    """Write a plan to `path`. If this raises, nothing was published, except for `NotDurableError`."""
    done = 0
    total = plan.raw_nbytes
    n_threads = threads_for(len(plan.tasks), total) if threads is None else threads

    def encode_all(
        function: Callable[[Sequence[ChunkTask]], EncodedBatch], batches: Iterable[Sequence[ChunkTask]]
    ) -> Generator[EncodedBatch, None, None]:
        nonlocal done
        for batch in ordered_map(function, batches, threads=n_threads):
            yield batch
            done += batch.raw_nbytes
            if progress is not None and done < total:
                progress(Progress(done, total))

    def last_progress() -> None:
        if progress is not None:
            progress(Progress(total, total))

    pieces = stream(plan, compression, encode_all)
    return publish(storage, path, pieces, if_exists=if_exists, durability=durability, before_publishing=last_progress)


def publish(
    storage: Storage,
    path: str,
    pieces: Generator[Buffer, None, Result],
    *,
    if_exists: IfExists,
    durability: Durability,
    before_publishing: Callable[[], None] = lambda: None,
    named: Callable[[Result], str] | None = None,
) -> Result:
    """Write the pieces of a file, of whatever format, and give it its name at once; the result is that of `pieces`.

    `before_publishing` is called when all is written; `named` gives the name, in the directory of `path`, where it
    depends on the result. If this raises, nothing was published, except for `NotDurableError`.
    """
    if if_exists == "error" and storage.exists(path):
        raise CheckpointExistsError(f'{path} exists; choose another path, or if_exists="replace"')
    target = storage.target(path)
    operations = commit(target, pieces, if_exists=if_exists, durability=durability, named=named)
    return _run(storage, target, operations, before_publishing=before_publishing)


def make_durable(storage: Storage, directory: str, path: str) -> None:
    """Make the names in a directory durable, before `path` is published. Raises `StorageError`."""
    try:
        storage.apply(SyncDirectory(directory))
    except PytreeckptError:
        raise
    except OSError as error:
        raise storage_error(error, f"{path} was not published: SyncDirectory failed") from error


def _run(
    storage: Storage,
    target: Target,
    operations: Generator[Operation, None, Result],
    *,
    before_publishing: Callable[[], None],
) -> Result:
    """Apply the operations one by one; whatever happens, leave no temporary file behind."""
    # No `try` stands directly inside this one: Python would not guard the first bytecode of the inner one.
    try:
        return _apply_all(storage, target, operations, before_publishing)
    finally:
        try:
            operations.close()
        finally:
            storage.discard(target.temporary)


def _apply_all(
    storage: Storage,
    target: Target,
    operations: Generator[Operation, None, Result],
    before_publishing: Callable[[], None],
) -> Result:
    """Apply the operations one by one; when one fails, say whether the checkpoint was published.

    What the caller's own functions raise passes through unchanged, and before anything is published.
    """
    published = False
    while True:
        try:
            operation = next(operations)
        except StopIteration as end:
            return cast("Result", end.value)
        publishing = isinstance(operation, RenameFile | LinkFile)
        if publishing:
            before_publishing()
        try:
            storage.apply(operation)
        except PytreeckptError:
            raise
        except OSError as error:
            raise _explained(error, target, operation, published=published) from error
        published = published or publishing


def _explained(error: OSError, target: Target, operation: Operation, *, published: bool) -> PytreeckptError:
    doing = type(operation).__name__
    if isinstance(operation, LinkFile) and isinstance(error, FileExistsError):
        return CheckpointExistsError(
            f"{target.path} exists: another writer was first; this checkpoint was not published"
        )
    if published:
        message = (
            f"{target.path} was published, but {doing} failed afterwards ({error}): it may not survive a power "
            "cut; save it again"
        )
        return with_errno(NotDurableError(message), error)
    return storage_error(error, f"{target.path} was not published: {doing} failed")
