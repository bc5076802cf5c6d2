"""What numpy's dtypes in a pickle mean: a code and a state, from a closed table and never by their text.

Source: `numpy/_core/src/multiarray/descriptor.c` (`arraydescr_reduce`, `arraydescr_setstate`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from pytreeckpt.dtypes import Descriptor, describe, parse
from pytreeckpt.errors import PytreeckptError
from pytreeckpt.index import MAX_RANK
from pytreeckpt.interop.pickle_values import UNFIT, Global, Instance, Ledger

_TYPE_CODE: Final = re.compile(r"([biufcSUVMmO])([0-9]{0,10})|\?", re.ASCII)
_NUMBERS: Final[Mapping[str, str]] = {
    "b1": "bool",
    **{f"i{size}": f"int{8 * size}" for size in (1, 2, 4, 8)},
    **{f"u{size}": f"uint{8 * size}" for size in (1, 2, 4, 8)},
    **{f"f{size}": f"float{8 * size}" for size in (2, 4, 8)},
    **{f"c{size}": f"complex{8 * size}" for size in (8, 16)},
}
_EXTENDED: Final = {"f16": np.dtype(np.longdouble), "c32": np.dtype(np.clongdouble)}
_ALIGNED_STRUCT: Final = 0x80
_OBJECT: Final = np.dtype(object)


def _dtype(instance: Instance, _ledger: Ledger) -> object:
    """`numpy.dtype(code, align, copy)`, and its state."""
    if not instance.args or instance.keywords or instance.elements or instance.pairs or len(instance.states) > 1:
        return UNFIT
    state = instance.states[0] if instance.states else ()
    if type(state) is not tuple or (state and not 5 <= len(state) <= 9):
        return UNFIT
    # Version 0 lacks the version, version 1 the names.
    order, subarray, names, fields = state[1:5] if state else ("|", None, None, None)
    itemsize, flags = (state[5], state[7]) if len(state) >= 8 else (-1, 0)
    code = instance.args[0]
    if subarray is not None or type(itemsize) is not int or type(flags) is not int or type(order) is not str:
        return UNFIT
    try:
        if names is not None:
            return _struct(names, fields, itemsize, aligned=bool(flags & _ALIGNED_STRUCT))
        return _simple(code, order, state[8] if len(state) == 9 else None)
    except PytreeckptError:
        return UNFIT


def _simple(code: object, order: str, metadata: object) -> object:
    if type(code) is Global:
        # The dtypes of ml_dtypes, which the pickle gives by their type.
        found = code.module == "ml_dtypes" and code.name in _ML_DTYPES
        return parse(code.name) if found else UNFIT
    match = _TYPE_CODE.fullmatch(code) if type(code) is str else None
    if match is None:
        return UNFIT
    kind, size = match[1] or "b", match[2] or ("" if match[1] else "1")
    dtype: object = UNFIT
    descriptor: Descriptor | None = None
    big = "_be" if order == ">" else ""
    if kind == "O":
        return _OBJECT
    if kind + size in _NUMBERS:
        name = _NUMBERS[kind + size]
        descriptor = name + (big if size != "1" else "")
    elif kind + size in _EXTENDED:
        dtype = _EXTENDED[kind + size] if not big else UNFIT
    elif kind in "SUV" and size:
        descriptor = ({"S": "bytes", "U": "str" + big, "V": "void"}[kind], int(size))
    elif kind in "Mm":
        descriptor = _time(kind, big, metadata)
    return dtype if descriptor is None else parse(descriptor)


_ML_DTYPES: Final = frozenset(
    [
        *("bfloat16", "complex32", "bcomplex32", "float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn"),
        *("float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float6_e2m3fn", "float6_e3m2fn"),
        *("float4_e2m1fn", "int1", "uint1", "int2", "uint2", "int4", "uint4"),
    ]
)


def _time(kind: str, big: str, metadata: object) -> Descriptor | None:
    match metadata:
        case (_, (bytes() | str() as unit, int(count), 1, 1 | int())):
            pass
        case None:
            unit, count = "generic", 1
        case _:
            return None
    text = unit.decode("latin-1") if isinstance(unit, bytes) else unit
    return ("datetime64" if kind == "M" else "timedelta64") + big, text, count


def _struct(names: object, fields: object, itemsize: int, *, aligned: bool) -> object:
    if type(names) is not tuple or type(fields) is not dict:
        return UNFIT
    rows: list[tuple[object, ...]] = []
    for name in names:
        match fields.get(name) if type(name) is str else None:
            case (np.dtype() as field, int(offset), *titles) if len(titles) <= 1:
                title = titles[0] if titles else None
            case _:
                return UNFIT
        base, extents = field.subdtype or (field, ())
        rows.append((name, title, describe(base), offset, tuple(extents)))
    return parse(("struct", itemsize, aligned, tuple(rows)))


def dtype_of(instance: Instance, ledger: Ledger) -> object:
    """`numpy.dtype(code, align, copy)` and its state; with a sub-array too, which only fields of structs have."""
    match instance.states:
        case [(int(), "|", (np.dtype() as base, tuple(extents)), None, None, *_)] if len(extents) <= MAX_RANK and all(
            type(extent) is int and 0 <= extent < 1 << 31 for extent in extents
        ):
            if math.prod(extents) * base.itemsize >= 1 << 31:
                return UNFIT
            return np.dtype((base, extents))
    return _dtype(instance, ledger)


def string_dtype_of(instance: Instance, _ledger: Ledger) -> object:
    """`_convert_to_stringdtype_kwargs(coerce, missing)`: numpy's StringDType."""
    match instance.args:
        case (int(coerce),):
            return np.dtypes.StringDType(coerce=bool(coerce))
        case (int(coerce), None | str() | float() as missing) if missing is None or isinstance(missing, str):
            keywords: dict[str, Any] = {"na_object": missing}
            return np.dtypes.StringDType(coerce=bool(coerce), **keywords)
        case (int(coerce), float(missing)) if math.isnan(missing):
            keywords = {"na_object": missing}
            return np.dtypes.StringDType(coerce=bool(coerce), **keywords)
    return UNFIT
