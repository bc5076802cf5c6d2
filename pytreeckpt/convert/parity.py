"""Whether a conversion computes the same: level by level, from the bits of the way back to a step of the optimizer.

    report = plan.verify(torch_side, jax_side, tree, inputs)

What runs a model is given as functions of plain arrays: `Computes` of both sides. `pytreeckpt_torch.computes` and
`pytreeckpt_jax.computes` make them of a module; nothing here needs a framework.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from pytreeckpt.arrays import AnyArray
from pytreeckpt.convert.applying import convert_arrays
from pytreeckpt.convert.entries import Specs
from pytreeckpt.convert.leaves import FoundLeaf, array_of, leaves_of, plain_path, values_by_path
from pytreeckpt.convert.operations import Tie, of_moment
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
    loss, in a tree like `tree`, where no gradient means zeros; `step(tree, inputs)`: `tree` after a step of the
    optimizer. All arrays are numpy's; what is None is not checked.
    """

    outputs: Callable[[Any, Any], Any]
    gradients: Callable[[Any, Any], Any] | None = None
    step: Callable[[Any, Any], Any] | None = None


@dataclass(frozen=True, slots=True)
class LevelReport:
    """What one level came to. `difference`: the greatest of |a − b| / (1 + |b|) over all elements, NaN where only one
    side has NaN, or both have nothing else; `where`: of which leaf; `text`: for people.
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
        """Whether outputs were compared, and nothing differs, nor is NaN throughout."""
        has_outputs = any(level.level == "outputs" and level.outcome in {"equal", "close"} for level in self.levels)
        return has_outputs and not any(
            level.outcome == "different" or (level.difference is not None and math.isnan(level.difference))
            for level in self.levels
        )

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
        entries = [entry for entry in plan.entries if entry.sources and entry.targets]
        if level == "gradients":
            entries = _gradients(entries)
        found, wanted = values_by_path(ours(tree, inputs)), values_by_path(theirs(converted.tree, inputs))
        if level == "gradients":
            found, wanted = _with_zeros(plan.source, found, entries), _with_zeros(plan.target, wanted, ())
        levels.append(_compared_leaves(level, plan, entries, (found, wanted), limits[level]))
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


def _gradients(entries: Sequence[Entry]) -> list[Entry]:
    """Gradients change with parameters as first moments do."""
    return [
        replace(entry, operations=tuple(of_moment(operation, 1) for operation in entry.operations))
        for entry in entries
        if entry.quantity == "parameter"
    ]


def _with_zeros(specs: Specs, values: Mapping[Path, FoundLeaf], entries: Sequence[Entry]) -> dict[Path, FoundLeaf]:
    """Gradients with zeros where there is none, but for tied names, of which one may have that of all."""
    found = dict(values)
    for entry in entries:
        present = [path for path in entry.sources if plain_path(path) in values]
        if present and isinstance(next(iter(entry.operations), None), Tie):
            found |= {plain_path(path): values[plain_path(present[0])] for path in entry.sources if path not in present}
    for path, spec in specs.items():
        if plain_path(path) not in found:
            zeros: AnyArray = np.zeros(spec.shape, spec.dtype)
            found[plain_path(path)] = FoundLeaf(path, zeros, spec.shape, spec.dtype)
    return found


def _compared(level: Level, ours: Any, theirs: Any, limit: float) -> LevelReport:
    a = [array_of(leaf.value) for leaf in leaves_of(ours) if leaf.shape is not None]
    b = [array_of(leaf.value) for leaf in leaves_of(theirs) if leaf.shape is not None]
    if not a or [each.shape for each in a] != [each.shape for each in b]:
        shapes = " and ".join(", ".join(str(list(each.shape)) for each in side) or "nothing" for side in (a, b))
        return LevelReport(level, "different", None, "", f"the shapes differ: {shapes}")
    return _judged(level, {str(number): pair for number, pair in enumerate(zip(a, b, strict=True))}, limit)


def _compared_leaves(
    level: Level,
    plan: Plan,
    entries: Sequence[Entry],
    leaves: tuple[Mapping[Path, FoundLeaf], Mapping[Path, FoundLeaf]],
    limit: float,
) -> LevelReport:
    """Leaves like the source's, as the entries make them, and like the target's."""
    ours, theirs = leaves
    absent = [path for entry in entries for path in entry.sources if plain_path(path) not in ours]
    absent += [path for entry in entries for path in entry.targets if plain_path(path) not in theirs]
    if absent or not entries:
        text = f"{absent[0]} is not there" if absent else "the sides have no leaf in common"
        return LevelReport(level, "different", None, str(absent[0]) if absent else "", text)
    made, _ = convert_arrays(entries, ours, plan.source, plan.target, residuals={}, own={})
    pairs = {str(path): (array, array_of(theirs[plain_path(path)].value)) for path, array in made.items()}
    return _judged(level, pairs, limit)


def _judged(level: Level, pairs: Mapping[str, tuple[AnyArray, AnyArray]], limit: float) -> LevelReport:
    greatest, where, blank = 0.0, "", ""
    for name, (a, b) in pairs.items():
        if a.shape != b.shape:
            return LevelReport(level, "different", None, name, f"{name} has shapes {list(a.shape)} and {list(b.shape)}")
        difference = relative_difference(a, b)
        if math.isnan(difference):
            return LevelReport(level, "different", difference, name, f"{name} is NaN on one side only")
        if difference > greatest:
            greatest, where = difference, name
        if a.size and _is_blank(a) and _is_blank(b):
            blank = blank or name
    outcome: Outcome = "equal" if greatest == 0 else "close" if greatest <= limit else "different"
    if blank and outcome != "different":
        text = f"{blank} has nothing but NaN on both sides, which tells nothing"
        return LevelReport(level, "not checked", math.nan, blank, text)
    text = f"{greatest:.2g} at most, of {len(pairs)} arrays (limit {limit:g})"
    return LevelReport(level, outcome, greatest, where, text + (f", in {where}" if outcome == "different" else ""))


def _is_blank(array: AnyArray) -> bool:
    return array.dtype.kind not in "biu" and bool(np.isnan(array).all())


def relative_difference(a: AnyArray, b: AnyArray) -> float:
    """The greatest of |a − b| / (1 + |b|), in float64; NaN where only one is NaN; of integers |a − b|."""
    if not a.size:
        return 0.0
    x, y = (each.astype(np.complex128 if each.dtype.kind == "c" else np.float64) for each in (a, b))
    with np.errstate(all="ignore"):
        differences = np.abs(x - y) / (1 + np.abs(y))
        # Infinity is as far from all else as can be.
        differences = np.where(np.isinf(x) | np.isinf(y), np.inf, differences)
    if a.dtype.kind in "biu" and b.dtype.kind in "biu":
        # They are not rounded, and float64 does not hold all of them.
        same = a == b
        differences = np.maximum(np.abs(x - y), 1)
    else:
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        differences = np.where(np.isnan(x) != np.isnan(y), np.nan, differences)
    return float(np.max(np.where(same, 0.0, differences)))
