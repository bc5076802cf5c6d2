"""Which subtrees of an outline are alike: the same kinds, keys, types, dtypes and attributes, whatever the values."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pytreeckpt import nodes as n
from pytreeckpt.cli.outline import Outline, between
from pytreeckpt.index import IntArray
from pytreeckpt.nodes import leaf_value


@dataclass(frozen=True)
class Likeness:
    """Tells which subtrees of an outline are alike."""

    outline: Outline

    @cached_property
    def kinds(self) -> bytes:
        """The kinds, with one for both bools and one for all ints."""
        return bytes(self.outline.nodes.kinds).translate(
            bytes.maketrans(bytes([n.TRUE, n.BIGINT]), bytes([n.FALSE, n.INT]))
        )

    @cached_property
    def containers(self) -> IntArray:
        """The positions of the nodes that have counts."""
        return np.flatnonzero(np.isin(np.frombuffer(self.kinds, np.uint8), list(n.COUNTED_KINDS)))

    @cached_property
    def keys(self) -> IntArray:
        """The positions of plain values in keys, sets and the like."""
        return np.flatnonzero(self.outline.columns.inner & (np.frombuffer(self.kinds, np.uint8) < n.ARRAY))

    @cached_property
    def objects(self) -> IntArray:
        """The positions of objects."""
        return np.flatnonzero(np.frombuffer(self.kinds, np.uint8) == n.OBJECT)

    @cached_property
    def arrays(self) -> IntArray:
        """The positions of arrays and scalars."""
        return np.flatnonzero(np.isin(np.frombuffer(self.kinds, np.uint8), [n.ARRAY, n.SCALAR]))

    @cached_property
    def shapes(self) -> Sequence[int]:
        """A number for the shape of each array of the table."""
        numbers: dict[tuple[int, ...], int] = {}
        return [numbers.setdefault(entry.shape, len(numbers)) for entry in self.outline.index.arrays]

    @cached_property
    def dtypes(self) -> Sequence[int]:
        """The number of the dtype of each array of the table."""
        return [entry.dtype for entry in self.outline.index.arrays]

    def structure(self, position: int) -> tuple[Hashable, Hashable]:
        """Equal for subtrees alike: all but the shapes and the values, and the shapes."""
        outline, nodes = self.outline, self.outline.nodes
        end = outline.ends[position]
        entries = outline.entries
        arrays = [nodes.arrays[entries[array]] for array in _between(self.arrays, position, end)]
        shapes = tuple(self.shapes[array] for array in arrays)
        dtypes = tuple(self.dtypes[array] for array in arrays)
        kinds = self.kinds[position:end]
        shown = outline.shown[position:end].tobytes()
        if end == position + 1:
            return (kinds, dtypes, shown), shapes
        rest = (
            tuple(leaf_value(nodes, nodes.kinds[key], entries[key]) for key in _between(self.keys, position, end)),
            tuple(nodes.counts[entries[counted]] for counted in _between(self.containers, position, end)),
            tuple(nodes.objects[entries[object_]] for object_ in _between(self.objects, position, end)),
        )
        return (kinds, dtypes, shown, rest), shapes


def _between(positions: IntArray, start: int, end: int) -> list[int]:
    found: list[int] = positions[between(positions, start, end)].tolist()
    return found
