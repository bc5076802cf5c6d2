"""Exports: parts, other names, other dtypes and other formats, and the report of what that came to."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from flax import nnx
from flax.training.train_state import TrainState
from hypothesis import given, settings
from hypothesis import strategies as st

import pytreeckpt as ptc
import pytreeckpt_jax as ptj
import pytreeckpt_torch as ptt
from pytreeckpt.operations import export, renamed
from pytreeckpt.operations.arithmetic import is_real_float, rounded
from pytreeckpt.operations.formats import FORMATS
from tests.exact import assert_same
from tests.strategies import ML_DTYPES


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.BatchNorm1d(30), torch.nn.Linear(30, 2))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The file of a training of torch, and its model."""
    path = tmp_path_factory.mktemp("export") / "run.ptck"
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(8, 40)).square().sum().backward()
    optimizer.step()
    ptt.save_training(path, model=model, optimizer=optimizer, step=1, metadata={"by": "me"})
    return path, model


def test_without_options_the_file_is_the_same_byte_for_byte(run, tmp_path):
    report = export(run[0], tmp_path / "out.ptck")
    assert (tmp_path / "out.ptck").read_bytes() == run[0].read_bytes()
    assert (report.path, report.format, report.nbytes_before) == (
        str(tmp_path / "out.ptck"),
        "ptck",
        report.nbytes_after,
    )
    assert (report.raw_nbytes_before, report.n_arrays_before) == (report.raw_nbytes_after, report.n_arrays_after)


def test_the_role_model_gives_the_weights_alone(run, tmp_path):
    path, model = run
    report = export(path, tmp_path / "out.ptck", role="model")
    found = ptc.restore(tmp_path / "out.ptck")
    fresh = net()
    fresh.load_state_dict(found)
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), model.state_dict().values(), strict=True))
    assert (report.parts, report.n_arrays_after) == (("model",), len(found))
    assert report.raw_nbytes_after == sum(value.nbytes for value in model.state_dict().values())
    assert report.n_elements_after == sum(value.numel() for value in model.state_dict().values())
    assert report.raw_nbytes_before > 2.5 * report.raw_nbytes_after
    assert report.nbytes_after < report.nbytes_before / 2


def test_other_roles_and_several_models_are_named(tmp_path):
    models = {"G": torch.nn.Linear(2, 2), "D": torch.nn.Linear(2, 1)}
    optimizers = {name: torch.optim.SGD(each.parameters()) for name, each in models.items()}
    ema = torch.nn.Linear(2, 2)
    ptt.save_training(tmp_path / "gan.ptck", model=models, ema=ema, optimizer=optimizers, step=3)
    report = export(tmp_path / "gan.ptck", tmp_path / "out.ptck", role="model")
    found = ptc.restore(tmp_path / "out.ptck")
    assert report.parts == ("model/G", "model/D", "ema")
    assert (list(found), list(found["model"]), list(found["ema"])) == (["model", "ema"], ["G", "D"], ["weight", "bias"])
    export(tmp_path / "gan.ptck", tmp_path / "out.ptck", role="optimizer")
    assert list(ptc.restore(tmp_path / "out.ptck")["optimizer"]) == ["G", "D"]
    with pytest.raises(
        ptc.StructureMismatchError, match=r"role='scaler': there is no such part; there is model, optim"
    ):
        export(tmp_path / "gan.ptck", tmp_path / "out.ptck", role="scaler")


def test_train_states_and_objects_of_nnx_give_their_weights(tmp_path):
    state = TrainState.create(apply_fn=None, params={"w": jnp.ones(3)}, tx=optax.adam(1e-3))
    model = nnx.Sequential(
        nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.BatchNorm(3, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1))
    )
    ptj.save_training(tmp_path / "state.ptck", state=state)
    ptj.save_training(tmp_path / "nnx.ptck", model=model)
    export(tmp_path / "state.ptck", tmp_path / "out.ptck", role="model")
    assert_same(ptc.restore(tmp_path / "out.ptck", to="numpy"), {"params": {"w": np.ones(3, np.float32)}})
    export(tmp_path / "nnx.ptck", tmp_path / "out.safetensors", role="model")
    names = set(safetensors.numpy.load_file(tmp_path / "out.safetensors"))
    assert {name.rpartition(".")[2] for name in names} == {"kernel", "bias", "scale", "mean", "var"}


def test_the_model_of_a_dict_by_hand_is_found(tmp_path):
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "a.pt")
    torch.save({"net": {"args": {"n": 1}, "state_dict": model.state_dict()}, "epoch": 1}, tmp_path / "b.pt")
    torch.save(model.state_dict(), tmp_path / "c.pt")
    for name, part in (("a.pt", "model"), ("b.pt", "net/state_dict"), ("c.pt", "the whole tree")):
        report = export(tmp_path / name, tmp_path / "out.safetensors", role="model")
        assert report.parts == (part,)
        assert set(safetensors.torch.load_file(tmp_path / "out.safetensors")) == set(model.state_dict())
    ptc.save({"a": 1}, tmp_path / "d.ptck")
    with pytest.raises(ptc.StructureMismatchError, match="does not say what its parts are"):
        export(tmp_path / "d.ptck", tmp_path / "out.ptck", role="model")


@pytest.mark.parametrize("name", FORMATS)
def test_a_part_goes_to_every_format(name, run, tmp_path):
    path, model = run
    out = tmp_path / f"out{FORMATS[name].suffixes[0]}"
    told = []
    report = export(path, out, at="model/state", select="0.*", rename={"0.": "first."}, progress=told.append)
    assert (report.format, report.n_arrays_after, report.path) == (name, 2, str(out))
    found = ptc.restore(out, to="numpy")
    assert_same(np.asarray(found["first.weight"]), model[0].weight.detach().numpy())
    assert sorted(found) == ["first.bias", "first.weight"]
    assert told
    assert told[-1].done_nbytes == told[-1].total_nbytes > 0


def test_large_exports_to_safetensors_are_sharded(run, tmp_path):
    report = export(run[0], tmp_path / "out.safetensors", role="model", max_shard_nbytes=4000)
    assert len(report.paths) > 2
    assert report.path.endswith("out.safetensors.index.json")
    again = export(run[0], tmp_path / "out.safetensors", role="model", max_shard_nbytes=4000)
    assert set(again.superseded) == set(report.paths[:-1])


def test_the_format_may_be_named(run, tmp_path):
    export(run[0], tmp_path / "weights", role="model", format="safetensors")
    assert len(safetensors.torch.load_file(tmp_path / "weights")) == 9


# Casting.

FLOATS = [np.dtype(each) for each in "efdg"] + [dtype for dtype in ML_DTYPES if is_real_float(dtype)]


def test_floats_are_rounded_and_the_report_says_what_that_loses(tmp_path):
    rng = np.random.default_rng(0)
    w = rng.standard_normal((300, 70)).astype(np.float32)
    tree = {
        "w": w,
        "tied": w,
        "exact": np.arange(100, dtype=np.float32),
        "bf16": np.ones(3, ml_dtypes.bfloat16),
        "tiny": np.array([1e-60, 0.0, np.nan, -np.inf]),
        "int": np.arange(5),
        "complex": np.ones(3, np.complex64),
        "number": 0.1,
        "scalar": np.float32(0.1),
    }
    ptc.save(tree, tmp_path / "a.ptck")
    cast = export(tmp_path / "a.ptck", tmp_path / "b.ptck", dtype="bfloat16").cast
    found = ptc.restore(tmp_path / "b.ptck")
    expected = w.astype(ml_dtypes.bfloat16)
    new = {"w": expected, "tied": expected, "exact": np.arange(100).astype(ml_dtypes.bfloat16)}
    new["tiny"] = np.array([0, 0, np.nan, -np.inf], np.float32).astype(ml_dtypes.bfloat16)
    assert_same(found, tree | new)
    error = np.abs(expected.astype(np.float64) - w)
    assert (cast.n_arrays, cast.n_inexact, cast.n_underflowed, cast.n_overflowed) == (3, 2, 1, 0)
    assert (cast.max_abs_error, cast.max_rel_error) == (error.max(), 1.0)
    exact = export(tmp_path / "a.ptck", tmp_path / "c.ptck", dtype="bfloat16", select=["exact", "bf16"]).cast
    assert (exact.n_arrays, exact.n_inexact, exact.max_abs_error) == (1, 0, 0.0)


@settings(max_examples=settings.default.max_examples // 2)
@given(start=st.sampled_from(FLOATS), end=st.sampled_from(["float16", "float32", "bfloat16", "float8_e4m3fn"]))
def test_any_float_goes_to_any_other(start, end, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cast")
    array = rounded(np.random.default_rng(1).uniform(-6, 6, (90, 40)), start)
    ptc.save({"w": array}, folder / "a.ptck", durability="atomic")
    export(folder / "a.ptck", folder / "b.ptck", dtype=end, durability="atomic")
    found = ptc.restore(folder / "b.ptck")["w"]
    assert_same(found, rounded(array, found.dtype))
    assert found.dtype.name == end


def test_overflow_is_an_error_unless_it_is_allowed(tmp_path):
    ptc.save({"a": np.ones(3), "w": np.array([1.0, 7e4, -1e5])}, tmp_path / "a.ptck")
    with pytest.raises(ptc.ConversionError, match="w: 2 finite values are beyond what float16 holds"):
        export(tmp_path / "a.ptck", tmp_path / "b.ptck", dtype="float16")
    assert not (tmp_path / "b.ptck").exists()
    cast = export(tmp_path / "a.ptck", tmp_path / "b.ptck", dtype="float16", allow_overflow=True).cast
    assert cast.n_overflowed == 2
    assert_same(ptc.restore(tmp_path / "b.ptck")["w"], np.array([1, np.inf, -np.inf], np.float16))


# Renaming.

TREE = {"encoder": {"fc.weight": 1, "fc2.weight": 2, "0": 3}, "head": {"w": [4, 5]}, "empty": {}}


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({}, TREE),
        (
            {"encoder": "bert"},
            {"bert": TREE["encoder"], "head": TREE["head"], "empty": {}},
        ),
        (
            {"encoder/fc": "encoder/dense"},
            TREE | {"encoder": {"dense.weight": 1, "fc2.weight": 2, "0": 3}},
        ),
        ({"encoder/": "", "empty": "e"}, {"fc.weight": 1, "fc2.weight": 2, "0": 3, "head": {"w": [4, 5]}, "e": {}}),
        ({"": "model/"}, {"model": TREE}),
        (
            {"head/w": "tail/x/y", "head": "never"},
            {"encoder": TREE["encoder"], "tail": {"x": {"y": [4, 5]}}, "empty": {}},
        ),
        (lambda name: name.replace("fc", "dense"), TREE | {"encoder": {"dense.weight": 1, "dense2.weight": 2, "0": 3}}),
    ],
)
def test_names_are_changed_by_their_beginnings_or_a_function(rules, expected):
    assert_same(renamed(TREE, rules), expected)


@pytest.mark.parametrize(
    ("rules", "message", "error"),
    [
        (
            {"encoder/fc": "encoder/fc2"},
            r"encoder/fc.weight, encoder/fc2.weight → encoder/fc2.weight",
            ptc.StructureMismatchError,
        ),
        ({"empty": "head"}, "head/w → head/w, in empty → head", ptc.StructureMismatchError),
        ({"encodr": "x"}, "'encodr' begins no name; there is encoder", ptc.StructureMismatchError),
        ({"empty": ""}, "no path of dict keys", ptc.PathError),
        ({"empty": "a[0]"}, "no path of dict keys", ptc.PathError),
        ({"empty": "a//b"}, "expected a key", ptc.PathError),
        (lambda name: 3, "a int for", TypeError),
    ],
)
def test_names_that_clash_or_make_no_sense_are_refused(rules, message, error):
    with pytest.raises(error, match=message):
        renamed(TREE, rules)


# What is refused.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": "model", "role": "model"}, "leave out one"),
        ({"dtype": "int8"}, "real floats"),
        ({"dtype": "float13"}, "no dtype"),
        ({"format": "hdf5"}, "one of ptck, safetensors"),
        ({"max_shard_nbytes": 10}, "is for safetensors"),
        ({"compression": "lz4"}, "compression"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message, run, tmp_path):
    with pytest.raises(ValueError, match=message):
        export(run[0], tmp_path / "out.ptck", **options)
    assert not list(tmp_path.iterdir())


def test_what_a_format_does_not_hold_is_refused_with_what_to_do(run, tmp_path):
    with pytest.raises(ptc.UnsupportedTypeError, match='out.npz: this format holds arrays alone(?s:.*)role="model"'):
        export(run[0], tmp_path / "out.npz")
    with pytest.raises(ptc.PathError, match="model has no stat; there is model/state"):
        export(run[0], tmp_path / "out.ptck", at="model/stat")
    with pytest.raises(ValueError, match="end it in one of .ptck"):
        export(run[0], tmp_path / "out.xyz")
    export(run[0], tmp_path / "out.ptck", role="model")
    with pytest.raises(ptc.CheckpointExistsError):
        export(run[0], tmp_path / "out.ptck", if_exists="error")


def test_a_file_may_replace_itself(run, tmp_path):
    (tmp_path / "a.ptck").write_bytes(run[0].read_bytes())
    export(tmp_path / "a.ptck", tmp_path / "a.ptck", role="model")
    assert "0.weight" in ptc.restore(tmp_path / "a.ptck")


def test_keys_of_jax_stay_what_they_are(tmp_path):
    ptc.save({"key": jax.random.key(0), "w": jnp.ones(300)}, tmp_path / "a.ptck")
    export(tmp_path / "a.ptck", tmp_path / "b.ptck", dtype="float16")
    found = ptc.restore(tmp_path / "b.ptck")
    assert jnp.issubdtype(found["key"].dtype, jax.dtypes.prng_key)
    assert found["w"].dtype == jnp.float16
