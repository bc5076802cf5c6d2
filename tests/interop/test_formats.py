"""Which files and folders are known, and by what."""

import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt.interop import folders
from pytreeckpt.interop.folders import LocalFolder
from pytreeckpt.interop.foreign import ForeignTree
from pytreeckpt.interop.foreign_index import index_of
from pytreeckpt.interop.foreign_reader import ForeignReader
from pytreeckpt.interop.formats import ARCHIVE_FORMATS, FILE_FORMATS, FOLDER_FORMATS, read_file, read_folder
from pytreeckpt.interop.torch_shards import read_torch_shards
from pytreeckpt.leaf_paths import Paths
from pytreeckpt.limits import current_limits
from pytreeckpt.reading import BytesSource
from tests.cli.running import REPOSITORY
from tests.exact import assert_same
from tests.interop.foreign_files import FILES, FOLDERS, TREE, as_numpy
from tests.interop.sources import MemoryFolder, damaged


@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_each_format_is_known_by_its_content(name, tmp_path):
    path = tmp_path / "something.txt"
    (FILES | FOLDERS)[name](path)
    with ptc.open(path) as checkpoint:
        assert checkpoint.format == name
        assert checkpoint.root is None
        assert checkpoint.footer is None
    assert_same(as_numpy(ptc.restore(path, to="numpy")), TREE)


def test_every_format_of_the_tables_is_tried():
    found = {format_.name for format_ in [*ARCHIVE_FORMATS, *FILE_FORMATS, *FOLDER_FORMATS]}
    tried = {
        name.replace("torch zip", "torch").replace("torch distributed", "torch.distributed.checkpoint")
        for name in [*FILES, *FOLDERS]
    }
    assert found - {"npy"} <= tried


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "value", [{"a": 1}, {}, ["x", 2.5], [], {"w": np.arange(3)}, np.arange(3), {1: [None]}], ids=str
)
def test_pickles_of_all_protocols_are_known(value, protocol, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(pickle.dumps(value, protocol))
    assert_same(ptc.restore(path), value)


def test_what_python_2_wrote_is_known(tmp_path):
    path = tmp_path / "x"
    for content in (
        b"(dp1\nS'a'\np2\nI1\nsS'b'\np3\n(lp4\nF2.5\nas.",
        b"}q\x01(U\x01aq\x02K\x01U\x01b]q\x03G@\x04" + bytes(6) + b"au.",
    ):
        path.write_bytes(content)
        assert_same(ptc.restore(path), {"a": 1, "b": [2.5]})


@pytest.mark.parametrize("content", [b"(dplyr)\n", b"config\nname\nvalue\n", b"}q", b"(dp0\n", b"]q\x00.x"])
def test_what_only_begins_as_an_old_pickle_is_refused(content, tmp_path):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ptc.NotACheckpointError):
        ptc.open(tmp_path / "x")


def test_an_array_by_itself_is_a_tree(tmp_path):
    array = np.asfortranarray(np.arange(6).reshape(2, 3))
    np.save(tmp_path / "x.npy", array)
    assert_same(ptc.restore(tmp_path / "x.npy"), array)


def test_the_index_of_shards_may_be_opened_itself(tmp_path):
    FOLDERS["sharded safetensors"](tmp_path / "x")
    assert_same(ptc.restore(tmp_path / "x" / "model.safetensors.index.json", to="numpy"), TREE)
    FOLDERS["sharded torch"](tmp_path / "y")
    assert_same(ptc.restore(tmp_path / "y" / "pytorch_model.bin.index.json", to="numpy"), TREE)
    with ptc.open(tmp_path / "y" / "pytorch_model.bin.index.json") as checkpoint:
        assert checkpoint.nbytes == sum(file.stat().st_size for file in (tmp_path / "y").iterdir())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"just a text\n",
        b"{}",
        b"PK",
        b"\x89PTCK",
        b"N.",
        b"\x80\x04",
        b"\x80\x04N",
        bytes(100),
        b"\x93NUMP",
    ],
)
def test_what_is_of_no_format_is_refused_and_the_formats_are_named(content, tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(ptc.NotACheckpointError) as caught:
        ptc.open(path)
    assert caught.value.rule == "F-1"
    assert str(path) in str(caught.value)
    for format_ in (*ARCHIVE_FORMATS, *FILE_FORMATS):
        assert format_.name in str(caught.value)


def test_a_zip_of_other_things_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("word/document.xml", "<w/>")
    with pytest.raises(ptc.NotACheckpointError):
        ptc.open(tmp_path / "x.npz")


def test_what_begins_as_a_format_without_magic_is_told_what_is_wrong(tmp_path):
    path = tmp_path / "x"
    FILES["flax msgpack"](path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ptc.NotACheckpointError, match="begins as a flax msgpack file does, but"):
        ptc.open(path)
    FILES["pickle"](path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ptc.NotACheckpointError, match="begins as a pickle file does, but"):
        ptc.open(path)


@pytest.mark.parametrize("name", ["torch legacy", "safetensors"])
def test_a_file_with_a_magic_that_is_cut_is_damaged(name, tmp_path):
    path = tmp_path / "x"
    FILES[name](path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ptc.CorruptionError) as caught:
        ptc.open(path)
    assert not isinstance(caught.value, ptc.NotACheckpointError)


def test_a_safetensors_that_is_cut_anywhere_after_its_first_brace_is_damaged(tmp_path):
    path = tmp_path / "x"
    FILES["safetensors"](path)
    data = path.read_bytes()
    for length in (9, 10, 50, 8 + int.from_bytes(data[:8], "little") - 1, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(ptc.CorruptionError, match="the header has|lies at") as caught:
            ptc.open(path)
        assert not isinstance(caught.value, ptc.NotACheckpointError)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["torch zip", "npz"])
def test_a_zip_that_is_cut_could_have_been_anything_and_is_told_to_be_cut(name, tmp_path):
    path = tmp_path / "x"
    FILES[name](path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ptc.NotACheckpointError, match="begins as a zip archive does, but: .* cut off"):
        ptc.open(path)


def outcome(function, *arguments, **options):
    """What becomes of a total function: anything but a value or one of our errors fails the test."""
    try:
        return function(*arguments, **options)
    except ptc.PytreeckptError as error:
        assert str(error)
        return error


def check_outcome(found):
    """A foreign tree, all of which can be read unless one of our errors says why not, or an error."""
    if isinstance(found, ForeignTree):
        found = outcome(index_of, found, current_limits())
        if not isinstance(found, ptc.PytreeckptError):
            index, arrays = found
            reader = ForeignReader(index, Paths(index), arrays, {})
            outcome(reader.arrays, sorted(arrays))
            return
    assert isinstance(found, ptc.PytreeckptError)


CHECKED = {"torch zip", "npz", "sharded torch", "torch distributed"}
"""Formats with checksums."""


def check_restored(found, name):
    """What is restored of a damaged checkpoint: where there are checksums, what was saved, or an error; where there are
    none, it may be another tree.
    """
    if isinstance(found, ptc.PytreeckptError):
        assert not isinstance(found, ptc.CheckpointNotFoundError) or name in FOLDERS
    elif name in CHECKED:
        assert_same(as_numpy(found), TREE)
    else:
        assert ptc.encode(found)


@given(st.binary(max_size=200))
@example(b"PK\x03\x04")
@example(b"PK\x05\x06" + bytes(18))
@example(b"\x02\0\0\0\0\0\0\0{}")
def test_any_bytes_are_a_tree_or_an_error(data):
    check_outcome(outcome(read_file, BytesSource(memoryview(data))))


@pytest.mark.parametrize("name", FILES)
@given(st.integers(0, 1 << 32))
def test_any_damage_gives_a_tree_or_an_error(tmp_path_factory, name, seed):
    path = tmp_path_factory.mktemp("damaged") / "x"
    FILES[name](path)
    path.write_bytes(damaged(path.read_bytes(), random.Random(seed)))
    found = outcome(ptc.restore, path, to="numpy")
    check_restored(found, name)
    report = ptc.verify(path)
    assert report.ok == (not report.problems)
    # What verifies can be restored.
    assert not (report.ok and isinstance(found, ptc.CorruptionError))


@pytest.mark.parametrize("name", FOLDERS)
@settings(max_examples=25)
@given(st.integers(0, 1 << 32))
def test_any_damage_of_a_folder_gives_a_tree_or_an_error(tmp_path_factory, name, seed):
    path = tmp_path_factory.getbasetemp() / f"whole {name}"
    if not path.exists():
        FOLDERS[name](path)
    broken = tmp_path_factory.mktemp("damaged") / "x"
    shutil.copytree(path, broken)
    rng = random.Random(seed)
    file = rng.choice(sorted(file for file in broken.rglob("*") if file.is_file()))
    file.write_bytes(damaged(file.read_bytes(), rng))
    found = outcome(ptc.restore, broken, to="numpy")
    # What torch writes of a folder itself has no checksum.
    check_restored(found, name if file.name != ".metadata" else "structure")


@given(
    st.dictionaries(
        st.sampled_from([".metadata", "_METADATA", "a.safetensors", "x", "model.safetensors.index.json"]),
        st.binary(max_size=40),
    )
)
def test_any_folder_is_a_tree_or_an_error(files):
    check_outcome(outcome(read_folder, MemoryFolder(files), sorted(files)))


def test_a_folder_of_no_format_is_refused_and_the_formats_are_named(tmp_path):
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(ptc.NotACheckpointError) as caught:
        ptc.open(tmp_path)
    assert caught.value.rule == "F-1"
    for format_ in FOLDER_FORMATS:
        assert format_.name in str(caught.value)


def test_a_folder_in_which_a_checkpoint_lies_among_others_is_none(tmp_path):
    FOLDERS["Orbax"](tmp_path / "x")
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "notes.txt").write_text("…")
    with pytest.raises(ptc.NotACheckpointError):
        ptc.open(tmp_path)


def test_a_step_of_several_items_is_a_dict_of_them(tmp_path):
    FOLDERS["Orbax"](tmp_path / "params")
    FOLDERS["Orbax"](tmp_path / "state")
    restored = ptc.restore(tmp_path, to="numpy")
    assert sorted(restored) == ["params", "state"]
    assert_same(as_numpy(restored["state"]), TREE)


def test_shards_of_torch_and_their_index_agree(tmp_path):
    FOLDERS["sharded torch"](tmp_path / "x")
    index = tmp_path / "x" / "pytorch_model.bin.index.json"
    document = json.loads(index.read_text())
    for name, shard, message in [
        ("more", "pytorch_model-00001-of-00002.bin", "does not have the tensors"),
        ("w", "pytorch_model-00002-of-00002.bin", "does not have the tensors"),
        ("w", "nothing.bin", "no checkpoint at"),
        ("w", "../y.bin", "cannot be the name"),
    ]:
        index.write_text(json.dumps(document | {"weight_map": document["weight_map"] | {name: shard}}))
        with pytest.raises((ptc.CorruptionError, ptc.CheckpointNotFoundError), match=message):
            ptc.open(tmp_path / "x")
    (tmp_path / "x" / "other.bin.index.json").write_text("{}")
    with pytest.raises(ptc.CorruptionError, match="open one of them"):
        ptc.open(tmp_path / "x")
    index.unlink()
    (tmp_path / "x" / "other.bin.index.json").unlink()
    with pytest.raises(ptc.NotACheckpointError):
        ptc.open(tmp_path / "x")
    with pytest.raises(ptc.CorruptionError, match="no index"):
        read_torch_shards(LocalFolder(str(tmp_path / "x")))


def test_our_own_files_do_without_the_other_formats(tmp_path):
    ptc.save({"a": np.arange(3)}, tmp_path / "x.ptck")
    script = (
        "import sys, pytreeckpt\n"
        f"pytreeckpt.restore({str(tmp_path / 'x.ptck')!r})\n"
        "assert not [name for name in sys.modules if name.startswith('pytreeckpt.interop')]\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("name", [*FILES, *(name for name in FOLDERS if name != "Orbax")])
def test_foreign_files_are_read_without_their_frameworks(name, tmp_path):
    path = tmp_path / "x"
    (FILES | FOLDERS)[name](path)
    script = (
        "import sys, pytreeckpt\n"
        f"tree = pytreeckpt.restore({str(path)!r}, to='numpy')\n"
        "assert tree['w'].shape == (3, 4)\n"
        "assert not {'torch', 'jax', 'flax', 'safetensors', 'pickle'} & set(sys.modules) - before\n"
    )
    # numpy itself imports pickle.
    script = f"import sys, numpy\nbefore = set(sys.modules)\n{script}"
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr.decode()


# Folders of the file system.


def test_the_names_of_a_folder_are_relative_and_sorted(tmp_path):
    for name in ("b/c/d", "b/a", "z", "a.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "fifo")
    folder = LocalFolder(str(tmp_path))
    assert folder.near() == ["a.txt", "b/a", "z"]
    assert folder.names() == ["a.txt", "b/a", "b/c/d", "z"]
    assert folder.nbytes == 20
    assert folder.names() is folder.names()


def test_a_file_of_a_folder_is_opened_by_its_name(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"123")
    (tmp_path / "link").symlink_to(tmp_path / "a" / "x")
    folder = LocalFolder(str(tmp_path))
    assert [folder.open(name).nbytes for name in ("a/x", "link")] == [3, 3]
    folder.close()
    with pytest.raises(ptc.StorageError):
        folder.opened[0].read_into(0, [memoryview(bytearray(1))])


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/../../x", "/etc/passwd", "a//x", "a/./x", "x\0", "nothing", "a/x/y", "a" * 5000]
)
def test_a_name_that_is_not_there_or_leads_outside_is_not_found(name, tmp_path):
    (tmp_path / "x").write_bytes(b"outside")
    inside = tmp_path / "inside"
    (inside / "a").mkdir(parents=True)
    (inside / "a" / "x").write_bytes(b"inside")
    with pytest.raises((ptc.CheckpointNotFoundError, ptc.StorageError)):
        LocalFolder(str(inside)).open(name)


def test_a_link_that_leads_outside_is_not_followed(tmp_path):
    (tmp_path / "secret").write_bytes(b"outside")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "file").symlink_to(tmp_path / "secret")
    (inside / "folder").symlink_to(tmp_path)
    # A folder whose name merely begins as the folder's does is another one.
    (tmp_path / "inside-2").mkdir()
    (tmp_path / "inside-2" / "x").write_bytes(b"outside")
    (inside / "beside").symlink_to(tmp_path / "inside-2" / "x")
    folder = LocalFolder(str(inside))
    for name in ("file", "folder/secret", "beside"):
        with pytest.raises(ptc.CheckpointNotFoundError, match="link that leads out"):
            folder.open(name)


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for name in ("fifo", "folder"):
        with pytest.raises(ptc.NotACheckpointError):
            LocalFolder(str(tmp_path)).open(name)


def test_a_folder_of_too_many_files_is_beyond_the_limits(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "_MAX_FILES", 3)
    for number in range(4):
        (tmp_path / str(number)).mkdir()
    with pytest.raises(ptc.LimitError, match="more than 3 files"):
        LocalFolder(str(tmp_path)).names()


def test_what_cannot_be_listed_below_a_folder_tells_nothing(tmp_path, monkeypatch):
    (tmp_path / "secret").mkdir()
    (tmp_path / "x").write_bytes(b"")
    scandir = os.scandir

    def refuse(path):
        if "secret" in str(path):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(folders.os, "scandir", refuse)
    folder = LocalFolder(str(tmp_path))
    assert folder.near() == ["x"]
    with pytest.raises(ptc.StorageError, match="cannot list"):
        folder.names()


def test_a_folder_that_is_gone_is_an_error_of_the_storage(tmp_path):
    with pytest.raises(ptc.StorageError, match="cannot list"):
        LocalFolder(str(tmp_path / "gone")).names()


def test_a_folder_that_is_refused_leaves_no_file_open(tmp_path):
    FOLDERS["sharded safetensors"](tmp_path / "x")
    for shard in (tmp_path / "x").glob("*.safetensors"):
        shard.write_bytes(shard.read_bytes()[:-1])
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(ptc.CorruptionError) as caught:
        ptc.open(tmp_path / "x")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert str(tmp_path / "x") in str(caught.value)


def test_without_its_framework_a_file_comes_as_numpy_with_one_warning(tmp_path):
    FILES["torch zip"](tmp_path / "x.pt")
    script = (
        "import sys, warnings\n"
        "sys.modules['torch'] = None\n"
        "import numpy, pytreeckpt\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        f"    tree = pytreeckpt.restore({str(tmp_path / 'x.pt')!r})\n"
        "assert all(type(leaf) is numpy.ndarray for leaf in tree.values())\n"
        "(warning,) = caught\n"
        "assert 'objects of torch came back as numpy arrays' in str(warning.message)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr.decode()
