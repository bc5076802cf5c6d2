"""What torch's names in a pickle mean: tensors (not read yet), parameters, sizes, dtypes, devices and layouts.

The records are those of `pytreeckpt_torch`, as if the tree had been saved by pytreeckpt. A subclass
of `torch.Tensor` becomes a record of its name with the tensor as `args` and its attributes.

Sources: `torch/_utils.py` (`_rebuild_*`), `torch/_tensor.py` (`__reduce_ex__`, `_rebuild_from_type_v2`,
`__setstate__`), `torch/serialization.py` (`_get_layout`), `torch/jit/_pickle.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from pytreeckpt.arrays import AnyArray
from pytreeckpt.dtypes import AnyDType
from pytreeckpt.interop.constructors_numpy import NUMPY, shape_of
from pytreeckpt.interop.constructors_torch_kinds import (
    rebuild_meta_tensor,
    rebuild_nested_tensor,
    rebuild_qtensor,
    rebuild_sparse_tensor,
)
from pytreeckpt.interop.foreign import Change, ForeignArray, Piece
from pytreeckpt.interop.pickle_values import UNFIT, Finish, Global, Instance, Ledger, Vocabulary
from pytreeckpt.interop.registered import registered
from pytreeckpt.interop.torch_storages import (
    DTYPE_NAMES,
    NUMPY_OF,
    QUANTIZED,
    Storage,
)
from pytreeckpt.interop.torch_tensors import (
    damaged,
    dtype_name,
    exactly,
    fields_in,
    name_of,
    storage_of,
    tensor,
    whole_storage,
)
from pytreeckpt.objects import ClassKind, ObjectType, Record

_LAYOUTS: Final = ("strided", "sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc", "_mkldnn", "jagged")
_MEMORY_FORMATS: Final = ("contiguous_format", "channels_last", "channels_last_3d", "preserve_format")
_TENSOR: Final = Global("torch", "Tensor")
_PARAMETERS: Final = frozenset([Global("torch.nn.parameter", "Parameter"), Global("torch.nn", "Parameter")])
_BUFFERS: Final = frozenset([Global("torch.nn.parameter", "Buffer"), Global("torch.nn", "Buffer")])


def _rebuild_tensor(instance: Instance, _ledger: Ledger) -> object:
    """`(storage, storage_offset, size, stride)`."""
    storage, offset, size, stride = exactly(instance, 4, 4)
    return _strided(storage_of(storage), offset, size, stride)


def _strided(
    storage: Storage,
    offset: object,
    size: object,
    stride: object,
    *,
    dtype: str | None = None,
    requires_grad: object = False,
    metadata: object = None,
) -> Record:
    name = dtype or storage.dtype
    if name in QUANTIZED:
        raise damaged(f"a tensor of {name} is without its scale")
    return tensor(storage, offset, size, stride, dtype=name, requires_grad=requires_grad, metadata=metadata)


def _rebuild_tensor_v2(instance: Instance, _ledger: Ledger) -> object:
    """`(storage, storage_offset, size, stride, requires_grad, backward_hooks, metadata=None)`."""
    args = exactly(instance, 6, 7)
    metadata = args[6] if len(args) == 7 else None
    return _strided(storage_of(args[0]), *args[1:4], requires_grad=args[4], metadata=metadata)


def _rebuild_tensor_v3(instance: Instance, _ledger: Ledger) -> object:
    """`(storage, storage_offset, size, stride, requires_grad, backward_hooks, dtype, metadata=None)`."""
    args = exactly(instance, 7, 8)
    metadata = args[7] if len(args) == 8 else None
    dtype = dtype_name(args[6])
    return _strided(storage_of(args[0]), *args[1:4], dtype=dtype, requires_grad=args[4], metadata=metadata)


def _rebuild_parameter(instance: Instance, ledger: Ledger) -> object:
    """`(data, requires_grad, backward_hooks)`, and with `_with_state`, `state`."""
    args = exactly(instance, 3, 4)
    if len(args) == 4 and _attributes_of(args[3]):
        ledger.remarks["the attributes of a Parameter were left out"] += 1
    return _parameter(args[0], args[1])


def _parameter(data: object, requires_grad: object) -> object:
    if type(requires_grad) is not bool:
        raise damaged("whether a Parameter requires a gradient is not True or False")
    if not isinstance(data, Record):
        return UNFIT
    match name_of(data):
        case "torch.Tensor" | "torch.nn.Parameter" | "torch.nn.Buffer":
            return registered("torch.nn.Parameter", data["data"], requires_grad)
        case "torch.PackedTensor":
            fields = {**fields_in(data), "requires_grad": requires_grad, "parameter": True}
            return registered("torch.PackedTensor", *fields.values())
    # Such as one of a sparse tensor, which pytreeckpt does not have either.
    return UNFIT


def _attributes_of(state: object) -> dict[str, Any]:
    """The attributes that `_set_obj_state` would set."""
    attributes: dict[str, Any] = {}
    for part in state if type(state) is tuple and len(state) == 2 else (state,):
        if type(part) is dict:
            attributes |= {key: value for key, value in part.items() if type(key) is str}
    return attributes


def _from_type(instance: Instance) -> None:
    """`_rebuild_from_type_v2(function, type, arguments, state)`: the tensor inside becomes the first argument."""
    match instance.args:
        case (Global() as function, Global() as type_, tuple() as args, state):
            instance.args = (Instance(function, args, instance.offset), type_, state)


def _typed(instance: Instance, ledger: Ledger) -> object:
    match instance.args:
        case (inner, Global() as type_, state) if inner is not UNFIT:
            pass
        case _:
            return UNFIT
    attributes = _attributes_of(state)
    ledger.spend(len(attributes))
    if type_ in _BUFFERS or (type_ == _TENSOR and attributes.get("_is_buffer") is True):
        return _buffer(inner, attributes, ledger)
    if type_ == _TENSOR or type_ in _PARAMETERS:
        if attributes:
            ledger.remarks[f"the attributes of a {type_.name} were left out"] += 1
        return inner
    ledger.classes[type_.full_name] += 1
    clash = "args" in attributes
    named = {"args": (inner,)} | ({"state": attributes} if clash else attributes)
    return Record(ObjectType(ClassKind.RECORD, type_.full_name, tuple(named)), tuple(named.values()))


def _buffer(inner: object, attributes: Mapping[str, Any], ledger: Ledger) -> object:
    """`torch.nn.Buffer` marks a plain tensor."""
    if attributes.keys() - {"_is_buffer", "persistent"}:
        ledger.remarks["the attributes of a Buffer were left out"] += 1
    if name_of(inner) != "torch.Tensor":
        return UNFIT
    fields = fields_in(inner)
    persistent = bool(attributes.get("persistent", True))
    return registered("torch.nn.Buffer", fields["data"], fields["requires_grad"], persistent)


def _rebuild_device_tensor(instance: Instance, _ledger: Ledger) -> object:
    """`(data, dtype, device, requires_grad)`: a tensor of a device, as an array or a tensor of the CPU."""
    data, dtype, _, requires_grad = exactly(instance, 4, 4)
    name = dtype_name(dtype)
    items = fields_in(data).get("data") if name_of(data) == "torch.Tensor" else data
    if not isinstance(items, ForeignArray) or type(requires_grad) is not bool or name not in NUMPY_OF:
        return UNFIT
    if items.dtype == NUMPY_OF[name]:
        return registered("torch.Tensor", items, requires_grad)
    if not {items.dtype.newbyteorder("<"), NUMPY_OF[name]} <= _REAL:
        return UNFIT
    return registered("torch.Tensor", _cast(items, NUMPY_OF[name]), requires_grad)


# Those that numpy casts to each other, in silence.
_REAL: Final = frozenset(dtype for name, dtype in NUMPY_OF.items() if not name.startswith(("complex", "float8_e8m0")))


def _cast(array: ForeignArray, dtype: AnyDType) -> ForeignArray:
    """The array with its items cast when they are read: of an old file it is not known yet where they are."""

    def cast(items: AnyArray) -> AnyArray:
        # As `Tensor.to` would. XLA has bfloat16 so, by way of float32.
        with np.errstate(all="ignore"):
            return items.astype(dtype)

    def casting(piece: Piece) -> Piece:
        stored, steps = piece.change or (array.dtype, ())
        return piece._replace(change=Change(stored, (*steps, cast)))

    # A copy, so an array of its own.
    return ForeignArray(dtype, array.shape, tuple(map(casting, array.pieces)), ("torch", object()))


def _old_tensor(instance: Instance, ledger: Ledger) -> object:
    """A tensor, Variable or Parameter as torch before 0.4 has it: its data as argument, or all in its state."""
    requires_grad: object = False
    match instance.args, instance.states:
        case (), [(Storage() as storage, offset, size, stride)]:
            return _strided(storage, offset, size, stride)
        case (data,), [(bool() as requires_grad, _, _)]:
            pass
        case (), [(data, _, _, bool() as requires_grad, _)]:
            pass
        case (data,), []:
            pass
        case (data, bool() as requires_grad), []:
            pass
        case _:
            return UNFIT
    if instance.callee in _PARAMETERS:
        return _parameter(data, requires_grad if instance.states or len(instance.args) > 1 else True)
    ledger.spend(1)
    if name_of(data) != "torch.Tensor":
        return UNFIT
    return registered("torch.Tensor", fields_in(data)["data"], requires_grad)


def _size(instance: Instance, _ledger: Ledger) -> object:
    shape = shape_of(instance.args[0]) if len(instance.args) == 1 else () if not instance.args else None
    return UNFIT if shape is None or instance.states else registered("torch.Size", shape)


def _device(instance: Instance, _ledger: Ledger) -> object:
    match instance.args:
        case (str() as type_,):
            kind, colon, index = type_.partition(":")
            if not colon:
                return registered("torch.device", kind, None)
            if index.isascii() and index.isdigit() and len(index) < 6:
                return registered("torch.device", kind, int(index))
        case (str() as type_, int() as index) if type(index) is int:
            return registered("torch.device", type_, index)
    return UNFIT


def _layout(instance: Instance, _ledger: Ledger) -> object:
    match instance.args:
        case (str() as text,) if text.removeprefix("torch.") in _LAYOUTS:
            return registered("torch.layout", text.removeprefix("torch."))
    return UNFIT


def _argument(instance: Instance, _ledger: Ledger) -> object:
    """What TorchScript wraps lists and dicts in, to say their types."""
    return instance.args[0] if instance.args and not isinstance(instance.args[0], Global | Storage) else UNFIT


_CONSTANTS: Final[Mapping[tuple[str, str], object]] = {
    **{("torch", name): registered("torch.dtype", canonical) for name, canonical in DTYPE_NAMES.items()},
    **{("torch", name): registered("torch.layout", name) for name in _LAYOUTS},
    **{("torch", name): registered("torch.memory_format", name) for name in _MEMORY_FORMATS},
    **{("torch", f"torch.{name}"): registered("torch.memory_format", name) for name in _MEMORY_FORMATS},
}
_IN_UTILS: Final[Mapping[str, Finish]] = {
    "_rebuild_tensor": _rebuild_tensor,
    "_rebuild_tensor_v2": _rebuild_tensor_v2,
    "_rebuild_tensor_v3": _rebuild_tensor_v3,
    "_rebuild_parameter": _rebuild_parameter,
    "_rebuild_parameter_with_state": _rebuild_parameter,
    "_rebuild_sparse_tensor": rebuild_sparse_tensor,
    "_rebuild_qtensor": rebuild_qtensor,
    "_rebuild_nested_tensor": rebuild_nested_tensor,
    "_rebuild_meta_tensor_no_storage": rebuild_meta_tensor,
    "_rebuild_device_tensor_from_numpy": _rebuild_device_tensor,
    "_rebuild_device_tensor_from_cpu_tensor": _rebuild_device_tensor,
    "_rebuild_xla_tensor": _rebuild_device_tensor,
}
_OLD_TENSORS: Final = (
    *("ByteTensor", "CharTensor", "ShortTensor", "IntTensor", "LongTensor", "HalfTensor", "FloatTensor"),
    *("DoubleTensor", "BoolTensor", "BFloat16Tensor"),
)
CONSTRUCTORS: Final[Mapping[tuple[str, str], Finish]] = {
    **{("torch._utils", name): finish for name, finish in _IN_UTILS.items()},
    ("torch._tensor", "_rebuild_from_type_v2"): _typed,
    ("torch", "Size"): _size,
    ("torch", "device"): _device,
    ("torch.serialization", "_get_layout"): _layout,
    **{(module, name): _old_tensor for module in ("torch", "torch.cuda") for name in _OLD_TENSORS},
    ("torch.autograd.variable", "Variable"): _old_tensor,
    ("torch.nn.parameter", "Parameter"): _old_tensor,
    **{
        ("torch.jit._pickle", name): _argument
        for name in ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist", "restore_type_tag")
    },
}
"""How torch's objects are made."""

_REWRITERS: Final[Mapping[tuple[str, str], Callable[[Instance], None]]] = {
    ("torch._tensor", "_rebuild_from_type_v2"): _from_type,
}


def vocabulary(persistent: Callable[[object], object] | None) -> Vocabulary:
    """What the pickles of torch may name; `persistent` gives the storage of a persistent id."""
    return replace(_TORCH, persistent=persistent)


_TORCH: Final = Vocabulary(
    {**NUMPY.constants, **_CONSTANTS},
    {**NUMPY.constructors, **CONSTRUCTORS},
    {**NUMPY.rewriters, **_REWRITERS},
    {**NUMPY.internal, Storage: whole_storage},
)
