"""Targets that are only named: the tree that a model of torch comes to by the conventions of a framework.

Layouts that are not decided are the framework's defaults (`ConvTranspose` with `transpose_kernel=False`, for example).
Items of a `Sequential` are below `layers`; those of other lists are numbered as the framework does it: `blocks_0` in
linen, `blocks` and an integer in nnx, an item of a list in Equinox.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pytreeckpt.convert.layers import TABLES
from pytreeckpt.convert.layers.variants import Side
from pytreeckpt.convert.lookup import Names, is_sequential, layers_of, renamed, with_layers
from pytreeckpt.convert.names import match_name, text_of
from pytreeckpt.convert.records import Convention, Inventory, Leaf, Model, Name
from pytreeckpt.convert.rules import Choose, Drop, Rename, Rule, of_type
from pytreeckpt.convert.shapes import result_shapes
from pytreeckpt.errors import StructureMismatchError
from pytreeckpt.paths import DictKey, Index, Path, Step

SCHEMES: Final[dict[str, Convention]] = {"linen": "flax", "nnx": "flax", "equinox": "equinox"}


@dataclass(frozen=True, slots=True)
class NamedTarget:
    """A target, and the rules that say which layouts it was made of."""

    inventory: Inventory
    rules: tuple[Rule, ...]


def named_target(source: Inventory, scheme: str, rules: Sequence[Rule]) -> NamedTarget:
    """The target that a scheme makes of a model of torch. Raises `StructureMismatchError`."""
    if scheme not in SCHEMES:
        raise ValueError(f"{scheme!r} is no scheme; there is {', '.join(SCHEMES)}")
    model = source.model
    if model.convention != "torch":
        raise StructureMismatchError(
            f"{scheme!r} can be made of a model of torch; of one of {model.convention}, give the target itself"
        )
    table = TABLES[SCHEMES[scheme]]
    names = Names(model)
    leaves: dict[Name, Leaf] = {}
    chosen: list[Rule] = []
    taken = {
        name for name in model.leaves if any(match_name(drop.leaves, name) is not None for drop in of_type(rules, Drop))
    }
    for layer in layers_of(model):
        known = model.layers.get(layer)
        layout = (
            None if known is None else next((table[each] for each in (known.cls, known.kind) if each in table), None)
        )
        if known is None or layout is None:
            continue
        own = {rel: leaf for rel, leaf in names.within(layer).items() if leaf.name not in taken}
        other = _other_name(layer, model, rules)
        try:
            variants = layout(
                Side({rel: leaf.shape for rel, leaf in own.items()}, known.kind, known.config),
                Side({}, None, {"scheme": scheme}),
            )
        except ValueError as error:
            raise StructureMismatchError(f"{text_of(layer)}: {error}") from None
        wanted = [rule.variant for rule in of_type(rules, Choose) if match_name(rule.layers, layer) is not None]
        variant = next(
            (each for each in variants if each.name in wanted), variants[0] if variants and not wanted else None
        )
        if variant is None:
            continue
        if len(variants) > 1 and not wanted:
            chosen.append(Choose(text_of(layer), variant.name))
        for move in variant.moves:
            shapes = result_shapes(move.operations, [own[rel].shape for rel in move.sources])
            for rel, shape in zip(move.targets, shapes, strict=True):
                name = (*other, *rel.split("/"))
                leaves[name] = Leaf(_path(name, scheme), name, shape, own[move.sources[0]].dtype)
        taken.update(own[rel].name for move in variant.moves for rel in move.sources)
        taken.update(own[rel].name for rel in variant.drops)
    for name, leaf in model.leaves.items():
        # A parameter of a class of one's own keeps its name.
        recorded = model.layers.get(name[:-1])
        if name not in taken and recorded is not None:
            other = (*_other_name(name[:-1], model, rules), name[-1])
            leaves[other] = Leaf(_path(other, scheme), other, leaf.shape, leaf.dtype)
    _require_apart(leaves, scheme)
    return NamedTarget(Inventory(Model(SCHEMES[scheme], leaves), {}, None), tuple(chosen))


def _require_apart(leaves: Mapping[Name, Leaf], scheme: str) -> None:
    """Raise `StructureMismatchError` for names that are two of torch, and one as the scheme numbers them."""
    first: dict[Path, Name] = {}
    for name, leaf in leaves.items():
        other = first.setdefault(leaf.path, name)
        if other != name:
            raise StructureMismatchError(
                f"{text_of(other)} and {text_of(name)} are both {leaf.path} in {scheme}: rename one of them"
            )


def _other_name(layer: Name, model: Model, rules: Sequence[Rule]) -> Name:
    sequential = [depth for depth in range(len(layer)) if is_sequential(model.layers, layer[:depth])]
    return renamed(with_layers(layer, sequential), of_type(rules, Rename))


_STATISTICS: Final = frozenset(["mean", "var"])


def _path(name: Name, scheme: str) -> Path:
    steps: list[Step] = []
    if scheme == "linen":
        collection = "batch_stats" if name[-1] in _STATISTICS else "params"
        return Path((DictKey(collection), *map(DictKey, _numbered(name))))
    for step in name:
        is_number = step.isdecimal() and bool(steps)
        steps.append((Index(int(step)) if scheme == "equinox" else DictKey(int(step))) if is_number else DictKey(step))
    return Path(steps)


def _numbered(name: Name) -> Name:
    steps: list[str] = []
    for step in name:
        if step.isdecimal() and steps:
            steps[-1] += f"_{step}"
        else:
            steps.append(step)
    return tuple(steps)
