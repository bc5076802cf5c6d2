"""Real checkpoints through `pytreeckpt convert`: to another format and back, and a BERT to Flax. `make weights` fetches
them.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks.exactness import differences
from tests.cli.running import run

CACHE = Path(os.environ.get("PYTREECKPT_WEIGHTS", Path(__file__).parents[2] / ".cache/weights"))
MANIFEST = CACHE / "manifest.json"
FILES = (
    sorted(path for files in json.loads(MANIFEST.read_text()).values() for path in files) if MANIFEST.exists() else []
)
ABSENT = pytest.mark.skip(reason="no real weights in .cache/weights: run `make weights`")
BERT = [path for path in FILES if "minilm" in path]

pytestmark = pytest.mark.weights


@pytest.mark.parametrize("name", FILES or [pytest.param("no weights", marks=ABSENT)])
def test_a_real_checkpoint_goes_through_ours_to_torch_unchanged(name, tmp_path):
    torch = pytest.importorskip("torch")
    for source, destination in ((CACHE / name, "one.ptck"), (tmp_path / "one.ptck", "two.pt")):
        ran = run("convert", source, tmp_path / destination)
        assert (ran.code, ran.err) == (0, "")
    found = torch.load(tmp_path / "two.pt", weights_only=True)
    if name.endswith(".safetensors"):
        expected = pytest.importorskip("safetensors.torch").load_file(CACHE / name)
        # A state dict has no order that matters, and the package reads it in the order of names.
        assert sorted(found) == sorted(expected)
        expected = {key: expected[key] for key in found}
    else:
        expected = torch.load(CACHE / name, map_location="cpu", weights_only=True)
    assert not differences(expected, found)


@pytest.mark.parametrize("name", BERT or [pytest.param("no weights", marks=ABSENT)])
def test_a_real_bert_computes_the_same_in_flax(name, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers", minversion="4.57", reason="the last versions with Flax models")
    serialization = pytest.importorskip("flax.serialization")
    jax = pytest.importorskip("jax")
    config = transformers.BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    ours = transformers.BertModel(config).eval()
    theirs = transformers.FlaxBertModel(config, _do_init=False)
    template = jax.eval_shape(lambda: theirs.init_weights(jax.random.key(0), (1, 1)))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), template)
    (tmp_path / "target.msgpack").write_bytes(serialization.to_bytes({"params": zeros}))
    out = tmp_path / "flax.msgpack"
    target = ("--target", tmp_path / "target.msgpack", "--waive-unused", "embeddings.position_ids")
    undecided = run("convert", CACHE / name, out, *target)
    assert undecided.code == 1
    assert "ambiguous (25)" in undecided.lines
    squares = ("**.query", "**.key", "**.value", "**.attention.output.dense", "pooler.dense")
    ran = run(
        "convert", CACHE / name, out, *target, *(each for name in squares for each in ("--kind", f"{name}=Linear"))
    )
    assert (ran.code, ran.err) == (0, "")
    params = serialization.msgpack_restore(out.read_bytes())["params"]
    state = pytest.importorskip("safetensors.torch").load_file(CACHE / name)
    state.pop("embeddings.position_ids")
    ours.load_state_dict(state)
    tokens = np.array([[101, 2023, 2003, 1037, 3231, 102]])
    with torch.no_grad():
        expected = ours(torch.tensor(tokens)).last_hidden_state.numpy()
    found = np.asarray(theirs(tokens, params=params).last_hidden_state)
    # Rounding of float32, of values of up to 3.
    assert np.abs(found - expected).max() < 1e-5
