"""Node stream to trees: read backwards, children come before their parents, so one value stack is enough.

Runs of nodes of one kind are taken at once; nothing recurses, whatever the depth of the tree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self, cast

import numpy as np

from pytreeckpt import nodes as n
from pytreeckpt.errors import CorruptionError, LimitError
from pytreeckpt.keys import bigint_bytes, check_hashes, check_key_depth, equality_form, is_too_long, key_string
from pytreeckpt.limits import Limits
from pytreeckpt.nodes import Nodes, path_at
from pytreeckpt.objects import ClassKind, ObjectType


class Unselected:
    """Stands in a list, tuple or record for an item that `select` left out, so that the others keep their places."""

    _instance: ClassVar[Any] = None

    def __new__(cls) -> Self:
        """There is one."""
        if cls._instance is None:
            cls._instance = super().__new__(cls)
        return cast("Self", cls._instance)

    def __repr__(self) -> str:
        return "pytreeckpt.UNSELECTED"

    def __reduce__(self) -> str:
        return "UNSELECTED"


UNSELECTED: Final = Unselected()

_CONSTANTS: Final[dict[int, object]] = {n.NONE: None, n.FALSE: False, n.TRUE: True, n.ELLIPSIS: ...}


@dataclass(frozen=True, slots=True)
class Build:
    """What stands in the tree for arrays, scalars and objects.

    `array` and `scalar` give the value for an entry of the node column `arrays`, `object` an object from the values of
    its fields.
    """

    array: Callable[[int], Any]
    scalar: Callable[[int], Any]
    object: Callable[[ObjectType, Sequence[Any]], Any]


def unflatten(nodes: Nodes, build: Build, *, limits: Limits, unselected: bytes | bytearray = b"") -> tuple[Any, Any]:
    """The metadata and the tree of a stream that `validate_nodes` has passed.

    `unselected`, if given, has a byte for each node, 1 for the leaves to leave out: dicts drop them, other containers
    hold `UNSELECTED`; a container of which nothing is left goes too.
    Raises `CorruptionError` (N-4 to N-6, N-8) and `LimitError`.
    """
    return _Backwards(nodes, build, limits, unselected).read()


class _Backwards:
    def __init__(self, nodes: Nodes, build: Build, limits: Limits, unselected: bytes | bytearray) -> None:
        self.nodes = nodes
        self.build = build
        self.limits = limits
        self.unselected = unselected
        # Values in reverse order: the next child of the parent to come is on top.
        self.values: list[Any] = []
        # (place in values, height) of the containers among them.
        self.heights: list[tuple[int, int]] = []
        self.ints = len(nodes.ints)
        self.floats = len(nodes.floats)
        self.strings = len(nodes.strings)
        self.blobs = len(nodes.blobs)
        self.counts = len(nodes.counts)
        self.objects = len(nodes.objects)
        self.arrays = len(nodes.arrays)

    def read(self) -> tuple[Any, Any]:
        kinds = np.frombuffer(self.nodes.kinds, np.uint8)
        bounds = [0, *(np.flatnonzero(np.diff(kinds)) + 1).tolist(), len(kinds)]
        for place in range(len(bounds) - 1, 0, -1):
            start, end = bounds[place - 1], bounds[place]
            kind = self.nodes.kinds[start]
            if kind < n.LIST:
                self.leaves(kind, start, end)
            elif kind == n.OBJECT:
                for position in range(end - 1, start - 1, -1):
                    self.add_object(position)
            else:
                for position in range(end - 1, start - 1, -1):
                    self.container(kind, position)
        return self.values[1], self.values[0]

    def leaves(self, kind: int, start: int, end: int) -> None:
        count = end - start
        values = self.values
        nodes = self.nodes
        if kind in _CONSTANTS:
            values.extend([_CONSTANTS[kind]] * count)
        elif kind == n.STR:
            self.strings -= count
            values.extend(reversed(nodes.strings[self.strings : self.strings + count]))
        elif kind == n.INT:
            self.ints -= count
            values.extend(reversed(nodes.ints[self.ints : self.ints + count]))
        elif kind == n.FLOAT:
            self.floats -= count
            values.extend(reversed(nodes.floats[self.floats : self.floats + count]))
        elif kind in {n.ARRAY, n.SCALAR}:
            self.arrays -= count
            build = self.build.array if kind == n.ARRAY else self.build.scalar
            values.extend(map(build, reversed(range(self.arrays, self.arrays + count))))
        elif kind == n.BYTES:
            self.blobs -= count
            values.extend(reversed(nodes.blobs[self.blobs : self.blobs + count]))
        elif kind == n.BIGINT:
            self.blobs -= count
            values.extend(map(self.bigint, reversed(nodes.blobs[self.blobs : self.blobs + count])))
        else:
            self.floats -= 2 * count
            parts = nodes.floats[self.floats : self.floats + 2 * count]
            values.extend(reversed([complex(*pair) for pair in zip(parts[::2], parts[1::2], strict=True)]))
        if self.unselected:
            self.leave_out(start, end)

    def leave_out(self, start: int, end: int) -> None:
        top = len(self.values) - 1
        for position in range(start, end):
            if self.unselected[position]:
                self.values[top - (position - start)] = UNSELECTED

    def bigint(self, blob: bytes) -> int:
        value = int.from_bytes(blob, "little", signed=True)
        # N-4: outside the range of int, and no byte too many.
        if n.MIN_INT <= value <= n.MAX_INT or len(bigint_bytes(value)) != len(blob):
            raise CorruptionError("a bigint is not in its shortest form", rule="N-4")
        return value

    def take(self, count: int) -> list[Any]:
        """The `count` values on top, in the order of the stream; checks the depth."""
        values = self.values
        place = len(values) - count
        heights = self.heights
        height = 1
        while heights and heights[-1][0] >= place:
            height = max(height, heights.pop()[1])
        height += 1
        if height > self.limits.depth:
            raise LimitError(
                f"the tree is deeper than the limit of {self.limits.depth} levels; raise it with "
                "pytreeckpt.limits(depth=…)"
            )
        heights.append((place, height))
        taken = values[place:]
        del values[place:]
        taken.reverse()
        return taken

    def container(self, kind: int, position: int) -> None:
        self.counts -= 1
        count = self.nodes.counts[self.counts]
        if kind == n.DICT:
            value = self.take_dict(position, count)
        elif kind in {n.SET, n.FROZENSET}:
            value = self.take_set(kind, position, count)
        else:
            children = self.take(count)
            if self.unselected and children and all(child is UNSELECTED for child in children):
                value = UNSELECTED
            else:
                value = children if kind == n.LIST else tuple(children)
        if self.unselected and self.unselected[position]:
            value = UNSELECTED
        self.values.append(value)

    def take_dict(self, position: int, count: int) -> object:
        self.check_kinds(position, count, n.KEY_KINDS, bytes([n.TUPLE]))
        both = self.take(2 * count)
        keys, children = both[:count], both[count:]
        try:
            check_hashes(keys)
            result = dict(zip(keys, children, strict=True))
            if any(type(key) in {float, tuple} for key in keys) and len(set(map(equality_form, keys))) != count:
                result = {}
        except RecursionError:
            raise LimitError("a tuple that is a dict key is nested too deeply to be hashed") from None
        # N-6: no two keys are equal.
        if len(result) != count:
            raise CorruptionError(f"{self.where(position)}: a dict has the same key twice", rule="N-6")
        for key in keys:
            if is_too_long(key, self.limits.key_nbytes):
                raise LimitError(
                    f"{self.where(position)}: a dict key is longer than the limit of {self.limits.key_nbytes} bytes; "
                    "raise it with pytreeckpt.limits(key_nbytes=…)"
                )
        if not self.unselected or not count:
            return result
        kept = {key: child for key, child in result.items() if child is not UNSELECTED}
        return kept or UNSELECTED

    def take_set(self, kind: int, position: int, count: int) -> object:
        self.check_kinds(position, count, n.ELEMENT_KINDS, bytes([n.TUPLE, n.FROZENSET]))
        elements = self.take(count)
        try:
            strings = [key_string(element) for element in elements]
            check_hashes(elements)
            result = frozenset(elements)
        except RecursionError:
            raise LimitError("an element of a set is nested too deeply to be hashed") from None
        # N-6 and N-8: distinct, and in order.
        if len(set(map(equality_form, elements))) != count:
            raise CorruptionError(f"{self.where(position)}: a set has the same element twice", rule="N-6")
        if strings != sorted(strings):
            raise CorruptionError(f"{self.where(position)}: the elements of a set are not in order", rule="N-8")
        return set(result) if kind == n.SET else result

    def check_kinds(self, position: int, count: int, plain: bytes, nested: bytes) -> None:
        """N-5: the first `count` subtrees after `position` are plain values and tuples (or frozensets) of these."""
        kinds = self.nodes.kinds
        first = kinds[position + 1 : position + 1 + count]
        if not first.translate(None, plain):
            return
        at = position + 1
        counts = self.counts + 1
        # How many subtrees are still owed on each level of nesting.
        owed = [count]
        while owed:
            if not owed[-1]:
                owed.pop()
                continue
            owed[-1] -= 1
            kind = kinds[at]
            at += 1
            if kind in nested:
                check_key_depth(len(owed), self.limits.key_depth)
                owed.append(self.nodes.counts[counts])
                counts += 1
            elif kind not in plain:
                what = "key" if kinds[position] == n.DICT else "element"
                raise CorruptionError(f"{self.where(position)}: a node of kind {kind} cannot be a {what}", rule="N-5")

    def add_object(self, position: int) -> None:
        self.objects -= 1
        type_ = self.nodes.types[self.nodes.objects[self.objects]]
        children = self.take(len(type_.fields))
        if self.unselected and self.left_out(type_, children, position):
            self.values.append(UNSELECTED)
        else:
            self.values.append(self.build.object(type_, children))

    def left_out(self, type_: ObjectType, children: Sequence[object], position: int) -> bool:
        if type_.class_kind is ClassKind.WRAPPER:
            return bool(self.unselected[position]) or children[0] is UNSELECTED
        return bool(self.unselected[position]) or (bool(children) and all(child is UNSELECTED for child in children))

    def where(self, position: int) -> str:
        try:
            return str(path_at(self.nodes, position)) or "the root"
        except RecursionError:
            return f"node {position}"
