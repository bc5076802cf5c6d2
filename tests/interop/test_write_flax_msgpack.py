"""Flax's msgpack as we write it: byte for byte as flax does, and flax reads it."""

import argparse
import collections

import flax.serialization
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt import testing
from pytreeckpt.interop import write_flax_msgpack as module
from pytreeckpt.interop.flax_msgpack import read_flax_msgpack
from pytreeckpt.interop.foreign import read_whole
from pytreeckpt.interop.registered import registered
from pytreeckpt.interop.write_flax_msgpack import plan_flax_msgpack, write_flax_msgpack
from tests.exact import assert_same
from tests.interop.sources import source
from tests.interop.test_flax_msgpack import DTYPES, materialised, restored
from tests.strategies import ML_DTYPES, Point, State


def encoded(tree, **options):
    return b"".join(plan_flax_msgpack(tree, **options)())


def straight(value):
    """Arrays in C order: of others, flax writes the same items."""
    return np.array(value, order="C") if isinstance(value, np.ndarray) else value


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    testing.floats(),
    st.text(max_size=40),
    st.binary(max_size=40),
    st.builds(complex, testing.floats(), testing.floats()),
    testing.arrays(st.sampled_from(DTYPES)),
    testing.arrays(st.sampled_from(DTYPES), max_dims=0).map(lambda array: array[()]),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=17),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3), inner, max_size=17),
        st.builds(Point, inner, inner),
    ),
    max_leaves=20,
)


@given(TREES)
def test_a_tree_is_written_byte_for_byte_as_by_flax(tree):
    data = encoded(tree)
    assert data == flax.serialization.to_bytes(tree)
    found = read_flax_msgpack(source(data))
    assert_same(restored(flax.serialization.msgpack_restore(data)), materialised(found.tree))


@given(st.sampled_from(ML_DTYPES), st.lists(st.integers(0, 3), max_size=3).map(tuple))
def test_every_narrow_dtype_is_read_back_by_us_and_by_flax(dtype, shape):
    array = np.zeros(shape, np.uint8).astype(dtype)
    data = encoded({"a": array})
    assert_same(read_whole(read_flax_msgpack(source(data)).tree["a"]), array)
    assert_same(flax.serialization.msgpack_restore(data)["a"].copy(), array)


@pytest.mark.parametrize("limit", [1, 20, 100, 1000])
def test_large_arrays_are_cut_as_flax_cuts_them(monkeypatch, limit):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", limit)
    tree = {"a": np.arange(30.0).reshape(5, 6), "b": {"c": np.arange(7, dtype="i2").reshape(1, 7)}, "d": np.float32(1)}
    data = encoded(tree, max_chunk_nbytes=limit)
    assert data == flax.serialization.to_bytes(tree)
    assert_same(materialised(read_flax_msgpack(source(data)).tree), tree)
    assert module.MAX_CHUNK_NBYTES == 1 << 30


def test_flax_and_optax_states_come_back_through_from_bytes(tmp_path):
    params = {"dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2, jnp.bfloat16)}}
    tree = {"params": params, "opt": optax.adam(1e-3).init(params), "step": 3, "pair": (1, [2.5])}
    write_flax_msgpack(tree, tmp_path / "x")
    found = flax.serialization.from_bytes(jax.tree.map(jnp.zeros_like, tree), (tmp_path / "x").read_bytes())
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(tree), strict=True):
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))
    assert (tmp_path / "x").read_bytes() == flax.serialization.to_bytes(tree)
    ptc.save(tree, tmp_path / "x.ptck")
    with ptc.open(tmp_path / "x.ptck") as checkpoint:
        write_flax_msgpack(checkpoint.tree, tmp_path / "y")
    assert (tmp_path / "y").read_bytes() == (tmp_path / "x").read_bytes()


def test_what_flax_corrupts_is_right():
    tree = {"big": np.arange(3, dtype=">i4"), "strided": np.arange(6)[::2]}
    found = flax.serialization.msgpack_restore(encoded(tree))
    assert found["big"].tolist() == [0, 1, 2]
    assert found["strided"].tolist() == [0, 2, 4]


def test_tensors_records_and_int_keys_become_arrays_dicts_and_texts():
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).t())
    tree = {
        "model": collections.OrderedDict(w=weight, tied=weight),
        0: State(1, argparse.Namespace(a=2)),
        "empty": [{}, (), []],
    }
    found = flax.serialization.msgpack_restore(encoded(tree))
    assert found["model"]["w"].tolist() == found["model"]["tied"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert found["0"] == {"step": 1, "params": {"a": 2}}
    assert found["empty"] == {"0": {}, "1": {}, "2": {}}


@pytest.mark.parametrize(
    "value",
    [
        1 << 64,
        -(1 << 63) - 1,
        {1, 2},
        ...,
        torch.float32,
        torch.Size([1]),
        range(3),
        np.array(["a"]),
        np.zeros(1, [("a", "f4")]),
        np.zeros(1, "V0"),
        np.zeros(1, "V3"),
        np.str_("a"),
        np.array([1, None], object),
        {None: 1},
        {1.5: 1},
        {1: 2, "1": 3},
        {True: 1},
        jax.random.key(0),
        torch.zeros(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
        np.dtype("f4"),
    ],
    ids=repr,
)
def test_what_flax_does_not_hold_is_refused_with_its_path(tmp_path, value):
    with pytest.raises(ptc.UnsupportedTypeError, match=r"a\[0\]/b: "):
        write_flax_msgpack({"a": [{"b": value}]}, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_records_that_say_they_are_dicts_or_arrays_and_are_neither_are_refused():
    nested = np.zeros(1)
    for _ in range(3000):
        nested = registered("python.OrderedDict", nested)
    odd = [
        registered("python.OrderedDict", 5),
        registered("torch.Tensor", 5, False),
        registered("python.Counter", [1]),
    ]
    for value in [*odd, nested]:
        with pytest.raises(ptc.UnsupportedTypeError, match=r"^a/b: a (python|torch)\.[A-Za-z]+ is nothing"):
            encoded({"a": {"b": value}})


def test_texts_beyond_what_msgpack_counts_are_a_limit_error(monkeypatch):
    monkeypatch.setattr(module, "_MAX_TEXT", 10)
    for value in ("x" * 10, b"x" * 10):
        with pytest.raises(ptc.LimitError, match="longer than msgpack takes"):
            encoded({"a": value})


def test_deep_trees_need_no_recursion():
    tree = None
    for _ in range(3000):
        tree = [tree]
    assert encoded(tree) == b"\x81\xa10" * 3000 + b"\xc0"


def test_longdouble_is_named_as_numpy_names_it():
    data = encoded({"a": np.array([1.5], np.longdouble)})
    assert flax.serialization.msgpack_restore(data)["a"].dtype == np.longdouble
    assert read_whole(read_flax_msgpack(source(data)).tree["a"]).tolist() == [1.5]
    assert ml_dtypes.bfloat16 in {dtype.type for dtype in ML_DTYPES}
