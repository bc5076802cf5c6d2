"""Have the kernel begin to write to the disk, so that the fsync at the end finds little left to do."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

# linux/fs.h
_SYNC_FILE_RANGE_WRITE = 2


@cache
def _sync_file_range() -> Callable[[int, int, int, int], Any] | None:
    """The system call of Linux, which Python's os has not."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        function = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    call: Callable[[int, int, int, int], Any] = function
    return call


def start_writeback(descriptor: int, offset: int, nbytes: int) -> None:
    """Begin to write `nbytes` bytes of a file from `offset` on. A hint: errors are left to the fsync, which still
    reports them, because this call does not wait for any.
    """
    call = _sync_file_range()
    if call is not None and nbytes > 0:
        call(descriptor, offset, nbytes, _SYNC_FILE_RANGE_WRITE)
