"""Plots as files: what their bytes are, and that no name and no value is more than matplotlib takes."""

import math
import xml.etree.ElementTree as ET

import pytest

from pytreeckpt.cli.plot_curves import History, plot_of
from tests.cli.test_plot_curves import record

pytest.importorskip("matplotlib")

from pytreeckpt.cli.plot_figure import drawn

_SVG = "{http://www.w3.org/2000/svg}"


def run(label="run", n=40, offset=0.0):
    records = [
        record(10 * i, saved_at=60.0 * i, val_loss=offset + 1 / (1 + i), **{"train/loss": 2 / (1 + i)})
        for i in range(n)
    ]
    return History(label=label, records=records, metric="val_loss", pins={"release": 100})


def plot(*runs, **options):
    return plot_of(runs, max_panels=24, **options)


@pytest.mark.parametrize(("format", "start"), [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_the_same_curves_give_the_same_bytes_whatever_the_users_settings(format, start):
    import matplotlib as mpl

    once = drawn(plot(run(), run("two", offset=1.0)), "a title", format)
    assert once.startswith(start)
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "savefig.dpi": 50, "svg.hashsalt": None}):
        assert drawn(plot(run(), run("two", offset=1.0)), "a title", format) == once
        assert mpl.rcParams["font.size"] == 30


def test_an_svg_has_its_curves_and_no_date():
    content = drawn(plot(run()), "a title", "svg")
    root = ET.fromstring(content)
    assert len(root.findall(f".//{_SVG}path")) > 10
    assert b"dc:date" not in content


def test_names_are_shown_as_they_are_and_never_read():
    hostile = ["$\\frac{", "_hidden", "<b>&amp;</b>", "\x1b[31m\n", "a" * 300, "損失", "%s {0}", ""]
    records = [record(i, **{name: float(i + 1) for name in hostile}) for i in range(3)]
    one = History(label="$x^", records=records, pins={"$\\undefined{": 1}, metric="_hidden")
    two = History(label="_run", records=records, metric="$\\frac{")
    content = drawn(plot(one, two), "$\\frac{", "svg")
    root, comments = ET.fromstring(content), content.decode()
    assert len(root.findall(f".//{_SVG}path")) > 10
    # matplotlib puts each text into a comment beside its outlines.
    for shown in ("$\\frac{", "_run", "_hidden", "$x^   best", "\\x1b[31m\\x0a", "$\\undefined{"):
        assert shown in comments


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "values",
    [
        [1.0],
        [math.nan, math.inf],
        [1.0, math.nan, 2.0, math.nan, math.nan, 3.0],
        [0.0, 0.0],
        [-1.0, 1.0],
        [5e-324, 1.7e308],
        [1e-3, 1.1e-3],
    ],
)
def test_any_values_can_be_drawn(values, log):
    records = [record(place, val_loss=value) for place, value in enumerate(values)]
    history = History(label="run", records=records, metric="val_loss")
    assert drawn(plot(history, log=log, smooth=2), "run", "svg").startswith(b"<?xml")


def test_steps_of_any_size_can_be_drawn():
    records = [record(step, val_loss=1.0) for step in (0, 2**62, 2**63 - 1)]
    assert drawn(plot(History(label="run", records=records)), "run", "svg").startswith(b"<?xml")
