"""Which moments of torch go into which states of optax, parameter by parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pytreeckpt.convert.optimizers.draft import EARLY_TRACE, LATE_TRACE, Draft, Member
from pytreeckpt.convert.optimizers.inferring import IDLE_OPTIONS
from pytreeckpt.convert.optimizers.moments import (
    Move,
    drop_entry,
    fill_entry,
    move_entry,
    notes_of,
    quantity_of,
    tied_sources,
)
from pytreeckpt.convert.optimizers.optax_states import OptaxState, position_in_chain
from pytreeckpt.convert.optimizers.table import Slot, State, fields_of
from pytreeckpt.convert.records import Entry, Leaf
from pytreeckpt.paths import Path


def assign(
    draft: Draft,
    entry: Entry,
    members: Mapping[Path, Member],
    known: Mapping[Path, Path],
    states: Mapping[Path, Sequence[OptaxState]],
) -> None:
    """Plan what optimizers know of the parameters of an entry.

    `members`: the parameters of optimizers by their paths; `known`: those paths for names tied to them; `states`: those
    of optax by the paths of their parameters.
    """
    if not entry.sources:
        return
    reduced, tied = tied_sources(entry, known)
    found = [members.get(path) for path in reduced.sources]
    there = [member for member in found if member is not None]
    if not there:
        return
    if not entry.targets:
        _drop(draft, entry, there)
        return
    if len(there) < len(found):
        absent = [str(path) for path, member in zip(reduced.sources, found, strict=True) if member is None]
        draft.problem(f"{', '.join(absent)} is in no optimizer, and becomes one parameter with {there[0].text}")
        return
    if (problem := _apart(there)) is not None and "groups" not in draft.waive:
        draft.problem(f"{', '.join(map(str, entry.targets))}: {problem}")
        return
    for note in notes_of(entry.operations):
        draft.note(note, *map(str, entry.targets))
    first = there[0]
    chosen: list[list[OptaxState]] = []
    for state in first.row.states(first.parameter.group.options):
        places = [_place(draft, first, state, target, states.get(target, ())) for target in entry.targets]
        if any(place is None for place in places):
            chosen.append([])
            continue
        chosen.append([place for place in places if place is not None])
        for place in chosen[-1]:
            for member in there:
                draft.cover(place, member)
        for slot in state.slots:
            _move(draft, reduced, there, slot, chosen, tied=tied)


def _apart(members: Sequence[Member]) -> str | None:
    """What keeps parameters of optimizers from becoming one parameter."""
    first = members[0]
    for member in members[1:]:
        if member.optimizer.path != first.optimizer.path:
            return f"{first.text} and {member.text} become one parameter, and have different optimizers"
        differing = differences(first, member, waived=())
        if differing:
            return f"{first.text} and {member.text} become one parameter, and their {', '.join(differing)} differ"
    return None


def differences(a: Member, b: Member, *, waived: Sequence[str]) -> list[str]:
    """The options that differ between the groups of two parameters and matter, but for those waived."""
    ours, theirs = a.parameter.group.options, b.parameter.group.options
    names = dict.fromkeys([*ours, *theirs])
    return [
        name for name in names if name not in IDLE_OPTIONS and name not in waived and ours.get(name) != theirs.get(name)
    ]


def _drop(draft: Draft, entry: Entry, members: Sequence[Member]) -> None:
    for member in members:
        for key, leaf in member.parameter.slots.items():
            if key != member.row.step and leaf.path not in draft.used:
                draft.add(drop_entry(leaf, "first moment", entry.reason))


def _place(draft: Draft, member: Member, state: State, target: Path, there: Sequence[OptaxState]) -> OptaxState | None:
    """The state of optax that takes what torch keeps of a parameter."""
    wanted = fields_of(state)
    fitting = [
        each
        for each in there
        if each.fields == wanted and all(target in each.slots.get(s.optax, ()) for s in state.slots)
    ]
    if len(fitting) == 1:
        return fitting[0]
    if len(fitting) > 1:
        draft.problem(
            f"{target} is in several states, {', '.join(str(each.path) for each in fitting)}: keep one {state.cls}"
        )
        return None
    is_there = draft.stepped or any(slot.torch in member.parameter.slots for slot in state.slots)
    if is_there and (there or draft.has_states):
        others = "; ".join(f"{{{', '.join(sorted(each.fields))}}} at {each.path}" for each in there)
        recipe = member.row.recipe(member.parameter.group.options)
        draft.problem(
            f"a {member.optimizer.kind} with these options is {state.cls} {{{', '.join(sorted(wanted))}}} in optax, "
            f"and the target has {others or 'no state of it'}; as in torch goes on {recipe}",
            str(target),
        )
    return None


def _move(
    draft: Draft,
    entry: Entry,
    members: Sequence[Member],
    slot: Slot,
    chosen: Sequence[Sequence[OptaxState]],
    *,
    tied: bool,
) -> None:
    places = chosen[-1]
    targets = [place.slots[slot.optax][path] for place, path in zip(places, entry.targets, strict=True)]
    sources = [leaf for member in members if (leaf := draft.slot(member, slot.torch, None)) is not None]
    kind = members[0].optimizer.kind
    if not sources:
        for leaf in targets:
            draft.add(fill_entry(leaf, slot.initial, quantity_of(slot), f"{kind} has made no step of it"))
        draft.note(
            f"torch has no {slot.torch} of it yet: {slot.optax} begins at {slot.initial:g}", *map(str, entry.targets)
        )
        return
    if len(sources) < len(members):
        absent = [member.text for member in members if slot.torch not in member.parameter.slots]
        draft.problem(f"{', '.join(absent)} has no {slot.torch} yet, and becomes one parameter with others that have")
        return
    scale = slot.scale
    if slot.late_scale is not None:
        if not chosen[0]:
            # There is none of the other state: that is told already.
            return
        placement = _is_late(draft, chosen[0], places)
        if placement and not slot.late_scale:
            draft.problem(
                "the learning rate is 0 now, and a trace behind it would lose what it has accumulated: put it before "
                f"the learning rate, as in {members[0].row.recipe(members[0].parameter.group.options)}",
                *map(str, entry.targets),
            )
            placement = None
        if placement is None:
            # Why is told, once.
            draft.used.update(leaf.path for leaf in sources)
            draft.reached.update(leaf.path for leaf in targets)
            return
        scale *= slot.late_scale if placement else 1.0
    reason = f"{slot.torch} of {kind} is {slot.optax} of optax"
    draft.add(move_entry(Move(sources, targets, entry, slot, scale, reason), tied=tied))


def _is_late(draft: Draft, main: Sequence[OptaxState], trace: Sequence[OptaxState]) -> bool | None:
    """Whether a trace comes after the learning rate; None if that is not plain.

    Directly behind the state that it is with, there is no room for a rate. With another transformation in between,
    which has no state to tell what it is (a rate, a clip, a decay), it is as the caller says.
    """
    late: set[bool] = set()
    for ours, theirs in zip(main, trace, strict=False):
        before, after = position_in_chain(ours.path), position_in_chain(theirs.path)
        if before is None or after is None or ours.path[:-1] != theirs.path[:-1] or after < before:
            draft.problem(
                f"{theirs.path}: whether this trace comes before or after the learning rate cannot be told: put it in "
                f"one optax.chain with {ours.path}, behind it"
            )
            return None
        is_late = after > before + 1 and LATE_TRACE in draft.waive
        if after > before + 1 and not is_late and EARLY_TRACE not in draft.waive:
            draft.problem(
                f"the trace at {theirs.path} comes after another transformation than that at {ours.path}, which may be "
                f"the learning rate, as in optax.rmsprop, and may be not; Waive(check={LATE_TRACE!r}) says that the "
                f"trace comes after the learning rate, and Waive(check={EARLY_TRACE!r}) that it comes before it"
            )
            return None
        late.add(is_late)
        draft.note(
            f"the trace at {theirs.path} comes after the learning rate: its values are multiplied by -lr, and lr is to "
            "stay as it is"
            if is_late
            else f"the trace at {theirs.path} comes before the learning rate"
        )
    if len(late) != 1:
        draft.problem(f"the traces of one parameter of torch, at {', '.join(str(each.path) for each in trace)}, differ")
        return None
    return late.pop()


def fill_others(draft: Draft, states: Sequence[OptaxState], entries: Mapping[Path, Entry]) -> None:
    """Leaves of states that nothing came to, because torch does not optimise their parameters, or has no such."""
    for state in states:
        members = [*draft.members.get(state.path, {}).values()]
        if not members:
            continue
        known = _slots(members[0], state)
        for path, leaf in ((path, leaf) for leaves in state.slots.values() for path, leaf in leaves.items()):
            if leaf.path in draft.reached or not _is_new(draft, path, entries.get(path)):
                continue
            slot = next(slot for field, slot in known.items() if state.slots[field].get(path) is leaf)
            draft.add(fill_entry(leaf, slot.initial, quantity_of(slot), "torch does not optimise it"))
            draft.note(f"torch does not optimise it: its {slot.optax} begins at {slot.initial:g}", str(path))


def _is_new(draft: Draft, path: Path, entry: Entry | None) -> bool:
    """Whether a leaf of the target's model is no parameter that torch optimises."""
    if entry is None:
        return draft.target_names[path] in draft.target.model.buffers
    return not any(source in draft.optimised for source in entry.sources)


def _slots(member: Member, state: OptaxState) -> dict[str, Slot]:
    return {
        slot.optax: slot
        for each in member.row.states(member.parameter.group.options)
        if fields_of(each) == state.fields
        for slot in each.slots
    }


def leaves_of_slots(states: Sequence[OptaxState]) -> dict[Path, Leaf]:
    """All leaves of states that are of parameters."""
    return {leaf.path: leaf for state in states for leaves in state.slots.values() for leaf in leaves.values()}
