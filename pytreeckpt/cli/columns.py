"""What is known of every node of a stream at once: where its subtree ends, where its payload is, and its part."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pytreeckpt import nodes as n
from pytreeckpt.index import IntArray
from pytreeckpt.nodes import Nodes
from pytreeckpt.objects import ClassKind, is_atomic


class Columns(NamedTuple):
    """Of the node at p: `ends[p]` is where its subtree ends, and `entries[p]` its entry in the column of its payload.

    `inner[p]`: it is part of a key, of the elements of a set, of an atomic object or of an attribute of a wrapper.
    `leaf[p]`: it is a leaf of the tree (as `Visit.is_leaf`), or of the metadata.
    """

    ends: IntArray
    entries: IntArray
    inner: IntArray
    leaf: IntArray


def columns_of(nodes: Nodes) -> Columns:
    """The columns of a valid stream."""
    kinds = np.frombuffer(nodes.kinds, np.uint8)
    arity = _arity(nodes, kinds)
    ends = _subtree_ends(arity)
    inner, leaf = _parts(nodes, kinds, ends, arity)
    return Columns(ends, _entries(kinds), inner, leaf)


def _arity(nodes: Nodes, kinds: IntArray) -> IntArray:
    """The number of subtrees directly below each node, keys too."""
    arity = np.zeros(len(kinds), np.int64)
    arity[(kinds >= n.LIST) & (kinds <= n.FROZENSET)] = nodes.counts
    arity[kinds == n.DICT] *= 2
    n_fields = np.array([len(type_.fields) for type_ in nodes.types], np.int64)
    if nodes.objects:
        arity[kinds == n.OBJECT] = n_fields[np.array(nodes.objects, np.int64)]
    return arity


def _subtree_ends(arity: IntArray) -> IntArray:
    """A subtree ends where the number of subtrees owed first falls below what it was before the subtree."""
    size = len(arity)
    ends = np.arange(1, size + 1)
    parents = np.flatnonzero(arity)
    owed = np.cumsum(arity - 1) + 2
    # The first q ≥ p with owed[q] == owed[p] − arity[p] is found by bisection in the pairs (owed, position).
    pairs = np.sort(owed * size + np.arange(size))
    wanted = (owed[parents] - arity[parents]) * size + parents
    ends[parents] = pairs[np.searchsorted(pairs, wanted)] % size + 1
    return ends


def _entries(kinds: IntArray) -> IntArray:
    entries = np.full(len(kinds), -1)
    for column in (
        [n.INT],
        [n.STR],
        [n.OBJECT],
        [n.ARRAY, n.SCALAR],
        [n.BYTES, n.BIGINT],
        list(n.COUNTED_KINDS),
        [n.FLOAT, n.COMPLEX],
    ):
        mask = np.isin(kinds, column)
        used = np.where(kinds[mask] == n.COMPLEX, 2, 1)
        entries[mask] = np.cumsum(used) - used
    return entries


def _parts(nodes: Nodes, kinds: IntArray, ends: IntArray, arity: IntArray) -> tuple[IntArray, IntArray]:
    """What is inner, and what is a leaf."""
    begins = np.zeros(len(kinds) + 1, np.int64)
    whole = (kinds < n.LIST) | (arity == 0) | (kinds == n.SET) | (kinds == n.FROZENSET)

    def hide(start: int, end: int) -> None:
        begins[start] += 1
        begins[end] -= 1

    for position in np.flatnonzero((kinds == n.SET) | (kinds == n.FROZENSET)).tolist():
        hide(position + 1, int(ends[position]))
    for position in np.flatnonzero((kinds == n.DICT) & (arity > 0)).tolist():
        hide(position + 1, first_value(nodes, ends, position, int(arity[position]) // 2))
    for position, number in zip(np.flatnonzero(kinds == n.OBJECT).tolist(), nodes.objects, strict=True):
        if is_atomic(nodes.types[number]):
            whole[position] = True
            hide(position + 1, int(ends[position]))
        elif nodes.types[number].class_kind is ClassKind.WRAPPER:
            hide(int(ends[position + 1]), int(ends[position]))
    inner = np.cumsum(begins[:-1]) > 0
    return inner, whole & ~inner


def first_value(nodes: Nodes, ends: IntArray, position: int, n_keys: int) -> int:
    """Where the values of a dict begin: after its keys, of which only tuples are more than one node."""
    start = position + 1
    if n.TUPLE not in nodes.kinds[start : start + n_keys]:
        return start + n_keys
    for _ in range(n_keys):
        start = int(ends[start])
    return start
