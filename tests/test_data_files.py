"""Checkpoints whose chunks lie in data files: read as one file would be, every file of them checked, and none opened but
those that roots name.
"""

import copy
import errno
import gc
import itertools
import os
import random
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt import checkpoint as checkpoint_module
from pytreeckpt import content, planning
from pytreeckpt import reader as reader_module
from pytreeckpt.content import own_content
from pytreeckpt.identities import identity
from pytreeckpt.index import Index
from pytreeckpt.opening import open_own
from pytreeckpt.reading import BytesSource, RangedSource
from pytreeckpt.storage import LocalStorage, with_errno
from spec.corpus.data_files import Parted, Piece, data_file, name_of, part, root_of
from spec.corpus.parts import Chunk, Row, of_arrays, take_apart
from spec.reference import reader
from tests import strategies as some
from tests.exact import assert_same, item_bytes
from tests.judgement import LIMITS
from tests.mutations import mutate
from tests.simulated_storage import SimulatedStorage
from tests.sources import RecordingSource

PlaceOf = Callable[[int], int]


def parted(tree: object, place_of: PlaceOf, *, compression: Any = "auto", metadata: object = None) -> Parted:
    """The tree in small chunks, distributed."""
    return part(take_apart(in_small_chunks(tree, compression=compression, metadata=metadata)), place_of)


def in_small_chunks(tree: object, *, compression: Any = "auto", metadata: object = None) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "CHUNK_NBYTES", 1000)
        patch.setattr(planning, "INLINE_NBYTES", 40)
        return ptc.encode(tree, metadata=metadata, compression=compression)


def opened(
    manifest: bytes, files: Mapping[str, bytes], make: Callable[[bytes], RangedSource] | None = None
) -> ptc.Checkpoint:
    """A manifest in memory, and its data files."""
    of = make or (lambda data: BytesSource(memoryview(data)))

    def open_data_file(name: str) -> RangedSource:
        if name not in files:
            raise ptc.CheckpointNotFoundError(f"there is no checkpoint at data/{name}")
        return of(files[name])

    return ptc.Checkpoint(own_content(of(manifest), ptc.current_limits(), open_data_file), None)


def step() -> dict[str, Any]:
    """Arrays of several itemsizes, many of them small, some of more than one chunk, and two that are equal."""
    random_ = np.random.default_rng(0)
    weights = random_.standard_normal(1500).astype(np.float32)
    return {
        "w": weights.reshape(50, 30),
        "same": weights.reshape(50, 30).copy(),
        "f": np.asfortranarray(random_.standard_normal((40, 20))),
        "m": np.zeros(2000, np.int16),
        "small": [np.full(20, n, np.float32) for n in range(9)],
        "x": random_.integers(0, 256, 3000, np.uint8),
        "step": 3,
    }


def in_three(number: int) -> int:
    return number % 4


STEP = parted(step(), in_three, compression="none", metadata={"run": 1})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A manifest, x.ptck, of three data files and chunks of its own."""
    assert len(STEP.files) == 3
    assert STEP.manifest.body
    return STEP.write(tmp_path).parent


def data_files(folder: Path) -> list[Path]:
    """The data files in the order of the file table."""
    with ptc.open(folder / "x.ptck") as checkpoint:
        return [folder / "data" / file.name for file in checkpoint.index.files]


def refusal(path: Path, rule: str) -> ptc.CorruptionError:
    """The error with which a checkpoint is refused, however one asks."""
    for call in (
        ptc.open,
        ptc.restore,
        lambda path: ptc.restore(path, mmap=True),
        lambda path: ptc.restore(path, select="step"),
    ):
        with pytest.raises(ptc.CorruptionError) as caught:
            call(path)
        assert caught.value.rule == rule
        assert str(caught.value).startswith(f"{path}: ")
        assert not isinstance(caught.value, ptc.NotACheckpointError)
    report = ptc.verify(path)
    assert [(problem.rule, problem.file) for problem in report.problems] == [(rule, caught.value.file)]
    return caught.value


# The same as in one file.


@given(some.TREES, st.randoms(use_true_random=False), st.sampled_from(["auto", "none", 3]), st.integers(1, 5))
@pytest.mark.filterwarnings("ignore:.* came back as")
def test_any_tree_in_data_files_is_the_same_as_in_one_file(tree, rng, compression, n_files):
    one = in_small_chunks(tree, compression=compression)
    made = part(take_apart(one), lambda _: rng.randrange(n_files + 1))
    event(f"{len(made.files)} data files")
    with opened(made.manifest.encode(), made.named) as checkpoint, opened(one, {}) as whole:
        assert_same(whole.restore(), checkpoint.restore())
        assert_same(whole.restore(select="**"), checkpoint.restore(select="**"))
        assert [str(path) for path, _ in whole.leaves()] == [str(path) for path, _ in checkpoint.leaves()]
        for (_, leaf), (_, again) in zip(whole.leaves(), checkpoint.leaves(), strict=True):
            if isinstance(leaf, ptc.ArrayRef) and leaf.shape:
                assert item_bytes(leaf[1:-1:2]) == item_bytes(again[1:-1:2])
        assert list(checkpoint.damage()) == []
        assert checkpoint.nbytes == len(made.manifest.encode()) + sum(map(len, made.files))
        assert ptc.encode(checkpoint.restore(), compression=compression) == ptc.encode(
            whole.restore(), compression=compression
        )


def test_every_way_of_reading_gives_what_one_file_gives(folder):
    path, tree = folder / "x.ptck", step()
    assert_same(tree, ptc.restore(path))
    assert_same(tree, ptc.restore(path, like=tree))
    assert_same({"f": tree["f"]}, ptc.restore(path, select="f"))
    assert_same(tree["small"], ptc.restore(path, select="small")["small"])
    assert_same(tree, ptc.restore(path, verify=False))
    into = {name: np.zeros_like(tree[name]) for name in ("w", "f", "x")}
    back = ptc.restore(path, like=into, strict=False)
    assert all(back[name] is into[name] for name in into)
    assert_same({name: tree[name] for name in into}, back)
    with ptc.open(path) as checkpoint:
        assert checkpoint.metadata == {"run": 1}
        assert_same(tree["w"][7:23, 2:9], checkpoint["w"][7:23, 2:9])
        assert_same(tree["x"][990:1010], checkpoint["x"][990:1010])
        assert_same(tree["f"], checkpoint["f"][...])
        assert checkpoint.nbytes == sum(each.stat().st_size for each in [path, *data_files(folder)])
        assert checkpoint.footer.file_nbytes == path.stat().st_size
    report = ptc.verify(path)
    assert report.ok
    assert (report.n_data_files, report.coverage, report.file_nbytes) == (3, "every byte", checkpoint.nbytes)


def test_arrays_are_mapped_from_the_file_that_they_are_in(tmp_path):
    tree = {"a": np.arange(1000.0), "b": np.arange(500, dtype=np.int32), "c": np.arange(300, dtype=np.uint8), "d": 1}
    made = part(take_apart(ptc.encode(tree, compression="none")), lambda number: number)
    assert len(made.files) == 2
    path = made.write(tmp_path)
    mapped = ptc.restore(path, mmap=True)
    assert_same(tree, mapped)
    assert_same({"b": tree["b"]}, ptc.restore(path, mmap=True, select="b"))
    mapped["b"][...] = 0
    assert ptc.verify(path).ok
    damaged = tmp_path / "data" / name_of(made.files[0])
    damaged.write_bytes(with_bit(damaged.read_bytes(), 70))
    with pytest.raises(ptc.CorruptionError, match=rf"leaf b, chunk 0 \(offset 64 of data/{damaged.name}, "):
        ptc.restore(path, mmap=True)
    assert_same({"c": tree["c"]}, ptc.restore(path, mmap=True, select="c"))
    assert ptc.restore(path, mmap=True, verify=False)["b"].shape == (500,)


def test_an_array_in_two_files_cannot_be_mapped(tmp_path):
    array = np.arange(32, dtype=np.uint8)
    halves = [Chunk(half.tobytes() * 4, half.tobytes() * 4) for half in np.split(array, 2)]
    # The second begins in its file where the first ends in the other.
    before = Piece(1, Chunk(bytes(range(100, 164)), bytes(range(100, 164))))
    made = part(
        of_arrays(Row("uint8", [128], None, [halves])),
        lambda number: 1 + number,
        make=lambda members: data_file(*([before] if members[0].chunk == halves[1] else []), *members),
    )
    made.manifest.index["chunks"]["offset"] = [64, 128]
    path = made.write(tmp_path)
    assert ptc.restore(path)[0].tobytes() == halves[0].raw + halves[1].raw
    with ptc.open(path) as checkpoint:
        assert checkpoint["[0]"][60:70].tobytes() == (halves[0].raw + halves[1].raw)[60:70]
    assert ptc.verify(path).ok
    with pytest.raises(ptc.NotMappableError, match=r"\[0\].*several pieces"):
        ptc.restore(path, mmap=True)


@pytest.mark.parametrize("threads", ["1", "3"])
def test_chunks_that_follow_each_other_in_different_files_are_read_apart(monkeypatch, threads):
    monkeypatch.setenv("PYTREECKPT_THREADS", threads)
    values = np.arange(64 * 16, dtype=np.uint8).reshape(64, 16)
    chunks = [Chunk(row.tobytes() * 4, row.tobytes() * 4) for row in values]
    made = part(
        of_arrays(Row("uint8", [len(chunks) * 64], None, [chunks])),
        lambda number: number % 3,
    )
    with opened(made.manifest.encode(), made.named, RecordingSource) as checkpoint:
        assert checkpoint.restore()[0].tobytes() == b"".join(chunk.raw for chunk in chunks)


def test_a_checkpoint_of_bytes_alone_says_that_it_has_to_be_opened(folder):
    with pytest.raises(ptc.CorruptionError, match="open the file, beside which its data files are") as caught:
        ptc.decode((folder / "x.ptck").read_bytes())
    assert caught.value.rule == "F-15"


def test_a_data_file_is_a_checkpoint_of_its_own(folder):
    for path in data_files(folder):
        assert ptc.verify(path).ok
        tree = ptc.restore(path)
        assert all(array.dtype == np.dtype((np.void, itemsize)) for itemsize, array in tree.items())
        with ptc.open(path) as checkpoint:
            assert f"{checkpoint.root}.ptck" == path.name


def test_a_manifest_beside_the_working_directory_finds_its_data_files(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert_same(step(), ptc.restore("x.ptck"))
    monkeypatch.chdir(folder / "data")
    assert_same(step(), ptc.restore("../x.ptck"))


def test_any_storage_has_data_files(folder):
    image: dict[str, bytes | None] = {"run": None, "run/data": None, "run/x.ptck": (folder / "x.ptck").read_bytes()}
    image |= {f"run/data/{path.name}": path.read_bytes() for path in data_files(folder)}
    storage = SimulatedStorage(image)
    with open_own(storage, "run/x.ptck") as checkpoint:
        assert_same(step(), checkpoint.restore())
        assert list(checkpoint.damage()) == []
    del image[f"run/data/{data_files(folder)[1].name}"]
    with pytest.raises(ptc.CorruptionError, match="is missing") as caught:
        open_own(SimulatedStorage(image), "run/x.ptck")
    assert caught.value.rule == "F-15"
    with open_own(LocalStorage(), str(folder / "x.ptck")) as checkpoint:
        assert_same(step(), checkpoint.restore())
    (folder / "notes").write_text("nothing of ours")
    with pytest.raises(ptc.NotACheckpointError):
        open_own(LocalStorage(), str(folder / "notes"))


def test_a_link_to_a_manifest_has_its_data_files_beside_the_link(folder, tmp_path_factory):
    link = tmp_path_factory.mktemp("elsewhere") / "latest.ptck"
    link.symlink_to(folder / "x.ptck")
    assert str(link.parent / "data") in str(refusal(link, "F-15"))
    (link.parent / "data").symlink_to(folder / "data")
    assert_same(step(), ptc.restore(link))
    beside = folder / "latest.ptck"
    beside.symlink_to("x.ptck")
    assert_same(step(), ptc.restore(beside))


# Which files are opened, and closed.


def test_only_files_that_roots_name_are_opened(folder, monkeypatch):
    asked = []
    original = LocalStorage.open
    monkeypatch.setattr(LocalStorage, "open", lambda self, path: asked.append(path) or original(self, path))
    ptc.restore(folder / "x.ptck")
    first = asked.copy()
    assert first[0] == str(folder / "x.ptck")
    assert first[1:] == [str(path) for path in data_files(folder)]
    assert all(len(Path(path).stem) == 64 for path in first[1:])


def n_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names of descriptors, no files


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="descriptors are counted in /proc")


@needs_proc
def test_all_files_are_open_at_once_and_closed_together(folder):
    before = n_descriptors()
    checkpoint = ptc.open(folder / "x.ptck")
    assert n_descriptors() == before + 4
    for path in [*data_files(folder), folder / "x.ptck"]:
        path.unlink()
    assert_same(step(), checkpoint.restore())
    assert list(checkpoint.damage()) == []
    checkpoint.close()
    assert n_descriptors() == before


@needs_proc
@pytest.mark.parametrize("at", [0, 1, 2])
def test_nothing_stays_open_when_a_data_file_is_refused(folder, at):
    path = data_files(folder)[at]
    good = path.read_bytes()
    before = n_descriptors()
    for change in (
        lambda: path.write_bytes(good[:-64]),
        lambda: path.write_bytes(bytes(len(good))),
        path.unlink,
        path.mkdir,
    ):
        change()
        for call in (ptc.open, ptc.restore):
            with pytest.raises(ptc.CorruptionError):
                call(folder / "x.ptck")
        assert not ptc.verify(folder / "x.ptck").ok
        assert n_descriptors() == before


@needs_proc
def test_nothing_stays_open_when_opening_is_interrupted(folder, monkeypatch):
    calls = itertools.count()

    def interrupted(file, source):
        if next(calls) == 1:
            raise KeyboardInterrupt

    before = n_descriptors()
    monkeypatch.setattr(content, "_check_data_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ptc.open(folder / "x.ptck")
    assert n_descriptors() == before


@needs_proc
@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES])
def test_what_the_system_refuses_to_open_is_told(folder, monkeypatch, number):
    original = LocalStorage.open
    last = str(data_files(folder)[-1])

    def refused(self, path):
        if path == last:
            raise with_errno(ptc.StorageError(f"cannot open {path}: no"), OSError(number, "no"))
        return original(self, path)

    before = n_descriptors()
    monkeypatch.setattr(LocalStorage, "open", refused)
    with pytest.raises(ptc.StorageError, match=f"cannot open {last}") as caught:
        ptc.restore(folder / "x.ptck")
    assert caught.value.errno == number
    assert ("raise the limit on open files" in str(caught.value)) is (number == errno.EMFILE)
    assert n_descriptors() == before


@needs_proc
def test_nothing_stays_open_when_the_tree_is_refused(tmp_path):
    made = parted([np.arange(100), 1], lambda _: 1)
    made.manifest.index["nodes"]["kinds"] = made.manifest.index["nodes"]["kinds"][:-1]
    before = n_descriptors()
    with pytest.raises(ptc.CorruptionError):
        ptc.open(made.write(tmp_path))
    assert n_descriptors() == before


# Data files that are not there, or something else.


def test_a_missing_data_file_is_named_with_where_it_was_looked_for(folder):
    path = data_files(folder)[1]
    path.unlink()
    error = refusal(folder / "x.ptck", "F-15")
    assert error.file == path.name
    assert str(path) in str(error)
    assert "is missing" in str(error)


def test_a_missing_folder_of_data_files_is_a_missing_data_file(folder):
    first = data_files(folder)[0]
    (folder / "data").rename(folder / "elsewhere")
    error = refusal(folder / "x.ptck", "F-15")
    assert error.file == first.name
    assert str(error).endswith("Of its 3 data files, 3 cannot be used")
    assert copy.copy(error).file == first.name
    (folder / "data").write_bytes(b"a file")
    assert "is missing" in str(refusal(folder / "x.ptck", "F-15"))


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: os.mkfifo(path)], ids=["directory", "fifo"])
def test_what_is_no_file_is_no_data_file(folder, make):
    path = data_files(folder)[0]
    path.unlink()
    make(path)
    error = refusal(folder / "x.ptck", "F-15")
    assert "is no file" in str(error)
    assert error.file == path.name


def test_a_link_to_a_data_file_is_followed_and_one_to_something_else_is_refused(folder, tmp_path_factory):
    path = data_files(folder)[0]
    away = tmp_path_factory.mktemp("away") / "blob"
    path.rename(away)
    path.symlink_to(away)
    assert_same(step(), ptc.restore(folder / "x.ptck"))
    assert ptc.verify(folder / "x.ptck").ok
    (away.parent / "secret").write_bytes(bytes(away.stat().st_size))
    path.unlink()
    path.symlink_to(away.parent / "secret")
    refusal(folder / "x.ptck", "F-1")
    path.unlink()
    path.symlink_to(away.parent / "nothing")
    refusal(folder / "x.ptck", "F-15")
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(ptc.StorageError, match="cannot open"):
        ptc.restore(folder / "x.ptck")


def test_data_files_that_were_swapped_are_refused(tmp_path):
    tree = [np.arange(100, dtype=np.uint8), np.arange(100, 200, dtype=np.uint8)]
    path = parted(tree, lambda number: 1 + number).write(tmp_path)
    first, second = data_files(tmp_path)
    assert first.stat().st_size == second.stat().st_size
    first.rename(tmp_path / "other")
    second.rename(first)
    (tmp_path / "other").rename(second)
    error = refusal(path, "F-18")
    assert error.file == first.name
    assert "another checkpoint" in str(error)


@given(st.data())
def test_a_data_file_cut_or_continued_anywhere_is_refused(data):
    made = STEP
    files = dict(made.named)
    name = data.draw(st.sampled_from(sorted(files)))
    whole = files[name]
    files[name] = data.draw(
        st.integers(0, len(whole) - 1).map(lambda at: whole[:at]) | st.binary(min_size=1).map(lambda more: whole + more)
    )
    with pytest.raises(ptc.CorruptionError) as caught:
        opened(made.manifest.encode(), files)
    assert caught.value.rule == "F-16"
    assert caught.value.file == name
    assert not isinstance(caught.value, ptc.NotACheckpointError)


def test_a_foreign_file_in_place_of_a_data_file_is_not_read(folder):
    path = data_files(folder)[0]
    nbytes = path.stat().st_size
    with path.open("wb") as file:
        np.save(file, np.zeros(nbytes, np.uint8))
    path.write_bytes(path.read_bytes()[:nbytes])
    error = refusal(folder / "x.ptck", "F-1")
    assert f"the data file {path.name}: not a pytreeckpt file" in str(error)


def test_a_data_file_of_a_later_version_is_not_damaged(tmp_path):
    made = parted([np.arange(100)], lambda _: 1)
    later = take_apart(made.files[0])
    later.preamble[8] = 2
    path = made.write(tmp_path)
    (tmp_path / "data" / name_of(made.files[0])).write_bytes(later.encode())
    with pytest.raises(ptc.FormatVersionError, match=r"the data file \w+\.ptck: the file has format version 2"):
        ptc.restore(path)
    (problem,) = ptc.verify(path).problems
    assert (problem.kind, problem.rule) == ("unknown version", "F-2")


def test_there_are_at_most_so_many_data_files():
    made = STEP
    with ptc.limits(data_files=2), pytest.raises(ptc.LimitError, match=r"3 data files, .*limits\(data_files=…\)"):
        opened(made.manifest.encode(), made.named)
    with ptc.limits(data_files=3):
        assert_same(step(), opened(made.manifest.encode(), made.named).restore())


# Damage.


def with_bit(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_damage_in_a_data_file_is_told_with_the_leaf_and_the_file(tmp_path):
    tree = {"a": np.arange(100), "b": np.arange(100, 200), "c": np.arange(7)}
    path = parted(tree, lambda number: 1 + number, compression="none").write(tmp_path)
    damaged = data_files(tmp_path)[1]
    damaged.write_bytes(with_bit(damaged.read_bytes(), 64 + 9))
    with pytest.raises(ptc.CorruptionError) as caught:
        ptc.restore(path)
    assert str(caught.value).startswith(
        f"{path}: leaf b, chunk 0 (offset 64 of data/{damaged.name}, 800 bytes): digest mismatch"
    )
    assert (caught.value.leaf, caught.value.chunk, caught.value.offset, caught.value.file) == ("b", 0, 64, damaged.name)
    assert_same({"a": tree["a"]}, ptc.restore(path, select="a"))
    report = ptc.verify(path)
    assert [(p.rule, p.leaf, p.chunk, p.offset, p.file) for p in report.problems] == [("C-8", "b", 0, 64, damaged.name)]


@given(st.data())
def test_verify_notices_a_change_of_any_byte_of_any_file(data):
    made = STEP
    manifest, files = made.manifest.encode(), dict(made.named)
    name = data.draw(st.sampled_from(["", *sorted(files)]))
    whole = files[name] if name else manifest
    changed = bytearray(whole)
    changed[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    if name:
        files[name] = bytes(changed)
    try:
        checkpoint = opened(manifest if name else bytes(changed), files)
    except (ptc.CorruptionError, ptc.FormatVersionError) as error:
        assert not name or name in str(error)
        return
    problems = list(checkpoint.damage())
    assert len(problems) == 1
    assert not name or name in str(problems[0])


def test_verify_reads_each_chunk_once_and_every_byte_between():
    made = STEP
    # A data file with a chunk that the manifest does not use.
    sources: list[RecordingSource] = []

    def recorded(data: bytes) -> RecordingSource:
        sources.append(RecordingSource(data))
        return sources[-1]

    with opened(made.manifest.encode(), made.named, recorded) as checkpoint:
        for source in sources:
            source.ranges.clear()
        assert list(checkpoint.damage()) == []
    assert len(sources) == 4
    for source, data in zip(sources, [made.manifest.encode(), *made.files], strict=True):
        index_offset = int.from_bytes(data[-128:-120], "little")
        chunks = sorted(range_ for range_ in source.ranges if 64 <= range_[0] < index_offset)
        assert [start for start, _ in chunks] == [64, *(stop for _, stop in chunks[:-1])]
        assert chunks[-1][1] == index_offset


def test_what_is_wrong_with_a_chunk_that_is_not_used_is_told_with_the_data_file():
    used, unused = (Piece(1, Chunk(bytes([n]) * 70, bytes([n]) * 70)) for n in (1, 2))
    made = part(
        of_arrays(Row("uint8", [70], None, [[used.chunk]])), lambda _: 1, make=lambda _: data_file(used, unused)
    )
    (name,) = made.named
    files = {name: with_bit(made.files[0], 64 + 128 + 5)}
    with opened(made.manifest.encode(), files) as checkpoint:
        assert checkpoint.restore()[0].tobytes() == used.chunk.raw
        (problem,) = checkpoint.damage()
    assert problem.rule == "C-8"
    assert problem.leaf is None
    assert problem.offset == 192
    assert str(problem).startswith(f"the data file {name}: leaf 1, chunk 1 (offset 192, 70 bytes): ")


def test_all_that_is_wrong_with_all_files_is_told(tmp_path):
    tree = [np.arange(n, 100 + n) for n in range(4)]
    made = parted(tree, lambda number: number, compression="none")
    path = made.write(tmp_path)
    first, second, third = data_files(tmp_path)
    path.write_bytes(with_bit(path.read_bytes(), 70))
    first.write_bytes(with_bit(first.read_bytes(), 70))
    # Within its index, and its padding.
    second.write_bytes(with_bit(second.read_bytes(), second.stat().st_size - 300))
    assert third.exists()
    seen: list[ptc.Progress] = []
    report = ptc.verify(path, progress=seen.append)
    assert {(problem.rule, problem.leaf, problem.file) for problem in report.problems} == {
        ("F-11", None, second.name),
        ("C-8", "[0]", None),
        ("C-8", "[1]", first.name),
    }
    assert report.root is not None
    assert_whole(seen)


def test_a_chunk_that_is_read_twice_counts_once():
    # Of another size of items than in its file: it is checked as what each of them says that it is.
    values = bytes(range(128))
    made = part(
        of_arrays(Row("uint8", [128], None, [[Chunk(values, values)]])),
        lambda _: 1,
        make=lambda _: data_file(Piece(4, Chunk(values, values)), Piece(4, Chunk(values[:64], values[:64]))),
    )
    seen: list[ptc.Progress] = []
    with opened(made.manifest.encode(), made.named) as checkpoint:
        assert [problem.rule for problem in checkpoint.damage(progress=seen.append)] == ["C-15"]
    assert_whole(seen)


def test_one_index_of_a_data_file_at_a_time_is_in_memory(monkeypatch):
    alive: list[int] = []
    original = checkpoint_module.own_content

    def counted(*arguments):
        alive.append(sum(type(each) is Index for each in gc.get_objects()))
        return original(*arguments)

    monkeypatch.setattr(checkpoint_module, "own_content", counted)
    with opened(STEP.manifest.encode(), STEP.named) as checkpoint:
        checkpoint.check_structure()
        gc.collect()
        gc.disable()
        try:
            assert list(checkpoint.damage()) == []
        finally:
            gc.enable()
    assert len(alive) == 3
    assert len(set(alive)) == 1


def assert_whole(seen: list[ptc.Progress]) -> None:
    """Progress rises, to its total."""
    done = [progress.done_nbytes for progress in seen]
    assert done == sorted(set(done))
    assert {progress.total_nbytes for progress in seen} == {done[-1]}


def test_identities_are_checked_when_asked_to_verify():
    made = parted({"a": np.arange(100), "b": np.arange(7.0)}, lambda _: 1)
    made.manifest.index["chunks"]["identity"][0] = bytes(32)
    with opened(made.manifest.encode(), made.named) as checkpoint:
        assert checkpoint.restore()["a"].tolist() == list(range(100))
        (problem,) = checkpoint.damage()
    assert problem.rule == "C-14"
    assert problem.leaf == "a"
    assert "BLAKE3" in str(problem)


def test_a_row_that_is_no_chunk_of_its_data_file_is_told():
    whole = Chunk(bytes(range(128)), bytes(range(128)))
    halves = [Chunk(whole.raw[:64], whole.raw[:64]), Chunk(whole.raw[64:], whole.raw[64:])]
    made = part(of_arrays(Row("uint8", [128], None, [halves])), lambda _: 1, make=lambda _: data_file(Piece(1, whole)))
    with opened(made.manifest.encode(), made.named) as checkpoint:
        assert checkpoint.restore()[0].tobytes() == whole.raw
        problems = list(checkpoint.damage())
    assert [(problem.rule, problem.leaf, problem.chunk) for problem in problems] == [
        ("C-15", "[0]", 0),
        ("C-15", "[0]", 1),
    ]


@pytest.mark.parametrize("threads", ["1", "3"])
def test_progress_of_verify_goes_over_all_files(folder, monkeypatch, threads):
    monkeypatch.setenv("PYTREECKPT_THREADS", threads)
    monkeypatch.setattr(reader_module, "_RUN_NBYTES", 1000)
    seen: list[ptc.Progress] = []
    assert ptc.verify(folder / "x.ptck", progress=seen.append).ok
    assert len(seen) > 10
    assert_whole(seen)


# Identities.


@given(st.binary(max_size=5000))
def test_identities_are_those_of_the_paper(data):
    assert identity(data) == reader.blake3(data)
    assert identity(memoryview(bytearray(data))) == identity(data)


# Any bytes.


def judge(manifest: bytes, files: Mapping[str, bytes]) -> str:
    """What is found; only errors of ours may come of it."""
    with ptc.limits(**LIMITS), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            checkpoint = opened(manifest, files)
            problems = list(checkpoint.damage())
            for options in ({}, {"verify": False}, {"select": "**"}):
                try:
                    checkpoint.restore(**options)
                except ptc.PytreeckptError as error:
                    assert str(error)
                    problems.append(error)
            for _, leaf in checkpoint.leaves():
                if isinstance(leaf, ptc.ArrayRef) and leaf.shape and all(leaf.shape) and leaf.nbytes < 1 << 20:
                    try:
                        assert leaf[-1].shape == leaf.shape[1:]
                    except ptc.PytreeckptError as error:
                        problems.append(error)
        except ptc.PytreeckptError as error:
            assert str(error)
            return getattr(error, "rule", type(error).__name__)
    return getattr(problems[0], "rule", "other") if problems else "accepted"


BASES = [
    STEP,
    parted(step(), lambda _: 1, compression=3),
    parted([np.arange(400, dtype=np.int32), np.arange(400, dtype=np.int32).reshape(20, 20).T], lambda n: n),
]


def test_the_bases_are_accepted():
    assert [judge(base.manifest.encode(), base.named) for base in BASES] == ["accepted"] * 3


@given(st.sampled_from(BASES), st.integers(0, 2**32))
def test_a_changed_manifest_gives_a_value_or_an_error(base, seed):
    event(judge(mutate(base.manifest.encode(), seed), base.named))


@given(st.sampled_from(BASES), st.integers(0, 2**32))
def test_a_changed_data_file_that_is_what_the_manifest_names_gives_a_value_or_an_error(base, seed):
    rng = random.Random(seed)
    number = rng.randrange(len(base.files))
    changed = mutate(base.files[number], seed)
    manifest = take_apart(base.manifest.encode())
    manifest.preamble[16] = 1
    manifest.index["files"][1 + number] = [name_of(changed), len(changed), root_of(changed)]
    files = base.named | {name_of(changed): changed}
    verdict = judge(manifest.encode(), files)
    event(verdict)
    assert changed == base.files[number] or verdict != "F-18"


@given(st.sampled_from(BASES), st.data())
def test_any_entries_of_the_file_table_give_a_value_or_an_error(base, data):
    manifest = take_apart(base.manifest.encode())
    manifest.preamble[16] = data.draw(st.sampled_from([1, 1, 1, 0]))
    (_, good, *_) = manifest.index["files"]
    values = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.text() | st.binary(max_size=40)
    entries = st.just(good) | st.lists(values | st.sampled_from(good), max_size=4) | values
    manifest.index["files"] = [["", 0, b""], *data.draw(st.lists(entries, max_size=4))]
    event(judge(manifest.encode(), base.named))


def test_names_in_a_file_lead_nowhere(folder, monkeypatch):
    asked = []
    original = LocalStorage.open
    monkeypatch.setattr(LocalStorage, "open", lambda self, path: asked.append(path) or original(self, path))
    good = take_apart((folder / "x.ptck").read_bytes())
    root = good.index["files"][1][2]
    for name in ("../x.ptck", "/etc/passwd", "..", "", f"../data/{root.hex()}.ptck", f"{root.hex()}.ptck/../x", "\0"):
        changed = take_apart((folder / "x.ptck").read_bytes())
        changed.preamble[16] = 1
        changed.index["files"][1][0] = name
        assert msgpack.packb(changed.index["files"]) != msgpack.packb(good.index["files"])
        (folder / "y.ptck").write_bytes(changed.encode())
        asked.clear()
        with pytest.raises(ptc.CorruptionError) as caught:
            ptc.restore(folder / "y.ptck")
        assert caught.value.rule == "C-1"
        assert asked == [str(folder / "y.ptck")]
