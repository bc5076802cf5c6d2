"""`pytreeckpt report`: a checkpoint as one page, to look at in a browser, to send, or to print."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Final

from pytreeckpt.cli.codes import FINE, USAGE
from pytreeckpt.cli.command import Command
from pytreeckpt.cli.layout import Span
from pytreeckpt.cli.outline import outline_of
from pytreeckpt.cli.report_page import Source, floats_of, page, shown_arrays
from pytreeckpt.cli.report_values import read_values
from pytreeckpt.cli.source import opened
from pytreeckpt.cli.terminal import Terminal, shown_progress
from pytreeckpt.cli.text import size, visible
from pytreeckpt.collection import paused_collection
from pytreeckpt.storage import LocalStorage
from pytreeckpt.writer import publish

_EXAMPLES: Final = """\
examples:
  pytreeckpt report step-1000.ptck -o step-1000.html
  pytreeckpt report model.safetensors -o model.html --values all     read all weights, however many
  pytreeckpt report huge.ptck -o huge.html --values none             read no arrays at all
"""


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a checkpoint, or a file or folder of another format")
    parser.add_argument(
        "-o", "--output", metavar="OUT", required=True, help="the page, such as x.html; replaced if it is there"
    )
    parser.add_argument(
        "--values",
        choices=["sample", "all", "none"],
        default="sample",
        help="what the histograms are of: up to 256 MiB of the weights, evenly spread (default), all, or nothing",
    )


def _run(arguments: Namespace, terminal: Terminal) -> int:
    out = Path(arguments.output)
    if out.exists() and Path(arguments.file).exists() and out.samefile(arguments.file):
        terminal.complain(
            f"error: {visible(arguments.output)} is the checkpoint itself; choose another name for the page"
        )
        return USAGE
    with opened(arguments.file) as checkpoint:
        checkpoint.check_structure()
        outline = outline_of(checkpoint.index, lambda array: checkpoint.read_region(array, ...))
        floats = floats_of(outline)
        with shown_progress(terminal, "reading the arrays") as progress:
            read = read_values(checkpoint, floats, shown_arrays(outline, floats), arguments.values, progress)
        name = Path(arguments.file).name or arguments.file
        # It is of bounded size, and what is made on the way is not.
        with paused_collection():
            pieces = list(page(Source(name, checkpoint, outline, read)))
        written = publish(
            LocalStorage(),
            arguments.output,
            _encoded(pieces),
            if_exists="replace",
            durability="atomic",
        )
    terminal.print([[Span(visible(arguments.output), "plain"), Span(f"  {size(written)}", "note")]])
    return FINE


def _encoded(pieces: Sequence[str]) -> Generator[bytes, None, int]:
    """The page in UTF-8; in the end, its length."""
    nbytes = 0
    for piece in pieces:
        encoded = piece.encode()
        nbytes += len(encoded)
        yield encoded
    return nbytes


COMMAND: Final = Command("report", "make a page of a checkpoint", _EXAMPLES, _add_arguments, _run)
