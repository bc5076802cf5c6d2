"""`ls`: what it says of the steps of a run, and of all else that may lie in its folder."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytreeckpt.cli import ls_listing
from pytreeckpt.cli.steps_text import age_text, moment_text, short_number
from pytreeckpt.cli.text import cell_width
from pytreeckpt.errors import StorageError
from pytreeckpt.run import CheckpointManager, read_run
from tests.cli.documented import check
from tests.cli.folders import START_S, cut_off, flip_a_bit, make_run, save_plain, step_path
from tests.cli.running import run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs") / "run"
    return make_run(root, pins={"paper": 200}, reasons={500: "interrupt", 600: "exception"})


@pytest.fixture
def folder(made, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(made, tmp_path / "run")


def listed(root, *arguments):
    ran = run("ls", root, "--json", *arguments)
    assert ran.err == ""
    check(ran.document, "pytreeckpt-ls/1")
    assert ran.code == (0 if ran.document["ok"] else 1)
    return ran.document


def rows(ran):
    """The rows of the table of steps, by their steps."""
    found = {}
    for line in ran.lines:
        match = re.match(r" *(\d+)  .*?(?:B|Z|days|years|h|min|s)\b", line)
        if match:
            found[int(match[1])] = line
    return found


def test_each_step_has_a_row_with_its_metrics_and_marks(made):
    ran = run("ls", made)
    assert (ran.code, ran.err) == (0, "")
    table = rows(ran)
    assert list(table) == list(range(0, 800, 100))
    assert ran.lines[2].split() == ["step", "age", "size", "val_loss", "epoch", "accuracy"]
    assert table[200].endswith("pin paper")
    assert " nan " in table[300]
    assert table[500].endswith("after an interrupt")
    assert table[600].endswith("best, after an exception")
    assert table[700].endswith("latest")
    assert "best   step 600: val_loss 1.4, the smallest" in ran.out


def test_the_document_is_as_documented_and_says_the_same(made):
    document = listed(made)
    there = read_run(made)
    assert [step["step"] for step in document["steps"]] == [record.step for record in there.records]
    assert (document["latest"], document["best"], document["pins"]) == (700, 600, {"paper": 200})
    by_step = {step["step"]: step for step in document["steps"]}
    assert by_step[300]["metrics"]["val_loss"] == "nan"
    assert by_step[200]["pins"] == ["paper"]
    assert by_step[600]["reason"] == "exception"
    assert by_step[0]["saved"] == "2023-11-14T22:13:20Z"
    assert all(step["state"] == "whole" and step["nbytes"] == step["file_nbytes"] for step in document["steps"])
    on_disk = sum(file.stat().st_size for file in made.glob("*.ptck"))
    assert document["nbytes"] == on_disk


@pytest.mark.parametrize("width", [40, 60, 80, 160])
def test_lines_keep_the_width_and_the_best_metric_stays(made, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    ran = run("ls", made)
    assert ran.code == 0
    assert "val_loss" in ran.lines[2]
    assert max(map(cell_width, ran.lines[1:])) <= width
    assert ("accuracy" in ran.lines[2]) == (width >= 80)


def test_another_metric_may_tell_the_best(made):
    assert listed(made, "--metric", "accuracy")["best"] == 0
    assert listed(made, "--metric", "accuracy", "--mode", "max")["best"] == 700
    assert listed(made, "--mode", "max")["best"] == 0
    ran = run("ls", made, "--metric", "accuracy", "--mode", "max")
    assert ran.lines[2].split()[3] == "accuracy"
    assert "best   step 700: accuracy 0.7, the largest" in ran.out
    ran = run("ls", made, "--metric", "none")
    assert (ran.code, ran.out) == (2, "")
    assert "no step has a metric 'none'; there is" in ran.err


def test_pruned_steps_are_listed_when_asked_for(tmp_path):
    root = make_run(tmp_path / "run", keep_last=2)
    assert [step["step"] for step in listed(root)["steps"]] == [600, 700]
    assert listed(root)["past"] == 6
    everything = listed(root, "--all")["steps"]
    assert [step["state"] for step in everything] == ["pruned"] * 6 + ["whole"] * 2
    assert [step["file_nbytes"] for step in everything][:6] == [None] * 6
    ran = run("ls", root, "--all")
    assert rows(ran)[100].endswith("pruned")
    assert "2023-11-14T22:13:20Z" in ran.out
    assert "6 more in the history" in run("ls", root).out


def test_a_file_that_was_cut_off_is_told_by_its_end(folder):
    cut_off(step_path(folder, 400))
    ran = run("ls", folder)
    assert ran.code == 1
    assert rows(ran)[400].endswith("damaged")
    assert f"- {step_path(folder, 400)}: the file of" in ran.out
    document = listed(folder)
    assert [step["step"] for step in document["steps"] if step["state"] == "damaged"] == [400]
    assert len(document["damage"]) == 1
    assert document["notes"] == []


def test_a_flipped_bit_is_told_when_every_byte_is_checked(folder):
    flip_a_bit(step_path(folder, 600))
    assert listed(folder)["ok"]
    document = listed(folder, "--verify")
    assert [step["step"] for step in document["steps"] if step["state"] == "damaged"] == [600]
    # A damaged step is not the best.
    assert document["best"] == 500
    assert "leaf frozen, chunk 0" in document["damage"][0]
    assert run("ls", folder, "--verify").code == 1


def test_an_incremental_step_shows_what_it_has_added_and_misses_its_data(tmp_path):
    root = make_run(tmp_path / "run", incremental=True)
    document = listed(root)
    assert all(step["incremental"] for step in document["steps"])
    assert document["steps"][0]["nbytes"] > 3 * document["steps"][1]["nbytes"]
    assert document["nbytes"] == sum(file.stat().st_size for file in root.rglob("*.ptck"))
    assert re.search(r"\+\d", rows(run("ls", root))[100])
    for path in (root / "data").iterdir():
        path.unlink()
    ran = run("ls", root)
    assert ran.code == 1
    assert all(
        line.endswith(("damaged", "damaged, latest", "damaged, after an exception")) for line in rows(ran).values()
    )


def test_other_files_are_told_of_and_nothing_of_them_reaches_the_terminal(folder):
    save_plain(folder / "exported.ptck")
    save_plain(folder / "step-00000077.ptck")
    (folder / "\x1b[31m.ptck").write_bytes(b"nothing")
    (folder / "notes.txt").write_text("x")
    (folder / ".step-00000800.ptck.1-0123456789abcdef.tmp").write_bytes(b"x" * 1000)
    ran = run("ls", folder)
    assert ran.code == 0
    assert "\x1b" not in ran.out
    assert r"\x1b[31m.ptck  no checkpoint" in ran.out
    assert "notes.txt" not in ran.out
    document = listed(folder)
    assert [file["name"] for file in document["others"]] == ["\x1b[31m.ptck", "exported.ptck", "step-00000077.ptck"]
    assert [file["nbytes"] for file in document["leftovers"]] == [1000]
    assert any("that no CheckpointManager saved" in note for note in document["notes"])
    assert len(document["steps"]) == 8


def test_another_checkpoint_that_is_torn_is_damage(folder):
    cut_off(save_plain(folder / "exported.ptck"))
    document = listed(folder)
    assert not document["ok"]
    assert document["others"][0]["problem"]
    assert all(step["state"] == "whole" for step in document["steps"])


def test_names_of_metrics_and_pins_are_escaped_and_shortened(tmp_path):
    name = "a\x1b[31m\u202e" + "long" * 20
    root = make_run(tmp_path / "run", n=2, metrics=lambda place: {name: float(place)})
    ran = run("ls", root, "--metric", name)
    assert ran.code == 0
    assert "\x1b" not in ran.out
    assert "\u202e" not in ran.out
    assert max(map(len, ran.lines[1:5])) < 100
    assert listed(root, "--metric", name)["steps"][1]["metrics"] == {name: 1.0}


def test_a_damaged_history_is_told_of_and_the_steps_tell_of_themselves(folder):
    cut_off(folder / "history.ptck")
    ran = run("ls", folder)
    assert (ran.code, ran.err) == (1, "")
    assert "history.ptck is damaged" in ran.out
    assert list(rows(ran)) == list(range(0, 800, 100))
    assert "1.9" in rows(ran)[100]


def test_a_step_that_is_damaged_and_unknown_has_a_row(folder):
    (folder / "history.ptck").unlink()
    cut_off(step_path(folder, 100))
    (step,) = [step for step in listed(folder)["steps"] if step["state"] == "damaged"]
    assert step["step"] == 100
    assert "metrics" not in step
    assert rows(run("ls", folder))[200]
    assert "damaged" in run("ls", folder).out


def test_a_folder_of_checkpoints_that_is_no_run_lists_its_files(tmp_path):
    save_plain(tmp_path / "one.ptck")
    save_plain(tmp_path / "two.ptck")
    ran = run("ls", tmp_path)
    assert (ran.code, ran.err) == (0, "")
    assert "one.ptck" in ran.out
    assert "no CheckpointManager has saved here" in ran.out
    document = listed(tmp_path)
    assert [file["name"] for file in document["others"]] == ["one.ptck", "two.ptck"]
    assert document["steps"] == []


def test_pins_of_steps_that_are_gone_are_told(folder):
    step_path(folder, 200).unlink()
    assert "of steps that are not there: paper (200)" in run("ls", folder).out


def test_metrics_of_steps_that_were_never_saved_are_in_the_history(tmp_path):
    root = tmp_path / "run"
    with CheckpointManager(root, durability="atomic") as manager:
        manager.log(1, {"loss": 3.0})
        manager.save(2, {"x": np.zeros(3)}, metrics={"loss": 2.0})
    assert [step["state"] for step in listed(root, "--all")["steps"]] == ["never saved", "whole"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", "there is no folder"),
        ("file.ptck", "is a file, not the folder of a run: pytreeckpt inspect looks into it"),
        ("empty", "there are no checkpoints in"),
    ],
)
def test_what_is_no_run_is_told_clearly(tmp_path, name, words):
    save_plain(tmp_path / "file.ptck")
    (tmp_path / "empty").mkdir()
    ran = run("ls", tmp_path / name)
    assert (ran.code, ran.out) == (2, "")
    assert words in ran.err
    assert "Traceback" not in ran.err


def test_listing_writes_nothing_and_needs_no_lock(folder):
    def snapshot():
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(folder.rglob("*"))}

    before = snapshot()
    assert run("ls", folder, "--all", "--verify").code == 0
    assert snapshot() == before
    with CheckpointManager(folder, keep_last=None, durability="atomic") as manager:
        manager.pin("held", 700)
        assert run("ls", folder).code == 0


def test_a_step_that_vanishes_while_it_is_looked_at_is_left_out(folder, monkeypatch):
    def pruned_meanwhile(storage, path):
        if path.endswith("step-00000300.ptck"):
            Path(path).unlink()
            raise StorageError("it is gone")
        return False

    monkeypatch.setattr(ls_listing, "_needs_data_files", pruned_meanwhile)
    assert 300 not in [step["step"] for step in listed(folder)["steps"]]


def test_many_metrics_are_bounded_in_a_pipe(tmp_path):
    names = [f"metric_{place:03}" for place in range(40)]
    root = make_run(tmp_path / "run", n=1, metrics=lambda place: dict.fromkeys(names, 1.0))
    ran = run("ls", root)
    assert "not shown: metric_011" in ran.out
    assert "and 21 more" in ran.out
    assert set(listed(root)["steps"][0]["metrics"]) == set(names)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5.0, "0 s"),
        (0.4, "0 s"),
        (119.0, "119 s"),
        (120.0, "2 min"),
        (7200.0, "2 h"),
        (86400 * 2.5, "2 days"),
        (86400 * 800.0, "2 years"),
        (1e300, "3.1688e+292 years"),
    ],
)
def test_ages_are_short(seconds, text):
    assert age_text(seconds) == text


def test_moments_no_calendar_has_are_seconds():
    assert moment_text(START_S) == "2023-11-14T22:13:20Z"
    assert moment_text(-1.0) == "1969-12-31T23:59:59Z"
    assert moment_text(1e300) == "1e+300 s"
    assert short_number(float("nan")) == "nan"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("small") / "run", n=3, incremental=True, pins={"paper": 100})


@settings(max_examples=15)
@given(data=st.data())
def test_whatever_is_damaged_there_is_a_report_or_an_error(small, tmp_path_factory, data):
    root = shutil.copytree(small, tmp_path_factory.mktemp("damaged") / "run")
    path = data.draw(st.sampled_from(sorted(root.rglob("*.ptck"))))
    content = bytearray(path.read_bytes())
    kind = data.draw(st.sampled_from(["cut", "flip", "gone", "folder", "loop", "longer"]))
    if kind == "cut":
        path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    elif kind == "flip":
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
    elif kind == "longer":
        path.write_bytes(content + b"x")
    else:
        path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind == "loop":
            path.symlink_to(path)
    commands = (["ls"], ["ls", "--all", "--verify", "--json"], ["plot"], ["prune", "--keep-last", 1])
    for command, *options in commands:
        ran = run(command, root, *options)
        assert ran.code in {0, 1, 2}
        assert ran.out or ran.err


def test_links_that_lead_nowhere_and_folders_are_no_damage(tmp_path):
    root = make_run(tmp_path / "run", n=2)
    (root / "gone.ptck").symlink_to("nowhere.ptck")
    (root / "folder.ptck").mkdir()
    ran = run("ls", root)
    assert ran.code == 0
    assert "gone.ptck: a link to what is not there" in ran.out
    assert ran.out.count(f"{root / 'folder.ptck'}") == 1
    assert "56 years" not in ran.out
