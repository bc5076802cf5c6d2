"""Zip archives as streams: members one after the other, then the directory; nothing is gone back to.

The format is that of PKWARE's APPNOTE: each member is followed by a data descriptor with its CRC-32 and lengths, and
archives beyond 4 GiB or 65,535 members have the zip64 fields. Stored members can be aligned, by an extra field that
torch also writes, so that they can be mapped. There are no times: the same members give the same bytes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pytreeckpt.errors import UnsupportedTypeError
from pytreeckpt.interop.json_documents import is_text
from pytreeckpt.wire import Buffer

_STORED: Final = 0
_DEFLATED: Final = 8
# Lengths follow the data, and names are UTF-8.
_FLAGS: Final = 0x0808
# The first day that DOS can write.
_DATE: Final = 0x0021
_VERSION: Final = 20
_VERSION_ZIP64: Final = 45
_ZIP64: Final = 0x0001
# "FB", as torch pads.
_PADDING: Final = 0x4246
_LIMIT32: Final = 0xFFFFFFFF
_LIMIT16: Final = 0xFFFF
_LEVEL: Final = 6


@dataclass(frozen=True, slots=True)
class ZipMember:
    """A member to be written: its name, what gives its bytes, and an upper bound of how many they are."""

    name: str
    pieces: Callable[[], Iterable[Buffer]]
    most_nbytes: int
    compressed: bool = False


@dataclass(frozen=True, slots=True)
class _Written:
    """What the directory says of a member."""

    name: bytes
    method: int
    crc32: int
    stored: int
    raw: int
    offset: int


def plan_zip(members: Sequence[ZipMember], *, alignment: int = 1) -> Callable[[], Iterator[Buffer]]:
    """What gives the bytes of an archive. The content of each member begins at a multiple of `alignment`.

    Raises `UnsupportedTypeError`, here and at once, for a name that no reader would find again: one that is not made of
    characters, that other programs end at a NUL, that is too long, or that two members have.
    """
    seen: set[str] = set()
    for member in members:
        if not is_text(member.name) or "\0" in member.name:
            raise UnsupportedTypeError(f"{member.name[:80]!r} cannot be the name of a member of a zip archive")
        if len(member.name.encode()) > _LIMIT16 - alignment:
            raise UnsupportedTypeError(f"{member.name[:80]!r}… is too long for the name of a member of a zip archive")
        if member.name in seen:
            raise UnsupportedTypeError(f"two members of a zip archive would be called {member.name[:80]!r}")
        seen.add(member.name)
    return lambda: _archive(members, alignment)


def _archive(members: Sequence[ZipMember], alignment: int) -> Iterator[Buffer]:
    at = 0
    entries: list[_Written] = []
    for member in members:
        name = member.name.encode()
        # Deflate adds a little to what it cannot compress.
        is_large = member.most_nbytes + member.most_nbytes // 1000 + 1024 >= _LIMIT32
        header = _local_header(name, at, alignment, compressed=member.compressed, is_large=is_large)
        yield header
        offset = at
        at += len(header)
        crc32 = raw = stored = 0
        for piece in _contents(member):
            crc32, raw = piece.crc32, piece.raw
            stored += len(piece.data)
            yield piece.data
        descriptor = struct.pack("<4sLQQ" if is_large else "<4sLLL", b"PK\x07\x08", crc32, stored, raw)
        yield descriptor
        at += stored + len(descriptor)
        entries.append(_Written(name, _DEFLATED if member.compressed else _STORED, crc32, stored, raw, offset))
    directory = b"".join(map(_directory_entry, entries))
    yield directory
    yield _end(len(entries), len(directory), at)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Bytes of the archive, and the CRC-32 and length of what was put into the member so far."""

    data: Buffer
    crc32: int
    raw: int


def _contents(member: ZipMember) -> Iterator[_Piece]:
    crc32 = raw = 0
    deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS) if member.compressed else None
    for piece in member.pieces():
        crc32 = zlib.crc32(piece, crc32)
        raw += len(piece)
        yield _Piece(piece if deflate is None else deflate.compress(piece), crc32, raw)
    if deflate is not None:
        yield _Piece(deflate.flush(), crc32, raw)


def _local_header(name: bytes, at: int, alignment: int, *, compressed: bool, is_large: bool) -> bytes:
    # The lengths are in the descriptor; of a large member, this field says that they have 8 bytes there.
    extra = struct.pack("<HHQQ", _ZIP64, 16, 0, 0) if is_large else b""
    if alignment > 1:
        gap = -(at + 30 + len(name) + len(extra) + 4) % alignment
        extra += struct.pack("<HH", _PADDING, gap) + b"Z" * gap
    length = _LIMIT32 if is_large else 0
    return (
        struct.pack(
            "<4sHHHHHLLLHH",
            b"PK\x03\x04",
            _VERSION_ZIP64 if is_large else _VERSION,
            _FLAGS,
            _DEFLATED if compressed else _STORED,
            0,
            _DATE,
            0,
            length,
            length,
            len(name),
            len(extra),
        )
        + name
        + extra
    )


def _directory_entry(entry: _Written) -> bytes:
    large = [number for number in (entry.raw, entry.stored, entry.offset) if number >= _LIMIT32]
    extra = struct.pack(f"<HH{len(large)}Q", _ZIP64, 8 * len(large), *large) if large else b""
    version = _VERSION_ZIP64 if large else _VERSION
    return (
        struct.pack(
            "<4sHHHHHHLLLHHHHHLL",
            b"PK\x01\x02",
            version,
            version,
            _FLAGS,
            entry.method,
            0,
            _DATE,
            entry.crc32,
            min(entry.stored, _LIMIT32),
            min(entry.raw, _LIMIT32),
            len(entry.name),
            len(extra),
            0,
            0,
            0,
            0,
            min(entry.offset, _LIMIT32),
        )
        + entry.name
        + extra
    )


def _end(count: int, nbytes: int, offset: int) -> bytes:
    """What stands after the directory: in large archives, also the zip64 record and where it is."""
    large = b""
    if count >= _LIMIT16 or nbytes >= _LIMIT32 or offset >= _LIMIT32:
        large = struct.pack(
            "<4sQHHLLQQQQ",
            b"PK\x06\x06",
            44,
            _VERSION_ZIP64,
            _VERSION_ZIP64,
            0,
            0,
            count,
            count,
            nbytes,
            offset,
        ) + struct.pack("<4sLQL", b"PK\x06\x07", 0, offset + nbytes, 1)
    short = min(count, _LIMIT16)
    return large + struct.pack(
        "<4sHHHHLLH", b"PK\x05\x06", 0, 0, short, short, min(nbytes, _LIMIT32), min(offset, _LIMIT32), 0
    )
