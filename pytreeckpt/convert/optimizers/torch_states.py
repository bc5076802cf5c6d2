"""Optimizers of torch in a tree, as records: which parameters they have, in which groups, and where their states are.

They come as `pytreeckpt_torch.capture` makes them (by object and name), as `Optimizer.state_dict()` does (numbered,
with `param_names` where the optimizer was made of named parameters), or keyed by name, as
`torch.distributed.checkpoint.state_dict.get_state_dict` does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Final

from pytreeckpt.convert.leaves import array_of, leaves_of
from pytreeckpt.convert.names import steps_of
from pytreeckpt.convert.optimizers.inferring import foreign_options, kind_of
from pytreeckpt.convert.optimizers.table import with_defaults
from pytreeckpt.convert.optimizers.torch_names import (
    Named,
    captured_names,
    find_parameter,
    names_of,
    state_dict_names,
)
from pytreeckpt.convert.records import Inventory, Leaf
from pytreeckpt.errors import PathError
from pytreeckpt.navigation import descend
from pytreeckpt.paths import DictKey, Index, Path

_CAPTURED: Final = frozenset(["class", "groups", "state", "shared", "more"])
_NOT_OPTIONS: Final = frozenset(["params", "param_names"])


@dataclass(frozen=True, slots=True)
class Group:
    """A group of parameters: its options as plain values, and where they are. `says_decay`: whether it is stored how
    its weight decay is meant.
    """

    number: int
    options: Mapping[str, Any]
    path: Path
    says_decay: bool = True


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter as an optimizer has it.

    `name`: for people; `path`: where the parameter itself is, None if it was not found; `state`: where the optimizer's
    states of it are, or would be; `slots`: those that are there.
    """

    name: str
    path: Path | None
    group: Group
    state: Path
    slots: Mapping[str, Leaf]


@dataclass(frozen=True, slots=True)
class Optimizer:
    """An optimizer: where it is, its class (None if nothing tells it), its groups and parameters.

    `shared`: what it keeps of no parameter, such as the history of LBFGS. `inferred`: whether its class is told by its
    options and states, because nothing names it; `foreign`: the options that then keep it from being told, for they
    are not those of the class of torch that has the others.
    """

    path: Path
    kind: str | None
    groups: tuple[Group, ...]
    parameters: tuple[Parameter, ...]
    shared: tuple[Path, ...] = ()
    inferred: bool = False
    foreign: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """The optimizers of a tree, and what keeps parameters from being known."""

    optimizers: tuple[Optimizer, ...]
    problems: tuple[str, ...]


def value_at(tree: Any, path: Path) -> Any:
    """The plain value of what is at a path: numbers of any framework as Python's; None for what has no value."""
    try:
        return plain_value(descend(tree, path))
    except PathError:
        return None


def plain_value(value: Any) -> Any:
    """A value, with numbers of any framework as Python's; None for what has no value."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return tuple(map(plain_value, value))
    if math.prod(getattr(value, "shape", ())) != 1:
        # Nothing that is large is read for it.
        return None
    try:
        array = array_of(value)
    except (TypeError, ValueError):
        return None
    return array.item() if array.size == 1 else None


def find_optimizers(source: Inventory, *, order: Sequence[str] | None = None) -> Found:
    """The optimizers of torch in a tree. `order`: the names of the parameters of one that only numbers them, in the
    order in which it was given them.
    """
    names = names_of(source)
    problems: list[str] = []
    optimizers: list[Optimizer] = []
    for root, value in _roots(source.tree).items():
        captured = "groups" in value
        stored = value["groups" if captured else "param_groups"]
        try:
            members = (captured_names if captured else state_dict_names)(root, stored, order)
        except ValueError as error:
            problems.append(f"{root or 'the optimizer'}: {error}")
            continue
        found = [[find_parameter(names, member, root) for member in group] for group in members]
        for member, parameter in zip(chain(*members), chain(*found), strict=True):
            if isinstance(parameter, str):
                problems.append(f"{root or 'the optimizer'}: its parameter {member.text} {parameter}")
        parameters = [[None if isinstance(each, str) else each for each in group] for group in found]
        groups = tuple(_group(root, number, each, captured=captured) for number, each in enumerate(stored))
        optimizers.append(_optimizer(source, root, groups, members, parameters))
    return Found(tuple(optimizers), tuple(problems))


def _roots(tree: Any) -> dict[Path, Mapping[str, Any]]:
    """The optimizers in a tree, by their paths."""
    found: dict[Path, Mapping[str, Any]] = {}
    others: set[Path] = set()
    for leaf in leaves_of(tree):
        for depth, step in enumerate(leaf.path):
            if not isinstance(step, DictKey) or step.key not in ("groups", "param_groups"):
                continue
            root = Path(leaf.path[:depth])
            if root in found or root in others:
                continue
            value = descend(tree, root)
            if _is_captured(value) or _is_state_dict(value):
                found[root] = value
            else:
                others.add(root)
    return found


def _is_captured(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and set(value) >= _CAPTURED
        and isinstance(value["groups"], list | tuple)
        and all(
            isinstance(group, Mapping)
            and isinstance(group.get("options"), Mapping)
            and isinstance(group.get("parameters"), list | tuple)
            and all(_is_name(each) for each in group["parameters"])
            for group in value["groups"]
        )
    )


def _is_name(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(part, str) for part in value)


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and "param_groups" in value
        and isinstance(value.get("state"), Mapping)
        and isinstance(value["param_groups"], list | tuple)
        and all(
            isinstance(group, Mapping)
            and isinstance(group.get("params"), list | tuple)
            and all(isinstance(key, int | str) for key in group["params"])
            and isinstance(group.get("param_names", ()), list | tuple | None)
            for group in value["param_groups"]
        )
    )


def _group(root: Path, number: int, stored: Mapping[str, Any], *, captured: bool) -> Group:
    steps = (DictKey("groups" if captured else "param_groups"), Index(number))
    options = stored["options"] if captured else stored
    plain = {str(name): plain_value(value) for name, value in options.items() if name not in _NOT_OPTIONS}
    path = Path((*root, *steps, *((DictKey("options"),) if captured else ())))
    return Group(number, plain, path, "decoupled_weight_decay" in plain)


def _optimizer(
    source: Inventory,
    root: Path,
    groups: tuple[Group, ...],
    members: Sequence[Sequence[Named]],
    found: Sequence[Sequence[Leaf | None]],
) -> Optimizer:
    """`found`: the parameters that the members are."""
    state = Path((*root, DictKey("state")))
    wanted = {member.state for group in members for member in group}
    slots: dict[Path, dict[str, Leaf]] = {path: {} for path in wanted}
    shared: list[Path] = []
    for path, leaf in source.rest.items():
        if path[: len(state)] == state:
            depths = range(len(path) - 1, len(state), -1)
            owner = next((Path(path[:depth]) for depth in depths if path[:depth] in wanted), None)
            if owner is not None:
                slots[owner]["/".join(steps_of(path[len(owner) :]))] = leaf
                continue
        elif path[: len(root) + 1] != (*root, DictKey("shared")):
            continue
        shared.append(path)
    kind = value_at(source.tree, Path((*root, DictKey("class"))))
    inferred = not isinstance(kind, str)
    foreign: tuple[str, ...] = ()
    if inferred:
        keys = frozenset(key for each in slots.values() for key in each)
        found_kinds = [kind_of(group.options, keys) for group in groups]
        # One group with options of its own makes another optimizer of all.
        kind = next(iter(found_kinds), None) if None not in found_kinds else None
        if kind is None:
            foreign = tuple(dict.fromkeys(name for group in groups for name in foreign_options(group.options, keys)))
    known = tuple(replace(group, options=with_defaults(kind or "", group.options)) for group in groups)
    parameters = tuple(
        Parameter(member.text, None if leaf is None else leaf.path, group, member.state, slots[member.state])
        for group, of_group, leaves in zip(known, members, found, strict=True)
        for member, leaf in zip(of_group, leaves, strict=True)
    )
    return Optimizer(root, kind, known, parameters, tuple(shared), inferred, foreign)
