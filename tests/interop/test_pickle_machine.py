"""decode(encode(tree)) == tree for what pickle itself writes, in every protocol; and what each opcode means."""

import argparse
import collections
import copyreg
import datetime as dt
import decimal
import enum
import io
import pickle
import pickletools
import random
import types
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt.interop.foreign import ForeignArray, read_whole
from pytreeckpt.interop.pickle_opcodes import OPCODES, Feed
from pytreeckpt.interop.pickle_values import Span
from pytreeckpt.interop.pickles import load_pickle, read_pickle
from pytreeckpt.objects import fields_of
from tests import strategies as some
from tests.exact import assert_same
from tests.interop import pickle_assembler as asm
from tests.interop.likeness import assert_alike
from tests.interop.sources import source
from tests.sources import RecordingSource

PROTOCOLS = st.integers(0, pickle.HIGHEST_PROTOCOL)
LEAVES = st.one_of(
    *(st.none(), st.just(...), st.booleans(), some.INTS, some.FLOATS, st.complex_numbers(), some.TEXTS, st.binary()),
    # Big-endian ones have a test of their own.
    some.arrays().filter(lambda array: array.dtype.byteorder != ">"),
    *(some.SCALARS, some.SETS, some.SETS.map(frozenset), st.binary().map(bytearray), some.PATHS),
    st.builds(range, st.integers(), st.integers(), st.integers().filter(bool)),
    some.DTYPE_OBJECTS,
    some._string_arrays(),
)


def containers(children):
    lists = st.lists(children, max_size=4)
    mappings = some.dicts(children)
    attributes = st.dictionaries(st.text("abc", max_size=3) | st.just("self"), children, max_size=3)
    return st.one_of(
        *(lists, lists.map(tuple), mappings, mappings.map(OrderedDict), mappings.map(some._counter)),
        mappings.map(lambda items: collections.defaultdict(None, items)),
        lists.map(collections.deque),
        lists.map(lambda items: collections.deque(items, 7)),
        attributes.map(lambda fields: some._namespace(argparse.Namespace(), fields)),
        attributes.map(lambda fields: some._namespace(types.SimpleNamespace(), fields)),
        st.builds(slice, children, children, children),
        lists.map(some._object_array),
    )


TREES = st.recursive(LEAVES, containers, max_leaves=12)


@given(TREES, PROTOCOLS)
def test_what_pickle_writes_comes_back_as_pickle_itself_reads_it(tree, protocol):
    try:
        data = pickle.dumps(tree, protocol)
        wanted = pickle.loads(data)
    except (ValueError, TypeError):
        # numpy has dtypes and scalars that it cannot pickle.
        assume(False)
    assert_alike(load_pickle(data), wanted)


@given(some.METADATA, PROTOCOLS)
def test_plain_values_are_the_same_python_values(tree, protocol):
    # Decimal text keeps no bits of a NaN.
    data = pickle.dumps(tree, protocol)
    assert_same(tree if protocol else pickle.loads(data), load_pickle(data))


class _PurePython(pickle._Pickler):
    """Pickle's own Python form, which writes other opcodes here and there."""


@given(some.METADATA, PROTOCOLS)
def test_the_pickler_in_python_writes_what_is_read_too(tree, protocol):
    file = io.BytesIO()
    _PurePython(file, protocol).dump(tree)
    data = file.getvalue()
    assert_same(tree if protocol else pickle.loads(data), load_pickle(data))


def test_the_table_has_every_opcode_by_its_name():
    assert {opcode.name: opcode.code for opcode in pickletools.opcodes} == {
        opcode.name: chr(code) for code, opcode in OPCODES.items()
    }
    assert all((opcode.arg is None) == (OPCODES[ord(opcode.code)].argument is None) for opcode in pickletools.opcodes)


@given(TREES, PROTOCOLS)
def test_arguments_are_read_as_pickletools_reads_them(tree, protocol):
    try:
        data = pickle.dumps(tree, protocol)
    except (ValueError, TypeError):
        assume(False)
    feed = Feed(source(data), 0, 1 << 30)
    for opcode, argument, at in pickletools.genops(data):
        assert feed.position == at
        assert feed.byte() == ord(opcode.code)
        reader = OPCODES[ord(opcode.code)].argument
        found = None if reader is None else reader(feed)
        if isinstance(found, tuple):
            found = " ".join(found)
        if isinstance(found, Span):
            found = found.read()
        if isinstance(found, float):
            assert np.float64(found).tobytes() == np.float64(argument).tobytes()
        elif opcode.name in {"STRING", "BINSTRING", "SHORT_BINSTRING"} and isinstance(found, bytes):
            assert found == argument.encode("latin-1")
        else:
            assert type(found) is type(argument)
            assert found == argument
    assert feed.position == len(data)


class Thing:
    def __init__(self, **fields):
        vars(self).update(fields)


class Slotted:
    __slots__ = ("a", "b")


class Mapping(dict):
    pass


class Sequence(list):
    pass


class Number(int):
    pass


class Choice(enum.Enum):
    A = 1


Pair = collections.namedtuple("Pair", "left right")


def _here(name):
    return f"{__name__}:{name}"


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    # So that pickle finds the classes of this file under its name.
    import sys

    module = types.ModuleType(__name__)
    vars(module).update(globals())
    monkeypatch.setitem(sys.modules, __name__, module)


@pytest.mark.parametrize("protocol", range(6))
def test_an_object_is_a_record_of_its_attributes(protocol):
    found = load_pickle(pickle.dumps(Thing(weight=[1, 2], name="x", inner=Thing(a=None)), protocol))
    assert found._type.name == _here("Thing")
    assert fields_of(found) == {"weight": [1, 2], "name": "x", "inner": found.inner}
    assert fields_of(found.inner) == {"a": None}


@pytest.mark.parametrize("protocol", range(2, 6))
def test_an_object_with_slots_is_a_record_of_its_attributes(protocol):
    thing = Slotted()
    thing.a, thing.b = 1, [2]
    found = load_pickle(pickle.dumps(thing, protocol))
    assert (found._type.name, fields_of(found)) == (_here("Slotted"), {"a": 1, "b": [2]})


@pytest.mark.parametrize("protocol", range(2, 6))
def test_subclasses_of_containers_keep_their_content_and_their_attributes(protocol):
    mapping = Mapping(a=1)
    mapping.extra = "e"
    found = load_pickle(pickle.dumps(mapping, protocol))
    assert (found._type.name, fields_of(found)) == (_here("Mapping"), {"items": {"a": 1}, "extra": "e"})
    found = load_pickle(pickle.dumps(Sequence([1, 2]), protocol))
    assert (found._type.name, fields_of(found)) == (_here("Sequence"), {"elements": [1, 2]})
    found = load_pickle(pickle.dumps(Number(5), protocol))
    assert (found._type.name, fields_of(found)) == (_here("Number"), {"args": (5,)})


@pytest.mark.parametrize("protocol", range(6))
def test_calls_are_records_of_their_arguments(protocol):
    values = [dt.datetime(2020, 1, 2, tzinfo=dt.UTC), decimal.Decimal("1.5"), Choice.A, Pair(1, [2])]
    names = ["datetime:datetime", "decimal:Decimal", _here("Choice"), _here("Pair")]
    for value, name in zip(values, names):
        found = load_pickle(pickle.dumps(value, protocol))
        assert found._type.name == name
        assert list(found) == ["args"]
    # Protocols 0 and 1 have the tuple that it is made from.
    assert found.args == ((1, [2]) if protocol > 1 else ((1, [2]),))


@pytest.mark.parametrize("protocol", range(6))
def test_a_class_or_function_itself_is_told_from_an_object_of_it(protocol):
    found = load_pickle(pickle.dumps([Thing, len, Thing()], protocol))
    assert found[0]._type.name == found[1]._type.name == "pickle:global"
    assert fields_of(found[0]) == {"module": __name__, "name": "Thing"}
    assert fields_of(found[1]) == {"module": "builtins", "name": "len"}
    assert (found[2]._type.name, list(found[2])) == (_here("Thing"), [])


def test_the_call_of_a_call_is_a_record_too():
    inner = asm.call(asm.name("operator", "attrgetter"), asm.text("system"))
    found = load_pickle(asm.pickle_of(asm.call(inner, asm.name("os", "x"))))
    assert found._type.name == "pickle:call"
    assert list(found) == ["args", "callee"]
    assert found.callee._type.name == "operator:attrgetter"


def test_attributes_that_are_called_like_parts_stay_apart():
    found = load_pickle(pickle.dumps(Thing(args=1, items=2)))
    assert fields_of(found) == {"state": {"args": 1, "items": 2}}


def test_keywords_of_newobj_ex_are_kept():
    body = asm.name("a", "B") + asm.tuple_of(asm.integer(1)) + asm.dict_of(asm.text("k"), asm.integer(2))
    found = load_pickle(asm.pickle_of(body, asm.op("NEWOBJ_EX")))
    assert fields_of(found) == {"args": (1,), "keywords": {"k": 2}}


def test_two_states_are_both_kept():
    body = asm.call(asm.name("a", "B")) + asm.integer(1) + asm.op("BUILD") + asm.integer(2) + asm.op("BUILD")
    assert fields_of(load_pickle(asm.pickle_of(body))) == {"state": [1, 2]}


def test_inst_and_obj_are_calls():
    inst = asm.op("MARK") + asm.integer(1) + asm.op("INST", asm.lines("a", "B"))
    obj = asm.op("MARK") + asm.name("a", "B") + asm.integer(1) + asm.op("OBJ")
    for body in (inst, obj):
        found = load_pickle(asm.pickle_of(body))
        assert (found._type.name, fields_of(found)) == ("a:B", {"args": (1,)})


def test_keys_that_a_tree_cannot_have_make_a_record_of_pairs():
    found = load_pickle(pickle.dumps({np.int64(3): "a", Thing: "b", 1: "c"}))
    assert (found._type.name, list(found)) == ("builtins:dict", ["pairs"])
    assert [value for _, value in found.pairs] == ["a", "b", "c"]
    assert type(found.pairs[0][0]) is np.int64
    found = load_pickle(pickle.dumps(OrderedDict({np.int64(3): "a"})))
    assert found._type.name == "collections:OrderedDict"


def test_elements_that_a_tree_cannot_have_make_a_record_of_them():
    found = load_pickle(pickle.dumps({len}))
    assert (found._type.name, list(found)) == ("builtins:set", ["elements"])


@pytest.mark.parametrize("protocol", range(3))
def test_bytes_may_be_keys_in_protocols_that_have_none(protocol):
    tree = {b"k": 1, (b"a", 2): [b"\xff"], frozenset([b"x"]): 3}
    del tree[frozenset([b"x"])]
    assert load_pickle(pickle.dumps(tree, protocol)) == tree


def test_objects_that_are_one_object_stay_one():
    shared = [1]
    array = np.arange(3)
    found = load_pickle(pickle.dumps([shared, shared, array, array, array.copy()]))
    assert found[0] is found[1]
    assert found[2].identity == found[3].identity != found[4].identity


def test_strings_of_python_2_are_text_if_they_can_be():
    short = asm.op("SHORT_BINSTRING", asm.u1(2) + "é".encode())
    assert load_pickle(asm.pickle_of(short)) == "é"
    assert load_pickle(asm.pickle_of(asm.op("SHORT_BINSTRING", asm.u1(2) + b"\xff\xfe"))) == b"\xff\xfe"
    assert load_pickle(b"S'a\\'b\\n\\x41\\101\\\\\\q'\n.") == "a'b\nAA\\\\q"
    assert load_pickle(b'S"it\'s"\n.') == "it's"


def test_arrays_of_python_2_are_read_whatever_their_bytes_are():
    for values in ([1.5, -2.0], [0, 65]):
        array = np.array(values)
        raw = array.tobytes()
        dtype = asm.call(asm.name("numpy", "dtype"), asm.text(array.dtype.str[1:]), asm.integer(0), asm.integer(1))
        state = asm.tuple_of(
            asm.integer(1),
            asm.tuple_of(asm.integer(2)),
            dtype,
            asm.op("NEWFALSE"),
            asm.op("SHORT_BINSTRING", asm.u1(len(raw)) + raw),
        )
        begin = asm.call(
            asm.name("numpy.core.multiarray", "_reconstruct"),
            asm.name("numpy", "ndarray"),
            asm.tuple_of(asm.integer(0)),
            asm.op("SHORT_BINSTRING", asm.u1(1) + b"b"),
        )
        found = load_pickle(asm.pickle_of(begin, state, asm.op("BUILD"), protocol=2))
        assert_same(array, read_whole(found))


def test_names_of_python_2_are_those_of_today():
    found = load_pickle(asm.pickle_of(asm.call(asm.name("__builtin__", "set"), asm.list_of(asm.integer(1)))))
    assert found == {1}
    reconstructor = asm.name("copy_reg", "_reconstructor")
    body = asm.call(reconstructor, asm.name("a", "B"), asm.name("__builtin__", "object"), asm.op("NONE"))
    assert load_pickle(asm.pickle_of(body))._type.name == "a:B"


def test_newobj_by_its_function_is_the_object_of_its_class():
    found = load_pickle(asm.pickle_of(asm.call(asm.name("copyreg", "__newobj__"), asm.name("a", "B"), asm.integer(1))))
    assert (found._type.name, fields_of(found)) == ("a:B", {"args": (1,)})
    assert copyreg.__newobj__ is not None


def test_generators_of_random_numbers_are_records_with_their_states():
    state = random.Random(0).getstate()
    found = load_pickle(pickle.dumps([state, np.random.default_rng(0), np.random.RandomState(0)]))
    assert found[0] == state
    assert found[1]._type.name == "numpy.random._pickle:__generator_ctor"
    assert found[2]._type.name == "numpy.random._pickle:__randomstate_ctor"


@pytest.mark.parametrize("protocol", range(6))
def test_big_endian_arrays_keep_their_byte_order(protocol):
    # numpy itself turns them into native ones, but in protocol 5.
    for dtype in (">f4", ">i8", ">c16", ">m8[s]", ">U2"):
        array = np.arange(3).astype(dtype)
        assert_same(array, read_whole(load_pickle(pickle.dumps(array, protocol))))


def test_subclasses_of_arrays_are_records_with_the_array():
    found = load_pickle(pickle.dumps(np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")])))
    # The items of a record array are of a type of their own.
    assert "rec" in found._type.name
    matrix = np.arange(4).reshape(2, 2).view(np.matrix)
    found = load_pickle(pickle.dumps(matrix))
    assert found._type.name == "numpy:matrix"
    assert_same(np.asarray(matrix), read_whole(found.array))
    masked = load_pickle(pickle.dumps(np.ma.masked_array([1, 2], [0, 1])))
    assert masked._type.name == "numpy.ma.core:_mareconstruct"


def test_arrays_of_jax_are_arrays_of_jax():
    jax = pytest.importorskip("jax")
    for array in (jax.numpy.arange(3.0), jax.numpy.zeros((2, 2), jax.numpy.bfloat16), jax.numpy.asarray(1.0)):
        found = load_pickle(pickle.dumps(array))
        assert found._type.name == "jax.Array"
        assert_same(np.asarray(array), read_whole(found.data))
        assert found.weak_type is array.weak_type


def test_large_arrays_stay_in_the_file():
    arrays = {"a": np.arange(100_000.0), "b": np.zeros(1 << 20, ml_dtypes.bfloat16), "c": np.ones((300, 300)).T}
    recording = RecordingSource(pickle.dumps(arrays, 5))
    tree = read_pickle(recording).tree
    assert sum(stop - start for start, stop in recording.ranges) < recording.nbytes / 2
    for name, array in arrays.items():
        assert isinstance(tree[name], ForeignArray)
        assert_same(np.asarray(read_whole(tree[name])), np.ascontiguousarray(array))
    assert tree["c"].pieces[0].strides == arrays["c"].strides


def test_large_bytes_are_the_same_bytes():
    data = bytes(range(256)) * 1024
    tree = [data, bytearray(data), {data: 1}, (data, [data])]
    for protocol in range(6):
        found = load_pickle(pickle.dumps(tree, protocol))
        assert found[0] == found[3][0] == data
        assert (found[1], type(found[1])) == (bytearray(data), bytearray)
        assert list(found[2]) == [data]


def test_a_text_longer_than_a_buffer_is_read():
    tree = ["é" * 400_000, 1, "x" * 1_000_000, 1 << 5_000_000, ["y" * 300_000] * 2]
    assert load_pickle(pickle.dumps(tree)) == tree
    assert load_pickle(pickle.dumps(tree[:1] + tree[2:3], 0)) == tree[:1] + tree[2:3]


def test_deep_trees_do_not_recurse():
    depth = 9_000
    for begin, end in ((b"]", b"a"), (b"(", b"t")):
        found = (
            load_pickle(b"\x80\x02" + begin * depth + b"]" + end * depth + b".")
            if end == b"t"
            else load_pickle(b"\x80\x02" + begin * depth + end * (depth - 1) + b".")
        )
        levels = 0
        while found:
            found = found[0]
            levels += 1
        assert levels >= depth - 1
    with pytest.raises(ptc.LimitError, match="deeper than the limit of 10000"):
        load_pickle(b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b".")


def test_a_file_may_hold_one_pickle_only():
    data = pickle.dumps(1)
    assert read_pickle(source(data)).tree == 1
    with pytest.raises(ptc.CorruptionError, match="15 more bytes come after it"):
        read_pickle(source(data + b"x" * 15))


def test_what_became_a_record_is_noted():
    found = read_pickle(source(pickle.dumps([Thing(), Thing(), len])))
    assert found.notes == (f"2 objects of {_here('Thing')} became records",)
    classes = b"".join(asm.call(asm.name("m", f"C{i}")) for i in range(40))
    notes = read_pickle(source(asm.pickle_of(asm.op("MARK"), classes, asm.op("LIST")))).notes
    assert len(notes) == 21
    assert notes[-1] == "objects of 20 other classes became records"


def test_left_out_attributes_are_noted():
    tree = OrderedDict(a=1)
    tree.extra = 1
    found = read_pickle(source(pickle.dumps(tree)))
    assert_same(found.tree, OrderedDict(a=1))
    assert found.notes == ("the attributes of a collections:OrderedDict were left out (1 time)",)
