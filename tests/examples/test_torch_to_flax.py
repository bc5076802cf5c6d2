"""The example of a training across frameworks: what it claims is so, and can fail."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]

pytest.importorskip("torch")
pytest.importorskip("flax")
pytest.importorskip("optax")

import jax  # noqa: E402 - only where it is installed

from examples import torch_to_flax  # noqa: E402 - only where torch and flax are installed


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    path = tmp_path_factory.mktemp("example") / "resume.svg"
    command = [sys.executable, "examples/torch_to_flax.py", "--plot", str(path)]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return path, done.stdout


def test_it_prints_the_losses_side_by_side_and_how_far_they_are_apart(ran):
    _, text = ran
    rows = [line.split() for line in text.splitlines() if " torch  " in line or " Flax  " in line]
    rows = [row for row in rows if row[0].isdecimal()]
    assert {row[1] for row in rows} == {"torch", "Flax"}
    assert len(rows) == 18
    assert all(float(row[4]) <= torch_to_flax.TOLERANCE for row in rows)
    assert f"{3 * torch_to_flax.N_STEPS} losses" in text
    assert "back in torch, at step 50" in text
    assert "optax.scale_by_adam" in text


def test_it_writes_a_plot_or_says_that_it_cannot(ran):
    path, text = ran
    assert (f"{path} written" in text and path.read_text("utf-8").lstrip().startswith("<?xml")) or (
        f"{path} is not written" in text and not path.exists()
    )


def test_the_plot_in_the_documentation_is_that_of_the_example():
    text = (ROOT / "docs" / "conversion" / "resume.svg").read_text("utf-8")
    assert text.lstrip().startswith("<?xml")
    for label in ("torch alone", "went on in Flax, with optax", "what is asserted: 1e-12"):
        assert label in text


def test_without_the_moments_the_losses_part(tmp_path, monkeypatch):
    def forgetting(path):
        state = convert_to_flax(path)
        return state.replace(opt_state=state.tx.init(state.params))

    convert_to_flax = torch_to_flax.to_flax
    monkeypatch.setattr(torch_to_flax, "to_flax", forgetting)
    with jax.enable_x64(True):
        alone, across = torch_to_flax.tour(tmp_path)
    differences = np.abs(np.subtract(alone, across))
    assert differences[: torch_to_flax.N_STEPS].max() == 0
    assert differences.max() > 1e-5
