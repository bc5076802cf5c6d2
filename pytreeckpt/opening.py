"""Opening whatever is at a path: a file of ours, or a foreign file or folder."""

from __future__ import annotations

from pathlib import Path

from pytreeckpt.checkpoint import Checkpoint
from pytreeckpt.content import Content, own_content
from pytreeckpt.errors import NotACheckpointError
from pytreeckpt.limits import current_limits
from pytreeckpt.storage import LocalFile, LocalStorage


def open_path(path: str) -> Checkpoint:
    """The checkpoint at a path, whose structure has not been checked yet where it is one of ours.

    Raises `CheckpointNotFoundError`, `NotACheckpointError`, `CorruptionError`, `FormatVersionError`, `LimitError`,
    `UnsupportedTypeError` and `StorageError`.
    """
    try:
        file = LocalStorage().open(path)
    except NotACheckpointError:
        if not Path(path).is_dir():
            raise
        from pytreeckpt.interop.contents import folder_content

        return Checkpoint(folder_content(path, current_limits()), path)
    try:
        return Checkpoint(_content_of(file), path)
    except BaseException:
        file.close()
        raise


def _content_of(file: LocalFile) -> Content:
    try:
        return own_content(file, current_limits())
    except NotACheckpointError:
        # Foreign formats are imported for those who have foreign files.
        from pytreeckpt.interop.contents import foreign_content

        return foreign_content(file, current_limits())
