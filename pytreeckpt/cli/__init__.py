"""The command line: `pytreeckpt inspect`, `pytreeckpt verify`."""

from pytreeckpt.cli.entry import main

__all__ = ["main"]
