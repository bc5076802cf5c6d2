"""Linear layers and embeddings.

torch has the weight of a linear layer as (out, in), Flax as (in, out), with several axes for either in
`LinearGeneral` and `DenseGeneral`; Equinox has torch's. Embeddings are alike everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from pytreeckpt.convert.layers.sides import check_kind, filled, is_given, moved, size_of
from pytreeckpt.convert.layers.variants import Side, Variant
from pytreeckpt.convert.operations import Operations, Permute, Reshape
from pytreeckpt.geometry import Shape

_DENSE = ("Linear", "LinearGeneral", "Dense", "DenseGeneral")


def flax_linear(torch: Side, other: Side) -> Sequence[Variant]:
    """`torch.nn.Linear`: weight (out, in), bias (out,). The kernel is (in, out), or the axes of both."""
    check_kind(torch, other, *_DENSE)
    return _dense(torch, other, "kernel (in, out)", transposed=True)


def flax_conv1d(torch: Side, other: Side) -> Sequence[Variant]:
    """`Conv1D` of transformers, a linear layer whose weight is (in, out): Flax's kernel as it is. The Flax models of
    transformers, though, have a `FlaxConv1D` with a kernel of (out, in).
    """
    check_kind(torch, other, *_DENSE)
    plain = _dense(torch, other, "kernel (in, out)", transposed=False)
    if not is_given(other) or (other.kind or "").startswith(("flax.nnx.Linear", "flax.linen.Dense")):
        return plain
    return (*plain, *_dense(torch, other, "kernel (out, in), as FlaxConv1D has it", transposed=True))


def _dense(torch: Side, other: Side, name: str, *, transposed: bool) -> Sequence[Variant]:
    weight = torch.shapes.get("weight", ())
    if len(weight) != 2:
        return ()
    matrix = weight[::-1] if transposed else weight
    kernel = other.shapes.get("kernel", matrix)
    operations: Operations = (Permute((1, 0)),) if transposed else ()
    if len(kernel) > 2 and size_of(kernel) == size_of(matrix):
        name = f"{name}, with more axes"
        operations = (*operations, Reshape(matrix, kernel))
    bias = torch.shapes.get("bias", ())
    there = other.shapes.get("bias", bias)
    moves = (
        *moved(torch, "weight", "kernel", operations),
        *moved(torch, "bias", "bias", (Reshape(bias, there),) if len(there) > 1 else ()),
    )
    return (Variant(name, moves, fills=filled(torch, other, {"bias": ("bias", 0.0)})),)


def equinox_linear(torch: Side, other: Side) -> Sequence[Variant]:
    """`torch.nn.Linear`: as it is."""
    check_kind(torch, other, "Linear")
    if len(torch.shapes.get("weight", ())) != 2:
        return ()
    moves = (*moved(torch, "weight", "weight"), *moved(torch, "bias", "bias"))
    return (Variant("as it is", moves, fills=filled(torch, other, {"bias": ("bias", 0.0)})),)


def equinox_conv1d(torch: Side, other: Side) -> Sequence[Variant]:
    """`Conv1D` of transformers: weight (in, out), transposed."""
    check_kind(torch, other, "Linear")
    if len(torch.shapes.get("weight", ())) != 2:
        return ()
    moves = (*moved(torch, "weight", "weight", (Permute((1, 0)),)), *moved(torch, "bias", "bias"))
    return (Variant("weight transposed", moves, fills=filled(torch, other, {"bias": ("bias", 0.0)})),)


def flax_embedding(torch: Side, other: Side) -> Sequence[Variant]:
    """`torch.nn.Embedding` and `EmbeddingBag`: weight (number, features), as it is."""
    check_kind(torch, other, "Embed")
    return _embedding(torch, "embedding")


def equinox_embedding(torch: Side, other: Side) -> Sequence[Variant]:
    """The same for Equinox."""
    check_kind(torch, other, "Embedding")
    return _embedding(torch, "weight")


def _embedding(torch: Side, target: str) -> Sequence[Variant]:
    moves = moved(torch, "weight", target)
    return (Variant("as it is", moves, notes=tuple(_embedding_notes(torch))),) if moves else ()


def _embedding_notes(torch: Side) -> list[str]:
    config = torch.config
    notes: list[str] = []
    if config.get("padding_idx") is not None:
        notes.append(f"padding_idx: torch gives row {config['padding_idx']} no gradient; there is no such option here")
    if config.get("max_norm") is not None:
        notes.append(
            f"max_norm: torch scales rows to at most {config['max_norm']:g} when it reads them; do so yourself"
        )
    if config.get("scale_grad_by_freq"):
        notes.append("scale_grad_by_freq: there is no such option here, and gradients will differ")
    if "mode" in config:
        notes.append(f"EmbeddingBag: take the {config['mode']} over each bag of looked-up rows yourself")
        if config.get("include_last_offset"):
            notes.append("include_last_offset: the last offset is the end of the last bag")
    return notes


def flattened_linear(features: int, channels: int, spatial: Shape) -> Operations:
    """What is done to the weight (features, channels · spatial) of a linear layer that reads a flattened image, from
    torch's order, channels first, to Flax's, channels last: it comes to a kernel (spatial · channels, features).
    `spatial`: the height and width, or whatever axes there are, in their order.

    No shape tells whether something was flattened before a layer, so this is for a rule. Equinox has torch's order, and
    needs nothing. Raises `ValueError` for what is no size.
    """
    if min(features, channels, *spatial) < 1:
        raise ValueError(f"{channels} channels of {list(spatial)} to {features} features: sizes are at least 1")
    axes = (*range(2, 2 + len(spatial)), 1, 0)
    flat = channels * size_of(spatial)
    return (
        Reshape((features, flat), (features, channels, *spatial)),
        Permute(axes),
        Reshape((*spatial, channels, features), (flat, features)),
    )
