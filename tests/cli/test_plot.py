"""`plot`: the command around the curves, in the terminal and in files."""

import importlib.util
import io
import re
import shutil
import sys

import pytest

from pytreeckpt import cli
from pytreeckpt.cli import plot
from pytreeckpt.cli.text import cell_width
from tests.cli.folders import cut_off, make_run, save_plain
from tests.cli.running import run, run_in_terminal

needs_matplotlib = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    # The history has what was pruned, too.
    return make_run(tmp_path_factory.mktemp("runs") / "run", keep_last=2, n=20, pins={"paper": 1800})


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "other", n=5)


def test_all_metrics_are_drawn_in_the_terminal(made):
    ran = run("plot", made)
    assert (ran.code, ran.err) == (0, "")
    assert [line for line in ran.lines if line in {"val_loss", "accuracy"}] == ["val_loss", "accuracy"]
    assert "★ best 0.2 at step 1,800" in ran.out
    assert "▲ pin paper at step 1,800" in ran.out
    assert ran.lines[-1] == "val_loss: no finite number at step 300"
    assert re.search("[\u2801-\u28ff]", ran.out)


def test_one_metric_is_drawn_higher(made):
    ran = run("plot", made, "--metric", "accuracy", "--x", "epoch")
    assert "val_loss" not in ran.out
    assert sum("│" in line or "┤" in line for line in ran.lines) == 16
    assert "x: epoch" in ran.out


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_chart_is_as_wide_as_the_terminal(made, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    ran = run("plot", made)
    assert max(map(cell_width, ran.lines)) == width


def test_several_runs_without_colours_have_letters_and_with_colours_dots(made, other):
    ran = run("plot", made, other, "--metric", "val_loss")
    assert ran.code == 0
    assert not re.search("[\u2801-\u28ff]", ran.out)
    assert f"o {made} last 0.6" in ran.out
    assert f"x {other} last" in ran.out
    pytest.importorskip("rich")
    code, painted = run_in_terminal(sys.executable, "-m", "pytreeckpt", "plot", made, other, "--metric", "val_loss")
    assert code == 0
    assert re.search("\x1b\\[36m[\u2801-\u28ff]", painted)
    assert re.search("\x1b\\[33m[\u2801-\u28ff]", painted)


def test_an_output_that_is_not_unicode_gets_letters(made, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert cli.main(["plot", str(made), "--metric", "accuracy"]) == 0
    stream.seek(0)
    text = stream.read()
    assert "\\u" not in text
    assert "o accuracy last 1.9" in text
    assert "^ pin paper" in text


def test_metrics_without_room_are_named(tmp_path):
    names = [f"metric_{place}" for place in range(9)]
    root = make_run(tmp_path / "run", n=3, metrics=lambda place: dict.fromkeys(names, float(place)))
    ran = run("plot", root)
    assert "not shown: metric_4, metric_5, metric_6, metric_7, metric_8; --metric NAME shows one" in ran.out
    ran = run("plot", root, "--metric", "metric_8", "--metric", "metric_7")
    assert [line for line in ran.lines if line in names] == ["metric_8", "metric_7"]


def test_values_that_have_no_logarithm_are_told_of(made):
    ran = run("plot", made, "--log", "--metric", "accuracy")
    assert ran.lines[-1] == "accuracy: 0 or less, and so not on a logarithmic axis, at step 0"
    assert "1.9" in ran.out


@needs_matplotlib
@pytest.mark.parametrize(("suffix", "start"), [("svg", b"<?xml"), ("PNG", b"\x89PNG"), ("pdf", b"%PDF")])
def test_a_file_has_the_format_of_its_suffix(made, other, tmp_path, suffix, start):
    path = tmp_path / f"curves.{suffix}"
    path.write_bytes(b"an older one")
    ran = run("plot", made, other, "-o", path, "--smooth", 3, "--metric", "val_loss")
    assert (ran.code, ran.err) == (0, "")
    assert ran.lines[0] == str(path)
    assert "2 curves in 1 panel" in ran.out
    assert path.read_bytes().startswith(start)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@needs_matplotlib
def test_a_file_that_cannot_be_written_is_told(made, tmp_path):
    (tmp_path / "curves.svg").mkdir()
    ran = run("plot", made, "-o", tmp_path / "curves.svg")
    assert (ran.code, ran.out) == (2, "")
    assert "is a directory" in ran.err


def test_without_matplotlib_a_file_says_what_to_install_and_the_terminal_does_without(made, monkeypatch):
    monkeypatch.setattr(plot, "_has_matplotlib", lambda: False)
    ran = run("plot", made, "-o", "curves.svg")
    assert (ran.code, ran.out) == (2, "")
    assert "pip install 'pytreeckpt[plot]'" in ran.err
    assert run("plot", made).code == 0


def test_the_terminal_needs_no_matplotlib(made):
    script = (
        "import sys\n"
        "from pytreeckpt.cli import main\n"
        f"code = main(['plot', {str(made)!r}])\n"
        "print([name for name in ('matplotlib', 'torch', 'jax', 'rich') if name in sys.modules], code, file=sys.stderr)\n"
    )
    code, output = run_in_terminal(sys.executable, "-c", script, NO_COLOR="1")
    assert code == 0
    assert output.endswith("[] 0\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--metric", "none"], "no step has a metric 'none'; there is val_loss, accuracy"),
        (["-o", "curves.bmp"], "one of .svg, .png, .pdf"),
        (["-o", "curves"], "one of .svg, .png, .pdf"),
        (["--smooth", "0"], "is not a number of steps"),
        (["--smooth", "x"], "is not a number of steps"),
        (["--x", "weeks"], "--x"),
    ],
)
def test_mistakes_are_told(made, arguments, words):
    ran = run("plot", made, *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert words in ran.err


def test_a_folder_without_metrics_is_told(tmp_path):
    save_plain(tmp_path / "x.ptck")
    for root, words in ((tmp_path, "no metrics to plot"), (tmp_path / "no", "there is no folder")):
        ran = run("plot", root)
        assert (ran.code, ran.out) == (2, "")
        assert words in ran.err
    root = make_run(tmp_path / "run", n=1, metrics=lambda place: {})
    assert "no metrics to plot" in run("plot", root).err


def test_a_damaged_history_is_told_of_and_what_the_steps_tell_is_drawn(made, tmp_path):
    root = shutil.copytree(made, tmp_path / "run")
    cut_off(root / "history.ptck")
    ran = run("plot", root)
    assert ran.code == 1
    assert "history.ptck is damaged" in ran.err
    assert "last 0.6" in ran.out


def test_names_are_escaped(tmp_path):
    root = make_run(tmp_path / "a\x1b[31m", n=3, metrics=lambda place: {"m\x1b[0m": float(place)})
    for arguments in ([], ["--metric", "none"]):
        ran = run("plot", root, root, *arguments)
        assert "\x1b" not in ran.out + ran.err
        assert "\\x1b" in ran.out + ran.err
