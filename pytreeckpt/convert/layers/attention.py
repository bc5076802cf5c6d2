"""Multi-head attention: torch packs the projections of query, key and value, Flax gives each head an axis.

With E features and H heads of D, torch has one `in_proj_weight` (3·E, E) or, if keys or values have other sizes, three
matrices; Flax has kernels (E, H, D) and, for the output, (H, D, E); Equinox has matrices as torch, but apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pytreeckpt.convert.layers.sides import check_kind, flax_name, integer, is_without
from pytreeckpt.convert.layers.variants import Move, Side, Variant
from pytreeckpt.convert.operations import Operations, Permute, Reshape, Split
from pytreeckpt.geometry import Shape

_PARTS: Final = ("query", "key", "value")
_APART: Final = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
_BIASES: Final = ("query/bias", "key/bias", "value/bias", "out/bias")
_FLAX: Final = ("MultiHeadAttention", "MultiHeadDotProductAttention", "SelfAttention")


def flax_attention(torch: Side, other: Side) -> Sequence[Variant]:
    """`torch.nn.MultiheadAttention` to `MultiHeadAttention` or `MultiHeadDotProductAttention`."""
    check_kind(torch, other, *_FLAX)
    out = torch.shapes.get("out_proj/weight", ())
    if len(out) != 2:
        return ()
    _refuse(torch)
    features = out[0]
    if other.config.get("normalize_qk"):
        raise ValueError("it normalises queries and keys there (normalize_qk=True), and torch does not")
    weights = [torch.shapes[name] for name in _APART if name in torch.shapes]
    if scheme_is_nnx(other) and weights and weights[1] != weights[2]:
        raise ValueError(
            f"its keys have {weights[1][1]} features and its values {weights[2][1]}, and flax.nnx.MultiHeadAttention "
            "has one size for both; linen's has two"
        )
    heads = _heads(torch, other)
    if heads is None:
        raise ValueError("its number of heads is not known: give a target, or a source with recorded layers")
    if heads < 1 or features % heads:
        raise ValueError(f"{heads} heads do not divide its {features} features")
    by_head = (heads, features // heads)
    to_kernel: Mapping[int, Operations] = {
        size: (Permute((1, 0)), Reshape((size, features), (size, *by_head)))
        for size in {features, *(shape[1] for shape in weights)}
    }
    to_bias: Operations = (Reshape((features,), by_head),)
    moves = (
        *_projections(torch, features, [f"{part}/kernel" for part in _PARTS], to_kernel),
        *_biases(torch, features, [f"{part}/bias" for part in _PARTS], to_bias),
        Move(
            ("out_proj/weight",),
            ("out/kernel",),
            (Permute((1, 0)), Reshape((features, features), (*by_head, features))),
        ),
        *([Move(("out_proj/bias",), ("out/bias",))] if "out_proj/bias" in torch.shapes else []),
    )
    fills = _filled_biases(torch, other, _BIASES)
    notes = _notes(torch, other, flax_name(other, "MultiHeadDotProductAttention", "MultiHeadAttention"), heads)
    return (Variant(f"{heads} heads", moves, fills=fills, notes=notes),)


def scheme_is_nnx(other: Side) -> bool:
    """Whether a layer is known to be of nnx."""
    return flax_name(other, "").startswith("flax.nnx")


def _refuse(torch: Side) -> None:
    if "bias_k" in torch.shapes or torch.config.get("add_bias_kv"):
        raise ValueError(
            "it has a learned key and value in every sequence (add_bias_kv=True), which JAX's layers have not"
        )
    if torch.config.get("add_zero_attn"):
        raise ValueError("it adds zeros to keys and values (add_zero_attn=True), which JAX's layers do not")


def _heads(torch: Side, other: Side) -> int | None:
    ours, theirs = integer(torch.config, "num_heads"), integer(other.config, "num_heads")
    if theirs is None:
        kernel = other.shapes.get("query/kernel", ())
        theirs = kernel[1] if len(kernel) == 3 else None
    if ours is not None and theirs is not None and ours != theirs:
        raise ValueError(f"it has {theirs} heads there, and torch {ours}")
    return theirs if ours is None else ours


def _projections(
    torch: Side, features: int, targets: Sequence[str], operations: Mapping[int, Operations]
) -> tuple[Move, ...]:
    """Query, key and value. `operations`: what is done to each matrix, by the size that it projects."""
    if "in_proj_weight" in torch.shapes:
        split = Split(0, (features,) * 3)
        return (Move(("in_proj_weight",), tuple(targets), (split, *operations[features])),)
    return tuple(
        Move((name,), (target,), operations[torch.shapes[name][1]])
        for name, target in zip(_APART, targets, strict=True)
        if name in torch.shapes
    )


def _filled_biases(torch: Side, other: Side, names: Sequence[str]) -> dict[str, float]:
    """Biases that only the other layer has; that of torch's output projection is a leaf of its own."""
    return {
        name: 0.0
        for name in names
        if name in other.shapes
        and is_without(torch, "in_proj_bias")
        and (not name.startswith("out") or "out_proj/bias" not in torch.shapes)
    }


def _biases(torch: Side, features: int, targets: Sequence[str], operations: Operations) -> tuple[Move, ...]:
    if "in_proj_bias" not in torch.shapes:
        return ()
    return (Move(("in_proj_bias",), tuple(targets), (Split(0, (features,) * 3), *operations)),)


def _notes(torch: Side, other: Side, layer: str, heads: int) -> tuple[str, ...]:
    notes: list[str] = []
    if not other.shapes:
        more = "" if "in_proj_bias" in torch.shapes else ", use_bias=False"
        notes.append(f"heads: give {layer}(num_heads={heads}{more})")
    if torch.config.get("batch_first") is False:
        notes.append("batch_first: torch has (sequence, batch, features) here, Flax (batch, sequence, features)")
    notes.append("masks: torch's True is what may not be attended to, and Flax's what may")
    return tuple(notes)


def equinox_attention(torch: Side, other: Side) -> Sequence[Variant]:
    """`torch.nn.MultiheadAttention` to `equinox.nn.MultiheadAttention`, which has no biases unless told otherwise."""
    check_kind(torch, other, "MultiheadAttention")
    out: Shape = torch.shapes.get("out_proj/weight", ())
    if len(out) != 2:
        return ()
    _refuse(torch)
    heads = _heads(torch, other)
    features = out[0]
    as_they_are: Mapping[int, Operations] = dict.fromkeys(
        {features, *(torch.shapes[name][1] for name in _APART if name in torch.shapes)}, ()
    )
    moves = (
        *_projections(torch, features, [f"{part}_proj/weight" for part in _PARTS], as_they_are),
        *_biases(torch, features, [f"{part}_proj/bias" for part in _PARTS], ()),
        Move(("out_proj/weight",), ("output_proj/weight",)),
        *([Move(("out_proj/bias",), ("output_proj/bias",))] if "out_proj/bias" in torch.shapes else []),
    )
    names = [f"{part}_proj/bias" for part in (*_PARTS, "output")]
    fills = _filled_biases(torch, other, names)
    return (Variant("projections apart", moves, fills=fills, notes=_equinox_notes(torch, other, heads)),)


def _equinox_notes(torch: Side, other: Side, heads: int | None) -> tuple[str, ...]:
    notes: list[str] = []
    if not other.shapes:
        biases = "".join(f", use_{part}_bias=True" for part in (*_PARTS, "output"))
        more = biases if "in_proj_bias" in torch.shapes else ""
        notes.append(f"options: give equinox.nn.MultiheadAttention(num_heads={heads or '…'}{more})")
    notes.append("batches: Equinox has (sequence, features), and is vmapped over a batch")
    notes.append("masks: torch's True is what may not be attended to, and Equinox's what may")
    return tuple(notes)
