"""Strided tensors, parameters and buffers: to fields, from fields, and as leaves of a template.

A tensor is stored as its items and whether it requires a gradient. What else hangs on one is not stored: its place in
a graph (a tensor that was computed comes back as a leaf), `.grad`, hooks, its device, and attributes set by anyone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import torch

from pytreeckpt import ClassKind, Expansion, InPlace, LeafTemplate, ObjectType, UnsupportedTypeError
from pytreeckpt_torch.dtypes import (
    NUMPY_OF,
    PACKED,
    TORCH_OF,
    AnyArray,
    AnyDType,
    as_numpy,
    as_torch,
    bits_dtype,
    dtype_name,
)
from pytreeckpt_torch.staging import is_lazy, tensor_source, view_identity

TENSOR: Final = ObjectType(ClassKind.WRAPPER, "torch.Tensor", ("data", "requires_grad"))
PARAMETER: Final = ObjectType(ClassKind.WRAPPER, "torch.nn.Parameter", ("data", "requires_grad"))
BUFFER: Final = ObjectType(ClassKind.WRAPPER, "torch.nn.Buffer", ("data", "requires_grad", "persistent"))
PACKED_TENSOR: Final = ObjectType(
    ClassKind.WRAPPER, "torch.PackedTensor", ("data", "dtype", "shape", "requires_grad", "parameter")
)


def expand_tensor(tensor: torch.Tensor) -> Expansion:
    """The fields of a strided tensor that `check_storable` has passed."""
    requires_grad = tensor.requires_grad
    identity = view_identity(tensor)
    dtype = NUMPY_OF.get(tensor.dtype)
    if dtype is None:
        if is_buffer(tensor):
            raise UnsupportedTypeError(f"a Buffer of dtype {tensor.dtype} cannot be stored; store buffer.data")
        data = tensor_source(tensor, bits_dtype(tensor.dtype), identity)
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        name = dtype_name(tensor.dtype)
        return Expansion(PACKED_TENSOR, [data, name, tuple(tensor.shape), requires_grad, is_parameter])
    data = tensor_source(tensor, dtype, identity)
    if is_buffer(tensor):
        return Expansion(BUFFER, [data, requires_grad, bool(getattr(tensor, "persistent", True))])
    return Expansion(PARAMETER if type(tensor) is torch.nn.Parameter else TENSOR, [data, requires_grad])


def is_buffer(tensor: torch.Tensor) -> bool:
    """Whether a tensor was made by `torch.nn.Buffer`, which marks a plain tensor."""
    return isinstance(tensor, torch.nn.Buffer)


def from_array(array: AnyArray) -> torch.Tensor:
    """A numpy array that nobody else holds as a tensor, without a copy where its byte order and flags allow it."""
    native: AnyDType = array.dtype.newbyteorder("=")
    dtype = TORCH_OF.get(native)
    if dtype is None:
        raise UnsupportedTypeError(f"torch has no dtype for numpy's {array.dtype}")
    if array.dtype != native or not array.flags.writeable or min(array.strides, default=0) < 0:
        # In memory order, but never backwards, which torch does not have.
        array = array.astype(native)
    return as_torch(array, dtype)


def build_tensor(fields: Mapping[str, object]) -> torch.Tensor:
    """A `torch.Tensor` from its fields. Raises `TypeError` or `ValueError` for what makes none, as all of these."""
    return _tensor(fields["data"]).requires_grad_(_flag(fields, "requires_grad"))


def build_parameter(fields: Mapping[str, object]) -> torch.Tensor:
    """A `torch.nn.Parameter` from its fields."""
    return torch.nn.Parameter(_tensor(fields["data"]), requires_grad=_flag(fields, "requires_grad"))


def build_buffer(fields: Mapping[str, object]) -> torch.Tensor:
    """A `torch.nn.Buffer` from its fields."""
    return _buffer(
        _tensor(fields["data"]),
        requires_grad=_flag(fields, "requires_grad"),
        persistent=_flag(fields, "persistent"),
    )


def build_packed(fields: Mapping[str, object]) -> torch.Tensor:
    """A tensor of a dtype that numpy lacks. Its shape is that of the data: a part of a tensor tells the whole's."""
    name = fields["dtype"]
    if not isinstance(name, str) or not isinstance(fields["shape"], tuple):
        raise TypeError("the dtype is no str, or the shape no tuple")
    if name not in PACKED:
        raise UnsupportedTypeError(
            f'torch {torch.__version__} has no dtype {name}; use a newer one, or restore with to="numpy"'
        )
    data = _tensor(fields["data"])
    if NUMPY_OF.get(data.dtype) != bits_dtype(PACKED[name]):
        raise ValueError(f"items of {data.dtype} do not hold the bits of {name}")
    tensor = data.view(PACKED[name])
    requires_grad = _flag(fields, "requires_grad")
    if _flag(fields, "parameter"):
        return torch.nn.Parameter(tensor, requires_grad=requires_grad)
    return tensor.requires_grad_(requires_grad)


def template(tensor: torch.Tensor) -> LeafTemplate:
    """What a strided tensor wants: its shape, dtype, class, `requires_grad`, and device (of a meta tensor: the CPU)."""
    name = dtype_name(tensor.dtype)
    packed = name in PACKED
    dtype = bits_dtype(tensor.dtype) if packed else NUMPY_OF[tensor.dtype]
    like = _liken(tensor)
    return LeafTemplate(
        shape=tuple(tensor.shape),
        dtype=dtype,
        place=lambda array: like(as_torch(_writable(array), tensor.dtype)),
        refuse=lambda type_, attributes: _refuse(name if packed else None, type_, attributes),
        in_place=_in_place(tensor, dtype),
    )


def _in_place(tensor: torch.Tensor, dtype: AnyDType) -> InPlace | None:
    """How to fill a tensor where it is; None for one without memory of its own."""
    data = tensor.detach()
    if tensor.is_meta or is_lazy(tensor):
        return None
    space = str(tensor.device)
    strides = tuple(stride * tensor.element_size() for stride in tensor.stride())
    if tensor.device.type == "cpu":
        return InPlace(space, data.data_ptr(), strides, as_numpy(data, dtype), lambda _: _changed(tensor))

    def copied(array: AnyArray) -> torch.Tensor:
        data.copy_(as_torch(_writable(array), tensor.dtype))
        return tensor

    return InPlace(space, data.data_ptr(), strides, None, copied)


def _changed(tensor: torch.Tensor) -> torch.Tensor:
    # What autograd may have kept of the tensor for a backward pass is no longer what it was.
    if not tensor.is_inference():
        torch.autograd.graph.increment_version(tensor)
    return tensor


def _liken(tensor: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """What makes a tensor like this one from a fresh one on the CPU. It does not keep the tensor itself."""
    device = torch.device("cpu") if tensor.is_meta else tensor.device
    requires_grad = tensor.requires_grad
    if is_buffer(tensor):
        persistent = bool(getattr(tensor, "persistent", True))
        return lambda new: _buffer(new.to(device), requires_grad=requires_grad, persistent=persistent)
    if type(tensor) is torch.nn.Parameter:
        return lambda new: torch.nn.Parameter(new.to(device), requires_grad=requires_grad)
    return lambda new: new.to(device).requires_grad_(requires_grad)


def _refuse(packed: str | None, type_: ObjectType | None, attributes: Mapping[str, object]) -> str | None:
    stored = attributes["dtype"] if type_ == PACKED_TENSOR else None
    if stored != packed:
        return f"the template has {_items_of(packed)}, the checkpoint {_items_of(stored)}"
    if type_ is not None and type_.name == "jax.PRNGKeyArray":
        return "the checkpoint has a typed PRNG key of JAX here, which is no tensor"
    return None


def _items_of(packed: object) -> str:
    return "plain numbers" if packed is None else f"the bits of torch.{packed}"


def _tensor(data: object) -> torch.Tensor:
    """A tensor of its own, so that what is done to it is done to no other, over the memory of `data`."""
    if isinstance(data, torch.Tensor):
        return data.detach()
    if not isinstance(data, np.ndarray):
        raise TypeError(f"a {type(data).__name__} is no array")
    return from_array(data)


def _buffer(tensor: torch.Tensor, *, requires_grad: bool, persistent: bool) -> torch.Tensor:
    return torch.nn.Buffer(tensor.requires_grad_(requires_grad), persistent=persistent)


def _flag(fields: Mapping[str, object], name: str) -> bool:
    value = fields[name]
    if not isinstance(value, bool):
        raise TypeError(f"{name} is a {type(value).__name__}, not a bool")
    return value


def _writable(array: AnyArray) -> AnyArray:
    return array if array.flags.writeable else array.copy("K")
