"""Trees that checkpoint formats get wrong, and what is done with each. They are built when asked for."""

from __future__ import annotations

import random
import struct
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import PurePosixPath
from typing import Any, Literal, NamedTuple

import ml_dtypes
import numpy as np

Check = Literal["round trip", "relative path", "flipped bits", "cut short", "killed", "disk full", "runs code"]
MakeArray = Callable[..., Any]
"""`array(*shape)`: the numbers 0, 1, 2 … as float32; `array(values=…)`: a numpy array as one of the peer's."""


@dataclass(frozen=True, slots=True)
class Case:
    """A tree and what is done with it.

    `make` gets a function that makes arrays of the kind that the peer is for, so that none is refused for what is not
    the point; only cases about numpy's, jax's or torch's arrays use those. `needs`: modules that have to be installed.
    `types`: classes that a reader may be told to trust, if it can be told so.
    """

    group: str
    name: str
    make: Callable[[MakeArray], Any]
    check: Check = "round trip"
    needs: tuple[str, ...] = ()
    types: Callable[[], tuple[type, ...]] = tuple


class Moments(NamedTuple):
    """A namedtuple, as optimizers use them."""

    mu: Any
    nu: Any


@dataclass
class Config:
    """A dataclass, as configurations are."""

    width: int
    name: str


class Phase(Enum):
    """An enum."""

    WARMUP = "warmup"


executed: list[str] = []


def run_from_a_file() -> str:
    """What a hostile file would call; here it only leaves a note that it was called."""
    executed.append("called")
    return "anything"


class Hostile:
    """An object whose pickle calls a function."""

    def __reduce__(self) -> tuple[Callable[[], str], tuple[()]]:
        return run_from_a_file, ()


def _ramp(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    """The numbers from 0 on."""
    return np.arange(int(np.prod(shape)), dtype=np.float64).reshape(shape).astype(dtype)


def noise(array: MakeArray, seed: int = 0) -> dict[str, Any]:
    """One MiB that does not compress."""
    return {"w": array(values=np.random.default_rng(seed).integers(-(2**31), 2**31, 1 << 18, np.int32))}


def _nested(array: MakeArray, levels: int) -> dict[str, Any]:
    tree: dict[str, Any] = {"leaf": array(2)}
    for _ in range(levels):
        tree = {"a": tree}
    return tree


def _tied(array: MakeArray) -> dict[str, Any]:
    shared = array(4, 3)
    return {"embedding": shared, "head": shared}


def _nan_bits() -> np.ndarray:
    return np.array([0x7FC00001, 0xFFC12345, 0x7F800001, 0x80000000], np.uint32).view(np.float32)


def _structured() -> np.ndarray:
    table = np.zeros(3, [("x", "<f4"), ("y", ">i2"), ("z", "u1", (2,))])
    table["x"], table["y"] = [1.5, 2.5, -0.0], [1, 2, 3]
    return table


def _torch() -> Any:
    import torch

    return torch


def _torch_parameters(_: MakeArray) -> dict[str, Any]:
    torch = _torch()
    return {"frozen": torch.ones(2, dtype=torch.bfloat16), "w": torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))}


def _torch_dtypes(_: MakeArray) -> dict[str, Any]:
    torch = _torch()
    dtypes = (torch.bfloat16, torch.bool, torch.complex64, torch.float8_e5m2, torch.int64, torch.uint16)
    return {"empty": torch.empty(0, 3)} | {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in dtypes}


def _torch_tied(_: MakeArray) -> dict[str, Any]:
    weight = _torch().arange(12.0).reshape(4, 3)
    return {"embedding": weight, "head": weight}


def _torch_training(_: MakeArray) -> dict[str, Any]:
    torch = _torch()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 5])
    model(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()
    scheduler.step()
    rng = {"torch": torch.get_rng_state(), "numpy": np.random.get_state(), "python": random.getstate()}  # noqa: NPY002 - what people save
    loss = np.float64(0.5)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    return {name: part.state_dict() for name, part in parts.items()} | {"rng": rng, "step": 1, "best_loss": loss}


def _jax_arrays(_: MakeArray) -> dict[str, Any]:
    import jax.numpy as jnp

    return {"half": jnp.ones(3, jnp.bfloat16), "scalar": jnp.asarray(1), "w": jnp.arange(6.0).reshape(2, 3)}


def _jax_keys(_: MakeArray) -> dict[str, Any]:
    import jax

    return {"fast": jax.random.key(7, impl="rbg"), "key": jax.random.key(7)}


def _optax_state(_: MakeArray) -> dict[str, Any]:
    import jax.numpy as jnp
    import optax

    params = {"w": jnp.ones((2, 3))}
    return {"opt_state": optax.chain(optax.clip(1.0), optax.adam(1e-3)).init(params), "params": params}


def _optax_types() -> tuple[type, ...]:
    import optax

    return optax.EmptyState, optax.ScaleByAdamState


_TORCH, _JAX, _OPTAX = ("torch",), ("jax",), ("jax", "optax")
_ARRAYS, _NAMES, _TYPES, _SHARED, _FAULTS = (
    "numpy arrays, bit for bit",
    "names",
    "types, without a template",
    "memory and size",
    "damage, crashes and strangers",
)


def _plain(group: str, trees: Mapping[str, Callable[[MakeArray], Any]], **fields: Any) -> list[Case]:
    return [Case(group, name, make, **fields) for name, make in trees.items()]


CASES: tuple[Case, ...] = (
    *_plain(
        _ARRAYS,
        {
            "float32": lambda _: {"w": _ramp(2, 3)},
            "bfloat16": lambda _: {"w": _ramp(2, 3, dtype=ml_dtypes.bfloat16)},
            "float8": lambda _: {"w": _ramp(2, 3, dtype=ml_dtypes.float8_e4m3fn)},
            "int4": lambda _: {"w": _ramp(2, 3, dtype=ml_dtypes.int4)},
            "int64 beyond 2^32": lambda _: {"w": np.array([2**40 + 1, -(2**62)])},
            "complex": lambda _: {"w": np.array([1 + 2j, complex(-0.0, np.nan)])},
            "big-endian": lambda _: {"w": _ramp(2, 3, dtype=">f4")},
            "NaN payloads and −0.0": lambda _: {"w": _nan_bits()},
            "Fortran order": lambda _: {"w": np.asfortranarray(_ramp(3, 4))},
            "strided view": lambda _: {"w": _ramp(6, 8)[::2, ::3]},
            "reversed view": lambda _: {"w": _ramp(6)[::-1]},
            "broadcast view": lambda _: {"w": np.broadcast_to(_ramp(3), (4, 3))},
            "zero-size": lambda _: {"w": np.empty((0, 3), np.float32)},
            "0-d": lambda _: {"w": np.array(1.5, np.float32)},
            "booleans": lambda _: {"w": np.array([True, False])},
            "text": lambda _: {"w": np.array(["loss", "größe"])},
            "dates": lambda _: {"w": np.array(["2026-01-01", "NaT"], "datetime64[s]")},
            "structured": lambda _: {"w": _structured()},
        },
    ),
    *_plain(
        _NAMES,
        {
            "{'a': {'b': 1}, 'a.b': 2}": lambda a: {"a": {"b": a(2) + 5}, "a.b": a(2)},
            "{'a': {'b': 1}, 'a/b': 2}": lambda a: {"a": {"b": a(2) + 5}, "a/b": a(2)},
            "int keys": lambda a: {0: a(2), 1: a(2) + 5},
            "{1: x, '1': y}": lambda a: {1: a(2), "1": a(2) + 5},
            "tuple and None keys": lambda a: {("layer", 0): a(2), None: a(2) + 5},
            # Elsewhere keys are in alphabetical order, so that their order is no other case's point.
            "order of keys": lambda a: {"b": a(2), "a": a(2) + 5},
            "empty key, '..' and '/'": lambda a: {"": a(2), "..": a(2) + 5, "/": a(2) + 6},
            "long and non-ASCII keys": lambda a: {"\0": a(2), "ключ " * 100: a(2) + 5},
        },
    ),
    *_plain(
        _TYPES,
        {
            "nested dicts": lambda a: {"a": {"b": {"c": a(2)}}, "d": {"e": a(2)}},
            "tuple": lambda a: {"t": (a(2), a(3))},
            "list": lambda a: {"t": [a(2), a(3)]},
            "empty containers": lambda a: {"d": {}, "l": [], "t": (), "w": a(2)},
            "None": lambda a: {"n": None, "w": a(2)},
            "bool, int and float": lambda _: {"b": True, "f": 1.0, "i": 1},
            "int beyond 64 bits": lambda _: {"i": 2**127 + 1},
            "float −0.0, inf and NaN payload": lambda _: {
                "inf": float("-inf"),
                "nan": struct.unpack("<d", bytes.fromhex("010000000000f8ff"))[0],
                "zero": -0.0,
            },
            "complex number": lambda _: {"c": complex(-0.0, 2.0)},
            "text and bytes": lambda _: {"b": b"\x00\xff", "s": "größe"},
            "numpy scalar, number, 0-d": lambda _: {"a": np.float32(1.5), "b": 1.5, "c": np.array(1.5)},
            "set and frozenset": lambda _: {"f": frozenset({"a", None}), "s": {1, 2, 3}},
            "OrderedDict, defaultdict, …": lambda _: {
                "o": OrderedDict(b=1, a=2),
                "d": defaultdict(None, a=1),
                "c": Counter("aab"),
                "q": deque([1, 2], maxlen=5),
            },
            "path and dtype": lambda _: {"p": PurePosixPath("a/b"), "t": np.dtype(">f4")},
        },
    ),
    Case(_TYPES, "namedtuple", lambda a: {"m": Moments(a(2), a(3))}, types=lambda: (Moments,)),
    Case(
        _TYPES, "dataclass and enum", lambda _: {"c": Config(8, "a"), "e": Phase.WARMUP}, types=lambda: (Config, Phase)
    ),
    Case(_TYPES, "optax state, EmptyState", _optax_state, needs=_OPTAX, types=_optax_types),
    Case(_TYPES, "jax arrays", _jax_arrays, needs=_JAX),
    Case(_TYPES, "jax PRNG keys", _jax_keys, needs=_JAX),
    Case(_TYPES, "torch tensors of all dtypes", _torch_dtypes, needs=_TORCH),
    Case(_TYPES, "torch parameters", _torch_parameters, needs=_TORCH),
    Case(
        _TYPES,
        "torch.Size, dtype, device",
        lambda _: {"s": _torch().Size([2, 3]), "t": _torch().bfloat16, "d": _torch().device("cpu")},
        needs=_TORCH,
    ),
    Case(_TYPES, "whole torch run with RNG", _torch_training, needs=_TORCH),
    *_plain(
        _SHARED,
        {
            "tied arrays": _tied,
            "3,000 levels": lambda a: _nested(a, 3000),
            "history of 10,000 floats": lambda _: {"loss": [0.1 * step for step in range(10_000)]},
            "Python RNG state": lambda _: {"rng": random.Random(0).getstate()},
            "numpy RNG state": lambda _: {"rng": np.random.default_rng(0).bit_generator.state},
        },
    ),
    Case(_SHARED, "tied torch tensors", _torch_tied, needs=_TORCH),
    Case(_SHARED, "transposed torch tensor", lambda _: {"w": _torch().arange(12.0).reshape(4, 3).t()}, needs=_TORCH),
    Case(_SHARED, "relative path", lambda a: {"w": a(2)}, check="relative path"),
    Case(_FAULTS, "64 flipped bits", noise, check="flipped bits"),
    Case(_FAULTS, "file cut short", noise, check="cut short"),
    Case(_FAULTS, "killed while replacing", noise, check="killed"),
    Case(_FAULTS, "disk full while replacing", noise, check="disk full"),
    Case(_FAULTS, "object that runs code", lambda a: {"w": a(2), "x": Hostile()}, check="runs code"),
)
