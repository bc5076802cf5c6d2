"""Names of one tied leaf: several of torch become one, or one becomes several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from pytreeckpt.convert.draft import Draft
from pytreeckpt.convert.operations import Operations, Permute, PermuteEach, Repeat, Tie
from pytreeckpt.convert.records import Entry, Leaf, Model, Name
from pytreeckpt.convert.shapes import result_shapes
from pytreeckpt.geometry import Shape
from pytreeckpt.paths import Path


def plan_ties(drafted: Draft) -> None:
    """Give names that are left over to the entries of leaves that they are tied to, and make one entry of those of tied
    leaves that each have their own.
    """
    _meet(drafted)
    _add_loose(drafted, drafted.source, drafted.sources, lambda entry: entry.sources, _with_sources)
    _add_loose(drafted, drafted.target, drafted.targets, lambda entry: entry.targets, _with_targets)


def _add_loose(
    drafted: Draft,
    model: Model,
    taken: set[Name],
    side: Callable[[Entry], tuple[Path, ...]],
    widened: Callable[[Entry, tuple[Path, ...]], Entry],
) -> None:
    numbers = {
        path: number
        for number, entry in enumerate(drafted.entries)
        if len(side(entry)) == 1 or _is_tied(entry)
        for path in side(entry)
    }
    for group in _tied(model):
        loose = [leaf for leaf in group if leaf.name not in taken]
        number = next((numbers[leaf.path] for leaf in group if leaf.path in numbers), None)
        if not loose or number is None:
            continue
        entry = drafted.entries[number]
        drafted.entries[number] = widened(entry, (*side(entry), *(leaf.path for leaf in loose)))
        taken.update(leaf.name for leaf in loose)


def _is_tied(entry: Entry) -> bool:
    """Whether an entry has been made of tied leaves that each had their own: those are all of its sides."""
    return entry.operations[:1] == (Tie(len(entry.sources)),) and Repeat(len(entry.targets)) in entry.operations


def _with_sources(entry: Entry, sources: tuple[Path, ...]) -> Entry:
    operations = entry.operations[1:] if _is_tied(entry) else entry.operations
    return replace(entry, sources=sources, operations=(Tie(len(sources)), *operations), reason=_tied_reason(entry))


def _with_targets(entry: Entry, targets: tuple[Path, ...]) -> Entry:
    operations = entry.operations[:-1] if _is_tied(entry) else entry.operations
    return replace(entry, targets=targets, operations=(*operations, Repeat(len(targets))), reason=_tied_reason(entry))


def _tied_reason(entry: Entry) -> str:
    return f"{entry.reason.removesuffix(', tied')}, tied"


def _meet(drafted: Draft) -> None:
    """Tied names of torch that have a leaf each on the other side: what is done to all of them alike is done once, so
    that on the way to torch, they have to agree.
    """
    for group in _tied(drafted.source):
        by_source = {entry.sources[0]: entry for entry in drafted.entries if len(entry.sources) == 1 and entry.targets}
        entries = [by_source[leaf.path] for leaf in group if leaf.path in by_source]
        if len(entries) < 2 or drafted.target.convention == "torch":
            continue
        drafted.note(
            "tied in torch, and leaves of their own on the other side: they part when trained there, and on the way to "
            "torch they have to be equal",
            group[0].name,
        )
        alike = [entry for entry in entries if len(entry.targets) == 1]
        operations = _operations_of_all([entry.operations for entry in alike], group[0].shape) if alike else None
        if len(alike) < 2 or operations is None:
            continue
        first = alike[0]
        drafted.entries = [
            replace(
                entry,
                sources=tuple(each.sources[0] for each in alike),
                targets=tuple(each.targets[0] for each in alike),
                operations=operations,
                reason=_tied_reason(entry),
            )
            if entry is first
            else entry
            for entry in drafted.entries
            if entry is first or not any(entry is each for each in alike)
        ]


def _operations_of_all(several: Sequence[Operations], shape: Shape) -> Operations | None:
    """From tied leaves of a shape to a leaf for each: what they begin with alike, and then each by its own order of
    axes. None if more than that differs.
    """
    depth = 0
    while all(each[depth : depth + 1] == several[0][: depth + 1][depth:] != () for each in several):
        depth += 1
    common = result_shapes(several[0][:depth], [shape])
    if len(common) != 1:
        return None
    ties: Operations = (Tie(len(several)), *several[0][:depth], Repeat(len(several)))
    orders = [_order(each[depth:], len(common[0])) for each in several]
    known = tuple(order for order in orders if order is not None)
    if len(known) < len(orders):
        return None
    return (*ties, PermuteEach(known)) if any(each[depth:] for each in several) else ties


def _order(operations: Operations, rank: int) -> Shape | None:
    """The order of axes that operations come to; None if they do anything else."""
    order = tuple(range(rank))
    for operation in operations:
        if not isinstance(operation, Permute):
            return None
        order = tuple(order[axis] for axis in operation.axes)
    return order


def _tied(model: Model) -> list[list[Leaf]]:
    groups: dict[object, list[Leaf]] = {}
    for leaf in model.leaves.values():
        if leaf.identity is not None:
            groups.setdefault((leaf.identity, leaf.shape), []).append(leaf)
    return [group for group in groups.values() if len(group) > 1]
