"""From a tree and a path to what is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytreeckpt.errors import PathError
from pytreeckpt.keys import equality_form
from pytreeckpt.objects import NamedTupleRecord, Record, fields_of
from pytreeckpt.paths import DictKey, Field, Index, Path, Step, suggest


def descend(tree: object, path: Path) -> Any:
    """The subtree or leaf of `tree` at `path`. Raises `PathError` that says what is there instead."""
    value = tree
    for depth, step in enumerate(path):
        try:
            value = _child(value, step)
        except (StopIteration, KeyError, IndexError, AttributeError, TypeError, ValueError):
            raise _no_such(path, depth, value) from None
    return value


def _child(parent: Any, step: Step) -> object:
    if isinstance(step, Field):
        return _field(parent, step.name)
    if isinstance(step, Index):
        if isinstance(parent, set | frozenset | Mapping | str | bytes) or not hasattr(parent, "__getitem__"):
            raise TypeError
        return parent.flat[step.index] if hasattr(parent, "flat") else parent[step.index]
    if not isinstance(parent, Mapping):
        raise TypeError
    if step.key in parent:
        return parent[step.key]
    # A NaN is found by its bits: it equals nothing.
    wanted = equality_form(step.key)
    return next(value for key, value in parent.items() if equality_form(key) == wanted)


def _field(parent: Any, name: str) -> object:
    if isinstance(parent, Record):
        return parent[name]
    # Names of fields need not be those of attributes, nor the other way round.
    if isinstance(parent, tuple):
        names: tuple[str, ...] = getattr(parent, "_fields", ())
        return parent[names.index(name)]
    own = getattr(parent, "__dict__", {})
    return own[name] if name in own else getattr(parent, name)


def _steps_of(parent: object) -> list[Step]:
    if isinstance(parent, Mapping):
        return [DictKey(key) for key in parent]
    if isinstance(parent, Record):
        return [Field(name) for name in parent]
    if isinstance(parent, NamedTupleRecord):
        return [Field(name) for name in fields_of(parent)]
    if isinstance(parent, Sequence) and not isinstance(parent, str | bytes):
        return [Index(index) for index in range(len(parent))]
    return []


def _no_such(path: Path, depth: int, parent: object) -> PathError:
    steps = _steps_of(parent)
    there = [str(Path([*path[:depth], step])) for step in steps[:2000]]
    close = suggest(str(Path(path[: depth + 1])), there, count=3, cutoff=0.5) or there[:5]
    hint = f"; there is {', '.join(close)}" + (" …" if len(steps) > len(close) else "") if close else ""
    return PathError(f"nothing at {str(path)!r}: {str(Path(path[:depth])) or 'the root'} has no {path[depth]}{hint}")
