"""Pytrees as parts of a training: train states, optimizer states, parameters, modules of Equinox, keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from pytreeckpt import StructureMismatchError, UnsupportedTypeError
from pytreeckpt.training import Differences, Part, Role, class_name
from pytreeckpt_jax.arrays import build_array, build_keys, is_keys
from pytreeckpt_jax.layers import recorded_layers
from pytreeckpt_jax.names import Name, is_array, is_nnx, is_stored, leaves_by_name, nested, text, unnested
from pytreeckpt_jax.nodes import PLAIN
from pytreeckpt_jax.placement import from_array, place


def _holds(value: object, wanted: Callable[[object], bool]) -> bool:
    """Whether plain containers, or what is in them, hold something that is wanted. Objects of nnx are no part of a
    pytree here: they are changed where they are.
    """
    found = False
    stack = [value]
    while stack:
        each = stack.pop()
        if type(each) in PLAIN:
            items: Any = each.values() if isinstance(each, dict) else each
            stack.extend(items or ())
        elif is_nnx(each):
            return False
        else:
            found = found or wanted(each)
    return found


def is_pytree(value: object) -> bool:
    """Whether a value has registered classes in it, which a tree keeps by the names of their leaves."""
    return _holds(value, lambda each: not is_array(each) and not jax.tree_util.all_leaves([each]))


def is_plain(value: object) -> bool:
    """Whether a value is arrays in plain containers, which a tree keeps as they are."""
    return _holds(value, is_array) and not is_pytree(value)


def capture_pytree(tree: object) -> dict[str, object]:
    """`class`, and `leaves` by name; what is no array or number is the program's, and left out. `layers`: the class,
    kind and configuration of each module of Equinox, if there are any.

    Raises `UnsupportedTypeError` if it has nothing but what is the program's.
    """
    leaves = stored_leaves(tree)
    if leaves == {} and jax.tree_util.tree_leaves(tree):
        raise UnsupportedTypeError(
            f"a {class_name(tree)} has no arrays and no numbers, and so no state; of an optimizer of optax, give the "
            "state that its init made"
        )
    return {"class": class_name(tree), "leaves": leaves, **recorded_layers(tree)}


def stored_leaves(tree: object) -> Any:
    """The leaves of a tree that belong to the state, in dicts within dicts."""
    names, leaves, _ = leaves_by_name(tree)
    stored = [(name, leaf) for name, leaf in zip(names, leaves, strict=True) if is_stored(leaf)]
    return nested([name for name, _ in stored], [leaf for _, leaf in stored])


def compare(
    owner: str, wanted: Mapping[Name, Any], saved: Mapping[Name, Any], *, cast: bool
) -> tuple[Differences, set[Name]]:
    """What does not fit between the leaves of a template and those of a checkpoint, and the names that do."""
    differences = Differences(
        [text(owner, name) for name in wanted if name not in saved],
        [text(owner, name) for name in saved if name not in wanted],
    )
    fitting = {name for name in wanted if name in saved}
    for name in fitting:
        problem = _misfit(wanted[name], saved[name], cast=cast)
        if problem is not None:
            differences.mismatched.append(f"{text(owner, name)}: {problem}")
    differences.mismatched.sort()
    return differences, fitting


def _misfit(wanted: Any, saved: Any, *, cast: bool) -> str | None:
    if not is_stored(saved):
        return f"the checkpoint has a {type(saved).__name__}"
    ours, theirs = _shape(wanted), _shape(saved)
    if ours != theirs:
        return f"the template has shape {list(ours)}, the checkpoint {list(theirs)}"
    if not is_array(wanted) or not is_array(saved):
        # A count may be Python's before the first step and an array after it.
        return None
    if wanted.dtype == saved.dtype:
        return None
    if not cast or _holds_keys(wanted) or _holds_keys(saved):
        hint = "" if _holds_keys(wanted) or _holds_keys(saved) else "; cast=True converts"
        return f"the template has {wanted.dtype}, the checkpoint {saved.dtype}{hint}"
    return None


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape) if is_array(value) else ()


def _holds_keys(value: Any) -> bool:
    return isinstance(value, jax.Array | jax.ShapeDtypeStruct) and is_keys(value)


def put(wanted: Any, saved: Any, sharding: Sharding | None) -> Any:
    """What was saved, in the place of a leaf of a template: on its devices, or with the sharding given."""
    if not is_array(saved):
        return saved
    if is_array(wanted) and saved.dtype != wanted.dtype:
        saved = np.asarray(saved).astype(wanted.dtype)
    if isinstance(wanted, np.ndarray):
        return np.array(saved)
    if sharding is None and is_array(wanted) and (isinstance(wanted, jax.ShapeDtypeStruct) or wanted.committed):
        sharding = wanted.sharding
    if not isinstance(saved, jax.Array):
        return from_array(np.array(saved), sharding)
    # Its weak type goes with it.
    return place(saved, sharding) if sharding is not None else _uncommitted(saved)


def _uncommitted(saved: jax.Array) -> jax.Array:
    # Any: JAX's types do not know its options.
    options: Any = jax.config
    default = options.jax_default_device or jax.local_devices()[0]
    if saved.devices() == {default} and not saved.committed:
        return saved
    if is_keys(saved):
        return build_keys({"key_data": np.array(jax.random.key_data(saved)), "impl": str(jax.random.key_impl(saved))})
    return build_array({"data": np.array(saved), "weak_type": bool(saved.weak_type)})


def shardings_of(owner: str, sharding: object, tree: object) -> list[Sharding | None]:
    """A sharding for each leaf of `tree`: one for all, or those of a tree of shardings that begins as `tree` does."""
    if sharding is None or isinstance(sharding, Sharding):
        return [sharding] * len(jax.tree_util.tree_leaves(tree))
    try:
        every = jax.tree.broadcast(sharding, tree, is_leaf=lambda each: each is None or isinstance(each, Sharding))
    except ValueError as error:
        raise StructureMismatchError(
            f"{owner}: the tree of shardings does not begin as the object does: {error}"
        ) from None
    found: list[Any] = jax.tree_util.tree_leaves(every, is_leaf=lambda each: each is None)
    for each in found:
        if each is not None and not isinstance(each, Sharding):
            raise UnsupportedTypeError(f"{owner}: a {type(each).__name__} is no jax.sharding.Sharding")
    return found


def _unplaceable(name: str, leaf: Any, sharding: Sharding) -> list[str]:
    try:
        sharding.shard_shape(_shape(leaf))
    except (LookupError, ValueError):
        return [f"{name}: the sharding given does not divide shape {list(_shape(leaf))}: {sharding}"]
    return []


def plan_pytree(owner: str, tree: object, captured: Mapping[str, Any], *, sharding: object, cast: bool) -> Part:
    """The template's structure with the leaves of the checkpoint."""
    part = plan_leaves(owner, tree, unnested(captured["leaves"]), sharding=sharding, cast=cast)
    if captured["class"] != class_name(tree):
        part.differences.notes.append(f"{owner} is a {class_name(tree)}, and was a {captured['class']}")
    return part


def plan_plain(owner: str, tree: object, saved: object, *, sharding: object, cast: bool) -> Part:
    """The same for a tree that was kept as it is."""
    names, leaves, _ = leaves_by_name(saved)
    return plan_leaves(owner, tree, dict(zip(names, leaves, strict=True)), sharding=sharding, cast=cast)


def plan_leaves(owner: str, tree: object, saved: Mapping[Name, Any], *, sharding: object, cast: bool) -> Part:
    """The structure of `tree` with the saved leaves."""
    names, leaves, treedef = leaves_by_name(tree)
    wanted = {name: leaf for name, leaf in zip(names, leaves, strict=True) if is_stored(leaf)}
    stored = {name: leaf for name, leaf in saved.items() if is_stored(leaf)}
    others = {name: leaf for name, leaf in saved.items() if name not in stored}
    differences, fitting = compare(owner, wanted, stored, cast=cast)
    shardings = shardings_of(owner, sharding, tree)
    for name, leaf, each in zip(names, leaves, shardings, strict=True):
        if each is not None and name in fitting:
            differences.mismatched += _unplaceable(text(owner, name), leaf, each)

    def apply() -> object:
        return jax.tree_util.tree_unflatten(
            treedef,
            [
                # A text, for example, is the checkpoint's where it has one.
                put(leaf, stored[name], each) if name in fitting else leaf if name in wanted else others.get(name, leaf)
                for name, leaf, each in zip(names, leaves, shardings, strict=True)
            ],
        )

    return Part(differences, apply)


def pytree_roles(shardings: Mapping[str, object], *, cast: bool) -> list[Role]:
    """`shardings`: by the names of objects."""
    return [
        Role(
            "pytree",
            is_pytree,
            capture_pytree,
            lambda name, tree, state: plan_pytree(name, tree, state, sharding=shardings.get(name), cast=cast),
        ),
        Role(
            None,
            is_plain,
            lambda value: value,
            lambda name, tree, state: plan_plain(name, tree, state, sharding=shardings.get(name), cast=cast),
        ),
    ]
