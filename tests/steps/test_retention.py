"""What is kept: only what was given, and the same however often was pruned."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytreeckpt.steps import retention
from pytreeckpt.steps.retention import any_of, keep_all, keep_best, keep_every, keep_every_hours, keep_last, keep_steps
from tests.steps.step_records import of, records

SINGLE = st.one_of(
    st.builds(keep_all),
    st.builds(keep_last, st.integers(1, 5)),
    st.builds(keep_best, st.integers(1, 4), st.sampled_from(["val_loss", "accuracy"]), st.sampled_from(["min", "max"])),
    st.builds(keep_every, st.integers(1, 30)),
    st.builds(keep_every_hours, st.floats(0.01, 20)),
    st.builds(keep_steps, st.sets(st.integers(0, 60))),
)
POLICIES = st.one_of(SINGLE, st.lists(SINGLE, max_size=3).map(lambda some: any_of(*some)))


def test_every_policy_is_in_the_strategy():
    names = {name for name in vars(retention) if name.startswith("keep_")}
    assert names == {"keep_all", "keep_last", "keep_best", "keep_every", "keep_every_hours", "keep_steps"}


@given(POLICIES, records())
def test_nothing_is_kept_that_was_not_given(policy, given_records):
    assert policy(given_records) <= {record.step for record in given_records}


@given(POLICIES, records(), st.data())
def test_what_others_there_are_does_not_matter_where_all_that_is_kept_is_there(policy, given_records, data):
    kept = policy(given_records)
    some = [r for r in given_records if r.step in kept or data.draw(st.booleans())]
    assert policy(some) == kept


@given(POLICIES, records())
def test_pruning_after_every_save_keeps_the_same_as_pruning_once_at_the_end(policy, given_records):
    there = []
    for record in given_records:
        there.append(record)
        kept = policy(there)
        there = [each for each in there if each.step in kept]
    assert {record.step for record in there} == policy(given_records)


@given(POLICIES, records(), st.integers(0, 20))
def test_what_is_kept_of_all_was_kept_before(policy, given_records, n_before):
    before = given_records[:n_before]
    assert policy(given_records) & {record.step for record in before} <= policy(before)


@given(st.lists(SINGLE, max_size=4), records())
def test_any_of_keeps_the_union(policies, given_records):
    assert any_of(*policies)(given_records) == frozenset().union(*(policy(given_records) for policy in policies))


@given(st.integers(1, 5), st.integers(0, 5), records())
def test_a_larger_number_keeps_more(n, more, given_records):
    assert keep_last(n)(given_records) <= keep_last(n + more)(given_records)
    assert keep_best(n, "val_loss")(given_records) <= keep_best(n + more, "val_loss")(given_records)


@given(records(), st.integers(1, 25))
def test_keep_last_keeps_as_many_as_it_says(given_records, n):
    assert sorted(keep_last(n)(given_records)) == [record.step for record in given_records][-n:]


@given(records(), st.integers(1, 30))
def test_keep_best_keeps_as_many_as_have_the_metric(given_records, k):
    n_with = sum("val_loss" in record.metrics for record in given_records)
    assert len(keep_best(k, "val_loss")(given_records)) == min(k, n_with)


@given(records(), st.integers(1, 30))
def test_no_step_that_is_not_kept_is_better_than_one_that_is(given_records, k):
    kept = keep_best(k, "val_loss", "max")(given_records)
    others = [r.metrics["val_loss"] for r in given_records if "val_loss" in r.metrics and r.step not in kept]
    for record in given_records:
        if record.step in kept and not math.isnan(record.metrics["val_loss"]):
            assert not any(other > record.metrics["val_loss"] for other in others)


def test_nan_is_worse_than_any_number_and_of_equals_the_newer_is_kept():
    some = [of(1, {"x": 1.0}), of(2, {"x": math.nan}), of(3, {"x": 1.0}), of(4, {"x": math.inf}), of(5)]
    assert keep_best(1, "x")(some) == {3}
    assert keep_best(2, "x")(some) == {1, 3}
    assert keep_best(3, "x")(some) == {1, 3, 4}
    assert keep_best(9, "x")(some) == {1, 2, 3, 4}
    assert keep_best(1, "x", "max")(some) == {4}


def test_keep_every_keeps_the_first_step_at_or_after_each_multiple():
    assert keep_every(1000)([of(step) for step in range(100, 3001, 100)]) == {1000, 2000, 3000}
    assert keep_every(1000)([of(step) for step in (0, 391, 782, 1173, 1564, 1955, 2346)]) == {0, 1173, 2346}


def test_keep_every_hours_keeps_the_first_of_each_period():
    some = [of(step, saved_at=3600.0 * step / 2) for step in range(8)]
    assert keep_every_hours(1)(some) == {0, 2, 4, 6}
    assert keep_every_hours(2)(some) == {0, 4}


@pytest.mark.parametrize(
    "make",
    [
        lambda: keep_last(0),
        lambda: keep_last(True),
        lambda: keep_last(1.5),
        lambda: keep_best(0, "x"),
        lambda: keep_best(1, ""),
        lambda: keep_best(1, "x", "least"),
        lambda: keep_every(0),
        lambda: keep_every_hours(0),
        lambda: keep_every_hours(math.nan),
        lambda: keep_every_hours("1"),
        lambda: keep_steps([-1]),
    ],
)
def test_numbers_that_mean_nothing_are_refused_when_the_policy_is_made(make):
    with pytest.raises((TypeError, ValueError)):
        make()
