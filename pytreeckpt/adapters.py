"""How frameworks join: an adapter is a record of functions between a framework's objects and the tree model.

Adapters are found through the entry-point group `pytreeckpt.adapters`, whose names are those of the frameworks'
top-level modules. A framework that the process has not imported cannot have objects in a tree, so saving never imports
one; reading imports one only to give back what was saved with it, or what the caller asks for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pytreeckpt.arrays import AnyArray, ArraySource
from pytreeckpt.dtypes import AnyDType
from pytreeckpt.geometry import Shape
from pytreeckpt.objects import Expansion, ObjectType
from pytreeckpt.paths import Step

GROUP = "pytreeckpt.adapters"

Attributes = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class InPlace:
    """The memory of a leaf of a template, which is to be filled.

    `space`: where it is (a device, by name); `address` of its first item and `strides`, both in bytes. `memory`: the
    same as a writable numpy array of the template's shape and dtype; None on a device. `fill(array)` gives the leaf
    itself back: with `memory`, once the values are there; without, after copying those of `array` to it.
    """

    space: str
    address: int
    strides: Shape
    memory: AnyArray | None
    fill: Callable[[AnyArray], object]


@dataclass(frozen=True, slots=True)
class LeafTemplate:
    """What an array leaf of a template (`like=`) asks for.

    `shape` and `dtype` are those of the array as it is stored; `place` makes the leaf from a fresh numpy array that the
    leaf may keep. `refuse(type, attributes)`, if given, is asked with the stored object type (None for a plain
    array) and its attributes, and returns what is wrong with them, or None. `in_place`: how the leaf itself can be
    filled instead; `place` is still needed, for leaves that overlap others.
    """

    shape: Shape
    dtype: AnyDType
    place: Callable[[AnyArray], object]
    refuse: Callable[[ObjectType | None, Attributes], str | None] = field(default=lambda _type, _attributes: None)
    in_place: InPlace | None = None


@dataclass(frozen=True, slots=True)
class Described:
    """An object whose parameters can be converted, such as a module: what `pytreeckpt.convert` is to see of it.

    `convention`: how its leaves are named: "torch", "flax" or "equinox". `tree`: a tree with its parameters and
    buffers, abstract ones too, below `prefix`. `layers`: by name, the class, kind and configuration of each layer.
    `buffers`: the names of what is no parameter; `variables`: in nnx, the types of variables by their names.
    """

    convention: str
    tree: object
    prefix: tuple[Step, ...] = ()
    layers: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    buffers: frozenset[str] = frozenset()
    variables: Mapping[tuple[str, ...], str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Blend:
    """How arrays of a framework move towards others of it.

    `kind(value)`: "real" for an array of real floats, "complex" for one of complex numbers, "other" for all other
    arrays, and None for what is no array of the framework. `blend(pairs, weight)`: for each pair of arrays of one shape
    and kind, start + weight·(end − start), in the dtype of start, or, for others, end.
    """

    kind: Callable[[object], str | None]
    blend: Callable[[Sequence[tuple[Any, Any]], Any], list[object]]


@dataclass(frozen=True, slots=True)
class Adapter:
    """A framework's objects, to the tree model and back. Each function is pure; none keeps state.

    `framework`: the top-level module; the names of its object types begin with it and a dot.
    - `expand(value)`: an array of the framework as `ArraySource`, another of its objects as `Expansion`, None for what
      is not its own.
    - `build(name, fields)`: the object of a type that `expand` gave, from its fields. An array field is a numpy array
      or, when everything is converted to this framework, already one of its arrays. Raises `ValueError` or `TypeError`
      for values that make no sense.
    - `from_array(array)`: a numpy array, not shared with anyone, as the framework's own. Raises `UnsupportedTypeError`
      for a dtype that the framework lacks.
    - `template(value)`: a leaf of a template, or None for what is not the framework's.
    - `describe(value)`: an object with parameters, for conversion, or None for anything else.
    - `blend`: how its arrays are averaged in place of reading them, or None.
    """

    framework: str
    expand: Callable[[object], ArraySource | Expansion | None]
    build: Callable[[str, Mapping[str, object]], object]
    from_array: Callable[[AnyArray], object]
    template: Callable[[object], LeafTemplate | None]
    describe: Callable[[object], Described | None] = field(default=lambda _value: None)
    blend: Blend | None = None


_added: dict[str, Adapter] = {}


def register_adapter(adapter: Adapter) -> None:
    """Add an adapter to this process, in place of an installed one for the same framework. For tests and scripts;
    packages use the entry point.
    """
    _added[adapter.framework] = adapter


@cache
def _installed() -> Mapping[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def frameworks() -> list[str]:
    """The frameworks that adapters exist for, whether or not they are installed."""
    return sorted({*_added, *_installed()})


@cache
def _load(framework: str) -> Adapter:
    entry = _installed()[framework]
    try:
        adapter = entry.load()
    except AttributeError as error:
        raise TypeError(f"the entry point {framework!r} of {GROUP} names {entry.value}, which is not there") from error
    if not isinstance(adapter, Adapter):
        raise TypeError(f"the entry point {framework!r} of {GROUP} is not a pytreeckpt.Adapter")
    return adapter


def find_adapter(framework: str) -> Adapter | None:
    """The adapter for a framework, importing both; None if there is none or the framework is not installed."""
    if framework in _added:
        return _added[framework]
    if framework not in _installed():
        return None
    try:
        return _load(framework)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] == framework:
            return None
        raise


def active_adapters() -> list[Adapter]:
    """The adapters of the frameworks that this process has imported."""
    found = [find_adapter(framework) for framework in frameworks() if framework in sys.modules]
    return [adapter for adapter in found if adapter is not None]
