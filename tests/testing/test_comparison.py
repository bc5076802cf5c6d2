"""`identical` finds each kind of difference, and none where there is none."""

import argparse
import struct
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given

import pytreeckpt
from pytreeckpt import decode, encode, testing
from pytreeckpt.testing import identical
from pytreeckpt.testing.strategies import Colour, Level, Point, Settings
from tests.exact import difference

NAN = float("nan")
OTHER_NAN = struct.unpack("<d", struct.pack("<Q", 0x7FF8_0000_0000_0001))[0]
F32 = np.arange(6, dtype=np.float32).reshape(2, 3)


@dataclass
class Twin:
    """As `Settings`, but another class."""

    rate: object
    name: object = "sgd"


def changed(array, index, value):
    copy = array.copy("K")
    copy[index] = value
    return copy


def typed(values, **options):
    return np.array(values, np.dtypes.StringDType(**options))


DIFFERENT = {
    "a type": (1, 1.0),
    "bool and int": (True, 1),
    "numpy and Python": (np.float64(1), 1.0),
    "a scalar and an array": (np.float32(1), np.array(1, np.float32)),
    "an int enum and an int": (Level.LOW, 1),
    "an int": (1, 2),
    "a bool": (True, False),
    "a text": ("a", "b"),
    "bytes": (b"a", b"b"),
    "a float": (1.0, 1.5),
    "the sign of zero": (0.0, -0.0),
    "the payload of a NaN": (NAN, OTHER_NAN),
    "a part of a complex": (complex(1, 0.0), complex(1, -0.0)),
    "list and tuple": ([1], (1,)),
    "a length": ([1, 2], [1]),
    "an item": ([1, [2, 3]], [1, [2, 4]]),
    "a key": ({"a": 1}, {"b": 1}),
    "the type of a key": ({1: 0}, {True: 0}),
    "the bits of a key": ({NAN: 0}, {OTHER_NAN: 0}),
    "the order of keys": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "a value": ({"a": {"b": 1}}, {"a": {"b": 2}}),
    "the class of a dict": ({"a": 1}, OrderedDict(a=1)),
    "a count": (Counter(a=1), Counter(a=2)),
    "the items of a deque": (deque([1]), deque([2])),
    "the length of a deque": (deque([1], 2), deque([1], 3)),
    "an element": ({1, 2}, {1, 3}),
    "the type of an element": ({1}, {True}),
    "set and frozenset": ({1}, frozenset({1})),
    "a field": (Point(1, 2), Point(1, 3)),
    "a namedtuple and a tuple": (Point(1, 2), (1, 2)),
    "a class": (Settings(1), Twin(1)),
    "an attribute": (Settings(1, "a"), Settings(1, "b")),
    "an attribute's name": (argparse.Namespace(a=1), argparse.Namespace(b=1)),
    "a member": (Colour.RED, Colour.GREEN),
    "a dtype as a value": (np.dtype("<i4"), np.dtype(">i4")),
    "a range": (range(3), range(4)),
    "bytes that change": (bytearray(b"a"), bytearray(b"b")),
    "a dtype": (F32, F32.astype(np.float64)),
    "the byte order": (F32, F32.astype(">f4")),
    "the alignment of a struct": (np.zeros(1, "i4,i4"), np.zeros(1, np.dtype("i4,i4", align=True))),
    "the title of a field": (np.zeros(1, [("a", "i4")]), np.zeros(1, [(("t", "a"), "i4")])),
    "the unit of a time": (np.zeros(1, "M8[s]"), np.zeros(1, "M8[ms]")),
    "a shape": (F32, F32.reshape(3, 2)),
    "0-d and 1-d": (np.zeros(()), np.zeros(1)),
    "the shape of nothing": (np.zeros((0, 2)), np.zeros((0, 3))),
    "the memory order": (F32, np.asfortranarray(F32)),
    "an item of an array": (F32, changed(F32, (1, 2), 7)),
    "a bit of an array": (F32, changed(F32, (0, 0), -0.0)),
    "a NaN in an array": (np.array([NAN]), np.array([OTHER_NAN])),
    "a small float": (np.zeros(2, ml_dtypes.float8_e4m3fn), np.ones(2, ml_dtypes.float8_e4m3fn)),
    "a field of a struct": (np.zeros(1, "i4,i4"), np.ones(1, "i4,i4")),
    "a numpy scalar": (np.float32(1), np.float32(2)),
    "the type of a numpy scalar": (np.float32(1), np.float16(1)),
    "the unit of a numpy scalar": (np.datetime64(1, "s"), np.datetime64(1, "ms")),
    "zeros at the end of a scalar": (np.bytes_(b"a\0"), np.bytes_(b"a")),
    "an object in an array": (np.array([1, "a"], object), np.array([1, "b"], object)),
    "the shape of objects": (np.array([1, 2], object), np.array([[1, 2]], object)),
    "a text in an array": (typed(["a"]), typed(["b"])),
    "the missing value": (typed(["a"]), typed(["a"], na_object=None)),
    "sharing": ([F32, F32], [F32, F32.copy()]),
    "no sharing": ([F32, F32.copy()], [F32, F32]),
    "who shares": ([F32, F32.copy(), F32], [F32, (copy := F32.copy()), copy]),
}


@pytest.mark.parametrize(("a", "b"), DIFFERENT.values(), ids=DIFFERENT)
def test_a_difference_is_found_from_both_sides_and_wherever_it_is(a, b):
    assert identical(a, b)
    assert identical(b, a)
    assert identical([0, {"x": (a,)}], [0, {"x": (b,)}])
    assert identical(a, a) == []
    assert identical(b, b) == []


def test_there_is_a_case_for_every_kind():
    assert len(DIFFERENT) > 50


@given(testing.trees())
def test_a_tree_is_identical_to_itself(tree):
    assert identical(tree, tree) == []


@given(testing.trees(), testing.trees())
def test_what_is_identical_is_so_for_another_comparison_too(a, b):
    for tree in (a, b):
        restored = decode(encode([a, tree]), types=testing.TYPES)
        if identical([a, a], restored) == []:
            assert difference([a, a], restored) is None


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (NAN, struct.unpack("<d", struct.pack("<d", NAN))[0]),
        (F32[:, ::2], F32[:, ::2].copy()),
        (np.broadcast_to(np.float32(1), (2, 2)), np.ones((2, 2), np.float32)),
        (F32[::-1], F32[::-1].copy()),
        ({1, 2, 3}, {3, 2, 1}),
        (np.zeros(2, np.longdouble), np.zeros(2, np.longdouble)),
        ([F32, F32], [F32.copy()] * 2),
    ],
    ids=["NaN", "gaps", "broadcast", "reversed", "set", "padding", "shared alike"],
)
def test_what_a_checkpoint_does_not_keep_is_no_difference(a, b):
    assert identical(a, b) == []


def test_padding_is_no_difference():
    dtype = np.dtype({"names": ["a"], "formats": ["i4"], "offsets": [0], "itemsize": 8})
    a, b = np.zeros(2, dtype), np.zeros(2, dtype)
    a.view(np.uint8)[4:8] = 1
    assert identical(a, b) == []
    b["a"][0] = 1
    assert identical(a, b)


def test_a_line_begins_with_the_path_and_tells_both_values():
    a = {"opt": [{"mu": F32, "count": 1}], "same": 0}
    b = {"opt": [{"mu": changed(F32, (1, 2), 7), "count": 2}], "same": 0}
    assert identical(a, b) == [
        "opt[0]/mu: 1 of 6 items differ, first at [1, 2]: bits 0000a040 and 0000e040",
        "opt[0]/count: 1 and 2",
    ]
    assert identical([F32, F32], [F32, F32.copy()]) == ["[1]: the same array as [0] and shared with nothing before it"]
    assert identical(1, 2) == ["the root: 1 and 2"]


def test_the_number_of_lines_is_bounded():
    assert len(identical(list(range(100)), [0] * 100)) == 20
    assert len(identical(list(range(100)), [0] * 100, limit=5)) == 5


def test_a_deep_tree_is_compared_without_recursion():
    def deep(leaf):
        tree: Any = leaf
        for depth in range(50_000):
            tree = [tree] if depth % 2 else {"a": tree}
        return tree

    assert identical(deep(1), deep(1)) == []
    (line,) = identical(deep(1), deep(2))
    assert line.endswith(": 1 and 2")
    assert line.count("[0]") == 25_000


def test_a_tree_that_contains_itself_is_compared():
    def cyclic(leaf):
        tree: list[Any] = [leaf]
        tree.append(tree)
        return tree

    assert identical(cyclic(1), cyclic(1)) == []
    assert identical(cyclic(1), cyclic(2)) == ["[0]: 1 and 2"]


def test_what_no_tree_can_hold_is_refused():
    with pytest.raises(pytreeckpt.UnsupportedTypeError, match=r"\[0\]: a tree cannot hold a object"):
        identical([object()], [object()])
