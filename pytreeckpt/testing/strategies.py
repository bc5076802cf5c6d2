"""Hypothesis strategies for everything that a tree may hold.

Items of arrays are drawn as bytes and viewed, so that every bit pattern of every dtype is met: Hypothesis knows no
ml_dtypes, and draws few NaNs. Strategies that take nothing are made once: making them costs more than drawing.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import struct
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any, Final, NamedTuple

import ml_dtypes
import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from pytreeckpt.arrays import AnyArray
from pytreeckpt.dtypes import AnyDType, describe
from pytreeckpt.errors import UnsupportedTypeError
from pytreeckpt.keys import key_string


class Point(NamedTuple):
    """A namedtuple that `trees` may hold."""

    x: object
    y: object


@dataclass
class Settings:
    """A dataclass that `trees` may hold."""

    rate: object
    name: object = "sgd"


class Colour(Enum):
    """An enum that `trees` may hold."""

    RED = "red"
    GREEN = 2


class Level(IntEnum):
    """An enum whose members are numbers too."""

    LOW = 1
    HIGH = 2


TYPES: Final[tuple[type, ...]] = (Point, Settings, Colour, Level)
"""The classes in `trees`: `restore(path, types=TYPES)` gives their instances back."""


# Dtypes.


def _storable(candidates: Iterable[Any]) -> list[AnyDType]:
    found: list[AnyDType] = []
    for candidate in candidates:
        dtype = np.dtype(candidate)
        try:
            describe(dtype)
        except UnsupportedTypeError:
            continue
        found.append(dtype)
    return found


_NUMPY: Final = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128", "longdouble", "clongdouble"),
)
_ML_DTYPES: Final = [cls for cls in vars(ml_dtypes).values() if isinstance(cls, type) and issubclass(cls, np.generic)]
NUMERIC: Final = tuple(_storable([*_NUMPY, *_ML_DTYPES]))
"""Every numeric dtype of numpy and ml_dtypes, in native byte order."""
_SWAPPED: Final = _storable(dtype.newbyteorder("S") for dtype in NUMERIC)

_ORDERS: Final = st.sampled_from("<>")
_TEXT_DTYPES: Final = st.builds(
    lambda kind, length, order: np.dtype((kind, length)).newbyteorder(order),
    st.sampled_from("SUV"),
    st.integers(0, 5),
    _ORDERS,
)
_UNITS: Final = st.just("") | st.builds(
    lambda count, unit: f"[{count}{unit}]",
    st.integers(1, 90),
    st.sampled_from(["Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as"]),
)
_TIME_DTYPES: Final = st.builds(
    lambda order, kind, unit: np.dtype(f"{order}{kind}8{unit}"), _ORDERS, st.sampled_from("Mm"), _UNITS
)
_PLAIN_DTYPES: Final[SearchStrategy[AnyDType]] = st.one_of(
    st.sampled_from(NUMERIC), st.sampled_from(NUMERIC), st.sampled_from(_SWAPPED), _TEXT_DTYPES, _TIME_DTYPES
)
_FIELDS: Final = st.lists(
    st.tuples(st.text(min_size=1, max_size=3), st.sampled_from([(), (), (2,), (1, 3), (0,)])),
    min_size=1,
    max_size=3,
    unique_by=lambda field: field[0],
)


@st.composite
def _structs(draw: DrawFn, items: SearchStrategy[AnyDType]) -> AnyDType:
    fields: list[tuple[Any, ...]] = []
    for name, extents in draw(_FIELDS):
        base = draw(items)
        # numpy makes no sub-arrays of empty items.
        fields.append((name, base, extents) if extents and base.itemsize else (name, base))
    return np.dtype(fields, align=draw(st.booleans()))


_DTYPES: Final = _PLAIN_DTYPES | st.recursive(_PLAIN_DTYPES, _structs, max_leaves=4)


def dtypes() -> SearchStrategy[AnyDType]:
    """Dtypes that a checkpoint may hold: numbers of both byte orders, strings, bytes, times, and structs of these."""
    return _DTYPES


# Arrays.


@st.composite
def arrays(
    draw: DrawFn,
    dtype: AnyDType | SearchStrategy[AnyDType] = _DTYPES,
    *,
    max_dims: int = 3,
    max_side: int = 4,
) -> AnyArray:
    """Arrays of numpy, of any dtype, shape (0-d and empty ones too), memory layout and bits.

    Layouts: C and Fortran order, permuted axes, gaps, negative strides, unaligned, broadcast, read-only.
    """
    item_type = draw(dtype) if isinstance(dtype, SearchStrategy) else dtype
    shape = tuple(draw(st.lists(st.integers(0, max_side), max_size=max_dims)))
    items = _items(draw, item_type, math.prod(shape)).reshape(shape)
    return draw(_LAYOUTS)(draw, items)


# The bytes of every item but the highest, and the highest: extremes of integers, zeros of both signs, NaNs.
# None: all bytes are drawn.
_EDGES: Final[SearchStrategy[tuple[int | None, int]]] = st.sampled_from(
    [*[(None, 0)] * 6, (0, 0), (0, 0x80), (0xFF, 0xFF), (0xFF, 0x7F), (0, 0x7F)]
)


def _items(draw: DrawFn, dtype: np.dtype[Any], count: int) -> AnyArray:
    """A 1-d array of drawn items."""
    if count == 0 or dtype.itemsize == 0:
        return np.ndarray(count, dtype)
    if dtype.names is not None:
        # Field by field, because not all bits make a field.
        items: AnyArray = np.zeros(count, dtype)
        for name in dtype.names:
            base, extents = dtype[name].subdtype or (dtype[name], ())
            items[name] = _items(draw, base, count * math.prod(extents)).reshape(count, *extents)
        return items
    if dtype.kind == "M" and np.datetime_data(dtype)[0] == "generic":
        # numpy cannot print another one.
        return np.full(count, "NaT", dtype)
    nbytes = count * dtype.itemsize
    if dtype.kind == "U":
        points = np.frombuffer(draw(st.binary(min_size=nbytes, max_size=nbytes)), np.uint32) % 0x110000
        return points.astype(np.dtype(np.uint32).newbyteorder(dtype.byteorder)).view(dtype)
    if dtype.type in {np.longdouble, np.clongdouble}:
        # Many bit patterns of an x87 float are no number, and numpy cannot print them.
        parts = np.frombuffer(draw(st.binary(min_size=nbytes // 2, max_size=nbytes // 2)), np.float64)
        with np.errstate(all="ignore"):
            return (parts.astype(np.longdouble) / 3).view(dtype)
    rest, top = draw(_EDGES)
    if rest is None:
        return np.frombuffer(bytearray(draw(st.binary(min_size=nbytes, max_size=nbytes))), np.uint8).view(dtype)
    items = np.full((count, dtype.itemsize), rest, np.uint8)
    items[:, 0 if dtype.byteorder == ">" else -1] = top
    return items.reshape(-1).view(dtype)


def _permuted(draw: DrawFn, items: AnyArray) -> AnyArray:
    axes = draw(st.permutations(range(items.ndim)))
    return items.transpose(axes).copy("C").transpose(np.argsort(axes))


def _with_gaps(_draw: DrawFn, items: AnyArray) -> AnyArray:
    spread: AnyArray = np.zeros(tuple(2 * extent for extent in items.shape), items.dtype)
    every_other: tuple[Any, ...] = (..., *(slice(None, None, 2) for _ in items.shape))
    view: AnyArray = spread[every_other]
    view[...] = items
    return view


def _reversed(_draw: DrawFn, items: AnyArray) -> AnyArray:
    backwards: tuple[Any, ...] = (..., *(slice(None, None, -1) for _ in items.shape))
    view: AnyArray = items[backwards].copy()[backwards]
    return view


def _unaligned(_draw: DrawFn, items: AnyArray) -> AnyArray:
    if items.nbytes == 0:
        return items
    view = np.zeros(items.nbytes + 1, np.uint8)[1:].view(items.dtype).reshape(items.shape)
    view[...] = items
    return view


def _broadcast(_draw: DrawFn, items: AnyArray) -> AnyArray:
    return np.broadcast_to(items, (2, *items.shape))


def _read_only(_draw: DrawFn, items: AnyArray) -> AnyArray:
    items.flags.writeable = False
    return items


def _as_it_is(_draw: DrawFn, items: AnyArray) -> AnyArray:
    return items


_LAYOUTS: Final[SearchStrategy[Callable[[DrawFn, AnyArray], AnyArray]]] = st.sampled_from(
    [_as_it_is, _permuted, _with_gaps, _reversed, _unaligned, _broadcast, _read_only]
)


# Plain values and keys.

_FLOATS: Final = st.floats() | st.binary(min_size=8, max_size=8).map(lambda bits: struct.unpack("<d", bits)[0])
_INTEGERS: Final = st.integers() | st.sampled_from([2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64])
_COMPLEX: Final = st.builds(complex, _FLOATS, _FLOATS)
_KEYS: Final[SearchStrategy[Any]] = st.recursive(
    st.none() | st.booleans() | _INTEGERS | _FLOATS | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=4,
)


def floats() -> SearchStrategy[float]:
    """Python floats of any bits."""
    return _FLOATS


def integers() -> SearchStrategy[int]:
    """Ints of any size, those around the limits of 64 bits among them."""
    return _INTEGERS


def keys() -> SearchStrategy[Any]:
    """Dict keys: None, bools, ints, floats, texts, bytes, and tuples of these."""
    return _KEYS


def _told_apart(values: list[Any]) -> list[Any]:
    """The values without those that a set, or the file, would take for an earlier one (1 and True, a NaN twice)."""
    by_string: dict[bytes, Any] = {}
    for value in dict.fromkeys(values):
        by_string.setdefault(key_string(value), value)
    return list(by_string.values())


_SOME_KEYS: Final = st.lists(_KEYS, max_size=4).map(_told_apart)
_PLAIN_ELEMENTS: Final = _KEYS | st.just(...) | _COMPLEX
_ELEMENTS: Final = _PLAIN_ELEMENTS | st.lists(_PLAIN_ELEMENTS, max_size=3).map(_told_apart).map(frozenset)
_SETS: Final = st.builds(
    lambda cls, elements: cls(elements),
    st.sampled_from([set, frozenset]),
    st.lists(_ELEMENTS, max_size=4).map(_told_apart),
)


@st.composite
def _dicts(draw: DrawFn, values: SearchStrategy[Any]) -> dict[Any, Any]:
    return {key: draw(values) for key in draw(_SOME_KEYS)}


# Trees.


@st.composite
def _array_items(draw: DrawFn, items: SearchStrategy[AnyDType]) -> Any:
    return _items(draw, draw(items), 1)[0]


# Of an array of strings, numpy would drop zeros at the end.
_SCALARS: Final[SearchStrategy[Any]] = st.one_of(
    st.binary(max_size=5).map(np.bytes_),
    st.text(max_size=5).map(np.str_),
    _array_items(_DTYPES.filter(lambda dtype: dtype.kind not in "SU")),
)


def scalars() -> SearchStrategy[Any]:
    """Scalars of numpy, of any dtype."""
    return _SCALARS


def _string_array(texts: list[str | None], missing: dict[str, Any], coerce: bool) -> AnyArray:  # noqa: FBT001 - drawn
    values: list[Any] = [missing.get("na_object", "") if text is None else text for text in texts]
    return np.array(values, np.dtypes.StringDType(coerce=coerce, **missing))


_STRING_ARRAYS: Final = st.builds(
    _string_array,
    st.lists(st.none() | st.text(max_size=4), max_size=3),
    st.sampled_from([{}, {"na_object": None}, {"na_object": math.nan}, {"na_object": "-"}]),
    st.booleans(),
)
_ENDS: Final = st.none() | _INTEGERS
_VALUES: Final[SearchStrategy[Any]] = st.one_of(
    st.none(),
    st.booleans(),
    _INTEGERS,
    _FLOATS,
    _COMPLEX,
    st.text(max_size=8),
    st.binary(max_size=8),
    st.just(...),
    _SETS,
    _SCALARS,
    _DTYPES,
    st.sampled_from([*Colour, *Level]),
    st.binary(max_size=8).map(bytearray),
    st.builds(range, _INTEGERS, _INTEGERS, _INTEGERS.filter(bool)),
    st.builds(slice, _ENDS, _ENDS, _ENDS),
    st.builds(
        lambda cls, text: cls(text),
        st.sampled_from([pathlib.Path, pathlib.PurePosixPath, pathlib.PureWindowsPath]),
        st.text(max_size=8),
    ),
    # Long lists of one plain type take a way of their own.
    st.lists(_FLOATS, min_size=8, max_size=12),
    st.lists(_INTEGERS, min_size=8, max_size=12).map(tuple),
    _STRING_ARRAYS,
)
"""Leaves that are no arrays."""
_SMALL_SHAPES: Final = st.lists(st.integers(0, 2), max_size=2).map(tuple)


@st.composite
def _object_arrays(draw: DrawFn, values: SearchStrategy[Any]) -> AnyArray:
    shape = draw(_SMALL_SHAPES)
    items = np.empty(math.prod(shape), object)
    for index in range(items.size):
        items[index] = draw(values)
    return items.reshape(shape)


def _counter(items: dict[Any, int]) -> Counter[Any]:
    counter: Counter[Any] = Counter()
    dict.update(counter, items)
    return counter


def _containers(values: SearchStrategy[Any]) -> SearchStrategy[Any]:
    named = st.dictionaries(st.text(max_size=4), values, max_size=3)
    items = _dicts(values)
    return st.one_of(
        st.lists(values, max_size=4),
        st.lists(values, max_size=4).map(tuple),
        items,
        items.map(OrderedDict),
        items.map(lambda found: defaultdict(list, found)),
        _dicts(_INTEGERS).map(_counter),
        st.builds(
            lambda found, spare: deque(found, spare and len(found) + spare),
            st.lists(values, max_size=3),
            st.none() | st.integers(1, 3),
        ),
        st.builds(Point, values, values),
        st.builds(Settings, values, values),
        named.map(lambda found: argparse.Namespace(**found)),
        named.map(lambda found: types.SimpleNamespace(**found)),
        _object_arrays(values),
    )


def trees(leaves: SearchStrategy[Any] | None = None, *, max_leaves: int = 12) -> SearchStrategy[Any]:
    """Trees of everything that a checkpoint may hold without a framework, with arrays that stand in several places.

    `leaves`: further leaves, such as the arrays of a framework.
    """
    some_arrays = arrays() if leaves is None else arrays() | leaves
    # Drawn once for a whole tree, wherever in it they stand.
    tied = [st.shared(some_arrays), st.shared(some_arrays)]
    return st.recursive(st.one_of(_VALUES, some_arrays, *tied), _containers, max_leaves=max_leaves)
