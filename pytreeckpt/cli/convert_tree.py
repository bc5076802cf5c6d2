"""Trees of files: read without their arrays and with all types as they are, and looked into by path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytreeckpt.build import Builder
from pytreeckpt.checkpoint import Checkpoint
from pytreeckpt.navigation import descend
from pytreeckpt.objects import ObjectType, build_record
from pytreeckpt.paths import DictKey, Path
from pytreeckpt.training import header_of
from pytreeckpt.training.layout import HEADER


class _Keeping(Builder):
    """Builds what a tree needs to be written again: objects of frameworks stay records of their types."""

    def wrapper(self, type_: ObjectType, values: Sequence[Any]) -> object:
        """A record: what is wrapped would lose its type."""
        return build_record(type_, values)


def lazy_tree(checkpoint: Checkpoint) -> tuple[Any, Any]:
    """The metadata of a checkpoint, and its tree with references in place of arrays, which writes as what it was."""
    return checkpoint.lazy_tree(_Keeping("numpy", ()))


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
