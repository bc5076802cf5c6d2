"""Trees of files: read without their arrays and with all types as they are, looked into by path, and mapped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pytreeckpt.build import Builder
from pytreeckpt.checkpoint import Checkpoint
from pytreeckpt.collection import paused_collection
from pytreeckpt.convert.rebuilding import mapped
from pytreeckpt.limits import current_limits
from pytreeckpt.navigation import descend
from pytreeckpt.objects import ClassKind, ObjectType, Record, build_record, record_expansion
from pytreeckpt.paths import DictKey, Path
from pytreeckpt.reading import scalar_value
from pytreeckpt.training import header_of
from pytreeckpt.training.layout import HEADER
from pytreeckpt.unflatten import Build, unflatten


class _Keeping(Builder):
    """Builds what a tree needs to be written again: objects of frameworks stay records of their types."""

    def wrapper(self, type_: ObjectType, values: Sequence[Any]) -> object:
        """A record: what is wrapped would lose its type."""
        return build_record(type_, values)


def lazy_tree(checkpoint: Checkpoint) -> tuple[Any, Any]:
    """The metadata of a checkpoint, and its tree with references in place of arrays, which writes as what it was."""
    return checkpoint.lazy_tree(_Keeping("numpy", ()))


def whole_tree(checkpoint: Checkpoint, array: Callable[[int], object]) -> tuple[Any, Any]:
    """The metadata and the tree, with what `array` gives for the number of each array, and a record for each object of
    a framework, whatever it wraps.
    """
    index = checkpoint.index
    numbers = index.nodes.arrays
    builder = _Keeping("numpy", ())
    build = Build(
        lambda occurrence: array(numbers[occurrence]),
        lambda occurrence: scalar_value(index, numbers[occurrence]),
        builder.build_object,
    )
    with paused_collection():
        return unflatten(index.nodes, build, limits=current_limits())


def part_at(tree: object, path: Path) -> object:
    """What is at a path that is there; what wraps a container is no step of it."""
    for step in path:
        tree = descend(data_of(tree), Path([step]))
    return tree


def leaves_in(tree: object) -> list[tuple[Path, object]]:
    """The leaves that `mapped` meets, with their paths."""
    found: list[tuple[Path, object]] = []

    def look(path: Path, value: object) -> object:
        found.append((path, value))
        return value

    mapped(tree, look)
    return found


def data_of(value: object) -> object:
    """What a wrapper wraps; anything else itself."""
    if isinstance(value, Record):
        expansion = record_expansion(value)
        if expansion.type.class_kind is ClassKind.WRAPPER and expansion.children:
            return expansion.children[0]
    return value


def planned_part(tree: Any, path: Path) -> tuple[Any, Path]:
    """The part of a tree that a plan is to be made of, if a path in it is meant, and the path in that part.

    Of the state of a training this is the whole object that the path is in, with the header, for what was recorded of
    its layers. Raises `PathError`.
    """
    selected = descend(tree, path)
    header = header_of(tree)
    keys = [step.key if isinstance(step, DictKey) else None for step in path[:2]]
    if header is None or not keys or keys[0] not in header.roles:
        return selected, Path()
    name = str(keys[0])
    role, state = header.roles[name], tree[name]
    if isinstance(role, dict) and keys[-1] in role:
        # One of several objects.
        role, state = {keys[1]: role[keys[1]]}, {keys[1]: state[keys[1]]}
    return {HEADER: {**tree[HEADER], "roles": {name: role}}, name: state}, path
