"""What numpy's names in a pickle mean: arrays (not read yet) and scalars; and jax's arrays, which are pickled
as numpy's.

Sources: `numpy/_core/src/multiarray/methods.c` (`array_reduce`, `array_setstate`), `numpy/_core/numeric.py`
(`_frombuffer`), `jax/_src/array.py` (`_reconstruct_array`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from pytreeckpt.dtypes import describe
from pytreeckpt.errors import CorruptionError, UnsupportedTypeError
from pytreeckpt.expand import object_array, string_array
from pytreeckpt.index import MAX_RANK
from pytreeckpt.interop.constructors import PYTHON
from pytreeckpt.interop.constructors_dtypes import dtype_of, string_dtype_of
from pytreeckpt.interop.foreign import ForeignArray, contiguous_strides, strided
from pytreeckpt.interop.pickle_values import UNFIT, Finish, Global, Instance, Ledger, Span, Vocabulary
from pytreeckpt.interop.registered import registered
from pytreeckpt.objects import ClassKind, ObjectType, Record, fields_of, record_expansion
from pytreeckpt.reading import BytesSource, RangedSource

_OBJECT: Final = np.dtype(object)
_MULTIARRAY: Final = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core._multiarray_umath")
_NUMERIC: Final = ("numpy.core.numeric", "numpy._core.numeric")
_INTERNAL: Final = ("numpy.core._internal", "numpy._core._internal")
_ARRAYS: Final = frozenset([Global("numpy", "ndarray"), Global("numpy", "memmap")])


def raw_source(raw: object) -> tuple[RangedSource, int, int] | None:
    """Where raw bytes are: a source, the first of them, and how many. None if they are none."""
    if type(raw) is Span:
        return raw.source, raw.start, raw.nbytes
    if type(raw) is str:
        # Of Python 2, where it happened to be UTF-8.
        raw = raw.encode(errors="surrogatepass")
    if isinstance(raw, bytes | bytearray):
        return BytesSource(memoryview(raw)), 0, len(raw)
    return None


def shape_of(value: object) -> tuple[int, ...] | None:
    """A shape as numpy and torch pickle it, or None for what is none."""
    if type(value) is tuple and len(value) <= MAX_RANK:
        # The most by far.
        for extent in value:
            if type(extent) is not int or not 0 <= extent < 1 << 63:
                return None
        return value
    if isinstance(value, Record) and record_expansion(value).type.name == "torch.Size":
        value = fields_of(value)["shape"]
    if not isinstance(value, tuple | list) or len(value) > MAX_RANK:
        return None
    shape = tuple(extent for extent in value if type(extent) is int and 0 <= extent < 1 << 63)
    return shape if len(shape) == len(value) else None


def _array(dtype: object, shape: object, raw: object, *, fortran: bool, ledger: Ledger) -> object:
    """An array, of raw bytes or of a list of objects in C order."""
    extents = shape_of(shape)
    if extents is None or not isinstance(dtype, np.dtype):
        return UNFIT
    size = math.prod(extents)
    if dtype.kind in "OT":
        if type(raw) is not list or len(raw) != size:
            raise CorruptionError(f"an array of shape {list(extents)} has not as many objects", rule="pickle")
        ledger.spend(size)
        return object_array(raw, extents) if dtype.kind == "O" else _strings(dtype, extents, raw)
    found = raw_source(raw)
    if found is None:
        return UNFIT
    source, offset, nbytes = found
    if nbytes != size * dtype.itemsize:
        raise CorruptionError(
            f"an array of {dtype}{list(extents)} has {size * dtype.itemsize} bytes, and there are {nbytes}",
            rule="pickle",
        )
    try:
        describe(dtype)
    except UnsupportedTypeError:
        return UNFIT
    order = tuple(reversed(extents)) if fortran else extents
    steps = contiguous_strides(order, dtype.itemsize)
    strides = tuple(reversed(steps)) if fortran else steps
    # Each is an array of its own: pickles keep no views.
    return strided(source, offset, dtype, extents, strides, identity=("pickled", object()))


def _strings(dtype: Any, shape: tuple[int, ...], values: list[Any]) -> object:
    missing = (dtype.na_object,) if hasattr(dtype, "na_object") else ()
    try:
        return string_array(values, shape, bool(dtype.coerce), missing)
    except (ValueError, TypeError):
        return UNFIT


def _reconstruct(instance: Instance, ledger: Ledger) -> object:
    """`_reconstruct(class, (0,), b"b")`, and the state (version, shape, dtype, is Fortran, data)."""
    match instance.args, instance.states:
        case (Global() as cls, *_), [(int(), shape, dtype, bool() | int() as fortran, raw)]:
            pass
        case (Global() as cls, *_), [(shape, dtype, bool() | int() as fortran, raw)]:
            # Before there were versions.
            pass
        case _:
            return UNFIT
    array = _array(dtype, shape, raw, fortran=bool(fortran), ledger=ledger)
    if array is UNFIT or cls in _ARRAYS:
        return array
    return _of_subclass(cls, array, ledger)


def _of_subclass(cls: Global, array: object, ledger: Ledger) -> object:
    ledger.classes[cls.full_name] += 1
    return Record(ObjectType(ClassKind.RECORD, cls.full_name, ("array",)), (array,))


def _frombuffer(instance: Instance, ledger: Ledger) -> object:
    """`_frombuffer(data, dtype, shape, order)`, as protocol 5 has it."""
    match instance.args:
        case (raw, np.dtype() as dtype, shape, "C" | "F" as order, *_) if len(instance.args) in {4, 5}:
            return _array(dtype, shape, raw, fortran=order == "F", ledger=ledger)
    return UNFIT


def _scalar(instance: Instance, ledger: Ledger) -> object:
    """`scalar(dtype, data)`."""
    match instance.args:
        case (np.dtype() as dtype, value) if dtype.kind == "O" and not isinstance(value, Span | Global):
            return value
        case (np.dtype() as dtype, Span() | bytes() | str() as raw):
            pass
        case _:
            return UNFIT
    data = (
        bytes(raw.read())
        if isinstance(raw, Span)
        else raw.encode(errors="surrogatepass")
        if isinstance(raw, str)
        else raw
    )
    ledger.spend(len(data))
    if len(data) != dtype.itemsize:
        raise CorruptionError(
            f"a scalar of {dtype} has {dtype.itemsize} bytes, and there are {len(data)}", rule="pickle"
        )
    try:
        describe(dtype)
        match dtype.kind:
            case "S":
                # Indexing would drop zeros at the end of the string.
                return np.bytes_(data)
            case "U":
                return np.str_(data.decode("utf-32-be" if dtype.byteorder == ">" else "utf-32-le", "surrogatepass"))
    except (UnsupportedTypeError, UnicodeDecodeError):
        return UNFIT
    array: np.ndarray[Any, Any] = np.ndarray((), dtype, data)
    return array[()]


def _into_jax(instance: Instance) -> None:
    """`_reconstruct_array(function, arguments, state of the numpy array, state of the aval)`."""
    match instance.args:
        case (Global() as function, tuple() as args, state, aval):
            array = Instance(function, args, instance.offset, states=[state])
            instance.args = (array, aval)


def _jax_array(instance: Instance, _ledger: Ledger) -> object:
    match instance.args:
        case (ForeignArray() as array, {"weak_type": bool(weak)}) if not instance.states:
            return registered("jax.Array", array, weak)
    return UNFIT


CONSTRUCTORS: Final[Mapping[tuple[str, str], Finish]] = {
    ("numpy", "dtype"): dtype_of,
    **{(module, "_reconstruct"): _reconstruct for module in _MULTIARRAY},
    **{(module, "scalar"): _scalar for module in _MULTIARRAY},
    **{(module, "_frombuffer"): _frombuffer for module in _NUMERIC},
    **{(module, "_convert_to_stringdtype_kwargs"): string_dtype_of for module in _INTERNAL},
    ("jax._src.array", "_reconstruct_array"): _jax_array,
}
"""How numpy's objects are made."""

_REWRITERS: Final[Mapping[tuple[str, str], Callable[[Instance], None]]] = {
    ("jax._src.array", "_reconstruct_array"): _into_jax,
}


def _dtype_record(dtype: Any, ledger: Ledger) -> Record:
    """A dtype whose arrays are stored as lists, and which by itself has no place in a tree."""
    ledger.classes["numpy:dtype"] += 1
    return Record(ObjectType(ClassKind.RECORD, "numpy:dtype", ("args",)), ((dtype.str,),))


NUMPY: Final = Vocabulary(
    PYTHON.constants,
    {**PYTHON.constructors, **CONSTRUCTORS},
    {**PYTHON.rewriters, **_REWRITERS},
    {type(_OBJECT): _dtype_record, np.dtypes.StringDType: _dtype_record},
)
"""What a pickle of Python and numpy may name."""
