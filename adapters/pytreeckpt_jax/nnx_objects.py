"""Objects of Flax's nnx as parts of a training: modules, optimizers, random streams, metrics."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from pytreeckpt import UnsupportedTypeError
from pytreeckpt.training import Part, Role, class_name
from pytreeckpt_jax.layers import recorded_layers
from pytreeckpt_jax.names import is_nnx, nested, unnested
from pytreeckpt_jax.nodes import PLAIN
from pytreeckpt_jax.pytrees import plan_leaves, stored_leaves


def _nnx() -> Any:
    # Imported already, or there were no object of it. Any: it is not needed to import this.
    return sys.modules["flax.nnx"]


def _variables(value: object) -> list[tuple[tuple[Any, ...], Any]]:
    """The variables of an object, and the arrays in it that are in none."""
    nnx = _nnx()
    return list(nnx.to_flat_state(nnx.state(value)))


def _values(variables: Iterable[tuple[tuple[Any, ...], Any]]) -> Any:
    """Their values in dicts within dicts, by their names; each may itself be a tree."""
    found = [(path, each.get_value() if isinstance(each, _nnx().Variable) else each) for path, each in variables]
    return nested([path for path, _ in found], [each for _, each in found])


def _at(tree: Any, path: Iterable[Any]) -> Any:
    for step in path:
        tree = tree[step]
    return tree


def capture_nnx(value: object) -> dict[str, object]:
    """`class`; `leaves`: the values of all variables by their names; `kinds`: the names of their types; `layers`: the
    class, kind and configuration of each module, if there are any.
    """
    variables = _variables(value)
    kinds = [(path, type(each).__name__) for path, each in variables if isinstance(each, _nnx().Variable)]
    return {
        "class": class_name(value),
        "leaves": stored_leaves(_values(variables)),
        "kinds": nested([path for path, _ in kinds], [kind for _, kind in kinds]),
        **recorded_layers(value),
    }


def plan_nnx(owner: str, value: object, captured: Mapping[str, Any], *, sharding: object, cast: bool) -> Part:
    """The object itself, with its variables changed."""
    nnx = _nnx()
    variables = _variables(value)
    part = plan_leaves(
        owner,
        _values(variables),
        unnested(captured["leaves"]),
        sharding=nnx.to_pure_dict(sharding) if isinstance(sharding, nnx.State) else sharding,
        cast=cast,
    )
    if captured["class"] != class_name(value):
        part.differences.notes.append(f"{owner} is a {class_name(value)}, and was a {captured['class']}")

    def apply() -> object:
        values = part.apply()
        new = [
            (path, each.replace(_at(values, path)) if isinstance(each, nnx.Variable) else _at(values, path))
            for path, each in variables
        ]
        nnx.update(value, nnx.from_flat_state(new))
        return value

    return Part(part.differences, apply)


def _holds_groups(value: object) -> bool:
    """Whether dicts or lists within a dict or list have objects of nnx in them."""
    if type(value) not in PLAIN or "flax.nnx" not in sys.modules:
        return False
    stack = [each for each in _items(value) if type(each) in PLAIN]
    while stack:
        for each in _items(stack.pop()):
            if is_nnx(each):
                return True
            if type(each) in PLAIN:
                stack.append(each)
    return False


def _items(value: Any) -> Iterable[Any]:
    return (value.values() if isinstance(value, dict) else value) or ()


def _refuse_groups(_value: object) -> NoReturn:
    raise UnsupportedTypeError(
        "objects of nnx may be in a dict or list, but not in one within another: give each by a name of its own"
    )


def nnx_roles(shardings: Mapping[str, object], *, cast: bool) -> list[Role]:
    """`shardings`: by the names of objects."""
    return [
        Role(
            "nnx",
            is_nnx,
            capture_nnx,
            lambda name, value, state: plan_nnx(name, value, state, sharding=shardings.get(name), cast=cast),
        ),
        # They are pytrees as well, and would be stored as such, for nobody to restore into.
        Role("groups", _holds_groups, _refuse_groups, lambda _name, value, _state: _refuse_groups(value)),
    ]
