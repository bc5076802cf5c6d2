"""How fast checkpoints are averaged, and in how much memory: `python -m benchmarks.averaging [--mib 256] [--files 10]`.

`pytreeckpt.average` of so many files, of our format and of safetensors, beside what people write by hand: restore all
with `safetensors` or `torch.load`, and take the mean in float64, or, as most do, in the dtype itself. Each figure is of
a process of its own that has averaged small files first; peak memory is beyond what the process then had. Speed is in
bytes of all inputs in memory, and the result of each is saved and synced. Rounds are interleaved; medians.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

import pytreeckpt as ptc
from benchmarks.children import run_worker
from benchmarks.memory import PeakMemory
from benchmarks.states import fill_gaussian

MIB = 1 << 20
N_TENSORS = 24


def by_us(paths: list[Path], out: Path) -> None:
    ptc.average(paths, out)


def by_hand(load: Callable[[Path], Any], dtype: torch.dtype | None) -> Callable[[list[Path], Path], None]:
    """All in memory, as in scripts for model soups; `dtype`: what is added up in, or None for the tensors' own."""

    def average(paths: list[Path], out: Path) -> None:
        states = [load(path) for path in paths]
        mean = {}
        for name, first in states[0].items():
            total = torch.zeros_like(first, dtype=dtype or first.dtype)
            for state in states:
                total += state[name]
            mean[name] = (total / len(states)).to(first.dtype)
        safetensors.torch.save_file(mean, out)
        with out.open("rb") as file:
            os.fsync(file.fileno())

    return average


CANDIDATES: dict[str, tuple[str, Callable[[list[Path], Path], None]]] = {
    "pytreeckpt.average, of .ptck": ("ptck", by_us),
    "pytreeckpt.average, of safetensors": ("safetensors", by_us),
    "torch.load, float64": ("pt", by_hand(lambda path: torch.load(path, weights_only=True), torch.float64)),
    "safetensors, float64": ("safetensors", by_hand(safetensors.torch.load_file, torch.float64)),
    "safetensors, in their dtype": ("safetensors", by_hand(safetensors.torch.load_file, None)),
}


def write(folder: Path, name: str, dtype: str, nbytes: int, files: int) -> None:
    """The same weights in each of the formats."""
    for number in range(files):
        random = np.random.default_rng(number)
        state = {}
        for place in range(N_TENSORS):
            items: Any = np.empty((nbytes // N_TENSORS // (2 if dtype == "bfloat16" else 4) // 64, 64), np.float32)
            state[f"layers.{place}.weight"] = torch.from_numpy(fill_gaussian(items, random)).to(getattr(torch, dtype))
        ptc.save(state, folder / f"{name}-{number}.ptck", durability="atomic")
        safetensors.torch.save_file(state, folder / f"{name}-{number}.safetensors")
        torch.save(state, folder / f"{name}-{number}.pt")


def measure(candidate: str, folder: Path, files: int) -> dict[str, float]:
    suffix, function = CANDIDATES[candidate]

    def averaged(name: str) -> None:
        out = folder / f"out.{suffix if function is not by_us else 'ptck'}"
        function([folder / f"{name}-{number}.{suffix}" for number in range(files)], out)
        out.unlink()

    averaged("small")
    gc.collect()
    with PeakMemory() as peak:
        begin = time.perf_counter()
        averaged("large")
        elapsed = time.perf_counter() - begin
    return {"elapsed_s": elapsed, "peak_nbytes": peak.nbytes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=256, help="of each file")
    parser.add_argument("--files", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", nargs=3, metavar=("CANDIDATE", "FOLDER", "FILES"))
    options = parser.parse_args()
    if options.worker:
        name, folder, files = options.worker
        print(json.dumps(measure(name, Path(folder), int(files))))
        return
    total = options.mib * MIB * options.files
    print(f"{options.files} files of {options.mib} MiB")
    for dtype in ("float32", "bfloat16"):
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), "small", dtype, MIB, options.files)
            write(Path(folder), "large", dtype, options.mib * MIB, options.files)
            found: dict[str, list[dict[str, float]]] = {name: [] for name in CANDIDATES}
            for _ in range(options.rounds):
                for name in CANDIDATES:
                    found[name].append(run_worker("benchmarks.averaging", name, folder, options.files))
        print(dtype)
        for name, rounds in found.items():
            elapsed = statistics.median(each["elapsed_s"] for each in rounds)
            peak = statistics.median(each["peak_nbytes"] for each in rounds)
            print(f"  {name:36} {total / elapsed / 1e9:5.2f} GB/s   {peak / MIB:7.0f} MiB at most")


if __name__ == "__main__":
    main()
