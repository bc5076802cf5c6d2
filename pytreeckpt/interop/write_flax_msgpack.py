"""Flax's msgpack files, as `flax.serialization.to_bytes` writes them: a tree as a state dict.

A state dict has texts as keys and no sequences: lists and tuples become dicts of their items by their numbers,
namedtuples and other records dicts of their fields, as flax/serialization.py has it, and `from_bytes` with a target
turns them back. Arrays of more than 2**30 bytes are cut into chunks, as there.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgpack
import numpy as np

from pytreeckpt.commit import Durability, IfExists
from pytreeckpt.dtypes import AnyDType
from pytreeckpt.errors import LimitError, UnsupportedTypeError
from pytreeckpt.interop.flax_msgpack import CHUNKED, COMPLEX, NDARRAY, SCALAR
from pytreeckpt.interop.outgoing import OutgoingArray, OutgoingScalar, c_order_pieces, outgoing, path_to
from pytreeckpt.interop.registered import ARRAY_WRAPPERS, MAPPINGS, NAMESPACES, is_reserved
from pytreeckpt.interop.writing import PlannedFile, StrPath, WriteReport, check_options, publish_files
from pytreeckpt.objects import NamedTupleRecord, Record, record_expansion
from pytreeckpt.storage import LocalStorage
from pytreeckpt.wire import Buffer

MAX_CHUNK_NBYTES: Final = 1 << 30
"""As in flax."""
# Of 4 bytes a character, as many as msgpack can count.
_MAX_TEXT: Final = 1 << 30
_FIXED_EXT: Final = {1: 0xD4, 2: 0xD5, 4: 0xD6, 8: 0xD7, 16: 0xD8}

Part = bytes | Callable[[], Iterable[Buffer]]


def write_flax_msgpack(
    tree: object, path: StrPath, *, if_exists: IfExists = "replace", durability: Durability = "durable"
) -> WriteReport:
    """Write a tree to a file that `flax.serialization.msgpack_restore` and `from_bytes` read.

    `tree`: what `save` takes, and references to arrays of open checkpoints. Tensors and arrays of all frameworks become
    plain arrays, big-endian ones little-endian; dict keys that are no texts become texts, as flax makes them.
    `if_exists`, `durability`: as in `save`.
    Raises `UnsupportedTypeError` with the path of what the format cannot hold, before anything is written,
    `LimitError`, `CheckpointExistsError`, and `StorageError`.
    """
    check_options(if_exists, durability)
    name = os.fsdecode(path)
    file = PlannedFile(name, plan_flax_msgpack(tree))
    nbytes = publish_files(LocalStorage(), [file], if_exists=if_exists, durability=durability)
    return WriteReport((name,), nbytes)


def plan_flax_msgpack(tree: object, *, max_chunk_nbytes: int = MAX_CHUNK_NBYTES) -> Callable[[], Iterator[Buffer]]:
    """What gives the pieces of the file."""
    parts: list[Part] = []
    plain = outgoing(tree)
    pending: list[Any] = [plain]
    while pending:
        value = pending.pop()
        try:
            children = _children(value)
        except UnsupportedTypeError as error:
            raise UnsupportedTypeError(f"{path_to(plain, value)}: {error}") from None
        if children is None:
            parts += _leaf(value, max_chunk_nbytes)
            continue
        parts.append(_map_header(len(children)))
        for key, child in reversed(list(children.items())):
            pending += (child, _Key(key))
    return lambda: _pieces(parts)


@dataclass(frozen=True, slots=True)
class _Key:
    """A text that is a key, and no value."""

    text: str


def _pieces(parts: Iterable[Part]) -> Iterator[Buffer]:
    for part in parts:
        if isinstance(part, bytes):
            yield part
        else:
            yield from part()


def _packed(value: object) -> bytes:
    return bytes(msgpack.packb(value, use_bin_type=True))


def _map_header(count: int) -> bytes:
    if count < 16:
        return bytes([0x80 | count])
    return struct.pack(">BH", 0xDE, count) if count < 1 << 16 else struct.pack(">BI", 0xDF, count)


def _children(value: Any) -> Mapping[str, Any] | None:
    """The state dict of a container; None for a leaf. Raises `UnsupportedTypeError` for what is neither."""
    if isinstance(value, NamedTupleRecord):
        return dict(zip(value._fields, value, strict=True))  # pyright: ignore[reportPrivateUsage]  # as a namedtuple has it
    if isinstance(value, dict):
        texts = {_key(key): child for key, child in value.items()}
        if len(texts) != len(value):
            raise UnsupportedTypeError("two keys of this dict are the same as texts, which is all that flax keeps")
        return texts
    if isinstance(value, list | tuple):
        return {str(number): child for number, child in enumerate(value)}
    if isinstance(value, Record):
        return _record(value)
    if isinstance(value, OutgoingArray | OutgoingScalar):
        _check_dtype(value.dtype if isinstance(value, OutgoingArray) else value.array.dtype)
        return None
    if value is None or type(value) in {bool, float, complex, str, bytes, _Key}:
        return None
    if type(value) is int and -(1 << 63) <= value < 1 << 64:
        return None
    what = "an int of more than 64 bits" if type(value) is int else f"a {type(value).__name__}"
    raise UnsupportedTypeError(f"{what} is nothing that flax's msgpack holds; convert it or leave it out")


def _key(key: object) -> str:
    if isinstance(key, str):
        return key
    if type(key) is int:
        return str(key)
    raise UnsupportedTypeError(f"a dict key is a {type(key).__name__}; flax keeps texts, and ints as texts")


def _record(record: Record) -> Mapping[str, Any] | None:
    type_, values = record_expansion(record).type, record_expansion(record).children
    if type_.name in MAPPINGS and isinstance(values[0], dict):
        return _children(values[0])
    if type_.name in ARRAY_WRAPPERS and isinstance(values[0], OutgoingArray):
        return _children(values[0])
    if is_reserved(type_.name) and type_.name not in NAMESPACES:
        raise UnsupportedTypeError(f"a {type_.name} is nothing that flax's msgpack holds; convert it or leave it out")
    return dict(zip(type_.fields, values, strict=True))


def _check_dtype(dtype: AnyDType) -> None:
    """Whether flax reads the name of a dtype, which is all that it keeps, as that dtype."""
    if issubclass(dtype.type, np.flexible):
        raise UnsupportedTypeError(
            f"arrays of {dtype} are nothing that flax reads back; convert them or leave them out"
        )


def _leaf(value: Any, max_chunk_nbytes: int) -> list[Part]:
    if isinstance(value, Record):
        value = record_expansion(value).children[0]
    if isinstance(value, _Key):
        return [_packed(value.text)]
    if isinstance(value, OutgoingArray):
        return _array(value, max_chunk_nbytes)
    if isinstance(value, OutgoingScalar):
        array = OutgoingArray(value.array)
        return [*_ext(SCALAR, array.dtype, (), array.nbytes), lambda: c_order_pieces(array, little_endian=True)]
    if isinstance(value, complex):
        return [_packed(msgpack.ExtType(COMPLEX, _packed([value.real, value.imag])))]
    if isinstance(value, str | bytes) and len(value) >= _MAX_TEXT:
        raise LimitError(f"a {type(value).__name__} of {len(value)} is longer than msgpack takes")
    return [_packed(value)]


def _array(array: OutgoingArray, max_chunk_nbytes: int) -> list[Part]:
    if array.nbytes <= max_chunk_nbytes:
        return [
            *_ext(NDARRAY, array.dtype, array.shape, array.nbytes),
            lambda: c_order_pieces(array, little_endian=True),
        ]
    size = math.prod(array.shape)
    step = max(1, max_chunk_nbytes // array.dtype.itemsize)
    counts = [min(step, size - start) for start in range(0, size, step)]
    extents = {str(axis): extent for axis, extent in enumerate(array.shape)}
    # A dict of three, whose last value follows in parts.
    head = _map_header(3) + b"".join(map(_packed, (CHUNKED, True, "shape", extents, "chunks")))
    head += _map_header(len(counts))

    def pieces() -> Iterator[Buffer]:
        items = _Taken(c_order_pieces(array, little_endian=True))
        for number, count in enumerate(counts):
            yield _packed(str(number))
            yield from _ext(NDARRAY, array.dtype, (count,), count * array.dtype.itemsize)
            yield from items.take(count * array.dtype.itemsize)

    return [head, pieces]


class _Taken:
    """Pieces that are handed on in runs of other lengths."""

    def __init__(self, pieces: Iterator[memoryview]) -> None:
        self.pieces = pieces
        self.rest = memoryview(b"")

    def take(self, nbytes: int) -> Iterator[Buffer]:
        """The next `nbytes` bytes."""
        while nbytes:
            if not self.rest:
                self.rest = next(self.pieces)
            piece, self.rest = self.rest[:nbytes], self.rest[nbytes:]
            nbytes -= len(piece)
            yield piece


def _ext(code: int, dtype: AnyDType, shape: tuple[int, ...], nbytes: int) -> list[bytes]:
    """What stands before the items of an array: the header of its ext, and shape, dtype and length."""
    # An array of three, whose last item is the bytes.
    inner = b"\x93" + _packed(shape) + _packed(dtype.newbyteorder("=").name)
    inner += _sized(nbytes, {8: 0xC4, 16: 0xC5, 32: 0xC6})
    length = len(inner) + nbytes
    header = bytes([_FIXED_EXT[length]]) if length in _FIXED_EXT else _sized(length, {8: 0xC7, 16: 0xC8, 32: 0xC9})
    return [header + bytes([code]) + inner]


def _sized(nbytes: int, codes: Mapping[int, int]) -> bytes:
    """The shortest form of a length, after the code of that form."""
    bits = 8 if nbytes < 1 << 8 else 16 if nbytes < 1 << 16 else 32
    return bytes([codes[bits]]) + struct.pack({8: ">B", 16: ">H", 32: ">I"}[bits], nbytes)
