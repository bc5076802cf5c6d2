"""Where the arrays of a training go, on eight devices: run by test_jax_objects.py in a process of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import FrozenDict
from flax.training.train_state import TrainState
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

import pytreeckpt as ptc
import pytreeckpt_jax as ptj

DEVICES = np.array(jax.devices())
MESH = Mesh(DEVICES.reshape(2, 4), ("x", "y"))
ROWS, COLUMNS, BOTH, WHOLE = (
    NamedSharding(MESH, PartitionSpec(*spec)) for spec in (("x",), (None, "y"), ("x", "y"), ())
)


class Model(nnx.Module):
    def __init__(self, seed):
        self.linear = nnx.Linear(8, 8, rngs=nnx.Rngs(seed))
        self.scale = nnx.Param(jnp.ones(8))


def kernels(model):
    return model.linear.kernel.get_value()


@pytest.fixture
def params():
    return {"kernel": jnp.arange(64.0).reshape(8, 8), "bias": jnp.arange(8.0)}


@pytest.fixture
def saved(tmp_path, params):
    path = tmp_path / "run.ptck"
    state = TrainState.create(apply_fn=len, params=params, tx=optax.adam(1e-2))
    objects = {"frozen": FrozenDict(params), "models": {"a": Model(1), "b": Model(2)}}
    ptj.save_training(path, state=state, model=Model(1), params=params, **objects)
    return path


def new_state(params):
    return TrainState.create(apply_fn=len, params=params, tx=optax.adam(1e-2))


def test_there_are_eight_devices():
    assert len(DEVICES) == 8


def test_arrays_go_where_those_of_the_template_are(saved, params):
    template = {"kernel": jax.device_put(params["kernel"], BOTH), "bias": jax.device_put(params["bias"], DEVICES[3])}
    for name, given in (("params", template), ("frozen", FrozenDict(template))):
        restored = ptj.resume(saved, **{name: given})[name]
        assert restored["kernel"].sharding == BOTH
        assert restored["kernel"].committed
        assert restored["bias"].devices() == {DEVICES[3]}
        assert (restored["kernel"] == params["kernel"]).all()


def test_uncommitted_arrays_stay_so_and_on_the_default_device(saved, params):
    state = ptj.resume(saved, state=new_state(params))["state"]
    leaves = [leaf for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array)]
    assert len(leaves) > 6
    assert not any(leaf.committed for leaf in leaves)
    assert {device for leaf in leaves for device in leaf.devices()} == {DEVICES[0]}
    with jax.default_device(DEVICES[5]):
        moved = ptj.resume(saved, state=jax.eval_shape(lambda: new_state(params)))["state"]
    assert moved.params["kernel"].devices() == {DEVICES[5]}
    assert not moved.params["kernel"].committed


def test_uncommitted_arrays_that_were_read_to_the_cpu_go_to_the_default_device(saved, params):
    mixed = {"kernel": jax.device_put(params["kernel"], BOTH), "bias": params["bias"]}
    with jax.default_device(DEVICES[2]):
        restored = ptj.resume(saved, params=mixed)["params"]
    assert restored["bias"].devices() == {DEVICES[2]}
    assert not restored["bias"].committed


def test_a_shape_may_have_a_sharding(saved):
    shapes = {
        "kernel": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=ROWS),
        "bias": jax.ShapeDtypeStruct((8,), jnp.float32),
    }
    restored = ptj.resume(saved, frozen=FrozenDict(shapes))["frozen"]
    assert restored["kernel"].sharding == ROWS
    assert not restored["bias"].committed


def test_one_sharding_is_for_all_arrays_of_all_objects(saved, params):
    models = {"a": Model(3), "b": Model(4)}
    targets = {"params": params, "model": Model(5), "models": models, "state": new_state(params)}
    restored = ptj.resume(saved, sharding=WHOLE, **targets)
    arrays = [kernels(restored["model"]), *map(kernels, models.values()), *restored["params"].values()]
    arrays += [leaf for leaf in jax.tree.leaves(restored["state"]) if isinstance(leaf, jax.Array)]
    assert len(arrays) > 10
    assert all(array.sharding == WHOLE for array in arrays)


def test_shardings_are_given_by_the_names_of_objects(saved, params):
    model, models = Model(3), {"a": Model(4), "b": Model(5)}
    restored = ptj.resume(
        saved,
        params=params,
        model=model,
        models=models,
        sharding={
            "params": {"kernel": BOTH, "bias": None},
            "model": {"linear": {"kernel": ROWS, "bias": None}, "scale": SingleDeviceSharding(DEVICES[4])},
            "models": {"a": WHOLE, "b": None},
        },
    )
    assert restored["params"]["kernel"].sharding == BOTH
    assert not restored["params"]["bias"].committed
    assert kernels(model).sharding == ROWS
    assert model.scale.get_value().devices() == {DEVICES[4]}
    assert kernels(models["a"]).sharding == WHOLE
    assert kernels(models["b"]).devices() == {DEVICES[0]}
    assert (kernels(models["b"]) == kernels(Model(2))).all()


def test_a_tree_of_shardings_may_end_above_the_leaves_or_be_a_state_of_the_same_class(saved, params):
    template = new_state(params)
    shardings = jax.tree.map(lambda _: WHOLE, template).replace(params=WHOLE)
    restored = ptj.resume(saved, state=template, sharding={"state": shardings})["state"]
    assert restored.params["bias"].sharding == WHOLE
    model = Model(3)
    spec = jax.tree.map(lambda leaf: ROWS if leaf.ndim else WHOLE, nnx.state(model))
    ptj.resume(saved, model=model, sharding={"model": spec})
    assert kernels(model).sharding == ROWS


def test_a_train_state_goes_over_the_devices_and_back(saved, tmp_path, params):
    state = jax.device_put(new_state(params), WHOLE).apply_gradients(grads=params)
    sharded = state.replace(params={**state.params, "kernel": jax.device_put(state.params["kernel"], BOTH)})
    path = tmp_path / "sharded.ptck"
    ptj.save_training(path, state=sharded, keys=jax.device_put(jax.random.split(jax.random.key(0), 8), ROWS))
    restored = ptj.resume(path, state=sharded)["state"]
    for ours, theirs in zip(jax.tree.leaves(sharded), jax.tree.leaves(restored), strict=True):
        if isinstance(ours, jax.Array):
            assert ours.sharding == theirs.sharding
            assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


@pytest.mark.parametrize(
    ("sharding", "message"),
    [
        ({"other": ROWS}, "sharding is given for other, and the objects are params, model, models"),
        (
            {"params": {"kernels": ROWS, "bias": ROWS}},
            "params: the tree of shardings does not begin as the object does",
        ),
        ({"params": {"kernel": "x", "bias": None}}, "params: a str is no jax.sharding.Sharding"),
        ({"params": COLUMNS}, r"params/bias: the sharding given does not divide shape \[8\]"),
        ({"model": {"linear": ROWS}}, "model: the tree of shardings does not begin as the object does"),
        ({"models": {"a": ROWS}}, "models: the shardings are not by the names of the objects in it"),
        ({"models": "x"}, "models: the shardings are not by the names of the objects in it"),
    ],
    ids=["name", "tree", "no sharding", "rank", "nnx", "group", "no tree"],
)
def test_wrong_shardings_are_clear_errors_that_change_nothing(saved, params, sharding, message):
    model, models = Model(3), {"a": Model(4), "b": Model(5)}
    before = [kernels(each).tolist() for each in (model, *models.values())]
    with pytest.raises((ValueError, TypeError), match=message):
        ptj.resume(saved, params=params, model=model, models=models, sharding=sharding)
    assert [kernels(each).tolist() for each in (model, *models.values())] == before


def test_a_sharding_that_does_not_divide_an_array_is_an_error_before_anything_is_changed(tmp_path):
    path, model = tmp_path / "odd.ptck", Model(2)
    ptj.save_training(path, model=Model(1), odd={"w": jnp.ones(7)})
    before = kernels(model).tolist()
    with pytest.raises(ptc.StructureMismatchError, match="odd/w: the sharding given does not divide"):
        ptj.resume(path, model=model, odd={"w": jnp.ones(7)}, sharding={"odd": ROWS})
    assert kernels(model).tolist() == before
