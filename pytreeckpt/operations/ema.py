"""Exponential moving averages of trees, for numpy, torch and JAX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from pytreeckpt.adapters import Blend, active_adapters
from pytreeckpt.arrays import AnyArray, stored_order
from pytreeckpt.errors import StructureMismatchError
from pytreeckpt.operations.arithmetic import real_dtype, rounded
from pytreeckpt.operations.pairing import Pairs

_SHOWN: Final = 20


def ema_update(ema: Any, tree: Any, decay: Any) -> Any:
    """The moving average after one more step: ema + (1 − decay)·(x − ema) for each array x of floats.

        ema = ptc.ema_update(ema, model.state_dict(), 0.999)

    `ema` and `tree`: the same structure of numpy, torch or JAX arrays of the same shapes, where a dict is any mapping
    and a list any sequence; begin with a copy of the first tree. `decay`: a number from 0 to 1; in JAX, also a traced
    one. Returns the new average: of numpy and JAX new arrays, inside `jax.jit` too; tensors of torch are changed where
    they are, without a gradient, as in `torch.optim.swa_utils`, and a tensor that stands at several places changes
    once. Give tensors of their own (`{name: value.detach().clone() …}`), or the state dict of a copy of the model,
    whose parameters then follow.

    The dtype is that of `ema`: computed in float32 for narrower ones and rounded once, else in its own, with x
    converted first; so an average in float32 of a model in bfloat16 is just that. `1 − decay` is computed in float64.
    Where x equals the average, it stays what it is, to the bit. Integers, bools, and all plain values are those of
    `tree`.

    The formula is that of torch.optim.swa_utils (`lerp` from ema to x by 1 − decay), timm.utils.ModelEmaV3 and
    diffusers' EMAModel; decay·ema + (1 − decay)·x is the same but for rounding. Complex numbers are pairs of floats.
    Raises, before anything is changed, `StructureMismatchError` for trees that differ, `UnsupportedTypeError` for what
    is no array, container or plain value, and `ValueError` for a decay that is none.
    """
    weight: Any = 1 - float(decay) if isinstance(decay, int | float | np.generic) else 1 - decay
    if isinstance(weight, float) and not 0 <= weight <= 1:
        raise ValueError(f"decay={decay!r}: it is a number from 0 to 1, such as 0.999")
    known = [_NUMPY, *(each.blend for each in active_adapters() if each.blend is not None)]
    pairs = Pairs(known, ema, tree)
    if pairs.different:
        more = [f"and {len(pairs.different) - _SHOWN} more"] if len(pairs.different) > _SHOWN else []
        raise StructureMismatchError(
            "the average and the tree differ; begin with a copy of the tree:\n  "
            + "\n  ".join([*pairs.different[:_SHOWN], *more]),
            mismatched=pairs.different,
        )
    results = [value for _, value, _ in pairs.leaves]
    for blend in known:
        places = [place for place, (_, _, of) in enumerate(pairs.leaves) if of is blend]
        new = blend.blend([pairs.leaves[place][:2] for place in places], weight) if places else []
        for place, value in zip(places, new, strict=True):
            results[place] = value
    return pairs.rebuilt(results)


def warmed_up(decay: float, step: int) -> float:
    """A smaller decay for the first steps, at which an average would otherwise stay near where it began:
    min(decay, (1 + step) / (10 + step)), as tf.train.ExponentialMovingAverage and diffusers' EMAModel have it. `step`
    counts the updates so far, from 0.
    """
    return min(decay, (1 + step) / (10 + step))


# numpy.


def _kind_numpy(value: object) -> str | None:
    if not isinstance(value, np.ndarray):
        return None
    real = real_dtype(value.dtype)
    return "other" if real is None else "real" if real == value.dtype else "complex"


def _blend_numpy(pairs: Sequence[tuple[Any, Any]], weight: Any) -> list[object]:
    return [_moved(ema, array, float(weight)) for ema, array in pairs]


def _moved(ema: AnyArray, array: AnyArray, weight: float) -> AnyArray:
    real = real_dtype(ema.dtype)
    if real is None:
        return np.array(array, order="K")
    stored, axes = stored_order(ema)
    turned = array if axes is None else array.transpose(axes)
    # Complex ones as pairs of floats: as complex numbers, the weight would have an imaginary part, and ∞·0 is NaN.
    start = np.ascontiguousarray(stored).reshape(-1).view(real)
    flat: AnyArray = np.ascontiguousarray(turned).reshape(-1)
    end = flat.view(real_dtype(flat.dtype) or real)
    wide: Any = real.type if real.itemsize >= 4 else np.float32
    with np.errstate(all="ignore"):
        first = start.astype(wide)
        moved = end.astype(wide)
        moved -= first
        moved *= wide(weight)
        moved += first
    result = rounded(moved, real).view(ema.dtype).reshape(stored.shape)
    return result if axes is None else result.transpose(np.argsort(axes))


_NUMPY: Final = Blend(_kind_numpy, _blend_numpy)
