"""Writing into the folder of a run: by one who has its lock, one thing after the other.

The law of a save: the step is durable before the history says so, and the history before anything is pruned. What fails
before the step is durable, fails the save and changes nothing; what fails after that is told, and tried again with the
next save, because the step tells all that is known of it itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from pytreeckpt.api import SaveReport
from pytreeckpt.codecs import Compression
from pytreeckpt.commit import Durability, IfExists
from pytreeckpt.errors import CheckpointExistsError, NotDurableError, PytreeckptError
from pytreeckpt.incremental import Known, read_known, write_incremental
from pytreeckpt.locks import Lock
from pytreeckpt.planning import SavePlan
from pytreeckpt.run.history_file import history_to_go_on, publish_history
from pytreeckpt.run.leftovers import Needs
from pytreeckpt.run.listing import Listing, StepFile, list_steps
from pytreeckpt.run.locking import make_folder, take
from pytreeckpt.run.metric_log import Logs
from pytreeckpt.run.pruning import PruneReport, apply_prune, plan_pruning, report_of
from pytreeckpt.run.reading import with_present
from pytreeckpt.steps.history import History, with_metrics, with_records
from pytreeckpt.steps.names import inside, step_file
from pytreeckpt.steps.pruning import PrunePlan
from pytreeckpt.steps.records import Mode, StepRecord
from pytreeckpt.steps.retention import Retention, any_of, keep_steps
from pytreeckpt.storage import Storage
from pytreeckpt.writer import write_checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """How a manager writes."""

    compression: Compression
    durability: Durability
    incremental: bool
    lock: bool
    retention: Retention
    metric: str
    mode: Mode
    clock: Callable[[], float]

    def now(self) -> float:
        """Seconds since the epoch."""
        now_s = float(self.clock())
        if not math.isfinite(now_s):
            raise ValueError(f"the clock says {now_s}, which is no time")
        return now_s


def plan_removal(
    storage: Storage, root: str, how: Writing, history: History, listing: Listing, *, needs: Needs | None = None
) -> tuple[PrunePlan, tuple[str, ...]]:
    """What goes when it is pruned; see `plan_pruning`."""
    return plan_pruning(
        storage,
        root,
        listing,
        how.retention,
        pinned=history.pins.values(),
        # Without the lock, what looks like left over may be a save of somebody else.
        with_leftovers=how.lock,
        needs=needs,
    )


class FolderWriter:
    """One who writes into the folder of a run, from now until `release`.

    `history`: what is known, as it was published last, and what came since; a value, which may be looked at at any
    time. `notes`: what went wrong without harm, for whoever takes them.
    """

    def __init__(self, storage: Storage, root: str, how: Writing) -> None:
        """Take the lock and read the history. Raises `ConcurrentWriterError` and `StorageError`."""
        self.storage = storage
        self.root = root
        self.how = how
        self.notes: list[str] = []
        self._needs: Needs = {}
        self._known: Known | None = None
        make_folder(storage, root)
        self._lock: Lock | None = take(storage, root) if how.lock else None
        try:
            history, note = history_to_go_on(storage, root)
            self.seen: dict[int, StepFile] = {}
            self.history = replace(history, metric=how.metric, mode=how.mode)
            # Not the same object: what was found is published once before anything is pruned, so that it is durable,
            # and so are the names of the steps that are there.
            self._published: History | None = history
            self.history = with_present(self.history, self.listing())
            if note is not None:
                self.notes.append(note)
                self._try_to_publish()
        except BaseException:
            self.release()
            raise

    def listing(self) -> Listing:
        """The steps that are there. With the lock, files that were looked at once are as they were."""
        listing = list_steps(self.storage, self.root, self.history, self.seen if self.how.lock else None)
        self.seen = dict(listing.files)
        return listing

    def look(self) -> Listing:
        """The same for whoever only looks, maybe while another thread writes."""
        return list_steps(self.storage, self.root, self.history, dict(self.seen) if self.how.lock else None)

    def take_notes(self) -> list[str]:
        """The notes, which are told then."""
        notes, self.notes = self.notes, []
        return notes

    def check_free(self, step: int, if_exists: IfExists) -> None:
        """Raise `CheckpointExistsError` if a step cannot be saved because of what is there."""
        path = inside(self.root, step_file(step))
        if not self.storage.exists(path):
            return
        if if_exists == "error":
            raise CheckpointExistsError(
                f'step {step} is in {self.root} already; if_exists="replace" saves it again, for example after going '
                "back to an earlier step"
            )
        listing = self.listing()
        # For one that is damaged, to be saved again is the best that can happen.
        if step not in listing.files and step not in listing.damaged and self.storage.exists(path):
            reasons = [problem for problem in listing.problems if problem.startswith(path)]
            raise CheckpointExistsError("; ".join([f"{path} is not replaced, since it is no step of a run", *reasons]))

    def save(
        self, plan: SavePlan, record: StepRecord, logs: Logs, if_exists: IfExists
    ) -> tuple[SaveReport, StepRecord]:
        """Write a step, then the history with it and with what was logged, then prune."""
        begin = time.perf_counter()
        self.check_free(record.step, if_exists)
        path = inside(self.root, step_file(record.step))
        try:
            written = self._write(path, plan, if_exists)
        finally:
            # Whatever became of it, the file is not known to be as it was.
            self.seen.pop(record.step, None)
        # What was logged of it since it was handed over belongs to it, too.
        metrics = {**record.metrics, **logs.get(record.step, {})}
        saved = replace(record, root=written.root, nbytes=written.file_nbytes + written.data_nbytes, metrics=metrics)
        self.seen[record.step] = StepFile(written.root, written.file_nbytes)
        self.history = with_records(with_metrics(self.history, logs, record.saved_at), [saved])
        if self._try_to_publish():
            self._try_to_prune(saved.step)
        report = SaveReport(
            path,
            written.file_nbytes,
            written.raw_nbytes,
            written.stored_nbytes,
            len(plan.table.entries),
            written.n_chunks,
            written.root,
            time.perf_counter() - begin,
            written.data_nbytes,
            written.reused_nbytes,
        )
        return report, saved

    def log(self, logs: Logs) -> None:
        """Publish the history with more metrics."""
        self.publish(with_metrics(self.history, logs, self.how.now()))

    def publish(self, history: History) -> None:
        """Publish a history in the place of that which is known. Raises `StorageError`, and nothing is changed then,
        but for `NotDurableError`: then it is there, and nothing is pruned before it is published again.
        """
        try:
            publish_history(self.storage, self.root, history, self.how.durability)
        except NotDurableError:
            self.history, self._published = history, None
            raise
        self.history = self._published = history

    def prune(self, logs: Logs, *, dry_run: bool = False) -> PruneReport:
        """Prune as the policy says, in the knowledge of what was logged, which is published before. Raises
        `StorageError`.
        """
        known = self.history
        self.history = with_metrics(known, logs, self.how.now())
        try:
            return self._prune(self.how.retention, dry_run=dry_run)
        finally:
            if dry_run:
                self.history = known

    def is_held(self) -> bool:
        """Whether this is still the only one who writes here. If not, what it knows may be out of date."""
        return self._lock is None or self._lock.is_held()

    def release(self) -> None:
        """Give the lock back."""
        lock = getattr(self, "_lock", None)
        if lock is not None:
            lock.release()

    def _try_to_publish(self) -> bool:
        try:
            self.publish(self.history)
        except PytreeckptError as error:
            self.notes.append(f"the history was not written, and is tried again with the next save: {error}")
            return False
        return True

    def _try_to_prune(self, saved_now: int) -> None:
        try:
            # It stays, also where the policy looks at numbers and one went back to an earlier step.
            report = self._prune(any_of(self.how.retention, keep_steps([saved_now])))
        except Exception as error:  # noqa: BLE001 - the step is saved, also where the policy, which is anybody's, fails
            self.notes.append(f"pruning failed, and is tried again with the next save: {type(error).__name__}: {error}")
        else:
            self.notes += report.notes

    def _prune(self, retention: Retention, *, dry_run: bool = False) -> PruneReport:
        listing = self.listing()
        # Of a save that was interrupted between the step and the history.
        self.history = with_present(self.history, listing)
        if not dry_run and self._published is not self.history:
            # It keeps what is known of the steps that go.
            self.publish(self.history)
        how = replace(self.how, retention=retention)
        plan, notes = plan_removal(self.storage, self.root, how, self.history, listing, needs=self._needs)
        if not dry_run:
            try:
                apply_prune(self.storage, self.root, plan.operations)
            finally:
                for record in plan.removed:
                    self._needs.pop(record.root, None)
                    self.seen.pop(record.step, None)
        return report_of(plan, notes)

    # The file of a step.

    def _write(self, path: str, plan: SavePlan, if_exists: IfExists) -> _Written:
        if not self.how.incremental:
            written = write_checkpoint(
                self.storage,
                path,
                plan,
                compression=self.how.compression,
                if_exists=if_exists,
                durability=self.how.durability,
            )
            return _Written(
                written.root, written.file_nbytes, written.raw_nbytes, written.stored_nbytes, written.n_chunks
            )
        if self._known is None or not self.how.lock:
            steps = self.listing().files
            self._known = read_known(self.storage, [inside(self.root, step_file(step)) for step in steps])
        increment = write_incremental(
            self.storage,
            path,
            plan,
            known=self._known,
            compression=self.how.compression,
            if_exists=if_exists,
            durability=self.how.durability,
        )
        self._known = increment.known
        self._needs[increment.root] = frozenset(file.name for file in increment.files)
        self.notes += increment.notes
        return _Written(
            increment.root,
            increment.file_nbytes,
            increment.raw_nbytes,
            increment.stored_nbytes,
            increment.n_chunks,
            increment.new_nbytes - increment.file_nbytes,
            increment.reused_nbytes,
        )


@dataclass(frozen=True, slots=True)
class _Written:
    """What a step came to; see `SaveReport`."""

    root: str
    file_nbytes: int
    raw_nbytes: int
    stored_nbytes: int
    n_chunks: int
    data_nbytes: int = 0
    reused_nbytes: int = 0
