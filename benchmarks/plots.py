"""The figures as bar charts. `charts` says what is on them; `draw` makes an SVG, the same one each time."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.figures import Figure, Results, Summary, distinct, find, summary

Rows = tuple[tuple[str, tuple[Summary | None, ...]], ...]
COLOURS = ("#1f6f8b", "#e07a3f", "#7a9e4b", "#8a5a9e", "#b0a04a", "#5a6b7a")
MIB = 1 << 20
# The axis is logarithmic, and some formats need nothing.
MEMORY_LABEL = "MiB (less than 0.1 is drawn as 0.1)"


@dataclass(frozen=True, slots=True)
class Chart:
    """Rows of bars: in each row one bar for each series, or None where nothing was measured."""

    name: str
    title: str
    label: str
    series: tuple[str, ...]
    rows: Rows
    logarithmic: bool = False


def charts(results: Results) -> tuple[Chart, ...]:
    """The charts that these results fill."""
    return tuple(chart for chart in _charts(results) if chart.rows)


def _charts(results: Results) -> Iterator[Chart]:
    states = [data for data in _data(results, "state") if not data.startswith("MiniLM")]
    speed = "GB of state per second"
    for name, operation, title in (
        ("save-durable", "save, durable", "Saving, until it is on the disk"),
        ("save", "save", "Saving, without fsync"),
        ("restore", "restore", "Restoring"),
        ("restore-in-place", "restore in place", "Restoring into arrays that are there"),
    ):
        cells = [("state", data, operation) for data in states]
        yield Chart(name, title, speed, tuple(states), _by_candidate(results, cells, speed))
    small = _data(results, "leaves")
    for operation in ("save", "restore"):
        rows = _by_candidate(results, [("leaves", data, operation) for data in small], "seconds")
        title = f"Very many small leaves: {operation}"
        yield Chart(f"small-leaves-{operation}", title, "seconds", tuple(small), rows, logarithmic=True)
    for name, operation, title, label in (
        ("codec-compress", "compress", "In memory: compressing, with the default threads", speed),
        ("codec-decompress", "decompress", "In memory: decompressing, with the default threads", speed),
        ("codec-size", "size", "In memory: compressed size", "fraction of the state"),
    ):
        codecs = _candidates(results, "codec")
        yield Chart(name, title, label, tuple(codecs), _by_data(results, codecs, operation, label))
    # The largest size is the last.
    for data in [data for data in _data(results, "memory") if data.startswith("float32")][-1:]:
        operations = distinct(figure.operation for figure in results.figures if figure.case == "memory")
        rows = _by_candidate(results, [("memory", data, operation) for operation in operations], MEMORY_LABEL)
        yield Chart("memory", f"Extra memory, {data}", MEMORY_LABEL, tuple(operations), rows, logarithmic=True)


def _data(results: Results, case: str) -> list[str]:
    return distinct(figure.data for figure in results.figures if figure.case == case)


def _candidates(results: Results, case: str) -> list[str]:
    found = {figure.candidate for figure in results.figures if figure.case == case}
    return [entrant.name for entrant in results.entrants if entrant.name in found]


def _row(label: str, figures: Sequence[Figure | None], unit: str) -> Iterator[tuple[str, tuple[Summary | None, ...]]]:
    if any(figures):
        yield label, tuple(summary(_scaled(figure, unit)) if figure else None for figure in figures)


def _scaled(figure: Figure, label: str) -> list[float]:
    if label.startswith("GB"):
        return [figure.nbytes / value / 1e9 for value in figure.values]
    if label.startswith("fraction"):
        return [value / figure.nbytes for value in figure.values]
    if label == MEMORY_LABEL:
        return [max(value / MIB, 0.1) for value in figure.values]
    return list(figure.values)


def _by_candidate(results: Results, cells: Sequence[tuple[str, str, str]], label: str) -> Rows:
    """A row for each candidate, with a bar for each case, data and operation."""
    names = _candidates(results, cells[0][0]) if cells else []
    return tuple(
        row
        for name in names
        for row in _row(name, [find(results, case, data, name, operation) for case, data, operation in cells], label)
    )


def _by_data(results: Results, codecs: Sequence[str], operation: str, label: str) -> Rows:
    """A row for each data, with a bar for each codec."""
    return tuple(
        row
        for data in _data(results, "codec")
        for row in _row(data, [find(results, "codec", data, one, operation) for one in codecs], label)
    )


def draw(chart: Chart) -> str:
    """The chart as SVG, whose bytes depend on nothing but the chart and the version of matplotlib."""
    import matplotlib as mpl

    # No hash of an address, no date, no fonts: text stays text.
    fixed = {"svg.hashsalt": "pytreeckpt", "svg.fonttype": "none", "font.size": 9, "axes.axisbelow": True}
    with mpl.rc_context(fixed):
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure as Canvas

        height = 0.9 + len(chart.rows) * (0.16 * len(chart.series) + 0.12)
        canvas = Canvas(figsize=(7.5, height), layout="constrained")
        FigureCanvasSVG(canvas)
        axes = canvas.add_subplot()
        thickness = 0.8 / len(chart.series)
        for number, series in enumerate(chart.series):
            cells = [(place, values[number]) for place, (_, values) in enumerate(chart.rows)]
            bars = [(place + (number + 0.5) * thickness - 0.4, cell) for place, cell in cells if cell]
            axes.barh(
                [place for place, _ in bars],
                [cell.median for _, cell in bars],
                thickness * 0.92,
                label=series,
                color=COLOURS[number % len(COLOURS)],
                xerr=[[cell.median - cell.lower for _, cell in bars], [cell.upper - cell.median for _, cell in bars]],
                error_kw={"elinewidth": 0.8, "ecolor": "#333333"},
            )
        axes.set_yticks(range(len(chart.rows)), [label for label, _ in chart.rows])
        axes.invert_yaxis()
        axes.set_xlabel(chart.label)
        axes.set_title(chart.title, loc="left")
        if chart.logarithmic:
            axes.set_xscale("log")
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        canvas.legend(loc="outside lower center", ncols=len(chart.series), frameon=False)
        out = io.StringIO()
        canvas.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    # matplotlib ends lines with spaces.
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
