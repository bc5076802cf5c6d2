"""Which steps to keep, as functions over those that are there.

Each has two properties, which make pruning after every save keep the same as pruning once at the end: it keeps only
what it was given, and what it keeps of all steps it keeps of any of them that has all of these. So what is kept
depends neither on how often was pruned nor on when.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from pytreeckpt.steps.choosing import top
from pytreeckpt.steps.records import (
    Mode,
    StepRecord,
    checked_count,
    checked_mode,
    checked_name,
    checked_positive,
    checked_step,
)

Retention = Callable[[Sequence[StepRecord]], frozenset[int]]
"""Which steps to keep of those given, which are in ascending order."""

_SECONDS_PER_HOUR: Final = 3600


def keep_all() -> Retention:
    """All of them."""
    return lambda records: frozenset(record.step for record in records)


def keep_last(n: int) -> Retention:
    """The `n` with the largest numbers."""
    count = checked_count("n", n)
    return lambda records: frozenset(record.step for record in records[-count:])


def keep_best(k: int, metric: str, mode: Mode = "min") -> Retention:
    """The best `k` of those that have the metric. NaN is worse than any number; of equals the newer are kept."""
    count, name, way = checked_count("k", k), checked_name(metric), checked_mode(mode)
    return lambda records: frozenset(record.step for record in top(records, count, name, way))


def keep_every(steps: int) -> Retention:
    """For ever, one for each multiple of `steps`: the first step at or after it. Before `steps` itself that is step 0
    alone, where there is one.
    """
    period = checked_count("steps", steps)
    return lambda records: _first_of_each(
        (record.step // period, record.step) for record in records if record.step >= period or record.step == 0
    )


def keep_every_hours(hours: float) -> Retention:
    """For ever, the first step of each period of so many hours (counted from the epoch, so that periods stay where they
    are).
    """
    seconds = checked_positive("hours", hours) * _SECONDS_PER_HOUR
    return lambda records: _first_of_each((math.floor(record.saved_at / seconds), record.step) for record in records)


def keep_steps(steps: Iterable[int]) -> Retention:
    """Those with these numbers."""
    wanted = frozenset(map(checked_step, steps))
    return lambda records: wanted & {record.step for record in records}


def any_of(*policies: Retention) -> Retention:
    """What any of the policies keeps; nothing, if there are none."""
    return lambda records: frozenset[int]().union(*(policy(records) for policy in policies))


def _first_of_each(periods_and_steps: Iterable[tuple[int, int]]) -> frozenset[int]:
    first: dict[int, int] = {}
    for period, step in periods_and_steps:
        first.setdefault(period, step)
    return frozenset(first.values())
