"""The names of kinds, types, dtypes and steps, safe to print."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from pytreeckpt import nodes as n
from pytreeckpt.cli.text import count, visible
from pytreeckpt.dtypes import Descriptor
from pytreeckpt.objects import ClassKind, ObjectType
from pytreeckpt.paths import Path, Step

KIND_NAMES: Final[Mapping[int, str]] = {
    n.NONE: "none",
    n.FALSE: "bool",
    n.TRUE: "bool",
    n.ELLIPSIS: "ellipsis",
    n.INT: "int",
    n.BIGINT: "int",
    n.FLOAT: "float",
    n.COMPLEX: "complex",
    n.STR: "str",
    n.BYTES: "bytes",
    n.ARRAY: "array",
    n.SCALAR: "scalar",
    n.LIST: "list",
    n.TUPLE: "tuple",
    n.DICT: "dict",
    n.SET: "set",
    n.FROZENSET: "frozenset",
}
_NOUNS: Final[Mapping[int, str]] = {
    n.FALSE: "bool",
    n.TRUE: "bool",
    n.INT: "int",
    n.BIGINT: "int",
    n.FLOAT: "float",
    n.COMPLEX: "complex number",
    n.STR: "string",
}


def path_text(path: Path) -> str:
    """The text of a path."""
    return visible(str(path)) or "the root"


def step_text(step: Step) -> str:
    """The text of a step of a path."""
    return visible(str(step))


def type_text(type_: ObjectType) -> str:
    """The name of a type: a registered name whole, of a class its name without that of its module."""
    registered = type_.class_kind in {ClassKind.WRAPPER, ClassKind.RECORD}
    return visible(type_.name if registered else type_.name.rpartition(":")[2] or type_.name)


def items_text(kinds: Collection[int], number: int) -> str:
    """`10,000 floats` if all are of one kind, or else `12 values`."""
    nouns = {_NOUNS.get(kind, "value") for kind in kinds}
    return count(number, nouns.pop() if len(nouns) == 1 else "value")


def dtype_text(descriptor: Any) -> str:
    """The name of a dtype: `float32`, `int16_be`, `str(12)`, `datetime64(ns)`, `struct(x: float32, y: int8[3])`."""
    match descriptor:
        case str():
            return descriptor
        case ["struct", _, _, fields]:
            texts = [
                f"{visible(name)}: {dtype_text(inner)}{json.dumps(extents) if extents else ''}"
                for name, _title, inner, _offset, extents in fields
            ]
            return f"struct({', '.join(texts)})"
        case [name, str(unit), number]:
            return f"{name}({unit})" if number == 1 else f"{name}({number} {unit})"
    name, length = descriptor
    return f"{name}({length})"


def array_text(descriptor: Descriptor, shape: Sequence[int]) -> str:
    """A dtype and a shape: `float32[768, 3072]`."""
    return f"{dtype_text(descriptor)}[{', '.join(map(str, shape))}]"
