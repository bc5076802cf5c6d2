"""How long it takes to list the files of others: `python -m benchmarks.foreign_listing [--mib 1024] [--rounds 7]`.

A torch `.pt` of that size, of few and of many tensors, is opened and all its leaves are named, without their arrays;
beside it, torch itself with `mmap=True`, which makes all tensors. Rounds are interleaved; medians, and the ratio.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import pytreeckpt as ptc

MIB = 1 << 20


def listed_by_us(path: Path) -> int:
    with ptc.open(path) as checkpoint:
        return sum(1 for _ in checkpoint.leaves())


def loaded_by_torch(path: Path) -> int:
    return len(torch.load(path, mmap=True, weights_only=True))


def seconds(function: Callable[[Path], int], path: Path, expected: int) -> float:
    begin = time.perf_counter()
    assert function(path) == expected
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for n_tensors in (100, 300, 1000, 4000):
            path = Path(folder) / "model.pt"
            n_items = options.mib * MIB // 4 // n_tensors
            torch.save({f"layers.{number}.weight": torch.zeros(n_items) for number in range(n_tensors)}, path)
            ours: list[float] = []
            theirs: list[float] = []
            for _ in range(options.rounds):
                ours.append(seconds(listed_by_us, path, n_tensors))
                theirs.append(seconds(loaded_by_torch, path, n_tensors))
            a, b = statistics.median(ours), statistics.median(theirs)
            print(
                f"{n_tensors:5} tensors: listed in {1000 * a:7.1f} ms, "
                f"torch.load(mmap=True) {1000 * b:7.1f} ms, {a / b:.2f}×"
            )


if __name__ == "__main__":
    main()
