"""Two trees of one structure, such as two steps of one training: they need not be walked side by side.

If the node streams of two files have the same kinds, counts and types, a node of one is at the same position as its
counterpart in the other, and numpy finds the few that differ. Where keys differ, or what is compared as a whole, the
trees are aligned as any others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from pytreeckpt import nodes as n
from pytreeckpt.checkpoint import Checkpoint
from pytreeckpt.index import IntArray
from pytreeckpt.nodes import Nodes
from pytreeckpt.operations.diff_alignment import Alignment, ArrayPair, Close, compare_leaf
from pytreeckpt.operations.diff_trees import VisitedTree, visited_tree

# The column of each of these kinds, and how many payloads a node of it has there.
_ONE: Final = ((n.INT,), (n.STR,), (n.BYTES, n.BIGINT))


def align_alike(a: Checkpoint, b: Checkpoint, close: Close, *, content_only: bool) -> Alignment | None:
    """The alignment of the trees (not of the metadata) of two checkpoints, of which the structure of the first has been
    checked; None if they are to be aligned in full. Raises `CorruptionError`.
    """
    positions = _differing(a.index.nodes, b.index.nodes)
    if positions is None:
        return None
    tree = visited_tree(a, root=1)
    start = tree.visits[0].position
    if positions.size and positions[0] < start:
        # A key of the metadata may be another one.
        b.check_structure()
    differing = set(positions[positions >= start].tolist())
    found = Alignment(tree, VisitedTree(b, tree.visits, tree.ends), content_only)
    n_leaves = n_arrays = 0
    for place, visit in enumerate(tree.visits):
        if visit.n_children:
            continue
        n_leaves += not visit.attribute
        is_array = visit.kind in {n.ARRAY, n.SCALAR}
        n_arrays += is_array
        if not is_array and visit.position not in differing:
            continue
        if visit.attribute:
            return None
        differing.discard(visit.position)
        if visit.kind == n.ARRAY:
            outer = tree.outermost(place)
            numbers = a.index.nodes.arrays[visit.entry], b.index.nodes.arrays[visit.entry]
            found.arrays.append(ArrayPair(place, "tree", outer, outer, *numbers, place))
        else:
            compare_leaf(found, place, close)
    kinds = np.frombuffer(a.index.nodes.kinds, np.uint8)[start:]
    if differing or n_arrays != int(np.count_nonzero((kinds == n.ARRAY) | (kinds == n.SCALAR))):
        return None
    found.n_leaves[:] = [n_leaves, n_leaves]
    found.n_common = n_leaves
    return found


def _differing(a: Nodes, b: Nodes) -> IntArray | None:
    """The positions of the plain values, in keys too, that differ; None if the streams differ in more."""
    if a.kinds != b.kinds or a.counts != b.counts or a.objects != b.objects or a.types != b.types:
        return None
    kinds = np.frombuffer(a.kinds, np.uint8)
    columns: list[tuple[Sequence[Any], Sequence[Any]]] = [(a.ints, b.ints), (a.strings, b.strings), (a.blobs, b.blobs)]
    found = [
        np.flatnonzero(np.isin(kinds, of_column))[_unequal(*column)]
        for of_column, column in zip(_ONE, columns, strict=True)
    ]
    # By their bits; a complex number has two.
    floats_a, floats_b = (np.array(nodes.floats, np.float64).view(np.int64) for nodes in (a, b))
    of_floats = np.flatnonzero((kinds == n.FLOAT) | (kinds == n.COMPLEX))
    of_each = np.repeat(of_floats, np.where(kinds[of_floats] == n.COMPLEX, 2, 1))
    found.append(of_each[floats_a != floats_b])
    return np.unique(np.concatenate(found))


def _unequal(a: Sequence[Any], b: Sequence[Any]) -> list[int]:
    if a == b:
        return []
    return [place for place, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
