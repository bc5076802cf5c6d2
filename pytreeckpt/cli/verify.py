"""`pytreeckpt verify`: check every byte of checkpoints, and say what is damaged and where."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
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

EXAMPLES: Final = """\
examples:
  pytreeckpt verify step-1000.ptck
  pytreeckpt verify --quiet run/*.ptck && echo all fine
  pytreeckpt verify step-1000.ptck --json | jq '.files[].problems[].leaf'
"""


def add_arguments(parser: ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("files", metavar="FILE", nargs="+", help="checkpoints")
    parser.add_argument("--quiet", action="store_true", help="print nothing about files that are fine")
    parser.add_argument("--json", action="store_true", help="one JSON document about all files (docs/command-line.md)")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one file: a report, or the error that kept it from being read."""

    path: str
    report: VerifyReport | None
    error: PytreeckptError | None

    @property
    def code(self) -> int:
        """The exit code for this file."""
        if self.error is not None:
            return code_of(self.error)
        return FINE if self.report is not None and self.report.ok else DAMAGED


def run(arguments: Namespace, terminal: Terminal) -> int:
    """Verify the files one after the other; the exit code is the gravest of theirs."""
    outcomes: list[Outcome] = []
    for path in arguments.files:
        outcome = check(path, terminal)
        outcomes.append(outcome)
        if not arguments.json:
            terminal.print(outcome_lines(outcome, quiet=arguments.quiet))
            terminal.out.flush()
            if outcome.error is not None and outcome.code == USAGE:
                terminal.complain(f"error: {visible(str(outcome.error))}")
    if arguments.json:
        for piece in document(json_sections(outcomes)):
            terminal.write(piece)
    return max(outcome.code for outcome in outcomes)


def check(path: str, terminal: Terminal) -> Outcome:
    """Verify one file."""
    try:
        with shown_progress(terminal, f"verifying {visible(path)}") as progress:
            return Outcome(path, pytreeckpt.verify(path, progress=progress), None)
    except PytreeckptError as error:
        return Outcome(path, None, error)


def outcome_lines(outcome: Outcome, *, quiet: bool) -> list[Line]:
    """A line about a file, and one for each problem."""
    path = visible(outcome.path)
    if outcome.error is not None:
        if outcome.code == USAGE:
            return []
        return [
            _line("refused", "bad", path),
            _problem_line(visible(str(outcome.error)), getattr(outcome.error, "rule", None)),
        ]
    report = outcome.report
    assert report is not None  # noqa: S101 - one of them is there
    if report.ok:
        facts = f"{size(report.file_nbytes)}, {count(report.n_arrays, 'array')}, {count(report.n_chunks, 'chunk')}"
        return [] if quiet else [_line("ok", "good", path, f"{facts}, root {(report.root or '')[:16]}…")]
    refused = report.root is None and (report.problems[0].kind != "corrupt" or report.problems[0].rule == "F-1")
    word = "refused" if refused else "damaged"
    return [
        _line(word, "bad", path, count(len(report.problems), "problem")),
        *(_problem_line(visible(problem.message), problem.rule) for problem in report.problems),
    ]


def _line(word: str, style: Style, path: str, facts: str = "") -> Line:
    return [Span(f"{word:<7}  ", style), Span(path, "plain"), Span(f"  {facts}", "note")]


def _problem_line(message: str, rule: str | None) -> Line:
    return [Span("  - ", "guide"), Span(message, "plain"), Span(f"  [{rule}]" if rule else "", "note")]


def json_sections(outcomes: Sequence[Outcome]) -> dict[str, object]:
    """The document of `--json`."""
    return {
        "schema": SCHEMA,
        "ok": all(outcome.code == FINE for outcome in outcomes),
        "files": Encoded([dumps(_record(outcome)) for outcome in outcomes]),
    }


def _record(outcome: Outcome) -> dict[str, Any]:
    report, error = outcome.report, outcome.error
    record: dict[str, Any] = {"path": outcome.path, "ok": outcome.code == FINE}
    if report is not None:
        record |= {
            "nbytes": report.file_nbytes,
            "arrays": report.n_arrays,
            "chunks": report.n_chunks,
            "root": report.root,
        }
    problems = report.problems if report is not None else ()
    record["problems"] = [
        {
            "kind": problem.kind,
            "rule": problem.rule,
            "leaf": problem.leaf,
            "chunk": problem.chunk,
            "offset": problem.offset,
            "message": problem.message,
        }
        for problem in problems
    ]
    if error is not None:
        kind = "corrupt" if outcome.code == DAMAGED else "unreadable"
        place = {"leaf": None, "chunk": None, "offset": None}
        record["problems"] = [{"kind": kind, "rule": getattr(error, "rule", None), **place, "message": str(error)}]
    return record


COMMAND: Final = Command("verify", "check every byte of checkpoints", EXAMPLES, add_arguments, run)
