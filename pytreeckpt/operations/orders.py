"""Arrays whose items are wanted in another order than they are stored in."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Final, Literal

import numpy as np

from pytreeckpt.arrays import AnyArray, ArraySource, copy_items, run_reader
from pytreeckpt.dtypes import AnyDType
from pytreeckpt.geometry import Box, Shape, runs
from pytreeckpt.operations.stored import StoredItems, naming

Order = Literal["stored", "uncut", "C"]
"""How the items of a source follow each other: as they are stored, in boxes; the same in one box; in C order."""

# So much is read at a time of an array whose items are wanted in another order than they lie in: of all of those that
# are read side by side, and at least of each.
_TURNED_NBYTES: Final = 64 << 20
_MIN_TURNED_NBYTES: Final = 4 << 20


def uncut(source: ArraySource, axes: Shape | None) -> ArraySource:
    """The array as one box, with its axes in this order from slowest to fastest (None: in C order)."""
    if axes == source.axes and source.cuts is None:
        return source
    return ArraySource(
        source.dtype,
        source.shape,
        (items_in_order(source, axes),),
        axes=axes,
        identity=None if source.identity is None else ("uncut", axes, source.identity),
        immutable=source.immutable,
    )


def items_in_order(source: ArraySource, axes: Shape | None, *, n_beside: int = 1) -> Callable[[int, int], AnyArray]:
    """Reads runs of all items of an array with its axes in this order (None: C order); `n_beside`: how many arrays are
    read side by side, and share the memory for it.
    """
    in_order = tuple(range(len(source.shape)))
    if source.cuts is None and (source.axes or in_order) == (axes or in_order):
        return source.boxes[0]
    first = source.boxes[0]
    if isinstance(first, StoredItems):
        checkpoint, array, meter = first.file.checkpoint, first.array, first.meter

        def region(box: Box) -> AnyArray:
            with naming(str(checkpoint.path)):
                values = checkpoint.read_region(array, (*box.slices, ...))
            if meter is not None:
                meter.count(values.nbytes)
            return values

        nbytes = max(_MIN_TURNED_NBYTES, _TURNED_NBYTES // n_beside)
        return _TurnedItems(region, source.dtype, source.shape, axes or in_order, nbytes)
    # In memory, or on a device: it is there as a whole.
    from pytreeckpt.convert.leaves import assembled

    return _Once(lambda: run_reader(assembled(source).transpose(axes or in_order)), math.prod(source.shape))


class _TurnedItems:
    """Reads runs of an array in another order than it lies in: large blocks, because each takes parts of many chunks,
    of which the last two are kept.
    """

    def __init__(
        self, region: Callable[[Box], AnyArray], dtype: AnyDType, shape: Shape, axes: Shape, nbytes: int
    ) -> None:
        self._region = region
        self._dtype = dtype
        self._axes = axes
        self._shape = tuple(shape[axis] for axis in axes)
        self._step = max(1, nbytes // max(dtype.itemsize, 1))
        self._blocks: OrderedDict[int, AnyArray] = OrderedDict()
        self._lock = Lock()

    def __call__(self, start: int, stop: int) -> AnyArray:
        items: AnyArray = np.empty(stop - start, self._dtype)
        for number in range(start // self._step, -(-stop // self._step)):
            begin = number * self._step
            low, high = max(start, begin), min(stop, begin + self._step)
            copy_items(items[low - start : high - start], self._block(number)[low - begin : high - begin])
        return items

    def _block(self, number: int) -> AnyArray:
        with self._lock:
            if number not in self._blocks:
                while len(self._blocks) > 1:
                    self._blocks.popitem(last=False)
                self._blocks[number] = self._read(number)
            return self._blocks[number]

    def _read(self, number: int) -> AnyArray:
        begin = number * self._step
        end = min(begin + self._step, math.prod(self._shape))
        block: AnyArray = np.empty(end - begin, self._dtype)
        for run in runs(self._shape, begin, end):
            offset, extent = [0] * len(self._axes), [1] * len(self._axes)
            for place, axis in enumerate(self._axes):
                offset[axis], extent[axis] = run.box.offset[place], run.box.shape[place]
            values = self._region(Box(tuple(offset), tuple(extent))).transpose(self._axes)
            part = block[run.start : run.start + values.size].reshape(run.box.shape)
            copy_items(part, values)
        return block


class _Once:
    """Reads runs of what `load` gives, which is kept until all items were handed on."""

    def __init__(self, load: Callable[[], Callable[[int, int], AnyArray]], n_items: int) -> None:
        self._load = load
        self._n_items = n_items
        self._read: Callable[[int, int], AnyArray] | None = None
        self._left = 0
        self._lock = Lock()

    def __call__(self, start: int, stop: int) -> AnyArray:
        with self._lock:
            if self._read is None:
                self._read, self._left = self._load(), self._n_items
            read = self._read
            self._left -= stop - start
            if self._left <= 0:
                self._read = None
        return read(start, stop)
