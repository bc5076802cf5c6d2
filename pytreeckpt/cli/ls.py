"""`pytreeckpt ls`: the steps of a run, whether they are whole, and what else is in its folder. It writes nothing."""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from typing import Final

import pytreeckpt
from pytreeckpt.cli.codes import DAMAGED, FINE
from pytreeckpt.cli.command import Command
from pytreeckpt.cli.encoding import document
from pytreeckpt.cli.terminal import Terminal, shown_progress
from pytreeckpt.cli.text import visible
from pytreeckpt.collection import paused_collection

_EXAMPLES: Final = """\
examples:
  pytreeckpt ls run
  pytreeckpt ls run --metric accuracy --mode max       the best by another metric
  pytreeckpt ls run --all                              steps that were pruned, too
  pytreeckpt ls run --verify && echo all fine          every byte of all steps
  pytreeckpt ls run --json | jq -r '.steps[] | select(.best) | .path'
"""


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("root", metavar="RUN", help="the folder of a run, or any folder with checkpoints")
    parser.add_argument("--all", action="store_true", help="steps that were pruned, too, and the moments of all")
    parser.add_argument("--metric", metavar="NAME", help="the metric that tells the best step (default: the run's own)")
    parser.add_argument("--mode", choices=["min", "max"], help="whether its smallest or largest value is the best")
    parser.add_argument("--verify", action="store_true", help="check every byte of all steps, not their ends alone")
    parser.add_argument("--json", action="store_true", help="everything as one JSON document (docs/command-line.md)")


def _run(arguments: Namespace, terminal: Terminal) -> int:
    # Other commands need not wait for these.
    from pytreeckpt.cli.ls_json import sections
    from pytreeckpt.cli.ls_listing import look
    from pytreeckpt.cli.ls_text import Options, report

    overview = look(
        arguments.root,
        metric=arguments.metric,
        mode=arguments.mode,
        everything=arguments.all,
        verify=_verifier(terminal) if arguments.verify else None,
    )
    if arguments.json:
        terminal.write(document(sections(overview)))
    else:
        # A hundred thousand steps are a million spans.
        with paused_collection():
            lines = report(overview, Options(time.time(), arguments.all), terminal.width)
        terminal.print(lines)
    return FINE if overview.ok else DAMAGED


def _verifier(terminal: Terminal) -> Callable[[str], Sequence[str]]:
    """Gives what is wrong with a file, and shows how far it is."""

    def problems(path: str) -> Sequence[str]:
        with shown_progress(terminal, f"verifying {visible(path)}") as progress:
            report = pytreeckpt.verify(path, progress=progress)
        return [problem.message for problem in report.problems]

    return problems


COMMAND: Final = Command("ls", "list the steps of a run", _EXAMPLES, _add_arguments, _run)
