"""Objects of JAX, Flax and Equinox as parts of a training: what is kept of each, and what does not fit."""

import os
import pathlib
import random
import subprocess
import sys
import textwrap
from collections import OrderedDict, defaultdict, deque
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from flax.core import FrozenDict
from flax.training.train_state import TrainState
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
import pytreeckpt_jax as ptj
from pytreeckpt import StructureMismatchError, UnsupportedTypeError, testing
from pytreeckpt.training import copied
from tests.adapters.jax_arrays import IMPLS, arrays, differences
from tests.training.jax_trainings import digest

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]


def stored(tree, **options):
    """A captured tree as it comes out of a file."""
    return ptc.decode(ptc.encode(tree), **options)


def again(value, template, **options):
    """A value captured, stored, and restored into a template."""
    tree = stored(ptj.capture(rng=False, it=value))
    return ptj.restore_into(tree, it=template, **options)["it"]


def same(a, b):
    """Whether two pytrees have the same structure, and leaves that differ in nothing."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert differences(x, y) == [] if isinstance(x, jax.Array) else x is y or x == y
    return True


# Pytrees of registered classes.


@flax.struct.dataclass
class Struct:
    weight: Any
    more: Any = None
    activation: Any = flax.struct.field(pytree_node=False, default="relu")


@jax.tree_util.register_dataclass
@dataclass
class Registered:
    weight: Any
    more: Any


class Named(NamedTuple):
    weight: Any
    more: Any


@jax.tree_util.register_pytree_node_class
class Unnamed:
    """Its children have no names."""

    def __init__(self, *children):
        self.children = children

    def tree_flatten(self):
        return self.children, None

    @classmethod
    def tree_unflatten(cls, _static, children):
        return cls(*children)


@jax.tree_util.register_pytree_with_keys_class
class Ambiguous(Unnamed):
    """Its children have names that say little."""

    names = ("x", "x")

    def tree_flatten_with_keys(self):
        keys = [jax.tree_util.GetAttrKey(name) for name in self.names]
        return list(zip(keys, self.children, strict=True)), None


CLASSES = [Struct, Registered, Named, Unnamed, Ambiguous, lambda a, b: FrozenDict({"a": a, "b": {"c": b}})]


@given(st.sampled_from(CLASSES), arrays(), arrays())
def test_arrays_in_any_registered_class_come_back(cls, first, second):
    value = cls(first, [cls(second, {"n": 3})])
    assert same(again(value, value), value)


@given(arrays(), arrays())
def test_shapes_are_templates(first, second):
    value = Struct(first, {"b": (second, None)})
    shapes = [jax.ShapeDtypeStruct(each.shape, each.dtype) for each in (first, second)]
    assert same(again(value, Struct(shapes[0], {"b": (shapes[1], None)})), value)


@given(testing.trees(arrays()))
def test_any_tree_is_captured_or_refused(tree):
    try:
        captured = ptj.capture(rng=False, it=tree)
    except UnsupportedTypeError:
        return
    assert captured["it"] is tree or captured["training"]["roles"]["it"]


def test_the_tree_has_plain_names_and_leaves_the_program_its_part():
    tree = ptj.capture(rng=False, it=Struct(jnp.ones(2), [Named(1, "text"), len], "gelu"), n=3)
    assert tree["training"]["roles"] == {"it": "pytree"}
    assert tree["it"]["class"].endswith("Struct")
    leaves = tree["it"]["leaves"]
    assert leaves["more"] == {0: {"weight": 1}}
    restored = ptj.restore_into(tree, it=Struct(jnp.zeros(2), [Named(0, "mine"), abs], "tanh"))["it"]
    assert restored.more == [Named(1, "mine"), abs]
    assert restored.activation == "tanh"


@pytest.mark.parametrize("names", [("x", "x"), ("", ""), ("x", "y")])
def test_children_of_the_same_name_do_not_take_each_others_place(monkeypatch, names):
    monkeypatch.setattr(Ambiguous, "names", names)
    restored = again(Ambiguous(jnp.ones(2), jnp.zeros(2)), Ambiguous(jnp.full(2, 5.0), jnp.full(2, 5.0)))
    assert [child.tolist() for child in restored.children] == [[1, 1], [0, 0]]


def test_a_name_that_begins_another_one_does_not_take_its_place():
    class Odd(Ambiguous):
        names = ("x", "x")

    jax.tree_util.register_pytree_with_keys_class(Odd)
    value = Odd(jnp.ones(1), {"y": jnp.zeros(1)})
    assert same(again(value, value), value)


def test_a_train_state_with_masked_and_empty_states_comes_back():
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones(2)}
    tx = optax.chain(optax.masked(optax.adam(1e-2), {"a": True, "b": False}), optax.identity(), optax.scale(-1))
    state = TrainState.create(apply_fn=len, params=params, tx=tx)
    trained = state.apply_gradients(grads=params)
    restored = again(trained, jax.eval_shape(lambda: state))
    assert same(restored, trained)
    assert restored.tx is tx
    assert restored.apply_fn is len


def test_a_count_of_python_may_have_become_an_array_and_back():
    python, array = Struct(0), Struct(jnp.asarray(3))
    assert again(array, python).weight.weak_type
    assert again(python, array).weight == 0
    assert again(python, jax.eval_shape(lambda: array)).weight == 0


def test_weak_types_come_from_the_checkpoint():
    weak, strong = Struct(jnp.asarray(2.0)), Struct(jnp.float32(2))
    assert again(weak, strong).weight.weak_type
    assert not again(strong, weak).weight.weak_type


def test_arrays_of_numpy_stay_numpys():
    value = Struct(np.arange(3), Struct(np.float32(2)))
    restored = again(value, Struct(np.zeros(3, int), Struct(np.float32(0))))
    assert type(restored.weight) is np.ndarray
    assert restored.weight.tolist() == [0, 1, 2]
    assert restored.weight.flags.writeable
    assert restored.more.weight == 2
    # What the template has decides.
    assert isinstance(again(value, Struct(jnp.zeros(3, int), Struct(0.0)), cast=True).weight, jax.Array)


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("dtype", ["int64", "uint64", "float64", "complex128"])
def test_64_bits_stay_64_bits(dtype, x64):
    values = np.array([2**60 + 1, 3], dtype)
    with jax.enable_x64(True):
        value = Struct(jax.device_put(values))
    tree = stored(ptj.capture(rng=False, it=value))
    for template in (value, jax.eval_shape(lambda: value), Struct(values)):
        with jax.enable_x64(x64):
            restored = ptj.restore_into(tree, it=template)["it"].weight
        assert restored.dtype == dtype
        assert np.asarray(restored).tobytes() == values.tobytes()


@pytest.mark.parametrize("impl", IMPLS)
def test_typed_and_raw_keys_come_back_and_are_not_taken_for_each_other(impl):
    typed, raw = Struct(jax.random.key(3, impl=impl)), Struct(jax.random.PRNGKey(3, impl=impl))
    assert same(again(typed, jax.eval_shape(lambda: typed)), typed)
    assert same(again(raw, raw), raw)
    other = Struct(jax.random.key(3, impl=IMPLS[IMPLS.index(impl) - 1]))
    for value, template in ((typed, raw), (raw, typed), (typed, other), (other, typed)):
        for cast in (False, True):
            with pytest.raises(StructureMismatchError, match="it/weight: the template has"):
                again(value, template, cast=cast)


@given(st.sampled_from(["float16", "bfloat16", "float32", "int8"]), st.sampled_from(["float16", "bfloat16", "float32"]))
def test_dtypes_have_to_agree_unless_they_may_be_cast(saved, wanted):
    value, template = Struct(jnp.arange(3, dtype=saved)), Struct(jax.ShapeDtypeStruct((3,), wanted))
    if saved != wanted:
        with pytest.raises(StructureMismatchError, match=f"it/weight: the template has {wanted}, the checkpoint"):
            again(value, template)
    restored = again(value, template, cast=True).weight
    assert (restored.dtype, restored.tolist()) == (wanted, [0, 1, 2])


def test_arrays_that_were_donated_are_templates_still():
    template = Struct(jnp.zeros(3))
    template.weight.delete()
    assert again(Struct(jnp.ones(3)), template).weight.tolist() == [1, 1, 1]


def test_parameters_in_boxes_are_restored_in_their_boxes():
    value = {"kernel": linen.Partitioned(jnp.ones(2), ("x",))}
    assert same(again(value, {"kernel": linen.Partitioned(jnp.zeros(2), ("x",))}), value)
    assert again(nnx.Param(jnp.ones(2)), nnx.Param(jnp.zeros(2))).get_value().tolist() == [1, 1]


def test_the_default_device_may_be_the_name_of_a_platform():
    with jax.default_device("cpu"):
        restored = again(Struct(jnp.ones(3)), Struct(jnp.zeros(3))).weight
    assert restored.tolist() == [1, 1, 1]
    assert not restored.committed


# Equinox.


def _mlp(seed, **options):
    return eqx.nn.MLP(2, 3, 4, 1, key=jax.random.key(seed), **options)


def test_a_module_of_equinox_keeps_its_functions_and_static_fields():
    module = _mlp(0)
    template = _mlp(1, activation=jax.nn.gelu)
    restored = again(module, template)
    assert restored.activation is template.activation
    assert restored.width_size == 4
    assert same(eqx.filter(restored, eqx.is_array), eqx.filter(module, eqx.is_array))
    abstract = again(module, eqx.filter_eval_shape(lambda: template))
    assert same(eqx.filter(abstract, eqx.is_array), eqx.filter(module, eqx.is_array))


def test_the_state_of_equinoxs_batch_norm_comes_back():
    def make(key):
        return eqx.nn.BatchNorm(3, "batch", mode="batch")

    module, before = eqx.nn.make_with_state(make)(None)
    points = jnp.arange(6.0).reshape(2, 3)
    _, after = jax.vmap(module, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(points, before)
    restored = again(after, before)
    assert same(restored, after)
    assert any((x != y).any() for x, y in zip(jax.tree.leaves(restored), jax.tree.leaves(before), strict=True))


# nnx.


class Block(nnx.Module):
    """With what a module may hold."""

    def __init__(self, seed=0, width=3):
        rngs = nnx.Rngs(seed)
        self.layers = nnx.List([nnx.Linear(2, width, rngs=rngs), nnx.Linear(width, 2, rngs=rngs)])
        self.heads = nnx.Dict(a=nnx.Linear(2, 2, rngs=rngs), b=nnx.BatchNorm(2, rngs=rngs))
        self.tied = self.layers[1].kernel
        self.tree = nnx.Variable({"mean": jnp.full(2, seed * 1.0), "parts": [jnp.asarray(seed), None]})
        self.nothing = nnx.Variable(None)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.name = "block"


class Bare(nnx.Module):
    def __init__(self, seed):
        self.array = jnp.full(2, seed)


def test_an_nnx_object_is_changed_where_it_is():
    saved, module = Block(1), Block(2)
    inner, kernel = module.layers[0], module.layers[0].kernel
    tree = stored(ptj.capture(rng=False, it=saved))
    assert digest({"it": module}) != digest({"it": saved})
    assert ptj.restore_into(tree, it=module)["it"] is module
    assert module.layers[0] is inner
    assert inner.kernel is kernel
    assert digest({"it": module}) == digest({"it": saved})
    assert module.tied is module.layers[1].kernel
    assert module.nothing.get_value() is None
    assert module.tree.get_value()["parts"][1] is None


def test_an_abstract_nnx_module_is_filled():
    saved = Block(1)
    module = nnx.eval_shape(lambda: Block(2))
    restored = again(saved, module)
    assert restored is module
    assert digest({"it": module}) == digest({"it": saved})
    assert module.tied is module.layers[1].kernel


def test_layers_that_were_made_at_once_and_their_optimizer_come_back():
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(key):
        return nnx.Linear(2, 3, rngs=nnx.Rngs(key))

    def make_all(seed):
        layers = make(jax.random.split(jax.random.key(seed), 4))
        return nnx.ModelAndOptimizer(layers, optax.sm3(1e-2), wrt=nnx.Param)

    saved, target = make_all(1), make_all(2)
    saved.update(nnx.state(saved.model, nnx.Param))
    assert again(saved, target) is target
    assert digest({"it": target}) == digest({"it": saved})
    assert target.model.kernel.get_value().shape == (4, 2, 3)


def test_an_array_that_is_no_variable_is_kept_too():
    module = Bare(2)
    tree = stored(ptj.capture(rng=False, it=Bare(1)))
    assert "kinds" in tree["it"]
    ptj.restore_into(tree, it=module)
    assert module.array.tolist() == [1, 1]


def test_the_tree_of_an_nnx_module_has_each_tied_variable_once_and_the_kinds_of_all():
    captured = ptj.capture(rng=False, it=Block())["it"]
    assert captured["class"].endswith("Block")
    assert captured["kinds"]["heads"]["b"] == {
        "bias": "Param",
        "mean": "BatchStat",
        "scale": "Param",
        "var": "BatchStat",
    }
    assert ("tied" in captured["leaves"]) != ("kernel" in captured["leaves"]["layers"][1])


def test_variables_that_only_one_has_are_an_error_or_kept_and_ignored():
    class Wider(Block):
        def __init__(self, seed):
            super().__init__(seed)
            self.extra = nnx.Param(jnp.full(1, 7.0))

    for saved, module, side in ((Block(1), Wider(2), "missing"), (Wider(1), Block(2), "unexpected")):
        before = digest({"it": module})
        tree = stored(ptj.capture(rng=False, it=saved))
        with pytest.raises(StructureMismatchError) as caught:
            ptj.restore_into(tree, it=module)
        assert getattr(caught.value, side) == ("it/extra",)
        assert digest({"it": module}) == before
        restored = ptj.restore_into(tree, strict=False, it=module)
        assert getattr(restored, side) == ("it/extra",)
        assert "Wider" in restored.notes[0]
        assert (module.layers[0].kernel.get_value() == saved.layers[0].kernel.get_value()).all()
        if isinstance(module, Wider):
            assert module.extra.get_value().tolist() == [7]


def test_dicts_and_lists_of_nnx_objects_are_restored_each():
    for saved, targets in (
        ({"G": Block(1), "D": Block(2)}, {"D": Block(3), "G": Block(4)}),
        ([Block(1), Block(2)], [Block(3), Block(4)]),
    ):
        tree = stored(ptj.capture(rng=False, it=saved))
        restored = ptj.restore_into(tree, it=targets)["it"]
        for key in targets if isinstance(targets, dict) else range(2):
            assert restored[key] is targets[key]
            assert digest({"it": restored[key]}) == digest({"it": saved[key]})


@pytest.mark.parametrize("group", [{"a": [Bare(1)]}, [[Bare(1)], 3], ({"a": {"b": Bare(1)}},)])
def test_nnx_objects_deep_in_plain_containers_are_refused(group):
    with pytest.raises(UnsupportedTypeError, match="by a name of its own"):
        ptj.capture(it=group)


def test_a_dict_whose_keys_have_no_order_is_no_pytree():
    value = {1: jnp.ones(1), "a": jnp.ones(2)}
    with pytest.raises(UnsupportedTypeError, match="no pytree of JAX: .*sorting"):
        ptj.capture(it=Struct(value))
    # In plain containers it stands for itself.
    tree = ptj.capture(rng=False, it=value)
    assert ptj.restore_into(tree)["it"] is value
    with pytest.raises(UnsupportedTypeError, match="no pytree of JAX"):
        ptj.restore_into(tree, it=value)


def test_objects_and_plain_values_in_one_dict_are_refused():
    with pytest.raises(UnsupportedTypeError, match=r"it: 'a' is an object with a state and 'b' is a plain value"):
        ptj.capture(it={"a": Bare(1), "b": jnp.ones(2)})


def test_a_state_of_nnx_is_a_pytree():
    state = nnx.state(Block(1))
    assert same(again(state, nnx.state(Block(2))), state)


# Plain values.


PLAIN = {
    "dict": {"w": jnp.ones(2), "name": "x", "none": None},
    "ordered": OrderedDict(b=jnp.ones(2), a="text"),
    "defaultdict": defaultdict(list, loss=[1.0, 2.0], array=[jnp.ones(1)]),
    "deque": deque([jnp.ones(1), "text", None], 5),
    "tuple": (jnp.ones(2), [None, "text"]),
    "array": np.arange(3),
    "key": jax.random.key(0),
    "config": {"name": "run", "warmup": None, "rates": [1e-3, None], "deep": {"x": ("a", None)}},
    "None": None,
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_values_stand_for_themselves_and_come_back_without_a_template(name):
    value = PLAIN[name]
    tree = ptj.capture(rng=False, it=value)
    assert tree["it"] is value
    assert tree["training"]["roles"] == {}
    restored = ptj.restore_into(stored(tree))
    assert testing.identical(restored["it"], value) == []
    assert list(restored) == ["it"]


@pytest.mark.parametrize("name", ["dict", "ordered", "tuple", "key", "deque"])
def test_plain_arrays_are_restored_into_a_template_too(name):
    value = PLAIN[name]
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if isinstance(leaf, jax.Array) else leaf, value
    )
    assert same(again(value, shapes), value)


def test_a_plain_value_that_is_given_is_in_the_result_as_it_was_saved():
    tree = ptj.capture(rng=False, step=3, config={"name": None})
    assert dict(ptj.restore_into(tree, step=0)) == {"step": 3, "config": {"name": None}}


def test_plain_containers_of_other_leaves_are_a_mismatch():
    tree = stored(ptj.capture(rng=False, params={"layer": {"kernel": jnp.ones(2)}, "bias": jnp.ones(3)}))
    with pytest.raises(StructureMismatchError) as caught:
        ptj.restore_into(tree, params={"layer": {"kernels": jnp.ones(2)}, "bias": jnp.ones(4)})
    assert "params/layer/kernels (did you mean params/layer/kernel?)" in str(caught.value)
    assert caught.value.unexpected == ("params/layer/kernel",)
    assert caught.value.mismatched == ("params/bias: the template has shape [4], the checkpoint [3]",)


# Objects that say what their state is.


class Loader:
    def __init__(self):
        self.at = [0]

    def get_state(self):
        return {"at": self.at}

    def set_state(self, state):
        self.at = state["at"]


class Sampler(Loader):
    state_dict = Loader.get_state
    load_state_dict = Loader.set_state


@pytest.mark.parametrize("cls", [Loader, Sampler])
def test_an_object_with_two_methods_for_its_state_is_restored(cls):
    saved, target = cls(), cls()
    saved.at = [5]
    tree = ptj.capture(rng=False, it=saved)
    saved.at.append(6)
    assert ptj.restore_into(tree, it=target)["it"] is target
    assert target.at == [5]
    target.at.append(7)
    assert tree["it"]["state"] == {"at": [5]}
    assert tree["training"]["roles"] == {"it": "stateful"}


def test_another_class_with_these_methods_is_noted():
    restored = ptj.restore_into(ptj.capture(rng=False, it=Loader()), it=Sampler())
    assert "it is a " in restored.notes[0]
    assert "Loader" in restored.notes[0]


# What does not fit.


def _state(tx=None, width=3, names=("first", "second")):
    params = {name: jnp.ones((2, width)) for name in names}
    return TrainState.create(apply_fn=len, params=params, tx=tx or optax.adam(1e-2))


def test_another_architecture_is_one_error_that_names_everything():
    tree = stored(ptj.capture(rng=False, state=_state()))
    with pytest.raises(StructureMismatchError) as caught:
        ptj.restore_into(tree, state=_state(width=4, names=("first", "seconds")))
    error = caught.value
    assert set(error.missing) == {
        "state/params/seconds",
        "state/opt_state/0/mu/seconds",
        "state/opt_state/0/nu/seconds",
    }
    assert len(error.unexpected) == 3
    assert len(error.mismatched) == 3
    assert "state/params/first: the template has shape [2, 4], the checkpoint [2, 3]" in error.mismatched
    assert "state/params/seconds (did you mean state/params/second?)" in str(error)
    assert "nothing was changed" in str(error)


def test_the_state_of_another_optimizer_is_a_mismatch():
    tree = stored(ptj.capture(rng=False, state=_state()))
    with pytest.raises(StructureMismatchError, match="unexpected  state/opt_state/0/mu/first"):
        ptj.restore_into(tree, state=_state(optax.sgd(1e-2)))
    restored = ptj.restore_into(tree, strict=False, state=_state(optax.sgd(1e-2)))
    assert restored["state"].opt_state == _state(optax.sgd(1e-2)).opt_state
    assert len(restored.unexpected) == 5
    with pytest.raises(StructureMismatchError, match="missing     state/opt_state/0/trace/first"):
        ptj.restore_into(tree, state=_state(optax.sgd(1e-2, 0.9)))


def test_an_object_in_another_role_is_a_mismatch():
    tree = stored(ptj.capture(rng=False, state=_state(), model=Bare(1), params={"w": jnp.ones(2)}, group=[Bare(1)]))
    for target, message in (
        ({"state": Bare(1)}, "state: this is nnx, the checkpoint has pytree"),
        ({"model": _state()}, "model: this is pytree, the checkpoint has nnx"),
        ({"params": FrozenDict({"w": jnp.ones(2)})}, "params: this is pytree, the checkpoint has a plain value"),
        ({"state": {"w": jnp.ones(2)}}, "state: this is a plain value.*, the checkpoint has pytree"),
        ({"group": Bare(1)}, "group: this is nnx, the checkpoint has several objects"),
        ({"model": random.Random()}, "model: this is generator, the checkpoint has nnx"),
    ):
        with pytest.raises(StructureMismatchError, match=message):
            ptj.restore_into(tree, **target)


def test_another_class_of_the_same_leaves_is_noted():
    restored = ptj.restore_into(ptj.capture(rng=False, it=Struct(1, 2)), it=Registered(0, 0))
    assert restored["it"] == Registered(1, 2)
    assert "Registered, and was a " in restored.notes[0]


def test_reserved_names_and_wrong_options_are_refused():
    with pytest.raises(ValueError, match="'training' is what the header"):
        ptj.capture(training=1)
    wrong: Any = np.random.default_rng(0)
    with pytest.raises(TypeError, match="give an object another name"):
        ptj.capture(rng=wrong)
    with pytest.raises(ValueError, match="'training' is what the header"):
        ptj.restore_into(ptj.capture(rng=False), training=Bare(1))


def test_a_tree_that_nobody_captured_is_refused():
    with pytest.raises(StructureMismatchError, match="not made by capture"):
        ptj.restore_into({"model": 1}, model=Bare(1))
    torchs = ptj.capture(rng=False, model=Bare(1))
    torchs["training"]["framework"] = "torch"
    with pytest.raises(StructureMismatchError, match="a training in torch; .* has to be converted"):
        ptj.restore_into(torchs, model=Bare(1))
    torchs["training"]["layout"] = 2
    with pytest.raises(ptc.FormatVersionError, match="layout 2"):
        ptj.restore_into(torchs, model=Bare(1))


def test_the_generators_of_another_number_of_processes_are_a_mismatch():
    tree = ptj.capture(model=Bare(1))
    before, model = random.getstate(), Bare(2)
    for change in ({"world_size": 2}, {"ranks": {1: tree["rng"]["ranks"][0]}}):
        forged = {**tree, "rng": {**tree["rng"], **change}}
        with pytest.raises(StructureMismatchError, match="rng=False"):
            ptj.restore_into(forged, model=model)
        assert model.array.tolist() == [2, 2]
        assert random.getstate() == before
        ptj.restore_into(forged, rng=False, model=model)
        assert model.array.tolist() == [1, 1]
        model = Bare(2)


def test_nothing_is_changed_if_one_of_the_objects_does_not_fit():
    objects = {"model": Block(1), "loader": Loader(), "source": np.random.default_rng(1), "python": random.Random(1)}
    tree = stored(ptj.capture(**objects, other=Block(1)))
    targets = {"model": Block(2), "loader": Loader(), "source": np.random.default_rng(2), "python": random.Random(2)}
    before = _facts(targets)
    for bad in (Block(1, width=4), Struct(1), nnx.eval_shape(lambda: Block(1, width=4))):
        with pytest.raises(StructureMismatchError):
            ptj.restore_into(tree, **targets, other=bad)
        assert _facts(targets) == before
    ptj.restore_into(tree, **targets, other=Block(2))
    assert _facts(targets) != before


def _facts(targets):
    return [
        digest({"it": targets["model"]}),
        targets["loader"].at if "loader" in targets else None,
        repr(targets["source"].bit_generator.state),
        targets["python"].getstate(),
        random.getstate(),
        repr(np.random.get_state()),
    ]


# Trees that were put together otherwise.


def _objects(seed):
    return {
        "state": _state(optax.sgd(1e-2, 0.9)),
        "model": Bare(seed),
        "group": {"a": Bare(seed), "b": np.random.default_rng(seed)},
        "source": np.random.default_rng(seed),
        "legacy": np.random.RandomState(seed),
        "python": random.Random(seed),
        "key": Struct(jax.random.key(seed), jnp.ones(2)),
    }


CAPTURED = stored(ptj.capture(**_objects(1)))
JUNK = st.sampled_from(
    [
        *(None, True, -1, 2**70, 1e300, float("nan"), "text", b"", [], {}, {"a": 1}, {3: []}, [[1], "x"], (), ("x",)),
        *(np.zeros(3), np.array("x"), np.zeros((2, 2), np.uint32), jnp.ones((1, 5)), jax.random.key(1), len),
    ]
)


def _damaged(draw, tree):
    """The tree, with something in it taken out or replaced."""
    where = tree
    while True:
        keys = list(where) if isinstance(where, dict) else list(range(len(where)))
        key = draw(st.sampled_from(keys))
        inner = where[key]
        if isinstance(inner, dict | list) and inner and draw(st.integers(0, 3)):
            where = inner
            continue
        if isinstance(where, dict) and draw(st.booleans()):
            del where[key]
        else:
            where[key] = copied(draw(JUNK))
        return


@given(st.data())
def test_a_damaged_tree_restores_or_is_a_clear_error_that_changed_nothing(data):
    tree = jax.tree.map(lambda leaf: leaf, CAPTURED)
    for _ in range(data.draw(st.integers(1, 3))):
        _damaged(data.draw, tree)
    targets = {**_objects(2), "model": Block(2)} if data.draw(st.booleans()) else _objects(2)
    if "model" in tree and isinstance(targets["model"], Block):
        tree["model"] = ptj.capture(rng=False, it=Block(1))["it"]
        _damaged(data.draw, tree["model"])
    facts = [digest({"it": targets["model"]}), _facts({**targets, "model": targets["group"]["a"]})]
    try:
        ptj.restore_into(tree, strict=data.draw(st.booleans()), **targets)
    except ptc.PytreeckptError:
        assert facts == [digest({"it": targets["model"]}), _facts({**targets, "model": targets["group"]["a"]})]


# Files.


def test_resume_gives_none_or_an_error_where_there_is_no_checkpoint(tmp_path):
    assert ptj.resume(tmp_path / "none.ptck", missing_ok=True, model=Bare(1)) is None
    with pytest.raises(ptc.CheckpointNotFoundError):
        ptj.resume(tmp_path / "none.ptck", model=Bare(1))


def test_an_error_of_resume_names_the_file_and_what_does_not_fit(tmp_path):
    path = tmp_path / "run.ptck"
    ptj.save_training(path, model=Block(1))
    with pytest.raises(StructureMismatchError, match="run.ptck: the checkpoint does not fit") as caught:
        ptj.resume(path, model=Block(1, width=4))
    assert len(caught.value.mismatched) == 3


def test_objects_that_are_not_asked_for_are_not_read(tmp_path):
    path = tmp_path / "run.ptck"
    large = {name: jax.random.normal(jax.random.key(place), (64, 64)) for place, name in enumerate("ab")}
    ptj.save_training(path, a=Struct(large["a"]), b=Struct(large["b"]), n=3, compression="none")
    raw = bytearray(path.read_bytes())
    at = raw.index(np.asarray(large["b"]).tobytes())
    raw[at + 5] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ptc.CorruptionError):
        ptj.resume(path, a=Struct(large["b"]), b=Struct(large["a"]))
    resumed = ptj.resume(path, a=Struct(large["b"]))
    assert (resumed["a"].weight == large["a"]).all()
    assert (resumed["n"], resumed.skipped) == (3, ("b",))
    with pytest.raises(KeyError, match="give one with b="):
        resumed["b"]


def test_global_generators_go_on_unless_they_are_left_alone(tmp_path):
    path = tmp_path / "run.ptck"
    ptj.save_training(path, n=1)
    drawn = random.random(), np.random.random()
    ptj.resume(path)
    assert (random.random(), np.random.random()) == drawn
    ptj.resume(path, rng=False)
    assert (random.random(), np.random.random()) != drawn


def test_a_training_is_read_without_jax(tmp_path):
    path = tmp_path / "run.ptck"
    ptj.save_training(path, state=_state(), model=Block(1), key=jax.random.key(0), best=jnp.ones(2))
    script = """
        import sys

        class Hidden:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {"torch", "jax", "jaxlib", "flax", "optax"}:
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, Hidden())
        import numpy
        import pytreeckpt

        tree = pytreeckpt.restore(sys.argv[1], to="numpy")
        assert tree["state"]["leaves"]["opt_state"][0]["mu"]["first"].tolist() == [[0] * 3] * 2
        assert tree["model"]["leaves"]["layers"][0]["kernel"].shape == (2, 3)
        assert tree["key"].tolist() == [0, 0]
        assert type(tree["best"]) is numpy.ndarray
        pytreeckpt.save(tree, sys.argv[2])
        print(tree["training"]["roles"])
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script), path, tmp_path / "numpy.ptck"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "{'state': 'pytree', 'model': 'nnx'}"
    # What it wrote is a training still; its keys are numbers by now.
    resumed = ptj.resume(tmp_path / "numpy.ptck", state=_state())
    assert same(resumed["state"].params, _state().params)
    with pytest.raises(StructureMismatchError, match="dropout/rngs/key: the template has shape"):
        ptj.resume(tmp_path / "numpy.ptck", model=Block(2))


# Devices.


def test_trainings_on_eight_devices():
    """Devices are chosen when JAX starts, so these tests have a process of their own."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", HERE / "jax_eight_devices.py"],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def test_an_optimizer_of_optax_is_not_its_state():
    with pytest.raises(UnsupportedTypeError, match="optimizer: .* no state; .* give the state that its init made"):
        ptj.capture(optimizer=optax.adam(1e-3))
    assert ptj.capture(optimizer=optax.sgd(1e-3).init(jnp.ones(2)))["optimizer"]["leaves"] == {}


def test_flags_are_the_programs():
    model = eqx.nn.Dropout(0.5)
    tree = ptj.capture(model=model)
    assert ptj.restore_into(tree, model=eqx.nn.inference_mode(model))["model"].inference is True
    assert ptj.restore_into(ptj.capture(model=eqx.nn.inference_mode(model)), model=model)["model"].inference is False
