"""The options of a manager as functions: what to keep, and when to save."""

from __future__ import annotations

from datetime import timedelta

from pytreeckpt.steps import retention as kept
from pytreeckpt.steps.records import Mode
from pytreeckpt.steps.retention import Retention
from pytreeckpt.steps.schedule import When, every_minutes, every_steps

DEFAULT_KEEP_LAST = 3


def retention_of(
    *,
    keep_last: int | None,
    keep_best: int | None,
    keep_every: int | timedelta | None,
    metric: str,
    mode: Mode,
    retention: Retention | None,
) -> Retention:
    """What the options keep. Raises `TypeError` and `ValueError`."""
    if retention is not None:
        if keep_best is not None or keep_every is not None or keep_last not in {None, DEFAULT_KEEP_LAST}:
            raise ValueError("give retention=, or keep_last=, keep_best= and keep_every=: not both")
        if not callable(retention):
            raise TypeError(f"retention={retention!r} is not a function of records; see pytreeckpt.steps.retention")
        return retention
    policies: list[Retention] = []
    if keep_last is not None:
        policies.append(kept.keep_last(keep_last))
    if keep_best is not None:
        policies.append(kept.keep_best(keep_best, metric, mode))
    if isinstance(keep_every, timedelta):
        policies.append(kept.keep_every_hours(keep_every.total_seconds() / 3600))
    elif keep_every is not None:
        policies.append(kept.keep_every(keep_every))
    return kept.any_of(*policies) if policies else kept.keep_all()


def schedule_of(save_every: int | timedelta | When | None) -> When:
    """When the option says that it is time; always, if it says nothing."""
    if save_every is None:
        return lambda _: True
    if isinstance(save_every, timedelta):
        return every_minutes(save_every.total_seconds() / 60)
    if callable(save_every):
        return save_every
    return every_steps(save_every)
