"""Which steps are there: those whose files have our names and our content, told by their last bytes.

The length of a listing is that of the folder, not of its checkpoints: a step that the history knows by its root costs
the footer of its file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pytreeckpt.content import close
from pytreeckpt.errors import CheckpointNotFoundError, NotACheckpointError, PytreeckptError
from pytreeckpt.opening import open_own
from pytreeckpt.reading import read_footer
from pytreeckpt.steps.history import History, records_of
from pytreeckpt.steps.metadata import record_in
from pytreeckpt.steps.names import inside, step_file, step_of
from pytreeckpt.steps.records import StepRecord
from pytreeckpt.storage import Storage
from pytreeckpt.wire import Footer


@dataclass(frozen=True, slots=True)
class StepFile:
    """What the last bytes of a step's file tell: the root of the checkpoint, in hex, and the length of the file."""

    root: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class Listing:
    """The steps that are there, ascending.

    `files`: of each step that is there; `damaged`: steps whose files are ours and cannot be read, with the reason;
    `problems`: what else has the name of a step, and what it is; `n_vanished`: files that went, or were replaced, while
    they were looked at.
    """

    records: tuple[StepRecord, ...] = ()
    files: Mapping[int, StepFile] = field(default_factory=dict[int, StepFile])
    damaged: Mapping[int, str] = field(default_factory=dict[int, str])
    problems: tuple[str, ...] = ()
    n_vanished: int = 0


def list_steps(
    storage: Storage, root: str, history: History | None, seen: Mapping[int, StepFile] | None = None
) -> Listing:
    """Look which steps are there. `seen`: files that need no look, because nobody else writes there."""
    records: list[StepRecord] = []
    files: dict[int, StepFile] = {}
    damaged: dict[int, str] = {}
    problems: list[str] = []
    n_vanished = 0
    numbers = sorted(step for name in storage.names(root) if (step := step_of(name)) is not None)
    known = {} if history is None else records_of(history, numbers)
    for step in numbers:
        path = inside(root, step_file(step))
        file = (seen or {}).get(step)
        try:
            file = file or look_at(storage, path)
            record = known.get(step)
            if record is None or record.root != file.root:
                # The history does not know it: it is lost, or the process was killed before it was written.
                record = _record_within(storage, path, file)
        except CheckpointNotFoundError:
            n_vanished += 1
        except NotACheckpointError as error:
            problems.append(f"{path} has the name of a step and is none: {error}")
        except PytreeckptError as error:
            if file is None or is_there(storage, path, file):
                damaged[step] = f"{path}: {error}"
            else:
                # Its data files went, and so did it.
                n_vanished += 1
        else:
            if record is None:
                problems.append(
                    f"{path} is a checkpoint that no CheckpointManager saved: it is not counted and not removed; "
                    "restore it by its path"
                )
            elif record.step != step:
                problems.append(f"{path} is of step {record.step}: it is not counted and not removed")
            else:
                records.append(record)
                files[step] = file
    return Listing(tuple(records), files, damaged, tuple(problems), n_vanished)


def with_logs(listing: Listing, logs: Mapping[int, Mapping[str, float]]) -> Listing:
    """A listing with more metrics of its steps."""
    if not logs:
        return listing
    records = tuple(
        replace(record, metrics={**record.metrics, **logs.get(record.step, {})}) for record in listing.records
    )
    return replace(listing, records=records)


def look_at(storage: Storage, path: str) -> StepFile:
    """What the last bytes of a file tell. Raises `CheckpointNotFoundError`, `NotACheckpointError` and others."""
    footer = footer_of(storage, path)
    return StepFile(footer.root.hex(), footer.file_nbytes)


def is_there(storage: Storage, path: str, file: StepFile) -> bool:
    """Whether a file is as it was when it was looked at, as its last bytes tell; if they cannot be read, it is."""
    try:
        return look_at(storage, path) == file
    except CheckpointNotFoundError:
        return False
    except PytreeckptError:
        return True


def footer_of(storage: Storage, path: str) -> Footer:
    """The footer of a checkpoint."""
    source = storage.open(path)
    try:
        return read_footer(source)
    finally:
        close([source])


def _record_within(storage: Storage, path: str, file: StepFile) -> StepRecord | None:
    """What a checkpoint says of its step; None if it says nothing."""
    with open_own(storage, path) as checkpoint:
        return record_in(checkpoint.metadata, root=checkpoint.root or "", nbytes=file.nbytes)
