"""What was saved of a training, put back into its objects: all of it, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from pytreeckpt.errors import PytreeckptError, StructureMismatchError
from pytreeckpt.mismatches import mismatch
from pytreeckpt.training.capturing import items_of, role_of
from pytreeckpt.training.layout import HEADER, RNG, check_names, header_of
from pytreeckpt.training.parts import Differences, Part, Role, copied
from pytreeckpt.training.restored import Restored


@contextmanager
def naming(path: str) -> Generator[None]:
    """Whatever does not fit within it is said to be of this file."""
    try:
        yield
    except StructureMismatchError as error:
        raise StructureMismatchError(
            f"{path}: {error}", missing=error.missing, unexpected=error.unexpected, mismatched=error.mismatched
        ) from error.__cause__


def restore_objects(
    tree: object,
    targets: Mapping[str, object],
    roles: Sequence[Role],
    *,
    strict: bool,
    more: Mapping[str, Callable[[], Part]] | None = None,
) -> Restored:
    """Put what was saved back into the targets, each by its name. `more`: what else is to be restored with them, and
    has no target, as functions that plan it.

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
    not_there = [name for name in targets if name not in tree]
    differences.missing += not_there
    if not_there and len(not_there) == len(targets):
        differences.mismatched.append(f"the checkpoint has none of {', '.join(not_there)}")
    for name, target in targets.items():
        if name in tree:
            parts[name] = comparison.of(name, target, tree[name], header.roles.get(name))
    without_target = [comparison.planned(name, name, plan) for name, plan in (more or {}).items()]
    if differences.mismatched or (strict and (differences.missing or differences.unexpected)):
        raise mismatch(
            "the checkpoint does not fit the objects, and nothing was changed",
            differences.missing,
            differences.unexpected,
            differences.mismatched,
            advice="strict=False lets objects keep what is missing and ignores what is unexpected"
            + (f"; the checkpoint has {', '.join(map(str, header.roles))}" if not_there else ""),
        )
    done = _applied({**parts, **dict(zip(more or (), without_target, strict=True))})
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


def _applied(parts: Mapping[str, Part | _Group]) -> dict[int, object]:
    """What each part gave, by the part's identity."""
    named = [each for name, part in parts.items() for each in _flat(name, part)]
    done: dict[int, object] = {}
    changed: list[str] = []
    for name, part in sorted(named, key=lambda pair: pair[1].rank):
        try:
            done[id(part)] = part.apply()
        except Exception as error:
            # Classes of the program's own say only now what they do not take.
            raise StructureMismatchError(
                f"{name}: it does not take what was saved of it: {type(error).__name__}: {error}. "
                f"Changed by then: {', '.join(changed) or 'nothing else'}; make these anew",
                mismatched=[name],
            ) from error
        changed.append(name)
    return done


def _flat(name: str, part: Part | _Group) -> list[tuple[str, Part]]:
    if isinstance(part, Part):
        return [(name, part)]
    return [each for key, one in part.parts.items() for each in _flat(f"{name}/{key}", one)]


def _collected(part: Part | _Group, done: Mapping[int, object]) -> object:
    if isinstance(part, Part):
        return done[id(part)]
    values = {key: _collected(each, done) for key, each in part.parts.items()}
    return values if part.is_mapping else list(values.values())


_VALUES: Final = (bool, int, float, complex, str, bytes, tuple, list, np.generic, type(None))


def _called(target: object, role: Role | None) -> str:
    if isinstance(target, type):
        return f"the class {target.__name__} and no object of it"
    if role is None:
        return "None" if target is None else f"a {type(target).__name__}"
    return role.name or "a plain value, such as a state dict"


def _called_there(saved_role: object) -> str:
    if isinstance(saved_role, dict | list):
        return "several objects"
    return str(saved_role or "a plain value, such as a state dict")


def _unfit() -> Part:
    # Never applied: a difference says why.
    return Part(Differences(), lambda: None)


@dataclass(frozen=True, slots=True)
class _Comparison:
    """Targets held against what was saved, and all that does not fit so far."""

    roles: Sequence[Role]
    differences: Differences = field(default_factory=Differences)

    def of(self, name: str, target: Any, state: Any, saved_role: Any) -> Part | _Group:
        if isinstance(saved_role, dict | list) and items_of(target) and role_of(target, self.roles) is None:
            return self.of_group(name, target, dict(items_of(state)), dict(items_of(saved_role)))
        role = next((role for role in self.roles if role.matches(target)), None)
        if role is None and saved_role is None and isinstance(target, _VALUES):
            # Nothing can be put into it: the result has what was saved.
            return Part(Differences(), lambda: copied(state))
        if role is None or role.name != saved_role or isinstance(target, type):
            self.differences.mismatched.append(
                f"{name}: this is {_called(target, role)}, the checkpoint has {_called_there(saved_role)}"
            )
            return _unfit()
        return self.planned(name, role.name or "plain values", lambda: role.plan(name, target, state))

    def planned(self, name: str, what: str, plan: Callable[[], Part]) -> Part:
        try:
            part = plan()
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, PytreeckptError):
                raise
            # A tree that says it was captured, and was put together otherwise.
            self.differences.mismatched.append(f"{name}: what was saved is no state of {what}: {error!r}")
            return _unfit()
        self.differences.add(part.differences)
        return part

    def of_group(self, name: str, target: Any, states: Mapping[Any, Any], saved_roles: Mapping[Any, Any]) -> _Group:
        ours = dict(items_of(target))
        theirs = {key: role for key, role in saved_roles.items() if key in states}
        self.differences.missing += [f"{name}/{key}" for key in ours if key not in theirs]
        self.differences.unexpected += [f"{name}/{key}" for key in theirs if key not in ours]
        parts = {
            key: self.of(f"{name}/{key}", item, states[key], theirs[key]) for key, item in ours.items() if key in theirs
        }
        return _Group(parts, isinstance(target, Mapping))
