"""Random states by process: each has its own, and another's would repeat what that one drew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytreeckpt.training.parts import Differences


def by_rank(states: Mapping[int, object], *, world_size: int) -> dict[str, object]:
    """How the states of some processes, by rank, are stored."""
    return {"world_size": world_size, "ranks": dict(states)}


def of_rank(
    name: str, captured: Mapping[str, Any], *, rank: int, world_size: int, differences: Differences
) -> Mapping[str, Any] | None:
    """The states of this process, or None, and in `differences` why."""
    ranks = captured["ranks"]
    if captured["world_size"] != world_size:
        differences.mismatched.append(
            f"{name}: {captured['world_size']} processes were at work, and now {world_size} are; seed them anew and "
            "give rng=False"
        )
    elif rank not in ranks:
        differences.mismatched.append(
            f"{name}: the checkpoint has the states of rank {', '.join(map(str, ranks))}, and this is rank {rank}; "
            'capture with rng="gather" in all processes, or seed anew and give rng=False'
        )
    else:
        states: Mapping[str, Any] = ranks[rank]
        return states
    return None
