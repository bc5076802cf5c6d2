"""What a checkpoint that is open is made of, whatever the format of its file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from pytreeckpt.arrays import AnyArray
from pytreeckpt.collection import paused_collection
from pytreeckpt.errors import CorruptionError
from pytreeckpt.geometry import Box
from pytreeckpt.index import Index
from pytreeckpt.leaf_paths import Paths
from pytreeckpt.limits import Limits
from pytreeckpt.pipeline import ReportProgress
from pytreeckpt.reader import ArrayReader
from pytreeckpt.reading import RangedSource, read_footer, read_index
from pytreeckpt.storage import LocalFile
from pytreeckpt.wire import Footer

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
    with it; `footer`: of a file of ours; `notes`: what is worth knowing of how another one was read; `n_checks`:
    how many checksums another one keeps of its arrays.
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
        for source in self.sources:
            if isinstance(source, LocalFile):
                source.close()


def own_content(source: RangedSource, limits: Limits) -> Content:
    """The content of a file of ours. Raises `NotACheckpointError` for another one, `CorruptionError`,
    `FormatVersionError` and `LimitError`.
    """
    footer = read_footer(source)
    with paused_collection():
        index = read_index(source, footer, limits)
    return Content(OWN_FORMAT, index, ArrayReader(source, index, Paths(index)), source.nbytes, (source,), footer)
