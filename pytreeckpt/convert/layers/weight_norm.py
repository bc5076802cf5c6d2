"""Weight normalisation: a weight v with the norm g; in torch `weight_g`, `weight_v` or `original0`, `original1`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from pytreeckpt.convert.layers.sides import size_of
from pytreeckpt.convert.layers.variants import Move, Variant
from pytreeckpt.convert.layers.wrappers import REMOVE, Wrapped, along, weight_move, wrapper_leaf
from pytreeckpt.convert.operations import Operations, Reshape
from pytreeckpt.geometry import Shape

_NNX_SCALE: Final = "scales/kernel"
_EPSILON: Final = "epsilon: Flax adds one to the squares of a norm, torch does not; give WeightNorm(epsilon=0.0)"
_OVERWRITTEN: Final = (
    "overwritten: nnx.WeightNorm writes the normalised weight over the one that it is made from: training goes another "
    "way than in torch, a way back does not give v, and with a negative scale outputs differ from the second call on"
)


def flax_weight_norm(wrapped: Wrapped, variant: Variant, names: Sequence[str]) -> Variant:
    """Flax's `WeightNorm`: a scale for each item of one axis of the kernel, the last one unless told otherwise."""
    magnitude, direction = names
    shape = wrapped.torch.shapes[magnitude]
    scale = wrapper_leaf(wrapped, variant, "scale", _NNX_SCALE, nothing="there is no WeightNorm with a scale")
    notes = [_EPSILON]
    target: Shape
    if shape:
        _, there = along(weight_move(variant, direction).operations, shape)
        axes = [axis for axis, extent in enumerate(there) if extent != 1] or [len(there) - 1]
        if axes != [len(there) - 1]:
            notes.append(f"feature_axes: give WeightNorm(feature_axes={axes[0]})")
        target = (size_of(shape),)
    else:
        notes.append("feature_axes: give WeightNorm(feature_axes=None), for one norm of the whole weight")
        target = ()
    if scale == _NNX_SCALE:
        notes.append(_OVERWRITTEN)
    operations: Operations = (Reshape(shape, target),) if shape != target else ()
    move = Move((magnitude,), (scale,), operations)
    return replace(
        variant, name=f"WeightNorm: {variant.name}", moves=(*variant.moves, move), notes=(*variant.notes, *notes)
    )


def equinox_weight_norm(wrapped: Wrapped, variant: Variant, names: Sequence[str]) -> Variant:
    """Equinox's `WeightNorm`: `g`, which has the axes of the weight, all of length 1 but one or none."""
    magnitude, direction = names
    shape = wrapped.torch.shapes[magnitude]
    weight = wrapped.torch.shapes[direction]
    move = weight_move(variant, direction)
    if wrapped.other.shapes and "g" not in wrapped.other.shapes:
        raise ValueError(f"its weight is computed, and there is no equinox.nn.WeightNorm there; {REMOVE}")
    operations: Operations
    if not shape:
        operations, axis = (Reshape((), (1,) * len(weight)),), None
    else:
        operations, there = along(move.operations, shape)
        axis = next((place for place, extent in enumerate(there) if extent != 1), 0)
    notes = () if axis == 0 else (f"axis: give equinox.nn.WeightNorm(axis={axis})",)
    return replace(
        variant,
        name=f"WeightNorm: {variant.name}",
        moves=(*variant.moves, Move((magnitude,), ("g",), operations)),
        notes=(*variant.notes, *notes),
    )
