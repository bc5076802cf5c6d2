"""A few rows out of a large file, in a process of its own, and how much it read for them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.candidates import CANDIDATES, Candidate
from benchmarks.children import run_worker
from benchmarks.rounds import Job, timed, touch
from benchmarks.states import fill_gaussian

MIB = 1 << 20
ROW_NITEMS = 4096
SLICE_NBYTES = MIB


def jobs(candidates: Sequence[Candidate], nbytes: int, folder: Path) -> list[Job]:
    """Write the file of each candidate that can read a part, and give the jobs that read it."""
    row_nbytes = 4 * ROW_NITEMS
    rows = nbytes // row_nbytes
    array = fill_gaussian(np.empty((rows, ROW_NITEMS), np.float32), np.random.default_rng(3))
    # In the middle, and beginning in the middle of a chunk, whatever its size.
    start = rows // 2 + min(5, rows // 4)
    stop = min(rows, start + SLICE_NBYTES // row_nbytes)
    found = []
    for candidate in candidates:
        if candidate.read_rows is None:
            continue
        stem = candidate.name.replace(" ", "-")
        large, small = folder / f"{stem}.large", folder / f"{stem}.small"
        candidate.save(candidate.prepare({"w": array}), large)
        candidate.save(candidate.prepare({"w": array[:8].copy()}), small)
        found.append(
            Job(candidate.name, lambda name=candidate.name, paths=(large, small): _run(name, *paths, start, stop))
        )
    return found


def _run(name: str, large: Path, small: Path, start: int, stop: int) -> Mapping[str, float]:
    values: Mapping[str, float] = run_worker("benchmarks.slices", name, large, small, start, stop)
    return values


def _read_nbytes() -> int | None:
    """What this process has read by system calls, and what it has of files in its memory through mappings."""
    with suppress(OSError):
        read = _field(Path("/proc/self/io"), "rchar")
        mapped = _field(Path("/proc/self/status"), "RssFile") << 10
        return read + mapped
    return None


def _read(read_rows: Callable[..., tuple[Any, object]], path: Path, start: int, stop: int) -> tuple[Any, object]:
    rows, mapped = read_rows(path, start, stop)
    return touch(rows), mapped


def _field(path: Path, name: str) -> int:
    line = next(line for line in path.read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1])


def measure(candidate: Candidate, large: Path, small: Path, start: int, stop: int) -> dict[str, float]:
    """Time opening a file and reading the rows, in a process that has done it once with another, small file."""
    read_rows = candidate.read_rows
    assert read_rows is not None
    touch(read_rows(small, 0, 4)[0])
    before = _read_nbytes()
    elapsed_s, (rows, _mapped) = timed(lambda: _read(read_rows, large, start, stop))
    after = _read_nbytes()
    assert rows.shape == (stop - start, ROW_NITEMS)
    values: dict[str, float] = {"slice": elapsed_s}
    if before is not None and after is not None:
        values["slice, bytes read"] = after - before
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", nargs=5, required=True, metavar=("CANDIDATE", "LARGE", "SMALL", "START", "STOP"))
    name, large, small, start, stop = parser.parse_args().worker
    candidate = next(candidate for candidate in CANDIDATES if candidate.name == name)
    print(json.dumps(measure(candidate, Path(large), Path(small), int(start), int(stop))))


if __name__ == "__main__":
    main()
