"""Writing an incremental checkpoint: hash all, decide, write what is new, then the manifest.

The data file is durable under its name before the manifest is published, so no manifest ever refers to one that is not
whole; a crash in between leaves a data file that nobody needs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from pytreeckpt.codecs import Compression
from pytreeckpt.commit import Durability, IfExists, RemoveFile
from pytreeckpt.errors import CheckpointExistsError, CheckpointNotFoundError, LimitError, PytreeckptError
from pytreeckpt.identities import identity
from pytreeckpt.incremental.data_files import stream_manifest
from pytreeckpt.incremental.deciding import MAX_FILES, Decision, Wanted, decide
from pytreeckpt.incremental.known import ChunkKey, Known, data_folder, data_path, files_needed
from pytreeckpt.incremental.progress import Halves
from pytreeckpt.incremental.storing import Job, StoredFile, write_data_file
from pytreeckpt.incremental.usable import find_usable
from pytreeckpt.index import DataFile
from pytreeckpt.pipeline import ReportProgress, ordered_map, threads_for
from pytreeckpt.planning import ChunkTask, SavePlan, batched
from pytreeckpt.storage import Storage
from pytreeckpt.streaming import Written, read_task
from pytreeckpt.wire import xxh128
from pytreeckpt.writer import make_durable, publish, write_checkpoint


@dataclass(frozen=True, slots=True)
class IncrementalWritten:
    """What an incremental save came to. Sizes in bytes.

    `file_nbytes`: of the manifest; `raw_nbytes`: of the arrays in memory; `stored_nbytes`: of the arrays as they are
    stored, each chunk once, in whatever file; `new_nbytes`: of all files that were written; `reused_nbytes`: of the
    stored chunks that are in data files of earlier checkpoints. `files`: the data files that it needs. `known`: what
    was known, and this checkpoint. `notes`: which data files could not be used, and why.
    """

    file_nbytes: int
    raw_nbytes: int
    stored_nbytes: int
    n_chunks: int
    root: str
    new_nbytes: int
    reused_nbytes: int
    files: tuple[DataFile, ...]
    known: Known
    notes: tuple[str, ...] = ()


def write_incremental(
    storage: Storage,
    path: str,
    plan: SavePlan,
    *,
    known: Known,
    compression: Compression,
    if_exists: IfExists,
    durability: Durability,
    progress: ReportProgress | None = None,
    threads: int | None = None,
) -> IncrementalWritten:
    """Write a plan to `path` as a manifest, and what is new of its chunks to one data file in the folder `data` beside
    it. If this raises, nothing was published, except for `NotDurableError`.

    `known` may tell of data files that are gone or damaged by now: they are not used. But until this returns nobody may
    remove any that are there: whoever calls has the lock of the folder. With `compression="none"` only what is stored
    raw is used again, so that arrays whose chunks lie in one piece can be mapped; otherwise chunks stay as they were
    compressed then.
    The sources of the plan are read twice, and must give the same each time. `progress` counts bytes of the arrays,
    half when they are hashed, and half when they are stored or known to be.
    A plan without chunks gives an ordinary file. Same plan, options and `known`, same data files: same bytes.
    Raises as `save` does, and `PytreeckptError` if an array is changed meanwhile.
    """
    if not plan.tasks:
        written = write_checkpoint(
            storage,
            path,
            plan,
            compression=compression,
            if_exists=if_exists,
            durability=durability,
            progress=progress,
        )
        return _ordinary(written, known)
    if if_exists == "error" and storage.exists(path):
        raise CheckpointExistsError(f'{path} exists; choose another path, or if_exists="replace"')
    if plan.limits.data_files < 1:
        raise LimitError("an incremental checkpoint needs data files, and pytreeckpt.limits(data_files=…) allows none")
    n_threads = threads_for(len(plan.tasks), plan.raw_nbytes) if threads is None else threads
    report = Halves(progress, plan.raw_nbytes)
    wanted = _hash_all(plan.tasks, n_threads, report)
    was_there = storage.exists(data_folder(path))
    usable = find_usable(
        storage, path, known, (each.key for each in wanted), compression=compression, durability=durability
    )
    decision = decide(wanted, usable.chunks, usable.capacities, max_files=min(MAX_FILES, plan.limits.data_files))
    jobs = [Job(plan.tasks[number], wanted[number], copied) for number, copied in decision.to_store]
    report.halves(plan.raw_nbytes - sum(job.nbytes for job in jobs))
    new: list[str] = []
    process = os.getpid()
    try:
        stored = StoredFile({}, 0)
        if jobs:
            stored = write_data_file(
                storage,
                path,
                jobs,
                compression=compression,
                few_small=plan.few_small,
                limits=plan.limits,
                durability=durability,
                threads=n_threads,
                report=report,
                new=new,
            )
        if durability == "durable":
            _make_names_durable(storage, path, usable.known, decision, was_there=was_there, has_new=bool(jobs))
        places = {**decision.reused, **stored.places}
        pieces = stream_manifest(plan, [each.key for each in wanted], [places[each.key] for each in wanted])
        footer = publish(
            storage, path, pieces, if_exists=if_exists, durability=durability, before_publishing=report.finish
        )
    except BaseException:
        # A child that was forked meanwhile removes nothing of its parent's.
        if os.getpid() == process:
            _remove_unneeded(storage, path, new)
        raise
    inline_nbytes = len(plan.table.inline)
    files = tuple(dict.fromkeys(places[each.key].file for each in wanted))
    durable = usable.known.durable | (frozenset(files) if durability == "durable" else frozenset())
    return IncrementalWritten(
        footer.file_nbytes,
        plan.raw_nbytes + inline_nbytes,
        sum(place.row.stored for place in places.values()) + inline_nbytes,
        len(wanted),
        footer.root.hex(),
        new_nbytes=footer.file_nbytes + stored.nbytes,
        reused_nbytes=sum(place.row.stored for place in decision.reused.values()),
        files=files,
        known=usable.known.with_places(places, durable),
        notes=usable.notes,
    )


def _ordinary(written: Written, known: Known) -> IncrementalWritten:
    return IncrementalWritten(
        written.file_nbytes,
        written.raw_nbytes,
        written.stored_nbytes,
        written.n_chunks,
        written.root,
        new_nbytes=written.file_nbytes,
        reused_nbytes=0,
        files=(),
        known=known,
    )


def _hash_all(tasks: Sequence[ChunkTask], threads: int, report: Halves) -> list[Wanted]:
    wanted: list[Wanted] = []
    batches = list(batched(tasks))
    # Strict: a StopIteration from a source would end a `map` early.
    for batch, hashed in zip(batches, ordered_map(_hash, batches, threads=threads), strict=True):
        wanted += hashed
        report.halves(sum(task.nbytes for task in batch))
    return wanted


def _hash(tasks: Sequence[ChunkTask]) -> list[Wanted]:
    found: list[Wanted] = []
    for task in tasks:
        raw = read_task(task)
        # First, and again when it is stored: an array that changes in between has no identity of something else.
        digest = xxh128(raw)
        found.append(Wanted(ChunkKey(task.source.dtype.itemsize, len(raw), identity(raw)), digest))
    return found


def _make_names_durable(
    storage: Storage, path: str, known: Known, decision: Decision, *, was_there: bool, has_new: bool
) -> None:
    """The names of the data files that are used, and of their folder, as far as they may not be durable yet."""
    unsure = {place.file for place in decision.reused.values()} - known.durable
    if unsure and not has_new:
        # With a new data file this was done.
        make_durable(storage, data_folder(path), path)
    if was_there and not known.durable:
        # The folder may be of a save that was not durable, or was killed before it was.
        make_durable(storage, storage.target(path).directory, path)


def _remove_unneeded(storage: Storage, path: str, new: Sequence[str]) -> None:
    """Remove new data files, unless the checkpoint may have been published, and need them."""
    for name in new:
        with suppress(PytreeckptError, OSError):
            try:
                needed = {data_path(path, each) for each in files_needed(storage, path)}
            except CheckpointNotFoundError:
                needed = set()
            if name not in needed and storage.exists(name):
                storage.apply(RemoveFile(name))
