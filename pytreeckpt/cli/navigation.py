"""From a node of an outline to others: its children, the value inside its wrappers, what is at a path."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pytreeckpt import nodes as n
from pytreeckpt.cli.columns import first_value
from pytreeckpt.cli.outline import Outline
from pytreeckpt.nodes import leaf_value
from pytreeckpt.objects import ClassKind, ObjectType, is_atomic
from pytreeckpt.paths import DictKey, Field, Index, Path, Step


class Child(NamedTuple):
    """A node directly below another one; `attribute`: it belongs to a wrapper and is not part of the tree."""

    step: Step
    position: int
    attribute: bool


class Wrapped(NamedTuple):
    """A node without its wrappers: their types, outermost first, their attributes, and the position of the value."""

    types: tuple[ObjectType, ...]
    attributes: tuple[Child, ...]
    position: int


def kind_at(outline: Outline, position: int) -> int:
    """The kind of a node."""
    return outline.nodes.kinds[position]


def object_type(outline: Outline, position: int) -> ObjectType:
    """The type of an object."""
    return outline.nodes.types[outline.nodes.objects[outline.entries[position]]]


def array_number(outline: Outline, position: int) -> int:
    """The number in the array table of an array or scalar."""
    return outline.nodes.arrays[outline.entries[position]]


def n_children(outline: Outline, position: int) -> int:
    """The number of children of a container."""
    kind = outline.nodes.kinds[position]
    if kind == n.OBJECT:
        return len(object_type(outline, position).fields)
    return outline.nodes.counts[outline.entries[position]] if kind >= n.LIST else 0


def subtrees(outline: Outline, start: int, number: int) -> Sequence[int]:
    """The positions of so many subtrees that follow each other."""
    if not outline.nodes.kinds[start : start + number].translate(None, n.LEAF_KINDS):
        return range(start, start + number)
    positions: list[int] = []
    for _ in range(number):
        positions.append(start)
        start = outline.ends[start]
    return positions


def values_of(outline: Outline, position: int) -> Sequence[int]:
    """The positions of the children of a container, without the keys of a dict."""
    number = n_children(outline, position)
    start = position + 1
    if kind_at(outline, position) == n.DICT:
        start = first_value(outline.nodes, outline.columns.ends, position, number)
    return subtrees(outline, start, number)


def children(outline: Outline, position: int) -> Iterator[Child]:
    """The children of a list, tuple, dict or object that is no wrapper, in order."""
    number = n_children(outline, position)
    kind = outline.nodes.kinds[position]
    if kind == n.DICT:
        keys = subtrees(outline, position + 1, number)
        for key, value in zip(keys, values_of(outline, position), strict=True):
            yield Child(DictKey(element(outline, key)), value, attribute=False)
    elif kind == n.OBJECT:
        names = object_type(outline, position).fields
        for name, value in zip(names, subtrees(outline, position + 1, number), strict=True):
            yield Child(Field(name), value, attribute=False)
    elif kind in {n.LIST, n.TUPLE}:
        for place, value in enumerate(subtrees(outline, position + 1, number)):
            yield Child(Index(place), value, attribute=False)


def unwrap(outline: Outline, position: int) -> Wrapped:
    """The value at a position, without its wrappers."""
    types: list[ObjectType] = []
    attributes: list[Child] = []
    while outline.nodes.kinds[position] == n.OBJECT:
        type_ = object_type(outline, position)
        if type_.class_kind is not ClassKind.WRAPPER or is_atomic(type_):
            break
        types.append(type_)
        fields = subtrees(outline, position + 1, len(type_.fields))
        named = zip(type_.fields[1:], fields[1:], strict=True)
        attributes += [Child(Field(name), value, attribute=True) for name, value in named]
        position += 1
    return Wrapped(tuple(types), tuple(attributes), position)


def element(outline: Outline, position: int) -> object:
    """The Python value of a dict key, or of an element of a set (whose depth is limited, see `Limits.key_depth`)."""
    kind = outline.nodes.kinds[position]
    if kind in {n.TUPLE, n.FROZENSET}:
        items = subtrees(outline, position + 1, n_children(outline, position))
        values = (element(outline, item) for item in items)
        return tuple(values) if kind == n.TUPLE else frozenset(values)
    return leaf_value(outline.nodes, kind, outline.entries[position])


def find(outline: Outline, path: Path) -> int | None:
    """The position of what is at a path of the tree, with its wrappers; None if there is nothing."""
    position = outline.tree
    for step in path:
        text = str(step)
        wrapped = unwrap(outline, position)
        candidates = [*children(outline, wrapped.position), *wrapped.attributes]
        found = next(
            (child for child in candidates if type(child.step) is type(step) and str(child.step) == text), None
        )
        if found is None:
            return None
        position = found.position
    return position
