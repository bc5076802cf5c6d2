"""Objects: rebuilt for those who give their classes, inert records for all others, and the same bytes again."""

import argparse
import collections
import copy
import dataclasses
import enum
import pathlib
import pickle
import types
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given

import pytreeckpt as ptc
from pytreeckpt import expand
from tests import strategies as some
from tests.exact import assert_same
from tests.forge import (
    DATACLASS,
    ENUM,
    NAMEDTUPLE,
    OBJECT,
    PYTREE,
    RECORD,
    TUPLE,
    WRAPPER,
    ArrayRow,
    Tree,
    file_of,
    leaf,
    record,
)


def again(tree, **options):
    return ptc.decode(ptc.encode(tree), **options)


POINT = some.Point(np.arange(3), {"a": 1})
STATE = some.State(5, [some.Frozen(1.5, other=None)])


def test_classes_that_the_caller_gives_are_rebuilt():
    tree = [
        POINT,
        STATE,
        some.Color.RED,
        some.Level.HIGH,
        some.Mode.READ | some.Mode.WRITE,
        some.Text.A,
        some.Empty(),
        some.NoFields(),
    ]
    assert_same(tree, again(tree, types=some.TYPES))
    assert_same(tree, again(tree, types=iter(some.TYPES)))


def test_a_namedtuple_of_an_unknown_class_is_a_tuple_with_its_fields():
    point = again(POINT)
    assert isinstance(point, tuple)
    assert isinstance(point, ptc.NamedTupleRecord)
    x, y = point
    assert point[0] is point.x is x
    assert point.y == y == {"a": 1}
    assert point._fields == ("x", "y")
    assert point._asdict() == {"x": x, "y": y}
    assert point._replace(y=7)[1] == 7
    assert type(point._replace(y=7)) is type(point)
    assert type(point)(1, 2) == (1, 2)
    assert repr(type(point)(1, 2)) == "<tests.strategies:Point: x=1, y=2>"
    with pytest.raises(ValueError, match="no fields"):
        point._replace(z=1)
    with pytest.raises(TypeError, match="2 fields, not 3"):
        type(point)(1, 2, 3)
    with pytest.raises(AttributeError):
        point.z


def test_namedtuples_of_one_type_are_of_one_class():
    a, b = again([some.Point(1), some.Point(2)])
    assert type(a) is type(b)
    assert type(a) is type(again(some.Point(3)))
    assert type(a) is not type(again(some.Empty()))


def test_a_record_has_the_fields_and_no_behaviour():
    state = again(STATE)
    assert type(state) is ptc.Record
    assert state.step == state["step"] == 5
    assert list(state) == ["step", "params"]
    assert len(state) == 2
    assert state.params[0].value == 1.5
    assert state == again(STATE)
    assert state != again(some.State(6))
    assert state != 5
    assert len({again(some.State(1)), again(some.State(1)), again(some.State(2))}) == 2
    assert repr(again(some.State(1, None))) == "<tests.strategies:State: step=1, params=None>"
    assert repr(again(some.NoFields())) == "<tests.strategies:NoFields>"
    with pytest.raises(AttributeError, match="has no field 'stp'; it has step, params"):
        state.stp
    with pytest.raises(KeyError):
        state["stp"]
    with pytest.raises(AttributeError, match="read-only"):
        state.step = 3
    assert not hasattr(state, "__array__")


@pytest.mark.parametrize(
    "value", [some.State(1, [2]), some.Point(1, (2,)), some.Color.BLUE, some.Empty(), some.NoFields()]
)
def test_records_can_be_pickled_copied_and_saved_again(value):
    restored = again(value)
    for other in (pickle.loads(pickle.dumps(restored)), copy.deepcopy(restored), copy.copy(restored), again(restored)):
        assert other == restored
        assert type(other) is type(restored)
        assert repr(other) == repr(restored)
    assert ptc.encode(restored) == ptc.encode(value)
    assert_same(value, again(restored, types=some.TYPES))


def test_fields_with_names_that_python_does_not_allow_are_reached_by_item():
    names = ["class", "a b", "", "_type", "__class__", "count", "x"]
    point = ptc.decode(file_of(record("m:N", {name: place for place, name in enumerate(names)}, NAMEDTUPLE)))
    assert tuple(point) == tuple(range(7))
    assert point._asdict()["a b"] == 1
    assert point.count == 5
    thing = ptc.decode(file_of(record("m:R", {name: place for place, name in enumerate(names)}, DATACLASS)))
    assert [thing[name] for name in names] == list(range(7))
    assert type(thing) is ptc.Record


class Outer:
    class Inner(NamedTuple):
        a: int

    @dataclasses.dataclass
    class Data:
        a: int


def test_nested_classes_are_named_with_their_outer_class():
    tree = [Outer.Inner(1), Outer.Data(2)]
    assert "Outer.Inner" in repr(again(tree)[0])
    assert_same(tree, again(tree, types=[Outer.Inner, Outer.Data]))


@dataclasses.dataclass
class Counted:
    """Construction is counted, and changes the value."""

    a: int
    made: int = 0

    def __post_init__(self):
        self.made += 1
        self.a *= 2


def test_rebuilding_a_dataclass_runs_none_of_its_code():
    value = Counted(4)
    assert (value.a, value.made) == (8, 1)
    restored = again(value, types=[Counted])
    assert (restored.a, restored.made) == (8, 1)


class Checked(NamedTuple("Checked", [("a", int)])):
    __slots__ = ()

    def __new__(cls, a):
        return super().__new__(cls, a + 1)


def test_rebuilding_a_namedtuple_runs_none_of_its_code():
    value = Checked(1)
    assert again(value, types=[Checked]) == (2,)


@dataclasses.dataclass
class Base:
    a: Any


@dataclasses.dataclass
class Derived(Base):
    b: Any = None
    c: Any = dataclasses.field(init=False, default=3)


def test_inherited_and_uninitialised_fields_are_kept():
    assert_same(Derived(1, 2), again(Derived(1, 2), types=[Derived]))
    assert_same([Base(1), Derived(2)], again([Base(1), Derived(2)], types=[Base, Derived]))


def _renamed(cls, name):
    changed = type(cls)(cls.__name__, cls.__bases__, dict(vars(cls))) if not issubclass(cls, tuple | enum.Enum) else cls
    changed.__qualname__ = name
    return changed


def test_a_class_with_other_fields_now_is_a_mismatch_that_tells_them():
    @dataclasses.dataclass
    class State:
        step: int
        parameters: int = 0

    State.__module__, State.__qualname__ = some.State.__module__, some.State.__qualname__
    with pytest.raises(ptc.StructureMismatchError, match="other fields now") as caught:
        again(some.State(1), types=[State])
    assert caught.value.missing == ("parameters",)
    assert caught.value.unexpected == ("params",)


def test_fields_in_another_order_now_are_matched_by_name():
    @dataclasses.dataclass
    class State:
        params: Any
        step: Any

    State.__module__, State.__qualname__ = some.State.__module__, some.State.__qualname__
    restored = again(some.State(step=1, params=2), types=[State])
    assert (restored.step, restored.params) == (1, 2)
    Swapped = collections.namedtuple("Swapped", "y x")
    Swapped.__module__, Swapped.__qualname__ = some.Point.__module__, some.Point.__qualname__
    assert again(some.Point(x=1, y=2), types=[Swapped]) == (2, 1)


def test_an_enum_without_the_member_now_is_a_mismatch():
    changed = enum.Enum("Color", {"RED": 5})
    changed.__module__, changed.__qualname__ = some.Color.__module__, some.Color.__qualname__
    with pytest.raises(ptc.StructureMismatchError, match="no member RED with the value 1 now"):
        again(some.Color.RED, types=[changed])
    renamed = enum.Enum("Color", {"ROT": 1})
    renamed.__module__, renamed.__qualname__ = some.Color.__module__, some.Color.__qualname__
    with pytest.raises(ptc.StructureMismatchError, match="no member RED"):
        again(some.Color.RED, types=[renamed])


@pytest.mark.parametrize("value", [some.Point(1), some.State(1), some.Color.RED])
@pytest.mark.parametrize("cls", [some.Point, some.State, some.Color, dict])
def test_a_class_of_another_kind_is_a_mismatch(value, cls):
    if type(value) is cls:
        return
    other = types.new_class("Other", (cls,) if cls is not some.Color else ())
    if cls is some.Color:
        other = enum.Enum("Other", {"A": 1})
    other.__module__, other.__qualname__ = type(value).__module__, type(value).__qualname__
    with pytest.raises(ptc.StructureMismatchError, match="was saved as a"):
        again([value], types=[other])


def test_a_pytree_node_cannot_be_rebuilt_from_its_class_alone():
    class Node:
        pass

    file = file_of(record(f"{Node.__module__}:{Node.__qualname__}", {"0": 1}, PYTREE))
    assert type(ptc.decode(file)) is ptc.Record
    with pytest.raises(ptc.StructureMismatchError, match="restore it with like="):
        ptc.decode(file, types=[Node])


def test_classes_with_the_same_name_and_different_fields_can_stand_in_one_tree():
    @dataclasses.dataclass
    class State:
        other: Any

    State.__module__, State.__qualname__ = some.State.__module__, some.State.__qualname__
    a, b = again([some.State(1), State(2)])
    assert (a.step, b.other) == (1, 2)


# Python's own.


def _default():
    return 5


def test_containers_of_python_come_back_as_what_they_were():
    tree = {
        "ordered": collections.OrderedDict([("b", 1), ("a", 2)]),
        "default": collections.defaultdict(_default, {"x": [1]}),
        "counter": collections.Counter({"a": 3, "b": -2, "c": 0, "d": 1.5}),
        "deque": collections.deque([1, [2], 3], maxlen=3),
        "unbounded": collections.deque(),
        "namespace": argparse.Namespace(lr=0.1),
        "simple": types.SimpleNamespace(cls=2),
        "bytes": bytearray(b"\x00\xff"),
        "range": [range(10), range(5, -5, -3), range(1 << 80)],
        "slice": [slice(None), slice(1, 10, 2), slice("a", (1,), [2])],
        "path": [pathlib.Path("a/../b"), pathlib.PurePosixPath("/"), pathlib.PureWindowsPath("c:/x")],
        "dtype": [
            np.dtype("f4"),
            np.dtype([("a", "i4", (2,))], align=True),
            np.dtype("M8[3us]"),
            np.dtype(some.ML_DTYPES[0]),
        ],
        "sets": [{1, "a", None, (1, 2)}, frozenset({frozenset({1}), 2.5}), set()],
        "ellipsis": (..., None, True, False),
    }
    restored = again(tree)
    assert_same(tree, restored)
    assert restored["default"].default_factory is None
    assert list(restored["ordered"]) == ["b", "a"]


OBJECT_ARRAYS = [
    np.array([1, "a", None, [2]], object),
    np.array([[1, 2.5], ["x", ()]], object),
    np.array({"a": 1}, object),
    np.zeros((0, 3), object),
    np.array([[1, 2, 3], [4, 5, 6]], object)[:, ::-1].T,
]


@pytest.mark.parametrize("array", OBJECT_ARRAYS, ids=range(len(OBJECT_ARRAYS)))
def test_arrays_of_objects_come_back_with_their_values(array):
    restored = again([array])[0]
    assert restored.dtype == object
    assert restored.shape == array.shape
    assert_same(array.reshape(-1).tolist(), restored.reshape(-1).tolist())


def test_arrays_of_numpy_strings_come_back_with_their_missing_value():
    make: Any = np.dtypes.StringDType
    tree = [
        np.array(["a", "bc" * 100, ""], make()),
        np.array([["a", "b"], ["c", "d"]], make(coerce=False)).T,
        np.array("x", make()),
        np.array(["a", None], make(na_object=None)),
        np.array(["a", np.nan], make(na_object=np.nan)),
        np.array(["a", "gone"], make(na_object="gone")),
        np.zeros((0, 2), make()),
    ]
    for before, after in zip(tree, again(tree), strict=True):
        assert after.dtype == before.dtype or np.isnan(before.dtype.na_object)
        assert after.shape == before.shape
        assert after.dtype.coerce == before.dtype.coerce
        assert_same(before.reshape(-1).tolist(), after.reshape(-1).tolist())


def _wrapped(name: str, **fields: Any) -> Tree:
    return record(name, fields, WRAPPER)


def _deep(kind: int = TUPLE) -> Tree:
    tree = leaf(1)
    for _ in range(5000):
        tree = Tree(kind, None, [tree])
    return tree


SENSELESS = {
    "an OrderedDict of pairs": _wrapped("python.OrderedDict", items=[("a", 1)]),
    "an OrderedDict of a deep pair": _wrapped("python.OrderedDict", items=[(_deep(), 1)]),
    "a Counter of a text": _wrapped("python.Counter", items="ab"),
    "a defaultdict of a number": _wrapped("python.defaultdict", items=1),
    "a deque of a text": _wrapped("python.deque", items="ab", maxlen=None),
    "a deque of a tuple": _wrapped("python.deque", items=(1, 2), maxlen=None),
    "a deque of more than fits": _wrapped("python.deque", items=[1, 2], maxlen=1),
    "a deque of a negative size": _wrapped("python.deque", items=[], maxlen=-1),
    "a deque of size True": _wrapped("python.deque", items=[1], maxlen=True),
    "a bytearray of 2^50 zeros": _wrapped("python.bytearray", value=1 << 50),
    "a bytearray of a list": _wrapped("python.bytearray", value=[1, 2]),
    "a path of bytes": _wrapped("python.Path", text=b"a", flavour="posix"),
    "a path of an unknown flavour": _wrapped("python.Path", text="a", flavour="vms"),
    "a path of a deep flavour": _wrapped("python.Path", text="a", flavour=_deep()),
    "a range of floats": record("python.range", {"start": 0.0, "stop": 1, "step": 1}),
    "a range of step 0": record("python.range", {"start": 0, "stop": 1, "step": 0}),
    "a range of bools": record("python.range", {"start": False, "stop": True, "step": True}),
    "an object array of the wrong size": _wrapped("numpy.ObjectArray", values=[1, 2, 3], shape=(2,)),
    "an object array of an open shape": _wrapped("numpy.ObjectArray", values=[1, 2], shape=(-1,)),
    "an object array of a negative shape": _wrapped("numpy.ObjectArray", values=[1, 2], shape=(-1, -2)),
    "an object array of 65 axes": _wrapped("numpy.ObjectArray", values=[1], shape=(1,) * 65),
    "an object array of a huge shape": _wrapped("numpy.ObjectArray", values=[], shape=(1 << 62, 1 << 62, 0)),
    "an object array of an endless shape": _wrapped(
        "numpy.ObjectArray", values=[], shape=(0, Tree(5, (1 << 100).to_bytes(13, "little")))
    ),
    "an object array of a deep shape": _wrapped("numpy.ObjectArray", values=[1], shape=_deep()),
    "an object array of a text": _wrapped("numpy.ObjectArray", values="ab", shape=(2,)),
    "a string array of numbers": _wrapped("numpy.StringArray", values=[1], shape=(1,), coerce=True, missing=()),
    "a string array of lists": _wrapped("numpy.StringArray", values=[["a"]], shape=(1,), coerce=True, missing=()),
    "a string array of deep lists": _wrapped(
        "numpy.StringArray", values=[_deep()], shape=(1,), coerce=True, missing=()
    ),
    "a string array with two missing values": _wrapped(
        "numpy.StringArray", values=["a"], shape=(1,), coerce=True, missing=(None, None)
    ),
    "a string array with a deep missing value": _wrapped(
        "numpy.StringArray", values=["a"], shape=(1,), coerce=True, missing=(_deep(),)
    ),
    "a string array with an unknown missing value": _wrapped(
        "numpy.StringArray", values=["a"], shape=(1,), coerce=True, missing=(1,)
    ),
    "a string array with a number for a flag": _wrapped(
        "numpy.StringArray", values=["a"], shape=(1,), coerce=1, missing=()
    ),
    "a string array of the wrong size": _wrapped(
        "numpy.StringArray", values=["a"], shape=(2,), coerce=True, missing=()
    ),
    "a dtype of numpy's": record("numpy.dtype", {"descriptor": "f4"}),
    "a dtype of code": record("numpy.dtype", {"descriptor": "O;import os"}),
    "a dtype of a deep list": record("numpy.dtype", {"descriptor": _deep(16)}),
    "a dtype of a tuple": record("numpy.dtype", {"descriptor": ("bytes", 3)}),
    "a dtype of a dict": record("numpy.dtype", {"descriptor": {"names": ["a"], "formats": ["f4"]}}),
    "a dtype of an array": record("numpy.dtype", {"descriptor": Tree(10, 0)}),
}


@pytest.mark.parametrize("tree", SENSELESS.values(), ids=SENSELESS)
def test_fields_that_make_no_sense_are_refused_as_t_4(tree):
    arrays = [ArrayRow()] if tree.children[0].kind == 10 else []
    with pytest.raises(ptc.CorruptionError) as caught:
        ptc.decode(file_of([tree], arrays), to="numpy")
    assert caught.value.rule == "T-4"
    assert len(str(caught.value)) < 1000


# Registered classes.


class Complicated:
    def __init__(self, weights, history):
        self.weights = weights
        self.history = history


@pytest.fixture
def registered():
    ptc.register_class(
        Complicated,
        to_fields=lambda it: {"weights": it.weights, "history": it.history},
        from_fields=lambda fields: Complicated(fields["weights"], fields["history"]),
        name="tests.Complicated",
    )
    yield
    expand._by_class.pop(Complicated, None)
    expand._by_name.pop("tests.Complicated", None)


@pytest.mark.usefixtures("registered")
def test_a_registered_class_comes_back_by_its_functions():
    value = Complicated(np.arange(3), [1, Complicated(None, ())])
    restored = again({"x": value})["x"]
    assert type(restored) is Complicated
    assert np.array_equal(restored.weights, np.arange(3))
    assert type(restored.history[1]) is Complicated
    with ptc.Checkpoint(ptc.reading.BytesSource(memoryview(ptc.encode({"x": value}))), None) as checkpoint:
        assert [str(path) for path, _ in checkpoint.leaves()] == [
            "x/.weights",
            "x/.history[0]",
            "x/.history[1]/.weights",
            "x/.history[1]/.history",
        ]
        assert checkpoint["x/.history[0]"] == 1


@pytest.mark.filterwarnings("ignore:.* came back as")
def test_where_a_class_is_not_registered_it_comes_back_as_a_record(registered):
    file = ptc.encode(Complicated(1, 2))
    expand._by_name.clear()
    restored = ptc.decode(file)
    assert type(restored) is ptc.Record
    assert (restored.weights, restored.history) == (1, 2)
    assert ptc.encode(restored) == file


@pytest.mark.usefixtures("registered")
def test_fields_that_a_registered_class_refuses_make_the_file_corrupt():
    for fields in ({"weights": 1}, {}, {"history": 1}):
        with pytest.raises(ptc.CorruptionError) as caught:
            ptc.decode(file_of(record("tests.Complicated", fields)))
        assert caught.value.rule == "T-4"


@pytest.mark.usefixtures("registered")
def test_a_name_can_be_registered_once_and_by_its_class_again():
    class Other:
        pass

    def to_fields(_):
        return {}

    for name in ("tests.Complicated", "python.deque", ""):
        with pytest.raises(ValueError, match="name"):
            ptc.register_class(Other, to_fields=to_fields, from_fields=lambda _: Other(), name=name)
    ptc.register_class(
        Complicated, to_fields=to_fields, from_fields=lambda _: Complicated(0, 0), name="tests.Complicated"
    )
    assert again(Complicated(1, 2)).weights == 0


def test_a_registered_dataclass_is_stored_by_its_functions():
    @dataclasses.dataclass
    class Special:
        a: Any

    ptc.register_class(Special, to_fields=lambda it: {"b": it.a}, from_fields=lambda fields: Special(fields["b"] + 1))
    try:
        assert again(Special(1)).a == 2
    finally:
        expand._by_name.pop(expand._by_class.pop(Special).name)


def test_subclasses_of_a_registered_class_are_not_stored(registered):
    class Sub(Complicated):
        pass

    with pytest.raises(ptc.UnsupportedTypeError, match="Sub"):
        ptc.encode(Sub(1, 2))


# Wrappers and records of others.


def test_a_wrapper_that_nobody_knows_is_its_value():
    tree = [_wrapped("made.Up", value={"a": 1}, how="x"), record("made.Thing", {"a": 1})]
    with pytest.warns(UserWarning, match="2 objects of made came back as"):
        value, thing = ptc.decode(file_of(tree))
    assert value == {"a": 1}
    assert thing.a == 1
    value, thing = ptc.decode(file_of(tree), to="numpy")
    assert value == {"a": 1}


@pytest.mark.parametrize("to", ["tensorflow", "", "Torch", None, 5])
def test_an_unknown_framework_is_an_error(to):
    with pytest.raises(ValueError, match="to="):
        ptc.decode(ptc.encode(1), to=to)


@given(some.TREES)
def test_records_saved_again_give_the_same_bytes(tree):
    file = ptc.encode(tree)
    assert ptc.encode(ptc.decode(file)) == file
    assert ptc.encode(ptc.decode(file, types=some.TYPES[:4])) == file


def test_all_class_kinds_are_read_without_their_class():
    tree = [
        record("a:N", {"x": 1}, NAMEDTUPLE),
        record("a:D", {"x": 1}, DATACLASS),
        Tree(OBJECT, (ENUM, "a:E", ("name", "value")), [leaf("A"), leaf(1)]),
        record("a:P", {"x": 1}, PYTREE),
        record("a.R", {"x": 1}, RECORD),
    ]
    restored = ptc.decode(file_of(tree), to="numpy")
    assert [type(value) for value in restored[1:]] == [ptc.Record] * 4
    assert restored[0] == (1,)
    assert restored[2].name == "A"
