"""What `Plan.verify` says: equal only if all was compared, and was the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt_jax as ptc_jax
import pytreeckpt_torch as ptc_torch
from pytreeckpt import convert
from pytreeckpt.convert.parity import relative_difference

NAN = float("nan")
TREE = {"model": {"a.weight": np.arange(6.0).reshape(2, 3), "b.weight": np.arange(4.0).reshape(2, 2)}}
PLAN = convert.plan(
    TREE,
    {"params": {name: {"kernel": np.zeros(shape)} for name, shape in (("a", (3, 2)), ("b", (2, 2)))}},
    rules=[convert.Kind("**", "Linear")],
)
ONES = [np.ones(2), np.ones(2)]


def computed(*values):
    return convert.Computes(lambda _tree, _inputs: [np.asarray(value) for value in values])


def outputs(ours, theirs):
    """The level of outputs, and whether the report is all right."""
    report = PLAN.verify(computed(*ours), computed(*theirs), TREE, None)
    assert [level.level for level in report.levels] == ["inverse", "outputs", "gradients", "step"]
    assert report.levels[0].outcome == "equal"
    return report.levels[1], report.ok


def test_equal_outputs_are_all_right_without_gradients():
    level, ok = outputs(ONES, ONES)
    assert (level.outcome, level.difference, ok) == ("equal", 0.0, True)


@pytest.mark.parametrize("place", [0, 1])
def test_a_nan_on_one_side_is_different_wherever_it_is(place):
    theirs = [each.copy() for each in ONES]
    theirs[place][0] = NAN
    for sides in ((ONES, theirs), (theirs, ONES)):
        level, ok = outputs(*sides)
        assert (level.outcome, level.where, ok) == ("different", str(place), False)


def test_what_is_nothing_but_nan_on_both_sides_was_not_checked():
    blank = [np.full(2, NAN), np.ones(2)]
    level, ok = outputs(blank, blank)
    assert (level.outcome, level.where, ok) == ("not checked", "0", False)
    assert "nothing but NaN" in level.text
    # A masked item is one.
    level, ok = outputs([np.array([NAN, 1.0])], [np.array([NAN, 1.0])])
    assert (level.outcome, ok) == ("equal", True)
    level, _ = outputs([np.full(2, NAN), np.ones(2)], [np.full(2, NAN), np.zeros(2)])
    assert level.outcome == "different"


def test_integers_are_compared_and_not_rounded():
    assert outputs([np.array([2**60])], [np.array([2**60])])[1]
    level, ok = outputs([np.array([2**60])], [np.array([2**60 + 1])])
    assert (level.outcome, ok) == ("different", False)


def test_no_outputs_are_different():
    level, ok = outputs([], [])
    assert (level.outcome, ok) == ("different", False)


def test_a_report_without_outputs_is_not_all_right():
    def level(name, outcome, difference=None):
        return convert.LevelReport(name, outcome, difference, "", "")

    assert not convert.ParityReport(()).ok
    assert not convert.ParityReport((level("inverse", "equal", 0.0),)).ok
    assert not convert.ParityReport((level("outputs", "not checked"),)).ok
    assert convert.ParityReport((level("outputs", "close", 1e-13),)).ok
    assert not convert.ParityReport((level("outputs", "equal", 0.0), level("gradients", "not checked", NAN))).ok
    assert not convert.ParityReport((level("outputs", "equal", 0.0), level("step", "different", 1.0))).ok


def gradients(ours, theirs, *, level="gradients"):
    """The level of gradients, or of a step, of sides that say what they are."""
    first, second = (
        convert.Computes(computed(*ONES).outputs, **{level: lambda _tree, _inputs, given=given: given})
        for given in (ours, theirs)
    )
    report = PLAN.verify(first, second, TREE, None)
    return next(each for each in report.levels if each.level == level)


BY_TORCH = {"model": {"a.weight": np.ones((2, 3)), "b.weight": np.zeros((2, 2))}}


def by_jax(b):
    return {"params": {"a": {"kernel": np.ones((3, 2))}, "b": {"kernel": np.full((2, 2), b)}}}


def test_no_gradient_is_a_gradient_of_zeros_on_either_side():
    without = {"model": {"a.weight": np.ones((2, 3))}}
    assert gradients(without, by_jax(0.0)).outcome == "equal"
    assert gradients(without, by_jax(1.0)).where == "params/b/kernel"
    assert gradients(without, {"params": {"a": {"kernel": np.ones((3, 2))}}}).outcome == "equal"
    ones = {"model": {"a.weight": np.ones((2, 3)), "b.weight": np.ones((2, 2))}}
    assert gradients(ones, {"params": {"a": {"kernel": np.ones((3, 2))}}}).outcome == "different"


def test_what_is_not_there_after_a_step_is_different():
    assert gradients(BY_TORCH, by_jax(0.0), level="step").outcome == "equal"
    for ours, theirs in (
        ({"model": {"a.weight": np.ones((2, 3))}}, by_jax(0.0)),
        (BY_TORCH, {"params": {"a": {"kernel": np.ones((3, 2))}}}),
        ({}, {}),
    ):
        level = gradients(ours, theirs, level="step")
        assert level.outcome == "different"
        assert "not there" in level.text


def test_a_gradient_under_one_of_two_tied_names_is_that_of_both():
    weight = np.ones((3, 2))
    tree = {"model": {"a.weight": torch.from_numpy(weight), "b.weight": torch.from_numpy(weight)}}
    tree["model"]["b.weight"] = tree["model"]["a.weight"]
    plan = convert.plan(
        tree, {"params": {"a": {"embedding": np.zeros((3, 2))}}}, rules=[convert.Kind("a", "Embedding")]
    )
    assert len(plan.entries[0].sources) == 2
    for there, outcome in ((1.0, "equal"), (0.0, "different")):
        report = plan.verify(
            convert.Computes(lambda *_: ONES, lambda *_: {"model": {"b.weight": weight}}),
            convert.Computes(lambda *_: ONES, lambda *_, there=there: {"params": {"a": {"embedding": weight * there}}}),
            tree,
            None,
        )
        assert report.levels[2].outcome == outcome


class Unused(torch.nn.Module):
    """A model whose second layer only the other side uses, if `reached` is False; and it says which is the greatest."""

    def __init__(self, *, reached):
        super().__init__()
        self.a, self.b = torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, 3, bias=False)
        torch.nn.init.zeros_(self.b.weight)
        self.reached = reached

    def forward(self, x):
        y = self.a(x) + self.b(x) if self.reached else self.a(x)
        return y, y.argmax(-1)


@pytest.mark.parametrize(("reached", "outcome"), [(True, ["equal", "close"]), (False, ["different"])])
def test_gradients_that_only_jax_has_differ_and_those_of_frozen_parameters_do_not(reached, outcome):
    model = Unused(reached=reached).double().requires_grad_(requires_grad=False)
    tree = ptc_torch.capture(model=model)
    target = {"params": {name: {"kernel": np.zeros((3, 3))} for name in "ab"}}

    def apply(variables, x):
        y = x @ (variables["params"]["a"]["kernel"] + variables["params"]["b"]["kernel"])
        return y, jnp.argmax(y, -1)

    with jax.enable_x64(True):
        report = convert.plan(tree, target).verify(
            ptc_torch.computes(model=model), ptc_jax.computes(apply), tree, np.arange(6.0).reshape(2, 3)
        )
    assert report.levels[1].outcome in {"equal", "close"}
    assert "of 2 arrays" in report.levels[1].text
    assert report.levels[2].outcome in outcome
    assert report.ok is reached


def test_integers_of_models_are_compared():
    model = Unused(reached=True).double()
    tree = ptc_torch.capture(model=model)

    def apply(variables, x):
        y = x @ variables["params"]["a"]["kernel"]
        return y, jnp.argmax(y, -1) + 1

    with jax.enable_x64(True):
        plan = convert.plan(tree, {"params": {name: {"kernel": np.zeros((3, 3))} for name in "ab"}})
        report = plan.verify(ptc_torch.computes(model=model), ptc_jax.computes(apply), tree, np.ones((2, 3)))
    assert (report.levels[1].outcome, report.levels[1].where, report.ok) == ("different", "1", False)


FLOATS = st.lists(st.floats(), min_size=1, max_size=4)


@given(FLOATS, st.data())
def test_a_difference_is_zero_for_the_same_and_for_nothing_else(values, data):
    others = data.draw(st.just(values) | st.lists(st.floats(), min_size=len(values), max_size=len(values)))
    a, b = np.array(values), np.array(others)
    difference = relative_difference(a, b)
    assert (difference == 0) == bool(np.array_equal(a, b, equal_nan=True) or np.all(np.abs(a - b) == 0))
    assert np.isnan(difference) == bool(np.any(np.isnan(a) != np.isnan(b)))
    assert relative_difference(a, a) == 0
