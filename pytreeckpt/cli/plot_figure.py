"""A plot as a file, by matplotlib: without a display, and the same bytes for the same curves and matplotlib.

Names come from files: they are shown as they are, never read as mathematics.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from pytreeckpt.cli.plot_curves import Curve, FloatArray, Panel, Plot
from pytreeckpt.cli.steps_text import short_number
from pytreeckpt.cli.text import cut, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by those who do not see all colours too: Okabe and Ito's, the dark ones first.
_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d")
_DASHES: Final = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)))
_INK: Final = "#333333"
_FAINT: Final = "#8c8c8c"
_MAX_NAME: Final = 40
_STYLE: Final[Any] = {
    "axes.edgecolor": "#b0b0b0",
    "axes.grid": True,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.dpi": 144,
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "grid.color": "#ececec",
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.solid_joinstyle": "round",
    "svg.hashsalt": "pytreeckpt",
    "text.color": _INK,
    "text.parse_math": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def drawn(plot: Plot, title: str, format: str) -> bytes:
    """The bytes of a file in this format: `svg`, `png` or `pdf`. Raises `ImportError` without matplotlib."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # What the user's own settings say is no part of the plot.
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        # A name in a script that the font has not is drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure = Figure(figsize=_size(len(plot.panels)), layout="constrained")
        FigureCanvasAgg(figure)
        _fill(figure, plot, title)
        file = io.BytesIO()
        undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[format]
        figure.savefig(file, format=format, metadata=undated)
    return file.getvalue()


def _columns(n_panels: int) -> int:
    return 1 if n_panels == 1 else 2 if n_panels <= 6 else 3


def _size(n_panels: int) -> tuple[float, float]:
    """Inches."""
    columns = _columns(n_panels)
    rows = math.ceil(n_panels / columns)
    return (8.0, 4.8) if n_panels == 1 else (5.4 * columns, 3.6 * rows + 0.4)


def _fill(figure: Figure, plot: Plot, title: str) -> None:
    columns = _columns(len(plot.panels))
    figure.suptitle(_name(title, 120), x=0.01, ha="left", fontsize=12)
    runs = list(dict.fromkeys(curve.run for panel in plot.panels for curve in panel.curves))
    rows = math.ceil(len(plot.panels) / columns)
    for number, panel in enumerate(plot.panels):
        axes = figure.add_subplot(rows, columns, number + 1)
        _draw(axes, panel, plot, runs)


def _draw(axes: Axes, panel: Panel, plot: Plot, runs: Sequence[str]) -> None:
    axes.set_title(_name(panel.title))
    axes.set_xlabel(plot.axis)
    several_metrics = len({curve.metric for curve in panel.curves}) > 1
    names: list[str] = []
    handles: list[Any] = []
    metrics = list(dict.fromkeys(curve.metric for curve in panel.curves))
    for curve in panel.curves:
        # One run has a colour for each metric; of several, each has its colour, and each metric its dashes.
        place, dashes = runs.index(curve.run), metrics.index(curve.metric)
        if len(runs) == 1:
            place, dashes = dashes, 0
        clipped = replace(curve, ys=_clipped(curve.ys, log=plot.log), raw=_clipped(curve.raw, log=plot.log))
        handles.append(_draw_curve(axes, clipped, _COLOURS[place % len(_COLOURS)], _DASHES[dashes % len(_DASHES)]))
        shown = [curve.run] * (len(runs) > 1) + [curve.metric] * (several_metrics or len(runs) == 1)
        best = "" if curve.best is None else f"   best {short_number(curve.best.y)} at step {curve.best.step:,}"
        names.append(_name(" ".join(shown)) + best)
    _finish(axes, panel, plot)
    if names == [_name(panel.title)]:
        return
    # Of matplotlib, a label that begins with _ has no place in a legend; a text may.
    legend = axes.legend(handles, [str(number) for number in range(len(names))], loc="best")
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)


def _clipped(values: FloatArray, *, log: bool) -> FloatArray:
    """Away from the ends of the doubles, where matplotlib's margins overflow."""
    return np.clip(values, 1e-100, 1e100) if log else np.clip(values, -1e300, 1e300)


def _draw_curve(axes: Axes, curve: Curve, colour: str, dashes: Any) -> Any:
    """The line; its values before smoothing, faintly; dots where there are few; a star where it is best."""
    if not np.array_equal(curve.raw, curve.ys, equal_nan=True):
        axes.plot(curve.xs, curve.raw, color=colour, alpha=0.25, linewidth=1.0, solid_capstyle="round")
    few = len(curve.xs) <= 30
    (line,) = axes.plot(curve.xs, curve.ys, color=colour, linestyle=dashes, marker="o" if few else "", markersize=3)
    if not few:
        alone = _alone(curve.ys)
        axes.plot(curve.xs[alone], curve.ys[alone], color=colour, linestyle="", marker="o", markersize=2.5)
    if curve.best is not None:
        place = np.flatnonzero(curve.xs == curve.best.x)[:1]
        axes.plot(
            curve.xs[place],
            curve.raw[place],
            color=colour,
            marker="*",
            markersize=12,
            markeredgecolor="white",
            zorder=5,
        )
    absent = np.isnan(curve.raw) & np.isfinite(curve.xs)
    if absent.any():
        # At the foot of the field, whatever the values are.
        axes.plot(
            curve.xs[absent],
            [0.012] * int(absent.sum()),
            color=colour,
            linestyle="",
            marker="x",
            markersize=4,
            transform=axes.get_xaxis_transform(),
            clip_on=False,
        )
    return line


def _alone(ys: FloatArray) -> NDArray[np.bool_]:
    """Which points have a gap at both sides, and so no line."""
    there = np.isfinite(ys)
    alone = there.copy()
    alone[1:] &= ~there[:-1]
    alone[:-1] &= ~there[1:]
    return alone


def _finish(axes: Axes, panel: Panel, plot: Plot) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    if plot.log and any(np.isfinite(curve.ys).any() for curve in panel.curves):
        axes.set_yscale("log")
        # Its own are formulas, which are not read as such.
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(FuncFormatter(_between if _decades(panel) < 2 else lambda _value, _: ""))
    if plot.axis == "step":
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    _draw_pins(axes, panel)


def _draw_pins(axes: Axes, panel: Panel) -> None:
    """A line for each pin; those that lie close together have their names side by side."""
    xs = np.concatenate([curve.xs[np.isfinite(curve.xs)] for curve in panel.curves])
    near = 0.025 * float(np.ptp(xs)) if len(xs) else 0.0
    groups: list[tuple[float, list[str]]] = []
    for pin in panel.pins:
        axes.axvline(pin.x, color=_FAINT, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
        if groups and pin.x - groups[-1][0] <= near:
            groups[-1][1].append(pin.text)
        else:
            groups.append((pin.x, [pin.text]))
    for x, names in groups:
        axes.annotate(
            _name(", ".join(names)),
            (x, 1.0),
            xycoords=axes.get_xaxis_transform(),
            # At the left of the first line: at its right are the others.
            xytext=(-2, -2),
            textcoords="offset points",
            rotation=90,
            va="top",
            ha="right",
            fontsize=7.5,
            color=_FAINT,
        )


def _decades(panel: Panel) -> float:
    values = np.concatenate([curve.ys[np.isfinite(curve.ys)] for curve in panel.curves])
    return float(np.log10(values.max()) - np.log10(values.min()))


def _between(value: float, _place: object) -> str:
    """The number at a mark between powers of ten, where there are few of these."""
    return f"{value:g}" if f"{value:e}"[:3] in {"2.0", "5.0"} else ""


def _name(text: str, width: int = _MAX_NAME) -> str:
    return cut(visible(text), width)
