"""Pools: small arrays that share chunks come back as any others, alone, in part and together."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt import planning, testing
from pytreeckpt.cli import main
from pytreeckpt.dtypes import has_padding
from pytreeckpt.index import Index
from pytreeckpt.pools import Pool
from spec.reference import reader
from tests import strategies as some
from tests.exact import assert_same
from tests.sources import in_boxes, open_bytes


@pytest.fixture(autouse=True, scope="module")
def pools_of_all():
    """Pools of whatever there is, in chunks of 1 KiB."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "MIN_POOLED", 1)
        patch.setattr(planning, "INLINE_NBYTES", 0)
        patch.setattr(planning, "CHUNK_NBYTES", 1 << 10)
        yield


def index_of(file) -> Index:
    with open_bytes(file) as checkpoint:
        return checkpoint.index


LISTS = st.lists(some.arrays(), min_size=1, max_size=8)
COMPRESSIONS = st.sampled_from(["auto", "none", 3])


@given(LISTS, COMPRESSIONS)
def test_arrays_of_every_dtype_and_layout_come_back_from_pools(arrays, compression):
    file = ptc.encode(arrays, compression=compression)
    pooled = [entry.pooled for entry in index_of(file).arrays]
    assert pooled == [array.nbytes > 0 and not has_padding(array.dtype) for array in distinct(arrays)]
    assert_same(arrays, ptc.decode(file))


def distinct(arrays):
    """An array that stands in several places is stored once."""
    return [array for at, array in enumerate(arrays) if not any(array is other for other in arrays[:at])]


@given(st.lists(testing.arrays().filter(lambda array: array.dtype.names is None), min_size=1, max_size=8), COMPRESSIONS)
def test_the_independent_reader_reads_them(arrays, compression):
    assert testing.identical(arrays, reader.read(ptc.encode(arrays, compression=compression))[1]) == []


@given(LISTS, COMPRESSIONS, st.data())
def test_some_of_them_come_back_alone(arrays, compression, data):
    file = ptc.encode({f"k{at}": array for at, array in enumerate(arrays)}, compression=compression)
    names = data.draw(st.lists(st.sampled_from([f"k{at}" for at in range(len(arrays))]), min_size=1, unique=True))
    found = ptc.decode(file, select=names)
    assert_same({name: arrays[int(name[1:])] for name in sorted(names, key=lambda name: int(name[1:]))}, found)
    with open_bytes(file) as checkpoint:
        for name in names:
            assert_same(arrays[int(name[1:])], checkpoint[name].read())


@given(st.lists(st.integers(1, 200), min_size=1, max_size=10), st.data())
def test_slices_of_them_are_what_numpy_gives(sizes, data):
    arrays = [np.arange(size * 3, dtype="<i4").reshape(size, 3) + size for size in sizes]
    with open_bytes(ptc.encode(arrays)) as checkpoint:
        at = data.draw(st.integers(0, len(sizes) - 1))
        start, stop = data.draw(st.integers(0, sizes[at])), data.draw(st.integers(0, sizes[at]))
        assert_same(arrays[at][start:stop, 1], checkpoint[f"[{at}]"][start:stop, 1])


@given(LISTS)
def test_they_fill_templates(arrays):
    templates = [np.ndarray(array.shape, array.dtype) for array in arrays]
    found = ptc.decode(ptc.encode(arrays), like=templates)
    for array, template, same in zip(arrays, templates, found, strict=True):
        assert same is template
        assert array.tobytes() == template.tobytes() or has_padding(array.dtype)


@given(LISTS)
def test_uncompressed_ones_can_be_mapped(tmp_path_factory, arrays):
    path = tmp_path_factory.mktemp("mapped") / "a.ptck"
    ptc.save(arrays, path, compression="none")
    found = ptc.restore(path, mmap=True)
    assert_same(arrays, found)
    assert all(array.flags.aligned for array in found if array.dtype.isalignedstruct or array.dtype.names is None)


@given(st.lists(st.integers(1, 700), min_size=1, max_size=50))
def test_no_array_of_a_pool_is_in_two_chunks_and_none_of_these_is_larger_than_it_has_to_be(sizes):
    arrays = [np.full(size, at, np.float32) for at, size in enumerate(sizes)]
    index = index_of(ptc.encode(arrays))
    raw = index.chunks.raw.tolist()
    assert index.pools == [len(raw)]
    for number, size in enumerate(sizes):
        assert index.starts[number] + 4 * size <= raw[index.first_chunk[number]]
    largest = max(1 << 10, 4 * max(sizes))
    assert all(nbytes <= largest for nbytes in raw)
    assert all(first + second > 1 << 10 for first, second in zip(raw, raw[1:]))


def test_pools_follow_each_other_in_the_order_of_their_dtypes():
    dtypes = ["<f4", "<i8", "<f4", "|u1", "<i8"]
    arrays = [np.arange(4).astype(dtype) for dtype in dtypes]
    index = index_of(ptc.encode(arrays))
    assert index.pools == [1, 1, 1]
    assert index.first_chunk == [0, 1, 0, 2, 1]
    assert index.starts == [0, 0, 16, 0, 32]


def test_few_large_cut_and_scalar_arrays_are_in_no_pool(monkeypatch):
    monkeypatch.setattr(planning, "MIN_POOLED", 3)
    monkeypatch.setattr(planning, "POOL_NBYTES", 800)
    few = [np.arange(8, dtype=np.int16)] * 2
    large = [np.arange(101.0) for _ in range(3)]
    cut = [in_boxes(np.arange(8.0), [[4]]) for _ in range(3)]
    small = [np.arange(100.0) + n for n in range(3)]
    tree = [*few, *large, *cut, *small, *(np.float64(n) for n in range(3))]
    file = ptc.encode(tree)
    assert [entry.pooled for entry in index_of(file).arrays] == [False] * 7 + [True] * 3 + [False] * 3
    expected = [*few, *large, *(np.arange(8.0) for _ in cut), *small, *(np.float64(n) for n in range(3))]
    assert_same(expected, ptc.decode(file))


def test_a_damaged_chunk_is_that_of_its_arrays_and_of_no_others(tmp_path):
    arrays = {f"k{n}": np.full(100, n, np.int32) for n in range(10)}
    path = tmp_path / "a.ptck"
    ptc.save(arrays, path, compression="none")
    index = index_of(path.read_bytes())
    assert len(index.chunks) == 5
    file = bytearray(path.read_bytes())
    file[int(index.chunks.offset[2]) + 5] ^= 1
    path.write_bytes(file)
    with pytest.raises(ptc.CorruptionError, match="leaf k4 and 1 other array in the same chunk, chunk 0 ") as caught:
        ptc.restore(path)
    assert caught.value.leaf == "k4"
    assert caught.value.offset == index.chunks.offset[2]
    (problem,) = ptc.verify(path).problems
    assert problem.leaf == "k4"
    intact = [name for name in arrays if name not in {"k4", "k5"}]
    assert_same({name: arrays[name] for name in intact}, ptc.restore(path, select=intact))
    with pytest.raises(ptc.CorruptionError, match="leaf k5"):
        ptc.restore(path, select="k5")


def test_the_parts_of_a_chunk_that_are_stored_for_its_arrays_are_its_stored_bytes():
    arrays = [np.zeros(n, np.float32) for n in (10, 20, 30)] + [np.random.default_rng(0).random(50, np.float32)]
    with open_bytes(ptc.encode(arrays)) as checkpoint:
        index = checkpoint.index
        shares = [checkpoint[f"[{n}]"].stored_nbytes for n in range(4)]
        assert 0 <= int(index.chunks.stored.sum()) - sum(shares) < 4
        assert shares == [index.stored_nbytes(n) for n in range(4)]


def test_the_command_line_says_that_a_chunk_is_shared_and_counts_each_array_once(tmp_path, capsys):
    path = str(tmp_path / "a.ptck")
    ptc.save([np.arange(10.0) + n for n in range(20)], path)
    assert main(["inspect", path, "[3]"]) == 0
    assert "chunk with others" in capsys.readouterr().out
    assert main(["inspect", path, "[3]", "--stats", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (leaf,) = document["leaves"]
    assert leaf["pooled"] is True
    assert (leaf["statistics"]["min"], leaf["statistics"]["max"]) == (3.0, 12.0)
    assert document["chunks"][0]["nbytes"] > leaf["nbytes"]
    assert main(["inspect", path, "--stats", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [leaf["statistics"]["min"] for leaf in document["leaves"]] == [float(n) for n in range(20)]
    assert document["totals"]["stored_nbytes"] <= document["file"]["nbytes"]


@given(st.lists(st.integers(0, 20), min_size=1, max_size=30), st.integers(1, 30))
def test_a_pool_is_cut_between_its_arrays(sizes, max_nitems):
    pool = Pool(np.dtype("u1"), 0)
    for size in sizes:
        pool.add(np.full(size, size, np.uint8))
    cuts = pool.cuts(max_nitems)
    assert cuts[0][0] == 0
    assert cuts[-1][1] == sum(sizes)
    assert all(end == start for (_, end), (start, _) in zip(cuts, cuts[1:]))
    assert all(stop - start <= max(max_nitems, *sizes) for start, stop in cuts)
    whole = np.concatenate([pool.read(start, stop) for start, stop in cuts if stop > start] or [np.empty(0, "u1")])
    assert whole.tolist() == [size for size in sizes for _ in range(size)]
    assert math.prod(pool.source.shape) == sum(sizes)
