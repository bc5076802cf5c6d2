import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytreeckpt.steps.choosing import best, is_better, latest, top
from tests.steps.step_records import VALUES, of, records, shown

MODES = st.sampled_from(["min", "max"])


@given(records(), MODES)
def test_the_best_is_the_first_of_the_top_ones(given_records, mode):
    ranked = top(given_records, 30, "val_loss", mode)
    found = best(given_records, "val_loss", mode)
    assert (found is None) == (not ranked)
    if found is not None:
        assert found is ranked[0]


@given(records(), MODES)
def test_the_order_of_what_is_ranked_is_by_value_and_then_by_age(given_records, mode):
    ranked = top(given_records, 30, "val_loss", mode)
    for first, second in zip(ranked, ranked[1:]):
        a, b = first.metrics["val_loss"], second.metrics["val_loss"]
        assert not is_better(b, a, mode)
        assert is_better(a, b, mode) or first.step > second.step


@given(records(), MODES, st.randoms())
def test_the_order_of_what_is_given_does_not_matter(given_records, mode, random):
    shuffled = list(given_records)
    random.shuffle(shuffled)
    assert [r.step for r in top(shuffled, 5, "val_loss", mode)] == [
        r.step for r in top(given_records, 5, "val_loss", mode)
    ]


@given(VALUES, VALUES, MODES)
def test_nothing_is_better_than_what_is_better_than_it(a, b, mode):
    assert not (is_better(a, b, mode) and is_better(b, a, mode))


def test_the_latest_is_not_one_that_an_exception_left():
    some = [of(1), of(3, reason="interrupt"), of(2), of(4, reason="exception")]
    found = latest(some)
    assert shown(found) == shown(some[1])
    assert latest([of(4, reason="exception")]) is None
    assert latest([]) is None


def test_a_number_is_better_than_nan_and_infinities_are_numbers():
    assert is_better(math.inf, math.nan, "min")
    assert not is_better(math.nan, math.inf, "min")
    assert not is_better(math.nan, math.nan, "min")
    assert is_better(-math.inf, math.inf, "min", by_more_than=1e300)
    assert not is_better(math.inf, math.inf, "max", by_more_than=0.1)
    assert not is_better(0.9, 1.0, "min", by_more_than=0.5)


def test_a_mode_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="mode='best'"):
        top([], 1, "x", "best")
