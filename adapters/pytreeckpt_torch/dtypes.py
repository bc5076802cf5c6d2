"""Which numpy dtype stands for which torch dtype, and how the bits of one become the other without a copy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import ml_dtypes
import numpy as np
import torch

AnyDType = np.dtype[np.generic]
AnyArray = np.ndarray[tuple[int, ...], AnyDType]

_NUMPY = (
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)
_ML_DTYPES = (
    *("bfloat16", "complex32"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
)
# Their values are not in the tensor alone: a quantizer holds the scale.
_QUANTIZED = ("qint8", "qint32", "quint8", "quint4x2", "quint2x4")


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a torch dtype without the prefix `torch.`; of several names (`half`, `float16`) the canonical one."""
    return str(dtype).removeprefix("torch.")


def _numpy_dtypes() -> dict[torch.dtype, AnyDType]:
    # Older versions of either package lack some of them.
    table: dict[torch.dtype, AnyDType] = {getattr(torch, name): np.dtype(name) for name in _NUMPY}
    table |= {
        getattr(torch, name): np.dtype(getattr(ml_dtypes, name))
        for name in _ML_DTYPES
        if hasattr(torch, name) and hasattr(ml_dtypes, name)
    }
    return table


DTYPES: Final[Mapping[str, torch.dtype]] = {
    dtype_name(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)
}
"""Every dtype of this torch by its name."""

NUMPY_OF: Final[Mapping[torch.dtype, AnyDType]] = _numpy_dtypes()
"""The numpy dtype with the same values, in native byte order."""

TORCH_OF: Final[Mapping[AnyDType, torch.dtype]] = {dtype: torch_dtype for torch_dtype, dtype in NUMPY_OF.items()}

PACKED: Final[Mapping[str, torch.dtype]] = {
    name: dtype for name, dtype in DTYPES.items() if dtype not in NUMPY_OF and name not in _QUANTIZED
}
"""The dtypes whose items numpy can hold as bits only."""

# Tensors of these dtypes share their memory with numpy in every version of torch; complex128 needs no other.
_CARRIERS: Final[Mapping[int, tuple[torch.dtype, AnyDType]]] = {
    1: (torch.uint8, np.dtype(np.uint8)),
    2: (torch.int16, np.dtype(np.int16)),
    4: (torch.int32, np.dtype(np.int32)),
    8: (torch.int64, np.dtype(np.int64)),
    16: (torch.complex128, np.dtype(np.complex128)),
}


def bits_dtype(dtype: torch.dtype) -> AnyDType:
    """The unsigned integer dtype that holds the items of a packed dtype."""
    return np.dtype(f"u{dtype.itemsize}")


def to_carrier(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as a dtype that every operation on memory knows."""
    return tensor.view(_CARRIERS[tensor.dtype.itemsize][0])


def as_numpy(tensor: torch.Tensor, dtype: AnyDType) -> AnyArray:
    """The memory of a CPU tensor without a gradient or lazy bit, as numpy of a dtype of the same itemsize; no copy."""
    array: np.ndarray[Any, Any] = to_carrier(tensor).numpy()
    return array.view(dtype)


def as_torch(array: AnyArray, dtype: torch.dtype) -> torch.Tensor:
    """The memory of a writable array as a tensor of a dtype of the same itemsize; no copy."""
    return torch.from_numpy(array.view(_CARRIERS[dtype.itemsize][1])).view(dtype)
