"""Values as a pickle of protocol 2, which torch reads with and without `weights_only`. Only data is written: the
globals are named by whoever builds the value, from a closed list. That they are names is checked here too, for in a
pickle a line break ends one, and what follows is run.

Pickle's own documentation of the opcodes is in Lib/pickletools.py. Nothing recurses.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from pytreeckpt.errors import UnsupportedTypeError
from pytreeckpt.wire import Buffer

_BATCH: Final = 1000
_TUPLES: Final = {0: b")", 1: b"\x85", 2: b"\x86", 3: b"\x87"}
_CONSTANTS: Final[dict[object, bytes]] = {None: b"N", False: b"\x89", True: b"\x88"}
_HALF: Final = 0x80
_DOTTED: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")


@dataclass(frozen=True, slots=True)
class Name:
    """A function or class by its name, as Python 2 called it where that is another."""

    module: str
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """What calling a global with these arguments gives; then `items` are set in it, and `state` is given to it."""

    function: Name
    arguments: tuple[object, ...]
    items: dict[Any, Any] | None = None
    state: object = None
    is_new: bool = False
    """Whether the class is made by its `__new__`."""


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What the reader finds under this id."""

    id: tuple[object, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Once:
    """A value that is one object wherever this key stands."""

    key: Hashable
    value: object


@dataclass(frozen=True, slots=True, eq=False)
class LongBytes:
    """Bytes that are not in memory: what gives their pieces, as often as it is asked, and how many they are."""

    pieces: Callable[[], Iterable[Buffer]]
    nbytes: int


@dataclass(frozen=True, slots=True)
class _Code:
    """Opcodes on the stack of what is still to be written."""

    code: bytes


@dataclass(frozen=True, slots=True)
class _Remember:
    """The value that was written last is the one of this key."""

    key: Hashable


BYTES: Final = Name("_codecs", "encode")


def encode_pickle(value: object, expand: Callable[[Any], object]) -> list[bytes | LongBytes]:
    """The parts of a pickle.

    `expand(value)` is asked about all but Python's own plain types, tuples, lists, dicts and the records of this
    module, and gives one level in terms of these. Raises `UnsupportedTypeError` for a `Name` that is none.
    """
    writer = _Writer(expand)
    writer.run(value)
    return [*writer.parts, bytes(writer.code)]


def pickle_pieces(parts: Sequence[bytes | LongBytes]) -> Iterator[Buffer]:
    """The bytes of a pickle, some MiB at a time."""
    for part in parts:
        if isinstance(part, bytes):
            yield part
            continue
        # Before protocol 3, bytes are the text of the same code points.
        n_upper = sum(int(np.count_nonzero(np.frombuffer(piece, np.uint8) >= _HALF)) for piece in part.pieces())
        yield _text_header(part.nbytes + n_upper)
        for piece in part.pieces():
            yield str(piece, "latin-1").encode()


def most_nbytes(parts: Sequence[bytes | LongBytes]) -> int:
    """An upper bound of the bytes of a pickle."""
    return sum(len(part) if isinstance(part, bytes) else 2 * part.nbytes + 16 for part in parts)


def _text_header(nbytes: int) -> bytes:
    # The longer form is of protocol 4, and is all that there is for so long a text.
    return struct.pack("<cL", b"X", nbytes) if nbytes < 1 << 32 else struct.pack("<cQ", b"\x8d", nbytes)


class _Writer:
    """What has been written, what is still to be, and what has a number in the memo."""

    def __init__(self, expand: Callable[[Any], object]) -> None:
        self.expand = expand
        self.parts: list[bytes | LongBytes] = []
        self.code = bytearray(b"\x80\x02")
        self.memo: dict[Hashable, int] = {}

    def run(self, value: object) -> None:
        stack: list[Any] = [value]
        while stack:
            item = stack.pop()
            cls = type(item)
            if cls is _Code:
                self.code += item.code
            elif cls is _Remember:
                self.remember(item.key)
            elif item is None or cls is bool:
                self.code += _CONSTANTS[item]
            elif cls is str:
                self.text(item)
            elif cls is int:
                self.code += _integer(item)
            elif cls is float:
                self.code += struct.pack(">cd", b"G", item)
            elif cls is bytes:
                stack.append(Call(BYTES, (item.decode("latin-1"), "latin1")))
            elif cls is complex:
                stack.append(Call(Name("__builtin__", "complex"), (item.real, item.imag)))
            elif cls is tuple:
                code = _TUPLES.get(len(item))
                self.code += b"" if code else b"("
                stack.append(_Code(code or b"t"))
                stack.extend(reversed(item))
            elif cls is list:
                self.code += b"]"
                stack.extend(reversed(list(_batches(item, b"e"))))
            elif cls is dict:
                self.code += b"}"
                stack.extend(reversed(list(_items(item))))
            elif cls is LongBytes:
                self.parts += [bytes(self.code), item]
                self.code = bytearray()
            else:
                self.record(item, cls, stack)
        self.code += b"."

    def record(self, item: Any, cls: type, stack: list[Any]) -> None:
        if cls is Name:
            if not self.recalled(item):
                if not (_DOTTED.fullmatch(item.module) and _DOTTED.fullmatch(item.name)):
                    raise UnsupportedTypeError(f"{item.module!r}, {item.name!r} is no name of a class or function")
                self.code += f"c{item.module}\n{item.name}\n".encode()
                self.remember(item)
        elif cls is Once:
            if not self.recalled(item.key):
                stack.extend((_Remember(item.key), item.value))
        elif cls is Found:
            stack.extend((_Code(b"Q"), item.id))
        elif cls is Call:
            if item.state is not None:
                stack.extend((_Code(b"b"), item.state))
            if item.items is not None:
                stack.extend(reversed(list(_items(item.items))))
            stack.extend((_Code(b"\x81" if item.is_new else b"R"), item.arguments, item.function))
        else:
            stack.append(self.expand(item))

    def text(self, text: str) -> None:
        # Dict keys come back again and again.
        if self.recalled(text):
            return
        raw = text.encode("utf-8", "surrogatepass")
        self.code += _text_header(len(raw)) + raw
        self.remember(text)

    def recalled(self, key: Hashable) -> bool:
        number = self.memo.get(key)
        if number is None:
            return False
        self.code += b"h" + bytes([number]) if number < 256 else struct.pack("<cL", b"j", number)
        return True

    def remember(self, key: Hashable) -> None:
        number = self.memo[key] = len(self.memo)
        self.code += b"q" + bytes([number]) if number < 256 else struct.pack("<cL", b"r", number)


def _batches(items: Iterable[Any], end: bytes, *, size: int = _BATCH) -> Iterator[Any]:
    """The items, with a mark before and an end after each some of them."""
    count = 0
    for item in items:
        if count % size == 0:
            if count:
                yield _Code(end)
            yield _Code(b"(")
        yield item
        count += 1
    if count:
        yield _Code(end)


def _items(mapping: dict[Any, Any]) -> Iterator[Any]:
    return _batches((part for item in mapping.items() for part in item), b"u", size=2 * _BATCH)


def _integer(value: int) -> bytes:
    if 0 <= value < 1 << 8:
        return struct.pack("<cB", b"K", value)
    if 0 <= value < 1 << 16:
        return struct.pack("<cH", b"M", value)
    if -(1 << 31) <= value < 1 << 31:
        return struct.pack("<cl", b"J", value)
    raw = value.to_bytes((value.bit_length() >> 3) + 1, "little", signed=True)
    if len(raw) < 1 << 8:
        return struct.pack("<cB", b"\x8a", len(raw)) + raw
    return struct.pack("<cl", b"\x8b", len(raw)) + raw
