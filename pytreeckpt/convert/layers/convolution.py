"""Convolutions and transposed convolutions of 1, 2 and 3 axes.

torch and Equinox have the weight of a convolution as (out, in / groups, *axes), Flax as (*axes, in / groups, out).
torch has that of a transposed one as (in, out / groups, *axes). Flax has it as (*axes, out, in) with
`transpose_kernel=True`, and else, with the axes reversed, as (*axes, in, out); Equinox, reversed, as
(out, in / groups, *axes).
"""

from __future__ import annotations

from collections.abc import Sequence

from pytreeckpt.convert.layers.padding import (
    equinox_convolution_notes,
    flax_convolution_notes,
    flax_transposed_notes,
    same_groups,
)
from pytreeckpt.convert.layers.sides import check_kind, filled, flax_name, integer, moved
from pytreeckpt.convert.layers.variants import Move, Side, Variant
from pytreeckpt.convert.operations import Flip, Operation, Operations, Permute, Reshape
from pytreeckpt.geometry import Shape

_EQUINOX_CONV = ("Conv", "Conv1d", "Conv2d", "Conv3d")
_EQUINOX_TRANSPOSE = ("ConvTranspose", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")


def flax_convolution(torch: Side, other: Side) -> Sequence[Variant]:
    """`torch.nn.Conv1d`, `Conv2d`, `Conv3d`, of any groups."""
    check_kind(torch, other, "Conv")
    weight = torch.shapes.get("weight", ())
    if len(weight) < 3:
        return ()
    same_groups(torch, other.config, "feature_group_count")
    moves = (
        *moved(torch, "weight", "kernel", (Permute(_channels_last(len(weight))),)),
        *moved(torch, "bias", "bias"),
    )
    notes = flax_convolution_notes(torch, other, flax_name(other, "Conv"))
    fills = filled(torch, other, {"bias": ("bias", 0.0)})
    return (Variant("kernel (*axes, in, out)", moves, fills=fills, notes=notes),)


def _channels_last(rank: int) -> Shape:
    return (*range(2, rank), 1, 0)


def equinox_convolution(torch: Side, other: Side) -> Sequence[Variant]:
    """`torch.nn.Conv1d`, `Conv2d`, `Conv3d`: the bias is (out, 1, …)."""
    check_kind(torch, other, *_EQUINOX_CONV)
    weight = torch.shapes.get("weight", ())
    if len(weight) < 3:
        return ()
    same_groups(torch, other.config, "groups")
    moves = (*moved(torch, "weight", "weight"), *_equinox_bias(torch, len(weight)))
    fills = filled(torch, other, {"bias": ("bias", 0.0)})
    notes = equinox_convolution_notes(torch, other, f"equinox.nn.Conv{len(weight) - 2}d")
    return (Variant("as it is", moves, fills=fills, notes=notes),)


def _equinox_bias(torch: Side, rank: int) -> tuple[Move, ...]:
    bias = torch.shapes.get("bias", ())
    return moved(torch, "bias", "bias", (Reshape(bias, (*bias, *(1,) * (rank - 2))),))


def flax_transposed(torch: Side, other: Side) -> Sequence[Variant]:
    """`torch.nn.ConvTranspose1d`, `ConvTranspose2d`, `ConvTranspose3d`: two layouts, by `transpose_kernel`."""
    check_kind(torch, other, "ConvTranspose")
    weight = torch.shapes.get("weight", ())
    if len(weight) < 3:
        return ()
    if (_groups(torch, other) or 1) > 1:
        raise ValueError("Flax's ConvTranspose has no groups; write the groups as layers of their own, and give rules")
    rank = len(weight)
    reversed_: Operations = (Permute((*range(2, rank), 0, 1)), Flip(tuple(range(rank - 2))))
    layouts: dict[bool, Operations] = {False: reversed_, True: (Permute(_channels_last(rank)),)}
    names = {False: "kernel (*axes, in, out), axes reversed", True: "kernel (*axes, out, in), transpose_kernel=True"}
    known = other.config.get("transpose_kernel")
    layer = flax_name(other, "ConvTranspose")
    variants: list[Variant] = []
    for transposed, operations in layouts.items():
        if known is not None and bool(known) != transposed:
            continue
        notes = flax_transposed_notes(torch, other, layer)
        if known is None and transposed:
            notes = (*notes, f"transpose_kernel: give {layer}(transpose_kernel=True)")
        moves = (*moved(torch, "weight", "kernel", operations), *moved(torch, "bias", "bias"))
        fills = filled(torch, other, {"bias": ("bias", 0.0)})
        variants.append(Variant(names[transposed], moves, fills=fills, notes=notes))
    return variants


def _groups(torch: Side, other: Side) -> int | None:
    """How many groups a transposed convolution has; None if nobody knows."""
    groups = integer(torch.config, "groups")
    if groups is not None:
        return groups
    weight = torch.shapes["weight"]
    # The channels that come out are those of the bias, and one of the other's.
    outs = torch.shapes.get("bias") or other.shapes.get("bias")
    if outs is not None and weight[1] > 0:
        return outs[0] // weight[1]
    return None


def equinox_transposed(torch: Side, other: Side) -> Sequence[Variant]:
    """`torch.nn.ConvTranspose1d`, `ConvTranspose2d`, `ConvTranspose3d`: in each group, channels that go in and come out
    change places, and the axes are reversed.
    """
    check_kind(torch, other, *_EQUINOX_TRANSPOSE)
    weight = torch.shapes.get("weight", ())
    if len(weight) < 3:
        return ()
    same_groups(torch, other.config, "groups")
    groups = _groups(torch, other)
    if groups is None and "weight" in other.shapes and weight[1] > 0:
        groups = other.shapes["weight"][0] // weight[1]
    if groups is None:
        raise ValueError("its number of groups is not known: give a target, or a source with recorded layers")
    if groups < 1 or weight[0] % groups:
        raise ValueError(f"{groups} groups do not divide the {weight[0]} channels of {list(weight)}")
    moves = (
        *moved(torch, "weight", "weight", transposed_to_equinox(weight, groups)),
        *_equinox_bias(torch, len(weight)),
    )
    fills = filled(torch, other, {"bias": ("bias", 0.0)})
    notes = equinox_convolution_notes(torch, other, f"equinox.nn.ConvTranspose{len(weight) - 2}d")
    return (Variant("channels swapped in each group, axes reversed", moves, fills=fills, notes=notes),)


def transposed_to_equinox(weight: Shape, groups: int) -> Operations:
    """From (in, out / groups, *axes) to (out, in / groups, *axes), the axes reversed."""
    ins, outs, *axes = weight
    flip: Operation = Flip(tuple(range(2, len(weight))))
    if groups == 1:
        return (Permute((1, 0, *range(2, len(weight)))), flip)
    split = (groups, ins // groups, outs, *axes)
    return (
        Reshape(weight, split),
        Permute((0, 2, 1, *range(3, len(split)))),
        Reshape((groups, outs, ins // groups, *axes), (groups * outs, ins // groups, *axes)),
        flip,
    )
