"""`pytreeckpt completion`: a script that teaches a shell the commands, options and choices of the command line.

It is made from the parsers themselves, by shtab, so that it is never behind them.
"""

from __future__ import annotations

from argparse import Action, ArgumentParser, Namespace
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Final

from pytreeckpt.cli.codes import FINE, USAGE
from pytreeckpt.cli.command import Command
from pytreeckpt.cli.terminal import Terminal

SHELLS: Final = ("bash", "zsh", "tcsh", "fish")

_FILES: Final = frozenset(["FILE", "SRC", "DST", "OUT", "A", "B"])
_FOLDERS: Final = frozenset(["RUN"])
"""What a metavar says that its argument is."""

_EXAMPLES: Final = """\
to switch it on:
  bash    pytreeckpt completion bash > ~/.local/share/bash-completion/completions/pytreeckpt
  zsh     pytreeckpt completion zsh > DIRECTORY/_pytreeckpt       a directory of $fpath
  tcsh    pytreeckpt completion tcsh > ~/.pytreeckpt.csh          and in ~/.tcshrc: source ~/.pytreeckpt.csh
  fish    pytreeckpt completion fish > ~/.config/fish/completions/pytreeckpt.fish
"""


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))


def _run(arguments: Namespace, terminal: Terminal) -> int:
    if not _has_shtab():
        terminal.complain("error: completion needs the package shtab: pip install 'pytreeckpt[cli]'")
        return USAGE
    import shtab

    # The parsers are made of the commands, of which this is one.
    from pytreeckpt.cli.entry import parsers

    if arguments.shell not in shtab.SUPPORTED_SHELLS:
        able = ", ".join(shtab.SUPPORTED_SHELLS)
        terminal.complain(
            f"error: the installed shtab {shtab.__version__} knows {able}, not {arguments.shell}: "
            "pip install --upgrade shtab"
        )
        return USAGE
    top, below = parsers()
    for parser in below.values():
        for action in arguments_of(parser):
            kind = kind_of(action)
            if kind:
                completions = shtab.DIRECTORY if kind == "folder" else shtab.FILE
                action.complete = completions  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue] - where shtab looks
    script: str = shtab.complete(top, arguments.shell)
    # Some shells show the texts of --help; a script in ASCII can be sourced in any locale.
    plain = script.replace("…", "...").encode("ascii", "replace").decode()
    terminal.write([plain.rstrip("\n"), "\n"])
    return FINE


def _has_shtab() -> bool:
    return find_spec("shtab") is not None


def arguments_of(parser: ArgumentParser) -> Sequence[Action]:
    """The positional arguments and the options of a command."""
    # argparse has no public list of them, and shtab reads this one too.
    return parser._actions  # noqa: SLF001


def kind_of(action: Action) -> str:
    """`file` or `folder`, or nothing for an argument that is neither."""
    metavar = action.metavar
    if not isinstance(metavar, str) or action.choices is not None:
        return ""
    if metavar in _FOLDERS:
        return "folder"
    return "file" if metavar in _FILES or metavar.startswith("FILE") else ""


COMMAND: Final = Command("completion", "print a script for the completion of a shell", _EXAMPLES, _add_arguments, _run)
