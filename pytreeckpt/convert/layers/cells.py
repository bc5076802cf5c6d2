"""Recurrent cells: what the parameters of one step become, whatever runs it over a sequence.

torch has one matrix (gates · H, in), one (gates · H, H) for the hidden state, and two biases, which are only ever
added but for those of a GRU's new gate. Gates are i, f, g, o in an LSTM and r, z, n in a GRU, everywhere. Flax has a
layer for each gate or, packed, one for all; Equinox has torch's matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from pytreeckpt.convert.layers.variants import Move
from pytreeckpt.convert.operations import Concat, Crop, Operations, Pad, Permute, Reshape, Split, SumPair, Unstack


@dataclass(frozen=True, slots=True)
class TorchCell:
    """A cell of torch: the names of its leaves (`weight_ih`, or `weight_ih_l0_reverse` in a layer), of which `biases`
    are two or none; and H, the features of its hidden state.
    """

    weight_ih: str
    weight_hh: str
    biases: tuple[str, ...]
    hidden: int


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of the other framework: `leaf`, by which it is told from others; its `moves`; and the leaves that are 0
    where torch has no biases.
    """

    name: str
    leaf: str
    moves: Callable[[TorchCell], Sequence[Move]]
    zeros: tuple[str, ...]


_TRANSPOSE: Final = Permute((1, 0))


def _gate_kernels(cell: TorchCell, inputs: Sequence[str], hiddens: Sequence[str]) -> list[Move]:
    """A layer for each gate."""
    split = Split(0, (cell.hidden,) * len(inputs))
    operations: Operations = (split, _TRANSPOSE) if len(inputs) > 1 else (_TRANSPOSE,)
    return [
        Move((cell.weight_ih,), tuple(f"{name}/kernel" for name in inputs), operations),
        Move((cell.weight_hh,), tuple(f"{name}/kernel" for name in hiddens), operations),
    ]


def _packed_kernels(cell: TorchCell) -> list[Move]:
    """A layer for all gates."""
    return [
        Move((cell.weight_ih,), ("dense_i/kernel",), (_TRANSPOSE,)),
        Move((cell.weight_hh,), ("dense_h/kernel",), (_TRANSPOSE,)),
    ]


def _matrices(cell: TorchCell) -> list[Move]:
    """As torch has them."""
    return [Move((cell.weight_ih,), ("weight_ih",)), Move((cell.weight_hh,), ("weight_hh",))]


def _summed(cell: TorchCell, targets: Sequence[str]) -> list[Move]:
    """Both biases to their sum, and that to a part for each gate if there are several targets."""
    if not cell.biases:
        return []
    parts: Operations = (Split(0, (cell.hidden,) * len(targets)),) if len(targets) > 1 else ()
    return [Move(cell.biases, tuple(targets), (SumPair(), *parts))]


def _gru_biases(cell: TorchCell, targets: Sequence[str], sizes: Sequence[int]) -> list[Move]:
    """Both biases of a GRU to r and z, which are sums, and to n of the input and n of the hidden state, which are not:
    to four gates in this order, for targets that have so many of them each.

    Operations act on all arrays alike, so what is not to be summed is moved to where the other array has zeros:

        r z n r z | n 0 0 0 0    both biases, padded, in two rows
        r z n r z 0 n 0 0 0 0 0  each row padded by one
        r z n n 0 0              the first of each pair of threes; these are summed with
        r z 0 0 0 0              the second; and the last two are cropped

    The way back gives the sums to the first array, and zeros to the second.
    """
    if not cell.biases:
        return []
    width = cell.hidden
    operations: Operations = (
        Concat(0, (3 * width, 3 * width)),
        Reshape((6 * width,), (6, width)),
        Pad(((0, 4), (0, 0))),
        Reshape((10, width), (2, 5, width)),
        Pad(((0, 0), (0, 1), (0, 0))),
        Reshape((2, 6, width), (2, 2, 3, width)),
        Unstack(1, 2),
        SumPair(),
        Reshape((2, 3, width), (6, width)),
        Crop(((0, 2), (0, 0))),
        Reshape((4, width), (4 * width,)),
        Split(0, tuple(size * width for size in sizes)),
    )
    return [Move(cell.biases, tuple(targets), operations)]


def _flax_lstm(forget: str) -> Cell:
    gates = ("i", "f", "g", "o")
    inputs = ("ii", forget, "ig", "io")
    hiddens = tuple(f"h{gate}" for gate in gates)
    biases = tuple(f"{name}/bias" for name in hiddens)
    return Cell(
        "LSTMCell, a layer for each gate",
        f"{forget}/kernel",
        lambda cell: [*_gate_kernels(cell, inputs, hiddens), *_summed(cell, biases)],
        biases,
    )


_LINEN_GRU_BIASES: Final = ("ir/bias", "iz/bias", "in/bias", "hn/bias")

LINEN_LSTM: Final = _flax_lstm("if")
NNX_LSTM: Final = _flax_lstm("if_")
PACKED_LSTM: Final = Cell(
    "OptimizedLSTMCell, packed",
    "dense_i/kernel",
    lambda cell: [*_packed_kernels(cell), *_summed(cell, ["dense_h/bias"])],
    ("dense_h/bias",),
)
EQUINOX_LSTM: Final = Cell(
    "LSTMCell", "weight_ih", lambda cell: [*_matrices(cell), *_summed(cell, ["bias"])], ("bias",)
)
LINEN_GRU: Final = Cell(
    "GRUCell, a layer for each gate",
    "ir/kernel",
    lambda cell: [
        *_gate_kernels(cell, ("ir", "iz", "in"), ("hr", "hz", "hn")),
        *_gru_biases(cell, _LINEN_GRU_BIASES, (1, 1, 1, 1)),
    ],
    _LINEN_GRU_BIASES,
)


def _nnx_gru(cell: TorchCell) -> Sequence[Move]:
    if cell.biases:
        raise ValueError(
            "flax.nnx.GRUCell has no bias for the hidden state in its new gate (torch's b_hn), and cannot compute the "
            "same; use flax.linen.GRUCell (flax.nnx.bridge.ToNNX) or a cell of your own"
        )
    return _packed_kernels(cell)


NNX_GRU: Final = Cell("GRUCell, packed", "dense_i/kernel", _nnx_gru, ("dense_i/bias",))
EQUINOX_GRU: Final = Cell(
    "GRUCell",
    "weight_ih",
    lambda cell: [*_matrices(cell), *_gru_biases(cell, ("bias", "bias_n"), (3, 1))],
    ("bias", "bias_n"),
)
LINEN_SIMPLE: Final = Cell(
    "SimpleCell",
    "i/kernel",
    lambda cell: [*_gate_kernels(cell, ("i",), ("h",)), *_summed(cell, ["i/bias"])],
    ("i/bias",),
)
NNX_SIMPLE: Final = Cell(
    "SimpleCell",
    "dense_i/kernel",
    lambda cell: [*_packed_kernels(cell), *_summed(cell, ["dense_i/bias"])],
    ("dense_i/bias",),
)
