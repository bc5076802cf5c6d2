"""The storages of torch's files and their dtypes, and items that have to be changed on their way out of a file.

Sources: `torch/storage.py` (storage classes and dtypes), `torch/csrc/utils/byte_order.cpp`, and
`aten/src/ATen/ConjugateFallback.cpp`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np

from pytreeckpt.dtypes import AnyDType
from pytreeckpt.reading import RangedSource

_NUMPY: Final = (
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)
_ML_DTYPES: Final = (
    *("bfloat16", "complex32"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
)
_PACKED: Final[Mapping[str, int]] = {
    "float4_e2m1fn_x2": 1,
    "bits8": 1,
    "bits16": 2,
    "bits1x8": 1,
    "bits2x4": 1,
    "bits4x2": 1,
    "complex32": 4,
    **{f"{sign}int{width}": 1 for sign in ("u", "") for width in range(1, 8)},
}
QUANTIZED: Final[Mapping[str, str]] = {
    "qint8": "int8",
    "quint8": "uint8",
    "qint32": "int32",
    "quint4x2": "uint8",
    "quint2x4": "uint8",
}
"""The dtypes of quantized tensors, and those of the integers that they hold."""
SEVERAL_PER_BYTE: Final = frozenset(["quint4x2", "quint2x4"])

NUMPY_OF: Final[Mapping[str, AnyDType]] = {
    **{name: np.dtype(name).newbyteorder("<") for name in _NUMPY},
    **{name: np.dtype(getattr(ml_dtypes, name)) for name in _ML_DTYPES if hasattr(ml_dtypes, name)},
}
"""The numpy dtype with the same values as one of torch, by the name of that."""
BITS_OF: Final[Mapping[str, AnyDType]] = {
    name: np.dtype(f"<u{itemsize}") for name, itemsize in _PACKED.items() if name not in NUMPY_OF
}
"""The dtype that holds the bits of a dtype of torch that numpy lacks."""

DTYPE_NAMES: Final[Mapping[str, str]] = {
    **{name: name for name in (*_NUMPY, *_ML_DTYPES, *_PACKED, *QUANTIZED)},
    "half": "float16",
    "float": "float32",
    "double": "float64",
    "short": "int16",
    "int": "int32",
    "long": "int64",
    "chalf": "complex32",
    "cfloat": "complex64",
    "cdouble": "complex128",
}
"""Every name of a dtype in the module torch, and the canonical one."""

STORAGE_DTYPES: Final[Mapping[str, str]] = {
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "BoolStorage": "bool",
    "HalfStorage": "float16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "BFloat16Storage": "bfloat16",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "QUInt8Storage": "quint8",
    "QInt8Storage": "qint8",
    "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
    "UntypedStorage": "uint8",
}
"""The classes of storages, and the dtypes of their items."""


def dtype_of(name: str) -> AnyDType:
    """The numpy dtype of the items of a dtype of torch: its own, that of its bits, or that of its integers.

    Raises `KeyError` for a name that is not in `DTYPE_NAMES`.
    """
    name = QUANTIZED.get(name, name)
    return NUMPY_OF[name] if name in NUMPY_OF else BITS_OF[name]


ITEM_NBYTES: Final[Mapping[str, int]] = {name: dtype_of(name).itemsize for name in DTYPE_NAMES.values()}
"""How many bytes an item of each dtype of torch takes."""


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """A storage: `nbytes` bytes at `start` of a source, which has as many, shared by all storages and views with this
    key: no other storage of anything that is read has it.

    `dtype` is the name of torch's dtype; `swapped` says that its numbers are big-endian.
    """

    key: Hashable
    source: RangedSource
    start: int
    nbytes: int
    dtype: str
    swapped: bool = False


def swap(items: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Numbers of the other byte order; of complex ones, both."""
    itemsize = items.dtype.itemsize
    number = itemsize // 2 if is_complex(items.dtype) else itemsize
    return items.view(f"u{number}").byteswap().view(items.dtype) if number > 1 else items


def conjugate(items: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Complex numbers with the sign of their imaginary part turned, in bits."""
    width = items.dtype.itemsize // 2
    parts = items.view(f"u{width}").reshape(-1, 2).copy()
    parts[:, 1] ^= np.array(1 << (8 * width - 1), f"u{width}")
    return parts.reshape(-1).view(items.dtype)


def negate(items: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Numbers with their sign turned: of floats in bits, of integers by value."""
    dtype = items.dtype
    if dtype.kind in "iub":
        negative: np.ndarray[Any, Any] = np.negative(items)
        return negative
    width = dtype.itemsize // 2 if is_complex(dtype) else dtype.itemsize
    turned: np.ndarray[Any, Any] = (items.view(f"u{width}") ^ np.array(1 << (8 * width - 1), f"u{width}")).view(dtype)
    return turned


def is_complex(dtype: AnyDType) -> bool:
    """Whether items are pairs of numbers."""
    return dtype.kind == "c" or dtype == NUMPY_OF.get("complex32")
