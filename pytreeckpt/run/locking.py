"""The lock of the folder of a run: who has it is the only one who writes there."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from contextlib import contextmanager

from pytreeckpt.commit import MakeDirectory, SyncDirectory
from pytreeckpt.errors import PytreeckptError
from pytreeckpt.locks import Lock
from pytreeckpt.steps.names import LOCK, inside
from pytreeckpt.storage import Storage, storage_error


def make_folder(storage: Storage, root: str) -> None:
    """Make the folder durably, and those above it, where they are missing. Raises `StorageError`."""
    target = storage.target(inside(root, LOCK))
    try:
        for directory, parent in target.new_directories:
            storage.apply(MakeDirectory(directory))
            storage.apply(SyncDirectory(parent))
        if not target.new_directories:
            # Whoever made the folder may have been killed before its name was durable.
            with contextlib.suppress(OSError):
                storage.apply(SyncDirectory(parent_of(root)))
    except PytreeckptError:
        raise
    except OSError as error:
        raise storage_error(error, f"cannot make the folder {root}") from error


def parent_of(root: str) -> str:
    """The folder in which a folder is."""
    head, slash, _ = root.rstrip("/").rpartition("/")
    return head or ("/" if slash else ".")


def take(storage: Storage, root: str) -> Lock:
    """Take the lock of a folder that exists. Raises `ConcurrentWriterError`, and `StorageError`."""
    return storage.lock(inside(root, LOCK))


@contextmanager
def locked_folder(storage: Storage, root: str, *, lock: bool) -> Generator[None]:
    """Have the lock of a folder that exists, if `lock` says so."""
    taken = take(storage, root) if lock else None
    try:
        yield
    finally:
        if taken is not None:
            taken.release()
