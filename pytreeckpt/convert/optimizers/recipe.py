"""What a training has to write in optax for its updates to be those of an optimizer of torch, and the way back.

Sources: the update rules in torch/optim/*.py (`_single_tensor_…`) and in optax/_src/transform.py, as of torch 2.13 and
optax 0.2.8. A recipe is plain data; `pytreeckpt_jax.transformation` makes the transformation that it writes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

Options = Mapping[str, Any]
"""The options of a group of parameters of a torch optimizer, as plain values: `lr`, `betas`, …"""


@dataclass(frozen=True, slots=True)
class InverseTime:
    """The schedule initial / (1 + rate · count): what torch's Adagrad makes of `lr` and `lr_decay`."""

    initial: float
    rate: float

    def __call__(self, count: Any) -> Any:
        """The learning rate of the update after `count` others; an array for an array."""
        return self.initial / (1 + self.rate * count)

    def __str__(self) -> str:
        return f"lambda count: {self.initial!r} / (1 + {self.rate!r} * count)"


Setting = float | bool | InverseTime
Step = tuple[str, Mapping[str, Setting]]
"""A function of optax and its keyword arguments."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A chain of transformations of optax; its text is the Python expression that makes it.

    `of`: which parameters it is for, in words, where a plan has it.
    """

    steps: tuple[Step, ...]
    of: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"optax.chain({', '.join(f'optax.{name}({_arguments(settings)})' for name, settings in self.steps)})"


def _arguments(settings: Mapping[str, Setting]) -> str:
    return ", ".join(
        f"{key}={value if isinstance(value, InverseTime) else repr(value)}" for key, value in settings.items()
    )


def recipe_document(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain data, the same in JSON."""
    steps = [[name, {key: _plain(value) for key, value in settings.items()}] for name, settings in recipe.steps]
    return {"of": recipe.of, "steps": steps}


def _plain(setting: Setting) -> float | bool | list[float]:
    return [setting.initial, setting.rate] if isinstance(setting, InverseTime) else setting


def recipe_from_document(document: Any) -> Recipe:
    """The recipe that a document holds. Raises `ValueError` for one that holds none."""
    match document:
        case {"of": str(of), "steps": [*steps], **others} if not others:
            return Recipe(tuple(map(_step_of, steps)), of)
    raise ValueError(f"this is no recipe: {str(document)[:100]}")


def _step_of(document: Any) -> Step:
    match document:
        case [str(name), dict(settings)]:
            return _identifier(name), {_identifier(key): _setting_of(value) for key, value in settings.items()}
    raise ValueError(f"this is no step of a recipe: {str(document)[:100]}")


def _identifier(name: Any) -> str:
    # It is written into an expression.
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"this is no name of a function or argument: {str(name)[:100]}")
    return name


def _setting_of(document: Any) -> Setting:
    match document:
        case bool():
            return document
        case int() | float():
            return float(document)
        case [int() | float() as initial, int() | float() as rate]:
            return InverseTime(float(initial), float(rate))
    raise ValueError(f"this is no setting of a recipe: {str(document)[:100]}")


def recipe_of(kind: str, options: Options) -> Recipe:
    """The recipe for a group of parameters of `torch.optim.Adam`, `torch.optim.SGD`, …, with its options.

    Options that are not given have torch's defaults. Raises `ValueError` for an optimizer that has no counterpart.
    """
    if kind not in RECIPES:
        raise ValueError(f"there is no recipe for {kind}; there is one for {', '.join(RECIPES)}")
    return RECIPES[kind]({**DEFAULTS[kind], **options})


def _chain(options: Options, core: tuple[Step, ...], *, scale: float = 1.0, decoupled: bool = False) -> Recipe:
    """`core` with what torch's optimizers have in common: the sign, weight decay before or after, the learning rate."""
    decay: list[Step] = []
    if options["weight_decay"]:
        decay.append(("add_decayed_weights", {"weight_decay": float(options["weight_decay"])}))
    sign: list[Step] = [("scale", {"step_size": -1.0})] if options.get("maximize") else []
    rate: Setting = float(options["lr"]) * scale
    if options.get("lr_decay"):
        rate = InverseTime(float(options["lr"]), float(options["lr_decay"]))
    last: Step = ("scale_by_learning_rate", {"learning_rate": rate})
    return Recipe((*sign, *core, *decay, last) if decoupled else (*sign, *decay, *core, last))


def _betas(options: Options) -> dict[str, Setting]:
    b1, b2 = options["betas"]
    return {"b1": float(b1), "b2": float(b2), "eps": float(options["eps"])}


def _sgd(options: Options) -> Recipe:
    if not options["momentum"]:
        return _chain(options, ())
    trace: Step = ("trace", {"decay": float(options["momentum"]), "nesterov": bool(options["nesterov"])})
    return _chain(options, (trace,), scale=1 - options["dampening"])


def _adam(options: Options) -> Recipe:
    if options["amsgrad"]:
        raise ValueError("optax has no counterpart of torch's AMSGrad")
    core: Step = ("scale_by_adam", _betas(options))
    return _chain(options, (core,), decoupled=bool(options["decoupled_weight_decay"]))


def _adamw(options: Options) -> Recipe:
    return _adam({**options, "decoupled_weight_decay": True})


def adagrad_eps(options: Options) -> float:
    """The `eps` within the root that comes nearest to torch's, which is outside: √sum + eps ≈ √(sum + eps²)."""
    return float(options["eps"]) ** 2


def _adagrad(options: Options) -> Recipe:
    settings: dict[str, Setting] = {
        "initial_accumulator_value": float(options["initial_accumulator_value"]),
        "eps": adagrad_eps(options),
    }
    return _chain(options, (("scale_by_rss", settings),))


def _rmsprop(options: Options) -> Recipe:
    name = "scale_by_stddev" if options["centered"] else "scale_by_rms"
    core: list[Step] = [
        (name, {"decay": float(options["alpha"]), "eps": float(options["eps"]), "eps_in_sqrt": False}),
    ]
    if options["momentum"]:
        # Before the learning rate, as in torch, so that a changing one does not reach what was accumulated.
        core.append(("trace", {"decay": float(options["momentum"])}))
    return _chain(options, tuple(core))


def _adadelta(options: Options) -> Recipe:
    return _chain(options, (("scale_by_adadelta", {"rho": float(options["rho"]), "eps": float(options["eps"])}),))


def _adamax(options: Options) -> Recipe:
    return _chain(options, (("scale_by_adamax", _betas(options)),))


def _radam(options: Options) -> Recipe:
    core: Step = ("scale_by_radam", {**_betas(options), "threshold": 5.0})
    return _chain(options, (core,), decoupled=bool(options["decoupled_weight_decay"]))


RECIPES: Final[Mapping[str, Callable[[Options], Recipe]]] = {
    "torch.optim.SGD": _sgd,
    "torch.optim.Adam": _adam,
    "torch.optim.AdamW": _adamw,
    "torch.optim.Adagrad": _adagrad,
    "torch.optim.RMSprop": _rmsprop,
    "torch.optim.Adadelta": _adadelta,
    "torch.optim.Adamax": _adamax,
    "torch.optim.RAdam": _radam,
}

_ADAM: Final = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "maximize": False}
DEFAULTS: Final[Mapping[str, Options]] = {
    "torch.optim.SGD": {
        "lr": 1e-3,
        "momentum": 0.0,
        "dampening": 0.0,
        "weight_decay": 0.0,
        "nesterov": False,
        "maximize": False,
    },
    "torch.optim.Adam": {**_ADAM, "amsgrad": False, "decoupled_weight_decay": False},
    "torch.optim.AdamW": {**_ADAM, "weight_decay": 1e-2, "amsgrad": False, "decoupled_weight_decay": True},
    "torch.optim.Adagrad": {
        "lr": 1e-2,
        "lr_decay": 0.0,
        "eps": 1e-10,
        "weight_decay": 0.0,
        "initial_accumulator_value": 0.0,
        "maximize": False,
    },
    "torch.optim.RMSprop": {
        "lr": 1e-2,
        "momentum": 0.0,
        "alpha": 0.99,
        "eps": 1e-8,
        "centered": False,
        "weight_decay": 0.0,
        "maximize": False,
    },
    "torch.optim.Adadelta": {"lr": 1.0, "rho": 0.9, "eps": 1e-6, "weight_decay": 0.0, "maximize": False},
    "torch.optim.Adamax": {**_ADAM, "lr": 2e-3},
    "torch.optim.RAdam": {**_ADAM, "decoupled_weight_decay": False},
}
"""torch's defaults, for options that an older torch did not store yet."""


_KINDS: Final = {
    "scale_by_adam": ("torch.optim.Adam", "torch.optim.AdamW"),
    "scale_by_rss": ("torch.optim.Adagrad",),
    "scale_by_rms": ("torch.optim.RMSprop",),
    "scale_by_stddev": ("torch.optim.RMSprop",),
    "scale_by_adadelta": ("torch.optim.Adadelta",),
    "scale_by_adamax": ("torch.optim.Adamax",),
    "scale_by_radam": ("torch.optim.RAdam",),
}
"""The optimizers of torch by the step that is theirs; that without one is SGD."""


def torch_options(recipe: Recipe) -> tuple[str, dict[str, Any]]:
    """The optimizer of torch, by name, and all its options that have the updates of a recipe: the inverse of
    `recipe_of`, but for a dampening, which a recipe has in its learning rate.

    A checkpoint of optax does not hold its hyperparameters, which are in the program's closures: they are not in what
    is converted to torch, and the optimizer there keeps the options that it was made with. This is how to make it.
    Raises `ValueError` for steps that no optimizer of torch takes.
    """
    steps = dict(recipe.steps)
    names = list(steps)
    core = next((name for name in names if name in _KINDS), None)
    kinds = ("torch.optim.SGD",) if core is None else _KINDS[core]
    decay = names.index("add_decayed_weights") if "add_decayed_weights" in names else -1
    decoupled = core is not None and decay > names.index(core)
    kind = kinds[-1] if decoupled else kinds[0]
    try:
        found = {} if _has_other_schedules(recipe) else _options_of(steps, core)
    except KeyError:
        found = {}
    options = {**DEFAULTS[kind], **found}
    if "decoupled_weight_decay" in options:
        options["decoupled_weight_decay"] = decoupled
    if found and options.keys() == DEFAULTS[kind].keys() and recipe_of(kind, options) == recipe:
        return kind, options
    raise ValueError(f"no optimizer of torch has the updates of {recipe}")


def _has_other_schedules(recipe: Recipe) -> bool:
    """Whether a recipe has a schedule of anything but the learning rate, as torch has none."""
    settings = [item for _, each in recipe.steps for item in each.items()]
    return any(isinstance(value, InverseTime) and key != "learning_rate" for key, value in settings)


def _options_of(steps: Mapping[str, Mapping[str, Setting]], core: str | None) -> dict[str, Any]:
    """The options that steps are made of. Raises `KeyError` for a setting that is not there."""
    settings = {} if core is None else steps[core]
    rate = steps["scale_by_learning_rate"]["learning_rate"]
    options: dict[str, Any] = {"lr": rate, "maximize": "scale" in steps}
    if isinstance(rate, InverseTime):
        options |= {"lr": rate.initial, "lr_decay": rate.rate}
    options["weight_decay"] = steps["add_decayed_weights"]["weight_decay"] if "add_decayed_weights" in steps else 0.0
    if "trace" in steps:
        options["momentum"] = steps["trace"]["decay"]
        options |= {"nesterov": steps["trace"]["nesterov"]} if core is None else {}
    match core:
        case "scale_by_adam" | "scale_by_adamax" | "scale_by_radam":
            options |= {"betas": (settings["b1"], settings["b2"]), "eps": settings["eps"]}
        case "scale_by_rss":
            options["initial_accumulator_value"] = settings["initial_accumulator_value"]
            options["eps"] = math.sqrt(float(cast("float", settings["eps"])))
        case "scale_by_rms" | "scale_by_stddev":
            centered = core == "scale_by_stddev"
            options |= {"alpha": settings["decay"], "eps": settings["eps"], "centered": centered}
        case "scale_by_adadelta":
            options |= {"rho": settings["rho"], "eps": settings["eps"]}
        case _:
            pass
    return options
