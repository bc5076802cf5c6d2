import math

import ml_dtypes
import numpy as np
import pytest
import torch

from pytreeckpt.steps.pins import checked_pin
from pytreeckpt.steps.records import checked_epoch, checked_metrics, checked_step


def test_metrics_are_numbers_of_any_kind():
    given = {
        "float": 1.5,
        "int": 2,
        "bool": True,
        "nan": math.nan,
        "numpy": np.float32(0.5),
        "array": np.array(2.0),
        "bfloat16": np.array(1.5, ml_dtypes.bfloat16),
        "torch": torch.tensor(0.25),
        # Of a loss, as it comes; without a warning.
        "gradient": torch.tensor(0.25, requires_grad=True),
        "one": np.array([4.0]),
    }
    found = checked_metrics(given)
    assert repr(found) == repr(
        {
            "float": 1.5,
            "int": 2.0,
            "bool": 1.0,
            "nan": math.nan,
            "numpy": 0.5,
            "array": 2.0,
            "bfloat16": 1.5,
            "torch": 0.25,
            "gradient": 0.25,
            "one": 4.0,
        }
    )
    assert {type(value) for value in found.values()} == {float}
    assert checked_metrics(None) == {}


@pytest.mark.parametrize(
    "metrics",
    [
        {"x": "1.5"},
        {"x": None},
        {"x": [1.0]},
        {"x": 1j},
        {"x": torch.zeros(2)},
        {"x": 10**400},
        {1: 1.0},
        {"": 1.0},
        {"\ud800": 1.0},
        {"x" * 2000: 1.0},
    ],
)
def test_what_is_no_metric_is_refused_by_its_name(metrics):
    with pytest.raises((TypeError, ValueError)):
        checked_metrics(metrics)


def test_a_metric_that_is_an_array_of_several_is_named():
    with pytest.raises(TypeError, match="'accuracy' is a ndarray"):
        checked_metrics({"accuracy": np.zeros((2, 2))})


def test_a_step_is_an_integer_that_is_not_negative():
    assert [checked_step(step) for step in (0, np.int32(3), 2**63 - 1)] == [0, 3, 2**63 - 1]
    for bad in (-1, 2**63, True, 1.0, "1", None):
        with pytest.raises((TypeError, ValueError)):
            checked_step(bad)


def test_an_epoch_is_a_finite_number_or_none():
    assert checked_epoch(None) is None
    assert checked_epoch(np.float32(1.5)) == 1.5
    with pytest.raises(ValueError, match="finite"):
        checked_epoch(math.nan)


@pytest.mark.parametrize("name", ["", "latest", "best", "100", "-1", " a", "a\n", "x" * 201, 3])
def test_a_pin_cannot_be_taken_for_something_else(name):
    with pytest.raises((TypeError, ValueError)):
        checked_pin(name)


def test_a_pin_is_a_name():
    assert checked_pin("läuft gut, Abgabe 3") == "läuft gut, Abgabe 3"
