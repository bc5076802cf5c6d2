"""What a plan does, in lines that people read: layers that differ in numbers only are one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pytreeckpt.convert.operations import describe_operations
from pytreeckpt.convert.records import Entry
from pytreeckpt.paths import Path

if TYPE_CHECKING:
    from pytreeckpt.convert.plan import Plan

_SHOWN: Final = 3
_RECIPES: Final = {
    "optax": "to go on with in optax",
    # Their states are converted, and not what optax was made with, which is in no tree.
    "torch": "the optimizers of torch keep their own options (lr, weight decay and others), which in optax are",
}
_NUMBER: Final = re.compile(r"(?<![A-Za-z0-9])\d+(?![A-Za-z0-9])|(?<=_)\d+(?![A-Za-z0-9])")


@dataclass(frozen=True, slots=True)
class Row:
    """Entries that are alike: `count` of them, the first as text."""

    source: str
    target: str
    operations: str
    reason: str
    quantity: str
    count: int


@dataclass(frozen=True, slots=True)
class Report:
    """`mapped`, `dropped` and `filled`: entries that are alike, together; `unused` and `missing`: what was waived."""

    conventions: tuple[str, str]
    mapped: tuple[Row, ...]
    dropped: tuple[Row, ...]
    filled: tuple[Row, ...]
    unused: tuple[str, ...]
    missing: tuple[str, ...]
    notes: tuple[str, ...]
    recipes: tuple[str, ...]
    n_entries: int

    def __str__(self) -> str:
        lines = [f"{self.conventions[0]} to {self.conventions[1]}, {self.n_entries} entries"]
        lines += _table("mapped", self.mapped)
        lines += _table("dropped, kept as residuals", self.dropped)
        lines += _table("filled", self.filled)
        for title, texts in (
            ("unused, waived", self.unused),
            ("missing, waived", self.missing),
            ("to know", self.notes),
            (_RECIPES["torch" if self.conventions[1] == "torch" else "optax"], self.recipes),
        ):
            if texts:
                lines += ["", f"{title}:", *(f"  {text}" for text in texts)]
        return "\n".join(lines)


def report_of(plan: Plan) -> Report:
    """The report of a plan."""
    mapped = [entry for entry in plan.entries if entry.sources and entry.targets]
    dropped = [entry for entry in plan.entries if not entry.targets]
    filled = [entry for entry in plan.entries if not entry.sources]
    return Report(
        plan.conventions,
        rows_of(mapped),
        rows_of(dropped),
        rows_of(filled),
        tuple(map(str, plan.unused)),
        tuple(map(str, plan.missing)),
        plan.notes,
        tuple(f"{recipe.of}: {recipe}" if recipe.of else str(recipe) for recipe in plan.recipes),
        len(plan.entries),
    )


def rows_of(entries: Iterable[Entry]) -> tuple[Row, ...]:
    """Entries, those together that differ in numbers of their paths only."""
    groups: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries:
        operations = describe_operations(entry.operations)
        key = (_pattern(entry.sources), _pattern(entry.targets), operations, entry.reason, entry.quantity)
        groups.setdefault(key, []).append(entry)
    return tuple(
        Row(_texts(group[0].sources), _texts(group[0].targets), operations, reason, quantity, len(group))
        for (_, _, operations, reason, quantity), group in groups.items()
    )


def _pattern(paths: Sequence[Path]) -> str:
    return _NUMBER.sub("#", ", ".join(map(str, paths)))


def _texts(paths: Sequence[Path]) -> str:
    if len(paths) > _SHOWN:
        return f"{paths[0]} and {len(paths) - 1} more"
    return ", ".join(map(str, paths))


def _table(title: str, rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    lines = ["", f"{title}:"]
    for row in rows:
        arrow = f"{row.source} → {row.target}" if row.source and row.target else row.source or row.target
        times = f"  ×{row.count}" if row.count > 1 else ""
        lines.append(f"  {arrow}{times}")
        lines.append(f"      {row.operations}  [{row.reason}]")
    return lines
