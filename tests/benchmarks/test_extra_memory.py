"""Extra memory is measured in processes of their own, which tell a format that holds everything twice."""

from pathlib import Path

import pytest

from benchmarks.candidates import CANDIDATES
from benchmarks.extra_memory import OPERATIONS, measure_all

MIB = 1 << 20

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")


def test_each_operation_has_a_figure_beyond_the_state(tmp_path):
    ours = CANDIDATES[0]
    figures = measure_all(ours, "float32", 48 * MIB, tmp_path)
    assert tuple(figures) == OPERATIONS
    for extra, state in figures.values():
        assert 40 * MIB < state < 60 * MIB
        assert extra < 2 * state
    # What came back is not extra.
    assert figures["restore"][0] < 40 * MIB
    assert not list(tmp_path.iterdir())
