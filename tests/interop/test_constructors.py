"""Known names with other parts than their classes pickle: records with what there is, and never an exception."""

import datetime as dt
import math
import pathlib
import pickle
import struct
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest

import pytreeckpt as ptc
from pytreeckpt.interop.foreign import ForeignArray, read_region, read_whole
from pytreeckpt.interop.pickles import load_pickle, read_pickle
from pytreeckpt.objects import fields_of
from pytreeckpt.reading import BytesSource
from tests.exact import assert_same
from tests.interop import hostile_pickles
from tests.interop import pickle_assembler as asm
from tests.interop.pickle_assembler import integer, list_of, op, text, tuple_of

NONE, TRUE, FALSE = op("NONE"), op("NEWTRUE"), op("NEWFALSE")


def made(module, name, *args, after=b""):
    return load_pickle(asm.pickle_of(asm.call(asm.name(module, name), *args), after))


def built(*parts):
    return tuple_of(*parts) + op("BUILD")


@pytest.mark.parametrize(
    ("module", "name", "args"),
    [
        ("collections", "OrderedDict", [integer(5)]),
        ("collections", "OrderedDict", [list_of(integer(1))]),
        ("collections", "OrderedDict", [list_of(tuple_of(integer(1)))]),
        ("collections", "OrderedDict", [list_of(), list_of()]),
        ("collections", "Counter", [text("abc")]),
        ("collections", "deque", [integer(5)]),
        ("collections", "deque", [list_of(), integer(-1)]),
        ("collections", "deque", [list_of(), TRUE]),
        ("builtins", "set", [integer(1)]),
        ("builtins", "bytes", [integer(1 << 50)]),
        ("builtins", "bytearray", [integer(1 << 50)]),
        ("builtins", "bytearray", [text("é"), text("utf-16")]),
        ("builtins", "complex", [text("1j")]),
        ("builtins", "slice", [integer(1)]),
        ("builtins", "range", [integer(1), integer(2), integer(0)]),
        ("builtins", "range", [integer(1)]),
        ("builtins", "int", [text("5")]),
        ("builtins", "str", [asm.raw(b"x"), text("utf-8")]),
        ("_codecs", "encode", [text("x"), text("rot13")]),
        ("_codecs", "encode", [text("\u20ac"), text("latin1")]),
        ("_codecs", "encode", [text("x")]),
        ("argparse", "Namespace", [integer(1)]),
        ("pathlib", "PosixPath", [integer(1)]),
        ("numpy", "dtype", [text("nonsense"), FALSE, TRUE]),
        ("numpy", "dtype", [text("f3"), FALSE, TRUE]),
        ("numpy", "dtype", [text("U99999999999"), FALSE, TRUE]),
        ("numpy", "dtype", []),
        ("numpy", "dtype", [asm.name("ml_dtypes", "nonsense"), FALSE, TRUE]),
        ("numpy", "dtype", [asm.name("os", "bfloat16"), FALSE, TRUE]),
        ("numpy.core.multiarray", "scalar", [integer(1), asm.raw(b"")]),
        ("numpy.core.multiarray", "_reconstruct", [integer(1)]),
        ("numpy._core.numeric", "_frombuffer", [integer(1)]),
        ("numpy._core._internal", "_convert_to_stringdtype_kwargs", [text("x")]),
        ("torch", "Size", [integer(1)]),
        ("torch", "device", [integer(1)]),
        ("torch.serialization", "_get_layout", [text("torch.os")]),
        ("torch.nn.parameter", "Parameter", []),
        ("torch.autograd.variable", "Variable", [integer(1)]),
        ("torch._tensor", "_rebuild_from_type_v2", [integer(1)]),
        ("jax._src.array", "_reconstruct_array", [integer(1)]),
    ],
)
def test_arguments_that_make_nothing_are_kept_in_a_record(module, name, args):
    found = made(module, name, *args)
    assert found._type.name == f"{module}:{name}"
    assert len(fields_of(found).get("args", ())) == len(args)


@pytest.mark.parametrize(
    ("module", "name", "args", "wanted"),
    [
        ("collections", "OrderedDict", [list_of(list_of(text("a"), integer(1)))], {"a": 1}),
        ("builtins", "bytes", [], b""),
        ("builtins", "bytes", [asm.raw(b"x")], b"x"),
        ("builtins", "bytearray", [], bytearray()),
        ("builtins", "bytearray", [text("é"), text("latin-1")], bytearray(b"\xe9")),
        ("builtins", "int", [], 0),
        ("builtins", "int", [integer(7)], 7),
        ("builtins", "str", [], ""),
        ("builtins", "float", [op("BINFLOAT", struct.pack(">d", 2.5))], 2.5),
        ("builtins", "list", [list_of(integer(1))], [1]),
        ("builtins", "tuple", [], ()),
        ("builtins", "dict", [asm.dict_of(text("a"), integer(1))], {"a": 1}),
        ("builtins", "frozenset", [tuple_of(integer(1))], frozenset([1])),
        ("__builtin__", "xrange", [integer(0), integer(4), integer(2)], range(0, 4, 2)),
        ("pathlib", "PurePosixPath", [text("a"), text("b")], pathlib.PurePosixPath("a/b")),
        ("pathlib._local", "WindowsPath", [text("a")], pathlib.PureWindowsPath("a")),
        ("numpy", "dtype", [text("?"), FALSE, TRUE], np.dtype(bool)),
        ("numpy", "dtype", [text("M8"), FALSE, TRUE], np.dtype("M8")),
        ("numpy.core.multiarray", "scalar", [asm.call(asm.name("numpy", "dtype"), text("O")), text("x")], "x"),
        ("torch.jit._pickle", "build_intlist", [list_of(integer(1))], [1]),
    ],
)
def test_arguments_as_other_versions_write_them_make_the_object(module, name, args, wanted):
    found = made(module, name, *args)
    if isinstance(wanted, dict):
        assert dict(found) == wanted
    else:
        assert_same(wanted, found)


def test_extra_parts_of_containers_are_kept_in_a_record():
    found = made("builtins", "set", after=text("k") + integer(1) + op("SETITEM"))
    assert fields_of(found) == {"items": {"k": 1}}
    found = made("collections", "OrderedDict", after=integer(1) + op("APPEND"))
    assert fields_of(found) == {"elements": [1]}
    found = made("collections", "defaultdict", NONE, after=integer(1) + op("APPEND"))
    assert fields_of(found)["elements"] == [1]
    found = made("argparse", "Namespace", after=list_of(integer(1)) + op("BUILD"))
    assert fields_of(found) == {"state": [1]}


DTYPE = asm.call(asm.name("numpy", "dtype"), text("f4"), FALSE, TRUE)
ARRAY = asm.call(
    asm.name("numpy.core.multiarray", "_reconstruct"), asm.name("numpy", "ndarray"), tuple_of(), asm.raw(b"b")
)


def dtype_with(*state):
    return load_pickle(asm.pickle_of(asm.call(asm.name("numpy", "dtype"), text("V8"), FALSE, TRUE), built(*state)))


def test_states_of_dtypes_that_make_none_are_kept_in_a_record():
    names = tuple_of(text("a"))
    fields = asm.dict_of(text("a"), tuple_of(DTYPE, integer(0)))
    head = (integer(3), text("|"), NONE)
    tail = (integer(8), integer(1), integer(0))
    assert dtype_with(*head, names, fields, *tail) == np.dtype({"names": ["a"], "formats": ["f4"], "itemsize": 8})
    for state in (
        [integer(3)],
        [*head, names, NONE, *tail],
        [*head, names, asm.dict_of(), *tail],
        [*head, names, asm.dict_of(text("a"), tuple_of(DTYPE, integer(9))), *tail],
        [*head, names, asm.dict_of(text("a"), tuple_of(DTYPE, integer(0), integer(5))), *tail],
        [*head, names, asm.dict_of(text("a"), tuple_of(integer(1), integer(0))), *tail],
        [*head, NONE, NONE, text("8"), integer(1), integer(0)],
        [integer(3), text("|"), tuple_of(DTYPE, tuple_of(integer(1 << 30))), NONE, NONE, *tail],
        [integer(3), text("|"), integer(5), NONE, NONE, *tail],
    ):
        assert dtype_with(*state)._type.name == "numpy:dtype"


@pytest.mark.parametrize(
    "metadata", [integer(5), tuple_of(NONE, integer(5)), tuple_of(NONE, tuple_of(asm.raw(b"eons"), *[integer(1)] * 3))]
)
def test_units_of_time_that_numpy_has_not_are_kept_in_a_record(metadata):
    state = built(integer(4), text("<"), NONE, NONE, NONE, integer(-1), integer(-1), integer(0), metadata)
    found = load_pickle(asm.pickle_of(asm.call(asm.name("numpy", "dtype"), text("M8"), FALSE, TRUE), state))
    assert found._type.name == "numpy:dtype"


def test_arrays_as_numpy_wrote_them_before_there_were_versions_are_read():
    raw = struct.pack("<2f", 1, 2)
    found = load_pickle(asm.pickle_of(ARRAY, built(tuple_of(integer(2)), DTYPE, FALSE, asm.raw(raw))))
    assert isinstance(found, ForeignArray)
    np.testing.assert_array_equal(read_whole(found), [1, 2])


@pytest.mark.parametrize(
    ("state", "match"),
    [
        ([integer(1), tuple_of(integer(3)), DTYPE, FALSE, asm.raw(bytes(8))], "has 12 bytes, and there are 8"),
        (
            [integer(1), tuple_of(integer(3)), asm.call(asm.name("numpy", "dtype"), text("O8")), FALSE, list_of(NONE)],
            "has not as many objects",
        ),
    ],
)
def test_arrays_whose_data_does_not_fit_are_refused(state, match):
    with pytest.raises(ptc.CorruptionError, match=match):
        load_pickle(asm.pickle_of(ARRAY, built(*state)))


def test_scalars_whose_data_does_not_fit_are_refused():
    with pytest.raises(ptc.CorruptionError, match="a scalar of float32 has 4 bytes, and there are 2"):
        made("numpy.core.multiarray", "scalar", DTYPE, asm.raw(b"xx"))
    surrogate = asm.call(asm.name("numpy", "dtype"), text("U1"), FALSE, TRUE)
    found = made("numpy.core.multiarray", "scalar", surrogate, asm.raw(b"\xff\xff\xff\xff"))
    assert found._type.name == "numpy.core.multiarray:scalar"


def test_states_of_arrays_that_make_none_are_kept_in_a_record():
    for state in (
        [integer(1)],
        [integer(1), text("x"), DTYPE, FALSE, asm.raw(b"")],
        [integer(1), tuple_of(), NONE, FALSE, NONE],
    ):
        assert load_pickle(asm.pickle_of(ARRAY, built(*state)))._type.name == "numpy.core.multiarray:_reconstruct"


def test_string_arrays_with_a_missing_value_are_read():
    make = np.dtypes.StringDType
    for missing in (None, "gone", math.nan):
        array = np.array(["a", missing], make(na_object=missing))
        found = load_pickle(pickle.dumps(array))
        assert found.shape == (2,)
        assert found.tolist()[0] == "a"
        assert found.dtype == array.dtype or missing != missing
    state = [
        integer(1),
        tuple_of(integer(1)),
        asm.call(asm.name("numpy._core._internal", "_convert_to_stringdtype_kwargs"), integer(0)),
    ]
    found = load_pickle(asm.pickle_of(ARRAY, built(*state, FALSE, list_of(integer(5)))))
    assert found._type.name == "numpy.core.multiarray:_reconstruct"


def test_scalars_of_objects_and_times_are_themselves():
    values = [np.datetime64("2020-01-02", "D"), np.timedelta64(5, "ns"), np.longdouble(1.5), np.complex64(1j)]
    assert_same(values, load_pickle(pickle.dumps(values)))
    assert load_pickle(pickle.dumps(dt.timedelta(1)))._type.name == "datetime:timedelta"


@pytest.mark.parametrize(
    "name",
    ["doubled lists", "doubled objects", "equal hashes in pairs", "deque again", "doubled frozensets", "deep calls"],
)
def test_a_small_pickle_of_a_large_tree_is_beyond_the_limits(name):
    with pytest.raises(ptc.LimitError):
        load_pickle(hostile_pickles.wearing()[name])


def test_dtypes_that_no_tree_has_are_records_and_their_arrays_are_not():
    tree = [
        np.dtype(object),
        np.dtypes.StringDType(),
        np.array([1, "x"], object),
        np.array(["x"], np.dtypes.StringDType()),
    ]
    found = load_pickle(pickle.dumps(tree))
    assert [value._type.name for value in found[:2]] == ["numpy:dtype", "numpy:dtype"]
    assert_same(tree[2:], found[2:])
    found = load_pickle(pickle.dumps(np.zeros(2, [("a", object), ("b", "i4")])))
    assert found._type.name == "numpy._core.multiarray:_reconstruct"


def on_device(array, dtype):
    """A tensor of a device over an array, as XLA pickles it."""
    parts = [array, asm.name("torch", dtype), text("xla:0"), FALSE]
    return asm.call(asm.name("torch._utils", "_rebuild_device_tensor_from_numpy"), *parts)


def items_of(dtype, raw, count):
    dtype = asm.call(asm.name("numpy", "dtype"), text(dtype), FALSE, TRUE)
    return asm.call(
        asm.name("numpy._core.numeric", "_frombuffer"), asm.raw(raw), dtype, tuple_of(integer(count)), text("C")
    )


def test_arrays_of_devices_are_cast_when_they_are_read():
    values = np.linspace(-3, 300, 20_000, dtype=np.float32)
    cast = on_device(op("BINGET", b"\0"), "bfloat16")
    body = [items_of("f4", values.tobytes(), len(values)), op("BINPUT", b"\0"), op("POP"), list_of(*[cast] * 200)]
    found = load_pickle(asm.pickle_of(*body))
    assert len(found) == 200
    array = found[7].data
    assert array.dtype == ml_dtypes.bfloat16
    assert read_whole(array).tobytes() == values.astype(ml_dtypes.bfloat16).tobytes()
    part = read_region(array, ptc.Box((500,), (700,)))
    assert part.tobytes() == values[500:1200].astype(ml_dtypes.bfloat16).tobytes()
    # Where its bytes are is where they were, for whoever keeps a checksum of them.
    assert array.pieces[0].source is found[8].data.pieces[0].source


@pytest.mark.parametrize(
    ("items", "raw", "count", "dtype"),
    [
        ("U2", "ab".encode("utf-32-le"), 1, "float32"),
        ("c8", bytes(8), 1, "float32"),
        ("f4", bytes(8), 2, "complex64"),
        ("f4", bytes(8), 2, "float8_e8m0fnu"),
        ("V4", bytes(8), 2, "int32"),
        ("M8", bytes(8), 1, "float32"),
    ],
)
def test_what_cannot_be_cast_to_the_dtype_of_a_tensor_is_a_record(items, raw, count, dtype):
    found = load_pickle(asm.pickle_of(on_device(items_of(items, raw, count), dtype)))
    assert found._type.name == "torch._utils:_rebuild_device_tensor_from_numpy"


def test_the_versions_in_a_state_dict_are_left_out_and_that_is_said():
    state = OrderedDict(a=1)
    state._metadata = {"": {"version": 1}}
    data = pickle.dumps(state)
    found = read_pickle(BytesSource(memoryview(data)))
    assert_same(found.tree, OrderedDict(a=1))
    assert found.notes == (
        "the _metadata of a collections:OrderedDict, the versions of torch's modules, was left out (1 time)",
    )
    state.other = 2
    found = read_pickle(BytesSource(memoryview(pickle.dumps(state))))
    assert found.notes == ("the attributes of a collections:OrderedDict were left out (1 time)",)
