"""The leaves of any tree: of plain containers, records, registered classes and frameworks' objects, read or not."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pytreeckpt.adapters import Adapter, active_adapters
from pytreeckpt.arrays import AnyArray, ArraySource, array_identity
from pytreeckpt.dtypes import AnyDType
from pytreeckpt.errors import LimitError
from pytreeckpt.expand import make_expand
from pytreeckpt.flatten import Expand
from pytreeckpt.geometry import Shape, grid, whole
from pytreeckpt.limits import current_limits
from pytreeckpt.objects import ClassKind, Expansion, is_atomic
from pytreeckpt.paths import DictKey, Field, Index, Path, Step
from pytreeckpt.references import ArrayRef


@dataclass(frozen=True, slots=True)
class FoundLeaf:
    """A leaf of a tree: an array or number, with its shape and dtype, or another value, without."""

    path: Path
    value: object
    shape: Shape | None
    dtype: AnyDType | None
    identity: Hashable = None


def leaves_of(tree: object) -> Iterator[FoundLeaf]:
    """All leaves of a tree, in order. Raises `LimitError` for one that is deeper than the limit, or holds itself."""
    adapters = active_adapters()
    expand = make_expand()
    depth = current_limits().depth
    stack: list[tuple[object, tuple[Step, ...]]] = [(tree, ())]
    while stack:
        value, path = stack.pop()
        if len(path) >= depth:
            raise LimitError(
                f"the tree is deeper than the limit of {depth} levels, or contains itself; raise it with "
                "pytreeckpt.limits(depth=…)"
            )
        leaf = leaf_at(Path(path), value, adapters, expand)
        children = children_of(value, expand) if leaf is None else None
        if children is None:
            yield leaf or FoundLeaf(Path(path), value, None, None)
            continue
        stack.extend((child, path if step is None else (*path, step)) for step, child in reversed(children))


_LEAVES = frozenset([str, bytes, bool, int, float, complex, type(None), type(...), np.ndarray, ArrayRef, ArraySource])


def children_of(value: Any, expand: Expand) -> list[tuple[Step | None, object]] | None:
    """The children of a container with their steps; None for a leaf. An empty container has none, and is no leaf."""
    cls = type(value)
    if cls in _LEAVES:
        return None
    if cls is dict:
        return [(DictKey(key), child) for key, child in value.items()]
    if cls is list or cls is tuple:
        return [(Index(index), child) for index, child in enumerate(value)]
    expansion = expand(value)
    if not isinstance(expansion, Expansion) or is_atomic(expansion.type):
        return None
    if expansion.type.class_kind is ClassKind.WRAPPER:
        inner = expansion.children[0]
        return [(None, inner)] if isinstance(inner, dict | list | tuple) else None
    return [(Field(name), child) for name, child in zip(expansion.type.fields, expansion.children, strict=True)]


def leaf_at(path: Path, value: Any, adapters: list[Adapter], expand: Expand) -> FoundLeaf | None:
    """What is a leaf for sure: others have to be expanded."""
    if isinstance(value, ArrayRef):
        return FoundLeaf(path, value, value.shape, value.dtype, value.identity)
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return FoundLeaf(path, value, value.shape, value.dtype, array_identity(value))
    if isinstance(value, bool | str | bytes) or value is None or value is ...:
        return FoundLeaf(path, value, None, None)
    if isinstance(value, int | float | complex | np.generic):
        dtype = np.asarray(value).dtype
        return FoundLeaf(path, value, None, None) if dtype.hasobject else FoundLeaf(path, value, (), dtype)
    if type(value) in {dict, list, tuple}:
        return None
    for adapter in adapters:
        template = adapter.template(value)
        if template is not None:
            return FoundLeaf(path, value, template.shape, template.dtype, _identity(value, expand))
    return None


def _identity(value: object, expand: Expand) -> Hashable:
    try:
        source = _source_of(expand(value))
    except (TypeError, ValueError):
        # Abstract: it has a shape and no values.
        source = None
    return _abstract_identity(value) if source is None or source.identity is None else source.identity


def _abstract_identity(value: Any) -> Hashable:
    """Of tensors on the meta device, those are the same that show one storage alike: `state_dict` makes new objects."""
    if not getattr(value, "is_meta", False):
        return id(value)
    return ("meta", value.untyped_storage()._cdata, value.storage_offset(), value.stride())  # noqa: SLF001 - its address, which is 0 for all of these by public means


def _source_of(expansion: object) -> ArraySource | None:
    while isinstance(expansion, Expansion) and expansion.type.class_kind is ClassKind.WRAPPER:
        expansion = expansion.children[0]
    return expansion if isinstance(expansion, ArraySource) else None


def array_of(value: Any) -> AnyArray:
    """An array or number of any framework, or a reference, as numpy. Raises `TypeError` for one without values."""
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, ArrayRef | np.generic | bool | int | float | complex):
        return np.asarray(value)
    source = _source_of(make_expand()(value))
    if source is None:
        raise TypeError(f"a {type(value).__module__}.{type(value).__qualname__} has no values")
    return assembled(source)


def assembled(source: ArraySource) -> AnyArray:
    """All items of a source as one array."""
    axes = source.axes or tuple(range(len(source.shape)))
    stored_shape = tuple(source.shape[axis] for axis in axes)
    boxes = [whole(stored_shape)] if source.cuts is None else list(grid(stored_shape, source.cuts))
    stored: AnyArray = np.empty(stored_shape, source.dtype)
    for box, read in zip(boxes, source.boxes, strict=True):
        stored[box.selection] = read(0, math.prod(box.shape)).reshape(box.shape)
    return stored.transpose(np.argsort(axes)) if source.axes is not None else stored


def abstract_leaves(tree: object) -> Iterator[Path]:
    """The paths of arrays in a tree that have a shape and no values."""
    expand = make_expand()
    for leaf in leaves_of(tree):
        if leaf.shape is not None and type(leaf.value) not in _LEAVES and not isinstance(leaf.value, np.generic):
            try:
                is_abstract = _source_of(expand(leaf.value)) is None
            except (TypeError, ValueError):
                is_abstract = True
            if is_abstract:
                yield leaf.path


def values_by_path(tree: object) -> Mapping[Path, FoundLeaf]:
    """The leaves of a tree by their paths, in which a field and a dict key of the same name are the same."""
    return {plain_path(leaf.path): leaf for leaf in leaves_of(tree)}


def plain_path(path: Path) -> Path:
    """A path in which fields are dict keys."""
    return Path(DictKey(step.name) if isinstance(step, Field) else step for step in path)
