"""Raw bytes to `Index` (sections 3 to 8 of the format). Total: any bytes give an index of which every table is
consistent, or an error with the broken rule.
"""

from __future__ import annotations

import math
from itertools import accumulate, pairwise
from typing import Any, Final

import msgpack
import numpy as np

from pytreeckpt.chunk_table import check_chunks, decode_chunks, decode_files, first_chunks
from pytreeckpt.dtypes import AnyDType, parse
from pytreeckpt.errors import CorruptionError, LimitError
from pytreeckpt.geometry import Shape
from pytreeckpt.index import (
    CHUNKED,
    HAS_AXES,
    HAS_CUTS,
    MAX_RANK,
    POOLED,
    ArrayEntry,
    Index,
    column,
)
from pytreeckpt.limits import Limits
from pytreeckpt.nodes import SCALAR, Nodes, check_first_use, validate_nodes
from pytreeckpt.objects import MAX_FIELDS, ClassKind, ObjectType, check_registered

_MAX_NBYTES: Final = 1 << 63
# The dtype table is the third level of the index; the rest is for structs in structs.
_MAX_NESTING: Final = 126

_COLUMNS: Final = {
    "kinds": "u1",
    "counts": "<u8",
    "ints": "<i8",
    "floats": "<f8",
    "objects": "<u4",
    "arrays": "<u4",
}
_SCHEMA: Final[dict[str, Any]] = {
    "nodes": {
        **dict.fromkeys(("kinds", "counts", "ints", "floats"), bytes),
        "strings": list,
        "bytes": list,
        "objects": bytes,
        "arrays": bytes,
    },
    "types": list,
    "dtypes": list,
    "arrays": dict.fromkeys(
        ("dtype", "rank", "shape", "layout", "axes", "cut_counts", "cuts", "chunk_counts", "pools"), bytes
    ),
    "inline": bytes,
    "chunks": dict.fromkeys(("file", "offset", "stored", "raw", "codec", "check", "digest", "identity"), bytes),
    "files": list,
}


def decode_index(raw: bytes, *, index_offset: int, limits: Limits, features: int = 0) -> Index:
    """The index of these raw bytes, with all that can be checked without chunks and without building the tree.
    `features`: those of the preamble.

    Raises `CorruptionError` (I-1 to C-6, C-11 to C-13), `FormatVersionError` (C-2, D-1) and `LimitError`.
    """
    document = _unpack(raw)
    nodes = _decode_nodes(document["nodes"], document["types"])
    if len(nodes.kinds) > limits.nodes:
        raise LimitError(
            f"the tree has {len(nodes.kinds)} nodes, more than the limit of {limits.nodes}; raise it with "
            "pytreeckpt.limits(nodes=…)"
        )
    descriptors = [_frozen(entry, _MAX_NESTING) for entry in document["dtypes"]]
    dtypes = [parse(descriptor) for descriptor in descriptors]
    arrays, sizes = _decode_arrays(document["arrays"], dtypes)
    check_first_use([entry.dtype for entry in arrays], len(dtypes), rule="D-3", what="dtypes")
    if len(set(descriptors)) != len(descriptors):
        raise CorruptionError("the dtype table has an entry twice", rule="D-3")
    starts = _locate_inline(arrays, sizes, len(document["inline"]))
    validate_nodes(nodes, len(arrays))
    _check_scalars(nodes, arrays)
    files = decode_files(document["files"], features, limits)
    chunks = decode_chunks(document["chunks"], len(files))
    pools: list[int] = column(document["arrays"], "pools", "<u4").tolist()
    first_chunk = first_chunks(arrays, pools, len(chunks))
    index = Index(
        nodes, dtypes, descriptors, arrays, document["inline"], chunks, first_chunk, starts, sizes, pools, files
    )
    check_chunks(index, index_offset=index_offset, limits=limits)
    return index


def _unpack(raw: bytes) -> Any:
    try:
        unpacker = _unpacker(raw)
        # Without making anything of it.
        unpacker.skip()
        end = unpacker.tell()
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise CorruptionError(
            f"the index is not one msgpack object: {type(error).__name__} {error}", rule="I-1"
        ) from None
    if end != len(raw):
        raise CorruptionError(f"the index goes on after its msgpack object of {end} bytes", rule="I-1")
    document = _take_value(_unpacker(raw), _SCHEMA, "the index")
    try:
        again = msgpack.packb(document, use_bin_type=True)
    except (ValueError, RecursionError):
        raise CorruptionError("the index nests too deeply", rule="I-1") from None
    if again != raw:
        raise CorruptionError("the index is not in its one shortest encoding", rule="I-1")
    return document


def _unpacker(raw: bytes) -> msgpack.Unpacker:
    # msgpack allocates as many items as an array declares, on every level on which one is nested in another.
    unpacker = msgpack.Unpacker(
        max_buffer_size=max(len(raw), 1), max_array_len=MAX_FIELDS, strict_map_key=False, ext_hook=_no_extension
    )
    unpacker.feed(raw)
    return unpacker


def _no_extension(code: int, _payload: bytes) -> object:
    raise CorruptionError(f"the index has a value of extension type {code}", rule="I-1")


def _take_value(unpacker: msgpack.Unpacker, schema: dict[str, Any] | type, where: str) -> Any:
    """The next value, which must be as the schema says; the items of a list may be anything."""
    if schema is bytes:
        value = _take_item(unpacker, where)
        if type(value) is not bytes:
            raise CorruptionError(f"{where} is a {type(value).__name__} instead of a bin", rule="I-2")
        return value
    try:
        count = unpacker.read_array_header() if schema is list else unpacker.read_map_header()
    except ValueError:
        raise CorruptionError(f"{where} is not {'an array' if schema is list else 'a map'}", rule="I-2") from None
    if not isinstance(schema, dict):
        return [_take_item(unpacker, where) for _ in range(count)]
    document: dict[str, Any] = {}
    for key, inner in schema.items():
        if count != len(schema) or _take_item(unpacker, where) != key:
            raise CorruptionError(f"{where} is not a map of {', '.join(schema)}", rule="I-2")
        document[key] = _take_value(unpacker, inner, f"{where}/{key}")
    return document


def _take_item(unpacker: msgpack.Unpacker, where: str) -> Any:
    try:
        return unpacker.unpack()
    except UnicodeError as error:
        raise CorruptionError(f"{where} has a text that is not UTF-8: {error}", rule="I-4") from None
    except CorruptionError:
        raise
    except TypeError as error:
        raise CorruptionError(f"{where} has a map with a strange key: {error}", rule="I-2") from None
    except ValueError as error:
        raise LimitError(f"{where} has an entry of more than {MAX_FIELDS} items: {error}") from None


def _all_of(values: list[Any], cls: type, what: str) -> None:
    if not all(type(value) is cls for value in values):
        raise CorruptionError(f"{what} is not a list of {cls.__name__}", rule="I-2")


def _decode_nodes(document: dict[str, Any], types: list[Any]) -> Nodes:
    _all_of(document["strings"], str, "nodes/strings")
    _all_of(document["bytes"], bytes, "nodes/bytes")
    columns = {name: column(document, name, dtype).tolist() for name, dtype in _COLUMNS.items() if name != "kinds"}
    return Nodes(
        kinds=bytearray(document["kinds"]),
        strings=document["strings"],
        blobs=document["bytes"],
        types=_decode_types(types),
        **columns,
    )


def _decode_types(entries: list[Any]) -> list[ObjectType]:
    types = [_decode_type(entry) for entry in entries]
    if len(set(types)) != len(types):
        raise CorruptionError("the type table has an entry twice", rule="T-3")
    return types


def _decode_type(entry: Any) -> ObjectType:
    match entry:
        case [int(class_kind), str(name), [*fields]] if not isinstance(class_kind, bool):
            _all_of(fields, str, "the fields of a type")
        case _:
            raise CorruptionError("an entry of the type table is not [class kind, name, fields]", rule="I-2")
    if class_kind not in {kind.value for kind in ClassKind}:
        raise CorruptionError(f"type {name!r} has the unknown class kind {class_kind}", rule="T-1")
    kind = ClassKind(class_kind)
    bad_enum = kind is ClassKind.ENUM and fields != ["name", "value"]
    bad_wrapper = kind is ClassKind.WRAPPER and not fields
    if len(set(fields)) != len(fields) or bad_enum or bad_wrapper or not name:
        raise CorruptionError(f"type {name!r} has no name, or fields that its class kind cannot have", rule="T-2")
    type_ = ObjectType(kind, name, tuple(fields))
    check_registered(type_)
    return type_


def _frozen(value: Any, depth: int) -> Any:
    if not isinstance(value, list):
        return value
    if not depth:
        raise CorruptionError(f"an entry of the dtype table nests more than {_MAX_NESTING} deep", rule="I-1")
    return tuple(_frozen(item, depth - 1) for item in value)


def _decode_arrays(document: dict[str, bytes], dtypes: list[AnyDType]) -> tuple[list[ArrayEntry], list[int]]:
    """The array table, and the bytes of each array."""
    dtype_ids: list[int] = column(document, "dtype", "<u4").tolist()
    ranks = document["rank"]
    layouts = document["layout"]
    if not len(dtype_ids) == len(ranks) == len(layouts):
        raise CorruptionError("the columns dtype, rank and layout of the array table differ in length", rule="I-3")
    #
    if ranks and (max(ranks) > MAX_RANK or max(layouts) > CHUNKED + HAS_AXES + HAS_CUTS + POOLED):
        raise CorruptionError(f"an array has a rank of more than {MAX_RANK}, or an unknown layout bit", rule="A-1")
    take_extents = _Taker(column(document, "shape", "<u8").tolist())
    take_axes = _Taker(list(document["axes"]))
    take_cut_counts = _Taker(column(document, "cut_counts", "<u4").tolist())
    take_cuts = _Taker(column(document, "cuts", "<u8").tolist())
    take_counts = _Taker(column(document, "chunk_counts", "<u4").tolist())
    arrays: list[ArrayEntry] = []
    sizes: list[int] = []
    plain: dict[tuple[int, int, Shape], tuple[ArrayEntry, int]] = {}
    for dtype_id, rank, layout in zip(dtype_ids, ranks, layouts, strict=True):
        if dtype_id >= len(dtypes):
            raise CorruptionError(f"an array has dtype {dtype_id} of {len(dtypes)}", rule="D-3")
        shape = take_extents(rank)
        if (layout, dtype_id, shape) in plain:
            # Large trees have many small arrays of few shapes.
            entry, nbytes = plain[layout, dtype_id, shape]
            arrays.append(entry)
            sizes.append(nbytes)
            continue
        axes = take_axes(rank) if layout & HAS_AXES else None
        cuts = tuple(take_cuts(count) for count in take_cut_counts(rank)) if layout & HAS_CUTS else None
        entry = ArrayEntry(dtype_id, shape, axes, cuts)
        if layout or max(shape, default=0) >= 1 << 31:
            _check_layout(entry, layout)
        nbytes = _checked_size(entry, dtypes[dtype_id].itemsize, in_chunks=bool(layout & (CHUNKED | POOLED)))
        if layout & CHUNKED:
            n_boxes = 1 if cuts is None else math.prod(len(axis) + 1 for axis in cuts)
            entry = ArrayEntry(dtype_id, shape, axes, cuts, take_counts(n_boxes))
        elif layout & POOLED:
            entry = ArrayEntry(dtype_id, shape, axes, cuts, (1,), pooled=True)
        if not layout & ~POOLED:
            plain[layout, dtype_id, shape] = entry, nbytes
        arrays.append(entry)
        sizes.append(nbytes)
    for take in (take_extents, take_axes, take_cut_counts, take_cuts, take_counts):
        take.finish()
    return arrays, sizes


class _Taker:
    """Takes the entries of a column one array after the other (A-6)."""

    def __init__(self, column: list[int]) -> None:
        self.column = column
        self.at = 0

    def __call__(self, count: int) -> Shape:
        start = self.at
        self.at += count
        if self.at > len(self.column):
            raise CorruptionError("a column of the array table is too short", rule="A-6")
        return tuple(self.column[start : self.at])

    def finish(self) -> None:
        if self.at != len(self.column):
            raise CorruptionError("a column of the array table is too long", rule="A-6")


def _check_layout(entry: ArrayEntry, layout: int) -> None:
    if layout & CHUNKED and layout & POOLED:
        raise CorruptionError("an array is both chunked and pooled", rule="A-9")
    rank = len(entry.shape)
    if entry.axes is not None and (sorted(entry.axes) != list(range(rank)) or list(entry.axes) == list(range(rank))):
        raise CorruptionError(
            f"the axes {entry.axes} of an array are not a permutation other than the identity", rule="A-2"
        )
    if entry.cuts is None:
        return
    for axis, extent in zip(entry.cuts, entry.stored_shape, strict=True):
        if axis and (axis[0] <= 0 or axis[-1] >= extent or any(low >= high for low, high in pairwise(axis))):
            raise CorruptionError(f"the cuts {axis} of an axis of {extent} are not ascending within it", rule="A-3")
    if not layout & CHUNKED or not any(entry.cuts):
        raise CorruptionError("an array without cuts, or not chunked, says that it has cuts", rule="A-3")


def _checked_size(entry: ArrayEntry, itemsize: int, *, in_chunks: bool) -> int:
    if max(itemsize, 1) * math.prod(extent for extent in entry.shape if extent) >= _MAX_NBYTES:
        raise CorruptionError(f"an array of shape {entry.shape} has 2^63 bytes or more", rule="A-4")
    nbytes = math.prod(entry.shape) * itemsize
    if nbytes == 0 and (in_chunks or entry.axes is not None):
        raise CorruptionError("an array of zero bytes is not inline, or has axes", rule="A-5")
    return nbytes


def _locate_inline(arrays: list[ArrayEntry], sizes: list[int], inline_nbytes: int) -> list[int]:
    inline = (0 if entry.chunk_counts else nbytes for entry, nbytes in zip(arrays, sizes, strict=True))
    offsets = list(accumulate(inline, initial=0))
    needed = offsets.pop()
    if needed != inline_nbytes:
        raise CorruptionError(f"the inline arrays need {needed} bytes, and there are {inline_nbytes}", rule="A-7")
    return offsets


def _check_scalars(nodes: Nodes, arrays: list[ArrayEntry]) -> None:
    kinds = np.frombuffer(nodes.kinds, np.uint8)
    of_scalar = kinds[(kinds == SCALAR) | (kinds == SCALAR - 1)] == SCALAR
    if not of_scalar.any():
        return
    references = np.array(nodes.arrays, np.int64)
    uses = np.bincount(references)
    scalars = references[of_scalar]
    if bool((uses[scalars] != 1).any()) or any(
        arrays[scalar].shape or arrays[scalar].chunk_counts for scalar in scalars.tolist()
    ):
        raise CorruptionError("the array of a scalar has axes, is chunked, or is used elsewhere too", rule="N-11")
