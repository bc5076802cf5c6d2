"""Reading the folder of a run: it takes no lock, writes nothing, and harms nothing that is not ours."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt import CheckpointManager, CheckpointNotFoundError
from pytreeckpt.run import read_run
from pytreeckpt.storage import LocalStorage
from tests.run.run_folders import content, saved, tree
from tests.simulated_storage import SimulatedStorage


def test_a_run_tells_all_that_is_known(tmp_path):
    root = saved(tmp_path, [1, 2, 3, 4])
    with CheckpointManager(root) as manager:
        manager.pin("first", 2)
        run = read_run(root)
    assert [record.step for record in run.records] == [2, 3, 4]
    assert [record.step for record in run.history] == [1, 2, 3, 4]
    assert (run.pins, run.metric, run.mode, run.latest, run.best) == ({"first": 2}, "val_loss", "min", 4, 2)
    assert (run.damaged, run.leftovers, run.problems) == ((), (), ())
    with run.open("first") as checkpoint:
        assert checkpoint["step"] == 2
    assert run.path() == str(tmp_path / "step-00000004.ptck")


def test_what_was_pruned_since_a_run_was_read_is_looked_for_again(tmp_path):
    root = saved(tmp_path, [1, 2], incremental=True, keep_last=None)
    run = read_run(root)
    saved(root, [3], incremental=True, keep_last=1)
    for name in ("latest", "best"):
        with run.open(name) as checkpoint:
            assert checkpoint["step"] == 3
    with pytest.raises(CheckpointNotFoundError, match="step 1 is not in .*; there is 3"):
        run.open(1)


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="no folder"):
        read_run(tmp_path / "none")
    assert read_run(tmp_path).records == ()


def test_listing_reads_the_ends_of_files_and_no_index(tmp_path):
    root = saved(tmp_path, range(1, 6), keep_last=None)

    class Counting(LocalStorage):
        opened = ()

        def open(self, path):
            source = super().open(path)
            read_into = source.read_into

            def counted(offset, buffers):
                self.opened = (*self.opened, (path.rpartition("/")[2], sum(map(len, buffers))))
                read_into(offset, buffers)

            source.read_into = counted
            return source

    storage = Counting()
    assert len(read_run(root, storage=storage).records) == 5
    of_steps = [nbytes for name, nbytes in storage.opened if name.startswith("step-")]
    assert len(of_steps) == 10
    assert set(of_steps) == {64, 128}


def test_a_lost_history_is_told_by_the_steps_themselves(tmp_path):
    root = saved(tmp_path, [1, 2, 3, 4])
    (tmp_path / "history.ptck").unlink()
    run = read_run(root)
    assert [(r.step, dict(r.metrics)) for r in run.history] == [(n, {"val_loss": float(n)}) for n in (2, 3, 4)]
    assert (run.metric, run.best) == (None, None)
    assert CheckpointManager(root).best == 2


FOREIGN_NAMES = st.sampled_from(
    [
        "notes.txt", "step-1.ptck", "step-00000001.ptck.bak", "model.pt", ".hidden", "history.json", "data.zip",
        ".model.ptck.12-0123456789abcdef.tmp", "best.ptck", "data/notes.txt", "data/model.ptck", "logs/step-00000001.ptck",
        "step-00000077.ptck", "data/" + "ab" * 32 + ".ptck",
    ]
)  # fmt: skip


@given(st.dictionaries(FOREIGN_NAMES, st.binary(max_size=300), max_size=6), st.booleans())
@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
def test_nothing_foreign_is_touched(files, incremental):
    image = {"run": None, "run/data": None, "run/logs": None, **{f"run/{name}": data for name, data in files.items()}}
    storage = SimulatedStorage(image)
    with CheckpointManager("run", keep_last=1, incremental=incremental, storage=storage) as manager:
        for step in range(1, 4):
            manager.save(step, tree(step))
        assert manager.steps() == [3]
        assert manager.restore()["step"] == 3
        manager.prune()
    assert {name: storage.image[f"run/{name}"] for name in files} == files
    problems = " ".join(read_run("run", storage=storage).problems)
    for name in {"step-00000077.ptck", "data/" + "ab" * 32 + ".ptck"} & set(files):
        assert name in problems


def test_a_checkpoint_that_no_manager_saved_is_no_step(tmp_path):
    root = saved(tmp_path, [1, 2])
    ptc.save(tree(9), tmp_path / "step-00000009.ptck")
    (tmp_path / "step-00000008.ptck").write_bytes((tmp_path / "step-00000001.ptck").read_bytes())
    (tmp_path / "step-00000007.ptck").mkdir()
    before = content(root)
    with CheckpointManager(root, keep_last=1) as manager:
        assert manager.steps() == [1, 2]
        manager.prune()
        assert manager.steps() == [2]
        with pytest.raises(ptc.CheckpointExistsError, match="not replaced"):
            manager.save(7, tree(7), if_exists="replace")
        for step in (8, 9):
            with pytest.raises(ptc.CheckpointExistsError, match="not replaced, since it is no step"):
                manager.checkpoint(step, tree(step))
    del before["step-00000001.ptck"]
    assert content(root) == before
    problems = " ".join(read_run(root).problems)
    assert "step-00000009.ptck is a checkpoint that no CheckpointManager saved" in problems
    assert "step-00000008.ptck is of step 1" in problems
    assert "step-00000007.ptck has the name of a step and is none" in problems


def test_what_a_copied_manifest_needs_is_kept(tmp_path):
    with CheckpointManager(tmp_path, keep_last=1, incremental=True) as manager:
        manager.save(1, tree(1))
        (tmp_path / "mine.ptck").write_bytes(Path(manager.path(1)).read_bytes())
        manager.save(2, {"w": np.arange(900)})
        assert manager.steps() == [2]
    assert ptc.restore(tmp_path / "mine.ptck")["step"] == 1
