"""Parts of arrays of an open checkpoint: the same as numpy gives, read from no more than they touch."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt import planning
from pytreeckpt import reader as reader_module
from pytreeckpt.selection import bounding_box
from tests import strategies as some
from tests.exact import item_bytes, same_dtype
from tests.sources import RecordingSource, grids, in_boxes, open_bytes

SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 5, 8]), max_size=4).map(tuple)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(planning, "CHUNK_NBYTES", 24)
    monkeypatch.setattr(reader_module, "_RUN_NBYTES", 0)
    monkeypatch.setattr(planning, "INLINE_NBYTES", 8)


@st.composite
def basic_indexes(draw, shape):
    """Any basic index of an array of this shape that numpy accepts: ints, slices with any step, an ellipsis."""
    n_axes = draw(st.integers(0, len(shape)))
    items = []
    for extent in shape[:n_axes]:
        bound = st.none() | st.integers(-extent - 2, extent + 2)
        step = st.none() | st.integers(-3, 3).filter(bool)
        choices = st.builds(slice, bound, bound, step)
        if extent:
            choices |= st.integers(-extent, extent - 1) | st.integers(-extent, extent - 1).map(np.int64)
        items.append(draw(choices))
    if draw(st.booleans()):
        # What follows an ellipsis selects from the last axes.
        place = draw(st.integers(0, len(items)))
        if place == len(items) or n_axes == len(shape):
            items.insert(place, ...)
    return items[0] if len(items) == 1 and draw(st.booleans()) else tuple(items)


def assert_same_part(got, array, index):
    # With an ellipsis, because a scalar has not all the bits of an array of rank 0.
    items = index if isinstance(index, tuple) else (index,)
    expected = array[items if ... in items else (*items, ...)]
    assert got.shape == expected.shape
    if isinstance(got, np.ndarray):
        assert same_dtype(got.dtype, expected.dtype)
        assert item_bytes(got) == item_bytes(expected)
    else:
        assert type(got) is type(array[index])


WITH_INDEX = some.arrays(shapes=SHAPES).flatmap(
    lambda array: st.tuples(st.just(array), st.lists(basic_indexes(array.shape), min_size=1, max_size=4))
)


@given(WITH_INDEX, st.sampled_from(["auto", "none"]))
def test_a_slice_of_any_array_is_what_numpy_gives(given_, compression):
    array, indexes = given_
    with open_bytes(ptc.encode({"x": array}, compression=compression)) as checkpoint:
        for index in indexes:
            assert_same_part(checkpoint["x"][index], array, index)


@given(
    some.arrays(shapes=SHAPES.filter(math.prod)).flatmap(
        lambda array: st.tuples(
            st.just(array), grids(array), st.lists(basic_indexes(array.shape), min_size=1, max_size=4)
        )
    )
)
def test_a_slice_of_an_array_in_boxes_is_what_numpy_gives(given_):
    array, source, indexes = given_
    with open_bytes(ptc.encode({"x": source})) as checkpoint:
        for index in indexes:
            assert_same_part(checkpoint["x"][index], array, index)


@st.composite
def with_index(draw):
    shape = draw(SHAPES.filter(math.prod))
    array = np.random.default_rng(draw(st.integers(0, 9))).integers(0, 1 << 32, shape, np.uint32)
    return array, draw(grids(array)), draw(basic_indexes(shape))


@given(with_index())
def test_a_slice_reads_only_the_chunks_that_its_bounding_box_touches(given_):
    array, source, index = given_
    file = ptc.encode(source, compression="none")
    recorder = RecordingSource(file)
    checkpoint = ptc.Checkpoint(recorder, None)
    if not checkpoint.index.arrays[0].chunk_counts:
        return
    recorder.ranges.clear()
    checkpoint.tree[index]
    # Which chunk every item of the array is in, worked out the slow way.
    chunks = checkpoint.index.chunks
    entry = checkpoint.index.arrays[0]
    stored_shape = array.shape if source.axes is None else tuple(array.shape[axis] for axis in source.axes)
    owner = np.full(stored_shape, -1)
    row = 0
    for box, count in zip(entry.boxes, entry.chunk_counts, strict=True):
        lengths = chunks.raw[row : row + count] // 4
        where = tuple(slice(low, low + extent) for low, extent in zip(box.offset, box.shape, strict=True))
        owner[where] = np.repeat(np.arange(row, row + count), lengths).reshape(box.shape)
        row += count
    assert owner.min() == 0
    logical = owner if source.axes is None else owner.transpose(np.argsort(source.axes))
    box, _ = bounding_box(array.shape, index)
    touched = np.unique(
        logical[tuple(slice(low, low + extent) for low, extent in zip(box.offset, box.shape, strict=True))]
    )
    expected = {int(chunks.offset[row]) for row in touched}
    assert {low for low, _ in recorder.ranges} == expected
    assert len(recorder.ranges) == len(expected)


def test_a_row_of_a_large_matrix_costs_one_chunk_and_a_column_all_that_it_crosses(monkeypatch):
    monkeypatch.setattr(planning, "CHUNK_NBYTES", 4096)
    matrix = np.arange(256 * 256, dtype=np.float32).reshape(256, 256)
    recorder = RecordingSource(ptc.encode({"c": matrix, "f": matrix.T}, compression="none"))
    checkpoint = ptc.Checkpoint(recorder, None)
    for path, index, expected in [
        ("c", 17, 1),
        ("c", np.s_[:, 17], 64),
        ("f", 17, 64),
        ("f", np.s_[:, 17], 1),
        ("c", np.s_[8:24], 4),
    ]:
        recorder.ranges.clear()
        part = checkpoint[path][index]
        assert np.array_equal(part, (matrix if path == "c" else matrix.T)[index])
        assert sum(high - low for low, high in recorder.ranges) == expected * 4096


def test_opening_reads_no_array():
    recorder = RecordingSource(
        ptc.encode({"x": np.random.default_rng(0).bytes(0), "y": np.random.default_rng(0).normal(size=10_000)})
    )
    checkpoint = ptc.Checkpoint(recorder, None)
    list(checkpoint.leaves())
    assert checkpoint["y"].shape == (10_000,)
    assert max(low for low, _ in recorder.ranges) >= checkpoint.footer.index_offset
    assert not [low for low, _ in recorder.ranges if 0 < low < checkpoint.footer.index_offset]


@pytest.mark.parametrize(
    ("index", "error"),
    [
        (5, IndexError),
        (-6, IndexError),
        ((0, 0, 0), IndexError),
        ((..., ...), IndexError),
        ((0, 7), IndexError),
        (None, TypeError),
        ([0, 1], TypeError),
        (np.array([0]), TypeError),
        (np.array([True] * 5), TypeError),
        (True, TypeError),
        ("x", TypeError),
        (1.0, TypeError),
        ((0, None), TypeError),
    ],
)
def test_an_index_that_is_not_basic_or_out_of_bounds_is_an_error(index, error):
    with open_bytes(ptc.encode(np.zeros((5, 7)))) as checkpoint, pytest.raises(error):
        checkpoint.tree[index]


def test_a_reference_tells_what_it_refers_to():
    array = np.arange(40, dtype="<f4").reshape(5, 8)
    with open_bytes(
        ptc.encode({"x": array, "y": array, "z": np.float32(2), "e": np.zeros((0, 3))}, compression="none")
    ) as checkpoint:
        x, y, empty = checkpoint["x"], checkpoint["y"], checkpoint["e"]
        assert (x.shape, x.dtype, x.ndim, x.nbytes, x.stored_nbytes, len(x)) == ((5, 8), np.dtype("f4"), 2, 160, 160, 5)
        assert (empty.nbytes, empty.stored_nbytes, len(empty)) == (0, 0, 0)
        assert x.type_name is None
        assert x.type is None
        assert x.attributes == ()
        assert x.array == y.array != empty.array
        assert repr(x) == "<ArrayRef float32 [5, 8]>"
        assert checkpoint["z"] == np.float32(2)
        assert np.array_equal(np.asarray(x), array)
        assert np.asarray(x, dtype="f8").dtype == np.float64
        assert np.array_equal(np.asarray(x, copy=True), array)
        assert np.array_equal(x.read(to="numpy"), array)
        assert np.array_equal(x.read(np.s_[1:3], to="auto"), array[1:3])
        with pytest.raises(ValueError, match="always a copy"):
            np.asarray(x, copy=False)
        with pytest.raises(ValueError, match="to='tensorflow'"):
            x.read(to="tensorflow")
    with pytest.raises(TypeError, match="no length"), open_bytes(ptc.encode(np.zeros(()))) as checkpoint:
        len(checkpoint.tree)


def test_what_is_read_is_writable_and_belongs_to_the_reader():
    array = np.arange(100.0)
    with open_bytes(ptc.encode(array)) as checkpoint:
        part = checkpoint.tree[10:20]
        part[...] = 0
        again = checkpoint.tree[10:20]
        assert np.array_equal(again, array[10:20])
        assert np.asarray(checkpoint.tree).flags.writeable


def test_a_wrapped_array_is_a_reference_with_its_wrapper():
    from tests.forge import ARRAY, WRAPPER, ArrayRow, Tree, file_of, record

    file = file_of(
        {"w": record("made.Up", {"data": Tree(ARRAY, 0), "flag": True}, WRAPPER)}, [ArrayRow("uint8", (3,), b"abc")]
    )
    with open_bytes(file) as checkpoint:
        ref = checkpoint["w"]
        assert ref.type_name == "made.Up"
        assert ref.attributes == (True,)
        assert repr(ref) == "<ArrayRef uint8 [3], made.Up>"
        with pytest.warns(UserWarning, match="1 objects of made came back as"):
            assert ref[1] == ord("b")
        assert ref.read(to="numpy").tobytes() == b"abc"
        assert [str(path) for path, _ in checkpoint.leaves()] == ["w"]


def test_a_damaged_chunk_is_named_when_a_slice_touches_it_and_only_then():
    file = bytearray(ptc.encode({"layers": [{"w": np.arange(200, dtype=np.uint8)}]}, compression="none"))
    file[64 + 64 * 2] ^= 1
    with open_bytes(bytes(file)) as checkpoint:
        ref = checkpoint["layers[0]/w"]
        assert np.array_equal(ref[:128], np.arange(128))
        with pytest.raises(ptc.CorruptionError, match=r"layers\[0\]/w, chunk 2") as caught:
            ref[150]
        assert caught.value.leaf == "layers[0]/w"
        assert caught.value.rule == "C-8"


def test_reading_more_than_the_limit_is_refused():
    with open_bytes(ptc.encode(np.zeros(10_000))) as checkpoint:
        assert checkpoint.tree[5] == 0
        with ptc.limits(arrays_nbytes=1000), pytest.raises(ptc.LimitError, match=r"limits\(arrays_nbytes=…\)"):
            np.asarray(checkpoint.tree)


@given(
    st.lists(st.integers(0, 9), max_size=4)
    .map(tuple)
    .flatmap(lambda shape: st.tuples(st.just(shape), basic_indexes(shape)))
)
def test_the_bounding_box_is_the_smallest_that_holds_the_selection(given_):
    shape, index = given_
    items = np.arange(math.prod(shape)).reshape(shape)
    box, within = bounding_box(shape, index)
    part = items[tuple(slice(low, low + extent) for low, extent in zip(box.offset, box.shape, strict=True))]
    wanted = items[index]
    assert np.array_equal(part[within], wanted)
    if np.size(wanted):
        # No smaller box would do: every face of it has something that is wanted.
        chosen = np.isin(part, wanted)
        assert all(np.take(chosen, place, axis).any() for axis in range(part.ndim) for place in (0, -1))
    else:
        assert part.size == 0


def test_grids_are_made_of_the_array():
    array = np.arange(12).reshape(3, 4)
    source = in_boxes(array, [[1], [2]])
    assert [read(0, 99).tolist() for read in source.boxes] == [[0, 1], [2, 3], [4, 5, 8, 9], [6, 7, 10, 11]]
