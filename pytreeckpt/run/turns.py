"""Writing into the folder of a run from a program: one call after the other, some of it in the background.

The law: whoever writes has the turn, and has it when nothing is being saved in the background any more. So what is
written needs no lock of its own. Whoever only looks waits for nobody.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final
from weakref import WeakSet

from pytreeckpt.api import SaveReport, flat_tree
from pytreeckpt.collection import paused_collection
from pytreeckpt.commit import IfExists
from pytreeckpt.limits import current_limits
from pytreeckpt.planning import SavePlan, plan_save
from pytreeckpt.run.metric_log import MetricLog
from pytreeckpt.run.rhythm import Rhythm
from pytreeckpt.run.writing import FolderWriter
from pytreeckpt.saving import BackgroundSaver, SaveHandle, finished
from pytreeckpt.steps.history import metrics_before
from pytreeckpt.steps.metadata import with_record
from pytreeckpt.steps.names import inside, step_file
from pytreeckpt.steps.records import StepRecord


class Turns:
    """`writer`: who has the lock of the folder, from the first turn until `close`. `logs`: what was logged and is not
    written yet. `rhythm`: is told what is saved.
    """

    def __init__(self, root: str, make_writer: Callable[[], FolderWriter], rhythm: Rhythm) -> None:
        self._root = root
        self._make_writer = make_writer
        self._closed = False
        self.rhythm = rhythm
        self.start_afresh()
        _all.add(self)

    def start_afresh(self) -> None:
        """With nothing that is pending: also in a forked child, which has neither the lock of its parent nor what that
        is about to write.
        """
        # Reentrant, for a call in a handler of signals.
        self._turn = threading.RLock()
        self._saver: BackgroundSaver | None = None
        self._handle: SaveHandle | None = None
        self.writer: FolderWriter | None = None
        self.logs = MetricLog()

    def check_open(self) -> None:
        """Raise `ValueError` after `close`."""
        if self._closed:
            raise ValueError(f"the manager of {self._root} is closed; make another one")

    @contextmanager
    def turn(self) -> Generator[FolderWriter]:
        """Have the turn. Raises what a save in the background raised, if nobody was told, and as `FolderWriter`."""
        with self._turn:
            self.check_open()
            if self._saver is not None:
                self._saver.wait()
            if self.writer is not None and not self.writer.is_held():
                # Somebody removed the lock, or the folder, or had the lock meanwhile: what is known may be out of date.
                self.writer.release()
                self.writer = None
            if self.writer is None:
                self.writer = self._make_writer()
            yield self.writer

    def save(
        self, record: StepRecord, tree: object, metadata: object, *, blocking: bool, if_exists: IfExists
    ) -> SaveHandle:
        """Save a step, in this call or in the background, with what was logged of it before."""
        step = record.step
        with self.turn() as writer:
            writer.check_free(step, if_exists)
            logged = self.logs.take(step)
            known = metrics_before(writer.history, step)
            record = replace(record, metrics={**known, **logged, **record.metrics})
            saved_before, self.rhythm.saved = self.rhythm.saved, record

            def undo() -> None:
                self.rhythm.saved = saved_before
                self.logs.give_back(step, logged)

            def write(plan: SavePlan) -> SaveReport:
                try:
                    logs = self.logs.now()
                    report, self.rhythm.saved = writer.save(plan, record, logs, if_exists)
                except BaseException:
                    undo()
                    raise
                self.logs.forget(logs)
                return report

            path = inside(self._root, step_file(step))
            complete = with_record(metadata, record)
            try:
                if blocking:
                    with paused_collection():
                        plan = plan_save(flat_tree(tree, complete), current_limits())
                    return finished(path, write(plan))
                if self._saver is None:
                    self._saver = BackgroundSaver()
                self._handle = self._saver.submit(tree, complete, path, write)
            except BaseException:
                undo()
                raise
            return self._handle

    def raise_failure(self) -> None:
        """Raise what a save in the background raised, if nobody was told. Does not wait."""
        if self._saver is not None and self._handle is not None and self._handle.done():
            self._saver.wait()

    def wait(self) -> None:
        """Wait for what is saved in the background, and write what was logged."""
        with self._turn:
            if self._saver is not None:
                self._saver.wait()
            if self.logs:
                with self.turn() as writer:
                    logs = self.logs.now()
                    writer.log(logs)
                    self.logs.forget(logs)

    def close(self) -> None:
        """Wait, and give the lock back, once. Whatever that raises, it is closed then."""
        with self._turn:
            if self._closed:
                return
            try:
                self.wait()
            finally:
                self._closed = True
                try:
                    if self._saver is not None:
                        self._saver.close()
                finally:
                    if self.writer is not None:
                        self.writer.release()
                        self.writer = None


_all: Final[WeakSet[Turns]] = WeakSet()


def _after_fork() -> None:
    for turns in list(_all):
        turns.start_afresh()


os.register_at_fork(after_in_child=_after_fork)
