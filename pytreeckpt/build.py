"""Values of fields to objects: what `to=` and `types=` ask for, and inert records for all else.

Nothing is imported or called because a file names it: classes come from `types`, from what the caller has
registered, from adapters that are installed, and from the closed list below.
"""

from __future__ import annotations

import types as python_types
import warnings
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from enum import Enum
from typing import Any, Final

from pytreeckpt import dtypes
from pytreeckpt.adapters import Adapter, find_adapter, frameworks
from pytreeckpt.arrays import AnyArray
from pytreeckpt.errors import (
    CorruptionError,
    FormatVersionError,
    LimitError,
    StructureMismatchError,
    UnsupportedTypeError,
)
from pytreeckpt.expand import (
    build_dataclass,
    counter,
    default_dict,
    full_deque,
    namespace,
    object_array,
    path_class,
    registered_class,
    string_array,
)
from pytreeckpt.objects import ClassKind, ObjectType, build_record, class_name
from pytreeckpt.unflatten import UNSELECTED

_PYTHON: Final[Mapping[str, Callable[..., object]]] = {
    "python.OrderedDict": OrderedDict,
    "python.defaultdict": default_dict,
    "python.Counter": counter,
    "python.deque": full_deque,
    "python.bytearray": bytearray,
    "python.Path": lambda text, flavour: path_class(flavour)(text),
    "python.range": range,
    "python.slice": slice,
    "numpy.ObjectArray": object_array,
    "numpy.StringArray": string_array,
    "numpy.dtype": dtypes.parse,
}
# The exact types of the fields, without which `bytearray(1 << 40)` would be a bomb. A slice may hold anything.
_FIELD_TYPES: Final[Mapping[str, tuple[tuple[type, ...], ...]]] = {
    "python.OrderedDict": ((dict,),),
    "python.defaultdict": ((dict,),),
    "python.Counter": ((dict,),),
    "python.deque": ((list,), (int, type(None))),
    "python.bytearray": ((bytes,),),
    "python.Path": ((str,), (str,)),
    "python.range": ((int,), (int,), (int,)),
    "numpy.ObjectArray": ((list,), (tuple,)),
    "numpy.StringArray": ((list,), (tuple,), (bool,), (tuple,)),
    "numpy.dtype": ((str, list),),
}
_NAMESPACES: Final[Mapping[str, type]] = {
    "python.Namespace": Namespace,
    "python.SimpleNamespace": python_types.SimpleNamespace,
}
_CLASS_KINDS: Final = {
    ClassKind.NAMEDTUPLE: lambda cls: issubclass(cls, tuple) and hasattr(cls, "_fields"),
    ClassKind.DATACLASS: is_dataclass,
    ClassKind.ENUM: lambda cls: issubclass(cls, Enum),
}


class Builder:
    """Builds objects for one restore. `to`: "auto" or a framework; `types`: classes that may be rebuilt by name."""

    def __init__(self, to: str, types: Iterable[type]) -> None:
        known = ["auto", "numpy", *frameworks()]
        if to not in known:
            raise ValueError(f"to={to!r}: it is one of {', '.join(known)}")
        self.to = to
        self.classes = {class_name(cls): cls for cls in types}
        self.target: Adapter | None = None
        if to not in {"auto", "numpy"}:
            self.target = find_adapter(to)
            if self.target is None:
                raise ModuleNotFoundError(
                    f'to={to!r}: {to} is not installed; install it, or restore with to="numpy"', name=to
                )
        self.adapters: dict[str, Adapter | None] = {}
        self.tied: dict[int, object] = {}
        self.shared: dict[object, object] = {}
        self.missing: dict[str, int] = {}

    def leaf(self, array: AnyArray) -> object:
        """A plain array as what `to` asks for. Raises `UnsupportedTypeError` if the framework cannot hold it."""
        return array if self.target is None else self.target.from_array(array)

    def leaf_of_many(self, array: AnyArray) -> object:
        """As `leaf`, for an array that stands at several places of the tree: its wrappers are made once."""
        leaf = self.leaf(array)
        # Kept, so that its id stays its own.
        self.tied[id(leaf)] = leaf
        return leaf

    def build_object(self, type_: ObjectType, values: Sequence[Any]) -> object:
        """The object of this type with these values of its fields."""
        try:
            return self.known_object(type_, values)
        except (StructureMismatchError, UnsupportedTypeError, FormatVersionError, LimitError):
            raise
        except (
            *(TypeError, ValueError, AttributeError, LookupError),
            *(ArithmeticError, MemoryError, RecursionError),
        ) as error:
            raise CorruptionError(f"the fields of a {type_.name} make no {type_.name}: {error}", rule="T-4") from error

    def known_object(self, type_: ObjectType, values: Sequence[Any]) -> object:
        """As `build_object`, with whatever error the values cause."""
        if type_.name in _PYTHON:
            _check_fields(type_, values)
            return _PYTHON[type_.name](*values)
        if type_.name in _NAMESPACES:
            return namespace(_NAMESPACES[type_.name], type_.fields, values)
        if type_.class_kind is ClassKind.WRAPPER:
            return self.wrapper(type_, values)
        if type_.class_kind is ClassKind.RECORD:
            if _is_part(values):
                return build_record(type_, values)
            registered = registered_class(type_.name)
            if registered is not None:
                return registered.from_fields(dict(zip(type_.fields, values, strict=True)))
            # The record of a foreign class, `module:name`, is nothing that an adapter has made.
            adapter = None if ":" in type_.name else self.adapter_of(type_)
            return (
                build_record(type_, values)
                if adapter is None
                else adapter.build(type_.name, dict(zip(type_.fields, values, strict=True)))
            )
        cls = self.classes.get(type_.name)
        return build_record(type_, values) if cls is None else rebuild_class(cls, type_, values)

    def wrapper(self, type_: ObjectType, values: Sequence[Any]) -> object:
        """A wrapped value, wrapped again if its framework is wanted and here."""
        adapter = self.adapter_of(type_)
        if adapter is None:
            return values[0]
        fields = dict(zip(type_.fields, values, strict=True))
        if id(values[0]) not in self.tied:
            return adapter.build(type_.name, fields)
        # Tied arrays stay tied: the same array wrapped in the same way is one object.
        key = (type_, id(values[0]), repr(values[1:]))
        if key not in self.shared:
            self.shared[key] = adapter.build(type_.name, fields)
        return self.shared[key]

    def adapter_of(self, type_: ObjectType) -> Adapter | None:
        """The adapter to build this type with, if it is wanted and there is one."""
        framework = type_.name.partition(".")[0]
        if self.to not in {"auto", framework}:
            return None
        if framework not in self.adapters:
            self.adapters[framework] = find_adapter(framework) if framework in frameworks() else None
        if self.adapters[framework] is None:
            self.missing[framework] = self.missing.get(framework, 0) + 1
        return self.adapters[framework]

    def warn(self) -> None:
        """Say once what could not be given back as it was saved."""
        if not self.missing:
            return
        counts = " and ".join(f"{count} objects of {name}" for name, count in sorted(self.missing.items()))
        warnings.warn(
            f"{counts} came back as numpy arrays, plain values and records, because no adapter or framework of "
            "that name is installed "
            'here; install it, or ask for to="numpy" to silence this',
            UserWarning,
            stacklevel=4,
        )


def _check_fields(type_: ObjectType, values: Sequence[object]) -> None:
    for field, value, allowed in zip(type_.fields, values, _FIELD_TYPES.get(type_.name, ()), strict=False):
        if type(value) not in allowed:
            raise TypeError(f"{field} is a {type(value).__name__}")


def _is_part(values: Sequence[object]) -> bool:
    """Whether `select` left out some of the fields, or of the items of one: no object can be made of a part."""
    return any(
        value is UNSELECTED or (isinstance(value, list | tuple) and any(item is UNSELECTED for item in value))
        for value in values
    )


def rebuild_class(cls: type, type_: ObjectType, values: Sequence[object]) -> object:
    """An instance of a class that the caller allows. Raises `StructureMismatchError` if it is not of that kind or
    has other fields.
    """
    is_kind = _CLASS_KINDS.get(type_.class_kind)
    if is_kind is None:
        raise StructureMismatchError(
            f"{type_.name} was saved as a registered pytree node, without its static fields: restore it with "
            "like=, not types="
        )
    if not is_kind(cls):
        raise StructureMismatchError(
            f"{type_.name} was saved as a {type_.class_kind.name.lower()}, and the class given in types is none"
        )
    if type_.class_kind is ClassKind.ENUM:
        return _rebuild_member(cls, type_, values)
    if type_.class_kind is ClassKind.NAMEDTUPLE:
        names = tuple(cls._fields)  # type: ignore[attr-defined]  # a namedtuple, as just checked
    else:
        names = tuple(field.name for field in dataclass_fields(cls))
    if set(names) != set(type_.fields):
        raise StructureMismatchError(
            f"{type_.name} has other fields now than when it was saved",
            missing=sorted(set(names) - set(type_.fields)),
            unexpected=sorted(set(type_.fields) - set(names)),
        )
    by_name = dict(zip(type_.fields, values, strict=True))
    ordered = [by_name[name] for name in names]
    if type_.class_kind is ClassKind.NAMEDTUPLE:
        return tuple.__new__(cls, ordered)
    return build_dataclass(cls, names, ordered)


def _rebuild_member(cls: type, type_: ObjectType, values: Sequence[object]) -> object:
    name, value = values
    try:
        member = cls(value)
    except ValueError:
        member = None
    if member is None or member.name != name:
        raise StructureMismatchError(f"{type_.name} has no member {name} with the value {value!r} now")
    return member
