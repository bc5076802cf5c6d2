"""The files of `torch.save`, new (a zip archive) and old, without torch and without anything that they name.

Sources: `torch/serialization.py` (`_save`, `_load`), and `caffe2/serialize/inline_container.h` for the archives.
Storages are not read: a tensor is a view into the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pytreeckpt.errors import CorruptionError, PytreeckptError, UnsupportedTypeError
from pytreeckpt.interop.archives import Member, check_member, checks_of, members
from pytreeckpt.interop.constructors_torch import vocabulary
from pytreeckpt.interop.foreign import ForeignTree
from pytreeckpt.interop.pickle_loading import load_from
from pytreeckpt.interop.torch_legacy import LEGACY_MAGIC, read_legacy
from pytreeckpt.interop.torch_storage_ids import storage_id
from pytreeckpt.interop.torch_storages import ITEM_NBYTES, Storage
from pytreeckpt.interop.zip_directory import MAGIC
from pytreeckpt.reading import BytesSource, RangedSource, read

_MAX_SMALL_NBYTES: Final = 1 << 10
_PICKLE: Final = "data.pkl"
# Those that there may be thousands of members in.
_FOLDERS: Final = ("data/", "constants/", "code/", "extra/")
_SCRIPT: Final = "constants.pkl"
_TAR_MAGIC: Final = b"ustar"
_TAR_MAGIC_AT: Final = 257
# What a magic number takes at most, in any protocol.
_MAGIC_NBYTES: Final = 64


def is_torch_archive(archive: Mapping[str, Member]) -> bool:
    """Whether a zip with these members is one of torch's."""
    return _root(archive) is not None


def is_old_torch(source: RangedSource) -> bool:
    """Whether a file is one of torch's before 1.6, or 0.1.10, by what is in it."""
    return _is_legacy(source) or _is_tar(source)


def _is_legacy(source: RangedSource) -> bool:
    first = bytes(read(source, 0, min(_MAGIC_NBYTES, source.nbytes)))
    try:
        value, _, _ = load_from(BytesSource(memoryview(first)), 0, vocabulary(None))
    except PytreeckptError:
        return False
    return type(value) is int and value == LEGACY_MAGIC


def _is_tar(source: RangedSource) -> bool:
    """Whether it is an archive as torch before 0.1.10 wrote it: of `sys_info`, `pickle`, `tensors` and `storages`."""
    if source.nbytes < 512:
        return False
    header = bytes(read(source, 0, 512))
    return header[_TAR_MAGIC_AT:].startswith(_TAR_MAGIC) and header[:100].rstrip(b"\0") in _TAR_MEMBERS


_TAR_MEMBERS: Final = frozenset([b"sys_info", b"pickle", b"tensors", b"storages"])


def _root(archive: Mapping[str, Member]) -> str | None:
    """The folder that all of torch's members are in, with its slash."""
    for name in archive:
        root, slash, rest = name.partition("/")
        if slash and rest == _PICKLE:
            return root + slash
    return None


def read_torch(source: RangedSource) -> ForeignTree:
    """A file of `torch.save`, or the values in one of `torch.jit.save`.

    Raises `CorruptionError` for a damaged file, `UnsupportedTypeError` for a tar of torch before 0.1.10 or a value
    that contains itself, and `LimitError` beyond the limits.
    """
    if bytes(read(source, 0, min(len(MAGIC), source.nbytes))) == MAGIC:
        return read_torch_archive(members(source))
    return read_old_torch(source)


def read_old_torch(source: RangedSource) -> ForeignTree:
    """A file of `torch.save` before 1.6. Raises as `read_torch`."""
    if _is_tar(source):
        raise UnsupportedTypeError(
            "this is a tar as torch before 0.1.10 (2017) wrote it, which is not read here; load it with torch and "
            "save it anew"
        )
    return read_legacy(source)


def read_torch_archive(archive: Mapping[str, Member]) -> ForeignTree:
    """The zip archive of `torch.save` or `torch.jit.save` with these members. Raises as `read_torch`."""
    root = _root(archive)
    if root is None:
        raise CorruptionError(f"the archive has no member called {_PICKLE}: it is not one of torch", rule="torch")
    _check_names(archive, root)
    check_member(archive[root + _PICKLE])
    order = _small(archive, root + "byteorder", b"little")
    if order not in {b"little", b"big"}:
        raise CorruptionError(f"the byte order of the file is {order!r}, not little or big", rule="torch")
    find = _ZipStorages(archive, root, swapped=order == b"big")
    tree, notes, _ = load_from(archive[root + _PICKLE].source, 0, vocabulary(find), whole=True)
    script = root + _SCRIPT in archive
    metadata = {
        "version": _text(archive, root, "version"),
        "byteorder": order.decode(),
        "serialization_id": _text(archive, root, ".data/serialization_id"),
    }
    if script:
        notes = ("this is a TorchScript archive: its code was not read", *notes)
    checks = checks_of(archive)
    if not checks:
        notes = (*notes, "all of its checksums are 0, so it was saved without any")
    return ForeignTree(
        "torch script" if script else "torch zip",
        tree,
        {key: value for key, value in metadata.items() if value is not None},
        notes,
        checks,
    )


def _check_names(archive: Mapping[str, Member], root: str) -> None:
    """Refuse members that other readers may take for the file's, and those whose own headers call them otherwise: a
    `byteorder` of another name would be as if there were none. Of storages and code, that is seen when they are read.
    """
    many = tuple(root + folder for folder in _FOLDERS)
    for name, member in archive.items():
        if not name.startswith(root):
            raise CorruptionError(
                f"the archive has the member {name[:80]!r} outside of {root}, where all of a file of torch is",
                rule="torch",
            )
        if not name.startswith(many):
            member.source.check_header()


def _small(archive: Mapping[str, Member], name: str, default: bytes | None) -> bytes | None:
    """The content of a small member."""
    member = archive.get(name)
    if member is None:
        return default
    if member.nbytes > _MAX_SMALL_NBYTES:
        raise CorruptionError(f"the member {name} has {member.nbytes} bytes", rule="torch")
    check_member(member)
    return bytes(read(member.source, 0, member.nbytes))


def _text(archive: Mapping[str, Member], root: str, name: str) -> str | None:
    raw = _small(archive, root + name, None)
    return None if raw is None else raw.decode("utf-8", "replace").strip()


class _ZipStorages:
    """Gives the storages of an archive, each a member."""

    def __init__(self, archive: Mapping[str, Member], root: str, *, swapped: bool) -> None:
        self._archive = archive
        self._root = root
        self._swapped = swapped
        # What tells the storages of this file from those of others with the same names.
        self._file = object()
        self._dtypes: dict[str, str] = {}

    def __call__(self, id_: object) -> Storage:
        dtype, key, count, _ = storage_id(id_, with_view=False)
        name = f"{self._root}data/{key}"
        member = self._archive.get(name)
        nbytes = count * ITEM_NBYTES[dtype]
        if member is None:
            raise CorruptionError(f"the archive has no member {name}, which is a storage of the tree", rule="torch")
        if member.nbytes != nbytes:
            raise CorruptionError(
                f"the member {name} has {member.nbytes} bytes instead of {nbytes}, of {count} {dtype}", rule="torch"
            )
        if self._dtypes.setdefault(key, dtype) != dtype:
            raise CorruptionError(f"the storage {key} has two dtypes, {self._dtypes[key]} and {dtype}", rule="torch")
        return Storage((self._file, key), member.source, 0, nbytes, dtype, self._swapped)
