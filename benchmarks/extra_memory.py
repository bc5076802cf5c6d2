"""How much memory each candidate takes beyond the state: a process for each figure, as in `benchmarks.memory`."""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.candidates import CANDIDATES, Candidate, remove
from benchmarks.children import run_worker
from benchmarks.memory import PeakMemory
from benchmarks.rounds import touch
from benchmarks.states import map_leaves, nbytes_of, weights

OPERATIONS = ("save", "restore", "restore in place")
SMALL_NBYTES = 64 << 10


def measure_all(candidate: Candidate, dtype: str, nbytes: int, folder: Path) -> dict[str, tuple[int, int]]:
    """The extra bytes, and the bytes of the state, of each operation that the candidate has; they share one file."""
    path = folder / "memory.checkpoint"
    figures = {}
    try:
        for operation in OPERATIONS:
            if operation != "restore in place" or candidate.restore_into is not None:
                found = run_worker("benchmarks.extra_memory", candidate.name, operation, path, dtype, nbytes)
                figures[operation] = (found["extra"], found["state"])
    finally:
        remove(path)
    return figures


def measure(candidate: Candidate, operation: str, path: Path, dtype: str, nbytes: int) -> dict[str, int]:
    """Measure in this process, which has first done the same with a small state."""
    small = path.with_name("small.checkpoint")
    try:
        for warm_up in ("save", operation):
            if warm_up == "save":
                remove(small)
            _peak(candidate, warm_up, small, dtype, SMALL_NBYTES)
    finally:
        remove(small)
    gc.collect()
    extra, state = _peak(candidate, operation, path, dtype, nbytes)
    return {"extra": extra, "state": state}


def _peak(candidate: Candidate, operation: str, path: Path, dtype: str, nbytes: int) -> tuple[int, int]:
    # Zeros that nobody has written to take no memory: a restore needs only their shapes.
    tree = weights(np.dtype(dtype), nbytes, fill=operation == "save")
    state_nbytes = nbytes_of(tree)
    if operation == "restore in place":
        # These are to be filled, and their memory is there before.
        map_leaves(lambda array: array.fill(0), tree)
    state: Any = candidate.prepare(tree)
    del tree
    kept = 0
    with PeakMemory() as peak:
        if operation == "save":
            candidate.save_durable(state, path)
        elif operation == "restore":
            result = touch(candidate.restore(path, state))
            kept = nbytes_of(result)
        else:
            assert candidate.restore_into is not None
            result = touch(candidate.restore_into(path, state))
    if operation != "save":
        assert nbytes_of(result) == state_nbytes
    return peak.nbytes - kept, state_nbytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--worker", nargs=5, required=True, metavar=("CANDIDATE", "OPERATION", "PATH", "DTYPE", "NBYTES")
    )
    name, operation, path, dtype, nbytes = parser.parse_args().worker
    candidate: Candidate = _named(name, CANDIDATES)
    print(json.dumps(measure(candidate, operation, Path(path), dtype, int(nbytes))))


def _named(name: str, candidates: Sequence[Candidate]) -> Candidate:
    return next(candidate for candidate in candidates if candidate.name == name)


if __name__ == "__main__":
    main()
