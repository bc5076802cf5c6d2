import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytreeckpt import CorruptionError, FormatVersionError, PytreeckptError, UnsupportedTypeError, decode, encode
from pytreeckpt import dtypes as core
from pytreeckpt.dtypes import describe, has_padding, parse
from tests import strategies as some
from tests.exact import assert_same, same_dtype


@given(some.DTYPES)
def test_parsing_the_descriptor_of_a_dtype_gives_the_dtype(dtype):
    assert same_dtype(parse(describe(dtype)), dtype)


def _listed(descriptor):
    return [_listed(item) for item in descriptor] if isinstance(descriptor, tuple) else descriptor


@given(some.DTYPES)
def test_a_descriptor_may_be_made_of_lists_as_it_is_in_a_file(dtype):
    assert same_dtype(parse(_listed(describe(dtype))), dtype)


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.sampled_from(["float32", "struct", "s"]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=12,
)


@given(ANYTHING)
def test_any_value_is_a_descriptor_or_an_error(value):
    try:
        dtype = parse(value)
    except PytreeckptError as error:
        assert getattr(error, "rule", None) in {"D-1", "D-2"}
    else:
        assert same_dtype(parse(describe(dtype)), dtype)


@pytest.mark.parametrize("dtype", some.SIMPLE_DTYPES, ids=lambda dtype: dtype.str + dtype.name)
def test_every_dtype_of_numpy_and_ml_dtypes_comes_back_with_every_bit(dtype):
    n = max(300, 70_000 // dtype.itemsize)
    bits = np.arange(n * dtype.itemsize, dtype=np.uint32)
    array = (
        bits.view(np.uint8)[: n * dtype.itemsize]
        if dtype.itemsize <= 4
        else (bits * 2654435761).view(np.uint8)[: n * dtype.itemsize]
    ).view(dtype)
    assert_same([array, array[:3]], decode(encode([array, array[:3]])))


def test_the_list_above_has_all_dtypes_that_numpy_and_ml_dtypes_have():
    known = {dtype.type for dtype in some.SIMPLE_DTYPES}
    aliases = {np.longlong, np.ulonglong, np.intc, np.uintc, np.long, np.ulong}
    parametric = {np.bytes_, np.str_, np.void, np.datetime64, np.timedelta64, np.object_}
    assert set(np.sctypeDict.values()) - known - aliases <= parametric
    in_ml_dtypes = {
        value for value in vars(ml_dtypes).values() if isinstance(value, type) and issubclass(value, np.generic)
    }
    assert len(in_ml_dtypes) >= 20
    assert in_ml_dtypes <= known


@pytest.mark.parametrize("code", list("bBhHiIlLqQpPefdFDgG?"))
def test_the_names_of_c_for_a_dtype_come_back_as_an_equal_dtype(code):
    array = np.arange(5).astype(code)
    back = decode(encode(array))
    assert back.dtype == array.dtype
    assert np.array_equal(back, array)


@pytest.mark.parametrize(
    ("dtype", "descriptor"),
    [
        ("?", "bool"),
        ("<f4", "float32"),
        (">i2", "int16_be"),
        (">c16", "complex128_be"),
        (ml_dtypes.bfloat16, "bfloat16"),
        (ml_dtypes.float8_e4m3fn, "float8_e4m3fn"),
        (ml_dtypes.int4, "int4"),
        ("S0", ("bytes", 0)),
        ("S7", ("bytes", 7)),
        ("<U3", ("str", 3)),
        (">U3", ("str_be", 3)),
        ("V5", ("void", 5)),
        ("<M8[3us]", ("datetime64", "us", 3)),
        (">m8[D]", ("timedelta64_be", "D", 1)),
        ("<M8", ("datetime64", "generic", 1)),
        ([], ("struct", 0, False, ())),
        (
            [("a", "<f4"), ("b", ">i2", (2, 3))],
            ("struct", 16, False, (("a", None, "float32", 0, ()), ("b", None, "int16_be", 4, (2, 3)))),
        ),
        ([(("title", "a"), "u1")], ("struct", 1, False, (("a", "title", "uint8", 0, ()),))),
        (
            {"names": ["b", "a"], "formats": ["u1", "<u2"], "offsets": [3, 2], "itemsize": 6},
            ("struct", 6, False, (("b", None, "uint8", 3, ()), ("a", None, "uint16", 2, ()))),
        ),
    ],
)
def test_a_dtype_has_the_descriptor_of_the_registry(dtype, descriptor):
    assert describe(np.dtype(dtype)) == descriptor


def test_an_extended_float_is_named_after_its_format():
    names = {63: "float80_x87", 112: "float128"}
    expected = names.get(np.finfo(np.longdouble).nmant)
    if expected is None:
        with pytest.raises(UnsupportedTypeError):
            describe(np.dtype(np.longdouble))
    else:
        assert describe(np.dtype(np.longdouble)) == expected


def test_aligned_and_packed_structs_of_the_same_layout_are_kept_apart():
    packed = np.dtype([("a", "i4"), ("b", "f4")])
    aligned = np.dtype([("a", "i4"), ("b", "f4")], align=True)
    assert packed == aligned
    for first, second in [(packed, aligned), (aligned, packed)]:
        a, b = decode(encode([np.zeros(2, first), np.zeros(2, second)]))
        assert (a.dtype.isalignedstruct, b.dtype.isalignedstruct) == (first.isalignedstruct, second.isalignedstruct)


def test_an_aligned_struct_that_this_platform_would_lay_out_differently_comes_back_not_aligned():
    dtype = parse(["struct", 5, True, [["a", None, "uint8", 0, []], ["b", None, "float32", 1, []]]])
    assert dtype.fields is not None
    assert dtype.fields["b"][1] == 1
    assert not dtype.isalignedstruct


@pytest.mark.parametrize(
    ("descriptor", "rule"),
    [
        ("f4", "D-1"),
        ("object", "D-1"),
        ("<f4", "D-1"),
        ("float32,float32", "D-1"),
        ("float32_le", "D-1"),
        ("bfloat16_be", "D-1"),
        ("int8_be", "D-1"),
        ("", "D-1"),
        (None, "D-1"),
        (4, "D-1"),
        (["float32"], "D-1"),
        (["bytes"], "D-1"),
        (["bytes", -1], "D-1"),
        (["bytes", 1 << 31], "D-1"),
        (["bytes", True], "D-1"),
        (["bytes", 1.0], "D-1"),
        (["bytes", 1, 1], "D-1"),
        (["str", 1 << 29], "D-1"),
        (["str", True], "D-1"),
        (["void", 1 << 64], "D-1"),
        (["datetime64", "minutes", 1], "D-1"),
        (["datetime64", "s", 0], "D-1"),
        (["datetime64", "s", 1 << 31], "D-1"),
        (["datetime64", "s", True], "D-1"),
        (["datetime64", "generic", 2], "D-1"),
        (["datetime64", "s]; import os", 1], "D-1"),
        (["struct", 4, False], "D-1"),
        (["struct", 4, 0, []], "D-1"),
        (["struct", -1, False, []], "D-1"),
        (["struct", 1 << 31, False, []], "D-1"),
        (["struct", 4, False, ["a"]], "D-1"),
        (["struct", 4, False, [["a", None, "uint8", 0]]], "D-1"),
        (["struct", 4, False, [["a", None, "object", 0, []]]], "D-1"),
        (["struct", 4, False, [["a", 1, "uint8", 0, []]]], "D-1"),
        (["struct", 4, False, [["a", None, "uint8", True, []]]], "D-1"),
        (["struct", 4, False, [["a", None, "uint8", 4, []]]], "D-2"),
        (["struct", 4, False, [["a", None, "uint8", 0, [5]]]], "D-2"),
        (["struct", 4, False, [["a", None, "uint8", 0, [1 << 16, 1 << 16]]]], "D-2"),
        (["struct", 4, False, [["a", None, "uint8", 0, [-1]]]], "D-2"),
        (["struct", 4, False, [["a", None, "uint8", 0, [1 << 31, 0]]]], "D-2"),
        (["struct", 4, False, [["a", None, "uint8", 0, [True]]]], "D-1"),
        (["struct", 4, False, [["a", None, "uint8", 0, [1] * 65]]], "D-2"),
        (["struct", 4, False, [["a", None, "uint8", 0, []], ["a", None, "uint8", 1, []]]], "D-2"),
        (["struct", 4, False, [["a", "t", "uint8", 0, []], ["b", "t", "uint8", 1, []]]], "D-2"),
        (["struct", 4, False, [["a", None, "uint8", 0, []], ["b", "a", "uint8", 1, []]]], "D-2"),
    ],
)
def test_what_is_not_in_the_closed_list_is_refused_by_its_rule(descriptor, rule):
    with pytest.raises(CorruptionError) as caught:
        parse(descriptor)
    assert caught.value.rule == rule


def _nested(depth):
    descriptor = ["struct", 1, False, [["a", None, "uint8", 0, []]]]
    for _ in range(depth - 1):
        descriptor = ["struct", 1, False, [["a", None, descriptor, 0, []]]]
    return descriptor


def test_structs_nest_32_deep_and_no_deeper():
    array = np.zeros(3, parse(_nested(32)))
    assert_same(array, decode(encode(array)))
    with pytest.raises(CorruptionError) as caught:
        parse(_nested(33))
    assert caught.value.rule == "D-1"
    with pytest.raises(UnsupportedTypeError, match=r"x\[0\]: arrays of dtype .* cannot be stored"):
        encode({"x": [np.zeros(2, [("a", array.dtype)])]})


def test_a_descriptor_that_nests_without_end_is_shown_shortened():
    descriptor: list[object] = []
    for _ in range(100_000):
        descriptor = [descriptor]
    with pytest.raises(CorruptionError, match="is not a dtype of the format"):
        parse(descriptor)
    with pytest.raises(CorruptionError, match=r"is not a dtype of the format") as caught:
        parse("x" * 1000)
    assert len(str(caught.value)) < 200


def test_a_registered_dtype_that_this_platform_has_not_is_unknown_and_not_corrupt(monkeypatch):
    simple = {name: dtype for name, dtype in core._SIMPLE.items() if name != "float80_x87"}
    monkeypatch.setattr(core, "_SIMPLE", simple)
    monkeypatch.setattr(core, "_UNAVAILABLE", {"float80_x87"})
    with pytest.raises(FormatVersionError, match="not available on this platform") as caught:
        parse("float80_x87")
    assert caught.value.rule == "D-1"


@pytest.mark.parametrize(
    "dtype",
    [
        np.dtype(object),
        np.dtype([("a", object)]),
        np.dtype([("a", [("b", object, (2,))])]),
        np.dtypes.StringDType(),
        np.dtype((np.record, [("a", "i4")])),
        np.dtype([("a", np.dtype((np.record, [("a", "i4")])))]),
        np.dtype(np.longdouble).newbyteorder(">"),
        np.dtype([("a\ud800", "i4")]),
        np.dtype([(("t\ud800", "a"), "i4")]),
    ],
    ids=repr,
)
def test_a_dtype_that_has_no_descriptor_is_refused(dtype):
    with pytest.raises(UnsupportedTypeError):
        describe(dtype)


def test_a_title_that_is_no_text_is_refused():
    dtype = np.dtype({"names": ["a"], "formats": ["i4"], "titles": [7]})
    with pytest.raises(UnsupportedTypeError, match="title 7 of field 'a'"):
        describe(dtype)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("f4", False),
        ([("a", "f4"), ("b", "u1")], False),
        ({"names": ["a"], "formats": ["u1"], "itemsize": 2}, True),
        ({"names": ["a"], "formats": ["u1"], "offsets": [1]}, True),
        ({"names": ["a", "b"], "formats": ["u2", "u1"], "offsets": [0, 1]}, False),
        ([("a", {"names": ["b"], "formats": ["u1"], "itemsize": 2}, (3,))], True),
        ([], False),
        ("V3", False),
        (np.longdouble, np.finfo(np.longdouble).nmant == 63),
        (np.clongdouble, np.finfo(np.longdouble).nmant == 63),
    ],
)
def test_padding_is_what_no_field_covers(dtype, expected):
    assert bool(has_padding(np.dtype(dtype))) is expected


PADDED = [
    np.dtype([("a", "u1"), ("b", "f8")], align=True),
    np.dtype({"names": ["b", "a"], "formats": ["<u2", "?"], "offsets": [5, 1], "itemsize": 9}),
    np.dtype([("x", np.dtype([("a", "u1"), ("b", "f4")], align=True), (2,)), ("y", "S3")]),
    np.dtype({"names": ["a", "b"], "formats": [np.longdouble, "u1"], "offsets": [0, 12], "itemsize": 16}),
    np.dtype({"names": ["b", "a"], "formats": ["u1", np.longdouble], "offsets": [12, 0], "itemsize": 32}),
    np.dtype({"names": ["c", "f", "b"], "formats": [">c8", ">m8", "?"], "offsets": [0, 4, 0], "itemsize": 15}),
    np.dtype(np.longdouble),
    np.dtype(np.clongdouble),
]


@pytest.mark.parametrize("shape", [(), (3,), (40, 5)])
@pytest.mark.parametrize("dtype", PADDED, ids=str)
def test_what_memory_held_in_the_padding_does_not_reach_the_file(dtype, shape):
    files = []
    values = some.fill(dtype, shape, 1)
    for junk in (0, 0xFF, 0xA5):
        array = (
            np.frombuffer(bytes([junk]) * max(1, int(np.prod(shape))) * dtype.itemsize, np.uint8)
            .copy()
            .view(dtype)
            .reshape(shape)
        )
        _copy_fields(values, array)
        files.append(encode(array))
        assert_same(array, decode(files[-1]))
        assert encode(array[..., ::-1] if shape else array[()]) == encode(values[..., ::-1] if shape else values[()])
    assert files[0] == files[1] == files[2]


def _copy_fields(source, target):
    if source.dtype.names:
        for name in source.dtype.names:
            _copy_fields(source[name], target[name])
    elif source.dtype in {np.dtype(np.longdouble), np.dtype(np.clongdouble)}:
        for offset in range(0, source.itemsize, 16):
            # The significant bytes of an x87 float; all of any other.
            width = 10 if np.finfo(np.longdouble).nmant == 63 else 16
            layout = {"names": ["x"], "formats": [f"V{width}"], "offsets": [offset], "itemsize": source.itemsize}
            target.view(layout)["x"][...] = source.view(layout)["x"]
    else:
        target.view(f"V{source.itemsize}")[...] = source.view(f"V{source.itemsize}")


def test_bytes_of_bools_other_than_0_and_1_are_kept():
    array = np.arange(256, dtype=np.uint8).view(bool).reshape(16, 16)
    for view in (array, array.T, array[::-1], array[:, 3]):
        assert decode(encode(view)).tobytes() == view.tobytes()


def test_big_endian_timedeltas_without_a_unit_keep_their_bits():
    # numpy's own assignment between two such arrays changes them.
    array = np.arange(100_000, dtype=">i8").view(">m8").reshape(100, 1000)
    back = decode(encode(array[::-1]))
    assert back.tobytes() == array[::-1].tobytes()


def test_units_that_numpy_calls_equal_are_told_apart_whichever_comes_first():
    for first, second in (("M8[1000ps]", "M8[ns]"), ("m8[m]", "m8[60s]"), ("M8[7D]", "M8[W]")):
        for pair in ((first, second), (second, first)):
            arrays = [np.zeros(1, unit) for unit in pair]
            assert [array.dtype.str[1:] for array in decode(encode(arrays))] == list(pair)


def test_no_text_of_a_file_reaches_numpy_as_a_dtype():
    # In a process of its own, because numpy's parser for such texts leaves a module behind.
    code = (
        "import sys, numpy as np\n"
        "from pytreeckpt.dtypes import parse\n"
        "before = set(sys.modules)\n"
        "for text in ['f4,f4', '(2,)f4', 'O', 'V8', 'i4;import os', 'datetime64[s]']:\n"
        "    try: parse(text)\n"
        "    except ValueError: continue\n"
        "    raise SystemExit('accepted ' + text)\n"
        "raise SystemExit(str(set(sys.modules) - before) if set(sys.modules) - before else 0)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
