"""Several trees in one: what each of them has, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

from pytreeckpt.errors import PathError, StructureMismatchError
from pytreeckpt.objects import Record, build_record, record_expansion
from pytreeckpt.operations.lazy import data_of, lazy
from pytreeckpt.operations.sources import Files
from pytreeckpt.paths import DictKey, Path

Prefer = Literal["first", "last"]
At = Sequence[str | Path | None]
_SHOWN: Final = 20
_MAPPINGS: Final = ("python.OrderedDict", "python.defaultdict", "python.Counter")


def merged(*trees: object, prefer: Prefer | None = None, at: At | None = None) -> Any:
    """One tree of several: dicts are merged, to any depth, in the order given; a tree for `save`, in which nothing of
    references has been read.

    `trees`: what `save` takes, and references to arrays of open checkpoints. `at`: for each, the path at which it
    stands in the result (None or "": the root), of dict keys; what is on the way is made. `prefer`: whose value is kept
    of what several have that are not all dicts, "first" or "last"; without it, `StructureMismatchError` lists it.
    """
    files = Files(n_files=len(trees))
    return merge_built([lazy(tree, files).build()[1] for tree in trees], prefer=prefer, at=at)


def merge_built(trees: Sequence[Any], *, prefer: Prefer | None, at: At | None) -> Any:
    """As `merged`, of trees that are built of lazy ones."""
    if prefer not in {None, "first", "last"}:
        raise ValueError(f"prefer={prefer!r}: it is 'first', 'last' or None")
    if not trees:
        raise ValueError("there is nothing to merge")
    if at is not None and len(at) != len(trees):
        raise ValueError(f"at has {len(at)} paths for {len(trees)} trees")
    placed = trees if at is None else [_placed(tree, path) for tree, path in zip(trees, at, strict=True)]
    result = placed[0]
    clashes: list[str] = []
    for tree in placed[1:]:
        result = _merged(result, tree, prefer, clashes)
    if clashes:
        more = [f"and {len(clashes) - _SHOWN} more"] if len(clashes) > _SHOWN else []
        raise StructureMismatchError(
            'several of the trees have these; give prefer="first" or "last", or put one elsewhere with at=:\n  '
            + "\n  ".join([*clashes[:_SHOWN], *more]),
            mismatched=clashes,
        )
    return result


def _placed(tree: Any, path: str | Path | None) -> Any:
    steps = Path.parse(path) if isinstance(path, str) else path or Path()
    for step in reversed(steps):
        if not isinstance(step, DictKey):
            raise PathError(f"at={str(steps)!r}: {step} is no dict key, and trees are put into dicts only")
        tree = {step.key: tree}
    return tree


def _merged(first: Any, second: Any, prefer: Prefer | None, clashes: list[str]) -> Any:
    """Both in new dicts; iterative, so that any depth will do."""
    root: dict[str, Any] = {}
    # What is to be merged, and where the result goes: a dict and its key.
    stack: list[tuple[Any, Any, Path, dict[Any, Any], Any]] = [(first, second, Path(), root, "")]
    while stack:
        a, b, path, parent, key = stack.pop()
        if not (is_mapping(a) and is_mapping(b)):
            if prefer is None:
                clashes.append(str(path) or "the root")
            parent[key] = b if prefer == "last" else a
            continue
        own, other = data_of(a), data_of(b)
        new = dict(own)
        parent[key] = like_mapping(a, new)
        both = [name for name in other if name in own]
        new.update((name, value) for name, value in other.items() if name not in own)
        stack.extend((own[name], other[name], Path((*path, DictKey(name))), new, name) for name in reversed(both))
    return root[""]


def is_mapping(value: object) -> bool:
    """Whether a value of a built tree is a dict, or what stands for an OrderedDict or another mapping."""
    return type(value) is dict or (isinstance(value, Record) and record_expansion(value).type.name in _MAPPINGS)


def like_mapping(mapping: object, items: dict[Any, Any]) -> object:
    """These items as what a mapping of a built tree is."""
    if not isinstance(mapping, Record):
        return items
    return build_record(record_expansion(mapping).type, [items])
