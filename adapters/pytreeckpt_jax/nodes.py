"""Registered pytree nodes (flax.struct dataclasses, FrozenDict, Equinox modules …): one level, with its names.

The static fields of a node are not stored; a template (`like=`) has them.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Sequence
from typing import Any, Final

import jax

from pytreeckpt import ClassKind, Expansion, ObjectType

# What JAX and the core both know is the core's, which keeps all of it.
PLAIN: Final = frozenset([dict, list, tuple, OrderedDict, defaultdict, deque, type(None)])


def expand_node(value: object) -> Expansion | None:
    """The children of a registered node, or None for a leaf of JAX and for plain containers and namedtuples."""
    cls = type(value)
    if cls in PLAIN or (isinstance(value, tuple) and hasattr(cls, "_fields")) or jax.tree_util.all_leaves([value]):
        return None
    paths, treedef = jax.tree_util.tree_flatten_with_path(value, is_leaf=lambda node: node is not value)
    names = _field_names([path[0] for path, _ in paths])
    type_ = ObjectType(ClassKind.PYTREE, f"{cls.__module__}:{cls.__qualname__}", names)

    def rebuild(children: Sequence[Any]) -> object:
        return jax.tree_util.tree_unflatten(treedef, children)

    return Expansion(type_, [child for _, child in paths], rebuild)


def _field_names(keys: Sequence[Any]) -> tuple[str, ...]:
    names = tuple(map(_name, keys))
    # Keys of a class may have any names; those of fields are distinct.
    return names if len(set(names)) == len(names) else tuple(map(str, range(len(keys))))


def _name(key: Any) -> str:
    match key:
        case jax.tree_util.GetAttrKey(name=name):
            return str(name)
        case jax.tree_util.DictKey(key=name) | jax.tree_util.FlattenedIndexKey(key=name):
            return str(name)
        case jax.tree_util.SequenceKey(idx=index):
            return str(index)
    return str(key)
