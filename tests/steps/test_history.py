"""Histories: a table of steps that behaves as a dict of records does, and a tree that comes back or is refused."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytreeckpt import CorruptionError, FormatVersionError, PytreeckptError, decode, encode
from pytreeckpt.steps.history import (
    History,
    LazyRecords,
    all_records,
    decode_history,
    encode_history,
    record_of,
    saved_before,
    with_metrics,
    with_records,
)
from tests.steps.step_records import METRICS, of, one_record, shown
from tests.strategies import TREES

RECORDS = st.integers(0, 40).flatmap(one_record)
BATCHES = st.lists(st.lists(RECORDS, max_size=6), max_size=6)
HISTORIES = BATCHES.map(lambda batches: _applied(batches)[0])


def all_shown(records):
    return [shown(record) for record in records]


def _applied(batches):
    history, expected = History(), {}
    for batch in batches:
        history = with_records(history, batch)
        expected.update({record.step: record for record in batch})
    return history, expected


@given(BATCHES)
@settings(max_examples=40)
def test_a_history_is_a_dict_of_records(batches):
    history, expected = _applied(batches)
    assert len(history) == len(expected)
    assert all_shown(all_records(history)) == all_shown(expected[step] for step in sorted(expected))
    for step in range(0, 42, 3):
        assert shown(record_of(history, step)) == shown(expected.get(step))


@given(BATCHES, st.dictionaries(st.integers(0, 40), METRICS, max_size=5))
@settings(max_examples=40)
def test_metrics_that_come_later_are_added_to_what_is_known(batches, metrics):
    history, expected = _applied(batches)
    more = with_metrics(history, metrics, 5.0)
    for step in metrics:
        known = expected.get(step, of(step, saved_at=5.0, root="", nbytes=0))
        assert shown(record_of(more, step)) == shown(replace(known, metrics={**known.metrics, **metrics[step]}))
    others = [record for record in all_records(more) if record.step not in metrics]
    assert all_shown(others) == all_shown(expected[step] for step in sorted(expected) if step not in metrics)
    # Values, not places: what was there is as it was.
    assert all_shown(all_records(history)) == all_shown(expected[step] for step in sorted(expected))


@given(HISTORIES)
@settings(max_examples=40)
def test_a_history_comes_back_from_the_bytes_of_its_tree(history):
    found = decode_history(decode(encode(encode_history(history))))
    assert all_shown(all_records(found)) == all_shown(all_records(history))


@given(HISTORIES, st.integers(0, 45))
@settings(max_examples=40)
def test_the_latest_saved_step_before_another(history, step):
    saved = [record for record in all_records(history) if record.was_saved and record.step < step]
    assert shown(saved_before(history, step)) == shown(saved[-1] if saved else None)


def test_pins_and_the_metric_come_back():
    history = History(pins={"paper": 3, "läuft": 2**63 - 1}, metric="accuracy", mode="max")
    found = decode_history(decode(encode(encode_history(history))))
    assert (found.pins, found.metric, found.mode) == (history.pins, "accuracy", "max")


@given(TREES)
def test_any_tree_is_a_history_or_is_refused(tree):
    with pytest.raises(PytreeckptError):
        decode_history(tree)


PATHS = [
    ("layout",), ("version",), ("metric",), ("mode",), ("pins",), ("steps",), ("metrics",),
    ("pins", "a"), ("metrics", "x"), ("metrics", "x", "step"), ("metrics", "x", "value"),
    *[("steps", name) for name in ("step", "saved_at", "nbytes", "epoch", "root", "reason")],
]  # fmt: skip


def _tree():
    history = with_records(History(pins={"a": 1}), [of(1, {"x": 1.0}), of(2, {"x": math.nan}), of(5)])
    return decode(encode(encode_history(history)))


@given(st.sampled_from(PATHS), TREES | st.sampled_from([np.int64(1), np.zeros(3), np.zeros((3, 32), "u1"), {}]))
def test_any_value_in_any_place_gives_a_history_or_is_refused(path, value):
    tree = _tree()
    at = tree
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    try:
        found = decode_history(tree)
    except PytreeckptError:
        return
    assert len(all_records(found)) == len(found)
    assert repr(all_records(decode_history(encode_history(found)))) == repr(all_records(found))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("steps", "step"), np.array([1, 1, 5])),
        (("steps", "step"), np.array([2, 1, 5])),
        (("steps", "step"), np.array([-1, 2, 5])),
        (("steps", "step"), np.array([1, 2])),
        (("steps", "saved_at"), np.array([0.0, math.nan, 1.0])),
        (("steps", "epoch"), np.array([0.0, math.inf, 1.0])),
        (("steps", "nbytes"), np.array([0, -1, 1])),
        (("steps", "reason"), np.array([0, 3, 0], np.uint8)),
        (("steps", "more"), np.zeros(3)),
        (("metrics", "x", "step"), np.array([1, 3])),
        (("metrics", "x", "step"), np.array([2, 1])),
        (("metrics", "x", "value"), np.zeros(3)),
        (("metrics", ""), {}),
        (("pins", "latest"), 1),
        (("pins", "a"), -1),
        (("pins", "a"), True),
        (("mode",), "least"),
        (("metric",), 3),
        (("version",), 1.0),
        (("more",), None),
    ],
)
def test_what_cannot_be_is_refused(path, value):
    tree = _tree()
    decode_history(copy.deepcopy(tree))
    at = tree
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(CorruptionError) as refused:
        decode_history(tree)
    assert refused.value.rule == "R-1"


def test_a_newer_version_is_not_damage():
    with pytest.raises(FormatVersionError, match="newer"):
        decode_history({**_tree(), "version": 2, "more": 1})


def test_a_hundred_thousand_steps_with_several_metrics_are_a_small_file():
    step = np.arange(100_000)
    columns = {
        "step": step,
        "saved_at": 1.8e9 + 60.0 * step,
        "nbytes": np.full(100_000, 1 << 30),
        "epoch": step / 1000,
        "root": np.zeros(100_000, "V32"),
        "reason": np.zeros(100_000, np.uint8),
    }
    rng = np.random.default_rng(0)
    history = History(columns, {f"m{n}": (step, rng.random(100_000)) for n in range(4)})
    data = encode(encode_history(with_records(history, [of(100_000, {"m0": 1.0})])))
    assert len(data) < 5 << 20
    found = decode_history(decode(data))
    assert len(found) == 100_001
    last = record_of(found, 99_999)
    assert last is not None
    assert list(last.metrics) == ["m0", "m1", "m2", "m3"]


def test_records_are_made_when_they_are_looked_at():
    made = []
    records = LazyRecords(lambda: made.append(1) or [of(1), of(2)])
    assert not made
    assert [record.step for record in records] == [1, 2]
    assert (len(records), records[1].step, [r.step for r in reversed(records)], len(records[:1])) == (2, 2, [2, 1], 1)
    assert made == [1]
