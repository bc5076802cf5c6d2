"""From a tree and a path to what is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pytreeckpt.errors import PathError
from pytreeckpt.objects import NamedTupleRecord, Record, fields_of
from pytreeckpt.paths import DictKey, Field, Index, Path, Step


def descend(tree: object, path: Path) -> Any:
    """The subtree or leaf of `tree` at `path`. Raises `PathError` that says what is there instead."""
    value = tree
    for depth, step in enumerate(path):
        try:
            value = _child(value, step)
        except (KeyError, IndexError, AttributeError, TypeError):
            raise _no_such(path, depth, value) from None
    return value


def _child(parent: Any, step: Step) -> object:
    if isinstance(step, Field):
        return parent[step.name] if isinstance(parent, Record) else getattr(parent, step.name)
    if isinstance(step, Index):
        if isinstance(parent, set | frozenset | Mapping | str | bytes) or not hasattr(parent, "__getitem__"):
            raise TypeError
        return parent.flat[step.index] if hasattr(parent, "flat") else parent[step.index]
    if not isinstance(parent, Mapping):
        raise TypeError
    return parent[step.key]


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
    there = [str(Path([*path[:depth], step])) for step in _steps_of(parent)]
    close = get_close_matches(str(Path(path[: depth + 1])), there, 3, 0.5) or there[:5]
    hint = f"; there is {', '.join(close)}" + (" …" if len(there) > len(close) else "") if close else ""
    return PathError(f"nothing at {str(path)!r}: {str(Path(path[:depth])) or 'the root'} has no {path[depth]}{hint}")
