"""Values and dtypes: which dtypes are converted, casts that say what they lose, and equality to the bit."""

from __future__ import annotations

from typing import Final

import ml_dtypes
import numpy as np

from pytreeckpt.arrays import AnyArray
from pytreeckpt.dtypes import AnyDType
from pytreeckpt.geometry import Shape


def dtype_named(name: str) -> AnyDType:
    """The dtype of numpy or ml_dtypes with this name. Raises `ValueError` for a name that neither has."""
    if name in _NAMES:
        return _NAMES[name]
    raise ValueError(f"{name!r} is no dtype of arrays that are converted; there is {', '.join(sorted(_NAMES))}")


_NUMPY: Final = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)
_ML: Final = ("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")
_NAMES: Final[dict[str, AnyDType]] = {
    **{name: np.dtype(name) for name in _NUMPY},
    **{name: np.dtype(getattr(ml_dtypes, name)) for name in _ML if hasattr(ml_dtypes, name)},
}


def is_float(dtype: AnyDType) -> bool:
    """Whether a dtype is of real floats, ml_dtypes' too."""
    return dtype.kind == "f" or (dtype.kind == "V" and dtype.name.startswith(("bfloat", "float")))


def cast_to(array: AnyArray, dtype: AnyDType, *, keeps_nonzero: bool = False) -> AnyArray:
    """The array in another dtype, rounded. Raises `ValueError` for integers that the dtype does not hold, for finite
    values that it has as infinite or NaN only, and with `keeps_nonzero` for those that would become 0.
    """
    if array.dtype == dtype:
        return array
    with np.errstate(all="ignore"):
        cast = array.astype(dtype)
        if dtype.kind in "biu" and array.size and not bool(np.all(cast.astype(array.dtype) == array)):
            raise ValueError(f"{array.dtype} values that {dtype} cannot hold")
    require_kept(array, cast, keeps_nonzero=keeps_nonzero)
    return cast


def require_kept(before: AnyArray, after: AnyArray, *, keeps_nonzero: bool = False) -> None:
    """Raise `ValueError` where finite values have become infinite or NaN, and with `keeps_nonzero` where others than 0
    have become 0.
    """
    if after.dtype.kind in "biu":
        return
    finite = np.isfinite(after)
    if not finite.all() and (number := int(np.count_nonzero(np.isfinite(before) & ~finite))):
        raise ValueError(f"{number} finite values are beyond what {after.dtype} holds, and would be infinite or NaN")
    if keeps_nonzero and (number := int(np.count_nonzero((before != 0) & (after == 0)))):
        raise ValueError(
            f"{number} values are too small for {after.dtype}, and would be 0, by which a step divides; keep second "
            "moments in a wider dtype"
        )


def filled(shape: Shape, value: float, dtype: AnyDType) -> AnyArray:
    """An array of one value, rounded. Raises `ValueError` for a value that the dtype does not hold."""
    one: AnyArray = cast_to(np.asarray(value, np.float64), dtype)
    return np.full(shape, one, dtype)


def same_bits(a: AnyArray, b: AnyArray) -> bool:
    """Whether two arrays have the same shape, dtype and bits."""
    if a is b:
        return True
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    # Integers of the same width: NaNs are compared by their bits, and -0.0 is not 0.0.
    if a.dtype.itemsize in {1, 2, 4, 8}:
        bits = np.dtype(f"u{a.dtype.itemsize}")
        return bool(np.array_equal(np.ascontiguousarray(a).view(bits), np.ascontiguousarray(b).view(bits)))
    return bool(np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes())
