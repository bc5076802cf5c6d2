"""Roundings are right, and means are those of their formula."""

from fractions import Fraction
from functools import lru_cache

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytreeckpt.operations.arithmetic import is_real_float, real_dtype, rounded
from tests.strategies import ML_DTYPES

NARROW = [dtype for dtype in ML_DTYPES if is_real_float(dtype) and dtype.name != "float8_e8m0fnu"]


@lru_cache
def numbers(dtype):
    """All finite numbers of a dtype, ascending, and their bits."""
    bits = np.arange(1 << 8 * dtype.itemsize, dtype=f"u{dtype.itemsize}")
    if dtype.name.startswith(("float4", "float6")):
        bits = bits[: 1 << int(dtype.name[5])]
    with np.errstate(all="ignore"):
        wide = bits.view(dtype).astype(np.float64)
    kept = np.isfinite(wide) & ((bits == 0) | (wide != 0))
    order = np.argsort(wide[kept])
    return wide[kept][order], bits[kept][order]


def nearest(value, dtype):
    """The number of a dtype that is nearest to a float, of two the one with the even bits: by looking at all of them."""
    wide, bits = numbers(dtype)
    at = int(np.searchsorted(wide, value))
    near = [place for place in (at - 1, at) if 0 <= place < len(wide)]
    distance = {place: abs(Fraction(float(wide[place])) - Fraction(value)) for place in near}
    best = min(near, key=lambda place: (distance[place], int(bits[place]) & 1))
    return float(wide[best])


def largest(dtype):
    return float(ml_dtypes.finfo(dtype).max)


def test_there_are_narrow_floats():
    assert len(NARROW) >= 9


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@given(data=st.data())
def test_a_float64_is_rounded_once_to_a_narrow_float(dtype, data):
    top = largest(dtype)
    # Near numbers of the dtype and the middles between them, where a second rounding would show.
    bits = data.draw(st.integers(0, (1 << 8 * dtype.itemsize) - 1))
    if dtype.name.startswith(("float4", "float6")):
        bits %= 1 << int(dtype.name[5])
    start = float(np.array(bits, f"u{dtype.itemsize}").view(dtype).astype(np.float64))
    if not np.isfinite(start):
        start = 1.0
    span = float(np.abs(np.float64(start))) * 2.0 ** -data.draw(st.integers(1, 10)) + 2.0**-140
    value = start + span * data.draw(st.sampled_from([-1, 0, 1])) + span * 2.0 ** -data.draw(st.integers(20, 40))
    if abs(value) > top:
        value = top
    got = rounded(np.array([value]), dtype)
    assert got.dtype == dtype
    assert float(got.astype(np.float64)[0]) == nearest(value, dtype)


def test_ml_dtypes_alone_would_round_twice():
    value = np.array([1 + 2**-8 + 2**-40])
    assert float(value.astype(ml_dtypes.bfloat16)[0]) == 1.0
    assert float(rounded(value, np.dtype(ml_dtypes.bfloat16))[0]) == 1 + 2**-7


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_special_values_are_rounded_as_the_dtype_has_them(dtype):
    values = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e300, -1e300, 5e-324])
    got = rounded(values, dtype)
    with np.errstate(all="ignore"):
        assert got.tobytes() == values.astype(np.float32).astype(dtype).tobytes()


def test_what_is_made_of_floats_is_known():
    known = {dtype.name for dtype in map(np.dtype, "efdgFDG")} | {dtype.name for dtype in NARROW}
    known |= {"float8_e8m0fnu"} | {dtype.name for dtype in ML_DTYPES if "complex" in dtype.name}
    every = [*map(np.dtype, "?bBhHiIlLqQefdgFDGSUVMm"), *ML_DTYPES, np.dtype([("float", "f4")])]
    assert {dtype.name for dtype in every if real_dtype(dtype) is not None} == known
