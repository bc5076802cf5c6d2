"""Safetensors files and sharded folders, byte for byte those of the `safetensors` package for a flat dict.

The format holds a flat dict of arrays, so a tree is flattened to names. Arrays that are one in the tree are written
once, under the first of their names in the order of texts, and the metadata says of each other name which one it is:
what `safetensors.torch.save_model` does, and `load_model` expects.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pytreeckpt.commit import Durability, IfExists
from pytreeckpt.errors import CheckpointExistsError, LimitError, PytreeckptError, UnsupportedTypeError
from pytreeckpt.geometry import Shape
from pytreeckpt.interop.json_documents import is_text
from pytreeckpt.interop.naming import NamedArray, Names, named_arrays, shared_names
from pytreeckpt.interop.outgoing import c_order_pieces, outgoing
from pytreeckpt.interop.safetensors import (
    BITS,
    DTYPES,
    F4_NAME,
    FILE_SUFFIX,
    INDEX_SUFFIX,
    MAX_HEADER_NBYTES,
    METADATA,
    read_index,
)
from pytreeckpt.interop.writing import PlannedFile, StrPath, WriteReport, check_options, publish_files
from pytreeckpt.storage import LocalStorage, Storage
from pytreeckpt.wire import Buffer

_NAME_OF: Final = {dtype: name for name, dtype in DTYPES.items()}
_RANKS: Final = {name: rank for rank, name in enumerate(BITS)}


@dataclass(frozen=True, slots=True)
class _Tensor:
    """An array as the format has it."""

    named: NamedArray
    dtype: str
    shape: Shape

    @property
    def nbytes(self) -> int:
        """Bytes of its items."""
        return math.prod(self.shape) * BITS[self.dtype] // 8


def write_safetensors(
    tree: object,
    path: StrPath,
    *,
    metadata: Mapping[str, str] | None = None,
    max_shard_nbytes: int | None = None,
    separator: str = ".",
    names: Names | None = None,
    drop_other: bool = False,
    if_exists: IfExists = "replace",
    durability: Durability = "durable",
) -> WriteReport:
    """Write the arrays of a tree to a safetensors file, or to several and an index.

    `tree`: what `save` takes, and references to arrays of open checkpoints. Nested containers become names joined by
    `separator`; `names`, a function of the path of an array, gives them instead. numpy scalars become arrays of rank 0,
    big-endian ones little-endian. `metadata`: texts by texts.
    `max_shard_nbytes`: beyond so many bytes of arrays, they are written to `stem-00001-of-00002.safetensors` and so on,
    and `stem.safetensors.index.json`, last, names them all. Files that exist are not touched by the new shards, which
    take other names; the report lists those that are not needed any more.
    `drop_other`: leave out what is no array, instead of refusing it. `if_exists`, `durability`: as in `save`.
    Raises `UnsupportedTypeError` for what the format cannot hold, before anything is written, `LimitError`,
    `CheckpointExistsError`, and `StorageError`.
    """
    check_options(if_exists, durability)
    arrays = named_arrays(outgoing(tree), separator=separator, names=names, drop_other=drop_other)
    storage = LocalStorage()
    plan = plan_safetensors(
        storage, os.fsdecode(path), arrays, metadata=metadata, max_shard_nbytes=max_shard_nbytes, if_exists=if_exists
    )
    nbytes = publish_files(storage, plan.files, if_exists=if_exists, durability=durability)
    return WriteReport(tuple(file.path for file in plan.files), nbytes, plan.shared, plan.superseded)


@dataclass(frozen=True, slots=True)
class SafetensorsPlan:
    """The files to be written, in order; `shared` and `superseded` as in the report."""

    files: Sequence[PlannedFile]
    shared: tuple[tuple[str, str], ...]
    superseded: tuple[str, ...]


def plan_safetensors(
    storage: Storage,
    path: str,
    arrays: Sequence[NamedArray],
    *,
    metadata: Mapping[str, str] | None = None,
    max_shard_nbytes: int | None = None,
    if_exists: IfExists = "replace",
) -> SafetensorsPlan:
    """The files that hold these arrays. `storage` is only asked what is there."""
    if max_shard_nbytes is not None and max_shard_nbytes < 1:
        raise ValueError(f"max_shard_nbytes={max_shard_nbytes}: it is a number of bytes, at least 1")
    shared = shared_names(arrays)
    tensors = _tensors([named for named in arrays if named.name not in shared])
    texts = _metadata(metadata, shared, tensors)
    shards = _shards(tensors, max_shard_nbytes)
    old = _old_files(storage, path)
    if len(shards) == 1:
        files = [_file(path, shards[0], texts)]
    else:
        files = _sharded(storage, path, shards, texts, if_exists=if_exists)
    new = {file.path for file in files}
    return SafetensorsPlan(files, tuple(shared.items()), tuple(each for each in old if each not in new))


def _tensors(arrays: Sequence[NamedArray]) -> list[_Tensor]:
    refused: list[str] = []
    found: list[_Tensor] = []
    for named in arrays:
        shape = named.array.shape
        dtype = _NAME_OF.get(named.array.dtype.newbyteorder("<")) if named.packed is None else None
        if named.packed == F4_NAME and shape:
            dtype, shape = "F4", (*shape[:-1], 2 * shape[-1])
        if not is_text(named.name) or named.name == METADATA:
            raise UnsupportedTypeError(f"{named.name!r} cannot be the name of a tensor in a safetensors file")
        if dtype is None:
            refused.append(f"{named.name}: {named.packed or named.array.dtype}")
        else:
            found.append(_Tensor(named, dtype, shape))
    if refused:
        raise UnsupportedTypeError(
            f"{len(refused)} arrays have a dtype that safetensors does not have ({', '.join(DTYPES)}, F4); convert "
            "them:\n  " + "\n  ".join(refused[:20])
        )
    return found


def _metadata(
    metadata: Mapping[str, str] | None, shared: Mapping[str, str], tensors: Sequence[_Tensor]
) -> dict[str, str] | None:
    if metadata is None and not shared:
        return None
    # What the caller says of a name stands.
    found = dict(shared) | dict(metadata or {})
    if not all(is_text(key) and is_text(value) for key, value in found.items()):
        raise TypeError("the metadata of a safetensors file are texts by texts")
    return dict(sorted(found.items())) if tensors or found else None


def _file(path: str, tensors: Sequence[_Tensor], metadata: Mapping[str, str] | None) -> PlannedFile:
    ordered = sorted(tensors, key=lambda tensor: (-_RANKS[tensor.dtype], tensor.named.name))
    document: dict[str, object] = {} if metadata is None else {METADATA: metadata}
    at = 0
    for tensor in ordered:
        stop = at + tensor.nbytes
        document[tensor.named.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [at, stop],
        }
        at = stop
    header = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > MAX_HEADER_NBYTES:
        raise LimitError(
            f"the header of {path} would have {len(header)} bytes, and readers take at most {MAX_HEADER_NBYTES}: the "
            "tree has too many or too long names; give a smaller max_shard_nbytes"
        )

    def pieces() -> Iterator[Buffer]:
        yield len(header).to_bytes(8, "little") + header
        for tensor in ordered:
            yield from c_order_pieces(tensor.named.array, little_endian=True)

    return PlannedFile(path, pieces)


# Shards.


def _shards(tensors: Sequence[_Tensor], max_nbytes: int | None) -> list[list[_Tensor]]:
    """The tensors in their order, in groups of at most so many bytes; one that is larger is a group of its own."""
    shards: list[list[_Tensor]] = [[]]
    nbytes = 0
    for tensor in tensors:
        if max_nbytes is not None and shards[-1] and nbytes + tensor.nbytes > max_nbytes:
            shards.append([])
            nbytes = 0
        shards[-1].append(tensor)
        nbytes += tensor.nbytes
    return shards


def _sharded(
    storage: Storage,
    path: str,
    shards: Sequence[Sequence[_Tensor]],
    metadata: Mapping[str, str] | None,
    *,
    if_exists: IfExists,
) -> list[PlannedFile]:
    stem = path.removesuffix(FILE_SUFFIX)
    if storage.exists(path):
        raise CheckpointExistsError(
            f"{path} exists, and would be loaded in place of the shards that were to be written beside it; remove it, "
            "or choose another path"
        )
    paths = _shard_paths(storage, stem, len(shards), if_exists=if_exists)
    files = [_file(path, shard, metadata) for path, shard in zip(paths, shards, strict=True)]
    weight_map = {
        tensor.named.name: _file_name(path) for path, shard in zip(paths, shards, strict=True) for tensor in shard
    }
    total = sum(tensor.nbytes for shard in shards for tensor in shard)
    document = {"metadata": {"total_size": total}, "weight_map": weight_map}
    text = (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
    return [*files, PlannedFile(stem + INDEX_SUFFIX, lambda: [text])]


def _shard_paths(storage: Storage, stem: str, count: int, *, if_exists: IfExists) -> list[str]:
    """Names of shards that nothing has: what the index of an earlier write names must stay until the new one stands."""
    generation = 1
    while True:
        begin = stem if generation == 1 else f"{stem}-{generation}"
        paths = [f"{begin}-{number:05d}-of-{count:05d}{FILE_SUFFIX}" for number in range(1, count + 1)]
        if if_exists == "error" or not any(map(storage.exists, paths)):
            return paths
        generation += 1


def _old_files(storage: Storage, path: str) -> list[str]:
    """The index that stands beside `path` and its shards, as far as they are there."""
    index = path.removesuffix(FILE_SUFFIX) + INDEX_SUFFIX
    if not storage.exists(index):
        return []
    folder = index.removesuffix(_file_name(index))
    try:
        shards = set(read_index(storage.open(index), index)[0].values())
    except PytreeckptError:
        # Not one of ours, or damaged: what it means is not ours to say.
        return [index]
    names = sorted(shard for shard in shards if shard == _file_name(shard))
    return [index, *filter(storage.exists, (folder + name for name in names))]


def _file_name(path: str) -> str:
    return path[path.rfind("/") + 1 :]
