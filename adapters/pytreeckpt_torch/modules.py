"""Modules as parts of a training: what is captured of one, and how it is put back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from pytreeckpt.training import Part, copied, differing
from pytreeckpt_torch.names import layers_of, non_persistent_names, parameters_by_name, raw_keys
from pytreeckpt_torch.tensors import from_array

_LAZY: Final = (UninitializedBuffer, UninitializedParameter)


def capture_module(module: nn.Module) -> dict[str, object]:
    """`state`: the parameters, persistent buffers and extra states by their names without wrappers; None for a lazy
    one without a shape. `buffers`: which of them are no parameters; `frozen`: the parameters without a gradient.
    `layers`: the class, kind and configuration of each module.
    """
    state = module.state_dict()
    keys = raw_keys(module, state)
    parameters = parameters_by_name(module)
    return {
        "state": {name: None if isinstance(state[key], _LAZY) else copied(state[key]) for name, key in keys.items()},
        "buffers": [name for name in keys if name not in parameters],
        "frozen": [name for name, parameter in parameters.items() if not parameter.requires_grad],
        "layers": layers_of(module),
    }


def plan_module(
    name: str, module: nn.Module, captured: Mapping[str, Any], *, cast: bool, device: torch.device | None, owned: bool
) -> Part:
    """`cast`: whether values may be converted to the module's dtypes. `device`: where values go that a module on the
    meta device is to have. `owned`: whether the module may keep them.
    """
    ours = module.state_dict(keep_vars=True)
    keys = raw_keys(module, ours)
    saved = {each: as_tensor(value) for each, value in captured["state"].items()}
    tied = _tied(keys, ours)
    differences = differing(name, keys, saved)
    # A name of a tied tensor that was saved under another of its names is not missing.
    differences.missing = [
        text for text in differences.missing if not any(each in saved for each in tied[text.removeprefix(f"{name}/")])
    ]
    for each, key in keys.items():
        if each not in saved or _is_extra(each):
            continue
        if (problem := _misfit(ours[key], saved[each], cast=cast)) is not None:
            differences.mismatched.append(f"{name}/{each}: {problem}")
    if keys and saved and not any(each in saved for each in keys):
        differences.mismatched.append(f"{name}: the checkpoint has none of its names")
    differences.mismatched += _untied(name, tied, saved)
    differences.notes += _notes(name, module, captured)
    on_meta = any(isinstance(value, torch.Tensor) and value.is_meta for value in ours.values())
    if on_meta and (unset := non_persistent_names(module, ours)):
        differences.notes.append(
            f"{name}: no checkpoint holds the non-persistent buffers {', '.join(unset)}: make them anew"
        )

    def apply() -> nn.Module:
        values = {
            keys[each]: value
            for each, value in saved.items()
            if each in keys and (value is not None or _is_extra(each))
        }
        if on_meta:
            _assign(module, values, ours, device=device, owned=owned)
        else:
            module.load_state_dict(values, strict=False)
        return module

    return Part(differences, apply)


def _is_extra(name: str) -> bool:
    """Whether a name is that of an extra state, which may be of any type and shape: the module takes what it gave."""
    return name.rpartition(".")[2] == "_extra_state"


def as_tensor(value: Any) -> Any:
    """A tensor for an array of a checkpoint that was restored without torch; anything else as it is."""
    return from_array(value) if isinstance(value, np.ndarray) else value


def _tied(keys: Mapping[str, str], state: Mapping[str, Any]) -> dict[str, list[str]]:
    """For each name, all names of the same tensor."""
    by_tensor: dict[int, list[str]] = {}
    for name, key in keys.items():
        by_tensor.setdefault(id(name if _is_extra(name) else state[key]), []).append(name)
    return {name: names for names in by_tensor.values() for name in names}


def _misfit(ours: Any, saved: Any, *, cast: bool) -> str | None:
    """Why a saved value does not go where ours is."""
    if isinstance(ours, _LAZY) and saved is None:
        return None
    if isinstance(ours, torch.Tensor) != isinstance(saved, torch.Tensor):
        if saved is None:
            return "the module has a shape here, the checkpoint was made before a lazy module got one"
        return f"the module has a {type(ours).__name__}, the checkpoint a {type(saved).__name__}"
    if not isinstance(ours, torch.Tensor):
        return None
    if not isinstance(ours, _LAZY) and ours.shape != saved.shape:
        return f"the module has shape {list(ours.shape)}, the checkpoint {list(saved.shape)}"
    if saved.is_complex() and not ours.is_complex():
        return f"the module has {ours.dtype}, the checkpoint {saved.dtype}, which it cannot hold"
    if ours.dtype != saved.dtype and not cast:
        return f"the module has {ours.dtype}, the checkpoint {saved.dtype}; cast=True converts"
    return None


def _untied(name: str, tied: Mapping[str, list[str]], saved: Mapping[str, Any]) -> list[str]:
    """Where one tensor of the module would have to become two."""
    problems: list[str] = []
    for names in {id(names): names for names in tied.values()}.values():
        values = [saved[each] for each in names if isinstance(saved.get(each), torch.Tensor)]
        if any(not same_bits(values[0], value) for value in values[1:]):
            problems.append(f"{name}/{names[0]}: tied to {', '.join(names[1:])} here, and not in the checkpoint")
    return problems


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors hold the same, NaNs included."""
    if a is b:
        return True
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    a, b = (_plain(each) for each in (a, b))
    if a.data_ptr() == b.data_ptr() and a.stride() == b.stride():
        return True
    return torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8))


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """With all elements in memory as they are."""
    return tensor.resolve_conj().resolve_neg() if tensor.layout is torch.strided else tensor.to_dense()


def _notes(name: str, module: nn.Module, captured: Mapping[str, Any]) -> list[str]:
    notes: list[str] = []
    frozen = set(captured.get("frozen", ()))
    now = {each for each, parameter in parameters_by_name(module).items() if not parameter.requires_grad}
    known = set(captured["state"])
    for title, names in (
        ("frozen in the checkpoint and not here", sorted((frozen - now) & known)),
        ("frozen here and not in the checkpoint", sorted((now - frozen) & known)),
    ):
        if names:
            notes.append(f"{name}: {title}: {_listed(names)}")
    theirs = captured.get("layers", {})
    for each, layer in layers_of(module).items():
        if each in theirs and theirs[each]["class"] != layer["class"]:
            where = f"layer {each}" if each else "the module itself"
            notes.append(f"{name}: {where} is a {layer['class']}, and was a {theirs[each]['class']}")
    return notes


def _listed(names: list[str], shown: int = 5) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _assign(
    module: nn.Module,
    values: Mapping[str, Any],
    ours: Mapping[str, Any],
    *,
    device: torch.device | None,
    owned: bool,
) -> None:
    """Give a module on the meta device its tensors, those that are tied once."""
    made: dict[int, torch.Tensor] = {}
    placed: dict[str, Any] = {}
    given: set[int] = set()
    for key, value in values.items():
        mine = ours.get(key)
        if isinstance(value, torch.Tensor) and isinstance(mine, torch.Tensor) and not _is_extra(key):
            if id(mine) not in made:
                # What is one tensor in the checkpoint may be two here.
                moved = value.to(device=device, dtype=mine.dtype, copy=not owned or id(value) in given)
                given.add(id(value))
                is_parameter = isinstance(mine, nn.Parameter)
                made[id(mine)] = nn.Parameter(moved, mine.requires_grad) if is_parameter else moved
            placed[key] = made[id(mine)]
        else:
            placed[key] = value
    # A tied name that the checkpoint lacks gets what the other has.
    for key, mine in ours.items():
        if key not in placed and id(mine) in made:
            placed[key] = made[id(mine)]
    module.load_state_dict(placed, strict=False, assign=True)
