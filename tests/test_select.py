import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt import UNSELECTED, DictKey, Index
from tests import strategies as some
from tests.exact import assert_same
from tests.sources import RecordingSource, open_bytes

TREE = {
    "params": {
        "layer_0": {"kernel": np.ones(3), "bias": np.zeros(2)},
        "layer_1": {"kernel": np.full(3, 2.0), "bias": np.ones(2)},
    },
    "opt": [np.arange(4), (1, "x"), some.Point(np.arange(2), 5)],
    "step": 7,
    "empty": {},
    "sets": [{1, 2}, {3}],
    1: "one",
    "a.b": {"c": 1},
}

CASES = {
    "params/*/kernel": {"params": {"layer_0": {"kernel": np.ones(3)}, "layer_1": {"kernel": np.full(3, 2.0)}}},
    "params/layer_1": {"params": {"layer_1": {"kernel": np.full(3, 2.0), "bias": np.ones(2)}}},
    "**/bias": {"params": {"layer_0": {"bias": np.zeros(2)}, "layer_1": {"bias": np.ones(2)}}},
    "step": {"step": 7},
    "empty": {"empty": {}},
    "1": {1: "one"},
    "a.b": {"a.b": {"c": 1}},
    "opt[0]": {"opt": [np.arange(4), UNSELECTED, UNSELECTED]},
    "opt[1][1]": {"opt": [UNSELECTED, (UNSELECTED, "x"), UNSELECTED]},
    "opt[2]/.x": {"opt": [UNSELECTED, UNSELECTED, some.Point(np.arange(2), UNSELECTED)]},
    "opt[*][*]": {"opt": [UNSELECTED, (1, "x"), UNSELECTED]},
    "sets[1]": {"sets": [UNSELECTED, {3}]},
    "**": TREE,
    "": TREE,
}


@pytest.mark.parametrize(("pattern", "expected"), CASES.items(), ids=list(CASES))
def test_a_glob_selects_leaves_and_leaves_the_rest_out(pattern, expected):
    file = ptc.encode(TREE)
    assert_same(expected, ptc.decode(file, select=pattern, types=[some.Point]))
    with open_bytes(file) as checkpoint:
        assert_same(expected, checkpoint.restore(select=pattern, types=[some.Point]))


def test_several_globs_select_what_any_of_them_does():
    expected = {"params": {"layer_0": {"bias": np.zeros(2)}}, "step": 7}
    for patterns in (
        ["params/layer_0/bias", "step"],
        ("step", "params/layer_0/bias"),
        {"step": 0, "params/layer_0/bias": 0},
    ):
        assert_same(expected, ptc.decode(ptc.encode(TREE), select=patterns))


def test_a_predicate_selects_by_typed_paths():
    seen = []

    def predicate(path):
        seen.append(path)
        return path[-1] == DictKey("bias") or path[-1:] == (Index(0),)

    expected = {
        "params": {"layer_0": {"bias": np.zeros(2)}, "layer_1": {"bias": np.ones(2)}},
        "opt": [np.arange(4), (1, UNSELECTED), UNSELECTED],
        "sets": [{1, 2}, UNSELECTED],
    }
    assert_same(expected, ptc.decode(ptc.encode(TREE), select=predicate))
    assert ptc.Path([DictKey(1)]) in seen
    assert ptc.Path([DictKey("empty")]) in seen


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ("params/*/kernl", "'params/\\*/kernl' matches no leaf.*params/layer_[01]/kernel"),
        ("stp", "'stp' matches no leaf.*step"),
        (["step", "stp"], "'stp' matches no leaf"),
        ([], "matches no leaf"),
        (lambda path: False, "select matches no leaf"),
        ("'1'", "matches no leaf"),
    ],
)
def test_what_selects_nothing_is_an_error_that_says_what_there_is(select, message):
    with pytest.raises(ptc.StructureMismatchError, match=message) as caught:
        ptc.decode(ptc.encode(TREE), select=select)
    assert "there is " in str(caught.value)


def test_a_glob_that_matches_nothing_is_ignored_if_not_strict_unless_all_do():
    file = ptc.encode(TREE)
    assert_same({"step": 7}, ptc.decode(file, select=["step", "stp"], strict=False))
    with pytest.raises(ptc.StructureMismatchError):
        ptc.decode(file, select=["stp"], strict=False)


def test_a_text_that_is_no_pattern_is_a_path_error():
    with pytest.raises(ptc.PathError, match="pattern"):
        ptc.decode(ptc.encode(TREE), select="a[x]")


def test_only_the_selected_arrays_are_read():
    recorder = RecordingSource(ptc.encode({"a": np.arange(10_000), "b": np.arange(20_000)}, compression="none"))
    checkpoint = ptc.Checkpoint(recorder, None)
    recorder.ranges.clear()
    checkpoint.restore(select="a")
    assert sum(high - low for low, high in recorder.ranges) == 80_000


def test_an_array_that_stands_at_several_places_is_selected_at_each():
    array = np.arange(5)
    file = ptc.encode({"a": array, "b": array, "c": [array]})
    tree = ptc.decode(file, select=["a", "c"])
    assert list(tree) == ["a", "c"]
    assert tree["a"] is tree["c"][0]


def test_the_root_can_be_a_leaf_that_is_selected():
    assert ptc.decode(ptc.encode(5), select="**") == 5
    assert ptc.decode(ptc.encode(5), select="") == 5
    assert ptc.decode(ptc.encode([]), select=lambda path: not path) == []


def test_objects_that_are_one_value_are_selected_as_a_whole():
    tree = {
        "d": np.dtype("f4"),
        "r": range(3),
        "b": bytearray(b"x"),
        "e": some.Color.RED,
        "s": np.array(["a"], np.dtypes.StringDType()),
    }
    for key, value in tree.items():
        assert_same({key: value}, ptc.decode(ptc.encode(tree), select=key, types=some.TYPES))


def test_an_object_that_is_one_value_is_selected_with_the_arrays_in_it():
    tree = {"s": slice(np.arange(500), [np.ones(3), np.float32(1)], None), "w": np.zeros(4)}
    assert_same({"s": tree["s"]}, ptc.decode(ptc.encode(tree), select="s"))
    with pytest.raises(ptc.UnsupportedTypeError, match="^s: .* without like="):
        ptc.decode(ptc.encode(tree), like=tree)
    assert_same({"w": tree["w"]}, ptc.decode(ptc.encode(tree), like={"w": np.ones(4)}, select="w", strict=False))


@given(some.TREES)
def test_selecting_everything_gives_everything(tree):
    file = ptc.encode(tree)
    assert_same(tree, ptc.decode(file, select="**", types=some.TYPES))
    assert_same(tree, ptc.decode(file, select=lambda path: True, types=some.TYPES))


@given(some.trees_with_sharing() | some.TREES, st.randoms(use_true_random=False))
def test_the_leaves_of_a_selection_are_those_that_were_selected(tree, rng):
    file = ptc.encode(tree)
    with open_bytes(file) as checkpoint:
        paths = [path for path, _ in checkpoint.leaves()]
        chosen = set(rng.sample(range(len(paths)), rng.randint(1, len(paths))))
        texts = {str(paths[place]) for place in chosen}
        part = checkpoint.restore(select=lambda path: str(path) in texts, types=some.TYPES)
        whole = checkpoint.restore(types=some.TYPES)
    with open_bytes(ptc.encode(whole)) as checkpoint:
        from pytreeckpt.navigation import descend

        for place in chosen:
            # What was selected is where it was.
            expected, got = descend(whole, paths[place]), descend(part, paths[place])
            assert_same(expected, got)


@given(some.TREES)
def test_every_leaf_can_be_selected_by_the_text_of_its_path(tree):
    with open_bytes(ptc.encode(tree)) as checkpoint:
        for path, _ in list(checkpoint.leaves())[:5]:
            checkpoint.restore(select=str(path))
