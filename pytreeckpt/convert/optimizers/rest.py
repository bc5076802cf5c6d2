"""Leaves of optax that are of no parameter, each planned by what it is; and those that nothing comes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pytreeckpt.convert.optimizers.assigning import leaves_of_slots
from pytreeckpt.convert.optimizers.counts import Known, known_leaf, root_of
from pytreeckpt.convert.optimizers.draft import Draft, Member
from pytreeckpt.convert.optimizers.moments import fill_entry
from pytreeckpt.convert.optimizers.optax_states import FoundStates, step_text, texts_of
from pytreeckpt.convert.optimizers.settings import setting_entry
from pytreeckpt.convert.optimizers.steps import nearest_members, plan_count
from pytreeckpt.convert.records import Name
from pytreeckpt.paths import Path


def roots_of(states: FoundStates) -> tuple[Path, ...]:
    """Where the optimizers are that the states are of, and whatever else is called `opt_state`."""
    named = [path for path in states.children if path and step_text(path[-1]) == "opt_state"]
    return tuple(dict.fromkeys([*(root_of(state.path) for state in states.states), *named]))


def plan_rest(draft: Draft, states: FoundStates, by_target: Mapping[Path, Sequence[Member]]) -> tuple[Path, ...]:
    """Plan counts, hyperparameters and what wrappers keep. Returns the leaves of optax that nothing comes to.

    `by_target`: the parameters of torch's optimizers by what they become.
    """
    slots = leaves_of_slots(states.states)
    own = {(*texts_of(state.path), "count"): state.path for state in states.states if "count" in state.fields}
    found: dict[Path, Known | None] = {}
    for path, leaf in draft.target.rest.items():
        if leaf.path not in draft.reached and leaf.path not in slots:
            found[path] = Known("count") if texts_of(path) in own else known_leaf(path, leaf, states.children)
    # Counts of states with moments come first, so that it is they that give torch its steps on the way back.
    order = sorted(found, key=lambda path: texts_of(path) not in own)
    if by_target:
        for path in order:
            known = found[path]
            if known is not None:
                _plan(draft, path, known, own, by_target)
    roots = roots_of(states)
    return tuple(
        leaf.path
        for path, leaf in draft.target.rest.items()
        if leaf.path not in draft.reached
        and (leaf.path in slots or found.get(path) is not None or any(path[: len(root)] == root for root in roots))
    )


def _plan(
    draft: Draft, path: Path, known: Known, own: Mapping[Name, Path], by_target: Mapping[Path, Sequence[Member]]
) -> None:
    texts, leaf = texts_of(path), draft.target.rest[path]
    if known.use is None:
        draft.add(fill_entry(leaf, known.value, "count" if not leaf.shape else "first moment", known.reason))
        draft.note(known.reason, str(leaf.path))
        return
    if texts in own:
        # Of a state that torch has not, the steps would mean nothing.
        if own[texts] in draft.members:
            plan_count(draft, leaf, list(draft.members[own[texts]].values()), follows=False)
        return
    members = nearest_members(draft, path, by_target)
    if known.use == "hyperparameter":
        entry = setting_entry(leaf, step_text(path[-1]), members, draft.source) if members else None
        if entry is not None:
            draft.add(entry)
        return
    plan_count(draft, leaf, members, follows=True)
