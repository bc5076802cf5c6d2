"""Schedulers, scalers, generators, samplers, and whatever has a `state_dict`, as parts of a training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, DistributedSampler, Sampler

from pytreeckpt import UnsupportedTypeError
from pytreeckpt.training import GENERATOR_RANK, Differences, Part, Role, copied, stateful_role
from pytreeckpt_torch.modules import as_tensor
from pytreeckpt_torch.names import class_text
from pytreeckpt_torch.optimizers import ParameterName, ParameterNames


def _class_differs(name: str, value: object, captured: Mapping[str, Any]) -> Differences:
    differences = Differences()
    cls = class_text(type(value))
    if captured["class"] != cls:
        differences.mismatched.append(f"{name}: this is a {cls}, the checkpoint has a {captured['class']}")
    return differences


def _applying(value: Any, load: Callable[[], object]) -> Callable[[], object]:
    def apply() -> object:
        load()
        return value

    return apply


def _nested(scheduler: Any) -> list[object]:
    """The classes of the schedulers that one is made of."""
    return [[class_text(type(each)), _nested(each)] for each in getattr(scheduler, "_schedulers", ())]


def _groups(scheduler: Any, names: ParameterNames) -> list[list[ParameterName]] | None:
    """The names of the parameters in each group of a scheduler's optimizer, or None if no object holds them."""
    optimizer = getattr(scheduler, "optimizer", None)
    try:
        return names.in_groups(optimizer) if isinstance(optimizer, Optimizer) else None
    except ValueError:
        return None


def _capture_scheduler(scheduler: Any, names: ParameterNames) -> dict[str, object]:
    return {
        "class": class_text(type(scheduler)),
        "groups": _groups(scheduler, names),
        "schedulers": _nested(scheduler),
        "state": copied(scheduler.state_dict()),
    }


# Each state is first given to an object that nobody else uses: it says what is wrong, and may have begun by then.


def _moved(ours: Sequence[Sequence[ParameterName]], saved: Sequence[Sequence[ParameterName]]) -> bool:
    """Whether groups are in another order or number: a scheduler has a list with an item for each."""
    before = {tuple(each): number for number, group in enumerate(saved) for each in group}
    return len(ours) != len(saved) or any(
        before.get(each, number) != number for number, group in enumerate(ours) for each in group
    )


def _plan_scheduler(name: str, scheduler: Any, captured: Mapping[str, Any], names: ParameterNames) -> Part:
    differences = _class_differs(name, scheduler, captured)
    if not differences.mismatched and captured["schedulers"] != _nested(scheduler):
        differences.mismatched.append(
            f"{name}: it is made of {_nested(scheduler)}, and in the checkpoint of {captured['schedulers']}"
        )
    groups, saved_groups = _groups(scheduler, names), captured["groups"]
    if groups is not None and saved_groups is not None and _moved(groups, saved_groups):
        differences.mismatched.append(
            f"{name}: the parameter groups of its optimizer are in another order or number than they were; put them in "
            "that of the checkpoint, or leave the scheduler out and begin a new one"
        )
    state = captured["state"]
    # What a class of one's own does then is not known.
    if not differences.mismatched and type(scheduler).__module__.startswith("torch.optim."):
        _twin(scheduler).load_state_dict(copied(state))
    return Part(differences, _applying(scheduler, lambda: scheduler.load_state_dict(copied(state))))


def _twin(scheduler: Any) -> Any:
    """A scheduler of the same optimizer that takes a state without a change to the first one."""
    twin = copy.copy(scheduler)
    for key, value in vars(scheduler).items():
        if key == "_schedulers":
            twin._schedulers = [_twin(each) for each in value]  # noqa: SLF001 - as load_state_dict finds them
        elif key == "lr_lambdas":
            twin.lr_lambdas = [copy.copy(each) for each in value]
        elif key == "_scale_fn_custom":
            twin._scale_fn_custom = copy.copy(value)  # noqa: SLF001 - likewise
    return twin


def _capture_scaler(scaler: torch.amp.GradScaler) -> dict[str, object]:
    return {"class": class_text(type(scaler)), "enabled": scaler.is_enabled(), "state": copied(scaler.state_dict())}


def _plan_scaler(name: str, scaler: torch.amp.GradScaler, captured: Mapping[str, Any]) -> Part:
    differences = Differences()
    if captured["enabled"] != scaler.is_enabled():
        ours, theirs = ("enabled" if enabled else "disabled" for enabled in (scaler.is_enabled(), captured["enabled"]))
        differences.mismatched.append(f"{name}: the scaler is {ours}, that of the checkpoint was {theirs}")
    state = captured["state"]
    if not differences.mismatched:
        other = torch.amp.GradScaler("cpu", enabled=scaler.is_enabled())
        # Before it has scaled anything it would take any scale.
        other.scale(torch.zeros(()))
        other.load_state_dict(copied(state))
    return Part(differences, _applying(scaler, lambda: scaler.load_state_dict(copied(state))))


def _capture_generator(generator: torch.Generator) -> dict[str, object]:
    return {"device": str(generator.device), "state": generator.get_state()}


def _plan_generator(name: str, generator: torch.Generator, captured: Mapping[str, Any]) -> Part:
    differences = Differences()
    if torch.device(captured["device"]).type != generator.device.type:
        # A device has its own kind of generator, whose state says nothing to another's.
        differences.mismatched.append(
            f"{name}: the generator is on {generator.device}, that of the checkpoint was on {captured['device']}"
        )
    # Where it is on a device, its state is on the CPU all the same.
    state = as_tensor(captured["state"]).clone()
    if not differences.mismatched:
        torch.Generator(generator.device).set_state(state)
    return Part(differences, _applying(generator, lambda: generator.set_state(state)), GENERATOR_RANK)


def _capture_sampler(sampler: DistributedSampler[Any]) -> dict[str, object]:
    return {"class": class_text(type(sampler)), "epoch": sampler.epoch, "seed": sampler.seed}


def _plan_sampler(name: str, sampler: DistributedSampler[Any], captured: Mapping[str, Any]) -> Part:
    differences = _class_differs(name, sampler, captured)
    if not differences.mismatched and captured["seed"] != sampler.seed:
        differences.mismatched.append(f"{name}: the seed is {sampler.seed}, that of the checkpoint {captured['seed']}")
    epoch = captured["epoch"]
    return Part(differences, _applying(sampler, lambda: sampler.set_epoch(epoch)))


def _loader_role() -> Role:
    """That of loaders that know how far they are. They begin to iterate at once, for which they draw from the global
    generators: what the program draws afterwards is then the same as if they had gone on.
    """
    role = stateful_role("state_dict", "load_state_dict")

    def plan(name: str, loader: Any, captured: Mapping[str, Any]) -> Part:
        part = role.plan(name, loader, captured)

        def apply() -> object:
            part.apply()
            # torchdata makes the iterator that this is asked of, and uses it for the next loop.
            loader.state_dict()
            return loader

        return Part(part.differences, apply, part.rank)

    return Role(role.name, lambda value: isinstance(value, DataLoader) and role.matches(value), role.capture, plan)


def _refuse(value: object) -> object:
    cls = class_text(type(value))
    if isinstance(value, DataLoader):
        raise UnsupportedTypeError(
            f"a {cls} does not know how far it is: use torchdata's StatefulDataLoader, or give the generator of its "
            "sampler in generators=… and skip the batches that were seen"
        )
    raise UnsupportedTypeError(f"a {cls} has no state_dict: give its generator, in generators=…")


def object_roles(names: ParameterNames) -> list[Role]:
    """Their roles. `names`: those of the parameters of the training's modules."""
    return [
        Role(
            "scheduler",
            lambda value: isinstance(value, LRScheduler),
            lambda scheduler: _capture_scheduler(scheduler, names),
            lambda name, scheduler, state: _plan_scheduler(name, scheduler, state, names),
        ),
        Role("scaler", lambda value: isinstance(value, torch.amp.GradScaler), _capture_scaler, _plan_scaler),
        Role("generator", lambda value: isinstance(value, torch.Generator), _capture_generator, _plan_generator),
        Role("sampler", lambda value: isinstance(value, DistributedSampler), _capture_sampler, _plan_sampler),
        _loader_role(),
        stateful_role("state_dict", "load_state_dict"),
        Role(
            "data",
            lambda value: isinstance(value, DataLoader | Sampler),
            _refuse,
            lambda _name, value, _state: Part(Differences(), lambda: _refuse(value)),
        ),
    ]
