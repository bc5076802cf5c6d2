"""A lock that is a file: held by one open file of one process, and let go by the system when that process ends.

POSIX record locks, because they work over NFS, and a forked child does not have its parent's. Within a process they
exclude nobody, and closing any descriptor of the file loses them, so the locks of this process are kept by the
identities of their files.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import threading
from typing import Final, Protocol

from pytreeckpt.errors import ConcurrentWriterError, StorageError

# Reentrant, because a lock may be released while memory is collected, anywhere.
_guard: Final = threading.RLock()
_held: Final[dict[tuple[int, int], int]] = {}
"""The process that holds each lock that was taken here, by device and inode."""

# A child that is forked while another thread is in there would wait for ever.
os.register_at_fork(before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_guard.release)


class Lock(Protocol):
    """A lock that was taken."""

    def is_held(self) -> bool:
        """Whether it is held still, and nobody else had it in between."""
        ...

    def release(self) -> None:
        """Give it back, once."""
        ...


class FileLock:
    """A lock that was taken. Released at the latest with this object, or when the process ends."""

    def __init__(self, path: str, descriptor: int, identity: tuple[int, int], text: bytes) -> None:
        self._path = path
        self._descriptor = descriptor
        self._identity = identity
        self._text = text
        self._pid = os.getpid()
        self._released = False

    def is_held(self) -> bool:
        """Whether it is held, and nobody else had it since it was taken.

        It is lost where its file is removed or replaced, and when this process closes another descriptor of the file,
        as it does when it copies the folder: then it is taken again here, if it is free.
        """
        if self._released or os.getpid() != self._pid:
            return False
        with _guard:
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Who has it writes so, and nobody wipes it out.
                text = os.pread(self._descriptor, len(self._text) + 1, 0)
            except OSError:
                return False
            return text == self._text and _identity_of(self._path) == self._identity

    def release(self) -> None:
        """Give it back, once. The file stays: another process may be waiting for it by its name."""
        if self._released or os.getpid() != self._pid:
            # A forked child has a copy of this object, and not the lock.
            return
        self._released = True
        with _guard:
            _held.pop(self._identity, None)
            os.close(self._descriptor)

    def __del__(self) -> None:
        # Of one who forgot, or failed: in a notebook the next one is made in the same process.
        try:  # noqa: SIM105 - there may be no modules left to import
            self.release()
        except (AttributeError, OSError, TypeError):
            # The interpreter is ending, or it was interrupted before it was made.
            pass


def take_lock(path: str) -> FileLock:
    """Take the lock, without waiting. Raises `ConcurrentWriterError` with who has it, and `StorageError`."""
    with _guard:
        # Looked up by name first: opening and closing the file would lose a lock that this process has.
        identity = _identity_of(path)
        if identity is not None and _held.get(identity) == os.getpid():
            raise ConcurrentWriterError(f"{path} is held in this process already: {_ADVICE}")
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise StorageError(f"cannot open the lock {path}: {error.strerror}") from error
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(descriptor)
            # The second line is of this lock alone: containers may have the same names, and number processes alike.
            text = f"process {os.getpid()} on {os.uname().nodename}\n{secrets.token_hex(8)}\n".encode()
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, text, 0)
        except OSError as error:
            holder = _holder(descriptor)
            os.close(descriptor)
            if error.errno in {errno.EACCES, errno.EAGAIN}:
                raise ConcurrentWriterError(f"{path} is held by {holder}: {_ADVICE}") from None
            raise StorageError(
                f"cannot lock {path}: {error.strerror}; the file system may have no locks: where it is certain that "
                "nobody else writes there, lock=False does without"
            ) from error
        taken = FileLock(path, descriptor, (status.st_dev, status.st_ino), text)
        _held[status.st_dev, status.st_ino] = os.getpid()
        return taken


_ADVICE: Final = (
    "two writers would prune each other's checkpoints; close the other one, or give each a folder of its own"
)


def _identity_of(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _holder(descriptor: int) -> str:
    try:
        text = os.pread(descriptor, 200, 0).decode("utf-8", "replace").partition("\n")[0]
    except OSError:
        text = ""
    return text if text.isprintable() and text else "another process"
