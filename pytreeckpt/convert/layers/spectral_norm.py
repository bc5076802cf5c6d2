"""Spectral normalisation: a weight divided by its largest singular value, which vectors u and v are kept to estimate.

torch has `weight_orig`, `weight_u`, `weight_v`, or `original`, `_u`, `_v`; the rows of its matrix are what comes out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from pytreeckpt.convert.layers.sides import size_of
from pytreeckpt.convert.layers.variants import Move, Variant
from pytreeckpt.convert.layers.wrappers import REMOVE, Wrapped, along, weight_move, wrapper_leaf
from pytreeckpt.convert.operations import Flip, Operations, Reshape
from pytreeckpt.geometry import Shape

_NNX_U: Final = "batch_stats/kernel/u"
_EVALUATION: Final = (
    "evaluation: torch takes u and v as they are, Flax makes one more step of the iteration each time; they agree once "
    "it has converged"
)
_EPSILON: Final = "epsilon: Flax adds one to the squares of a norm, torch does not; give SpectralNorm(epsilon=0.0)"
_HALF_A_STEP: Final = (
    "training: torch's torch.nn.utils.{} computes {} and then {} in each step of the iteration, and this the reverse; "
    "they agree once it has converged"
)
_OVERWRITTEN: Final = "training: nnx.SpectralNorm writes the normalised weight over the one that it was made from"


def _is_old(names: Sequence[str]) -> bool:
    return names[0] == "weight_orig"


def _rows(wrapped: Wrapped, names: Sequence[str]) -> int:
    """The axis of torch's weight that is that of the rows of its matrix: the first, and in transposed convolutions the
    second, unless only another has the length of u.
    """
    weight, u = wrapped.torch.shapes[names[0]], wrapped.torch.shapes[names[1]]
    usual = 1 if "ConvTranspose" in (wrapped.torch.kind or "") else 0
    fitting = [axis for axis, extent in enumerate(weight) if u == (extent,)]
    if usual in fitting:
        return usual
    if len(fitting) == 1:
        return fitting[0]
    raise ValueError(f"which axis of {list(weight)} its spectral norm is along cannot be told; {REMOVE}")


def flax_spectral_norm(wrapped: Wrapped, variant: Variant, names: Sequence[str]) -> Variant:
    """Flax's `SpectralNorm` keeps u (1, out), and a sigma that it only writes."""
    weight = wrapped.torch.shapes[names[0]]
    rows = _rows(wrapped, names)
    move = weight_move(variant, names[0])
    _, there = along(move.operations, tuple(2 if axis == rows else 1 for axis in range(len(weight))))
    if there[-1] != 2:
        raise ValueError(
            f"its spectral norm is along axis {rows}, and Flax's along the last one of its kernel, which is another "
            f"({variant.name}); {REMOVE}"
        )
    nothing = "there is no SpectralNorm"
    u = wrapper_leaf(wrapped, variant, "u", _NNX_U, nothing=nothing)
    sigma = f"{u.removesuffix('u')}sigma"
    notes = [_EVALUATION, _EPSILON]
    if not _is_old(names):
        notes.append(_HALF_A_STEP.format("parametrizations.spectral_norm", "u", "v"))
    if u == _NNX_U:
        notes.append(_OVERWRITTEN)
    width = weight[rows]
    return replace(
        variant,
        name=f"SpectralNorm: {variant.name}",
        moves=(*variant.moves, Move((names[1],), (u,), (Reshape((width,), (1, width)),))),
        drops={**variant.drops, names[2]: "Flax computes v from u each time"},
        fills={**variant.fills, **({sigma: 1.0} if sigma in wrapped.other.shapes else {})},
        unread=variant.unread | {sigma},
        notes=(*variant.notes, *notes),
    )


def equinox_spectral_norm(wrapped: Wrapped, variant: Variant, names: Sequence[str]) -> Variant:
    """Equinox's `SpectralNorm` keeps u and v, before `equinox.nn.make_with_state` takes them out."""
    weight = wrapped.torch.shapes[names[0]]
    rows = _rows(wrapped, names)
    move = weight_move(variant, names[0])
    _, there = along(move.operations, tuple(2 if axis == rows else 1 for axis in range(len(weight))))
    if there[0] != 2:
        raise ValueError(f"its spectral norm is along axis {rows}, and Equinox's along what comes out; {REMOVE}")
    targets = ("uv_index/init/0", "uv_index/init/1")
    if wrapped.other.shapes and targets[0] not in wrapped.other.shapes:
        raise ValueError(
            "its weight is computed, and there is no equinox.nn.SpectralNorm with its u and v there: give the model as "
            "it is made, without equinox.nn.make_with_state"
        )
    columns: Mapping[bool, Operations] = {False: (), True: _flipped_columns(weight, rows)}
    flips = any(isinstance(each, Flip) for each in move.operations)
    notes = [_HALF_A_STEP.format("spectral_norm", "v", "u")] if _is_old(names) else []
    return replace(
        variant,
        name=f"SpectralNorm: {variant.name}",
        moves=(*variant.moves, Move((names[1],), targets[:1]), Move((names[2],), targets[1:], columns[flips])),
        notes=(*variant.notes, *notes),
    )


def _flipped_columns(weight: Shape, rows: int) -> Operations:
    """The columns of the matrix, of which the axes of a kernel are reversed."""
    shape = tuple(extent for axis, extent in enumerate(weight) if axis != rows)
    flat = (size_of(shape),)
    return (Reshape(flat, shape), Flip(tuple(range(1, len(shape)))), Reshape(shape, flat))
