"""Trainings in torch and optax with the same gradients, and what plans do between them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch import nn

import pytreeckpt_jax as ptc_jax
import pytreeckpt_torch as ptc_torch
from pytreeckpt.convert.leaves import array_of, leaves_of
from pytreeckpt.convert.names import steps_of
from pytreeckpt.convert.operations import Permute, Split, inverse
from pytreeckpt.convert.optimizers import extended, plan_optimizers
from pytreeckpt.convert.records import Entry, Inventory, Leaf, Model
from pytreeckpt.convert.running import run
from pytreeckpt.navigation import descend
from pytreeckpt.paths import Path

# From torch's names to names in JAX, and what is done on the way.
LAYOUT = {
    "attention.weight": (["q/kernel", "k/kernel", "v/kernel"], (Permute((1, 0)), Split(1, (2, 2, 2)))),
    "attention.bias": (["q/bias", "k/bias", "v/bias"], (Split(0, (2, 2, 2)),)),
    "out.weight": (["out/kernel"], (Permute((1, 0)),)),
    "out.bias": (["out/bias"], ()),
}


class Net(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        self.attention = nn.Linear(3, 6, dtype=torch.float64)
        self.out = nn.Linear(2, 3, dtype=torch.float64)
        generator = np.random.default_rng(seed)
        for parameter in self.parameters():
            parameter.data = torch.from_numpy(generator.standard_normal(parameter.shape))


def gradients(steps, seed=7):
    """For each step, gradients by torch's names."""
    generator = np.random.default_rng(seed)
    shapes = {name: parameter.shape for name, parameter in Net().named_parameters()}
    return [{name: generator.standard_normal(shape) for name, shape in shapes.items()} for _ in range(steps)]


def nested(flat):
    root = {}
    for name, value in flat.items():
        *first, last = name.split("/")
        at = root
        for step in first:
            at = at.setdefault(step, {})
        at[last] = value
    return root


def flat(tree):
    return {"/".join(map(str, steps_of(leaf.path))): np.asarray(leaf.value) for leaf in leaves_of(tree)}


def to_jax(arrays):
    """Arrays by torch's names as a tree in JAX."""
    found = {}
    for name, (targets, operations) in LAYOUT.items():
        found |= dict(zip(targets, run(operations, [np.asarray(arrays[name])]), strict=True))
    return jax.tree.map(jnp.asarray, nested(found))


def to_torch(tree):
    """A tree in JAX as arrays by torch's names."""
    found = flat(tree)
    return {
        name: run(inverse(operations), [found[target] for target in targets])[0]
        for name, (targets, operations) in LAYOUT.items()
    }


def values(model):
    return {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}


def step_torch(model, optimizer, grads, *, only=None):
    for each in grads:
        for name, parameter in model.named_parameters():
            parameter.grad = torch.from_numpy(each[name].copy()) if only is None or name in only else None
        optimizer.step()


def step_optax(tx, params, state, grads):
    for each in grads:
        updates, state = tx.update(to_jax(each), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def apart(a, b):
    """The largest difference between two dicts of arrays."""
    assert a.keys() == b.keys()
    return max(float(np.abs(a[key] - b[key]).max()) for key in a)


def inventory(tree, at, convention, *, buffers=()):
    """An inventory with the leaves below the path `at` as its model, without a search for what could be one."""
    prefix = Path.parse(at)
    leaves = [leaf for leaf in leaves_of(tree) if leaf.shape is not None]
    model, rest = {}, {}
    for found in leaves:
        inside = found.path[: len(prefix)] == prefix
        name = steps_of(found.path[len(prefix) :] if inside else found.path, dotted=inside and convention == "torch")
        leaf = Leaf(found.path, name, found.shape, found.dtype, found.identity)
        if inside:
            model[name] = leaf
        else:
            rest[found.path] = leaf
    return Inventory(Model(convention, model, frozenset(map(tuple, buffers))), rest, tree)


def entries(source, target, layout=None):
    """The entries of the parameters, as an engine would have made them."""
    made = []
    for name, (targets, operations) in (LAYOUT if layout is None else layout).items():
        names = [name] if isinstance(name, str) else list(name)
        sources = tuple(source.model.leaves[tuple(each.split("."))].path for each in names)
        made.append(
            Entry(
                sources,
                tuple(target.model.leaves[tuple(each.split("/"))].path for each in targets),
                operations,
                "parameter",
                "by hand",
            )
        )
    return made


def captured(model, optimizer):
    return ptc_torch.capture(model=model, optimizer=optimizer, rng=False)


def captured_jax(params, state):
    return ptc_jax.capture(params=params, opt=state, rng=False)


def planned(torch_tree, jax_tree, *, layout=None, at="model/state", target_at="params", **options):
    source, target = inventory(torch_tree, at, "torch"), inventory(jax_tree, target_at, "flax")
    return plan_optimizers(source, target, entries(source, target, layout), **options)


def replaced(tree, new):
    """A tree of dicts, lists and tuples with other values at paths, of which the last keys may be new."""
    if isinstance(tree, dict):
        tree = dict(tree)
    for path, value in new.items():
        tree = _set(tree, path, value)
    return tree


def _set(tree, path, value):
    if not path:
        return value
    step = path[0]
    key = getattr(step, "index", None) if hasattr(step, "index") and not hasattr(step, "key") else step.key
    if isinstance(tree, dict):
        return {**tree, key: _set(tree.get(key, {}), path[1:], value)}
    changed = list(tree)
    changed[key] = _set(changed[key], path[1:], value)
    return type(tree)(changed)


def moved(plan, tree, *, back=False):
    """What the entries of a plan make of a tree: arrays by path, of which the last entry has the last word."""
    found = {}
    for entry in plan.entries:
        sources, targets = (entry.targets, entry.sources) if back else (entry.sources, entry.targets)
        operations = inverse(entry.operations) if back else entry.operations
        arrays = run(operations, [array_of(descend(tree, path)) for path in sources])
        found |= dict(zip(targets, arrays, strict=True))
    return found


def optax_from_torch(plan, torch_tree, jax_tree, params, state):
    """A state of optax with what a plan moves into it."""
    tree = replaced(jax_tree, {path: np.asarray(array) for path, array in moved(plan, torch_tree).items()})
    return ptc_jax.restore_into(tree, params=params, opt=state, rng=False)["opt"]


def torch_from_optax(plan, torch_tree, jax_tree, model, optimizer):
    """An optimizer of torch, changed to what a plan moves back into it."""
    arrays = moved(plan, jax_tree, back=True)
    tree = extended(torch_tree, plan.new)
    tree = replaced(tree, {path: torch.from_numpy(np.array(array)) for path, array in arrays.items()})
    ptc_torch.restore_into(tree, model=model, optimizer=optimizer, rng=False)
