"""How things are timed: in rounds with every candidate once, so that a slow minute of the machine meets all."""

from __future__ import annotations

import gc
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.exactness import as_array
from benchmarks.states import leaves

PAGE_NBYTES = 4096
CACHE_LINE_NBYTES = 64


@dataclass(frozen=True, slots=True)
class Job:
    """One candidate: `run()` does each of its operations once and gives what each needed."""

    candidate: str
    run: Callable[[], Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Measured:
    """The values of each job that went well, by candidate and operation, and the errors of the others."""

    values: dict[str, dict[str, list[float]]]
    errors: dict[str, Exception]


def in_rounds(jobs: Sequence[Job], rounds: int, *, budget_s: float = 120) -> Measured:
    """Run the jobs in `rounds` rounds after one that is discarded; each round begins with the next job.

    What would take longer than `budget_s` in all has fewer rounds; if one takes that long, it is the only one, and
    counts. A job that raises is left out.
    """
    measured = Measured({}, {})
    rounds_of = {job.candidate: rounds for job in jobs}
    for number in range(rounds + 1):
        shift = number % len(jobs) if jobs else 0
        for job in (*jobs[shift:], *jobs[:shift]):
            name = job.candidate
            if name in measured.errors or number > rounds_of[name]:
                continue
            begin = time.perf_counter()
            try:
                values = job.run()
            except Exception as error:  # noqa: BLE001 - one peer's failure must not end a run of many minutes.
                traceback.print_exception(error, file=sys.stderr)
                measured.errors[name] = error
                measured.values.pop(name, None)
                continue
            if number == 0:
                rounds_of[name] = min(rounds, int(budget_s / (time.perf_counter() - begin)))
                if rounds_of[name]:
                    continue
            for operation, value in values.items():
                measured.values.setdefault(name, {}).setdefault(operation, []).append(value)
    return measured


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """The seconds that a call took, and its result, whose release is then not part of them."""
    gc.collect()
    begin = time.perf_counter()
    result = function()
    return time.perf_counter() - begin, result


def touch(tree: Any) -> Any:
    """Read one byte of each 64-byte line, so that a restore that only maps or promises its bytes has to deliver them.

    Of arrays smaller than a page only as many are looked at as there are pages of them: a call for each of
    100,000 would cost more than the restore.
    """
    pending = 0
    for leaf in leaves(tree):
        pending += getattr(leaf, "nbytes", 0)
        if pending >= PAGE_NBYTES and (array := as_array(leaf)) is not None and array.nbytes:
            array.reshape(-1).view(np.uint8)[::CACHE_LINE_NBYTES].sum()
            pending = 0
    return tree
