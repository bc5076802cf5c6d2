"""All benchmarks, in one command: `make bench`, or `python -m benchmarks.suite [--quick] [--cases …] [--candidates …]`.

Measures, writes the figures as JSON after each case, and from them the page, the tables and the plots.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks import background, codec, extra_memory, report, save_restore, slices, states
from benchmarks.candidates import CANDIDATES, Candidate, is_installed, version
from benchmarks.codec import CODECS, Codec
from benchmarks.figures import Entrant, Failure, Figure, Results, read, write
from benchmarks.machine import describe
from benchmarks.rounds import Job, in_rounds
from benchmarks.states import BFLOAT16, Tree, nbytes_of

FLOAT32 = np.dtype(np.float32)
DTYPES = {"float32": FLOAT32, "bfloat16": BFLOAT16}
# Some peers take minutes for a round of very many leaves: who takes too long for a part of them is left out.
TRIAL_FRACTION = 50
TRIAL_LIMIT_S = 1
Part = tuple[tuple[Figure, ...], tuple[Failure, ...]]


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured, and how large."""

    candidates: tuple[Candidate, ...]
    codecs: tuple[Codec, ...]
    folder: Path
    rounds: int
    size_nbytes: int
    leaves: int
    large_nbytes: int
    memory_nbytes: tuple[int, ...]
    alone_s: float = 2.0


def _part(case: str, data: str, nbytes: int, rounds: int, jobs: Sequence[Job]) -> Part:
    """Measure jobs, and make their figures."""
    print(f"{case}, {data} …", file=sys.stderr, flush=True)
    measured = in_rounds(jobs, rounds)
    figures = []
    for job in jobs:
        for operation, values in measured.values.get(job.candidate, {}).items():
            is_nbytes = operation.endswith(("size", "bytes read"))
            kept = tuple(values if is_nbytes else (round(value, 7) for value in values))
            figures.append(Figure(case, data, job.candidate, operation, "B" if is_nbytes else "s", nbytes, kept))
    failures = [Failure(case, data, name, type(error).__name__) for name, error in measured.errors.items()]
    return tuple(figures), tuple(failures)


def _state(settings: Settings, data: str, tree: Tree, *, case: str = "state") -> Part:
    jobs = save_restore.jobs(settings.candidates, tree, settings.folder, in_place=case == "state")
    return _part(case, data, nbytes_of(tree), settings.rounds, jobs)


def float32(settings: Settings) -> Iterator[Part]:
    """Gaussian weights in float32."""
    yield _state(settings, "float32", states.weights(FLOAT32, settings.size_nbytes))


def bfloat16(settings: Settings) -> Iterator[Part]:
    """Gaussian weights in bfloat16."""
    yield _state(settings, "bfloat16", states.weights(BFLOAT16, settings.size_nbytes))


def mixed(settings: Settings) -> Iterator[Part]:
    """The whole state of mixed precision training."""
    yield _state(settings, "mixed", states.mixed_state(settings.size_nbytes))


def minilm(settings: Settings) -> Iterator[Part]:
    """Real weights, as published and cast."""
    for name, dtype in DTYPES.items():
        tree = states.minilm(dtype)
        if tree is None:
            print("no real weights: `make weights` fetches them", file=sys.stderr)
            return
        yield _state(settings, f"MiniLM {name}", tree)


def leaves(settings: Settings) -> Iterator[Part]:
    """Very many small arrays."""
    for n_items in (64, 256):
        data = f"{settings.leaves:,} leaves of {n_items} items"
        part = states.small_leaves(max(1, settings.leaves // TRIAL_FRACTION), n_items)
        trial = in_rounds(save_restore.jobs(settings.candidates, part, settings.folder, in_place=False), 1)
        slow = {name for name, values in trial.values.items() if _seconds(values) > TRIAL_LIMIT_S}
        if slow:
            yield (), tuple(Failure("leaves", data, name, "left out: too slow") for name in sorted(slow))
        quick = replace(settings, candidates=tuple(one for one in settings.candidates if one.name not in slow))
        yield _state(quick, data, states.small_leaves(settings.leaves, n_items), case="leaves")


def _seconds(values: dict[str, list[float]]) -> float:
    return sum(values[operation][-1] for operation in ("save", "save, durable", "restore"))


def large_slice(settings: Settings) -> Iterator[Part]:
    """One MiB of a large file."""
    folder = settings.folder / "slices"
    folder.mkdir()
    jobs = slices.jobs(settings.candidates, settings.large_nbytes, folder)
    yield _part(
        "slice", f"1 MiB of {settings.large_nbytes / 2**30:.3g} GiB", settings.large_nbytes, settings.rounds, jobs
    )
    shutil.rmtree(folder)


def in_memory(settings: Settings) -> Iterator[Part]:
    """The codecs without the disk."""
    for name, dtype in DTYPES.items():
        gaussian = {
            "w": states.fill_gaussian(np.empty(settings.size_nbytes // dtype.itemsize, dtype), np.random.default_rng(4))
        }
        for data, tree in ((name, gaussian), (f"MiniLM {name}", states.minilm(dtype))):
            if tree is not None:
                jobs = codec.jobs(settings.codecs, tree, name)
                yield _part("codec", data, nbytes_of(tree), settings.rounds, jobs)


def memory(settings: Settings) -> Iterator[Part]:
    """Memory beyond the state."""
    for dtype in DTYPES:
        for nbytes in settings.memory_nbytes:
            for candidate in settings.candidates:
                data = f"{dtype}, {nbytes / 2**30:.3g} GiB"
                print(f"memory, {data}, {candidate.name} …", file=sys.stderr, flush=True)
                try:
                    found = extra_memory.measure_all(candidate, dtype, nbytes, settings.folder)
                except Exception as error:  # noqa: BLE001 - one peer's failure must not end a run of many minutes.
                    yield (), (Failure("memory", data, candidate.name, type(error).__name__),)
                    continue
                yield (
                    tuple(
                        Figure("memory", data, candidate.name, operation, "B", state, (extra,))
                        for operation, (extra, state) in found.items()
                    ),
                    (),
                )


def stall(settings: Settings) -> Iterator[Part]:
    """How long the call stands still that saves in the background."""
    for data, (framework, tree) in background.stalled_states(settings.size_nbytes, settings.leaves // 10).items():
        jobs = background.stall_jobs(framework, tree, settings.folder)
        yield _part("stall", data, nbytes_of(tree), settings.rounds, jobs)


def beside(settings: Settings) -> Iterator[Part]:
    """A training beside which a state is saved."""
    tree = states.weights(FLOAT32, settings.size_nbytes)
    jobs = background.beside_jobs(settings.candidates, tree, settings.folder, alone_s=settings.alone_s)
    yield _part("beside", "float32", nbytes_of(tree), settings.rounds, jobs)


CASES: dict[str, Callable[[Settings], Iterator[Part]]] = {
    "float32": float32,
    "bfloat16": bfloat16,
    "mixed": mixed,
    "minilm": minilm,
    "leaves": leaves,
    "slice": large_slice,
    "codec": in_memory,
    "memory": memory,
    "stall": stall,
    "beside": beside,
}


# The cases whose figures are of the case "state", and what their data are called.
DATA_OF = {"minilm": "MiniLM", "float32": "float32", "bfloat16": "bfloat16", "mixed": "mixed"}


def entrants(settings: Settings) -> tuple[Entrant, ...]:
    """Who takes part; the codec of a candidate with the same name is the candidate's."""
    named: dict[str, Candidate | Codec] = {one.name: one for one in (*settings.codecs, *settings.candidates)}
    in_order = [one.name for one in (*settings.candidates, *settings.codecs)]
    return tuple(
        Entrant(name, version(named[name].distribution), named[name].notes) for name in dict.fromkeys(in_order)
    )


def run(settings: Settings, cases: Sequence[str], results: Results, json_path: Path) -> Results:
    """Run the cases, writing the results after each."""
    for case in cases:
        for figures, failures in CASES[case](settings):
            results = replace(results, figures=results.figures + figures, failures=results.failures + failures)
            write(results, json_path)
            gc.collect()
    return results


def added_to(earlier: Results, now: Results, cases: Sequence[str]) -> Results:
    """The figures of an earlier run but for these cases, which are measured anew.

    Raises `ValueError` if the machine, the versions or the settings were others.
    """
    for what, before, after in (
        ("machine", earlier.machine, now.machine),
        ("settings", earlier.settings, now.settings),
    ):
        if before != after:
            apart = sorted(key for key in {*before, *after} if before.get(key) != after.get(key))
            raise ValueError(f"other {what}: {', '.join(apart)}")
    names = {case for case in cases if case not in DATA_OF}
    data = {DATA_OF[case] for case in cases if case in DATA_OF}

    def is_kept(one: Figure | Failure) -> bool:
        return one.case not in names and not (one.case == "state" and one.data.split()[0] in data)

    return replace(
        earlier,
        figures=tuple(filter(is_kept, earlier.figures)),
        failures=tuple(filter(is_kept, earlier.failures)),
    )


def arguments() -> argparse.ArgumentParser:
    """The options; sizes are given in the units that people think in."""
    names = [*dict.fromkeys(one.name for one in (*CANDIDATES, *CODECS))]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--candidates", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument(
        "--add",
        action="store_true",
        help="keep the figures of other cases that are already in the file, of the same machine and settings",
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes and one round: shows that it works")
    parser.add_argument("--rounds", type=int, help="timed rounds (7), after one that is discarded")
    parser.add_argument("--size", type=float, metavar="MIB", help="size of a state (512)")
    parser.add_argument("--leaves", type=int, metavar="N", help="number of small leaves (100000)")
    parser.add_argument(
        "--large-size", type=float, metavar="GIB", help="size of the file that a slice is read from (2)"
    )
    parser.add_argument("--memory-sizes", nargs="+", type=float, metavar="GIB", help="sizes for extra memory (1 2)")
    parser.add_argument("--folder", type=Path, help="where to write the checkpoints (a temporary folder)")
    parser.add_argument("--json", type=Path, default=report.LATEST, help="where to write the figures")
    parser.add_argument(
        "--out", type=Path, default=report.OUT, help="folder of plots and tables; the page is beside it"
    )
    return parser


def main() -> int:
    parser = arguments()
    options = parser.parse_args()
    usual = (1, 1, 200, 1 / 64, [1 / 128]) if options.quick else (7, 512, 100_000, 2, [1, 2])
    asked = (options.rounds, options.size, options.leaves, options.large_size, options.memory_sizes)
    rounds, size, n_leaves, large_size, memory_sizes = (
        default if value is None else value for value, default in zip(asked, usual, strict=True)
    )
    wanted = [one for one in (*CANDIDATES, *CODECS) if one.name in options.candidates]
    for one in wanted:
        if not is_installed(one.modules):
            print(f"{one.name} is not installed, and left out", file=sys.stderr)
    present = [one for one in wanted if is_installed(one.modules)]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        needed, free = _needed_nbytes(size, large_size, memory_sizes), shutil.disk_usage(folder).free
        if free < needed:
            parser.error(
                f"{free / 2**30:.1f} GiB are free where checkpoints go (--folder); {needed / 2**30:.1f} are needed"
            )
        settings = Settings(
            tuple(one for one in present if isinstance(one, Candidate)),
            tuple(one for one in present if isinstance(one, Codec)),
            Path(folder),
            rounds,
            int(size * 2**20),
            n_leaves,
            int(large_size * 2**30),
            tuple(int(one * 2**30) for one in memory_sizes),
            0.1 if options.quick else 2.0,
        )
        described = {
            "quick": options.quick,
            "rounds": rounds,
            "size_mib": size,
            "leaves": n_leaves,
            "large_size_gib": large_size,
            "memory_sizes_gib": list(memory_sizes),
        }
        machine = describe(Path(folder), ["numpy", "ml_dtypes", "jax", *(one.distribution for one in present)])
        results = Results(machine, described, entrants(settings), ())
        if options.add:
            try:
                results = added_to(read(options.json), results, options.cases)
            except ValueError as error:
                parser.error(f"--add: {options.json}: {error}")
        results = run(settings, options.cases, results, options.json)
    write(results, options.json)
    if not report.can_draw():
        print("matplotlib is not installed (`make bench` installs it): no plots", file=sys.stderr)
    report.write(results, options.out, draws=report.can_draw())
    print(report.as_text(results))
    return 0


def _needed_nbytes(size_mib: float, large_gib: float, memory_gib: Sequence[float]) -> int:
    # One state at a time, four large files, one file for memory; and some room.
    return int(max(size_mib * 2**20, 4.2 * large_gib * 2**30, max(memory_gib) * 2**30) * 1.2)


if __name__ == "__main__":
    sys.exit(main())
