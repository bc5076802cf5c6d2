"""Work in threads, with results in order and a bounded number of them in flight."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from operator import length_hint
from typing import TypeVar

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


def default_threads() -> int:
    """How many threads encode and decode: `PYTREECKPT_THREADS`, or one for each usable core up to 8."""
    asked = os.environ.get(THREADS_VARIABLE)
    if asked is not None:
        if not asked.isdecimal() or int(asked) < 1:
            raise ValueError(f"{THREADS_VARIABLE}={asked!r}: it is a number of threads, at least 1")
        return int(asked)
    return min(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        _MAX_THREADS,
    )


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item], *, threads: int) -> Iterator[Result]:
    """`map` in threads: results in the order of the items, at most two more than `threads` of them waiting.

    The first error, in the order of the items, is raised; what had not begun by then is not done.
    """
    threads = min(threads, length_hint(items, threads))
    if threads <= 1:
        try:
            for item in items:
                yield function(item)
        finally:
            # This thread goes on to live, and need not keep what it worked with.
            release()
        return
    process = os.getpid()

    def wait() -> Result:
        if os.getpid() != process:
            # The threads are its parent's: it would wait for ever.
            raise PytreeckptError(
                "this process was forked while its parent was saving or restoring, which it cannot go on with"
            )
        return pending.popleft().result()

    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="pytreeckpt")
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= threads + 2:
                yield wait()
        while pending:
            yield wait()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
