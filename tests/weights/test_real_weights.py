"""Real checkpoints, as people publish them, come back bit for bit. `make weights` fetches them."""

import json
import os
from pathlib import Path

import pytest

import pytreeckpt as ptc
from benchmarks.exactness import differences

CACHE = Path(os.environ.get("PYTREECKPT_WEIGHTS", Path(__file__).parents[2] / ".cache/weights"))
MANIFEST = CACHE / "manifest.json"
FILES = (
    sorted(path for files in json.loads(MANIFEST.read_text()).values() for path in files) if MANIFEST.exists() else []
)
ABSENT = pytest.mark.skip(reason="no real weights in .cache/weights: run `make weights`")

pytestmark = pytest.mark.weights


def load(path):
    torch = pytest.importorskip("torch")
    if path.suffix == ".safetensors":
        return pytest.importorskip("safetensors.torch").load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


@pytest.mark.parametrize("name", FILES or [pytest.param("no weights", marks=ABSENT)])
def test_a_real_checkpoint_comes_back_bit_for_bit(name, tmp_path, capsys):
    tree = load(CACHE / name)
    path = tmp_path / "checkpoint.ptck"
    report = ptc.save(tree, path, metadata={"source": name})
    assert report.raw_nbytes > 1000
    assert not differences(tree, ptc.restore(path))
    assert ptc.verify(path).ok
    with capsys.disabled():
        ratio = report.stored_nbytes / report.raw_nbytes
        before, after = (CACHE / name).stat().st_size, report.file_nbytes
        print(f"\n  {name}: arrays {ratio:.3f}, file {before:,} → {after:,} bytes", end=" ")  # noqa: T201 - the ratios are worth seeing


@pytest.mark.parametrize("name", FILES or [pytest.param("no weights", marks=ABSENT)])
def test_a_real_checkpoint_is_read_without_its_framework_too(name, tmp_path):
    tree = load(CACHE / name)
    path = tmp_path / "checkpoint.ptck"
    ptc.save(tree, path)
    plain = ptc.restore(path, to="numpy")
    # Back in torch, nothing may have changed on the way.
    ptc.save(plain, path)
    again = ptc.restore(path, to="torch")
    assert not [text for text in differences(tree, again) if text.silent]


@pytest.mark.skipif(not FILES, reason="no real weights in .cache/weights: run `make weights`")
def test_the_cache_holds_whole_training_states():
    states = [load(CACHE / name) for name in FILES if name.endswith(".pth.tar")]
    assert len(states) >= 3
    for state in states:
        assert state["optimizer"]["state"]
        assert state["scheduler"]["_step_count"] > 1


@pytest.mark.skipif(not FILES, reason="no real weights in .cache/weights: run `make weights`")
@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".pth.tar")] or ["no weights"])
def test_an_optimizer_goes_on_from_a_restored_real_state(name, tmp_path):
    torch = pytest.importorskip("torch")
    tree = load(CACHE / name)
    ptc.save(tree, tmp_path / "checkpoint.ptck")
    restored = ptc.restore(tmp_path / "checkpoint.ptck")
    results = []
    for state in (tree, restored):
        order = state["optimizer"]["param_groups"][0]["params"]
        moments = state["optimizer"]["state"]
        parameters = [torch.nn.Parameter(torch.ones_like(moments[key]["exp_avg"])) for key in order if key in moments]
        optimizer = torch.optim.Adam(parameters)
        groups = [{**state["optimizer"]["param_groups"][0], "params": list(range(len(parameters)))}]
        kept = [moments[key] for key in order if key in moments]
        optimizer.load_state_dict({"state": dict(enumerate(kept)), "param_groups": groups})
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, 0.1)
        optimizer.step()
        results.append([parameter.detach() for parameter in parameters])
    assert results[0]
    assert not differences(*results)
