"""KeyboardInterrupt before any opcode of an incremental save, on a real file system."""

import gc
import itertools
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pytreeckpt.incremental import files_needed
from pytreeckpt.pipeline import THREADS_VARIABLE
from pytreeckpt.storage import LocalStorage
from tests.campaigns.fault_processes import Interrupter, call, open_descriptors
from tests.incremental.saving import found, noise, save

SHARED = noise(3000, 1)
# The second refers to the first, copies from another one, and has something of its own.
COPIED = {"copied": noise(800, 2), "gone": noise(3000, 3)}
FIRST = {"step": 1, "shared": SHARED}
SECOND = {"step": 2, "shared": SHARED, "copied": COPIED["copied"], "own": noise(500, 4, "i2")}


def interrupted_saves(folder: str, *, threads: int, stride: int, only_in: str = "") -> dict[str, Any]:
    """Save again and again, interrupted at every `stride`th opcode in turn; the counts, and what was wrong."""
    os.environ[THREADS_VARIABLE] = str(threads)
    storage = LocalStorage()
    paths = [str(Path(folder) / name) for name in ("copied.ptck", "first.ptck", "second.ptck")]
    known = save(storage, paths[1], FIRST, save(storage, paths[0], COPIED).known).known
    kept = frozenset().union(*(files_needed(storage, path) for path in paths[:2]))
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    # Within `__del__`, Python reports an exception and goes on.
    sys.unraisablehook = lambda _: None
    for at in itertools.count(1, stride):
        Path(paths[2]).unlink(missing_ok=True)
        for name in set(os.listdir(f"{folder}/data")) - kept:  # noqa: PTH208 - names are what is compared
            Path(folder, "data", name).unlink()
        before = open_descriptors()
        interrupter = Interrupter(at, only_in)
        try:
            with interrupter:
                save(storage, paths[2], SECOND, known, threads=threads)
            ended = "saved"
        except KeyboardInterrupt:
            ended = "interrupted"
        verdicts = [found(storage, *each) for each in zip(paths, [COPIED, FIRST, SECOND], strict=True)]
        if verdicts not in (["exact"] * 3, ["exact", "exact", "nothing"]) or (ended, verdicts[2]) == (
            "saved",
            "nothing",
        ):
            wrong.append(f"opcode {at}: {ended}, {verdicts}")
        needed = kept if verdicts[2] == "nothing" else kept | files_needed(storage, paths[2])
        left = {each.relative_to(folder).as_posix() for each in Path(folder).rglob("*") if each.is_file()}
        left -= {Path(path).name for path in paths} | {f"data/{name}" for name in needed}
        # An interrupt of the clean-up itself may leave a data file that nobody needs.
        counts["unneeded data files"] += len(left)
        if any(not name.endswith(".ptck") or "new" in name for name in left):
            wrong.append(f"opcode {at}: {sorted(left)} is left")
        if open_descriptors() - before:
            gc.collect()
            if open_descriptors() - before:
                wrong.append(f"opcode {at}: a descriptor is open")
        counts[ended] += 1
        if interrupter.count < at:
            return {"opcodes": interrupter.count, "counts": dict(counts), "wrong": wrong}
    raise AssertionError("unreachable")


@pytest.mark.parametrize("stride", [499, pytest.param(7, marks=pytest.mark.slow)], ids=["sample", "many"])
@pytest.mark.parametrize(("threads", "only_in"), [(1, ""), (2, "pytreeckpt")], ids=["one thread", "threads"])
def test_interrupted_at_an_opcode_a_save_leaves_a_whole_step_or_none(
    stride, threads, only_in, tmp_path, record_property
):
    result = call(
        interrupted_saves, folder=str(tmp_path), threads=threads, stride=stride, only_in=only_in, timeout_s=580
    )
    record_property(
        "campaign",
        f"KeyboardInterrupt at every {stride}. of {result['opcodes']} opcodes of an incremental save, {threads} threads: "
        f"{result['counts']}, {len(result['wrong'])} wrong",
    )
    assert not result["wrong"], result["wrong"][:20]
    assert result["counts"]["interrupted"] > result["opcodes"] // stride * 0.9
    assert result["counts"]["unneeded data files"] <= 0.02 * result["opcodes"] / stride + 1
