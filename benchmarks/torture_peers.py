"""Checkpoint formats, each as its documentation says to save a tree and to restore it without a template."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Types = Sequence[type]


def numpy_array(*shape: int, values: np.ndarray | None = None) -> np.ndarray:
    """The numbers 0, 1, 2 … as float32, or the values."""
    return np.arange(math.prod(shape), dtype=np.float32).reshape(shape) if values is None else values


def torch_array(*shape: int, values: np.ndarray | None = None) -> Any:
    """The same as a torch tensor."""
    import torch

    return torch.from_numpy(numpy_array(*shape, values=values))


@dataclass(frozen=True, slots=True)
class Peer:
    """A format.

    `save(tree, path)` writes to `path`, replacing what is there; `restore(path, types)` may trust `types`, if it can be
    told to; `array(*shape)` or `array(values=…)` makes arrays of the kind that it is for.
    """

    name: str
    distribution: str
    modules: tuple[str, ...]
    save: Callable[[Any, Path], object]
    restore: Callable[[Path, Types], Any]
    array: Callable[..., Any] = numpy_array

    @property
    def version(self) -> str | None:
        """The installed version, or None."""
        if not all(importlib.util.find_spec(module.partition(".")[0]) for module in self.modules):
            return None
        return importlib.metadata.version(self.distribution)


def _pytreeckpt_save(tree: Any, path: Path) -> None:
    import pytreeckpt

    pytreeckpt.save(tree, path)


def _pytreeckpt_restore(path: Path, types: Types) -> Any:
    import pytreeckpt

    return pytreeckpt.restore(path, types=types)


def _safetensors(tree: Any) -> Any:
    # It has a module for each framework.
    first = next(iter(tree.values()), None)
    if "torch" in sys.modules and isinstance(first, sys.modules["torch"].Tensor):
        import safetensors.torch

        return safetensors.torch
    if "jax" in sys.modules and isinstance(first, sys.modules["jax"].Array):
        import safetensors.flax

        return safetensors.flax
    import safetensors.numpy

    return safetensors.numpy


_saved_with: dict[Path, Any] = {}


def _safetensors_save(tree: Any, path: Path) -> None:
    module = _saved_with[path] = _safetensors(tree)
    module.save_file(tree, path)


def _safetensors_restore(path: Path, _types: Types) -> Any:
    module = _saved_with.get(path) or _safetensors({})
    return module.load_file(path)


def _orbax_save(tree: Any, path: Path) -> None:
    from orbax.checkpoint import v1 as orbax

    orbax.save(path, tree, overwrite=True)


def _orbax_restore(path: Path, _types: Types) -> Any:
    from orbax.checkpoint import v1 as orbax

    return orbax.load(path)


def _flax_save(tree: Any, path: Path) -> None:
    from flax import serialization

    path.write_bytes(serialization.to_bytes(tree))


def _flax_restore(path: Path, _types: Types) -> Any:
    from flax import serialization

    return serialization.msgpack_restore(path.read_bytes())


def _torch_save(tree: Any, path: Path) -> None:
    import torch

    torch.save(tree, path)


def _torch_restore(path: Path, types: Types) -> Any:
    import torch

    with torch.serialization.safe_globals(list(types)):
        return torch.load(path)


def _torch_restore_trusting(path: Path, _types: Types) -> Any:
    import torch

    return torch.load(path, weights_only=False)


def _savez_save(tree: Any, path: Path) -> None:
    np.savez(path, **tree)


def _savez_restore(path: Path, _types: Types) -> Any:
    # savez adds the suffix where the name has none.
    with np.load(path if path.exists() else path.with_name(path.name + ".npz")) as arrays:
        return dict(arrays)


PEERS: tuple[Peer, ...] = (
    Peer("pytreeckpt", "pytreeckpt", ("pytreeckpt",), _pytreeckpt_save, _pytreeckpt_restore),
    Peer("safetensors", "safetensors", ("safetensors",), _safetensors_save, _safetensors_restore),
    Peer("Orbax", "orbax-checkpoint", ("orbax.checkpoint", "jax"), _orbax_save, _orbax_restore),
    Peer("flax msgpack", "flax", ("flax", "jax"), _flax_save, _flax_restore),
    Peer("torch.save", "torch", ("torch",), _torch_save, _torch_restore, torch_array),
    Peer("torch, pickle", "torch", ("torch",), _torch_save, _torch_restore_trusting, torch_array),
    Peer("np.savez", "numpy", ("numpy",), _savez_save, _savez_restore),
)
