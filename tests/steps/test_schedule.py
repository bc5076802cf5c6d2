"""When to save. A schedule is asked at each step; what it says is saved, and it is asked again."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytreeckpt.steps import schedule
from pytreeckpt.steps.schedule import (
    Moment,
    all_of,
    any_of,
    cyclic,
    every_epochs,
    every_minutes,
    every_steps,
    on_better,
    on_crossing,
)
from tests.steps.step_records import of


def saved_steps(when, moments, *, resumed_after=()):
    """The steps that are saved of a training, which is stopped and resumed after some of them."""
    records, last, started = [], None, -math.inf
    saved = []
    for moment in moments:
        now = Moment(
            step=moment.step,
            now_s=moment.now_s,
            epoch=moment.epoch,
            metrics=moment.metrics,
            records=records,
            last_saved=last,
            started_s=started,
        )
        if when(now):
            last = of(moment.step, dict(moment.metrics), moment.now_s, epoch=moment.epoch)
            records.append(last)
            saved.append(moment.step)
        if moment.step in resumed_after:
            started = moment.now_s
    return saved


def at(steps, **more):
    return [Moment(step=step, now_s=float(step), **more) for step in steps]


@given(st.integers(1, 20), st.sets(st.integers(0, 100)))
def test_every_steps_does_not_depend_on_interruptions(n, interruptions):
    expected = [step for step in range(101) if step % n == 0]
    assert saved_steps(every_steps(n), at(range(101)), resumed_after=interruptions) == expected


@given(st.integers(1, 20), st.sets(st.integers(0, 200), min_size=1))
def test_every_steps_is_late_and_not_silent_where_it_is_asked_now_and_then(n, asked):
    saved = saved_steps(every_steps(n), at(sorted(asked)))
    for multiple in range(n, max(asked) + 1, n):
        after = [step for step in sorted(asked) if step >= multiple]
        assert any(after[0] <= step for step in saved)
    # Between two multiples it is at most one.
    assert len({step // n for step in saved}) == len(saved)


def test_every_steps_goes_on_in_its_rhythm_after_a_save_for_another_reason():
    when = any_of(every_steps(10), lambda moment: moment.step in {13, 29})
    assert saved_steps(when, at(range(1, 41))) == [10, 13, 20, 29, 30, 40]


def test_every_steps_saves_after_going_back():
    assert every_steps(10)(Moment(step=20, now_s=0.0, last_saved=of(50)))
    assert not every_steps(10)(Moment(step=7, now_s=0.0, last_saved=of(50)))


def test_every_epochs_counts_whole_epochs_once_each():
    at_ends = [Moment(step=epoch * 391, now_s=0.0, epoch=float(epoch)) for epoch in range(1, 9)]
    assert saved_steps(every_epochs(2), at_ends) == [782, 1564, 2346, 3128]
    within = [Moment(step=step, now_s=0.0, epoch=step // 5) for step in range(20)]
    assert saved_steps(every_epochs(), within) == [0, 5, 10, 15]
    fractions = [Moment(step=step, now_s=0.0, epoch=step / 5) for step in range(1, 20)]
    assert saved_steps(every_epochs(0.5), fractions) == [3, 5, 8, 10, 13, 15, 18]


def test_every_epochs_without_an_epoch_says_so():
    with pytest.raises(ValueError, match="epoch="):
        every_epochs()(Moment(step=1, now_s=0.0))


@given(st.integers(1, 50))
def test_every_minutes_counts_from_the_last_save(minutes):
    moments = [Moment(step=step, now_s=60.0 * step) for step in range(200)]
    saved = saved_steps(every_minutes(minutes), moments)
    assert all(b - a == minutes for a, b in zip(saved, saved[1:]))
    assert len(saved) == 1 + 199 // minutes


def test_every_minutes_counts_from_the_start_where_the_last_save_was_long_ago():
    last = of(1, saved_at=0.0)
    assert not every_minutes(10)(Moment(step=2, now_s=100_000.0, last_saved=last, started_s=99_900.0))
    assert every_minutes(10)(Moment(step=2, now_s=100_600.0, last_saved=last, started_s=99_900.0))


def test_every_minutes_is_not_silent_for_years_when_the_clock_is_set_back():
    assert every_minutes(10)(Moment(step=2, now_s=10.0, last_saved=of(1, saved_at=1e9), started_s=0.0))


def test_on_better_saves_each_better_value_and_no_other():
    values = [3.0, 2.5, 2.6, math.nan, 2.5, 2.4, -math.inf, 1.0]
    moments = [Moment(step=n, now_s=0.0, metrics={"x": value}) for n, value in enumerate(values)]
    assert saved_steps(on_better("x"), moments) == [0, 1, 5, 6]
    assert saved_steps(on_better("x", min_delta=0.55), moments) == [0, 5, 6]
    assert saved_steps(on_better("x", "max"), moments) == [0]
    assert not on_better("y")(moments[0])


def test_on_better_looks_at_what_was_saved_and_not_at_what_was_only_logged():
    logged = of(3, {"x": 1.0}, root="")
    assert on_better("x")(Moment(step=3, now_s=0.0, metrics={"x": 1.0}, records=[logged]))
    assert on_better("x")(Moment(step=4, now_s=0.0, metrics={"x": 2.0}, records=[logged]))


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0, math.nan]), max_size=12))
def test_on_crossing_fires_once_for_each_crossing(values):
    when = on_crossing("x", 1.0)
    history, fired = [], []
    for step, value in enumerate(values):
        fired.append(when(Moment(step=step, now_s=0.0, metrics={"x": value}, records=history)))
        history.append(of(step, {"x": value}, root=""))
    beyond = [value <= 1.0 for value in values]
    assert fired == [now and not before for before, now in zip([False, *beyond], beyond)]


def test_on_crossing_upwards():
    moments = [Moment(step=n, now_s=0.0, metrics={"x": value}) for n, value in enumerate([0.5, 0.9, 0.95, 0.99])]
    assert saved_steps(on_crossing("x", 0.9, "max"), moments) == [1]


def test_cyclic_is_the_last_step_of_each_cycle():
    assert saved_steps(cyclic(10), at(range(35))) == [10, 20, 30]
    assert saved_steps(cyclic(10, first_step=5), at(range(35))) == [15, 25]
    assert saved_steps(cyclic(10, growth=2), at(range(150))) == [10, 30, 70]
    assert cyclic(1, growth=2)(Moment(step=2**62 - 1, now_s=0.0))


def test_schedules_combine():
    always, never = (lambda _: True), (lambda _: False)
    moment = Moment(step=1, now_s=0.0)
    assert any_of(never, always)(moment)
    assert not any_of()(moment)
    assert all_of(always, always)(moment)
    assert not all_of(always, never)(moment)
    assert not all_of()(moment)


@pytest.mark.parametrize(
    "make",
    [
        lambda: every_steps(0),
        lambda: every_steps(2.5),
        lambda: every_epochs(0),
        lambda: every_minutes(-1),
        lambda: on_better("x", "smaller"),
        lambda: on_better("x", min_delta=-1),
        lambda: on_better("x", min_delta=math.nan),
        lambda: on_crossing("x", math.nan),
        lambda: cyclic(0),
        lambda: cyclic(5, growth=0),
    ],
)
def test_numbers_that_mean_nothing_are_refused_when_the_schedule_is_made(make):
    with pytest.raises((TypeError, ValueError)):
        make()


def test_the_module_has_the_schedules_that_are_tested_here():
    assert {"every_steps", "every_epochs", "every_minutes", "on_better", "on_crossing", "cyclic"} <= set(vars(schedule))
