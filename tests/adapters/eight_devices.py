"""Sharded JAX arrays, on eight devices: run by test_jax_leaves.py in a process of its own."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

import pytreeckpt
import pytreeckpt_jax
from pytreeckpt import decode, encode, testing
from pytreeckpt_jax.placement import from_parts, place
from pytreeckpt_jax.staging import HostCopy

ADAPTER: Any = pytreeckpt_jax.ADAPTER
DEVICES = np.array(jax.devices())
MESH = Mesh(DEVICES.reshape(2, 4), ("x", "y"))
SPECS = [
    *((), ("x",), ("y",), ("x", "y"), ("y", "x"), (("x", "y"),), (("y", "x"), None), (None, "x"), (None, ("y", "x"))),
    *((None, None, "y"), ("x", None, "y")),
]


def test_there_are_eight_devices():
    assert len(DEVICES) == 8


@given(st.sampled_from(SPECS), st.sampled_from(SPECS), st.sampled_from(["float32", "bfloat16", "int8", "uint4"]))
def test_an_array_of_any_sharding_comes_back_into_any_sharding(saved, wanted, dtype):
    values = (np.arange(8 * 8 * 8) % 13).astype(jnp.dtype(dtype)).reshape(8, 8, 8)
    array = jax.device_put(values, NamedSharding(MESH, PartitionSpec(*saved)))
    data = encode({"w": array})
    assert np.asarray(decode(data)["w"]).tobytes() == values.tobytes()
    sharding = NamedSharding(MESH, PartitionSpec(*wanted))
    for template in (jax.ShapeDtypeStruct(values.shape, dtype, sharding=sharding), jax.device_put(values, sharding)):
        restored = decode(data, like={"w": template})["w"]
        assert restored.sharding == sharding
        assert restored.committed
        assert np.asarray(restored).tobytes() == values.tobytes()


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_each_distinct_shard_is_one_box_of_the_grid(spec):
    array = jax.device_put(jnp.arange(512.0).reshape(8, 8, 8), NamedSharding(MESH, PartitionSpec(*spec)))
    source = ADAPTER.expand(array).children[0]
    distinct = {str(shard.index) for shard in array.addressable_shards}
    assert len(source.boxes) == len(distinct)
    assert (source.cuts is None) == (len(distinct) == 1)
    if source.cuts is not None:
        assert len(list(itertools.product(*([0, *cuts] for cuts in source.cuts)))) == len(distinct)


def test_shards_are_read_in_place_and_never_put_together():
    array = jax.device_put(jnp.ones((512, 512)), NamedSharding(MESH, PartitionSpec("x", "y")))
    source = ADAPTER.expand(array).children[0]
    pointers = {shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards}
    assert {read(0, 10).__array_interface__["data"][0] for read in source.boxes} == pointers


def test_a_large_sharded_array_is_read_by_slices(tmp_path):
    values = np.random.default_rng(0).normal(size=(2048, 1024)).astype(np.float32)
    array = jax.device_put(values, NamedSharding(MESH, PartitionSpec("y", "x")))
    path = tmp_path / "t.ptck"
    pytreeckpt.save({"w": array}, path)
    with pytreeckpt.open(path) as checkpoint:
        assert np.asarray(checkpoint["w"][500:530, 200:900]).tobytes() == values[500:530, 200:900].tobytes()
    assert testing.identical({"w": array}, pytreeckpt.restore(path)) == []


def test_keys_are_sharded_like_arrays():
    keys = jax.device_put(jax.random.split(jax.random.key(0), 8), NamedSharding(MESH, PartitionSpec("x")))
    restored = decode(encode(keys), like=keys)
    assert restored.sharding == keys.sharding
    assert (jax.random.key_data(restored) == jax.random.key_data(keys)).all()


def test_an_array_on_another_device_goes_back_there():
    array = jax.device_put(jnp.ones(3), DEVICES[3])
    assert decode(encode(array), like=array).devices() == {DEVICES[3]}
    weak = jax.device_put(jnp.asarray(1.0), DEVICES[3])
    restored = decode(encode(weak), like=weak)
    assert restored.devices() == {DEVICES[3]}
    assert restored.weak_type


def test_the_default_device_of_the_moment_is_used():
    data = encode({"weak": jnp.asarray(1.0), "w": jnp.ones(3), "key": jax.random.key(0)})
    for device in (DEVICES[0], DEVICES[5], DEVICES[0]):
        with jax.default_device(device):
            restored = decode(data)
        assert all(leaf.devices() == {device} for leaf in restored.values())


def test_a_host_copy_is_made_of_another_device():
    array = jax.device_put(jnp.arange(12).reshape(3, 4), SingleDeviceSharding(DEVICES[2]))
    assert HostCopy(array)(2, 5).tolist() == [2, 3, 4]


def test_a_sharding_that_other_processes_take_part_in_is_filled_by_parts(monkeypatch):
    monkeypatch.setattr(NamedSharding, "is_fully_addressable", property(lambda sharding: sharding.num_devices < 8))
    sharding = NamedSharding(MESH, PartitionSpec("x", "y"))
    assert place(jnp.arange(64.0).reshape(8, 8), sharding).sharding == sharding
    part = NamedSharding(Mesh(DEVICES[:4], "x"), PartitionSpec("x"))
    assert place(jnp.arange(64.0).reshape(8, 8), part).sharding == part


def test_every_process_can_give_its_part_of_an_array():
    sharding = NamedSharding(MESH, PartitionSpec("x", "y"))
    array = jnp.arange(64.0).reshape(8, 8)
    for values in (array, np.asarray(array)):
        placed = from_parts(values, sharding)
        assert placed.sharding == sharding
        assert (placed == array).all()
    keys = jax.random.split(jax.random.key(0), (8, 8))
    assert (jax.random.key_data(from_parts(keys, sharding)) == jax.random.key_data(keys)).all()


def test_a_small_or_empty_sharded_array_lives_in_the_index():
    for values in (jnp.arange(8), jnp.zeros((0, 8))):
        array = jax.device_put(
            values,
            NamedSharding(Mesh(DEVICES, "x"), PartitionSpec(None, "x") if values.ndim > 1 else PartitionSpec("x")),
        )
        assert decode(encode(array)).tolist() == values.tolist()
