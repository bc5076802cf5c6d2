"""The frame of a file: preamble and footer."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt.wire import (
    DATA_FILES,
    Footer,
    align,
    check_preamble,
    decode_footer,
    encode_footer,
    encode_preamble,
    padding,
)
from tests.forge import MAGIC, PREAMBLE, document_of, frame
from tests.strategies import TREES

U64 = st.integers(0, (1 << 64) - 1)


def raw() -> bytes:
    import msgpack

    return msgpack.packb(document_of("x")[0])


@given(st.integers(0, 1 << 70))
def test_aligning_gives_the_next_multiple_of_64(nbytes):
    assert align(nbytes) % 64 == 0
    assert nbytes <= align(nbytes) < nbytes + 64


@given(st.integers(0, 1000))
def test_padding_is_what_is_missing_to_the_next_multiple(nbytes):
    assert padding(nbytes) == bytes(align(nbytes) - nbytes)


@given(
    st.integers(1, 1 << 40),
    st.integers(1, 1 << 40),
    st.integers(0, (1 << 64) - 1),
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=32, max_size=32),
    st.sampled_from([0, DATA_FILES]),
)
def test_a_footer_comes_back(blocks, stored, raw_nbytes, digest, root, features):
    nbytes = 64 * blocks + align(stored) + 128
    footer = Footer(64 * blocks, stored, raw_nbytes, 2, digest, root, nbytes, features)
    assert decode_footer(encode_preamble(features), encode_footer(footer), footer.file_nbytes) == footer


@given(TREES, st.data())
def test_a_change_of_any_byte_of_preamble_or_footer_is_noticed(tree, data):
    file = bytearray(ptc.encode(tree))
    place = data.draw(st.integers(0, 63) | st.integers(len(file) - 128, len(file) - 1))
    file[place] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises((ptc.CorruptionError, ptc.FormatVersionError)):
        ptc.decode(file)


@given(TREES, st.data())
def test_a_file_cut_anywhere_or_continued_is_refused(tree, data):
    file = ptc.encode(tree)
    with pytest.raises(ptc.CorruptionError):
        ptc.decode(file[: data.draw(st.integers(0, len(file) - 1))])
    with pytest.raises(ptc.CorruptionError):
        ptc.decode(file + data.draw(st.binary(min_size=1)))


# Hypothesis knows the magic from our source; what begins with it is the next test's.
@given(st.binary().filter(lambda data: not data.startswith(MAGIC)))
def test_arbitrary_bytes_are_no_checkpoint(data):
    with pytest.raises(ptc.NotACheckpointError) as caught:
        ptc.decode(data)
    assert caught.value.rule == "F-1"


@given(st.binary())
def test_arbitrary_bytes_after_the_magic_are_refused(data):
    with pytest.raises((ptc.CorruptionError, ptc.FormatVersionError)):
        ptc.decode(MAGIC + data)


def test_the_preamble_is_the_one_of_the_specification():
    assert encode_preamble() == PREAMBLE
    check_preamble(PREAMBLE)
    check_preamble(_preamble(features=1))


def test_an_unknown_feature_is_named_and_a_known_one_is_not():
    with pytest.raises(ptc.FormatVersionError, match=r"needs the features 1, 63, which"):
        check_preamble(_preamble(features=3 + (1 << 63)))


def _preamble(**changes):
    fields = {"magic": MAGIC, "version": 1, "zero": bytes(4), "features": 0, "more": bytes(40)} | changes
    return struct.pack("<8sI4sQ40s", *fields.values())


VALID = frame(raw())
CASES = {
    "another magic": ("F-1", frame(raw(), preamble=_preamble(magic=b"\x89PTCK\n\x1a\n"))),
    "no bytes": ("F-1", b""),
    "part of the magic": ("F-1", MAGIC[:7]),
    "version 0": ("F-2", frame(raw(), preamble=_preamble(version=0))),
    "version 2": ("F-2", frame(raw(), preamble=_preamble(version=2))),
    "the feature 1": ("F-3", frame(raw(), preamble=_preamble(features=2))),
    "the features data-files and 63": ("F-3", frame(raw(), preamble=_preamble(features=1 + (1 << 63)))),
    "all features": ("F-3", frame(raw(), preamble=_preamble(features=(1 << 64) - 1))),
    "only the magic": ("F-4", MAGIC),
    "only the preamble": ("F-4", PREAMBLE),
    "191 bytes": ("F-4", (PREAMBLE + bytes(200))[:191]),
    "another end": ("F-5", frame(raw(), end=MAGIC)),
    "no end": ("F-5", VALID[:-1]),
    "a byte more": ("F-5", VALID + b"\0"),
    "another check": ("F-6", frame(raw(), check=bytes(8))),
    "another length": ("F-7", frame(raw(), length=192)),
    "a block inserted": ("F-7", VALID[:64] + bytes(64) + VALID[64:]),
    "bytes 12 to 15 set": ("F-8", frame(raw(), preamble=_preamble(zero=b"\0\0\0\1"))),
    "bytes 24 to 63 set": ("F-8", frame(raw(), preamble=_preamble(more=bytes(39) + b"\1"))),
    "bytes 25 to 31 of the footer set": ("F-8", frame(raw(), zero_1=bytes(6) + b"\1")),
    "bytes 80 to 103 of the footer set": ("F-8", frame(raw(), zero_2=b"\1" + bytes(23))),
    "an index at 0": ("F-9", frame(raw(), offset=0)),
    "an index off the grid": ("F-9", frame(raw(), offset=65)),
    "an index beyond the end": ("F-9", frame(raw(), offset=1 << 62)),
    "an index at the end of the address space": ("F-9", frame(raw(), offset=(1 << 64) - 64)),
    "a stored index of 0 bytes": ("F-9", frame(raw(), stored_nbytes=0)),
    "a stored index of 2^64 - 1 bytes": ("F-9", frame(raw(), stored_nbytes=(1 << 64) - 1)),
    "index codec 1": ("F-10", frame(raw(), codec=1)),
    "index codec 3": ("F-10", frame(raw(), codec=3)),
    "a raw index with another raw length": ("F-10", frame(raw(), raw_nbytes=len(raw()) + 1)),
    "another digest": ("F-11", frame(raw(), digest=bytes(16))),
    "a byte between index and footer": ("F-12", frame(raw(), gap=bytes(align(len(raw())) - len(raw()) - 1) + b"\1")),
    "a zstd index that is none": ("Z-1", frame(raw(), codec=2, stored=raw())),
    "a zstd index of another length": ("Z-2", frame(raw(), codec=2, raw_nbytes=len(raw()) + 1)),
    "another root": ("F-14", frame(raw(), root=bytes(32))),
}


def test_the_frame_around_the_cases_is_valid():
    assert ptc.decode(VALID) == "x"
    assert ptc.decode(frame(raw(), codec=2)) == "x"
    assert align(len(raw())) > len(raw())


@pytest.mark.parametrize(("rule", "file"), CASES.values(), ids=CASES)
def test_a_frame_that_breaks_a_rule_is_refused_by_its_number(rule, file):
    with pytest.raises((ptc.CorruptionError, ptc.FormatVersionError)) as caught:
        ptc.decode(file)
    assert caught.value.rule == rule
    unknown = rule in {"F-2", "F-3"}
    assert isinstance(caught.value, ptc.FormatVersionError) is unknown
    assert isinstance(caught.value, ptc.NotACheckpointError) is (rule == "F-1")


def test_every_rule_of_the_frame_has_a_case():
    assert {f"F-{i}" for i in range(1, 15)} - {"F-13"} <= {rule for rule, _ in CASES.values()}


def test_a_raw_length_beyond_the_limit_is_refused_before_anything_is_allocated():
    with pytest.raises(ptc.LimitError, match="index has 9223372036854775808 bytes"):
        ptc.decode(frame(raw(), codec=2, raw_nbytes=1 << 63))
