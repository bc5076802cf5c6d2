"""Histories to curves, numbers at axes, and charts in characters: pure, and total over whatever metrics there are."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytreeckpt.cli.layout import plain_line
from pytreeckpt.cli.plot_axes import scale_of, tick_texts, ticks
from pytreeckpt.cli.plot_chart import BRAILLE, IN_LETTERS, chart
from pytreeckpt.cli.plot_curves import ALONG, History, metrics_of, plot_of, quantity, smoothed
from pytreeckpt.cli.text import cell_width
from pytreeckpt.steps.records import StepRecord


def record(step, saved_at=0.0, epoch=None, **metrics):
    return StepRecord(step=step, root="00" * 32, nbytes=1, saved_at=saved_at, metrics=metrics, epoch=epoch)


def history(*values, **more):
    """A run whose steps 0, 10, 20 … have these values of val_loss."""
    records = [record(10 * place, val_loss=value) for place, value in enumerate(values)]
    return History(label="run", records=records, metric="val_loss", **more)


def only_curve(plot):
    ((curve,),) = [panel.curves for panel in plot.panels]
    return curve


metrics = st.dictionaries(st.sampled_from(["val_loss", "train_loss", "acc", "_x\x1b"]), st.floats(), max_size=4)


@st.composite
def histories(draw):
    steps = sorted(draw(st.sets(st.integers(0, 2**63 - 1), max_size=8)))
    records = [
        StepRecord(
            step=step,
            root="",
            nbytes=0,
            saved_at=draw(st.floats(0, 1e11)),
            metrics=draw(metrics),
            epoch=draw(st.none() | st.floats(0, 1e6)),
        )
        for step in steps
    ]
    pins = {name: draw(st.sampled_from(steps)) for name in ("a", "b\n")} if steps else {}
    mode = draw(st.sampled_from(["min", "max"]))
    return History(label=draw(st.text(max_size=5)), records=records, pins=pins, metric="val_loss", mode=mode)


@given(
    st.lists(histories(), min_size=1, max_size=3),
    st.sampled_from(ALONG),
    st.booleans(),
    st.integers(1, 5),
    st.integers(40, 120),
    st.sampled_from([BRAILLE, IN_LETTERS]),
)
def test_any_history_gives_a_chart_no_wider_than_asked(runs, along, log, smooth, width, pen):
    plot = plot_of(runs, along=along, log=log, smooth=smooth, max_panels=4)
    assert {curve.metric for panel in plot.panels for curve in panel.curves} == set(metrics_of(runs))
    for panel in plot.panels:
        for line in chart(panel, plot.axis, width, 8, log=log, pen=pen):
            text = plain_line(line)
            assert text.isprintable()
            assert cell_width(text) <= width


@given(st.floats(-1.7e308, 1.7e308), st.floats(-1.7e308, 1.7e308), st.integers(2, 12))
def test_ticks_lie_in_the_scale_and_are_told_apart(one, other, number):
    scale = scale_of(min(one, other), max(one, other))
    values = ticks(scale, number)
    assert 1 <= len(values) <= number
    width = scale.high / 2 - scale.low / 2
    assert all(scale.low / 2 - width * 1e-6 <= value / 2 <= scale.high / 2 + width * 1e-6 for value in values)
    texts = tick_texts(values)
    assert len(texts) == len(values)
    # Beyond about nine digits, what is told apart is not the point.
    if abs(width) > 1e-6 * max(abs(scale.low), abs(scale.high)):
        assert len(set(texts)) == len(texts)


@given(st.floats(1e-300, 1e300), st.floats(1e-300, 1e300), st.integers(2, 12))
def test_logarithmic_ticks_lie_in_the_scale(one, other, number):
    scale = scale_of(min(one, other), max(one, other), log=True)
    values = ticks(scale, number)
    assert 1 <= len(values) <= number
    assert all(-1e-6 <= scale.place(value) <= 1 + 1e-6 for value in values)


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([0.0, 0.25, 0.5], ["0.00", "0.25", "0.50"]),
        ([0.0, 100.0, 200.0], ["0", "100", "200"]),
        ([0.0, 5000.0, 10000.0], ["0", "5k", "10k"]),
        ([0.0, 2.5e6, 5e6], ["0", "2.5M", "5.0M"]),
        ([1e-5, 1e-4, 1e-3], ["1e-5", "1e-4", "1e-3"]),
        ([0.0], ["0"]),
    ],
)
def test_ticks_are_short(values, texts):
    assert tick_texts(values) == texts


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("val_loss", "loss"),
        ("train/loss", "loss"),
        ("loss", "loss"),
        ("loss/train", "loss"),
        ("Validation top_5", "top_5"),
        ("val", "val"),
        ("grad_norm", "grad_norm"),
        ("", ""),
        ("_", "_"),
    ],
)
def test_metrics_of_several_data_sets_are_one_quantity(name, short):
    assert quantity(name) == short


def test_what_is_no_finite_number_is_a_gap_and_told_of():
    curve = only_curve(plot_of([history(3.0, math.nan, 2.0, math.inf, 1.0)], max_panels=1))
    assert np.isnan(curve.ys).tolist() == [False, True, False, True, False]
    assert curve.missing == (10, 30)
    assert curve.below == ()


def test_a_logarithmic_axis_has_no_place_for_zero_and_less():
    curve = only_curve(plot_of([history(3.0, 0.0, -2.0, math.nan, 1.0)], max_panels=1, log=True))
    assert curve.below == (10, 20)
    assert curve.missing == (30,)
    assert np.isfinite(curve.ys).tolist() == [True, False, False, False, True]


@pytest.mark.parametrize(("mode", "step"), [("min", 20), ("max", 0)])
def test_the_best_step_is_that_of_the_run(mode, step):
    curve = only_curve(plot_of([history(3.0, 1.0, 1.0, math.nan, 2.0, mode=mode)], max_panels=1, smooth=3))
    assert curve.best is not None
    # Of equals the newer one; and its own value, not that after smoothing.
    assert (curve.best.step, curve.best.y) == (step, {20: 1.0, 0: 3.0}[step])


def test_a_best_that_is_not_drawn_is_not_marked():
    assert only_curve(plot_of([history(1.0, -math.inf)], max_panels=1)).best is None
    assert only_curve(plot_of([history(1.0, -1.0)], max_panels=1, log=True)).best is None


def test_smoothing_takes_the_mean_of_what_is_there():
    values = np.array([1.0, 3.0, np.nan, 5.0, 7.0])
    assert smoothed(values, 1) is values
    np.testing.assert_array_equal(smoothed(values, 3), [2.0, 2.0, np.nan, 6.0, 6.0])


@given(st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), max_size=30), st.integers(1, 40))
def test_smoothing_stays_within_the_values_and_keeps_the_gaps(values, window):
    given_ = np.array(values, np.float64)
    means = smoothed(given_, window)
    np.testing.assert_array_equal(np.isnan(means), np.isnan(given_))
    if np.isfinite(given_).any():
        assert np.nanmin(means) >= np.nanmin(given_) - 1e-6
        assert np.nanmax(means) <= np.nanmax(given_) + 1e-6


def test_places_are_steps_times_since_the_first_or_epochs():
    records = [record(100, saved_at=1e9, epoch=1.0, a=1.0), record(200, saved_at=1e9 + 7200.0, epoch=None, a=2.0)]
    run = History(label="run", records=records, metric=None)
    by_step, by_time, by_epoch = (plot_of([run], along=along, max_panels=1) for along in ("step", "time", "epoch"))
    assert only_curve(by_step).xs.tolist() == [100.0, 200.0]
    assert (by_time.axis, only_curve(by_time).xs.tolist()) == ("hours since the first step", [0.0, 2.0])
    assert only_curve(by_epoch).xs[0] == 1.0
    assert np.isnan(only_curve(by_epoch).xs[1])
    assert by_epoch.notes == ("run: 1 of the steps has no epoch, and is not shown",)


def test_the_runs_own_metric_comes_first_and_what_has_no_room_is_told():
    records = [record(1, a=1.0, b=2.0, val_loss=3.0, train_loss=4.0)]
    plot = plot_of([History(label="run", records=records, metric="val_loss")], max_panels=2)
    assert [panel.title for panel in plot.panels] == ["loss", "a"]
    assert plot.left_out == ("b",)
    chosen = plot_of([History(label="run", records=records)], metrics=["b", "b"], max_panels=2)
    assert [panel.title for panel in chosen.panels] == ["b"]


def test_pins_of_one_name_at_one_place_are_one():
    one = history(1.0, 2.0, pins={"release": 10, "gone": 999})
    two = History(label="two", records=one.records, pins={"release": 10, "mine": 0})
    (panel,) = plot_of([one, two], max_panels=1).panels
    assert [(pin.text, pin.step) for pin in panel.pins] == [("mine of two", 0), ("release", 10)]


def test_a_chart_shows_a_line_its_ends_its_best_and_its_pins():
    run = history(*(float(20 - place) for place in range(21)), pins={"release": 100})
    (panel,) = plot_of([run], max_panels=1).panels
    texts = [plain_line(line) for line in chart(panel, "step", 60, 8, log=False, pen=IN_LETTERS)]
    assert texts[0] == "val_loss"
    field = [text for text in texts if "│" in text or "┤" in text]
    assert len(field) == 8
    assert field[0].index("o") < field[-1].index("o")
    assert field[-1].endswith("*")
    assert "▲" in texts[9]
    assert texts[10].split() == ["0", "100", "200"]
    assert "* best 0 at step 200" in texts[11]
    assert any("▲ pin release at step 100" in text for text in texts)


def test_gaps_are_not_bridged():
    (panel,) = plot_of([history(1.0, 1.0, math.nan, 1.0, 1.0)], max_panels=1).panels
    texts = [plain_line(line) for line in chart(panel, "step", 60, 4, log=False, pen=IN_LETTERS)]
    (drawn,) = [text.split("│")[-1].split("┤")[-1] for text in texts[1:5] if "o" in text]
    left, right = drawn.strip().replace("*", "o").split()
    assert set(left + right) == {"o"}


def test_a_metric_without_any_number_is_said_to_have_none():
    (panel,) = plot_of([history(math.nan, math.nan)], max_panels=1).panels
    assert "no value that can be shown" in plain_line(chart(panel, "step", 60, 8, log=False, pen=BRAILLE)[-1])
