"""Models as sides of a conversion: what `pytreeckpt.convert` sees of one, and how it is run to be compared."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pytreeckpt import Described
from pytreeckpt.convert import Computes
from pytreeckpt_jax.layers import layers_of
from pytreeckpt_jax.names import is_nnx


def describe(value: object) -> Described | None:
    """An object of nnx as its state, which `nnx.update` takes back, or a state itself; a module of Equinox as it is.
    Variables of linen are plain trees, and need no description.
    """
    # Who has not imported it has no object of it. Any: it is not needed to import this.
    nnx: Any = sys.modules.get("flax.nnx")
    if nnx is not None and (is_nnx(value) or isinstance(value, nnx.State)):
        state = value if isinstance(value, nnx.State) else nnx.state(value)
        variables = {
            tuple(str(step) for key in path for step in (key if isinstance(key, tuple) else (key,))): type(
                each
            ).__name__
            for path, each in nnx.to_flat_state(state)
            if isinstance(each, nnx.Variable)
        }
        return Described("flax", state, layers=layers_of(value), variables=variables)
    equinox: Any = sys.modules.get("equinox")
    if equinox is not None and isinstance(value, equinox.Module):
        return Described("equinox", value, layers=layers_of(value))
    return None


def half_square(outputs: Any) -> jax.Array:
    """Half the sum of squares of all floating-point arrays in `outputs`: a loss that every model has."""
    total = jnp.zeros(())
    for each in _floats(outputs):
        total = total + jnp.sum(jnp.square(each)) / 2
    return total


def computes(
    apply: Callable[[Any, Any], Any],
    *,
    loss: Callable[[Any], Any] = half_square,
    step: Callable[[Any, Any], Any] | None = None,
) -> Computes:
    """How to run a model for `Plan.verify`. `apply(tree, inputs)`: its outputs, of a tree like the plan's target, of
    which all arrays are compared, integers too; `loss(outputs)`: a scalar; `step(tree, inputs)`: the tree after a step
    of the optimizer, if that is to be compared.

    JAX computes in float32 unless `jax_enable_x64` is set, and then rounds what it is given.
    """

    def outputs(tree: Any, inputs: Any) -> list[Any]:
        return [np.asarray(each) for each in jax.tree_util.tree_leaves(apply(tree, inputs)) if hasattr(each, "dtype")]

    def gradients(tree: Any, inputs: Any) -> Any:
        leaves, treedef = jax.tree_util.tree_flatten(tree)
        places = [place for place, leaf in enumerate(leaves) if _is_float(leaf)]

        def of_floats(floats: list[Any]) -> Any:
            filled = list(leaves)
            for place, each in zip(places, floats, strict=True):
                filled[place] = each
            return loss(apply(jax.tree_util.tree_unflatten(treedef, filled), inputs))

        # Compiled once: an operation at a time, JAX would compile each.
        found = jax.jit(jax.grad(of_floats))([jnp.asarray(leaves[place]) for place in places])
        filled = list(leaves)
        for place, each in zip(places, found, strict=True):
            filled[place] = np.asarray(each)
        return jax.tree_util.tree_unflatten(treedef, filled)

    return Computes(outputs, gradients, step)


def _floats(outputs: Any) -> list[Any]:
    return [each for each in jax.tree_util.tree_leaves(outputs) if _is_float(each)]


def _is_float(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and bool(jnp.issubdtype(leaf.dtype, jnp.floating))
