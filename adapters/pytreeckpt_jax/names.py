"""The leaves of pytrees by plain names, so that a tree says what they are without JAX and without its classes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from pytreeckpt import UnsupportedTypeError

Name = tuple[Any, ...]
"""The steps to a leaf: field names, dict keys, positions."""

_NUMBERS = (int, float, complex, np.generic)


def is_array(leaf: object) -> bool:
    """Whether a leaf is an array, or the template of one."""
    return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct | np.ndarray)


def is_stored(leaf: object) -> bool:
    """Whether a leaf belongs to the state: arrays and numbers. Functions, texts and flags (`inference=True`) are the
    program's.
    """
    return is_array(leaf) or (isinstance(leaf, _NUMBERS) and not isinstance(leaf, bool))


def is_nnx(value: object) -> bool:
    """Whether a value is an object that Flax's nnx keeps a state of."""
    # Only who has imported it can have objects of it. Any: flax is not needed to import this.
    nnx: Any = sys.modules.get("flax.nnx")
    if nnx is None or isinstance(value, nnx.Variable):
        return False
    # Before flax 0.12, Object was the base of all.
    return isinstance(value, getattr(nnx, "Pytree", nnx.Object))


def leaves_by_name(tree: object) -> tuple[list[Name], list[Any], Any]:
    """The names and leaves of a pytree, and what it is made of otherwise."""
    try:
        found, treedef = jax.tree_util.tree_flatten_with_path(tree)
    except (TypeError, ValueError) as error:
        # For example, keys of a dict that have no order.
        raise UnsupportedTypeError(f"this is no pytree of JAX: {error}") from None
    names = [tuple(_step(key) for key in path) for path, _ in found]
    if not _are_apart(names):
        # A class may have any names for its children, also twice the same.
        names = [(place,) for place in range(len(names))]
    return names, [leaf for _, leaf in found], treedef


def _are_apart(names: Sequence[Name]) -> bool:
    """Whether no name is another's, or the beginning of another's."""
    every = set(names)
    beginnings = {name[:length] for name in every for length in range(len(name))}
    return len(every) == len(names) and every.isdisjoint(beginnings)


def _step(key: Any) -> Any:
    for attribute in ("name", "key", "idx"):
        if hasattr(key, attribute):
            return getattr(key, attribute)
    return str(key)


def nested(names: Sequence[Name], leaves: Sequence[object]) -> Any:
    """The leaves in dicts within dicts, by their names. A tree that is a leaf is that leaf."""
    root: dict[Any, Any] = {}
    for name, leaf in zip(names, leaves, strict=True):
        if not name:
            return leaf
        at = root
        for step in name[:-1]:
            at = at.setdefault(step, {})
        at[name[-1]] = leaf
    return root


def unnested(tree: Any) -> dict[Name, Any]:
    """The leaves of `nested` by their names."""
    found: dict[Name, Any] = {}
    stack: list[tuple[Name, Any]] = [((), tree)]
    while stack:
        name, value = stack.pop()
        if isinstance(value, dict):
            stack.extend(((*name, key), item) for key, item in reversed(value.items()))
        else:
            found[name] = value
    return found


def text(owner: str, name: Name) -> str:
    """A name for people."""
    return "/".join([owner, *map(str, name)])
