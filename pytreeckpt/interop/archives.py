"""The members of zip archives as sources of bytes: windows into the archive, of which nothing is unpacked before it is
read.
"""

from __future__ import annotations

import threading
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from pytreeckpt.errors import CorruptionError, LimitError
from pytreeckpt.interop.foreign import Check
from pytreeckpt.interop.zip_directory import STORED, Entry, data_start, entries_of
from pytreeckpt.limits import current_limits
from pytreeckpt.reading import RangedSource, read

# So much of a compressed member is unpacked without the rest.
_BEGINNING_NBYTES: Final = 64 << 10
# So many unpacked members are kept: one for each thread that may be within one, so that none is unpacked for each part
# of it, while who reads slices of thousands does not end with all of them in memory.
_KEPT: Final = 8
# So much is read at a time to be checked.
_CHECKED_NBYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a source, as a source."""

    source: RangedSource
    start: int
    nbytes: int

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Read from the source."""
        _check_range(self.nbytes, offset, buffers)
        self.source.read_into(self.start + offset, buffers)


class Member(NamedTuple):
    """A member of an archive: its name, its bytes (`nbytes` of them, unpacked), and the CRC-32 that these should have;
    None in an archive that keeps none.
    """

    name: str
    source: Stored | Deflated
    crc32: int | None
    nbytes: int


class Stored:
    """The bytes of a member that is not compressed. Where they begin is told by a header before them, which is read
    when they are asked for: thousands of members are listed without it.
    """

    __slots__ = ("_entry", "_source", "_start", "nbytes")

    def __init__(self, source: RangedSource, entry: Entry) -> None:
        self._source = source
        self._entry = entry
        self._start: int | None = None
        self.nbytes = entry.packed

    def check_header(self) -> None:
        """Raise `CorruptionError` if the header is not that of the member."""
        self._start = data_start(self._source, self._entry)

    @property
    def window(self) -> Window:
        """The part of the archive that they are. Raises `CorruptionError` if the header is not that of the member."""
        if self._start is None:
            self._start = data_start(self._source, self._entry)
        return Window(self._source, self._start, self.nbytes)

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Read from the archive."""
        self.window.read_into(offset, buffers)


class Unpacked:
    """Those members of an archive that parts were read of: the last few, as each is a whole member in memory."""

    __slots__ = ("_lock", "_members")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._members: OrderedDict[int, bytes] = OrderedDict()

    def get(self, header: int) -> bytes | None:
        """The bytes of the member with its header there, if they are kept."""
        with self._lock:
            if header in self._members:
                self._members.move_to_end(header)
            return self._members.get(header)

    def keep(self, header: int, unpacked: bytes) -> None:
        """Keep these, and not what was used longest ago."""
        with self._lock:
            self._members[header] = unpacked
            while len(self._members) > _KEPT:
                self._members.popitem(last=False)

    def drop(self, header: int) -> None:
        """Keep it no longer."""
        with self._lock:
            self._members.pop(header, None)


class Deflated:
    """The bytes of a compressed member. Who reads parts of it has it unpacked once, and kept until its end was read."""

    __slots__ = ("_entry", "_kept", "_lock", "_packed", "nbytes")

    def __init__(self, source: RangedSource, entry: Entry, kept: Unpacked) -> None:
        self._entry = entry
        self._packed = Stored(source, entry)
        self._lock = threading.Lock()
        self._kept = kept
        self.nbytes = entry.nbytes

    def check_header(self) -> None:
        """Raise `CorruptionError` if the header is not that of the member."""
        self._packed.check_header()

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Copy from the unpacked bytes. Raises `CorruptionError` if these are damaged."""
        end = _check_range(self.nbytes, offset, buffers)
        header = self._entry.header
        with self._lock:
            unpacked = self._kept.get(header)
            if unpacked is None and end < self.nbytes and end <= _BEGINNING_NBYTES:
                # Such as the header of a `.npy`, for which nobody wants to wait for the array behind it.
                unpacked = self._beginning(end)
            elif unpacked is None:
                unpacked = self._unpack()
                if end < self.nbytes:
                    self._kept.keep(header, unpacked)
            elif end == self.nbytes:
                self._kept.drop(header)
        for buffer in buffers:
            buffer[:] = memoryview(unpacked)[offset : offset + len(buffer)]
            offset += len(buffer)

    def _beginning(self, nbytes: int) -> bytes:
        """The first bytes, of which nothing tells whether they are damaged."""
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        unpacked = bytearray()
        at = 0
        try:
            while len(unpacked) < nbytes and at < self._packed.nbytes:
                packed = read(self._packed, at, min(_BEGINNING_NBYTES, self._packed.nbytes - at))
                at += len(packed)
                unpacked += inflate.decompress(packed, nbytes - len(unpacked))
        except zlib.error as error:
            raise CorruptionError(f"the member {self._entry.name!r} cannot be unpacked: {error}", rule="zip") from None
        if len(unpacked) < nbytes:
            raise CorruptionError(
                f"the member {self._entry.name!r} is not of the {self.nbytes} bytes that it should be", rule="zip"
            )
        return bytes(unpacked)

    def _unpack(self) -> bytes:
        name, nbytes = self._entry.name, self.nbytes
        if nbytes > current_limits().arrays_nbytes:
            raise LimitError(
                f"the member {name!r} has {nbytes} bytes, more than the limit of {current_limits().arrays_nbytes}; "
                "raise it with pytreeckpt.limits(arrays_nbytes=…)"
            )
        try:
            packed = read(self._packed, 0, self._packed.nbytes)
            inflate = zlib.decompressobj(-zlib.MAX_WBITS)
            # One more than there should be: a longer member is told, and never made.
            unpacked = inflate.decompress(packed, nbytes + 1)
        except zlib.error as error:
            raise CorruptionError(f"the member {name!r} cannot be unpacked: {error}", rule="zip") from None
        except MemoryError:
            raise LimitError(f"the member {name!r} needs {nbytes} bytes, more than there is memory") from None
        if len(unpacked) != nbytes or not inflate.eof or inflate.unused_data or inflate.unconsumed_tail:
            raise CorruptionError(f"the member {name!r} is not of the {nbytes} bytes that it should be", rule="zip")
        if zlib.crc32(unpacked) != self._entry.crc32:
            raise CorruptionError(f"the member {name!r} is damaged: its CRC-32 does not match", rule="zip")
        return unpacked


def located(source: RangedSource, offset: int) -> tuple[RangedSource, int]:
    """The source that a window is of, and where `offset` is in it; through any number of windows."""
    while isinstance(source, Window | Stored):
        window = source if isinstance(source, Window) else source.window
        source, offset = window.source, window.start + offset
    return source, offset


def members(source: RangedSource) -> Mapping[str, Member]:
    """The members of a zip archive by their names, in the order of its directory; without folders.

    Raises `CorruptionError` for what is no archive or could be understood in two ways, `UnsupportedTypeError` for
    encryption and methods other than stored and deflated, and `LimitError` for a directory of too many bytes.
    """
    found: dict[str, Member] = {}
    kept = Unpacked()
    entries = entries_of(source)
    # As torch.serialization.set_crc32_options(False) has torch.save write them.
    has_checks = any(entry.crc32 for entry in entries)
    for entry in entries:
        if entry.name in found:
            raise CorruptionError(f"the archive has two members called {entry.name!r}", rule="zip")
        if entry.name.endswith("/") and not entry.nbytes:
            continue
        content = Stored(source, entry) if entry.method == STORED else Deflated(source, entry, kept)
        found[entry.name] = Member(entry.name, content, entry.crc32 if has_checks else None, entry.nbytes)
    return found


def check_member(member: Member) -> None:
    """Read all of a member that is understood when a file is opened, before it is. Raises `CorruptionError` if its
    bytes are not those that its checksum is of.
    """
    if member.crc32 is None:
        return
    crc32 = 0
    for start in range(0, member.nbytes, _CHECKED_NBYTES):
        crc32 = zlib.crc32(read(member.source, start, min(_CHECKED_NBYTES, member.nbytes - start)), crc32)
    if crc32 != member.crc32:
        raise CorruptionError(f"{member.name} is damaged: its CRC-32 does not match", rule="CRC-32")


def checks_of(archive: Mapping[str, Member]) -> tuple[Check, ...]:
    """The checksums that an archive keeps, of all of its members."""
    return tuple(
        [Check(name, member.source, member.crc32) for name, member in archive.items() if member.crc32 is not None]
    )


def _check_range(nbytes: int, offset: int, buffers: Sequence[memoryview]) -> int:
    """Where the range ends. Raises `CorruptionError` if that is beyond the source."""
    end = offset + sum(map(len, buffers))
    if offset < 0 or end > nbytes:
        raise CorruptionError(f"bytes {offset} to {end} were asked for, of {nbytes}", rule="bounds")
    return end
