"""The file of the history: read as a whole, published as a whole, and never overwritten unless it was understood."""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from pytreeckpt.api import flat_tree
from pytreeckpt.collection import paused_collection
from pytreeckpt.commit import Durability
from pytreeckpt.content import close
from pytreeckpt.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    NotACheckpointError,
    PytreeckptError,
    StorageError,
)
from pytreeckpt.limits import current_limits, limits
from pytreeckpt.opening import open_own
from pytreeckpt.planning import plan_save
from pytreeckpt.reading import RangedSource, read
from pytreeckpt.steps.history import History, decode_history, encode_history
from pytreeckpt.steps.names import HISTORY, inside
from pytreeckpt.storage import Storage
from pytreeckpt.wire import Buffer
from pytreeckpt.writer import publish, write_checkpoint

# Of ten million steps; a small file can declare far more.
_MAX_ARRAYS_NBYTES: Final = 4 << 30
_PIECE_NBYTES: Final = 1 << 20


def read_history(storage: Storage, root: str) -> History | None:
    """The history of a run; None if there is no file of it.

    Raises `CorruptionError`, `FormatVersionError`, `LimitError` and `UnsupportedTypeError` if it cannot be understood,
    and `StorageError` if it cannot be read.
    """
    with limits(arrays_nbytes=_MAX_ARRAYS_NBYTES):
        try:
            checkpoint = open_own(storage, inside(root, HISTORY))
        except CheckpointNotFoundError:
            return None
        with checkpoint:
            return decode_history(checkpoint.restore(to="numpy"))


def publish_history(storage: Storage, root: str, history: History, durability: Durability) -> None:
    """Put a history in the place of the one that is there, at once."""
    with paused_collection():
        plan = plan_save(flat_tree(encode_history(history), None), current_limits())
    write_checkpoint(
        storage,
        inside(root, HISTORY),
        plan,
        compression="auto",
        if_exists="replace",
        durability=durability,
        # A few columns: threads would only wait for each other.
        threads=1,
    )


def readable_history(storage: Storage, root: str) -> tuple[History | None, str | None]:
    """The history of a run, or None and what is wrong with it. Raises `StorageError` if it cannot be read."""
    try:
        return read_history(storage, root), None
    except StorageError:
        raise
    except PytreeckptError as error:
        return None, (
            f"{inside(root, HISTORY)} is damaged: {error}. The steps that are there tell of themselves; what is lost "
            "are the metrics of others, and the pins"
        )


def history_to_go_on(storage: Storage, root: str) -> tuple[History, str | None]:
    """The history for one who has the lock and is going to publish it anew. A damaged one is set aside before.

    The second value says what was done, if anything. Raises `StorageError`.
    """
    history, problem = readable_history(storage, root)
    if problem is None:
        return History() if history is None else history, None
    try:
        name = set_aside(storage, root)
    except (CheckpointNotFoundError, NotACheckpointError):
        # It vanished, or is a folder, which publishing will say.
        return History(), problem
    return History(), f"{problem}. It is kept as {inside(root, name)}"


def set_aside(storage: Storage, root: str) -> str:
    """A copy of the file of the history, as it is, under a name that is free; that name.

    A copy, durable before anything takes the place of the file, so that at no time there is neither.
    """
    source = storage.open(inside(root, HISTORY))
    try:
        taken = frozenset(storage.names(root))
        number = 1
        while True:
            name = f"history-damaged-{number}.ptck"
            if name not in taken:
                try:
                    publish(storage, inside(root, name), _pieces(source), if_exists="error", durability="durable")
                except CheckpointExistsError:
                    pass
                else:
                    return name
            number += 1
    finally:
        close([source])


def _pieces(source: RangedSource) -> Generator[Buffer, None, None]:
    for offset in range(0, source.nbytes, _PIECE_NBYTES):
        yield read(source, offset, min(_PIECE_NBYTES, source.nbytes - offset))
