"""CRC-32 of bytes that were read in parts, in threads: the checksum of all of them from those of the parts.

As in zlib's `crc32_combine`: bytes are polynomials over GF(2), and appending n bytes multiplies by x^8n modulo the
polynomial of the checksum (ISO/IEC 3309, as PKWARE's APPNOTE.TXT has it for zip), here with its bits reversed.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

_POLYNOMIAL: Final = 0xEDB88320
_ONE: Final = 1 << 31


def combine(first: int, second: int, nbytes: int) -> int:
    """The CRC-32 of two runs of bytes one after the other, of which the second has `nbytes` bytes."""
    return _multiply(first, _shift(nbytes)) ^ second


def _multiply(a: int, b: int) -> int:
    """The product of two polynomials, modulo that of the checksum."""
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product


@lru_cache(maxsize=256)
def _shift(nbytes: int) -> int:
    """The power of x that appends `nbytes` bytes."""
    power = _ONE
    square = _ONE >> 8
    while nbytes:
        if nbytes & 1:
            power = _multiply(power, square)
        square = _multiply(square, square)
        nbytes >>= 1
    return power
