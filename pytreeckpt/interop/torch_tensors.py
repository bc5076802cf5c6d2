"""The records of strided tensors over the storages of a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from pytreeckpt.arrays import AnyArray
from pytreeckpt.errors import CorruptionError
from pytreeckpt.geometry import whole
from pytreeckpt.interop.constructors_numpy import shape_of
from pytreeckpt.interop.foreign import Change, ForeignArray, Piece, reach
from pytreeckpt.interop.pickle_values import Instance, Ledger
from pytreeckpt.interop.registered import registered
from pytreeckpt.interop.torch_storages import (
    BITS_OF,
    ITEM_NBYTES,
    NUMPY_OF,
    QUANTIZED,
    Storage,
    conjugate,
    dtype_of,
    is_complex,
    negate,
    swap,
)
from pytreeckpt.objects import ClassKind, ObjectType, Record, fields_of, record_expansion

_MAX_OFFSET: Final = 1 << 63


def own(name: str, **values: object) -> Record:
    """A record of a type of this reader."""
    return Record(ObjectType(ClassKind.RECORD, name, tuple(values)), tuple(values.values()))


def fields_in(value: object) -> Mapping[str, Any]:
    """The fields of a record; of anything else, none."""
    return fields_of(value) if isinstance(value, Record) else {}


def name_of(value: object) -> str | None:
    """The name of the type of a record."""
    return record_expansion(value).type.name if isinstance(value, Record) else None


def damaged(what: str) -> CorruptionError:
    """The error for what torch does not write."""
    return CorruptionError(what, rule="torch")


def _view(
    storage: Storage, offset: object, size: object, stride: object, dtype: str, *, conj: bool = False, neg: bool = False
) -> ForeignArray:
    """The items of a view of a storage. `offset` and `stride` are in items."""
    shape, steps = shape_of(size), shape_of(stride)
    if shape is None or steps is None or len(shape) != len(steps):
        raise damaged("the size and the strides of a tensor are not tuples of as many integers")
    if type(offset) is not int or not 0 <= offset < _MAX_OFFSET:
        raise damaged("the offset of a tensor in its storage is not an integer from 0 on")
    items = dtype_of(dtype)
    if 0 in shape:
        return ForeignArray(items, shape, (), ("torch", object()))
    itemsize = ITEM_NBYTES[dtype]
    low = offset * itemsize
    strides = tuple([step * itemsize for step in steps])
    # Of a storage within a larger source, only its own bytes.
    high = low + reach(shape, strides, itemsize)[1]
    if high > storage.nbytes:
        raise damaged(f"a tensor lies at bytes {low} to {high} of a storage of {storage.nbytes} bytes")
    identity = ("torch", storage.key, low, shape, strides, dtype, conj, neg)
    change = _change(storage, dtype, conj=conj, neg=neg) if storage.swapped or conj or neg else None
    piece = Piece(whole(shape), storage.source, storage.start + low, strides, change)
    return ForeignArray(items, shape, (piece,), identity)


def _change(storage: Storage, dtype: str, *, conj: bool, neg: bool) -> Change | None:
    """What makes a storage's items what they are meant to be; None where they are."""
    items = dtype_of(dtype)
    steps: list[Callable[[AnyArray], AnyArray]] = []
    if storage.swapped and items.itemsize > 1:
        steps.append(swap)
    if conj:
        if not is_complex(items):
            raise damaged(f"a tensor of {dtype} is said to be conjugated")
        steps.append(conjugate)
    if neg:
        if dtype not in _SIGNED:
            raise damaged(f"a tensor of {dtype} is said to be negated")
        steps.append(negate)
    return Change(items, tuple(steps)) if steps else None


_SIGNED: Final = frozenset(NUMPY_OF) - {"bool", "float8_e8m0fnu"}


def tensor(
    storage: Storage,
    offset: object,
    size: object,
    stride: object,
    *,
    dtype: str | None = None,
    requires_grad: object = False,
    metadata: object = None,
) -> Record:
    """The record of a strided tensor over a storage."""
    if type(requires_grad) is not bool:
        raise damaged("whether a tensor requires a gradient is not True or False")
    flags = metadata or {}
    if type(flags) is not dict or not flags.keys() <= {"conj", "neg"}:
        raise damaged("the metadata of a tensor has other entries than conj and neg")
    name = dtype or storage.dtype
    conj, neg = bool(flags.get("conj")), bool(flags.get("neg"))
    data = _view(storage, offset, size, stride, name, conj=conj, neg=neg)
    return tensor_record(data, name, requires_grad=requires_grad)


def tensor_record(data: ForeignArray, dtype: str, *, requires_grad: bool = False) -> Record:
    """The record of a tensor with these items, of torch's dtype of this name."""
    if dtype in BITS_OF:
        is_parameter = False
        return registered("torch.PackedTensor", data, dtype, data.shape, requires_grad, is_parameter)
    return registered("torch.Tensor", data, requires_grad)


def whole_storage(storage: Storage, ledger: Ledger | None = None) -> Record:
    """A storage that stands in the tree itself, as a tensor of one axis."""
    if ledger is not None:
        ledger.remarks["a storage became a tensor of one axis"] += 1
    name = QUANTIZED.get(storage.dtype, storage.dtype)
    return tensor(storage, 0, (storage.nbytes // dtype_of(name).itemsize,), (1,), dtype=name)


def dtype_name(value: object) -> str:
    """The name of a dtype of torch."""
    if name_of(value) != "torch.dtype":
        raise damaged("the dtype of a tensor is none of torch's")
    return str(fields_in(value)["name"])


def storage_of(value: object) -> Storage:
    """The storage that a tensor is over."""
    if type(value) is not Storage:
        raise damaged(f"a tensor is over a {type(value).__name__} instead of a storage")
    return value


def exactly(instance: Instance, low: int, high: int) -> tuple[Any, ...]:
    """The arguments, if they are so many and there is nothing else."""
    if not low <= len(instance.args) <= high or instance.keywords or instance.elements or instance.pairs:
        raise damaged(f"a tensor is made of {len(instance.args)} arguments instead of {low} to {high}")
    return instance.args
