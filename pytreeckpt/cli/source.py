"""Opening a file for a command: its checkpoint, and the reader of its chunks."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import NamedTuple

from pytreeckpt.checkpoint import Checkpoint
from pytreeckpt.reader import ArrayReader, Paths
from pytreeckpt.storage import LocalStorage


class Source(NamedTuple):
    """An open file."""

    checkpoint: Checkpoint
    reader: ArrayReader


@contextmanager
def opened(path: str) -> Generator[Source]:
    """The checkpoint at a path, open for the length of a `with` block."""
    file = LocalStorage().open(path)
    try:
        checkpoint = Checkpoint(file, path)
        yield Source(checkpoint, ArrayReader(file, checkpoint.index, Paths(checkpoint.index)))
    finally:
        file.close()
