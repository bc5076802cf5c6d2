"""Dtypes as data: the closed list of spec/registries.md and section 6 of the format, to numpy and back.

A descriptor is what the dtype table of a file holds: a name, or a tuple that begins with one. It never reaches
`np.dtype` as text from a file; every name is looked up in a table made here.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, cast

import ml_dtypes
import numpy as np

from pytreeckpt.errors import CorruptionError, FormatVersionError, UnsupportedTypeError

Descriptor = str | tuple[object, ...]
AnyDType = np.dtype[np.generic]

_MAX_NBYTES = 1 << 31
_MAX_STRUCT_DEPTH = 32
_MAX_EXTENTS = 64
_TIME_UNITS = frozenset(["Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as", "generic"])

_ONE_BYTE = ("bool", "int8", "uint8")
_WIDE = (
    *("int16", "int32", "int64", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)
_ML_DTYPES = {
    "bfloat16": 2,
    "complex32": 4,
    "bcomplex32": 4,
    "float8_e3m4": 1,
    "float8_e4m3": 1,
    "float8_e4m3b11fnuz": 1,
    "float8_e4m3fn": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    "float6_e2m3fn": 1,
    "float6_e3m2fn": 1,
    "float4_e2m1fn": 1,
    "int1": 1,
    "uint1": 1,
    "int2": 1,
    "uint2": 1,
    "int4": 1,
    "uint4": 1,
}
_EXTENDED = {"float80_x87": 16, "complex160_x87": 32, "float128": 16, "complex256": 32}
_BY_MANTISSA_BITS = {63: ("float80_x87", "complex160_x87"), 112: ("float128", "complex256")}


def _simple_dtypes() -> dict[str, AnyDType]:
    table: dict[str, AnyDType] = {name: np.dtype(name) for name in _ONE_BYTE}
    for name in _WIDE:
        table[name] = np.dtype(name).newbyteorder("<")
        table[name + "_be"] = np.dtype(name).newbyteorder(">")
    for name in _ML_DTYPES:
        if hasattr(ml_dtypes, name):
            table[name] = np.dtype(getattr(ml_dtypes, name))
    extended = _BY_MANTISSA_BITS.get(int(np.finfo(np.longdouble).nmant))
    if extended is not None:
        pairs = zip(extended, (np.dtype(np.longdouble), np.dtype(np.clongdouble)), strict=True)
        table.update({name: dtype for name, dtype in pairs if dtype.itemsize == _EXTENDED[name]})
    return table


_SIMPLE: Mapping[str, AnyDType] = _simple_dtypes()
_NAME_OF: Mapping[AnyDType, str] = {dtype: name for name, dtype in _SIMPLE.items()}
_UNAVAILABLE = (set(_ML_DTYPES) | set(_EXTENDED)) - set(_SIMPLE)


def describe(dtype: AnyDType) -> Descriptor:
    """The descriptor of `dtype`. Raises `UnsupportedTypeError` for object, StringDType and unknown user dtypes."""
    name = _NAME_OF.get(dtype)
    if name is not None:
        return name
    # Not from a cache: numpy calls dtypes equal that differ in `isalignedstruct`, and M8[1000ps] equal to M8[ns].
    return _describe_struct(dtype) if dtype.names is not None else _describe_parametric(dtype)


def _describe_parametric(dtype: AnyDType) -> Descriptor:
    order = "_be" if dtype.byteorder == ">" or (dtype.byteorder == "=" and not np.little_endian) else ""
    descriptor: Descriptor | None = None
    match dtype.kind:
        case "S":
            descriptor = ("bytes", dtype.itemsize)
        case "U":
            descriptor = ("str" + order, dtype.itemsize // 4)
        case "M" | "m":
            unit, count = np.datetime_data(cast("np.dtype[np.datetime64]", dtype))
            descriptor = (("datetime64" if dtype.kind == "M" else "timedelta64") + order, unit, count)
        case "V" if dtype.type is np.void:
            descriptor = ("void", dtype.itemsize)
    return _checked(descriptor, dtype)


def _checked(descriptor: Descriptor | None, dtype: AnyDType) -> Descriptor:
    """The descriptor, if it gives the dtype back."""
    try:
        if descriptor is not None and parse(descriptor) == dtype:
            return descriptor
    except CorruptionError:
        # Of 2 GiB and more, or a struct that nests too deeply.
        pass
    raise UnsupportedTypeError(f"arrays of dtype {dtype} cannot be stored")


def _describe_struct(dtype: AnyDType) -> Descriptor:
    fields: list[tuple[object, ...]] = []
    for name, (field, offset, *title) in fields_of(dtype).items():
        if title and not isinstance(title[0], str):
            raise UnsupportedTypeError(f"the title {title[0]!r} of field {name!r} of dtype {dtype} is not a str")
        if _has_surrogate(name + "".join(title)):
            raise UnsupportedTypeError(
                f"the name or title of the field {name!r} of a struct dtype has a lone surrogate"
            )
        base, extents = field.subdtype or (field, ())
        fields.append((name, title[0] if title else None, describe(base), offset, tuple(extents)))
    descriptor = ("struct", dtype.itemsize, dtype.isalignedstruct, tuple(fields))
    # Items of another type, such as numpy.record, would come back as numpy.void.
    return _checked(descriptor if dtype.type is np.void else None, dtype)


def _has_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def parse(descriptor: object) -> AnyDType:
    """The numpy dtype of a descriptor (tuples or lists). Total: raises `CorruptionError` for whatever is not one.

    Raises `FormatVersionError` for a name that is in the registry and not available on this platform.
    """
    if isinstance(descriptor, str):
        found = _SIMPLE.get(descriptor)
        if found is not None:
            return found
    return _parse(descriptor, _MAX_STRUCT_DEPTH)


def _parse(descriptor: object, depth: int) -> AnyDType:
    match descriptor:
        case str() if descriptor in _SIMPLE:
            return _SIMPLE[descriptor]
        case str() if descriptor in _UNAVAILABLE:
            raise FormatVersionError(
                f"dtype {descriptor} is not available on this platform or with this ml_dtypes; use another "
                "platform or a newer ml_dtypes",
                rule="D-1",
            )
        case ["bytes", int(n)] if _bounded(n):
            return np.dtype((np.bytes_, n))
        case ["str" | "str_be" as name, int(n)] if _bounded(n) and _bounded(4 * n):
            return np.dtype((np.str_, n)).newbyteorder(_order(name))
        case ["void", int(n)] if _bounded(n):
            return np.dtype((np.void, n))
        case [
            "datetime64" | "datetime64_be" | "timedelta64" | "timedelta64_be" as name,
            str(unit),
            int(count),
        ] if unit in _TIME_UNITS and not isinstance(count, bool) and 1 <= count < _MAX_NBYTES:
            return _time_dtype(name, unit, count)
        case ["struct", int(itemsize), bool(aligned), [*fields]] if _bounded(itemsize) and depth > 0:
            return _parse_struct(itemsize, fields, depth - 1, aligned=aligned)
    raise CorruptionError(f"{_shown(descriptor)} is not a dtype of the format", rule="D-1")


def _integers(*values: object) -> bool:
    return all(type(value) is int for value in values)


def _bounded(n: int) -> bool:
    return not isinstance(n, bool) and 0 <= n < _MAX_NBYTES


def _order(name: str) -> Literal[">", "<"]:
    return ">" if name.endswith("_be") else "<"


def _shown(descriptor: object) -> str:
    try:
        text = reprlib.repr(descriptor)
    except RecursionError:
        return f"a {type(descriptor).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def _time_dtype(name: str, unit: str, count: int) -> AnyDType:
    letter = "M8" if name.startswith("datetime64") else "m8"
    if unit == "generic":
        if count != 1:
            raise CorruptionError(f"the unit generic has a count of {count}", rule="D-1")
        return np.dtype(f"{_order(name)}{letter}")
    # unit is one of _TIME_UNITS and count an int: no text of the file reaches numpy.
    return np.dtype(f"{_order(name)}{letter}[{count}{unit}]")


def _parse_struct(itemsize: int, fields: Sequence[object], depth: int, *, aligned: bool) -> AnyDType:
    names: list[str] = []
    titles: list[str | None] = []
    formats: list[object] = []
    offsets: list[int] = []
    for field in fields:
        match field:
            case [str(name), None | str() as title, inner, int(offset), [*extents]] if _integers(offset, *extents):
                base = _parse(inner, depth)
                shape = _extents(extents)
            case _:
                raise CorruptionError(f"{_shown(field)} is not a field of a struct dtype", rule="D-1")
        nbytes = base.itemsize
        for extent in shape:
            nbytes *= extent
        if not _bounded(offset) or offset + nbytes > itemsize:
            raise CorruptionError(f"field {name!r} reaches beyond the {itemsize} bytes of its struct", rule="D-2")
        names.append(name)
        titles.append(title)
        formats.append((base, shape) if shape else base)
        offsets.append(offset)
    labels = names + [title for title in titles if title is not None]
    if len(set(labels)) != len(labels):
        raise CorruptionError(f"the struct dtype names a field twice: {_shown(labels)}", rule="D-2")
    layout: Any = {"names": names, "formats": formats, "offsets": offsets, "titles": titles, "itemsize": itemsize}
    # Alignment is the platform's: where it would ask for other offsets, the same layout comes back not aligned.
    problem: Exception | None = None
    for align in [True, False] if aligned else [False]:
        try:
            return cast("AnyDType", np.dtype(layout, align=align))
        except (ValueError, TypeError, OverflowError) as error:
            problem = error
    raise CorruptionError(f"numpy refuses the struct dtype: {problem}", rule="D-2")


def _extents(extents: Sequence[Any]) -> tuple[int, ...]:
    shape: list[int] = []
    if len(extents) > _MAX_EXTENTS:
        raise CorruptionError(f"a sub-array has {len(extents)} extents, more than {_MAX_EXTENTS}", rule="D-2")
    for extent in extents:
        if not _bounded(extent):
            raise CorruptionError(f"a sub-array has an extent of {extent}", rule="D-2")
        shape.append(extent)
    return tuple(shape)


def fields_of(dtype: AnyDType) -> Mapping[str, Any]:
    """The fields of a struct by name: dtype, offset, and the title if there is one. Empty for other dtypes."""
    # The titles of fields are keys too.
    fields: Any = dtype.fields
    return {name: fields[name] for name in dtype.names or ()}


@lru_cache(maxsize=4096)
def has_padding(dtype: AnyDType) -> bool:
    """Whether items of `dtype` have bytes that no value determines (holes of a struct, padding of an x87 float)."""
    if dtype.subdtype is not None:
        return has_padding(dtype.subdtype[0])
    if dtype.names is None:
        return _NAME_OF.get(dtype) in {"float80_x87", "complex160_x87"}
    covered = np.zeros(dtype.itemsize, bool)
    for field, offset, *_ in fields_of(dtype).values():
        if has_padding(field):
            return True
        covered[offset : offset + field.itemsize] = True
    return not covered.all()
