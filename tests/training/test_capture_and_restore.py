"""What any framework's trainings have in common, with objects made up for it: all or nothing, in order, and told."""

import threading
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt import FormatVersionError, StructureMismatchError, UnsupportedTypeError, testing
from pytreeckpt.training import (
    Differences,
    Header,
    Part,
    Restored,
    Role,
    by_rank,
    capture_objects,
    check_names,
    class_name,
    copied,
    differing,
    header_of,
    leaves_for,
    of_rank,
    restore_objects,
    stateful_role,
)


@dataclass
class Box:
    """An object with a state by names."""

    state: dict[str, Any]
    rank: int = 0
    log: list[str] = field(default_factory=list)


class Dial:
    """Another kind of object."""

    def __init__(self, at=0):
        self.at = at


def _plan_box(name, box, state):
    found = dict(state)
    differences = differing(name, box.state, found)
    differences.notes += [f"{name} is full"] if len(found) > 2 else []

    def apply():
        box.log.append(name)
        box.state.update({key: value for key, value in found.items() if key in box.state})
        return box

    return Part(differences, apply, box.rank)


def _plan_dial(name, dial, state):
    mismatched = [f"{name}: the dial has no {state}"] if state > 9 else []
    return Part(Differences(mismatched=mismatched), lambda: Dial(state))


ROLES = [
    Role("box", lambda value: isinstance(value, Box), lambda box: dict(box.state), _plan_box),
    Role("dial", lambda value: isinstance(value, Dial), lambda dial: dial.at, _plan_dial),
    Role(None, lambda value: type(value) is set, lambda value: value, lambda _n, value, state: _filled(value, state)),
]


def _filled(value, state):
    return Part(Differences(), lambda: value.update(state) or value)


def captured(**objects):
    return capture_objects(objects, ROLES, framework="made up", version="1.0")


def restore(tree, *, strict=True, more=None, **targets):
    return restore_objects(tree, targets, ROLES, strict=strict, more=more)


STATES = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 9), max_size=4)
NAMES = st.text("xyz", min_size=1, max_size=3)


# Capturing and restoring.


@given(st.dictionaries(NAMES, STATES), st.dictionaries(NAMES.map(str.upper), testing.trees()))
def test_objects_and_plain_values_come_back_by_their_names(states, values):
    tree = captured(**{name: Box(state) for name, state in states.items()}, **values)
    tree = ptc.decode(ptc.encode(tree), types=testing.TYPES)
    targets = {name: Box(dict.fromkeys(state)) for name, state in states.items()}
    restored = restore(tree, **targets)
    assert {name: box.state for name, box in targets.items()} == states
    assert set(restored) == {*states, *values}
    for name in states:
        assert restored[name] is targets[name]
    for name, value in values.items():
        assert testing.identical(value, restored[name]) == []
    assert (restored.missing, restored.unexpected, restored.skipped) == ((), (), ())


@given(st.dictionaries(NAMES, STATES), st.dictionaries(NAMES, STATES), st.booleans())
def test_what_only_one_of_both_has_is_told_and_passes_unless_strict(saved, wanted, strict):
    tree = captured(**{name: Box(state) for name, state in saved.items()})
    targets = {name: Box(dict.fromkeys(state)) for name, state in wanted.items()}
    both = saved.keys() & wanted.keys()
    missing = {name for name in wanted if name not in saved}
    missing |= {f"{name}/{key}" for name in both for key in wanted[name].keys() - saved[name].keys()}
    unexpected = {f"{name}/{key}" for name in both for key in saved[name].keys() - wanted[name].keys()}
    nothing_there = bool(wanted) and not both
    if nothing_there or (strict and (missing or unexpected)):
        with pytest.raises(StructureMismatchError, match="nothing was changed") as caught:
            restore(tree, strict=strict, **targets)
        assert (set(caught.value.missing), set(caught.value.unexpected)) == (missing, unexpected)
        assert not any(box.log for box in targets.values())
        return
    restored = restore(tree, strict=strict, **targets)
    assert (set(restored.missing), set(restored.unexpected)) == (missing, unexpected)
    assert set(restored.skipped) == saved.keys() - wanted.keys()
    for name, box in targets.items():
        assert box.state == {key: saved.get(name, {}).get(key) for key in wanted[name]}


@given(st.lists(st.integers(-3, 3), max_size=6))
def test_parts_are_applied_by_rank_and_then_in_order(ranks):
    log: list[str] = []
    tree = captured(**{f"n{place}": Box({}) for place in range(len(ranks))})
    restore(tree, **{f"n{place}": Box({}, rank, log) for place, rank in enumerate(ranks)})
    assert log == [f"n{place}" for place in sorted(range(len(ranks)), key=lambda place: ranks[place])]


def test_a_mismatch_lets_nothing_pass_and_changes_nothing():
    tree = captured(box=Box({"a": 1}), dial=Dial(10))
    box = Box({"a": 0})
    for strict in (True, False):
        with pytest.raises(StructureMismatchError, match="dial: the dial has no 10") as caught:
            restore(tree, strict=strict, box=box, dial=Dial())
        assert "strict" not in str(caught.value)
    assert box == Box({"a": 0})


def test_what_takes_the_place_of_an_object_is_in_the_result():
    dial = Dial(1)
    restored = restore(captured(dial=Dial(5), plain={1, 2}), dial=dial, plain={7})
    assert restored["dial"].at == 5
    assert dial.at == 1
    assert restored["plain"] == {1, 2, 7}


def test_notes_are_told():
    assert restore(captured(box=Box({"a": 1, "b": 2, "c": 3})), box=Box(dict.fromkeys("abc"))).notes == ("box is full",)


def test_other_things_are_restored_with_the_objects_or_not_at_all():
    tree, box, log = captured(box=Box({"a": 1})), Box({"a": 0}), []
    bad = Part(Differences(mismatched=["more: bad"]), lambda: log.append("bad"))
    with pytest.raises(StructureMismatchError, match="more: bad"):
        restore(tree, box=box, more={"more": lambda: bad})
    assert box.state == {"a": 0}
    with pytest.raises(StructureMismatchError, match="more: what was saved is no state of more: KeyError"):
        restore(tree, box=box, more={"more": lambda: {}["x"]})
    restored = restore(tree, box=box, more={"more": lambda: Part(Differences(), lambda: log.append("good"), -1)})
    assert (log, list(restored), box.state) == (["good"], ["box"], {"a": 1})


# Groups.


@given(st.dictionaries(NAMES, STATES, min_size=1), st.booleans())
def test_dicts_and_lists_of_objects_are_restored_each(states, as_list):
    def group(values):
        return list(values.values()) if as_list else values

    tree = captured(group=group({name: Box(state) for name, state in states.items()}))
    targets = group({name: Box(dict.fromkeys(state)) for name, state in states.items()})
    restored = restore(ptc.decode(ptc.encode(tree)), group=targets)["group"]
    assert type(restored) is type(targets)
    for key, state in enumerate(states.values()) if as_list else states.items():
        assert restored[key] is targets[key]
        assert targets[key].state == state


def test_members_that_only_one_group_has_are_missing_or_unexpected():
    tree = captured(group={"a": Box({"k": 1}), "b": Dial(1)})
    targets = {"a": Box({"k": 0}), "c": Dial(2)}
    with pytest.raises(StructureMismatchError) as caught:
        restore(tree, group=targets)
    assert (caught.value.missing, caught.value.unexpected) == (("group/c",), ("group/b",))
    assert targets["a"].state == {"k": 0}
    restored = restore(tree, strict=False, group=targets)
    assert list(restored["group"]) == ["a"]
    assert targets["a"].state == {"k": 1}


def test_a_group_and_an_object_are_not_each_other():
    for saved, target, message in (
        ([Box({})], Box({}), "it: this is box, the checkpoint has several objects"),
        (Box({}), Dial(), "it: this is dial, the checkpoint has box"),
        ([Box({})], [Dial()], "it/0: this is dial, the checkpoint has box"),
        ({1, 2}, Dial(), "it: this is dial, the checkpoint has a plain value, such as a state dict"),
        (Box({}), {3}, "it: this is a plain value, such as a state dict, the checkpoint has box"),
    ):
        with pytest.raises(StructureMismatchError, match=message):
            restore(captured(it=saved), it=target)


def test_objects_and_plain_values_are_not_mixed():
    with pytest.raises(UnsupportedTypeError, match="it: 1 is an object with a state and 0 is a plain value"):
        captured(it=[3, Box({})])


@pytest.mark.parametrize("target", [0, 1.5, "text", b"", (), [], None, True, np.float32(1)], ids=repr)
def test_what_nothing_can_be_put_into_is_passed_by_and_the_result_has_what_was_saved(target):
    tree = captured(step={"a": [3]})
    restored = restore(tree, step=target)
    assert restored["step"] == {"a": [3]}
    restored["step"]["a"].append(4)
    assert tree["step"] == {"a": [3]}


def test_a_value_and_a_class_are_no_object():
    for target, message in (
        (None, "box: this is None, the checkpoint has several objects"),
        (5, "box: this is a int, the checkpoint has several objects"),
        (Box, "box: this is the class Box and no object of it, the checkpoint has several objects"),
    ):
        with pytest.raises(StructureMismatchError, match=message):
            restore(captured(box=[Box({})]), box=target)
    with pytest.raises(StructureMismatchError, match="box: this is a Thread, the checkpoint has a plain value"):
        restore(captured(box=3), box=threading.Thread())


def test_what_an_object_does_not_take_says_what_was_changed_before():
    tree = captured(first=Box({}), second=Box({}))
    with pytest.raises(
        StructureMismatchError, match="second: .* AttributeError: .* Changed by then: first; "
    ) as caught:
        restore(tree, first=Box({}), second=Box({}, 1, None))
    assert isinstance(caught.value.__cause__, AttributeError)


# The result.


def test_the_result_is_a_mapping_that_says_what_to_do_about_what_it_has_not():
    tree = captured(box=Box({"a": 1}), dial=Dial(3), step=5)
    restored = restore(tree, dial=Dial())
    assert isinstance(restored, Mapping)
    assert (list(restored), len(restored)) == (["step", "dial"], 2)
    assert restored.get("box") is None
    assert "step" in restored
    with pytest.raises(KeyError, match="box is an object of the checkpoint: give one with box="):
        restored["box"]
    with pytest.raises(KeyError, match="steps; the checkpoint has step, dial, box"):
        restored["steps"]
    with pytest.raises(KeyError, match="x; the checkpoint has nothing"):
        Restored({})["x"]
    assert str(restored) == "restored: step, dial\nskipped: box"
    told = Restored({}, ("a", "b"), ("c",), (), ("a note",))
    assert str(told) == "restored: nothing\nmissing: a, b\nunexpected: c\nnote: a note"


def test_names_that_are_no_texts_do_not_matter_to_the_result():
    restored = restore({**captured(step=1), 3: 4, None: 5})
    assert restored[3] == 4
    assert "step, 3, None" in str(restored)
    with pytest.raises(KeyError, match="3, None"):
        restored["x"]


# The header.


@given(testing.trees())
def test_nothing_but_a_captured_tree_has_a_header(tree):
    assert header_of(tree) is None
    assert header_of({"training": tree}) is None
    assert leaves_for({"training": tree}, [], rng=True) is None


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "layout": st.just(1) | testing.trees(),
            "framework": st.just("torch") | testing.trees(),
            "version": st.just("1") | testing.trees(),
            "roles": st.dictionaries(st.text() | st.integers(), st.text() | testing.trees(), max_size=3)
            | testing.trees(),
        },
    )
)
def test_a_header_is_read_or_is_none_or_of_a_newer_layout(stored):
    try:
        header = header_of({"training": stored})
    except FormatVersionError as error:
        assert error.rule == "layout"
        assert stored["layout"] != 1
        return
    if header is not None:
        assert header.as_tree() == stored
        assert all(isinstance(role, str | dict | list) for role in header.roles.values())


def test_a_newer_layout_is_an_error_that_says_so():
    tree = captured(n=1)
    tree["training"]["layout"] = 2
    for function in (header_of, restore, lambda it: leaves_for(it, [], rng=True)):
        with pytest.raises(FormatVersionError, match="layout 2, and this pytreeckpt knows 1"):
            function(tree)


def test_the_header_says_what_each_object_is():
    tree = captured(box=Box({}), group={"a": Box({}), "b": Dial()}, items=[Dial()], step=3)
    assert header_of(tree) == Header(
        "made up", "1.0", {"box": "box", "group": {"a": "box", "b": "dial"}, "items": ["dial"]}
    )


def test_the_name_of_the_header_is_taken():
    with pytest.raises(ValueError, match="'training' is what the header"):
        captured(training=Box({}))
    with pytest.raises(ValueError, match="give the object another name"):
        restore(captured(), training=Box({}))
    check_names(["rng", "train"])


@pytest.mark.parametrize("tree", [None, {}, [], {"model": 1}, {"training": {"layout": 1}}])
def test_a_tree_that_nobody_captured_is_refused(tree):
    with pytest.raises(StructureMismatchError, match="not made by capture"):
        restore(tree, box=Box({}))


@given(st.sets(st.sampled_from(["box", "dial", "other"])), st.booleans())
def test_only_what_is_needed_is_selected(names, rng):
    tree = {**captured(box=Box({"a": 1}), dial=Dial(2), n={"x": 3}), "rng": {"ranks": 4}}
    needed = leaves_for(tree, names, rng=rng)
    assert needed is not None
    left = ptc.decode(ptc.encode(tree), select=needed)
    assert set(left) == {"training", "n"} | (names & {"box", "dial"}) | ({"rng"} if rng else set())
    assert set(restore(left, **{name: Box({"a": 0}) for name in names & {"box"}}).skipped) == {"box", "dial"} - (
        names & {"box"}
    )


# Trees of others.


JUNK = st.sampled_from([None, 3, "x", [], {}, {"a": None}, [1], 1.5, np.zeros(2)])


@given(JUNK, JUNK, st.sampled_from(["box", "dial", ["dial"], {"a": "box"}, "other", None]), st.booleans())
def test_a_state_that_is_none_is_a_mismatch_and_changes_nothing(state, other, role, strict):
    tree = captured(first=Box({"a": 1}), it=Box({}), group=[Box({})])
    tree |= {"it": state, "group": other}
    tree["training"]["roles"]["it"] = role
    targets = {"first": Box({"a": 0}), "it": Box({"a": 0}), "group": [Box({"a": 0})]}
    try:
        restore(tree, strict=strict, **targets)
    except ptc.PytreeckptError:
        assert targets["first"].state == targets["it"].state == {"a": 0}
        assert not targets["first"].log


def test_an_error_of_our_own_passes_as_it_is():
    def refuse(*_arguments):
        raise UnsupportedTypeError("no such state")

    roles = [Role("box", lambda value: isinstance(value, Box), lambda box: box.state, refuse)]
    with pytest.raises(UnsupportedTypeError, match="no such state"):
        restore_objects(captured(box=Box({})), {"box": Box({})}, roles, strict=True)


# Ranks.


@given(st.integers(0, 3), st.integers(1, 4), st.sets(st.integers(0, 3), min_size=1), st.integers(1, 4))
def test_each_rank_gets_its_own_state_or_the_reason_why_not(rank, size, ranks, saved_size):
    stored = by_rank({each: {"state": each} for each in ranks}, world_size=saved_size)
    differences = Differences()
    mine = of_rank("rng", stored, rank=rank, world_size=size, differences=differences)
    if saved_size == size and rank in ranks:
        assert mine == {"state": rank}
        assert not differences.mismatched
    else:
        assert mine is None
        assert "rng=False" in differences.mismatched[0]
        assert (f"{saved_size} processes were at work, and now {size} are" in differences.mismatched[0]) == (
            saved_size != size
        )


# Objects with two methods.


class Counting:
    def __init__(self):
        self.state = {"n": [0]}

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


class AlsoCounting(Counting):
    pass


def test_a_state_dict_is_kept_apart_from_the_object_on_both_ways():
    role = stateful_role("state_dict", "load_state_dict")
    assert not role.matches({})
    assert not role.matches(Dial())
    assert not role.matches(type("Half", (), {"state_dict": print, "load_state_dict": 3})())
    saved, target = Counting(), AlsoCounting()
    assert role.matches(saved)
    tree: Any = role.capture(saved)
    saved.state["n"][0] = 5
    part = role.plan("it", target, tree)
    assert part.differences.notes == [f"it is a {class_name(target)}, and was a {class_name(saved)}"]
    assert part.apply() is target
    assert target.state == {"n": [0]}
    target.state["n"].append(1)
    assert tree["state"] == {"n": [0]}


# Copies.


@given(testing.trees())
def test_a_copy_is_identical(tree):
    assert testing.identical(tree, copied(tree)) == []


def test_a_copy_shares_leaves_and_no_containers():
    array, leaf = np.ones(2), object()
    ordered: Any = OrderedDict(b=[array], a=(leaf,))
    ordered._metadata = {"version": 1}
    tree = {
        "ordered": ordered,
        "counter": Counter(a=2),
        "default": defaultdict(list, x=[1]),
        "set": {1, 2},
        "bytes": bytearray(b"ab"),
    }
    new = copied(tree)
    assert new == tree
    assert [type(each) for each in new.values()] == [type(each) for each in tree.values()]
    assert all(new[name] is not tree[name] for name in tree)
    assert new["ordered"]["b"][0] is array
    assert new["ordered"]["a"][0] is leaf
    assert new["ordered"]._metadata == {"version": 1}
    assert list(new["ordered"]) == ["b", "a"]
    assert new["default"].default_factory is list
    new["ordered"]["b"].append(1)
    new["default"]["x"].append(2)
    new["set"].add(3)
    new["bytes"].append(1)
    new["counter"]["b"] = 1
    assert tree["ordered"]["b"] == [array]
    assert tree["default"]["x"] == [1]
    assert (tree["set"], tree["bytes"], tree["counter"]) == ({1, 2}, b"ab", {"a": 2})
