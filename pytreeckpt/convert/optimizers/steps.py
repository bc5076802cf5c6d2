"""Counts of steps: torch has one for each parameter, optax one for each state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from pytreeckpt.convert.leaves import plain_path
from pytreeckpt.convert.optimizers.draft import Draft, Member
from pytreeckpt.convert.optimizers.moments import count_entry, drop_entry, fill_entry
from pytreeckpt.convert.optimizers.torch_states import plain_value, value_at
from pytreeckpt.convert.records import Leaf
from pytreeckpt.paths import DictKey, Path

FOLLOWS: Final = "counts along with the optimizer"
"""The reason of entries whose sources others have too."""

_SATURATED: Final = 2**24
_CAPTURED: Final = ("step", "global_step")


def plan_count(draft: Draft, leaf: Leaf, members: Sequence[Member], *, follows: bool) -> None:
    """The count of a state or training, from the steps of these parameters, which have to be equal.

    `follows`: whether it counts along with a state that has the steps already.
    """
    same = draft.source.rest.get(leaf.path)
    if same is not None and _is_count(same) and follows:
        # A step of the program's own, in the same place on both sides.
        draft.add(count_entry([same], leaf, "the same path"))
        return
    steps: dict[Path, Leaf] = {}
    for member in members:
        found = None if member.row.step is None else draft.slot(member, member.row.step, ())
        if found is not None:
            steps.setdefault(found.path, found)
    if steps:
        _from_steps(draft, leaf, list(steps.values()), follows=follows)
        return
    if any(member.row.step is not None for member in members):
        draft.add(fill_entry(leaf, 0, "count", "torch has made no step"))
        return
    captured = next(
        (path for name in _CAPTURED if _is_count(draft.source.rest.get(path := Path((DictKey(name),))))), None
    )
    if captured is None:
        draft.note(
            "this optimizer of torch counts no steps, and the tree has no step of its own: give one to capture(step=…)",
            str(leaf.path),
        )
        return
    draft.add(
        count_entry([draft.source.rest[captured]], leaf, f"the {captured} of the training: torch counts none here")
    )


def _is_count(leaf: Leaf | None) -> bool:
    return leaf is not None and not leaf.shape and leaf.dtype.kind in "iu"


def _from_steps(draft: Draft, leaf: Leaf, steps: Sequence[Leaf], *, follows: bool) -> None:
    # On the way back, all of them are made of the count.
    values = {} if draft.stepped else {each.path: value_at(draft.source.tree, each.path) for each in steps}
    counted: dict[float, list[Path]] = {}
    for path, value in values.items():
        if isinstance(value, int | float):
            counted.setdefault(value, []).append(path)
    _look_at(draft, counted, leaf)
    if len(counted) > 1 and "steps" not in draft.waive:
        listed = ", ".join(
            f"{value:g} ({len(paths)} parameters, such as {Path(paths[0][:-1])})"
            for value, paths in sorted(counted.items())
        )
        draft.problem(
            f"{leaf.path} is one count, and torch's steps differ: {listed}; Waive(check='steps') takes the first"
        )
        return
    first = draft.counts.setdefault(steps[0].path, leaf.path)
    if draft.stepped and (own := _other_count(draft, first, leaf.path)) is not None:
        # torch has one count alone: this one is kept aside.
        draft.add(fill_entry(leaf, own, "count", f"it is not the count of {first}"))
        draft.note(f"it is {own}, and {first} is not: torch counts the steps of that alone", str(leaf.path))
        return
    reason = FOLLOWS if follows else "the steps of its parameters"
    draft.add(count_entry(steps, leaf, reason, first=len(counted) > 1))
    if follows:
        draft.note("it counts the same steps as the optimizer in torch", str(leaf.path))


def _other_count(draft: Draft, first: Path, path: Path) -> int | None:
    """The count at `path`, if that at `first`, of the same parameters, is another."""
    ours, theirs = (plain_value(draft.target_values[plain_path(each)].value) for each in (path, first))
    return ours if isinstance(ours, int) and isinstance(theirs, int) and ours != theirs else None


def _look_at(draft: Draft, counted: Mapping[float, Sequence[Path]], leaf: Leaf) -> None:
    if not counted:
        return
    highest = max(counted)
    if highest >= _SATURATED:
        draft.note(
            "torch counts steps in float32, which stands still at 2^24: the true count may be higher", str(leaf.path)
        )
    if leaf.dtype.kind in "iu" and highest > np.iinfo(leaf.dtype.name).max:
        draft.problem(f"{leaf.path} is {leaf.dtype}, and cannot hold {highest:g} steps")


def nearest_members(draft: Draft, path: Path, targets: Mapping[Path, Sequence[Member]]) -> list[Member]:
    """The parameters whose states are in the nearest node above `path`; `targets`: as a last resort, by the paths of
    parameters themselves.
    """
    for depth in range(len(path) - 1, -1, -1):
        prefix = path[:depth]
        found = {
            member.parameter.state: member
            for state, members in draft.members.items()
            if state[:depth] == prefix
            for member in members.values()
        }
        if found:
            return list(found.values())
    for depth in range(len(path) - 1, -1, -1):
        found = {
            member.parameter.state: member
            for target, members in targets.items()
            if target[:depth] == path[:depth]
            for member in members
        }
        if found:
            return list(found.values())
    return []


def drop_steps(draft: Draft, members: Sequence[Member]) -> None:
    """The steps of parameters whose states have no count in optax."""
    moved = {path for each in draft.members.values() for path in each}
    for member in members:
        if member.parameter.state not in moved and not member.parameter.slots:
            # On the way back from a tree without its states: it stays as it is.
            continue
        step = None if member.row.step is None else draft.slot(member, member.row.step, ())
        if step is None or step.path in draft.used:
            continue
        draft.add(drop_entry(step, "count", "optax counts no steps here"))
        draft.note(
            "optax counts no steps for this optimizer, and torch computes nothing from them: they are kept aside",
            str(member.optimizer.path),
        )
