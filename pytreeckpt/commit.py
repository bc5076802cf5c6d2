"""The commit as data: the file operations of a save, in order. Nothing here performs them.

A storage applies them one by one; a test replays prefixes and reorderings of the same list.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, cast

from pytreeckpt.wire import Buffer

Result = TypeVar("Result")
IfExists = Literal["replace", "error"]
Durability = Literal["durable", "atomic"]


@dataclass(frozen=True, slots=True)
class MakeDirectory:
    """Make a directory whose parent exists; one that is there already is fine."""

    path: str


@dataclass(frozen=True, slots=True)
class CreateFile:
    """Create a new, empty file; it must not exist, nor be a link."""

    path: str


@dataclass(frozen=True, slots=True)
class WriteFile:
    """Append to the file that is being created."""

    path: str
    data: Buffer


@dataclass(frozen=True, slots=True)
class StartWriteback:
    """A hint, with no promise: begin to make the content of the file that is being created durable, and do not wait."""

    path: str


@dataclass(frozen=True, slots=True)
class SyncFile:
    """Make the content of the file that is being created durable."""

    path: str


@dataclass(frozen=True, slots=True)
class SyncExisting:
    """Make the content of a file durable that has its name already, whoever wrote it."""

    path: str


@dataclass(frozen=True, slots=True)
class FinishFile:
    """Close the file that is being created."""

    path: str


@dataclass(frozen=True, slots=True)
class RenameFile:
    """Give a file its name, atomically replacing what has it."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class LinkFile:
    """Give a file a second name, atomically; fails if the name is taken."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class RemoveFile:
    """Remove a name of a file."""

    path: str


@dataclass(frozen=True, slots=True)
class SyncDirectory:
    """Make the names in a directory durable."""

    path: str


Operation = (
    MakeDirectory
    | CreateFile
    | WriteFile
    | StartWriteback
    | SyncFile
    | SyncExisting
    | FinishFile
    | RenameFile
    | LinkFile
    | RemoveFile
    | SyncDirectory
)
# So often that the disk is never idle while there is something to write, and the last wait is short.
_WRITEBACK_NBYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Target:
    """Where a checkpoint goes: its name, a free name beside it to write to, its directory, and those to make, each
    with its parent.
    """

    path: str
    temporary: str
    directory: str
    new_directories: Sequence[tuple[str, str]] = ()


def _writes(path: str, pieces: Generator[Buffer, None, Result], *, durable: bool) -> Generator[Operation, None, Result]:
    nbytes = 0
    while True:
        try:
            piece = next(pieces)
        except StopIteration as end:
            return cast("Result", end.value)
        yield WriteFile(path, piece)
        nbytes += len(piece)
        if durable and nbytes >= _WRITEBACK_NBYTES:
            yield StartWriteback(path)
            nbytes = 0


def commit(
    target: Target,
    pieces: Generator[Buffer, None, Result],
    *,
    if_exists: IfExists,
    durability: Durability,
    named: Callable[[Result], str] | None = None,
) -> Generator[Operation, None, Result]:
    """The operations that write `pieces` and publish them under `target.path`, or under the path, in the same
    directory, that `named` gives for their result. The generator's return value is that of `pieces`.

    The order carries the guarantee: content is durable before its name is, and the name appears at once.
    """
    durable = durability == "durable"
    for directory, parent in target.new_directories:
        yield MakeDirectory(directory)
        if durable:
            yield SyncDirectory(parent)
    yield CreateFile(target.temporary)
    written = yield from _writes(target.temporary, pieces, durable=durable)
    if durable:
        yield SyncFile(target.temporary)
    yield FinishFile(target.temporary)
    path = target.path if named is None else named(written)
    if if_exists == "replace":
        yield RenameFile(target.temporary, path)
    else:
        yield LinkFile(target.temporary, path)
        yield RemoveFile(target.temporary)
    if durable:
        yield SyncDirectory(target.directory)
    return written
