"""Run a commit on a storage: apply its operations, and leave nothing behind when one fails."""

from __future__ import annotations

from pytreeckpt.codecs import Compression
from pytreeckpt.commit import Durability, IfExists, LinkFile, RenameFile, WriteFile, commit
from pytreeckpt.errors import CheckpointExistsError, NotDurableError, PytreeckptError
from pytreeckpt.pipeline import Progress, ReportProgress, default_threads, ordered_map
from pytreeckpt.planning import SavePlan, Written, stream
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

    def encode_all(function, tasks):  # type: ignore[no-untyped-def]  # planning.EncodeAll
        nonlocal done
        for task, chunk in zip(tasks, ordered_map(function, tasks, threads=n_threads), strict=True):
            yield chunk
            done += (task.stop - task.start) * task.source.dtype.itemsize
            if progress is not None and done < total:
                progress(Progress(done, total))

    operations = commit(target, stream(plan, compression, encode_all), if_exists=if_exists, durability=durability)
    published = False
    operation = None
    try:
        while True:
            try:
                operation = next(operations)
            except StopIteration as end:
                written: Written = end.value
                break
            storage.apply(operation)
            published = published or isinstance(operation, RenameFile | LinkFile)
    except FileExistsError as error:
        if isinstance(operation, LinkFile):
            raise CheckpointExistsError(
                f"{path} exists: another writer was first; this checkpoint was not published"
            ) from error
        raise storage_error(error, f"cannot write {path}, nothing was published") from error
    except PytreeckptError:
        raise
    except OSError as error:
        if published:
            raise NotDurableError(
                f"{path} was published, but {type(operation).__name__} failed afterwards ({error}): it may not survive a power cut; "
                "save it again"
            ) from error
        doing = "writing" if isinstance(operation, WriteFile) else type(operation).__name__
        raise storage_error(error, f"{path} was not published, {doing} {target.temporary} failed") from error
    finally:
        try:
            operations.close()
        finally:
            storage.discard(target.temporary)
    if progress is not None:
        progress(Progress(total, total))
    return written
