"""How the parameters of one layer are laid out in two frameworks: what a table of layers is made of.

A table is keyed by the kind of a torch layer (`torch.nn.Linear`); its entry is a function of the layer on both sides
that gives the possible layouts on the other side. Which of them it is, shapes and recorded kinds decide; if they leave
more than one that would give different values, planning fails and lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytreeckpt.convert.operations import Operations
from pytreeckpt.geometry import Shape


@dataclass(frozen=True, slots=True)
class Side:
    """A layer as one side has it.

    `shapes`: of all leaves at and below it, by their names relative to it with `/`: `weight`, `out_proj/weight`,
    `query/kernel`. `kind` and `config`: its class (`torch.nn.Conv2d`, `flax.nnx.Conv`, `equinox.nn.Conv`) and its plain
    attributes, as recorded when it was saved; None and empty if nobody knows.
    """

    shapes: Mapping[str, Shape]
    kind: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Move:
    """Leaves of the torch layer to leaves of the other, by relative names, and what is done to them on the way."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    operations: Operations = ()


@dataclass(frozen=True, slots=True)
class Variant:
    """One layout: its name for people, the moves, and what has no place there.

    `drops`: leaves of the torch layer that the other framework does not have, with the reason; they are kept as
    residuals. `fills`: leaves of the other layer that torch's was made without, with the value that stands for that;
    `unread`: those of them that are no values of the model, but counts and the like, and may have any on the way back.
    `notes`: what the program has to see to for both layers to compute the same.
    """

    name: str
    moves: tuple[Move, ...]
    drops: Mapping[str, str] = field(default_factory=dict)
    fills: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    unread: frozenset[str] = frozenset()


Layout = Callable[[Side, Side], Sequence[Variant]]
"""The variants for a layer: given as torch has it and as the other framework does. The other's shapes are empty where a
target is only named, and not given; the first variant is then the framework's default.

A variant need not fit: planning checks its names and shapes. A layout gives none if the torch layer has not the leaves
that it needs (`weight_ih_l0`, for example).
"""

Table = Mapping[str, Layout]
"""Layouts by the kind or class of the torch layer."""
