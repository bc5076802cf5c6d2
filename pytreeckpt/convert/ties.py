"""Names of one tied leaf: several of torch become one, or one becomes several."""

from __future__ import annotations

from dataclasses import replace

from pytreeckpt.convert.draft import Draft
from pytreeckpt.convert.operations import Repeat, Tie
from pytreeckpt.convert.records import Leaf, Model


def plan_ties(drafted: Draft) -> None:
    """Give names that are left over to the entries of leaves that they are tied to."""
    by_source = {entry.sources[0]: number for number, entry in enumerate(drafted.entries) if len(entry.sources) == 1}
    for group in _tied(drafted.source):
        loose = [leaf for leaf in group if leaf.name not in drafted.sources]
        kept = [leaf for leaf in group if leaf.path in by_source]
        if not loose or not kept:
            continue
        number = by_source[kept[0].path]
        entry = drafted.entries[number]
        sources = (kept[0].path, *(leaf.path for leaf in loose))
        drafted.entries[number] = replace(
            entry, sources=sources, operations=(Tie(len(sources)), *entry.operations), reason=f"{entry.reason}, tied"
        )
        drafted.sources.update(leaf.name for leaf in loose)
    by_target = {entry.targets[0]: number for number, entry in enumerate(drafted.entries) if len(entry.targets) == 1}
    for group in _tied(drafted.target):
        loose = [leaf for leaf in group if leaf.name not in drafted.targets]
        kept = [leaf for leaf in group if leaf.path in by_target]
        if not loose or not kept:
            continue
        number = by_target[kept[0].path]
        entry = drafted.entries[number]
        targets = (kept[0].path, *(leaf.path for leaf in loose))
        drafted.entries[number] = replace(
            entry, targets=targets, operations=(*entry.operations, Repeat(len(targets))), reason=f"{entry.reason}, tied"
        )
        drafted.targets.update(leaf.name for leaf in loose)


def _tied(model: Model) -> list[list[Leaf]]:
    groups: dict[object, list[Leaf]] = {}
    for leaf in model.leaves.values():
        if leaf.identity is not None:
            groups.setdefault((leaf.identity, leaf.shape), []).append(leaf)
    return [group for group in groups.values() if len(group) > 1]
