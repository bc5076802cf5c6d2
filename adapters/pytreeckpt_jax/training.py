"""Whole trainings: capture all objects of one as a tree, and put all of them back, to the last bit."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import jax
from jax.sharding import Sharding

import pytreeckpt as ptc
from pytreeckpt.training import (
    RNG,
    Differences,
    Part,
    Restored,
    Role,
    by_rank,
    capture_globals,
    capture_objects,
    generator_roles,
    header_of,
    leaves_for,
    naming,
    of_rank,
    plan_globals,
    restore_objects,
    stateful_role,
    wants_rng,
)
from pytreeckpt_jax.names import is_nnx
from pytreeckpt_jax.nnx_objects import nnx_roles
from pytreeckpt_jax.pytrees import pytree_roles

StrPath = str | os.PathLike[str]


def capture(*, rng: bool = True, **objects: object) -> dict[str, object]:
    """The state of a training as a tree of plain values and arrays, by the names that the objects are given.

    An object is recognised by what it is, whatever its name: pytrees of registered classes (linen's `TrainState` and
    its subclasses, optax states, Equinox modules), objects of nnx, generators of numpy and Python, whatever has
    `state_dict` and `load_state_dict` or `get_state` and `set_state`, and dicts and lists of these. Their leaves that
    are neither arrays nor numbers, such as functions, belong to the program, and are left out. All else (parameters
    and keys in plain containers, `epoch=3`, `config={…}`) stands for itself.

        tree = capture(state=train_state, key=key, epoch=epoch)
        tree = capture(model=model, optimizer=optimizer, rngs=rngs)

    `rng`: whether to add the states of the generators behind `random` and `numpy.random`; JAX has none.
    """
    if not isinstance(rng, bool):
        raise TypeError(
            f"{RNG!r} is what the states of the global generators are called, and is True or False, not {rng!r}; give "
            "an object another name"
        )
    tree = capture_objects(objects, _roles({}, cast=False), framework="jax", version=jax.__version__)
    if rng:
        tree[RNG] = by_rank({jax.process_index(): capture_globals()}, world_size=jax.process_count())
    return tree


def restore_into(
    tree: Mapping[str, Any],
    *,
    rng: bool | None = None,
    strict: bool = True,
    cast: bool = False,
    sharding: Sharding | Mapping[str, object] | None = None,
    **objects: object,
) -> Restored:
    """What `capture` made, in the structure of the same objects: the result has the new ones by their names, and the
    plain values. Objects of nnx, generators and what has a `state_dict` are changed and returned.

    An object may be abstract (`jax.eval_shape`, `nnx.eval_shape`): shapes and dtypes are compared first, and one
    `StructureMismatchError` lists what does not fit; nothing has been changed then. `strict=False` lets pass what only
    one of both has. Dtypes have to agree, but with `cast=True`.

    Arrays go where those of the objects are. `sharding`: where they go instead, one for all, or by the names of objects
    one for each, or a tree of them that begins as the object does.

    `rng`: whether to put the states of the global generators back. None: if all objects of the checkpoint are given,
    so that loading the weights alone leaves them as they are.
    """
    header = header_of(tree)
    if header is not None and header.framework != "jax":
        raise ptc.StructureMismatchError(
            f"this is the state of a training in {header.framework}; to go on in JAX it has to be converted"
        )
    by_name = dict.fromkeys(objects, sharding) if not isinstance(sharding, Mapping) else dict(sharding)
    unknown = [name for name in by_name if name not in objects]
    if unknown:
        raise ValueError(f"sharding is given for {', '.join(unknown)}, and the objects are {', '.join(objects)}")
    by_part = {part: each for name, given in by_name.items() for part, each in _parts(name, objects[name], given)}
    more: dict[str, Callable[[], Part]] = {}
    if header is not None and RNG in tree and wants_rng(header, objects, rng):
        more[RNG] = lambda: _plan_rng(tree[RNG])
    return restore_objects(tree, objects, _roles(by_part, cast=cast), strict=strict, more=more)


def save_training(
    path: StrPath,
    *,
    rng: bool = True,
    metadata: object = None,
    compression: str | int = "auto",
    if_exists: Literal["replace", "error"] = "replace",
    durability: Literal["durable", "atomic"] = "durable",
    progress: Callable[[ptc.Progress], None] | None = None,
    **objects: object,
) -> ptc.SaveReport:
    """`capture`, and `pytreeckpt.save` with these options."""
    return ptc.save(
        capture(rng=rng, **objects),
        path,
        metadata=metadata,
        compression=compression,
        if_exists=if_exists,
        durability=durability,
        progress=progress,
    )


def resume(
    path: StrPath,
    *,
    rng: bool | None = None,
    strict: bool = True,
    cast: bool = False,
    sharding: Sharding | Mapping[str, object] | None = None,
    missing_ok: bool = False,
    progress: Callable[[ptc.Progress], None] | None = None,
    **objects: object,
) -> Restored | None:
    """`pytreeckpt.restore`, and `restore_into` with these options. Objects of the checkpoint that are not given are
    not read. If arrays belong on several devices, they are read to the CPU, and go from there.

    `missing_ok`: whether to return None, instead of raising `CheckpointNotFoundError`, if there is no checkpoint: the
    same program then begins a training and goes on with it.
    """
    try:
        with ptc.open(path) as checkpoint:
            select = leaves_for(checkpoint.tree, objects, rng=rng)
        with _reading_to(objects, sharding):
            tree = ptc.restore(path, select=select, progress=progress)
    except ptc.CheckpointNotFoundError:
        if missing_ok:
            return None
        raise
    with naming(os.fspath(path)):
        return restore_into(tree, rng=rng, strict=strict, cast=cast, sharding=sharding, **objects)


def _reading_to(objects: object, sharding: object) -> AbstractContextManager[Any]:
    """What belongs on several devices need not fit into one."""
    leaves = jax.tree_util.tree_leaves([objects, sharding], is_leaf=lambda each: isinstance(each, Sharding))
    shardings = [leaf if isinstance(leaf, Sharding) else getattr(leaf, "sharding", None) for leaf in leaves]
    if not any(isinstance(each, Sharding) and each.num_devices > 1 for each in shardings):
        return nullcontext()
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        # A process may be told to do without.
        return nullcontext()
    context: AbstractContextManager[Any] = jax.default_device(cpu)
    return context


def _parts(name: str, value: object, sharding: Any) -> list[tuple[str, object]]:
    """What a sharding is for: an object, or in a dict or list of objects of nnx each of them."""
    items = list(
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    )
    if not any(is_nnx(each) for _, each in items):
        return [(name, sharding)]
    if sharding is None or isinstance(sharding, Sharding):
        return [(f"{name}/{key}", sharding) for key, _ in items]
    try:
        return [(f"{name}/{key}", sharding[key]) for key, _ in items]
    except (LookupError, TypeError) as error:
        raise ValueError(f"{name}: the shardings are not by the names of the objects in it: {error!r}") from None


def _plan_rng(captured: Mapping[str, Any]) -> Part:
    differences = Differences()
    mine = of_rank(RNG, captured, rank=jax.process_index(), world_size=jax.process_count(), differences=differences)
    parts = [] if mine is None else plan_globals(RNG, mine)
    for part in parts:
        differences.add(part.differences)

    def apply() -> None:
        for part in parts:
            part.apply()

    return Part(differences, apply)


def _roles(shardings: Mapping[str, object], *, cast: bool) -> list[Role]:
    return [
        *nnx_roles(shardings, cast=cast),
        *generator_roles(),
        stateful_role("state_dict", "load_state_dict"),
        stateful_role("get_state", "set_state"),
        *pytree_roles(shardings, cast=cast),
    ]
