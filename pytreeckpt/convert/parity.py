"""Whether a conversion computes the same: level by level, from the bits of the way back to a step of the optimizer.

    report = plan.verify(torch_side, jax_side, tree, inputs)

What runs a model is given as functions of plain arrays: `Computes` of both sides. `pytreeckpt_torch.computes` and
`pytreeckpt_jax.computes` make them of a module; nothing here needs a framework.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from pytreeckpt.arrays import AnyArray
from pytreeckpt.convert.applying import convert_arrays
from pytreeckpt.convert.leaves import array_of, leaves_of, plain_path, values_by_path
from pytreeckpt.convert.operations import of_moment
from pytreeckpt.convert.records import Entry
from pytreeckpt.convert.values import same_bits
from pytreeckpt.paths import Path

if TYPE_CHECKING:
    from pytreeckpt.convert.plan import Plan

Level = Literal["inverse", "outputs", "gradients", "step"]
Outcome = Literal["equal", "close", "different", "not checked"]


_Function = Callable[[Any, Any], Any] | None


@dataclass(frozen=True, slots=True)
class Computes:
    """What a side computes. `outputs(tree, inputs)`: a tree of arrays; `gradients(tree, inputs)`: the gradients of one
    loss, in a tree like `tree`, with nothing or zeros where there is none; `step(tree, inputs)`: `tree` after a step of
    the optimizer. All arrays are numpy's; what is None is not checked.
    """

    outputs: Callable[[Any, Any], Any]
    gradients: Callable[[Any, Any], Any] | None = None
    step: Callable[[Any, Any], Any] | None = None


@dataclass(frozen=True, slots=True)
class LevelReport:
    """What one level came to. `difference`: the greatest of |a − b| / (1 + |b|) over all elements; `where`: of which
    leaf; `text`: for people.
    """

    level: Level
    outcome: Outcome
    difference: float | None
    where: str
    text: str


@dataclass(frozen=True, slots=True)
class ParityReport:
    """All levels, in their order; `ok` if none differs and at least outputs were checked."""

    levels: tuple[LevelReport, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing differs."""
        return not any(level.outcome == "different" for level in self.levels)

    def __str__(self) -> str:
        return "\n".join(f"{level.level:<10} {level.outcome:<12} {level.text}" for level in self.levels)


_DEFAULT_TOLERANCES: Final[Mapping[Level, float]] = {"outputs": 1e-12, "gradients": 1e-11, "step": 1e-11}


def verify_plan(
    plan: Plan,
    source: Computes | Callable[[Any, Any], Any],
    target: Computes | Callable[[Any, Any], Any],
    tree: object,
    inputs: Any,
    *,
    tolerances: Mapping[Level, float] | None = None,
) -> ParityReport:
    """The levels of `plan.verify`."""
    limits = {**_DEFAULT_TOLERANCES, **(tolerances or {})}
    first = source if isinstance(source, Computes) else Computes(source)
    second = target if isinstance(target, Computes) else Computes(target)
    converted = plan.apply(tree, to="numpy")
    levels = [_inverse_level(plan, tree, converted.tree, converted.residuals)]
    levels.append(
        _compared("outputs", first.outputs(tree, inputs), second.outputs(converted.tree, inputs), limits["outputs"])
    )
    further: tuple[tuple[Level, _Function, _Function], ...] = (
        ("gradients", first.gradients, second.gradients),
        ("step", first.step, second.step),
    )
    for level, ours, theirs in further:
        if ours is None or theirs is None:
            levels.append(LevelReport(level, "not checked", None, "", "one of the sides does not say how"))
            continue
        entries = _gradient_entries(plan) if level == "gradients" else plan.entries
        expected = _mapped(plan, entries, ours(tree, inputs))
        levels.append(_compared_leaves(level, expected, theirs(converted.tree, inputs), limits[level]))
    return ParityReport(tuple(levels))


def _inverse_level(plan: Plan, tree: object, converted: Any, residuals: Mapping[str, AnyArray]) -> LevelReport:
    back = plan.invert().apply(converted, residuals=residuals, to="numpy")
    before, after = values_by_path(tree), values_by_path(back.tree)
    differing = []
    for path in plan.source:
        leaf = after.get(plain_path(path))
        if leaf is None or not same_bits(
            np.asarray(array_of(before[plain_path(path)].value)), np.asarray(array_of(leaf.value))
        ):
            differing.append(str(path))
    if differing:
        text = f"{len(differing)} leaves do not come back, the first {differing[0]}"
        return LevelReport("inverse", "different", None, differing[0], text)
    return LevelReport("inverse", "equal", 0.0, "", f"{len(plan.source)} leaves come back to the bit")


def _gradient_entries(plan: Plan) -> list[Entry]:
    """Gradients change with parameters as first moments do."""
    return [
        replace(entry, operations=tuple(of_moment(operation, 1) for operation in entry.operations))
        for entry in plan.entries
        if entry.quantity == "parameter" and entry.sources and entry.targets
    ]


def _mapped(plan: Plan, entries: Sequence[Entry], tree: object) -> dict[Path, AnyArray]:
    """The arrays of a tree like the source, as the entries make them."""
    values = values_by_path(tree)
    there = [entry for entry in entries if entry.sources and all(plain_path(path) in values for path in entry.sources)]
    arrays, _ = convert_arrays(there, values, plan.source, plan.target, residuals={}, own={})
    return arrays


def _compared(level: Level, ours: Any, theirs: Any, limit: float) -> LevelReport:
    a = [array_of(leaf.value) for leaf in leaves_of(ours) if leaf.shape is not None]
    b = [array_of(leaf.value) for leaf in leaves_of(theirs) if leaf.shape is not None]
    if not a or [each.shape for each in a] != [each.shape for each in b]:
        shapes = " and ".join(", ".join(str(list(each.shape)) for each in side) or "nothing" for side in (a, b))
        return LevelReport(level, "different", None, "", f"the shapes differ: {shapes}")
    return _judged(level, {str(number): pair for number, pair in enumerate(zip(a, b, strict=True))}, limit)


def _compared_leaves(level: Level, ours: Mapping[Path, AnyArray], theirs: object, limit: float) -> LevelReport:
    values = values_by_path(theirs)
    pairs = {
        str(path): (array, array_of(values[plain_path(path)].value))
        for path, array in ours.items()
        if plain_path(path) in values
    }
    if not pairs:
        return LevelReport(level, "different", None, "", "the sides have no leaf in common")
    return _judged(level, pairs, limit)


def _judged(level: Level, pairs: Mapping[str, tuple[AnyArray, AnyArray]], limit: float) -> LevelReport:
    greatest, where = 0.0, ""
    for name, (a, b) in pairs.items():
        if a.shape != b.shape:
            return LevelReport(level, "different", None, name, f"{name} has shapes {list(a.shape)} and {list(b.shape)}")
        difference = relative_difference(a, b)
        if not difference <= greatest:
            greatest, where = difference, name
    outcome: Outcome = "equal" if greatest == 0 else "close" if greatest <= limit else "different"
    text = f"{greatest:.2g} at most, of {len(pairs)} arrays (limit {limit:g})"
    return LevelReport(level, outcome, greatest, where, text + (f", in {where}" if outcome == "different" else ""))


def relative_difference(a: AnyArray, b: AnyArray) -> float:
    """The greatest of |a − b| / (1 + |b|), in float64; NaN where only one is NaN."""
    if not a.size:
        return 0.0
    x, y = (each.astype(np.complex128 if each.dtype.kind == "c" else np.float64) for each in (a, b))
    with np.errstate(all="ignore"):
        differences = np.abs(x - y) / (1 + np.abs(y))
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    return float(np.max(np.where(same, 0.0, differences)))
