"""Small models, each in torch, linen, nnx and Equinox, with the same names of layers, and how to run them alike.

What shapes cannot decide is in all of them: square linear layers, cubic convolutions, ConvTranspose with as many
channels in as out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen, nnx

from tests.convert.layers_side_by_side import F64, KEY, normal, randomised, rngs

FRAMEWORKS = ("linen", "nnx", "equinox")


@dataclass(frozen=True)
class Model:
    """A model in four frameworks. `outputs`: of a model of JAX for the inputs that the one of torch is given."""

    torch: Callable[[], torch.nn.Module]
    linen: Callable[[], linen.Module]
    nnx: Callable[[], Any]
    equinox: Callable[[], Any]
    inputs: np.ndarray
    is_image: bool = False
    has_statistics: bool = False

    def module(self, seed: int = 0) -> torch.nn.Module:
        """The model of torch in float64, randomised."""
        return randomised(self.torch(), seed)

    def given(self, inputs: Any) -> Any:
        """The inputs as linen and nnx have them, channels last."""
        return jnp.moveaxis(jnp.asarray(inputs), 1, -1) if self.is_image else jnp.asarray(inputs)

    def target(self, framework: str) -> Any:
        """Its variables or module, abstract and in float64."""
        if framework == "linen":
            return float64(jax.eval_shape(lambda: self.linen().init(KEY, self.given(self.inputs))))
        if framework == "nnx":
            return nnx.eval_shape(self.nnx)
        return eqx.filter_eval_shape(self.equinox)

    def concrete(self, framework: str) -> Any:
        """The same with values."""
        if framework == "linen":
            return float64(self.linen().init(KEY, self.given(self.inputs)))
        if framework == "equinox":
            return self.equinox()
        module = self.nnx()
        nnx.update(module, float64(nnx.state(module)))
        return module

    def apply(self, framework: str) -> Callable[[Any, Any], Any]:
        """`apply(tree, inputs)`, for a tree like what a plan makes of the target."""
        if framework == "linen":
            return lambda tree, inputs: self.linen().apply(tree, self.given(inputs))
        return self._apply_nnx if framework == "nnx" else self._apply_equinox

    def _apply_nnx(self, tree: Any, inputs: Any) -> Any:
        graph, state = nnx.split(self.nnx())
        return nnx.merge(graph, jax.tree.map(_with_values, tree, state))(self.given(inputs))

    def _apply_equinox(self, tree: Any, inputs: Any) -> Any:
        # Leaf by leaf: two modules are never the same to JAX, if they have states.
        own, treedef = jax.tree.flatten(self.equinox())
        module = treedef.unflatten(map(_with_values, jax.tree.leaves(tree), own))
        if not self.has_statistics:
            return jax.vmap(module)(jnp.asarray(inputs))
        state, module = eqx.nn.State(module), eqx.nn.delete_init_state(module)
        outputs, _ = jax.vmap(module, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(inputs, state)
        return outputs


def _with_values(converted: Any, own: Any) -> Any:
    """A converted leaf as an array of JAX, or the model's own where the target was abstract and nothing comes to it."""
    is_converted = isinstance(converted, np.ndarray | jax.Array)
    return jnp.asarray(converted) if is_converted and jnp.issubdtype(converted.dtype, jnp.number) else own


def float64(tree: Any) -> Any:
    """With all floats in float64: linen has statistics in float32, whatever it is told."""

    def widened(leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        abstract = isinstance(leaf, jax.ShapeDtypeStruct)
        return jax.ShapeDtypeStruct(leaf.shape, jnp.float64) if abstract else leaf.astype(jnp.float64)

    return jax.tree.map(widened, tree)


# Linear layers in a Sequential within a list, and a parameter of its own.


class TorchMlp(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 4)) for _ in range(2)
        )
        self.scale = torch.nn.Parameter(torch.ones(4))

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return x * self.scale


class LinenMlp(linen.Module):
    def setup(self):
        self.blocks = [linen.Sequential([linen.Dense(4, **F64), jnp.tanh, linen.Dense(4, **F64)]) for _ in range(2)]
        self.scale = self.param("scale", linen.initializers.ones, (4,), jnp.float64)

    def __call__(self, x):
        for block in self.blocks:
            x = x + block(x)
        return x * self.scale


class NnxMlp(nnx.Module):
    def __init__(self):
        self.blocks = nnx.List(
            nnx.Sequential(nnx.Linear(4, 4, rngs=rngs(), **F64), jnp.tanh, nnx.Linear(4, 4, rngs=rngs(), **F64))
            for _ in range(2)
        )
        self.scale = nnx.Param(jnp.ones(4))

    def __call__(self, x):
        for block in self.blocks:
            x = x + block(x)
        return x * self.scale


class EquinoxMlp(eqx.Module):
    blocks: list
    scale: jax.Array

    def __init__(self):
        self.blocks = [
            eqx.nn.Sequential([eqx.nn.Linear(4, 4, key=KEY), eqx.nn.Lambda(jnp.tanh), eqx.nn.Linear(4, 4, key=KEY)])
            for _ in range(2)
        ]
        self.scale = jnp.ones(4)

    def __call__(self, x):
        for block in self.blocks:
            x = x + block(x)
        return x * self.scale


# Convolutions and batch norms.


class TorchCnn(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(3)
        self.up = torch.nn.ConvTranspose2d(3, 3, 3, stride=2, padding=1)
        self.head = torch.nn.Linear(3, 3)

    def forward(self, x):
        return self.head(self.up(torch.tanh(self.norm(self.conv(x)))).square().mean((2, 3)))


PADS = [(1, 1), (1, 1)]


class LinenCnn(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.Conv(3, (3, 3), padding=PADS, name="conv", **F64)(x)
        x = linen.BatchNorm(use_running_average=True, momentum=0.9, epsilon=1e-5, name="norm", **F64)(x)
        x = linen.ConvTranspose(3, (3, 3), (2, 2), padding=PADS, transpose_kernel=True, name="up", **F64)(jnp.tanh(x))
        return linen.Dense(3, name="head", **F64)(jnp.square(x).mean((1, 2)))


class NnxCnn(nnx.Module):
    def __init__(self):
        self.conv = nnx.Conv(3, 3, (3, 3), padding=PADS, rngs=rngs(), **F64)
        self.norm = nnx.BatchNorm(3, use_running_average=True, momentum=0.9, epsilon=1e-5, rngs=rngs(), **F64)
        self.up = nnx.ConvTranspose(3, 3, (3, 3), (2, 2), padding=PADS, rngs=rngs(), **F64)
        self.head = nnx.Linear(3, 3, rngs=rngs(), **F64)

    def __call__(self, x):
        x = self.up(jnp.tanh(self.norm(self.conv(x))))
        return self.head(jnp.square(x).mean((1, 2)))


class EquinoxCnn(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    up: eqx.nn.ConvTranspose2d
    head: eqx.nn.Linear

    def __init__(self):
        self.conv = eqx.nn.Conv2d(3, 3, 3, padding=1, key=KEY)
        self.norm = eqx.nn.BatchNorm(3, "batch", momentum=0.9, mode="batch", inference=True)
        self.up = eqx.nn.ConvTranspose2d(3, 3, 3, stride=2, padding=1, key=KEY)
        self.head = eqx.nn.Linear(3, 3, key=KEY)

    def __call__(self, x, state):
        x, state = self.norm(self.conv(x), state)
        return self.head(jnp.square(self.up(jnp.tanh(x))).mean((1, 2))), state


# An embedding and a recurrent layer.


class TorchReader(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(4, 4)
        self.lstm = torch.nn.LSTM(4, 4, batch_first=True)
        self.head = torch.nn.Linear(4, 4)

    def forward(self, tokens):
        return self.head(self.lstm(self.embedding(tokens))[0][:, -1])


class LinenReader(linen.Module):
    def setup(self):
        self.embedding = linen.Embed(4, 4, **F64)
        self.lstm = linen.RNN(linen.LSTMCell(4, **F64))
        self.head = linen.Dense(4, **F64)

    def __call__(self, tokens):
        return self.head(self.lstm(self.embedding(tokens))[:, -1])


class NnxReader(nnx.Module):
    def __init__(self):
        self.embedding = nnx.Embed(4, 4, rngs=rngs(), **F64)
        self.lstm = nnx.RNN(nnx.OptimizedLSTMCell(4, 4, rngs=rngs(), **F64), rngs=rngs())
        self.head = nnx.Linear(4, 4, rngs=rngs(), **F64)

    def __call__(self, tokens):
        return self.head(self.lstm(self.embedding(tokens))[:, -1])


class EquinoxReader(eqx.Module):
    embedding: eqx.nn.Embedding
    lstm: eqx.nn.LSTMCell
    head: eqx.nn.Linear

    def __init__(self):
        self.embedding = eqx.nn.Embedding(4, 4, key=KEY)
        self.lstm = eqx.nn.LSTMCell(4, 4, key=KEY)
        self.head = eqx.nn.Linear(4, 4, key=KEY)

    def __call__(self, tokens):
        carry = (jnp.zeros(4), jnp.zeros(4))
        carry, _ = jax.lax.scan(lambda carry, x: (self.lstm(x, carry), None), carry, jax.vmap(self.embedding)(tokens))
        return self.head(carry[0])


# Attention.


class TorchAttention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.LayerNorm(4)
        self.attention = torch.nn.MultiheadAttention(4, 2, batch_first=True)
        self.positions = torch.nn.Parameter(torch.zeros(5, 4))

    def forward(self, x):
        y = self.norm(x + self.positions)
        return x + self.attention(y, y, y, need_weights=False)[0]


class LinenAttention(linen.Module):
    def setup(self):
        self.norm = linen.LayerNorm(epsilon=1e-5, **F64)
        self.attention = linen.MultiHeadDotProductAttention(2, **F64)
        self.positions = self.param("positions", linen.initializers.zeros, (5, 4), jnp.float64)

    def __call__(self, x):
        return x + self.attention(self.norm(x + self.positions))


def attend(query, key, value, **_options):
    """Attention in float64: that of JAX itself, which nnx takes by default, has its softmax in float32."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / jnp.sqrt(query.shape[-1])
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), value)


class NnxAttention(nnx.Module):
    def __init__(self):
        self.norm = nnx.LayerNorm(4, epsilon=1e-5, rngs=rngs(), **F64)
        self.attention = nnx.MultiHeadAttention(2, 4, decode=False, attention_fn=attend, rngs=rngs(), **F64)
        self.positions = nnx.Param(jnp.zeros((5, 4)))

    def __call__(self, x):
        return x + self.attention(self.norm(x + self.positions))


class EquinoxAttention(eqx.Module):
    norm: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    positions: jax.Array

    def __init__(self):
        biases = {f"use_{part}_bias": True for part in ("query", "key", "value", "output")}
        self.norm = eqx.nn.LayerNorm(4, dtype=jnp.float64)
        self.attention = eqx.nn.MultiheadAttention(2, 4, **biases, key=KEY)
        self.positions = jnp.zeros((5, 4))

    def __call__(self, x):
        y = jax.vmap(self.norm)(x + self.positions)
        return x + self.attention(y, y, y)


MODELS = {
    "mlp": Model(TorchMlp, LinenMlp, NnxMlp, EquinoxMlp, normal(3, 4)),
    "cnn": Model(TorchCnn, LinenCnn, NnxCnn, EquinoxCnn, normal(2, 3, 4, 5), is_image=True, has_statistics=True),
    "reader": Model(TorchReader, LinenReader, NnxReader, EquinoxReader, np.array([[0, 3, 1], [2, 2, 0]])),
    "attention": Model(TorchAttention, LinenAttention, NnxAttention, EquinoxAttention, normal(2, 5, 4)),
}
