"""How much memory saving and restoring take beyond the tree itself: `python -m benchmarks.memory [--sizes GIB …]`.

Each figure comes from a process of its own, which has imported everything and done the same once with a tree of 64 KiB.
Its peak resident memory during the operation, less what it had before and less the result that it gets, is the extra
memory: the buffers, the threads and whatever they leave behind. The page cache is not the process's and does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

import pytreeckpt as ptc
from benchmarks.children import run_worker
from benchmarks.states import fill_gaussian

MIB = 1 << 20
OPERATIONS = ("save", 'save "none"', "restore", "slice", "verify")
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True, slots=True)
class Figure:
    """Memory and time of one operation. Sizes in bytes; `nbytes` is that of the array in memory."""

    operation: str
    dtype: str
    nbytes: int
    extra_nbytes: int
    elapsed_s: float


class PeakMemory:
    """The peak resident memory of this process within a `with` block, beyond what it had at its start."""

    def __enter__(self) -> Self:
        self.before = _status("VmRSS")
        self.sampled = self.before
        # Linux forgets the old peak when asked to; where it may not be asked, a thread looks every millisecond.
        self.exact = False
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
            self.exact = _status("VmHWM") <= self.before + MIB
        self.ended = threading.Event()
        self.sampler = threading.Thread(target=self._sample, daemon=True)
        if not self.exact:
            self.sampler.start()
        return self

    def _sample(self) -> None:
        while not self.ended.wait(0.001):
            self.sampled = max(self.sampled, _status("VmRSS"))

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.nbytes = (_status("VmHWM") if self.exact else self.sampled) - self.before


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"/proc/self/status has no {field}")


def gaussian(dtype: str, nbytes: int) -> np.ndarray:
    """Weights as they are after initialisation, in one array."""
    out: np.ndarray = np.empty((nbytes // (4096 * np.dtype(dtype).itemsize), 4096), dtype)
    return fill_gaussian(out, np.random.default_rng(0))


def save(path: Path, dtype: str, nbytes: int, compression: str) -> Callable[[], object]:
    tree = {"w": gaussian(dtype, nbytes)}
    return lambda: ptc.save(tree, path, compression=compression)


def slice_of(path: Path) -> object:
    with ptc.open(path) as checkpoint:
        rows = checkpoint["w"].shape[0]
        return checkpoint["w"][rows // 2 : rows // 2 + 16]


def prepare(operation: str, path: Path, dtype: str, nbytes: int) -> Callable[[], Any]:
    """What is to be measured, with its tree already in memory; reading needs the file of an earlier save."""
    match operation:
        case "save":
            return save(path, dtype, nbytes, "auto")
        case 'save "none"':
            return save(path, dtype, nbytes, "none")
        case "restore":
            return lambda: ptc.restore(path)
        case "slice":
            return lambda: slice_of(path)
        case "verify":
            return lambda: ptc.verify(path)
    raise ValueError(operation)


def measure(operation: str, path: Path, dtype: str, nbytes: int) -> Figure:
    """Measure in this process."""
    # Small enough that no buffers are left from it that the real one would find and not have to get.
    small = path.with_name("small.ptck")
    prepare("save", small, dtype, 64 << 10)()
    prepare(operation, small, dtype, 64 << 10)()
    run = prepare(operation, path, dtype, nbytes)
    begin = time.perf_counter()
    with PeakMemory() as peak:
        result = run()
    elapsed_s = time.perf_counter() - begin
    kept = nbytes if operation == "restore" else 0
    if operation == "restore":
        assert result["w"].nbytes == nbytes
    elif operation == "verify":
        assert result.ok, result
    return Figure(operation, dtype, nbytes, peak.nbytes - kept, elapsed_s)


def measure_all(folder: Path, dtype: str, nbytes: int) -> list[Figure]:
    path = folder / "checkpoint.ptck"
    # In this order each reading finds the default, compressed file.
    in_order = ('save "none"', "save", "restore", "slice", "verify")
    figures = [Figure(**run_worker("benchmarks.memory", operation, path, dtype, nbytes)) for operation in in_order]
    path.unlink()
    return sorted(figures, key=lambda figure: OPERATIONS.index(figure.operation))


def as_text(figures: list[Figure]) -> str:
    sizes = sorted({figure.nbytes for figure in figures})
    lines = ["Extra memory in MiB, for one array of", ""]
    lines.append(" " * 24 + "".join(f"{size / 2**30:>8g} GiB" for size in sizes))
    for dtype in dict.fromkeys(figure.dtype for figure in figures):
        for operation in OPERATIONS:
            found = {f.nbytes: f for f in figures if (f.operation, f.dtype) == (operation, dtype)}
            cells = [f"{found[size].extra_nbytes / MIB:12.1f}" if size in found else " " * 12 for size in sizes]
            lines.append(f"{dtype:10} {operation:13}" + "".join(cells))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=float, default=[0.25, 0.5, 1, 2], metavar="GIB")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--folder", type=Path, help="where to write the checkpoints (a temporary folder)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--limit", type=float, metavar="MIB", help="exit with 1 if any figure is above")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        operation, path, dtype, nbytes = options.worker
        print(json.dumps(asdict(measure(operation, Path(path), dtype, int(nbytes)))))
        return 0
    if not Path("/proc/self/status").exists():
        parser.error("the memory of a process is read from /proc, which this system has not")
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
        needed = int(max(options.sizes) * 2**30 * 2.2)
        if free < needed:
            parser.error(f"{folder} has {free / 2**30:.1f} GiB free; {needed / 2**30:.1f} are needed")
        for dtype in options.dtypes:
            for size in options.sizes:
                nbytes = int(size * 2**30) // (4096 * 4) * (4096 * 4)
                figures += measure_all(Path(folder), dtype, nbytes)
                print(f"{dtype}, {size:g} GiB done", file=sys.stderr, flush=True)
    print(as_text(figures))
    if options.json:
        options.json.write_text(json.dumps([asdict(figure) for figure in figures], indent=2) + "\n")
    if options.limit is not None and max(f.extra_nbytes for f in figures) > options.limit * MIB:
        print(f"a figure is above {options.limit:g} MiB", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
