"""`pytreeckpt inspect`: what is in a checkpoint, ours or a foreign one, without reading its arrays and without any
framework.
"""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Mapping
from typing import Final

from pytreeckpt.checkpoint import Checkpoint
from pytreeckpt.cli.command import Command
from pytreeckpt.cli.encoding import document
from pytreeckpt.cli.inspect_json import sections
from pytreeckpt.cli.inspect_text import Options, report
from pytreeckpt.cli.navigation import find
from pytreeckpt.cli.outline import arrays_below, n_shown, only, outline_of
from pytreeckpt.cli.selected import Selected
from pytreeckpt.cli.source import opened
from pytreeckpt.cli.statistics import Statistics, of_arrays
from pytreeckpt.cli.terminal import Terminal, shown_progress
from pytreeckpt.cli.view import ORDERS
from pytreeckpt.errors import PathError
from pytreeckpt.paths import Path, compile_glob

_EXAMPLES: Final = """\
examples:
  pytreeckpt inspect step-1000.ptck
  pytreeckpt inspect step-1000.ptck params/h           only what is below a path
  pytreeckpt inspect step-1000.ptck params/wte         an array: its chunks, its first values
  pytreeckpt inspect step-1000.ptck --sort size --depth 2
  pytreeckpt inspect step-1000.ptck --match '**/bias' --stats
  pytreeckpt inspect model.pt                          other formats too: docs/interop.md
  pytreeckpt inspect step-1000.ptck --json | jq -r '.leaves[] | select(.kind == "array") | .path'
"""


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a checkpoint, or a file or folder of another format")
    parser.add_argument("path", metavar="PATH", nargs="?", help="show only what is at this path, such as opt/mu[0]")
    parser.add_argument(
        "--depth", type=_depth, metavar="N", help="open N levels (default: as many as give about 160 rows)"
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="a row for every leaf: no level closed, no siblings shown as one, none left out",
    )
    parser.add_argument("--sort", choices=[*ORDERS], default="order", help="the order of siblings (default: as saved)")
    parser.add_argument(
        "--match", metavar="GLOB", help="only leaves that match, such as '**/bias' or 'params/h[*]/mlp'"
    )
    parser.add_argument("--stats", action="store_true", help="read the arrays: min, max, mean, std, zeros, NaN")
    parser.add_argument("--json", action="store_true", help="everything as one JSON document (docs/command-line.md)")


def _depth(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ArgumentTypeError(f"{text!r} is not a number of levels")
    return int(text)


def _run(arguments: Namespace, terminal: Terminal) -> int:
    path = Path.parse(arguments.path) if arguments.path is not None else None
    with opened(arguments.file) as checkpoint:
        selected = select(checkpoint, path, arguments.match)
        statistics = _statistics(checkpoint, selected, terminal) if arguments.stats else None
        if arguments.json:
            terminal.write(document(sections(checkpoint, selected, statistics)))
        else:
            options = Options(arguments.depth, arguments.sort, arguments.all)
            terminal.print(report(checkpoint, selected, statistics, options, terminal.width))
    return 0


def select(checkpoint: Checkpoint, path: Path | None, pattern: str | None) -> Selected:
    """What `PATH` and `--match` select. Raises `PathError` if that is nothing."""
    outline = outline_of(checkpoint.index, lambda array: checkpoint.read_region(array, ...))
    position = outline.tree
    if path is not None:
        found = find(outline, path)
        if found is None:
            # Raises, and says what is there instead.
            checkpoint[path]
            raise PathError(f"nothing at {str(path)!r}")
        position = found
    if pattern is not None:
        outline = only(outline, compile_glob(pattern))
        if not n_shown(outline, position):
            raise PathError(f"{pattern!r} matches no leaf" + (f" at or below {str(path)!r}" if path else ""))
    return Selected(outline, position, path, pattern)


def _statistics(checkpoint: Checkpoint, selected: Selected, terminal: Terminal) -> Mapping[int, Statistics]:
    arrays = sorted(set(arrays_below(selected.outline, [selected.position]).tolist()))
    with shown_progress(terminal, "reading the arrays") as progress:
        return of_arrays(checkpoint.content.reader, arrays, progress=progress)


COMMAND: Final = Command("inspect", "show what is in a checkpoint", _EXAMPLES, _add_arguments, _run)
