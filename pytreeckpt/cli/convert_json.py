"""The document of `pytreeckpt convert --json`. Its schema is in docs/command-line.md, and changes with its number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Final

from pytreeckpt.cli.convert_steps import Result
from pytreeckpt.cli.encoding import Encoded, dumps
from pytreeckpt.convert import to_document
from pytreeckpt.convert.report import Row

SCHEMA: Final = "pytreeckpt-convert/1"


def sections(result: Result) -> Mapping[str, object]:
    """The document."""
    job, outcome, problems = result.job, result.outcome, result.problems
    report = None if result.plan is None else result.plan.report()
    return {
        "schema": SCHEMA,
        "ok": not problems,
        "source": {"path": job.source.file, "select": str(job.source.path) or None, "format": result.source_format},
        "destination": {
            "path": job.destination,
            "format": job.format.name,
            "files": None if outcome is None else list(outcome.paths),
            "nbytes": None if outcome is None else outcome.nbytes,
        },
        "target": None if job.target is None else {"path": job.target.file, "select": str(job.target.path) or None},
        "scheme": job.scheme,
        "conventions": None if report is None else list(report.conventions),
        "mapped": _rows(() if report is None else report.mapped),
        "dropped": _rows(() if report is None else report.dropped),
        "filled": _rows(() if report is None else report.filled),
        "unused": [] if report is None else list(report.unused),
        "missing": [] if report is None else list(report.missing),
        "recipes": [] if report is None else list(report.recipes),
        "notes": [*(() if report is None else report.notes), *result.notes],
        "problems": asdict(problems),
        "plan": None if result.plan is None or problems else to_document(result.plan),
    }


def _rows(rows: Sequence[Row]) -> Encoded:
    return Encoded([dumps(asdict(row)) for row in rows])
