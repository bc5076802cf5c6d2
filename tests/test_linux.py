"""Hints to the kernel: a save is the same with them, without them, and when they fail."""

import os

import numpy as np
import pytest

import pytreeckpt as ptc
from pytreeckpt import linux, storage


def test_a_hint_about_a_file_that_is_not_there_does_nothing(tmp_path):
    read, write = os.pipe()
    os.close(read)
    os.close(write)
    linux.start_writeback(write, 0, 100)
    linux.reserve(write, 0, 100)


def test_reserved_blocks_change_neither_length_nor_content_and_are_given_back(tmp_path):
    path = tmp_path / "x"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        os.write(descriptor, b"abc")
        linux.reserve(descriptor, 0, 1 << 20)
        linux.start_writeback(descriptor, 0, 3)
        assert path.read_bytes() == b"abc"
        os.ftruncate(descriptor, 3)
        assert path.stat().st_blocks * 512 < 1 << 20
    finally:
        os.close(descriptor)
    assert path.read_bytes() == b"abc"


@pytest.mark.parametrize("available", [True, False])
def test_a_large_file_takes_no_more_blocks_than_it_needs(tmp_path, monkeypatch, available):
    if not available:
        monkeypatch.setattr(linux, "_system_call", lambda *_: None)
    monkeypatch.setattr(storage, "_RESERVE_FROM_NBYTES", 1 << 20)
    tree = {"w": np.random.default_rng(0).integers(0, 256, 8 << 20, dtype=np.uint8)}
    for durability in ("durable", "atomic"):
        ptc.save(tree, tmp_path / "x", compression="none", durability=durability)
        status = (tmp_path / "x").stat()
        assert status.st_blocks * 512 < status.st_size + (1 << 20)
        assert np.array_equal(ptc.restore(tmp_path / "x")["w"], tree["w"])
