"""Transformations of optax from recipes, the plain data in which a conversion says how a training goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

_STEPS: Final = frozenset(
    [
        "add_decayed_weights",
        "scale",
        "scale_by_adadelta",
        "scale_by_adam",
        "scale_by_adamax",
        "scale_by_learning_rate",
        "scale_by_radam",
        "scale_by_rms",
        "scale_by_rss",
        "scale_by_stddev",
        "trace",
    ]
)


class HasSteps(Protocol):
    """A recipe, such as `pytreeckpt.convert` makes: functions of optax by name, with their keyword arguments."""

    @property
    def steps(self) -> Sequence[tuple[str, Mapping[str, Any]]]:
        """The steps of the chain."""
        ...


def transformation(recipe: HasSteps) -> Any:
    """The `optax.GradientTransformation` that a recipe writes: `optax.chain` of its steps.

    For several groups, `optax.multi_transform({"a": transformation(recipe_a), …}, labels)`. Raises `ValueError` for a
    step that no recipe has, and `ImportError` without optax.
    """
    import optax

    unknown = [name for name, _ in recipe.steps if name not in _STEPS]
    if unknown:
        raise ValueError(f"{', '.join(unknown)} is no step of a recipe; steps are {', '.join(sorted(_STEPS))}")
    return optax.chain(*(getattr(optax, name)(**settings) for name, settings in recipe.steps))
