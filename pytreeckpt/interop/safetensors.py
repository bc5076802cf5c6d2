"""Safetensors files, and folders of them: a JSON header that says where each tensor lies, and the tensors.

The format is that of the safetensors README ("Format") and of safetensors/src/tensor.rs; a sharded folder is that of
transformers and huggingface_hub: `model.safetensors.index.json` names the file of each tensor. The tree is the flat
dict of the file. All that the format forbids is refused: gaps, overlaps, a length that is not that of shape and dtype,
bytes that belong to no tensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import ml_dtypes
import numpy as np

from pytreeckpt.dtypes import AnyDType
from pytreeckpt.errors import CorruptionError, LimitError, UnsupportedTypeError
from pytreeckpt.geometry import Shape
from pytreeckpt.index import MAX_RANK
from pytreeckpt.interop.foreign import Folder, ForeignArray, ForeignTree, contiguous
from pytreeckpt.interop.json_documents import is_text, parse_json
from pytreeckpt.interop.registered import registered
from pytreeckpt.limits import current_limits
from pytreeckpt.objects import Record
from pytreeckpt.reading import RangedSource, read

MAX_HEADER_NBYTES: Final = 100_000_000
"""As in safetensors itself."""
INDEX_SUFFIX: Final = ".safetensors.index.json"
FILE_SUFFIX: Final = ".safetensors"
METADATA: Final = "__metadata__"

# Bits of an item and the numpy dtype, if there is one; in the order of the enum in tensor.rs, by which the tensors of a
# file are sorted.
_TABLE: Final[Mapping[str, tuple[int, type[np.generic] | None]]] = {
    "BOOL": (8, np.bool_),
    "F4": (4, None),
    "F6_E2M3": (6, None),
    "F6_E3M2": (6, None),
    "U8": (8, np.uint8),
    "I8": (8, np.int8),
    "F8_E5M2": (8, ml_dtypes.float8_e5m2),
    "F8_E4M3": (8, ml_dtypes.float8_e4m3fn),
    "F8_E8M0": (8, ml_dtypes.float8_e8m0fnu),
    "F8_E4M3FNUZ": (8, ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": (8, ml_dtypes.float8_e5m2fnuz),
    "I16": (16, np.int16),
    "U16": (16, np.uint16),
    "F16": (16, np.float16),
    "BF16": (16, ml_dtypes.bfloat16),
    "I32": (32, np.int32),
    "U32": (32, np.uint32),
    "F32": (32, np.float32),
    "C64": (64, np.complex64),
    "F64": (64, np.float64),
    "I64": (64, np.int64),
    "U64": (64, np.uint64),
}
BITS: Final[Mapping[str, int]] = {name: bits for name, (bits, _) in _TABLE.items()}
"""Bits of an item of each dtype, in the order by which tensors are sorted (the last come first)."""
DTYPES: Final[Mapping[str, AnyDType]] = {
    name: np.dtype(type_).newbyteorder("<") for name, (_, type_) in _TABLE.items() if type_ is not None
}
"""The numpy dtype of each that has one."""
F4_NAME: Final = "float4_e2m1fn_x2"
"""What torch calls two F4 numbers in a byte."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of a file says: the tensors in its order, each with its first and last byte in the file, and the
    metadata.
    """

    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a file: a dtype of the format, the shape in items, and where its bytes begin and end in the file."""

    dtype: str
    shape: Shape
    start: int
    stop: int


def is_safetensors(head: bytes) -> bool:
    """Whether a file that begins with `head` (9 bytes are enough) is one, whole or cut off."""
    return len(head) >= 9 and head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= MAX_HEADER_NBYTES


def read_header(source: RangedSource) -> Header:
    """Read and check the header. Raises `CorruptionError` and `LimitError`."""
    if source.nbytes < 8:
        raise _corrupt(f"a file of {source.nbytes} bytes has no room for the length of a header")
    length = int.from_bytes(read(source, 0, 8), "little")
    if length > source.nbytes - 8:
        raise _corrupt(f"the header has {length} bytes, and the file {source.nbytes - 8} after its length")
    limit = min(MAX_HEADER_NBYTES, current_limits().index_nbytes)
    if length > limit:
        raise LimitError(f"the header has {length} bytes, more than the limit of {limit}")
    text = read(source, 8, length)
    document = parse_json(text, "the safetensors header")
    # The format has no space before it.
    if not isinstance(document, dict) or not text.startswith(b"{"):
        raise _corrupt("the header is not an object that begins at once")
    metadata = _metadata(document.pop(METADATA, None))
    tensors = {name: _entry(name, value, 8 + length, source.nbytes) for name, value in document.items()}
    _check_coverage(tensors, 8 + length, source.nbytes)
    return Header(tensors, metadata)


def _metadata(value: object) -> dict[str, str]:
    # A null is what tensor.rs takes for none.
    if value is None:
        return {}
    if isinstance(value, dict) and all(is_text(key) and is_text(text) for key, text in value.items()):
        return value
    raise _corrupt(f"{METADATA} is not an object of texts")


def _entry(name: str, value: object, base: int, nbytes: int) -> Entry:
    match value:
        case {"dtype": str(dtype), "shape": [*extents], "data_offsets": [start, stop], **others} if not others:
            pass
        case _:
            raise _corrupt(f"tensor {name[:80]!r} is not made of dtype, shape and two data_offsets")
    if not is_text(name):
        raise _corrupt(f"the name {name[:80]!r} is not made of characters")
    if dtype not in BITS:
        raise UnsupportedTypeError(
            f"tensor {name[:80]!r} has the dtype {dtype[:20]!r}, which is none of {', '.join(BITS)}"
        )
    shape = _shape(name, extents)
    for number in (start, stop):
        if type(number) is not int or number < 0:
            raise _corrupt(f"tensor {name[:80]!r}: a data_offset is no integer of 0 or more")
    if start > stop or stop > nbytes - base:
        raise _corrupt(f"tensor {name[:80]!r} lies at {start} to {stop} of {nbytes - base} bytes")
    n_bits = math.prod(shape) * BITS[dtype]
    if n_bits != 8 * (stop - start):
        raise _corrupt(
            f"tensor {name[:80]!r} has {stop - start} bytes, and {dtype}{list(shape)[:20]} takes {-(-n_bits // 8)}"
        )
    return Entry(dtype, shape, base + start, base + stop)


def _shape(name: str, extents: Sequence[object]) -> Shape:
    shape: list[int] = []
    for extent in extents:
        if type(extent) is not int or not 0 <= extent < 1 << 63:
            raise _corrupt(f"tensor {name[:80]!r}: an extent of its shape is no integer from 0 to 2**63 − 1")
        shape.append(extent)
    if len(shape) > MAX_RANK:
        raise UnsupportedTypeError(f"tensor {name[:80]!r} has {len(shape)} axes; numpy holds {MAX_RANK}")
    return tuple(shape)


def _check_coverage(tensors: Mapping[str, Entry], start: int, nbytes: int) -> None:
    """Every byte after the header belongs to one tensor."""
    at = start
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != at:
            what = "overlaps the one before it" if entry.start < at else "leaves a gap before it"
            raise _corrupt(f"tensor {name[:80]!r} begins at byte {entry.start}, which {what}, ending at {at}")
        at = entry.stop
    if at != nbytes:
        raise _corrupt(f"the tensors end at byte {at}, and the file has {nbytes}")


def read_safetensors(source: RangedSource) -> ForeignTree:
    """A file as a flat dict of arrays, in the order of its header.

    F4 tensors are records of `torch.PackedTensor`, as torch reads them: two numbers to a byte, the last axis half as
    long. F6 tensors, which no framework has, are arrays of their bytes, and a note says so.
    Raises `CorruptionError`, `LimitError` and `UnsupportedTypeError`.
    """
    header = read_header(source)
    tree, notes = _tree(source, header.tensors)
    return ForeignTree("safetensors", tree, dict(header.metadata) or None, (*notes, *_tied_notes(header)))


def _tree(source: RangedSource, tensors: Mapping[str, Entry]) -> tuple[dict[str, object], list[str]]:
    notes: list[str] = []
    tree: dict[str, object] = {}
    for name, entry in tensors.items():
        tree[name] = _leaf(source, name, entry)
        if entry.dtype.startswith("F6_"):
            notes.append(f"{name}: {entry.dtype}{list(entry.shape)} comes as its bytes, for which there is no dtype")
    return tree, notes


def _leaf(source: RangedSource, name: str, entry: Entry) -> ForeignArray | Record:
    if entry.dtype in DTYPES:
        return contiguous(source, entry.start, DTYPES[entry.dtype], entry.shape)
    octets: AnyDType = np.dtype(np.uint8)
    if entry.dtype != "F4":
        return contiguous(source, entry.start, octets, (entry.stop - entry.start,))
    if not entry.shape or entry.shape[-1] % 2:
        raise UnsupportedTypeError(
            f"tensor {name[:80]!r} is F4{list(entry.shape)}, whose last axis does not fill whole bytes"
        )
    shape = (*entry.shape[:-1], entry.shape[-1] // 2)
    data = contiguous(source, entry.start, octets, shape)
    return registered("torch.PackedTensor", data, F4_NAME, shape, False, False)  # noqa: FBT003 - its fields, in order


def _tied_notes(header: Header) -> list[str]:
    """What `safetensors.torch.save_model` leaves of tensors that it drops: the name of the one that they share."""
    tied = [
        f"{name} = {kept}"
        for name, kept in header.metadata.items()
        if kept in header.tensors and name not in header.tensors
    ]
    return ["shared when it was saved, by the metadata: " + ", ".join(sorted(tied))] if tied else []


# Folders.


def index_of(names: Sequence[str]) -> str | None:
    """The index of the shards, or the one file, that stands directly in a folder with these names; else None.

    `model.safetensors` comes before its index, as transformers has it. Raises `CorruptionError` if there are several
    to choose from.
    """
    here = [name for name in names if "/" not in name]
    indexes = [name for name in here if name.endswith(INDEX_SUFFIX)]
    preferred = [name for name in (f"model{FILE_SUFFIX}", f"model{INDEX_SUFFIX}") if name in here]
    candidates = preferred[:1] or indexes or [name for name in here if name.endswith(FILE_SUFFIX)]
    if len(candidates) > 1:
        raise _corrupt(f"the folder has {', '.join(candidates[:5])}; open one of them")
    return candidates[0] if candidates else None


def read_safetensors_folder(folder: Folder, index: str | None = None) -> ForeignTree:
    """All shards that an index names, as one flat dict in the order of the index. `index` is found if not given, and
    may also be the name of a single file.

    Raises `CorruptionError`, also where index and shards do not name the same tensors, `CheckpointNotFoundError` for
    a shard that is not there, `LimitError` and `UnsupportedTypeError`.
    """
    index = index_of(folder.names()) if index is None else index
    if index is None:
        raise _corrupt(f"the folder has neither a file {FILE_SUFFIX} nor an index {INDEX_SUFFIX} in it")
    document = folder.open(index)
    if not index.endswith(".json"):
        found = read_safetensors(document)
        return ForeignTree(found.format, found.tree, found.metadata, found.notes, sources=(document,))
    weight_map, metadata = read_index(document, index)
    parent = index[: index.rfind("/") + 1]
    sources: list[RangedSource] = [document]
    shards: dict[str, dict[str, object]] = {}
    of_shards: dict[str, Mapping[str, str]] = {}
    notes: list[str] = []
    for shard, names in names_by_shard(weight_map).items():
        source = folder.open(parent + shard)
        sources.append(source)
        header = read_header(source)
        _check_shard(shard, set(header.tensors), names)
        shards[shard], found_notes = _tree(source, header.tensors)
        notes += [*found_notes, *_tied_notes(header)]
        if header.metadata:
            of_shards[shard] = dict(header.metadata)
    tree = {name: shards[shard][name] for name, shard in weight_map.items()}
    about: dict[str, object] = {"index": metadata, "shards": of_shards}
    return ForeignTree("sharded safetensors", tree, about, tuple(notes), sources=tuple(sources))


def read_index(source: RangedSource, name: str) -> tuple[dict[str, str], dict[str, object]]:
    """The file of each tensor, and the metadata, of an index. Raises `CorruptionError` and `LimitError`."""
    limit = min(MAX_HEADER_NBYTES, current_limits().index_nbytes)
    if source.nbytes > limit:
        raise LimitError(f"{name} has {source.nbytes} bytes, more than the limit of {limit}")
    document = parse_json(read(source, 0, source.nbytes), name)
    match document:
        case {"weight_map": dict(weight_map), **rest}:
            metadata = rest.get("metadata", {})
        case _:
            raise _corrupt(f"{name} has no weight_map")
    if not isinstance(metadata, dict):
        raise _corrupt(f"the metadata of {name} is not an object")
    for tensor, shard in weight_map.items():
        if not is_text(tensor) or not is_text(shard):
            raise _corrupt(f"{name}: the weight_map is not an object of texts")
    return weight_map, metadata


def names_by_shard(weight_map: Mapping[str, str]) -> dict[str, set[str]]:
    """The tensors that an index says each file has, in its order."""
    meant: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        meant.setdefault(shard, set()).add(name)
    return meant


def _check_shard(shard: str, names: set[str], meant: set[str]) -> None:
    for odd, what in ((meant - names, "lacks"), (names - meant, "has, and the index has not in it")):
        if odd:
            raise _corrupt(f"shard {shard[:80]!r} {what}: {', '.join(sorted(odd)[:5])} ({len(odd)} in all)")


def _corrupt(message: str) -> CorruptionError:
    return CorruptionError(message, rule="safetensors")
