"""`CheckpointManager`: the folder of a training, for the program that trains."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, SupportsFloat

from pytreeckpt.api import check_options
from pytreeckpt.checkpoint import Checkpoint, Select
from pytreeckpt.codecs import Compression
from pytreeckpt.commit import Durability, IfExists
from pytreeckpt.errors import CheckpointNotFoundError
from pytreeckpt.pipeline import ReportProgress
from pytreeckpt.run.choosing import choose, several
from pytreeckpt.run.finding import Found, locate, locate_whole, opened, use_step
from pytreeckpt.run.interrupts import SIGNALS
from pytreeckpt.run.listing import with_logs
from pytreeckpt.run.looking import View
from pytreeckpt.run.policies import DEFAULT_KEEP_LAST, retention_of, schedule_of
from pytreeckpt.run.pruning import PruneReport, report_of
from pytreeckpt.run.reading import StrPath, folder_name
from pytreeckpt.run.rhythm import Rhythm
from pytreeckpt.run.safe_points import Guards, State, checkpoint, guarded
from pytreeckpt.run.turns import Turns
from pytreeckpt.run.writing import FolderWriter, Writing, plan_removal
from pytreeckpt.saving import SaveHandle
from pytreeckpt.steps.history import all_records, record_of
from pytreeckpt.steps.names import inside, step_file
from pytreeckpt.steps.pins import checked_pin
from pytreeckpt.steps.records import (
    Mode,
    Reason,
    StepRecord,
    checked_epoch,
    checked_metrics,
    checked_mode,
    checked_name,
    checked_reason,
    checked_step,
)
from pytreeckpt.steps.retention import Retention
from pytreeckpt.steps.schedule import When
from pytreeckpt.storage import LocalStorage, Storage


class CheckpointManager:
    """The steps of one training in one folder: saved when it is time, pruned when there are too many, restored by
    number, as the latest or as the best.

        with CheckpointManager("run", keep_last=3, keep_best=1, metric="val_loss", save_every=1000) as manager:
            for step in range(1, 100_001):
                ...
                manager.checkpoint(step, lambda: capture(model=model, optimizer=optimizer), metrics={"loss": loss})

    `root`: the folder; it is made at the first save. Looking into it needs no lock and writes nothing; the first thing
    that is written takes the lock of the folder, which is held until `close`, so that a second writer is an error.
    `keep_last`, `keep_best` (by `metric` and `mode`), `keep_every` (an int: steps; a timedelta: hours): a step that any
    of them keeps stays; with none of them all stay. `retention`: a function in place of these, of
    `pytreeckpt.steps.retention` or one's own. Pinned steps and the newest one always stay.
    `save_every`: what `should_save` goes by: an int (steps), a timedelta, or a function of `pytreeckpt.steps.schedule`.
    `compression`, `durability`: as for `save`. `incremental`: store only what is new since earlier steps.
    `lock=False`: do without the lock, where the file system has none; then only steps are pruned, and what killed saves
    left and the data of incremental steps stay until `pytreeckpt.run.prune` is called.
    `storage`: where the files are. `clock`: tells the seconds since the epoch.
    """

    def __init__(
        self,
        root: StrPath,
        *,
        keep_last: int | None = DEFAULT_KEEP_LAST,
        keep_best: int | None = None,
        keep_every: int | timedelta | None = None,
        metric: str = "val_loss",
        mode: Mode = "min",
        save_every: int | timedelta | When | None = None,
        retention: Retention | None = None,
        compression: Compression = "auto",
        durability: Durability = "durable",
        incremental: bool = False,
        lock: bool = True,
        storage: Storage | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        check_options(compression, "error", durability)
        how = Writing(
            compression=compression,
            durability=durability,
            incremental=incremental,
            lock=lock,
            retention=retention_of(
                keep_last=keep_last,
                keep_best=keep_best,
                keep_every=keep_every,
                metric=checked_name(metric),
                mode=checked_mode(mode),
                retention=retention,
            ),
            metric=metric,
            mode=mode,
            clock=clock,
        )
        # The program may change its folder: what it goes on to write belongs where it began.
        self.root = folder_name(root if storage is not None else Path(os.fsdecode(root)).absolute())
        self._storage: Storage = LocalStorage() if storage is None else storage
        # What cannot be a folder is an error now, not when the first step is saved.
        self._storage.names(self.root)
        self._how = how
        self._rhythm = Rhythm(schedule_of(save_every), how.now())
        self._turns = Turns(self.root, partial(FolderWriter, self._storage, self.root, how), self._rhythm)
        self._view = View(self._storage, self.root, how, self._turns)
        self._guards = Guards()

    # Saving.

    def save(
        self,
        step: int,
        tree: object,
        *,
        metrics: Mapping[str, SupportsFloat] | None = None,
        metadata: object = None,
        epoch: SupportsFloat | None = None,
        blocking: bool = True,
        if_exists: IfExists = "error",
        reason: Reason = "scheduled",
    ) -> SaveHandle:
        """Save a step, write the history, and prune what is not to be kept.

        `metrics`: numbers by name, arrays without axes too. `metadata`: a small tree of plain values, in the step.
        `blocking`: False returns as soon as what may change of the tree is copied; the handle tells when the step is
        there, and an error is raised by its `result()`, or by the next call here. `if_exists`: "replace" saves a step
        again; what was known of it is replaced too, and later steps stay.
        What goes wrong after the step is durable does not fail the save: it is a warning, and tried again next time.
        Raises `CheckpointExistsError`, `ConcurrentWriterError`, `UnsupportedTypeError`, `LimitError` and
        `StorageError`, and `TypeError` and `ValueError` for what is no step or no metric; then nothing was saved (but
        see `NotDurableError`).
        """
        check_options(self._how.compression, if_exists, self._how.durability)
        record = StepRecord(
            step=checked_step(step),
            root="",
            nbytes=0,
            saved_at=self._how.now(),
            metrics=checked_metrics(metrics),
            epoch=checked_epoch(epoch),
            reason=checked_reason(reason),
        )
        handle = self._turns.save(record, tree, metadata, blocking=blocking, if_exists=if_exists)
        self._view.tell_notes()
        return handle

    def log(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """Keep metrics of a step, saved or not, in the history: learning curves, or what is measured after the save.

        Nothing is written now, but with the next save, `wait` or `close`.
        """
        number, more = checked_step(step), checked_metrics(metrics)
        self._turns.check_open()
        self._turns.logs.add(number, more)

    def should_save(
        self, step: int, *, metrics: Mapping[str, SupportsFloat] | None = None, epoch: SupportsFloat | None = None
    ) -> bool:
        """Whether it is time to save this step, as `save_every` says, or because a signal came; not if this manager has
        saved it already. Changes nothing: it may be asked any number of times. Raises what a save in the background
        raised, if nobody was told.
        """
        number = checked_step(step)
        # A rhythm may have the next save be far away.
        self._turns.raise_failure()
        if self._rhythm.has_saved(number):
            return False
        if self.interrupted:
            return True
        return self._rhythm.is_time(
            number,
            now_s=self._how.now(),
            epoch=checked_epoch(epoch),
            metrics=checked_metrics(metrics),
            history=self._view.remembered(),
            logs=self._turns.logs.now,
        )

    # Safe points; see pytreeckpt.run.safe_points.

    @property
    def interrupted(self) -> bool:
        """Whether a signal told the process to end, within `guard`."""
        return self._guards.signum is not None

    def guard(self, state: State | None = None, *, signals: Iterable[int] = SIGNALS) -> AbstractContextManager[None]:
        """A with-block in which SIGTERM and SIGINT end the training at its next safe point, which `checkpoint` is, and
        the end of the block; and in which an exception saves an emergency step, which "latest" does not take.

        `state`: makes a tuple of the number of the step that the training is at, and its tree; None does without
        emergency steps. `signals`: which ones, by the numbers of the module signal; the exit status is 128 + the
        number. A second SIGINT is a `KeyboardInterrupt` wherever the program is.
        Raises `Interrupted` at its end if a signal came, `RuntimeError` outside of the main thread (where `signals=()`
        does without them), and `ValueError` for a signal that cannot be handled.
        """
        return guarded(self, self._guards, state, signals)

    def checkpoint(
        self,
        step: int,
        state: object,
        *,
        metrics: Mapping[str, SupportsFloat] | None = None,
        metadata: object = None,
        epoch: SupportsFloat | None = None,
        blocking: bool = True,
    ) -> SaveHandle | None:
        """A safe point: save the step if it is time, and leave the process if a signal told it to end.

        `state`: a tree, or a function that makes one, called only if it is needed. A step that is there is replaced.
        Raises `Interrupted`, a `SystemExit`, and as `save`.
        """
        return checkpoint(
            self,
            self._guards,
            step,
            state,
            metrics=checked_metrics(metrics),
            metadata=metadata,
            epoch=checked_epoch(epoch),
            blocking=blocking,
        )

    # Looking.

    def steps(self) -> list[int]:
        """The steps that are there, ascending."""
        return [record.step for record in self._view.choice().records]

    @property
    def latest(self) -> int | None:
        """The latest step that is there, but for those that an exception left."""
        return self._view.choice().latest

    @property
    def best(self) -> int | None:
        """The step that is there with the best metric; None if none has it."""
        return self._view.choice().best

    def history(self) -> list[StepRecord]:
        """What is known of all steps, ascending: of those that were pruned or only have metrics, too."""
        return all_records(self._view.known())

    def record(self, step: int | str = "latest") -> StepRecord:
        """What is known of a step. Raises `CheckpointNotFoundError`."""
        number = checked_step(step) if not isinstance(step, str) else choose(self._view.choice(), step)
        found = record_of(self._view.known(), number)
        if found is None:
            raise CheckpointNotFoundError(f"nothing is known of step {number} in {self.root}")
        return found

    @property
    def pins(self) -> dict[str, int]:
        """The pinned steps, by the names of the pins."""
        return dict(self._view.choice().pins)

    def path(self, step: int | str = "latest") -> str:
        """The path of the file of a step: its number, "latest", "best", or the name of a pin."""
        return inside(self.root, step_file(choose(self._view.choice(), step)))

    def paths(
        self,
        *,
        best: int | None = None,
        last: int | None = None,
        metric: str | None = None,
        mode: Mode | None = None,
    ) -> list[str]:
        """The files of the `best` so many steps, by `metric` and `mode` (by default those of the run), or of the `last`
        so many; the newest last, as `average` takes them, and none that an exception left.
        """
        records = several(self._view.choice(), best=best, last=last, metric=metric, mode=mode)
        return [inside(self.root, step_file(record.step)) for record in records]

    def open(self, step: int | str = "latest") -> Checkpoint:
        """Open the checkpoint of a step, as `pytreeckpt.open`."""
        return use_step(
            self._storage, lambda: locate(self._view.choice(), step), lambda found: opened(self._storage, found.path)
        )

    def restore(
        self,
        step: int | str = "latest",
        *,
        fallback: bool = False,
        like: object = None,
        select: Select | None = None,
        to: str = "auto",
        types: Iterable[type] = (),
        strict: bool = True,
        mmap: bool = False,
        verify: bool = True,
        progress: ReportProgress | None = None,
    ) -> Any:
        """Restore a step: its number, "latest", "best", or the name of a pin; the options are those of
        `pytreeckpt.restore`.

        `fallback`: check every byte of the step first, and if it is damaged take the newest one before it that is not
        (for "best", the next best), with a warning that names the damaged ones.
        Raises `CheckpointNotFoundError` with what is there, and as `pytreeckpt.restore`.
        """

        def find() -> Found | None:
            choice = self._view.choice()
            return locate_whole(self._storage, choice, step) if fallback else locate(choice, step)

        def read(found: Found) -> tuple[Found, Any]:
            with opened(self._storage, found.path) as checkpoint:
                return found, checkpoint.restore(
                    like=like,
                    select=select,
                    to=to,
                    types=types,
                    strict=strict,
                    mmap=mmap,
                    verify=verify,
                    progress=progress,
                )

        found, tree = use_step(self._storage, find, read)
        if found.damaged:
            text = f"step {found.record.step} is taken, because others are damaged:\n  " + "\n  ".join(found.damaged)
            warnings.warn(text, stacklevel=2)
        self._rhythm.restored = found.record
        return tree

    # Names, and pruning.

    def pin(self, name: str, step: int | str = "latest") -> None:
        """Give a step that is there a name, and keep it until `unpin`. A name that is taken moves."""
        checked_pin(name)
        with self._turns.turn() as writer:
            number = choose(self._view.choice(), step)
            writer.publish(replace(writer.history, pins={**writer.history.pins, name: number}))

    def unpin(self, name: str) -> None:
        """Take a name away. Raises `CheckpointNotFoundError` if there is none."""
        with self._turns.turn() as writer:
            pins = dict(writer.history.pins)
            if name not in pins:
                raise CheckpointNotFoundError(f"{self.root} has no pin called {name!r}; there are {sorted(pins)}")
            del pins[name]
            writer.publish(replace(writer.history, pins=pins))

    def prune(self, *, dry_run: bool = False) -> PruneReport:
        """Remove what the policy does not keep, as each save does. `dry_run`: say what would go, and write nothing."""
        if dry_run and self._turns.writer is None:
            history, listing = self._view.fresh()
            listing = with_logs(listing, self._turns.logs.now())
            return report_of(*plan_removal(self._storage, self.root, self._how, history, listing))
        with self._turns.turn() as writer:
            logs = self._turns.logs.now()
            report = writer.prune(logs, dry_run=dry_run)
            if not dry_run:
                self._turns.logs.forget(logs)
        return report

    # The end.

    def wait(self) -> None:
        """Wait until all that was begun is saved, and write what was logged. Raises what a save raised."""
        self._turns.wait()
        self._view.tell_notes()

    def close(self) -> None:
        """Wait, and give the lock back. Raises what a save raised; it is closed then too."""
        writer = self._turns.writer
        self._turns.close()
        if writer is not None:
            self._view.tell(writer.take_notes())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, cls: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<CheckpointManager {self.root}>"
