"""Read arrays of an open checkpoint: chunks in threads, each put where it belongs, errors with the leaf that they
hit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, Final, NamedTuple

import numpy as np

from pytreeckpt.arrays import AnyArray, copy_items
from pytreeckpt.codecs import RAW
from pytreeckpt.collection import paused_collection
from pytreeckpt.errors import CorruptionError, NotMappableError
from pytreeckpt.geometry import Box
from pytreeckpt.index import Index
from pytreeckpt.leaf_paths import Paths
from pytreeckpt.pipeline import Progress, ReportProgress, ordered_map, threads_for
from pytreeckpt.reading import (
    BytesSource,
    ChunkRead,
    ChunkRow,
    RangedSource,
    allocate,
    array_within,
    as_logical,
    check_chunk,
    check_total,
    chunk_reads,
    chunk_row,
    chunk_rows,
    decode_chunk,
    empty_stored,
    flat_bytes,
    inline_array,
    place_items,
    read_chunk,
    whole_region,
)
from pytreeckpt.scratch import scratch
from pytreeckpt.storage import LocalFile

# Chunks that follow each other in the file are read at once, up to this many bytes, stored and raw.
_RUN_NBYTES: Final = 1 << 20
_ADVICE: Final = ". `pytreeckpt verify` lists all damaged leaves; restore(select=…) reads the others"


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


@dataclass(frozen=True, slots=True)
class ArrayReader:
    """What reading needs: the bytes, the index, and the paths for errors."""

    source: RangedSource
    index: Index
    paths: Paths

    def arrays(
        self,
        wanted: Sequence[int],
        *,
        into: Mapping[int, AnyArray] | None = None,
        verify: bool = True,
        progress: ReportProgress | None = None,
        threads: int | None = None,
    ) -> dict[int, AnyArray]:
        """The arrays with these numbers: those of `into`, filled (of the same shape and dtype, in any memory order),
        and fresh ones for the others, in their saved memory order.
        """
        check_total(sum(map(self.index.nbytes, wanted)))
        with paused_collection():
            arrays: dict[int, AnyArray] = {}
            jobs: list[Job] = []
            pooled: dict[int, list[int]] = {}
            rows = _Rows(self.index)
            for array in wanted:
                entry = self.index.arrays[array]
                given = into.get(array) if into else None
                if entry.pooled:
                    pooled.setdefault(self.index.first_chunk[array], []).append(array)
                    continue
                if entry.chunk_counts:
                    logical = as_logical(empty_stored(self.index, array), entry) if given is None else given
                    stored = logical if entry.axes is None else logical.transpose(entry.axes)
                    jobs += self._whole_jobs(array, stored, rows)
                elif given is None:
                    logical = as_logical(inline_array(self.index, array), entry)
                else:
                    logical = given
                    copy_items(logical, as_logical(inline_array(self.index, array), entry))
                arrays[array] = logical
            jobs += self._pool_jobs(pooled, into or {}, arrays, rows)
        total = sum(job.row.raw for job in jobs)
        done = 0
        for run, errors in self.read(jobs, verify=verify, threads=threads):
            for error in errors:
                raise error
            done += sum(job.row.raw for job in run)
            if progress is not None and done < total:
                progress(Progress(done, total))
        if progress is not None:
            progress(Progress(total, total))
        return arrays

    def _whole_jobs(self, array: int, stored: AnyArray, table: _Rows) -> Iterable[Job]:
        """What there is to read for a whole array, which is to go to `stored`, in stored order."""
        entry = self.index.arrays[array]
        itemsize = stored.itemsize
        if entry.cuts is not None or not stored.flags.c_contiguous:
            return self._region_jobs(array, chunk_reads(self.index, array), whole_region(self.index, array), stored)
        # The items of each chunk are one run of its memory: no second copy.
        memory = flat_bytes(stored)
        first = self.index.first_chunk[array]
        rows = table.take(first, entry.chunk_counts[0])
        if len(rows) == 1:
            return [Job(array, first, rows[0], itemsize, memory)]
        ends = accumulate((row.raw for row in rows), initial=0)
        return [
            Job(array, number, row, itemsize, memory[start:stop])
            for number, row, (start, stop) in zip(range(first, first + len(rows)), rows, pairwise(ends), strict=True)
        ]

    def _pool_jobs(
        self,
        pooled: Mapping[int, Sequence[int]],
        into: Mapping[int, AnyArray],
        arrays: dict[int, AnyArray],
        table: _Rows,
    ) -> Iterator[Job]:
        """What there is to read for pooled arrays, given by the row of their chunk; they go to `arrays`."""
        for number in sorted(pooled):
            members = pooled[number]
            itemsize = self.index.dtypes[self.index.arrays[members[0]].dtype].itemsize
            put = partial(_put_pooled, self.index, members, into, arrays)
            yield Job(members[0], number, table.take(number, 1)[0], itemsize, put=put)

    def _region_jobs(self, array: int, reads: Sequence[ChunkRead], region: Box, out: AnyArray) -> Iterator[Job]:
        for read in reads:
            row = chunk_row(self.index, read.row)
            if out.flags.c_contiguous and read.box == region:
                memory = flat_bytes(out)[read.start * out.itemsize : read.stop * out.itemsize]
                yield Job(array, read.row, row, out.itemsize, memory)
            else:
                yield Job(array, read.row, row, out.itemsize, put=_placer(read, region, out))

    def jobs(self, wanted: Sequence[int]) -> Iterator[Job]:
        """What there is to read for these arrays if they go nowhere, in their order."""
        table = _Rows(self.index)
        pools: set[int] = set()
        for array in wanted:
            entry = self.index.arrays[array]
            if entry.pooled:
                # A chunk of many is read once.
                if self.index.first_chunk[array] in pools:
                    continue
                pools.add(self.index.first_chunk[array])
            first = self.index.first_chunk[array]
            itemsize = self.index.dtypes[entry.dtype].itemsize
            for number, row in enumerate(table.take(first, sum(entry.chunk_counts)), first):
                yield Job(array, number, row, itemsize)

    def read(
        self, jobs: Sequence[Job], *, verify: bool = True, threads: int | None = None, advice: str = _ADVICE
    ) -> Iterator[tuple[Sequence[Job], Sequence[CorruptionError]]]:
        """Do the jobs, in threads; after each run of them, in their order, what was wrong with it."""
        runs = list(_runs(jobs))
        n_threads = threads_for(len(jobs), sum(job.row.raw for job in jobs)) if threads is None else threads
        errors = ordered_map(lambda run: self._read_run(run, verify=verify, advice=advice), runs, threads=n_threads)
        return zip(runs, errors, strict=True)

    def _read_run(self, run: Sequence[Job], *, verify: bool, advice: str) -> list[CorruptionError]:
        begin = run[0].row.offset
        stored: memoryview | None = None
        if isinstance(self.source, BytesSource):
            stored = self.source.view(begin, run[-1].row.end)
        elif len(run) > 1:
            stored = scratch("run", run[-1].row.end - begin).data
            try:
                self.source.read_into(begin, [stored])
            except CorruptionError as error:
                return [self._located(error, run[0], advice)]
        errors: list[CorruptionError] = []
        for job in run:
            row = job.row
            part = None if stored is None else stored[row.offset - begin : row.end - begin]
            try:
                if part is not None and row.codec == RAW.number and job.out is None and job.put is None:
                    # To be checked only, which it can be where it is.
                    check_chunk(row, part[: row.stored], part[row.stored :], verify=verify)
                    continue
                out = scratch("raw", row.raw).data if job.out is None else job.out
                if part is None:
                    read_chunk(self.source, row, job.itemsize, out, verify=verify)
                else:
                    decode_chunk(row, part, job.itemsize, out, verify=verify)
                if job.put is not None:
                    job.put(out)
            except CorruptionError as error:
                errors.append(self._located(error, job, advice))
        return errors

    def _located(self, error: CorruptionError, job: Job, advice: str) -> CorruptionError:
        """The error with the leaf and chunk that it hit, and what to do."""
        leaf = self.paths.first(job.array)
        chunk = job.number - self.index.first_chunk[job.array]
        offset, stored_nbytes = job.row.offset, job.row.stored
        others = self._others_of(job)
        return CorruptionError(
            f"leaf {leaf or 'at the root'}{others}, chunk {chunk} (offset {offset}, {stored_nbytes} bytes): "
            f"{error}{advice}",
            rule=error.rule,
            leaf=leaf,
            chunk=chunk,
            offset=offset,
        )

    def _others_of(self, job: Job) -> str:
        """With how many other arrays the one of a job shares its chunk, for an error."""
        if not self.index.arrays[job.array].pooled:
            return ""
        pairs = zip(self.index.arrays, self.index.first_chunk, strict=True)
        n_others = sum(entry.pooled and first == job.number for entry, first in pairs) - 1
        return f" and {n_others:,} other {'arrays' if n_others > 1 else 'array'} in the same chunk" if n_others else ""

    def region(self, array: int, region: Box) -> AnyArray:
        """A region of an array in stored order; reads only the chunks that it touches."""
        entry = self.index.arrays[array]
        check_total(math.prod(region.shape) * self.index.dtypes[entry.dtype].itemsize)
        out = allocate(region.shape, self.index, entry)
        if not entry.chunk_counts:
            # Not `copy`, which gives strings of no characters one.
            copy_items(out, inline_array(self.index, array)[region.selection])
        elif entry.pooled:
            whole = self.arrays([array])[array]
            copy_items(out, (whole if entry.axes is None else whole.transpose(entry.axes))[region.selection])
        elif out.size:
            reads = chunk_reads(self.index, array, region)
            for _, errors in self.read(list(self._region_jobs(array, reads, region, out))):
                for error in errors:
                    raise error
        return out

    def mapped(self, wanted: Sequence[int], *, verify: bool) -> dict[int, AnyArray]:
        """The arrays as views of the mapped file. Raises `NotMappableError` for one that is not stored raw and in
        one piece, and for what is in no file.
        """
        if not isinstance(self.source, LocalFile):
            raise NotMappableError("mmap=True needs a checkpoint in a file")
        memory = memoryview(self.source.map())
        arrays: dict[int, AnyArray] = {}
        for array in wanted:
            entry = self.index.arrays[array]
            if not entry.chunk_counts:
                arrays[array] = as_logical(inline_array(self.index, array), entry)
                continue
            rows = slice(self.index.first_chunk[array], self.index.first_chunk[array] + sum(entry.chunk_counts))
            chunks = self.index.chunks
            ends = chunks.offset[rows] + chunks.stored[rows]
            in_one_piece = entry.cuts is None and bool((ends[:-1] == chunks.offset[rows][1:]).all())
            if not in_one_piece or bool((chunks.codec[rows] != RAW.number).any()):
                raise NotMappableError(
                    f"leaf {self.paths.first(array)}: the array is compressed or in several pieces and cannot "
                    "be mapped; save with "
                    'compression="none", or restore without mmap'
                )
            start = int(chunks.offset[rows.start]) + (self.index.starts[array] if entry.pooled else 0)
            flat = np.frombuffer(memory[start : start + self.index.nbytes(array)], np.uint8)
            arrays[array] = as_logical(flat.view(self.index.dtypes[entry.dtype]).reshape(entry.stored_shape), entry)
        if verify:
            in_memory = replace(self, source=BytesSource(memory))
            for problem in in_memory.damage(wanted, advice=_ADVICE):
                raise problem
        return arrays

    def scan(
        self, wanted: Sequence[int], function: Callable[[AnyArray], Any], *, progress: ReportProgress | None = None
    ) -> Iterator[tuple[int, Any]]:
        """What `function` gives for the items of each chunk of these arrays, with the number of the array, in order;
        it is called in threads. Raises `CorruptionError`.
        """
        members: dict[int, list[int]] = {}
        for array in wanted:
            entry = self.index.arrays[array]
            if entry.inline:
                yield array, function(inline_array(self.index, array))
            elif entry.pooled:
                members.setdefault(self.index.first_chunk[array], []).append(array)
        found: dict[int, list[tuple[int, Any]]] = {}

        def put(job: Job, raw: memoryview) -> None:
            if job.number in members:
                values = [(array, array_within(self.index, array, raw)) for array in members[job.number]]
            else:
                dtype = self.index.dtypes[self.index.arrays[job.array].dtype]
                values = [(job.array, np.frombuffer(raw, np.uint8).view(dtype))]
            found[job.number] = [(array, function(items)) for array, items in values]

        jobs = [job._replace(put=partial(put, job)) for job in self.jobs(wanted)]
        total = sum(job.row.raw for job in jobs)
        done = 0
        for run, errors in self.read(jobs):
            for error in errors:
                raise error
            for job in run:
                yield from found.pop(job.number)
                done += job.row.raw
            if progress is not None:
                progress(Progress(done, total))

    def damage(
        self, wanted: Sequence[int], *, progress: ReportProgress | None = None, advice: str = ""
    ) -> Iterator[CorruptionError]:
        """Read and check every chunk of these arrays; the errors that reading them would raise."""
        # A chunk may stand in the table many times (C-6), and is read once, for the first leaf that has it.
        by_offset: dict[int, Job] = {}
        for job in self.jobs(wanted):
            by_offset.setdefault(job.row.offset, job)
        jobs = [by_offset[offset] for offset in sorted(by_offset)]
        total = sum(job.row.raw for job in jobs)
        done = 0
        for run, errors in self.read(jobs, advice=advice):
            done += sum(job.row.raw for job in run)
            if progress is not None:
                progress(Progress(done, total))
            yield from errors


class _Rows:
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


def _runs(jobs: Sequence[Job]) -> Iterator[Sequence[Job]]:
    """The jobs, those together whose chunks follow each other in the file."""
    begin = 0
    raw_nbytes = 0
    for at, job in enumerate(jobs):
        row = job.row
        apart = row.offset != jobs[at - 1].row.end or row.end - jobs[begin].row.offset > _RUN_NBYTES
        if at > begin and (apart or raw_nbytes + row.raw > _RUN_NBYTES):
            yield jobs[begin:at]
            begin, raw_nbytes = at, 0
        raw_nbytes += row.raw
    if jobs:
        yield jobs[begin:]
