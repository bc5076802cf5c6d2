"""The node stream: a tree as columns, in preorder (section 4 of the format), and what can be said of it without
objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Final, NamedTuple

import numpy as np

from pytreeckpt.errors import CorruptionError
from pytreeckpt.objects import ClassKind, ObjectType, is_atomic
from pytreeckpt.paths import DictKey, Field, Index, Path, Step

NONE: Final = 0
FALSE: Final = 1
TRUE: Final = 2
ELLIPSIS: Final = 3
INT: Final = 4
BIGINT: Final = 5
FLOAT: Final = 6
COMPLEX: Final = 7
STR: Final = 8
BYTES: Final = 9
ARRAY: Final = 10
SCALAR: Final = 11
LIST: Final = 16
TUPLE: Final = 17
DICT: Final = 18
SET: Final = 19
FROZENSET: Final = 20
OBJECT: Final = 21

LEAF_KINDS: Final = bytes(range(12))
COUNTED_KINDS: Final = bytes([LIST, TUPLE, DICT, SET, FROZENSET])
KINDS: Final = LEAF_KINDS + COUNTED_KINDS + bytes([OBJECT])
KEY_KINDS: Final = bytes([NONE, FALSE, TRUE, INT, BIGINT, FLOAT, STR, BYTES])
ELEMENT_KINDS: Final = KEY_KINDS + bytes([ELLIPSIS, COMPLEX])
METADATA_KINDS: Final = KEY_KINDS + bytes([LIST, TUPLE, DICT])

MIN_INT: Final = -(1 << 63)
MAX_INT: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Nodes:
    """The columns of a stream of two trees, metadata and tree, with the type table that its objects refer to."""

    kinds: bytearray = field(default_factory=bytearray)
    counts: list[int] = field(default_factory=list)
    ints: list[int] = field(default_factory=list)
    floats: list[float] = field(default_factory=list)
    strings: list[str] = field(default_factory=list)
    blobs: list[bytes] = field(default_factory=list)
    objects: list[int] = field(default_factory=list)
    arrays: list[int] = field(default_factory=list)
    types: list[ObjectType] = field(default_factory=list)


def validate_nodes(nodes: Nodes, n_arrays: int) -> int:
    """Check all that the columns alone can tell, and return the position at which the tree begins (after the metadata).

    Raises `CorruptionError` (N-1 to N-3, N-7, N-9, N-10).
    """
    kinds = np.frombuffer(nodes.kinds, np.uint8)
    tally = np.bincount(kinds, minlength=256)
    # N-1: known kinds only.
    unknown = np.flatnonzero(np.delete(tally, list(KINDS)))
    if unknown.size:
        raise CorruptionError("the node stream has a node of unknown kind", rule="N-1")
    # N-3: payloads and nodes match in number.
    expected = {
        "counts": (len(nodes.counts), int(tally[list(COUNTED_KINDS)].sum())),
        "ints": (len(nodes.ints), int(tally[INT])),
        "floats": (len(nodes.floats), int(tally[FLOAT] + 2 * tally[COMPLEX])),
        "strings": (len(nodes.strings), int(tally[STR])),
        "bytes": (len(nodes.blobs), int(tally[BYTES] + tally[BIGINT])),
        "objects": (len(nodes.objects), int(tally[OBJECT])),
        "arrays": (len(nodes.arrays), int(tally[ARRAY] + tally[SCALAR])),
    }
    for column, (present, needed) in expected.items():
        if present != needed:
            raise CorruptionError(f"column {column} has {present} entries for {needed} nodes", rule="N-3")
    # N-9, N-10: references in order of first use, all used.
    check_first_use(nodes.objects, len(nodes.types), rule="N-9", what="types")
    check_first_use(nodes.arrays, n_arrays, rule="N-10", what="arrays")
    start = _check_two_trees(nodes, kinds)
    # N-7: plain metadata.
    if nodes.kinds[:start].translate(None, METADATA_KINDS):
        raise CorruptionError(
            "the metadata holds something other than plain values, lists, tuples and dicts", rule="N-7"
        )
    return start


def _check_two_trees(nodes: Nodes, kinds: np.ndarray) -> int:
    """N-2, for all nodes at once: in preorder, 1 + sum(arity − 1) is the number of subtrees still owed."""
    n = len(kinds)
    arity = np.zeros(n, np.int64)
    counted = (kinds >= LIST) & (kinds <= FROZENSET)
    if nodes.counts:
        counts = np.array(nodes.counts, np.uint64)
        if int(counts.max()) > n:
            raise CorruptionError("a container has more children than there are nodes", rule="N-2")
        arity[counted] = counts.astype(np.int64)
        arity[kinds == DICT] *= 2
    n_fields = np.array([len(type_.fields) for type_ in nodes.types], np.int64)
    if nodes.objects:
        arity[kinds == OBJECT] = n_fields[np.array(nodes.objects)]
    owed = 1 + np.cumsum(arity - 1)
    ends = np.flatnonzero(owed == 0)
    finished = np.flatnonzero(owed == -1)
    if not ends.size or not finished.size or int(finished[0]) != n - 1:
        raise CorruptionError("the node stream is not exactly two whole trees", rule="N-2")
    return int(ends[0]) + 1


def check_first_use(references: list[int], n_entries: int, *, rule: str, what: str) -> None:
    """The references are 0, 1, 2 … at their first use, and each of the `n_entries` is used."""
    column = np.array(references, np.int64)
    greatest = np.maximum.accumulate(column) if column.size else column
    before = np.concatenate([[-1], greatest[:-1]]) if column.size else column
    used = int(greatest[-1]) + 1 if column.size else 0
    if used != n_entries or bool((column > before + 1).any()) or bool((column < 0).any()):
        raise CorruptionError(
            f"the references to {what} are not in order of first use, or some {what} are unused", rule=rule
        )


class Visit(NamedTuple):
    """A node met by `walk`: where it is in `kinds`, its path, its entry in the column of its payload (or −1), how many
    children are visited (none of a set or an atomic object), and whether it is an attribute of a wrapper rather
    than part of the tree. A tuple, because there is one for each node, and these are quickly made.
    """

    position: int
    kind: int
    path: tuple[Step, ...]
    entry: int
    n_children: int
    attribute: bool

    @property
    def is_leaf(self) -> bool:
        """Whether nothing below it is visited: leaves, sets and atomic objects as a whole, and empty containers."""
        return self.n_children == 0


class _Cursors:
    """Where the next payload of each column is."""

    __slots__ = ("arrays", "blobs", "counts", "floats", "ints", "objects", "position", "strings")

    def __init__(self) -> None:
        self.position = self.counts = self.ints = self.floats = 0
        self.strings = self.blobs = self.objects = self.arrays = 0

    def step(self, nodes: Nodes) -> tuple[int, int, int]:
        """Take the next node: its kind, payload entry and count."""
        kind = nodes.kinds[self.position]
        self.position += 1
        entry = -1
        count = 0
        if kind == STR:
            entry = self.strings
            self.strings += 1
        elif kind in {ARRAY, SCALAR}:
            entry = self.arrays
            self.arrays += 1
        elif kind == INT:
            entry = self.ints
            self.ints += 1
        elif kind in {FLOAT, COMPLEX}:
            entry = self.floats
            self.floats += 1 if kind == FLOAT else 2
        elif kind in {BYTES, BIGINT}:
            entry = self.blobs
            self.blobs += 1
        elif kind == OBJECT:
            entry = self.objects
            self.objects += 1
            count = len(nodes.types[nodes.objects[entry]].fields)
        elif kind >= LIST:
            entry = self.counts
            self.counts += 1
            count = nodes.counts[entry]
        return kind, entry, count

    def skip(self, nodes: Nodes, n_subtrees: int) -> None:
        """Pass over whole subtrees."""
        owed = n_subtrees
        while owed:
            kind, _, count = self.step(nodes)
            owed += (2 * count if kind == DICT else count) - 1

    def key(self, nodes: Nodes) -> object:
        """Take a dict key."""
        kind, entry, count = self.step(nodes)
        if kind == TUPLE:
            return tuple(self.key(nodes) for _ in range(count))
        return leaf_value(nodes, kind, entry)


def leaf_value(nodes: Nodes, kind: int, entry: int) -> object:
    """The Python value of a leaf that is not an array or scalar."""
    if kind == INT:
        return nodes.ints[entry]
    if kind == FLOAT:
        return nodes.floats[entry]
    if kind == STR:
        return nodes.strings[entry]
    if kind == BYTES:
        return nodes.blobs[entry]
    if kind == BIGINT:
        return int.from_bytes(nodes.blobs[entry], "little", signed=True)
    if kind == COMPLEX:
        return complex(nodes.floats[entry], nodes.floats[entry + 1])
    return (None, False, True, ...)[kind]


def walk(nodes: Nodes, *, root: int = 1) -> Iterator[Visit]:
    """Visit the nodes of one tree (`root` 0: metadata, 1: tree) in preorder with their paths.

    Dict keys and the elements of sets are not visited. The stream must be valid, or end where it ends: on a stream
    that is still being built, `IndexError` tells that the end was met.
    """
    at = _Cursors()
    at.skip(nodes, root)
    # A frame: the path of a container, the steps to its children still to come, and whether each is an attribute.
    frames: list[tuple[tuple[Step, ...], Iterator[tuple[Step | None, bool]]]] = [((), iter([(None, False)]))]
    while frames:
        prefix, steps = frames[-1]
        following = next(steps, None)
        if following is None:
            frames.pop()
            continue
        step, attribute = following
        path = prefix if step is None else (*prefix, step)
        position = at.position
        kind, entry, count = at.step(nodes)
        if kind in {SET, FROZENSET} or (kind == OBJECT and is_atomic(nodes.types[nodes.objects[entry]])):
            yield Visit(position, kind, path, entry, 0, attribute)
            at.skip(nodes, count)
            continue
        yield Visit(position, kind, path, entry, count, attribute)
        if count and kind == DICT:
            keys = [at.key(nodes) for _ in range(count)]
            frames.append((path, iter([(DictKey(key), attribute) for key in keys])))
        elif count and kind == OBJECT:
            frames.append((path, iter(_object_steps(nodes.types[nodes.objects[entry]], attribute=attribute))))
        elif count:
            frames.append((path, zip(map(Index, range(count)), repeat(attribute, count), strict=True)))


def array_entries(nodes: Nodes, leaves: Sequence[Visit]) -> list[range]:
    """For each of the leaves of a tree, all of them in order: the entries of the arrays that it is or holds (an
    object that is one value may hold some).
    """
    kinds = np.frombuffer(nodes.kinds, np.uint8)
    before = [0, *np.cumsum((kinds == ARRAY) | (kinds == SCALAR)).tolist()]
    ends = [*(visit.position for visit in leaves[1:]), len(kinds)]
    return [range(before[visit.position], before[end]) for visit, end in zip(leaves, ends, strict=True)]


def _object_steps(type_: ObjectType, *, attribute: bool) -> list[tuple[Step | None, bool]]:
    if type_.class_kind is not ClassKind.WRAPPER:
        return [(Field(name), attribute) for name in type_.fields]
    # The wrapped value stands where the wrapper stands.
    return [(None, attribute), *((Field(name), True) for name in type_.fields[1:])]


def path_at(nodes: Nodes, position: int, *, root: int = 1) -> Path:
    """The path of the node at `position`, which may be the one that is about to be added to an unfinished stream."""
    path: tuple[Step, ...] = ()
    try:
        for visit in walk(Nodes(bytearray(nodes.kinds[:position]) + b"\0", *_columns(nodes)), root=root):
            path = visit.path
            if visit.position >= position:
                break
    except IndexError:
        pass
    return Path(path)


def _columns(
    nodes: Nodes,
) -> tuple[list[int], list[int], list[float], list[str], list[bytes], list[int], list[int], list[ObjectType]]:
    return (
        nodes.counts,
        nodes.ints,
        nodes.floats,
        nodes.strings,
        nodes.blobs,
        nodes.objects,
        nodes.arrays,
        nodes.types,
    )
