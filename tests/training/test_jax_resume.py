"""Trainings in JAX, interrupted: another process goes on with the same bits as the one that was never stopped."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

import pytreeckpt as ptc
from tests.training.jax_trainings import N_AFTER, N_BEFORE, TRAININGS

SCRIPT = pathlib.Path(__file__).parent / "jax_trainings.py"


def _run(act, folder):
    root = SCRIPT.parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "error", SCRIPT, act, folder],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "adapters")]), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("trainings")


@pytest.fixture(scope="module")
def records(folder):
    """What came of each training: in the process that began it, and in the one that went on with it."""
    return _run("begin", folder), _run("resume", folder)


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_goes_on_in_another_process_to_the_bit(records, name):
    begun, resumed = (record[name] for record in records)
    assert resumed["restored"] == begun["restored"]
    assert resumed["losses"] == begun["losses"]
    assert resumed["digest"] == begun["digest"]
    assert resumed["drawn"] == begun["drawn"]


def test_the_trainings_are_trainings(records):
    begun, _ = records
    assert len(begun) > 50
    for name, record in begun.items():
        assert len(record["losses"]) == N_BEFORE + N_AFTER
        assert np.isfinite(np.frombuffer(bytes.fromhex("".join(record["losses"])), np.float32)).all()
        # lbfgs is done after a few steps.
        assert len(set(record["losses"])) == N_BEFORE + N_AFTER or name == "lbfgs"
        assert record["restored"] != record["digest"]
    assert len({record["digest"] for record in begun.values()}) == len(begun)


def test_they_have_weak_types_typed_and_raw_keys_and_counts_of_their_own(records, folder):
    def of(name):
        return ptc.restore(folder / f"{name}.ptck")

    assert of("linen adam")["state"]["leaves"]["step"].weak_type
    hyperparams = of("linen inject hyperparams")["state"]["leaves"]["opt_state"]["hyperparams"]
    assert hyperparams["learning_rate"] < hyperparams["weight_decay"]
    dtypes = {str(of(f"linen {name}")["state"]["leaves"]["key"].dtype) for name in ("adabelief", "adadelta")}
    assert dtypes == {"key<fry>", "uint32"}
    assert int(of("nnx multi steps")["optimizer"]["leaves"]["opt_state"]["mini_step"]) == N_BEFORE % 2
    assert of("linen scaled")["state"]["leaves"]["scale"]["scale"].dtype == jax.numpy.float32
    assert of("equinox")["training"]["roles"]["batch_state"] == "pytree"
    assert of("linen stateless")["state"]["leaves"].keys() == {"step", "params", "batch_stats", "key"}
