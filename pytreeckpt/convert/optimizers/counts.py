"""Leaves of optax that are of no parameter: counts of steps, what wrappers keep, hyperparameters.

Which they are is told by their names and those beside them. The sources are optax/_src/transform.py
(`ScaleByScheduleState`, `ApplyEvery`), optax/schedules/_inject.py (`InjectStatefulHyperparamsState`,
`WrappedScheduleState`), optax/transforms (`MultiStepsState`, `ApplyIfFiniteState`, `ConditionallyTransformState`,
`WeightDecaySchedule`), flax/training/train_state.py (`TrainState`) and flax/nnx/training/optimizer.py (`Optimizer`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from pytreeckpt.convert.optimizers.optax_states import step_text, texts_of
from pytreeckpt.convert.records import Leaf
from pytreeckpt.paths import DictKey, Index, Path

Use = Literal["count", "global count", "hyperparameter"]

WRAPPING: Final = frozenset(["opt_state", "inner_state", "inner_opt_state", "inner_states", "hyperparams_states"])
"""Fields that hold states."""


@dataclass(frozen=True, slots=True)
class Known:
    """What a leaf is: a use, or the value that it begins with and why."""

    use: Use | None
    value: float = 0.0
    reason: str = ""


_ACCUMULATING: Final = Known(None, reason="accumulated gradients begin anew: convert between two updates, not within")
_FINITE: Final = Known(None, reason="optax.apply_if_finite begins to count anew")
_BY_FIELD: Final[tuple[tuple[frozenset[str], Mapping[str, Known]], ...]] = (
    (
        frozenset(["mini_step", "gradient_step"]),
        {
            "mini_step": _ACCUMULATING,
            "gradient_step": Known("count"),
            "acc_grads": _ACCUMULATING,
            "skip_state": _ACCUMULATING,
        },
    ),
    (
        frozenset(["notfinite_count", "last_finite", "total_notfinite"]),
        {
            "notfinite_count": _FINITE,
            "total_notfinite": _FINITE,
            "last_finite": Known(None, value=1.0, reason=_FINITE.reason),
        },
    ),
    (frozenset(["count", "grad_acc"]), {"count": _ACCUMULATING, "grad_acc": _ACCUMULATING}),
    (frozenset(["count", "hyperparams"]), {"count": Known("count"), "hyperparams": Known("hyperparameter")}),
    (frozenset(["step", "inner_state"]), {"step": Known("count")}),
    (frozenset(["step", "opt_state"]), {"step": Known("global count")}),
    (frozenset(["step", "params"]), {"step": Known("global count")}),
)


def known_leaf(path: Path, leaf: Leaf, children: Mapping[Path, frozenset[str]]) -> Known | None:
    """What a leaf that is of no parameter is, or None for one that is no optimizer's. `path`: without variables."""
    texts = texts_of(path)
    for depth, text in enumerate(texts):
        beside = children[Path(path[:depth])]
        for fields, known in _BY_FIELD:
            if fields <= beside and text in known:
                found = known[text]
                # What is deeper may only be filled, or be one of the hyperparameters.
                if found.use is None or depth == len(path) - (2 if found.use == "hyperparameter" else 1):
                    return found
    beside = children[Path(path[:-1])] if path else frozenset[str]()
    if leaf.shape or leaf.dtype.kind not in "iu":
        return None
    if beside == frozenset(["count"]) and _is_in_chain(path, texts):
        return Known("count")
    # An nnx.Optimizer whose transformation has no state.
    return Known("global count") if beside == frozenset(["step"]) and len(path) > 1 else None


def _is_in_chain(path: Path, texts: tuple[str, ...]) -> bool:
    parent = path[-2] if len(path) > 1 else None
    positioned = isinstance(parent, Index) or (isinstance(parent, DictKey) and isinstance(parent.key, int))
    return positioned or not WRAPPING.isdisjoint(texts)


def root_of(path: Path) -> Path:
    """Where the optimizer is that a state at `path` is of: above tuples of chains, wrappers and labels."""
    depth = len(path)
    while depth > 0:
        step, text = path[depth - 1], step_text(path[depth - 1])
        is_label = depth > 1 and step_text(path[depth - 2]) in {"inner_states", "hyperparams_states"}
        is_position = isinstance(step, Index) or (isinstance(step, DictKey) and isinstance(step.key, int))
        if text == "opt_state":
            return Path(path[:depth])
        if not is_label and not is_position and text not in WRAPPING:
            break
        depth -= 1
    return Path(path[: depth or 1])
