"""Recipes: what to write in optax, as data and as text, and back to the options of torch."""

import json

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import optax
import pytest
import torch
from hypothesis import given

from pytreeckpt.convert.optimizers import (
    InverseTime,
    Recipe,
    recipe_document,
    recipe_from_document,
    recipe_of,
    torch_options,
)
from pytreeckpt.convert.optimizers.recipe import DEFAULTS, RECIPES
from pytreeckpt_jax.optimizers import transformation

_BETA = st.floats(0, 0.999)
_SMALL = st.floats(1e-12, 1.0)
_DRAWN = {
    "lr": _SMALL,
    "momentum": st.just(0.0) | st.floats(0.1, 1.0),
    "nesterov": st.booleans(),
    "weight_decay": st.just(0.0) | _SMALL,
    "maximize": st.booleans(),
    "betas": st.tuples(_BETA, _BETA),
    "eps": _SMALL,
    "lr_decay": st.just(0.0) | _SMALL,
    "initial_accumulator_value": st.floats(0, 1),
    "alpha": _BETA,
    "rho": _BETA,
    "centered": st.booleans(),
    "decoupled_weight_decay": st.booleans(),
}
_FIXED = {"dampening": 0.0, "amsgrad": False}


@st.composite
def optimizers(draw, only=None):
    kind = draw(st.sampled_from(sorted(RECIPES))) if only is None else only
    options = {name: _FIXED[name] if name in _FIXED else draw(_DRAWN[name]) for name in DEFAULTS[kind]}
    if kind == "torch.optim.AdamW":
        options["decoupled_weight_decay"] = True
    return kind, options


@pytest.mark.parametrize("kind", sorted(RECIPES))
@given(st.data())
def test_the_options_of_a_recipe_make_the_same_recipe(kind, data):
    _, options = data.draw(optimizers(kind))
    recipe = recipe_of(kind, options)
    back, found = torch_options(recipe)
    # Adam and AdamW without decay, or with it decoupled, are one thing.
    assert back == kind or {back, kind} == {"torch.optim.Adam", "torch.optim.AdamW"}
    again = recipe_of(back, found)
    assert str(again) == str(recipe)
    assert again == recipe


@given(optimizers())
def test_a_document_of_a_recipe_gives_it_back(optimizer):
    recipe = recipe_of(*optimizer)
    document = recipe_document(recipe)
    assert recipe_from_document(json.loads(json.dumps(document))) == recipe


@given(optimizers())
def test_the_text_of_a_recipe_is_an_expression_that_makes_it(optimizer):
    recipe = recipe_of(*optimizer)
    made = []

    class Optax:
        chain = staticmethod(lambda *steps: steps)

        def __getattr__(self, name):
            return lambda **settings: made.append((name, settings)) or name

    eval(str(recipe), {"optax": Optax()})
    assert [name for name, _ in made] == [name for name, _ in recipe.steps]
    for (_, written), (_, wanted) in zip(made, recipe.steps, strict=True):
        assert written.keys() == wanted.keys()
        for key, value in wanted.items():
            if isinstance(value, InverseTime):
                assert [written[key](count) for count in range(5)] == [value(count) for count in range(5)]
            else:
                assert written[key] == value


def test_recipes_are_what_they_say():
    adamw = recipe_of("torch.optim.AdamW", {"lr": 0.1, "maximize": True})
    assert str(adamw) == (
        "optax.chain(optax.scale(step_size=-1.0), optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-08), "
        "optax.add_decayed_weights(weight_decay=0.01), optax.scale_by_learning_rate(learning_rate=0.1))"
    )
    assert str(recipe_of("torch.optim.SGD", {"lr": 1, "momentum": 0.5, "dampening": 0.25, "weight_decay": 0.1})) == (
        "optax.chain(optax.add_decayed_weights(weight_decay=0.1), optax.trace(decay=0.5, nesterov=False), "
        "optax.scale_by_learning_rate(learning_rate=0.75))"
    )
    assert str(recipe_of("torch.optim.Adagrad", {"lr": 0.5, "lr_decay": 0.1})).endswith(
        "optax.scale_by_learning_rate(learning_rate=lambda count: 0.5 / (1 + 0.1 * count)))"
    )


@pytest.mark.parametrize("kind", sorted(RECIPES))
def test_defaults_are_those_of_torch(kind):
    cls = getattr(torch.optim, kind.rpartition(".")[2])
    (group,) = cls([torch.nn.Parameter(torch.zeros(1))]).param_groups
    assert {name: group[name] for name in DEFAULTS[kind]} == DEFAULTS[kind]
    others = group.keys() - DEFAULTS[kind].keys()
    assert others <= {"params", "foreach", "fused", "capturable", "differentiable"}


@pytest.mark.parametrize("kind", sorted(RECIPES))
def test_a_transformation_has_the_steps_of_its_recipe(kind):
    made = transformation(recipe_of(kind, {}))
    assert isinstance(made, optax.GradientTransformation)
    params = {"w": jnp.ones(3)}
    updates, _ = made.update({"w": jnp.ones(3)}, made.init(params), params)
    assert bool(jnp.all(updates["w"] < 0))


def test_a_schedule_is_computed_as_torch_does():
    with jax.enable_x64(True):
        schedule = InverseTime(0.5, 0.1)
        assert float(schedule(jnp.int32(10))) == 0.5 / (1 + 10 * 0.1)


def test_a_step_that_no_recipe_has_is_refused():
    with pytest.raises(ValueError, match="exit is no step of a recipe; steps are add_decayed_weights"):
        transformation(Recipe((("exit", {}),)))


@pytest.mark.parametrize(
    "steps",
    [
        (("scale_by_lion", {"b1": 0.9}), ("scale_by_learning_rate", {"learning_rate": 0.1})),
        (("scale_by_adam", {"b1": 0.9, "b2": 0.9, "eps": 1e-8, "nesterov": True}), ("scale_by_learning_rate", {"learning_rate": 0.1})),
        (("scale_by_rss", {"eps": InverseTime(1.0, 1.0), "initial_accumulator_value": 0.0}), ("scale_by_learning_rate", {"learning_rate": 0.1})),
        (("trace", {"decay": 0.9}), ("trace", {"decay": 0.9}), ("scale_by_learning_rate", {"learning_rate": 0.1})),
        (("scale_by_adam", {"b1": 0.9}), ("scale_by_learning_rate", {"learning_rate": 0.1})),
        (("scale_by_learning_rate", {"learning_rate": InverseTime(1.0, 1.0)}),),
        (("scale_by_learning_rate", {}),),
        (("trace", {}), ("scale_by_learning_rate", {"learning_rate": 0.1})),
        (),
    ],
)  # fmt: skip
def test_steps_that_no_optimizer_of_torch_takes_are_refused(steps):
    with pytest.raises(ValueError, match="no optimizer of torch|schedule"):
        torch_options(Recipe(steps))


@pytest.mark.parametrize(
    "document",
    [
        None,
        {},
        {"of": "", "steps": [], "more": 1},
        {"of": 1, "steps": []},
        {"of": "", "steps": [["scale"]]},
        {"of": "", "steps": [["scale", {"a b": 1.0}]]},
        {"of": "", "steps": [["import os;", {}]]},
        {"of": "", "steps": [["scale", {"x": "text"}]]},
        {"of": "", "steps": [["scale", {"x": [1.0]}]]},
        {"of": "", "steps": [["scale", {1: 1.0}]]},
        {"of": "", "steps": "ab"},
    ],
)
def test_a_document_that_holds_no_recipe_is_refused(document):
    with pytest.raises(ValueError, match="this is no"):
        recipe_from_document(document)
