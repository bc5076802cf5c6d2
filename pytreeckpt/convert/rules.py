"""Rules: what the user declares where names and layers alone do not say what becomes what.

They are written from torch's names to the other framework's, and serve both ways. Those of one kind are tried in the
order in which they stand; patterns and templates are described in `pytreeckpt.convert.names`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from pytreeckpt.convert.operations import (
    Affine,
    Concat,
    Crop,
    First,
    Flip,
    Operation,
    Operations,
    Pad,
    Permute,
    Repeat,
    Reshape,
    Split,
    Stack,
    SumPair,
    Tie,
    Unstack,
)
from pytreeckpt.convert.shapes import result_shapes
from pytreeckpt.errors import PytreeckptError
from pytreeckpt.geometry import Shape


class RuleError(PytreeckptError, ValueError):
    """A rule cannot be read, or does not go with the arrays that it is for."""


@dataclass(frozen=True, slots=True)
class Step:
    """An operation of a rule, by name, whose shapes are filled in when it meets an array: `Step("reshape", (4, -1))`,
    `Step("split", {"axis": 0, "parts": 3})`.
    """

    name: str
    argument: Any = None


@dataclass(frozen=True, slots=True)
class Rename:
    """Layers whose names begin with `source` are those that begin with `target`: `Rename("bert.encoder", "enc")`. All
    renames are applied, one after the other.
    """

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Kind:
    """Layers with these names are of this kind: `Kind("**.query", "Linear")`, with `torch.nn.` or without."""

    layers: str
    kind: str


@dataclass(frozen=True, slots=True)
class Choose:
    """Of the layouts that a layer may have, the one with this name, as an error lists them."""

    layers: str
    variant: str


@dataclass(frozen=True, slots=True)
class Convert:
    """Leaves to leaves, by their full names: `Convert("wte.weight", "wte/embedding")`. Several of either are a tuple;
    operations are records of `pytreeckpt.convert.operations`, or `Step`s.
    """

    sources: str | tuple[str, ...]
    targets: str | tuple[str, ...]
    operations: tuple[Operation | Step, ...] = ()


@dataclass(frozen=True, slots=True)
class Scan:
    """Layers that are alike, `source` with `{i}` in it, stacked to one along a new axis of each leaf: what `nn.scan`
    makes of them. `Scan("h.{i}", "h/block")`.
    """

    source: str
    target: str
    axis: int = 0


@dataclass(frozen=True, slots=True)
class Drop:
    """Leaves of torch that have no place on the other side; they are kept as residuals."""

    leaves: str
    reason: str = "a rule"


@dataclass(frozen=True, slots=True)
class Fill:
    """Leaves of the other side that torch has not: all of this value."""

    leaves: str
    value: float = 0.0


@dataclass(frozen=True, slots=True)
class Waive:
    """What may be left over: leaves of the source that go nowhere (`unused`), leaves of the target that nothing comes
    to (`missing`). `check`: what of an optimizer may differ: "amsgrad", "steps" or "groups"; or what is meant by a
    trace of RMSprop: "early-trace" or "late-trace", before or after the learning rate.
    """

    unused: str | None = None
    missing: str | None = None
    check: str | None = None


End = Literal["input", "output"]
"""What goes into a layer, or what comes out of it."""


@dataclass(frozen=True, slots=True)
class Flattened:
    """Linear layers that read a flattened image of this shape, channels first: `Flattened("head", (512, 7, 7))`; or,
    with `side="output"`, those whose features are made such an image. Without a shape: that they are not. What
    normalises these features, between the image and the layer, is meant too. Raises `RuleError` for what is no shape.
    """

    layers: str
    shape: Shape = ()
    side: End = "input"

    def __post_init__(self) -> None:
        if self.side not in {"input", "output"}:
            raise RuleError(f'the side of a linear layer is "input" or "output", not {self.side!r}')
        if any(extent < 1 for extent in self.shape):
            raise RuleError(f"{list(self.shape)} is no shape of an image: sizes are at least 1")


Rule = Rename | Kind | Choose | Convert | Scan | Drop | Fill | Waive | Flattened


_R = TypeVar("_R")


def of_type(rules: Sequence[Rule], cls: type[_R]) -> list[_R]:
    """The rules of one kind, in their order."""
    return [rule for rule in rules if isinstance(rule, cls)]


def as_names(names: str | tuple[str, ...]) -> tuple[str, ...]:
    """One name, or several."""
    return (names,) if isinstance(names, str) else names


def kind_name(kind: str) -> str:
    """A kind with its package."""
    return kind if "." in kind else f"torch.nn.{kind}"


# Operations of rules.


def resolve(steps: Sequence[Operation | Step], shapes: Sequence[Shape]) -> Operations:
    """The operations for arrays of these shapes. Raises `RuleError`."""
    found: list[Operation] = []
    at = list(shapes)
    for step in steps:
        try:
            operation = _resolved(step, at) if isinstance(step, Step) else step
            at = result_shapes((operation,), at)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            name = step.name if isinstance(step, Step) else type(step).__name__.lower()
            raise RuleError(
                f"{name} does not go with arrays of shapes {', '.join(map(str, map(list, at)))}: {error}"
            ) from None
        found.append(operation)
    return tuple(found)


def _resolved(step: Step, shapes: list[Shape]) -> Operation:
    given = step.argument
    make = _STEPS.get(step.name)
    if make is None:
        raise RuleError(f"there is no operation {step.name!r}; there is {', '.join(_STEPS)}")
    fields = _FIELDS.get(step.name, frozenset())
    if isinstance(given, Mapping) and not set(given) <= fields:
        raise ValueError(f"it has {', '.join(sorted(fields)) or 'no fields'}, and not {', '.join(map(str, given))}")
    if step.name in _BARE and given is not None and given != {}:
        raise ValueError(f"it is given nothing, and not {given!r}")
    return make(given, shapes)


def _reshaped(given: Any, shapes: list[Shape]) -> Reshape:
    before = shapes[0]
    known = 1
    for extent in given:
        known *= extent if extent != -1 else 1
    n_items = 1
    for extent in before:
        n_items *= extent
    return Reshape(before, tuple(extent if extent != -1 else n_items // max(known, 1) for extent in given))


def _split(given: Any, shapes: list[Shape]) -> Split:
    axis = int(given["axis"])
    if "sizes" in given:
        return Split(axis, tuple(map(int, given["sizes"])))
    parts = int(given["parts"])
    size, rest = divmod(shapes[0][axis], parts)
    if rest:
        raise ValueError(f"axis {axis} is not {parts} equal parts")
    return Split(axis, (size,) * parts)


def _axis(given: Any) -> int:
    return int(given["axis"]) if isinstance(given, Mapping) else int(given or 0)


def _padding(cls: Callable[..., Operation], given: Any) -> Operation:
    widths = given["widths"] if isinstance(given, Mapping) else given
    value = float(given.get("value", 0.0)) if isinstance(given, Mapping) else 0.0
    return cls(tuple((int(before), int(after)) for before, after in widths), value)


def _affine(given: Any) -> Affine:
    if not isinstance(given, Mapping) or not given:
        raise ValueError(f"it is given scale, offset or both, and not {given!r}")
    return Affine(float(given.get("scale", 1.0)), float(given.get("offset", 0.0)))


_STEPS: Final[Mapping[str, Callable[[Any, list[Shape]], Operation]]] = {
    "permute": lambda given, _shapes: Permute(tuple(map(int, given))),
    "transpose": lambda _given, shapes: Permute(tuple(reversed(range(len(shapes[0]))))),
    "reshape": _reshaped,
    "flip": lambda given, _shapes: Flip(tuple(map(int, given))),
    "split": _split,
    "concat": lambda given, shapes: Concat(_axis(given), tuple(shape[_axis(given)] for shape in shapes)),
    "stack": lambda given, shapes: Stack(_axis(given), len(shapes)),
    "unstack": lambda given, shapes: Unstack(_axis(given), shapes[0][_axis(given)]),
    "pad": lambda given, _shapes: _padding(Pad, given),
    "crop": lambda given, _shapes: _padding(Crop, given),
    "affine": lambda given, _shapes: _affine(given),
    "sum-pair": lambda _given, _shapes: SumPair(),
    "tie": lambda _given, shapes: Tie(len(shapes)),
    "first": lambda _given, shapes: First(len(shapes)),
    "repeat": lambda given, _shapes: Repeat(int(given)),
}
_FIELDS: Final[Mapping[str, frozenset[str]]] = {
    "split": frozenset(["axis", "sizes", "parts"]),
    "concat": frozenset(["axis"]),
    "stack": frozenset(["axis"]),
    "unstack": frozenset(["axis"]),
    "pad": frozenset(["widths", "value"]),
    "crop": frozenset(["widths", "value"]),
    "affine": frozenset(["scale", "offset"]),
}
"""What a step may be given by name."""
_BARE: Final = frozenset(["transpose", "sum-pair", "tie", "first"])


# Files.


def parse_rules(text: str) -> tuple[Rule, ...]:
    """The rules of a TOML document: tables `[[rename]]`, `[[kind]]`, `[[choose]]`, `[[convert]]`, `[[scan]]`,
    `[[drop]]`, `[[fill]]`, `[[flattened]]` and `[[waive]]`, with the fields of the classes, where `source` and `target`
    may be called `from` and `to`. Raises `RuleError` with all that is wrong.
    """
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise RuleError(f"the rules are no TOML: {error}") from None
    rules: list[Rule] = []
    problems: list[str] = []
    for name, tables in document.items():
        if name not in _RULES or not isinstance(tables, list):
            problems.append(f"there is no [[{name}]]; there is {', '.join(f'[[{each}]]' for each in _RULES)}")
            continue
        for number, table in enumerate(tables, 1):
            try:
                rules.append(_parse_rule(name, table))
            except (RuleError, TypeError, ValueError) as error:
                problems.append(f"[[{name}]] number {number}: {error}")
    if problems:
        raise RuleError("the rules cannot be used:\n  " + "\n  ".join(problems))
    return tuple(rules)


_RULES: Final[Mapping[str, tuple[type[Any], Mapping[str, type | tuple[type, ...]]]]] = {
    "rename": (Rename, {"source": str, "target": str}),
    "kind": (Kind, {"layers": str, "kind": str}),
    "choose": (Choose, {"layers": str, "variant": str}),
    "convert": (Convert, {"sources": (str, list), "targets": (str, list), "operations": list}),
    "scan": (Scan, {"source": str, "target": str, "axis": int}),
    "drop": (Drop, {"leaves": str, "reason": str}),
    "fill": (Fill, {"leaves": str, "value": (int, float)}),
    "flattened": (Flattened, {"layers": str, "shape": list, "side": str}),
    "waive": (Waive, {"unused": str, "missing": str, "check": str}),
}
_ALIASES: Final[Mapping[str, Mapping[str, str]]] = {
    "rename": {"from": "source", "to": "target"},
    "scan": {"from": "source", "to": "target"},
    "convert": {"from": "sources", "to": "targets"},
}


def _parse_rule(name: str, table: Any) -> Rule:
    cls, fields = _RULES[name]
    if not isinstance(table, dict):
        raise RuleError("it is no table")
    values: dict[str, Any] = {}
    for key, value in table.items():
        aliases = _ALIASES.get(name, {})
        field = aliases[key] if key in aliases else str(key)
        if field not in fields:
            raise RuleError(f"there is no field {key!r}; there is {', '.join(fields)}")
        if not isinstance(value, fields[field]) or isinstance(value, bool):
            raise RuleError(f"{key} cannot be {value!r}")
        values[field] = value
    if cls is Convert:
        values["operations"] = tuple(map(_parse_step, values.get("operations", ())))
        for side in ("sources", "targets"):
            if isinstance(values.get(side), list):
                values[side] = tuple(map(str, values[side]))
    if cls is Flattened:
        values["shape"] = tuple(map(int, values.get("shape", ())))
    rule: Rule = cls(**values)
    return rule


def _parse_step(given: Any) -> Step:
    name: str
    argument: Any = None
    match given:
        case str():
            name = given
        case dict() if len(given) == 1:
            ((name, argument),) = given.items()
        case _:
            raise RuleError(
                f"an operation is a name, or a table of one item such as {{permute = [1, 0]}}, not {given!r}"
            )
    if name not in _STEPS:
        raise RuleError(f"there is no operation {name!r}; there is {', '.join(_STEPS)}")
    return Step(name, argument)
