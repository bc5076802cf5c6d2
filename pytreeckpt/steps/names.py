"""The names in the folder of a run: which are ours, and of what. A name alone makes nothing ours: content does too."""

from __future__ import annotations

import re
from typing import Final

from pytreeckpt.index import DATA_FOLDER, SUFFIX
from pytreeckpt.steps.records import MAX_STEP

HISTORY: Final = f"history{SUFFIX}"
LOCK: Final = ".writer.lock"
NEW_DATA_FILE: Final = f"new{SUFFIX}"
_STEP: Final = re.compile(r"step-([0-9]{8,19})\.ptck")
_DATA_FILE: Final = re.compile(r"[0-9a-f]{64}\.ptck")
# As `Storage.target` makes them: of a process, and (on a file system) with 64 random bits.
_TEMPORARY: Final = re.compile(r"\.(.+)\.[0-9]+(?:-[0-9a-f]{16})?\.tmp", re.DOTALL)


def step_file(step: int) -> str:
    """The name of the file of a step."""
    return f"step-{step:08d}{SUFFIX}"


def step_of(name: str) -> int | None:
    """The step whose file has this name, or None: there is one name for each step."""
    found = _STEP.fullmatch(name)
    if found is None:
        return None
    step = int(found[1])
    return step if step <= MAX_STEP and step_file(step) == name else None


def is_data_file(name: str) -> bool:
    """Whether a name in the folder of data files is that of one."""
    return _DATA_FILE.fullmatch(name) is not None


def is_temporary(name: str) -> bool:
    """Whether a step or the history has this name while it is being written."""
    found = _TEMPORARY.fullmatch(name)
    return found is not None and (step_of(found[1]) is not None or found[1] == HISTORY)


def is_temporary_data_file(name: str) -> bool:
    """Whether a data file, whose name is known only at its end, has this name while it is being written."""
    found = _TEMPORARY.fullmatch(name)
    return found is not None and found[1] == NEW_DATA_FILE


def inside(folder: str, name: str) -> str:
    """The path of a name in a folder."""
    if folder in {"", "."}:
        return name
    return f"{folder}{name}" if folder.endswith("/") else f"{folder}/{name}"


def data_folder(root: str) -> str:
    """The folder of the data files of a run."""
    return inside(root, DATA_FOLDER)
