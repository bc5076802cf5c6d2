"""What kinds of layers a model has, by the names of their leaves: of objects of nnx, modules of Equinox, and modules of
linen. The form is that of `layers` in what `pytreeckpt_torch.capture` makes of a module.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import jax
import numpy as np

from pytreeckpt_jax.names import Name, is_nnx

Layers = dict[str, dict[str, Any]]
"""By name, with `/` between steps: `class`, `kind` and `config` of a layer."""

_PACKAGES: Final = ("flax.nnx", "flax.linen", "equinox.nn", "equinox")
_MAX_CONFIG_ITEMS: Final = 16


def layers_of(value: object) -> Layers:
    """For each module in an object of nnx, or module of Equinox in a pytree: its class, the class of its framework that
    it is a kind of, and its configuration: those public attributes that are plain values, such as `in_features`,
    `kernel_size` or `epsilon`. Of anything else, none.
    """
    return {_text(name): _layer(module) for name, module in sorted(_modules(value), key=lambda each: len(each[0]))}


def recorded_layers(value: object) -> dict[str, Layers]:
    """The item `layers` of what is captured of an object; none if it has no layers."""
    return {"layers": layers} if (layers := layers_of(value)) else {}


def _modules(value: object) -> Iterable[tuple[Name, Any]]:
    if is_nnx(value):
        # Imported already, or there were no object of it. Any: it is not needed to import this.
        nnx: Any = sys.modules["flax.nnx"]
        return [(tuple(path), each) for path, each in nnx.iter_graph(value) if isinstance(each, nnx.Module)]
    return _equinox_modules(value) if "equinox" in sys.modules else []


def _equinox_modules(value: object) -> Iterator[tuple[Name, Any]]:
    equinox: Any = sys.modules["equinox"]
    stack: list[tuple[Name, Any]] = [((), value)]
    while stack:
        name, each = stack.pop()
        if isinstance(each, equinox.Module):
            yield name, each
        # States of optimizers are named tuples. They may be made of modules, which are no layers.
        if hasattr(each, "_fields") or jax.tree_util.all_leaves([each]):
            continue
        children, _ = jax.tree_util.tree_flatten_with_path(each, is_leaf=lambda child, parent=each: child is not parent)
        # Any: JAX's types know no options of this.
        step: Any = jax.tree_util.keystr
        stack.extend(((*name, step(path, simple=True, separator="/")), child) for path, child in reversed(children))


def _text(name: Name) -> str:
    steps = [step for each in name for step in (each if isinstance(each, tuple) else (each,))]
    return "/".join(map(str, steps))


def _layer(module: Any) -> dict[str, Any]:
    cls = type(module)
    texts = [_class_text(each) for each in cls.__mro__]
    kind = next((text for text in texts if text.rpartition(".")[0] in _PACKAGES), texts[0])
    return {"class": texts[0], "kind": kind, "config": _config(vars(module))}


def _class_text(cls: type) -> str:
    """The name under which a class is known: `flax.nnx.Linear`, and not the module where that is defined."""
    for package in _PACKAGES:
        if getattr(sys.modules.get(package), cls.__name__, None) is cls:
            return f"{package}.{cls.__name__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def _config(attributes: Mapping[str, Any]) -> dict[str, object]:
    return {
        key: [*value] if isinstance(value, list) else value
        for key, value in attributes.items()
        if key[:1] != "_" and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    if type(value) in {tuple, list}:
        return len(value) <= _MAX_CONFIG_ITEMS and all(_is_plain(item) for item in value)
    return value is None or type(value) in {bool, int, float, str}


def linen_layers(module: Any, *args: Any, rngs: Any = None, **kwargs: Any) -> Layers:
    """The same for a module of linen, by scope: what its variables do not tell. The arguments are those of
    `module.init` after `rngs`, and nothing is computed: arrays may be `jax.ShapeDtypeStruct`.

        layers = linen_layers(model, jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32), train=False)

    `rngs`: as for `module.init`, if it needs others than "params" and "dropout".
    """
    from flax import linen

    found: dict[Name, dict[str, Any]] = {}

    def record(call: Any, positional: Any, keywords: Any, context: Any) -> Any:
        name = tuple(context.module.path)
        if name not in found:
            found[name] = layer = _layer(context.module)
            # Where it is says as much.
            layer["config"].pop("name", None)
        return call(*positional, **keywords)

    if rngs is None:
        rngs = dict.fromkeys(("params", "dropout"), jax.random.key(0))
    leaves, treedef = jax.tree_util.tree_flatten((args, kwargs))
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, _ARRAYS)]

    def init(arrays: list[Any]) -> Any:
        # Flags and the like are not traced: modules decide by them what they do.
        for place, array in zip(places, arrays, strict=True):
            leaves[place] = array
        positional, keywords = jax.tree_util.tree_unflatten(treedef, leaves)
        return module.init(rngs, *positional, **keywords)

    with linen.intercept_methods(record):
        jax.eval_shape(init, [leaves[place] for place in places])
    return {_text(name): found[name] for name in sorted(found, key=len)}


_ARRAYS: Final = (jax.Array, np.ndarray, jax.ShapeDtypeStruct)
