"""Zip archives as streams: Python's own reader finds no fault with them, and ours reads the same members."""

import io
import random
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt.interop.archives import members
from pytreeckpt.interop.zip_writing import ZipMember, plan_zip
from pytreeckpt.reading import read
from tests.interop.sources import source

CONTENTS = st.lists(st.binary(max_size=300), max_size=4)
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8).filter(
    lambda name: not name.endswith("/")
)


def member(name, parts, *, compressed=False, most=None):
    return ZipMember(name, lambda: parts, sum(map(len, parts)) if most is None else most, compressed)


def archive_of(found, **options):
    return b"".join(plan_zip(found, **options)())


@given(st.dictionaries(NAMES, CONTENTS, min_size=1, max_size=5), st.booleans(), st.sampled_from([1, 4, 64, 4096]))
def test_every_member_comes_back(contents, compressed, alignment):
    data = archive_of([member(*item, compressed=compressed) for item in contents.items()], alignment=alignment)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        # Python takes a name with a separator of another system for a path.
        assert [info.orig_filename for info in archive.infolist()] == list(contents)
        assert [archive.read(info) for info in archive.infolist()] == [b"".join(parts) for parts in contents.values()]
    ours = members(source(data))
    assert list(ours) == list(contents)
    for name, parts in contents.items():
        assert read(ours[name].source, 0, ours[name].nbytes) == b"".join(parts)


@given(st.lists(st.integers(0, 200), min_size=1, max_size=6), st.sampled_from([8, 64]))
def test_contents_are_aligned(sizes, alignment):
    data = archive_of(
        [member(f"name {n}" * n, [bytes([n + 1]) * size]) for n, size in enumerate(sizes)], alignment=alignment
    )
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            extra = int.from_bytes(data[info.header_offset + 28 : info.header_offset + 30], "little")
            assert (info.header_offset + 30 + len(info.filename) + extra) % alignment == 0


def test_the_bytes_do_not_depend_on_the_clock_or_on_how_the_content_comes():
    assert archive_of([member("a", [b"xy", b"z"])]) == archive_of([member("a", [b"x", b"", b"yz"])])


def test_members_that_may_be_large_have_long_lengths():
    data = archive_of(
        [member("a", [b"small"], most=1 << 33), member("b", [b"x" * 1000], compressed=True, most=1 << 33)]
    )
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert archive.read("a") == b"small"
    ours = members(source(data))
    assert read(ours["b"].source, 0, 1000) == b"x" * 1000


def test_more_members_than_16_bits_can_number():
    data = archive_of([member(str(n), [b"x"]) for n in range(70_000)])
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert len(archive.namelist()) == 70_000
        assert archive.read("69999") == b"x"
    assert len(members(source(data))) == 70_000


def test_an_archive_without_members():
    with zipfile.ZipFile(io.BytesIO(archive_of([]))) as archive:
        assert archive.namelist() == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a" * 70_000], "too long"),
        (["a", "b\0c"], "cannot be the name"),
        (["\udc80"], "cannot be the name"),
        (["a", "b", "a"], "two members"),
    ],
)
def test_names_that_no_reader_finds_again_are_refused_before_anything_is_written(names, message):
    with pytest.raises(ptc.UnsupportedTypeError, match=message):
        plan_zip([member(name, []) for name in names])


@pytest.mark.slow
def test_more_bytes_than_32_bits_can_count(tmp_path):
    """A member of more than 4 GiB, and others that begin after it; the zeros take no place on the disk."""
    zeros = memoryview(bytes(1 << 26))
    big = ZipMember("big", lambda: (zeros for _ in range(65)), 65 << 26)
    with (tmp_path / "x").open("wb") as file:
        for piece in plan_zip([big, member("small", [b"hello"])], alignment=64)():
            if piece is zeros:
                file.seek(len(piece), 1)
            else:
                file.write(piece)
    with zipfile.ZipFile(tmp_path / "x") as archive:
        assert archive.getinfo("big").file_size == 65 << 26
        assert archive.read("small") == b"hello"
        with archive.open("big") as content:
            assert content.read(10) == bytes(10)


def test_random_contents_survive_deflate():
    rng = random.Random(0)
    parts = [rng.randbytes(rng.randrange(70_000)) for _ in range(5)]
    data = archive_of([member("a", parts, compressed=True)])
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.read("a") == b"".join(parts)
