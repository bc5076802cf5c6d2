"""The kinds of layers that a checkpoint of JAX records: of nnx and Equinox when it is captured, of linen on request."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen, nnx
from flax.training.train_state import TrainState

import pytreeckpt as ptc
import pytreeckpt_jax as ptj
from pytreeckpt_jax.layers import layers_of, linen_layers

KEY = jax.random.key(0)


class Block(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.convs = nnx.List([nnx.Conv(3, 4, (3, 3), padding=[(1, 1), (0, 2)], rngs=rngs)])
        self.norm = nnx.BatchNorm(4, epsilon=1e-3, rngs=rngs)
        self.named = nnx.Dict({"a/b": nnx.Linear(3, 4, rngs=rngs)})
        self.activation = nnx.relu


def test_an_object_of_nnx_has_its_layers_by_the_names_of_their_variables():
    layers = layers_of(Block())
    assert list(layers) == ["", "convs", "named", "norm", "convs/0", "named/a/b"]
    assert layers[""] == {"class": f"{__name__}.Block", "kind": "flax.nnx.Module", "config": {}}
    conv = layers["convs/0"]
    assert (conv["class"], conv["kind"]) == ("flax.nnx.Conv", "flax.nnx.Conv")
    assert conv["config"]["kernel_size"] == (3, 3)
    assert conv["config"]["padding"] == [(1, 1), (0, 2)]
    assert conv["config"]["feature_group_count"] == 1
    norm = layers["norm"]["config"]
    assert (norm["epsilon"], norm["momentum"], norm["num_features"]) == (1e-3, 0.99, 4)


def test_a_subclass_has_its_own_class_and_the_kind_of_its_base():
    class Mine(nnx.Linear):
        pass

    layer = layers_of(Mine(2, 3, rngs=nnx.Rngs(0)))[""]
    assert layer["class"].endswith("Mine")
    assert layer["kind"] == "flax.nnx.Linear"

    class Own(eqx.nn.Linear):
        pass

    assert layers_of(Own(2, 3, key=KEY))[""]["kind"] == "equinox.nn.Linear"


def test_a_layer_that_is_in_two_places_has_the_name_of_its_variables():
    class Shared(nnx.Module):
        def __init__(self):
            self.z = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
            self.a = self.z

    module = Shared()
    names = {"/".join(map(str, path[:-1])) for path, _ in nnx.to_flat_state(nnx.state(module))}
    assert names == {"a"}
    assert list(layers_of(module)) == ["", "a"]


def test_abstract_modules_have_layers_too():
    assert layers_of(nnx.eval_shape(Block)) == layers_of(Block())

    def make():
        return eqx.nn.MLP(2, 3, 4, 1, key=KEY)

    assert layers_of(eqx.filter_eval_shape(make)) == layers_of(make())


def test_modules_of_equinox_have_their_layers_wherever_they_are():
    model = eqx.nn.MLP(2, 3, 4, 1, key=KEY)
    layers = layers_of({"net": [model, None]})
    assert list(layers) == ["net/0", "net/0/layers/0", "net/0/layers/1"]
    assert layers["net/0"]["kind"] == "equinox.nn.MLP"
    assert layers["net/0/layers/1"]["config"] == {"in_features": 4, "out_features": 3, "use_bias": True}


def test_states_of_optimizers_and_plain_values_have_none():
    model = eqx.nn.MLP(2, 3, 4, 1, key=KEY)
    state = optax.adam(1e-3).init(eqx.filter(model, eqx.is_array))
    for value in (state, {"w": jnp.ones(2)}, None, 3, nnx.Rngs(0), KEY):
        assert layers_of(value) == {}
    assert "layers" not in ptj.capture(rng=False, it=state)["it"]


@pytest.mark.parametrize("make", [Block, lambda: eqx.nn.MLP(2, 3, 4, 1, key=KEY)])
def test_layers_are_in_the_checkpoint_and_restoring_needs_none(make):
    tree = ptc.decode(ptc.encode(ptj.capture(rng=False, it=make())))
    assert tree["it"]["layers"] == layers_of(make())
    ptj.restore_into(tree, it=make())
    # As those have that were made before layers were recorded.
    del tree["it"]["layers"]
    ptj.restore_into(tree, it=make())


class Net(linen.Module):
    @linen.compact
    def __call__(self, x, train):
        x = linen.RNN(linen.LSTMCell(4), name="lstm")(x)
        x = linen.Conv(4, (3,), padding=((1, 1),), feature_group_count=2)(x)
        x = linen.remat(linen.Dense)(6)(x)
        x = linen.Dropout(0.5, deterministic=not train)(x)
        if train:
            x = linen.Dense(6, name="more")(x)
        return linen.BatchNorm(use_running_average=not train)(x)


def test_a_module_of_linen_has_its_layers_by_scope():
    layers = linen_layers(Net(), jax.ShapeDtypeStruct((2, 5, 4), jnp.float32), train=False)
    kinds = {name: layer["kind"] for name, layer in layers.items()}
    assert kinds[""] == "flax.linen.Module"
    assert kinds["lstm"] == "flax.linen.RNN"
    assert kinds["LSTMCell_0"] == "flax.linen.LSTMCell"
    assert kinds["LSTMCell_0/hf"] == "flax.linen.Dense"
    assert kinds["CheckpointDense_0"] == "flax.linen.Dense"
    assert kinds["BatchNorm_0"] == "flax.linen.BatchNorm"
    assert "more" not in kinds
    conv = layers["Conv_0"]["config"]
    assert conv["padding"] == ((1, 1),)
    assert conv["feature_group_count"] == 2
    assert "name" not in conv
    assert layers["BatchNorm_0"]["config"]["use_running_average"] is True


def test_every_layer_of_linen_that_has_variables_is_recorded():
    x = jnp.ones((2, 5, 4))
    layers = linen_layers(Net(), x, train=True)
    variables = jax.eval_shape(lambda: Net().init({"params": KEY, "dropout": KEY}, x, train=True))
    scopes = {"/".join(key.key for key in path[1:-1]) for path, _ in jax.tree_util.tree_leaves_with_path(variables)}
    assert "more" in scopes
    assert scopes <= layers.keys()


def test_a_module_of_linen_may_draw_from_other_streams():
    class Noisy(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(3)(x + jax.random.normal(self.make_rng("noise"), x.shape))

    rngs = dict.fromkeys(("params", "noise"), KEY)
    assert list(linen_layers(Noisy(), jnp.ones((1, 2)), rngs=rngs)) == ["", "Dense_0"]


def test_a_train_state_of_linen_has_no_layers_of_its_own():
    params = {"Dense_0": {"kernel": jnp.ones((2, 2))}}
    state = TrainState.create(apply_fn=None, params=params, tx=optax.sgd(1e-2))
    assert "layers" not in ptj.capture(rng=False, it=state)["it"]
