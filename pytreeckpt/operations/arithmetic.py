"""Floats of any width: weighted means that are rounded once, and roundings that are right.

`ml_dtypes` rounds a float64 to float32 first and then to its own dtype, which is one rounding too many: 1 + 2⁻⁸ + 2⁻⁴⁰
becomes 1 in bfloat16, and not the next number. Here the way there is a rounding to odd, after which the second one is
the only one (Boldo and Melquiond, "When double rounding is odd", 2005): float32 has more than two bits more than any
of these dtypes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import ml_dtypes
import numpy as np

from pytreeckpt.arrays import AnyArray, ReadRun, run_reader
from pytreeckpt.dtypes import AnyDType, has_padding

_NATIVE: Final = (np.float16, np.float32, np.float64, np.longdouble)
# Some items at a time, so that what is worked with stays in the cache.
_BLOCK: Final = 1 << 15
# The last 15 bits of a float32.
_LOW_BITS: Final = np.uint32(0x7FFF)
_PAIRS: Final[dict[type, type]] = {
    np.complex64: np.float32,
    np.complex128: np.float64,
    np.clongdouble: np.longdouble,
    **{
        getattr(ml_dtypes, name): part
        for name, part in (("complex32", np.float16), ("bcomplex32", ml_dtypes.bfloat16))
        if hasattr(ml_dtypes, name)
    },
}


def is_real_float(dtype: AnyDType) -> bool:
    """Whether a dtype is of real floats: numpy's, or one of ml_dtypes (bfloat16, float8 …)."""
    return dtype.kind == "f" or (
        dtype.kind == "V" and dtype.names is None and dtype.name.startswith(("bfloat", "float"))
    )


def real_dtype(dtype: AnyDType) -> AnyDType | None:
    """The dtype of the real numbers that items are made of: of complex ones, of their parts; None for what is not made
    of floats.
    """
    part = _PAIRS.get(dtype.type)
    if part is not None:
        return np.dtype(part).newbyteorder(dtype.byteorder)
    return dtype if is_real_float(dtype) else None


def rounded(values: AnyArray, dtype: AnyDType) -> AnyArray:
    """Real floats in another dtype of real floats, each rounded once, to the nearest and of two to the even one."""
    if values.dtype == dtype:
        return values
    with np.errstate(all="ignore"):
        if dtype.type in _NATIVE:
            return values.astype(dtype)
        if values.dtype.itemsize <= 4:
            return values.astype(np.float32).astype(dtype)
        flat = values.reshape(-1)
        narrow: AnyArray = np.empty(flat.shape, dtype)
        for at in range(0, len(flat), _BLOCK):
            narrow[at : at + _BLOCK] = _rounded_on_the_way(flat[at : at + _BLOCK]).astype(dtype)
    return narrow.reshape(values.shape)


def _rounded_to_odd(values: AnyArray) -> AnyArray:
    """As float32: exact, or that one of the two neighbours whose last bit is 1."""
    nearest = values.astype(np.float32)
    back = nearest.astype(values.dtype)
    inexact = (back != values) & (values == values)  # noqa: PLR0124 - which NaN is not
    bits = nearest.view(np.uint32)
    bits -= inexact & (np.abs(back) > np.abs(values))
    bits |= inexact
    return nearest


def _rounded_on_the_way(values: AnyArray) -> AnyArray:
    """As float32 from which a second rounding, to a dtype of `ml_dtypes`, is the only one.

    To the nearest, unless that may lie in the middle between two numbers of that dtype, where what it was rounded from
    decides. Such a middle has one bit more than the numbers have, which is 9 at most: of 24, the last 15 are 0.
    """
    nearest = values.astype(np.float32)
    places = np.flatnonzero((nearest.view(np.uint32) & _LOW_BITS) == 0)
    if places.size:
        nearest[places] = _rounded_to_odd(values[places])
    return nearest


def weighted_mean(
    reads: Sequence[ReadRun], weights: Sequence[float], total: float, dtype: AnyDType
) -> Callable[[int, int], AnyArray]:
    """What reads runs of Σ wᵢ·xᵢ / Σ wᵢ of arrays of floats or complex numbers that have the same items in the same
    order. `total` is Σ wᵢ.

    In float64 (of extended floats, in their own), from the first array to the last, then divided, then rounded once to
    `dtype`. Real and imaginary parts are each a mean of their own.
    """
    real = real_dtype(dtype)
    if real is None:
        raise ValueError(f"there is no mean of items of {dtype}")
    wide: Any = np.longdouble if real.type is np.longdouble else np.float64
    factors = [wide(weight) for weight in weights]
    padded = has_padding(dtype)

    def read(start: int, stop: int) -> AnyArray:
        with np.errstate(all="ignore"):
            sums: AnyArray = _parts(reads[0](start, stop)).astype(wide)
            if factors[0] != 1:
                sums *= factors[0]
            for read_one, factor in zip(reads[1:], factors[1:], strict=True):
                items = _parts(read_one(start, stop))
                for at in range(0, len(items), _BLOCK):
                    block = items[at : at + _BLOCK].astype(wide)
                    if factor != 1:
                        block *= factor
                    sums[at : at + _BLOCK] += block
            sums /= wide(total)
        mean = rounded(sums, real).view(dtype)
        # What lies between extended floats is not stored.
        return run_reader(mean)(0, len(mean)) if padded else mean

    return read


def _parts(items: AnyArray) -> AnyArray:
    part = real_dtype(items.dtype)
    return items if part is None or part == items.dtype else items.view(part)
