"""Trainings from torch to JAX and back: the losses go on as they would have."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import linen, nnx
from flax.training.train_state import TrainState

import pytreeckpt as ptc
import pytreeckpt_jax as ptc_jax
import pytreeckpt_torch as ptc_torch
from pytreeckpt import convert
from pytreeckpt.convert.leaves import array_of, leaves_of
from pytreeckpt_jax import transformation
from tests.convert.layers_side_by_side import F64, KEY, normal, randomised, rngs
from tests.convert.test_optimizers import CASES

BEFORE, AFTER = 4, 10
X, Y = normal(6, 4), normal(6, 4, seed=2)
FEW = ["sgd nesterov", "adamw", "rmsprop all"]


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


class Torch(torch.nn.Module):
    """A square linear layer, a norm, and a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(4, 4)
        self.norm = torch.nn.LayerNorm(4)
        self.outer = torch.nn.Linear(4, 4)
        self.scale = torch.nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.outer(torch.tanh(self.norm(self.inner(x)))) * self.scale


class Linen(linen.Module):
    dtype: Any = jnp.float64

    @linen.compact
    def __call__(self, x):
        options = {"param_dtype": self.dtype}
        x = linen.LayerNorm(epsilon=1e-5, name="norm", **options)(linen.Dense(4, name="inner", **options)(x))
        x = linen.Dense(4, name="outer", **options)(jnp.tanh(x))
        return x * self.param("scale", linen.initializers.ones, (4,), self.dtype)


class Nnx(nnx.Module):
    def __init__(self):
        self.inner = nnx.Linear(4, 4, rngs=rngs(), **F64)
        self.norm = nnx.LayerNorm(4, epsilon=1e-5, rngs=rngs(), **F64)
        self.outer = nnx.Linear(4, 4, rngs=rngs(), **F64)
        self.scale = nnx.Param(jnp.ones(4))

    def __call__(self, x):
        return self.outer(jnp.tanh(self.norm(self.inner(x)))) * self.scale


class Equinox(eqx.Module):
    inner: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    outer: eqx.nn.Linear
    scale: jax.Array

    def __init__(self):
        self.inner = eqx.nn.Linear(4, 4, key=KEY)
        self.norm = eqx.nn.LayerNorm(4, dtype=jnp.float64)
        self.outer = eqx.nn.Linear(4, 4, key=KEY)
        self.scale = jnp.ones(4)

    def __call__(self, x):
        return self.outer(jnp.tanh(self.norm(self.inner(x)))) * self.scale


def begun(cls, options, parameters=torch.nn.Module.named_parameters, dtype=torch.float64):
    """A model of torch and its optimizer, after some steps."""
    model = randomised(Torch()).to(dtype).train()
    optimizer = getattr(torch.optim, cls)(parameters(model), **options)
    train(model, optimizer, BEFORE)
    return model, optimizer


def fresh(cls, options, parameters=torch.nn.Module.named_parameters):
    model = Torch().double()
    return model, getattr(torch.optim, cls)(parameters(model), **options)


def train(model, optimizer, steps):
    """The losses of the next steps in torch."""
    dtype = next(model.parameters()).dtype
    x, y = (torch.as_tensor(each, dtype=dtype) for each in (X, Y))
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def mean_square(outputs):
    return jnp.mean(jnp.square(outputs - jnp.asarray(Y, outputs.dtype)))


def recipes_of(tree):
    """What a plan for the weights alone says of the optimizer: that is how the target is made."""
    params = Linen().init(KEY, X)["params"]
    return convert.plan(tree, {"params": params}, dtype="float64").recipes


def train_state(tx, dtype=jnp.float64):
    module = Linen(dtype)
    return TrainState.create(apply_fn=module.apply, params=module.init(KEY, jnp.asarray(X, dtype))["params"], tx=tx)


def train_linen(state, steps):
    x = jnp.asarray(X, jax.tree.leaves(state.params)[0].dtype)

    @jax.jit
    def step(state):
        loss, grads = jax.value_and_grad(lambda params: mean_square(state.apply_fn({"params": params}, x)))(
            state.params
        )
        return state.apply_gradients(grads=grads), loss

    losses = []
    for _ in range(steps):
        state, loss = step(state)
        losses.append(float(loss))
    return state, losses


def apart(ours, theirs):
    """The largest difference of losses, relative to 1 + |loss|."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    return float(np.max(np.abs(ours - theirs) / (1 + np.abs(theirs))))


def bound(cls, options, optimizer):
    """By how much losses may differ: what float64 rounds, but for two optimizers with `eps` at another place.

    In those, a step of at most some 3 × lr differs by eps / √(second moment) of itself, where it is smallest.
    """
    if cls not in {"Adagrad", "RAdam"}:
        return 1e-12
    name, eps = ("sum", 1e-10) if cls == "Adagrad" else ("exp_avg_sq", 1e-8)
    least = min(float(state[name].min()) for state in optimizer.state.values())
    return 3 * options["lr"] * (AFTER + BEFORE) * eps / least**0.5


@pytest.mark.parametrize("case", CASES)
def test_a_training_goes_on_in_linen_and_comes_back(case):
    cls, options = CASES[case]
    model, optimizer = begun(cls, options)
    tree = ptc_torch.capture(model=model, optimizer=optimizer, step=BEFORE, rng=False)
    (recipe,) = recipes_of(tree)
    abstract = jax.eval_shape(lambda: train_state(transformation(recipe)))
    plan = convert.plan(tree, abstract)
    assert plan.recipes == (recipe,)
    state, residuals = plan.apply(tree)
    limit = bound(cls, options, optimizer)

    assert_comes_back(plan, state, residuals, tree)
    state, theirs = train_linen(state, AFTER)
    ours = train(model, optimizer, AFTER)
    limit = max(limit, bound(cls, options, optimizer))
    assert apart(theirs, ours) <= limit
    assert int(state.step) == BEFORE + AFTER

    other, other_optimizer = fresh(cls, options)
    target = ptc_torch.capture(model=other, optimizer=other_optimizer, step=0, rng=False)
    back = convert.plan(state, target).apply(state).tree
    assert ptc_torch.restore_into(back, model=other, optimizer=other_optimizer)["step"] == BEFORE + AFTER
    assert apart(train(other, other_optimizer, BEFORE), train(model, optimizer, BEFORE)) <= limit


def assert_comes_back(plan, made, residuals, tree):
    """The tree that a plan was applied to, to the bit: all of the model, and what the optimizer keeps."""
    back = plan.invert().apply(made, residuals=residuals).tree
    expected, found = bits(tree), bits(back)
    assert len(expected) >= len(list(tree["model"]["state"]))
    assert found == expected


def bits(tree):
    return {
        leaf.path: (array_of(leaf.value).dtype, leaf.shape, array_of(leaf.value).tobytes())
        for name in ("model", "optimizer")
        for leaf in leaves_of(tree[name]["state"])
        if leaf.shape is not None
    }


@pytest.mark.parametrize("case", FEW)
def test_a_training_goes_on_in_nnx_and_comes_back(case):
    cls, options = CASES[case]
    model, optimizer = begun(cls, options)
    tree = ptc_torch.capture(model=model, optimizer=optimizer, step=BEFORE, rng=False)
    theirs = Nnx()
    their_optimizer = nnx.Optimizer(theirs, transformation(*recipes_of(tree)), wrt=nnx.Param)
    plan = convert.plan(tree, {"model": theirs, "optimizer": their_optimizer})
    made, residuals = plan.apply(tree)
    assert_comes_back(plan, made, residuals, tree)
    nnx.update(theirs, made["model"])
    nnx.update(their_optimizer, made["optimizer"])

    @nnx.jit
    def step(module, optimizer):
        loss, grads = nnx.value_and_grad(lambda module: mean_square(module(jnp.asarray(X))))(module)
        optimizer.update(module, grads)
        return loss

    losses = [float(step(theirs, their_optimizer)) for _ in range(AFTER)]
    assert apart(losses, train(model, optimizer, AFTER)) <= 1e-12
    assert int(their_optimizer.step[...]) == BEFORE + AFTER

    captured = ptc_jax.capture(model=theirs, optimizer=their_optimizer, rng=False)
    other, other_optimizer = fresh(cls, options)
    target = ptc_torch.capture(model=other, optimizer=other_optimizer, step=0, rng=False)
    back = convert.plan(captured, target).apply(captured).tree
    ptc_torch.restore_into(back, model=other, optimizer=other_optimizer)
    assert apart(train(other, other_optimizer, BEFORE), train(model, optimizer, BEFORE)) <= 1e-12


@pytest.mark.parametrize("case", FEW)
def test_a_training_goes_on_in_equinox_and_comes_back(case):
    cls, options = CASES[case]
    model, optimizer = begun(cls, options)
    tree = ptc_torch.capture(model=model, optimizer=optimizer, step=BEFORE, rng=False)
    tx = transformation(*recipes_of(tree))
    module = Equinox()
    target = {"model": module, "opt_state": tx.init(eqx.filter(module, eqx.is_array))}
    plan = convert.plan(tree, target)
    made, residuals = plan.apply(tree)
    assert_comes_back(plan, made, residuals, tree)

    @eqx.filter_jit
    def step(module, state):
        loss, grads = eqx.filter_value_and_grad(lambda module: mean_square(jax.vmap(module)(jnp.asarray(X))))(module)
        updates, state = tx.update(grads, state, eqx.filter(module, eqx.is_array))
        return eqx.apply_updates(module, updates), state, loss

    module, state, losses = made["model"], made["opt_state"], []
    for _ in range(AFTER):
        module, state, loss = step(module, state)
        losses.append(float(loss))
    assert apart(losses, train(model, optimizer, AFTER)) <= 1e-12

    source = {"model": module, "opt_state": state}
    other, other_optimizer = fresh(cls, options)
    target = ptc_torch.capture(model=other, optimizer=other_optimizer, rng=False)
    back = convert.plan(source, target).apply(source).tree
    ptc_torch.restore_into(back, model=other, optimizer=other_optimizer)
    assert apart(train(other, other_optimizer, BEFORE), train(model, optimizer, BEFORE)) <= 1e-12


def test_an_optimizer_that_counts_no_steps_needs_to_be_told_them():
    model, optimizer = begun(*CASES["sgd momentum"])
    tree = ptc_torch.capture(model=model, optimizer=optimizer, rng=False)
    target = train_state(transformation(*recipes_of(tree)))
    with pytest.raises(ptc.ConversionError) as caught:
        convert.plan(tree, target)
    assert len(caught.value.missing) == 1
    assert "step" in caught.value.missing[0]
    state = convert.plan(tree, target, rules=[convert.Waive(missing="step")]).apply(tree).tree
    assert int(state.step) == 0
    assert apart(train_linen(state, AFTER)[1], train(model, optimizer, AFTER)) <= 1e-12


def test_what_an_abstract_target_is_not_given_is_said():
    model, optimizer = begun(*CASES["sgd"])
    tree = ptc_torch.capture(model=model, optimizer=optimizer, rng=False)
    tx = transformation(*recipes_of(tree))
    plan = convert.plan(tree, jax.eval_shape(lambda: train_state(tx)))
    assert "abstract in the target, and left so: .step" in plan.notes


def groups(model):
    """Weights with a decay, and all else without and at another rate."""
    named = list(model.named_parameters())
    return [
        {"params": [each for each in named if each[0].endswith("r.weight")], "weight_decay": 0.1},
        {"params": [each for each in named if not each[0].endswith("r.weight")], "weight_decay": 0.0, "lr": 3e-3},
    ]


def labelled(params):
    return jax.tree_util.tree_map_with_path(
        lambda path, _leaf: "decayed" if path[-1].key == "kernel" else "others", params
    )


def test_groups_of_parameters_are_labels_of_a_multi_transform():
    model, optimizer = begun("AdamW", {"lr": 1e-2}, groups)
    tree = ptc_torch.capture(model=model, optimizer=optimizer, rng=False)
    decayed, others = recipes_of(tree)
    assert "group 0" in decayed.of
    assert "group 1" in others.of
    tx = optax.multi_transform({"decayed": transformation(decayed), "others": transformation(others)}, labelled)
    plan = convert.plan(tree, jax.eval_shape(lambda: train_state(tx)))
    state, residuals = plan.apply(tree)
    assert_comes_back(plan, state, residuals, tree)
    state, theirs = train_linen(state, AFTER)
    assert apart(theirs, train(model, optimizer, AFTER)) <= 1e-12
    other, other_optimizer = fresh("AdamW", {"lr": 1e-2}, groups)
    target = ptc_torch.capture(model=other, optimizer=other_optimizer, rng=False)
    back = convert.plan(state, target).apply(state).tree
    ptc_torch.restore_into(back, model=other, optimizer=other_optimizer)
    assert apart(train(other, other_optimizer, BEFORE), train(model, optimizer, BEFORE)) <= 1e-12


def test_groups_that_differ_do_not_fit_one_state():
    model, optimizer = begun("AdamW", {"lr": 1e-2}, groups)
    tree = ptc_torch.capture(model=model, optimizer=optimizer, rng=False)
    target = jax.eval_shape(lambda: train_state(optax.adamw(1e-2)))
    with pytest.raises(ptc.ConversionError, match="multi_transform"):
        convert.plan(tree, target)
    plan = convert.plan(tree, target, rules=[convert.Waive(check="groups")])
    assert any("differ in torch in lr" in note for note in plan.notes)


def without_norm(model):
    for parameter in model.norm.parameters():
        parameter.requires_grad_(False)
    return [(name, each) for name, each in model.named_parameters() if each.requires_grad]


def test_frozen_parameters_have_no_moments_on_either_side():
    model, optimizer = begun("AdamW", {"lr": 1e-2}, without_norm)
    tree = ptc_torch.capture(model=model, optimizer=optimizer, rng=False)

    def labels(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _leaf: "frozen" if path[0].key == "norm" else "trained", params
        )

    tx = optax.multi_transform({"trained": transformation(*recipes_of(tree)), "frozen": optax.set_to_zero()}, labels)
    plan = convert.plan(tree, jax.eval_shape(lambda: train_state(tx)))
    state, residuals = plan.apply(tree)
    assert_comes_back(plan, state, residuals, tree)
    before = jax.tree.leaves(state.params["norm"])
    state, theirs = train_linen(state, AFTER)
    assert apart(theirs, train(model, optimizer, AFTER)) <= 1e-12
    assert all(np.array_equal(a, b) for a, b in zip(before, jax.tree.leaves(state.params["norm"])))


class Lazy(Torch):
    """With a layer that has no gradient yet."""

    def __init__(self):
        super().__init__()
        self.later = torch.nn.Linear(4, 4)


def test_a_parameter_that_never_had_a_gradient_begins_with_moments_of_zero():
    model = randomised(Lazy()).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    train(model, optimizer, BEFORE)
    tree = ptc_torch.capture(model=model, optimizer=optimizer, rng=False)
    params = Linen().init(KEY, X)["params"]
    params["later"] = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
    recipe = convert.plan(tree, {"params": params}).recipes[0]
    state = TrainState.create(apply_fn=Linen().apply, params=params, tx=transformation(recipe))
    plan = convert.plan(tree, state)
    assert any("begins at 0" in note and "later" in note for note in plan.notes)
    made = plan.apply(tree).tree
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(made.opt_state[0].mu["later"]))
    made, theirs = train_linen(made, AFTER)
    assert apart(theirs, train(model, optimizer, AFTER)) <= 1e-12


def test_in_float32_losses_go_on_within_its_rounding():
    cls, options = CASES["adamw"]
    model, optimizer = begun(cls, options, dtype=torch.float32)
    tree = ptc_torch.capture(model=model, optimizer=optimizer, rng=False)
    (recipe,) = convert.plan(tree, {"params": Linen(jnp.float32).init(KEY, X)["params"]}).recipes
    plan = convert.plan(tree, jax.eval_shape(lambda: train_state(transformation(recipe), jnp.float32)))
    state, residuals = plan.apply(tree)
    assert_comes_back(plan, state, residuals, tree)
    state, theirs = train_linen(state, AFTER)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.float32)}
    # Each step rounds some tens of numbers in a row, by 6e-8 of each; Adam's steps are as long as its gradients are uncertain.
    assert apart(theirs, train(model, optimizer, AFTER)) <= AFTER * 32 * float(np.finfo(np.float32).eps)


def test_a_step_of_the_optimizer_is_compared_by_verify():
    cls, options = CASES["adamw"]
    model, optimizer = begun(cls, options)
    tree = ptc_torch.capture(model=model, optimizer=optimizer, rng=False)
    tx = transformation(*recipes_of(tree))
    target = train_state(tx)
    plan = convert.plan(tree, target)

    def apply(state, inputs):
        return state.apply_fn({"params": state.params}, jnp.asarray(inputs))

    def stepper(tx):
        def step(state, inputs):
            grads = jax.grad(lambda params: jnp.sum(jnp.square(state.apply_fn({"params": params}, inputs))) / 2)(
                state.params
            )
            return state.replace(tx=tx).apply_gradients(grads=grads)

        return step

    ours = ptc_torch.computes(model=model, optimizer=optimizer)
    report = plan.verify(ours, ptc_jax.computes(apply, step=stepper(tx)), tree, X)
    assert [level.outcome for level in report.levels] == ["equal", "close", "close", "close"], str(report)
    # Another learning rate is seen in the step alone.
    report = plan.verify(ours, ptc_jax.computes(apply, step=stepper(optax.adamw(1.1e-2))), tree, X)
    assert [level.outcome for level in report.levels] == ["equal", "close", "close", "different"], str(report)
    assert not report.ok


def test_a_checkpoint_on_disk_goes_on_and_one_of_jax_comes_back(tmp_path):
    cls, options = CASES["adamw"]
    model, optimizer = begun(cls, options)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    ptc_torch.save_training(tmp_path / "torch.ptck", model=model, optimizer=optimizer, scheduler=scheduler, step=BEFORE)
    with ptc.open(tmp_path / "torch.ptck") as checkpoint:
        (recipe,) = recipes_of(checkpoint)
        abstract = jax.eval_shape(lambda: train_state(transformation(recipe)))
        plan = convert.plan(checkpoint, abstract)
        state = plan.apply(checkpoint).tree
    assert any(note.startswith("left alone:") and "scheduler" in note for note in plan.notes)
    state, theirs = train_linen(state, AFTER)
    assert apart(theirs, train(model, optimizer, AFTER)) <= 1e-12
    ptc_jax.save_training(tmp_path / "jax.ptck", state=state)
    other, other_optimizer = fresh(cls, options)
    with ptc.open(tmp_path / "jax.ptck") as checkpoint:
        target = ptc_torch.capture(model=other, optimizer=other_optimizer, rng=False)
        back = convert.plan(checkpoint, target).apply(checkpoint).tree
    ptc_torch.restore_into(back, model=other, optimizer=other_optimizer)
    assert apart(train(other, other_optimizer, BEFORE), train(model, optimizer, BEFORE)) <= 1e-12


def test_state_dicts_that_nobody_annotated_go_on_with_declared_kinds():
    cls, options = CASES["adamw"]
    model, optimizer = begun(cls, options, torch.nn.Module.parameters)
    source = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    kinds = [convert.Kind("inner", "Linear"), convert.Kind("outer", "Linear"), convert.Kind("norm", "LayerNorm")]
    order = [name for name, _ in model.named_parameters()]
    target = jax.eval_shape(lambda: train_state(optax.adamw(1e-2, weight_decay=1e-2)))
    plan = convert.plan(source, target, rules=kinds, parameter_order=order)
    _, theirs = train_linen(plan.apply(source).tree.replace(tx=optax.adamw(1e-2, weight_decay=1e-2)), AFTER)
    assert apart(theirs, train(model, optimizer, AFTER)) <= 1e-12


@pytest.mark.parametrize(
    ("cls", "reason"),
    [("NAdam", "momentum_decay"), ("Rprop", "gradient"), ("ASGD", "averaged"), ("Adafactor", "factor")],
)
def test_an_optimizer_without_a_counterpart_is_refused_with_the_reason(cls, reason):
    model, optimizer = begun(cls, {"lr": 1e-2})
    tree = ptc_torch.capture(model=model, optimizer=optimizer, rng=False)
    target = jax.eval_shape(lambda: train_state(optax.adam(1e-2)))
    with pytest.raises(ptc.ConversionError, match=reason):
        convert.plan(tree, target)
    # The weights alone are another matter.
    assert convert.plan(tree, target.params).entries


def test_amsgrad_is_refused_unless_it_is_waived():
    model, optimizer = begun("AdamW", {"lr": 1e-2, "amsgrad": True})
    tree = ptc_torch.capture(model=model, optimizer=optimizer, rng=False)
    tx = optax.chain(optax.scale_by_amsgrad(), optax.add_decayed_weights(1e-2), optax.scale_by_learning_rate(1e-2))
    target = jax.eval_shape(lambda: train_state(tx))
    with pytest.raises(ptc.ConversionError, match="AMSGrad"):
        convert.plan(tree, target)
    plan = convert.plan(tree, target, rules=[convert.Waive(check="amsgrad")])
    assert any("AMSGrad" in note for note in plan.notes)
    assert np.any(plan.apply(tree).tree.opt_state[0].nu_max["outer"]["kernel"])
