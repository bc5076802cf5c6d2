"""The index as records, and its one encoding (sections 3 to 8 of the format)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import msgpack
import numpy as np

from pytreeckpt.dtypes import AnyDType, Descriptor
from pytreeckpt.errors import CorruptionError
from pytreeckpt.geometry import Box, Shape, grid, whole
from pytreeckpt.nodes import Nodes

CHUNKED: Final = 1
HAS_AXES: Final = 2
HAS_CUTS: Final = 4
POOLED: Final = 8
MAX_RANK: Final = 64
THIS_FILE: Final = ["", 0, b""]

IntArray = np.ndarray[tuple[int, ...], np.dtype[Any]]


class ArrayEntry(NamedTuple):
    """An array as the index tells it. `axes`, `cuts`: section 7; `chunk_counts`: per box, empty if the array is
    inline. A pooled array lies in one chunk, with others. A foreign one lies in a file of another format, which has
    no chunks.
    """

    dtype: int
    shape: Shape
    axes: Shape | None = None
    cuts: tuple[Shape, ...] | None = None
    chunk_counts: tuple[int, ...] = ()
    pooled: bool = False
    foreign: bool = False

    @property
    def inline(self) -> bool:
        """Whether the items are in the index itself."""
        return not self.chunk_counts and not self.foreign

    @property
    def stored_shape(self) -> Shape:
        """The shape of the array transposed into stored order."""
        return self.shape if self.axes is None else tuple(self.shape[axis] for axis in self.axes)

    @property
    def boxes(self) -> list[Box]:
        """The boxes of the array in stored order."""
        stored = self.stored_shape
        return [whole(stored)] if self.cuts is None else list(grid(stored, self.cuts))


class DataFile(NamedTuple):
    """A further file that chunks lie in, a checkpoint of its own: its length in bytes, and its root."""

    nbytes: int
    root: bytes

    @property
    def name(self) -> str:
        """What it is called, in the folder `DATA_FOLDER` beside the file that needs it."""
        return f"{self.root.hex()}{SUFFIX}"


DATA_FOLDER: Final = "data"
SUFFIX: Final = ".ptck"


@dataclass(frozen=True, slots=True)
class Chunks:
    """The chunk table: parallel columns, one entry per chunk. Offsets and lengths in bytes. `file`: 0 is the file
    itself, others are `Index.files` from 1 on. `identity`: BLAKE3 of the raw bytes, 32 bytes each; empty if there are
    no data files.
    """

    offset: IntArray
    stored: IntArray
    raw: IntArray
    codec: IntArray
    check: bytes
    digest: bytes
    file: IntArray
    identity: bytes = b""

    def __len__(self) -> int:
        return len(self.offset)

    def by_file(self, n_files: int) -> list[IntArray]:
        """The rows of the file itself, and of each of so many data files, ascending."""
        # Sorted once: a pass over all rows for each file would be slow where there are many of both.
        order = np.argsort(self.file, kind="stable")
        return np.split(order, np.searchsorted(self.file[order], np.arange(1, n_files + 1)))


@dataclass(frozen=True, slots=True)
class Index:
    """All that a file tells of its tree. `dtypes` are numpy's; `inline` holds the bytes of the inline arrays. `starts`:
    where in these an inline array begins, and a pooled one in the raw bytes of its chunk, which is its `first_chunk`.
    `pools`: how many chunks each pool has, in the order of their dtypes. `files`: the data files. `own`: it is of a
    file of ours, and not made for one of another format, which has neither index nor chunks.
    """

    nodes: Nodes
    dtypes: list[AnyDType]
    descriptors: list[Descriptor]
    arrays: list[ArrayEntry]
    inline: bytes
    chunks: Chunks
    first_chunk: list[int]
    starts: list[int]
    sizes: list[int]
    pools: list[int]
    files: Sequence[DataFile] = ()
    own: bool = True

    def nbytes(self, array: int) -> int:
        """Bytes of an array in C order."""
        return self.sizes[array]

    def stored_nbytes(self, array: int) -> int:
        """Bytes of an array as it is stored: of an inline one its own, of a pooled one its part of its chunk."""
        entry = self.arrays[array]
        if not entry.chunk_counts:
            return self.sizes[array]
        first = self.first_chunk[array]
        stored = int(self.chunks.stored[first : first + sum(entry.chunk_counts)].sum())
        return stored * self.sizes[array] // int(self.chunks.raw[first]) if entry.pooled else stored


def pack(values: Sequence[int] | Sequence[float], dtype: str) -> bytes:
    """A column: the values one after another, little-endian."""
    return np.array(values, dtype).tobytes()


def column(document: dict[str, bytes], name: str, dtype: str) -> IntArray:
    """A column of a table, as `pack` made it (I-3)."""
    buffer = document[name]
    width = np.dtype(dtype).itemsize
    if len(buffer) % width:
        raise CorruptionError(f"column {name} of {len(buffer)} bytes has entries of {width}", rule="I-3")
    return np.frombuffer(buffer, dtype)


class ArrayTable(NamedTuple):
    """All that the index tells of arrays but their chunks. `pools`: how many chunks each pool has."""

    descriptors: Sequence[Descriptor]
    entries: Sequence[ArrayEntry]
    inline: bytes
    pools: Sequence[int]


def encode_index(nodes: Nodes, table: ArrayTable, chunks: Chunks, files: Sequence[DataFile] = ()) -> bytes:
    """The raw index."""
    arrays = table.entries
    with_axes = [entry.axes for entry in arrays if entry.axes is not None]
    with_cuts = [entry.cuts for entry in arrays if entry.cuts is not None]
    layouts = [
        (POOLED if entry.pooled else CHUNKED if entry.chunk_counts else 0)
        | (HAS_AXES if entry.axes is not None else 0)
        | (HAS_CUTS if entry.cuts is not None else 0)
        for entry in arrays
    ]
    document = {
        "nodes": {
            "kinds": bytes(nodes.kinds),
            "counts": pack(nodes.counts, "<u8"),
            "ints": pack(nodes.ints, "<i8"),
            "floats": pack(nodes.floats, "<f8"),
            "strings": nodes.strings,
            "bytes": nodes.blobs,
            "objects": pack(nodes.objects, "<u4"),
            "arrays": pack(nodes.arrays, "<u4"),
        },
        "types": [[int(type_.class_kind), type_.name, list(type_.fields)] for type_ in nodes.types],
        "dtypes": list(table.descriptors),
        "arrays": {
            "dtype": pack([entry.dtype for entry in arrays], "<u4"),
            "rank": bytes([len(entry.shape) for entry in arrays]),
            "shape": pack([extent for entry in arrays for extent in entry.shape], "<u8"),
            "layout": bytes(layouts),
            "axes": bytes([axis for axes in with_axes for axis in axes]),
            "cut_counts": pack([len(axis) for cuts in with_cuts for axis in cuts], "<u4"),
            "cuts": pack([cut for cuts in with_cuts for axis in cuts for cut in axis], "<u8"),
            "chunk_counts": pack(
                [count for entry in arrays if not entry.pooled for count in entry.chunk_counts], "<u4"
            ),
            "pools": pack(table.pools, "<u4"),
        },
        "inline": table.inline,
        "chunks": {
            "file": chunks.file.astype("<u4").tobytes(),
            "offset": chunks.offset.astype("<u8").tobytes(),
            "stored": chunks.stored.astype("<u4").tobytes(),
            "raw": chunks.raw.astype("<u4").tobytes(),
            "codec": chunks.codec.astype("u1").tobytes(),
            "check": chunks.check,
            "digest": chunks.digest,
            "identity": chunks.identity,
        },
        "files": [THIS_FILE, *([file.name, file.nbytes, file.root] for file in files)],
    }
    return msgpack.packb(document, use_bin_type=True)
