"""A command as data. Each is one module of this package with a `COMMAND`, listed in `pytreeckpt.cli.entry`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass

from pytreeckpt.cli.terminal import Terminal


@dataclass(frozen=True, slots=True)
class Command:
    """A command: `run` gets the parsed arguments and gives the exit code."""

    name: str
    summary: str
    examples: str
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace, Terminal], int]
