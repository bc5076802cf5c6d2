"""What two sides of a layer say of themselves: whether their kinds contradict each other, and what the program has to
see to where their configurations differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pytreeckpt.convert.layers.variants import Move, Side
from pytreeckpt.convert.operations import Operations
from pytreeckpt.geometry import Shape

_DENSE: Final = ("linen.Dense", "linen.DenseGeneral", "nnx.Linear", "nnx.LinearGeneral")
_CONV: Final = ("linen.Conv", "linen.ConvLocal", "nnx.Conv")
_CONV_TRANSPOSE: Final = ("linen.ConvTranspose", "nnx.ConvTranspose")
_RECURRENT: Final = (
    "RNN",
    "Bidirectional",
    "LSTMCell",
    "OptimizedLSTMCell",
    "GRUCell",
    "MGUCell",
    "SimpleCell",
    "ConvLSTMCell",
)
_NORMS: Final = ("LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm", "BatchNorm")
_ATTENTION: Final = ("MultiHeadAttention", "MultiHeadDotProductAttention", "SelfAttention")
_OTHERS: Final = ("Embed", "Einsum", "PReLU", "WeightNorm", "SpectralNorm", "LoRA", "Dropout")
_EQUINOX: Final = (
    *("Linear", "Conv", "Conv1d", "Conv2d", "Conv3d"),
    *("ConvTranspose", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"),
    *("Embedding", "LayerNorm", "RMSNorm", "GroupNorm", "BatchNorm", "MultiheadAttention", "LSTMCell", "GRUCell"),
    *("PReLU", "WeightNorm", "SpectralNorm", "MLP", "Dropout", "Identity"),
)
_KNOWN: Final = frozenset(
    (
        *(f"flax.{name}" for name in (*_DENSE, *_CONV, *_CONV_TRANSPOSE)),
        *(f"flax.{api}.{name}" for name in (*_RECURRENT, *_NORMS, *_ATTENTION, *_OTHERS) for api in ("linen", "nnx")),
        *(f"equinox.nn.{name}" for name in _EQUINOX),
    )
)
"""Kinds that say what a layer computes. Others (`flax.nnx.Module`, `equinox.nn.Sequential`) hold anything."""


def check_kind(torch: Side, other: Side, *allowed: str) -> None:
    """Raise `ValueError` if the other side is known to be a layer of another sort than those allowed, which are given
    by their names without the framework's: `Linear`, `Conv2d`.
    """
    if contradicts(other, *allowed):
        raise ValueError(f"it is a {other.kind} there, which is no counterpart of {torch.kind or 'this layer'}")


def contradicts(other: Side, *allowed: str) -> bool:
    """Whether the other side is known to be a layer of another sort than those allowed."""
    return other.kind in _KNOWN and other.kind.rpartition(".")[2] not in allowed


def scheme_of(other: Side) -> str | None:
    """Which of Flax's two APIs a layer is of, `linen` or `nnx`; None if nobody knows."""
    for api in ("linen", "nnx"):
        if (other.kind or "").startswith(f"flax.{api}.") or other.config.get("scheme") == api:
            return api
    return None


def flax_name(other: Side, linen: str, nnx: str | None = None) -> str:
    """What a layer is called in the API that the other side is of: for advice."""
    scheme = scheme_of(other)
    name = nnx or linen
    return f"flax.nnx.{name}" if scheme == "nnx" else f"flax.linen.{linen}" if scheme == "linen" else linen


def is_given(other: Side) -> bool:
    """Whether a target was given, and not only named."""
    return bool(other.shapes)


_MAX_ITEMS: Final = 16
_MAX_LEVELS: Final = 3
# Beyond it, Python's integers are no floats.
_LARGEST: Final = 1e300


def with_plain_config(side: Side) -> Side:
    """The side with those settings that are plain values: a file may have anything there."""
    return Side(side.shapes, side.kind, {key: value for key, value in side.config.items() if _is_plain(value)})


def _is_plain(value: object, levels: int = _MAX_LEVELS) -> bool:
    if isinstance(value, tuple | list):
        return levels > 0 and len(value) <= _MAX_ITEMS and all(_is_plain(item, levels - 1) for item in value)
    return value is None or type(value) in {bool, int, float, str}


def integer(config: Mapping[str, Any], name: str) -> int | None:
    """A setting that is an integer, or None."""
    value = config.get(name)
    return value if type(value) is int else None


def integers(config: Mapping[str, Any], name: str) -> tuple[int, ...] | None:
    """A setting that is a tuple of integers, or None."""
    value = config.get(name)
    if isinstance(value, tuple | list) and all(type(item) is int for item in value):
        return tuple(value)
    return None


def number(config: Mapping[str, Any], name: str) -> float | None:
    """A setting that is a number, or None."""
    value = config.get(name)
    if isinstance(value, bool | None) or not isinstance(value, int | float) or abs(value) > _LARGEST:
        return None
    return float(value)


@dataclass(frozen=True, slots=True)
class Option:
    """An option that the other layer has to be made with. `default`: what it is if nobody gives it."""

    name: str
    wanted: Any
    default: Any = None


def advice(other: Side, layer: str, *options: Option) -> tuple[str, ...]:
    """What to give to a layer that is called so: where its configuration is known, what differs; else what is not the
    default.
    """
    notes: list[str] = []
    for option in options:
        if option.name in other.config:
            if not same_setting(option.wanted, other.config[option.name]):
                there = other.config[option.name]
                notes.append(f"{option.name}: it is {there!r} there; give {layer}({option.name}={option.wanted!r})")
        elif not same_setting(option.wanted, option.default):
            notes.append(f"{option.name}: give {layer}({option.name}={option.wanted!r})")
    return tuple(notes)


def same_setting(a: Any, b: Any) -> bool:
    """Whether two plain settings mean the same: one number for all axes, and None for 1, are what Flax allows."""
    a, b = (1 if value is None else value for value in (a, b))
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(same_setting(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, tuple | list):
        return all(same_setting(x, b) for x in a)
    if isinstance(b, tuple | list):
        return same_setting(b, a)
    return bool(a == b)


def moved(torch: Side, source: str, target: str, operations: Operations = ()) -> tuple[Move, ...]:
    """The move of a leaf, if the torch layer has it."""
    return (Move((source,), (target,), operations),) if source in torch.shapes else ()


# The options of torch's layers that leave parameters or statistics out, by the names of these.
_LEFT_OUT_BY: Final[Mapping[str, tuple[str, ...]]] = {
    "weight": ("affine", "elementwise_affine"),
    "bias": ("affine", "elementwise_affine"),
    "running_mean": ("track_running_stats",),
    "running_var": ("track_running_stats",),
}


def is_without(torch: Side, leaf: str) -> bool:
    """Whether a layer is known to have been made without a leaf: one that merely is not there may be lost."""
    if leaf in torch.shapes:
        return False
    # No RMSNorm has a bias.
    never = leaf == "bias" and torch.kind == "torch.nn.RMSNorm" and bool(torch.config)
    return never or any(torch.config.get(name) is False for name in (leaf, *_LEFT_OUT_BY.get(leaf, ())))


def filled(torch: Side, other: Side, values: Mapping[str, tuple[str, float]]) -> dict[str, float]:
    """What stands for leaves that torch's layer was made without, and the other has. `values`: by the torch leaf that
    it would come from, its name and the value which changes nothing.
    """
    return {
        name: value for source, (name, value) in values.items() if is_without(torch, source) and name in other.shapes
    }


def size_of(shape: Shape) -> int:
    """How many elements a shape has, in Python's integers."""
    size = 1
    for extent in shape:
        size *= extent
    return size
