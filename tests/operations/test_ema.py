"""Moving averages are those of their formula, to the bit, in numpy, torch and JAX."""

import copy
import itertools
from collections import OrderedDict, defaultdict
from types import MappingProxyType

import equinox
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from flax.core import FrozenDict
from flax.training.train_state import TrainState
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt.operations import warmed_up
from tests.exact import assert_same
from tests.strategies import LAYOUTS, laid_out

FLOATS = ["float16", "float32", "float64", "bfloat16"]


class Holder:
    """An object with arrays in it, of which nobody can know."""

    array = np.ones(3)


def numpy_dtype(name):
    return np.dtype(getattr(ml_dtypes, name, None) or name)


def formula(ema, array, decay):
    """ema + (1 − decay)·(x − ema), in float32 at least, each operation by itself."""
    wide = np.float64 if ema.dtype == np.float64 else np.float32
    start, end = ema.astype(wide), array.astype(wide)
    return (start + wide(1 - decay) * (end - start)).astype(ema.dtype)


def drawn(seed, dtype):
    return np.random.default_rng(seed).standard_normal((7, 30)).astype(numpy_dtype(dtype))


decays = st.sampled_from([0.0, 0.5, 0.9, 0.999, 0.9999, 1.0])


@given(dtype=st.sampled_from(FLOATS), other=st.sampled_from(FLOATS), decay=decays, layout=st.sampled_from(LAYOUTS))
def test_numpy_arrays_are_averaged_by_the_formula(dtype, other, decay, layout):
    ema, array = laid_out(drawn(0, dtype), layout, 3), drawn(1, other)
    before = ema.copy()
    found = ptc.ema_update({"w": ema}, {"w": array}, decay)["w"]
    with np.errstate(all="ignore"):
        expected = formula(ema, array, decay)
    assert found.dtype == ema.dtype
    assert found.tobytes() == expected.tobytes()
    assert ema.tobytes() == before.tobytes()


@given(dtype=st.sampled_from(FLOATS), other=st.sampled_from(FLOATS), decay=decays)
def test_tensors_are_averaged_where_they_are_by_the_same_formula(dtype, other, decay):
    ema, array = drawn(0, dtype), drawn(1, other)
    start = torch.from_numpy(ema.astype(np.float64)).to(getattr(torch, dtype))
    end = torch.from_numpy(array.astype(np.float64)).to(getattr(torch, other))
    found = ptc.ema_update([start], (end,), decay)
    assert found[0] is start
    assert start.dtype is getattr(torch, dtype)
    assert start.double().numpy().tobytes() == formula(ema, array, decay).astype(np.float64).tobytes()


@given(dtype=st.sampled_from(["float16", "float32", "bfloat16"]), decay=decays)
def test_jax_arrays_are_averaged_by_the_same_formula(dtype, decay):
    ema, array = drawn(0, dtype), drawn(1, dtype)
    found = ptc.ema_update({"w": jnp.asarray(ema)}, {"w": jnp.asarray(array)}, decay)["w"]
    assert np.asarray(found).tobytes() == formula(ema, array, decay).tobytes()


def test_jitted_updates_take_traced_decays_and_whole_states():
    state = TrainState.create(apply_fn=None, params={"w": jnp.ones(3, jnp.bfloat16)}, tx=optax.adam(1e-3))
    other = state.replace(params={"w": jnp.full(3, 2, jnp.bfloat16)}, step=5)
    update = jax.jit(ptc.ema_update)
    found = update(state, other, 0.75)
    assert isinstance(found, TrainState)
    assert found.params["w"].tolist() == [1.25] * 3
    assert (found.params["w"].dtype, int(found.step)) == (jnp.bfloat16, 5)
    keys = {"key": jax.random.key(1), "n": jnp.arange(2), "c": jnp.ones(2, jnp.complex64)}
    new = update(keys, {"key": jax.random.key(2), "n": jnp.arange(2) + 1, "c": jnp.full(2, 1 + 4j)}, jnp.float32(0.5))
    assert new["n"].tolist() == [1, 2]
    assert new["c"].tolist() == [1 + 2j] * 2
    assert jax.random.key_data(new["key"]).tolist() == jax.random.key_data(jax.random.key(2)).tolist()


def test_the_average_of_a_module_follows_through_its_state_dict():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    average = copy.deepcopy(model)
    with torch.no_grad():
        model[0].weight.add_(1)
        model[1].num_batches_tracked.add_(7)
    before = average[0].weight.detach().clone()
    state = average.state_dict()
    assert ptc.ema_update(state, model.state_dict(), 0.5) is state
    assert torch.equal(average[0].weight, before + torch.tensor(0.5) * (model[0].weight - before))
    assert int(average[1].num_batches_tracked) == 7
    assert average[0].weight.requires_grad
    assert average[0].weight.grad_fn is None


def test_any_mapping_goes_with_any_other_and_stays_what_it_is():
    model = torch.nn.Linear(2, 3)
    ema = {name: value.detach().clone() for name, value in model.state_dict().items()}
    before = copy.deepcopy(ema)
    with torch.no_grad():
        model.weight.add_(1)
    # An OrderedDict with an attribute, `_metadata`.
    assert ptc.ema_update(ema, model.state_dict(), 0.5) is ema
    torch.testing.assert_close(ema["weight"], before["weight"] + 0.5)

    class Named(dict):
        """As libraries make them."""

    kinds = (dict, OrderedDict, lambda items: defaultdict(int, items), FrozenDict, Named, MappingProxyType)
    for first, second in itertools.product(kinds, kinds):
        a, b = first({"w": np.zeros(2), "n": 1}), second({"w": np.ones(2), "n": 2})
        found = ptc.ema_update({"x": a}, {"x": b}, 0.5)["x"]
        assert type(found) is (dict if first is MappingProxyType else type(a))
        # JAX sorts the keys of its own.
        assert_same(sorted(found.items()), [("n", 2), ("w", np.full(2, 0.5))])


def test_what_a_state_dict_has_besides_stays():
    state = torch.nn.Linear(2, 2).state_dict()
    state["extra"] = 1
    found = ptc.ema_update(state, {**state, "extra": 2}, 0.5)
    assert (found["extra"], state["extra"], found._metadata) == (2, 1, state._metadata)
    counts = defaultdict(list, a=np.zeros(1))
    assert ptc.ema_update(counts, {"a": np.ones(1)}, 0.5).default_factory is list


def test_layers_of_equinox_and_states_of_nnx_are_averaged():
    layers = [equinox.nn.MLP(2, 2, 4, 1, key=jax.random.key(seed)) for seed in range(2)]
    found = ptc.ema_update(*layers, 0.5)
    assert found.activation is layers[1].activation
    first, second = (layer.layers[0].bias for layer in layers)
    assert found.layers[0].bias.tolist() == (first + 0.5 * (second - first)).tolist()
    states = [nnx.state(nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(seed)))) for seed in range(2)]
    averaged = jax.jit(ptc.ema_update, donate_argnums=0)(states[0], states[1], 1.0)
    assert type(averaged) is type(states[1])
    assert jax.tree.structure(averaged) == jax.tree.structure(states[1])


def test_the_update_is_that_of_torch():
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    torch.manual_seed(0)
    model = torch.nn.Linear(20, 30)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    theirs.update_parameters(model)
    ours = copy.deepcopy(model).state_dict()
    for _ in range(3):
        with torch.no_grad():
            model.weight.add_(torch.randn(30, 20))
        theirs.update_parameters(model)
        ptc.ema_update(ours, model.state_dict(), 0.99)
    torch.testing.assert_close(ours["weight"], theirs.module.weight, rtol=1e-6, atol=1e-7)


def test_tied_tensors_change_once():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    average = copy.deepcopy(model)
    with torch.no_grad():
        average[0].weight.fill_(0)
        model[0].weight.fill_(1)
    ptc.ema_update(average.state_dict(), model.state_dict(), 0.5)
    assert average[0].weight.tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert average[1].weight is average[0].weight


def test_what_is_no_float_is_that_of_the_tree():
    ema = OrderedDict(n=np.arange(3), b=np.array([True]), s="a", x=1.5, none=None, z=np.float32(2), empty=[])
    tree = OrderedDict(n=np.arange(3) + 1, b=np.array([False]), s="b", x=2.5, none=None, z=np.float32(3), empty=[])
    found = ptc.ema_update(ema, tree, 0.9)
    assert_same(found, tree)
    assert not np.shares_memory(found["n"], tree["n"])


def test_the_order_of_dicts_is_that_of_the_average():
    found = ptc.ema_update({"b": np.zeros(1), "a": np.zeros(1)}, {"a": np.full(1, 4.0), "b": np.full(1, 2.0)}, 0.5)
    assert_same(found, {"b": np.ones(1), "a": np.full(1, 2.0)})


def test_equal_values_stay_to_the_bit():
    array = drawn(0, "float32")
    assert ptc.ema_update([array], [array], 0.3)[0].tobytes() == array.tobytes()


def test_complex_numbers_are_pairs_of_floats():
    found = ptc.ema_update(np.array([complex(np.inf, 1)]), np.array([complex(np.inf, 3)]), 0.5)
    assert np.isnan(found.real[0])
    assert found.imag[0] == 2.0


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"w": np.ones(3)}, "n in the average alone"),
        ({"w": np.ones(3), "n": 1, "z": 1}, "z in the tree alone"),
        ({"module.w": 1, "module.n": 2}, "all names of the tree begin with 'module.': give"),
        ({"w": np.ones(4), "n": 1}, r"w: shapes \(3,\) and \(4,\)"),
        ({"w": np.arange(3), "n": 1}, "w: dtypes float64 and int64"),
        ({"w": torch.ones(3), "n": 1}, "w: a ndarray and a Tensor"),
        ({"w": 1.0, "n": 1}, "w: a ndarray and a float"),
        ({"w": np.ones(3), "n": np.ones(2)}, "n: a plain value and an array"),
        ({"w": np.ones(3), "n": [1]}, "n: a container and a leaf"),
    ],
)
def test_trees_that_differ_are_refused_before_anything_changes(tree, message):
    with pytest.raises(ptc.StructureMismatchError, match=message):
        ptc.ema_update({"w": np.ones(3), "n": 1}, tree, 0.9)
    tensor = torch.ones(2)
    with pytest.raises(ptc.StructureMismatchError, match=r"\[1\]: shapes"):
        ptc.ema_update([tensor, tensor], [torch.zeros(2), torch.zeros(3)], 0.5)
    assert tensor.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("decay", [-0.1, 1.5, np.nan])
def test_a_decay_that_is_none_is_refused(decay):
    with pytest.raises(ValueError, match="from 0 to 1"):
        ptc.ema_update(np.ones(2), np.ones(2), decay)


def test_what_cannot_be_looked_into_and_endless_trees_are_refused():
    with pytest.raises(ptc.UnsupportedTypeError, match="state_dict"):
        ptc.ema_update(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1), 0.5)
    with pytest.raises(ptc.UnsupportedTypeError, match="a/b: cannot look into a Holder"):
        ptc.ema_update({"a": {"b": Holder()}}, {"a": {"b": Holder()}}, 0.5)
    endless = []
    endless.append(endless)
    with pytest.raises(ptc.LimitError, match="contains itself"):
        ptc.ema_update(endless, endless, 0.5)


def test_the_decay_of_the_first_steps_is_smaller():
    assert [warmed_up(0.9, step) for step in (0, 8, 1000)] == [0.1, 0.5, 0.9]
