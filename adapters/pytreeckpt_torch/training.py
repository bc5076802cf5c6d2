"""Whole trainings: capture all objects of one as a tree, and put all of them back, to the last bit."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

import pytreeckpt as ptc
from pytreeckpt.training import (
    RNG,
    Part,
    Restored,
    Role,
    capture_objects,
    generator_roles,
    header_of,
    leaves_for,
    naming,
    restore_objects,
    wants_rng,
)
from pytreeckpt_torch.modules import capture_module, plan_module
from pytreeckpt_torch.names import parameters_by_name
from pytreeckpt_torch.objects import object_roles
from pytreeckpt_torch.optimizers import ParameterNames, capture_optimizer, plan_optimizer
from pytreeckpt_torch.randomness import capture_rng, plan_rng
from pytreeckpt_torch.values import value_role

StrPath = str | os.PathLike[str]


def capture(*, rng: bool | Literal["gather"] = True, **objects: object) -> dict[str, object]:
    """The state of a training as a tree of plain values and tensors, by the names that the objects are given.

    An object is recognised by what it is, whatever its name: modules, optimizers, schedulers, gradient scalers,
    generators (of torch, numpy and Python), `DistributedSampler`, whatever has `state_dict` and `load_state_dict`, and
    dicts and lists of these. All else (`step=100`, `config={…}`, a dict of averaged tensors) stands for itself.

        tree = capture(model=model, optimizer=optimizer, scheduler=scheduler, step=step)
        tree = capture(model={"G": generator, "D": critic}, optimizer={"G": g_optimizer, "D": d_optimizer})

    `rng`: whether to add the states of the generators behind `random`, `numpy.random` and `torch`, and of all CUDA
    devices in use; `"gather"`, called in every process of torch.distributed, adds those of all processes.

    The tree shares its tensors with the objects: save it, or copy it, before the training goes on. Raises `ValueError`
    for an optimizer of parameters that no object holds, and `UnsupportedTypeError` for what has no state.
    """
    if not isinstance(rng, bool) and rng != "gather":
        raise ValueError(f'rng is True, False or "gather", not {rng!r}')
    roles = _roles(objects, cast=False, device=None, owned=False)
    tree = capture_objects(objects, roles, framework="torch", version=str(torch.__version__))
    if rng:
        tree[RNG] = capture_rng(gather=rng == "gather")
    return tree


def restore_into(
    tree: Mapping[str, Any],
    *,
    rng: bool | None = None,
    strict: bool = True,
    cast: bool = False,
    device: torch.device | str | None = None,
    **objects: object,
) -> Restored:
    """Put what `capture` made back into the same objects, by their names; the result has them and the plain values.

    All is compared first, and one `StructureMismatchError` lists what does not fit: nothing has been changed then.
    `strict=False` lets pass what only one of both has. Parameters that are in an optimizer in another order, or in
    other groups, are found by their names. Values go to the devices where the objects are; dtypes have to agree, but
    for moments, which keep theirs, and with `cast=True`. A module on the meta device is given its tensors, on `device`
    (by default where the tree has them). Whether parameters have gradients and modules are in training mode is the
    program's affair; `notes` tells where the first differs.

    `rng`: whether to put the states of the global generators back. None: if all objects of the checkpoint are given,
    so that loading the weights alone leaves them as they are.
    """
    return _restore_into(tree, objects, rng=rng, strict=strict, cast=cast, device=device, owned=False)


def save_training(
    path: StrPath,
    *,
    rng: bool | Literal["gather"] = True,
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
    device: torch.device | str | None = None,
    missing_ok: bool = False,
    progress: Callable[[ptc.Progress], None] | None = None,
    **objects: object,
) -> Restored | None:
    """`pytreeckpt.restore`, and `restore_into` with these options. Objects of the checkpoint that are not given are
    not read.

    `missing_ok`: whether to return None, instead of raising `CheckpointNotFoundError`, if there is no checkpoint: the
    same program then begins a training and goes on with it.
    """
    try:
        with ptc.open(path) as checkpoint:
            select = leaves_for(checkpoint.tree, objects, rng=rng)
        tree = ptc.restore(path, select=select, progress=progress)
    except ptc.CheckpointNotFoundError:
        if missing_ok:
            return None
        raise
    with naming(os.fspath(path)):
        return _restore_into(tree, objects, rng=rng, strict=strict, cast=cast, device=device, owned=True)


def _restore_into(
    tree: Any,
    objects: Mapping[str, object],
    *,
    rng: bool | None,
    strict: bool,
    cast: bool,
    device: torch.device | str | None,
    owned: bool,
) -> Restored:
    header = header_of(tree)
    if header is not None and header.framework != "torch":
        raise ptc.StructureMismatchError(
            f"this is the state of a training in {header.framework}; to go on in torch it has to be converted"
        )
    roles = _roles(objects, cast=cast, device=None if device is None else torch.device(device), owned=owned)
    more: dict[str, Callable[[], Part]] = {}
    if header is not None and RNG in tree and wants_rng(header, objects, rng):
        more[RNG] = lambda: plan_rng(RNG, tree[RNG])
    return restore_objects(tree, objects, roles, strict=strict, more=more)


def _roles(objects: Mapping[str, object], *, cast: bool, device: torch.device | None, owned: bool) -> list[Role]:
    names = ParameterNames.of(dict(_parameters(objects)))
    return [
        Role(
            "module",
            lambda value: isinstance(value, nn.Module),
            capture_module,
            lambda name, module, state: plan_module(name, module, state, cast=cast, device=device, owned=owned),
        ),
        Role(
            "optimizer",
            lambda value: isinstance(value, Optimizer),
            lambda optimizer: capture_optimizer(optimizer, names),
            lambda name, optimizer, state: plan_optimizer(name, optimizer, state, names, owned=owned),
        ),
        *generator_roles(),
        *object_roles(names),
        value_role(cast=cast),
    ]


def _parameters(objects: Any, owner: str = "") -> Any:
    """The parameters of the modules among the objects, and the tensors there, each with the names of both."""
    items = objects.items() if isinstance(objects, Mapping) else enumerate(objects)
    for key, value in items:
        if not isinstance(value, nn.Module | torch.Tensor | dict | list | tuple):
            # A history may have very many.
            continue
        name = f"{owner}/{key}" if owner else str(key)
        if isinstance(value, nn.Module):
            for parameter_name, parameter in parameters_by_name(value).items():
                yield (name, parameter_name), parameter
        elif isinstance(value, torch.Tensor):
            yield (name, ""), value
        else:
            yield from _parameters(value, name)
