"""Two system calls of Linux that Python's os has not. Both are hints: nothing depends on their success."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, Final

# linux/fs.h and linux/falloc.h
_SYNC_FILE_RANGE_WRITE: Final = 2
_FALLOC_FL_KEEP_SIZE: Final = 1

_Call = Callable[..., Any]


@cache
def _system_call(name: str, *types: Any) -> _Call | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        function = getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None
    function.argtypes = types
    call: _Call = function
    return call


def start_writeback(descriptor: int, offset: int, nbytes: int) -> None:
    """Have the kernel begin to bring `nbytes` bytes of a file from `offset` on to the disk, so that the fsync at the
    end finds little left to do. That still reports all errors, because this does not wait for any.
    """
    call = _system_call("sync_file_range", ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    if call is not None and nbytes > 0:
        call(descriptor, offset, nbytes, _SYNC_FILE_RANGE_WRITE)


def reserve(descriptor: int, offset: int, nbytes: int) -> None:
    """Have the file system set blocks aside for `nbytes` bytes of a file from `offset` on, in one piece, which makes
    writing them cheaper. The length of the file stays what it is; truncating it gives the rest back.
    """
    call = _system_call("fallocate", ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if call is not None:
        call(descriptor, _FALLOC_FL_KEEP_SIZE, offset, nbytes)
