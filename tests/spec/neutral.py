"""The neutral form of spec/vectors/README.md, printed by the library. It shares no code with the reference reader."""

import hashlib
import math
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from pytreeckpt import Checkpoint
from pytreeckpt import nodes as n
from pytreeckpt.index import Index
from pytreeckpt.reading import BytesSource

_NAMES = {
    n.NONE: "none",
    n.FALSE: "false",
    n.TRUE: "true",
    n.ELLIPSIS: "ellipsis",
    n.INT: "int",
    n.BIGINT: "bigint",
    n.FLOAT: "float",
    n.COMPLEX: "complex",
    n.STR: "str",
    n.BYTES: "bytes",
    n.ARRAY: "array",
    n.SCALAR: "scalar",
    n.LIST: "list",
    n.TUPLE: "tuple",
    n.DICT: "dict",
    n.SET: "set",
    n.FROZENSET: "frozenset",
    n.OBJECT: "object",
}


def open_bytes(data: bytes) -> Checkpoint:
    return Checkpoint(BytesSource(memoryview(data)), None)


def library_neutral(checkpoint: Checkpoint) -> dict[str, Any]:
    """The document of an open checkpoint; reads and checks every array."""
    index = checkpoint.index
    arrays = checkpoint.read_arrays(range(len(index.arrays)))
    forms = list(_nodes(index))
    start = _tree_start(index)
    return {
        "types": [[int(type_.class_kind), type_.name, list(type_.fields)] for type_ in index.nodes.types],
        "arrays": [_array(index, number, arrays[number]) for number in range(len(index.arrays))],
        "metadata": forms[:start],
        "tree": forms[start:],
    }


def _array(index: Index, number: int, values: np.ndarray) -> dict[str, Any]:
    entry = index.arrays[number]
    stored = values if entry.axes is None else values.transpose(entry.axes)
    raw = stored.tobytes()
    assert len(raw) == math.prod(entry.shape) * values.dtype.itemsize
    form: dict[str, Any] = {"dtype": _listed(index.descriptors[entry.dtype]), "shape": list(entry.shape)}
    if entry.axes is not None:
        form["axes"] = list(entry.axes)
    return form | ({"hex": raw.hex()} if len(raw) <= 4096 else {"sha256": hashlib.sha256(raw).hexdigest()})


def _listed(descriptor: object) -> object:
    return [_listed(item) for item in descriptor] if isinstance(descriptor, tuple) else descriptor


def _nodes(index: Index) -> Iterator[object]:
    nodes = index.nodes
    ints, strings, blobs = iter(nodes.ints), iter(nodes.strings), iter(nodes.blobs)
    floats = (struct.pack(">d", value).hex() for value in nodes.floats)
    columns = {n.ARRAY: iter(nodes.arrays), n.OBJECT: iter(nodes.objects), n.LIST: iter(nodes.counts)}
    for kind in nodes.kinds:
        name = _NAMES[kind]
        if kind <= n.ELLIPSIS:
            yield name
        elif kind == n.INT:
            yield {name: str(next(ints))}
        elif kind == n.FLOAT:
            yield {name: next(floats)}
        elif kind == n.COMPLEX:
            yield {name: [next(floats), next(floats)]}
        elif kind == n.STR:
            yield {name: next(strings)}
        elif kind in {n.BIGINT, n.BYTES}:
            yield {name: next(blobs).hex()}
        else:
            column = n.ARRAY if kind == n.SCALAR else n.OBJECT if kind == n.OBJECT else min(kind, n.LIST)
            yield {name: next(columns[column])}


def _tree_start(index: Index) -> int:
    """How many nodes the metadata has; it has no objects."""
    counts = iter(index.nodes.counts)
    owed = 1
    for position, kind in enumerate(index.nodes.kinds):
        if not owed:
            return position
        owed -= 1
        if kind >= n.LIST and kind != n.OBJECT:
            owed += next(counts) * (2 if kind == n.DICT else 1)
    raise AssertionError("no tree")
