"""Read the arrays of a foreign file: parts of them in threads, each put where it belongs, with the checksums that the
file keeps.

A checksum is of all bytes of a source, such as a member of a zip archive. It is computed of an array while that is
read, if the array is all of the source but for a header, and of the source by itself where several arrays lie in it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np

from pytreeckpt.arrays import AnyArray, copy_items
from pytreeckpt.dtypes import AnyDType
from pytreeckpt.errors import CorruptionError, NotMappableError
from pytreeckpt.geometry import Box, whole
from pytreeckpt.index import Index
from pytreeckpt.interop.archives import Deflated, located
from pytreeckpt.interop.checksums import combine
from pytreeckpt.interop.foreign import Check, ForeignArray, allocate, contiguous, cropped, read_whole
from pytreeckpt.interop.layouts import is_contiguous, split
from pytreeckpt.leaf_paths import Paths
from pytreeckpt.pipeline import Progress, ReportProgress, ordered_map, threads_for
from pytreeckpt.reading import as_logical, check_total, flat_bytes, inline_array
from pytreeckpt.storage import LocalFile

# What one thread reads at a time, and the least that is worth handing to one.
_PART_NBYTES: Final = 4 << 20
_BATCH_NBYTES: Final = 1 << 20
# So much besides the one array that lies in a source is read to check it while the array is read.
_HEADER_NBYTES: Final = 64 << 10
_BYTE: Final[AnyDType] = np.dtype(np.uint8)
_ADVICE: Final = ". `pytreeckpt verify` lists all that is damaged; restore(select=…) reads the other leaves"


class _Part(NamedTuple):
    """A part of an array to be read into `out`, or, without it, into memory of its own. `check`: its bytes are the next
    ones of those that this check is of, and the last ones if `is_last`.

    `is_bytes`: it is no part of the array, but bytes that the check is of, and `array` is for errors, or −1.
    """

    array: int
    items: ForeignArray
    out: AnyArray | None = None
    check: Check | None = None
    is_last: bool = False
    is_bytes: bool = False


class _Outcome(NamedTuple):
    """What became of a part: what is wrong with it, its CRC-32 if it has a check, and what a function of its values
    gave.
    """

    part: _Part
    error: CorruptionError | None
    crc32: int = 0
    result: Any = None


@dataclass(frozen=True, slots=True)
class ForeignReader:
    """`stored`: the arrays that are not in the index, by number, in stored order; `checks`: by the id of the source
    that each is of; `compared`: which of these were, and matched, when a region was read.
    """

    index: Index
    paths: Paths
    stored: Mapping[int, ForeignArray]
    checks: Mapping[int, Check]
    compared: set[int] = field(default_factory=set)

    def arrays(
        self,
        wanted: Sequence[int],
        *,
        into: Mapping[int, AnyArray] | None = None,
        verify: bool = True,
        progress: ReportProgress | None = None,
    ) -> dict[int, AnyArray]:
        """The arrays with these numbers, as `ReadsArrays` has it. With `verify`, the checksums of all sources that they
        lie in are compared.
        """
        check_total(sum(map(self.index.nbytes, wanted)))
        arrays: dict[int, AnyArray] = {}
        outs: dict[int, AnyArray] = {}
        for array in wanted:
            entry = self.index.arrays[array]
            given = into.get(array) if into else None
            if array not in self.stored:
                inline = as_logical(inline_array(self.index, array), entry)
                if given is not None:
                    copy_items(given, inline)
                arrays[array] = inline if given is None else given
            elif given is None:
                outs[array] = allocate(entry.stored_shape, self.index.dtypes[entry.dtype])
                arrays[array] = as_logical(outs[array], entry)
            else:
                outs[array] = given if entry.axes is None else given.transpose(entry.axes)
                arrays[array] = given
        parts = self._checked_parts(outs) if verify else self._parts(outs)
        for outcome in self._read(list(parts), progress=progress):
            if outcome.error is not None:
                raise outcome.error
        return arrays

    def region(self, array: int, region: Box) -> AnyArray:
        """A region of an array in stored order. Of a part of one, reads only what lies in it, of which there is no
        checksum. With all of one, the checksums of all sources that it lies in are compared, unless they were: of many
        arrays in one source, each would read all of it.
        """
        out = allocate(region.shape, self.index.dtypes[self.index.arrays[array].dtype])
        if array not in self.stored:
            copy_items(out, inline_array(self.index, array)[region.selection])
            return out
        items = self.stored[array]
        checks = self._checks_of(items) - self.compared if region == whole(items.shape) else set()
        parts = self._checked_parts({array: out}) if checks else _parts(array, cropped(items, region), out)
        for outcome in self._read(list(parts)):
            if outcome.error is not None:
                raise outcome.error
        self.compared.update(checks)
        return out

    def mapped(self, wanted: Sequence[int], *, verify: bool) -> dict[int, AnyArray]:
        """The arrays as views of the mapped files, and copies of those that are not aligned in them. Raises
        `NotMappableError` for one that does not lie in a file in one run, as it is.
        """
        arrays: dict[int, AnyArray] = {}
        copied: list[int] = []
        memories: dict[int, memoryview] = {}
        for array in wanted:
            items = self.stored.get(array)
            if items is None or not items.nbytes:
                copied.append(array)
                continue
            try:
                place = _place_in_file(items)
            except CorruptionError as error:
                raise self._located(error, _Part(array, items), _ADVICE) from error
            if place is None:
                raise NotMappableError(
                    f"leaf {self.paths.first(array)}: the array does not lie in the file in one uncompressed run, and "
                    "cannot be mapped; restore without mmap"
                )
            file, offset = place
            if offset % items.dtype.alignment:
                copied.append(array)
                continue
            if id(file) not in memories:
                memories[id(file)] = memoryview(file.map())
            flat = np.frombuffer(memories[id(file)][offset : offset + items.nbytes], np.uint8)
            arrays[array] = as_logical(flat.view(items.dtype).reshape(items.shape), self.index.arrays[array])
        if verify:
            for outcome in self._read(list(self._parts_of_checks(self._first_arrays(arrays)))):
                if outcome.error is not None:
                    raise outcome.error
        return arrays | self.arrays(copied, verify=verify)

    def damage(self, wanted: Sequence[int], *, progress: ReportProgress | None = None) -> Iterator[CorruptionError]:
        """Compare all checksums, and read those of the arrays that lie in sources without one; what is wrong."""
        first = self._first_arrays(self.stored)
        unused = {number: -1 for number in self.checks if number not in first}
        parts = list(self._parts_of_checks(first | unused))
        for array in wanted:
            items = self.stored.get(array)
            if items is not None and not all(id(piece.source) in self.checks for piece in items.pieces):
                parts += _parts(array, items, None)
        for outcome in self._read(parts, progress=progress, advice=""):
            if outcome.error is not None:
                yield outcome.error

    def scan(
        self, wanted: Sequence[int], function: Callable[[AnyArray], Any], *, progress: ReportProgress | None = None
    ) -> Iterator[tuple[int, Any]]:
        """What `function` gives for each part of these arrays, with the number of the array, in order; it is called in
        threads. Raises `CorruptionError` as `arrays` does.
        """
        for array in wanted:
            if array not in self.stored:
                yield array, function(inline_array(self.index, array))
        parts = list(self._checked_parts(dict.fromkeys(array for array in wanted if array in self.stored)))
        for outcome in self._read(parts, function=function, progress=progress):
            if outcome.error is not None:
                raise outcome.error
            if not outcome.part.is_bytes:
                yield outcome.part.array, outcome.result

    # What there is to read.

    def _parts(self, outs: Mapping[int, AnyArray | None]) -> Iterator[_Part]:
        for array, out in outs.items():
            yield from _parts(array, self.stored[array], out)

    def _checked_parts(self, outs: Mapping[int, AnyArray | None]) -> Iterator[_Part]:
        """As `_parts`, and with what else must be read for the checks of all sources that the arrays lie in."""
        seen: set[int] = set()
        for array, out in outs.items():
            items = self.stored[array]
            check = self._check_of(items) if out is None or out.flags.c_contiguous else None
            if check is None or id(check.source) in seen:
                yield from _parts(array, items, out)
                continue
            seen.add(id(check.source))
            yield from _around(check, array, items, out)
        yield from self._parts_of_checks(
            {number: array for number, array in self._first_arrays(outs).items() if number not in seen}
        )

    def _check_of(self, items: ForeignArray) -> Check | None:
        """The check that can be made while an array is read: it is nearly all of one source."""
        if not is_contiguous(items):
            return None
        source = items.pieces[0].source
        check = self.checks.get(id(source))
        return check if check is not None and source.nbytes - items.nbytes <= _HEADER_NBYTES else None

    def _parts_of_checks(self, numbers: Mapping[int, int]) -> Iterator[_Part]:
        """All bytes that checks are of. `numbers`: an array for each id of a source, for errors."""
        for number, array in numbers.items():
            if number in self.checks:
                check = self.checks[number]
                yield from _ended([*_bytes_of(check, array, 0, check.source.nbytes)])

    def _first_arrays(self, arrays: Iterable[int]) -> dict[int, int]:
        """For the id of each source that these arrays lie in: the first of them."""
        first: dict[int, int] = {}
        for array in arrays:
            for piece in self.stored[array].pieces:
                first.setdefault(id(piece.source), array)
        return first

    def _checks_of(self, items: ForeignArray) -> set[int]:
        """The ids of the sources that an array lies in, of which there are checks."""
        return {id(piece.source) for piece in items.pieces} & self.checks.keys()

    # Reading it.

    def _read(
        self,
        parts: Sequence[_Part],
        *,
        function: Callable[[AnyArray], Any] | None = None,
        progress: ReportProgress | None = None,
        advice: str = _ADVICE,
    ) -> Iterator[_Outcome]:
        """Read the parts, in threads; what became of each, in their order."""
        total = sum(part.items.nbytes for part in parts)
        done = 0
        running: dict[int, int] = {}
        batches = list(_batches(parts))
        threads = threads_for(len(parts), total)
        for outcomes in ordered_map(partial(_read_batch, function), batches, threads=threads):
            for outcome in outcomes:
                part, error = outcome.part, outcome.error
                if part.check is not None and error is None:
                    error = _follow(running, outcome)
                yield outcome if error is None else outcome._replace(error=self._located(error, part, advice))
                done += part.items.nbytes
            if progress is not None and done < total:
                progress(Progress(done, total))
        if progress is not None:
            progress(Progress(total, total))

    def _located(self, error: CorruptionError, part: _Part, advice: str) -> CorruptionError:
        """The error with the leaf that it hit, and what to do."""
        if part.array < 0:
            return CorruptionError(f"{error}{advice}", rule=error.rule)
        leaf = self.paths.first(part.array)
        return CorruptionError(f"leaf {leaf or 'at the root'}: {error}{advice}", rule=error.rule, leaf=leaf)


def _parts(array: int, items: ForeignArray, out: AnyArray | None) -> Iterator[_Part]:
    """An array in parts without a check."""
    for part in _split(items, out):
        yield _Part(array, *part)


def _split(items: ForeignArray, out: AnyArray | None) -> Iterator[tuple[ForeignArray, AnyArray | None]]:
    """An array in the parts that are read at a time."""
    # A compressed member is unpacked anew by whoever asks for a part of it after its end was read.
    packed = any(isinstance(piece.source, Deflated) for piece in items.pieces)
    return split(items, out, max(items.nbytes, 1) if packed else _PART_NBYTES)


def _around(check: Check, array: int, items: ForeignArray, out: AnyArray | None) -> Iterator[_Part]:
    """The parts of an array, and what lies before and after it in the source that the check is of."""
    begin = items.pieces[0].offset
    end = begin + items.nbytes
    parts = [_Part(array, part, of_out, check) for part, of_out in _split(items, out)]
    if begin:
        parts = [*_bytes_of(check, array, 0, begin), *parts]
    if end < check.source.nbytes:
        parts += _bytes_of(check, array, end, check.source.nbytes)
    yield from _ended(parts)


def _ended(parts: Sequence[_Part]) -> Iterator[_Part]:
    """All parts of what a check is of: with the last of them, it is compared."""
    yield from parts[:-1]
    yield parts[-1]._replace(is_last=True)


def _bytes_of(check: Check, array: int, begin: int, end: int) -> Iterator[_Part]:
    """Some of the bytes that a check is of, as parts; at least one."""
    items = contiguous(check.source, begin, _BYTE, (end - begin,))
    for part, _ in _split(items, None):
        yield _Part(array, part, None, check, is_bytes=True)


def _batches(parts: Sequence[_Part]) -> Iterator[Sequence[_Part]]:
    """The parts, small ones together."""
    begin = 0
    nbytes = 0
    for at, part in enumerate(parts):
        nbytes += part.items.nbytes
        if nbytes >= _BATCH_NBYTES:
            yield parts[begin : at + 1]
            begin, nbytes = at + 1, 0
    if begin < len(parts):
        yield parts[begin:]


def _read_batch(function: Callable[[AnyArray], Any] | None, batch: Sequence[_Part]) -> list[_Outcome]:
    return [_read_part(part, function) for part in batch]


def _read_part(part: _Part, function: Callable[[AnyArray], Any] | None) -> _Outcome:
    try:
        values = read_whole(part.items, out=part.out)
    except CorruptionError as error:
        return _Outcome(part, error)
    crc32 = zlib.crc32(flat_bytes(values)) if part.check is not None else 0
    return _Outcome(part, None, crc32, None if function is None or part.is_bytes else function(values))


def _follow(running: dict[int, int], outcome: _Outcome) -> CorruptionError | None:
    """Add a part to the checksum of its source; what is wrong when it was the last one."""
    part, check = outcome.part, outcome.part.check
    if check is None:
        return None
    key = id(check)
    running[key] = combine(running.get(key, 0), outcome.crc32, part.items.nbytes)
    if part.is_last and running.pop(key) != check.crc32:
        return CorruptionError(f"{check.name} is damaged: its CRC-32 does not match", rule="CRC-32")
    return None


def _place_in_file(items: ForeignArray) -> tuple[LocalFile, int] | None:
    """The file that an array lies in, in one run, and where; None if there is no such."""
    if not is_contiguous(items):
        return None
    source, offset = located(items.pieces[0].source, items.pieces[0].offset)
    return (source, offset) if isinstance(source, LocalFile) else None
