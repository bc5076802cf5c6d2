"""What a checkpoint that is open is made of, whatever the format of its file."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from pytreeckpt.arrays import AnyArray
from pytreeckpt.collection import paused_collection
from pytreeckpt.errors import (
    CheckpointNotFoundError,
    CorruptionError,
    FormatVersionError,
    LimitError,
    NotACheckpointError,
    StorageError,
)
from pytreeckpt.geometry import Box
from pytreeckpt.index import DATA_FOLDER, DataFile, Index
from pytreeckpt.leaf_paths import Paths
from pytreeckpt.limits import Limits
from pytreeckpt.pipeline import ReportProgress
from pytreeckpt.reader import ArrayReader
from pytreeckpt.reading import RangedSource, read_footer, read_index
from pytreeckpt.storage import LocalFile, with_errno
from pytreeckpt.wire import DATA_FILES, Footer

OWN_FORMAT: Final = "pytreeckpt"


class ReadsArrays(Protocol):
    """Reads the arrays of an index, by their numbers."""

    @property
    def paths(self) -> Paths:
        """The paths of the leaves, for errors."""
        ...

    def arrays(
        self,
        wanted: Sequence[int],
        *,
        into: Mapping[int, AnyArray] | None = None,
        verify: bool = True,
        progress: ReportProgress | None = None,
    ) -> dict[int, AnyArray]:
        """The arrays with these numbers: those of `into`, filled (of the same shape and dtype, in any memory order),
        and fresh ones for the others, in their saved memory order. Raises `CorruptionError` with the leaf.
        """
        ...

    def region(self, array: int, region: Box) -> AnyArray:
        """A region of an array in stored order; reads no more than it must."""
        ...

    def mapped(self, wanted: Sequence[int], *, verify: bool) -> dict[int, AnyArray]:
        """The arrays as views of the mapped file. Raises `NotMappableError` for one that does not lie there so."""
        ...

    def scan(
        self, wanted: Sequence[int], function: Callable[[AnyArray], Any], *, progress: ReportProgress | None = None
    ) -> Iterator[tuple[int, Any]]:
        """What `function` gives for each part of these arrays, with the number of the array, in order; it is called in
        threads. All is checked that is checked when they are read. Raises `CorruptionError` with the leaf.
        """
        ...

    def damage(self, wanted: Sequence[int], *, progress: ReportProgress | None = None) -> Iterator[CorruptionError]:
        """Read and check all there is to check; the errors that reading these arrays would raise."""
        ...


@dataclass(frozen=True, slots=True)
class Content:
    """An open file, or folder of files.

    `format`: the name of its format, `OWN_FORMAT` for ours; `nbytes`: of all its files; `sources`: what is to be closed
    with it, of ours the file and then its data files, in the order of the index; `footer`: of a file of ours, with the
    length of that file alone; `notes`: what is worth knowing of how another one was read; `n_checks`: how many
    checksums another one keeps of its arrays.
    """

    format: str
    index: Index
    reader: ReadsArrays
    nbytes: int
    sources: Sequence[RangedSource]
    footer: Footer | None = None
    notes: tuple[str, ...] = ()
    n_checks: int = 0

    def close(self) -> None:
        """Close the files."""
        close(self.sources)


def close(sources: Iterable[RangedSource]) -> None:
    """Close those that are files."""
    for source in sources:
        if isinstance(source, LocalFile):
            source.close()


Siblings = Callable[[str], RangedSource]
"""Opens a file by its name in the folder `DATA_FOLDER` beside a checkpoint. Raises `CheckpointNotFoundError`, or
`NotACheckpointError` for what is no regular file.
"""


def own_content(source: RangedSource, limits: Limits, siblings: Siblings | None = None) -> Content:
    """The content of a file of ours. All its data files are opened at once, so that removing one later harms nobody;
    if this raises, they are closed, and `source` is not. Raises `NotACheckpointError` for another file,
    `CorruptionError`, `FormatVersionError`, `LimitError` and `StorageError`.
    """
    footer = read_footer(source)
    with paused_collection():
        index = read_index(source, footer, limits)
    sources = [source]
    try:
        errors: list[CorruptionError | FormatVersionError] = []
        for file in index.files:
            try:
                sources.append(_find(file, siblings))
                _check_data_file(file, sources[-1])
            except (CorruptionError, FormatVersionError) as error:
                errors.append(error)
        _raise_first(errors, len(index.files))
    except BaseException:
        close(sources[1:])
        raise
    nbytes = sum(each.nbytes for each in sources)
    return Content(OWN_FORMAT, index, ArrayReader(sources, index, Paths(index)), nbytes, sources, footer)


def _raise_first(errors: Sequence[CorruptionError | FormatVersionError], n_files: int) -> None:
    """Raise what is wrong with the first data file that something is wrong with, if there is one."""
    if len(errors) > 1:
        errors[0].args = (f"{errors[0]}. Of its {n_files} data files, {len(errors)} cannot be used",)
    if errors:
        raise errors[0]


def _find(file: DataFile, siblings: Siblings | None) -> RangedSource:
    """F-15."""
    if siblings is None:
        raise CorruptionError(
            f"chunks lie in the data file {file.name}, which bytes alone do not have: open the file, beside which its "
            f"data files are in the folder {DATA_FOLDER}",
            rule="F-15",
            file=file.name,
        )
    try:
        return siblings(file.name)
    except (CheckpointNotFoundError, NotACheckpointError) as error:
        what = "is missing" if isinstance(error, CheckpointNotFoundError) else "is no file"
        raise CorruptionError(
            f"the data file {file.name} {what} ({error}): chunks of this checkpoint lie in it; copy the folder "
            f"{DATA_FOLDER} along with the checkpoint, or restore a step that does not need it",
            rule="F-15",
            file=file.name,
        ) from None
    except StorageError as error:
        if error.errno not in {errno.EMFILE, errno.ENFILE}:
            raise
        what = f"{error}. All data files of a checkpoint are open at once: raise the limit on open files (ulimit -n)"
        raise with_errno(StorageError(what), error) from error


def _check_data_file(file: DataFile, source: RangedSource) -> None:
    """F-16 to F-18, and F-1 to F-10 for a data file."""
    if source.nbytes != file.nbytes:
        raise CorruptionError(
            f"the data file {file.name} is {source.nbytes} bytes long and the checkpoint needs one of {file.nbytes}: "
            "it was cut, or replaced",
            rule="F-16",
            file=file.name,
        )
    try:
        footer = read_footer(source)
    except (CorruptionError, FormatVersionError) as error:
        raise in_data_file(error, file) from None
    if footer.features & DATA_FILES:
        raise CorruptionError(
            f"the data file {file.name} needs data files of its own, which none may", rule="F-17", file=file.name
        )
    if footer.root != file.root:
        raise CorruptionError(
            f"the data file {file.name} is another checkpoint, of root {footer.root.hex()}: it was replaced",
            rule="F-18",
            file=file.name,
        )


Refusal = CorruptionError | FormatVersionError | LimitError
"""Why a file of ours is not read."""
REFUSALS: Final = (CorruptionError, FormatVersionError, LimitError)


def in_data_file(error: Refusal, file: DataFile) -> Refusal:
    """An error about a data file, as one about the checkpoint that needs it. Never a `NotACheckpointError`: that is
    said of the file that was asked for.
    """
    message = f"the data file {file.name}: {error}"
    if isinstance(error, CorruptionError):
        return CorruptionError(message, rule=error.rule, offset=error.offset, file=file.name)
    if isinstance(error, FormatVersionError):
        return FormatVersionError(message, rule=error.rule)
    return LimitError(message)
