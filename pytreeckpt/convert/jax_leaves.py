"""The leaves of a model of JAX: which belong to it, what they are called, and by which convention."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, cast

from pytreeckpt.convert.leaves import FoundLeaf
from pytreeckpt.convert.names import steps_of
from pytreeckpt.convert.parts import Part
from pytreeckpt.convert.records import Convention, Name
from pytreeckpt.paths import Path

_FLAX_LEAVES: Final = frozenset(["kernel", "scale", "embedding"])
_NOT_PARAMETERS: Final = frozenset(["opt_state", "rngs", "rng", "hyperparams", "inner_states"])
_MOMENTS: Final = frozenset(["mu", "nu", "trace"])
# Whether and how often a BatchNorm of Equinox has seen batches: by that it weighs its statistics.
_EQUINOX_COUNTS: Final = frozenset([("batch_counter", "init"), ("ema_first_time_index", "init")])
_MODEL_VARIABLES: Final = frozenset(["Param", "LoRAParam", "BatchStat"])


def convention_of(leaves: Iterable[tuple[Name, FoundLeaf]], layers: Mapping[str, Any]) -> Convention:
    """How the leaves of a model are named, by what was recorded of its layers, or by the names themselves."""
    kinds = [str(layer.get("kind", "")) for layer in layers.values()]
    if any(kind.startswith("equinox.") for kind in kinds):
        return "equinox"
    lasts = {name[-1] for name, _ in leaves if name}
    return "equinox" if "weight" in lasts and lasts.isdisjoint(_FLAX_LEAVES) else "flax"


def model_leaves(part: Part, found: Sequence[tuple[Name, FoundLeaf]]) -> tuple[list[tuple[Name, FoundLeaf]], set[Name]]:
    """The leaves of a model in a tree of JAX, by names without collections, and which of them are no parameters."""
    # A variable of nnx that is a node of a pytree has its value as a child.
    found = [(name[:-1] if len(name) > 1 and name[-1] == "value" else name, leaf) for name, leaf in found]
    if part.variables:
        # A wrapper may have arrays of its own, which are in no variable.
        kept = [
            (name, leaf)
            for name, leaf in found
            if part.variables.get(name) in _MODEL_VARIABLES or (name not in part.variables and _is_parameter(leaf))
        ]
        return kept, {name for name, _ in kept if part.variables.get(name) == "BatchStat"}
    roots = _roots(name for name, _ in found)
    if not roots:
        kept = [
            (name, leaf)
            for name, leaf in found
            if _NOT_PARAMETERS.isdisjoint(name) and (_is_parameter(leaf) or name[-2:] in _EQUINOX_COUNTS)
        ]
        return kept, {name for name, _ in kept if name[-2:] in _EQUINOX_COUNTS}
    # Of several, each is a part of its own: `with_roots_apart`.
    root = _innermost(roots[0], [name for name, _ in found])
    inside = [(name[len(root) :], leaf) for name, leaf in found if name[: len(root)] == root]
    collections = _collections([name for name, _ in inside])
    plain = {name[1:] for name, _ in inside if name[:1] == ("params",)}
    kept = []
    buffers: set[Name] = set()
    for name, leaf in inside:
        if name[:1] == ("params",):
            kept.append((name[1:], leaf))
        elif not collections.isdisjoint(name[:1]):
            # In linen, two collections may use one name in one layer.
            own = name if name[1:] in plain else name[1:]
            kept.append((own, leaf))
            buffers.add(own)
    return kept, buffers


def with_roots_apart(part: Part, found: Sequence[FoundLeaf]) -> list[Part]:
    """A part that holds the variables of several models, such as a generator's and a discriminator's, as a part for
    each, labelled by where they are; any other part as it is.
    """
    if part.convention == "torch" or part.variables:
        return [part]
    names = {steps_of(leaf.path[len(part.prefix) :]): leaf for leaf in found}
    roots = _roots(names)
    if len(roots) < 2:
        return [part]
    return [replace(part, label=(*part.label, *root), prefix=_prefix(part, root, names), layers={}) for root in roots]


def _prefix(part: Part, root: Name, names: Mapping[Name, FoundLeaf]) -> Path:
    """The path of a root; a step of a path may be several of a name."""
    path = next(leaf.path for name, leaf in names.items() if name[: len(root)] == root)
    start = len(part.prefix)
    return next(Path(path[:end]) for end in range(start, len(path)) if steps_of(path[start:end]) == root)


def _roots(names: Iterable[Name]) -> list[Name]:
    """Where collections `params` are, none of them within another's variables, in the order of the tree."""
    found = dict.fromkeys(
        root
        for name in names
        if "params" in name[:-1] and _NOT_PARAMETERS.isdisjoint(root := name[: name.index("params")])
    )
    return [root for root in found if not any(root[:depth] in found for depth in range(len(root)))]


def _innermost(root: Name, names: Sequence[Name]) -> Name:
    """Variables may be a field `params` of something themselves."""
    while any(name[: len(root) + 2] == (*root, "params", "params") for name in names):
        root = (*root, "params")
    return root


def moments_in(found: Sequence[FoundLeaf]) -> set[Path]:
    """What an optimizer keeps of parameters, wherever in a tree its state is: below a field such as `mu`, beside a
    count or other such fields only, and of the names and shapes that leaves elsewhere have. A layer may be called `mu`
    as well.
    """
    names = {leaf.path: steps_of(leaf.path) for leaf in found}
    if all(_MOMENTS.isdisjoint(name) for name in names.values()):
        return set()
    beside: dict[Name, set[str]] = {}
    owners: dict[tuple[Name, object], list[Name]] = {}
    for leaf in found:
        name = names[leaf.path]
        bare = name[:-1] if name[-1:] == ("value",) else name
        for depth in range(len(name)):
            beside.setdefault(name[:depth], set()).add(name[depth])
            owners.setdefault((bare[depth:], leaf.shape), []).append(bare[:depth])
    return {leaf.path for leaf in found if _is_moment(names[leaf.path], leaf, beside, owners)}


def _is_moment(
    name: Name,
    leaf: FoundLeaf,
    beside: Mapping[Name, set[str]],
    owners: Mapping[tuple[Name, object], Sequence[Name]],
) -> bool:
    bare = name[:-1] if name[-1:] == ("value",) else name
    for depth, step in enumerate(name):
        node = name[:depth]
        if step not in _MOMENTS or not ("count" in beside[node] or beside[node] <= _MOMENTS):
            continue
        if any(owner[:depth] != node for owner in owners.get((bare[depth + 1 :], leaf.shape), ())):
            return True
    return False


def _collections(names: Sequence[Name]) -> frozenset[str]:
    """The collections beside `params`: those whose layers have parameters too, and that of batch statistics."""
    layers = {name[1:depth] for name in names if name[0] == "params" for depth in range(1, len(name))}
    others: dict[str, list[Name]] = {}
    for name in names:
        if name[0] != "params" and len(name) > 1:
            others.setdefault(name[0], []).append(name)
    return frozenset(
        key
        for key, each in others.items()
        if key == "batch_stats"
        or (key not in _NOT_PARAMETERS | _MOMENTS and all(name[1:-1] in layers and len(name) > 2 for name in each))
    )


def _is_parameter(leaf: FoundLeaf) -> bool:
    """Whether a leaf is an array of floats: a number of Python is a setting, such as the rate of a dropout."""
    dtype = cast("Any", leaf.dtype)
    return not isinstance(leaf.value, int | float | complex) and dtype.kind in "fcV" and dtype.names is None
