"""What may stand in a tree, and how what may not is refused."""

import argparse
import collections
import copy
import dataclasses
import enum
import fractions
import gc
import itertools
import sys
import types
import weakref
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given

import pytreeckpt as ptc
from pytreeckpt.expand import make_expand
from pytreeckpt.flatten import flatten
from pytreeckpt.nodes import validate_nodes
from tests import strategies as some
from tests.exact import assert_same


def flat(tree, metadata=None):
    return flatten(metadata, tree, expand=make_expand(), limits=ptc.current_limits())


@given(some.TREES, some.METADATA)
def test_the_node_stream_of_any_tree_is_valid(tree, metadata):
    result = flat(tree, metadata)
    validate_nodes(result.nodes, len(result.arrays))


class Opaque:
    def __repr__(self):
        return "opaque"


@dataclasses.dataclass
class Mapping(dict):
    x: int = 0


class Slotted:
    __slots__ = ("hidden",)


@dataclasses.dataclass
class WithSlot(Slotted):
    x: int = 0


class Pair(NamedTuple):
    a: Any
    b: Any


class PairWithMore(Pair):
    pass


class Fake(tuple):
    _fields = ("a",)


class NumberFields(tuple):
    _fields = (1, 2)


class TwiceNamed(tuple):
    _fields = ("a", "a")


class MyFloat(np.float64):
    pass


class MyInt(int):
    pass


class MyText(str):
    __slots__ = ()


class MyDict(dict):
    pass


class MyArray(np.ndarray):
    pass


def _with(value, **attributes):
    for name, attribute in attributes.items():
        setattr(value, name, attribute)
    return value


def _unset():
    value = object.__new__(some.State)
    value.params = 1
    return value


UNSUPPORTED = {
    "an object": (Opaque(), "Opaque"),
    "a function": (len, "builtin_function_or_method"),
    "a class": (dict, "class dict"),
    "a module": (types, "module"),
    "a generator": ((i for i in ()), "generator"),
    "an iterator": (iter([]), "list_iterator"),
    "a memoryview": (memoryview(b"a"), "memoryview"),
    "a fraction": (fractions.Fraction(1, 2), "fractions.Fraction"),
    "a mapping proxy": (types.MappingProxyType({}), "mappingproxy"),
    "a chain map": (collections.ChainMap(), "collections.ChainMap"),
    "dict keys": ({}.keys(), "dict_keys"),
    "a subclass of int": (MyInt(1), "MyInt"),
    "a subclass of str": (MyText("a"), "MyText"),
    "a subclass of dict": (MyDict(), "MyDict"),
    "a subclass of a numpy scalar": (MyFloat(1), "MyFloat"),
    "a subclass of ndarray": (np.zeros(2).view(MyArray), "MyArray"),
    "a matrix": (np.zeros((1, 1)).view(np.matrix), "matrix"),
    "a masked array": (np.ma.masked_array([1]), "MaskedArray"),
    "a recarray": (np.zeros(2, [("a", "i4")]).view(np.recarray), "recarray"),
    "a record scalar": (np.zeros(2, [("a", "i4")]).view(np.recarray)[0], "record"),
    "a struct of objects": (np.zeros(2, [("a", object)]), "arrays of dtype"),
    "a big-endian longdouble": (np.zeros(2, np.dtype(np.longdouble).newbyteorder(">")), "arrays of dtype"),
    "an unknown missing value": (np.array(["a"], np.dtypes.StringDType(na_object=Ellipsis)), "missing value Ellipsis"),  # type: ignore[call-arg]  # numpy's stubs lack it
    "the dtype object": (np.dtype(object), "dtype object"),
    "a dataclass that is a dict": (Mapping(1), "Mapping is also a dict"),
    "a dataclass with another attribute": (_with(some.State(1), extra=2), "lost: extra"),
    "a dataclass with a hidden slot": (_with(WithSlot(1), hidden=2), "lost: hidden"),
    "a dataclass without a value": (_unset(), "step"),
    "a namedtuple with another attribute": (_with(PairWithMore(1, 2), extra=2), "lost: extra"),
    "a tuple with a wrong number of fields": (Fake((1, 2)), "2 values for 1 fields"),
    "a tuple with fields that are no texts": (NumberFields((1, 2)), "not distinct texts"),
    "a tuple with a field twice": (TwiceNamed((1, 2)), "not distinct texts"),
    "a namespace with a key that is no text": (_namespace_with_number := argparse.Namespace(), "not distinct texts"),
    "a lone surrogate": ("x\ud800", "lone surrogate at 1"),
    "a lone surrogate among texts": (["\u00e9"] * 20 + ["\udfff"], "lone surrogate at 0"),
    "a lone surrogate in a set": ({"\ud800"}, "lone surrogate"),
    "a lone surrogate as a key": ({"\ud800": 1}, "lone surrogate"),
    "a lone surrogate in a key": ({(1, ("\ud800",)): 1}, "lone surrogate"),
    "a lone surrogate as an attribute": (_with(types.SimpleNamespace(), **{"\ud800": 1}), "lone surrogate"),
    "a key that is an object": ({Opaque(): 1}, "dict key .* is a .*Opaque"),
    "a key that is an enum": ({some.Color.RED: 1}, "is a .*Color"),
    "a key that is a numpy scalar": ({np.int64(1): 1}, "numpy.int64"),
    "a key that is a frozenset": ({frozenset(): 1}, "frozenset"),
    "a key that is complex": ({1j: 1}, "complex"),
    "a key that is an ellipsis": ({...: 1}, "ellipsis"),
    "a key with an object in it": ({(1, Opaque()): 1}, "keys are str, int"),
    "a key of a huge integer and an object": ({(1 << 50_000, Opaque()): 1}, "keys are str, int"),
    "a set of objects": ({Opaque()}, "a set holds a .*Opaque"),
    "a frozenset of numpy scalars": (frozenset([np.int64(1)]), "a frozenset holds a numpy.int64"),
    "two keys that are the same NaN": ({float("nan"): 1, float("nan"): 2}, "same NaN"),
    "two keys with the same NaN in them": ({(float("nan"),): 1, (float("nan"),): 2}, "same NaN"),
    "two elements that are the same NaN": ({float("nan"), float("nan")}, "same NaN"),
}
_namespace_with_number.__dict__[1] = 2  # type: ignore[index]  # on purpose


@pytest.mark.parametrize(("value", "message"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_what_cannot_be_stored_is_named_with_its_path(value, message):
    with pytest.raises(ptc.UnsupportedTypeError, match=message) as caught:
        ptc.encode({"good": [1, 2], "a.b": {"x": (0, value)}})
    assert str(caught.value).startswith("a.b/x[1]")


@pytest.mark.parametrize(("value", "message"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_what_cannot_be_stored_is_refused_at_the_root(value, message):
    with pytest.raises(ptc.UnsupportedTypeError, match=message) as caught:
        ptc.encode(value)
    assert str(caught.value).startswith(("the root", "[20]"))


def test_nothing_is_written_before_the_whole_tree_is_known_to_be_storable(tmp_path):
    with pytest.raises(ptc.UnsupportedTypeError, match="late"):
        ptc.save({"early": np.zeros(1 << 20), "late": Opaque()}, tmp_path / "new" / "x.ptck")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "value",
    [np.zeros(1), np.float32(1), 1j, ..., {1}, frozenset(), some.Point(1), [{"a": [object()]}], bytearray(b"a")],
    ids=lambda value: type(value).__name__,
)
def test_metadata_is_plain_and_what_is_not_is_named(value):
    with pytest.raises(ptc.UnsupportedTypeError, match="metadata: a") as caught:
        ptc.encode(0, metadata={"good": [None, True, 1, 1.5, "x", b"y", (1,), {1: 2}], "a": [value]})
    assert "metadata: a[0]" in str(caught.value)


@given(some.METADATA)
def test_metadata_comes_back_as_it_was(metadata):
    with ptc.Checkpoint(ptc.reading.BytesSource(memoryview(ptc.encode(0, metadata=metadata))), None) as checkpoint:
        assert_same(metadata, checkpoint.metadata)


def _cycles():
    in_list: list[Any] = [1]
    in_list.append([in_list])
    yield "list", in_list, "[1][0]"
    in_dict: dict[str, Any] = {}
    in_dict["self"] = (in_dict,)
    yield "dict", in_dict, "self[0]"
    in_record = some.State(None)
    in_record.params = {"again": in_record}
    yield "dataclass", in_record, ".params/again"
    in_deque: Any = collections.deque()
    in_deque.append(in_deque)
    yield "deque", in_deque, "[0]"
    in_objects = np.empty(1, object)
    in_objects[0] = in_objects
    yield "object array", in_objects, "[0]"
    in_namespace = argparse.Namespace()
    in_namespace.me = in_namespace
    yield "namespace", in_namespace, ".me"


@pytest.mark.parametrize(("tree", "path"), [case[1:] for case in _cycles()], ids=[case[0] for case in _cycles()])
def test_a_tree_that_contains_itself_is_refused_where_it_does(tree, path):
    with pytest.raises(ptc.UnsupportedTypeError, match="contains itself") as caught:
        ptc.encode(tree)
    assert str(caught.value).startswith(path + ":")


def test_the_same_container_at_several_places_is_no_cycle():
    shared = [1, {"a": ()}]
    tree = {"x": shared, "y": [shared, shared], "z": ((), ())}
    assert_same(tree, ptc.decode(ptc.encode(tree)))


@pytest.mark.parametrize(
    "make",
    [lambda inner: [inner, inner], lambda inner: {"a": inner, "b": inner}, lambda inner: some.Point(inner, inner)],
)
def test_a_tree_that_doubles_on_every_level_ends_at_the_limit_of_nodes(make):
    tree: Any = [0.5] * 8
    for _ in range(100):
        tree = make(tree)
    with ptc.limits(nodes=10_000), pytest.raises(ptc.LimitError, match=r"limit of 10000.*limits\(nodes=…\)"):
        ptc.encode(tree)


def test_a_set_element_that_doubles_on_every_level_ends_at_the_limit_of_nodes():
    element: Any = frozenset([1])
    for _ in range(40):
        element = frozenset([element, (element,)])
    with ptc.limits(nodes=10_000), pytest.raises(ptc.LimitError, match="10000 nodes"):
        ptc.encode({element})


def test_fields_may_be_many_but_not_any_number(monkeypatch):
    monkeypatch.setattr("pytreeckpt.flatten.MAX_FIELDS", 100)
    namespace = argparse.Namespace(**{f"x{i}": i for i in range(100)})
    assert_same(namespace, ptc.decode(ptc.encode(namespace)))
    namespace.more = 1
    with pytest.raises(ptc.LimitError, match="101 fields, more than 100"):
        ptc.encode([namespace])


def test_a_registered_class_with_field_names_that_are_no_texts_is_refused():
    class Odd:
        pass

    ptc.register_class(Odd, to_fields=lambda _: {1: 2}, from_fields=lambda _: Odd(), name="tests.Odd")  # type: ignore[dict-item]  # on purpose
    with pytest.raises(ptc.UnsupportedTypeError, match="x: the fields of a tests.Odd are not distinct texts"):
        ptc.encode({"x": Odd()})


class Numbers(enum.Enum):
    ARRAY = np.zeros(3).tobytes()
    OBJECT = Opaque()


def test_an_enum_member_is_stored_by_its_value_and_refused_if_that_cannot_be():
    assert_same(Numbers.ARRAY, ptc.decode(ptc.encode(Numbers.ARRAY), types=[Numbers]))
    with pytest.raises(ptc.UnsupportedTypeError, match="^a: cannot store .*Opaque"):
        ptc.encode({"a": Numbers.OBJECT})


def restored_if_at(moment, tree, change):
    """What comes back of a tree that changes before the line of this number of the walk, as another thread may change
    it before any; and whether there was such a line.
    """
    walk = {flatten.__code__.co_filename, make_expand.__code__.co_filename}
    left = moment

    def trace(frame, event, _argument):
        nonlocal left
        if event == "line" and frame.f_code.co_filename in walk:
            if left == 0:
                change()
            left -= 1
        return trace

    usual = sys.gettrace()
    sys.settrace(trace)
    try:
        data = ptc.encode(tree)
    finally:
        sys.settrace(usual)
    return ptc.decode(data), left < 0


class Fielded:
    def __init__(self):
        self.a, self.b = [1], [2]


@pytest.mark.parametrize(
    ("tree", "change"),
    [
        ([[1], [2], [3]], lambda tree: tree.append([4])),
        ([1.0] * 20, lambda tree: tree.append("x")),
        ({"a": [1], "b": [2]}, lambda tree: tree.update(c=[3])),
        # As many as before, and in other places.
        ({"a": [1], "b": [2]}, lambda tree: (tree.pop("a"), tree.update(c=[3]))),
        ({1, 2, 3}, lambda tree: tree.add(4)),
        (types.SimpleNamespace(a=[1], b=[2]), lambda tree: (delattr(tree, "a"), setattr(tree, "c", [3]))),
        (Fielded(), lambda tree: (delattr(tree, "a"), setattr(tree, "c", [3]))),
    ],
    ids=["list", "numbers", "dict", "other keys", "set", "namespace", "registered"],
)
def test_what_another_thread_does_to_a_container_is_in_the_file_or_is_not(tree, change):
    ptc.register_class(Fielded, to_fields=vars, from_fields=lambda fields: fields, name="tests.Fielded")
    before, after = copy.deepcopy(tree), copy.deepcopy(tree)
    change(after)
    for moment in itertools.count():
        changed = copy.deepcopy(tree)
        restored, came = restored_if_at(moment, changed, lambda: change(changed))  # noqa: B023 - it is called at once
        if not came:
            break
        assert restored in [vars(it) if isinstance(it, Fielded) else it for it in (before, after)]
    assert moment > 10


def test_what_is_met_outlives_the_walk_so_that_no_other_object_takes_its_identity():
    class Watching:
        pass

    def to_fields(_):
        del tree[0][:]
        gc.collect()
        assert first() is not None
        return {}

    ptc.register_class(Watching, to_fields=to_fields, from_fields=lambda _: None, name="tests.Watching")
    tree = [[Fielded()], Watching()]
    first = weakref.ref(tree[0][0])
    ptc.register_class(Fielded, to_fields=vars, from_fields=lambda fields: fields, name="tests.Fielded")
    ptc.encode(tree)
    assert first() is None
