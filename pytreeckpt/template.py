"""Templates (`like=`): a checkpoint in the structure, types, frameworks and devices of a given tree.

Leaves are matched by path, where a dict key that is a str and a field of the same name are the same step: a state
saved as a dict goes into a dataclass, and back. What the template has no leaf for, or the checkpoint, is a mismatch.

Leaves with memory that can be written to are filled where they are.
"""

from __future__ import annotations

import math
import reprlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from pytreeckpt.adapters import InPlace, LeafTemplate, active_adapters
from pytreeckpt.arrays import AnyArray, ArraySource
from pytreeckpt.errors import LimitError, UnsupportedTypeError
from pytreeckpt.expand import make_expand
from pytreeckpt.limits import current_limits
from pytreeckpt.objects import ClassKind, Expansion, is_atomic
from pytreeckpt.paths import DictKey, Field, Index, Path, Step

MatchPath = tuple[Step, ...]
_NUMBERS = (bool, int, float, complex, np.generic)


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf of a template: its path, and the array it asks for, or its plain value (an empty container counts as
    one).
    """

    path: Path
    wanted: LeafTemplate | None
    value: object


@dataclass(frozen=True, slots=True)
class _Node:
    """A container of a template with `arity` children, made anew by `rebuild`; or the leaf with this number."""

    arity: int
    rebuild: Callable[[Sequence[Any]], object] | None
    leaf: int = -1


@dataclass(frozen=True, slots=True)
class Template:
    """A template, taken apart: its leaves, and its nodes in preorder."""

    leaves: list[Leaf]
    nodes: list[_Node]

    def rebuild(self, values: Sequence[object]) -> Any:
        """A tree like the template with these values of its leaves."""
        stack: list[Any] = []
        for node in reversed(self.nodes):
            if node.rebuild is None:
                stack.append(values[node.leaf])
                continue
            place = len(stack) - node.arity
            children = stack[place:][::-1]
            del stack[place:]
            stack.append(node.rebuild(children))
        return stack[0]


def match_path(path: Sequence[Step]) -> MatchPath:
    """The path under which leaves are matched: a field and a dict key of the same name are the same."""
    return tuple(DictKey(step.name) if isinstance(step, Field) else step for step in path)


def take_apart(template: object) -> Template:
    """The leaves and nodes of a template. Raises `UnsupportedTypeError` for what can be neither leaf nor container."""
    adapters = active_adapters()
    expand = make_expand()
    leaves: list[Leaf] = []
    nodes: list[_Node] = []
    stack: list[tuple[object, tuple[Step, ...]]] = [(template, ())]
    while stack:
        value, path = stack.pop()
        wanted = _array_template(value, adapters)
        level = None if wanted is not None else _level(value, expand)
        if level is None:
            nodes.append(_Node(0, None, len(leaves)))
            leaves.append(Leaf(Path(path), wanted, value))
            continue
        if len(path) >= current_limits().depth:
            raise LimitError(
                f"the template is deeper than the limit of {current_limits().depth} levels, or contains itself; raise "
                "it with pytreeckpt.limits(depth=…)"
            )
        steps, children, rebuild = level
        nodes.append(_Node(len(children), rebuild))
        stack.extend(
            (child, path if step is None else (*path, step))
            for step, child in zip(reversed(steps), reversed(children), strict=True)
        )
    return Template(leaves, nodes)


def _array_template(value: object, adapters: Sequence[Any]) -> LeafTemplate | None:
    if type(value) is np.ndarray and not value.dtype.hasobject:
        return LeafTemplate(value.shape, value.dtype, lambda array: array, in_place=_in_place(value))
    for adapter in adapters:
        found: LeafTemplate | None = adapter.template(value)
        if found is not None:
            return found
    return None


def _in_place(array: AnyArray) -> InPlace | None:
    if not array.flags.writeable:
        return None
    return InPlace("cpu", array.__array_interface__["data"][0], array.strides, array, lambda _: array)


_Level = tuple[Sequence[Step | None], Sequence[object], Callable[[Sequence[Any]], object]]


def _level(value: Any, expand: Callable[[object], ArraySource | Expansion | None]) -> _Level | None:
    """One level of a container: the steps to its children, the children, how to rebuild it; None for a leaf."""
    cls = type(value)
    if cls is dict:
        keys = list(value)
        return (
            (
                [DictKey(key) for key in keys],
                list(value.values()),
                lambda new: dict(zip(keys, new, strict=True)),
            )
            if keys
            else None
        )
    if cls is list or cls is tuple:
        return ([Index(index) for index in range(len(value))], value, list if cls is list else tuple) if value else None
    if isinstance(value, (*_NUMBERS, str, bytes, set, frozenset, type(None), type(...))):
        return None
    expansion = expand(value)
    if isinstance(expansion, Expansion) and expansion.rebuild is not None:
        if is_atomic(expansion.type) or not expansion.children:
            return None
        if expansion.type.class_kind is not ClassKind.WRAPPER:
            return [Field(name) for name in expansion.type.fields], expansion.children, expansion.rebuild
        if isinstance(expansion.children[0], dict | list | tuple) and expansion.children[0]:
            return _wrapper_level(expansion, expansion.rebuild)
        return None
    if expansion is None:
        raise UnsupportedTypeError(
            f"the template holds a {cls.__module__}.{cls.__qualname__}, which is neither a leaf nor a container"
        )
    return None


def _wrapper_level(expansion: Expansion, rebuild: Callable[[Sequence[Any]], object]) -> _Level:
    # The wrapped container and its attributes as one level: attributes come from the template.
    attributes = expansion.children[1:]
    return [None], [expansion.children[0]], lambda new: rebuild([new[0], *attributes])


def number_for(template: object, stored: object) -> object:
    """A stored number as the type of the template's, if that loses nothing. Raises `ValueError` if it would."""
    if isinstance(stored, np.ndarray):
        stored = stored[()]
    if type(template) is type(stored):
        return stored
    plain = stored.item() if isinstance(stored, np.generic) else stored
    # Any: the class of a number, called with a number.
    convert: Any = np.dtype(type(template)).type if isinstance(template, np.generic) else type(template)
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is lost is seen by comparing
            converted = convert(plain)
            # As Python's numbers, which compare exactly: numpy would round one to the precision of the other.
            back = converted.item() if isinstance(converted, np.generic) else converted
            if back == plain or _both_nan(back, plain):
                return cast("object", converted)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"{reprlib.repr(plain)} is no {type(template).__name__}")


def _both_nan(a: object, b: object) -> bool:
    return isinstance(a, float | np.floating) and isinstance(b, float | np.floating) and math.isnan(a) and math.isnan(b)


def is_number(value: object) -> bool:
    """Whether a value is a Python or numpy number, which a template lets stand for each other."""
    return isinstance(value, _NUMBERS) and not isinstance(value, np.flexible | np.datetime64 | np.timedelta64)
