"""How two checkpoints differ: what a diff names, what it does not, and that it agrees with a comparison of the trees."""

import struct
from collections import OrderedDict, deque
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt import ClassKind, ObjectType, testing
from pytreeckpt.objects import build_record
from tests import strategies as some
from tests.exact import difference
from tests.sources import in_boxes, open_bytes


def compare(a: Any, b: Any, *, of_a: Any = None, of_b: Any = None, **options: Any) -> ptc.Diff:
    """The diff of the files of two trees."""
    files = (ptc.encode(tree, metadata=metadata) for tree, metadata in ((a, of_a), (b, of_b)))
    with open_bytes(next(files)) as one, open_bytes(next(files)) as other:
        return ptc.diff(one, other, **options)


def named(found: ptc.Diff) -> list[tuple[str, str]]:
    return [(str(change.path), change.kind) for change in found]


def tensor(array: Any, *, requires_grad: bool = False, name: str = "torch.Tensor") -> Any:
    return build_record(ObjectType(ClassKind.WRAPPER, name, ("data", "requires_grad")), (array, requires_grad))


@given(some.TREES | some.trees_with_sharing(), some.METADATA)
def test_a_tree_is_the_same_as_itself(tree, metadata):
    found = compare(tree, tree, of_a=metadata, of_b=metadata)
    assert found.same
    assert (list(found), found.read_nbytes, found.n_leaves[0]) == ([], 0, found.n_equal)
    # In full, rather than by the roots.
    with open_bytes(ptc.encode(tree)) as one, open_bytes(ptc.encode(tree, metadata=1)) as other:
        assert named(ptc.diff(one, other)) == [("", "type")]
        assert ptc.diff(one, other, select=lambda _path: True).same


@given(some.TREES | some.trees_with_sharing(), some.TREES | some.trees_with_sharing(), st.integers(0, 2))
def test_a_diff_agrees_with_comparisons_of_the_trees(a, b, also):
    pair = [{"x": a, "y": [a, b][also // 2]}, {"x": [a, b][also % 2], "y": b}]
    files = [ptc.encode(tree) for tree in pair]
    with open_bytes(files[0]) as one, open_bytes(files[1]) as other:
        # Ties of arrays within an object that is one value are not compared, as the docstring says.
        assume(not any(holds_arrays(type_) for each in (one, other) for type_ in each.index.nodes.types))
        found = ptc.diff(one, other)
        # From the digests alone, or from the values: the same changes.
        with_values = ptc.diff(one, other, values=True)
    restored = [ptc.decode(file, types=some.TYPES) for file in files]
    assert found.same == (difference(*restored) is None) == are_identical(*restored)
    assert named(with_values) == named(found)


def holds_arrays(type_: ptc.ObjectType) -> bool:
    """Whether it is of one value that may hold arrays: a slice, or a member of an enum."""
    return type_.name == "python.slice" or type_.class_kind is ptc.ClassKind.ENUM


def are_identical(a: Any, b: Any) -> bool:
    try:
        return testing.identical(a, b) == []
    except ptc.UnsupportedTypeError:
        # Of an array of StringDType and another array.
        return False


@given(some.TREES, some.TREES)
def test_a_diff_is_symmetric(a, b):
    there, back = compare(a, b, values=True), compare(b, a, values=True)
    swapped = {"added": "removed", "removed": "added"}

    def facts(found: ptc.Diff, *, turned: bool) -> set[tuple[Any, ...]]:
        return {
            (
                str(change.moved_to if turned and change.moved_to is not None else change.path),
                swapped.get(change.kind, change.kind) if turned else change.kind,
                None if change.values is None else change.values.n_different,
            )
            for change in found
        }

    assert facts(there, turned=False) == facts(back, turned=True)
    assert there.n_leaves == back.n_leaves[::-1]
    assert there.n_equal == back.n_equal


def _flipped(array: np.ndarray) -> np.ndarray:
    changed = array.copy()
    changed.reshape(-1)[-1:].view(np.uint8)[-1] ^= 1
    return changed


_WEIGHTS = np.random.default_rng(0).standard_normal((40, 30)).astype(np.float32)
_LARGE = np.random.default_rng(1).standard_normal((100, 200))
CHANGED = [
    (_WEIGHTS, _flipped(_WEIGHTS), "value"),
    (_LARGE, _flipped(_LARGE), "value"),
    (np.array(1.0), np.array(2.0), "value"),
    (_WEIGHTS, _WEIGHTS.astype(np.float64), "dtype"),
    (_WEIGHTS, _WEIGHTS.view(np.int32), "dtype"),
    (_WEIGHTS, _WEIGHTS.astype(">f4"), "dtype"),
    (_WEIGHTS, _WEIGHTS.reshape(30, 40), "shape"),
    (_WEIGHTS, np.asfortranarray(_WEIGHTS), "layout"),
    (_LARGE, np.asfortranarray(_LARGE), "layout"),
    (_WEIGHTS, None, "type"),
    (_WEIGHTS, tensor(_WEIGHTS), "type"),
    (tensor(_WEIGHTS), tensor(_WEIGHTS, name="torch.nn.Parameter"), "type"),
    (np.float32(1), np.float64(1), "dtype"),
    (np.float32(1), np.float32(2), "value"),
    (np.float32(1), 1.0, "type"),
    (np.float32(1), np.array(1, np.float32), "type"),
    (1, True, "type"),
    (1, 1.0, "type"),
    (0.0, -0.0, "value"),
    (complex(0.0, -0.0), complex(-0.0, 0.0), "value"),
    (float("nan"), struct.unpack("<d", struct.pack("<Q", 0x7FF8_0000_0000_0001))[0], "value"),
    (1 << 90, 1 << 91, "value"),
    ("a", "b", "value"),
    ("a", b"a", "type"),
    ({1, 2}, {1, 3}, "value"),
    ({1.0}, {1}, "value"),
    ({1}, frozenset([1]), "type"),
    (range(3), range(4), "value"),
    (some.Color.RED, some.Color.BLUE, "value"),
    (some.Empty(), (), "type"),
    ([], (), "type"),
    ([], {}, "type"),
    ([1, 2], (1, 2), "type"),
    ({"a": 1, "b": 2}, OrderedDict(a=1, b=2), "type"),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}, "order"),
    (some.Point(1, 2), build_record(ObjectType(ClassKind.DATACLASS, "m:P", ("x", "y")), (1, 2)), "type"),
]


@pytest.mark.parametrize(("one", "other", "kind"), CHANGED)
def test_a_change_of_each_sort_has_its_kind(one, other, kind):
    assert_one_change(one, other, kind, wrap=[0, 3], before=[1, None], after={"z": 2.0})


@given(st.integers(0, len(CHANGED) - 1), st.lists(st.integers(0, 4), max_size=4), some.TREES, some.TREES)
def test_one_change_is_named_with_its_path_and_kind_and_nothing_else(number, wrap, before, after):
    assert_one_change(*CHANGED[number], wrap=wrap, before=before, after=after)


def assert_one_change(one: Any, other: Any, kind: str, *, wrap: list[int], before: Any, after: Any) -> None:
    trees: list[Any] = [one, other]
    path: list[Any] = []
    for form in wrap:
        if form == 0:
            trees, step = [{"k": tree} for tree in trees], ptc.DictKey("k")
        elif form == 1:
            trees, step = [[0, tree] for tree in trees], ptc.Index(1)
        elif form == 2:
            trees, step = [OrderedDict([(3, 0), (True, tree)]) for tree in trees], ptc.DictKey(True)
        elif form == 3:
            trees, step = [some.Point(tree, 0) for tree in trees], ptc.Field("x")
        else:
            trees, step = [deque([tree], 3) for tree in trees], ptc.Index(0)
        path.insert(0, step)
    where = ptc.Path([ptc.DictKey("at"), *path])
    # Another structure, so that they are walked side by side; and the same, so that they are not.
    for rest in ({}, {"z": after}):
        a, b = ({"before": before, "at": tree, **rest} for tree in trees)
        found = compare(a, b)
        assert [(change.path, change.kind, change.part) for change in found] == [(where, kind, "tree")]
        assert not found.same
        assert found.counts == {kind: 1}
        [(there, back)] = [(change.a, change.b) for change in found]
        [(other_there, other_back)] = [(change.a, change.b) for change in compare(b, a)]
        assert (there.type, back.type) == (other_back.type, other_there.type)


@given(some.TREES, some.arrays())
def test_what_only_one_has_is_added_or_removed(tree, array):
    # Of a tree that itself holds such an array, that one could have moved.
    a = {"rest": tree}
    b = {"rest": tree, "new": {"array": array, "none": None, "empty": [], "text": "x"}}
    expected = [f"new/{name}" for name in ("array", "none", "empty", "text")]
    assert named(compare(a, b)) == [(path, "added") for path in expected]
    assert named(compare(b, a)) == [(path, "removed") for path in expected]
    assert [change.a for change in compare(a, b)] == [None] * 4


def test_keys_are_told_apart_by_type_and_bits():
    found = compare({1: "a", 0.0: "b", "x": 0}, {True: "a", -0.0: "b", "x": 0})
    assert sorted(named(found)) == [("-0.0", "added"), ("0.0", "removed"), ("1", "removed"), ("True", "added")]


def test_where_a_container_is_a_leaf_in_the_other_its_leaves_are_removed():
    found = compare({"x": {"a": 1, "b": [2, 3]}}, {"x": 4})
    assert named(found) == [("x", "type"), ("x/a", "removed"), ("x/b[0]", "removed"), ("x/b[1]", "removed")]
    [first, *_] = found
    assert (first.a.type, first.a.n_leaves, first.b.value) == ("dict", 3, 4)


def test_an_attribute_of_a_wrapper_is_a_part_of_its_own():
    a = {"w": tensor(_WEIGHTS), "v": tensor(_WEIGHTS + 1), "d": deque([1], 3)}
    b = {"w": tensor(_WEIGHTS, requires_grad=True), "v": tensor(_WEIGHTS + 1), "d": deque([1], 4)}
    found = compare(a, b)
    assert [(str(change.path), change.kind, change.part) for change in found] == [
        ("w/.requires_grad", "value", "attribute"),
        ("d/.maxlen", "value", "attribute"),
    ]
    assert [(change.a.value, change.b.value) for change in found] == [(False, True), (3, 4)]
    # The leaf is not quite the same; items of a deque are.
    assert (found.n_leaves, found.n_equal) == ((3, 3), 2)
    assert named(compare(a, b, select="v")) == []


def test_ties_that_differ_are_named_with_what_they_are_tied_to():
    copy = _LARGE.copy()
    a = {"x": _LARGE, "y": _LARGE, "z": _LARGE, "s": _WEIGHTS}
    b = {"x": copy, "y": copy, "z": _LARGE, "s": _WEIGHTS}
    found = compare(a, b)
    assert named(found) == [("z", "tie")]
    [change] = found
    assert [None if path is None else str(path) for path in change.tied] == ["x", None]
    [change] = compare(b, a)
    assert [None if path is None else str(path) for path in change.tied] == [None, "x"]
    assert compare({"q": 1, **a}, {"r": 1, **b}, select=["s", "x"]).same


def test_the_metadata_is_compared_too_and_not_with_select():
    a, b = {"lr": 0.1, "notes": ["x"]}, {"lr": 0.2, "notes": ["x"], "step": 3}
    found = compare({"w": 1}, {"w": 2}, of_a=a, of_b=b)
    assert [(str(change.path), change.kind, change.part) for change in found] == [
        ("lr", "value", "metadata"),
        ("step", "added", "metadata"),
        ("w", "value", "tree"),
    ]
    assert named(compare({"w": 1}, {"w": 2}, of_a=a, of_b=b, select="w")) == [("w", "value")]


def test_a_leaf_whose_content_stands_elsewhere_has_moved():
    a = {"old": {"w": _WEIGHTS, "b": np.zeros(3)}, "kept": 1}
    b = {"new": {"w": _WEIGHTS, "b": np.zeros(3)}, "kept": 1}
    found = compare(a, b)
    assert [(str(change.path), change.kind, str(change.moved_to)) for change in found] == [
        ("old/w", "moved", "new/w"),
        ("old/b", "moved", "new/b"),
    ]
    assert found.read_nbytes == 0
    assert not found.same


def test_leaves_of_the_same_content_have_moved_together():
    """As the scales of all the norms of a new model, with its names written in another way."""

    def layers(name: str, *arrays: Any) -> dict[str, Any]:
        return {f"{name}.{place}": array for place, array in enumerate(arrays)}

    ones = np.ones(70)
    found = compare(layers("old", ones, ones.copy(), _WEIGHTS), layers("new", ones, ones.copy(), _WEIGHTS))
    assert [(str(change.path), change.kind, str(change.moved_to)) for change in found] == [
        (f"old.{place}", "moved", f"new.{place}") for place in range(3)
    ]
    assert compare(layers("old", ones, ones), layers("new", ones, ones)).counts == {"moved": 2}
    assert compare(layers("old", ones, ones), layers("new", ones, ones.copy())).counts == {"removed": 2, "added": 2}


def test_what_could_have_moved_to_several_places_has_not_moved():
    assert named(compare({"a": np.zeros(9)}, {"b": np.zeros(9), "c": np.zeros(9)})) == [
        ("a", "removed"),
        ("b", "added"),
        ("c", "added"),
    ]
    # Nor has what is wrapped in another way, or has other attributes.
    for other in (tensor(_WEIGHTS), tensor(_WEIGHTS, requires_grad=True)):
        one = _WEIGHTS if other["requires_grad"] is False else tensor(_WEIGHTS)
        assert {kind for _, kind in named(compare({"a": one}, {"b": other}))} == {"removed", "added"}


@given(st.data(), st.sampled_from([np.float32, ">i2", "S3", "V5", [("x", "f4"), ("y", "u1")], np.longdouble]))
def test_the_layout_in_the_file_is_no_difference(data, dtype):
    """Boxes, pools and chunks of other sizes: read, and compared item by item."""
    array = some.fill(np.dtype(dtype), (50, 30), data.draw(st.integers(1, 9)))
    cuts = [sorted(data.draw(st.sets(st.integers(1, extent - 1), max_size=3))) for extent in array.shape]
    others = [some.fill(np.dtype(dtype), (50, 30), 10 + place) for place in range(data.draw(st.integers(0, 90)))]
    in_parts = {"x": in_boxes(array, cuts), "y": array}
    found = compare({**in_parts, "others": others}, {"x": array, "y": in_boxes(array, cuts), "others": others[:1]})
    changed = _flipped(array) if np.dtype(dtype).itemsize != 16 else -array
    assert {kind for path, kind in named(found) if not path.startswith("others")} == set()
    found = compare(in_parts, {"x": changed, "y": array})
    assert named(found) == [("x", "value")]
    found = compare(in_parts, {"z": array, "x": in_boxes(array, cuts)})
    assert named(found) in ([("y", "moved")], [("y", "removed"), ("z", "added")])


def test_arrays_of_many_chunks_in_other_orders_are_compared_block_by_block(monkeypatch):
    from pytreeckpt.operations import diff_reading

    monkeypatch.setattr(diff_reading, "_BLOCK_NBYTES", 50_000)
    monkeypatch.setattr(diff_reading, "_SMALL_NBYTES", 1000)
    big = np.random.default_rng(0).standard_normal((20, 15, 100))
    forms = [
        big,
        np.asfortranarray(big),
        big.transpose(1, 0, 2).copy().transpose(1, 0, 2),
        in_boxes(big, [[7], [], [50]]),
    ]
    changed = _flipped(big)
    for one in forms:
        for other in forms[1:]:
            found = compare({"x": one, "n": 0}, {"x": other, "n": 1}, values=True)
            assert {kind for path, kind in named(found) if path == "x"} <= {"layout"}
        found = compare({"x": one}, {"x": changed}, values=True)
        [value] = [change for change in found if change.kind == "value"]
        assert value.values.n_different == 1
        assert found.read_nbytes == 2 * big.nbytes
    assert compare({"x": forms[1]}, {"y": forms[1]}).counts == {"moved": 1}
    found = compare({"x": in_boxes(big, [[5], [], []])}, {"y": in_boxes(big, [[], [9], []])})
    assert named(found) == [("x", "moved")]


def test_nothing_is_read_of_two_files_cut_alike():
    trees = [{"a": _LARGE, "b": [_WEIGHTS] * 3, "c": {"d": np.zeros(10)}, "n": n} for n in (1, 2)]
    trees[1]["a"] = _flipped(_LARGE)
    found = compare(*trees)
    assert named(found) == [("a", "value"), ("n", "value")]
    assert found.read_nbytes == 0
    found = compare(*trees, values=True)
    assert found.read_nbytes == 2 * _LARGE.nbytes


def test_other_formats_are_compared_too(tmp_path):
    arrays = {"w": _WEIGHTS, "v": _LARGE, "b": np.arange(5)}
    np.savez(tmp_path / "x.npz", **arrays)
    np.savez_compressed(tmp_path / "y.npz", **{**arrays, "w": _flipped(_WEIGHTS)})
    ptc.save(arrays, tmp_path / "x.ptck")
    found = ptc.diff(tmp_path / "x.npz", tmp_path / "x.ptck")
    assert found.same
    assert found.read_nbytes >= 2 * (_WEIGHTS.nbytes + _LARGE.nbytes)
    assert named(ptc.diff(tmp_path / "x.npz", tmp_path / "y.npz")) == [("w", "value")]
    assert named(ptc.diff(tmp_path / "y.npz", tmp_path / "x.ptck", values=True)) == [("w", "value")]
    renamed = {f"model.{name}": array for name, array in arrays.items()}
    ptc.save(renamed, tmp_path / "renamed.ptck")
    found = ptc.diff(tmp_path / "x.npz", tmp_path / "renamed.ptck")
    assert [(str(change.path), change.kind, str(change.moved_to)) for change in found] == [
        (name, "moved", f'"model.{name}"' if "/" in name else f"model.{name}") for name in arrays
    ]


def test_the_content_alone_can_be_compared():
    copy = _LARGE.copy()
    a = {"w": tensor(_WEIGHTS), "l": [1, (2.0, None)], "x": _LARGE, "y": _LARGE, "d": deque([1], 3), "e": []}
    b = {"e": (), "d": [1], "x": np.asfortranarray(copy), "y": copy, "l": (1, [2.0, None]), "w": _WEIGHTS}
    assert not compare(a, b).same
    found = compare(a, b, of_a={"x": 1}, content_only=True)
    assert (found.same, found.content_only, found.n_equal, found.n_leaves) == (True, True, 8, (8, 8))
    changed = {**b, "w": _flipped(_WEIGHTS), "l": (True, [2.0, "None"]), "y": copy.astype(np.float32), "e": None}
    assert named(compare(a, changed, content_only=True)) == [
        ("w", "value"),
        ("l[0]", "type"),
        ("l[1][1]", "type"),
        ("y", "dtype"),
        ("e", "type"),
    ]
    # Of one structure, and under another name.
    assert compare({"d": deque([1], 3)}, {"d": deque([1], 4)}, content_only=True).same
    found = compare({"a": tensor(_WEIGHTS)}, {"b": np.asfortranarray(_WEIGHTS)}, content_only=True)
    assert found.counts == {"moved": 1}


@given(some.TREES, some.TREES)
def test_what_differs_in_content_differs(a, b):
    of_content = compare({"x": a}, {"x": b}, content_only=True)
    in_full = compare({"x": a}, {"x": b})
    assert {*named(of_content)} <= {*named(in_full)} | {(path, "moved") for path, _ in named(in_full)}
    assert of_content.n_equal >= in_full.n_equal
    assert compare({"x": a}, {"x": a}, content_only=True).same


def test_select_chooses_what_is_compared():
    a = {"m": {"w": _WEIGHTS, "b": 1}, "opt": {"w": _WEIGHTS.copy(), "b": 2}}
    b = {"m": {"w": _flipped(_WEIGHTS), "b": 3}, "opt": {"b": 2, "w": _flipped(_WEIGHTS)}}
    assert named(compare(a, b, select="**/w")) == [("m/w", "value"), ("opt/w", "value")]
    assert named(compare(a, b, select=["m", "opt/b"])) == [("m/w", "value"), ("m/b", "value")]
    assert named(compare(a, b, select="opt")) == [("opt", "order"), ("opt/w", "value")]
    found = compare(a, b, select=lambda path: path[0] == ptc.DictKey("opt") and path[-1] == ptc.DictKey("b"))
    assert found.same
    assert (found.n_leaves, found.n_equal) == ((1, 1), 1)
    with pytest.raises(ptc.StructureMismatchError, match="'mm' matches no leaf of either; there is m/w"):
        compare(a, b, select=["m", "mm"])


def test_damage_in_what_is_read_is_an_error_that_names_the_file(tmp_path):
    large = np.arange(300_000.0)
    ptc.save({"w": large, "n": 1}, tmp_path / "a.ptck", compression="none")
    ptc.save({"w": large + 1, "n": 2}, tmp_path / "b.ptck", compression="none")
    content = bytearray((tmp_path / "b.ptck").read_bytes())
    content[100_000] ^= 1
    (tmp_path / "b.ptck").write_bytes(content)
    # The indexes are fine.
    assert not ptc.diff(tmp_path / "a.ptck", tmp_path / "b.ptck").same
    with pytest.raises(ptc.CorruptionError, match=r"b\.ptck: leaf w, chunk 0"):
        ptc.diff(tmp_path / "a.ptck", tmp_path / "b.ptck", values=True)


@given(some.TREES)
def test_a_summary_says_what_there_is(tree):
    found = compare({"x": tree, "n": 1}, {"x": tree, "n": 2})
    assume(len(found) == 1)
    assert (
        found.summary()
        == f"1 leaf with other values; {found.n_equal:,} {'leaf' if found.n_equal == 1 else 'leaves'} the same"
    )
    same = compare(tree, tree)
    assert same.summary().startswith("the same: ")


def test_progress_ends_at_the_total():
    seen: list[ptc.Progress] = []
    compare({"x": _LARGE, "y": _WEIGHTS}, {"x": _LARGE + 1, "y": _WEIGHTS + 1}, values=True, progress=seen.append)
    assert [progress.done_nbytes for progress in seen] == sorted(progress.done_nbytes for progress in seen)
    assert seen[-1].done_nbytes == seen[-1].total_nbytes == 2 * (_LARGE.nbytes + _WEIGHTS.nbytes)


def test_incremental_steps_are_compared_by_their_digests_too(tmp_path):
    kept, trained = np.arange(40_000.0), np.arange(40_000.0) + 1
    for name, incremental in (("a", True), ("b", False)):
        with ptc.CheckpointManager(tmp_path / name, incremental=incremental) as manager:
            manager.save(1, {"kept": kept, "trained": trained})
            manager.save(2, {"kept": kept, "trained": trained + 1})
    one, two, whole = (
        tmp_path / name for name in ("a/step-00000001.ptck", "a/step-00000002.ptck", "b/step-00000002.ptck")
    )
    found = ptc.diff(one, two)
    assert [(str(change.path), change.kind) for change in found if change.part == "tree"] == [("trained", "value")]
    assert found.read_nbytes == 0
    found = ptc.diff(two, whole, select=["kept", "trained"])
    assert (found.same, found.read_nbytes) == (True, 0)
    assert [change.values.max_abs for change in ptc.diff(one, whole, select="trained", values=True)] == [1.0]
