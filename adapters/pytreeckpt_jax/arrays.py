"""JAX arrays and typed PRNG keys: to fields, from fields, and as leaves of a template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from pytreeckpt import ClassKind, Expansion, LeafTemplate, ObjectType, UnsupportedTypeError
from pytreeckpt_jax.placement import AnyArray, abstract, as_weak, from_array, place
from pytreeckpt_jax.staging import array_source, check_storable

ARRAY: Final = ObjectType(ClassKind.WRAPPER, "jax.Array", ("data", "weak_type"))
KEYS: Final = ObjectType(ClassKind.WRAPPER, "jax.PRNGKeyArray", ("key_data", "impl"))


def expand_array(array: jax.Array) -> Expansion:
    """The fields of an array or of typed PRNG keys."""
    check_storable(array)
    # JAX arrays do not change: the object is the value.
    identity = ("jax", id(array))
    if not jnp.issubdtype(array.dtype, jax.dtypes.extended):
        return Expansion(ARRAY, [array_source(array, identity), bool(array.weak_type)])
    if is_keys(array):
        impl = jax.random.key_impl(array)
        if not isinstance(impl, str):
            raise UnsupportedTypeError(f"PRNG keys of the unregistered implementation {impl} cannot be stored")
        return Expansion(KEYS, [array_source(jax.random.key_data(array), identity), impl])
    raise UnsupportedTypeError(f"JAX arrays of dtype {array.dtype} cannot be stored")


def is_keys(array: jax.Array | jax.ShapeDtypeStruct) -> bool:
    """Whether an array, or the template of one, holds typed PRNG keys."""
    return jnp.issubdtype(array.dtype, jax.dtypes.prng_key)


def build_array(fields: Mapping[str, object]) -> jax.Array:
    """A `jax.Array` from its fields. Raises `TypeError` for what makes none."""
    weak = fields["weak_type"]
    if not isinstance(weak, bool):
        raise TypeError(f"weak_type is a {type(weak).__name__}, not a bool")
    array = _array(fields["data"])
    return as_weak(array) if weak else array


def build_keys(fields: Mapping[str, object]) -> jax.Array:
    """Typed PRNG keys from their fields. Raises `TypeError` or `ValueError` for what makes none."""
    impl = fields["impl"]
    if not isinstance(impl, str):
        raise TypeError(f"impl is a {type(impl).__name__}, not a str")
    return _wrap_keys(_array(fields["key_data"]), impl)


def template(leaf: jax.Array | jax.ShapeDtypeStruct) -> LeafTemplate:
    """What an array, a key or a `jax.ShapeDtypeStruct` asks for: its shape, dtype and weak type, and where it is.

    Committed to its sharding, if the leaf is; else uncommitted on the default device.
    """
    if isinstance(leaf, jax.core.Tracer):
        raise UnsupportedTypeError("the template holds a JAX tracer; use jax.eval_shape to get its structure")
    sharding = _sharding(leaf)
    if is_keys(leaf):
        impl, data = _key_layout(leaf)
        return LeafTemplate(
            shape=tuple(data.shape),
            dtype=np.dtype(data.dtype),
            place=lambda array: place(_wrap_keys(from_array(array), impl), sharding),
            refuse=lambda type_, attributes: _refuse_for_keys(impl, type_, attributes),
        )
    weak = bool(leaf.weak_type)

    def placed(array: AnyArray) -> jax.Array:
        # An array for many devices goes to them at once, without being whole on one.
        return place(as_weak(from_array(array)), sharding) if weak else from_array(array, sharding)

    return LeafTemplate(shape=tuple(leaf.shape), dtype=np.dtype(leaf.dtype), place=placed, refuse=_refuse_for_array)


def _sharding(leaf: jax.Array | jax.ShapeDtypeStruct) -> Sharding | None:
    # Uncommitted arrays have a sharding too, but may be moved by whatever they meet.
    return leaf.sharding if isinstance(leaf, jax.ShapeDtypeStruct) or leaf.committed else None


def _key_layout(keys: jax.Array | jax.ShapeDtypeStruct) -> tuple[str, Any]:
    """The implementation of keys and the shape of their data, also of keys that have no values."""
    impls: list[object] = []

    def key_data(key: jax.Array) -> jax.Array:
        impls.append(jax.random.key_impl(key))
        return jax.random.key_data(key)

    data = jax.eval_shape(key_data, abstract(tuple(keys.shape), keys.dtype))
    return str(impls[0]), data


def _wrap_keys(data: jax.Array, impl: str) -> jax.Array:
    keys: jax.Array = jax.random.wrap_key_data(data, impl=impl)
    return keys


def _refuse_for_keys(impl: str, type_: ObjectType | None, attributes: Mapping[str, object]) -> str | None:
    if type_ != KEYS:
        return f"the template has typed PRNG keys, the checkpoint {'plain data' if type_ is None else type_.name}"
    if attributes["impl"] != impl:
        return f"the template has PRNG keys of {impl}, the checkpoint of {attributes['impl']}"
    return None


def _refuse_for_array(type_: ObjectType | None, attributes: Mapping[str, object]) -> str | None:
    if type_ == KEYS:
        return "the template has an array, the checkpoint typed PRNG keys"
    if type_ is not None and type_.name == "torch.PackedTensor":
        return f"the template has an array, the checkpoint the bits of a torch tensor of dtype {attributes['dtype']}"
    return None


def _array(data: object) -> jax.Array:
    if isinstance(data, jax.Array):
        return data
    if not isinstance(data, np.ndarray):
        raise TypeError(f"a {type(data).__name__} is no array")
    return from_array(data)
