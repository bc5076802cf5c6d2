"""Pruning: a dry run says what goes, only what is ours goes, and whatever stops it, every step that is there is whole."""

import contextlib
import functools
import itertools
import os
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt import CheckpointManager, CheckpointNotFoundError, ConcurrentWriterError, StorageError
from pytreeckpt.commit import RemoveFile
from pytreeckpt.run import prune, read_run
from pytreeckpt.steps.retention import keep_best, keep_last, keep_steps
from tests.run.run_folders import FailingStorage, content, saved, tree
from tests.simulated_storage import NamesSynced, SimulatedStorage


@functools.cache
def image_of_a_run():
    """Incremental steps, of which some share data, and one is pinned."""
    storage = SimulatedStorage()
    with CheckpointManager("run", keep_last=None, incremental=True, storage=storage) as manager:
        for step in range(1, 6):
            tree = {"w": np.arange(4000) * step, "b": np.full(200, step % 2)}
            manager.save(step, tree, metrics={"val_loss": step})
        manager.pin("two", 2)
    return dict(storage.image)


@given(st.sets(st.integers(1, 5)))
@settings(max_examples=20)
def test_a_dry_run_says_exactly_what_goes(kept):
    leftovers = {
        "run/.step-00000009.ptck.7.tmp": b"abc",
        "run/data/.new.ptck.0.tmp": b"",
        "run/.history.ptck.3.tmp": b"x",
    }
    storage = SimulatedStorage({**image_of_a_run(), **leftovers})
    before = dict(storage.image)
    told = prune("run", keep_steps(kept), dry_run=True, storage=storage)
    assert storage.image == before
    assert not storage.operations
    report = prune("run", keep_steps(kept), storage=storage)
    assert report == told
    gone = set(before) - set(storage.image)
    assert gone == {f"run/{name}" for name in report.removed_files}
    assert report.freed_nbytes == sum(len(before[name]) for name in gone)
    assert gone >= set(leftovers)
    assert {name: data for name, data in before.items() if name not in gone} == storage.image
    stays = sorted({*kept, 2, 5})
    run = read_run("run", storage=storage)
    assert [record.step for record in run.records] == [record.step for record in report.kept] == stays
    assert [record.step for record in run.history] == [1, 2, 3, 4, 5]
    assert (run.leftovers, run.problems) == ((), ())
    for step in stays:
        assert CheckpointManager("run", storage=storage).restore(step)["b"][0] == step % 2


@pytest.mark.parametrize("error", [OSError(5, os.strerror(5)), KeyboardInterrupt()])
def test_wherever_pruning_stops_what_is_there_is_whole(error):
    n_operations = 0
    for at in itertools.count():
        storage = SimulatedStorage(image_of_a_run())
        real = storage.apply

        def apply(operation, storage=storage, at=at, real=real):
            if len(storage.operations) == at:
                raise error
            real(operation)

        storage.apply = apply
        try:
            prune("run", keep_last(1), storage=storage)
        except (StorageError, KeyboardInterrupt):
            n_operations += 1
        else:
            break
        storage.apply = real
        # After a kill, and after a power cut; the rest follows with the next operations.
        images = {frozenset(state.image.items()) for state in storage.crash_states(n_random=0, seed=0)}
        for image in [storage.image, *map(dict, images)]:
            after = SimulatedStorage(image)
            run = read_run("run", storage=after)
            assert not run.damaged
            assert {2, 5} <= {record.step for record in run.records}
            for record in run.records:
                with run.open(record.step) as checkpoint:
                    assert not list(checkpoint.damage())
        prune("run", keep_last(1), storage=storage)
        assert [record.step for record in read_run("run", storage=storage).records] == [2, 5]
        assert read_run("run", storage=storage).leftovers == ()
    assert n_operations >= 6


@pytest.mark.parametrize("n_operations", range(1, 9))
def test_after_a_pruning_that_was_killed_the_next_one_removes_no_data_of_steps_that_may_come_back(n_operations):
    storage = SimulatedStorage(image_of_a_run())
    real = storage.apply

    def apply(operation):
        if len(storage.operations) == n_operations:
            raise KeyboardInterrupt
        real(operation)

    storage.apply = apply
    with contextlib.suppress(KeyboardInterrupt):
        prune("run", keep_last(1), storage=storage)
    storage.apply = real
    # The same machine runs on, so what was not durable is not; and then the power goes.
    prune("run", keep_last(1), storage=storage)
    images = {frozenset(state.image.items()) for state in storage.crash_states(n_random=0, seed=0)}
    assert len(images) > 3
    for image in images:
        run = read_run("run", storage=SimulatedStorage(dict(image)))
        assert {2, 5} <= {record.step for record in run.records}
        for record in run.records:
            with run.open(record.step) as checkpoint:
                assert not list(checkpoint.damage())


def test_the_name_of_a_newer_step_is_durable_before_an_older_one_goes():
    storage = SimulatedStorage()
    manager = CheckpointManager("run", keep_last=None, storage=storage)
    manager.save(1, tree(1))
    manager.save(2, tree(2))
    manager.close()
    # Killed before the directory was synced: step 2 and the history are there, and not durable.
    renamed = [n for n, event in enumerate(storage.events) if isinstance(event, NamesSynced)]
    del storage.events[renamed[-1]], storage.events[renamed[-2]]
    n_events = len(storage.events)
    prune("run", keep_last(1), storage=storage)
    for state in storage.crash_states(n_random=0, seed=0, first=n_events):
        steps = [record.step for record in read_run("run", storage=SimulatedStorage(state.image)).records]
        assert steps in ([1], [1, 2], [2])


def test_pruning_a_folder_on_disk(tmp_path):
    root = saved(tmp_path, range(1, 6), keep_last=None)
    report = prune(root, keep_best(1, "val_loss"))
    assert [record.step for record in report.removed] == [2, 3, 4]
    assert sorted(content(root)) == ["history.ptck", "step-00000001.ptck", "step-00000005.ptck"]
    with pytest.raises(CheckpointNotFoundError):
        prune(tmp_path / "none", keep_last(1))


def test_nobody_prunes_where_somebody_writes_but_anybody_may_ask(tmp_path):
    root = saved(tmp_path, range(1, 4))
    with CheckpointManager(root) as manager:
        manager.save(4, tree(4))
        with pytest.raises(ConcurrentWriterError):
            prune(root, keep_last(1))
        assert [record.step for record in prune(root, keep_last(1), dry_run=True).removed] == [2, 3]
    assert [record.step for record in prune(root, keep_last(1)).removed] == [2, 3]


def test_a_step_that_somebody_replaces_is_not_removed(tmp_path):
    with CheckpointManager(tmp_path, keep_last=1) as manager:
        manager.save(1, tree(1))
        (tmp_path / "step-00000001.ptck").write_bytes(ptc.encode({"mine": 1}))
        with pytest.warns(UserWarning, match="somebody replaced it"):
            manager.save(2, tree(2))
    assert ptc.restore(tmp_path / "step-00000001.ptck") == {"mine": 1}


def test_data_files_stay_while_it_is_not_known_who_needs_them(tmp_path):
    with CheckpointManager(tmp_path, keep_last=None, incremental=True) as manager:
        for step in range(1, 4):
            manager.save(step, tree(step))
    damaged = tmp_path / "step-00000002.ptck"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1])
    report = prune(tmp_path, keep_last(1))
    assert [record.step for record in report.removed] == [1]
    assert report.removed_files == ("step-00000001.ptck",)
    assert "step-00000002.ptck needs" in " ".join(report.notes)
    damaged.write_bytes(whole)
    assert CheckpointManager(tmp_path).restore(2)["step"] == 2
    damaged.unlink()
    assert len(prune(tmp_path, keep_last(1)).removed_files) == 2


def test_without_the_lock_only_steps_are_pruned(tmp_path):
    with CheckpointManager(tmp_path, keep_last=1, incremental=True, lock=False) as manager:
        for step in range(1, 4):
            manager.save(step, tree(step))
        (tmp_path / ".step-00000007.ptck.3-0123456789abcdef.tmp").write_bytes(b"x")
        manager.save(4, tree(4))
        assert manager.steps() == [4]
    assert not (tmp_path / ".writer.lock").exists()
    run = read_run(tmp_path)
    assert len(run.leftovers) == 4
    assert sorted(prune(tmp_path, keep_last(1), lock=False).removed_files) == sorted(run.leftovers)
    assert CheckpointManager(tmp_path).restore()["step"] == 4


def test_a_lost_history_keeps_what_the_steps_know_before_they_go(tmp_path):
    root = saved(tmp_path, range(1, 4))
    (tmp_path / "history.ptck").unlink()
    prune(root, keep_last(1))
    assert [dict(record.metrics) for record in read_run(root).history] == [{"val_loss": float(n)} for n in (1, 2, 3)]


def test_a_removal_that_fails_is_an_error_of_prune(tmp_path):
    root = saved(tmp_path, range(1, 4))
    storage = FailingStorage()
    storage.fails = lambda operation: isinstance(operation, RemoveFile)
    with warnings.catch_warnings(), pytest.raises(StorageError, match="pruning .* stopped"):
        prune(root, keep_last(1), storage=storage)
    assert len(read_run(root).records) == 3
