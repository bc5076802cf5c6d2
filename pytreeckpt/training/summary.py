"""The state of a training in a few lines, from its tree alone: what `capture` made, or a dict of state dicts as people
write them by hand. Arrays may be references to an open checkpoint; of them, only counts of steps are read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from pytreeckpt.training.layout import HEADER, RNG, header_of

_SHOWN: Final = 4
# What people call the count of what they have done, and a history of how it went.
_COUNTS: Final = ("step", "global_step", "iteration", "epoch")
# What comes of a file that has something else where this is looked for: it is only shown.
_ODD: Final = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
_LOWER_IS_BETTER: Final = ("loss", "error", "perplexity", "ppl", "mse", "mae", "rmse", "wer", "cer", "nll", "fid")
_HIGHER_IS_BETTER: Final = (
    "acc",
    "accuracy",
    "auc",
    "f1",
    "bleu",
    "rouge",
    "reward",
    "return",
    "score",
    "iou",
    "map",
    "precision",
    "recall",
    "psnr",
)
# Dicts of what was set, and not of what came of it.
_SETTINGS: Final = ("config", "cfg", "args", "hparams", "hyper_parameters", "hyperparameters", "settings", "options")


@dataclass(frozen=True, slots=True)
class Summary:
    """`framework` and its version, empty if the tree does not say; `facts`: name, role and description of each part."""

    framework: str
    facts: tuple[tuple[str, str, str], ...]


def summarize(tree: object) -> Summary | None:
    """What there is to say of a tree, or None for one that is no state of a training."""
    if not isinstance(tree, Mapping):
        return None
    header = header_of(tree)
    if header is not None:
        roles = {**header.roles, **({RNG: RNG} if RNG in tree else {})}
        framework = f"{header.framework} {header.version}"
    else:
        roles = {name: role for name, value in tree.items() if (role := _role_by_hand(name, value)) is not None}
        # Weights and a few numbers are no training yet.
        if "optimizer" not in roles.values():
            return None
        framework = ""
    facts = [
        (str(name), "" if name in roles else "value", text)
        for name, value in tree.items()
        if name not in roles and name != HEADER and (text := _value_text(name, value))
    ]
    for name, role in roles.items():
        facts += [(label, each, _text(each, state)) for label, each, state in _parts(str(name), role, tree.get(name))]
    return Summary(framework, tuple(facts))


def _parts(name: str, role: Any, state: Any) -> Iterator[tuple[str, str, Any]]:
    if isinstance(role, dict | list):
        for key, each in role.items() if isinstance(role, dict) else enumerate(role):
            try:
                # An array would be read for it.
                inner = state[key] if isinstance(state, Mapping | list | tuple) else None
            except (KeyError, IndexError, TypeError):
                inner = None
            yield f"{name}/{_key_text(key)}", each if isinstance(each, str) else "", inner
    else:
        yield name, role if isinstance(role, str) else "", state


def _key_text(key: object) -> str:
    try:
        return str(key)
    except ValueError:
        # A number of very many digits.
        return "…"


def _role_by_hand(name: object, value: Any) -> str | None:
    """The role of an item of a dict that nobody captured, by what is in it and by what it is called."""
    if not isinstance(name, str) or not isinstance(value, Mapping):
        return None
    if "param_groups" in value and "state" in value:
        return "optimizer"
    if "last_epoch" in value or "_last_lr" in value:
        return "scheduler"
    if "growth_factor" in value and "scale" in value:
        return "scaler"
    if "rng" in name.lower():
        return RNG
    return "module" if value and all(_is_array(each) for each in value.values()) else None


def _is_array(value: object) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _text(role: str, state: Any) -> str:
    describe = {
        "module": _module_text,
        "optimizer": _optimizer_text,
        "scheduler": _scheduler_text,
        "scaler": _scaler_text,
        "pytree": _leaves_text,
        "nnx": _leaves_text,
        RNG: _rng_text,
    }.get(role, _other_text)
    try:
        return describe(state)
    except _ODD:
        return "not as it is captured"


def _arrays(tree: Any) -> list[Any]:
    """All arrays of a tree, those that are shared once."""
    found: dict[object, Any] = {}
    stack = [tree]
    while stack:
        value = stack.pop()
        if _is_array(value):
            found.setdefault(getattr(value, "array", id(value)), value)
        elif isinstance(value, Mapping):
            stack.extend(reversed(list(value.values())))
        elif isinstance(value, list | tuple):
            stack.extend(reversed(value))
    return list(found.values())


def _size_text(arrays: Sequence[Any]) -> str:
    elements = sum(math.prod(array.shape) for array in arrays)
    by_dtype: dict[str, int] = {}
    for array in arrays:
        name = str(array.dtype).removeprefix("torch.")
        by_dtype[name] = by_dtype.get(name, 0) + math.prod(array.shape)
    dtypes = sorted(by_dtype, key=lambda name: -by_dtype[name])[:2]
    tensors = "1 array" if len(arrays) == 1 else f"{len(arrays):,} arrays"
    return f"{elements:,} elements in {tensors}" + (f", {', '.join(dtypes)}" if dtypes else "")


def _short(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError("a name is a text")
    return name.rpartition(".")[2]


def _module_text(state: Any) -> str:
    captured = state if "state" in state and "layers" in state else {"state": state}
    layers = captured.get("layers", {})
    parts = [_short(layers[""]["class"])] if "" in layers else []
    buffers = set(captured.get("buffers", ()))
    parameters = _arrays({name: value for name, value in captured["state"].items() if name not in buffers})
    parts.append(_size_text(parameters).replace("elements", "parameters" if "layers" in captured else "elements"))
    if frozen := captured.get("frozen"):
        parts.append(f"{len(frozen)} frozen")
    return ", ".join(parts)


def _optimizer_text(state: Any) -> str:
    groups = state["groups"] if "groups" in state else state["param_groups"]
    rates = [options["lr"] for group in groups if "lr" in (options := group.get("options", group))]
    parts = [_short(state["class"])] if "class" in state else []
    parts.append("1 group" if len(groups) == 1 else f"{len(groups)} groups")
    if rates:
        shown = dict.fromkeys(f"{_number(rate):.4g}" for rate in rates)
        parts.append(f"lr {', '.join([*shown][:_SHOWN])}")
    steps = sorted({int(_number(value)) for value in _steps(state["state"])})
    if steps:
        parts.append(f"step {steps[0]:,}" if len(steps) == 1 else f"steps {steps[0]:,} to {steps[-1]:,}")
    parts.append(_size_text(_arrays(state["state"])))
    return ", ".join(parts)


def _steps(state: Any) -> Iterator[Any]:
    stack = [state]
    while stack:
        value = stack.pop()
        if isinstance(value, Mapping):
            if "step" in value:
                yield value["step"]
            stack.extend(each for key, each in value.items() if key != "step")


def _number(value: Any) -> float:
    if not _is_array(value):
        return float(value)
    if math.prod(value.shape) != 1:
        # Not read: it may be large.
        raise ValueError("a number has one element")
    return float(np.asarray(value).reshape(()))


def _scheduler_text(state: Any) -> str:
    inner = state.get("state", state)
    parts = [_short(state["class"])] if "class" in state else []
    if nested := state.get("schedulers"):
        parts[-1] += f" of {', '.join(_short(each[0]) for each in nested)}"
    if "last_epoch" in inner:
        parts.append(f"last_epoch {int(_number(inner['last_epoch']))}")
    return ", ".join(parts)


def _scaler_text(state: Any) -> str:
    inner = state.get("state", state)
    return f"scale {_number(inner['scale']):g}" if inner else "disabled"


def _leaves_text(state: Any) -> str:
    leaves = state["leaves"]
    parts = [_short(state["class"])]
    if parameters := _parameters(leaves, state.get("kinds")):
        parts.append(f"{sum(math.prod(each.shape) for each in parameters):,} parameters")
    parts.append(_size_text(_arrays(leaves)))
    if isinstance(leaves, Mapping) and "step" in leaves:
        parts.append(f"step {int(_number(leaves['step'])):,}")
    return ", ".join(parts)


def _parameters(leaves: Any, kinds: Any) -> list[Any]:
    """What of a train state is called its parameters, or what of an object of nnx is one."""
    if kinds is None:
        return _arrays(leaves.get("params")) if isinstance(leaves, Mapping) else []
    found: list[Any] = []
    stack = [(leaves, kinds)]
    while stack:
        value, kind = stack.pop()
        if isinstance(value, Mapping) and isinstance(kind, Mapping):
            stack.extend((each, kind.get(key)) for key, each in value.items())
        elif kind == "Param" and _is_array(value):
            found.append(value)
    return found


def _rng_text(state: Any) -> str:
    if "ranks" not in state:
        return ", ".join(name for name in state if isinstance(name, str)) if isinstance(state, Mapping) else ""
    ranks = state["ranks"]
    states = next(iter(ranks.values()))
    names = [f"{len(value)} CUDA devices" if name == "cuda" else str(name) for name, value in states.items()]
    return f"{', '.join(names)}; {len(ranks)} of {int(_number(state['world_size']))} processes"


def _other_text(state: Any) -> str:
    return _short(state["class"]) if isinstance(state, Mapping) and "class" in state else ""


def _value_text(name: object, value: Any) -> str:
    """A count, a number that the name calls best, or how a history went; nothing for other values."""
    if not isinstance(name, str):
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        counts = name in _COUNTS
        return _formatted(value, "," if counts else ".6g") if counts or "best" in name.lower() else ""
    if isinstance(value, list):
        text = _history_text(str(name), value)
        return f"{len(value):,} values, the last {text}" if text else ""
    if not isinstance(value, Mapping) or name.lower() in _SETTINGS or not all(isinstance(key, str) for key in value):
        return ""
    texts = [f"{key} {text}" for key, each in value.items() if (text := _history_text(key, each))]
    return "; ".join(texts[:_SHOWN])


def _formatted(value: float, spec: str) -> str:
    try:
        return format(value, spec)
    except _ODD:
        # An integer beyond all floats.
        return "…"


def _history_text(name: str, value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    is_history = isinstance(value, list) and bool(value) and all(type(each) in {int, float} for each in value)
    if not is_history or not any(type(each) is float for each in value):
        return ""
    last = _formatted(value[-1], ".6g")
    numbers = [each for each in value if type(each) is int or not math.isnan(each)]
    if not numbers:
        return ""
    words = re.split(r"[^a-z0-9]+", name.lower())
    # One loss, or several.
    singular = {form for word in words for form in (word, word.removesuffix("s"), word.removesuffix("es"))}
    for names, best_of in ((_LOWER_IS_BETTER, min), (_HIGHER_IS_BETTER, max)):
        if singular.intersection(names):
            best = best_of(numbers)
            return f"{last} (best {_formatted(best, '.6g')} at [{value.index(best)}])"
    return f"{last} (first {_formatted(value[0], '.6g')})"
