"""The report of `pytreeckpt convert`: a heading, tables of what becomes what, and what is left to decide."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from textwrap import wrap
from typing import Final

from pytreeckpt.cli.convert_job import Job
from pytreeckpt.cli.convert_steps import Result
from pytreeckpt.cli.layout import Line, Span, fields
from pytreeckpt.cli.text import cell_width, count, size, visible
from pytreeckpt.convert.operations import describe_operations
from pytreeckpt.convert.problems import Problems
from pytreeckpt.convert.report import Report, Row

_UNCHANGED: Final = describe_operations(())
_MAX_COLUMN: Final = 80
_MOMENTS: Final = frozenset(["first moment", "second moment"])
_OF_MODEL: Final = frozenset(["parameter", "buffer"])
# A number that is a step of a name, or ends one: blocks/0, blocks_0, h.0.attn, [0].
_NUMBER: Final = re.compile(r"(?<=[/._\[\"])\d+(?=[/.\s\",:\]]|$)")
_RULE: Final = re.compile(r'decide with a rule such as (Kind|Choose)\("([^"]*)", "([^"]*)"\)')
_IN_FILE: Final = (
    (
        re.compile(r'Flattened\("([^"]*)", \(([^)]*)\), "output"\)'),
        r'[[flattened]] layers = "\1" shape = [\2] side = "output"',
    ),
    (re.compile(r'Flattened\("([^"]*)", \(([^)]*)\)\)'), r'[[flattened]] layers = "\1" shape = [\2]'),
    (re.compile(r'Fill\("([^"]*)", ([^)]*)\)'), r'[[fill]] leaves = "\1" value = \2'),
    (re.compile(r"Waive\(check='([^']*)'\)"), r'[[waive]] check = "\1"'),
)
"""Rules in Python that the command line has in files."""


def report(result: Result, width: int | None) -> list[Line]:
    """The lines."""
    plan = None if result.plan is None else result.plan.report()
    lines = [*_head(result, plan, width)]
    if plan is not None:
        # Without a target, what stays as it is goes without saying.
        alone = result.job.scheme is None and result.job.target is None
        mapped = [row for row in plan.mapped if not (alone and row.operations == _UNCHANGED)]
        for title, rows in (
            ("parameters and buffers", [row for row in mapped if row.quantity in _OF_MODEL]),
            ("optimizer", _summed([row for row in mapped if row.quantity not in _OF_MODEL])),
            ("dropped", [replace(row, operations="") for row in plan.dropped]),
            ("filled", plan.filled),
        ):
            lines += _table(title, rows, width)
        lines += _texts("left over, as waived: of the source", plan.unused, width)
        lines += _texts("left over, as waived: of the target", plan.missing, width)
        lines += _texts("to go on with in optax", plan.recipes, width)
    lines += _texts("to know", (*(plan.notes if plan is not None else ()), *result.notes), width)
    return [*lines, *_problems(result.problems, width)]


def _head(result: Result, plan: Report | None, width: int | None) -> Iterator[Line]:
    job = result.job
    yield [Span(visible(job.destination), "heading")]
    about = [("from", _place(job.source.file, str(job.source.path)) + f", {result.source_format}")]
    if job.target is not None:
        about.append(("like", _place(job.target.file, str(job.target.path))))
    if job.scheme is not None:
        about.append(("like", f"{job.scheme}, by its conventions"))
    if job.invert:
        about.append(("back", f"by {visible(str(job.residuals))}"))
    if plan is not None:
        about.append(("plan", _plan_text(plan, job)))
    about.append(("wrote", _written(result)))
    yield from fields(about, width)


def _place(file: str, path: str) -> str:
    return visible(file) + (f", at {visible(path)}" if path else "")


def _plan_text(plan: Report, job: Job) -> str:
    from_, to = plan.conventions
    way = f"{from_} to {job.scheme or to}" if from_ != to else f"to {job.dtype}" if job.target is None else from_
    parts = [("mapped", plan.mapped), ("dropped", plan.dropped), ("filled", plan.filled)]
    texts = [f"{sum(row.count for row in rows):,} {name}" for name, rows in parts if rows]
    return f"{way}: {', '.join(texts) or 'nothing'}"


def _written(result: Result) -> str:
    outcome = result.outcome
    if outcome is None:
        return "nothing: not decided, see below" if result.problems else "nothing: --dry-run; all is decided"
    files = "" if len(outcome.paths) == 1 else f", in {count(len(outcome.paths), 'file')}"
    return f"{size(outcome.nbytes)}, {result.job.format.name}, {count(result.n_leaves, 'leaf')}{files}"


# Tables.


def _table(title: str, rows: Iterable[Row], width: int | None) -> Iterator[Line]:
    """A row for entries that are alike: what becomes what, how many of them, by what, and why; in two lines where one
    is too narrow.
    """
    cells = [
        (
            " → ".join(visible(text) for text in (row.source, row.target) if text),
            f"×{row.count}" if row.count > 1 else "",
            row.operations,
            visible(row.reason),
        )
        for row in rows
    ]
    if not cells:
        return
    widths = [max(cell_width(row[place]) for row in cells) for place in range(4)]
    yield []
    yield [Span(title, "heading")]
    if width is None or 2 + sum(widths) + 2 * sum(map(bool, widths[1:])) <= width:
        limit = None if width is not None else _MAX_COLUMN
        yield from (_row(row, widths, limit) for row in cells)
        return
    for names, times, operations, reason in cells:
        yield [Span(f"  {names}", "plain"), Span(f"  {times}" if times else "", "number")]
        yield [Span(" " * 6 + operations + "  " * bool(operations), "value"), Span(reason, "note")]


def _summed(rows: Sequence[Row]) -> Iterator[Row]:
    """The rows of an optimizer's state, where the moments of all parameters are one."""
    moments: dict[str, list[Row]] = {}
    for row in rows:
        if row.quantity in _MOMENTS:
            moments.setdefault(row.reason, []).append(row)
    for alike in moments.values():
        yield replace(alike[0], operations="as the parameters", count=sum(row.count for row in alike))
    yield from (row for row in rows if row.quantity not in _MOMENTS)


def _row(cells: Sequence[str], widths: Sequence[int], limit: int | None) -> Line:
    spans = [Span("  ", "plain")]
    for text, width, style in zip(cells, widths, ("plain", "number", "value", "note"), strict=True):
        if width:
            room = width if limit is None else min(width, limit)
            spans.append(Span(text + " " * (room - cell_width(text)) + "  ", style))  # type: ignore[arg-type]
    return spans


# Texts.


def _texts(title: str, texts: Iterable[str], width: int | None) -> Iterator[Line]:
    found = list(texts)
    if not found:
        return
    yield []
    yield [Span(title, "heading")]
    for text in found:
        yield from _paragraph(text, width, 2)


def _paragraph(text: str, width: int | None, indent: int) -> Iterator[Line]:
    """A text of one or more lines, which may be indented themselves."""
    for place, line in enumerate(text.split("\n")):
        own = indent + (len(line) - len(line.lstrip()) if place else 0)
        shown = visible(line.strip())
        pieces = [shown] if width is None else wrap(shown, max(20, width - own - 2), break_long_words=False) or [""]
        for number, piece in enumerate(pieces):
            yield [Span(" " * (own + (2 if number else 0)) + piece, "plain")]


# What is not decided.


def _problems(problems: Problems, width: int | None) -> Iterator[Line]:
    for title, texts in (
        ("ambiguous", problems.ambiguous),
        ("does not fit", problems.mismatched),
        ("unused, of the source", problems.unused),
        ("missing, of the target", problems.missing),
    ):
        if not texts:
            continue
        yield []
        yield [Span(f"{title} ({len(texts):,})", "bad")]
        for text, times in _alike(texts):
            first, newline, rest = _as_option(text, several=times > 1).partition("\n")
            yield from _paragraph(first + (f"  ×{times}" if times > 1 else "") + newline + rest, width, 2)
    if problems:
        parts = [_PARTS] if problems.unused or problems.missing else []
        yield from _texts("to decide it", [*_ADVICE, *parts], width)


_ADVICE: Final = (
    "--kind PATTERN=KIND says what layers are; --rules FILE.toml has renames and all other rules (docs/conversion.md)",
    "--waive-unused PATTERN and --waive-missing PATTERN let leaves be left over that are meant to be",
)
_PARTS: Final = (
    "--select PATH converts a part of SRC alone, such as its model without its optimizer; --target FILE:PATH likewise"
)


def _as_option(text: str, *, several: bool) -> str:
    """A text whose advice is a rule in Python, with what the command line has for it."""

    def option(found: re.Match[str]) -> str:
        rule, layers, value = found.groups()
        pattern = _NUMBER.sub("*", f"/{layers}")[1:] if several else layers
        if rule == "Kind":
            # A name may be what a shell would run, and this is there to be copied.
            return f"decide with --kind {shlex.quote(f'{pattern}={value}')}"
        return f'decide in a file for --rules: [[choose]] layers = "{pattern}" variant = "{value}"'

    shown = _RULE.sub(option, text)
    for pattern, table in _IN_FILE:
        shown = pattern.sub(f"{table} in a file for --rules", shown)
    return shown


def _alike(texts: Sequence[str]) -> list[tuple[str, int]]:
    """Texts that differ in the numbers of names only, as one: the first, and how many there are."""
    groups: dict[str, list[str]] = {}
    for text in texts:
        groups.setdefault(_NUMBER.sub("#", text), []).append(text)
    return [(group[0], len(group)) for group in groups.values()]
