"""Trees on their way out: every array in C order, whatever its layout, bit by bit; a piece at a time."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given

import pytreeckpt as ptc
from pytreeckpt import testing
from pytreeckpt.interop import outgoing as module
from pytreeckpt.interop.folders import LocalFolder
from pytreeckpt.interop.foreign import contiguous
from pytreeckpt.interop.outgoing import OutgoingArray, OutgoingScalar, c_order_pieces, outgoing, path_to, stored_pieces
from pytreeckpt.interop.torch_shards import read_torch_shards
from pytreeckpt.interop.write_npz import write_npz
from pytreeckpt.interop.write_safetensors import write_safetensors
from tests.exact import item_bytes
from tests.interop.sources import source
from tests.sources import in_boxes
from tests.strategies import Point


def joined(pieces):
    return b"".join(pieces)


@given(testing.arrays())
def test_the_items_are_those_of_the_array_in_c_order(array):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PIECE_NBYTES", 16)
        [found] = outgoing([array])
        assert (found.dtype, found.shape, found.nbytes) == (array.dtype, array.shape, array.nbytes)
        copied = np.frombuffer(bytearray(joined(c_order_pieces(found))), np.uint8)
        if array.nbytes:
            assert item_bytes(copied.view(array.dtype).reshape(array.shape)) == item_bytes(np.array(array, order="C"))
            stored = joined(stored_pieces(found))
            turned = np.frombuffer(bytearray(stored), np.uint8).view(array.dtype)
            turned = turned.reshape([array.shape[axis] for axis in found.axes]).transpose(np.argsort(found.axes))
            assert item_bytes(np.array(turned, order="C")) == item_bytes(np.array(array, order="C"))


def test_bytes_may_be_turned_round():
    array = np.arange(5, dtype=">u4")
    [found] = outgoing([array])
    assert joined(c_order_pieces(found, little_endian=True)) == array.astype("<u4").tobytes()
    assert joined(c_order_pieces(found)) == array.tobytes()
    [found] = outgoing([array.astype("<u4")])
    assert joined(stored_pieces(found, little_endian=True)) == array.astype("<u4").tobytes()


def test_arrays_in_boxes_and_in_another_order_are_assembled():
    ramp = np.arange(24, dtype="i2").reshape(4, 6)
    [found] = outgoing([in_boxes(ramp, [[1, 3], [2]])])
    assert joined(c_order_pieces(found)) == joined(stored_pieces(found)) == ramp.tobytes()


def test_arrays_of_frameworks_references_and_foreign_arrays(tmp_path):
    tensor = torch.arange(6).reshape(2, 3).t()
    foreign = contiguous(source(np.arange(6).tobytes()), 0, np.dtype("i8"), (2, 3))
    tree = {"t": tensor, "j": jnp.ones(3), "f": foreign, "again": foreign}
    found = outgoing(tree)
    assert found["t"]._type.name == "torch.Tensor"
    assert joined(c_order_pieces(found["t"].data)) == tensor.contiguous().numpy().tobytes()
    assert found["t"].data.axes == (1, 0)
    assert joined(c_order_pieces(found["j"].data)) == np.ones(3, "f4").tobytes()
    assert joined(c_order_pieces(found["f"])) == np.arange(6).tobytes()
    assert found["f"] is found["again"]
    ptc.save({"t": tensor, "tied": tensor, "f": np.asfortranarray(np.arange(6).reshape(2, 3))}, tmp_path / "x")
    with ptc.open(tmp_path / "x") as checkpoint:
        found = outgoing(checkpoint.tree)
        assert found["t"].data is found["tied"].data
        assert joined(c_order_pieces(found["t"].data)) == tensor.contiguous().numpy().tobytes()
        assert joined(c_order_pieces(found["f"])) == np.arange(6).tobytes()


def foreign_of(values, **options):
    items = np.array(values)
    return contiguous(source(items.tobytes()), 0, items.dtype, items.shape, **options)


def test_foreign_arrays_of_one_identity_are_one_array_unless_they_lie_elsewhere():
    first = foreign_of([1, 2], identity="0")
    view = contiguous(first.pieces[0].source, 0, first.dtype, first.shape, identity="0")
    others = [foreign_of([3, 4], identity="0"), foreign_of([3.0, 4.0], identity="0"), foreign_of([5], identity="0")]
    alone = [foreign_of([1, 2]), foreign_of([1, 2])]
    found = outgoing([first, view, *others, *alone, first, others[0]])
    assert found[0] is found[1] is found[7]
    assert found[2] is found[8]
    assert len({id(array) for array in found}) == 6
    values = [np.frombuffer(joined(c_order_pieces(array)), array.dtype).tolist() for array in found]
    assert values == [[1, 2], [1, 2], [3, 4], [3, 4], [5], [1, 2], [1, 2], [1, 2], [3, 4]]


def test_shards_whose_storages_have_the_same_names_are_written_with_their_own_values(tmp_path):
    tied = torch.ones(4)
    torch.save({"a": torch.zeros(4)}, tmp_path / "1.bin")
    torch.save({"b": tied, "c": tied[:]}, tmp_path / "2.bin")
    weight_map = {"a": "1.bin", "b": "2.bin", "c": "2.bin"}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    tree = read_torch_shards(LocalFolder(str(tmp_path))).tree
    write_npz(tree, tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as found:
        assert {name: array.tolist() for name, array in found.items()} == {"a": [0] * 4, "b": [1] * 4, "c": [1] * 4}
    assert write_safetensors(tree, tmp_path / "x.safetensors").shared == (("c", "b"),)


def test_references_are_read_once_and_not_kept(tmp_path, monkeypatch):
    ptc.save({"a": np.arange(100_000)}, tmp_path / "x")
    monkeypatch.setattr(module, "_PIECE_NBYTES", 1000)
    with ptc.open(tmp_path / "x") as checkpoint:
        read = []
        inner = type(checkpoint).read_region
        monkeypatch.setattr(
            type(checkpoint), "read_region", lambda self, *args: read.append(args) or inner(self, *args)
        )
        [found] = outgoing([checkpoint["a"]])
        assert read == []
        assert joined(c_order_pieces(found)) == np.arange(100_000).tobytes()
        assert len(read) == 1


def test_a_reference_is_a_source_as_any_other(tmp_path):
    ptc.save({"a": np.arange(6).reshape(2, 3)}, tmp_path / "x")
    with ptc.open(tmp_path / "x") as checkpoint:
        [found] = outgoing([checkpoint["a"]])
        [read] = found.source.boxes
        assert read(1, 4).tolist() == [1, 2, 3]


def test_plain_values_and_scalars():
    tree = {"a": [1, None, 2.5, "x", b"y", (True,)], "s": np.float32(1.5), "p": Point(1, 2)}
    found = outgoing(tree)
    assert found["a"] == tree["a"]
    assert isinstance(found["s"], OutgoingScalar)
    assert found["s"].array == np.float32(1.5)
    assert tuple(found["p"]) == (1, 2)


def test_what_save_refuses_is_refused():
    cycle = []
    cycle.append(cycle)
    for tree in (cycle, {"a": object()}, {"a": np.array([object()])[:0].view(object), "b": lambda: None}):
        with pytest.raises(ptc.UnsupportedTypeError):
            outgoing(tree)
    with ptc.limits(depth=3), pytest.raises(ptc.LimitError):
        outgoing([[[[1]]]])


def test_paths_for_errors():
    wanted = object()
    tree = outgoing({"a": [torch.ones(1), {"b": Point(1, torch.Size([3]))}]})
    assert path_to(tree, tree["a"][0].data) == "a[0]"
    assert path_to(tree, tree["a"][1]["b"][1]) == "a[1]/b/.y"
    assert path_to(tree, wanted) == "a object"
    assert path_to(tree, tree) == "the root"


def test_an_array_without_items_has_no_pieces():
    found = OutgoingArray(np.zeros((3, 0)))
    assert list(c_order_pieces(found)) == []
    assert math.prod(found.shape) == 0
