"""Objects that say themselves what their state is: data loaders, samplers, and others with two methods for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pytreeckpt.training.parts import Differences, Part, Role, copied

STATEFUL_RANK: Final = -1
"""First: what they do not take, they say only then, and nothing else has been changed by that time."""


def class_name(value: object) -> str:
    """The full name of the class of an object."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def stateful_role(get: str, put: str) -> Role:
    """The role of objects with a method that gives their state and one that takes it, for example `state_dict` and
    `load_state_dict`.
    """

    def matches(value: object) -> bool:
        return callable(getattr(value, get, None)) and callable(getattr(value, put, None))

    def capture(value: Any) -> dict[str, object]:
        return {"class": class_name(value), "state": copied(getattr(value, get)())}

    def plan(name: str, value: Any, captured: Mapping[str, Any]) -> Part:
        differences = Differences()
        if captured["class"] != class_name(value):
            differences.notes.append(f"{name} is a {class_name(value)}, and was a {captured['class']}")
        state = captured["state"]

        def apply() -> object:
            getattr(value, put)(copied(state))
            return value

        return Part(differences, apply, STATEFUL_RANK)

    return Role("stateful", matches, capture, plan)
