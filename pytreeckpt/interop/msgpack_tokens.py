"""Msgpack, token by token: plain values, containers that begin, and extension types left to whoever asks. Total.

The format is that of the msgpack specification (spec.md). Every length is compared with what is left of the file before
anything is done with it, and texts, bytes and values are counted against the limits.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from pytreeckpt.errors import CorruptionError, LimitError
from pytreeckpt.interop.windows import Cursor
from pytreeckpt.limits import current_limits
from pytreeckpt.reading import RangedSource

_UNSIGNED: Final = {0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"}
_SIGNED: Final = {0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
_FLOATS: Final = {0xCA: ">f", 0xCB: ">d"}
_CONSTANTS: Final[dict[int, object]] = {0xC0: None, 0xC2: False, 0xC3: True}
STR: Final = {0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}
BIN: Final = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I"}
_ARRAY: Final = {0xDC: ">H", 0xDD: ">I"}
MAP: Final = {0xDE: ">H", 0xDF: ">I"}
_EXT: Final = {0xC7: ">B", 0xC8: ">H", 0xC9: ">I"}
_FIXED_EXT: Final = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}


def begins_with_text(head: bytes) -> bool:
    """Whether bytes (6 are enough) begin a map, with something in it, whose first key is a str."""
    if not head:
        return False
    first = head[0]
    if 0x81 <= first <= 0x8F:
        key = head[1:2]
    elif first in MAP:
        key = head[3:4] if first == 0xDE else head[5:6]
    else:
        # Among them 0x80, an empty map, which is also how every pickle begins.
        return False
    return bool(key) and (0xA0 <= key[0] <= 0xBF or key[0] in STR)


@dataclass(slots=True)
class Opened:
    """A container that is being read: what it holds so far, how many values are still to come, and the key, once it
    is known, of the next one.
    """

    items: list[Any]
    left: int
    mapping: dict[Any, Any] | None
    key: Any = None
    keyed: bool = False


class Tokens:
    """A position in a file, and what is left of the limits. `extension(code, nbytes)` gives the value of an ext whose
    bytes are the next ones, and steps over them.
    """

    def __init__(self, source: RangedSource, extension: Callable[[int, int], object]) -> None:
        self.source = source
        self.cursor = Cursor(source)
        self.limits = current_limits()
        self.nodes = self.limits.nodes
        self.text_nbytes = self.limits.index_nbytes
        self.extension = extension
        self.is_extended = False

    def token(self) -> object:
        """The next value, or a container that begins."""
        self.nodes -= 1
        if self.nodes < 0:
            raise LimitError(
                f"the file has more values than the limit of {self.limits.nodes}; raise it with "
                "pytreeckpt.limits(nodes=…)"
            )
        first = self.cursor.take(1)[0]
        if first < 0x80:
            return first
        if first < 0x90:
            return self.opened(first & 0x0F, mapping=True)
        if first < 0xA0:
            return self.opened(first & 0x0F, mapping=False)
        if first < 0xC0:
            return self.text(first & 0x1F)
        if first >= 0xE0:
            return first - 0x100
        if first in _CONSTANTS:
            return _CONSTANTS[first]
        for table in (_FLOATS, _UNSIGNED, _SIGNED):
            if first in table:
                return self.number(table[first])
        if first in STR:
            return self.text(self.number(STR[first]))
        if first in BIN:
            return self.octets(self.number(BIN[first]))
        if first in _ARRAY:
            return self.opened(self.number(_ARRAY[first]), mapping=False)
        if first in MAP:
            return self.opened(self.number(MAP[first]), mapping=True)
        if first in _EXT or first in _FIXED_EXT:
            length = _FIXED_EXT[first] if first in _FIXED_EXT else self.number(_EXT[first])
            return self.extended(self.cursor.take(1)[0], length)
        raise _corrupt(self.cursor.at - 1, f"the byte {first:#x} begins no value of msgpack")

    def number(self, layout: str) -> Any:
        """The number that is written here in a layout of `struct`."""
        return struct.unpack(layout, self.cursor.take(struct.calcsize(layout)))[0]

    def octets(self, nbytes: int) -> bytes:
        """The next bytes, held in memory."""
        self.check_left(nbytes)
        self.spend(nbytes)
        return self.cursor.take(nbytes)

    def text(self, nbytes: int) -> str:
        """The next bytes as a text."""
        at = self.cursor.at
        try:
            return self.octets(nbytes).decode()
        except UnicodeDecodeError as error:
            raise _corrupt(at, f"a text is not UTF-8: {error.reason}") from None

    def spend(self, nbytes: int) -> None:
        """Take so many bytes from what may be held in memory."""
        self.text_nbytes -= nbytes
        if self.text_nbytes < 0:
            raise LimitError(
                f"byte {self.cursor.at}: texts, bytes and scalars take more than the limit of "
                f"{self.limits.index_nbytes} bytes; raise it with pytreeckpt.limits(index_nbytes=…)"
            )

    def check_left(self, nbytes: int) -> None:
        """Raise `CorruptionError` if the file does not have so many bytes more."""
        if nbytes > self.cursor.left:
            raise _corrupt(self.cursor.at, f"{nbytes} bytes are announced, and {self.cursor.left} are left")

    def opened(self, count: int, *, mapping: bool) -> Opened:
        """A container of so many items."""
        n_values = 2 * count if mapping else count
        # Every value takes a byte.
        self.check_left(n_values)
        return Opened([], n_values, {} if mapping else None)

    def extended(self, code: int, nbytes: int) -> object:
        """The value of an ext, which takes all of its bytes."""
        self.check_left(nbytes)
        at = self.cursor.at
        if self.is_extended:
            # None of the types that are read has others in it, and so nothing recurses.
            raise _corrupt(at, "an ext within an ext")
        self.is_extended = True
        value = self.extension(code, nbytes)
        self.is_extended = False
        if self.cursor.at != at + nbytes:
            raise _corrupt(at, f"an ext of {nbytes} bytes holds a value of {self.cursor.at - at}")
        return value


def _corrupt(at: int, message: str) -> CorruptionError:
    return CorruptionError(f"byte {at}: {message}", rule="msgpack")
