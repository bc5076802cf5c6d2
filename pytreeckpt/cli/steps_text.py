"""Numbers of a training as people read them: values of metrics, ages, moments."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

_UNITS: Final = ((86400 * 365.25, "years"), (86400, "days"), (3600, "h"), (60, "min"), (1, "s"))
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def short_number(value: float) -> str:
    """A value of a metric in about five digits."""
    return f"{value:.5g}"


def age_text(seconds: float) -> str:
    """How long ago, in the largest unit of which it is two or more: `90 s`, `12 min`, `36 h`, `2 days`. What is yet to
    come, by a clock that is wrong, is `0 s`.
    """
    for unit, name in _UNITS[:-1]:
        if seconds >= 2 * unit:
            number = int(seconds // unit)
            return f"{number if number < 10_000 else short_number(number)} {name}"
    return f"{max(0, int(seconds))} s"


def moment_text(seconds: float) -> str:
    """A moment since the epoch in UTC: `2026-11-27T17:46:02Z`; one that no calendar has, in seconds."""
    try:
        moment = _EPOCH + timedelta(seconds=seconds)
    except OverflowError:
        return f"{seconds:g} s"
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"
