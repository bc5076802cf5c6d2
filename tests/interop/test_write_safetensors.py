"""Safetensors as we write them: byte for byte those of the package for flat dicts, and read by its loaders."""

import argparse
import collections
import json
import pathlib

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt import testing
from pytreeckpt.interop import write_safetensors as module
from pytreeckpt.interop.folders import LocalFolder
from pytreeckpt.interop.foreign import read_whole
from pytreeckpt.interop.safetensors import DTYPES, read_safetensors, read_safetensors_folder
from pytreeckpt.interop.write_safetensors import write_safetensors
from pytreeckpt.storage import LocalStorage
from tests.exact import assert_same
from tests.interop.sources import source
from tests.strategies import Point, State

NAMES = st.text(max_size=6).filter(lambda name: name != "__metadata__")
PACKAGE_DTYPES = list(DTYPES.values())


def content(folder):
    """The files in a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def written(tree, path, **options):
    write_safetensors(tree, path, durability="atomic", **options)
    return path.read_bytes()


def reread(path):
    return {name: read_whole(array) for name, array in read_safetensors(source(path.read_bytes())).tree.items()}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("safetensors") / "model.safetensors"


@given(
    st.dictionaries(NAMES, testing.arrays(st.sampled_from(PACKAGE_DTYPES)), max_size=6),
    st.none() | st.dictionaries(st.text(max_size=5), st.text(max_size=5), min_size=1, max_size=1),
)
def test_a_flat_dict_is_written_byte_for_byte_as_by_the_package(path, arrays, metadata):
    # The package writes whatever the memory holds of arrays that are not in C order.
    straight = {name: np.array(array, order="C") for name, array in arrays.items()}
    assert written(arrays, path, metadata=metadata, names=lambda at: at[0].key) == safetensors.numpy.save(
        straight, metadata
    )
    found = reread(path)
    for name, array in straight.items():
        assert_same(found[name], array)


@given(st.dictionaries(NAMES, testing.arrays(st.sampled_from(PACKAGE_DTYPES)), max_size=4))
def test_the_package_reads_the_same_bits(path, arrays):
    written(arrays, path, names=lambda at: at[0].key)
    with safetensors.safe_open(path, "np") as file:
        assert set(file.keys()) == set(arrays)
    for name, tensor in safetensors.torch.load_file(path).items():
        assert tensor.shape == arrays[name].shape
        assert (
            tensor.reshape(-1).view(torch.uint8).numpy().tobytes() == arrays[name].tobytes() if tensor.numel() else True
        )


def test_tensors_arrays_scalars_and_references_become_arrays(tmp_path):
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).t())
    tree = {
        "model": collections.OrderedDict(w=weight, b=torch.ones(2, dtype=torch.bfloat16)),
        "jax": jnp.ones((2, 2)),
        "big": np.arange(3, dtype=">i4"),
        "strided": np.arange(10)[::-2],
        "scalar": np.float32(1.5),
        "list": [np.zeros(1), {"x": np.ones(1, bool)}],
        3: np.arange(2),
        "point": Point(np.zeros(2), np.ones(2)),
        "state": State(np.zeros(1), argparse.Namespace(a=np.ones(1))),
        "empty": {},
    }
    expected = {
        "model.w": np.arange(6, dtype="f4").reshape(2, 3).T.copy(),
        "model.b": np.ones(2, ml_dtypes.bfloat16),
        "jax": np.ones((2, 2), "f4"),
        "big": np.arange(3, dtype="<i4"),
        "strided": np.arange(10)[::-2].copy(),
        "scalar": np.array(1.5, "f4"),
        "list.0": np.zeros(1),
        "list.1.x": np.ones(1, bool),
        "3": np.arange(2),
        "point.x": np.zeros(2),
        "point.y": np.ones(2),
        "state.step": np.zeros(1),
        "state.params.a": np.ones(1),
    }
    written(tree, tmp_path / "x")
    assert_same(
        {name: expected[name] for name in sorted(expected)}, {k: reread(tmp_path / "x")[k] for k in sorted(expected)}
    )
    assert safetensors.torch.load_file(tmp_path / "x").keys() == expected.keys()
    ptc.save(tree, tmp_path / "x.ptck")
    with ptc.open(tmp_path / "x.ptck") as checkpoint:
        assert written(checkpoint.tree, tmp_path / "y") == (tmp_path / "x").read_bytes()


def test_two_arrays_of_one_name_are_an_error_that_names_both(tmp_path):
    with pytest.raises(ptc.UnsupportedTypeError, match=r"a\.b and a/b would both be called 'a\.b'"):
        write_safetensors({"a.b": np.zeros(1), "a": {"b": np.ones(1)}}, tmp_path / "x")
    with pytest.raises(ptc.UnsupportedTypeError, match="would both be called '1'"):
        write_safetensors({1: np.zeros(1), "1": np.ones(1)}, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
    write_safetensors({"a.b": np.zeros(1), "a": {"b": np.ones(1)}}, tmp_path / "x", separator="/")
    assert reread(tmp_path / "x").keys() == {"a.b", "a/b"}


def test_names_may_be_given(tmp_path):
    tree = {"a": [np.zeros(1), np.ones(1)], (1, 2): np.ones(2)}
    with pytest.raises(ptc.UnsupportedTypeError, match="makes no part of a name"):
        write_safetensors(tree, tmp_path / "x")
    write_safetensors(tree, tmp_path / "x", names=lambda at: f"<{at}>")
    assert reread(tmp_path / "x").keys() == {"<a[0]>", "<a[1]>", "<(1,2)>"}
    with pytest.raises(TypeError, match="not a str"):
        write_safetensors(tree, tmp_path / "x", names=lambda at: None)


def test_what_is_no_array_is_listed_or_left_out(tmp_path):
    tree = {"a": np.zeros(1), "step": 3, "more": {"name": "x", "none": None, "size": torch.Size([1]), "set": {1}}}
    with pytest.raises(ptc.UnsupportedTypeError) as caught:
        write_safetensors(tree, tmp_path / "x")
    for text in (
        "5 values",
        "drop_other",
        "step: int",
        "more/name: str",
        "more/none: NoneType",
        "more/size: torch.Size",
    ):
        assert text in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    write_safetensors(tree, tmp_path / "x", drop_other=True)
    assert reread(tmp_path / "x").keys() == {"a"}


@pytest.mark.parametrize("dtype", ["complex128", "float128", "U3", "M8[s]", ml_dtypes.int4, [("a", "f4")], "V2"])
def test_a_dtype_that_the_format_lacks_is_refused_by_name(tmp_path, dtype):
    with pytest.raises(ptc.UnsupportedTypeError, match="x/y: |x.y: "):
        write_safetensors({"x": {"y": np.zeros(2, dtype)}}, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_names_that_no_reader_takes_are_refused(tmp_path):
    for name in ("__metadata__", "\ud800"):
        with pytest.raises(ptc.UnsupportedTypeError, match="cannot be the name"):
            write_safetensors({"a": np.zeros(1)}, tmp_path / "x", names=lambda at, name=name: name)
    with pytest.raises(TypeError, match="texts by texts"):
        write_safetensors({"a": np.zeros(1)}, tmp_path / "x", metadata={"a": 1})
    with pytest.raises(ValueError, match="if_exists"):
        write_safetensors({"a": np.zeros(1)}, tmp_path / "x", if_exists="maybe")
    with pytest.raises(ValueError, match="durability"):
        write_safetensors({"a": np.zeros(1)}, tmp_path / "x", durability="maybe")
    with pytest.raises(ValueError, match="max_shard_nbytes"):
        write_safetensors({"a": np.zeros(1)}, tmp_path / "x", max_shard_nbytes=0)
    assert list(tmp_path.iterdir()) == []


def test_packed_tensors_come_back_as_they_were(tmp_path):
    packed = torch.arange(8, dtype=torch.uint8).reshape(2, 4).view(torch.float4_e2m1fn_x2)
    assert written({"a": packed}, tmp_path / "x") == safetensors.torch.save({"a": packed})
    found = safetensors.torch.load_file(tmp_path / "x")["a"]
    assert found.dtype == packed.dtype
    assert found.view(torch.uint8).tolist() == packed.view(torch.uint8).tolist()


def tied():
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"b": torch.nn.Linear(3, 3), "a": torch.nn.Linear(3, 3), "c": torch.nn.Linear(3, 3)})
    model["c"].weight = model["a"].weight = model["b"].weight
    return model


def test_shared_tensors_are_written_as_save_model_writes_them(tmp_path):
    model = tied()
    safetensors.torch.save_model(model, str(tmp_path / "theirs"))
    report = write_safetensors(model.state_dict(), tmp_path / "ours")
    assert report.shared == (("b.weight", "a.weight"), ("c.weight", "a.weight"))
    theirs, ours = (read_safetensors(source((tmp_path / name).read_bytes())) for name in ("theirs", "ours"))
    assert ours.metadata == theirs.metadata == {"b.weight": "a.weight", "c.weight": "a.weight"}
    assert list(ours.tree) == list(theirs.tree)
    fresh = tied()
    torch.nn.init.zeros_(fresh["a"].weight)
    assert safetensors.torch.load_model(fresh, tmp_path / "ours") == (set(), [])
    assert torch.equal(fresh["c"].weight, model["b"].weight)
    # What the caller says stands.
    write_safetensors(model.state_dict(), tmp_path / "ours", metadata={"b.weight": "mine"})
    assert read_safetensors(source((tmp_path / "ours").read_bytes())).metadata["b.weight"] == "mine"


def arrays():
    return {f"layer.{n}.weight": np.full((n + 1, 64), n, "f4") for n in range(8)}


def loaded(index):
    """What a loader does: the file of each tensor is in the index."""
    weight_map = json.loads(index.read_text())["weight_map"]
    found = {}
    for shard in sorted(set(weight_map.values())):
        found |= safetensors.numpy.load_file(index.parent / shard)
    assert found.keys() == weight_map.keys()
    return found


def test_shards_are_as_large_as_asked_and_the_index_names_them(tmp_path):
    report = write_safetensors(
        arrays(), tmp_path / "model.safetensors", max_shard_nbytes=3000, metadata={"format": "pt"}
    )
    names = [pathlib.Path(path).name for path in report.paths]
    assert names[-1] == "model.safetensors.index.json"
    assert names[0] == f"model-00001-of-{len(names) - 1:05d}.safetensors"
    assert report.nbytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    index = tmp_path / "model.safetensors.index.json"
    assert json.loads(index.read_text())["metadata"] == {"total_size": sum(a.nbytes for a in arrays().values())}
    for shard in names[:-1]:
        found = safetensors.numpy.load_file(tmp_path / shard)
        assert sum(array.nbytes for array in found.values()) <= 3000
        with safetensors.safe_open(tmp_path / shard, "np") as file:
            assert file.metadata() == {"format": "pt"}
    for name, array in loaded(index).items():
        assert_same(arrays()[name], array)
    found = read_safetensors_folder(LocalFolder(str(tmp_path)))
    assert {name: read_whole(array).tobytes() for name, array in found.tree.items()} == {
        name: array.tobytes() for name, array in arrays().items()
    }


def test_what_fits_into_one_shard_is_one_file(tmp_path):
    report = write_safetensors(arrays(), tmp_path / "model.safetensors", max_shard_nbytes=1 << 20)
    assert report.paths == (str(tmp_path / "model.safetensors"),)


def test_a_tensor_beyond_the_limit_has_a_shard_of_its_own(tmp_path):
    tree = {"a": np.zeros(10), "b": np.zeros(1000), "c": np.zeros(10), "d": np.zeros(10)}
    report = write_safetensors(tree, tmp_path / "m.safetensors", max_shard_nbytes=200)
    shards = [set(safetensors.numpy.load_file(path)) for path in report.paths[:-1]]
    assert shards == [{"a"}, {"b"}, {"c", "d"}]


def test_new_shards_do_not_touch_old_ones_and_the_report_lists_what_is_not_needed(tmp_path):
    path = tmp_path / "model.safetensors"
    first = write_safetensors(arrays(), path, max_shard_nbytes=3000)
    before = content(tmp_path)
    second = write_safetensors({n: a + 1 for n, a in arrays().items()}, path, max_shard_nbytes=3000)
    assert second.superseded == first.paths[:-1]
    assert set(second.paths) & set(first.paths) == {str(tmp_path / "model.safetensors.index.json")}
    for name in first.paths[:-1]:
        assert before[pathlib.Path(name).name] == pathlib.Path(name).read_bytes()
    assert loaded(tmp_path / "model.safetensors.index.json")["layer.0.weight"][0, 0] == 1
    third = write_safetensors({"a": np.zeros(1)}, path)
    assert set(third.superseded) == set(second.paths)
    assert [*read_safetensors_folder(LocalFolder(str(tmp_path))).tree] == ["a"]


def test_shards_are_not_written_beside_a_file_that_loaders_would_take_instead(tmp_path):
    write_safetensors(arrays(), tmp_path / "model.safetensors")
    with pytest.raises(ptc.CheckpointExistsError, match="would be loaded in place"):
        write_safetensors(arrays(), tmp_path / "model.safetensors", max_shard_nbytes=3000)
    assert list(content(tmp_path)) == ["model.safetensors"]


def test_if_exists_is_kept_for_files_and_shards(tmp_path):
    path = tmp_path / "model.safetensors"
    write_safetensors(arrays(), path, if_exists="error")
    with pytest.raises(ptc.CheckpointExistsError):
        write_safetensors(arrays(), path, if_exists="error")
    path.unlink()
    write_safetensors(arrays(), path, max_shard_nbytes=3000, if_exists="error")
    before = content(tmp_path)
    with pytest.raises(ptc.CheckpointExistsError):
        write_safetensors(arrays(), path, max_shard_nbytes=3000, if_exists="error")
    assert content(tmp_path) == before


def test_after_a_failure_no_shard_is_left_and_the_old_index_stands(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    write_safetensors(arrays(), path, max_shard_nbytes=3000)
    before = content(tmp_path)
    inner = LocalStorage.apply

    def apply(self, operation):
        if type(operation).__name__ == "RenameFile" and operation.target.endswith(".json"):
            raise OSError(28, "No space left on device")
        return inner(self, operation)

    monkeypatch.setattr(LocalStorage, "apply", apply)
    with pytest.raises(ptc.StorageError, match="No space left"):
        write_safetensors({n: a + 1 for n, a in arrays().items()}, path, max_shard_nbytes=3000)
    assert content(tmp_path) == before


def test_a_header_that_no_reader_takes_is_a_limit_error(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_HEADER_NBYTES", 200)
    with pytest.raises(ptc.LimitError, match="smaller max_shard_nbytes"):
        write_safetensors(arrays(), tmp_path / "x")
    assert content(tmp_path) == {}


def test_an_index_that_is_none_is_replaced_and_listed(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_bytes(b"?")
    report = write_safetensors(arrays(), tmp_path / "model.safetensors")
    assert report.superseded == (str(tmp_path / "model.safetensors.index.json"),)


def test_the_same_tree_gives_the_same_bytes(tmp_path):
    assert written(arrays(), tmp_path / "x") == written(arrays(), tmp_path / "y")
