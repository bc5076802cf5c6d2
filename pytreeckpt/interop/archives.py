"""The members of zip archives as sources of bytes: windows into the archive, of which nothing is unpacked before it is
read.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pytreeckpt.errors import CorruptionError, LimitError
from pytreeckpt.interop.zip_directory import STORED, Entry, data_start, entries_of
from pytreeckpt.limits import current_limits
from pytreeckpt.reading import RangedSource, read

# So much of a compressed member is unpacked without the rest.
_BEGINNING_NBYTES: Final = 64 << 10


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


@dataclass(frozen=True, slots=True)
class Member:
    """A member of an archive: its name, its bytes (`nbytes` of them, unpacked), and the CRC-32 that it should have."""

    name: str
    source: RangedSource
    crc32: int
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

    @property
    def window(self) -> Window:
        """The part of the archive that they are. Raises `CorruptionError` if the header is not that of the member."""
        if self._start is None:
            self._start = data_start(self._source, self._entry)
        return Window(self._source, self._start, self.nbytes)

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Read from the archive."""
        self.window.read_into(offset, buffers)


class Deflated:
    """The bytes of a compressed member. Who reads parts of it has it unpacked once, and kept until its end was read."""

    __slots__ = ("_entry", "_lock", "_packed", "_unpacked", "nbytes")

    def __init__(self, source: RangedSource, entry: Entry) -> None:
        self._entry = entry
        self._packed = Stored(source, entry)
        self._lock = threading.Lock()
        self._unpacked: bytes | None = None
        self.nbytes = entry.nbytes

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Copy from the unpacked bytes. Raises `CorruptionError` if these are damaged."""
        end = _check_range(self.nbytes, offset, buffers)
        with self._lock:
            unpacked = self._unpacked
            if unpacked is None and end < self.nbytes and end <= _BEGINNING_NBYTES:
                # Such as the header of a `.npy`, for which nobody wants to wait for the array behind it.
                unpacked = self._beginning(end)
            else:
                unpacked = self._unpack() if unpacked is None else unpacked
                self._unpacked = None if end == self.nbytes else unpacked
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
    for entry in entries_of(source):
        if entry.name in found:
            raise CorruptionError(f"the archive has two members called {entry.name!r}", rule="zip")
        if entry.name.endswith("/") and not entry.nbytes:
            continue
        content = Stored(source, entry) if entry.method == STORED else Deflated(source, entry)
        found[entry.name] = Member(entry.name, content, entry.crc32, entry.nbytes)
    return found


def _check_range(nbytes: int, offset: int, buffers: Sequence[memoryview]) -> int:
    """Where the range ends. Raises `CorruptionError` if that is beyond the source."""
    end = offset + sum(map(len, buffers))
    if offset < 0 or end > nbytes:
        raise CorruptionError(f"bytes {offset} to {end} were asked for, of {nbytes}", rule="bounds")
    return end
