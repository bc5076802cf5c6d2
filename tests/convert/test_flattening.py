"""Layers that read or give a flattened image: torch and Flax order their features differently, and no shape says so."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt import convert
from pytreeckpt.convert import Flattened, Kind, RuleError
from tests.convert.layers_side_by_side import randomised

C, H, W = 4, 2, 3
IMAGE = (C, H, W)
FLAT = C * H * W


def zeros(**leaves):
    return {name: np.zeros(shape) for name, shape in leaves.items()}


def refused(source, target, *rules):
    with pytest.raises(ptc.ConversionError) as caught:
        convert.plan(source, target, rules=rules)
    return caught.value


def made(source, target, *rules):
    """The result; and that the way back is exact."""
    plan = convert.plan(source, target, rules=rules)
    result, residuals = plan.apply(source, to="numpy")
    back = plan.invert().apply(result, residuals=residuals, to="numpy").tree
    state = source if isinstance(source, dict) else source.state_dict()
    assert all(np.array_equal(back[name], np.asarray(each)) for name, each in state.items())
    return result


def seq(*layers):
    return randomised(torch.nn.Sequential(*layers))


def conv():
    return torch.nn.Conv2d(3, C, (2, 2))


CONV = zeros(kernel=(2, 2, 3, C), bias=(C,))
NORM = zeros(scale=(FLAT,), bias=(FLAT,))
HEAD = zeros(kernel=(FLAT, 5), bias=(5,))


def images(count=7, seed=0):
    return torch.randn(count, C, H, W, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def last(image):
    """As Flax flattens it."""
    return image.permute(0, 2, 3, 1).reshape(len(image), -1).numpy()


def dense(inputs, layer):
    return inputs @ layer["kernel"] + layer["bias"]


@given(st.integers(1, 4), st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple), st.integers(1, 4))
def test_a_linear_layer_gives_the_same_for_an_image_flattened_channels_last(channels, spatial, features):
    image = np.random.default_rng(0).normal(size=(3, channels, *spatial))
    weight = np.random.default_rng(1).normal(size=(features, channels * int(np.prod(spatial))))
    state = {"head.weight": weight}
    target = {"head": zeros(kernel=weight.T.shape)}
    kernel = made(state, target, Kind("head", "Linear"), Flattened("head", (channels, *spatial)))["head"]["kernel"]
    flat = np.moveaxis(image, 1, -1).reshape(3, -1)
    assert np.allclose(flat @ kernel, image.reshape(3, -1) @ weight.T, rtol=0, atol=1e-12)


def test_a_linear_layer_after_a_flatten_of_one_sequential_has_to_be_declared():
    source = seq(conv(), torch.nn.Flatten(), torch.nn.Linear(FLAT, 5))
    target = {"layers_0": CONV, "layers_2": HEAD}
    error = refused(source, target)
    (text,) = error.ambiguous
    assert "0 gives 4 channels, and 2 reads 24 features, after a Flatten" in text
    assert 'declare Flattened("2", (4, height, width))' in text
    assert error.missing == error.unexpected == error.mismatched == ()
    head = made(source, target, Flattened("2", IMAGE))["layers_2"]
    assert np.allclose(dense(last(images()), head), source[1:](images()).detach().numpy(), rtol=0, atol=1e-12)
    plain = made(source, target, Flattened("2"))["layers_2"]["kernel"]
    assert np.array_equal(plain, source[2].weight.detach().numpy().T)


def test_an_image_with_its_channels_last_is_noted():
    source = seq(conv(), torch.nn.Flatten(), torch.nn.Linear(FLAT, 5))
    target = {"layers_0": CONV, "layers_2": HEAD}
    for image, expected in ((IMAGE, 0), ((H, W, C), 1)):
        plan = convert.plan(source, target, rules=[Flattened("2", image)])
        notes = [note for note in plan.notes if note.startswith("Flattened")]
        assert len(notes) == expected
        assert all("0 gives 4 channels, and [2, 3, 4] begins with 2" in note for note in notes)


class InCode(torch.nn.Module):
    """What is flattened in `forward` nobody records."""

    def __init__(self):
        super().__init__()
        self.conv = conv()
        self.head = torch.nn.Linear(FLAT, 5)


def test_a_linear_layer_that_may_read_a_flattened_image_has_to_be_declared():
    source = randomised(InCode())
    target = {"conv": CONV, "head": HEAD}
    (text,) = refused(source, target).ambiguous
    assert "conv gives 4 channels, and head reads 24 features, which may be a flattened image" in text
    assert made(source, target, Flattened("head", IMAGE))
    state = {name: tensor.numpy() for name, tensor in source.state_dict().items()}
    (text,) = refused(state, target).ambiguous
    assert "which may be a flattened image" in text
    # Nor is it forgotten because a rule says what one of both is.
    (text,) = refused(state, target, Kind("head", "Linear")).ambiguous
    assert "which may be a flattened image" in text
    one, other = (made(each, target, Flattened("head", IMAGE))["head"]["kernel"] for each in (source, state))
    assert np.array_equal(one, other)


def test_a_parametrized_linear_layer_is_one_too():
    source = seq(conv(), torch.nn.Flatten(), torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(FLAT, 5)))
    head = {"layer_instance": HEAD, "layer_instance/kernel/scale": np.zeros(5)}
    target = {"layers_0": CONV, "layers_2": head}
    (text,) = refused(source, target).ambiguous
    assert "after a Flatten" in text
    kernel = made(source, target, Flattened("2", IMAGE))["layers_2"]["layer_instance"]["kernel"]
    weight = source[2].parametrizations.weight.original1.detach().numpy()
    expected = weight.reshape(5, *IMAGE).transpose(2, 3, 1, 0).reshape(FLAT, 5)
    assert np.array_equal(kernel, expected)


@pytest.mark.parametrize(
    ("layers", "target"),
    [
        # Pooled to one item for each channel.
        ([conv(), torch.nn.Linear(C, 5)], {"layers_0": CONV, "layers_1": zeros(kernel=(C, 5), bias=(5,))}),
        # No multiple of the channels.
        ([conv(), torch.nn.Linear(C + 1, 5)], {"layers_0": CONV, "layers_1": zeros(kernel=(C + 1, 5), bias=(5,))}),
        # Channels put together, as what is normalised says.
        (
            [conv(), torch.nn.GroupNorm(2, FLAT), torch.nn.Linear(FLAT, 5)],
            {"layers_0": CONV, "layers_1": NORM, "layers_2": HEAD},
        ),
        # One channel has one order.
        (
            [torch.nn.Conv2d(3, 1, (2, 2)), torch.nn.Linear(FLAT, 5)],
            {"layers_0": zeros(kernel=(2, 2, 3, 1), bias=(1,)), "layers_1": HEAD},
        ),
        # Another layer between.
        (
            [conv(), torch.nn.LSTM(C, FLAT, bias=False), torch.nn.Linear(FLAT, 5)],
            {
                "layers_0": CONV,
                "layers_1": {
                    "cell": {"dense_i": zeros(kernel=(C, 4 * FLAT)), "dense_h": zeros(kernel=(FLAT, 4 * FLAT))}
                },
                "layers_2": HEAD,
            },
        ),
    ],
    ids=["pooled", "no multiple", "normalised channels", "one channel", "recurrent"],
)
def test_other_linear_layers_are_not_suspected(layers, target):
    assert convert.plan(seq(*layers), target).entries


def batch_norm():
    return {**NORM, **zeros(mean=(FLAT,), var=(FLAT,))}


@pytest.mark.parametrize("which", ["BatchNorm1d", "LayerNorm", "RMSNorm"])
@pytest.mark.parametrize("rules", [[Flattened("3", IMAGE)], [Flattened("3", IMAGE), Flattened("2", IMAGE)]])
@pytest.mark.parametrize("recorded", [True, False])
def test_what_normalises_a_flattened_image_is_in_its_order(which, rules, recorded):
    source = seq(conv(), torch.nn.Flatten(), getattr(torch.nn, which)(FLAT), torch.nn.Linear(FLAT, 5))
    norm = batch_norm() if which == "BatchNorm1d" else NORM if which == "LayerNorm" else zeros(scale=(FLAT,))
    target = {"layers_0": CONV, "layers_2": norm, "layers_3": HEAD}
    state = source if recorded else {name: tensor.numpy() for name, tensor in source.state_dict().items()}
    (text,) = refused(state, target).ambiguous
    assert "and 3 reads 24 features" in text
    result = made(state, target, *rules)
    inputs, norm = last(images()), result["layers_2"]
    if which == "BatchNorm1d":
        hidden = (inputs - norm["mean"]) / np.sqrt(norm["var"] + source[2].eps) * norm["scale"] + norm["bias"]
    elif which == "LayerNorm":
        centred = inputs - inputs.mean(1, keepdims=True)
        hidden = centred / np.sqrt((centred**2).mean(1, keepdims=True) + source[2].eps) * norm["scale"] + norm["bias"]
    else:
        hidden = inputs / np.sqrt((inputs**2).mean(1, keepdims=True) + np.finfo(float).eps) * norm["scale"]
    expected = source[1:](images()).detach().numpy()
    assert np.allclose(dense(hidden, result["layers_3"]), expected, rtol=0, atol=1e-11)


def test_a_normalisation_alone_after_a_flatten_has_to_be_declared():
    source = seq(conv(), torch.nn.Flatten(), torch.nn.BatchNorm1d(FLAT))
    target = {"layers_0": CONV, "layers_2": batch_norm()}
    (text,) = refused(source, target).ambiguous
    assert "2 reads 24 features, after a Flatten" in text
    mean = made(source, target, Flattened("2", IMAGE))["layers_2"]["mean"]
    assert np.array_equal(mean, source[2].running_mean.numpy().reshape(IMAGE).transpose(1, 2, 0).ravel())
    assert np.array_equal(made(source, target, Flattened("2"))["layers_2"]["mean"], source[2].running_mean.numpy())


def generator():
    return seq(
        torch.nn.Linear(5, FLAT),
        torch.nn.BatchNorm1d(FLAT),
        torch.nn.ReLU(),
        torch.nn.Unflatten(1, IMAGE),
        torch.nn.ConvTranspose2d(C, 3, (2, 2)),
    )


GENERATED = {
    "layers_0": zeros(kernel=(5, FLAT), bias=(FLAT,)),
    "layers_1": batch_norm(),
    "layers_4": zeros(kernel=(2, 2, 3, C), bias=(3,)),
}


def test_a_linear_layer_before_an_unflatten_has_to_be_declared():
    source = generator()
    (text,) = refused(source, GENERATED).ambiguous
    assert "0 gives 24 features, of which 3 makes an image" in text
    assert 'declare Flattened("0", (4, 2, 3), "output")' in text
    result = made(source, GENERATED, Flattened("0", IMAGE, side="output"))
    inputs = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    norm = result["layers_1"]
    hidden = dense(inputs.numpy(), result["layers_0"])
    hidden = (hidden - norm["mean"]) / np.sqrt(norm["var"] + source[1].eps) * norm["scale"] + norm["bias"]
    expected = last(source[:2](inputs).detach().reshape(7, *IMAGE))
    assert np.allclose(hidden, expected, rtol=0, atol=1e-12)
    plain = made(source, GENERATED, Flattened("0", side="output"))
    assert np.array_equal(plain["layers_0"]["kernel"], source[0].weight.detach().numpy().T)


def test_both_ends_of_a_linear_layer_may_be_images():
    source = seq(conv(), torch.nn.Flatten(), torch.nn.Linear(FLAT, FLAT), torch.nn.Unflatten(1, IMAGE), conv_of_image())
    target = {
        "layers_0": CONV,
        "layers_2": zeros(kernel=(FLAT, FLAT), bias=(FLAT,)),
        "layers_4": zeros(kernel=(2, 2, C, 3), bias=(3,)),
    }
    result = made(source, target, Flattened("2", IMAGE), Flattened("2", IMAGE, "output"))["layers_2"]
    expected = last(source[1:4](images()).detach())
    assert np.allclose(dense(last(images()), result), expected, rtol=0, atol=1e-12)
    (text,) = refused(source, target, Flattened("2", IMAGE)).ambiguous
    assert '"output"' in text


def conv_of_image():
    return torch.nn.Conv2d(C, 3, (2, 2))


def test_the_same_rules_serve_the_way_from_flax():
    source = seq(conv(), torch.nn.Flatten(), torch.nn.BatchNorm1d(FLAT), torch.nn.Linear(FLAT, 5))
    target = {"layers_0": CONV, "layers_2": batch_norm(), "layers_3": HEAD}
    variables = made(source, target, Flattened("3", IMAGE))
    assert len(refused({"params": variables}, source).ambiguous) == 1
    back = convert.plan({"params": variables}, source, rules=[Flattened("3", IMAGE)])
    result = back.apply({"params": variables}, to="numpy").tree
    assert np.array_equal(result["3.weight"], source[3].weight.detach().numpy())
    assert np.array_equal(result["2.running_mean"], source[2].running_mean.numpy())


def test_a_rule_serves_a_target_that_is_only_named():
    plan = convert.plan(
        seq(conv(), torch.nn.Flatten(), torch.nn.Linear(FLAT, 5)), "linen", rules=[Flattened("2", IMAGE)]
    )
    (entry,) = [entry for entry in plan.entries if str(entry.sources[0]) == "2.weight"]
    assert [type(each).__name__ for each in entry.operations] == ["Reshape", "Permute", "Reshape", "Permute"]


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (Flattened("2", (C, H, W + 1)), "[4, 2, 4] are 32 items, and it has 24 features there"),
        (Flattened("0", IMAGE), "it is no linear layer, and no normalisation of one axis"),
    ],
)
def test_an_image_of_another_size_or_for_another_layer_is_refused(rule, text):
    source = seq(conv(), torch.nn.Flatten(), torch.nn.Linear(FLAT, 5))
    error = refused(source, {"layers_0": CONV, "layers_2": HEAD}, rule)
    assert any(text in each for each in error.mismatched)


def test_what_is_no_shape_or_side_is_refused():
    with pytest.raises(RuleError, match="at least 1"):
        Flattened("head", (4, 0, 3))
    with pytest.raises(RuleError, match='"input" or "output"'):
        Flattened("head", (4, 2, 3), "in")
    with pytest.raises(RuleError, match='"input" or "output"'):
        convert.parse_rules('[[flattened]]\nlayers = "head"\nshape = [4]\nside = "in"')
    rules = convert.parse_rules('[[flattened]]\nlayers = "head"\nshape = [4, 2, 3]\nside = "output"')
    assert rules == (Flattened("head", (4, 2, 3), "output"),)


def test_equinox_has_torchs_order():
    source = seq(conv(), torch.nn.Flatten(), torch.nn.Linear(FLAT, 5))
    layers = [zeros(weight=(C, 3, 2, 2), bias=(C, 1, 1)), {}, zeros(weight=(5, FLAT), bias=(5,))]
    made_of_it = convert.plan(source, {"layers": layers}).apply(source, to="numpy").tree["layers"]
    assert np.array_equal(made_of_it[2]["weight"], source[2].weight.detach().numpy())


@pytest.mark.parametrize("side", ["input", "output"])
def test_a_conv1d_of_transformers_has_its_axes_the_other_way_round(side):
    weight, bias = np.random.default_rng(0).normal(size=(FLAT, FLAT)), np.arange(FLAT, dtype=np.float64)
    target = {"fc": zeros(kernel=(FLAT, FLAT), bias=(FLAT,))}
    rules = [
        Kind("fc", "transformers.pytorch_utils.Conv1D"),
        convert.Choose("fc", "kernel (in, out)"),
        Flattened("fc", IMAGE, side),
    ]
    fc = made({"fc.weight": weight, "fc.bias": bias}, target, *rules)["fc"]
    order = np.arange(FLAT).reshape(IMAGE).transpose(1, 2, 0).ravel()
    assert np.array_equal(fc["kernel"], weight[order] if side == "input" else weight[:, order])
    assert np.array_equal(fc["bias"], bias if side == "input" else bias[order])


def test_what_normalises_features_that_were_no_image_stays_in_its_order():
    # The rule is about what is between both linear layers, and nothing there is an image.
    source = seq(torch.nn.Linear(5, FLAT), torch.nn.LayerNorm(FLAT), torch.nn.Linear(FLAT, 5))
    target = {"layers_0": zeros(kernel=(5, FLAT), bias=(FLAT,)), "layers_1": NORM, "layers_2": HEAD}
    scale = made(source, target, Flattened("2", IMAGE))["layers_1"]["scale"]
    assert np.array_equal(scale, source[1].weight.detach().numpy())


def test_only_the_first_linear_layer_after_a_convolution_is_suspected():
    source = seq(conv(), torch.nn.Linear(C, FLAT), torch.nn.Linear(FLAT, 5))
    layer = zeros(kernel=(C, FLAT), bias=(FLAT,))
    assert convert.plan(source, {"layers_0": CONV, "layers_1": layer, "layers_2": HEAD}).entries
