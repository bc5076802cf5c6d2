"""Drawn arrays of every dtype that JAX has, and a comparison that knows nothing of the adapter."""

import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from hypothesis import strategies as st

DTYPES = [
    np.dtype(dtype)
    for dtype in (
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64", "complex64", "complex128"),
        *(ml_dtypes.bfloat16, ml_dtypes.float8_e3m4, ml_dtypes.float8_e4m3, ml_dtypes.float8_e4m3b11fnuz),
        *(ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e4m3fnuz, ml_dtypes.float8_e5m2, ml_dtypes.float8_e5m2fnuz),
        *(ml_dtypes.float8_e8m0fnu, ml_dtypes.float4_e2m1fn),
        *(ml_dtypes.int2, ml_dtypes.int4, ml_dtypes.uint2, ml_dtypes.uint4),
    )
]
_WIDTHS = {"int2": 2, "int4": 4, "uint2": 2, "uint4": 4, "float4_e2m1fn": 4, "bool": 1}
IMPLS = ["threefry2x32", "rbg", "unsafe_rbg"]


def from_bytes(raw: bytes, dtype: np.dtype) -> np.ndarray:
    """A 1-d array of these bytes; of a dtype narrower than a byte, of their low bits."""
    narrowed = np.frombuffer(raw, np.uint8) % (1 << _WIDTHS.get(dtype.name, 8)) if dtype.name in _WIDTHS else raw
    return np.frombuffer(bytearray(narrowed), np.uint8).view(dtype)


def is_keys(array) -> bool:
    """Whether these are typed PRNG keys."""
    return jnp.issubdtype(array.dtype, jax.dtypes.prng_key)


def differences(a: object, b: object) -> list[str]:
    """What is not the same in two arrays or keys, by JAX and numpy alone; in other objects, by their equality."""
    if not isinstance(a, jax.Array) or not isinstance(b, jax.Array):
        return [] if type(a) is type(b) and a == b else [f"{a!r} and {b!r}"]
    facts = {
        "class": (type(a), type(b)),
        "dtype": (a.dtype, b.dtype),
        "shape": (a.shape, b.shape),
        "weak_type": (getattr(a, "weak_type", None), getattr(b, "weak_type", None)),
        "bits": [np.asarray(jax.random.key_data(x) if is_keys(x) else x).tobytes() for x in (a, b)],
    }
    return [f"{name}: {x} and {y}" for name, (x, y) in facts.items() if x != y]


@st.composite
def _numeric(draw):
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    nbytes = math.prod(shape) * dtype.itemsize
    raw = draw(st.binary(min_size=nbytes, max_size=nbytes))
    with jax.enable_x64(True):
        return jax.device_put(from_bytes(raw, dtype).reshape(shape))


@st.composite
def _keys(draw):
    keys = jax.random.key(draw(st.integers(0, 2**32 - 1)), impl=draw(st.sampled_from(IMPLS)))
    shape = tuple(draw(st.sampled_from([(), (1,), (2, 3), (0,)])))
    return jax.random.split(keys, shape) if shape else keys


def arrays():
    """Arrays of any bits, typed keys, and weakly typed scalars."""
    weak = st.floats(allow_subnormal=False, width=32) | st.integers(-(2**31), 2**31 - 1)
    return _numeric() | _keys() | weak.map(jnp.asarray)
