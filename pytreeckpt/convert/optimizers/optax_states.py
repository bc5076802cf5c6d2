"""States of optax in a tree: found by the names of their fields, and by parameters' names within them.

A field such as `mu` holds a subtree with the names of the parameters, of which some may be masked: it is where what
follows it ends the path of a parameter. The sources are optax/_src/transform.py and optax/transforms.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Final

from pytreeckpt.convert.names import steps_of
from pytreeckpt.convert.records import Inventory, Leaf, Name
from pytreeckpt.paths import DictKey, Field, Index, Path

_VALUE: Final = Field("value")
_BESIDE: Final = ("count", "t", "is_initial_step", "rng_key")
"""What is in a state besides, of no parameter."""


@dataclass(frozen=True, slots=True)
class OptaxState:
    """A state: where it is, the names of all its fields, and of those that are of parameters the leaves, by the path
    of the parameter.
    """

    path: Path
    fields: frozenset[str]
    slots: Mapping[str, Mapping[Path, Leaf]]

    @property
    def parameters(self) -> frozenset[Path]:
        """The parameters of which it has something."""
        return frozenset(path for leaves in self.slots.values() for path in leaves)


@dataclass(frozen=True, slots=True)
class FoundStates:
    """The states in a tree; those whose parameters could be several, as problems; the fields of every node."""

    states: tuple[OptaxState, ...]
    problems: tuple[str, ...]
    children: Mapping[Path, frozenset[str]]


def step_text(step: object) -> str:
    """A step as one text, whatever its key."""
    return "\0".join(steps_of((step,)))


def texts_of(path: Iterable[object]) -> Name:
    """The steps of a path as texts, as many as it has."""
    return tuple(map(step_text, path))


def children_of(paths: Iterable[Path]) -> dict[Path, frozenset[str]]:
    """The texts of the steps that follow each beginning of the paths."""
    found: dict[Path, set[str]] = {}
    for path in paths:
        for depth in range(len(path)):
            found.setdefault(Path(path[:depth]), set()).add(step_text(path[depth]))
    return {path: frozenset(each) for path, each in found.items()}


def without_variables(paths: Iterable[Path]) -> dict[Path, Path]:
    """The paths by themselves without a last step that is a variable's value: variables of Flax's nnx are nodes of
    pytrees, whose only child is their `value`.
    """
    every = list(paths)
    children = children_of(every)
    return {
        Path(path[:-1]) if path and path[-1] == _VALUE and len(children[Path(path[:-1])]) == 1 else path: path
        for path in every
    }


def find_states(target: Inventory, fields: Collection[str]) -> FoundStates:
    """The states that have any of these fields of parameters, and no others but counts and the like. The leaves of
    `target.rest` are by their paths without variables.
    """
    beside = {*fields, *_BESIDE}
    by_path = {leaf.path: leaf for leaf in target.model.leaves.values()}
    bare = without_variables(by_path)
    children = children_of([*target.rest, *bare])
    shapes = {texts_of(path): by_path[whole] for path, whole in bare.items()}
    prefixes: dict[Name, list[Name]] = {}
    for texts in shapes:
        for depth in range(len(texts) + 1):
            prefixes.setdefault(texts[depth:], []).append(texts[:depth])
    nodes: dict[Path, dict[str, dict[Name, Leaf]]] = {}
    for path, leaf in target.rest.items():
        texts = texts_of(path)
        for depth, text in enumerate(texts):
            rest = texts[depth + 1 :]
            if text not in fields or not children[Path(path[:depth])] <= beside:
                continue
            if any(shapes[(*prefix, *rest)].shape == leaf.shape for prefix in prefixes.get(rest, ())):
                nodes.setdefault(Path(path[:depth]), {}).setdefault(text, {})[rest] = leaf
                break
    candidates: dict[Path, set[Name]] = {}
    for path, slots in nodes.items():
        names = {rest for each in slots.values() for rest in each}
        candidates[path] = set(_nearest(set.intersection(*({*prefixes[rest]} for rest in names)), texts_of(path)))
    # A state of few parameters, as there are in parts of a model, may leave it open: it is of what the others are of.
    decided = {*chain.from_iterable(each for each in candidates.values() if len(each) == 1)}
    model = _beginning(shapes)
    states: list[OptaxState] = []
    problems: list[str] = []
    for path, slots in nodes.items():
        found = candidates[path]
        # States are of parameters: an average of them, a collection beside them, is not what was optimised.
        optimised = {prefix for prefix in found if not _is_of_buffers(prefix, slots, shapes, target.model.buffers)}
        for narrower in (optimised, found & decided, found & {model}):
            found = narrower if len(found) > 1 and narrower else found
        if len(found) != 1:
            first = ", ".join("/".join(each) or "the root" for each in sorted(found)[:3])
            what = f"could be those of parameters at {first}" if found else "are of no one model"
            problems.append(f"{path}: its leaves {what}: convert a tree that has one model and its optimizer")
            continue
        (prefix,) = found
        states.append(
            OptaxState(
                path,
                children[path],
                {
                    field: {shapes[(*prefix, *rest)].path: leaf for rest, leaf in each.items()}
                    for field, each in slots.items()
                },
            )
        )
    return FoundStates(tuple(states), tuple(problems), children)


def _is_of_buffers(
    prefix: Name, slots: Mapping[str, Mapping[Name, Leaf]], shapes: Mapping[Name, Leaf], buffers: Collection[Name]
) -> bool:
    return all(shapes[(*prefix, *rest)].name in buffers for each in slots.values() for rest in each)


def _nearest(prefixes: Collection[Name], near: Name) -> list[Name]:
    """Those that have most of their first steps in common with the path of a state."""
    lengths = {prefix: _common(prefix, near) for prefix in prefixes}
    longest = max(lengths.values(), default=0)
    return [prefix for prefix, length in lengths.items() if length == longest]


def _beginning(names: Iterable[Name]) -> Name:
    """The first steps that all names have in common."""
    found: Name | None = None
    for name in names:
        found = name[:-1] if found is None else found[: _common(found, name[:-1])]
    return found or ()


def _common(a: Name, b: Name) -> int:
    return next((depth for depth, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def position_in_chain(path: Path) -> int | None:
    """Where a state is in the tuple of an `optax.chain`, from the last step of its path."""
    match path[-1] if path else None:
        case Index(index):
            return index
        case DictKey(int(index)):
            return index
    return None
