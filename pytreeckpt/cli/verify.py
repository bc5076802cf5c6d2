"""`pytreeckpt verify`: check every byte of checkpoints, or what foreign files keep checksums of, and say what is
damaged and where.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import pytreeckpt
from pytreeckpt.api import VerifyReport
from pytreeckpt.cli.codes import DAMAGED, FINE, USAGE, code_of
from pytreeckpt.cli.command import Command
from pytreeckpt.cli.encoding import Encoded, document, dumps
from pytreeckpt.cli.layout import Line, Span, Style
from pytreeckpt.cli.terminal import Terminal, shown_progress
from pytreeckpt.cli.text import count, size, visible
from pytreeckpt.errors import PytreeckptError

SCHEMA: Final = "pytreeckpt-verify/1"

_EXAMPLES: Final = """\
examples:
  pytreeckpt verify step-1000.ptck
  pytreeckpt verify --quiet run/*.ptck && echo all fine
  pytreeckpt verify step-1000.ptck --json | jq '.files[].problems[].leaf'
"""


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("files", metavar="FILE", nargs="+", help="checkpoints, and files or folders of other formats")
    parser.add_argument("--quiet", action="store_true", help="print nothing about files that are fine")
    parser.add_argument("--json", action="store_true", help="one JSON document about all files (docs/command-line.md)")


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of one file. `report` is None if it could not be opened; `problems` are as `--json` has them."""

    path: str
    code: int
    report: VerifyReport | None
    problems: Sequence[Mapping[str, Any]]


def _run(arguments: Namespace, terminal: Terminal) -> int:
    """Verify the files one after the other; the exit code is the greatest of theirs."""
    outcomes: list[_Outcome] = []
    for path in arguments.files:
        outcome = _check(path, terminal)
        outcomes.append(outcome)
        if arguments.json:
            continue
        if outcome.code == USAGE:
            terminal.complain(f"error: {visible(outcome.problems[0]['message'])}")
        elif not (outcome.code == FINE and arguments.quiet):
            terminal.print(_lines(outcome))
            terminal.out.flush()
    if arguments.json:
        terminal.write(document(_sections(outcomes)))
    return max(outcome.code for outcome in outcomes)


def _check(path: str, terminal: Terminal) -> _Outcome:
    try:
        with shown_progress(terminal, f"verifying {visible(path)}") as progress:
            report = pytreeckpt.verify(path, progress=progress)
    except PytreeckptError as error:
        code = code_of(error)
        kind = "corrupt" if code == DAMAGED else "unreadable"
        place = {"rule": getattr(error, "rule", None), "leaf": None, "chunk": None, "offset": None, "file": None}
        return _Outcome(path, code, None, [{"kind": kind, **place, "message": str(error)}])
    return _Outcome(path, FINE if report.ok else DAMAGED, report, [asdict(problem) for problem in report.problems])


def _lines(outcome: _Outcome) -> list[Line]:
    """A line about a file, and one for each problem."""
    report, problems = outcome.report, outcome.problems
    if report is not None and report.ok:
        return [_line("ok", "good", outcome.path, f"{size(report.file_nbytes)}, {_facts(report)}")]
    # Not damaged, as far as one can tell, but nothing that this version reads.
    refused = problems[0]["kind"] != "corrupt" or problems[0]["rule"] == "F-1"
    first = _line("refused" if refused else "damaged", "bad", outcome.path, count(len(problems), "problem"))
    return [first, *(_problem_line(problem["message"], problem["rule"]) for problem in problems)]


def _facts(report: VerifyReport) -> str:
    """What is in a file that is fine, and how much of it could be checked."""
    arrays = count(report.n_arrays, "array")
    if report.root is not None:
        chunks = count(report.n_chunks, "chunk")
        if report.n_data_files:
            chunks += f", {count(report.n_data_files, 'data file')}"
        return f"{arrays}, {chunks}, root {report.root[:16]}…"
    if report.coverage == "checksums":
        return f"{arrays}, {visible(report.format)}: {count(report.n_checks, 'checksum')} and the structure"
    return f"{arrays}, {visible(report.format)}: the structure only, for want of checksums"


def _line(word: str, style: Style, path: str, facts: str) -> Line:
    return [Span(f"{word:<7}  ", style), Span(visible(path), "plain"), Span(f"  {facts}", "note")]


def _problem_line(message: str, rule: str | None) -> Line:
    return [Span("  - ", "guide"), Span(visible(message), "plain"), Span(f"  [{rule}]" if rule else "", "note")]


def _sections(outcomes: Sequence[_Outcome]) -> Mapping[str, object]:
    """The document of `--json`."""
    return {
        "schema": SCHEMA,
        "ok": all(outcome.code == FINE for outcome in outcomes),
        "files": Encoded([dumps(_record(outcome)) for outcome in outcomes]),
    }


def _record(outcome: _Outcome) -> Mapping[str, object]:
    report = outcome.report
    record = {"path": outcome.path, "ok": outcome.code == FINE, "problems": outcome.problems}
    if report is None:
        return record
    return record | {
        "nbytes": report.file_nbytes,
        "arrays": report.n_arrays,
        "chunks": report.n_chunks,
        "root": report.root,
        "format": report.format,
        "coverage": report.coverage,
        "checks": report.n_checks,
        "data_files": report.n_data_files,
    }


COMMAND: Final = Command("verify", "check every byte of checkpoints", _EXAMPLES, _add_arguments, _run)
