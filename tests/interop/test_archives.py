"""Zip archives: members as windows, and one test for each way in which an archive could mean two things."""

import io
import struct
import threading
import zipfile
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt.interop import archives
from pytreeckpt.interop.archives import Window, located, members
from pytreeckpt.reading import read
from tests.interop.sources import source
from tests.sources import RecordingSource

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8).filter(
    lambda name: not name.endswith("/")
)
METHODS = st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])


def _plain(comment):
    # Python's own reader takes a magic in a comment for the end of the archive.
    return b"PK" not in comment


def archive_of(content, *, method=zipfile.ZIP_STORED, comment=b"", wide=False):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.comment = comment
        for name, data in content.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            with archive.open(info, "w", force_zip64=wide) as member:
                member.write(data)
    return file.getvalue()


def content_of(data):
    found = members(source(data))
    assert all(member.name == name and member.nbytes == member.source.nbytes for name, member in found.items())
    return {name: bytes(read(member.source, 0, member.nbytes)) for name, member in found.items()}


@given(
    st.dictionaries(NAMES, st.binary(max_size=300), max_size=4),
    METHODS,
    st.booleans(),
    st.binary(max_size=40).filter(_plain),
)
def test_members_are_what_was_put_in(content, method, wide, comment):
    data = archive_of(content, method=method, wide=wide, comment=comment)
    assert content_of(data) == content
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert {name: member.crc32 or 0 for name, member in members(source(data)).items()} == {
            info.filename: info.CRC for info in archive.infolist()
        }


@given(st.binary(max_size=200))
def test_any_bytes_give_members_or_an_error_of_ours(data):
    for tail in (b"", b"PK\x05\x06" + bytes(18)):
        try:
            assert isinstance(content_of(data + tail), dict)
        except ptc.PytreeckptError as error:
            assert str(error)


@given(st.data(), METHODS)
def test_damaged_archives_give_members_or_an_error_of_ours(draw, method):
    data = bytearray(archive_of({"a": b"x" * 50, "b/c": bytes(range(100))}, method=method, wide=True))
    for _ in range(draw.draw(st.integers(1, 3))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    try:
        content = content_of(bytes(data))
    except ptc.PytreeckptError as error:
        assert str(error)
    else:
        assert len(content) == 2


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_cut_off_anywhere_is_refused(method):
    data = archive_of({"a": b"x" * 50, "b": b"y" * 9}, method=method)
    for length in range(len(data)):
        with pytest.raises(ptc.CorruptionError):
            content_of(data[:length])


def test_folders_are_no_members():
    assert content_of(archive_of({"a/": b"", "a/b": b"x"})) == {"a/b": b"x"}


def test_names_are_keys_and_never_paths():
    names = ["../x", "/etc/passwd", "a\\b", ".", "C:x"]
    assert list(content_of(archive_of(dict.fromkeys(names, b"x")))) == names


def test_listing_thousands_of_members_reads_the_directory_alone():
    data = archive_of({f"data/{i}": b"\0" * 1000 for i in range(3000)})
    recording = RecordingSource(data)
    found = members(recording)
    assert len(found) == 3000
    assert len(recording.ranges) <= 4
    assert sum(stop - start for start, stop in recording.ranges) < len(data) / 10


def test_a_stored_member_is_a_window_of_the_archive():
    data = archive_of({"a": b"12345", "b": b"67890"})
    whole = source(data)
    member = members(whole)["b"]
    base, offset = located(member.source, 2)
    assert base is whole
    assert data[offset : offset + 3] == b"890"
    base, offset = located(Window(Window(member.source, 1, 4), 1, 2), 0)
    assert (base, data[offset : offset + 2]) == (whole, b"89")
    assert located(whole, 7) == (whole, 7)


def test_a_window_does_not_reach_beyond_its_end():
    window = Window(source(b"0123456789"), 2, 4)
    assert read(window, 1, 3) == b"345"
    for offset, nbytes in ((2, 3), (-1, 2), (5, 0)):
        with pytest.raises(ptc.CorruptionError, match="were asked for, of 4"):
            read(window, offset, nbytes)
    member = members(source(archive_of({"a": b"1234"}, method=zipfile.ZIP_DEFLATED)))["a"]
    with pytest.raises(ptc.CorruptionError, match="were asked for, of 4"):
        read(member.source, 3, 2)


def test_of_many_unpacked_members_the_last_few_are_kept(monkeypatch):
    content = {str(number): bytes([number]) * (100 << 10) for number in range(20)}
    found = members(source(archive_of(content, method=zipfile.ZIP_DEFLATED)))
    unpacked = []
    inner = archives.Deflated._unpack
    monkeypatch.setattr(archives.Deflated, "_unpack", lambda self: unpacked.append(self) or inner(self))
    for name, member in found.items():
        # Not up to the end, after which it would not be kept anyway.
        assert bytes(read(member.source, 70 << 10, 10)) == content[name][:10]
    assert len(unpacked) == 20
    for name in ("19", "12", "19", "12"):
        assert bytes(read(found[name].source, 80 << 10, 5)) == content[name][:5]
    assert len(unpacked) == 20
    kept = found["0"].source._kept._members
    assert sum(map(len, kept.values())) == 8 * (100 << 10)
    assert bytes(read(found["0"].source, 80 << 10, 20 << 10)) == content["0"][: 20 << 10]
    assert len(unpacked) == 21


def test_parts_of_a_deflated_member_are_read_from_several_threads():
    content = bytes(range(256)) * 40
    member = members(source(archive_of({"a": content}, method=zipfile.ZIP_DEFLATED)))["a"]
    found = {}

    def take(at):
        found[at] = bytes(read(member.source, at, 1024))

    threads = [threading.Thread(target=take, args=(at,)) for at in range(0, len(content), 1024)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert b"".join(found[at] for at in sorted(found)) == content


# Where things are in an archive of one member "a" with 50 bytes, and no zip64.
ONE = archive_of({"a": b"x" * 50})
CENTRAL = ONE.index(b"PK\x01\x02")
END = ONE.index(b"PK\x05\x06")


def patched(data, at, form, *values):
    changed = bytearray(data)
    struct.pack_into(form, changed, at, *values)
    return bytes(changed)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "no end of a zip archive"),
        (ONE + b"x", "no end of a zip archive"),
        (b"x" + ONE, "something was put before it"),
        (patched(ONE, END + 8, "<HH", 2, 2), "2 members do not fit"),
        (patched(ONE, END + 8, "<HH", 0, 0), "bytes too many"),
        (patched(ONE, END + 16, "<L", CENTRAL - 1), "should be bytes"),
        (patched(ONE, CENTRAL, "<4s", b"PK\1\3"), "damaged at byte 0"),
        (patched(ONE, CENTRAL + 28, "<H", 2), "damaged at byte 0"),
        (patched(ONE, CENTRAL + 46, "<B", 0), "is empty or holds a NUL"),
        (patched(ONE, CENTRAL + 24, "<L", 51), "stored, in 50 bytes instead of 51"),
        (patched(ONE, CENTRAL + 20, "<LL", 60, 60), "reach beyond"),
        (patched(ONE, CENTRAL + 42, "<L", 5), "reach beyond"),
        (patched(ONE, CENTRAL + 20, "<L", 0xFFFFFFFF), "not in the archive's directory"),
        (patched(ONE, 0, "<4s", b"PK\3\5"), "header of the member 'a' at byte 0 is damaged"),
        (patched(ONE, 8, "<H", 8), "header of the member 'a' at byte 0 is damaged"),
        (patched(ONE, 28, "<H", 30), "header of the member 'a' at byte 0 is damaged"),
    ],
)
def test_an_archive_that_does_not_agree_with_itself_is_refused(data, match):
    with pytest.raises(ptc.CorruptionError, match=match) as caught:
        content_of(data)
    assert caught.value.rule == "zip"


def test_two_members_of_one_name_are_refused():
    data = archive_of({"a": b"1", "b": b"2"})
    with pytest.raises(ptc.CorruptionError, match="two members called 'a'"):
        content_of(data[: data.index(b"PK\x01\x02")] + data[data.index(b"PK\x01\x02") :].replace(b"b", b"a"))


def test_members_that_overlap_are_refused():
    data = archive_of({"a": b"1" * 40, "b": b"2" * 40})
    second = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    with pytest.raises(ptc.CorruptionError, match="reach beyond"):
        content_of(patched(data, second + 42, "<L", 3))
    with pytest.raises(ptc.CorruptionError, match="reach beyond"):
        content_of(patched(data, second + 42, "<L", 0))


@pytest.mark.parametrize("flag", [1, 1 << 6, 1 << 13])
def test_encrypted_members_are_refused_with_advice(flag):
    with pytest.raises(ptc.UnsupportedTypeError, match="decrypt it first"):
        content_of(patched(ONE, CENTRAL + 8, "<H", flag))
    if flag == 1:
        with pytest.raises(ptc.CorruptionError, match="is damaged"):
            content_of(patched(ONE, 6, "<H", flag))


def test_other_ways_to_compress_are_refused_with_advice():
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with pytest.raises(ptc.UnsupportedTypeError, match=f"method {method}, which is neither stored nor deflated"):
            content_of(archive_of({"a": b"x" * 50}, method=method))


def test_an_archive_in_several_parts_is_refused():
    for at in (END + 4, END + 6):
        with pytest.raises(ptc.UnsupportedTypeError, match="one of several parts"):
            content_of(patched(ONE, at, "<H", 1))
    with pytest.raises(ptc.UnsupportedTypeError, match="one of several parts"):
        content_of(patched(ONE, CENTRAL + 34, "<H", 1))


DEFLATED = archive_of({"a": b"x" * 5000}, method=zipfile.ZIP_DEFLATED)
ITS_CENTRAL = DEFLATED.index(b"PK\x01\x02")


def test_a_bomb_is_refused_before_it_is_unpacked():
    with pytest.raises(ptc.CorruptionError, match="cannot become 4000000000"):
        content_of(patched(DEFLATED, ITS_CENTRAL + 24, "<L", 4_000_000_000))


@pytest.mark.parametrize("nbytes", [4999, 5001, 0])
def test_a_member_of_another_length_is_refused(nbytes):
    with pytest.raises(ptc.CorruptionError, match=f"not of the {nbytes} bytes"):
        content_of(patched(DEFLATED, ITS_CENTRAL + 24, "<L", nbytes))


def test_a_deflated_member_is_checked_when_it_is_unpacked():
    with pytest.raises(ptc.CorruptionError, match="CRC-32 does not match"):
        content_of(patched(DEFLATED, ITS_CENTRAL + 16, "<L", zlib.crc32(b"other")))
    start = 30 + 1
    with pytest.raises(ptc.CorruptionError, match="cannot be unpacked|not of the 5000 bytes"):
        content_of(patched(DEFLATED, start, "<B", 0xFF))


def test_limits_bound_the_directory_and_what_is_unpacked():
    with ptc.limits(index_nbytes=10), pytest.raises(ptc.LimitError, match="index_nbytes"):
        content_of(ONE)
    with ptc.limits(arrays_nbytes=4000), pytest.raises(ptc.LimitError, match="arrays_nbytes"):
        content_of(DEFLATED)


def wide_archive():
    """With an end of zip64, as torch writes it into every file."""
    data = archive_of({"a": b"x" * 50}, wide=True)
    start, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    wide_end = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, end - start, start)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1)
    return data[:end] + wide_end + locator + data[end:], end


def test_an_end_of_zip64_is_read_and_has_to_agree():
    data, wide_end = wide_archive()
    assert content_of(data) == {"a": b"x" * 50}
    saturated = patched(data, len(data) - 14, "<HHLL", 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
    assert content_of(saturated) == {"a": b"x" * 50}
    for at, match in (
        (wide_end + 32, "two directories that differ"),
        (wide_end + 4, "not where it should be"),
        (wide_end, "not where it should be"),
        (wide_end + 56 + 8, "not where it should be"),
    ):
        with pytest.raises(ptc.CorruptionError, match=match):
            content_of(patched(data, at, "<B", 7))


def test_sizes_of_zip64_come_from_the_extra_field():
    data, _ = wide_archive()
    central = data.index(b"PK\x01\x02")
    name_end = central + 46 + 1
    extra = struct.pack("<HHQQQ", 1, 24, 50, 50, 0)
    grown = patched(data[:name_end] + extra + data[name_end:], central + 20, "<LL", 0xFFFFFFFF, 0xFFFFFFFF)
    grown = patched(grown, central + 30, "<H", len(extra))
    grown = patched(grown, central + 42, "<L", 0xFFFFFFFF)
    end = grown.index(b"PK\x06\x06")
    grown = patched(grown, end + 40, "<Q", end - central)
    grown = patched(grown, end + 56 + 8, "<Q", end)
    grown = patched(grown, len(grown) - 10, "<L", end - central)
    assert content_of(grown) == {"a": b"x" * 50}
    with pytest.raises(ptc.CorruptionError, match="not in the archive's directory"):
        content_of(patched(grown, name_end, "<H", 2))
