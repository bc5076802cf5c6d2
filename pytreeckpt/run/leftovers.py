"""Files of ours that no step needs: what saves that were killed left, and data files of steps that are gone.

The law: what has not our name and our content is nobody's leftover. Where it is not known what some file needs, no data
file is one.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from pytreeckpt.content import close
from pytreeckpt.errors import CheckpointNotFoundError, NotACheckpointError, PytreeckptError
from pytreeckpt.incremental import files_needed
from pytreeckpt.index import DATA_FOLDER, SUFFIX
from pytreeckpt.run.listing import Listing, footer_of
from pytreeckpt.steps.names import (
    HISTORY,
    data_folder,
    inside,
    is_data_file,
    is_temporary,
    is_temporary_data_file,
    step_file,
)
from pytreeckpt.steps.pruning import Leftover
from pytreeckpt.storage import Storage

Needs = dict[str, frozenset[str]]
"""The data files that a checkpoint needs, by its root: kept by who looks often."""


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What nobody needs. `problems`: what has our names and another content; `unknown`: why no data file goes, where it
    is not known which ones are needed.
    """

    data_files: tuple[Leftover, ...] = ()
    temporaries: tuple[Leftover, ...] = ()
    problems: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def find_leftovers(
    storage: Storage, root: str, listing: Listing, *, going: Collection[int] = (), needs: Needs | None = None
) -> Leftovers:
    """What nobody needs once the steps of `going` are gone. Those that are being written now are among the
    temporaries: only who has the lock may remove any.
    """
    names = storage.names(root)
    in_data = _names_in_data(storage, root, names)
    temporaries = [
        *_lengths(storage, root, [name for name in names if is_temporary(name)]),
        *_lengths(storage, root, [f"{DATA_FOLDER}/{name}" for name in in_data if is_temporary_data_file(name)]),
    ]
    data_names = [name for name in in_data if is_data_file(name)]
    problems: list[str] = []
    unknown: list[str] = []
    unneeded: list[Leftover] = []
    if data_names:
        known = {} if needs is None else needs
        needed = _needed(storage, root, names, listing, going=going, needs=known, unknown=unknown)
        if needed is not None:
            unneeded = _unneeded(storage, root, [name for name in data_names if name not in needed], problems)
    return Leftovers(tuple(unneeded), tuple(temporaries), tuple(problems), tuple(unknown))


def _names_in_data(storage: Storage, root: str, names: Collection[str]) -> list[str]:
    if DATA_FOLDER not in names:
        return []
    try:
        return storage.names(data_folder(root))
    except (PytreeckptError, OSError):
        # A file of that name is not ours.
        return []


def _needed(
    storage: Storage,
    root: str,
    names: Collection[str],
    listing: Listing,
    *,
    going: Collection[int],
    needs: Needs,
    unknown: list[str],
) -> frozenset[str] | None:
    """The data files that are needed by any checkpoint in the folder, whatever its name; None if that is not known."""
    roots = {step_file(step): file.root for step, file in listing.files.items()}
    gone = {step_file(step) for step in going}
    found: set[str] = set()
    for name in names:
        if not name.endswith(SUFFIX) or name == HISTORY or name in gone or name.startswith("."):
            continue
        root_of = roots.get(name)
        if root_of is None or root_of not in needs:
            try:
                of_file = files_needed(storage, inside(root, name))
            except (CheckpointNotFoundError, NotACheckpointError):
                continue
            except PytreeckptError as error:
                unknown.append(
                    f"no data file is removed, because it is not known which ones {inside(root, name)} needs: {error}"
                )
                return None
            if root_of is None:
                found |= of_file
                continue
            needs[root_of] = of_file
        found |= needs[root_of]
    return frozenset(found)


def _unneeded(storage: Storage, root: str, names: Collection[str], problems: list[str]) -> list[Leftover]:
    found: list[Leftover] = []
    for name in names:
        path = inside(data_folder(root), name)
        try:
            footer = footer_of(storage, path)
        except CheckpointNotFoundError:
            continue
        except PytreeckptError as error:
            problems.append(f"{path} has the name of a data file that no step needs, and is none: {error}")
            continue
        if f"{footer.root.hex()}{SUFFIX}" == name:
            found.append(Leftover(f"{DATA_FOLDER}/{name}", footer.file_nbytes))
        else:
            problems.append(f"{path} has the name of a data file that no step needs, and is another checkpoint")
    return found


def _lengths(storage: Storage, root: str, names: Collection[str]) -> list[Leftover]:
    found: list[Leftover] = []
    for name in names:
        try:
            source = storage.open(inside(root, name))
        except PytreeckptError:
            # It has vanished, or is no file.
            continue
        try:
            found.append(Leftover(name, source.nbytes))
        finally:
            close([source])
    return found
