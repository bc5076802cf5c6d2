"""What becomes of what an optimizer knows of parameters: the entries of its moments, from those of the parameters.

A moment goes the way of its parameter, by the operations that mean the same for it (`of_moment`), but for tied names,
of which torch keeps one, and for dtypes, which are its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pytreeckpt.convert.operations import (
    Affine,
    Cast,
    Drop,
    Fill,
    First,
    Operation,
    Operations,
    Repeat,
    SumPair,
    Tie,
    describe_operation,
    of_moment,
)
from pytreeckpt.convert.optimizers.table import Slot
from pytreeckpt.convert.records import Entry, Leaf, Quantity
from pytreeckpt.convert.shapes import result_shapes
from pytreeckpt.dtypes import AnyDType
from pytreeckpt.paths import Path


def quantity_of(slot: Slot) -> Quantity:
    """Which of both moments a slot is taken for."""
    return "second moment" if abs(slot.order) == 2 else "first moment"


def operations_of(operations: Operations, slot: Slot, *, tied: bool) -> Operations:
    """What operations on parameters do to a slot. `tied`: the names that they tie are one already."""
    found: list[Operation] = []
    for operation in operations:
        match operation:
            case Cast():
                continue
            case Tie() if tied:
                continue
            case Affine(scale, _):
                factor = abs(scale) ** -slot.order
                signed = slot.order % 2 == 1 or slot.order == 0
                factor = -factor if signed and scale < 0 and not slot.absolute else factor
                found += [Affine(factor)] if factor != 1 else []
            case _:
                found.append(of_moment(operation, slot.order))
    return tuple(found)


def notes_of(operations: Operations) -> list[str]:
    """What a program has to see to, because an operation changes what a gradient is."""
    notes: list[str] = []
    for operation in operations:
        match operation:
            case Affine(scale, _) if abs(scale) != 1:
                notes.append(
                    f"the values are {describe_operation(operation)}: their learning rate is to be {abs(scale):g} "
                    f"times as large ({scale * scale:g} times without second moments), and eps counts otherwise"
                )
            case SumPair():
                notes.append(
                    "two biases of torch, which are only ever added, are one here: with one learning rate it goes half "
                    "as far as both together, so it is to be twice as large; weight decay of both is not the same"
                )
            case Repeat():
                notes.append(
                    "one parameter of torch is several here, which no longer share their gradients: tie them, or they "
                    "part"
                )
            case _:
                continue
    return notes


@dataclass(frozen=True, slots=True)
class Move:
    """A slot of some parameters on its way: its leaves on both sides, and what their parameters' entry does."""

    sources: Sequence[Leaf]
    targets: Sequence[Leaf]
    parameter: Entry
    slot: Slot
    scale: float
    reason: str


def move_entry(move: Move, *, tied: bool) -> Entry | str:
    """The entry that moves a slot, or what does not fit. Casts are for who knows whether values may be rounded."""
    operations = [*operations_of(move.parameter.operations, move.slot, tied=tied)]
    if move.scale != 1:
        operations.append(Affine(move.scale))
    try:
        shapes = result_shapes(tuple(operations), [leaf.shape for leaf in move.sources])
    except ValueError as error:
        return f"{move.sources[0].path}: {error}"
    if shapes != [leaf.shape for leaf in move.targets]:
        return (
            f"{move.sources[0].path} comes to shape {', '.join(map(str, map(list, shapes)))}, and "
            f"{move.targets[0].path} has {', '.join(str(list(leaf.shape)) for leaf in move.targets)}"
        )
    return Entry(
        tuple(leaf.path for leaf in move.sources),
        tuple(leaf.path for leaf in move.targets),
        tuple(operations),
        quantity_of(move.slot),
        move.reason,
    )


def _one_dtype(leaves: Sequence[Leaf]) -> AnyDType | None:
    dtypes = {leaf.dtype for leaf in leaves}
    return dtypes.pop() if len(dtypes) == 1 else None


def fill_entry(leaf: Leaf, value: float, quantity: Quantity, reason: str) -> Entry:
    """A leaf of optax that has no source."""
    return Entry((), (leaf.path,), (Fill(leaf.shape, leaf.dtype.name, value),), quantity, reason)


def drop_entry(leaf: Leaf, quantity: Quantity, reason: str) -> Entry:
    """A leaf of torch that has no place in optax; on the way back it is what was kept of it, or zeros."""
    return Entry((leaf.path,), (), (Drop(1, Fill(leaf.shape, leaf.dtype.name)),), quantity, reason)


def count_entry(steps: Sequence[Leaf], count: Leaf, reason: str, *, first: bool = False) -> Entry | str:
    """The steps of parameters, which are equal, to a count. `first`: they may differ, and the first is taken."""
    dtype = _one_dtype(steps)
    if dtype is None:
        return f"{steps[0].path} and {len(steps) - 1} others have several dtypes"
    ties: list[Operation] = [] if len(steps) == 1 else [First(len(steps)) if first else Tie(len(steps))]
    casts = [Cast(dtype.name, count.dtype.name)] if dtype != count.dtype else []
    return Entry(tuple(leaf.path for leaf in steps), (count.path,), (*ties, *casts), "count", reason)


def tied_sources(entry: Entry, known: Mapping[Path, Path]) -> tuple[Entry, bool]:
    """The entry of parameters without those names of tied ones that the optimizer does not have; and whether tied names
    are one then. `known`: for each source, the path by which the optimizer knows the same parameter.
    """
    paths = [known.get(path, path) for path in entry.sources]
    ties = any(isinstance(operation, Tie) and operation.count == len(paths) for operation in entry.operations)
    if ties and len(set(paths)) == 1:
        return replace(entry, sources=(paths[0],)), True
    return replace(entry, sources=tuple(paths)), False
