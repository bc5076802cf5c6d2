"""A view of an outline: which branches are open, and the rows of a table that show them."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from pytreeckpt.cli.branches import Branch, branches_below
from pytreeckpt.cli.describe import Description, content_text, describe
from pytreeckpt.cli.layout import Row, Style
from pytreeckpt.cli.likeness import Likeness
from pytreeckpt.cli.navigation import unwrap
from pytreeckpt.cli.outline import Outline, arrays_below, totals
from pytreeckpt.cli.runs import is_run
from pytreeckpt.cli.text import size

MAX_ROWS: Final = 160
"""So many rows are opened, level by level, where no depth is asked for."""
MAX_BELOW: Final = 40
"""So many branches are shown below one."""
_MAX_LEVELS: Final = 16
_MAX_GUIDE: Final = 24
"""So many levels are drawn before a label."""
# Fewer leaves than these are shown again rather than called like others.
_MIN_REPEATED: Final = 8


@dataclass(slots=True)
class Node:
    """An open or closed branch. `below`: what is shown below it; `left_out`: what is not, because it is too much.

    `like`: the path of one that has the same arrays below it, and is shown.
    """

    branch: Branch
    description: Description
    path: str
    depth: int
    below: list[Node] = field(default_factory=list)
    left_out: list[Branch] = field(default_factory=list)
    like: str | None = None
    is_open: bool = False


@dataclass(frozen=True, slots=True)
class View:
    """What is shown. `closed_at`: the level below which nothing is, for want of room.

    `grouped`: some branches stand for several. `repeated`: some are closed because they are like others. `left_out`:
    some are not shown.
    """

    root: Node
    closed_at: int | None
    grouped: bool
    repeated: bool
    left_out: bool


Order = Callable[[Outline, Branch], Any]


def _by_name(_outline: Outline, branch: Branch) -> Any:
    # Numbers in names by their value: layer_2 before layer_10.
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split("([0-9]{1,18})", branch.label) if part
    ]


ORDERS: Final[Mapping[str, Order | None]] = {
    "order": None,
    "name": _by_name,
    "size": lambda outline, branch: -totals(outline, branch.positions).raw_nbytes,
    "stored": lambda outline, branch: -totals(outline, branch.positions).stored_nbytes,
}


def unfold(outline: Outline, root: Branch, *, depth: int | None, order: str, everything: bool, repeats: bool) -> View:
    """Open a branch down to `depth`, or as far as there is room; to every leaf if `everything`. With `repeats`, what
    has the same arrays as something else is opened too.
    """
    growth = _Growth(Likeness(outline), order, everything=everything, repeats=everything or repeats)
    top = Node(root, describe(outline, root), "", 0)
    level = [top]
    n_rows = 1
    closed_at = None
    while level:
        at = level[0].depth
        if depth is not None and at >= depth:
            break
        opened = [(node, *growth.below(node)) for node in level if growth.opens(node)]
        n_more = sum(len(shown) + bool(rest) for _, shown, rest in opened)
        full = n_rows + n_more > MAX_ROWS or at >= _MAX_LEVELS
        if depth is None and not everything and full and at > 0 and n_more:
            closed_at = at
            break
        n_rows += n_more
        level = []
        for node, shown, rest in opened:
            node.below = [
                Node(branch, describe(outline, branch), joined(node.path, branch.label), at + 1) for branch in shown
            ]
            node.left_out = rest
            node.is_open = bool(shown)
            level += node.below
    nodes = list(_preorder(top))
    return View(
        top,
        closed_at,
        grouped=any(len(node.branch.positions) > 1 for node in nodes),
        repeated=any(node.like is not None for node in nodes),
        left_out=any(node.left_out for node in nodes),
    )


def joined(path: str, label: str) -> str:
    """The path of a branch below another one."""
    return path + ("" if not path or label.startswith("[") else "/") + label


@dataclass(slots=True)
class _Growth:
    """How branches are opened. `seen`: the paths of those that are open, by what is below them."""

    likeness: Likeness
    order: str
    everything: bool
    repeats: bool
    seen: dict[Hashable, str] = field(default_factory=dict)

    def opens(self, node: Node) -> bool:
        """Whether a node is to be opened; says what it is like if it is not."""
        if node.description.is_leaf:
            # At the root, a long list of numbers is opened: somebody has asked for it.
            position = unwrap(self.likeness.outline, node.branch.positions[0]).position
            return node.depth == 0 and is_run(self.likeness.outline, position)
        summed = node.description.totals
        of_one = summed.n_leaves // len(node.branch.positions)
        if self.repeats or node.branch.mixed or of_one < _MIN_REPEATED or not self.arrays_only(node):
            return True
        structure = (self.likeness.structure(node.branch.positions[0]), len(node.branch.positions))
        node.like = self.seen.get(structure)
        self.seen.setdefault(structure, node.path)
        return node.like is None

    def arrays_only(self, node: Node) -> bool:
        """Whether all leaves below are arrays, so that nothing is hidden that cannot be seen elsewhere."""
        return len(arrays_below(self.likeness.outline, node.branch.positions)) == node.description.totals.n_leaves

    def below(self, node: Node) -> tuple[list[Branch], list[Branch]]:
        """The branches to show below a node, and those to leave out."""
        if node.description.is_leaf:
            # A long list of numbers, item by item.
            return self.capped(branches_below(self.likeness, node.branch, grouped=False))
        branches = self.branches(node.branch)
        # A list of layers all alike: `h[0…11]` is one row, not two.
        while node.depth and len(branches) == 1 and len(branches[0].positions) > len(node.branch.positions):
            node.path = joined(node.path, branches[0].label)
            node.branch = replace(branches[0], label=joined(node.branch.label, branches[0].label))
            node.description = describe(self.likeness.outline, node.branch)
            branches = [] if node.description.is_leaf else self.branches(node.branch)
        key = ORDERS[self.order]
        if key is not None:
            branches.sort(key=lambda branch: key(self.likeness.outline, branch))
        return self.capped(branches)

    def capped(self, branches: list[Branch]) -> tuple[list[Branch], list[Branch]]:
        """As many as are shown, and the others."""
        if self.everything or len(branches) <= MAX_BELOW:
            return branches, []
        return branches[: MAX_BELOW - 5], branches[MAX_BELOW - 5 :]

    def branches(self, branch: Branch) -> list[Branch]:
        """The branches one level down."""
        return branches_below(self.likeness, branch, grouped=not self.everything)


def _preorder(top: Node) -> list[Node]:
    found: list[Node] = []
    pending = [top]
    while pending:
        node = pending.pop()
        found.append(node)
        pending.extend(reversed(node.below))
    return found


Cells = Callable[[Branch, Description], Sequence[str]]
Alarm = Callable[[Branch], str]


def rows(outline: Outline, view: View, cells: Cells, alarm: Alarm | None = None) -> list[Row]:
    """The rows of a view, in order, with the branches of the tree drawn before the labels."""
    shown: list[Row] = []
    # A node, the guide of its children, and its own.
    pending: list[tuple[Node | list[Branch], str, str]] = [(view.root, "", "")]
    while pending:
        node, guide, before = pending.pop()
        if isinstance(node, list):
            shown.append(_rest_row(outline, node, guide))
            continue
        shown.append(_row(node, guide, cells, alarm))
        below: list[Node | list[Branch]] = [*node.below]
        if node.left_out:
            below.append(node.left_out)
        for place in range(len(below) - 1, -1, -1):
            last = place == len(below) - 1
            prefix = before if node.depth < _MAX_GUIDE else f"… {node.depth} levels "
            pending.append((below[place], prefix + ("└─ " if last else "├─ "), prefix + ("   " if last else "│  ")))
    return shown


def _row(node: Node, guide: str, cells: Cells, alarm: Alarm | None) -> Row:
    description = node.description
    style: Style = description.style
    inside = f"like {node.like}" if node.like is not None else ""
    if style == "container" and not (node.is_open or inside):
        inside = f"[{content_text(description.totals)}]"
    note = ", ".join(filter(None, [inside, description.note]))
    row_cells = () if style == "value" else tuple(cells(node.branch, description))
    alarmed = "" if alarm is None or node.is_open else alarm(node.branch)
    return Row(guide, node.branch.label, description.text, row_cells, note, style, alarmed)


def _rest_row(outline: Outline, branches: Sequence[Branch], guide: str) -> Row:
    summed = totals(outline, [position for branch in branches for position in branch.positions])
    sizes = f", {size(summed.raw_nbytes)}" if summed.n_arrays else ""
    return Row(guide, f"… {len(branches):,} more", f"{content_text(summed)}{sizes}", (), "", "note")
