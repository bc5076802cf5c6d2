"""What the states of a training have in common, whatever the framework: their layout as a tree, how objects are put
back into it, what that came to, and the states of Python's and numpy's generators.

`pytreeckpt_torch` and `pytreeckpt_jax` are made of this; so can others be.
"""

from pytreeckpt.training.capturing import capture_objects
from pytreeckpt.training.generators import GENERATOR_RANK, capture_globals, generator_roles, plan_globals
from pytreeckpt.training.layout import RNG, Header, check_names, header_of, leaves_for, wants_rng
from pytreeckpt.training.parts import Differences, Part, Role, copied, differing
from pytreeckpt.training.ranks import by_rank, of_rank
from pytreeckpt.training.restored import Restored
from pytreeckpt.training.restoring import naming, restore_objects
from pytreeckpt.training.stateful import class_name, stateful_role

__all__ = [
    "GENERATOR_RANK",
    "RNG",
    "Differences",
    "Header",
    "Part",
    "Restored",
    "Role",
    "by_rank",
    "capture_globals",
    "capture_objects",
    "check_names",
    "class_name",
    "copied",
    "differing",
    "generator_roles",
    "header_of",
    "leaves_for",
    "naming",
    "of_rank",
    "plan_globals",
    "restore_objects",
    "stateful_role",
    "wants_rng",
]
