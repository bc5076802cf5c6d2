"""References to arrays of an open checkpoint."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from pytreeckpt.arrays import AnyArray
from pytreeckpt.build import Builder
from pytreeckpt.dtypes import AnyDType
from pytreeckpt.index import Index
from pytreeckpt.objects import ObjectType
from pytreeckpt.selection import Selection


class RegionReader(Protocol):
    """What a reference reads from."""

    @property
    def index(self) -> Index:
        """The index of the file."""
        ...

    def read_region(self, array: int, selection: Selection) -> AnyArray:
        """A basic selection of an array, as numpy."""
        ...


class ArrayRef:
    """An array of an open checkpoint that has not been read.

    `shape`, `dtype` (numpy's) and `nbytes` are known; `ref[0:8]` reads what the slice touches and gives it back as the
    framework's own that saved it, `np.asarray(ref)` as numpy, `ref.read(to=…)` as asked. `type_name` is the
    registered name of what wraps the array (such as `torch.nn.Parameter`), or None. References with the same
    number `array` are to one shared array.
    """

    __slots__ = ("_entry", "_reader", "array", "attributes", "type")

    def __init__(self, reader: RegionReader, array: int) -> None:
        self._reader = reader
        self._entry = reader.index.arrays[array]
        self.array = array
        self.type: ObjectType | None = None
        self.attributes: tuple[object, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return self._entry.shape

    @property
    def dtype(self) -> AnyDType:
        """The numpy dtype of the array."""
        return self._reader.index.dtypes[self._entry.dtype]

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self._entry.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the array in memory."""
        return self._reader.index.nbytes(self.array)

    @property
    def stored_nbytes(self) -> int:
        """Bytes that the array takes in the file; for one in the index, its own size, and of a chunk that it shares
        with others, its part.
        """
        return self._reader.index.stored_nbytes(self.array)

    @property
    def reader(self) -> RegionReader:
        """What the array is read from: the open checkpoint."""
        return self._reader

    @property
    def identity(self) -> tuple[int, int]:
        """Equal for references of one checkpoint to one shared array."""
        return id(self._reader), self.array

    @property
    def type_name(self) -> str | None:
        """The registered name of what wraps the array, or None for a plain one."""
        return None if self.type is None else self.type.name

    def read(self, selection: Selection = ..., *, to: str = "auto") -> Any:
        """Read the array, or a basic `selection` (ints, slices, `...`) of it, as `restore` would give it with this
        `to`.
        """
        builder = Builder(to, ())
        array = self._reader.read_region(self.array, selection)
        if self.type is None or builder.adapter_of(self.type) is None:
            builder.warn()
            leaf = builder.leaf(array)
            # As numpy does it, a single item is a scalar, unless there is an ellipsis.
            items = selection if isinstance(selection, tuple) else (selection,)
            return leaf if ... in items or not isinstance(leaf, np.ndarray) or leaf.ndim else leaf[()]
        return builder.build_object(self.type, [array, *self.attributes])

    def __getitem__(self, selection: Selection) -> Any:
        return self.read(selection)

    def __array__(self, dtype: AnyDType | None = None, copy: bool | None = None) -> AnyArray:  # noqa: FBT001 - numpy calls it so
        if copy is False:
            raise ValueError("an array that is read from a file is always a copy")
        array = self._reader.read_region(self.array, ...)
        return array if dtype is None else array.astype(dtype, copy=False)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("an array without axes has no length")
        return self.shape[0]

    def __repr__(self) -> str:
        wrapped = f", {self.type_name}" if self.type is not None else ""
        return f"<ArrayRef {self.dtype} {list(self.shape)}{wrapped}>"
