"""Histograms as small SVG drawings, with what there is to say of the numbers beside them."""

from __future__ import annotations

import math
from typing import Final

from pytreeckpt.cli.report_html import Html, element, joined, name, text
from pytreeckpt.cli.report_values import Bars, Values, bars_of
from pytreeckpt.cli.statistics_text import number_text
from pytreeckpt.cli.text import amount, percent

_MIN_BARS: Final = 8
_MAX_BARS: Final = 60
_WIDTH: Final = 300.0
_HEIGHT: Final = 90.0


def histogram(title: str, subtitle: str, values: Values, colour: int) -> Html:
    """A panel: a name, a drawing and a few numbers."""
    # Of a few values, a few bars.
    bars = bars_of(values, max(_MIN_BARS, min(_MAX_BARS, math.isqrt(4 * values.n_read))))
    drawing = _drawing(bars) if bars is not None else element("p", text("no finite numbers"), class_="note")
    head = element("figcaption", element("b", name(title)), element("span", text(subtitle)))
    return element("figure", head, drawing, _facts(values, bars), class_=f"histogram d{colour}")


def _drawing(bars: Bars) -> Html:
    greatest = max(bars.counts) or 1.0
    step = _WIDTH / len(bars.counts)
    drawn = [
        element(
            "rect",
            x=round(place * step, 2),
            y=round(_HEIGHT * (1 - number / greatest), 2),
            width=round(step * 0.92, 2),
            height=round(_HEIGHT * number / greatest, 2),
        )
        for place, number in enumerate(bars.counts)
        if number > 0
    ]
    if bars.low < 0 < bars.high:
        at = round(-bars.low / (bars.high - bars.low) * _WIDTH, 2)
        drawn.append(element("line", x1=at, x2=at, y1=0, y2=_HEIGHT, class_="zero"))
        zero = element("text", text("0"), x=at, y=_HEIGHT + 13, text_anchor="middle")
        drawn += [zero] if 40 < at < _WIDTH - 40 else []
    drawn.append(element("line", x1=0, x2=_WIDTH, y1=_HEIGHT, y2=_HEIGHT, class_="axis"))
    drawn.append(element("text", text(_tick(bars.low)), x=0, y=_HEIGHT + 13))
    drawn.append(element("text", text(_tick(bars.high)), x=_WIDTH, y=_HEIGHT + 13, text_anchor="end"))
    return element("svg", *drawn, viewBox=f"0 0 {_WIDTH:.0f} {_HEIGHT + 18:.0f}", role="img", aria_label="histogram")


def _tick(value: float) -> str:
    return f"{value:.3g}"


def _facts(values: Values, bars: Bars | None) -> Html:
    found = values.statistics
    pairs = [("mean", number_text(found.mean)), ("std", number_text(found.std))] if found.n_finite else []
    pairs += [("min", number_text(found.minimum)), ("max", number_text(found.maximum))] if found.n_finite else []
    if found.n_zeros:
        apart = ", not drawn" if bars is not None and bars.n_zeros else ""
        pairs.append(("zeros", percent(found.n_zeros, found.n_items) + apart))
    shown = [element("span", text(word), element("b", text(value))) for word, value in pairs]
    bad = [f"{found.n_nan:,} NaN"] if found.n_nan else []
    bad += [f"{found.n_infinite:,} infinite"] if found.n_infinite else []
    shown += [element("span", element("b", text(each)), class_="bad") for each in bad]
    if values.n_read < values.n_items:
        shown.append(element("span", text(f"of {amount(values.n_read)} read"), class_="note"))
    return element("p", joined(shown), class_="facts")
