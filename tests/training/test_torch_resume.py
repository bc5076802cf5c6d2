"""Trainings in torch that were stopped and resumed in another process end, bit for bit, as if they had not been."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.optim import lr_scheduler, swa_utils

from tests.training import torch_runs as runs

ROOT = Path(__file__).parents[2]


def run(what, folder):
    """In a process of its own, in which every warning is an error."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.training.torch_runs", what, str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "adapters")])},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """How each training ended, that was not stopped, and that was."""
    folder = tmp_path_factory.mktemp("runs")
    return run("begin", folder), run("go_on", folder)


def differing(one, other):
    """What there is of an end that another does not have the same."""
    assert one.keys() == other.keys()
    return [name for name in one if one[name] != other[name]]


def test_all_optimizers_and_schedulers_of_torch_are_covered():
    optimizers = {value for value in vars(torch.optim).values() if isinstance(value, type)} - {torch.optim.Optimizer}
    assert len(optimizers) >= 14
    used = set()
    schedulers = {
        value
        for module in (lr_scheduler, swa_utils)
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, lr_scheduler.LRScheduler)
        and value not in {lr_scheduler.LRScheduler, lr_scheduler._LRScheduler}
    }
    assert len(schedulers) >= 16
    scheduled = set()
    for name, make in runs.OPTIMIZERS.items():
        made = make(runs.Net(sparse=name == "SparseAdam"), 0.1)
        used |= {type(each) for each in (made.values() if isinstance(made, dict) else [made])}
    for make in runs.SCHEDULERS.values():
        scheduled.add(type(make(runs.OPTIMIZERS["AdamW"](runs.Net(sparse=False), 0.1), 0.1)))
    assert used == optimizers
    assert scheduled == schedulers


# One test of all of them: each of the two processes takes seconds to begin.


def test_every_training_ends_as_if_it_had_never_been_stopped(ends):
    begun, resumed = ends
    names = [runs.title(*case) for case in runs.CASES]
    assert len(names) > len(runs.OPTIMIZERS) * len(runs.SCHEDULERS)
    assert {name: differing(begun[name], resumed[name]) for name in names} == {name: [] for name in names}


def test_the_trainings_are_different_ones_and_come_to_numbers(ends):
    begun, _ = ends
    names = [runs.title(*case) for case in runs.CASES]
    losses = {tuple(begun[name]["losses"]) for name in names}
    # Constant rates and plain numbers apart, each combination has its own losses.
    assert len(losses) > len(runs.OPTIMIZERS) * len(runs.SCHEDULERS) * 0.9
    assert all(len(begun[name]["losses"]) == runs.STEPS for name in names)
    assert not any("nan" in loss or "inf" in loss for each in losses for loss in each)


def test_saving_changes_nothing_in_the_training(ends):
    begun, _ = ends
    for moment in [(runs.USUAL_MOMENT, 0), *runs.MOMENTS]:
        if moment[1] == 0:
            assert differing(begun["never saved"], begun[runs.title(*runs.ONE, *moment)]) == []


@pytest.mark.parametrize("left_out", runs.LEFT_OUT)
def test_a_training_that_is_resumed_without_one_of_its_objects_ends_otherwise(ends, left_out):
    begun, resumed = ends
    changed = differing(begun[runs.title(*runs.ONE)], resumed[f"without {left_out}"])
    itself = {"loader": "losses", "rng": "torch"}.get(left_out, left_out)
    assert itself in changed
