"""The document of `pytreeckpt ls --json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pytreeckpt.cli.encoding import Encoded, dumps, encode_plain
from pytreeckpt.cli.ls_listing import Entry, OtherFile, Overview
from pytreeckpt.cli.steps_text import moment_text
from pytreeckpt.steps.records import StepRecord

SCHEMA: Final = "pytreeckpt-ls/1"


def sections(overview: Overview) -> Mapping[str, object]:
    """The sections, in order."""
    return {
        "schema": SCHEMA,
        "ok": overview.ok,
        "path": overview.root,
        "latest": encode_plain(overview.latest),
        "best": encode_plain(overview.best),
        "metric": overview.metric,
        "mode": overview.mode,
        "nbytes": overview.nbytes,
        "past": overview.n_past,
        "pins": {name: encode_plain(step) for name, step in overview.pins.items()},
        "damage": list(overview.damage),
        "notes": list(overview.notes),
        "others": [_other(file) for file in overview.others],
        "leftovers": [_other(file) for file in overview.leftovers],
        "steps": Encoded([dumps(_step(overview, entry)) for entry in overview.entries]),
    }


def _step(overview: Overview, entry: Entry) -> Mapping[str, object]:
    return {
        "step": encode_plain(entry.step),
        "state": entry.state,
        "path": entry.path,
        "file_nbytes": entry.file_nbytes,
        "incremental": entry.incremental,
        "latest": entry.step == overview.latest,
        "best": entry.step == overview.best,
        "pins": list(entry.pins),
        **(record_fields(entry.record) if entry.record is not None else {}),
    }


def record_fields(record: StepRecord) -> Mapping[str, object]:
    """What is known of a step."""
    return {
        "root": record.root,
        "nbytes": record.nbytes,
        "saved_at": record.saved_at,
        "saved": moment_text(record.saved_at),
        "epoch": record.epoch,
        "reason": record.reason,
        "metrics": {name: encode_plain(value) for name, value in record.metrics.items()},
    }


def _other(file: OtherFile) -> Mapping[str, object]:
    return {
        "name": file.name,
        "nbytes": file.nbytes,
        "modified_at": file.modified_at,
        "problem": file.problem or None,
    }
