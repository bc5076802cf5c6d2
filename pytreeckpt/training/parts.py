"""Objects of a training, one by one: how each is captured, and how it is held against what was saved."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Differences:
    """What does not fit between an object and what was saved of it, as texts that begin with the object's name.

    `missing`: what the object has and the checkpoint has not; `unexpected`: the reverse; `mismatched`: what both have,
    differently; `notes`: what fits, and is worth knowing.
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, others: Differences) -> None:
        """These as well."""
        self.missing += others.missing
        self.unexpected += others.unexpected
        self.mismatched += others.mismatched
        self.notes += others.notes


def differing(name: str, of_object: Iterable[str], of_checkpoint: Iterable[str]) -> Differences:
    """The names that only one of both has, in their order."""
    ours, theirs = dict.fromkeys(of_object), dict.fromkeys(of_checkpoint)
    return Differences(
        [f"{name}/{each}" for each in ours if each not in theirs],
        [f"{name}/{each}" for each in theirs if each not in ours],
    )


@dataclass(frozen=True, slots=True)
class Part:
    """One object held against what was saved of it. `apply()` puts that into it, as far as it fits, and returns it, or
    what takes its place; nothing has changed before. Parts of a lower `rank` are applied first.
    """

    differences: Differences
    apply: Callable[[], object]
    rank: int = 0


@dataclass(frozen=True, slots=True)
class Role:
    """What a kind of object is to a training, for example an optimizer.

    `capture(object)` gives its state as a tree, without changing or copying it; `plan(name, object, state)` what
    putting a state back comes to. `name` is what the header calls it; None for plain values, which are their own state.
    """

    name: str | None
    matches: Callable[[object], bool]
    capture: Callable[[Any], object]
    plan: Callable[[str, Any, Any], Part]


def copied(tree: Any) -> Any:
    """A tree in new containers, with the same leaves: what is done to one is not seen in the other."""
    if isinstance(tree, dict):
        # With what a subclass knows besides.
        new = {} if type(tree) is dict else copy.copy(tree)
        for key, value in tree.items():
            new[key] = copied(value)
        return new
    if type(tree) in {list, tuple}:
        return type(tree)(copied(value) for value in tree)
    return copy.copy(tree) if isinstance(tree, set | bytearray) else tree
