"""Values as JSON (docs/command-line.md): every value has one form, and what JSON has no number for is a string."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from pytreeckpt import nodes as n
from pytreeckpt.cli.names import KIND_NAMES
from pytreeckpt.cli.navigation import array_number, children, kind_at, n_children, object_type, subtrees
from pytreeckpt.cli.outline import Outline
from pytreeckpt.cli.values import int_text, item_text, scalar_of
from pytreeckpt.nodes import leaf_value

# Beyond these, a reader that takes numbers as doubles would get another one.
_EXACT: Final = 1 << 53
# json.dumps recurses; no tree of use nests values so deep.
_MAX_NESTING: Final = 100


# Once: json.dumps makes a new one at each call with options.
_ENCODER: Final = json.JSONEncoder(allow_nan=False)


def dumps(value: object) -> str:
    """JSON in ASCII, without NaN."""
    return _ENCODER.encode(value)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A list of which each item is JSON already, so that many take little memory."""

    items: list[str] = field(default_factory=list)


def document(sections: Mapping[str, object]) -> Iterator[str]:
    """The text of a JSON object in pieces, each item of an `Encoded` list on a line of its own."""
    yield "{"
    for place, (name, section) in enumerate(sections.items()):
        yield f"{',' if place else ''}\n{dumps(name)}: "
        if isinstance(section, Encoded):
            yield from _list(section.items)
        else:
            yield dumps(section)
    yield "\n}\n"


def _list(items: Sequence[str]) -> Iterator[str]:
    yield "["
    for place, item in enumerate(items):
        yield f"{',' if place else ''}\n{item}"
    yield "\n]" if items else "]"


def encode_plain(value: object) -> Any:
    """A plain value: NaN, infinities and ints beyond ±2^53 as strings, bytes in hex, a complex number as a pair."""
    match value:
        case None | bool() | str():
            return value
        case int():
            return value if -_EXACT <= value <= _EXACT else int_text(value)
        case float():
            if math.isnan(value):
                return "nan"
            return value if math.isfinite(value) else "inf" if value > 0 else "-inf"
        case complex():
            return [encode_plain(value.real), encode_plain(value.imag)]
        case bytes():
            return value.hex()
    return "..."


def encode_item(value: object) -> Any:
    """A numpy scalar."""
    match value:
        case np.datetime64() | np.timedelta64():
            return item_text(value)
        case np.bool_():
            return bool(value)
        case np.integer():
            return encode_plain(int(value))
        case np.complexfloating():
            return encode_plain(complex(value))
        case np.str_():
            return str(value)
        case np.void():
            return value.tobytes().hex()
        case np.bytes_():
            return bytes(value).hex()
    # A float of numpy, or a number of ml_dtypes.
    return _encode_number(value)


def _encode_number(value: Any) -> Any:
    if "complex" in value.dtype.name:
        return encode_plain(complex(value))
    return encode_plain(int(value) if "int" in value.dtype.name else float(value))


def encode_subtree(outline: Outline, position: int, depth: int = 0) -> Any:
    """A subtree: plain values as they are, everything else as an object with its kind."""
    kind = kind_at(outline, position)
    if kind < n.ARRAY:
        return encode_plain(leaf_value(outline.nodes, kind, outline.entries[position]))
    if kind == n.ARRAY:
        return {"kind": "array", "array": array_number(outline, position)}
    if kind == n.SCALAR:
        return {"kind": "scalar", "value": encode_item(scalar_of(outline, array_number(outline, position)))}
    if depth > _MAX_NESTING:
        return {"kind": KIND_NAMES.get(kind, "object"), "cut": True}
    if kind == n.OBJECT:
        return encode_object(outline, position, depth)
    if kind == n.DICT:
        below = children(outline, position)
        pairs = [[str(child.step), encode_subtree(outline, child.position, depth + 1)] for child in below]
        return {"kind": "dict", "items": pairs}
    return {"kind": KIND_NAMES[kind], "items": encode_items(outline, position, depth)}


def encode_items(outline: Outline, position: int, depth: int = 0) -> list[Any]:
    """The items of a list, tuple, set or frozenset."""
    items = subtrees(outline, position + 1, n_children(outline, position))
    return [encode_subtree(outline, item, depth + 1) for item in items]


def encode_object(outline: Outline, position: int, depth: int = 0) -> dict[str, Any]:
    """An object: its class kind, its type, and its fields."""
    type_ = object_type(outline, position)
    values = subtrees(outline, position + 1, len(type_.fields))
    return {
        "kind": type_.class_kind.name.lower(),
        "type": type_.name,
        "fields": {
            name: encode_subtree(outline, value, depth + 1) for name, value in zip(type_.fields, values, strict=True)
        },
    }
