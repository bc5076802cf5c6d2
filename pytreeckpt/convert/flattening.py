"""Layers that read or give a flattened image: torch flattens channels first, Flax channels last, and no shape tells.

Flattening is mostly code, so that a layer is suspected by what is around it: a linear layer after a convolution whose
features can be channels and more axes, or one before an `Unflatten`. It is not converted before a rule `Flattened` says
what was flattened, if anything. Normalisations between the image and the linear layer have the order of its features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from pytreeckpt.convert.layers.sides import integer, integers
from pytreeckpt.convert.layers.variants import Move, Variant
from pytreeckpt.convert.lookup import is_sequential
from pytreeckpt.convert.names import match_name, text_of
from pytreeckpt.convert.operations import Operations, Permute, Reshape
from pytreeckpt.convert.records import Layer, Model, Name
from pytreeckpt.convert.rules import End, Flattened
from pytreeckpt.geometry import Shape

ENDS: Final[tuple[End, ...]] = ("input", "output")

_CONV1D: Final = "transformers.pytorch_utils.Conv1D"
_LINEAR: Final = frozenset(
    ("torch.nn.Linear", "torch.nn.modules.linear.NonDynamicallyQuantizableLinear", _CONV1D),
)
_NORMS: Final = frozenset(f"torch.nn.{name}" for name in ("BatchNorm1d", "SyncBatchNorm", "LayerNorm", "RMSNorm"))
# How many channels an image has after them, by the setting that says it.
_CHANNELS: Final[Mapping[str, str]] = {
    **{f"torch.nn.BatchNorm{axes}": "num_features" for axes in ("2d", "3d")},
    **{f"torch.nn.InstanceNorm{axes}": "num_features" for axes in ("1d", "2d", "3d")},
    "torch.nn.GroupNorm": "num_channels",
}
_CONVOLUTIONS: Final = frozenset(f"torch.nn.{name}{axes}d" for name in ("Conv", "ConvTranspose") for axes in (1, 2, 3))
# A weight as it is, or what it is computed from.
_WEIGHTS: Final = (
    "weight",
    "weight_v",
    "weight_orig",
    "parametrizations/weight/original",
    "parametrizations/weight/original1",
)
# The bias, the norms of a weight, and the vector that a spectral norm has on the side of the output.
_OF_OUTPUT: Final = frozenset(
    ("bias", "weight_g", "weight_u", "parametrizations/weight/original0", "parametrizations/weight/0/_u")
)


@dataclass(frozen=True, slots=True)
class Suspicion:
    """Why a layer may read or give a flattened image, and the rule that would say so."""

    why: str
    rule: str


def flattened_variant(variant: Variant, kind: str, shapes: Mapping[str, Shape], image: Shape, end: End) -> Variant:
    """A layout of a layer, for one that reads or gives a flattened image of this shape, channels first. Raises
    `ValueError` if its features are not as many.
    """
    n_items = math.prod(image)
    n_features = features_of(kind, shapes, end)
    if n_features is None:
        raise ValueError("it is no linear layer, and no normalisation of one axis")
    if n_features != n_items:
        raise ValueError(f"{list(image)} are {n_items} items, and it has {n_features} features there")
    moves = tuple(_reordered(move, kind, shapes, image, end) for move in variant.moves)
    what = "reads" if end == "input" else "gives"
    return replace(variant, name=f"{variant.name}, which {what} {list(image)} flattened", moves=moves)


def _reordered(move: Move, kind: str, shapes: Mapping[str, Shape], image: Shape, end: End) -> Move:
    """A move that first brings the features of its leaf into the order of channels last."""
    axes = {_axis_of(rel, kind, shapes[rel], end) for rel in move.sources}
    (axis,) = axes if len(axes) == 1 else (None,)
    if axis is None:
        return move
    shape = shapes[move.sources[0]]
    before, after = shape[:axis], shape[axis + 1 :]
    rank, start = len(image), len(before)
    order = (
        *range(start),
        *range(start + 1, start + rank),
        start,
        *range(start + rank, start + rank + len(after)),
    )
    channels_first = (*before, *image, *after)
    operations: Operations = (
        Reshape(shape, channels_first),
        Permute(order),
        Reshape(tuple(channels_first[place] for place in order), shape),
    )
    return replace(move, operations=(*operations, *move.operations))


def _axis_of(rel: str, kind: str, shape: Shape, end: End) -> int | None:
    """The axis of a leaf along which the features are that go in or come out; None for a leaf without."""
    if kind in _NORMS:
        return 0 if len(shape) == 1 else None
    if rel in _WEIGHTS and len(shape) == 2:
        return int((end == "input") != (kind == _CONV1D))
    return 0 if end == "output" and rel in _OF_OUTPUT and len(shape) > 0 else None


def features_of(kind: str, shapes: Mapping[str, Shape], end: End) -> int | None:
    """How many features go into a linear layer or a normalisation, or come out of it; None for other layers."""
    names = _WEIGHTS if kind in _LINEAR else (*_WEIGHTS, "bias", "running_mean") if kind in _NORMS else ()
    for rel in names:
        if rel in shapes:
            axis = _axis_of(rel, kind, shapes[rel], end)
            return None if axis is None else shapes[rel][axis]
    return None


def declared(layer: Name, rules: Sequence[Flattened], end: End) -> Flattened | None:
    """What a rule says of one end of a layer."""
    return next((rule for rule in rules if rule.side == end and match_name(rule.layers, layer) is not None), None)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The layers of a model of torch with leaves, in their order, which is mostly that of its computation: the shapes
    of their leaves, and their places. `siblings`: the layers of each recorded `Sequential`, with or without leaves.
    """

    layers: Mapping[Name, Layer]
    shapes: Mapping[Name, Mapping[str, Shape]]
    order: Sequence[Name]
    places: Mapping[Name, int]
    siblings: Mapping[Name, Sequence[Name]]

    @classmethod
    def of(cls, model: Model) -> Surroundings:
        """Those of all layers of a model."""
        shapes: dict[Name, dict[str, Shape]] = {}
        for name, leaf in model.leaves.items():
            depth = name.index("parametrizations") if "parametrizations" in name else len(name) - 1
            shapes.setdefault(name[:depth], {})["/".join(name[depth:])] = leaf.shape
        siblings: dict[Name, list[Name]] = {}
        for name in model.layers:
            if name and is_sequential(model.layers, name[:-1]):
                siblings.setdefault(name[:-1], []).append(name)
        order = list(shapes)
        return cls(model.layers, shapes, order, {name: place for place, name in enumerate(order)}, siblings)

    def kind(self, name: Name) -> str | None:
        """The kind that was recorded of a layer."""
        return self.layers[name].kind if name in self.layers else None

    def others(self, name: Name, step: Literal[-1, 1]) -> Iterator[Name]:
        """The layers with leaves before (-1) or after (1) one, the next one first."""
        place = self.places.get(name)
        if place is not None:
            yield from (self.order[each] for each in range(place + step, len(self.order) if step > 0 else -1, step))

    def beside(self, name: Name, step: Literal[-1, 1]) -> str | None:
        """The kind of the next `Flatten`, `Unflatten`, or layer that mixes features, in the same `Sequential`."""
        names = self.siblings.get(name[:-1], ())
        if name not in names:
            return None
        place = names.index(name)
        for other in names[place + 1 :] if step > 0 else reversed(names[:place]):
            kind = self.kind(other)
            if kind in {"torch.nn.Flatten", "torch.nn.Unflatten"} or self.mixes(other):
                return kind
        return None

    def mixes(self, name: Name) -> bool:
        """Whether a layer makes new features: it has a matrix, or more."""
        if self.kind(name) in _NORMS or self.kind(name) in _CHANNELS:
            return False
        return any(len(shape) > 1 and "weight" in rel for rel, shape in self.shapes.get(name, {}).items())


def images_of(name: Name, kind: str, around: Surroundings, rules: Sequence[Flattened]) -> list[Flattened]:
    """What rules say that a layer reads or gives: those with its name and, of a normalisation, those of the linear
    layer after or before it which has the same features.
    """
    own = [rule for end in ENDS if (rule := declared(name, rules, end)) is not None]
    if kind not in _NORMS:
        return own
    if own:
        # Both of its ends are the same.
        return [replace(own[0], side="input")]
    features = features_of(kind, around.shapes.get(name, {}), "input")
    for step, end in _PARTNERS:
        partner = next((other for other in around.others(name, step) if around.mixes(other)), None)
        rule = None if partner is None else declared(partner, rules, end)
        if rule is not None and rule.shape and math.prod(rule.shape) == features and _has_image(name, end, around):
            return [rule]
    return []


_PARTNERS: Final[tuple[tuple[Literal[-1, 1], End], ...]] = ((1, "input"), (-1, "output"))


def _has_image(name: Name, end: End, around: Surroundings) -> bool:
    """Whether a normalisation is between a linear layer's end and the convolution there."""
    step: Literal[-1, 1] = -1 if end == "input" else 1
    other = next((each for each in around.others(name, step) if around.mixes(each)), None)
    return other is not None and _is_convolution(other, around)


def _is_convolution(name: Name, around: Surroundings) -> bool:
    if around.kind(name) in _CONVOLUTIONS:
        return True
    return any(rel in _WEIGHTS and len(shape) > 2 for rel, shape in around.shapes[name].items())


def _channels_before(name: Name, around: Surroundings) -> tuple[Name, int] | None:
    """The convolution before a layer, if no other layer comes between, and how many channels it hands on."""
    normalised: int | None = None
    for other in around.others(name, -1):
        setting = _CHANNELS.get(around.kind(other) or "")
        if setting is not None and normalised is None:
            normalised = integer(around.layers[other].config, setting)
        if not around.mixes(other):
            continue
        if not _is_convolution(other, around):
            return None
        shapes = around.shapes[other]
        layer = around.layers.get(other)
        recorded = None if layer is None else integer(layer.config, "out_channels")
        weight = next((shapes[rel] for rel in _WEIGHTS if rel in shapes and len(shapes[rel]) > 2), (0,))
        channels = recorded or (shapes["bias"][0] if len(shapes.get("bias", ())) == 1 else weight[0])
        return other, channels if normalised is None else normalised
    return None


def doubt(name: Name, rule: Flattened, around: Surroundings) -> str | None:
    """Whether a rule seems to have the channels of an image last, and why."""
    found = _channels_before(name, around) if rule.side == "input" else None
    if found is None or found[1] < 1 or rule.shape[-1] != found[1] or rule.shape[0] % found[1] == 0:
        return None
    return (
        f"Flattened: {text_of(found[0])} gives {found[1]} channels, and {list(rule.shape)} begins with "
        f"{rule.shape[0]}; its first axis has to be that of the channels"
    )


def suspicion(name: Name, kind: str, shapes: Mapping[str, Shape], end: End, around: Surroundings) -> Suspicion | None:
    """Whether a layer may read a flattened image, or give what becomes an image, and why."""
    features = features_of(kind, shapes, end)
    if features is None:
        return None
    if end == "input":
        return _of_input(name, kind, features, around)
    return _of_output(name, features, around) if kind in _LINEAR else None


def _of_input(name: Name, kind: str, features: int, around: Surroundings) -> Suspicion | None:
    found = _channels_before(name, around)
    if found is None:
        return None
    before, channels = found
    flattens = around.beside(name, -1) == "torch.nn.Flatten"
    # Of a normalisation alone, only what was recorded tells: channels may have been put together before it.
    if kind in _NORMS and not (flattens and _partner_of(name, features, around) is None):
        return None
    # The features of one channel have one order.
    if channels < 2 or features <= channels or features % channels:
        return None
    axes = [rel for rel, shape in around.shapes[before].items() if rel in _WEIGHTS and len(shape) == 3]
    sizes = f"{features // channels}" if axes else "height, width"
    why = f"{text_of(before)} gives {channels} channels, and {text_of(name)} reads {features} features"
    return Suspicion(
        f"{why}, after a Flatten" if flattens else f"{why}, which may be a flattened image",
        f'Flattened("{text_of(name)}", ({channels}, {sizes}))',
    )


def _partner_of(name: Name, features: int, around: Surroundings) -> Name | None:
    """The next layer after a normalisation, if it reads its features."""
    after = next((other for other in around.others(name, 1) if around.mixes(other)), None)
    if after is None:
        return None
    kind = around.kind(after) or "torch.nn.Linear"
    return after if features_of(kind, around.shapes[after], "input") == features else None


def _of_output(name: Name, features: int, around: Surroundings) -> Suspicion | None:
    if around.beside(name, 1) != "torch.nn.Unflatten":
        return None
    after = next((other for other in around.others(name, 1) if around.mixes(other)), None)
    if after is None or not _is_convolution(after, around):
        return None
    names = around.siblings[name[:-1]]
    unflatten = next(each for each in names[names.index(name) :] if around.kind(each) == "torch.nn.Unflatten")
    image = integers(around.layers[unflatten].config, "unflattened_size")
    sizes = "channels, height, width" if image is None else ", ".join(map(str, image))
    return Suspicion(
        f"{text_of(name)} gives {features} features, of which {text_of(unflatten)} makes an image",
        f'Flattened("{text_of(name)}", ({sizes}), "output")',
    )
