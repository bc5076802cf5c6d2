"""What the parts of a training are to an operation: weights, and what belongs to the step that it was at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from pytreeckpt.errors import StructureMismatchError
from pytreeckpt.objects import NamedTupleRecord, Record, record_expansion
from pytreeckpt.operations.lazy import data_of, part_at
from pytreeckpt.operations.merging import is_mapping
from pytreeckpt.paths import DictKey, Field, Index, Path, Step
from pytreeckpt.training import RNG, header_of
from pytreeckpt.training.layout import HEADER
from pytreeckpt.training.summary import summarize

MODEL: Final = "model"
"""What all roles are called that hold weights."""
_OF_MODELS: Final = ("module", "nnx", "pytree")
# Of a train state: what is no weight.
_OPTIMIZER_NAMES: Final = ("opt_state", "optimizer", "optimizer_state")
_COUNTS: Final = ("step", "count", "rng", "key")


def is_weight(tree: object) -> Callable[[Path], bool]:
    """Tells by its path whether a leaf of a built tree belongs to weights, and not to an optimizer, a random number
    generator, or whatever else goes on from where the newest step is.

    The roles of a training that `capture` made say so; of other trees, and within train states, what is called or
    looks like the state of an optimizer: `opt_state`, `{"state": …, "param_groups": …}`.
    """
    header = header_of(tree)
    roles: Mapping[str, Any] = {} if header is None else {**header.roles, HEADER: HEADER, RNG: RNG}
    others = [
        path
        for name, role in roles.items()
        for path, each in _roles_at((DictKey(name),), role)
        if each not in _OF_MODELS
    ]
    others += _optimizer_paths(tree)
    depths = {len(path) for path in others}
    known = set(others)

    def tells(path: Path) -> bool:
        return not any(tuple(path[:depth]) in known for depth in depths)

    return tells


def _roles_at(path: tuple[Step, ...], role: Any) -> list[tuple[tuple[Step, ...], str]]:
    if isinstance(role, dict):
        return [((*path, DictKey(key)), each) for key, each in role.items()]
    if isinstance(role, list):
        return [((*path, Index(index)), each) for index, each in enumerate(role)]
    return [(path, role)]


def _optimizer_paths(tree: object) -> list[tuple[Step, ...]]:
    found: list[tuple[Step, ...]] = []
    stack: list[tuple[tuple[Step, ...], Any]] = [((), tree)]
    while stack:
        path, value = stack.pop()
        items = _named_items(value)
        names = {name for name, _, _ in items}
        if {"state", "param_groups"} <= names:
            found.append(path)
            continue
        for name, step, child in items:
            if name in _OPTIMIZER_NAMES:
                found.append((*path, step))
            else:
                stack.append(((*path, step), child))
    return found


def _named_items(value: object) -> list[tuple[object, Step, Any]]:
    inner = data_of(value)
    if type(inner) is dict:
        return [(key, DictKey(key), child) for key, child in inner.items()]
    if isinstance(inner, Record | NamedTupleRecord):
        expansion = record_expansion(inner)
        return [
            (name, Field(name), child) for name, child in zip(expansion.type.fields, expansion.children, strict=True)
        ]
    return []


# Weights alone.


def weights_in(tree: Any, role: str, model_path: Callable[[], Path | None]) -> tuple[Any, tuple[str, ...]]:
    """Of the state of a training, the objects of a role, and their names: for "model" the weights of models, without
    what is recorded about them; of one alone its state itself, of several a dict by their names. `model_path` tells
    where the weights are if nothing else does.

    Raises `StructureMismatchError` if the tree does not say what it holds, or has none of this role.
    """
    header = header_of(tree)
    if header is not None:
        found = [
            (path, each) for name, value in header.roles.items() for path, each in _roles_at((DictKey(name),), value)
        ]
    else:
        summary = summarize(tree)
        facts = () if summary is None else summary.facts
        found = [((DictKey(name),), each) for name, each, _ in facts if isinstance(tree, dict) and name in tree]
    wanted = _OF_MODELS if role == MODEL else (role,)
    paths = [(path, each) for path, each in found if each in wanted]
    if not paths and role == MODEL and (place := model_path()) is not None:
        return part_at(tree, place), (str(place) or "the whole tree",)
    if not paths:
        there = sorted({MODEL if each in _OF_MODELS else each for _, each in found if each})
        raise StructureMismatchError(
            f"role={role!r}: there is no such part"
            + (f"; there is {', '.join(there)}" if there else ": the tree does not say what its parts are")
            + "; name what you mean with select= or at="
        )
    parts = [(Path(path), _weights(part_at(tree, Path(path)), each)) for path, each in paths]
    names = tuple(str(path) for path, _ in parts)
    if len(parts) == 1:
        return parts[0][1], names
    result: dict[Any, Any] = {}
    for path, part in parts:
        at = result
        for step in path[:-1]:
            at = at.setdefault(_key(step), {})
        at[_key(path[-1])] = part
    return result, names


def model_path(tree: object) -> Path | None:
    """Where the parameters of the one model of a tree are, of which nothing says what it is; None if there is no such.

    `tree`: that of an open checkpoint.
    """
    # Who knows the roles can do without.
    from pytreeckpt.convert import inventory_of

    try:
        first, *others = [leaf.path[:-1] for leaf in inventory_of(tree).model.leaves.values()]
    except StructureMismatchError:
        return None
    depth = len(first)
    while any(path[:depth] != first[:depth] for path in others):
        depth -= 1
    return Path(first[:depth])


def _key(step: Step) -> Any:
    return step.key if isinstance(step, DictKey) else step.index if not isinstance(step, Field) else step.name


def _weights(state: Any, role: str) -> Any:
    """What of the captured state of an object is for inference."""
    captured = data_of(state)
    if not isinstance(captured, dict):
        return state
    if role == "module" and "state" in captured and "layers" in captured:
        return captured["state"]
    if role == "nnx" and "leaves" in captured:
        return _inference_leaves(captured["leaves"], captured.get("kinds"))
    if role == "pytree" and "leaves" in captured:
        leaves = captured["leaves"]
        if not is_mapping(leaves):
            return leaves
        return {name: value for name, value in data_of(leaves).items() if name not in (*_OPTIMIZER_NAMES, *_COUNTS)}
    return state


_NOT_FOR_INFERENCE: Final = ("OptVariable", "OptState", "OptArray", "RngKey", "RngCount", "RngState", "RngStream")


def _inference_leaves(leaves: Any, kinds: Any) -> Any:
    """The variables of an object of nnx, without those of optimizers and random number generators."""
    inner, of = data_of(leaves), data_of(kinds)
    if type(inner) is not dict or type(of) is not dict:
        return leaves
    kept: dict[Any, Any] = {}
    for key, value in inner.items():
        kind = of.get(key)
        if isinstance(kind, str):
            if kind.rpartition(".")[2] not in _NOT_FOR_INFERENCE:
                kept[key] = value
            continue
        below = _inference_leaves(value, kind)
        if below != {}:
            kept[key] = below
    return kept
