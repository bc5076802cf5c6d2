"""Trees whose arrays are still in files: what is read, how often, and what is written of them."""

from collections import OrderedDict
from typing import NamedTuple
from unittest.mock import patch

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt import planning, reading
from pytreeckpt.operations import merge, merged, orders, renamed, select, selected, sources, stored_files
from pytreeckpt.operations.lazy import lazy
from pytreeckpt.operations.sources import Files
from tests.exact import assert_same
from tests.interop.foreign_files import FILES, TREE, as_numpy
from tests.strategies import trees_with_sharing

# None of the small arrays are read at once, some, and all.
SMALL_NBYTES = [0, 100, 16 << 20]


def rewritten(path, out, order="stored"):
    with ptc.open(path) as checkpoint:
        metadata, tree = lazy(checkpoint, order=order).build()
        ptc.save(tree, out, metadata=metadata, durability="atomic")


@settings(max_examples=settings.default.max_examples // 2)
@given(
    tree=trees_with_sharing(),
    chunk_nbytes=st.sampled_from([64, 2 << 20]),
    least=st.sampled_from([2, 32]),
    small_nbytes=st.sampled_from(SMALL_NBYTES),
)
def test_a_tree_that_goes_from_file_to_file_gives_the_same_bytes(
    tree, chunk_nbytes, least, small_nbytes, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("lazy")
    with (
        patch.object(planning, "CHUNK_NBYTES", chunk_nbytes),
        patch.object(planning, "INLINE_NBYTES", 8),
        patch.object(planning, "MIN_POOLED", least),
        patch.object(sources, "_SMALL_NBYTES", small_nbytes),
    ):
        ptc.save(tree, folder / "a.ptck", metadata={"by": 1}, durability="atomic")
        rewritten(folder / "a.ptck", folder / "b.ptck")
    assert (folder / "a.ptck").read_bytes() == (folder / "b.ptck").read_bytes()


def test_what_frameworks_have_goes_from_file_to_file_as_it_is(tmp_path):
    tied = torch.nn.Parameter(torch.arange(600.0).reshape(20, 30))
    tree = {
        "tied": [tied, tied],
        "t": torch.arange(600).reshape(20, 30).t().bfloat16(),
        "size": torch.Size([1, 2]),
        "dtype": torch.float16,
        "j": jnp.arange(500, dtype=jnp.bfloat16),
        "key": jax.random.key(3),
        "dict": OrderedDict(a=np.asfortranarray(np.arange(600).reshape(20, 30))),
    }
    ptc.save(tree, tmp_path / "a.ptck")
    rewritten(tmp_path / "a.ptck", tmp_path / "b.ptck")
    assert (tmp_path / "a.ptck").read_bytes() == (tmp_path / "b.ptck").read_bytes()
    with ptc.open(tmp_path / "a.ptck") as checkpoint:
        ptc.save(merged(checkpoint.tree), tmp_path / "c.ptck")
    found = ptc.restore(tmp_path / "c.ptck")
    assert found["tied"][0] is found["tied"][1]
    assert (type(found["tied"][0]), found["t"].stride(), found["j"].dtype) == (
        torch.nn.Parameter,
        (1, 30),
        jnp.bfloat16,
    )


@pytest.mark.parametrize("order", ["uncut", "C"])
@given(
    tree=st.sampled_from(["C", "F", "permuted"]),
    shape=st.sampled_from([(7,), (6, 10), (4, 5, 6), ()]),
    step=st.sampled_from([1, 7, 1000]),
)
def test_items_are_given_in_the_order_that_is_asked_for(order, tree, shape, step, tmp_path_factory):
    path = tmp_path_factory.mktemp("order") / "a.ptck"
    array = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
    if tree != "C":
        array = (
            array.copy("F") if tree == "F" else np.moveaxis(np.moveaxis(array, -1, 0).copy(), 0, -1) if shape else array
        )
    with (
        patch.object(planning, "INLINE_NBYTES", 0),
        patch.object(planning, "CHUNK_NBYTES", 64),
        patch.object(orders, "_TURNED_NBYTES", 40),
        patch.object(orders, "_MIN_TURNED_NBYTES", 40),
    ):
        ptc.save(array, path, durability="atomic")
        with ptc.open(path) as checkpoint:
            source = Files().array(checkpoint, 0, order=order)
            expected = array.transpose(source.axes) if source.axes else array
            assert order != "C" or source.axes is None
            assert source.cuts is None
            found = [source.boxes[0](at, min(at + step, array.size)) for at in range(0, array.size, step)]
    assert np.concatenate(found).tolist() == expected.reshape(-1).tolist()


def test_structs_with_padding_stay_apart(tmp_path):
    padded = np.dtype([("a", "i1"), ("b", "f8")], align=True)
    ptc.save({n: np.zeros(60, padded) for n in range(40)}, tmp_path / "a.ptck")
    rewritten(tmp_path / "a.ptck", tmp_path / "b.ptck")
    assert (tmp_path / "a.ptck").read_bytes() == (tmp_path / "b.ptck").read_bytes()


def test_an_array_in_boxes_is_given_as_one(tmp_path):
    array = np.arange(24 * 300, dtype=np.float32).reshape(24, 300)
    parts = [array[:10], array[10:]]
    source = ptc.ArraySource(
        array.dtype, array.shape, [lambda a, b, part=part: part.reshape(-1)[a:b] for part in parts], None, [[10], []]
    )
    ptc.save({"w": source}, tmp_path / "a.ptck")
    rewritten(tmp_path / "a.ptck", tmp_path / "b.ptck")
    assert (tmp_path / "a.ptck").read_bytes() == (tmp_path / "b.ptck").read_bytes()
    rewritten(tmp_path / "a.ptck", tmp_path / "c.ptck", order="uncut")
    assert_same(ptc.restore(tmp_path / "c.ptck"), {"w": array})


@pytest.mark.parametrize("threads", ["1", "3"])
@pytest.mark.parametrize("small_nbytes", SMALL_NBYTES)
def test_every_chunk_is_decoded_once(threads, small_nbytes, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTREECKPT_THREADS", threads)
    monkeypatch.setattr(sources, "_SMALL_NBYTES", small_nbytes)
    monkeypatch.setattr(planning, "CHUNK_NBYTES", 64 << 10)
    rng = np.random.default_rng(0)
    small = {f"s{n}": rng.random((10, n + 30), np.float32) for n in range(100)}
    ptc.save({"w": rng.random(200_000), "f": np.asfortranarray(rng.random((300, 70))), **small}, tmp_path / "a.ptck")
    rows = []
    check_chunk = reading.check_chunk
    monkeypatch.setattr(
        reading, "check_chunk", lambda row, *a, **k: (rows.append(row.offset), check_chunk(row, *a, **k))
    )
    rewritten(tmp_path / "a.ptck", tmp_path / "b.ptck")
    with ptc.open(tmp_path / "a.ptck") as checkpoint:
        offsets = checkpoint.index.chunks.offset.tolist()
    assert len(offsets) > 20
    # Of a pool, threads may ask for one chunk at once.
    assert sorted(set(rows)) == offsets
    assert len(rows) == len(offsets)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("small_nbytes", SMALL_NBYTES)
def test_foreign_files_are_read_run_by_run(name, small_nbytes, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_SMALL_NBYTES", small_nbytes)
    monkeypatch.setattr(stored_files, "_WHOLE_NBYTES", 1000)
    monkeypatch.setattr(planning, "CHUNK_NBYTES", 4096)
    FILES[name](tmp_path / "foreign")
    for order in ("stored", "C"):
        rewritten(tmp_path / "foreign", tmp_path / "out.ptck", order)
        assert_same(as_numpy(ptc.restore(tmp_path / "out.ptck", to="numpy")), TREE)


@pytest.mark.parametrize("suffix", ["ptck", "pt"])
def test_damage_to_a_small_array_hits_only_those_who_want_it(suffix, tmp_path):
    tree = {f"s{n}": torch.full((100,), float(n)) for n in range(40)} | {"w": torch.arange(50_000.0)}
    path = tmp_path / f"a.{suffix}"
    ptc.save(tree, path, compression="none") if suffix == "ptck" else torch.save(tree, path)
    data = bytearray(path.read_bytes())
    data[bytes(data).index(np.full(100, 7, np.float32).tobytes())] ^= 1
    path.write_bytes(data)
    with pytest.raises(ptc.CorruptionError, match="leaf s"):
        select(path, tmp_path / "b.ptck", "s7")
    assert not (tmp_path / "b.ptck").exists()
    select(path, tmp_path / "b.ptck", "w")
    assert torch.equal(ptc.restore(tmp_path / "b.ptck")["w"], tree["w"])


def test_a_limit_on_what_is_read_at_once_is_none_for_what_is_read_in_parts(tmp_path):
    ptc.save({f"s{n}": np.full(200, float(n)) for n in range(40)}, tmp_path / "a.ptck")
    with ptc.limits(arrays_nbytes=5000):
        rewritten(tmp_path / "a.ptck", tmp_path / "b.ptck")
    assert (tmp_path / "a.ptck").read_bytes() == (tmp_path / "b.ptck").read_bytes()


@pytest.mark.parametrize("nbytes", [0, 1 << 20])
def test_checksums_of_foreign_files_are_compared(nbytes, tmp_path, monkeypatch):
    monkeypatch.setattr(stored_files, "_WHOLE_NBYTES", nbytes)
    torch.save({"a": torch.arange(300.0), "w": torch.arange(5000.0)}, tmp_path / "a.pt")
    data = bytearray((tmp_path / "a.pt").read_bytes())
    at = bytes(data).index(np.float32(4000).tobytes() + np.float32(4001).tobytes())
    data[at] ^= 1
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(ptc.CorruptionError, match=r"a\.pt: leaf w: .* is damaged"):
        rewritten(tmp_path / "a.pt", tmp_path / "out.ptck")
    assert not (tmp_path / "out.ptck").exists()


def test_an_array_larger_than_what_is_kept_is_read_in_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_KEPT_NBYTES", 1)
    monkeypatch.setattr(sources, "_MIN_KEPT_NBYTES", 1)
    array = np.random.default_rng(0).random(400_000)
    monkeypatch.setattr(planning, "CHUNK_NBYTES", 3 << 16)
    ptc.save({"w": array}, tmp_path / "a.ptck")
    monkeypatch.setattr(planning, "CHUNK_NBYTES", 5 << 16)
    rewritten(tmp_path / "a.ptck", tmp_path / "b.ptck")
    assert_same(ptc.restore(tmp_path / "b.ptck"), {"w": array})


def test_operations_on_trees_follow_each_other(tmp_path):
    torch.save({"encoder": {"w": torch.ones(300)}, "step": 1}, tmp_path / "a.pt")
    ptc.save({"model": {"head": np.arange(300.0)}}, tmp_path / "b.ptck")
    with ptc.open(tmp_path / "a.pt") as a, ptc.open(tmp_path / "b.ptck") as b:
        tree = merged(selected(a.tree, "encoder"), {"head": b["model/head"]}, {"made": "by hand"})
        ptc.save(renamed(tree, {"encoder": "bert"}), tmp_path / "c.ptck")
        ptc.save(renamed(b.tree, {"model": "m"}), tmp_path / "d.ptck")
    found = ptc.restore(tmp_path / "c.ptck")
    assert torch.equal(found["bert"]["w"], torch.ones(300))
    assert_same({**found, "bert": 0}, {"bert": 0, "head": np.arange(300.0), "made": "by hand"})
    assert_same(ptc.restore(tmp_path / "d.ptck"), {"m": {"head": np.arange(300.0)}})


# Selecting.

NESTED = {"model": {"a": {"kernel": np.ones(3), "bias": np.zeros(2)}, "b": [np.ones(1), 5]}, "step": 3, "none": {}}


def test_selected_leaves_stay_in_their_dicts(tmp_path):
    ptc.save(NESTED, tmp_path / "a.ptck", metadata={"by": "me"})
    with ptc.open(tmp_path / "a.ptck") as checkpoint:
        ptc.save(selected(checkpoint.tree, ["**/kernel", "step"]), tmp_path / "b.ptck")
    expected = {"model": {"a": {"kernel": np.ones(3)}}, "step": 3}
    assert_same(ptc.restore(tmp_path / "b.ptck"), expected)
    assert_same(ptc.restore(tmp_path / "a.ptck", select=["**/kernel", "step"]), expected)
    select(tmp_path / "a.ptck", tmp_path / "c.ptck", lambda path: "kernel" in str(path) or str(path) == "step")
    assert_same(ptc.restore(tmp_path / "c.ptck"), expected)
    with ptc.open(tmp_path / "c.ptck") as checkpoint:
        assert checkpoint.metadata == {"by": "me"}
    ptc.save(selected(NESTED, "**/kernel"), tmp_path / "d.ptck")
    assert_same(ptc.restore(tmp_path / "d.ptck"), {"model": {"a": {"kernel": np.ones(3)}}})


class State(NamedTuple):
    params: object
    opt_state: object


def test_items_of_lists_and_records_cannot_be_left_out():
    with pytest.raises(ptc.StructureMismatchError, match=r"leaves out model/b\[1\]") as error:
        selected(NESTED, "model/b[0]")
    assert error.value.missing == ("model/b[1]",)
    with pytest.raises(ptc.StructureMismatchError, match=r"\.opt_state"):
        selected(State({"w": np.ones(2)}, {"m": np.ones(2)}), ".params")
    with pytest.raises(ptc.StructureMismatchError, match="'modle' matches no leaf; there is model"):
        selected(NESTED, ["modle", "step"])


# Merging.


def test_dicts_are_merged_to_any_depth(tmp_path):
    base = OrderedDict(a={"x": np.ones(2)}, n=1)
    more = {"a": {"y": np.zeros(2)}, "b": {}}
    ptc.save(base, tmp_path / "a.ptck")
    ptc.save(more, tmp_path / "b.ptck")
    expected = OrderedDict(a={"x": np.ones(2), "y": np.zeros(2)}, n=1, b={})
    merge([tmp_path / "a.ptck", tmp_path / "b.ptck"], tmp_path / "c.ptck", metadata=[1])
    assert_same(ptc.restore(tmp_path / "c.ptck"), expected)
    with ptc.open(tmp_path / "a.ptck") as one:
        ptc.save(merged(one.tree, more), tmp_path / "d.ptck")
    assert_same(ptc.restore(tmp_path / "d.ptck"), expected)
    assert list(base["a"]) == ["x"]
    deep, other = {}, {}
    for _ in range(3000):
        deep, other = {"d": deep}, {"d": other}
    assert ptc.encode(merged(deep, other)) == ptc.encode(deep)


def test_what_several_have_is_an_error_or_that_of_the_preferred():
    a, b = {"x": 1, "y": {"z": 2}, "only": 3}, {"x": 5, "y": 6}
    with pytest.raises(ptc.StructureMismatchError, match="prefer=") as error:
        merged(a, b)
    assert error.value.mismatched == ("x", "y")
    assert merged(a, b, prefer="first") == {"x": 1, "y": {"z": 2}, "only": 3}
    assert merged(a, b, prefer="last") == {"x": 5, "y": 6, "only": 3}
    with pytest.raises(ValueError, match="prefer='newest'"):
        merged(a, b, prefer="newest")
    with pytest.raises(ValueError, match="nothing to merge"):
        merged()


def test_a_tree_is_put_at_a_path_of_another(tmp_path):
    ptc.save({"w": np.ones(2)}, tmp_path / "base.ptck")
    ptc.save({"A": np.zeros(1)}, tmp_path / "lora.ptck")
    merge([tmp_path / "base.ptck", tmp_path / "lora.ptck"], tmp_path / "out.ptck", at=[None, "adapters/lora"])
    assert_same(ptc.restore(tmp_path / "out.ptck"), {"w": np.ones(2), "adapters": {"lora": {"A": np.zeros(1)}}})
    with pytest.raises(ValueError, match="1 paths for 2"):
        merged({}, {}, at=["a"])
    with pytest.raises(ptc.PathError, match="no dict key"):
        merged({}, {}, at=["", "a[0]"])
    with pytest.raises(TypeError, match="a list of them"):
        merge(str(tmp_path / "base.ptck"), tmp_path / "x.ptck")


def test_scalars_and_texts_of_trees_in_memory_stay_what_they_are(tmp_path):
    tree = {
        "s": np.str_("a\0"),
        "b": np.bytes_(b"x\0\0"),
        "f": ml_dtypes.bfloat16(1.5),
        "e": np.str_(""),
        "u": np.uint8(3),
    }
    ptc.save(merged(tree), tmp_path / "a.ptck")
    assert_same(ptc.restore(tmp_path / "a.ptck"), tree)
