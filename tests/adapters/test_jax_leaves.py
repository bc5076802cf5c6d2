"""The JAX adapter: every array comes back bit for bit, whatever x64 says, or is refused with what to do instead."""

import os
import pathlib
import subprocess
import sys
from collections import OrderedDict, deque
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.extend.random
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import FrozenDict
from flax.training.train_state import TrainState
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt
import pytreeckpt_jax
from pytreeckpt import ClassKind, UnsupportedTypeError, decode, encode, testing
from pytreeckpt_jax.staging import HostCopy, check_storable
from tests.adapters.jax_arrays import DTYPES, IMPLS, arrays, differences, from_bytes

ADAPTER: Any = pytreeckpt_jax.ADAPTER

# Properties.


@given(arrays())
def test_an_array_or_key_comes_back_with_its_dtype_bits_and_weak_type(array):
    assert differences(array, decode(encode(array))) == []


@given(arrays())
def test_an_array_or_key_comes_back_into_itself_as_a_template(array):
    assert differences(array, decode(encode(array), like=array)) == []


@given(arrays())
def test_a_shape_is_a_template_for_an_array_or_key(array):
    template = jax.ShapeDtypeStruct(array.shape, array.dtype, weak_type=getattr(array, "weak_type", False))
    assert differences(array, decode(encode(array), like=template)) == []


@given(testing.trees(arrays()))
def test_trees_with_arrays_come_back_identical(tree):
    assert testing.identical(tree, decode(encode(tree), types=testing.TYPES)) == []


@given(st.sampled_from(DTYPES), st.data())
def test_a_numpy_array_becomes_a_jax_array_of_the_same_bits(dtype, data):
    raw = data.draw(st.binary(max_size=64).map(lambda raw: raw[: len(raw) // dtype.itemsize * dtype.itemsize]))
    array = from_bytes(raw, dtype)
    restored = decode(encode(array), to="jax")
    assert (restored.dtype, restored.shape) == (dtype, array.shape)
    # Of an integer narrower than a byte, JAX may write the other bits anew.
    narrow = dtype.kind == "V" and "int" in dtype.name
    numbers = [values.astype(np.int8) if narrow else values for values in (np.asarray(restored), array)]
    assert numbers[0].tobytes() == numbers[1].tobytes()


@given(st.sets(st.integers(1, 39), max_size=6))
def test_a_host_copy_gives_any_runs_in_any_order_and_lets_go_after_the_last(stops):
    array = jnp.arange(40).reshape(5, 8)
    read = HostCopy(array)
    for start, stop in zip([0, *sorted(stops)], [*sorted(stops), 40], strict=True):
        assert read(start, stop).tolist() == list(range(start, stop))
    assert read._host is None
    assert read(3, 5).tolist() == [3, 4]


# Arrays.


def test_the_adapter_keeps_the_contract():
    examples = [
        *(ADAPTER.from_array(from_bytes(bytes(range(16)), dtype)) for dtype in DTYPES),
        jnp.zeros((0, 3)),
        jnp.asarray(1.5),
        *(jax.random.key(1, impl=impl) for impl in IMPLS),
        jax.random.split(jax.random.key(2), (2, 3)),
        FrozenDict({"a": jnp.ones(2), "b": {"c": 1}}),
        Layer(jnp.ones(2), "relu"),
    ]
    testing.check_adapter(ADAPTER, examples, compare=_differences_of_trees)


def _differences_of_trees(a, b):
    structures = [str(jax.tree.structure(tree)) for tree in (a, b)]
    if structures[0] != structures[1]:
        return [f"{structures[0]} and {structures[1]}"]
    return [line for pair in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True) for line in differences(*pair)]


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("dtype", ["int64", "uint64", "float64", "complex128"])
def test_64_bits_stay_64_bits_whatever_jax_is_set_to(dtype, x64):
    array = (
        np.array([2**60 + 1, 3]).astype(dtype) / np.array(1).astype(dtype)
        if "int" not in dtype
        else np.array([2**60 + 1, 3], dtype)
    )
    with jax.enable_x64(True):
        original = jax.device_put(array)
    data = encode({"saved": original, "numpy": array})
    with jax.enable_x64(x64):
        for restored in (
            decode(data)["saved"],
            decode(data, to="jax")["numpy"],
            decode(data, like={"saved": original, "numpy": original})["numpy"],
        ):
            assert restored.dtype == dtype
            assert np.asarray(restored).tobytes() == array.tobytes()


def test_a_weak_type_is_kept_for_compiled_functions_too():
    bfloat = jnp.ones(3, jnp.bfloat16)
    multiply = jax.jit(lambda a, b: a * b)
    strong, weak = jnp.ones(3), jnp.broadcast_to(jnp.asarray(1.0), (3,))
    assert multiply(strong, bfloat).dtype == jnp.float32
    restored = decode(encode([strong, weak]))
    assert [array.weak_type for array in restored] == [False, True]
    assert multiply(restored[0], bfloat).dtype == jnp.float32
    assert multiply(restored[1], bfloat).dtype == jnp.bfloat16


def test_a_template_decides_the_weak_type():
    weak, strong = jnp.asarray(1.0), jnp.float32(1)
    assert decode(encode(weak), like=strong).weak_type is False
    assert decode(encode(strong), like=weak).weak_type is True


def test_restored_keys_draw_the_same_numbers():
    for impl in IMPLS:
        key = jax.random.key(7, impl=impl)
        restored = decode(encode(key))
        assert jax.random.normal(restored, (3,)).tolist() == jax.random.normal(key, (3,)).tolist()


def test_keys_of_another_implementation_are_a_mismatch_for_a_template():
    data = encode({"key": jax.random.key(0), "raw": jax.random.PRNGKey(0)})
    for like, message in (
        ({"key": jax.random.key(0, impl="rbg"), "raw": jnp.zeros(2, jnp.uint32)}, r"key:"),
        ({"key": jnp.zeros(2, jnp.uint32), "raw": jnp.zeros(2, jnp.uint32)}, "typed PRNG keys"),
        ({"key": jax.random.key(0), "raw": jax.random.key(0)}, "raw: the template has typed PRNG keys"),
    ):
        with pytest.raises(pytreeckpt.StructureMismatchError, match=message):
            decode(data, like=like)


def test_keys_of_the_same_shape_and_another_implementation_are_a_mismatch():
    data = encode({"key": jax.random.key(0, impl="rbg")})
    with pytest.raises(pytreeckpt.StructureMismatchError, match="PRNG keys of unsafe_rbg, the checkpoint of rbg"):
        decode(data, like={"key": jax.random.key(0, impl="unsafe_rbg")})


def test_the_bits_of_a_torch_tensor_are_no_array_for_a_template():
    import torch

    data = encode({"w": torch.zeros(2, dtype=torch.uint8).view(torch.bits8)})
    with pytest.raises(pytreeckpt.StructureMismatchError, match="the bits of a torch tensor of dtype bits8"):
        decode(data, like={"w": jnp.zeros(2, jnp.uint8)})


def test_the_same_array_comes_back_as_one():
    array, key = jnp.ones(3), jax.random.key(0)
    restored = decode(encode([array, array, jnp.ones(3), key, key]))
    assert restored[0] is restored[1]
    assert restored[0] is not restored[2]
    assert restored[3] is restored[4]


def test_restored_arrays_are_uncommitted_unless_the_template_is_committed():
    array = jax.device_put(jnp.ones(3), jax.devices()[0])
    assert array.committed
    data = encode(array)
    assert not decode(data).committed
    assert decode(data, like=array).committed
    assert not decode(data, like=jnp.zeros(3)).committed


def test_saving_copies_no_cpu_array():
    array = jnp.arange(100.0)
    source = ADAPTER.expand(array).children[0]
    assert source.boxes[0](0, 100).__array_interface__["data"][0] == array.unsafe_buffer_pointer()


def test_restored_arrays_do_not_change_when_another_restored_array_does():
    data = encode({"numpy": np.ones(1000), "jax": jnp.ones(1000)})
    restored = decode(data)
    restored["numpy"] += 1
    assert restored["jax"].sum() == 1000


def test_a_slice_of_a_stored_array_is_an_array_of_jax(tmp_path):
    path = tmp_path / "t.ptck"
    pytreeckpt.save({"w": jnp.arange(10), "keys": jax.random.split(jax.random.key(0), 3)}, path)
    with pytreeckpt.open(path) as checkpoint:
        assert checkpoint["w"][2:4].tolist() == [2, 3]
        assert isinstance(checkpoint["w"][2:4], jax.Array)
        assert differences(checkpoint["keys"][1:], jax.random.split(jax.random.key(0), 3)[1:]) == []


def test_an_array_of_torch_becomes_one_of_jax():
    import torch

    restored = decode(encode([torch.ones(2, dtype=torch.bfloat16), torch.arange(3)]), to="jax")
    assert [array.dtype for array in restored] == [jnp.bfloat16, np.int64]


@pytest.mark.parametrize("dtype", ["M8[s]", "U3", "S2", [("a", "i4")], "longdouble", ml_dtypes.complex32], ids=str)
def test_a_dtype_that_jax_lacks_is_refused_by_name(dtype):
    data = encode({"a": {"b": np.zeros(2, dtype)}})
    with pytest.raises(UnsupportedTypeError, match=r"(?s)a/b.*jax has no dtype.*to=\"numpy\""):
        decode(data, to="jax")


def test_a_big_endian_array_gives_the_same_numbers():
    assert decode(encode(np.arange(3, dtype=">i8")), to="jax").tolist() == [0, 1, 2]


# Refusals.


def test_a_tracer_is_refused_when_saving_and_as_a_template():
    def save(array):
        with pytest.raises(UnsupportedTypeError, match=r"a: .*tracer"):
            encode({"a": array})
        with pytest.raises(UnsupportedTypeError, match="eval_shape"):
            decode(encode(1.0), like=array)
        return array.sum()

    jax.jit(save)(jnp.ones(3))
    jax.grad(save)(jnp.ones(3))
    jax.vmap(save)(jnp.ones((2, 3)))


def test_a_deleted_array_is_refused_for_saving_and_serves_as_a_template():
    array = jnp.ones(3)
    data = encode(array)
    array.delete()
    with pytest.raises(UnsupportedTypeError, match="deleted or donated"):
        encode(array)
    assert decode(data, like=array).tolist() == [1, 1, 1]


def test_an_array_of_several_processes_is_refused():
    distributed: Any = SimpleNamespace(is_fully_addressable=False, is_deleted=lambda: False)
    with pytest.raises(UnsupportedTypeError, match="process_allgather"):
        check_storable(distributed)


def test_keys_of_an_unregistered_implementation_are_refused():
    def as_it_is(key, *_arguments):
        return key

    impl = jax.extend.random.define_prng_impl(
        key_shape=(1,),
        seed=lambda seed: jnp.zeros(1, jnp.uint32),
        split=as_it_is,
        random_bits=as_it_is,
        fold_in=as_it_is,
    )
    with pytest.raises(UnsupportedTypeError, match="unregistered implementation"):
        encode(jax.random.wrap_key_data(jnp.zeros(1, jnp.uint32), impl=impl))


def test_keys_of_an_unknown_implementation_in_a_file_are_refused():
    expansion = ADAPTER.expand(jax.random.key(0))
    hostile = pytreeckpt.Record(expansion.type, [expansion.children[0], "os.system"])
    with pytest.raises(pytreeckpt.CorruptionError, match=r"jax\.PRNGKeyArray"):
        decode(encode(hostile))


# Pytree nodes.


@flax.struct.dataclass
class Layer:
    weight: Any
    activation: str = flax.struct.field(pytree_node=False, default="relu")


@jax.tree_util.register_pytree_node_class
class Pair:
    """Registered without names for its children."""

    def __init__(self, *children):
        self.children = children

    def tree_flatten(self):
        return self.children, "static"

    @classmethod
    def tree_unflatten(cls, static, children):
        assert static == "static"
        return cls(*children)


@dataclass
class Unregistered:
    weight: Any


class Named(NamedTuple):
    weight: Any


@pytest.mark.parametrize(
    ("node", "name", "fields"),
    [
        (Layer(1), f"{Layer.__module__}:Layer", ("weight",)),
        (Pair(1, 2), f"{Pair.__module__}:Pair", ("0", "1")),
        (FrozenDict({"b": 1, "a": 2}), "flax.core.frozen_dict:FrozenDict", ("a", "b")),
        (FrozenDict({}), "flax.core.frozen_dict:FrozenDict", ()),
        (FrozenDict({1: 2}), "flax.core.frozen_dict:FrozenDict", ("1",)),
    ],
    ids=["flax dataclass", "no names", "FrozenDict", "empty", "int keys"],
)
def test_a_registered_node_is_stored_by_the_names_of_its_children(node, name, fields):
    type_ = ADAPTER.expand(node).type
    assert (type_.class_kind, type_.name, type_.fields) == (ClassKind.PYTREE, name, fields)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (jax.tree_util.SequenceKey(3), "3"),
        (jax.tree_util.DictKey(("a", 1)), "('a', 1)"),
        ("a key of its own", "a key of its own"),
    ],
    ids=["index", "tuple", "own"],
)
def test_keys_of_any_kind_become_names(key, name):
    @jax.tree_util.register_pytree_with_keys_class
    class Odd:
        def tree_flatten_with_keys(self):
            return [(key, 1)], None

        def tree_flatten(self):
            return (1,), None

        @classmethod
        def tree_unflatten(cls, _static, _children):
            return cls()

    assert ADAPTER.expand(Odd()).type.fields == (name,)


def test_children_whose_names_are_the_same_are_numbered():
    @jax.tree_util.register_pytree_with_keys_class
    class Same:
        def tree_flatten_with_keys(self):
            return [(jax.tree_util.GetAttrKey("x"), 1), (jax.tree_util.GetAttrKey("x"), 2)], None

        def tree_flatten(self):
            return (1, 2), None

        @classmethod
        def tree_unflatten(cls, _static, _children):
            return cls()

    assert ADAPTER.expand(Same()).type.fields == ("0", "1")


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        [1],
        (1,),
        {"a": 1},
        Named(1),
        Unregistered(1),
        OrderedDict(a=1),
        deque([1]),
        optax.EmptyState(),
        object(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_core_or_nobody_knows_is_left_to_the_core(value):
    assert ADAPTER.expand(value) is None
    assert ADAPTER.template(value) is None


def test_a_node_reads_as_a_record_and_comes_back_with_a_template_and_its_static_fields():
    data = encode({"layer": Layer(jnp.ones(2), "gelu")})
    record = decode(data)["layer"]
    assert isinstance(record, pytreeckpt.Record)
    assert record.weight.tolist() == [1, 1]
    restored = decode(data, like={"layer": Layer(jnp.zeros(2), "tanh")})["layer"]
    assert isinstance(restored, Layer)
    assert restored.activation == "tanh"
    assert restored.weight.tolist() == [1, 1]


def test_a_frozen_dict_and_a_dict_go_into_each_other():
    plain: dict[str, Any] = {"a": {"b": jnp.ones(2)}, "e": {}}
    frozen = FrozenDict[str, Any](plain)
    assert decode(encode(frozen), like=plain)["a"]["b"].tolist() == [1, 1]
    restored = decode(encode(plain), like=frozen)
    assert isinstance(restored, FrozenDict)
    assert restored["a"]["b"].tolist() == [1, 1]


def test_a_training_state_of_flax_and_optax_comes_back_into_a_fresh_one_and_trains_on():
    def fresh():
        optimizer = optax.chain(
            optax.clip(1.0), optax.adamw(1e-2), optax.masked(optax.ema(0.9), {"w": True, "b": False})
        )
        params = {"w": jnp.zeros((2, 3)), "b": jnp.zeros(3)}
        return TrainState.create(apply_fn=lambda p, x: x @ p["w"] + p["b"], params=params, tx=optimizer)

    @jax.jit
    def step(state, x):
        return state.apply_gradients(grads=jax.grad(lambda p: (state.apply_fn(p, x) ** 2 + p["b"]).sum())(state.params))

    state = fresh()
    x = jnp.ones((4, 2))
    apply, tx = state.apply_fn, state.tx
    state = step(step(state, x), x)
    restored = decode(encode(state), like=fresh().replace(apply_fn=apply, tx=tx))
    assert str(jax.tree.structure(restored)) == str(jax.tree.structure(state))
    for a, b in zip(jax.tree.leaves(step(state, x)), jax.tree.leaves(step(restored, x)), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_the_state_of_an_nnx_module_comes_back_into_a_fresh_one():
    graph, state = nnx.split(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    _, template = nnx.split(nnx.Linear(2, 3, rngs=nnx.Rngs(1)))
    restored: Any = nnx.merge(graph, decode(encode(state), like=template))
    model: Any = nnx.merge(graph, state)
    assert restored.kernel[...].tolist() == model.kernel[...].tolist()


# Devices.


def test_sharded_arrays_on_eight_devices():
    """Devices are chosen when JAX starts, so these tests have a process of their own."""
    folder = pathlib.Path(__file__).parent
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder / "eight_devices.py")],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=folder.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
