"""Plans as plain data: what is stored is what comes back, whatever else is refused, and two plans can be compared."""

import copy
import dataclasses
import json

import jax
import numpy as np
import optax
import pytest
import torch
from flax.training.train_state import TrainState
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
import pytreeckpt_torch as ptc_torch
from pytreeckpt import convert
from pytreeckpt.convert.leaves import plain_path, values_by_path
from pytreeckpt.convert.operations import First
from tests.convert.layers_side_by_side import KEY, randomised
from tests.convert.models import FRAMEWORKS, MODELS

TRANSPOSED = convert.Choose("up", "kernel (*axes, out, in), transpose_kernel=True")


def plan_of(name, framework):
    rules = [TRANSPOSED] if (name, framework) == ("cnn", "linen") else []
    with jax.enable_x64(True):
        return convert.plan(MODELS[name].module(), MODELS[name].target(framework), rules=rules, dtype="float64")


def training_plan():
    """A plan with counts, moments and a recipe."""
    with jax.enable_x64(True):
        model = MODELS["mlp"].module()
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.from_numpy(MODELS["mlp"].inputs)).square().sum().backward()
        optimizer.step()
        linen = MODELS["mlp"].linen()
        params = linen.init(KEY, MODELS["mlp"].inputs)["params"]
        state = TrainState.create(apply_fn=linen.apply, params=params, tx=optax.adamw(1e-3))
        return convert.plan(ptc_torch.capture(model=model, optimizer=optimizer, rng=False), state)


@pytest.fixture(scope="module")
def plans():
    found = [plan_of(name, framework) for name in MODELS for framework in FRAMEWORKS]
    return [*found, training_plan()]


def test_a_plan_is_equal_to_what_comes_back_through_json(plans):
    assert len(plans) == 13
    for plan in (*plans, *(plan.invert() for plan in plans)):
        again = convert.from_document(json.loads(json.dumps(convert.to_document(plan))))
        assert again == plan
        assert convert.differences(again, plan) == []
        assert str(again.report()) == str(plan.report())
        assert plan.invert().invert() == plan
    assert plans[-1].recipes


def test_a_plan_is_kept_beside_a_checkpoint(plans, tmp_path):
    ptc.save({}, tmp_path / "plan.ptck", metadata=convert.to_document(plans[0]))
    with ptc.open(tmp_path / "plan.ptck") as checkpoint:
        assert convert.from_document(checkpoint.metadata) == plans[0]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_stored_plan_does_the_same_without_any_target(framework):
    plan = plan_of("attention", framework)
    ours = MODELS["attention"].module()
    again = convert.from_document(convert.to_document(plan))
    made, residuals = again.apply(ours)
    values = values_by_path(plan.apply(ours, to="numpy").tree)
    expected = [values[plain_path(path)].value.tobytes() for path in plan.target]
    assert sorted(leaf.tobytes() for leaf in jax.tree.leaves(made)) == sorted(expected)
    back = again.invert().apply(made, residuals=residuals).tree
    assert {name: array.tobytes() for name, array in back.items()} == {
        name: tensor.numpy().tobytes() for name, tensor in ours.state_dict().items()
    }


def test_differences_name_what_is_only_in_one_plan(plans):
    other = plan_of("cnn", "nnx")
    with jax.enable_x64(True):
        rules = [convert.Choose("up", "kernel (*axes, in, out), axes reversed")]
        plan = convert.plan(MODELS["cnn"].module(), MODELS["cnn"].target("linen"), rules=rules, dtype="float64")
    transposed = plan_of("cnn", "linen")
    lines = convert.differences(plan, transposed)
    assert [line[0] for line in lines] == ["-", "+"]
    assert all("up.weight" in line for line in lines)
    assert len(convert.differences(plan, other)) > 10


@pytest.mark.parametrize(
    ("document", "error"),
    [
        (None, convert.DocumentError),
        ([], convert.DocumentError),
        ({}, convert.DocumentError),
        ({"schema": 1}, convert.DocumentError),
        ({"schema": "pytreeckpt-plan/1"}, convert.DocumentError),
        ({"schema": "pytreeckpt-plan/2"}, ptc.FormatVersionError),
    ],
)
def test_what_is_no_plan_is_said_to_be_none(document, error):
    with pytest.raises(error):
        convert.from_document(document)


def test_a_plan_turned_round_twice_takes_the_first_of_what_differs_again(plans):
    entry = next(each for each in plans[-1].entries if each.quantity == "count" and len(each.sources) > 1)
    first = dataclasses.replace(entry, operations=(First(len(entry.sources)), *entry.operations[1:]))
    plan = dataclasses.replace(plans[-1], entries=(first,))
    assert plan.invert().entries != plan.entries
    assert plan.invert().invert() == plan


def damage(document, key, number, **changes):
    """A document with something else in one of its entries."""
    document = copy.deepcopy(document)
    document[key][number].update(changes)
    return document


def document_of_a_linear_layer():
    module = torch.nn.Sequential(torch.nn.Linear(4, 4))
    target = {"params": {"layers_0": {"kernel": np.zeros((4, 4), np.float32), "bias": np.zeros(4, np.float32)}}}
    return json.loads(json.dumps(convert.to_document(convert.plan(module, target))))


HUGE = 10**14
DAMAGED_OPERATIONS = [
    [{"affine": {"scale": 10**400, "offset": 0}}],
    [{"affine": {"scale": 1e-320, "offset": 0}}],
    [{"affine": {"scale": float("nan"), "offset": 0}}],
    [{"affine": {"scale": 2}}],
    [{"repeat": {"count": 10**12, "equal": True}}, {"first": {"count": 10**12}}],
    [{"repeat": {"count": 10**6, "equal": True}}, {"first": {"count": 10**6}}] * 2,
    [{"repeat": {"count": 1, "equal": 1}}],
    [{"pad": {"widths": [[0, HUGE]], "value": 0.0}}, {"crop": {"widths": [[0, HUGE]], "value": 0.0}}],
    [{"pad": {"widths": [[0, 10**40]], "value": 0.0}}, {"crop": {"widths": [[0, 10**40]], "value": 0.0}}],
    [{"pad": {"widths": [[0, 2]], "value": 10**400}}, {"crop": {"widths": [[0, 2]], "value": 0.0}}],
    [{"cast": {"before": "float32", "after": "float16"}}],
    [{"cast": {"before": "float64", "after": "float32"}}],
    [{"reshape": {"before": [4], "after": [-2, -2]}}, {"reshape": {"before": [-2, -2], "after": [4]}}],
    [{"flip": {"axes": [1]}}],
    [{"drop": {"count": 1, "fill": None}}],
    [{"unheard": {}}],
    "abc",
]


@pytest.mark.parametrize("operations", DAMAGED_OPERATIONS, ids=lambda each: str(each)[:60])
def test_operations_that_do_not_come_to_the_target_or_not_in_bounds_are_refused(operations):
    document = document_of_a_linear_layer()
    assert document["entries"][1]["sources"] == ["0.bias"]
    with pytest.raises(convert.DocumentError):
        convert.from_document(damage(document, "entries", 1, operations=operations))


@pytest.mark.parametrize(
    "fill",
    [
        {"shape": [4], "dtype": "int32", "value": 0.0, "implied": False},
        {"shape": [5], "dtype": "float32", "value": 0.0, "implied": False},
        {"shape": [4], "dtype": "float32", "value": 0.0, "implied": 0},
        {"shape": [4], "dtype": "object", "value": 0.0, "implied": False},
    ],
)
def test_fills_are_of_the_leaves_that_they_are_for(fill):
    document = document_of_a_linear_layer()
    del document["source"]["0.bias"]
    good = {"shape": [4], "dtype": "float32", "value": 0.0, "implied": True}
    filled = convert.from_document(damage(document, "entries", 1, sources=[], operations=[{"fill": good}]))
    assert filled.entries[1].operations[0].implied
    with pytest.raises(convert.DocumentError):
        convert.from_document(damage(document, "entries", 1, sources=[], operations=[{"fill": fill}]))
    del document["target"]["params/layers_0/bias"]
    document["source"]["0.bias"] = ["float32", [4]]
    for each, error in ((good, False), (fill, True)):
        dropping = damage(
            document, "entries", 1, targets=[], operations=[{"drop": {"count": 1, "fill": {"fill": each}}}]
        )
        if error:
            with pytest.raises(convert.DocumentError):
                convert.from_document(dropping)
        else:
            assert convert.from_document(dropping).invert().entries[1].operations[0].implied


def removed(document):
    document["entries"].pop()


def all_removed(document):
    document["entries"].clear()


def repeated(document):
    document["entries"].append(dict(document["entries"][1]))


def of_one_target_twice(document):
    document["entries"][1].update(
        targets=["params/layers_0/bias"] * 2, operations=[{"repeat": {"count": 2, "equal": True}}]
    )


def with_other_dtype(document):
    document["target"]["params/layers_0/bias"] = ["float16", [4]]


def with_text_for_notes(document):
    document["notes"] = "abc"


def with_text_for_sources(document):
    document["entries"][1]["sources"] = "0.bias"


def with_a_number_for_a_reason(document):
    document["entries"][1]["reason"] = 1


def with_another_field(document):
    document["unknown"] = 1


def with_three_conventions(document):
    document["conventions"].append("torch")


def with_negative_extents(document):
    document["source"]["0.bias"] = document["target"]["params/layers_0/bias"] = ["float32", [-4]]


def with_too_many_axes(document):
    document["source"]["0.bias"] = document["target"]["params/layers_0/bias"] = ["float32", [1] * 65]


def with_one_path_twice(document):
    document["source"]['"0.bias"'] = ["float32", [4]]


DAMAGES = [
    *(removed, all_removed, repeated, of_one_target_twice, with_other_dtype, with_text_for_notes, with_another_field),
    *(with_text_for_sources, with_a_number_for_a_reason, with_three_conventions, with_negative_extents),
    *(with_too_many_axes, with_one_path_twice),
]


@pytest.mark.parametrize("damages", DAMAGES)
def test_a_plan_comes_from_all_of_its_source_to_all_of_its_target_once(damages):
    document = document_of_a_linear_layer()
    assert convert.from_document(document).entries
    damages(document)
    with pytest.raises(convert.DocumentError):
        convert.from_document(document)


def test_a_plan_of_arrays_beyond_the_limit_is_refused():
    document = document_of_a_linear_layer()
    n_bytes = 4 * (4 * 4 + 4)
    with ptc.limits(arrays_nbytes=n_bytes):
        assert convert.from_document(document).entries
    with ptc.limits(arrays_nbytes=n_bytes - 1), pytest.raises(ptc.LimitError, match="arrays_nbytes"):
        convert.from_document(document)


def test_what_optimizers_of_torch_keep_is_said_where_the_target_is_theirs(plans):
    assert "to go on with in optax:" in str(plans[-1].report())
    assert "the optimizers of torch keep their own options" in str(plans[-1].invert().report())
    assert plans[-1].recipes


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.just(2**70) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def places(document, path=()):
    yield path
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, item in items:
        yield from places(item, (*path, key))


@given(st.data())
def test_a_damaged_plan_is_refused_or_applied_or_refused_then(data):
    plan = convert.plan(
        randomised(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))),
        "nnx",
        rules=[convert.Drop("0.bias")],
    )
    document = copy.deepcopy(convert.to_document(plan))
    *above, last = data.draw(st.sampled_from(list(places(document))[1:]))
    at = document
    for key in above:
        at = at[key]
    at[last] = data.draw(JSON | st.sampled_from([at[last], [at[last]], "params/x"]))
    try:
        damaged = convert.from_document(document)
        damaged.apply(randomised(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))))
        damaged.invert()
        assert str(damaged.report())
    except ptc.PytreeckptError as error:
        assert str(error)
