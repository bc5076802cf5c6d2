"""The names of what is in a module, without those of wrappers, and the kinds of its layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

_WRAPPERS: Final = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_MAX_CONFIG_ITEMS: Final = 16


def inner_key(module: nn.Module) -> str | None:
    """The key of the module that a wrapper stands for; None for what is no wrapper."""
    if isinstance(module, _WRAPPERS):
        return "module"
    # By its name: importing the compiler to ask for its class would take seconds.
    return "_orig_mod" if type(module).__name__ == "OptimizedModule" else None


def unwrapped(module: nn.Module) -> nn.Module:
    """The module without the wrappers around it: DataParallel, DistributedDataParallel, torch.compile."""
    while (key := inner_key(module)) is not None:
        module = module.get_submodule(key)
    return module


def _submodules(module: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """All modules but wrappers, each with the prefix of its keys in a state dict, and that without wrappers. A module
    that is in several places comes several times.
    """
    # By raw names: the name without wrappers, and the key of what a wrapper stands for.
    seen: dict[str, tuple[str, str | None]] = {}
    for raw, each in module.named_modules(remove_duplicate=False):
        parent, _, key = raw.rpartition(".")
        name, inner_of_parent = seen.get(parent, ("", None)) if raw else ("", None)
        if raw and key != inner_of_parent:
            name = f"{name}{key}."
        inner = inner_key(each)
        seen[raw] = name, inner
        if inner is None:
            yield f"{raw}." if raw else "", name, each


def raw_keys(module: nn.Module, state: Mapping[str, object]) -> dict[str, str]:
    """For each key of a module's state dict, by its name without wrappers, the key itself."""
    prefixes = {raw: name for raw, name, _ in _submodules(module)}
    found: dict[str, str] = {}
    for key in state:
        prefix = key
        while prefix and prefix not in prefixes:
            # A module may have keys with dots of its own.
            prefix = f"{head}." if (head := prefix[:-1].rpartition(".")[0]) else ""
        found[f"{prefixes.get(prefix, prefix)}{key[len(prefix) :]}"] = key
    return found


def parameters_by_name(module: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters by all of their names, without wrappers: a tied one has several."""
    return {
        f"{name}{key}": parameter
        for _, name, each in _submodules(module)
        for key, parameter in each.named_parameters(recurse=False, remove_duplicate=False)
    }


def non_persistent_names(module: nn.Module, state: Mapping[str, object]) -> list[str]:
    """The buffers that are not in a module's state dict."""
    every = {
        f"{name}{key}"
        for _, name, each in _submodules(module)
        for key, _ in each.named_buffers(recurse=False, remove_duplicate=False)
    }
    return sorted(every - set(raw_keys(module, state)))


def layers_of(module: nn.Module) -> dict[str, dict[str, object]]:
    """For each module by its name: its class, the class of torch.nn that it is a kind of, and its configuration: those
    public attributes that are plain values, such as `in_features`, `groups` or `padding_mode`; False for each parameter
    that it could have and has not (`bias`); and `forward`, "own", for a class that computes otherwise than its kind.
    """
    layers: dict[str, dict[str, object]] = {}
    for _, name, each in _submodules(module):
        cls: type[nn.Module] = type_before_parametrizations(each)
        config = {key: value for key, value in vars(each).items() if key[:1] != "_" and _is_plain(value)}
        config.pop("training", None)
        config.update((key, False) for key, parameter in vars(each).get("_parameters", {}).items() if parameter is None)
        kind = _kind(cls)
        if kind is not nn.Module and cls.forward is not kind.forward:
            config["forward"] = "own"
        layers[name.removesuffix(".")] = {"class": class_text(cls), "kind": class_text(kind), "config": config}
    return layers


def class_text(cls: type) -> str:
    """The name under which a class is known: `torch.nn.Linear`, and not the module where that is defined."""
    for package, public in ((nn, "torch.nn"), (torch.optim, "torch.optim"), (torch.optim.lr_scheduler, _SCHEDULERS)):
        if getattr(package, cls.__name__, None) is cls:
            return f"{public}.{cls.__name__}"
    return f"{cls.__module__}.{cls.__qualname__}"


_SCHEDULERS: Final = "torch.optim.lr_scheduler"


def _kind(cls: type[nn.Module]) -> type[nn.Module]:
    return next(each for each in cls.__mro__ if issubclass(each, nn.Module) and _is_public(each))


def _is_public(cls: type) -> bool:
    return class_text(cls).startswith("torch.nn.")


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return len(value) <= _MAX_CONFIG_ITEMS and all(_is_plain(item) for item in value)
    return value is None or type(value) in {bool, int, float, str}
