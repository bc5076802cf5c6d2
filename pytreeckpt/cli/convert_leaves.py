"""Leaves that are read, or made, when a writer asks for them, and let go when it has had all of them.

A tree on its way from one file to another holds no values: in the place of each array stands what is needed to get it.
So a conversion needs memory for the few arrays at a time that it makes others of, whatever the size of the checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from threading import Lock
from typing import Final

import numpy as np

from pytreeckpt.arrays import AnyArray, ArraySource
from pytreeckpt.checkpoint import Checkpoint
from pytreeckpt.dtypes import AnyDType
from pytreeckpt.geometry import Shape
from pytreeckpt.objects import build_record
from pytreeckpt.operations.sources import Files as StoredFiles
from pytreeckpt.operations.stored import Meter, naming
from pytreeckpt.references import ArrayRef

Load = Callable[[], AnyArray]
_SMALL_NBYTES: Final = 64 << 10
_MAX_SMALL_NBYTES: Final = 256 << 20


class _Runs:
    """Runs of the items of an array, which is loaded for the first of them and kept until all were handed on."""

    def __init__(self, load: Load, n_items: int, axes: Shape | None, meter: Meter) -> None:
        self._load = load
        self._n_items = n_items
        self._axes = axes
        self._meter = meter
        self._items: AnyArray | None = None
        self._left = 0
        self._lock = Lock()

    def __call__(self, start: int, stop: int) -> AnyArray:
        """Items `start` to `stop`, as they are stored. Threads may ask at once."""
        with self._lock:
            if self._items is None:
                array = self._load()
                stored = array if self._axes is None else array.transpose(self._axes)
                self._items = np.ascontiguousarray(stored).reshape(-1)
                self._left = self._n_items
            items = self._items[start:stop]
            self._left -= stop - start
            if self._left <= 0:
                self._items = None
        self._meter.count(items.nbytes)
        return items


def supplied(
    load: Load,
    dtype: AnyDType,
    shape: Shape,
    *,
    meter: Meter,
    axes: Shape | None = None,
    identity: Hashable = None,
) -> ArraySource:
    """An array that `load` gives when it is asked for, stored with its axes in the order of `axes`."""
    runs = _Runs(load, math.prod(shape), axes, meter)
    return ArraySource(dtype, shape, (runs,), axes=axes, identity=identity)


class Files:
    """Open checkpoints. Arrays of which others are made are read whole, one by one, but for small ones: those are read
    all at once and kept, as far as they are not too many, because they may lie together.
    """

    def __init__(self, checkpoints: Sequence[Checkpoint], meter: Meter) -> None:
        self.meter = meter
        self._checkpoints = {id(each): each for each in checkpoints}
        self._small: dict[int, Mapping[int, AnyArray]] = {}
        self._lock = Lock()
        self._stored = StoredFiles(n_files=len(checkpoints), meter=meter)

    def load(self, ref: ArrayRef) -> AnyArray:
        """All of an array, with all the checks that its file allows."""
        return self._load(*ref.identity)

    def _load(self, owner: int, number: int) -> AnyArray:
        checkpoint = self._checkpoints[owner]
        with naming(str(checkpoint.path)):
            with self._lock:
                if owner not in self._small:
                    self._small[owner] = _small_arrays(checkpoint)
            found = self._small[owner].get(number)
            return checkpoint.read_arrays([number])[number] if found is None else found

    def leaf(self, value: object) -> object:
        """A leaf of one of the files: what a reference refers to, to be read when it is asked for, and wrapped as it
        was; anything else as it is.
        """
        return self._stored.leaf(value) if isinstance(value, ArrayRef) else value


def _small_arrays(checkpoint: Checkpoint) -> Mapping[int, AnyArray]:
    index = checkpoint.index
    small = [number for number in range(len(index.arrays)) if index.nbytes(number) <= _SMALL_NBYTES]
    if sum(map(index.nbytes, small)) > _MAX_SMALL_NBYTES:
        return {}
    return checkpoint.read_arrays(small)


def wrapped_as(ref: object, array: object) -> object:
    """An array, wrapped as that of a reference is."""
    if not isinstance(ref, ArrayRef) or ref.type is None:
        return array
    return build_record(ref.type, [array, *ref.attributes])


def nbytes_of(leaves: Iterable[object]) -> int:
    """Bytes of the arrays among leaves that are still to be handed on; those that are one array count once."""
    sources = [leaf for leaf in leaves if isinstance(leaf, ArraySource)]
    shared = {source.identity: source.nbytes for source in sources if source.identity is not None}
    return sum(source.nbytes for source in sources if source.identity is None) + sum(shared.values())
