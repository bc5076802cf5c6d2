"""Snapshots: what is stored of one is what was there when it was taken."""

import ctypes
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt import snapshots, testing
from pytreeckpt.expand import make_expand
from pytreeckpt.flatten import FlatTree, flatten
from pytreeckpt.geometry import extent
from pytreeckpt.limits import current_limits
from pytreeckpt.planning import plan_save
from pytreeckpt.snapshots import Needs, needs_of, snapshot
from pytreeckpt.streaming import stream
from tests.sources import grids, in_boxes


class Memory:
    """Gives memory that holds something already, and counts it."""

    def __init__(self) -> None:
        self.nbytes = 0

    def __call__(self, nbytes: int) -> np.ndarray:
        self.nbytes += -(-nbytes // 64) * 64
        whole = np.full(nbytes + 64, 0x5A, np.uint8)
        begin = -whole.ctypes.data % 64
        return whole[begin : begin + nbytes]


def flat(tree: object) -> FlatTree:
    return flatten(None, tree, expand=make_expand(), limits=current_limits())


def file_of(tree: FlatTree) -> bytes:
    return b"".join(stream(plan_save(tree, current_limits()), "auto"))


def overwrite(array: np.ndarray) -> None:
    """Change every byte from the first to the last item, gaps and padding too, whatever the flags say."""
    owner = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    low, high = extent(array.shape, array.strides, array.itemsize)
    if owner.base is None or isinstance(owner.base, bytearray):
        address = array.__array_interface__["data"][0]
        items = (ctypes.c_ubyte * (high - low)).from_address(address + low)
        items[:] = bytes(byte ^ 0xFF for byte in items)


def taken(tree: object, *, small_nbytes: int, batch_nbytes: int) -> tuple[bytes, bytes]:
    """The file of a tree, and that of its snapshot when the tree has changed since."""
    before = flat(tree)
    expected = file_of(before)
    memory = Memory()
    with patch.multiple(snapshots, _SMALL_NBYTES=small_nbytes, _BATCH_NBYTES=batch_nbytes):
        needs = needs_of(before)
        copied = snapshot(before, memory)
    assert memory.nbytes <= needs.buffer_nbytes <= needs.total_nbytes
    for array in before.arrays:
        if isinstance(array, np.ndarray):
            overwrite(array)
    return expected, file_of(copied)


SIZES = st.sampled_from([(1 << 20, 1 << 20), (0, 1), (0, 16), (8, 64)])


@given(testing.trees(), SIZES)
def test_what_is_changed_after_a_snapshot_is_stored_as_it_was(tree, sizes):
    expected, found = taken(tree, small_nbytes=sizes[0], batch_nbytes=sizes[1])
    assert found == expected


@given(testing.arrays(max_dims=4), SIZES)
def test_arrays_of_every_dtype_and_layout_keep_their_bits_and_their_order(array, sizes):
    expected, found = taken([array, array[..., ::-1] if array.ndim else array], small_nbytes=sizes[0], batch_nbytes=1)
    assert found == expected


@given(testing.arrays(max_dims=3).flatmap(grids), SIZES)
def test_arrays_in_boxes_keep_their_boxes(source, sizes):
    before = flat({"a": source, "b": source})
    memory = Memory()
    with patch.multiple(snapshots, _SMALL_NBYTES=sizes[0], _BATCH_NBYTES=sizes[1]):
        needs = needs_of(before)
        copied = snapshot(before, memory)
    assert memory.nbytes <= needs.buffer_nbytes
    assert file_of(copied) == file_of(before)


def test_extents_of_one_do_not_change_the_order_of_the_axes():
    base = np.arange(24).reshape(2, 3, 4)
    for view in (base.transpose(2, 0, 1)[:, None], base.T[:, :1], base[:1].transpose(1, 0, 2), base[None].T):
        expected, found = taken(view, small_nbytes=0, batch_nbytes=8)
        assert found == expected


def test_a_tied_array_is_copied_once():
    array = np.zeros(100_000, np.float32)
    memory = Memory()
    copied = snapshot(flat([array, array, array[:]]), memory)
    assert len(copied.arrays) == 1
    assert memory.nbytes == array.nbytes
    assert needs_of(flat([array, array])) == Needs(array.nbytes, array.nbytes)


def test_a_large_array_is_copied_in_batches_that_threads_can_share():
    batches = []

    def copy_all(copy, some):
        for batch in some:
            batches.append(batch)
            copy(batch)

    array = np.arange(5 << 20, dtype=np.float32)
    copied = snapshot(flat([array, array[:20_000].copy(), array[:20_000].copy()]), Memory(), copy_all)
    assert [len(batch) for batch in batches] == [1, 1, 3]
    assert (copied.arrays[0] == array).all()


def test_padding_is_not_stored_and_does_not_change_the_file():
    dtype = np.dtype([("a", "u1"), ("b", "<f8")], align=True)
    array = np.frombuffer(bytearray(range(160)), dtype)
    expected, found = taken({"one": array, "some": array[::2]}, small_nbytes=0, batch_nbytes=32)
    assert found == expected


def test_an_immutable_source_is_read_where_it_is():
    array = np.arange(100_000)
    source = ptc.ArraySource(array.dtype, array.shape, [lambda start, stop: array[start:stop]], immutable=True)
    memory = Memory()
    copied = snapshot(flat([source]), memory)
    assert copied.arrays == [source]
    assert (memory.nbytes, needs_of(flat([source]))) == (0, Needs(0, 0))


def test_copies_of_devices_are_begun_before_anything_else_and_awaited_at_the_end():
    events = []

    def on_device(name):
        array = np.full(10, ord(name))

        def begin():
            events.append(f"begin {name}")
            return ptc.PendingSnapshot(
                ptc.ArraySource(array.dtype, array.shape, [lambda start, stop: array[start:stop]]),
                lambda: events.append(f"wait {name}"),
            )

        def read(start, stop):
            pytest.fail("a device is not read chunk by chunk")

        return ptc.ArraySource(array.dtype, array.shape, [read], snapshot=begin)

    def read_host(start, stop):
        events.append("host")
        return np.zeros(stop - start)

    host = ptc.ArraySource(np.dtype(float), (8192,), [read_host])
    copied = snapshot(flat([on_device("a"), host, on_device("b")]), Memory())
    assert events == ["begin a", "begin b", "host", "wait a", "wait b"]
    assert [array.boxes[0](0, 1).tolist() for array in copied.arrays] == [[97], [0], [98]]
    assert needs_of(flat([on_device("a"), host])) == Needs(65536, 65536 + 80)


def test_each_box_begins_at_a_multiple_of_the_alignment():
    array = np.arange(60_000, dtype=np.uint8).reshape(2, -1)
    source = in_boxes(array, [[1], [10_001, 25_002]])
    memory = Memory()
    with patch.object(snapshots, "_SMALL_NBYTES", 0):
        copied = snapshot(flat([source]), memory)
        assert memory.nbytes <= needs_of(flat([source])).buffer_nbytes
    assert file_of(copied) == file_of(flat([source]))


def test_a_source_that_gives_too_little_is_an_error():
    source = ptc.ArraySource(np.dtype(float), (100_000,), [lambda start, stop: np.zeros(stop - start - 1)])
    with pytest.raises(ValueError, match="broadcast"):
        snapshot(flat([source]), Memory())
