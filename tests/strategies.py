"""Strategies for everything that a tree may hold (design: "What a tree may hold"), numpy and Python only."""

import argparse
import collections
import dataclasses
import enum
import pathlib
import struct
import types
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from tests.exact import element_token


class Color(enum.Enum):
    RED = 1
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 1 << 70


class Mode(enum.Flag):
    READ = 1
    WRITE = 2


class Text(enum.StrEnum):
    A = "a"


class Point(NamedTuple):
    x: Any
    y: Any = 0


class Empty(NamedTuple):
    pass


@dataclasses.dataclass
class State:
    step: Any
    params: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    value: Any
    other: Any = dataclasses.field(default=None, kw_only=True)


@dataclasses.dataclass
class NoFields:
    pass


TYPES = [Color, Level, Mode, Text, Point, Empty, State, Frozen, NoFields]

ML_DTYPES = [
    np.dtype(getattr(ml_dtypes, name))
    for name in sorted(vars(ml_dtypes))
    if isinstance(getattr(ml_dtypes, name), type) and issubclass(getattr(ml_dtypes, name), np.generic)
]
# By their names: where C has two types for an integer, an array comes back with numpy's usual one.
NUMPY_DTYPES = [
    np.dtype(name).newbyteorder(order)
    for name in (
        *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
        *("float16", "float32", "float64", "complex64", "complex128"),
    )
    for order in (">", "<")
] + [np.dtype(np.longdouble), np.dtype(np.clongdouble)]
SIMPLE_DTYPES = [*NUMPY_DTYPES, *ML_DTYPES]
TIME_UNITS = ["Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as"]


def _time_dtypes() -> st.SearchStrategy[np.dtype]:
    with_unit = st.builds(
        lambda order, letter, count, unit: np.dtype(f"{order}{letter}8[{count}{unit}]"),
        st.sampled_from("<>"),
        st.sampled_from("Mm"),
        st.integers(1, 1000),
        st.sampled_from(TIME_UNITS),
    )
    # numpy cannot print datetimes without a unit, and hypothesis prints what it draws.
    return with_unit | st.sampled_from([np.dtype("<m8"), np.dtype(">m8")])


def _flexible_dtypes() -> st.SearchStrategy[np.dtype]:
    return st.one_of(
        st.integers(0, 9).map(lambda n: np.dtype((np.bytes_, n))),
        st.builds(
            lambda n, order: np.dtype((np.str_, n)).newbyteorder(order), st.integers(0, 5), st.sampled_from("<>")
        ),
        st.integers(0, 20).map(lambda n: np.dtype((np.void, n))),
    )


FIELD_NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4)


@st.composite
def struct_dtypes(draw: st.DrawFn, inner: st.SearchStrategy[np.dtype]) -> np.dtype:
    """Structs with titles, sub-arrays, gaps, and fields that overlap or are out of order."""
    names = draw(st.lists(FIELD_NAMES, max_size=4, unique=True))
    formats = [draw(inner) for _ in names]
    # numpy has no sub-arrays of items of no bytes.
    extents = st.sampled_from([(), (), (), (2,), (1,), (0,), (2, 3)])
    shapes = [draw(extents) if base.itemsize else () for base in formats]
    fields: list[Any] = [(base, shape) if shape else base for base, shape in zip(formats, shapes, strict=True)]
    titles: list[str | None] = [f"title of {name}" if draw(st.booleans()) else None for name in names]
    if draw(st.booleans()):
        packed: list[Any] = [
            ((title, name) if title else name, field) for name, title, field in zip(names, titles, fields, strict=True)
        ]
        return np.dtype(packed, align=draw(st.booleans()))
    sizes = [np.dtype(field).itemsize for field in fields]
    offsets = [draw(st.integers(0, 12)) for _ in names]
    end = max((offset + size for offset, size in zip(offsets, sizes, strict=True)), default=0)
    itemsize = end + draw(st.integers(0, 5))
    layout: Any = {"names": names, "formats": fields, "offsets": offsets, "titles": titles, "itemsize": itemsize}
    return np.dtype(layout)


PLAIN_DTYPES = st.sampled_from(SIMPLE_DTYPES) | _time_dtypes() | _flexible_dtypes()
DTYPES = PLAIN_DTYPES | struct_dtypes(PLAIN_DTYPES) | struct_dtypes(struct_dtypes(PLAIN_DTYPES) | PLAIN_DTYPES)

SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 5]), max_size=4).map(tuple)


def fill(dtype: np.dtype, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """A C-ordered array with random bits: every NaN payload, negative zeros, and whatever else there is."""
    array = np.ndarray(shape, dtype)
    n = array.nbytes
    raw = np.random.default_rng(seed).integers(0, 256, n, np.uint8) if seed else np.zeros(n, np.uint8)
    if n:
        array.reshape(-1).view(np.uint8)[...] = raw
    return array if dtype.kind != "U" else _code_points(array, seed)


def _code_points(array: np.ndarray, seed: int) -> np.ndarray:
    if array.nbytes:
        order = ">" if array.dtype.byteorder == ">" else "<"
        points = array.reshape(-1).view(f"{order}u4")
        points[...] = np.random.default_rng(seed).integers(0, 0x110000, points.size)
    return array


LAYOUTS = ["C", "F", "permuted", "reversed", "strided", "broadcast", "offset"]


def laid_out(array: np.ndarray, layout: str, seed: int) -> np.ndarray:
    """An array of the same shape and dtype in another memory layout, with the items of `array` (or some of them)."""
    if layout == "F":
        return array.copy("F")
    if layout == "permuted" and array.ndim:
        axes = np.random.default_rng(seed).permutation(array.ndim)
        out = np.ndarray([array.shape[axis] for axis in axes], array.dtype).transpose(np.argsort(axes))
        out[...] = array
        return out
    if layout == "reversed" and array.ndim:
        out = np.ndarray(array.shape, array.dtype)[tuple(slice(None, None, -1) for _ in array.shape)]
        out[...] = array
        return out
    if layout == "strided" and array.ndim:
        out = np.ndarray([2 * extent for extent in array.shape], array.dtype)[
            tuple(slice(None, None, 2) for _ in array.shape)
        ]
        out[...] = array
        return out
    if layout == "broadcast" and array.ndim and array.shape[0] > 0:
        return np.broadcast_to(array[:1], array.shape)
    if layout == "offset" and array.ndim and array.nbytes:
        buffer = bytearray(array.nbytes + 3)
        out = np.ndarray(array.shape, array.dtype, buffer, offset=3)
        out[...] = array
        return out
    return array


def arrays(
    dtypes: st.SearchStrategy[np.dtype] = DTYPES, shapes: st.SearchStrategy[tuple[int, ...]] = SHAPES
) -> st.SearchStrategy[np.ndarray]:
    """Arrays of every dtype and memory layout."""
    seeds = st.integers(0, 1000)
    return st.builds(
        lambda dtype, shape, layout, seed: laid_out(fill(dtype, shape, seed), layout, seed),
        dtypes,
        shapes,
        st.sampled_from(LAYOUTS),
        seeds,
    )


def distinct(values: list[Any]) -> list[Any]:
    """The values, of which no two are equal or have the same bits."""
    found: dict[Any, Any] = {}
    for value in values:
        found.setdefault(value, value)
    return list({element_token(value): value for value in found}.values())


def _bits(value: int) -> float:
    found: float = struct.unpack("<d", struct.pack("<Q", value))[0]
    return found


FLOATS = st.floats() | st.integers(0, (1 << 64) - 1).map(_bits)
INTS = (
    st.integers()
    | st.sampled_from([(1 << 63) - 1, 1 << 63, -(1 << 63), -(1 << 63) - 1, 1 << 64])
    | st.integers(-(1 << 700), 1 << 700)
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ["\u00e9", "e\u0301", "a/b", "a.b", "[0]", ""]
)
PLAIN_KEYS = st.one_of(TEXTS, INTS, st.booleans(), FLOATS, st.binary(max_size=6), st.none())
KEYS = st.recursive(PLAIN_KEYS, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=4)
ELEMENTS = st.recursive(
    PLAIN_KEYS | st.complex_numbers() | st.just(...),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.lists(inner, max_size=3).map(distinct).map(frozenset),
    max_leaves=4,
)


SETS = st.lists(ELEMENTS, max_size=6).map(distinct).map(set)


def dicts(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[Any, Any]]:
    """Dicts with keys of every type."""
    return (
        st.lists(KEYS, max_size=5)
        .map(distinct)
        .flatmap(lambda keys: st.tuples(*(values for _ in keys)).map(lambda given: dict(zip(keys, given, strict=True))))
    )


def _scalars() -> st.SearchStrategy[Any]:
    native = [dtype for dtype in SIMPLE_DTYPES if dtype.isnative]
    drawn = st.builds(
        lambda dtype, seed: fill(dtype, (), seed)[()],
        st.sampled_from(native) | struct_dtypes(PLAIN_DTYPES) | _time_dtypes().filter(lambda dtype: dtype.isnative),
        st.integers(0, 1000),
    )
    strings = st.text().map(np.str_) | st.binary().map(np.bytes_) | st.binary(min_size=1).map(np.void)
    return drawn | strings


SCALARS = _scalars()
PATHS = st.sampled_from(
    [
        pathlib.PurePosixPath("a/b"),
        pathlib.PureWindowsPath("c:\\a\\b"),
        pathlib.Path("/x/é"),
        pathlib.Path(),
        pathlib.PurePosixPath("//a"),
    ]
)
DTYPE_OBJECTS = DTYPES.filter(lambda dtype: dtype.itemsize < 1 << 31)


def _string_arrays() -> st.SearchStrategy[np.ndarray]:
    plain = st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=4)
    with_none = st.lists(st.text(st.characters(exclude_categories=["Cs"])) | st.none(), max_size=4)
    make: Any = np.dtypes.StringDType
    return (
        plain.map(lambda texts: np.array(texts, make()))
        | plain.map(lambda texts: np.array(texts, make(coerce=False)))
        | with_none.map(lambda texts: np.array(texts, make(na_object=None)))
        | plain.map(lambda texts: np.array([*texts, "gone"], make(na_object="gone")))
    )


LEAVES = st.one_of(
    st.none(),
    st.just(...),
    st.booleans(),
    INTS,
    FLOATS,
    st.complex_numbers(),
    TEXTS,
    st.binary(),
    arrays(),
    SCALARS,
    SETS,
    SETS.map(frozenset),
    st.binary().map(bytearray),
    st.builds(range, st.integers(), st.integers(), st.integers().filter(bool)),
    PATHS,
    DTYPE_OBJECTS,
    st.sampled_from([*Color, *Level, *Mode, Mode.READ | Mode.WRITE, Mode(0), *Text]),
    _string_arrays(),
)


def _object_array(values: list[Any]) -> np.ndarray:
    array = np.empty(len(values), object)
    for place, value in enumerate(values):
        array[place] = value
    return array


def containers(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Every container, filled from `children`."""
    lists = st.lists(children, max_size=4)
    mappings = dicts(children)
    attributes = st.dictionaries(FIELD_NAMES | st.sampled_from(["self", "cls", "a b", ""]), children, max_size=3)
    return st.one_of(
        lists,
        lists.map(tuple),
        mappings,
        mappings.map(collections.OrderedDict),
        mappings.map(lambda items: collections.defaultdict(None, items)),
        mappings.map(_counter),
        lists.map(collections.deque),
        lists.map(lambda items: collections.deque(items, 7)),
        attributes.map(lambda fields: _namespace(argparse.Namespace(), fields)),
        attributes.map(lambda fields: _namespace(types.SimpleNamespace(), fields)),
        st.builds(Point, children, children),
        st.just(Empty()),
        st.builds(State, children, children),
        st.builds(Frozen, children, other=children),
        st.just(NoFields()),
        st.builds(slice, children, children, children),
        lists.map(_object_array),
    )


def _counter(items: dict[Any, Any]) -> Any:
    counter: Any = collections.Counter()
    dict.update(counter, items)
    return counter


def _namespace(empty: Any, fields: dict[str, Any]) -> Any:
    vars(empty).update(fields)
    return empty


TREES = st.recursive(LEAVES, containers, max_leaves=12)

PLAIN_LEAVES = st.one_of(st.none(), st.booleans(), INTS, FLOATS, TEXTS, st.binary())
METADATA = st.recursive(
    PLAIN_LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | dicts(inner),
    max_leaves=6,
)


@st.composite
def trees_with_sharing(draw: st.DrawFn) -> Any:
    """Trees in which some arrays, and views of them, stand at several places."""
    pool: list[np.ndarray] = draw(st.lists(arrays(), min_size=1, max_size=3))
    for array in list(pool):
        if array.ndim:
            pool += [array[::-1], array[:], array.T]
    # Not sampled_from: its errors would show the arrays, which numpy cannot do for all of them.
    again = st.integers(0, len(pool) - 1).map(lambda place: pool[place])
    return draw(st.recursive(again | st.integers(), containers, max_leaves=10))
