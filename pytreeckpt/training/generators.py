"""The states of Python's and numpy's random number generators as trees, and back.

numpy's `bit_generator.state` leaves out how many children its seed sequence has spawned; both are stored here, so that
`Generator.spawn` goes on as well.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from pytreeckpt.training.parts import Differences, Part, Role, copied

GENERATOR: Final = "generator"
"""The role of all generators, a framework's too."""
GENERATOR_RANK: Final = 1
"""After data loaders, which may draw when they get their state."""


def _capture_python(generator: Any) -> dict[str, object]:
    return {"class": "random.Random", "state": generator.getstate()}


def _capture_legacy(generator: Any) -> dict[str, object]:
    return {"class": "numpy.random.RandomState", "state": copied(generator.get_state(legacy=False))}


def _capture_numpy(generator: np.random.Generator) -> dict[str, object]:
    bits = generator.bit_generator
    state: dict[str, object] = {"class": f"numpy.random.{type(bits).__name__}", "state": copied(bits.state)}
    seed = bits.seed_seq
    if isinstance(seed, np.random.SeedSequence):
        state["seed"] = {
            "entropy": copied(seed.entropy),
            "spawn_key": tuple(seed.spawn_key),
            "pool_size": seed.pool_size,
            "n_children_spawned": seed.n_children_spawned,
        }
    return state


def _class_differs(name: str, cls: str, state: Mapping[str, object]) -> Differences:
    differences = Differences()
    if state["class"] != cls:
        differences.mismatched.append(f"{name}: this is a {cls}, the checkpoint has a {state['class']}")
    return differences


# Each state is first given to a generator that nobody else uses: it says what is wrong, and may have begun by then.


def _plan_python(name: str, generator: Any, state: Mapping[str, Any]) -> Part:
    differences = _class_differs(name, "random.Random", state)
    if not differences.mismatched:
        random.Random(0).setstate(state["state"])  # noqa: S311 - no secret

    def apply() -> object:
        generator.setstate(state["state"])
        return generator

    return Part(differences, apply, GENERATOR_RANK)


def _plan_legacy(name: str, generator: Any, state: Mapping[str, Any]) -> Part:
    differences = _class_differs(name, "numpy.random.RandomState", state)
    ours = generator.get_state(legacy=False)["bit_generator"]
    if not differences.mismatched and state["state"]["bit_generator"] != ours:
        differences.mismatched.append(f"{name}: this runs on {ours}, the checkpoint {state['state']['bit_generator']}")
    if not differences.mismatched:
        other = copy.deepcopy(generator) if isinstance(generator, np.random.RandomState) else np.random.RandomState(0)
        other.set_state(copied(state["state"]))

    def apply() -> object:
        generator.set_state(copied(state["state"]))
        return generator

    return Part(differences, apply, GENERATOR_RANK)


def _plan_numpy(name: str, generator: np.random.Generator, state: Mapping[str, Any]) -> Part:
    # Any: seed_seq and __setstate__ are not in numpy's types.
    bits: Any = generator.bit_generator
    differences = _class_differs(name, f"numpy.random.{type(bits).__name__}", state)
    seed = state.get("seed")
    sequence = np.random.SeedSequence(**seed) if seed is not None else bits.seed_seq
    if not differences.mismatched:
        copy.deepcopy(bits).__setstate__((copied(state["state"]), sequence))

    def apply() -> np.random.Generator:
        bits.__setstate__((copied(state["state"]), sequence))
        return generator

    return Part(differences, apply, GENERATOR_RANK)


def generator_roles() -> list[Role]:
    """The roles of `random.Random`, `numpy.random.RandomState` and `numpy.random.Generator`."""
    return [
        Role(GENERATOR, lambda value: isinstance(value, random.Random), _capture_python, _plan_python),
        Role(GENERATOR, lambda value: isinstance(value, np.random.RandomState), _capture_legacy, _plan_legacy),
        Role(GENERATOR, lambda value: isinstance(value, np.random.Generator), _capture_numpy, _plan_numpy),
    ]


# The modules are themselves such generators: their functions go to one that has no other name.


def capture_globals() -> dict[str, object]:
    """The states of the generators behind the functions of `random` and `numpy.random`."""
    return {"python": _capture_python(random), "numpy": _capture_legacy(np.random)}


def plan_globals(name: str, states: Mapping[str, Any]) -> list[Part]:
    """What putting them back comes to."""
    return [
        _plan_python(f"{name}/python", random, states["python"]),
        _plan_legacy(f"{name}/numpy", np.random, states["numpy"]),
    ]
