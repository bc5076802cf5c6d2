"""All objects of a training, to one tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytreeckpt.errors import UnsupportedTypeError
from pytreeckpt.training.generators import GENERATOR
from pytreeckpt.training.layout import HEADER, Header, check_names
from pytreeckpt.training.parts import Role


def capture_objects(
    objects: Mapping[str, object], roles: Sequence[Role], *, framework: str, version: str
) -> dict[str, object]:
    """The tree of a training: the header, and by its name the state of each object, or of a dict or list of objects."""
    check_names(objects)
    found: dict[str, tuple[object, object]] = {}
    # Generators last: a data loader draws from one when it is first asked for its state.
    for name, value in sorted(objects.items(), key=lambda item: _draws(item[1], roles)):
        found[name] = _captured(name, value, roles)
    names = {name: role for name in objects if (role := found[name][1]) is not None}
    states = {name: found[name][0] for name in objects}
    return {HEADER: Header(framework, version, names).as_tree(), **states}


def _draws(value: object, roles: Sequence[Role]) -> bool:
    """Whether a value is a generator, or has one in it."""
    every = [value, *(each for _, each in items_of(value))] if role_of(value, roles) is None else [value]
    return any(role is not None and role.name == GENERATOR for each in every for role in [role_of(each, roles)])


def _captured(name: str, value: Any, roles: Sequence[Role]) -> tuple[object, object]:
    """The state of an object and the name of its role, or both of a group."""
    if role_of(value, roles) is not None:
        return _captured_item(name, value, roles)
    found = {key: _captured_item(f"{name}/{key}", item, roles) for key, item in items_of(value)}
    with_role = [key for key, (_, item_role) in found.items() if item_role is not None]
    if not with_role:
        return value, None
    if len(with_role) < len(found):
        plain = next(key for key, (_, item_role) in found.items() if item_role is None)
        raise UnsupportedTypeError(
            f"{name}: {with_role[0]!r} is an object with a state and {plain!r} is a plain value; give them apart"
        )
    if isinstance(value, Mapping):
        return {key: state for key, (state, _) in found.items()}, {key: each for key, (_, each) in found.items()}
    return [state for state, _ in found.values()], [each for _, each in found.values()]


def _captured_item(name: str, value: object, roles: Sequence[Role]) -> tuple[object, str | None]:
    role = role_of(value, roles)
    if role is None:
        return value, None
    try:
        return role.capture(value), role.name
    except UnsupportedTypeError as error:
        raise UnsupportedTypeError(f"{name}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def role_of(value: object, roles: Sequence[Role]) -> Role | None:
    """The role of an object, or None for a plain value, or a group of objects."""
    if value is None or isinstance(value, str | int | float | type):
        # A history may have very many of them.
        return None
    return next((role for role in roles if role.name is not None and role.matches(value)), None)


def items_of(value: object) -> list[tuple[Any, Any]]:
    """The items of a dict or list, by their keys or places; of others, none."""
    if isinstance(value, Mapping):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list | tuple) else []
