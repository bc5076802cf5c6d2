"""The history of a run: what is known of all steps, whatever becomes of its file."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt import CheckpointManager
from pytreeckpt.run import prune, read_run
from pytreeckpt.steps.retention import keep_last
from tests.run.run_folders import content, saved, tree


def test_the_history_knows_the_steps_that_were_pruned(tmp_path):
    root = saved(tmp_path, range(1, 11), keep_last=1)
    assert [record.step for record in read_run(root).history] == list(range(1, 11))
    assert [record.step for record in CheckpointManager(root).history()] == list(range(1, 11))


def test_the_file_of_the_history_is_a_checkpoint_of_columns(tmp_path):
    saved(tmp_path, [3, 5], metrics=lambda step: {"x": step / 2})
    tree = ptc.restore(tmp_path / "history.ptck")
    assert (tree["layout"], tree["version"], tree["metric"], tree["mode"]) == (
        "pytreeckpt.history",
        1,
        "val_loss",
        "min",
    )
    assert tree["steps"]["step"].tolist() == [3, 5]
    assert tree["metrics"]["x"]["value"].tolist() == [1.5, 2.5]


DAMAGED = st.one_of(
    st.binary(max_size=200),
    st.integers(0, 700).map(lambda at: ("flip", at)),
    st.integers(0, 700).map(lambda at: ("cut", at)),
    st.sampled_from([{"other": 1}, None, [1], {"layout": "pytreeckpt.history", "version": 9}, np.zeros(3)]).map(
        ptc.encode
    ),
)


@pytest.fixture(scope="module")
def a_run(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("run"), [1, 2, 3, 4])


@given(damage=DAMAGED)
@settings(max_examples=40)
def test_whatever_is_in_the_place_of_the_history_the_training_goes_on(a_run, tmp_path_factory, damage):
    root = tmp_path_factory.mktemp("damaged")
    for name, data in content(a_run).items():
        (root / name).write_bytes(data)
    history = root / "history.ptck"
    whole = history.read_bytes()
    match damage:
        case ("flip", at):
            at = min(at, len(whole) - 1)
            history.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        case ("cut", at):
            history.write_bytes(whole[: min(at, len(whole) - 1)])
        case data:
            history.write_bytes(data)
    damaged = history.read_bytes()
    with pytest.warns(UserWarning, match="history.ptck is damaged"):
        run = read_run(root)
    assert [(record.step, dict(record.metrics)) for record in run.history] == [
        (step, {"val_loss": float(step)}) for step in (2, 3, 4)
    ]
    assert "history.ptck is damaged" in run.problems[0]
    assert history.read_bytes() == damaged
    manager = CheckpointManager(root, durability="atomic")
    with pytest.warns(UserWarning, match="history.ptck is damaged.*kept as .*history-damaged-1.ptck"):
        manager.save(5, tree(5))
    manager.save(6, tree(6))
    manager.close()
    assert (root / "history-damaged-1.ptck").read_bytes() == damaged
    run = read_run(root)
    assert [record.step for record in run.history] == [2, 3, 4, 5, 6]
    assert [record.step for record in run.records] == [4, 5, 6]
    assert not run.problems


def test_what_only_a_step_knows_is_in_the_history_before_the_step_goes(tmp_path):
    root = saved(tmp_path, [1, 2, 3])
    (tmp_path / "history.ptck").unlink()
    with CheckpointManager(root, keep_last=1) as manager:
        assert [record.step for record in manager.prune().removed] == [1, 2]
    assert [dict(record.metrics) for record in read_run(root).history] == [{"val_loss": float(n)} for n in (1, 2, 3)]


def test_a_history_that_was_set_aside_before_is_not_overwritten(tmp_path):
    root = saved(tmp_path, [1, 2])
    for damaged in (b"first", b"second"):
        (tmp_path / "history.ptck").write_bytes(damaged)
        with pytest.warns(UserWarning, match="is damaged"):
            prune(root, keep_last(1))
    assert (tmp_path / "history-damaged-1.ptck").read_bytes() == b"first"
    assert (tmp_path / "history-damaged-2.ptck").read_bytes() == b"second"


def test_a_small_file_cannot_ask_for_much_memory(tmp_path):
    root = saved(tmp_path, [1])
    bomb = {"layout": "pytreeckpt.history", "version": 1, "x": np.zeros(1 << 20)}
    with ptc.limits(arrays_nbytes=1000):
        (tmp_path / "history.ptck").write_bytes(ptc.encode(bomb))
    with pytest.warns(UserWarning, match="is damaged"):
        assert read_run(root).latest == 1
