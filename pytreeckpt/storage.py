"""Storage: where operations are applied and ranges are read. `LocalStorage` is the file system; others are as small."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import secrets
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pytreeckpt.commit import (
    CreateFile,
    FinishFile,
    LinkFile,
    MakeDirectory,
    Operation,
    RemoveFile,
    RenameFile,
    SyncDirectory,
    SyncFile,
    Target,
    WriteFile,
)
from pytreeckpt.errors import CheckpointNotFoundError, CorruptionError, NotACheckpointError, StorageError
from pytreeckpt.reading import RangedSource


class Storage(Protocol):
    """What a save and a restore need of a place that keeps files."""

    def target(self, path: str) -> Target:
        """Where a checkpoint called `path` goes."""
        ...

    def exists(self, path: str) -> bool:
        """Whether the name is taken, by whatever."""
        ...

    def apply(self, operation: Operation) -> None:
        """Do it, or raise `OSError`."""
        ...

    def discard(self, temporary: str) -> None:
        """After a failure: close and remove the file that is being created, if it is there. Never raises."""
        ...

    def open(self, path: str) -> RangedSource:
        """A file to read. Raises `CheckpointNotFoundError`."""
        ...


# Small pieces are collected into writes of at least this many bytes.
_WRITE_NBYTES = 1 << 20


@dataclass(slots=True)
class _Stage:
    """A file that is being created: its descriptor, the small pieces not yet written, and the process that writes
    it.
    """

    descriptor: int = -1
    pending: bytearray = field(default_factory=bytearray)
    pid: int = field(default_factory=os.getpid)

    def write(self, data: memoryview) -> None:
        if len(self.pending) + len(data) < _WRITE_NBYTES:
            self.pending += data
            return
        self.flush()
        self.write_now(data)

    def flush(self) -> None:
        if self.pending:
            pending, self.pending = self.pending, bytearray()
            self.write_now(memoryview(pending))

    def write_now(self, data: memoryview) -> None:
        # A write may be short, for example when a signal comes.
        while data:
            data = data[os.write(self.descriptor, data) :]


class LocalStorage:
    """The file system of this machine, for one save at a time."""

    def __init__(self) -> None:
        self.stages: dict[str, _Stage] = {}

    def target(self, path: str) -> Target:
        """Beside the checkpoint, a name that no other process takes; and the directories that are missing."""
        directory, name = os.path.split(path)
        directory = directory or os.curdir
        if not name or "\0" in path:
            raise StorageError(f"{path!r} is not a name for a checkpoint")
        if os.path.isdir(path):
            raise StorageError(errno.EISDIR, f"{path} is a directory; give the path of a file in it")
        # A file name has at most 255 bytes.
        stem = os.fsdecode(os.fsencode(name)[:200])
        temporary = os.path.join(directory, f".{stem}.{os.getpid()}-{secrets.token_hex(8)}.tmp")
        missing: list[tuple[str, str]] = []
        while directory and not os.path.isdir(directory):
            parent = os.path.dirname(directory) or os.curdir
            missing.append((directory, parent))
            if parent == directory:
                break
            directory = parent
        return Target(path, temporary, os.path.dirname(path) or os.curdir, tuple(reversed(missing)))

    def exists(self, path: str) -> bool:
        """Whether the name is taken, by whatever."""
        return os.path.lexists(path)

    def apply(self, operation: Operation) -> None:
        """Do it, or raise `OSError`."""
        match operation:
            case MakeDirectory(path):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(path)
            case CreateFile(path):
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                # Known before it exists, so that an interrupt in between leaves no file behind.
                stage = self.stages[path] = _Stage()
                stage.descriptor = os.open(path, flags, 0o666)
            case WriteFile(path, data):
                self.stages[path].write(memoryview(data))
            case SyncFile(path):
                stage = self.stages[path]
                stage.flush()
                sync(stage.descriptor)
            case FinishFile(path):
                stage = self.stages[path]
                stage.flush()
                # Whatever close says, the descriptor is gone.
                descriptor, stage.descriptor = stage.descriptor, -1
                os.close(descriptor)
            case RenameFile(source, target):
                self.check_process(source)
                os.replace(source, target)
                del self.stages[source]
            case LinkFile(source, target):
                self.check_process(source)
                link(source, target)
            case RemoveFile(path):
                os.unlink(path)
                self.stages.pop(path, None)
            case SyncDirectory(path):
                sync_directory(path)

    def check_process(self, temporary: str) -> None:
        """A forked child runs the same code with the same memory, and must not publish what its parent is writing."""
        if self.stages[temporary].pid != os.getpid():
            raise StorageError(
                "this process was forked in the middle of a save, which belongs to its parent: nothing was "
                "published by it"
            )

    def discard(self, temporary: str) -> None:
        """After a failure: close and remove the file that is being created, if it is there. Never raises."""
        stage = self.stages.pop(temporary, None)
        if stage is None:
            return
        if stage.descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(stage.descriptor)
        if stage.pid == os.getpid():
            with contextlib.suppress(OSError):
                os.unlink(temporary)

    def open(self, path: str) -> LocalFile:
        """A file to read. Raises `CheckpointNotFoundError`, or `NotACheckpointError` for what is no regular file."""
        try:
            # Without O_NONBLOCK, opening a FIFO would wait for a writer.
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            raise CheckpointNotFoundError(f"there is no checkpoint at {path}") from None
        except ValueError as error:
            raise CheckpointNotFoundError(f"{path!r} cannot be the name of a file: {error}") from None
        except OSError as error:
            raise storage_error(error, f"cannot open {path}") from error
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            what = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise NotACheckpointError(f"{path} is {what}; a checkpoint is a file", rule="F-1")
        return LocalFile(path, descriptor, status.st_size)


class LocalFile:
    """An open file; its length is that at the time of opening. Safe to read from several threads."""

    def __init__(self, path: str, descriptor: int, nbytes: int) -> None:
        self.path = path
        self.descriptor = descriptor
        self.nbytes = nbytes

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers, one after the other, with the bytes from `offset` on, or raise `CorruptionError` at
        the end of the data.
        """
        pending = [buffer for buffer in buffers if len(buffer)]
        while pending:
            try:
                count = os.preadv(self.descriptor, pending, offset)
            except OSError as error:
                raise storage_error(error, f"cannot read {self.path} at {offset}") from error
            if not count:
                raise CorruptionError(f"{self.path} was cut to {offset} bytes while it was read", rule="F-7")
            offset += count
            while count:
                first = pending[0]
                if count < len(first):
                    pending[0] = first[count:]
                    break
                count -= len(first)
                pending.pop(0)

    def map(self) -> mmap.mmap:
        """The file as memory, copied on write, so that changing an array does not change the file."""
        return mmap.mmap(self.descriptor, self.nbytes, access=mmap.ACCESS_COPY)

    def close(self) -> None:
        """Give the descriptor back."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()


def sync(descriptor: int) -> None:
    """Make a file durable. Never retried: after a failure, the kernel may have dropped what it could not write."""
    if sys.platform == "darwin":
        import fcntl

        # On macOS fsync does not reach the platter.
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def sync_directory(path: str) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def link(source: str, target: str) -> None:
    """A second name for a file; says so where the file system has no links."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno in {errno.EPERM, errno.ENOTSUP, errno.ENOSYS}:
            raise StorageError(
                f'the file system of {target} has no hard links, which if_exists="error" needs to be atomic; '
                'use if_exists="replace"'
            ) from error
        raise


def storage_error(error: OSError, doing: str) -> StorageError:
    """The same error as one of ours, with what was being done."""
    wrapped = StorageError(f"{doing}: {error.strerror or error}")
    wrapped.errno = error.errno
    return wrapped
