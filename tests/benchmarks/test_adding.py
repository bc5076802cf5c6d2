"""A case that is measured anew takes the place of its earlier figures, and of no others."""

from dataclasses import replace

import pytest

from benchmarks.figures import Entrant, Failure, Figure, Results
from benchmarks.suite import CASES, DATA_OF, added_to


def figure(case, data):
    return Figure(case, data, "pytreeckpt", "save", "s", 1, (1.0,))


FIGURES = tuple(
    figure(case, data)
    for case, data in [
        ("state", "float32"),
        ("state", "MiniLM float32"),
        ("state", "mixed"),
        ("leaves", "100 leaves of 64 items"),
        ("codec", "float32"),
    ]
)
EARLIER = Results({"cores": 2}, {"rounds": 5}, (Entrant("pytreeckpt", "0.1", ""),), FIGURES)


@pytest.mark.parametrize(
    ("cases", "left"),
    [
        (["float32"], FIGURES[1:]),
        (["minilm", "codec"], (FIGURES[0], *FIGURES[2:4])),
        (["leaves"], (*FIGURES[:3], FIGURES[4])),
        ([*CASES], ()),
    ],
    ids=str,
)
def test_only_the_figures_of_other_cases_are_kept(cases, left):
    failures = tuple(Failure(each.case, each.data, "a peer", "TypeError") for each in FIGURES)
    added = added_to(replace(EARLIER, failures=failures), EARLIER, cases)
    assert added.figures == left
    assert [failure.data for failure in added.failures] == [each.data for each in left]


def test_every_case_is_known_by_its_name_or_by_its_data():
    assert {"float32", "bfloat16", "mixed", "minilm"} == set(DATA_OF)
    assert set(DATA_OF) < set(CASES)


def test_figures_of_another_machine_or_of_other_settings_are_not_added_to():
    with pytest.raises(ValueError, match="other machine: cores"):
        added_to(EARLIER, replace(EARLIER, machine={"cores": 4}), ["codec"])
    with pytest.raises(ValueError, match="other settings: rounds"):
        added_to(EARLIER, replace(EARLIER, settings={"rounds": 3}), ["codec"])
