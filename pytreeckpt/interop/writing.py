"""Foreign files, published as ours are: written beside their names, synced, and given the names at once.

A writer of a format plans files as values, each a path and its pieces; here they are written, in order. Of several, the
last one is the one that names the others, so that whatever happens, what can be found is whole.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, get_args

from pytreeckpt.commit import Durability, IfExists, RemoveFile
from pytreeckpt.errors import CheckpointExistsError, NotDurableError, PytreeckptError
from pytreeckpt.storage import Storage
from pytreeckpt.wire import Buffer
from pytreeckpt.writer import publish

StrPath = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class WriteReport:
    """What was written: the paths of the files (the last one is the one to open) and their bytes in all.

    `shared`: for each name that a format without shared arrays could not keep, the one that has the array.
    `superseded`: files that an earlier checkpoint of the same name needed, and that nothing needs now.
    """

    paths: tuple[str, ...]
    nbytes: int
    shared: tuple[tuple[str, str], ...] = ()
    superseded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file to be written: its path, and what gives its bytes, some MiB at a time."""

    path: str
    pieces: Callable[[], Iterable[Buffer]]


def check_options(if_exists: IfExists, durability: Durability) -> None:
    """Raise `ValueError` for options that are none."""
    for name, value, choices in (("if_exists", if_exists, _IF_EXISTS), ("durability", durability, _DURABILITY)):
        if value not in choices:
            raise ValueError(f"{name}={value!r}: it is {' or '.join(map(repr, choices))}")


_IF_EXISTS: Final = get_args(IfExists)
_DURABILITY: Final = get_args(Durability)


def publish_files(
    storage: Storage, files: Sequence[PlannedFile], *, if_exists: IfExists, durability: Durability
) -> int:
    """Write the files, one after the other, and give back their bytes in all.

    `if_exists` and `durability` are those of `save`. When this raises, the last file was not published, but for
    `NotDurableError`, and those before it are removed again where their names were free.
    """
    if if_exists == "error":
        for file in files:
            if storage.exists(file.path):
                raise CheckpointExistsError(f'{file.path} exists; choose another path, or if_exists="replace"')
    nbytes = 0
    made: list[str] = []
    # From here on an interrupt may come after the last file has its name, and then the others are needed.
    is_naming = False

    def naming() -> None:
        nonlocal is_naming
        is_naming = len(made) == len(files) - 1

    try:
        for file in files:
            name = file.path if not storage.exists(file.path) else ""
            nbytes += publish(
                storage,
                file.path,
                _counted(file),
                if_exists=if_exists,
                durability=durability,
                before_publishing=naming,
            )
            made.append(name)
    except BaseException as error:
        published = isinstance(error, NotDurableError) or not isinstance(error, PytreeckptError)
        if not (is_naming and published):
            for name in filter(None, made):
                with contextlib.suppress(OSError):
                    storage.apply(RemoveFile(name))
        raise
    return nbytes


def _counted(file: PlannedFile) -> Generator[Buffer, None, int]:
    nbytes = 0
    for piece in file.pieces():
        yield piece
        nbytes += len(piece)
    return nbytes
