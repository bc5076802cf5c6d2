"""By how much the items of two arrays differ: sums over blocks, so that arrays of any size take the memory of a few.

Everything is computed in float64; differences of integers exactly. Items are within the tolerance as numpy.isclose has
it, with `equal_nan`: |a − b| ≤ atol + rtol · |b|.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Final, Literal

import numpy as np

from pytreeckpt.arrays import AnyArray, run_reader
from pytreeckpt.dtypes import AnyDType, has_padding
from pytreeckpt.operations.diff_records import ValueDifference

# So many items are widened at a time: what is made of them stays in the cache of a core.
_PIECE: Final = 1 << 15
# The least number greater than 0.
_LEAST: Final = math.ulp(0.0)
_UNSIGNED: Final = {size: np.dtype(f"u{size}") for size in (1, 2, 4, 8)}

NumberKind = Literal["int", "float", "complex"]


def number_kind(dtype: AnyDType) -> NumberKind | None:
    """What sort of numbers an array of this dtype holds (bools are ints); None for other items."""
    if dtype.kind in "biu":
        return "int"
    if dtype.kind in "fc":
        return "float" if dtype.kind == "f" else "complex"
    if dtype.kind != "V" or dtype.names is not None or dtype.type is np.void:
        return None
    # The numbers of ml_dtypes.
    return "complex" if "complex" in dtype.name else "int" if "int" in dtype.name else "float"


def equal_items(a: AnyArray, b: AnyArray) -> AnyArray:
    """Which items of two arrays of rank 1, of one dtype, are the same in every bit that a value determines."""
    dtype = a.dtype
    if has_padding(dtype):
        a, b = (run_reader(items)(0, len(items)) for items in (a, b))
    unsigned = _UNSIGNED.get(dtype.itemsize)
    if unsigned is not None:
        equal: AnyArray = a.view(unsigned) == b.view(unsigned)
        return equal
    bytes_a, bytes_b = (items.view(np.uint8).reshape(len(items), dtype.itemsize) for items in (a, b))
    whole: AnyArray = (bytes_a == bytes_b).all(axis=1)
    return whole


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far numbers may be apart; true if that is any distance at all."""

    rtol: float
    atol: float

    def __bool__(self) -> bool:
        return bool(self.rtol or self.atol)

    def close(self, a: object, b: object) -> bool:
        """Whether two values of one type, which differ, are numbers within the tolerance."""
        if not self:
            return False
        if isinstance(a, np.generic) and isinstance(b, np.generic):
            sums = sums_of(np.asarray(a).reshape(1), np.asarray(b).reshape(1), same_dtype=True, tolerance=self)
            return sums.n_beyond == 0
        if type(a) is int and type(b) is int:
            # Of any size, which floats are not: a float is a fraction.
            return abs(a - b) <= Fraction(self.atol) + Fraction(self.rtol) * abs(b)
        return isinstance(a, float | complex) and bool(self.of_items(np.asarray(a), np.asarray(b)))

    def bound(self, b: AnyArray) -> AnyArray:
        """How far from each of these finite numbers another one may be."""
        bound: AnyArray = self.atol + self.rtol * np.abs(b)
        return bound

    def of_items(self, a: AnyArray, b: AnyArray) -> AnyArray:
        """Which items are within it, of float64 or complex128."""
        # Numbers that are further apart than floats go are infinitely far apart.
        with np.errstate(all="ignore"):
            close: AnyArray = np.isclose(a, b, rtol=self.rtol, atol=self.atol, equal_nan=True)
        return close


@dataclass(frozen=True, slots=True)
class Sums:
    """What is known of some of the items of two arrays; of numbers that are finite in both, all but the counts."""

    n_items: int = 0
    n_different: int = 0
    n_beyond: int = 0
    n_finite: int = 0
    n_nan_a: int = 0
    n_nan_b: int = 0
    n_infinite_a: int = 0
    n_infinite_b: int = 0
    greatest: int | float = 0
    greatest_relative: float = 0.0
    total: int | float = 0
    squares: float = 0.0
    product: float = 0.0
    squares_a: float = 0.0
    squares_b: float = 0.0


def merge(one: Sums, other: Sums) -> Sums:
    """Of the items of one, and then those of the other."""
    return Sums(
        one.n_items + other.n_items,
        one.n_different + other.n_different,
        one.n_beyond + other.n_beyond,
        one.n_finite + other.n_finite,
        one.n_nan_a + other.n_nan_a,
        one.n_nan_b + other.n_nan_b,
        one.n_infinite_a + other.n_infinite_a,
        one.n_infinite_b + other.n_infinite_b,
        max(one.greatest, other.greatest),
        max(one.greatest_relative, other.greatest_relative),
        one.total + other.total,
        one.squares + other.squares,
        one.product + other.product,
        one.squares_a + other.squares_a,
        one.squares_b + other.squares_b,
    )


def sums_of(a: AnyArray, b: AnyArray, *, same_dtype: bool, tolerance: Tolerance) -> Sums:
    """Those of as many items of each array, of rank 1. `same_dtype`: of both arrays, in every respect."""
    are_numbers = None not in {number_kind(a.dtype), number_kind(b.dtype)}
    found = Sums()
    with np.errstate(all="ignore"):
        for start in range(0, len(a), _PIECE):
            items_a, items_b = a[start : start + _PIECE], b[start : start + _PIECE]
            n_unequal = int(np.count_nonzero(~equal_items(items_a, items_b))) if same_dtype else None
            if are_numbers:
                piece = _of_numbers(items_a, items_b, n_unequal, tolerance)
            else:
                piece = Sums(len(items_a), n_unequal or 0, n_unequal or 0)
            found = merge(found, piece)
    return found


def _of_numbers(items_a: AnyArray, items_b: AnyArray, n_unequal: int | None, tolerance: Tolerance) -> Sums:
    """`n_unequal`: how many have other bits, if that is what tells them apart."""
    a, b = _widened(items_a), _widened(items_b)
    if a.dtype.kind in "fc" or b.dtype.kind in "fc":
        common = np.complex128 if "c" in (a.dtype.kind, b.dtype.kind) else np.float64
        a, b = a.astype(common, copy=False), b.astype(common, copy=False)
    distance = _distance(a, b)
    is_bool = items_a.dtype.kind == "b" or items_b.dtype.kind == "b"
    if distance.dtype.kind != "f" or math.isfinite(distance.max()):
        # Of what is not finite, neither is the distance.
        n_different = int(np.count_nonzero(distance)) if n_unequal is None else n_unequal
        n_beyond = n_different
        if tolerance and not is_bool:
            n_beyond = int(np.count_nonzero(_doubles(distance) > tolerance.bound(_doubles(b))))
        return _of_finite(a, b, distance, Sums(len(a), n_different, n_beyond, len(a)))
    nan_a, nan_b = np.isnan(a), np.isnan(b)
    finite_a, finite_b = np.isfinite(a), np.isfinite(b)
    both = finite_a & finite_b
    n_different = int(np.count_nonzero((a != b) & ~(nan_a & nan_b))) if n_unequal is None else n_unequal
    n_beyond = int(np.count_nonzero(~tolerance.of_items(a, b))) if tolerance else n_different
    counts = Sums(
        len(a),
        n_different,
        n_beyond,
        int(np.count_nonzero(both)),
        int(np.count_nonzero(nan_a)),
        int(np.count_nonzero(nan_b)),
        int(np.count_nonzero(~finite_a & ~nan_a)),
        int(np.count_nonzero(~finite_b & ~nan_b)),
    )
    return _of_finite(a[both], b[both], distance[both], counts) if counts.n_finite else counts


def _of_finite(a: AnyArray, b: AnyArray, distance: AnyArray, counts: Sums) -> Sums:
    """The counts, and what is to be known of these items, of which there is at least one."""
    exact = distance.dtype.kind in "uO"
    doubles, doubles_a, doubles_b = _doubles(distance), _doubles(a), _doubles(b)
    larger = np.maximum(np.abs(doubles_a), np.abs(doubles_b))
    # Where both are zero, so is the difference.
    np.maximum(larger, _LEAST, out=larger)
    return replace(
        counts,
        greatest=int(distance.max()) if exact else float(distance.max()),
        greatest_relative=float(np.divide(doubles, larger, out=larger).max()),
        total=_exact_sum(distance) if exact else float(distance.sum()),
        squares=_product(doubles, doubles),
        product=_product(doubles_a, doubles_b),
        squares_a=_product(doubles_a, doubles_a),
        squares_b=_product(doubles_b, doubles_b),
    )


def _product(a: AnyArray, b: AnyArray) -> float:
    """The scalar product of two vectors (of complex numbers, its real part)."""
    # Not by BLAS, whose own threads take many times as long, and whose sums depend on how many there are.
    return float(np.einsum("i,i->", a.view(np.float64), b.view(np.float64)))


def value_difference(sums: Sums) -> ValueDifference:
    """What all items come to."""
    known = sums.n_finite > 0
    length = math.sqrt(sums.squares_a) * math.sqrt(sums.squares_b)
    has_angle = known and 0 < length < math.inf and math.isfinite(sums.product)
    return ValueDifference(
        sums.n_items,
        sums.n_different,
        sums.n_beyond,
        sums.n_finite,
        (sums.n_nan_a, sums.n_nan_b),
        (sums.n_infinite_a, sums.n_infinite_b),
        sums.greatest if known else None,
        sums.total / sums.n_finite if known else None,
        sums.greatest_relative if known else None,
        math.sqrt(sums.squares / sums.n_finite) if known else None,
        max(-1.0, min(1.0, sums.product / length)) if has_angle else None,
    )


def _doubles(items: AnyArray) -> AnyArray:
    doubles: AnyArray = items.astype(np.float64) if items.dtype.kind in "iuO" else items
    return doubles


def _widened(items: AnyArray) -> AnyArray:
    """The same numbers as int64, uint64, float64 or complex128."""
    kind = number_kind(items.dtype)
    if items.dtype.kind == "b":
        truths: AnyArray = (items.view(np.uint8) != 0).astype(np.int64)
        return truths
    if items.dtype.kind == "V":
        # What ml_dtypes converts to in any case.
        steps: dict[Any, tuple[Any, Any]] = {
            "int": (np.int8, np.int64),
            "float": (np.float32, np.float64),
            "complex": (np.complex64, np.complex128),
        }
        narrow, wide = steps[kind]
        converted: AnyArray = items.astype(narrow).astype(wide)
        return converted
    wide = {"int": np.int64, "float": np.float64, "complex": np.complex128}[kind or "float"]
    if items.dtype.kind == "u" and items.dtype.itemsize == 8:
        wide = np.uint64
    widened: AnyArray = items.astype(wide, copy=False)
    return widened


def _distance(a: AnyArray, b: AnyArray) -> AnyArray:
    """|a − b|, of integers as uint64, or as Python's where even that is too small."""
    if a.dtype.kind in "fc":
        distance: AnyArray = np.abs(a - b)
        return distance
    if a.dtype != b.dtype:
        signed, unsigned = (a, b) if a.dtype.kind == "i" else (b, a)
        if int(unsigned.max()) < 1 << 63:
            a, b = signed, unsigned.astype(np.int64)
        elif int(signed.min()) >= 0:
            a, b = signed.astype(np.uint64), unsigned
        else:
            objects: AnyArray = np.abs(signed.astype(object) - unsigned.astype(object))
            return objects
    # Modulo 2^64 the difference of the larger and the smaller is the true one.
    bits_a, bits_b = a.view(np.uint64), b.view(np.uint64)
    exact: AnyArray = np.where(a >= b, bits_a - bits_b, bits_b - bits_a)
    return exact


def _exact_sum(distance: AnyArray) -> int:
    if distance.dtype.kind == "O":
        return int(distance.sum())
    # Of at most 2^32 items, neither half overflows.
    return (int((distance >> np.uint64(32)).sum()) << 32) + int((distance & np.uint64(0xFFFFFFFF)).sum())
