"""What chunks lie in which data files, as the manifests of a folder tell it.

Nothing of it is believed unseen: a writer looks whether a data file is there, and whole, before it refers to it. What
is known is bounded, however many steps a folder has: the chunks of the latest ones, which are the ones that come again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import PurePath
from typing import Final, NamedTuple

from pytreeckpt.collection import paused_collection
from pytreeckpt.content import close
from pytreeckpt.errors import PytreeckptError
from pytreeckpt.index import DATA_FOLDER, DataFile, Index
from pytreeckpt.limits import current_limits
from pytreeckpt.reading import ChunkRow, chunk_row, read_footer, read_index
from pytreeckpt.storage import Storage
from pytreeckpt.wire import DATA_FILES


class ChunkKey(NamedTuple):
    """What makes two chunks the same: the size of their items, their raw length in bytes, and their BLAKE3."""

    itemsize: int
    nbytes: int
    identity: bytes


class Place(NamedTuple):
    """Where a chunk is stored, and its row as it is in that file: without a number of a file, and an identity."""

    file: DataFile
    row: ChunkRow


MAX_KNOWN: Final = 1 << 18
"""Chunks that are known, and entries of indexes that are read to know them, but for those of one checkpoint: 200 MB of
memory and two seconds.
"""


@dataclass(frozen=True, slots=True)
class Known:
    """The chunks that are known, each at one place, the latest that was told of; the longest known ones come first.
    `notes`: which checkpoints could not be read, and why. `durable`: the data files that are known to be durable, with
    their names; of what was only read nobody can tell.
    """

    chunks: Mapping[ChunkKey, Place] = field(default_factory=dict[ChunkKey, Place])
    notes: tuple[str, ...] = ()
    durable: frozenset[DataFile] = frozenset()

    @property
    def files(self) -> frozenset[DataFile]:
        """The data files that the chunks lie in."""
        return frozenset(place.file for place in self.chunks.values())

    def within(self, names: Collection[str]) -> Known:
        """What lies in the data files of these names: those that are left after some were removed."""
        left = {file for file in self.files | self.durable if file.name in names}
        durable = self.durable & left
        if self.files <= left:
            return Known(self.chunks, self.notes, durable)
        chunks = {key: place for key, place in self.chunks.items() if place.file in left}
        return Known(chunks, self.notes, durable)

    def with_places(self, places: Mapping[ChunkKey, Place], durable: frozenset[DataFile]) -> Known:
        """What is known when a checkpoint was written, whose chunks are at these places."""
        chunks = {**self.chunks, **places}
        n_excess = len(chunks) - MAX_KNOWN
        if n_excess > 0:
            for key in [*islice((key for key in self.chunks if key not in places), n_excess)]:
                del chunks[key]
        return Known(chunks, self.notes, durable)


def data_folder(path: str) -> str:
    """The folder of the data files of a checkpoint."""
    return str(PurePath(path).parent / DATA_FOLDER)


def data_path(path: str, name: str) -> str:
    """The path of a data file of a checkpoint, by its name."""
    return str(PurePath(path).parent / DATA_FOLDER / name)


def read_known(storage: Storage, paths: Sequence[str]) -> Known:
    """What the indexes of these checkpoints, all of one folder, tell of their chunks. They are read from the last on,
    until `MAX_KNOWN` entries were: the steps of a run are given in ascending order. Of two places of a chunk, that
    which a later path tells of counts.

    Ordinary files know nothing. Those that are damaged, or have vanished, are left out, and noted.
    """
    chunks: dict[ChunkKey, Place] = {}
    seen: dict[DataFile, set[int]] = {}
    notes: list[str] = []
    n_read = 0
    with paused_collection():
        for path in reversed(paths):
            try:
                index = _manifest_index(storage, path)
            except PytreeckptError as error:
                notes.append(f"{path}: {error}")
                continue
            if index is not None:
                _add_chunks(chunks, seen, index)
                n_read += len(index.arrays) + len(index.chunks)
                if n_read >= MAX_KNOWN:
                    break
    return Known(dict(reversed(chunks.items())), tuple(reversed(notes)))


def files_needed(storage: Storage, path: str) -> frozenset[str]:
    """The names, in the folder `data` beside it, of the data files that a checkpoint needs: none for an ordinary file.

    Raises `CheckpointNotFoundError`, `CorruptionError` (also for what is not ours), `FormatVersionError`, `LimitError`
    and `StorageError`: then nothing is known, and nothing may be removed.
    """
    index = _manifest_index(storage, path)
    return frozenset() if index is None else frozenset(file.name for file in index.files)


def _manifest_index(storage: Storage, path: str) -> Index | None:
    """The index of a checkpoint, without a look at its data files; None for one that has none."""
    source = storage.open(path)
    try:
        footer = read_footer(source)
        if not footer.features & DATA_FILES:
            return None
        return read_index(source, footer, current_limits())
    finally:
        close([source])


def _add_chunks(chunks: dict[ChunkKey, Place], seen: dict[DataFile, set[int]], index: Index) -> None:
    """Add the chunks of an index that lie in data files, at offsets of these that were not seen yet: most of the chunks
    of a checkpoint are those of the one before.
    """
    offsets = [seen.setdefault(file, set()) for file in index.files]
    columns = (index.chunks.file.tolist(), index.chunks.offset.tolist(), _itemsizes(index))
    for number, (file, offset, itemsize) in enumerate(zip(*columns, strict=True)):
        if file and offset not in offsets[file - 1]:
            offsets[file - 1].add(offset)
            row = chunk_row(index, number)
            place = Place(index.files[file - 1], row._replace(file=0, identity=b""))
            chunks.setdefault(ChunkKey(itemsize, row.raw, row.identity), place)


def _itemsizes(index: Index) -> list[int]:
    """The size of the items of each chunk: first of those of boxes, then of those of pools, by their dtypes."""
    found: list[int] = []
    for entry in index.arrays:
        if not entry.pooled:
            found += [index.dtypes[entry.dtype].itemsize] * sum(entry.chunk_counts)
    pooled = sorted({entry.dtype for entry in index.arrays if entry.pooled})
    for dtype, count in zip(pooled, index.pools, strict=True):
        found += [index.dtypes[dtype].itemsize] * count
    return found
