"""`.npz` files, as `numpy.savez` writes them: a zip of one `.npy` for each array, under flat names.

Only dtypes that numpy reads back as what they are: of bfloat16 and its like, `numpy.save` keeps the bytes and loses the
dtype, so they are refused here.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np

from pytreeckpt.commit import Durability, IfExists
from pytreeckpt.dtypes import AnyDType
from pytreeckpt.errors import LimitError, UnsupportedTypeError
from pytreeckpt.interop.naming import NamedArray, Names, named_arrays
from pytreeckpt.interop.npz import MAGIC, SUFFIX
from pytreeckpt.interop.outgoing import OutgoingArray, c_order_pieces, outgoing, stored_pieces
from pytreeckpt.interop.writing import PlannedFile, StrPath, WriteReport, check_options, publish_files
from pytreeckpt.interop.zip_writing import ZipMember, plan_zip
from pytreeckpt.storage import LocalStorage
from pytreeckpt.wire import Buffer

_ALIGNMENT: Final = 64
# numpy leaves room for the longest axis to grow in place.
_GROWTH_DIGITS: Final = 21


def write_npz(
    tree: object,
    path: StrPath,
    *,
    compressed: bool = False,
    separator: str = ".",
    names: Names | None = None,
    drop_other: bool = False,
    if_exists: IfExists = "replace",
    durability: Durability = "durable",
) -> WriteReport:
    """Write the arrays of a tree to a file that `numpy.load` reads, without pickles.

    `tree`: what `save` takes, and references to arrays of open checkpoints. Nested containers become names joined by
    `separator`; `names`, a function of the path of an array, gives them instead. numpy scalars become arrays of rank 0,
    and arrays that are one in the tree are written at each of their places. `compressed`: deflated, as by
    `numpy.savez_compressed`. `drop_other`: leave out what is no array, instead of refusing it. `if_exists`,
    `durability`: as in `save`.
    Raises `UnsupportedTypeError` for what the format cannot hold, before anything is written, `LimitError`,
    `CheckpointExistsError`, and `StorageError`.
    """
    check_options(if_exists, durability)
    arrays = named_arrays(outgoing(tree), separator=separator, names=names, drop_other=drop_other)
    name = os.fsdecode(path)
    file = PlannedFile(name, plan_npz(arrays, compressed=compressed))
    nbytes = publish_files(LocalStorage(), [file], if_exists=if_exists, durability=durability)
    return WriteReport((name,), nbytes)


def plan_npz(arrays: Sequence[NamedArray], *, compressed: bool) -> Callable[[], Iterator[Buffer]]:
    """What gives the pieces of the file."""
    refused = [f"{each.name}: {each.packed or each.array.dtype}" for each in arrays if not _is_kept(each)]
    if refused:
        raise UnsupportedTypeError(
            f"{len(refused)} arrays have a dtype that numpy does not read back from its files; convert them, for "
            "example to float32, or view them as unsigned integers:\n  " + "\n  ".join(refused[:20])
        )
    names = {each.name for each in arrays}
    for name in names:
        if name + SUFFIX in names:
            raise UnsupportedTypeError(
                f"numpy keeps {name!r} as {name + SUFFIX!r}, which is a name too, and would find only one of the two; "
                "rename one of them"
            )
    return plan_zip([_member(each, compressed=compressed) for each in arrays])


def _is_kept(named: NamedArray) -> bool:
    dtype = named.array.dtype
    if named.packed is not None:
        return False
    try:
        return bool(np.lib.format.descr_to_dtype(np.lib.format.dtype_to_descr(dtype)) == dtype)
    except (ValueError, TypeError):
        # Fields that overlap, or a letter that numpy has for a dtype of others.
        return False


def _member(named: NamedArray, *, compressed: bool) -> ZipMember:
    header = npy_header(named.array)

    def pieces() -> Iterator[Buffer]:
        yield header
        yield from stored_pieces(named.array) if named.array.is_fortran else c_order_pieces(named.array)

    return ZipMember(named.name + SUFFIX, pieces, len(header) + named.array.nbytes, compressed)


def npy_header(array: OutgoingArray) -> bytes:
    """The bytes of a `.npy` before the items, as numpy writes them."""
    descr = _shown(array.dtype)
    fortran = array.is_fortran
    text = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {array.shape!r}, }}"
    if array.shape:
        text += " " * (_GROWTH_DIGITS - len(repr(array.shape[-1 if fortran else 0])))
    version, layout, encoding = 1, "<H", "latin-1"
    if not _fits_latin(text):
        version, layout, encoding = 3, "<I", "utf-8"
    elif len(text) + _ALIGNMENT >= 1 << 16:
        version, layout = 2, "<I"
    raw = text.encode(encoding)
    start = len(MAGIC) + 2 + struct.calcsize(layout)
    gap = _ALIGNMENT - (start + len(raw) + 1) % _ALIGNMENT
    if len(raw) + _ALIGNMENT >= 1 << 20:
        raise LimitError(f"the dtype of an array has too many or too long fields: its text has {len(raw)} bytes")
    return MAGIC + bytes([version, 0]) + struct.pack(layout, len(raw) + 1 + gap) + raw + b" " * gap + b"\n"


def _shown(dtype: AnyDType) -> str:
    return repr(np.lib.format.dtype_to_descr(dtype))


def _fits_latin(text: str) -> bool:
    try:
        text.encode("latin-1")
    except UnicodeEncodeError:
        return False
    return True
