"""Finding a step and using it while somebody may be pruning: what vanished in between is looked for again.

The law: a step that is there, as it was when it was found, and cannot be used is an error; one that has vanished, or is
another one now, is none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from pytreeckpt.checkpoint import Checkpoint
from pytreeckpt.errors import CheckpointNotFoundError, CorruptionError, PytreeckptError, StorageError
from pytreeckpt.opening import open_own
from pytreeckpt.run.choosing import Choice, candidates, choose
from pytreeckpt.run.listing import Listing, StepFile, is_there
from pytreeckpt.steps.metadata import RULE
from pytreeckpt.steps.names import inside, step_file
from pytreeckpt.steps.records import StepRecord
from pytreeckpt.storage import Storage

Result = TypeVar("Result")
# Each time another save has been finished meanwhile; a training is not as quick as that.
_ATTEMPTS: Final = 20


@dataclass(frozen=True, slots=True)
class Found:
    """A step, the path of its file, and what the last bytes of that told when it was found. `damaged`: the steps that
    would have come first, and why they were not taken.
    """

    record: StepRecord
    path: str
    file: StepFile
    damaged: tuple[str, ...] = ()


def settled(look: Callable[[], Listing]) -> Listing:
    """A listing during which nothing vanished, if that can be had."""
    listing = look()
    for _ in range(_ATTEMPTS):
        if not listing.n_vanished:
            break
        listing = look()
    return listing


def locate(choice: Choice, step: int | str) -> Found:
    """The file of a step that is there. Raises as `choose`."""
    number = choose(choice, step)
    return _found(choice, number)


def locate_whole(storage: Storage, choice: Choice, step: int | str) -> Found | None:
    """The first step, of those that may be taken for this one, of which every byte is right; None if all have vanished.

    Raises `CheckpointNotFoundError` if there are none, and `CorruptionError` if all are damaged.
    """
    damaged: list[str] = []
    for number in candidates(choice, step):
        if number in choice.listing.damaged:
            damaged.append(f"step {number}: {choice.listing.damaged[number]}")
            continue
        found = _found(choice, number)
        error = _damage(storage, found.path)
        if error is None:
            return replace(found, damaged=tuple(damaged))
        if is_there(storage, found.path, found.file):
            damaged.append(f"step {number}: {error}")
    if not damaged:
        return None
    raise CorruptionError(
        f"no step of {choice.root} that could be taken for {step!r} is whole:\n  " + "\n  ".join(damaged), rule=RULE
    )


def use_step(storage: Storage, find: Callable[[], Found | None], use: Callable[[Found], Result]) -> Result:
    """Find a step and use it; if it was pruned or replaced in between, find again.

    `find` raises `CheckpointNotFoundError` if there is none, and gives None if what there was has vanished.
    """
    for _ in range(_ATTEMPTS):
        found = find()
        if found is None:
            continue
        try:
            return use(found)
        except PytreeckptError:
            # Data files go after the step that needed them: what misses one may have been pruned, too.
            if is_there(storage, found.path, found.file):
                raise
    raise CheckpointNotFoundError("steps are pruned faster than they can be opened; give the number of one that stays")


def opened(storage: Storage, path: str) -> Checkpoint:
    """The checkpoint at a path, its structure checked. Raises as `pytreeckpt.open`, with the path in the message."""
    try:
        checkpoint = open_own(storage, path)
        try:
            checkpoint.check_structure()
        except BaseException:
            checkpoint.close()
            raise
    except (CheckpointNotFoundError, StorageError):
        raise
    except PytreeckptError as error:
        error.args = (f"{path}: {error}", *error.args[1:])
        raise
    return checkpoint


def _found(choice: Choice, number: int) -> Found:
    record = next(record for record in choice.records if record.step == number)
    return Found(record, inside(choice.root, step_file(number)), choice.listing.files[number])


def _damage(storage: Storage, path: str) -> PytreeckptError | None:
    """What is wrong with a checkpoint, every byte of which is read."""
    try:
        with opened(storage, path) as checkpoint:
            return next(checkpoint.damage(), None)
    except PytreeckptError as error:
        return error
