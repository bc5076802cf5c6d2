"""What planning works on: the leaves of two trees by name, their layers, and the entries of a plan."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pytreeckpt.convert.operations import Operations
from pytreeckpt.dtypes import AnyDType
from pytreeckpt.geometry import Shape
from pytreeckpt.paths import Path

Name = tuple[str, ...]
"""The name of a leaf or layer within its model, in steps: `("encoder", "0", "weight")`, whether its path is
`model/state/encoder.0.weight`, `.encoder[0]/.weight` or `params/encoder_0/kernel`.
"""

Convention = Literal["torch", "flax", "equinox"]
"""How the leaves of layers are named and laid out: `weight` (out, in); `kernel` (in, out); `weight`, JAX's layouts."""

Quantity = Literal["parameter", "buffer", "first moment", "second moment", "count", "option"]


@dataclass(frozen=True, slots=True)
class Leaf:
    """An array or number of a tree: where it is, and its name. `identity`: equal for tied leaves, None for others."""

    path: Path
    name: Name
    shape: Shape
    dtype: AnyDType
    identity: Hashable = None


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer as it was recorded: its class, the class of its framework that it is a kind of, and its configuration."""

    cls: str
    kind: str
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Model:
    """The parameters and buffers of a side. `buffers`: the names of those leaves that are no parameters; `layers`: what
    was recorded of them, by name. In linen, the collection (`params`, `batch_stats`) is no step of a name. `label`: the
    name of the object that it is, where there may be several.
    """

    convention: Convention
    leaves: Mapping[Name, Leaf]
    buffers: frozenset[Name] = frozenset()
    layers: Mapping[Name, Layer] = field(default_factory=dict)
    label: Name = ()


@dataclass(frozen=True, slots=True)
class Inventory:
    """One side of a conversion. `rest`: its leaves that are in no model, among them the states of optimizers, by their
    paths; `tree`: all of it, where a name of an optimizer's parameter or an option can be looked up.
    """

    model: Model
    rest: Mapping[Path, Leaf]
    tree: Any


@dataclass(frozen=True, slots=True)
class Entry:
    """Leaves of the source that become leaves of the target. No targets: they are dropped, and kept as residuals. No
    sources: the target is filled.

    `reason`: what decided it: the kind of a layer, a rule, the only layout that fits.
    """

    sources: tuple[Path, ...]
    targets: tuple[Path, ...]
    operations: Operations
    quantity: Quantity
    reason: str
