"""Locks: one writer in a folder, in one process and in two; readers need none."""

import gc
import os
import shutil
import subprocess
import sys
import threading

import pytest

from pytreeckpt import CheckpointManager, ConcurrentWriterError, StorageError
from pytreeckpt.commit import CreateFile
from pytreeckpt.locks import take_lock
from pytreeckpt.run import read_run
from tests.run.run_folders import FailingStorage, saved, tree


def test_a_second_writer_in_this_process_is_an_error_and_a_reader_is_none(tmp_path):
    with CheckpointManager(tmp_path) as first:
        first.save(1, tree(1))
        second = CheckpointManager(tmp_path)
        assert second.restore()["step"] == 1
        with pytest.raises(ConcurrentWriterError, match="held in this process"):
            second.save(2, tree(2))
        with pytest.raises(ConcurrentWriterError):
            second.pin("a")
        assert first.steps() == second.steps() == [1]
    second.save(2, tree(2))
    second.close()


def test_a_second_writer_in_another_process_is_an_error_that_says_who_writes(tmp_path):
    code = "import sys, pytreeckpt; pytreeckpt.CheckpointManager(sys.argv[1]).save(2, {'a': 1})"
    with CheckpointManager(tmp_path) as manager:
        manager.save(1, tree(1))
        other = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
        assert "ConcurrentWriterError" in other.stderr
        assert f"process {os.getpid()}" in other.stderr
        assert manager.steps() == [1]
        assert [record.step for record in read_run(tmp_path).records] == [1]
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)
    assert CheckpointManager(tmp_path).steps() == [1, 2]


def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path):
    code = (
        "import os, signal, sys, pytreeckpt\n"
        "pytreeckpt.CheckpointManager(sys.argv[1]).save(1, {'step': 1})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path], check=False).returncode == -9
    saved(tmp_path, [2])
    assert CheckpointManager(tmp_path).steps() == [1, 2]


def test_a_forked_child_has_not_its_parents_lock(tmp_path):
    with CheckpointManager(tmp_path) as manager:
        manager.save(1, tree(1))
        child = os.fork()
        if not child:
            try:
                manager.save(2, tree(2))
            except ConcurrentWriterError:
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        manager.save(3, tree(3))
        assert manager.steps() == [1, 3]


def test_a_child_that_is_forked_in_the_middle_of_a_save_can_look_and_is_no_writer(tmp_path):
    storage = FailingStorage()
    begun, go_on = threading.Event(), threading.Event()

    def wait(operation):
        if isinstance(operation, CreateFile) and "step-00000002" in operation.path:
            begun.set()
            go_on.wait(30)
        return False

    with CheckpointManager(tmp_path, storage=storage) as manager:
        manager.save(1, tree(1))
        storage.fails = wait
        manager.log(7, {"of the parent": 1.0})
        handle = manager.save(2, tree(2), blocking=False)
        begun.wait(30)
        child = os.fork()
        if not child:
            status = 1
            try:
                assert manager.steps() == [1]
                assert len(manager.history()) == 1
                manager.should_save(9)
                try:
                    manager.save(3, tree(3))
                except ConcurrentWriterError:
                    # What the parent logged is the parent's to write.
                    manager.close()
                    status = 7
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        # Only now: the child is to look while step 2 is not there.
        go_on.set()
        assert status == 7
        handle.result(30)
        assert manager.steps() == [1, 2]
        manager.wait()
        assert manager.record(7).metrics == {"of the parent": 1.0}


def test_a_lock_that_was_lost_and_that_nobody_took_is_taken_again(tmp_path):
    with CheckpointManager(tmp_path / "run") as manager:
        manager.save(1, tree(1))
        # Closing any descriptor of the file loses the lock.
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        manager.save(2, tree(2))
        with pytest.raises(ConcurrentWriterError):
            CheckpointManager(tmp_path / "run").save(3, tree(3))
        (tmp_path / "run" / ".writer.lock").unlink()
        manager.save(4, tree(4))
        with pytest.raises(ConcurrentWriterError):
            CheckpointManager(tmp_path / "run").save(5, tree(5))
        shutil.rmtree(tmp_path / "run")
        manager.save(6, tree(6))
        assert manager.steps() == [6]
        with pytest.raises(ConcurrentWriterError):
            CheckpointManager(tmp_path / "run").save(7, tree(7))


def test_what_another_one_wrote_while_the_lock_was_lost_is_seen(tmp_path):
    code = "import sys, pytreeckpt; pytreeckpt.CheckpointManager(sys.argv[1]).save(2, {'a': 1}, metrics={'x': 5.0})"
    with CheckpointManager(tmp_path / "run", keep_last=None) as manager:
        manager.save(1, tree(1))
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        subprocess.run([sys.executable, "-c", code, tmp_path / "run"], check=True)
        manager.save(3, tree(3))
        assert manager.steps() == [1, 2, 3]
        assert manager.record(2).metrics == {"x": 5.0}


def test_a_manager_that_is_forgotten_lets_go_of_its_lock(tmp_path):
    manager = CheckpointManager(tmp_path)
    manager.save(1, tree(1))
    manager = None
    gc.collect()
    saved(tmp_path, [2])


def test_a_lock_is_taken_once_and_given_back_once(tmp_path):
    path = str(tmp_path / "lock")
    lock = take_lock(path)
    assert lock.is_held()
    with pytest.raises(ConcurrentWriterError):
        take_lock(path)
    lock.release()
    lock.release()
    assert not lock.is_held()
    again = take_lock(path)
    # The first one has nothing to give back any more.
    lock.release()
    with pytest.raises(ConcurrentWriterError):
        take_lock(path)
    again.release()


def test_where_nothing_can_be_written_it_is_an_error_and_reading_goes_on(tmp_path):
    root = saved(tmp_path / "run", [1])
    (tmp_path / "run" / ".writer.lock").unlink()
    (tmp_path / "run" / ".writer.lock").symlink_to(tmp_path / "elsewhere")
    manager = CheckpointManager(root)
    with pytest.raises(StorageError, match="cannot open the lock"):
        manager.save(2, tree(2))
    assert manager.steps() == [1]
    assert not (tmp_path / "elsewhere").exists()
