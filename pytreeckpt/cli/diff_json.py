"""The document of `pytreeckpt diff --json`: all changes, one per line.

Its schema is described in docs/command-line.md, and changes with its number only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from pytreeckpt.checkpoint import Checkpoint
from pytreeckpt.cli.encoding import Encoded, dumps, encode_item, encode_plain
from pytreeckpt.dtypes import describe
from pytreeckpt.operations.diff_records import Change, Diff, Side, ValueDifference

SCHEMA: Final = "pytreeckpt-diff/1"

Record = dict[str, Any]


def sections(diff: Diff, a: Checkpoint, b: Checkpoint) -> Mapping[str, object]:
    """The document."""
    return {
        "schema": SCHEMA,
        "same": diff.same,
        "summary": diff.summary(),
        "files": [_file(a, diff.n_leaves[0]), _file(b, diff.n_leaves[1])],
        "equal_leaves": diff.n_equal,
        "counts": dict(diff.counts),
        "within_tolerance": diff.n_within_tolerance,
        "rtol": diff.rtol,
        "atol": diff.atol,
        "content_only": diff.content_only,
        "read_nbytes": diff.read_nbytes,
        "changes": Encoded([dumps(_change(change)) for change in diff]),
    }


def _file(checkpoint: Checkpoint, n_leaves: int) -> Record:
    return {
        "path": checkpoint.path,
        "format": checkpoint.format,
        "nbytes": checkpoint.nbytes,
        "root": checkpoint.root,
        "leaves": n_leaves,
    }


def _change(change: Change) -> Record:
    record: Record = {
        "path": str(change.path),
        "kind": change.kind,
        "part": change.part,
        "a": None if change.a is None else _side(change.a),
        "b": None if change.b is None else _side(change.b),
        "within_tolerance": change.within_tolerance,
    }
    if change.moved_to is not None:
        record["moved_to"] = str(change.moved_to)
    if change.kind == "tie":
        record["tied"] = [None if path is None else str(path) for path in change.tied]
    if change.values is not None:
        record["values"] = _values(change.values)
    return record


def _side(side: Side) -> Record:
    record: Record = {"type": side.type}
    if side.value is not None:
        record["value"] = _value(side.value)
    if side.dtype is not None and side.shape is not None:
        record |= {"dtype": describe(side.dtype), "shape": side.shape, "nbytes": side.nbytes}
    if side.n_leaves != 1:
        record["leaves"] = side.n_leaves
    return record


def _value(value: object) -> Any:
    if isinstance(value, np.generic):
        return encode_item(value)
    if value is ... or type(value) in {bool, int, float, complex, str, bytes}:
        return encode_plain(value)
    # A set, an object: as Python writes it.
    return _written(value)


def _written(value: object) -> str:
    try:
        return repr(value)
    except (ValueError, OverflowError, UnicodeError, RecursionError):
        return type(value).__name__


def _values(values: ValueDifference) -> Record:
    return {
        "items": values.n_items,
        "different": values.n_different,
        "beyond_tolerance": values.n_beyond,
        "finite": values.n_finite,
        "nan": values.n_nan,
        "infinite": values.n_infinite,
        "max_abs": encode_plain(values.max_abs),
        "mean_abs": encode_plain(values.mean_abs),
        "max_relative": encode_plain(values.max_relative),
        "rms": encode_plain(values.rms),
        "cosine": encode_plain(values.cosine),
    }
