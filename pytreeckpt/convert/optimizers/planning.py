"""The entries of a plan for optimizers: from the states of torch's to those of optax, once parameters are matched.

Plans are made in this direction alone; the way back is the inverted plan. Nothing is guessed: what could be several
things, or has no counterpart, is a problem with its reason, unless the caller waives it by name.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from pytreeckpt.convert.leaves import values_by_path
from pytreeckpt.convert.optimizers.assigning import assign, differences, fill_others
from pytreeckpt.convert.optimizers.draft import EARLY_TRACE, LATE_TRACE, WAIVERS, Draft, Member, OptimizerPlan, listed
from pytreeckpt.convert.optimizers.optax_states import OptaxState, find_states, without_variables
from pytreeckpt.convert.optimizers.recipe import Recipe
from pytreeckpt.convert.optimizers.rest import plan_rest, roots_of
from pytreeckpt.convert.optimizers.steps import FOLLOWS, drop_steps
from pytreeckpt.convert.optimizers.table import REFUSED, ROWS, Row, option_problems
from pytreeckpt.convert.optimizers.torch_states import Group, Optimizer, find_optimizers
from pytreeckpt.convert.records import Entry, Inventory
from pytreeckpt.paths import Path

_FIELDS: Final = frozenset(
    [
        *("mu", "nu", "nu_max", "trace", "sum_of_squares", "e_g", "e_x"),
        *("ema", "m", "v", "n", "g", "step_sizes", "prev_updates", "previous_gradient", "prev_grad", "v_row", "v_col"),
    ]
)
"""Fields of parameters in the states of optax, also those that no optimizer of torch has: to be told as such."""


def plan_optimizers(
    source: Inventory,
    target: Inventory,
    parameters: Sequence[Entry],
    *,
    parameter_order: Sequence[str] | None = None,
    waive: Collection[str] = (),
    stepped: bool = False,
    rows: Sequence[Row] = ROWS,
) -> OptimizerPlan:
    """Plan moments, counts and options from the optimizers of torch in `source` to the states of optax in `target`.

    `parameters`: the entries of the parameters. `parameter_order`: the names of an optimizer's parameters in their
    order, where its state dict only numbers them. `waive`: names of `WAIVERS`. `stepped`: whether to plan as if torch's
    optimizers had states of all their parameters, for the way back into one that has made no step and has none yet.
    `rows`: the optimizers that are known, for one to add one's own: `(*ROWS, Row("mine.Optimizer", …))`.

    Raises `ValueError` for a waiver that there is not, and for two that contradict each other.
    """
    unknown = sorted(set(waive) - set(WAIVERS))
    if unknown:
        raise ValueError(f"{', '.join(unknown)} cannot be waived; there is {', '.join(WAIVERS)}")
    if {EARLY_TRACE, LATE_TRACE} <= set(waive):
        raise ValueError(f"a trace comes before the learning rate or after it: waive {EARLY_TRACE} or {LATE_TRACE}")
    found = find_optimizers(source, order=parameter_order)
    bare = without_variables(target.rest)
    target = replace(target, rest={path: target.rest[whole] for path, whole in bare.items()})
    fields = {*_FIELDS, *_fields_of(found.optimizers, rows)}
    states = find_states(target, fields)
    draft = Draft(
        source,
        target,
        waive,
        stepped,
        parameters={leaf.path: leaf for leaf in source.model.leaves.values()},
        target_names={leaf.path: name for name, leaf in target.model.leaves.items()},
        has_states=bool(states.states),
        target_values=values_by_path(target.tree) if stepped else {},
    )
    for problem in (*found.problems, *states.problems):
        draft.problem(problem)
    members = _members(draft, found.optimizers, {row.kind: row for row in rows})
    known = _tied(source, members)
    draft.optimised = frozenset([*members, *known])
    by_parameter: dict[Path, list[OptaxState]] = {}
    for state in states.states:
        for path in state.parameters:
            by_parameter.setdefault(path, []).append(state)
    entries = [entry for entry in parameters if entry.quantity == "parameter"]
    for entry in entries:
        assign(draft, entry, members, known, by_parameter)
    fill_others(draft, states.states, {path: entry for entry in entries for path in entry.targets})
    _check_groups(draft)
    missing = plan_rest(draft, states, _by_target(entries, members, known))
    converted = {member.optimizer.path for member in members.values()}
    if found.optimizers and not converted:
        # Why is a problem already.
        missing = ()
    drop_steps(draft, list(members.values()))
    return OptimizerPlan(
        # What counts along with others is before them, who have the last word on the way back.
        tuple(sorted(draft.entries, key=lambda entry: entry.reason != FOLLOWS)),
        listed(draft.notes),
        _unused(draft, [optimizer for optimizer in found.optimizers if optimizer.path in converted]),
        missing,
        listed(draft.problems),
        _recipes(found.optimizers, members),
        tuple(draft.new.values()),
        tuple(optimizer.path for optimizer in found.optimizers),
        roots_of(states),
    )


def _fields_of(optimizers: Sequence[Optimizer], rows: Sequence[Row]) -> set[str]:
    """The fields that rows of the user's own may have besides."""
    return {
        slot.optax
        for optimizer in optimizers
        for row in rows
        if row.kind == optimizer.kind
        for group in optimizer.groups
        for state in row.states(group.options)
        for slot in state.slots
    }


def _members(draft: Draft, optimizers: Sequence[Optimizer], rows: Mapping[str, Row]) -> dict[Path, Member]:
    """The parameters of the optimizers that are converted, by their paths."""
    members: dict[Path, Member] = {}
    for optimizer in optimizers:
        where = str(optimizer.path) or "the optimizer"
        row = rows.get(optimizer.kind or "")
        if row is None:
            draft.problem(_refusal(optimizer, rows), where)
            continue
        if _is_refused(draft, optimizer, row, where):
            continue
        if optimizer.inferred:
            draft.note(
                f"it is taken for {optimizer.kind}, whose options and states it has: nothing names its class", where
            )
            if optimizer.kind == "torch.optim.Adam" and not _says_decay(optimizer):
                draft.note("whether its weight decay is decoupled, as in AdamW, it does not say: see the recipe", where)
        for parameter in optimizer.parameters:
            if parameter.path is None:
                continue
            if parameter.path in members:
                draft.problem(
                    f"{parameter.path} is in two optimizers, {members[parameter.path].optimizer.path} and {where}"
                )
            members[parameter.path] = Member(optimizer, row, parameter)
        for group in optimizer.groups:
            for caveat in row.caveats(group.options):
                draft.note(caveat, where)
            if group.options.get("maximize"):
                draft.note(
                    "it maximises: the gradients are to change their sign before all else, optax.scale(-1.0)", where
                )
    return members


def _refusal(optimizer: Optimizer, rows: Mapping[str, Row]) -> str:
    there = ", ".join(rows)
    if optimizer.kind is None:
        others = ", ".join(map(repr, optimizer.foreign))
        what = (
            f" (its options {others} are none of torch's optimizers': take them out of its groups if they change no "
            "update)"
            if others
            else ""
        )
        return (
            f"nothing tells which optimizer this is{what}: a state dict of torch does not name its class; save with "
            "pytreeckpt_torch.capture(model=…, optimizer=…), which does"
        )
    if optimizer.kind in REFUSED:
        return f"{optimizer.kind} has no counterpart in optax: {REFUSED[optimizer.kind]}. Converted are {there}"
    return f"{optimizer.kind} is not known: give optimizers=(*ROWS, Row({optimizer.kind!r}, …)). Converted are {there}"


def _says_decay(optimizer: Optimizer) -> bool:
    """Whether a state dict tells Adam from AdamW, as those of older torch do not, or it is no matter."""
    return all(group.says_decay or not group.options.get("weight_decay") for group in optimizer.groups)


def _is_refused(draft: Draft, optimizer: Optimizer, row: Row, where: str) -> bool:
    wrong = [problem for group in optimizer.groups for problem in option_problems(row.kind, group.options)]
    for problem in dict.fromkeys(wrong):
        draft.problem(problem, where)
    if wrong:
        return True
    refused = False
    for refusal in dict.fromkeys(refusal for group in optimizer.groups for refusal in row.refusals(group.options)):
        if refusal.name in draft.waive:
            draft.note(refusal.reason, where)
            continue
        hint = "" if refusal.name is None else f"; Waive(check={refusal.name!r}) converts it all the same"
        draft.problem(f"{refusal.reason}{hint}", where)
        refused = True
    return refused


def _tied(source: Inventory, members: Mapping[Path, Member]) -> dict[Path, Path]:
    """For parameters that have other names too, the path by which an optimizer has them."""
    by_identity: dict[Hashable, Path] = {}
    for leaf in source.model.leaves.values():
        if leaf.identity is not None and leaf.path in members:
            by_identity.setdefault(leaf.identity, leaf.path)
    return {
        leaf.path: by_identity[leaf.identity]
        for leaf in source.model.leaves.values()
        if leaf.path not in members and leaf.identity is not None and leaf.identity in by_identity
    }


def _by_target(
    entries: Sequence[Entry], members: Mapping[Path, Member], known: Mapping[Path, Path]
) -> dict[Path, list[Member]]:
    return {
        target: found
        for entry in entries
        if (found := [members[path] for each in entry.sources if (path := known.get(each, each)) in members])
        for target in entry.targets
    }


def _check_groups(draft: Draft) -> None:
    """One state has one set of options: those of its parameters must not differ."""
    for path, members in draft.members.items():
        every = list(members.values())
        if len({id(member.parameter.group) for member in every}) == 1:
            continue
        decays = {member.parameter.group.options.get("weight_decay") for member in every}
        if len(decays) > 1:
            draft.note(
                "the weight decay of its parameters differs in torch: give add_decayed_weights a mask", str(path)
            )
        for other in every[1:]:
            differing = differences(every[0], other, waived=("weight_decay",))
            if differing and "groups" in draft.waive:
                draft.note(f"its parameters differ in torch in {', '.join(differing)}", str(path))
            elif differing:
                draft.problem(
                    f"{every[0].text} and {other.parameter.name} are in this one state, and their "
                    f"{', '.join(differing)} differ: make it with optax.multi_transform, with a label for each group",
                    str(path),
                )
            if differing:
                break


def _unused(draft: Draft, optimizers: Sequence[Optimizer]) -> tuple[Path, ...]:
    """What torch's optimizers keep and no entry takes."""
    every = [
        *(path for optimizer in optimizers for path in optimizer.shared),
        *(
            leaf.path
            for optimizer in optimizers
            for parameter in optimizer.parameters
            for leaf in parameter.slots.values()
        ),
    ]
    return tuple(path for path in every if path not in draft.used)


def _recipes(optimizers: Sequence[Optimizer], members: Mapping[Path, Member]) -> tuple[Recipe, ...]:
    rows = {member.optimizer.path: member.row for member in members.values()}
    return tuple(
        replace(rows[optimizer.path].recipe(group.options), of=_group_text(optimizer, group))
        for optimizer in optimizers
        if optimizer.path in rows
        for group in optimizer.groups
        if not rows[optimizer.path].refusals(group.options)
    )


def _group_text(optimizer: Optimizer, group: Group) -> str:
    where = str(optimizer.path) or "the optimizer"
    if len(optimizer.groups) == 1:
        return where
    names = [each.name for each in optimizer.parameters if each.group.number == group.number]
    some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{where}, group {group.number} ({some})"
