"""By how much arrays differ: as numpy computes it from both as a whole, whatever their dtypes and layouts."""

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt.operations import diff_reading, diff_values
from pytreeckpt.operations.diff_records import ValueDifference
from tests import strategies as some
from tests.operations.test_diff import compare


@pytest.fixture(autouse=True)
def in_small_pieces(monkeypatch):
    """Everything in many pieces, though it is small."""
    monkeypatch.setattr(diff_values, "_PIECE", 7)
    monkeypatch.setattr(diff_reading, "_SMALL_NBYTES", 100)


def values_of(a: Any, b: Any, **options: Any) -> ValueDifference | None:
    changes = [change for change in compare({"x": a}, {"x": b}, values=True, **options) if change.kind != "layout"]
    return changes[0].values if changes else None


INTS = ["i1", "u1", "<i2", ">i4", "u4", "i8", "u8", "?"]
FLOATS = ["f2", ">f4", "f8", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]
SMALL_INTS = [ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.int2]
SHAPES = st.sampled_from([(), (1,), (40,), (3, 11), (0,)])


@given(st.sampled_from(INTS), st.sampled_from(INTS), SHAPES, st.integers(0, 9), st.integers(0, 9))
def test_integers_are_compared_exactly(dtype_a, dtype_b, shape, seed_a, seed_b):
    a, b = some.fill(np.dtype(dtype_a), shape, seed_a), some.fill(np.dtype(dtype_b), shape, seed_b)
    # Bools have two values.
    a, b = (np.asarray(x.view(np.uint8) % 2 == 1) if x.dtype.kind == "b" else x for x in (a, b))
    found = values_of(a, b)
    distances = [abs(int(x) - int(y)) for x, y in zip(a.reshape(-1), b.reshape(-1), strict=True)]
    if found is None or not distances:
        assert not any(distances)
        return
    assert (found.n_items, found.n_finite) == (len(distances), len(distances))
    assert found.n_different == sum(distance > 0 for distance in distances) == found.n_beyond
    assert found.max_abs == max(distances)
    assert type(found.max_abs) is int
    assert found.mean_abs == sum(distances) / len(distances)
    assert found.rms == pytest.approx(math.sqrt(sum(distance**2 for distance in distances) / len(distances)), rel=1e-12)
    relative = [
        d / max(abs(int(x)), abs(int(y))) if d else 0.0 for d, x, y in zip(distances, a.flat, b.flat, strict=True)
    ]
    assert found.max_relative == pytest.approx(max(relative), rel=1e-12)


@given(st.sampled_from(FLOATS), st.sampled_from(FLOATS), SHAPES, st.integers(0, 9), st.integers(0, 9))
def test_floats_are_compared_as_numpy_does_it_in_float64(dtype_a, dtype_b, shape, seed_a, seed_b):
    a, b = some.fill(np.dtype(dtype_a), shape, seed_a), some.fill(np.dtype(dtype_b), shape, seed_b)
    found = values_of(a, b)
    # A signalling NaN is invalid as numpy has it.
    with np.errstate(all="ignore"):
        x, y = (array.reshape(-1).astype(np.float64) for array in (a, b))
    if found is None:
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()
        return
    if a.dtype == b.dtype:
        unsigned = f"u{a.itemsize}"
        assert found.n_different == np.count_nonzero(a.reshape(-1).view(unsigned) != b.reshape(-1).view(unsigned))
    else:
        assert found.n_different == np.count_nonzero((x != y) & ~(np.isnan(x) & np.isnan(y)))
    assert found.n_nan == (np.count_nonzero(np.isnan(x)), np.count_nonzero(np.isnan(y)))
    assert found.n_infinite == (np.count_nonzero(np.isinf(x)), np.count_nonzero(np.isinf(y)))
    both = np.isfinite(x) & np.isfinite(y)
    assert found.n_finite == np.count_nonzero(both)
    if not both.any():
        assert found.n_items == a.size
        assert found.max_abs is found.mean_abs is found.max_relative is found.rms is found.cosine is None
        return
    with np.errstate(all="ignore"):
        distances = np.abs(x[both] - y[both])
        larger = np.maximum(np.abs(x[both]), np.abs(y[both]))
        assert found.max_abs == distances.max()
        assert found.mean_abs == pytest.approx(distances.mean(), rel=1e-9)
        assert found.rms == pytest.approx(np.sqrt((distances**2).mean()), rel=1e-9)
        assert found.max_relative == pytest.approx(np.nan_to_num(distances / larger).max(), rel=1e-12)
        length = np.sqrt((x[both] ** 2).sum()) * np.sqrt((y[both] ** 2).sum())
        if found.cosine is not None:
            assert found.cosine == pytest.approx((x[both] * y[both]).sum() / length, abs=1e-9)
        else:
            assert not 0 < length < math.inf or not np.isfinite((x[both] * y[both]).sum())


@given(st.sampled_from(["c8", ">c16"]), st.integers(1, 9), st.integers(1, 9))
def test_complex_numbers_are_compared_by_their_distances(dtype, seed_a, seed_b):
    generators = (np.random.default_rng(seed) for seed in (seed_a, seed_b + 10))
    a, b = ((each.standard_normal(50) + 1j * each.standard_normal(50)).astype(dtype) for each in generators)
    found = values_of(a, b)
    x, y = a.astype(np.complex128), b.astype(np.complex128)
    assert found.max_abs == np.abs(x - y).max()
    assert found.rms == pytest.approx(np.sqrt((np.abs(x - y) ** 2).mean()), rel=1e-12)
    assert found.cosine == pytest.approx(np.vdot(x, y).real / (np.linalg.norm(x) * np.linalg.norm(y)), abs=1e-12)
    assert (found.n_different, found.n_finite) == (50, 50)
    assert values_of(np.array([complex(0, math.nan)]), np.array([complex(math.inf, 0)])).n_nan == (1, 0)


def test_the_small_numbers_of_ml_dtypes_are_numbers():
    for dtype in SMALL_INTS:
        a = np.array([0, 1, 1, 0], np.int8).astype(dtype)
        b = np.array([0, 1, 0, 1], np.int8).astype(dtype)
        found = values_of(a, b)
        assert (found.n_different, found.max_abs, found.mean_abs) == (2, 1, 0.5)


def test_what_is_no_number_has_a_count_and_nothing_else():
    for a, b in [
        (np.array(["a", "b", "c"]), np.array(["a", "x", "y"])),
        (np.array([(1, 2.0), (3, 4.0)], "i4,f4"), np.array([(1, 2.0), (3, 5.0)], "i4,f4")),
        (np.array(["2020", "2021"], "M8[D]"), np.array(["2020", "2022"], "M8[D]")),
    ]:
        found = values_of(a, b)
        assert (found.n_items, found.n_different) == (len(a), int((a != b).sum()))
        assert found.max_abs is found.mean_abs is found.cosine is None
    assert values_of(np.array(["a"]), np.array([b"a"])) is None


@given(
    st.lists(st.tuples(some.FLOATS, some.FLOATS), min_size=1, max_size=20),
    st.floats(0, 2),
    st.floats(0, 1e300),
)
def test_tolerance_is_that_of_isclose(pairs, rtol, atol):
    a, b = (np.array(column) for column in zip(*pairs, strict=True))
    found = compare({"x": a, "y": pairs[0][0]}, {"x": b, "y": pairs[0][1]}, rtol=rtol, atol=atol)
    with np.errstate(all="ignore"):
        if rtol or atol:
            close = np.isclose(a, b, rtol=rtol, atol=atol, equal_nan=True)
        else:
            close = a.view(np.int64) == b.view(np.int64)
    assert found.same == close.all()
    assert ("x" in {str(change.path) for change in found if not change.within_tolerance}) == (not close.all())
    assert ("y" in {str(change.path) for change in found if not change.within_tolerance}) == (not close[0])


def test_a_tolerance_is_for_numbers_only():
    a = {"i": 1000, "f": 1.0, "c": 1j, "np": np.float32(1), "array": np.arange(9), "big": 1 << 2000}
    b = {"i": 1001, "f": 1.001, "c": 1.001j, "np": np.float32(1.001), "array": np.arange(9) + 1, "big": (1 << 2000) + 1}
    found = compare(a, b, atol=1.0)
    assert found.same
    assert (len(found), found.n_within_tolerance, found.n_equal) == (6, 6, 6)
    assert found.summary() == "the same but for 6 leaves within the tolerance: 6 leaves"
    assert found.read_nbytes == 2 * 9 * 8
    for a, b in [
        (True, False),
        (np.array([True]), np.array([False])),
        (1, 1.0),
        ("a", "b"),
        (np.float32(1), np.float64(1)),
        (np.zeros(3, np.float32), np.zeros(3)),
        ([0.0], (0.0,)),
    ]:
        assert not compare(a, b, atol=10.0).same


def test_a_tolerance_of_integers_is_exact():
    great = 1 << 60
    a, b = np.array([great, -great, 5]), np.array([great + 1, -great, 7])
    assert compare({"x": a}, {"x": b}, atol=2).same
    found = compare({"x": a}, {"x": b}, atol=1)
    assert [change.values.n_beyond for change in found] == [1]
    assert not compare({"x": a}, {"x": b}, atol=0.5).same
    # As floats they would be the same.
    assert not compare({"x": a[:2]}, {"x": b[:2]}, atol=0.5).same
    a, b = np.array([0, 1 << 63], np.uint64), np.array([-1, -1], np.int64)
    assert values_of(a, b).max_abs == (1 << 63) + 1


def test_threads_make_no_difference(monkeypatch):
    generator = np.random.default_rng(0)
    a = generator.standard_normal(3000).astype(np.float32)
    b = a + generator.standard_normal(3000).astype(np.float32)
    b[::100] = [math.nan, math.inf, -0.0] * 10
    monkeypatch.setattr(diff_reading, "_PART_NBYTES", 400)
    found = []
    for threads in ("1", "2", "5"):
        monkeypatch.setenv("PYTREECKPT_THREADS", threads)
        found.append(values_of(a, b, rtol=0.1))
    assert found[0] == found[1] == found[2]
    assert found[0].n_different == 3000
    assert (found[0].n_nan, found[0].n_infinite) == ((0, 10), (0, 10))


@pytest.mark.parametrize(("rtol", "atol"), [(-1, 0), (0, math.nan), (math.inf, 0)])
def test_a_tolerance_is_a_number_from_zero_on(rtol, atol):
    with pytest.raises(ValueError, match="a tolerance is a number from 0 on"):
        compare(1, 1, rtol=rtol, atol=atol)


@given(st.data())
def test_layouts_and_blocks_make_no_difference(data):
    array = np.random.default_rng(data.draw(st.integers(0, 99))).standard_normal((13, 17))
    other = array + 1e-3
    forms = [lambda x: x, np.asfortranarray, lambda x: ptc.source_of(np.asfortranarray(x))]
    one, two = (data.draw(st.sampled_from(forms))(each) for each in (array, other))
    found = values_of(one, two)
    assert found.max_abs == np.abs(array - other).max()
    assert found.n_different == array.size
