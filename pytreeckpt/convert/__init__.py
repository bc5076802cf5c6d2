"""Checkpoints of one framework for another: parameters, buffers and the states of optimizers.

    from pytreeckpt import convert

    checkpoint = pytreeckpt.open("torch.ptck")
    plan = convert.plan(checkpoint, jax.eval_shape(model.init, key, inputs))
    print(plan.report())
    variables, residuals = plan.apply(checkpoint)

Nothing is guessed: what names, recorded layers, rules and shapes do not decide is an error that lists what it may be.
No framework is needed, unless the trees hold its objects.
"""

from pytreeckpt.convert.applying import Converted
from pytreeckpt.convert.document import DocumentError, differences, from_document, to_document
from pytreeckpt.convert.inventory import inventory_of
from pytreeckpt.convert.layers import flattened_linear
from pytreeckpt.convert.optimizers import ROWS, Recipe, Row, Slot, State, recipe_of, torch_options
from pytreeckpt.convert.parity import Computes, LevelReport, ParityReport
from pytreeckpt.convert.plan import Plan
from pytreeckpt.convert.planning import draft, plan
from pytreeckpt.convert.presets import TRANSFORMERS_FLAX
from pytreeckpt.convert.records import Entry
from pytreeckpt.convert.report import Report
from pytreeckpt.convert.rules import (
    Choose,
    Convert,
    Drop,
    Fill,
    Flattened,
    Kind,
    Rename,
    Rule,
    RuleError,
    Scan,
    Step,
    Waive,
    parse_rules,
)

__all__ = [
    "ROWS",
    "TRANSFORMERS_FLAX",
    "Choose",
    "Computes",
    "Convert",
    "Converted",
    "DocumentError",
    "Drop",
    "Entry",
    "Fill",
    "Flattened",
    "Kind",
    "LevelReport",
    "ParityReport",
    "Plan",
    "Recipe",
    "Rename",
    "Report",
    "Row",
    "Rule",
    "RuleError",
    "Scan",
    "Slot",
    "State",
    "Step",
    "Waive",
    "differences",
    "draft",
    "flattened_linear",
    "from_document",
    "inventory_of",
    "parse_rules",
    "plan",
    "recipe_of",
    "to_document",
    "torch_options",
]
