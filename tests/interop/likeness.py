"""Whether a foreign tree is what the framework itself loads: the same nodes, arrays bit by bit, and ties."""

from dataclasses import fields
from typing import Any

import numpy as np

from pytreeckpt.arrays import ArraySource, source_of
from pytreeckpt.expand import make_expand
from pytreeckpt.flatten import FlatTree, flatten
from pytreeckpt.interop.foreign import ForeignArray, read_whole
from pytreeckpt.limits import current_limits
from tests.exact import item_bytes, same_dtype


def flat(tree: object) -> FlatTree:
    """The tree as pytreeckpt would save it."""
    inner = make_expand()

    def expand(value: Any) -> Any:
        if isinstance(value, ForeignArray):
            return source_of(_in_memory(value), identity=value.identity)
        return inner(value)

    return flatten(None, tree, expand=expand, limits=current_limits())


def _in_memory(array: ForeignArray) -> np.ndarray:
    """The array, in memory in the order of the file if it is dense there."""
    items = read_whole(array)
    if len(array.pieces) != 1 or items.size == 0:
        return items
    order = sorted(range(items.ndim), key=lambda axis: (-array.pieces[0].strides[axis], items.shape[axis] == 1))
    turned = np.ascontiguousarray(items.transpose(order)).reshape([items.shape[axis] for axis in order])
    dense = turned.transpose(np.argsort(order)) if order else turned
    strides = zip(dense.strides, array.pieces[0].strides, items.shape, strict=True)
    # In items, of which those in the file may have another size.
    there = array.pieces[0].itemsize(array.dtype)
    return dense if all(a // items.itemsize * there == b for a, b, extent in strides if extent > 1) else items


def _items(source: Any) -> tuple[bytes, Any]:
    """The bytes of an array in the order in which it is stored, and that order where it means something."""
    if isinstance(source, ArraySource):
        parts = [np.asarray(box(0, source.nbytes // max(source.dtype.itemsize, 1))) for box in source.boxes]
        assert len(parts) == 1
        axes = source.axes and [axis for axis in source.axes if source.shape[axis] > 1]
        return item_bytes(parts[0]), None if axes is None or axes == sorted(axes) else axes
    return _items(source_of(source))


def assert_alike(foreign: object, tree: object) -> int:
    """Fail with the first difference between a foreign tree and what it should be. Gives the number of arrays."""
    found, wanted = flat(foreign), flat(tree)
    for column in fields(found.nodes):
        ours, theirs = getattr(found.nodes, column.name), getattr(wanted.nodes, column.name)
        if column.name == "floats":
            ours, theirs = np.array(ours).tobytes(), np.array(theirs).tobytes()
        assert ours == theirs, column.name
    assert found.scalars == wanted.scalars
    assert len(found.arrays) == len(wanted.arrays)
    for ours, theirs in zip(found.arrays, wanted.arrays, strict=True):
        assert same_dtype(ours.dtype, theirs.dtype), f"{ours.dtype} and {theirs.dtype}"
        assert tuple(ours.shape) == tuple(theirs.shape)
        assert _items(ours) == _items(theirs)
    return len(wanted.arrays)
