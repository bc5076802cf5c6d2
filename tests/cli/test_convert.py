"""`convert`: what is written is what the packages of the formats read, and what is not decided is not written."""

import json
import re
import shlex
import subprocess
import sys
import tempfile
import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import flax.serialization
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pytreeckpt as ptc
import pytreeckpt_torch as ptt
from pytreeckpt import convert
from pytreeckpt.checkpoint import Checkpoint
from pytreeckpt.cli import convert as command
from pytreeckpt.cli import convert_leaves, convert_making, convert_steps
from pytreeckpt.cli.convert_job import SCHEMES
from pytreeckpt.operations import stored_files
from pytreeckpt.operations.formats import FORMATS
from tests.cli.convertible import (
    LinenNet,
    expected_variables,
    linen_training,
    linen_variables,
    same_arrays,
    trained_net,
)
from tests.cli.documented import check
from tests.cli.running import REPOSITORY, run, run_in_terminal
from tests.cli.trees import TREES


def converted(*arguments):
    ran = run("convert", *arguments)
    assert (ran.code, ran.err) == (0, ""), ran.err or ran.out
    return ran


def refused(*arguments, code=2):
    ran = run("convert", *arguments)
    assert (ran.code, ran.out) == (code, "")
    return ran.err


def undecided(*arguments):
    ran = run("convert", *arguments)
    assert (ran.code, ran.err) == (1, "")
    return ran


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A training of torch in many files, and the structure of one in flax."""
    path = tmp_path_factory.mktemp("convertible")
    net, optimizer = trained_net()
    ptt.save_training(path / "run.ptck", model=net, optimizer=optimizer, epoch=3)
    ptc.save(net.state_dict(), path / "net.ptck")
    torch.save(net.state_dict(), path / "net.pt")
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}, path / "run.pt")
    safetensors.torch.save_file(net.state_dict(), path / "net.safetensors")
    ptc.save(linen_training(), path / "training.ptck")
    ptc.save(linen_variables(), path / "variables.ptck")
    (path / "variables.msgpack").write_bytes(flax.serialization.to_bytes(linen_variables()))
    return path


@pytest.fixture(scope="module")
def net():
    return trained_net()[0]


def loaded(path):
    """What the format's own package reads, as a flat dict of numpy arrays."""
    match Path(path).suffix:
        case ".ptck":
            tree = ptc.restore(path)
        case ".pt":
            tree = torch.load(path, weights_only=True)
            assert all(isinstance(each, torch.Tensor) for each in tree.values())
        case ".safetensors":
            tree = safetensors.torch.load_file(path)
        case ".npz":
            with np.load(path) as file:
                tree = dict(file)
        case ".msgpack":
            tree = flax.serialization.msgpack_restore(Path(path).read_bytes())
    return {name: np.asarray(each.detach()) if isinstance(each, torch.Tensor) else each for name, each in tree.items()}


# Formats.

SUFFIXES = [suffix for each in FORMATS.values() for suffix in each.suffixes[:1]]


@pytest.mark.parametrize("first", SUFFIXES)
@pytest.mark.parametrize("second", SUFFIXES)
def test_a_state_dict_goes_from_any_format_to_any_other(first, second, folder, net, tmp_path):
    one, other = tmp_path / f"one{first}", tmp_path / f"other{second}"
    converted(folder / "net.pt", one)
    ran = converted(one, other)
    assert ran.lines[0] == str(other)
    same_arrays(loaded(other), {name: each.numpy() for name, each in net.state_dict().items()})


def test_the_command_line_names_the_formats_and_schemes_that_there_are():
    assert list(FORMATS) == list(command.FORMATS)
    assert list(SCHEMES) == list(command.SCHEMES)


@given(TREES)
@settings(max_examples=40)
def test_any_tree_of_ours_comes_out_byte_for_byte(tree):
    with tempfile.TemporaryDirectory() as name:
        one, other = Path(name, "one.ptck"), Path(name, "other.ptck")
        ptc.save(tree, one, metadata={"step": 3})
        converted(one, other)
        assert one.read_bytes() == other.read_bytes()


@given(TREES, st.sampled_from(sorted(FORMATS)))
def test_any_tree_is_written_in_a_format_or_refused_and_a_dry_run_knows_which(tree, name):
    with tempfile.TemporaryDirectory() as folder:
        one, other = Path(folder, "one.ptck"), Path(folder, "other" + FORMATS[name].suffixes[0])
        ptc.save({"root": tree}, one)
        trial, ran = run("convert", one, other, "--dry-run"), run("convert", one, other)
        assert ran.code in {0, 2}
        assert (trial.code, trial.err) == (ran.code, ran.err)
        assert other.exists() == (ran.code == 0)
        if ran.code == 0:
            ptc.open(other).close()


def test_a_whole_training_comes_out_byte_for_byte(folder, tmp_path):
    converted(folder / "run.ptck", tmp_path / "run.ptck")
    assert (tmp_path / "run.ptck").read_bytes() == (folder / "run.ptck").read_bytes()


def test_a_whole_training_goes_into_a_torch_file_and_back(folder, tmp_path):
    converted(folder / "run.pt", tmp_path / "run.ptck")
    converted(tmp_path / "run.ptck", tmp_path / "run.pt")
    found, expected = torch.load(tmp_path / "run.pt"), torch.load(folder / "run.pt")
    assert found["epoch"] == 3
    assert found["optimizer"]["param_groups"] == expected["optimizer"]["param_groups"]
    for name, tensor in expected["model"].items():
        assert torch.equal(found["model"][name], tensor)
    for number, state in expected["optimizer"]["state"].items():
        assert all(torch.equal(found["optimizer"]["state"][number][key], each) for key, each in state.items())


def test_arrays_of_numpy_stay_so_beside_tensors_and_become_tensors_without(tmp_path):
    ptc.save({"w": torch.ones(3), "key": np.arange(4)}, tmp_path / "mixed.ptck")
    ptc.save({"w": np.ones(3), "deep": [np.arange(4)]}, tmp_path / "plain.ptck")
    converted(tmp_path / "mixed.ptck", tmp_path / "mixed.pt")
    converted(tmp_path / "plain.ptck", tmp_path / "plain.pt")
    mixed = torch.load(tmp_path / "mixed.pt", weights_only=False)
    assert isinstance(mixed["w"], torch.Tensor)
    assert isinstance(mixed["key"], np.ndarray)
    plain = torch.load(tmp_path / "plain.pt", weights_only=True)
    assert isinstance(plain["w"], torch.Tensor)
    assert plain["deep"][0].tolist() == [0, 1, 2, 3]


def test_tied_weights_stay_tied(tmp_path):
    weight = torch.randn(5, 5)
    torch.save({"a": weight, "b": weight, "c": weight.clone()}, tmp_path / "tied.pt")
    converted(tmp_path / "tied.pt", tmp_path / "tied.ptck")
    converted(tmp_path / "tied.ptck", tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt")
    assert again["a"].data_ptr() == again["b"].data_ptr() != again["c"].data_ptr()
    ran = converted(tmp_path / "tied.ptck", tmp_path / "tied.safetensors")
    assert "1 names have no array of their own" in ran.out
    with safetensors.safe_open(tmp_path / "tied.safetensors", "numpy") as file:
        assert sorted(file.keys()) == ["a", "c"]
        assert file.metadata() == {"b": "a", "format": "pt"}


def test_channels_last_stays_so(tmp_path):
    images = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    torch.save({"images": images}, tmp_path / "one.pt")
    converted(tmp_path / "one.pt", tmp_path / "two.ptck")
    converted(tmp_path / "two.ptck", tmp_path / "three.pt")
    found = torch.load(tmp_path / "three.pt")["images"]
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, images)


def test_metadata_goes_along_where_it_can(tmp_path):
    ptc.save({"w": np.ones(3)}, tmp_path / "texts.ptck", metadata={"step": "3"})
    ptc.save({"w": np.ones(3)}, tmp_path / "numbers.ptck", metadata={"step": 3})
    converted(tmp_path / "texts.ptck", tmp_path / "texts.safetensors")
    converted(tmp_path / "texts.safetensors", tmp_path / "again.ptck")
    with ptc.open(tmp_path / "again.ptck") as again:
        assert again.metadata == {"step": "3"}
    assert "the metadata are left out" in converted(tmp_path / "numbers.ptck", tmp_path / "numbers.safetensors").out
    for suffix in (".npz", ".pt", ".msgpack"):
        assert "the metadata are left out" in converted(tmp_path / "texts.ptck", tmp_path / f"texts{suffix}").out
        assert "the metadata are" not in converted(tmp_path / "again.ptck", tmp_path / "last.ptck").out


def test_large_safetensors_are_several_files_and_one_again(tmp_path):
    weights = {f"w{number}": np.random.default_rng(number).standard_normal(1000) for number in range(5)}
    safetensors.numpy.save_file(weights, tmp_path / "whole.safetensors")
    (tmp_path / "many").mkdir()
    ran = converted(
        tmp_path / "whole.safetensors", tmp_path / "many" / "model.safetensors", "--max-shard-size", "16KiB"
    )
    assert "in 4 files" in ran.out
    assert len(list((tmp_path / "many").glob("*.safetensors"))) == 3
    converted(tmp_path / "many", tmp_path / "one.ptck")
    same_arrays(loaded(tmp_path / "one.ptck"), weights)
    converted(tmp_path / "many" / "model.safetensors.index.json", tmp_path / "one.safetensors")
    same_arrays(loaded(tmp_path / "one.safetensors"), weights)


def test_a_part_is_selected_by_its_path(folder, net, tmp_path):
    converted(folder / "run.ptck", tmp_path / "net.safetensors", "--select", "model/state")
    same_arrays(loaded(tmp_path / "net.safetensors"), {name: each.numpy() for name, each in net.state_dict().items()})
    assert "there is model/layers, model/buffers, model/state" in refused(
        folder / "run.ptck", tmp_path / "x.npz", "--select", "model/weights"
    )
    assert "cannot read the path" in refused(folder / "run.ptck", tmp_path / "x.npz", "--select", "model[")


def test_what_a_format_cannot_hold_is_listed_with_a_way_out(folder, tmp_path):
    error = refused(folder / "run.pt", tmp_path / "run.safetensors")
    assert f"{tmp_path / 'run.safetensors'}: this format holds arrays alone" in error
    assert "\n  optimizer/param_groups[0]/lr: float\n" in error
    assert "such as --select model;" in error
    assert "--select model/state;" in refused(folder / "run.ptck", tmp_path / "run.npz")
    error = refused(folder / "run.ptck", tmp_path / "x.npz", "--target", folder / "run.ptck")
    assert f"--target {folder / 'run.ptck'}:model/state;" in error
    ptc.save({"w": np.zeros(3, ml_dtypes.bfloat16)}, tmp_path / "bf16.ptck")
    assert "w: bfloat16" in refused(tmp_path / "bf16.ptck", tmp_path / "bf16.npz")
    ptc.save({"w": np.zeros(3, "M8[s]")}, tmp_path / "time.ptck")
    assert "w: datetime64" in refused(tmp_path / "time.ptck", tmp_path / "time.safetensors")
    ptc.save({"state": optax_state()}, tmp_path / "named.ptck")
    assert "--select" in refused(tmp_path / "named.ptck", tmp_path / "named.pt")
    ptc.save({"set": {1, 2}}, tmp_path / "set.ptck")
    assert "set" in refused(tmp_path / "set.ptck", tmp_path / "set.msgpack")
    assert not [*tmp_path.glob("*.safetensors"), *tmp_path.glob("*.npz"), *tmp_path.glob("named.pt")]


def optax_state():
    return linen_training()["opt_state"]


# Frameworks.


def test_a_training_becomes_variables_of_linen(folder, net, tmp_path):
    ran = converted(folder / "run.ptck", tmp_path / "variables.msgpack", "--to", "linen")
    variables = flax.serialization.msgpack_restore((tmp_path / "variables.msgpack").read_bytes())
    same_arrays(variables, expected_variables(net))
    images = torch.randn(2, 3, 6, 6)
    outputs = LinenNet().apply(variables, jnp.asarray(images.numpy().transpose(0, 2, 3, 1)))
    assert np.abs(np.asarray(outputs) - net.eval()(images).detach().numpy()).max() < 1e-5
    assert "left alone: optimizer, epoch, rng" in ran.out
    assert "optax.chain(optax.scale_by_adam" in ran.out


@pytest.mark.parametrize("scheme", ["linen", "flax", "nnx", "equinox"])
def test_each_scheme_gives_the_tree_that_the_library_plans(scheme, folder, tmp_path):
    converted(folder / "run.ptck", tmp_path / "out.ptck", "--to", scheme)
    with ptc.open(folder / "run.ptck") as checkpoint:
        expected, _ = convert.plan(checkpoint, SCHEMES[scheme]).apply(checkpoint)
    tree = ptc.restore(tmp_path / "out.ptck")
    assert ptc.restore(tmp_path / "out.ptck", to="numpy").keys() == expected.keys()
    for path, leaf in leaves_by_path(tree):
        assert type(leaf).__module__.startswith("jax"), path
    assert [path for path, _ in leaves_by_path(tree)] == [path for path, _ in leaves_by_path(expected)]
    for (_, a), (_, b) in zip(leaves_by_path(tree), leaves_by_path(expected)):
        same_arrays(a, b)


def leaves_by_path(tree):
    return sorted((str(leaf.path), leaf.value) for leaf in convert.leaves.leaves_of(tree))


def test_a_target_gives_the_structure_and_the_optimizer_comes_along(folder, net, tmp_path):
    converted(folder / "run.ptck", tmp_path / "jax.ptck", "--target", folder / "training.ptck")
    template = linen_training()
    found = ptc.restore(tmp_path / "jax.ptck", like=template)
    same_arrays(found["variables"], expected_variables(net))
    adam = found["opt_state"][0]
    assert type(adam) is type(template["opt_state"][0])
    assert adam.count == 3
    moments = ptc.restore(folder / "run.ptck", to="numpy")["optimizer"]["state"]["model"]
    same_arrays(adam.mu["head"]["kernel"], moments["head.weight"]["exp_avg"].T)
    same_arrays(adam.nu["stem"]["kernel"], moments["stem.weight"]["exp_avg_sq"].transpose(2, 3, 1, 0))


def test_and_from_there_back_to_torch(folder, net, tmp_path):
    converted(folder / "run.ptck", tmp_path / "jax.ptck", "--target", folder / "training.ptck")
    other, optimizer = trained_net(steps=1)
    ptt.save_training(tmp_path / "other.ptck", model=other, optimizer=optimizer, epoch=0)
    converted(tmp_path / "jax.ptck", tmp_path / "back.ptck", "--target", tmp_path / "other.ptck")
    assert ptt.resume(tmp_path / "back.ptck", model=other, optimizer=optimizer, rng=False)["epoch"] == 0
    expected = net.state_dict()
    for name, tensor in other.state_dict().items():
        if name != "norm.num_batches_tracked":
            assert torch.equal(tensor, expected[name]), name
    assert {state["step"].item() for state in optimizer.state.values()} == {3.0}
    select, target = ("--select", "variables"), ("--target", f"{tmp_path / 'other.ptck'}:model/state")
    converted(tmp_path / "jax.ptck", tmp_path / "back.pt", *select, *target)
    state = torch.load(tmp_path / "back.pt", weights_only=True)
    assert list(state) == list(expected)
    assert torch.equal(state["head.weight"], expected["head.weight"])
    converted(tmp_path / "jax.ptck", tmp_path / "back.safetensors", *select, *target)
    assert torch.equal(loaded_torch(tmp_path / "back.safetensors")["head.weight"], expected["head.weight"])


def loaded_torch(path):
    return safetensors.torch.load_file(path)


def test_what_has_no_recorded_layers_needs_kinds(folder, net, tmp_path):
    out, target = tmp_path / "out.msgpack", ("--target", folder / "variables.msgpack")
    ran = undecided(folder / "net.pt", out, *target)
    assert "ambiguous (3)" in ran.lines
    assert any("decide with --kind 'blocks/*=Linear':  ×3" in line for line in ran.lines)
    assert "  wrote  nothing: not decided, see below" in ran.lines
    assert not out.exists()
    converted(folder / "net.pt", out, *target, "--kind", "blocks.*=Linear")
    same_arrays(flax.serialization.msgpack_restore(out.read_bytes()), expected_variables(net))
    rules = tmp_path / "rules.toml"
    rules.write_text('[[kind]]\nlayers = "blocks.{i}"\nkind = "Linear"\n')
    converted(folder / "net.safetensors", tmp_path / "again.msgpack", *target, "--rules", rules)
    assert (tmp_path / "again.msgpack").read_bytes() == out.read_bytes()


def test_one_layer_that_is_ambiguous_is_named_as_it_is(tmp_path):
    torch.save({"deep.query.weight": torch.ones(4, 4)}, tmp_path / "one.pt")
    ptc.save({"params": {"deep": {"query": {"kernel": np.ones((4, 4), np.float32)}}}}, tmp_path / "one.ptck")
    ran = undecided(tmp_path / "one.pt", tmp_path / "out.ptck", "--target", tmp_path / "one.ptck")
    assert "decide with --kind deep/query=Linear:" in ran.out
    converted(
        tmp_path / "one.pt", tmp_path / "out.ptck", "--target", tmp_path / "one.ptck", "--kind", "deep/query=Linear"
    )


def test_what_is_left_over_is_listed_and_may_be_waived(folder, tmp_path):
    tree = {name: each for name, each in ptc.restore(folder / "net.pt").items() if not name.startswith("head")}
    torch.save(tree | {"extra.weight": torch.ones(7)}, tmp_path / "other.pt")
    rest = ("--target", folder / "variables.ptck", "--kind", "blocks.*=Linear")
    ran = undecided(tmp_path / "other.pt", tmp_path / "out.ptck", *rest)
    assert "unused, of the source (1)" in ran.lines
    assert "missing, of the target (2)" in ran.lines
    waived = ("--waive-unused", "extra.**", "--waive-missing", "head/*")
    ran = converted(tmp_path / "other.pt", tmp_path / "out.ptck", *rest, *waived)
    assert "left over, as waived: of the target" in ran.lines
    # It keeps the target's values.
    same_arrays(ptc.restore(tmp_path / "out.ptck")["params"]["head"], linen_variables()["params"]["head"])


def test_narrower_dtypes_are_rounded_to_if_that_is_said(folder, tmp_path):
    half = ptc.restore(folder / "variables.ptck", to="numpy")
    half["params"]["head"] = {key: each.astype(ml_dtypes.bfloat16) for key, each in half["params"]["head"].items()}
    ptc.save(half, tmp_path / "half.ptck")
    out = tmp_path / "out.ptck"
    ran = undecided(folder / "run.ptck", out, "--target", tmp_path / "half.ptck")
    assert "does not fit (2)" in ran.lines
    converted(folder / "run.ptck", out, "--target", tmp_path / "half.ptck", "--cast")
    found = ptc.restore(out)["params"]
    assert found["head"]["bias"].dtype == ml_dtypes.bfloat16
    assert found["stem"]["bias"].dtype == np.float32


# Dtypes, and the way back.


def test_a_dtype_is_for_parameters_and_buffers(folder, net, tmp_path):
    ran = converted(folder / "run.ptck", tmp_path / "half.ptck", "--dtype", "bfloat16")
    assert "float32 to bfloat16" in ran.out
    found, expected = ptc.restore(tmp_path / "half.ptck"), ptc.restore(folder / "run.ptck")
    for name, tensor in expected["model"]["state"].items():
        wanted = tensor.bfloat16() if tensor.is_floating_point() else tensor
        assert torch.equal(found["model"]["state"][name], wanted)
    assert found["optimizer"]["state"]["model"]["head.weight"]["exp_avg"].dtype == torch.float32
    assert found["training"] == expected["training"]
    converted(folder / "run.ptck", tmp_path / "half.npz", "--select", "model/state", "--dtype", "float16")
    same_arrays(loaded(tmp_path / "half.npz")["head.bias"], net.head.bias.detach().half().numpy())


@pytest.mark.parametrize("dtype", ["float16", "float8_e4m3fn"])
def test_values_that_a_dtype_has_no_room_for_are_counted_and_nothing_is_written(dtype, tmp_path):
    values = np.array([1e30, -1e30, 1.0, np.nan], np.float32)
    ptc.save({"params": {"a": values, "b": values[2:]}}, tmp_path / "one.ptck")
    error = refused(tmp_path / "one.ptck", tmp_path / "out.ptck", "--dtype", dtype, code=1)
    assert f"params/a: 2 finite values are beyond what {dtype} holds" in error
    assert [each.name for each in tmp_path.iterdir()] == ["one.ptck"]
    converted(tmp_path / "one.ptck", tmp_path / "out.ptck", "--dtype", dtype, "--select", "params/b")


def test_rounding_is_undone_to_the_bit(folder, tmp_path):
    half, kept, back = tmp_path / "half.ptck", tmp_path / "kept.ptck", tmp_path / "back.ptck"
    converted(folder / "run.ptck", half, "--dtype", "float16", "--residuals", kept)
    converted(half, back, "--invert", "--residuals", kept)
    assert back.read_bytes() == (folder / "run.ptck").read_bytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("scheme", ["linen", "nnx", "equinox"])
def test_the_way_back_is_exact_through_any_format(suffix, scheme, folder, tmp_path):
    out, kept, back = tmp_path / f"out{suffix}", tmp_path / "kept.ptck", tmp_path / "back.ptck"
    converted(folder / "run.ptck", out, "--to", scheme, "--residuals", kept)
    ran = converted(out, back, "--invert", "--residuals", kept)
    assert f"  back   by {kept}" in ran.lines
    assert back.read_bytes() == (folder / "run.ptck").read_bytes()
    # What the way there has kept is little beside what it has left alone.
    with ptc.open(kept) as checkpoint:
        assert list(checkpoint.tree["residuals"]) == ["model/state/norm.num_batches_tracked"]


def test_the_way_back_has_the_optimizer_and_the_metadata(folder, tmp_path):
    out, kept, back = tmp_path / "out.ptck", tmp_path / "kept.ptck", tmp_path / "back.ptck"
    net, optimizer = trained_net()
    tree = ptt.capture(model=net, optimizer=optimizer)
    ptc.save(tree, tmp_path / "run.ptck", metadata={"commit": "a1b2c3"})
    converted(tmp_path / "run.ptck", out, "--target", folder / "training.ptck", "--residuals", kept)
    converted(out, back, "--invert", "--residuals", kept)
    assert back.read_bytes() == (tmp_path / "run.ptck").read_bytes()


def test_a_safetensors_file_comes_back_with_its_metadata(folder, net, tmp_path):
    one, out, kept, back = (
        tmp_path / name for name in ("one.safetensors", "out.ptck", "kept.ptck", "back.safetensors")
    )
    safetensors.torch.save_file(net.state_dict(), one, metadata={"format": "pt", "by": "hand"})
    target = ("--target", folder / "variables.ptck", "--kind", "blocks.*=Linear")
    converted(one, out, *target, "--residuals", kept)
    converted(out, back, "--invert", "--residuals", kept)
    with safetensors.safe_open(back, "numpy") as file:
        assert file.metadata() == {"format": "pt", "by": "hand"}
    same_arrays(loaded(back), loaded(one))
    converted(one, tmp_path / "half.npz", "--dtype", "float16", "--residuals", kept)
    converted(tmp_path / "half.npz", back, "--invert", "--residuals", kept)
    same_arrays(loaded(back), loaded(one))


def test_a_pair_that_is_tied_comes_back_tied_through_safetensors(tmp_path):
    weight = torch.randn(6, 4)
    torch.save({"wte.weight": weight, "head.weight": weight}, tmp_path / "one.pt")
    out, kept = tmp_path / "out.safetensors", tmp_path / "kept.ptck"
    converted(tmp_path / "one.pt", out, "--dtype", "bfloat16", "--residuals", kept)
    converted(out, tmp_path / "back.pt", "--invert", "--residuals", kept)
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert torch.equal(back["wte.weight"], weight)
    assert back["wte.weight"].data_ptr() == back["head.weight"].data_ptr()


def test_what_has_been_trained_on_goes_back_too(folder, tmp_path):
    out, kept, back = tmp_path / "out.ptck", tmp_path / "kept.ptck", tmp_path / "back.ptck"
    converted(folder / "run.ptck", out, "--to", "linen", "--residuals", kept)
    trained = ptc.restore(out, to="numpy")
    trained["params"]["head"]["bias"] += 1
    ptc.save(trained, out)
    converted(out, back, "--invert", "--residuals", kept)
    state = ptc.restore(back)["model"]["state"]
    assert np.array_equal(state["head.bias"], trained["params"]["head"]["bias"])
    assert torch.equal(state["norm.num_batches_tracked"], torch.tensor(3))


def test_a_residuals_file_has_to_be_one_and_to_fit(folder, tmp_path):
    kept = tmp_path / "kept.ptck"
    assert "no file that --residuals has written" in refused(
        folder / "net.pt", tmp_path / "x.pt", "--invert", "--residuals", folder / "run.ptck"
    )
    converted(folder / "run.ptck", tmp_path / "out.ptck", "--to", "linen", "--residuals", kept)
    error = refused(folder / "net.pt", tmp_path / "x.ptck", "--invert", "--residuals", kept, code=1)
    assert "params/stem/bias: there is none" in error
    assert not (tmp_path / "x.ptck").exists()
    with ptc.open(kept) as checkpoint:
        tree, metadata = checkpoint.restore(), checkpoint.metadata
    ptc.save(tree, tmp_path / "newer.ptck", metadata={**metadata, "schema": "pytreeckpt-residuals/2"})
    rest = ("--invert", "--residuals", tmp_path / "newer.ptck")
    assert "knows pytreeckpt-residuals/1" in refused(tmp_path / "out.ptck", tmp_path / "x.ptck", *rest, code=1)
    ptc.save({"plan": 3}, tmp_path / "newer.ptck", metadata=metadata)
    assert "is damaged" in refused(tmp_path / "out.ptck", tmp_path / "x.ptck", *rest)


# What is reported.


def test_a_dry_run_says_all_and_writes_nothing(folder, tmp_path):
    before = sorted(tmp_path.iterdir())
    ran = converted(folder / "run.ptck", tmp_path / "out.ptck", "--to", "linen", "--dry-run")
    assert "  wrote  nothing: --dry-run; all is decided" in ran.lines
    assert any("model/state/head.weight → params/head/kernel" in line for line in ran.lines)
    ran = undecided(folder / "net.pt", tmp_path / "out.ptck", "--target", folder / "variables.ptck", "--dry-run")
    assert "ambiguous (3)" in ran.lines
    for suffix in (".safetensors", ".npz"):
        assert "holds arrays alone" in refused(folder / "run.ptck", tmp_path / f"out{suffix}", "--dry-run")
    for suffix in SUFFIXES:
        converted(folder / "net.pt", tmp_path / f"out{suffix}", "--dry-run")
    assert sorted(tmp_path.iterdir()) == before


def test_the_document_is_as_documented(folder, tmp_path):
    out = tmp_path / "out.ptck"
    document = converted(folder / "run.ptck", out, "--target", folder / "training.ptck", "--json").document
    check(document, "pytreeckpt-convert/1")
    assert document["ok"]
    assert document["source"] == {"path": str(folder / "run.ptck"), "select": None, "format": "pytreeckpt"}
    assert document["destination"]["nbytes"] == out.stat().st_size
    assert sum(row["count"] for row in document["mapped"]) == 39
    assert convert.from_document(document["plan"]).conventions == ("torch", "flax")
    document = undecided(
        folder / "net.pt", out, "--target", f"{folder / 'training.ptck'}:variables", "--json", "--dry-run"
    ).document
    check(document, "pytreeckpt-convert/1")
    assert not document["ok"]
    assert document["plan"] is None
    assert len(document["problems"]["ambiguous"]) == 3
    assert document["target"]["select"] == "variables"
    document = converted(folder / "net.pt", tmp_path / "out.npz", "--json").document
    check(document, "pytreeckpt-convert/1")
    assert document["plan"] is document["conventions"] is None
    document = converted(folder / "run.ptck", tmp_path / "x.ptck", "--to", "nnx", "--json", "--dry-run").document
    check(document, "pytreeckpt-convert/1")
    assert document["destination"]["files"] is None
    assert document["plan"]["schema"] == "pytreeckpt-plan/1"


def test_the_plan_is_the_one_of_the_library(folder, tmp_path):
    converted(folder / "run.ptck", tmp_path / "out.ptck", "--to", "linen", "--plan", tmp_path / "plan.json")
    found = convert.from_document(json.loads((tmp_path / "plan.json").read_text()))
    with ptc.open(folder / "run.ptck") as checkpoint:
        assert found == convert.plan(checkpoint, "linen")


def test_names_from_files_are_escaped(tmp_path):
    evil = "\x1b[31mred\u202e"
    torch.save({f"{evil}.weight": torch.ones(4, 4), f"{evil}.bias": torch.ones(4)}, tmp_path / "evil.pt")
    ptc.save({"params": {evil: {"kernel": np.ones((4, 4), np.float32)}}, "n": 1}, tmp_path / "evil.ptck")
    ran = undecided(tmp_path / "evil.pt", tmp_path / "out.ptck", "--target", tmp_path / "evil.ptck", "--dry-run")
    assert "\\x1b[31mred\\u202e" in ran.out
    assert "\x1b" not in ran.out
    error = refused(tmp_path / "evil.ptck", tmp_path / "out.npz", "--select", f'params/"{evil}"/nothing')
    assert "\x1b" not in error
    ran = converted(tmp_path / "evil.pt", tmp_path / "out.pt", "--dtype", "float16")
    assert "\x1b" not in ran.out


def test_a_name_that_is_shell_code_is_quoted_where_it_may_be_copied(tmp_path):
    evil = "x; touch $(pwd) 'y'"
    torch.save({f"{evil}.weight": torch.ones(4, 4), f"{evil}.bias": torch.ones(4)}, tmp_path / "evil.pt")
    kernel = {"kernel": np.ones((4, 4), np.float32), "bias": np.ones(4, np.float32)}
    ptc.save({"params": {evil: kernel}}, tmp_path / "evil.ptck")
    arguments = (tmp_path / "evil.pt", tmp_path / "out.ptck", "--target", tmp_path / "evil.ptck")
    ran = undecided(*arguments)
    (advice,) = re.findall(r"decide with (--kind .*):$", ran.out, re.MULTILINE)
    assert shlex.split(advice) == ["--kind", f"{evil}=Linear"]
    converted(*arguments, *shlex.split(advice))


def test_a_narrow_terminal_has_two_lines_for_a_row(folder, tmp_path):
    arguments = ("-m", "pytreeckpt", "convert", folder / "run.ptck", tmp_path / "out.ptck", "--to", "linen")
    code, wide = run_in_terminal(sys.executable, *arguments, width=200, NO_COLOR="1")
    assert code == 0
    assert "model/state/stem.bias → params/stem/bias " in wide
    assert any(line.startswith("  model/state/stem.weight") and "permute" in line for line in wide.splitlines())
    code, narrow = run_in_terminal(sys.executable, *arguments, width=80, NO_COLOR="1")
    assert code == 0
    assert "  model/state/stem.weight → params/stem/kernel" in narrow.splitlines()
    # A path is not broken, and may be long here.
    others = [line for line in narrow.splitlines() if str(tmp_path.parent) not in line and "→" not in line]
    assert others
    assert not [line for line in others if len(line) > 80]
    code, painted = run_in_terminal(sys.executable, *arguments)
    assert code == 0
    assert "\x1b[1m" in painted


# Faults and mistakes.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{net.pt}"], "DST"),
        (["{net.pt}", "{out}.xyz"], "cannot tell which format"),
        (["{net.pt}", "{out}.ptck", "--to", "npz"], "ends as a file of ptck does"),
        (["{net.pt}", "{out}.ptck", "--to", "torch"], "for a model of torch, give --target"),
        (["{net.pt}", "{out}.ptck", "--to", "keras"], "invalid choice"),
        (["{net.pt}", "{out}.xyz", "--to", "linen"], "end it in one of .ptck"),
        (["{none.pt}", "{out}.ptck"], "there is no checkpoint"),
        (["{net.pt}", "{out}.ptck", "--target", "{none.ptck}"], "there is no checkpoint"),
        (["{net.pt}", "{out}.ptck", "--target", "{net.pt}:nothing"], "nothing"),
        (["{net.pt}", "{out}.ptck", "--to", "linen", "--target", "{net.pt}"], "leave out --to linen"),
        (["{net.pt}", "{out}.ptck", "--kind", "a=Linear"], "nothing to decide"),
        (["{net.pt}", "{out}.ptck", "--waive-unused", "a"], "--waive-unused: between formats"),
        (["{net.pt}", "{out}.ptck", "--rules", "{none.toml}"], "nothing to decide"),
        (["{net.pt}", "{out}.ptck", "--to", "linen", "--rules", "{none.toml}"], "there is no file of rules"),
        (["{net.pt}", "{out}.ptck", "--to", "linen", "--rules", "{bad.toml}"], "there is no [[renames]]"),
        (["{net.pt}", "{out}.ptck", "--to", "linen", "--rules", "{binary.toml}"], "not in UTF-8"),
        (["{net.pt}", "{out}.ptck", "--to", "linen", "--rules", "{}"], "cannot read"),
        (["{net.pt}", "{out}.ptck", "--to", "linen", "--kind", "a"], "PATTERN=KIND"),
        (["{net.pt}", "{out}.ptck", "--to", "linen", "--kind", "a=Linea"], "no table knows a Linea; there is Linear"),
        (["{net.pt}", "{out}.ptck", "--to", "linen", "--kind", "a..b=Linear"], "cannot read the pattern"),
        (["{net.pt}", "{out}.ptck", "--to", "linen", "--waive-missing", ".."], "cannot read the pattern"),
        (["{net.pt}", "{out}.ptck", "--dtype", "int8"], "--dtype int8"),
        (["{net.pt}", "{out}.ptck", "--dtype", "floaty"], "--dtype floaty"),
        (["{net.pt}", "{out}.ptck", "--cast"], "--cast rounds to the dtypes of --target"),
        (["{net.pt}", "{out}.ptck", "--target", "{net.pt}", "--cast", "--dtype", "float16"], "leave out one"),
        (["{net.pt}", "{out}.ptck", "--plan", "{out}.json"], "nothing changes"),
        (["{net.pt}", "{out}.ptck", "--residuals", "{out}2.ptck"], "nothing changes"),
        (["{net.pt}", "{out}.ptck", "--dtype", "float16", "--dry-run", "--plan", "x"], "--dry-run writes nothing"),
        (["{net.pt}", "{out}.ptck", "--dtype", "float16", "--residuals", "{out}.ptck"], "the same name"),
        (["{net.pt}", "{out}.ptck", "--dtype", "float16", "--residuals", "{net.pt}"], "replace the source"),
        (["{net.pt}", "{out}.ptck", "--invert"], "--invert needs --residuals"),
        (["{net.pt}", "{out}.ptck", "--invert", "--residuals", "x", "--to", "nnx"], "leave out --to"),
        (["{net.pt}", "{out}.ptck", "--invert", "--residuals", "x", "--select", "a", "--cast"], "--select, --cast"),
        (["{net.pt}", "{out}.ptck", "--max-shard-size", "1GB"], "is for safetensors"),
        (["{net.pt}", "{out}.safetensors", "--max-shard-size", "0"], "it is a size"),
        (["{net.pt}", "{out}.safetensors", "--max-shard-size", "5 bananas"], "it is a size"),
        (["{net.pt}", "{out}.safetensors", "--max-shard-size", "5iB"], "it is a size"),
        (["{net.pt}", "{net.pt}", "--if-exists", "error"], "exists"),
        (["{variables.ptck}", "{out}.ptck", "--to", "linen"], "give the target itself"),
        (["{bad.toml}", "{out}.ptck"], "not a pytreeckpt file"),
    ],
)
def test_a_mistake_has_a_clear_message_and_writes_nothing(arguments, words, folder, tmp_path):
    (tmp_path / "bad.toml").write_text('[[renames]]\nfrom = "a"\nto = "b"\n')
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    own = {"out": tmp_path / "out", "bad.toml": tmp_path / "bad.toml", "binary.toml": tmp_path / "binary.toml"}

    def filled(text):
        if not text.startswith("{"):
            return text
        name, _, rest = text[1:].partition("}")
        return f"{own.get(name, folder / name)}{rest}"

    before = (folder / "net.pt").read_bytes()
    ran = run("convert", *map(filled, arguments))
    assert ran.out == ""
    assert words in ran.err
    assert ran.code == (1 if "not a pytreeckpt file" in words else 2)
    assert "Traceback" not in ran.err
    assert not list(tmp_path.glob("out*"))
    assert (folder / "net.pt").read_bytes() == before


def test_a_name_with_a_colon_is_a_name_first(tmp_path):
    ptc.save({"params": {"w": np.ones(3)}}, tmp_path / "a:params")
    ptc.save({"w": np.zeros(3)}, tmp_path / "a")
    converted(tmp_path / "a", tmp_path / "one.ptck", "--target", tmp_path / "a:params")
    assert list(ptc.restore(tmp_path / "one.ptck")) == ["params"]
    ptc.save({"x": {"w": np.ones(3)}}, tmp_path / "b:c")
    converted(tmp_path / "a", tmp_path / "two.ptck", "--target", f"{tmp_path / 'b:c'}:x")
    assert list(ptc.restore(tmp_path / "two.ptck")) == ["w"]


def test_a_damaged_source_is_named_and_nothing_is_written(tmp_path):
    path = tmp_path / "damaged.ptck"
    ptc.save({"w": np.random.default_rng(0).standard_normal(50_000)}, path, compression="none")
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    for suffix in SUFFIXES:
        error = refused(path, tmp_path / f"out{suffix}", code=1)
        assert str(path) in error
        assert "leaf w" in error
    torch.save({"w": torch.randn(50_000)}, tmp_path / "damaged.pt")
    content = bytearray((tmp_path / "damaged.pt").read_bytes())
    content[50_000] ^= 1
    (tmp_path / "damaged.pt").write_bytes(content)
    assert "damaged.pt" in refused(tmp_path / "damaged.pt", tmp_path / "out.ptck", code=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged.pt", "damaged.ptck"]


def test_what_is_there_is_replaced_or_left(folder, tmp_path):
    out = tmp_path / "out.npz"
    out.write_text("mine")
    assert "exists" in refused(folder / "net.pt", out, "--if-exists", "error")
    assert out.read_text() == "mine"
    converted(folder / "net.pt", out)
    assert len(loaded(out)) == 15


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_arrays_are_read_once_each_and_a_few_at_a_time(suffix, tmp_path, monkeypatch):
    n_arrays, n_items = 12, 1 << 20
    ptc.save(
        {f"w{n}": np.random.default_rng(n).random(n_items, np.float32) for n in range(n_arrays)}, tmp_path / "big.ptck"
    )
    # What is as it was is read chunk by chunk; what others are made of, as whole arrays.
    asked, chunks = [], []
    read_arrays, read_chunk = Checkpoint.read_arrays, stored_files.read_chunk

    def counted(self, wanted, **options):
        asked.extend(wanted)
        return read_arrays(self, wanted, **options)

    def counted_chunk(source, row, itemsize, out, **options):
        chunks.append(row.offset)
        read_chunk(source, row, itemsize, out, **options)

    monkeypatch.setattr(Checkpoint, "read_arrays", counted)
    monkeypatch.setattr(stored_files, "read_chunk", counted_chunk)
    with ptc.open(tmp_path / "big.ptck") as checkpoint:
        offsets = checkpoint.index.chunks.offset.tolist()
    assert len(offsets) == 2 * n_arrays
    for rest in ([], ["--dtype", "float16"]):
        asked.clear()
        chunks.clear()
        tracemalloc.start()
        converted(tmp_path / "big.ptck", tmp_path / f"out{suffix}", *rest)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (sorted(asked), sorted(chunks)) == (([*range(n_arrays)], []) if rest else ([], offsets))
        assert peak < n_arrays * n_items * 4 * 0.75


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_progress_is_told_up_to_the_end(suffix, tmp_path, monkeypatch):
    told = []

    @contextmanager
    def shown(terminal, what):
        yield told.append

    monkeypatch.setattr(convert_steps, "shown_progress", shown)
    shared = np.zeros((300, 70), np.float32)
    ptc.save({"a": shared, "b": shared, "c": np.arange(9), "d": np.zeros(0)}, tmp_path / "one.ptck")
    converted(tmp_path / "one.ptck", tmp_path / f"out{suffix}")
    assert told
    assert [progress.done_nbytes for progress in told] == sorted(progress.done_nbytes for progress in told)
    assert told[-1].done_nbytes == told[-1].total_nbytes > 0


def test_many_small_arrays_are_read_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr(convert_leaves, "_MAX_SMALL_NBYTES", 1000)
    weights = {f"w{number}": np.full(40, number, np.float32) for number in range(40)}
    ptc.save(weights, tmp_path / "one.ptck")
    converted(tmp_path / "one.ptck", tmp_path / "two.npz")
    same_arrays(loaded(tmp_path / "two.npz"), weights)


def test_a_number_that_its_place_cannot_hold_is_refused():
    assert convert_making.number_of(ptc.Path.parse("step"), 0, np.array(3, np.int32)) == 3
    with pytest.raises(ptc.ConversionError, match="step: 0.5 is no int"):
        convert_making.number_of(ptc.Path.parse("step"), 0, np.array(0.5))


def test_steps_that_are_numbers_stay_numbers(folder, tmp_path):
    ptc.save({**linen_training(), "step": 0}, tmp_path / "target.ptck")
    target = ("--target", tmp_path / "target.ptck", "--residuals", tmp_path / "kept.ptck")
    converted(folder / "run.ptck", tmp_path / "out.ptck", *target)
    step = ptc.restore(tmp_path / "out.ptck")["step"]
    assert type(step) is int
    converted(tmp_path / "out.ptck", tmp_path / "back.ptck", "--invert", "--residuals", tmp_path / "kept.ptck")
    assert (tmp_path / "back.ptck").read_bytes() == (folder / "run.ptck").read_bytes()


def test_one_of_several_objects_is_selected(net, tmp_path):
    other, _ = trained_net(steps=1)
    ptt.save_training(tmp_path / "run.ptck", nets={"a": net, "b": other})
    converted(tmp_path / "run.ptck", tmp_path / "a.ptck", "--to", "linen", "--select", "nets/b")
    found = ptc.restore(tmp_path / "a.ptck", to="numpy")["params"]["head"]["kernel"]
    same_arrays(found, other.head.weight.detach().numpy().T)
    converted(tmp_path / "run.ptck", tmp_path / "both.ptck", "--to", "linen", "--select", "nets")
    assert sorted(ptc.restore(tmp_path / "both.ptck")["params"]["nets"]) == ["a", "b"]


def test_an_array_alone_goes_where_no_name_is_needed(folder, net, tmp_path):
    select = ("--select", "model/state/head.weight")
    for suffix in (".npz", ".safetensors"):
        assert "select what it is in" in refused(folder / "run.ptck", tmp_path / f"one{suffix}", *select)
    converted(folder / "run.ptck", tmp_path / "one.pt", *select)
    assert torch.equal(torch.load(tmp_path / "one.pt", weights_only=True), net.state_dict()["head.weight"])


def test_shards_that_are_not_needed_any_more_are_told(tmp_path):
    safetensors.numpy.save_file({f"w{n}": np.ones(100) for n in range(4)}, tmp_path / "whole.safetensors")
    (tmp_path / "many").mkdir()
    out = tmp_path / "many" / "model.safetensors"
    converted(tmp_path / "whole.safetensors", out, "--max-shard-size", "1KB")
    ran = converted(tmp_path / "whole.safetensors", out, "--max-shard-size", "2kB")
    assert "not needed any more: " in ran.out
    assert "model-00001-of-00004.safetensors" in ran.out


def test_a_layout_is_chosen_in_a_file_of_rules(tmp_path):
    up = torch.nn.ConvTranspose2d(4, 4, 3)
    ptt.save_training(tmp_path / "up.ptck", model=torch.nn.ModuleDict({"up": up}))
    kernel = {"params": {"up": {"kernel": np.zeros((3, 3, 4, 4), np.float32), "bias": np.zeros(4, np.float32)}}}
    ptc.save(kernel, tmp_path / "target.ptck")
    arguments = (tmp_path / "up.ptck", tmp_path / "out.ptck", "--target", tmp_path / "target.ptck")
    ran = undecided(*arguments)
    rule = re.search(
        r'decide in a file for --rules: (\[\[choose\]\]) (layers = "up") (variant = ".*"):$', ran.out, re.MULTILINE
    )
    assert rule is not None, ran.out
    (tmp_path / "rules.toml").write_text("\n".join(rule.groups()))
    converted(*arguments, "--rules", tmp_path / "rules.toml")


def test_what_a_flattened_image_and_a_trace_are_is_said_in_a_file_of_rules(tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.Flatten(), torch.nn.Linear(8, 3))
    optimizer = torch.optim.RMSprop(model.parameters(), momentum=0.9)
    model(torch.ones(1, 1, 2, 2)).sum().backward()
    optimizer.step()
    ptt.save_training(tmp_path / "run.ptck", model=model, optimizer=optimizer)
    shapes = {"layers_0": (1, 1, 1, 2), "layers_2": (8, 3)}
    params = {name: {"kernel": jnp.zeros(shape), "bias": jnp.zeros(shape[-1])} for name, shape in shapes.items()}
    ptc.save({"params": params, "opt": optax.rmsprop(0.1, momentum=0.9).init(params)}, tmp_path / "target.ptck")
    arguments = (tmp_path / "run.ptck", tmp_path / "out.ptck", "--target", tmp_path / "target.ptck")
    out = undecided(*arguments).out
    flattened = re.search(
        r'(\[\[flattened\]\]) (layers = "2") (shape = )\[2, height, width\] in a file for --rules', out
    )
    assert flattened is not None, out
    rules = "\n".join([*flattened.groups()]) + "[2, 2, 2]\n"
    (tmp_path / "rules.toml").write_text(rules)
    out = undecided(*arguments, "--rules", tmp_path / "rules.toml").out
    trace = re.search(r'(\[\[waive\]\]) (check = "late-trace") in a file for --rules', out)
    assert trace is not None, out
    (tmp_path / "rules.toml").write_text(rules + "\n".join(trace.groups()))
    converted(*arguments, "--rules", tmp_path / "rules.toml")
    found = ptc.restore(tmp_path / "out.ptck")
    same_arrays(
        found["params"]["layers_2"]["kernel"],
        model[2].weight.detach().numpy().reshape(3, 2, 2, 2).transpose(2, 3, 1, 0).reshape(8, 3),
    )


def test_rules_that_are_shipped_have_names(tmp_path):
    weight = torch.arange(12.0).reshape(3, 4)
    torch.save({"h.0.attn.c_attn.weight": weight, "h.0.attn.c_attn.bias": torch.ones(4)}, tmp_path / "one.pt")
    kernel = {"kernel": np.zeros((4, 3), np.float32), "bias": np.zeros(4, np.float32)}
    ptc.save({"params": {"h": {"0": {"attn": {"c_attn": kernel}}}}}, tmp_path / "target.ptck")
    arguments = (tmp_path / "one.pt", tmp_path / "out.ptck", "--target", tmp_path / "target.ptck")
    kind = ("--kind", "**.c_attn=transformers.pytorch_utils.Conv1D")
    converted(*arguments, *kind, "--rules", "transformers-flax:gpt2")
    found = ptc.restore(tmp_path / "out.ptck")["params"]["h"]["0"]["attn"]["c_attn"]["kernel"]
    same_arrays(found, weight.numpy().T)
    assert "there is transformers-flax:gpt2" in refused(*arguments, "--rules", "transformers-flax:gpt9")


def test_a_narrow_width_has_lines_that_fit(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    ran = converted(folder / "run.ptck", tmp_path / "out.ptck", "--to", "linen")
    assert "  model/state/stem.weight → params/stem/kernel" in ran.lines
    assert "      permute [2, 3, 1, 0]  kernel (*axes, in, out) (torch.nn.Conv2d)" in ran.lines


def test_a_file_may_be_converted_in_its_place_and_folders_are_made(folder, tmp_path):
    path = tmp_path / "deep" / "er" / "net.ptck"
    converted(folder / "net.pt", path)
    converted(path, path, "--dtype", "float16")
    assert ptc.restore(path)["head.bias"].dtype == torch.float16
    assert "is a directory" in refused(folder / "net.pt", tmp_path / "deep", "--to", "npz")
    assert [each.name for each in path.parent.iterdir()] == ["net.ptck"]


def test_the_help_has_examples():
    ran = run("convert", "--help")
    assert (ran.code, ran.err) == (0, "")
    assert "pytreeckpt convert model.pt model.safetensors" in ran.out


def test_no_framework_is_imported(folder, tmp_path):
    script = (
        "import sys; from pytreeckpt.cli import main; code = main(sys.argv[1:]); "
        "print([name for name in ('torch', 'jax', 'flax', 'safetensors') if name in sys.modules], file=sys.stderr); "
        "sys.exit(code)"
    )
    rest = ["--target", folder / "training.ptck", "--residuals", tmp_path / "kept.ptck"]
    done = subprocess.run(
        [sys.executable, "-c", script, "convert", folder / "run.ptck", tmp_path / "out.ptck", *rest],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
    )
    assert (done.returncode, done.stderr) == (0, "[]\n")
