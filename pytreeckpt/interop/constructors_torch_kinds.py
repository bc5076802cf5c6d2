"""Tensors in a pickle of torch that are not strided: sparse, quantized, nested and meta tensors.

What pytreeckpt cannot hold becomes a record of its own, with the data in it:

- `torch:QuantizedTensor` with `data` (a tensor of the integers), `dtype`, `scheme`, `scale`, `zero_point`, `axis` and
  `shape`;
- `torch:NestedTensor` with `buffer`, `sizes`, `strides`, `offsets`; `torch:MetaTensor`, which has no values, with
  `dtype`, `shape`, `strides`, `requires_grad`.

Source: `torch/_utils.py` (`_rebuild_*`).
"""

from __future__ import annotations

from typing import Final

from pytreeckpt.interop.constructors_numpy import shape_of
from pytreeckpt.interop.pickle_values import Instance, Ledger
from pytreeckpt.interop.registered import registered
from pytreeckpt.interop.torch_storages import QUANTIZED, SEVERAL_PER_BYTE
from pytreeckpt.interop.torch_tensors import (
    damaged,
    dtype_name,
    exactly,
    fields_in,
    name_of,
    own,
    storage_of,
    tensor,
    whole_storage,
)

_COMPRESSED: Final = frozenset(["sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc"])
_STRIDED: Final = frozenset(["torch.Tensor", "torch.nn.Parameter", "torch.nn.Buffer", "torch.PackedTensor"])
# torch does not pickle whether a sparse tensor requires one.
_NO_GRADIENT: Final = False


def rebuild_sparse_tensor(instance: Instance, _ledger: Ledger) -> object:
    """`(layout, (indices, values, size[, is_coalesced]))`, or `(layout, (compressed, plain, values, size))`."""
    layout, data = exactly(instance, 2, 2)
    layout = fields_in(layout).get("name") if name_of(layout) == "torch.layout" else None
    coalesced: object = None
    indices: tuple[object, ...]
    match data:
        case (plain, values, size) if layout == "sparse_coo":
            indices = (plain,)
        case (plain, values, size, None | bool() as coalesced) if layout == "sparse_coo":
            indices = (plain,)
        case (compressed, plain, values, size) if layout in _COMPRESSED:
            indices = (compressed, plain)
        case _:
            raise damaged(f"a sparse tensor of the layout {layout!r} is not made of the parts that it needs")
    shape = shape_of(size)
    if shape is None or not all(name_of(part) == "torch.Tensor" for part in (*indices, values)):
        raise damaged("the indices and values of a sparse tensor are no tensors, or its shape is none")
    return registered("torch.SparseTensor", values, indices, layout, shape, bool(coalesced), _NO_GRADIENT)


def rebuild_qtensor(instance: Instance, ledger: Ledger) -> object:
    """`(storage, offset, size, stride, (scheme, …), requires_grad, backward_hooks)`."""
    storage, offset, size, stride, params, requires_grad, _ = exactly(instance, 7, 7)
    storage = storage_of(storage)
    axis: object = None
    match params:
        case (scheme, scale, zero_point):
            pass
        case (scheme, scale, zero_point, axis):
            pass
        case _:
            raise damaged("the scheme of a quantized tensor is not a tuple of it, scale and zero point")
    shape = shape_of(size)
    if storage.dtype not in QUANTIZED or shape is None or type(requires_grad) is not bool:
        raise damaged("a quantized tensor is over a storage of numbers that are not quantized, or without a shape")
    if storage.dtype in SEVERAL_PER_BYTE:
        data: object = whole_storage(storage)
    else:
        data = tensor(storage, offset, size, stride, dtype=QUANTIZED[storage.dtype])
    ledger.classes["torch:QuantizedTensor"] += 1
    return own(
        "torch:QuantizedTensor",
        data=data,
        dtype=storage.dtype,
        scheme=fields_in(scheme).get("name"),
        scale=scale,
        zero_point=zero_point,
        axis=axis,
        shape=shape,
    )


def rebuild_nested_tensor(instance: Instance, ledger: Ledger) -> object:
    """`(buffer, sizes, strides, storage_offsets)`."""
    buffer, sizes, strides, offsets = exactly(instance, 4, 4)
    if not all(name_of(part) in _STRIDED for part in (buffer, sizes, strides, offsets)):
        raise damaged("a nested tensor is not made of tensors")
    ledger.classes["torch:NestedTensor"] += 1
    return own("torch:NestedTensor", buffer=buffer, sizes=sizes, strides=strides, offsets=offsets)


def rebuild_meta_tensor(instance: Instance, ledger: Ledger) -> object:
    """`(dtype, size, stride, requires_grad)`."""
    dtype, size, stride, requires_grad = exactly(instance, 4, 4)
    shape, strides = shape_of(size), shape_of(stride)
    if shape is None or strides is None or type(requires_grad) is not bool:
        raise damaged("a meta tensor has no shape or strides")
    ledger.classes["torch:MetaTensor"] += 1
    return own("torch:MetaTensor", dtype=dtype_name(dtype), shape=shape, strides=strides, requires_grad=requires_grad)
