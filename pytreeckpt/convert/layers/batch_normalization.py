"""Batch normalisation: as the other normalisations, with running statistics.

What is normalised by in evaluation is the same. In further training it is not quite: torch's running variance is an
average of unbiased ones, JAX's of biased ones. torch's momentum is 1 minus that of Flax and Equinox.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pytreeckpt.convert.layers.normalization import (
    EQUINOX_NAMES,
    FLAX_NAMES,
    affine_fills,
    affine_moves,
    epsilon_notes,
)
from pytreeckpt.convert.layers.sides import Option, advice, check_kind, filled, flax_name, moved, number, same_setting
from pytreeckpt.convert.layers.variants import Move, Side, Variant

_UNBIASED: Final = (
    "running variance: torch adds unbiased ones, with n / (n − 1), and JAX biased ones, in further training"
)
_COUNT: Final = {"num_batches_tracked": "torch's count of batches has no counterpart"}
# So often that momentum**count is 0 for any momentum in use, and Equinox takes the averages as they are.
_MANY_BATCHES: Final = float(2**30)


def flax_batch_norm(torch: Side, other: Side) -> Sequence[Variant]:
    """`torch.nn.BatchNorm1d`, `BatchNorm2d`, `BatchNorm3d`, `SyncBatchNorm`: the statistics are `mean` and `var`, which
    linen has in the collection `batch_stats`.
    """
    check_kind(torch, other, "BatchNorm")
    layer = flax_name(other, "BatchNorm")
    moves = (
        *affine_moves(torch, other, FLAX_NAMES),
        *moved(torch, "running_mean", "mean"),
        *moved(torch, "running_var", "var"),
    )
    fills = {
        **affine_fills(torch, other, FLAX_NAMES),
        **filled(torch, other, {"running_mean": ("mean", 0.0), "running_var": ("var", 1.0)}),
    }
    notes = (
        *epsilon_notes(torch, other, layer, "epsilon", 1e-5),
        *_momentum(torch, other, layer),
        *_training_notes(torch, "give use_running_average=False in evaluation too"),
        *_across_devices(torch, other, layer),
    )
    return _batch_norm(torch, "mean and var", moves, fills, notes)


def _batch_norm(
    torch: Side,
    name: str,
    moves: tuple[Move, ...],
    fills: dict[str, float],
    notes: tuple[str, ...],
    *,
    count: str = "",
) -> Sequence[Variant]:
    if not moves and not fills:
        return ()
    drops = {leaf: reason for leaf, reason in _COUNT.items() if leaf in torch.shapes}
    return (Variant(name, moves, drops, fills, notes, frozenset([count]) & fills.keys()),)


def _momentum(torch: Side, other: Side, layer: str) -> tuple[str, ...]:
    if "momentum" in torch.config and torch.config["momentum"] is None:
        return ("momentum: torch averages over all batches (momentum=None), which no constant momentum does",)
    momentum = number(torch.config, "momentum")
    if momentum is None:
        return ()
    # Without what a difference of binary fractions leaves: 1 - 0.1 is 0.9.
    return advice(other, layer, Option("momentum", round(1 - momentum, 12), 0.99))


def _training_notes(torch: Side, no_statistics: str) -> tuple[str, ...]:
    if "running_mean" in torch.shapes:
        return (_UNBIASED,)
    return (f"track_running_stats: torch keeps no statistics, and uses those of the batch; {no_statistics}",)


def _across_devices(torch: Side, other: Side, layer: str) -> tuple[str, ...]:
    if torch.kind != "torch.nn.SyncBatchNorm" or other.config.get("axis_name"):
        return ()
    return (f"SyncBatchNorm: under pmap or shard_map, give {layer}(axis_name=…) for statistics of all devices",)


def equinox_batch_norm(torch: Side, other: Side) -> Sequence[Variant]:
    """The same to Equinox, whose statistics are in the layer as it is made (`batch_state_index/init/0` and `1`), before
    `equinox.nn.make_with_state` or `equinox.nn.State` takes them out. Two modes: "batch" normalises in training by
    the batch, as torch does, and "ema" by the running averages.
    """
    check_kind(torch, other, "BatchNorm")
    layer = "equinox.nn.BatchNorm"
    tracked = "running_mean" in torch.shapes
    known = other.config.get("mode")
    variants: list[Variant] = []
    for mode, state, count in _EQUINOX_MODES:
        mean, var = f"{state}/init/0", f"{state}/init/1"
        if (known is not None and known != mode) or (other.shapes and mean not in other.shapes):
            continue
        moves = (
            *affine_moves(torch, other, EQUINOX_NAMES),
            *moved(torch, "running_mean", mean),
            *moved(torch, "running_var", var),
        )
        fills = {
            **affine_fills(torch, other, EQUINOX_NAMES),
            **filled(torch, other, {"running_mean": (mean, 0.0), "running_var": (var, 1.0)}),
        }
        if count in other.shapes:
            fills[count] = _MANY_BATCHES if mode == "batch" and tracked else 0.0
        notes = (
            *epsilon_notes(torch, other, layer, "eps", 1e-5),
            *_momentum(torch, other, layer),
            *(() if same_setting(known, mode) else (f"mode: give {layer}(mode={mode!r})",)),
            *_training_notes(torch, "give inference=False in evaluation too"),
            *_equinox_mode_notes(mode, is_filled=count in fills),
        )
        variants += _batch_norm(torch, f"mode {mode!r}", moves, fills, notes, count=count)
    if tracked and not variants:
        raise ValueError(
            "its running statistics are in an equinox.nn.State: give the model as it is made, without "
            "equinox.nn.make_with_state; equinox.nn.State(model) and delete_init_state(model) part them later"
        )
    return variants


_EQUINOX_MODES: Final = (
    ("batch", "batch_state_index", "batch_counter/init"),
    ("ema", "ema_state_index", "ema_first_time_index/init"),
)


def _equinox_mode_notes(mode: str, *, is_filled: bool) -> tuple[str, ...]:
    if mode == "ema":
        return ("mode 'ema': in training, Equinox normalises by the running averages, and torch by the batch",)
    what = "set to 2**30" if is_filled else "set it to 2**30"
    return (f"batch_counter: {what}, because Equinox divides the running averages by 1 − momentum**batch_counter",)
