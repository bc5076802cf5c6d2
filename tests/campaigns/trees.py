"""The trees that the campaigns save."""

from __future__ import annotations

from typing import Any

import numpy as np


def tree(seed: int) -> dict[str, Any]:
    """Raw, constant, compressed and inline arrays, and plain values: each kind of thing that a file has."""
    rng = np.random.default_rng(seed)
    return {
        "step": seed,
        "note": f"tree {seed}",
        "params": {
            "w": rng.integers(0, 256, (11, 50), dtype=np.uint8),
            "ramp": np.arange(300, dtype=np.int32) + seed,
            "b": rng.standard_normal(5).astype(np.float32),
        },
        "moments": [np.zeros(1000), np.full(70, np.float64(seed))],
    }


def large_tree(seed: int) -> dict[str, Any]:
    """Several chunks, so that there is progress to report and work for threads; cheap to make."""
    words = np.arange(5 << 17, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15 + 2 * seed)
    return {
        "step": seed,
        "w": words ^ (words >> np.uint64(29)),
        "x": np.full(3 << 18, np.float32(seed)),
        "ramp": np.arange(1 << 20, dtype=np.int32) + seed,
    }
