"""Python's garbage collector, kept from looking through a tree that is being made."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def paused_collection() -> Generator[None]:
    """Do not collect garbage meanwhile, if that is on.

    For as long as it takes to make the records of a large tree, not for I/O: all of them stay, and looking through them
    each time that some were added would take as long as making them.
    """
    if not gc.isenabled():
        yield
        return
    try:
        gc.disable()
        yield
    finally:
        gc.enable()
