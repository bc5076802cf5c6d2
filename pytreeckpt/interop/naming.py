"""The arrays of a tree by flat names, for formats that hold nothing else.

A name is made of the steps to the array: dict keys that are texts as they are, ints in decimal, the indices of
sequences, and the names of fields, joined by a separator. Two arrays of one name are an error, and so is what is no
array, unless the caller drops it. What wraps an array (a Parameter) and empty containers leave no trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from pytreeckpt.errors import UnsupportedTypeError
from pytreeckpt.interop.outgoing import OutgoingArray, OutgoingScalar
from pytreeckpt.interop.registered import ARRAY_WRAPPERS, MAPPINGS, NAMESPACES, is_reserved
from pytreeckpt.objects import ClassKind, NamedTupleRecord, Record, record_expansion
from pytreeckpt.paths import DictKey, Field, Index, Path, Step

Names = Callable[[Path], str]

_SHOWN: Final = 10


@dataclass(frozen=True, slots=True)
class NamedArray:
    """An array, its path, and its name. `packed`: the dtype of torch of which its items are the bits, or None."""

    name: str
    path: Path
    array: OutgoingArray
    packed: str | None = None


class _Place(NamedTuple):
    """The steps to a value, the last one first."""

    step: Step
    above: _Place | None


def named_arrays(tree: object, *, separator: str, names: Names | None, drop_other: bool) -> list[NamedArray]:
    """The arrays of an outgoing tree, in order. numpy scalars are arrays of rank 0.

    `names` gives the name for a path, in place of the rule above. Raises `UnsupportedTypeError` for two arrays of one
    name, and for what is no array (it lists them), unless `drop_other`.
    """
    found: dict[str, NamedArray] = {}
    others: list[str] = []
    pending: list[tuple[_Place | None, Any]] = [(None, tree)]
    while pending:
        place, value = pending.pop()
        packed, array = _array_of(value)
        if array is None:
            children = _children(value)
            if children is None:
                others.append(f"{_shown(_path(place))}: {_kind(value)}")
            else:
                pending.extend(reversed([(_Place(step, place), child) for step, child in children]))
            continue
        path = _path(place)
        name = names(path) if names is not None else separator.join(map(_step_name, path))
        if not isinstance(name, str):
            raise TypeError(f"names gave a {type(name).__name__} for {_shown(path)}, not a str")
        if name in found:
            raise UnsupportedTypeError(
                f"{_shown(found[name].path)} and {_shown(path)} would both be called {name!r}; rename one of them, or "
                "give names= or another separator="
            )
        found[name] = NamedArray(name, path, array, packed)
    if others and not drop_other:
        more = f"\n  and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        raise UnsupportedTypeError(
            f"{len(others)} values are no arrays, which this format does not hold; drop_other=True leaves them out:\n  "
            + "\n  ".join(others[:_SHOWN])
            + more
        )
    return list(found.values())


def _array_of(value: Any) -> tuple[str | None, OutgoingArray | None]:
    """The array that a value is, and the dtype of torch if it is only its bits."""
    if isinstance(value, OutgoingArray):
        return None, value
    if isinstance(value, OutgoingScalar):
        return None, OutgoingArray(value.array)
    if isinstance(value, Record):
        expansion = record_expansion(value)
        data = expansion.children[0] if expansion.children else None
        name = expansion.type.name
        if isinstance(data, OutgoingArray) and name == "torch.PackedTensor":
            return str(expansion.children[1]), data
        if isinstance(data, OutgoingArray) and expansion.type.class_kind is ClassKind.WRAPPER:
            # Those of frameworks that are not known here too.
            return None, data if name in ARRAY_WRAPPERS or not is_reserved(name) else None
    return None, None


def _children(value: Any) -> Iterator[tuple[Step, Any]] | None:
    """What is in a container, with the step to each; None for what is none."""
    if isinstance(value, Record):
        type_, values = record_expansion(value).type, record_expansion(value).children
        if type_.name in MAPPINGS or type_.name == "python.deque":
            return _children(values[0]) if isinstance(values[0], dict | list) else None
        if is_reserved(type_.name) and type_.name not in NAMESPACES:
            return None
        return ((Field(name), child) for name, child in zip(type_.fields, values, strict=True))
    if isinstance(value, NamedTupleRecord):
        return ((Field(name), child) for name, child in zip(value._fields, value, strict=True))  # pyright: ignore[reportPrivateUsage]  # as a namedtuple has it
    if isinstance(value, dict):
        return ((DictKey(key), child) for key, child in value.items())
    if isinstance(value, list | tuple):
        return ((Index(index), child) for index, child in enumerate(value))
    return None


def _step_name(step: Step) -> str:
    match step:
        case DictKey(str(key)):
            return key
        case DictKey(int(key)) if not isinstance(key, bool):
            return str(DictKey(key))
        case Index(index):
            return str(index)
        case Field(name):
            return name
    raise UnsupportedTypeError(
        f"the key {step} is neither a str nor an int, and makes no part of a name; give names=, a function of the path"
    )


def _path(place: _Place | None) -> Path:
    steps: list[Step] = []
    while place is not None:
        steps.append(place.step)
        place = place.above
    return Path(reversed(steps))


def _shown(path: Path) -> str:
    return str(path) or "the root"


def _kind(value: object) -> str:
    if isinstance(value, Record):
        return record_expansion(value).type.name
    return type(value).__name__


def shared_names(arrays: Sequence[NamedArray]) -> Mapping[str, str]:
    """For each name whose array is also called otherwise: the first of its names in the order of texts, which keeps the
    array, as `safetensors.torch.save_model` chooses.
    """
    by_array: dict[tuple[int, str | None], list[str]] = {}
    for named in arrays:
        by_array.setdefault((id(named.array), named.packed), []).append(named.name)
    return {name: min(names) for names in by_array.values() for name in names if name != min(names)}
