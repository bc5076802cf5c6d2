"""Branches of an outline: one subtree or several alike, so that the 24 layers of a transformer are one row and not 24.

Siblings are alike if their names differ in numbers only and their structure, types and dtypes are the same: items of a
list, integer keys, `layer_0` to `layer_23`, or `h.0.mlp.weight` to `h.11.mlp.weight` in a flat dict. Where their shapes
differ, it takes many of them to be shown as one.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pytreeckpt import nodes as n
from pytreeckpt.cli.likeness import Likeness
from pytreeckpt.cli.names import step_text
from pytreeckpt.cli.navigation import Child, children, kind_at, n_children, subtrees, unwrap, values_of
from pytreeckpt.cli.outline import Outline, n_shown

MIN_ALIKE = 3
"""So many siblings alike become one branch."""
MIN_ALIKE_VALUES = 8
"""So many plain values."""
MIN_ALIKE_BUT_SHAPES = 16
"""So many whose shapes differ."""
MAX_SERIES = 8
"""So many series of siblings, each of one shape, are a row each."""


@dataclass(frozen=True, slots=True)
class Branch:
    """What one row shows: the subtrees at `positions`, all alike; if `mixed`, but for the shapes of their arrays."""

    label: str
    positions: tuple[int, ...]
    mixed: bool = False
    attribute: bool = False


def branches_below(likeness: Likeness, branch: Branch, *, grouped: bool) -> list[Branch]:
    """The branches one level down; siblings alike as one if `grouped`."""
    outline = likeness.outline
    first, *others = branch.positions
    wrapped = unwrap(outline, first)
    all_below = [*children(outline, wrapped.position), *wrapped.attributes]
    shown = [(place, child) for place, child in enumerate(all_below) if _is_shown(outline, child)]
    # All have the same children, so that the keys need be read but once.
    columns = [[child.position] for _, child in shown]
    for position in others:
        alike = unwrap(outline, position)
        below = [*values_of(outline, alike.position), *(child.position for child in alike.attributes)]
        for column, (place, _) in zip(columns, shown, strict=True):
            column.append(below[place])
    branches = [
        Branch(step_text(child.step), tuple(column), branch.mixed, branch.attribute or child.attribute)
        for (_, child), column in zip(shown, columns, strict=True)
    ]
    return _gathered(likeness, branches) if grouped else branches


def _is_shown(outline: Outline, child: Child) -> bool:
    if child.attribute:
        return not is_brief(outline, child.position)
    return bool(outline.inner[child.position]) or n_shown(outline, child.position) > 0


def is_brief(outline: Outline, position: int) -> bool:
    """Whether an attribute is a plain value, or a few of them, that fit beside the value."""
    kind = kind_at(outline, position)
    if kind not in {n.LIST, n.TUPLE}:
        return kind < n.ARRAY
    number = n_children(outline, position)
    below = subtrees(outline, position + 1, number)
    return number <= 4 and all(kind_at(outline, child) < n.ARRAY for child in below)


_NUMBER = re.compile("([0-9]{1,18})")


def _gathered(likeness: Likeness, branches: Sequence[Branch]) -> list[Branch]:
    by_name: dict[str, list[int]] = {}
    for place, branch in enumerate(branches):
        name = _NUMBER.sub("#", branch.label)
        if name != branch.label:
            by_name.setdefault(name, []).append(place)
    merged: dict[int, Branch] = {}
    gone: set[int] = set()
    for places in by_name.values():
        if len(places) < MIN_ALIKE:
            continue
        for alike, mixed in _alike(likeness, branches, places):
            merged[alike[0]] = _merge([branches[place] for place in alike], mixed=mixed)
            gone.update(alike[1:])
    return [merged.get(place, branch) for place, branch in enumerate(branches) if place not in gone]


def _alike(likeness: Likeness, branches: Sequence[Branch], places: Iterable[int]) -> list[tuple[list[int], bool]]:
    """The places of branches to be one, and whether their shapes differ."""
    by_structure: dict[Hashable, dict[Hashable, list[int]]] = {}
    for place in places:
        branch = branches[place]
        structure, shapes = likeness.structure(branch.positions[0])
        by_shapes = by_structure.setdefault((structure, branch.attribute), {})
        by_shapes.setdefault(None if branch.mixed else shapes, []).append(place)
    found: list[tuple[list[int], bool]] = []
    for by_shapes in by_structure.values():
        together = sorted(place for alike in by_shapes.values() for place in alike)
        # Values are what one wants to see.
        enough = MIN_ALIKE_VALUES if _is_plain(likeness.outline, branches[together[0]]) else MIN_ALIKE
        series = [alike for alike in by_shapes.values() if len(alike) >= enough and _is_series(branches, alike)]
        all_in_series = len(series) == len(by_shapes) <= MAX_SERIES
        if len(by_shapes) == 1 and len(together) >= enough:
            found.append((together, False))
        elif len(by_shapes) > 1 and len(together) >= MIN_ALIKE_BUT_SHAPES and not all_in_series:
            found.append((together, True))
        else:
            # A few layers of many shapes, or many layers of a few: the shapes are what one wants to see.
            found += [(alike, False) for alike in series]
    return found


def _is_plain(outline: Outline, branch: Branch) -> bool:
    return kind_at(outline, unwrap(outline, branch.positions[0]).position) < n.ARRAY


def _is_series(branches: Sequence[Branch], places: Sequence[int]) -> bool:
    """Whether the numbers in the names are evenly spaced, so that the name for all of them tells which they are."""
    columns = zip(*(_NUMBER.findall(branches[place].label) for place in places), strict=True)
    return all(len(_steps(_distinct(column))) <= 1 for column in columns)


def _distinct(column: Iterable[str]) -> list[int]:
    return sorted(set(map(int, column)))


def _steps(numbers: Sequence[int]) -> set[int]:
    return {after - before for before, after in pairwise(numbers)}


def _merge(branches: Sequence[Branch], *, mixed: bool) -> Branch:
    first = branches[0]
    texts = _NUMBER.split(first.label)
    columns = zip(*(_NUMBER.findall(branch.label) for branch in branches), strict=True)
    for place, column in enumerate(columns):
        if len(set(column)) > 1:
            text = _span(_distinct(column))
            # The brackets of an index hold a range well enough.
            texts[2 * place + 1] = text if texts[2 * place].endswith("[") else f"{{{text}}}"
    positions = tuple(position for branch in branches for position in branch.positions)
    return Branch("".join(texts), positions, first.mixed or mixed, first.attribute)


def _span(numbers: Sequence[int]) -> str:
    """The text of numbers in ascending order: `0…11`, `0,2…22`, `1,4,9`; without a pattern, `0…147`."""
    steps = _steps(numbers)
    if len(numbers) < MIN_ALIKE or (len(numbers) == MIN_ALIKE and len(steps) > 1):
        return ",".join(map(str, numbers))
    second = f",{numbers[1]}" if len(steps) == 1 and steps != {1} else ""
    return f"{numbers[0]}{second}…{numbers[-1]}"
