"""The history of runs as curves: what is drawn, whoever draws it.

A value that is not a finite number is a gap in its curve, and told of; so is one that a logarithmic axis has no place
for. Metrics that are one quantity of several data sets (`train/loss`, `val_loss`) share a panel.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pytreeckpt.steps.choosing import best
from pytreeckpt.steps.records import Mode, StepRecord

FloatArray = NDArray[np.float64]
Along = Literal["step", "time", "epoch"]
ALONG: Final[tuple[Along, ...]] = ("step", "time", "epoch")


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What a run tells: its name, its records (ascending by step), its pins, and the metric by which steps are best."""

    label: str
    records: Sequence[StepRecord]
    pins: Mapping[str, int] = field(default_factory=dict)
    metric: str | None = None
    mode: Mode = "min"


class Mark(NamedTuple):
    """A step that stands out: its number and its place, `y` where it is on a curve."""

    text: str
    step: int
    x: float
    y: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A metric of a run: its places and values, NaN where there is a gap. `raw` are the values before smoothing.

    `missing`: the steps whose values are not finite numbers; `below`: those that a logarithmic axis has no place for.
    """

    run: str
    metric: str
    xs: FloatArray
    ys: FloatArray
    raw: FloatArray
    best: Mark | None = None
    missing: tuple[int, ...] = ()
    below: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Curves of one quantity, with one pair of axes. `pins` are of the runs whose curves these are."""

    title: str
    curves: tuple[Curve, ...]
    pins: tuple[Mark, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """What is drawn. `axis` says what the places are; `left_out` are metrics that have no panel."""

    axis: str
    panels: tuple[Panel, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    log: bool


def metrics_of(histories: Iterable[History]) -> list[str]:
    """The names of all metrics: first those by which steps are best, then as they came up."""
    histories = list(histories)
    seen = {name: None for history in histories for record in history.records for name in record.metrics}
    own = {name: None for history in histories if (name := history.metric) is not None and name in seen}
    return [*{**own, **seen}]


def plot_of(
    histories: Sequence[History],
    *,
    metrics: Sequence[str] = (),
    along: Along = "step",
    log: bool = False,
    smooth: int = 1,
    max_panels: int,
) -> Plot:
    """The curves of the histories; of all metrics, or of these. `smooth`: a mean of so many neighbours."""
    names = list(dict.fromkeys(metrics)) or metrics_of(histories)
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(quantity(name), []).append(name)
    places, axis, notes = _places(histories, along)
    panels: list[Panel] = []
    left_out: list[str] = []
    for group in groups.values():
        if len(panels) == max_panels:
            left_out += group
            continue
        drawn = [
            (history, xs, curve)
            for history, xs in zip(histories, places, strict=True)
            for name in group
            if (curve := _curve(history, xs, name, log=log, smooth=smooth)) is not None
        ]
        if drawn:
            shown = {id(history): (history, xs) for history, xs, _ in drawn}
            pins = _pins(list(shown.values()))
            title = group[0] if len(group) == 1 else quantity(group[0])
            panels.append(Panel(title=title, curves=tuple(curve for _, _, curve in drawn), pins=tuple(pins)))
    return Plot(axis=axis, panels=tuple(panels), left_out=tuple(left_out), notes=tuple(notes), log=log)


_DATA_SETS: Final = frozenset(["train", "training", "val", "valid", "validation", "test", "eval", "dev"])
_SEPARATOR: Final = re.compile(r"[\s_./:-]+")


def quantity(name: str) -> str:
    """The name of a metric without that of the data set: `loss` of `val_loss`, `train/loss` and `loss_train`."""
    words = _SEPARATOR.split(name)
    for first, last in ((1, len(words)), (0, len(words) - 1)):
        dropped = words[0] if first else words[-1]
        if dropped.lower() in _DATA_SETS and last > first:
            # As it is written: the separators of the rest stay.
            return name[len(dropped) :].lstrip(" _./:-") if first else name[: -len(dropped)].rstrip(" _./:-")
    return name


_UNITS: Final = (("seconds", 1.0), ("minutes", 60.0), ("hours", 3600.0), ("days", 86400.0))


def _places(histories: Sequence[History], along: Along) -> tuple[list[FloatArray], str, list[str]]:
    """The places of the records of each history, NaN where a record has none; what they are; and notes."""
    if along == "step":
        return [_floats(record.step for record in history.records) for history in histories], "step", []
    if along == "epoch":
        places = [
            _floats(np.nan if record.epoch is None else record.epoch for record in history.records)
            for history in histories
        ]
        return places, "epoch", _without(histories, places)
    moments = [_floats(record.saved_at for record in history.records) for history in histories]
    elapsed = [times - times[0] if len(times) else times for times in moments]
    longest = max((float(np.nanmax(times, initial=0.0)) for times in elapsed), default=0.0)
    # Two of a unit, so that the numbers at the axis are not all fractions.
    unit, seconds = next(((name, s) for name, s in reversed(_UNITS) if longest >= 2 * s), _UNITS[0])
    return [times / seconds for times in elapsed], f"{unit} since the first step", []


def _without(histories: Sequence[History], places: Sequence[FloatArray]) -> list[str]:
    counts = [(history.label, int(np.isnan(xs).sum())) for history, xs in zip(histories, places, strict=True)]
    return [
        f"{label}: {count:,} of the steps {'has' if count == 1 else 'have'} no epoch, "
        f"and {'is' if count == 1 else 'are'} not shown"
        for label, count in counts
        if count
    ]


def _curve(history: History, xs: FloatArray, name: str, *, log: bool, smooth: int) -> Curve | None:
    """The curve of a metric, of the steps that have it; None if there are none."""
    having = np.array([name in record.metrics for record in history.records], bool)
    if not having.any():
        return None
    records = [record for record, has in zip(history.records, having.tolist(), strict=True) if has]
    places = xs[having]
    values = _floats(record.metrics[name] for record in records)
    steps = np.array([record.step for record in records], object)
    finite = np.isfinite(values)
    below = finite & (values <= 0) if log else np.zeros(len(values), bool)
    raw = np.where(finite & ~below & np.isfinite(places), values, np.nan)
    return Curve(
        run=history.label,
        metric=name,
        xs=places,
        ys=_drawable(smoothed(raw, smooth), log=log),
        raw=raw,
        best=_best(history, records, places, raw) if name == history.metric else None,
        missing=tuple(steps[~finite].tolist()),
        below=tuple(steps[below].tolist()),
    )


def _drawable(ys: FloatArray, *, log: bool) -> FloatArray:
    """Without means that have underflowed, where zero has no place."""
    return np.where(ys > 0, ys, np.nan) if log else ys


def smoothed(values: FloatArray, window: int) -> FloatArray:
    """The mean of the numbers among `window` neighbours, half of them to each side; a gap stays a gap."""
    if window <= 1 or not len(values):
        return values
    there = np.isfinite(values)
    ones = np.ones(min(window, 2 * len(values)))
    # Not differences of sums, which would lose small values beside large ones.
    part = slice(len(ones) // 2, len(ones) // 2 + len(values))
    with np.errstate(over="ignore"):
        sums = np.convolve(np.where(there, values, 0.0), ones)[part]
    means = sums / np.maximum(np.convolve(there, ones)[part], 1)
    return np.where(there & np.isfinite(means), means, np.nan)


def _best(history: History, records: Sequence[StepRecord], xs: FloatArray, ys: FloatArray) -> Mark | None:
    """The best of the steps that were saved, if it is drawn."""
    places = {record.step: place for place, record in enumerate(records) if record.was_saved}
    saved = [records[place] for place in places.values()]
    found = None if history.metric is None else best(saved, history.metric, history.mode)
    if found is None:
        return None
    place = places[found.step]
    drawn = np.isfinite(xs[place]) and np.isfinite(ys[place])
    return Mark("best", found.step, float(xs[place]), float(ys[place])) if drawn else None


def _pins(drawn: Sequence[tuple[History, FloatArray]]) -> list[Mark]:
    """The pins of the runs that are drawn, ascending; those of one name at one place are one."""
    found: dict[tuple[float, int, str], list[str]] = {}
    for history, xs in drawn:
        places = {record.step: float(x) for record, x in zip(history.records, xs, strict=True)}
        for name, step in history.pins.items():
            if np.isfinite(places.get(step, np.nan)):
                found.setdefault((places[step], step, name), []).append(history.label)
    return [
        Mark(name if len(labels) == len(drawn) else f"{name} of {', '.join(labels)}", step, x, np.nan)
        for (x, step, name), labels in sorted(found.items())
    ]


def _floats(numbers: Iterable[float]) -> FloatArray:
    """Python ints of any size become floats; those beyond, infinities."""
    return np.array([_as_float(number) for number in numbers], np.float64)


def _as_float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:
        return np.inf if number > 0 else -np.inf
