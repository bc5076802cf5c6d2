"""Saves one after the other, each in a thread that lives as long as the save.

The law: what a program changes after `submit` has returned does not change the file, which is byte for byte that of
`save`; and a save that was begun is finished, or told of as failed, unless the process is killed.

The thread is no daemon, so an interpreter that ends waits for it; and it waits for nothing but its save, so the
interpreter does not wait for ever. An interpreter that is ending starts no threads (from 3.12 on), or no longer waits
for them: then `pipeline.ordered_map` works in the thread that it is in, and a save that is begun that late is made at
once.
"""

from __future__ import annotations

import contextvars
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final
from weakref import WeakSet

from pytreeckpt.api import SaveReport, StrPath, check_options, flat_tree, writing
from pytreeckpt.codecs import Compression
from pytreeckpt.commit import Durability, IfExists
from pytreeckpt.errors import CheckpointExistsError
from pytreeckpt.flatten import FlatTree
from pytreeckpt.limits import current_limits
from pytreeckpt.pipeline import ReportProgress, beside, default_threads, ordered_map
from pytreeckpt.planning import SavePlan, plan_save
from pytreeckpt.saving.buffers import BUFFERS, Lease
from pytreeckpt.saving.handles import SaveHandle
from pytreeckpt.snapshots import Copy, needs_of, snapshot
from pytreeckpt.storage import LocalStorage

Write = Callable[[SavePlan], SaveReport]
# So few batches are copied before threads have been started.
_MIN_BATCHES: Final = 4


@dataclass(slots=True)
class _Job:
    """A save that is ready to be made: nothing that the program does changes it."""

    handle: SaveHandle
    flat: FlatTree
    lease: Lease | None
    write: Write


class BackgroundSaver:
    """Makes saves in the background, in the order in which they are submitted, one at a time."""

    def __init__(self) -> None:
        # Reentrant: a signal handler may save while its thread is about to.
        self._turn = threading.RLock()
        # The last one, also when it has ended: nobody may have been told of its error.
        self._last: SaveHandle | None = None
        self._closed = False
        _savers.add(self)

    def lose_pending(self) -> None:
        """In a forked child: what is being saved is its parent's, whose threads and errors it has not."""
        if self._last is not None and not self._last.done():
            self._last.lose()
        self._turn = threading.RLock()
        self._last = None

    def submit(
        self,
        tree: object,
        metadata: object,
        path: str,
        write: Write,
        *,
        check: Callable[[], None] = lambda: None,
    ) -> SaveHandle:
        """Copy what may change of a tree, and have `write` write the plan of it while the program goes on.

        Waits for the save before, and raises what it raised, if nobody was told. `check` is called then, before
        anything is copied. `write` is called in another thread, in a copy of the caller's context. A tree that needs
        more memory than `limits(snapshot_nbytes=…)` is written before this returns, as is one for which no thread can
        be started.
        Raises `UnsupportedTypeError` and `LimitError` for the tree, and what `check` raises; then nothing was begun.
        """
        self._refuse_own_thread()
        with self._turn:
            if self._closed:
                raise ValueError("this saver is closed; make a new one")
            self.wait()
            check()
            job = _Job(SaveHandle(path), flat_tree(tree, metadata), None, write)
            lease = BUFFERS.take(needs_of(job.flat), current_limits().snapshot_nbytes)
            if lease is None:
                self._run_here(job)
                return job.handle
            try:
                job.flat = snapshot(job.flat, lease.allocate, _copy_all)
                job.lease = lease
                self._begin(job)
            except BaseException:
                if self._last is not job.handle:
                    # Once is enough, also where the save has done so.
                    BUFFERS.give_back(lease)
                raise
            return job.handle

    def wait(self, timeout: float | None = None) -> None:
        """Wait until all that was submitted is saved, at most `timeout` seconds.

        Raises `TimeoutError`, and what a save raised, if nobody was told.
        """
        last = None
        # A signal handler may begin another while this waits.
        while self._last is not last:
            last = self._last
            if last is not None:
                last.raise_untold(timeout)

    def close(self) -> None:
        """Wait until all is saved, let go of the memory that is kept for snapshots, and take no more.

        Raises what a save raised, if nobody was told.
        """
        self._refuse_own_thread()
        with self._turn:
            try:
                self.wait()
            finally:
                self._closed = True
                BUFFERS.release()

    def _refuse_own_thread(self) -> None:
        # Before the turn is waited for: who has it may wait for this thread.
        if self._last is not None:
            self._last.refuse_maker()

    def _begin(self, job: _Job) -> None:
        if not threading.main_thread().is_alive():
            # As it is called while the interpreter is ending.
            self._run_here(job)
            return
        # Whoever takes the job out of here has it: an interrupt may come when nobody can tell whether the thread did.
        box = [job]
        go: SimpleQueue[None] = SimpleQueue()
        where = contextvars.copy_context()
        thread = threading.Thread(target=_run_beside, args=(go, box, where), name="pytreeckpt-save", daemon=False)
        before = self._last
        try:
            try:
                thread.start()
            except RuntimeError:
                # There are too many threads.
                self._run_here(job)
                return
            # A signal handler that came while the thread was starting could not have waited for it. So it has begun its
            # own save first, and this one goes on when that has ended.
            self.wait()
            before, self._last = self._last, job.handle
            go.put(None)
        except BaseException:
            if _taken(box) is not None and self._last is job.handle:
                self._last = before
            go.put(None)
            raise

    def _run_here(self, job: _Job) -> None:
        _finish(job)
        # Not before: a handler of signals that saves meanwhile would wait for what it has interrupted.
        self._last = job.handle
        if job.handle.was_interrupted:
            job.handle.result()


def _taken(box: list[_Job]) -> _Job | None:
    try:
        return box.pop()
    except IndexError:
        return None


def _run_beside(go: SimpleQueue[None], box: list[_Job], where: contextvars.Context) -> None:
    go.get()
    job = _taken(box)
    if job is not None:
        where.run(_finish_beside, job)


def _finish_beside(job: _Job) -> None:
    with beside():
        _finish(job)


def _finish(job: _Job) -> None:
    job.handle.begin()
    outcome = _made(job)
    job.flat = FlatTree()
    if isinstance(outcome, BaseException):
        # It may be kept for long, and need not keep the tree with it.
        _clear_frames(outcome)
    try:
        if job.lease is not None:
            BUFFERS.give_back(job.lease)
    finally:
        # Whatever happens, those who wait must not wait for ever.
        job.handle.finish(outcome)


def _made(job: _Job) -> SaveReport | BaseException:
    try:
        return job.write(plan_save(job.flat, current_limits()))
    except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
        return error


def _clear_frames(error: BaseException) -> None:
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        one = pending.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            pending += [one.__cause__, one.__context__]


def _copy_all(copy: Callable[[Sequence[Copy]], None], batches: Iterable[Sequence[Copy]]) -> None:
    listed = list(batches)
    for _ in ordered_map(copy, listed, threads=default_threads() if len(listed) >= _MIN_BATCHES else 1):
        pass


_savers: Final[WeakSet[BackgroundSaver]] = WeakSet()


def _after_fork() -> None:
    for saver in list(_savers):
        saver.lose_pending()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

_saver: Final = BackgroundSaver()


def save_async(
    tree: object,
    path: StrPath,
    *,
    metadata: object = None,
    compression: Compression = "auto",
    if_exists: IfExists = "replace",
    durability: Durability = "durable",
    progress: ReportProgress | None = None,
) -> SaveHandle:
    """Save a tree as `save` does, in the background: this returns when all of it that may change has been copied.

    What is changed, freed or donated right afterwards does not change the file. numpy arrays and CPU tensors are copied
    to host memory that is used again for the next save; tensors of accelerators to pinned host memory; JAX arrays on
    the CPU, which do not change, are not copied (so one that was made over foreign memory, by `jax.device_put` or
    `from_dlpack`, is saved as it was only if that memory is left alone). These copies take at most
    `limits(snapshot_nbytes=…)` bytes of memory (by default half of the machine's); a tree that needs more is written
    before this returns.
    One save is made at a time: this waits for the one before. An interpreter that ends waits for the save.

    The options are those of `save`; `progress` is called from another thread. Raises at once what can be known at once:
    `UnsupportedTypeError`, `LimitError`, `CheckpointExistsError`, and what an earlier `save_async` raised, if nobody
    has asked for its result. All other errors are those of `result()`; one that nobody asks for is told on stderr at
    exit.
    """
    begin_s = time.perf_counter()
    name = os.fsdecode(path)
    check_options(compression, if_exists, durability)

    def check() -> None:
        storage = LocalStorage()
        if if_exists == "error" and storage.exists(name):
            raise CheckpointExistsError(f'{name} exists; choose another path, or if_exists="replace"')
        # What is no name for a file.
        storage.target(name)

    write = writing(
        name,
        compression=compression,
        if_exists=if_exists,
        durability=durability,
        progress=progress,
        begin_s=begin_s,
    )
    return _saver.submit(tree, metadata, name, write, check=check)
