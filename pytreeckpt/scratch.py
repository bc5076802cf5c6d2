"""Memory that a thread uses again and again: getting it anew for each chunk would cost as much as filling it."""

from __future__ import annotations

import threading
from typing import Any, Final

import numpy as np

Bytes = np.ndarray[tuple[int], np.dtype[Any]]

# Chunks that we write are smaller; those of a stranger's file may be large, and are not worth keeping memory for.
_MAX_KEPT_NBYTES: Final = 8 << 20


class _Slots(threading.local):
    def __init__(self) -> None:
        self.buffers: dict[str, Bytes] = {}


_slots = _Slots()


def scratch(slot: str, nbytes: int) -> Bytes:
    """`nbytes` of this thread's memory, with anything in it. It is the same memory the next time that the slot is asked
    for, and is given back when the thread ends.
    """
    buffer = _slots.buffers.get(slot)
    if buffer is None or len(buffer) < nbytes:
        buffer = np.empty(nbytes, np.uint8)
        if nbytes <= _MAX_KEPT_NBYTES:
            _slots.buffers[slot] = buffer
    return buffer[:nbytes]


def release() -> None:
    """Give this thread's memory back."""
    _slots.buffers.clear()
