"""numpy arrays to JAX arrays with exactly their bits: 64-bit dtypes too, whatever `jax_enable_x64` says."""

from __future__ import annotations

from functools import cache, lru_cache

import jax
import numpy as np
from jax.sharding import Sharding

from pytreeckpt import UnsupportedTypeError

AnyDType = np.dtype[np.generic]
AnyArray = np.ndarray[tuple[int, ...], AnyDType]

try:
    from jax import enable_x64
except ImportError:  # before JAX 0.8
    from jax.experimental import enable_x64


def from_array(array: AnyArray) -> jax.Array:
    """A numpy array that nobody else holds as an uncommitted array on the default device.

    Raises `UnsupportedTypeError` for a dtype that JAX, or its backend, lacks.
    """
    native: AnyDType = array.dtype.newbyteorder("=")
    if not _has_dtype(native):
        raise UnsupportedTypeError(f"jax has no dtype for numpy's {array.dtype} on this backend")
    with enable_x64(True):  # noqa: FBT003 - JAX's signature
        return jax.device_put(array.astype(native, copy=False))


@cache
def _has_dtype(dtype: AnyDType) -> bool:
    try:
        with enable_x64(True):  # noqa: FBT003 - JAX's signature
            made = jax.device_put(np.zeros(1, dtype))
    except (TypeError, ValueError, jax.errors.JaxRuntimeError):
        return False
    return isinstance(made, jax.Array) and made.dtype == dtype


def as_weak(array: jax.Array) -> jax.Array:
    """The array with a weak type, which lets the other operand of an operation decide the dtype."""
    with enable_x64(True):  # noqa: FBT003 - JAX's signature
        return _weakener(tuple(array.shape), np.dtype(array.dtype))(array)


@lru_cache(maxsize=256)
def _weakener(shape: tuple[int, ...], dtype: AnyDType) -> jax.stages.Compiled:
    # No function of JAX makes a weak array from another one, but a compiled identity keeps the type that it was compiled for.
    weak = jax.ShapeDtypeStruct(shape, dtype, weak_type=True)
    return jax.jit(lambda same: same).lower(weak).compile()


def place(array: jax.Array, sharding: Sharding | None) -> jax.Array:
    """The array where a template's is: committed to its sharding, or uncommitted on the default device."""
    if sharding is None:
        return array
    with enable_x64(True):  # noqa: FBT003 - JAX's signature
        if sharding.is_fully_addressable:
            return jax.device_put(array, sharding)
        host = np.asarray(array)
        return jax.make_array_from_callback(tuple(array.shape), sharding, lambda index: host[index])
