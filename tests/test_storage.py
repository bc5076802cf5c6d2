"""Saving to the file system: whole or not at all, whatever is at the path; nothing is left behind."""

import contextlib
import errno
import os
import threading
from pathlib import Path

import numpy as np
import pytest

import pytreeckpt as ptc
from pytreeckpt import storage as storage_module
from pytreeckpt.commit import (
    CreateFile,
    FinishFile,
    LinkFile,
    MakeDirectory,
    RemoveFile,
    RenameFile,
    StartWriteback,
    SyncDirectory,
    SyncFile,
    Target,
    WriteFile,
    commit,
)
from pytreeckpt.storage import LocalStorage
from tests.exact import assert_same

TREE = {"w": np.arange(1000.0), "n": 3}


DESCRIPTORS = Path("/proc/self/fd")


def n_descriptors():
    """How many descriptors this process has open, where that can be told."""
    return len(list(DESCRIPTORS.iterdir())) if DESCRIPTORS.is_dir() else 0


def names(folder):
    return sorted(path.name for path in folder.rglob("*"))


def test_a_saved_tree_is_one_file_with_the_bytes_that_encode_gives(tmp_path):
    path = tmp_path / "x.ptck"
    report = ptc.save(TREE, path)
    assert names(tmp_path) == ["x.ptck"]
    assert path.read_bytes() == ptc.encode(TREE)
    assert_same(TREE, ptc.restore(path))
    assert report.path == str(path)
    assert report.file_nbytes == path.stat().st_size
    assert report.raw_nbytes == 8000
    assert report.stored_nbytes < 8000
    assert (report.n_arrays, report.n_chunks) == (1, 1)
    with ptc.open(path) as checkpoint:
        assert report.root == checkpoint.root
        assert checkpoint.nbytes == report.file_nbytes


@pytest.mark.parametrize(
    "kind", [str, Path, os.fsencode, lambda path: type("P", (), {"__fspath__": lambda self: str(path)})()]
)
def test_a_path_may_be_a_text_bytes_or_anything_with_fspath(tmp_path, kind):
    path = kind(tmp_path / "x.ptck")
    ptc.save(TREE, path)
    assert_same(TREE, ptc.restore(path))
    assert ptc.verify(path).ok
    with ptc.open(path) as checkpoint:
        assert checkpoint.path == str(tmp_path / "x.ptck")


def test_a_relative_path_is_of_the_current_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ptc.save(1, "x")
    ptc.save(2, "new/y")
    ptc.save(3, "./new/../z")
    assert names(tmp_path) == ["new", "x", "y", "z"]
    assert [ptc.restore(name) for name in ("x", "new/y", "z")] == [1, 2, 3]


def test_missing_directories_are_made(tmp_path):
    ptc.save(1, tmp_path / "a" / "b" / "c" / "x")
    assert ptc.restore(tmp_path / "a/b/c/x") == 1


@pytest.mark.parametrize("durability", ["durable", "atomic"])
def test_a_save_replaces_what_was_there(tmp_path, durability):
    path = tmp_path / "x"
    for value in (1, 2, 3):
        ptc.save(value, path, durability=durability)
        assert ptc.restore(path) == value
    path.write_bytes(b"something else")
    ptc.save(4, path, durability=durability)
    assert ptc.restore(path) == 4
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("durability", ["durable", "atomic"])
def test_if_exists_error_leaves_what_is_there(tmp_path, durability):
    path = tmp_path / "x"
    ptc.save(1, path, if_exists="error", durability=durability)
    with pytest.raises(ptc.CheckpointExistsError, match="exists") as caught:
        ptc.save(2, path, if_exists="error", durability=durability)
    assert isinstance(caught.value, FileExistsError)
    assert ptc.restore(path) == 1
    assert names(tmp_path) == ["x"]


def test_of_many_savers_with_if_exists_error_one_wins_and_the_others_are_told(tmp_path):
    path = tmp_path / "x"
    results: list[object] = []

    def saver(value):
        try:
            ptc.save([value] * 1000, path, if_exists="error")
            results.append(value)
        except ptc.CheckpointExistsError as error:
            results.append(error)

    threads = [threading.Thread(target=saver, args=(value,)) for value in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [result for result in results if isinstance(result, int)]
    assert ptc.restore(path) == [winner] * 1000
    assert names(tmp_path) == ["x"]


def test_of_many_savers_that_replace_one_is_there_whole(tmp_path):
    path = tmp_path / "x"
    threads = [threading.Thread(target=ptc.save, args=([value] * 1000, path)) for value in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ptc.restore(path))) == 1
    assert names(tmp_path) == ["x"]


# What else may be at the path.


def test_a_symbolic_link_is_replaced_and_its_target_is_not_touched(tmp_path):
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    link = tmp_path / "link"
    for points_to in (target, tmp_path / "nowhere"):
        link.unlink(missing_ok=True)
        link.symlink_to(points_to)
        with pytest.raises(ptc.CheckpointExistsError):
            ptc.save(1, link, if_exists="error")
        ptc.save(1, link)
        assert not link.is_symlink()
        assert ptc.restore(link) == 1
    assert target.read_bytes() == b"precious"
    assert names(tmp_path) == ["link", "target"]


def test_a_link_to_a_checkpoint_is_read(tmp_path):
    ptc.save(1, tmp_path / "x")
    (tmp_path / "latest").symlink_to("x")
    assert ptc.restore(tmp_path / "latest") == 1


def test_a_link_to_a_directory_on_the_way_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    ptc.save(1, tmp_path / "link" / "x")
    assert ptc.restore(tmp_path / "real" / "x") == 1


def test_a_pipe_is_not_replaced_by_a_checkpoint(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(ptc.StorageError, match="device, pipe or socket"):
        ptc.save({"a": 1}, path)
    assert path.is_fifo()
    assert names(tmp_path) == ["pipe"]


def test_a_directory_is_no_place_for_a_checkpoint(tmp_path):
    for path in (tmp_path, f"{tmp_path}/", tmp_path / ".", f"{tmp_path}/new/"):
        with pytest.raises(ptc.StorageError, match="is a directory|not a name") as caught:
            ptc.save(1, path)
        assert isinstance(caught.value, OSError)
    with pytest.raises(ptc.NotACheckpointError, match="is a directory") as corrupt:
        ptc.restore(tmp_path)
    assert corrupt.value.rule == "F-1"
    assert names(tmp_path) == []


def test_a_fifo_or_device_is_no_checkpoint_and_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", "/dev/null", "/dev/zero"):
        for read in (ptc.restore, ptc.open, ptc.verify):
            with pytest.raises(ptc.NotACheckpointError, match="not a regular file"):
                read(path)


@pytest.mark.parametrize("path", ["", "a\0b", "\0", "\ud800", "new\ud800/x", "/", ".", "..", "a/"])
def test_what_is_no_name_of_a_file_is_an_error_before_anything_is_written(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    for if_exists in ("replace", "error"):
        with pytest.raises((ptc.StorageError, ptc.CheckpointExistsError)):
            ptc.save(1, path, if_exists=if_exists)
    for read in (ptc.restore, ptc.open, ptc.verify):
        with pytest.raises((ptc.CheckpointNotFoundError, ptc.NotACheckpointError)):
            read(path)
    assert names(tmp_path) == []


def test_a_name_that_is_too_long_is_an_error_and_leaves_nothing(tmp_path):
    for name in ("x" * 256, "\u00e9" * 200, "x" * 5000):
        with pytest.raises(ptc.StorageError, match="nothing was published|not published|name|long"):
            ptc.save(TREE, tmp_path / name)
        with pytest.raises(ptc.StorageError):
            ptc.restore(tmp_path / name)
    assert names(tmp_path) == []
    for name in ("x" * 255, "\u00e9" * 127):
        ptc.save(1, tmp_path / name)
        assert ptc.restore(tmp_path / name) == 1


def test_odd_but_possible_names_are_names(tmp_path):
    odd = ["a b", "-rf", "*", "\n", "\u00e9", "e\u0301", ".hidden", "\\", "x.tmp", os.fsdecode(b"\xff\xfe")]
    for place, name in enumerate(odd):
        ptc.save(place, tmp_path / name)
    assert [ptc.restore(tmp_path / name) for name in odd] == list(range(len(odd)))
    assert len(names(tmp_path)) == len(odd)


def test_a_file_on_the_way_is_an_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ptc.StorageError):
        ptc.save(1, tmp_path / "file" / "x")
    with pytest.raises(ptc.CheckpointNotFoundError):
        ptc.restore(tmp_path / "file" / "x")
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("read", [ptc.restore, ptc.open, ptc.verify])
def test_what_is_not_there_is_not_found(tmp_path, read):
    with pytest.raises(ptc.CheckpointNotFoundError, match="there is no checkpoint at") as caught:
        read(tmp_path / "x")
    assert isinstance(caught.value, FileNotFoundError)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_what_may_not_be_read_or_written_is_a_storage_error(tmp_path):
    ptc.save(1, tmp_path / "x")
    (tmp_path / "x").chmod(0)
    with pytest.raises(ptc.StorageError, match="cannot open"):
        ptc.restore(tmp_path / "x")
    tmp_path.chmod(0o500)
    with pytest.raises(ptc.StorageError, match="not published"):
        ptc.save(1, tmp_path / "y")
    tmp_path.chmod(0o700)


def test_the_modes_of_files_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        ptc.save(1, tmp_path / "x")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


# The commit as data.


def operations(**options):
    def pieces():
        yield b"one"
        yield b"two"
        return "written"

    target = Target("d/x", "d/.x.tmp", "d", (("d", "."),))
    generator = commit(target, pieces(), **options)
    found = []
    while True:
        try:
            found.append(next(generator))
        except StopIteration as end:
            return found, end.value


def test_content_is_durable_before_its_name_is():
    found, written = operations(if_exists="replace", durability="durable")
    assert written == "written"
    assert found == [
        MakeDirectory("d"),
        SyncDirectory("."),
        CreateFile("d/.x.tmp"),
        WriteFile("d/.x.tmp", b"one"),
        WriteFile("d/.x.tmp", b"two"),
        SyncFile("d/.x.tmp"),
        FinishFile("d/.x.tmp"),
        RenameFile("d/.x.tmp", "d/x"),
        SyncDirectory("d"),
    ]


def test_a_large_file_is_on_its_way_to_the_disk_while_it_is_written():
    target = Target("d/x", "d/.x.tmp", "d")
    for durability in ("durable", "atomic"):
        generator = commit(target, (bytes(1 << 20) for _ in range(20)), if_exists="replace", durability=durability)
        found = list(generator)
        hints = [number for number, operation in enumerate(found) if operation == StartWriteback("d/.x.tmp")]
        assert hints == ([9, 18] if durability == "durable" else [])


def test_what_must_not_replace_is_linked():
    found, _ = operations(if_exists="error", durability="durable")
    assert found[-3:] == [LinkFile("d/.x.tmp", "d/x"), RemoveFile("d/.x.tmp"), SyncDirectory("d")]


def test_what_need_not_be_durable_is_not_synced():
    for if_exists in ("replace", "error"):
        found, _ = operations(if_exists=if_exists, durability="atomic")
        assert not [operation for operation in found if isinstance(operation, SyncFile | SyncDirectory)]


@pytest.mark.parametrize(
    ("name", "value"), [("if_exists", "overwrite"), ("if_exists", None), ("durability", "no"), ("durability", True)]
)
def test_an_unknown_choice_is_an_error_before_anything_is_written(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name}="):
        ptc.save(1, tmp_path / "new" / "x", **{name: value})
    assert names(tmp_path) == []


# Failures.

STEPS = [
    "MakeDirectory",
    "CreateFile",
    "WriteFile",
    "SyncFile",
    "FinishFile",
    "RenameFile",
    "LinkFile",
    "RemoveFile",
    "SyncDirectory",
]


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EIO, "I/O error"),
        KeyboardInterrupt(),
        MemoryError(),
        Interrupted(),
    ],
)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("if_exists", ["replace", "error"])
def test_whatever_fails_the_old_or_the_new_is_there_and_nothing_else(
    tmp_path, monkeypatch, error, step, when, if_exists
):
    path = tmp_path / ("new" if step == "MakeDirectory" else ".") / "x"
    if if_exists == "replace" and step != "MakeDirectory":
        ptc.save("old", path)
    before = ptc.restore(path) if path.exists() else None
    apply = LocalStorage.apply
    applied = []

    def failing(self, operation):
        fails = type(operation).__name__ == step and not applied
        if not fails or when == "after":
            apply(self, operation)
        if fails:
            applied.append(operation)
            raise error

    monkeypatch.setattr(LocalStorage, "apply", failing)
    descriptors = n_descriptors()
    caught: BaseException | None = None
    try:
        ptc.save({"new": np.arange(10_000)}, path, if_exists=if_exists)
    except BaseException as raised:  # noqa: BLE001 - KeyboardInterrupt and others are what this is about
        caught = raised
    monkeypatch.undo()
    if not applied:
        # This way of publishing has no such step.
        assert caught is None
        return
    assert caught is not None
    if isinstance(error, OSError):
        assert isinstance(caught, ptc.StorageError)
        assert caught.errno == error.errno
    else:
        assert caught is error
    after = ptc.restore(path) if path.exists() else None
    published = step in {"SyncDirectory", "RemoveFile"} or (step in {"RenameFile", "LinkFile"} and when == "after")
    if published:
        assert list(after) == ["new"]
    else:
        assert after == before
    if isinstance(caught, ptc.NotDurableError):
        assert published
        assert "was published" in str(caught)
    assert not [name for name in names(tmp_path) if name.endswith(".tmp")]
    if descriptors:
        assert n_descriptors() == descriptors


def test_an_error_while_encoding_leaves_nothing(tmp_path):
    def read(start, stop):
        raise RuntimeError("the device is gone")

    source = ptc.ArraySource(np.dtype("f4"), (10_000,), [read])
    with pytest.raises(RuntimeError, match="the device is gone"):
        ptc.save({"a": np.zeros(1 << 20), "b": source}, tmp_path / "x")
    assert names(tmp_path) == []


def test_an_error_in_progress_leaves_nothing(tmp_path):
    def stop(_progress):
        raise KeyError("stop")

    for tree in (1, np.arange(1 << 20)):
        with pytest.raises(KeyError):
            ptc.save(tree, tmp_path / "x", progress=stop)
        assert names(tmp_path) == []


def test_short_writes_are_continued(tmp_path, monkeypatch):
    writev = os.writev

    def short(descriptor, buffers):
        return writev(descriptor, [buffers[0][: max(1, len(buffers[0]) // 3)]])

    monkeypatch.setattr(os, "writev", short)
    ptc.save(TREE, tmp_path / "x")
    monkeypatch.undo()
    assert (tmp_path / "x").read_bytes() == ptc.encode(TREE)


def test_short_reads_are_continued(tmp_path, monkeypatch):
    ptc.save(TREE, tmp_path / "x", compression="none")
    preadv = os.preadv
    monkeypatch.setattr(
        os,
        "preadv",
        lambda descriptor, buffers, offset: preadv(descriptor, [buffers[0][: max(1, len(buffers[0]) // 3)]], offset),
    )
    restored = ptc.restore(tmp_path / "x")
    monkeypatch.undo()
    assert_same(TREE, restored)


def test_an_error_while_reading_is_a_storage_error(tmp_path, monkeypatch):
    ptc.save(TREE, tmp_path / "x")

    def fail(descriptor, buffers, offset):
        raise OSError(errno.EIO, "I/O error")

    with ptc.open(tmp_path / "x") as checkpoint:
        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(ptc.StorageError, match="cannot read .* at 64: I/O error") as caught:
            checkpoint.restore()
        assert caught.value.errno == errno.EIO


def test_a_file_that_is_cut_while_it_is_open_is_corrupt(tmp_path):
    ptc.save(TREE, tmp_path / "x", compression="none")
    with ptc.open(tmp_path / "x") as checkpoint:
        os.truncate(tmp_path / "x", 100)
        with pytest.raises(ptc.CorruptionError, match="was cut to 100 bytes"):
            checkpoint.restore()


def test_a_file_that_is_replaced_while_it_is_open_stays_what_it_was(tmp_path):
    ptc.save({"a": np.zeros(10)}, tmp_path / "x")
    with ptc.open(tmp_path / "x") as checkpoint:
        ptc.save({"b": 1}, tmp_path / "x")
        assert list(checkpoint.restore()) == ["a"]


def test_a_closed_checkpoint_cannot_be_read_but_its_structure_can(tmp_path):
    ptc.save(TREE, tmp_path / "x")
    with ptc.open(tmp_path / "x") as checkpoint:
        pass
    checkpoint.close()
    assert checkpoint["n"] == 3
    with pytest.raises(ptc.StorageError):
        checkpoint.restore()
    with pytest.raises(ptc.StorageError):
        checkpoint["w"][0]


def test_a_checkpoint_that_is_not_closed_gives_its_descriptor_back(tmp_path):
    ptc.save(TREE, tmp_path / "x")
    if not DESCRIPTORS.is_dir():
        pytest.skip("descriptors are counted in /proc")
    before = n_descriptors()
    checkpoint = ptc.open(tmp_path / "x")
    assert n_descriptors() == before + 1
    del checkpoint
    import gc

    gc.collect()
    assert n_descriptors() == before


def test_a_file_that_is_no_checkpoint_gives_its_descriptor_back(tmp_path):
    (tmp_path / "x").write_bytes(b"no")
    if not DESCRIPTORS.is_dir():
        pytest.skip("descriptors are counted in /proc")
    before = n_descriptors()
    for read in (ptc.open, ptc.restore, ptc.verify):
        with contextlib.suppress(ptc.NotACheckpointError):
            read(tmp_path / "x")
    assert n_descriptors() == before


def test_a_forked_child_neither_writes_nor_publishes_what_its_parent_saves(tmp_path):
    storage = LocalStorage()
    target = storage.target(str(tmp_path / "x"))
    storage.apply(CreateFile(target.temporary))
    pid = os.fork()
    if pid == 0:  # pragma: no cover - in the child
        refused = 0
        for operation in (
            WriteFile(target.temporary, b"child"),
            SyncFile(target.temporary),
            FinishFile(target.temporary),
            RenameFile(target.temporary, target.path),
        ):
            try:
                storage.apply(operation)
            except ptc.StorageError:
                refused += 1
        storage.discard(target.temporary)
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 4
    # The child removed nothing either.
    storage.apply(WriteFile(target.temporary, b"parent"))
    storage.apply(FinishFile(target.temporary))
    storage.apply(RenameFile(target.temporary, target.path))
    assert (tmp_path / "x").read_bytes() == b"parent"


def test_a_file_system_without_links_says_what_to_do(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(ptc.StorageError, match='has no hard links.*if_exists="replace"'):
        ptc.save(1, tmp_path / "x", if_exists="error")
    assert names(tmp_path) == []


def test_what_stands_at_the_temporary_name_is_not_ours_to_touch(tmp_path, monkeypatch):
    monkeypatch.setattr(storage_module.secrets, "token_hex", lambda _: "0" * 16)
    there = tmp_path / f".x.{os.getpid()}-{'0' * 16}.tmp"
    there.write_bytes(b"precious")
    with pytest.raises(ptc.StorageError):
        ptc.save(1, tmp_path / "x")
    assert there.read_bytes() == b"precious"
    there.unlink()
    there.symlink_to(tmp_path / "victim")
    with pytest.raises(ptc.StorageError):
        ptc.save(1, tmp_path / "x")
    assert not (tmp_path / "victim").exists()
    assert there.is_symlink()


def test_files_of_others_are_left_alone(tmp_path):
    (tmp_path / ".x.123-abc.tmp").write_bytes(b"not ours")
    ptc.save(1, tmp_path / "x")
    assert names(tmp_path) == [".x.123-abc.tmp", "x"]
