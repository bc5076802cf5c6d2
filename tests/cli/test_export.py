"""`export`: a part of a checkpoint in a file, and what that saves."""

import numpy as np
import pytest
import safetensors.torch
import torch

import pytreeckpt as ptc
import pytreeckpt_torch as ptt
from pytreeckpt.cli import export as command
from pytreeckpt.operations.formats import FORMATS
from tests.cli.documented import check
from tests.cli.folders import make_run, step_path
from tests.cli.running import run


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "run.ptck"
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(300, 100), torch.nn.Linear(100, 10))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 300)).sum().backward()
    optimizer.step()
    ptt.save_training(path, model=model, optimizer=optimizer)
    return path


def exported(*arguments):
    ran = run("export", *arguments)
    assert (ran.code, ran.err) == (0, ""), ran.err
    return ran


def refused(*arguments, code=2):
    ran = run("export", *arguments)
    assert (ran.code, ran.out) == (code, ""), ran
    assert "Traceback" not in ran.err
    return ran.err


def test_weights_are_exported_cast_and_renamed(training, tmp_path):
    out = tmp_path / "out.safetensors"
    ran = exported(
        training, out, "--role", "model", "--dtype", "bfloat16", "--rename", "0=first", "--rename", "1.=last."
    )
    found = safetensors.torch.load_file(out)
    assert sorted(found) == ["first.bias", "first.weight", "last.bias", "last.weight"]
    assert found["first.weight"].dtype is torch.bfloat16
    assert ran.lines[0] == str(out)
    assert ran.lines[1:3] == ["  format     safetensors", "  parts      model"]
    assert any(line.startswith("  in memory  ") and " → 60.8 KiB, 16 %" in line for line in ran.lines), ran.out
    assert " → 31.1 k in 4 arrays, " in ran.out
    assert "rounded    4 arrays to bfloat16, 4 not exactly: by at most" in ran.out


def test_a_part_and_leaves_of_it_are_exported(training, tmp_path):
    exported(training, tmp_path / "out.ptck", "--at", "model/state", "--select", "*.bias")
    assert list(ptc.restore(tmp_path / "out.ptck")) == ["0.bias", "1.bias"]
    exported(training, tmp_path / "weights", "--role", "model", "--format", "npz", "--rename", "=model.")
    assert "model.0.bias" in ptc.restore(tmp_path / "weights")


def test_a_step_of_an_incremental_run_becomes_one_file(tmp_path):
    root = make_run(tmp_path / "run", incremental=True, n=3)
    exported(step_path(root, 100), tmp_path / "alone.ptck")
    with ptc.open(step_path(root, 100)) as step, ptc.open(tmp_path / "alone.ptck") as alone:
        assert len(step.index.files) > 0
        assert len(alone.index.files) == 0
        ptc.save(ptc.restore(step_path(root, 100)), tmp_path / "again.ptck", metadata=step.metadata)
    assert (tmp_path / "alone.ptck").read_bytes() == (tmp_path / "again.ptck").read_bytes()


def test_of_a_run_a_step_has_to_be_named(tmp_path):
    root = make_run(tmp_path / "run", n=2)
    message = refused(root, tmp_path / "out.ptck")
    assert f"is the folder of a run: give the file of a step, such as {step_path(root, 100)}" in message
    assert not (tmp_path / "out.ptck").exists()


def test_the_document_is_as_documented(training, tmp_path):
    document = exported(training, tmp_path / "out.ptck", "--json").document
    check(document, command.SCHEMA)
    assert document["before"] == document["after"]
    document = exported(
        training,
        tmp_path / "out.safetensors",
        "--role",
        "model",
        "--dtype",
        "float16",
        "--max-shard-size",
        "20KB",
        "--json",
    ).document
    check(document, command.SCHEMA)
    assert document["cast"]["n_arrays"] == 4
    assert len(document["files"]) > 2


def test_the_formats_are_those_that_are_written():
    assert tuple(FORMATS) == command.FORMATS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--role", "scaler"], "there is no such part; there is model, optimizer"),
        (["--at", "model/stat"], "model has no stat; there is model/state"),
        (["--at", "model", "--role", "model"], "leave out one"),
        (["--select", "zzz"], "select 'zzz' matches no leaf"),
        (["--rename", "a"], "--rename a: it is OLD=NEW"),
        (["--rename", "a=b", "--rename", "a=c"], "'a' is renamed already"),
        (["--role", "model", "--rename", "0.=1."], "several would have one name"),
        (["--dtype", "int8"], "real floats"),
        (["--max-shard-size", "5GB"], "is for safetensors"),
        (["--max-shard-size", "much"], "it is a size such as 5GB"),
        (["--format", "safetensors"], "this format holds arrays alone"),
    ],
)
def test_mistakes_are_told(options, message, training, tmp_path):
    assert message in refused(training, tmp_path / "out.ptck", *options)
    assert not list(tmp_path.iterdir())


def test_what_is_wrong_with_files_is_told(training, tmp_path):
    assert "there is no checkpoint at" in refused(tmp_path / "none", tmp_path / "out.ptck")
    assert "end it in one of .ptck" in refused(training, tmp_path / "out")
    exported(training, tmp_path / "out.ptck")
    assert "out.ptck exists" in refused(training, tmp_path / "out.ptck", "--if-exists", "error")
    (tmp_path / "bad.ptck").write_bytes(training.read_bytes()[:-10])
    refused(tmp_path / "bad.ptck", tmp_path / "x.ptck", code=1)
    ptc.save({"w": np.array([1e30])}, tmp_path / "large.ptck")
    message = refused(tmp_path / "large.ptck", tmp_path / "x.ptck", "--dtype", "float16", code=1)
    assert "w: 1 finite values are beyond what float16 holds" in message
    ran = exported(tmp_path / "large.ptck", tmp_path / "x.ptck", "--dtype", "float16", "--allow-overflow")
    assert "1 value became infinite or NaN" in ran.out
    ran = exported(tmp_path / "large.ptck", tmp_path / "x.ptck", "--dtype", "float64")
    assert "nothing: all floats have this dtype" in ran.out
