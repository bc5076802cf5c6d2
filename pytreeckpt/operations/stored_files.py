"""Open checkpoints of our format and of others, and how runs of items are read of each.

A chunk is decoded once, if chunks of the new file begin where chunks of the old one do, as they do unless dtypes
change; else the last few are kept until what follows is asked for. The same for chunks that many small arrays share.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from threading import Lock
from typing import TYPE_CHECKING, Final

import numpy as np

from pytreeckpt.arrays import AnyArray, copy_items
from pytreeckpt.checkpoint import Checkpoint
from pytreeckpt.errors import CorruptionError, LimitError
from pytreeckpt.operations.stored import Kept, StoredFile
from pytreeckpt.read_jobs import Job
from pytreeckpt.reader import ArrayReader
from pytreeckpt.reading import array_within, chunk_row, flat_bytes, inline_array, read_chunk

if TYPE_CHECKING:
    from pytreeckpt.interop.foreign_reader import ForeignReader

# A foreign array that is no larger is read at once, and with it those that follow it.
_WHOLE_NBYTES: Final = 4 << 20
# What is small: to hand on more of it in parts costs more than to read it.
_SMALL_NBYTES: Final = 64 << 10


def stored_file(checkpoint: Checkpoint, kept: Kept) -> StoredFile:
    """An open checkpoint. `kept`: where it keeps what it has read of chunks."""
    reader = checkpoint.content.reader
    if isinstance(reader, ArrayReader):
        return _OwnFile(checkpoint, reader, kept)
    # Foreign formats are imported for those who have foreign files.
    from pytreeckpt.interop.foreign_reader import ForeignReader

    if isinstance(reader, ForeignReader):
        return _ForeignFile(checkpoint, reader, kept)
    raise TypeError(f"a {type(reader).__name__} gives no runs of items")


def _within(numbers: Iterable[int], checkpoint: Checkpoint, max_nbytes: int) -> list[int]:
    """The first of these arrays that are no larger than this together."""
    found: list[int] = []
    for number in numbers:
        max_nbytes -= checkpoint.index.nbytes(number)
        if max_nbytes < 0:
            break
        found.append(number)
    return found


class _OwnFile:
    """A file of ours."""

    def __init__(self, checkpoint: Checkpoint, reader: ArrayReader, kept: Kept) -> None:
        self.checkpoint = checkpoint
        self._reader = reader
        self._index = checkpoint.index
        self._kept = kept
        # The row of the first chunk of a box, and the items before each chunk of it and at its end.
        self._boxes: dict[tuple[int, int], tuple[int, Sequence[int]]] = {}

    def read(self, array: int, box: int, start: int, stop: int) -> AnyArray:
        """Each chunk that lies within is decoded to its place."""
        entry = self._index.arrays[array]
        if entry.inline:
            return inline_array(self._index, array).reshape(-1)[start:stop]
        if entry.pooled:
            chunk = self._whole_chunk(array, self._index.first_chunk[array])
            return array_within(self._index, array, chunk.data).reshape(-1)[start:stop]
        dtype = self._index.dtypes[entry.dtype]
        first, ends = self._chunks_of(array, box, dtype.itemsize)
        items: AnyArray = np.empty(stop - start, dtype)
        place = bisect_right(ends, start) - 1
        while place < len(ends) - 1 and ends[place] < stop:
            low, high = max(start, ends[place]), min(stop, ends[place + 1])
            part = items[low - start : high - start]
            if (low, high) == (ends[place], ends[place + 1]):
                self._decode(array, first + place, flat_bytes(part))
            else:
                chunk = self._whole_chunk(array, first + place).view(dtype)
                copy_items(part, chunk[low - ends[place] : high - ends[place]])
            place += 1
        return items

    def small(self, max_nbytes: int) -> dict[int, AnyArray]:
        """Those that lie in the index, or share a chunk with others."""
        numbers = (number for number, entry in enumerate(self._index.arrays) if entry.inline or entry.pooled)
        try:
            return self._reader.arrays(_within(numbers, self.checkpoint, max_nbytes))
        except (CorruptionError, LimitError):
            return {}

    def _chunks_of(self, array: int, box: int, itemsize: int) -> tuple[int, Sequence[int]]:
        if (array, box) not in self._boxes:
            counts = self._index.arrays[array].chunk_counts
            first = self._index.first_chunk[array] + sum(counts[:box])
            raw = self._index.chunks.raw[first : first + counts[box]].tolist()
            self._boxes[array, box] = first, [*accumulate((nbytes // itemsize for nbytes in raw), initial=0)]
        return self._boxes[array, box]

    def _whole_chunk(self, array: int, row: int) -> AnyArray:
        found = self._kept.get((id(self), row))
        if found is None:
            found = np.empty(int(self._index.chunks.raw[row]), np.uint8)
            self._decode(array, row, found.data)
            self._kept.add((id(self), row), found)
        return found

    def _decode(self, array: int, row: int, out: memoryview) -> None:
        entry = self._index.arrays[array]
        job = Job(array, row, chunk_row(self._index, row), self._index.dtypes[entry.dtype].itemsize, out)
        try:
            read_chunk(self._reader.sources[job.row.file], job.row, job.itemsize, out)
        except CorruptionError as error:
            raise self._reader.located(error, job) from None


class _ForeignFile:
    """A file of another format. What it keeps checksums of is compared before the first items of it are given."""

    def __init__(self, checkpoint: Checkpoint, reader: ForeignReader, kept: Kept) -> None:
        self.checkpoint = checkpoint
        self._reader = reader
        self._index = checkpoint.index
        self._kept = kept
        self._lock = Lock()

    def read(self, array: int, box: int, start: int, stop: int) -> AnyArray:  # noqa: ARG002 - there is one box
        """Of large arrays, only these items."""
        if array not in self._reader.stored:
            return inline_array(self._index, array).reshape(-1)[start:stop]
        if self._index.nbytes(array) <= _WHOLE_NBYTES:
            return self._small(array)[start:stop]
        from pytreeckpt.interop.layouts import array_source

        with self._lock:
            if unchecked := self._unchecked([array]):
                for _ in self._reader.scan([array], lambda _items: None):
                    pass
                self._reader.compared.update(unchecked)
        try:
            return array_source(self._reader.stored[array]).boxes[0](start, stop)
        except CorruptionError as error:
            leaf = self._reader.paths.first(array)
            raise CorruptionError(f"leaf {leaf or 'at the root'}: {error}", rule=error.rule, leaf=leaf) from None

    def small(self, max_nbytes: int) -> dict[int, AnyArray]:
        """Those of some KiB."""
        numbers = (number for number in range(len(self._index.arrays)) if self._index.nbytes(number) <= _SMALL_NBYTES)
        try:
            wanted = _within(numbers, self.checkpoint, max_nbytes)
            unchecked = self._unchecked([number for number in wanted if number in self._reader.stored])
            found = self._reader.arrays(wanted, verify=bool(unchecked))
        except (CorruptionError, LimitError):
            return {}
        self._reader.compared.update(unchecked)
        return found

    def _small(self, array: int) -> AnyArray:
        kept = self._kept.get((id(self), array))
        if kept is not None:
            return kept
        found: dict[int, AnyArray] = {}
        with self._lock:
            numbers = self._following(array)
            unchecked = self._unchecked(numbers)
            for number, values in self._reader.arrays(numbers, verify=bool(unchecked)).items():
                axes = self._index.arrays[number].axes
                stored = values if axes is None else values.transpose(axes)
                found[number] = np.ascontiguousarray(stored).reshape(-1)
                self._kept.add((id(self), number), found[number])
            self._reader.compared.update(unchecked)
        return found[array]

    def _following(self, array: int) -> list[int]:
        """An array and those after it, as far as they are small."""
        numbers, nbytes = [array], self._index.nbytes(array)
        for number in range(array + 1, len(self._index.arrays)):
            nbytes += self._index.nbytes(number)
            if nbytes > _WHOLE_NBYTES:
                break
            if number in self._reader.stored:
                numbers.append(number)
        return numbers

    def _unchecked(self, arrays: Sequence[int]) -> set[int]:
        """The sources that these arrays lie in whose checksums were not compared yet, by their ids."""
        pieces = (piece for array in arrays for piece in self._reader.stored[array].pieces)
        return ({id(piece.source) for piece in pieces} & self._reader.checks.keys()) - self._reader.compared
