"""Squarified treemaps: areas in proportion to sizes, as near to squares as they go.

Bruls, Huizing, van Wijk: "Squarified Treemaps" (2000).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Rectangle(NamedTuple):
    """A rectangle, in whatever unit."""

    x: float
    y: float
    width: float
    height: float

    @property
    def area(self) -> float:
        """Width times height."""
        return self.width * self.height

    def inset(self, left: float, top: float, right: float, bottom: float) -> Rectangle:
        """The rectangle without its margins, never of less than no extent."""
        width, height = max(self.width - left - right, 0.0), max(self.height - top - bottom, 0.0)
        return Rectangle(self.x + left, self.y + top, width, height)


def squarify(sizes: Sequence[float], within: Rectangle) -> list[Rectangle]:
    """A rectangle for each of these sizes, descending and greater than 0; together they fill the whole."""
    found: list[Rectangle] = []
    total = float(sum(sizes))
    rest = within
    at = 0
    while at < len(sizes):
        # A row along the shorter side takes more as long as its worst rectangle gets better.
        scale = rest.area / total if total > 0 else 0.0
        side = min(rest.width, rest.height)
        end = at + 1
        row = float(sizes[at])
        worst = _worst(row * scale, sizes[at] * scale, sizes[at] * scale, side)
        while end < len(sizes):
            longer = row + sizes[end]
            following = _worst(longer * scale, sizes[at] * scale, sizes[end] * scale, side)
            if following > worst:
                break
            row, worst = longer, following
            end += 1
        found += _row(sizes[at:end], row, rest, is_last=end == len(sizes), share=row / total if total > 0 else 1.0)
        rest = _without(rest, row / total if total > 0 else 1.0)
        total -= row
        at = end
    return found


def _worst(row: float, largest: float, smallest: float, side: float) -> float:
    """The greatest ratio of sides among the rectangles of a row of this area, along a side of this length."""
    if row <= 0 or smallest <= 0 or side <= 0:
        return float("inf")
    return max(side * side * largest / (row * row), row * row / (side * side * smallest))


def _row(sizes: Sequence[float], row: float, rest: Rectangle, *, is_last: bool, share: float) -> list[Rectangle]:
    share = 1.0 if is_last else share
    found: list[Rectangle] = []
    done = 0.0
    for size in sizes:
        begin, part = done / row, size / row
        done += size
        if rest.width >= rest.height:
            thickness = rest.width * share
            found.append(Rectangle(rest.x, rest.y + begin * rest.height, thickness, part * rest.height))
        else:
            thickness = rest.height * share
            found.append(Rectangle(rest.x + begin * rest.width, rest.y, part * rest.width, thickness))
    return found


def _without(rest: Rectangle, share: float) -> Rectangle:
    if rest.width >= rest.height:
        taken = rest.width * share
        return Rectangle(rest.x + taken, rest.y, max(rest.width - taken, 0.0), rest.height)
    taken = rest.height * share
    return Rectangle(rest.x, rest.y + taken, rest.width, max(rest.height - taken, 0.0))
