"""What incremental steps save and cost: `python -m benchmarks.incremental [--nbytes N] [--rounds R] [--at FOLDER]`.

First the size of ten steps of a fine-tuning in which 99 % of the weights are frozen, against one full copy and ten
times the 1 %. Then the time of a step by the part of the weights that changed since the last one, beside a plain save
of the same tree and safetensors (made durable too), and what of it is hashing. From about 50 % on, the old data file is
needed for less than half of it, and the rest is copied. Rounds are interleaved; medians of the time and of the
processors' time, which a busy machine changes less, and ratios to the plain save.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

import pytreeckpt as ptc
from benchmarks.candidates import sync_to_disk
from benchmarks.rounds import Job, in_rounds, timed
from benchmarks.states import Tree, fill_gaussian
from pytreeckpt.expand import make_expand
from pytreeckpt.flatten import flatten
from pytreeckpt.identities import identity
from pytreeckpt.incremental import IncrementalWritten, Known, write_incremental
from pytreeckpt.pipeline import default_threads, ordered_map
from pytreeckpt.planning import ChunkTask, SavePlan, batched, plan_save
from pytreeckpt.storage import LocalStorage
from pytreeckpt.streaming import read_task
from pytreeckpt.wire import xxh128

N_ARRAYS = 100
DTYPES = [np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)]
FRACTIONS = [0, 1, 10, 40, 50, 100]


def plan_of(tree: Tree) -> SavePlan:
    limits = ptc.current_limits()
    return plan_save(flatten(None, tree, expand=make_expand(), limits=limits), limits)


def step(path: Path, tree: Tree, known: Known) -> IncrementalWritten:
    return write_incremental(
        LocalStorage(),
        str(path),
        plan_of(tree),
        known=known,
        compression="auto",
        if_exists="replace",
        durability="durable",
    )


def weights(nbytes: int, dtype: np.dtype, seed: int) -> Tree:
    random = np.random.default_rng(seed)
    n_items = nbytes // N_ARRAYS // dtype.itemsize
    return {f"layers.{number}.weight": fill_gaussian(np.empty(n_items, dtype), random) for number in range(N_ARRAYS)}


def changed(tree: Tree, n_arrays: int, seed: int) -> Tree:
    """The tree with so many of its arrays anew."""
    random = np.random.default_rng(seed)
    names = list(tree)[:n_arrays]
    return tree | {name: fill_gaussian(np.empty_like(tree[name]), random) for name in names}


def folder_nbytes(folder: Path) -> int:
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())


def fine_tuning(folder: Path, nbytes: int, dtype: np.dtype) -> None:
    tree = weights(nbytes, dtype, 0)
    full_nbytes = ptc.save(tree, folder / "full.ptck").file_nbytes
    known = Known()
    for number in range(10):
        tree = changed(tree, 1, 1 + number)
        known = step(folder / f"run/{number}.ptck", tree, known).known
    got = folder_nbytes(folder / "run")
    print(
        f"{dtype.name}, ten steps of which 1 % is new: {got / full_nbytes:.3f} full copies of "
        f"{full_nbytes / 1e6:.0f} MB (the first step is one, and each of the nine others adds 0.010)"
    )


def save_durable(save: Callable[[], object], path: Path) -> None:
    save()
    sync_to_disk(path)


def both_times(function: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """The seconds that a call took, on the clock and of processors, and its result."""
    gc.collect()
    before = time.process_time()
    seconds, result = timed(function)
    return {"clock": seconds, "processors": time.process_time() - before}, result


def hash_all(plan: SavePlan) -> None:
    def hashed(tasks: Sequence[ChunkTask]) -> None:
        for task in tasks:
            raw = read_task(task)
            identity(raw)
            xxh128(raw)

    for _ in ordered_map(hashed, list(batched(plan.tasks)), threads=default_threads()):
        pass


def times(folder: Path, nbytes: int, dtype: np.dtype, rounds: int) -> None:
    before = weights(nbytes, dtype, 0)
    known = step(folder / "run/before.ptck", before, Known()).known
    trees = {percent: changed(before, percent * N_ARRAYS // 100, 1) for percent in FRACTIONS}

    def incremental(percent: int) -> dict[str, float]:
        path = folder / f"run/{percent}.ptck"
        seconds, written = both_times(partial(step, path, trees[percent], known))
        for file in {*written.files} - {*known.files}:
            (folder / "run/data" / file.name).unlink()
        path.unlink()
        return seconds

    def plain() -> dict[str, float]:
        path = folder / "plain.ptck"
        seconds, _ = both_times(partial(ptc.save, trees[100], path))
        path.unlink()
        return seconds

    def safetensors() -> dict[str, float]:
        path = folder / "plain.safetensors"
        seconds, _ = both_times(partial(save_durable, partial(save_file, trees[100], path), path))
        path.unlink()
        return seconds

    def hashing() -> dict[str, float]:
        plan = plan_of(trees[100])
        return both_times(partial(hash_all, plan))[0]

    jobs = [
        *(Job(f"incremental, {percent:3} % changed", partial(incremental, percent)) for percent in FRACTIONS),
        Job("plain save", plain),
        Job("safetensors, durable", safetensors),
        Job("hashing alone", hashing),
    ]
    measured = in_rounds(jobs, rounds)
    for name in [job.candidate for job in jobs]:
        line = f"{dtype.name}, {name:27}"
        for what in ("clock", "processors"):
            mine, base = (statistics.median(measured.values[each][what]) for each in (name, "plain save"))
            line += f"  {what} {1000 * mine:7.1f} ms {mine / base:5.2f}×"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nbytes", type=int, default=512 << 20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--at", type=Path, help="a folder on the disk to be measured")
    options = parser.parse_args()
    for dtype in DTYPES:
        for measure in (fine_tuning, partial(times, rounds=options.rounds)):
            with tempfile.TemporaryDirectory(dir=options.at) as folder:
                measure(Path(folder), options.nbytes, dtype)


if __name__ == "__main__":
    main()
