"""One tree in the files of each format."""

import json
import pickle
from pathlib import Path

import flax.serialization
import numpy as np
import orbax.checkpoint
import safetensors.numpy
import torch
import torch.distributed.checkpoint

TREE = {
    "w": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.arange(5, dtype=np.int64),
    "n": np.array(7, np.int32),
    "big": np.random.default_rng(0).standard_normal((40, 50)),
}
"""Flat, and with arrays only: what all of them can hold."""


def as_numpy(tree):
    """The tree in the order of its keys, which formats do not all keep."""
    assert type(tree) is dict
    return {name: tree[name] for name in TREE}


def _tensors():
    return {name: torch.from_numpy(array.copy()) for name, array in TREE.items()}


def _sharded(path: Path) -> None:
    path.mkdir()
    shards = {"model-00001-of-00002.safetensors": ["w", "b"], "model-00002-of-00002.safetensors": ["n", "big"]}
    for shard, names in shards.items():
        safetensors.numpy.save_file({name: TREE[name] for name in names}, path / shard)
    weight_map = {name: shard for shard, names in shards.items() for name in names}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def _torch_shards(path: Path) -> None:
    path.mkdir()
    shards = {"pytorch_model-00001-of-00002.bin": ["w", "b"], "pytorch_model-00002-of-00002.bin": ["n", "big"]}
    for shard, names in shards.items():
        torch.save({name: _tensors()[name] for name in names}, path / shard)
    weight_map = {name: shard for shard, names in shards.items() for name in names}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (path / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def _orbax(path: Path) -> None:
    with orbax.checkpoint.Checkpointer(orbax.checkpoint.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(path.absolute(), TREE)


def _npz(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, **TREE)


FILES = {
    "torch zip": lambda path: torch.save(_tensors(), path),
    "torch legacy": lambda path: torch.save(_tensors(), path, _use_new_zipfile_serialization=False),
    "safetensors": lambda path: safetensors.numpy.save_file(TREE, path),
    "npz": _npz,
    "flax msgpack": lambda path: path.write_bytes(flax.serialization.msgpack_serialize(dict(TREE))),
    "pickle": lambda path: path.write_bytes(pickle.dumps(TREE)),
}
"""Write the tree to a file, by the name of its format."""
FOLDERS = {
    "sharded safetensors": _sharded,
    "sharded torch": _torch_shards,
    "torch distributed": lambda path: torch.distributed.checkpoint.save(_tensors(), checkpoint_id=path, no_dist=True),
    "Orbax": _orbax,
}
"""Write the tree to a folder, by the name of its format."""
