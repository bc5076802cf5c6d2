"""`pytreeckpt average`: the average of checkpoints, or of the best or last steps of a run, in one file."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pytreeckpt.cli.codes import FINE, USAGE, code_of
from pytreeckpt.cli.command import Command
from pytreeckpt.cli.encoding import Encoded, document, dumps, encode_plain
from pytreeckpt.cli.layout import Line, Span, fields
from pytreeckpt.cli.run_folder import newest_in
from pytreeckpt.cli.terminal import Terminal, shown_progress
from pytreeckpt.cli.text import count, percent, size, visible
from pytreeckpt.errors import CheckpointNotFoundError, PytreeckptError

if TYPE_CHECKING:
    from pytreeckpt.api import SaveReport

SCHEMA: Final = "pytreeckpt-average/1"
_SHOWN: Final = 12

_EXAMPLES: Final = """\
examples:
  pytreeckpt average a.ptck b.ptck c.ptck -o soup.ptck              the newest last
  pytreeckpt average run --best 5 --metric val_loss -o soup.ptck    steps of a run
  pytreeckpt average run --last 10 -o swa.ptck
  pytreeckpt average a.safetensors b.safetensors -o soup.ptck --weights 0.3,0.7
  pytreeckpt average run --last 3 -o swa.ptck --select 'model/state'

Floats are averaged in float64 and rounded once, in bounded memory. Integers, plain values and the state of optimizers
are those of the newest. `pytreeckpt export soup.ptck soup.safetensors` takes it to another format.
"""


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "files", metavar="FILE", nargs="+", help="checkpoints of any format, the newest last; or the folder of a run"
    )
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="the file to write")
    parser.add_argument("--best", metavar="K", type=int, help="of a run: the K best steps")
    parser.add_argument("--last", metavar="N", type=int, help="of a run: the last N steps")
    parser.add_argument("--metric", metavar="NAME", help="what --best goes by (default: the metric of the run)")
    parser.add_argument("--mode", choices=["min", "max"], help="whether less is better (default: as of the run)")
    parser.add_argument("--weights", metavar="W,W,…", help="a number for each file, in their order")
    parser.add_argument("--select", metavar="GLOB", action="append", help="average only these leaves; may be repeated")
    parser.add_argument("--if-exists", choices=["replace", "error"], default="replace", help="(default: replace)")
    parser.add_argument("--json", action="store_true", help="the report as one JSON document (docs/command-line.md)")


class _OptionError(PytreeckptError, ValueError):
    """The options do not go together, or one of them cannot be read."""


@dataclass(frozen=True, slots=True)
class _Input:
    """A file that goes into the average; of a run, its step and the value of the metric that it was chosen by."""

    path: str
    weight: float
    step: int | None = None
    metric: float | None = None


def _run(arguments: Namespace, terminal: Terminal) -> int:
    from pytreeckpt.operations import average

    try:
        inputs = _inputs(arguments, terminal)
        with shown_progress(terminal, f"averaging {count(len(inputs), 'file')}") as progress:
            report = average(
                [each.path for each in inputs],
                arguments.output,
                weights=[each.weight for each in inputs],
                select=arguments.select,
                if_exists=arguments.if_exists,
                progress=progress,
            )
    except PytreeckptError as error:
        # Of several lines, each is made safe to print.
        terminal.complain("error: " + "\n".join(map(visible, str(error).split("\n"))))
        return code_of(error)
    except ValueError as error:
        terminal.complain(f"error: {visible(str(error))}")
        return USAGE
    if arguments.json:
        terminal.write(document(_sections(inputs, report)))
    else:
        terminal.print(_lines(inputs, report, terminal.width))
    return FINE


def _inputs(arguments: Namespace, terminal: Terminal) -> Sequence[_Input]:
    if arguments.best is None and arguments.last is None:
        given = [name for name in ("metric", "mode") if getattr(arguments, name) is not None]
        if given:
            raise _OptionError(f"--{given[0]} goes with --best K, of a run")
        for path in arguments.files:
            if step := newest_in(path):
                raise _OptionError(
                    f"{path} is the folder of a run: choose steps of it with --last N or --best K, or give their "
                    f"files, such as {step}"
                )
        found: Sequence[_Input] = [_Input(path, 1.0) for path in arguments.files]
    else:
        found = _steps(arguments, terminal)
    if arguments.weights is None:
        return found
    weights = _numbers(arguments.weights)
    if len(weights) != len(found):
        raise _OptionError(f"--weights has {count(len(weights), 'number')} for {count(len(found), 'file')}")
    return [_Input(each.path, weight, each.step, each.metric) for each, weight in zip(found, weights, strict=True)]


def _steps(arguments: Namespace, terminal: Terminal) -> Sequence[_Input]:
    """The steps of a run that were asked for, the newest last."""
    from pytreeckpt.cli.ls_listing import metric_and_mode, read
    from pytreeckpt.steps.choosing import top

    if arguments.best is not None and arguments.last is not None:
        raise _OptionError("--best and --last are two ways to choose steps: leave out one")
    chosen = arguments.last if arguments.best is None else arguments.best
    number = int(chosen or 0)
    if number < 1:
        raise _OptionError(f"--{'last' if arguments.best is None else 'best'} {number}: it is at least 1")
    if len(arguments.files) != 1:
        raise _OptionError("--best and --last choose steps of one run: give its folder alone")
    run, lost = read(arguments.files[0])
    for problem in lost:
        terminal.complain(f"note: {visible(problem)}")
    # What an exception left may be broken.
    sound = [record for record in run.records if record.reason != "exception"]
    if not sound:
        raise CheckpointNotFoundError(f"{arguments.files[0]} holds no steps of a run")
    if arguments.best is None:
        if arguments.metric is not None or arguments.mode is not None:
            raise _OptionError("--metric and --mode go with --best K")
        return [_Input(run.path(record.step), 1.0, record.step) for record in sound[-number:]]
    metric, mode = metric_and_mode(run, arguments.metric, arguments.mode)
    records = [] if metric is None else top(sound, number, metric, mode)
    if metric is None or not records:
        there = sorted({name for record in sound for name in record.metrics})
        problem = "--best needs --metric NAME" if metric is None else f"no step that is there has a metric {metric!r}"
        raise _OptionError(problem + (f"; there is {', '.join(there)}" if there else "; no step has any"))
    records = sorted(records, key=lambda record: record.step)
    return [_Input(run.path(record.step), 1.0, record.step, record.metrics[metric]) for record in records]


def _numbers(text: str) -> list[float]:
    try:
        return [float(each) for each in text.split(",")]
    except ValueError:
        raise _OptionError(f"--weights {text}: they are numbers with commas between them, such as 0.25,0.75") from None


def _lines(inputs: Sequence[_Input], report: SaveReport, width: int | None) -> Sequence[Line]:
    shown = [(f"{each.weight:g} ×", _named(each)) for each in inputs]
    if len(shown) > _SHOWN:
        shown = [*shown[: _SHOWN - 2], ("", f"… {len(shown) - _SHOWN + 1} more"), shown[-1]]
    ratio = percent(report.stored_nbytes, report.raw_nbytes)
    about = [
        ("average of", count(len(inputs), "file")),
        ("newest", visible(inputs[-1].path)),
        (
            "wrote",
            f"{size(report.file_nbytes)}, {count(report.n_arrays, 'array')}"
            + (f", {ratio} of their size" if ratio else ""),
        ),
        ("root", report.root),
    ]
    return [[Span(visible(report.path), "heading")], *fields(about, width), [], *fields(shown, width)]


def _named(each: _Input) -> str:
    metric = "" if each.metric is None else f"  {each.metric:g}"
    return visible(each.path) + metric


def _sections(inputs: Sequence[_Input], report: SaveReport) -> Mapping[str, object]:
    return {
        "schema": SCHEMA,
        "inputs": Encoded(
            [
                dumps(
                    {
                        "path": each.path,
                        "weight": each.weight,
                        "step": each.step,
                        "metric": None if each.metric is None else encode_plain(each.metric),
                    }
                )
                for each in inputs
            ]
        ),
        "output": {
            "path": report.path,
            "root": report.root,
            "nbytes": report.file_nbytes,
            "raw_nbytes": report.raw_nbytes,
            "arrays": report.n_arrays,
            "chunks": report.n_chunks,
        },
    }


COMMAND: Final = Command("average", "average checkpoints, or steps of a run", _EXAMPLES, _add_arguments, _run)
