"""The layers of torch in the other frameworks: a table for each, by the kind of torch's layer.

The tables are checked in tests/convert/test_layer_parity.py, each entry against the outputs of the layers themselves;
docs/conversion-layers.md says the same for people.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from pytreeckpt.convert.layers.activation import equinox_prelu, flax_prelu
from pytreeckpt.convert.layers.attention import equinox_attention, flax_attention
from pytreeckpt.convert.layers.batch_normalization import equinox_batch_norm, flax_batch_norm
from pytreeckpt.convert.layers.convolution import (
    equinox_convolution,
    equinox_transposed,
    flax_convolution,
    flax_transposed,
)
from pytreeckpt.convert.layers.linear import (
    equinox_conv1d,
    equinox_embedding,
    equinox_linear,
    flattened_linear,
    flax_conv1d,
    flax_embedding,
    flax_linear,
)
from pytreeckpt.convert.layers.normalization import (
    equinox_group_norm,
    equinox_instance_norm,
    equinox_layer_norm,
    equinox_rms_norm,
    flax_group_norm,
    flax_instance_norm,
    flax_layer_norm,
    flax_rms_norm,
)
from pytreeckpt.convert.layers.parametrized import as_it_is, with_parametrization
from pytreeckpt.convert.layers.recurrent import equinox_gru, equinox_lstm, flax_gru, flax_lstm, flax_rnn
from pytreeckpt.convert.layers.sides import with_plain_config
from pytreeckpt.convert.layers.variants import Layout, Side, Table, Variant

__all__ = ["TABLES", "flattened_linear"]

_AXES: Final = ("1d", "2d", "3d")


def _refused(reason: str) -> Layout:
    def layout(_torch: Side, _other: Side) -> Sequence[Variant]:
        raise ValueError(reason)

    return layout


_LOSS: Final = _refused("the weights of a loss are the program's in JAX, not a layer's: drop them with a rule")
_REFUSED: Final[Mapping[str, Layout]] = {
    "Bilinear": _refused("there is no bilinear layer: write one of your own, with its weight as it is, and a rule"),
    **dict.fromkeys(
        (
            "BCELoss",
            "BCEWithLogitsLoss",
            "CrossEntropyLoss",
            "MultiLabelMarginLoss",
            "MultiLabelSoftMarginLoss",
            "MultiMarginLoss",
            "NLLLoss",
            "NLLLoss2d",
        ),
        _LOSS,
    ),
}

_FLAX: Final[Mapping[str, Layout]] = {
    "Linear": flax_linear,
    "Embedding": flax_embedding,
    "EmbeddingBag": flax_embedding,
    **{f"Conv{axes}": flax_convolution for axes in _AXES},
    **{f"ConvTranspose{axes}": flax_transposed for axes in _AXES},
    "LayerNorm": flax_layer_norm,
    "RMSNorm": flax_rms_norm,
    "GroupNorm": flax_group_norm,
    **{f"InstanceNorm{axes}": flax_instance_norm for axes in _AXES},
    **{f"BatchNorm{axes}": flax_batch_norm for axes in _AXES},
    "SyncBatchNorm": flax_batch_norm,
    "MultiheadAttention": flax_attention,
    "LSTM": flax_lstm,
    "LSTMCell": flax_lstm,
    "GRU": flax_gru,
    "GRUCell": flax_gru,
    "RNN": flax_rnn,
    "RNNCell": flax_rnn,
    "PReLU": flax_prelu,
    **_REFUSED,
}

_NO_SIMPLE_CELL: Final = _refused("Equinox has no simple recurrent cell: write one of your own, and rules")
_EQUINOX: Final[Mapping[str, Layout]] = {
    "Linear": equinox_linear,
    "Embedding": equinox_embedding,
    "EmbeddingBag": equinox_embedding,
    **{f"Conv{axes}": equinox_convolution for axes in _AXES},
    **{f"ConvTranspose{axes}": equinox_transposed for axes in _AXES},
    "LayerNorm": equinox_layer_norm,
    "RMSNorm": equinox_rms_norm,
    "GroupNorm": equinox_group_norm,
    **{f"InstanceNorm{axes}": equinox_instance_norm for axes in _AXES},
    **{f"BatchNorm{axes}": equinox_batch_norm for axes in _AXES},
    "SyncBatchNorm": equinox_batch_norm,
    "MultiheadAttention": equinox_attention,
    "LSTM": equinox_lstm,
    "LSTMCell": equinox_lstm,
    "GRU": equinox_gru,
    "GRUCell": equinox_gru,
    "RNN": _NO_SIMPLE_CELL,
    "RNNCell": _NO_SIMPLE_CELL,
    "PReLU": equinox_prelu,
    **_REFUSED,
}

# Their weights may be computed from others.
_WITH_WEIGHT: Final = (
    "Linear",
    *(f"{name}{axes}" for name in ("Conv", "ConvTranspose") for axes in _AXES),
)
# Classes that are known by their own names.
_OUT_PROJECTION: Final = "torch.nn.modules.linear.NonDynamicallyQuantizableLinear"
_CONV1D: Final = "transformers.pytorch_utils.Conv1D"


def _table(layouts: Mapping[str, Layout], conv1d: Layout, *, equinox: bool) -> Table:
    found = {f"torch.nn.{name}": layout for name, layout in layouts.items()}
    found[_CONV1D] = conv1d
    computed = {*(f"torch.nn.{name}" for name in _WITH_WEIGHT), _CONV1D}
    for name, layout in found.items():
        found[name] = with_parametrization(layout, equinox=equinox) if name in computed else as_it_is(layout)
    found[_OUT_PROJECTION] = found["torch.nn.Linear"]
    return MappingProxyType({name: _checked(layout) for name, layout in found.items()})


def _checked(layout: Layout) -> Layout:
    """The layout, for configurations of which nobody knows what a file has in them."""

    def checked(torch: Side, other: Side) -> Sequence[Variant]:
        return layout(with_plain_config(torch), with_plain_config(other))

    checked.__doc__ = layout.__doc__
    return checked


TABLES: Final[Mapping[str, Table]] = MappingProxyType(
    {
        "flax": _table(_FLAX, flax_conv1d, equinox=False),
        "equinox": _table(_EQUINOX, equinox_conv1d, equinox=True),
    }
)
"""By the convention of the other side. The table `flax` is for linen and nnx; where no target is given, whose names
would tell them apart, `Side({}, config={"scheme": "linen"})` says which.
"""
