"""The measurements of saves in the background run, and say what they are said to."""

import numpy as np
import pytest

from benchmarks.background import beside_jobs, stall_jobs, stalled_states
from benchmarks.candidates import CANDIDATES
from benchmarks.figures import COPY, OURS
from benchmarks.states import nbytes_of, weights


def test_the_call_is_timed_beside_a_copy_for_every_framework(tmp_path):
    found = stalled_states(1 << 16, 10)
    assert [framework for framework, _ in found.values()] == ["numpy", "numpy", "torch", "jax"]
    assert nbytes_of(found["numpy, with 10 small arrays"][1]) == nbytes_of(found["numpy"][1]) + 10 * 1024
    for framework, tree in found.values():
        values = {job.candidate: job.run() for job in stall_jobs(framework, tree, tmp_path)}
        assert values.keys() == {COPY, OURS}
        assert all(one.keys() == {"call"} and one["call"] > 0 for one in values.values())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_training_is_timed_beside_the_saves_of_all_who_have_them(tmp_path):
    jobs = beside_jobs(CANDIDATES, weights(np.dtype(np.float32), 1 << 16), tmp_path, alone_s=0)
    assert [job.candidate for job in jobs] == [OURS, "torch DCP", "Orbax"]
    for job in jobs:
        values = job.run()
        assert values["until saved"] >= values["call"] > 0
        assert values["step, alone"] > 0
        assert values["step, while saving"] > 0
        assert values["training lost"] >= 0
    assert list(tmp_path.iterdir()) == []
