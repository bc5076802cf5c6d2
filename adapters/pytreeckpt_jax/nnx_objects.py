"""Objects of Flax's nnx as parts of a training: modules, optimizers, random streams, metrics."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from pytreeckpt.training import Part, Role, class_name
from pytreeckpt_jax.names import is_nnx, is_stored, nested, unnested
from pytreeckpt_jax.pytrees import compare, put, shardings_of


def _nnx() -> Any:
    # Imported already, or there were no object of it. Any: it is not needed to import this.
    return sys.modules["flax.nnx"]


def _variables(value: object) -> list[tuple[tuple[Any, ...], Any]]:
    nnx = _nnx()
    return list(nnx.to_flat_state(nnx.state(value)))


def capture_nnx(value: object) -> dict[str, object]:
    """`class`; `leaves`: the values of all variables by their names; `kinds`: the names of their types."""
    variables = _variables(value)
    names = [path for path, _ in variables]
    return {
        "class": class_name(value),
        "leaves": nested(names, [variable.get_value() for _, variable in variables]),
        "kinds": nested(names, [type(variable).__name__ for _, variable in variables]),
    }


def plan_nnx(owner: str, value: object, captured: Mapping[str, Any], *, sharding: object, cast: bool) -> Part:
    """The object itself, with its variables changed."""
    nnx = _nnx()
    variables = _variables(value)
    wanted = {path: variable.get_value() for path, variable in variables}
    wanted = {path: leaf for path, leaf in wanted.items() if is_stored(leaf)}
    saved = unnested(captured["leaves"])
    differences, fitting = compare(owner, wanted, saved, cast=cast)
    if captured["class"] != class_name(value):
        differences.notes.append(f"{owner} is a {class_name(value)}, and was a {captured['class']}")
    shardings = shardings_of(owner, sharding, wanted)

    def apply() -> object:
        placed = dict(zip(wanted, shardings, strict=True))
        new = [
            (path, variable.replace(put(wanted[path], saved[path], placed[path])))
            for path, variable in variables
            if path in fitting
        ]
        nnx.update(value, nnx.from_flat_state(new))
        return value

    return Part(differences, apply)


def nnx_role(shardings: Mapping[str, object], *, cast: bool) -> Role:
    """`shardings`: by the names of objects."""
    return Role(
        "nnx",
        is_nnx,
        capture_nnx,
        lambda name, value, state: plan_nnx(name, value, state, sharding=shardings.get(name), cast=cast),
    )
