"""Chunks: each checked before anything of it is given back, damage named, all else readable; mapped files."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt import planning
from pytreeckpt import reader as reader_module
from tests import strategies as some
from tests.exact import assert_same, item_bytes
from tests.forge import ARRAY, ArrayRow, Tree, file_of, take_frame, zstd_frame
from tests.sources import in_boxes, open_bytes

RAMP = bytes(range(250))


def one_array(*chunks, itemsize=1, nbytes=None):
    total = sum(len(raw) for _, raw, _ in chunks) if nbytes is None else nbytes
    dtype = {1: "uint8", 4: "float32"}[itemsize]
    return file_of(Tree(ARRAY, 0), [ArrayRow(dtype, (total // itemsize,), None, [chunks])])


def test_chunks_of_every_codec_make_an_array():
    file = one_array((RAMP, RAMP, 0), (b"\7", b"\7" * 100, 1), (zstd_frame(RAMP * 4), RAMP * 4, 2))
    assert ptc.decode(file).tobytes() == RAMP + b"\7" * 100 + RAMP * 4


def _with_byte(file, place, value=1):
    changed = bytearray(file)
    changed[place] ^= value
    return bytes(changed)


RAW_FILE = one_array((RAMP, RAMP, 0))
DAMAGED = {
    "a byte of a raw chunk": ("C-8", _with_byte(RAW_FILE, 64)),
    "a byte after a chunk": ("C-7", _with_byte(RAW_FILE, 64 + 250)),
    "a byte of a fill": ("C-8", _with_byte(one_array((b"\7", b"\7" * 100, 1)), 64)),
    "a byte of a zstd chunk": ("C-8", _with_byte(one_array((zstd_frame(RAMP * 4), RAMP * 4, 2)), 64 + 20)),
    "a fill with another digest": ("C-10", one_array((b"\7", b"\6" * 100, 1))),
    "a zstd chunk with another digest": ("C-10", one_array((zstd_frame(RAMP * 4), bytes(1000), 2))),
    "a zstd chunk of a shorter content": ("Z-2", one_array((zstd_frame(RAMP * 4), bytes(1001), 2))),
    "a zstd chunk of a longer content": ("Z-2", one_array((zstd_frame(RAMP * 4), bytes(999), 2))),
    "a zstd chunk that is none": ("Z-1", one_array((RAMP, bytes(999), 2))),
    "a bomb": ("Z-2", one_array((zstd_frame(bytes(1 << 26)), bytes(1 << 20), 2))),
    "a zstd chunk with a byte after it": ("Z-5", one_array((zstd_frame(RAMP * 4) + b"\0", RAMP * 4, 2))),
}


@pytest.mark.parametrize(("rule", "file"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_chunk_is_refused_by_the_number_of_the_rule(rule, file):
    with pytest.raises(ptc.CorruptionError, match=r"at the root, chunk 0 \(offset 64") as caught:
        ptc.decode(file)
    assert caught.value.rule == rule
    assert caught.value.leaf == ""
    with open_bytes(file) as checkpoint:
        (problem,) = checkpoint.damage()
        assert isinstance(problem, ptc.CorruptionError)
        assert problem.rule == rule


@pytest.mark.parametrize("verify", [True, False])
def test_without_verifying_what_decoding_finds_is_still_an_error(verify):
    for name, (rule, file) in DAMAGED.items():
        if rule.startswith("Z") or rule == "C-7" or verify:
            with pytest.raises(ptc.CorruptionError):
                ptc.decode(file, verify=verify)
        elif name != "a byte of a zstd chunk":
            assert ptc.decode(file, verify=False).dtype == np.uint8


def test_what_is_damaged_is_named_and_the_rest_can_be_read(tmp_path):
    tree = {"opt": {"mu": [np.arange(300), np.arange(300.0)]}, "params": {"w": np.ones((50, 50)), "b": [1, 2]}}
    file = bytearray(ptc.encode(tree, compression="none"))
    with open_bytes(bytes(file)) as checkpoint:
        place = int(checkpoint.index.chunks.offset[1]) + 7
    file[place] ^= 0x10
    path = tmp_path / "x.ptck"
    path.write_bytes(file)
    with pytest.raises(ptc.CorruptionError, match=r"leaf opt/mu\[1\], chunk 0") as caught:
        ptc.restore(path)
    assert caught.value.leaf == "opt/mu[1]"
    report = ptc.verify(path)
    assert not report.ok
    assert [(problem.kind, problem.leaf, problem.rule) for problem in report.problems] == [
        ("corrupt", "opt/mu[1]", "C-8")
    ]
    assert_same({"params": tree["params"]}, ptc.restore(path, select="params"))
    assert_same([tree["opt"]["mu"][0], ptc.UNSELECTED], ptc.restore(path, select="opt/mu[0]")["opt"]["mu"])
    with ptc.open(path) as checkpoint:
        assert_same(tree["params"]["b"], checkpoint["params/b"])


@given(some.TREES, st.data())
def test_a_change_of_any_byte_is_noticed_before_anything_is_given_back(tree, data):
    file = bytearray(ptc.encode(tree))
    file[data.draw(st.integers(0, len(file) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises((ptc.CorruptionError, ptc.FormatVersionError)):
        ptc.decode(bytes(file))


def test_arrays_larger_than_the_limit_are_refused_before_any_is_read():
    file = ptc.encode({"a": np.zeros(1000), "b": np.ones(1000)})
    with (
        ptc.limits(arrays_nbytes=15_999),
        pytest.raises(ptc.LimitError, match=r"16000 bytes.*limits\(arrays_nbytes=…\)"),
    ):
        ptc.decode(file)
    with ptc.limits(arrays_nbytes=8000):
        assert ptc.decode(file, select="a")["a"].size == 1000


def test_an_array_that_no_memory_holds_is_beyond_a_limit():
    # A small file that repeats one chunk: 2^20 times 128 MiB.
    chunk = (b"\0", bytes(1 << 27), 1)
    file = file_of(Tree(ARRAY, 0), [ArrayRow("uint8", (1 << 27,), None, [[chunk]])])
    document, body = take_frame(file)
    n = 1 << 20
    document["arrays"]["shape"] = struct.pack("<Q", n << 27)
    document["arrays"]["chunk_counts"] = struct.pack("<I", n)
    document["chunks"] = {name: column * n for name, column in document["chunks"].items()}
    from tests.forge import forge

    file = forge(document, body, codec=2)
    assert len(file) < 1 << 20
    with pytest.raises(ptc.LimitError):
        ptc.decode(file)
    with ptc.limits(arrays_nbytes=1 << 50), pytest.raises(ptc.LimitError, match="an array of shape"):
        ptc.decode(file)
    with open_bytes(file) as checkpoint:
        assert checkpoint.tree.shape == (n << 27,)
        assert checkpoint.tree[(n << 27) - 1] == 0


def test_empty_arrays_of_huge_shapes_are_read():
    shape = (1 << 40, 0, 3)
    array = ptc.decode(file_of(Tree(ARRAY, 0), [ArrayRow("uint8", shape, b"")]))
    assert array.shape == shape


@given(some.arrays())
def test_arrays_that_come_back_are_new_writable_and_in_their_memory_order(array):
    with open_bytes(ptc.encode([array, array])) as checkpoint:
        back, again = checkpoint.restore()
        other, _ = checkpoint.restore()
    assert back is again
    assert back.flags.writeable
    assert back is not other
    if back.nbytes:
        assert not np.shares_memory(back, other)
        before = item_bytes(other)
        back[...] = np.zeros((), back.dtype)
        assert item_bytes(other) == before


# Progress.


@pytest.mark.parametrize("threads", ["1", "3"])
def test_progress_rises_and_ends_where_it_should(tmp_path, monkeypatch, threads):
    monkeypatch.setenv("PYTREECKPT_THREADS", threads)
    monkeypatch.setattr(planning, "CHUNK_NBYTES", 1000)
    monkeypatch.setattr(reader_module, "_RUN_NBYTES", 1000)
    path = tmp_path / "x.ptck"
    tree = {"a": np.random.default_rng(0).bytes(10), "b": np.arange(5000.0), "c": np.zeros((100, 30)), "d": 1}
    for call in (
        lambda report: ptc.save(tree, path, progress=report),
        lambda report: ptc.restore(path, progress=report),
        lambda report: ptc.restore(path, select="b", progress=report),
        lambda report: ptc.restore(path, like=tree, progress=report),
        lambda report: ptc.verify(path, progress=report),
    ):
        seen = []
        call(seen.append)
        assert len(seen) > 10
        assert all(isinstance(progress, ptc.Progress) for progress in seen)
        done = [progress.done_nbytes for progress in seen]
        assert done == sorted(done)
        assert len(set(done)) == len(done)
        assert {progress.total_nbytes for progress in seen} == {seen[-1].total_nbytes}
        assert done[-1] == seen[-1].total_nbytes
        assert done[0] > 0


def test_progress_of_a_tree_without_chunks_ends_at_once(tmp_path):
    for call in (
        lambda report: ptc.save([1], tmp_path / "x", progress=report),
        lambda report: ptc.restore(tmp_path / "x", progress=report),
    ):
        seen = []
        call(seen.append)
        assert seen == [ptc.Progress(0, 0)]


def test_an_error_in_progress_stops_a_restore(tmp_path):
    ptc.save(np.zeros(1 << 20), tmp_path / "x")

    def stop(_progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ptc.restore(tmp_path / "x", progress=stop)


# Mapped files.

MAPPABLE = {
    "c": np.arange(3000.0).reshape(50, 60),
    "f": np.arange(3000.0).reshape(50, 60).T,
    "bf16": np.arange(1000).astype(some.ML_DTYPES[1]),
    "struct": some.fill(np.dtype([("a", ">i4"), ("b", "S3")]), (200,), 3),
    "tiny": np.arange(3),
    "empty": np.zeros((0, 4)),
    "scalar": np.float32(3),
    "n": 5,
}


def test_a_mapped_checkpoint_is_the_same(tmp_path):
    path = tmp_path / "x.ptck"
    ptc.save(MAPPABLE, path, compression="none")
    tree = ptc.restore(path, mmap=True)
    assert_same(MAPPABLE, tree)
    assert_same(MAPPABLE, ptc.restore(path, mmap=True, verify=False))
    assert_same({"f": MAPPABLE["f"]}, ptc.restore(path, mmap=True, select="f"))
    assert_same(MAPPABLE, ptc.restore(path, mmap=True, like=MAPPABLE))
    assert tree["c"].base is not None


def test_changing_a_mapped_array_does_not_change_the_file(tmp_path):
    path = tmp_path / "x.ptck"
    ptc.save(MAPPABLE, path, compression="none")
    before = path.read_bytes()
    tree = ptc.restore(path, mmap=True)
    for array in tree.values():
        if isinstance(array, np.ndarray) and array.size:
            assert array.flags.writeable
            array[...] = np.zeros((), array.dtype)
    assert not tree["c"].any()
    assert path.read_bytes() == before
    assert_same(MAPPABLE, ptc.restore(path, mmap=True))


def test_a_mapped_array_outlives_the_checkpoint_and_its_file(tmp_path):
    path = tmp_path / "x.ptck"
    ptc.save(MAPPABLE, path, compression="none")
    with ptc.open(path) as checkpoint:
        tree = checkpoint.restore(mmap=True)
    path.unlink()
    assert_same(MAPPABLE, tree)


@pytest.mark.parametrize(
    "tree", [np.zeros(1000), np.arange(100_000), in_boxes(np.arange(2000.0).reshape(40, 50), [[20], []])]
)
@pytest.mark.parametrize("compression", ["auto", 3])
def test_a_compressed_array_cannot_be_mapped_and_is_named(tmp_path, tree, compression):
    path = tmp_path / "x.ptck"
    ptc.save({"a": [tree]}, path, compression=compression)
    with pytest.raises(ptc.NotMappableError, match=r'a\[0\]: .* compression="none"'):
        ptc.restore(path, mmap=True)
    assert ptc.restore(path)["a"][0].size


def test_an_array_in_boxes_cannot_be_mapped(tmp_path):
    path = tmp_path / "x.ptck"
    ptc.save([in_boxes(np.arange(2000.0).reshape(40, 50), [[20], []])], path, compression="none")
    with pytest.raises(ptc.NotMappableError, match=r"\[0\]"):
        ptc.restore(path, mmap=True)


def test_damage_of_a_mapped_array_is_found_unless_it_is_not_verified(tmp_path):
    path = tmp_path / "x.ptck"
    ptc.save({"a": np.arange(1000)}, path, compression="none")
    path.write_bytes(_with_byte(path.read_bytes(), 100))
    with pytest.raises(ptc.CorruptionError, match="leaf a, chunk 0"):
        ptc.restore(path, mmap=True)
    assert ptc.restore(path, mmap=True, verify=False)["a"].shape == (1000,)


def test_bytes_in_memory_cannot_be_mapped():
    with (
        open_bytes(ptc.encode(np.zeros(3))) as checkpoint,
        pytest.raises(ValueError, match="needs a checkpoint in a file"),
    ):
        checkpoint.restore(mmap=True)


@pytest.mark.parametrize("itemsize", [1, 3, 7, 10, 64, 65, 100, 1000, 5000])
def test_arrays_of_items_of_any_size_can_be_mapped(tmp_path, monkeypatch, itemsize):
    monkeypatch.setattr(planning, "CHUNK_NBYTES", 10_000)
    array = some.fill(np.dtype((np.void, itemsize)), (20_000 // itemsize + 300,), 1)
    path = tmp_path / "x.ptck"
    ptc.save([array], path, compression="none")
    with ptc.open(path) as checkpoint:
        assert len(checkpoint.index.chunks) > 1
    assert_same([array], ptc.restore(path, mmap=True))


@given(some.arrays())
def test_every_array_that_was_saved_without_compression_can_be_mapped(array):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.ptck"
        ptc.save([array], path, compression="none", durability="atomic")
        assert_same([array], ptc.restore(path, mmap=True))
