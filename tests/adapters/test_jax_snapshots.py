"""JAX arrays that are saved in the background: deleted, donated or collected, the file has what they were."""

import gc
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt.snapshots import Needs, needs_of, snapshot
from pytreeckpt_jax import staging
from pytreeckpt_jax.staging import array_source
from tests.adapters.jax_arrays import arrays
from tests.test_snapshots import Memory, file_of, flat


@settings(max_examples=25)
@given(st.lists(arrays(), max_size=4))
def test_arrays_and_keys_that_are_deleted_right_afterwards_are_saved(tmp_path_factory, tree):
    path = tmp_path_factory.getbasetemp() / "arrays.ptck"
    expected = ptc.encode(tree)
    handle = ptc.save_async(tree, path, durability="atomic")
    for array in tree:
        array.delete()
    handle.result()
    assert path.read_bytes() == expected


def test_arrays_on_the_cpu_are_not_copied():
    tree = flat({"w": jnp.arange(100_000), "key": jax.random.key(3)})
    memory = Memory()
    copied = snapshot(tree, memory)
    assert (memory.nbytes, needs_of(tree)) == (0, Needs(0, 0))
    assert all(new is old for new, old in zip(copied.arrays, tree.arrays, strict=True))


@pytest.mark.parametrize("n", [10, 100, 300_000])
def test_an_array_that_is_donated_to_a_computation_is_saved_as_it_was(tmp_path, n):
    step = jax.jit(lambda state: state * 0 - 1, donate_argnums=0)
    state = jnp.arange(n, dtype=jnp.float32) + 0
    expected = ptc.encode({"state": state})
    handle = ptc.save_async({"state": state}, tmp_path / "x.ptck", durability="atomic")
    for _ in range(3):
        state = step(state)
    assert float(state[0]) == -1
    handle.result()
    assert (tmp_path / "x.ptck").read_bytes() == expected


def test_an_array_that_nobody_has_any_more_is_saved(tmp_path):
    state = {"w": jnp.arange(300_000) + 0, "key": jax.random.split(jax.random.key(1), 3)}
    expected = ptc.encode(state)
    handle = ptc.save_async(state, tmp_path / "x.ptck", durability="atomic")
    del state
    gc.collect()
    others = [jnp.full(300_000, 9) for _ in range(8)]
    handle.result()
    assert (tmp_path / "x.ptck").read_bytes() == expected
    assert len(others) == 8


# Devices that are not the host.


@settings(max_examples=25)
@given(st.lists(arrays(), min_size=1, max_size=4))
def test_arrays_of_other_devices_are_on_the_host_before_the_call_returns(tree):
    expected = ptc.encode(tree)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(staging, "is_on_host", lambda _array: False)
        before = flat(tree)
        assert not any(source.immutable for source in before.arrays)
        needs = needs_of(before)
        copied = snapshot(before, Memory())
    for array in tree:
        array.delete()
    assert file_of(copied) == expected
    # Tied arrays are in there once.
    assert needs.total_nbytes == sum(source.nbytes for source in before.arrays)


def test_all_copies_are_begun_before_the_first_is_waited_for(monkeypatch):
    events = []
    begin, wait = staging.ComingCopy.__init__, staging.ComingCopy.wait

    def begun(self, array):
        events.append("begin")
        begin(self, array)

    def waited(self):
        events.append("wait")
        wait(self)

    monkeypatch.setattr(staging, "is_on_host", lambda _array: False)
    monkeypatch.setattr(staging.ComingCopy, "__init__", begun)
    monkeypatch.setattr(staging.ComingCopy, "wait", waited)
    snapshot(flat([jnp.ones(3), jnp.ones(4)]), Memory())
    assert events == ["begin", "begin", "wait", "wait"]


def test_the_copy_is_not_kept_by_the_array(monkeypatch):
    monkeypatch.setattr(staging, "is_on_host", lambda _array: False)
    array = jnp.arange(1000.0)
    copy = staging.ComingCopy(array)
    assert copy._array is not array
    copy.wait()
    copy.wait()
    assert copy._array is None
    assert copy(10, 13).tolist() == [10, 11, 12]


SHARDED = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
import pytreeckpt as ptc
from pytreeckpt.snapshots import snapshot
from pytreeckpt_jax import staging
from tests.test_snapshots import Memory, file_of, flat

assert jax.device_count() == 8
mesh = jax.make_mesh((4, 2), ("x", "y"))
saved = 0
for spec in (PartitionSpec("x", "y"), PartitionSpec(None, "x"), PartitionSpec(("x", "y")), PartitionSpec()):
    array = jax.device_put(np.arange(64.0).reshape(8, 8), NamedSharding(mesh, spec))
    expected = ptc.encode(array)
    usual = staging.is_on_host
    for on_host in (usual, lambda _array: False, lambda array: usual(array) and 3 not in [d.id for d in array.devices()]):
        staging.is_on_host = on_host
        before = flat(array)
        copied = snapshot(before, Memory())
        staging.is_on_host = usual
        assert len(copied.arrays[0].boxes) == len(before.arrays[0].boxes)
        assert file_of(copied) == expected
        saved += 1
print("saved", saved)
"""


def test_a_sharded_array_is_copied_shard_by_shard():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", SHARDED],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "saved 12\n"


needs_accelerator = pytest.mark.skipif(jax.default_backend() == "cpu", reason="needs an accelerator")


@pytest.mark.gpu
@needs_accelerator
def test_a_donated_array_of_an_accelerator_is_saved_as_it_was(tmp_path):
    step = jax.jit(lambda state: state * 0 - 1, donate_argnums=0)
    state = jnp.arange(1_000_000.0)
    assert array_source(state, None).snapshot is not None
    handle = ptc.save_async(state, tmp_path / "x.ptck")
    state = step(state)
    handle.result()
    assert np.array_equal(ptc.restore(tmp_path / "x.ptck", to="numpy"), np.arange(1_000_000.0, dtype=np.float32))
