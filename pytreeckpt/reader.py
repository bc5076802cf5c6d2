"""Read arrays of an open checkpoint: chunks in threads, each put where it belongs, errors with the leaf that they
hit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np

from pytreeckpt.arrays import AnyArray, copy_items
from pytreeckpt.codecs import RAW
from pytreeckpt.collection import paused_collection
from pytreeckpt.errors import CorruptionError, NotMappableError
from pytreeckpt.geometry import Box
from pytreeckpt.identities import identity
from pytreeckpt.index import DATA_FOLDER, Index
from pytreeckpt.leaf_paths import Paths
from pytreeckpt.pipeline import Progress, ReportProgress, ordered_map, threads_for
from pytreeckpt.read_jobs import Job, Rows, jobs_of, places_of, pool_jobs, region_jobs, whole_jobs
from pytreeckpt.reading import (
    BytesSource,
    ChunkRow,
    RangedSource,
    allocate,
    array_within,
    as_logical,
    check_chunk,
    check_total,
    chunk_reads,
    decode_chunk,
    empty_stored,
    inline_array,
    read_chunk,
)
from pytreeckpt.scratch import scratch
from pytreeckpt.storage import LocalFile

# Chunks that follow each other in the file are read at once, up to this many bytes, stored and raw.
_RUN_NBYTES: Final = 1 << 20
_ADVICE: Final = ". `pytreeckpt verify` lists all damaged leaves; restore(select=…) reads the others"


@dataclass(frozen=True, slots=True)
class ArrayReader:
    """What reading needs: the bytes (of the file, and of each data file), the index, and the paths for errors."""

    sources: Sequence[RangedSource]
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
            rows = Rows(self.index)
            for array in wanted:
                entry = self.index.arrays[array]
                given = into.get(array) if into else None
                if entry.pooled:
                    pooled.setdefault(self.index.first_chunk[array], []).append(array)
                    continue
                if entry.chunk_counts:
                    logical = as_logical(empty_stored(self.index, array), entry) if given is None else given
                    stored = logical if entry.axes is None else logical.transpose(entry.axes)
                    jobs += whole_jobs(self.index, array, stored, rows)
                elif given is None:
                    logical = as_logical(inline_array(self.index, array), entry)
                else:
                    logical = given
                    copy_items(logical, as_logical(inline_array(self.index, array), entry))
                arrays[array] = logical
            jobs += pool_jobs(self.index, pooled, into or {}, arrays, rows)
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

    def read(
        self,
        jobs: Sequence[Job],
        *,
        verify: bool = True,
        identities: bool = False,
        threads: int | None = None,
        advice: str = _ADVICE,
    ) -> Iterator[tuple[Sequence[Job], Sequence[CorruptionError]]]:
        """Do the jobs, in threads; after each run of them, in their order, what was wrong with it. With `identities`,
        those of the chunks are checked too.
        """
        runs = list(_runs(jobs))
        n_threads = threads_for(len(jobs), sum(job.row.raw for job in jobs)) if threads is None else threads
        read_run = partial(self._read_run, verify=verify, identities=identities, advice=advice)
        return zip(runs, ordered_map(read_run, runs, threads=n_threads), strict=True)

    def _read_run(self, run: Sequence[Job], *, verify: bool, identities: bool, advice: str) -> list[CorruptionError]:
        source = self.sources[run[0].row.file]
        begin = run[0].row.offset
        stored: memoryview | None = None
        if isinstance(source, BytesSource):
            stored = source.view(begin, run[-1].row.end)
        elif len(run) > 1:
            stored = scratch("run", run[-1].row.end - begin).data
            try:
                source.read_into(begin, [stored])
            except CorruptionError as error:
                return [self.located(error, run[0], advice)]
        errors: list[CorruptionError] = []
        for job in run:
            row = job.row
            part = None if stored is None else stored[row.offset - begin : row.end - begin]
            try:
                if part is not None and row.codec == RAW.number and job.out is None and job.put is None:
                    # To be checked only, which it can be where it is.
                    check_chunk(row, part[: row.stored], part[row.stored :], verify=verify)
                    if identities:
                        check_identity(row, part[: row.stored])
                    continue
                out = scratch("raw", row.raw).data if job.out is None else job.out
                if part is None:
                    read_chunk(source, row, job.itemsize, out, verify=verify)
                else:
                    decode_chunk(row, part, job.itemsize, out, verify=verify)
                if identities:
                    check_identity(row, out)
                if job.put is not None:
                    job.put(out)
            except CorruptionError as error:
                errors.append(self.located(error, job, advice))
        return errors

    def located(self, error: CorruptionError, job: Job, advice: str = "") -> CorruptionError:
        """The error with the leaf and chunk that it hit, and what to do."""
        leaf = self.paths.first(job.array)
        chunk = job.number - self.index.first_chunk[job.array]
        offset, stored_nbytes = job.row.offset, job.row.stored
        others = self._others_of(job)
        file = self.index.files[job.row.file - 1].name if job.row.file else None
        of_file = f" of {DATA_FOLDER}/{file}" if file else ""
        return CorruptionError(
            f"leaf {leaf or 'at the root'}{others}, chunk {chunk} (offset {offset}{of_file}, {stored_nbytes} bytes): "
            f"{error}{advice}",
            rule=error.rule,
            leaf=leaf,
            chunk=chunk,
            offset=offset,
            file=file,
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
            for _, errors in self.read(list(region_jobs(self.index, array, reads, region, out))):
                for error in errors:
                    raise error
        return out

    def mapped(self, wanted: Sequence[int], *, verify: bool) -> dict[int, AnyArray]:
        """The arrays as views of the mapped file, or data files. Raises `NotMappableError` for one that is not stored
        raw and in one piece, and for what is in no file.
        """
        maps = _Maps(self.sources)
        arrays: dict[int, AnyArray] = {}
        for array in wanted:
            entry = self.index.arrays[array]
            if not entry.chunk_counts:
                arrays[array] = as_logical(inline_array(self.index, array), entry)
                continue
            rows = slice(self.index.first_chunk[array], self.index.first_chunk[array] + sum(entry.chunk_counts))
            chunks = self.index.chunks
            file = int(chunks.file[rows.start])
            ends = chunks.offset[rows] + chunks.stored[rows]
            follow = bool((ends[:-1] == chunks.offset[rows][1:]).all() and (chunks.file[rows] == file).all())
            in_one_piece = entry.cuts is None and follow
            if not in_one_piece or bool((chunks.codec[rows] != RAW.number).any()):
                raise NotMappableError(
                    f"leaf {self.paths.first(array)}: the array is compressed or in several pieces and cannot "
                    "be mapped; save with "
                    'compression="none", or restore without mmap'
                )
            start = int(chunks.offset[rows.start]) + (self.index.starts[array] if entry.pooled else 0)
            flat = np.frombuffer(maps.of(file)[start : start + self.index.nbytes(array)], np.uint8)
            arrays[array] = as_logical(flat.view(self.index.dtypes[entry.dtype]).reshape(entry.stored_shape), entry)
        if verify:
            for problem in replace(self, sources=maps.sources()).damage(wanted, advice=_ADVICE):
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

        jobs = [job._replace(put=partial(put, job)) for job in jobs_of(self.index, wanted)]
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
        self,
        wanted: Sequence[int],
        *,
        progress: ReportProgress | None = None,
        advice: str = "",
    ) -> Iterator[CorruptionError]:
        """Read and check every chunk of these arrays; the errors that reading them would raise."""
        jobs = places_of(self.index, wanted)
        total = sum(job.row.raw for job in jobs)
        done = 0
        for run, errors in self.read(jobs, advice=advice):
            done += sum(job.row.raw for job in run)
            if progress is not None:
                progress(Progress(done, total))
            yield from errors


def check_identity(row: ChunkRow, raw: memoryview) -> None:
    """Check the identity of a chunk, if it has one (C-14)."""
    if row.identity and identity(raw) != row.identity:
        raise CorruptionError("the BLAKE3 of the chunk is not its identity", rule="C-14")


class _Maps:
    """Files as memory, each mapped when it is first needed."""

    def __init__(self, sources: Sequence[RangedSource]) -> None:
        self.files = [source for source in sources if isinstance(source, LocalFile)]
        if len(self.files) != len(sources):
            raise NotMappableError("mmap=True needs a checkpoint in a file")
        self.mapped: dict[int, memoryview] = {}

    def of(self, number: int) -> memoryview:
        """The memory of a file."""
        if number not in self.mapped:
            self.mapped[number] = memoryview(self.files[number].map())
        return self.mapped[number]

    def sources(self) -> list[RangedSource]:
        """The files, those that are mapped as memory."""
        return [BytesSource(self.mapped[at]) if at in self.mapped else file for at, file in enumerate(self.files)]


def _runs(jobs: Sequence[Job]) -> Iterator[Sequence[Job]]:
    """The jobs, those together whose chunks follow each other in the file."""
    begin = 0
    raw_nbytes = 0
    for at, job in enumerate(jobs):
        row = job.row
        before = jobs[at - 1].row
        follows = row.file == before.file and row.offset == before.end
        apart = not follows or row.end - jobs[begin].row.offset > _RUN_NBYTES
        if at > begin and (apart or raw_nbytes + row.raw > _RUN_NBYTES):
            yield jobs[begin:at]
            begin, raw_nbytes = at, 0
        raw_nbytes += row.raw
    if jobs:
        yield jobs[begin:]
