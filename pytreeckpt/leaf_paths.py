"""From the arrays of an index to the leaves that hold them, for errors."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property

from pytreeckpt.index import Index
from pytreeckpt.nodes import ARRAY, SCALAR, walk
from pytreeckpt.paths import Path


class Paths:
    """The paths of the leaves that hold each array, worked out when first needed."""

    def __init__(self, index: Index) -> None:
        self.index = index

    @cached_property
    def by_array(self) -> Mapping[int, list[str]]:
        """The texts of the paths of each array."""
        found: dict[int, list[str]] = {}
        # The structure of the tree may not have been checked yet, and then it ends where it breaks a rule.
        with suppress(IndexError):
            for visit in walk(self.index.nodes):
                if visit.kind in {ARRAY, SCALAR}:
                    found.setdefault(self.index.nodes.arrays[visit.entry], []).append(str(Path(visit.path)))
        return found

    def first(self, array: int) -> str:
        """The path of the first leaf that holds an array."""
        # A file may hide an array where paths do not lead, in a set-like or atomic object.
        return self.by_array.get(array, [f"array {array}"])[0]
