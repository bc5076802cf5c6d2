"""The formats that are written, what of a tree each of them holds, and a tree on its way into one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Final

import numpy as np

from pytreeckpt.api import save
from pytreeckpt.arrays import ArraySource
from pytreeckpt.checkpoint import Checkpoint
from pytreeckpt.codecs import Compression
from pytreeckpt.commit import Durability, IfExists
from pytreeckpt.content import OWN_FORMAT
from pytreeckpt.convert.rebuilding import mapped
from pytreeckpt.errors import CheckpointExistsError, UnsupportedTypeError
from pytreeckpt.expand import make_expand
from pytreeckpt.flatten import flatten
from pytreeckpt.interop.naming import named_arrays
from pytreeckpt.interop.outgoing import outgoing
from pytreeckpt.interop.write_flax_msgpack import plan_flax_msgpack, write_flax_msgpack
from pytreeckpt.interop.write_npz import plan_npz, write_npz
from pytreeckpt.interop.write_safetensors import write_safetensors
from pytreeckpt.interop.write_torch import plan_torch, write_torch
from pytreeckpt.limits import current_limits
from pytreeckpt.objects import ClassKind, ObjectType, build_record
from pytreeckpt.operations.lazy import data_of, type_name
from pytreeckpt.operations.orders import Order
from pytreeckpt.paths import Path
from pytreeckpt.pipeline import ReportProgress

_TENSOR: Final = ObjectType(ClassKind.WRAPPER, "torch.Tensor", ("data", "requires_grad"))
_ARRAYS: Final = (ArraySource, np.ndarray)
_SHOWN: Final = 10


@dataclass(frozen=True, slots=True)
class Content:
    """What is written: a tree, whose arrays may be still to be read, and metadata or None."""

    tree: Any
    metadata: Any = None


@dataclass(frozen=True, slots=True)
class Options:
    """How files are written. `max_shard_nbytes`: of safetensors; `compression`: of ours, and `progress` is called for
    these.
    """

    if_exists: IfExists = "replace"
    max_shard_nbytes: int | None = None
    progress: ReportProgress | None = None
    durability: Durability = "durable"
    compression: Compression = "auto"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The files that were written, the one to be opened last, and their bytes; `shared`: how many names have no array
    of their own any more; `superseded`: files that are not needed any more.
    """

    paths: tuple[str, ...]
    nbytes: int
    shared: int = 0
    superseded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Format:
    """A format of files: its name, and the suffixes that it is known by, the usual one first.

    `prepared(content)`: the content as the format holds it, and notes on what it does not. `check(content)` raises
    `UnsupportedTypeError` or `LimitError` for what cannot be written, and `write(content, path, options)` writes.
    `order`: in which the items of arrays are best given: in another one, an array is first put together as a whole.
    """

    name: str
    suffixes: tuple[str, ...]
    prepared: Callable[[Content], tuple[Content, tuple[str, ...]]]
    check: Callable[[Content], object]
    write: Callable[[Content, str, Options], Outcome]
    order: Order = "uncut"


def format_of(path: str) -> Format | None:
    """The format that a path has the suffix of."""
    suffix = PurePath(path).suffix.lower()
    return next((each for each in FORMATS.values() if suffix in each.suffixes), None)


def carried(checkpoint: Checkpoint, metadata: object) -> object:
    """The metadata that somebody wrote; what others of the formats have there is about their files."""
    return metadata if checkpoint.format in {OWN_FORMAT, "safetensors"} else None


# Ours.


def _check_own(content: Content) -> None:
    flatten(content.metadata, content.tree, expand=make_expand(), limits=current_limits())


def _write_own(content: Content, path: str, options: Options) -> Outcome:
    report = save(
        content.tree,
        path,
        metadata=content.metadata,
        compression=options.compression,
        if_exists=options.if_exists,
        durability=options.durability,
        progress=options.progress,
    )
    return Outcome((path,), report.file_nbytes)


# Arrays by flat names.


def _arrays_only(content: Content) -> None:
    if is_array(content.tree):
        raise UnsupportedTypeError("this format holds arrays by name, and this is one without: select what it is in")
    leaves = leaves_in(content.tree)
    if not any(is_array(value) for _, value in leaves):
        raise UnsupportedTypeError("this format holds arrays alone, and there are none")
    others = [f"{path}: {_kind(value)}" for path, value in leaves if not is_array(value)]
    if others:
        more = [f"and {len(others) - _SHOWN} more"] if len(others) > _SHOWN else []
        raise UnsupportedTypeError(
            f"this format holds arrays alone, and {len(others):,} "
            f"{'value of the tree is' if len(others) == 1 else 'values of the tree are'} none:\n  "
            + "\n  ".join([*others[:_SHOWN], *more])
        )


def is_array(value: object) -> bool:
    """Whether a leaf is an array, in whatever wrapper, or a scalar of numpy."""
    return isinstance(data_of(value), (*_ARRAYS, np.generic))


def _kind(value: object) -> str:
    return type_name(value) or type(value).__name__


def leaves_in(tree: object) -> list[tuple[Path, object]]:
    """The leaves that `mapped` meets, with their paths."""
    found: list[tuple[Path, object]] = []

    def look(path: Path, value: object) -> object:
        found.append((path, value))
        return value

    mapped(tree, look)
    return found


def _without_metadata(content: Content) -> tuple[Content, tuple[str, ...]]:
    if content.metadata is None:
        return content, ()
    return Content(content.tree), ("the metadata are left out: files of this format have none",)


def _prepared_safetensors(content: Content) -> tuple[Content, tuple[str, ...]]:
    metadata = content.metadata
    if metadata is None:
        # What transformers wants to see in files that torch is to load.
        return Content(content.tree, {"format": "pt"} if _has_tensors(content.tree) else None), ()
    if type(metadata) is dict and all(isinstance(each, str) for pair in metadata.items() for each in pair):
        return content, ()
    return Content(content.tree), ("the metadata are left out: those of this format are texts by texts",)


def _check_safetensors(content: Content) -> None:
    _arrays_only(content)
    try:
        write_safetensors(content.tree, os.devnull, metadata=content.metadata, if_exists="error")
    except CheckpointExistsError:
        # The last thing that it looks at, before anything is written.
        return


def _write_safetensors(content: Content, path: str, options: Options) -> Outcome:
    report = write_safetensors(
        content.tree,
        path,
        metadata=content.metadata,
        max_shard_nbytes=options.max_shard_nbytes,
        if_exists=options.if_exists,
        durability=options.durability,
    )
    return Outcome(report.paths, report.nbytes, len(report.shared), report.superseded)


def _check_npz(content: Content) -> None:
    _arrays_only(content)
    plan_npz(named_arrays(outgoing(content.tree), separator=".", names=None, drop_other=False), compressed=False)


def _write_npz(content: Content, path: str, options: Options) -> Outcome:
    report = write_npz(content.tree, path, if_exists=options.if_exists, durability=options.durability)
    return Outcome(report.paths, report.nbytes)


# Trees.


def _has_tensors(tree: object) -> bool:
    return any(type_name(value).startswith("torch.") for _, value in leaves_in(tree))


def _prepared_torch(content: Content) -> tuple[Content, tuple[str, ...]]:
    """Where nothing says which arrays are tensors, all are."""
    plain, notes = _without_metadata(content)
    if _has_tensors(plain.tree):
        return plain, notes
    tensors = mapped(
        plain.tree,
        lambda _path, value: build_record(_TENSOR, [value, False]) if isinstance(value, _ARRAYS) else value,
    )
    return Content(tensors), notes


def _write_torch(content: Content, path: str, options: Options) -> Outcome:
    report = write_torch(content.tree, path, if_exists=options.if_exists, durability=options.durability)
    return Outcome(report.paths, report.nbytes)


def _write_msgpack(content: Content, path: str, options: Options) -> Outcome:
    report = write_flax_msgpack(content.tree, path, if_exists=options.if_exists, durability=options.durability)
    return Outcome(report.paths, report.nbytes)


FORMATS: Final[Mapping[str, Format]] = {
    each.name: each
    for each in (
        Format("ptck", (".ptck",), lambda content: (content, ()), _check_own, _write_own, "stored"),
        Format("safetensors", (".safetensors",), _prepared_safetensors, _check_safetensors, _write_safetensors, "C"),
        Format(
            "torch",
            (".pt", ".pth", ".bin", ".ckpt"),
            _prepared_torch,
            lambda content: plan_torch(content.tree),
            _write_torch,
        ),
        Format("npz", (".npz",), _without_metadata, _check_npz, _write_npz),
        Format(
            "msgpack",
            (".msgpack",),
            _without_metadata,
            lambda content: plan_flax_msgpack(content.tree),
            _write_msgpack,
            "C",
        ),
    )
}
