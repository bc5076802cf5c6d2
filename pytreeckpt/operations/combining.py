"""Parts of checkpoints, and several in one, as files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack

from pytreeckpt.api import SaveReport, StrPath, open, save
from pytreeckpt.checkpoint import Select
from pytreeckpt.codecs import Compression
from pytreeckpt.commit import Durability, IfExists
from pytreeckpt.operations.lazy import lazy, selected_of
from pytreeckpt.operations.merging import At, Prefer, merge_built
from pytreeckpt.operations.sources import Files
from pytreeckpt.pipeline import ReportProgress


def merge(
    paths: Sequence[StrPath],
    out: StrPath,
    *,
    prefer: Prefer | None = None,
    at: At | None = None,
    metadata: object = None,
    compression: Compression = "auto",
    if_exists: IfExists = "replace",
    durability: Durability = "durable",
    progress: ReportProgress | None = None,
) -> SaveReport:
    """Save the trees of several files as one, chunk by chunk: dicts are merged to any depth.

    `paths`: files of any format. `prefer` and `at`: as for `merged`, which does the same for trees. `metadata` is the
    result's; the other options are those of `save`. Raises `StructureMismatchError` for what several have, `PathError`,
    and what `open` and `save` raise.
    """
    if isinstance(paths, str | bytes | os.PathLike):
        raise TypeError(f"paths is one path, {os.fsdecode(paths)!r}: give a list of them")
    with ExitStack() as stack:
        opened = [stack.enter_context(open(path)) for path in paths]
        files = Files(n_files=len(opened))
        tree = merge_built([lazy(each, files).build()[1] for each in opened], prefer=prefer, at=at)
        return save(
            tree,
            out,
            metadata=metadata,
            compression=compression,
            if_exists=if_exists,
            durability=durability,
            progress=progress,
        )


def select(
    path: StrPath,
    out: StrPath,
    select: Select,
    *,
    compression: Compression = "auto",
    if_exists: IfExists = "replace",
    durability: Durability = "durable",
    progress: ReportProgress | None = None,
) -> SaveReport:
    """Save what a glob on paths (or several, or a predicate on `Path`) selects of a file of any format, with its
    metadata, chunk by chunk; `selected` does the same for trees. The options are those of `save`.

    Raises `StructureMismatchError` for a glob that matches nothing, or parts of a list; and what `open` and `save`
    raise.
    """
    with open(path) as checkpoint:
        metadata, tree = selected_of(lazy(checkpoint), select)
        return save(
            tree,
            out,
            metadata=metadata,
            compression=compression,
            if_exists=if_exists,
            durability=durability,
            progress=progress,
        )
