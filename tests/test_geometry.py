import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytreeckpt.geometry import Box, covering_ranges, dense_axes, grid, runs, whole
from tests import strategies as some

SHAPES = st.lists(st.integers(1, 6), max_size=4).map(tuple)


def of(box):
    """What selects a box from its array."""
    return (*(slice(low, low + extent) for low, extent in zip(box.offset, box.shape, strict=True)), ...)


@st.composite
def boxes(draw, shape):
    offset = tuple(draw(st.integers(0, extent - 1)) for extent in shape)
    return Box(offset, tuple(draw(st.integers(1, extent - low)) for extent, low in zip(shape, offset, strict=True)))


SHAPE_AND_RUN = SHAPES.flatmap(
    lambda shape: st.tuples(st.just(shape), st.integers(0, math.prod(shape)), st.integers(0, math.prod(shape)))
)


@given(SHAPE_AND_RUN)
def test_a_run_of_items_is_a_few_boxes_in_order(given_):
    shape, start, stop = given_
    items = np.arange(math.prod(shape)).reshape(shape)
    found = list(runs(shape, start, stop))
    assert len(found) <= max(1, 2 * len(shape) - 1)
    at = 0
    for run in found:
        assert run.start == at
        part = items[of(run.box)].reshape(-1)
        assert part.tolist() == list(range(start + at, start + at + part.size))
        at += part.size
    assert at == max(0, stop - start)


@given(SHAPES.flatmap(lambda shape: st.tuples(boxes(shape), boxes(shape), st.just(shape))))
def test_the_intersection_of_boxes_is_what_both_hold(given_):
    a, b, shape = given_
    marks = np.zeros(shape, int)
    marks[of(a)] += 1
    marks[of(b)] += 1
    common = a.intersect(b)
    assert common == b.intersect(a)
    held = np.zeros(shape, bool)
    if common is not None:
        held[of(common)] = True
        assert (
            Box(tuple(x + y for x, y in zip(common.relative_to(a.offset).offset, a.offset, strict=True)), common.shape)
            == common
        )
    assert np.array_equal(held, marks == 2)


@given(
    SHAPES.flatmap(
        lambda shape: st.tuples(
            st.just(shape),
            st.tuples(
                *(
                    st.sets(st.integers(1, max(1, extent - 1)))
                    .filter(lambda cuts, extent=extent: all(cut < extent for cut in cuts))
                    .map(sorted)
                    for extent in shape
                )
            ),
        )
    )
)
def test_the_cells_of_a_grid_are_the_array_in_c_order(given_):
    shape, cuts = given_
    cells = list(grid(shape, cuts))
    marks = np.zeros(shape, int)
    for cell in cells:
        marks[of(cell)] += 1
    assert np.all(marks == 1)
    assert [cell.offset for cell in cells] == sorted(cell.offset for cell in cells)
    assert len(cells) == math.prod(len(axis) + 1 for axis in cuts)


def test_the_grid_of_an_array_without_cuts_is_the_whole_array():
    assert list(grid((2, 3), ((), ()))) == [whole((2, 3))]
    assert list(grid((), ())) == [whole(())]


@given(SHAPES.flatmap(lambda shape: st.tuples(st.just(shape), boxes(shape), st.integers(0, 40))))
def test_covering_ranges_hold_a_region_and_skip_what_is_worth_it(given_):
    shape, region, min_items = given_
    items = np.arange(math.prod(shape)).reshape(shape)
    wanted = set(items[of(region)].reshape(-1).tolist())
    ranges = list(covering_ranges(shape, region, min_items))
    covered = {item for low, high in ranges for item in range(low, high)}
    assert wanted <= covered
    assert ranges == sorted(ranges)
    for low, high in ranges:
        # Each begins and ends with something that is wanted, and has no large gap.
        inside = sorted(wanted & set(range(low, high)))
        assert (inside[0], inside[-1]) == (low, high - 1)
        gaps = [after - before - 1 for before, after in zip(inside, inside[1:], strict=False)]
        assert max(gaps, default=0) < max(min_items, 1)


@given(some.arrays())
def test_dense_axes_say_how_an_array_lies_in_memory(array):
    axes = dense_axes(array.shape, array.strides, array.itemsize)
    if array.size == 0 or array.itemsize == 0:
        return
    by_numpy = any(array.transpose(order).flags.c_contiguous for order in itertools.permutations(range(array.ndim)))
    assert (axes is not None) == by_numpy
    if axes is not None:
        assert sorted(axes) == list(range(array.ndim))
        assert array.transpose(axes).flags.c_contiguous


@pytest.mark.parametrize(
    ("shape", "strides", "axes"),
    [
        ((), (), ()),
        ((3,), (4,), (0,)),
        ((2, 3), (12, 4), (0, 1)),
        ((2, 3), (4, 8), (1, 0)),
        ((2, 1, 3), (4, 999, 8), (2, 1, 0)),
        ((2, 3), (24, 8), None),
        ((2, 3), (-12, 4), None),
        ((2, 3), (0, 4), None),
    ],
)
def test_dense_axes_of_some_layouts(shape, strides, axes):
    assert dense_axes(shape, strides, 4) == axes
