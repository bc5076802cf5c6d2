"""Recurrent layers, of which torch has several in one, each perhaps in both directions, and JAX one cell for each.

Which cell is which layer, their names say: numbers that differ (`layers_0`, `layers_1`), and `forward` and `backward`,
as Flax's `Bidirectional` has them. Where they do not, there is a variant for each order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Final

from pytreeckpt.convert.layers.cells import (
    EQUINOX_GRU,
    EQUINOX_LSTM,
    LINEN_GRU,
    LINEN_LSTM,
    LINEN_SIMPLE,
    NNX_GRU,
    NNX_LSTM,
    NNX_SIMPLE,
    PACKED_LSTM,
    Cell,
    TorchCell,
)
from pytreeckpt.convert.layers.sides import check_kind, is_without, number, scheme_of
from pytreeckpt.convert.layers.variants import Layout, Move, Side, Variant

_LEAF: Final = re.compile(r"weight_ih_l(0|[1-9][0-9]{0,3})(_reverse)?")
_NUMBER: Final = re.compile(r"[0-9]+")
_FORWARD: Final = re.compile(r"(?:^|[/_])(?:forward|fwd)(?:[/_]|$)")
_BACKWARD: Final = re.compile(r"(?:^|[/_])(?:backward|bwd|reverse)(?:[/_]|$)")
_MAX_ORDERS: Final = 24


@dataclass(frozen=True, slots=True)
class _Family:
    """What torch's layers of a sort may become: the number of their gates, the cells there, and the kinds of layers
    that have such cells. `is_flax`: which has layers that run a cell over a sequence.
    """

    gates: int
    cells: tuple[Cell, ...]
    allowed: tuple[str, ...]
    is_flax: bool = True


_LSTM: Final = _Family(
    4, (LINEN_LSTM, NNX_LSTM, PACKED_LSTM), ("RNN", "Bidirectional", "LSTMCell", "OptimizedLSTMCell")
)
_GRU: Final = _Family(3, (LINEN_GRU, NNX_GRU), ("RNN", "Bidirectional", "GRUCell"))
_SIMPLE: Final = _Family(1, (LINEN_SIMPLE, NNX_SIMPLE), ("RNN", "Bidirectional", "SimpleCell"))
_EQUINOX_LSTM: Final = _Family(4, (EQUINOX_LSTM,), ("LSTMCell",), is_flax=False)
_EQUINOX_GRU: Final = _Family(3, (EQUINOX_GRU,), ("GRUCell",), is_flax=False)


@dataclass(frozen=True, slots=True)
class _Slot:
    """One cell of a torch layer, and its place in that."""

    cell: TorchCell
    layer: int
    reverse: bool


def _slots(torch: Side, gates: int) -> list[_Slot]:
    """The cells of a layer of torch, in its order: by layer, forward first. Empty if it has not the leaves of one."""
    found = [(int(match[1]), bool(match[2])) for name in torch.shapes if (match := _LEAF.fullmatch(name))]
    layers = {layer for layer, _ in found}
    directions = {reverse for _, reverse in found}
    if layers != set(range(len(layers))) or len(found) != len(layers) * len(directions):
        return []
    names = [(layer, reverse, f"_l{layer}{'_reverse' if reverse else ''}") for layer, reverse in sorted(found)]
    if "weight_ih" in torch.shapes:
        names = [(0, False, "")]
    slots = [_Slot(cell, layer, reverse) for layer, reverse, end in names if (cell := _torch_cell(torch, end, gates))]
    return slots if len(slots) == len(names) else []


def _torch_cell(torch: Side, end: str, gates: int) -> TorchCell | None:
    hidden = torch.shapes.get(f"weight_hh{end}", ())
    if len(hidden) != 2 or hidden[0] != gates * hidden[1]:
        return None
    biases = tuple(name for name in (f"bias_ih{end}", f"bias_hh{end}") if name in torch.shapes)
    return TorchCell(f"weight_ih{end}", f"weight_hh{end}", biases, hidden[1]) if len(biases) != 1 else None


def _recurrent(torch: Side, other: Side, family: _Family) -> Sequence[Variant]:
    check_kind(torch, other, *family.allowed)
    if any(name.startswith("weight_hr") for name in torch.shapes):
        raise ValueError("its hidden state is projected (proj_size), which JAX's cells do not")
    slots = _slots(torch, family.gates)
    if not slots:
        return ()
    variants: list[Variant] = []
    for cell in _possible(other, family):
        for prefixes, why in _orders(slots, cell, torch, other):
            moves = [
                Move(move.sources, tuple(f"{prefix}{name}" for name in move.targets), move.operations)
                for slot, prefix in zip(slots, prefixes, strict=True)
                for move in cell.moves(slot.cell)
            ]
            # `bias` is an option of these layers, and the name of none of their leaves.
            zeros = [f"{prefix}{name}" for prefix in prefixes for name in cell.zeros if is_without(torch, "bias")]
            fills = {name: 0.0 for name in zeros if name in other.shapes and not slots[0].cell.biases}
            variants.append(Variant(f"{cell.name}{why}", tuple(moves), {}, fills, _notes(torch, family)))
    return variants


def _possible(other: Side, family: _Family) -> Iterator[Cell]:
    """The cells that the other side may have: those that have their leaves there, or are of the scheme."""
    if other.shapes:
        yield from (cell for cell in family.cells if any(_is_leaf(name, cell.leaf) for name in other.shapes))
        return
    for cell in family.cells:
        packed = cell in {PACKED_LSTM, NNX_LSTM, NNX_GRU, NNX_SIMPLE}
        if scheme_of(other) is None or packed == (scheme_of(other) == "nnx"):
            yield cell


def _is_leaf(name: str, leaf: str) -> bool:
    return name == leaf or name.endswith(f"/{leaf}")


def _orders(slots: Sequence[_Slot], cell: Cell, torch: Side, other: Side) -> Iterator[tuple[Sequence[str], str]]:
    """Where the cells are, in the order of the slots; and what is to be said of it, where there are several."""
    if not other.shapes:
        yield [_default_prefix(slot, slots, torch, other) for slot in slots], ""
        return
    prefixes = sorted(name.removesuffix(cell.leaf) for name in other.shapes if _is_leaf(name, cell.leaf))
    if len(prefixes) != len(slots):
        raise ValueError(f"it has {len(prefixes)} cells there ({cell.name}), and torch {len(slots)}")
    decided = _decided(slots, prefixes)
    if decided is not None:
        yield decided, ""
        return
    orders = permutations(prefixes)
    for count, order in enumerate(orders):
        if count == _MAX_ORDERS:
            raise ValueError(
                f"the names of its {len(slots)} cells there do not say which is which: give rules for them"
            )
        yield order, f": {', '.join(prefix.rstrip('/') for prefix in order)}"


def _default_prefix(slot: _Slot, slots: Sequence[_Slot], torch: Side, other: Side) -> str:
    """What a cell is called where nobody has named it: as Flax's RNN and Bidirectional have it, in a list of layers."""
    if "weight_ih" in torch.shapes:
        return ""
    separator = "_" if scheme_of(other) == "linen" else "/"
    layers = f"layers{separator}{slot.layer}/" if slots[-1].layer > 0 else ""
    both = ("backward_rnn/" if slot.reverse else "forward_rnn/") if any(each.reverse for each in slots) else ""
    return f"{layers}{both}{'cell/' if scheme_of(other) else ''}"


def _decided(slots: Sequence[_Slot], prefixes: Sequence[str]) -> list[str] | None:
    """The prefixes in the order of the slots, if their names say it."""
    both = any(slot.reverse for slot in slots)
    forward = [prefix for prefix in prefixes if not both or (_FORWARD.search(prefix) and not _BACKWARD.search(prefix))]
    backward = [prefix for prefix in prefixes if both and _BACKWARD.search(prefix) and not _FORWARD.search(prefix)]
    ordered = {False: _by_number(forward), True: _by_number(backward)}
    found: list[str] = []
    for slot in slots:
        order = ordered[slot.reverse]
        if order is None or slot.layer >= len(order):
            return None
        found.append(order[slot.layer])
    return found if sorted(found) == sorted(prefixes) else None


def _by_number(prefixes: Sequence[str]) -> list[str] | None:
    """Names by the one number in which they differ; None if there is not one."""
    if len(prefixes) < 2:
        return list(prefixes)
    numbers = [[int(text) for text in _NUMBER.findall(prefix[:1000])] for prefix in prefixes]
    if len({_NUMBER.sub("0", prefix) for prefix in prefixes}) > 1:
        return None
    differing = [place for place in range(len(numbers[0])) if len({each[place] for each in numbers}) > 1]
    if len(differing) != 1 or len({each[differing[0]] for each in numbers}) < len(prefixes):
        return None
    return [prefix for _, prefix in sorted(zip([each[differing[0]] for each in numbers], prefixes, strict=True))]


def _notes(torch: Side, family: _Family) -> tuple[str, ...]:
    config = torch.config
    notes: list[str] = []
    if family.gates == 4 and family.is_flax:
        notes.append("carry: Flax has (c, h), torch (h, c)")
    if config.get("batch_first") is False and family.is_flax:
        notes.append("batch_first: torch has (time, batch, features) here, Flax's RNN only with time_major=True")
    if not family.is_flax:
        notes.append("sequences: Equinox has a cell; run it with jax.lax.scan, and vmap it over a batch")
    if (number(config, "dropout") or 0) > 0:
        notes.append(
            f"dropout: torch drops {config['dropout']} of what goes from layer to layer in training; do so yourself"
        )
    if config.get("nonlinearity") == "relu":
        notes.append("nonlinearity: give SimpleCell(activation_fn=jax.nn.relu)")
    return tuple(notes)


def _layout(family: _Family, name: str) -> Layout:
    def layout(torch: Side, other: Side) -> Sequence[Variant]:
        return _recurrent(torch, other, family)

    layout.__doc__ = f"`{name}`, and `{name}Cell`."
    return layout


flax_lstm: Final = _layout(_LSTM, "torch.nn.LSTM")
flax_gru: Final = _layout(_GRU, "torch.nn.GRU")
flax_rnn: Final = _layout(_SIMPLE, "torch.nn.RNN")
equinox_lstm: Final = _layout(_EQUINOX_LSTM, "torch.nn.LSTM")
equinox_gru: Final = _layout(_EQUINOX_GRU, "torch.nn.GRU")
