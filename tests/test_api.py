"""The promise itself: what comes back is what went in; and an open checkpoint."""

import array as python_array
import collections
import struct
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given

import pytreeckpt as ptc
from tests import strategies as some
from tests.exact import assert_same, difference
from tests.forge import DATACLASS, NAMEDTUPLE, RECORD, file_of, record
from tests.sources import open_bytes


@given(some.TREES)
def test_decoding_what_was_encoded_gives_the_same_tree(tree):
    assert_same(tree, ptc.decode(ptc.encode(tree), types=some.TYPES))


@given(some.trees_with_sharing())
def test_arrays_are_shared_exactly_where_they_were(tree):
    assert_same(tree, ptc.decode(ptc.encode(tree), types=some.TYPES))


@given(some.arrays())
def test_an_array_of_any_dtype_and_layout_comes_back_with_every_bit_and_its_memory_order(array):
    assert_same(array, ptc.decode(ptc.encode(array)))


def nan(bits: int) -> float:
    found: float = struct.unpack("<d", struct.pack("<Q", bits))[0]
    return found


APART: list[Any] = [
    *(0, 0.0, -0.0, False, 0j, complex(0.0, -0.0), complex(-0.0, 0.0)),
    *(1, 1.0, True, 1 + 0j, "1", b"1", bytearray(b"1")),
    *(np.int64(1), np.int32(1), np.uint8(1), np.float64(1), np.float32(1), np.bool_(True), np.complex128(1)),
    *(np.float64(0.0), np.float64(-0.0), np.float16(-0.0), ml_dtypes.bfloat16(-0.0), ml_dtypes.float8_e4m3fn(0)),
    *(np.array(1), np.array(1, np.int32), np.array(1.0), np.array(True), np.array([1]), np.array([[1]])),
    *(np.array(1, ">i4"), np.array(1, ">f8")),
    *(nan(0x7FF8000000000000), nan(0x7FF8000000000001), nan(0xFFF8000000000000), nan(0x7FF0000000000001)),
    *(np.float64(nan(0x7FF8000000000001)), np.array(nan(0x7FF8000000000001))),
    *(float("inf"), float("-inf"), 5e-324, 1.7976931348623157e308),
    *((1 << 63) - 1, 1 << 63, -(1 << 63), -(1 << 63) - 1, 1 << 64, 1 << 10_000, -(1 << 10_000), 255, -256),
    *(None, ..., (), [], {}, set(), frozenset(), "", b"", bytearray()),
    *([1], (1,), {1}, frozenset([1]), {1: 1}, {1.0: 1}, {True: 1}, {"1": 1}, {(1,): 1}, {(1.0,): 1}, {None: 1}),
    *("\u00e9", "e\u0301", "\0", "a\0", "\U0001f600", "\ufeff", "\r\n"),
    *(
        np.str_(""),
        np.str_("\0"),
        np.str_("a\0\0"),
        np.bytes_(b""),
        np.bytes_(b"\0"),
        np.bytes_(b"a\0\0"),
        np.void(b"\0\1"),
    ),
    *(
        np.datetime64("2020-01-01"),
        np.datetime64("2020-01-01", "ns"),
        np.datetime64("NaT"),
        np.timedelta64(5, "s"),
        np.timedelta64(5),
    ),
    *(np.array(["a", "bc"]), np.array([b"a", b"bc"]), np.array(["a"], ">U3"), np.array(["", ""])),
    *({"a": 1, "b": 2}, {"b": 2, "a": 1}, collections.OrderedDict(a=1, b=2), collections.Counter(a=1, b=2)),
    *(
        {"a.b": 1, "a": {"b": 2}},
        {"a": {"b": 2}, "a.b": 1},
        {"a/b": 1, "a": {"b": 1}},
        {1: "x", "1": "y"},
        {"1": "y", 1: "x"},
    ),
    *(
        {True: "a", "True": "b"},
        {None: 1, "None": 2},
        {1.5: 1, "1.5": 2},
        {b"x": 1, "x": 2},
        {(1, "a"): 1, "(1,'a')": 2},
    ),
]


@pytest.mark.parametrize("value", APART, ids=range(len(APART)))
def test_values_that_are_easily_confused_are_kept_apart(value):
    back = ptc.decode(ptc.encode(value))
    same = [place for place, other in enumerate(APART) if difference(other, back) is None]
    assert same == [next(place for place, other in enumerate(APART) if other is value)]


def test_values_that_are_easily_confused_stand_side_by_side():
    assert_same(APART, ptc.decode(ptc.encode(APART)))
    assert_same(tuple(APART), ptc.decode(ptc.encode(tuple(APART))))
    assert_same(dict(enumerate(APART)), ptc.decode(ptc.encode(dict(enumerate(APART)))))


@pytest.mark.parametrize(
    "items",
    [[1, 2.0], [True, 1], ["a", b"a"], [1] * 20 + [True], [0.0] * 20 + [0], ["x"] * 20 + [None], [1] * 20 + [1 << 70]],
)
def test_long_lists_of_one_type_and_those_with_an_exception_come_back(items):
    for tree in (items, tuple(items), [items, items[::-1]], dict(enumerate(items))):
        assert_same(tree, ptc.decode(ptc.encode(tree)))


def test_the_order_of_keys_is_kept_and_keys_keep_their_types():
    keys = ["z", 1, "a", 2.5, b"m", None, (1, ("x", None)), -1, "1", 1 << 80, float("inf"), -0.5, ()]
    tree = {key: place for place, key in enumerate(keys)}
    back = ptc.decode(ptc.encode(tree))
    assert [(type(key), key) for key in back] == [(type(key), key) for key in keys]
    assert list(back.values()) == list(range(len(keys)))


def test_the_same_array_comes_back_as_one_and_different_views_do_not():
    base = np.arange(1000.0)
    tree = {
        "a": base,
        "b": base,
        "whole": base[:],
        "part": base[10:],
        "part again": base[10:],
        "back": base[::-1],
        "matrix": base.reshape(10, 100),
    }
    back = ptc.decode(ptc.encode(tree))
    assert back["a"] is back["b"] is back["whole"]
    assert back["part"] is back["part again"]
    assert len({id(array) for array in back.values()}) == 4
    assert not np.shares_memory(back["a"], back["part"])


def test_a_broadcast_array_comes_back_with_all_its_items():
    array = np.broadcast_to(np.arange(3.0), (1000, 3))
    back = ptc.decode(ptc.encode({"x": array}))["x"]
    assert np.array_equal(back, array)
    assert back.flags.c_contiguous
    assert back.flags.writeable


def test_read_only_and_foreign_memory_can_be_saved(tmp_path):
    frozen = np.arange(500)
    frozen.flags.writeable = False
    mapped = np.memmap(tmp_path / "raw", np.float32, "w+", shape=(20, 30))
    mapped[...] = 7
    buffer = python_array.array("i", range(300))
    tree = [
        frozen,
        mapped,
        mapped,
        mapped[3:5],
        mapped.T,
        np.frombuffer(buffer, np.int32),
        np.frombuffer(b"abc" * 100, np.uint8),
    ]
    back = ptc.decode(ptc.encode(tree))
    assert all(type(array) is np.ndarray and array.flags.writeable for array in back)
    assert_same([np.array(array, order="K") for array in tree[:1]], back[:1])
    assert all(np.array_equal(before, after) for before, after in zip(tree, back, strict=True))
    assert back[1] is back[2]
    assert back[4].flags.f_contiguous


def test_saving_does_not_change_what_is_saved():
    tree = {"a": np.arange(10).reshape(2, 5).T, "b": [1, {2}], "c": collections.deque([1], 2)}
    ptc.encode(tree)
    assert_same({"a": np.arange(10).reshape(2, 5).T, "b": [1, {2}], "c": collections.deque([1], 2)}, tree)


@pytest.mark.parametrize(
    "kind",
    [
        bytes,
        bytearray,
        memoryview,
        lambda data: memoryview(np.frombuffer(data, np.uint8)),
        lambda data: memoryview(np.frombuffer(data, "u8")),
    ],
)
def test_bytes_of_any_kind_are_decoded(kind):
    tree = {"a": np.arange(100), "b": "x"}
    file = ptc.encode(tree)
    file += bytes(-len(file) % 8)
    assert_same(tree, ptc.decode(kind(file)))


def test_what_is_decoded_does_not_refer_to_the_bytes_it_came_from():
    data = bytearray(ptc.encode({"a": np.arange(100), "b": np.arange(1000)}, compression="none"))
    tree = ptc.decode(data)
    data[:] = bytes(len(data))
    assert np.array_equal(tree["a"], np.arange(100))
    assert np.array_equal(tree["b"], np.arange(1000))


# An open checkpoint.


@given(some.TREES, some.METADATA)
def test_every_leaf_of_an_open_checkpoint_is_found_at_its_path(tree, metadata):
    with open_bytes(ptc.encode(tree, metadata=metadata)) as checkpoint:
        assert_same(metadata, checkpoint.metadata)
        paths = []
        for path, leaf in checkpoint.leaves():
            paths.append(str(path))
            for key in (path, str(path)):
                assert key in checkpoint
                found = checkpoint[key]
                assert type(found) is type(leaf)
                if isinstance(leaf, ptc.ArrayRef):
                    assert found.array == leaf.array
                else:
                    assert_same(leaf, found)
        assert len(set(paths)) == len(paths)


def test_fields_of_any_name_are_found_at_their_paths():
    names = ["a b", "_type", "__class__", "__dict__", "count", "index", "self", "", "x/y"]
    fields = dict.fromkeys(names, 1)
    objects = [
        record("m:N", fields, NAMEDTUPLE),
        record("m:D", fields, DATACLASS),
        record("python.Namespace", fields, RECORD),
        record("python.SimpleNamespace", fields, RECORD),
    ]
    with open_bytes(file_of(objects)) as checkpoint:
        found = [(str(path), checkpoint[path]) for path, _ in checkpoint.leaves()]
    assert len(found) == len(names) * len(objects)
    assert {value for _, value in found} == {1}


def test_an_open_checkpoint_shows_its_tree_without_reading_arrays(tmp_path):
    tree = {
        "params": {"w": np.ones((3, 4), np.float32)},
        "step": 7,
        "list": [1, (2, "x")],
        "point": some.Point(np.zeros(2), 5),
    }
    ptc.save(tree, tmp_path / "x", metadata={"note": "hello", "loss": [0.5, 0.25]})
    with ptc.open(tmp_path / "x") as checkpoint:
        assert repr(checkpoint["params/w"]) == "<ArrayRef float32 [3, 4]>"
        assert checkpoint["step"] == 7
        assert checkpoint["list[1][1]"] == "x"
        assert checkpoint["point/.y"] == checkpoint["point[1]"] == 5
        assert list(checkpoint["params"]) == ["w"]
        assert checkpoint[""] is checkpoint.tree
        assert checkpoint.metadata == {"note": "hello", "loss": [0.5, 0.25]}
        assert checkpoint.path == str(tmp_path / "x")
        assert checkpoint.nbytes == (tmp_path / "x").stat().st_size
        assert len(checkpoint.root) == 64
        assert str(tmp_path / "x") in repr(checkpoint)
        assert "step" in checkpoint
        assert "stp" not in checkpoint
        assert [str(path) for path, _ in checkpoint.leaves()] == [
            "params/w",
            "step",
            "list[0]",
            "list[1][0]",
            "list[1][1]",
            "point/.x",
            "point/.y",
        ]
    assert "in memory" in repr(open_bytes(ptc.encode(1)))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("parms", r"nothing at 'parms': the root has no parms; there is params"),
        ("params/x", r"params has no x; there is params/w"),
        ("step/x", r"step has no x"),
        ("list[5]", r"list has no \[5\]; there is list\["),
        ("list/0", r"list has no 0"),
        ("params[0]", r"params has no \[0\]"),
        ("point/.z", r"point has no \.z; there is point/\."),
        ("text[0]", r"text has no \[0\]"),
        ("set[0]", r"set has no \[0\]"),
        ("params/.w", r"params has no \.w"),
        ("a[", "cannot read the path"),
    ],
)
def test_what_is_not_there_is_a_path_error_that_says_what_is(path, message):
    tree = {"params": {"w": 1}, "step": 7, "list": [1, 2], "point": some.Point(1), "text": "abc", "set": {1}}
    with open_bytes(ptc.encode(tree)) as checkpoint:
        with pytest.raises(ptc.PathError, match=message) as caught:
            checkpoint[path]
        assert isinstance(caught.value, KeyError)
        assert path == "a[" or path not in checkpoint


def test_the_metadata_is_read_without_the_tree_being_understood():
    with open_bytes(ptc.encode([1], metadata={"a": (1, b"x", {None: 1.5})})) as checkpoint:
        assert_same({"a": (1, b"x", {None: 1.5})}, checkpoint.metadata)
    with open_bytes(ptc.encode([1])) as checkpoint:
        assert checkpoint.metadata is None


# Verifying.


def test_verify_reports_what_there_is(tmp_path):
    ptc.save({"a": np.arange(1000), "b": np.zeros(1000), "c": np.float32(1)}, tmp_path / "x")
    report = ptc.verify(tmp_path / "x")
    assert report.ok
    assert report.problems == ()
    assert (report.n_arrays, report.n_chunks) == (3, 2)
    assert report.file_nbytes == (tmp_path / "x").stat().st_size
    with ptc.open(tmp_path / "x") as checkpoint:
        assert report.root == checkpoint.root


def test_verify_reports_every_damaged_chunk(tmp_path):
    ptc.save({f"x{i}": np.arange(i, i + 100) for i in range(5)}, tmp_path / "x", compression="none")
    data = bytearray((tmp_path / "x").read_bytes())
    with ptc.open(tmp_path / "x") as checkpoint:
        offsets = checkpoint.index.chunks.offset.tolist()
    for place in (offsets[1] + 5, offsets[3], offsets[4] + 799):
        data[place] ^= 255
    (tmp_path / "x").write_bytes(data)
    report = ptc.verify(tmp_path / "x")
    assert not report.ok
    assert [
        (problem.kind, problem.rule, problem.leaf, problem.chunk, problem.offset) for problem in report.problems
    ] == [
        ("corrupt", "C-8", "x1", 0, offsets[1]),
        ("corrupt", "C-8", "x3", 0, offsets[3]),
        ("corrupt", "C-8", "x4", 0, offsets[4]),
    ]


@pytest.mark.parametrize(
    ("damage", "kind", "rule"),
    [
        (lambda data: data[:100], "corrupt", "F-4"),
        (lambda data: data[:-1], "corrupt", "F-5"),
        (lambda data: b"", "corrupt", "F-1"),
        (lambda data: data[:8] + b"\2" + data[9:], "unknown version", "F-2"),
    ],
)
def test_verify_reports_a_file_that_cannot_be_opened(tmp_path, damage, kind, rule):
    (tmp_path / "x").write_bytes(damage(ptc.encode(np.arange(1000))))
    report = ptc.verify(tmp_path / "x")
    ((problem,), root) = (report.problems, report.root)
    assert not report.ok
    assert (problem.kind, problem.rule, problem.leaf) == (kind, rule, None)
    assert root is None
    assert report.file_nbytes == (tmp_path / "x").stat().st_size


def test_verify_reports_a_file_beyond_the_limits(tmp_path):
    ptc.save(list(range(1000)), tmp_path / "x")
    with ptc.limits(nodes=10):
        report = ptc.verify(tmp_path / "x")
    assert [problem.kind for problem in report.problems] == ["beyond limits"]
    assert report.problems[0].rule is None
