"""A plan from two trees: rules first, then layers, then what has the same name; and all that is wrong, at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pytreeckpt.convert.declarations import idle_waivers, with_kinds
from pytreeckpt.convert.draft import Draft
from pytreeckpt.convert.entries import Spec, inverted, specs_of, with_cast
from pytreeckpt.convert.inventory import inventory_of
from pytreeckpt.convert.layer_planning import plan_layers
from pytreeckpt.convert.layers import TABLES
from pytreeckpt.convert.leaves import abstract_leaves, plain_path
from pytreeckpt.convert.leftovers import Leftovers
from pytreeckpt.convert.lookup import Names, possible_names, renamed
from pytreeckpt.convert.names import text_of
from pytreeckpt.convert.optimizers import ROWS, OptimizerPlan, Row, extended, plan_optimizers
from pytreeckpt.convert.plan import Plan
from pytreeckpt.convert.problems import Problems
from pytreeckpt.convert.records import Entry, Inventory
from pytreeckpt.convert.rule_planning import plan_rules
from pytreeckpt.convert.rules import Rename, Rule, Waive, of_type
from pytreeckpt.convert.schemes import named_target
from pytreeckpt.convert.ties import plan_ties
from pytreeckpt.convert.training_steps import plan_training_step
from pytreeckpt.convert.values import dtype_named, is_float
from pytreeckpt.errors import StructureMismatchError
from pytreeckpt.paths import DictKey

Annotations = Literal["auto", "ignore"]


@dataclass(frozen=True, slots=True)
class Drafted:
    """A plan as far as it goes, and what is wrong with it."""

    plan: Plan
    problems: Problems


def plan(
    source: object,
    target: object,
    *,
    rules: Sequence[Rule] = (),
    annotations: Annotations = "auto",
    cast: bool = False,
    dtype: str | None = None,
    parameter_order: Sequence[str] | None = None,
    optimizers: Sequence[Row] = ROWS,
) -> Plan:
    """How `source` becomes `target`: a list of records that can be read, stored, compared, and applied both ways.

    `source`: an open checkpoint or a tree: a state dict, a dict of such, what `capture` made. `target`: a tree of the
    other framework, where arrays may be abstract (`jax.eval_shape`, tensors on the meta device), or a module, what
    `capture` made of either, or the name of a scheme: "linen", "nnx", "equinox".
    `rules`: what is declared where names and layers do not decide, written from torch's names to the others'.
    `annotations`: "ignore" leaves the recorded kinds of layers aside. `cast`: whether values may be rounded to the
    target's dtypes; without, a narrower one is a mismatch, and a wider one is not. `dtype`: of all floating-point
    parameters and buffers, instead of the target's. `parameter_order`: the names of the parameters of an optimizer of
    torch, where its state has only their numbers. `optimizers`: those that are known, for one to add one's own:
    `(*ROWS, Row("mine.Optimizer", …))`.

    Raises `ConversionError` with all that is unused, missing, ambiguous or mismatched; `Waive` lets the first two pass.
    """
    drafted = draft(
        source,
        target,
        rules=rules,
        annotations=annotations,
        cast=cast,
        dtype=dtype,
        parameter_order=parameter_order,
        optimizers=optimizers,
    )
    drafted.problems.raise_any()
    return drafted.plan


def draft(
    source: object,
    target: object,
    *,
    rules: Sequence[Rule] = (),
    annotations: Annotations = "auto",
    cast: bool = False,
    dtype: str | None = None,
    parameter_order: Sequence[str] | None = None,
    optimizers: Sequence[Row] = ROWS,
) -> Drafted:
    """As `plan`, with what is wrong beside it instead of an error, for a report."""
    if annotations not in {"auto", "ignore"}:
        raise ValueError(f'annotations is "auto" or "ignore", not {annotations!r}')
    if dtype is not None and not is_float(dtype_named(dtype)):
        raise ValueError(f"dtype={dtype!r} is not floating-point")
    options = _Options(tuple(rules), annotations == "auto", cast, dtype, parameter_order, optimizers)
    ours = _declared(inventory_of(source, annotations=options.annotated), options.rules)
    if isinstance(target, str):
        named = named_target(ours, target, options.rules)
        options = replace(options, rules=(*options.rules, *named.rules), scheme=target)
        return _drafted(ours, named.inventory, options, keeps_tree=False)
    theirs = _declared(inventory_of(target, annotations=options.annotated), options.rules)
    return _drafted(ours, theirs, options, keeps_tree=True)


def _declared(side: Inventory, rules: Sequence[Rule]) -> Inventory:
    """Rules speak of torch's layers."""
    return replace(side, model=with_kinds(side.model, rules)) if side.model.convention == "torch" else side


@dataclass(frozen=True, slots=True)
class _Options:
    rules: tuple[Rule, ...]
    annotated: bool
    cast: bool
    dtype: str | None
    parameter_order: Sequence[str] | None
    optimizers: Sequence[Row]
    scheme: str | None = None


def _drafted(source: Inventory, target: Inventory, options: _Options, *, keeps_tree: bool) -> Drafted:
    """Rules and tables are written from torch; a plan to torch is made from there, and turned round."""
    conventions = source.model.convention, target.model.convention
    is_backward = conventions[0] != "torch" and conventions[1] == "torch"
    first, second = (target, source) if is_backward else (source, target)
    made = Draft(first.model, second.model)
    plan_rules(made, options.rules)
    if (first.model.convention == "torch") != (second.model.convention == "torch"):
        plan_layers(made, TABLES[second.model.convention], options.rules, scheme=options.scheme)
    elif conventions[0] != conventions[1]:
        raise StructureMismatchError(
            f"from {conventions[0]} to {conventions[1]} there is no direct way: convert to torch, and from there"
        )
    _plan_same_names(made, options.rules)
    plan_ties(made)
    states = _planned_states(made, first, second, options, is_backward=is_backward)
    problems = Problems(ambiguous=made.ambiguous, mismatched=[*made.mismatched, *states.problems])
    problems.mismatched += idle_waivers(options.rules, source, target)
    is_across = first.model.convention == "torch" and second.model.convention != "torch"
    steps = plan_training_step(first, second, states.entries, is_backward=is_backward) if is_across else []
    reached = {path for entry in steps for path in entry.targets}
    missing = [path for path in states.missing if path not in reached]
    left = Leftovers.of(made, states.unused, missing, options.rules, is_backward=is_backward)
    problems.unused, problems.missing = left.unused, left.missing
    entries: list[Entry] = []
    sources, targets = specs_of(source), specs_of(target, dtype=options.dtype)
    # What the states of an optimizer are to have, and do not have before its first step.
    (targets if is_backward else sources).update((leaf.path, Spec(leaf.shape, leaf.dtype)) for leaf in states.new)
    # What the optimizers count has the last word, both ways.
    for entry in (*made.entries, *left.dropped, *steps, *states.entries):
        oriented = inverted(entry) if is_backward else entry
        with_dtype, problem = with_cast(oriented, sources, targets, cast=options.cast or options.dtype is not None)
        entries.append(with_dtype)
        if problem is not None:
            problems.mismatched.append(problem)
    plan_made = Plan(
        tuple(entries),
        {path: sources[path] for entry in entries for path in entry.sources},
        {path: targets[path] for entry in entries for path in entry.targets},
        conventions,
        (*_notes(made), *states.notes, *_left_alone(source, entries, states), *_left_abstract(target, entries)),
        left.waived_unused,
        left.waived_missing,
        tuple(states.recipes),
        template=_template(target, states if is_backward else None) if keeps_tree else None,
        origin=_template(source, None if is_backward else states),
    )
    return Drafted(plan_made, problems)


def _template(side: Inventory, states: OptimizerPlan | None) -> object:
    return side.tree if states is None else extended(side.tree, states.new)


def _planned_states(
    made: Draft, first: Inventory, second: Inventory, options: _Options, *, is_backward: bool
) -> OptimizerPlan:
    if first.model.convention != "torch" or second.model.convention == "torch":
        # Of one framework: states have the same names.
        return OptimizerPlan(tuple(_same_rest(first, second)))
    parameters = [entry for entry in made.entries if entry.quantity == "parameter"]
    planned = plan_optimizers(
        first,
        second,
        parameters,
        parameter_order=options.parameter_order,
        waive=[waive.check for waive in of_type(options.rules, Waive) if waive.check is not None],
        stepped=is_backward,
        rows=options.optimizers,
    )
    if planned.targets or is_backward:
        return planned
    # Only the weights are wanted.
    note = ("the target has no optimizer: that of the source is left alone",) if planned.sources else ()
    return OptimizerPlan(notes=note, recipes=planned.recipes)


def _same_rest(first: Inventory, second: Inventory) -> Iterator[Entry]:
    theirs = {plain_path(path): leaf for path, leaf in second.rest.items()}
    for path, leaf in first.rest.items():
        other = theirs.get(plain_path(path))
        if other is not None and other.shape == leaf.shape:
            yield Entry((path,), (other.path,), (), "option", "the same path and shape")


def _left_alone(source: Inventory, entries: Sequence[Entry], states: OptimizerPlan) -> list[str]:
    """What of the source is in no entry and no part of an optimizer: generators, schedulers, counts of one's own."""
    used = {path for entry in entries for path in entry.sources}
    # Beside a model is what was recorded of it.
    models = {leaf.path[:1] for leaf in source.model.leaves.values()}
    tops = dict.fromkeys(
        str(path[0])
        for path in source.rest
        if path not in used
        and path[:1] not in models | {(DictKey("training"),)}
        and not any(path[: len(each)] == each for each in (*states.sources, *states.targets))
    )
    return [f"left alone: {', '.join(tops)}"] if tops else []


def _left_abstract(target: Inventory, entries: Sequence[Entry]) -> list[str]:
    """What of an abstract target nothing comes to: the result has no values there."""
    reached = {plain_path(path) for entry in entries for path in entry.targets}
    left = [path for path in abstract_leaves(target.tree) if plain_path(path) not in reached]
    more = f" and {len(left) - 3} more" if len(left) > 3 else ""
    return [f"abstract in the target, and left so: {', '.join(map(str, left[:3]))}{more}"] if left else []


def _notes(made: Draft) -> list[str]:
    return [
        f"{text} ({', '.join(layers[:3])}{f' and {len(layers) - 3} more' if len(layers) > 3 else ''})"
        for text, layers in made.notes.items()
    ]


def _plan_same_names(drafted: Draft, rules: Sequence[Rule]) -> None:
    """Leaves that no table knows, of one name and shape on both sides: parameters of classes of one's own."""
    targets = Names(drafted.target)
    renames = of_type(rules, Rename)
    for name, leaf in drafted.source.leaves.items():
        if name in drafted.sources:
            continue
        names = [renamed(name, renames), *(renamed(n, renames) for n in possible_names(name, drafted.source.layers))]
        try:
            found = [other for each in dict.fromkeys(names) if (other := targets.leaf(each)) is not None]
        except LookupError as error:
            drafted.ambiguous.append(str(error))
            continue
        other = next((each for each in found if each.name not in drafted.targets), None)
        if other is None:
            continue
        if other.shape != leaf.shape:
            drafted.mismatched.append(
                f"{text_of(name)} has shape {list(leaf.shape)}, and {text_of(other.name)} {list(other.shape)}"
            )
            # Told once.
            drafted.sources.add(name)
            drafted.targets.add(other.name)
            continue
        drafted.add([leaf], [other], (), "the same name and shape")
