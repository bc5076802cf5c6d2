"""The text of values, in Python's notation: bounded, whatever the file holds, and safe to print."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from pytreeckpt import nodes as n
from pytreeckpt.arrays import AnyArray
from pytreeckpt.cli.names import dtype_text, type_text
from pytreeckpt.cli.navigation import array_number, kind_at, n_children, object_type, subtrees
from pytreeckpt.cli.outline import Outline
from pytreeckpt.cli.text import count, cut, visible
from pytreeckpt.errors import CorruptionError
from pytreeckpt.nodes import leaf_value
from pytreeckpt.objects import ClassKind
from pytreeckpt.reading import inline_array, scalar_value

_BRACKETS: Final[Mapping[int, tuple[str, str]]] = {
    n.LIST: ("[", "]"),
    n.TUPLE: ("(", ")"),
    n.SET: ("{", "}"),
    n.FROZENSET: ("frozenset({", "})"),
    n.DICT: ("{", "}"),
}
_EMPTY: Final[Mapping[int, str]] = {
    n.LIST: "[]",
    n.TUPLE: "()",
    n.SET: "set()",
    n.FROZENSET: "frozenset()",
    n.DICT: "{}",
}
_MAX_NESTING: Final = 8
_MAX_FIELDS: Final = 16
# More digits than Python converts to decimal by default help nobody.
_MAX_INT_BITS: Final = 4096


def value_text(outline: Outline, position: int, width: int = 60, *, brief: bool = False) -> str:
    """The value of a leaf other than an array, or of a list of these, cut to `width`; `brief`: see `brief_text`."""
    return cut(_Writer(outline, width, brief=brief).subtree(position, 0), width)


class _Writer:
    """Writes a subtree as text, and leaves out what is beyond the width anyway."""

    def __init__(self, outline: Outline, width: int, *, brief: bool) -> None:
        self.outline = outline
        self.width = width
        self.brief = brief

    def subtree(self, position: int, depth: int) -> str:
        kind = kind_at(self.outline, position)
        if kind == n.ARRAY:
            return "array"
        if kind == n.SCALAR:
            return scalar_text(self.outline, position)
        if kind < n.LIST:
            value = self.plain(position)
            return brief_text(value, self.width) if self.brief else plain_text(value, self.width)
        if depth > _MAX_NESTING:
            return "…"
        return self.record(position, depth) if kind == n.OBJECT else self.container(kind, position, depth)

    def plain(self, position: int) -> object:
        """A plain value; None for all else."""
        kind = kind_at(self.outline, position)
        return leaf_value(self.outline.nodes, kind, self.outline.entries[position]) if kind < n.ARRAY else None

    def container(self, kind: int, position: int, depth: int) -> str:
        number = n_children(self.outline, position)
        if number == 0:
            return _EMPTY[kind]
        begin, end = _BRACKETS[kind]
        if kind == n.DICT:
            return f"{begin}…{end}"
        items = self.joined(subtrees(self.outline, position + 1, number), depth)
        return begin + items + ("," if kind == n.TUPLE and number == 1 else "") + end

    def joined(self, positions: Sequence[int], depth: int) -> str:
        parts: list[str] = []
        used = 0
        for position in positions:
            if used > self.width:
                parts.append("…")
                break
            parts.append(self.subtree(position, depth + 1))
            used += len(parts[-1]) + 2
        return ", ".join(parts)

    def record(self, position: int, depth: int) -> str:
        type_ = object_type(self.outline, position)
        fields = subtrees(self.outline, position + 1, len(type_.fields))
        name = type_text(type_)
        if type_.class_kind is ClassKind.ENUM:
            return f"{name}.{self.word(fields[0])} = {self.subtree(fields[1], depth + 1)}"
        if type_.name in _SHORT:
            return _SHORT[type_.name](self, fields, depth)
        named = zip(type_.fields[:_MAX_FIELDS], fields, strict=False)
        return f"{name}({', '.join(f'{visible(field)}={self.subtree(value, depth + 1)}' for field, value in named)})"

    def word(self, position: int) -> str:
        """A str without quotes, where it is the name of something."""
        value = self.plain(position)
        return visible(value) if isinstance(value, str) else self.subtree(position, _MAX_NESTING)


_Short = Callable[[_Writer, Sequence[int], int], str]


def _call(name: str) -> _Short:
    return lambda writer, fields, depth: f"{name}({writer.joined(fields, depth)})"


def _first(name: str) -> _Short:
    return lambda writer, fields, depth: f"{name}({writer.subtree(fields[0], depth + 1)})"


def _prefixed(prefix: str) -> _Short:
    return lambda writer, fields, _depth: prefix + writer.word(fields[0])


def _device(writer: _Writer, fields: Sequence[int], _depth: int) -> str:
    index = writer.plain(fields[1])
    return f"torch.device {writer.word(fields[0])}" + ("" if index is None else f":{index}")


_SHORT: Final[Mapping[str, _Short]] = {
    "python.bytearray": _first("bytearray"),
    "python.Path": _first("Path"),
    "python.range": _call("range"),
    "python.slice": _call("slice"),
    "numpy.dtype": _prefixed("numpy.dtype "),
    "numpy.StringArray": _first("StringDType"),
    "torch.Size": _first("torch.Size"),
    "torch.dtype": _prefixed("torch."),
    "torch.layout": _prefixed("torch."),
    "torch.memory_format": _prefixed("torch."),
    "torch.device": _device,
}


def plain_text(value: object, width: int) -> str:
    """A plain value as Python writes it; a long str or bytes by its beginning and its length."""
    match value:
        case str() if len(value) > width:
            return f"{value[: width // 2]!r}… ({count(len(value), 'character')})"
        case bytes() if len(value) > width:
            return f"{value[: width // 8]!r}… ({count(len(value), 'byte')})"
        case bool():
            return repr(value)
        case int():
            return int_text(value)
    return "..." if value is ... else repr(value)


def brief_text(value: object, width: int) -> str:
    """A plain value among others: floats to six digits, the beginning of a long str or bytes."""
    if isinstance(value, str | bytes) and len(value) > width:
        return cut(repr(value[:width]), width)
    return float_text(value) if isinstance(value, float) else plain_text(value, width)


def int_text(value: int) -> str:
    """An int in decimal; in hex where it has more than a thousand digits."""
    return str(value) if value.bit_length() <= _MAX_INT_BITS else hex(value)


def float_text(value: float) -> str:
    """Six significant digits."""
    return f"{value:.6g}"


def scalar_text(outline: Outline, position: int) -> str:
    """A numpy scalar with its dtype: `float32 0.5`."""
    array = array_number(outline, position)
    return f"{dtype_text(outline.descriptor(array))} {item_text(scalar_of(outline, array))}"


def scalar_of(outline: Outline, array: int) -> object:
    """The numpy scalar of an inline array of rank 0, or its bytes where they are no value of its dtype."""
    try:
        return scalar_value(outline.index, array)
    except CorruptionError:
        return inline_array(outline.index, array).tobytes()


def item_texts(values: AnyArray) -> list[str]:
    """The items of an array of rank 1."""
    return [_item_at(values, place) for place in range(len(values))]


# Of bytes that are no value of the dtype, such as code points beyond Unicode, numpy raises all sorts, even SystemError.


def _item_at(values: AnyArray, place: int) -> str:
    try:
        return visible(_item_text(values[place]))
    except Exception:  # noqa: BLE001 - see above
        return f"<bytes {values[place : place + 1].tobytes().hex()}>"


def item_text(value: object) -> str:
    """A numpy scalar."""
    try:
        return visible(_item_text(value))
    except Exception:  # noqa: BLE001 - see above
        return f"<{type(value).__name__}>"


def _item_text(value: object) -> str:
    match value:
        case np.bool_():
            return repr(bool(value))
        case np.str_() | np.bytes_():
            return plain_text(value.item(), 60)
        case np.void() if value.dtype.names is None:
            return f"0x{value.tobytes().hex()}"
        case np.floating() if value.dtype.itemsize <= 8:
            return float_text(float(value))
    return str(value)
