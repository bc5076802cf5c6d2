"""Codecs: a closed, numbered registry of pairs of functions (section 8 of the format).

`encode` gives the stored bytes of a chunk, or None where the codec does not apply or does not pay. `decode` writes
exactly the raw bytes, or raises `CorruptionError`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from pytreeckpt import zstd
from pytreeckpt.errors import CorruptionError, FormatVersionError
from pytreeckpt.planes import (
    FILL_PLANE,
    RAW_PLANE,
    ZSTD_PLANE,
    Cut,
    Plane,
    Words,
    join,
    pack_planes,
    split,
    unpack_planes,
)

Buffer = bytes | bytearray | memoryview
Decode = Callable[[memoryview, memoryview, int], None]
"""`decode(stored, out, itemsize)`"""


@dataclass(frozen=True, slots=True)
class Codec:
    """One way to store a chunk. `stored_fits(stored_nbytes, raw_nbytes, itemsize)` is rule C-4."""

    number: int
    name: str
    decode: Decode
    stored_fits: Callable[[int, int, int], bool]


def _copy(stored: memoryview, out: memoryview, _itemsize: int) -> None:
    if len(stored) != len(out):
        raise CorruptionError(f"{len(stored)} stored bytes for {len(out)} raw bytes", rule="C-9")
    out[:] = stored


def encode_fill(raw: memoryview, itemsize: int) -> bytes | None:
    """The first item, if all items are the same."""
    item = bytes(raw[:itemsize])
    middle = len(raw) // itemsize // 2 * itemsize
    # Comparing all items stops nowhere; look at a few first.
    if bytes(raw[-itemsize:]) != item or bytes(raw[middle : middle + itemsize]) != item:
        return None
    items = np.frombuffer(raw, np.dtype((np.void, itemsize)) if itemsize not in {1, 2, 4, 8} else f"u{itemsize}")
    return item if bool((items == items[0]).all()) else None


def _decode_fill(stored: memoryview, out: memoryview, itemsize: int) -> None:
    if len(stored) != itemsize:
        raise CorruptionError(f"a fill of {len(stored)} bytes for items of {itemsize}", rule="C-9")
    np.frombuffer(out, np.uint8).reshape(-1, itemsize)[...] = np.frombuffer(stored, np.uint8)


def _decode_zstd(stored: memoryview, out: memoryview, _itemsize: int) -> None:
    out[:] = zstd.decompress(stored, len(out))


def _decode_planes(stored: memoryview, out: memoryview, itemsize: int) -> None:
    cut, planes = unpack_planes(stored, len(out), itemsize)
    n_words = len(out) // cut.word
    decoded: list[memoryview | bytes] = [
        zstd.decompress(plane.stored, n_words * plane.width) if plane.codec == ZSTD_PLANE else plane.stored
        for plane in planes
    ]
    join([np.frombuffer(part, f"<u{plane.width}") for part, plane in zip(decoded, planes, strict=True)], cut, out)


RAW: Final = Codec(0, "raw", _copy, lambda stored, raw, _: stored == raw)
FILL: Final = Codec(1, "fill", _decode_fill, lambda stored, _, itemsize: stored == itemsize)
ZSTD: Final = Codec(2, "zstd", _decode_zstd, lambda stored, raw, _: 1 <= stored < raw)
PLANES: Final = Codec(3, "planes", _decode_planes, lambda stored, raw, _: 1 <= stored < raw)

CODECS: Final[Mapping[int, Codec]] = {codec.number: codec for codec in (RAW, FILL, ZSTD, PLANES)}


def codec_of(number: int) -> Codec:
    """The codec with this number. Raises `FormatVersionError` (C-2) for one that this reader does not know."""
    codec = CODECS.get(number)
    if codec is None:
        raise FormatVersionError(
            f"a chunk has codec {number}, which this reader does not know; a newer pytreeckpt may", rule="C-2"
        )
    return codec


Compression = str | int
_LEVELS = range(1, 23)
_FAST_LEVEL = 1
# Smaller chunks are not worth a look at their planes, and fewer floats no look at all; and where small chunks hardly
# count, smaller ones are not.
_MIN_PLANES_NBYTES = 8 << 10
_MIN_FLOATS_NBYTES = 2 << 10
_MIN_NBYTES_OF_FEW = 512
# A sample is runs of this many bytes, a multiple of any word, from all over the chunk.
_SAMPLE_NBYTES = 4 << 10
_SAMPLE_RUNS = 4
# What coding has to leave of a plane or chunk to be worth the time that decoding takes, and what finding matches has to
# leave of what entropy coding alone does, to be worth a multiple of its time.
_WORTHWHILE = 0.97
_WORTH_MATCHING = 0.85


def check_compression(compression: Compression) -> None:
    """Raise `ValueError` unless it is "auto", "none" or a zstd level from 1 to 22."""
    if compression in {"auto", "none"}:
        return
    if isinstance(compression, bool) or not isinstance(compression, int) or compression not in _LEVELS:
        raise ValueError(f'compression is "auto", "none" or a zstd level from 1 to 22, not {compression!r}')


class Encoded(NamedTuple):
    """A chunk as it is stored, in pieces."""

    codec: Codec
    pieces: Sequence[Buffer]

    @property
    def nbytes(self) -> int:
        """The stored length."""
        return sum(map(len, self.pieces))


def encode_chunk(
    raw: memoryview, itemsize: int, compression: Compression, cut: Cut | None = None, *, few_small: bool = False
) -> Encoded:
    """How to store `raw`: a function of these arguments alone. `cut`: how its items may be cut into planes.
    `few_small`: whether small chunks are few, so that even they may take their time.

    "auto" looks at a sample to decide, for each plane, whether and how to code it. A level tries that level as well, on
    the planes and on the whole, and takes what is smallest. "none" stores raw, so that arrays can be mapped.
    """
    if compression == "none":
        return Encoded(RAW, [raw])
    if len(raw) > itemsize and (item := encode_fill(raw, itemsize)) is not None:
        return Encoded(FILL, [item])
    quick = _encode_auto(raw, cut, few_small=few_small)
    if not isinstance(compression, int):
        return quick
    candidates = [quick, Encoded(ZSTD, [zstd.compress(raw, compression)])]
    if cut is not None:
        candidates += [_of_planes(raw, each, [compression] * len(each.widths)) for each in (cut, cut.finer)]
    return min(candidates, key=lambda encoded: encoded.nbytes)


# How a plane is to be coded: a level of zstd's or `zstd.LITERALS`; None for as it is.
_Mode = int | None


def _encode_auto(raw: memoryview, cut: Cut | None, *, few_small: bool) -> Encoded:
    if len(raw) < (_MIN_NBYTES_OF_FEW if few_small else _MIN_PLANES_NBYTES):
        few_floats = cut is not None and cut.rotation and len(raw) < _MIN_FLOATS_NBYTES
        return Encoded(RAW, [raw]) if few_floats else _of_whole(raw, _FAST_LEVEL)
    sample = _sample(raw)
    if cut is None:
        return _of_whole(raw, _choose(sample, matches=True)[0])
    cut, modes, nbytes = _choose_cut(sample, cut)
    if not cut.rotation:
        # Integers and the like may repeat themselves, which planes would hide.
        mode, whole_nbytes = _choose(sample, matches=True)
        if whole_nbytes <= nbytes:
            return _of_whole(raw, mode)
    return _of_planes(raw, cut, modes)


def _sample(raw: memoryview) -> memoryview:
    """Some of a chunk, long enough to tell what coding will make of all of it."""
    if len(raw) <= 2 * _SAMPLE_RUNS * _SAMPLE_NBYTES:
        return raw
    step = (len(raw) - _SAMPLE_NBYTES) // (_SAMPLE_RUNS - 1) // 8 * 8
    return memoryview(b"".join(raw[at * step : at * step + _SAMPLE_NBYTES] for at in range(_SAMPLE_RUNS)))


def _choose_cut(sample: memoryview, cut: Cut) -> tuple[Cut, list[_Mode], int]:
    """The cut, the coding of its planes, and what these leave of a sample, in bytes."""
    choices = _choose_planes(sample, cut)
    finer = cut.finer
    if cut != finer and choices[-1][0] is not None:
        choices = _choose_planes(sample, finer)
        cut = finer
    return cut, [mode for mode, _ in choices], sum(nbytes for _, nbytes in choices)


def _choose_planes(sample: memoryview, cut: Cut) -> list[tuple[_Mode, int]]:
    planes = [_bytes_of(plane) for plane in split(sample, cut)]
    # Words that come again show in all of their planes, and best below the exponent, where chance repeats little.
    second = _choose(planes[1], matches=True)
    matches = second[0] is not None
    first, *rest = (_choose(plane, matches=matches) for plane in (planes[0], *planes[2:]))
    return [first, second, *rest]


def _choose(sample: memoryview, *, matches: bool) -> tuple[_Mode, int]:
    """How to code what this is a sample of, and what that leaves of it, in bytes. `matches`: whether to look for
    matches, and not only at the frequencies of bytes.
    """
    nbytes = len(zstd.compress(sample, zstd.LITERALS))
    mode: _Mode = zstd.LITERALS
    if matches:
        matched_nbytes = len(zstd.compress(sample, _FAST_LEVEL))
        if matched_nbytes < _WORTH_MATCHING * nbytes:
            mode, nbytes = _FAST_LEVEL, matched_nbytes
    return (mode, nbytes) if nbytes < _WORTHWHILE * len(sample) else (None, len(sample))


def _of_whole(raw: memoryview, mode: _Mode) -> Encoded:
    if mode is not None:
        stored = zstd.compress(raw, mode)
        if len(stored) < _WORTHWHILE * len(raw):
            return Encoded(ZSTD, [stored])
    return Encoded(RAW, [raw])


def _of_planes(raw: memoryview, cut: Cut, modes: Sequence[_Mode]) -> Encoded:
    if all(mode is None for mode in modes):
        return Encoded(RAW, [raw])
    planes = [_encode_plane(plane, mode) for plane, mode in zip(split(raw, cut), modes, strict=True)]
    encoded = Encoded(PLANES, pack_planes(cut, planes))
    return encoded if encoded.nbytes < _WORTHWHILE * len(raw) else Encoded(RAW, [raw])


def _bytes_of(words: Words) -> memoryview:
    return words.view(np.uint8).data


def _encode_plane(words: Words, mode: _Mode) -> Plane:
    plane = _bytes_of(words)
    width = words.itemsize
    if mode is not None:
        if (part := encode_fill(plane, width)) is not None and len(part) < len(plane):
            return Plane(width, FILL_PLANE, part)
        stored = zstd.compress(plane, mode)
        if len(stored) < len(plane):
            return Plane(width, ZSTD_PLANE, stored)
    return Plane(width, RAW_PLANE, plane)
