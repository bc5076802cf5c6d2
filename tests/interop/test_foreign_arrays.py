"""Arrays in foreign files: any layout and any pieces give what numpy gives, and no promise of a reader is believed."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt.arrays import copy_items
from pytreeckpt.geometry import Box, grid, whole
from pytreeckpt.interop import foreign, layouts
from pytreeckpt.interop.foreign import ForeignArray, Piece, contiguous, read_region, read_whole, strided
from pytreeckpt.interop.layouts import array_source, check_array, memory_axes, split, transposed
from pytreeckpt.reading import BytesSource
from tests import strategies as some
from tests.exact import item_bytes, same_dtype
from tests.sources import RecordingSource

SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 5, 8]), max_size=4).map(tuple)
DTYPES = some.DTYPES


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(foreign, "_BLOCK_NBYTES", 64)
    monkeypatch.setattr(foreign, "_GAP_NBYTES", 24)


def assert_same_items(got, expected):
    assert got.shape == expected.shape
    assert same_dtype(got.dtype, expected.dtype)
    assert item_bytes(got) == item_bytes(expected)


def inverse(axes):
    return tuple(map(int, np.argsort(axes)))


@st.composite
def strided_arrays(draw):
    """A foreign array of any strides, overlapping and backwards ones too, and what numpy makes of them."""
    dtype = draw(some.DTYPES)
    shape = draw(SHAPES.filter(math.prod))
    strides = tuple(draw(st.integers(-40, 40)) for _ in shape)
    reaches = [stride * (length - 1) for stride, length in zip(strides, shape, strict=True)]
    before = -sum(reach for reach in reaches if reach < 0) + draw(st.integers(0, 9))
    after = sum(reach for reach in reaches if reach > 0) + dtype.itemsize + draw(st.integers(0, 9))
    data = np.random.default_rng(draw(st.integers(0, 99))).bytes(before + after)
    expected = np.ndarray(shape, dtype, data, before, strides)
    return strided(RecordingSource(data), before, dtype, shape, strides), expected


@st.composite
def boxes(draw, shape):
    offset = tuple(draw(st.integers(0, length)) for length in shape)
    return Box(offset, tuple(draw(st.integers(0, n - low)) for low, n in zip(offset, shape, strict=True)))


@given(strided_arrays(), st.data())
def test_a_region_of_any_strided_array_is_what_numpy_gives(given_, data):
    array, expected = given_
    assert_same_items(read_whole(array), expected)
    region = data.draw(boxes(array.shape))
    assert_same_items(read_region(array, region), expected[region.selection])


@given(strided_arrays(), st.data())
def test_a_region_is_read_into_memory_of_any_layout(given_, data):
    array, expected = given_
    order = data.draw(st.permutations(range(len(array.shape))))
    step = data.draw(st.sampled_from([1, 2, -1]))
    memory = np.ndarray([abs(step) * array.shape[axis] for axis in order], array.dtype)
    out = memory[(*(slice(None, None, step) for _ in order), ...)].transpose(inverse(order))
    assert read_whole(array, out=out) is out
    assert_same_items(out, expected)


@given(SHAPES.filter(math.prod), DTYPES, st.data())
def test_pieces_are_put_together(shape, dtype, data):
    source = np.random.default_rng(0).bytes(math.prod(shape) * dtype.itemsize)
    expected = np.ndarray(shape, dtype, source)
    cuts = [sorted(data.draw(st.sets(st.integers(1, n - 1), max_size=2))) if n > 1 else [] for n in shape]
    pieces = []
    for box in grid(shape, cuts):
        # Each piece in a file of its own, of its own order.
        part = expected[box.selection]
        order = data.draw(st.permutations(range(len(shape))))
        stored = part.transpose(order).copy()
        strides = stored.transpose(inverse(order)).strides
        pieces.append(Piece(box, BytesSource(memoryview(stored.tobytes())), 0, strides))
    array = ForeignArray(dtype, shape, tuple(pieces))
    check_array(array)
    assert_same_items(read_whole(array), expected)
    region = data.draw(boxes(shape))
    assert_same_items(read_region(array, region), expected[region.selection])
    if len(pieces) > 1:
        fewer = ForeignArray(dtype, shape, tuple(pieces[1:]))
        with pytest.raises(ptc.CorruptionError, match="leave items out"):
            check_array(fewer)
        twice = ForeignArray(dtype, shape, (*pieces[1:], pieces[-1]))
        with pytest.raises(ptc.CorruptionError, match="overlap"):
            check_array(twice)


def test_pieces_that_overlap_and_leave_as_much_out_are_refused():
    source = BytesSource(memoryview(bytes(64)))

    def pieces(*spans):
        return tuple(Piece(Box((low,), (high - low,)), source, 0, (1,)) for low, high in spans)

    octets = np.dtype(np.uint8)
    check_array(ForeignArray(octets, (6,), pieces((0, 2), (2, 4), (4, 6))))
    for wrong in [
        pieces((0, 2), (1, 3), (4, 6)),
        pieces((0, 2), (0, 2), (4, 6)),
        pieces((0, 6), (3, 3)),
        pieces((-2, 4)),
        pieces((2, 8)),
        pieces(),
    ]:
        with pytest.raises(ptc.CorruptionError, match="overlap"):
            check_array(ForeignArray(octets, (6,), wrong))


def test_more_pieces_than_can_be_checked_are_beyond_the_limits(monkeypatch):
    monkeypatch.setattr(layouts, "_MAX_CORNERS", 7)
    source = BytesSource(memoryview(bytes(64)))
    pieces = tuple(Piece(box, source, 0, (2, 1)) for box in grid((4, 4), [[2], [2]]))
    with pytest.raises(ptc.LimitError, match="4 pieces"):
        check_array(ForeignArray(np.dtype(np.uint8), (4, 4), pieces))


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(1, (8,), (1,)), (-1, (2,), (1,)), (0, (3,), (4,)), (0, (2,), (-1,)), (7, (2, 2), (-8, 1)), (1 << 70, (1,), (1,))],
)
def test_an_item_outside_of_its_source_is_refused(offset, shape, strides):
    source = BytesSource(memoryview(bytes(8)))
    octets = np.dtype(np.uint8)
    with pytest.raises(ptc.CorruptionError, match="of 8"):
        strided(source, offset, octets, shape, strides)
    with pytest.raises(ptc.CorruptionError, match="of 8"):
        check_array(ForeignArray(octets, shape, (Piece(whole(shape), source, offset, strides),)))


@pytest.mark.parametrize("shape", [(-1,), (True,), (1.0,), (2, -3)])
def test_a_shape_is_made_of_lengths(shape):
    with pytest.raises(ptc.CorruptionError, match="shape"):
        check_array(ForeignArray(np.dtype(np.uint8), shape, ()))


def test_more_axes_than_numpy_has_are_beyond_the_limits():
    array = contiguous(BytesSource(memoryview(bytes(1))), 0, np.dtype(np.uint8), (1,) * 65)
    with pytest.raises(ptc.LimitError, match="65 axes"):
        check_array(array)
    assert read_whole(contiguous(array.pieces[0].source, 0, array.dtype, (1,) * 64)).shape == (1,) * 64


def test_an_array_beyond_the_limits_is_refused_before_it_is_allocated():
    array = strided(BytesSource(memoryview(bytes(1))), 0, np.dtype(np.uint8), (1 << 50,), (0,))
    with pytest.raises(ptc.LimitError, match="arrays_nbytes"):
        read_whole(array)
    with ptc.limits(arrays_nbytes=1 << 62), pytest.raises(ptc.LimitError, match="needs"):
        read_whole(array)
    assert read_region(array, Box((7,), (3,))).tolist() == [0, 0, 0]


def test_what_lies_far_apart_is_not_read_in_between(monkeypatch):
    monkeypatch.undo()
    source = RecordingSource(bytes(40 << 20))
    column = strided(source, 0, np.dtype(np.uint8), (40,), (1 << 20,))
    assert read_whole(column).shape == (40,)
    assert sum(high - low for low, high in source.ranges) == 40
    source.ranges.clear()
    # Close together, it is read with what lies between, but never all at once.
    read_whole(strided(source, 0, np.dtype(np.uint8), (1 << 14,), (1 << 10,)))
    assert len(source.ranges) < 40
    assert max(high - low for low, high in source.ranges) <= 1 << 20


def n_read(array):
    """The bytes that reading an array takes, and how often something is read."""
    source = array.pieces[0].source
    source.ranges.clear()
    read_whole(array)
    return sum(high - low for low, high in source.ranges), len(source.ranges)


@pytest.mark.parametrize(
    ("shape", "strides"),
    [((17,) * 4, (65535,) * 4), ((3,) * 9, (1 << 16,) * 9), ((4, 1000, 3), (9, 5, 4)), ((5000, 300), (9, 9))],
)
def test_items_that_overlap_are_read_once(monkeypatch, shape, strides):
    monkeypatch.undo()
    _, span = foreign.extent(shape, strides, 4)
    data = np.random.default_rng(0).bytes(span)
    array = strided(RecordingSource(data), 0, np.dtype(np.uint32), shape, strides)
    assert_same_items(read_whole(array), np.ndarray(shape, np.uint32, data, 0, strides))
    nbytes, count = n_read(array)
    assert nbytes <= span
    assert count <= 20


def test_what_a_tensor_repeats_or_takes_from_far_apart_is_read_as_it_lies(monkeypatch):
    monkeypatch.undo()
    source = RecordingSource(bytes(80 << 20))
    octets = np.dtype(np.uint8)
    # As expand and unfold make them, and what is now beside what was long ago.
    assert n_read(strided(source, 0, octets, (10_000, 100), (0, 1))) == (100, 1)
    assert n_read(strided(source, 0, octets, (1 << 20, 8), (1, 1))) == ((1 << 20) + 7, 1)
    assert n_read(strided(source, 0, octets, (2, 2 << 20), (70 << 20, 1))) == (4 << 20, 2)


def test_items_whose_overlap_would_be_read_over_and_over_are_refused_before_it_is():
    source = RecordingSource(bytes(1 << 16))
    array = strided(source, 0, np.dtype(np.uint8), (9,) * 4, (1000,) * 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(foreign, "_SPAN_NBYTES", 1 << 10)
        with pytest.raises(ptc.LimitError, match="overlap so that reading 6561 bytes of it takes"):
            read_whole(array)
        assert source.ranges == []
        assert read_region(array, Box((3, 2, 0, 1), (2, 2, 2, 2))).size == 16
    assert read_whole(array).size == 9**4


def turned(items):
    return items ^ np.uint8(0x5A)


def widened(items):
    return items.astype(np.int64) * 3


@given(strided_arrays().filter(lambda given_: given_[0].dtype.itemsize), st.data())
def test_items_that_are_changed_are_what_the_change_makes_of_them(given_, data):
    array, _ = given_
    [piece] = array.pieces
    octets = np.dtype(np.uint8)
    meant = (read_whole(ForeignArray(octets, array.shape, (piece,))) ^ 0x5A).astype(np.int64) * 3
    changed = piece._replace(change=foreign.Change(octets, (turned, widened)))
    array = ForeignArray(np.dtype(np.int64), array.shape, (changed,))
    check_array(array)
    assert_same_items(read_whole(array), meant)
    region = data.draw(boxes(array.shape))
    assert_same_items(read_region(array, region), meant[region.selection])
    axes = data.draw(st.permutations(range(len(array.shape))))
    assert_same_items(read_whole(transposed(array, tuple(axes))), meant.transpose(axes))
    assert_same_items(ptc.decode(ptc.encode(array_source(array))), meant)
    parts = [read_whole(part).reshape(-1) for part, _ in split(array, None, data.draw(st.integers(1, 200)))]
    assert_same_items(np.concatenate(parts), meant.reshape(-1))
    assert not layouts.is_contiguous(array)


def test_large_arrays_are_changed_some_items_at_a_time():
    sizes = []

    def change(items):
        sizes.append(items.size)
        return items + np.uint8(1)

    octets = np.dtype(np.uint8)
    source = BytesSource(memoryview(bytes(range(200)) * 5))
    piece = Piece(whole((2, 500)), source, 0, (500, 1), foreign.Change(octets, (change,)))
    got = read_whole(ForeignArray(octets, (2, 500), (piece,)))
    assert got.tobytes() == (np.frombuffer(bytes(range(200)) * 5, np.uint8) + np.uint8(1)).tobytes()
    assert max(sizes) <= 64


def test_rows_of_a_matrix_are_read_in_one_go():
    data = np.random.default_rng(0).bytes(1 << 16)
    source = RecordingSource(data)
    array = contiguous(source, 0, np.dtype(np.float32), (64, 256))
    got = read_region(array, Box((10, 0), (20, 256)))
    assert_same_items(got, np.ndarray((64, 256), np.float32, data)[10:30])
    assert source.ranges == [(10 * 1024, 30 * 1024)]


@given(strided_arrays())
def test_the_order_of_the_axes_in_memory_is_kept_where_it_is_dense(given_):
    array, expected = given_
    axes = memory_axes(array)
    assert axes != tuple(range(len(array.shape)))
    if axes is not None:
        assert layouts.is_contiguous(transposed(array, axes))
    assert_same_items(read_whole(transposed(array, axes)), expected if axes is None else expected.transpose(axes))


@given(strided_arrays(), st.integers(1, 200), st.booleans())
def test_an_array_in_parts_is_the_array(given_, nbytes, with_out):
    array, expected = given_
    out = np.ndarray(array.shape, array.dtype) if with_out else None
    parts = list(split(array, out, nbytes))
    joined, at = np.ndarray(expected.size, expected.dtype), 0
    for part, of_out in parts:
        items = read_whole(part, out=of_out)
        copy_items(joined[at : at + items.size], items.reshape(-1))
        at += items.size
    assert_same_items(joined.reshape(expected.shape), expected)
    if out is not None:
        assert_same_items(out, expected)


@given(strided_arrays())
def test_a_save_takes_an_array_as_it_lies_in_its_file(given_):
    array, expected = given_
    restored = ptc.decode(ptc.encode(array_source(array)))
    assert_same_items(restored, expected)
    if memory_axes(array) is not None:
        assert (
            restored.strides
            == np.empty(expected.transpose(memory_axes(array)).shape, expected.dtype)
            .transpose(inverse(memory_axes(array)))
            .strides
        )
