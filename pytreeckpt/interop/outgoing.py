"""A tree on its way into a file of another format: the tree that `save` would take, with arrays that are not yet read.

The walk is that of a save, so that what may be in a tree, and what is an error, is the same: each object of a framework
becomes a `Record` of its registered type, each array an `OutgoingArray`, each numpy scalar an `OutgoingScalar`.
References to arrays of open checkpoints may stand in the tree too, and are read one at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from pytreeckpt.arrays import AnyArray, ArraySource, copy_items, run_reader, stored_order
from pytreeckpt.collection import paused_collection
from pytreeckpt.dtypes import AnyDType
from pytreeckpt.expand import make_expand
from pytreeckpt.flatten import Expand, flatten
from pytreeckpt.geometry import Shape, grid
from pytreeckpt.interop.foreign import ForeignArray
from pytreeckpt.interop.layouts import array_source
from pytreeckpt.limits import current_limits
from pytreeckpt.objects import ClassKind, Expansion, NamedTupleRecord, Record, build_record, record_expansion
from pytreeckpt.paths import DictKey, Field, Index, Path, Step
from pytreeckpt.reading import flat_bytes
from pytreeckpt.references import ArrayRef
from pytreeckpt.unflatten import Build, unflatten

# What is read, and handed on, at a time.
_PIECE_NBYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True, eq=False)
class OutgoingArray:
    """An array of the tree. Those that are one shared array are one object."""

    source: AnyArray | ArraySource

    @property
    def dtype(self) -> AnyDType:
        """The dtype of its items, in the byte order that they have."""
        return self.source.dtype

    @property
    def shape(self) -> Shape:
        """Its shape."""
        return self.source.shape

    @property
    def nbytes(self) -> int:
        """Bytes of its items."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def axes(self) -> Shape:
        """Its axes from slowest to fastest, as it is stored: those of C order, unless it is dense in another."""
        found = self.source.axes if isinstance(self.source, ArraySource) else stored_order(self.source)[1]
        return tuple(range(len(self.shape))) if found is None else found

    @property
    def is_fortran(self) -> bool:
        """Whether that is Fortran's order, and not C's too."""
        return len(self.shape) > 1 and self.axes == tuple(reversed(range(len(self.shape))))


@dataclass(frozen=True, slots=True, eq=False)
class OutgoingScalar:
    """A numpy scalar, as an array of rank 0: of a text, only that has all bytes."""

    array: AnyArray


def outgoing(tree: object) -> object:
    """The tree as plain values, `Record`s, `OutgoingScalar`s and `OutgoingArray`s.

    Raises `UnsupportedTypeError` and `LimitError` as `save` does.
    """
    limits = current_limits()
    with paused_collection():
        flat = flatten(None, tree, expand=_with_references(make_expand()), limits=limits)
        made: list[OutgoingArray | OutgoingScalar] = [
            OutgoingScalar(source)
            if number in flat.scalars and isinstance(source, np.ndarray)
            else OutgoingArray(source)
            for number, source in enumerate(flat.arrays)
        ]

        def leaf(occurrence: int) -> OutgoingArray | OutgoingScalar:
            return made[flat.nodes.arrays[occurrence]]

        build = Build(leaf, leaf, build_record)
        return unflatten(flat.nodes, build, limits=limits)[1]


def path_to(tree: object, wanted: object) -> str:
    """The text of the path to an object in an outgoing tree, for an error; what it is if it is not found."""
    pending: list[tuple[tuple[Step, ...], Any]] = [((), tree)]
    while pending:
        path, value = pending.pop()
        if value is wanted:
            return str(Path(path)) or "the root"
        steps: Iterable[tuple[tuple[Step, ...], Any]] = ()
        if isinstance(value, Record | NamedTupleRecord):
            type_, values = record_expansion(value).type, record_expansion(value).children
            fields: list[tuple[Step, ...]] = [(Field(name),) for name in type_.fields]
            if type_.class_kind is ClassKind.WRAPPER:
                # What is wrapped stands where the wrapper does.
                fields[0] = ()
            steps = zip(fields, values, strict=True)
        elif isinstance(value, dict):
            steps = (((DictKey(key),), child) for key, child in value.items())
        elif isinstance(value, list | tuple):
            steps = (((Index(index),), child) for index, child in enumerate(value))
        pending.extend(((*path, *step), child) for step, child in steps)
    return f"a {type(wanted).__name__}"


@dataclass(frozen=True, slots=True, eq=False)
class _Whole:
    """The items of an array that is read as a whole: asked for in runs, it would be decoded again and again."""

    load: Callable[[], AnyArray]

    def __call__(self, start: int, stop: int) -> AnyArray:
        """Items `start` to `stop` in C order."""
        return run_reader(self.load())(start, stop)


def _with_references(expand: Expand) -> Expand:
    shared: dict[Hashable, ForeignArray] = {}

    def expanded(value: object) -> ArraySource | Expansion | None:
        if isinstance(value, ArrayRef):
            whole = _Whole(value.__array__)
            source = ArraySource(value.dtype, value.shape, (whole,), identity=(ArrayRef, value.identity))
            return source if value.type is None else Expansion(value.type, [source, *value.attributes])
        if isinstance(value, ForeignArray):
            own = (ForeignArray, id(value))
            identity = own if value.identity is None else (ForeignArray, value.identity)
            first = shared.setdefault(identity, value)
            # Whatever it is called, what lies elsewhere is another array: better written twice than wrongly once.
            is_same = (first.dtype, first.shape, first.pieces) == (value.dtype, value.shape, value.pieces)
            return array_source(value, identity=identity if is_same else own)
        return expand(value)

    return expanded


def c_order_pieces(array: OutgoingArray, *, little_endian: bool = False) -> Iterator[memoryview]:
    """The bytes of an array in C order, some MiB at a time; with `little_endian`, whatever its own byte order is."""
    source = array.source
    if not isinstance(source, np.ndarray) and (source.axes is not None or source.cuts is not None):
        stored = _assembled(source)
        source = stored if source.axes is None else stored.transpose(np.argsort(source.axes))
    yield from _pieces(source, array.shape, array.dtype, little_endian=little_endian)


def stored_pieces(array: OutgoingArray, *, little_endian: bool = False) -> Iterator[memoryview]:
    """As `c_order_pieces`, of the array with its axes in the order of `axes`."""
    shape = tuple(array.shape[axis] for axis in array.axes)
    source = array.source
    if isinstance(source, np.ndarray):
        source = stored_order(source)[0]
    elif source.cuts is not None:
        source = _assembled(source)
    yield from _pieces(source, shape, array.dtype, little_endian=little_endian)


def _assembled(source: ArraySource) -> AnyArray:
    """An array in stored order, from its boxes."""
    axes = range(len(source.shape)) if source.axes is None else source.axes
    shape = tuple(source.shape[axis] for axis in axes)
    whole: AnyArray = np.ndarray(shape, source.dtype)
    cuts = [()] * len(shape) if source.cuts is None else source.cuts
    for box, read in zip(grid(shape, cuts), source.boxes, strict=True):
        copy_items(whole[box.selection], read(0, math.prod(box.shape)).reshape(box.shape))
    return whole


def _pieces(
    source: AnyArray | ArraySource, shape: Shape, dtype: AnyDType, *, little_endian: bool
) -> Iterator[memoryview]:
    size = math.prod(shape)
    if not size * dtype.itemsize:
        return
    if isinstance(source, np.ndarray):
        read = run_reader(source)
    else:
        [read] = source.boxes
        if isinstance(read, _Whole):
            read = run_reader(read.load())
    swap = little_endian and dtype.newbyteorder("<") != dtype
    step = max(1, _PIECE_NBYTES // dtype.itemsize)
    for start in range(0, size, step):
        items = read(start, min(start + step, size))
        yield flat_bytes(items.byteswap() if swap else items)
