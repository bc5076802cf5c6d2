"""The numbers of floating-point arrays as histograms, of all of them or of a sample, in bounded memory.

A value is counted under the upper 18 bits of it as a float32, which is a bin of a relative width of 1/512. So one
pass does for arrays of any range, and histograms can be added; they are drawn with as many equal bins as one likes.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np

from pytreeckpt.arrays import AnyArray
from pytreeckpt.checkpoint import Checkpoint
from pytreeckpt.cli.statistics import Statistics, is_numeric, merge, of_values
from pytreeckpt.dtypes import AnyDType
from pytreeckpt.geometry import runs
from pytreeckpt.index import Index, IntArray
from pytreeckpt.pipeline import Progress, ReportProgress

Reading = Literal["sample", "all", "none"]
SAMPLE_NBYTES: Final = 256 << 20
"""So many bytes of arrays are read for a sample."""
_SLABS: Final = 16
# Arrays of so few items are looked at so many at a time.
_N_TINY: Final = 1 << 12
_N_TOGETHER: Final = 256
_SHIFT: Final = 14
_N_KEYS: Final = 1 << (32 - _SHIFT)


class Part(NamedTuple):
    """Of a piece of an array: its statistics, and how many of its finite values have each of the keys that occur."""

    statistics: Statistics
    keys: IntArray
    counts: IntArray


@dataclass(slots=True)
class Values:
    """What is known of the numbers of an array, or of several. `n_read` of `n_items` were read."""

    statistics: Statistics
    counts: IntArray
    n_items: int

    @property
    def n_read(self) -> int:
        """How many numbers were read."""
        return self.statistics.n_items

    def add(self, part: Part) -> None:
        """Take in a piece."""
        self.statistics = merge(self.statistics, part.statistics)
        self.counts[part.keys] += part.counts


def no_values() -> Values:
    """Of no array yet."""
    return Values(Statistics(), np.zeros(_N_KEYS, np.int64), 0)


def is_float(dtype: AnyDType) -> bool:
    """Whether an array of this dtype has a histogram."""
    return is_numeric(dtype) and dtype.kind not in "biu" and "int" not in dtype.name


def values_of(items: AnyArray) -> Part:
    """What is to be known of a piece of an array of floats."""
    with np.errstate(all="ignore"):
        singles = items.reshape(-1).astype(np.float32)
    keys = singles[np.isfinite(singles)].view(np.uint32) >> _SHIFT
    if len(keys) < _N_KEYS // 8:
        return Part(of_values(items), *np.unique(keys, return_counts=True))
    counts = np.bincount(keys, minlength=_N_KEYS)
    present = np.flatnonzero(counts)
    return Part(of_values(items), present, counts[present])


Piece = tuple[int | None, Part]
"""Of one array, or of several tiny ones."""


class Read(NamedTuple):
    """What was read: of each array that was to have its own, and of all floats together."""

    of_arrays: dict[int, Values]
    of_all: Values


def read_values(
    checkpoint: Checkpoint,
    floats: Sequence[int],
    shown: Sequence[int],
    reading: Reading,
    progress: ReportProgress | None,
) -> Read:
    """Read the floats of a file, by the numbers of their arrays, those that are `shown` kept apart."""
    index = checkpoint.index
    apart = {array: no_values() for array in shown}
    of_all = no_values()
    for array in floats:
        of_all.n_items += _n_items(index, array)
        if array in apart:
            apart[array].n_items = _n_items(index, array)
    if reading == "none":
        return Read({}, no_values())
    total = sum(map(index.nbytes, floats))
    pieces: Iterator[Piece] = (
        _scanned(checkpoint, floats, apart, progress)
        if reading == "all" or total <= SAMPLE_NBYTES
        else _sampled(checkpoint, floats, total, apart, progress)
    )
    for number, part in pieces:
        of_all.add(part)
        if number is not None and number in apart:
            apart[number].add(part)
    return Read(apart, of_all)


def _n_items(index: Index, array: int) -> int:
    return math.prod(index.arrays[array].shape)


def _scanned(
    checkpoint: Checkpoint, arrays: Sequence[int], apart: Container[int], progress: ReportProgress | None = None
) -> Iterator[Piece]:
    """All of these arrays; tiny ones that are not `apart` together, as they are many."""

    def of_chunk(items: AnyArray) -> Part | AnyArray:
        # A copy, because the memory is used again.
        return values_of(items) if items.size > _N_TINY else items.reshape(-1).copy()

    index = checkpoint.index
    gathered: dict[int, list[AnyArray]] = {}
    for array, found in checkpoint.content.reader.scan(arrays, of_chunk, progress=progress):
        if isinstance(found, Part):
            yield array, found
        elif array in apart:
            yield array, values_of(found)
        else:
            tiny = gathered.setdefault(index.arrays[array].dtype, [])
            tiny.append(found)
            if len(tiny) == _N_TOGETHER:
                yield None, values_of(np.concatenate(tiny))
                tiny.clear()
    for tiny in gathered.values():
        if tiny:
            yield None, values_of(np.concatenate(tiny))


def _sampled(
    checkpoint: Checkpoint,
    floats: Sequence[int],
    total: int,
    apart: Container[int],
    progress: ReportProgress | None,
) -> Iterator[Piece]:
    """Of each array its share of the sample, in slabs that are evenly spread over it; of small ones, all or nothing."""
    index = checkpoint.index
    share = SAMPLE_NBYTES / total
    small = [array for array in floats if index.nbytes(array) <= 1 << 20]
    taken = small[:: max(1, math.ceil(sum(map(index.nbytes, small)) / (SAMPLE_NBYTES / 2)))]
    yield from _scanned(checkpoint, taken, apart)
    done = 0
    for array in floats:
        if index.nbytes(array) <= 1 << 20:
            continue
        entry = index.arrays[array]
        n_items = _n_items(index, array)
        n_slab = max(1, int(n_items * share / _SLABS))
        # Along the axes as they are in the file, a slab is a few chunks.
        axes = entry.axes or tuple(range(len(entry.shape)))
        for place in range(_SLABS):
            start = (n_items - n_slab) * place // (_SLABS - 1)
            for run in runs(entry.stored_shape, start, start + n_slab):
                where: dict[int, slice] = dict(zip(axes, run.box.slices, strict=True))
                items = checkpoint.read_region(array, tuple(where[axis] for axis in range(len(axes))))
                done += items.nbytes
                yield array, values_of(items.reshape(-1))
        if progress is not None:
            progress(Progress(min(done, SAMPLE_NBYTES), SAMPLE_NBYTES))


class Bars(NamedTuple):
    """A histogram as it is drawn: equal bins from `low` to `high`, which all but a thousandth of the values are in, and
    how many zeros (less than 2^-134 or so) were left out.
    """

    low: float
    high: float
    counts: Sequence[float]
    n_zeros: int


def bars_of(values: Values, n_bars: int) -> Bars | None:
    """Bins that hold all but a thousandth of the values; zeros apart, if they are many. None without finite values."""
    found, keys = values.statistics, np.flatnonzero(values.counts)
    if not keys.size:
        return None
    if found.minimum is not None and found.minimum == found.maximum:
        # One value, in the middle.
        counts = [0.0] * n_bars
        counts[n_bars // 2] = float(found.n_finite)
        reach = abs(found.minimum) / 2 or 1.0
        return Bars(found.minimum - reach, found.minimum + reach, counts, 0)
    weights = values.counts[keys].astype(np.float64)
    is_zero = (keys & (_N_KEYS // 2 - 1)) == 0
    n_zeros = int(weights[is_zero].sum())
    if weights.sum() / 20 < n_zeros < weights.sum():
        keys, weights = keys[~is_zero], weights[~is_zero]
    else:
        n_zeros = 0
    lows, highs = _intervals(keys)
    order = np.argsort(lows, kind="stable")
    lows, highs, weights = lows[order], highs[order], weights[order]
    low, high = _range(lows, highs, weights)
    # The values of a key are taken to be evenly spread over its interval.
    below = _cumulative(np.linspace(low, high, n_bars + 1), lows, highs, weights)
    return Bars(low, high, [float(count) for count in np.diff(below)], n_zeros)


def _range(lows: IntArray, highs: IntArray, weights: IntArray) -> tuple[float, float]:
    """From where to where all but a thousandth of the values lie; with zero, if that is near."""
    reached = np.cumsum(weights)
    tail = reached[-1] / 2000
    last = len(highs) - 1
    low = float(lows[min(int(np.searchsorted(reached, tail, side="right")), last)])
    high = float(highs[min(int(np.searchsorted(reached, reached[-1] - tail)), last)])
    if 0 < low < high / 4:
        low = 0.0
    elif low / 4 < high < 0:
        high = 0.0
    # Where float32 ends, all values of a key may be one.
    return (low, high) if low < high else (low - abs(low) / 2 - 1.0, high + abs(high) / 2 + 1.0)


def _intervals(keys: IntArray) -> tuple[IntArray, IntArray]:
    """The least and the greatest value of each key."""
    inner = (keys.astype(np.uint32) << _SHIFT).view(np.float32).astype(np.float64)
    outer = ((keys.astype(np.uint32) << _SHIFT) | np.uint32((1 << _SHIFT) - 1)).view(np.float32).astype(np.float64)
    outer = np.where(np.isfinite(outer), outer, inner)
    return np.minimum(inner, outer), np.maximum(inner, outer)


def _cumulative(edges: IntArray, lows: IntArray, highs: IntArray, weights: IntArray) -> IntArray:
    """How many values lie below each edge."""
    widths = np.maximum(highs - lows, 1e-300)
    found: IntArray = np.array([float((weights * np.clip((edge - lows) / widths, 0, 1)).sum()) for edge in edges])
    return found
