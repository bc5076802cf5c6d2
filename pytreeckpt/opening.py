"""Opening whatever is at a path: a file of ours, or a foreign file or folder."""

from __future__ import annotations

from pathlib import Path

from pytreeckpt.checkpoint import Checkpoint
from pytreeckpt.content import Content, Siblings, close, own_content
from pytreeckpt.errors import NotACheckpointError
from pytreeckpt.index import DATA_FOLDER
from pytreeckpt.limits import current_limits
from pytreeckpt.storage import LocalFile, LocalStorage, Storage


def open_path(path: str) -> Checkpoint:
    """The checkpoint at a path, whose structure has not been checked yet where it is one of ours.

    Raises `CheckpointNotFoundError`, `NotACheckpointError`, `CorruptionError`, `FormatVersionError`, `LimitError`,
    `UnsupportedTypeError` and `StorageError`.
    """
    storage = LocalStorage()
    try:
        file = storage.open(path)
    except NotACheckpointError:
        if not Path(path).is_dir():
            raise
        from pytreeckpt.interop.contents import folder_content

        return Checkpoint(folder_content(path, current_limits()), path)
    try:
        return Checkpoint(_content_of(file, siblings_of(storage, path)), path)
    except BaseException:
        file.close()
        raise


def open_own(storage: Storage, path: str) -> Checkpoint:
    """The checkpoint of ours at a path of any storage, with its data files; its structure has not been checked yet.

    Raises as `open_path`; `NotACheckpointError` for a foreign file.
    """
    source = storage.open(path)
    try:
        return Checkpoint(own_content(source, current_limits(), siblings_of(storage, path)), path)
    except BaseException:
        close([source])
        raise


def siblings_of(storage: Storage, path: str) -> Siblings:
    """Opens data files of the checkpoint at a path. Their names are made of roots (C-1), and never of what else a file
    says.
    """
    folder = Path(path).parent / DATA_FOLDER
    return lambda name: storage.open(str(folder / name))


def _content_of(file: LocalFile, siblings: Siblings) -> Content:
    try:
        return own_content(file, current_limits(), siblings)
    except NotACheckpointError:
        # Foreign formats are imported for those who have foreign files.
        from pytreeckpt.interop.contents import foreign_content

        return foreign_content(file, current_limits())
