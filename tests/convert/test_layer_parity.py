"""The layers of torch and what the tables make of them compute the same, in float64, to the order of additions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from torch.nn.utils import parametrizations

from pytreeckpt.convert.layers import flattened_linear
from pytreeckpt.convert.running import run
from tests.convert.layers_side_by_side import (
    F64,
    KEY,
    assert_close,
    channels_first,
    channels_last,
    equinox_filled,
    linen_outputs,
    linen_variables,
    nnx_filled,
    normal,
    randomised,
    rngs,
)

pytestmark = [
    # torch: the old functions, whose files people have.
    pytest.mark.filterwarnings("ignore:.*torch.nn.utils.(weight_norm|spectral_norm).*:FutureWarning"),
    # torch: how it pads to the same size is its own affair.
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
]


@pytest.fixture(autouse=True)
def _double():
    # Each program is compiled to run once.
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        with jax.enable_x64(True):
            yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def batched(module):
    return jax.vmap(module)


def test_the_comparison_tells_a_square_matrix_from_its_transpose():
    ours, x = randomised(torch.nn.Linear(4, 4)), normal(5, 4)
    filled = nnx_filled(ours, lambda: nnx.Linear(4, 4, rngs=rngs(), **F64))
    filled.kernel.set_value(filled.kernel.get_value().T)
    with pytest.raises(AssertionError):
        assert_close(filled(x), ours(torch.from_numpy(x)))


# Linear layers.


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("ins", "outs"), [(3, 4), (4, 4)])
def test_linear(ins, outs, bias):
    ours, x = randomised(torch.nn.Linear(ins, outs, bias=bias)), normal(5, ins)
    expected = ours(torch.from_numpy(x))
    assert_close(linen_outputs(ours, linen.Dense(outs, use_bias=bias, **F64), x), expected)
    assert_close(nnx_filled(ours, lambda: nnx.Linear(ins, outs, use_bias=bias, rngs=rngs(), **F64))(x), expected)
    assert_close(batched(equinox_filled(ours, lambda: eqx.nn.Linear(ins, outs, use_bias=bias, key=KEY)))(x), expected)


def test_linear_without_bias_where_there_is_one():
    ours, x = randomised(torch.nn.Linear(3, 4, bias=False)), normal(5, 3)
    expected = ours(torch.from_numpy(x))
    assert_close(linen_outputs(ours, linen.Dense(4, **F64), x), expected)
    assert_close(nnx_filled(ours, lambda: nnx.Linear(3, 4, rngs=rngs(), **F64))(x), expected)
    assert_close(batched(equinox_filled(ours, lambda: eqx.nn.Linear(3, 4, key=KEY)))(x), expected)


def test_linear_with_more_axes():
    ours, x = randomised(torch.nn.Linear(6, 8)), normal(5, 6)
    expected = ours(torch.from_numpy(x)).reshape(5, 2, 4)
    assert_close(linen_outputs(ours, linen.DenseGeneral((2, 4), **F64), x), expected)
    assert_close(nnx_filled(ours, lambda: nnx.LinearGeneral(6, (2, 4), rngs=rngs(), **F64))(x), expected)
    x = normal(5, 2, 3)
    expected = ours(torch.from_numpy(x).reshape(5, 6))
    assert_close(linen_outputs(ours, linen.DenseGeneral(8, axis=(-2, -1), **F64), x), expected)
    assert_close(nnx_filled(ours, lambda: nnx.LinearGeneral((2, 3), 8, axis=(-2, -1), rngs=rngs(), **F64))(x), expected)


class Conv1D(torch.nn.Module):
    """As in transformers: its weight is (in, out)."""

    def __init__(self, ins, outs):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(ins, outs))
        self.bias = torch.nn.Parameter(torch.empty(outs))

    def forward(self, x):
        return x @ self.weight + self.bias


class FlaxConv1D(linen.Module):
    """As in the Flax models of transformers."""

    features: int

    @linen.compact
    def __call__(self, x):
        kernel = self.param("kernel", linen.initializers.zeros, (self.features, x.shape[-1]), jnp.float64)
        return x @ kernel.T + self.param("bias", linen.initializers.zeros, (self.features,), jnp.float64)


@pytest.mark.parametrize(("ins", "outs"), [(3, 4), (4, 4)])
def test_the_conv1d_of_transformers(ins, outs):
    kind = "transformers.pytorch_utils.Conv1D"
    ours, x = randomised(Conv1D(ins, outs)), normal(5, ins)
    expected = ours(torch.from_numpy(x))
    # Which of Flax's it is, shapes say only where it is not square.
    options = {"kind": kind, "decided_by_shape": ins != outs}
    assert_close(linen_outputs(ours, linen.Dense(outs, **F64), x, **options), expected)
    assert_close(nnx_filled(ours, lambda: nnx.Linear(ins, outs, rngs=rngs(), **F64), **options)(x), expected)
    assert_close(batched(equinox_filled(ours, lambda: eqx.nn.Linear(ins, outs, key=KEY), kind=kind))(x), expected)
    if ins != outs:
        assert_close(linen_outputs(ours, FlaxConv1D(outs), x, **options), expected)


@pytest.mark.parametrize("kind", [torch.nn.Embedding, torch.nn.EmbeddingBag])
def test_embedding(kind):
    ours = randomised(kind(5, 3))
    bags = np.array([[0, 2], [4, 4], [1, 3]])
    expected = ours(torch.from_numpy(bags))

    def looked_up(rows):
        return rows.mean(1) if kind is torch.nn.EmbeddingBag else rows

    assert_close(looked_up(linen_outputs(ours, linen.Embed(5, 3, **F64), bags)), expected)
    assert_close(looked_up(nnx_filled(ours, lambda: nnx.Embed(5, 3, rngs=rngs(), **F64))(bags)), expected)
    module = equinox_filled(ours, lambda: eqx.nn.Embedding(5, 3, key=KEY))
    assert_close(looked_up(batched(batched(module))(bags)), expected)


# Convolutions.

CONVOLUTIONS = {
    "1d": (torch.nn.Conv1d(4, 6, 3, padding=1), (9,)),
    "1d, cubic": (torch.nn.Conv1d(3, 3, 3, stride=2), (9,)),
    "2d": (torch.nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)), (9, 8)),
    "2d, cubic": (torch.nn.Conv2d(3, 3, 3, padding=1), (5, 6)),
    "2d, without bias": (torch.nn.Conv2d(3, 4, 2, bias=False), (5, 6)),
    "2d, groups": (torch.nn.Conv2d(4, 6, 3, groups=2, padding=1), (5, 6)),
    "2d, depthwise": (torch.nn.Conv2d(3, 6, 3, groups=3, padding=1), (5, 6)),
    "2d, same": (torch.nn.Conv2d(3, 4, (4, 2), padding="same", dilation=(1, 3)), (8, 7)),
    "2d, reflected": (torch.nn.Conv2d(3, 4, 3, padding=(1, 2), padding_mode="reflect"), (5, 6)),
    "2d, circular": (torch.nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (5, 6)),
    "3d": (torch.nn.Conv3d(2, 4, (2, 3, 1), padding=(1, 0, 0), stride=2), (4, 5, 3)),
    "3d, cubic": (torch.nn.Conv3d(3, 3, 3, padding=1), (3, 3, 3)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name):
    module, size = CONVOLUTIONS[name]
    ours, x = randomised(module), normal(2, module.in_channels, *size)
    expected = ours(torch.from_numpy(x))
    dims, bias = len(size), module.bias is not None
    pads = "SAME" if module.padding == "same" else [(each, each) for each in module.padding]
    options = {
        "strides": module.stride,
        "kernel_dilation": module.dilation,
        "feature_group_count": module.groups,
        "use_bias": bias,
        **F64,
    }
    padded = channels_last(x)
    if module.padding_mode != "zeros":
        mode = {"reflect": "reflect", "circular": "wrap"}[module.padding_mode]
        padded, pads = np.pad(padded, [(0, 0), *pads, (0, 0)], mode=mode), "VALID"
    in_linen = linen.Conv(module.out_channels, module.kernel_size, padding=pads, **options)
    assert_close(channels_first(linen_outputs(ours, in_linen, padded)), expected)
    sizes = (module.in_channels, module.out_channels, module.kernel_size)
    filled = nnx_filled(ours, lambda: nnx.Conv(*sizes, padding=pads, rngs=rngs(), **options))
    assert_close(channels_first(filled(padded)), expected)
    cls = getattr(eqx.nn, f"Conv{dims}d")
    options = {name: getattr(module, name) for name in ("stride", "padding", "dilation", "groups", "padding_mode")}
    filled = equinox_filled(ours, lambda: cls(*sizes, **options, use_bias=bias, key=KEY))
    assert_close(batched(filled)(x), expected)


TRANSPOSED = {
    "1d": (torch.nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1), (5,)),
    "1d, cubic": (torch.nn.ConvTranspose1d(3, 3, 3), (5,)),
    "2d": (torch.nn.ConvTranspose2d(4, 6, (3, 2), (2, 3), (1, 0), (0, 1), dilation=(1, 2)), (4, 5)),
    "2d, in and out alike": (torch.nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1), (4, 5)),
    "2d, without bias": (torch.nn.ConvTranspose2d(4, 2, 2, stride=2, bias=False), (4, 5)),
    "3d": (torch.nn.ConvTranspose3d(2, 4, (2, 3, 1), stride=(1, 2, 1), padding=(0, 1, 0)), (2, 3, 2)),
    "3d, cubic": (torch.nn.ConvTranspose3d(3, 3, 3, padding=1), (2, 3, 2)),
}
GROUPED = {
    "2d, groups": (torch.nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (4, 5)),
    "2d, groups, in and out alike": (torch.nn.ConvTranspose2d(4, 4, (3, 2), groups=2, padding=1), (4, 5)),
    "1d, depthwise": (torch.nn.ConvTranspose1d(3, 6, 3, groups=3, bias=False), (5,)),
}


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolution_in_flax(name, transposed):
    module, size = TRANSPOSED[name]
    ours, x = randomised(module), normal(2, module.in_channels, *size)
    expected = ours(torch.from_numpy(x))
    axes = zip(module.dilation, module.kernel_size, module.padding, module.output_padding)
    pads = [(d * (k - 1) - p, d * (k - 1) - p + more) for d, k, p, more in axes]
    options = {"strides": module.stride, "kernel_dilation": module.dilation, "transpose_kernel": transposed, **F64}
    options |= {"use_bias": module.bias is not None, "padding": pads}
    by_shape = module.in_channels != module.out_channels
    in_linen = linen.ConvTranspose(module.out_channels, module.kernel_size, **options)
    outputs = linen_outputs(ours, in_linen, channels_last(x), decided_by_shape=by_shape)
    assert_close(channels_first(outputs), expected)
    sizes = (module.in_channels, module.out_channels, module.kernel_size)
    filled = nnx_filled(ours, lambda: nnx.ConvTranspose(*sizes, rngs=rngs(), **options), decided_by_shape=by_shape)
    assert_close(channels_first(filled(channels_last(x))), expected)


@pytest.mark.parametrize("name", [*TRANSPOSED, *GROUPED])
def test_transposed_convolution_in_equinox(name):
    module, size = {**TRANSPOSED, **GROUPED}[name]
    ours, x = randomised(module), normal(2, module.in_channels, *size)
    cls = getattr(eqx.nn, f"ConvTranspose{len(size)}d")
    sizes = (module.in_channels, module.out_channels, module.kernel_size)
    options = {name: getattr(module, name) for name in ("stride", "padding", "output_padding", "dilation", "groups")}
    filled = equinox_filled(ours, lambda: cls(*sizes, **options, use_bias=module.bias is not None, key=KEY))
    assert_close(batched(filled)(x), ours(torch.from_numpy(x)))


def test_a_flattened_image_before_a_linear_layer():
    ours, x = randomised(torch.nn.Linear(3 * 4 * 5, 6)), normal(2, 3, 4, 5)
    expected = ours(torch.from_numpy(x).flatten(1))
    (kernel,) = run(flattened_linear(6, 3, (4, 5)), [ours.weight.detach().numpy()])
    outputs = channels_last(x).reshape(2, -1) @ kernel + ours.bias.detach().numpy()
    assert_close(outputs, expected)


# Normalisations.


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(4,), (5, 4), (4, 4)])
def test_layer_norm(shape, bias):
    ours, x = (
        randomised(torch.nn.LayerNorm(shape, eps=1e-3, bias=bias)),
        normal(2, 5, 4) if len(shape) == 1 else normal(2, *shape),
    )
    expected = ours(torch.from_numpy(x))
    axes = tuple(range(-len(shape), 0))
    options = {"epsilon": 1e-3, "use_bias": bias, "reduction_axes": axes, "feature_axes": axes, **F64}
    assert_close(linen_outputs(ours, linen.LayerNorm(**options), x), expected)
    assert_close(nnx_filled(ours, lambda: nnx.LayerNorm(int(np.prod(shape)), rngs=rngs(), **options))(x), expected)
    module = equinox_filled(ours, lambda: eqx.nn.LayerNorm(shape, 1e-3, use_bias=bias, dtype=jnp.float64))
    assert_close((batched if len(shape) > 1 else lambda each: batched(batched(each)))(module)(x), expected)


@pytest.mark.parametrize("eps", [None, 1e-3])
def test_rms_norm(eps):
    ours, x = randomised(torch.nn.RMSNorm(4, eps=eps)), normal(2, 4)
    expected = ours(torch.from_numpy(x))
    epsilon = float(np.finfo(np.float64).eps) if eps is None else eps
    assert_close(linen_outputs(ours, linen.RMSNorm(epsilon=epsilon, **F64), x), expected)
    assert_close(nnx_filled(ours, lambda: nnx.RMSNorm(4, epsilon=epsilon, rngs=rngs(), **F64))(x), expected)
    for use_bias in (False, True):
        module = equinox_filled(ours, lambda use_bias=use_bias: eqx.nn.RMSNorm(4, epsilon, use_bias=use_bias))
        assert_close(batched(module)(x), expected)


@pytest.mark.parametrize(("groups", "channels"), [(2, 6), (3, 3)])
def test_group_norm(groups, channels):
    ours, x = randomised(torch.nn.GroupNorm(groups, channels, eps=1e-3)), normal(2, channels, 3, 4)
    expected = ours(torch.from_numpy(x))
    options = {"num_groups": groups, "epsilon": 1e-3, **F64}
    assert_close(channels_first(linen_outputs(ours, linen.GroupNorm(**options), channels_last(x))), expected)
    filled = nnx_filled(ours, lambda: nnx.GroupNorm(channels, rngs=rngs(), **options))
    assert_close(channels_first(filled(channels_last(x))), expected)
    module = equinox_filled(ours, lambda: eqx.nn.GroupNorm(groups, channels, 1e-3, dtype=jnp.float64))
    assert_close(batched(module)(x), expected)


@pytest.mark.parametrize("size", [(5,), (3, 4), (2, 3, 2)])
def test_instance_norm(size):
    kind = getattr(torch.nn, f"InstanceNorm{len(size)}d")
    ours, x = randomised(kind(4, eps=1e-3, affine=True)), normal(2, 4, *size)
    expected = ours(torch.from_numpy(x))
    options = {"epsilon": 1e-3, **F64}
    assert_close(channels_first(linen_outputs(ours, linen.InstanceNorm(**options), channels_last(x))), expected)
    assert_close(channels_first(linen_outputs(ours, linen.GroupNorm(4, **options), channels_last(x))), expected)
    filled = nnx_filled(ours, lambda: nnx.InstanceNorm(4, rngs=rngs(), **options))
    assert_close(channels_first(filled(channels_last(x))), expected)
    module = equinox_filled(ours, lambda: eqx.nn.GroupNorm(4, 4, 1e-3, dtype=jnp.float64))
    assert_close(batched(module)(x), expected)


BATCH_NORMS = {
    "1d": (torch.nn.BatchNorm1d(4, eps=1e-3, momentum=0.2), ()),
    "1d, with an axis": (torch.nn.BatchNorm1d(4), (5,)),
    "2d": (torch.nn.BatchNorm2d(4), (3, 2)),
    "2d, not affine": (torch.nn.BatchNorm2d(4, affine=False), (3, 2)),
    "3d": (torch.nn.BatchNorm3d(4), (3, 2, 2)),
    "synchronised": (torch.nn.SyncBatchNorm(4), (3,)),
}


@pytest.mark.parametrize("name", BATCH_NORMS)
def test_batch_norm_in_evaluation(name):
    module, size = BATCH_NORMS[name]
    ours, x = randomised(module), normal(6, 4, *size)
    expected = ours(torch.from_numpy(x))
    options = {"epsilon": module.eps, "momentum": 0.9, "use_running_average": True, **F64}
    # With a scale and a bias, whether or not torch has them: they change nothing.
    outputs = linen_outputs(ours, linen.BatchNorm(**options), channels_last(x))
    assert_close(channels_first(outputs), expected)
    filled = nnx_filled(ours, lambda: nnx.BatchNorm(4, rngs=rngs(), **options))
    assert_close(channels_first(filled(channels_last(x))), expected)
    for mode in ("batch", "ema"):
        options = {"momentum": 0.9, "mode": mode, "inference": True}
        with_state = equinox_filled(ours, lambda options=options: eqx.nn.BatchNorm(4, "batch", module.eps, **options))
        state, layer = eqx.nn.State(with_state), eqx.nn.delete_init_state(with_state)
        outputs, _ = jax.vmap(layer, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)
        assert_close(outputs, expected)


def test_batch_norm_without_statistics():
    ours, x = randomised(torch.nn.BatchNorm2d(4, track_running_stats=False)), normal(6, 4, 3, 2)
    expected = ours(torch.from_numpy(x))
    module = linen.BatchNorm(use_running_average=False, **F64)
    outputs, _ = module.apply(
        linen_variables(ours, module, channels_last(x)), channels_last(x), mutable=["batch_stats"]
    )
    assert_close(channels_first(outputs), expected)
    filled = nnx_filled(ours, lambda: nnx.BatchNorm(4, use_running_average=False, rngs=rngs(), **F64))
    assert_close(channels_first(filled(channels_last(x))), expected)


def test_batch_norm_in_further_training():
    ours, x = randomised(torch.nn.BatchNorm1d(4, momentum=0.2)), normal(50, 4)
    before = ours.running_var.numpy().copy()
    module = linen.BatchNorm(use_running_average=False, momentum=0.8, epsilon=1e-5, **F64)
    outputs, new = module.apply(linen_variables(ours, module, x), x, mutable=["batch_stats"])
    made = equinox_filled(ours, lambda: eqx.nn.BatchNorm(4, "batch", momentum=0.8, mode="batch"))
    state, layer = eqx.nn.State(made), eqx.nn.delete_init_state(made)
    run_batch = jax.vmap(layer, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
    in_equinox, state = run_batch(x, state)
    expected = ours.train()(torch.from_numpy(x))
    assert_close(outputs, expected)
    assert_close(in_equinox, expected)
    assert_close(new["batch_stats"]["mean"], ours.running_mean)
    assert_close(state.get(layer.batch_state_index)[0], ours.running_mean)
    # What is added to the variances differs by n / (n - 1), as the note says.
    added = (ours.running_var.numpy() - 0.8 * before) * 49 / 50
    assert_close(new["batch_stats"]["var"], 0.8 * before + added)
    assert_close(state.get(layer.batch_state_index)[1], 0.8 * before + added)
    # And what comes of it in evaluation is taken as it is.
    outputs, _ = jax.vmap(eqx.nn.inference_mode(layer), axis_name="batch", in_axes=(0, None), out_axes=(0, None))(
        x, state
    )
    mean, var = (np.asarray(each) for each in state.get(layer.batch_state_index))
    weight, bias = ours.weight.detach().numpy(), ours.bias.detach().numpy()
    assert_close(outputs, (x - mean) / np.sqrt(var + 1e-5) * weight + bias)


# Attention.


def in_float64(query, key, value, **_options):
    """Attention as nnx has it, whose softmax is always in float32."""
    scores = jnp.einsum("...qhd,...khd->...hqk", query, key) / np.sqrt(query.shape[-1])
    return jnp.einsum("...hqk,...khd->...qhd", jax.nn.softmax(scores), value)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("heads", "features"), [(2, 8), (4, 4), (1, 6)])
def test_attention(heads, features, bias):
    ours = randomised(torch.nn.MultiheadAttention(features, heads, bias=bias, batch_first=True))
    q, k, v = normal(2, 5, features), normal(2, 7, features, seed=2), normal(2, 7, features, seed=3)
    expected, _ = ours(*map(torch.from_numpy, (q, k, v)))
    module = linen.MultiHeadDotProductAttention(heads, use_bias=bias, **F64)
    assert_close(linen_outputs(ours, module, q, k, v), expected)
    options = {"use_bias": bias, "decode": False, "attention_fn": in_float64, **F64}
    filled = nnx_filled(ours, lambda: nnx.MultiHeadAttention(heads, features, rngs=rngs(), **options))
    assert_close(filled(q, k, v), expected)
    for biased in {bias, True}:
        options = {f"use_{part}_bias": biased for part in ("query", "key", "value", "output")}
        module = equinox_filled(
            ours, lambda options=options: eqx.nn.MultiheadAttention(heads, features, **options, key=KEY)
        )
        assert_close(batched(module)(q, k, v), expected)


def test_attention_over_keys_and_values_of_other_sizes():
    ours = randomised(torch.nn.MultiheadAttention(8, 2, kdim=6, vdim=5, batch_first=True))
    q, k, v = normal(2, 5, 8), normal(2, 7, 6, seed=2), normal(2, 7, 5, seed=3)
    expected, _ = ours(*map(torch.from_numpy, (q, k, v)))
    module = linen.MultiHeadDotProductAttention(2, qkv_features=8, out_features=8, **F64)
    assert_close(linen_outputs(ours, module, q, k, v), expected)
    options = {f"use_{part}_bias": True for part in ("query", "key", "value", "output")}
    module = equinox_filled(ours, lambda: eqx.nn.MultiheadAttention(2, 8, 6, 5, **options, key=KEY))
    assert_close(batched(module)(q, k, v), expected)
    ours = randomised(torch.nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True))
    expected, _ = ours(*map(torch.from_numpy, (q, k, k)))
    options = {"in_kv_features": 6, "decode": False, "attention_fn": in_float64, **F64}
    filled = nnx_filled(ours, lambda: nnx.MultiHeadAttention(2, 8, rngs=rngs(), **options))
    assert_close(filled(q, k, k), expected)


# Recurrent layers. torch gives outputs and the last carry; h and c have an axis for layers and directions first.

CELLS = {
    "LSTM": (torch.nn.LSTM, linen.LSTMCell, nnx.LSTMCell, eqx.nn.LSTMCell),
    "LSTM, optimised": (torch.nn.LSTM, linen.OptimizedLSTMCell, nnx.OptimizedLSTMCell, None),
    "GRU": (torch.nn.GRU, linen.GRUCell, None, eqx.nn.GRUCell),
    "RNN": (torch.nn.RNN, linen.SimpleCell, nnx.SimpleCell, None),
}


class Stack(linen.Module):
    """Layers of a cell, in one direction or both."""

    cell: type
    hidden: int
    layers_: int
    both: bool

    def setup(self):
        def run_cell():
            return linen.RNN(self.cell(self.hidden, **F64), return_carry=True)

        self.layers = [
            linen.Bidirectional(run_cell(), run_cell(), return_carry=True) if self.both else run_cell()
            for _ in range(self.layers_)
        ]

    def __call__(self, x, carries):
        for layer, carry in zip(self.layers, carries):
            last, x = layer(x, initial_carry=carry)
        return last, x


class NNXStack(nnx.Module):
    def __init__(self, cell, ins, hidden, layers, both):
        options = {**F64, **({"dtype": jnp.float64} if cell is nnx.SimpleCell else {})}

        def run_cell(size):
            return nnx.RNN(cell(size, hidden, rngs=rngs(), **options), return_carry=True, rngs=rngs())

        sizes = [ins, *[hidden * (1 + both)] * (layers - 1)]
        self.layers = nnx.List(
            [
                nnx.Bidirectional(run_cell(size), run_cell(size), return_carry=True, rngs=rngs())
                if both
                else run_cell(size)
                for size in sizes
            ]
        )

    def __call__(self, x, carries):
        for layer, carry in zip(self.layers, carries):
            last, x = layer(x, initial_carry=carry)
        return last, x


@pytest.mark.parametrize(
    ("layers", "both", "ins", "bias"),
    [(1, False, 3, True), (1, False, 3, False), (1, True, 4, True), (2, True, 3, True)],
)
@pytest.mark.parametrize("name", CELLS)
def test_recurrent_layers_over_a_sequence_in_flax(name, layers, both, ins, bias):
    kind, in_linen, in_nnx, _ = CELLS[name]
    ours = randomised(kind(ins, 4, layers, bias=bias, batch_first=True, bidirectional=both))
    x, lstm, cells = normal(2, 5, ins), kind is torch.nn.LSTM, layers * (1 + both)
    h, c = normal(cells, 2, 4, seed=2), normal(cells, 2, 4, seed=3)
    given = (torch.from_numpy(h), torch.from_numpy(c)) if lstm else torch.from_numpy(h)
    expected, last = ours(torch.from_numpy(x), given)
    carries = [(c[i], h[i]) if lstm else h[i] for i in range(cells)]
    carries = [tuple(carries[i : i + 2]) for i in range(0, cells, 2)] if both else carries
    h_last, c_last = last if lstm else (last, None)

    def check(outcome):
        carry, outputs = outcome
        assert_close(outputs, expected)
        carry = carry[0] if both else carry
        place = -2 if both else -1
        assert_close(carry[1] if lstm else carry, h_last[place])
        if lstm:
            assert_close(carry[0], c_last[place])

    check(linen_outputs(ours, Stack(in_linen, 4, layers, both), x, carries))
    if in_nnx is not None:
        check(nnx_filled(ours, lambda: NNXStack(in_nnx, ins, 4, layers, both))(x, carries))
    elif not bias:
        check(nnx_filled(ours, lambda: NNXStack(nnx.GRUCell, ins, 4, layers, both))(x, carries))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", CELLS)
def test_recurrent_cells(name, bias):
    kind, in_linen, in_nnx, in_equinox = CELLS[name]
    ours = randomised(getattr(torch.nn, f"{kind.__name__}Cell")(3, 4, bias=bias))
    x, h, c = normal(2, 3), normal(2, 4, seed=2), normal(2, 4, seed=3)
    lstm = kind is torch.nn.LSTM
    carry = (c, h) if lstm else h
    found = ours(torch.from_numpy(x), (torch.from_numpy(h), torch.from_numpy(c)) if lstm else torch.from_numpy(h))
    expected = found[0] if lstm else found
    assert_close(linen_outputs(ours, in_linen(4, **F64), carry, x)[1], expected)
    if in_nnx is None and not bias:
        in_nnx = nnx.GRUCell
    if in_nnx is not None:
        options = {"dtype": jnp.float64} if in_nnx is nnx.SimpleCell else {}
        assert_close(nnx_filled(ours, lambda: in_nnx(3, 4, rngs=rngs(), **options, **F64))(carry, x)[1], expected)
    if in_equinox is not None:
        module = batched(equinox_filled(ours, lambda: in_equinox(3, 4, bias, key=KEY)))
        assert_close(module(x, (h, c))[0] if lstm else module(x, h), expected)


def test_a_simple_cell_with_another_activation():
    ours, x, h = randomised(torch.nn.RNNCell(3, 4, nonlinearity="relu")), normal(2, 3), normal(2, 4, seed=2)
    expected = ours(torch.from_numpy(x), torch.from_numpy(h))
    assert_close(linen_outputs(ours, linen.SimpleCell(4, activation_fn=jax.nn.relu, **F64), h, x)[1], expected)


class EquinoxLayers(eqx.Module):
    forward_cells: list
    backward_cells: list


def test_recurrent_layers_in_equinox():
    ours, x = randomised(torch.nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True)), normal(5, 3)
    expected, _ = ours(torch.from_numpy(x)[None])

    def cells():
        return [eqx.nn.LSTMCell(size, 4, key=KEY) for size in (3, 8)]

    filled = equinox_filled(ours, lambda: EquinoxLayers(cells(), cells()))

    def over(cell, inputs, *, reverse):
        def step(carry, each):
            carry = cell(each, carry)
            return carry, carry[0]

        return jax.lax.scan(step, (jnp.zeros(4), jnp.zeros(4)), inputs, reverse=reverse)[1]

    for forward, backward in zip(filled.forward_cells, filled.backward_cells):
        x = jnp.concatenate([over(forward, x, reverse=False), over(backward, x, reverse=True)], axis=-1)
    assert_close(x, expected[0])


# Activations.


def test_prelu():
    ours, x = randomised(torch.nn.PReLU()), normal(2, 3, 4)
    expected = ours(torch.from_numpy(x))
    assert_close(linen_outputs(ours, linen.PReLU(**F64), x), expected)
    assert_close(nnx_filled(ours, lambda: nnx.PReLU(**F64))(x), expected)
    assert_close(equinox_filled(ours, lambda: eqx.nn.PReLU())(x), expected)


def test_prelu_with_a_slope_for_each_channel():
    ours, x = randomised(torch.nn.PReLU(3)), normal(2, 3, 4)
    module = equinox_filled(ours, lambda: eqx.nn.PReLU(jnp.zeros((3, 1))))
    assert_close(batched(module)(x), ours(torch.from_numpy(x)))


# Computed weights.


WEIGHT_NORMS = {
    "old": lambda module, dim: torch.nn.utils.weight_norm(module, dim=dim),
    "new": lambda module, dim: parametrizations.weight_norm(module, dim=dim),
}


@pytest.mark.parametrize("dim", [0, None])
@pytest.mark.parametrize("name", WEIGHT_NORMS)
def test_weight_norm_of_a_linear_layer(name, dim):
    ours, x = randomised(WEIGHT_NORMS[name](torch.nn.Linear(4, 4), dim)), normal(2, 4)
    with torch.no_grad():
        # With negative ones, nnx gives other outputs from the second call on.
        next(tensor for key, tensor in ours.named_parameters() if key.endswith(("_g", "original0"))).abs_()
    expected = ours(torch.from_numpy(x))
    options = {"epsilon": 0.0, "feature_axes": -1 if dim == 0 else None, **F64}
    module = linen.WeightNorm(linen.Dense(4, **F64), **options)
    assert_close(linen_outputs(ours, module, x), expected)
    module = nnx_filled(
        ours, lambda: nnx.WeightNorm(nnx.Linear(4, 4, rngs=rngs(), **F64), rngs=rngs(), **options), abstract=False
    )
    assert_close(module(x), expected)
    # The weight has been written over, and gives the same again.
    assert_close(module(x), expected)
    module = equinox_filled(ours, lambda: eqx.nn.WeightNorm(eqx.nn.Linear(4, 4, key=KEY), axis=dim))
    assert_close(batched(module)(x), expected)


@pytest.mark.parametrize("name", WEIGHT_NORMS)
def test_weight_norm_of_convolutions(name):
    x = normal(2, 3, 5, 6)
    ours = randomised(WEIGHT_NORMS[name](torch.nn.Conv2d(3, 4, (3, 2)), 0))
    expected = ours(torch.from_numpy(x))
    inner = linen.Conv(4, (3, 2), padding="VALID", **F64)
    module = linen.WeightNorm(inner, epsilon=0.0, **F64)
    assert_close(channels_first(linen_outputs(ours, module, channels_last(x))), expected)

    def in_nnx():
        inner = nnx.Conv(3, 4, (3, 2), padding="VALID", rngs=rngs(), **F64)
        return nnx.WeightNorm(inner, epsilon=0.0, rngs=rngs(), **F64)

    module = nnx_filled(ours, in_nnx, abstract=False)
    assert_close(channels_first(module(channels_last(x))), expected)
    module = equinox_filled(ours, lambda: eqx.nn.WeightNorm(eqx.nn.Conv2d(3, 4, (3, 2), key=KEY)))
    assert_close(batched(module)(x), expected)
    # A transposed one has its norms along what goes in.
    ours = randomised(WEIGHT_NORMS[name](torch.nn.ConvTranspose2d(3, 4, (3, 2)), 0))
    expected = ours(torch.from_numpy(x))
    for transposed, axis in ((False, -2), (True, -1)):
        inner = linen.ConvTranspose(4, (3, 2), padding="VALID", transpose_kernel=transposed, **F64)
        module = linen.WeightNorm(inner, epsilon=0.0, feature_axes=axis, **F64)
        outputs = linen_outputs(ours, module, channels_last(x))
        assert_close(channels_first(outputs), expected)
    module = equinox_filled(ours, lambda: eqx.nn.WeightNorm(eqx.nn.ConvTranspose2d(3, 4, (3, 2), key=KEY), axis=1))
    assert_close(batched(module)(x), expected)


SPECTRAL_NORMS = {"old": torch.nn.utils.spectral_norm, "new": parametrizations.spectral_norm}
SPECTRAL_LAYERS = {
    "linear": (
        lambda: torch.nn.Linear(4, 4),
        lambda: linen.Dense(4, **F64),
        lambda: nnx.Linear(4, 4, rngs=rngs(), **F64),
        lambda: eqx.nn.Linear(4, 4, key=KEY),
        (4,),
    ),
    "convolution": (
        lambda: torch.nn.Conv2d(3, 4, (3, 2)),
        lambda: linen.Conv(4, (3, 2), padding="VALID", **F64),
        lambda: nnx.Conv(3, 4, (3, 2), padding="VALID", rngs=rngs(), **F64),
        lambda: eqx.nn.Conv2d(3, 4, (3, 2), key=KEY),
        (3, 5, 6),
    ),
    "transposed": (
        lambda: torch.nn.ConvTranspose2d(3, 4, (3, 2)),
        lambda: linen.ConvTranspose(4, (3, 2), padding="VALID", **F64),
        lambda: nnx.ConvTranspose(3, 4, (3, 2), padding="VALID", rngs=rngs(), **F64),
        lambda: eqx.nn.ConvTranspose2d(3, 4, (3, 2), key=KEY),
        (3, 5, 6),
    ),
}


def vectors(module):
    """The u and v of a spectral norm of torch."""
    state = module.state_dict()
    return [next(tensor for key, tensor in state.items() if key.endswith(ending)) for ending in ("_u", "_v")]


def converge(module):
    """Singular vectors as the iteration finds them in the end."""
    tensors = module.state_dict()
    weight = next(tensors[key] for key in tensors if key.endswith(("weight_orig", "weight.original")))
    if isinstance(module, torch.nn.ConvTranspose2d):
        weight = weight.transpose(0, 1)
    left, _, right = torch.linalg.svd(weight.flatten(1))
    for tensor, vector in zip(vectors(module), (left[:, 0], right[0])):
        tensor.copy_(vector)


@pytest.mark.parametrize("layer", SPECTRAL_LAYERS)
@pytest.mark.parametrize("name", SPECTRAL_NORMS)
def test_spectral_norm_in_equinox(name, layer):
    make, _, _, make_equinox, shape = SPECTRAL_LAYERS[layer]
    ours, x = randomised(SPECTRAL_NORMS[name](make())), normal(2, *shape)
    made = equinox_filled(ours, lambda: eqx.nn.SpectralNorm(make_equinox(), "weight", key=KEY))
    state, module = eqx.nn.State(made), eqx.nn.delete_init_state(made)
    # In evaluation, it takes u and v as torch does.
    outputs, _ = jax.vmap(eqx.nn.inference_mode(module), in_axes=(0, None))(x, state)
    assert_close(outputs, ours(torch.from_numpy(x)))
    if name == "new":
        # And in training it takes the steps that torch's new one does.
        outputs, state = jax.vmap(module, in_axes=(0, None), out_axes=(0, None))(x, state)
        assert_close(outputs, ours.train()(torch.from_numpy(x)))
        assert_close(state.get(module.uv_index)[0], vectors(ours)[0])


@pytest.mark.parametrize("layer", SPECTRAL_LAYERS)
@pytest.mark.parametrize("name", SPECTRAL_NORMS)
def test_spectral_norm_in_flax(name, layer):
    make, make_linen, make_nnx, _, shape = SPECTRAL_LAYERS[layer]
    ours, x = randomised(SPECTRAL_NORMS[name](make())), normal(2, *shape)
    given, back = (x, np.asarray) if layer == "linear" else (channels_last(x), channels_first)
    module = linen.SpectralNorm(make_linen(), epsilon=0.0, **F64)

    def filled():
        return nnx_filled(ours, lambda: nnx.SpectralNorm(make_nnx(), epsilon=0.0, rngs=rngs(), **F64))

    if name == "old":
        # In training, it takes the steps that torch's old one does.
        variables, in_nnx = linen_variables(ours, module, given, update_stats=True), filled()
        expected = ours.train()(torch.from_numpy(x))
        outputs, new = module.apply(variables, given, update_stats=True, mutable=["batch_stats"])
        assert_close(back(outputs), expected)
        (u,) = [leaf for leaf in jax.tree.leaves(new) if leaf.ndim == 2]
        assert_close(u[0], vectors(ours)[0])
        assert_close(back(in_nnx(given, update_stats=True)), expected)
    # In evaluation, it makes one more step, which changes nothing in the end.
    converge(ours.eval())
    expected = ours(torch.from_numpy(x))
    assert_close(back(linen_outputs(ours, module, given, update_stats=False)), expected)
    assert_close(back(filled()(given, update_stats=False)), expected)
