"""Work in threads, with results in order and a bounded number of them in flight."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from operator import length_hint
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from pytreeckpt.errors import PytreeckptError
from pytreeckpt.scratch import release

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a save, restore or verify has come, in bytes; the last call has both equal."""

    done_nbytes: int
    total_nbytes: int


ReportProgress = Callable[[Progress], None]

THREADS_VARIABLE = "PYTREECKPT_THREADS"
_MAX_THREADS = 8
_MIN_CHUNK_NBYTES = 32 << 10
_beside: ContextVar[bool] = ContextVar("pytreeckpt_beside", default=False)


def default_threads() -> int:
    """How many threads encode and decode: `PYTREECKPT_THREADS`, or one for each usable core up to 8; `beside` a
    program that goes on, one fewer.
    """
    asked = os.environ.get(THREADS_VARIABLE)
    if asked is not None:
        if not asked.isdecimal() or int(asked) < 1:
            raise ValueError(f"{THREADS_VARIABLE}={asked!r}: it is a number of threads, at least 1")
        return int(asked)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(cores - _beside.get(), 1), _MAX_THREADS)


@contextmanager
def beside() -> Generator[None]:
    """What is done within, in this thread, leaves a core to the rest of the program, which does not wait for it."""
    token = _beside.set(True)
    try:
        yield
    finally:
        _beside.reset(token)


def threads_for(n_chunks: int, nbytes: int) -> int:
    """How many threads to work on this many chunks of this many raw bytes in all: one if they are so small that most of
    the work is Python's, which only one thread can do at a time.
    """
    threads = default_threads()
    return threads if nbytes >= n_chunks * _MIN_CHUNK_NBYTES else 1


class _Task(Generic[Item, Result]):
    """An item, and what becomes of it."""

    __slots__ = ("done", "error", "item", "result")

    def __init__(self, item: Item) -> None:
        self.item = item
        self.result: Result
        self.error: BaseException | None = None
        # A lock that is held until the task is done: the cheapest thing to wait for.
        self.done = threading.Lock()
        self.done.acquire()


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item], *, threads: int) -> Iterator[Result]:
    """`map` in threads: results in the order of the items, at most one more than `threads` of them in the making or
    waiting, so that memory is used again while it is in the cache.

    The first error, in the order of the items, is raised; what had not begun by then is not done. Where no thread can
    be started, because there are too many or the interpreter is ending, this one does the work.
    """
    threads = min(threads, length_hint(items, threads))
    if threads <= 1:
        yield from _alone(function, items)
        return
    process = os.getpid()
    tasks: SimpleQueue[_Task[Item, Result] | None] = SimpleQueue()
    pending: deque[_Task[Item, Result]] = deque()
    workers: list[threading.Thread] = []

    def work() -> None:
        while (task := tasks.get()) is not None:
            try:
                task.result = function(task.item)
            except BaseException as error:  # noqa: BLE001 - it is raised where the result is waited for
                task.error = error
            finally:
                task.done.release()
            # Not kept until the next one comes.
            del task

    def wait() -> Result:
        if os.getpid() != process:
            # The threads are its parent's: it would wait for ever.
            raise PytreeckptError(
                "this process was forked while its parent was saving or restoring, which it cannot go on with"
            )
        task = pending.popleft()
        task.done.acquire()
        if task.error is not None:
            raise task.error
        return task.result

    try:
        for _ in range(threads):
            worker = threading.Thread(target=work, name="pytreeckpt", daemon=True)
            workers.append(worker)
            try:
                worker.start()
            except RuntimeError:
                workers.pop()
                break
        if not workers:
            yield from _alone(function, items)
            return
        for item in items:
            task: _Task[Item, Result] = _Task(item)
            pending.append(task)
            tasks.put(task)
            del task
            if len(pending) > threads:
                yield wait()
        while pending:
            yield wait()
    finally:
        _stop(tasks, workers, process)


def _alone(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    try:
        for item in items:
            yield function(item)
    finally:
        # This thread goes on to live, and need not keep what it worked with.
        release()


def _stop(tasks: SimpleQueue[Any], workers: list[threading.Thread], process: int) -> None:
    """Have the workers finish what they are at, and nothing else, and wait for them."""
    if os.getpid() != process:
        return
    with suppress(Empty):
        while True:
            tasks.get_nowait()
    for _ in workers:
        tasks.put(None)
    for worker in workers:
        # One that was interrupted while it was started has no thread.
        if worker.ident is not None:
            worker.join()
