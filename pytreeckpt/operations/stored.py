"""The items of arrays of open checkpoints, run by run: what all files have in common."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator, Hashable
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Protocol

from pytreeckpt.arrays import AnyArray
from pytreeckpt.checkpoint import Checkpoint
from pytreeckpt.errors import CorruptionError, FormatVersionError, LimitError
from pytreeckpt.pipeline import Progress, ReportProgress


class Meter:
    """Counts the bytes that were handed on, and tells how far the work is, if somebody wants to know."""

    def __init__(self) -> None:
        self._report: ReportProgress | None = None
        self._total_nbytes = 0
        self._done_nbytes = 0
        self._lock = Lock()

    def begin(self, report: ReportProgress | None, total_nbytes: int) -> None:
        """Tell from now on how much was handed on of this total, with what was before."""
        self._report, self._total_nbytes = report, total_nbytes
        self.count(0)

    def count(self, nbytes: int) -> None:
        """Add bytes."""
        with self._lock:
            self._done_nbytes += nbytes
            if self._report is not None:
                self._report(Progress(min(self._done_nbytes, self._total_nbytes), self._total_nbytes))


@contextmanager
def naming(name: str) -> Generator[None]:
    """Begin errors about the content of a file with its name."""
    try:
        yield
    except (CorruptionError, FormatVersionError, LimitError) as error:
        if not str(error).startswith(f"{name}: "):
            error.args = (f"{name}: {error}", *error.args[1:])
        raise


class Kept:
    """What was read last, up to so many bytes."""

    def __init__(self, max_nbytes: int) -> None:
        self._max_nbytes = max_nbytes
        self._nbytes = 0
        self._items: OrderedDict[Hashable, AnyArray] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable) -> AnyArray | None:
        """What is kept by this name."""
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
            return self._items.get(key)

    def add(self, key: Hashable, array: AnyArray) -> None:
        """Keep an array, and not what was used longest ago."""
        with self._lock:
            if key in self._items:
                return
            self._items[key] = array
            self._nbytes += array.nbytes
            while self._nbytes > self._max_nbytes and len(self._items) > 1:
                self._nbytes -= self._items.popitem(last=False)[1].nbytes


class StoredFile(Protocol):
    """An open checkpoint whose arrays can be read in parts."""

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint."""
        ...

    def read(self, array: int, box: int, start: int, stop: int) -> AnyArray:
        """Items `start` to `stop` of a box of an array, in stored order, as an array of rank 1."""
        ...

    def small(self, max_nbytes: int) -> dict[int, AnyArray]:
        """Small arrays of no more than so many bytes together, read at once; none if one of them is damaged or they
        are beyond a limit, because nobody may ask for them.
        """
        ...


@dataclass(frozen=True, slots=True)
class StoredItems:
    """Reads runs of the items of a box of an array of a checkpoint, as they are stored."""

    file: StoredFile
    array: int
    box: int
    meter: Meter | None

    def __call__(self, start: int, stop: int) -> AnyArray:
        """Items `start` to `stop`. Threads may ask at once."""
        with naming(str(self.file.checkpoint.path)):
            items = self.file.read(self.array, self.box, start, stop)
        if self.meter is not None:
            self.meter.count(items.nbytes)
        return items
