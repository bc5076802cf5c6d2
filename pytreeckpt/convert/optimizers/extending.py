"""Room for states in a tree of torch whose optimizers have made no step yet, for the way back from optax."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pytreeckpt.adapters import frameworks
from pytreeckpt.build import Builder
from pytreeckpt.dtypes import AnyDType
from pytreeckpt.errors import StructureMismatchError
from pytreeckpt.geometry import Shape
from pytreeckpt.navigation import descend
from pytreeckpt.paths import DictKey, Index, Path, Step
from pytreeckpt.references import ArrayRef


@dataclass(frozen=True, slots=True)
class NewLeaf:
    """A leaf that torch's state of a parameter is to have, and does not have yet; `like`: where the parameter is."""

    path: Path
    shape: Shape
    dtype: AnyDType
    like: Path


def extended(tree: Any, new: Sequence[NewLeaf]) -> Any:
    """A tree of torch in which its optimizers have states, where they have none yet: a template for the way back.

    What stands there is zeros, of the framework of the parameter; only what is on the way to them is made anew. Raises
    `StructureMismatchError` if that cannot be.
    """
    for leaf in new:
        tree = _with_leaf(tree, leaf.path, _zeros(leaf, descend(tree, leaf.like)))
    return tree


def _zeros(leaf: NewLeaf, like: object) -> object:
    if isinstance(like, ArrayRef):
        # It says what wraps the array, whatever shape that has.
        return like
    framework = type(like).__module__.partition(".")[0]
    return Builder(framework if framework in frameworks() else "numpy", ()).leaf(np.zeros(leaf.shape, leaf.dtype))


def _with_leaf(tree: Any, path: Sequence[Step], value: object) -> Any:
    if not path:
        return value
    first, rest = path[0], path[1:]
    if isinstance(first, DictKey):
        new = dict(tree)
        new[first.key] = _with_leaf(new.get(first.key, {}), rest, value)
        return new
    if isinstance(first, Index):
        items = list(tree)
        items[first.index] = _with_leaf(items[first.index], rest, value)
        return items if isinstance(tree, list) else tuple(items)
    raise StructureMismatchError(f"the state of an optimizer is in a record, at {first}, that cannot be changed")
