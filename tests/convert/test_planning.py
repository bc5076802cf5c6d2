"""Planning: what is decided, and what is not, which is an error that lists the candidates."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
import pytreeckpt_torch as ptc_torch
from pytreeckpt import convert
from pytreeckpt.convert.inventory import inventory_of
from pytreeckpt.convert.names import steps_of
from pytreeckpt.convert.operations import PermuteEach, Repeat, Tie
from pytreeckpt.paths import Path
from tests.convert.layers_side_by_side import normal, randomised, rngs


def refused(source, target, **options):
    with pytest.raises(ptc.ConversionError) as caught:
        convert.plan(source, target, **options)
    return caught.value


def seq(*layers):
    return randomised(torch.nn.Sequential(*layers))


def kernel(*shape):
    return {"layers_0": {"kernel": np.zeros(shape), "bias": np.zeros(shape[-1])}}


# What shapes do not decide.

UNDECIDABLE = {
    "a square Linear": (torch.nn.Linear(4, 4), kernel(4, 4), 'Kind("0", "Linear")'),
    "a cubic Conv3d": (torch.nn.Conv3d(3, 3, 3), kernel(3, 3, 3, 3, 3), 'Kind("0", "Conv3d")'),
    "a ConvTranspose": (torch.nn.ConvTranspose2d(3, 3, 2), kernel(2, 2, 3, 3), 'Kind("0", "ConvTranspose2d")'),
}


@pytest.mark.parametrize("name", UNDECIDABLE)
def test_without_recorded_kinds_shapes_that_admit_several_layouts_are_refused(name):
    module, target, _ = UNDECIDABLE[name]
    state = {key: tensor.numpy() for key, tensor in seq(module).state_dict().items()}
    error = refused(state, target)
    (text,) = error.ambiguous
    assert text.startswith("0 (weight")
    assert "Kind(" in text
    assert text.count("weight → ") >= 1
    assert len(text.splitlines()) >= 3
    # What was told is not told again.
    assert error.missing == error.unexpected == error.mismatched == ()


@pytest.mark.parametrize("name", UNDECIDABLE)
def test_annotations_may_be_ignored(name):
    module, target, _ = UNDECIDABLE[name]
    source = ptc_torch.capture(model=seq(module), rng=False)
    assert refused(source, target, annotations="ignore").ambiguous
    if name != "a ConvTranspose":
        assert convert.plan(source, target).entries


def test_a_kind_that_is_known_may_still_leave_two_layouts():
    module, target, _ = UNDECIDABLE["a ConvTranspose"]
    (text,) = refused(seq(module), target).ambiguous
    assert "transpose_kernel=True" in text
    assert 'Choose("0", ' in text
    chosen = convert.Choose("0", "kernel (*axes, out, in), transpose_kernel=True")
    made = convert.plan(seq(module), target, rules=[chosen]).apply(seq(module)).tree
    assert np.array_equal(made["layers_0"]["kernel"], seq(module)[0].weight.detach().numpy().transpose(2, 3, 1, 0))


def test_what_shapes_decide_needs_no_kinds():
    state = {key: tensor.numpy() for key, tensor in seq(torch.nn.Linear(2, 3)).state_dict().items()}
    plan = convert.plan(state, kernel(2, 3))
    assert all("only layout that fits" in entry.reason for entry in plan.entries)
    assert np.array_equal(plan.apply(state).tree["layers_0"]["kernel"], state["0.weight"].T)


def test_a_recorded_kind_of_the_other_side_that_contradicts_is_refused():
    target = nnx.Sequential(nnx.Embed(4, 4, rngs=rngs()))
    error = refused(seq(torch.nn.Linear(4, 4, bias=False)), target, cast=True)
    (text,) = error.mismatched
    assert "flax.nnx.Embed" in text


# Names.


def test_two_layers_that_a_name_may_stand_for_are_listed():
    module = torch.nn.ModuleDict({"net": torch.nn.Sequential(torch.nn.Linear(2, 3))})
    layer = {"kernel": np.zeros((2, 3)), "bias": np.zeros(3)}
    target = {"net": {"0": layer, "layers": {"0": dict(layer)}}}
    error = refused(randomised(module), target)
    assert error.ambiguous[0].startswith("net/0 may be net/0 or net/layers/0")
    assert "rename" in error.ambiguous[0]


def test_two_leaves_that_a_name_may_stand_for_are_listed():
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale_1 = torch.nn.Parameter(torch.zeros(3))

    target = {"scale": {"1": np.zeros(3)}, "scale/1": np.zeros(3)}
    assert convert.plan(randomised(Own()), target | {}, rules=[convert.Waive(missing='"scale/1"')]).entries
    one = {"scale": {"1": np.zeros(3)}, "scale_1": np.zeros(3)}
    # What is written alike goes first.
    (entry,) = convert.plan(randomised(Own()), one, rules=[convert.Waive(missing="scale.1")]).entries
    assert str(entry.targets[0]) == "scale_1"


def test_what_is_left_over_is_listed_with_what_is_close():
    target = {"layer_0": {"kernel": np.zeros((2, 3)), "bias": np.zeros(3)}}
    module = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([torch.nn.Linear(2, 3)])})
    error = refused(randomised(module), target)
    assert len(error.missing) == len(error.unexpected) == 2
    assert all("there is no layer layers/0; there is layer_0" in text for text in error.unexpected)
    assert all("layers/0" in text for text in error.missing)
    assert convert.plan(randomised(module), target, rules=[convert.Rename("layers", "layer")]).entries


def test_all_that_is_wrong_is_said_at_once():
    source = seq(torch.nn.Linear(4, 4), torch.nn.ConvTranspose2d(3, 3, 2), torch.nn.Linear(2, 3))
    target = {
        "layers_1": {"kernel": np.zeros((2, 2, 3, 3)), "bias": np.zeros(3)},
        "layers_2": {"kernel": np.zeros((2, 5)), "bias": np.zeros(5)},
        "extra": np.zeros(1),
    }
    error = refused(source, target)
    assert len(error.ambiguous) == 1
    assert len(error.mismatched) == 1
    assert "come to [2, 3], and there is [2, 5]" in error.mismatched[0]
    assert [text.partition(":")[0] for text in error.unexpected] == ["0.weight", "0.bias"]
    assert [text.partition(":")[0] for text in error.missing] == ["extra"]
    for part in (*error.ambiguous, *error.mismatched, *error.unexpected, *error.missing):
        assert part in str(error)


def test_a_draft_has_what_is_wrong_beside_the_plan():
    made = convert.draft(seq(torch.nn.Linear(2, 3)), {**kernel(2, 3), "extra": np.zeros(1)})
    assert len(made.plan.entries) == 2
    assert len(made.problems.missing) == 1
    assert bool(made.problems)
    assert not convert.draft(seq(torch.nn.Linear(2, 3)), kernel(2, 3)).problems


# Sources and targets.


def test_what_is_no_model_is_said_to_be_none():
    for source in ({}, {"step": 3}, {"a": "text"}):
        with pytest.raises(ptc.StructureMismatchError, match="no model"):
            convert.plan(source, kernel(2, 3))


def test_several_state_dicts_are_not_chosen_from():
    state = seq(torch.nn.Linear(2, 3)).state_dict()
    with pytest.raises(ptc.StructureMismatchError, match="several state dicts"):
        convert.plan({"model": state, "ema": dict(state)}, kernel(2, 3))


def test_an_optimizer_alone_is_refused_with_advice():
    module = seq(torch.nn.Linear(2, 3))
    with pytest.raises(ptc.UnsupportedTypeError, match="capture"):
        convert.plan({"model": module, "optimizer": torch.optim.SGD(module.parameters())}, kernel(2, 3))


def dense(value=0.0, *shape):
    return {"kernel": np.full(shape or (2, 3), value), "bias": np.full((shape or (2, 3))[-1], value)}


def test_several_variables_are_models_of_their_own_and_none_is_chosen():
    source = {"online": {"params": dense(1.0)}, "ema": {"params": dense(2.0)}}
    error = refused(source, torch.nn.Linear(2, 3).double())
    assert [text.partition(":")[0] for text in error.unexpected] == [
        f"{which}/params/{leaf}" for which in source for leaf in ("kernel", "bias")
    ]
    for which, value in (("online", 1.0), ("ema", 2.0)):
        (other,) = {*source} - {which}
        rules = [convert.Rename("", which), convert.Waive(unused=f"{other}/**")]
        tree = convert.plan(source, torch.nn.Linear(2, 3).double(), rules=rules).apply(source).tree
        assert tree["bias"].tolist() == [value] * 3
    error = refused(torch.nn.Linear(2, 3).double(), {"online": {"params": dense()}, "target": {"params": dense()}})
    assert len(error.missing) == 4


def test_several_models_find_each_other_by_their_names():
    models = {"generator": torch.nn.Linear(2, 3).double(), "discriminator": torch.nn.Linear(3, 1).double()}
    target = {"discriminator": {"params": dense(0.0, 3, 1)}, "generator": {"params": dense()}}
    tree = (
        convert.plan(ptc_torch.capture(**models, rng=False), target).apply(ptc_torch.capture(**models, rng=False)).tree
    )
    for name, model in models.items():
        assert np.array_equal(tree[name]["params"]["kernel"], model.weight.detach().numpy().T)


def test_variables_within_variables_are_one_model():
    target = {"params": {"layers_0": dense()}, "ema": {"params": {"layers_0": dense()}}}
    plan = convert.plan(seq(torch.nn.Linear(2, 3)), target)
    assert {str(path) for entry in plan.entries for path in entry.targets} == {
        "params/layers_0/kernel",
        "params/layers_0/bias",
    }


@pytest.mark.parametrize("other", ["sigma", "nu"])
@pytest.mark.parametrize("within", [False, True])
def test_a_layer_may_be_called_as_the_moments_of_optimizers_are(other, within):
    source = randomised(torch.nn.ModuleDict({"mu": torch.nn.Linear(2, 3), other: torch.nn.Linear(2, 3)}))
    target = {"mu": dense(), other: dense()}
    target = {"params": target} if within else target
    plan = convert.plan(source, target)
    tree = plan.apply(source).tree
    tree = tree["params"] if within else tree
    assert np.array_equal(tree["mu"]["kernel"], source["mu"].weight.detach().numpy().T)
    back = convert.plan(tree, source).apply(tree).tree
    assert all(torch.equal(back[name], tensor) for name, tensor in source.state_dict().items())


def test_moments_of_an_optimizer_are_no_parameters_wherever_its_state_is():
    params = {"layers_0": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}}
    for made in (optax.adam(0.1), optax.sgd(0.1, momentum=0.9)):
        for tree in ((params, made.init(params)), {"model": params, "optimizer": made.init(params)}):
            found = inventory_of(tree)
            assert [leaf.path[1:] for leaf in found.model.leaves.values()] == [
                Path.parse("layers_0/kernel"),
                Path.parse("layers_0/bias"),
            ]


def test_layers_whose_names_differ_in_how_they_number_their_parts_stay_apart():
    source = randomised(torch.nn.ModuleDict({"conv_1": torch.nn.Linear(2, 3)}))
    source["conv"] = torch.nn.ModuleDict({"1": torch.nn.Linear(2, 3)})
    randomised(source)
    for target in (
        {"conv_1": dense(), "conv": {"1": dense()}},
        {"conv": {"1": dense()}, "conv_1": dense()},
    ):
        tree = convert.plan(source, target).apply(source).tree
        assert np.array_equal(tree["conv_1"]["bias"], source["conv_1"].bias.detach().numpy())
        assert np.array_equal(tree["conv"]["1"]["bias"], source["conv"]["1"].bias.detach().numpy())
    named = convert.plan(source, "nnx").apply(source).tree
    assert np.array_equal(named["conv_1"]["bias"], source["conv_1"].bias.detach().numpy())
    assert np.array_equal(named["conv"][1]["bias"], source["conv"]["1"].bias.detach().numpy())
    with pytest.raises(ptc.StructureMismatchError, match="both params/conv_1/kernel in linen: rename one"):
        convert.plan(source, "linen")


def test_a_name_that_may_be_two_that_are_numbered_otherwise_is_refused():
    source = {"a.1.2.weight": normal(3, 2)}
    target = {"a_1": {"2": {"kernel": np.zeros((2, 3))}}, "a": {"1_2": {"kernel": np.zeros((2, 3))}}}
    with pytest.raises(ptc.StructureMismatchError, match="a/1/2 may be a_1/2 or a/1_2: say which with a rename"):
        convert.plan(source, target)
    rules = [convert.Rename("a.1.2", "a/1_2"), convert.Waive(missing="a_1/**")]
    assert convert.plan(source, target, rules=rules).entries


# Ties.


def tied(own=torch.nn.Linear):
    model = torch.nn.ModuleDict({"one": own(3, 3), "two": own(3, 3)}).double()
    model["two"].weight, model["two"].bias = model["one"].weight, model["one"].bias
    return model


@pytest.mark.parametrize("leaf", [np.zeros, jnp.zeros, lambda shape: jax.ShapeDtypeStruct(shape, np.float64)])
def test_leaves_of_jax_that_are_one_object_are_not_tied(leaf):
    kernel, bias = leaf((3, 3)), leaf((3,))
    target = {name: {"kernel": kernel, "bias": bias} for name in ("one", "two")}
    source = randomised(torch.nn.ModuleDict({"one": torch.nn.Linear(3, 3)})).float()
    error = refused(source, target, cast=True)
    assert [text.partition(":")[0] for text in error.missing] == ["two/kernel", "two/bias"]
    if leaf is np.zeros:
        assert len(refused(target, source.double()).unexpected) == 2


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_names_of_one_parameter_take_one_leaf(device):
    model = tied()
    if device == "meta":
        model = model.to("meta")
        model["two"].weight, model["two"].bias = model["one"].weight, model["one"].bias
    source = {"one": dense(5.0, 3, 3)}
    plan = convert.plan(source, model)
    assert [len(entry.targets) for entry in plan.entries] == [2, 2]
    tree = plan.apply(source).tree
    assert tree["one.weight"].tolist() == tree["two.weight"].tolist() == [[5.0] * 3] * 3


def test_parameters_on_the_meta_device_that_only_look_alike_are_not_tied():
    model = torch.nn.ModuleDict({"one": torch.nn.Linear(3, 3), "two": torch.nn.Linear(3, 3)}).double().to("meta")
    assert len(refused({"one": dense(5.0, 3, 3)}, model).missing) == 2


def test_leaves_that_are_one_parameter_of_torch_have_to_be_equal():
    model = tied()
    source = {"one": dense(1.0, 3, 3), "two": dense(1.0, 3, 3)}
    plan = convert.plan(source, model)
    assert any("they part when trained there" in note for note in plan.notes)
    tree = plan.apply(source).tree
    model.load_state_dict(tree)
    assert tree["one.weight"].tolist() == tree["two.weight"].tolist() == [[1.0] * 3] * 3
    with pytest.raises(ptc.ConversionError, match="should be equal, and are not"):
        plan.apply({**source, "two": dense(2.0, 3, 3)})
    forth = convert.plan(model, source)
    made, residuals = forth.apply(model)
    back = forth.invert().apply(made, residuals=residuals).tree
    assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())
    made["two"]["bias"] = made["two"]["bias"] + 1
    with pytest.raises(ptc.ConversionError, match="should be equal, and are not"):
        forth.invert().apply(made, residuals=residuals)


def test_an_embedding_and_the_head_that_is_tied_to_it_have_to_be_equal_on_the_way_to_torch():
    model = torch.nn.ModuleDict({"emb": torch.nn.Embedding(5, 3), "head": torch.nn.Linear(3, 5, bias=False)}).double()
    model["head"].weight = model["emb"].weight
    target = {"emb": {"embedding": np.zeros((5, 3))}, "head": {"kernel": np.zeros((3, 5))}}
    plan = convert.plan(model, target)
    (entry,) = plan.entries
    assert entry.operations == (Tie(2), Repeat(2), PermuteEach(((0, 1), (1, 0))))
    assert convert.from_document(convert.to_document(plan)) == plan
    made, residuals = plan.apply(model)
    assert np.array_equal(made["head"]["kernel"], made["emb"]["embedding"].T)
    back = plan.invert().apply(made, residuals=residuals).tree
    assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())
    made["head"]["kernel"] = made["head"]["kernel"] + 1
    for backward in (plan.invert(), convert.plan(made, model)):
        with pytest.raises(ptc.ConversionError, match="should be equal, and are not"):
            backward.apply(made)


@pytest.mark.parametrize("scheme", ["linen", "nnx"])
def test_a_layer_that_is_taken_by_its_own_name_is_no_counterpart_of_another(scheme):
    source = torch.nn.ModuleDict({"layers_0": torch.nn.Linear(3, 3)})
    source["layers"] = torch.nn.Sequential(torch.nn.Linear(3, 3))
    plan = convert.plan(randomised(source), scheme)
    paths = {str(entry.sources[0]): steps_of(entry.targets[0]) for entry in plan.entries}
    plain = {
        name: "/".join(path).removeprefix("params/").replace("layers/0", "layers_0") for name, path in paths.items()
    }
    assert plain["layers_0.weight"] == "layers_0/kernel"
    assert plain["layers.0.weight"] == "layers/layers_0/kernel"


def test_a_third_name_of_a_parameter_goes_with_those_that_have_leaves():
    model = tied()
    model["three"] = torch.nn.Linear(3, 3)
    model["three"].weight, model["three"].bias = model["one"].weight, model["one"].bias
    plan = convert.plan(model, {"one": dense(1.0, 3, 3), "two": dense(1.0, 3, 3)})
    assert [(len(entry.sources), len(entry.targets)) for entry in plan.entries] == [(3, 2), (3, 2)]


def test_between_two_frameworks_of_jax_the_way_is_by_torch():
    equinox = {"weight": np.zeros((3, 2)), "bias": np.zeros(3)}
    with pytest.raises(ptc.StructureMismatchError, match="convert to torch"):
        convert.plan({"params": kernel(2, 3)}, equinox)


def test_options_are_checked():
    with pytest.raises(ValueError, match="annotations"):
        convert.plan({}, {}, annotations="some")
    with pytest.raises(ValueError, match="floating-point"):
        convert.plan({}, {}, dtype="int32")
    with pytest.raises(ValueError, match="no dtype"):
        convert.plan({}, {}, dtype="float31")
    with pytest.raises(ValueError, match="no scheme"):
        convert.plan(seq(torch.nn.Linear(2, 3)), "keras")


def test_from_torch_to_torch_names_have_to_be_the_same():
    source = seq(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    other = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).double()
    made = convert.plan(source, other).apply(source).tree
    assert all(torch.equal(made[name], tensor) for name, tensor in source.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_narrow_floats_widen_without_being_asked_and_come_back_to_the_bit(dtype):
    source = seq(torch.nn.Linear(2, 3)).to(dtype)
    plan = convert.plan(source, kernel(2, 3))
    made, residuals = plan.apply(source)
    assert made["layers_0"]["kernel"].dtype == np.float64
    back = plan.invert().apply(made, residuals=residuals).tree
    assert all(torch.equal(back[name], tensor) for name, tensor in source.state_dict().items())
    assert back["0.weight"].dtype == dtype


def test_a_narrower_target_keeps_what_was_rounded_as_a_residual():
    source = seq(torch.nn.Linear(2, 3))
    target = jax.tree.map(lambda each: each.astype(ml_dtypes.bfloat16), kernel(2, 3))
    assert "cast=True rounds" in refused(source, target).mismatched[0]
    plan = convert.plan(source, target, cast=True)
    made, residuals = plan.apply(source)
    assert set(residuals) == {"0.weight", "0.bias"}
    assert made["layers_0"]["kernel"].dtype == ml_dtypes.bfloat16
    back = plan.invert().apply(made, residuals=residuals).tree
    assert all(torch.equal(back[name], tensor) for name, tensor in source.state_dict().items())


# Applying.


def test_a_tree_of_another_model_is_refused_as_a_whole():
    plan = convert.plan(seq(torch.nn.Linear(2, 3)), kernel(2, 3))
    with pytest.raises(ptc.ConversionError) as caught:
        plan.apply(seq(torch.nn.Linear(2, 4)))
    assert len(caught.value.mismatched) == 2
    with pytest.raises(ptc.ConversionError, match="there is none"):
        plan.apply(seq(torch.nn.Tanh(), torch.nn.Linear(2, 3)))


def test_results_share_no_memory_with_the_source():
    state = {"0.weight": normal(3, 2), "0.bias": normal(3)}
    made = convert.plan(state, kernel(2, 3)).apply(state).tree
    for leaf in jax.tree.leaves(made):
        assert not any(np.shares_memory(leaf, array) for array in state.values())
        assert leaf.flags.c_contiguous


def test_what_was_dropped_comes_back_from_residuals_or_from_a_target_that_has_it():
    source = seq(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    plan = convert.plan(source, "linen")
    made, residuals = plan.apply(source)
    assert list(residuals) == ["1.num_batches_tracked"]
    assert int(plan.invert().apply(made, residuals=residuals).tree["1.num_batches_tracked"]) == 7
    # The plan's own source has it too.
    assert int(plan.invert().apply(made).tree["1.num_batches_tracked"]) == 7
    stored = convert.from_document(convert.to_document(plan)).invert()
    assert int(stored.apply(made).tree["1.num_batches_tracked"]) == 0


def test_arrays_are_of_the_framework_of_the_target_or_as_asked():
    source = seq(torch.nn.Linear(2, 3))
    in_jax = jax.tree.map(jnp.asarray, jax.tree.map(lambda each: each.astype(np.float32), kernel(2, 3)))
    plan = convert.plan(source, in_jax, cast=True)
    kinds = {to: type(plan.apply(source, to=to).tree["layers_0"]["bias"]) for to in ("auto", "numpy", "torch")}
    assert issubclass(kinds["auto"], jax.Array)
    assert kinds["numpy"] is np.ndarray
    assert kinds["torch"] is torch.Tensor


def test_a_report_has_a_line_for_layers_that_differ_in_numbers_only():
    source = seq(*(torch.nn.Linear(2, 2) for _ in range(12)), torch.nn.BatchNorm1d(2))
    plan = convert.plan(source, "linen")
    report = plan.report()
    assert [row.count for row in report.mapped[:2]] == [12, 12]
    assert report.n_entries == len(plan.entries) == 29
    text = str(report)
    assert "torch to flax, 29 entries" in text
    assert "×12" in text
    assert "dropped, kept as residuals" in text
    assert "permute [1, 0]" in text


# Properties.

WORDS = st.sampled_from(["a", "b", "block", "block_1", "1", "2", "layers", "layers_1", "attn", "mlp"])


@st.composite
def trees_of_layers(draw):
    """Linear layers of few shapes, at names of several steps, none within another."""
    names = draw(st.lists(st.lists(WORDS, min_size=1, max_size=3).map(tuple), min_size=1, max_size=5, unique=True))
    names = [name for name in names if not any(other != name and name[: len(other)] == other for other in names)]
    return {name: (draw(st.integers(2, 3)), draw(st.integers(2, 3))) for name in names}


@given(trees_of_layers(), st.data())
def test_renamed_trees_are_matched_or_refused_and_never_mismatched(layers, data):
    generator = np.random.default_rng(0)
    source, target, expected = {}, {}, {}
    for name, (ins, outs) in layers.items():
        weight = generator.normal(size=(outs, ins))
        source[".".join((*name, "weight"))] = weight
        # Each step as it is, or numbered as another framework does it; or misspelt, in one of some.
        other = list(name)
        if data.draw(st.integers(0, 4)) == 0:
            place = data.draw(st.integers(0, len(other) - 1))
            other[place] = data.draw(WORDS)
        at = target
        for step in other:
            at = at.setdefault(step, {})
            if not isinstance(at, dict):
                return
        if at:
            # Two at one place, or one within another: no tree of layers.
            return
        at["kernel"] = np.zeros((ins, outs))
        expected.setdefault(tuple(other), name)
    try:
        plan = convert.plan(source, target, rules=[convert.Kind("**", "Linear")])
    except ptc.PytreeckptError:
        assert any(other != name for other, name in expected.items()) or not _is_plain(layers)
        return
    made = plan.apply(source).tree
    used = [str(path) for entry in plan.entries for path in entry.sources]
    assert sorted(used) == sorted(source)
    for entry in plan.entries:
        at = made
        for step in entry.targets[0]:
            at = at[step.key]
        assert np.array_equal(at, source[str(entry.sources[0])].T)
        # A name goes to itself, if it is there.
        here = tuple(str(entry.sources[0]).split("."))[:-1]
        if here in expected and expected[here] == here:
            there = tuple(step.key for step in entry.targets[0])[:-1]
            assert "_".join(there) == "_".join(here)


def _is_plain(layers):
    """Whether no two names are the same but for how they number their parts, or but for `layers`."""
    plain = ["/".join(name).replace("_", "/").replace("layers/", "") for name in layers]
    return len(set(plain)) == len(plain) and all("/layers" not in f"/{each}" for each in plain)
