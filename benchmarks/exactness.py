"""What differs between a tree that was saved and what came back: a strict comparison that knows no checkpoint format.

It is written apart from pytreeckpt on purpose, so that the library is not its own judge.
"""

from __future__ import annotations

import dataclasses
import struct
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference. `silent`: a number, a leaf or an order was lost, rather than the type of what holds it."""

    path: str
    text: str
    silent: bool

    def __str__(self) -> str:
        return f"{self.path or 'the root'}: {self.text}"


def differences(saved: object, restored: object, *, limit: int = 20) -> list[Difference]:
    """The differences, at most `limit`. No recursion, so trees may be as deep as they like."""
    found: list[Difference] = []
    stack: list[tuple[str, Any, Any]] = [("", saved, restored)]
    # Memory of each array of the saved tree, and of what came back in its place: arrays that were one must stay one.
    places: dict[object, tuple[str, object]] = {}
    while stack and len(found) < limit:
        path, a, b = stack.pop()
        if type(a) is not type(b):
            found.append(Difference(path, f"{_name(a)} → {_name(b)}", _lost(a, b)))
            continue
        array_a, array_b = as_array(a), as_array(b)
        if array_a is not None and array_b is not None:
            found.extend(Difference(path, text, silent) for text, silent in _array_differences(a, array_a, b, array_b))
            if (memory := _memory(a)) is not None:
                first, other = places.setdefault(memory, (path, _memory(b)))
                if other != _memory(b):
                    found.append(Difference(path, f"no longer shares memory with {first}", silent=False))
            continue
        children = _children(a, b)
        if children is None:
            if not _same_value(a, b):
                found.append(Difference(path, f"{_short(a)} → {_short(b)}", silent=True))
            continue
        texts, pairs = children
        found.extend(Difference(path, text, silent) for text, silent in texts)
        stack.extend((f"{path}/{key}" if path else str(key), x, y) for key, x, y in reversed(pairs))
    return found


def as_array(value: Any) -> np.ndarray | None:
    """The numbers of a numpy, torch or jax array as numpy, bit for bit; None for what is no array."""
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        plain = value.detach().contiguous()
        # A tensor as its bytes: numpy has no bfloat16 of its own.
        return plain.reshape(-1).view(torch.uint8).numpy() if plain.numel() else np.empty(plain.shape, np.uint8)
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(value, jax.Array):
        is_key = jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(value) if is_key else value)
    return None


def _array_differences(a: Any, array_a: np.ndarray, b: Any, array_b: np.ndarray) -> Iterator[tuple[str, bool]]:
    if str(a.dtype) != str(b.dtype) or a.dtype != b.dtype:
        yield f"{a.dtype} → {b.dtype}", not _same_numbers(array_a, array_b)
    elif tuple(a.shape) != tuple(b.shape):
        yield f"shape {tuple(a.shape)} → {tuple(b.shape)}", True
    elif _bits(array_a) != _bits(array_b):
        yield "other numbers in the array", True
    for attribute in ("requires_grad", "weak_type"):
        if getattr(a, attribute, None) != getattr(b, attribute, None):
            yield f"{attribute} {getattr(a, attribute)} → {getattr(b, attribute)}", False


def _same_numbers(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether an array of another dtype still has the numbers, or at least the bytes."""
    if a.shape != b.shape:
        return False
    if b.dtype.kind == "V" and b.dtype.itemsize == a.dtype.itemsize:
        return _bits(a) == _bits(b)
    try:
        return _bits(b.astype(a.dtype)) == _bits(a)
    except (TypeError, ValueError):
        return False


def _bits(array: np.ndarray) -> object:
    if array.dtype.kind == "O":
        return [_same_bits(item) for item in array.reshape(-1).tolist()]
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).tobytes() if array.nbytes else b""


def _memory(value: Any) -> object:
    """Equal for arrays in the same memory; None where that cannot be told or does not matter."""
    if isinstance(value, np.ndarray) and value.nbytes:
        return "numpy", value.__array_interface__["data"][0], value.shape, value.strides
    if hasattr(value, "data_ptr") and value.numel():
        return "torch", value.data_ptr(), tuple(value.shape), value.stride()
    return None


def _children(a: Any, b: Any) -> tuple[list[tuple[str, bool]], list[tuple[object, Any, Any]]] | None:
    if isinstance(a, Mapping):
        texts: list[tuple[str, bool]] = []
        if list(map(_same_bits, a)) != list(map(_same_bits, b)):
            by_bits = {_same_bits(key): key for key in b}
            by_text = {str(key): key for key in b}
            if len(a) == len(b) and all(_same_bits(key) in by_bits for key in a):
                texts, b = [("other order of keys", False)], {key: b[by_bits[_same_bits(key)]] for key in a}
            elif len(a) == len(b) and all(str(key) in by_text for key in a):
                changed = next(key for key in a if _same_bits(key) not in by_bits)
                texts = [(f"key {_short(changed)} → {_short(by_text[str(changed)])}", False)]
                b = {key: b[by_text[str(key)]] for key in a}
            else:
                return [(f"keys {_short(list(a))} → {_short(list(b))}", True)], []
        return texts, list(zip(a, a.values(), b.values(), strict=True))
    if isinstance(a, list | tuple | deque):
        if len(a) != len(b):
            return [(f"{len(a)} items → {len(b)}", True)], []
        return [], list(zip(range(len(a)), a, b, strict=True))
    if dataclasses.is_dataclass(a) and not isinstance(a, type):
        names = [field.name for field in dataclasses.fields(a)]
        return [], [(name, getattr(a, name), getattr(b, name)) for name in names]
    return None


def _same_value(a: Any, b: Any) -> bool:
    if isinstance(a, set | frozenset):
        return sorted(map(repr, map(_same_bits, a))) == sorted(map(repr, map(_same_bits, b)))
    return bool(_same_bits(a) == _same_bits(b))


def _same_bits(value: Any) -> object:
    """The type with the value, and floats as their bits: 1, 1.0 and True differ here, and so do 0.0 and −0.0."""
    if isinstance(value, float):
        return float, struct.pack("<d", value)
    if isinstance(value, complex):
        return complex, struct.pack("<dd", value.real, value.imag)
    if isinstance(value, tuple | frozenset):
        return type(value), *map(_same_bits, value)
    return type(value), value


def _lost(a: object, b: object) -> bool:
    """Whether nothing is left of a value that held something."""
    return b is None and a is not None and not (isinstance(a, list | tuple | dict | set) and not a)


def _name(value: object) -> str:
    if isinstance(value, np.generic | np.ndarray):
        return f"np.{type(value).__name__}"
    cls = type(value)
    framework = cls.__module__.partition(".")[0]
    if framework in {"jax", "jaxlib"}:
        return "jax.Array"
    return f"{framework}.{cls.__name__}" if framework == "torch" else str(value if value is None else cls.__name__)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "…"
