"""One level of any object that the walk does not know: registered classes, frameworks' objects, and Python's and
numpy's own.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import math
import pathlib
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pytreeckpt.adapters import active_adapters
from pytreeckpt.arrays import AnyArray, ArraySource, array_identity, source_of
from pytreeckpt.dtypes import describe
from pytreeckpt.errors import UnsupportedTypeError
from pytreeckpt.flatten import Expand
from pytreeckpt.objects import (
    REGISTERED,
    ClassKind,
    Expansion,
    NamedTupleRecord,
    ObjectType,
    Record,
    class_name,
    record_expansion,
)


@dataclasses.dataclass(frozen=True, slots=True)
class RegisteredClass:
    """A class that the caller has registered, and how its instances become fields and come back."""

    name: str
    to_fields: Callable[[Any], Mapping[str, object]]
    from_fields: Callable[[Mapping[str, Any]], object]


_by_class: dict[type, RegisteredClass] = {}
_by_name: dict[str, RegisteredClass] = {}


def register_class(
    cls: type,
    *,
    to_fields: Callable[[Any], Mapping[str, object]],
    from_fields: Callable[[Mapping[str, Any]], object],
    name: str | None = None,
) -> None:
    """Let trees hold instances of `cls` (exactly, not of subclasses).

    `to_fields(instance)` gives a dict of named fields, whose values may be anything that a tree may hold;
    `from_fields` makes an instance from such a dict. In the file the object is a record called `name` (by default
    `module:qualified name`); where the class is not registered it comes back as a `Record` with these fields.
    Raises `ValueError` if the name is empty or taken by another class.
    """
    name = class_name(cls) if name is None else name
    if not name:
        raise ValueError("the name of a class cannot be empty")
    if name in REGISTERED or (name in _by_name and _by_class.get(cls) is not _by_name[name]):
        raise ValueError(f"the name {name!r} is taken; give another one with name=")
    entry = RegisteredClass(name, to_fields, from_fields)
    _by_class[cls] = entry
    _by_name[name] = entry


def registered_class(name: str) -> RegisteredClass | None:
    """What was registered under this name."""
    return _by_name.get(name)


def make_expand() -> Expand:
    """The function that flattening asks, with the adapters of the frameworks that are imported now."""
    adapters = active_adapters()

    def expand(value: object) -> ArraySource | Expansion | None:
        registered = _by_class.get(type(value))
        if registered is not None:
            return _expand_registered(registered, value)
        for adapter in adapters:
            expansion = adapter.expand(value)
            if expansion is not None:
                return expansion
        return expand_python(value)

    return expand


def _expand_registered(entry: RegisteredClass, value: object) -> Expansion:
    fields = dict(entry.to_fields(value))
    names = tuple(fields)
    type_ = ObjectType(ClassKind.RECORD, entry.name, names)
    return Expansion(type_, list(fields.values()), lambda new: entry.from_fields(dict(zip(names, new, strict=True))))


def _type(name: str, fields: Sequence[str] = ()) -> ObjectType:
    class_kind, registered = REGISTERED[name]
    return ObjectType(class_kind, name, registered if registered is not None else tuple(fields))


def counter(items: Mapping[object, Any]) -> Counter[object]:
    """A Counter with exactly these items; its own constructor would keep only what adds up."""
    filled: Counter[object] = Counter()
    dict.update(filled, items)
    return filled


def full_deque(items: Sequence[object], maxlen: int | None) -> deque[object]:
    """A deque with all these items. Raises `ValueError` if it would drop some."""
    if maxlen is not None and len(items) > maxlen:
        raise ValueError(f"{len(items)} items for a maxlen of {maxlen}")
    return deque(items, maxlen)


def default_dict(items: Mapping[object, object]) -> defaultdict[object, object]:
    """A defaultdict without its factory, which is code and not stored."""
    return defaultdict(None, items)


_MAPPINGS: dict[type, tuple[ObjectType, Callable[[Any], object]]] = {
    OrderedDict: (_type("python.OrderedDict"), OrderedDict),
    defaultdict: (_type("python.defaultdict"), default_dict),
    Counter: (_type("python.Counter"), counter),
}
_NAMESPACES: dict[type, str] = {
    argparse.Namespace: "python.Namespace",
    types.SimpleNamespace: "python.SimpleNamespace",
}
_FLAVOURS: dict[str, type[pathlib.PurePath]] = {
    "pure-posix": pathlib.PurePosixPath,
    "pure-windows": pathlib.PureWindowsPath,
    "posix": pathlib.PosixPath,
    "windows": pathlib.WindowsPath,
}


def path_class(flavour: str) -> type[pathlib.PurePath]:
    """The class of a stored path; on another platform than its own, the pure one. Raises `ValueError` for an
    unknown flavour.
    """
    if flavour not in _FLAVOURS:
        raise ValueError(f"{flavour!r} is not a flavour of paths")
    cls = _FLAVOURS[flavour]
    return (
        cls
        if cls in {pathlib.PurePosixPath, pathlib.PureWindowsPath, type(pathlib.Path())}
        else _FLAVOURS["pure-" + flavour]
    )


def expand_python(value: Any) -> ArraySource | Expansion | None:
    """One level of the objects of Python and numpy that are not plain types, and of dataclasses, namedtuples and
    enums.
    """
    cls = type(value)
    if cls in _MAPPINGS:
        type_, build = _MAPPINGS[cls]
        return Expansion(type_, [dict(value)], lambda new: build(new[0]))
    if cls in _NAMESPACES:
        attributes = vars(value).copy()
        fields = tuple(attributes)
        rebuild = _namespace_builder(cls, fields)
        return Expansion(_type(_NAMESPACES[cls], fields), list(attributes.values()), rebuild)
    if cls is deque:
        return Expansion(_type("python.deque"), [list(value), value.maxlen], lambda new: full_deque(*new))
    if cls is bytearray:
        return Expansion(_type("python.bytearray"), [bytes(value)], lambda new: bytearray(new[0]))
    if cls is range:
        return Expansion(_type("python.range"), [value.start, value.stop, value.step], lambda new: range(*new))
    if cls is slice:
        return Expansion(_type("python.slice"), [value.start, value.stop, value.step], lambda new: slice(*new))
    for flavour, path_class in _FLAVOURS.items():
        if cls is path_class:
            return Expansion(_type("python.Path"), [str(value), flavour], lambda new: cls(new[0]))
    if cls is Record or isinstance(value, NamedTupleRecord):
        return record_expansion(value)
    if isinstance(value, np.dtype):
        return Expansion(_type("numpy.dtype"), [_listed(describe(value))], lambda _new: value)
    if isinstance(value, np.ndarray):
        return _expand_array(value)
    if isinstance(value, enum.Enum):
        type_ = ObjectType(ClassKind.ENUM, class_name(cls), ("name", "value"))
        return Expansion(type_, [value.name, value.value], lambda new: cls(new[1]))
    return _expand_class(value)


def _expand_class(value: Any) -> Expansion | None:
    cls = type(value)
    if isinstance(value, tuple) and hasattr(cls, "_fields"):
        _refuse_other_state(value, ())
        type_ = ObjectType(ClassKind.NAMEDTUPLE, class_name(cls), tuple(cls._fields))
        return Expansion(type_, list(value), lambda new: tuple.__new__(cls, new))
    if dataclasses.is_dataclass(cls):
        names = tuple(field.name for field in dataclasses.fields(cls))
        _refuse_other_state(value, names)
        unset = [name for name in names if not hasattr(value, name)]
        if unset:
            raise UnsupportedTypeError(
                f"the dataclass {class_name(cls)} has fields without a value: {', '.join(unset)}; set them, or "
                "register the class with pytreeckpt.register_class"
            )
        try:
            object.__new__(cls)
        except TypeError:
            raise UnsupportedTypeError(
                f"the dataclass {class_name(cls)} is also a {cls.__mro__[-2].__name__}, whose content would be lost; "
                "register the class with pytreeckpt.register_class"
            ) from None
        type_ = ObjectType(ClassKind.DATACLASS, class_name(cls), names)
        return Expansion(type_, [getattr(value, name) for name in names], lambda new: build_dataclass(cls, names, new))
    return None


def _refuse_other_state(value: object, names: Sequence[str]) -> None:
    slots = {
        name
        for base in type(value).__mro__
        for name, attribute in vars(base).items()
        if isinstance(attribute, types.MemberDescriptorType) and hasattr(value, name)
    }
    other = sorted((slots | set(getattr(value, "__dict__", ()))) - set(names))
    if other:
        raise UnsupportedTypeError(
            f"a {class_name(type(value))} has attributes that are not fields, which would be lost: "
            f"{', '.join(other)}; register the class with pytreeckpt.register_class"
        )


def build_dataclass(cls: type, names: Sequence[str], values: Sequence[object]) -> object:
    """An instance with exactly these field values, made without running `__init__` or `__post_init__`."""
    instance: object = object.__new__(cls)
    for name, value in zip(names, values, strict=True):
        object.__setattr__(instance, name, value)
    return instance


def namespace(cls: type, names: Sequence[str], values: Sequence[object]) -> object:
    """A namespace with exactly these attributes, which as keyword arguments could not include `self`."""
    filled: object = cls()
    vars(filled).update(zip(names, values, strict=True))
    return filled


def _namespace_builder(cls: type, names: Sequence[str]) -> Callable[[Sequence[object]], object]:
    return lambda new: namespace(cls, names, new)


def _listed(descriptor: object) -> object:
    return [_listed(item) for item in descriptor] if isinstance(descriptor, tuple) else descriptor


def _expand_array(array: AnyArray) -> ArraySource | Expansion | None:
    if type(array) is np.memmap:
        plain = np.asarray(array)
        return source_of(plain, identity=array_identity(plain))
    if type(array) is not np.ndarray:
        return None
    if array.dtype.kind == "O":
        values = [array.reshape(-1).tolist() if array.ndim else [array.item()], array.shape]
        return Expansion(_type("numpy.ObjectArray"), values, lambda new: object_array(*new))
    if array.dtype.kind == "T":
        dtype: Any = array.dtype
        missing = (dtype.na_object,) if hasattr(dtype, "na_object") else ()
        if missing and not (missing[0] is None or isinstance(missing[0], str) or _is_nan(missing[0])):
            raise UnsupportedTypeError(f"a StringDType with the missing value {missing[0]!r} cannot be stored")
        children: list[object] = [array.reshape(-1).tolist(), array.shape, bool(dtype.coerce), missing]
        return Expansion(_type("numpy.StringArray"), children, lambda new: string_array(*new))
    # A struct with objects in it: say which dtype it is.
    describe(array.dtype)
    return None


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _is_missing(value: object, missing: object) -> bool:
    return value is missing or (_is_nan(value) and _is_nan(missing))


def _check_extents(shape: Sequence[object]) -> None:
    if not all(type(extent) is int and extent >= 0 for extent in shape):
        raise ValueError("the shape is not made of non-negative integers")


def object_array(values: Sequence[object], shape: Sequence[int]) -> AnyArray:
    """An array of Python objects. Raises `ValueError` if the values do not fill the shape."""
    _check_extents(shape)
    flat = np.empty(len(values), object)
    for index, value in enumerate(values):
        flat[index] = value
    return flat.reshape(tuple(shape))


def string_array(
    values: Sequence[object],
    shape: Sequence[int],
    coerce: bool,  # noqa: FBT001 - the fields of a numpy.StringArray, in order
    missing: Sequence[object],
) -> AnyArray:
    """An array of numpy's StringDType. Raises `ValueError` or `TypeError` for values that it cannot hold."""
    _check_extents(shape)
    if len(missing) > 1 or not all(item is None or isinstance(item, str) or _is_nan(item) for item in missing):
        raise ValueError(f"{len(missing)} missing values, or one that is not None, NaN or a str")
    if not all(isinstance(value, str) or (missing and _is_missing(value, missing[0])) for value in values):
        raise ValueError("a value is neither a str nor the missing value")
    keywords: dict[str, Any] = {"na_object": missing[0]} if missing else {}
    dtype = np.dtypes.StringDType(coerce=coerce, **keywords)
    return np.array(values, dtype).reshape(tuple(shape))
