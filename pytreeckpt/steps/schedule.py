"""When to save, as functions of a moment. None has a state, so a training that is resumed goes on in the same rhythm.

A rhythm (steps, epochs, minutes) counts from the step that was saved last: asked only now and then, it is late and not
silent, and it is never asked twice for one beat.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from pytreeckpt.steps.choosing import best, is_better
from pytreeckpt.steps.records import (
    Mode,
    StepRecord,
    checked_count,
    checked_mode,
    checked_name,
    checked_positive,
    checked_step,
)

_SECONDS_PER_MINUTE: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A moment at which a step may be saved.

    `step`, `epoch`, `metrics`: of now; `now_s`: seconds since the epoch; `started_s`: when this training began or was
    resumed; `records`: of all steps that are known, ascending, those that were pruned or never saved too;
    `last_saved`: the step that this training saved last, or that it was resumed from.
    """

    step: int
    now_s: float
    epoch: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    records: Sequence[StepRecord] = ()
    last_saved: StepRecord | None = None
    started_s: float = -math.inf


When = Callable[[Moment], bool]
"""Whether to save at a moment."""


def every_steps(n: int) -> When:
    """At each multiple of `n`, 0 too, or as soon after it as is asked."""
    period = checked_count("n", n)

    def when(moment: Moment) -> bool:
        return _is_next_beat(moment.step, None if moment.last_saved is None else moment.last_saved.step, period)

    return when


def every_epochs(n: float = 1) -> When:
    """At each multiple of `n` epochs, 0 too, or as soon after it as is asked. `epoch` may be a count of epochs or a
    fraction of them. Raises `ValueError` when it is asked without: it would never save.
    """
    period = checked_positive("n", n)

    def when(moment: Moment) -> bool:
        if moment.epoch is None:
            raise ValueError("every_epochs needs to be told the epoch: give epoch=…")
        return _is_next_beat(moment.epoch, None if moment.last_saved is None else moment.last_saved.epoch, period)

    return when


def _is_next_beat(now: float, before: float | None, period: float) -> bool:
    if before is None or before > now:
        # Nothing was saved yet in this training, or it went back.
        return now % period == 0 or now >= period
    return now // period > before // period


def every_minutes(minutes: float) -> When:
    """When so many minutes have passed since the last save of this training, or since it began."""
    seconds = checked_positive("minutes", minutes) * _SECONDS_PER_MINUTE

    def when(moment: Moment) -> bool:
        last = -math.inf if moment.last_saved is None else moment.last_saved.saved_at
        passed = moment.now_s - max(last, moment.started_s)
        # A clock that was set back: once now, and then in the rhythm again.
        return passed >= seconds or passed < 0

    return when


def on_better(metric: str, mode: Mode = "min", min_delta: float = 0.0) -> When:
    """When the metric is better, by more than `min_delta`, than that of every other step that was saved. Never at a
    moment without that metric.
    """
    name, way = checked_name(metric), checked_mode(mode)
    if not min_delta >= 0:
        raise ValueError(f"min_delta={min_delta!r} is not 0 or more")

    def when(moment: Moment) -> bool:
        if name not in moment.metrics:
            return False
        others = (record for record in moment.records if record.was_saved and record.step != moment.step)
        known = best(others, name, way)
        value = moment.metrics[name]
        if known is None:
            return not math.isnan(value)
        return is_better(value, known.metrics[name], way, by_more_than=min_delta)

    return when


def on_crossing(metric: str, threshold: float, mode: Mode = "min") -> When:
    """When the metric has come to the threshold or gone beyond it, downwards (`mode` "min") or upwards, and had not at
    the last step before that has it: once for each crossing. Never at a moment without that metric.
    """
    name, way = checked_name(metric), checked_mode(mode)
    if math.isnan(threshold):
        raise ValueError("threshold is NaN")

    def is_beyond(value: float) -> bool:
        return value <= threshold if way == "min" else value >= threshold

    def when(moment: Moment) -> bool:
        if name not in moment.metrics or not is_beyond(moment.metrics[name]):
            return False
        before = (r for r in reversed(moment.records) if r.step < moment.step and name in r.metrics)
        last = next(before, None)
        return last is None or not is_beyond(last.metrics[name])

    return when


def cyclic(cycle_steps: int, *, first_step: int = 0, growth: int = 1) -> When:
    """At the last step of each cycle of a cyclic learning rate, where it is lowest: for ensembles of snapshots.

    Cycles begin at `first_step`, and each is `growth` times as long as the one before, as with `T_0` and `T_mult` of
    warm restarts. A step is the number of updates that were made, so that the first cycle ends at
    `first_step + cycle_steps`.
    """
    length, start, factor = (
        checked_count("cycle_steps", cycle_steps),
        checked_step(first_step),
        checked_count("growth", growth),
    )

    def when(moment: Moment) -> bool:
        if factor == 1:
            return moment.step > start and (moment.step - start) % length == 0
        end, cycle = start + length, length
        while end < moment.step:
            cycle *= factor
            end += cycle
        return moment.step == end

    return when


def any_of(*schedules: When) -> When:
    """When any of them says so."""
    return lambda moment: any(schedule(moment) for schedule in schedules)


def all_of(*schedules: When) -> When:
    """When all of them say so; never, if there are none."""
    return lambda moment: bool(schedules) and all(schedule(moment) for schedule in schedules)
