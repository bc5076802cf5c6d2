"""All objects of a training, to one tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pytreeckpt.errors import UnsupportedTypeError
from pytreeckpt.training.generators import GENERATOR
from pytreeckpt.training.layout import HEADER, Header, check_names
from pytreeckpt.training.parts import Role


def capture_objects(
    objects: Mapping[str, object], roles: Sequence[Role], *, framework: str, version: str
) -> dict[str, object]:
    """The tree of a training: the header, and by its name the state of each object, or of a dict or list of objects."""
    check_names(objects)
    found = {name: role_of(value, roles) or _roles_within(value, roles) for name, value in objects.items()}
    captured: dict[str, tuple[object, object]] = {}
    # Generators last: a data loader draws from one when it is first asked for its state.
    for name in sorted(objects, key=lambda name: _draws(found[name])):
        captured[name] = _captured(name, objects[name], found[name])
    names = {name: role for name in objects if (role := captured[name][1]) is not None}
    states = {name: captured[name][0] for name in objects}
    return {HEADER: Header(framework, version, names).as_tree(), **states}


_Found = Role | dict[Any, Role]
"""The role of an object, or the roles of those items of a dict or list that are objects, by their keys or places."""


def _roles_within(value: object, roles: Sequence[Role]) -> dict[Any, Role]:
    return {key: role for key, item in items_of(value) if (role := role_of(item, roles)) is not None}


def _draws(found: _Found) -> bool:
    """Whether it is a generator, or has one in it."""
    return any(role.name == GENERATOR for role in ([found] if isinstance(found, Role) else found.values()))


def _captured(name: str, value: Any, found: _Found) -> tuple[object, object]:
    """The state of an object and the name of its role, or both of a group; a plain value itself, and None."""
    if isinstance(found, Role):
        return _state_of(name, value, found), found.name
    if not found:
        return value, None
    items = dict(items_of(value))
    if len(found) < len(items):
        plain = next(key for key in items if key not in found)
        raise UnsupportedTypeError(
            f"{name}: {next(iter(found))!r} is an object with a state and {plain!r} is a plain value; give them apart"
        )
    states = {key: _state_of(f"{name}/{key}", items[key], role) for key, role in found.items()}
    names = {key: role.name for key, role in found.items()}
    return (states, names) if isinstance(value, Mapping) else ([*states.values()], [*names.values()])


def _state_of(name: str, value: object, role: Role) -> object:
    try:
        return role.capture(value)
    except UnsupportedTypeError as error:
        raise UnsupportedTypeError(f"{name}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


# A history may have very many of them.
_NEVER_OBJECTS: Final = (float, int, str, type, type(None))


def role_of(value: object, roles: Sequence[Role]) -> Role | None:
    """The role of an object, or None for a plain value, or a group of objects."""
    if isinstance(value, _NEVER_OBJECTS):
        return None
    return next((role for role in roles if role.name is not None and role.matches(value)), None)


def items_of(value: object) -> list[tuple[Any, Any]]:
    """The items of a dict or list, by their keys or places; of others, none."""
    if isinstance(value, Mapping):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list | tuple) else []
