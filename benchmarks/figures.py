"""Figures as records: what was measured, their summaries, and the file that holds them. Nothing here measures."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

OURS = "pytreeckpt"
OURS_RAW = "pytreeckpt none"
OURS_MAPPED = "pytreeckpt mmap"
COPY = "plain copy"


@dataclass(frozen=True, slots=True)
class Figure:
    """What one candidate needed for one operation: `values` holds one number of each round, in seconds or bytes.

    `case` is the kind of measurement, `data` what was saved, and `nbytes` the size of that in memory.
    """

    case: str
    data: str
    candidate: str
    operation: str
    unit: Literal["s", "B"]
    nbytes: int
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Summary:
    """The median, and how far the rounds spread around it."""

    median: float
    minimum: float
    lower: float
    upper: float
    n: int


@dataclass(frozen=True, slots=True)
class Entrant:
    """What a reader should know of a candidate: its version, and what it does less or otherwise than the others."""

    name: str
    version: str
    notes: str


@dataclass(frozen=True, slots=True)
class Failure:
    """A candidate that could not do a case: the class of the error, whose text may name paths."""

    case: str
    data: str
    candidate: str
    error: str


@dataclass(frozen=True, slots=True)
class Results:
    """All of one run."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    entrants: tuple[Entrant, ...]
    figures: tuple[Figure, ...]
    failures: tuple[Failure, ...] = ()


def summary(values: Sequence[float]) -> Summary:
    """Median, minimum and quartiles; the quartiles of few rounds are interpolated between them."""
    if not values:
        raise ValueError("no values to summarise")
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return Summary(median, min(values), lower, upper, len(values))


def find(results: Results, case: str, data: str, candidate: str, operation: str) -> Figure | None:
    """The figure with these properties, if it was measured."""
    for figure in results.figures:
        if (figure.case, figure.data, figure.candidate, figure.operation) == (case, data, candidate, operation):
            return figure
    return None


def median(results: Results, case: str, data: str, candidate: str, operation: str) -> float | None:
    """The median of a figure, or None where there is none."""
    figure = find(results, case, data, candidate, operation)
    return summary(figure.values).median if figure else None


def times_faster(
    results: Results, case: str, data: str, operation: str, peers: Sequence[str], *, ours: str = OURS
) -> float | None:
    """How many times faster we are than the fastest of these peers: a ratio of medians of the same run."""
    our_median = median(results, case, data, ours, operation)
    medians = [value for peer in peers if (value := median(results, case, data, peer, operation)) is not None]
    return min(medians) / our_median if our_median and medians else None


def distinct(values: Iterable[str]) -> list[str]:
    """Each once, in the order of the first."""
    return list(dict.fromkeys(values))


def to_text(results: Results) -> str:
    """The results as JSON, one figure to a line, so that versions of the file can be compared."""
    parts = asdict(results)
    figures = ",\n".join("    " + json.dumps(figure, ensure_ascii=False) for figure in parts.pop("figures"))
    head = json.dumps(parts, indent=2, ensure_ascii=False)
    return f'{head[:-2]},\n  "figures": [\n{figures}\n  ]\n}}\n'


def from_text(text: str) -> Results:
    """The inverse of `to_text`."""
    parts = json.loads(text)
    return Results(
        parts["machine"],
        parts["settings"],
        tuple(Entrant(**entrant) for entrant in parts["entrants"]),
        tuple(Figure(**{**figure, "values": tuple(figure["values"])}) for figure in parts["figures"]),
        tuple(Failure(**failure) for failure in parts["failures"]),
    )


def write(results: Results, path: Path) -> None:
    """Write the file; a run that is cut short keeps the cases that it finished."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_text(results), encoding="utf-8")


def read(path: Path) -> Results:
    """Read what `write` wrote."""
    return from_text(path.read_text(encoding="utf-8"))
