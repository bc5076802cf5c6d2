"""A checkpoint, or a part of it, in a file of its own: of our format or another one, with other names, and smaller."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pytreeckpt.api import StrPath, open
from pytreeckpt.checkpoint import Select
from pytreeckpt.codecs import Compression
from pytreeckpt.commit import Durability, IfExists
from pytreeckpt.errors import UnsupportedTypeError
from pytreeckpt.nodes import ARRAY, SCALAR
from pytreeckpt.operations.arithmetic import is_real_float
from pytreeckpt.operations.casting import CastReport, Losses, cast_floats
from pytreeckpt.operations.lazy import LazyTree, lazy, part_at, selected
from pytreeckpt.operations.renaming import Rename, rename_built
from pytreeckpt.operations.roles import model_path, weights_in
from pytreeckpt.operations.sources import Files
from pytreeckpt.operations.stored import Meter
from pytreeckpt.paths import Path
from pytreeckpt.pipeline import ReportProgress

if TYPE_CHECKING:
    from pytreeckpt.dtypes import AnyDType
    from pytreeckpt.operations.formats import Content, Format


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export wrote. `paths`: the files, the one to open last; `superseded`: files that an earlier export needed
    and that nothing needs now. `parts`: the objects that `role` has chosen.

    Sizes in bytes: `nbytes_before` and `nbytes_after` of the files, `raw_nbytes_…` of the arrays in memory, of which
    there are `n_arrays_…` with `n_elements_…`; shared ones count once. `cast`: what casting has lost, if a dtype was
    given; `notes`: what the format does not hold.
    """

    paths: tuple[str, ...]
    format: str
    source_format: str
    parts: tuple[str, ...]
    nbytes_before: int
    nbytes_after: int
    raw_nbytes_before: int
    raw_nbytes_after: int
    n_arrays_before: int
    n_arrays_after: int
    n_elements_before: int
    n_elements_after: int
    cast: CastReport | None
    notes: tuple[str, ...]
    superseded: tuple[str, ...]
    elapsed_s: float

    @property
    def path(self) -> str:
        """The file to open."""
        return self.paths[-1]


def export(
    path: StrPath,
    out: StrPath,
    *,
    at: str | Path | None = None,
    role: str | None = None,
    select: Select | None = None,
    rename: Rename | None = None,
    dtype: str | None = None,
    format: str | None = None,
    allow_overflow: bool = False,
    max_shard_nbytes: int | None = None,
    compression: Compression = "auto",
    if_exists: IfExists = "replace",
    durability: Durability = "durable",
    progress: ReportProgress | None = None,
) -> ExportReport:
    """Write a checkpoint, or a part of it, to a file of its own, chunk by chunk.

    `path`: a file of ours, one step of an incremental run too, or a file or folder of another format. Without options
    the result is, byte for byte, what `save` would give of its tree and metadata. The options are applied in this
    order, each to what those before it have left:
    `at`: the path of the part that is to be the whole; or `role`: the part that has this role in the training that
    `capture` made, or that looks like it: "model" gives the weights alone, for inference (of one model its own state,
    of several a dict by their names); also "optimizer" and so on, as they were captured.
    `select`: a glob on paths (or several, or a predicate on `Path`); other leaves are left out of their dicts.
    `rename`: a mapping of beginnings of names, or a function: see `renamed`.
    `dtype`: real floats are rounded to it, each once, such as "bfloat16"; the report says what that loses.
    `allow_overflow`: whether finite values may become infinite.
    `format`: "ptck", "safetensors", "torch", "npz" or "msgpack"; by default what the suffix of `out` says.
    `max_shard_nbytes`: of safetensors, beyond which there are several files and an index. `compression`: of ours.
    `if_exists`, `durability` and `progress` are those of `save`.

    Raises `StructureMismatchError` for a role, a pattern or a name that is not there, and for two leaves of one name;
    `PathError`; `ConversionError` for values that a dtype does not hold; `UnsupportedTypeError` for what the format
    does not hold; `ValueError` for options that make no sense; and what `open` and `save` raise. When it raises,
    nothing was published.
    """
    from pytreeckpt.operations.formats import Content, Options, carried

    begin = time.perf_counter()
    target = os.fsdecode(out)
    if at is not None and role is not None:
        raise ValueError("at and role are two ways to name a part: leave out one")
    to = _format(target, format)
    if max_shard_nbytes is not None and to.name != "safetensors":
        raise ValueError(f"max_shard_nbytes is for safetensors, and {target} is to be {to.name}")
    losses = None if dtype is None else Losses(_float_named(dtype), allow_overflow=allow_overflow)
    with open(path) as checkpoint:
        meter = Meter()
        whole = lazy(checkpoint, Files(meter=meter), order=to.order)
        metadata, all_of_it = whole.build()
        tree = all_of_it
        parts: tuple[str, ...] = ()
        if at is not None:
            where = Path.parse(at) if isinstance(at, str) else at
            # Raises, and says what is there instead.
            _ = checkpoint[where]
            tree = part_at(tree, where)
        elif role is not None:
            tree, parts = weights_in(tree, role, lambda: model_path(checkpoint.tree))
        if select is not None:
            tree = selected(tree, select)
        if rename is not None:
            tree = rename_built(tree, rename)
        part = whole if tree is all_of_it else lazy(tree)
        result = part if losses is None else cast_floats(part, losses)
        content, notes = to.prepared(
            Content(tree if losses is None else result.build()[1], carried(checkpoint, metadata))
        )
        before, after = _totals(whole), _totals(result)
        if to.name != "ptck":
            _check(to, content, target)
            # The writers of other formats do not tell how far they are: what they have asked for does.
            meter.begin(progress, _totals(part)[0])
        options = Options(if_exists, max_shard_nbytes, progress, durability, compression)
        outcome = to.write(content, target, options)
        return ExportReport(
            outcome.paths,
            to.name,
            checkpoint.format,
            parts,
            checkpoint.nbytes,
            outcome.nbytes,
            before[0],
            after[0],
            before[1],
            after[1],
            before[2],
            after[2],
            None if losses is None else losses.report(),
            (*checkpoint.notes, *notes, *_shared(outcome.shared)),
            outcome.superseded,
            time.perf_counter() - begin,
        )


def _format(path: str, name: str | None) -> Format:
    from pytreeckpt.operations.formats import FORMATS, format_of

    if name is not None:
        if name not in FORMATS:
            raise ValueError(f"format={name!r}: it is one of {', '.join(FORMATS)}")
        return FORMATS[name]
    found = format_of(path)
    if found is None:
        suffixes = ", ".join(suffix for each in FORMATS.values() for suffix in each.suffixes)
        raise ValueError(
            f"cannot tell which format {path} is to be: end it in one of {suffixes}, or give format= one of "
            f"{', '.join(FORMATS)}"
        )
    return found


def _check(to: Format, content: Content, target: str) -> None:
    try:
        to.check(content)
    except UnsupportedTypeError as error:
        raise UnsupportedTypeError(
            f'{target}: {error}\nexport a part, with role="model", at= or select=; or to a .ptck file, which holds all'
        ) from error


def _float_named(name: str) -> AnyDType:
    from pytreeckpt.convert.values import dtype_named

    dtype = dtype_named(name)
    if not is_real_float(dtype):
        raise ValueError(f"dtype={name!r}: it is one of real floats, such as float32, bfloat16 or float16")
    return dtype


def _totals(tree: LazyTree) -> tuple[int, int, int]:
    """Bytes, arrays and elements, shared arrays once."""
    kinds = np.frombuffer(tree.nodes.kinds, np.uint8)
    is_array = kinds[(kinds == ARRAY) | (kinds == SCALAR)] == ARRAY
    numbers = np.unique(np.array(tree.nodes.arrays, np.int64)[is_array]).tolist()
    arrays: list[Any] = [tree.arrays[number] for number in numbers]
    return sum(each.nbytes for each in arrays), len(arrays), sum(math.prod(each.shape) for each in arrays)


def _shared(count: int) -> tuple[str, ...]:
    return (f"{count} names have no array of their own, but share one: the metadata say which",) if count else ()
