"""The folder of a run where one of its steps is meant."""

from __future__ import annotations

import os

from pytreeckpt.errors import PytreeckptError
from pytreeckpt.steps.names import inside, step_file


def newest_in(path: str) -> str | None:
    """The file of the newest step, if this is the folder of a run."""
    if not os.path.isdir(path):  # noqa: PTH112 - the path is text, as it was given
        return None
    from pytreeckpt.cli.ls_listing import read

    try:
        run, _ = read(path)
    except PytreeckptError:
        return None
    return inside(run.root, step_file(run.records[-1].step)) if run.records else None
