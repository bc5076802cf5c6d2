"""What rules say of single leaves: these come before everything else."""

from __future__ import annotations

from collections.abc import Sequence

from pytreeckpt.convert.declarations import idle_rules, idle_text, ill_formed
from pytreeckpt.convert.draft import Draft
from pytreeckpt.convert.lookup import Names, close_names
from pytreeckpt.convert.names import Captures, fill_template, match_name, text_of
from pytreeckpt.convert.operations import Drop as DropOperation
from pytreeckpt.convert.operations import Fill as FillOperation
from pytreeckpt.convert.operations import Stack
from pytreeckpt.convert.records import Leaf, Name
from pytreeckpt.convert.rules import Convert, Drop, Fill, Rule, RuleError, Step, as_names, of_type, resolve


def plan_rules(draft: Draft, rules: Sequence[Rule]) -> None:
    """Add what `Convert`, `Drop` and `Fill` say. A rule that matches nothing is a mistake, and is said to be one."""
    draft.mismatched += [*ill_formed(rules), *idle_rules(draft.source, rules)]
    sources, targets = Names(draft.source), Names(draft.target)
    for rule in of_type(rules, Convert):
        _plan_convert(draft, rule, sources, targets)
    for drop in of_type(rules, Drop):
        found = [leaf for name, leaf in draft.source.leaves.items() if match_name(drop.leaves, name) is not None]
        if not found:
            draft.mismatched.append(idle_text(f"drop {drop.leaves!r}", drop.leaves, "leaf", list(draft.source.leaves)))
        for leaf in found:
            if leaf.name not in draft.sources:
                draft.add([leaf], [], (DropOperation(),), f"dropped: {drop.reason}")
    for fill in of_type(rules, Fill):
        found = [leaf for name, leaf in draft.target.leaves.items() if match_name(fill.leaves, name) is not None]
        if not found:
            draft.mismatched.append(idle_text(f"fill {fill.leaves!r}", fill.leaves, "leaf", list(draft.target.leaves)))
        for leaf in found:
            if leaf.name not in draft.targets:
                operation = FillOperation(leaf.shape, leaf.dtype.name, fill.value)
                draft.add([], [leaf], (operation,), f"filled with {fill.value:g} by a rule")


def _groups(rule: Convert, draft: Draft) -> list[tuple[Captures, list[Name]]]:
    """The sources of each entry that a rule makes, by what its first pattern captures. Raises `RuleError` where several
    come together, and their names do not say in which order.
    """
    first, *others = as_names(rule.sources)
    found = [(captures, name) for name in draft.source.leaves if (captures := match_name(first, name)) is not None]
    if others or not _stacks(rule):
        return [(captures, [name, *(fill_template(each, captures) for each in others)]) for captures, name in found]
    # All that go to one target, in the order of their numbers.
    by_target: dict[tuple[Name, ...], list[tuple[Captures, Name]]] = {}
    for captures, name in found:
        target = tuple(fill_template(each, captures) for each in as_names(rule.targets))
        by_target.setdefault(target, []).append((captures, name))
    return [(each[0][0], _in_order(each, first)) for each in by_target.values()]


def _in_order(found: Sequence[tuple[Captures, Name]], pattern: str) -> list[Name]:
    """Names in the order of all numbers that a pattern finds in them; what else it finds has to be the same in all."""
    (first, _), *_ = found
    numbers = [
        part
        for part in first
        if any(captures[part] != first[part] for captures, _ in found)
        and all(captures[part].isdecimal() for captures, _ in found)
    ]
    by_number = {tuple(int(captures[part]) for part in numbers): name for captures, name in found}
    others = [part for part in first if part not in numbers and any(each[part] != first[part] for each, _ in found)]
    if others or len(by_number) < len(found):
        raise RuleError(
            f"{', '.join(text_of(name) for _, name in found[:3])} come together, and their order is not said: let the "
            f"pattern {pattern!r} call what numbers them by a name, such as {{i}}, and nothing else that differs"
        )
    return [by_number[number] for number in sorted(by_number)]


def _stacks(rule: Convert) -> bool:
    """Whether several leaves that one pattern matches come together: nothing but operations on each comes before."""
    return any(
        isinstance(step, Stack) or (isinstance(step, Step) and step.name in {"stack", "concat"})
        for step in rule.operations
    )


def _plan_convert(draft: Draft, rule: Convert, sources: Names, targets: Names) -> None:
    first = as_names(rule.sources)[0]
    try:
        groups = _groups(rule, draft)
    except RuleError as error:
        draft.mismatched.append(f"the rule for {first}: {error}")
        return
    if not groups:
        draft.mismatched.append(idle_text(f"convert {first!r}", first, "leaf", list(draft.source.leaves)))
    for captures, names in groups:
        try:
            from_leaves = [_leaf(sources, name) for name in names]
            to_leaves = [_leaf(targets, fill_template(each, captures)) for each in as_names(rule.targets)]
            operations = resolve(rule.operations, [leaf.shape for leaf in from_leaves])
            draft.add(from_leaves, to_leaves, operations, f"rule: {first}")
        except (LookupError, RuleError, ValueError) as error:
            draft.mismatched.append(f"the rule for {text_of(names[0])}: {error}")


def _leaf(names: Names, name: Name) -> Leaf:
    leaf = names.leaf(name)
    if leaf is None:
        close = close_names(name, list(names.model.leaves))
        raise LookupError(f"there is no {text_of(name)}" + (f"; there is {', '.join(close)}" if close else ""))
    return leaf
