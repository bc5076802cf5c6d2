"""numpy's files: what numpy writes is read, bit by bit; headers are never evaluated; nothing escapes."""

import ast
import collections
import io
import random
import warnings
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt import testing
from pytreeckpt.interop.foreign import ForeignArray, read_whole
from pytreeckpt.interop.literals import parse_literal
from pytreeckpt.interop.npz import is_npy, is_npz, read_npy, read_npz
from tests.exact import assert_same, item_bytes, same_dtype
from tests.interop.sources import damaged, source
from tests.strategies import DTYPES as SOME_DTYPES
from tests.strategies import fill


def npy(array, **options):
    file = io.BytesIO()
    with warnings.catch_warnings():
        # Names of fields beyond latin-1 need version 3.0, of which numpy warns.
        warnings.simplefilter("ignore")
        np.lib.format.write_array(file, array, **options)
    return file.getvalue()


def npz(arrays, *, compressed=False):
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def loaded(data):
    with np.load(io.BytesIO(data), allow_pickle=False) as found:
        return dict(found)


def is_numpys(dtype):
    """Whether numpy reads back what it writes of this dtype, the gaps and titles of its fields apart."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            descr = np.lib.format.dtype_to_descr(dtype)
            return np.lib.format.descr_to_dtype(descr) == dtype and "S0" not in repr(descr)
    except (ValueError, TypeError):
        return False


@given(
    SOME_DTYPES.filter(is_numpys),
    st.lists(st.integers(0, 3), max_size=4).map(tuple),
    st.sampled_from("CF"),
    st.integers(0, 9),
)
def test_what_numpy_writes_is_read_bit_by_bit(dtype, shape, order, seed):
    array = fill(dtype, shape, seed).copy(order)
    data = npy(array)
    found = read_whole(read_npy(source(data)).tree)
    expected = np.lib.format.read_array(io.BytesIO(data))
    assert same_dtype(found.dtype, expected.dtype)
    assert found.shape == array.shape
    assert item_bytes(found) == item_bytes(np.ascontiguousarray(expected).reshape(shape))


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_is_read(version):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = npy(np.arange(6).reshape(2, 3), version=version)
    assert_same(read_whole(read_npy(source(data)).tree), np.arange(6).reshape(2, 3))


@given(
    st.dictionaries(
        st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1, max_size=5).filter(
            lambda name: name not in {"file", "allow_pickle"} and "\\" not in name
        ),
        testing.arrays(st.sampled_from([np.dtype(name) for name in ("<f4", ">i2", "?", "c16", "U2", "M8[s]")])),
        max_size=4,
    ),
    st.booleans(),
)
def test_what_savez_writes_is_read_as_numpy_reads_it(arrays, compressed):
    data = npz(arrays, compressed=compressed)
    found = read_npz(source(data))
    expected = loaded(data)
    assert list(found.tree) == list(expected)
    for name, array in expected.items():
        assert_same(read_whole(found.tree[name]), np.ascontiguousarray(array).reshape(array.shape))
    assert len(found.checks) == len(arrays)
    assert all(check.source.nbytes for check in found.checks)


def test_stored_arrays_lie_where_they_are_and_deflated_ones_are_read():
    arrays = {"a": np.arange(100.0), "b": np.zeros((3, 4), np.int8)}
    for compressed in (False, True):
        found = read_npz(source(npz(arrays, compressed=compressed)))
        for name, array in arrays.items():
            assert_same(read_whole(found.tree[name]), array)


def test_arrays_of_objects_are_inert():
    found = read_npz(source(npz({"a": np.array([1, None, "x", 2.5], object)})))
    assert found.tree["a"].tolist() == [1, None, "x", 2.5]


def test_bfloat16_stays_what_numpy_made_of_it_and_is_noted():
    array = np.arange(4).astype(ml_dtypes.bfloat16)
    found = read_npz(source(npz({"a": array})))
    assert found.tree["a"].dtype == np.dtype("V2")
    assert read_whole(found.tree["a"]).view(ml_dtypes.bfloat16).tolist() == [0, 1, 2, 3]
    assert found.notes[0].startswith("a: saved by numpy as <V2")
    assert read_npy(source(npy(np.zeros(2, "V2")))).notes == ()


def test_float8_which_numpy_itself_cannot_read_is_read_as_bytes():
    found = read_npy(source(npy(np.ones(2, ml_dtypes.float8_e5m2))))
    assert read_whole(found.tree).view(ml_dtypes.float8_e5m2).tolist() == [1, 1]
    assert found.notes[0].startswith("saved by numpy as <f1")


def test_a_member_that_is_no_array_is_refused():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", npy(np.arange(3)))
        archive.writestr("readme", b"hello")
    with pytest.raises(ptc.CorruptionError, match="'readme' is no .npy"):
        read_npz(source(file.getvalue()))


def test_pickles_and_headers_are_bounded():
    data = npy(np.array(["x" * 500], object))
    with ptc.limits(index_nbytes=300), pytest.raises(ptc.LimitError, match="pickle"):
        read_npy(source(data))
    with pytest.raises(ptc.LimitError, match="header"):
        read_npy(source(b"\x93NUMPY\x02\x00" + (2 << 20).to_bytes(4, "little") + bytes(2 << 20)))
    with pytest.raises(ptc.LimitError, match="levels of fields"):
        read_npy(source(header(about("[('a', " * 20 + "'<f4'" + ")]" * 20), EIGHT)))


def test_a_field_may_have_one_extent():
    found = read_npy(source(header(about("[('a', '<f4', 2)]", shape="(1,)"), EIGHT)))
    assert found.tree.dtype == np.dtype([("a", "<f4", (2,))])


def header(text, data=b"", version=1):
    raw = text.encode("utf-8" if version == 3 else "latin-1")
    length = len(raw).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + raw + data


def about(descr="'<f4'", order="False", shape="(2,)"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


EIGHT = bytes(8)
REFUSED = {
    "nothing": b"",
    "another magic": b"\x93NUMPZ\x01\x00",
    "no version": b"\x93NUMPY",
    "an unknown version": header(about(), EIGHT).replace(b"Y\x01\x00", b"Y\x04\x00"),
    "no length": b"\x93NUMPY\x01\x00\x01",
    "a header cut off": b"\x93NUMPY\x01\x00\xff\xff{}",
    "a header of 4 GiB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}",
    "no UTF-8": b"\x93NUMPY\x03\x00\x01\x00\x00\x00\xff",
    "no dict": header("[1]", EIGHT),
    "a call": header("__import__('os').system('true')", EIGHT),
    "a name": header(about("float32"), EIGHT),
    "an operator": header(about(shape="(1+1,)"), EIGHT),
    "a key twice": header("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", EIGHT),
    "a key more": header("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'x': 1}", EIGHT),
    "a key less": header("{'descr': '<f4', 'shape': (2,)}", EIGHT),
    "a key that is a number": header("{1: 2}", EIGHT),
    "something after the dict": header(about() + "1", EIGHT),
    "deep brackets": header("(" * 5000, EIGHT),
    "many minus signs": header("-" * 5000 + "1", EIGHT),
    "an unknown escape": header(about("'\\q'"), EIGHT),
    "an escape beyond the characters": header(about("[('\\U00110000', '<f4')]"), EIGHT),
    "a list of one field without a comma": header(about("[('a' '<f4')]"), EIGHT),
    "an order that is a number": header(about(order="0"), EIGHT),
    "a shape that is a list": header(about(shape="[2]"), EIGHT),
    "a shape that is a number": header(about(shape="(2)"), EIGHT),
    "a negative extent": header(about(shape="(-2,)"), EIGHT),
    "an extent that is a bool": header(about(shape="(True, 2)"), EIGHT),
    "an extent of 20 digits": header(about(shape="(99999999999999999999,)"), EIGHT),
    "a product that wraps to 64 bits": header(about(shape="(4294967296, 4294967296)"), b""),
    "65 axes": header(about(shape="(" + "1," * 65 + ")"), bytes(4)),
    "too few bytes": header(about(), bytes(7)),
    "too many bytes": header(about(), bytes(9)),
    "a dtype of nobody": header(about("'<q9'"), EIGHT),
    "a size of nobody": header(about("'<f3'"), EIGHT),
    "a dtype of Python": header(about("'int'"), EIGHT),
    "a dtype of several": header(about("'<f4,<f4'"), EIGHT),
    "a dtype with a unit of nobody": header(about("'<M8[xs]'"), EIGHT),
    "a str of 4 GiB an item": header(about("'<U2147483647'"), EIGHT),
    "a dtype that is a number": header(about("4"), EIGHT),
    "a dtype that is a dict": header(about("{'names': ['a']}"), EIGHT),
    "a field of one": header(about("[('a',)]"), EIGHT),
    "a field of four": header(about("[('a', '<f4', (1,), 2)]"), EIGHT),
    "a field without a name": header(about("[(1, '<f4')]"), EIGHT),
    "a field with a negative extent": header(about("[('a', '<f4', (-1,))]"), EIGHT),
    "a field with a huge extent": header(about("[('a', '<f4', (9999999999,))]"), EIGHT),
    "two fields of one name": header(about("[('a', '<f4'), ('a', '<f4')]", shape="(1,)"), EIGHT),
    "a field of objects": header(about("[('a', '|O')]", shape="(1,)"), EIGHT),
    "fields in fields without end": header(about("[('a', " * 40 + "'<f4'" + ")]" * 40), EIGHT),
    "objects that are no pickle": header(about("'|O'"), EIGHT),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    with pytest.raises(ptc.PytreeckptError):
        read_npy(source(REFUSED[name]))


def test_headers_of_python_2_are_read():
    text = "{'descr': [(u'a', '<i8')], 'fortran_order': False, 'shape': (2L,), }\n"
    assert read_whole(read_npy(source(header(text, bytes(16)))).tree)["a"].tolist() == [0, 0]


LITERALS = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**19), 10**19) | st.text(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
)


@given(LITERALS)
def test_literals_are_read_as_python_reads_them(value):
    assert parse_literal(repr(value)) == ast.literal_eval(repr(value)) == value


@given(st.text(st.sampled_from("()[]{},:'\"\\ux0aTrueNone-L \n"), max_size=30))
def test_a_text_is_a_literal_or_an_error(text):
    try:
        value = parse_literal(text)
    except ptc.CorruptionError:
        return
    assert (
        value == ast.literal_eval(text.strip().replace("L", "").replace("u'", "'").replace('u"', '"'))
        or "L" in text
        or "u" in text
    )


@given(st.binary(max_size=100))
def test_random_bytes_give_a_tree_or_an_error(data):
    for read in (read_npy, read_npz):
        for begin in (b"", b"\x93NUMPY\x01\x00"):
            try:
                read(source(begin + data))
            except ptc.PytreeckptError as error:
                assert str(error)


def test_damaged_arrays_are_what_numpy_reads_or_an_error():
    rng = random.Random(0)
    base = npy(np.arange(3).view([("a", "<f4"), ("b", "<i2", (2,))]))
    flipped = [bytearray(base) for _ in range(8 * len(base))]
    for bit, data in enumerate(flipped):
        data[bit // 8] ^= 1 << bit % 8
    outcomes = collections.Counter()
    for data in [*map(bytes, flipped), *(damaged(base, rng) for _ in range(1000))]:
        try:
            found = read_whole(read_npy(source(data)).tree)
        except ptc.PytreeckptError as error:
            outcomes[type(error).__name__] += 1
            continue
        # There is no checksum that tells: but whatever the bytes say, numpy reads the same in them.
        expected = np.lib.format.read_array(io.BytesIO(data))
        assert same_dtype(found.dtype, expected.dtype)
        assert found.shape == expected.shape
        assert found.tobytes() == expected.tobytes()
        outcomes["array"] += 1
    assert min(outcomes["array"], outcomes["CorruptionError"]) > 100


def test_damaged_archives_give_a_tree_or_an_error():
    rng = random.Random(0)
    base = npz({"a": np.arange(5.0), "b": np.array([1, "x"], object)}, compressed=True)
    outcomes = set()
    for _ in range(1000):
        try:
            for value in read_npz(source(damaged(base, rng))).tree.values():
                if isinstance(value, ForeignArray):
                    read_whole(value)
            outcomes.add("tree")
        except ptc.PytreeckptError as error:
            outcomes.add(type(error).__name__)
    assert {"tree", "CorruptionError"} <= outcomes


def test_detection():
    assert is_npy(npy(np.zeros(1)))
    assert not is_npy(b"\x93NUMP")
    assert is_npz(["a.npy", "b/c.npy"])
    assert not is_npz([])
    assert not is_npz(["a.npy", "data.pkl"])
