"""A folder of this machine, whose files are read and never anything outside of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from pytreeckpt.errors import CheckpointNotFoundError, LimitError
from pytreeckpt.storage import LocalFile, LocalStorage, storage_error

# A folder of a checkpoint has fewer; one of more is somebody's home.
_MAX_FILES: Final = 1 << 20


class LocalFolder:
    """A folder and the files that were opened in it. `nbytes`: of all files in it, once their names were asked for."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.opened: list[LocalFile] = []
        self.nbytes = 0
        self._names: list[str] | None = None

    def names(self) -> Sequence[str]:
        """All files in it and in its folders, sorted. Links to folders are not followed.

        Raises `LimitError` for a folder of a million files, and `StorageError`.
        """
        if self._names is None:
            found, self.nbytes = self._walk()
            self._names = sorted(found)
        return self._names

    def near(self) -> Sequence[str]:
        """The files in it and in the folders directly in it, sorted: all of a large disk need not be listed to see that
        it is no checkpoint. Raises as `names`.
        """
        found, _ = self._walk(levels=2)
        return sorted(found)

    def _walk(self, levels: int | None = None) -> tuple[list[str], int]:
        """The files of so many levels, or all, and their bytes."""
        found: list[str] = []
        nbytes = 0
        pending = [""]
        while pending:
            below = pending.pop()
            try:
                with os.scandir(f"{self.path}/{below}") as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            if levels is None or below.count("/") + 1 < levels:
                                pending.append(f"{below}{entry.name}/")
                        elif entry.is_file():
                            found.append(below + entry.name)
                            nbytes += entry.stat().st_size
            except OSError as error:
                if levels is not None and below:
                    # What cannot be listed below a folder that may be anybody's tells nothing.
                    continue
                raise storage_error(error, f"cannot list {self.path}/{below}") from error
            if len(found) + len(pending) > _MAX_FILES:
                raise LimitError(f"{self.path} has more than {_MAX_FILES} files; open the folder of one checkpoint")
        return found, nbytes

    def open(self, name: str) -> LocalFile:
        """A file of the folder. Raises `CheckpointNotFoundError` for a name that is not there, or leads outside, and
        `NotACheckpointError` for what is no regular file.
        """
        parts = name.split("/")
        if "\0" in name or any(part in {"", os.curdir, os.pardir} for part in parts):
            raise CheckpointNotFoundError(f"{name!r} cannot be the name of a file in {self.path}")
        root = os.path.realpath(self.path)
        try:
            real = os.path.realpath(f"{self.path}/{name}")
        except (OSError, ValueError) as error:
            raise CheckpointNotFoundError(f"{name!r} cannot be the name of a file in {self.path}: {error}") from None
        if os.path.commonpath([root, real]) != root:
            raise CheckpointNotFoundError(
                f"{name} is a link that leads out of {self.path}, to {real}, and is not followed: copy the file, or "
                "open it by itself"
            )
        file = LocalStorage().open(real)
        self.opened.append(file)
        return file

    def close(self) -> None:
        """Close the files that were opened."""
        for file in self.opened:
            file.close()
