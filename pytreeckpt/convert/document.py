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
from pytreeckpt.convert.shapes import result_dtypes, result_shapes
from pytreeckpt.convert.values import dtype_named
from pytreeckpt.errors import FormatVersionError, LimitError, PathError, PytreeckptError
from pytreeckpt.geometry import Shape
from pytreeckpt.limits import current_limits
from pytreeckpt.paths import Path

SCHEMA: Final = "pytreeckpt-plan/1"
_FIELDS: Final = (
    *("schema", "conventions", "entries", "source", "target"),
    *("notes", "unused", "missing", "recipes"),
)
_ENTRY_FIELDS: Final = ("sources", "targets", "operations", "quantity", "reason")
_MOST_ITEMS: Final = (1 << 63) - 1
_MOST_AXES: Final = 64
"""As many as numpy has."""
_MOST_NAMES: Final = 1 << 20
# What is padded may be cropped again, but an array of another order is none that a plan has.
_SPARE_ITEMS: Final = 1 << 20
_MOST_TIMES: Final = 4
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
        given = _fields(document, _FIELDS)
        first, second = _items(given["conventions"])
        plan = Plan(
            tuple(map(_entry, _items(given["entries"]))),
            _specs(given["source"]),
            _specs(given["target"]),
            (_convention(first), _convention(second)),
            tuple(map(_text, _items(given["notes"]))),
            _paths(given["unused"]),
            _paths(given["missing"]),
            tuple(map(recipe_from_document, _items(given["recipes"]))),
        )
        _check(plan)
    except (ArithmeticError, AttributeError, LookupError, PathError, TypeError, ValueError) as error:
        raise DocumentError(f"this plan is damaged: {repr(error)[:500]}") from None
    for specs in (plan.source, plan.target):
        n_bytes = sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in specs.values())
        if n_bytes > current_limits().arrays_nbytes:
            raise LimitError(f"this plan is of arrays of {n_bytes} bytes; raise pytreeckpt.limits(arrays_nbytes=…)")
    return plan


def _check(plan: Plan) -> None:
    """Raise `LookupError` or `ValueError` for a plan whose entries do not come from all of its source to all of its
    target.
    """
    for specs, used in (
        (plan.source, {path for entry in plan.entries for path in entry.sources}),
        (plan.target, {path for entry in plan.entries for path in entry.targets}),
    ):
        if idle := specs.keys() - used:
            raise ValueError(f"no entry has {min(map(str, idle))}")
    # The way back of what was given away several times comes from several leaves, but not from the same one.
    seen: set[tuple[tuple[Path, ...], Path]] = set()
    n_names = 0
    for entry in plan.entries:
        if len(set(entry.targets)) < len(entry.targets) or any((entry.sources, path) in seen for path in entry.targets):
            raise ValueError(f"{', '.join(map(str, entry.targets))}: more than once")
        seen.update((entry.sources, path) for path in entry.targets)
        n_names += _checked_entry(entry, plan)
        if n_names > _MOST_NAMES:
            raise ValueError(f"its operations are of more than {_MOST_NAMES} arrays")


def _checked_entry(entry: Entry, plan: Plan) -> int:
    """Raise `LookupError` or `ValueError` for an entry that does not come from its sources to its targets. Returns how
    many arrays its operations are of.
    """
    sources, targets = [plan.source[path] for path in entry.sources], [plan.target[path] for path in entry.targets]
    names = ", ".join(map(str, entry.sources or entry.targets))
    recalled = [operation.count for operation in entry.operations if isinstance(operation, Recall)]
    if recalled:
        if len(entry.operations) > 1 or sources or recalled != [len(targets)]:
            raise ValueError(f"{names}: what is recalled comes from nowhere else")
        return len(targets)
    shapes, wanted = [spec.shape for spec in sources], [spec.shape for spec in targets]
    most = _SPARE_ITEMS + _MOST_TIMES * (_n_items(shapes) + _n_items(wanted))
    n_names = len(sources) + len(targets)
    for operation in entry.operations:
        shapes = result_shapes((operation,), shapes)
        n_names += len(shapes)
        if n_names > _MOST_NAMES or _n_items(shapes) > most:
            raise ValueError(f"{names}: {type(operation).__name__} makes far more than what it all comes from and to")
    if shapes != wanted:
        raise ValueError(f"{names} come to {shapes}, and not to {wanted}")
    dtypes, wanted_dtypes = [spec.dtype for spec in sources], [spec.dtype for spec in targets]
    if (made := result_dtypes(entry.operations, dtypes)) != wanted_dtypes:
        raise ValueError(f"{names} come to {made}, and not to {wanted_dtypes}")
    return n_names


def _n_items(shapes: Sequence[Shape]) -> int:
    return sum(map(math.prod, shapes))


def _operation_document(operation: Operation) -> dict[str, Any]:
    fields = {field.name: _plain(getattr(operation, field.name)) for field in dataclasses.fields(operation)}
    return {_NAMES[type(operation)]: fields}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return _operation_document(value) if isinstance(value, Fill) else value


def _operation(document: Any) -> Operation:
    ((name, given),) = document.items()
    cls: Any = OPERATIONS[name]
    types = {field.name: str(field.type) for field in dataclasses.fields(cls)}
    values = {key: _value(types[key], key, value) for key, value in _fields(given, tuple(types)).items()}
    return cast("Operation", cls(**values))


def _value(kind: str, key: str, value: Any) -> Any:
    """The value of a field, by the annotation that it has in `pytreeckpt.convert.operations`."""
    match kind, value:
        case "Shape", [*items]:
            return _shape(items)
        case "Orders", [*orders]:
            return tuple(tuple(map(_integer, axes)) for axes in orders)
        case "Widths", [*pairs]:
            return tuple((_integer(before), _integer(after)) for before, after in pairs)
        case "int", _:
            return _integer(value)
        case "float", int() | float() if not isinstance(value, bool):
            return float(value)
        case "bool", bool():
            return value
        case "str", str():
            return dtype_named(value).name
        case "Fill | None", None:
            return None
        case "Fill | None", {"fill": fill}:
            return _operation({"fill": fill})
    raise ValueError(f"{key} cannot be {value!r}")


def _integer(value: Any) -> int:
    if type(value) is not int or abs(value) > _MOST_ITEMS:
        raise ValueError(f"{str(value)[:40]} is no integer of 64 bits")
    return value


def _shape(value: Any) -> Shape:
    shape = tuple(map(_integer, _items(value)))
    if len(shape) > _MOST_NAMES:
        raise ValueError(f"{len(shape)} integers are too many")
    return shape


def _items(value: Any) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"{str(value)[:40]!r} is no list")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{str(value)[:40]} is no text")
    return value


def _paths(value: Any) -> tuple[Path, ...]:
    return tuple(Path.parse(_text(each)) for each in _items(value))


def _fields(document: Any, names: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(document, Mapping) or set(document) != set(names):
        raise ValueError(f"there should be {', '.join(names)} in {str(document)[:100]}")
    return document


def _entry(document: Any) -> Entry:
    given = _fields(document, _ENTRY_FIELDS)
    quantity = given["quantity"]
    if quantity not in get_args(Quantity):
        raise ValueError(f"{quantity!r} is no quantity")
    return Entry(
        _paths(given["sources"]),
        _paths(given["targets"]),
        tuple(map(_operation, _items(given["operations"]))),
        cast("Quantity", quantity),
        _text(given["reason"]),
    )


def _convention(name: Any) -> Convention:
    if name not in get_args(Convention):
        raise ValueError(f"{name!r} is no convention")
    return cast("Convention", name)


def _specs_document(specs: Mapping[Path, Spec]) -> dict[str, Any]:
    return {str(path): [spec.dtype.name, list(spec.shape)] for path, spec in specs.items()}


def _specs(document: Any) -> dict[Path, Spec]:
    found: dict[Path, Spec] = {}
    for text, given in document.items():
        dtype, shape = _items(given)
        spec = Spec(_shape(shape), dtype_named(_text(dtype)))
        if min(spec.shape, default=0) < 0 or len(spec.shape) > _MOST_AXES:
            raise ValueError(f"{text} cannot have shape {list(spec.shape)[:8]}")
        found[Path.parse(_text(text))] = spec
    if len(found) < len(document):
        raise ValueError("two texts are of one path")
    return found


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
