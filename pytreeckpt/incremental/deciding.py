"""Which chunks of a checkpoint are referred to where they are, which are copied, and which are new.

A pure function of the chunks that are wanted, of what is known, and of how much the data files hold. Its two laws:

- Each data file that is kept gives at least half of its chunk bytes, so a checkpoint never holds more than twice what
  it needs; and it needs at most `MAX_FILES` files, all of which a reader opens.
- A file loses its chunks to a copy only as a whole, so it then dies with the last of the older checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from pytreeckpt.incremental.known import ChunkKey, Place
from pytreeckpt.index import DataFile
from pytreeckpt.wire import align

MAX_FILES: Final = 64
"""Data files that a new checkpoint refers to, its own included. Readers have them open all at once."""


class Wanted(NamedTuple):
    """A chunk that is to be stored: what it is, and the XXH3-128 of its raw bytes."""

    key: ChunkKey
    digest: bytes


class ToStore(NamedTuple):
    """A chunk of the new data file: the first of the wanted ones that it is, and where it may be copied from."""

    number: int
    copied: Place | None


@dataclass(frozen=True, slots=True)
class Decision:
    """`reused`: the chunks that stay where they are. `to_store`: those of the new data file, in its order: by the size
    of their items, then by first use.
    """

    reused: Mapping[ChunkKey, Place]
    to_store: Sequence[ToStore]


def decide(
    wanted: Sequence[Wanted],
    known: Mapping[ChunkKey, Place],
    capacities: Mapping[DataFile, int],
    *,
    max_files: int = MAX_FILES,
) -> Decision:
    """Where each chunk comes from. `capacities`: the chunk bytes, with their padding, of the data files that may be
    used; what is known to be in others is not used.
    """
    first: dict[ChunkKey, int] = {}
    for number, (key, _) in enumerate(wanted):
        first.setdefault(key, number)
    places = {key: place for key in first if (place := known.get(key)) is not None and place.file in capacities}
    # The digest too, which is that of what was stored then: of a file whose identities are wrong, nothing is used.
    places = {key: place for key, place in places.items() if place.row.digest == wanted[first[key]].digest}
    used: dict[DataFile, dict[int, int]] = {}
    for file, row in places.values():
        used.setdefault(file, {})[row.offset] = align(row.stored)
    nbytes = {file: sum(ranges.values()) for file, ranges in used.items()}
    kept = {file for file in nbytes if 2 * nbytes[file] >= capacities[file]}
    anything_new = len(places) < len(first) or len(kept) < len(nbytes)
    if len(kept) + anything_new > max_files:
        # Half of them at once, those of the fewest bytes: otherwise the next step would have to do it again.
        kept = set(sorted(kept, key=lambda file: (-nbytes[file], file.root))[: max_files // 2])
    reused = {key: place for key, place in places.items() if place.file in kept}
    to_store = [ToStore(number, places.get(key)) for key, number in first.items() if key not in reused]
    to_store.sort(key=lambda each: wanted[each.number].key.itemsize)
    return Decision(reused, to_store)
