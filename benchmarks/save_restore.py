"""Saving a state, durably and not, restoring it, and restoring it into arrays that are there already."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.candidates import Candidate, remove, stored_nbytes
from benchmarks.rounds import Job, timed, touch
from benchmarks.states import Tree, map_leaves


def jobs(candidates: Sequence[Candidate], tree: Tree, folder: Path, *, in_place: bool) -> list[Job]:
    """A job for each candidate. All fill the same arrays in place, and all but JAX save the same ones."""
    target = map_leaves(np.zeros_like, tree) if in_place else None
    return [Job(candidate.name, _run(candidate, tree, target, folder)) for candidate in candidates]


def _run(candidate: Candidate, tree: Tree, target: Tree | None, folder: Path) -> Callable[[], Mapping[str, float]]:
    path = folder / f"{candidate.name.replace(' ', '-')}.checkpoint"
    prepared: list[Any] = []

    def run() -> dict[str, float]:
        # Within the run, so that what a candidate cannot hold is a failure of its own.
        if not prepared:
            prepared.append(candidate.prepare(tree))
        try:
            return _once(candidate, prepared[0], target, path)
        finally:
            remove(path)

    return run


def _once(candidate: Candidate, state: Any, target: Tree | None, path: Path) -> dict[str, float]:
    values: dict[str, float] = {}
    for operation, save in (("save", candidate.save), ("save, durable", candidate.save_durable)):
        remove(path)
        # What others have left to be written must not be waited for in here.
        os.sync()
        values[operation], _ = timed(lambda save=save: save(state, path))
    values["size"] = stored_nbytes(path)
    values["restore"], restored = timed(lambda: touch(candidate.restore(path, state)))
    del restored
    if target is not None and candidate.restore_into is not None:
        restore_into, into = candidate.restore_into, candidate.prepare(target)
        values["restore in place"], _ = timed(lambda: touch(restore_into(path, into)))
    return values
