"""A whole training: all its objects to one tree, and all that was saved of them back, or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytreeckpt.errors import PytreeckptError, StructureMismatchError, UnsupportedTypeError
from pytreeckpt.mismatches import mismatch
from pytreeckpt.training.layout import HEADER, RNG, Header, check_names, header_of
from pytreeckpt.training.parts import Differences, Part, Role
from pytreeckpt.training.restored import Restored


def capture_objects(
    objects: Mapping[str, object], roles: Sequence[Role], *, framework: str, version: str
) -> dict[str, object]:
    """The tree of a training: the header, and by its name the state of each object, or of a dict or list of objects."""
    check_names(objects)
    states: dict[str, object] = {}
    names: dict[str, object] = {}
    for name, value in objects.items():
        states[name], role = _captured(name, value, roles)
        if role is not None:
            names[name] = role
    return {HEADER: Header(framework, version, names).as_tree(), **states}


def _captured(name: str, value: Any, roles: Sequence[Role]) -> tuple[object, object]:
    """The state of an object and the name of its role, or both of a group."""
    role = _role_of(value, roles)
    if role is not None:
        return role.capture(value), role.name
    found = {key: _captured_item(item, roles) for key, item in _items(value)}
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


def _captured_item(value: object, roles: Sequence[Role]) -> tuple[object, str | None]:
    role = _role_of(value, roles)
    return (value, None) if role is None else (role.capture(value), role.name)


def _role_of(value: object, roles: Sequence[Role]) -> Role | None:
    if value is None or isinstance(value, str | int | float):
        # A history may have very many of them.
        return None
    return next((role for role in roles if role.name is not None and role.matches(value)), None)


def _items(value: object) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list | tuple) else []


def restore_objects(
    tree: object,
    targets: Mapping[str, object],
    roles: Sequence[Role],
    *,
    strict: bool,
    more: Mapping[str, Part] | None = None,
) -> Restored:
    """Put what was saved back into the targets, each by its name. `more`: what else is to be restored with them, and
    has no target.

    All is looked at first: if something does not fit, nothing has been changed and one `StructureMismatchError` has it
    all. `strict=False` lets pass what is missing or unexpected, but no mismatch.
    """
    header = header_of(tree)
    if header is None or not isinstance(tree, Mapping):
        raise StructureMismatchError(
            "this tree was not made by capture, which says what its parts are; load them one by one, as with "
            'model.load_state_dict(tree["model"])'
        )
    check_names(targets)
    comparison = _Comparison(roles)
    differences = comparison.differences
    parts: dict[str, Part | _Group] = {}
    for name, target in targets.items():
        if name in tree:
            parts[name] = comparison.of(name, target, tree[name], header.roles.get(name))
        else:
            differences.missing.append(name)
    for part in (more or {}).values():
        differences.add(part.differences)
    if differences.mismatched or (strict and (differences.missing or differences.unexpected)):
        raise mismatch(
            "the checkpoint does not fit the objects",
            differences.missing,
            differences.unexpected,
            differences.mismatched,
            advice="Nothing was changed. strict=False lets objects keep what is missing and ignores what is unexpected",
        )
    done: dict[int, object] = {}
    flat = [part for each in [*parts.values(), *(more or {}).values()] for part in _flat(each)]
    for part in sorted(flat, key=lambda part: part.rank):
        done[id(part)] = part.apply()
    skipped = [name for name in header.roles if name not in targets]
    plain = {name: tree[name] for name in tree if name not in {HEADER, RNG, *header.roles}}
    values = {**plain, **{name: _collected(part, done) for name, part in parts.items()}}
    return Restored(
        values,
        tuple(differences.missing),
        tuple(differences.unexpected),
        tuple(skipped),
        tuple(differences.notes),
    )


@dataclass(frozen=True, slots=True)
class _Group:
    """The parts of a dict or list of objects."""

    parts: Mapping[Any, Part | _Group]
    is_mapping: bool


def _flat(part: Part | _Group) -> list[Part]:
    return [part] if isinstance(part, Part) else [each for one in part.parts.values() for each in _flat(one)]


def _collected(part: Part | _Group, done: Mapping[int, object]) -> object:
    if isinstance(part, Part):
        return done[id(part)]
    values = {key: _collected(each, done) for key, each in part.parts.items()}
    return values if part.is_mapping else list(values.values())


@dataclass(frozen=True, slots=True)
class _Comparison:
    """Targets held against what was saved, and all that does not fit so far."""

    roles: Sequence[Role]
    differences: Differences = field(default_factory=Differences)

    def of(self, name: str, target: Any, state: Any, saved_role: Any) -> Part | _Group:
        if isinstance(saved_role, dict | list) and _items(target) and _role_of(target, self.roles) is None:
            return self.of_group(name, target, dict(_items(state)), dict(_items(saved_role)))
        role = next((role for role in self.roles if role.matches(target)), None)
        if role is None:
            raise UnsupportedTypeError(
                f"{name}: nothing can be restored into a {type(target).__name__}; what was saved is in the result, "
                f"under {name!r}"
            )
        unfit = Part(Differences(), lambda: target)
        if role.name != saved_role:
            theirs = "several objects" if isinstance(saved_role, dict | list) else saved_role or "a plain value"
            self.differences.mismatched.append(
                f"{name}: this is {role.name or 'a plain value'}, the checkpoint has {theirs}"
            )
            return unfit
        try:
            part = role.plan(name, target, state)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, PytreeckptError):
                raise
            # A tree that says it was captured, and was put together otherwise.
            self.differences.mismatched.append(
                f"{name}: what was saved is no state of {role.name or 'plain values'}: {error!r}"
            )
            return unfit
        self.differences.add(part.differences)
        return part

    def of_group(self, name: str, target: Any, states: Mapping[Any, Any], saved_roles: Mapping[Any, Any]) -> _Group:
        ours = dict(_items(target))
        theirs = {key: role for key, role in saved_roles.items() if key in states}
        self.differences.missing += [f"{name}/{key}" for key in ours if key not in theirs]
        self.differences.unexpected += [f"{name}/{key}" for key in theirs if key not in ours]
        parts = {
            key: self.of(f"{name}/{key}", item, states[key], theirs[key]) for key, item in ours.items() if key in theirs
        }
        return _Group(parts, isinstance(target, Mapping))
