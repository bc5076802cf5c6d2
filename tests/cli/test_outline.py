"""The outline: what it says of every node is what a walk finds."""

import numpy as np
from hypothesis import given

import pytreeckpt as ptc
from pytreeckpt import nodes as n
from pytreeckpt.cli.navigation import find, unwrap
from pytreeckpt.cli.outline import METADATA, arrays_below, n_shown, only, outline_of, totals
from pytreeckpt.nodes import walk
from pytreeckpt.paths import compile_glob
from pytreeckpt.reading import BytesSource
from tests.cli.trees import TREES


def opened(tree, metadata=None):
    return ptc.Checkpoint(BytesSource(memoryview(ptc.encode(tree, metadata=metadata))), None)


@given(TREES)
def test_leaves_and_entries_are_those_of_a_walk(tree):
    index = opened(tree, {"a": [1, {"b": ()}]}).index
    outline = outline_of(index)
    visits = [*walk(index.nodes, root=0), *walk(index.nodes, root=1)]
    assert len(visits) > 3
    for visit in visits:
        if visit.entry >= 0:
            assert outline.entries[visit.position] == visit.entry
    leaves = {visit.position for visit in visits if visit.is_leaf and not visit.attribute}
    assert set(np.flatnonzero(outline.columns.leaf).tolist()) == leaves
    assert n_shown(outline, outline.tree) + n_shown(outline, METADATA) == len(leaves)


@given(TREES)
def test_every_path_leads_to_its_node_and_no_other_does(tree):
    index = opened(tree).index
    outline = outline_of(index)
    # Wrappers within wrappers can have attributes of the same name, and so of the same path.
    for visit in [visit for visit in walk(index.nodes) if not visit.attribute]:
        found = find(outline, ptc.Path(visit.path))
        assert found is not None
        assert found <= visit.position < outline.ends[found]
        if visit.kind != n.OBJECT:
            assert unwrap(outline, found).position == visit.position
    assert find(outline, ptc.Path([ptc.DictKey("not there"), ptc.Index(7)])) is None


@given(TREES)
def test_totals_count_each_array_once(tree):
    checkpoint = opened(tree)
    outline = outline_of(checkpoint.index)
    visits = [visit for visit in walk(checkpoint.index.nodes) if visit.kind == n.ARRAY]
    numbers = [checkpoint.index.nodes.arrays[visit.entry] for visit in visits]
    assert arrays_below(outline, [outline.tree]).tolist() == numbers
    summed = totals(outline, [outline.tree])
    assert summed.n_arrays == len(set(numbers))
    assert summed.raw_nbytes == sum(map(checkpoint.index.nbytes, set(numbers)))
    leaves = [leaf for _, leaf in checkpoint.leaves()]
    assert summed.n_values == sum(not isinstance(leaf, ptc.ArrayRef) for leaf in leaves)
    stored = {leaf.array: leaf.stored_nbytes for leaf in leaves if isinstance(leaf, ptc.ArrayRef)}
    assert all(outline.stored_sizes[array] == nbytes for array, nbytes in stored.items())


def test_only_what_matches_is_shown():
    tree = {"a": {"w": np.ones(3), "b": 1}, "c": {"w": np.ones(2)}}
    outline = only(outline_of(opened(tree).index), compile_glob("*/w"))
    assert totals(outline, [outline.tree])[:4] == (2, 0, 2, 5)


def test_positions_of_several_branches_add_up():
    outline = outline_of(opened([np.ones(3), 1, [np.ones(4), np.ones(5)]]).index)
    positions = [
        position for position in range(outline.tree + 1, len(outline.nodes.kinds)) if position != outline.tree + 2
    ]
    assert arrays_below(outline, positions[:2]).tolist() == [0, 1, 2]
    assert totals(outline, positions[:2]).n_items == 12
