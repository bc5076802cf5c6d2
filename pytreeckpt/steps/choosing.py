"""Which step is meant: the latest, the best, the best few. NaN is worse than any number; of equals the newer wins."""

from __future__ import annotations

import math
from collections.abc import Iterable

from pytreeckpt.steps.records import Mode, StepRecord, checked_mode


def latest(records: Iterable[StepRecord]) -> StepRecord | None:
    """The one with the largest number, of those that a training can go on from: what an exception left may be broken,
    and is taken only by its number.
    """
    sound = (record for record in records if record.reason != "exception")
    return max(sound, key=lambda record: record.step, default=None)


def best(records: Iterable[StepRecord], metric: str, mode: Mode = "min") -> StepRecord | None:
    """The one with the smallest (`mode` "min") or largest value of a metric; None if none has it."""
    found = top(records, 1, metric, mode)
    return found[0] if found else None


def top(records: Iterable[StepRecord], k: int, metric: str, mode: Mode = "min") -> list[StepRecord]:
    """The best `k` of those that have the metric, the best first."""
    checked_mode(mode)
    ranked = [record for record in records if metric in record.metrics]
    ranked.sort(key=lambda record: (*rank(record.metrics[metric], mode), -record.step))
    return ranked[: max(k, 0)]


def rank(value: float, mode: Mode) -> tuple[bool, float]:
    """What orders values from good to bad."""
    if math.isnan(value):
        return True, 0.0
    return False, value if mode == "min" else -value


def is_better(value: float, than: float, mode: Mode, *, by_more_than: float = 0.0) -> bool:
    """Whether a value is better than another one by more than that. A number is better than NaN; nothing is NaN."""
    if math.isnan(value) or math.isnan(than):
        return math.isnan(than) and not math.isnan(value)
    # Not their difference: that of two infinities is NaN.
    return value < than - by_more_than if mode == "min" else value > than + by_more_than
