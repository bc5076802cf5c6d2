"""Read arrays of an open checkpoint: chunks in threads, each put where it belongs, errors with the leaf that they
hit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from pytreeckpt.arrays import AnyArray, copy_items
from pytreeckpt.codecs import RAW
from pytreeckpt.errors import CorruptionError, LimitError, NotMappableError
from pytreeckpt.geometry import Box
from pytreeckpt.index import Index
from pytreeckpt.limits import current_limits
from pytreeckpt.nodes import ARRAY, SCALAR, walk
from pytreeckpt.paths import Path
from pytreeckpt.pipeline import Progress, ReportProgress, default_threads, ordered_map
from pytreeckpt.reading import (
    ChunkRead,
    RangedSource,
    allocate,
    as_logical,
    chunk_reads,
    empty_stored,
    inline_array,
    read_chunk,
    read_into_region,
    whole_region,
)


class Paths:
    """The paths of the leaves that hold each array, worked out when first needed."""

    def __init__(self, index: Index) -> None:
        self.index = index

    @cached_property
    def by_array(self) -> Mapping[int, list[str]]:
        """The texts of the paths of each array."""
        found: dict[int, list[str]] = {}
        for visit in walk(self.index.nodes):
            if visit.kind in {ARRAY, SCALAR}:
                found.setdefault(self.index.nodes.arrays[visit.entry], []).append(str(Path(visit.path)))
        return found

    def first(self, array: int) -> str:
        """The path of the first leaf that holds an array."""
        # A file may hide an array where paths do not lead, in a set-like or atomic object.
        return self.by_array.get(array, [f"array {array}"])[0]


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
        verify: bool = True,
        progress: ReportProgress | None = None,
        threads: int | None = None,
    ) -> dict[int, AnyArray]:
        """The arrays with these numbers, each a fresh array in its saved memory order."""
        self._check_nbytes(sum(map(self.index.nbytes, wanted)))
        stored: dict[int, AnyArray] = {}
        jobs: list[tuple[int, ChunkRead, Box]] = []
        for array in wanted:
            if self.index.arrays[array].chunk_counts:
                stored[array] = empty_stored(self.index, array)
                region = whole_region(self.index, array)
                jobs += [(array, chunk, region) for chunk in chunk_reads(self.index, array)]
            else:
                stored[array] = inline_array(self.index, array)

        def read_one(job: tuple[int, ChunkRead, Box]) -> None:
            array, chunk, region = job
            with_location(
                self,
                array,
                chunk.row,
                lambda: read_into_region(
                    self.source, self.index, chunk, region=region, out=stored[array], verify=verify
                ),
            )

        total = sum(int(self.index.chunks.raw[chunk.row]) for _, chunk, _ in jobs)
        done = 0
        n_threads = default_threads() if threads is None else threads
        for (_, chunk, _), _ in zip(
            jobs, ordered_map(read_one, jobs, threads=min(n_threads, max(len(jobs), 1))), strict=True
        ):
            done += int(self.index.chunks.raw[chunk.row])
            if progress is not None and done < total:
                progress(Progress(done, total))
        if progress is not None:
            progress(Progress(total, total))
        return {array: as_logical(values, self.index.arrays[array]) for array, values in stored.items()}

    @staticmethod
    def _check_nbytes(total: int) -> None:
        if total > current_limits().arrays_nbytes:
            raise LimitError(
                f"what is to be read has {total} bytes, more than the limit of {current_limits().arrays_nbytes}; "
                "raise it with pytreeckpt.limits(arrays_nbytes=…), or read a part with select= or a slice"
            )

    def region(self, array: int, region: Box) -> AnyArray:
        """A region of an array in stored order; reads only the chunks that it touches."""
        entry = self.index.arrays[array]
        self._check_nbytes(math.prod(region.shape) * self.index.dtypes[entry.dtype].itemsize)
        out = allocate(region.shape, self.index, entry)
        if not entry.chunk_counts:
            # Not `copy`, which gives strings of no characters one.
            copy_items(out, inline_array(self.index, array)[region.selection])
        if not entry.chunk_counts or out.size == 0:
            return out

        def read_one(chunk: ChunkRead) -> None:
            with_location(
                self,
                array,
                chunk.row,
                lambda: read_into_region(self.source, self.index, chunk, region=region, out=out, verify=True),
            )

        jobs = chunk_reads(self.index, array, region)
        for _ in ordered_map(read_one, jobs, threads=min(default_threads(), len(jobs))):
            pass
        return out

    def mapped(self, memory: memoryview, wanted: Sequence[int], *, verify: bool) -> dict[int, AnyArray]:
        """The arrays as views of the mapped file. Raises `NotMappableError` for one that is not stored raw and in
        one piece.
        """
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
            start = int(chunks.offset[rows.start])
            flat = np.frombuffer(memory[start : start + self.index.nbytes(array)], np.uint8)
            arrays[array] = as_logical(flat.view(self.index.dtypes[entry.dtype]).reshape(entry.stored_shape), entry)
        if verify:
            for problem in self.damage(wanted):
                raise problem
        return arrays

    def damage(self, wanted: Sequence[int], *, progress: ReportProgress | None = None) -> Iterator[CorruptionError]:
        """Read and check every chunk of these arrays into scratch memory; the errors that reading them would raise."""
        # A chunk may stand in the table many times (C-6), and is read once.
        by_offset = {
            int(self.index.chunks.offset[chunk.row]): (array, chunk)
            for array in reversed(wanted)
            if self.index.arrays[array].chunk_counts
            for chunk in reversed(chunk_reads(self.index, array))
        }
        jobs = list(reversed(by_offset.values()))

        def check_one(job: tuple[int, ChunkRead]) -> CorruptionError | None:
            array, chunk = job
            itemsize = self.index.dtypes[self.index.arrays[array].dtype].itemsize
            out = memoryview(bytearray(int(self.index.chunks.raw[chunk.row])))
            try:
                with_location(
                    self,
                    array,
                    chunk.row,
                    lambda: read_chunk(self.source, self.index, chunk.row, itemsize, out),
                    advice="",
                )
            except CorruptionError as error:
                return error
            return None

        total = sum(int(self.index.chunks.raw[chunk.row]) for _, chunk in jobs)
        done = 0
        results = ordered_map(check_one, jobs, threads=min(default_threads(), max(len(jobs), 1)))
        for (_, chunk), error in zip(jobs, results, strict=True):
            done += int(self.index.chunks.raw[chunk.row])
            if progress is not None:
                progress(Progress(done, total))
            if error is not None:
                yield error


_ADVICE: Final = ". `pytreeckpt verify` lists all damaged leaves; restore(select=…) reads the others"


def with_location(reader: ArrayReader, array: int, row: int, do: Callable[[], None], *, advice: str = _ADVICE) -> None:
    """Do it, and let a `CorruptionError` say which leaf and chunk it hit, and what to do."""
    try:
        do()
    except CorruptionError as error:
        if error.leaf is not None:
            raise
        leaf = reader.paths.first(array)
        chunk = row - reader.index.first_chunk[array]
        offset, stored_nbytes = int(reader.index.chunks.offset[row]), int(reader.index.chunks.stored[row])
        raise CorruptionError(
            f"leaf {leaf or 'at the root'}, chunk {chunk} (offset {offset}, {stored_nbytes} bytes): {error}{advice}",
            rule=error.rule,
            leaf=leaf,
            chunk=chunk,
            offset=offset,
        ) from None
