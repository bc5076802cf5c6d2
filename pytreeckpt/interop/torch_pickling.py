"""What stands in a torch pickle for each object of a tree: the constructors that `torch.save` names, and no others.

Those of tensors are in torch/_utils.py and torch/_tensor.py, those of numpy in numpy/_core/multiarray.py. Storages are
named by numbers, in the order in which the pickle first needs them; arrays that are one in the tree share one.

What is written was read from a file, perhaps a stranger's: the fields of each object are of the types that it has, and
no text of theirs is the name of anything that is not on a list here.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, Final, cast

import ml_dtypes
import numpy as np

from pytreeckpt import dtypes
from pytreeckpt.dtypes import AnyDType
from pytreeckpt.errors import CorruptionError, UnsupportedTypeError
from pytreeckpt.interop.foreign import contiguous_strides
from pytreeckpt.interop.outgoing import OutgoingArray, OutgoingScalar, c_order_pieces, stored_pieces
from pytreeckpt.interop.pickle_writing import Call, Found, LongBytes, Name, Once
from pytreeckpt.interop.torch_storages import BITS_OF, DTYPE_NAMES
from pytreeckpt.objects import NamedTupleRecord, Record, record_expansion

_STORAGES: Final[Mapping[AnyDType, str]] = {
    np.dtype(np.bool_): "BoolStorage",
    np.dtype(np.uint8): "ByteStorage",
    np.dtype(np.int8): "CharStorage",
    np.dtype(np.int16): "ShortStorage",
    np.dtype(np.int32): "IntStorage",
    np.dtype(np.int64): "LongStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float64): "DoubleStorage",
    np.dtype(np.complex64): "ComplexFloatStorage",
    np.dtype(np.complex128): "ComplexDoubleStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
}
# Those without a class of storages are bytes, and a tensor over them names its dtype.
_OTHERS: Final = frozenset(
    [
        *("uint16", "uint32", "uint64", "complex32"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    ]
)
_PURE_PATHS: Final = {
    "posix": "PosixPath",
    "windows": "WindowsPath",
    "pure-posix": "PurePosixPath",
    "pure-windows": "PureWindowsPath",
}
_ORDERED: Final = Name("collections", "OrderedDict")
_MEMORY_FORMATS: Final = frozenset(["contiguous_format", "preserve_format", "channels_last", "channels_last_3d"])
_ARRAY: Final = (OutgoingArray,)
_BOOL: Final = (bool,)
_INT: Final = (int,)
_TEXT: Final = (str,)
_INT_OR_NONE: Final = (int, type(None))
# The exact types of the fields of each object, in order; a slice may hold anything.
_FIELD_TYPES: Final[Mapping[str, tuple[tuple[type, ...], ...]]] = {
    "python.OrderedDict": ((dict,),),
    "python.defaultdict": ((dict,),),
    "python.Counter": ((dict,),),
    "python.deque": ((list,), _INT_OR_NONE),
    "python.bytearray": ((bytes,),),
    "python.Path": (_TEXT, _TEXT),
    "python.range": (_INT, _INT, _INT),
    "numpy.ObjectArray": ((list,), (tuple,)),
    "numpy.dtype": ((str, list),),
    "torch.Tensor": (_ARRAY, _BOOL),
    "torch.nn.Parameter": (_ARRAY, _BOOL),
    "torch.nn.Buffer": (_ARRAY, _BOOL, _BOOL),
    "torch.PackedTensor": (_ARRAY, _TEXT, (tuple,), _BOOL, _BOOL),
    "torch.SparseTensor": ((Record,), (tuple,), _TEXT, (tuple,), _BOOL, _BOOL),
    "torch.Size": ((tuple,),),
    "torch.dtype": (_TEXT,),
    "torch.layout": (_TEXT,),
    "torch.memory_format": (_TEXT,),
    "torch.device": (_TEXT, _INT_OR_NONE),
    "jax.Array": (_ARRAY, _BOOL),
}
_TENSOR_TYPES: Final = frozenset(["torch.Tensor", "torch.nn.Parameter", "torch.nn.Buffer", "torch.PackedTensor"])


class TorchObjects:
    """One level of each object of an outgoing tree, and the storages that were needed, in order."""

    def __init__(self) -> None:
        self.storages: list[OutgoingArray] = []
        self.numbers: dict[tuple[int, str], int] = {}

    def expand(self, value: Any) -> object:
        """One level of a value, for `encode_pickle`. Raises `UnsupportedTypeError` for what is not written."""
        if isinstance(value, OutgoingArray):
            return _numpy_array(value)
        if isinstance(value, OutgoingScalar):
            scalar = Name("numpy._core.multiarray", "scalar")
            return Call(scalar, (value.array.dtype, value.array.tobytes()))
        if isinstance(value, np.dtype):
            return _dtype(value)
        if isinstance(value, set | frozenset):
            return Call(_builtin(type(value).__name__), (list(value),))
        if value is ...:
            return _builtin("Ellipsis")
        if isinstance(value, Record):
            expansion = record_expansion(value)
            return self.record(expansion.type.name, expansion.type.fields, expansion.children)
        if isinstance(value, NamedTupleRecord):
            raise _not_written(record_expansion(value).type.name)
        if isinstance(value, type) and issubclass(value, np.generic):
            # Of a dtype that numpy does not name itself.
            return Name(value.__module__, value.__qualname__)
        raise _not_written(type(value).__name__)

    def record(self, name: str, fields: Sequence[str], values: Sequence[Any]) -> object:
        """An object by the name of its registered type. Raises `UnsupportedTypeError` for fields that make none."""
        types = _FIELD_TYPES.get(name, ())
        if types and not _are_of(values, types):
            raise _no_object(name)
        if name in _TENSOR_TYPES:
            return self.tensor(name, dict(zip(fields, values, strict=True)))
        if name == "jax.Array":
            # The tensor with the same items, since torch has no other.
            return self.tensor("torch.Tensor", {"data": values[0], "requires_grad": False})
        if name == "torch.SparseTensor":
            return _sparse(dict(zip(fields, values, strict=True)))
        if name in {"python.Namespace", "python.SimpleNamespace"}:
            attributes = dict(zip(fields, values, strict=True))
            if name == "python.Namespace":
                return Call(Name("argparse", "Namespace"), (), state=attributes, is_new=True)
            return Call(Name("types", "SimpleNamespace"), (), state=attributes)
        if name in _BUILDERS:
            return _BUILDERS[name](*values)
        if name == "jax.PRNGKeyArray":
            raise UnsupportedTypeError("torch has no typed PRNG keys; store jax.random.key_data(key)")
        raise _not_written(name)

    def tensor(self, name: str, fields: Mapping[str, Any]) -> object:
        """A strided tensor, Parameter or Buffer. The same array wrapped in the same way is one object."""
        array: OutgoingArray = fields["data"]
        key = (name, id(array), *(fields[field] for field in fields if field != "data"))
        requires_grad = bool(fields["requires_grad"])
        if name == "torch.nn.Parameter":
            return Once(key, _parameter(self.strided(array, None, requires_grad=False), requires_grad=requires_grad))
        packed = fields["dtype"] if name == "torch.PackedTensor" else None
        if packed is not None and fields["parameter"]:
            return Once(key, _parameter(self.strided(array, packed, requires_grad=False), requires_grad=requires_grad))
        plain = self.strided(array, packed, requires_grad=requires_grad)
        if name == "torch.nn.Buffer":
            state = {"persistent": bool(fields["persistent"]), "_is_buffer": True}
            rebuild = Name("torch._tensor", "_rebuild_from_type_v2")
            return Once(key, Call(rebuild, (plain.function, Name("torch", "Tensor"), plain.arguments, state)))
        return Once(key, plain)

    def strided(self, array: OutgoingArray, packed: str | None, *, requires_grad: bool) -> Call:
        """A tensor over its own storage, in the order in which the array is stored."""
        itemsize = array.dtype.itemsize
        class_name = _STORAGES.get(array.dtype.newbyteorder("=")) if packed is None else None
        dtype = packed if packed is not None else array.dtype.name
        if packed is not None and (packed not in BITS_OF or BITS_OF[packed].itemsize != itemsize):
            raise _no_object("torch.PackedTensor")
        if packed is None and class_name is None and dtype not in _OTHERS:
            raise UnsupportedTypeError(f"torch has no dtype for arrays of {array.dtype}")
        shape = tuple(array.shape[axis] for axis in array.axes)
        steps = [step // itemsize for step in contiguous_strides(shape, itemsize)]
        if 0 in shape:
            # As a fresh tensor of torch has them.
            steps = [step // itemsize for step in contiguous_strides(tuple(max(n, 1) for n in shape), itemsize)]
        strides = [0] * len(shape)
        for axis, step in zip(array.axes, steps, strict=True):
            strides[axis] = step
        size = array.nbytes // itemsize
        # torch asks whether to run hooks of gradients.
        about = (0, array.shape, tuple(strides), requires_grad, Call(_ORDERED, ()))
        if class_name is not None:
            storage = self.storage(array, Name("torch", class_name), size)
            return Call(Name("torch._utils", "_rebuild_tensor_v2"), (storage, *about))
        storage = self.storage(array, Name("torch.storage", "UntypedStorage"), array.nbytes)
        return Call(Name("torch._utils", "_rebuild_tensor_v3"), (storage, *about, Name("torch", dtype)))

    def storage(self, array: OutgoingArray, cls: Name, size: int) -> Found:
        """The storage of an array. torch keeps each under one class: views of others would need one of their own."""
        number = self.numbers.setdefault((id(array), cls.name), len(self.storages))
        if number == len(self.storages):
            self.storages.append(array)
        return Found(("storage", cls, str(number), "cpu", size))


def _builtin(name: str) -> Name:
    return Name("__builtin__", name)


def _not_written(name: str) -> UnsupportedTypeError:
    return UnsupportedTypeError(
        f"a {name} is not written to torch files, which name the code that makes one again; convert it to dicts, "
        "lists, tensors and plain values"
    )


def _are_of(values: Sequence[object], types: Sequence[tuple[type, ...]]) -> bool:
    """Whether values are of exactly these types, one each."""
    return len(values) == len(types) and all(
        type(value) in allowed for value, allowed in zip(values, types, strict=True)
    )


def _no_object(name: str) -> UnsupportedTypeError:
    return UnsupportedTypeError(f"the fields of this {name} make no {name}, and are not written to torch files")


def _listed(name: str, names: Container[str], what: str) -> Name:
    """What a text of a tree names in the module torch. No other texts become names."""
    if name not in names:
        raise UnsupportedTypeError(f"torch has no {what} {name[:80]!r}")
    return Name("torch", name)


def _parameter(data: Call, *, requires_grad: bool) -> Call:
    return Call(Name("torch._utils", "_rebuild_parameter"), (data, requires_grad, Call(_ORDERED, ())))


def _sparse(fields: Mapping[str, Any]) -> object:
    """A sparse tensor, as torch/_tensor.py takes one apart."""
    if fields["requires_grad"]:
        raise UnsupportedTypeError("a sparse tensor that requires a gradient is not written to torch files; detach it")
    layout = Call(Name("torch.serialization", "_get_layout"), (f"torch.{fields['layout']}",))
    size = Call(Name("torch", "Size"), (fields["shape"],))
    parts: tuple[object, ...] = (*fields["indices"], fields["values"], size)
    if fields["layout"] == "sparse_coo":
        parts = (*parts, fields["coalesced"])
    return Call(Name("torch._utils", "_rebuild_sparse_tensor"), (layout, parts))


def _numpy_array(array: OutgoingArray) -> object:
    """An array of numpy, as its `__reduce__` takes it apart."""
    pieces = stored_pieces if array.is_fortran else c_order_pieces
    items = LongBytes(lambda: pieces(array), array.nbytes)
    content = Call(Name("_codecs", "encode"), (items, "latin1"))
    made = Call(
        Name("numpy._core.multiarray", "_reconstruct"),
        (Name("numpy", "ndarray"), (0,), b"b"),
        state=(1, array.shape, array.dtype, array.is_fortran, content),
    )
    return Once(("numpy.ndarray", id(array)), made)


def _dtype(dtype: AnyDType) -> object:
    """A dtype of numpy, as it takes itself apart: into plain values, dtypes, and classes of scalars."""
    _, arguments, state = cast("tuple[Any, tuple[Any, ...], Any]", dtype.__reduce__())
    return Once((np.dtype, repr(dtype), dtype.isalignedstruct), Call(Name("numpy", "dtype"), arguments, state=state))


def _stored_dtype(descriptor: object) -> object:
    return dtypes.parse(descriptor)


def _object_array(values: Sequence[object], shape: Sequence[int]) -> object:
    return Call(
        Name("numpy._core.multiarray", "_reconstruct"),
        (Name("numpy", "ndarray"), (0,), b"b"),
        state=(1, tuple(shape), np.dtype(object), False, list(values)),
    )


def _deque(items: list[object], maxlen: int | None) -> object:
    return Call(Name("collections", "deque"), (items, maxlen))


def _path(text: str, flavour: str) -> object:
    if flavour not in _PURE_PATHS:
        raise CorruptionError(f"{flavour!r} is not a flavour of paths", rule="T-4")
    return Call(Name("pathlib", _PURE_PATHS[flavour]), (text,))


_BUILDERS: Final[Mapping[str, Callable[..., object]]] = {
    "python.OrderedDict": lambda items: Call(_ORDERED, (), items),
    "python.defaultdict": lambda items: Call(Name("collections", "defaultdict"), (), items),
    "python.Counter": lambda items: Call(Name("collections", "Counter"), (items,)),
    "python.deque": _deque,
    "python.bytearray": lambda value: Call(_builtin("bytearray"), (value.decode("latin-1"), "latin-1")),
    "python.Path": _path,
    "python.range": lambda *bounds: Call(_builtin("xrange"), bounds),
    "python.slice": lambda *bounds: Call(_builtin("slice"), bounds),
    "numpy.ObjectArray": _object_array,
    "numpy.dtype": _stored_dtype,
    "torch.Size": lambda shape: Call(Name("torch", "Size"), (shape,)),
    "torch.dtype": lambda name: _listed(name, DTYPE_NAMES, "dtype"),
    "torch.memory_format": lambda name: _listed(name, _MEMORY_FORMATS, "memory format"),
    "torch.layout": lambda name: Call(Name("torch.serialization", "_get_layout"), (f"torch.{name}",)),
    "torch.device": lambda type_, index: Call(Name("torch", "device"), (type_,) if index is None else (type_, index)),
}
