"""Normalisations: torch's weight is Flax's scale, and Equinox has torch's names.

What the program has to see to is epsilon, whose defaults differ: 1e-5 in torch and Equinox, 1e-6 in Flax but for its
BatchNorm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pytreeckpt.convert.layers.sides import (
    Option,
    advice,
    check_kind,
    filled,
    flax_name,
    integer,
    moved,
    number,
    scheme_of,
    size_of,
)
from pytreeckpt.convert.layers.variants import Move, Side, Variant
from pytreeckpt.convert.operations import Operations, Permute, Reshape
from pytreeckpt.geometry import Shape

FLAX_NAMES: Final = {"weight": "scale", "bias": "bias"}
EQUINOX_NAMES: Final = {"weight": "weight", "bias": "bias"}
_NEUTRAL: Final = {"weight": 1.0, "bias": 0.0}


def affine_moves(
    torch: Side, other: Side, names: Mapping[str, str], *, channels_last: bool = False
) -> tuple[Move, ...]:
    """Weight and bias; on one axis, if they are so there. `channels_last`: with torch's first axis as the last one."""
    moves: list[Move] = []
    for source, target in names.items():
        shape: Shape = torch.shapes.get(source, ())
        operations: Operations = ()
        if channels_last and len(shape) > 1:
            operations = (Permute((*range(1, len(shape)), 0)),)
            shape = (*shape[1:], shape[0])
        there = _there(other, target, shape)
        # Only what leaves all items in their order: other shapes do not say what has become of the axes.
        if there != shape and size_of(there) == size_of(shape) and (len(there) == 1 or _squeezed(there) == shape):
            operations = (*operations, Reshape(shape, there))
        moves += moved(torch, source, target, operations)
    return tuple(moves)


def _there(other: Side, target: str, shape: Shape) -> Shape:
    """The shape of a leaf of the other layer. If that is only named, it is torch's, but that nnx has one axis."""
    if not other.shapes and scheme_of(other) == "nnx":
        return (size_of(shape),)
    return other.shapes.get(target, shape)


def _squeezed(shape: Shape) -> Shape:
    return tuple(extent for extent in shape if extent != 1)


def _affine_layouts(torch: Side, other: Side, names: Mapping[str, str], name: str) -> dict[str, tuple[Move, ...]]:
    """For a layer over several axes, which may be an image with its channels first: as they are, or channels last."""
    layouts = {name: affine_moves(torch, other, names)}
    shape = next((torch.shapes[source] for source in names if source in torch.shapes), ())
    there = next((_there(other, target, shape) for source, target in names.items() if source in torch.shapes), ())
    # Two axes are mostly those of a sequence, which is no image; if they are equal, nothing would tell.
    if len(shape) > 2 or (len(shape) == 2 and there == shape[::-1] != shape):
        layouts[f"{name}, channels last"] = affine_moves(torch, other, names, channels_last=True)
    return layouts


def affine_fills(torch: Side, other: Side, names: Mapping[str, str]) -> dict[str, float]:
    """What stands for a weight or bias that only the other layer has: it changes nothing."""
    return filled(torch, other, {source: (target, _NEUTRAL[source]) for source, target in names.items()})


def epsilon_notes(torch: Side, other: Side, layer: str, name: str, default: float) -> tuple[str, ...]:
    """What the other layer's epsilon, which is called so and has this default, has to be."""
    if torch.kind == "torch.nn.RMSNorm" and "eps" in torch.config and torch.config["eps"] is None:
        wanted = "1.1920928955078125e-07 in float32, 2.220446049250313e-16 in float64, 0.0078125 in bfloat16"
        return (f"{name}: torch takes the eps of the input's dtype: give {layer}({name}=…) {wanted}",)
    eps = number(torch.config, "eps")
    return () if eps is None else advice(other, layer, Option(name, eps, default))


def flax_layer_norm(torch: Side, other: Side) -> Sequence[Variant]:
    """`torch.nn.LayerNorm`, with or without weight and bias; several axes as they are or with the first one last, and
    as one in nnx.
    """
    check_kind(torch, other, "LayerNorm")
    layer = flax_name(other, "LayerNorm")
    notes = (*epsilon_notes(torch, other, layer, "epsilon", 1e-6), *_flax_axes(torch, other, layer))
    fills = affine_fills(torch, other, FLAX_NAMES)
    layouts = _affine_layouts(torch, other, FLAX_NAMES, "scale and bias")
    return [each for name, moves in layouts.items() for each in _variant(name, moves, fills, notes)]


def _variant(
    name: str, moves: tuple[Move, ...], fills: dict[str, float], notes: tuple[str, ...] = ()
) -> Sequence[Variant]:
    return (Variant(name, moves, fills=fills, notes=notes),) if moves or fills else ()


def _flax_axes(torch: Side, other: Side, layer: str) -> tuple[str, ...]:
    rank = max((len(torch.shapes.get(name, ())) for name in FLAX_NAMES), default=0)
    if rank < 2:
        return ()
    axes = tuple(range(-rank, 0))
    return advice(other, layer, Option("reduction_axes", axes, -1), Option("feature_axes", axes, -1))


def equinox_layer_norm(torch: Side, other: Side) -> Sequence[Variant]:
    """`torch.nn.LayerNorm`: as it is. Equinox's normalises over all of its input: vmap it over the other axes."""
    check_kind(torch, other, "LayerNorm")
    notes = epsilon_notes(torch, other, "equinox.nn.LayerNorm", "eps", 1e-5)
    return _variant(
        "as it is", affine_moves(torch, other, EQUINOX_NAMES), affine_fills(torch, other, EQUINOX_NAMES), notes
    )


def flax_rms_norm(torch: Side, other: Side) -> Sequence[Variant]:
    """`torch.nn.RMSNorm`."""
    check_kind(torch, other, "RMSNorm")
    names = {"weight": "scale"}
    layer = flax_name(other, "RMSNorm")
    notes = (*epsilon_notes(torch, other, layer, "epsilon", 1e-6), *_flax_axes(torch, other, layer))
    fills = affine_fills(torch, other, names)
    layouts = _affine_layouts(torch, other, names, "scale")
    return [each for name, moves in layouts.items() for each in _variant(name, moves, fills, notes)]


def equinox_rms_norm(torch: Side, other: Side) -> Sequence[Variant]:
    """`torch.nn.RMSNorm`: Equinox's has a bias unless told otherwise, which is 0 then."""
    check_kind(torch, other, "RMSNorm")
    layer = "equinox.nn.RMSNorm"
    notes = epsilon_notes(torch, other, layer, "eps", 1e-5)
    if "bias" in other.shapes or not other.shapes:
        notes = (*notes, f"use_bias: torch has none; give {layer}(use_bias=False), or keep a bias of 0")
    return _variant(
        "as it is", affine_moves(torch, other, EQUINOX_NAMES), affine_fills(torch, other, EQUINOX_NAMES), notes
    )


def flax_group_norm(torch: Side, other: Side) -> Sequence[Variant]:
    """`torch.nn.GroupNorm`."""
    check_kind(torch, other, "GroupNorm")
    layer = flax_name(other, "GroupNorm")
    groups, channels = integer(torch.config, "num_groups"), integer(torch.config, "num_channels")
    notes = _flax_groups(other, layer, groups, channels)
    notes = (*epsilon_notes(torch, other, layer, "epsilon", 1e-6), *notes)
    return _variant(
        "scale and bias", affine_moves(torch, other, FLAX_NAMES), affine_fills(torch, other, FLAX_NAMES), notes
    )


def _flax_groups(other: Side, layer: str, groups: int | None, channels: int | None) -> tuple[str, ...]:
    """`num_groups` is the default, 32; `group_size` may be given instead."""
    size = integer(other.config, "group_size")
    if groups is None or (size is not None and channels is not None and size * groups == channels):
        return ()
    return advice(other, layer, Option("num_groups", groups, 32))


def equinox_group_norm(torch: Side, other: Side) -> Sequence[Variant]:
    """`torch.nn.GroupNorm`: as it is."""
    check_kind(torch, other, "GroupNorm")
    layer = "equinox.nn.GroupNorm"
    groups = integer(torch.config, "num_groups")
    notes = () if groups is None else advice(other, layer, Option("groups", groups))
    notes = (*epsilon_notes(torch, other, layer, "eps", 1e-5), *notes)
    return _variant(
        "as it is", affine_moves(torch, other, EQUINOX_NAMES), affine_fills(torch, other, EQUINOX_NAMES), notes
    )


def flax_instance_norm(torch: Side, other: Side) -> Sequence[Variant]:
    """`torch.nn.InstanceNorm1d`, `InstanceNorm2d`, `InstanceNorm3d`, to `InstanceNorm`, or to `GroupNorm` with a group
    for each channel.
    """
    check_kind(torch, other, "InstanceNorm", "GroupNorm")
    _refuse_tracking(torch)
    channels = integer(torch.config, "num_features")
    if (other.kind or "").endswith("GroupNorm"):
        layer = flax_name(other, "GroupNorm")
        notes = _flax_groups(other, layer, channels, channels)
    else:
        layer, notes = flax_name(other, "InstanceNorm"), ()
    notes = (*epsilon_notes(torch, other, layer, "epsilon", 1e-6), *notes)
    return _variant(
        "scale and bias", affine_moves(torch, other, FLAX_NAMES), affine_fills(torch, other, FLAX_NAMES), notes
    )


def equinox_instance_norm(torch: Side, other: Side) -> Sequence[Variant]:
    """`torch.nn.InstanceNorm1d`, `InstanceNorm2d`, `InstanceNorm3d`, to `GroupNorm` with a group for each channel."""
    check_kind(torch, other, "GroupNorm")
    _refuse_tracking(torch)
    layer = "equinox.nn.GroupNorm"
    channels = integer(torch.config, "num_features")
    notes = () if channels is None else advice(other, layer, Option("groups", channels))
    notes = (*epsilon_notes(torch, other, layer, "eps", 1e-5), *notes)
    return _variant(
        "as it is", affine_moves(torch, other, EQUINOX_NAMES), affine_fills(torch, other, EQUINOX_NAMES), notes
    )


def _refuse_tracking(torch: Side) -> None:
    if "running_mean" in torch.shapes:
        raise ValueError(
            "it keeps running statistics (track_running_stats=True) and uses them in evaluation, which instance "
            "normalisation in JAX does not; waive it, or write it with BatchNorm's statistics yourself"
        )
