"""Saves in the background: what is in the file, who is told what, and how a program may end meanwhile."""

import gc
import os
import pathlib
import signal
import subprocess
import sys
import threading
import traceback
import weakref

import numpy as np
import pytest
from hypothesis import given

import pytreeckpt as ptc
from pytreeckpt import testing
from pytreeckpt.pipeline import THREADS_VARIABLE, default_threads, ordered_map
from pytreeckpt.saving import BackgroundSaver, SaveHandle, buffers, finished, saver
from pytreeckpt.saving.buffers import BUFFERS, Buffers
from pytreeckpt.saving.memory import control_group_limits, usable_nbytes
from pytreeckpt.snapshots import Needs
from tests.test_snapshots import flat, overwrite

REPORT = ptc.SaveReport("x", 1, 1, 1, 1, 1, "", 0.0)
WAIT_S = 60


class Gate:
    """A `write` that waits until it is let go, and then does what it was told to."""

    def __init__(self, outcome=REPORT):
        self.outcome = outcome
        self.entered = threading.Event()
        self.open = threading.Event()
        self.plans = []

    def __call__(self, plan):
        self.plans.append(plan)
        self.entered.set()
        assert self.open.wait(WAIT_S)
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


@pytest.fixture
def background():
    made = BackgroundSaver()
    yield made
    made.close()


def run(script: str, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """A script in a process of its own, which ends with `code`."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_S,
        cwd=pathlib.Path(__file__).parents[1],
    )
    assert done.returncode == code, done.stderr
    return done


# What is in the file.


@given(testing.trees())
def test_a_tree_that_changes_right_afterwards_is_saved_as_it_was(tmp_path_factory, tree):
    path = tmp_path_factory.getbasetemp() / "changed.ptck"
    expected = ptc.encode(tree, metadata={"step": 3})
    handle = ptc.save_async(tree, path, metadata={"step": 3}, durability="atomic")
    for array in flat(tree).arrays:
        if isinstance(array, np.ndarray):
            overwrite(array)
    assert handle.result().file_nbytes == len(expected)
    assert path.read_bytes() == expected


def test_large_arrays_lists_and_dicts_can_be_changed_at_once(tmp_path):
    tree = {
        "large": np.arange(6 << 20, dtype=np.float32),
        "transposed": np.arange(1 << 20).reshape(1024, 1024).T,
        "gaps": np.arange(1 << 20)[::3],
        "history": [float(number) for number in range(1000)],
        "names": {"a": 1},
    }
    expected = ptc.encode(tree)
    for compression in ("auto", "none", 3):
        expected = ptc.encode(tree, compression=compression)
        handle = ptc.save_async(tree, tmp_path / "x.ptck", compression=compression, durability="atomic")
        kept = {name: value.copy() for name, value in tree.items()}
        for value in tree.values():
            if isinstance(value, np.ndarray):
                np.add(value, 1, out=value)
            else:
                value.clear()
        assert handle.result().root == ptc.open(tmp_path / "x.ptck").root
        assert (tmp_path / "x.ptck").read_bytes() == expected
        tree = kept


def test_a_file_that_is_mapped_is_copied_too(tmp_path):
    mapped = np.memmap(tmp_path / "m", np.float32, "w+", shape=(300, 400))
    mapped[...] = 7
    expected = ptc.encode(mapped)
    handle = ptc.save_async(mapped, tmp_path / "x.ptck")
    mapped[...] = 8
    handle.result()
    assert (tmp_path / "x.ptck").read_bytes() == expected


def test_the_report_is_that_of_a_save(tmp_path):
    tree = {"a": np.ones(100_000), "b": 1}
    report = ptc.save_async(tree, tmp_path / "a.ptck").result()
    other = ptc.save(tree, tmp_path / "b.ptck")
    assert report.path == str(tmp_path / "a.ptck")
    assert (report.root, report.file_nbytes, report.n_chunks) == (other.root, other.file_nbytes, other.n_chunks)
    assert report.elapsed_s > 0


def test_progress_is_told_from_another_thread(tmp_path):
    told = []
    handle = ptc.save_async(
        np.zeros(1 << 20), tmp_path / "x.ptck", progress=lambda now: told.append((now, threading.current_thread()))
    )
    handle.result()
    assert told[-1][0].done_nbytes == told[-1][0].total_nbytes == 8 << 20
    assert all(thread is not threading.current_thread() for _, thread in told)


# One after the other.


def test_the_next_submit_waits_for_the_one_before(background):
    gate, order = Gate(), []
    first = background.submit({"n": 1}, None, "first", gate)
    assert gate.entered.wait(WAIT_S)
    assert not first.done()
    assert "being saved" in repr(first)

    def second():
        handle = background.submit({"n": 2}, None, "second", lambda _plan: order.append("second") or REPORT)
        order.append("submitted")
        handle.result()

    thread = threading.Thread(target=second)
    thread.start()
    thread.join(0.05)
    assert order == []
    gate.open.set()
    thread.join(WAIT_S)
    assert sorted(order) == ["second", "submitted"]
    assert first.done()
    assert first.result() == REPORT


def test_many_threads_may_submit(background):
    done = []

    def submit(number):
        background.submit({"n": number}, None, str(number), lambda _plan: done.append(number) or REPORT)

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    background.wait()
    assert sorted(done) == list(range(8))


def test_waiting_can_end_before_the_save_does(background):
    gate = Gate()
    handle = background.submit(1, None, "x", gate)
    with pytest.raises(TimeoutError, match="the save goes on"):
        handle.result(0.01)
    with pytest.raises(TimeoutError, match="the save goes on"):
        background.wait(0.01)
    gate.open.set()
    background.wait()
    assert handle.result(0) == REPORT


@pytest.mark.parametrize("call", ["result", "submit", "wait", "close"])
def test_a_save_that_would_wait_for_itself_is_an_error(background, call):
    known = threading.Event()
    handles = []

    def write(_plan):
        assert known.wait(WAIT_S)
        (handle,) = handles
        calls = {"result": handle.result, "wait": background.wait, "close": background.close}
        calls.get(call, lambda: background.submit(1, None, "y", write))()

    handles.append(background.submit(1, None, "x", write))
    known.set()
    with pytest.raises(RuntimeError, match="the save of x cannot wait for itself"):
        handles[0].result()
    assert background.submit(1, None, "y", lambda _plan: REPORT).result() == REPORT


def test_a_closed_saver_takes_no_more():
    background = BackgroundSaver()
    handle = background.submit(1, None, "x", lambda _plan: REPORT)
    background.close()
    background.close()
    assert handle.done()
    with pytest.raises(ValueError, match="closed"):
        background.submit(1, None, "x", lambda _plan: REPORT)


# Errors.


def test_what_can_be_known_at_once_is_raised_at_once(tmp_path):
    (tmp_path / "there.ptck").write_bytes(b"")
    with pytest.raises(ptc.CheckpointExistsError, match=r"there\.ptck exists"):
        ptc.save_async(1, tmp_path / "there.ptck", if_exists="error")
    with pytest.raises(ptc.UnsupportedTypeError, match="a: cannot store"):
        ptc.save_async({"a": object()}, tmp_path / "x.ptck")
    with pytest.raises(ptc.LimitError, match="deeper"), ptc.limits(depth=2):
        ptc.save_async([[[1]]], tmp_path / "x.ptck")
    with pytest.raises(ptc.StorageError, match="is a directory"):
        ptc.save_async(1, tmp_path)
    for wrong in ({"compression": "zip"}, {"if_exists": "ask"}, {"durability": "none"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ptc.save_async(1, tmp_path / "x.ptck", **wrong)
    assert [path.name for path in tmp_path.iterdir()] == ["there.ptck"]


def test_a_name_that_the_save_before_takes_is_known_to_be_taken(tmp_path):
    ptc.save_async(np.zeros(1 << 20), tmp_path / "x.ptck", if_exists="error")
    with pytest.raises(ptc.CheckpointExistsError):
        ptc.save_async(1, tmp_path / "x.ptck", if_exists="error")


def test_an_error_is_that_of_the_result_and_of_nothing_else(background):
    handle = background.submit(1, None, "x", lambda _plan: 1 / 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            handle.result()
    assert "ZeroDivisionError" in repr(handle)
    background.wait()
    assert background.submit(1, None, "y", lambda _plan: REPORT).result() == REPORT


@pytest.mark.parametrize("call", ["submit", "wait", "close"])
def test_an_error_that_nobody_asked_for_is_raised_by_the_next_call_once(call):
    background = BackgroundSaver()
    gate = Gate(ZeroDivisionError())
    handle = background.submit(1, None, "some/path", gate)
    gate.open.set()
    with pytest.raises(ZeroDivisionError) as caught:
        {"submit": lambda: background.submit(1, None, "y", gate), "wait": background.wait, "close": background.close}[
            call
        ]()
    assert "some/path" in caught.value.__notes__[0]
    assert handle.done()
    background.wait()
    background.close()
    assert len(gate.plans) == 1


def test_a_failed_save_keeps_nothing_of_its_tree(background):
    class Named(np.ndarray):
        pass

    array = np.zeros(10).view(Named)
    source = ptc.source_of(array.view(np.ndarray))
    kept = weakref.ref(array)

    def write(plan):
        def inner(plan):
            raise OSError(1, f"{len(plan.tasks)}")

        try:
            inner(plan)
        except OSError as error:
            raise ptc.StorageError("no") from error

    handle = background.submit([ptc.ArraySource(array.dtype, (10,), source.boxes, immutable=True)], None, "x", write)
    with pytest.raises(ptc.StorageError) as caught:
        handle.result()
    del array, source
    gc.collect()
    assert kept() is None
    assert "in inner" in "".join(traceback.format_exception(caught.value))


def test_a_handle_can_be_of_a_save_that_has_ended():
    assert finished("x", REPORT).result() == REPORT
    failed = finished("x", ZeroDivisionError())
    assert failed.done()
    with pytest.raises(ZeroDivisionError):
        failed.raise_untold()
    failed.raise_untold()
    with pytest.raises(ZeroDivisionError):
        failed.result()


@pytest.mark.parametrize("at", ["snapshot", "start"])
def test_an_interrupt_leaves_nothing_behind(monkeypatch, background, at):
    def interrupt(*_arguments, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(*{"snapshot": (saver, "snapshot"), "start": (threading.Thread, "start")}[at], interrupt)
        with pytest.raises(KeyboardInterrupt):
            background.submit(np.ones(100_000), None, "x", lambda _plan: REPORT)
    gc.collect()
    assert not BUFFERS.lent
    assert background.submit(1, None, "y", lambda _plan: REPORT).result() == REPORT


def test_a_save_whose_thread_runs_when_the_interrupt_comes_is_finished(monkeypatch, background):
    start = threading.Thread.start

    def interrupted(self):
        start(self)
        if self.name == "pytreeckpt-save":
            raise KeyboardInterrupt

    gate = Gate()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", interrupted)
        gate.open.set()
        with pytest.raises(KeyboardInterrupt):
            background.submit(np.ones(100_000), None, "x", gate)
    background.wait()
    assert len(gate.plans) in {0, 1}
    assert background.submit(1, None, "y", lambda _plan: REPORT).result() == REPORT


def test_a_signal_handler_may_save_while_a_save_is_about_to(monkeypatch, background):
    real, order = saver.snapshot, []

    def snapshot(*arguments):
        if not order:
            order.append("in between")
            background.submit(2, None, "inner", lambda _plan: order.append("inner") or REPORT)
        return real(*arguments)

    monkeypatch.setattr(saver, "snapshot", snapshot)
    background.submit(np.ones(100_000), None, "outer", lambda _plan: order.append("outer") or REPORT).result()
    assert order == ["in between", "inner", "outer"]


def test_a_signal_handler_may_save_whatever_it_has_interrupted(monkeypatch, background):
    """Also who has the lock of the buffers, for which nobody waits for ever."""
    real, other, gate, order = Buffers._buffer, BackgroundSaver(), Gate(), []
    running = other.submit(np.ones(50_000), None, "running", gate)
    assert gate.entered.wait(WAIT_S)

    def buffer(self, wanted, free):
        if not order:
            order.append("in between")
            gate.open.set()
            order.append(other.submit(np.ones(50_000), None, "inner", lambda _plan: REPORT).result())
        return real(self, wanted, free)

    monkeypatch.setattr(buffers, "_PATIENCE_S", 0.01)
    monkeypatch.setattr(Buffers, "_buffer", buffer)
    assert background.submit(np.ones(100_000), None, "outer", lambda _plan: REPORT).result() == REPORT
    assert order[:2] == ["in between", REPORT]
    assert running.done()
    other.close()


def test_a_signal_handler_may_save_while_the_thread_of_a_save_is_starting(monkeypatch, background):
    """It would wait for ever for a save whose thread waits for it to return."""
    start, order = threading.Thread.start, []

    def interrupted(self):
        if not order:
            order.append("starting")
            background.submit(1, None, "inner", lambda _plan: order.append("inner") or REPORT)
            background.wait()
        start(self)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    background.submit(2, None, "outer", lambda _plan: order.append("outer") or REPORT).result()
    assert order == ["starting", "inner", "outer"]


@pytest.mark.parametrize("timeout", [None, WAIT_S])
def test_a_signal_handler_may_wait_for_the_save_that_it_has_interrupted_the_waiting_for(background, timeout):
    """All of the waiting is that of the handle: what Python's own classes do with locks in Python cannot be nested."""
    gate, files = Gate(), set()
    handle = background.submit(1, None, "x", gate)

    def profile(frame, event, _argument):
        if event == "call":
            files.add(frame.f_code.co_filename)

    opening = threading.Timer(0.01, gate.open.set)
    opening.start()
    sys.setprofile(profile)
    try:
        report = handle.result(timeout)
    finally:
        sys.setprofile(None)
    opening.join()
    assert report == REPORT
    assert files == {SaveHandle.result.__code__.co_filename}


def test_a_lock_that_an_interrupt_has_lost_costs_one_save_its_background(monkeypatch, background):
    monkeypatch.setattr(buffers, "_PATIENCE_S", 0.01)
    BUFFERS._lock.acquire()
    assert background.submit(np.ones(100_000), None, "x", lambda _plan: REPORT).done()
    gate = Gate()
    handle = background.submit(np.ones(100_000), None, "y", gate)
    assert not handle.done()
    gate.open.set()
    assert handle.result() == REPORT
    assert len(BUFFERS.kept) == 1


# Where there are no threads.


@pytest.mark.parametrize("outcome", [REPORT, ZeroDivisionError(), KeyboardInterrupt()])
def test_without_threads_the_save_is_made_at_once(monkeypatch, background, outcome):
    def start(_self):
        raise RuntimeError("can't start new thread")

    gate = Gate(outcome)
    gate.open.set()
    monkeypatch.setattr(threading.Thread, "start", start)
    if isinstance(outcome, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            background.submit(np.ones(100_000), None, "x", gate)
    else:
        handle = background.submit(np.ones(100_000), None, "x", gate)
        assert handle.done()
        if isinstance(outcome, Exception):
            with pytest.raises(ZeroDivisionError):
                handle.result()
    assert len(gate.plans) == 1
    assert not BUFFERS.lent


@pytest.mark.parametrize("why", ["no memory", "no threads"])
def test_a_save_that_is_made_at_once_may_begin_another(monkeypatch, background, why):
    """As a signal handler does that comes meanwhile."""
    order = []

    def start(_self):
        raise RuntimeError("can't start new thread")

    def write(_plan):
        order.append(background.submit(np.ones(9), None, "inner", lambda _plan: order.append("inner") or REPORT).done())
        return REPORT

    if why == "no threads":
        monkeypatch.setattr(threading.Thread, "start", start)
    with ptc.limits(snapshot_nbytes=0 if why == "no memory" else 1 << 20):
        assert background.submit(np.ones(9), None, "outer", write).done()
    assert order == ["inner", True]


def test_a_tree_for_which_there_is_not_as_much_memory_as_the_limit_allows_is_written_at_once(monkeypatch, background):
    def buffer(*_arguments):
        raise MemoryError

    monkeypatch.setattr(Buffers, "_buffer", buffer)
    assert background.submit(np.ones(100_000), None, "x", lambda _plan: REPORT).done()


def test_without_threads_the_work_is_done_by_this_one(monkeypatch):
    def start(_self):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert list(ordered_map(lambda number: (number, threading.get_ident()), range(4), threads=3)) == [
        (number, threading.get_ident()) for number in range(4)
    ]


# The caller's context, and threads.


def test_the_limits_of_the_caller_hold_in_the_background(background):
    def limit(_plan):
        assert ptc.current_limits().index_nbytes == 4321
        return REPORT

    with ptc.limits(index_nbytes=4321):
        handle = background.submit(1, None, "x", limit)
    assert handle.result() == REPORT


def test_a_save_in_the_background_leaves_a_core_to_the_program(monkeypatch, background):
    monkeypatch.delenv(THREADS_VARIABLE, raising=False)
    usual, seen = default_threads(), []
    background.submit(1, None, "x", lambda _plan: seen.append(default_threads()) or REPORT).result()
    assert seen == [max(usual - 1, 1)] or usual == 8
    monkeypatch.setenv(THREADS_VARIABLE, "3")
    background.submit(1, None, "x", lambda _plan: seen.append(default_threads()) or REPORT).result()
    assert seen[1] == 3
    assert default_threads() == 3


# Memory.


def test_a_tree_that_needs_more_memory_is_written_before_the_call_returns(tmp_path):
    tree = np.arange(100_000)
    with ptc.limits(snapshot_nbytes=100_000):
        handle = ptc.save_async(tree, tmp_path / "x.ptck")
        assert handle.done()
        tree[:] = 0
        small = ptc.save_async(np.arange(10), tmp_path / "y.ptck")
    assert ptc.restore(tmp_path / "x.ptck").tolist() == list(range(100_000))
    small.result()


def test_an_error_of_a_tree_that_is_written_at_once_is_that_of_the_result(background):
    def fail(_plan):
        raise ptc.StorageError("the disk is full")

    with ptc.limits(snapshot_nbytes=0):
        handle = background.submit(np.ones(9), None, "x", fail)
    assert handle.done()
    with pytest.raises(ptc.StorageError, match="full"):
        handle.result()

    def interrupt(_plan):
        raise KeyboardInterrupt

    with ptc.limits(snapshot_nbytes=0), pytest.raises(KeyboardInterrupt):
        background.submit(np.ones(9), None, "x", interrupt)


def test_saves_in_a_row_use_the_same_memory(tmp_path):
    tree = {"w": np.ones(1 << 20, np.float32), "small": [np.ones(10) for _ in range(100)]}
    BUFFERS.release()
    held = []
    for number in range(6):
        tree["w"] = np.ones((1 << 20) + 1000 * number, np.float32)
        ptc.save_async(tree, tmp_path / "x.ptck", durability="atomic").result()
        held.append(BUFFERS.held_nbytes)
    assert 4 << 20 <= held[0] == held[5] <= 5 << 20
    assert len(BUFFERS.kept) == 1
    BUFFERS.release()
    assert BUFFERS.held_nbytes == 0


def test_closing_lets_the_memory_go():
    background = BackgroundSaver()
    background.submit(np.ones(1 << 20), None, "x", lambda _plan: REPORT).result()
    assert BUFFERS.held_nbytes >= 8 << 20
    background.close()
    assert BUFFERS.held_nbytes == 0


def lease(buffers: Buffers, nbytes: int, limit: int, others: int = 0):
    return buffers.take(Needs(nbytes, nbytes + others), limit)


def test_what_is_lent_and_kept_stays_within_the_limit():
    buffers = Buffers()
    large = lease(buffers, 10_000, 40_000)
    small = lease(buffers, 1_000, 40_000, others=500)
    assert lease(buffers, 29_000, 40_000) is None
    assert lease(buffers, 20_000, 40_000, others=9_000) is None
    buffers.give_back(large)
    buffers.give_back(large)
    assert [len(buffer) for buffer in buffers.kept] == [len(large.buffer)]
    again = lease(buffers, 9_000, 40_000)
    assert again.buffer is large.buffer
    buffers.give_back(again)
    # Kept memory makes room for what is needed.
    huge = lease(buffers, 37_000, 40_000)
    assert buffers.held_nbytes <= 40_000
    buffers.give_back(huge)
    buffers.give_back(small)
    assert buffers.held_nbytes <= 40_000
    buffers.release()
    assert buffers.held_nbytes == 0


def test_two_sizes_that_take_turns_each_keep_their_buffer():
    buffers = Buffers()
    seen = []
    for _ in range(4):
        for nbytes in (1_000, 100_000):
            one = lease(buffers, nbytes, 1 << 20)
            seen.append(id(one.buffer))
            buffers.give_back(one)
    assert seen[-4:-2] == seen[-2:]
    buffers.release()


def test_a_lease_that_is_lost_is_not_counted_for_ever():
    buffers = Buffers()
    assert lease(buffers, 1_000, 2_000) is not None
    gc.collect()
    assert buffers.held_nbytes == 0


def test_a_lease_gives_aligned_parts_and_no_more_than_it_has():
    lent = lease(Buffers(), 256, 1 << 20)
    parts = [lent.allocate(nbytes) for nbytes in (1, 64, 100)]
    assert [part.ctypes.data % 64 for part in parts] == [0, 0, 0]
    assert [len(part) for part in parts] == [1, 64, 100]
    with pytest.raises(ValueError, match="more than"):
        lent.allocate(1000)


def test_memory_that_nobody_needs_any_more_is_let_go():
    buffers = Buffers(idle_s=0.01)
    buffers.give_back(lease(buffers, 1_000, 2_000))
    watcher = buffers.watcher
    # It may have ended already.
    if watcher is not None:
        assert watcher.daemon
        watcher.join(WAIT_S)
    assert (buffers.held_nbytes, buffers.watcher) == (0, None)


def test_memory_that_is_lent_is_not_idle():
    buffers = Buffers(idle_s=0.01)
    first, second = lease(buffers, 1_000, 9_000), lease(buffers, 1_000, 9_000)
    buffers.give_back(first)
    watcher = buffers.watcher
    assert watcher is not None
    watcher.join(0.1)
    assert watcher.is_alive()
    assert len(buffers.kept) == 1
    buffers.give_back(second)
    watcher.join(WAIT_S)
    assert buffers.held_nbytes == 0


def test_the_limits_of_control_groups_count(tmp_path):
    root = tmp_path / "cgroup"
    for place, text in {"": "max", "job": "5000\n", "job/step": "max", "memory/old": "7000", "memory": "x"}.items():
        (root / place).mkdir(parents=True, exist_ok=True)
        (root / place / ("memory.limit_in_bytes" if "memory" in place else "memory.max")).write_text(text)
    member = tmp_path / "self"
    member.write_text("0::/job/step\n4:cpu,memory:/old\n3:freezer:/\nnonsense\n1:name=x:/../..\n")
    assert sorted(control_group_limits(member, root)) == [5000, 7000]
    assert list(control_group_limits(tmp_path / "absent", root)) == []
    assert usable_nbytes() > 1 << 20


# How a program may end.

SAVING = """
import os, signal, sys, threading
import numpy as np
import pytreeckpt as ptc

path = sys.argv[1]
tree = {"w": np.arange(1 << 20)}
entered = threading.Event()
"""


def test_an_interpreter_that_ends_finishes_the_save(tmp_path):
    script = SAVING + 'assert threading.active_count() == 1; ptc.save_async(tree, path); tree["w"][:] = 0'
    assert run(script, tmp_path / "x.ptck").stderr == ""
    assert ptc.restore(tmp_path / "x.ptck")["w"].tolist() == list(range(1 << 20))


def test_a_handled_signal_that_ends_the_program_lets_the_save_end(tmp_path):
    script = SAVING + (
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "ptc.save_async(tree, path); signal.raise_signal(signal.SIGTERM)"
    )
    run(script, tmp_path / "x.ptck", code=143)
    assert ptc.verify(tmp_path / "x.ptck").ok


def test_a_save_can_begin_while_the_interpreter_is_ending(tmp_path):
    script = SAVING + "import atexit; atexit.register(lambda: ptc.save_async(tree, path))"
    assert run(script, tmp_path / "x.ptck").stderr == ""
    assert ptc.verify(tmp_path / "x.ptck").ok


def test_an_error_that_nobody_asked_for_is_told_at_the_end(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    script = SAVING + (
        "handle = ptc.save_async(tree, path + 'asked')\n"
        "try: handle.result()\n"
        "except ptc.StorageError: print('asked')\n"
        "ptc.save_async(tree, path)"
    )
    done = run(script, tmp_path / "file" / "x.ptck")
    assert done.stdout == "asked\n"
    assert "x.ptck was not saved" in done.stderr
    assert len(done.stderr.splitlines()) == 1


KILLED = (
    SAVING
    + """
def stop(now):
    if now.done_nbytes > 1 << 20:
        entered.set()
        threading.Event().wait()

ptc.save({"w": np.zeros(3)}, path)
ptc.save_async(tree, path, progress=stop)
entered.wait()
"""
)


@pytest.mark.parametrize(
    ("how", "code"),
    [("os._exit(9)", 9), ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL)],
    ids=["exit", "kill"],
)
def test_a_program_that_is_killed_leaves_the_checkpoint_from_before(tmp_path, how, code):
    run(KILLED + how, tmp_path / "x.ptck", code=code)
    assert ptc.restore(tmp_path / "x.ptck")["w"].tolist() == [0, 0, 0]


FORKED = (
    SAVING
    + """
import warnings
# From 3.12 on Python warns of every fork of a program with threads.
warnings.filterwarnings("ignore", "This process .* is multi-threaded")
from pytreeckpt.saving.buffers import BUFFERS
go = threading.Event()

def hold(now):
    entered.set()
    go.wait()

handle = ptc.save_async(tree, path, progress=hold)
entered.wait()
child = os.fork()
if child == 0:
    try:
        handle.result()
    except ptc.PytreeckptError as error:
        assert "forked" in str(error), error
    assert BUFFERS.held_nbytes == 0
    ptc.save_async({"child": np.ones(100_000)}, path + ".child").result()
    sys.exit(5)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 5
assert not handle.done()
go.set()
handle.result()
"""
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_has_no_saves_of_its_parent_and_makes_its_own(tmp_path):
    assert run(FORKED, tmp_path / "x.ptck").stderr == ""
    assert ptc.restore(tmp_path / "x.ptck")["w"].tolist() == list(range(1 << 20))
    assert ptc.restore(tmp_path / "x.ptck.child")["child"].all()


def test_handles_are_public():
    assert ptc.SaveHandle is SaveHandle
