"""The reference reader of the pytreeckpt format, version 1, from format-v1.md and registries.md alone.

It shares no code with the library, so that two implementations of one text check each other. It reads a whole file
and checks every rule, in the order of section 9: frame, index, tables, nodes, ranges, data files, chunks. Any bytes
give a result or `Refused`. `read` makes Python values; the command line prints the neutral form that
vectors/README.md defines.

    python reader.py FILE
"""

import cmath
import hashlib
import json
import math
import struct
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise, product
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import ml_dtypes
import msgpack
import numpy as np
import xxhash
import zstandard

__all__ = ["Checkpoint", "Record", "Refused", "decode", "main", "neutral", "read"]

# What this reader is willing to do for one file (section 9, "Limits").
LIMIT = "limit"
MAX_INDEX_NBYTES, MAX_CHUNK_NBYTES, MAX_ARRAYS_NBYTES = 256 << 20, 256 << 20, 1 << 30
MAX_NODES, MAX_DEPTH, MAX_KEY_DEPTH, MAX_DATA_FILES = 30_000_000, 10_000, 100, 4096


class Refused(Exception):  # noqa: N818 - a verdict on the file, not an error of the reader
    """The file breaks a rule, or goes beyond a limit of this reader (rule "limit")."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(f"{rule}: {message}")
        self.rule = rule


def require(condition: object, rule: str, message: str) -> None:
    if not condition:
        raise Refused(rule, message)


# Section 2: the file.

MAGIC = b"\x89PTCK\r\n\x1a"
RAW, FILL, ZSTD, PLANES = range(4)
DATA_FILES = 1


def align(nbytes: int) -> int:
    return -(-nbytes // 64) * 64


def read_frame(data: memoryview) -> tuple[bytes, int, int]:
    """Return the raw index, its offset, and the required features."""
    length, preamble, footer = len(data), bytes(data[:64]), bytes(data[-128:])
    require(preamble[:8] == MAGIC, "F-1", "not a pytreeckpt file")
    require(length >= 64, "F-4", f"{length} bytes are too few for a file")
    version, zero, features = struct.unpack_from("<IIQ", preamble, 8)
    require(version == 1, "F-2", f"format version {version} is unknown; the file need not be damaged")
    require(
        features in (0, DATA_FILES), "F-3", f"required features {features:#x} are unknown; the file need not be damaged"
    )
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
    require(raw_nbytes <= MAX_INDEX_NBYTES, LIMIT, f"index of {raw_nbytes} bytes")
    end = offset + stored_nbytes
    stored = data[offset:end]
    require(xxhash.xxh3_128_digest(stored) == footer[32:48], "F-11", f"index at {offset}: wrong XXH3-128")
    require(not any(data[end:-128]), "F-12", f"bytes after the index at {end} are not zero")
    # F-13 cannot be broken alone: F-10 has settled it for a raw index, Z-2 and Z-5 do for zstd.
    raw = bytes(stored) if codec == RAW else read_zstd(stored, raw_nbytes, "index")
    require(hashlib.sha256(raw).digest() == footer[48:80], "F-14", "index: its SHA-256 is not the root")
    return raw, offset, features


def read_zstd(stored: memoryview, nbytes: int, where: str) -> bytes:
    """Decode one frame; the caller has bounded nbytes."""
    require(bytes(stored[:4]) == b"\x28\xb5\x2f\xfd", "Z-1", f"{where}: no zstd frame magic")
    require(len(stored) >= 9, "Z-5", f"{where}: {len(stored)} bytes are too few for a frame")
    # zstandard refuses windows above 2 GiB before it tells their size.
    single_segment, window = stored[4] & 0x20, (8 + (stored[5] & 7)) << (7 + (stored[5] >> 3))
    require(single_segment or window <= 8 << 20, "Z-4", f"{where}: window of {window} bytes")
    try:
        frame = zstandard.get_frame_parameters(stored)
        # A size that is not declared is given as 2^64 - 1, which no raw length is.
        require(frame.content_size == nbytes, "Z-2", f"{where}: size {frame.content_size}, not {nbytes}")
        require(frame.dict_id == 0, "Z-3", f"{where}: names dictionary {frame.dict_id}")
        require(not single_segment or nbytes <= 8 << 20, "Z-4", f"{where}: window of {nbytes} bytes")
        # It allocates the declared size, and refuses a frame that decodes to another.
        return zstandard.ZstdDecompressor().decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Refused("Z-5", f"{where}: {error}") from None


# Section 3: the index. `u4` is a column of u32, `V8` one of 8 bytes each: values stay bytes, so that no bit gets lost.

SCHEMA_TEXT = """
    nodes kinds:u1 counts:u8 ints:V8 floats:V8 strings:[str] bytes:[bin] objects:u4 arrays:u4
    types :[]
    dtypes :[]
    arrays dtype:u4 rank:u1 shape:u8 layout:u1 axes:u1 cut_counts:u4 cuts:u8 chunk_counts:u4 pools:u4
    inline :bin
    chunks file:u4 offset:u8 stored:u4 raw:u4 codec:u1 check:V8 digest:V16 identity:V32
    files :[]
"""
SCHEMA = {
    (name, key): form
    for name, *columns in map(str.split, SCHEMA_TEXT.strip().splitlines())
    for key, form in (column.split(":") for column in columns)
}
CHUNK_COLUMNS = [key for name, key in SCHEMA if name == "chunks" and key != "identity"]


def read_index(raw: bytes) -> dict[str, Any]:
    """Return the index with its columns as lists."""
    try:
        document = msgpack.unpackb(raw, object_pairs_hook=read_map, strict_map_key=False, ext_hook=refuse_extension)
        again = msgpack.packb(document)
    except UnicodeDecodeError as error:
        raise Refused("I-4", f"index: a str is not UTF-8: {error}") from None
    except (ValueError, TypeError) as error:
        raise Refused("I-1", f"index: not one msgpack object: {error}") from None
    require(again == raw, "I-1", "index: not every value is in its shortest encoding")
    sections = {name: [key for section, key in SCHEMA if section == name and key] for name, _ in SCHEMA}
    check_keys(document, list(sections), "index")
    index: dict[str, Any] = {}
    for name, keys in sections.items():
        if keys:
            check_keys(document[name], keys, name)
            index[name] = {key: conform(document[name][key], SCHEMA[name, key], f"{name}/{key}") for key in keys}
        else:
            index[name] = conform(document[name], SCHEMA[name, ""], name)
    for name, parallel in (("arrays", ["dtype", "rank", "layout"]), ("chunks", CHUNK_COLUMNS)):
        lengths = {len(index[name][key]) for key in parallel}
        require(len(lengths) == 1, "I-3", f"{name}: parallel columns of unequal lengths {sorted(lengths)}")
    return index


def read_map(pairs: list[tuple[object, object]]) -> dict[str, object]:
    entries = {key: value for key, value in pairs if isinstance(key, str)}
    require(len(entries) == len(pairs), "I-2", "index: the keys of a map are not distinct strings")
    return entries


def refuse_extension(code: int, _payload: bytes) -> NoReturn:
    raise ValueError(f"extension type {code}")


def check_keys(value: object, keys: list[str], where: str) -> None:
    require(isinstance(value, dict) and list(value) == keys, "I-2", f"{where}: not a map of {keys} in this order")


def conform(value: Any, form: str, where: str) -> Any:
    """Check I-2 and I-3; return the value, of a column as a list."""
    of = {"[]": None, "[str]": str, "[bin]": bytes}
    right = is_array(value, of[form]) if form in of else isinstance(value, bytes)
    require(right, "I-2", f"{where}: not what belongs there")
    if form in of or form == "bin":
        return value
    require(len(value) % int(form[1:]) == 0, "I-3", f"{where}: {len(value)} bytes in entries of {form[1:]}")
    return np.frombuffer(value, f"<{form}").tolist()


def is_array(value: object, of: type | None = None) -> bool:
    return isinstance(value, list) and (of is None or all(type(entry) is of for entry in value))


def check_first_use(uses: list[int], entries: int, rule: str, table: str) -> None:
    """Each index is at most one more than the greatest before it, and every entry is used."""
    used = 0
    for index in uses:
        require(index <= used, rule, f"{table}: entry {index} is used before entry {used}")
        used = max(used, index + 1)
    require(used == entries, rule, f"{table}: {entries} entries, {used} in use")


def distinct(values: list[Any]) -> bool:
    return len({msgpack.packb(value) for value in values}) == len(values)


# Section 5: types. A line of the registry: class kind, names, fields; no fields here means any.

REGISTRY_TEXT = """
    0 python.OrderedDict,python.defaultdict,python.Counter items
    0 python.deque items,maxlen
    0 python.bytearray value
    0 python.Path text,flavour
    1 python.range,python.slice start,stop,step
    1 python.Namespace,python.SimpleNamespace
    0 numpy.ObjectArray values,shape
    0 numpy.StringArray values,shape,coerce,missing
    1 numpy.dtype descriptor
    0 torch.Tensor,torch.nn.Parameter data,requires_grad
    0 torch.nn.Buffer data,requires_grad,persistent
    0 torch.PackedTensor data,dtype,shape,requires_grad,parameter
    1 torch.SparseTensor values,indices,layout,shape,coalesced,requires_grad
    0 torch.Size shape
    1 torch.dtype,torch.layout,torch.memory_format name
    1 torch.device type,index
    0 jax.Array data,weak_type
    0 jax.PRNGKeyArray key_data,impl
"""
REGISTRY = {
    name: (int(kind), fields[0].split(",") if fields else None)
    for kind, names, *fields in map(str.split, REGISTRY_TEXT.strip().splitlines())
    for name in names.split(",")
}


def check_types(types: list[Any]) -> None:
    for number, entry in enumerate(types):
        where = f"type {number}"
        formed = isinstance(entry, list) and [type(part) for part in entry] == [int, str, list]
        require(formed and is_array(entry[2], str), "I-2", f"{where}: not [class kind, name, [field, ...]]")
        class_kind, name, fields = entry
        require(0 <= class_kind <= 5, "T-1", f"{where}: class kind {class_kind} is unknown")
        named = name and distinct(fields) and (class_kind != 0 or fields)
        require(named, "T-2", f"{where}: no name, or fields that are not distinct, or a wrapper without any")
        require(class_kind != 4 or fields == ["name", "value"], "T-2", f"{where}: an enum with fields {fields}")
        registered_kind, registered_fields = REGISTRY.get(name, (class_kind, fields))
        right = class_kind == registered_kind and fields == (registered_fields or fields)
        require(right, "T-4", f"{where}: {name} has other fields or another class kind in the registry")
    require(distinct(types), "T-3", "types: equal entries")


# Section 6: dtypes. One that numpy does not have here stands as so many opaque bytes.

WIDE_TEXT = "int16 int32 int64 uint16 uint32 uint64 float16 float32 float64 complex64 complex128"
ML_TEXT = """
    float8_e3m4 float8_e4m3 float8_e4m3b11fnuz float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz
    float8_e8m0fnu float6_e2m3fn float6_e3m2fn float4_e2m1fn int1 uint1 int2 uint2 int4 uint4
"""
ML_NBYTES = dict.fromkeys(ML_TEXT.split(), 1) | {"bfloat16": 2, "complex32": 4, "bcomplex32": 4}
EXTENDED = {"float80_x87": (63, 16), "complex160_x87": (63, 32), "float128": (112, 16), "complex256": (112, 32)}
LONG = {(np.finfo(of).nmant, np.dtype(of).itemsize): np.dtype(of) for of in (np.longdouble, np.clongdouble)}
SIMPLE: dict[str, np.dtype[Any]] = {
    **{name: np.dtype(name) for name in ("bool", "int8", "uint8")},
    **{name: np.dtype(name).newbyteorder("<") for name in WIDE_TEXT.split()},
    **{f"{name}_be": np.dtype(name).newbyteorder(">") for name in WIDE_TEXT.split()},
    **{name: np.dtype(getattr(ml_dtypes, name, f"V{nbytes}")) for name, nbytes in ML_NBYTES.items()},
    **{name: LONG.get(form, np.dtype(f"V{form[1]}")) for name, form in EXTENDED.items()},
}
SIZED = {"bytes": ("S", 1), "void": ("V", 1), "str": ("<U", 4), "str_be": (">U", 4)}
TIMES = {"datetime64": "<M8", "datetime64_be": ">M8", "timedelta64": "<m8", "timedelta64_be": ">m8"}
UNITS = ("Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as", "generic")


def is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31


def read_dtype(dtype: Any, depth: int = 1) -> np.dtype[Any]:
    """Check D-1 and D-2."""
    match dtype:
        case str(name) if name in SIMPLE:
            return SIMPLE[name]
        case [str(tag), n] if tag in SIZED and is_size(n) and is_size(n * SIZED[tag][1]):
            return np.dtype(f"{SIZED[tag][0]}{n}")
        case [str(tag), "generic", 1 as k] if tag in TIMES and type(k) is int:
            return np.dtype(TIMES[tag])
        case [str(tag), unit, k] if tag in TIMES and unit in UNITS[:-1] and is_size(k) and k >= 1:
            return np.dtype(f"{TIMES[tag]}[{k}{unit}]")
        case ["struct", itemsize, bool(aligned), list(fields)] if is_size(itemsize) and depth <= 32:
            return read_struct(itemsize, fields, depth, align=aligned)
    raise Refused("D-1", f"dtype: {str(dtype)[:80]} is not one of the format")


def read_struct(itemsize: int, fields: list[Any], depth: int, *, align: bool) -> np.dtype[Any]:
    layout: Any = {"names": [], "titles": [], "formats": [], "offsets": [], "itemsize": itemsize}
    for field in fields:
        match field:
            case [str(name), None | str() as title, base, int(offset), list(extents)]:
                form = read_dtype(base, depth + 1)
                require(all(type(value) is int for value in (offset, *extents)), "D-1", f"dtype: field {name!r}")
            case _:
                raise Refused("D-1", f"dtype: {str(field)[:80]} is no field of a struct")
        bounded = all(map(is_size, (offset, *extents))) and len(extents) <= 64
        within = bounded and offset + form.itemsize * math.prod(extents) <= itemsize
        require(within, "D-2", f"dtype: field {name!r} is not within the {itemsize} bytes")
        for part, value in zip(layout, (name, title, (form, tuple(extents)), offset), strict=False):
            layout[part].append(value)
    labels = layout["names"] + [title for title in layout["titles"] if title is not None]
    require(distinct(labels), "D-2", "dtype: names and titles of fields are not distinct")
    # Platforms differ in alignment: what is aligned where it was written need not be so here.
    for aligned in (align, False):
        with suppress(ValueError, TypeError):
            found: np.dtype[Any] = np.dtype(layout, align=aligned)
            return found
    return np.dtype(f"V{itemsize}")


# Section 7: arrays.


@dataclass
class Array:
    descriptor: Any
    dtype: np.dtype[Any]
    shape: list[int]
    axes: list[int] | None
    stored_shape: list[int]
    pieces: list[list[tuple[int, int]]]  # of each axis as stored; the boxes are their product
    chunk_counts: list[int]  # of each box; empty if the array is not chunked
    pooled: bool
    nbytes: int
    content: bytes = b""  # in stored order, the boxes put together


class Supply:
    """The columns of a table, each used up from its front."""

    def __init__(self, columns: dict[str, list[Any]], rule: str) -> None:
        self.columns, self.rule, self.at = columns, rule, dict.fromkeys(columns, 0)

    def take(self, name: str, number: int) -> list[Any]:
        values = self.columns[name][self.at[name] : self.at[name] + number]
        require(len(values) == number, self.rule, f"column {name} is too short")
        self.at[name] += number
        return values

    def finish(self) -> None:
        for name, values in self.columns.items():
            require(self.at[name] == len(values), self.rule, f"column {name} is too long")


def read_arrays(index: dict[str, Any]) -> list[Array]:
    """Check dtypes and arrays; return them without the contents of those that are chunked."""
    dtypes, table = [(entry, read_dtype(entry)) for entry in index["dtypes"]], index["arrays"]
    require(distinct(index["dtypes"]), "D-3", "dtypes: equal entries")
    check_first_use(table["dtype"], len(dtypes), "D-3", "dtypes")
    supply = Supply({name: column for name, column in table.items() if name != "pools"}, "A-6")
    arrays = [read_array(f"array {number}", dtypes, supply) for number in range(len(table["dtype"]))]
    supply.finish()
    at = 0
    for array in arrays:
        if not array.chunk_counts and not array.pooled:
            array.content = index["inline"][at : at + array.nbytes]
            at += array.nbytes
    require(at == len(index["inline"]), "A-7", f"inline: {len(index['inline'])} bytes, the arrays take {at}")
    n_pools = len({entry for entry, array in zip(table["dtype"], arrays, strict=True) if array.pooled})
    require(len(table["pools"]) == n_pools, "A-9", f"pools: {len(table['pools'])} for {n_pools} dtypes")
    counts, rows = table["chunk_counts"] + table["pools"], len(index["chunks"]["raw"])
    require(all(counts) and sum(counts) == rows, "A-8", f"chunks: {rows} rows, the arrays take {sum(counts)}")
    total = sum(array.nbytes for array in arrays)
    require(total <= MAX_ARRAYS_NBYTES, LIMIT, f"arrays of {total} bytes together")
    return arrays


def read_array(where: str, dtypes: list[tuple[Any, np.dtype[Any]]], supply: Supply) -> Array:
    ((entry,), (rank,), (layout,)) = (supply.take(name, 1) for name in ("dtype", "rank", "layout"))
    require(rank <= 64 and layout < 16, "A-1", f"{where}: rank {rank}, layout {layout:#x}")
    chunked, has_axes, has_cuts, pooled = layout & 1, layout & 2, layout & 4, layout & 8
    require(not (chunked and pooled), "A-9", f"{where}: chunked and pooled")
    shape, natural = supply.take("shape", rank), list(range(rank))
    axes = supply.take("axes", rank) if has_axes else None
    require(axes is None or (axes != natural and sorted(axes) == natural), "A-2", f"{where}: axes {axes}")
    stored_shape = [shape[axis] for axis in axes or natural]
    cut_counts = supply.take("cut_counts", rank) if has_cuts else [0] * rank
    cuts = [supply.take("cuts", count) for count in cut_counts]
    pieces = [list(pairwise([0, *axis, extent])) for axis, extent in zip(cuts, stored_shape, strict=True)]
    ascending = all(low < high for axis in pieces if len(axis) > 1 for low, high in axis)
    require(ascending, "A-3", f"{where}: cuts are not ascending within the extents")
    require(not has_cuts or (chunked and any(cut_counts)), "A-3", f"{where}: has cuts, but none or no chunks")
    descriptor, dtype = dtypes[entry]
    product_ = math.prod(factor for factor in (dtype.itemsize, *shape) if factor)
    require(max([*shape, product_]) < 2**63, "A-4", f"{where}: {shape} items of {dtype.itemsize} bytes")
    nbytes = dtype.itemsize * math.prod(shape)
    require(nbytes or not (chunked or pooled or has_axes), "A-5", f"{where}: no bytes, but not inline, or axes")
    chunk_counts = supply.take("chunk_counts", math.prod(map(len, pieces))) if chunked else []
    return Array(descriptor, dtype, shape, axes, stored_shape, pieces, chunk_counts, bool(pooled), nbytes)


# Section 4: the node stream.

NONE, FALSE, TRUE, ELLIPSIS, INT, BIGINT, FLOAT, COMPLEX, STR, BYTES, ARRAY, SCALAR = range(12)
LIST, TUPLE, DICT, SET, FROZENSET, OBJECT = range(16, 22)
KINDS_TEXT = """
    none:- false:- true:- ellipsis:- int:ints bigint:bytes float:floats complex:floats str:strings bytes:bytes
    array:arrays scalar:arrays - - - -
    list:counts tuple:counts dict:counts set:counts frozenset:counts object:objects
"""
KINDS = {kind: entry.split(":") for kind, entry in enumerate(KINDS_TEXT.split()) if entry != "-"}  # name, column
KEYS = {NONE, FALSE, TRUE, INT, BIGINT, FLOAT, STR, BYTES, TUPLE}
ELEMENTS = KEYS | {ELLIPSIS, COMPLEX, FROZENSET}


class Node(NamedTuple):
    kind: int
    payload: Any  # bytes, as in the key string; of arrays, containers and objects the index or count
    children: int


def read_nodes(index: dict[str, Any], arrays: list[Array]) -> tuple[list[Node], int]:
    """Return the nodes, and how many of them are the metadata."""
    types, columns = index["types"], dict(index["nodes"])
    kinds, supply = columns.pop("kinds"), Supply(columns, "N-3")
    require(len(kinds) <= MAX_NODES, LIMIT, f"{len(kinds)} nodes")
    nodes: list[Node] = []
    ends: list[int] = []  # of the whole trees
    owed: list[int] = []  # children that are still to come, of each open container
    for position, kind in enumerate(kinds):
        require(kind in KINDS, "N-1", f"node {position}: kind {kind} is unknown")
        require(len(owed) < MAX_DEPTH, LIMIT, f"node {position}: depth {len(owed) + 1}")
        column = KINDS[kind][1]
        payload: Any = b"" if column == "-" else supply.take(column, 1)[0]
        children = payload * (2 if kind == DICT else 1) if kind >= LIST else 0
        if kind == OBJECT:
            require(payload < len(types), "N-9", f"node {position}: type {payload} of {len(types)}")
            children = len(types[payload][2])
        elif kind == COMPLEX:
            payload += supply.take("floats", 1)[0]
        elif kind == STR:
            payload = payload.encode()
        elif kind == BIGINT:
            # What needs nine bytes or more is outside the range of int: one condition serves for both.
            shortest = len(payload) >= 9 and (payload[-1], payload[-2] >> 7) not in ((0x00, 0), (0xFF, 1))
            require(shortest, "N-4", f"node {position}: bigint {payload.hex()} fits into fewer bytes, or an int")
        nodes.append(Node(kind, payload, children))
        owed.append(children)
        while owed and not owed[-1]:
            owed.pop()
            if owed:
                owed[-1] -= 1
        if not owed:
            ends.append(position + 1)
    require(len(ends) == 2 and not owed, "N-2", f"nodes: {len(ends)} whole trees, not two")
    supply.finish()
    for position, node in enumerate(nodes):
        if node.kind in (DICT, SET, FROZENSET):
            check_elements(nodes, position)
    foreign = {KINDS[node.kind][0] for node in nodes[: ends[0]] if node.kind not in KEYS | {LIST, DICT}}
    require(not foreign, "N-7", f"metadata: holds {sorted(foreign)}")
    check_first_use(columns["objects"], len(types), "N-9", "types")
    check_first_use(columns["arrays"], len(arrays), "N-10", "arrays")
    uses: Counter[int] = Counter(columns["arrays"])
    for number in (node.payload for node in nodes if node.kind == SCALAR):
        scalar = arrays[number]
        alone = uses[number] == 1 and not scalar.shape and not scalar.chunk_counts and not scalar.pooled
        require(alone, "N-11", f"array {number}: of a scalar, but chunked, not of rank 0, or of another node too")
        if scalar.dtype.kind == "U":
            points = np.frombuffer(scalar.content, f"{scalar.dtype.str[0]}u4")
            require((points <= 0x10FFFF).all(), "N-11", f"array {number}: holds more than U+10FFFF")
    return nodes, ends[0]


def check_elements(nodes: list[Node], position: int) -> None:
    """Check the keys of a dict or the elements of a set: N-5, N-6, N-8."""
    kind, count, _ = nodes[position]
    where, at, strings, values = f"node {position} ({KINDS[kind][0]})", position + 1, [], []
    for _ in range(count):
        string, value, at = read_element(nodes, at, KEYS if kind == DICT else ELEMENTS)
        strings.append(string)
        values.append(value)
    require(len(set(strings)) == len(set(values)) == count, "N-6", f"{where}: holds equal keys or elements")
    require(kind == DICT or strings == sorted(strings), "N-8", f"{where}: elements are not in order")


@dataclass(frozen=True)
class NotANumber:
    payload: bytes


def read_element(nodes: list[Node], at: int, allowed: set[int], depth: int = 1) -> tuple[bytes, object, int]:
    """Return the key string, the value with the equality of N-6, and the place of the next node."""
    (kind, payload, children), at = nodes[at], at + 1
    require(kind in allowed, "N-5", f"node {at - 1}: {KINDS[kind][0]} as a key or element")
    value: object
    if kind in (TUPLE, FROZENSET):
        require(depth <= MAX_KEY_DEPTH, LIMIT, f"node {at - 1}: keys or elements nest {depth} deep")
        strings, values = [], []
        for _ in range(children):
            string, value, at = read_element(nodes, at, allowed, depth + 1)
            strings.append(string)
            values.append(value)
        payload, value = b"".join(strings), tuple(values) if kind == TUPLE else frozenset(values)
    else:
        value = leaf_value(kind, payload)
        if isinstance(value, float | complex) and cmath.isnan(value):
            value = NotANumber(payload)
    return struct.pack("<BQ", kind, len(payload)) + payload, value, at


def leaf_value(kind: int, payload: bytes) -> object:
    if kind in (INT, BIGINT):
        return int.from_bytes(payload, "little", signed=True)
    if kind == FLOAT:
        return struct.unpack("<d", payload)[0]
    if kind == COMPLEX:
        return complex(*struct.unpack("<dd", payload))
    if kind in (STR, BYTES):
        return payload.decode() if kind == STR else payload
    return {NONE: None, FALSE: False, TRUE: True, ELLIPSIS: ...}[kind]


# Section 8: chunks.

# As in the columns of the table; the identity is empty where there is none.
Row = tuple[int, int, int, int, int, bytes, bytes, bytes]


def pools_of(arrays: list[Array], index: dict[str, Any]) -> list[tuple[str, list[Array]]]:
    """The pools, in the order of their dtypes: what to call each, and its arrays."""
    pools: dict[int, list[Array]] = {}
    for entry, array in zip(index["arrays"]["dtype"], arrays, strict=True):
        if array.pooled:
            pools.setdefault(entry, []).append(array)
    return [(f"pool of dtype {entry}", pools[entry]) for entry in sorted(pools)]


def check_rows(rows: Iterable[Row], nbytes: int, size: int, where: str) -> None:
    """Check the rows of a box or pool of so many bytes."""
    for _, offset, stored, raw, codec, check, digest, _ in rows:
        require(codec <= PLANES, "C-2", f"{where}: codec {codec} at {offset} is unknown")
        require(raw >= 1 and raw % size == 0, "C-3", f"{where}: {raw} bytes at {offset} in items of {size}")
        require(raw <= MAX_CHUNK_NBYTES, LIMIT, f"{where}: {raw} bytes at {offset}")
        fits = 1 <= stored < raw if codec >= ZSTD else stored == (size if codec == FILL else raw)
        require(fits, "C-4", f"{where}: {stored} bytes stored at {offset} for {raw} by codec {codec}")
        require(codec != RAW or check == digest[:8], "C-5", f"{where}: check and digest at {offset} differ")
        nbytes -= raw
    require(nbytes == 0, "C-3", f"{where}: its chunks miss it by {nbytes} bytes")


class DataFile(NamedTuple):
    name: str
    nbytes: int
    root: bytes


def read_files(index: dict[str, Any], features: int) -> list[DataFile]:
    entries, used = index["files"], [number for number in index["chunks"]["file"] if number]
    begins = entries and msgpack.packb(entries[0]) == msgpack.packb(["", 0, b""])
    require(begins, "C-1", "files: does not begin with this file")
    require((len(entries) > 1) == (features == DATA_FILES), "C-1", f"files: {len(entries)}, with features {features}")
    require(len(entries) <= 1 + MAX_DATA_FILES, LIMIT, f"files: {len(entries) - 1} data files")
    for number, entry in enumerate(entries[1:], 1):
        formed = isinstance(entry, list) and [type(part) for part in entry] == [str, int, bytes]
        require(formed and 0 <= entry[1] < 2**63, "C-1", f"files: entry {number} is not [name, nbytes, root]")
        right = len(entry[2]) == 32 and entry[0] == f"{entry[2].hex()}.ptck"
        require(right, "C-1", f"files: entry {number} is not named by its root")
    require(distinct([root for _, _, root in entries]), "C-1", "files: entries of the same root")
    check_first_use([number - 1 for number in used], len(entries) - 1, "C-11", "files")
    due = len(index["chunks"]["file"]) if features else 0
    found = len(index["chunks"]["identity"])
    require(found == due, "C-12", f"chunks: {found} identities, {due} are due")
    return [DataFile(*entry) for entry in entries[1:]]


def read_chunk_table(
    index: dict[str, Any], arrays: list[Array], index_offset: int, files: list[DataFile]
) -> list[tuple[Row, int]]:
    """Return the rows, each with the itemsize that it is for."""
    columns = index["chunks"] | {"identity": index["chunks"]["identity"] or [b""] * len(index["chunks"]["file"])}
    table: list[Row] = list(zip(*columns.values(), strict=True))
    rows = iter(table)
    sizes: list[int] = []
    for number, array in enumerate(arrays):
        for box, count in zip(product(*array.pieces), array.chunk_counts, strict=False):
            nbytes = array.dtype.itemsize * math.prod(high - low for low, high in box)
            check_rows(islice(rows, count), nbytes, array.dtype.itemsize, f"array {number}, box {box}")
            sizes += [array.dtype.itemsize] * count
    for (where, members), count in zip(pools_of(arrays, index), index["arrays"]["pools"], strict=True):
        of_pool = list(islice(rows, count))
        check_rows(of_pool, sum(member.nbytes for member in members), members[0].dtype.itemsize, where)
        sizes += [members[0].dtype.itemsize] * count
        ends = set(accumulate(member.nbytes for member in members))
        require(ends.issuperset(accumulate(row[3] for row in of_pool)), "A-10", f"{where}: an array in two chunks")
    firsts: dict[tuple[int, int], Row] = {}
    due = 64
    for row in table:
        file, offset, stored, *_ = row
        first = firsts.setdefault((file, offset), row)
        require(first == row, "C-13" if file else "C-6", f"two rows for offset {offset} of file {file} differ")
        if first is row and not file:
            require(offset == due, "C-6", f"chunk at {offset}, not at {due}")
            due = align(due + stored)
    require(due == index_offset, "C-6", f"the chunks end at {due}, the index begins at {index_offset}")
    last = (0, 0)
    for place in sorted(place for place in firsts if place[0]):
        file, offset = place
        due = last[1] if last[0] == file else 64
        last = file, align(offset + firsts[place][2])
        fits = offset % 64 == 0 and due <= offset and last[1] <= files[file - 1].nbytes - 192
        require(fits, "C-13", f"chunk at {offset} of {files[file - 1].name} is not by itself among its chunks")
    return list(zip(table, sizes, strict=True))


def read_chunk(data: memoryview, row: Row, itemsize: int, where: str) -> bytes:
    _, offset, nbytes, raw_nbytes, codec, check, digest, identity = row
    where, end = f"{where}, chunk at {offset}", offset + nbytes
    stored = data[offset:end]
    require(not any(data[end : align(end)]), "C-7", f"{where}: bytes after it are not zero")
    right = xxhash.xxh3_128_digest(stored) == digest if codec == RAW else xxhash.xxh3_64_digest(stored) == check
    require(right, "C-8", f"{where}: wrong check")
    # C-9 cannot be broken alone: C-3 and C-4 have settled it for raw and fill, Z-2 and Z-5 do for zstd, P-3 for planes.
    if codec == PLANES:
        raw = read_planes(stored, raw_nbytes, itemsize, where)
    else:
        raw = read_zstd(stored, raw_nbytes, where) if codec == ZSTD else bytes(stored) * (raw_nbytes // nbytes)
    require(xxhash.xxh3_128_digest(raw) == digest, "C-10", f"{where}: wrong digest")
    require(not identity or blake3(raw) == identity, "C-14", f"{where}: wrong identity")
    return raw


def read_planes(stored: memoryview, raw_nbytes: int, itemsize: int, where: str) -> bytes:
    """Decode words that are cut into planes; the caller has bounded raw_nbytes, a multiple of itemsize."""
    require(len(stored) >= 8, "P-1", f"{where}: {len(stored)} bytes are too few for planes")
    word, rotation, n_planes = stored[:3]
    at = 8 + 8 * n_planes
    require(8 < at <= len(stored), "P-1", f"{where}: {n_planes} planes in {len(stored)} bytes")
    entries = list(struct.iter_unpack("<BBHI", stored[8:at]))
    widths = [width for width, *_ in entries]
    known = word in (2, 4, 8) and itemsize % word == 0 and rotation < 16
    require(known, "P-1", f"{where}: words of {word} bytes rotated by {rotation} in items of {itemsize}")
    reserved = any(stored[3:8]) or any(zero for _, _, zero, _ in entries)
    require(not reserved, "P-1", f"{where}: reserved bytes before the planes are not zero")
    allowed = all(width in (1, 2, 4, 8) and sum(widths[i:]) % width == 0 for i, width in enumerate(widths))
    require(allowed and sum(widths) == word, "P-2", f"{where}: widths {widths} in words of {word}")
    words = np.empty((raw_nbytes // word, word), np.uint8)  # least significant byte first
    top = word
    for width, codec, _, nbytes in entries:
        length = len(words) * width
        fits = 1 <= nbytes < length if codec == ZSTD else nbytes == {RAW: length, FILL: width}.get(codec)
        require(fits, "P-3", f"{where}: {nbytes} bytes stored for a plane of {length} by codec {codec}")
        end = at + nbytes
        part, padding, at = stored[at:end], stored[end : end + -end % 8], end + -end % 8
        require(at <= len(stored) and not any(padding), "P-4", f"{where}: plane ends at {end}, or no zeros after it")
        plane = read_zstd(part, length, where) if codec == ZSTD else bytes(part) * (length // nbytes)
        words[:, top - width : top] = np.frombuffer(plane, np.uint8).reshape(-1, width)
        top -= width
    require(at == len(stored), "P-4", f"{where}: planes end at {at}, the stored bytes at {len(stored)}")
    upper = words.view("<u2")[:, -1]
    upper[:] = upper >> rotation | upper << 16 - rotation
    return words.tobytes()


def read_contents(
    sources: list[memoryview], arrays: list[Array], index: dict[str, Any], table: list[tuple[Row, int]]
) -> None:
    rows = (row for row, _ in table)
    for number, array in enumerate(arrays):
        if array.chunk_counts:
            items = np.empty(array.stored_shape, f"V{array.dtype.itemsize}")
            for box, count in zip(product(*array.pieces), array.chunk_counts, strict=True):
                read = (
                    read_chunk(sources[row[0]], row, items.itemsize, f"array {number}") for row in islice(rows, count)
                )
                raw = b"".join(read)
                shape, place = [high - low for low, high in box], tuple(slice(low, high) for low, high in box)
                items[place] = np.frombuffer(raw, items.dtype).reshape(shape)
            array.content = items.tobytes()
    for (where, members), count in zip(pools_of(arrays, index), index["arrays"]["pools"], strict=True):
        left = iter(members)
        for row in islice(rows, count):
            raw = read_chunk(sources[row[0]], row, members[0].dtype.itemsize, where)
            while raw:
                member = next(left)
                member.content, raw = raw[: member.nbytes], raw[member.nbytes :]


# BLAKE3, from the paper: many chunks (of BLAKE3: 1024 bytes of input) at once, or two values into one of a parent.

IV_TEXT = "6a09e667 bb67ae85 3c6ef372 a54ff53a 510e527f 9b05688c 1f83d9ab 5be0cd19"
IV = np.array([int(word, 16) for word in IV_TEXT.split()], "<u4")
PERMUTATION = [2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8]
CHUNK_START, CHUNK_END, PARENT, ROOT = 1, 2, 4, 8
Words = np.ndarray[Any, np.dtype[np.uint32]]  # a row for each word, a column for each of many chunks


def blake3(data: bytes) -> bytes:
    n_full = max(len(data) - 1, 0) // 1024
    top = ROOT if n_full == 0 else 0
    values = [chunk_values(data[: 1024 * n_full], 0, 1024, 0)] if n_full else []
    values.append(chunk_values(data[1024 * n_full :], n_full, len(data) - 1024 * n_full, top))
    level = np.concatenate(values, axis=1)
    while level.shape[1] > 1:
        pairs, odd = level[:, : level.shape[1] // 2 * 2], level[:, level.shape[1] // 2 * 2 :]
        blocks = np.concatenate([pairs[:, ::2], pairs[:, 1::2]])
        flags = PARENT | (ROOT if blocks.shape[1] == 1 and not odd.size else 0)
        parents = compress(np.repeat(IV[:, None], blocks.shape[1], 1), blocks, np.zeros(blocks.shape[1]), 64, flags)
        level = np.concatenate([parents, odd], axis=1)
    return level.T.tobytes()


def chunk_values(data: bytes, first: int, nbytes: int, top: int) -> Words:
    """Return the chaining values of chunks of equal length, numbered from `first` on."""
    n_blocks, n_chunks = max(-(-nbytes // 64), 1), max(len(data) // max(nbytes, 1), 1)
    blocks = np.frombuffer(data.ljust(64 * n_blocks * n_chunks, b"\0"), "<u4").reshape(n_chunks, n_blocks, 16)
    values: Words = np.repeat(IV[:, None], n_chunks, 1)
    for number in range(n_blocks):
        last = number == n_blocks - 1
        flags = (CHUNK_START if number == 0 else 0) | (CHUNK_END | top if last else 0)
        length = nbytes - 64 * number if last else 64
        values = compress(values, blocks[:, number].T, first + np.arange(n_chunks), length, flags)
    return values


def compress(values: Words, block: Words, counters: np.ndarray[Any, Any], length: int, flags: int) -> Words:
    n = values.shape[1]
    counter = np.stack([counters % 2**32, counters // 2**32]).astype("<u4")
    rest = np.repeat(np.array([[length], [flags]], "<u4"), n, 1)
    a, b = values[:4], values[4:]
    c, d = np.repeat(IV[:4, None], n, 1), np.concatenate([counter, rest])
    for _ in range(7):
        a, b, c, d = mix(a, b, c, d, block[0:8:2], block[1:8:2])
        # The diagonals as columns, and back.
        b, c, d = (np.roll(part, -by, 0) for by, part in enumerate((b, c, d), 1))
        a, b, c, d = mix(a, b, c, d, block[8::2], block[9::2])
        b, c, d = (np.roll(part, by, 0) for by, part in enumerate((b, c, d), 1))
        block = block[PERMUTATION]
    return np.concatenate([a ^ c, b ^ d])


def mix(a: Words, b: Words, c: Words, d: Words, *message: Words) -> tuple[Words, Words, Words, Words]:
    for words, (by_d, by_b) in zip(message, ((16, 12), (8, 7)), strict=True):
        a = a + b + words
        d = rotated(d ^ a, by_d)
        c = c + d
        b = rotated(b ^ c, by_b)
    return a, b, c, d


def rotated(words: Words, by: int) -> Words:
    return words >> np.uint32(by) | words << np.uint32(32 - by)


# The whole file.


Checkpoint = tuple[list[Any], list[Array], list[Node], int]  # types, arrays, nodes, how many of these are metadata


def decode(data: bytes | memoryview, folder: Path | None = None) -> Checkpoint:
    """Check every rule; raise Refused with the first one that the file breaks. Its data files are in `folder`."""
    try:
        return decode_file(memoryview(data).cast("B"), folder)[0]
    except (MemoryError, RecursionError) as error:
        raise Refused(LIMIT, type(error).__name__) from None


def decode_file(data: memoryview, folder: Path | None) -> tuple[Checkpoint, list[tuple[Row, int]]]:
    """Return the file's rows too, each with its itemsize."""
    raw, index_offset, features = read_frame(data)
    index = read_index(raw)
    check_types(index["types"])
    arrays = read_arrays(index)
    nodes, metadata_nodes = read_nodes(index, arrays)
    files = read_files(index, features)
    table = read_chunk_table(index, arrays, index_offset, files)
    sources = [data, *(open_data_file(file, folder) for file in files)]
    for number, (file, source) in enumerate(zip(files, sources[1:], strict=True), 1):
        rows = {(row[1:7], size) for row, size in decode_file(source, None)[1]}
        for row, size in table:
            known = row[0] != number or (row[1:7], size) in rows
            require(known, "C-15", f"chunk at {row[1]} of {file.name} is none of that file")
    read_contents(sources, arrays, index, table)
    return (index["types"], arrays, nodes, metadata_nodes), table


def open_data_file(file: DataFile, folder: Path | None) -> memoryview:
    path = None if folder is None else folder / file.name
    require(path is not None and path.is_file(), "F-15", f"data file {file.name} is missing")
    assert path is not None
    nbytes = path.stat().st_size
    require(nbytes == file.nbytes, "F-16", f"data file {file.name}: {nbytes} bytes, not {file.nbytes}")
    data = memoryview(path.read_bytes())
    _, _, features = read_frame(data)
    require(features == 0, "F-17", f"data file {file.name} has data files")
    require(bytes(data[-80:-48]) == file.root, "F-18", f"data file {file.name} has another root")
    return data


def neutral(checkpoint: Checkpoint) -> dict[str, object]:
    """Return the document that vectors/README.md defines."""
    types, arrays, nodes, at = checkpoint
    forms = list(map(neutral_node, nodes))
    return {"types": types, "arrays": list(map(neutral_array, arrays)), "metadata": forms[:at], "tree": forms[at:]}


def neutral_node(node: Node) -> object:
    kind, payload, _ = node
    name, column = KINDS[kind]
    if column == "-":
        return name
    if column == "floats":
        parts = [payload[at : at + 8][::-1].hex() for at in range(0, len(payload), 8)]
        return {name: parts[0] if kind == FLOAT else parts}
    if column == "bytes":
        return {name: payload.hex()}
    return {name: payload.decode() if kind == STR else str(leaf_value(kind, payload)) if kind == INT else payload}


def neutral_array(array: Array) -> dict[str, object]:
    axes = {} if array.axes is None else {"axes": array.axes}
    short, content = array.nbytes <= 4096, array.content
    form = {"hex": content.hex()} if short else {"sha256": hashlib.sha256(content).hexdigest()}
    return {"dtype": array.descriptor, "shape": array.shape, **axes, **form}


# Python values.


class Record(NamedTuple):
    """An object as a reader without further knowledge gives it."""

    name: str
    fields: dict[str, object]


def read(data: bytes | memoryview, folder: Path | None = None) -> tuple[object, object]:
    """Return metadata and tree, with wrappers as their value and other objects as a Record."""
    types, array_forms, nodes, _ = decode(data, folder)
    arrays = list(map(numpy_array, array_forms))
    stack: list[Any] = []  # from the last node on, so that the children of each lie on it, the first on top
    for kind, payload, count in reversed(nodes):
        children = stack[: -count - 1 : -1]
        del stack[len(stack) - count :]
        if kind in (ARRAY, SCALAR):
            value: object = arrays[payload] if kind == ARRAY else numpy_scalar(arrays[payload])
        elif kind == DICT:
            value = dict(zip(children[:payload], children[payload:], strict=True))
        elif kind == OBJECT:
            class_kind, name, fields = types[payload]
            value = children[0] if class_kind == 0 else Record(name, dict(zip(fields, children, strict=True)))
        elif kind >= LIST:
            value = {LIST: list, TUPLE: tuple, SET: set, FROZENSET: frozenset}[kind](children)
        else:
            value = leaf_value(kind, payload)
        stack.append(value)
    return stack[1], stack[0]


def numpy_array(array: Array) -> np.ndarray[Any, Any]:
    stored = np.ndarray(array.stored_shape, array.dtype, bytearray(array.content))
    return stored if array.axes is None else stored.transpose(np.argsort(array.axes))


def numpy_scalar(array: np.ndarray[Any, Any]) -> object:
    # Taken out of an array, these two would lose the zeros at their end.
    if array.dtype.kind == "S":
        return np.bytes_(array.tobytes())
    if array.dtype.kind == "U":
        encoding = "utf-32-be" if array.dtype.str[0] == ">" else "utf-32-le"
        return np.str_(array.tobytes().decode(encoding, "surrogatepass"))
    return array[()]


def main(path: str) -> int:
    """Print the neutral form of a file, or why it is refused; return the exit status."""
    try:
        print(json.dumps(neutral(decode(Path(path).read_bytes(), Path(path).parent / "data"))))
    except OSError as error:
        print(f"cannot read the file: {error}", file=sys.stderr)
        return 2
    except Refused as refusal:
        print(f"refused: {refusal}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
