"""The checkpoint formats that are measured, each doing what its documentation has its users do.

A candidate gets its state from `prepare`, untimed: the same numbers as the arrays, and in the structure, that its users
hold. Where its API wants a flat dict, flattening is not counted against it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import OURS, OURS_MAPPED, OURS_RAW
from benchmarks.states import BFLOAT16, Tree, flatten, map_leaves


def sync_to_disk(path: Path) -> None:
    """Have everything that a save wrote on the disk: each file, each directory, and the entry in the parent."""
    written = [path, *path.rglob("*")] if path.is_dir() else [path]
    for name in [*written, path.parent]:
        descriptor = os.open(name, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a checkpoint, be it a file, a folder or absent."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def stored_nbytes(path: Path) -> int:
    """The size of all files of a checkpoint."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


@dataclass(frozen=True, slots=True)
class Candidate:
    """A format.

    `save(state, path)` need not reach the disk; `save_durable(state, path)` must. `restore(path, state)` makes a new
    state; the one given tells structure, shapes and dtypes to whoever needs them. `restore_into(path, state)` fills
    `state` and returns it. `read_rows(path, start, stop)` gives rows of the array "w", and what keeps the file mapped
    if it maps it. `notes` says what it does less than others.
    """

    name: str
    distribution: str
    modules: tuple[str, ...]
    notes: str
    prepare: Callable[[Tree], Any]
    save: Callable[[Any, Path], object]
    save_durable: Callable[[Any, Path], object]
    restore: Callable[[Path, Any], Any]
    restore_into: Callable[[Path, Any], Any] | None = None
    read_rows: Callable[[Path, int, int], tuple[Any, object]] | None = None


def is_installed(modules: tuple[str, ...]) -> bool:
    """Whether all of these can be imported, without importing them."""
    return all(importlib.util.find_spec(module.partition(".")[0]) for module in modules)


def version(distribution: str) -> str:
    """The installed version."""
    return importlib.metadata.version(distribution)


def _then_sync(save: Callable[[Any, Path], object]) -> Callable[[Any, Path], object]:
    def save_durable(state: Any, path: Path) -> None:
        save(state, path)
        sync_to_disk(path)

    return save_durable


# The same numbers as other kinds of arrays


def _to_torch(array: np.ndarray) -> Any:
    import torch

    # Without a copy: numpy and torch candidates then share their state's memory.
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _as_torch(tree: Tree) -> Any:
    return map_leaves(_to_torch, tree)


def _as_flat_torch(tree: Tree) -> Any:
    return flatten(_as_torch(tree))


def _as_jax(tree: Tree) -> Any:
    import jax.numpy as jnp

    return map_leaves(jnp.asarray, tree)


def _same(tree: Tree) -> Tree:
    return tree


# pytreeckpt


def _pytreeckpt(name: str, compression: Any, notes: str, *, mmap: bool = False) -> Candidate:
    def save(state: Any, path: Path) -> None:
        import pytreeckpt as ptc

        ptc.save(state, path, compression=compression, durability="atomic")

    def save_durable(state: Any, path: Path) -> None:
        import pytreeckpt as ptc

        ptc.save(state, path, compression=compression, durability="durable")

    def restore(path: Path, _state: Any) -> Any:
        import pytreeckpt as ptc

        return ptc.restore(path, mmap=mmap)

    def restore_into(path: Path, state: Any) -> Any:
        import pytreeckpt as ptc

        return ptc.restore(path, like=state)

    def read_rows(path: Path, start: int, stop: int) -> tuple[Any, object]:
        import pytreeckpt as ptc

        with ptc.open(path) as checkpoint:
            return checkpoint["w"][start:stop], None

    # What is mapped has memory of its own only where it is written to.
    into = None if mmap else restore_into
    return Candidate(name, "pytreeckpt", ("pytreeckpt",), notes, _same, save, save_durable, restore, into, read_rows)


# safetensors


def _safetensors(
    name: str, module: str, prepare: Callable[[Tree], Any], copy: Callable[[Any, Any], object]
) -> Candidate:
    """`module`: safetensors' own for a framework, "numpy" or "torch", whose `copy(target, values)` fills an array."""
    framework = {"numpy": "numpy", "torch": "pt"}[module]

    def functions() -> Any:
        return importlib.import_module(f"safetensors.{module}")

    def opened(path: Path) -> Any:
        from safetensors import safe_open

        return safe_open(path, framework=framework)

    def save(state: Any, path: Path) -> None:
        functions().save_file(state, path)

    def restore(path: Path, _state: Any) -> Any:
        return functions().load_file(path)

    def restore_into(path: Path, state: Any) -> Any:
        with opened(path) as file:
            for key, target in state.items():
                copy(target, file.get_tensor(key))
        return state

    def read_rows(path: Path, start: int, stop: int) -> tuple[Any, object]:
        file = opened(path)
        return file.get_slice("w")[start:stop], file

    modules = ("safetensors",) if module == "numpy" else ("safetensors", module)
    notes = f"{module}; no digest; flat names only"
    durable = _then_sync(save)
    return Candidate(name, "safetensors", modules, notes, prepare, save, durable, restore, restore_into, read_rows)


# torch


def _torch_save(state: Any, path: Path) -> None:
    import torch

    torch.save(state, path)


def _torch_restore(path: Path, _state: Any) -> Any:
    import torch

    return torch.load(path, weights_only=True)


def _torch_restore_into(path: Path, state: Any) -> Any:
    _copy_tensors(state, _torch_restore(path, state))
    return state


def _copy_tensors(target: Any, source: Any) -> None:
    # What load_state_dict of a module does.
    for name, value in target.items():
        if isinstance(value, dict):
            _copy_tensors(value, source[name])
        else:
            value.copy_(source[name])


def _torch_rows(path: Path, start: int, stop: int) -> tuple[Any, object]:
    import torch

    mapped = torch.load(path, weights_only=True, mmap=True)["w"]
    return mapped[start:stop].clone(), mapped


def _dcp_save(*, sync_files: bool) -> Callable[[Any, Path], object]:
    def save(state: Any, path: Path) -> None:
        import torch.distributed.checkpoint as dcp

        with warnings.catch_warnings():
            # One process is how it is measured.
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            dcp.save(state, storage_writer=dcp.FileSystemWriter(path, sync_files=sync_files), no_dist=True)

    return save


def _dcp_restore(path: Path, state: Any) -> Any:
    import torch

    return _dcp_restore_into(path, {name: torch.empty_like(tensor) for name, tensor in state.items()})


def _dcp_restore_into(path: Path, state: Any) -> Any:
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        dcp.load(state, checkpoint_id=path, no_dist=True)
    return state


# JAX


def _orbax_save(state: Any, path: Path) -> None:
    from orbax.checkpoint import v1 as orbax

    orbax.save(path.absolute(), state)


def _orbax_restore(path: Path, _state: Any) -> Any:
    from orbax.checkpoint import v1 as orbax

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sharding info not provided")
        return orbax.load(path.absolute())


def _flax_save(state: Any, path: Path) -> None:
    from flax.serialization import msgpack_serialize

    path.write_bytes(msgpack_serialize(state))


def _flax_restore(path: Path, _state: Any) -> Any:
    from flax.serialization import msgpack_restore

    return msgpack_restore(path.read_bytes())


# numpy


def _as_savez(tree: Tree) -> Any:
    return {name: array.view(np.uint16) if array.dtype == BFLOAT16 else array for name, array in flatten(tree).items()}


def _savez_save(state: Any, path: Path) -> None:
    # A file object, so that no suffix is added to the name.
    with path.open("wb") as file:
        np.savez(file, **state)


def _savez_restore(path: Path, _state: Any) -> Any:
    with np.load(path) as arrays:
        return dict(arrays)


def _savez_restore_into(path: Path, state: Any) -> Any:
    with np.load(path) as arrays:
        for name, array in state.items():
            np.copyto(array, arrays[name])
    return state


CANDIDATES: tuple[Candidate, ...] = (
    _pytreeckpt(OURS, "auto", "compressed; every byte verified when read; replaces atomically"),
    _pytreeckpt(OURS_RAW, "none", "every byte verified when read; replaces atomically"),
    _pytreeckpt(
        OURS_MAPPED, "none", "as the one before; the file is mapped, copied on write; nothing in place", mmap=True
    ),
    _safetensors("safetensors", "numpy", flatten, np.copyto),
    _safetensors("safetensors torch", "torch", _as_flat_torch, lambda tensor, values: tensor.copy_(values)),
    Candidate(
        "torch.save",
        "torch",
        ("torch",),
        "weights_only=True; no digest checked; not atomic; in place: loads, then copies",
        _as_torch,
        _torch_save,
        _then_sync(_torch_save),
        _torch_restore,
        _torch_restore_into,
        _torch_rows,
    ),
    Candidate(
        "torch DCP",
        "torch",
        ("torch",),
        "one process; no digest; reading needs a template",
        _as_flat_torch,
        _dcp_save(sync_files=False),
        _then_sync(_dcp_save(sync_files=True)),
        _dcp_restore,
        _dcp_restore_into,
    ),
    Candidate(
        "Orbax",
        "orbax-checkpoint",
        ("orbax.checkpoint", "jax"),
        "jax.Array; compressed with zstd; damage goes unnoticed; nothing in place",
        _as_jax,
        _orbax_save,
        _then_sync(_orbax_save),
        _orbax_restore,
    ),
    Candidate(
        "flax msgpack",
        "flax",
        ("flax", "jax"),
        "jax.Array, restored as read-only numpy; no digest; not atomic; nothing in place",
        _as_jax,
        _flax_save,
        _then_sync(_flax_save),
        _flax_restore,
    ),
    Candidate(
        "np.savez",
        "numpy",
        ("numpy",),
        "CRC-32 checked; not atomic; flat names only; bfloat16 as uint16",
        _as_savez,
        _savez_save,
        _then_sync(_savez_save),
        _savez_restore,
        _savez_restore_into,
    ),
)
