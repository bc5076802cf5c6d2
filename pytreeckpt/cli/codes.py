"""Exit codes: what a script can rely on (docs/command-line.md)."""

from __future__ import annotations

from typing import Final

from pytreeckpt.errors import (
    CorruptionError,
    FormatVersionError,
    LimitError,
    PytreeckptError,
    UnsupportedTypeError,
)

FINE: Final = 0
DAMAGED: Final = 1
"""A file is damaged, is no checkpoint, or is one that this version cannot read."""
USAGE: Final = 2
"""The command line is wrong, or a file or path is not there or cannot be read."""
INTERRUPTED: Final = 130
"""Ctrl-C, as a shell reports SIGINT."""
PIPE_CLOSED: Final = 141
"""Whoever read the output has stopped, as a shell reports SIGPIPE."""


def code_of(error: PytreeckptError) -> int:
    """The exit code for an error."""
    unreadable = CorruptionError | FormatVersionError | LimitError | UnsupportedTypeError
    return DAMAGED if isinstance(error, unreadable) else USAGE
