"""What is saved, and what is raised, when a signal or an exception ends a training."""

import functools
import logging
import os
import signal

import numpy as np
import pytest

from pytreeckpt.run.interrupts import SIGNALS, Interrupted
from pytreeckpt.run.safe_points import Guards, checkpoint, guarded

SIGTERM, SIGINT = signal.SIGTERM, signal.SIGINT


class Memory:
    """What safe points need of a manager, in memory: steps by number, and what was asked for, in order."""

    def __init__(self, *, due=()):
        self.due = frozenset(due)
        self.saved = {}
        self.pending = []
        self.calls = []
        self.guards = Guards()
        self.fail = None

    @property
    def latest(self):
        return max((step for step, (_, reason) in self.saved.items() if reason != "exception"), default=None)

    def steps(self):
        return sorted(self.saved)

    def path(self, step):
        return f"run/step-{step:08d}.ptck"

    def should_save(self, step, *, metrics=None, epoch=None):
        return step in self.due

    def save(
        self,
        step,
        tree,
        *,
        metrics=None,
        metadata=None,
        epoch=None,
        blocking=True,
        if_exists="error",
        reason="scheduled",
    ):
        self.calls.append((step, reason, blocking))
        if self.fail is not None:
            raise self.fail
        assert if_exists == "replace" or step not in self.saved
        if blocking:
            self.saved[step] = tree, reason
        else:
            self.pending.append((step, (tree, reason)))
        return f"handle of {step}"

    def wait(self):
        self.calls.append("wait")
        for step, content in self.pending:
            if isinstance(content[0], Exception):
                self.pending = []
                raise content[0]
            self.saved[step] = content
        self.pending = []

    def checkpoint(self, step, state, *, metrics=None, metadata=None, epoch=None, blocking=True):
        return checkpoint(
            self, self.guards, step, state, metrics=metrics, metadata=metadata, epoch=epoch, blocking=blocking
        )

    def guard(self, state=None, *, signals=SIGNALS):
        return guarded(self, self.guards, state, signals)


@pytest.fixture(autouse=True)
def handlers_are_put_back():
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    signal.signal(SIGTERM, signal.SIG_DFL)
    signal.signal(SIGINT, signal.default_int_handler)
    yield
    assert [signal.getsignal(signum) for signum in SIGNALS] == [signal.SIG_DFL, signal.default_int_handler]
    for signum, handler in before.items():
        signal.signal(signum, handler)


def train(manager, steps, *, signals_at=(), signum=SIGTERM, fail_at=None, blocking=True, state=True):
    """A training that counts."""
    at = 0

    def tree():
        return f"tree {at}"

    with manager.guard((lambda: (at, tree())) if state else None):
        for _ in range(steps):
            at += 1
            if at in signals_at:
                signal.raise_signal(signum)
            if at == fail_at:
                raise ZeroDivisionError("the loss is not a number")
            manager.checkpoint(at, tree, blocking=blocking)
    return at


def stop_at(manager, step, tree="tree", *, signals=(SIGTERM,), blocking=True):
    """A training that is told to end before a safe point."""
    with manager.guard():
        for signum in signals:
            signal.raise_signal(signum)
        manager.checkpoint(step, tree, blocking=blocking)


def test_without_a_signal_what_is_due_is_saved_and_nothing_else():
    manager = Memory(due={3, 6})
    assert train(manager, 8) == 8
    assert manager.saved == {3: ("tree 3", "scheduled"), 6: ("tree 6", "scheduled")}


@pytest.mark.parametrize("signum", SIGNALS)
def test_after_a_signal_one_step_is_saved_and_the_process_is_left(signum):
    manager = Memory(due={3, 6})
    with pytest.raises(Interrupted) as caught:
        train(manager, 8, signals_at=[5], signum=signum)
    assert manager.saved == {3: ("tree 3", "scheduled"), 5: ("tree 5", "interrupt")}
    assert caught.value.code == 128 + signum
    assert str(caught.value) == f"{signum.name} came: step 5 was saved, as run/step-00000005.ptck"


def test_it_is_said_in_the_log_as_python_says_nothing(caplog):
    with caplog.at_level(logging.WARNING, "pytreeckpt"), pytest.raises(Interrupted) as caught:
        train(Memory(), 2, signals_at=[1])
    assert [record.getMessage() for record in caplog.records] == [str(caught.value)]


def test_a_second_sigterm_changes_nothing():
    manager = Memory()
    with pytest.raises(Interrupted):
        stop_at(manager, 1, signals=[SIGTERM, SIGTERM])
    assert manager.saved == {1: ("tree", "interrupt")}


def test_a_step_that_is_due_when_the_signal_came_is_saved_once():
    manager = Memory(due={5})
    with pytest.raises(Interrupted):
        train(manager, 8, signals_at=[5])
    assert manager.saved == {5: ("tree 5", "interrupt")}
    assert [call for call in manager.calls if call != "wait"] == [(5, "interrupt", True)]


def test_a_signal_that_comes_while_a_due_step_is_saved_ends_it_there():
    manager = Memory(due={5})

    def tree():
        signal.raise_signal(SIGTERM)
        return "tree"

    with pytest.raises(Interrupted, match="step 5 was saved"):
        stop_at(manager, 5, tree, signals=(), blocking=False)
    assert manager.saved == {5: ("tree", "scheduled")}


def test_a_step_that_is_the_newest_already_is_not_saved_again():
    manager = Memory()
    manager.saved[5] = "resumed from", "scheduled"
    with pytest.raises(Interrupted, match="step 5 was there already"):
        stop_at(manager, 5)
    assert manager.saved == {5: ("resumed from", "scheduled")}


def test_a_step_that_an_exception_left_is_replaced_by_one_of_the_training():
    for due in (), {5}:
        manager = Memory(due=due)
        manager.saved = {2: ("resumed from", "scheduled"), 5: ("NaN", "exception")}
        with pytest.raises(Interrupted):
            train(manager, 8, signals_at=[5 if not due else 6])
        assert manager.saved[5] == ("tree 5", "scheduled" if due else "interrupt")


def test_what_is_saved_in_the_background_is_finished_before_leaving():
    manager = Memory(due={3, 4})
    with pytest.raises(Interrupted):
        train(manager, 8, signals_at=[5], blocking=False)
    assert sorted(manager.saved) == [3, 4, 5]
    assert not manager.pending
    assert manager.calls[-1] == (5, "interrupt", True)


def test_an_earlier_save_that_failed_does_not_keep_the_last_one_from_being_saved():
    manager = Memory()
    manager.pending.append((3, (OSError("disk full"), "scheduled")))
    with pytest.raises(Interrupted, match=r"step 5 was saved, .* \(an earlier save had failed: OSError: disk full\)"):
        stop_at(manager, 5)
    assert manager.saved == {5: ("tree", "interrupt")}


def test_if_the_last_save_fails_its_error_is_raised_and_says_of_the_signal():
    manager = Memory()
    manager.fail = OSError("disk full")
    with pytest.raises(OSError, match="disk full") as caught:
        train(manager, 8, signals_at=[5])
    assert caught.value is manager.fail
    assert caught.value.__notes__ == [
        "no emergency step was saved, since it is saving that failed",
        "SIGTERM had come before, to end the process",
    ]
    assert manager.calls.count((5, "interrupt", True)) == 1
    assert len(manager.calls) == 2


def test_the_end_of_a_guard_is_a_safe_point_too():
    manager = Memory(due={3})

    def train_until_told():
        at = 0
        with manager.guard(lambda: (at, "tree")):
            while manager.guards.signum is None:
                at += 1
                if at == 4:
                    signal.raise_signal(SIGINT)

    with pytest.raises(Interrupted, match="step 4 was saved"):
        train_until_told()
    assert manager.saved == {4: ("tree", "interrupt")}


def test_a_signal_in_the_last_moment_of_a_guard_is_not_lost(monkeypatch):
    manager = Memory()
    install = signal.signal

    def late(signum, handler):
        if signum == SIGTERM and handler == signal.SIG_DFL:
            signal.raise_signal(SIGTERM)
        return install(signum, handler)

    with pytest.raises(Interrupted, match="step 7 was saved"), manager.guard(lambda: (7, "tree")):
        monkeypatch.setattr(signal, "signal", late)
    monkeypatch.undo()
    assert manager.saved == {7: ("tree", "interrupt")}
    assert manager.guards.watches == []


def test_a_guard_without_a_state_leaves_at_its_end_without_saving():
    manager = Memory()
    manager.pending.append((3, ("tree", "scheduled")))
    with (
        pytest.raises(Interrupted, match="no step was saved, since the guard has no state; the newest is 3"),
        manager.guard(),
    ):
        signal.raise_signal(SIGTERM)
    assert manager.saved == {3: ("tree", "scheduled")}


def test_an_exception_leaves_an_emergency_step_and_is_raised_unchanged():
    manager = Memory(due={3})
    with pytest.raises(ZeroDivisionError, match="the loss is not a number") as caught:
        train(manager, 8, fail_at=5)
    assert manager.saved == {3: ("tree 3", "scheduled"), 5: ("tree 5", "exception")}
    (note,) = caught.value.__notes__
    assert note.startswith("an emergency step was saved, step 5, as run/step-00000005.ptck: ")
    assert caught.value.__context__ is None


def test_an_emergency_step_is_never_saved_over_a_step():
    manager = Memory(due={5})

    def fail_in_the_next_step():
        with manager.guard(lambda: (5, "broken")):
            manager.checkpoint(5, "whole", blocking=False)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        fail_in_the_next_step()
    assert manager.saved == {5: ("whole", "scheduled")}
    assert caught.value.__notes__ == [
        "no emergency step was saved, since step 5 was there already, as run/step-00000005.ptck"
    ]


def test_a_forked_child_leaves_no_emergency_step():
    manager = Memory()

    def fail_in_a_child():
        nonlocal child
        with manager.guard(lambda: (5, "tree")):
            child = os.fork()
            raise ZeroDivisionError

    child = None
    try:
        fail_in_a_child()
    except ZeroDivisionError:
        pass
    finally:
        if child == 0:
            # It must not go on with the tests.
            os._exit(len(manager.saved))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert list(manager.saved) == [5]


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_is_no_failure_leaves_no_emergency_step(raised):
    manager = Memory()
    with pytest.raises(raised), manager.guard(lambda: (5, "tree")):
        raise raised
    assert manager.calls == []


def test_if_there_is_no_state_or_it_cannot_be_captured_the_exception_is_what_is_raised():
    def state():
        raise RuntimeError("the arrays were donated")

    notes = []
    for each in (None, state, lambda: {"no": "number"}):
        manager = Memory()
        with pytest.raises(ZeroDivisionError) as caught, manager.guard(each):
            raise ZeroDivisionError
        assert manager.saved == {}
        notes.append(getattr(caught.value, "__notes__", []))
    assert notes[0] == []
    assert notes[1] == ["no emergency step was saved: RuntimeError: the arrays were donated"]
    assert "has to make a tuple of a step's number and a tree" in notes[2][0]


def test_an_exception_after_a_signal_says_of_both():
    with pytest.raises(ZeroDivisionError) as caught:
        train(Memory(), 8, signals_at=[5], fail_at=5)
    assert [note.partition(",")[0] for note in caught.value.__notes__] == [
        "an emergency step was saved",
        "SIGTERM had come before",
    ]


def test_the_second_sigint_comes_out_of_a_save_and_leaves_no_step():
    manager = Memory()

    def tree():
        signal.raise_signal(SIGINT)
        return "never reached"

    with pytest.raises(KeyboardInterrupt):
        stop_at(manager, 1, tree, signals=[SIGINT])
    assert manager.saved == {}


def test_guards_of_two_managers_nest_and_the_inner_one_leaves():
    outer, inner = Memory(), Memory()

    def train_both():
        with outer.guard(lambda: (1, "outer")), inner.guard(lambda: (2, "inner")):
            signal.raise_signal(SIGTERM)
            assert outer.guards.signum == inner.guards.signum == SIGTERM
            inner.checkpoint(2, "inner")

    with pytest.raises(Interrupted, match="step 2 was saved"):
        train_both()
    assert (outer.saved, inner.saved) == ({}, {2: ("inner", "interrupt")})


@pytest.mark.parametrize("inner_signals", [[SIGINT], [SIGINT, SIGTERM]])
def test_guards_of_one_manager_nest_and_the_outer_one_leaves(inner_signals):
    manager = Memory()

    def train_within():
        with manager.guard(lambda: (1, "tree")):
            with manager.guard(signals=inner_signals):
                signal.raise_signal(SIGTERM)
            assert manager.guards.signum == SIGTERM
            manager.checkpoint(1, "tree")

    with pytest.raises(Interrupted, match="step 1 was saved"):
        train_within()
    assert manager.saved == {1: ("tree", "interrupt")}
    assert manager.guards.watches == []


def test_an_earlier_handler_hears_of_the_signal_when_all_is_saved_and_may_leave_itself():
    manager = Memory()
    heard = []

    def earlier(signum, frame):
        heard.append((signum, dict(manager.saved)))
        raise SystemExit(7)

    signal.signal(SIGTERM, earlier)
    with pytest.raises(SystemExit) as caught:
        train(manager, 8, signals_at=[5])
    signal.signal(SIGTERM, signal.SIG_DFL)
    assert heard == [(SIGTERM, {5: ("tree 5", "interrupt")})]
    assert caught.value.code == 7


def test_a_state_is_a_tree_or_a_function_that_makes_one_and_objects_that_can_be_called_are_trees():
    class Module:
        def __call__(self):
            raise AssertionError("a forward pass")

        def tree(self):
            return "of a method"

    module = Module()
    manager = Memory(due=range(9))
    for step, state in enumerate([{"a": 1}, module, module.tree, functools.partial(np.int64, 3), dict, lambda: "tree"]):
        manager.checkpoint(step, state)
    assert [tree for tree, _ in manager.saved.values()] == [{"a": 1}, module, "of a method", 3, dict, "tree"]
