"""The formats that are read, and how each is known: by what a file begins with, and where a format has no magic by all
of its structure; a folder by the names in it. Never by a suffix alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pytreeckpt.errors import CorruptionError, NotACheckpointError, UnsupportedTypeError
from pytreeckpt.interop import (
    archives,
    flax_msgpack,
    npz,
    orbax,
    safetensors,
    torch_distributed,
    torch_files,
    torch_shards,
)
from pytreeckpt.interop.archives import Member
from pytreeckpt.interop.foreign import Folder, ForeignTree
from pytreeckpt.interop.pickles import begins_as_pickle, read_pickle
from pytreeckpt.reading import RangedSource, read

_HEAD_NBYTES: Final = 64
_ORBAX: Final = frozenset(["_METADATA", "_CHECKPOINT_METADATA"])
_ZIP: Final = (b"PK\x03\x04", b"PK\x05\x06")


@dataclass(frozen=True, slots=True)
class FileFormat:
    """A format of one file. `begins(head, source)`: whether a file begins as it does. If that says it all, `has_magic`;
    if not, the file is of this format if it can be read as one.
    """

    name: str
    begins: Callable[[bytes, RangedSource], bool]
    read: Callable[[RangedSource], ForeignTree]
    has_magic: bool = True


@dataclass(frozen=True, slots=True)
class ArchiveFormat:
    """A format that is a zip archive. `has(archive)`: whether one with these members is of it."""

    name: str
    has: Callable[[Mapping[str, Member]], bool]
    read: Callable[[Mapping[str, Member]], ForeignTree]


@dataclass(frozen=True, slots=True)
class FolderFormat:
    """A format of folders. `has(names)`: whether a folder with these files is one."""

    name: str
    has: Callable[[Sequence[str]], bool]
    read: Callable[[Folder], ForeignTree]


def _is_orbax(names: Sequence[str]) -> bool:
    """Whether a folder is a checkpoint of Orbax, or is made of nothing but items or steps of one: a folder in which one
    lies, among others, is not.
    """
    here = {name for name in names if "/" not in name}
    folders = {name.partition("/")[0] for name in names if "/" in name}
    marked = {name.partition("/")[0] for name in names if name.partition("/")[2] in {*_ORBAX, "metadata"}}
    return orbax.is_orbax(names) and (bool(here & _ORBAX) or folders == marked)


ARCHIVE_FORMATS: Final[Sequence[ArchiveFormat]] = (
    ArchiveFormat("torch", torch_files.is_torch_archive, torch_files.read_torch_archive),
    ArchiveFormat("npz", npz.is_npz, npz.read_npz_archive),
)
FILE_FORMATS: Final[Sequence[FileFormat]] = (
    FileFormat("torch legacy", lambda _head, source: torch_files.is_old_torch(source), torch_files.read_old_torch),
    FileFormat("npy", lambda head, _source: npz.is_npy(head), npz.read_npy),
    FileFormat("safetensors", lambda head, _source: safetensors.is_safetensors(head), safetensors.read_safetensors),
    FileFormat(
        "flax msgpack",
        lambda head, _source: flax_msgpack.is_flax_msgpack(head),
        flax_msgpack.read_flax_msgpack,
        has_magic=False,
    ),
    FileFormat("pickle", lambda head, _source: begins_as_pickle(head), read_pickle, has_magic=False),
)
FOLDER_FORMATS: Final[Sequence[FolderFormat]] = (
    FolderFormat("torch.distributed.checkpoint", torch_distributed.is_distributed, torch_distributed.read_distributed),
    FolderFormat("Orbax", _is_orbax, orbax.read_orbax),
    FolderFormat(
        "sharded safetensors",
        lambda names: safetensors.index_of(names) is not None,
        safetensors.read_safetensors_folder,
    ),
    FolderFormat(
        "sharded torch", lambda names: torch_shards.shards_index(names) is not None, torch_shards.read_torch_shards
    ),
)


def read_file(source: RangedSource) -> ForeignTree:
    """A file of one of the formats.

    Raises `NotACheckpointError` for what is none, and what its reader raises: `CorruptionError`, `LimitError`,
    `UnsupportedTypeError`.
    """
    head = bytes(read(source, 0, min(_HEAD_NBYTES, source.nbytes)))
    reasons: list[str] = []
    if head.startswith(_ZIP):
        try:
            archive = archives.members(source)
        except (CorruptionError, UnsupportedTypeError) as error:
            reasons.append(f". It begins as a zip archive does, but: {error}")
        else:
            for of_archives in ARCHIVE_FORMATS:
                if of_archives.has(archive):
                    return of_archives.read(archive)
    for format_ in FILE_FORMATS:
        if not format_.begins(head, source):
            continue
        if format_.has_magic:
            return format_.read(source)
        try:
            return format_.read(source)
        except (CorruptionError, UnsupportedTypeError) as error:
            reasons.append(f". It begins as a {format_.name} file does, but: {error}")
    names = ", ".join([*(of_archives.name for of_archives in ARCHIVE_FORMATS), *(one.name for one in FILE_FORMATS)])
    raise NotACheckpointError(
        f"not a pytreeckpt file: it does not begin with the magic; nor is it of another format that is read ({names})"
        + "".join(reasons),
        rule="F-1",
    )


def read_folder(folder: Folder, names: Sequence[str]) -> ForeignTree:
    """A folder of one of the formats. `names`: the files in it and in the folders directly in it, which tell which.

    Raises as `read_file`, and `CheckpointNotFoundError` for a file that is missing in it.
    """
    for format_ in FOLDER_FORMATS:
        if format_.has(names):
            return format_.read(folder)
    known = ", ".join(format_.name for format_ in FOLDER_FORMATS)
    raise NotACheckpointError(f"this is a directory, and not one of the formats that are folders ({known})", rule="F-1")
