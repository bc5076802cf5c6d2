"""A save as a value: which bytes a tree becomes, whatever the circumstances."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt import planning
from pytreeckpt.expand import make_expand
from pytreeckpt.flatten import flatten
from pytreeckpt.limits import current_limits
from pytreeckpt.pipeline import ordered_map
from pytreeckpt.planning import plan_save
from pytreeckpt.streaming import stream
from tests import strategies as some
from tests.exact import assert_same, item_bytes
from tests.forge import take_frame
from tests.sources import grids, in_boxes, open_bytes

NONEMPTY = some.SHAPES.filter(lambda shape: math.prod(shape) > 0)


def encode_in_threads(tree, threads):
    flat = flatten(None, tree, expand=make_expand(), limits=current_limits())
    plan = plan_save(flat, current_limits())
    return b"".join(stream(plan, "auto", lambda function, tasks: ordered_map(function, tasks, threads=threads)))


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(planning, "CHUNK_NBYTES", 64)
    monkeypatch.setattr(planning, "INLINE_NBYTES", 32)


@given(some.trees_with_sharing() | some.TREES)
def test_the_same_tree_gives_the_same_bytes_in_any_number_of_threads(tree):
    expected = ptc.encode(tree)
    assert all(encode_in_threads(tree, threads) == expected for threads in (1, 2, 5))


@given(some.TREES)
def test_saving_what_was_restored_gives_the_same_bytes(tree):
    file = ptc.encode(tree)
    # Without the classes, namedtuples and the like come back as records.
    assert ptc.encode(ptc.decode(file)) == file
    assert ptc.encode(ptc.decode(file, types=some.TYPES)) == file


@given(some.trees_with_sharing())
def test_saving_what_was_restored_with_sharing_gives_the_same_bytes(tree):
    file = ptc.encode(tree)
    assert ptc.encode(ptc.decode(file)) == file


@given(some.arrays())
def test_the_chunks_of_an_array_hold_its_items_in_stored_order(array):
    with open_bytes(ptc.encode(array, compression="none")) as checkpoint:
        (entry,) = checkpoint.index.arrays
        chunks = checkpoint.index.chunks
        assert sum(chunks.raw.tolist()) == (array.nbytes if entry.chunk_counts else 0)
        assert all(0 < nbytes <= max(64, 64 * array.itemsize) for nbytes in chunks.raw.tolist())
        # All but the last end where the next begins.
        assert all(nbytes % 64 == 0 for nbytes in chunks.raw.tolist()[:-1])
        assert all(offset % 64 == 0 for offset in chunks.offset.tolist())


@given(some.arrays(shapes=NONEMPTY).flatmap(lambda array: st.tuples(st.just(array), grids(array))))
def test_an_array_in_a_grid_of_boxes_comes_back_whole(given_):
    array, source = given_
    back = ptc.decode(ptc.encode([source, 1]))[0]
    assert back.shape == array.shape
    assert item_bytes(back) == item_bytes(np.asarray(array))
    if source.axes is not None and array.nbytes:
        assert back.transpose(source.axes).flags.c_contiguous


@given(some.arrays(shapes=NONEMPTY).flatmap(lambda array: st.tuples(st.just(array), grids(array))))
def test_saving_an_array_that_was_in_boxes_again_stores_it_in_one_piece(given_):
    _, source = given_
    tree = ptc.decode(ptc.encode(source))
    assert_same(tree, ptc.decode(ptc.encode(tree)))


def test_boxes_are_stored_each_on_its_own_and_in_the_order_of_the_grid():
    array = np.arange(24, dtype=np.uint8).reshape(4, 6)
    document, body = take_frame(
        ptc.encode([in_boxes(array, [[1], [2]]), in_boxes(np.tile(array, (4, 4)), [[1], [2]])], compression="none")
    )
    assert document["arrays"]["layout"] == bytes([0, 1 | 4])
    assert np.frombuffer(document["arrays"]["cuts"], "<u8").tolist() == [1, 2]
    # Boxes of 1×2, 1×22, 15×2 and 15×22 bytes, in chunks of 64.
    assert np.frombuffer(document["arrays"]["chunk_counts"], "<u4").tolist() == [1, 1, 1, 6]
    assert body[:2] == np.tile(array, (4, 4))[:1, :2].tobytes()
    assert body[64 : 64 + 22] == np.tile(array, (4, 4))[:1, 2:].tobytes()


def test_cuts_that_cut_nothing_are_not_stored():
    array = np.arange(100.0).reshape(10, 10)
    assert_same(array, ptc.decode(ptc.encode(in_boxes(array, [[], []]))))


@pytest.mark.parametrize(
    ("axes", "cuts", "n_boxes"),
    [
        ((0, 0), None, 1),
        ((1,), None, 1),
        ((2, 0), None, 1),
        (None, [[3]], 2),
        (None, [[0], []], 2),
        (None, [[10], []], 2),
        (None, [[5, 5], []], 3),
        (None, [[5, 3], []], 3),
        (None, [[-1], []], 2),
        (None, [[5], [5]], 3),
        (None, None, 2),
        (None, None, 0),
    ],
)
@pytest.mark.parametrize("n_columns", [2, 10])
def test_a_source_that_no_file_could_describe_is_an_error_and_not_a_file(axes, cuts, n_boxes, n_columns):
    items = np.zeros(10 * n_columns, np.uint8)
    source = ptc.ArraySource(
        items.dtype, (10, n_columns), [lambda start, stop: items[start:stop]] * n_boxes, axes, cuts
    )
    with pytest.raises(ValueError, match="an ArraySource of shape"):
        ptc.encode(source)


def test_a_source_that_gives_too_few_items_is_an_error_and_not_a_file():
    for n_items in (10, 100):
        items = np.zeros(n_items, np.uint8)
        source = ptc.ArraySource(items.dtype, (n_items,), [lambda start, stop, items=items: items[start : stop - 1]])
        with pytest.raises(ValueError, match="reshape|gave"):
            ptc.encode(source)


def test_sources_with_the_same_identity_are_stored_once():
    array = np.arange(100.0)
    a, b, c, d = ptc.decode(
        ptc.encode(
            [
                in_boxes(array, [[50]], identity="x"),
                in_boxes(array, [[50]], identity="x"),
                ptc.source_of(array),
                ptc.source_of(array),
            ]
        )
    )
    assert a is b
    assert c is not d


def test_equal_arrays_that_are_not_the_same_are_stored_twice():
    first, second = np.arange(100.0), np.arange(100.0)
    a, b = ptc.decode(ptc.encode([first, second]))
    assert a is not b


def test_when_many_small_arrays_would_make_the_index_too_large_the_rest_is_chunked(monkeypatch):
    monkeypatch.setattr(planning, "MAX_INLINE_NBYTES", 100)
    tree = [np.full(4, i, np.float64) for i in range(10)]
    document, _ = take_frame(ptc.encode(tree))
    assert document["arrays"]["layout"] == bytes([0] * 3 + [1] * 7)
    assert_same(tree, ptc.decode(ptc.encode(tree)))


def test_scalars_stay_in_the_index_whatever_their_size(monkeypatch):
    monkeypatch.setattr(planning, "MAX_INLINE_NBYTES", 0)
    tree = [np.str_("x" * 1000), np.bytes_(b"x" * 1000), np.void(b"x" * 1000), np.float64(1), np.zeros(1000)]
    assert_same(tree, ptc.decode(ptc.encode(tree)))


CODE = """
import hashlib, sys
import numpy as np
import pytreeckpt as ptc
rng = np.random.default_rng(0)
tree = {
    "sets": [{f"text {i}" for i in range(50)}, frozenset([("a", i, frozenset([str(i)])) for i in range(50)]), {1, 2.5, "x", None, b"y"}],
    "arrays": [rng.normal(size=300_000).astype("f4"), np.zeros((700, 900)), rng.integers(0, 9, (1000, 1000)).T],
    "many": {f"k{i}": i for i in range(1000)},
}
path = sys.argv[1]
ptc.save(tree, path)
data = open(path, "rb").read()
assert data == ptc.encode(tree)
print(hashlib.sha256(data).hexdigest())
"""


def test_the_bytes_are_the_same_in_every_process(tmp_path):
    digests = set()
    for seed, threads in (("0", "1"), ("1", "2"), ("12345", "5"), ("random", None)):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        environment.pop("PYTREECKPT_THREADS", None)
        if threads is not None:
            environment["PYTREECKPT_THREADS"] = threads
        run = subprocess.run(
            [sys.executable, "-c", CODE, str(tmp_path / "x.ptck")],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(run.stdout)
    assert len(digests) == 1


@pytest.mark.parametrize("threads", ["0", "-1", "x", "", "1.5"])
def test_a_number_of_threads_that_is_none_is_an_error(threads, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTREECKPT_THREADS", threads)
    with pytest.raises(ValueError, match="PYTREECKPT_THREADS"):
        ptc.save(np.zeros(100_000), tmp_path / "x.ptck")
    assert list(tmp_path.iterdir()) == []


def test_ordered_map_gives_results_in_order_and_the_first_error():
    assert list(ordered_map(lambda item: item * 2, range(100), threads=3)) == list(range(0, 200, 2))
    begun = []

    def fail(item):
        begun.append(item)
        if item in {5, 6}:
            raise KeyError(item)
        return item

    results = ordered_map(fail, range(1000), threads=3)
    assert [next(results) for _ in range(5)] == list(range(5))
    with pytest.raises(KeyError, match="5"):
        next(results)
    assert len(begun) < 20


def test_ordered_map_keeps_only_a_few_results_waiting():
    made = []

    def items():
        for item in range(100):
            made.append(item)
            yield item

    results = ordered_map(lambda item: item, items(), threads=2)
    next(results)
    assert len(made) <= 5
    results.close()
