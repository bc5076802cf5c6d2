"""numpy arrays to JAX arrays with exactly their bits: 64-bit dtypes too, whatever `jax_enable_x64` says."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache, lru_cache
from importlib import import_module
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from pytreeckpt import UnsupportedTypeError

AnyDType = np.dtype[np.generic]
AnyArray = np.ndarray[tuple[int, ...], AnyDType]


def keeping(dtype: Any) -> AbstractContextManager[Any]:
    """Within it JAX keeps arrays of this dtype as they are, also those of 64 bits."""
    if dtype.itemsize < 8:
        return nullcontext()
    # Earlier versions have the switch among their experiments.
    switch: Any = jax.enable_x64 if hasattr(jax, "enable_x64") else import_module("jax.experimental").enable_x64
    context: AbstractContextManager[Any] = switch(True)  # noqa: FBT003 - its one parameter has no name to rely on
    return context


def abstract(shape: tuple[int, ...], dtype: Any, *, weak_type: bool = False) -> jax.ShapeDtypeStruct:
    """An array without values."""
    return jax.ShapeDtypeStruct(shape, dtype, weak_type=weak_type)  # type: ignore[no-untyped-call]  # JAX has no types


def from_array(array: AnyArray, sharding: Sharding | None = None) -> jax.Array:
    """A numpy array that nobody else holds as an array with this sharding, or uncommitted on the default device.

    Raises `UnsupportedTypeError` for a dtype that JAX, or its backend, lacks.
    """
    native: AnyDType = array.dtype.newbyteorder("=")
    if not _has_dtype(native):
        raise UnsupportedTypeError(f"jax has no dtype for numpy's {array.dtype} on this backend")
    return place(array.astype(native, copy=False), sharding)


def place(array: AnyArray | jax.Array, sharding: Sharding | None) -> jax.Array:
    """An array of the default device or of numpy with this sharding, or uncommitted on the default device."""
    with keeping(array.dtype):
        if sharding is None or sharding.is_fully_addressable:
            placed: jax.Array = jax.device_put(array, sharding)
        else:
            placed = from_parts(array, sharding)
    return placed


def from_parts(array: AnyArray | jax.Array, sharding: Sharding) -> jax.Array:
    """An array over the devices of several processes, each of which has all of it and gives its own parts."""
    return jax.make_array_from_callback(tuple(array.shape), sharding, lambda index: array[index])


@cache
def _has_dtype(dtype: AnyDType) -> bool:
    try:
        with keeping(dtype):
            made = jax.device_put(np.zeros(1, dtype))
    except (TypeError, ValueError, jax.errors.JaxRuntimeError):
        return False
    return isinstance(made, jax.Array) and made.dtype == dtype


def as_weak(array: jax.Array) -> jax.Array:
    """The array with a weak type, which lets the other operand of an operation decide the dtype."""
    with keeping(array.dtype):
        weak: jax.Array = _weakener(tuple(array.shape), np.dtype(array.dtype), array.sharding)(array)
    return weak


@lru_cache(maxsize=256)
def _weakener(shape: tuple[int, ...], dtype: AnyDType, _sharding: Sharding) -> jax.stages.Compiled:
    # No function of JAX makes a weak array of another one, but a compiled identity gives the type it was compiled for.
    return jax.jit(lambda same: same).lower(abstract(shape, dtype, weak_type=True)).compile()
