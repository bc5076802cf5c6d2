"""The directory of a zip archive: which members it has, and where.

Source: PKWARE's APPNOTE.TXT 6.3, sections 4.3 and 4.5.3 (zip64). An archive that could mean two things (two members of
a name, members that overlap, a directory that is not where it is said to be) is refused; that a member has the same
name in its own header is seen when that is read.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from pytreeckpt.errors import CorruptionError, LimitError, UnsupportedTypeError
from pytreeckpt.limits import current_limits
from pytreeckpt.reading import RangedSource, read

MAGIC: Final = b"PK\x03\x04"

_END: Final = struct.Struct("<4s4H2LH")
_END_MAGIC: Final = b"PK\x05\x06"
_LOCATOR: Final = struct.Struct("<4sLQL")
_LOCATOR_MAGIC: Final = b"PK\x06\x07"
_END_64: Final = struct.Struct("<4sQ2H2L4Q")
_END_64_MAGIC: Final = b"PK\x06\x06"
_CENTRAL: Final = struct.Struct("<4s6H3L5H2L")
_CENTRAL_MAGIC: Final = b"PK\x01\x02"
_LOCAL: Final = struct.Struct("<4s5H3L2H")
_MAX_COMMENT: Final = 0xFFFF
_SHORT_TAIL_NBYTES: Final = 1 << 8
_FULL: Final = 0xFFFFFFFF
_SATURATED: Final = (0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, _FULL, _FULL)
_ENCRYPTED: Final = 1 << 0 | 1 << 6 | 1 << 13
_UTF_8: Final = 1 << 11
STORED: Final = 0
DEFLATED: Final = 8
_METHODS: Final = frozenset([STORED, DEFLATED])
# What deflate can make of a byte at most.
_MAX_RATIO: Final = 1032


class Entry(NamedTuple):
    """A row of the directory: `packed` bytes that become `nbytes`, after a header at `header` and before `limit`."""

    name: str
    method: int
    crc32: int
    packed: int
    nbytes: int
    header: int
    limit: int


def entries_of(source: RangedSource) -> list[Entry]:
    """The rows of the directory, in its order.

    Raises `CorruptionError` for what is no archive or could be understood in two ways, `UnsupportedTypeError` for
    encryption and methods other than stored and deflated, and `LimitError` for a directory of too many bytes.
    """
    start, nbytes, count = _directory(source)
    if nbytes > current_limits().index_nbytes:
        raise LimitError(
            f"the directory of the archive has {nbytes} bytes, more than the limit of {current_limits().index_nbytes}; "
            "raise it with pytreeckpt.limits(index_nbytes=…)"
        )
    if count > nbytes // _CENTRAL.size:
        raise CorruptionError(f"{count} members do not fit the {nbytes} bytes of the directory", rule="zip")
    directory = bytes(read(source, start, nbytes))
    entries: list[Entry] = []
    at = 0
    for _ in range(count):
        entry, at = _entry(directory, at, start)
        entries.append(entry)
    if at != nbytes:
        raise CorruptionError(f"the directory of the archive has {nbytes - at} bytes too many", rule="zip")
    return _apart(entries, start)


def _apart(entries: list[Entry], directory: int) -> list[Entry]:
    """The entries, each limited by the header of the next; no two members share a byte."""
    order = sorted(range(len(entries)), key=lambda place: entries[place].header)
    limits = [entries[place].header for place in order[1:]] + [directory]
    # Of an empty archive there is one limit too many.
    for place, limit in zip(order, limits, strict=False):
        entry = entries[place]
        if entry.header + _LOCAL.size + entry.packed > limit:
            raise CorruptionError(
                f"the {entry.packed} bytes of the member {entry.name!r} at {entry.header} reach beyond {limit}",
                rule="zip",
            )
        entries[place] = Entry(*entry[:-1], limit)
    return entries


def _directory(source: RangedSource) -> tuple[int, int, int]:
    """Where the central directory begins, its bytes, and how many members it has."""
    # There hardly ever is a comment after it.
    for most in (_SHORT_TAIL_NBYTES, _END.size + _MAX_COMMENT):
        tail_nbytes = min(source.nbytes, most)
        tail = bytes(read(source, source.nbytes - tail_nbytes, tail_nbytes))
        at = _end_within(tail)
        if at >= 0:
            break
    else:
        raise CorruptionError("the file has no end of a zip archive: it is cut off, or none", rule="zip")
    _, disk, first_disk, here, count, nbytes, start, _ = _END.unpack_from(tail, at)
    end = source.nbytes - tail_nbytes + at
    narrow = (disk, first_disk, here, count, nbytes, start)
    wide = _wide_directory(source, end)
    if wide is not None:
        # torch writes both in every archive. What fits 16 or 32 bits has to be the same in both.
        end, *values = wide
        if any(value not in {other, full} for value, other, full in zip(narrow, values, _SATURATED, strict=True)):
            raise CorruptionError("the archive has two directories that differ", rule="zip")
        disk, first_disk, here, count, nbytes, start = values
    if disk or first_disk or here != count:
        raise UnsupportedTypeError("the archive is one of several parts; join them first")
    if start + nbytes != end:
        raise CorruptionError(
            f"the directory of the archive should be bytes {start} to {start + nbytes}, and ends at {end}: the file is "
            "cut off, or something was put before it",
            rule="zip",
        )
    return start, nbytes, count


def _end_within(tail: bytes) -> int:
    """Where in the last bytes of a file the end of an archive begins, or -1."""
    at = len(tail) - _END.size
    while at >= 0:
        at = tail.rfind(_END_MAGIC, 0, at + len(_END_MAGIC))
        # What looks like one in a comment is not followed by as many bytes as it says.
        if at >= 0 and at + _END.size + _END.unpack_from(tail, at)[-1] == len(tail):
            return at
        at -= 1
    return -1


def _wide_directory(source: RangedSource, end: int) -> tuple[int, ...] | None:
    """As zip64 has it: where its own end is, disks, counts, bytes and start of the directory."""
    if end < _LOCATOR.size:
        return None
    magic, _, at, disks = _LOCATOR.unpack(read(source, end - _LOCATOR.size, _LOCATOR.size))
    if magic != _LOCATOR_MAGIC:
        return None
    if disks > 1 or at + _END_64.size > end - _LOCATOR.size:
        raise CorruptionError("the end of the zip64 archive is not where it should be", rule="zip")
    magic, size, _, _, disk, first_disk, here, count, nbytes, start = _END_64.unpack(read(source, at, _END_64.size))
    if magic != _END_64_MAGIC or at + 12 + size != end - _LOCATOR.size:
        raise CorruptionError("the end of the zip64 archive is not where it should be", rule="zip")
    return at, disk, first_disk, here, count, nbytes, start


def _entry(directory: bytes, at: int, limit: int) -> tuple[Entry, int]:
    """The entry at `at`, and where the next one is."""
    if at + _CENTRAL.size > len(directory):
        raise CorruptionError("the directory of the archive is cut off", rule="zip")
    row = _CENTRAL.unpack_from(directory, at)
    magic, _, _, flags, method, _, _, crc32, packed, nbytes = row[:10]
    name_nbytes, extra_nbytes, comment_nbytes, disk, _, _, header = row[10:]
    name_at = at + _CENTRAL.size
    extra_at = name_at + name_nbytes
    end = extra_at + extra_nbytes + comment_nbytes
    if magic != _CENTRAL_MAGIC or end > len(directory):
        raise CorruptionError(f"the directory of the archive is damaged at byte {at}", rule="zip")
    name = _name(directory[name_at:extra_at], utf_8=bool(flags & _UTF_8))
    if _FULL in (packed, nbytes, header) or disk == 0xFFFF:
        extra = directory[extra_at : extra_at + extra_nbytes]
        nbytes, packed, header, disk = _widened(name, extra, (nbytes, packed, header), disk)
    if disk:
        raise UnsupportedTypeError("the archive is one of several parts; join them first")
    if flags & _ENCRYPTED:
        raise UnsupportedTypeError(f"the member {name!r} of the archive is encrypted; decrypt it first")
    if method not in _METHODS:
        raise UnsupportedTypeError(
            f"the member {name!r} is packed with method {method}, which is neither stored nor deflated; pack it anew"
        )
    if method == STORED and packed != nbytes:
        raise CorruptionError(f"the member {name!r} is stored, in {packed} bytes instead of {nbytes}", rule="zip")
    if nbytes > (packed + 1) * _MAX_RATIO:
        raise CorruptionError(f"{packed} bytes of the member {name!r} cannot become {nbytes}", rule="zip")
    return Entry(name, method, crc32, packed, nbytes, header, limit), end


def _widened(name: str, extra: bytes, fields: tuple[int, int, int], disk: int) -> tuple[int, int, int, int]:
    """Those of the fields that do not fit 32 bits, from the extra field of zip64."""
    at = 0
    while at + 4 <= len(extra):
        kind, nbytes = struct.unpack_from("<2H", extra, at)
        content = extra[at + 4 : at + 4 + nbytes]
        at += 4 + nbytes
        if kind != 1:
            continue
        wide: list[int] = []
        for value in fields:
            if value == _FULL:
                if len(content) < 8:
                    break
                wide.append(int.from_bytes(content[:8], "little"))
                content = content[8:]
            else:
                wide.append(value)
        if len(wide) == len(fields) and (disk != 0xFFFF or len(content) >= 4):
            if disk == 0xFFFF:
                disk = int.from_bytes(content[:4], "little")
            return wide[0], wide[1], wide[2], disk
        break
    raise CorruptionError(f"the sizes of the member {name!r} are not in the archive's directory", rule="zip")


def _name(raw: bytes, *, utf_8: bool) -> str:
    try:
        # The same in all of them, and quick.
        name = raw.decode("ascii" if raw.isascii() else "utf-8" if utf_8 else "cp437")
    except UnicodeDecodeError:
        raise CorruptionError(f"the name {raw[:80]!r} of a member is not UTF-8", rule="zip") from None
    # Otherwise it may be anything: it is a key here, and never a path.
    if not name or "\0" in name:
        raise CorruptionError(f"the name {name[:80]!r} of a member is empty or holds a NUL", rule="zip")
    return name


def data_start(source: RangedSource, entry: Entry) -> int:
    """Where the bytes of a member begin, from the header before them. Raises `CorruptionError` for one that is not that
    of the member, its name included: one of the two is damaged, or means something else to other readers.
    """
    most = _LOCAL.size + len(entry.name.encode())
    header = bytes(read(source, entry.header, min(most, entry.limit - entry.header)))
    magic, _, flags, method, _, _, _, _, _, name_nbytes, extra_nbytes = _LOCAL.unpack_from(header)
    start = entry.header + _LOCAL.size + name_nbytes + extra_nbytes
    if magic != MAGIC or method != entry.method or flags & _ENCRYPTED or start + entry.packed > entry.limit:
        raise CorruptionError(f"the header of the member {entry.name!r} at byte {entry.header} is damaged", rule="zip")
    name = _name(header[_LOCAL.size : _LOCAL.size + name_nbytes], utf_8=bool(flags & _UTF_8))
    if name != entry.name:
        raise CorruptionError(
            f"the member {entry.name!r} is called {name[:80]!r} in its header at byte {entry.header}", rule="zip"
        )
    return int(start)
