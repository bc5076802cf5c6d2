"""Host memory for snapshots, used again: filling memory that was never touched takes twice as long.

There is one stock of it in a process, whoever saves. Together, what is lent and what is kept for the next snapshot
never exceed the limit of who asks; what is kept is let go when nobody has asked for `IDLE_S` seconds.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final
from weakref import WeakSet

import numpy as np

from pytreeckpt.saving.memory import usable_nbytes
from pytreeckpt.snapshots import Bytes, Needs
from pytreeckpt.wire import ALIGNMENT, align

IDLE_S: Final = 900.0
"""Longer than it is from one checkpoint to the next in most trainings."""
# Trees grow a little from save to save; with room to spare, few need another buffer.
_GRAIN: Final = 16
# A buffer that is much too large is left to the one that it was made for.
_MAX_TIMES: Final = 2
# The lock is held for a moment. Who waits longer runs in a signal handler that has interrupted who holds it, or after
# one whose exception came before it could be given back: either would wait for ever.
_PATIENCE_S: Final = 1.0


class Lease:
    """Memory for one snapshot, until it is given back, or forgotten."""

    def __init__(self, buffer: Bytes, other_nbytes: int) -> None:
        self.buffer = buffer
        self.nbytes = len(buffer) + other_nbytes
        self._at = -buffer.__array_interface__["data"][0] % ALIGNMENT

    def allocate(self, nbytes: int) -> Bytes:
        """A part of it that was not given yet, aligned. Raises `ValueError` beyond what was asked for."""
        begin = self._at
        self._at += align(nbytes)
        if begin + nbytes > len(self.buffer):
            raise ValueError(f"a snapshot asks for more than the {len(self.buffer)} bytes that it said it needs")
        return self.buffer[begin : begin + nbytes]


class Buffers:
    """The stock of a process. Safe to use from several threads."""

    def __init__(self, idle_s: float = IDLE_S) -> None:
        self._idle_s = idle_s
        self.forget()

    def forget(self) -> None:
        """Begin anew, with nothing lent: what this process has was its parent's."""
        self._lock = threading.Lock()
        self.kept: list[Bytes] = []
        # Weak, so that a lease that an interrupt has lost is not counted for ever.
        self.lent: WeakSet[Lease] = WeakSet()
        self._used_at = time.monotonic()
        self.watcher: threading.Thread | None = None

    @property
    def held_nbytes(self) -> int:
        """Bytes that are lent or kept."""
        return sum(lease.nbytes for lease in self.lent) + sum(map(len, self.kept))

    def take(self, needs: Needs, limit: int | None) -> Lease | None:
        """Memory for a snapshot with these needs; None if the limit (by default half of the machine's memory) does not
        allow it now.
        """
        other_nbytes = needs.total_nbytes - needs.buffer_nbytes
        # Where it begins is rarely a multiple of the alignment.
        wanted = needs.buffer_nbytes + ALIGNMENT if needs.buffer_nbytes else 0
        with self._locked() as mine:
            if not mine:
                return None
            lent = sum(lease.nbytes for lease in self.lent)
            free = (usable_nbytes() // 2 if limit is None else limit) - lent - other_nbytes
            if wanted > free:
                return None
            try:
                lease = Lease(self._buffer(wanted, free) if wanted else np.empty(0, np.uint8), other_nbytes)
            except MemoryError:
                # This process has less than the limit allows.
                return None
            self.kept.sort(key=len)
            while sum(map(len, self.kept)) > free - len(lease.buffer):
                self.kept.pop()
            self.lent.add(lease)
            return lease

    def _buffer(self, wanted: int, free: int) -> Bytes:
        """One of those that are kept, if it fits, or a new one; of at most `free` bytes."""
        kept = sorted(self.kept, key=len)
        fitting = [buffer for buffer in kept if wanted <= len(buffer) <= min(_MAX_TIMES * wanted, free)]
        if fitting:
            self.kept = [buffer for buffer in kept if buffer is not fitting[0]]
            return fitting[0]
        smaller = [buffer for buffer in kept if len(buffer) < wanted]
        # The largest of these is what was used before the tree grew: it goes first.
        self.kept = [*smaller[:-1], *kept[len(smaller) :]]
        del kept, smaller
        return np.empty(min(wanted + wanted // _GRAIN, free), np.uint8)

    def give_back(self, lease: Lease) -> None:
        """Keep the memory for the next one, once."""
        with self._locked() as mine:
            if not mine or lease not in self.lent:
                return
            self.lent.discard(lease)
            if len(lease.buffer):
                self.kept.append(lease.buffer)
            self._used_at = time.monotonic()
            if self.kept and self.watcher is None:
                self._start_watcher()

    def release(self) -> None:
        """Let go of what is kept."""
        with self._locked() as mine:
            if mine:
                self.kept.clear()

    @contextmanager
    def _locked(self) -> Generator[bool]:
        """Have the lock, or know that it cannot be had: then nothing is lent or kept, and there is another lock."""
        lock = self._lock
        mine = lock.acquire(timeout=_PATIENCE_S)
        if not mine:
            self._lock = threading.Lock()
        try:
            yield mine
        finally:
            if mine:
                lock.release()

    def _start_watcher(self) -> None:
        watcher = threading.Thread(target=self._watch, name="pytreeckpt-idle", daemon=True)
        try:
            watcher.start()
        except RuntimeError:
            # There are no more threads: nobody would see that it is not needed.
            self.kept.clear()
        else:
            self.watcher = watcher

    def _watch(self) -> None:
        never = threading.Event()
        left_s = self._idle_s
        while left_s > 0:
            never.wait(left_s)
            with self._lock:
                left_s = self._idle_s if self.lent else self._used_at + self._idle_s - time.monotonic()
                if left_s <= 0:
                    self.kept.clear()
                    self.watcher = None


BUFFERS: Final = Buffers()
"""Those of this process."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=BUFFERS.forget)
