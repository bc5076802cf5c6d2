"""What is made of the measured values: summaries, ratios, the file, the order of rounds."""

import time
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import rounds
from benchmarks.figures import (
    Entrant,
    Failure,
    Figure,
    Results,
    find,
    from_text,
    median,
    read,
    summary,
    times_faster,
    to_text,
    write,
)
from benchmarks.machine import describe, file_system
from benchmarks.rounds import Job, in_rounds, timed

RESULTS = Results(
    {"processor": "abacus"},
    {"rounds": 3},
    (Entrant("pytreeckpt", "1", "ours"), Entrant("slow", "2", "theirs")),
    (
        Figure("state", "float32", "pytreeckpt", "save", "s", 100, (2.0, 1.0, 9.0)),
        Figure("state", "float32", "slow", "save", "s", 100, (8.0, 5.0, 6.0)),
        Figure("state", "float32", "fast", "save", "s", 100, (1.0, 1.0, 1.0)),
    ),
    (Failure("state", "mixed", "slow", "ValueError"),),
)


def test_a_summary_has_median_minimum_and_quartiles():
    found = summary([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (found.median, found.minimum, found.lower, found.upper, found.n) == (3.0, 1.0, 2.0, 4.0, 5)


def test_quartiles_between_two_rounds_are_interpolated():
    found = summary([1.0, 2.0])
    assert (found.lower, found.median, found.upper) == (1.25, 1.5, 1.75)


def test_a_single_round_is_all_of_its_summary():
    found = summary([7.0])
    assert (found.median, found.minimum, found.lower, found.upper, found.n) == (7.0, 7.0, 7.0, 7.0, 1)


def test_nothing_cannot_be_summarised():
    with pytest.raises(ValueError, match="no values"):
        summary([])


def test_ratios_are_of_medians_and_against_the_fastest_of_the_peers():
    assert median(RESULTS, "state", "float32", "pytreeckpt", "save") == 2.0
    assert times_faster(RESULTS, "state", "float32", "save", ("slow",)) == 3.0
    assert times_faster(RESULTS, "state", "float32", "save", ("slow", "fast")) == 0.5
    assert times_faster(RESULTS, "state", "float32", "save", ("slow",), ours="fast") == 6.0


def test_what_was_not_measured_has_no_ratio():
    assert find(RESULTS, "state", "float32", "slow", "restore") is None
    assert times_faster(RESULTS, "state", "float32", "save", ("absent",)) is None
    assert times_faster(RESULTS, "state", "mixed", "save", ("slow",)) is None


@pytest.mark.parametrize("results", [RESULTS, replace(RESULTS, figures=(), failures=())], ids=["figures", "none"])
def test_results_come_back_from_their_file(results, tmp_path):
    assert from_text(to_text(results)) == results
    write(results, tmp_path / "new/results.json")
    assert read(tmp_path / "new/results.json") == results


def test_each_round_begins_with_another_candidate_and_the_first_is_discarded():
    order = []

    def job(name):
        return Job(name, lambda: (order.append(name), {"n": float(len(order))})[1])

    measured = in_rounds([job("a"), job("b"), job("c")], 3)
    assert "".join(order) == "abcbcacababc"
    assert measured.values["a"]["n"] == [6.0, 8.0, 10.0]
    assert not measured.errors


def test_a_job_that_fails_is_left_out_and_the_others_go_on(capsys):
    calls = []

    def fail():
        calls.append(1)
        if len(calls) > 1:
            raise OSError("no more")
        return {"n": 1.0}

    measured = in_rounds([Job("bad", fail), Job("good", lambda: {"n": 2.0})], 3)
    assert measured.values == {"good": {"n": [2.0, 2.0, 2.0]}}
    assert isinstance(measured.errors["bad"], OSError)
    assert len(calls) == 2
    assert "no more" in capsys.readouterr().err


def test_a_job_beyond_the_budget_is_run_once_and_counts():
    calls = []
    measured = in_rounds([Job("slow", lambda: (calls.append(time.sleep(0.02)), {"n": 1.0})[1])], 5, budget_s=0.01)
    assert len(calls) == 1
    assert measured.values == {"slow": {"n": [1.0]}}


def test_timing_gives_the_result_too():
    elapsed_s, result = timed(lambda: "result")
    assert elapsed_s >= 0
    assert result == "result"


def test_touching_looks_at_every_page_of_arrays_large_and_small(monkeypatch):
    looked = []
    monkeypatch.setattr(rounds, "as_array", lambda leaf: (looked.append(leaf.nbytes), leaf)[1])
    tree = {"large": np.zeros(100_000, np.uint8), "step": 3, "empty": np.zeros(0), "0-d": np.asarray(1.0)}
    tree["small"] = {str(number): np.zeros((2, 128), np.uint8) for number in range(64)}
    assert rounds.touch(tree) is tree
    assert looked.count(100_000) == 1
    assert looked.count(256) == 4
    assert 0 not in looked


def test_the_machine_is_described_without_names_and_paths(tmp_path):
    described = describe(tmp_path, ["numpy", "no-such-distribution"])
    assert described["cores"] >= 1
    assert described["memory_gib"] > 0
    assert list(described["packages"]) == ["numpy"]
    assert str(tmp_path) not in str(described)
    assert file_system(tmp_path) == described["file_system"]
    assert "/" not in described["file_system"]
