"""Weights that are computed: torch's weight_norm and spectral_norm, old and new, around any layer.

The weight that they are computed from goes where the layer's own would, and what else there is beside it, to what
`WeightNorm` and `SpectralNorm` of Flax and Equinox have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from pytreeckpt.convert.layers.spectral_norm import equinox_spectral_norm, flax_spectral_norm
from pytreeckpt.convert.layers.variants import Layout, Side, Variant
from pytreeckpt.convert.layers.weight_norm import equinox_weight_norm, flax_weight_norm
from pytreeckpt.convert.layers.wrappers import REMOVE, Wrapped, inside

_NEW: Final = "parametrizations/"
_G_AND_V: Final = (("weight_g", "weight_v"), (f"{_NEW}weight/original0", f"{_NEW}weight/original1"))
_W_U_AND_V: Final = (
    ("weight_orig", "weight_u", "weight_v"),
    (f"{_NEW}weight/original", f"{_NEW}weight/0/_u", f"{_NEW}weight/0/_v"),
)


def with_parametrization(layout: Layout, *, equinox: bool) -> Layout:
    """A layout for the same layer with or without a computed weight."""
    weight_norm = equinox_weight_norm if equinox else flax_weight_norm
    spectral_norm = equinox_spectral_norm if equinox else flax_spectral_norm

    def parametrized(torch: Side, other: Side) -> Sequence[Variant]:
        if "weight" in torch.shapes:
            return layout(torch, other)
        for names in _G_AND_V:
            if all(name in torch.shapes for name in names):
                variants, wrapped = inside(layout, torch, other, names[1], wrapper="WeightNorm", equinox=equinox)
                return _wrapping(variants, wrapped, names, weight_norm)
        for triple in _W_U_AND_V:
            if all(name in torch.shapes for name in triple):
                variants, wrapped = inside(layout, torch, other, triple[0], wrapper="SpectralNorm", equinox=equinox)
                return _wrapping(variants, wrapped, triple, spectral_norm)
        if any(name.startswith(_NEW) for name in torch.shapes):
            raise ValueError(f"its weight is computed by a parametrization that JAX's layers have not; {REMOVE}")
        return layout(torch, other)

    parametrized.__doc__ = layout.__doc__
    return parametrized


def as_it_is(layout: Layout) -> Layout:
    """A layout for a layer whose parameters are not computed; those that are, are refused."""

    def plain(torch: Side, other: Side) -> Sequence[Variant]:
        if any(name.startswith(_NEW) for name in torch.shapes):
            raise ValueError(f"its parameters are computed by a parametrization that JAX's layers have not; {REMOVE}")
        return layout(torch, other)

    plain.__doc__ = layout.__doc__
    return plain


def _wrapping(
    variants: Sequence[Variant],
    wrapped: Wrapped,
    names: Sequence[str],
    convert: Callable[[Wrapped, Variant, Sequence[str]], Variant],
) -> Sequence[Variant]:
    """Variants of the wrapper, for those of the layer that it can wrap. Raises `ValueError` if it can wrap none."""
    found: list[Variant] = []
    refused: ValueError | None = None
    for variant in variants:
        try:
            found.append(convert(wrapped, variant, names))
        except ValueError as error:
            refused = error
    if not found and refused is not None:
        raise refused
    return found
