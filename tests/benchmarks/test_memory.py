"""Saving and reading take a bounded amount of memory, and the harness that measures it can tell."""

import json
import mmap
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.memory import MIB, OPERATIONS, PeakMemory, as_text, gaussian

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")


def run(size, *options):
    command = [sys.executable, "-m", "benchmarks.memory", "--sizes", str(size / 2**30), "--dtypes", "float32", *options]
    return subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)


def test_extra_memory_is_far_less_than_the_array(tmp_path):
    done = run(96 * MIB, "--limit", "48", "--json", str(tmp_path / "figures.json"), "--folder", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [figure["operation"] for figure in figures] == list(OPERATIONS)
    assert {figure["nbytes"] for figure in figures} == {96 * MIB}
    assert not list(tmp_path.glob("*.ptck"))


def test_a_figure_above_the_limit_fails(tmp_path):
    done = run(MIB, "--limit", "0.001", "--folder", str(tmp_path))
    assert done.returncode == 1
    assert "above 0.001 MiB" in done.stderr


def test_memory_that_was_given_back_counts_towards_the_peak():
    with PeakMemory() as peak:
        # From the kernel: what malloc gives may have been resident before.
        memory = mmap.mmap(-1, 32 * MIB)
        np.frombuffer(memory, np.uint8)[:] = 1
        # Where the kernel does not keep the peak, a thread has to look while the memory is there.
        deadline = time.monotonic() + 5
        while not peak.exact and peak.sampled < peak.before + 31 * MIB and time.monotonic() < deadline:
            time.sleep(0.001)
        memory.close()
    assert 31 * MIB < peak.nbytes < 48 * MIB


def test_memory_from_before_does_not_count():
    array = np.ones(32 * MIB, np.uint8)
    with PeakMemory() as peak:
        array[:] = 2
    assert peak.nbytes < 8 * MIB


def test_the_weights_are_gaussian_and_of_the_size_asked_for():
    array = gaussian("bfloat16", 1 << 20)
    assert array.nbytes == 1 << 20
    assert 0.019 < array.astype(np.float32).std() < 0.021


def test_an_empty_table_has_no_figures():
    assert "MiB" in as_text([])
