"""The small objects that describe tensors: sizes, dtypes, layouts, memory formats and devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

from pytreeckpt import ClassKind, Expansion, ObjectType, UnsupportedTypeError
from pytreeckpt_torch.dtypes import DTYPES

_SIZE: Final = ObjectType(ClassKind.WRAPPER, "torch.Size", ("shape",))
_DEVICE: Final = ObjectType(ClassKind.RECORD, "torch.device", ("type", "index"))


def _members(cls: type) -> dict[str, object]:
    found = [value for value in vars(torch).values() if isinstance(value, cls)]
    return {str(value).removeprefix("torch."): value for value in found}


# Names from a file are looked up here, never in torch itself.
_NAMED: Final[Mapping[str, Mapping[str, object]]] = {
    "torch.dtype": DTYPES,
    "torch.layout": _members(torch.layout),
    "torch.memory_format": _members(torch.memory_format),
}
_NAMED_TYPES: Final[Mapping[type, ObjectType]] = {
    torch.dtype: ObjectType(ClassKind.RECORD, "torch.dtype", ("name",)),
    torch.layout: ObjectType(ClassKind.RECORD, "torch.layout", ("name",)),
    torch.memory_format: ObjectType(ClassKind.RECORD, "torch.memory_format", ("name",)),
}


def expand_descriptor(value: object) -> Expansion | None:
    """The fields of a descriptor, or None for anything else."""
    named = _NAMED_TYPES.get(type(value))
    if named is not None:
        return Expansion(named, [str(value).removeprefix("torch.")], lambda _new: value)
    if type(value) is torch.Size:
        return Expansion(_SIZE, [tuple(value)], lambda new: torch.Size(new[0]))
    if isinstance(value, torch.device):
        return Expansion(_DEVICE, [value.type, value.index], lambda _new: value)
    return None


def _build_named(type_name: str) -> Callable[[Mapping[str, object]], object]:
    members = _NAMED[type_name]

    def build(fields: Mapping[str, object]) -> object:
        name = fields["name"]
        if not isinstance(name, str):
            raise TypeError(f"the name is a {type(name).__name__}")
        if name not in members:
            raise UnsupportedTypeError(
                f'torch {torch.__version__} has no {type_name} {name}; use a newer one, or restore with to="numpy"'
            )
        return members[name]

    return build


def _build_size(fields: Mapping[str, Any]) -> torch.Size:
    if not isinstance(fields["shape"], tuple) or not all(type(extent) is int for extent in fields["shape"]):
        raise TypeError("the shape is no tuple of ints")
    return torch.Size(fields["shape"])


def _build_device(fields: Mapping[str, Any]) -> torch.device:
    type_, index = fields["type"], fields["index"]
    if not isinstance(type_, str) or not (index is None or type(index) is int):
        raise TypeError("the type is no str, or the index neither an int nor None")
    text = type_ if index is None else f"{type_}:{index}"
    try:
        return torch.device(text)
    except RuntimeError as error:
        raise UnsupportedTypeError(
            f'torch {torch.__version__} has no device {text}: {error}; leave it out, or restore with to="numpy"'
        ) from None


DESCRIPTORS: Final[Mapping[str, Callable[[Mapping[str, Any]], object]]] = {
    "torch.Size": _build_size,
    "torch.device": _build_device,
    **{name: _build_named(name) for name in _NAMED},
}
"""How to build each of them from its fields, by the name of its type."""
