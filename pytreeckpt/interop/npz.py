"""numpy's files: `.npy`, one array, and `.npz`, a zip of them.

The format is that of numpy.lib.format (NEP 1): a magic, a version, and a header that is a Python dict of `descr`,
`fortran_order` and `shape`. Headers are read as literals, dtypes by a closed grammar, and arrays of Python objects,
which numpy pickles, by the inert reader of pickles.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

import numpy as np

from pytreeckpt import dtypes
from pytreeckpt.dtypes import AnyDType, Descriptor
from pytreeckpt.errors import CorruptionError, LimitError, UnsupportedTypeError
from pytreeckpt.geometry import Shape
from pytreeckpt.index import MAX_RANK
from pytreeckpt.interop.archives import Member, check_member, checks_of, members
from pytreeckpt.interop.foreign import ForeignArray, ForeignTree, contiguous_strides, strided
from pytreeckpt.interop.literals import parse_literal
from pytreeckpt.interop.pickles import load_pickle
from pytreeckpt.limits import current_limits
from pytreeckpt.reading import RangedSource, read

MAGIC: Final = b"\x93NUMPY"
SUFFIX: Final = ".npy"
_MAX_HEADER_NBYTES: Final = 1 << 20
_NUMERIC: Final = {
    letter + size: f"{kind}{8 * int(size)}"
    for letter, kind, sizes in (("i", "int", "1248"), ("u", "uint", "1248"), ("f", "float", "248"))
    for size in sizes
} | {"b1": "bool", "c8": "complex64", "c16": "complex128"}
_SIMPLE: Final = re.compile(r"([<>|=]?)([biufcSUVW])([0-9]{1,10})")
_TIME: Final = re.compile(r"([<>|=]?)([Mm])8(?:\[([1-9][0-9]{0,9})?([a-zA-Z]{1,7})\])?")
_MAX_FIELD_DEPTH: Final = 16


class NpyHeader(NamedTuple):
    """What a `.npy` says of its array, and where its items begin. `dtype` is None for Python objects."""

    dtype: AnyDType | None
    shape: Shape
    fortran_order: bool
    start: int
    notes: tuple[str, ...]


def is_npy(head: bytes) -> bool:
    """Whether a file begins as a `.npy` does."""
    return head.startswith(MAGIC)


def is_npz(names: Collection[str]) -> bool:
    """Whether a zip with these members is a `.npz`: all are `.npy`, and there is one."""
    return bool(names) and all(name.endswith(SUFFIX) for name in names)


def read_npy(source: RangedSource) -> ForeignTree:
    """A `.npy`: the tree is the array.

    Raises `CorruptionError`, `LimitError`, and `UnsupportedTypeError` for dtypes that are not in the registry.
    """
    value, notes = _array(source)
    return ForeignTree("npy", value, notes=notes)


def read_npz(source: RangedSource) -> ForeignTree:
    """A `.npz`. Raises `CorruptionError`, `UnsupportedTypeError` and `LimitError`."""
    return read_npz_archive(members(source))


def read_npz_archive(archive: Mapping[str, Member]) -> ForeignTree:
    """A `.npz` as a dict of its arrays by their names, without `.npy`, in the order of the zip.

    bfloat16 and its like, which numpy writes as bytes without a dtype, stay such, and a note says so.
    Raises `CorruptionError`, `UnsupportedTypeError` and `LimitError`.
    """
    tree: dict[str, object] = {}
    notes: list[str] = []
    for member in archive.values():
        if not member.name.endswith(SUFFIX):
            raise _corrupt(f"the member {member.name[:80]!r} is no {SUFFIX}")
        name = member.name.removesuffix(SUFFIX)
        tree[name], found = _array(member.source)
        value = tree[name]
        if not isinstance(value, ForeignArray) or not value.nbytes:
            # All of it is told already, and nothing will be read that could be checked then.
            check_member(member)
        notes += [f"{name}: {note}" for note in found]
    return ForeignTree("npz", tree, None, tuple(notes), checks_of(archive))


def _array(source: RangedSource) -> tuple[object, tuple[str, ...]]:
    header = read_npy_header(source)
    if header.dtype is None:
        return _objects(source, header), header.notes
    nbytes = math.prod(header.shape) * header.dtype.itemsize
    if nbytes != source.nbytes - header.start:
        raise _corrupt(
            f"the array {header.dtype}{list(header.shape)} takes {nbytes} bytes, and {source.nbytes - header.start} "
            "follow the header"
        )
    strides = contiguous_strides(header.shape, header.dtype.itemsize)
    if header.fortran_order:
        strides = contiguous_strides(header.shape[::-1], header.dtype.itemsize)[::-1]
    return strided(source, header.start, header.dtype, header.shape, strides), header.notes


def _objects(source: RangedSource, header: NpyHeader) -> object:
    nbytes = source.nbytes - header.start
    if nbytes > current_limits().index_nbytes:
        raise LimitError(
            f"the pickle of an array of objects has {nbytes} bytes, more than the limit of "
            f"{current_limits().index_nbytes}; raise it with pytreeckpt.limits(index_nbytes=…)"
        )
    return load_pickle(bytes(read(source, header.start, nbytes)))


def read_npy_header(source: RangedSource) -> NpyHeader:
    """Read and check a header. Raises `CorruptionError`, `LimitError` and `UnsupportedTypeError`."""
    head = bytes(read(source, 0, min(12, source.nbytes)))
    if not head.startswith(MAGIC):
        raise _corrupt("it does not begin as a .npy does")
    version = tuple(head[6:8])
    if version not in {(1, 0), (2, 0), (3, 0)}:
        raise UnsupportedTypeError(f".npy of version {'.'.join(map(str, version))}; 1.0, 2.0 and 3.0 are known")
    start = 10 if version == (1, 0) else 12
    length = int.from_bytes(head[8:start], "little")
    if len(head) < start or length > source.nbytes - start:
        raise _corrupt(f"the header of {length} bytes is cut off")
    if length > _MAX_HEADER_NBYTES:
        raise LimitError(f"the header of a .npy has {length} bytes, more than {_MAX_HEADER_NBYTES}")
    raw = read(source, start, length)
    try:
        text = raw.decode("utf-8" if version == (3, 0) else "latin-1")
    except UnicodeDecodeError as error:
        raise _corrupt(f"the header is not UTF-8: {error.reason}") from None
    match parse_literal(text):
        case {"descr": descr, "fortran_order": bool(fortran_order), "shape": tuple(extents), **others} if not others:
            pass
        case _:
            raise _corrupt("the header is not made of descr, fortran_order and shape")
    for extent in extents:
        if type(extent) is not int or not 0 <= extent < 1 << 63:
            raise _corrupt("an extent of the shape is no integer from 0 to 2**63 − 1")
    if len(extents) > MAX_RANK:
        raise UnsupportedTypeError(f"an array has {len(extents)} axes; numpy holds {MAX_RANK}")
    dtype = None if descr in ("|O", "O") else dtypes.parse(_descriptor(descr, 0))
    return NpyHeader(dtype, extents, fortran_order, start + length, _notes(descr))


def _notes(descr: object) -> tuple[str, ...]:
    # numpy writes its own bytes without an order.
    if isinstance(descr, str) and (re.fullmatch(r"<V[0-9]+", descr) or descr in {"<f1", "<W4"}):
        return (f"saved by numpy as {descr}, without its dtype (bfloat16 is <V2): view the array as what it was",)
    return ()


def _descriptor(descr: object, depth: int) -> Descriptor:
    """A descriptor of the format for what numpy's `dtype.descr` gives."""
    if depth > _MAX_FIELD_DEPTH:
        raise LimitError(f"a dtype nests more than {_MAX_FIELD_DEPTH} levels of fields")
    if isinstance(descr, str):
        found = _named(descr)
        if found is None:
            raise UnsupportedTypeError(f"the dtype {descr[:40]!r} is none that arrays in files have")
        return found
    if not isinstance(descr, list):
        raise _corrupt("the descr of a dtype is neither a text nor a list of fields")
    fields: list[tuple[object, ...]] = []
    offset = 0
    for field in descr:
        name, title, inner, extents = _field(field)
        base = _descriptor(inner, depth + 1)
        if name or base[0] != "void":
            # A void without a name is a gap.
            fields.append((name, title, base, offset, extents))
        offset += dtypes.parse(base).itemsize * math.prod(extents)
    return ("struct", offset, False, tuple(fields))


def _field(field: object) -> tuple[str, str | None, object, Shape]:
    """The name, title, dtype and shape of a field."""
    match field:
        case (label, inner):
            shape: Shape = ()
        case (label, inner, int(extent)):
            shape = (extent,)
        case (label, inner, tuple(extents)):
            shape = extents
        case _:
            label, inner, shape = None, None, ()
    match label:
        case str(name):
            title = None
        case (str(title), str(name)):
            pass
        case _:
            raise _corrupt("a field of a dtype is not made of name, dtype and perhaps a shape")
    if not all(type(extent) is int and extent >= 0 for extent in shape):
        raise _corrupt(f"the shape of the field {name[:40]!r} is not made of integers of 0 or more")
    return name, title, inner, shape


def _named(descr: str) -> Descriptor | None:
    order = "_be" if descr[:1] == ">" else ""
    time, simple = _TIME.fullmatch(descr), _SIMPLE.fullmatch(descr)
    if time is not None:
        name = "datetime64" if time[2] == "M" else "timedelta64"
        return (name + order, time[4] or "generic", int(time[3] or 1))
    if simple is None:
        return None
    kind, size = simple[2], int(simple[3])
    match kind:
        case "S":
            return ("bytes", size)
        case "U":
            return ("str" + order, size)
        case "V" | "W":
            return ("void", size)
        case "f" if size == 1:
            # numpy takes one of ml_dtypes for a float, and then cannot read what it wrote.
            return ("void", size)
        case "f" if size == 16 and not order:
            return _extended(np.dtype(np.longdouble), size)
        case "c" if size == 32 and not order:
            return _extended(np.dtype(np.clongdouble), size)
    found = _NUMERIC.get(f"{kind}{size}")
    return found if found is None or size == 1 else found + order


def _extended(dtype: AnyDType, itemsize: int) -> Descriptor | None:
    return dtypes.describe(dtype) if dtype.itemsize == itemsize else None


def _corrupt(message: str) -> CorruptionError:
    return CorruptionError(message, rule="npy")
