"""Run a commit on a storage: apply its operations, and leave nothing behind when one fails."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import cast

from pytreeckpt.codecs import Compression
from pytreeckpt.commit import Durability, IfExists, LinkFile, Operation, RenameFile, Target, commit
from pytreeckpt.errors import CheckpointExistsError, NotDurableError, PytreeckptError
from pytreeckpt.pipeline import Progress, ReportProgress, default_threads, ordered_map
from pytreeckpt.planning import ChunkTask, EncodedChunk, SavePlan, Written, stream
from pytreeckpt.storage import Storage, storage_error


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
    if if_exists == "error" and storage.exists(path):
        raise CheckpointExistsError(f'{path} exists; choose another path, or if_exists="replace"')
    target = storage.target(path)
    n_threads = default_threads() if threads is None else threads
    done = 0
    total = plan.raw_nbytes

    def encode_all(
        function: Callable[[ChunkTask], EncodedChunk], tasks: Iterable[ChunkTask]
    ) -> Generator[EncodedChunk, None, None]:
        nonlocal done
        for chunk in ordered_map(function, tasks, threads=n_threads):
            yield chunk
            done += chunk.raw_nbytes
            if progress is not None and done < total:
                progress(Progress(done, total))

    pieces = stream(plan, compression, encode_all)
    written = _run(storage, target, commit(target, pieces, if_exists=if_exists, durability=durability))
    if progress is not None:
        progress(Progress(total, total))
    return written


def _run(storage: Storage, target: Target, operations: Generator[Operation, None, Written]) -> Written:
    """Apply the operations one by one; when one fails, remove the temporary file and say what was published."""
    published = False
    operation: Operation | None = None
    try:
        while True:
            try:
                operation = next(operations)
            except StopIteration as end:
                return cast("Written", end.value)
            storage.apply(operation)
            published = published or isinstance(operation, RenameFile | LinkFile)
    except PytreeckptError:
        raise
    except OSError as error:
        raise _explained(error, target, operation, published=published) from error
    finally:
        try:
            operations.close()
        finally:
            storage.discard(target.temporary)


def _explained(error: OSError, target: Target, operation: Operation | None, *, published: bool) -> PytreeckptError:
    doing = type(operation).__name__
    if isinstance(operation, LinkFile) and isinstance(error, FileExistsError):
        return CheckpointExistsError(
            f"{target.path} exists: another writer was first; this checkpoint was not published"
        )
    if published:
        return NotDurableError(
            f"{target.path} was published, but {doing} failed afterwards ({error}): it may not survive a power "
            "cut; save it again"
        )
    return storage_error(error, f"{target.path} was not published: {doing} failed")
