"""Whether two trees are the same, bit by bit, type by type, and with the same arrays shared.

Independent of `pytreeckpt.testing`, so that each checks the other.
"""

import argparse
import dataclasses
import enum
import pathlib
import struct
import types
from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any

import numpy as np

from pytreeckpt import NamedTupleRecord, Record


def difference(a: object, b: object) -> str | None:
    """The first difference between two trees, or None. Iterative, so any depth will do."""
    pending: list[tuple[str, Any, Any]] = [("", a, b)]
    # Arrays are shared in b exactly where they are shared in a. The pairs also keep the ids valid.
    twins: dict[tuple[Any, ...], np.ndarray] = {}
    owners: dict[int, np.ndarray] = {}
    while pending:
        at, x, y = pending.pop()
        if type(x) is not type(y) and not (isinstance(x, np.memmap) and type(y) is np.ndarray):
            return f"{at}: {type(x)} and {type(y)}"
        if isinstance(x, np.ndarray):
            found = _array_difference(x, y, pending, at)
            if found is None and x.dtype.kind not in "OT":
                if twins.setdefault(_view(x), y) is not y:
                    found = "not shared any more"
                # Whether different views of no bytes are the same is nobody's concern.
                if x.nbytes and _view(owners.setdefault(id(y), x)) != _view(x):
                    found = "shared now"
            if found is not None:
                return f"{at}: {found}"
            continue
        inside = _children(x, y)
        if inside is None:
            if not same_leaf(x, y):
                return f"{at}: {shown(x)} and {shown(y)}"
            continue
        left, right = inside
        if len(left) != len(right):
            return f"{at}: {len(left)} and {len(right)} children"
        pending.extend(
            (f"{at[-200:]}/{i}", u, v) for i, (u, v) in reversed(list(enumerate(zip(left, right, strict=True))))
        )
    return None


def _view(array: np.ndarray) -> tuple[Any, ...]:
    """Equal for arrays that are one object or show exactly the same memory in the same way."""
    if array.nbytes == 0:
        return (id(array),)
    return (array.__array_interface__["data"][0], array.shape, array.strides, repr(array.dtype))


def _array_difference(x: np.ndarray, y: np.ndarray, pending: list[tuple[str, Any, Any]], at: str) -> str | None:
    if not same_dtype(x.dtype, y.dtype):
        return f"dtypes {x.dtype!r} and {y.dtype!r}"
    if x.shape != y.shape:
        return f"shapes {x.shape} and {y.shape}"
    if x.dtype.kind in "OT":
        pending.append((at, x.reshape(-1).tolist(), y.reshape(-1).tolist()))
        return None
    if item_bytes(x) != item_bytes(y):
        return f"items {shown(x)} and {shown(y)}"
    if expected_strides(x) != y.strides and x.size > 0 and x.itemsize > 0:
        return f"strides {x.strides} and {y.strides}"
    return None


def same_dtype(a: np.dtype, b: np.dtype) -> bool:
    """numpy's equality, and whether structs are aligned and in which order their fields stand."""
    if a != b or type(a) is not type(b) or a.type is not b.type or a.isalignedstruct != b.isalignedstruct:
        return False
    if a.subdtype is not None and b.subdtype is not None:
        return a.subdtype[1] == b.subdtype[1] and same_dtype(a.subdtype[0], b.subdtype[0])
    return a.names == b.names and all(same_dtype(a[name], b[name]) for name in a.names or ())


def item_bytes(array: np.ndarray) -> bytes:
    """The bytes of the items in C order, without those that no field covers."""
    dtype = array.dtype
    if dtype.names is not None:
        return b"".join(item_bytes(array[name]) for name in dtype.names)
    if dtype.kind in "fc" and dtype.itemsize in {16, 32} and dtype.type in {np.longdouble, np.clongdouble}:
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(-1, 16)
        return raw[:, :10].tobytes() if np.finfo(np.longdouble).nmant == 63 else raw.tobytes()
    return array.tobytes()


def expected_strides(array: np.ndarray) -> tuple[int, ...]:
    """Those of the array if it is dense in some order of its axes, otherwise those of C order."""
    axes = sorted(range(array.ndim), key=lambda axis: (-array.strides[axis], axis))
    axes = [axis for axis in axes if array.shape[axis] != 1]
    step = array.itemsize
    for axis in reversed(axes):
        if array.strides[axis] != step:
            return np.empty(array.shape, array.dtype).strides
        step *= array.shape[axis]
    # Extents of 1 have strides that mean nothing: take those of a fresh array in this order.
    moved = iter(axes)
    order = [axis if array.shape[axis] == 1 else next(moved) for axis in range(array.ndim)]
    fresh = np.empty([array.shape[axis] for axis in order], array.dtype)
    return fresh.transpose(np.argsort(order)).strides


def _children(x: Any, y: Any) -> tuple[list[Any], list[Any]] | None:
    """The values inside of two objects of one type, keys included, or None for a leaf."""
    match x:
        case defaultdict():
            # The factory is code and not stored.
            return [*x, *x.values()], [*y, *y.values()]
        case dict() | OrderedDict() | Counter():
            return [*x, *x.values()], [*y, *y.values()]
        case deque():
            return [x.maxlen, *x], [y.maxlen, *y]
        case Record() | NamedTupleRecord():
            return [x._type, *x_values(x)], [y._type, *x_values(y)]
        case list() | tuple():
            return list(x), list(y)
        case slice():
            return [x.start, x.stop, x.step], [y.start, y.stop, y.step]
        case argparse.Namespace() | types.SimpleNamespace():
            return [*vars(x), *vars(x).values()], [*vars(y), *vars(y).values()]
    if dataclasses.is_dataclass(x) and type(x).__module__ != "pytreeckpt.objects":
        names = [field.name for field in dataclasses.fields(x)]
        return [getattr(x, name) for name in names], [getattr(y, name) for name in names]
    return None


def x_values(record: Record | NamedTupleRecord) -> tuple[Any, ...]:
    return record._values if isinstance(record, Record) else tuple(record)


def same_leaf(x: Any, y: Any) -> bool:
    """Equality of leaves of one type, by bits where they are numbers."""
    match x:
        case enum.Enum():
            return x is y
        case float():
            return (not isinstance(x, np.generic) and struct.pack("<d", x) == struct.pack("<d", y)) or _same_scalar(
                x, y
            )
        case complex() if not isinstance(x, np.generic):
            return struct.pack("<dd", x.real, x.imag) == struct.pack("<dd", y.real, y.imag)
        case set() | frozenset():
            return element_token(x) == element_token(y)
        case np.generic():
            return _same_scalar(x, y)
        case np.dtype():
            return same_dtype(x, y)
        case None | bool() | int() | str() | bytes() | bytearray() | range() | pathlib.PurePath():
            return bool(x == y)
    return x is y or bool(x == y)


def _same_scalar(x: Any, y: Any) -> bool:
    if not isinstance(x, np.generic):
        return False
    if isinstance(x, np.str_ | np.bytes_):
        return len(x) == len(y) and bool(x == y)
    left, right = np.asarray(x), np.asarray(y)
    return same_dtype(left.dtype, right.dtype) and item_bytes(left) == item_bytes(right)


def element_token(value: Any) -> Any:
    """Equal for elements of sets that are the same in type and bits."""
    match value:
        case float():
            return ("float", struct.pack("<d", value))
        case complex():
            return ("complex", struct.pack("<dd", value.real, value.imag))
        case tuple():
            return ("tuple", tuple(map(element_token, value)))
        case set() | frozenset():
            return (type(value).__name__, frozenset(map(element_token, value)))
    return (type(value).__name__, value)


def shown(value: Any) -> str:
    try:
        return repr(value)
    except (ValueError, OverflowError, UnicodeError) as error:
        # numpy cannot print every datetime and every text that it can hold.
        return f"a {type(value).__name__} without a repr ({error})"


def assert_same(a: object, b: object) -> None:
    """Fail with the first difference, if there is one."""
    found = difference(a, b)
    assert found is None, found
