"""Templates: a checkpoint in the structure and types of a given tree, or one error that tells all that differs."""

import argparse
import collections
import dataclasses
import types
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt.build import Builder
from tests import strategies as some
from tests.exact import assert_same, difference, item_bytes
from tests.sources import RecordingSource


def filled(tree, like, **options):
    return ptc.decode(ptc.encode(tree), like=like, **options)


def _holds(tree, cls) -> bool:
    if isinstance(tree, cls):
        return True
    if isinstance(tree, dict):
        return any(_holds(value, cls) for value in tree.values())
    if dataclasses.is_dataclass(tree):
        return any(_holds(getattr(tree, field.name), cls) for field in dataclasses.fields(tree))
    if isinstance(tree, argparse.Namespace | types.SimpleNamespace):
        return any(_holds(value, cls) for value in vars(tree).values())
    if isinstance(tree, np.ndarray):
        return tree.dtype.hasobject and any(_holds(value, cls) for value in tree.reshape(-1).tolist())
    return isinstance(tree, list | tuple | collections.deque) and any(_holds(value, cls) for value in tree)


def blank(file):
    """The tree of a file, with zeros in all arrays that can be written to."""
    arrays = []

    def leaf(_builder, array):
        arrays.append(array)
        return array

    with mock.patch.multiple(Builder, leaf=leaf):
        tree = ptc.decode(file, types=some.TYPES)
    for array in arrays:
        array[...] = np.zeros((), array.dtype)
    return tree


@given(some.TREES | some.trees_with_sharing())
def test_a_tree_filled_into_itself_is_the_same(tree):
    file = ptc.encode(tree)
    try:
        again = ptc.decode(file, like=blank(file), types=some.TYPES)
    except ptc.UnsupportedTypeError:
        assert _holds(tree, slice)
        return
    except ptc.StructureMismatchError as error:
        # Keys that are NaN equal nothing.
        assert "nan:" in str(error)
        return
    assert_same(tree, again)


@dataclasses.dataclass
class Net:
    kernel: Any
    bias: Any = None
    name: str = "net"


ARRAYS = {"kernel": np.arange(6.0).reshape(2, 3), "bias": np.arange(3, dtype=np.int32)}


@pytest.mark.parametrize(
    "like",
    [
        {"kernel": np.zeros((2, 3)), "bias": np.zeros(3, np.int32)},
        collections.OrderedDict(bias=np.zeros(3, np.int32), kernel=np.zeros((2, 3))),
        argparse.Namespace(kernel=np.zeros((2, 3)), bias=np.zeros(3, np.int32)),
        types.SimpleNamespace(kernel=np.zeros((2, 3)), bias=np.zeros(3, np.int32)),
        collections.namedtuple("Other", "bias kernel")(np.zeros(3, np.int32), np.zeros((2, 3))),
    ],
)
def test_a_dict_fills_anything_that_has_fields_of_its_names_and_the_other_way_round(like):
    before = like._asdict() if isinstance(like, tuple) else dict(like) if isinstance(like, dict) else dict(vars(like))
    back = filled(ARRAYS, like)
    assert type(back) is type(like)
    got = back._asdict() if isinstance(back, tuple) else dict(back) if isinstance(back, dict) else vars(back)
    assert list(got) == list(before)
    assert all(np.array_equal(got[name], ARRAYS[name]) for name in ARRAYS)
    # The arrays of the template are what is filled.
    assert all(got[name] is before[name] for name in ARRAYS)
    assert_same(ARRAYS, filled(back, {"kernel": np.zeros((2, 3)), "bias": np.zeros(3, np.int32)}))


def test_a_dataclass_is_filled_without_its_class_being_given():
    back = filled({"kernel": np.ones(2), "bias": None, "name": "old"}, Net(np.zeros(2)))
    assert type(back) is Net
    assert back.name == "old"
    assert np.array_equal(back.kernel, np.ones(2))


def test_the_order_and_the_types_of_containers_are_those_of_the_template():
    stored = {"a": [1, 2], "b": (3, 4)}
    assert_same({"b": (3, 4), "a": [1, 2]}, filled(stored, {"b": (0, 0), "a": [0, 0]}))
    assert_same({"a": (1, 2), "b": [3, 4]}, filled(stored, {"a": (0, 0), "b": [0, 0]}))
    assert_same(
        {"a": collections.deque([1, 2], 5), "b": (3, 4)},
        filled(stored, {"a": collections.deque([0, 0], 5), "b": (0, 0)}),
    )


NUMBERS: list[tuple[Any, Any, Any]] = [
    (1, 0, 1),
    (1.0, 0, 1),
    (2.5, 0.0, 2.5),
    (3, 0.0, 3.0),
    (True, 0, 1),
    (1, False, True),
    (7, np.int32(0), np.int32(7)),
    (np.int32(7), 0, 7),
    (np.float32(0.5), 0.0, 0.5),
    (0.5, np.float32(0), np.float32(0.5)),
    (np.array(3), 0, 3),
    (3, np.array(0), np.array(3)),
    (np.array(2.5), np.float64(0), np.float64(2.5)),
    (np.float64(2.5), np.array(0.0), np.array(2.5)),
    (1.5, ml_dtypes.bfloat16(0), ml_dtypes.bfloat16(1.5)),
    (ml_dtypes.bfloat16(1.5), 0.0, 1.5),
    (1 + 2j, 0j, 1 + 2j),
    (2.0, 0j, 2 + 0j),
    (float("nan"), np.float32(0), np.float32("nan")),
    (np.float32("nan"), 0.0, float("nan")),
    (float("inf"), np.float16(0), np.float16("inf")),
    (1 << 70, 0, 1 << 70),
    (-0.0, 0.0, -0.0),
]


@pytest.mark.parametrize(("stored", "like", "expected"), NUMBERS)
def test_a_number_takes_the_type_of_the_template_if_that_loses_nothing(stored, like, expected):
    assert_same({"x": expected}, filled({"x": stored}, {"x": like}))


LOSSES: list[tuple[Any, Any]] = [
    (1.5, 0),
    (0.1, np.float32(0)),
    (0.1, ml_dtypes.bfloat16(0)),
    (1e10, np.float16(0)),
    (300, np.int8(0)),
    (-1, np.uint8(0)),
    (2, False),
    (np.float64(0.1), np.float32(0)),
    (np.array(0.1), np.float32(0)),
    (0.1, np.array(0, np.float32)),
    ((1 << 53) + 1, 0.0),
    (1 << 2000, 0.0),
    (1 << 70, np.int64(0)),
    (1 << 20_000, np.float32(0)),
    (float("nan"), 0),
    (float("inf"), 0),
    (1j, 0.0),
    (1j, np.float32(0)),
    (np.str_("5"), 5),
    (np.datetime64("2020-01-01"), 0),
    (np.void(b"ab"), 0),
    ("5", 5),
    (None, 0),
    (5, None),
    (5, "5"),
    (5, b"5"),
    ([5], 5),
    (5, np.zeros(1)),
    (np.zeros(1), 5),
    (np.zeros(1), None),
    ("a", np.array(0)),
    ({1}, [1]),
    ({1}, frozenset({1})),
    (bytearray(b"a"), b"a"),
    (range(3), [0, 1, 2]),
]


@pytest.mark.parametrize(("stored", "like"), LOSSES, ids=range(len(LOSSES)))
def test_what_does_not_fit_the_template_is_a_mismatch(stored, like):
    with pytest.raises(ptc.StructureMismatchError) as caught:
        filled({"x": stored, "y": 1}, {"x": like, "y": 1})
    error = caught.value
    assert "x" in str(error)
    assert len(error.mismatched) == 1 or error.missing
    assert len(str(error)) < 2000


def test_shapes_and_dtypes_that_differ_are_told_in_one_error():
    stored = {
        "a": np.zeros((2, 3)),
        "b": np.zeros(3, "f4"),
        "c": np.zeros(3),
        "d": np.zeros(2, ">i4"),
        "e": 1,
        "f": np.zeros(2),
    }
    like = {"a": np.zeros((3, 2)), "b": np.zeros(3, "f8"), "c": np.zeros(3), "d": np.zeros(2, "<i4"), "e": "x", "g": 1}
    with pytest.raises(ptc.StructureMismatchError) as caught:
        filled(stored, like)
    error = caught.value
    assert error.missing == ("g",)
    assert error.unexpected == ("f",)
    assert [line.partition(":")[0] for line in error.mismatched] == ["a", "b", "d", "e"]
    assert "the template has float64[3, 2], the checkpoint float64[2, 3]" in str(error)
    assert isinstance(error, ValueError)


def test_a_missing_leaf_comes_with_a_suggestion():
    with pytest.raises(
        ptc.StructureMismatchError, match=r"missing +params/kernel \(did you mean params/kernal\?\)"
    ) as caught:
        filled({"params": {"kernal": 1, "bias": 2}}, {"params": {"kernel": 0, "bias": 0}})
    assert caught.value.missing == ("params/kernel",)
    assert caught.value.unexpected == ("params/kernal",)
    assert "strict=False" in str(caught.value)


def test_many_differences_are_shortened_in_the_message_and_complete_in_the_lists():
    with pytest.raises(ptc.StructureMismatchError, match="and 80 more missing") as caught:
        filled({f"b{i}": i for i in range(100)}, {f"a{i}": i for i in range(100)})
    assert len(caught.value.missing) == len(caught.value.unexpected) == 100
    assert len(str(caught.value)) < 6000


def test_if_not_strict_the_template_keeps_what_is_missing_and_nothing_is_unexpected():
    kept = np.zeros(2)
    back = filled({"a": 1, "more": np.ones(5)}, {"a": 0, "b": kept, "c": [2]}, strict=False)
    assert_same({"a": 1, "b": kept, "c": [2]}, back)
    assert back["b"] is kept
    with pytest.raises(ptc.StructureMismatchError):
        filled({"a": np.ones(2)}, {"a": np.ones(3)}, strict=False)


def test_with_a_selection_the_rest_of_the_template_stays():
    stored = {"params": {"w": np.ones(2), "b": np.ones(1)}, "opt": np.ones(9), "step": 5}
    like = {"params": {"w": np.zeros(2), "b": np.zeros(1)}, "step": 0, "other": "mine"}
    back = filled(stored, like, select="params/**")
    assert_same({"params": {"w": np.ones(2), "b": np.ones(1)}, "step": 0, "other": "mine"}, back)
    assert_same(like | {"step": 5}, filled(stored, like, select=["step"]))
    with pytest.raises(ptc.StructureMismatchError, match="unexpected +opt"):
        filled(stored, like, select=["opt", "step"])


def test_only_what_the_template_wants_is_read():
    recorder = RecordingSource(ptc.encode({"a": np.arange(10_000), "b": np.arange(20_000)}, compression="none"))
    checkpoint = ptc.Checkpoint(recorder, None)
    recorder.ranges.clear()
    checkpoint.restore(like={"a": np.zeros(10_000, np.int64)}, strict=False)
    assert sum(high - low for low, high in recorder.ranges) == 80_000


def test_leaves_tied_in_checkpoint_and_template_stay_tied_and_others_do_not():
    tied = np.arange(5)
    mine, other = np.zeros(5, int), np.zeros(5, int)
    both = filled({"a": tied, "b": tied}, {"a": mine, "b": mine})
    assert both["a"] is both["b"]
    apart = filled({"a": tied, "b": tied}, {"a": mine, "b": other})
    assert apart["a"] is not apart["b"]
    assert not np.shares_memory(apart["a"], apart["b"])
    assert np.array_equal(apart["a"], tied)
    assert np.array_equal(apart["b"], tied)
    untied = filled({"a": tied, "b": tied.copy()}, {"a": mine, "b": mine})
    assert np.array_equal(untied["b"], tied)


@pytest.mark.parametrize("layout", ["C", "F"])
def test_values_have_the_shape_and_dtype_of_the_template_in_any_memory_order(layout):
    stored = np.arange(600.0).reshape(20, 30)
    back = filled({"x": np.asarray(stored, order=layout)}, {"x": np.zeros((20, 30))})
    assert np.array_equal(back["x"], stored)


def test_empty_containers_are_leaves_and_empty_objects_of_any_kind_fit_each_other():
    tree = {
        "a": [],
        "b": {},
        "c": (),
        "d": collections.OrderedDict(),
        "e": some.Empty(),
        "f": some.NoFields(),
        "g": set(),
    }
    assert_same(tree, filled(tree, tree))
    assert_same({"a": some.Empty()}, filled({"a": {}}, {"a": some.Empty()}))
    with pytest.raises(ptc.StructureMismatchError):
        filled({"a": []}, {"a": [1]})


def test_the_root_can_be_a_template():
    assert_same(np.ones(3), filled(np.ones(3), np.zeros(3)))
    assert_same(5, filled(5, 0))
    with pytest.raises(ptc.StructureMismatchError, match="the root"):
        filled(np.ones(3), np.zeros(4))


def test_enum_members_of_the_template_give_their_class():
    tree = {"mode": some.Mode.READ, "color": some.Color.BLUE}
    assert_same(tree, filled(tree, {"mode": some.Mode.WRITE, "color": some.Color.RED}))
    with pytest.raises(ptc.StructureMismatchError, match="color"):
        filled({"color": 1}, {"color": some.Color.RED})


def test_a_template_that_holds_something_unknown_is_refused():
    with pytest.raises(ptc.UnsupportedTypeError, match="template holds a builtins.object"):
        filled({"a": 1}, {"a": object()})


def test_a_template_that_contains_itself_is_refused():
    like: list[Any] = [1]
    like.append(like)
    with pytest.raises(ptc.PytreeckptError):
        filled([1, [2]], like)


def test_types_says_how_leaves_inside_of_values_are_rebuilt():
    tree = {"a": (some.Color.RED, some.Point(1, 2))}
    assert difference(tree, filled(tree, {"a": (some.Color.BLUE, some.Point(0, 0))})) is None


# Filling in place.


def layouts(shape, dtype):
    """Arrays of one shape in memory of every order: whole, transposed, backwards, every second item, of one axis.

    Not by `np.zeros`, which does not keep every dtype (timedeltas without a unit lose their byte order).
    """
    yield np.ndarray(shape, dtype)
    yield np.ndarray(shape[::-1], dtype).T
    yield np.ndarray(shape, dtype)[(*(slice(None, None, -1) for _ in shape), ...)]
    yield np.ndarray([2 * extent for extent in shape], dtype)[(*(slice(None, None, 2) for _ in shape), ...)]
    yield np.ndarray([*shape, 3], dtype)[..., 1]


@given(some.arrays(), st.sampled_from(["auto", "none"]))
def test_writable_arrays_are_filled_where_they_are_whatever_their_memory_order(array, compression):
    file = ptc.encode([array], compression=compression)
    for target in layouts(array.shape, array.dtype):
        strides = target.strides
        (back,) = ptc.decode(file, like=[target])
        assert back is target
        assert item_bytes(back) == item_bytes(array)
        assert back.strides == strides


def test_large_arrays_are_filled_chunk_by_chunk(tmp_path):
    array = np.random.default_rng(0).standard_normal((1500, 1000))
    for stored in (array, np.asfortranarray(array)):
        ptc.save({"w": stored}, tmp_path / "x")
        for target in (np.empty_like(array), np.empty_like(array, order="F")):
            assert ptc.restore(tmp_path / "x", like={"w": target})["w"] is target
            assert np.array_equal(target, array)


def test_what_must_not_be_written_to_is_left_and_a_fresh_array_given():
    frozen = np.zeros(1000)
    frozen.flags.writeable = False
    values = np.arange(1000.0)
    for target in (frozen, np.broadcast_to(np.zeros(1), 1000)):
        (back,) = ptc.decode(ptc.encode([values]), like=[target])
        assert back is not target
        assert np.array_equal(back, values)
        assert not target.any()
    sliding = np.lib.stride_tricks.as_strided(np.zeros(1010), (100, 10), (8, 8), writeable=True)
    (back,) = ptc.decode(ptc.encode([values.reshape(100, 10)]), like=[sliding])
    assert back is not sliding
    assert np.array_equal(back, values.reshape(100, 10))


def test_templates_that_overlap_are_not_filled_over_each_other():
    base = np.zeros(2000)
    one, two = np.arange(1500.0), -np.arange(1500.0)
    back = filled([one, two], [base[:1500], base[500:]])
    assert np.array_equal(back[0], one)
    assert np.array_equal(back[1], two)
    same = np.zeros(1500)
    back = filled([one, two], [same, same])
    assert np.array_equal(back[0], one)
    assert np.array_equal(back[1], two)
    # Side by side they may lie.
    side = np.zeros((2, 1500))
    back = filled([one, two], [side[0], side[1]])
    assert np.array_equal(side, [one, two])
    assert back[0].base is side


def test_ties_of_the_template_and_of_the_checkpoint_are_kept():
    one = np.arange(1500.0)
    shared = np.zeros(1500)
    # One array, and one place in memory under two objects.
    back = filled([one, one], [shared, shared[:]])
    assert back[0] is shared
    assert np.shares_memory(back[0], back[1])
    assert np.array_equal(back[1], one)
    # One array in the checkpoint, two in the template.
    back = filled([one, one], [np.zeros(1500), np.zeros(1500)])
    assert not np.shares_memory(*back)
    assert all(np.array_equal(array, one) for array in back)
    # One filled, one fresh.
    frozen = np.zeros(1500)
    frozen.flags.writeable = False
    back = filled([one, one], [np.zeros(1500), frozen])
    assert not np.shares_memory(*back)
    assert all(np.array_equal(array, one) for array in back)


def test_nothing_is_touched_when_the_structure_does_not_fit():
    target = {"a": np.zeros(1500), "b": np.zeros(2)}
    with pytest.raises(ptc.StructureMismatchError):
        filled({"a": np.ones(1500), "b": np.ones(3)}, target)
    assert not target["a"].any()


def test_damage_is_reported_with_what_it_means_for_the_template():
    file = bytearray(ptc.encode([np.random.default_rng(0).standard_normal(1000)], compression="none"))
    file[1000] ^= 1
    with pytest.raises(ptc.CorruptionError, match=r"partly overwritten") as caught:
        ptc.decode(file, like=[np.zeros(1000)])
    assert caught.value.rule == "C-8"
    with pytest.raises(ptc.CorruptionError) as caught:
        ptc.decode(file)
    assert "overwritten" not in str(caught.value)


def test_a_mapped_file_fills_a_template_too(tmp_path):
    ptc.save({"w": np.arange(1500.0)}, tmp_path / "x", compression="none")
    target = np.zeros(1500)
    assert ptc.restore(tmp_path / "x", like={"w": target}, mmap=True)["w"] is target
    assert np.array_equal(target, np.arange(1500.0))
