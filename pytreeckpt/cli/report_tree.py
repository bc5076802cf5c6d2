"""The tree of a checkpoint as nested `details`: open at the top, closed further down, and of bounded size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from pytreeckpt.cli.branches import Branch, branches_below
from pytreeckpt.cli.describe import Description, content_text, describe
from pytreeckpt.cli.likeness import Likeness
from pytreeckpt.cli.outline import Outline, totals
from pytreeckpt.cli.report_html import Html, element, joined, name, text
from pytreeckpt.cli.text import amount, percent, size

MAX_ROWS: Final = 3000
"""So many rows the page has at most, but for one level."""
MAX_BELOW: Final = 250
"""So many branches are shown below one."""
MAX_LEVELS: Final = 60
"""So many levels: a browser nests no deeper than some hundreds."""
_OPEN_ROWS: Final = 40


@dataclass(slots=True)
class _Node:
    branch: Branch
    description: Description
    depth: int
    below: list[_Node] = field(default_factory=list)
    left_out: list[Branch] = field(default_factory=list)
    is_cut: bool = False


@dataclass(frozen=True, slots=True)
class Tree:
    """The markup, and how many branches were left out or not opened."""

    html: Html
    n_left_out: int


def tree_of(outline: Outline, position: int, label: str) -> Tree:
    """The tree below a position."""
    likeness = Likeness(outline)
    top = _Node(Branch(label, (position,)), describe(outline, Branch(label, (position,))), 0)
    level = [top]
    n_rows = 1
    n_left_out = 0
    opened_to = 0
    while level:
        following: list[_Node] = []
        for node in level:
            if node.description.is_leaf:
                continue
            if n_rows > MAX_ROWS or node.depth >= MAX_LEVELS:
                node.is_cut = True
                n_left_out += 1
                continue
            branches = branches_below(likeness, node.branch, grouped=True)
            shown = branches if len(branches) <= MAX_BELOW else branches[: MAX_BELOW - 10]
            node.left_out = branches[len(shown) :]
            n_left_out += len(node.left_out)
            node.below = [_Node(branch, describe(outline, branch), node.depth + 1) for branch in shown]
            n_rows += len(shown)
            following += node.below
        if following and n_rows <= _OPEN_ROWS:
            opened_to = following[0].depth
        level = following
    whole = totals(outline, [position]).raw_nbytes
    return Tree(_markup(outline, top, whole, opened_to), n_left_out)


def _markup(outline: Outline, top: _Node, whole: int, opened_to: int) -> Html:
    """Children before parents, so that nothing recurses."""
    order: list[_Node] = []
    pending = [top]
    while pending:
        node = pending.pop()
        order.append(node)
        pending.extend(node.below)
    made: dict[int, Html] = {}
    for node in reversed(order):
        row = _row(outline, node, whole)
        if not node.below and not node.left_out:
            made[id(node)] = element("div", row, class_="leaf")
            continue
        inside = [made.pop(id(below)) for below in node.below]
        if node.left_out:
            inside.append(_rest(outline, node.left_out))
        content = element("div", *inside, class_="below")
        made[id(node)] = element("details", element("summary", row), content, open=node.depth < max(opened_to, 1))
    return made[id(top)]


def _row(outline: Outline, node: _Node, whole: int) -> Html:
    description, summed = node.description, node.description.totals
    note = description.note
    if node.is_cut:
        note = ", ".join(filter(None, [f"{content_text(summed)}, not opened here", note]))
    style = description.style
    cells = [
        element("span", name(node.branch.label), class_="name"),
        element("span", text(description.text), class_=f"what {style}"),
        element("span", text(note), class_="note") if note else Html(""),
    ]
    numbers = ["", "", ""]
    bar = Html("")
    if summed.n_arrays:
        share = summed.raw_nbytes / whole if whole else 0.0
        numbers = [amount(summed.n_items), size(summed.raw_nbytes), size(summed.stored_nbytes)]
        bar = element("i", style=f"width:{100 * share:.1f}%", title=f"{percent(summed.raw_nbytes, whole)} of the whole")
    # How much of it an array takes, a foreign file does not say.
    numbers = numbers if outline.index.own else numbers[:2]
    return joined(
        [
            element("span", *cells, class_="label"),
            *(element("span", text(number), class_="number") for number in numbers),
            element("span", bar, class_="bar" if bar else "bar none"),
        ]
    )


def _rest(outline: Outline, branches: Sequence[Branch]) -> Html:
    summed = totals(outline, [position for branch in branches for position in branch.positions])
    sizes = f", {size(summed.raw_nbytes)}" if summed.n_arrays else ""
    what = f"… {len(branches):,} more left out: {content_text(summed)}{sizes}"
    return element("div", element("span", text(what), class_="label note"), class_="leaf")
