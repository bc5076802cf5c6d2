"""Other names for what is in a tree: rules on the texts of paths, of which no two may lead to the same place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from pytreeckpt.errors import PathError, StructureMismatchError
from pytreeckpt.operations.lazy import data_of, lazy
from pytreeckpt.operations.merging import is_mapping, like_mapping
from pytreeckpt.paths import DictKey, Path, suggest

Rename = Mapping[str, str] | Callable[[str], str]
"""Beginnings of names and what they become, or a function from name to name."""

_SHOWN: Final = 20
_SEPARATORS: Final = ("/", ".", "[")


def renamed(tree: object, rename: Rename) -> Any:
    """A tree whose dicts have other keys, for `save`; nothing of references has been read.

    A name is the text of the path to a leaf, such as `encoder/layers.0.weight`, or to a list, tuple or record, which
    goes where it goes as a whole.

    `rename`: a function from name to name; or a mapping of beginnings, which end where a part of a name does (`fc` is
    one of `fc.weight` and `fc/bias`, and not of `fc2.weight`; `model.` is one of all that begins so; the empty one is
    one of all): of several, the longest applies, once. Dicts on the way are made and, when nothing is left, gone.
    Raises `StructureMismatchError` for two leaves of one name, and for a beginning that no name has; `PathError` for a
    name that is no path of dict keys.
    """
    return rename_built(lazy(tree).build()[1], rename)


def rename_built(tree: Any, rename: Rename) -> Any:
    """As `renamed`, of a tree that is built of a lazy one."""
    names = _named(tree)
    texts = {path: str(path) for path, _ in names}
    to_name = rename if callable(rename) else _by_beginning(rename, list(texts.values()))
    new = {path: _parsed(to_name(text), text) for path, text in texts.items()}
    if all(path == target for path, target in new.items()):
        return tree
    _check_apart(new)
    mappings = dict(_mappings(tree))
    # The dicts of the result by their paths: where there was one before, as it was.
    made: dict[Path, dict[Any, Any]] = {Path(): {}}
    for path, value in names:
        target = new[path]
        for depth in range(1, len(target)):
            _within(made, Path(target[:depth]), mappings)
        made[Path(target[:-1])][_last_key(target)] = value
    return like_mapping(mappings.get(Path()), made[Path()])


def _within(made: dict[Path, dict[Any, Any]], path: Path, mappings: Mapping[Path, object]) -> None:
    if path not in made:
        made[path] = {}
        made[Path(path[:-1])][_last_key(path)] = like_mapping(mappings.get(path), made[path])


def _last_key(path: Path) -> Any:
    step = path[-1]
    return step.key if isinstance(step, DictKey) else None


def _named(tree: object) -> list[tuple[Path, Any]]:
    """What has a name: all that is in dicts and is no dict with something in it, in order."""
    found: list[tuple[Path, Any]] = []
    stack: list[tuple[Path, Any]] = [(Path(), tree)]
    while stack:
        path, value = stack.pop()
        items = data_of(value) if is_mapping(value) else {}
        if items:
            stack.extend((Path((*path, DictKey(key))), child) for key, child in reversed(items.items()))
        elif path:
            found.append((path, value))
    if not found:
        raise StructureMismatchError("rename: this is no dict with names in it")
    return found


def _mappings(tree: object) -> list[tuple[Path, Any]]:
    found: list[tuple[Path, Any]] = []
    stack: list[tuple[Path, Any]] = [(Path(), tree)]
    while stack:
        path, value = stack.pop()
        if is_mapping(value):
            found.append((path, value))
            stack.extend((Path((*path, DictKey(key))), child) for key, child in data_of(value).items())
    return found


def _by_beginning(rules: Mapping[str, str], names: Sequence[str]) -> Callable[[str], str]:
    ordered = sorted(rules, key=len, reverse=True)
    for old in ordered:
        if not any(_begins(name, old) for name in names):
            close = suggest(old, names, count=3, cutoff=0.5) or list(names[:3])
            raise StructureMismatchError(f"rename {old!r} begins no name; there is {', '.join(close)}", missing=[old])

    def to_name(name: str) -> str:
        rule = next((old for old in ordered if _begins(name, old)), None)
        return name if rule is None else rules[rule] + name[len(rule) :]

    return to_name


def _begins(name: str, old: str) -> bool:
    rest = name[len(old) :]
    return name.startswith(old) and (not old or not rest or old.endswith(_SEPARATORS) or rest.startswith(_SEPARATORS))


def _parsed(text: object, old: str) -> Path:
    if not isinstance(text, str):
        raise TypeError(f"rename gave a {type(text).__name__} for {old!r}, not a str")
    path = Path.parse(text)
    if not path or not all(isinstance(step, DictKey) for step in path):
        raise PathError(f"rename: {old!r} would become {text!r}, which is no path of dict keys")
    return path


def _check_apart(new: Mapping[Path, Path]) -> None:
    by_target: dict[Path, list[Path]] = {}
    for old, target in new.items():
        by_target.setdefault(target, []).append(old)
    clashes = [f"{', '.join(map(str, olds))} → {target}" for target, olds in by_target.items() if len(olds) > 1]
    clashes += [
        f"{olds[0]} → {target}, in {by_target[Path(target[:depth])][0]} → {Path(target[:depth])}"
        for target, olds in by_target.items()
        for depth in range(1, len(target))
        if Path(target[:depth]) in by_target
    ]
    if clashes:
        more = [f"and {len(clashes) - _SHOWN} more"] if len(clashes) > _SHOWN else []
        raise StructureMismatchError(
            "rename: several would have one name:\n  " + "\n  ".join([*clashes[:_SHOWN], *more]), mismatched=clashes
        )
