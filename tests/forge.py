"""Files made by hand, with every digest right, so that the checks behind the digests are reached.

This shares no code with the package: what is written here follows spec/format-v1.md.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack
import xxhash
import zstandard

MAGIC = b"\x89PTCK\r\n\x1a"
PREAMBLE = MAGIC + struct.pack("<IIQ", 1, 0, 0) + bytes(40)

NONE, FALSE, TRUE, ELLIPSIS, INT, BIGINT, FLOAT, COMPLEX, STR, BYTES, ARRAY, SCALAR = range(12)
LIST, TUPLE, DICT, SET, FROZENSET, OBJECT = range(16, 22)
WRAPPER, RECORD, NAMEDTUPLE, DATACLASS, ENUM, PYTREE = range(6)


def align(nbytes: int) -> int:
    return -(-nbytes // 64) * 64


def padded(data: bytes) -> bytes:
    return data + bytes(align(len(data)) - len(data))


def frame(raw_index: bytes, body: bytes = b"", *, preamble: bytes = PREAMBLE, **changes: Any) -> bytes:
    """A file with this raw index and these bytes between the preamble and the index.

    `changes` are fields of the footer, or `stored` for the stored form of the index; the digests follow.
    """
    codec = changes.get("codec", 0)
    compressed = zstandard.ZstdCompressor().compress(raw_index) if codec == 2 else raw_index
    stored: bytes = changes.get("stored", compressed)
    offset = changes.get("offset", 64 + len(body))
    length = changes.get("length", 64 + len(body) + align(len(stored)) + 128)
    footer = struct.pack(
        "<QQQB7s16s32s24sQ",
        offset,
        changes.get("stored_nbytes", len(stored)),
        changes.get("raw_nbytes", len(raw_index)),
        codec,
        changes.get("zero_1", bytes(7)),
        changes.get("digest", xxhash.xxh3_128_digest(stored)),
        changes.get("root", hashlib.sha256(raw_index).digest()),
        changes.get("zero_2", bytes(24)),
        length,
    )
    check: bytes = changes.get("check", xxhash.xxh3_64_digest(preamble + footer))
    gap: bytes = changes.get("gap", bytes(align(len(stored)) - len(stored)))
    return preamble + body + stored + gap + footer + check + changes.get("end", MAGIC[::-1])


def take_frame(file: bytes) -> tuple[dict[str, Any], bytes]:
    """The index of a valid file as a document, and the bytes of its chunks."""
    offset, stored_nbytes, raw_nbytes, codec = struct.unpack_from("<QQQB", file, len(file) - 128)
    raw = file[offset : offset + stored_nbytes]
    if codec == 2:
        raw = zstandard.ZstdDecompressor().decompress(raw, max_output_size=raw_nbytes)
    return msgpack.unpackb(raw, strict_map_key=False), file[64:offset]


def forge(document: Any, body: bytes = b"", *, codec: int = 0, preamble: bytes = PREAMBLE) -> bytes:
    """A file around any document as its index."""
    return frame(msgpack.packb(document), body, codec=codec, preamble=preamble)


def pack(format_: str, values: Sequence[Any]) -> bytes:
    """A column: `pack("I", …)` packs u32s."""
    return struct.pack(f"<{len(values)}{format_}", *values)


@dataclass
class Tree:
    """A tree as it stands in the node stream, whether or not it makes sense: a kind, a payload, and children.

    The payload is the value of a leaf; bytes of a bigint; the count of a container if it should not be that of its
    children (for a dict: half of them); and `(class kind, name, fields)` of an object.
    """

    kind: int
    payload: Any = None
    children: list["Tree"] = field(default_factory=list)


def leaf(value: Any) -> Tree:
    """The node of a plain Python value."""
    if value is None or value is ... or isinstance(value, bool):
        return Tree({None: NONE, False: FALSE, True: TRUE, ...: ELLIPSIS}[value])
    kinds = {int: INT, float: FLOAT, complex: COMPLEX, str: STR, bytes: BYTES}
    return Tree(kinds[type(value)], value)


def node(value: Any) -> Tree:
    """The nodes of a tree of plain values, lists, tuples and dicts; a `Tree` stays as it is."""
    match value:
        case Tree():
            return value
        case list():
            return Tree(LIST, None, [node(item) for item in value])
        case tuple():
            return Tree(TUPLE, None, [node(item) for item in value])
        case dict():
            return Tree(DICT, None, [node(key) for key in value] + [node(item) for item in value.values()])
    return leaf(value)


def record(name: str, fields: dict[str, Any], class_kind: int = RECORD) -> Tree:
    """The node of an object."""
    return Tree(OBJECT, (class_kind, name, tuple(fields)), [node(item) for item in fields.values()])


@dataclass
class ArrayRow:
    """An array of the array table: the bytes of an inline one, or `(stored, raw, codec)` for each chunk of each box."""

    dtype: Any = "uint8"
    shape: Sequence[int] = ()
    inline: bytes | None = b"\0"
    boxes: Sequence[Sequence[tuple[bytes, bytes, int]]] = ()
    axes: Sequence[int] | None = None
    cuts: Sequence[Sequence[int]] | None = None


def document_of(tree: Any, arrays: Sequence[ArrayRow] = (), *, metadata: Any = None) -> tuple[dict[str, Any], bytes]:
    """The index and the chunks of a file with this tree; the payload of an array or scalar node is its number."""
    kinds = bytearray()
    columns: dict[str, list[Any]] = {name: [] for name in ("counts", "ints", "floats", "objects", "arrays")}
    strings: list[str] = []
    blobs: list[bytes] = []
    types: dict[tuple[Any, ...], int] = {}
    pending = [node(tree), node(metadata)]
    while pending:
        item = pending.pop()
        kinds.append(item.kind)
        match item.kind:
            case 4:
                columns["ints"].append(item.payload)
            case 6:
                columns["floats"].append(item.payload)
            case 7:
                columns["floats"] += [item.payload.real, item.payload.imag]
            case 8:
                strings.append(item.payload)
            case 5 | 9:
                blobs.append(item.payload)
            case 10 | 11:
                columns["arrays"].append(item.payload)
            case 16 | 17 | 18 | 19 | 20:
                n_children = len(item.children) // (2 if item.kind == DICT else 1)
                columns["counts"].append(n_children if item.payload is None else item.payload)
            case 21:
                columns["objects"].append(types.setdefault(item.payload, len(types)))
        pending.extend(reversed(item.children))
    dtypes: list[Any] = []
    for row in arrays:
        if row.dtype not in dtypes:
            dtypes.append(row.dtype)
    chunks, body = _chunk_table([chunk for row in arrays for box in row.boxes for chunk in box])
    return {
        "nodes": {
            "kinds": bytes(kinds),
            "counts": pack("Q", columns["counts"]),
            "ints": pack("q", columns["ints"]),
            "floats": pack("d", columns["floats"]),
            "strings": strings,
            "bytes": blobs,
            "objects": pack("I", columns["objects"]),
            "arrays": pack("I", columns["arrays"]),
        },
        "types": [[class_kind, name, list(fields)] for class_kind, name, fields in types],
        "dtypes": dtypes,
        "arrays": {
            "dtype": pack("I", [dtypes.index(row.dtype) for row in arrays]),
            "rank": bytes(len(row.shape) for row in arrays),
            "shape": pack("Q", [extent for row in arrays for extent in row.shape]),
            "layout": bytes(
                (row.inline is None) + 2 * (row.axes is not None) + 4 * (row.cuts is not None) for row in arrays
            ),
            "axes": bytes(axis for row in arrays for axis in row.axes or ()),
            "cut_counts": pack("I", [len(axis) for row in arrays for axis in row.cuts or ()]),
            "cuts": pack("Q", [cut for row in arrays for axis in row.cuts or () for cut in axis]),
            "chunk_counts": pack("I", [len(box) for row in arrays for box in row.boxes]),
            "pools": b"",
        },
        "inline": b"".join(row.inline or b"" for row in arrays),
        "chunks": chunks,
        "files": [["", 0, b""]],
    }, body


def _chunk_table(chunks: Sequence[tuple[bytes, bytes, int]]) -> tuple[dict[str, bytes], bytes]:
    body = bytearray()
    offsets = []
    for stored, _, _ in chunks:
        offsets.append(64 + len(body))
        body += padded(stored)
    digests = [xxhash.xxh3_128_digest(raw) for _, raw, _ in chunks]
    checks = [
        digest[:8] if codec == 0 else xxhash.xxh3_64_digest(stored)
        for (stored, _, codec), digest in zip(chunks, digests, strict=True)
    ]
    return {
        "file": pack("I", [0] * len(chunks)),
        "offset": pack("Q", offsets),
        "stored": pack("I", [len(stored) for stored, _, _ in chunks]),
        "raw": pack("I", [len(raw) for _, raw, _ in chunks]),
        "codec": bytes(codec for _, _, codec in chunks),
        "check": b"".join(checks),
        "digest": b"".join(digests),
        "identity": b"",
    }, bytes(body)


def file_of(tree: Any, arrays: Sequence[ArrayRow] = (), *, metadata: Any = None) -> bytes:
    """A file with this tree, whether or not it makes sense."""
    return forge(*document_of(tree, arrays, metadata=metadata))


def zstd_frame(raw: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(raw)
