"""What of a tree is a model, by which convention its leaves are named, and what was recorded of its layers.

A tree is what `capture` made, a state dict or a dict of such, the variables or state of a JAX model, or what an adapter
describes: a module itself. Where it is not plain what is meant, this fails and says what to give instead.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol, runtime_checkable

from pytreeckpt.convert.jax_leaves import convention_of, model_leaves, moments_in, with_roots_apart
from pytreeckpt.convert.leaves import FoundLeaf, leaves_of
from pytreeckpt.convert.names import steps_of, text_of
from pytreeckpt.convert.parts import Part, captured_parts, described_parts, state_dict_parts
from pytreeckpt.convert.records import Convention, Inventory, Layer, Leaf, Model, Name
from pytreeckpt.errors import StructureMismatchError
from pytreeckpt.paths import Path


@runtime_checkable
class HasTree(Protocol):
    """An open checkpoint."""

    @property
    def tree(self) -> Any:
        """Its tree."""
        ...

    @property
    def root(self) -> Any:
        """What identifies it."""
        ...


_TORCH_BUFFERS: Final = frozenset(["running_mean", "running_var", "num_batches_tracked"])


def tree_of(value: object) -> Any:
    """The tree of an open checkpoint or of an object that an adapter describes; anything else is one itself."""
    tree = _opened(value)
    described = described_parts(tree)
    return tree if described is None else described[0]


def _opened(value: object) -> Any:
    return value.tree if isinstance(value, HasTree) and not isinstance(value, Mapping) else value


def inventory_of(value: object, *, convention: Convention | None = None, annotations: bool = True) -> Inventory:
    """What there is to convert in an open checkpoint, a tree, or an object that an adapter describes.

    `convention`: how leaves are named, where it cannot be told. `annotations`: whether recorded layers are used.
    Raises `StructureMismatchError` for a tree with no model, or with several of which it is not said which.
    """
    if isinstance(value, Inventory):
        return value
    tree = _opened(value)
    tree, parts = described_parts(tree) or (tree, captured_parts(tree))
    found = [leaf for leaf in leaves_of(tree) if leaf.shape is not None]
    if parts is None:
        parts = state_dict_parts(found) if convention in {None, "torch"} else []
        parts = parts or [Part((), Path())]
    moments = moments_in(found)
    models: list[Model] = []
    taken: set[Path] = set()
    for part in [apart for each in parts for apart in with_roots_apart(each, _inside(each, found, moments))]:
        model = _model(part, _inside(part, found, moments), convention)
        if model is not None:
            models.append(model if annotations else replace(model, layers={}))
            taken.update(leaf.path for leaf in model.leaves.values())
    if not models:
        raise StructureMismatchError(
            "there is no model in this tree: give a state dict, the variables or state of a model, or what capture made"
        )
    rest = {
        leaf.path: Leaf(leaf.path, steps_of(leaf.path), *_array(leaf), leaf.identity)
        for leaf in found
        if leaf.path not in taken
    }
    return Inventory(_joined(models), rest, tree)


def _inside(part: Part, found: Sequence[FoundLeaf], moments: Collection[Path]) -> list[FoundLeaf]:
    inside = [leaf for leaf in found if leaf.path[: len(part.prefix)] == part.prefix]
    return inside if part.convention == "torch" else [leaf for leaf in inside if leaf.path not in moments]


def _array(leaf: FoundLeaf) -> tuple[Any, Any]:
    return leaf.shape, leaf.dtype


def _model(part: Part, found: Sequence[FoundLeaf], wanted: Convention | None) -> Model | None:
    names = {leaf.path: steps_of(leaf.path[len(part.prefix) :], dotted=part.convention == "torch") for leaf in found}
    if part.convention == "torch":
        leaves = [(names[leaf.path], leaf) for leaf in found]
        buffers = {
            name for name, _ in leaves if ".".join(name) in part.buffers or not _TORCH_BUFFERS.isdisjoint(name[-1:])
        }
        convention: Convention = "torch"
    else:
        leaves, buffers = model_leaves(part, [(names[leaf.path], leaf) for leaf in found])
        convention = part.convention or wanted or convention_of(leaves, part.layers)
    if not leaves:
        return None
    named: dict[Name, Leaf] = {}
    for name, leaf in leaves:
        if name in named:
            raise StructureMismatchError(
                f"{named[name].path} and {leaf.path} are both named {text_of(name)}: convert them apart"
            )
        # Arrays of JAX cannot be changed: that two leaves are one object says nothing of how they are trained.
        named[name] = Leaf(leaf.path, name, *_array(leaf), leaf.identity if convention == "torch" else None)
    separator = "." if convention == "torch" else "/"
    layers = {
        tuple(name.split(separator)) if name else (): Layer(each["class"], each["kind"], each["config"])
        for name, each in part.layers.items()
    }
    labelled = Model(convention, named, frozenset(buffers), layers)
    return replace(labelled, label=part.label)


def _joined(models: Sequence[Model]) -> Model:
    """Several models as one, whose names begin with those of the objects; one alone keeps its own."""
    if len(models) == 1:
        return models[0]
    conventions = {model.convention for model in models}
    if len(conventions) > 1:
        raise StructureMismatchError(f"the models are of several conventions: {', '.join(sorted(conventions))}")
    leaves = {
        (*m.label, *name): replace(leaf, name=(*m.label, *name)) for m in models for name, leaf in m.leaves.items()
    }
    return Model(
        models[0].convention,
        leaves,
        frozenset((*m.label, *name) for m in models for name in m.buffers),
        {(*m.label, *name): layer for m in models for name, layer in m.layers.items()},
    )
