"""A plan while it is being made: entries, what is taken already, and all that is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pytreeckpt.convert.names import text_of
from pytreeckpt.convert.operations import Operations
from pytreeckpt.convert.records import Entry, Leaf, Model, Name, Quantity
from pytreeckpt.convert.shapes import result_shapes
from pytreeckpt.paths import Path


@dataclass(slots=True)
class Draft:
    """`source` and `target`: the models, of which `sources` and `targets` are taken. `unmatched`: the layers of the
    source without a counterpart, with the names that it would have; `lacking`: leaves of the target that a layer of
    torch has not, with what can be done; `ambiguous` and `mismatched`: texts; `notes`: what to see to, and the layers
    that it is about.
    """

    source: Model
    target: Model
    entries: list[Entry] = field(default_factory=list)
    sources: set[Name] = field(default_factory=set)
    targets: set[Name] = field(default_factory=set)
    unmatched: dict[Name, Name] = field(default_factory=dict)
    lacking: dict[Name, str] = field(default_factory=dict)
    ambiguous: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)

    def add(self, sources: Sequence[Leaf], targets: Sequence[Leaf], operations: Operations, reason: str) -> None:
        """Add an entry. Raises `ValueError` if shapes do not fit, or a leaf is taken already."""
        again = [leaf for leaf in sources if leaf.name in self.sources]
        again += [leaf for leaf in targets if leaf.name in self.targets]
        if again:
            raise ValueError(f"{text_of(again[0].name)} is used twice")
        shapes = result_shapes(operations, [leaf.shape for leaf in sources])
        wanted = [leaf.shape for leaf in targets]
        if shapes != wanted:
            raise ValueError(
                f"{listed(sources)} come to {_shapes(shapes)}, and {listed(targets)} are {_shapes(wanted)}"
            )
        self.entries.append(Entry(paths(sources), paths(targets), operations, self._quantity(sources, targets), reason))
        self.sources.update(leaf.name for leaf in sources)
        self.targets.update(leaf.name for leaf in targets)

    def _quantity(self, sources: Sequence[Leaf], targets: Sequence[Leaf]) -> Quantity:
        is_buffer = any(leaf.name in self.source.buffers for leaf in sources)
        return "buffer" if is_buffer or any(leaf.name in self.target.buffers for leaf in targets) else "parameter"

    def note(self, text: str, layer: Name) -> None:
        """Add a note about a layer."""
        self.notes.setdefault(text, []).append(text_of(layer) or "the model itself")


def paths(leaves: Iterable[Leaf]) -> tuple[Path, ...]:
    """The paths of leaves."""
    return tuple(leaf.path for leaf in leaves)


def listed(leaves: Iterable[Leaf]) -> str:
    """Leaves by name, for people."""
    return ", ".join(text_of(leaf.name) for leaf in leaves) or "nothing"


def _shapes(shapes: Sequence[Sequence[int]]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes) or "nothing"
