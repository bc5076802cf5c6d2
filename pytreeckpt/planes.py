"""Words cut into planes of equal significance (section 8 of the format): what can be saved of weights is in the bits of
their exponents, and these have to stand together for it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any, Final

import numpy as np

from pytreeckpt.dtypes import AnyDType, describe
from pytreeckpt.errors import CorruptionError
from pytreeckpt.scratch import scratch

Words = np.ndarray[tuple[int], np.dtype[Any]]

RAW_PLANE: Final = 0
FILL_PLANE: Final = 1
ZSTD_PLANE: Final = 2

_ALIGNMENT = 8
_HEADER = struct.Struct("<BBB5x")
_ENTRY = struct.Struct("<BB2xI")
_UINTS: Final[Mapping[int, np.dtype[Any]]] = {
    1: np.dtype("u1"),
    2: np.dtype("<u2"),
    4: np.dtype("<u4"),
    8: np.dtype("<u8"),
}


@dataclass(frozen=True, slots=True)
class Cut:
    """How words of `word` bytes are cut: their upper 16 bits are rotated left by `rotation`, and planes of `widths`
    bytes taken off from the most significant end.
    """

    word: int
    rotation: int
    widths: tuple[int, ...]

    @property
    def finer(self) -> Cut:
        """The same words, cut into single bytes."""
        return Cut(self.word, self.rotation, (1,) * self.word)


# The exponent of an fp32 or bf16 becomes the first byte, its sign the last bit of the second; below, nothing moves. Of
# an fp64's 11 bits of exponent the upper 3 hardly ever change, and stand behind the sign. An fp16 has 5.
_FLOAT16 = Cut(2, 1, (1, 1))
_FLOAT32 = Cut(4, 1, (1, 1, 2))
_FLOAT64 = Cut(8, 4, (1, 1, 2, 4))
_FLOATS: Final = {
    **dict.fromkeys(("float16", "bfloat16", "complex32", "bcomplex32"), _FLOAT16),
    **dict.fromkeys(("float32", "complex64"), _FLOAT32),
    **dict.fromkeys(("float64", "complex128"), _FLOAT64),
}


@cache
def cut_of(dtype: AnyDType) -> Cut | None:
    """How to cut the items of a dtype; None for those of single bytes and for structs."""
    name = describe(dtype)
    if isinstance(name, str) and name in _FLOATS:
        return _FLOATS[name]
    # Strings hold code points of 4 bytes; all else is cut by its size, with its bytes in whatever order.
    word = 4 if dtype.kind == "U" else dtype.itemsize if dtype.kind in "iufmM" else dtype.itemsize // 2
    return Cut(word, 0, (1,) * word) if dtype.kind in "iufcmMU" and word in {2, 4, 8} and dtype.itemsize else None


def split(raw: memoryview, cut: Cut) -> list[Words]:
    """The planes of the words in `raw`, from the most significant on, each in memory of its own."""
    planes: list[Words] = []
    words = np.frombuffer(raw, _UINTS[cut.word])
    _split(words.copy() if len(cut.widths) == 1 else words, cut.widths, cut.rotation, planes)
    return planes


def join(planes: Sequence[Words], cut: Cut, out: memoryview) -> None:
    """The words of these planes. A plane of one part stands for as many as are needed."""
    _join(planes, cut.widths, cut.rotation, np.frombuffer(out, _UINTS[cut.word]))


# Both go by halves: a plane lies in one half of the word or is all of it (P-2). Each step is one pass of numpy's over
# all words, and gives up Python's lock for long: many short ones would have threads wait for each other.


def _split(words: Words, widths: Sequence[int], rotation: int, planes: list[Words]) -> None:
    word = words.itemsize
    if rotation and (len(widths) == 1 or (word == 2 and rotation > 8)):
        words = words.copy()
        _rotate(words, rotation)
        rotation = 0
    if len(widths) == 1:
        planes.append(words)
        return
    half = word // 2
    n_high = _n_high(widths, half)
    high, low = (np.empty(len(words), _UINTS[half]) for _ in range(2))
    shifted = _scratch("shifted", len(words), word)
    if word == 2 and rotation:
        _rotated_halves(words, rotation, shifted, high, low)
    else:
        np.right_shift(words, 8 * half, out=shifted)
        np.copyto(high, shifted, casting="unsafe")
        np.copyto(low, words, casting="unsafe")
    _split(high, widths[:n_high], rotation if half >= 2 else 0, planes)
    _split(low, widths[n_high:], 0, planes)


def _rotated_halves(words: Words, rotation: int, shifted: Words, high: Words, low: Words) -> None:
    """The bytes of words of 16 bits that are rotated left by up to 8 bits."""
    np.right_shift(words, 8 - rotation, out=shifted)
    np.copyto(high, shifted, casting="unsafe")
    if rotation == 1:
        # Adding bytes and comparing with 0 are quick, and shifting bytes is not.
        np.copyto(low, words, casting="unsafe")
        np.add(low, low, out=low)
        carried = _scratch("carried", len(words), 1)
        np.less(words.view("<i2"), 0, out=carried.view(np.bool_))
    else:
        np.left_shift(words, rotation, out=shifted)
        np.copyto(low, shifted, casting="unsafe")
        np.right_shift(words, 16 - rotation, out=shifted)
        carried = _scratch("carried", len(words), 1)
        np.copyto(carried, shifted, casting="unsafe")
    np.bitwise_or(low, carried, out=low)


def _join(planes: Sequence[Words], widths: Sequence[int], rotation: int, out: Words) -> None:
    word = out.itemsize
    if len(widths) == 1:
        np.copyto(out, planes[0])
        _rotate(out, -rotation)
        return
    half = word // 2
    n_high = _n_high(widths, half)
    below = rotation if half >= 2 else 0
    high = _half(out, planes[:n_high], widths[:n_high], below, "high")
    low = _half(out, planes[n_high:], widths[n_high:], 0, "low")
    np.copyto(out, high)
    np.left_shift(out, 8 * half, out=out)
    if len(low) > 1 or low[0]:
        np.bitwise_or(out, low, out=out)
    if not below:
        _rotate(out, -rotation)


def _half(whole: Words, planes: Sequence[Words], widths: Sequence[int], rotation: int, slot: str) -> Words:
    """What is to be one half of each of the words of `whole`: the plane itself, if it is one and as it should be."""
    if len(widths) == 1 and not rotation:
        return planes[0]
    half = whole.itemsize // 2
    joined = _scratch(f"{slot} {half}", len(whole), half)
    _join(planes, widths, rotation, joined)
    return joined


def _n_high(widths: Sequence[int], half: int) -> int:
    """How many of the planes are in the upper half."""
    total = 0
    for count, width in enumerate(widths, 1):
        total += width
        if total == half:
            return count
    raise ValueError(f"planes of {widths} bytes cannot be halved")


def _rotate(words: Words, bits: int) -> None:
    """Rotate the upper 16 bits of each word left, in place; to the right for negative `bits`."""
    if not bits % 16:
        return
    step = words.itemsize // 2
    top = words.view("<u2")[step - 1 :: step]
    carried = _scratch("carried", len(top), 2)
    np.right_shift(top, 16 - bits % 16, out=carried)
    np.left_shift(top, bits % 16, out=top)
    np.bitwise_or(top, carried, out=top)


def _scratch(slot: str, n_words: int, word: int) -> Words:
    return scratch(slot, n_words * word).view(_UINTS[word])


@dataclass(frozen=True, slots=True)
class Plane:
    """A plane as it is stored."""

    width: int
    codec: int
    stored: bytes | memoryview


def pack_planes(cut: Cut, planes: Sequence[Plane]) -> list[bytes | memoryview]:
    """The pieces of a chunk of planes."""
    header = _HEADER.pack(cut.word, cut.rotation, len(planes))
    entries = b"".join(_ENTRY.pack(plane.width, plane.codec, len(plane.stored)) for plane in planes)
    pieces: list[bytes | memoryview] = [header + entries]
    for plane in planes:
        pieces.append(plane.stored)
        if gap := -len(plane.stored) % _ALIGNMENT:
            pieces.append(bytes(gap))
    return pieces


def unpack_planes(stored: memoryview, raw_nbytes: int, itemsize: int) -> tuple[Cut, list[Plane]]:
    """The planes of a chunk, still as they are stored (P-1 to P-4)."""
    if len(stored) < _HEADER.size:
        raise CorruptionError(f"{len(stored)} stored bytes are no header of planes", rule="P-1")
    word, rotation, count = _HEADER.unpack_from(stored)
    at = _HEADER.size + count * _ENTRY.size
    if not count or at > len(stored):
        raise CorruptionError(f"{len(stored)} stored bytes do not hold the entries of {count} planes", rule="P-1")
    entries = list(_ENTRY.iter_unpack(stored[_HEADER.size : at]))
    zero = [*stored[3:8], *(byte for entry in range(_HEADER.size, at, 8) for byte in stored[entry + 2 : entry + 4])]
    if word not in {2, 4, 8} or itemsize % word or rotation >= 16 or any(zero):
        raise CorruptionError(
            f"planes of words of {word} bytes, rotated by {rotation}, for items of {itemsize} bytes", rule="P-1"
        )
    widths = tuple(width for width, _, _ in entries)
    below = [word - end for end in accumulate(widths)]
    if below[-1] or any(width not in _UINTS or rest % width for width, rest in zip(widths, below, strict=True)):
        raise CorruptionError(f"words of {word} bytes cannot be cut into planes of {widths}", rule="P-2")
    planes: list[Plane] = []
    for width, codec, nbytes in entries:
        raw = raw_nbytes // word * width
        fits = {RAW_PLANE: nbytes == raw, FILL_PLANE: nbytes == width, ZSTD_PLANE: 1 <= nbytes < raw}
        if not fits.get(codec, False):
            raise CorruptionError(f"a plane of {raw} bytes has codec {codec} and {nbytes} stored bytes", rule="P-3")
        end = at + nbytes
        planes.append(Plane(width, codec, stored[at:end]))
        at = end + -end % _ALIGNMENT
        if any(stored[end:at]):
            raise CorruptionError("the bytes after a plane are not zero", rule="P-4")
    if at != len(stored):
        raise CorruptionError(f"the planes end at {at} and the stored bytes at {len(stored)}", rule="P-4")
    return Cut(word, rotation, widths), planes
