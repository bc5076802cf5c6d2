"""The reference reader of the pytreeckpt format, version 1, from format-v1.md and registries.md alone.

It shares no code with the library, so that two implementations of one text check each other. It reads a
whole file and checks every rule in the order of section 9: frame, index, tables, nodes, ranges, chunks.
`read` makes Python values of it, the command line prints the neutral form that vectors/README.md defines.

    python reader.py FILE
"""

import hashlib
import json
import math
import struct
import sys
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, pairwise, product
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import ml_dtypes
import numpy as np
import numpy.typing as npt
import xxhash
import zstandard

__all__ = ["LIMITS", "Limits", "Record", "Refused", "main", "read"]

LIMIT = "limit"  # instead of a rule: the file may be right, but goes beyond what this reader does

T = TypeVar("T")
Column = npt.NDArray[Any]
Dtype = str | tuple[Any, ...]  # as in the dtype table, with tuples for its arrays


class Refused(Exception):  # noqa: N818  # a verdict on the file, not an error of the reader
    """The file breaks a rule, or goes beyond a limit of this reader."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(f"{rule}: {message}")
        self.rule = rule


def require(condition: object, rule: str, message: str) -> None:
    if not condition:
        raise Refused(rule, message)


@dataclass(frozen=True)
class Limits:
    """What this reader is willing to do for one file."""

    index_nbytes: int = 256 << 20
    entries: int = 1 << 25  # of the node stream, and of any msgpack array
    depth: int = 10_000
    chunk_nbytes: int = 256 << 20
    # Rows that share their bytes let a small file declare petabytes: a bound for each chunk is not enough.
    arrays_nbytes: int = 16 << 30
    # What numpy can hold: the bytes of an item, the axes of a sub-array.
    itemsize: int = 2**31 - 1
    rank: int = 64


LIMITS = Limits()


# Section 2: the file.

MAGIC = b"\x89PTCK\r\n\x1a"
RAW, FILL, ZSTD = 0, 1, 2


def align(nbytes: int) -> int:
    return -(-nbytes // 64) * 64


def read_frame(data: memoryview, limits: Limits) -> tuple[bytes, int]:
    """Return the raw index and its offset."""
    length, preamble, footer = len(data), bytes(data[:64]), bytes(data[-128:])
    require(preamble[:8] == MAGIC, "F-1", "not a pytreeckpt file")
    require(length >= 24, "F-4", f"{length} bytes are too few for a file")
    version, zero, features = struct.unpack_from("<IIQ", preamble, 8)
    require(version == 1, "F-2", f"format version {version} is unknown; the file is not damaged")
    require(features == 0, "F-3", f"required features {features:#x} are unknown; the file is not damaged")
    require(length >= 192, "F-4", f"{length} bytes are too few for a file")
    require(footer[120:] == MAGIC[::-1], "F-5", "no end magic: the file is torn")
    check = xxhash.xxh3_64_digest(preamble + footer[:112])
    require(check == footer[112:120], "F-6", "footer: wrong XXH3-64")
    offset, stored_nbytes, raw_nbytes, codec = struct.unpack_from("<QQQB", footer)
    (declared,) = struct.unpack_from("<Q", footer, 104)
    require(declared == length, "F-7", f"the footer says {declared} bytes, the file has {length}")
    reserved = preamble[24:] + footer[25:32] + footer[80:104]
    require(zero == 0 and not any(reserved), "F-8", "reserved bytes of preamble or footer are not zero")
    fits = offset % 64 == 0 and offset >= 64 and offset + align(stored_nbytes) + 128 == length
    require(fits and stored_nbytes >= 1, "F-9", f"{stored_nbytes} bytes of index do not fit at {offset}")
    known = codec == ZSTD or (codec == RAW and stored_nbytes == raw_nbytes)
    require(known, "F-10", f"index: codec {codec}, {stored_nbytes} bytes stored, {raw_nbytes} raw")
    require(raw_nbytes <= limits.index_nbytes, LIMIT, f"index of {raw_nbytes} bytes")
    end = offset + stored_nbytes
    stored = data[offset:end]
    require(xxhash.xxh3_128_digest(stored) == footer[32:48], "F-11", f"index at {offset}: wrong XXH3-128")
    require(not any(data[end:-128]), "F-12", f"bytes after the index at {end} are not zero")
    # F-13 cannot be broken alone: F-10 has settled it for a raw index, Z-2 and Z-5 do for zstd.
    raw = bytes(stored) if codec == RAW else read_zstd(stored, raw_nbytes, "index")
    require(hashlib.sha256(raw).digest() == footer[48:80], "F-14", "index: its SHA-256 is not the root")
    return raw, offset


def read_zstd(stored: memoryview, nbytes: int, where: str) -> bytes:
    """Decode one frame; the caller has bounded nbytes."""
    require(bytes(stored[:4]) == b"\x28\xb5\x2f\xfd", "Z-1", f"{where}: no zstd frame magic")
    try:
        frame = zstandard.get_frame_parameters(stored)
        # A size that is not declared is given as 2**64 - 1, which no raw length is.
        require(frame.content_size == nbytes, "Z-2", f"{where}: size {frame.content_size}, not {nbytes}")
        require(frame.dict_id == 0, "Z-3", f"{where}: names dictionary {frame.dict_id}")
        require(frame.window_size <= 8 << 20, "Z-4", f"{where}: window of {frame.window_size} bytes")
        raw = zstandard.ZstdDecompressor().decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Refused("Z-5", f"{where}: {error}") from None
    require(len(raw) == nbytes, "Z-5", f"{where}: decodes to {len(raw)} bytes, not {nbytes}")
    return raw


# Section 3: the index.

# First byte: type, width of the number that follows, the least number that needs this encoding (I-1).
UNSIGNED = {
    0xC4: ("bin", 1, 0), 0xC5: ("bin", 2, 1 << 8), 0xC6: ("bin", 4, 1 << 16),
    0xCC: ("int", 1, 1 << 7), 0xCD: ("int", 2, 1 << 8), 0xCE: ("int", 4, 1 << 16), 0xCF: ("int", 8, 1 << 32),
    0xD9: ("str", 1, 1 << 5), 0xDA: ("str", 2, 1 << 8), 0xDB: ("str", 4, 1 << 16),
    0xDC: ("array", 2, 1 << 4), 0xDD: ("array", 4, 1 << 16),
    0xDE: ("map", 2, 1 << 4), 0xDF: ("map", 4, 1 << 16),
}  # fmt: skip
# First byte: width, the greatest negative integer that needs this encoding.
SIGNED = {0xD0: (1, -33), 0xD1: (2, -129), 0xD2: (4, -(1 << 15) - 1), 0xD3: (8, -(1 << 31) - 1)}
CONSTANTS = {0xC0: ("nil", 0), 0xC2: ("bool", 0), 0xC3: ("bool", 1)}


class Cursor:
    """Takes from msgpack the values that the caller expects, so that nothing else is ever allocated."""

    def __init__(self, raw: bytes, limits: Limits) -> None:
        self.raw, self.at, self.limits = raw, 0, limits

    def take(self, nbytes: int) -> bytes:
        require(nbytes <= len(self.raw) - self.at, "I-1", f"index: ends within the value at {self.at}")
        self.at += nbytes
        return self.raw[self.at - nbytes : self.at]

    def head(self) -> tuple[str, int]:
        """The type of the next value; its number, or how many bytes or entries follow."""
        start, first = self.at, self.take(1)[0]
        if first < 0x80 or first >= 0xE0:
            return "int", first if first < 0x80 else first - 256
        if first < 0xC0:
            return ("str", first & 31) if first >= 0xA0 else (("map", "array")[first >> 4 & 1], first & 15)
        if first in UNSIGNED:
            name, width, least = UNSIGNED[first]
            number = int.from_bytes(self.take(width), "big")
            require(number >= least, "I-1", f"index: {name} at {start} is not in its shortest encoding")
            return name, number
        if first in SIGNED:
            width, greatest = SIGNED[first]
            number = int.from_bytes(self.take(width), "big", signed=True)
            require(number <= greatest, "I-1", f"index: int at {start} is not in its shortest encoding")
            return "int", number
        require(first != 0xC1, "I-1", f"index: byte C1 at {start} is not msgpack")
        return CONSTANTS.get(first, ("float or extension", 0))

    def number(self, name: str, rule: str = "I-2") -> int:
        start, (found, number) = self.at, self.head()
        require(found == name, rule, f"index: {found} instead of {name} at {start}")
        return number

    def integer(self, rule: str = "I-2") -> int:
        return self.number("int", rule)

    def binary(self) -> bytes:
        return self.take(self.number("bin"))

    def string(self, rule: str = "I-2") -> str:
        return self.text(self.number("str", rule))

    def text(self, nbytes: int) -> str:
        start = self.at
        try:
            return self.take(nbytes).decode()
        except UnicodeDecodeError:
            raise Refused("I-4", f"index: str at {start} is not UTF-8") from None

    def array(self, entry: "Callable[[Cursor], T]", rule: str = "I-2") -> list[T]:
        start, number = self.at, self.number("array", rule)
        require(number <= self.limits.entries, LIMIT, f"index: array of {number} entries at {start}")
        return [entry(self) for _ in range(number)]

    def map(self, entries: "Schema") -> dict[str, Any]:
        """A map with exactly these keys in this order."""
        start, number, values = self.at, self.number("map"), {}
        require(number == len(entries), "I-2", f"index: map of {number} keys at {start}")
        for name, entry in entries.items():
            start, key = self.at, self.string()
            require(key == name, "I-2", f"index: key {key!r} at {start}, where {name!r} belongs")
            values[name] = entry(self)
        return values

    def row(self, length: int, rule: str = "I-2") -> None:
        start, number = self.at, self.number("array", rule)
        require(number == length, rule, f"index: array of {number} instead of {length} entries at {start}")


def column(dtype: str) -> Callable[[Cursor], Column]:
    width = np.dtype(dtype).itemsize

    def read_column(cursor: Cursor) -> Column:
        start, packed = cursor.at, cursor.binary()
        require(len(packed) % width == 0, "I-3", f"index: column at {start} is not in units of {width} bytes")
        return np.ndarray(len(packed) // width, dtype, packed)

    return read_column


class Type(NamedTuple):
    class_kind: int
    name: str
    fields: tuple[str, ...]


def read_type(cursor: Cursor) -> Type:
    cursor.row(3)
    return Type(cursor.integer(), cursor.string(), tuple(cursor.array(Cursor.string)))


def read_file_entry(cursor: Cursor) -> tuple[str, int, bytes]:
    cursor.row(3)
    return cursor.string(), cursor.integer(), cursor.binary()


Schema = dict[str, Callable[[Cursor], Any]]
U8, U32, U64 = column("u1"), column("<u4"), column("<u8")
NODES: Schema = {
    "kinds": U8,
    "counts": U64,
    "ints": column("<i8"),
    "floats": column("<f8"),
    "strings": lambda cursor: cursor.array(Cursor.string),
    "bytes": lambda cursor: cursor.array(Cursor.binary),
    "objects": U32,
    "arrays": U32,
}
ARRAYS: Schema = {
    "dtype": U32,
    "rank": U8,
    "shape": U64,
    "layout": U8,
    "axes": U8,
    "cut_counts": U32,
    "cuts": U64,
    "chunk_counts": U32,
}
CHUNKS: Schema = {
    "file": U32,
    "offset": U64,
    "stored": U32,
    "raw": U32,
    "codec": U8,
    "check": column("V8"),
    "digest": column("V16"),
}
INDEX: Schema = {
    "nodes": lambda cursor: cursor.map(NODES),
    "types": lambda cursor: cursor.array(read_type),
    "dtypes": lambda cursor: cursor.array(read_dtype),
    "arrays": lambda cursor: cursor.map(ARRAYS),
    "inline": Cursor.binary,
    "chunks": lambda cursor: cursor.map(CHUNKS),
    "files": lambda cursor: cursor.array(read_file_entry),
}


def read_index(raw: bytes, limits: Limits) -> dict[str, Any]:
    cursor = Cursor(raw, limits)
    index = cursor.map(INDEX)
    require(cursor.at == len(raw), "I-1", f"index: {len(raw) - cursor.at} bytes after the map")
    for table, names in (("arrays", ["dtype", "rank", "layout"]), ("chunks", list(CHUNKS))):
        lengths = {len(index[table][name]) for name in names}
        require(len(lengths) == 1, "I-3", f"{table}: parallel columns of unequal lengths {sorted(lengths)}")
    return index


# Section 6: dtypes.

ENDIAN = (
    dict.fromkeys(("int16", "uint16", "float16"), 2)
    | dict.fromkeys(("int32", "uint32", "float32"), 4)
    | dict.fromkeys(("int64", "uint64", "float64", "complex64"), 8)
    | {"complex128": 16}
)
EXTENDED = {"float80_x87": 16, "complex160_x87": 32, "float128": 16, "complex256": 32}
ONE_BYTE = """
    float8_e3m4 float8_e4m3 float8_e4m3b11fnuz float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz
    float8_e8m0fnu float6_e2m3fn float6_e3m2fn float4_e2m1fn int1 uint1 int2 uint2 int4 uint4
"""
ML_DTYPES = dict.fromkeys(ONE_BYTE.split(), 1) | {"bfloat16": 2, "complex32": 4, "bcomplex32": 4}
BIG_ENDIAN = {f"{name}_be": size for name, size in ENDIAN.items()}
SIMPLE = {"bool": 1, "int8": 1, "uint8": 1} | ENDIAN | BIG_ENDIAN | EXTENDED | ML_DTYPES
SIZED = {"bytes": 1, "str": 4, "str_be": 4, "void": 1}
TIMES = {"datetime64", "datetime64_be", "timedelta64", "timedelta64_be"}
UNITS = {"Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as", "generic"}


def read_dtype(cursor: Cursor, depth: int = 1) -> Dtype:
    where = f"dtype at {cursor.at} of the index"
    found, number = cursor.head()
    if found == "str":
        name = cursor.text(number)
        require(name in SIMPLE, "D-1", f"{where}: {name!r} is unknown")
        return name
    require(found == "array" and number >= 1, "D-1", f"{where}: neither a str nor an array")
    tag = cursor.string("D-1")
    if tag in SIZED and number == 2:
        length = cursor.integer("D-1")
        require(length >= 0, "D-1", f"{where}: length {length}")
        require(length * SIZED[tag] <= cursor.limits.itemsize, LIMIT, f"{where}: {tag} of length {length}")
        return tag, length
    if tag in TIMES and number == 3:
        unit, multiple = cursor.string("D-1"), cursor.integer("D-1")
        known = unit in UNITS and 1 <= multiple < (2 if unit == "generic" else 2**31)
        require(known, "D-1", f"{where}: unit of {multiple} {unit!r}")
        return tag, unit, multiple
    require(tag == "struct" and number == 4, "D-1", f"{where}: {tag!r} of {number} entries is unknown")
    require(depth <= 32, "D-1", f"{where}: structs nest more than 32 deep")
    size, aligned = cursor.integer("D-1"), bool(cursor.number("bool", "D-1"))
    require(0 <= size < 2**31, "D-2", f"{where}: itemsize {size}")
    fields = tuple(cursor.array(lambda cursor: read_field(cursor, size, depth + 1), "D-1"))
    names = [name for field in fields for name in field[:2] if name is not None]
    require(len(set(names)) == len(names), "D-2", f"{where}: names and titles are not distinct")
    return tag, size, aligned, fields


def read_field(cursor: Cursor, size: int, depth: int) -> tuple[Any, ...]:
    where = f"field at {cursor.at} of the index"
    cursor.row(5, "D-1")
    name, (found, number) = cursor.string("D-1"), cursor.head()
    require(found in ("str", "nil"), "D-1", f"{where}: its title is neither a str nor nil")
    title = cursor.text(number) if found == "str" else None
    dtype, offset = read_dtype(cursor, depth), cursor.integer("D-1")
    extents = tuple(cursor.array(lambda cursor: cursor.integer("D-1"), "D-1"))
    require(all(0 <= extent < 2**31 for extent in extents), "D-2", f"{where}: an extent is out of range")
    require(len(extents) <= cursor.limits.rank, LIMIT, f"{where}: sub-array of {len(extents)} axes")
    end = offset + itemsize(dtype) * math.prod(extents)
    require(0 <= offset <= end <= size, "D-2", f"{where}: bytes {offset} to {end} of an item of {size}")
    return name, title, dtype, offset, extents


def itemsize(dtype: Dtype) -> int:
    if isinstance(dtype, str):
        return SIMPLE[dtype]
    tag, size = dtype[0], dtype[1]
    return 8 if tag in TIMES else int(size) * SIZED.get(tag, 1)


# Sections 5 and 7: types and arrays.

# Class kind, names, fields; no fields here means any.
REGISTERED = """
    0 python.OrderedDict,python.defaultdict,python.Counter items
    0 python.deque items,maxlen
    0 python.bytearray value
    0 python.Path text,flavour
    1 python.range,python.slice start,stop,step
    1 python.Namespace,python.SimpleNamespace
    0 numpy.ObjectArray values,shape
    0 numpy.StringArray values,shape,coerce,missing
    1 numpy.dtype descriptor
    0 torch.Tensor,torch.nn.Parameter,torch.nn.Buffer data,requires_grad
    0 torch.PackedTensor data,dtype,shape,requires_grad,parameter
    1 torch.SparseTensor values,indices,layout,shape,coalesced,requires_grad
    0 torch.Size shape
    1 torch.dtype,torch.layout,torch.memory_format name
    1 torch.device type,index
    0 jax.Array data,weak_type
    0 jax.PRNGKeyArray key_data,impl
"""
REGISTRY = {
    name: (int(words[0]), [tuple(fields.split(",")) for fields in words[2:]])
    for words in map(str.split, REGISTERED.strip().splitlines())
    for name in words[1].split(",")
}


def check_types(types: list[Type]) -> None:
    for number, (class_kind, name, fields) in enumerate(types):
        where = f"type {number} ({name!r})"
        require(0 <= class_kind <= 5, "T-1", f"{where}: class kind {class_kind} is unknown")
        require(name, "T-2", f"{where}: no name")
        require(len(set(fields)) == len(fields), "T-2", f"{where}: fields are not distinct")
        require(class_kind != 0 or fields, "T-2", f"{where}: a wrapper without fields")
        require(class_kind != 4 or fields == ("name", "value"), "T-2", f"{where}: an enum with fields {fields}")
        expected_kind, expected_fields = REGISTRY.get(name, (class_kind, []))
        right = class_kind == expected_kind and fields in (expected_fields or [fields])
        require(right, "T-4", f"{where}: class kind {class_kind} with fields {fields} is not the registered one")
    require(len(set(types)) == len(types), "T-3", "types: equal entries")


def check_first_use(uses: Column, entries: int, rule: str, table: str) -> None:
    """Each index is at most one more than the greatest before it, and every entry is used."""
    greatest = np.maximum.accumulate(np.concatenate(([-1], uses.astype(np.int64))))
    require((np.diff(greatest) <= 1).all(), rule, f"{table}: not in order of first use")
    require(greatest[-1] + 1 == entries, rule, f"{table}: {entries} entries, {greatest[-1] + 1} in use")


@dataclass(frozen=True)
class Array:
    dtype: Dtype
    shape: tuple[int, ...]
    axes: tuple[int, ...] | None
    stored_shape: tuple[int, ...]
    itemsize: int
    nbytes: int
    chunked: bool
    intervals: list[list[tuple[int, int]]]  # the pieces of each axis as stored; the boxes are their product
    chunk_counts: list[int]  # of each box


class Supply:
    """A column that is used up from its front."""

    def __init__(self, name: str, column: Column) -> None:
        self.name, self.column, self.at = name, column, 0

    def take(self, number: int) -> list[int]:
        require(number <= len(self.column) - self.at, "A-6", f"arrays: column {self.name} is too short")
        self.at += number
        taken: list[int] = self.column[self.at - number : self.at].tolist()
        return taken


def read_arrays(index: dict[str, Any], limits: Limits) -> list[Array]:
    dtypes, table = index["dtypes"], index["arrays"]
    require(len(set(dtypes)) == len(dtypes), "D-3", "dtypes: equal entries")
    check_first_use(table["dtype"], len(dtypes), "D-3", "dtypes")
    supplies = {name: Supply(name, table[name]) for name in table if name not in ("dtype", "rank", "layout")}
    rows = zip(table["dtype"].tolist(), table["rank"].tolist(), table["layout"].tolist(), strict=True)
    arrays = [
        read_array(f"array {number}", dtypes[dtype], rank, layout, supplies)
        for number, (dtype, rank, layout) in enumerate(rows)
    ]
    for supply in supplies.values():
        require(supply.at == len(supply.column), "A-6", f"arrays: column {supply.name} is too long")
    inline, found = sum(array.nbytes for array in arrays if not array.chunked), len(index["inline"])
    require(inline == found, "A-7", f"inline: {found} bytes, the arrays take {inline}")
    counts, rows_found = table["chunk_counts"], len(index["chunks"]["raw"])
    require((counts > 0).all(), "A-8", "arrays: a box has no chunk")
    declared = int(counts.sum(dtype=np.uint64))
    require(declared == rows_found, "A-8", f"chunks: {rows_found} rows, the arrays take {declared}")
    total = sum(array.nbytes for array in arrays)
    require(total <= limits.arrays_nbytes, LIMIT, f"arrays of {total} bytes together")
    return arrays


def read_array(where: str, dtype: Dtype, rank: int, layout: int, supplies: dict[str, Supply]) -> Array:
    require(rank <= 64 and layout < 8, "A-1", f"{where}: rank {rank}, layout {layout:#x}")
    chunked, has_axes, has_cuts = bool(layout & 1), bool(layout & 2), bool(layout & 4)
    shape = stored_shape = tuple(supplies["shape"].take(rank))
    axes, natural = tuple(supplies["axes"].take(rank)) if has_axes else None, tuple(range(rank))
    if axes is not None:
        require(axes != natural and tuple(sorted(axes)) == natural, "A-2", f"{where}: axes {axes}")
        stored_shape = tuple(shape[axis] for axis in axes)
    counts = supplies["cut_counts"].take(rank) if has_cuts else [0] * rank
    require(any(counts) if has_cuts else True, "A-3", f"{where}: has cuts, but none")
    require(chunked or not has_cuts, "A-3", f"{where}: inline, but has cuts")
    edges = [[0, *supplies["cuts"].take(count), extent] for count, extent in zip(counts, stored_shape, strict=True)]
    intervals = [list(pairwise(positions)) for positions in edges]
    ascending = all(low < high for axis in intervals if len(axis) > 1 for low, high in axis)
    require(ascending, "A-3", f"{where}: cuts are not ascending within the extents")
    items, size = math.prod(shape), itemsize(dtype)
    require(max(0, *shape, items, items * size) < 2**63, "A-4", f"{where}: {shape} items of {size} bytes")
    require(items * size or not (chunked or has_axes), "A-5", f"{where}: no bytes, but chunks or axes")
    chunk_counts = supplies["chunk_counts"].take(math.prod(map(len, intervals))) if chunked else []
    return Array(dtype, shape, axes, stored_shape, size, items * size, chunked, intervals, chunk_counts)


# Section 4: the node stream.

NONE, FALSE, TRUE, ELLIPSIS, INT, BIGINT, FLOAT, COMPLEX, STR, BYTES, ARRAY, SCALAR = range(12)
LIST, TUPLE, DICT, SET, FROZENSET, OBJECT = range(16, 22)
LEAVES = "none false true ellipsis int bigint float complex str bytes array scalar"
CONTAINERS = "list tuple dict set frozenset object"
NAMES = dict(enumerate(LEAVES.split())) | dict(enumerate(CONTAINERS.split(), LIST))
PLAIN = {NONE: None, FALSE: False, TRUE: True, ELLIPSIS: ...}
KEY, ELEMENT, NEITHER = 2, 1, 0
KEYS, ELEMENTS = {NONE, FALSE, TRUE, INT, BIGINT, FLOAT, STR, BYTES}, {ELLIPSIS, COMPLEX}
NOT_METADATA = [ELLIPSIS, COMPLEX, ARRAY, SCALAR, SET, FROZENSET, OBJECT]


class Node(NamedTuple):
    kind: int
    payload: Any  # of a leaf its Python value; of the others the index or count that its column holds
    children: int


def read_nodes(index: dict[str, Any], arrays: list[Array], limits: Limits) -> tuple[list[Node], int]:
    """Return the nodes, and how many of them are the metadata."""
    columns, types = index["nodes"], index["types"]
    kinds = columns["kinds"]
    require(len(kinds) <= limits.entries, LIMIT, f"{len(kinds)} nodes")
    tally = np.bincount(kinds, minlength=256).tolist()
    unknown = [kind for kind in range(256) if tally[kind] and kind not in NAMES]
    require(not unknown, "N-1", f"nodes: kinds {unknown} are unknown")
    taken = {
        "counts": sum(tally[LIST:OBJECT]),
        "ints": tally[INT],
        "floats": tally[FLOAT] + 2 * tally[COMPLEX],
        "strings": tally[STR],
        "bytes": tally[BYTES] + tally[BIGINT],
        "objects": tally[OBJECT],
        "arrays": tally[ARRAY] + tally[SCALAR],
    }
    for name, number in taken.items():
        held = len(columns[name])
        require(held == number, "N-3", f"nodes: {name} holds {held} entries, the nodes take {number}")
    check_first_use(columns["objects"], len(types), "N-9", "types")
    check_first_use(columns["arrays"], len(arrays), "N-10", "arrays")

    children = np.zeros(len(kinds), np.int64)
    require((columns["counts"] <= len(kinds)).all(), "N-2", "nodes: more children than nodes")
    children[(kinds >= LIST) & (kinds < OBJECT)] = columns["counts"]
    children[kinds == DICT] *= 2
    children[kinds == OBJECT] = np.array([len(entry.fields) for entry in types], np.int64)[columns["objects"]]
    # A tree lowers the sum of (children - 1) by one, and its last node is the first to do so.
    sums = np.cumsum(children - 1)
    ends = [np.flatnonzero(sums == low)[:1].tolist() for low in (-1, -2)]
    require(ends[1] == [len(kinds) - 1], "N-2", "nodes: not exactly two whole trees")

    supplies = {name: iter(columns[name] if name in ("strings", "bytes") else columns[name].tolist()) for name in taken}
    floats = supplies["floats"]
    payloads: dict[int, Callable[[], Any]] = {
        INT: supplies["ints"].__next__,
        BIGINT: lambda: bigint(next(supplies["bytes"])),
        FLOAT: floats.__next__,
        COMPLEX: lambda: complex(next(floats), next(floats)),
        STR: supplies["strings"].__next__,
        BYTES: supplies["bytes"].__next__,
        ARRAY: supplies["arrays"].__next__,
        SCALAR: supplies["arrays"].__next__,
        OBJECT: supplies["objects"].__next__,
    }
    payloads.update((kind, supplies["counts"].__next__) for kind in range(LIST, OBJECT))
    nodes = [
        Node(kind, PLAIN[kind] if kind in PLAIN else payloads[kind](), number)
        for kind, number in zip(kinds.tolist(), children.tolist(), strict=True)
    ]
    check_containers(nodes, limits)
    metadata_nodes: int = ends[0][0] + 1
    foreign = [NAMES[kind] for kind in NOT_METADATA if kind in kinds[:metadata_nodes]]
    require(not foreign, "N-7", f"metadata: holds {foreign}")
    check_scalars(nodes, arrays)
    return nodes, metadata_nodes


def bigint(encoded: bytes) -> int:
    # What needs nine bytes or more is outside the range of int, so that one condition serves for both.
    needed = len(encoded) >= 9 and (encoded[-1], encoded[-2] >> 7) not in ((0x00, 0), (0xFF, 1))
    require(needed, "N-4", f"nodes: bigint of {len(encoded)} bytes fits into fewer, or into an int")
    return int.from_bytes(encoded, "little", signed=True)


def leaf_payload(kind: int, value: Any) -> bytes:
    """The payload in the key string of a leaf."""
    if kind == INT:
        return struct.pack("<q", value)
    if kind == FLOAT:
        return struct.pack("<d", value)
    if kind == COMPLEX:
        return struct.pack("<dd", value.real, value.imag)
    if kind == BIGINT:
        width = (value if value >= 0 else ~value).bit_length() // 8 + 1
        return int(value).to_bytes(width, "little", signed=True)
    if kind == STR:
        return str(value).encode()
    return bytes(value) if kind == BYTES else b""


def check_containers(nodes: list[Node], limits: Limits) -> None:
    """Check dicts and sets, from the last node to the first, so that the stacks hold the children of each.

    The stacks are parallel, a first child lies on top. `text` holds the key strings of the elements on them,
    each backwards, so that appending a header puts it before the strings of the children. `marks` are the
    places in `text` between the nodes: the key string of a node is what lies between two of them.
    """
    values: list[object] = []  # of elements; Python's == is that of N-6
    grades: list[int] = []
    depths: list[int] = []
    marks, text = [0], bytearray()
    for position in range(len(nodes) - 1, -1, -1):
        kind, value, number = nodes[position]
        grade, depth, begin = NEITHER, 1, marks[-number - 1]
        if kind < LIST:
            grade = KEY if kind in KEYS else ELEMENT if kind in ELEMENTS else NEITHER
            text += leaf_payload(kind, value)[::-1] if grade else b""
        elif number:
            where = f"node {position} ({NAMES[kind]})"
            depth = 1 + max(depths[-number:])
            require(depth <= limits.depth, LIMIT, f"{where}: depth {depth}")
            if kind == DICT:
                keys = number // 2
                require(min(grades[-keys:]) == KEY, "N-5", f"{where}: holds what is no key")
                strings = {bytes(text[low:high]) for low, high in pairwise(marks[-keys - 1 :])}
                require(len(strings) == len(set(values[-keys:])) == keys, "N-6", f"{where}: holds equal keys")
            if kind in (SET, FROZENSET):
                require(min(grades[-number:]) >= ELEMENT, "N-5", f"{where}: holds what is no element")
                require(len(set(values[-number:])) == number, "N-6", f"{where}: holds equal elements")
                check_order(text, marks[-number - 1 :], where)
        if kind == TUPLE:
            grade = min(grades[-number:]) if number else KEY
            value = tuple(values[: -number - 1 : -1])
        if kind == FROZENSET:
            grade, value = ELEMENT, frozenset(values[: -number - 1 : -1])
        if grade:
            text += struct.pack("<BQ", kind, len(text) - begin)[::-1]
        else:
            del text[begin:]
        if number:
            del values[-number:], grades[-number:], depths[-number:], marks[-number:]
        values.append(value if grade else None)
        grades.append(grade)
        depths.append(depth)
        marks.append(len(text))


def check_order(text: bytearray, marks: list[int], where: str) -> None:
    spans = list(pairwise(marks))[::-1]
    for (low, high), (next_low, next_high) in pairwise(spans):
        # Copying only what both have keeps sets within sets from costing the square of their size.
        size, next_size = high - low, next_high - next_low
        common = min(size, next_size)
        this, following = text[high - common : high][::-1], text[next_high - common : next_high][::-1]
        require((this, size) != (following, next_size), "N-6", f"{where}: holds equal elements")
        require((this, size) < (following, next_size), "N-8", f"{where}: elements are not in order")


def check_scalars(nodes: list[Node], arrays: list[Array]) -> None:
    uses = Counter(node.payload for node in nodes if node.kind in (ARRAY, SCALAR))
    for number in {node.payload for node in nodes if node.kind == SCALAR}:
        plain = arrays[number].shape == () and not arrays[number].chunked
        require(plain, "N-11", f"array {number}: a scalar, but chunked or not of rank 0")
        require(uses[number] == 1, "N-11", f"array {number}: a scalar, but named by {uses[number]} nodes")


# Section 8: chunks.


class Chunk(NamedTuple):
    offset: int
    stored: int
    raw: int
    codec: int
    check: bytes
    digest: bytes


def read_chunk_table(index: dict[str, Any], arrays: list[Array], end: int, limits: Limits) -> list[Chunk]:
    """Return the rows; `end` is where the index begins."""
    files, columns = index["files"], index["chunks"]
    require(files == [("", 0, b"")], "C-1", f"files: {len(files)} entries, not just that of this file")
    require((columns["file"] == 0).all(), "C-1", "chunks: a row lies in another file")
    chunks = [Chunk(*row) for row in zip(*(columns[name].tolist() for name in Chunk._fields), strict=True)]
    rows = iter(enumerate(chunks))
    for number, array in enumerate(arrays):
        boxes = product(*array.intervals) if array.chunked else ()
        for box, count in zip(boxes, array.chunk_counts, strict=True):
            nbytes = array.itemsize * math.prod(high - low for low, high in box)
            for row, chunk in islice(rows, count):
                check_chunk(chunk, array.itemsize, f"array {number}, chunk {row}", limits)
                nbytes -= chunk.raw
            require(nbytes == 0, "C-3", f"array {number}: the chunks of box {box} miss it by {nbytes} bytes")
    firsts: dict[int, Chunk] = {}
    offset = 64
    for row, chunk in enumerate(chunks):
        first = firsts.setdefault(chunk.offset, chunk)
        require(first == chunk, "C-6", f"chunk {row}: differs from another at its offset")
        if first is chunk:
            require(chunk.offset == offset, "C-6", f"chunk {row}: at {chunk.offset}, not at {offset}")
            offset = align(offset + chunk.stored)
    require(offset == end, "C-6", f"the chunks end at {offset}, the index begins at {end}")
    return chunks


def check_chunk(chunk: Chunk, size: int, where: str, limits: Limits) -> None:
    _, stored, raw, codec, check, digest = chunk
    require(codec in (RAW, FILL, ZSTD), "C-2", f"{where}: codec {codec} is unknown; the file is not damaged")
    require(raw >= 1 and raw % size == 0, "C-3", f"{where}: {raw} bytes in items of {size}")
    require(raw <= limits.chunk_nbytes, LIMIT, f"{where}: {raw} bytes")
    right = 1 <= stored < raw if codec == ZSTD else stored == (size if codec == FILL else raw)
    require(right, "C-4", f"{where}: {stored} bytes stored for {raw} in items of {size} by codec {codec}")
    require(codec != RAW or check == digest[:8], "C-5", f"{where}: check and digest differ")


def read_chunk(data: memoryview, chunk: Chunk, where: str) -> bytes:
    where, end = f"{where} (offset {chunk.offset})", chunk.offset + chunk.stored
    stored = data[chunk.offset : end]
    require(not any(data[end : align(end)]), "C-7", f"{where}: bytes after it are not zero")
    check = chunk.check if chunk.codec == RAW else xxhash.xxh3_64_digest(stored)
    require(check == chunk.check, "C-8", f"{where}: wrong check")
    # C-9 cannot be broken alone: C-3 and C-4 have settled it for raw and fill, Z-2 and Z-5 do for zstd.
    zstd = chunk.codec == ZSTD
    raw = read_zstd(stored, chunk.raw, where) if zstd else bytes(stored) * (chunk.raw // chunk.stored)
    require(xxhash.xxh3_128_digest(raw) == chunk.digest, "C-10", f"{where}: wrong digest")
    return raw


def read_contents(data: memoryview, inline: bytes, arrays: list[Array], chunks: list[Chunk]) -> list[bytearray]:
    """The bytes of every array, in stored order with the boxes put together."""
    contents, at, rows = [], 0, iter(enumerate(chunks))
    for number, array in enumerate(arrays):
        content = bytearray(array.nbytes)
        if not array.chunked:
            content[:] = inline[at : at + array.nbytes]
            at += array.nbytes
        else:
            items = np.ndarray(array.stored_shape, f"V{array.itemsize}", content)
            for box, count in zip(product(*array.intervals), array.chunk_counts, strict=True):
                own = islice(rows, count)
                raw = b"".join(read_chunk(data, chunk, f"array {number}, chunk {row}") for row, chunk in own)
                shape = tuple(high - low for low, high in box)
                items[tuple(slice(low, high) for low, high in box)] = np.ndarray(shape, items.dtype, raw)
        contents.append(content)
    return contents


# The whole file.


@dataclass(frozen=True)
class Checkpoint:
    """A file that keeps every rule, decoded but not yet made into Python values."""

    types: list[Type]
    dtypes: list[Dtype]
    nodes: list[Node]
    metadata_nodes: int
    arrays: list[Array]
    contents: list[bytearray]


@contextmanager
def bounded() -> Generator[None, None, None]:
    """Turn the interpreter's own limits into refusals."""
    try:
        yield
    except MemoryError:
        raise Refused(LIMIT, "not enough memory") from None
    except RecursionError:
        raise Refused(LIMIT, "keys nested too deeply for Python to compare") from None


@bounded()
def decode(data: bytes | memoryview, limits: Limits = LIMITS) -> Checkpoint:
    """Check every rule; raise Refused with the first one that the file breaks."""
    view = memoryview(data).cast("B")
    raw, index_offset = read_frame(view, limits)
    index = read_index(raw, limits)
    check_types(index["types"])
    arrays = read_arrays(index, limits)
    nodes, metadata_nodes = read_nodes(index, arrays, limits)
    chunks = read_chunk_table(index, arrays, index_offset, limits)
    contents = read_contents(view, index["inline"], arrays, chunks)
    return Checkpoint(index["types"], index["dtypes"], nodes, metadata_nodes, arrays, contents)


@bounded()
def read(data: bytes | memoryview, limits: Limits = LIMITS) -> tuple[object, object]:
    """Return metadata and tree, with wrappers as their value and other objects as a Record."""
    checkpoint = decode(data, limits)
    try:
        return build(checkpoint)
    except (ValueError, TypeError) as error:
        # The format allows a few things that numpy does not, such as an empty array of a vast shape.
        raise Refused(LIMIT, f"numpy cannot hold an array of this file: {error}") from None


# Python values.


@dataclass(frozen=True)
class Record:
    """An object as a reader without further knowledge gives it."""

    class_kind: int
    name: str
    fields: dict[str, object]


def build(checkpoint: Checkpoint) -> tuple[object, object]:
    dtypes = {dtype: numpy_dtype(dtype) for dtype in checkpoint.dtypes}
    contents = checkpoint.contents
    arrays = [
        numpy_array(array, dtypes[array.dtype], content)
        for array, content in zip(checkpoint.arrays, contents, strict=True)
    ]
    stack: list[Any] = []
    for kind, payload, number in reversed(checkpoint.nodes):
        children = stack[: -number - 1 : -1]
        if number:
            del stack[-number:]
        if kind == ARRAY:
            stack.append(arrays[payload])
        elif kind == SCALAR:
            stack.append(numpy_scalar(arrays[payload], contents[payload]))
        elif kind == LIST:
            stack.append(children)
        elif kind == TUPLE:
            stack.append(tuple(children))
        elif kind == DICT:
            stack.append(dict(zip(children[: number // 2], children[number // 2 :], strict=True)))
        elif kind == SET:
            stack.append(set(children))
        elif kind == FROZENSET:
            stack.append(frozenset(children))
        elif kind == OBJECT:
            class_kind, name, fields = checkpoint.types[payload]
            record = Record(class_kind, name, dict(zip(fields, children, strict=True)))
            stack.append(children[0] if class_kind == 0 else record)
        else:
            stack.append(payload)
    tree, metadata = stack
    return metadata, tree


def numpy_array(array: Array, dtype: np.dtype[Any], content: bytearray) -> npt.NDArray[Any]:
    stored = np.ndarray(array.stored_shape, dtype, content)
    return stored if array.axes is None else stored.transpose(np.argsort(array.axes))


def numpy_scalar(array: npt.NDArray[Any], content: bytearray) -> object:
    # Taken out of an array, these two would lose the zeros at their end.
    if array.dtype.kind == "S":
        return np.bytes_(content)
    if array.dtype.kind == "U":
        encoding = "utf-32-be" if array.dtype.byteorder == ">" else "utf-32-le"
        return np.str_(content.decode(encoding, "surrogatepass"))
    return array[()]


def numpy_dtype(dtype: Dtype) -> np.dtype[Any]:
    if isinstance(dtype, str):
        name, big, _ = dtype.partition("_be")
        if name in EXTENDED:
            return extended_dtype(name)
        require(name not in ML_DTYPES or hasattr(ml_dtypes, name), LIMIT, f"this ml_dtypes has no {name}")
        found = np.dtype(getattr(ml_dtypes, name) if name in ML_DTYPES else name)
        return found.newbyteorder(">") if big else found
    if dtype[0] != "struct":
        name, big, _ = dtype[0].partition("_be")
        code = {"bytes": "S", "str": "U", "void": "V", "datetime64": "M8", "timedelta64": "m8"}[name]
        width = dtype[1] if name in SIZED else "" if dtype[1] == "generic" else f"[{dtype[2]}{dtype[1]}]"
        return np.dtype(f"{'>' if big else '<'}{code}{width}")
    _, size, aligned, fields = dtype
    description: Any = {
        "names": [name for name, _, _, _, _ in fields],
        "titles": [title for _, title, _, _, _ in fields],
        "formats": [
            (numpy_dtype(inner), extents) if extents else numpy_dtype(inner) for _, _, inner, _, extents in fields
        ],
        "offsets": [offset for _, _, _, offset, _ in fields],
        "itemsize": size,
    }
    try:
        laid_out: np.dtype[Any] = np.dtype(description, align=aligned)
    except ValueError:
        # Platforms differ in alignment: what is aligned where it was written need not be so here.
        laid_out = np.dtype(description)
    return laid_out


def extended_dtype(name: str) -> np.dtype[Any]:
    found = np.dtype(np.clongdouble if name.startswith("complex") else np.longdouble)
    mantissa_bits = 63 if name.endswith("_x87") else 112
    same = np.finfo(np.longdouble).nmant == mantissa_bits and found.itemsize == EXTENDED[name]
    require(same, LIMIT, f"this platform has no {name}")
    return found


# The neutral form and the command line.


def neutral(checkpoint: Checkpoint) -> dict[str, object]:
    nodes = [neutral_node(node) for node in checkpoint.nodes]
    pairs = zip(checkpoint.arrays, checkpoint.contents, strict=True)
    return {
        "types": checkpoint.types,
        "arrays": [neutral_array(array, content) for array, content in pairs],
        "metadata": nodes[: checkpoint.metadata_nodes],
        "tree": nodes[checkpoint.metadata_nodes :],
    }


def neutral_node(node: Node) -> object:
    kind, payload, _ = node
    name = NAMES[kind]
    if kind in PLAIN:
        return name
    if kind == INT:
        return {name: str(payload)}
    if kind == FLOAT:
        return {name: struct.pack(">d", payload).hex()}
    if kind == COMPLEX:
        return {name: [struct.pack(">d", part).hex() for part in (payload.real, payload.imag)]}
    return {name: leaf_payload(kind, payload).hex() if kind in (BIGINT, BYTES) else payload}


def neutral_array(array: Array, content: bytearray) -> dict[str, object]:
    axes = {} if array.axes is None else {"axes": array.axes}
    short = len(content) <= 4096
    form = {"hex": content.hex()} if short else {"sha256": hashlib.sha256(content).hexdigest()}
    return {"dtype": array.dtype, "shape": array.shape, **axes, **form}


def main(arguments: list[str]) -> int:
    """Run the command line, return its exit status."""
    if len(arguments) != 1:
        print("usage: python reader.py FILE", file=sys.stderr)
        return 2
    try:
        data = Path(arguments[0]).read_bytes()
    except (OSError, ValueError) as error:
        print(f"cannot read the file: {error}", file=sys.stderr)
        return 2
    try:
        print(json.dumps(neutral(decode(data))))
    except Refused as refusal:
        print(f"refused: {refusal}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
