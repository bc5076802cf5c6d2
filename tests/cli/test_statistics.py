"""Statistics against numpy's."""

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt.cli.source import opened
from pytreeckpt.cli.statistics import Statistics, is_numeric, merge, merged, of_arrays, of_values
from pytreeckpt.cli.statistics_text import number_text

NUMBERS = st.lists(st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0]), max_size=30)


@given(NUMBERS)
def test_they_are_those_of_the_finite_numbers(numbers):
    array = np.array(numbers, np.float64)
    finite = array[np.isfinite(array)]
    found = of_values(array)
    assert (found.n_items, found.n_finite, found.n_nan) == (len(array), len(finite), np.isnan(array).sum())
    assert found.n_infinite == np.isinf(array).sum()
    assert found.n_zeros == (array == 0).sum()
    if len(finite):
        assert (found.minimum, found.maximum) == (finite.min(), finite.max())
        assert found.mean == pytest.approx(finite.mean())
        assert found.std == pytest.approx(finite.std())
    else:
        assert (found.minimum, found.maximum, found.std) == (None, None, 0.0)


@given(st.lists(NUMBERS, max_size=5))
def test_those_of_parts_are_merged_to_those_of_the_whole(parts):
    whole = of_values(np.array([number for part in parts for number in part], np.float64))
    found = merged(of_values(np.array(part, np.float64)) for part in parts)
    assert found.mean == pytest.approx(whole.mean, abs=1e-6)
    assert found.std == pytest.approx(whole.std, abs=1e-6)
    exact = ("n_items", "n_finite", "n_nan", "n_zeros", "minimum", "maximum")
    assert all(getattr(found, name) == getattr(whole, name) for name in exact)
    assert merge(Statistics(), Statistics()) == Statistics()


@pytest.mark.parametrize(
    "dtype",
    [
        *("bool", "int8", "uint8", "int16", ">i4", "uint64", "float16", ">f4", "float64", "longdouble"),
        *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.int4, ml_dtypes.uint2),
    ],
)
def test_every_dtype_of_real_numbers_has_them(dtype):
    array = np.array([0, 1, 1, 0], np.float32).astype(dtype)
    assert is_numeric(array.dtype)
    found = of_values(array)
    assert (found.minimum, found.maximum, found.mean, found.std, found.n_zeros) == (0, 1, 0.5, 0.5, 2)


@pytest.mark.parametrize("dtype", ["complex64", "S3", "U2", "V4", "M8[s]", "m8[s]", [("x", "f4")], ml_dtypes.complex32])
def test_other_dtypes_have_none(dtype):
    assert not is_numeric(np.dtype(dtype))


def test_extremes_are_exact_where_doubles_are_not():
    found = of_values(np.array([2**64 - 1, 2**64 - 2], np.uint64))
    assert (found.minimum, found.maximum) == (2**64 - 2, 2**64 - 1)
    odd = np.array([2, 255, 0], np.uint8).view(np.bool_)
    assert of_values(odd).maximum == 1
    huge = of_values(np.array([1e308, -1e308, 1e308]))
    assert (huge.maximum, huge.std) == (1e308, math.inf)
    assert of_values(np.array([], np.float32)) == Statistics()


def test_arrays_are_read_chunk_by_chunk(tmp_path):
    path = tmp_path / "t.ptck"
    array = np.random.default_rng(0).standard_normal((3, 500_000)).astype(np.float32)
    ptc.save({"big": array, "small": np.arange(5), "text": np.array("a")}, path)
    steps = []
    with opened(str(path)) as checkpoint:
        found = of_arrays(checkpoint.content.reader, range(3), progress=steps.append)
    assert sorted(found) == [0, 1]
    assert found[0].mean == pytest.approx(array.mean(dtype=np.float64))
    assert found[0].std == pytest.approx(array.std(dtype=np.float64))
    assert found[1].maximum == 4
    assert len(steps) > 1
    assert steps[-1].done_nbytes == steps[-1].total_nbytes == array.nbytes


def test_numbers_are_written_short():
    values = [None, 5, 123_456, -1_234_567, 0.1, -0.0, 1 / 3, 1e30, math.inf]
    expected = ["", "5", "123,456", "-1.235e+06", "0.1", "0", "0.3333", "1e+30", "inf"]
    assert [number_text(value) for value in values] == expected
