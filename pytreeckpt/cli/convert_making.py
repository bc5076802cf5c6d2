"""A plan, carried out while its result is written: each entry when the first of its arrays is asked for."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import numpy as np

from pytreeckpt.arrays import AnyArray
from pytreeckpt.cli.convert_leaves import Files, Load, supplied, wrapped_as
from pytreeckpt.convert import Entry, Plan
from pytreeckpt.convert.applying import convert_arrays
from pytreeckpt.convert.leaves import FoundLeaf, leaves_of, plain_path
from pytreeckpt.convert.names import steps_of
from pytreeckpt.convert.operations import INEXACT, LOSSY, Repeat
from pytreeckpt.convert.rebuilding import mapped, nested
from pytreeckpt.errors import ConversionError
from pytreeckpt.objects import ClassKind, ObjectType, build_record
from pytreeckpt.paths import Path
from pytreeckpt.references import ArrayRef
from pytreeckpt.template import is_number, number_for

Values = Mapping[Path, FoundLeaf]
"""The leaves of a tree by their plain paths."""
Residuals = Mapping[str, object]
"""What was kept, by the texts of paths: arrays, or references to them."""

_JAX_ARRAY = ObjectType(ClassKind.WRAPPER, "jax.Array", ("data", "weak_type"))


@dataclass(frozen=True, slots=True)
class Sides:
    """What a plan is carried out on: the leaves of the source by plain path, the target's own, what was kept on the way
    here, and the files in which all of them are.
    """

    values: Values
    own: Values
    residuals: Residuals
    files: Files

    def array(self, value: Any) -> Any:
        """A leaf, read if it is a reference."""
        return self.files.load(value) if isinstance(value, ArrayRef) else value


def run_entry(plan: Plan, entry: Entry, sides: Sides) -> tuple[dict[Path, AnyArray], dict[str, AnyArray]]:
    """The arrays of the target that an entry makes, by plain path, and what it keeps. Raises `ConversionError`."""
    values = {
        plain_path(path): replace(leaf, value=sides.array(leaf.value))
        for path in entry.sources
        if (leaf := sides.values.get(plain_path(path))) is not None
    }
    own = {
        plain_path(path): replace(leaf, value=sides.array(leaf.value))
        for path in entry.targets
        if not entry.sources and (leaf := sides.own.get(plain_path(path))) is not None
    }
    residuals = {
        text: np.asarray(sides.array(sides.residuals[text]))
        for text in map(str, entry.targets)
        if text in sides.residuals
    }
    arrays, kept = convert_arrays([entry], values, plan.source, plan.target, residuals=residuals, own=own)
    return {plain_path(path): array for path, array in arrays.items()}, kept


class _Made:
    """The arrays of an entry, made together when the first one is asked for, and each given away once."""

    def __init__(self, plan: Plan, entry: Entry, sides: Sides) -> None:
        self._of = plan, entry, sides
        self._left: dict[Path, AnyArray] = {}
        self._lock = Lock()

    def take(self, path: Path) -> AnyArray:
        """The array of one target."""
        with self._lock:
            if path not in self._left:
                self._left, _ = run_entry(*self._of)
            return self._left.pop(path)


def made_leaves(plan: Plan, sides: Sides, template: Values) -> dict[Path, object]:
    """What stands in the target's tree for each leaf that the plan makes, by plain path: arrays to be made when they
    are asked for, and numbers.
    """
    found: dict[Path, object] = {}
    for entry in plan.entries:
        made = _Made(plan, entry, sides)
        repeats = bool(entry.operations) and isinstance(entry.operations[-1], Repeat)
        shared = _shared(entry, sides.values)
        for place, path in enumerate(map(plain_path, entry.targets)):
            leaf = template.get(path)
            if leaf is not None and is_number(leaf.value):
                found[path] = number_of(path, leaf.value, made.take(path))
                continue
            spec = plan.target[entry.targets[place]]
            identity = None
            if leaf is not None and leaf.identity is not None:
                # Tied leaves stay tied if they are made alike.
                identity = (leaf.identity, entry.operations, shared, 0 if repeats else place)
            array = supplied(_loader(made, path), spec.dtype, spec.shape, meter=sides.files.meter, identity=identity)
            found[path] = array if leaf is None else wrapped_as(leaf.value, array)
    return found


def _loader(made: _Made, path: Path) -> Load:
    return lambda: made.take(path)


def _shared(entry: Entry, values: Values) -> tuple[Hashable, ...]:
    leaves = [values.get(plain_path(path)) for path in entry.sources]
    return tuple(
        path if leaf is None or leaf.identity is None else leaf.identity
        for path, leaf in zip(entry.sources, leaves, strict=True)
    )


def number_of(path: Path, template: object, array: AnyArray) -> object:
    """An array of rank 0 as the number that stands at a path. Raises `ConversionError` if that cannot hold it."""
    try:
        return number_for(template, array)
    except ValueError as error:
        raise ConversionError(f"{path}: {error}", mismatched=[f"{path}: {error}"]) from None


def made_tree(plan: Plan, sides: Sides, template: object | None) -> Any:
    """The result as a tree: the template with what the plan makes in it, or, without one, a tree of arrays of JAX."""
    if template is None:
        leaves = made_leaves(plan, sides, {})
        places = nested({path: np.empty(0) for path in leaves})
        return mapped(places, lambda path, _value: build_record(_JAX_ARRAY, [leaves[plain_path(path)], False]))
    leaves = made_leaves(plan, sides, {plain_path(leaf.path): leaf for leaf in leaves_of(template)})

    def place(path: Path, value: object) -> object:
        plain = plain_path(path)
        return leaves[plain] if plain in leaves else sides.files.leaf(value)

    return mapped(template, place)


def kept_paths(plan: Plan, sides: Sides) -> list[Path]:
    """The paths of the leaves that have to be kept for the way back to be exact to the bit. Reads what may lose."""
    kept: set[str] = set()
    for entry in plan.entries:
        if entry.sources and not entry.targets:
            kept.update(map(str, entry.sources))
        elif any(isinstance(operation, (*LOSSY, *INEXACT)) for operation in entry.operations):
            kept.update(run_entry(plan, entry, sides)[1])
    return [path for entry in plan.entries for path in entry.sources if str(path) in kept]


def values_in(tree: object, wanted: Iterable[Path], aliases: Mapping[str, str]) -> Values:
    """The leaves of a tree by plain path, also where a format has made one name of a path: `a.b.0` of `a/b[0]`.

    `wanted`: the paths that are looked for; `aliases`: names, and those whose arrays they have too.
    """
    found = {plain_path(leaf.path): leaf for leaf in leaves_of(tree)}
    flat: dict[str, FoundLeaf | None] = {}
    for path, leaf in found.items():
        name = ".".join(steps_of(path))
        # Two of one name are none.
        flat[name] = None if name in flat else leaf
    for path in map(plain_path, wanted):
        name = ".".join(steps_of(path))
        other = flat.get(name) or flat.get(aliases.get(name, ""))
        if path not in found and other is not None:
            found[path] = other
    return found
