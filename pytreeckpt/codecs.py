"""Codecs: a closed, numbered registry of pairs of functions (section 8 of the format).

`encode` gives the stored bytes of a chunk, or None where the codec does not apply or does not pay. `decode` writes
exactly the raw bytes, or raises `CorruptionError`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from pytreeckpt import zstd
from pytreeckpt.errors import CorruptionError, FormatVersionError

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
    items = np.frombuffer(raw, np.dtype((np.void, itemsize)) if itemsize not in {1, 2, 4, 8} else f"u{itemsize}")
    # Comparing a chunk with itself, shifted by one item, stops nowhere; look at a few items first.
    if bytes(raw[-itemsize:]) != item or items[len(items) // 2].tobytes() != item:
        return None
    return item if bool((items == items[0]).all()) else None


def _decode_fill(stored: memoryview, out: memoryview, itemsize: int) -> None:
    if len(stored) != itemsize:
        raise CorruptionError(f"a fill of {len(stored)} bytes for items of {itemsize}", rule="C-9")
    np.frombuffer(out, np.uint8).reshape(-1, itemsize)[...] = np.frombuffer(stored, np.uint8)


def _decode_zstd(stored: memoryview, out: memoryview, _itemsize: int) -> None:
    out[:] = zstd.decompress(stored, len(out))


RAW: Final = Codec(0, "raw", _copy, lambda stored, raw, _: stored == raw)
FILL: Final = Codec(1, "fill", _decode_fill, lambda stored, _, itemsize: stored == itemsize)
ZSTD: Final = Codec(2, "zstd", _decode_zstd, lambda stored, raw, _: 1 <= stored < raw)

CODECS: Final[Mapping[int, Codec]] = {codec.number: codec for codec in (RAW, FILL, ZSTD)}


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
_AUTO_LEVEL = 1
_SAMPLE_NBYTES = 16 << 10
# zstd has to save at least this part of a sample to be worth the time of the whole chunk, and of the chunk to be kept.
_WORTHWHILE = 0.97


def check_compression(compression: Compression) -> None:
    """Raise `ValueError` unless it is "auto", "none" or a zstd level from 1 to 22."""
    if compression in {"auto", "none"}:
        return
    if isinstance(compression, bool) or not isinstance(compression, int) or compression not in _LEVELS:
        raise ValueError(f'compression is "auto", "none" or a zstd level from 1 to 22, not {compression!r}')


def encode_chunk(raw: memoryview, itemsize: int, compression: Compression) -> tuple[Codec, Buffer]:
    """The codec to store `raw` with, and the stored bytes: a function of these arguments alone.

    "auto" tries a few samples first, so that incompressible chunks cost little; a level always tries the whole chunk.
    "none" stores raw, so that arrays can be mapped.
    """
    if compression == "none":
        return RAW, raw
    if (item := encode_fill(raw, itemsize)) is not None and len(item) < len(raw):
        return FILL, item
    if isinstance(compression, int):
        stored = zstd.compress(raw, compression)
    elif _sample_compresses(raw):
        stored = zstd.compress(raw, _AUTO_LEVEL)
    else:
        return RAW, raw
    return (ZSTD, stored) if len(stored) < _WORTHWHILE * len(raw) else (RAW, raw)


def _sample_compresses(raw: memoryview) -> bool:
    if len(raw) <= 4 * _SAMPLE_NBYTES:
        return True
    starts: Sequence[int] = [0, (len(raw) - _SAMPLE_NBYTES) // 2, len(raw) - _SAMPLE_NBYTES]
    sample = b"".join(raw[start : start + _SAMPLE_NBYTES] for start in starts)
    return len(zstd.compress(sample, _AUTO_LEVEL)) < _WORTHWHILE * len(sample)
