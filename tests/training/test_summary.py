"""What is said of a training from its tree alone: the right numbers, or nothing, and never an error."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from flax.training.train_state import TrainState
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
import pytreeckpt_jax as ptj
import pytreeckpt_torch as ptt
from pytreeckpt import testing
from pytreeckpt.training.summary import Summary, summarize
from tests.cli.documented import check
from tests.cli.running import inspected, run

ROLES = ["module", "optimizer", "scheduler", "scaler", "generator", "stateful", "pytree", "nnx", "rng", "", "of others"]


def facts(tree) -> dict[str, tuple[str, str]]:
    """The role and description of each part."""
    summary = summarize(tree)
    assert summary is not None
    return {name: (role, text) for name, role, text in summary.facts}


@pytest.fixture(scope="module")
def of_torch():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    model[2].bias.requires_grad_(False)
    optimizer = torch.optim.AdamW(
        [{"params": model[0].parameters()}, {"params": [model[2].weight], "lr": 0.5}], lr=0.25
    )
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.ones(5, 3)).sum().backward()
        optimizer.step()
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    sequence = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    return {
        "model": model,
        "optimizer": optimizer,
        "scheduler": cosine,
        "both": torch.optim.lr_scheduler.ChainedScheduler([cosine, sequence]),
        "scaler": torch.amp.GradScaler("cpu", init_scale=1024.0),
        "off": torch.amp.GradScaler("cpu", enabled=False),
        "models": {"G": torch.nn.Linear(2, 2), "D": torch.nn.Linear(2, 1, dtype=torch.bfloat16)},
        "generator": torch.Generator(),
        "step": 12_345,
        "best_loss": 0.125,
        "config": {"name": "x"},
        "history": {"loss": [3.0, 1.0, float("nan"), 2.0], "accuracy": [0.1, 0.5, 0.25], "rate": 0.5, "names": ["x"]},
    }


@pytest.fixture(scope="module")
def of_jax():
    state = TrainState.create(apply_fn=len, params={"w": jnp.ones((3, 4)), "b": jnp.ones(4)}, tx=optax.adam(1e-2))
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    return {
        "state": state.replace(step=7),
        "model": model,
        "optimizer": optimizer,
        "models": [nnx.Linear(2, 2, rngs=nnx.Rngs(0)), nnx.Linear(2, 1, rngs=nnx.Rngs(0))],
        "key": jax.random.key(0),
        "epoch": 3,
    }


def by_hand(model, optimizer, scheduler, scaler):
    return {
        "epoch": 4,
        "global_step": 1200,
        "best_accuracy": 0.75,
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "scaler": scaler.state_dict(),
        "rng_states": {"torch": torch.get_rng_state(), "numpy": np.random.get_state(), "python": random.getstate()},
        "metrics_history": {"val_loss": [float("nan"), 2.0, 1.5], "val_accuracy": [0.5, 0.75]},
        "config": {"lr": 0.5},
    }


def test_a_captured_training_of_torch_is_summed_up(of_torch):
    tree = ptt.capture(**of_torch)
    found = facts(tree)
    assert summarize(tree).framework == f"torch {torch.__version__}"
    assert found["model"] == ("module", "Sequential, 29 parameters in 6 arrays, float32, 1 frozen")
    assert found["optimizer"] == (
        "optimizer",
        "AdamW, 2 groups, lr 0.25, 0.5, step 2, 43 elements in 9 arrays, float32",
    )
    assert found["scheduler"] == ("scheduler", "CosineAnnealingLR, last_epoch 0")
    assert found["both"] == ("scheduler", "ChainedScheduler of CosineAnnealingLR, ConstantLR")
    assert found["scaler"] == ("scaler", "scale 1024")
    assert found["off"] == ("scaler", "disabled")
    assert found["models/G"] == ("module", "Linear, 6 parameters in 2 arrays, float32")
    assert found["models/D"] == ("module", "Linear, 3 parameters in 2 arrays, bfloat16")
    assert found["generator"] == ("generator", "")
    assert found["rng"] == ("rng", "python, numpy, torch; 1 of 1 processes")
    assert found["step"] == ("value", "12,345")
    assert found["best_loss"] == ("value", "0.125")
    assert found["history"] == ("value", "loss 2 (best 1 at [1]); accuracy 0.25 (best 0.5 at [1]); rate 0.5")
    assert "config" not in found


def test_a_captured_training_of_jax_is_summed_up(of_jax):
    tree = ptj.capture(**of_jax)
    found = facts(tree)
    assert summarize(tree).framework == f"jax {jax.__version__}"
    assert found["state"] == ("pytree", "TrainState, 16 parameters, 49 elements in 7 arrays, float32, int32, step 7")
    assert found["model"] == ("nnx", "Linear, 9 parameters, 9 elements in 2 arrays, float32")
    assert found["optimizer"] == ("nnx", "Optimizer, 20 elements in 6 arrays, float32, int32, step 0")
    assert found["models/0"] == ("nnx", "Linear, 6 parameters, 6 elements in 2 arrays, float32")
    assert found["models/1"] == ("nnx", "Linear, 3 parameters, 3 elements in 2 arrays, float32")
    assert found["rng"] == ("rng", "python, numpy; 1 of 1 processes")
    assert found["epoch"] == ("value", "3")
    assert "key" not in found


def test_a_dict_of_state_dicts_is_summed_up(of_torch):
    tree = by_hand(*(of_torch[name] for name in ("model", "optimizer", "scheduler", "scaler")))
    found = facts(tree)
    assert summarize(tree).framework == ""
    assert found["model_state_dict"] == ("module", "38 elements in 9 arrays, float32, int64")
    assert found["optimizer_state_dict"] == (
        "optimizer",
        "2 groups, lr 0.25, 0.5, step 2, 43 elements in 9 arrays, float32",
    )
    assert found["scheduler"] == ("scheduler", "last_epoch 0")
    assert found["scaler"] == ("scaler", "scale 1024")
    assert found["rng_states"] == ("rng", "torch, numpy, python")
    assert found["epoch"] == ("value", "4")
    assert found["global_step"] == ("value", "1,200")
    assert found["best_accuracy"] == ("value", "0.75")
    assert found["metrics_history"] == ("value", "val_loss 1.5 (best 1.5 at [2]); val_accuracy 0.75 (best 0.75 at [1])")


@pytest.mark.parametrize(
    "tree",
    [
        *(None, 3, [], {}, {"step": 3}, np.ones(3), {"model": {"w": np.ones(3)}, "step": 3}, {"optimizer": 3}),
        {"training": {"layout": 1}, "state_dict": {"w": np.ones(2)}, "scheduler": {"last_epoch": 3}},
    ],
    ids=repr,
)
def test_other_trees_are_no_trainings(tree):
    assert summarize(tree) is None


def test_shared_arrays_count_once_also_in_a_file(tmp_path):
    array = np.ones((3, 4))
    tree = {"model": {"a": array, "b": array}, "optimizer": {"param_groups": [{"lr": 0.1}], "state": {}}}
    assert facts(tree)["model"][1] == "12 elements in 1 array, float64"
    ptc.save(tree, tmp_path / "t.ptck")
    with ptc.open(tmp_path / "t.ptck") as checkpoint:
        assert facts(checkpoint.tree) == facts(tree)


@pytest.mark.parametrize(
    ("history", "text"),
    [
        ([1.0, 3, 2.0], "2 (best 3 at [1])"),
        ([float("nan")] * 3, ""),
        ([1.0, float("nan")], "nan (best 1 at [0])"),
        ([float("inf"), 1.0], "1 (best inf at [0])"),
        ([-float("inf"), 10**400, 2], "2 (best … at [1])"),
        ([1.0, 10**400], "… (best … at [1])"),
        ([True, 1.0], ""),
        ([], ""),
        (0.5, "0.5"),
        ("x", ""),
    ],
    ids=str,
)
def test_a_history_is_told_by_its_last_and_its_best(history, text):
    tree = {"optimizer": {"param_groups": [], "state": {}}, "metrics": {"score": history}}
    assert facts(tree).get("metrics", ("value", ""))[1] == (f"score {text}" if text else "")


# Hypothesis could not print them.
HUGE = st.sampled_from([1, -1]).map(lambda sign: sign * 10**5000)
NUMBERS = st.sampled_from([0, 1, -1, 10**30, 10**400, 0.5, float("nan"), float("inf"), True]) | HUGE
NAMES = st.sampled_from(
    ["step", "epoch", "best", "model", "optimizer", "loss", "class", "state", "groups", "leaves", ""]
)
SHAPED = st.sampled_from([np.ones(3), np.array(10.0**300), np.array("x"), np.zeros((0, 2)), np.datetime64("2020")])
LEAVES = NUMBERS | SHAPED | st.none() | st.text(max_size=3) | st.lists(NUMBERS, max_size=3)
KNOWN = st.sampled_from(
    [
        *("class", "state", "groups", "param_groups", "options", "lr", "step", "leaves", "layers", "buffers", "frozen"),
        *("schedulers", "last_epoch", "_last_lr", "scale", "growth_factor", "ranks", "world_size", "", "loss", 0),
    ]
)
KNOWN |= HUGE
FORGED = st.recursive(
    LEAVES, lambda inner: st.dictionaries(KNOWN, inner, max_size=4) | st.lists(inner, max_size=3), max_leaves=8
)
ROLE = st.sampled_from(ROLES)
HEADERS = st.builds(
    lambda framework, version, roles: {"layout": 1, "framework": framework, "version": version, "roles": roles},
    st.text(max_size=3),
    st.text(max_size=3),
    st.dictionaries(NAMES, ROLE | st.lists(ROLE, max_size=2) | st.dictionaries(KNOWN, ROLE, max_size=2), max_size=4),
)


def total(tree):
    summary = summarize(tree)
    if summary is not None:
        assert isinstance(summary, Summary)
        assert all(isinstance(text, str) for fact in summary.facts for text in fact)


@given(testing.trees())
def test_any_tree_is_summed_up_or_is_none(tree):
    total(tree)
    total({"optimizer": {"param_groups": [], "state": tree}, "model": tree, "x": tree})
    total({"training": tree})


@given(HEADERS, st.dictionaries(NAMES | KNOWN, FORGED | testing.trees(), max_size=5))
def test_a_forged_training_is_summed_up(header, objects):
    total({"training": header, **objects})


@given(st.dictionaries(NAMES | KNOWN, FORGED, max_size=5), FORGED, FORGED)
def test_a_forged_dict_of_state_dicts_is_summed_up(objects, groups, state):
    total({**objects, "optimizer": {"param_groups": groups, "state": state}})


def test_a_state_of_many_levels_is_summed_up():
    deep: dict = {"step": 1}
    for _ in range(100_000):
        deep = {"a": deep}
    total({"optimizer": {"param_groups": [], "state": deep}})


# The command line.


def test_inspect_begins_with_the_training(of_torch, tmp_path, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    path = tmp_path / "run.ptck"
    ptt.save_training(path, **of_torch)
    ran = run("inspect", path)
    assert (ran.code, ran.err) == (0, "")
    said = {line.split()[0]: " ".join(line.split()[1:]) for line in ran.lines if line.startswith("  ") and line.split()}
    assert said["training"] == f"torch {torch.__version__}"
    assert said["step"] == "12,345"
    assert said["model"] == "Sequential, 29 parameters in 6 arrays, float32, 1 frozen"
    assert said["models/D"] == "Linear, 3 parameters in 2 arrays, bfloat16"
    assert "generator" not in said


def test_the_document_of_inspect_has_the_training(of_jax, of_torch, tmp_path):
    path = tmp_path / "run.ptck"
    ptj.save_training(path, **of_jax)
    document = inspected(path)
    check(document, "pytreeckpt-inspect/1")
    assert document["training"]["framework"] == f"jax {jax.__version__}"
    expected = [
        {"name": name, "role": role, "text": text} for name, (role, text) in facts(ptj.capture(**of_jax)).items()
    ]
    assert document["training"]["objects"] == expected
    assert "training" not in inspected(path, "state") or inspected(path, "state")["training"] is None
    ptc.save(by_hand(*(of_torch[name] for name in ("model", "optimizer", "scheduler", "scaler"))), path)
    document = inspected(path)
    check(document, "pytreeckpt-inspect/1")
    assert document["training"]["framework"] == ""
    assert {each["role"] for each in document["training"]["objects"]} >= {
        "module",
        "optimizer",
        "scaler",
        "rng",
        "value",
    }


def test_inspect_says_nothing_of_a_training_where_there_is_none(tmp_path):
    path = tmp_path / "t.ptck"
    for tree in ({"training": True}, {"training": {"layout": 2, "framework": "", "version": "", "roles": {}}}, [1]):
        ptc.save(tree, path)
        assert not any(line.startswith("  training") for line in run("inspect", path).lines)
        assert inspected(path).get("training") is None


@given(HEADERS, st.dictionaries(NAMES, FORGED, max_size=5))
def test_inspect_shows_any_forged_training_in_printable_lines(tmp_path_factory, header, objects):
    path = tmp_path_factory.mktemp("forged") / "t.ptck"
    clear = "\x1b[2J\u202e"
    header = {**header, "framework": header["framework"] + clear, "roles": {**header["roles"], clear: clear}}
    ptc.save({"training": header, **objects, clear: {"class": clear}}, path, durability="atomic")
    ran = run("inspect", path)
    assert (ran.code, ran.err) == (0, "")
    assert all(line.isprintable() for line in ran.lines)
    check(inspected(path), "pytreeckpt-inspect/1")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("losses", "3 values, the last 2 (best 1 at [1])"),
        ("val_loss", "3 values, the last 2 (best 1 at [1])"),
        ("top1-acc", "3 values, the last 2 (best 3 at [0])"),
        ("F1 scores", "3 values, the last 2 (best 3 at [0])"),
        ("grad_norm", "3 values, the last 2 (first 3)"),
        ("classes", "3 values, the last 2 (first 3)"),
    ],
)
def test_best_is_said_of_what_has_a_known_direction(name, text):
    tree = {"optimizer": {"state": {}, "param_groups": []}, name: [3.0, 1.0, 2.0]}
    assert (name, "value", text) in summarize(tree).facts
