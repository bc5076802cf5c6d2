"""Floats in another dtype while they are written, and what that loses."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import Final

import numpy as np

from pytreeckpt.arrays import AnyArray, ArraySource, ReadRun
from pytreeckpt.dtypes import AnyDType
from pytreeckpt.errors import ConversionError
from pytreeckpt.operations.arithmetic import is_real_float, rounded
from pytreeckpt.operations.lazy import LazyTree, array_leaves
from pytreeckpt.operations.sources import as_source
from pytreeckpt.paths import Path

# Some items at a time, so that what is worked with stays in the cache.
_BLOCK: Final = 1 << 15


@dataclass(frozen=True, slots=True)
class CastReport:
    """What casting has done. `n_arrays` had another dtype; of these, `n_inexact` were not held exactly. `max_abs_error`
    and `max_rel_error`: the greatest of |x − y| and |x − y| / |x| of finite items x that became y; `n_overflowed`:
    finite items that became infinite or NaN; `n_underflowed`: items other than 0 that became 0.
    """

    dtype: str
    n_arrays: int
    n_inexact: int = 0
    max_abs_error: float = 0.0
    max_rel_error: float = 0.0
    n_overflowed: int = 0
    n_underflowed: int = 0


class Losses:
    """Collects what is lost while arrays are read, by threads."""

    def __init__(self, dtype: AnyDType, *, allow_overflow: bool) -> None:
        self.dtype = dtype
        self._allow_overflow = allow_overflow
        self._n_arrays = 0
        self._inexact: set[int] = set()
        self._max_abs_error = 0.0
        self._max_rel_error = 0.0
        self._n_overflowed = 0
        self._n_underflowed = 0
        self._lock = Lock()

    def report(self) -> CastReport:
        """What was lost so far."""
        return CastReport(
            self.dtype.name,
            self._n_arrays,
            len(self._inexact),
            self._max_abs_error,
            self._max_rel_error,
            self._n_overflowed,
            self._n_underflowed,
        )

    def reader(self, read: ReadRun, array: int, path: Path) -> ReadRun:
        """Reads the runs of a box of an array, to be called `path`, in the other dtype."""

        def read_cast(start: int, stop: int) -> AnyArray:
            items = read(start, stop)
            cast = rounded(items, self.dtype)
            self._compare(items, cast, array, path)
            return cast

        return read_cast

    def count_array(self) -> None:
        """One more array has another dtype."""
        self._n_arrays += 1

    def _compare(self, items: AnyArray, cast: AnyArray, array: int, path: Path) -> None:
        wide = np.float64 if items.dtype.itemsize <= 8 else np.longdouble
        largest, relative, overflowed, underflowed = 0.0, 0.0, 0, 0
        with np.errstate(all="ignore"):
            for at in range(0, len(items), _BLOCK):
                before: AnyArray = items[at : at + _BLOCK].astype(wide)
                after = cast[at : at + _BLOCK].astype(wide)
                error = np.abs(after - before)
                if bool((error == 0).all()):
                    continue
                finite = np.isfinite(before)
                kept = finite & np.isfinite(after)
                overflowed += int(np.count_nonzero(finite)) - int(np.count_nonzero(kept))
                underflowed += int(np.count_nonzero(kept & (after == 0) & (before != 0)))
                error = np.where(kept, error, 0)
                largest = max(largest, float(error.max()))
                relative = max(relative, float(np.max(error / np.abs(before), where=error > 0, initial=0)))
        if overflowed and not self._allow_overflow:
            raise ConversionError(
                f"{str(path) or 'the root'}: {overflowed} finite values are beyond what {self.dtype.name} holds, and "
                "would be infinite or NaN; choose a dtype of a greater range, such as bfloat16, or allow it "
                "(allow_overflow)",
                mismatched=[str(path)],
            )
        if largest or overflowed:
            with self._lock:
                self._inexact.add(array)
                self._max_abs_error = max(self._max_abs_error, largest)
                self._max_rel_error = max(self._max_rel_error, relative)
                self._n_overflowed += overflowed
                self._n_underflowed += underflowed


def cast_floats(tree: LazyTree, losses: Losses) -> LazyTree:
    """The tree with its arrays of real floats in another dtype; all others as they are."""
    arrays = list(tree.arrays)
    done: set[int] = set()
    for leaf in array_leaves(tree):
        number = tree.nodes.arrays[leaf.entry]
        source = as_source(arrays[number])
        if number in done or not is_real_float(source.dtype) or source.dtype == losses.dtype:
            continue
        done.add(number)
        losses.count_array()
        boxes = tuple(losses.reader(read, number, leaf.path) for read in source.boxes)
        arrays[number] = ArraySource(
            losses.dtype,
            source.shape,
            boxes,
            source.axes,
            source.cuts,
            identity=("cast", number, id(losses)),
            immutable=True,
        )
    return tree.with_arrays(arrays)
