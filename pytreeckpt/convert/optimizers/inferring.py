"""Which optimizer of torch it is, by its options and states, where nothing names its class: in torch's own state dicts.

What has an option that torch's class has not is another's optimizer, with other updates, and is not taken for torch's.
The options are those of the `defaults` in torch/optim/*.py, as of torch 2.13.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pytreeckpt.convert.optimizers.recipe import DEFAULTS, Options

_SIGNATURES: Final = (
    ("torch.optim.Adamax", ("betas", "eps"), ("step", "exp_avg", "exp_inf")),
    ("torch.optim.NAdam", ("betas", "momentum_decay"), ("step", "mu_product", "exp_avg", "exp_avg_sq")),
    ("torch.optim.LBFGS", ("history_size", "tolerance_change"), None),
    ("torch.optim.Adafactor", ("beta2_decay",), None),
    ("torch.optim.Muon", ("ns_steps",), ("momentum_buffer",)),
    ("torch.optim.Rprop", ("etas", "step_sizes"), ("step", "prev", "step_size")),
    ("torch.optim.ASGD", ("lambd", "t0"), ("step", "eta", "mu", "ax")),
    ("torch.optim.SGD", ("momentum", "dampening", "nesterov", "weight_decay"), ("momentum_buffer",)),
    ("torch.optim.Adagrad", ("lr_decay", "initial_accumulator_value", "eps"), ("step", "sum")),
    ("torch.optim.RMSprop", ("alpha", "centered", "momentum"), ("step", "square_avg", "grad_avg", "momentum_buffer")),
    ("torch.optim.Adadelta", ("rho", "eps"), ("step", "square_avg", "acc_delta")),
    ("torch.optim.Adam", ("betas", "eps", "amsgrad"), ("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")),
    ("torch.optim.RAdam", ("betas", "eps", "decoupled_weight_decay"), ("step", "exp_avg", "exp_avg_sq")),
)
"""Options that an optimizer has, and all that it keeps of a parameter (None: whatever it is)."""

_REFUSED_OPTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "torch.optim.NAdam": ("eps", "decoupled_weight_decay"),
    "torch.optim.LBFGS": ("max_iter", "max_eval", "tolerance_grad", "line_search_fn"),
    "torch.optim.Adafactor": ("d", "eps"),
    "torch.optim.Muon": ("momentum", "nesterov", "ns_coefficients", "eps", "adjust_lr_fn"),
    "torch.optim.ASGD": ("alpha",),
}
"""The other options of those that are not converted."""

IDLE_OPTIONS: Final = frozenset(
    [
        *("foreach", "fused", "capturable", "differentiable"),
        # Those of schedulers (torch/optim/lr_scheduler.py, swa_utils.py), and the name that people give a group.
        *("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr", "name"),
    ]
)
"""Options that any optimizer may have, and that change no value, or that only a scheduler reads."""

_EVERYWHERE: Final = IDLE_OPTIONS | {"lr", "weight_decay", "maximize"}


def kind_of(options: Options, keys: frozenset[str]) -> str | None:
    """The optimizer that has these options and keeps these states, where nothing names its class; None if that is not
    plain: SparseAdam, Adamax and others share their options, and an option that torch's class has not is that of
    another class with other updates.

    torch's own state dicts do not say it. Adam and AdamW differ in `decoupled_weight_decay` alone.
    """
    kind = _likely(options, keys)
    if kind is None or _foreign(kind, options):
        return None
    is_adamw = kind == "torch.optim.Adam" and options.get("decoupled_weight_decay")
    return "torch.optim.AdamW" if is_adamw else kind


def foreign_options(options: Options, keys: frozenset[str]) -> tuple[str, ...]:
    """The options that keep these from being those of the optimizer of torch that has the others."""
    kind = _likely(options, keys)
    return () if kind is None else _foreign(kind, options)


def _likely(options: Options, keys: frozenset[str]) -> str | None:
    if keys == frozenset(["step", "exp_avg", "exp_inf"]):
        return "torch.optim.Adamax"
    for kind, wanted, kept in _SIGNATURES:
        # The options of Adamax are those of others too: its states alone tell it.
        if kind != "torch.optim.Adamax" and options.keys() >= set(wanted) and (kept is None or keys <= set(kept)):
            return kind
    return None


def _foreign(kind: str, options: Options) -> tuple[str, ...]:
    wanted = next(wanted for each, wanted, _ in _SIGNATURES if each == kind)
    known = {*_EVERYWHERE, *wanted, *DEFAULTS.get(kind, {}), *_REFUSED_OPTIONS.get(kind, ())}
    return tuple(name for name in options if name not in known)
