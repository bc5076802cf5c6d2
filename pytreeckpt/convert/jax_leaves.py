"""The leaves of a model of JAX: which belong to it, what they are called, and by which convention."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, cast

from pytreeckpt.convert.leaves import FoundLeaf
from pytreeckpt.convert.parts import Part
from pytreeckpt.convert.records import Convention, Name

_FLAX_LEAVES: Final = frozenset(["kernel", "scale", "embedding"])
_NOT_PARAMETERS: Final = frozenset(["opt_state", "rngs", "rng", "mu", "nu", "trace", "hyperparams", "inner_states"])
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
    root = _params_root([name for name, _ in found])
    if root is None:
        kept = [
            (name, leaf)
            for name, leaf in found
            if _NOT_PARAMETERS.isdisjoint(name) and (_is_parameter(leaf) or name[-2:] in _EQUINOX_COUNTS)
        ]
        return kept, {name for name, _ in kept if name[-2:] in _EQUINOX_COUNTS}
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


def _params_root(names: Iterable[Name]) -> Name | None:
    """Where the collection `params` is: variables may be a field of that name themselves."""
    roots = {name[: name.index("params")] for name in names if "params" in name[:-1]}
    if not roots:
        return None
    root = min(roots, key=len)
    while any(name[: len(root) + 2] == (*root, "params", "params") for name in names):
        root = (*root, "params")
    return root


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
        or (key not in _NOT_PARAMETERS and all(name[1:-1] in layers and len(name) > 2 for name in each))
    )


def _is_parameter(leaf: FoundLeaf) -> bool:
    """Whether a leaf is an array of floats: a number of Python is a setting, such as the rate of a dropout."""
    dtype = cast("Any", leaf.dtype)
    return not isinstance(leaf.value, int | float | complex) and dtype.kind in "fcV" and dtype.names is None
