"""Objects of a tree: their types as the file tells them, and the inert records that stand for unknown ones.

Nothing here imports or looks up a name that a file gives: a record is data with the same fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from operator import itemgetter
from typing import Any, Final, Self

from pytreeckpt.errors import CorruptionError

MAX_FIELDS: Final = 1 << 20
"""How many fields an object may have for this library, and so how long an array within an entry of a table may be."""


class ClassKind(IntEnum):
    """Section 5 of the format."""

    WRAPPER = 0
    RECORD = 1
    NAMEDTUPLE = 2
    DATACLASS = 3
    ENUM = 4
    PYTREE = 5


@dataclass(frozen=True, slots=True)
class ObjectType:
    """An entry of the type table. The first field of a wrapper is the value that it wraps."""

    class_kind: ClassKind
    name: str
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Expansion:
    """One level of an object: its type and the values of its fields.

    `rebuild` makes an object like the original from new values of the fields; templates (`like=`) use it.
    """

    type: ObjectType
    children: Sequence[object]
    rebuild: Callable[[Sequence[Any]], object] | None = None


_TENSOR = (ClassKind.WRAPPER, ("data", "requires_grad"))
_ITEMS = (ClassKind.WRAPPER, ("items",))
_NAMED = (ClassKind.RECORD, ("name",))
_RANGE = (ClassKind.RECORD, ("start", "stop", "step"))

# The objects of spec/registries.md; None: any fields.
REGISTERED: Mapping[str, tuple[ClassKind, tuple[str, ...] | None]] = {
    "python.OrderedDict": _ITEMS,
    "python.defaultdict": _ITEMS,
    "python.Counter": _ITEMS,
    "python.deque": (ClassKind.WRAPPER, ("items", "maxlen")),
    "python.bytearray": (ClassKind.WRAPPER, ("value",)),
    "python.Path": (ClassKind.WRAPPER, ("text", "flavour")),
    "python.range": _RANGE,
    "python.slice": _RANGE,
    "python.Namespace": (ClassKind.RECORD, None),
    "python.SimpleNamespace": (ClassKind.RECORD, None),
    "numpy.ObjectArray": (ClassKind.WRAPPER, ("values", "shape")),
    "numpy.StringArray": (ClassKind.WRAPPER, ("values", "shape", "coerce", "missing")),
    "numpy.dtype": (ClassKind.RECORD, ("descriptor",)),
    "torch.Tensor": _TENSOR,
    "torch.nn.Parameter": _TENSOR,
    "torch.nn.Buffer": (ClassKind.WRAPPER, ("data", "requires_grad", "persistent")),
    "torch.PackedTensor": (ClassKind.WRAPPER, ("data", "dtype", "shape", "requires_grad", "parameter")),
    "torch.SparseTensor": (
        ClassKind.RECORD,
        ("values", "indices", "layout", "shape", "coalesced", "requires_grad"),
    ),
    "torch.Size": (ClassKind.WRAPPER, ("shape",)),
    "torch.dtype": _NAMED,
    "torch.layout": _NAMED,
    "torch.memory_format": _NAMED,
    "torch.device": (ClassKind.RECORD, ("type", "index")),
    "jax.Array": (ClassKind.WRAPPER, ("data", "weak_type")),
    "jax.PRNGKeyArray": (ClassKind.WRAPPER, ("key_data", "impl")),
}


# Objects that are one value: paths and selections do not look inside.
_ATOMIC = frozenset(
    [
        "python.bytearray",
        "python.Path",
        "python.range",
        "python.slice",
        "numpy.StringArray",
        "numpy.dtype",
        "torch.Size",
        "torch.dtype",
        "torch.layout",
        "torch.memory_format",
        "torch.device",
    ]
)


def is_atomic(type_: ObjectType) -> bool:
    """Whether an object of this type is a leaf, rather than a container with paths inside."""
    return type_.class_kind is ClassKind.ENUM or type_.name in _ATOMIC


def check_registered(type_: ObjectType) -> None:
    """T-4: a registered name has the class kind and the fields of the registry."""
    class_kind, fields = REGISTERED.get(type_.name, (type_.class_kind, None))
    if type_.class_kind is not class_kind or (fields is not None and type_.fields != fields):
        raise CorruptionError(f"{type_.name} does not have the class kind and fields of the registry", rule="T-4")


def class_name(cls: type) -> str:
    """The name under which a class is stored: `module:qualified name`."""
    return f"{cls.__module__}:{cls.__qualname__}"


class Record:
    """An object whose class is not known here: the same fields, as attributes and by `record["name"]`, and no
    behaviour.
    """

    __slots__ = ("_type", "_values")
    _type: ObjectType
    _values: tuple[object, ...]

    def __init__(self, type: ObjectType, values: Sequence[object]) -> None:
        object.__setattr__(self, "_type", type)
        object.__setattr__(self, "_values", tuple(values))

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__") and name in self._type.fields:
            return self[name]
        raise AttributeError(
            f"the record of {self._type.name} has no field {name!r}; it has {', '.join(self._type.fields)}"
        )

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"records are read-only: cannot set {name!r}")

    def __getitem__(self, name: str) -> Any:
        if name not in self._type.fields:
            raise KeyError(name)
        return self._values[self._type.fields.index(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._type.fields)

    def __len__(self) -> int:
        return len(self._type.fields)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Record):
            return NotImplemented
        return bool(self._type == other._type and self._values == other._values)

    def __hash__(self) -> int:
        return hash((self._type, self._values))

    def __repr__(self) -> str:
        return _shown(self._type, self._values)

    def __reduce__(self) -> tuple[object, ...]:
        return Record, (self._type, self._values)


class NamedTupleRecord(tuple[Any, ...]):
    """A namedtuple whose class is not known here: a tuple of its values, with the same field names."""

    __slots__ = ()
    _type: ObjectType
    _fields: tuple[str, ...]

    def __new__(cls, *values: object) -> Self:
        """From the values of the fields, as a namedtuple is made."""
        if len(values) != len(cls._fields):
            raise TypeError(f"{cls._type.name} has {len(cls._fields)} fields, not {len(values)}")
        return super().__new__(cls, values)

    def _asdict(self) -> dict[str, object]:
        return dict(zip(self._fields, self, strict=True))

    def _replace(self, **changes: object) -> NamedTupleRecord:
        unknown = set(changes) - set(self._fields)
        if unknown:
            raise ValueError(f"{self._type.name} has no fields {sorted(unknown)}")
        return type(self)(*(changes.get(name, value) for name, value in zip(self._fields, self, strict=True)))

    def __repr__(self) -> str:
        return _shown(self._type, self)

    def __reduce__(self) -> tuple[object, ...]:
        return build_record, (self._type, tuple(self))


@lru_cache(maxsize=1024)
def _namedtuple_class(type_: ObjectType) -> type[NamedTupleRecord]:
    # One class per type, because tree libraries rebuild a namedtuple by calling its class with the values.
    # `collections.namedtuple` would compile source text made from the names.
    namespace: dict[str, object] = {"__slots__": (), "_type": type_, "_fields": type_.fields}
    for position, name in enumerate(type_.fields):
        if name.isidentifier() and not name.startswith("_"):
            namespace[name] = property(itemgetter(position))
    return type("NamedTupleRecord", (NamedTupleRecord,), namespace)


def build_record(type_: ObjectType, values: Sequence[object]) -> Record | NamedTupleRecord:
    """The inert stand-in for an object of `type_` with these values of its fields."""
    if type_.class_kind is ClassKind.NAMEDTUPLE:
        return _namedtuple_class(type_)(*values)
    return Record(type_, values)


def record_expansion(record: Record | NamedTupleRecord) -> Expansion:
    """A record stores exactly as what it stands for."""
    # Private to this module rather than to the classes: a public name could be that of a field.
    values = record._values if isinstance(record, Record) else tuple(record)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    type_ = record._type  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    return Expansion(type_, values, lambda new: build_record(type_, new))


def _shown(type_: ObjectType, values: Sequence[object]) -> str:
    fields = ", ".join(f"{name}={value!r}" for name, value in zip(type_.fields, values, strict=True))
    return f"<{type_.name}: {fields}>" if fields else f"<{type_.name}>"


def fields_of(record: Record | NamedTupleRecord) -> Mapping[str, object]:
    """The fields of a record by name."""
    return dict(zip(record_expansion(record).type.fields, record_expansion(record).children, strict=True))
