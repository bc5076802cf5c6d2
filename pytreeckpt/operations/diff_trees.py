"""The tree of a checkpoint as a list of visited nodes whose children can be looked up, and what stands at each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np

from pytreeckpt import nodes as n
from pytreeckpt.build import Builder
from pytreeckpt.checkpoint import Checkpoint
from pytreeckpt.dtypes import Descriptor
from pytreeckpt.index import IntArray
from pytreeckpt.keys import key_string
from pytreeckpt.nodes import Nodes, Visit, leaf_value, walk
from pytreeckpt.objects import ClassKind, ObjectType, build_record, is_atomic
from pytreeckpt.operations.diff_records import Side
from pytreeckpt.reading import inline_array, scalar_value

_CONTAINERS: Final = {n.LIST: "list", n.TUPLE: "tuple", n.DICT: "dict", n.SET: "set", n.FROZENSET: "frozenset"}
# The payloads of which kinds are in one column, and how many a node has there.
_COLUMNS: Final = ([n.INT], [n.FLOAT, n.COMPLEX], [n.STR], [n.BYTES, n.BIGINT], [n.ARRAY, n.SCALAR], [n.OBJECT])


class Unwrapped(NamedTuple):
    """A node without its wrappers: their types, outermost first, their attributes, and the place of the value."""

    types: tuple[ObjectType, ...]
    attributes: tuple[int, ...]
    place: int


@dataclass(frozen=True)
class VisitedTree:
    """All visits of one tree in preorder. A place is a place in `visits`; `ends`: where the subtree at each ends."""

    checkpoint: Checkpoint
    visits: list[Visit]
    ends: list[int]

    @property
    def nodes(self) -> Nodes:
        """The columns of the stream."""
        return self.checkpoint.index.nodes

    def children(self, place: int) -> list[int]:
        """The places of the children."""
        found: list[int] = []
        end = self.ends[place]
        place += 1
        while place < end:
            found.append(place)
            place = self.ends[place]
        return found

    def object_type(self, place: int) -> ObjectType:
        """The type of an object."""
        return self.nodes.types[self.nodes.objects[self.visits[place].entry]]

    def array_number(self, place: int) -> int:
        """The number of an array or scalar in the array table."""
        return self.nodes.arrays[self.visits[place].entry]

    def descriptor(self, place: int) -> Descriptor:
        """The dtype of an array or scalar."""
        index = self.checkpoint.index
        return index.descriptors[index.arrays[self.array_number(place)].dtype]

    def scalar_bytes(self, place: int) -> bytes:
        """The bytes of a numpy scalar."""
        return inline_array(self.checkpoint.index, self.array_number(place)).tobytes()

    def unwrap(self, place: int) -> Unwrapped:
        """The value at a place, without its wrappers."""
        types: tuple[ObjectType, ...] = ()
        attributes: tuple[int, ...] = ()
        while self.visits[place].kind == n.OBJECT and self.visits[place].n_children:
            type_ = self.object_type(place)
            if type_.class_kind is not ClassKind.WRAPPER:
                break
            types = (*types, type_)
            place, *others = self.children(place)
            attributes += tuple(others)
        return Unwrapped(types, attributes, place)

    def leaves(self, place: int, *, attributes: bool) -> Iterator[int]:
        """The leaves at and below a place; those of attributes of wrappers too, or not."""
        for below in range(place, self.ends[place]):
            visit = self.visits[below]
            if visit.n_children == 0 and (attributes or not visit.attribute):
                yield below

    def outermost(self, place: int) -> int:
        """The place of the outermost wrapper around the value at a place; that place itself if there is none."""
        # A wrapper is the parent of the node that follows it at the same path.
        while place and self.visits[place - 1].kind == n.OBJECT and self.visits[place - 1].n_children:
            if self.object_type(place - 1).class_kind is not ClassKind.WRAPPER:
                break
            place -= 1
        return place

    def wrapping(self, place: int) -> tuple[object, ...]:
        """Equal for leaves that are wrapped alike, with the same attributes."""
        unwrapped = self.unwrap(self.outermost(place))
        values = (self.token(at) if self.is_value(at) else None for at in unwrapped.attributes)
        return (self.type_of(unwrapped), *values)

    # What stands at a place.

    def type_of(self, unwrapped: Unwrapped) -> tuple[object, ...]:
        """Equal for what has the same types, wrappers included."""
        wrappers = tuple((type_.class_kind, type_.name) for type_ in unwrapped.types)
        visit = self.visits[unwrapped.place]
        if visit.kind == n.OBJECT:
            type_ = self.object_type(unwrapped.place)
            return (*wrappers, (type_.class_kind, type_.name))
        return (*wrappers, self._kind_name(visit))

    def _kind_name(self, visit: Visit) -> str:
        if visit.kind in {n.ARRAY, n.SCALAR}:
            return "array" if visit.kind == n.ARRAY else "numpy scalar"
        return _CONTAINERS.get(visit.kind) or type(leaf_value(self.nodes, visit.kind, visit.entry)).__name__

    def side(self, place: int) -> Side:
        """The record of what stands at a place, with the wrappers around it."""
        unwrapped = self.unwrap(place)
        inner = unwrapped.place
        visit = self.visits[inner]
        name = self.object_type(inner).name if visit.kind == n.OBJECT else self._kind_name(visit)
        names = [type_.name for type_ in unwrapped.types]
        # An OrderedDict is a wrapped dict, and a tensor a wrapped array: it goes without saying.
        if not names or not (name == "array" or names[-1].startswith("python.")):
            names.append(name)
        text = " of ".join(each.removeprefix("python.") for each in names)
        if visit.kind in {n.ARRAY, n.SCALAR}:
            index = self.checkpoint.index
            number = self.array_number(inner)
            entry = index.arrays[number]
            value = scalar_value(index, number) if visit.kind == n.SCALAR else None
            return Side(text, value, index.dtypes[entry.dtype], entry.shape, index.nbytes(number))
        if visit.n_children:
            return Side(text, n_leaves=sum(1 for _ in self.leaves(inner, attributes=False)))
        return Side(text, self.value(inner))

    def is_value(self, place: int) -> bool:
        """Whether it is compared as a whole: a plain value, a set, or an object that paths do not look into."""
        visit = self.visits[place]
        if visit.kind == n.OBJECT:
            return is_atomic(self.object_type(place))
        return visit.kind < n.ARRAY or visit.kind in {n.SET, n.FROZENSET}

    @cached_property
    def _entries(self) -> IntArray:
        """The entry of each node of the stream in the column of its payload."""
        kinds = np.frombuffer(self.nodes.kinds, np.uint8)
        entries = np.full(len(kinds), -1)
        for column in (*_COLUMNS, list(n.COUNTED_KINDS)):
            mask = np.isin(kinds, column)
            used = np.where(kinds[mask] == n.COMPLEX, 2, 1)
            entries[mask] = np.cumsum(used) - used
        return entries

    def _span(self, place: int) -> range:
        """The positions in the stream of all nodes of what is visited as a whole."""
        start = self.visits[place].position
        # Between two visits there is nothing else; and no value that takes more than one node ends the metadata.
        following = place + 1 < len(self.visits)
        return range(start, self.visits[place + 1].position if following else len(self.nodes.kinds))

    def token(self, place: int) -> object:
        """Equal for values of one type that are the same in every bit."""
        visit = self.visits[place]
        if visit.kind < n.ARRAY:
            value = leaf_value(self.nodes, visit.kind, visit.entry)
            return key_string(value) if isinstance(value, float | complex) else value
        parts: list[object] = []
        for position in self._span(place):
            kind, entry = self.nodes.kinds[position], int(self._entries[position])
            parts.append(kind)
            if kind < n.ARRAY:
                parts.append(key_string(leaf_value(self.nodes, kind, entry)))
            elif kind in {n.ARRAY, n.SCALAR}:
                parts.append(self._array_token(self.nodes.arrays[entry]))
            elif kind == n.OBJECT:
                parts.append(self.nodes.types[self.nodes.objects[entry]])
            else:
                parts.append(self.nodes.counts[entry])
        return tuple(parts)

    def _array_token(self, array: int) -> object:
        index = self.checkpoint.index
        entry = index.arrays[array]
        values = self.checkpoint.read_arrays([array])[array]
        return index.descriptors[entry.dtype], entry.shape, values.tobytes()

    def value(self, place: int) -> Any:
        """The Python value of what is a leaf and no array; objects of classes come as records."""
        visit = self.visits[place]
        if visit.kind < n.ARRAY:
            return leaf_value(self.nodes, visit.kind, visit.entry)
        # Backwards, children come before their parents.
        values: list[Any] = []
        for position in reversed(self._span(place)):
            kind, entry = self.nodes.kinds[position], int(self._entries[position])
            values.append(self._built(kind, entry, values))
        return values.pop()

    def _built(self, kind: int, entry: int, values: list[Any]) -> Any:
        if kind < n.ARRAY:
            return leaf_value(self.nodes, kind, entry)
        if kind == n.ARRAY:
            array = self.nodes.arrays[entry]
            return self.checkpoint.read_arrays([array])[array]
        if kind == n.SCALAR:
            return scalar_value(self.checkpoint.index, self.nodes.arrays[entry])
        if kind == n.OBJECT:
            type_ = self.nodes.types[self.nodes.objects[entry]]
            fields = [values.pop() for _ in type_.fields]
            plain = type_.name.startswith(("python.", "numpy.")) and type_.fields
            return Builder("numpy", ()).build_object(type_, fields) if plain else build_record(type_, fields)
        count = self.nodes.counts[entry]
        items = [values.pop() for _ in range(2 * count if kind == n.DICT else count)]
        if kind == n.DICT:
            return dict(zip(items[:count], items[count:], strict=True))
        return {n.LIST: list, n.TUPLE: tuple, n.SET: set, n.FROZENSET: frozenset}[kind](items)


def visited_tree(checkpoint: Checkpoint, *, root: int) -> VisitedTree:
    """The visits of the metadata (`root` 0) or the tree (1) of a checkpoint whose structure has been checked."""
    visits = list(walk(checkpoint.index.nodes, root=root))
    ends = [0] * len(visits)
    # Those whose subtrees are open, and how many children of each are still to come.
    opened: list[tuple[int, int]] = []
    for place, visit in enumerate(visits):
        if visit.n_children:
            opened.append((place, visit.n_children))
            continue
        ends[place] = place + 1
        while opened:
            parent, owed = opened.pop()
            if owed > 1:
                opened.append((parent, owed - 1))
                break
            ends[parent] = place + 1
    return VisitedTree(checkpoint, visits, ends)
