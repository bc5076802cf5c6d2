"""Verify a checkpoint that lies in data files: the chunks that it uses, then each data file as a whole.

Each byte is read once, and of the data files one index at a time is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from pytreeckpt.content import REFUSALS, Refusal, in_data_file
from pytreeckpt.errors import CorruptionError
from pytreeckpt.index import Index
from pytreeckpt.leaf_paths import Paths
from pytreeckpt.pipeline import Progress, ReportProgress
from pytreeckpt.read_jobs import Job, jobs_of, places_of
from pytreeckpt.reader import ArrayReader
from pytreeckpt.reading import RangedSource
from pytreeckpt.wire import align

_Used = Mapping[tuple[int, int], Job]
"""What is used of a file, by offset and size of the items: a place may be a chunk of its file for one size only."""


def damage_of_all_files(
    reader: ArrayReader, checked: Callable[[RangedSource], Index], progress: ReportProgress | None
) -> Iterator[Refusal]:
    """All that is wrong with the chunks of a checkpoint, with their identities (C-14), with its data files, and with
    what it says of their chunks (C-15). `checked`: gives the index of a file, with its structure checked, or raises
    what is wrong with it.

    `progress` counts the raw bytes of the chunks, and what else there is in the data files as it is there.
    """
    index = reader.index
    jobs = places_of(index, range(len(index.arrays)))
    used = _used(index)
    rest = [file.nbytes - sum(_stored(used_of)) for file, used_of in zip(index.files, used, strict=True)]
    raw_nbytes = sum(job.row.raw for job in jobs)
    meter = _Meter(progress, raw_nbytes, raw_nbytes + sum(rest))
    for run, errors in reader.read(jobs, identities=True, advice=""):
        meter.add(sum(job.row.raw for job in run))
        yield from errors
    for number, (used_of, nbytes) in enumerate(zip(used, rest, strict=True), 1):
        meter.end += nbytes
        try:
            yield from _damage_of_data_file(reader, number, checked, used_of, meter)
        except REFUSALS as error:
            yield in_data_file(error, index.files[number - 1])
        meter.add(nbytes)


def _damage_of_data_file(
    reader: ArrayReader, number: int, checked: Callable[[RangedSource], Index], used: _Used, meter: _Meter
) -> Iterator[Refusal]:
    """What is wrong with the rows of a data file, and with its other chunks. Raises what is wrong with its index."""
    file, source = reader.index.files[number - 1], reader.sources[number]
    index = checked(source)
    everything = range(len(index.arrays))
    rows = {(job.row, job.itemsize) for job in jobs_of(index, everything)}
    read: set[int] = set()
    for job in used.values():
        if (job.row._replace(file=0, identity=b""), job.itemsize) in rows:
            read.add(job.row.offset)
        else:
            yield reader.located(CorruptionError("it is no chunk of that file", rule="C-15"), job)
    others = [job for job in places_of(index, everything) if job.row.offset not in read]
    for run, errors in ArrayReader((source,), index, Paths(index)).read(others, advice=""):
        meter.add(sum(align(job.row.stored) for job in run))
        yield from (in_data_file(error, file) for error in errors)


def _used(index: Index) -> Sequence[_Used]:
    """What is used of each data file."""
    used: list[dict[tuple[int, int], Job]] = [{} for _ in index.files]
    for job in jobs_of(index, range(len(index.arrays))):
        if job.row.file:
            used[job.row.file - 1].setdefault((job.row.offset, job.itemsize), job)
    return used


def _stored(used: _Used) -> Iterator[int]:
    """The stored bytes of chunks, with the zero bytes after them."""
    by_offset = {job.row.offset: job.row.stored for job in used.values()}
    return map(align, by_offset.values())


class _Meter:
    """Counts bytes, and tells how far the work is, if somebody wants to know. `end`: at most this much of it is done
    yet, even where something is wrong and more is read than there should be.
    """

    def __init__(self, report: ReportProgress | None, end: int, total: int) -> None:
        self.report = report
        self.end = end
        self.total = total
        self.done = 0

    def add(self, nbytes: int) -> None:
        """Add bytes."""
        before, self.done = self.done, min(self.done + nbytes, self.end)
        if self.report is not None and self.done > before:
            self.report(Progress(self.done, self.total))
