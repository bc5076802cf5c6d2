"""Real checkpoints: read by us as by the packages that they are of, and written again as those read them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import pytreeckpt as ptc
from benchmarks.exactness import differences
from pytreeckpt.interop.foreign import read_whole
from pytreeckpt.interop.npz import read_npz
from pytreeckpt.interop.safetensors import read_safetensors
from pytreeckpt.interop.write_npz import write_npz
from pytreeckpt.interop.write_safetensors import write_safetensors
from pytreeckpt.interop.write_torch import write_torch
from tests.interop.sources import source

CACHE = Path(os.environ.get("PYTREECKPT_WEIGHTS", Path(__file__).parents[2] / ".cache/weights"))
MANIFEST = CACHE / "manifest.json"
FILES = (
    sorted(path for files in json.loads(MANIFEST.read_text()).values() for path in files) if MANIFEST.exists() else []
)
ABSENT = pytest.mark.skip(reason="no real weights in .cache/weights: run `make weights`")
SAFETENSORS = [name for name in FILES if name.endswith(".safetensors")]

pytestmark = pytest.mark.weights


@pytest.mark.parametrize("name", SAFETENSORS or [pytest.param("no weights", marks=ABSENT)])
def test_a_real_safetensors_file_is_read_and_written_as_by_the_package(name, tmp_path):
    expected = safetensors.torch.load_file(CACHE / name)
    found = read_safetensors(source((CACHE / name).read_bytes()))
    assert found.tree.keys() == expected.keys() != set()
    for key, tensor in expected.items():
        assert read_whole(found.tree[key]).tobytes() == tensor.numpy().tobytes()
    write_safetensors(found.tree, tmp_path / "x", metadata=found.metadata, durability="atomic")
    again = safetensors.torch.load_file(tmp_path / "x")
    assert not differences({key: expected[key] for key in sorted(expected)}, {key: again[key] for key in sorted(again)})
    write_npz(found.tree, tmp_path / "x.npz", durability="atomic")
    with np.load(tmp_path / "x.npz") as arrays:
        assert {key: array.tobytes() for key, array in arrays.items()} == {
            key: read_whole(array).tobytes() for key, array in found.tree.items()
        }
    assert read_npz(source((tmp_path / "x.npz").read_bytes())).tree.keys() == expected.keys()


@pytest.mark.parametrize("name", FILES or [pytest.param("no weights", marks=ABSENT)])
def test_a_real_checkpoint_written_as_a_torch_file_is_read_by_torch(name, tmp_path):
    path = CACHE / name
    if name in SAFETENSORS:
        tree = safetensors.torch.load_file(path)
    else:
        tree = torch.load(path, map_location="cpu", weights_only=True)
    write_torch(tree, tmp_path / "x.pt", durability="atomic")
    assert not differences(tree, torch.load(tmp_path / "x.pt", weights_only=True))
    assert not differences(tree, ptc.restore(tmp_path / "x.pt"))


TORCH = [name for name in FILES if name not in SAFETENSORS]


@pytest.mark.parametrize("name", TORCH or [pytest.param("no weights", marks=ABSENT)])
def test_a_real_torch_file_is_written_again_without_torch(name, tmp_path):
    with ptc.open(CACHE / name) as checkpoint:
        write_torch(checkpoint.tree, tmp_path / "x.pt", durability="atomic")
        arrays = sum(isinstance(leaf, ptc.ArrayRef) for _, leaf in checkpoint.leaves())
        report = write_safetensors(checkpoint.tree, tmp_path / "x.safetensors", drop_other=True, durability="atomic")
    expected = torch.load(CACHE / name, map_location="cpu", weights_only=True)
    assert not differences(expected, torch.load(tmp_path / "x.pt", weights_only=True))
    assert len(safetensors.torch.load_file(tmp_path / "x.safetensors")) == arrays - len(report.shared) > 0
