"""A plot in the terminal: dots of braille, eight to a character; or one letter for each curve, where there are neither
colours to tell several apart nor braille.

A pure function from a panel to lines. A library would set the dots, and that is the least of it: round numbers at the
axes, gaps, marks, styles that vanish in a pipe, and a width that is kept, are what makes a chart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pytreeckpt.cli.layout import Line, Span, Style
from pytreeckpt.cli.plot_axes import Scale, scale_of, tick_texts, ticks
from pytreeckpt.cli.plot_curves import Curve, FloatArray, Mark, Panel
from pytreeckpt.cli.steps_text import short_number
from pytreeckpt.cli.text import cell_width, cut, visible

CURVE_STYLES: Final[tuple[Style, ...]] = ("curve1", "curve2", "curve3", "curve4", "curve5", "curve6")
LETTERS: Final = "ox+#%&@$=~"
_BRAILLE: Final = 0x2800
# The bit of each dot of a character, by row and column.
_DOTS: Final = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]], np.int64)
_MIN_COLUMNS: Final = 16
_BETWEEN_X_NUMBERS: Final = 12
_ROWS_BETWEEN_Y_NUMBERS: Final = 3

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pen:
    """How curves are drawn: in dots, `across` × `down` to a character, or in letters, one to a character."""

    across: int
    down: int


BRAILLE: Final = Pen(2, 4)
IN_LETTERS: Final = Pen(1, 1)


def chart(panel: Panel, axis: str, width: int, rows: int, *, log: bool, pen: Pen) -> list[Line]:
    """The lines of a panel, none wider than `width`, its field `rows` high; a sentence if there is nothing to draw."""
    lines: list[Line] = [[Span(cut(visible(panel.title), width), "heading")]]
    xs = np.concatenate([curve.xs[np.isfinite(curve.ys)] for curve in panel.curves])
    ys = np.concatenate([curve.ys[np.isfinite(curve.ys)] for curve in panel.curves])
    if not len(xs):
        return [*lines, [Span(cut("  no value that can be shown", width), "note")]]
    along = scale_of(float(xs.min()), float(xs.max()))
    # The best is a value as it is, and may lie beyond the means of a curve that was smoothed.
    ends = [float(ys.min()), float(ys.max()), *(curve.best.y for curve in panel.curves if curve.best is not None)]
    up = scale_of(min(ends), max(ends), log=log)
    values = ticks(up, max(2, rows // _ROWS_BETWEEN_Y_NUMBERS))
    numbers = {_row(up, value, rows): text for value, text in zip(values, tick_texts(values), strict=True)}
    margin = max(map(len, numbers.values()))
    columns = max(_MIN_COLUMNS, width - margin - 3)
    field = _field(panel.curves, (along, up), columns, rows, pen)
    for row, spans in enumerate(field):
        edge = f" {numbers.get(row, ''):>{margin}} {'┤' if row in numbers else '│'}"
        lines.append([Span(edge, "guide"), *spans])
    lines += _below(along, axis, panel.pins, margin + 2, columns)
    return [*lines, *_legend(panel, axis, width, pen)]


def _row(up: Scale, value: float, rows: int) -> int:
    return rows - 1 - min(rows - 1, int(min(max(up.place(value), 0.0), 1.0) * rows))


# The field.


def _field(curves: Sequence[Curve], scales: tuple[Scale, Scale], columns: int, rows: int, pen: Pen) -> list[list[Span]]:
    """The characters of the curves; where several meet, in the style of the last of them."""
    along, up = scales
    dots = np.zeros((rows, columns), np.int64)
    owner = np.full((rows, columns), -1, np.int64)
    for number, curve in enumerate(curves):
        horizontal, vertical = _drawn(curve, along, up, columns * pen.across, rows * pen.down)
        row, column = vertical // pen.down, horizontal // pen.across
        if pen.down > 1:
            np.bitwise_or.at(dots, (row, column), _DOTS[vertical % pen.down, horizontal % pen.across])
        owner[row, column] = number
    stars = {
        (_row(up, curve.best.y, rows), min(columns - 1, int(along.place(curve.best.x) * columns)))
        for curve in curves
        if curve.best is not None
    }
    return [_spans(dots[row], owner[row], {column for at, column in stars if at == row}, pen) for row in range(rows)]


def _drawn(curve: Curve, along: Scale, up: Scale, columns: int, rows: int) -> tuple[IntArray, IntArray]:
    """The dots of a curve, in columns from the left and rows from the top: its points, and lines between neighbours."""
    there = np.isfinite(curve.ys) & np.isfinite(curve.xs)
    x = _places(along, curve.xs[there], columns)
    y = rows - 1 - _places(up, curve.ys[there], rows)
    number = np.flatnonzero(there)
    joined = np.flatnonzero(np.diff(number) == 1)
    wide, high = x[joined + 1] - x[joined], y[joined + 1] - y[joined]
    steps = np.maximum(np.maximum(abs(wide), abs(high)), 1)
    of = np.repeat(np.arange(len(joined)), steps)
    part = (np.arange(len(of)) - (np.cumsum(steps) - steps)[of]) / steps[of]
    between_x = np.rint(x[joined][of] + part * wide[of]).astype(np.int64)
    between_y = np.rint(y[joined][of] + part * high[of]).astype(np.int64)
    return np.concatenate([between_x, x]), np.concatenate([between_y, y])


def _places(scale: Scale, values: FloatArray, number: int) -> IntArray:
    """The dot, of `number`, of each value."""
    parts = np.array([scale.place(value) for value in values.tolist()], np.float64)
    return np.clip((parts * number).astype(np.int64), 0, number - 1)


def _spans(dots: IntArray, owner: IntArray, stars: set[int], pen: Pen) -> list[Span]:
    """A row of the field, without the blanks at its end."""
    cells: list[tuple[str, Style]] = []
    for column, (bits, number) in enumerate(zip(dots.tolist(), owner.tolist(), strict=True)):
        if column in stars:
            cells.append(("★" if pen.down > 1 else "*", "heading"))
        elif number < 0:
            cells.append((" ", "plain"))
        else:
            cells.append((chr(_BRAILLE + bits) if pen.down > 1 else _letter(number), _style(number)))
    while cells and cells[-1][0] == " ":
        cells.pop()
    spans: list[Span] = []
    for text, style in cells:
        if spans and spans[-1].style == style:
            spans[-1] = Span(spans[-1].text + text, style)
        else:
            spans.append(Span(text, style))
    return spans


def _style(number: int) -> Style:
    return CURVE_STYLES[number % len(CURVE_STYLES)]


def _letter(number: int) -> str:
    return LETTERS[number % len(LETTERS)]


# Around the field.


def _below(along: Scale, axis: str, pins: Sequence[Mark], start: int, columns: int) -> list[Line]:
    """The axis, with a mark where a number or a pin is, and the numbers."""
    values = ticks(along, max(2, columns // _BETWEEN_X_NUMBERS))
    if axis == "step":
        # Half a step is none.
        values = [value for value in values if value == int(value)] or [along.low, along.high]
    line = ["─"] * columns
    texts = [" "] * (start + columns + 1)
    for value, text in zip(values, tick_texts(values), strict=True):
        column = min(columns - 1, int(along.place(value) * columns))
        line[column] = "┴"
        first = min(max(start + 1 + column - len(text) // 2, 0), start + 1 + columns - len(text))
        if all(character == " " for character in texts[max(first - 1, 0) : first + len(text)]):
            texts[first : first + len(text)] = text
    for pin in pins:
        place = along.place(pin.x)
        if 0 <= place <= 1:
            line[min(columns - 1, int(place * columns))] = "▲"
    return [[Span(" " * start + "└" + "".join(line), "guide")], [Span("".join(texts).rstrip(), "guide")]]


def _legend(panel: Panel, axis: str, width: int, pen: Pen) -> list[Line]:
    """What the curves are, how far each has come and where it was best; and the pins. Broken where the width ends."""
    several_runs = len({curve.run for curve in panel.curves}) > 1
    several_metrics = len({curve.metric for curve in panel.curves}) > 1
    items: list[list[Span]] = []
    for number, curve in enumerate(panel.curves):
        names = [curve.run] * several_runs + [curve.metric] * (several_metrics or not several_runs)
        key = "━━" if pen.down > 1 else _letter(number)
        last = curve.ys[np.isfinite(curve.ys)]
        facts = f" last {short_number(last[-1])}" if len(last) else " no value"
        if curve.best is not None:
            star = "★" if pen.down > 1 else "*"
            facts += f", {star} best {short_number(curve.best.y)} at step {curve.best.step:,}"
        items.append([Span(f"{key} ", _style(number)), Span(visible(" ".join(names)), "plain"), Span(facts, "note")])
    items += [
        [Span("▲ ", "guide"), Span(f"pin {visible(pin.text)} at step {pin.step:,}", "note")] for pin in panel.pins
    ]
    lines: list[Line] = []
    used = 0
    for item in [*items, [Span(f"x: {axis}", "note")]]:
        shown = _fitted(item, width - 2)
        taken = sum(cell_width(span.text) for span in shown)
        if not lines or used + 3 + taken > width:
            lines.append([Span("  ", "plain"), *shown])
            used = 2 + taken
        else:
            lines[-1] = [*lines[-1], Span("   ", "plain"), *shown]
            used += 3 + taken
    return lines


def _fitted(item: Sequence[Span], width: int) -> list[Span]:
    """The spans cut at a width."""
    shown: list[Span] = []
    for span in item:
        text = cut(span.text, width)
        width -= cell_width(text)
        if text:
            shown.append(Span(text, span.style))
    return shown
