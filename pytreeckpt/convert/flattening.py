"""Linear layers that read a flattened image: torch flattens channels first, Flax channels last, and no shape tells.

Where layers were recorded, a `Flatten` between a convolution and a linear layer of one `Sequential` is known, and the
layer is not converted before a rule `Flattened` says what was flattened. Elsewhere, flattening is code: the first
linear layer after a convolution, if its features can be channels and more axes, is pointed out in a note.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, Literal

from pytreeckpt.convert.layers import flattened_linear
from pytreeckpt.convert.layers.variants import Variant
from pytreeckpt.convert.names import match_name, text_of
from pytreeckpt.convert.operations import Permute
from pytreeckpt.convert.records import Layer, Name
from pytreeckpt.convert.rules import Flattened
from pytreeckpt.geometry import Shape

_LINEAR: Final = "torch.nn.Linear"
_CONVOLUTIONS: Final = frozenset(f"torch.nn.{name}{rank}d" for name in ("Conv", "ConvTranspose") for rank in (1, 2, 3))


def flattened_variant(variant: Variant, shapes: Mapping[str, Shape], shape: Shape) -> Variant:
    """A layout of a linear layer, for one that reads a flattened image of this shape, channels first. Raises
    `ValueError` if its features are not as many.
    """
    features, n_inputs = shapes["weight"]
    if math.prod(shape) != n_inputs:
        raise ValueError(f"{list(shape)} are {math.prod(shape)} items, and it reads {n_inputs}")
    operations = flattened_linear(features, shape[0], shape[1:])
    moves = tuple(
        replace(move, operations=(*operations, *move.operations[1:]))
        if move.sources == ("weight",) and move.operations[:1] == (Permute((1, 0)),)
        else move
        for move in variant.moves
    )
    if moves == variant.moves:
        raise ValueError("it is no linear layer whose kernel is (in, out)")
    return replace(variant, name=f"{variant.name}, after {list(shape)} was flattened", moves=moves)


def declared(layer: Name, rules: Sequence[Flattened]) -> Flattened | None:
    """What a rule says of a layer."""
    return next((rule for rule in rules if match_name(rule.layers, layer) is not None), None)


def suspicion(
    layer: Name, layers: Mapping[Name, Layer], n_inputs: int
) -> tuple[Literal["certain", "possible"], str] | None:
    """Whether a linear layer reads a flattened image, as far as the recorded layers tell, and why."""
    if layer not in layers or layers[layer].kind != _LINEAR:
        return None
    names = list(layers)
    before = names[: names.index(layer)]
    last = next((name for name in reversed(before) if layers[name].kind in {_LINEAR, *_CONVOLUTIONS}), None)
    if last is None or layers[last].kind == _LINEAR:
        return None
    channels = layers[last].config.get("out_channels")
    if not isinstance(channels, int) or channels <= 0 or n_inputs == channels or n_inputs % channels:
        return None
    why = f"{text_of(last)} gives {channels} channels, and {text_of(layer)} reads {n_inputs} features"
    siblings = [name for name in before if name[:-1] == layer[:-1]]
    flattens = any(layers[name].kind == "torch.nn.Flatten" for name in before[before.index(last) :])
    in_sequence = layer[:-1] in layers and layers[layer[:-1]].kind == "torch.nn.Sequential" and bool(siblings)
    return ("certain" if flattens and in_sequence else "possible"), why
