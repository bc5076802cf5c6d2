"""Trees to look at: a training run, and small ones of everything."""

import collections
import dataclasses
import enum
import random
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from pytreeckpt import ClassKind, ObjectType
from pytreeckpt.objects import build_record


class Adam(NamedTuple):
    count: Any
    mu: Any
    nu: Any


class Empty(NamedTuple):
    pass


@dataclasses.dataclass
class State:
    step: Any
    params: Any


class Phase(enum.Enum):
    WARMUP = 1


def wrapped(name: str, *values: Any, fields: tuple[str, ...] = ("data", "requires_grad")) -> Any:
    """What a framework's object is in a file, without the framework."""
    return build_record(ObjectType(ClassKind.WRAPPER, name, fields), values)


def training_run(n_layers: int = 12, width: int = 8) -> dict[str, Any]:
    """A small GPT-2 with Adam's moments, tied embeddings, random states and histories."""
    generator = np.random.default_rng(0)

    def weights(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape).astype(np.float32)

    def layer() -> dict[str, Any]:
        return {
            "ln": {"scale": weights(width), "bias": weights(width)},
            "attn": {"qkv": weights(width, 3 * width), "proj": weights(width, width)},
            "mlp": {"up": weights(width, 4 * width), "down": weights(4 * width, width)},
        }

    def model() -> dict[str, Any]:
        return {"wte": weights(100, width), "h": [layer() for _ in range(n_layers)], "ln_f": weights(width)}

    params = model()
    params["lm_head"] = params["wte"]
    return {
        "step": 20_000,
        "params": params,
        "opt": (Empty(), Adam(np.array(20_000, np.int32), model(), model())),
        "schedule": {"base": [6e-4], "last_epoch": 20_000, "verbose": False, "name": "cosine"},
        "rng": random.Random(0).getstate(),
        "metrics": {"loss": [10.0 / (1 + i / 500) for i in range(10_000)], "lr": [6e-4] * 10_000},
    }


TEXTS = st.text(max_size=6) | st.sampled_from(["a/b", "[0]", "\x1b[31m", "\u202e", "[bold]", "", "0", "layer_1"])
TEXTS = TEXTS.filter(lambda text: all(not "\ud800" <= character <= "\udfff" for character in text))
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(1 << 5000), 1 << 5000),
    st.floats(),
    st.complex_numbers(),
    TEXTS,
    st.binary(max_size=6),
    st.just(...),
)
KEYS = st.one_of(TEXTS, st.integers(-3, 30), st.none(), st.binary(max_size=3), st.tuples(st.integers(), TEXTS))
DTYPES = st.sampled_from(
    [
        np.dtype(name)
        for name in ("bool", "int8", "uint64", ">i2", "float16", "float32", "float64", "longdouble", "complex64")
    ]
    + [np.dtype(ml_dtypes.bfloat16), np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.int4)]
    + [np.dtype("S3"), np.dtype("U2"), np.dtype("V5"), np.dtype("M8[ns]"), np.dtype([("x", "f4"), ("y", "U1", (2,))])]
)
SHAPES = st.sampled_from([(), (0,), (1,), (3,), (2, 3), (300,), (20, 30)])


def filled(dtype: np.dtype, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """An array of random bits, or of zeros if the seed is 0."""
    array = np.zeros(shape, dtype)
    if seed and array.nbytes:
        array.reshape(-1).view(np.uint8)[...] = np.random.default_rng(seed).integers(0, 256, array.nbytes, np.uint8)
    return array


ARRAYS = st.builds(filled, DTYPES, SHAPES, st.integers(0, 9))
POOL = [np.arange(3.0), np.zeros(400), np.ones((2, 2), np.int8)]
LEAVES = st.one_of(
    PLAIN,
    ARRAYS,
    ARRAYS.map(np.asfortranarray),
    st.sampled_from(POOL),
    st.sampled_from([np.float32(0.5), np.int8(-1), np.str_("x"), np.datetime64("2020", "D")]),
    st.sampled_from([Phase.WARMUP, range(3), slice(1, None), np.dtype("f4"), bytearray(b"x"), Empty()]),
    st.sets(st.integers() | TEXTS, max_size=4),
    st.frozensets(st.tuples(st.integers(), TEXTS), max_size=2),
    st.builds(wrapped, st.sampled_from(["torch.Tensor", "torch.nn.Parameter", "x.W"]), ARRAYS, st.booleans()),
)


def _containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    dicts = st.dictionaries(KEYS, inner, max_size=4)
    return st.one_of(
        dicts,
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        dicts.map(collections.OrderedDict),
        st.lists(inner, max_size=3).map(lambda items: collections.deque(items, 5)),
        st.builds(Adam, inner, inner, inner),
        st.builds(State, inner, inner),
        st.builds(lambda value: [value] * 4, inner),
        st.builds(lambda value: {f"layer_{i}": {"w": value, "b": i} for i in range(20)}, inner),
        st.builds(lambda value: wrapped("x.Box", value, {"deep": value}, fields=("inside", "extra")), inner),
    )


TREES = st.recursive(LEAVES, _containers, max_leaves=8)
