"""What is kept of a source so that the way back is exact to the bit: the file that `--residuals` writes.

It is a checkpoint. Its metadata say which version of this it is, and have those of the source; its tree has `plan`, the
document of the plan; `residuals`, the arrays that the plan's inverse would not give back, by the texts of their paths;
and `origin`, the tree of the source: its structure, all that the plan does not use, and empty arrays for the rest.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from pytreeckpt.arrays import AnyArray
from pytreeckpt.checkpoint import Checkpoint
from pytreeckpt.cli.convert_leaves import wrapped_as
from pytreeckpt.cli.convert_making import Residuals, Sides, kept_paths
from pytreeckpt.cli.convert_tree import lazy_tree
from pytreeckpt.convert import DocumentError, Plan, from_document, to_document
from pytreeckpt.convert.leaves import plain_path
from pytreeckpt.convert.rebuilding import mapped
from pytreeckpt.errors import FormatVersionError
from pytreeckpt.paths import Path
from pytreeckpt.references import ArrayRef

SCHEMA: Final = "pytreeckpt-residuals/1"


@dataclass(frozen=True, slots=True)
class Kept:
    """What a residuals file says: the plan of the way here, what it kept, and the tree and metadata of its source."""

    plan: Plan
    residuals: Residuals
    origin: Any
    metadata: Any


def residuals_tree(plan: Plan, sides: Sides, origin: object) -> dict[str, Any]:
    """The tree of the file, whose arrays are read when they are written."""
    used = {plain_path(path) for path in plan.source}
    empty: dict[Hashable, AnyArray] = {}

    def place(path: Path, value: object) -> object:
        if plain_path(path) not in used or not isinstance(value, ArrayRef):
            return sides.files.leaf(value)
        # Tied arrays have one that is theirs.
        return wrapped_as(value, empty.setdefault(value.identity, np.empty(0, value.dtype)))

    kept = {str(path): sides.files.leaf(sides.values[plain_path(path)].value) for path in kept_paths(plan, sides)}
    return {"plan": to_document(plan), "residuals": kept, "origin": mapped(origin, place)}


def residuals_metadata(metadata: object) -> dict[str, object]:
    """The metadata of the file."""
    return {"schema": SCHEMA, "metadata": metadata}


def read_residuals(checkpoint: Checkpoint) -> Kept:
    """What a residuals file says. Raises `DocumentError` for another file, `FormatVersionError` for a newer one."""
    metadata, tree = lazy_tree(checkpoint)
    schema = metadata.get("schema") if isinstance(metadata, Mapping) else None
    if not isinstance(schema, str) or not schema.startswith("pytreeckpt-residuals/"):
        raise DocumentError(f"{checkpoint.path} is no file that --residuals has written")
    if schema != SCHEMA:
        raise FormatVersionError(f"{checkpoint.path} is {schema}, and this pytreeckpt knows {SCHEMA}", rule="schema")
    match tree:
        case {"plan": dict(document), "residuals": dict(residuals), "origin": origin}:
            return Kept(from_document(document), residuals, origin, metadata.get("metadata"))
    raise DocumentError(f"{checkpoint.path} is damaged: it has no plan, residuals and origin")
