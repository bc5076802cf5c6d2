"""Where models are in a tree: in what `capture` made, in dicts put together by hand, in objects that adapters know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from pytreeckpt.adapters import Described, active_adapters
from pytreeckpt.convert.leaves import FoundLeaf, leaves_of
from pytreeckpt.convert.module_records import describe_record
from pytreeckpt.convert.names import steps_of
from pytreeckpt.convert.records import Convention, Name
from pytreeckpt.errors import StructureMismatchError
from pytreeckpt.navigation import descend
from pytreeckpt.objects import Record
from pytreeckpt.paths import DictKey, Index, Path
from pytreeckpt.references import ArrayRef
from pytreeckpt.training import header_of


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a tree that may be a model: where it is, and what is known of it."""

    label: Name
    prefix: Path
    convention: Convention | None = None
    layers: Mapping[str, Any] = field(default_factory=dict)
    buffers: frozenset[str] = frozenset()
    variables: Mapping[Name, str] = field(default_factory=dict)
    """For nnx, the types of its variables."""


def described_parts(value: Any) -> tuple[Any, list[Part]] | None:
    """An object that an adapter describes, or a dict with such objects in it: its tree and parts."""
    adapters = active_adapters()

    def describe(each: object) -> Described | None:
        if isinstance(each, Described):
            return each
        if isinstance(each, dict | list | tuple | str | int | float | ArrayRef):
            return None
        if isinstance(each, Record):
            return describe_record(each)
        return next((found for adapter in adapters if (found := adapter.describe(each)) is not None), None)

    if (alone := describe(value)) is not None:
        return alone.tree, [_described_part(alone, (), Path(alone.prefix))]
    if type(value) is not dict or header_of(value) is not None:
        return None
    described = {key: found for key, each in value.items() if (found := describe(each)) is not None}
    if not described:
        return None
    tree = {key: described[key].tree if key in described else each for key, each in value.items()}
    parts = [
        _described_part(found, (str(key),), Path((DictKey(key), *found.prefix))) for key, found in described.items()
    ]
    return tree, parts


def _described_part(found: Described, label: Name, prefix: Path) -> Part:
    convention = cast("Convention", found.convention)
    return Part(label, prefix, convention, found.layers, found.buffers, found.variables)


def captured_parts(tree: Any) -> list[Part] | None:
    """The parts of what `capture` made; None for any other tree."""
    header = header_of(tree)
    if header is None:
        return None
    convention: Convention | None = "torch" if header.framework == "torch" else None
    parts: list[Part] = []
    for name, role in header.roles.items():
        roles = (
            [((), role)]
            if isinstance(role, str)
            else [((DictKey(key),), each) for key, each in role.items()]
            if isinstance(role, dict)
            else [((Index(index),), each) for index, each in enumerate(role)]
        )
        for steps, each in roles:
            state = descend(tree[name], Path(steps))
            part = _captured_part(Path((DictKey(name), *steps)), each, state, convention)
            if part is not None:
                parts.append(part)
    # Plain containers of arrays have no role; in JAX they may well be the parameters.
    if convention is None:
        plain = [name for name in tree if name not in header.roles and name not in {"training", "rng"}]
        parts += [Part((str(name),), Path((DictKey(name),))) for name in plain if isinstance(tree[name], dict | list)]
    return parts


def _captured_part(where: Path, role: str, state: Any, convention: Convention | None) -> Part | None:
    label = steps_of(where)
    match role:
        case "module":
            prefix = Path((*where, DictKey("state")))
            return Part(label, prefix, convention, state.get("layers", {}), frozenset(state.get("buffers", ())))
        case "nnx" | "pytree":
            prefix = Path((*where, DictKey("leaves")))
            kinds = {steps_of(leaf.path): str(leaf.value) for leaf in leaves_of(state.get("kinds", {}))}
            return Part(label, prefix, convention, state.get("layers", {}), variables=kinds)
    return None


def state_dict_parts(found: Sequence[FoundLeaf]) -> list[Part]:
    """State dicts in a tree that nobody captured: mappings of names to arrays, but for what optimizers keep."""
    groups: dict[Path, list[FoundLeaf]] = {}
    for leaf in found:
        groups.setdefault(Path(leaf.path[:-1]), []).append(leaf)
    optimizers = {Path(leaf.path[: leaf.path.index(DictKey("param_groups"))]) for leaf in found if _in_groups(leaf)}
    wanted = [
        prefix
        for prefix, leaves in groups.items()
        if not any(prefix[: len(each)] == each for each in optimizers) and _is_state_dict(leaves)
    ]
    if len(wanted) > 1:
        raise StructureMismatchError(
            f"there are several state dicts in this tree, at {', '.join(str(each) or 'the root' for each in wanted)}: "
            "give a dict with the one that is meant, and with the optimizer's if that is meant too"
        )
    return [Part((), prefix, "torch") for prefix in wanted]


def _in_groups(leaf: FoundLeaf) -> bool:
    return DictKey("param_groups") in leaf.path


def _is_state_dict(leaves: Sequence[FoundLeaf]) -> bool:
    steps = [step for leaf in leaves for step in leaf.path[-1:]]
    keys = [step.key for step in steps if isinstance(step, DictKey) and isinstance(step.key, str)]
    if len(keys) < len(leaves):
        return False
    lasts = {key.rpartition(".")[2] for key in keys}
    dotted = any("." in key for key in keys)
    return (dotted or any(map(_is_torch, leaves))) and not lasts.isdisjoint({"weight", "bias", "in_proj_weight"})


def _is_torch(leaf: FoundLeaf) -> bool:
    if isinstance(leaf.value, ArrayRef):
        return (leaf.value.type_name or "").startswith("torch.")
    return type(leaf.value).__module__.partition(".")[0] == "torch"
