"""Folders of a state dict in several files of torch, as transformers wrote them before safetensors.

`pytorch_model.bin.index.json` names the file of each tensor in its `weight_map` (transformers, modeling_utils.py,
`shard_checkpoint`); each file is one of `torch.save`, a flat dict of tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pytreeckpt.errors import CorruptionError
from pytreeckpt.interop.foreign import Check, Folder, ForeignTree
from pytreeckpt.interop.safetensors import names_by_shard, read_index
from pytreeckpt.interop.torch_files import read_torch
from pytreeckpt.reading import RangedSource

INDEX_SUFFIX: Final = ".bin.index.json"


def shards_index(names: Sequence[str]) -> str | None:
    """The index that stands directly in a folder with these names, if there is one. Raises `CorruptionError` if there
    are several to choose from.
    """
    found = [name for name in names if name.endswith(INDEX_SUFFIX) and "/" not in name]
    if len(found) > 1:
        raise _corrupt(f"the folder has {', '.join(found[:5])}; open one of them")
    return found[0] if found else None


def read_torch_shards(folder: Folder, index: str | None = None) -> ForeignTree:
    """All files that an index names, as one flat dict in the order of the index. `index` is found if not given.

    Raises `CorruptionError`, also where the index and the files do not name the same tensors,
    `CheckpointNotFoundError` for a file that is not there, `UnsupportedTypeError` and `LimitError`.
    """
    index = shards_index(folder.names()) if index is None else index
    if index is None:
        raise _corrupt(f"the folder has no index {INDEX_SUFFIX} in it")
    document = folder.open(index)
    weight_map, metadata = read_index(document, index)
    sources: list[RangedSource] = [document]
    checks: list[Check] = []
    notes: list[str] = []
    shards: dict[str, Mapping[object, object]] = {}
    for shard, names in names_by_shard(weight_map).items():
        sources.append(folder.open(shard))
        found = read_torch(sources[-1])
        if not isinstance(found.tree, dict) or found.tree.keys() != names:
            raise _corrupt(f"the shard {shard[:80]!r} does not have the tensors that {index} says it has")
        shards[shard] = found.tree
        checks += [Check(f"{shard}, {check.name}", check.source, check.crc32) for check in found.checks]
        notes += [f"{shard}: {note}" for note in found.notes]
    tree = {name: shards[shard][name] for name, shard in weight_map.items()}
    return ForeignTree("sharded torch", tree, metadata, tuple(notes), tuple(checks), tuple(sources))


def _corrupt(message: str) -> CorruptionError:
    return CorruptionError(message, rule="torch")
