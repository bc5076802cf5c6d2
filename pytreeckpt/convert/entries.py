"""Entries the other way round, and with the casts that the dtypes of both sides ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from pytreeckpt.convert.operations import Cast, Drop, Fill, Operation, inverse
from pytreeckpt.convert.records import Entry, Inventory
from pytreeckpt.convert.values import dtype_named, is_float
from pytreeckpt.dtypes import AnyDType
from pytreeckpt.geometry import Shape
from pytreeckpt.paths import Path


class Spec(NamedTuple):
    """The shape and dtype of a leaf."""

    shape: Shape
    dtype: AnyDType


Specs = Mapping[Path, Spec]


def specs_of(inventory: Inventory, *, dtype: str | None = None) -> dict[Path, Spec]:
    """The shapes and dtypes of all leaves of a side. `dtype`: what floating-point leaves of the model are to have."""
    wanted = None if dtype is None else dtype_named(dtype)
    specs = {leaf.path: Spec(leaf.shape, leaf.dtype) for leaf in inventory.rest.values()}
    for leaf in inventory.model.leaves.values():
        specs[leaf.path] = Spec(leaf.shape, wanted if wanted is not None and is_float(leaf.dtype) else leaf.dtype)
    return specs


def inverted(entry: Entry) -> Entry:
    """The entry that goes back."""
    return replace(entry, sources=entry.targets, targets=entry.sources, operations=inverse(entry.operations))


# The floats that hold all values of another: exponent and mantissa are at least as wide.
_WIDER: Final[Mapping[str, frozenset[str]]] = {
    "float16": frozenset(["float32", "float64"]),
    "bfloat16": frozenset(["float32", "float64"]),
    "float32": frozenset(["float64"]),
    "complex64": frozenset(["complex128"]),
    "bool": frozenset(),
    "int8": frozenset(["int16", "int32", "int64"]),
    "int16": frozenset(["int32", "int64"]),
    "int32": frozenset(["int64"]),
    "uint8": frozenset(["int16", "int32", "int64", "uint16", "uint32", "uint64"]),
    "uint16": frozenset(["int32", "int64", "uint32", "uint64"]),
    "uint32": frozenset(["int64", "uint64"]),
}


def holds_all(wider: AnyDType, narrower: AnyDType) -> bool:
    """Whether a dtype holds all values of another."""
    return wider == narrower or wider.name in _WIDER.get(narrower.name, ())


def with_cast(entry: Entry, sources: Specs, targets: Specs, *, cast: bool) -> tuple[Entry, str | None]:
    """The entry with a cast at its end if the dtypes differ, and why that is not allowed.

    Counts say themselves what they are cast to. With `cast`, values may be rounded. What is filled has the dtype that
    it is to have.
    """
    given = [sources[path].dtype for path in entry.sources]
    wanted = [targets[path].dtype for path in entry.targets]
    match entry.operations:
        case (Fill() as fill,) if len(wanted) == 1:
            return replace(entry, operations=(replace(fill, dtype=wanted[0].name),)), None
        case (Drop(_, Fill() as fill),) if len(given) == 1:
            return replace(entry, operations=(Drop(1, replace(fill, dtype=given[0].name)),)), None
    if not given or not wanted or any(isinstance(operation, Cast) for operation in entry.operations):
        return entry, None
    if len(set(given)) > 1 or len(set(wanted)) > 1:
        return entry, f"the dtypes of {_texts(entry.sources)} or of {_texts(entry.targets)} differ among themselves"
    before, after = given[0], wanted[0]
    if before == after:
        return entry, None
    if not holds_all(after, before) and not (cast and is_float(before) and is_float(after)):
        return entry, (
            f"{_texts(entry.sources)} is {before}, and {_texts(entry.targets)} {after}"
            + ("; cast=True rounds" if is_float(before) and is_float(after) else "")
        )
    operation: Operation = Cast(before.name, after.name)
    return replace(entry, operations=(*entry.operations, operation)), None


def _texts(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths))
