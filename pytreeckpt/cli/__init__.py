"""The command line, `pytreeckpt`: each command is a module with a `COMMAND`."""

from pytreeckpt.cli.entry import main

__all__ = ["main"]
