"""Dicts and lists of plain values and tensors, such as a history of metrics or a shadow of averaged weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pytreeckpt.training import Differences, Part, Role, copied
from pytreeckpt_torch.modules import as_tensor


def _plan(name: str, target: Any, saved: Any, *, cast: bool) -> Part:
    differences = Differences()
    if isinstance(target, dict) and target.keys() == {"state", "param_groups"}:
        differences.mismatched.append(f"{name}: this is the state of an optimizer; give the optimizer itself")
    copies: list[tuple[torch.Tensor, torch.Tensor]] = []
    _compare(name, target, saved, differences, copies, cast=cast)

    def apply() -> Any:
        with torch.no_grad():
            for mine, theirs in copies:
                mine.copy_(theirs)
        return _filled(target, saved)

    return Part(differences, apply)


def _plan_array(name: str, target: Any, saved: Any) -> Part:
    differences = Differences()
    if not isinstance(saved, np.ndarray):
        differences.mismatched.append(f"{name}: this is an array, the checkpoint has a {type(saved).__name__}")
    elif (saved.shape, saved.dtype) != (target.shape, target.dtype):
        differences.mismatched.append(
            f"{name}: this has shape {target.shape} and {target.dtype}, the checkpoint {saved.shape} and {saved.dtype}"
        )

    def apply() -> Any:
        np.copyto(target, saved)
        return target

    return Part(differences, apply)


def _compare(
    name: str,
    target: Any,
    saved: Any,
    differences: Differences,
    copies: list[tuple[torch.Tensor, torch.Tensor]],
    *,
    cast: bool,
) -> None:
    if isinstance(target, torch.Tensor):
        theirs = as_tensor(saved)
        if not isinstance(theirs, torch.Tensor):
            differences.mismatched.append(f"{name}: this is a tensor, the checkpoint has a {type(saved).__name__}")
        elif theirs.shape != target.shape or (theirs.dtype != target.dtype and not cast):
            differences.mismatched.append(
                f"{name}: this has shape {list(target.shape)} and {target.dtype}, the checkpoint "
                f"{list(theirs.shape)} and {theirs.dtype}"
            )
        elif target.is_meta:
            differences.mismatched.append(f"{name}: this is on the meta device, where nothing can be put into it")
        else:
            copies.append((target, theirs))
    elif isinstance(target, dict) and isinstance(saved, dict):
        for key, value in target.items():
            if key in saved:
                _compare(f"{name}/{key}", value, saved[key], differences, copies, cast=cast)
            elif _holds_tensor(value):
                differences.missing.append(f"{name}/{key}")
        if _holds_tensor(target):
            differences.unexpected += [f"{name}/{key}" for key in saved if key not in target]
    elif isinstance(target, list) and isinstance(saved, list):
        if len(target) == len(saved):
            for index, (value, theirs) in enumerate(zip(target, saved, strict=True)):
                _compare(f"{name}/{index}", value, theirs, differences, copies, cast=cast)
        elif _holds_tensor(target):
            differences.mismatched.append(f"{name}: this has {len(target)} items, the checkpoint {len(saved)}")
    elif isinstance(target, dict | list):
        differences.mismatched.append(
            f"{name}: this is a {type(target).__name__}, the checkpoint has a {type(saved).__name__}"
        )


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, dict | list | tuple):
        return any(map(_holds_tensor, value.values() if isinstance(value, dict) else value))
    return isinstance(value, torch.Tensor)


def _filled(target: Any, saved: Any) -> Any:
    """The saved value, in the dicts, lists and tensors of the target where it has them."""
    if isinstance(target, torch.Tensor):
        return target
    if isinstance(target, dict):
        items = {key: _filled(target.get(key), value) for key, value in saved.items()}
        kept = {key: value for key, value in target.items() if _holds_tensor(value)}
        target.clear()
        target.update({**kept, **items})
        return target
    if isinstance(target, list):
        same = len(target) == len(saved)
        target[:] = [_filled(target[index] if same else None, value) for index, value in enumerate(saved)]
        return target
    return copied(saved)


def value_role(*, cast: bool) -> Role:
    """Of what stands for itself in the tree; as a target, of tensors, arrays, dicts and lists, which are filled."""

    def plan(name: str, target: Any, saved: Any) -> Part:
        if isinstance(target, np.ndarray):
            return _plan_array(name, target, saved)
        return _plan(name, target, saved, cast=cast)

    return Role(
        None, lambda value: isinstance(value, torch.Tensor | np.ndarray | dict | list), lambda value: value, plan
    )
