"""A foreign tree as an index: the same columns as those of a file of ours, with arrays that are elsewhere."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Final

import numpy as np

from pytreeckpt.arrays import ArraySource, run_reader, stored_order
from pytreeckpt.dtypes import AnyDType, Descriptor, describe
from pytreeckpt.errors import CorruptionError, LimitError, UnsupportedTypeError
from pytreeckpt.expand import expand_python
from pytreeckpt.flatten import Expand, FlatTree, flatten
from pytreeckpt.index import ArrayEntry, Chunks, Index
from pytreeckpt.interop.foreign import ForeignArray, ForeignTree, contiguous
from pytreeckpt.interop.layouts import check_array, memory_axes, transposed
from pytreeckpt.limits import Limits
from pytreeckpt.nodes import ARRAY, walk
from pytreeckpt.objects import Expansion, check_registered
from pytreeckpt.paths import Path
from pytreeckpt.reading import BytesSource, flat_bytes

# Arrays that are in memory already and are as small as this are in the index, where `inspect` shows their values.
_INLINE_NBYTES: Final = 256
_NONE: Final = np.zeros(0, np.int64)
_NO_CHUNKS: Final = Chunks(_NONE, _NONE, _NONE, _NONE, b"", b"", _NONE)


def index_of(foreign: ForeignTree, limits: Limits) -> tuple[Index, Mapping[int, ForeignArray]]:
    """The index of a foreign tree, as if it had been saved by us, and, by number and in stored order, the arrays that
    are not in it.

    Raises `UnsupportedTypeError` for what a tree cannot hold, `CorruptionError` and `LimitError`.
    """
    found: dict[Hashable, ForeignArray] = {}

    def expand(value: object) -> ArraySource | Expansion | None:
        if type(value) is not ForeignArray:
            return expand_python(value)
        # The same object is the same array too; and what has the same name lies in the same place. The tree keeps both,
        # so that their ids stay their own.
        name: Hashable = id(value)
        if value.identity is not None:
            places = [(id(piece.source), piece.offset) for piece in value.pieces]
            name = (value.shape, value.identity, *places)
        identity = (ForeignArray, name)
        found.setdefault(identity, value)
        # What it would be read by is not asked for.
        return ArraySource(value.dtype, value.shape, (), memory_axes(value), identity=identity)

    flat = _flatten(foreign, limits, expand)
    for type_ in flat.nodes.types:
        check_registered(type_)
    arrays: dict[int, ForeignArray] = {}
    entries: list[ArrayEntry] = []
    starts: list[int] = []
    inline = bytearray()
    dtypes = _Dtypes()
    for number, array in enumerate(flat.arrays):
        dtype = dtypes.number(array.dtype)
        starts.append(len(inline))
        if isinstance(array, ArraySource):
            whole = _checked(found[array.identity], flat, number)
            entries.append(ArrayEntry(dtype, whole.shape, array.axes, foreign=True))
            arrays[number] = transposed(whole, array.axes)
            continue
        stored, axes = stored_order(array)
        is_inline = number in flat.scalars or array.nbytes <= _INLINE_NBYTES
        entries.append(ArrayEntry(dtype, array.shape, axes, foreign=not is_inline))
        items = run_reader(stored)(0, stored.size)
        if is_inline:
            inline += flat_bytes(items)
        else:
            arrays[number] = contiguous(BytesSource(flat_bytes(items)), 0, array.dtype, stored.shape)
    n_arrays = len(entries)
    index = Index(
        flat.nodes,
        dtypes.dtypes,
        dtypes.descriptors,
        entries,
        bytes(inline),
        _NO_CHUNKS,
        [0] * n_arrays,
        starts,
        [array.nbytes for array in flat.arrays],
        [],
        own=False,
    )
    return index, arrays


def _flatten(foreign: ForeignTree, limits: Limits, expand: Expand) -> FlatTree:
    try:
        return flatten(foreign.metadata, foreign.tree, expand=expand, limits=limits)
    except UnsupportedTypeError as error:
        raise UnsupportedTypeError(f"this {foreign.format} file holds what a tree cannot hold: {error}") from error


def _checked(array: ForeignArray, flat: FlatTree, number: int) -> ForeignArray:
    try:
        check_array(array)
    except CorruptionError as error:
        leaf = _first_path(flat, number)
        raise CorruptionError(f"leaf {leaf}: {error}", rule=error.rule, leaf=leaf) from error
    except LimitError as error:
        raise LimitError(f"leaf {_first_path(flat, number)}: {error}") from error
    return array


def _first_path(flat: FlatTree, number: int) -> str:
    for visit in walk(flat.nodes):
        if visit.kind == ARRAY and flat.nodes.arrays[visit.entry] == number:
            return str(Path(visit.path)) or "at the root"
    # It may be where paths do not lead, in an object that is one value.
    return f"array {number}"


class _Dtypes:
    """The table of dtypes, in order of first use."""

    def __init__(self) -> None:
        self.dtypes: list[AnyDType] = []
        self.descriptors: list[Descriptor] = []
        self._numbers: dict[Descriptor, int] = {}
        # Those that were asked for, by their ids: numpy calls dtypes equal that have different descriptors.
        self._seen: dict[int, tuple[AnyDType, int]] = {}

    def number(self, dtype: AnyDType) -> int:
        """The number of a dtype."""
        seen = self._seen.get(id(dtype))
        if seen is not None:
            return seen[1]
        descriptor = describe(dtype)
        number = self._numbers.setdefault(descriptor, len(self.dtypes))
        if number == len(self.dtypes):
            self.dtypes.append(dtype)
            self.descriptors.append(descriptor)
        self._seen[id(dtype)] = (dtype, number)
        return number
