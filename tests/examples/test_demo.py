"""The tour runs, and what it claims can fail: leaving any random state out of the checkpoint changes the losses."""

import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pytreeckpt as ptc

ROOT = Path(__file__).parents[2]

pytest.importorskip("torch")

from examples.demo import KILL_AT, N_STEPS, SAVE_EVERY, Run, curve  # noqa: E402 - only where torch is installed


@pytest.fixture(scope="module")
def tour(tmp_path_factory):
    pytest.importorskip("jax")
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "examples/demo.py", "--folder", str(folder)]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def test_the_run_is_killed_in_the_middle_of_a_save_and_goes_on_from_the_one_before(tour):
    _, text = tour
    killed = re.search(rf"step {KILL_AT}: kill -9, ([\d.]+) of ([\d.]+) MB", text)
    assert killed
    assert 0 < float(killed[1]) < float(killed[2])
    assert f"run.ptck is intact: it holds step {KILL_AT - SAVE_EVERY}" in text
    assert f"all {N_STEPS} losses are those of the uninterrupted run" in text


def test_the_same_file_is_read_by_three_frameworks(tour):
    _, text = tour
    losses = dict(re.findall(r"^   (torch|jax|numpy) .* loss on all data ([\d.]+)", text, re.MULTILINE))
    assert set(losses) == {"torch", "jax", "numpy"}
    assert np.ptp([float(loss) for loss in losses.values()]) < 1e-5


def test_the_command_line_shows_the_checkpoint_and_finds_the_damage(tour):
    _, text = tour
    assert "$ pytreeckpt inspect run.ptck" in text
    assert re.search(r"^   ok +run\.ptck", text, re.MULTILINE)
    assert re.search(r"^   damaged +damaged\.ptck", text, re.MULTILINE)


def test_no_file_of_the_killed_save_is_left(tour):
    folder, _ = tour
    assert sorted(path.name for path in folder.iterdir()) == ["damaged.ptck", "run.ptck"]
    assert ptc.restore(folder / "run.ptck", select="step")["step"] == N_STEPS


@pytest.fixture
def random_states():
    """Put the global generators back, which the runs seed."""
    import torch

    states = random.getstate(), np.random.get_state(), torch.get_rng_state(), torch.get_num_threads()
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    torch.set_num_threads(states[3])


def train(run, until):
    while run.step < until:
        run.train_one_step()
    return [loss.hex() for loss in run.losses]


@pytest.mark.usefixtures("random_states")
def test_a_resumed_run_needs_all_of_its_state():
    expected = train(Run(), 6)
    first = Run()
    train(first, 3)
    data = ptc.encode(first.checkpoint())
    resumed = Run()
    resumed.go_on_from(ptc.decode(data))
    assert train(resumed, 6) == expected
    for name in ("torch", "numpy", "python"):
        checkpoint = ptc.decode(data)
        # The states of a run that has just begun, in place of the saved one.
        resumed = Run()
        checkpoint["rng"][name] = resumed.checkpoint()["rng"][name]
        resumed.go_on_from(checkpoint)
        assert train(resumed, 6) != expected, name


def test_the_curve_marks_where_the_run_went_on():
    lines = curve([4.0, 2.0, 1.0, 0.5], mark=2, rows=4).splitlines()
    assert [line.rstrip() for line in lines] == [
        "     4.00 │█ ┊",
        "     loss │█ ┊",
        "          │██┊",
        "          │██┊█▄",
        "     0.00 └──┴──",
        f"           step 2 ↑ killed while saving step {KILL_AT}, resumed here",
    ]
