"""The states of all generators of a process: Python's, numpy's, torch's, and those of its devices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import distributed

from pytreeckpt.training import Differences, Part, by_rank, capture_globals, of_rank, plan_globals
from pytreeckpt_torch.modules import as_tensor

RNG_RANK = 2
"""Last: nothing that comes later may draw."""


def rank_and_size() -> tuple[int, int]:
    """The rank of this process and how many there are, 0 and 1 without torch.distributed."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def capture_rng(*, gather: bool) -> dict[str, object]:
    """The states of this process by its rank; with `gather`, which all processes have to call, those of all."""
    rank, size = rank_and_size()
    mine = _capture()
    ranks: dict[int, object] = {rank: mine}
    if gather and size > 1:
        every: list[Any] = [None] * size
        distributed.all_gather_object(every, mine)
        ranks = dict(enumerate(every))
    return by_rank(ranks, world_size=size)


def _capture() -> dict[str, object]:
    states = {**capture_globals(), "torch": torch.get_rng_state()}
    # A device that was not used has no state yet, and asking for it would make it used.
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch has no type for it
        states["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def plan_rng(name: str, captured: Mapping[str, Any]) -> Part:
    """What putting the states of this process back comes to."""
    differences = Differences()
    rank, size = rank_and_size()
    mine = of_rank(name, captured, rank=rank, world_size=size, differences=differences)
    if mine is None:
        return Part(differences, lambda: None)
    parts = plan_globals(name, mine)
    for part in parts:
        differences.add(part.differences)
    cuda = mine.get("cuda")
    if cuda is not None and len(cuda) != torch.cuda.device_count():
        differences.mismatched.append(
            f"{name}: the checkpoint has the states of {len(cuda)} CUDA devices, and {torch.cuda.device_count()} are "
            "here; seed anew and give rng=False"
        )
    if "mps" in mine and not torch.backends.mps.is_available():
        differences.mismatched.append(f"{name}: the checkpoint has the state of an MPS device, and there is none here")

    # As with other generators: one that nobody else uses says what is wrong.
    of_torch = as_tensor(mine["torch"]).cpu().clone()
    torch.Generator().set_state(of_torch)

    def apply() -> None:
        for part in parts:
            part.apply()
        torch.set_rng_state(of_torch)
        if cuda is not None:
            torch.cuda.set_rng_state_all([as_tensor(state).cpu() for state in cuda])
        if "mps" in mine:
            torch.mps.set_rng_state(as_tensor(mine["mps"]).cpu())

    return Part(differences, apply, RNG_RANK)
