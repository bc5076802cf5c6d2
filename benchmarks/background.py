"""Saves in the background: how long a training stands still for the call, and how much slower it is meanwhile.

`python -m benchmarks.background [--size MIB] [--rounds N] [--seconds S]` measures these alone; `make bench` has them as
the cases "stall" and "beside".
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import states
from benchmarks.candidates import CANDIDATES, Candidate, is_installed, remove
from benchmarks.figures import COPY, OURS
from benchmarks.rounds import Job, Measured, in_rounds, timed

SMALL_NITEMS = 256
# A training that keeps all cores busy with steps of some milliseconds.
WIDTH = 512
BATCH = 128
N_LAYERS = 6
Start = Callable[[Any, Path], Callable[[], object]]
"""Begins a save; the function that it gives waits for its end."""


# The stall.


def stalled_states(nbytes: int, n_small: int) -> dict[str, tuple[str, states.Tree]]:
    """What is saved, and whose arrays it is made of."""
    float32 = np.dtype(np.float32)
    large = states.weights(float32, nbytes)
    return {
        "numpy": ("numpy", large),
        f"numpy, with {n_small:,} small arrays": (
            "numpy",
            {"large": large, "small": states.small_leaves(n_small, SMALL_NITEMS)},
        ),
        "torch": ("torch", large),
        "jax": ("jax", large),
    }


def stall_jobs(framework: str, tree: states.Tree, folder: Path) -> list[Job]:
    """What the call takes, beside a plain copy of all arrays to memory that was used before."""
    path = folder / "stall.ptck"
    prepared: list[Any] = []
    target = states.map_leaves(np.zeros_like, tree)

    def copy() -> Mapping[str, float]:
        pairs = list(zip(states.leaves(target), states.leaves(tree), strict=True))

        def all_of_them() -> None:
            for to, array in pairs:
                np.copyto(to, array)

        return {"call": timed(all_of_them)[0]}

    def save() -> Mapping[str, float]:
        import pytreeckpt as ptc

        if not prepared:
            prepared.append(_as(framework, tree))
        seconds, handle = timed(lambda: ptc.save_async(prepared[0], path, durability="atomic"))
        handle.result()
        remove(path)
        return {"call": seconds}

    return [Job(COPY, copy), Job(OURS, save)]


def _as(framework: str, tree: states.Tree) -> Any:
    names = {"torch": "torch DCP", "jax": "Orbax"}
    if framework not in names:
        return tree
    return next(one for one in CANDIDATES if one.name == names[framework]).prepare(tree)


# The training that goes on.


def training() -> Callable[[], None]:
    """A function that does one step of a small training with Adam on the CPU."""
    import torch

    torch.manual_seed(0)
    layers = [part for _ in range(N_LAYERS) for part in (torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU())]
    model = torch.nn.Sequential(*layers)
    optimizer = torch.optim.Adam(model.parameters())
    inputs = torch.randn(BATCH, WIDTH)

    def step() -> None:
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()

    return step


def beside_jobs(candidates: tuple[Candidate, ...], tree: states.Tree, folder: Path, *, alone_s: float) -> list[Job]:
    """For each candidate: the call, a step while it is saving and one when nothing is, and what a save costs in all."""
    step = training()
    starts = {name: (state, start) for name, state, start in _starts(candidates)}
    return [
        Job(name, _beside(start, lambda state=state: state(tree), folder / f"beside-{name.split()[0]}", step, alone_s))
        for name, (state, start) in starts.items()
    ]


def _beside(
    start: Start, prepare: Callable[[], Any], path: Path, step: Callable[[], None], alone_s: float
) -> Callable[[], Mapping[str, float]]:
    prepared: list[Any] = []

    def run() -> Mapping[str, float]:
        if not prepared:
            prepared.append(prepare())
        remove(path)
        alone = _steps(step, until=lambda begin: time.perf_counter() - begin > alone_s)
        begin = time.perf_counter()
        call_s, wait = timed(lambda: start(prepared[0], path))
        ended: list[float] = []
        done = _told(wait, ended)
        meanwhile = _steps(step, until=lambda _begin: done())
        total_s = time.perf_counter() - begin
        remove(path)
        return {
            "call": call_s,
            "step, alone": statistics.fmean(alone),
            "step, while saving": statistics.fmean(meanwhile),
            "until saved": ended[0] - begin,
            # As long as it took, less what as many steps take alone.
            "training lost": max(total_s - len(meanwhile) * statistics.fmean(alone), 0.0),
        }

    return run


def _told(wait: Callable[[], object], ended: list[float]) -> Callable[[], bool]:
    """Whether a save has ended, told by a thread that waits for it; what the save raises is raised."""
    errors: list[BaseException] = []

    def waiting() -> None:
        try:
            wait()
        except BaseException as error:  # noqa: BLE001 - it is raised where it is asked for
            errors.append(error)
        ended.append(time.perf_counter())

    thread = threading.Thread(target=waiting)
    thread.start()

    def done() -> bool:
        if errors:
            raise errors[0]
        return bool(ended)

    return done


def _steps(step: Callable[[], None], *, until: Callable[[float], bool]) -> list[float]:
    """The seconds of each step, of one at least."""
    begin = time.perf_counter()
    seconds: list[float] = []
    while not seconds or not until(begin):
        before = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - before)
    return seconds


def _starts(candidates: tuple[Candidate, ...]) -> list[tuple[str, Callable[[states.Tree], Any], Start]]:
    found: list[tuple[str, Callable[[states.Tree], Any], Start]] = []
    for one in candidates:
        if one.name in _STARTS and is_installed((*one.modules, "torch")):
            # The same tensors for all that save tensors.
            prepare = one.prepare if one.name != OURS else _tensors
            found.append((one.name, prepare, _STARTS[one.name]))
    return found


def _tensors(tree: states.Tree) -> Any:
    return _as("torch", tree)


def _start_ours(state: Any, path: Path) -> Callable[[], object]:
    import pytreeckpt as ptc

    return ptc.save_async(state, path, durability="atomic").result


def _start_dcp(state: Any, path: Path) -> Callable[[], object]:
    import torch.distributed.checkpoint as dcp

    # It is in its own thread that it warns.
    warnings.filterwarnings("ignore", "torch.distributed is disabled")
    future: Any = dcp.async_save(state, storage_writer=dcp.FileSystemWriter(path, sync_files=False), no_dist=True)
    wait: Callable[[], object] = future.result
    return wait


_orbax: list[Any] = []


def _start_orbax(state: Any, path: Path) -> Callable[[], object]:
    import orbax.checkpoint as ocp

    if not _orbax:
        _orbax.append(ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler()))
    _orbax[0].save(path.absolute(), args=ocp.args.StandardSave(state))
    wait: Callable[[], object] = _orbax[0].wait_until_finished
    return wait


_STARTS: dict[str, Start] = {OURS: _start_ours, "torch DCP": _start_dcp, "Orbax": _start_orbax}


# Alone.


def _print(title: str, measured: Measured) -> None:
    print(f"\n{title}")
    for name, values in measured.values.items():
        medians = ", ".join(f"{what} {statistics.median(each) * 1000:.1f} ms" for what, each in values.items())
        print(f"  {name}: {medians}")
    if {COPY, OURS} <= measured.values.keys():
        ratio = statistics.median(measured.values[OURS]["call"]) / statistics.median(measured.values[COPY]["call"])
        print(f"  {ratio:.2f}× a plain copy")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=512, metavar="MIB", help="size of a state (512)")
    parser.add_argument("--small", type=int, default=10_000, metavar="N", help="number of small arrays (10000)")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds (7), after one that is discarded")
    parser.add_argument("--seconds", type=float, default=2.0, help="of training alone in each round (2)")
    parser.add_argument("--only", choices=("stall", "beside"))
    parser.add_argument("--folder", type=Path, help="where to write the checkpoints (a temporary folder)")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    nbytes = int(options.size * 2**20)
    try:
        if options.only != "beside":
            for data, (framework, tree) in stalled_states(nbytes, options.small).items():
                _print(f"stall, {data}", in_rounds(stall_jobs(framework, tree, folder), options.rounds))
        if options.only != "stall":
            tree = states.weights(np.dtype(np.float32), nbytes)
            jobs = beside_jobs(CANDIDATES, tree, folder, alone_s=options.seconds)
            _print("beside a training", in_rounds(jobs, options.rounds))
    finally:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
