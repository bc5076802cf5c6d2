"""Layers in a wrapper that computes their weight: where the layer itself is, and what else the wrapper has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from pytreeckpt.convert.layers.sides import contradicts, scheme_of
from pytreeckpt.convert.layers.variants import Layout, Move, Side, Variant
from pytreeckpt.convert.operations import Flip, Operations, Permute
from pytreeckpt.convert.shapes import result_shapes
from pytreeckpt.geometry import Shape


@dataclass(frozen=True, slots=True)
class Wrapped:
    """Both sides of a layer that is wrapped: `prefix` is that of the layer within the other side."""

    torch: Side
    other: Side
    prefix: str


REMOVE: Final = (
    "take it off first: torch.nn.utils.parametrize.remove_parametrizations, remove_weight_norm or remove_spectral_norm"
)
"""What to do where a computed weight has no counterpart."""

# What the wrappers call the layer within them.
_WITHIN: Final = ("layer_instance/", "layer/")


def inside(
    layout: Layout, torch: Side, other: Side, weight: str, *, wrapper: str, equinox: bool
) -> tuple[Sequence[Variant], Wrapped]:
    """The variants of the layer itself, and where it is."""
    if contradicts(other, wrapper):
        raise ValueError(f"its weight is computed, and it is a {other.kind} there, without {wrapper}; {REMOVE}")
    prefix = _prefix(other) if other.shapes else _WITHIN[equinox]
    shapes = {name.removeprefix(prefix): shape for name, shape in other.shapes.items() if name.startswith(prefix)}
    scheme = {"scheme": name} if (name := scheme_of(other)) else {}
    plain = {"weight": torch.shapes[weight], **{name: torch.shapes[name] for name in ("bias",) if name in torch.shapes}}
    variants = layout(replace(torch, shapes=plain), Side(shapes, None, scheme))
    outside = [_outside(variant, weight, prefix) for variant in variants]
    return outside, Wrapped(torch, other, prefix)


def _prefix(other: Side) -> str:
    """Where the layer is within its wrapper."""
    found = {prefix for prefix in _WITHIN if any(name.startswith(prefix) for name in other.shapes)}
    if not found:
        # In linen, a layer made in the call of a parent is not within its wrapper, but beside it.
        found = {name.removesuffix("kernel") for name in other.shapes if name.endswith("/kernel")}
    if len(found) != 1:
        raise ValueError(f"its weight is computed, and there is no wrapper like that there; {REMOVE}")
    return found.pop()


def _outside(variant: Variant, weight: str, prefix: str) -> Variant:
    """A variant of the layer itself, with the names that it has here."""
    moves = tuple(
        Move(
            tuple(weight if name == "weight" else name for name in move.sources),
            tuple(f"{prefix}{name}" for name in move.targets),
            move.operations,
        )
        for move in variant.moves
    )
    return replace(
        variant,
        moves=moves,
        fills={f"{prefix}{name}": value for name, value in variant.fills.items()},
        unread=frozenset(f"{prefix}{name}" for name in variant.unread),
    )


def wrapper_leaf(wrapped: Wrapped, variant: Variant, ending: str, nnx: str, *, nothing: str) -> str:
    """The leaf of Flax's wrapper that belongs to the kernel: `layer_instance/kernel/u`, which is one key in linen, or
    `batch_stats/kernel/u` in nnx. Raises `ValueError` if there is none.
    """
    if not wrapped.other.shapes:
        raise ValueError("its weight is computed, which a scheme has no names for: give the target itself")
    names = [name for name in wrapped.other.shapes if name.endswith(f"kernel/{ending}") or name == nnx]
    if len(names) != 1:
        raise ValueError(f"its weight is computed, and {nothing} there ({variant.name}); {REMOVE}")
    return names[0]


def weight_move(variant: Variant, weight: str) -> Move:
    """The move of the weight itself."""
    return next(move for move in variant.moves if weight in move.sources)


def along(operations: Operations, shape: Shape) -> tuple[Operations, Shape]:
    """What the operations on a weight do to its norms, which have the same axes, of length 1 but for one; and the shape
    that these have then.
    """
    kept: Operations = tuple(each for each in operations if isinstance(each, Permute | Flip))
    if len(kept) < len(operations):
        raise ValueError(f"its weight is computed, and comes to other axes there; {REMOVE}")
    return kept, result_shapes(kept, [shape])[0]
