"""Which state of torch's optimizers goes where in optax, and what has no place there.

States are known by the names of their fields: what was captured has no classes. The columns are those of torch's
`Optimizer.state` (torch/optim/*.py) and of the state classes in optax/_src/transform.py and optax/transforms, as of
torch 2.13 and optax 0.2.8. Whoever has an optimizer of their own adds a `Row`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from pytreeckpt.convert.optimizers.recipe import DEFAULTS, Options, Recipe, adagrad_eps, recipe_of


@dataclass(frozen=True, slots=True)
class Slot:
    """What torch keeps of each parameter as `torch`, and the field `optax` that has it.

    `order`: how it scales with gradients: for parameters a·x instead of x, gradients are divided by a, and this by
    a^order. `absolute`: it has no sign. `scale`: what values are multiplied by on the way to optax; `late_scale`: the
    same if the state comes after the learning rate in the chain, None where that is no matter. `initial`: its values
    before the first step.
    """

    torch: str
    optax: str
    order: int = 1
    absolute: bool = False
    scale: float = 1.0
    late_scale: float | None = None
    initial: float = 0.0


@dataclass(frozen=True, slots=True)
class State:
    """A state of optax: its class, for people; what it has of each parameter; whether it has a `count` of steps."""

    cls: str
    slots: tuple[Slot, ...]
    counted: bool = False


@dataclass(frozen=True, slots=True)
class Setting:
    """Where the value of a hyperparameter comes from: the option, or the item of one, times `scale`; None: `value`."""

    option: tuple[str | int, ...] | None
    scale: float = 1.0
    value: float = 0.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an optimizer with these options is not converted; `name` waives it, if there is one."""

    reason: str
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """An optimizer of torch, by the name of its class, and what becomes of it in optax, by its options.

    `states`: the states there; `settings`: where the hyperparameters of `optax.inject_hyperparams` come from;
    `recipe`: the chain that has these states and torch's updates; `caveats`: what is not exact; `refusals`: options
    that have no counterpart. `step`: where torch counts the steps of a parameter, None if it does not.
    """

    kind: str
    states: Callable[[Options], tuple[State, ...]]
    recipe: Callable[[Options], Recipe]
    settings: Callable[[Options], Mapping[str, Setting]] = lambda _options: {}
    caveats: Callable[[Options], tuple[str, ...]] = lambda _options: ()
    refusals: Callable[[Options], tuple[Refusal, ...]] = lambda _options: ()
    step: str | None = "step"


_COMMON: Final = {
    "learning_rate": Setting(("lr",)),
    "eps": Setting(("eps",)),
    "weight_decay": Setting(("weight_decay",)),
    "eps_root": Setting(None),
}
_BETAS: Final = {**_COMMON, "b1": Setting(("betas", 0)), "b2": Setting(("betas", 1))}


def _row(
    kind: str,
    states: Callable[[Options], tuple[State, ...]],
    settings: Callable[[Options], Mapping[str, Setting]],
    *,
    caveats: Callable[[Options], tuple[str, ...]] = lambda _options: (),
    refusals: Callable[[Options], tuple[Refusal, ...]] = lambda _options: (),
    step: str | None = "step",
) -> Row:
    return Row(kind, states, lambda options: recipe_of(kind, options), settings, caveats, refusals, step)


def fields_of(state: State) -> frozenset[str]:
    """The names of all fields of a state."""
    return frozenset([*(slot.optax for slot in state.slots), *(["count"] if state.counted else [])])


def _sgd_states(options: Options) -> tuple[State, ...]:
    if not options["momentum"]:
        return ()
    undamped = 1 - options["dampening"]
    # optax adds the gradient whole, and torch 1 − dampening of it; the learning rate of the recipe makes up for that.
    return (State("optax.TraceState", (Slot("momentum_buffer", "trace", scale=1 / undamped if undamped else 1.0),)),)


def _sgd_settings(options: Options) -> Mapping[str, Setting]:
    undamped = 1 - options["dampening"] if options["momentum"] else 1.0
    momentum = Setting(("momentum",))
    return {**_COMMON, "learning_rate": Setting(("lr",), undamped), "momentum": momentum, "decay": momentum}


def _sgd_caveats(options: Options) -> tuple[str, ...]:
    if options["momentum"] and options["dampening"]:
        share = f"{1 - options['dampening']:g}"
        return (
            f"torch does not damp the first gradient of a momentum: one that begins later has {share} of it in optax",
        )
    return ()


def _sgd_refusals(options: Options) -> tuple[Refusal, ...]:
    if options["momentum"] and options["dampening"] == 1:
        return (Refusal("a dampening of 1 keeps the first gradient for ever, and optax has no such thing"),)
    return ()


_ADAM_SLOTS: Final = (Slot("exp_avg", "mu"), Slot("exp_avg_sq", "nu", order=2))


def _adam_states(options: Options) -> tuple[State, ...]:
    if options["amsgrad"]:
        return (
            State("optax.ScaleByAmsgradState", (*_ADAM_SLOTS, Slot("max_exp_avg_sq", "nu_max", order=2)), counted=True),
        )
    return (State("optax.ScaleByAdamState", _ADAM_SLOTS, counted=True),)


def _adam_refusals(options: Options) -> tuple[Refusal, ...]:
    if options["amsgrad"]:
        reason = (
            "AMSGrad: torch keeps the largest second moment before the correction of its bias, and optax after it: the "
            "parameters would part by some 1e-2 within a few steps"
        )
        return (Refusal(reason, "amsgrad"),)
    return ()


def _adagrad_states(options: Options) -> tuple[State, ...]:
    first = float(options["initial_accumulator_value"])
    return (State("optax.ScaleByRssState", (Slot("sum", "sum_of_squares", order=2, initial=first),)),)


def _adagrad_settings(options: Options) -> Mapping[str, Setting]:
    first = Setting(("initial_accumulator_value",))
    return {**_COMMON, "eps": Setting(None, value=adagrad_eps(options)), "initial_accumulator_value": first}


def _adagrad_caveats(options: Options) -> tuple[str, ...]:
    eps = f"{options['eps']:g}"
    return (f"torch adds its eps of {eps} to √sum, optax within the root: each update differs by eps / √sum of itself",)


def _rmsprop_states(options: Options) -> tuple[State, ...]:
    mean = (Slot("grad_avg", "mu"),) if options["centered"] else ()
    cls = "optax.ScaleByRStdDevState" if options["centered"] else "optax.ScaleByRmsState"
    states = [State(cls, (*mean, Slot("square_avg", "nu", order=2)))]
    if options["momentum"]:
        buffer = Slot("momentum_buffer", "trace", order=0, late_scale=-float(options["lr"]))
        states.append(State("optax.TraceState", (buffer,)))
    return tuple(states)


def _rmsprop_settings(_options: Options) -> Mapping[str, Setting]:
    return {
        **_COMMON,
        "decay": Setting(("alpha",)),
        "momentum": Setting(("momentum",)),
        "initial_scale": Setting(None),
    }


def _rmsprop_caveats(_options: Options) -> tuple[str, ...]:
    return ("optax.rmsprop has eps within the root by default: give eps_in_sqrt=False",)


def _adadelta_states(_options: Options) -> tuple[State, ...]:
    # Squares of gradients, and squares of steps, which are as large as parameters.
    slots = (Slot("square_avg", "e_g", order=2), Slot("acc_delta", "e_x", order=-2))
    return (State("optax.ScaleByAdaDeltaState", slots),)


def _adamax_states(_options: Options) -> tuple[State, ...]:
    return (
        State("optax.ScaleByAdamState", (Slot("exp_avg", "mu"), Slot("exp_inf", "nu", absolute=True)), counted=True),
    )


def _radam_states(_options: Options) -> tuple[State, ...]:
    return (State("optax.ScaleByAdamState", _ADAM_SLOTS, counted=True),)


def _radam_caveats(options: Options) -> tuple[str, ...]:
    eps = f"{options['eps']:g}"
    return (f"torch adds its eps of {eps} before it corrects the bias, optax after: updates differ by up to eps / √nu",)


ROWS: Final = (
    _row("torch.optim.SGD", _sgd_states, _sgd_settings, caveats=_sgd_caveats, refusals=_sgd_refusals, step=None),
    _row("torch.optim.Adam", _adam_states, lambda _options: _BETAS, refusals=_adam_refusals),
    _row("torch.optim.AdamW", _adam_states, lambda _options: _BETAS, refusals=_adam_refusals),
    _row("torch.optim.Adagrad", _adagrad_states, _adagrad_settings, caveats=_adagrad_caveats),
    _row("torch.optim.RMSprop", _rmsprop_states, _rmsprop_settings, caveats=_rmsprop_caveats),
    _row("torch.optim.Adadelta", _adadelta_states, lambda _options: {**_COMMON, "rho": Setting(("rho",))}),
    _row("torch.optim.Adamax", _adamax_states, lambda _options: _BETAS),
    _row(
        "torch.optim.RAdam",
        _radam_states,
        lambda _options: {**_BETAS, "threshold": Setting(None, value=5.0)},
        caveats=_radam_caveats,
    ),
)
"""The optimizers that are converted."""

REFUSED: Final[Mapping[str, str]] = {
    "torch.optim.NAdam": (
        "torch's momentum follows a schedule of its own (momentum_decay), whose product it keeps, and that of optax is "
        "constant: the parameters part at once"
    ),
    "torch.optim.Rprop": "optax steps by the gradient before the present one, torch by the present one",
    "torch.optim.Muon": "torch and optax orthogonalise and scale otherwise",
    "torch.optim.Adafactor": "torch and optax factor, clip and scale otherwise",
    "torch.optim.LBFGS": "torch keeps the history as flat vectors of all parameters, optax per parameter and otherwise",
    "torch.optim.ASGD": "optax has no averaged SGD",
    "torch.optim.SparseAdam": "its moments change only where gradients are, and optax has no sparse gradients",
}
"""The optimizers of torch that are not, and why."""


def with_defaults(kind: str, options: Options) -> Options:
    """The options with torch's defaults for those that an older torch did not store."""
    return {**DEFAULTS.get(kind, {}), **options}


def option_problems(kind: str, options: Options) -> tuple[str, ...]:
    """What is wrong with the values of options that decide how an optimizer is converted."""
    return tuple(
        f"its option {name} is {options[name]!r}"
        for name, default in DEFAULTS.get(kind, {}).items()
        if not _is_like(options[name], default)
    )


def _is_like(value: object, default: object) -> bool:
    if isinstance(default, tuple):
        return isinstance(value, tuple) and len(value) == len(default) and all(map(_is_number, value))
    return _is_number(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
