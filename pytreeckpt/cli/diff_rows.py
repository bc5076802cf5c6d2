"""The changes of a diff as a tree of paths, and the rows of a table that show it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pytreeckpt.cli.diff_words import cells_of, change_text, finite_text
from pytreeckpt.cli.layout import Row, Style
from pytreeckpt.cli.names import step_text
from pytreeckpt.cli.view import MAX_BELOW, MAX_ROWS, joined
from pytreeckpt.operations.diff_records import KINDS, Change, count_text


@dataclass(slots=True)
class Branch:
    """A path with changes at it or below it. `below`: by the text of the next step."""

    label: str
    changes: list[Change] = field(default_factory=list)
    below: dict[str, Branch] = field(default_factory=dict)

    def all_changes(self) -> Iterator[Change]:
        """The changes at and below it."""
        pending: list[Branch] = [self]
        while pending:
            branch = pending.pop()
            yield from branch.changes
            pending.extend(reversed(branch.below.values()))


def branches_of(changes: Sequence[Change], label: str) -> Branch:
    """The tree of these changes; a path without changes and with one branch below it is one with that."""
    root = Branch(label)
    for change in changes:
        branch = root
        for step in change.path:
            text = step_text(step)
            branch = branch.below.setdefault(text, Branch(text))
        branch.changes.append(change)
    pending = [root]
    while pending:
        branch = pending.pop()
        branch.below = {label: _shortened(below) for label, below in branch.below.items()}
        pending.extend(branch.below.values())
    return root


def _shortened(branch: Branch) -> Branch:
    while not branch.changes and len(branch.below) == 1:
        below = next(iter(branch.below.values()))
        branch = Branch(joined(branch.label, below.label), below.changes, below.below)
    return branch


def _by_size(branch: Branch) -> Any:
    return -sum(max(side.nbytes for side in (change.a, change.b) if side) for change in branch.all_changes())


def _by_change(branch: Branch) -> Any:
    # What has no number to it stands first.
    greatest = [
        change.values.max_abs if change.values and change.values.max_abs is not None else float("inf")
        for change in branch.all_changes()
    ]
    return -max(greatest)


ORDERS: Final[Mapping[str, Callable[[Branch], Any] | None]] = {"order": None, "size": _by_size, "change": _by_change}


@dataclass(slots=True)
class _Node:
    branch: Branch
    depth: int
    below: list[_Node] = field(default_factory=list)
    n_left_out: int = 0


def rows(root: Branch, *, order: str, everything: bool) -> tuple[list[Row], bool]:
    """The rows, as many levels of them as there is room for, and whether some were left out."""
    key = ORDERS[order]
    top = _Node(root, 0)
    level = [top]
    n_rows = 1
    cut = False
    while level:
        opened: list[tuple[_Node, list[Branch]]] = []
        for node in level:
            below = list(node.branch.below.values())
            if key is not None:
                below.sort(key=key)
            if below and (everything or node.depth == 0 or not _is_one(node.branch)):
                opened.append((node, below))
            elif below:
                cut = True
        n_more = sum(min(len(below), MAX_BELOW) for _, below in opened)
        if not everything and level[0].depth > 0 and n_rows + n_more > MAX_ROWS:
            cut = cut or bool(opened)
            break
        n_rows += n_more
        level = []
        for node, below in opened:
            shown = below if everything or len(below) <= MAX_BELOW else below[: MAX_BELOW - 5]
            node.n_left_out = len(below) - len(shown)
            cut = cut or node.n_left_out > 0
            node.below = [_Node(branch, node.depth + 1) for branch in shown]
            level += node.below
    return _drawn(top), cut


def _is_one(branch: Branch) -> bool:
    """Whether all that is below was added, or removed: a row says so."""
    kinds = {change.kind for change in branch.all_changes()}
    return kinds in ({"added"}, {"removed"}) and not branch.changes


def _drawn(top: _Node) -> list[Row]:
    shown: list[Row] = []
    pending: list[tuple[_Node | int, str, str]] = [(top, "", "")]
    while pending:
        node, guide, before = pending.pop()
        if isinstance(node, int):
            shown.append(Row(guide, f"… {node:,} more", "", (), "", "note"))
            continue
        shown.append(_row(node, guide))
        below: list[_Node | int] = [*node.below]
        if node.n_left_out:
            below.append(node.n_left_out)
        for place in range(len(below) - 1, -1, -1):
            last = place == len(below) - 1
            pending.append((below[place], before + ("└─ " if last else "├─ "), before + ("   " if last else "│  ")))
    return shown


def _row(node: _Node, guide: str) -> Row:
    branch = node.branch
    changes = branch.changes
    if node.below or not branch.below:
        text = "; ".join(map(change_text, changes))
        cells = cells_of([change for change in changes if change.values])
        alarm = ", ".join(filter(None, map(finite_text, changes)))
        return Row(guide, branch.label, text, cells, "", _style(changes), alarm)
    every = list(branch.all_changes())
    return Row(
        guide, branch.label, _summed(every), cells_of([change for change in every if change.values]), "", _style(every)
    )


def _summed(changes: Sequence[Change]) -> str:
    times = Counter(change.kind for change in changes)
    return ", ".join(count_text(kind, times[kind]) for kind in KINDS if times[kind])


def _style(changes: Sequence[Change]) -> Style:
    kinds = {change.kind for change in changes}
    if not kinds:
        return "container"
    return "good" if kinds == {"added"} else "bad" if kinds == {"removed"} else "plain"
