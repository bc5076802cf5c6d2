"""Modules as sides of a conversion: what `pytreeckpt.convert` sees of one, and how it is run to be compared."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from pytreeckpt import Described, UnsupportedTypeError
from pytreeckpt.convert import Computes
from pytreeckpt_torch.modules import as_tensor
from pytreeckpt_torch.names import layers_of, parameters_by_name, raw_keys
from pytreeckpt_torch.training import capture, restore_into


def describe(value: object) -> Described | None:
    """A module: its state dict, without the names of wrappers, and its layers. An optimizer is refused, with advice."""
    if isinstance(value, torch.optim.Optimizer):
        raise UnsupportedTypeError(
            f"a {type(value).__name__} does not know the names of its parameters: give "
            "pytreeckpt_torch.capture(model=…, optimizer=…)"
        )
    if not isinstance(value, nn.Module):
        return None
    state = value.state_dict()
    tree = OrderedDict((name, state[key]) for name, key in raw_keys(value, state).items())
    parameters = parameters_by_name(value)
    return Described("torch", tree, (), layers_of(value), frozenset(name for name in tree if name not in parameters))


def half_square(outputs: Any) -> torch.Tensor:
    """Half the sum of squares of all floating-point tensors in `outputs`: a loss that every model has."""
    total = torch.zeros((), dtype=torch.float64)
    for each in _tensors(outputs):
        if each.is_floating_point():
            total = total + each.double().square().sum() / 2
    return total


def computes(
    call: Callable[[nn.Module, Any], Any] | None = None,
    *,
    loss: Callable[[Any], torch.Tensor] = half_square,
    **objects: object,
) -> Computes:
    """How to run a model for `Plan.verify`: `computes(model=model, optimizer=optimizer)`, by the names that the objects
    have in the tree that `capture` made.

    The module among them is copied, converted to float64 and set to evaluation mode. `call(module, inputs)`: its
    outputs, by default of the module called with `inputs`, or with `*inputs` for a tuple, as tensors; all tensors among
    them are compared, integers too. `loss(outputs)`: a scalar; parameters that it does not reach have gradients of
    zeros. With an optimizer, a step of it can be compared too.
    """
    names = [name for name, value in objects.items() if isinstance(value, nn.Module)]
    if len(names) != 1:
        raise ValueError(f"one of the objects has to be a module, not {len(names)}")
    (name,) = names
    optimizers = {key: each for key, each in objects.items() if isinstance(each, torch.optim.Optimizer)}

    def prepared(tree: Any) -> dict[str, Any]:
        # Together, so that the optimizer's parameters are the copy's.
        copies: dict[str, Any] = copy.deepcopy({name: objects[name], **optimizers})
        module: nn.Module = copies[name].double().eval()
        if "training" in tree:
            restore_into(tree, rng=False, strict=False, cast=True, **copies)
        else:
            module.load_state_dict({key: as_tensor(each) for key, each in tree.items()})
        return copies

    def run(module: nn.Module, inputs: Any) -> Any:
        given = _as_tensors(inputs)
        if call is not None:
            return call(module, given)
        return module(*given) if isinstance(given, tuple) else module(given)

    def outputs(tree: Any, inputs: Any) -> list[Any]:
        with torch.no_grad():
            return [each.resolve_conj().resolve_neg().numpy() for each in _tensors(run(prepared(tree)[name], inputs))]

    def gradients(tree: Any, inputs: Any) -> Any:
        module = prepared(tree)[name]
        for parameter in module.parameters():
            # The other side does not know which ones are frozen.
            parameter.requires_grad_(parameter.is_floating_point())
        torch.autograd.backward(loss(run(module, inputs)))
        found = {
            key: (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).detach().numpy()
            for key, parameter in parameters_by_name(module).items()
            if parameter.is_floating_point()
        }
        return {**tree, name: {**tree[name], "state": found}} if "training" in tree else found

    def step(tree: Any, inputs: Any) -> Any:
        copies = prepared(tree)
        torch.autograd.backward(loss(run(copies[name], inputs)))
        for optimizer in optimizers:
            copies[optimizer].step()
        return capture(rng=False, **copies)

    return Computes(outputs, gradients, step if optimizers else None)


def _as_tensors(inputs: Any) -> Any:
    if isinstance(inputs, tuple):
        return tuple(map(_as_tensors, inputs))
    if isinstance(inputs, Mapping):
        return {key: _as_tensors(value) for key, value in inputs.items()}
    return torch.as_tensor(inputs)


def _tensors(outputs: Any) -> list[torch.Tensor]:
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        return [each for value in outputs.values() for each in _tensors(value)]
    if isinstance(outputs, list | tuple):
        return [each for value in outputs for each in _tensors(value)]
    return []
