"""Words cut into planes and put together again, for every cut that the format knows."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt.codecs import FILL, PLANES, RAW, ZSTD, encode_chunk
from pytreeckpt.planes import Cut, Plane, cut_of, join, pack_planes, split, unpack_planes
from tests import strategies as some


def cuts_of(word):
    """All widths that P-2 allows."""
    if word == 1:
        return [(1,)]
    halves = cuts_of(word // 2)
    return [(word,), *(high + low for high, low in itertools.product(halves, halves))]


CUTS = st.sampled_from([2, 4, 8]).flatmap(
    lambda word: st.builds(Cut, st.just(word), st.integers(0, 15), st.sampled_from(cuts_of(word)))
)


def by_hand(words, cut):
    """The planes, by Python's integers: as the format says it, word by word."""
    planes = [[] for _ in cut.widths]
    bits = 8 * cut.word
    for word in words:
        top = word >> (bits - 16)
        top = ((top << cut.rotation) | (top >> (16 - cut.rotation))) & 0xFFFF
        rest = (top << (bits - 16)) | (word & ((1 << (bits - 16)) - 1))
        end = bits
        for plane, width in zip(planes, cut.widths, strict=True):
            end -= 8 * width
            plane.append((rest >> end) & ((1 << 8 * width) - 1))
    return planes


@given(CUTS, st.data())
def test_planes_are_what_the_format_says_and_join_to_the_words(cut, data):
    words = data.draw(st.lists(st.integers(0, (1 << 8 * cut.word) - 1), min_size=1, max_size=30))
    raw = b"".join(word.to_bytes(cut.word, "little") for word in words)
    planes = split(memoryview(raw), cut)
    assert [plane.tolist() for plane in planes] == by_hand(words, cut)
    assert [plane.itemsize for plane in planes] == list(cut.widths)
    out = bytearray(len(raw))
    join(planes, cut, memoryview(out))
    assert out == raw


@given(CUTS, st.data())
def test_a_plane_of_one_part_stands_for_as_many_as_are_needed(cut, data):
    n = data.draw(st.integers(2, 20))
    planes = [
        np.array(data.draw(st.lists(st.integers(0, (1 << 8 * width) - 1), min_size=size, max_size=size)), f"<u{width}")
        for width in cut.widths
        for size in [data.draw(st.sampled_from([1, n]))]
    ]
    out, same = bytearray(n * cut.word), bytearray(n * cut.word)
    join(planes, cut, memoryview(out))
    join([np.array(np.broadcast_to(plane, n)) for plane in planes], cut, memoryview(same))
    assert out == same


@given(CUTS, st.data())
def test_packed_planes_are_unpacked_to_the_same(cut, data):
    n = data.draw(st.integers(1, 20))
    planes = []
    for width in cut.widths:
        codec = data.draw(st.sampled_from([0, 1, *([2] if n * width > 1 else [])]))
        size = (n * width, width, data.draw(st.integers(1, max(n * width - 1, 1))))[codec]
        planes.append(Plane(width, codec, data.draw(st.binary(min_size=size, max_size=size))))
    stored = b"".join(pack_planes(cut, planes))
    assert len(stored) % 8 == 0
    found, same = unpack_planes(memoryview(stored), n * cut.word, 2 * cut.word)
    assert found == cut
    assert [(plane.width, plane.codec, bytes(plane.stored)) for plane in same] == [
        (plane.width, plane.codec, plane.stored) for plane in planes
    ]


GAUSSIAN = np.random.default_rng(0).standard_normal(100_000) * 0.02


def stored_part(array, compression="auto"):
    raw = array.reshape(-1).view(np.uint8).data
    codec, pieces = encode_chunk(raw, array.itemsize, compression, cut_of(array.dtype))
    out = bytearray(len(raw))
    codec.decode(memoryview(b"".join(pieces)), memoryview(out), array.itemsize)
    assert out == raw
    return codec, sum(map(len, pieces)) / len(raw)


@pytest.mark.parametrize(
    ("dtype", "most"),
    [
        # The exponent's 2.6 bits and all others; for fp8, which has 4 or 5 of them, of all together.
        ("float32", 0.835),
        ("complex64", 0.835),
        ("bfloat16", 0.665),
        ("float16", 0.85),
        ("float64", 0.88),
        ("complex128", 0.88),
        ("float8_e4m3fn", 0.86),
        ("float8_e5m2", 0.75),
    ],
)
def test_gaussian_weights_become_smaller_by_what_their_exponents_lack(dtype, most):
    scale = 50 if dtype.startswith("float8") else 1
    codec, part = stored_part((scale * GAUSSIAN).astype(dtype))
    assert codec is (ZSTD if dtype.startswith("float8") else PLANES)
    assert part <= most


@pytest.mark.parametrize(
    ("array", "most", "codec"),
    [
        (GAUSSIAN.astype(ml_dtypes.bfloat16).astype(np.float32), 0.34, PLANES),
        (GAUSSIAN.astype(np.float32).astype(np.float64), 0.45, PLANES),
        (np.arange(100_000), 0.01, PLANES),
        (np.random.default_rng(0).integers(0, 50_000, 100_000), 0.26, PLANES),
        (np.tile(GAUSSIAN[:999].astype(np.float32), 100), 0.05, PLANES),
        (np.zeros(100_000), 0.0001, FILL),
        (np.random.default_rng(0).integers(0, 256, 100_000, dtype=np.uint8), 1, RAW),
        (np.random.default_rng(0).integers(0, 1 << 32, 100_000, dtype=np.uint32), 1, RAW),
        (np.random.default_rng(0).random(100_000) < 0.5, 0.13, ZSTD),
        (np.frombuffer(b"the same words again; " * 5000, np.uint8), 0.01, ZSTD),
        (np.array(["word", "another", "third"] * 9000), 0.05, None),
        (GAUSSIAN.astype(">f4"), 0.9, PLANES),
        (GAUSSIAN.astype("datetime64[s]"), 0.2, None),
    ],
    # Not by their texts, which have addresses in them.
    ids=lambda value: getattr(value, "name", None),
)
def test_what_lacks_entropy_is_coded_and_what_does_not_is_left(array, most, codec):
    found, part = stored_part(array)
    assert part <= most
    if codec is not None:
        assert found is codec


def test_small_arrays_are_cut_where_they_are_few_beside_large_ones():
    small = {f"bias {n}": GAUSSIAN[:384].astype("float32") for n in range(10)}
    large = {"weight": np.zeros(1 << 20, "float32")}
    alone = ptc.encode(small)
    beside = ptc.encode({**small, **large})
    # 0.9 of them, and the large one as good as nothing.
    assert len(beside) < len(alone) - 10 * 100
    assert ptc.decode(beside)["bias 9"].tobytes() == small["bias 9"].tobytes()


@given(some.arrays(), st.integers(1, 22))
def test_a_level_is_never_larger_than_auto(array, level):
    if array.nbytes == 0:
        return
    large = np.tile(array.reshape(-1), 20_000 // array.nbytes + 1)
    assert stored_part(large, level)[1] <= stored_part(large)[1]
    assert stored_part(large)[1] <= 1


@given(st.sampled_from(["float16", "bfloat16", "float32", "float64", "complex64", "int16", ">f8"]), st.integers(0, 99))
def test_every_bit_of_every_float_comes_back(dtype, seed):
    n_items = 30_000
    random = np.random.default_rng(seed)
    bits = random.bytes(n_items * np.dtype(dtype).itemsize)
    # Some of them NaN with a payload, infinite, subnormal or -0; the others, so that there is something to save, alike.
    array = np.frombuffer(bits, dtype).copy()
    array[random.integers(0, n_items, n_items // 2)] = (
        random.choice([0.0, -0.0, 1.5, np.inf, -np.inf, np.nan]) if (np.dtype(dtype).kind not in "iu") else 1
    )
    file = ptc.encode(array)
    assert ptc.decode(file).tobytes() == array.tobytes()


def test_the_cut_of_a_dtype_is_one_of_its_words():
    assert cut_of(np.dtype("float32")) == cut_of(np.dtype("complex64")) == Cut(4, 1, (1, 1, 2))
    assert cut_of(np.dtype(ml_dtypes.bfloat16)) == cut_of(np.dtype("float16")) == Cut(2, 1, (1, 1))
    assert cut_of(np.dtype("float64")) == Cut(8, 4, (1, 1, 2, 4))
    assert cut_of(np.dtype(">f4")) == cut_of(np.dtype("int32")) == cut_of(np.dtype("U7")) == Cut(4, 0, (1, 1, 1, 1))
    assert cut_of(np.dtype("M8[s]")) == cut_of(np.dtype("uint64")) == Cut(8, 0, (1,) * 8)
    for other in ("bool", "int8", "S6", "V8", "U0", [("a", "f4")], ml_dtypes.float8_e4m3fn, ml_dtypes.int4):
        assert cut_of(np.dtype(other)) is None
