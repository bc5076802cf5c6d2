"""Statistics as columns of the tree, as alarms beside it, and in a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pytreeckpt.cli.branches import Branch
from pytreeckpt.cli.describe import Description
from pytreeckpt.cli.layout import Column, Line, Span
from pytreeckpt.cli.outline import Outline, arrays_below
from pytreeckpt.cli.statistics import Statistics, merged
from pytreeckpt.cli.text import count, percent

COLUMNS: Final = (Column("min"), Column("max"), Column("mean", 1), Column("std", 2), Column("zeros", 3))


def cells(
    statistics: Mapping[int, Statistics], outline: Outline, branch: Branch, description: Description
) -> Sequence[str]:
    """The columns of an array (of those shown as one together)."""
    found = _of_branch(statistics, outline, branch)
    if description.style != "array" or not found.n_finite:
        return ("",) * len(COLUMNS)
    return (
        number_text(found.minimum),
        number_text(found.maximum),
        number_text(found.mean),
        number_text(found.std),
        percent(found.n_zeros, found.n_items),
    )


def alarm(statistics: Mapping[int, Statistics], outline: Outline, branch: Branch) -> str:
    """How many numbers of a branch are not finite, if any."""
    return _not_finite(_of_branch(statistics, outline, branch))


def _of_branch(statistics: Mapping[int, Statistics], outline: Outline, branch: Branch) -> Statistics:
    arrays = sorted(set(arrays_below(outline, branch.positions).tolist()))
    return merged(statistics[array] for array in arrays if array in statistics)


def _not_finite(found: Statistics) -> str:
    parts = [f"{found.n_nan:,} NaN"] if found.n_nan else []
    return ", ".join([*parts, f"{found.n_infinite:,} infinite"] if found.n_infinite else parts)


def summary(statistics: Mapping[int, Statistics]) -> list[Line]:
    """A line that says whether all numbers are finite."""
    bad = [found for found in statistics.values() if found.n_finite < found.n_items]
    if not statistics:
        return []
    if not bad:
        return [[], [Span("all numbers are finite", "good")]]
    return [[], [Span(f"{_not_finite(merged(bad))} in {count(len(bad), 'array')}", "bad")]]


def number_text(value: float | None) -> str:
    """A number in at most ten characters."""
    if value is None:
        return ""
    if isinstance(value, int) and abs(value) < 1_000_000:
        return f"{value:,}"
    # Without the sign of a zero.
    return f"{value + 0.0:.4g}"


def line_text(found: Statistics | None) -> str:
    """The statistics of one array in a line; without them it has no numbers."""
    if found is None:
        return "none: not of numbers"
    parts = [f"{found.n_nan:,} NaN", f"{found.n_infinite:,} infinite", f"{found.n_zeros:,} zeros"]
    if found.n_finite:
        named = {"min": found.minimum, "max": found.maximum, "mean": found.mean, "std": found.std}
        parts[:0] = [f"{name} {number_text(value)}" for name, value in named.items()]
    return ", ".join(parts)
