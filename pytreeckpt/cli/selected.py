"""What a command was asked to show."""

from __future__ import annotations

from dataclasses import dataclass

from pytreeckpt.cli.outline import Outline
from pytreeckpt.paths import Path


@dataclass(frozen=True, slots=True)
class Selected:
    """A position of an outline, and the path and the glob that led there, if any were given."""

    outline: Outline
    position: int
    path: Path | None
    pattern: str | None
