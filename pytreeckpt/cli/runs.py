"""Runs of plain values, each one row: a list of 10,000 losses, the 625 ints of a random state, a vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Final

from pytreeckpt import nodes as n
from pytreeckpt.cli.names import KIND_NAMES, items_text, step_text
from pytreeckpt.cli.navigation import children, kind_at, n_children
from pytreeckpt.cli.outline import Outline, n_shown
from pytreeckpt.cli.text import cut
from pytreeckpt.cli.values import value_text

WIDTH: Final = 60
"""Columns of a value."""
_LITERAL_WIDTH: Final = 48
_LITERAL_ITEMS: Final = 8
_ITEM_WIDTH: Final = 24
_MAX_DICT: Final = 24
"""A dict of so many plain values still has a row for each."""
_PLAIN: Final = bytes(range(n.ARRAY))


def is_run(outline: Outline, position: int) -> bool:
    """Whether it is a list or tuple of plain values, or a long dict of these, all of them shown."""
    kind = kind_at(outline, position)
    if kind not in {n.LIST, n.TUPLE, n.DICT}:
        return False
    number = n_children(outline, position)
    start, end = _first_item(outline, position), outline.ends[position]
    if end - start != number or outline.nodes.kinds[start:end].translate(None, _PLAIN):
        return False
    all_shown = n_shown(outline, position) == number or bool(outline.inner[position])
    return all_shown and (kind != n.DICT or number > _MAX_DICT)


def _first_item(outline: Outline, position: int) -> int:
    """Where the items begin: in a dict, after the keys."""
    number = n_children(outline, position)
    return outline.ends[position] - number if kind_at(outline, position) == n.DICT else position + 1


def run_text(outline: Outline, positions: Sequence[int]) -> str:
    """`[0.9, 0.999]`, or `list of 10,000 floats  10.8, 10.7 … 3.1`."""
    first = positions[0]
    kind = kind_at(outline, first)
    number = n_children(outline, first)
    if number <= _LITERAL_ITEMS and len(positions) == 1 and kind != n.DICT:
        text = value_text(outline, first, 2 * _LITERAL_WIDTH)
        if len(text) <= _LITERAL_WIDTH:
            return text
    start = _first_item(outline, first)
    what = f"{KIND_NAMES[kind]} of {items_text(set(outline.nodes.kinds[start : start + number]), number)}"
    if len(positions) > 1:
        return what
    if kind != n.DICT and _all_the_same(outline, start, number):
        return f"{what}, all {_item(outline, start)}"
    return f"{what}  {_preview(outline, first, WIDTH - len(what))}"


def _item(outline: Outline, position: int) -> str:
    return value_text(outline, position, _ITEM_WIDTH, brief=True)


def _all_the_same(outline: Outline, start: int, number: int) -> bool:
    kinds = bytes(outline.nodes.kinds[start : start + number])
    if kinds.translate(None, kinds[:1]) or kinds[0] not in {n.INT, n.FLOAT}:
        return False
    column: Sequence[float] = outline.nodes.ints if kinds[0] == n.INT else outline.nodes.floats
    first = outline.entries[start]
    values = column[first : first + number]
    return number > 1 and all(value == values[0] for value in values)


def _preview(outline: Outline, position: int, width: int) -> str:
    """The first items, as many as fit, and the last."""
    start, end = _first_item(outline, position), outline.ends[position]
    is_dict = kind_at(outline, position) == n.DICT
    # No item takes less than two columns.
    limit = max(width // 2, 1)
    keys = [f"{cut(step_text(child.step), _ITEM_WIDTH)}: " for child in islice(children(outline, position), limit)]
    last = "" if is_dict else _item(outline, end - 1)
    text = ""
    for place, key in enumerate(keys):
        item = (key if is_dict else "") + _item(outline, start + place)
        longer = f"{text}, {item}" if text else item
        if place and len(longer) + len(last) + 3 > width:
            break
        text = longer
        if start + place == end - 1:
            return text
    return f"{text}, {last}" if last and end - start == 2 else f"{text} … {last}".rstrip()
