"""Trees without their arrays: what they are made of as columns, and for each array a source that reads it.

All operations work on this form, whether the tree is that of an open checkpoint, or one in memory with arrays, tensors
and references in it. What is built of it is for `save`: dicts, lists, tuples and plain values, a source for each
array, and a record for each object, which is stored as the object was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from pytreeckpt import nodes as n
from pytreeckpt.arrays import AnyArray, ArraySource
from pytreeckpt.checkpoint import Checkpoint, Select
from pytreeckpt.collection import paused_collection
from pytreeckpt.errors import StructureMismatchError
from pytreeckpt.expand import make_expand
from pytreeckpt.flatten import flatten
from pytreeckpt.limits import current_limits
from pytreeckpt.navigation import descend
from pytreeckpt.nodes import Nodes, Visit, walk
from pytreeckpt.objects import (
    ClassKind,
    Expansion,
    NamedTupleRecord,
    ObjectType,
    Record,
    build_record,
    record_expansion,
)
from pytreeckpt.operations.orders import Order
from pytreeckpt.operations.sources import Files
from pytreeckpt.paths import DictKey, Field, Index, Path, Step, compile_glob, suggest
from pytreeckpt.reading import scalar_value
from pytreeckpt.references import ArrayRef
from pytreeckpt.unflatten import UNSELECTED, Build, unflatten

Array = AnyArray | ArraySource
_SHOWN: Final = 10


@dataclass(frozen=True, slots=True)
class LazyTree:
    """A metadata and a tree. `arrays`: what the entries of `nodes.arrays` number; `scalar`: gives the numpy scalar of
    an entry.
    """

    nodes: Nodes
    arrays: Sequence[Array]
    scalar: Callable[[int], object]

    def build(self, array: Callable[[int], object] | None = None, *, unselected: bytes | bytearray = b"") -> Any:
        """The metadata and the tree, with what `array` gives for the entry of each array, or its source."""
        numbers = self.nodes.arrays
        build = Build(array or (lambda entry: self.arrays[numbers[entry]]), self.scalar, build_record)
        with paused_collection():
            return unflatten(self.nodes, build, limits=current_limits(), unselected=unselected)

    def leaves(self) -> list[Visit]:
        """The leaves of the tree: what `select` can choose. An empty container is one."""
        return [visit for visit in walk(self.nodes) if visit.is_leaf]

    def with_arrays(self, arrays: Sequence[Array]) -> LazyTree:
        """The same with other arrays."""
        return replace(self, arrays=arrays)


def lazy(value: object, files: Files | None = None, *, order: Order = "stored") -> LazyTree:
    """A tree, or that of an open checkpoint with its metadata. Raises what `save` raises for what cannot be stored."""
    files = Files() if files is None else files
    if isinstance(value, Checkpoint):
        index = value.index
        value.check_structure()
        arrays = files.arrays(value, order=order)
        return LazyTree(index.nodes, arrays, lambda entry: scalar_value(index, index.nodes.arrays[entry]))
    expand = make_expand()

    def expanded(each: object) -> ArraySource | Expansion | None:
        if not isinstance(each, ArrayRef):
            return expand(each)
        found = files.leaf(each)
        return found if isinstance(found, ArraySource) else record_expansion(found)

    with paused_collection():
        flat = flatten(None, value, expand=expanded, limits=current_limits())
    return LazyTree(flat.nodes, flat.arrays, lambda entry: _item(flat.arrays[flat.nodes.arrays[entry]]))


def _item(array: Any) -> object:
    """The scalar that an array of rank 0 was made of; texts and bytes with all of their zeros."""
    match array.dtype.kind:
        case "S":
            return array.dtype.type(array.tobytes())
        case "U":
            text = array.tobytes().decode("utf-32-be" if array.dtype.byteorder == ">" else "utf-32-le", "surrogatepass")
            return array.dtype.type(text)
    return array[()]


class ArrayLeaf(NamedTuple):
    """An array in a tree: its path, its entry in `nodes.arrays`, and the types of the objects that it is in, from the
    outermost to what wraps it.
    """

    path: Path
    entry: int
    within: tuple[ObjectType, ...]


def array_leaves(tree: LazyTree) -> Iterator[ArrayLeaf]:
    """The arrays of a tree, but for those that are attributes of others, in order."""
    nodes = tree.nodes
    # The objects that are open, with the number of steps to them.
    objects: list[tuple[int, tuple[Step, ...], ObjectType]] = []
    for visit in walk(nodes):
        while objects and visit.path[: objects[-1][0]] != objects[-1][1]:
            objects.pop()
        if visit.kind == n.OBJECT:
            objects.append((len(visit.path), visit.path, nodes.types[nodes.objects[visit.entry]]))
        elif visit.kind == n.ARRAY and not visit.attribute:
            within = tuple(type_ for _, _, type_ in objects) if objects else ()
            yield ArrayLeaf(Path(visit.path), visit.entry, within)


# Selecting.


def chosen(select: Select, paths: Sequence[Path]) -> list[bool]:
    """Which of the paths a glob, one of several, or a predicate matches. Raises `StructureMismatchError` for a glob
    that matches none.
    """
    patterns = [select] if isinstance(select, str) else [] if callable(select) else list(select)
    matchers = [select] if callable(select) else [compile_glob(pattern) for pattern in patterns]
    used = [False] * len(matchers)
    found: list[bool] = []
    for path in paths:
        hits = [bool(matcher(path)) for matcher in matchers]
        used = [a or b for a, b in zip(used, hits, strict=True)]
        found.append(any(hits))
    idle = [pattern for pattern, hit in zip(patterns, used, strict=False) if not hit]
    if idle or not any(used):
        beginnings = (path[:depth] for path in paths[:1000] for depth in range(1, min(len(path), 20) + 1))
        texts = list(dict.fromkeys(str(Path(path)) for path in beginnings))
        meant = idle[0].replace("**", "").replace("*", "").strip("/") if idle else ""
        close = suggest(meant, texts, count=3, cutoff=0.5) or texts[:3]
        what = f"select {', '.join(map(repr, idle))}" if idle else "select"
        raise StructureMismatchError(f"{what} matches no leaf; there is {', '.join(close)}", missing=idle)
    return found


def selected(tree: object, select: Select) -> Any:
    """The leaves of a tree that a glob on paths (or one of several, or a predicate on `Path`) matches, in the dicts
    that they are in: a tree for `save`, in which nothing of references has been read.

    `tree`: what `save` takes, and references to arrays of open checkpoints. Lists, tuples and records are kept whole or
    left out: raises `StructureMismatchError` where only some items would be, and for a glob that matches nothing.
    """
    return selected_of(lazy(tree), select)[1]


def selected_of(tree: LazyTree, select: Select) -> tuple[Any, Any]:
    """The metadata and what is selected of a tree."""
    visits = tree.leaves()
    leaves = [visit for visit in visits if not visit.attribute]
    marks = bytearray(len(tree.nodes.kinds))
    for visit, is_chosen in zip(leaves, chosen(select, [Path(visit.path) for visit in leaves]), strict=True):
        marks[visit.position] = not is_chosen
    metadata, found = tree.build(unselected=marks)
    gaps = [str(path) for path in _gaps(found)]
    if gaps:
        more = f" and {len(gaps) - _SHOWN} more" if len(gaps) > _SHOWN else ""
        raise StructureMismatchError(
            f"select leaves out {', '.join(gaps[:_SHOWN])}{more}, without which lists, tuples and records would not be "
            "what they are; select all of each, or take what is at a path out of it (at=)",
            missing=gaps,
        )
    return metadata, found


def _gaps(tree: object) -> Iterator[Path]:
    """Where something was left out of what is no dict."""
    for path, value in _nodes_of(tree):
        if value is UNSELECTED:
            yield path


def part_at(tree: object, path: Path) -> Any:
    """What is at a path of a built tree; what wraps a container is no step of it. Raises `PathError`."""
    value: Any = tree
    for step in path:
        value = descend(data_of(value), Path([step]))
    return value


# Built trees.


def data_of(value: object) -> Any:
    """What a record of a wrapper wraps; anything else itself."""
    while isinstance(value, Record):
        expansion = record_expansion(value)
        if expansion.type.class_kind is not ClassKind.WRAPPER or not expansion.children:
            break
        value = expansion.children[0]
    return value


def type_name(value: object) -> str:
    """The registered name of what wraps a leaf; empty for none."""
    return record_expansion(value).type.name if isinstance(value, Record) else ""


def leaves_in(tree: object) -> list[tuple[Path, Any]]:
    """The leaves of a built tree with their paths: a record that wraps an array or a value is one, and so is an empty
    container.
    """
    return [(path, value) for path, value in _nodes_of(tree) if not _children(value)]


def _nodes_of(tree: object) -> Iterator[tuple[Path, Any]]:
    stack: list[tuple[tuple[Step, ...], Any]] = [((), tree)]
    while stack:
        path, value = stack.pop()
        yield Path(path), value
        stack.extend(((*path, step), child) for step, child in reversed(_children(value)))


def _children(value: object) -> list[tuple[Step, object]]:
    inner = data_of(value)
    if type(inner) is dict:
        return [(DictKey(key), child) for key, child in inner.items()]
    if type(inner) is list or type(inner) is tuple:
        return [(Index(index), child) for index, child in enumerate(inner)]
    if isinstance(inner, Record | NamedTupleRecord):
        expansion = record_expansion(inner)
        if expansion.type.class_kind is ClassKind.ENUM:
            return []
        return [(Field(name), child) for name, child in zip(expansion.type.fields, expansion.children, strict=True)]
    return []
