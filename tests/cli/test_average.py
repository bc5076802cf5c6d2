"""`average`: files, or steps of a run, in one file."""

import numpy as np
import pytest
import torch

import pytreeckpt as ptc
from pytreeckpt.cli import average as command
from tests.cli.documented import check
from tests.cli.folders import make_run, step_path
from tests.cli.running import run, run_in_terminal


@pytest.fixture
def three(tmp_path):
    """Three files."""
    paths = [tmp_path / f"{number}.ptck" for number in range(3)]
    for number, path in enumerate(paths):
        ptc.save({"w": np.full((30, 40), number, np.float32), "b": np.full(3, number), "step": number}, path)
    return paths


def averaged(*arguments):
    ran = run("average", *arguments)
    assert (ran.code, ran.err) == (0, ""), ran.err
    return ran


def refused(*arguments, code=2):
    ran = run("average", *arguments)
    assert (ran.code, ran.out) == (code, ""), ran
    assert "Traceback" not in ran.err
    return ran.err


def test_files_are_averaged_and_the_report_says_which(three, tmp_path):
    ran = averaged(*three, "-o", tmp_path / "out.ptck", "--weights", "1,2,5")
    assert float(ptc.restore(tmp_path / "out.ptck")["w"][0, 0]) == 1.5
    assert ran.lines[0] == str(tmp_path / "out.ptck")
    assert ran.lines[1] == "  average of  3 files"
    assert ran.lines[-1] == f"  5 ×  {three[2]}"
    with ptc.open(tmp_path / "out.ptck") as checkpoint:
        assert f"  root        {checkpoint.root}" in ran.lines


def test_files_may_stand_around_options_and_have_any_format(three, tmp_path):
    torch.save({"w": torch.full((30, 40), 8.0)}, tmp_path / "w.pt")
    averaged(three[0], "-o", tmp_path / "out.ptck", "--select", "w", tmp_path / "w.pt")
    assert float(ptc.restore(tmp_path / "out.ptck")["w"][0, 0]) == 4.0


def test_many_files_are_not_all_shown(three, tmp_path):
    ran = averaged(*three * 7, "-o", tmp_path / "out.ptck")
    assert "… 10 more" in ran.out
    assert len(ran.lines) == 6 + 12


@pytest.mark.parametrize("incremental", [False, True])
def test_the_best_steps_of_a_run_are_averaged(incremental, tmp_path):
    root = make_run(tmp_path / "run", incremental=incremental)
    ran = averaged(root, "--best", 3, "-o", tmp_path / "out.ptck")
    # val_loss is best at 600, 500 and 400; the newest of them is the last.
    assert float(ptc.restore(tmp_path / "out.ptck")["head"][0]) == 5.0
    assert ran.lines[-3:] == [
        f"  1 ×  {step_path(root, step)}  {1.8 - step / 1000 + 0.2:g}" for step in (400, 500, 600)
    ]
    averaged(root, "--best", 2, "--metric", "accuracy", "--mode", "max", "-o", tmp_path / "out.ptck")
    assert float(ptc.restore(tmp_path / "out.ptck")["head"][0]) == 6.5


def test_the_mode_of_a_run_is_that_of_its_metric_alone(tmp_path):
    with ptc.CheckpointManager(tmp_path / "run", keep_last=None, metric="accuracy", mode="max") as manager:
        for step in (1, 2, 3):
            metrics = {"accuracy": step, "val_loss": step}
            manager.save(step, {"w": np.full(3, float(step))}, metrics=metrics)
    for options, expected in ((["--best", 1], 3.0), (["--best", 1, "--metric", "val_loss"], 1.0)):
        averaged(tmp_path / "run", *options, "-o", tmp_path / "out.ptck")
        assert ptc.restore(tmp_path / "out.ptck")["w"][0] == expected


def test_what_an_exception_left_is_not_averaged(tmp_path):
    with ptc.CheckpointManager(tmp_path / "run", keep_last=None) as manager:
        for step, reason in ((1, "scheduled"), (2, "interrupt"), (3, "exception")):
            manager.save(step, {"w": np.full(3, float(step))}, metrics={"val_loss": -step}, reason=reason)
    for options, expected in ((["--last", 2], 1.5), (["--best", 1], 2.0)):
        averaged(tmp_path / "run", *options, "-o", tmp_path / "out.ptck")
        assert ptc.restore(tmp_path / "out.ptck")["w"][0] == expected


def test_the_last_steps_of_a_run_are_averaged_with_weights(tmp_path):
    root = make_run(tmp_path / "run", n=4)
    averaged(root, "--last", 2, "--weights", "3,1", "-o", tmp_path / "out.ptck")
    assert float(ptc.restore(tmp_path / "out.ptck")["head"][0]) == 2.25
    averaged(root, "--last", 100, "-o", tmp_path / "out.ptck")
    assert float(ptc.restore(tmp_path / "out.ptck")["head"][0]) == 1.5


def test_the_document_is_as_documented(three, tmp_path):
    document = averaged(*three, "-o", tmp_path / "out.ptck", "--json").document
    check(document, command.SCHEMA)
    assert [each["path"] for each in document["inputs"]] == list(map(str, three))
    root = make_run(tmp_path / "run")
    document = averaged(root, "--best", 8, "-o", tmp_path / "out.ptck", "--json").document
    check(document, command.SCHEMA)
    assert [(each["step"], each["metric"]) for each in document["inputs"]][3] == (300, "nan")
    assert document["output"]["nbytes"] == (tmp_path / "out.ptck").stat().st_size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "1,2"], "--weights has 2 numbers for 3 files"),
        (["--weights", "1,2,x"], "--weights 1,2,x: they are numbers"),
        (["--weights", "1,-1,0"], "sum greater than 0"),
        (["--weights", "1,1,nan"], "finite numbers"),
        (["--best", "2"], "give its folder alone"),
        (["--best", "2", "--last", "1"], "leave out one"),
        (["--metric", "x"], "--metric goes with --best"),
        (["--select", "z"], "select 'z' matches no leaf; there is"),
    ],
)
def test_mistakes_are_told(options, message, three, tmp_path):
    assert message in refused(*three, "-o", tmp_path / "out.ptck", *options)
    assert not (tmp_path / "out.ptck").exists()


def test_mistakes_about_runs_are_told(three, tmp_path):
    root = make_run(tmp_path / "run", n=2)
    out = tmp_path / "out.ptck"
    assert "no step has a metric 'loss'; there is accuracy, val_loss" in refused(
        root, "--best", 1, "--metric", "loss", "-o", out
    )
    assert "--last 0: it is at least 1" in refused(root, "--last", 0, "-o", out)
    assert "--metric and --mode go with --best" in refused(root, "--last", 1, "--mode", "min", "-o", out)
    assert "there is no folder" in refused(tmp_path / "none", "--last", 1, "-o", out)
    (tmp_path / "empty").mkdir()
    assert "holds no steps of a run" in refused(tmp_path / "empty", "--last", 1, "-o", out)
    assert f"choose steps of it with --last N or --best K, or give their files, such as {step_path(root, 100)}" in (
        refused(root, "-o", out)
    )
    assert "not one of the formats" in refused(tmp_path / "empty", "-o", out, code=1)
    assert "--output" in refused(*three)


def test_what_is_wrong_with_files_is_told_and_nothing_is_written(three, tmp_path):
    out = tmp_path / "out.ptck"
    assert "there is no checkpoint at" in refused(three[0], tmp_path / "none", "-o", out)
    ptc.save({"w": np.zeros(3), "b": np.zeros(3, int)}, tmp_path / "other\x1b.ptck")
    message = refused(three[0], tmp_path / "other\x1b.ptck", "-o", out)
    assert "w: float64[3] in other\\x1b.ptck, float32[30, 40] in 0.ptck" in message
    data = bytearray(three[1].read_bytes())
    data[-300] ^= 1
    three[1].write_bytes(data)
    assert "1.ptck" in refused(*three, "-o", out, code=1)
    assert not out.exists()


def test_it_works_in_a_terminal(three, tmp_path):
    import sys

    code, output = run_in_terminal(
        sys.executable, "-m", "pytreeckpt", "average", *three, "-o", tmp_path / "out.ptck", width=80
    )
    assert code == 0, output
    assert "average of" in output
