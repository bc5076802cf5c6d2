"""Optimizers as parts of a training: their states by the names of parameters, in their own dtypes.

torch numbers the parameters of an optimizer. Here each is known by the object that holds it and by its name there, so
that parameters that were added or put in another order since find what is theirs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import numpy as np
import torch
from torch.optim import Optimizer

from pytreeckpt.training import Differences, Part, copied
from pytreeckpt_torch.modules import as_tensor
from pytreeckpt_torch.names import class_text

ParameterName = tuple[str, str]
"""The name of an object, and that of the parameter within it; both empty, and a number, where no object was given."""

_NOT_OPTIONS: Final = ("params", "param_names")
OPTIMIZER_RANK: Final = 1
"""After schedulers, which may set learning rates."""


@dataclass(frozen=True, slots=True)
class ParameterNames:
    """The parameters of the modules and tensors of a training: the first name of each, and each by any of its names."""

    first: Mapping[int, ParameterName]
    tensors: Mapping[ParameterName, torch.Tensor]

    @classmethod
    def of(cls, tensors: Mapping[ParameterName, torch.Tensor]) -> ParameterNames:
        """Of parameters by name, of which several may be the same tensor."""
        first: dict[int, ParameterName] = {}
        for name, tensor in tensors.items():
            first.setdefault(id(tensor), name)
        return cls(first, tensors)

    def in_groups(self, optimizer: Optimizer) -> list[list[ParameterName]]:
        """The names of an optimizer's parameters. Raises `ValueError` for one that no object holds."""
        groups: list[list[torch.Tensor]] = [group["params"] for group in optimizer.param_groups]
        every = _parameters(optimizer)
        if not self.first:
            numbers = iter(range(len(every)))
            return [[("", str(next(numbers))) for _ in group] for group in groups]
        unknown = [parameter for parameter in every if id(parameter) not in self.first]
        if unknown:
            raise ValueError(
                f"{len(unknown)} of the {len(every)} parameters of this {type(optimizer).__name__} belong to none of "
                f"the objects given, the first of shape {list(unknown[0].shape)}: give the modules, or the tensors "
                "by name, that it optimises; one that was copied or converted after the optimizer was made is "
                "another module"
            )
        return [[self.first[id(parameter)] for parameter in group] for group in groups]


def capture_optimizer(optimizer: Optimizer, names: ParameterNames) -> dict[str, object]:
    """`class`; `groups`: the names, shapes and options of the parameters of each; `state`: by object and name what the
    optimizer knows of each parameter; `shared`: what it knows of none; `more`: what its class adds to a state dict.
    """
    named = names.in_groups(optimizer)
    in_order = [each for group in named for each in group]
    packed = optimizer.state_dict()
    state: dict[str, dict[str, object]] = {}
    shared: dict[object, object] = {}
    for key, value in packed["state"].items():
        if isinstance(key, int) and key < len(in_order):
            owner, name = in_order[key]
            state.setdefault(owner, {})[name] = copied(value)
        else:
            shared[key] = copied(value)
    groups = [
        {
            "parameters": each,
            "shapes": [list(parameter.shape) for parameter in ours["params"]],
            "options": {key: copied(value) for key, value in group.items() if key not in _NOT_OPTIONS},
        }
        for each, ours, group in zip(named, optimizer.param_groups, packed["param_groups"], strict=True)
    ]
    more = {key: copied(value) for key, value in packed.items() if key not in {"state", "param_groups"}}
    return {"class": class_text(type(optimizer)), "groups": groups, "state": state, "shared": shared, "more": more}


def plan_optimizer(
    name: str, optimizer: Optimizer, captured: Mapping[str, Any], names: ParameterNames, *, owned: bool
) -> Part:
    """`owned`: whether the optimizer may keep the tensors."""
    cls = class_text(type(optimizer))
    if captured["class"] != cls:
        problem = f"{name}: this is a {cls}, the checkpoint has a {captured['class']}"
        return Part(Differences(mismatched=[problem]), lambda: optimizer)
    try:
        ours = names.in_groups(optimizer)
    except ValueError as error:
        return Part(Differences(mismatched=[f"{name}: {error}"]), lambda: optimizer)
    by_name = {**names.tensors, **dict(zip(chain(*ours), _parameters(optimizer), strict=True))}
    matches, differences = _match(name, optimizer, captured["groups"], by_name)
    differences.missing += [
        _text(name, each) for each, saved in zip(chain(*ours), matches.saved_names, strict=True) if saved is None
    ]
    # What a class of one's own does then is not known.
    if not differences.mismatched and type(optimizer).__module__.startswith("torch.optim"):
        # One that nobody else uses, of empty tensors, says what is wrong.
        _load(copy.copy(optimizer), {**captured, "state": _emptied(captured["state"])}, matches, owned=True)

    def apply() -> Optimizer:
        _load(optimizer, captured, matches, owned=owned)
        return optimizer

    return Part(differences, apply, OPTIMIZER_RANK)


def _parameters(optimizer: Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


@dataclass(frozen=True, slots=True)
class _Matches:
    """For each group of an optimizer, the options that it is to have; for each of its parameters, in their order, the
    name under which its state was saved, or None.
    """

    options: list[Mapping[str, Any]]
    saved_names: list[ParameterName | None]


def _match(
    name: str,
    optimizer: Optimizer,
    groups: Sequence[Mapping[str, Any]],
    by_name: Mapping[ParameterName, torch.Tensor],
) -> tuple[_Matches, Differences]:
    differences = Differences()
    parameters = _parameters(optimizer)
    wanted = {id(parameter) for parameter in parameters}
    # By the tensor that is meant: a tied one may have been saved under another of its names.
    found: dict[int, tuple[int, ParameterName]] = {}
    for number, group in enumerate(groups):
        for saved_name, shape in zip(map(tuple, group["parameters"]), group["shapes"], strict=True):
            parameter = by_name.get(saved_name)
            if parameter is None or id(parameter) not in wanted:
                differences.unexpected.append(_text(name, saved_name))
                continue
            found[id(parameter)] = number, saved_name
            if (problem := _misfit(parameter, shape)) is not None:
                differences.mismatched.append(f"{_text(name, saved_name)}: {problem}")
    options: list[Mapping[str, Any]] = []
    for number, group in enumerate(optimizer.param_groups):
        origins = sorted({found[id(each)][0] for each in group["params"] if id(each) in found})
        differences.mismatched += [f"{name}: group {number} {problem}" for problem in _apart(origins, groups)]
        # What a newer torch has added keeps its value.
        own = {key: value for key, value in group.items() if key not in _NOT_OPTIONS}
        options.append({**own, **(groups[origins[0]]["options"] if origins else {})})
    saved_names = [found[id(parameter)][1] if id(parameter) in found else None for parameter in parameters]
    in_order = [tuple(each) for group in groups for each in group["parameters"]]
    if isinstance(optimizer, torch.optim.LBFGS) and saved_names != in_order:
        differences.mismatched.append(
            f"{name}: LBFGS keeps one vector of all parameters, which are others here, or in another order"
        )
    return _Matches(options, saved_names), differences


def _misfit(parameter: torch.Tensor, shape: Sequence[int]) -> str | None:
    if list(parameter.shape) != list(shape):
        return f"the parameter has shape {list(parameter.shape)}, the checkpoint's {list(shape)}"
    if parameter.is_meta:
        return (
            "the parameter is on the meta device; restore the module first, and make the optimizer of what it has then"
        )
    return None


def _apart(origins: Sequence[int], groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """What keeps parameters of several groups of the checkpoint from being one group."""
    problems: list[str] = []
    for origin in origins[1:]:
        first, options = groups[origins[0]]["options"], groups[origin]["options"]
        differ = [key for key, value in options.items() if key not in first or not _equal(first[key], value)]
        if differ:
            problems.append(
                f"has parameters of groups {origins[0]} and {origin} of the checkpoint, whose "
                f"{', '.join(map(str, differ))} differ"
            )
    return problems


def _text(name: str, parameter: ParameterName) -> str:
    return "/".join(part for part in (name, *parameter) if part)


def _equal(a: Any, b: Any) -> bool:
    # A learning rate may be a tensor.
    return bool(torch.equal(a, b)) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else bool(a == b)


def _load(optimizer: Optimizer, captured: Mapping[str, Any], matches: _Matches, *, owned: bool) -> None:
    state: dict[Any, Any] = {}
    for number, saved_name in enumerate(matches.saved_names):
        if saved_name is not None:
            owner, name = saved_name
            if name in captured["state"].get(owner, {}):
                state[number] = _tensors(captured["state"][owner][name], owned=owned)
    groups = []
    first = 0
    for group, options in zip(optimizer.param_groups, matches.options, strict=True):
        count = len(group["params"])
        groups.append({**_tensors(options, owned=owned), "params": list(range(first, first + count))})
        first += count
    shared = _tensors(captured["shared"], owned=owned)
    more = _tensors(captured["more"], owned=owned)
    optimizer.load_state_dict({**more, "state": {**shared, **state}, "param_groups": groups})
    if type(optimizer).load_state_dict is not Optimizer.load_state_dict:
        return
    # torch casts all states of a parameter to its dtype, which takes float32 moments from bfloat16 parameters.
    parameters = _parameters(optimizer)
    for number, saved in state.items():
        loaded = optimizer.state[parameters[number]]
        for key, value in saved.items():
            # But for the count of steps, of which torch knows where it has to be.
            if key in loaded and key != "step":
                loaded[key] = _uncast(loaded[key], value)


def _tensors(tree: Any, *, owned: bool) -> Any:
    """A tree in new containers, with arrays as tensors, which nobody else has if they are not `owned`."""
    if isinstance(tree, dict):
        new = copy.copy(tree)
        new.update({key: _tensors(value, owned=owned) for key, value in tree.items()})
        return new
    if type(tree) in {list, tuple}:
        return type(tree)(_tensors(value, owned=owned) for value in tree)
    if isinstance(tree, torch.Tensor | np.ndarray):
        tensor: torch.Tensor = as_tensor(tree)
        return tensor if owned else tensor.clone()
    return tree


def _emptied(tree: Any) -> Any:
    """A tree with empty tensors."""
    if isinstance(tree, dict):
        return {key: _emptied(value) for key, value in tree.items()}
    if type(tree) in {list, tuple}:
        return type(tree)(map(_emptied, tree))
    return torch.empty(0, dtype=as_tensor(tree).dtype) if isinstance(tree, torch.Tensor | np.ndarray) else tree


def _uncast(loaded: Any, saved: Any) -> Any:
    """What was loaded, with the dtypes that were saved, where it was put."""
    if isinstance(loaded, torch.Tensor) and isinstance(saved, torch.Tensor):
        return loaded if loaded.dtype == saved.dtype else saved.to(loaded.device)
    if isinstance(loaded, dict) and isinstance(saved, dict):
        return type(loaded)({key: _uncast(value, saved[key]) for key, value in loaded.items()})
    if type(loaded) in {list, tuple} and len(loaded) == len(saved):
        return type(loaded)(map(_uncast, loaded, saved))
    return saved if isinstance(saved, str | bytes) else loaded
