"""Orbax folders: what Orbax writes is read, as well as its metadata tells; lazily, through tensorstore."""

import json
import random
import re
import shutil
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import tensorstore

import pytreeckpt as ptc
from pytreeckpt import Record
from pytreeckpt.geometry import Box
from pytreeckpt.interop import zarr_arrays
from pytreeckpt.interop.folders import LocalFolder
from pytreeckpt.interop.foreign import ForeignArray, read_region, read_whole
from pytreeckpt.interop.orbax import is_orbax, read_orbax
from tests.exact import assert_same
from tests.interop.sources import MemoryFolder, damaged


def tree():
    return {
        "params": {"w": jnp.arange(12.0).reshape(3, 4), "b": jnp.ones(3, jnp.bfloat16), "with/slash": np.arange(2)},
        "step": 3,
        "lr": 0.5,
        "flag": True,
        "name": "adam",
        "none": None,
        "empty": {},
        "list": [np.arange(3, dtype=np.int8), [], np.asfortranarray(np.arange(6.0).reshape(2, 3))],
        "pair": (np.float32(1.5), np.int8(3)),
        "scalar": np.array(7, np.int64),
        "opt": optax.adam(1e-3).init({"a": jnp.zeros(2)}),
        "complex": np.array([1 + 2j], np.complex64),
    }


def small():
    return {
        "key": jax.random.key(0),
        "keys": jax.random.split(jax.random.key(1, impl="rbg"), 3),
        "int4": jnp.arange(-3, 3).astype(jnp.int4),
        "float8": jnp.ones(3, jnp.float8_e4m3fn),
    }


def save(path, value, **options):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save(path, value)


LAYOUTS = {
    "a database of zarr 2": {},
    "folders of zarr 2": {"use_ocdbt": False},
    "a database of zarr 3": {"use_zarr3": True},
    "folders of zarr 3": {"use_ocdbt": False, "use_zarr3": True},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("orbax")
    for name, options in LAYOUTS.items():
        save(root / name, tree(), **options)
    save(root / "small", small())
    save(root / "root", np.arange(3))
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    with ocp.CheckpointManager(root / "one item", options=options) as manager:
        manager.save(7, args=ocp.args.StandardSave({"w": jnp.ones(3), "n": 2}), metrics={"loss": 0.25})
    with ocp.CheckpointManager(root / "items", options=options, item_names=("state", "about")) as manager:
        for step in (1, 12):
            items = {"state": ocp.args.StandardSave({"w": jnp.ones(3)}), "about": ocp.args.JsonSave({"a": [step, "x"]})}
            manager.save(step, args=ocp.args.Composite(**items))
    return root


def materialised(value):
    """The tree with its arrays read, and those of JAX as numpy's."""
    if isinstance(value, ForeignArray):
        return read_whole(value)
    if isinstance(value, Record):
        if value._type.name == "jax.PRNGKeyArray":
            return {"key data": materialised(value.key_data), "impl": value.impl}
        assert value._type.name == "jax.Array"
        assert value.weak_type is False
        return materialised(value.data)
    if isinstance(value, dict):
        return {key: materialised(item) for key, item in value.items()}
    return [materialised(item) for item in value] if isinstance(value, list) else value


def ordered(value):
    """The dicts of a tree by their keys, because Orbax sorts them."""
    if isinstance(value, dict):
        return {key: ordered(value[key]) for key in sorted(value)}
    return [ordered(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_read(saved, name):
    opt = {
        "count": np.int32(0) + np.zeros((), np.int32),
        "mu": {"a": np.zeros(2, "f4")},
        "nu": {"a": np.zeros(2, "f4")},
    }
    expected = {
        **tree(),
        "params": {
            "w": np.arange(12, dtype="f4").reshape(3, 4),
            "b": np.ones(3, ml_dtypes.bfloat16),
            "with/slash": np.arange(2),
        },
        "list": [np.arange(3, dtype=np.int8), [], np.arange(6.0).reshape(2, 3)],
        # Sequences are lists, and namedtuples dicts; an empty one is nothing.
        "pair": [np.float32(1.5), np.int8(3)],
        "opt": [opt | {"count": np.zeros((), np.int32)}, None],
    }
    found = read_orbax(LocalFolder(str(saved / name)))
    assert_same(ordered(expected), ordered(materialised(found.tree)))
    assert found.metadata["item_handlers"].endswith("PyTreeCheckpointHandler")
    assert found.format == "Orbax"


def test_typed_keys_and_narrow_dtypes(saved):
    found = read_orbax(LocalFolder(str(saved / "small"))).tree
    for name, impl in (("key", "threefry2x32"), ("keys", "rbg")):
        assert found[name]._type.name == "jax.PRNGKeyArray"
        assert found[name].impl == impl
        assert_same(read_whole(found[name].key_data), np.array(jax.random.key_data(small()[name])))
    assert_same(read_whole(found["int4"].data), np.array(small()["int4"]))
    assert_same(read_whole(found["float8"].data), np.array(small()["float8"]))


def test_an_array_at_the_root(saved):
    assert_same(read_whole(read_orbax(LocalFolder(str(saved / "root"))).tree), np.arange(3))


def test_a_step_of_a_manager(saved):
    found = read_orbax(LocalFolder(str(saved / "one item" / "7")))
    assert_same(materialised(found.tree), {"n": 2, "w": np.ones(3, "f4")})
    assert found.metadata["item_handlers"].keys() >= {"default"}
    found = read_orbax(LocalFolder(str(saved / "items" / "12")))
    assert_same(materialised(found.tree), {"about": {"a": [12, "x"]}, "state": {"w": np.ones(3, "f4")}})


def test_a_folder_of_steps_is_refused_with_their_names(saved):
    with pytest.raises(ptc.UnsupportedTypeError, match="open one of them: 1, 12"):
        read_orbax(LocalFolder(str(saved / "items")))


def test_nothing_is_decoded_before_it_is_asked_for_and_little_is_kept(saved, monkeypatch):
    read = []
    inner = zarr_arrays._read
    monkeypatch.setattr(zarr_arrays, "_read", lambda name, store, out: read.append(name) or inner(name, store, out))
    found = read_orbax(LocalFolder(str(saved / "folders of zarr 2"))).tree
    read.clear()
    array = found["params"]["w"].data
    for _ in range(3):
        read_whole(array)
    assert read == ["params.w"]
    for other in (found["list"][0], found["complex"], found["scalar"]):
        read_whole(other)
    read_whole(array)
    assert read == ["params.w", "list.0", "complex", "scalar", "params.w"]


def test_without_tensorstore_the_error_says_what_to_install(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(ptc.UnsupportedTypeError, match='install "orbax-checkpoint" or "tensorstore"'):
        read_orbax(LocalFolder(str(saved / "root")))


def test_it_must_be_a_folder_of_the_file_system():
    with pytest.raises(ptc.UnsupportedTypeError, match="file system"):
        read_orbax(MemoryFolder({"_METADATA": b"{}"}))


def test_two_leaves_that_orbax_wrote_to_one_place_are_an_error_not_a_wrong_value(tmp_path):
    save(tmp_path / "x", {"a.b": np.zeros(1), "a": {"b": np.ones(1)}})
    with pytest.raises(ptc.CorruptionError, match="to one place"):
        read_orbax(LocalFolder(str(tmp_path / "x")))


def leaf(*keys, value_type="np.ndarray", skip=False):
    steps = [{"key": key, "key_type": 1 if key.isdigit() else 2} for key in keys]
    return {"key_metadata": steps, "value_metadata": {"value_type": value_type, "skip_deserialize": skip}}


def none(*keys):
    return leaf(*keys, value_type="None", skip=True)


REFUSED = {
    "no JSON": "{",
    "no tree": {},
    "a tree that is a list": {"tree_metadata": []},
    "an entry that is a number": {"tree_metadata": {"a": 1}},
    "an entry without a value": {"tree_metadata": {"a": {"key_metadata": []}}},
    "a key that is a number": {
        "tree_metadata": {
            "a": {"key_metadata": [{"key": 1, "key_type": 2}], "value_metadata": leaf()["value_metadata"]}
        }
    },
    "a key of a kind of nobody": {
        "tree_metadata": {
            "a": {"key_metadata": [{"key": "a", "key_type": 9}], "value_metadata": leaf()["value_metadata"]}
        }
    },
    "a type that is not stored": {"tree_metadata": {"a": leaf("a", value_type="Odd", skip=True)}},
    "an array that is not there": {"tree_metadata": {"a": leaf("a")}},
    "a key that leads out of the folder": {"tree_metadata": {"a": leaf("../outside")}},
    "an absolute key": {"tree_metadata": {"a": leaf("/outside")}},
    "a text that is not there": {"tree_metadata": {"a": leaf("a", value_type="string")}},
    "a scalar with axes": {"tree_metadata": {"a": leaf("there", value_type="scalar")}},
    "lists and dicts beside each other": {"tree_metadata": {"a": none("0"), "b": none("x")}},
    "a list without its first item": {"tree_metadata": {"a": none("1")}},
    "a leaf with others in it": {"tree_metadata": {"a": none("x"), "b": none("x", "y")}},
    "a leaf that is a container": {"tree_metadata": {"b": none("x", "y"), "a": none("x")}},
    "two leaves at one place": {"tree_metadata": {"a": none("x"), "b": none("x")}},
    "two leaves at the root": {"tree_metadata": {"a": none(), "b": none("x")}},
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, saved, tmp_path):
    document = REFUSED[name]
    (tmp_path / "x").mkdir()
    shutil.copytree(saved / "folders of zarr 2" / "list.0", tmp_path / "x" / "there")
    shutil.copytree(saved / "folders of zarr 2" / "list.0", tmp_path / "outside")
    (tmp_path / "x" / "_METADATA").write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises((ptc.CorruptionError, ptc.UnsupportedTypeError)):
        read_orbax(LocalFolder(str(tmp_path / "x")))


def test_depth_is_bounded(tmp_path):
    (tmp_path / "_METADATA").write_text(json.dumps({"tree_metadata": {"a": none(*["x"] * 5000)}}))
    value = read_orbax(LocalFolder(str(tmp_path))).tree
    for _ in range(5000):
        value = value["x"]
    assert value is None
    with ptc.limits(depth=100), pytest.raises(ptc.LimitError, match="deeper"):
        read_orbax(LocalFolder(str(tmp_path)))


def test_metadata_of_trees_is_kept_whatever_its_depth(tmp_path):
    custom = value = []
    for _ in range(500):
        value.append([])
        value = value[0]
    document = {"tree_metadata": {"a": none("x")}, "custom_metadata": custom}
    (tmp_path / "_METADATA").write_text(json.dumps(document))
    assert read_orbax(LocalFolder(str(tmp_path))).metadata == {"checkpoint": None, "trees": {"": custom}}


def test_items_keep_their_own_metadata(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "_METADATA").write_text(json.dumps({"tree_metadata": {}, "custom_metadata": [1]}))
    (tmp_path / "_CHECKPOINT_METADATA").write_text('{"metrics": {}}')
    found = read_orbax(LocalFolder(str(tmp_path)))
    assert found.tree == {"state": {}}
    assert found.metadata == {"checkpoint": {"metrics": {}}, "trees": {"state": [1]}}
    with ptc.limits(index_nbytes=10), pytest.raises(ptc.LimitError, match="_METADATA has"):
        read_orbax(LocalFolder(str(tmp_path)))


def test_texts_that_are_no_object_are_refused(tmp_path):
    (tmp_path / "_METADATA").write_text(json.dumps({"tree_metadata": {"a": leaf("a", value_type="string")}}))
    (tmp_path / "_strings.json").write_text("[]")
    with pytest.raises(ptc.CorruptionError, match="is not an object"):
        read_orbax(LocalFolder(str(tmp_path)))


def test_an_array_that_does_not_fit_into_memory_is_a_limit_error(monkeypatch):
    def array(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(tensorstore, "array", array)
    with pytest.raises(ptc.LimitError, match="memory"):
        zarr_arrays._read("x", None, np.zeros(1))


def edited(path, **changes):
    """Write other values into the JSON of a file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_hostile_shapes_of_arrays_and_chunks_do_not_end_the_process(saved, tmp_path):
    shutil.copytree(saved / "folders of zarr 2", tmp_path / "x")
    about = tmp_path / "x" / "complex" / ".zarray"
    edited(about, shape=[1 << 41])
    array = read_orbax(LocalFolder(str(tmp_path / "x"))).tree["complex"]
    with pytest.raises(ptc.LimitError, match="16.0 TiB"):
        # An item, for which all is decoded.
        read_region(array, Box((5,), (1,)))
    edited(about, shape=[1], chunks=[1 << 41])
    with pytest.raises(ptc.LimitError, match=r"'complex' has chunks of \[2199023255552\] items"):
        read_orbax(LocalFolder(str(tmp_path / "x")))


def test_chunks_of_zarr_3_are_bounded_too(saved, tmp_path):
    shutil.copytree(saved / "folders of zarr 3", tmp_path / "x")
    grid = {"name": "regular", "configuration": {"chunk_shape": [1 << 29]}}
    edited(tmp_path / "x" / "complex" / "zarr.json", chunk_grid=grid)
    with pytest.raises(ptc.LimitError, match="has chunks of"):
        read_orbax(LocalFolder(str(tmp_path / "x")))


def outcome(path):
    """The tree, read, or the error."""
    try:
        return ordered(materialised(read_orbax(LocalFolder(str(path))).tree))
    except ptc.PytreeckptError as error:
        return error


@pytest.mark.parametrize("name", [*LAYOUTS, "small", "one item/7", "items/12"])
def test_whatever_file_is_lost_the_tree_is_whole_or_an_error_says_so(saved, tmp_path, name):
    shutil.copytree(saved / name, tmp_path / "x")
    whole = outcome(tmp_path / "x")
    lost = set()
    files = sorted(path for path in (tmp_path / "x").rglob("*") if path.is_file())
    for path in files:
        content = path.read_bytes()
        path.unlink()
        found = outcome(tmp_path / "x")
        if isinstance(found, ptc.PytreeckptError):
            lost.add(path)
        else:
            assert_same(whole, found)
        path.write_bytes(content)
    if "folders" in name:
        # Every chunk of every array is needed, those of zeros too.
        chunks = {path for path in files if re.fullmatch(r"[0-9.]+|c", path.name)}
        assert len(chunks) >= 10
        assert chunks <= lost
    else:
        assert len(lost) >= 2


@pytest.mark.parametrize("name", ["a database of zarr 2", "a database of zarr 3"])
def test_a_flipped_bit_in_a_database_is_told_or_changes_nothing(saved, tmp_path, name):
    rng = random.Random(0)
    shutil.copytree(saved / name, tmp_path / "x")
    whole = outcome(tmp_path / "x")
    files = [path for path in (tmp_path / "x").rglob("*") if "ocdbt" in str(path) or path.parent.name == "d"]
    files = sorted(path for path in files if path.is_file())
    outcomes = set()
    for _ in range(100):
        path = rng.choice(files)
        content = path.read_bytes()
        changed = bytearray(content)
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        found = outcome(tmp_path / "x")
        if not isinstance(found, ptc.PytreeckptError):
            assert_same(whole, found)
        outcomes.add(type(found).__name__)
        path.write_bytes(content)
    assert outcomes == {"dict", "CorruptionError"}


def test_a_chunk_that_an_old_version_left_out_is_zeros_as_there_and_a_note_says_so(tmp_path):
    save(tmp_path / "x", {"a": np.arange(3.0), "z": np.zeros(3)}, use_ocdbt=False)
    assert read_orbax(LocalFolder(str(tmp_path / "x"))).notes == ()
    (tmp_path / "x" / "z" / "0").unlink()
    with pytest.raises(ptc.CorruptionError, match=r"leaf z: .*missing"):
        ptc.restore(tmp_path / "x")
    report = ptc.verify(tmp_path / "x")
    assert not report.ok
    assert "missing" in str(report.problems)
    document = json.loads((tmp_path / "x" / "_METADATA").read_text())
    del document["store_array_data_equal_to_fill_value"]
    (tmp_path / "x" / "_METADATA").write_text(json.dumps(document))
    found = read_orbax(LocalFolder(str(tmp_path / "x")))
    assert_same(materialised(found.tree), {"a": np.arange(3.0), "z": np.zeros(3)})
    with ocp.PyTreeCheckpointer() as checkpointer:
        assert checkpointer.restore(tmp_path / "x")["z"].tolist() == [0, 0, 0]
    assert len(found.notes) == 1
    assert "left out chunks of zeros" in found.notes[0]


def test_what_tensorstore_refuses_at_once_is_a_corruption():
    class Refusing:
        def open(self, *args, **options):
            raise ValueError("no such driver")

    with pytest.raises(ptc.CorruptionError, match="no such driver"):
        zarr_arrays._started(
            Refusing(), zarr_arrays.ZarrStore("/nowhere", is_ocdbt=False, version=2, is_complete=True), "x", None
        )


def test_damaged_documents_give_a_tree_or_an_error(saved, tmp_path):
    rng = random.Random(0)
    shutil.copytree(saved / "folders of zarr 2", tmp_path / "x")
    outcomes = set()
    for name in ("_METADATA", "_strings.json", "array_metadatas/process_0", "params.w/.zarray", "params.w/0.0"):
        path = tmp_path / "x" / name
        base = path.read_bytes()
        for _ in range(50):
            path.write_bytes(damaged(base, rng))
            try:
                materialised(read_orbax(LocalFolder(str(tmp_path / "x"))).tree)
                outcomes.add("tree")
            except ptc.PytreeckptError as error:
                outcomes.add(type(error).__name__)
        path.write_bytes(base)
    assert {"tree", "CorruptionError"} <= outcomes <= {"tree", "CorruptionError", "UnsupportedTypeError", "LimitError"}


def test_a_damaged_array_is_named(saved, tmp_path):
    shutil.copytree(saved / "folders of zarr 2", tmp_path / "x")
    chunk = tmp_path / "x" / "params.w" / "0.0"
    chunk.write_bytes(chunk.read_bytes()[:-3])
    array = read_orbax(LocalFolder(str(tmp_path / "x"))).tree["params"]["w"].data
    with pytest.raises(ptc.CorruptionError, match=r"params\.w"):
        read_whole(array)
    (tmp_path / "x" / "params.w" / ".zarray").write_text("{}")
    with pytest.raises(ptc.CorruptionError, match=r"params\.w"):
        read_orbax(LocalFolder(str(tmp_path / "x")))


def test_a_link_out_of_the_folder_is_not_followed(saved, tmp_path):
    shutil.copytree(saved / "folders of zarr 2", tmp_path / "x")
    chunk = tmp_path / "x" / "params.w" / "0.0"
    chunk.replace(tmp_path / "outside")
    chunk.symlink_to(tmp_path / "outside")
    with pytest.raises(ptc.CheckpointNotFoundError, match="link"):
        read_orbax(LocalFolder(str(tmp_path / "x")))


def test_an_array_beyond_the_limit_is_refused_before_it_is_read(saved):
    with ptc.limits(arrays_nbytes=40), pytest.raises(ptc.LimitError, match="arrays_nbytes"):
        read_orbax(LocalFolder(str(saved / "folders of zarr 2")))


def test_an_item_of_another_kind_is_noted(saved, tmp_path):
    shutil.copytree(saved / "items" / "12", tmp_path / "12")
    (tmp_path / "12" / "odd").mkdir()
    (tmp_path / "12" / "odd" / "file").write_bytes(b"?")
    found = read_orbax(LocalFolder(str(tmp_path / "12")))
    assert found.notes == ("odd: an item of Orbax that is neither a tree nor JSON, and was not read",)
    assert set(found.tree) == {"about", "state"}


def test_detection():
    assert is_orbax(["_METADATA", "d/1", "manifest.ocdbt"])
    assert is_orbax(["_CHECKPOINT_METADATA", "state/_METADATA"])
    assert is_orbax(["12/_CHECKPOINT_METADATA", "12/state/_METADATA"])
    assert not is_orbax(["a/b/c/_METADATA"])
    assert not is_orbax(["model.safetensors"])
    assert not is_orbax([])
