"""What is known, held against what is there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pytreeckpt.codecs import RAW, Compression
from pytreeckpt.commit import Durability, SyncExisting
from pytreeckpt.content import close
from pytreeckpt.errors import CorruptionError, PytreeckptError
from pytreeckpt.incremental.known import ChunkKey, Known, Place, data_folder, data_path
from pytreeckpt.index import DataFile
from pytreeckpt.reading import read_footer
from pytreeckpt.storage import Storage
from pytreeckpt.wire import PREAMBLE_NBYTES


@dataclass(frozen=True, slots=True)
class Usable:
    """`known`: what lies in data files that are there; `chunks`: those of them that may be used; `capacities`: of the
    data files that may be used, the bytes of their chunks with their padding; `notes`: which may not, and why.
    """

    known: Known
    chunks: Mapping[ChunkKey, Place]
    capacities: Mapping[DataFile, int]
    notes: tuple[str, ...]


def find_usable(
    storage: Storage,
    path: str,
    known: Known,
    wanted: Iterable[ChunkKey],
    *,
    compression: Compression,
    durability: Durability,
) -> Usable:
    """What a new checkpoint at `path` may use of what is known: data files that are there, and that are durable, where
    it is to be so itself; those of which it is not known are made so (their names not yet). Raises `StorageError`.
    """
    known = known.within(frozenset(storage.names(data_folder(path))))
    # A level or "auto" takes what is there. Arrays that are to be mapped have to be stored raw.
    raw_only = compression == "none"
    chunks = {key: place for key in wanted if (place := known.chunks.get(key)) is not None}
    chunks = {key: place for key, place in chunks.items() if not raw_only or place.row.codec == RAW.number}
    capacities: dict[DataFile, int] = {}
    bad: set[DataFile] = set()
    notes: list[str] = []
    for file in sorted({place.file for place in chunks.values()}):
        try:
            capacity = _capacity(storage, path, file)
            if durability == "durable" and file not in known.durable:
                storage.apply(SyncExisting(data_path(path, file.name)))
            capacities[file] = capacity
        except (PytreeckptError, OSError) as error:
            bad.add(file)
            notes.append(
                f"the data file {file.name} is not as it was: what is needed of it is stored again, and older "
                f"checkpoints that need it are damaged, or may be after a power cut: {error}"
            )
    if bad:
        known = known.within({file.name for file in known.files - bad})
    return Usable(known, chunks, capacities, tuple(notes))


def is_there(storage: Storage, path: str, file: DataFile) -> bool:
    """Whether a data file is there, and what it is said to be."""
    try:
        _capacity(storage, path, file)
    except PytreeckptError:
        return False
    return True


def _capacity(storage: Storage, path: str, file: DataFile) -> int:
    """The bytes of the chunks, with their padding, of a data file that is what it is said to be."""
    source = storage.open(data_path(path, file.name))
    try:
        footer = read_footer(source)
    finally:
        close([source])
    if footer.features or (footer.file_nbytes, footer.root) != file:
        raise CorruptionError(f"it is another file now, of {footer.file_nbytes} bytes", rule="F-18")
    return footer.index_offset - PREAMBLE_NBYTES
