"""States of optimizers, from torch to optax and back: the training goes on as it would have."""

import jax
import numpy as np
import pytest
import torch
from flax import nnx

import pytreeckpt_jax as ptc_jax
import pytreeckpt_torch as ptc_torch
from pytreeckpt import convert
from pytreeckpt.convert.leaves import array_of, leaves_of
from pytreeckpt.convert.optimizers import recipe_of
from pytreeckpt.convert.values import same_bits
from pytreeckpt.navigation import descend
from pytreeckpt.paths import DictKey, Path
from pytreeckpt_jax.optimizers import transformation
from tests.convert.optimizer_runs import (
    Net,
    apart,
    captured,
    captured_jax,
    gradients,
    optax_from_torch,
    planned,
    step_optax,
    step_torch,
    to_jax,
    to_torch,
    torch_from_optax,
    values,
)

CASES = {
    "sgd": ("SGD", {"lr": 0.1}),
    "sgd decay": ("SGD", {"lr": 0.1, "weight_decay": 0.03}),
    "sgd momentum": ("SGD", {"lr": 0.1, "momentum": 0.9}),
    "sgd momentum decay": ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.03}),
    "sgd nesterov": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.03}),
    "sgd dampening": ("SGD", {"lr": 0.1, "momentum": 0.8, "dampening": 0.3}),
    "sgd maximize": ("SGD", {"lr": 0.01, "momentum": 0.8, "maximize": True, "weight_decay": 0.03}),
    "adam": ("Adam", {"lr": 1e-2}),
    "adam coupled": ("Adam", {"lr": 1e-2, "weight_decay": 0.05, "betas": (0.8, 0.95), "eps": 1e-5}),
    "adam decoupled": ("Adam", {"lr": 1e-2, "weight_decay": 0.05, "decoupled_weight_decay": True}),
    "adam maximize": ("Adam", {"lr": 1e-2, "weight_decay": 0.05, "maximize": True}),
    "adamw": ("AdamW", {"lr": 1e-2}),
    "adamw maximize": ("AdamW", {"lr": 1e-2, "weight_decay": 0.1, "maximize": True, "betas": (0.7, 0.9)}),
    "adagrad": ("Adagrad", {"lr": 0.1}),
    "adagrad all": (
        "Adagrad",
        {"lr": 0.1, "lr_decay": 0.01, "weight_decay": 0.02, "initial_accumulator_value": 0.3, "maximize": True},
    ),
    "rmsprop": ("RMSprop", {"lr": 1e-2}),
    "rmsprop decay": ("RMSprop", {"lr": 1e-2, "weight_decay": 0.04, "alpha": 0.9, "eps": 1e-4, "maximize": True}),
    "rmsprop centered": ("RMSprop", {"lr": 1e-2, "centered": True}),
    "rmsprop momentum": ("RMSprop", {"lr": 1e-2, "momentum": 0.9}),
    "rmsprop all": ("RMSprop", {"lr": 1e-2, "momentum": 0.9, "centered": True, "weight_decay": 0.04}),
    "adadelta": ("Adadelta", {"lr": 1.0}),
    "adadelta decay": ("Adadelta", {"lr": 0.7, "rho": 0.8, "eps": 1e-5, "weight_decay": 0.04, "maximize": True}),
    "adamax": ("Adamax", {"lr": 1e-2}),
    "adamax decay": ("Adamax", {"lr": 1e-2, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.04, "maximize": True}),
    "radam": ("RAdam", {"lr": 1e-2}),
    "radam short": ("RAdam", {"lr": 1e-2, "betas": (0.8, 0.9), "weight_decay": 0.04}),
    "radam decoupled": (
        "RAdam",
        {"lr": 1e-2, "betas": (0.8, 0.95), "weight_decay": 0.04, "decoupled_weight_decay": True, "maximize": True},
    ),
}
BEFORE, AFTER = 10, 20


def bound(cls, options):
    """By how much parameters may differ after `AFTER` steps.

    Adagrad and RAdam put eps elsewhere (see their caveats): each of the steps, of at most the learning rate, then
    differs by eps / √(second moment) of itself, where the sums here are above 1, and the moments above 0.0025.
    """
    if cls == "Adagrad":
        return AFTER * options["lr"] * 1e-10
    if cls == "RAdam":
        return AFTER * options["lr"] * 1e-8 / 0.0025**0.5
    return 1e-12


def begun(cls, options, steps=BEFORE):
    """A model of torch and its optimizer after some steps."""
    model = Net()
    optimizer = getattr(torch.optim, cls)(model.named_parameters(), **options)
    step_torch(model, optimizer, gradients(steps))
    return model, optimizer


@pytest.fixture(autouse=True)
def _in_float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", CASES)
def test_a_training_goes_on_in_optax_as_it_would_have_in_torch(name):
    cls, options = CASES[name]
    model, optimizer = begun(cls, options)
    tree = captured(model, optimizer)
    tx = transformation(recipe_of(f"torch.optim.{cls}", options))
    params = to_jax(values(model))
    state = tx.init(params)
    jax_tree = captured_jax(params, state)
    plan = planned(tree, jax_tree)
    assert plan.problems == plan.missing == plan.unused == ()
    assert plan.recipes == (recipe_of(f"torch.optim.{cls}", options),)
    state = optax_from_torch(plan, tree, jax_tree, params, state)
    seconds = {"Adagrad": ("sum", 1.0), "RAdam": ("exp_avg_sq", 0.0025)}
    if cls in seconds:
        key, least = seconds[cls]
        assert min(float(each[key].min()) for each in optimizer.state.values()) > least

    grads = gradients(AFTER, seed=8)
    params, _ = step_optax(tx, params, state, grads)
    step_torch(model, optimizer, grads)
    assert apart(values(model), to_torch(params)) <= bound(cls, options)


@pytest.mark.parametrize("name", CASES)
def test_a_training_goes_on_in_torch_as_it_would_have_in_optax(name):
    cls, options = CASES[name]
    tx = transformation(recipe_of(f"torch.optim.{cls}", options))
    params = to_jax(values(Net()))
    params, state = step_optax(tx, params, tx.init(params), gradients(BEFORE))
    jax_tree = captured_jax(params, state)

    model = Net()
    optimizer = getattr(torch.optim, cls)(model.named_parameters(), **options)
    tree = captured(model, optimizer)
    plan = planned(tree, jax_tree, stepped=True)
    assert plan.problems == plan.missing == plan.unused == ()
    for parameter_name, parameter in model.named_parameters():
        parameter.data = torch.from_numpy(to_torch(params)[parameter_name].copy())
    tree = captured(model, optimizer)
    torch_from_optax(plan, tree, jax_tree, model, optimizer)
    has_count = any(entry.quantity == "count" and entry.targets for entry in plan.entries)
    # Where optax counts no steps, torch computes nothing from them.
    assert has_count or (cls in {"SGD", "Adagrad", "RMSprop", "Adadelta"} and not options.get("lr_decay"))

    grads = gradients(AFTER, seed=8)
    params, _ = step_optax(tx, params, state, grads)
    step_torch(model, optimizer, grads)
    assert apart(values(model), to_torch(params)) <= bound(cls, options)


@pytest.mark.parametrize("name", CASES)
def test_a_whole_plan_goes_back_to_the_bit(name):
    cls, options = CASES[name]
    model = torch.nn.Linear(3, 2, dtype=torch.float64)
    optimizer = getattr(torch.optim, cls)(model.parameters(), **options)
    generator = np.random.default_rng(3)
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.from_numpy(generator.standard_normal(tuple(parameter.shape)))
        optimizer.step()
    tree = ptc_torch.capture(model=model, optimizer=optimizer, step=3, rng=False)
    module = nnx.Linear(3, 2, rngs=nnx.Rngs(0), param_dtype=np.float64)
    tx = transformation(recipe_of(f"torch.optim.{cls}", options))
    target = ptc_jax.capture(model=module, optimizer=nnx.Optimizer(module, tx, wrt=nnx.Param), rng=False)
    plan = convert.plan(tree, target)
    there, residuals = plan.apply(tree)
    back, _ = plan.invert().apply(there, residuals=residuals)
    wanted = {path for entry in plan.entries for path in entry.sources}
    states = [leaf.path for leaf in leaves_of(tree["optimizer"]["state"]) if leaf.shape is not None]
    assert wanted.issuperset(Path((DictKey("optimizer"), DictKey("state"), *path)) for path in states)
    for path in wanted:
        assert same_bits(array_of(descend(back, path)), array_of(descend(tree, path)))
