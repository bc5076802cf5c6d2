"""The public functions: a tree into a file or bytes, and back."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pytreeckpt.checkpoint import Checkpoint, Select
from pytreeckpt.codecs import Compression, check_compression
from pytreeckpt.collection import paused_collection
from pytreeckpt.commit import Durability, IfExists
from pytreeckpt.content import OWN_FORMAT
from pytreeckpt.errors import (
    CorruptionError,
    FormatVersionError,
    LimitError,
    NotACheckpointError,
    UnsupportedTypeError,
)
from pytreeckpt.expand import make_expand
from pytreeckpt.flatten import FlatTree, flatten
from pytreeckpt.limits import current_limits
from pytreeckpt.opening import open_path
from pytreeckpt.pipeline import ReportProgress, ordered_map, threads_for
from pytreeckpt.planning import SavePlan, plan_save
from pytreeckpt.reading import BytesSource
from pytreeckpt.storage import LocalStorage
from pytreeckpt.streaming import stream
from pytreeckpt.writer import write_checkpoint

StrPath = str | os.PathLike[str]
_Refusal = CorruptionError | FormatVersionError | LimitError | UnsupportedTypeError


@dataclass(frozen=True, slots=True)
class SaveReport:
    """What a save wrote. `raw_nbytes`: of the arrays in memory; `stored_nbytes`: of the arrays as they are stored;
    `root`: identifies the checkpoint.

    Of an incremental step, `file_nbytes` is of its own file, `data_nbytes` of the data file that was written beside it,
    and `reused_nbytes` of the arrays that are stored in those of earlier steps.
    """

    path: str
    file_nbytes: int
    raw_nbytes: int
    stored_nbytes: int
    n_arrays: int
    n_chunks: int
    root: str
    elapsed_s: float
    data_nbytes: int = 0
    reused_nbytes: int = 0

    @property
    def written_nbytes(self) -> int:
        """The length of all files that were written."""
        return self.file_nbytes + self.data_nbytes


def save(
    tree: object,
    path: StrPath,
    *,
    metadata: object = None,
    compression: Compression = "auto",
    if_exists: IfExists = "replace",
    durability: Durability = "durable",
    progress: ReportProgress | None = None,
) -> SaveReport:
    """Save a tree to one file, atomically.

    `tree`: dicts, lists, tuples, sets, plain values, numpy arrays, and the objects of installed frameworks, to any
    depth. `metadata`: a small tree of plain values, readable without the arrays.
    `compression`: "auto"; "none", whose arrays can be mapped; or a zstd level from 1 to 22.
    `if_exists`: "replace" (atomically) or "error".
    `durability`: "durable" (survives a power cut once this returns) or "atomic" (survives the process being killed).
    `progress`: called with a `Progress` in bytes.
    Missing directories are made. Raises `UnsupportedTypeError` or `LimitError` before anything is written,
    `CheckpointExistsError`, and `StorageError`; when it raises, nothing was published (but see `NotDurableError`).
    """
    begin = time.perf_counter()
    name = os.fsdecode(path)
    check_options(compression, if_exists, durability)
    write = writing(
        name,
        compression=compression,
        if_exists=if_exists,
        durability=durability,
        progress=progress,
        begin_s=begin,
    )
    with paused_collection():
        plan = plan_save(flat_tree(tree, metadata), current_limits())
    return write(plan)


def check_options(compression: Compression, if_exists: IfExists, durability: Durability) -> None:
    """Raise `ValueError` for what is not one of the choices."""
    check_compression(compression)
    _check_choice("if_exists", if_exists, ("replace", "error"))
    _check_choice("durability", durability, ("durable", "atomic"))


def writing(
    name: str,
    *,
    compression: Compression,
    if_exists: IfExists,
    durability: Durability,
    progress: ReportProgress | None,
    begin_s: float,
) -> Callable[[SavePlan], SaveReport]:
    """What writes a plan to the file system of this machine, and tells how long it took since `begin_s`."""

    def write(plan: SavePlan) -> SaveReport:
        written = write_checkpoint(
            LocalStorage(),
            name,
            plan,
            compression=compression,
            if_exists=if_exists,
            durability=durability,
            progress=progress,
        )
        return SaveReport(
            name,
            written.file_nbytes,
            written.raw_nbytes,
            written.stored_nbytes,
            len(plan.table.entries),
            written.n_chunks,
            written.root,
            time.perf_counter() - begin_s,
        )

    return write


def flat_tree(tree: object, metadata: object) -> FlatTree:
    """The tree and its metadata as a node stream, with the frameworks that are imported now."""
    with paused_collection():
        return flatten(metadata, tree, expand=make_expand(), limits=current_limits())


def encode(tree: object, *, metadata: object = None, compression: Compression = "auto") -> bytes:
    """The bytes of the file that `save` would write."""
    check_compression(compression)
    with paused_collection():
        plan = plan_save(flat_tree(tree, metadata), current_limits())
    encode_all = partial(ordered_map, threads=threads_for(len(plan.tasks), plan.raw_nbytes))
    return b"".join(stream(plan, compression, encode_all))


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r}: it is {' or '.join(map(repr, choices))}")


def open(path: StrPath) -> Checkpoint:
    """Open a checkpoint to look into it and to read parts of it. Its structure is checked, its arrays when they
    are read.

    Files and folders of other formats are known by their content, and read without their frameworks and without
    executing anything: those of torch, torch.distributed.checkpoint, safetensors, numpy, flax and Orbax, and plain
    pickles; docs/interop.md says what comes back of each.
    Raises `CheckpointNotFoundError`, `CorruptionError`, `FormatVersionError` and `LimitError`, and
    `UnsupportedTypeError` for a foreign file that holds what a tree cannot.
    """
    name = os.fsdecode(path)
    with _naming(name):
        checkpoint = open_path(name)
        try:
            checkpoint.check_structure()
        except BaseException:
            checkpoint.close()
            raise
        return checkpoint


@contextmanager
def _naming(name: str) -> Generator[None]:
    """Begin errors about the content of a file with its name."""
    try:
        yield
    except (CorruptionError, FormatVersionError, LimitError, UnsupportedTypeError) as error:
        error.args = (f"{name}: {error}", *error.args[1:])
        raise


def restore(
    path: StrPath,
    *,
    like: object = None,
    select: Select | None = None,
    to: str = "auto",
    types: Iterable[type] = (),
    strict: bool = True,
    mmap: bool = False,
    verify: bool = True,
    progress: ReportProgress | None = None,
) -> Any:
    """Restore a tree: exactly what was saved, every byte checked, or an error.

    `path`: a file of ours, or a file or folder of another format, as for `open`; of these, what they keep checksums
    of is checked.
    `like`: a template; the result has its structure, types, frameworks, devices and shardings, leaves matched by path.
    Its writable numpy arrays and its torch tensors (other than meta tensors) are filled where they are.
    `select`: only the leaves that a glob on paths (or one of several, or a predicate on `Path`) matches; dicts
    lose the others, other containers hold `UNSELECTED` in their places, and with `like` the template's leaves stay.
    `to`: "auto" gives back what was saved (numpy, with one warning, where its framework is not installed);
    "numpy", "torch" or "jax" convert every array.
    `types`: namedtuple, dataclass and enum classes that may be rebuilt by name; others come back as records.
    `strict`: with `like`, whether missing and unexpected leaves are errors; with `select`, whether a pattern that
    matches nothing is. `mmap`: map the arrays of an uncompressed file, copied on write, instead of reading them.
    `verify`: False skips the digests of the chunks, and the checksums of a foreign file (the structure is always
    checked).
    `progress`: called with a `Progress` in bytes.
    Raises `CheckpointNotFoundError`, `CorruptionError`, `FormatVersionError`, `StructureMismatchError`,
    `UnsupportedTypeError`, `NotMappableError` and `LimitError`. Nothing partial is returned.
    """
    name = os.fsdecode(path)
    with _naming(name), open_path(name) as checkpoint:
        return checkpoint.restore(
            like=like,
            select=select,
            to=to,
            types=types,
            strict=strict,
            mmap=mmap,
            verify=verify,
            progress=progress,
        )


def decode(
    data: bytes | bytearray | memoryview,
    *,
    like: object = None,
    select: Select | None = None,
    to: str = "auto",
    types: Iterable[type] = (),
    strict: bool = True,
    verify: bool = True,
) -> Any:
    """Restore a tree from the bytes of a file of ours; the options are those of `restore`. One that lies in data files
    too can only be opened as a file: a `CorruptionError` (F-15).
    """
    with Checkpoint(BytesSource(memoryview(data).cast("B")), None) as checkpoint:
        return checkpoint.restore(like=like, select=select, to=to, types=types, strict=strict, verify=verify)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with a file: the broken rule of the format, a message with the place, and, if the damage is in a
    leaf, its path and the number and offset of its damaged chunk. `file`: the name of the data file that it is in, if
    it is in one.
    """

    kind: Literal["corrupt", "unknown version", "unsupported", "beyond limits"]
    rule: str | None
    leaf: str | None
    message: str
    chunk: int | None = None
    offset: int | None = None
    file: str | None = None


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify` found. `root` is None if the index could not be read, and for a foreign file. `file_nbytes` is the
    length of all files: that of the checkpoint, and its `n_data_files` data files, if there are any.

    `format`: "pytreeckpt", or the name of the foreign format; empty if it could not be told. `coverage`: what could be
    checked: "every byte" of a file of ours; of a foreign one its structure and the arrays that have "checksums"
    (`n_checks` of them), or, where it keeps none, its "structure" alone, with every array read once.
    """

    path: str
    problems: tuple[Problem, ...]
    file_nbytes: int
    n_arrays: int
    n_chunks: int
    root: str | None
    format: str = OWN_FORMAT
    coverage: Literal["every byte", "checksums", "structure"] = "every byte"
    n_checks: int = 0
    n_data_files: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong with all that could be checked."""
        return not self.problems


def verify(path: StrPath, *, progress: ReportProgress | None = None) -> VerifyReport:
    """Check every byte of a checkpoint: structure, digests, padding; and of all its data files, with the identities of
    the chunks that it has there. Reports all damaged chunks instead of stopping at the first. Of a foreign file, check
    what it has: see `VerifyReport.coverage`.

    Raises `CheckpointNotFoundError`, `StorageError`, and `NotACheckpointError` for what is neither a file nor a folder
    of a known format; everything about the content of a file is in the report.
    """
    name = os.fsdecode(path)
    try:
        checkpoint = open_path(name)
    except (CorruptionError, FormatVersionError, LimitError, UnsupportedTypeError) as error:
        if isinstance(error, NotACheckpointError) and not Path(name).is_file():
            # There is no file whose content could be told about.
            raise
        return _unreadable(name, error)
    with checkpoint:
        try:
            checkpoint.check_structure()
        except (CorruptionError, FormatVersionError, LimitError) as error:
            return _unreadable(name, error)
        problems = tuple(map(_problem, checkpoint.damage(progress=progress)))
        content = checkpoint.content
        return VerifyReport(
            name,
            problems,
            content.nbytes,
            len(content.index.arrays),
            len(content.index.chunks),
            checkpoint.root,
            content.format,
            "every byte" if content.format == OWN_FORMAT else "checksums" if content.n_checks else "structure",
            content.n_checks,
            len(content.index.files),
        )


def _unreadable(name: str, error: _Refusal) -> VerifyReport:
    """The report about what could not be opened."""
    nbytes = Path(name).stat().st_size if Path(name).is_file() else 0
    return VerifyReport(name, (_problem(error),), nbytes, 0, 0, None, "", "structure")


def _problem(error: _Refusal) -> Problem:
    if isinstance(error, CorruptionError):
        return Problem("corrupt", error.rule, error.leaf, str(error), error.chunk, error.offset, error.file)
    if isinstance(error, FormatVersionError):
        return Problem("unknown version", error.rule, None, str(error))
    if isinstance(error, UnsupportedTypeError):
        return Problem("unsupported", None, None, str(error))
    return Problem("beyond limits", None, None, str(error))
