"""Snapshots: a tree on its way into a checkpoint, apart from the memory that the program goes on to change.

The law: a snapshot is stored as exactly the bytes that its tree would have been, had it been stored at once. So it
keeps the order of the axes, the boxes, and what kind of thing holds an array, on which the layout of a file depends.

Every numpy array is copied, a read-only one too: who holds its base, or a view from before, may still write to it, and
numpy knows no array that cannot change. Of frameworks' arrays the `ArraySource` says what is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np

from pytreeckpt.arrays import AnyArray, ArraySource, ReadRun, run_reader, stored_order
from pytreeckpt.dtypes import AnyDType
from pytreeckpt.flatten import FlatTree
from pytreeckpt.wire import align

Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]
Allocate = Callable[[int], Bytes]
"""`allocate(nbytes)`: memory that begins at a multiple of 64 bytes, with anything in it."""

# Arrays up to here have memory of their own: a place in a buffer would cost more than the copy.
_SMALL_NBYTES: Final = 32 << 10
# Enough that handing it to a thread costs nothing, few enough that threads end together.
_BATCH_NBYTES: Final = 8 << 20


class Needs(NamedTuple):
    """Host memory that a snapshot takes, in bytes: that of its buffers, and of all of it, buffers included."""

    buffer_nbytes: int
    total_nbytes: int


class Copy(NamedTuple):
    """Items `start` to `stop` of a run, to be copied to `target`, of as many bytes."""

    read: ReadRun
    start: int
    stop: int
    target: Bytes


CopyAll = Callable[[Callable[[Sequence[Copy]], None], Iterable[Sequence[Copy]]], None]
"""How batches are copied: one after the other, or in threads."""


def _in_turn(copy: Callable[[Sequence[Copy]], None], batches: Iterable[Sequence[Copy]]) -> None:
    for batch in batches:
        copy(batch)


def needs_of(flat: FlatTree) -> Needs:
    """What a snapshot of this tree takes."""
    buffers = others = 0
    for array in flat.arrays:
        boxes = 1
        if isinstance(array, ArraySource):
            if array.immutable:
                continue
            # Those of devices get memory of their own.
            boxes = 0 if array.snapshot is not None else len(array.boxes)
        nbytes = array.nbytes
        if nbytes <= _SMALL_NBYTES or not boxes:
            others += nbytes
        else:
            # Each box begins anew.
            buffers += align(nbytes) + align(1) * (boxes - 1)
    return Needs(buffers, buffers + others)


def snapshot(flat: FlatTree, allocate: Allocate, copy_all: CopyAll = _in_turn) -> FlatTree:
    """The tree with every array that may change replaced by a copy, complete when this returns.

    Copies from devices are begun first, and awaited last. The buffers that it allocates come to at most
    `needs_of(flat).buffer_nbytes`.
    """
    begun = {
        number: array.snapshot()
        for number, array in enumerate(flat.arrays)
        if isinstance(array, ArraySource) and array.snapshot is not None and not array.immutable
    }
    copies: list[Copy] = []
    arrays: list[AnyArray | ArraySource] = []
    for number, array in enumerate(flat.arrays):
        if not isinstance(array, ArraySource):
            arrays.append(_array(array, allocate, copies))
        elif number in begun:
            arrays.append(begun[number].source)
        elif array.immutable:
            arrays.append(array)
        else:
            arrays.append(_source(array, allocate, copies))
    copy_all(_copy, _batched(copies))
    for pending in begun.values():
        pending.wait()
    return FlatTree(flat.nodes, arrays, flat.scalars)


def _array(array: AnyArray, allocate: Allocate, copies: list[Copy]) -> AnyArray:
    nbytes = array.nbytes
    if not nbytes:
        return array
    if array.flags.c_contiguous:
        if nbytes <= _SMALL_NBYTES:
            return np.ndarray(array.shape, array.dtype, array.tobytes())
        stored, axes = array, None
    else:
        stored, axes = stored_order(array)
    memory = _place(run_reader(stored), array.size, array.dtype, allocate, copies)
    # The axes are told from the strides: a copy has the same ones, also where an extent is 1.
    return np.ndarray(array.shape, array.dtype, memory, strides=None if axes is None else array.strides)


def _source(source: ArraySource, allocate: Allocate, copies: list[Copy]) -> ArraySource:
    dtype = source.dtype
    boxes = []
    for read, box in zip(source.boxes, source.cells, strict=True):
        n_items = math.prod(box.shape)
        memory = _place(read, n_items, dtype, allocate, copies)
        boxes.append(_reader(np.ndarray((n_items,), dtype, memory)))
    return ArraySource(dtype, source.shape, boxes, source.axes, source.cuts, source.identity, immutable=True)


def _place(
    read: ReadRun, n_items: int, dtype: AnyDType, allocate: Allocate, copies: list[Copy]
) -> bytes | bytearray | Bytes:
    """Memory for a run: filled already if it is small, else by the copies that are added."""
    nbytes = n_items * dtype.itemsize
    if nbytes <= _SMALL_NBYTES:
        # An array has to have memory, if only to have none of it.
        return read(0, n_items).tobytes() if nbytes else bytearray(1)
    target = allocate(nbytes)
    step = max(1, _BATCH_NBYTES // dtype.itemsize)
    for start in range(0, n_items, step):
        stop = min(start + step, n_items)
        copies.append(Copy(read, start, stop, target[start * dtype.itemsize : stop * dtype.itemsize]))
    return target


def _reader(items: AnyArray) -> ReadRun:
    return lambda start, stop: items[start:stop]


def _batched(copies: Sequence[Copy]) -> Iterator[Sequence[Copy]]:
    begin = nbytes = 0
    for at, copy in enumerate(copies):
        if at > begin and nbytes + len(copy.target) > _BATCH_NBYTES:
            yield copies[begin:at]
            begin, nbytes = at, 0
        nbytes += len(copy.target)
    if copies:
        yield copies[begin:]


def _copy(batch: Sequence[Copy]) -> None:
    for read, start, stop, target in batch:
        # As bytes: memory is copied at full speed, without the lock of the interpreter.
        np.copyto(target, read(start, stop).view(np.uint8))
