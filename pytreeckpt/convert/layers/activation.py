"""Activations with parameters."""

from __future__ import annotations

from collections.abc import Sequence

from pytreeckpt.convert.layers.sides import check_kind, moved, size_of
from pytreeckpt.convert.layers.variants import Side, Variant
from pytreeckpt.convert.operations import Reshape


def flax_prelu(torch: Side, other: Side) -> Sequence[Variant]:
    """`torch.nn.PReLU` with one slope for all channels: Flax has a number, without an axis."""
    check_kind(torch, other, "PReLU")
    slopes = torch.shapes.get("weight")
    if slopes is None:
        return ()
    if size_of(slopes) != 1:
        raise ValueError(f"Flax's PReLU has one slope, and this one {size_of(slopes)}: it needs a layer of your own")
    return (Variant("one slope", moved(torch, "weight", "negative_slope", (Reshape(slopes, ()),))),)


def equinox_prelu(torch: Side, other: Side) -> Sequence[Variant]:
    """`torch.nn.PReLU`: Equinox's slope has any shape that its input broadcasts with, a number if nothing is said."""
    check_kind(torch, other, "PReLU")
    slopes = torch.shapes.get("weight")
    if slopes is None:
        return ()
    count = size_of(slopes)
    there = other.shapes.get("negative_slope", () if count == 1 else slopes)
    notes = (
        (f"negative_slope: for channels first, shape it as ({count}, 1, …), one 1 for each axis behind",)
        if count > 1 and len(there) < 2
        else ()
    )
    operations = (Reshape(slopes, there),) if size_of(there) == count else ()
    return (Variant("the slopes", moved(torch, "weight", "negative_slope", operations), notes=notes),)
