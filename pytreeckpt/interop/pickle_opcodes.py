"""The opcodes of pickle, protocols 0 to 5: their codes, names, and how their arguments are read.

Source: the standard library's documentation of the format, `pickletools`. Every length is compared with what is left
of the source before anything is read.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from pytreeckpt.errors import CorruptionError, LimitError
from pytreeckpt.interop.pickle_values import Span
from pytreeckpt.reading import RangedSource, read

_FIRST_NBYTES: Final = 1 << 12
_BUFFER_NBYTES: Final = 1 << 18
_SPAN_NBYTES: Final = 1 << 16
_MAX_DIGITS: Final = 4300


class Feed:
    """The bytes of a pickle, taken one after the other. Long byte strings stay in the source, as spans."""

    __slots__ = ("_ahead", "_end", "_limit", "_taken", "at", "base", "buffer", "source")

    def __init__(self, source: RangedSource, start: int, limit: int) -> None:
        """`limit`: how many bytes may be taken, beside those of spans."""
        self.source = source
        self.base = start
        self._end = source.nbytes
        self._limit = limit
        self._taken = 0
        # How far to read ahead: little where a pickle is short, or mostly arrays.
        self._ahead = _FIRST_NBYTES
        self.buffer = b""
        self.at = 0

    @property
    def position(self) -> int:
        """Where the next byte is in the source."""
        return self.base + self.at

    def _refill(self, nbytes: int) -> None:
        """Have at least `nbytes` bytes in the buffer."""
        left = self._end - self.position
        if nbytes > left:
            raise CorruptionError(f"it needs {nbytes} bytes, and {left} are left", rule="pickle")
        more = min(max(nbytes, self._ahead), left)
        self._ahead = min(4 * self._ahead, _BUFFER_NBYTES)
        rest = self.buffer[self.at :]
        self._taken += more - len(rest)
        if self._taken > self._limit + _BUFFER_NBYTES:
            raise LimitError(
                f"the pickle has more than {self._limit} bytes beside those of its arrays; raise the limit with "
                "pytreeckpt.limits(index_nbytes=…)"
            )
        self.base += self.at
        # Joined at once: it may be the text of a large array, as protocol 2 has it.
        self.buffer = b"".join([rest, read(self.source, self.base + len(rest), more - len(rest))])
        self.at = 0

    def take(self, nbytes: int) -> bytes:
        """The next bytes."""
        stop = self.at + nbytes
        if stop > len(self.buffer):
            self._refill(nbytes)
            stop = nbytes
        taken = self.buffer[self.at : stop]
        self.at = stop
        return taken

    def byte(self) -> int:
        """The next byte."""
        if self.at >= len(self.buffer):
            self._refill(1)
        value = self.buffer[self.at]
        self.at += 1
        return value

    def line(self) -> bytes:
        """What is before the next newline, which is taken too."""
        searched = 0
        while True:
            end = self.buffer.find(b"\n", self.at + searched)
            if end >= 0:
                line = self.buffer[self.at : end]
                self.at = end + 1
                return line
            searched = len(self.buffer) - self.at
            left = self._end - self.position
            if searched >= left:
                raise CorruptionError("its line does not end", rule="pickle")
            self._refill(min(left, 2 * searched + 1))

    def span(self, nbytes: int) -> bytes | Span:
        """The next bytes; long ones as a span."""
        if nbytes < _SPAN_NBYTES:
            return self.take(nbytes)
        start = self.position
        if nbytes > self._end - start:
            raise CorruptionError(f"it needs {nbytes} bytes, and {self._end - start} are left", rule="pickle")
        buffered = len(self.buffer) - self.at
        self._taken -= min(nbytes, buffered)
        if nbytes <= buffered:
            self.at += nbytes
        else:
            self.base = start + nbytes
            self._ahead = _FIRST_NBYTES
            self.buffer = b""
            self.at = 0
        return Span(self.source, start, nbytes)


def _u1(feed: Feed) -> int:
    return feed.byte()


def _number(form: str) -> Callable[[Feed], Any]:
    """Reads a number of this form of `struct`."""
    packed = struct.Struct(form)
    nbytes = packed.size

    def read_number(feed: Feed) -> Any:
        at = feed.at
        if at + nbytes > len(feed.buffer):
            return packed.unpack(feed.take(nbytes))[0]
        feed.at = at + nbytes
        return packed.unpack_from(feed.buffer, at)[0]

    return read_number


_u2 = _number("<H")
_i4 = _number("<i")
_u4 = _number("<I")
_u8 = _number("<Q")
_f8 = _number(">d")


def _length(feed: Feed) -> int:
    """A signed length, as old opcodes have it."""
    nbytes: int = _i4(feed)
    if nbytes < 0:
        raise CorruptionError(f"its length is {nbytes}", rule="pickle")
    return nbytes


def _integer(feed: Feed, nbytes: int) -> int:
    return int.from_bytes(feed.take(nbytes), "little", signed=True)


def _byte_array(feed: Feed) -> bytearray | Span:
    content = feed.span(_u8(feed))
    return bytearray(content) if isinstance(content, bytes) else replace(content, is_array=True)


def _digits(text: bytes, base: int) -> int:
    # Reading decimal digits takes quadratic time; Python's own bound is this one.
    if len(text) > _MAX_DIGITS:
        raise LimitError(f"an integer in text has more than {_MAX_DIGITS} digits")
    try:
        return int(text, base)
    except ValueError:
        raise CorruptionError(f"{_shown(text)} is no integer", rule="pickle") from None


def _index_line(feed: Feed) -> int:
    value = _digits(feed.line(), 10)
    if value < 0:
        raise CorruptionError(f"its index is {value}", rule="pickle")
    return value


def _int_line(feed: Feed) -> int | bool:
    line = feed.line()
    if line in {b"00", b"01"}:
        return line == b"01"
    return _digits(line, 0)


def _long_line(feed: Feed) -> int:
    return _digits(feed.line().removesuffix(b"L"), 0)


def _float_line(feed: Feed) -> float:
    line = feed.line()
    try:
        return float(line)
    except ValueError:
        raise CorruptionError(f"{_shown(line)} is no float", rule="pickle") from None


_ESCAPE: Final = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|([0-7]{1,3})|(.)|$)", re.DOTALL)
_ESCAPED: Final = {
    bytes([letter]): bytes([meant]) for letter, meant in zip(b"\\'\"abfnrtv", b"\\'\"\a\b\f\n\r\t\v", strict=True)
} | {b"\n": b""}


def _unescape(match: re.Match[bytes]) -> bytes:
    digits, octal, character = match.groups()
    if digits is not None:
        return bytes([int(digits, 16)])
    if octal is not None:
        return bytes([int(octal, 8) & 0xFF])
    if character is None or character == b"x":
        raise CorruptionError("a string ends within an escape", rule="pickle")
    # Python keeps the backslash before other characters.
    return _ESCAPED.get(character, b"\\" + character)


def _quoted_line(feed: Feed) -> str | bytes:
    line = feed.line()
    if len(line) < 2 or line[:1] not in {b"'", b'"'} or line[-1:] != line[:1]:
        raise CorruptionError(f"{_shown(line)} is no string in quotes", rule="pickle")
    return _native(_ESCAPE.sub(_unescape, line[1:-1]))


def _native(raw: bytes) -> str | bytes:
    """A `str` of Python 2: text, or else bytes. As torch.load has it, text is UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise CorruptionError(f"its text is not UTF-8: {error.reason} at {error.start}", rule="pickle") from None


def _escaped_line(feed: Feed) -> str:
    try:
        return feed.line().decode("raw-unicode-escape")
    except UnicodeDecodeError as error:
        raise CorruptionError(f"its text has a bad escape: {error.reason} at {error.start}", rule="pickle") from None


def _text_line(feed: Feed) -> str:
    return _text(feed.line())


def _two_lines(feed: Feed) -> tuple[str, str]:
    return _text_line(feed), _text_line(feed)


def _shown(raw: bytes) -> str:
    return repr(raw if len(raw) <= 40 else raw[:40] + b"...")


@dataclass(frozen=True, slots=True)
class Opcode:
    """An opcode, and how its argument is read (None: it has none)."""

    name: str
    code: int
    argument: Callable[[Feed], Any] | None = None


def _table() -> dict[int, Opcode]:
    arguments: dict[str, tuple[str, Callable[[Feed], Any] | None]] = {
        # Integers, floats and constants.
        "INT": ("I", _int_line),
        "BININT": ("J", _i4),
        "BININT1": ("K", _u1),
        "BININT2": ("M", _u2),
        "LONG": ("L", _long_line),
        "LONG1": ("\x8a", lambda feed: _integer(feed, _u1(feed))),
        "LONG4": ("\x8b", lambda feed: _integer(feed, _length(feed))),
        "NONE": ("N", None),
        "NEWTRUE": ("\x88", None),
        "NEWFALSE": ("\x89", None),
        "FLOAT": ("F", _float_line),
        "BINFLOAT": ("G", _f8),
        # Strings of Python 2, bytes and text.
        "STRING": ("S", _quoted_line),
        "BINSTRING": ("T", lambda feed: _native(feed.take(_length(feed)))),
        "SHORT_BINSTRING": ("U", lambda feed: _native(feed.take(_u1(feed)))),
        "BINBYTES": ("B", lambda feed: feed.span(_u4(feed))),
        "SHORT_BINBYTES": ("C", lambda feed: feed.take(_u1(feed))),
        "BINBYTES8": ("\x8e", lambda feed: feed.span(_u8(feed))),
        "BYTEARRAY8": ("\x96", _byte_array),
        "NEXT_BUFFER": ("\x97", None),
        "READONLY_BUFFER": ("\x98", None),
        "UNICODE": ("V", _escaped_line),
        "SHORT_BINUNICODE": ("\x8c", lambda feed: _text(feed.take(_u1(feed)))),
        "BINUNICODE": ("X", lambda feed: _text(feed.take(_u4(feed)))),
        "BINUNICODE8": ("\x8d", lambda feed: _text(feed.take(_u8(feed)))),
        # Containers.
        "EMPTY_LIST": ("]", None),
        "APPEND": ("a", None),
        "APPENDS": ("e", None),
        "LIST": ("l", None),
        "EMPTY_TUPLE": (")", None),
        "TUPLE": ("t", None),
        "TUPLE1": ("\x85", None),
        "TUPLE2": ("\x86", None),
        "TUPLE3": ("\x87", None),
        "EMPTY_DICT": ("}", None),
        "DICT": ("d", None),
        "SETITEM": ("s", None),
        "SETITEMS": ("u", None),
        "EMPTY_SET": ("\x8f", None),
        "ADDITEMS": ("\x90", None),
        "FROZENSET": ("\x91", None),
        # The stack and the memo.
        "POP": ("0", None),
        "DUP": ("2", None),
        "MARK": ("(", None),
        "POP_MARK": ("1", None),
        "GET": ("g", _index_line),
        "BINGET": ("h", _u1),
        "LONG_BINGET": ("j", _u4),
        "PUT": ("p", _index_line),
        "BINPUT": ("q", _u1),
        "LONG_BINPUT": ("r", _u4),
        "MEMOIZE": ("\x94", None),
        # Names and objects.
        "EXT1": ("\x82", _u1),
        "EXT2": ("\x83", _u2),
        "EXT4": ("\x84", _i4),
        "GLOBAL": ("c", _two_lines),
        "STACK_GLOBAL": ("\x93", None),
        "REDUCE": ("R", None),
        "BUILD": ("b", None),
        "INST": ("i", _two_lines),
        "OBJ": ("o", None),
        "NEWOBJ": ("\x81", None),
        "NEWOBJ_EX": ("\x92", None),
        "PERSID": ("P", _text_line),
        "BINPERSID": ("Q", None),
        # The machine itself.
        "PROTO": ("\x80", _u1),
        "STOP": (".", None),
        "FRAME": ("\x95", _u8),
    }
    return {ord(code): Opcode(name, ord(code), argument) for name, (code, argument) in arguments.items()}


OPCODES: Final = _table()
"""All opcodes by their code."""

CODES: Final = {opcode.name: code for code, opcode in OPCODES.items()}
"""The code of each opcode by its name."""
