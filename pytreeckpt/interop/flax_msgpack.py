"""Flax's msgpack files: a state dict whose arrays are ext types, and lie in the file as they are.

The format is that of flax/serialization.py (`msgpack_serialize`, `to_bytes`) over the msgpack specification: ext type 1
is an array, a nested msgpack array of shape, name of the dtype and bytes in C order; 2 is a complex number; 3 a numpy
scalar, written as an array of rank 0. Arrays above a limit are dicts of flat chunks. The reader goes from token to
token and steps over the items of arrays, so that opening costs what the structure costs.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import numpy as np

from pytreeckpt import dtypes
from pytreeckpt.dtypes import AnyDType, Descriptor
from pytreeckpt.errors import CorruptionError, FormatVersionError, LimitError, UnsupportedTypeError
from pytreeckpt.geometry import Shape
from pytreeckpt.index import MAX_RANK
from pytreeckpt.interop.foreign import ForeignArray, ForeignTree, contiguous, read_whole
from pytreeckpt.interop.msgpack_tokens import BIN, STR, Opened, Tokens, begins_with_text
from pytreeckpt.limits import current_limits
from pytreeckpt.reading import RangedSource

CHUNKED: Final = "__msgpack_chunked_array__"
NDARRAY: Final = 1
COMPLEX: Final = 2
SCALAR: Final = 3
_MAX_NAME_NBYTES: Final = 64


def is_flax_msgpack(head: bytes) -> bool:
    """Whether a file that begins so (6 bytes are enough) can be a msgpack map whose first key is a str. There is no
    magic: reading it tells.
    """
    return begins_with_text(head)


def read_flax_msgpack(source: RangedSource) -> ForeignTree:
    """A file as a tree of dicts, lists, plain values, numpy scalars and arrays.

    Keys are str, int or bytes. Raises `CorruptionError` for what is no msgpack, or not all of the file,
    `UnsupportedTypeError` for ext types and dtypes that flax does not write, and `LimitError`.
    """
    reader = _Reader(source)
    tree = reader.tree()
    if reader.cursor.at != source.nbytes:
        raise _corrupt(reader.cursor.at, f"the tree ends here, and the file has {source.nbytes} bytes")
    return ForeignTree("flax msgpack", tree)


class _Reader:
    """A position in the file, and what is left of the limits."""

    def __init__(self, source: RangedSource) -> None:
        self.source = source
        self.tokens = Tokens(source, self.extension)
        self.cursor = self.tokens.cursor
        self.depth = current_limits().depth

    def tree(self) -> object:
        """The value that begins here, with all that is in it; without recursion."""
        stack: list[Opened] = []
        while True:
            value: object = self.tokens.token()
            if isinstance(value, Opened):
                if len(stack) + 1 >= self.depth:
                    raise LimitError(
                        f"byte {self.cursor.at}: the tree is deeper than the limit of {self.depth} levels; "
                        "raise it with pytreeckpt.limits(depth=…)"
                    )
                if value.left:
                    stack.append(value)
                    continue
                value = self.close(value)
            while stack and (value := self.add(stack[-1], value)) is not _MORE:
                stack.pop()
            if not stack:
                return value

    def add(self, container: Opened, value: Any) -> object:
        """Put a value into its container; the container itself if it is full now, else `_MORE`."""
        container.left -= 1
        if container.mapping is None:
            container.items.append(value)
        elif container.keyed:
            container.mapping[container.key] = value
            container.keyed = False
        else:
            self.check_key(container.mapping, value)
            container.key, container.keyed = value, True
        return _MORE if container.left else self.close(container)

    def check_key(self, mapping: dict[Any, Any], key: object) -> None:
        if type(key) not in {str, int, bytes}:
            raise _corrupt(self.cursor.at, f"a key is a {type(key).__name__}; flax has texts, and msgpack few others")
        if key in mapping:
            raise _corrupt(self.cursor.at, f"the key {str(key)[:80]!r} stands twice in one dict")

    def close(self, container: Opened) -> object:
        if container.mapping is None:
            return container.items
        return self.joined(container.mapping) if CHUNKED in container.mapping else container.mapping

    def extension(self, code: int, _nbytes: int) -> object:
        at = self.cursor.at
        if code == COMPLEX:
            return self.complex_number()
        if code in {NDARRAY, SCALAR}:
            array = self.array()
            return self.scalar(array, at) if code == SCALAR else array
        raise UnsupportedTypeError(
            f"byte {at}: ext type {code if code < 128 else code - 256}; flax writes 1 (arrays), 2 (complex numbers) "
            "and 3 (numpy scalars)"
        )

    def complex_number(self) -> complex:
        parts = self.plain(3)
        match parts:
            case [float(real), float(imag)]:
                return complex(real, imag)
        raise _corrupt(self.cursor.at, "a complex number is not made of two floats")

    def plain(self, most: int) -> list[object]:
        """A short array of numbers and constants."""
        found = self.tokens.token()
        if not isinstance(found, Opened) or found.mapping is not None or found.left > most:
            raise _corrupt(self.cursor.at, f"there is no array of at most {most} numbers")
        return [self.tokens.token() for _ in range(found.left)]

    def array(self) -> ForeignArray:
        at = self.cursor.at
        found = self.tokens.token()
        if not isinstance(found, Opened) or found.mapping is not None or found.left != 3:
            raise _corrupt(at, "an array is not made of shape, dtype and bytes")
        shape = self.shape(self.plain(MAX_RANK))
        dtype = _dtype(self.name(), at)
        first = self.cursor.take(1)[0]
        if first in BIN:
            nbytes = self.tokens.number(BIN[first])
        elif first in STR or 0xA0 <= first <= 0xBF:
            # As msgpack was before it had bytes.
            nbytes = self.tokens.number(STR[first]) if first in STR else first & 0x1F
        else:
            raise _corrupt(at, "the items of an array are no bytes")
        if nbytes != math.prod(shape) * dtype.itemsize:
            raise _corrupt(at, f"an array of {dtype}{list(shape)} has {nbytes} bytes")
        self.tokens.check_left(nbytes)
        array = contiguous(self.source, self.cursor.at, dtype, shape)
        self.cursor.skip(nbytes)
        return array

    def name(self) -> str:
        found = self.tokens.token()
        if isinstance(found, bytes) and found.isascii():
            found = found.decode()
        if not isinstance(found, str) or len(found) > _MAX_NAME_NBYTES:
            raise _corrupt(self.cursor.at, "the name of a dtype is no short text")
        return found

    def shape(self, extents: list[object]) -> Shape:
        shape: list[int] = []
        for extent in extents:
            if type(extent) is not int or not 0 <= extent < 1 << 63:
                raise _corrupt(self.cursor.at, "an extent of a shape is no integer from 0 to 2**63 − 1")
            shape.append(extent)
        return tuple(shape)

    def scalar(self, array: ForeignArray, at: int) -> object:
        if array.shape:
            raise _corrupt(at, f"a numpy scalar has the shape {list(array.shape)}")
        self.tokens.spend(array.nbytes)
        return read_whole(array)[()]

    def joined(self, chunked: dict[Any, Any]) -> ForeignArray:
        """The array that flax cut into flat chunks."""
        at = self.cursor.at
        match chunked:
            case {"__msgpack_chunked_array__": True, "shape": dict(extents), "chunks": dict(chunks)} if (
                len(chunked) == 3
            ):
                pass
            case _:
                _refuse_chunks(at)
        shape = self.shape([extents.get(str(axis)) for axis in range(len(extents))])
        parts = [chunks.get(str(number)) for number in range(len(chunks))]
        begins: list[int] = []
        offsets: list[int] = []
        size = nbytes = 0
        dtype: AnyDType | None = None
        if len(shape) > MAX_RANK:
            _refuse_chunks(at)
        for part in parts:
            if not isinstance(part, ForeignArray) or len(part.shape) != 1 or part.dtype != (dtype or part.dtype):
                _refuse_chunks(at)
            dtype = part.dtype
            size += part.shape[0]
            if part.nbytes:
                begins.append(nbytes)
                offsets.append(part.pieces[0].offset)
                nbytes += part.nbytes
        if dtype is None or size != math.prod(shape):
            _refuse_chunks(at)
        return contiguous(_Joined(self.source, begins, offsets, nbytes), 0, dtype, shape)


_MORE: Final = object()


@dataclass(frozen=True, slots=True, eq=False)
class _Joined:
    """Runs of bytes of a source, as one source: chunks of an array follow each other whatever its shape is, while as
    boxes of it, each would be in many parts.

    `begins`: where each run begins in this source, ascending; `offsets`: where in the other; none is empty.
    """

    source: RangedSource
    begins: Sequence[int]
    offsets: Sequence[int]
    nbytes: int

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Read what lies in each run."""
        if offset < 0 or offset + sum(map(len, buffers)) > self.nbytes:
            raise _corrupt(offset, f"more bytes were asked for than the {self.nbytes} of an array in chunks")
        for buffer in buffers:
            done = 0
            while done < len(buffer):
                at = bisect_right(self.begins, offset) - 1
                end = self.begins[at + 1] if at + 1 < len(self.begins) else self.nbytes
                part = buffer[done : done + end - offset]
                self.source.read_into(self.offsets[at] + offset - self.begins[at], [part])
                done += len(part)
                offset += len(part)


def _refuse_chunks(at: int) -> NoReturn:
    raise _corrupt(at, "an array in chunks does not have a shape and flat chunks of one dtype that fill it")


# Names as numpy's `dtype.name` writes them. Those with a length have it in bits.
_SIZED: Final = re.compile(r"(str|bytes|void)([1-9][0-9]{0,11})?")
_TIME: Final = re.compile(r"(datetime64|timedelta64)(?:\[([1-9][0-9]{0,9})?([a-zA-Z]{1,7})\])?")
_LONG: Final[dict[str, Callable[[], AnyDType]]] = {
    "float128": lambda: np.dtype(np.longdouble),
    "complex256": lambda: np.dtype(np.clongdouble),
}


def _dtype(name: str, at: int) -> AnyDType:
    descriptor: Descriptor | None = name if not name.endswith("_be") else None
    sized, time = _SIZED.fullmatch(name), _TIME.fullmatch(name)
    if sized is not None:
        bits = int(sized[2] or 0)
        nbytes, unit = bits // 8, 4 if sized[1] == "str" else 1
        descriptor = (sized[1], nbytes // unit) if bits % (8 * unit) == 0 else None
    elif time is not None:
        descriptor = (time[1], time[3] or "generic", int(time[2] or 1))
    elif name in _LONG and _LONG[name]().name == name:
        return _LONG[name]()
    try:
        if descriptor is not None:
            return dtypes.parse(descriptor)
    except (CorruptionError, FormatVersionError):
        # Said below, with the place.
        pass
    raise UnsupportedTypeError(
        f"byte {at}: an array has the dtype {name!r}, which numpy and ml_dtypes do not have here"
    )


def _corrupt(at: int, message: str) -> CorruptionError:
    return CorruptionError(f"byte {at}: {message}", rule="flax msgpack")
