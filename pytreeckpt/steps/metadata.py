"""What the checkpoint of a step says of itself, in its metadata, so that a folder whose history is lost still tells.

It lies beside what the caller gave as metadata: under one more key of his dict, or beside his value in a new one. What
only the finished file knows, its root and length, is not in it.
"""

from __future__ import annotations

import math
from typing import Any, Final

from pytreeckpt.errors import CorruptionError, FormatVersionError
from pytreeckpt.steps.records import (
    StepRecord,
    checked_epoch,
    checked_metrics,
    checked_reason,
    checked_step,
)

KEY: Final = "pytreeckpt.step"
VERSION: Final = 1
RULE: Final = "R-2"
_FIELDS: Final = {"version", "step", "saved_at", "metrics", "epoch", "reason"}
_OTHERS: Final = "metadata"


def with_record(metadata: object, record: StepRecord) -> dict[object, object]:
    """The metadata of a step: the caller's, and what is known of it."""
    about: dict[str, object] = {
        "version": VERSION,
        "step": record.step,
        "saved_at": record.saved_at,
        "metrics": dict(record.metrics),
        "epoch": record.epoch,
        "reason": record.reason,
    }
    if metadata is None:
        return {KEY: about}
    if type(metadata) is dict and metadata and KEY not in metadata and set(metadata) != {_OTHERS}:
        return {**metadata, KEY: about}
    return {_OTHERS: metadata, KEY: about}


def without_record(metadata: object) -> object:
    """What the caller gave as metadata."""
    if type(metadata) is not dict or KEY not in metadata:
        return metadata
    rest: dict[Any, Any] = {key: value for key, value in metadata.items() if key != KEY}
    if set(rest) == {_OTHERS}:
        return rest[_OTHERS]
    return rest or None


def record_in(metadata: object, *, root: str, nbytes: int) -> StepRecord | None:
    """What a checkpoint says of the step it is of; None if it says nothing.

    Raises `FormatVersionError` for what a newer version says, and `CorruptionError`.
    """
    if type(metadata) is not dict or KEY not in metadata:
        return None
    about = metadata[KEY]
    if type(about) is not dict or type(about.get("version")) is not int:
        raise CorruptionError(f"its metadata {KEY!r} are not those of a step", rule=RULE)
    if about["version"] != VERSION:
        raise FormatVersionError(
            f"its metadata {KEY!r} have version {about['version']}, and this reader knows {VERSION}; a newer "
            "pytreeckpt reads them",
            rule=RULE,
        )
    try:
        return _record(about, root, nbytes)
    except (TypeError, ValueError) as error:
        raise CorruptionError(f"its metadata {KEY!r} are not those of a step: {error}", rule=RULE) from None


def _record(about: dict[Any, Any], root: str, nbytes: int) -> StepRecord:
    if set(about) != _FIELDS or type(about["metrics"]) is not dict:
        raise ValueError("they do not have the fields of one")
    numbers = [about["saved_at"], *about["metrics"].values(), *([] if about["epoch"] is None else [about["epoch"]])]
    if not all(type(each) is float for each in numbers) or not math.isfinite(about["saved_at"]):
        raise ValueError("a number of them is not a float")
    return StepRecord(
        step=checked_step(about["step"]),
        root=root,
        nbytes=nbytes,
        saved_at=about["saved_at"],
        metrics=checked_metrics(about["metrics"]),
        epoch=checked_epoch(about["epoch"]),
        reason=checked_reason(about["reason"]),
    )
