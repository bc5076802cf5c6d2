"""Checkpoint files as parts: taken apart, changed, and put together again with every digest right.

What follows from other parts (offsets of the footer, lengths, digests) is worked out when a file is put together,
unless it was set to something else. This shares no code with the library.
"""

import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import msgpack
import xxhash

from spec.corpus.frames import zstd_frame
from spec.reference import reader

__all__ = [
    "COLUMNS",
    "FILL",
    "MAGIC",
    "PLANES",
    "RAW",
    "ZSTD",
    "Chunk",
    "File",
    "Row",
    "align",
    "blank",
    "changed",
    "check_of",
    "digest_of",
    "of_arrays",
    "of_nodes",
    "pack_index",
    "padded",
    "place_chunks",
    "take_apart",
]

MAGIC = b"\x89PTCK\r\n\x1a"
RAW, FILL, ZSTD, PLANES = range(4)
# The struct code of the entries of each column.
COLUMNS = {
    "nodes": {"kinds": "B", "counts": "Q", "ints": "q", "floats": "d", "objects": "I", "arrays": "I"},
    "arrays": {
        "dtype": "I",
        "rank": "B",
        "shape": "Q",
        "layout": "B",
        "axes": "B",
        "cut_counts": "I",
        "cuts": "Q",
        "chunk_counts": "I",
        "pools": "I",
    },
    "chunks": {
        "file": "I",
        "offset": "Q",
        "stored": "I",
        "raw": "I",
        "codec": "B",
        "check": "8s",
        "digest": "16s",
        "identity": "32s",
    },
}

Document = dict[str, Any]  # the index, its columns as lists


def align(nbytes: int) -> int:
    """The smallest multiple of 64 that is not below."""
    return -(-nbytes // 64) * 64


def padded(data: bytes) -> bytes:
    """The data and the zeros after it."""
    return data + bytes(align(len(data)) - len(data))


def digest_of(data: bytes) -> bytes:
    """XXH3-128."""
    return xxhash.xxh3_128_digest(data)


def check_of(data: bytes) -> bytes:
    """XXH3-64."""
    return xxhash.xxh3_64_digest(data)


@dataclass
class File:
    """The parts of a file. `footer` holds the fields that are not to be what follows from the other parts."""

    index: Document
    body: bytes = b""
    preamble: bytearray = field(default_factory=lambda: bytearray(MAGIC + struct.pack("<IIQ", 1, 0, 0) + bytes(40)))
    codec: int = RAW
    raw: bytes | None = None
    stored: bytes | None = None
    padding: bytes | None = None
    footer: dict[str, Any] = field(default_factory=dict)
    end: bytes = MAGIC[::-1]

    def encode(self) -> bytes:
        """The bytes of the file."""
        raw = pack_index(self.index) if self.raw is None else self.raw
        stored = (zstd_frame(raw) if self.codec == ZSTD else raw) if self.stored is None else self.stored
        padding = padded(stored)[len(stored) :] if self.padding is None else self.padding
        fields: dict[str, Any] = {
            "offset": 64 + len(self.body),
            "stored_nbytes": len(stored),
            "raw_nbytes": len(raw),
            "codec": self.codec,
            "zeros": bytes(7),
            "digest": digest_of(stored),
            "root": hashlib.sha256(raw).digest(),
            "more_zeros": bytes(24),
            "length": 64 + len(self.body) + len(stored) + len(padding) + 128,
        } | self.footer
        check = fields.pop("check", None)
        footer = struct.pack("<QQQB7s16s32s24sQ", *fields.values())
        check = check_of(bytes(self.preamble) + footer) if check is None else check
        return bytes(self.preamble) + self.body + stored + padding + footer + check + self.end


def pack_index(index: Document) -> bytes:
    """The raw index; columns that are bytes already stay as they are."""
    document = {
        name: {key: pack_column(value, COLUMNS[name].get(key)) for key, value in section.items()}
        if name in COLUMNS and isinstance(section, dict)
        else section
        for name, section in index.items()
    }
    packed: bytes = msgpack.packb(document)
    return packed


def pack_column(value: Any, code: str | None) -> Any:
    """A column as a bin."""
    return b"".join(struct.pack(f"<{code}", entry) for entry in value) if code and isinstance(value, list) else value


def take_apart(data: bytes) -> File:
    """The parts of a valid file, with its index stored raw."""
    raw, offset, _ = reader.read_frame(memoryview(data))
    index = msgpack.unpackb(raw)
    for name, codes in COLUMNS.items():
        for key, code in codes.items():
            index[name][key] = [entry for (entry,) in struct.iter_unpack(f"<{code}", index[name][key])]
    return File(index, data[64:offset])


def blank() -> File:
    """A file of the tree None, without metadata."""
    return File(
        {
            "nodes": {"kinds": [0, 0], "counts": [], "ints": [], "floats": [], "strings": [], "bytes": []}
            | {"objects": [], "arrays": []},
            "types": [],
            "dtypes": [],
            "arrays": {name: [] for name in COLUMNS["arrays"]},
            "inline": b"",
            "chunks": {name: [] for name in COLUMNS["chunks"]},
            "files": [["", 0, b""]],
        }
    )


def of_nodes(kinds: Sequence[int], *, types: Sequence[Any] = (), **columns: Sequence[Any]) -> File:
    """A file with this node stream, of metadata and tree."""
    file = blank()
    file.index["nodes"] |= {"kinds": list(kinds)} | {name: list(column) for name, column in columns.items()}
    file.index["types"] = list(types)
    return file


@dataclass(frozen=True)
class Chunk:
    """The stored bytes of a chunk, and what they stand for."""

    stored: bytes
    raw: bytes
    codec: int = RAW


@dataclass(frozen=True)
class Row:
    """An array: the bytes of an inline one, or the chunks of each box, or, of a pooled one, neither."""

    dtype: Any
    shape: Sequence[int]
    inline: bytes | None
    boxes: Sequence[Sequence[Chunk]] = ()
    axes: Sequence[int] | None = None
    cuts: Sequence[Sequence[int]] | None = None
    pooled: bool = False


def of_arrays(*rows: Row, pools: Sequence[Sequence[Chunk]] = ()) -> File:
    """A file whose tree is a list of these arrays, and the chunks of each pool of them."""
    file = of_nodes([0, 16, *[10] * len(rows)], counts=[len(rows)], arrays=range(len(rows)))
    index = file.index
    for row in rows:
        if row.dtype not in index["dtypes"]:
            index["dtypes"].append(row.dtype)
    with_cuts = [row.cuts for row in rows if row.cuts is not None]
    index["arrays"] = {
        "dtype": [index["dtypes"].index(row.dtype) for row in rows],
        "rank": [len(row.shape) for row in rows],
        "shape": [extent for row in rows for extent in row.shape],
        "layout": [
            (8 if row.pooled else row.inline is None) + 2 * (row.axes is not None) + 4 * (row.cuts is not None)
            for row in rows
        ],
        "axes": [axis for row in rows for axis in row.axes or ()],
        "cut_counts": [len(axis) for cuts in with_cuts for axis in cuts],
        "cuts": [cut for cuts in with_cuts for axis in cuts for cut in axis],
        "chunk_counts": [len(box) for row in rows for box in row.boxes],
        "pools": [len(chunks) for chunks in pools],
    }
    index["inline"] = b"".join(row.inline or b"" for row in rows)
    place_chunks(file, [chunk for row in rows for box in row.boxes for chunk in box] + [*chain.from_iterable(pools)])
    return file


def place_chunks(file: File, chunks: Sequence[Chunk]) -> None:
    """Set the chunk table and the bytes of the chunks, one after the other."""
    body, table = b"", file.index["chunks"]
    for name in table:
        table[name] = []
    for chunk in chunks:
        digest = digest_of(chunk.raw)
        table["file"].append(0)
        table["offset"].append(64 + len(body))
        table["stored"].append(len(chunk.stored))
        table["raw"].append(len(chunk.raw))
        table["codec"].append(chunk.codec)
        table["check"].append(digest[:8] if chunk.codec == RAW else check_of(chunk.stored))
        table["digest"].append(digest)
        body += padded(chunk.stored)
    file.body = body


Change = Any | Callable[[Any], Any]


def changed(file: File, changes: Mapping[str, Change]) -> bytes:
    """The bytes of a copy of the file after changes: a path into its parts, and the new value or a function of the old.

    `arrays/rank/0` leads into the index; `preamble/8`, `footer/length`, `body`, `raw` … are parts of the file.
    """
    file = deepcopy(file)
    for path, change in changes.items():
        *way, last = path.split("/")
        target: Any = vars(file) if path.split("/")[0] in vars(file) else file.index
        for step in way:
            target = target[step if isinstance(target, dict) else int(step)]
        key = last if isinstance(target, dict) else int(last)
        target[key] = change(target[key]) if callable(change) else change
    return file.encode()
