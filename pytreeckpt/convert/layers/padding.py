"""What a convolution of torch does to the axes of its input, and what the other layer needs to do the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pytreeckpt.convert.layers.sides import Option, advice, integer, integers, same_setting
from pytreeckpt.convert.layers.variants import Side
from pytreeckpt.geometry import Shape

_PAD_MODES: Final = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
_AS_IN_TORCH: Final = ("stride, padding, dilation and groups: give them explicitly, as torch has them",)
_TRANSPOSED_AS_IN_TORCH: Final = (
    "strides and kernel_dilation: as torch has them",
    "padding: (d·(k − 1) − p, d·(k − 1) − p + output_padding) for each axis, with kernel k, dilation d, padding p",
)

Pads = list[tuple[int, int]]
"""How much is added before and after each axis."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """The settings of a convolution of torch. `same`: whether its padding was given as such."""

    kernel: Shape
    stride: Shape
    dilation: Shape
    pads: Pads
    same: bool
    mode: str
    groups: int
    output_padding: Shape

    @property
    def keeps_size(self) -> bool:
        """Whether padding to the same size, as Flax does it, is what these pads do."""
        return set(self.stride) <= {1} and self.pads == _same(self.kernel, self.dilation)


def geometry_of(torch: Side) -> Geometry | None:
    """The settings of a layer, or None if nobody knows them."""
    config = torch.config
    kernel, stride, dilation = (integers(config, name) for name in ("kernel_size", "stride", "dilation"))
    groups = integer(config, "groups")
    if kernel is None or stride is None or dilation is None or groups is None:
        return None
    if len(stride) != len(kernel) or len(dilation) != len(kernel):
        return None
    padding = config.get("padding")
    pads = _same(kernel, dilation) if padding == "same" else pads_of(padding, len(kernel))
    if not isinstance(pads, list):
        return None
    more = integers(config, "output_padding") or (0,) * len(kernel)
    mode = str(config.get("padding_mode", "zeros"))
    return Geometry(kernel, stride, dilation, pads, padding == "same", mode, groups, more)


def _same(kernel: Shape, dilation: Shape) -> Pads:
    totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    return [(total // 2, total - total // 2) for total in totals]


def pads_of(padding: Any, count: int) -> Pads | str | None:
    """An option of any of the frameworks as pairs, or as the text that it is; None for what is neither."""
    match padding:
        case "valid" | "VALID":
            return [(0, 0)] * count
        case str():
            return padding
        case bool() | None | float():
            return None
        case int():
            return [(padding, padding)] * count
    pairs: Pads = []
    for each in padding:
        match each:
            case bool():
                return None
            case int():
                pairs.append((each, each))
            case [int(before), int(after)]:
                pairs.append((before, after))
            case _:
                return None
    return pairs if len(pairs) == count else None


def flax_convolution_notes(torch: Side, other: Side, layer: str) -> tuple[str, ...]:
    """What Flax's `Conv` needs. It pads to the same size unless told otherwise."""
    geometry = geometry_of(torch)
    if geometry is None:
        return _AS_IN_TORCH
    pads, notes = _first_padded(geometry)
    options = (
        Option("strides", geometry.stride),
        Option("kernel_dilation", geometry.dilation),
        Option("feature_group_count", geometry.groups),
    )
    return (*notes, *_padding_notes(other, layer, geometry, pads, default="SAME"), *advice(other, layer, *options))


def equinox_convolution_notes(torch: Side, other: Side, layer: str) -> tuple[str, ...]:
    """What Equinox's convolutions need, transposed ones too: their options are torch's."""
    geometry = geometry_of(torch)
    if geometry is None:
        return _AS_IN_TORCH
    options = (
        Option("stride", geometry.stride, 1),
        Option("dilation", geometry.dilation, 1),
        Option("groups", geometry.groups, 1),
        Option("padding_mode", geometry.mode.upper(), "ZEROS"),
    )
    notes = _padding_notes(other, layer, geometry, geometry.pads, default=0)
    more = [Option("output_padding", geometry.output_padding, 0)] if any(geometry.output_padding) else []
    return (*notes, *advice(other, layer, *options, *more))


def flax_transposed_notes(torch: Side, other: Side, layer: str) -> tuple[str, ...]:
    """What Flax's `ConvTranspose` needs: it pads what the input becomes, torch takes from what comes out."""
    geometry = geometry_of(torch)
    if geometry is None:
        return _TRANSPOSED_AS_IN_TORCH
    axes = zip(geometry.dilation, geometry.kernel, geometry.pads, geometry.output_padding, strict=False)
    pads = [(d * (k - 1) - before, d * (k - 1) - after + more) for d, k, (before, after), more in axes]
    options = (Option("strides", geometry.stride), Option("kernel_dilation", geometry.dilation))
    # What SAME and VALID come to here depends on the strides: only pairs are sure to be torch's.
    there = other.config.get("padding", "SAME")
    differs = isinstance(there, str) or pads_of(there, len(pads)) != pads
    notes = advice(other, layer, Option("padding", pads, "SAME")) if differs else ()
    return (*notes, *advice(other, layer, *options))


def _first_padded(geometry: Geometry) -> tuple[Pads, tuple[str, ...]]:
    """The pads that are left to the layer, and a note on those that it cannot do."""
    mode = _PAD_MODES.get(geometry.mode)
    if mode is None or not any(pad for pair in geometry.pads for pad in pair):
        return geometry.pads, ()
    note = f"padding_mode: pad the axes of the input by {geometry.pads} with jnp.pad(…, mode={mode!r}) first"
    return [(0, 0)] * len(geometry.pads), (note,)


def _padding_notes(other: Side, layer: str, geometry: Geometry, pads: Pads, default: object) -> tuple[str, ...]:
    there = pads_of(other.config.get("padding", default), len(pads))
    if there == pads or (there == "SAME" and geometry.keeps_size and pads == geometry.pads):
        return ()
    wanted = "SAME" if geometry.same and pads == geometry.pads else pads
    return advice(other, layer, Option("padding", wanted, default))


def same_groups(torch: Side, config: Mapping[str, Any], name: str) -> None:
    """Raise `ValueError` if the other layer is known to have another number of groups."""
    ours, theirs = integer(torch.config, "groups"), integer(config, name)
    if ours is not None and theirs is not None and not same_setting(ours, theirs):
        raise ValueError(f"it has {name}={theirs} there, and torch groups={ours}")
