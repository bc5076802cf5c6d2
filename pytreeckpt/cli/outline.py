"""The node stream of a checkpoint with random access: what is where, and the totals of any subtree.

A position is the place of a node in the stream. Ends and payloads of all nodes are worked out at once with numpy, so
that showing the top of a tree of a million leaves costs what is shown, and nothing recurses, whatever the depth.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from pytreeckpt import nodes as n
from pytreeckpt.arrays import AnyArray
from pytreeckpt.cli.columns import Columns, columns_of
from pytreeckpt.dtypes import Descriptor
from pytreeckpt.index import Index, IntArray
from pytreeckpt.nodes import Nodes, walk
from pytreeckpt.objects import ClassKind
from pytreeckpt.paths import Path

METADATA = 0
"""The position of the root of the metadata."""


class Occurrence(NamedTuple):
    """Where an array is."""

    position: int
    path: Path


class Totals(NamedTuple):
    """What is below a node. `n_values`: leaves that are no arrays.

    `n_arrays`, their `n_items` and sizes: arrays that occur several times count once.
    """

    n_leaves: int
    n_values: int
    n_arrays: int
    n_items: int
    raw_nbytes: int
    stored_nbytes: int


@dataclass(frozen=True)
class Outline:
    """The nodes of the metadata and of the tree, whose root is at `tree`; `columns` says where they end, and more.

    `shown[p]`: the node at p is not left out (see `only`). `read` reads an array of a foreign file; without it, the
    values of such arrays are not shown.
    """

    index: Index
    columns: Columns
    shown: IntArray
    tree: int
    read: Callable[[int], AnyArray] | None = None

    @property
    def nodes(self) -> Nodes:
        """The columns."""
        return self.index.nodes

    def descriptor(self, array: int) -> Descriptor:
        """The dtype of an array of the table."""
        return self.index.descriptors[self.index.arrays[array].dtype]

    # Views of columns for access one by one, which numpy is slow at.

    @cached_property
    def ends(self) -> Sequence[int]:
        """Where the subtree at each position ends."""
        return self.columns.ends.data

    @cached_property
    def entries(self) -> Sequence[int]:
        """The entry of each node in the column of its payload."""
        return self.columns.entries.data

    @cached_property
    def inner(self) -> Sequence[int]:
        """Whether each node is inner."""
        return self.columns.inner.data

    @cached_property
    def leaves_before(self) -> Sequence[int]:
        """How many leaves are shown before each position."""
        return np.concatenate([[0], np.cumsum(self.columns.leaf & self.shown)]).data

    @cached_property
    def values_before(self) -> Sequence[int]:
        """How many leaves that are no arrays are shown before each position."""
        is_array = np.frombuffer(self.nodes.kinds, np.uint8) == n.ARRAY
        return np.concatenate([[0], np.cumsum(self.columns.leaf & self.shown & ~is_array)]).data

    @cached_property
    def array_positions(self) -> IntArray:
        """The positions of all arrays that are shown. Scalars are values, though they are stored as arrays."""
        return np.flatnonzero((np.frombuffer(self.nodes.kinds, np.uint8) == n.ARRAY) & self.shown)

    @cached_property
    def array_numbers(self) -> IntArray:
        """The number of each of them in the array table."""
        return np.array(self.nodes.arrays, np.int64)[self.columns.entries[self.array_positions]]

    @cached_property
    def raw_sizes(self) -> list[int]:
        """Bytes in memory of each array of the table."""
        return [self.index.nbytes(array) for array in range(len(self.index.arrays))]

    @cached_property
    def stored_sizes(self) -> list[int]:
        """Bytes in the file of each array of the table."""
        return [self.index.stored_nbytes(array) for array in range(len(self.index.arrays))]

    @cached_property
    def array_types(self) -> Mapping[str, int]:
        """How many arrays that are shown are of each type that wraps an array directly."""
        nodes = self.nodes
        kinds = np.frombuffer(nodes.kinds, np.uint8)
        wrapping = np.flatnonzero((kinds[:-1] == n.OBJECT) & (kinds[1:] == n.ARRAY) & self.shown[1:])
        counts = Counter(nodes.objects[entry] for entry in self.columns.entries[wrapping].tolist())
        return {
            nodes.types[number].name: times
            for number, times in counts.most_common()
            if nodes.types[number].class_kind is ClassKind.WRAPPER
        }

    @cached_property
    def usual_type(self) -> str:
        """The type of most arrays, if most have one: `inspect` says it once and not in every row."""
        usual = next(iter(self.array_types), "")
        return usual if 2 * self.array_types.get(usual, 0) > len(self.array_positions) else ""

    @cached_property
    def shared_paths(self) -> Mapping[int, Sequence[Occurrence]]:
        """Of each array that occurs several times in the tree: where it does."""
        occurrences = np.bincount(np.array(self.nodes.arrays, np.int64)) if self.nodes.arrays else np.zeros(0, np.int64)
        found: dict[int, list[Occurrence]] = {}
        if not (occurrences > 1).any():
            return found
        shared = set(np.flatnonzero(occurrences > 1).tolist())
        for visit in walk(self.nodes):
            if visit.kind == n.ARRAY and self.nodes.arrays[visit.entry] in shared:
                found.setdefault(self.nodes.arrays[visit.entry], []).append(
                    Occurrence(visit.position, Path(visit.path))
                )
        # A file may hide an array where paths do not lead, in an atomic object.
        return {array: where for array, where in found.items() if len(where) > 1}


def outline_of(index: Index, read: Callable[[int], AnyArray] | None = None) -> Outline:
    """The outline of a valid index."""
    columns = columns_of(index.nodes)
    return Outline(index, columns, np.ones_like(columns.leaf), int(columns.ends[METADATA]), read)


def only(outline: Outline, matches: Callable[[Path], bool]) -> Outline:
    """The outline with only the leaves (and the attributes of leaves) of the tree whose paths match."""
    matched = np.zeros_like(outline.shown)
    for visit in walk(outline.nodes):
        if visit.is_leaf and matches(Path(visit.path)):
            matched[visit.position] = True
    # The metadata stays.
    matched[: outline.tree] = True
    return replace(outline, shown=matched)


def n_shown(outline: Outline, position: int) -> int:
    """How many leaves at and below a position are shown."""
    return outline.leaves_before[outline.ends[position]] - outline.leaves_before[position]


def between(positions: IntArray, start: int, end: int) -> slice:
    """Which of these ascending positions are in a range."""
    view = positions.data
    low = bisect_left(view, start)
    return slice(low, bisect_left(view, end, low))


def arrays_below(outline: Outline, positions: Sequence[int]) -> IntArray:
    """The numbers of the arrays that are shown below these positions, in order, as often as they occur."""
    if len(positions) == 1:
        return outline.array_numbers[between(outline.array_positions, positions[0], outline.ends[positions[0]])]
    starts = np.array(positions, np.int64)
    lows, highs = outline.array_positions.searchsorted([starts, outline.columns.ends[starts]])
    widths = highs - lows
    before = np.cumsum(widths) - widths
    places = np.repeat(lows - before, widths) + np.arange(int(widths.sum()))
    return outline.array_numbers.take(places)


def totals(outline: Outline, positions: Sequence[int]) -> Totals:
    """What is below these positions, together."""
    arrays = set(arrays_below(outline, positions).tolist())
    values = outline.values_before
    return Totals(
        sum(n_shown(outline, position) for position in positions),
        sum(values[outline.ends[position]] - values[position] for position in positions),
        len(arrays),
        sum(math.prod(outline.index.arrays[array].shape) for array in arrays),
        sum(outline.raw_sizes[array] for array in arrays),
        sum(outline.stored_sizes[array] for array in arrays),
    )
