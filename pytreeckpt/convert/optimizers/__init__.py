"""States of optimizers, from torch's to optax's: moments, steps, options, and what to write in optax to go on."""

from pytreeckpt.convert.optimizers.draft import WAIVERS, OptimizerPlan
from pytreeckpt.convert.optimizers.extending import NewLeaf, extended
from pytreeckpt.convert.optimizers.planning import plan_optimizers
from pytreeckpt.convert.optimizers.recipe import (
    InverseTime,
    Recipe,
    recipe_document,
    recipe_from_document,
    recipe_of,
    torch_options,
)
from pytreeckpt.convert.optimizers.table import ROWS, Refusal, Row, Setting, Slot, State

__all__ = [
    "ROWS",
    "WAIVERS",
    "InverseTime",
    "NewLeaf",
    "OptimizerPlan",
    "Recipe",
    "Refusal",
    "Row",
    "Setting",
    "Slot",
    "State",
    "extended",
    "plan_optimizers",
    "recipe_document",
    "recipe_from_document",
    "recipe_of",
    "torch_options",
]
