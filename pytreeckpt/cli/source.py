"""Opening a file for a command."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from pytreeckpt.checkpoint import Checkpoint
from pytreeckpt.opening import open_path


@contextmanager
def opened(path: str) -> Generator[Checkpoint]:
    """The checkpoint at a path, whatever its format, open for the length of a `with` block."""
    with open_path(path) as checkpoint:
        yield checkpoint
