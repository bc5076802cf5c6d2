"""Whether two trees are the same in everything that a checkpoint keeps, and if not, where they differ."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

import numpy as np

from pytreeckpt.arrays import AnyArray, ArraySource, array_identity, copy_items, run_reader, source_of
from pytreeckpt.dtypes import AnyDType, describe
from pytreeckpt.errors import UnsupportedTypeError
from pytreeckpt.expand import make_expand
from pytreeckpt.geometry import grid, whole
from pytreeckpt.keys import key_string
from pytreeckpt.objects import ClassKind, Expansion, ObjectType
from pytreeckpt.paths import DictKey, Field, Index, Path, Step

_SINGLE: Final = (type(None), bool, type(...))
_DIRECT: Final = (int, str, bytes)


class _Place(NamedTuple):
    """Where in the trees: a linked list, because the paths of a deep tree are long."""

    parent: _Place | None
    step: Step | None

    def __str__(self) -> str:
        steps: list[Step] = []
        place: _Place | None = self
        while place is not None:
            if place.step is not None:
                steps.append(place.step)
            place = place.parent
        return str(Path(reversed(steps))) or "the root"


class _Pair(NamedTuple):
    a: Any
    b: Any
    place: _Place


def identical(a: object, b: object, *, limit: int = 20) -> list[str]:
    """The differences of two trees, at most `limit`, each a line that begins with its path; empty if they are the same.

    Compared are types, structure, the order of dicts, dtypes with their byte order, the memory order of dense arrays,
    every bit of every number (the payload of a NaN and the sign of a zero too), and which arrays are the same array.
    Objects of frameworks are compared by what their adapters store. Not compared is what a checkpoint does not keep:
    which containers are the same object, how an array is spread over devices, and the strides of an array with gaps.
    Trees may be deep, or contain themselves. Raises `UnsupportedTypeError` for what a tree cannot hold.
    """
    return list(islice(_Comparison().differences(a, b), limit))


class _Comparison:
    """One walk over both trees, and what it has met."""

    def __init__(self) -> None:
        self.expand = make_expand()
        self.stack: list[_Pair] = []
        self.met: set[tuple[int, int]] = set()
        # Ids are of living objects only.
        self.kept: list[object] = []
        self.first_a: dict[Hashable, _Place] = {}
        self.first_b: dict[Hashable, _Place] = {}

    def differences(self, a: object, b: object) -> Iterator[str]:
        self.stack.append(_Pair(a, b, _Place(None, None)))
        while self.stack:
            pair = self.stack.pop()
            for problem in self.compare(pair):
                yield f"{pair.place}: {problem}"

    def compare(self, pair: _Pair) -> Iterator[str]:
        a, b, _ = pair
        cls = type(a)
        if cls is not type(b):
            yield f"{_type_text(cls)} and {_type_text(type(b))}"
        elif cls in _SINGLE:
            if a is not b:
                yield f"{a!r} and {b!r}"
        elif cls in _DIRECT:
            if a != b:
                yield f"{_shown(a)} and {_shown(b)}"
        elif cls is float or cls is complex:
            if _bits(a) != _bits(b):
                yield f"{a!r} and {b!r}, bits {_bits(a).hex()} and {_bits(b).hex()}"
        elif cls is set or cls is frozenset:
            yield from _compare_sets(a, b)
        elif isinstance(a, np.generic):
            yield from _compare_scalars(a, b)
        elif (id(a), id(b)) not in self.met:
            self.met.add((id(a), id(b)))
            self.kept += (a, b)
            yield from self.compare_composite(pair)

    def compare_composite(self, pair: _Pair) -> Iterator[str]:
        a, b, place = pair
        if type(a) is list or type(a) is tuple:
            if len(a) != len(b):
                yield f"{len(a)} and {len(b)} items"
            self.push(a, b, Index, range(min(len(a), len(b))), place)
        elif type(a) is dict:
            yield from self.compare_dicts(pair)
        elif type(a) is ArraySource:
            # What an adapter makes of an array.
            yield from self.compare_sources(a, b, place)
        elif isinstance(a, np.ndarray) and not a.dtype.hasobject:
            yield from _compare_arrays(a, b)
            yield from self.compare_sharing(array_identity(a), array_identity(b), place)
        else:
            yield from self.compare_expansions(self.expand(a), self.expand(b), pair)

    def push(self, a: Any, b: Any, step: Callable[[Any], Step | None], keys: Sequence[Any], place: _Place) -> None:
        self.stack.extend(_Pair(a[key], b[key], _Place(place, step(key))) for key in reversed(keys))

    def compare_dicts(self, pair: _Pair) -> Iterator[str]:
        a, b, place = pair
        keys_a = {key_string(key): key for key in a}
        keys_b = {key_string(key): key for key in b}
        for text, missing in (("second", keys_a.keys() - keys_b.keys()), ("first", keys_b.keys() - keys_a.keys())):
            if missing:
                names = sorted(str(DictKey((keys_a | keys_b)[key])) for key in missing)
                yield f"keys {', '.join(names)} are not in the {text}"
        if keys_a.keys() == keys_b.keys() and list(keys_a) != list(keys_b):
            yield "the keys are in another order"
        common = [key for key in keys_a if key in keys_b]
        # A NaN finds its value only by its own object, so values are looked up by key string.
        self.push(
            dict(zip(keys_a, a.values(), strict=True)),
            dict(zip(keys_b, b.values(), strict=True)),
            lambda key: DictKey(keys_a[key]),
            common,
            place,
        )

    def compare_expansions(
        self, a: ArraySource | Expansion | None, b: ArraySource | Expansion | None, pair: _Pair
    ) -> Iterator[str]:
        if (a is None) != (b is None):
            yield f"{_type_text(type(pair.a))} that are stored in different ways"
            return
        if a is None or b is None:
            raise UnsupportedTypeError(f"{pair.place}: a tree cannot hold a {_type_text(type(pair.a))}")
        if isinstance(a, ArraySource) and isinstance(b, ArraySource):
            yield from self.compare_sources(a, b, pair.place)
        elif isinstance(a, Expansion) and isinstance(b, Expansion) and a.type == b.type:
            self.kept += (a.children, b.children)
            steps = _steps(a.type)
            self.push(a.children, b.children, lambda index: steps[index], range(len(a.children)), pair.place)
        else:
            yield f"stored as {_stored_as(a)} and as {_stored_as(b)}"

    def compare_sources(self, a: ArraySource, b: ArraySource, place: _Place) -> Iterator[str]:
        yield from _compare_layouts((a.dtype, a.shape, a.axes), (b.dtype, b.shape, b.axes))
        if a.dtype == b.dtype and a.shape == b.shape:
            yield from _compare_items(logical_array(a), logical_array(b))
        yield from self.compare_sharing(a.identity, b.identity, place)

    def compare_sharing(self, a: Hashable, b: Hashable, place: _Place) -> Iterator[str]:
        # What has no identity is shared with nothing.
        first_a = place if a is None else self.first_a.setdefault(a, place)
        first_b = place if b is None else self.first_b.setdefault(b, place)
        if first_a is not first_b:
            yield f"{_shares(first_a, place)} and {_shares(first_b, place)}"


def logical_array(source: ArraySource) -> AnyArray:
    """All of a source as one array."""
    axes = source.axes or tuple(range(len(source.shape)))
    shape = tuple(source.shape[axis] for axis in axes)
    stored = np.zeros(shape, source.dtype)
    boxes = [whole(shape)] if source.cuts is None else list(grid(shape, source.cuts))
    for box, read in zip(boxes, source.boxes, strict=True):
        copy_items(stored[box.selection], read(0, math.prod(box.shape)).reshape(box.shape))
    return stored.transpose(np.argsort(axes))


def _steps(type_: ObjectType) -> list[Step | None]:
    steps: list[Step | None] = [Field(name) for name in type_.fields]
    # The wrapped value stands where the wrapper stands.
    return [None, *steps[1:]] if type_.class_kind is ClassKind.WRAPPER else steps


def _compare_sets(a: Any, b: Any) -> Iterator[str]:
    elements_a = {key_string(element): element for element in a}
    elements_b = {key_string(element): element for element in b}
    for text, missing in (("second", elements_a.keys() - elements_b), ("first", elements_b.keys() - elements_a)):
        if missing:
            shown = sorted(_shown((elements_a | elements_b)[element]) for element in missing)
            yield f"{', '.join(shown)} are not in the {text}"


def _compare_scalars(a: Any, b: Any) -> Iterator[str]:
    if isinstance(a, np.str_ | np.bytes_):
        # numpy arrays of strings drop zeros at their end.
        if a != b:
            yield f"{_shown(a)} and {_shown(b)}"
        return
    yield from _compare_arrays(np.asarray(a), np.asarray(b))


def _compare_arrays(a: AnyArray, b: AnyArray) -> Iterator[str]:
    source_a, source_b = source_of(a), source_of(b)
    yield from _compare_layouts((a.dtype, a.shape, source_a.axes), (b.dtype, b.shape, source_b.axes))
    if a.dtype == b.dtype and a.shape == b.shape:
        yield from _compare_items(a, b)


_Layout = tuple[AnyDType, tuple[int, ...], tuple[int, ...] | None]


def _compare_layouts(a: _Layout, b: _Layout) -> Iterator[str]:
    if a[0] != b[0] or describe(a[0]) != describe(b[0]):
        yield f"dtypes {describe(a[0])} and {describe(b[0])}"
    if a[1] != b[1]:
        yield f"shapes {list(a[1])} and {list(b[1])}"
    elif a[2] != b[2]:
        yield f"axes from slowest to fastest {_order(a)} and {_order(b)}"


def _order(layout: _Layout) -> list[int]:
    return list(range(len(layout[1])) if layout[2] is None else layout[2])


def _compare_items(a: AnyArray, b: AnyArray) -> Iterator[str]:
    if a.nbytes == 0:
        return
    bytes_a, bytes_b = (_item_bytes(array) for array in (a, b))
    unequal = np.flatnonzero((bytes_a != bytes_b).any(axis=1))
    if unequal.size:
        first = int(unequal[0])
        index = [int(position) for position in np.unravel_index(first, a.shape)] if a.ndim else []
        yield (
            f"{unequal.size} of {a.size} items differ, first at {index}: bits {bytes_a[first].tobytes().hex()} "
            f"and {bytes_b[first].tobytes().hex()}"
        )


def _item_bytes(array: AnyArray) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    # What is padding is read as zeros.
    items = run_reader(array)(0, array.size)
    return items.view(np.uint8).reshape(array.size, array.dtype.itemsize)


def _bits(value: Any) -> bytes:
    return struct.pack(">dd", value.real, value.imag) if isinstance(value, complex) else struct.pack(">d", value)


def _shares(first: _Place, here: _Place) -> str:
    return "shared with nothing before it" if first is here else f"the same array as {first}"


def _stored_as(expansion: ArraySource | Expansion) -> str:
    if isinstance(expansion, ArraySource):
        return "an array"
    return f"{expansion.type.name}({', '.join(expansion.type.fields)})"


def _type_text(cls: type) -> str:
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
