"""From a pickle somewhere in a file to the value that it holds: the machine runs, and what it built is settled."""

from __future__ import annotations

from typing import Any

from pytreeckpt.collection import paused_collection
from pytreeckpt.errors import CorruptionError
from pytreeckpt.interop.pickle_settling import settle
from pytreeckpt.interop.pickle_steps import run
from pytreeckpt.interop.pickle_values import Ledger, Vocabulary
from pytreeckpt.reading import RangedSource


def load_from(
    source: RangedSource, start: int, vocabulary: Vocabulary, *, whole: bool = False, ledger: Ledger | None = None
) -> tuple[Any, tuple[str, ...], int]:
    """The value of the pickle at `start`, what there is to say about it, and where it ends.

    With `whole`, nothing may come after it. `ledger`: of a pickle that this one is within, and which pays for it.
    Raises `CorruptionError`, `LimitError`, and `UnsupportedTypeError` for a value that contains itself.
    """
    with paused_collection():
        value, ledger, end = run(source, start, ledger)
        if whole and end != source.nbytes:
            raise CorruptionError(
                f"the pickle ends at byte {end}, and {source.nbytes - end} more bytes come after it", rule="pickle"
            )
        return settle(value, vocabulary, ledger), ledger.notes, end
