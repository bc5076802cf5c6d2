"""The rectangles of the treemap of a checkpoint: containers with what they hold, down to arrays.

An array that stands at several places counts at the first, as it is stored once.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np

from pytreeckpt import nodes as n
from pytreeckpt.cli.names import step_text
from pytreeckpt.cli.navigation import children, kind_at, unwrap
from pytreeckpt.cli.outline import Outline
from pytreeckpt.cli.report_treemap import Rectangle, squarify
from pytreeckpt.cli.view import joined
from pytreeckpt.index import IntArray

HEADER: Final = 17.0
"""The height of the name of a container."""
_MAX_CELLS: Final = 1500
_MAX_BELOW: Final = 400
# A smaller one is not divided, or stands together with others.
_MIN_DIVIDED: Final = 2500.0
_MIN_AREA: Final = 12.0
_DOTTED: Final = re.compile(r"[\w-]+(?:\.[\w-]+)+")


class Part(NamedTuple):
    """A subtree and what is left of its name: `0.weight` of `encoder.0.weight` in a flat dict, where names stand for
    containers.
    """

    nbytes: float
    position: int
    label: str


class Cell(NamedTuple):
    """A rectangle, in pixels, and the subtrees that it stands for: one, those of a flat dict whose names begin with its
    own, or, if `is_rest`, those that are too small for rectangles of their own. `is_divided`: into others.
    """

    path: str
    label: str
    rectangle: Rectangle
    parts: tuple[Part, ...]
    depth: int
    is_rest: bool = False
    is_divided: bool = False

    @property
    def positions(self) -> tuple[int, ...]:
        """Of its subtrees."""
        return tuple(part.position for part in self.parts)

    @property
    def has_header(self) -> bool:
        """Whether there is room for the name of a divided one."""
        return self.rectangle.width > 46 and self.rectangle.height > 2.4 * HEADER


class _Group(NamedTuple):
    """What becomes one cell. `separator`: between its label and that of what it is in."""

    label: str
    separator: str
    parts: tuple[Part, ...]

    @property
    def nbytes(self) -> float:
        return sum(part.nbytes for part in self.parts)


@dataclass(frozen=True)
class _Sizes:
    outline: Outline

    @cached_property
    def before(self) -> IntArray:
        """Bytes of the arrays before each of the outline's `array_positions`, and of all."""
        numbers = self.outline.array_numbers
        is_first = np.zeros(len(numbers), bool)
        is_first[np.unique(numbers, return_index=True)[1]] = True
        sizes = np.array([0, *self.outline.raw_sizes], np.float64)[numbers + 1] * is_first
        return np.concatenate([[0.0], np.cumsum(sizes)])

    def below(self, position: int) -> float:
        """Bytes at and below a position."""
        low, high = np.searchsorted(self.outline.array_positions, [position, self.outline.ends[position]])
        return float(self.before[high] - self.before[low])


def cells_of(outline: Outline, position: int, whole: Rectangle) -> list[Cell]:
    """The rectangles of what is below a position, outer ones before those within; none if there are no arrays."""
    sizes = _Sizes(outline)
    if sizes.below(position) <= 0:
        return []
    found: list[Cell] = []
    pending = deque([Cell("", "", whole, (Part(0.0, position, ""),), 0)])
    while pending:
        cell = pending.popleft()
        below = _below(outline, sizes, cell)
        while len(below) == 1:
            # What holds one thing only is called together with it.
            cell = _named(cell, below[0])
            below = _below(outline, sizes, cell)
        room = _room(cell)
        if below and room.area >= _MIN_DIVIDED and len(found) + len(pending) < _MAX_CELLS:
            cell = cell._replace(is_divided=True)
            pending.extend(_divided(cell, room, below))
        found.append(cell)
    return found


def _below(outline: Outline, sizes: _Sizes, cell: Cell) -> list[_Group]:
    """What a cell may be divided into, the largest first."""
    if cell.is_rest:
        return []
    first, *others = cell.parts
    if others:
        return _groups(cell.parts, ".")
    inner = unwrap(outline, first.position).position
    if kind_at(outline, inner) == n.ARRAY:
        return []
    below = [
        Part(sizes.below(child.position), child.position, step_text(child.step)) for child in children(outline, inner)
    ]
    return _groups([part for part in below if part.nbytes > 0], "/")


def _groups(parts: Sequence[Part], separator: str) -> list[_Group]:
    """Parts whose names have the same beginning, up to a dot, together."""
    by_head: dict[str, list[Part]] = {}
    for part in parts:
        head, dot, rest = part.label.partition(".")
        is_dotted = bool(dot and _DOTTED.fullmatch(part.label))
        by_head.setdefault(head if is_dotted else part.label, []).append(part._replace(label=rest if is_dotted else ""))
    groups: list[_Group] = []
    for head, members in by_head.items():
        if len(members) == 1:
            whole = f"{head}.{members[0].label}" if members[0].label else head
            groups.append(_Group(whole, separator, (members[0]._replace(label=""),)))
        else:
            groups.append(_Group(head, separator, tuple(members)))
    return sorted(groups, key=lambda group: (-group.nbytes, group.parts[0].position))


def _named(cell: Cell, group: _Group) -> Cell:
    """A cell that stands for what it holds."""
    return cell._replace(
        path=_joined(cell.path, group.label, group.separator),
        label=_joined(cell.label, group.label, group.separator),
        parts=group.parts,
    )


def _joined(before: str, label: str, separator: str) -> str:
    return joined(before, label) if separator == "/" or not before else f"{before}{separator}{label}"


def _room(cell: Cell) -> Rectangle:
    if cell.depth == 0 and not cell.label:
        return cell.rectangle
    return cell.rectangle.inset(2, HEADER if cell.has_header else 2, 2, 2)


def _divided(cell: Cell, room: Rectangle, below: list[_Group]) -> list[Cell]:
    total = sum(group.nbytes for group in below)
    enough = [group for group in below[:_MAX_BELOW] if group.nbytes / total * room.area >= _MIN_AREA]
    rest = below[len(enough) :]
    cells = [(group, False) for group in enough]
    if rest:
        parts = tuple(part for group in rest for part in group.parts)
        cells.append((_Group(f"{len(parts):,} more", "", parts), True))
        cells.sort(key=lambda one: -one[0].nbytes)
    rectangles = squarify([group.nbytes for group, _ in cells], room)
    return [
        Cell(
            cell.path if is_rest else _joined(cell.path, group.label, group.separator),
            group.label,
            rectangle,
            group.parts,
            cell.depth + 1,
            is_rest=is_rest,
        )
        for (group, is_rest), rectangle in zip(cells, rectangles, strict=True)
    ]
