"""Rows to lines of a given width: a tree at the left, numbers at the right of it, and a note. Painting is elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Final, Literal, NamedTuple

from pytreeckpt.cli.text import cell_width, cut, shorten

_Curve = Literal["curve1", "curve2", "curve3", "curve4", "curve5", "curve6"]
Style = Literal["plain", "guide", "container", "array", "value", "number", "note", "heading", "good", "bad"] | _Curve


class Span(NamedTuple):
    """A piece of a line, to be painted in one style."""

    text: str
    style: Style


Line = Sequence[Span]


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table. `guide`: the branches of the tree before the label. `alarm`: a note that something is wrong.

    A row without `cells` has its text across all columns.
    """

    guide: str
    label: str
    text: str
    cells: tuple[str, ...]
    note: str
    style: Style
    alarm: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of numbers; those with the greatest `dispensable` go first where the width does not suffice."""

    title: str
    dispensable: int = 0


_GAP: Final = "  "
_MAX_NAME: Final = 60
_MIN_TEXT: Final = 18
_MIN_NAME: Final = 20
_NOTE: Final = 32
_LESS_THAN_NOTES: Final = 3
"""Columns so dispensable go where notes would have to be cut short for them."""
_MIN_LABEL: Final = 8


@dataclass(frozen=True, slots=True)
class _Widths:
    """Columns of the terminal: of names, texts and each column of numbers that is kept; in total, if that is bound."""

    name: int
    text: int
    numbers: Mapping[int, int]
    total: int | None

    @property
    def start_of_text(self) -> int:
        return self.name + len(_GAP)

    @property
    def start_of_note(self) -> int:
        return self.start_of_text + self.text + sum(len(_GAP) + width for width in self.numbers.values()) + len(_GAP)


def table(rows: Sequence[Row], columns: Sequence[Column], width: int | None) -> list[Line]:
    """The lines of a table, cut to `width`; with None, nothing is cut, and a very long name moves its row only."""
    widths = _fit(rows, columns, width)
    lines: list[Line] = [_header(columns, widths)] if widths.numbers else []
    for row in rows:
        lines += _lines(row, widths)
    return lines


def _fit(rows: Sequence[Row], columns: Sequence[Column], width: int | None) -> _Widths:
    """What each column takes; where there is too little room, numbers go first, then text is cut, then names."""
    celled = [row for row in rows if row.cells]
    name = max((cell_width(row.guide) + cell_width(row.label) for row in rows), default=0)
    text = max((cell_width(row.text) for row in celled), default=0)
    note = max((cell_width(row.note) for row in rows), default=0)
    numbers = {
        place: max(cell_width(cell) for cell in [column.title, *(row.cells[place] for row in celled)])
        for place, column in enumerate(columns)
        if any(row.cells[place] for row in celled)
    }
    if width is None:
        return _Widths(min(name, _MAX_NAME), text, numbers, None)
    name = min(name, width * 11 // 20)
    for place in sorted(numbers, key=lambda place: -columns[place].dispensable):
        dispensable = columns[place].dispensable
        reserved = len(_GAP) + min(note, _NOTE) if note and dispensable >= _LESS_THAN_NOTES else 0
        if dispensable and _Widths(name, text, numbers, width).start_of_note - len(_GAP) + reserved > width:
            del numbers[place]
    over = max(0, _Widths(name, text, numbers, width).start_of_note - len(_GAP) - width)
    from_text = min(over, max(0, text - _MIN_TEXT))
    return _Widths(max(min(name, _MIN_NAME), name - (over - from_text)), text - from_text, numbers, width)


def _header(columns: Sequence[Column], widths: _Widths) -> Line:
    titles = "".join(_GAP + columns[place].title.rjust(width) for place, width in widths.numbers.items())
    text = (" " * (widths.start_of_text + widths.text) + titles).rstrip()
    return [Span(text if widths.total is None else cut(text, widths.total), "note")]


def _lines(row: Row, widths: _Widths) -> list[Line]:
    """The line of a row, and a second one for a note that has no room beside it."""
    line = _Builder(widths.total)
    line.add(row.guide, "guide", at=0)
    room = max(widths.name - line.used, _MIN_LABEL)
    label = row.label if widths.total is None else shorten(row.label, room)
    line.add(label, row.style if row.style in {"container", "heading"} else "plain", at=line.used)
    style: Style = "note" if row.style == "container" else row.style
    if not row.cells:
        line.add(row.text, style, at=widths.start_of_text)
        line.add(row.note, "note", at=line.used + len(_GAP))
        return [line.spans]
    line.add(row.text if widths.total is None else cut(row.text, widths.text), style, at=widths.start_of_text)
    end = widths.start_of_text + widths.text
    for place, width in widths.numbers.items():
        end += len(_GAP) + width
        line.add(row.cells[place], "number", at=end - cell_width(row.cells[place]))
    at = widths.start_of_note
    beside = [text for text in (row.alarm, row.note) if text]
    fits = widths.total is None or at + sum(map(cell_width, beside)) + len(_GAP) * (len(beside) - 1) <= widths.total
    below = _Builder(widths.total)
    below.add(row.guide.replace("├─ ", "│  ").replace("└─ ", "   "), "guide", at=0)
    notes = line if fits else below
    at = at if fits else below.used + len(_GAP)
    notes.add(row.alarm, "bad", at=at)
    notes.add(row.note, "note", at=at)
    return [line.spans, below.spans] if beside and not fits else [line.spans]


class _Builder:
    """Collects the spans of a line, each at its column or two to the right of the one before."""

    def __init__(self, width: int | None) -> None:
        self.width = width
        self.used = 0
        self.spans: list[Span] = []

    def add(self, text: str, style: Style, *, at: int) -> None:
        gap = max(at - self.used, len(_GAP)) if at != self.used else 0
        if self.width is not None:
            text = cut(text, self.width - self.used - gap)
        if text:
            self.spans += [Span(" " * gap, "plain"), Span(text, style)] if gap else [Span(text, style)]
            self.used += gap + cell_width(text)


def fields(pairs: Sequence[tuple[str, str]], width: int | None, *, indent: int = 2) -> list[Line]:
    """Names and what they say, one below the other."""
    name = max((len(label) for label, _ in pairs), default=0)
    lines: list[Line] = []
    for label, content in pairs:
        room = None if width is None else max(20, width - indent - name - len(_GAP))
        shown = content if room is None else cut(content, room)
        lines.append([Span(" " * indent + label.ljust(name) + _GAP, "note"), Span(shown, "plain")])
    return lines


def paragraph(text: str, style: Style, width: int | None) -> list[Line]:
    """A text in lines that are broken between words."""
    return [[Span(line, style)] for line in ([text] if width is None else wrap(text, width))]


def plain_line(line: Line) -> str:
    """The text of a line."""
    return "".join(span.text for span in line).rstrip()
