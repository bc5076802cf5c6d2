"""Trainings in torch: each kind of object comes back into its like to the last bit, and nothing changes where it does
not fit.
"""

import copy
import json
import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations
from torch.optim import lr_scheduler
from torchdata.stateful_dataloader import StatefulDataLoader

import pytreeckpt as ptc
import pytreeckpt_torch as ptt
from pytreeckpt import PytreeckptError, StructureMismatchError, UnsupportedTypeError
from tests.training import torch_runs as runs

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _seeded():
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    torch.manual_seed(0)
    yield
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])


def bits(tensor):
    """All that a tensor is, for a comparison of bits."""
    dense = tensor.detach().to_dense() if tensor.is_sparse else tensor.detach()
    flat = dense.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
    return str(tensor.dtype), tuple(tensor.shape), flat.numpy().tobytes()


def snapshot(value):
    """Anything as plain values, so that two of it are equal if they are the same in all bits."""
    if isinstance(value, nn.Module):
        return snapshot(value.state_dict())
    if isinstance(value, torch.optim.Optimizer | torch.amp.GradScaler | lr_scheduler.LRScheduler):
        return snapshot(value.state_dict())
    if isinstance(value, torch.Generator):
        return bits(value.get_state())
    if isinstance(value, np.random.Generator):
        return snapshot(value.bit_generator.state)
    if isinstance(value, random.Random):
        return repr(value.getstate())
    if isinstance(value, np.random.RandomState):
        return snapshot(value.get_state(legacy=False))
    if isinstance(value, nn.parameter.UninitializedParameter):
        return "uninitialized"
    if isinstance(value, torch.Tensor):
        return "meta" if value.is_meta else bits(value)
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: snapshot(item) for key, item in value.items() if key != "param_names"}
    if isinstance(value, list | tuple):
        return [snapshot(item) for item in value]
    return repr(value)


def global_generators():
    return snapshot([list(random.getstate()), list(np.random.get_state()), torch.get_rng_state()])


def through_file(tree, tmp_path, **options):
    path = tmp_path / "t.ptck"
    ptc.save(tree, path, durability="atomic")
    return ptc.restore(path, **options)


def trained(net, make=torch.optim.AdamW, steps=2, **options):
    """An optimizer that has taken some steps."""
    optimizer = make(net.parameters(), **options)
    for _ in range(steps):
        step(net, optimizer)
    return optimizer


def step(net, optimizer):
    optimizer.zero_grad()
    for parameter in net.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape).to(parameter.dtype)
    optimizer.step()


def mismatch_of(tree, **objects):
    """The error that restoring gives, where nothing may have changed."""
    before = snapshot(objects), global_generators()
    with pytest.raises(StructureMismatchError) as caught:
        ptt.restore_into(tree, **objects)
    assert (snapshot(objects), global_generators()) == before
    return caught.value


# Modules.


class Tied(nn.Module):
    def __init__(self, *, tied=True):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        if tied:
            self.head.weight = self.embed.weight


class TiedInReverse(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 5, bias=False)
        self.embed = nn.Embedding(5, 3)
        self.embed.weight = self.head.weight


class WithState(nn.Module):
    """With a parameter and an extra state."""

    def __init__(self, extra):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2))
        self.extra = extra

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state):
        self.extra = state


class WithBuffers(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("kept", torch.randn(2))
        self.register_buffer("made", torch.zeros(2), persistent=False)


MODULES: dict[str, Any] = {
    "linear": lambda: nn.Linear(3, 2),
    "nested": lambda: nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2, bias=False))),
    "tied": Tied,
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(3, 2)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(3, 2)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(3, 3)),
    "extra state": lambda: WithState({"steps": random.random(), "scale": torch.randn(2)}),
    "buffers": WithBuffers,
    "in dicts and lists": lambda: nn.ModuleDict(
        {"a": nn.ParameterList([torch.randn(2), torch.randn(1)]), "b": nn.ParameterDict({"x": torch.randn(3)})}
    ),
    "shared": lambda: nn.Sequential(*[nn.Linear(2, 2)] * 2),
    "lstm": lambda: nn.LSTM(2, 3),
    "averaged": lambda: torch.optim.swa_utils.AveragedModel(nn.Linear(2, 2)),
    "channels last": lambda: nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last),
    "bfloat16": lambda: nn.Linear(3, 2).bfloat16(),
    "complex": lambda: nn.Linear(3, 2, dtype=torch.complex64),
    "no parameters": nn.ReLU,
}


@pytest.mark.parametrize("kind", MODULES)
def test_a_module_comes_back_into_its_like(kind, tmp_path):
    module, other = MODULES[kind](), MODULES[kind]()
    ptt.save_training(tmp_path / "m.ptck", model=module)
    parameters = dict(other.named_parameters())
    restored = ptt.resume(tmp_path / "m.ptck", model=other)
    assert restored["model"] is other
    assert restored.notes == restored.missing == restored.unexpected == ()
    assert snapshot(other) == snapshot(module)
    assert all(parameters[name] is parameter for name, parameter in other.named_parameters())


@pytest.mark.parametrize("make", [Tied, TiedInReverse])
def test_tied_weights_come_back_under_any_of_their_names(make):
    module = Tied()
    for names in (["embed.weight"], ["head.weight"], ["head.weight", "embed.weight"]):
        tree: Any = ptt.capture(model=module)
        tree["model"]["state"] = {name: tree["model"]["state"][name] for name in names}
        other = make()
        ptt.restore_into(tree, model=other)
        assert other.embed.weight is other.head.weight
        assert torch.equal(other.embed.weight, module.embed.weight)


def test_the_optimizer_of_tied_weights_finds_them_whichever_name_is_first(tmp_path):
    module, other = Tied(), TiedInReverse()
    optimizer, theirs = trained(module), trained(other)
    tree = through_file(ptt.capture(model=module, optimizer=optimizer), tmp_path)
    ptt.restore_into(tree, model=other, optimizer=theirs)
    assert snapshot(theirs) == snapshot(optimizer)


def test_two_tensors_cannot_become_one_and_one_may_become_two():
    apart, tied = Tied(tied=False), Tied()
    error = mismatch_of(ptt.capture(model=apart), model=tied)
    assert error.mismatched == ("model/embed.weight: tied to head.weight here, and not in the checkpoint",)
    ptt.restore_into(ptt.capture(model=tied), model=apart)
    assert torch.equal(apart.embed.weight, apart.head.weight)
    assert apart.embed.weight is not apart.head.weight


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.tensor([float("nan"), 1.0]),
        lambda: torch.arange(6.0).reshape(2, 3).t(),
        lambda: torch.ones(2, dtype=torch.complex64).conj(),
        lambda: torch.complex(torch.ones(2), torch.ones(2)).conj().imag,
        lambda: torch.zeros(0, 3),
        lambda: torch.ones(()).bool(),
        lambda: torch.ones(2).to(torch.float8_e4m3fn),
        lambda: torch.eye(3).to_sparse(),
    ],
    ids=["NaN", "transposed", "conjugated", "negative", "empty", "scalar", "float8", "sparse"],
)
def test_equal_buffers_become_one_and_others_do_not(make):
    class Two(nn.Module):
        def __init__(self, first, second):
            super().__init__()
            self.register_buffer("first", first)
            self.register_buffer("second", second)

    with torch.sparse.check_sparse_tensor_invariants(True):
        one = make()
        ptt.restore_into(ptt.capture(model=Two(make(), make())), model=Two(one, one))
        if one.numel():
            other = ptt.capture(model=Two(make(), torch.zeros(one.shape).to(one.dtype)))
            assert "not in the checkpoint" in mismatch_of(other, model=(two := Two(one, one))).mismatched[0]
            assert two.first is two.second


def test_layers_are_described_without_parametrizations():
    tree: Any = ptt.capture(model=nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 2))))
    assert tree["model"]["layers"]["0"]["class"] == "torch.nn.Linear"
    assert tree["model"]["layers"]["0"]["config"] == {"in_features": 3, "out_features": 2}
    assert tree["model"]["layers"][""] == {"class": "torch.nn.Sequential", "kind": "torch.nn.Sequential", "config": {}}


def test_a_class_of_ones_own_is_described_by_what_it_is_a_kind_of():
    class Mine(nn.Linear):
        pass

    tree: Any = ptt.capture(model=Mine(3, 2))
    layer = tree["model"]["layers"][""]
    assert layer["class"].endswith("Mine")
    assert layer["kind"] == "torch.nn.Linear"
    restored = ptt.restore_into(tree, model=nn.Linear(3, 2))
    assert restored.notes == (f"model: the module itself is a torch.nn.Linear, and was a {layer['class']}",)


# Lazy modules.


def lazy():
    return nn.Sequential(nn.LazyLinear(2), nn.LazyBatchNorm1d())


def materialized():
    module = lazy()
    module(torch.randn(4, 3))
    return module


def test_a_lazy_module_comes_back_before_and_after_it_got_its_shape():
    ptt.restore_into(ptt.capture(model=lazy()), model=lazy())
    module, other = materialized(), materialized()
    ptt.restore_into(ptt.capture(model=module), model=other)
    assert snapshot(other) == snapshot(module)


def test_a_lazy_module_gets_its_shape_from_the_checkpoint():
    module, other = materialized(), lazy()
    ptt.restore_into(ptt.capture(model=module), model=other)
    assert snapshot(other) == snapshot(module)
    data = torch.randn(4, 3)
    assert torch.equal(other(data), module(data))


def test_a_module_with_a_shape_cannot_become_lazy_again():
    error = mismatch_of(ptt.capture(model=lazy()), model=materialized())
    assert any("before a lazy module got one" in text for text in error.mismatched)


def test_a_lazy_module_has_a_dtype_that_has_to_agree():
    tree = ptt.capture(model=nn.Linear(3, 2).bfloat16())
    error = mismatch_of(tree, model=nn.LazyLinear(2))
    assert len(error.mismatched) == 2
    other = nn.LazyLinear(2)
    ptt.restore_into(tree, model=other, cast=True)
    assert other.weight.dtype == torch.float32


def test_an_optimizer_of_a_lazy_module_has_to_wait_for_the_shapes():
    module = nn.LazyLinear(2)
    optimizer = torch.optim.SGD(module.parameters())
    with pytest.raises(RuntimeError, match="uninitialized parameter"):
        ptt.capture(model=module, optimizer=optimizer)
    made = nn.Linear(3, 2)
    tree = ptt.capture(model=made, optimizer=torch.optim.SGD(made.parameters()))
    error = mismatch_of(tree, model=module, optimizer=optimizer)
    assert "uninitialized parameter" in error.mismatched[0]


# Extra states.


@pytest.mark.parametrize(
    ("saved", "ours"),
    [
        (None, 5),
        (5, None),
        (torch.ones(2), torch.zeros(3, dtype=torch.uint8)),
        (torch.ones(2), {"a": 1}),
        ({"a": [torch.ones(1)]}, torch.ones(1)),
        ("text", b"bytes"),
    ],
    ids=str,
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_an_extra_state_may_be_of_any_type_and_shape(saved, ours, device, tmp_path):
    tree = through_file(ptt.capture(model=WithState(saved)), tmp_path)
    other = WithState(ours)
    other.weight = nn.Parameter(other.weight.to(device))
    ptt.restore_into(tree, model=other)
    assert snapshot(other.extra) == snapshot(saved)
    assert other.weight.device.type == "cpu"


def test_equal_extra_states_are_not_tied():
    tree: Any = ptt.capture(model=nn.Sequential(WithState(None), WithState(None)))
    del tree["model"]["state"]["1._extra_state"]
    error = mismatch_of(tree, model=nn.Sequential(WithState(None), WithState(None)))
    assert error.missing == ("model/1._extra_state",)


# Wrappers.


def compiled(module):
    # Nothing is compiled before the first call; the usual backend takes long to import.
    return torch.compile(module, backend="eager")


def test_names_are_those_without_wrappers_wherever_these_are():
    def layers():
        return nn.BatchNorm1d(2), nn.Linear(2, 2)

    norm, linear = layers()
    plain = nn.Sequential(norm, linear)
    wrapped = {
        "compiled": compiled(nn.Sequential(norm, linear)),
        "inside": nn.Sequential(norm, compiled(linear)),
        "both": compiled(nn.Sequential(compiled(norm), compiled(linear))),
        "data parallel": nn.DataParallel(nn.Sequential(norm, linear)),
        "all": nn.DataParallel(compiled(nn.Sequential(norm, nn.DataParallel(linear)))),
    }
    tree: Any = ptt.capture(model=plain)
    for other in wrapped.values():
        again: Any = ptt.capture(model=other)
        assert snapshot(again["model"]) == snapshot(tree["model"])
    for wrap in (compiled, nn.DataParallel, lambda module: compiled(nn.DataParallel(module))):
        a, b = layers()
        for target in (wrap(nn.Sequential(a, b)), nn.Sequential(a, wrap(b))):
            restored = ptt.restore_into(tree, model=target)
            assert restored.notes == ()
            assert snapshot([a, b]) == snapshot([norm, linear])


def test_the_optimizer_of_a_module_is_that_of_the_wrapped_one():
    module = nn.Linear(2, 2)
    optimizer = trained(module)
    tree = ptt.capture(model=module, optimizer=optimizer)
    other = nn.Linear(2, 2)
    theirs = trained(other)
    ptt.restore_into(tree, model=compiled(other), optimizer=theirs)
    assert snapshot(theirs) == snapshot(optimizer)
    again: Any = ptt.capture(model=compiled(module), optimizer=optimizer)
    assert again["optimizer"]["groups"][0]["parameters"] == [("model", "weight"), ("model", "bias")]


# Frozen parameters, dtypes.


def test_frozen_parameters_are_noted_and_stay_what_they_are_here():
    module, other = nn.Linear(2, 2), nn.Linear(2, 2)
    module.weight.requires_grad_(False)
    other.bias.requires_grad_(False)
    restored = ptt.restore_into(ptt.capture(model=module), model=other)
    assert restored.notes == (
        "model: frozen in the checkpoint and not here: weight",
        "model: frozen here and not in the checkpoint: bias",
    )
    assert (other.weight.requires_grad, other.bias.requires_grad) == (True, False)
    assert "note: model: frozen here" in str(restored)


@pytest.mark.parametrize(
    "dtype",
    [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint16, torch.bfloat16, torch.bool, torch.complex64],
    ids=str,
)
def test_buffers_of_any_dtype_come_back(dtype, tmp_path):
    def module():
        made = nn.Module()
        made.register_buffer("b", (torch.rand(3, 2) * 3).to(dtype))
        made.register_buffer("scalar", (torch.rand(()) * 3).to(dtype))
        return made

    ours, other = module(), module()
    ptt.save_training(tmp_path / "m.ptck", model=ours)
    ptt.resume(tmp_path / "m.ptck", model=other)
    assert snapshot(other) == snapshot(ours)


def test_dtypes_have_to_agree_unless_they_are_cast():
    module = nn.Linear(3, 2)
    other = nn.Linear(3, 2).bfloat16()
    ema = {"weight": torch.zeros(2, 3, dtype=torch.float64)}
    tree = ptt.capture(model=module, ema={"weight": module.weight.detach()})
    error = mismatch_of(tree, model=other, ema=ema)
    assert [text.split(":")[0] for text in error.mismatched] == ["model/weight", "model/bias", "ema/weight"]
    assert "cast=True converts" in error.mismatched[0]
    ptt.restore_into(tree, model=other, ema=ema, cast=True)
    assert torch.equal(other.weight, module.weight.bfloat16())
    assert torch.equal(ema["weight"], module.weight.double())


def test_casting_reaches_no_moment():
    module, other = nn.Linear(3, 2), nn.Linear(3, 2).bfloat16()
    optimizer, theirs = trained(module), torch.optim.AdamW(other.parameters())
    ptt.restore_into(ptt.capture(model=module, optimizer=optimizer), cast=True, model=other, optimizer=theirs)
    assert snapshot(theirs) == snapshot(optimizer)


# The meta device.


def on_meta(make):
    with torch.device("meta"):
        return make()


@pytest.mark.parametrize("kind", [name for name in MODULES if name not in {"orthogonal", "averaged"}])
@pytest.mark.parametrize("device", [None, "cpu"])
def test_a_module_on_the_meta_device_is_given_its_tensors(kind, device, tmp_path):
    module, other = MODULES[kind](), on_meta(MODULES[kind])
    ptt.save_training(tmp_path / "m.ptck", model=module)
    ptt.resume(tmp_path / "m.ptck", model=other, device=device)
    assert snapshot(other) == snapshot(module)
    assert [type(each) for each in other.parameters()] == [type(each) for each in module.parameters()]
    assert all(parameter.requires_grad for parameter in other.parameters())


def test_ties_are_kept_on_the_way_from_the_meta_device(tmp_path):
    module = Tied()
    ptt.save_training(tmp_path / "m.ptck", model=module)
    for make in (Tied, TiedInReverse):
        other = on_meta(make)
        ptt.resume(tmp_path / "m.ptck", model=other)
        assert other.embed.weight is other.head.weight
    tree: Any = ptt.capture(model=module)
    del tree["model"]["state"]["head.weight"]
    other = on_meta(Tied)
    ptt.restore_into(tree, model=other)
    assert other.embed.weight is other.head.weight


def test_what_is_not_tied_here_shares_no_memory_where_it_was_tied_in_the_checkpoint(tmp_path):
    ptt.save_training(tmp_path / "m.ptck", model=Tied())
    other = on_meta(lambda: Tied(tied=False))
    ptt.resume(tmp_path / "m.ptck", model=other)
    assert torch.equal(other.embed.weight, other.head.weight)
    assert other.embed.weight.data_ptr() != other.head.weight.data_ptr()


def test_a_tree_in_memory_shares_nothing_with_a_module_that_was_on_the_meta_device():
    tree: Any = ptt.capture(model=nn.Linear(2, 2))
    other = on_meta(lambda: nn.Linear(2, 2))
    ptt.restore_into(tree, model=other)
    assert other.weight.data_ptr() != tree["model"]["state"]["weight"].data_ptr()


def test_buffers_that_no_checkpoint_holds_are_noted_on_the_meta_device():
    restored = ptt.restore_into(ptt.capture(model=WithBuffers()), model=(other := on_meta(WithBuffers)))
    assert restored.notes == ("model: no checkpoint holds the non-persistent buffers made: make them anew",)
    assert other.made.is_meta
    assert not other.kept.is_meta


def test_frozen_parameters_stay_frozen_on_the_way_from_the_meta_device():
    other = on_meta(lambda: nn.Linear(2, 2).requires_grad_(False))
    ptt.restore_into(ptt.capture(model=nn.Linear(2, 2)), model=other)
    assert not other.weight.requires_grad


def test_the_optimizer_of_a_module_on_the_meta_device_has_to_be_made_afterwards():
    module = nn.Linear(2, 2)
    tree = ptt.capture(model=module, optimizer=trained(module))
    other = on_meta(lambda: nn.Linear(2, 2))
    error = mismatch_of(tree, model=other, optimizer=torch.optim.AdamW(other.parameters()))
    assert "restore the module first" in error.mismatched[0]
    ptt.restore_into(tree, model=other)
    ptt.restore_into(tree, model=other, optimizer=torch.optim.AdamW(other.parameters()))


def test_a_plain_tensor_on_the_meta_device_cannot_be_filled():
    error = mismatch_of(ptt.capture(ema={"w": torch.ones(2)}), ema={"w": torch.ones(2, device="meta")})
    assert error.mismatched == ("ema/w: this is on the meta device, where nothing can be put into it",)


# Optimizers.


def moments_by_name(module, optimizer):
    return {name: snapshot(optimizer.state.get(parameter, {})) for name, parameter in module.named_parameters()}


def net():
    return nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 3), nn.Linear(3, 1, bias=False))


@given(st.data())
def test_parameters_in_another_order_and_in_other_groups_find_their_moments(data):
    def optimizer_of(module):
        parameters = data.draw(st.permutations(list(module.parameters())))
        cuts = sorted(data.draw(st.sets(st.integers(1, len(parameters) - 1))))
        groups = [parameters[a:b] for a, b in zip([0, *cuts], [*cuts, len(parameters)])]
        return torch.optim.Adam([{"params": group} for group in groups], lr=data.draw(st.sampled_from([0.1, 0.2])))

    module, other = net(), net()
    optimizer, theirs = optimizer_of(module), optimizer_of(other)
    step(module, optimizer)
    ptt.restore_into(ptt.capture(rng=False, model=module, optimizer=optimizer), model=other, optimizer=theirs)
    assert moments_by_name(other, theirs) == moments_by_name(module, optimizer)
    assert {group["lr"] for group in theirs.param_groups} == {optimizer.param_groups[0]["lr"]}


@given(st.sets(st.sampled_from([name for name, _ in net().named_parameters()]), min_size=1), st.data())
def test_parameters_that_only_one_of_both_has_are_listed_and_others_can_be_restored(saved, data):
    module, other = net(), net()
    ours = data.draw(st.sets(st.sampled_from([name for name, _ in net().named_parameters()]), min_size=1))

    def optimizer_of(module, names):
        optimizer = torch.optim.Adam([value for name, value in module.named_parameters() if name in names])
        step(module, optimizer)
        return optimizer

    optimizer, theirs = optimizer_of(module, saved), optimizer_of(other, ours)
    kept = moments_by_name(other, theirs)
    tree = ptt.capture(rng=False, model=module, optimizer=optimizer)
    if saved != ours:
        error = mismatch_of(tree, model=other, optimizer=theirs)
        assert set(error.missing) == {f"optimizer/model/{name}" for name in ours - saved}
        assert set(error.unexpected) == {f"optimizer/model/{name}" for name in saved - ours}
        assert error.mismatched == ()
    restored = ptt.restore_into(tree, model=other, optimizer=theirs, strict=False)
    assert set(restored.missing) == {f"optimizer/model/{name}" for name in ours - saved}
    assert set(restored.unexpected) == {f"optimizer/model/{name}" for name in saved - ours}
    now, were = moments_by_name(other, theirs), moments_by_name(module, optimizer)
    for name in ours & saved:
        assert now[name] == were[name]
    for name in ours - saved:
        assert now[name] in ({}, kept[name])
    step(other, theirs)


def test_moments_keep_their_dtypes():
    module, other = nn.Linear(3, 2).bfloat16(), nn.Linear(3, 2).bfloat16()
    optimizer, theirs = torch.optim.AdamW(module.parameters()), torch.optim.AdamW(other.parameters())
    step(module, optimizer)
    for state in optimizer.state.values():
        for key in ("exp_avg", "exp_avg_sq"):
            state[key] = torch.randn(state[key].shape)
    ptt.restore_into(ptt.capture(model=module, optimizer=optimizer), model=other, optimizer=theirs)
    assert snapshot(theirs) == snapshot(optimizer)
    assert theirs.state[other.weight]["exp_avg"].dtype == torch.float32


def test_the_tree_and_another_optimizer_share_no_moments():
    module, other = nn.Linear(3, 2), nn.Linear(3, 2)
    optimizer, theirs = trained(module), torch.optim.AdamW(other.parameters())
    tree = ptt.capture(model=module, optimizer=optimizer)
    before = snapshot(tree)
    ptt.restore_into(tree, model=other, optimizer=theirs)
    step(other, theirs)
    assert snapshot(tree) == before


def test_groups_of_different_options_cannot_become_one():
    module = nn.Linear(2, 2)
    options = [{"params": [module.weight], "lr": 0.1}, {"params": [module.bias], "lr": 0.2}]
    tree = ptt.capture(model=module, optimizer=torch.optim.SGD(options, weight_decay=0.5))
    error = mismatch_of(tree, model=module, optimizer=torch.optim.SGD(module.parameters()))
    assert error.mismatched == (
        "optimizer: group 0 has parameters of groups 0 and 1 of the checkpoint, whose lr differ",
    )
    ptt.restore_into(tree, model=module, optimizer=(reversed_ := torch.optim.SGD(options[::-1])))
    assert [group["lr"] for group in reversed_.param_groups] == [0.2, 0.1]


def test_lbfgs_takes_the_same_parameters_in_the_same_order_only():
    module = nn.Linear(2, 2)
    optimizer = torch.optim.LBFGS(module.parameters())
    optimizer.step(lambda: module(torch.ones(1, 2)).square().sum())
    tree = ptt.capture(model=module, optimizer=optimizer)
    for parameters in (reversed(list(module.parameters())), [module.weight]):
        error = mismatch_of(tree, model=module, optimizer=torch.optim.LBFGS(parameters))
        assert "LBFGS keeps one vector of all parameters" in error.mismatched[-1]


def test_an_optimizer_of_bare_tensors_finds_them_by_name():
    def objects():
        tensors = [torch.randn(2, requires_grad=True), torch.randn(3, requires_grad=True)]
        optimizer = torch.optim.Adam(tensors)
        return {"points": tensors, "optimizer": optimizer}

    ours, theirs = objects(), objects()
    for tensor in ours["points"]:
        tensor.grad = torch.randn(tensor.shape)
    ours["optimizer"].step()
    tree: Any = ptt.capture(**ours)
    assert tree["optimizer"]["groups"][0]["parameters"] == [("points/0", ""), ("points/1", "")]
    ptt.restore_into(tree, **theirs)
    assert snapshot(theirs) == snapshot(ours)


def test_the_parameters_of_an_optimizer_alone_are_numbered():
    module, other = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer, theirs = trained(module), trained(other)
    ptt.restore_into(ptt.capture(optimizer=optimizer), optimizer=theirs)
    assert snapshot(theirs) == snapshot(optimizer)


@pytest.mark.parametrize("other", [copy.deepcopy, lambda module: nn.Linear(3, 2)], ids=["copied", "another"])
def test_an_optimizer_has_to_be_that_of_the_modules_given(other):
    module = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(module.parameters())
    with pytest.raises(ValueError, match="2 of the 2 parameters of this SGD belong to none of the objects given"):
        ptt.capture(model=other(module), optimizer=optimizer)
    tree = ptt.capture(model=module, optimizer=optimizer)
    error = mismatch_of(tree, model=other(module), optimizer=optimizer)
    assert "another module" in error.mismatched[0]


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.Adam(parameters, lr=torch.tensor(0.1)),
        lambda parameters: torch.optim.Adam(parameters, capturable=False, differentiable=False, foreach=True),
        lambda parameters: torch.optim.AdamW(parameters, fused=True),
    ],
    ids=["tensor rate", "foreach", "fused"],
)
def test_options_come_back_as_they_were(make):
    module, other = nn.Linear(3, 2), nn.Linear(3, 2)
    optimizer, theirs = make(module.parameters()), make(other.parameters())
    step(module, optimizer)
    ptt.restore_into(ptt.capture(model=module, optimizer=optimizer), model=other, optimizer=theirs)
    assert snapshot(theirs) == snapshot(optimizer)
    assert theirs.param_groups[0]["lr"] is not optimizer.param_groups[0]["lr"] or isinstance(
        theirs.param_groups[0]["lr"], float
    )


# Other objects.


class Counting:
    """Whatever has the two methods."""

    def __init__(self, count):
        self.count = count

    def state_dict(self):
        return {"count": self.count, "tensor": torch.full((2,), self.count)}

    def load_state_dict(self, state):
        self.count = state["count"]


class Renamed(Counting):
    pass


def scheduler_of(make, steps=3):
    module = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    scheduler = make(optimizer)
    for _ in range(steps):
        step(module, optimizer)
        scheduler.step()
    return scheduler


def test_whatever_has_a_state_dict_comes_back_and_another_class_is_noted():
    restored = ptt.restore_into(ptt.capture(thing=Counting(5)), thing=(thing := Counting(1)))
    assert thing.count == 5
    assert restored.notes == ()
    restored = ptt.restore_into(ptt.capture(thing=Counting(5)), thing=(thing := Renamed(1)))
    assert thing.count == 5
    assert "Renamed, and was a" in restored.notes[0]


def test_the_epoch_of_a_distributed_sampler_comes_back_if_its_seed_is_the_same():
    def sampler(seed):
        return torch.utils.data.DistributedSampler(range(8), num_replicas=2, rank=0, seed=seed)

    ours, theirs = sampler(1), sampler(1)
    ours.set_epoch(4)
    tree = ptt.capture(sampler=ours)
    ptt.restore_into(tree, sampler=theirs)
    assert list(theirs) == list(ours)
    error = mismatch_of(tree, sampler=sampler(2))
    assert error.mismatched == ("sampler: the seed is 2, that of the checkpoint 1",)


@pytest.mark.parametrize(
    ("saved", "ours", "text"),
    [
        (
            lambda: torch.optim.SGD([torch.ones(2, requires_grad=True)]),
            lambda: torch.optim.Adam([torch.ones(2, requires_grad=True)]),
            "this is a torch.optim.Adam, the checkpoint has a torch.optim.SGD",
        ),
        (
            lambda: scheduler_of(lambda optimizer: lr_scheduler.StepLR(optimizer, 2)),
            lambda: scheduler_of(lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.5)),
            "this is a torch.optim.lr_scheduler.ExponentialLR, the checkpoint has a torch.optim.lr_scheduler.StepLR",
        ),
        (
            lambda: scheduler_of(
                lambda optimizer: lr_scheduler.ChainedScheduler(
                    [lr_scheduler.StepLR(optimizer, 2), lr_scheduler.ExponentialLR(optimizer, 0.5)]
                )
            ),
            lambda: scheduler_of(
                lambda optimizer: lr_scheduler.ChainedScheduler(
                    [lr_scheduler.ExponentialLR(optimizer, 0.5), lr_scheduler.StepLR(optimizer, 2)]
                )
            ),
            "it is made of",
        ),
        (
            lambda: torch.amp.GradScaler("cpu"),
            lambda: torch.amp.GradScaler("cpu", enabled=False),
            "the scaler is disabled, that of the checkpoint was enabled",
        ),
        (
            lambda: np.random.default_rng(0),
            lambda: np.random.Generator(np.random.MT19937(0)),
            "this is a numpy.random.MT19937, the checkpoint has a numpy.random.PCG64",
        ),
        (
            lambda: np.random.default_rng(0),
            lambda: random.Random(0),
            "this is a random.Random, the checkpoint has a numpy.random.PCG64",
        ),
        (lambda: random.Random(0), lambda: np.random.RandomState(0), "this is a numpy.random.RandomState"),
        (lambda: nn.Linear(2, 2), torch.Generator, "this is generator, the checkpoint has module"),
        (lambda: nn.Linear(2, 2), lambda: [nn.Linear(2, 2)], "the checkpoint has module"),
        (lambda: [nn.Linear(2, 2)], lambda: nn.Linear(2, 2), "this is module, the checkpoint has several objects"),
        (lambda: {"w": 1}, lambda: nn.Linear(2, 2), "this is module, the checkpoint has a plain value"),
        (lambda: [1], lambda: {"w": 1}, "this is a dict, the checkpoint has a list"),
        (lambda: {"w": 1}, lambda: {"w": torch.ones(2)}, "this is a tensor, the checkpoint has a int"),
        (lambda: [torch.ones(2)], lambda: [torch.ones(2)] * 2, "this has 2 items, the checkpoint 1"),
        (
            lambda: torch.ones(2),
            lambda: torch.ones(3),
            "this has shape \\[3\\] and torch.float32, the checkpoint \\[2\\]",
        ),
        (lambda: {"a": nn.Linear(2, 2)}, lambda: {"a": nn.Linear(2, 3)}, "object/a/weight: the module has shape"),
    ],
)
def test_what_is_something_else_is_a_mismatch(saved, ours, text):
    error = mismatch_of(ptt.capture(object=saved()), object=ours())
    assert len(error.missing) == len(error.unexpected) == 0
    with pytest.raises(AssertionError, match=text):
        raise AssertionError("\n".join(error.mismatched))


def test_a_generator_of_another_kind_of_device_is_a_mismatch():
    tree: Any = ptt.capture(generator=torch.Generator())
    tree["generator"]["device"] = "cuda:0"
    error = mismatch_of(tree, generator=torch.Generator())
    assert error.mismatched == ("generator: the generator is on cpu, that of the checkpoint was on cuda:0",)


def some_generator(kind):
    return {
        "torch": lambda: torch.Generator().manual_seed(3),
        "legacy": lambda: np.random.RandomState(3),
        "python": lambda: random.Random(3),
        **{
            name: lambda name=name: np.random.Generator(getattr(np.random, name)(3))
            for name in ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")
        },
    }[kind]()


def drawn(generator):
    """The next that it gives, of several kinds."""
    if isinstance(generator, torch.Generator):
        return snapshot([torch.randn(3, generator=generator), torch.randint(9, (3,), generator=generator)])
    if isinstance(generator, random.Random):
        return [generator.random(), generator.gauss(), generator.getrandbits(7)]
    integers = getattr(generator, "integers", None) or generator.randint
    numbers = [generator.standard_normal(), int(integers(9)), float(generator.uniform())]
    children = [child.random() for child in generator.spawn(2)] if hasattr(generator, "spawn") else []
    return numbers + children


@pytest.mark.parametrize("kind", ["torch", "legacy", "python", "PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"])
@pytest.mark.parametrize("framework", ["torch", "numpy"])
def test_a_generator_goes_on_where_it_was_with_its_children_too(kind, framework, tmp_path):
    ours, theirs = some_generator(kind), some_generator(kind)
    drawn(ours)
    tree = through_file(ptt.capture(generator=ours), tmp_path, **({"to": "numpy"} if framework == "numpy" else {}))
    ptt.restore_into(tree, generator=theirs)
    assert [drawn(theirs) for _ in range(3)] == [drawn(ours) for _ in range(3)]


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
@pytest.mark.parametrize("names", [["loader", "generator"], ["generator", "loader"]], ids=" then ".join)
@pytest.mark.parametrize("saved_at", [1, 5, 7])
def test_a_generator_that_a_loader_draws_from_too_goes_on_in_whatever_order_they_are_given(names, saved_at, tmp_path):
    def objects(seed):
        generator = torch.Generator().manual_seed(seed)
        loader = StatefulDataLoader(torch.arange(20), batch_size=4, shuffle=True, generator=generator)
        both = {"loader": loader, "generator": generator}
        return {name: both[name] for name in names}

    def batches(objects, number):
        found = []
        while len(found) < number:
            for batch in objects["loader"]:
                found.append((batch.tolist(), torch.rand(1, generator=objects["generator"]).item()))
                if len(found) == saved_at:
                    ptt.save_training(tmp_path / f"{number}.ptck", **objects)
                if len(found) == number:
                    break
        return found

    expected = batches(objects(1), 13)
    theirs = objects(2)
    ptt.resume(tmp_path / "13.ptck", **theirs)
    assert batches(theirs, 13 - saved_at) == expected[saved_at:]


# Several objects under one name.


def adversaries():
    models = {"G": nn.Linear(2, 3), "D": nn.Linear(3, 1)}
    optimizers = {name: trained(model) for name, model in models.items()}
    schedulers = [lr_scheduler.StepLR(each, 1, gamma=random.random()) for each in optimizers.values()]
    for name, optimizer in optimizers.items():
        step(models[name], optimizer)
    for scheduler in schedulers:
        scheduler.step()
    return {"model": models, "optimizer": optimizers, "scheduler": schedulers}


def test_several_models_with_their_optimizers_and_schedulers_come_back(tmp_path):
    ours, theirs = adversaries(), adversaries()
    tree: Any = ptt.capture(**ours)
    assert tree["training"]["roles"] == {
        "model": {"G": "module", "D": "module"},
        "optimizer": {"G": "optimizer", "D": "optimizer"},
        "scheduler": ["scheduler", "scheduler"],
    }
    assert list(tree["optimizer"]["G"]["state"]) == ["model/G"]
    restored = ptt.restore_into(through_file(tree, tmp_path), **theirs)
    assert snapshot(theirs) == snapshot(ours)
    assert restored["model"]["G"] is theirs["model"]["G"]
    assert restored["scheduler"] == theirs["scheduler"]


def test_one_of_several_can_be_missing_or_unexpected():
    ours, theirs = adversaries(), adversaries()
    tree = ptt.capture(**ours)
    del theirs["model"]["D"]
    theirs["model"]["E"] = nn.Linear(1, 1)
    given = {"model": theirs["model"]}
    error = mismatch_of(tree, **given)
    assert (error.missing, error.unexpected) == (("model/E",), ("model/D",))
    restored = ptt.restore_into(tree, strict=False, **given)
    assert (restored.missing, restored.unexpected) == (("model/E",), ("model/D",))
    assert snapshot(theirs["model"]["G"]) == snapshot(ours["model"]["G"])


# What capture refuses.


@pytest.mark.parametrize(
    ("objects", "text"),
    [
        ({"data": torch.utils.data.DataLoader(range(3))}, "StatefulDataLoader"),
        ({"data": {"train": torch.utils.data.DataLoader(range(3))}}, "StatefulDataLoader"),
        ({"data": torch.utils.data.RandomSampler(range(3))}, "RandomSampler has no state_dict: give its generator"),
        (
            {"data": torch.utils.data.BatchSampler(torch.utils.data.SequentialSampler(range(3)), 2, False)},
            "BatchSampler",
        ),
        ({"parts": {"model": nn.Linear(1, 1), "epoch": 3}}, "parts: 'model' is an object .* 'epoch' is a plain value"),
        ({"parts": [3, nn.Linear(1, 1)]}, "give them apart"),
        ({"parts": [nn.Linear(1, 1), None]}, "give them apart"),
    ],
)
def test_what_has_no_state_is_refused_with_what_to_do(objects, text):
    with pytest.raises(UnsupportedTypeError, match=text):
        ptt.capture(**objects)


def test_what_is_unknown_stands_for_itself_and_cannot_be_saved(tmp_path):
    with pytest.raises(UnsupportedTypeError, match="thing: "):
        ptt.save_training(tmp_path / "t.ptck", thing=object())
    assert not (tmp_path / "t.ptck").exists()


@pytest.mark.parametrize("name", ["training", "rng"])
def test_the_names_of_the_layout_are_not_for_objects(name):
    with pytest.raises((ValueError, TypeError)):
        ptt.capture(**{name: 3})


def test_rng_is_a_choice_of_three():
    with pytest.raises(ValueError, match='True, False or "gather"'):
        ptt.capture(rng="all")
    assert "rng" not in ptt.capture(rng=False, step=1)


def test_a_header_cannot_be_restored_into():
    with pytest.raises(ValueError, match="is what the header of the state is called"):
        ptt.restore_into(ptt.capture(step=1), training={})


# What does not fit.


def test_another_architecture_is_told_with_its_likely_names():
    tree = ptt.capture(model=nn.ModuleDict({"encoder": nn.Linear(3, 2), "head": nn.Linear(2, 1)}))
    error = mismatch_of(tree, model=nn.ModuleDict({"encodr": nn.Linear(3, 2), "head": nn.Linear(2, 5)}))
    assert error.missing == ("model/encodr.weight", "model/encodr.bias")
    assert error.unexpected == ("model/encoder.weight", "model/encoder.bias")
    assert len(error.mismatched) == 2
    assert "model/encodr.weight (did you mean model/encoder.weight?)" in str(error)
    assert "the module has shape [5, 2], the checkpoint [1, 2]" in str(error)
    assert "nothing was changed" in str(error)


def whole_training():
    """One object of each kind."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    optimizer = trained(model)
    scheduler = lr_scheduler.SequentialLR(
        optimizer, [lr_scheduler.LinearLR(optimizer), lr_scheduler.StepLR(optimizer, 2)], [3]
    )
    step(model, optimizer)
    scheduler.step()
    return {
        "model": model,
        "optimizer": optimizer,
        "scheduler": scheduler,
        "scaler": torch.amp.GradScaler("cpu", init_scale=random.randint(1, 9)),
        "ema": {name: torch.randn(value.shape) for name, value in model.named_parameters()},
        "noise": torch.Generator().manual_seed(random.getrandbits(9)),
        "picks": np.random.default_rng(random.getrandbits(9)),
        "legacy": np.random.RandomState(random.getrandbits(9)),
        "python": random.Random(random.getrandbits(9)),
        "others": [nn.Linear(1, 1), nn.Linear(1, 2)],
        "history": [random.random()],
    }


MISFITS: dict[str, Any] = {
    "model": lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)),
    "optimizer": lambda: torch.optim.SGD([torch.ones(1, requires_grad=True)]),
    "scheduler": lambda: scheduler_of(lambda optimizer: lr_scheduler.StepLR(optimizer, 2)),
    "scaler": lambda: torch.amp.GradScaler("cpu", enabled=False),
    "ema": lambda: {"0.weight": torch.ones(1)},
    "noise": lambda: np.random.default_rng(),
    "picks": lambda: np.random.Generator(np.random.Philox()),
    "legacy": torch.Generator,
    "python": torch.Generator,
    "others": lambda: [nn.Linear(1, 1)],
    "history": lambda: {"loss": 1},
    "more": lambda: nn.Linear(1, 1),
}


@pytest.mark.parametrize("name", MISFITS)
def test_if_one_object_does_not_fit_none_is_changed(name):
    tree = ptt.capture(**whole_training())
    torch.manual_seed(5)
    mismatch_of(tree, **{**whole_training(), name: MISFITS[name]()})


def test_all_that_does_not_fit_is_in_one_error():
    tree = ptt.capture(**whole_training())
    misfits = {name: make() for name, make in MISFITS.items()}
    error = mismatch_of(tree, **misfits)
    lines = [*error.missing, *error.unexpected, *error.mismatched]
    assert {line.partition(":")[0].partition("/")[0] for line in lines} == set(MISFITS)


@pytest.mark.parametrize(
    "tree",
    [{}, {"model": {}}, [1], None, {"training": 3}, nn.Linear(1, 1).state_dict()],
    ids=["nothing", "a model", "a list", "None", "no header", "a state dict"],
)
def test_a_tree_that_was_not_captured_is_told_from_one_that_was(tree):
    with pytest.raises(StructureMismatchError, match="was not made by capture"):
        ptt.restore_into(tree, model=nn.Linear(1, 1))


def test_the_state_of_another_framework_or_of_a_newer_layout_is_refused():
    tree: Any = ptt.capture(step=1)
    tree["training"]["framework"] = "jax"
    with pytest.raises(StructureMismatchError, match="in jax"):
        ptt.restore_into(tree)
    tree["training"]["layout"] = 2
    with pytest.raises(ptc.FormatVersionError, match="use a newer one"):
        ptt.restore_into(tree)


def _paths(tree, path=()):
    """All places in a tree."""
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    for key, value in items:
        if key != "training" and len(path) < 7:
            yield from _paths(value, (*path, key))


def _replaced(tree, path, change):
    """The tree with another value, or none, at one place."""
    key, *rest = path
    if isinstance(tree, tuple):
        return tuple(_replaced(list(tree), path, change))
    new = copy.copy(tree)
    if rest:
        new[key] = _replaced(tree[key], rest, change)
    elif change is None:
        del new[key]
    else:
        new[key] = change[0]
    return new


REPLACEMENTS = [
    *(None, 0, -1, 2**70, 0.5, "", "text", b"", True, [], {}, (), [[]], {"a": 1}, float("nan")),
    *(torch.ones(2), torch.zeros(3, dtype=torch.uint8), torch.ones(()), np.zeros(3), np.float32(1)),
]


@given(st.data())
def test_a_malformed_tree_is_an_error_that_changes_nothing_or_is_restored(data):
    random.seed(0)
    torch.manual_seed(0)
    tree: Any = ptt.capture(**whole_training())
    for _ in range(data.draw(st.integers(1, 2))):
        # An object first, so that those of many parts are not drawn nearly always.
        name = data.draw(st.sampled_from([name for name in tree if name != "training"]))
        path = data.draw(st.sampled_from([(name, *path) for path in _paths(tree[name])]))
        change = data.draw(st.none() | st.sampled_from(REPLACEMENTS).map(lambda value: (value,)))
        tree = _replaced(tree, path, change)
    restored_or_unchanged(tree, whole_training(), strict=data.draw(st.booleans()))


def restored_or_unchanged(tree, objects, *, strict):
    before = snapshot(objects), global_generators()
    try:
        ptt.restore_into(tree, strict=strict, **objects)
    except PytreeckptError:
        assert (snapshot(objects), global_generators()) == before


@given(st.sampled_from(sorted(runs.OPTIMIZERS)), st.sampled_from(sorted(runs.SCHEDULERS)), st.data())
def test_a_malformed_state_of_any_optimizer_or_scheduler_changes_nothing_or_is_restored(optimizer, scheduler, data):
    torch.manual_seed(0)
    tree: Any = ptt.capture(rng=False, **trained_as_in_runs(optimizer, scheduler))
    name = data.draw(st.sampled_from(["optimizer", "scheduler"]))
    path = data.draw(st.sampled_from([(name, *path) for path in _paths(tree[name])]))
    tree = _replaced(tree, path, data.draw(st.none() | st.sampled_from(REPLACEMENTS).map(lambda value: (value,))))
    restored_or_unchanged(tree, trained_as_in_runs(optimizer, scheduler), strict=data.draw(st.booleans()))


def loss_of(model):
    loss = model(torch.arange(4)).square().mean()
    model.zero_grad()
    loss.backward()
    return loss


@given(st.data())
def test_a_malformed_header_is_an_error_that_changes_nothing_or_is_restored(data):
    random.seed(0)
    torch.manual_seed(0)
    tree: Any = ptt.capture(**whole_training())
    roles = [(*path,) for path in _paths(tree["training"]["roles"], ("training", "roles"))]
    path = data.draw(st.sampled_from([("training",), ("training", "layout"), ("training", "framework"), *roles]))
    others = st.sampled_from([*REPLACEMENTS, "module", "generator", ["module"], {"a": "module"}, ["module", []]])
    tree = _replaced(tree, path, data.draw(st.none() | others.map(lambda value: (value,))))
    restored_or_unchanged(tree, whole_training(), strict=data.draw(st.booleans()))


# Trees in memory.


def trained_as_in_runs(optimizer, scheduler):
    model = runs.Net(sparse=optimizer == "SparseAdam")
    made = runs.OPTIMIZERS[optimizer](model, 0.1)
    several = list(made.values()) if isinstance(made, dict) else [made]
    objects = {"model": model, "optimizer": made, "scheduler": runs.SCHEDULERS[scheduler](several[0], 0.1)}
    step_as_in_runs(objects)
    return objects


def step_as_in_runs(objects):
    optimizer, scheduler = objects["optimizer"], objects["scheduler"]
    for each in optimizer.values() if isinstance(optimizer, dict) else [optimizer]:
        each.step(lambda: loss_of(objects["model"]))
    scheduler.step(*([1.0] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))


@pytest.mark.parametrize(
    ("optimizer", "scheduler"),
    [*((name, "LambdaLR") for name in runs.OPTIMIZERS), *(("AdamW, tensor rate", name) for name in runs.SCHEDULERS)],
)
def test_a_tree_can_be_gone_back_to_again_and_again(optimizer, scheduler):
    objects = trained_as_in_runs(optimizer, scheduler)
    # What is captured shares its tensors with the objects until it is copied.
    tree = copy.deepcopy(ptt.capture(**objects))
    before, saved = snapshot(tree), snapshot(objects)
    others = trained_as_in_runs(optimizer, scheduler)
    step_as_in_runs(others)
    for target in (others, objects, others):
        ptt.restore_into(tree, **target)
        assert snapshot(target) == saved
        assert snapshot(tree) == before
        step_as_in_runs(target)
        assert snapshot(target) != saved
        assert snapshot(tree) == before


def test_capturing_changes_nothing():
    objects = whole_training()
    before = snapshot(objects), global_generators()
    tree = ptt.capture(**objects)
    assert (snapshot(objects), global_generators()) == before
    state: Any = tree["model"]
    assert state["state"]["0.weight"].data_ptr() == objects["model"][0].weight.data_ptr()


# Plain values.


def test_dicts_and_lists_are_filled_and_their_tensors_stay_the_same_objects():
    tree = ptt.capture(
        rng=False,
        ema={"a": torch.ones(2), "b": [torch.ones(3)], "decay": 0.9},
        history=[1.0, 2.0],
        step=5,
        config={"x": (1, 2)},
    )
    a, b = torch.zeros(2), torch.zeros(3)
    ema: dict[str, Any] = {"a": a, "b": [b], "decay": 0.0}
    history: list[float] = []
    restored = ptt.restore_into(tree, ema=ema, history=history)
    assert restored["ema"] is ema
    assert ema["a"] is a
    assert ema["b"][0] is b
    assert snapshot(ema) == snapshot(tree["ema"])
    assert restored["history"] is history
    assert history == [1.0, 2.0]
    assert (restored["step"], restored["config"]) == (5, {"x": (1, 2)})
    assert dict(restored).keys() == {"ema", "history", "step", "config"}
    history.append(3.0)
    assert tree["history"] == [1.0, 2.0]


def test_an_averaged_shadow_with_other_names_is_a_mismatch():
    tree = ptt.capture(ema={"a": torch.ones(2), "b": torch.ones(2)})
    error = mismatch_of(tree, ema={"a": torch.zeros(2), "c": torch.zeros(2)})
    assert (error.missing, error.unexpected) == (("ema/c",), ("ema/b",))
    ema = {"a": torch.zeros(2), "c": torch.zeros(2)}
    ptt.restore_into(tree, strict=False, ema=ema)
    assert ema.keys() == {"a", "b", "c"}
    assert ema["a"].tolist() == [1, 1]
    assert ema["c"].tolist() == [0, 0]


def test_shadows_within_shadows_are_compared_too():
    def shadows(*names):
        return {name: {"w": [torch.randn(2)]} for name in names}

    tree = ptt.capture(ema=shadows("G", "D"))
    error = mismatch_of(tree, ema=shadows("G", "E"))
    assert (error.missing, error.unexpected) == (("ema/E",), ("ema/D",))
    mine = shadows("G", "E")
    kept = mine["E"]["w"][0]
    ptt.restore_into(tree, strict=False, ema=mine)
    assert mine.keys() == {"G", "D", "E"}
    assert mine["E"]["w"][0] is kept
    error = mismatch_of(ptt.capture(ema=[shadows("G")]), ema=[shadows("G"), shadows("G")])
    assert error.mismatched == ("ema: this has 2 items, the checkpoint 1",)
    # Without tensors they are values, and become what they were.
    history = {"loss": {"train": [1.0]}, "old": [2.0]}
    ptt.restore_into(ptt.capture(history={"loss": {"test": [3.0]}}), history=history)
    assert history == {"loss": {"test": [3.0]}}


@pytest.mark.parametrize("target", [0, 0.0, None, "", (), (torch.ones(2),)], ids=repr)
def test_what_cannot_be_filled_is_passed_by_and_the_result_has_what_was_saved(target):
    assert ptt.restore_into(ptt.capture(step=3), step=target)["step"] == 3


def test_numpy_arrays_are_filled():
    target = np.zeros(2)
    tree = ptt.capture(bins=np.array([1.0, -0.0]))
    assert ptt.restore_into(tree, bins=target)["bins"] is target
    assert target.tobytes() == np.array([1.0, -0.0]).tobytes()
    assert "this has shape (3,) and float64, the checkpoint (2,) and float64" in str(
        mismatch_of(tree, bins=np.zeros(3))
    )
    assert "this is an array, the checkpoint has a int" in str(mismatch_of(ptt.capture(bins=3), bins=np.zeros(3)))


def test_groups_that_were_moved_are_refused_with_a_scheduler_and_found_without():
    def training(*, moved):
        model = nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
        groups = [{"params": model["body"].parameters(), "lr": 1e-3}, {"params": model["head"].parameters(), "lr": 0.1}]
        optimizer = torch.optim.SGD(groups[::-1] if moved else groups)
        return {"model": model, "optimizer": optimizer, "scheduler": lr_scheduler.StepLR(optimizer, 2)}

    tree = ptt.capture(**training(moved=False))
    ptt.restore_into(tree, **training(moved=False))
    moved = training(moved=True)
    (line,) = mismatch_of(tree, **moved).mismatched
    assert line.startswith("scheduler: the parameter groups of its optimizer are in another order or number")
    del moved["scheduler"]
    ptt.restore_into(tree, **moved)
    assert [group["lr"] for group in moved["optimizer"].param_groups] == [0.1, 1e-3]
    fewer = training(moved=False)
    fewer["optimizer"] = torch.optim.SGD(fewer["model"].parameters(), lr=1e-3)
    fewer["scheduler"] = lr_scheduler.StepLR(fewer["optimizer"], 2)
    with pytest.raises(StructureMismatchError, match="scheduler: the parameter groups"):
        ptt.restore_into(tree, strict=False, **fewer)


def test_the_state_of_an_optimizer_is_no_target():
    model = nn.Linear(2, 1)
    optimizer = trained(model)
    tree = ptt.capture(model=model.state_dict(), optimizer=optimizer.state_dict())
    error = mismatch_of(tree, model=model.state_dict(), optimizer=optimizer.state_dict())
    assert error.mismatched == ("optimizer: this is the state of an optimizer; give the optimizer itself",)
    assert "this is module, the checkpoint has a plain value, such as a state dict" in str(
        mismatch_of(tree, model=model)
    )
    assert "this is the class Linear and no object of it" in str(mismatch_of(ptt.capture(model=model), model=nn.Linear))


def test_a_module_of_which_the_checkpoint_has_nothing_is_refused_even_if_not_strict():
    tree = ptt.capture(model=nn.ModuleDict({"backbone": nn.Linear(2, 2)}))
    with pytest.raises(StructureMismatchError, match="model: the checkpoint has none of its names"):
        ptt.restore_into(tree, strict=False, model=nn.Linear(2, 2))
    with pytest.raises(StructureMismatchError, match="the checkpoint has none of net"):
        ptt.restore_into(tree, strict=False, net=nn.Linear(2, 2))


def test_complex_numbers_do_not_become_real_ones():
    tree = ptt.capture(model=nn.Linear(2, 2, dtype=torch.complex64))
    with pytest.raises(StructureMismatchError, match="the checkpoint torch.complex64, which it cannot hold"):
        ptt.restore_into(tree, cast=True, model=nn.Linear(2, 2))


def test_the_weights_alone_leave_the_generators_as_they_are():
    model = nn.Linear(2, 2)
    tree = ptt.capture(model=model, optimizer=trained(model))
    for rng, same in ((None, False), (False, False), (True, True)):
        torch.manual_seed(3)
        before = torch.get_rng_state()
        ptt.restore_into(tree, rng=rng, model=model)
        assert torch.equal(torch.get_rng_state(), before) is not same


def test_an_object_that_takes_no_state_leaves_tensors_as_they_are():
    class Stubborn:
        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            raise RuntimeError("not this")

    model = nn.Linear(2, 2)
    tree = copy.deepcopy(ptt.capture(model=model, other=Stubborn()))
    before = bits(nn.init.zeros_(model.weight))
    with pytest.raises(StructureMismatchError, match="other: it does not take .* RuntimeError: not this.*nothing else"):
        ptt.restore_into(tree, model=model, other=Stubborn())
    assert bits(model.weight) == before


def test_a_parameter_that_is_filled_keeps_its_gradient_flag():
    target = torch.zeros(2, requires_grad=True)
    ptt.restore_into(ptt.capture(points=torch.ones(2)), points=target)
    assert target.tolist() == [1, 1]
    assert target.requires_grad
    assert target.is_leaf


# What comes back.


def test_objects_that_are_not_asked_for_are_skipped(tmp_path):
    ptt.save_training(tmp_path / "t.ptck", step=3, **whole_training())
    restored = ptt.resume(tmp_path / "t.ptck", model=(model := whole_training()["model"]))
    assert set(restored.skipped) == {
        *("optimizer", "scheduler", "scaler", "noise", "picks", "legacy", "python", "others"),
    }
    assert set(restored) == {"model", "ema", "history", "step"}
    assert restored["model"] is model
    with pytest.raises(KeyError, match="optimizer is an object of the checkpoint: give one with optimizer=…"):
        restored["optimizer"]
    with pytest.raises(KeyError, match="nothing_such; the checkpoint has"):
        restored["nothing_such"]
    assert "skipped: optimizer, " in str(restored)


def test_an_object_that_the_checkpoint_lacks_is_missing():
    tree = ptt.capture(step=1)
    assert mismatch_of(tree, model=nn.Linear(1, 1)).missing == ("model",)
    restored = ptt.restore_into(tree, strict=False, model=nn.Linear(1, 1), step=0)
    assert restored.missing == ("model",)
    assert "model" not in restored


def test_nothing_but_what_is_asked_for_is_read(tmp_path):
    path = tmp_path / "t.ptck"
    torch.manual_seed(1)
    ours, theirs = whole_training(), whole_training()
    marker = torch.full((4096,), 12345.0)
    ours["optimizer"].state[ours["model"][0].weight]["exp_avg"] = marker.reshape(4096)
    ptt.save_training(path, compression="none", **ours)
    data = bytearray(path.read_bytes())
    at = data.index(marker.numpy().tobytes())
    data[at] ^= 1
    path.write_bytes(data)
    ptt.resume(path, model=theirs["model"])
    assert snapshot(theirs["model"]) == snapshot(ours["model"])
    before = snapshot(theirs), global_generators()
    with pytest.raises(ptc.CorruptionError):
        ptt.resume(path, model=theirs["model"], optimizer=theirs["optimizer"])
    assert (snapshot(theirs), global_generators()) == before


def test_where_there_is_no_checkpoint_one_may_begin(tmp_path):
    model = nn.Linear(1, 1)
    before = snapshot(model)
    assert ptt.resume(tmp_path / "none.ptck", missing_ok=True, model=model) is None
    assert snapshot(model) == before
    with pytest.raises(ptc.CheckpointNotFoundError):
        ptt.resume(tmp_path / "none.ptck", model=model)


def test_what_is_no_checkpoint_is_not_taken_for_a_missing_one(tmp_path):
    (tmp_path / "t.ptck").write_bytes(b"not a checkpoint" * 100)
    with pytest.raises(ptc.NotACheckpointError):
        ptt.resume(tmp_path / "t.ptck", missing_ok=True)


def test_an_error_of_resume_names_the_file_and_has_its_lists(tmp_path):
    ptt.save_training(tmp_path / "t.ptck", model=nn.Linear(1, 1))
    with pytest.raises(StructureMismatchError, match="t.ptck: the checkpoint does not fit the objects") as caught:
        ptt.resume(tmp_path / "t.ptck", model=nn.Linear(1, 1, bias=False))
    assert caught.value.unexpected == ("model/bias",)


def test_a_checkpoint_that_was_saved_in_another_way_says_so(tmp_path):
    ptc.save(nn.Linear(1, 1).state_dict(), tmp_path / "t.ptck")
    with pytest.raises(StructureMismatchError, match="t.ptck: this tree was not made by capture"):
        ptt.resume(tmp_path / "t.ptck", model=nn.Linear(1, 1))


def test_the_options_of_save_are_those_of_save_training(tmp_path):
    path = tmp_path / "t.ptck"
    seen = []
    report = ptt.save_training(
        path, step=1, metadata={"note": "x"}, compression="none", durability="atomic", progress=seen.append
    )
    assert isinstance(report, ptc.SaveReport)
    assert seen
    with pytest.raises(ptc.CheckpointExistsError):
        ptt.save_training(path, step=1, if_exists="error")
    with ptc.open(path) as checkpoint:
        assert checkpoint.metadata == {"note": "x"}


# The generators of a process.


def all_drawn():
    return random.random(), np.random.rand(), torch.rand(1).item(), random.gauss(0, 1), np.random.randn()


@pytest.mark.parametrize("options", [{}, {"to": "numpy"}], ids=["torch", "numpy"])
def test_the_global_generators_go_on_where_they_were(options, tmp_path):
    all_drawn()
    tree = through_file(ptt.capture(), tmp_path, **options)
    expected = [all_drawn() for _ in range(3)]
    random.seed(9)
    np.random.seed(9)
    torch.manual_seed(9)
    before = global_generators()
    ptt.restore_into(tree, rng=False)
    assert global_generators() == before
    ptt.restore_into(tree)
    assert [all_drawn() for _ in range(3)] == expected
    ptt.restore_into(tree)
    assert all_drawn() == expected[0]


def test_a_checkpoint_without_generators_leaves_them_alone():
    before = global_generators()
    ptt.restore_into(ptt.capture(rng=False, step=1))
    assert global_generators() == before


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda rng: rng.update(world_size=2), "rng: 2 processes were at work, and now 1 are"),
        (lambda rng: rng.update(ranks={3: rng["ranks"][0]}), "states of rank 3, and this is rank 0"),
        (lambda rng: rng["ranks"][0].update(cuda=[torch.zeros(16, dtype=torch.uint8)] * 9), "states of 9 CUDA devices"),
        (lambda rng: rng["ranks"][0].update(mps=torch.zeros(16, dtype=torch.uint8)), "state of an MPS device"),
    ],
    ids=["world size", "rank", "CUDA devices", "MPS"],
)
def test_generators_of_other_processes_and_devices_are_loud(change, text):
    tree: Any = ptt.capture(model=nn.Linear(1, 1))
    change(tree["rng"])
    model = nn.Linear(1, 1)
    assert text in "\n".join(mismatch_of(tree, model=model).mismatched)
    ptt.restore_into(tree, rng=False, model=model)


def test_reading_the_states_of_generators_initialises_no_device():
    was = torch.cuda.is_initialized()
    tree: Any = ptt.capture()
    ptt.restore_into(tree)
    assert torch.cuda.is_initialized() == was
    assert was or "cuda" not in tree["rng"]["ranks"][0]


# Several processes.

RANK = """
    import json, random, sys
    import numpy as np
    import torch
    from torch import distributed, nn

    import pytreeckpt
    import pytreeckpt_torch as ptt

    torch.set_num_threads(1)
    folder, rank, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet{size}", rank=rank, world_size=size)

    def drawn():
        return [random.random(), np.random.rand(), torch.rand(1).item()]

    def seed(number):
        random.seed(number), np.random.seed(number), torch.manual_seed(number)

    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(parallel.parameters())
    result = {}
    path = f"{folder}/t.ptck"
    if size == 2:
        parallel(torch.ones(1, 3) * (rank + 1)).sum().backward()
        optimizer.step()
        seed(rank)
        drawn()
        tree = ptt.capture(rng="gather", model=parallel, optimizer=optimizer)
        alone = ptt.capture(rng=True, model=parallel)
        result["names"] = list(tree["model"]["state"])
        result["ranks"] = [list(tree["rng"]["ranks"]), list(alone["rng"]["ranks"])]
        if rank == 0:
            pytreeckpt.save(tree, path)
        distributed.barrier()
        weight = model.weight.detach().clone()
        result["next"] = drawn()
        seed(7)
        with torch.no_grad():
            model.weight.zero_()
        ptt.resume(path, model=parallel, optimizer=optimizer)
        result["again"] = drawn()
        result["same weights"] = torch.equal(weight, model.weight)
        # As if the first process had saved what it alone has.
        alone["rng"]["ranks"] = {0: alone["rng"]["ranks"][rank]}
        try:
            ptt.restore_into(alone, rng=True, model=parallel)
        except ValueError as error:
            result["error"] = str(error)
    else:
        try:
            ptt.resume(path, rng=True, model=parallel)
        except ValueError as error:
            result["error"] = str(error)
        result["notes"] = ptt.resume(path, rng=False, model=parallel, optimizer=optimizer).notes
        tree = ptt.capture(rng="gather", model=parallel)
        result["ranks"] = list(tree["rng"]["ranks"])
    distributed.destroy_process_group()
    print(json.dumps(result))
"""


def ranks(folder, size):
    """What each of some processes prints."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "adapters")])}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(RANK), str(folder), str(rank), str(size)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    done = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * size, done
    return [json.loads(output.splitlines()[-1]) for output, _ in done]


def test_each_process_gets_its_own_generators_back_and_wrong_ones_are_loud(tmp_path):
    first, second = ranks(tmp_path, 2)
    for each in (first, second):
        assert each["names"] == ["weight", "bias"]
        assert each["next"] == each["again"]
        assert each["same weights"]
        assert each["ranks"][0] == [0, 1]
    assert first["next"] != second["next"]
    assert (first["ranks"][1], second["ranks"][1]) == ([0], [1])
    assert "error" not in first
    assert 'capture with rng="gather" in all processes' in second["error"]
    (alone,) = ranks(tmp_path, 1)
    assert "2 processes were at work, and now 1 are" in alone["error"]
    assert alone["notes"] == []
    assert alone["ranks"] == [0]
    # Here there is no torch.distributed at all.
    model = nn.Linear(3, 2)
    with pytest.raises(StructureMismatchError, match="2 processes were at work"):
        ptt.resume(tmp_path / "t.ptck", rng=True, model=model)
    ptt.resume(tmp_path / "t.ptck", rng=False, model=model)


# By hand, and without torch.


def test_the_dict_that_most_programs_make_goes_through_unchanged(tmp_path):
    ours, theirs = whole_training(), whole_training()
    checkpoint = {
        "epoch": 3,
        "model_state_dict": ours["model"].state_dict(),
        "optimizer_state_dict": ours["optimizer"].state_dict(),
        "scheduler_state_dict": ours["scheduler"].state_dict(),
        "scaler_state_dict": ours["scaler"].state_dict(),
        "rng_states": {"torch": torch.get_rng_state(), "numpy": np.random.get_state(), "python": random.getstate()},
        "metrics_history": {"loss": [0.5, 0.25]},
        "config": {"lr": 0.1, "layers": (3, 4)},
    }
    expected = all_drawn()
    loaded = through_file(checkpoint, tmp_path)
    assert snapshot(loaded) == snapshot(checkpoint)
    theirs["model"].load_state_dict(loaded["model_state_dict"])
    theirs["scheduler"].load_state_dict(loaded["scheduler_state_dict"])
    theirs["optimizer"].load_state_dict(loaded["optimizer_state_dict"])
    theirs["scaler"].load_state_dict(loaded["scaler_state_dict"])
    for name in ("model", "optimizer", "scheduler", "scaler"):
        assert snapshot(theirs[name]) == snapshot(ours[name])
    torch.set_rng_state(loaded["rng_states"]["torch"])
    np.random.set_state(loaded["rng_states"]["numpy"])
    random.setstate(loaded["rng_states"]["python"])
    assert all_drawn() == expected


def test_all_objects_come_back_from_a_tree_of_numpy_arrays(tmp_path):
    ours, theirs = whole_training(), whole_training()
    ours["model"] = ours["model"].bfloat16()
    theirs["model"] = theirs["model"].bfloat16()
    tree = through_file(ptt.capture(**ours), tmp_path, to="numpy")
    ptt.restore_into(tree, **theirs)
    assert snapshot(theirs) == snapshot(ours)


WITHOUT_TORCH = """
    import sys

    class Hidden:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in {"torch", "jax", "jaxlib"}:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Hidden())
    import numpy as np
    import pytreeckpt

    tree = pytreeckpt.restore(sys.argv[1], to="numpy")
    weight = tree["model"]["state"]["0.weight"]
    assert type(weight) is np.ndarray and weight.shape == (4, 3)
    assert tree["training"]["framework"] == "torch"
    assert tree["training"]["roles"]["others"] == ["module", "module"]
    assert tree["model"]["layers"]["1"]["class"] == "torch.nn.BatchNorm1d"
    assert tree["model"]["buffers"] == ["1.running_mean", "1.running_var", "1.num_batches_tracked"]
    assert tree["optimizer"]["groups"][0]["parameters"][0] == ("model", "0.weight")
    assert tree["optimizer"]["state"]["model"]["0.weight"]["exp_avg"].shape == (4, 3)
    np.random.set_state(tree["rng"]["ranks"][0]["numpy"]["state"])
    pytreeckpt.save(tree, sys.argv[2])
    print(np.random.rand().hex())
"""


def test_a_training_is_read_and_saved_again_without_torch(tmp_path):
    ours, theirs = whole_training(), whole_training()
    ptt.save_training(tmp_path / "t.ptck", **ours)
    expected = np.random.rand()
    done = subprocess.run(
        [
            *(sys.executable, "-W", "error", "-c", textwrap.dedent(WITHOUT_TORCH)),
            *(str(tmp_path / "t.ptck"), str(tmp_path / "again.ptck")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float.fromhex(done.stdout) == expected
    ptt.resume(tmp_path / "again.ptck", **theirs)
    assert snapshot(theirs) == snapshot(ours)


# Accelerators.


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_training_on_a_device_goes_on_there_with_the_generators_of_all_devices(tmp_path):
    def objects():
        model = nn.Linear(3, 2).cuda()
        scaler = torch.amp.GradScaler("cuda", init_scale=8.0)
        noise = torch.Generator("cuda").manual_seed(random.getrandbits(9))
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        scaler.scale(model(torch.ones(1, 3, device="cuda")).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        return {"model": model, "optimizer": optimizer, "scaler": scaler, "noise": noise}

    def drawn_there():
        return [torch.rand(2, device=f"cuda:{number}").tolist() for number in range(torch.cuda.device_count())]

    ours, theirs = objects(), objects()
    ptt.save_training(tmp_path / "t.ptck", **ours)
    expected = drawn_there(), torch.rand(2, device="cuda", generator=ours["noise"]).tolist()
    ptt.resume(tmp_path / "t.ptck", **theirs)
    assert (drawn_there(), torch.rand(2, device="cuda", generator=theirs["noise"]).tolist()) == expected
    for a, b in zip(ours["model"].parameters(), theirs["model"].parameters(), strict=True):
        assert b.device.type == "cuda"
        assert torch.equal(a, b)
        one, other = ours["optimizer"].state[a], theirs["optimizer"].state[b]
        assert {key: value.device for key, value in one.items()} == {key: value.device for key, value in other.items()}
        assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert theirs["scaler"].state_dict() == ours["scaler"].state_dict()
    # Without one, the weights go where the module is.
    on_cpu = nn.Linear(3, 2)
    ptt.resume(tmp_path / "t.ptck", rng=False, model=on_cpu)
    assert torch.equal(on_cpu.weight, ours["model"].weight.cpu())
    placed = on_meta(lambda: nn.Linear(3, 2))
    ptt.resume(tmp_path / "t.ptck", rng=False, device="cuda", model=placed)
    assert placed.weight.device.type == "cuda"
    error = mismatch_of(ptt.capture(noise=torch.Generator()), noise=torch.Generator("cuda"))
    assert "the generator is on cuda" in error.mismatched[0]
