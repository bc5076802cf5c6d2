"""Arrays in zarr folders and OCDBT databases, as Orbax keeps them, read through the `tensorstore` package.

tensorstore is asked for by its own name, when a folder needs it. An array is decoded as a whole when the first of its
bytes is asked for; the last few that were are kept, because parts of one array are asked for one after the other.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from pytreeckpt.arrays import AnyArray
from pytreeckpt.dtypes import AnyDType, describe
from pytreeckpt.errors import CorruptionError, LimitError, UnsupportedTypeError
from pytreeckpt.geometry import Shape
from pytreeckpt.interop.foreign import ForeignArray, allocate, contiguous
from pytreeckpt.limits import current_limits
from pytreeckpt.reading import BytesSource, flat_bytes

# So many decoded arrays are kept: threads that read ahead are at the end of one and the beginning of the next.
_KEPT: Final = 2
# So many are opened at a time, each a small read or two.
_OPENING: Final = 256
# What tensorstore makes of its own errors.
_ERRORS: Final = (ValueError, TypeError, LookupError, ArithmeticError, OSError, RuntimeError)


@dataclass(frozen=True, slots=True)
class ZarrStore:
    """Where the arrays are: the path of a folder, whether it is an OCDBT database, and zarr's version 2 or 3.

    `is_complete`: all chunks were stored, also those that hold nothing but the fill value, so that one that is not
    there is lost.
    """

    path: str
    is_ocdbt: bool
    version: int
    is_complete: bool


@dataclass(slots=True)
class _Decoded:
    """The last arrays that were decoded, by their names."""

    arrays: OrderedDict[str, memoryview] = field(default_factory=OrderedDict)
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True, slots=True, eq=False)
class _StoredArray:
    """The bytes of an array in C order: a ranged source that decodes all of it when it is first read.

    `nbytes`: all of its bytes.
    """

    name: str
    store: Any = field(repr=False)
    dtype: AnyDType
    shape: Shape
    nbytes: int
    decoded: _Decoded = field(repr=False)

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers from the array."""
        BytesSource(self.content()).read_into(offset, buffers)

    def content(self) -> memoryview:
        with self.decoded.lock:
            found = self.decoded.arrays.get(self.name)
            if found is None:
                # Allocated here: where memory ends, tensorstore would end the process.
                items = allocate(self.shape, self.dtype)
                _read(self.name, self.store, items)
                found = flat_bytes(items)
                self.decoded.arrays[self.name] = found
                while len(self.decoded.arrays) > _KEPT:
                    self.decoded.arrays.popitem(last=False)
            else:
                self.decoded.arrays.move_to_end(self.name)
        return found


def _read(name: str, store: Any, out: AnyArray) -> None:
    """All items of an array into `out`, which has its shape and dtype."""
    import tensorstore

    try:
        tensorstore.array(out, copy=False, write=True).write(store).result()
    except MemoryError:
        raise LimitError(f"array {name[:80]!r} needs more memory than there is") from None
    except _ERRORS as error:
        raise _damaged(name, error) from None


def open_arrays(store: ZarrStore, names: Sequence[str]) -> Mapping[str, ForeignArray]:
    """The arrays with these names, not read.

    Raises `UnsupportedTypeError` where tensorstore is not installed and for dtypes that are not in the registry,
    `CorruptionError` for an array that is not there or damaged, and `LimitError`.
    """
    try:
        import tensorstore
    except ModuleNotFoundError:
        raise UnsupportedTypeError(
            "this is an Orbax checkpoint, whose arrays are read with tensorstore, which is not installed; install "
            '"orbax-checkpoint" or "tensorstore"'
        ) from None
    decoded = _Decoded()
    context = tensorstore.Context()
    found: dict[str, ForeignArray] = {}
    for start in range(0, len(names), _OPENING):
        group = names[start : start + _OPENING]
        opened = [_started(tensorstore, store, name, context) for name in group]
        for name, future in zip(group, opened, strict=True):
            try:
                array = future.result()
            except _ERRORS as error:
                raise _damaged(name, error) from None
            found[name] = _foreign(name, array, decoded)
    return found


def _started(tensorstore: Any, store: ZarrStore, name: str, context: Any) -> Any:
    try:
        return tensorstore.open(_spec(store, name), read=True, open=True, context=context)
    except _ERRORS as error:
        raise _damaged(name, error) from None


def _spec(store: ZarrStore, name: str) -> dict[str, object]:
    driver = "zarr3" if store.version == 3 else "zarr"
    path = f"{store.path.rstrip('/')}/"
    below = f"{name}/" if name else ""
    if store.is_ocdbt:
        kvstore = {"driver": "ocdbt", "base": {"driver": "file", "path": path}, "path": below}
    else:
        kvstore = {"driver": "file", "path": path + below}
    return {"driver": driver, "kvstore": kvstore, "fill_missing_data_reads": not store.is_complete}


def _foreign(name: str, array: Any, decoded: _Decoded) -> ForeignArray:
    # Of tensorstore's own making, after it has checked the text of the file.
    dtype: AnyDType = np.dtype(array.dtype.numpy_dtype)
    describe(dtype)
    shape = tuple(map(int, array.shape))
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes > current_limits().arrays_nbytes:
        raise LimitError(
            f"array {name[:80]!r} of {dtype}{list(shape)} has {nbytes} bytes, more than the limit of "
            f"{current_limits().arrays_nbytes}; raise it with pytreeckpt.limits(arrays_nbytes=…)"
        )
    _check_chunks(name, array, nbytes)
    return contiguous(_StoredArray(name, array, dtype, shape, nbytes, decoded), 0, dtype, shape)


def _check_chunks(name: str, array: Any, nbytes: int) -> None:
    """Chunks are decoded whole, whatever of them is in the array; Orbax makes none that are larger than that."""
    # None for an array without axes, which is one chunk.
    chunk = array.chunk_layout.write_chunk.shape or ()
    limit = max(nbytes, current_limits().chunk_nbytes)
    if math.prod(chunk) * array.dtype.numpy_dtype.itemsize > limit:
        raise LimitError(
            f"array {name[:80]!r} has chunks of {list(chunk)} items, larger than itself and than the limit of "
            f"{current_limits().chunk_nbytes} bytes; raise it with pytreeckpt.limits(chunk_nbytes=…)"
        )


def _damaged(name: str, error: Exception) -> CorruptionError:
    return CorruptionError(f"array {name[:80]!r} cannot be read: {str(error)[:300]}", rule="zarr")
