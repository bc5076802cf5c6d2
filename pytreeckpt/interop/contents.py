"""From a foreign file or folder to the content of a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from pytreeckpt.collection import paused_collection
from pytreeckpt.content import Content
from pytreeckpt.interop.folders import LocalFolder
from pytreeckpt.interop.foreign import Folder, ForeignTree
from pytreeckpt.interop.foreign_index import index_of
from pytreeckpt.interop.foreign_reader import ForeignReader
from pytreeckpt.interop.formats import read_file, read_folder
from pytreeckpt.interop.safetensors import INDEX_SUFFIX, read_safetensors_folder
from pytreeckpt.interop.torch_shards import INDEX_SUFFIX as TORCH_INDEX_SUFFIX
from pytreeckpt.interop.torch_shards import read_torch_shards
from pytreeckpt.leaf_paths import Paths
from pytreeckpt.limits import Limits
from pytreeckpt.reading import RangedSource
from pytreeckpt.storage import LocalFile

# The names of indexes of shards, and who reads these.
_INDEXES: Final[Mapping[str, Callable[[Folder, str], ForeignTree]]] = {
    INDEX_SUFFIX: read_safetensors_folder,
    TORCH_INDEX_SUFFIX: read_torch_shards,
}


def foreign_content(source: RangedSource, limits: Limits) -> Content:
    """The content of a file that is not ours; `source` is closed with it.

    Raises `NotACheckpointError` for what is of no format that is known, `CorruptionError`, `LimitError`,
    `UnsupportedTypeError`.
    """
    if isinstance(source, LocalFile) and source.path.endswith(tuple(_INDEXES)):
        # The index of shards that lie beside it.
        directory, name = os.path.split(source.path)
        source.close()
        return _folder_content(LocalFolder(directory or os.curdir), limits, index=name)
    with paused_collection():
        tree = read_file(source)
        return _content(tree, limits, source.nbytes, (source, *tree.sources))


def folder_content(path: str, limits: Limits) -> Content:
    """The content of a folder. Raises as `foreign_content`, and `CheckpointNotFoundError` for a file that is missing in
    it.
    """
    return _folder_content(LocalFolder(path), limits, index=None)


def _folder_content(folder: LocalFolder, limits: Limits, *, index: str | None) -> Content:
    try:
        with paused_collection():
            if index is None:
                tree = read_folder(folder, folder.near())
                folder.names()
                nbytes = folder.nbytes
            else:
                tree = next(read for suffix, read in _INDEXES.items() if index.endswith(suffix))(folder, index)
                nbytes = sum(file.nbytes for file in folder.opened)
            return _content(tree, limits, nbytes, (*folder.opened, *tree.sources))
    except BaseException:
        folder.close()
        raise


def _content(tree: ForeignTree, limits: Limits, nbytes: int, sources: Sequence[RangedSource]) -> Content:
    index, arrays = index_of(tree, limits)
    checks = {id(check.source): check for check in tree.checks}
    reader = ForeignReader(index, Paths(index), arrays, checks)
    return Content(tree.format, index, reader, nbytes, sources, None, tree.notes, len(checks))
