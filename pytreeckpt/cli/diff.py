"""`pytreeckpt diff`: how two checkpoints differ, of whatever formats; values are read only if they must be."""

from __future__ import annotations

import math
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from typing import Final

from pytreeckpt.checkpoint import Checkpoint
from pytreeckpt.cli.codes import FINE, USAGE
from pytreeckpt.cli.command import Command
from pytreeckpt.cli.diff_json import sections
from pytreeckpt.cli.diff_rows import ORDERS, branches_of, rows
from pytreeckpt.cli.diff_words import COLUMNS
from pytreeckpt.cli.encoding import document
from pytreeckpt.cli.layout import Line, Span, fields, paragraph, table
from pytreeckpt.cli.source import opened
from pytreeckpt.cli.terminal import Terminal, shown_progress
from pytreeckpt.cli.text import size, visible
from pytreeckpt.errors import PytreeckptError
from pytreeckpt.operations.diff_records import Change, Diff
from pytreeckpt.operations.diffing import diff

_DIFFERENT: Final = 1

_EXAMPLES: Final = """\
examples:
  pytreeckpt diff step-1000.ptck step-2000.ptck
  pytreeckpt diff step-1000.ptck step-2000.ptck --values --sort change
  pytreeckpt diff model.pt model.safetensors --content --rtol 1e-5 --atol 1e-8
  pytreeckpt diff a.ptck b.ptck --select 'params/**' --quiet && echo the same weights
  pytreeckpt diff a.ptck b.ptck --json | jq -r '.changes[] | select(.kind == "shape") | .path'

exit codes:
  0  the same
  1  different
  2  trouble: a file that is damaged, not there or no checkpoint (elsewhere, damage is 1), or a mistake in the command
     line
"""


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help="a checkpoint, or a file or folder of another format")
    parser.add_argument("b", metavar="B", help="another one")
    parser.add_argument(
        "--select",
        action="append",
        metavar="PATH",
        help="only what is at this path, such as opt/mu[0], or matches this glob, such as '**/bias'; may be repeated; "
        "leaves the metadata out",
    )
    parser.add_argument(
        "--content",
        action="store_true",
        help="only what stands at each path, and not how it is held: types of containers and tensors, attributes, "
        "orders, ties and metadata may differ, as they do between formats",
    )
    parser.add_argument("--values", action="store_true", help="read the arrays that differ, and say by how much")
    parser.add_argument(
        "--rtol", type=_tolerance, default=0.0, metavar="R", help="numbers may differ by R times that of B (reads both)"
    )
    parser.add_argument(
        "--atol", type=_tolerance, default=0.0, metavar="D", help="numbers may differ by D (reads both)"
    )
    parser.add_argument(
        "--sort",
        choices=[*ORDERS],
        default="order",
        help="the largest arrays first, or those that changed most (reads them); default: as saved",
    )
    parser.add_argument("--all", action="store_true", help="a row for every change")
    parser.add_argument("--quiet", action="store_true", help="print nothing: the exit code says it")
    parser.add_argument("--json", action="store_true", help="everything as one JSON document (docs/command-line.md)")


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ArgumentTypeError(f"{text!r} is no tolerance: a number from 0 on")
    return value


def _run(arguments: Namespace, terminal: Terminal) -> int:
    name = arguments.a
    try:
        with opened(arguments.a) as a:
            name = arguments.b
            with opened(arguments.b) as b:
                name = f"{arguments.a} and {arguments.b}"
                return _compare(arguments, terminal, a, b)
    except PytreeckptError as error:
        # Damage too: nothing can be said of whether the two are the same.
        message = str(error)
        said = message if any(path in message for path in (arguments.a, arguments.b)) else f"{name}: {message}"
        terminal.complain(f"error: {visible(said)}")
        return USAGE


def _compare(arguments: Namespace, terminal: Terminal, a: Checkpoint, b: Checkpoint) -> int:
    with shown_progress(terminal, "comparing the arrays") as progress:
        found = diff(
            a,
            b,
            select=arguments.select,
            values=arguments.values or arguments.sort == "change",
            rtol=arguments.rtol,
            atol=arguments.atol,
            content_only=arguments.content,
            progress=progress,
        )
    if arguments.json and not arguments.quiet:
        terminal.write(document(sections(found, a, b)))
    elif not arguments.quiet:
        terminal.print(_lines(found, a, b, arguments, terminal.width))
    return FINE if found.same else _DIFFERENT


def _lines(found: Diff, a: Checkpoint, b: Checkpoint, arguments: Namespace, width: int | None) -> list[Line]:
    """The two files, the changes as trees, and what they come to."""
    lines = fields([("a", _file_text(a)), ("b", _file_text(b))], width, indent=0)
    shown = [change for change in found if not change.within_tolerance]
    metadata = [change for change in shown if change.part == "metadata"]
    tree = [change for change in shown if change.part != "metadata"]
    is_cut = False
    for label, changes in (("metadata", metadata), ("tree", tree)):
        if changes:
            of_part, cut = _table(label, changes, arguments, width)
            lines += [[], *of_part]
            is_cut = is_cut or cut
    lines += [[], [Span(found.summary(), "good" if found.same else "heading")]]
    notes = [f"{size(found.read_nbytes)} of arrays were read"] if found.read_nbytes else []
    notes += ["--all shows every change"] if is_cut else []
    return [*lines, *paragraph("; ".join(notes), "note", width)] if notes else lines


def _table(label: str, changes: Sequence[Change], arguments: Namespace, width: int | None) -> tuple[list[Line], bool]:
    shown, is_cut = rows(branches_of(changes, label), order=arguments.sort, everything=arguments.all)
    return table(shown, COLUMNS if any(row.cells for row in shown) else (), width), is_cut


def _file_text(checkpoint: Checkpoint) -> str:
    what = visible(checkpoint.format) if checkpoint.root is None else f"root {checkpoint.root[:16]}…"
    return f"{visible(checkpoint.path or '')}  {size(checkpoint.nbytes)}, {what}"


COMMAND: Final = Command("diff", "show how two checkpoints differ", _EXAMPLES, _add_arguments, _run)
