"""Layers of torch beside those of linen, nnx and Equinox: the same parameters by a table's variant, the same inputs."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from pytreeckpt.convert.layers import TABLES
from pytreeckpt.convert.layers.variants import Side, Variant
from pytreeckpt.convert.running import run
from pytreeckpt.convert.shapes import result_shapes
from pytreeckpt_jax.layers import layers_of, linen_layers
from pytreeckpt_torch.names import layers_of as torch_layers_of

# Their difference is that of the order in which floats are added.
TOLERANCE = 1e-12


def randomised(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The module in float64, with random parameters and statistics: what is 0 or 1 hides errors."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point() and not name.rpartition(".")[2].endswith(("_u", "_v")):
                tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64) / 2)
                if name.endswith("running_var"):
                    tensor.abs_().add_(0.5)
            elif name.endswith("num_batches_tracked"):
                tensor.fill_(7)
    return module


def torch_side(module: torch.nn.Module) -> tuple[Side, dict[str, np.ndarray]]:
    """A layer of torch as a table sees it, and its arrays."""
    arrays = {name.replace(".", "/"): tensor.numpy() for name, tensor in module.state_dict().items()}
    layer: Any = torch_layers_of(module)[""]
    return Side({name: each.shape for name, each in arrays.items()}, layer["kind"], layer["config"]), arrays


def fitting(variants, side: Side, other: Side) -> list[Variant]:
    """The variants that fit the names and shapes of both sides, as planning will have it."""
    return [each for each in variants if _fits(each, side, other)]


def _fits(variant: Variant, side: Side, other: Side) -> bool:
    found: dict[str, Any] = dict.fromkeys(variant.fills)
    sources = [*variant.drops]
    for move in variant.moves:
        try:
            shapes = result_shapes(move.operations, [side.shapes[name] for name in move.sources])
        except ValueError:
            return False
        found.update(zip(move.targets, shapes, strict=True))
        sources += move.sources
    if sorted(found) != sorted(other.shapes) or sorted(sources) != sorted(side.shapes):
        return False
    return all(shape is None or shape == other.shapes[name] for name, shape in found.items())


def converted(table: str, module: torch.nn.Module, other: Side, *, kind: str | None = None) -> dict[str, np.ndarray]:
    """The arrays of the other layer, by the one variant that fits, or None where there is not one."""
    side, arrays = torch_side(module)
    variants = fitting(TABLES[table][kind or side.kind or ""](side, other), side, other)
    assert len(variants) == 1, [each.name for each in variants]
    return applied(variants[0], arrays, other)


def applied(variant: Variant, arrays, other: Side) -> dict[str, np.ndarray]:
    found = {name: np.full(other.shapes[name], value) for name, value in variant.fills.items()}
    for move in variant.moves:
        results = run(move.operations, [arrays[name] for name in move.sources])
        found.update(zip(move.targets, results, strict=True))
    return found


def both_ways(table: str, module: torch.nn.Module, other: Side, *, decided_by_shape: bool, kind: str | None):
    """The arrays of the other layer, found with its recorded kind; and the same without, where shapes decide."""
    arrays = converted(table, module, other, kind=kind)
    if decided_by_shape:
        plain = converted(table, module, Side(other.shapes), kind=kind)
        assert plain.keys() == arrays.keys()
        assert all(np.array_equal(plain[name], arrays[name]) for name in arrays)
    return arrays


def _path_text(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def linen_variables(torch_module, module, *inputs, decided_by_shape=True, kind=None, **options):
    """Variables for a module of linen, from a layer of torch."""
    abstract = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs, **options))
    paths, treedef = jax.tree_util.tree_flatten_with_path(abstract)
    names = [_path_text(path).partition("/")[2] for path, _ in paths]
    layer = linen_layers(module, *inputs, **options)[""]
    other = Side(dict(zip(names, [leaf.shape for _, leaf in paths])), layer["kind"], layer["config"])
    arrays = both_ways("flax", torch_module, other, decided_by_shape=decided_by_shape, kind=kind)
    return jax.tree_util.tree_unflatten(treedef, [jnp.asarray(arrays[name]) for name in names])


def linen_outputs(torch_module, module, *inputs, decided_by_shape=True, kind=None, init=None, **options):
    variables = linen_variables(
        torch_module, module, *inputs, decided_by_shape=decided_by_shape, kind=kind, **(init or options)
    )
    return module.apply(variables, *inputs, **options)


def nnx_filled(torch_module, make, *, decided_by_shape=True, kind=None, abstract=True):
    """The module of nnx that `make()` makes, with the parameters of a layer of torch; its own are never computed,
    if it can be `abstract`.
    """
    module = nnx.eval_shape(make) if abstract else make()
    flat = list(nnx.to_flat_state(nnx.state(module, nnx.Not(nnx.RngState))))
    names = [
        "/".join(str(step) for each in path for step in (each if isinstance(each, tuple) else (each,)))
        for path, _ in flat
    ]
    shapes = {name: value.shape for name, (_, value) in zip(names, flat)}
    layer = layers_of(module)[""]
    other = Side(shapes, layer["kind"], layer["config"])
    arrays = both_ways("flax", torch_module, other, decided_by_shape=decided_by_shape, kind=kind)
    new = [
        (
            path,
            value.replace(jnp.asarray(arrays[name])) if isinstance(value, nnx.Variable) else jnp.asarray(arrays[name]),
        )
        for name, (path, value) in zip(names, flat)
    ]
    nnx.update(module, nnx.from_flat_state(new))
    return module


def equinox_filled(torch_module, make, *, kind=None):
    """The module of Equinox that `make()` makes, with the parameters of a layer of torch; its own are never computed."""
    module = eqx.filter_eval_shape(make)
    arrays, static = eqx.partition(module, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    paths, treedef = jax.tree_util.tree_flatten_with_path(arrays)
    names = [_path_text(path) for path, _ in paths]
    layer = layers_of(module)[""]
    other = Side({name: leaf.shape for name, (_, leaf) in zip(names, paths)}, layer["kind"], layer["config"])
    found = both_ways("equinox", torch_module, other, decided_by_shape=True, kind=kind)
    leaves = [jnp.asarray(found[name], leaf.dtype) for name, (_, leaf) in zip(names, paths)]
    return eqx.combine(jax.tree_util.tree_unflatten(treedef, leaves), static)


def assert_close(actual, expected) -> None:
    expected = expected.detach().numpy() if isinstance(expected, torch.Tensor) else expected
    actual = np.asarray(actual)
    assert (actual.dtype, actual.shape) == (np.float64, expected.shape), (actual.dtype, actual.shape, expected.shape)
    difference = np.abs(actual - expected).max() / max(1, np.abs(expected).max())
    assert difference < TOLERANCE, difference


def channels_last(array):
    return np.moveaxis(np.asarray(array), 1, -1)


def channels_first(array):
    return np.moveaxis(np.asarray(array), -1, 1)


def normal(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


F64: dict[str, Any] = {"param_dtype": jnp.float64}


def rngs() -> nnx.Rngs:
    return nnx.Rngs(0)


KEY = jax.random.key(0)
