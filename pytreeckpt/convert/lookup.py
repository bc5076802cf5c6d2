"""Finding the layer or leaf of the other side that a name stands for.

Names are the same if they are equal, or equal but for how they number their parts. A layer within a `Sequential` may be
below `layers` on the other side, since that is what the frameworks of JAX call them. Renames come first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

from pytreeckpt.convert.names import canonical, fill_template, match_beginning, parts_of, text_of
from pytreeckpt.convert.records import Layer, Leaf, Model, Name
from pytreeckpt.convert.rules import Rename, Scan
from pytreeckpt.errors import StructureMismatchError
from pytreeckpt.paths import suggest

_MAX_INSERTED: Final = 4


class Names:
    """The names of a model, to be found by how they are written or canonically."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.by_canonical: dict[Name, list[Name]] = {}
        self.below: dict[Name, list[Name]] = {}
        for name in model.leaves:
            self.by_canonical.setdefault(canonical(name), []).append(name)
            plain = canonical(name)
            for depth in range(len(plain)):
                self.below.setdefault(plain[:depth], []).append(name)
        self.layers: dict[Name, list[Name]] = {}
        for name in model.layers:
            self.layers.setdefault(canonical(name), []).append(name)

    def leaf(self, name: Name) -> Leaf | None:
        """The leaf of this name. Raises `LookupError` if there are several."""
        if name in self.model.leaves:
            return self.model.leaves[name]
        found = self.by_canonical.get(canonical(name), [])
        if len(found) > 1:
            raise LookupError(f"{text_of(name)} may be {' or '.join(map(text_of, found))}")
        return self.model.leaves[found[0]] if found else None

    def within(self, layer: Name) -> Mapping[str, Leaf]:
        """The leaves at and below a layer, by their names relative to it, joined by `/`: of what is written alike, or
        else of what is numbered otherwise. Raises `StructureMismatchError` if that may be several.
        """
        spelled = self._spelled(layer)
        if len(spelled) > 1:
            raise StructureMismatchError(
                f"{text_of(layer)} may be {' or '.join(map(text_of, spelled))}: say which with a rename"
            )
        return {
            "/".join(name[len(each) :]): self.model.leaves[name] for each, names in spelled.items() for name in names
        }

    def has_layer(self, layer: Name, *, apart_from: Collection[Name] = ()) -> bool:
        """Whether any leaf is at or below a layer of this name. `apart_from`: leaves that do not count."""
        return any(name not in apart_from for names in self._spelled(layer).values() for name in names)

    def _spelled(self, layer: Name) -> dict[Name, list[Name]]:
        """The leaves of a layer, by how its name is written: in this way, if it is."""
        plain = canonical(layer)
        found: dict[Name, list[Name]] = {}
        for name in self.below.get(plain, ()):
            depth = _depth(name, plain)
            if depth is not None:
                found.setdefault(name[:depth], []).append(name)
        return {layer: found[layer]} if layer in found else found

    def layer(self, name: Name) -> Layer | None:
        """What was recorded of a layer: of that which is written alike, or else of the only other one."""
        found = [name] if name in self.model.layers else self.layers.get(canonical(name), [])
        return self.model.layers[found[0]] if len(found) == 1 else None


def layers_of(model: Model) -> list[Name]:
    """The names of all layers of a model that have leaves, the outermost first."""
    found = dict.fromkeys(name[:depth] for name in model.leaves for depth in range(len(name)))
    return sorted(found, key=len)


def _depth(name: Name, plain: Name) -> int | None:
    """How many steps of a name are the layer of this canonical name: what is numbered may have been one or two."""
    return next((depth for depth in range(len(name)) if canonical(name[:depth]) == plain), None)


def renamed(name: Name, renames: Sequence[Rename]) -> Name:
    """A name of torch with all renames applied."""
    for rename in renames:
        found = match_beginning(rename.source, name)
        if found is not None:
            captures, rest = found
            name = (*fill_template(rename.target, captures), *rest)
    return name


@dataclass(frozen=True, slots=True)
class Place:
    """Where a layer goes in a stack: the rule that says so, the number of the layer, and the name of the stack."""

    scan: Scan
    number: int
    name: Name


def scanned(name: Name, scans: Sequence[Scan]) -> Place | None:
    """The place of a layer of torch in a stack; None if it is in none."""
    for scan in scans:
        found = match_beginning(scan.source, name)
        part = number_of(scan)
        if found is not None and part is not None and found[0][part].isdecimal():
            captures, rest = found
            return Place(scan, int(captures[part]), (*fill_template(scan.target, captures), *rest))
    return None


def number_of(scan: Scan) -> str | None:
    """The part of its pattern that numbers the layers of a stack: the only one that its target does not have."""
    numbers = [part for part in parts_of(scan.source) if part not in parts_of(scan.target)]
    return numbers[0] if len(numbers) == 1 else None


def possible_names(name: Name, layers: Mapping[Name, Layer]) -> Iterator[Name]:
    """What a layer of torch may be called in JAX: as it is, and with `layers` after each `Sequential` that it is in, or
    that it may be in, since nobody knows what has a number there.
    """
    places = [
        depth
        for depth, step in enumerate(name)
        if is_sequential(layers, name[:depth]) or (step.isdecimal() and name[:depth] not in layers)
    ][:_MAX_INSERTED]
    for chosen in product((False, True), repeat=len(places)):
        yield with_layers(name, {place for place, is_chosen in zip(places, chosen, strict=True) if is_chosen})


def with_layers(name: Name, places: Collection[int]) -> Name:
    """A name with `layers` before the steps at these places."""
    return tuple(each for depth, step in enumerate(name) for each in (("layers", step) if depth in places else (step,)))


def is_sequential(layers: Mapping[Name, Layer], name: Name) -> bool:
    """Whether a layer is known to be a `Sequential`."""
    layer = layers.get(name)
    return layer is not None and layer.kind == "torch.nn.Sequential"


def close_names(name: Name, candidates: Sequence[Name]) -> list[str]:
    """Names that are most like one, for an error."""
    return suggest(text_of(canonical(name)), [text_of(each) for each in candidates], count=3, cutoff=0.5)
