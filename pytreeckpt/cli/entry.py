"""From the arguments of the process to a command, and from what it raises to an exit code."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from typing import Final

from pytreeckpt import __version__
from pytreeckpt.cli import average, completion, convert, diff, export, inspect, ls, plot, prune, report, verify
from pytreeckpt.cli.codes import FINE, INTERRUPTED, PIPE_CLOSED, USAGE, code_of
from pytreeckpt.cli.command import Command
from pytreeckpt.cli.terminal import terminal
from pytreeckpt.cli.text import visible
from pytreeckpt.errors import PytreeckptError

COMMANDS: Final[Sequence[Command]] = (
    inspect.COMMAND,
    verify.COMMAND,
    diff.COMMAND,
    report.COMMAND,
    convert.COMMAND,
    average.COMMAND,
    export.COMMAND,
    ls.COMMAND,
    prune.COMMAND,
    plot.COMMAND,
    completion.COMMAND,
)

_EPILOG: Final = """\
exit codes:
  0  fine
  1  a file is damaged, or is no checkpoint that this version can read; a conversion is not decided; of diff: the two
     differ
  2  a mistake in the command line, or a file or path that is not there; of diff: damage too
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, by default that of the process, and give its exit code. Raises for no fault of a file."""
    arguments = Namespace()
    try:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        code: int = arguments.run(arguments, terminal())
        sys.stdout.flush()
    except SystemExit as done:
        # Of argparse, for --help and for mistakes, which it has printed.
        return done.code if isinstance(done.code, int) else FINE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return PIPE_CLOSED
    except PytreeckptError as error:
        terminal().complain(f"error: {_message(arguments, error)}")
        return code_of(error)
    except OSError as error:
        _drop_output()
        terminal().complain(f"error: cannot write the output: {visible(str(error))}")
        return USAGE
    return code


def parse(argv: Sequence[str]) -> Namespace:
    """The arguments, with `run` of the command that they ask for."""
    top, below = parsers()
    if argv and argv[0] in below:
        # Intermixed, so that a PATH may also stand after options.
        return below[argv[0]].parse_intermixed_args(argv[1:])
    return top.parse_args(argv)


def parsers() -> tuple[ArgumentParser, Mapping[str, ArgumentParser]]:
    """The parser of the command line, and those of the commands."""
    top = ArgumentParser(
        prog="pytreeckpt",
        description=(
            "Look into checkpoints and trainings; check, compare, convert and average them. Nothing in a file is ever "
            "executed or imported."
        ),
        epilog=_EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"pytreeckpt {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    below: dict[str, ArgumentParser] = {}
    for command in COMMANDS:
        below[command.name] = commands.add_parser(
            command.name,
            help=command.summary,
            description=f"{command.summary[0].upper()}{command.summary[1:]}.",
            epilog=command.examples,
            formatter_class=RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_arguments(below[command.name])
        below[command.name].set_defaults(run=command.run)
    return top, below


def _message(arguments: Namespace, error: PytreeckptError) -> str:
    """What is wrong, and with which file, if it does not say so itself."""
    file, message = visible(getattr(arguments, "file", "")), visible(str(error))
    return message if file in message else f"{file}: {message}"


def _drop_output() -> None:
    """Send what is still buffered nowhere, so that the interpreter does not complain about it when it ends."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
