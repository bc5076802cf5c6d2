"""Which states of optimizers are found, in all the trees that they come in, and what has no place is told."""

import equinox as eqx
import flax.linen
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from flax.training.train_state import TrainState
from hypothesis import given
from torch import nn

import pytreeckpt as ptc
import pytreeckpt_jax as ptc_jax
import pytreeckpt_torch as ptc_torch
from pytreeckpt import convert
from pytreeckpt.convert.operations import (
    Affine,
    Concat,
    Drop,
    Fill,
    Flip,
    Pad,
    Permute,
    Repeat,
    Split,
    SumPair,
    Tie,
    inverse,
)
from pytreeckpt.convert.optimizers import ROWS, NewLeaf, Recipe, Row, Slot, State, extended, plan_optimizers, recipe_of
from pytreeckpt.convert.optimizers.inferring import foreign_options, kind_of
from pytreeckpt.convert.records import Entry
from pytreeckpt.convert.values import same_bits
from pytreeckpt.navigation import descend
from pytreeckpt.paths import Path
from pytreeckpt_jax.optimizers import transformation
from tests.convert.optimizer_runs import (
    LAYOUT,
    Net,
    apart,
    captured,
    captured_jax,
    entries,
    gradients,
    inventory,
    moved,
    planned,
    replaced,
    step_optax,
    step_torch,
    to_jax,
    to_torch,
    values,
)


@pytest.fixture(autouse=True)
def _in_float64():
    with jax.enable_x64(True):
        yield


def trained(cls=torch.optim.Adam, *, steps=3, only=None, **options):
    model = Net()
    optimizer = cls(model.named_parameters(), **options)
    step_torch(model, optimizer, gradients(steps), only=only)
    return model, optimizer


def plan_for(tx, model, optimizer, *, tree=None, **options):
    """A plan to the state that a transformation makes, and what it moves, by the texts of paths."""
    params = to_jax(values(model))
    jax_tree = captured_jax(params, tx.init(params))
    tree = captured(model, optimizer) if tree is None else tree
    plan = planned(tree, jax_tree, **options)
    return plan, {str(path): array for path, array in moved(plan, tree).items()} if not plan.problems else {}


def fits(plan):
    assert plan.problems == plan.missing == plan.unused == ()
    assert plan.entries


# Where states are in optax.


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: tx,
        lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
        lambda tx: optax.chain(optax.chain(optax.identity(), tx)),
        lambda tx: optax.named_chain(("clip", optax.clip(1.0)), ("main", tx)),
        lambda tx: optax.apply_if_finite(tx, 3),
        lambda tx: optax.masked(tx, True),
        lambda tx: optax.MultiSteps(tx, 2),
        lambda tx: optax.MultiSteps(tx, 2, should_skip_update_fn=optax.skip_not_finite),
        lambda tx: optax.multi_transform(
            {"all": tx, "none": optax.sgd(0.1)}, lambda p: jax.tree.map(lambda _: "all", p)
        ),
        lambda tx: optax.multi_transform({"mu": tx}, lambda p: jax.tree.map(lambda _: "mu", p)),
        lambda tx: optax.transforms.conditionally_transform(tx, lambda step: step > 1),
        lambda tx: optax.chain(optax.apply_every(2), tx),
    ],
)
def test_moments_and_steps_are_found_within_wrappers(wrap):
    model, optimizer = trained()
    plan, found = plan_for(wrap(optax.adam(0.1)), model, optimizer)
    fits(plan)
    (mean,) = [array for path, array in found.items() if path.endswith("mu/out/kernel")]
    assert np.array_equal(mean, optimizer.state[model.out.weight]["exp_avg"].numpy().T)
    counts = [
        array
        for path, array in found.items()
        if path.endswith(("/count", "gradient_step", "/step")) and "grad_acc" not in path
    ]
    assert counts
    assert {array.dtype.name for array in counts} == {"int32"}
    assert any(array == 3 for array in counts)


def test_what_wrappers_count_begins_anew():
    model, optimizer = trained()
    tx = optax.MultiSteps(optax.apply_if_finite(optax.adam(0.1), 3), 2, should_skip_update_fn=optax.skip_not_finite)
    plan, found = plan_for(tx, model, optimizer)
    fits(plan)
    ends = {path.rpartition("/")[2]: array for path, array in found.items()}
    assert ends["mini_step"] == ends["notfinite_count"] == ends["total_notfinite"] == ends["num_not_finite"] == 0
    assert bool(ends["last_finite"])
    assert not bool(ends["should_skip"])
    assert ends["gradient_step"] == 3
    assert all(not array.any() for path, array in found.items() if "acc_grads" in path)
    assert any("convert between two updates" in note for note in plan.notes)


def test_schedules_count_the_steps():
    model, optimizer = trained()
    plan, found = plan_for(optax.adamw(optax.linear_schedule(0.1, 0.0, 100)), model, optimizer)
    fits(plan)
    assert [int(array) for path, array in found.items() if path.endswith("count")] == [3, 3]
    assert any("counts the same steps" in note for note in plan.notes)


def test_the_way_back_takes_the_steps_of_the_moments_and_not_those_of_a_schedule():
    model, optimizer = trained()
    params = to_jax(values(model))
    tx = optax.adam(optax.constant_schedule(0.1))
    jax_tree = captured_jax(params, tx.init(params))
    plan = planned(captured(model, optimizer), jax_tree)
    jax_tree = replaced(
        jax_tree, {Path.parse("opt/leaves/0/count"): np.int32(8), Path.parse("opt/leaves/1/count"): np.int32(5)}
    )
    back = {str(path): array for path, array in moved(plan, jax_tree, back=True).items()}
    steps = [array for path, array in back.items() if path.endswith("step")]
    assert len(steps) == 4
    assert all(array == 8 and array.dtype == np.float32 for array in steps)


def test_on_the_way_back_a_count_that_differs_is_kept_aside():
    model = Net()
    params = to_jax(values(model))
    jax_tree = captured_jax(params, optax.adam(optax.constant_schedule(0.1)).init(params))
    jax_tree = replaced(
        jax_tree, {Path.parse("opt/leaves/0/count"): np.int32(8), Path.parse("opt/leaves/1/count"): np.int32(5)}
    )
    fresh = captured(model, torch.optim.Adam(model.named_parameters()))
    plan = planned(fresh, jax_tree, stepped=True)
    fits(plan)
    (kept,) = [entry for entry in plan.entries if not entry.sources]
    assert list(map(str, kept.targets)) == ["opt/leaves/1/count"]
    assert kept.operations == (Fill((), "int32", 5),)
    assert any("it is 5, and opt/leaves/0/count is not" in note for note in plan.notes)
    steps = [array for path, array in moved(plan, jax_tree, back=True).items() if str(path).endswith("step")]
    assert len(steps) == 4
    assert all(array == 8 for array in steps)


def test_on_the_way_back_without_states_an_optimizer_stays_as_it_is():
    model = Net()
    fresh = captured(model, torch.optim.Adam(model.named_parameters()))
    plan = planned(fresh, {"params": to_jax(values(model))}, stepped=True)
    assert plan.entries == plan.new == plan.problems == plan.missing == ()


def test_a_step_of_the_program_stays_its_own():
    model, optimizer = trained()
    params = to_jax(values(model))
    tree = ptc_torch.capture(model=model, optimizer=optimizer, step=70, rng=False)
    jax_tree = ptc_jax.capture(params=params, opt=optax.adam(0.1).init(params), step=0, rng=False)
    plan = planned(tree, jax_tree)
    fits(plan)
    found = {str(path): array for path, array in moved(plan, tree).items()}
    assert found["step"] == 70
    assert found["opt/leaves/0/count"] == 3


@pytest.mark.parametrize(
    ("factory", "cls", "options", "wanted"),
    [
        (optax.adamw, torch.optim.AdamW, {"lr": 0.5, "betas": (0.8, 0.7)}, {"learning_rate": 0.5, "b1": 0.8, "b2": 0.7, "weight_decay": 0.01, "eps": 1e-8, "eps_root": 0}),
        (optax.sgd, torch.optim.SGD, {"lr": 0.5, "momentum": 0.75, "dampening": 0.5}, {"learning_rate": 0.25, "momentum": 0.75}),
        (optax.sgd, torch.optim.SGD, {"lr": 0.5}, {"learning_rate": 0.5}),
        (optax.rmsprop, torch.optim.RMSprop, {"lr": 0.5, "alpha": 0.75}, {"learning_rate": 0.5, "decay": 0.75, "initial_scale": 0}),
        (optax.adagrad, torch.optim.Adagrad, {"lr": 0.5, "initial_accumulator_value": 0.25}, {"initial_accumulator_value": 0.25, "eps": 1e-20}),
        (optax.adadelta, torch.optim.Adadelta, {"lr": 0.5, "rho": 0.75}, {"learning_rate": 0.5, "rho": 0.75}),
        (optax.adamax, torch.optim.Adamax, {"lr": 0.5}, {"b1": 0.9, "b2": 0.999}),
        (optax.radam, torch.optim.RAdam, {"lr": 0.5}, {"threshold": 5.0}),
    ],
)  # fmt: skip
def test_injected_hyperparameters_are_the_options_of_torch(factory, cls, options, wanted):
    model, optimizer = trained(cls, **options)
    given_options = {"momentum": 0.1} if "momentum" in options else {}
    tree = ptc_torch.capture(model=model, optimizer=optimizer, step=3, rng=False)
    plan, found = plan_for(optax.inject_hyperparams(factory)(0.1, **given_options), model, optimizer, tree=tree)
    fits(plan)
    settings = {path.rpartition("/")[2]: array for path, array in found.items() if "hyperparams/" in path}
    for name, value in wanted.items():
        assert settings[name] == pytest.approx(value, rel=1e-15, abs=0)
    assert next(array for path, array in found.items() if path == "opt/leaves/count") == 3


def test_injected_schedules_count_the_steps():
    model, optimizer = trained()
    plan, found = plan_for(optax.inject_hyperparams(optax.adam)(optax.constant_schedule(0.1)), model, optimizer)
    fits(plan)
    assert found["opt/leaves/hyperparams_states/learning_rate/count"] == 3


def test_a_setting_that_torch_does_not_have_is_missing():
    model, optimizer = trained()
    plan, _ = plan_for(optax.inject_hyperparams(optax.lamb)(0.1), model, optimizer)
    assert plan.problems == ()
    plan, _ = plan_for(
        optax.chain(optax.adam(0.1), optax.inject_hyperparams(optax.add_noise)(0.1, 0.5, 7)), model, optimizer
    )
    assert {str(path).rpartition("/")[2] for path in plan.missing} >= {"eta", "gamma", "rng_key"}


RMS = {"decay": 0.99, "eps": 1e-8, "eps_in_sqrt": False}
TRACES = {
    # optax.rmsprop has its trace behind the rate; a clip in the same place leaves the same states.
    "late-trace": optax.rmsprop(0.01, centered=True, momentum=0.9, **RMS),
    "early-trace": optax.chain(
        optax.scale_by_stddev(**RMS), optax.clip(1e9), optax.trace(0.9), optax.scale_by_learning_rate(0.01)
    ),
}


@pytest.mark.parametrize("placed", TRACES)
def test_a_trace_behind_something_unknown_is_before_or_after_the_learning_rate_as_is_waived(placed):
    model, optimizer = trained(torch.optim.RMSprop, lr=0.01, momentum=0.9, centered=True, steps=10)
    tx = TRACES[placed]
    params = to_jax(values(model))
    state = tx.init(params)
    tree, jax_tree = captured(model, optimizer), captured_jax(params, state)
    undecided = planned(tree, jax_tree)
    (problem, *others) = undecided.problems
    assert "Waive(check='late-trace')" in problem
    assert "Waive(check='early-trace')" in problem
    assert len(others) == len(undecided.unused) == len(undecided.missing) == 0
    plan = planned(tree, jax_tree, waive=[placed])
    fits(plan)
    when = {"late-trace": "after", "early-trace": "before"}[placed]
    assert any(f"comes {when} the learning rate" in note for note in plan.notes)
    new = replaced(jax_tree, {path: np.asarray(array) for path, array in moved(plan, tree).items()})
    state = ptc_jax.restore_into(new, params=params, opt=state, rng=False)["opt"]
    grads = gradients(20, seed=8)
    params, _ = step_optax(tx, params, state, grads)
    step_torch(model, optimizer, grads)
    assert apart(values(model), to_torch(params)) <= 1e-12


def test_a_trace_directly_behind_its_rms_comes_before_the_learning_rate_whatever_is_waived():
    model, optimizer = trained(torch.optim.RMSprop, momentum=0.9)
    tx = optax.chain(optax.scale_by_rms(), optax.trace(0.9), optax.scale_by_learning_rate(0.01))
    plans = [plan_for(tx, model, optimizer, waive=waive) for waive in ((), ("late-trace",), ("early-trace",))]
    for plan, found in plans:
        fits(plan)
        wanted = optimizer.state[model.out.bias]["momentum_buffer"].numpy()
        assert np.array_equal(found["opt/leaves/1/trace/out/bias"], wanted)


def test_a_trace_behind_a_learning_rate_of_zero_is_refused():
    model, optimizer = trained(torch.optim.RMSprop, momentum=0.9, centered=True)
    optimizer.param_groups[0]["lr"] = 0.0
    plan, _ = plan_for(TRACES["late-trace"], model, optimizer, waive=["late-trace"])
    assert any("learning rate is 0" in problem for problem in plan.problems)
    assert plan.unused == plan.missing == ()


def test_a_trace_cannot_be_waived_to_be_both():
    model, optimizer = trained(torch.optim.RMSprop, momentum=0.9)
    with pytest.raises(ValueError, match="before the learning rate or after it"):
        plan_for(optax.trace(0.9), model, optimizer, waive=("early-trace", "late-trace"))


def test_a_trace_elsewhere_than_behind_its_rms_is_undecided():
    model, optimizer = trained(torch.optim.RMSprop, momentum=0.9)
    for tx in (
        optax.chain(optax.trace(0.9), optax.scale_by_rms()),
        optax.chain(optax.chain(optax.scale_by_rms(), optax.scale(0.1)), optax.trace(0.9)),
        optax.named_chain(("rms", optax.scale_by_rms()), ("trace", optax.trace(0.9))),
    ):
        plan, _ = plan_for(tx, model, optimizer)
        assert any("before or after the learning rate" in problem for problem in plan.problems)


def test_a_trace_without_its_rms_is_told():
    model, optimizer = trained(torch.optim.RMSprop, momentum=0.9)
    plan, _ = plan_for(optax.trace(0.9), model, optimizer)
    assert any("ScaleByRmsState" in problem for problem in plan.problems)
    assert all("trace" not in str(path) for entry in plan.entries for path in entry.targets)


# Trainings of each library.


class Dense(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, x):
        return flax.linen.Dense(2, name="out", param_dtype=jnp.float64)(
            flax.linen.BatchNorm(True, name="bn", param_dtype=jnp.float64)(x)
        )


class TorchDense(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm1d(3, dtype=torch.float64)
        self.out = nn.Linear(3, 2, dtype=torch.float64)


DENSE = {
    "bn.weight": (["bn/scale"], ()),
    "bn.bias": (["bn/bias"], ()),
    "out.weight": (["out/kernel"], (Permute((1, 0)),)),
    "out.bias": (["out/bias"], ()),
}
EQUINOX = {
    "0.weight": (["0/weight"], ()),
    "0.bias": (["0/bias"], ()),
    "1.weight": (["1/weight"], ()),
    "1.bias": (["1/bias"], ()),
}


def trained_dense(cls=torch.optim.AdamW):
    model = TorchDense()
    optimizer = cls(model.parameters())
    for _ in range(4):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, dtype=parameter.dtype)
        optimizer.step()
    return model, optimizer


def test_a_train_state_of_linen_takes_moments_and_its_step():
    model, optimizer = trained_dense()
    variables = Dense().init(jax.random.key(0), jnp.zeros((1, 3)))
    state = TrainState.create(
        apply_fn=Dense().apply, params=variables["params"], tx=optax.adamw(optax.constant_schedule(0.1))
    )
    tree, jax_tree = captured(model, optimizer), ptc_jax.capture(state=state, rng=False)
    plan = planned(tree, jax_tree, layout=DENSE, target_at="state/leaves/params")
    fits(plan)
    new = replaced(jax_tree, {path: np.asarray(array) for path, array in moved(plan, tree).items()})
    restored = ptc_jax.restore_into(new, state=state, rng=False)["state"]
    assert int(restored.step) == int(restored.opt_state[0].count) == int(restored.opt_state[2].count) == 4
    assert np.array_equal(restored.opt_state[0].nu["out"]["kernel"], optimizer.state[model.out.weight]["exp_avg_sq"].T)
    assert plan.sources == (Path.parse("optimizer"),)
    assert plan.targets == (Path.parse("state/leaves/opt_state"),)


class AveragedState(TrainState):
    """As trainings with an average of the parameters keep it."""

    ema_params: object


@pytest.mark.parametrize("form", ["live", "abstract", "captured"])
def test_states_are_of_the_parameters_and_not_of_their_average(form):
    model = nn.Sequential(nn.Linear(3, 4, dtype=torch.float64), nn.Linear(4, 2, dtype=torch.float64))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3, dtype=torch.float64)).sum().backward()
    optimizer.step()
    sizes = {"layers_0": (3, 4), "layers_1": (4, 2)}
    params, average = (
        {name: {"kernel": jnp.zeros(size), "bias": jnp.zeros(size[1])} for name, size in sizes.items()} for _ in "12"
    )
    state = AveragedState.create(apply_fn=None, params=params, ema_params=average, tx=optax.adamw(0.1))
    target = {
        "live": state,
        "abstract": jax.eval_shape(lambda: state),
        "captured": ptc_jax.capture(state=state, rng=False),
    }[form]
    tree = captured(model, optimizer)
    with pytest.raises(ptc.ConversionError) as caught:
        convert.plan(tree, target)
    assert len(caught.value.missing) == 4
    assert all("ema_params" in str(path) for path in caught.value.missing)
    assert not caught.value.mismatched
    assert not caught.value.unused
    converted = convert.plan(tree, target, rules=[convert.Waive(missing="ema_params/**")]).apply(tree).tree
    found = converted["state"]["leaves"] if form == "captured" else {"opt_state": converted.opt_state}
    moments = jax.tree.leaves(found["opt_state"])
    assert any(np.array_equal(each, optimizer.state[model[0].weight]["exp_avg"].numpy().T) for each in moments)


def test_live_states_are_found_as_captured_ones():
    model, optimizer = trained_dense()
    variables = Dense().init(jax.random.key(0), jnp.zeros((1, 3)))
    state = TrainState.create(apply_fn=Dense().apply, params=variables["params"], tx=optax.adamw(0.1))
    tree = captured(model, optimizer)
    live = planned(
        tree,
        {"state": {"params": state.params, "opt_state": state.opt_state, "step": np.int64(0)}},
        layout=DENSE,
        target_at="state/params",
    )
    fits(live)
    kept = planned(tree, ptc_jax.capture(state=state, rng=False), layout=DENSE, target_at="state/leaves/params")
    assert [entry.sources for entry in live.entries] == [entry.sources for entry in kept.entries]


def test_an_abstract_target_is_planned_as_one_with_values():
    model, optimizer = trained()
    params = to_jax(values(model))
    tx = optax.adam(0.1)
    abstract = jax.eval_shape(lambda: {"params": params, "opt": tx.init(params)})
    concrete = {"params": params, "opt": tx.init(params)}
    tree = captured(model, optimizer)
    assert planned(tree, abstract).entries == planned(tree, concrete).entries


def test_an_nnx_optimizer_takes_moments_and_its_step():
    class Module(nnx.Module):
        def __init__(self, rngs):
            self.bn = nnx.BatchNorm(3, rngs=rngs, param_dtype=jnp.float64)
            self.out = nnx.Linear(3, 2, rngs=rngs, param_dtype=jnp.float64)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

    module = Module(nnx.Rngs(0))
    nnx_optimizer = nnx.Optimizer(module, optax.adamw(0.1), wrt=nnx.Param)
    model, optimizer = trained_dense()
    tree, jax_tree = captured(model, optimizer), ptc_jax.capture(model=module, optimizer=nnx_optimizer, rng=False)
    plan = planned(tree, jax_tree, layout=DENSE, target_at="model/leaves")
    fits(plan)
    new = replaced(jax_tree, {path: np.asarray(array) for path, array in moved(plan, tree).items()})
    ptc_jax.restore_into(new, model=module, optimizer=nnx_optimizer, rng=False)
    assert int(nnx_optimizer.step[...]) == 4
    assert nnx_optimizer.step[...].dtype == np.uint32
    found = nnx.to_pure_dict(nnx.state(nnx_optimizer))["opt_state"][0]
    assert np.array_equal(found["mu"]["out"]["kernel"], optimizer.state[model.out.weight]["exp_avg"].T)
    assert not any("rngs" in str(path) for entry in plan.entries for path in entry.targets)


def test_variables_of_nnx_are_their_values():
    module = nnx.Linear(3, 2, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    nnx_optimizer = nnx.Optimizer(module, optax.chain(optax.adam(optax.constant_schedule(0.1))), wrt=nnx.Param)
    model = nn.Linear(3, 2, dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters())
    step_torch(model, optimizer, [{"weight": np.ones((2, 3)), "bias": np.ones(2)}])
    layout = {"weight": (["kernel/value"], (Permute((1, 0)),)), "bias": (["bias/value"], ())}
    jax_tree = {"model": nnx.state(module), "optimizer": nnx.state(nnx_optimizer)}
    for stepped in (False, True):
        plan = planned(captured(model, optimizer), jax_tree, layout=layout, target_at="model", stepped=stepped)
        fits(plan)
        counts = [str(path) for entry in plan.entries if entry.quantity == "count" for path in entry.targets]
        assert counts == [
            "optimizer/.opt_state/0/1/count/.value",
            "optimizer/.step/.value",
            "optimizer/.opt_state/0/0/count/.value",
        ]


def test_an_nnx_optimizer_without_states_takes_the_step_of_the_training():
    module = nnx.Linear(3, 2, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    nnx_optimizer = nnx.Optimizer(module, optax.sgd(0.1), wrt=nnx.Param)
    model = nn.Linear(3, 2, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters())
    layout = {"weight": (["kernel"], (Permute((1, 0)),)), "bias": (["bias"], ())}
    jax_tree = ptc_jax.capture(model=module, optimizer=nnx_optimizer, rng=False)
    without = planned(captured(model, optimizer), jax_tree, layout=layout, target_at="model/leaves")
    assert list(map(str, without.missing)) == ["optimizer/leaves/step"]
    assert any("capture(step=…)" in note for note in without.notes)
    tree = ptc_torch.capture(model=model, optimizer=optimizer, step=12, rng=False)
    plan = planned(tree, jax_tree, layout=layout, target_at="model/leaves")
    fits(plan)
    assert {str(path): int(array) for path, array in moved(plan, tree).items()} == {"optimizer/leaves/step": 12}


def test_moments_of_equinox_are_modules():
    class Module(eqx.Module):
        layers: list
        name: str = eqx.field(static=True)

    module = Module(
        [
            eqx.nn.Linear(3, 3, key=jax.random.key(0), dtype=jnp.float64),
            eqx.nn.Linear(3, 2, key=jax.random.key(1), dtype=jnp.float64),
        ],
        "x",
    )
    state = optax.rmsprop(0.1, centered=True, momentum=0.9).init(eqx.filter(module, eqx.is_array))
    model = nn.Sequential(nn.Linear(3, 3, dtype=torch.float64), nn.Linear(3, 2, dtype=torch.float64))
    optimizer = torch.optim.RMSprop(model.parameters(), centered=True, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, dtype=parameter.dtype)
    optimizer.step()
    tree = captured(model, optimizer)
    for jax_tree, at in (
        (ptc_jax.capture(model=module, opt=state, rng=False), "model/leaves/layers"),
        ({"model": module, "opt": state}, "model/.layers"),
    ):
        plan = planned(tree, jax_tree, layout=EQUINOX, target_at=at, waive=["late-trace"])
        fits(plan)
        assert sum(entry.quantity == "first moment" for entry in plan.entries) == 8
        assert sum(entry.quantity == "second moment" for entry in plan.entries) == 4


# How torch's states come.


def forms(model, optimizer):
    named = type(optimizer)(model.named_parameters(), lr=0.1)
    named.load_state_dict(optimizer.state_dict())
    numbered = optimizer.state_dict()
    for group in numbered["param_groups"]:
        group.pop("param_names", None)
    names = [name for name, _ in model.named_parameters()]
    by_name = {
        "state": {names[key]: value for key, value in numbered["state"].items()},
        "param_groups": [
            {**group, "params": [names[key] for key in group["params"]]} for group in numbered["param_groups"]
        ],
    }
    state = model.state_dict()
    return {
        "captured": (captured(model, optimizer), {}),
        "state dict with names": ({"model": {"state": state}, "optimizer": named.state_dict()}, {}),
        "state dict with numbers": ({"model": {"state": state}, "optimizer": numbered}, {"parameter_order": names}),
        "by name, as torch.distributed does": ({"model": {"state": state}, "optimizer": by_name}, {}),
        "captured alone": (
            {"model": {"state": state}, "optimizer": ptc_torch.capture(o=optimizer, rng=False)["o"]},
            {"parameter_order": names},
        ),
    }


FORMS = [
    "captured",
    "state dict with names",
    "state dict with numbers",
    "by name, as torch.distributed does",
    "captured alone",
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad, torch.optim.RMSprop, torch.optim.Adadelta, torch.optim.Adamax, torch.optim.RAdam])  # fmt: skip
def test_every_form_of_a_state_gives_the_same(cls, form):
    options = {"momentum": 0.9} if cls in {torch.optim.SGD, torch.optim.RMSprop} else {}
    model, optimizer = trained(cls, **options)
    tree, given_options = forms(model, optimizer)[form]
    tx = transformation(recipe_of(f"torch.optim.{cls.__name__}", options))
    plan, found = plan_for(tx, model, optimizer, tree=tree, **given_options)
    fits(plan)
    _, wanted = plan_for(tx, model, optimizer)
    assert found.keys() == wanted.keys()
    assert all(same_bits(found[path], wanted[path]) for path in wanted)
    assert plan.recipes == (recipe_of(f"torch.optim.{cls.__name__}", optimizer.param_groups[0]),)


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_is_planned_without_reading_its_moments(tmp_path, form):
    model, optimizer = trained()
    tree, given_options = forms(model, optimizer)[form]
    ptc.save(tree, tmp_path / "run.ptck")
    with ptc.open(tmp_path / "run.ptck") as checkpoint:
        plan, found = plan_for(optax.adam(0.1), model, optimizer, tree=checkpoint.tree, **given_options)
        fits(plan)
        assert found["opt/leaves/0/count"] == 3


def test_numbered_parameters_need_their_names():
    model, optimizer = trained()
    tree, _ = forms(model, optimizer)["state dict with numbers"]
    plan, _ = plan_for(optax.adam(0.1), model, optimizer, tree=tree)
    assert any("param_names" in problem and "parameter_order" in problem for problem in plan.problems)
    plan, _ = plan_for(optax.adam(0.1), model, optimizer, tree=tree, parameter_order=["out.bias"])
    assert any("parameter_order names 1" in problem for problem in plan.problems)
    plan, _ = plan_for(optax.adam(0.1), model, optimizer, tree=tree, parameter_order=["a", "b", "c", "out.bias"])
    assert any("a is no parameter of the model" in problem for problem in plan.problems)


def test_names_are_found_without_those_of_wrappers():
    model, optimizer = trained()
    tree, _ = forms(model, optimizer)["by name, as torch.distributed does"]
    tree["optimizer"]["param_groups"][0]["params"] = [f"module.{name}" for name in LAYOUT]
    tree["optimizer"]["state"] = {f"module.{key}": value for key, value in tree["optimizer"]["state"].items()}
    plan, _ = plan_for(optax.adam(0.1), model, optimizer, tree=tree)
    fits(plan)


def test_the_class_of_a_state_dict_is_told_by_what_it_holds_or_not_at_all():
    model, optimizer = trained()
    tree, _ = forms(model, optimizer)["by name, as torch.distributed does"]
    plan, _ = plan_for(optax.adam(0.1), model, optimizer, tree=tree)
    assert any("taken for torch.optim.Adam" in note for note in plan.notes)
    group = tree["optimizer"]["param_groups"][0]
    group.pop("decoupled_weight_decay")
    group["weight_decay"] = 0.1
    plan, _ = plan_for(optax.adam(0.1), model, optimizer, tree=tree)
    assert any("whether its weight decay is decoupled" in note for note in plan.notes)
    for state in tree["optimizer"]["state"].values():
        state["another"] = torch.zeros(3)
    plan, _ = plan_for(optax.adam(0.1), model, optimizer, tree=tree)
    assert any("nothing tells which optimizer" in problem for problem in plan.problems)


CLASSES = ["SGD", "Adam", "AdamW", "Adagrad", "RMSprop", "Adadelta", "Adamax", "RAdam"]
UNCONVERTED = ["NAdam", "LBFGS", "Adafactor", "Muon", "Rprop", "ASGD"]


@pytest.mark.parametrize("name", [*CLASSES, *UNCONVERTED])
def test_the_class_is_told_from_the_options_of_torch_and_no_others(name):
    optimizer = getattr(torch.optim, name)([nn.Parameter(torch.ones(2, 2))], lr=0.1)
    # What schedulers add, and people, changes no update.
    cycles = bool(optimizer.defaults.keys() & {"momentum", "betas"})
    torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 10, cycle_momentum=cycles)
    torch.optim.swa_utils.SWALR(optimizer, 0.1)
    options = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"} | {"name": "all"}
    assert options.keys() >= {"initial_lr", "max_lr", "swa_lr"}
    keys = frozenset({"Adamax": ["step", "exp_avg", "exp_inf"]}.get(name, []))
    assert kind_of(options, keys) == f"torch.optim.{name}"
    assert foreign_options(options, keys) == ()
    options |= {"caution": False, "corrected_weight_decay": False}
    assert kind_of(options, keys) is None
    assert foreign_options(options, keys) == ("caution", "corrected_weight_decay")


@pytest.mark.parametrize("which", [slice(None), slice(1, 2)])
def test_a_state_dict_with_options_of_another_class_is_taken_for_no_optimizer_of_torch(which):
    model, _ = trained()
    optimizer = torch.optim.SGD(
        [{"params": [(name, parameter)]} for name, parameter in model.named_parameters()], momentum=0.9
    )
    step_torch(model, optimizer, gradients(2))
    state = optimizer.state_dict()
    tree = {"model": {"state": model.state_dict()}, "optimizer": state}
    plan, _ = plan_for(optax.sgd(0.1, momentum=0.9), model, optimizer, tree=tree)
    fits(plan)
    for group in state["param_groups"][which]:
        group.update(caution=True)
    plan, _ = plan_for(optax.sgd(0.1, momentum=0.9), model, optimizer, tree=tree)
    (problem,) = [each for each in plan.problems if "nothing tells which optimizer" in each]
    assert "its options 'caution' are none of torch's" in problem
    assert plan.entries == plan.recipes == ()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kept", [False, True])
def test_an_optimizer_without_states_is_given_those_of_optax(tmp_path, form, kept):
    model, optimizer = trained()
    params = to_jax(values(model))
    state = optax.adam(0.1).init(params)
    tree = captured(model, optimizer)
    jax_tree = captured_jax(params, state)
    plan = planned(tree, jax_tree)
    jax_tree = replaced(jax_tree, {path: np.asarray(array) for path, array in moved(plan, tree).items()})

    fresh, given_options = forms(model, torch.optim.Adam(model.named_parameters()))[form]
    ptc.save(fresh, tmp_path / "fresh.ptck")
    with ptc.open(tmp_path / "fresh.ptck") as checkpoint:
        given_tree = checkpoint.tree if kept else fresh
        plan = planned(given_tree, jax_tree, stepped=True, **given_options)
        fits(plan)
        assert len(plan.new) == 12
        room = extended(given_tree, plan.new)
        assert given_tree["optimizer"]["state"] == {}
        arrays = moved(plan, jax_tree, back=True)
        assert arrays.keys() == {leaf.path for leaf in plan.new}
        wanted, _ = forms(model, optimizer)[form]
        for leaf in plan.new:
            assert (arrays[leaf.path].shape, arrays[leaf.path].dtype) == (leaf.shape, leaf.dtype)
            assert same_bits(arrays[leaf.path], np.asarray(descend(wanted, leaf.path)))
            assert isinstance(descend(room, leaf.path), ptc.ArrayRef if kept else torch.Tensor)


def test_a_state_in_what_cannot_be_changed_has_no_room():
    leaf = NewLeaf(Path.parse("a/.state/w"), (), np.dtype(np.float32), Path.parse("w"))
    with pytest.raises(ptc.StructureMismatchError, match="cannot be changed"):
        extended({"a": {}, "w": np.zeros(2)}, [leaf])
    leaf = NewLeaf(Path.parse("a[1]/w"), (), np.dtype(np.float32), Path.parse("w"))
    assert extended({"a": ({}, {}), "w": np.zeros(2)}, [leaf])["a"] == ({}, {"w": np.float32(0)})


# Groups, and parameters that are not all alike.


def grouped(**second):
    model = Net()
    named = dict(model.named_parameters())
    first = [(name, named[name]) for name in LAYOUT if name.startswith("attention")]
    others = [(name, named[name]) for name in LAYOUT if name.startswith("out")]
    optimizer = torch.optim.AdamW([{"params": first}, {"params": others, **second}], lr=0.01)
    step_torch(model, optimizer, gradients(10))
    return model, optimizer


def labels(params):
    return {key: dict.fromkeys(value, "out" if key == "out" else "attention") for key, value in params.items()}


def test_groups_are_labels_of_multi_transform():
    model, optimizer = grouped(lr=0.05, weight_decay=0.3, betas=(0.5, 0.9))
    tree = captured(model, optimizer)
    params = to_jax(values(model))
    probe = planned(tree, captured_jax(params, optax.sgd(0.1).init(params)))
    assert [recipe.of for recipe in probe.recipes] == [
        "optimizer, group 0 (model/attention.weight, model/attention.bias)",
        "optimizer, group 1 (model/out.weight, model/out.bias)",
    ]
    tx = optax.multi_transform(dict(zip(("attention", "out"), map(transformation, probe.recipes))), labels)
    state = tx.init(params)
    jax_tree = captured_jax(params, state)
    plan = planned(tree, jax_tree)
    fits(plan)
    new = replaced(jax_tree, {path: np.asarray(array) for path, array in moved(plan, tree).items()})
    state = ptc_jax.restore_into(new, params=params, opt=state, rng=False)["opt"]
    grads = gradients(20, seed=8)
    params, _ = step_optax(tx, params, state, grads)
    step_torch(model, optimizer, grads)
    assert apart(values(model), to_torch(params)) <= 1e-12


def test_groups_that_differ_are_not_one_state():
    model, optimizer = grouped(lr=0.05)
    plan, _ = plan_for(optax.adamw(0.1), model, optimizer)
    assert any("lr differ" in problem and "multi_transform" in problem for problem in plan.problems)
    plan, _ = plan_for(optax.adamw(0.1), model, optimizer, waive=["groups"])
    fits(plan)
    assert any("lr" in note for note in plan.notes)


def test_names_of_groups_and_rates_of_schedulers_make_no_difference():
    model, optimizer = grouped(name="one", max_lr=0.4)
    plan, _ = plan_for(optax.adamw(0.1), model, optimizer)
    fits(plan)


def test_groups_that_differ_in_weight_decay_are_for_a_mask():
    model, optimizer = grouped(weight_decay=0.3)
    plan, _ = plan_for(optax.adamw(0.1, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)), model, optimizer)
    fits(plan)
    assert any("mask" in note for note in plan.notes)


def test_one_injected_rate_cannot_be_that_of_two_groups():
    model, optimizer = grouped(lr=0.05)
    plan, _ = plan_for(optax.inject_hyperparams(optax.adamw)(0.1), model, optimizer, waive=["groups"])
    assert any("learning_rate differ: 0.01, 0.05" in problem for problem in plan.problems)


def test_one_injected_rate_cannot_be_that_of_two_optimizers():
    model = Net()
    first = torch.optim.SGD(model.attention.parameters(), lr=0.1, momentum=0.5)
    second = torch.optim.SGD(model.out.parameters(), lr=0.1, momentum=0.5, dampening=0.5)
    tree = ptc_torch.capture(model=model, first=first, second=second, step=0, rng=False)
    plan, _ = plan_for(optax.inject_hyperparams(optax.sgd)(0.1, momentum=0.5), model, None, tree=tree)
    assert any("options in torch are not the same ones" in problem for problem in plan.problems)


def test_parameters_of_two_groups_do_not_become_one():
    model = Net()
    optimizer = torch.optim.Adam(
        [
            {"params": [("out.weight", model.out.weight)], "lr": 0.1},
            {"params": [("out.bias", model.out.bias)], "lr": 0.2},
        ]
    )
    layout = {("out.weight", "out.bias"): (["both"], ())}
    source = inventory(captured(model, optimizer), "model/state", "torch")
    params = {"both": jnp.zeros(9)}
    target = inventory(captured_jax(params, optax.adam(0.1).init(params)), "params", "flax")
    plan = plan_optimizers(source, target, entries(source, target, layout))
    assert any("become one parameter, and their lr differ" in problem for problem in plan.problems)


def test_two_optimizers_go_to_the_states_of_their_parameters():
    model = Net()
    adam = torch.optim.Adam(model.attention.parameters(), lr=0.1)
    sgd = torch.optim.SGD(model.out.parameters(), lr=0.1, momentum=0.9)
    for optimizer in (adam, sgd):
        step_torch(model, optimizer, gradients(2))
    tree = ptc_torch.capture(model=model, adam=adam, sgd=sgd, rng=False)
    tx = optax.multi_transform({"attention": optax.adam(0.1), "out": optax.sgd(0.1, momentum=0.9)}, labels)
    plan, found = plan_for(tx, model, None, tree=tree)
    fits(plan)
    (trace,) = [array for path, array in found.items() if path.endswith("trace/out/bias")]
    assert np.array_equal(trace, sgd.state[model.out.bias]["momentum_buffer"])


def test_a_parameter_that_never_had_a_gradient_begins_at_zero():
    model, optimizer = trained(only={"out.weight", "out.bias"})
    plan, found = plan_for(optax.adam(0.1), model, optimizer)
    fits(plan)
    assert not found["opt/leaves/0/mu/q/kernel"].any()
    assert found["opt/leaves/0/mu/out/kernel"].any()
    assert found["opt/leaves/0/count"] == 3
    assert any("torch has no exp_avg of it yet" in note for note in plan.notes)


def test_a_parameter_that_torch_does_not_optimise_begins_at_zero():
    model = Net()
    optimizer = torch.optim.Adagrad(model.out.parameters(), initial_accumulator_value=0.5)
    step_torch(model, optimizer, gradients(2))
    plan, found = plan_for(optax.adagrad(0.1), model, optimizer)
    fits(plan)
    assert set(found["opt/leaves/0/sum_of_squares/q/bias"]) == {0.5}
    assert any("torch does not optimise it" in note for note in plan.notes)


def test_what_is_masked_in_optax_is_unused():
    model, optimizer = trained()
    mask = {"q": True, "k": True, "v": True, "out": False}
    plan, _ = plan_for(optax.masked(optax.adam(0.1), mask), model, optimizer)
    assert {str(path).rpartition("/")[0] for path in plan.unused} == {
        "optimizer/state/model/out.weight",
        "optimizer/state/model/out.bias",
    }
    assert any("ScaleByAdamState" in problem for problem in plan.problems)


def test_a_part_of_a_parameter_without_a_state_is_a_problem():
    model = nn.ParameterDict({name: nn.Parameter(torch.zeros(2, dtype=torch.float64)) for name in ("a", "b")})
    optimizer = torch.optim.Adam(model.named_parameters())
    model["a"].grad = torch.ones(2, dtype=torch.float64)
    optimizer.step()
    params = {"ab": jnp.zeros(4)}
    source = inventory(captured(model, optimizer), "model/state", "torch")
    target = inventory(captured_jax(params, optax.adam(0.1).init(params)), "params", "flax")
    plan = plan_optimizers(source, target, entries(source, target, {("a", "b"): (["ab"], (Concat(0, (2, 2)),))}))
    assert any("has no exp_avg yet, and becomes one parameter" in problem for problem in plan.problems)


def merged(first, second, tx):
    """A plan where two vectors of torch, with these optimizers (None: without), become one parameter."""
    model = nn.ParameterDict({"a": nn.Parameter(torch.zeros(3).double()), "b": nn.Parameter(torch.zeros(6).double())})
    optimizers = {}
    for name, made in (("a", first), ("b", second)):
        if made is not None:
            optimizers[name] = made([(name, model[name])])
            model[name].grad = torch.ones_like(model[name])
            optimizers[name].step()
    tree = ptc_torch.capture(model=model, **{f"o{name}": each for name, each in optimizers.items()}, rng=False)
    params = {"ab": jnp.zeros(9)}
    jax_tree = captured_jax(params, tx.init(params))
    return planned(tree, jax_tree, layout={("a", "b"): (["ab"], (Concat(0, (3, 6)),))})


def test_parameters_that_become_one_have_one_optimizer():
    plan = merged(torch.optim.Adam, torch.optim.Adam, optax.adam(0.1))
    assert any("have different optimizers" in problem for problem in plan.problems)
    plan = merged(torch.optim.Adam, None, optax.adam(0.1))
    assert any("model/state/b is in no optimizer" in problem for problem in plan.problems)


def test_moments_that_do_not_come_to_the_shape_of_their_state_are_told():
    model, optimizer = trained()
    for layout in (
        {"out.bias": (["q/kernel"], ())},
        {"out.bias": (["q/kernel"], (Split(0, (2, 2)),))},
    ):
        plan, _ = plan_for(optax.adam(0.1), model, optimizer, layout=layout)
        assert any("[3]" in problem for problem in plan.problems)


def test_a_parameter_in_two_optimizers_is_a_problem():
    model, optimizer = trained()
    tree = ptc_torch.capture(model=model, a=optimizer, b=torch.optim.Adam(model.parameters()), rng=False)
    plan, _ = plan_for(optax.adam(0.1), model, optimizer, tree=tree)
    assert any("model/state/out.bias is in two optimizers, a and b" in problem for problem in plan.problems)


def test_states_that_could_be_of_two_models_are_undecided():
    model, optimizer = trained()
    params = to_jax(values(model))
    one = {"w": params["q"]["bias"]}
    for second in ({"x": one, "y": one}, {"x": {"z": one}, "y": {"z": one}}):
        jax_tree = {"params": second, "opt": optax.adam(0.1).init(one)}
        layout = {"out.bias": (["x/w" if "w" in second["x"] else "x/z/w"], (Pad(((0, 0),)),))}
        plan = planned(captured(model, optimizer), jax_tree, layout=layout)
        assert any("could be those of parameters at" in problem for problem in plan.problems)


def test_a_step_that_a_count_cannot_hold_is_a_problem():
    model, optimizer = trained()
    for state in optimizer.state.values():
        state["step"] = torch.tensor(2.0**40)
    plan, _ = plan_for(optax.adam(0.1), model, optimizer)
    assert any("int32, and cannot hold" in problem for problem in plan.problems)
    optimizer.state[model.out.bias]["step"] = 3
    plan, _ = plan_for(optax.adam(0.1), model, optimizer)
    assert any("differ" in problem for problem in plan.problems)


def test_steps_of_an_older_torch_are_numbers():
    model, optimizer = trained()
    for state in optimizer.state.values():
        state["step"] = 3
    plan, found = plan_for(optax.adam(0.1), model, optimizer)
    fits(plan)
    assert found["opt/leaves/0/count"] == 3
    optimizer.state[model.out.bias]["step"] = torch.tensor(3.0)
    plan, _ = plan_for(optax.adam(0.1), model, optimizer)
    assert any("several dtypes" in problem for problem in plan.problems)


# Steps.


def test_steps_that_differ_are_a_problem_with_their_values():
    model, optimizer = trained()
    step_torch(model, optimizer, gradients(2), only={"out.bias"})
    plan, _ = plan_for(optax.adam(0.1), model, optimizer)
    assert any("3 (3 parameters" in problem and "5 (1 parameters" in problem for problem in plan.problems)
    plan, found = plan_for(optax.adam(0.1), model, optimizer, waive=["steps"])
    fits(plan)
    assert found["opt/leaves/0/count"] == 3


def test_steps_that_differ_by_group_are_counts_of_their_labels():
    model, optimizer = trained()
    step_torch(model, optimizer, gradients(2), only={"out.weight", "out.bias"})
    tx = optax.multi_transform({"attention": optax.adam(0.1), "out": optax.adam(0.1)}, labels)
    plan, found = plan_for(tx, model, optimizer)
    fits(plan)
    assert sorted(int(array) for path, array in found.items() if path.endswith("count")) == [3, 5]


def test_a_saturated_step_is_noted():
    model, optimizer = trained()
    for state in optimizer.state.values():
        state["step"] = torch.tensor(float(2**24))
    plan, found = plan_for(optax.adam(0.1), model, optimizer)
    fits(plan)
    assert found["opt/leaves/0/count"] == 2**24
    assert any("2^24" in note for note in plan.notes)


def test_an_optimizer_that_has_made_no_step_begins_at_zero():
    model = Net()
    plan, found = plan_for(optax.adam(0.1), model, torch.optim.Adam(model.named_parameters()))
    fits(plan)
    assert all(not array.any() for array in found.values())


# What an operation on parameters does to moments.


def moments_of(parameters, targets, operations, tx, cls, **options):
    """What becomes of moments, where torch's `parameters` go to `targets` by these operations."""
    model = nn.ParameterDict(
        {name: nn.Parameter(torch.from_numpy(np.asarray(each))) for name, each in parameters.items()}
    )
    optimizer = cls(model.named_parameters(), **options)
    for seed, parameter in enumerate(model.values()):
        parameter.grad = torch.from_numpy(np.random.default_rng(seed).standard_normal(tuple(parameter.shape)))
    optimizer.step()
    params = {name: jnp.zeros(shape) for name, shape in targets.items()}
    tree, jax_tree = captured(model, optimizer), captured_jax(params, tx.init(params))
    plan = planned(tree, jax_tree, layout={tuple(parameters): (list(targets), operations)})
    fits(plan)
    return plan, optimizer, {str(path): array for path, array in moved(plan, tree).items()}, model


def test_moments_scale_as_gradients_do():
    for scale in (2.0, -2.0):
        plan, optimizer, found, model = moments_of(
            {"w": np.ones(3)}, {"w": (3,)}, (Affine(scale, 1.0),), optax.adam(0.1), torch.optim.Adam
        )
        state = optimizer.state[model["w"]]
        assert np.array_equal(found["opt/leaves/0/mu/w"], state["exp_avg"] / scale)
        assert np.array_equal(found["opt/leaves/0/nu/w"], state["exp_avg_sq"] / 4)
        assert any("learning rate is to be 2 times" in note for note in plan.notes)
        _, optimizer, found, model = moments_of(
            {"w": np.ones(3)}, {"w": (3,)}, (Affine(scale),), optax.adamax(0.1), torch.optim.Adamax
        )
        assert np.array_equal(found["opt/leaves/0/nu/w"], optimizer.state[model["w"]]["exp_inf"] / 2)
        _, optimizer, found, model = moments_of(
            {"w": np.ones(3)}, {"w": (3,)}, (Affine(scale),), optax.adadelta(0.1), torch.optim.Adadelta
        )
        assert np.array_equal(found["opt/leaves/1/e_x/w"], optimizer.state[model["w"]]["acc_delta"] * 4)
        assert np.array_equal(found["opt/leaves/1/e_g/w"], optimizer.state[model["w"]]["square_avg"] / 4)


@pytest.mark.parametrize("scale", [2.0, -2.0])
def test_a_scaled_parameter_goes_on_with_the_learning_rate_of_the_note(scale):
    plan, optimizer, found, model = moments_of(
        {"w": np.ones(3)},
        {"w": (3,)},
        (Affine(scale, 1.0),),
        optax.adam(0.1, eps=0.0),
        torch.optim.Adam,
        lr=0.1,
        eps=0.0,
    )
    assert any("learning rate is to be 2 times" in note for note in plan.notes)
    tx = optax.adam(0.2, eps=0.0)
    params = {"w": jnp.asarray(model["w"].detach().numpy() * scale + 1)}
    state = tx.init(params)
    state = (
        state[0]._replace(
            count=jnp.int32(1), mu={"w": found["opt/leaves/0/mu/w"]}, nu={"w": found["opt/leaves/0/nu/w"]}
        ),
        state[1],
    )
    for seed in range(10):
        grad = np.random.default_rng(seed).standard_normal(3)
        model["w"].grad = torch.from_numpy(grad.copy())
        optimizer.step()
        updates, state = tx.update({"w": jnp.asarray(grad / scale)}, state)
        params = optax.apply_updates(params, updates)
    assert float(np.abs(np.asarray(params["w"]) - (model["w"].detach().numpy() * scale + 1)).max()) <= 1e-12


def test_of_two_biases_that_are_added_either_moment_is_taken():
    plan, optimizer, found, model = moments_of(
        {"a": np.ones(3), "b": np.ones(3)}, {"bias": (3,)}, (SumPair(),), optax.adam(0.1), torch.optim.Adam
    )
    assert np.array_equal(found["opt/leaves/0/mu/bias"], optimizer.state[model["a"]]["exp_avg"])
    assert any("twice as large" in note for note in plan.notes)


def test_moments_of_padding_are_zero():
    _, _, found, _ = moments_of(
        {"w": np.ones((2, 3))}, {"w": (4, 3)}, (Pad(((0, 2), (0, 0)), 7.0),), optax.adam(0.1), torch.optim.Adam
    )
    assert not found["opt/leaves/0/mu/w"][2:].any()
    assert found["opt/leaves/0/mu/w"][:2].all()


def test_a_parameter_that_is_apart_in_jax_gives_its_moments_to_both():
    plan, _, found, _ = moments_of(
        {"w": np.ones(3)}, {"a": (3,), "b": (3,)}, (Repeat(2),), optax.adam(0.1), torch.optim.Adam
    )
    assert np.array_equal(found["opt/leaves/0/mu/a"], found["opt/leaves/0/mu/b"])
    assert any("tie them" in note for note in plan.notes)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(3, 2, dtype=torch.float64)
        self.head = nn.Linear(2, 3, bias=False, dtype=torch.float64)
        self.head.weight = self.embedding.weight


@pytest.mark.parametrize("names", [("embedding.weight", "head.weight"), ("head.weight",), ("embedding.weight",)])
def test_tied_parameters_have_one_moment(names):
    model = Tied()
    optimizer = torch.optim.Adam(model.parameters())
    model.head.weight.grad = torch.ones(3, 2, dtype=torch.float64)
    optimizer.step()
    params = {"embedding": jnp.zeros((3, 2))}
    tree, jax_tree = captured(model, optimizer), captured_jax(params, optax.adam(0.1).init(params))
    layout = {names: (["embedding"], (Flip((0,)), Tie(2)) if len(names) == 2 else (Flip((0,)),))}
    plan = planned(tree, jax_tree, layout=layout)
    fits(plan)
    found = {str(path): array for path, array in moved(plan, tree).items()}
    assert np.array_equal(found["opt/leaves/0/mu/embedding"], optimizer.state[model.head.weight]["exp_avg"].flip(0))


def test_what_is_dropped_of_the_model_is_dropped_of_its_optimizer():
    model, optimizer = trained()
    layout = {name: each for name, each in LAYOUT.items() if name != "out.bias"}
    params = to_jax(values(model))
    params["out"] = {"kernel": params["out"]["kernel"]}
    source = inventory(captured(model, optimizer), "model/state", "torch")
    target = inventory(captured_jax(params, optax.adam(0.1).init(params)), "params", "flax")
    dropped = Entry((Path.parse("model/state/out.bias"),), (), (Drop(),), "parameter", "waived")
    plan = plan_optimizers(source, target, [*entries(source, target, layout), dropped])
    fits(plan)
    gone = [entry for entry in plan.entries if not entry.targets]
    assert sorted(str(entry.sources[0]).rpartition("/")[2] for entry in gone) == ["exp_avg", "exp_avg_sq", "step"]
    assert [inverse(entry.operations) for entry in gone if entry.quantity == "count"] == [(Fill((), "float32"),)]


# What is refused.


@pytest.mark.parametrize("name", ["NAdam", "Rprop", "Adafactor", "ASGD", "SparseAdam", "LBFGS"])
def test_an_optimizer_without_counterpart_is_refused_with_the_reason(name):
    model = Net()
    cls = getattr(torch.optim, name)
    optimizer = cls(model.parameters())
    plan, _ = plan_for(optax.adam(0.1), model, optimizer)
    (problem,) = plan.problems
    assert problem.startswith(f"optimizer: torch.optim.{name} has no counterpart in optax: ")
    assert plan.entries == plan.unused == plan.missing == plan.recipes == ()
    with pytest.raises(ValueError, match="no recipe"):
        recipe_of(f"torch.optim.{name}", {})


def test_muon_is_refused_with_the_reason():
    model = nn.ParameterDict({"w": nn.Parameter(torch.zeros(2, 2))})
    params = {"w": jnp.zeros((2, 2))}
    plan = planned(
        captured(model, torch.optim.Muon(model.parameters())),
        captured_jax(params, optax.adam(0.1).init(params)),
        layout={"w": (["w"], ())},
    )
    assert "torch.optim.Muon has no counterpart" in plan.problems[0]


def test_amsgrad_is_refused_unless_it_is_waived():
    model, optimizer = trained(torch.optim.AdamW, amsgrad=True)
    plan, _ = plan_for(optax.amsgrad(0.1), model, optimizer)
    assert "Waive(check='amsgrad')" in plan.problems[0]
    assert len(plan.problems) == 1
    plan, found = plan_for(optax.amsgrad(0.1), model, optimizer, waive=["amsgrad"])
    fits(plan)
    assert np.array_equal(found["opt/leaves/0/nu_max/out/bias"], optimizer.state[model.out.bias]["max_exp_avg_sq"])
    assert any("AMSGrad" in note for note in plan.notes)
    with pytest.raises(ValueError, match="AMSGrad"):
        recipe_of("torch.optim.Adam", {"amsgrad": True})


def test_a_waiver_that_there_is_not_is_an_error():
    model, optimizer = trained()
    with pytest.raises(ValueError, match="weights cannot be waived; there is amsgrad, steps, groups"):
        plan_for(optax.adam(0.1), model, optimizer, waive=["weights"])


def test_a_dampening_of_one_is_refused():
    model, optimizer = trained(torch.optim.SGD, momentum=0.9, dampening=1.0)
    plan, _ = plan_for(optax.sgd(0.1, momentum=0.9), model, optimizer)
    assert "dampening of 1" in plan.problems[0]


def test_a_momentum_that_begins_after_the_conversion_is_noted():
    model, optimizer = trained(torch.optim.SGD, momentum=0.9, dampening=0.25)
    plan, _ = plan_for(optax.sgd(0.1, momentum=0.9), model, optimizer)
    assert any("does not damp the first gradient" in note and "0.75" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("tx", "cls", "options"),
    [
        (optax.sgd(0.1, momentum=0.9), torch.optim.Adam, {}),
        (optax.adam(0.1), torch.optim.SGD, {"momentum": 0.9}),
        (optax.amsgrad(0.1), torch.optim.Adam, {}),
        (optax.lion(0.1), torch.optim.Adam, {}),
        (optax.rmsprop(0.1, centered=True), torch.optim.RMSprop, {}),
        (optax.rmsprop(0.1, bias_correction=True), torch.optim.RMSprop, {}),
        (optax.rmsprop(0.1, bias_correction=True, centered=True), torch.optim.RMSprop, {"centered": True}),
        (optax.sgd(0.1), torch.optim.SGD, {"momentum": 0.9}),
        (optax.novograd(0.1), torch.optim.Adam, {}),
    ],
)
def test_another_optimizer_in_the_target_is_told_and_what_to_write_instead(tx, cls, options):
    model, optimizer = trained(cls, **options)
    plan, _ = plan_for(tx, model, optimizer)
    recipe = str(recipe_of(f"torch.optim.{cls.__name__}", optimizer.param_groups[0]))
    if jax.tree.leaves(tx.init(to_jax(values(model)))):
        assert any(recipe in problem for problem in plan.problems)
    assert plan.unused


def test_two_states_that_could_both_take_a_moment_are_undecided():
    model, optimizer = trained(torch.optim.SGD, momentum=0.9)
    plan, _ = plan_for(optax.chain(optax.trace(0.9), optax.trace(0.5)), model, optimizer)
    assert any("is in several states" in problem for problem in plan.problems)


def test_a_tree_without_an_optimizer_leaves_the_states_of_optax_missing():
    model, optimizer = trained()
    plan, _ = plan_for(optax.adam(0.1), model, optimizer, tree={"model": {"state": model.state_dict()}})
    assert plan.entries == plan.problems == ()
    assert len(plan.missing) == 17


def test_a_copy_of_the_parameters_is_no_state():
    model, optimizer = trained()
    params = to_jax(values(model))
    jax_tree = {
        "params": params,
        "ema": params,
        "mu": params,
        "opt": optax.adam(0.1).init(params),
        "epoch": np.int64(3),
    }
    plan = planned(captured(model, optimizer), jax_tree)
    fits(plan)
    assert all(str(path).startswith("opt") for entry in plan.entries for path in entry.targets)


@pytest.mark.parametrize("value", [None, "fast", (0.9,), float("nan"), [1]])
def test_options_that_are_none_are_told(value):
    model, optimizer = trained()
    tree = captured(model, optimizer)
    tree["optimizer"]["groups"][0]["options"]["betas"] = value
    plan, _ = plan_for(optax.adam(0.1), model, optimizer, tree=tree)
    assert plan.problems[0].startswith("optimizer: its option betas is ")


@pytest.mark.parametrize(
    "damaged",
    [
        {"groups": 3},
        {"groups": [{"parameters": [["model"]], "options": {}}]},
        {"groups": [{"parameters": [["model", 3]], "options": {}}]},
        {"groups": [{}]},
        {"class": 7},
        {"state": []},
        {"state": {"model": 3}},
    ],
)
def test_what_is_no_state_of_an_optimizer_gives_no_other_error(damaged):
    model, optimizer = trained()
    tree = captured(model, optimizer)
    tree["optimizer"] = {**tree["optimizer"], **damaged}
    plan, _ = plan_for(optax.adam(0.1), model, optimizer, tree=tree)
    assert isinstance(plan.problems, tuple)
    for damaged_dict in (
        {"state": {}, "param_groups": 1},
        {"state": {}, "param_groups": [{"params": [[]]}]},
        {"state": 1, "param_groups": []},
    ):
        plan, _ = plan_for(optax.adam(0.1), model, optimizer, tree={**tree, "optimizer": damaged_dict})
        assert plan.entries == ()


# One's own.


def test_a_row_of_ones_own_adds_an_optimizer():
    class Signed(torch.optim.Optimizer):
        def step(self):
            for group in self.param_groups:
                for parameter in group["params"]:
                    mean = self.state[parameter].setdefault("mean", torch.zeros_like(parameter))
                    mean.mul_(0.9).add_(parameter.grad, alpha=0.1)

    model = Net()
    optimizer = Signed(model.parameters(), {"lr": 0.1})
    step_torch(model, optimizer, gradients(3))
    kind = captured(model, optimizer)["optimizer"]["class"]
    plan, _ = plan_for(optax.lion(0.1), model, optimizer)
    assert f"give optimizers=(*ROWS, Row({kind!r}, …))" in plan.problems[0]
    row = Row(
        kind,
        lambda _options: (State("optax.ScaleByLionState", (Slot("mean", "mu"),), counted=True),),
        lambda options: Recipe(
            (("scale_by_lion", {"b1": 0.9}), ("scale_by_learning_rate", {"learning_rate": options["lr"]}))
        ),
        step=None,
    )
    tree = ptc_torch.capture(model=model, optimizer=optimizer, step=3, rng=False)
    plan, found = plan_for(optax.lion(0.1), model, optimizer, tree=tree, rows=(*ROWS, row))
    fits(plan)
    assert found["opt/leaves/0/count"] == 3
    assert np.array_equal(found["opt/leaves/0/mu/out/bias"], optimizer.state[model.out.bias]["mean"])


# The way back, to the bit.


@given(st.data())
def test_moments_go_there_and_back_to_the_bit(data):
    rows, columns = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    parts = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    operations = [Permute((1, 0)), Flip((1,))] if data.draw(st.booleans()) else [Flip((0,)), Permute((1, 0))]
    operations.append(Split(1, tuple(parts)))
    cls, key = data.draw(
        st.sampled_from(
            [(torch.optim.Adam, "exp_avg"), (torch.optim.Adadelta, "acc_delta"), (torch.optim.Adamax, "exp_inf")]
        )
    )
    shape = (sum(parts), rows * columns)
    bits = data.draw(st.lists(st.integers(0, 2**64 - 1), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    value = np.array(bits, np.uint64).view(np.float64).reshape(shape)
    model = nn.ParameterDict({"w": nn.Parameter(torch.zeros(shape, dtype=torch.float64))})
    optimizer = cls(model.named_parameters())
    model["w"].grad = torch.ones(shape, dtype=torch.float64)
    optimizer.step()
    optimizer.state[model["w"]][key] = torch.from_numpy(value)
    params = {f"w{number}": jnp.zeros((shape[1], part)) for number, part in enumerate(parts)}
    tx = transformation(recipe_of(f"torch.optim.{cls.__name__}", {}))
    tree, jax_tree = captured(model, optimizer), captured_jax(params, tx.init(params))
    plan = planned(tree, jax_tree, layout={"w": (list(params), tuple(operations))})
    fits(plan)
    there = replaced(jax_tree, {path: np.array(array) for path, array in moved(plan, tree).items()})
    back = {path: array for path, array in moved(plan, there, back=True).items() if path[-1].key != "step"}
    assert len(back) == 2
    for path, array in back.items():
        assert same_bits(array, np.asarray(descend(tree, path)))
