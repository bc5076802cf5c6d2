"""The plan of optimizers, and the draft of it that planning fills."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from pytreeckpt.convert.leaves import FoundLeaf
from pytreeckpt.convert.optimizers.extending import NewLeaf
from pytreeckpt.convert.optimizers.optax_states import OptaxState
from pytreeckpt.convert.optimizers.recipe import Recipe
from pytreeckpt.convert.optimizers.table import Row
from pytreeckpt.convert.optimizers.torch_states import Optimizer, Parameter
from pytreeckpt.convert.records import Entry, Inventory, Leaf, Name
from pytreeckpt.geometry import Shape
from pytreeckpt.paths import DictKey, Path

EARLY_TRACE: Final = "early-trace"
LATE_TRACE: Final = "late-trace"
WAIVERS: Final = ("amsgrad", "steps", "groups", EARLY_TRACE, LATE_TRACE)
"""What may be waived: that AMSGrad is not the same in optax; that the steps of parameters differ, of which the first is
taken; that parameters with different options are in one state of optax; that nothing tells whether a trace of RMSprop
comes before the learning rate, or after it.
"""

_STEP_DTYPE: Final = np.dtype(np.float32)


@dataclass(frozen=True, slots=True)
class OptimizerPlan:
    """What becomes of the optimizers.

    `entries`: moments say nothing of dtypes, and are cast as parameters are; counts and options are cast here. Several
    counts may have the same sources: on the way back, the last entry that has a source gives it. `notes`: what is worth
    knowing; `unused`: leaves of torch's optimizers that go nowhere; `missing`: leaves of optax's that nothing comes to;
    `problems`: what has to be decided first. `recipes`: what to write in optax, for each group of parameters. `new`:
    leaves of torch's states that entries have, and the tree has not yet (see `extended`). `sources` and `targets`:
    where the optimizers are; their other leaves, options and names, are no arrays to convert.
    """

    entries: tuple[Entry, ...] = ()
    notes: tuple[str, ...] = ()
    unused: tuple[Path, ...] = ()
    missing: tuple[Path, ...] = ()
    problems: tuple[str, ...] = ()
    recipes: tuple[Recipe, ...] = ()
    new: tuple[NewLeaf, ...] = ()
    sources: tuple[Path, ...] = ()
    targets: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Member:
    """A parameter with its optimizer, and what is known of such."""

    optimizer: Optimizer
    row: Row
    parameter: Parameter

    @property
    def text(self) -> str:
        """For people."""
        return f"{self.optimizer.path or 'the optimizer'}: {self.parameter.name}"


@dataclass(slots=True)
class Draft:
    """What has been planned so far."""

    source: Inventory
    target: Inventory
    waive: Collection[str]
    stepped: bool
    entries: list[Entry] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)
    problems: dict[str, list[str]] = field(default_factory=dict)
    new: dict[Path, NewLeaf] = field(default_factory=dict)
    parameters: Mapping[Path, Leaf] = field(default_factory=dict)
    """The leaves of the source's model."""
    target_names: Mapping[Path, Name] = field(default_factory=dict)
    """The names of the leaves of the target's model."""
    optimised: frozenset[Path] = frozenset()
    """The paths of all parameters that optimizers have, by all their names."""
    has_states: bool = False
    """Whether the target has states of optax."""
    target_values: Mapping[Path, FoundLeaf] = field(default_factory=dict)
    """On the way back, all leaves of the target."""
    used: set[Path] = field(default_factory=set)
    reached: set[Path] = field(default_factory=set)
    counts: dict[Path, Path] = field(default_factory=dict)
    """By the first step of some parameters, the count that they went to."""
    members: dict[Path, dict[Path, Member]] = field(default_factory=dict)
    """By the path of a state of optax, the parameters whose states went there, by those of their states in torch."""

    def add(self, entry: Entry | str) -> None:
        """An entry, or what keeps it from being one."""
        if isinstance(entry, str):
            self.problem(entry)
            return
        self.entries.append(entry)
        self.used.update(entry.sources)
        self.reached.update(entry.targets)

    def note(self, text: str, *where: str) -> None:
        """A note, and what it is of, if it is of several things alike."""
        self.notes.setdefault(text, []).extend(where)

    def problem(self, text: str, *where: str) -> None:
        """A problem, and what it is of."""
        self.problems.setdefault(text, []).extend(where)

    def cover(self, state: OptaxState, member: Member) -> None:
        """Remember that what torch knows of a parameter went into a state."""
        self.members.setdefault(state.path, {})[member.parameter.state] = member

    def slot(self, member: Member, key: str, shape: Shape | None) -> Leaf | None:
        """What torch keeps of a parameter under `key`, or would if it had made a step; `shape`: None for that of the
        parameter, in whose dtype it is then.
        """
        found = member.parameter.slots.get(key)
        if found is not None or not self.stepped or member.parameter.path is None:
            return found
        path = Path((*member.parameter.state, DictKey(key)))
        like = self.parameters[member.parameter.path]
        new = (like.shape, like.dtype) if shape is None else (shape, _STEP_DTYPE)
        self.new.setdefault(path, NewLeaf(path, new[0], new[1], like.path))
        return Leaf(path, (*like.name, key), new[0], new[1])


def listed(found: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Texts, each with the first of what it is of, and how many more there are."""
    return tuple(f"{_summary(where)}: {text}" if where else text for text, where in found.items())


def _summary(where: Sequence[str]) -> str:
    every = list(dict.fromkeys(where))
    return every[0] if len(every) == 1 else f"{every[0]} and {len(every) - 1} more"
