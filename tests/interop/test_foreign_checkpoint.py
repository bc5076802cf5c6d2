"""An open foreign file is a checkpoint like any other: the same tree, references, selections, templates, slices."""

import argparse
import io
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
import torch.distributed.checkpoint
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt.content import Content
from pytreeckpt.interop import archives, foreign_reader
from pytreeckpt.interop.checksums import combine
from pytreeckpt.interop.contents import foreign_content
from pytreeckpt.interop.foreign import Check, ForeignArray, ForeignTree, Piece, strided
from pytreeckpt.interop.foreign_index import index_of
from pytreeckpt.interop.foreign_reader import ForeignReader
from pytreeckpt.leaf_paths import Paths
from pytreeckpt.limits import current_limits
from pytreeckpt.objects import ClassKind, ObjectType, Record
from pytreeckpt.reading import BytesSource
from tests import strategies as some
from tests.exact import assert_same, expected_strides
from tests.sources import RecordingSource


def checkpoint_of(tree: ForeignTree, path: str | None = None) -> ptc.Checkpoint:
    index, arrays = index_of(tree, current_limits())
    reader = ForeignReader(index, Paths(index), arrays, {id(check.source): check for check in tree.checks})
    return ptc.Checkpoint(
        Content(tree.format, index, reader, 0, tree.sources, None, tree.notes, len(tree.checks)), path
    )


def opened(tree: object, metadata: object = None, **options) -> ptc.Checkpoint:
    return checkpoint_of(ForeignTree("test", tree, metadata, **options))


def foreign(array: np.ndarray, identity=None) -> ForeignArray:
    """The array in the memory that it is in, with its strides."""
    if array.size == 0:
        return ForeignArray(array.dtype, array.shape, (), identity)
    low = sum(stride * (n - 1) for stride, n in zip(array.strides, array.shape, strict=True) if stride < 0)
    high = sum(stride * (n - 1) for stride, n in zip(array.strides, array.shape, strict=True) if stride > 0)
    start = array.__array_interface__["data"][0] + low
    memory = (np.ctypeslib.ctypes.c_uint8 * (high - low + array.itemsize)).from_address(start)
    copy = bytes(memory)
    # The stride of an axis with one item means nothing: it is that of a fresh array in this order.
    dense = zip(array.shape, array.strides, expected_strides(array), strict=True)
    strides = expected_strides(array) if all(n == 1 or a == b for n, a, b in dense) else array.strides
    return strided(RecordingSource(copy), -low, array.dtype, array.shape, strides, identity=identity)


@st.composite
def trees(draw):
    """A tree of arrays of every dtype and layout, some of them shared, and the same as a foreign file has it."""
    arrays = [draw(some.arrays()) for _ in range(draw(st.integers(1, 4)))]
    twins = [foreign(array, identity=("storage", number)) for number, array in enumerate(arrays)]
    order = draw(st.lists(st.integers(0, len(arrays) - 1), min_size=1, max_size=6))
    rest = draw(st.lists(st.integers() | st.text(max_size=3) | st.none() | st.floats(allow_nan=False), max_size=3))

    def made(items):
        return {
            "first": [items[number] for number in order],
            "rest": rest,
            3: OrderedDict(a=(items[0], argparse.Namespace(x=1))),
        }

    return made(arrays), made(twins)


@given(trees())
def test_a_foreign_tree_comes_back_as_if_it_had_been_saved(given_):
    tree, twin = given_
    with opened(twin) as checkpoint:
        assert_same(checkpoint.restore(), ptc.decode(ptc.encode(tree)))
        assert_same(checkpoint.restore(verify=False), ptc.decode(ptc.encode(tree)))


@given(trees())
def test_the_index_is_that_of_a_saved_tree(given_):
    tree, twin = given_
    with opened(twin) as checkpoint, ptc.Checkpoint(BytesSource(memoryview(ptc.encode(tree))), None) as saved:
        assert checkpoint.index.nodes == saved.index.nodes
        assert checkpoint.index.descriptors == saved.index.descriptors
        assert [entry.shape for entry in checkpoint.index.arrays] == [entry.shape for entry in saved.index.arrays]
        assert [entry.axes for entry in checkpoint.index.arrays] == [entry.axes for entry in saved.index.arrays]
        assert [str(path) for path, _ in checkpoint.leaves()] == [str(path) for path, _ in saved.leaves()]
        assert [repr(leaf) for _, leaf in checkpoint.leaves()] == [repr(leaf) for _, leaf in saved.leaves()]


@given(trees())
def test_a_tree_that_was_restored_fills_itself_as_a_template(given_):
    tree, twin = given_
    with opened(twin) as checkpoint:
        like = checkpoint.restore()
        assert_same(checkpoint.restore(like=like), ptc.decode(ptc.encode(tree)))


def test_arrays_in_memory_come_back_and_the_small_ones_are_in_the_index():
    tree = {
        "small": np.arange(3),
        "large": np.asfortranarray(np.random.default_rng(0).standard_normal((20, 30))),
        "scalar": np.float32(1.5),
        "text": np.array(["a", "bc"]),
        "objects": np.array([1, None, "x"], object),
    }
    with opened(tree) as checkpoint:
        assert_same(checkpoint.restore(), tree)
        by_path = {str(path): leaf for path, leaf in checkpoint.leaves()}
        inline = {
            path
            for path, leaf in by_path.items()
            if isinstance(leaf, ptc.ArrayRef) and checkpoint.index.arrays[leaf.array].inline
        }
        assert inline == {"small", "text"}
        assert checkpoint["scalar"] == np.float32(1.5)
        assert np.array_equal(checkpoint["small"][1:], [1, 2])
        assert np.array_equal(checkpoint["large"][3:5, 7], tree["large"][3:5, 7])


def test_the_same_object_is_the_same_array_without_an_identity():
    array = foreign(np.arange(100.0))
    other = foreign(np.arange(100.0))
    with opened([array, other, array]) as checkpoint:
        first, second, third = checkpoint.restore()
    assert first is third
    assert first is not second


def test_arrays_of_one_identity_that_lie_in_two_places_are_two():
    arrays = [foreign(np.arange(100.0) + number, identity="same") for number in range(2)]
    again = [ForeignArray(array.dtype, array.shape, array.pieces, "same") for array in arrays]
    with opened([*arrays, *again]) as checkpoint:
        first, second, *twins = checkpoint.restore()
    assert np.array_equal(first + 1, second)
    assert twins[0] is first
    assert twins[1] is second


def test_the_metadata_and_the_notes_are_those_of_the_file():
    with opened({"a": 1}, {"format": "pt"}, notes=("2 objects of m:C became records",)) as checkpoint:
        assert checkpoint.metadata == {"format": "pt"}
        assert checkpoint.notes == ("2 objects of m:C became records",)
        assert checkpoint.format == "test"
        assert checkpoint.root is None
        assert checkpoint.footer is None
        assert repr(checkpoint) == "<Checkpoint in memory: 0 arrays, test>"


def test_a_slice_reads_only_what_it_touches():
    matrix = np.arange(1 << 16, dtype=np.float32).reshape(256, 256)
    array = foreign(matrix)
    source = array.pieces[0].source
    with opened({"m": array}, checks=(Check("m", source, 0),)) as checkpoint:
        assert source.ranges == []
        assert np.array_equal(checkpoint["m"][17], matrix[17])
        assert source.ranges == [(17 * 1024, 18 * 1024)]
        source.ranges.clear()
        assert np.array_equal(checkpoint["m"][3:5, ::2], matrix[3:5, ::2])
        assert sum(high - low for low, high in source.ranges) < 3 * 1024


def test_selecting_reads_only_what_is_selected():
    tree = {name: foreign(np.arange(1000.0)) for name in "ab"}
    with opened(tree) as checkpoint:
        assert list(checkpoint.restore(select="b")) == ["b"]
    assert tree["a"].pieces[0].source.ranges == []
    with pytest.raises(ptc.StructureMismatchError, match="select 'c' matches no leaf"):
        opened(tree).restore(select="c")


def test_what_a_tree_cannot_hold_is_refused():
    record = Record(ObjectType(ClassKind.RECORD, "m:C", ()), ())
    for tree in ({record: 1}, {"a": object()}, {"a": "\ud800"}, [ForeignArray(np.dtype(object), (0,), ())]):
        with pytest.raises(ptc.UnsupportedTypeError, match="this test file holds what a tree cannot hold"):
            opened(tree)
    odd = Record(ObjectType(ClassKind.WRAPPER, "torch.Tensor", ("x",)), (1,))
    with pytest.raises(ptc.CorruptionError, match="registry"):
        opened(odd)


def test_an_array_that_breaks_its_promise_is_refused_with_its_path():
    source = BytesSource(memoryview(bytes(10)))
    dtype = np.dtype(np.uint8)
    tree = {"a": {"b": ForeignArray(dtype, (3,), (Piece(ptc.Box((0,), (2,)), source, 0, (1,)),))}}
    with pytest.raises(ptc.CorruptionError, match="leaf a/b: the 1 pieces") as caught:
        opened(tree)
    assert caught.value.leaf == "a/b"
    with pytest.raises(ptc.LimitError, match="leaf at the root: an array of 65 axes"):
        opened(ForeignArray(dtype, (1,) * 65, ()))


def test_the_limits_hold():
    with ptc.limits(arrays_nbytes=100), pytest.raises(ptc.LimitError, match="arrays_nbytes"):
        opened([foreign(np.arange(20.0))]).restore()
    with ptc.limits(nodes=10), pytest.raises(ptc.LimitError, match="nodes"):
        opened([list(range(20))])
    deep: list = []
    for _ in range(50):
        deep = [deep]
    with ptc.limits(depth=20), pytest.raises(ptc.LimitError, match="depth"):
        opened(deep)


def test_progress_comes_to_its_end(monkeypatch):
    monkeypatch.setattr(foreign_reader, "_PART_NBYTES", 1 << 12)
    monkeypatch.setattr(foreign_reader, "_BATCH_NBYTES", 1 << 12)
    steps: list[ptc.Progress] = []
    with opened([foreign(np.zeros(1 << 13)), foreign(np.zeros(3))]) as checkpoint:
        checkpoint.restore(progress=steps.append)
    total = 8 * ((1 << 13) + 3)
    assert len(steps) > 10
    assert [step.done_nbytes for step in steps] == sorted(step.done_nbytes for step in steps)
    assert {step.total_nbytes for step in steps} == {total}
    assert steps[-1].done_nbytes == total


# Checksums.


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_a_checksum_is_put_together_from_those_of_parts(first, second):
    assert combine(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(foreign_reader, "_PART_NBYTES", 64)
    monkeypatch.setattr(foreign_reader, "_BATCH_NBYTES", 64)
    monkeypatch.setattr(foreign_reader, "_HEADER_NBYTES", 24)


@st.composite
def checked_trees(draw):
    """Arrays in sources with checksums: one alone, one behind a header, several in one, one of parts of two."""
    data = [np.random.default_rng(seed).bytes(400) for seed in range(3)]
    sources = [RecordingSource(item) for item in data]
    octets = np.dtype(np.uint8)
    tree = {
        "alone": strided(sources[0], 0, np.dtype("<u4"), (100,), (4,)),
        "headed": strided(sources[1], draw(st.sampled_from([0, 5, 24, 100])), octets, (300,), (1,)),
        "part": strided(sources[2], 8, octets, (20, 10), (1, 20)),
        "other part": strided(sources[2], 100, octets, (50,), (3,)),
        "both": ForeignArray(
            octets, (20,), tuple(Piece(ptc.Box((10 * i,), (10,)), sources[i + 1], i, (1,)) for i in (0, 1))
        ),
    }
    checks = tuple(
        Check(f"member {number}", source, zlib.crc32(item))
        for number, (source, item) in enumerate(zip(sources, data, strict=True))
    )
    return tree, checks


@given(checked_trees(), st.integers(0, 2), st.integers(0, 399), st.integers(1, 255))
@pytest.mark.usefixtures("small_parts")
def test_damage_of_any_byte_is_found_by_whoever_reads_its_member(given_, member, place, bits):
    tree, checks = given_
    with opened(tree, checks=checks) as checkpoint:
        whole = checkpoint.restore()
        assert list(checkpoint.damage()) == []
        source = checks[member].source
        damaged = bytearray(source.inner.data)
        damaged[place] ^= bits
        source.inner = BytesSource(memoryview(bytes(damaged)))
        (problem,) = checkpoint.damage()
        assert f"member {member} is damaged" in str(problem)
        assert problem.rule == "CRC-32"
        for path, array in tree.items():
            if any(piece.source is source for piece in array.pieces):
                with pytest.raises(ptc.CorruptionError, match=f"member {member} is damaged: its CRC-32") as caught:
                    checkpoint.restore(select=path)
                assert caught.value.leaf in {path, None}
                with pytest.raises(ptc.CorruptionError):
                    list(checkpoint.content.reader.scan([checkpoint[path].array], np.sum))
                checkpoint.restore(select=path, verify=False)
            else:
                assert_same(checkpoint.restore(select=path)[path], whole[path])


@given(checked_trees())
@pytest.mark.usefixtures("small_parts")
def test_every_member_is_read_but_once_where_an_array_is_nearly_all_of_it(given_):
    tree, checks = given_
    with opened({"alone": tree["alone"]}, checks=checks) as checkpoint:
        checkpoint.restore()
    source = tree["alone"].pieces[0].source
    assert sum(high - low for low, high in source.ranges) == source.nbytes


def test_a_compressed_member_is_unpacked_once(tmp_path, monkeypatch):
    monkeypatch.setattr(foreign_reader, "_PART_NBYTES", 64)
    monkeypatch.setattr(foreign_reader, "_BATCH_NBYTES", 64)
    array = np.arange(1000.0).reshape(20, 50)
    np.savez_compressed(tmp_path / "x.npz", a=array, f=np.asfortranarray(array))
    unpacked = []
    unpack = archives.Deflated._unpack
    monkeypatch.setattr(archives.Deflated, "_unpack", lambda self: unpacked.append(self) or unpack(self))
    with ptc.open(tmp_path / "x.npz") as checkpoint:
        assert np.array_equal(checkpoint["a"][0, :3], [0, 1, 2])
        # The beginning of a member is read without the rest.
        assert unpacked == []
        restored = checkpoint.restore()
    assert len(unpacked) == 2
    assert_same(restored, {"a": array, "f": np.asfortranarray(array)})


def test_scanning_gives_every_item_once(small_parts):
    arrays = [np.arange(200.0), np.arange(30.0).reshape(5, 6).T, np.arange(3)]
    with opened([foreign(arrays[0]), foreign(arrays[1]), arrays[2]]) as checkpoint:
        sums: dict[int, float] = {}
        for number, part in checkpoint.content.reader.scan([0, 1, 2], lambda values: float(values.sum())):
            sums[number] = sums.get(number, 0.0) + part
    assert sums == {number: float(array.sum()) for number, array in enumerate(arrays)}


def test_a_source_that_cannot_be_read_is_an_error_with_the_leaf():
    class Torn:
        nbytes = 100

        def read_into(self, offset, buffers):
            raise ptc.CorruptionError("torn", rule="end")

    array = strided(Torn(), 0, np.dtype(np.uint8), (100,), (1,))
    with opened({"a": {"b": array}}) as checkpoint:
        for read in (checkpoint.restore, lambda: checkpoint["a/b"][3:4]):
            with pytest.raises(ptc.CorruptionError, match="leaf a/b: torn") as caught:
                read()
            assert (caught.value.leaf, caught.value.rule) == ("a/b", "end")
        assert [problem.leaf for problem in checkpoint.damage()] == ["a/b"]


# Real files.


def state():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    model[0].weight.data = model[0].weight.data.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    flat = torch.randn(100)
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "views": [flat[:30], flat[30:90].view(6, 10).T, flat[::2], flat[:30]],
        "parameter": torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16)),
        "epoch": 3,
    }


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def saved(request, tmp_path):
    path = tmp_path / "state.pt"
    torch.save(state(), path, _use_new_zipfile_serialization=request.param)
    return path


def test_a_torch_file_restores_as_torch_loads_it(saved):
    loaded = torch.load(saved, weights_only=False)
    assert ptc.encode(ptc.restore(saved)) == ptc.encode(loaded)
    as_numpy = ptc.restore(saved, to="numpy")
    assert as_numpy["model"]["0.weight"].strides == tuple(4 * stride for stride in loaded["model"]["0.weight"].stride())
    assert as_numpy["views"][0] is as_numpy["views"][3]
    restored = ptc.restore(saved, to="jax", select="model")
    assert type(restored["model"]["0.weight"]).__module__.startswith("jax")


def test_a_tensor_comes_back_with_its_strides(tmp_path):
    tensors = [
        torch.randn(8, 1, 3, 3).to(memory_format=torch.channels_last),
        torch.randn(8, 1, 3, 3),
        torch.randn(1, 4, 1, 5).permute(3, 0, 1, 2),
        torch.randn(2, 3, 4).permute(2, 0, 1),
    ]
    torch.save(tensors, tmp_path / "x.pt")
    assert [tensor.stride() for tensor in ptc.restore(tmp_path / "x.pt")] == [tensor.stride() for tensor in tensors]


def test_a_torch_file_fills_a_template(saved):
    like = state()
    for tensor in like["model"].values():
        tensor.zero_()
    before = {name: tensor.data_ptr() for name, tensor in like["model"].items()}
    restored = ptc.restore(saved, like=like)
    loaded = torch.load(saved, weights_only=False)
    for name, tensor in restored["model"].items():
        assert torch.equal(tensor, loaded["model"][name])
        assert tensor.data_ptr() == before[name]


def test_a_torch_file_is_mapped(saved):
    loaded = torch.load(saved, weights_only=False)
    mapped = ptc.restore(saved, select=["model", "parameter"], mmap=True)
    for name, tensor in loaded["model"].items():
        assert torch.equal(mapped["model"][name], tensor)
    # Copied on write.
    mapped["model"]["0.bias"].zero_()
    assert torch.equal(ptc.restore(saved)["model"]["0.bias"], loaded["model"]["0.bias"])
    with pytest.raises(ptc.NotMappableError, match="leaf views"):
        ptc.restore(saved, mmap=True, select="views[2]")


def test_arrays_that_are_not_aligned_in_their_file_are_copied(tmp_path):
    data = np.arange(1000.0)
    (tmp_path / "x").write_bytes(b"\0" * 3 + data.tobytes())
    file = ptc.storage.LocalStorage().open(str(tmp_path / "x"))
    tree = {
        name: strided(file, offset, np.dtype(dtype), (900,), (np.dtype(dtype).itemsize,))
        for name, offset, dtype in [("f", 3, "f8"), ("b", 3, "u1")]
    }
    with opened(tree, sources=(file,)) as checkpoint:
        mapped = checkpoint.restore(mmap=True)
    assert np.array_equal(mapped["f"], data[:900])
    assert mapped["f"].flags.aligned
    assert mapped["f"].flags.owndata
    assert not mapped["b"].flags.owndata
    assert bytes(mapped["b"]) == data.tobytes()[:900]


def test_what_is_in_memory_or_compressed_cannot_be_mapped(tmp_path):
    with opened([foreign(np.arange(100))]) as checkpoint, pytest.raises(ptc.NotMappableError, match="leaf"):
        checkpoint.restore(mmap=True)
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros(1000))
    with pytest.raises(ptc.NotMappableError, match="leaf a"):
        ptc.restore(tmp_path / "x.npz", mmap=True)
    np.savez(tmp_path / "y.npz", a=np.arange(1000), empty=np.zeros((0, 3)), objects=np.array([None]))
    mapped = ptc.restore(tmp_path / "y.npz", mmap=True)
    assert np.array_equal(mapped["a"], np.arange(1000))
    assert mapped["empty"].shape == (0, 3)


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_damaged_member_of_a_torch_file_is_named(tmp_path):
    path = tmp_path / "state.pt"
    torch.save({"a": torch.arange(1000), "b": torch.arange(2000)}, path)
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("state/data/1")
        place = archive.open(info)._orig_compress_start
    flip(path, place + 5)
    with pytest.raises(
        ptc.CorruptionError, match="leaf b: state/data/1 is damaged: its CRC-32 does not match"
    ) as caught:
        ptc.restore(path)
    assert str(path) in str(caught.value)
    assert caught.value.leaf == "b"
    assert torch.equal(ptc.restore(path, select="a")["a"], torch.arange(1000))
    assert ptc.restore(path, verify=False)["b"].shape == (2000,)
    with pytest.raises(ptc.CorruptionError, match="leaf b"):
        ptc.restore(path, mmap=True)
    report = ptc.verify(path)
    assert [(problem.kind, problem.rule, problem.leaf) for problem in report.problems] == [("corrupt", "CRC-32", "b")]


def flip_storage(path, name="state/data/0"):
    with zipfile.ZipFile(path) as archive:
        place = archive.open(archive.getinfo(name))._orig_compress_start
    flip(path, place + 5)


def test_a_whole_array_that_is_read_through_its_reference_is_checked_and_a_slice_is_not(tmp_path):
    path = tmp_path / "state.pt"
    torch.save({"a": torch.arange(1000), "b": torch.arange(2000)}, path)
    flip_storage(path, "state/data/1")
    with ptc.open(path) as checkpoint:
        assert np.array_equal(np.asarray(checkpoint["a"]), np.arange(1000))
        for read in (np.asarray, lambda ref: ref.read(), lambda ref: ref[...], lambda ref: ref[0:2000]):
            with pytest.raises(ptc.CorruptionError, match="leaf b: state/data/1 is damaged: its CRC-32") as caught:
                read(checkpoint["b"])
            assert caught.value.leaf == "b"
        assert checkpoint["b"][5:2000].shape == (1995,)
        assert checkpoint["b"][7] == 7


def test_damage_outside_the_only_view_of_a_storage_is_found_with_the_view(tmp_path):
    path = tmp_path / "state.pt"
    torch.save({"a": torch.arange(4000).reshape(4, 1000).t()[100:, 1:3]}, path)
    flip_storage(path)
    with ptc.open(path) as checkpoint, pytest.raises(ptc.CorruptionError, match="leaf a: state/data/0 is damaged"):
        np.asarray(checkpoint["a"])


def test_the_views_of_one_storage_have_it_checked_but_once():
    data = np.random.default_rng(0).bytes(1000)
    source = RecordingSource(data)
    tree = [strided(source, 10 * place, np.dtype(np.uint8), (10,), (1,)) for place in range(100)]
    with opened(tree, checks=(Check("m", source, zlib.crc32(data)),)) as checkpoint:
        for place in range(100):
            assert np.asarray(checkpoint[f"[{place}]"]).tobytes() == data[10 * place :][:10]
        assert sum(high - low for low, high in source.ranges) <= 1000 + 100 * 10


def test_what_is_changed_when_it_is_read_is_checked_before(tmp_path):
    complexes = torch.randn(1000, dtype=torch.complex64)
    for name, tensor in {
        "conjugated": complexes.conj(),
        "negated": torch._neg_view(torch.randn(1000)),
        "both": torch._neg_view(complexes.conj()),
    }.items():
        path = tmp_path / f"{name}.pt"
        torch.save({"a": tensor}, path)
        assert torch.equal(ptc.restore(path)["a"], tensor)
        assert ptc.verify(path).ok
        flip_storage(path, f"{name}/data/0")
        check_damage(path, f"{name}/data/0")


def check_damage(path, member):
    match = f"leaf a: {member} is damaged: its CRC-32 does not match"
    for select in (None, "a"):
        with pytest.raises(ptc.CorruptionError, match=match):
            ptc.restore(path, select=select)
    with ptc.open(path) as checkpoint:
        with pytest.raises(ptc.CorruptionError, match=match):
            np.asarray(checkpoint["a"])
        with pytest.raises(ptc.CorruptionError, match=match):
            list(checkpoint.content.reader.scan([checkpoint["a"].array], np.sum))
    assert [problem.rule for problem in ptc.verify(path).problems] == ["CRC-32"]
    assert ptc.restore(path, verify=False)["a"].shape == (1000,)


def test_big_endian_storages_are_checked_as_they_are_in_the_file(tmp_path):
    torch.save({"a": torch.arange(1000)}, tmp_path / "little.pt")
    path = tmp_path / "big.pt"
    with zipfile.ZipFile(tmp_path / "little.pt") as little, zipfile.ZipFile(path, "w") as big:
        for name in little.namelist():
            content = little.read(name)
            if name.endswith("/data/0"):
                content = np.frombuffer(content, "<i8").astype(">i8").tobytes()
            big.writestr(name, b"big" if name.endswith("byteorder") else content)
    assert torch.equal(ptc.restore(path)["a"], torch.arange(1000))
    assert ptc.verify(path).ok
    flip_storage(path, "little/data/0")
    check_damage(path, "little/data/0")


def test_verifying_says_what_could_be_checked(tmp_path):
    torch.save({"a": torch.arange(1000)}, tmp_path / "x.pt")
    report = ptc.verify(tmp_path / "x.pt")
    assert report.ok
    assert (report.format, report.coverage, report.root, report.n_arrays) == ("torch zip", "checksums", None, 1)
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        assert report.n_checks == len(archive.namelist())
    safetensors.numpy.save_file({"a": np.arange(1000)}, tmp_path / "x.safetensors")
    report = ptc.verify(tmp_path / "x.safetensors")
    assert report.ok
    assert (report.format, report.coverage, report.n_checks) == ("safetensors", "structure", 0)
    assert report.file_nbytes == (tmp_path / "x.safetensors").stat().st_size
    ptc.save({"a": np.arange(1000)}, tmp_path / "x.ptck")
    report = ptc.verify(tmp_path / "x.ptck")
    assert (report.format, report.coverage, report.n_checks) == ("pytreeckpt", "every byte", 0)
    (tmp_path / "x").write_bytes(b"no checkpoint")
    report = ptc.verify(tmp_path / "x")
    assert not report.ok
    assert (report.format, report.coverage, report.file_nbytes) == ("", "structure", 13)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ptc.NotACheckpointError, match="this is a directory"):
        ptc.verify(tmp_path / "folder")


def test_a_file_that_holds_what_a_tree_cannot_is_reported(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"a": "\ud800"}, path)
    report = ptc.verify(path)
    assert [problem.kind for problem in report.problems] == ["unsupported"]
    with pytest.raises(ptc.UnsupportedTypeError, match="torch zip file holds what a tree cannot") as caught:
        ptc.open(path)
    assert str(path) in str(caught.value)


def test_a_torch_file_without_checksums_is_read_and_says_so(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(1000)}, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert torch.equal(ptc.restore(tmp_path / "x.pt")["a"], torch.arange(1000))
    report = ptc.verify(tmp_path / "x.pt")
    assert report.ok
    assert (report.coverage, report.n_checks) == ("structure", 0)
    with ptc.open(tmp_path / "x.pt") as checkpoint:
        assert checkpoint.notes == ("all of its checksums are 0, so it was saved without any",)


def test_a_whole_module_is_records_of_its_parts(tmp_path):
    module = torch.nn.Linear(2, 3)
    torch.save(module, tmp_path / "x.pt")
    restored = ptc.restore(tmp_path / "x.pt")
    assert type(restored) is Record
    assert torch.equal(restored["_parameters"]["weight"], module.weight)
    with ptc.open(tmp_path / "x.pt") as checkpoint:
        assert any("torch.nn.modules.linear:Linear" in note for note in checkpoint.notes)
        assert checkpoint["._parameters/weight"].shape == (3, 2)


def test_a_distributed_folder_is_put_together(tmp_path):
    tree = {"model": {"w": torch.randn(30, 4), "b": torch.arange(5)}, "step": 7}
    torch.distributed.checkpoint.save(tree, checkpoint_id=tmp_path / "x", no_dist=True)
    restored = ptc.restore(tmp_path / "x")
    assert torch.equal(restored["model"]["w"], tree["model"]["w"])
    assert restored["step"] == 7
    with ptc.open(tmp_path / "x") as checkpoint:
        assert checkpoint.nbytes == sum(file.stat().st_size for file in (tmp_path / "x").iterdir())
        assert torch.equal(checkpoint["model/w"][3:5], tree["model"]["w"][3:5])


def n_open():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_objects_of_a_distributed_folder_have_tensors_of_their_own(tmp_path):
    tree = {name: argparse.Namespace(t=torch.full((5,), value)) for name, value in [("a", 1.0), ("b", 2.0)]}
    torch.distributed.checkpoint.save(tree, checkpoint_id=tmp_path / "x", no_dist=True)
    restored = ptc.restore(tmp_path / "x")
    assert torch.equal(restored["a"].t, tree["a"].t)
    assert torch.equal(restored["b"].t, tree["b"].t)


def test_closing_closes_all_files(tmp_path):
    torch.save({"a": torch.arange(10)}, tmp_path / "x.pt")
    torch.distributed.checkpoint.save({"a": torch.arange(10)}, checkpoint_id=tmp_path / "y", no_dist=True)
    for path in (tmp_path / "x.pt", tmp_path / "y"):
        before = n_open()
        checkpoint = ptc.open(path)
        assert n_open() > before
        checkpoint.close()
        assert n_open() == before
        with pytest.raises(ptc.StorageError):
            checkpoint["a"][:]


def test_content_is_made_of_bytes_in_memory_too():
    file = io.BytesIO()
    np.savez(file, a=np.arange(3))
    content = foreign_content(BytesSource(memoryview(file.getvalue())), current_limits())
    with ptc.Checkpoint(content, None) as checkpoint:
        assert checkpoint.format == "npz"
        assert np.array_equal(checkpoint.restore()["a"], np.arange(3))


def test_a_foreign_file_is_saved_anew_from_its_references(tmp_path):
    torch.save({"a": torch.arange(1000), "t": torch.arange(12).reshape(3, 4).T}, tmp_path / "x.pt")
    with ptc.open(tmp_path / "x.pt") as checkpoint:
        arrays = {str(path): np.asarray(leaf) for path, leaf in checkpoint.leaves()}
    ptc.save(arrays, tmp_path / "x.ptck")
    assert np.array_equal(ptc.restore(tmp_path / "x.ptck")["a"], np.arange(1000))
