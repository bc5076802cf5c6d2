"""How much a reader or writer will do for one checkpoint, so that a hostile or mistaken input ends in an error.

The limits are not rules of the format: a file beyond them is not corrupt, and a caller can raise them:

    with pytreeckpt.limits(depth=50_000):
        tree = pytreeckpt.restore(path)
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Upper bounds, each adjustable with `limits`."""

    index_nbytes: int = 256 << 20
    """Bytes of the raw index (which holds the structure, the names and the small values)."""
    depth: int = 10_000
    """Levels of a tree; a leaf at the root has depth 1."""
    nodes: int = 30_000_000
    """Nodes of a tree: containers, leaves and dict keys."""
    key_nbytes: int = 64 << 10
    """Bytes of one dict key; of a str, in UTF-8."""
    key_depth: int = 100
    """Levels of a tuple that is a dict key, or of an element of a set."""
    chunk_nbytes: int = 256 << 20
    """Raw bytes of one chunk."""
    arrays_nbytes: int = 16 << 40
    """Bytes of all arrays that one call reads. A small file can hold large arrays: lower it for strangers' files."""
    data_files: int = 4096
    """Data files of one checkpoint, which are all open at once."""
    snapshot_nbytes: int | None = None
    """Bytes of host memory for the copies that saves in the background of this process hold, all together. None: half
    of the memory of the machine, or of the control group that the process is in.
    """


_DEFAULT = Limits()
_current: ContextVar[Limits] = ContextVar("pytreeckpt_limits", default=_DEFAULT)


def current_limits() -> Limits:
    """The limits in force in this context."""
    return _current.get()


@contextmanager
def limits(
    *,
    index_nbytes: int | None = None,
    depth: int | None = None,
    nodes: int | None = None,
    key_nbytes: int | None = None,
    key_depth: int | None = None,
    chunk_nbytes: int | None = None,
    arrays_nbytes: int | None = None,
    data_files: int | None = None,
    snapshot_nbytes: int | None = None,
) -> Generator[Limits]:
    """Adjust the limits inside a `with` block (of this thread or task); what is not given stays as it is."""
    asked = {
        "index_nbytes": index_nbytes,
        "depth": depth,
        "nodes": nodes,
        "key_nbytes": key_nbytes,
        "key_depth": key_depth,
        "chunk_nbytes": chunk_nbytes,
        "arrays_nbytes": arrays_nbytes,
        "data_files": data_files,
        "snapshot_nbytes": snapshot_nbytes,
    }
    changed = replace(_current.get(), **{name: value for name, value in asked.items() if value is not None})
    token = _current.set(changed)
    try:
        yield changed
    finally:
        _current.reset(token)
