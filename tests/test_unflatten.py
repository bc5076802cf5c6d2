"""Node streams to trees: depth, width, and each rule of section 4 that a stream can break."""

import argparse
import collections
import struct
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
from tests import strategies as some
from tests.exact import assert_same
from tests.forge import (
    ARRAY,
    BIGINT,
    DICT,
    ELLIPSIS,
    FROZENSET,
    INT,
    LIST,
    RECORD,
    SCALAR,
    SET,
    TUPLE,
    WRAPPER,
    ArrayRow,
    Tree,
    document_of,
    file_of,
    forge,
    leaf,
    node,
    record,
)


@given(
    st.recursive(
        some.PLAIN_LEAVES.filter(lambda value: not isinstance(value, int) or abs(value) < 1 << 63),
        lambda inner: st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple),
        max_leaves=20,
    )
)
def test_a_file_made_by_hand_is_read_as_what_it_says(tree):
    assert_same(tree, ptc.decode(file_of(tree)))


def chain(depth: int, bottom: Any, make: Any) -> Any:
    tree = bottom
    for level in range(depth):
        tree = make(tree, level)
    return tree


MAKERS = {
    "lists": lambda inner, _: [inner],
    "tuples": lambda inner, _: (inner,),
    "dicts": lambda inner, level: {f"level {level}": inner},
    "dicts with tuple keys": lambda inner, level: {(level, ("x",)): inner},
    "namedtuples": lambda inner, level: some.Point(level, inner),
    "dataclasses": lambda inner, level: some.State(inner, level),
    "all kinds": lambda inner, level: [
        lambda: [inner, level],
        lambda: (level, inner),
        lambda: {1.5: inner},
        lambda: some.Frozen(inner),
        lambda: collections.OrderedDict(a=inner),
        lambda: collections.deque([inner], 3),
        lambda: argparse.Namespace(a=inner),
    ][level % 7](),
}


@pytest.fixture
def low_recursion_limit():
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(min(before, 400))
    yield
    sys.setrecursionlimit(before)


@pytest.mark.usefixtures("low_recursion_limit")
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_trees_3000_levels_deep_come_back_whatever_the_recursion_limit(make):
    tree = chain(3000, np.arange(3), make)
    file = ptc.encode(tree)
    back = ptc.decode(file, types=some.TYPES)
    lazy = ptc.Checkpoint(ptc.reading.BytesSource(memoryview(file)), None)
    ((path, ref),) = [(path, leaf) for path, leaf in lazy.leaves() if isinstance(leaf, ptc.ArrayRef)]
    assert np.asarray(lazy[path]).tolist() == [0, 1, 2]
    assert ref[1] == 1
    assert len(path) >= 3000
    assert_same(tree, back)


@pytest.mark.usefixtures("low_recursion_limit")
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_parts_of_deep_trees_are_selected_and_templates_filled_whatever_the_recursion_limit(make):
    tree = chain(600, np.arange(3), make)
    file = ptc.encode(tree)
    assert_same(tree, ptc.decode(file, types=some.TYPES, select="**"))
    assert_same(tree, ptc.decode(file, types=some.TYPES, like=tree))


def test_a_tree_may_be_as_deep_as_the_limit_and_no_deeper():
    with ptc.limits(depth=100):
        for bottom in (1, np.zeros(3), "x"):
            assert_same(chain(99, bottom, MAKERS["lists"]), ptc.decode(ptc.encode(chain(99, bottom, MAKERS["lists"]))))
            with pytest.raises(ptc.LimitError, match=r"limit of 100 levels.*limits\(depth=…\)"):
                ptc.encode(chain(100, bottom, MAKERS["lists"]))
        for bottom in ([], {}, set(), some.NoFields(), some.Empty(), argparse.Namespace()):
            file = ptc.encode(chain(98, bottom, MAKERS["lists"]))
            assert_same(chain(98, bottom, MAKERS["lists"]), ptc.decode(file, types=some.TYPES))
            with pytest.raises(ptc.LimitError, match="limit of 100 levels"):
                ptc.encode(chain(99, bottom, MAKERS["lists"]))
    with ptc.limits(depth=101):
        file = ptc.encode(chain(100, 1, MAKERS["lists"]))
    with ptc.limits(depth=100), pytest.raises(ptc.LimitError, match="limit of 100 levels"):
        ptc.decode(file)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_what_the_limit_of_depth_lets_in_it_lets_out(make):
    with ptc.limits(depth=200):
        low, high = 1, 200
        while high - low > 1:
            depth = (low + high) // 2
            try:
                ptc.encode(chain(depth, 1, make))
            except ptc.LimitError:
                high = depth
            else:
                low = depth
        assert low > 60
        tree = chain(low, 1, make)
        assert_same(tree, ptc.decode(ptc.encode(tree), types=some.TYPES))


def test_wide_trees_come_back():
    rng = np.random.default_rng(0)
    wide: dict[str, Any] = {
        "floats": rng.normal(size=100_000).tolist(),
        "ints": tuple(range(10_000)),
        "texts": [f"t{i}" for i in range(10_000)],
        "bools": [i % 3 == 0 for i in range(10_000)],
        "nones": [None] * 10_000,
        "mixed": [1, 2.0, "x", None] * 5_000,
        "big": [1 << (i % 100) for i in range(10_000)],
        "dict": {f"k{i}": i for i in range(100_000)},
        "keys": dict.fromkeys(range(10_000)),
        "scalars": [np.float32(i) for i in range(10_000)],
        "arrays": [np.full(2, i) for i in range(10_000)],
        "set": set(range(10_000)),
        "rng": np.random.RandomState(0).get_state(),
    }
    assert_same(wide, ptc.decode(ptc.encode(wide)))


# Records and wrappers of others come back with a warning; see test_types.
pytestmark = pytest.mark.filterwarnings("ignore:.* came back as")

NAN = struct.unpack("<d", struct.pack("<Q", 0x7FF8000000000001))[0]


def _set(kind: int, *elements: Any) -> Tree:
    return Tree(kind, None, [node(element) for element in elements])


def _dict(*pairs: tuple[Any, Any]) -> Tree:
    return Tree(DICT, None, [node(key) for key, _ in pairs] + [node(value) for _, value in pairs])


def _keys(*keys: Any) -> Tree:
    return _dict(*((key, 0) for key in keys))


BROKEN: dict[str, tuple[str, Any]] = {
    "an unknown kind": ("N-1", Tree(12)),
    "an unknown kind of container": ("N-1", Tree(22)),
    "a child missing": ("N-2", Tree(LIST, 2, [leaf(1)])),
    "a child too many": ("N-2", Tree(LIST, 0, [leaf(1)])),
    "as many children as there are numbers": ("N-2", Tree(LIST, (1 << 64) - 1, [leaf(1)])),
    "a dict with keys and no values": ("N-2", Tree(DICT, 2, [leaf("a"), leaf("b")])),
    "a bigint that would be an int": ("N-4", Tree(BIGINT, b"\x01")),
    "a bigint with a byte too many": ("N-4", Tree(BIGINT, bytes(9) + b"\x01\x00")),
    "a negative bigint with a byte too many": ("N-4", Tree(BIGINT, bytes(9) + b"\xff\xff")),
    "an empty bigint": ("N-4", Tree(BIGINT, b"")),
    "a list as a key": ("N-5", _keys([])),
    "a dict as a key": ("N-5", _keys({})),
    "an ellipsis as a key": ("N-5", _keys(...)),
    "a complex as a key": ("N-5", _keys(1j)),
    "a set as a key": ("N-5", _keys(Tree(FROZENSET))),
    "a list in a tuple as a key": ("N-5", _keys((1, (2, [])))),
    "a list as an element": ("N-5", _set(SET, [])),
    "a set as an element": ("N-5", _set(SET, _set(SET))),
    "a dict in an element": ("N-5", _set(SET, ({},))),
    "an object as an element": ("N-5", _set(FROZENSET, record("a.b", {}))),
    "the same key twice": ("N-6", _keys("a", "b", "a")),
    "True and 1": ("N-6", _keys(True, 1)),
    "1 and 1.0": ("N-6", _keys(1, 1.0)),
    "0.0 and -0.0": ("N-6", _keys(0.0, -0.0)),
    "0 and False": ("N-6", _keys(0, False)),
    "a big integer and its float": ("N-6", _keys(Tree(BIGINT, (1 << 64).to_bytes(9, "little")), float(1 << 64))),
    "a tuple with 1 and one with True": ("N-6", _keys((1, "a"), (True, "a"))),
    "nested tuples with 1 and 1.0": ("N-6", _keys(((1,),), ((1.0,),))),
    "the same NaN twice": ("N-6", _keys(NAN, NAN)),
    "the same NaN in tuples": ("N-6", _keys((NAN, 1), (NAN, 1.0))),
    "the same element twice": ("N-6", _set(SET, 1, 1)),
    "elements 1 and 1.0": ("N-6", _set(SET, 1, 1.0)),
    "elements 1 and 1+0j": ("N-6", _set(SET, 1, 1 + 0j)),
    "elements that are equal frozensets": ("N-6", _set(SET, _set(FROZENSET, 1), _set(FROZENSET, True))),
    "elements that are the same NaN": ("N-6", _set(FROZENSET, NAN, NAN)),
    "elements that hold the same NaN": ("N-6", _set(FROZENSET, _set(FROZENSET, 1, NAN), _set(FROZENSET, 1.0, NAN))),
    "elements out of order": ("N-8", _set(SET, 2, 1)),
    "elements out of order of their kinds": ("N-8", _set(SET, "a", 1)),
    "a longer text before a shorter one": ("N-8", _set(SET, "aa", "b")),
    "elements of an inner frozenset out of order": ("N-8", _set(SET, _set(FROZENSET, 2, 1))),
}


@pytest.mark.parametrize(("rule", "tree"), BROKEN.values(), ids=BROKEN)
def test_a_stream_that_breaks_a_rule_is_refused_by_its_number(rule, tree):
    for placed in (tree, [0, tree], {"a": (tree,)}):
        with pytest.raises(ptc.CorruptionError) as caught:
            ptc.decode(file_of(placed))
        assert caught.value.rule == rule
        if rule in {"N-5", "N-6", "N-8"} and isinstance(placed, dict) and "inner" not in str(caught.value):
            assert "a[0]" in str(caught.value)


def test_keys_and_elements_that_differ_are_accepted():
    other_nan = struct.unpack("<d", struct.pack("<Q", 0x7FF8000000000002))[0]
    tree = ptc.decode(
        file_of([_keys("1", 1, b"1", None, (1,), (1, 1), NAN, other_nan, 1.5), _set(SET, 1, "1", _set(FROZENSET, 1))])
    )
    assert len(tree[0]) == 9
    assert tree[1] == {1, "1", frozenset([1])}


METADATA = {
    "an ellipsis": leaf(...),
    "a complex": leaf(1j),
    "a set": Tree(SET),
    "a frozenset": Tree(FROZENSET),
    "an object": record("a.b", {"x": 1}),
    "a wrapper": record("a.b", {"x": 1}, WRAPPER),
    "an ellipsis deep inside": node({"a": [(1, [...])]}),
}


@pytest.mark.parametrize("metadata", METADATA.values(), ids=METADATA)
def test_metadata_that_is_not_plain_is_refused(metadata):
    with pytest.raises(ptc.CorruptionError) as caught:
        ptc.decode(file_of(1, metadata=metadata))
    assert caught.value.rule == "N-7"


def test_an_array_in_the_metadata_is_refused():
    for kind in (ARRAY, SCALAR):
        with pytest.raises(ptc.CorruptionError) as caught:
            ptc.decode(file_of(1, [ArrayRow()], metadata=[Tree(kind, 0)]))
        assert caught.value.rule == "N-7"


def test_a_stream_of_one_or_three_trees_is_refused():
    for kinds, ints in ((b"\x00", b""), (b"\x00\x00\x04", struct.pack("<q", 1)), (b"", b"")):
        document, body = document_of(1)
        document["nodes"] |= {"kinds": kinds, "ints": ints}
        with pytest.raises(ptc.CorruptionError) as caught:
            ptc.decode(forge(document, body))
        assert caught.value.rule == "N-2"


@pytest.mark.parametrize("column", ["counts", "ints", "floats", "strings", "bytes", "objects", "arrays"])
@pytest.mark.parametrize("change", ["more", "fewer"])
def test_columns_are_used_up_exactly(column, change):
    tree = [1, 2, 1.5, "a", b"b", (), record("a.b", {}), record("a.b", {}), Tree(ARRAY, 0), Tree(ARRAY, 0)]
    document, body = document_of(tree, [ArrayRow()])
    assert ptc.decode(forge(document, body))[:6] == [1, 2, 1.5, "a", b"b", ()]
    value = document["nodes"][column]
    width = {"objects": 4, "arrays": 4}.get(column, 8)
    if isinstance(value, list):
        document["nodes"][column] = [*value, value[-1]] if change == "more" else value[:-1]
    else:
        document["nodes"][column] = value + value[-width:] if change == "more" else value[:-width]
    with pytest.raises(ptc.CorruptionError) as caught:
        ptc.decode(forge(document, body))
    assert caught.value.rule == "N-3"


@pytest.mark.parametrize(("column", "rule"), [("objects", "N-9"), ("arrays", "N-10")])
@pytest.mark.parametrize("numbers", [[1, 0], [0, 0], [0, 2], [0, (1 << 32) - 1], [1, 1]])
def test_references_are_in_order_of_first_use(column, rule, numbers):
    tree = [record("a.b", {}), record("a.c", {}), Tree(ARRAY, 0), Tree(ARRAY, 1)]
    document, body = document_of(tree, [ArrayRow(), ArrayRow()])
    assert len(ptc.decode(forge(document, body))) == 4
    document["nodes"][column] = struct.pack("<2I", *numbers)
    with pytest.raises(ptc.CorruptionError) as caught:
        ptc.decode(forge(document, body))
    assert caught.value.rule == rule


@pytest.mark.parametrize(
    ("tree", "row"),
    [
        (Tree(SCALAR, 0), ArrayRow(shape=(1,))),
        ([Tree(SCALAR, 0), Tree(SCALAR, 0)], ArrayRow()),
        ([Tree(SCALAR, 0), Tree(ARRAY, 0)], ArrayRow()),
        (Tree(SCALAR, 0), ArrayRow(inline=None, boxes=[[(b"\1", b"\1", 0)]])),
        (Tree(SCALAR, 0), ArrayRow(["str", 1], inline=struct.pack("<I", 0x110000))),
        (Tree(SCALAR, 0), ArrayRow(["str_be", 1], inline=struct.pack("<I", 1))),
    ],
)
def test_a_scalar_that_is_no_value_of_its_own_is_refused(tree, row):
    with pytest.raises(ptc.CorruptionError) as caught:
        ptc.decode(file_of(tree, [row]))
    assert caught.value.rule == "N-11"


def test_an_array_is_given_back_once_for_all_its_nodes():
    a, b, c = ptc.decode(file_of([Tree(ARRAY, 0), Tree(ARRAY, 1), Tree(ARRAY, 0)], [ArrayRow(), ArrayRow()]))
    assert a is c
    assert a is not b


# Beyond the rules: what is allowed and must not hurt.


def _tuples(depth: int, bottom: Tree) -> Tree:
    for _ in range(depth):
        bottom = Tree(TUPLE, None, [bottom])
    return bottom


def test_deep_keys_are_refused_by_their_own_limit():
    assert len(ptc.decode(file_of(_keys(_tuples(99, leaf(1)))))) == 1
    for tree in (_keys(_tuples(101, leaf(1))), _set(SET, _tuples(101, leaf(1))), _keys(_tuples(9_000, leaf(1)))):
        with pytest.raises(ptc.LimitError, match=r"limits\(key_depth=…\)"):
            ptc.decode(file_of(tree))


def test_keys_too_deep_to_be_hashed_or_compared_are_a_limit_even_where_the_caller_raised_it():
    with ptc.limits(key_depth=20_000, depth=30_000):
        for tree in (
            _keys(_tuples(15_000, leaf(1))),
            _keys(_tuples(15_000, leaf(1)), _tuples(15_000, leaf(2))),
            _keys(_tuples(15_000, leaf(1)), _tuples(15_000, leaf(1.0))),
            _set(SET, _tuples(15_000, leaf(1))),
        ):
            with pytest.raises(ptc.LimitError, match="nested too deeply"):
                ptc.decode(file_of(tree))


def test_a_long_key_is_refused_by_its_limit():
    for key in ("x" * 65_537, b"x" * 65_537, "\u00e9" * 40_000, (1, ("x" * 65_537,))):
        with pytest.raises(ptc.LimitError, match=r"limits\(key_nbytes=…\)"):
            ptc.decode(file_of(_keys(key)))
        with pytest.raises(ptc.LimitError, match=r"limits\(key_nbytes=…\)"):
            ptc.encode({"a": {key: 1}})
    big = (1 << 600_000).to_bytes(75_001, "little")
    with pytest.raises(ptc.LimitError, match=r"limits\(key_nbytes=…\)"):
        ptc.decode(file_of(_keys(Tree(BIGINT, big))))
    assert_same({"x" * 65_536: 1}, ptc.decode(ptc.encode({"x" * 65_536: 1})))


def test_many_nodes_are_refused_by_their_limit():
    file = file_of([0] * 1000)
    assert len(ptc.decode(file)) == 1000
    with ptc.limits(nodes=1000), pytest.raises(ptc.LimitError, match=r"limits\(nodes=…\)"):
        ptc.decode(file)


def test_an_object_with_a_hundred_thousand_fields_is_read():
    names = [f"f{i}" for i in range(100_000)]
    back = ptc.decode(file_of(record("a.b", dict.fromkeys(names, 1))))
    assert len(back) == 100_000
    assert back.f99999 == 1


def test_the_kinds_of_this_helper_are_those_of_the_format():
    assert (ELLIPSIS, INT, RECORD, ARRAY, LIST) == (3, 4, 1, 10, 16)
