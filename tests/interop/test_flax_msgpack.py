"""Flax's msgpack: what flax writes is read, bit by bit and lazily; hostile bytes give an error."""

import collections
import random
import struct

import flax.serialization
import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt import testing
from pytreeckpt.geometry import Box
from pytreeckpt.interop.flax_msgpack import is_flax_msgpack, read_flax_msgpack
from pytreeckpt.interop.foreign import ForeignArray, read_region, read_whole
from pytreeckpt.reading import read
from tests.exact import assert_same
from tests.interop.sources import damaged, source


def materialised(value):
    """The tree with its arrays read."""
    if isinstance(value, ForeignArray):
        return read_whole(value)
    if isinstance(value, dict):
        return {key: materialised(item) for key, item in value.items()}
    return [materialised(item) for item in value] if isinstance(value, list) else value


def restored(value):
    """What flax restores, its arrays in memory of their own."""
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict):
        return {key: restored(item) for key, item in value.items()}
    return [restored(item) for item in value] if isinstance(value, list) else value


# What flax itself reads back: no big-endian, no strings, no bytes, no structs.
DTYPES = [*map(np.dtype, [*"?bBhHiIqQefdFD", "M8[ns]", "m8[25s]"])] + [
    np.dtype(getattr(ml_dtypes, name))
    for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "int4", "uint4", "float8_e8m0fnu")
]
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    testing.floats(),
    st.text(max_size=40),
    st.binary(max_size=40),
    st.builds(complex, testing.floats(), testing.floats()),
    testing.arrays(st.sampled_from(DTYPES)),
    testing.arrays(st.sampled_from(DTYPES), max_dims=0).map(lambda array: array[()]),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=17) | st.dictionaries(st.text(max_size=3), inner, max_size=17),
    max_leaves=20,
)


@given(TREES)
def test_what_flax_writes_is_read_as_flax_reads_it(tree):
    data = flax.serialization.msgpack_serialize(tree)
    found = read_flax_msgpack(source(data))
    assert_same(restored(flax.serialization.msgpack_restore(data)), materialised(found.tree))


def test_a_state_dict_of_jax_arrays():
    data = flax.serialization.to_bytes({"params": {"w": jnp.ones((2, 3), jnp.bfloat16)}, "opt": (jnp.zeros(2), 3)})
    found = materialised(read_flax_msgpack(source(data)).tree)
    assert found["params"]["w"].dtype == ml_dtypes.bfloat16
    assert found["opt"]["0"].tolist() == [0, 0]
    assert found["opt"]["1"] == 3


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4), (5, 1, 2, 2), (1, 1)])
def test_arrays_in_chunks_are_one_array(monkeypatch, shape):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 20)
    array = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    data = flax.serialization.msgpack_serialize({"a": {"b": array}, "c": array.astype("u1")})
    found = read_flax_msgpack(source(data)).tree
    assert_same(read_whole(found["a"]["b"]), array)
    assert_same(read_whole(found["c"]), array.astype("u1"))
    box = Box(tuple(n // 2 for n in shape), tuple(n - n // 2 for n in shape))
    assert_same(read_region(found["a"]["b"], box), np.ascontiguousarray(array[box.slices]))


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple),
    st.lists(st.integers(0, 7), max_size=6),
    st.data(),
)
def test_however_an_array_is_cut_every_region_of_it_is_right(shape, cuts, data):
    array = np.arange(np.prod(shape), dtype="i2").reshape(shape)
    at = sorted({0, *(cut * array.size // 7 for cut in cuts), array.size})
    parts = [array.reshape(-1)[a:b] for a, b in zip(at, at[1:], strict=False)]
    # Empty ones are chunks too.
    parts.insert(data.draw(st.integers(0, len(parts))), np.zeros(0, "i2"))
    found = read_flax_msgpack(source(chunks(shape, *parts))).tree
    assert_same(read_whole(found), array)
    offset = tuple(data.draw(st.integers(0, extent - 1)) for extent in shape)
    box = Box(offset, tuple(data.draw(st.integers(1, n - o)) for o, n in zip(offset, shape, strict=True)))
    assert_same(read_region(found, box), array[box.slices].copy())


def test_many_axes_and_many_chunks_are_one_piece_all_the_same():
    shape = (1,) * 46 + (2,) * 18
    items = np.arange(1 << 18, dtype="i1")
    found = read_flax_msgpack(source(chunks(shape, *(items[at : at + 37] for at in range(0, len(items), 37))))).tree
    assert len(found.pieces) == 1
    assert read_whole(found).tobytes() == items.tobytes()


def test_bytes_beyond_an_array_in_chunks_are_an_error():
    joined = read_flax_msgpack(source(chunks([4], np.zeros(2), np.zeros(2)))).tree.pieces[0].source
    assert read(joined, 8, 24) == bytes(24)
    for offset, nbytes in ((-1, 4), (0, 33), (32, 1), (1 << 70, 1)):
        with pytest.raises(ptc.CorruptionError, match="in chunks"):
            read(joined, offset, nbytes)


def test_an_array_at_the_root_in_chunks(monkeypatch):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 16)
    data = flax.serialization.msgpack_serialize(np.arange(9.0))
    assert_same(read_whole(read_flax_msgpack(source(data)).tree), np.arange(9.0))


def test_opening_reads_none_of_the_items():
    class Counting:
        def __init__(self, data):
            self.inner = source(data)
            self.nbytes = self.inner.nbytes
            self.read = 0

        def read_into(self, offset, buffers):
            self.read += sum(map(len, buffers))
            self.inner.read_into(offset, buffers)

    counting = Counting(flax.serialization.msgpack_serialize({str(i): np.zeros(1 << 20) for i in range(4)}))
    found = read_flax_msgpack(counting)
    assert counting.read < 1 << 19 < counting.nbytes
    assert found.tree["3"].nbytes == 8 << 20


def test_names_may_be_bytes_and_texts_longer_than_what_is_read_at_once():
    long = "x" * 200_000
    data = msgpack.packb({long: msgpack.ExtType(1, msgpack.packb([[2], b"uint8", b"ab"]))})
    found = read_flax_msgpack(source(data)).tree
    assert read_whole(found[long]).tolist() == [97, 98]


def test_names_of_dtypes_that_flax_cannot_read_back():
    for array in (np.array(["ab", "c"]), np.array([b"ab", b"c"]), np.array([1.5], np.longdouble), np.zeros(2, "V3")):
        data = flax.serialization.msgpack_serialize({"a": array})
        assert_same(read_whole(read_flax_msgpack(source(data)).tree["a"]), array)


def ext(code, *parts):
    return msgpack.packb({"a": msgpack.ExtType(code, b"".join(msgpack.packb(part) for part in parts))})


REFUSED = {
    "nothing": b"",
    "a byte that begins nothing": b"\xc1",
    "a map cut off": b"\x82\xa1a\x01",
    "a map of more values than bytes": b"\xdf\xff\xff\xff\xff",
    "a list of more values than bytes": b"\x81\xa1a\xdd\xff\xff\xff\xff",
    "a text longer than the file": b"\x81\xdb\xff\xff\xff\xffa",
    "bytes longer than the file": b"\x81\xa1a\xc6\xff\xff\xff\xff",
    "an ext longer than the file": b"\x81\xa1a\xc9\xff\xff\xff\xff\x01",
    "a text that is no UTF-8": b"\x81\xa1\xff\x01",
    "something after the tree": msgpack.packb({"a": 1}) + b"\xc0",
    "a key twice": b"\x82\xa1a\x01\xa1a\x02",
    "a key that is None": b"\x81\xc0\x01",
    "a key that is a list": b"\x81\x90\x01",
    "a key that is a float": b"\x81\xcb" + struct.pack(">d", 1.0) + b"\x01",
    "an ext type of others": ext(5, 1),
    "a timestamp": b"\x81\xa1a\xd6\xff\x00\x00\x00\x00",
    "an array of two parts": ext(1, [[2], "uint8"]),
    "an array that is no array": ext(1, 5),
    "an array with something after it": ext(1, [[2], "uint8", b"ab"], 1),
    "an array of too few bytes": ext(1, [[3], "uint8", b"ab"]),
    "an array of too many bytes": ext(1, [[1], "uint8", b"ab"]),
    "a negative extent": ext(1, [[-1], "uint8", b"ab"]),
    "an extent that is a bool": ext(1, [[True], "uint8", b"a"]),
    "an extent that is a list": ext(1, [[[]], "uint8", b"a"]),
    "a product that wraps to 64 bits": ext(1, [[1 << 32, 1 << 32], "uint8", b""]),
    "65 axes": ext(1, [[1] * 65, "uint8", b"a"]),
    "an unknown dtype": ext(1, [[2], "uint9", b"ab"]),
    "a name of ours": ext(1, [[1], "int16_be", b"ab"]),
    "objects": ext(1, [[1], "object", b"abcdefgh"]),
    "a dtype that is a number": ext(1, [[2], 4, b"ab"]),
    "a dtype of many characters": ext(1, [[2], "u" * 100, b"ab"]),
    "a str of half a character": ext(1, [[1], "str8", b"a"]),
    "items that are a number": ext(1, [[2], "uint8", 4]),
    "a complex number of three parts": ext(2, [1.0, 2.0, 3.0]),
    "a complex number of texts": ext(2, ["a", "b"]),
    "a complex number that is none": ext(2, 1.0),
    "a scalar with axes": ext(3, [[1], "uint8", b"a"]),
    "chunks without a shape": msgpack.packb({"a": {"__msgpack_chunked_array__": True, "chunks": {}}}),
    "chunks that are no arrays": msgpack.packb(
        {"__msgpack_chunked_array__": True, "shape": {"0": 1}, "chunks": {"0": 1}}
    ),
    "chunks that are missing": msgpack.packb({"__msgpack_chunked_array__": True, "shape": {"0": 1}, "chunks": {}}),
    "a chunk without its number": msgpack.packb(
        {"__msgpack_chunked_array__": True, "shape": {"0": 0}, "chunks": {"1": 1}}
    ),
}


def chunks(shape, *arrays):
    parts = {
        str(n): msgpack.ExtType(1, msgpack.packb([a.shape, a.dtype.name, a.tobytes()])) for n, a in enumerate(arrays)
    }
    return msgpack.packb(
        {"__msgpack_chunked_array__": True, "shape": {str(n): e for n, e in enumerate(shape)}, "chunks": parts}
    )


REFUSED |= {
    "chunks of too few items": chunks([5], np.zeros(2), np.zeros(2)),
    "chunks of too many items": chunks([3], np.zeros(2), np.zeros(2)),
    "chunks of two dtypes": chunks([4], np.zeros(2), np.zeros(2, "i8")),
    "chunks that are not flat": chunks([4], np.zeros((2, 2))),
    "chunks of 65 axes": chunks([1] * 65, np.zeros(1)),
    "chunks of a negative shape": chunks([-4], np.zeros(4)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    with pytest.raises(ptc.PytreeckptError):
        read_flax_msgpack(source(REFUSED[name]))


def test_depth_is_bounded_by_the_limit_alone():
    deep = b"\x91" * 9_000 + b"\xc0"
    value = read_flax_msgpack(source(deep)).tree
    for _ in range(9_000):
        [value] = value
    assert value is None
    with pytest.raises(ptc.LimitError, match="deeper"):
        read_flax_msgpack(source(b"\x91" * 10_000 + b"\xc0"))


def test_an_ext_within_an_ext_is_no_recursion():
    nested = b"\xc0"
    for _ in range(5000):
        nested = msgpack.packb(msgpack.ExtType(1, b"\x93\x91" + nested))
    with pytest.raises(ptc.CorruptionError, match="an ext within an ext"):
        read_flax_msgpack(source(nested))


def test_the_number_of_values_and_the_length_of_texts_are_bounded():
    with ptc.limits(nodes=100), pytest.raises(ptc.LimitError, match="values"):
        read_flax_msgpack(source(msgpack.packb(list(range(200)))))
    with ptc.limits(index_nbytes=100), pytest.raises(ptc.LimitError, match="texts"):
        read_flax_msgpack(source(msgpack.packb(["a" * 60, "b" * 60])))
    with ptc.limits(index_nbytes=100), pytest.raises(ptc.LimitError, match="scalar"):
        read_flax_msgpack(source(ext(3, [[], "void1600", bytes(200)])))


@given(st.binary(max_size=60))
def test_random_bytes_give_a_tree_or_an_error(data):
    try:
        read_flax_msgpack(source(data))
    except ptc.PytreeckptError as error:
        assert str(error)


def test_damaged_files_give_a_tree_or_an_error(monkeypatch):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 20)
    rng = random.Random(0)
    tree = {"a": np.arange(12.0).reshape(3, 4), "b": [1, "x", 2j, np.float32(1)], "c": {"d": None, "e": 1 << 40}}
    base = flax.serialization.msgpack_serialize(tree)
    outcomes = collections.Counter()
    for _ in range(3000):
        data = damaged(base, rng)
        try:
            found = materialised(read_flax_msgpack(source(data)).tree)
        except ptc.PytreeckptError as error:
            outcomes[type(error).__name__] += 1
            continue
        # There is no checksum that tells: but whatever the bytes say, flax reads the same in them.
        assert_same(restored(flax.serialization.msgpack_restore(data)), found)
        outcomes["tree"] += 1
    assert outcomes.keys() == {"tree", "CorruptionError", "UnsupportedTypeError"}
    assert outcomes["tree"] > 300


def test_detection_wants_a_map_with_a_text_first():
    for tree in ({"a": 1}, {str(n): 0 for n in range(20)}, {"a" * 300: 0}, {str(n): 0 for n in range(70_000)}):
        assert is_flax_msgpack(flax.serialization.msgpack_serialize(tree)[:6])
    for head in (b"", b"\x80", b"\x80\x02}q", b"PK\x03\x04ab", b'{"a": 1}', b"\x89PNG\r\n", b"\x81"):
        assert not is_flax_msgpack(head)
