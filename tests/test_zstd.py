import struct

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pytreeckpt import CorruptionError
from pytreeckpt.zstd import compress, decompress


@given(st.binary(max_size=5000), st.integers(1, 22))
def test_decompressing_what_was_compressed_gives_the_same_bytes(raw, level):
    frame = compress(raw, level)
    assert decompress(frame, len(raw)) == raw
    assert zstandard.ZstdDecompressor().decompress(frame, max_output_size=len(raw)) == raw


@given(st.binary(max_size=2000))
def test_a_frame_of_another_binding_is_decompressed(raw):
    assert decompress(zstandard.ZstdCompressor(level=5, write_checksum=True).compress(raw), len(raw)) == raw


def test_a_large_frame_needs_a_window_of_at_most_8_mib():
    raw = bytes(9 << 20)
    for level in (1, 19, 22):
        frame = compress(raw, level)
        parameters = zstandard.get_frame_parameters(frame)
        assert parameters.window_size <= 8 << 20
        assert parameters.content_size == len(raw)
        assert decompress(frame, len(raw)) == raw


@given(st.binary(max_size=300), st.integers(0, 400))
def test_arbitrary_bytes_are_content_of_the_length_or_corrupt(data, nbytes):
    for stored in (data, b"\x28\xb5\x2f\xfd" + data):
        try:
            raw = decompress(stored, nbytes)
        except CorruptionError as error:
            assert error.rule in {"Z-1", "Z-2", "Z-3", "Z-4", "Z-5"}
        else:
            assert len(raw) == nbytes


@given(st.binary(min_size=50, max_size=500), st.data())
def test_a_changed_frame_is_content_of_the_length_or_corrupt(raw, data):
    frame = bytearray(compress(raw * 3, 3))
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert len(decompress(frame, 3 * len(raw))) == 3 * len(raw)
    except CorruptionError as error:
        assert error.rule.startswith("Z-")


def _frame(header: bytes, *blocks: bytes) -> bytes:
    return b"\x28\xb5\x2f\xfd" + header + b"".join(blocks)


def _block(raw: bytes, *, last: bool = True, kind: int = 0, size: int | None = None) -> bytes:
    return struct.pack("<I", last | kind << 1 | (len(raw) if size is None else size) << 3)[:3] + raw


SINGLE = b"\x20"  # descriptor: one segment, content size of 1 byte
GOOD = _frame(SINGLE + b"\x05", _block(b"hello"))
CASES = {
    "nothing": ("Z-1", b""),
    "three bytes": ("Z-1", b"\x28\xb5\x2f"),
    "a skippable frame before it": ("Z-1", b"\x50\x2a\x4d\x18\x00\x00\x00\x00" + GOOD),
    "a legacy magic": ("Z-1", b"\x27" + GOOD[1:]),
    "a magic and nothing": ("Z-5", b"\x28\xb5\x2f\xfd"),
    "half a header": ("Z-5", GOOD[:5]),
    "a reserved bit": ("Z-5", _frame(b"\x28\x05", _block(b"hello"))),
    "no content size": ("Z-2", _frame(b"\x00\x58", _block(b"hello"))),
    "another content size": ("Z-2", _frame(SINGLE + b"\x06", _block(b"hello!"))),
    "a huge content size": ("Z-2", _frame(b"\xe0" + struct.pack("<Q", (1 << 64) - 1), _block(b"hello"))),
    # The library beneath says that it cannot read this header.
    "the content size that stands for an error": (
        "Z-5",
        _frame(b"\xe0" + struct.pack("<Q", (1 << 64) - 2), _block(b"hello")),
    ),
    "a dictionary": ("Z-3", _frame(b"\x21\x07\x05", _block(b"hello"))),
    "a window of 8 MiB and an eighth": (
        "Z-4",
        _frame(b"\x80" + bytes([(23 - 10) << 3 | 1]) + struct.pack("<I", 5), _block(b"hello")),
    ),
    "a window of 2 TiB": ("Z-4", _frame(b"\x80" + bytes([31 << 3]) + struct.pack("<I", 5), _block(b"hello"))),
    "a reserved block": ("Z-5", _frame(SINGLE + b"\x05", _block(b"hello", kind=3))),
    "content that is too short": ("Z-5", _frame(SINGLE + b"\x05", _block(b"hell"))),
    "content that is too long": ("Z-5", _frame(SINGLE + b"\x05", _block(b"hello!"))),
    "no last block": ("Z-5", _frame(SINGLE + b"\x05", _block(b"hello", last=False))),
    "a repeated byte that is too long": ("Z-5", _frame(SINGLE + b"\x05", _block(b"x", kind=1, size=1 << 20))),
    "a byte after it": ("Z-5", GOOD + b"\0"),
    "a second frame": ("Z-5", GOOD + GOOD),
    "an empty frame after it": ("Z-5", GOOD + _frame(SINGLE + b"\x00", _block(b""))),
    "a skippable frame after it": ("Z-5", GOOD + b"\x50\x2a\x4d\x18\x00\x00\x00\x00"),
    "a wrong checksum": ("Z-5", _frame(b"\x24\x05", _block(b"hello")) + bytes(4)),
    "a compressed block that is none": ("Z-5", _frame(SINGLE + b"\x05", _block(b"\xff\xff\xff\xff", kind=2))),
}


def test_the_frame_that_the_cases_change_is_good():
    assert decompress(GOOD, 5) == b"hello"
    assert decompress(_frame(b"\x80" + bytes([(23 - 10) << 3]) + struct.pack("<I", 5), _block(b"hello")), 5) == b"hello"
    # A dictionary of number 0 is none.
    assert decompress(_frame(b"\x21\x00\x05", _block(b"hello")), 5) == b"hello"


@pytest.mark.parametrize(("rule", "stored"), CASES.values(), ids=CASES)
def test_a_frame_that_breaks_a_rule_is_refused_by_its_number(rule, stored):
    with pytest.raises(CorruptionError) as caught:
        decompress(stored, 5)
    assert caught.value.rule == rule


def test_a_single_segment_of_more_than_8_mib_needs_too_large_a_window():
    stored = zstandard.ZstdCompressor(level=1).compress(bytes((8 << 20) + 1))
    single = b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", (8 << 20) + 1) + stored[-20:]
    with pytest.raises(CorruptionError) as caught:
        decompress(single, (8 << 20) + 1)
    assert caught.value.rule == "Z-4"


def test_a_bomb_gives_no_more_than_was_declared():
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 28))
    with pytest.raises(CorruptionError) as caught:
        decompress(bomb, 1000)
    assert caught.value.rule == "Z-2"
