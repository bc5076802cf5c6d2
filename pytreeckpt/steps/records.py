"""What is known of a step: of one that is there, of one that was pruned, and of one that was never saved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, SupportsFloat, SupportsIndex

Reason = Literal["scheduled", "interrupt", "exception"]
"""Why a step was saved: because it was time; because the process was told to end; because the training failed."""
REASONS: Final[tuple[Reason, ...]] = ("scheduled", "interrupt", "exception")
Mode = Literal["min", "max"]
"""Whether small or large values of a metric are good."""
MODES: Final[tuple[Mode, ...]] = ("min", "max")
MAX_STEP: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """A step that was saved, or that only has metrics.

    `step`: its number, at least 0; `root`: of its checkpoint, in hex, empty if there never was one; `nbytes`: what its
    save wrote, data files included; `saved_at`: seconds since the epoch, UTC; `metrics`: numbers by name, NaN and
    infinities too; `epoch`: as it was given.
    """

    step: int
    root: str
    nbytes: int
    saved_at: float
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    epoch: float | None = None
    reason: Reason = "scheduled"

    @property
    def is_emergency(self) -> bool:
        """Whether it was saved because something ended the training."""
        return self.reason != "scheduled"

    @property
    def was_saved(self) -> bool:
        """Whether there is, or was, a checkpoint of it."""
        return bool(self.root)


def checked_step(step: object) -> int:
    """The number of a step. Raises `TypeError` for what is no integer, and `ValueError` for one out of range."""
    if isinstance(step, bool) or not isinstance(step, SupportsIndex):
        raise TypeError(f"step={step!r} is not an integer")
    number = step.__index__()
    if not 0 <= number <= MAX_STEP:
        raise ValueError(f"step={number} is not between 0 and 2**63 - 1")
    return number


def checked_metrics(metrics: Mapping[str, SupportsFloat] | None) -> dict[str, float]:
    """Metrics as Python floats, whatever numbers they are: arrays without axes too, of any framework.

    Raises `TypeError` and `ValueError` with the name of the metric.
    """
    found: dict[str, float] = {}
    for name, value in ({} if metrics is None else dict(metrics)).items():
        found[checked_name(name)] = _number(name, value)
    return found


def _number(name: str, value: object) -> float:
    if isinstance(value, str | bytes | bytearray):
        raise TypeError(f"the metric {name!r} is text, {value!r}; a metric is a number")
    # Of arrays of any framework; torch warns where float() is taken of a tensor that needs gradients.
    item = getattr(value, "item", None)
    try:
        return float(item() if callable(item) else value)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType] - float says what it cannot take
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        what = type(value).__name__
        raise TypeError(f"the metric {name!r} is a {what} that is not one number: {error}") from error


def checked_name(name: object) -> str:
    """The name of a metric. Raises `TypeError` and `ValueError`."""
    if not isinstance(name, str):
        raise TypeError(f"the name of a metric is text, not {name!r}")
    try:
        n_bytes = len(name.encode())
    except UnicodeEncodeError:
        raise ValueError(f"the name of the metric {name!r} has a lone surrogate") from None
    if not 0 < n_bytes <= 1024:
        raise ValueError(f"the name of a metric has 1 to 1024 bytes, and this one {n_bytes}")
    return str(name)


def checked_epoch(epoch: SupportsFloat | None) -> float | None:
    """An epoch as a finite number, or None. Raises `TypeError` and `ValueError`."""
    if epoch is None:
        return None
    number = _number("epoch", epoch)
    if not math.isfinite(number):
        raise ValueError(f"epoch={number} is not finite")
    return number


def checked_reason(reason: object) -> Reason:
    """Raises `ValueError` for what is none of the reasons."""
    for known in REASONS:
        if reason == known:
            return known
    raise ValueError(f"reason={reason!r}: it is {', '.join(map(repr, REASONS))}")


def checked_mode(mode: object) -> Mode:
    """Raises `ValueError` for what is neither "min" nor "max"."""
    for known in MODES:
        if mode == known:
            return known
    raise ValueError(f"mode={mode!r}: it is 'min' or 'max'")


def checked_count(name: str, value: object) -> int:
    """A number of things, at least 1. Raises `TypeError` and `ValueError`."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise TypeError(f"{name}={value!r} is not an integer")
    if value.__index__() < 1:
        raise ValueError(f"{name}={value!r} is less than 1")
    return value.__index__()


def checked_positive(name: str, value: object) -> float:
    """A finite amount, more than 0. Raises `TypeError` and `ValueError`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}={value!r} is not a number")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}={value!r} is not a finite number above 0")
    return float(value)
