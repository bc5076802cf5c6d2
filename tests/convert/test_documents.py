"""Plans as plain data: what is stored is what comes back, whatever else is refused, and two plans can be compared."""

import copy
import json

import jax
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
