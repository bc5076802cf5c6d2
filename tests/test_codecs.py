import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt.codecs import CODECS, FILL, RAW, ZSTD, check_compression, codec_of, encode_chunk, encode_fill
from tests import strategies as some
from tests.exact import assert_same

LEVELS = st.sampled_from(["auto", "none", 1, 3, 19])


@st.composite
def chunks(draw):
    """Raw bytes and an item size that divides them."""
    itemsize = draw(st.integers(1, 20))
    n_items = draw(st.integers(1, 300))
    kind = draw(st.sampled_from(["random", "constant", "nearly constant", "text"]))
    if kind == "random":
        raw = np.random.default_rng(draw(st.integers(0, 99))).bytes(itemsize * n_items)
    elif kind == "text":
        raw = (b"the same text again, " * (itemsize * n_items // 20 + 1))[: itemsize * n_items]
    else:
        raw = draw(st.binary(min_size=itemsize, max_size=itemsize)) * n_items
        if kind == "nearly constant":
            changed = bytearray(raw)
            changed[draw(st.integers(0, len(raw) - 1))] ^= 1 << draw(st.integers(0, 7))
            raw = bytes(changed)
    return raw, itemsize


@given(chunks(), LEVELS)
def test_decoding_an_encoded_chunk_gives_the_same_bytes(chunk, compression):
    raw, itemsize = chunk
    codec, pieces = encode_chunk(memoryview(raw), itemsize, compression)
    stored = b"".join(pieces)
    out = bytearray(len(raw))
    codec.decode(memoryview(stored), memoryview(out), itemsize)
    assert bytes(out) == raw
    assert codec.stored_fits(len(stored), len(raw), itemsize)
    assert len(stored) <= len(raw)
    assert CODECS[codec.number] is codec


@given(chunks(), LEVELS)
def test_encoding_is_a_function_of_its_arguments(chunk, compression):
    raw, itemsize = chunk
    (first, pieces), (again, same) = (encode_chunk(memoryview(raw), itemsize, compression) for _ in range(2))
    assert first is again
    assert b"".join(pieces) == b"".join(same)


@given(chunks(), st.sampled_from(list(CODECS.values())), st.binary(max_size=50))
def test_decoding_arbitrary_bytes_fills_the_output_or_is_corrupt(chunk, codec, stored):
    raw, itemsize = chunk
    try:
        codec.decode(memoryview(stored), memoryview(bytearray(len(raw))), itemsize)
    except ptc.CorruptionError as error:
        assert error.rule == "C-9" or error.rule.startswith(("P-", "Z-"))


@given(chunks())
def test_a_chunk_of_one_item_again_and_again_is_a_fill_and_no_other_is(chunk):
    raw, itemsize = chunk
    items = {raw[at : at + itemsize] for at in range(0, len(raw), itemsize)}
    assert encode_fill(memoryview(raw), itemsize) == (raw[:itemsize] if len(items) == 1 else None)


@pytest.mark.parametrize(
    ("raw", "itemsize", "compression", "expected"),
    [
        (bytes(1000), 4, "auto", FILL),
        (bytes(1000), 4, 5, FILL),
        (bytes(1000), 4, "none", RAW),
        (b"abcd" * 100, 4, "auto", FILL),
        (b"abcd" * 100, 8, "auto", FILL),
        (b"abcd" * 101, 404, "auto", ZSTD),
        (np.random.default_rng(0).bytes(100_000), 4, "auto", RAW),
        (np.random.default_rng(0).bytes(100_000), 4, 22, RAW),
        (b"some text " * 1000, 1, "auto", ZSTD),
        (b"some text " * 10_000, 1, "auto", ZSTD),
        (b"x", 1, "auto", RAW),
    ],
)
def test_the_codec_is_chosen_by_the_content(raw, itemsize, compression, expected):
    assert encode_chunk(memoryview(raw), itemsize, compression)[0] is expected


@pytest.mark.parametrize("compression", ["auto", "none", *range(1, 23)])
def test_every_choice_of_compression_gives_the_tree_back(compression):
    tree = {"zeros": np.zeros(5000), "ramp": np.arange(5000), "random": np.random.default_rng(0).bytes(3000)}
    assert_same(tree, ptc.decode(ptc.encode(tree, compression=compression)))


@pytest.mark.parametrize("compression", ["zstd", "", "3", 0, 23, -1, True, 1.5, None, b"auto"])
def test_any_other_compression_is_an_error_before_anything_is_written(compression, tmp_path):
    with pytest.raises(ValueError, match="compression is"):
        check_compression(compression)
    with pytest.raises(ValueError, match="compression is"):
        ptc.save(np.zeros(3), tmp_path / "x", compression=compression)
    assert not list(tmp_path.iterdir())


def test_an_unknown_codec_is_of_a_newer_version_and_not_corrupt():
    with pytest.raises(ptc.FormatVersionError, match="codec 77") as caught:
        codec_of(77)
    assert caught.value.rule == "C-2"


@given(some.arrays(), LEVELS)
def test_arrays_of_every_dtype_and_layout_come_back_with_every_compression(array, compression):
    assert_same([array], ptc.decode(ptc.encode([array], compression=compression)))


def test_items_of_any_size_can_be_filled_with():
    for itemsize in (1, 2, 3, 4, 5, 7, 8, 9, 16, 100, 2000):
        array = np.full(5000 // itemsize + 300, np.void(b"\x01" * itemsize))
        file = ptc.encode(array)
        assert len(file) < 3000 + 2 * itemsize
        assert_same(array, ptc.decode(file))
