"""`pytreeckpt plot`: learning curves of runs, from the metrics of their histories: in the terminal, or as a file."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import PurePath
from typing import TYPE_CHECKING, Final

from pytreeckpt.cli.codes import DAMAGED, FINE, USAGE
from pytreeckpt.cli.command import Command
from pytreeckpt.cli.layout import Line, Span, fields
from pytreeckpt.cli.terminal import Terminal
from pytreeckpt.cli.text import count, size, visible

if TYPE_CHECKING:
    from pytreeckpt.cli.plot_curves import Curve, History, Plot

_EXAMPLES: Final = """\
examples:
  pytreeckpt plot run                                  in the terminal
  pytreeckpt plot run --metric val_loss --log --smooth 10
  pytreeckpt plot run -o curves.svg                    as a file: .svg, .png or .pdf
  pytreeckpt plot baseline wider --metric val_loss --x time -o compared.png
"""
_SUFFIXES: Final = (".svg", ".png", ".pdf")
_PANELS_IN_TERMINAL: Final = 4
_PANELS_IN_FILE: Final = 24
_WIDTH_IN_PIPE: Final = 80
_MAX_WIDTH: Final = 160
_MAX_STEPS_NAMED: Final = 4
_MAX_WINDOW: Final = 10_000


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folders of runs; several are compared")
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=_output, help="write a file: .svg, .png or .pdf (needs matplotlib)"
    )
    parser.add_argument(
        "--metric",
        metavar="NAME",
        action="append",
        default=[],
        help="only this metric; may be repeated (default: all in a file; in the terminal, those of the first panels)",
    )
    parser.add_argument("--x", choices=["step", "time", "epoch"], default="step", help="(default: step)")
    parser.add_argument("--log", action="store_true", help="logarithmic values")
    parser.add_argument("--smooth", metavar="W", type=_window, default=1, help="show the mean of W neighbouring steps")


def _output(text: str) -> str:
    if PurePath(text).suffix.lower() not in _SUFFIXES:
        raise ArgumentTypeError(f"{text!r}: the suffix says the format, and is one of {', '.join(_SUFFIXES)}")
    return text


def _window(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= _MAX_WINDOW):
        raise ArgumentTypeError(f"{text!r} is not a number of steps from 1 to {_MAX_WINDOW:,}")
    return int(text[:9])


def _run(arguments: Namespace, terminal: Terminal) -> int:
    if arguments.output is not None and not _has_matplotlib():
        terminal.complain(
            "error: a plot in a file needs matplotlib: pip install 'pytreeckpt[plot]'; "
            "without -o, it is drawn in the terminal"
        )
        return USAGE
    from pytreeckpt.cli.plot_curves import metrics_of, plot_of

    damage: list[str] = []
    histories = [_history(root, damage) for root in arguments.runs]
    there = metrics_of(histories)
    wrong = _objection(arguments.metric, there, arguments.runs)
    if wrong:
        terminal.complain(f"error: {visible(wrong)}")
        return USAGE
    plot = plot_of(
        histories,
        metrics=arguments.metric,
        along=arguments.x,
        log=arguments.log,
        smooth=arguments.smooth,
        max_panels=_PANELS_IN_FILE if arguments.output is not None else _PANELS_IN_TERMINAL,
    )
    if arguments.output is None:
        terminal.print(_charts(plot, terminal))
    else:
        terminal.print(_write(plot, arguments.output, arguments.runs, terminal.width))
    for text in damage:
        terminal.complain(visible(text))
    return DAMAGED if damage else FINE


def _has_matplotlib() -> bool:
    return find_spec("matplotlib") is not None


def _history(root: str, damage: list[str]) -> History:
    """What a run tells. What is wrong with the file of its history comes into `damage`."""
    from pytreeckpt.cli.ls_listing import read
    from pytreeckpt.cli.plot_curves import History

    run, lost = read(root)
    damage += lost
    return History(label=root, records=run.history, pins=run.pins, metric=run.metric, mode=run.mode)


def _objection(wanted: Sequence[str], there: Sequence[str], runs: Sequence[str]) -> str:
    """What is wrong with what is asked for, if anything is."""
    where = ", ".join(runs)
    if not there:
        return f"{where}: there are no metrics to plot; manager.save(…, metrics={{…}}) records them"
    unknown = [name for name in wanted if name not in there]
    if not unknown:
        return ""
    shown = ", ".join(there[:10]) + (f" and {len(there) - 10:,} more" if len(there) > 10 else "")
    return f"{where}: no step has a metric {unknown[0]!r}; there is {shown}"


# In the terminal.


def _charts(plot: Plot, terminal: Terminal) -> list[Line]:
    from pytreeckpt.cli.plot_chart import BRAILLE, IN_LETTERS, chart

    width = min(terminal.width or _WIDTH_IN_PIPE, _MAX_WIDTH)
    rows = 16 if len(plot.panels) == 1 else 10
    lines: list[Line] = []
    for panel in plot.panels:
        # Where there are no colours, several curves of dots could not be told apart.
        in_dots = terminal.draws and (terminal.painted or len(panel.curves) == 1)
        pen = BRAILLE if in_dots else IN_LETTERS
        lines += [*chart(panel, plot.axis, width, rows, log=plot.log, pen=pen), []]
    return [*lines[:-1], *_notes(plot, terminal.width)]


# In a file.


def _write(plot: Plot, path: str, runs: Sequence[str], width: int | None) -> list[Line]:
    from pytreeckpt.cli.plot_figure import drawn
    from pytreeckpt.interop.writing import PlannedFile, publish_files
    from pytreeckpt.storage import LocalStorage

    content = drawn(plot, ", ".join(runs), PurePath(path).suffix[1:].lower())
    file = PlannedFile(path, lambda: [content])
    publish_files(LocalStorage(), [file], if_exists="replace", durability="atomic")
    n_curves = sum(len(panel.curves) for panel in plot.panels)
    about = [
        ("from", ", ".join(map(visible, runs))),
        ("wrote", f"{size(len(content))}, {count(n_curves, 'curve')} in {count(len(plot.panels), 'panel')}"),
    ]
    return [[Span(visible(path), "heading")], *fields(about, width), *_notes(plot, width)]


# What a plot does not show.


def _notes(plot: Plot, width: int | None) -> Iterator[Line]:
    from pytreeckpt.cli.layout import paragraph

    curves = [curve for panel in plot.panels for curve in panel.curves]
    several = len({curve.run for curve in curves}) > 1
    texts = [*plot.notes]
    for curve in curves:
        name = f"{curve.run} {curve.metric}" if several else curve.metric
        if curve.missing:
            texts.append(f"{name}: no finite number at {_steps(curve, curve.missing)}")
        if curve.below:
            texts.append(f"{name}: 0 or less, and so not on a logarithmic axis, at {_steps(curve, curve.below)}")
    if plot.left_out:
        shown = ", ".join(plot.left_out[:6]) + (
            f" and {len(plot.left_out) - 6:,} more" if len(plot.left_out) > 6 else ""
        )
        texts.append(f"not shown: {shown}; --metric NAME shows one")
    if texts:
        yield []
    for text in texts:
        yield from paragraph(visible(text), "note", width)


def _steps(curve: Curve, steps: Sequence[int]) -> str:
    if len(steps) == len(curve.xs):
        return "any step"
    shown = ", ".join(f"{step:,}" for step in steps[:_MAX_STEPS_NAMED])
    more = f" and {len(steps) - _MAX_STEPS_NAMED:,} more" if len(steps) > _MAX_STEPS_NAMED else ""
    return f"step {shown}" if len(steps) == 1 else f"steps {shown}{more}"


COMMAND: Final = Command("plot", "draw learning curves of runs", _EXAMPLES, _add_arguments, _run)
