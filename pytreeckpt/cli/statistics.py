"""Statistics of arrays, chunk by chunk, so that an array of any size takes the memory of a few chunks.

Minimum, maximum, mean and standard deviation are those of the finite numbers; NaN and infinities are counted apart.
Partial results are merged as in Chan, Golub, LeVeque, "Algorithms for computing the sample variance" (1983).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from pytreeckpt.arrays import AnyArray
from pytreeckpt.content import ReadsArrays
from pytreeckpt.dtypes import AnyDType
from pytreeckpt.pipeline import ReportProgress


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of the numbers of one array or several. `squares` is the sum of the squared deviations from the mean."""

    n_items: int = 0
    n_finite: int = 0
    n_nan: int = 0
    n_zeros: int = 0
    minimum: int | float | None = None
    maximum: int | float | None = None
    mean: float = 0.0
    squares: float = 0.0

    @property
    def n_infinite(self) -> int:
        """How many are infinite."""
        return self.n_items - self.n_finite - self.n_nan

    @property
    def std(self) -> float:
        """The standard deviation of the population."""
        return math.sqrt(self.squares / self.n_finite) if self.n_finite else 0.0


def merge(one: Statistics, other: Statistics) -> Statistics:
    """The statistics of two sets of numbers together."""
    n_finite = one.n_finite + other.n_finite
    distance = other.mean - one.mean
    part = other.n_finite / n_finite if n_finite else 0.0
    lows = [value for value in (one.minimum, other.minimum) if value is not None]
    highs = [value for value in (one.maximum, other.maximum) if value is not None]
    return Statistics(
        one.n_items + other.n_items,
        n_finite,
        one.n_nan + other.n_nan,
        one.n_zeros + other.n_zeros,
        min(lows, default=None),
        max(highs, default=None),
        one.mean + distance * part,
        one.squares + other.squares + distance * distance * part * one.n_finite,
    )


def merged(parts: Iterable[Statistics]) -> Statistics:
    """The statistics of all of them together."""
    return reduce(merge, parts, Statistics())


def is_numeric(dtype: AnyDType) -> bool:
    """Whether an array of this dtype is made of real numbers or bools."""
    if dtype.kind in "biuf":
        return True
    # The numbers of ml_dtypes; its complex ones are left out, as numpy's are.
    return dtype.kind == "V" and dtype.names is None and dtype.type is not np.void and not _is_complex(dtype)


def _is_complex(dtype: AnyDType) -> bool:
    return "complex" in dtype.name


def of_values(values: AnyArray) -> Statistics:
    """The statistics of a piece of an array of a numeric dtype."""
    if values.size == 0:
        return Statistics()
    numbers = _widened(values.reshape(-1))
    if numbers.dtype.kind in "iu":
        finite = numbers
        n_nan = 0
    else:
        finite = numbers[np.isfinite(numbers)] if not np.isfinite(numbers).all() else numbers
        n_nan = int(np.isnan(numbers).sum()) if len(finite) < len(numbers) else 0
    if not len(finite):
        return Statistics(n_items=len(numbers), n_nan=n_nan)
    # Huge numbers overflow to infinity, which is said as it is.
    with np.errstate(over="ignore", invalid="ignore"):
        doubles = finite if finite.itemsize > 8 else finite.astype(np.float64)
        mean = float(doubles.mean())
        squares = float(np.square(doubles - mean).sum())
    return Statistics(
        n_items=len(numbers),
        n_finite=len(finite),
        n_nan=n_nan,
        n_zeros=len(finite) - int(np.count_nonzero(finite)),
        minimum=_number(finite.min()),
        maximum=_number(finite.max()),
        mean=mean,
        squares=squares,
    )


def _number(value: Any) -> int | float:
    # An extended float has no Python type of its own.
    return int(value) if value.dtype.kind in "iu" else float(value)


def _widened(values: AnyArray) -> AnyArray:
    """The same numbers in a dtype that numpy computes with."""
    if values.dtype.kind == "b":
        truths: AnyArray = (values.view(np.uint8) != 0).astype(np.uint8)
        return truths
    if values.dtype.kind in "iuf":
        native: AnyArray = values.astype(values.dtype.newbyteorder("="), copy=False)
        return native.astype(np.float32) if native.dtype == np.float16 else native
    widened: AnyArray = values.astype(np.int8 if "int" in values.dtype.name else np.float32)
    return widened


def of_arrays(
    reader: ReadsArrays, wanted: Sequence[int], *, progress: ReportProgress | None = None
) -> dict[int, Statistics]:
    """The statistics of these arrays of a file, of those that are numeric."""
    index = reader.paths.index
    numeric = [array for array in wanted if is_numeric(index.dtypes[index.arrays[array].dtype])]
    found = dict.fromkeys(numeric, Statistics())
    for array, part in reader.scan(numeric, of_values, progress=progress):
        found[array] = merge(found[array], part)
    return found
