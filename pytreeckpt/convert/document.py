"""Plans as plain data, and back: to be kept beside a checkpoint, read, and compared.

A document is dicts, lists, strings and numbers only, the same in JSON and in a checkpoint's metadata.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast, get_args

from pytreeckpt.convert.entries import Spec
from pytreeckpt.convert.operations import OPERATIONS, Fill, Operation, Recall
from pytreeckpt.convert.optimizers import recipe_document, recipe_from_document
from pytreeckpt.convert.plan import Plan
from pytreeckpt.convert.records import Convention, Entry, Quantity
from pytreeckpt.convert.shapes import result_shapes
from pytreeckpt.convert.values import dtype_named
from pytreeckpt.errors import FormatVersionError, LimitError, PathError, PytreeckptError
from pytreeckpt.limits import current_limits
from pytreeckpt.paths import Path

SCHEMA: Final = "pytreeckpt-plan/1"
_NAMES: Final = {cls: name for name, cls in OPERATIONS.items()}


class DocumentError(PytreeckptError, ValueError):
    """A document is no plan."""


def to_document(plan: Plan) -> dict[str, Any]:
    """A plan as plain data. The target's tree is not in it."""
    return {
        "schema": SCHEMA,
        "conventions": list(plan.conventions),
        "entries": [
            {
                "sources": list(map(str, entry.sources)),
                "targets": list(map(str, entry.targets)),
                "operations": list(map(_operation_document, entry.operations)),
                "quantity": entry.quantity,
                "reason": entry.reason,
            }
            for entry in plan.entries
        ],
        "source": _specs_document(plan.source),
        "target": _specs_document(plan.target),
        "notes": list(plan.notes),
        "unused": list(map(str, plan.unused)),
        "missing": list(map(str, plan.missing)),
        "recipes": list(map(recipe_document, plan.recipes)),
    }


def from_document(document: Any) -> Plan:
    """The plan that a document holds. Raises `DocumentError` for one that holds none, `FormatVersionError` for one of
    another version, and `LimitError` for one whose arrays are beyond the limits.
    """
    schema = document.get("schema") if isinstance(document, Mapping) else None
    if not isinstance(schema, str) or not schema.startswith("pytreeckpt-plan/"):
        raise DocumentError("this is no plan of pytreeckpt: it has no schema of one")
    if schema != SCHEMA:
        raise FormatVersionError(f"this plan is {schema}, and this pytreeckpt knows {SCHEMA}", rule="schema")
    try:
        plan = Plan(
            tuple(map(_entry, document["entries"])),
            _specs(document["source"]),
            _specs(document["target"]),
            (_convention(document["conventions"][0]), _convention(document["conventions"][1])),
            tuple(map(str, document["notes"])),
            tuple(map(Path.parse, document["unused"])),
            tuple(map(Path.parse, document["missing"])),
            tuple(map(recipe_from_document, document["recipes"])),
        )
        for entry in plan.entries:
            _check(entry, plan)
    except (AttributeError, LookupError, PathError, TypeError, ValueError) as error:
        raise DocumentError(f"this plan is damaged: {error!r}") from None
    n_bytes = sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in plan.target.values())
    if n_bytes > current_limits().arrays_nbytes:
        raise LimitError(f"this plan makes arrays of {n_bytes} bytes; raise pytreeckpt.limits(arrays_nbytes=…)")
    return plan


def _check(entry: Entry, plan: Plan) -> None:
    """Raise `LookupError` or `ValueError` for an entry that does not come from its sources to its targets."""
    before = [plan.source[path].shape for path in entry.sources]
    wanted = [plan.target[path].shape for path in entry.targets]
    recalled = [operation.count for operation in entry.operations if isinstance(operation, Recall)]
    if recalled:
        if len(entry.operations) > 1 or before or recalled != [len(wanted)]:
            raise ValueError(f"what is recalled for {', '.join(map(str, entry.targets))} comes from nowhere else")
    elif (made := result_shapes(entry.operations, before)) != wanted:
        raise ValueError(f"{', '.join(map(str, entry.sources))} come to {made}, and not to {wanted}")


def _operation_document(operation: Operation) -> dict[str, Any]:
    fields = {field.name: _plain(getattr(operation, field.name)) for field in dataclasses.fields(operation)}
    return {_NAMES[type(operation)]: fields}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return _operation_document(value) if isinstance(value, Fill) else value


def _operation(document: Mapping[str, Any]) -> Operation:
    ((name, given),) = document.items()
    cls: Any = OPERATIONS[name]
    types = {field.name: str(field.type) for field in dataclasses.fields(cls)}
    if sorted(given) != sorted(types):
        raise ValueError(f"{name} has {', '.join(types)}, not {', '.join(given)}")
    return cast("Operation", cls(**{key: _value(types[key], key, value) for key, value in given.items()}))


def _value(kind: str, key: str, value: Any) -> Any:
    """The value of a field, by the annotation that it has in `pytreeckpt.convert.operations`."""
    match kind, value:
        case "Shape", [*items]:
            return tuple(map(_integer, items))
        case "Widths", [*pairs]:
            return tuple((_integer(before), _integer(after)) for before, after in pairs)
        case "int", _:
            return _integer(value)
        case "float", int() | float() if not isinstance(value, bool):
            return float(value)
        case "str", str():
            return dtype_named(value).name
        case "Fill | None", None:
            return None
        case "Fill | None", {"fill": fill}:
            return _operation({"fill": fill})
    raise ValueError(f"{key} cannot be {value!r}")


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"{value!r} is no integer")
    return value


def _entry(document: Mapping[str, Any]) -> Entry:
    quantity = document["quantity"]
    if quantity not in get_args(Quantity):
        raise ValueError(f"{quantity!r} is no quantity")
    return Entry(
        tuple(map(Path.parse, document["sources"])),
        tuple(map(Path.parse, document["targets"])),
        tuple(map(_operation, document["operations"])),
        cast("Quantity", quantity),
        str(document["reason"]),
    )


def _convention(name: Any) -> Convention:
    if name not in get_args(Convention):
        raise ValueError(f"{name!r} is no convention")
    return cast("Convention", name)


def _specs_document(specs: Mapping[Path, Spec]) -> dict[str, Any]:
    return {str(path): [spec.dtype.name, list(spec.shape)] for path, spec in specs.items()}


def _specs(document: Mapping[str, Sequence[Any]]) -> dict[Path, Spec]:
    return {
        Path.parse(text): Spec(tuple(map(_integer, shape)), dtype_named(dtype))
        for text, (dtype, shape) in document.items()
    }


def differences(a: Plan, b: Plan) -> list[str]:
    """What differs between two plans, a line for each: `-` is only in the first, `+` only in the second."""
    first, second = set(_lines(a)), set(_lines(b))
    return [f"- {line}" for line in _lines(a) if line not in second] + [
        f"+ {line}" for line in _lines(b) if line not in first
    ]


def _lines(plan: Plan) -> list[str]:
    return [
        f"{', '.join(map(str, entry.sources))} → {', '.join(map(str, entry.targets))}: "
        f"{', '.join(str(_operation_document(operation)) for operation in entry.operations) or 'as it is'}"
        for entry in plan.entries
    ]
