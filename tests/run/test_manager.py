"""The manager: steps are saved, found and restored, and what goes wrong is told and harms nothing."""

import math
import os
import threading
import warnings
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt import (
    CheckpointExistsError,
    CheckpointManager,
    CheckpointNotFoundError,
    CorruptionError,
    NotDurableError,
    StorageError,
    StructureMismatchError,
    UnsupportedTypeError,
)
from pytreeckpt.commit import CreateFile, RemoveFile, SyncDirectory, SyncFile
from pytreeckpt.planning import plan_save
from pytreeckpt.run import read_run
from pytreeckpt.steps import retention, schedule
from tests.exact import difference
from tests.run.run_folders import Clock, FailingStorage, content, saved, tree
from tests.simulated_storage import SimulatedStorage


@given(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from([0.0, 1.0, 2.0, math.nan]) | st.none()), max_size=12),
    st.integers(1, 3) | st.none(),
    st.integers(1, 2) | st.none(),
    st.booleans(),
)
@settings(max_examples=30)
def test_a_manager_is_a_dict_of_steps_that_forgets_what_is_not_to_be_kept(saves, keep_last, keep_best, incremental):
    storage = SimulatedStorage()
    there, known = {}, {}
    options = {"keep_last": keep_last, "keep_best": keep_best, "incremental": incremental, "storage": storage}
    with CheckpointManager("run", **options) as manager:
        for step, value in saves:
            metrics = {} if value is None else {"val_loss": value}
            manager.save(step, tree(step), metrics=metrics, if_exists="replace")
            there[step] = known[step] = metrics
            ranked = sorted((math.isnan(v["val_loss"]), v["val_loss"], -s) for s, v in there.items() if v)
            kept = {step, max(there)}
            kept |= set(sorted(there)[-keep_last:]) if keep_last else set()
            kept |= {-s for _, _, s in ranked[:keep_best]} if keep_best else set()
            if keep_last or keep_best:
                there = {s: v for s, v in there.items() if s in kept}
            assert manager.steps() == sorted(there)
            assert manager.latest == max(there)
    again = CheckpointManager("run", **options)
    assert again.steps() == sorted(there)
    for step in there:
        assert difference(again.restore(step), tree(step)) is None
    assert [repr((r.step, dict(r.metrics))) for r in again.history()] == [repr(each) for each in sorted(known.items())]


def test_what_is_saved_comes_back_with_all_that_is_known(tmp_path):
    with CheckpointManager(tmp_path / "a" / "run", clock=Clock(7.0)) as manager:
        handle = manager.save(1, tree(1), metrics={"val_loss": np.float32(0.5)}, metadata={"model": "gpt"}, epoch=2)
        assert handle.done()
        assert handle.result().path == manager.path(1) == handle.path
        record = manager.record(1)
        assert (record.saved_at, record.metrics, record.epoch, record.reason) == (
            7.0,
            {"val_loss": 0.5},
            2.0,
            "scheduled",
        )
        assert record.root == handle.result().root
        assert record.nbytes == Path(handle.path).stat().st_size
        with manager.open() as checkpoint:
            assert checkpoint.metadata["model"] == "gpt"
    assert difference(ptc.restore(tmp_path / "a" / "run" / "step-00000001.ptck"), tree(1)) is None


def test_an_empty_run_has_no_steps_and_says_so(tmp_path):
    manager = CheckpointManager(tmp_path / "run")
    assert (manager.steps(), manager.latest, manager.best, manager.history(), manager.pins) == ([], None, None, [], {})
    for step in ("latest", "best", 3):
        with pytest.raises(CheckpointNotFoundError):
            manager.restore(step)
    assert not (tmp_path / "run").exists()


def test_looking_writes_nothing_and_takes_no_lock(tmp_path):
    root = saved(tmp_path / "run", [1, 2])
    before = content(root)
    (Path(root) / ".writer.lock").unlink()
    with CheckpointManager(root) as manager:
        manager.restore("best")
        manager.history()
        manager.should_save(5)
        manager.prune(dry_run=True)
    assert content(root) == before
    assert not (Path(root) / ".writer.lock").exists()


def test_a_folder_that_cannot_be_one_is_an_error_at_once(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(StorageError, match="cannot list"):
        CheckpointManager(tmp_path / "file")


@pytest.mark.parametrize(
    "options",
    [
        {"keep_last": 0},
        {"keep_best": 0},
        {"keep_every": 0},
        {"keep_every": timedelta(0)},
        {"save_every": 0},
        {"save_every": timedelta(0)},
        {"mode": "least"},
        {"metric": ""},
        {"compression": "best"},
        {"durability": "yes"},
        {"retention": retention.keep_all(), "keep_best": 1},
        {"retention": 3},
    ],
)
def test_options_that_mean_nothing_are_refused(tmp_path, options):
    with pytest.raises((TypeError, ValueError)):
        CheckpointManager(tmp_path, **options)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda m: m.save(-1, {}), ValueError),
        (lambda m: m.save(1.5, {}), TypeError),
        (lambda m: m.save(7, {}, metrics={"x": "a"}), TypeError),
        (lambda m: m.save(7, {}, epoch=math.nan), ValueError),
        (lambda m: m.save(7, {}, reason="boredom"), ValueError),
        (lambda m: m.save(7, {}, if_exists="perhaps"), ValueError),
        (lambda m: m.save(7, {"f": lambda: 0}), UnsupportedTypeError),
        (lambda m: m.save(7, {}, metadata={"f": print}), UnsupportedTypeError),
        (lambda m: m.save(1, {}), CheckpointExistsError),
        (lambda m: m.save(1, {}, blocking=False), CheckpointExistsError),
        (lambda m: m.pin("latest", 1), ValueError),
        (lambda m: m.pin("a", 9), CheckpointNotFoundError),
        (lambda m: m.unpin("a"), CheckpointNotFoundError),
    ],
)
def test_a_call_that_is_refused_changes_nothing(tmp_path, call, error):
    root = saved(tmp_path / "run", [1, 2])
    before = content(root)
    with CheckpointManager(root) as manager:
        with pytest.raises(error):
            call(manager)
        assert manager.steps() == [1, 2]
    assert content(root) == before


def test_latest_best_and_pins_are_answers(tmp_path):
    values = {1: 0.3, 2: 0.1, 3: math.nan, 4: 0.2}
    root = saved(tmp_path, values, metrics=lambda step: {"val_loss": values[step]}, keep_last=None)
    with CheckpointManager(root) as manager:
        assert (manager.latest, manager.best) == (4, 2)
        manager.pin("paper", "best")
        assert manager.pins == {"paper": 2}
        assert manager.restore("paper")["step"] == 2
        assert manager.restore("best")["step"] == 2
        assert manager.restore()["step"] == 4
        assert manager.restore(np.int64(3))["step"] == 3
        assert Path(manager.path("paper")).name == "step-00000002.ptck"
    assert CheckpointManager(root, mode="max").best == 1
    assert CheckpointManager(root, metric="other").best is None
    assert CheckpointManager(root).pins == {"paper": 2}


def test_the_best_without_its_metric_says_which_metrics_there_are(tmp_path):
    root = saved(tmp_path, [1], metrics=lambda step: {"accuracy": 1.0})
    with pytest.raises(CheckpointNotFoundError, match="'val_loss', so none is the best; there are 'accuracy'"):
        CheckpointManager(root).restore("best")


def test_a_step_that_is_gone_says_what_is_there(tmp_path):
    root = saved(tmp_path, range(1, 7))
    with pytest.raises(CheckpointNotFoundError, match="step 2 is not in .*; there is 4, 5, 6"):
        CheckpointManager(root).restore(2)
    with pytest.raises(CheckpointNotFoundError, match="'paper'.*there are no pins"):
        CheckpointManager(root).restore("paper")


def test_pinned_steps_stay_until_they_are_unpinned(tmp_path):
    with CheckpointManager(tmp_path, keep_last=1) as manager:
        manager.save(1, tree(1))
        manager.pin("first")
        manager.save(2, tree(2))
        manager.save(3, tree(3))
        assert manager.steps() == [1, 3]
        manager.unpin("first")
        assert manager.prune(dry_run=True).removed_files == ("step-00000001.ptck",)
        manager.prune()
        assert manager.steps() == [3]


def test_options_of_restore_are_those_of_restore(tmp_path):
    root = saved(tmp_path, [1], compression="none")
    manager = CheckpointManager(root)
    assert manager.restore(select="step") == {"step": 1}
    assert np.asarray(manager.restore(like=tree(0))["w"])[0] == 1
    assert manager.restore(to="torch")["w"].sum() == 300
    manager.restore(mmap=True)
    with pytest.raises(StructureMismatchError):
        manager.restore(like={"other": 1})


# When it is time.


def test_save_every_gives_the_rhythm_and_an_earlier_process_the_beat(tmp_path):
    saved_at = []
    for first, last in ((1, 13), (13, 26)):
        with CheckpointManager(tmp_path, save_every=5) as manager:
            saved_at += [step for step in range(first, last) if manager.checkpoint(step, tree(step)) is not None]
    assert saved_at == [5, 10, 15, 20, 25]


def test_without_save_every_it_is_always_time_but_not_twice(tmp_path):
    with CheckpointManager(tmp_path) as manager:
        assert manager.should_save(1)
        manager.save(1, tree(1))
        assert not manager.should_save(1)
        assert manager.should_save(2)


def test_save_every_takes_times_and_schedules(tmp_path):
    clock = Clock()
    with CheckpointManager(tmp_path / "a", save_every=timedelta(minutes=10), clock=clock) as manager:
        assert not manager.should_save(1)
        clock.now_s += 600
        assert manager.should_save(1)
        manager.save(1, tree(1))
        clock.now_s += 599
        assert not manager.should_save(2)
    when = schedule.any_of(schedule.every_epochs(), schedule.on_better("val_loss"))
    with CheckpointManager(tmp_path / "b", save_every=when) as manager:
        assert manager.should_save(1, epoch=1, metrics={"val_loss": 1.0})
        manager.save(1, tree(1), epoch=1, metrics={"val_loss": 1.0})
        assert not manager.should_save(2, epoch=1.5, metrics={"val_loss": 1.0})
        assert manager.should_save(2, epoch=1.5, metrics={"val_loss": 0.5})
        assert manager.should_save(3, epoch=2)


def test_a_restored_step_is_where_the_rhythm_goes_on(tmp_path):
    root = saved(tmp_path, [10, 20, 30], keep_last=None)
    with CheckpointManager(root, save_every=10, keep_last=None) as manager:
        manager.restore(10)
        assert not manager.should_save(10)
        assert not manager.should_save(19)
        assert manager.should_save(20)


def test_asking_at_every_step_reads_nothing_twice(tmp_path):
    root = saved(tmp_path, [10, 20])
    manager = CheckpointManager(root, save_every=10)
    assert not manager.should_save(21)
    for path in Path(root).iterdir():
        path.unlink()
    assert manager.should_save(30)


# Metrics that come at other times.


def test_what_is_logged_is_in_the_history_and_costs_no_step(tmp_path):
    with CheckpointManager(tmp_path) as manager:
        for step in range(1, 6):
            manager.log(step, {"loss": 1 / step})
        assert not (tmp_path / "history.ptck").exists()
        manager.log(3, {"lr": 0.1})
        manager.save(3, tree(3), metrics={"val_loss": 2.0})
        manager.log(3, {"test": 5.0})
        assert manager.record(3).metrics == {"loss": 1 / 3, "lr": 0.1, "val_loss": 2.0, "test": 5.0}
        assert [(r.step, r.was_saved) for r in manager.history()] == [(n, n == 3) for n in range(1, 6)]
    run = ptc.run.read_run(tmp_path)
    assert [r.step for r in run.records] == [3]
    assert run.history[2].metrics["test"] == 5.0
    # The step itself tells what was known when it was saved.
    with run.open() as checkpoint:
        assert checkpoint.metadata["pytreeckpt.step"]["metrics"] == {"loss": 1 / 3, "lr": 0.1, "val_loss": 2.0}


def test_wait_writes_what_was_logged(tmp_path):
    manager = CheckpointManager(tmp_path)
    manager.log(1, {"loss": 1.0})
    manager.wait()
    assert CheckpointManager(tmp_path).record(1).metrics == {"loss": 1.0}
    manager.close()


def test_a_step_that_is_saved_again_is_known_as_it_is_now_and_later_ones_stay(tmp_path):
    root = saved(tmp_path, [1, 2, 3])
    with CheckpointManager(root) as manager:
        manager.save(2, {"other": 1}, metrics={"new": 1.0}, if_exists="replace")
        assert manager.record(2).metrics == {"new": 1.0}
        assert manager.restore(2) == {"other": 1}
        assert manager.steps() == [1, 2, 3]


def test_a_step_that_was_just_saved_stays_whatever_its_number(tmp_path):
    root = saved(tmp_path, [10, 20, 30])
    with CheckpointManager(root, keep_last=3) as manager:
        manager.save(5, tree(5))
        assert manager.steps() == [5, 10, 20, 30]
        manager.save(6, tree(6))
        assert manager.steps() == [6, 10, 20, 30]


# In the background.


def test_saves_in_the_background_are_made_in_order_and_pruned(tmp_path):
    with CheckpointManager(tmp_path, keep_last=2) as manager:
        array = np.zeros(1000)
        handles = []
        for step in range(1, 6):
            array[:] = step
            handles.append(manager.save(step, {"w": array}, blocking=False))
            array[:] = -1
        manager.wait()
        assert all(handle.done() for handle in handles)
        assert manager.steps() == [4, 5]
        assert manager.restore(4)["w"][0] == 4
        assert [r.step for r in manager.history()] == [1, 2, 3, 4, 5]


def test_an_error_in_the_background_is_raised_by_the_next_call_and_nothing_is_lost(tmp_path):
    storage = FailingStorage()
    manager = CheckpointManager(tmp_path, storage=storage)
    manager.save(1, tree(1))
    before = content(tmp_path)
    storage.fails = lambda operation: isinstance(operation, SyncFile)
    manager.save(2, tree(2), blocking=False)
    with pytest.raises(StorageError, match="not published"):
        manager.save(3, tree(3))
    assert content(tmp_path) == before
    storage.fails = lambda operation: False
    manager.save(2, tree(2))
    assert manager.steps() == [1, 2]
    manager.close()


def test_an_error_in_the_background_is_raised_by_close_which_gives_the_lock_back(tmp_path):
    storage = FailingStorage()
    manager = CheckpointManager(tmp_path, storage=storage)
    manager.save(1, tree(1))
    storage.fails = lambda operation: isinstance(operation, CreateFile)
    manager.save(2, tree(2), blocking=False)
    with pytest.raises(StorageError):
        manager.close()
    manager.close()
    with pytest.raises(ValueError, match="closed"):
        manager.save(3, tree(3))
    saved(tmp_path, [4])


def test_an_error_in_the_background_is_raised_when_it_is_asked_whether_it_is_time(tmp_path):
    storage = FailingStorage()
    with CheckpointManager(tmp_path, save_every=10, storage=storage) as manager:
        assert manager.checkpoint(10, tree(10)) is not None
        storage.fails = lambda operation: isinstance(operation, CreateFile)
        handle = manager.checkpoint(20, tree(20), blocking=False)
        handle.wait()
        storage.fails = lambda operation: False
        with pytest.raises(StorageError):
            manager.should_save(21)
        # That step was not saved, so it is late, and not silent.
        assert manager.should_save(21)
        assert manager.checkpoint(21, tree(21)) is not None
        assert manager.steps() == [10, 21]


def test_what_is_logged_while_its_step_is_being_saved_is_kept(tmp_path, monkeypatch):
    # One for each save, since the second may begin before the first has seen its own.
    may_go_on = {step: threading.Event() for step in (1, 2)}
    turns = iter(may_go_on.values())

    def plan_late(flat, limits):
        next(turns).wait(30)
        return plan_save(flat, limits)

    monkeypatch.setattr("pytreeckpt.saving.saver.plan_save", plan_late)
    with CheckpointManager(tmp_path) as manager:
        for step in (1, 2):
            manager.log(step, {"before": 1.0, "both": 1.0})
            manager.save(step, tree(step), metrics={"both": 2.0}, blocking=False)
            manager.log(step, {"after": 3.0})
            manager.log(step + 1, {"early": 4.0})
            may_go_on[step].set()
        manager.wait()
    known = {record.step: record.metrics for record in ptc.run.read_run(tmp_path).history}
    assert known[1] == {"before": 1.0, "both": 2.0, "after": 3.0}
    assert known[2] == {"before": 1.0, "both": 2.0, "after": 3.0, "early": 4.0}
    assert known[3] == {"early": 4.0}


def test_what_was_logged_of_a_step_that_could_not_be_saved_is_not_lost(tmp_path):
    storage = FailingStorage()
    with CheckpointManager(tmp_path, storage=storage) as manager:
        manager.log(1, {"loss": 1.0})
        storage.fails = lambda operation: isinstance(operation, CreateFile)
        with pytest.raises(StorageError):
            manager.save(1, tree(1))
        with pytest.raises(UnsupportedTypeError):
            manager.save(1, object())
        storage.fails = lambda operation: False
        manager.save(1, tree(1), metrics={"x": 2.0})
        assert manager.record(1).metrics == {"loss": 1.0, "x": 2.0}


def test_what_was_logged_counts_for_the_best_and_for_pruning(tmp_path):
    with CheckpointManager(tmp_path, keep_last=1, keep_best=1) as manager:
        manager.save(1, tree(1), metrics={"val_loss": 1.0})
        manager.save(2, tree(2))
        assert manager.steps() == [1, 2]
        manager.log(2, {"val_loss": 0.5})
        assert manager.best == 2
        assert [record.step for record in manager.prune(dry_run=True).removed] == [1]
        assert manager.steps() == [1, 2]
        assert [record.step for record in manager.prune().removed] == [1]
    assert ptc.run.read_run(tmp_path).best == 2


def test_the_report_tells_what_an_incremental_step_wrote_and_what_it_uses_again(tmp_path):
    frozen = np.random.default_rng(0).random(10_000)
    with CheckpointManager(tmp_path, incremental=True) as manager:
        first = manager.save(1, {"frozen": frozen, "head": np.zeros(100)}).result()
        second = manager.save(2, {"frozen": frozen, "head": np.ones(100)}).result()
        assert manager.record(2).nbytes == second.written_nbytes
    assert first.reused_nbytes == 0
    assert first.data_nbytes > 0.8 * frozen.nbytes
    assert second.reused_nbytes > 0.8 * frozen.nbytes
    assert second.written_nbytes == second.file_nbytes + second.data_nbytes < 0.2 * frozen.nbytes
    assert sum(map(len, content(tmp_path).values())) > first.written_nbytes + second.written_nbytes
    ordinary = ptc.save(frozen, tmp_path / "x.ptck")
    assert (ordinary.written_nbytes, ordinary.data_nbytes, ordinary.reused_nbytes) == (ordinary.file_nbytes, 0, 0)


# What fails.


def test_a_policy_that_fails_does_not_fail_the_save(tmp_path):
    def policy(records):
        return {record.step for record in records if record.metrics["forgotten"] > 0}

    with CheckpointManager(tmp_path, retention=policy) as manager:
        with pytest.warns(UserWarning, match="pruning failed.*KeyError: 'forgotten'"):
            manager.save(1, tree(1))
        manager.save(2, tree(2))
        assert manager.steps() == [1, 2]
        with pytest.raises(KeyError):
            manager.prune()


def test_a_history_that_may_not_be_durable_lets_nothing_be_pruned(tmp_path):
    storage = FailingStorage()
    n_syncs = 0

    def fails(operation):
        nonlocal n_syncs
        n_syncs += isinstance(operation, SyncDirectory)
        return n_syncs == 2

    with CheckpointManager(tmp_path, keep_last=1, storage=storage) as manager:
        manager.save(1, tree(1))
        storage.fails = fails
        with pytest.warns(UserWarning, match="history was not written"):
            manager.save(2, tree(2))
        assert manager.steps() == [1, 2]
        storage.fails = lambda operation: False
        operations = []
        storage.fails = operations.append
        manager.prune()
        kinds = [type(operation) for operation in operations]
        assert kinds.index(SyncDirectory) < kinds.index(RemoveFile)
        assert manager.steps() == [2]


@pytest.mark.parametrize("incremental", [False, True])
def test_a_step_that_may_not_be_durable_is_known_as_it_is(tmp_path, incremental):
    root = saved(tmp_path, [1, 2, 3], incremental=incremental)
    storage = FailingStorage()
    with CheckpointManager(root, keep_last=1, incremental=incremental, storage=storage) as manager:
        # Once the step has its name.
        storage.fails = lambda operation: (
            operation == SyncDirectory(root) and (tmp_path / "step-00000002.ptck").read_bytes() != before
        )
        before = (tmp_path / "step-00000002.ptck").read_bytes()
        with pytest.raises(NotDurableError):
            manager.save(2, {"new": np.arange(900)}, metrics={"x": 5.0}, if_exists="replace")
        storage.fails = lambda operation: False
        assert manager.record(2).metrics == {"x": 5.0}
        assert list(manager.restore(2)) == ["new"]
        manager.prune()
        assert manager.steps() == [3]
        assert manager.record(2).metrics == {"x": 5.0}


def test_a_clock_that_tells_no_time_is_an_error_before_anything_is_written(tmp_path):
    clock = Clock()
    manager = CheckpointManager(tmp_path, clock=clock)
    clock.now_s = math.nan
    with pytest.raises(ValueError, match="no time"):
        manager.save(1, tree(1))
    assert content(tmp_path) == {}


def test_a_manager_writes_where_it_began_wherever_the_program_goes(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "a")
    with CheckpointManager("run") as manager:
        manager.save(1, tree(1))
        monkeypatch.chdir(tmp_path / "b")
        manager.save(2, tree(2))
        assert manager.steps() == [1, 2]
        assert Path(manager.path(2)) == tmp_path / "a" / "run" / "step-00000002.ptck"
    assert list((tmp_path / "b").iterdir()) == []


@given(st.integers(0, 40), st.booleans())
@settings(max_examples=25)
def test_a_save_that_fails_at_any_operation_leaves_the_step_or_none_and_all_others(at, incremental):
    class Failing(SimulatedStorage):
        left = -1

        def apply(self, operation):
            self.left -= 1
            if self.left == -1:
                raise OSError(28, os.strerror(28))
            super().apply(operation)

    storage = Failing()
    options = {"keep_last": 2, "storage": storage, "incremental": incremental}
    manager = CheckpointManager("run", **options)
    manager.save(1, tree(1))
    manager.save(2, tree(2))
    storage.left = at
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            manager.save(3, tree(3))
        except StorageError:
            failed = True
        else:
            failed = False
        storage.left = -1
        steps = manager.steps()
        assert steps in ([1, 2], [1, 2, 3], [2, 3])
        if not failed:
            assert 3 in steps
        for step in steps:
            assert manager.restore(step)["step"] == step
        # The next save makes good what was left undone.
        manager.save(4, tree(4))
    assert manager.steps() == ([3, 4] if 3 in steps else [2, 4])
    manager.close()
    run = ptc.run.read_run("run", storage=storage)
    assert (run.leftovers, run.problems) == ((), ())
    assert [record.step for record in run.history if record.was_saved] == [1, 2, *([3] if 3 in steps else []), 4]


def test_a_failing_prune_is_a_warning_and_is_tried_again(tmp_path):
    storage = FailingStorage()
    with CheckpointManager(tmp_path, keep_last=1, storage=storage) as manager:
        manager.save(1, tree(1))
        storage.fails = lambda operation: isinstance(operation, RemoveFile) and "/step-" in operation.path
        with pytest.warns(UserWarning, match="pruning failed"):
            manager.save(2, tree(2))
        assert manager.steps() == [1, 2]
        storage.fails = lambda operation: False
        manager.save(3, tree(3))
        assert manager.steps() == [3]


def test_a_history_that_cannot_be_written_is_a_warning_and_nothing_is_pruned_before_it_is(tmp_path):
    storage = FailingStorage()
    with CheckpointManager(tmp_path, keep_last=1, storage=storage) as manager:
        manager.save(1, tree(1), metrics={"x": 1.0})
        storage.fails = lambda operation: isinstance(operation, CreateFile) and "/.history" in operation.path
        with pytest.warns(UserWarning, match="history was not written"):
            manager.save(2, tree(2), metrics={"x": 2.0})
        assert manager.steps() == [1, 2]
    again = CheckpointManager(tmp_path)
    assert [record.metrics for record in again.history()] == [{"x": 1.0}, {"x": 2.0}]


def test_an_interrupt_between_the_step_and_the_history_loses_nothing(tmp_path):
    storage = FailingStorage()

    def interrupt(operation):
        if isinstance(operation, CreateFile) and "/.history" in operation.path:
            raise KeyboardInterrupt
        return False

    with CheckpointManager(tmp_path, keep_last=1, storage=storage) as manager:
        manager.save(1, tree(1), metrics={"x": math.nan})
        storage.fails = interrupt
        with pytest.raises(KeyboardInterrupt):
            manager.save(2, tree(2), metrics={"x": 2.0})
        storage.fails = lambda operation: False
        assert manager.steps() == [1, 2]
        manager.save(3, tree(3), metrics={"x": 3.0})
        assert manager.steps() == [3]
        assert repr([dict(record.metrics) for record in manager.history()]) == repr(
            [{"x": n} for n in (math.nan, 2.0, 3.0)]
        )


# What is damaged.


def damage(root, step, at=100):
    path = Path(root) / f"step-{step:08d}.ptck"
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_damaged_step_is_an_error_and_with_fallback_a_warning(tmp_path):
    root = saved(tmp_path, [1, 2, 3])
    damage(root, 3)
    manager = CheckpointManager(root)
    with pytest.raises(CorruptionError):
        manager.restore()
    with pytest.warns(UserWarning, match="step 2 is taken.*\n  step 3: "):
        assert manager.restore(fallback=True)["step"] == 2
    with pytest.warns(UserWarning, match="step 2 is taken"):
        assert manager.restore(3, fallback=True)["step"] == 2
    # The least is the best here.
    damage(root, 1)
    with pytest.warns(UserWarning, match="step 2 is taken"):
        assert manager.restore("best", fallback=True)["step"] == 2
    damage(root, 2)
    with pytest.raises(CorruptionError, match="no step of .* is whole"):
        manager.restore(fallback=True)


def test_a_step_without_an_end_is_not_passed_over_in_silence_and_not_removed(tmp_path):
    root = saved(tmp_path, [1, 2, 3])
    newest = tmp_path / "step-00000003.ptck"
    newest.write_bytes(newest.read_bytes()[:-1])
    with CheckpointManager(root, keep_last=1) as manager:
        with pytest.warns(UserWarning, match="a step is damaged, and not counted: .*step-00000003"):
            assert manager.steps() == [1, 2]
        # It is told once.
        assert manager.latest == 2
        with pytest.raises(CorruptionError, match="step 3 is damaged"):
            manager.restore()
        with pytest.warns(UserWarning, match="step 2 is taken"):
            assert manager.restore(fallback=True)["step"] == 2
        manager.save(4, tree(4))
        assert newest.exists()
        manager.save(3, tree(3), if_exists="replace")
        assert manager.steps() == [3, 4]


def test_a_step_that_vanishes_under_a_reader_is_looked_for_again(tmp_path):
    root = saved(tmp_path, [1])

    class Racing(FailingStorage):
        n_opened = 0

        def open(self, path):
            if path.endswith("step-00000001.ptck"):
                self.n_opened += 1
                if self.n_opened == 2:
                    saved(root, [2], keep_last=1)
            return super().open(path)

    storage = Racing()
    assert CheckpointManager(root, storage=storage).restore()["step"] == 2
    # Listed, opened, and looked at again.
    assert storage.n_opened == 3


def test_a_step_that_is_replaced_under_a_reader_is_looked_for_again(tmp_path):
    root = saved(tmp_path, [1], incremental=True)

    class Racing(FailingStorage):
        n_data = 0

        def open(self, path):
            self.n_data += "/data/" in path
            if self.n_data == 1 and "/data/" in path:
                # The file that it has open needs data that nobody needs any more.
                with CheckpointManager(root, incremental=True) as manager:
                    manager.save(1, {"new": np.arange(900)}, if_exists="replace")
            return super().open(path)

    storage = Racing()
    assert list(CheckpointManager(root, storage=storage).restore(1)) == ["new"]
    assert storage.n_data > 1


def test_a_step_that_vanishes_with_its_data_while_it_is_listed_is_not_damaged(tmp_path):
    root = saved(tmp_path, [1], incremental=True)
    # So that the step has to tell of itself.
    (tmp_path / "history.ptck").unlink()

    class Racing(FailingStorage):
        n_data = 0

        def open(self, path):
            self.n_data += "/data/" in path
            if self.n_data == 1 and "/data/" in path:
                saved(root, [2], incremental=True, keep_last=1)
            return super().open(path)

    manager = CheckpointManager(root, storage=Racing())
    assert (manager.latest, manager.steps()) == (2, [2])
    assert manager.restore(fallback=True)["step"] == 2


def test_only_an_exception_is_not_the_latest(tmp_path):
    with CheckpointManager(tmp_path) as manager:
        manager.save(1, tree(1), reason="exception")
        with pytest.raises(CheckpointNotFoundError, match="restore one by its number"):
            manager.restore()
        manager.save(2, tree(2), reason="interrupt")
        manager.save(3, tree(3), reason="exception")
        assert manager.latest == 2
        assert manager.restore(fallback=True)["step"] == 2
        assert manager.restore(3)["step"] == 3


# Incremental steps.


def test_incremental_steps_share_their_data_and_each_restores_on_its_own(tmp_path):
    frozen = np.random.default_rng(0).random(100_000)
    with CheckpointManager(tmp_path, keep_last=2, incremental=True) as manager:
        for step in range(1, 8):
            manager.save(step, {"frozen": frozen, "head": np.full(1000, step)}, blocking=step % 2 == 0)
        manager.wait()
        assert manager.steps() == [6, 7]
        assert manager.record(1).nbytes > 10 * manager.record(7).nbytes
        for step in (6, 7):
            assert difference(manager.restore(step), {"frozen": frozen, "head": np.full(1000, step)}) is None
    assert sum(map(len, content(tmp_path).values())) < 1.2 * frozen.nbytes
    run = ptc.run.read_run(tmp_path)
    assert (run.leftovers, run.problems) == ((), ())
    with CheckpointManager(tmp_path, keep_last=1, incremental=True) as manager:
        manager.save(8, {"head": np.full(1000, 8)})
        assert difference(manager.restore(8), {"head": np.full(1000, 8)}) is None
    assert sum(map(len, content(tmp_path).values())) < 0.1 * frozen.nbytes


def test_the_best_and_the_last_steps_are_found_for_an_average(tmp_path):
    with CheckpointManager(tmp_path, keep_last=None, metric="loss") as manager:
        for step, loss in enumerate([3.0, 1.0, math.nan, 2.0]):
            manager.save(step, {"w": np.full(4, float(step))}, metrics={"loss": loss, "accuracy": -loss})
        manager.save(9, {"w": np.zeros(4)}, metrics={"loss": 0.0}, reason="exception")
        run = read_run(tmp_path)
        for paths in (manager.paths, run.paths):
            assert paths(best=2) == [manager.path(1), manager.path(3)]
            assert paths(last=2) == [manager.path(2), manager.path(3)]
            assert paths(best=1, metric="accuracy", mode="max") == [manager.path(1)]
            with pytest.raises(ValueError, match="give best= or last="):
                paths()
            with pytest.raises(ValueError, match="go with best="):
                paths(last=1, metric="loss")
            with pytest.raises(ptc.CheckpointNotFoundError, match="'bleu'; there are 'accuracy', 'loss'"):
                paths(best=1, metric="bleu")
        ptc.average(run.paths(best=2), tmp_path / "soup.ptck")
    assert ptc.restore(tmp_path / "soup.ptck")["w"].tolist() == [2.0] * 4
