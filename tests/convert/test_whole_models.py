"""Whole models from torch to linen, nnx and Equinox and back: whatever the source and target are, with the same values."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import pytreeckpt as ptc
import pytreeckpt_jax as ptc_jax
import pytreeckpt_torch as ptc_torch
from pytreeckpt import convert
from pytreeckpt.convert import leftovers
from pytreeckpt.convert.leaves import array_of, leaves_of
from pytreeckpt.convert.names import steps_of
from tests.convert.layers_side_by_side import randomised
from tests.convert.models import FRAMEWORKS, MODELS

PAIRS = [(name, framework) for name in MODELS for framework in FRAMEWORKS]
# What a layer of nnx draws its random numbers from, and where Equinox says that nothing was counted yet.
NOT_CONVERTED = {"key", "count", "init"}
TRANSPOSED = "kernel (*axes, out, in), transpose_kernel=True"


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def rules_for(name, framework):
    """What nobody recorded: in linen, which of two layouts a ConvTranspose has."""
    return [convert.Choose("up", TRANSPOSED)] if (name, framework) == ("cnn", "linen") else []


def planned(name, source, framework, target=None, rules=()):
    target = MODELS[name].target(framework) if target is None else target
    return convert.plan(source, target, rules=[*rules, *rules_for(name, framework)], dtype="float64")


def arrays(tree):
    """The arrays of a tree by the steps of their paths, without what wraps them."""
    return {
        tuple(step for step in steps_of(leaf.path) if step != "value"): array_of(leaf.value)
        for leaf in leaves_of(tree)
        if isinstance(leaf.value, np.ndarray | jax.Array | torch.Tensor)
    }


def bits(tree):
    return {key: (array.dtype, array.shape, array.tobytes()) for key, array in arrays(tree).items()}


@pytest.mark.parametrize(("name", "framework"), PAIRS)
def test_outputs_and_gradients_agree_and_the_way_back_is_exact_to_the_bit(name, framework):
    model = MODELS[name]
    ours = model.module()
    tree = ptc_torch.capture(model=ours, rng=False)
    report = planned(name, tree, framework).verify(
        ptc_torch.computes(model=ours), ptc_jax.computes(model.apply(framework)), tree, model.inputs
    )
    assert report.ok, str(report)
    assert [level.outcome for level in report.levels[:3]] == ["equal", "close", "close"], str(report)


@pytest.mark.parametrize(("name", "framework"), PAIRS)
def test_a_wrong_layout_is_found_by_verify(name, framework):
    # The check can fail: the same plan, for another model.
    model = MODELS[name]
    ours = model.module()
    tree = ptc_torch.capture(model=ours, rng=False)
    with torch.no_grad():
        other = model.module(seed=1)
    altered = convert.plan(ours, model.target(framework), rules=rules_for(name, framework), dtype="float64")
    report = altered.verify(
        lambda _tree, inputs: [other(torch.as_tensor(inputs)).detach().numpy()],
        ptc_jax.computes(model.apply(framework)),
        tree["model"]["state"],
        model.inputs,
    )
    assert not report.ok
    assert [level.outcome for level in report.levels] == ["equal", "different", "not checked", "not checked"]


@pytest.mark.parametrize(("name", "framework"), PAIRS)
def test_a_target_may_be_abstract_or_have_values_or_be_captured(name, framework):
    model = MODELS[name]
    ours = model.module()
    tree = ptc_torch.capture(model=ours, rng=False)
    abstract = planned(name, tree, framework).apply(tree).tree
    concrete = planned(name, tree, framework, model.concrete(framework)).apply(tree).tree
    expected = bits(abstract)
    found = bits(concrete)
    # What nothing comes to keeps the target's values, where it has some.
    assert expected.items() <= found.items()
    assert {key[-1] for key in found.keys() - expected.keys()} <= NOT_CONVERTED
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(concrete) if hasattr(leaf, "dtype"))
    captured = ptc_jax.capture(model=model.concrete(framework), rng=False)
    through_capture = planned(name, tree, framework, captured).apply(tree).tree
    restored = ptc_jax.restore_into(through_capture, model=model.concrete(framework))["model"]
    restored = nnx.state(restored) if framework == "nnx" else restored
    assert bits(restored) == found


@pytest.mark.parametrize(("name", "framework"), PAIRS)
def test_a_target_may_only_be_named(name, framework):
    ours = MODELS[name].module()
    plan = convert.plan(ours, framework, rules=rules_for(name, framework))
    named, residuals = plan.apply(ours)
    assert bits(plan.invert().apply(named, residuals=residuals).tree) == bits(ours.state_dict())
    given = planned(name, ours, framework).apply(ours, to="numpy").tree
    expected = {key: value for key, value in bits(given).items() if "rngs" not in key}
    if (name, framework) == ("reader", "nnx"):
        # By default, nnx's LSTM is the plain one, whose gates have kernels of their own.
        assert len(named["lstm"]["cell"]) == 8
        return
    if framework == "equinox":
        expected = {key: value for key, value in expected.items() if "batch_counter" not in key}
    assert bits(named) == expected


@pytest.mark.parametrize(("name", "framework"), PAIRS)
def test_a_source_may_be_a_module_what_was_captured_or_a_checkpoint(name, framework, tmp_path):
    ours = MODELS[name].module()
    tree = ptc_torch.capture(model=ours, rng=False)
    path = tmp_path / "run.ptck"
    ptc_torch.save_training(path, model=ours, step=3)
    expected = planned(name, tree, framework).apply(tree).tree
    assert bits(planned(name, ours, framework).apply(ours).tree) == bits(expected)
    with ptc.open(path) as checkpoint:
        assert bits(planned(name, checkpoint, framework).apply(checkpoint).tree) == bits(expected)
    as_numpy = ptc.restore(path, to="numpy")
    assert bits(planned(name, as_numpy, framework).apply(as_numpy).tree) == bits(expected)


@pytest.mark.parametrize(("name", "framework"), PAIRS)
def test_a_plain_state_dict_needs_to_be_told_what_cannot_be_seen(name, framework):
    ours = MODELS[name].module()
    state = ours.state_dict()
    kinds = [
        convert.Kind(layer.replace(".", "/"), type(module).__name__)
        for layer, module in ours.named_modules()
        if any(True for _ in module.parameters(recurse=False)) and hasattr(torch.nn, type(module).__name__)
    ]
    if framework != "equinox" and name != "attention":
        # Square matrices may be transposed, or not. Equinox has none that are, and attention has no second layout.
        with pytest.raises(ptc.ConversionError) as caught:
            planned(name, state, framework)
        assert caught.value.ambiguous
        assert all("Kind(" in text for text in caught.value.ambiguous)
    plan = planned(name, state, framework, rules=kinds)
    assert bits(plan.apply(state).tree) == bits(planned(name, ours, framework).apply(ours).tree)
    as_numpy = {key: tensor.numpy() for key, tensor in state.items()}
    assert bits(planned(name, as_numpy, framework, rules=kinds).apply(as_numpy).tree) == bits(plan.apply(state).tree)


@pytest.mark.parametrize(("name", "framework"), PAIRS)
def test_from_jax_to_a_module_of_torch_its_capture_or_one_on_the_meta_device(name, framework):
    model = MODELS[name]
    ours = model.module()
    forth = planned(name, ours, framework, model.concrete(framework))
    theirs, residuals = forth.apply(ours)
    source = _module(model, framework, theirs)
    back = forth.invert().apply(source, residuals=residuals).tree
    assert bits(back) == bits(ours.state_dict())

    fresh = model.torch().double()
    plan = planned(name, source, framework, fresh)
    loaded = plan.apply(source).tree
    fresh.load_state_dict(loaded)
    inputs = torch.as_tensor(model.inputs)
    assert np.abs((fresh.eval()(inputs) - ours(inputs)).detach().numpy()).max() < 1e-12

    on_meta = model.torch().double().to("meta")
    captured = ptc_torch.capture(model=on_meta, rng=False)
    tree = planned(name, source, framework, captured).apply(source).tree
    ptc_torch.restore_into(tree, model=on_meta)
    assert bits(on_meta.state_dict()) == bits(loaded)


def _module(model, framework, tree):
    """What a program of JAX has: the module itself, but in linen."""
    if framework == "nnx":
        module = model.nnx()
        nnx.update(module, tree)
        return module
    return tree


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_all_parameters_can_be_given_another_dtype_and_come_back_to_the_bit(framework, dtype):
    ours = MODELS["cnn"].module()
    plan = convert.plan(ours, MODELS["cnn"].target(framework), rules=rules_for("cnn", framework), dtype=dtype)
    theirs, residuals = plan.apply(ours, to="jax")
    floats = [leaf for leaf in jax.tree.leaves(theirs) if jnp.issubdtype(getattr(leaf, "dtype", int), jnp.floating)]
    assert floats
    assert {str(leaf.dtype) for leaf in floats} == {dtype}
    assert bits(plan.invert().apply(theirs, residuals=residuals).tree) == bits(ours.state_dict())


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_narrower_target_is_refused_unless_values_may_be_rounded(framework):
    ours = MODELS["mlp"].module()
    target = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, jnp.float32) if hasattr(leaf, "shape") else leaf,
        MODELS["mlp"].target(framework),
    )
    with pytest.raises(ptc.ConversionError, match="cast=True"):
        convert.plan(ours, target)
    rounded = convert.plan(ours, target, cast=True).apply(ours).tree
    assert {array.dtype for array in arrays(rounded).values()} == {np.dtype(np.float32)}


def test_several_models_keep_the_names_of_their_objects():
    source = ptc_torch.capture(G=MODELS["mlp"].module(), D=MODELS["reader"].module(seed=1), rng=False)
    target = {"G": MODELS["mlp"].nnx(), "D": MODELS["reader"].nnx()}
    plan = convert.plan(source, target)
    made = plan.apply(source).tree
    assert bits(made["G"]) == bits(planned("mlp", source_of(source, "G"), "nnx").apply(source_of(source, "G")).tree)
    back = plan.invert().apply(made, residuals=plan.apply(source).residuals).tree
    assert bits(back) == bits(source)


def source_of(tree, name):
    return {name: tree[name], "training": {**tree["training"], "roles": {name: tree["training"]["roles"][name]}}}


@pytest.mark.parametrize("mode", ["batch", "ema"])
def test_a_batch_norm_of_equinox_does_not_take_its_statistics_for_new(mode):
    # By its counts it would divide them by 1 - momentum, or overwrite them, after the next batch.
    ours = randomised(torch.nn.BatchNorm1d(3))
    made = convert.plan(ours, eqx.nn.BatchNorm(3, "batch", momentum=0.9, mode=mode, dtype=jnp.float64)).apply(ours).tree
    counted = made.batch_counter if mode == "batch" else made.ema_first_time_index
    assert int(counted.init) == (2**30 if mode == "batch" else 0)
    back = convert.plan(made, torch.nn.BatchNorm1d(3).double()).apply(made).tree
    assert torch.equal(back["running_var"], ours.running_var)


# What is lost, or never was.


def dense(inputs, outputs):
    return {"kernel": np.zeros((inputs, outputs)), "bias": np.zeros(outputs)}


def test_a_bias_that_a_state_dict_lacks_is_missing_and_not_invented():
    state = {"fc.weight": np.ones((3, 2))}
    with pytest.raises(ptc.ConversionError) as caught:
        convert.plan(state, {"fc": dense(2, 3)})
    (text,) = caught.value.missing
    assert text.startswith("fc/bias: ")
    assert 'declare Fill("fc/bias", 0)' in text
    made = convert.plan(state, {"fc": dense(2, 3)}, rules=[convert.Fill("fc/bias", 0)]).apply(state).tree
    assert np.array_equal(made["fc"]["bias"], np.zeros(3))


def test_what_was_captured_of_a_batch_norm_and_lost_is_missing():
    tree = ptc_torch.capture(model=torch.nn.ModuleDict({"norm": torch.nn.BatchNorm1d(3)}), rng=False)
    for name in ("weight", "running_mean", "running_var"):
        del tree["model"]["state"][f"norm.{name}"]
    target = {
        "params": {"norm": {"scale": np.zeros(3, np.float32), "bias": np.zeros(3, np.float32)}},
        "batch_stats": {"norm": {"mean": np.zeros(3, np.float32), "var": np.zeros(3, np.float32)}},
    }
    with pytest.raises(ptc.ConversionError) as caught:
        convert.plan(tree, target)
    advice = ['Fill("norm/scale", 1)', 'Fill("norm/mean", 0)', 'Fill("norm/var", 1)']
    assert all(each in text for each, text in zip(advice, caught.value.missing, strict=True))


def test_what_a_rule_drops_is_not_filled_again():
    module = randomised(torch.nn.ModuleDict({"fc": torch.nn.Linear(2, 3)}))
    with pytest.raises(ptc.ConversionError, match=r"fc/bias"):
        convert.plan(module, {"fc": dense(2, 3)}, rules=[convert.Drop("fc.bias")])


def test_a_trained_bias_that_torch_has_no_place_for_is_not_dropped_in_silence():
    module = torch.nn.ModuleDict({"fc": torch.nn.Linear(2, 3, bias=False)}).double()
    plan = convert.plan({"fc": dense(2, 3)}, module)
    assert plan.apply({"fc": dense(2, 3)}).tree["fc.weight"].shape == (3, 2)
    with pytest.raises(ptc.ConversionError, match=r"other values than 0"):
        plan.apply({"fc": {**dense(2, 3), "bias": np.full(3, 7.0)}})


class Plus(torch.nn.RMSNorm):
    def forward(self, x):
        return torch.nn.functional.rms_norm(x, self.normalized_shape, 1 + self.weight, self.eps)


class Same(torch.nn.RMSNorm):
    pass


def test_a_class_with_a_forward_of_its_own_is_noted():
    target = {"norm": {"scale": np.zeros(3)}}
    for cls, expected in ((Plus, 1), (Same, 0)):
        module = randomised(torch.nn.ModuleDict({"norm": cls(3)}))
        for source in (module, ptc_torch.capture(model=module, rng=False)):
            notes = [note for note in convert.plan(source, target).notes if note.startswith("forward:")]
            assert len(notes) == expected
            assert all("Plus" in note and "torch.nn.RMSNorm" in note and note.endswith("(norm)") for note in notes)


def test_a_class_that_a_rule_declares_to_be_of_a_kind_is_not_noted():
    module = randomised(torch.nn.ModuleDict({"norm": Plus(3)}))
    notes = convert.plan(module, {"norm": {"scale": np.zeros(3)}}, rules=[convert.Kind("norm", "RMSNorm")]).notes
    assert not any(note.startswith("forward:") for note in notes)


# What an error says.


def test_the_model_itself_is_called_so():
    with pytest.raises(ptc.ConversionError) as caught:
        convert.plan(randomised(torch.nn.Linear(2, 3)), dense(2, 4))
    (text,) = caught.value.mismatched
    assert text.startswith("the model itself, to the model itself: kernel (in, out): weight of [3, 2]")


def test_of_a_layer_that_does_not_fit_what_is_within_is_not_said_to_be_left_over():
    module = randomised(torch.nn.ModuleDict({"attention": torch.nn.MultiheadAttention(4, 2, add_zero_attn=True)}))
    heads = {name: {"kernel": np.zeros((4, 2, 2)), "bias": np.zeros((2, 2))} for name in ("query", "key", "value")}
    target = {"attention": {**heads, "out": {"kernel": np.zeros((2, 2, 4)), "bias": np.zeros(4)}}}
    with pytest.raises(ptc.ConversionError) as caught:
        convert.plan(module, target)
    assert len(caught.value.mismatched) == 1
    assert caught.value.unexpected == caught.value.missing == ()


def test_close_names_are_looked_for_as_often_as_anyone_reads_them(monkeypatch):
    asked = []
    found = leftovers.close_names
    monkeypatch.setattr(leftovers, "close_names", lambda *given: asked.append(given) or found(*given))
    state = {
        f"h.{i}.fc.{name}": np.ones((3, 2)[: 2 - (name == "bias")]) for i in range(150) for name in ("weight", "bias")
    }
    with pytest.raises(ptc.ConversionError) as caught:
        convert.plan(
            state, {f"x_h_{i}": {"fc": dense(2, 3)} for i in range(150)}, rules=[convert.Kind("**.fc", "Linear")]
        )
    assert len(caught.value.unexpected) == len(caught.value.missing) == 300
    # No more than an error shows of each kind; and among layers once each, not once for each leaf.
    searches = [candidates for _, candidates in asked if candidates]
    assert len(searches) == 80
    assert all(len(candidates) == len(set(candidates)) for candidates in searches)


def test_planning_needs_no_memory_for_weights():
    big = 1 << 18
    source = torch.nn.ModuleDict({"words": torch.nn.Embedding(big, big, device="meta")})
    state = dict(source.state_dict())
    target = {"words": {"embedding": jax.ShapeDtypeStruct((big, big), jnp.float32)}}
    for given in (source, state):
        (entry,) = convert.plan(given, target).entries
        assert entry.operations == ()
    linear = {"words.weight": state["words.weight"]}
    with pytest.raises(ptc.ConversionError) as caught:
        convert.plan(linear, {"words": {"kernel": target["words"]["embedding"]}})
    assert "admits 2 layouts" in caught.value.ambiguous[0]
