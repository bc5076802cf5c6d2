"""Small trainings of every kind in JAX, which one process begins and another goes on with: run by test_jax_resume.py.

python jax_trainings.py begin FOLDER    # trains, saves, goes on; prints what came of it
python jax_trainings.py resume FOLDER   # goes on from what was saved; prints the same
"""

import hashlib
import json
import pathlib
import random
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.training.dynamic_scale import DynamicScale
from flax.training.train_state import TrainState

import pytreeckpt_jax as ptj

N_BEFORE, N_AFTER = 3, 3
WIDTH = 4


def _kernels(params):
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params)


def _labels(params):
    return jax.tree.map(lambda leaf: "kernel" if jnp.ndim(leaf) > 1 else "other", params)


OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformationExtraArgs]] = {
    "adabelief": lambda: optax.adabelief(1e-2),
    "adadelta": lambda: optax.adadelta(1e-1),
    "adafactor": lambda: optax.adafactor(1e-2, min_dim_size_to_factor=2, momentum=0.9),
    "adagrad": lambda: optax.adagrad(1e-2),
    "adam": lambda: optax.adam(1e-2),
    "adam in bfloat16": lambda: optax.adam(1e-2, mu_dtype=jnp.bfloat16),
    "adamax": lambda: optax.adamax(1e-2),
    "adamw": lambda: optax.adamw(optax.cosine_decay_schedule(1e-2, 10), weight_decay=1e-2, nesterov=True),
    "adan": lambda: optax.adan(1e-2),
    "amsgrad": lambda: optax.amsgrad(1e-2),
    "fromage": lambda: optax.fromage(1e-2),
    "lamb": lambda: optax.lamb(1e-2),
    "lars": lambda: optax.lars(1e-1, momentum=0.9),
    "lion": lambda: optax.lion(1e-3),
    "nadam": lambda: optax.nadam(1e-2),
    "noisy sgd": lambda: optax.noisy_sgd(1e-2, key=3),
    "novograd": lambda: optax.novograd(1e-2),
    "optimistic": lambda: optax.optimistic_gradient_descent(1e-2),
    "radam": lambda: optax.radam(1e-2),
    "rmsprop": lambda: optax.rmsprop(1e-2, centered=True, momentum=0.9),
    "rprop": lambda: optax.rprop(1e-2),
    "sgd": lambda: optax.sgd(1e-2, momentum=0.9, nesterov=True),
    "sm3": lambda: optax.sm3(1e-2),
    "yogi": lambda: optax.yogi(1e-2),
    "stateless": lambda: optax.sgd(1e-2),
    "muon": lambda: optax.contrib.muon(1e-2),
    "prodigy": lambda: optax.contrib.prodigy(1e-1),
    "schedule free": lambda: optax.contrib.schedule_free_adamw(1e-2),
    "apply if finite": lambda: optax.apply_if_finite(optax.adam(1e-2), 2),
    "chain": lambda: optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.add_noise(0.1, 0.5, key=3),
        optax.scale_by_adam(),
        optax.add_decayed_weights(1e-2, mask=_kernels),
        optax.scale_by_schedule(optax.linear_schedule(-1e-2, -1e-3, 5)),
        optax.ema(0.9),
    ),
    "inject hyperparams": lambda: optax.inject_hyperparams(optax.adamw)(
        learning_rate=optax.exponential_decay(1e-2, 1, 0.9), weight_decay=1e-2
    ),
    "masked": lambda: optax.chain(optax.masked(optax.sgd(1e-2, momentum=0.9), _kernels), optax.scale(0.5)),
    "multi steps": lambda: optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation(),
    "partition": lambda: optax.partition(
        {"kernel": optax.adam(1e-2), "other": optax.chain(optax.trace(0.9), optax.scale(-1e-2))}, _labels
    ),
    "reduce on plateau": lambda: optax.chain(
        optax.adam(1e-2), optax.contrib.reduce_on_plateau(patience=1, cooldown=1, accumulation_size=2)
    ),
}
# One of each structure: what else there is differs in numbers, and linen has it.
NNX_OPTIMIZERS = [
    *("adam", "adafactor", "sm3", "stateless", "noisy sgd", "muon", "schedule free", "apply if finite", "chain"),
    *("inject hyperparams", "masked", "multi steps", "partition", "reduce on plateau"),
]


def batch(source: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Drawn from all of them: one of the training's own, and the global ones."""
    points = source.standard_normal((8, WIDTH), np.float32) + np.float32(np.random.standard_normal())
    return points, (points.sum(1, keepdims=True) * random.random()).astype(np.float32)


# linen


class Network(nn.Module):
    @nn.compact
    def __call__(self, points):
        points = nn.BatchNorm(use_running_average=False)(nn.Dense(WIDTH)(points))
        return nn.Dense(1)(nn.Dropout(0.3, deterministic=False)(nn.relu(points)))


class State(TrainState):
    batch_stats: Any
    key: jax.Array
    scale: DynamicScale | None = None


def _linen_loss(params, batch_stats, key, points, targets):
    variables = {"params": params, "batch_stats": batch_stats}
    out, changed = Network().apply(variables, points, rngs={"dropout": key}, mutable=["batch_stats"])
    return ((out - targets) ** 2).mean(), changed["batch_stats"]


@jax.jit
def _linen_gradients(params, batch_stats, key, points, targets):
    key, now = jax.random.split(key)
    loss = jax.value_and_grad(_linen_loss, has_aux=True)
    (value, batch_stats), gradients = loss(params, batch_stats, now, points, targets)
    return value, gradients, batch_stats, key


@jax.jit
def _linen_update(state, gradients, batch_stats, key, loss):
    updates, opt_state = state.tx.update(gradients, state.opt_state, state.params, value=loss)
    return state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
        batch_stats=batch_stats,
        key=key,
    )


def _linen_step(objects):
    state = objects["state"]
    loss, *changed = _linen_gradients(state.params, state.batch_stats, state.key, *batch(objects["source"]))
    return {**objects, "state": _linen_update(state, *changed, loss)}, loss


@jax.jit
def _scaled_update(state, points, targets):
    key, now = jax.random.split(state.key)
    loss = state.scale.value_and_grad(_linen_loss, has_aux=True)
    scale, _, (value, batch_stats), gradients = loss(state.params, state.batch_stats, now, points, targets)
    return state.apply_gradients(grads=gradients, batch_stats=batch_stats, key=key, scale=scale), value


def _scaled_step(objects):
    state, loss = _scaled_update(objects["state"], *batch(objects["source"]))
    return {**objects, "state": state}, loss


def _linen_state(tx, seed, make_key, scale=None):
    variables = Network().init({"params": jax.random.key(seed), "dropout": jax.random.key(1)}, jnp.ones((2, WIDTH)))
    key = make_key(seed + 1)
    return State.create(apply_fn=Network().apply, tx=tx, key=key, scale=scale, **variables)


# nnx


class Model(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(WIDTH, WIDTH, rngs=rngs), nnx.Linear(WIDTH, 1, rngs=rngs)])
        self.norm = nnx.BatchNorm(WIDTH, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, points):
        return self.layers[1](self.dropout(nnx.relu(self.norm(self.layers[0](points)))))


@nnx.jit
def _nnx_gradients(model, rngs, metrics, points, targets):
    noise = 0.1 * jax.random.normal(rngs.noise(), points.shape)

    def loss_of(model):
        return ((model(points + noise) - targets) ** 2).mean()

    loss, gradients = nnx.value_and_grad(loss_of)(model)
    metrics.update(loss=loss, values=targets)
    return loss, gradients


@nnx.jit
def _nnx_update(optimizer, model, gradients, loss):
    optimizer.update(model, gradients, value=loss)


def _nnx_step(objects):
    parts = [objects[name] for name in ("model", "rngs", "metrics")]
    loss, gradients = _nnx_gradients(*parts, *batch(objects["source"]))
    _nnx_update(objects["optimizer"], objects["model"], gradients, loss)
    return objects, loss


def _nnx_objects(tx, seed):
    model = Model(nnx.Rngs(seed))
    return {
        "model": model,
        "optimizer": nnx.Optimizer(model, tx, wrt=nnx.Param),
        "rngs": nnx.Rngs(seed, noise=seed + 1),
        "metrics": nnx.MultiMetric(loss=nnx.metrics.Average("loss"), values=nnx.metrics.Welford("values")),
    }


# Without Flax: parameters in a dict, and two sets of them for Lookahead.


def _plain_loss(params, key, points, targets):
    kept = jax.random.bernoulli(key, 0.7, (points.shape[0], WIDTH))
    hidden = jnp.where(kept, jnp.tanh(points @ params["layers"][0] + params["bias"]), 0)
    return ((hidden @ params["layers"][1] - targets) ** 2).mean()


_LOOKAHEAD = optax.lookahead(optax.adam(1e-2), sync_period=2, slow_step_size=0.5)


@jax.jit
def _lookahead_update(params, opt_state, key, points, targets):
    key, now = jax.random.split(key)
    loss, gradients = jax.value_and_grad(_plain_loss)(params.fast, now, points, targets)
    updates, opt_state = _LOOKAHEAD.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, key, loss


def _lookahead_step(objects):
    state = [objects[name] for name in ("params", "opt_state", "key")]
    params, opt_state, key, loss = _lookahead_update(*state, *batch(objects["source"]))
    return {**objects, "params": params, "opt_state": opt_state, "key": key}, loss


def _plain_params(seed):
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = [(WIDTH, WIDTH), (WIDTH, 1), (WIDTH,)]
    first, second, bias = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))
    return {"layers": [first, second], "bias": bias}


def _lookahead_objects(seed):
    params = optax.LookaheadParams.init_synced(_plain_params(seed))
    return {"params": params, "opt_state": _LOOKAHEAD.init(params), "key": jax.random.key(seed)}


_LBFGS = optax.lbfgs(memory_size=2, linesearch=optax.scale_by_zoom_linesearch(max_linesearch_steps=3))


@jax.jit
def _lbfgs_update(params, opt_state, key, points, targets):
    def loss_of(params):
        return _plain_loss(params, key, points, targets)

    loss, gradients = optax.value_and_grad_from_state(loss_of)(params, state=opt_state)
    updates, opt_state = _LBFGS.update(gradients, opt_state, params, value=loss, grad=gradients, value_fn=loss_of)
    return optax.apply_updates(params, updates), opt_state, loss


def _lbfgs_step(objects):
    # The same batch and mask each time, or the search of lines would have nothing to go by.
    source = np.random.default_rng(0)
    points = source.standard_normal((8, WIDTH), np.float32)
    params, opt_state, loss = _lbfgs_update(
        objects["params"], objects["opt_state"], objects["key"], points, points[:, :1]
    )
    return {**objects, "params": params, "opt_state": opt_state}, loss


def _lbfgs_objects(seed):
    params = _plain_params(seed)
    return {"params": params, "opt_state": _LBFGS.init(params), "key": jax.random.key(seed, impl="unsafe_rbg")}


# Equinox


class Layers(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    last: eqx.nn.Linear
    activation: Callable[..., Any]
    name: str = eqx.field(static=True)

    def __init__(self, key):
        self.first = eqx.nn.Linear(WIDTH, WIDTH, key=key)
        self.norm = eqx.nn.BatchNorm(WIDTH, "batch", mode="batch")
        self.dropout = eqx.nn.Dropout(0.3)
        self.last = eqx.nn.Linear(WIDTH, 1, key=jax.random.fold_in(key, 1))
        self.activation = jax.nn.gelu
        self.name = "layers"

    def __call__(self, point, state, key):
        hidden, state = self.norm(self.first(point), state)
        return self.last(self.dropout(self.activation(hidden), key=key)), state


_EQX_TX = optax.adamw(1e-2)


@eqx.filter_jit
def _eqx_update(model, batch_state, opt_state, key, points, targets):
    key, now = jax.random.split(key)

    def loss_of(model):
        run = jax.vmap(model, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))
        out, changed = run(points, batch_state, jax.random.split(now, len(points)))
        return ((out - targets) ** 2).mean(), changed

    (loss, batch_state), gradients = eqx.filter_value_and_grad(loss_of, has_aux=True)(model)
    updates, opt_state = _EQX_TX.update(gradients, opt_state, eqx.filter(model, eqx.is_inexact_array))
    return eqx.apply_updates(model, updates), batch_state, opt_state, key, loss


_EQX_PARTS = ("model", "batch_state", "opt_state", "key")


def _eqx_step(objects):
    *parts, loss = _eqx_update(*(objects[name] for name in _EQX_PARTS), *batch(objects["source"]))
    return {**objects, **dict(zip(_EQX_PARTS, parts, strict=True))}, loss


def _eqx_objects(seed):
    model, batch_state = eqx.nn.make_with_state(Layers)(jax.random.key(seed))
    opt_state = _EQX_TX.init(eqx.filter(model, eqx.is_inexact_array))
    return {"model": model, "batch_state": batch_state, "opt_state": opt_state, "key": jax.random.key(seed)}


class Training(NamedTuple):
    """`new(seed)` makes the objects; `step(objects)` gives the next ones and the loss. `template(seed)`: what they are
    restored into.
    """

    new: Callable[[int], dict[str, Any]]
    step: Callable[[dict[str, Any]], tuple[dict[str, Any], jax.Array]]
    template: Callable[[int], dict[str, Any]]


def _linen(make, make_key, *, abstract):
    tx = make()

    def new(seed):
        return {"state": _linen_state(tx, seed, make_key)}

    return Training(new, _linen_step, (lambda seed: jax.eval_shape(lambda: new(seed))) if abstract else new)


def _nnx(make, *, abstract):
    tx = make()

    def new(seed):
        return _nnx_objects(tx, seed)

    return Training(new, _nnx_step, (lambda seed: nnx.eval_shape(lambda: new(seed))) if abstract else new)


def _scaled():
    tx = optax.sgd(1e-2)

    def new(seed):
        return {"state": _linen_state(tx, seed, jax.random.PRNGKey, DynamicScale(growth_interval=2, scale=2.0**10))}

    return Training(new, _scaled_step, new)


_KEYS = [jax.random.key, jax.random.PRNGKey, lambda seed: jax.random.key(seed, impl="rbg")]
TRAININGS: dict[str, Callable[[], Training]] = {
    **{
        f"linen {name}": lambda make=make, i=i: _linen(make, _KEYS[i % 3], abstract=i % 2 == 0)
        for i, (name, make) in enumerate(OPTIMIZERS.items())
    },
    **{
        f"nnx {name}": lambda name=name, i=i: _nnx(OPTIMIZERS[name], abstract=i % 2 == 0)
        for i, name in enumerate(NNX_OPTIMIZERS)
    },
    "linen scaled": _scaled,
    "lookahead": lambda: Training(_lookahead_objects, _lookahead_step, _lookahead_objects),
    "lbfgs": lambda: Training(_lbfgs_objects, _lbfgs_step, lambda seed: jax.eval_shape(lambda: _lbfgs_objects(seed))),
    "equinox": lambda: Training(_eqx_objects, _eqx_step, _eqx_objects),
}


def digest(objects: dict[str, Any]) -> str:
    """Of all bits, dtypes, shapes and weak types of all leaves, by their paths."""
    found = hashlib.sha256()
    for name, value in sorted(objects.items()):
        tree = nnx.to_pure_dict(nnx.state(value)) if isinstance(value, nnx.Pytree) else value
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            if callable(leaf) or isinstance(leaf, np.random.Generator):
                continue
            is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            bits = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
            facts = (name, jax.tree_util.keystr(path), type(leaf).__name__, getattr(leaf, "weak_type", None))
            found.update(repr((facts, str(getattr(leaf, "dtype", "")), bits.shape)).encode() + bits.tobytes())
    return found.hexdigest()


def _go_on(training, objects, n_steps):
    losses = []
    for _ in range(n_steps):
        objects, loss = training.step(objects)
        losses.append(np.asarray(loss).tobytes().hex())
    return objects, losses


def begin(path: pathlib.Path, training: Training) -> dict[str, Any]:
    random.seed(5)
    np.random.seed(5)
    objects = {**training.new(1), "source": np.random.default_rng(5)}
    objects, losses = _go_on(training, objects, N_BEFORE)
    ptj.save_training(path, losses=losses, durability="atomic", **objects)
    return {"restored": digest(objects), **_rest(training, objects, losses)}


def resume(path: pathlib.Path, training: Training) -> dict[str, Any]:
    targets = {**training.template(2), "source": np.random.default_rng(6)}
    resumed = ptj.resume(path, **targets)
    assert resumed is not None
    assert not resumed.notes
    objects = {name: resumed[name] for name in targets}
    return {"restored": digest(objects), **_rest(training, objects, resumed["losses"])}


def _rest(training, objects, losses):
    objects, more = _go_on(training, objects, N_AFTER)
    drawn = [random.random(), float(np.random.random()), float(objects["source"].random())]
    return {"losses": [*losses, *more], "digest": digest(objects), "drawn": drawn}


if __name__ == "__main__":
    # The second process need not compile again what the first one did.
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(sys.argv[2]) / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    act, folder = {"begin": begin, "resume": resume}[sys.argv[1]], pathlib.Path(sys.argv[2])
    sys.stdout.write(json.dumps({name: act(folder / f"{name}.ptck", make()) for name, make in TRAININGS.items()}))
