"""A training that is ended at any time, in whatever way, goes on to the same end, bit for bit, and leaves nothing
behind that is not whole.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import pytreeckpt as ptc
from pytreeckpt.run.reading import read_run
from tests.exact import difference
from tests.run.numpy_training import advance, first

PROGRAMS = Path(__file__).parent
STEPS = 40
SIGTERM, SIGINT, SIGKILL, SIGUSR1 = signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGUSR1
slowly = pytest.mark.slow


class Reference:
    """The training that is never stopped, as far as it is needed."""

    def __init__(self):
        self.state = first()

    def losses(self, n_steps):
        while self.state["step"] < n_steps:
            advance(self.state)
        return self.state["losses"][:n_steps]


@pytest.fixture(scope="module")
def reference():
    return Reference()


class Child:
    """A process that trains: what it says, and how it ends."""

    def __init__(self, root, *flags, steps=STEPS, save_every=5, program="numpy_training.py"):
        self.output = ""
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAMS / program), str(root), str(steps), str(save_every), *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Without a buffer, in which `communicate` would not find what was read ahead of the lines.
            bufsize=0,
            # A group of its own, as a terminal makes one.
            process_group=0,
        )

    def read(self, n_lines):
        for _ in range(n_lines):
            self.output += self.process.stdout.readline().decode()
        return self

    def send(self, signum, *, whole_group=False):
        (os.killpg if whole_group else os.kill)(self.process.pid, signum)
        return self

    def end(self):
        """The exit status, and what it said on standard error."""
        output, errors = self.process.communicate(timeout=60)
        self.output += output.decode()
        return self.process.returncode, errors.decode()

    @property
    def losses(self):
        return dict(re.findall(r"^(\d+) (\S+0x\S+|0x\S+)$", self.output, re.MULTILINE))

    @property
    def last_step(self):
        return max(map(int, self.losses))


def check_what_they_said(children, reference):
    """Every loss that any of them told is that of the training that was not stopped."""
    said = [(int(step), loss) for child in children for step, loss in child.losses.items()]
    losses = reference.losses(max((step for step, _ in said), default=0))
    assert [(step, loss) for step, loss in said if losses[step - 1].hex() != loss] == []


def check_end(root, reference, *flags):
    """One more process trains to the end, and its last step is that of the training that was not stopped."""
    last = Child(root, *flags)
    status, errors = last.end()
    assert (status, errors) == (0, "")
    assert last.output.endswith("done\n")
    run = read_run(root)
    assert run.latest == STEPS
    assert run.problems == ()
    whole = first()
    for _ in range(STEPS):
        advance(whole)
    assert difference(ptc.restore(run.path(STEPS)), whole) is None


def check_folder(root, *, temporaries=0):
    """Every step is whole, and there is no more beside them than a kill may leave."""
    run = read_run(root)
    assert run.problems == ()
    assert len([name for name in run.leftovers if name.endswith(".tmp")]) <= temporaries
    for record in run.records:
        assert ptc.verify(run.path(record.step)).ok
    return run


@pytest.mark.parametrize(
    ("signum", "flags"),
    [(SIGTERM, ()), (SIGINT, ("background",)), (SIGUSR1, ("usr1", "incremental"))],
    ids=lambda value: getattr(value, "name", "+".join(value) if isinstance(value, tuple) else None),
)
def test_a_signal_saves_the_step_that_it_is_at_and_the_status_is_the_usual_one(tmp_path, reference, signum, flags):
    child = Child(tmp_path, *flags).read(8)
    status, errors = child.send(signum).end()
    assert status == 128 + signum
    run = check_folder(tmp_path)
    assert run.latest == child.last_step
    # "scheduled" if it came when that step was saved anyway.
    assert [record.reason for record in run.records] in (["scheduled", "interrupt"], ["scheduled", "scheduled"])
    assert errors == f"{signum.name} came: step {child.last_step} was saved, as {run.path(child.last_step)}\n"
    check_what_they_said([child], reference)
    check_end(tmp_path, reference, *flags)


@pytest.mark.parametrize("flags", [(), ("background", "incremental")], ids=["", "background+incremental"])
@pytest.mark.parametrize("kills", [4, pytest.param(150, marks=slowly)])
def test_killed_at_any_time_it_goes_on_from_the_last_step(tmp_path, reference, kills, flags):
    children = []
    rounds = 0
    while len(children) < kills:
        root = tmp_path / str(rounds)
        root.mkdir(exist_ok=True)
        before = read_run(root).latest or 0
        # A save takes longer than a step, so that most of the kills come within one.
        child = Child(root, *flags, save_every=2).read(1 + random.randrange(4))
        time.sleep(random.random() / 50)
        status, errors = child.send(SIGKILL).end()
        if status == 0:
            # It was done before.
            rounds += 1
            continue
        assert status == -SIGKILL, errors
        children.append(child)
        assert child.output.startswith(f"start {before}\n")
        after = check_folder(root, temporaries=len(children)).latest or 0
        if child.losses:
            # What it saved before it went on to the next step, or, in the background, to the next save.
            assert after >= max(before, (child.last_step - 1) // 2 * 2 - (2 if "background" in flags else 0))
    check_what_they_said(children, reference)
    for each in range(rounds + 1):
        check_end(tmp_path / str(each), reference, *flags)


@pytest.mark.parametrize("flags", [(), ("background",)], ids=["", "background"])
@pytest.mark.parametrize("rounds", [3, pytest.param(100, marks=slowly)])
def test_a_second_ctrl_c_is_obeyed_at_once_and_leaves_nothing_partial(tmp_path, reference, rounds, flags):
    statuses = []
    for each in range(rounds):
        child = Child(tmp_path, *flags, save_every=2, steps=10_000).read(2 + each % 3)
        child.send(SIGINT)
        time.sleep(random.random() / 100)
        statuses.append(child.send(SIGINT).end()[0])
        check_folder(tmp_path)
        assert child.losses
        check_what_they_said([child], reference)
    # A KeyboardInterrupt that nobody catches ends Python by the signal itself.
    assert set(statuses) <= {128 + SIGINT, -SIGINT}
    if rounds >= 100:
        assert -SIGINT in statuses


def test_what_a_terminal_sends_to_the_whole_group_leaves_workers_at_work_until_the_safe_point(tmp_path, reference):
    child = Child(tmp_path, "worker").read(4)
    status, errors = child.send(SIGINT, whole_group=True).end()
    assert (status, errors.count("\n")) == (130, 1)
    assert child.output.endswith(f"worker {-SIGTERM}\n")
    assert check_folder(tmp_path).latest == child.last_step
    check_end(tmp_path, reference)


@slowly
@pytest.mark.parametrize("signum", [SIGINT, SIGUSR1])
def test_the_workers_of_a_loader_of_torch_do_not_end_before_the_safe_point(tmp_path, signum):
    pytest.importorskip("torch")
    child = Child(tmp_path, program="torch_workers.py").read(10)
    status, errors = child.send(signum, whole_group=True).end()
    assert status == 128 + signum
    step = int(child.output.split()[-1])
    assert errors == f"{signum.name} came: step {step} was saved, as {tmp_path}/step-{step:08d}.ptck\n"
    assert check_folder(tmp_path).latest == step


def test_an_exception_leaves_a_step_that_is_not_gone_on_from_by_itself(tmp_path, reference):
    child = Child(tmp_path, "fail", steps=13)
    status, errors = child.end()
    assert status == 1
    assert "FloatingPointError: the loss is not a number\nan emergency step was saved, step 13, as " in errors
    run = check_folder(tmp_path)
    assert [(record.step, record.reason) for record in run.records] == [
        (5, "scheduled"),
        (10, "scheduled"),
        (13, "exception"),
    ]
    assert run.latest == 10
    again = Child(tmp_path, "fail", steps=13)
    assert "no emergency step was saved, since step 13 was there already" in again.end()[1]
    assert again.output.startswith("start 10\n")
    check_end(tmp_path, reference)


def test_if_nothing_can_be_saved_the_status_is_not_that_of_success(tmp_path):
    child = Child(tmp_path, "full", save_every=1000, steps=100_000).read(3)
    status, errors = child.send(SIGTERM).end()
    assert status == 1
    assert "StorageError" in errors
    assert errors.endswith("SIGTERM had come before, to end the process\n")
    assert read_run(tmp_path).records == ()
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


def test_the_training_in_numpy_needs_all_of_its_state():
    """Otherwise nothing that is checked here would say anything."""
    for name in ("weights", "momentum", "generator"):
        state, other = first(), first()
        for _ in range(3):
            advance(state)
        advance(other)
        other[name] = state[name].copy() if isinstance(state[name], np.ndarray) else state[name]
        other["losses"] = []
        advance(state)
        advance(other)
        assert state["losses"][-1] != other["losses"][-1]
