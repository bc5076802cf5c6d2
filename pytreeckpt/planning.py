"""A save as a value: the tree as nodes, arrays and chunks.

`plan_save` decides everything but how chunks are encoded, and with that the stored sizes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple, Protocol, TypeVar

import numpy as np

from pytreeckpt.arrays import AnyArray, ArraySource, copy_items, source_of, stored_order
from pytreeckpt.dtypes import Descriptor, describe, has_padding
from pytreeckpt.flatten import FlatTree
from pytreeckpt.geometry import Shape
from pytreeckpt.index import ArrayEntry, ArrayTable
from pytreeckpt.limits import Limits
from pytreeckpt.nodes import Nodes
from pytreeckpt.pools import Pool
from pytreeckpt.wire import ALIGNMENT

CHUNK_NBYTES = 2 << 20
"""Raw bytes of a chunk: few enough that a worker's buffers stay in cache, enough that a chunk's fixed cost is small."""
INLINE_NBYTES = 256
"""Arrays of at most this many bytes live in the index, as long as all of them take no more than `MAX_INLINE_NBYTES`."""
MAX_INLINE_NBYTES = 64 << 20
POOL_NBYTES = 64 << 10
"""Arrays of at most this many bytes share chunks with others of their dtype, if there are `MIN_POOLED` of them."""
MIN_POOLED = 32
# Items of more than a 64th of this are cut one by one, if their size is no multiple of the alignment.
_MAX_STEP_NBYTES = 64 << 20
# Small chunks are few among the large ones if all together have at least this many bytes on average.
_FEW_SMALL_MEAN_NBYTES = 256 << 10


class ChunkTask(NamedTuple):
    """Items `start` to `stop` of a box of an array, to be stored as one chunk."""

    source: ArraySource
    box: int
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Raw bytes of the chunk."""
        return (self.stop - self.start) * self.source.dtype.itemsize


class HasNbytes(Protocol):
    """Something to be stored of so many raw bytes."""

    @property
    def nbytes(self) -> int:
        """The raw bytes."""
        ...


Part = TypeVar("Part", bound=HasNbytes)


@dataclass(frozen=True, slots=True)
class SavePlan:
    """What will be stored: the node stream, the tables that are known before encoding, and the chunks to encode."""

    nodes: Nodes
    table: ArrayTable
    tasks: list[ChunkTask]
    limits: Limits

    @property
    def raw_nbytes(self) -> int:
        """Bytes of all chunked arrays."""
        return sum(task.nbytes for task in self.tasks)

    @property
    def few_small(self) -> bool:
        """Whether the small chunks are so few among the large ones that nobody waits for them."""
        return self.raw_nbytes >= _FEW_SMALL_MEAN_NBYTES * len(self.tasks)


def plan_save(flat: FlatTree, limits: Limits) -> SavePlan:
    """Lay out the arrays of a flat tree: inline, in pools with others, or cut into chunks of `CHUNK_NBYTES`."""
    descriptors: list[Descriptor] = []
    dtype_ids: dict[Descriptor, int] = {}
    # The dtype of each array, and where it goes.
    of_arrays: list[int] = []
    places = bytearray(len(flat.arrays))
    inline_nbytes = 0
    n_small: dict[int, int] = {}
    # By the object, which lives as long as its array: a large tree has few dtypes and many arrays.
    known: dict[int, int] = {}
    for number, array in enumerate(flat.arrays):
        dtype_id = known.get(id(array.dtype))
        if dtype_id is None:
            descriptor = describe(array.dtype)
            dtype_id = known[id(array.dtype)] = dtype_ids.setdefault(descriptor, len(descriptors))
            if dtype_id == len(descriptors):
                descriptors.append(descriptor)
        of_arrays.append(dtype_id)
        nbytes = array.nbytes
        # N-11: the array of a scalar is not chunked, however long a text it is.
        if (nbytes <= INLINE_NBYTES and inline_nbytes + nbytes <= MAX_INLINE_NBYTES) or number in flat.scalars:
            places[number] = _INLINE
            inline_nbytes += nbytes
        elif nbytes <= POOL_NBYTES and _is_poolable(array):
            places[number] = _SMALL
            n_small[dtype_id] = n_small.get(dtype_id, 0) + 1
    pools: dict[int, Pool] = {}
    entries: list[ArrayEntry] = []
    inline: list[bytes] = []
    tasks: list[ChunkTask] = []
    for array, dtype_id, place in zip(flat.arrays, of_arrays, places, strict=True):
        if place == _INLINE:
            entry, raw = _inline(array, dtype_id)
            inline.append(raw)
        elif place == _SMALL and n_small[dtype_id] >= MIN_POOLED:
            pool = pools.get(dtype_id)
            if pool is None:
                pool = pools[dtype_id] = Pool(array.dtype, dtype_id)
            entry = pool.add(array)
        else:
            entry, of_array = _cut(array if isinstance(array, ArraySource) else source_of(array), dtype_id)
            tasks += of_array
        entries.append(entry)
    pool_chunks: list[int] = []
    for _, pool in sorted(pools.items()):
        source = pool.source
        cuts = pool.cuts(max(1, CHUNK_NBYTES // source.dtype.itemsize))
        pool_chunks.append(len(cuts))
        tasks += [ChunkTask(source, 0, start, stop) for start, stop in cuts]
    return SavePlan(flat.nodes, ArrayTable(descriptors, entries, b"".join(inline), pool_chunks), tasks, limits)


_INLINE: Final = 1
_SMALL: Final = 2


def _is_poolable(array: AnyArray | ArraySource) -> bool:
    if isinstance(array, ArraySource):
        return _layout(array)[1] is None and not has_padding(array.dtype)
    # Most are plain, and it takes no look into their dtypes to see it.
    return (array.dtype.kind in "biufc" and array.itemsize <= 8) or not has_padding(array.dtype)


def _inline(array: AnyArray | ArraySource, dtype_id: int) -> tuple[ArrayEntry, bytes]:
    if not array.nbytes:
        return ArrayEntry(dtype_id, array.shape), b""
    if type(array) is np.ndarray and array.dtype.kind in "biufc" and array.itemsize <= 8 and array.flags.c_contiguous:
        # The most by far: neither padding nor another order.
        return ArrayEntry(dtype_id, array.shape), array.tobytes()
    if isinstance(array, ArraySource):
        axes, _ = _layout(array)
        stored = np.zeros([array.shape[axis] for axis in axes] if axes else array.shape, array.dtype)
        for box, read in zip(array.cells, array.boxes, strict=True):
            copy_items(stored[box.selection], read(0, math.prod(box.shape)).reshape(box.shape))
        return ArrayEntry(dtype_id, array.shape, axes), stored.tobytes()
    if has_padding(array.dtype):
        return _inline(source_of(array), dtype_id)
    stored, axes = stored_order(array)
    return ArrayEntry(dtype_id, array.shape, axes), stored.tobytes()


def _layout(source: ArraySource) -> tuple[Shape | None, tuple[Shape, ...] | None]:
    """The axes and the cuts of a source, or None where they say nothing. Raises `ValueError` if they break a rule."""
    if source.axes is None and source.cuts is None and len(source.boxes) == 1:
        return None, None
    in_order = tuple(range(len(source.shape)))
    axes = in_order if source.axes is None else tuple(source.axes)
    cuts = ((),) * len(axes) if source.cuts is None else tuple(tuple(axis) for axis in source.cuts)
    fits = sorted(axes) == list(in_order) and len(cuts) == len(axes)
    for axis, places in zip(axes, cuts, strict=False):
        fits = fits and all(low < high for low, high in pairwise((0, *places, source.shape[axis])))
    if not fits or len(source.boxes) != math.prod(len(places) + 1 for places in cuts):
        raise ValueError(
            f"an ArraySource of shape {source.shape} cannot have axes {axes}, cuts {cuts} and {len(source.boxes)} boxes"
        )
    return None if axes == in_order else axes, cuts if any(cuts) else None


def _cut(source: ArraySource, dtype_id: int) -> tuple[ArrayEntry, list[ChunkTask]]:
    axes, cuts = _layout(source)
    per_chunk = max(1, CHUNK_NBYTES // source.dtype.itemsize)
    # Chunks end where the next may begin, so that an array that is stored raw is in one piece and can be mapped.
    step = ALIGNMENT // math.gcd(ALIGNMENT, source.dtype.itemsize)
    if step * source.dtype.itemsize <= _MAX_STEP_NBYTES:
        per_chunk = max(per_chunk - per_chunk % step, step)
    tasks: list[ChunkTask] = []
    counts: list[int] = []
    for number, box in enumerate(source.cells):
        n_items = math.prod(box.shape)
        counts.append(-(-n_items // per_chunk))
        tasks += [ChunkTask(source, number, at, min(at + per_chunk, n_items)) for at in range(0, n_items, per_chunk)]
    return ArrayEntry(dtype_id, source.shape, axes, cuts, tuple(counts)), tasks


def batched(tasks: Sequence[Part]) -> Iterator[Sequence[Part]]:
    """The tasks in batches of up to one chunk of full size: handing over a small one costs more than encoding it."""
    begin = 0
    nbytes = 0
    for at, task in enumerate(tasks):
        task_nbytes = task.nbytes
        if at > begin and nbytes + task_nbytes > CHUNK_NBYTES:
            yield tasks[begin:at]
            begin, nbytes = at, 0
        nbytes += task_nbytes
    if tasks:
        yield tasks[begin:]
