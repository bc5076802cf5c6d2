"""The registered types in files of other formats: records of them, and what is left of them without types."""

from __future__ import annotations

from typing import Final

from pytreeckpt.objects import REGISTERED, ObjectType, Record

_TYPES: Final = {name: ObjectType(class_kind, name, fields or ()) for name, (class_kind, fields) in REGISTERED.items()}
_PREFIXES: Final = ("python.", "numpy.", "torch.", "jax.")
ARRAY_WRAPPERS: Final = frozenset(["torch.Tensor", "torch.nn.Parameter", "torch.nn.Buffer", "jax.Array"])
"""What wraps an array and adds nothing that a format of plain arrays could hold."""
MAPPINGS: Final = frozenset(["python.OrderedDict", "python.defaultdict", "python.Counter"])
"""Dicts of other classes."""
NAMESPACES: Final = frozenset(["python.Namespace", "python.SimpleNamespace"])
"""Objects that are their attributes, whatever these are."""


def registered(name: str, *values: object) -> Record:
    """A record of a registered type, with the values of its fields in order."""
    return Record(_TYPES[name], values)


def is_reserved(name: str) -> bool:
    """Whether only the registry gives such names to types, rather than who registers classes of their own."""
    return name.startswith(_PREFIXES)
