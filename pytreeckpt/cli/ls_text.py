"""The report of `pytreeckpt ls`: a row for each step, as many metrics as have room, and a summary at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Final

from pytreeckpt.cli.layout import Line, Span, Style, fields, paragraph
from pytreeckpt.cli.ls_listing import Entry, OtherFile, Overview
from pytreeckpt.cli.steps_text import age_text, moment_text, short_number
from pytreeckpt.cli.text import cell_width, count, cut, shorten, size, visible
from pytreeckpt.steps.records import StepRecord

_GAP: Final = "  "
_MAX_TITLE: Final = 16
_METRICS_IN_PIPE: Final = 12
_LEAST_OF_MARKS: Final = 14
_MOST_OF_MARKS: Final = 28
"""Columns of the terminal that are kept for marks before a second metric has room."""
_MAX_NAMES: Final = 8


@dataclass(frozen=True, slots=True)
class Options:
    """`now_s`: the moment that ages are counted to; `absolute`: show moments too."""

    now_s: float
    absolute: bool


@dataclass(frozen=True, slots=True)
class _Column:
    """Cells of one width, aligned to the right, with the gap before them."""

    title: str
    cells: Sequence[str]
    style: Style
    width: int


def _column(title: str, cells: Sequence[str], style: Style = "number") -> _Column:
    width = len(_GAP) + max(map(cell_width, (title, *cells)))
    return _Column(title, [_right(cell, width) for cell in cells], style, width)


def _right(text: str, width: int) -> str:
    return text.rjust(width) if text.isascii() else " " * (width - cell_width(text)) + text


def report(overview: Overview, options: Options, width: int | None) -> list[Line]:
    """The lines."""
    lines: list[Line] = [[Span(visible(overview.root), "heading")]]
    if overview.entries:
        lines += [[], *_steps(overview, options, width)]
    if overview.others:
        lines += [[], *_files("other checkpoints", overview.others, options, width)]
    if overview.leftovers:
        title = "leftovers, of saves that were killed or are in the making"
        lines += [[], *_files(title, overview.leftovers, options, width)]
    lines += [[], *fields([*_summary(overview)], width)]
    if overview.damage:
        lines += [[], [Span("damaged", "bad")], *_texts(overview.damage, width)]
    if overview.notes:
        lines += [[], [Span("to know", "heading")], *_texts(overview.notes, width)]
    return lines


# The steps.


def _steps(overview: Overview, options: Options, width: int | None) -> Iterator[Line]:
    entries = overview.entries
    records = [entry.record for entry in entries]
    columns = [
        _column("step", [str(entry.step) for entry in entries], "plain"),
        _column("age", [age_text(options.now_s - record.saved_at) if record else "" for record in records], "note"),
    ]
    if options.absolute:
        columns.append(_column("saved", [moment_text(record.saved_at) if record else "" for record in records], "note"))
    columns.append(_column("size", [_size(entry) for entry in entries]))
    marks = [_marks(overview, entry) for entry in entries]
    reserved = min(max(_LEAST_OF_MARKS, *map(_taken, marks)), _MOST_OF_MARKS)
    shown, left_out = _that_fit(columns, _metrics(overview.metric, records), width, reserved)
    yield [Span("".join(_right(column.title, column.width) for column in shown), "note")]
    start = sum(column.width for column in shown)
    own = _title(overview.metric)
    for row, entry in enumerate(entries):
        is_best = entry.step == overview.best
        styles: list[Style] = [
            "good" if is_best and column.title == own else "note" if entry.file_nbytes is None else column.style
            for column in shown
        ]
        cells = groupby(zip(styles, shown, strict=True), key=itemgetter(0))
        line = [Span("".join(column.cells[row] for _, column in same), style) for style, same in cells]
        yield [*line, *_fitted(marks[row], None if width is None else width - start)]
    if left_out:
        names = ", ".join(column.title for column in left_out[:_MAX_NAMES])
        more = f" and {len(left_out) - _MAX_NAMES:,} more" if len(left_out) > _MAX_NAMES else ""
        yield from paragraph(f"  not shown: {names}{more}; --metric NAME shows one, --json all", "note", width)


def _size(entry: Entry) -> str:
    """What saving the step has added: of an incremental one, its data file too."""
    if entry.file_nbytes is None:
        return ""
    if entry.incremental and entry.record is not None:
        return f"+{size(entry.record.nbytes)}"
    return size(entry.file_nbytes)


def _metrics(own: str | None, records: Sequence[StepRecord | None]) -> list[_Column]:
    """A column for each metric, that which tells the best step first; and one for the epoch."""
    names = dict.fromkeys(name for record in records if record for name in record.metrics)
    ordered = [*([own] if own in names else []), *(name for name in names if name != own)]
    columns = [
        _column(_title(name), [_value(record.metrics.get(name)) if record else "" for record in records])
        for name in ordered
    ]
    if any(record.epoch is not None for record in records if record):
        columns.insert(1, _column("epoch", [_value(record.epoch) if record else "" for record in records]))
    return columns


def _title(name: str | None) -> str:
    return "" if name is None else shorten(visible(name), _MAX_TITLE)


def _value(number: float | None) -> str:
    return "" if number is None else short_number(number)


def _that_fit(
    columns: Sequence[_Column], metrics: Sequence[_Column], width: int | None, reserved: int
) -> tuple[list[_Column], list[_Column]]:
    """The columns that have room, and the metrics that have none."""
    if width is None:
        return [*columns, *metrics[:_METRICS_IN_PIPE]], list(metrics[_METRICS_IN_PIPE:])
    used = sum(column.width for column in columns)
    n_shown = 0
    for column in metrics:
        used += column.width
        # The first one may leave little room for marks, the others none less than is kept for these.
        if used + (len(_GAP) + reserved if n_shown else 0) > width:
            break
        n_shown += 1
    return [*columns, *metrics[:n_shown]], list(metrics[n_shown:])


def _marks(overview: Overview, entry: Entry) -> list[Span]:
    """What makes a step stand out."""
    marks: list[Span] = []
    if entry.state == "damaged":
        marks.append(Span("damaged", "bad"))
    elif entry.state != "whole":
        marks.append(Span(entry.state, "note"))
    if entry.step == overview.latest:
        marks.append(Span("latest", "heading"))
    if entry.step == overview.best:
        marks.append(Span("best", "good"))
    if entry.record is not None and entry.record.is_emergency:
        marks.append(Span(f"after an {entry.record.reason}", "note"))
    marks += [Span(f"pin {visible(name)}", "array") for name in entry.pins]
    spans: list[Span] = []
    for mark in marks:
        spans += [Span(", " if spans else _GAP, "note"), mark]
    return spans


def _taken(spans: Sequence[Span]) -> int:
    return sum(cell_width(span.text) for span in spans)


def _fitted(spans: Sequence[Span], width: int | None) -> Iterator[Span]:
    if width is None:
        yield from spans
        return
    for span in spans:
        text = cut(span.text, width)
        width -= cell_width(text)
        if text:
            yield Span(text, span.style)


# What else is there.


def _files(title: str, files: Sequence[OtherFile], options: Options, width: int | None) -> Iterator[Line]:
    yield [Span(title if width is None else cut(title, width), "heading")]
    names = [visible(file.name) for file in files]
    ages = [age_text(options.now_s - file.modified_at) for file in files]
    sizes = [size(file.nbytes) for file in files]
    age, nbytes = max(map(len, ages)), max(map(len, sizes))
    room = max(map(cell_width, names)) if width is None else max(12, width - age - nbytes - 15)
    for file, name, when, length in zip(files, names, ages, sizes, strict=True):
        line = [Span(f"  {when:>{age}}  ", "note"), Span(f"{length:>{nbytes}}  ", "number")]
        yield [*line, Span(shorten(name, room), "plain"), *_state(file)]


def _state(file: OtherFile) -> list[Span]:
    if not file.problem:
        return []
    return [Span("  no checkpoint", "note") if file.foreign else Span("  damaged", "bad")]


def _summary(overview: Overview) -> Iterator[tuple[str, str]]:
    present = [entry for entry in overview.entries if entry.file_nbytes is not None]
    if not present and not overview.n_past:
        yield "steps", "none: no CheckpointManager has saved here"
        return
    bad = sum(entry.state == "damaged" for entry in present)
    told = [f"{bad:,} of them damaged"] * bool(bad)
    if overview.n_past:
        told.append(f"{overview.n_past:,} more in the history")
    yield "steps", ", ".join([f"{len(present):,}", *told])
    yield "size", _size_text(overview, present)
    best = next((entry.record for entry in overview.entries if entry.step == overview.best), None)
    if best is not None and overview.metric is not None:
        value = short_number(best.metrics[overview.metric])
        way = "smallest" if overview.mode == "min" else "largest"
        yield "best", f"step {best.step}: {visible(overview.metric)} {value}, the {way}"
    elif overview.metric is not None and present:
        yield "best", f"not known: no step has the metric {visible(overview.metric)}"
    there = {entry.step for entry in present}
    absent = {name: step for name, step in overview.pins.items() if step not in there}
    if absent:
        yield (
            "pins",
            "of steps that are not there: " + ", ".join(f"{visible(n)} ({step})" for n, step in absent.items()),
        )


def _size_text(overview: Overview, present: Sequence[Entry]) -> str:
    shared = sum(entry.incremental for entry in present)
    text = size(overview.nbytes)
    if shared:
        text += f"; {count(shared, 'step')} incremental: + is what saving each has added"
    return text


def _texts(texts: Sequence[str], width: int | None) -> Iterator[Line]:
    for text in texts:
        lines = paragraph(visible(text), "plain", None if width is None else width - 4)
        for place, line in enumerate(lines):
            yield [Span("  - " if not place else "    ", "guide"), *line]
