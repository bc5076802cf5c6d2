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
    StartWriteback,
    SyncDirectory,
    SyncExisting,
    SyncFile,
    Target,
    WriteFile,
)
from pytreeckpt.errors import CheckpointNotFoundError, CorruptionError, NotACheckpointError, StorageError
from pytreeckpt.linux import reserve, start_writeback
from pytreeckpt.locks import Lock, take_lock
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

    def names(self, directory: str) -> list[str]:
        """The names in a directory, sorted; none if there is no such directory."""
        ...

    def lock(self, path: str) -> Lock:
        """Take the lock called `path`, in a directory that exists, for as long as this process lives or until it is
        released. Raises `ConcurrentWriterError` if another one has it, in this process or in another.
        """
        ...


# Pieces are collected into writes of at least this many bytes, or of as many pieces as POSIX has every system take.
_WRITE_NBYTES = 1 << 20
_WRITE_PIECES = 16
# Blocks are reserved this far ahead, once a file has grown beyond the first of these.
_RESERVE_FROM_NBYTES = 8 << 20
_RESERVE_NBYTES = 512 << 20


class Descriptor:
    """A descriptor, once `open` was called; closed with this object at the latest.

    It is got and given back within one call into C: a KeyboardInterrupt comes between bytecodes, and would lose a
    number that is on its way into a variable.
    """

    __slots__ = ("_numbers",)

    def __init__(self) -> None:
        self._numbers: list[int] = []

    def open(self, path: str, flags: int) -> None:
        """`os.open`; a new file has the mode that the umask leaves."""
        self._numbers.extend(map(os.open, (path,), (flags | os.O_CLOEXEC,), (0o666,)))

    @property
    def number(self) -> int:
        """The descriptor itself. Raises `OSError` if it is not open."""
        if not self._numbers:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._numbers[0]

    def close(self) -> None:
        """Give it back, once. Whatever close says, it is gone."""
        if self._numbers:
            next(map(os.close, map(list.pop, (self._numbers,))))

    def __del__(self) -> None:
        try:  # noqa: SIM105 - a context manager needs memory, and there may be none
            self.close()
        except (OSError, AttributeError):
            # It failed to close, or was interrupted before it was made.
            pass


@dataclass(slots=True)
class _Stage:
    """A file that is being created: its descriptor, the pieces not yet written, and the process that writes it."""

    descriptor: Descriptor = field(default_factory=Descriptor)
    pending: list[memoryview] = field(default_factory=list)
    pending_nbytes: int = 0
    written: int = 0
    started: int = 0
    reserved: int = 0
    pid: int = field(default_factory=os.getpid)

    def write(self, data: memoryview) -> None:
        if not data:
            return
        self.pending.append(data)
        self.pending_nbytes += len(data)
        if self.pending_nbytes >= _WRITE_NBYTES or len(self.pending) == _WRITE_PIECES:
            self.flush()

    def flush(self) -> None:
        pending, self.pending, self.pending_nbytes = self.pending, [], 0
        if self.written >= _RESERVE_FROM_NBYTES and self.written + _RESERVE_NBYTES // 2 > self.reserved:
            # In time, so that no write goes beyond. Files that are never as large are not worth it.
            self.reserved = max(self.reserved, self.written) + _RESERVE_NBYTES
            reserve(self.descriptor.number, self.written, self.reserved - self.written)
        # A write may be short, for example when a signal comes.
        while pending:
            count = os.writev(self.descriptor.number, pending)
            self.written += count
            drop(pending, count)

    def end(self) -> None:
        """Write what is left, and give the blocks back that are not needed."""
        self.flush()
        if self.reserved:
            os.ftruncate(self.descriptor.number, self.written)
            self.reserved = 0

    def start_writeback(self) -> None:
        self.flush()
        start_writeback(self.descriptor.number, self.started, self.written - self.started)
        self.started = self.written


def drop(buffers: list[memoryview], nbytes: int) -> None:
    """Take the first `nbytes` bytes from a list of buffers."""
    whole = 0
    while whole < len(buffers) and nbytes >= len(buffers[whole]):
        nbytes -= len(buffers[whole])
        whole += 1
    del buffers[:whole]
    if nbytes:
        buffers[0] = buffers[0][nbytes:]


class LocalStorage:
    """The file system of this machine, for one save at a time."""

    def __init__(self) -> None:
        self.stages: dict[str, _Stage] = {}

    def target(self, path: str) -> Target:
        """Beside the checkpoint, a name that no other process takes; and the directories that are missing."""
        directory, name = os.path.split(path)
        directory = directory or os.curdir
        if not name or "\0" in path or not _can_be_encoded(path):
            raise StorageError(f"{path!r} is not a name for a checkpoint")
        if os.path.isdir(path):
            raise StorageError(f"{path} is a directory; give the path of a file in it")
        if os.path.exists(path) and not os.path.isfile(path):
            raise StorageError(f"{path} is a device, pipe or socket, not a file to be replaced; give another path")
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
                # Known before it exists, so that an interrupt in between leaves no file behind.
                stage = self.stages[path] = _Stage()
                try:
                    stage.descriptor.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW)
                except FileExistsError:
                    # What is there is not ours to remove.
                    del self.stages[path]
                    raise
            case WriteFile(path, data):
                self.own_stage(path).write(memoryview(data))
            case StartWriteback(path):
                self.own_stage(path).start_writeback()
            case SyncFile(path):
                stage = self.own_stage(path)
                stage.end()
                sync(stage.descriptor.number)
            case FinishFile(path):
                stage = self.own_stage(path)
                stage.end()
                stage.descriptor.close()
            case RenameFile(source, target):
                self.own_stage(source)
                os.replace(source, target)
                del self.stages[source]
            case LinkFile(source, target):
                self.own_stage(source)
                link(source, target)
            case RemoveFile(path):
                os.unlink(path)
                self.stages.pop(path, None)
            case SyncDirectory(path):
                sync_name(path, os.O_DIRECTORY)
            case SyncExisting(path):
                # Without O_NONBLOCK, opening a FIFO would wait for a writer.
                sync_name(path, os.O_NONBLOCK | os.O_NOFOLLOW)

    def own_stage(self, temporary: str) -> _Stage:
        """The file that is being created, by this process.

        A forked child goes on with the same code, memory and descriptor, and must neither write nor publish.
        """
        stage = self.stages[temporary]
        if stage.pid != os.getpid():
            raise StorageError(
                "this process was forked in the middle of a save, which belongs to its parent: nothing was "
                "published by it"
            )
        return stage

    def discard(self, temporary: str) -> None:
        """After a failure: close and remove the file that is being created, if it is there. Never raises."""
        stage = self.stages.pop(temporary, None)
        if stage is None:
            return
        with contextlib.suppress(OSError):
            stage.descriptor.close()
        if stage.pid == os.getpid():
            with contextlib.suppress(OSError):
                os.unlink(temporary)

    def open(self, path: str) -> LocalFile:
        """A file to read. Raises `CheckpointNotFoundError`, or `NotACheckpointError` for what is no regular file."""
        descriptor = Descriptor()
        try:
            # Without O_NONBLOCK, opening a FIFO would wait for a writer.
            descriptor.open(path, os.O_RDONLY | os.O_NONBLOCK)
            status = os.fstat(descriptor.number)
        except (FileNotFoundError, NotADirectoryError):
            raise CheckpointNotFoundError(f"there is no checkpoint at {path}") from None
        except ValueError as error:
            raise CheckpointNotFoundError(f"{path!r} cannot be the name of a file: {error}") from None
        except OSError as error:
            raise storage_error(error, f"cannot open {path}") from error
        if not stat.S_ISREG(status.st_mode):
            descriptor.close()
            what = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise NotACheckpointError(f"{path} is {what}; a checkpoint is a file", rule="F-1")
        return LocalFile(path, descriptor, status.st_size)

    def names(self, directory: str) -> list[str]:
        """The names in a directory, sorted; none if there is no such directory."""
        try:
            return sorted(os.listdir(directory))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise storage_error(error, f"cannot list {directory}") from error

    def lock(self, path: str) -> Lock:
        """Take a lock that is a file. Raises `ConcurrentWriterError`, and `StorageError` where there are no locks."""
        return take_lock(path)


def _can_be_encoded(path: str) -> bool:
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return True


class LocalFile:
    """An open file; its length is that at the time of opening. Safe to read from several threads."""

    def __init__(self, path: str, descriptor: Descriptor, nbytes: int) -> None:
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
                count = os.preadv(self.descriptor.number, pending, offset)
            except OSError as error:
                raise storage_error(error, f"cannot read {self.path} at {offset}") from error
            if not count:
                raise CorruptionError(f"{self.path} was cut to {offset} bytes while it was read", rule="F-7")
            offset += count
            drop(pending, count)

    def map(self) -> mmap.mmap:
        """The file as memory, copied on write, so that changing an array does not change the file."""
        try:
            return mmap.mmap(self.descriptor.number, self.nbytes, access=mmap.ACCESS_COPY)
        except OSError as error:
            raise storage_error(error, f"cannot map {self.path}") from error

    def close(self) -> None:
        """Give the descriptor back."""
        self.descriptor.close()


def sync(descriptor: int) -> None:
    """Make a file durable. Never retried: after a failure, the kernel may have dropped what it could not write."""
    if sys.platform == "darwin":
        import fcntl

        # On macOS fsync does not reach the platter.
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def sync_name(path: str, flags: int) -> None:
    """Make durable what is there, a file or, with `O_DIRECTORY`, the names in a directory."""
    descriptor = Descriptor()
    try:
        descriptor.open(path, os.O_RDONLY | flags)
        sync(descriptor.number)
    finally:
        descriptor.close()


def link(source: str, target: str) -> None:
    """A second name for a file; says so where the file system has no links."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno in {errno.EPERM, errno.ENOTSUP, errno.ENOSYS}:
            doing = (
                f'the file system of {target} has no hard links, which if_exists="error" needs to be atomic; '
                'use if_exists="replace"'
            )
            raise storage_error(error, doing) from error
        raise


def storage_error(error: OSError, doing: str) -> StorageError:
    """The same error as one of ours, with what was being done."""
    return with_errno(StorageError(f"{doing}: {error.strerror or error}"), error)


def with_errno(wrapped: StorageError, error: OSError) -> StorageError:
    """Keep the number of the operating system's error."""
    wrapped.errno = error.errno
    return wrapped
