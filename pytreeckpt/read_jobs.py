"""What there is to read for arrays, as jobs: which chunks, and where what is in them goes. Nothing is read here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np

from pytreeckpt.arrays import AnyArray, copy_items
from pytreeckpt.geometry import Box
from pytreeckpt.index import Index
from pytreeckpt.reading import (
    ChunkRead,
    ChunkRow,
    array_within,
    as_logical,
    chunk_reads,
    chunk_row,
    chunk_rows,
    flat_bytes,
    place_items,
    whole_region,
)


class Job(NamedTuple):
    """A chunk of an array to be read into `out`, or, without it, into memory of the thread's own. `put` is then called
    with the raw bytes, in that thread.
    """

    array: int
    number: int
    row: ChunkRow
    itemsize: int
    out: memoryview | None = None
    put: Callable[[memoryview], None] | None = None


class Rows:
    """Rows of the chunk table, made many at a time."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self.first = 0
        self.rows: list[ChunkRow] = []

    def take(self, first: int, count: int) -> list[ChunkRow]:
        """`count` rows from `first` on."""
        if first < self.first or first + count > self.first + len(self.rows):
            self.first = first
            self.rows = chunk_rows(self.index, first, min(first + max(count, 1024), len(self.index.chunks)))
        return self.rows[first - self.first : first - self.first + count]


def jobs_of(index: Index, wanted: Sequence[int]) -> Iterator[Job]:
    """What there is to read for these arrays if they go nowhere, in their order."""
    table = Rows(index)
    pools: set[int] = set()
    for array in wanted:
        entry = index.arrays[array]
        if entry.pooled:
            # A chunk of many is read once.
            if index.first_chunk[array] in pools:
                continue
            pools.add(index.first_chunk[array])
        first = index.first_chunk[array]
        itemsize = index.dtypes[entry.dtype].itemsize
        for number, row in enumerate(table.take(first, sum(entry.chunk_counts)), first):
            yield Job(array, number, row, itemsize)


def places_of(index: Index, wanted: Sequence[int]) -> list[Job]:
    """The same in the order of files and offsets. A chunk may stand in the table many times (C-6), and is read once,
    for the first leaf that has it.
    """
    by_place: dict[tuple[int, int], Job] = {}
    for job in jobs_of(index, wanted):
        by_place.setdefault((job.row.file, job.row.offset), job)
    return [by_place[place] for place in sorted(by_place)]


def whole_jobs(index: Index, array: int, stored: AnyArray, table: Rows) -> Iterable[Job]:
    """What there is to read for a whole array, which is to go to `stored`, in stored order."""
    entry = index.arrays[array]
    itemsize = stored.itemsize
    if entry.cuts is not None or not stored.flags.c_contiguous:
        return region_jobs(index, array, chunk_reads(index, array), whole_region(index, array), stored)
    # The items of each chunk are one run of its memory: no second copy.
    memory = flat_bytes(stored)
    first = index.first_chunk[array]
    rows = table.take(first, entry.chunk_counts[0])
    if len(rows) == 1:
        return [Job(array, first, rows[0], itemsize, memory)]
    ends = accumulate((row.raw for row in rows), initial=0)
    return [
        Job(array, number, row, itemsize, memory[start:stop])
        for number, row, (start, stop) in zip(range(first, first + len(rows)), rows, pairwise(ends), strict=True)
    ]


def pool_jobs(
    index: Index,
    pooled: Mapping[int, Sequence[int]],
    into: Mapping[int, AnyArray],
    arrays: dict[int, AnyArray],
    table: Rows,
) -> Iterator[Job]:
    """What there is to read for pooled arrays, given by the row of their chunk; they go to `arrays`."""
    for number in sorted(pooled):
        members = pooled[number]
        itemsize = index.dtypes[index.arrays[members[0]].dtype].itemsize
        put = partial(_put_pooled, index, members, into, arrays)
        yield Job(members[0], number, table.take(number, 1)[0], itemsize, put=put)


def region_jobs(index: Index, array: int, reads: Sequence[ChunkRead], region: Box, out: AnyArray) -> Iterator[Job]:
    """What there is to read for a region of an array, which is to go to `out`, in stored order."""
    for read in reads:
        row = chunk_row(index, read.row)
        if out.flags.c_contiguous and read.box == region:
            memory = flat_bytes(out)[read.start * out.itemsize : read.stop * out.itemsize]
            yield Job(array, read.row, row, out.itemsize, memory)
        else:
            yield Job(array, read.row, row, out.itemsize, put=_placer(read, region, out))


def _put_pooled(
    index: Index,
    members: Sequence[int],
    into: Mapping[int, AnyArray],
    arrays: dict[int, AnyArray],
    raw: memoryview,
) -> None:
    """Take pooled arrays from the raw bytes of their chunk."""
    dtype = index.dtypes[index.arrays[members[0]].dtype]
    is_plain = dtype.kind in "biufc"
    for array in members:
        entry = index.arrays[array]
        given = into.get(array)
        if given is not None:
            arrays[array] = given
            copy_items(given, as_logical(array_within(index, array, raw), entry))
        elif is_plain and entry.axes is None:
            # The most by far: numpy copies these bit by bit.
            view: AnyArray = np.ndarray(entry.shape, dtype, raw, index.starts[array])
            arrays[array] = view.copy()
        else:
            arrays[array] = as_logical(array_within(index, array, raw), entry)


def _placer(read: ChunkRead, region: Box, out: AnyArray) -> Callable[[memoryview], None]:
    return lambda raw: place_items(read, np.frombuffer(raw, np.uint8).view(out.dtype), region, out)
