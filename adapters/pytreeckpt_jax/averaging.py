"""Moving averages of arrays, traced ones too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp

from pytreeckpt import Blend


def _kind(value: object) -> str | None:
    if not isinstance(value, jax.Array):
        return None
    if jnp.issubdtype(value.dtype, jnp.floating):
        return "real"
    return "complex" if jnp.issubdtype(value.dtype, jnp.complexfloating) else "other"


def _blend(pairs: Sequence[tuple[jax.Array, jax.Array]], weight: Any) -> list[object]:
    return [end if _kind(start) == "other" else _moved(start, end, weight) for start, end in pairs]


def _moved(start: jax.Array, end: jax.Array, weight: Any) -> jax.Array:
    narrow = _kind(start) == "real" and start.dtype.itemsize < 4
    wide = jnp.float32 if narrow else start.dtype
    first = start.astype(wide)
    # A traced weight must not widen the result; of complex numbers, it is the real number that it is.
    factor = jnp.asarray(weight, first.real.dtype)
    moved = first + factor * (end.astype(wide) - first)
    return moved.astype(start.dtype)


BLEND: Final = Blend(_kind, _blend)
