"""Looking into the folder of a run. It needs no lock and writes nothing, whoever writes there meanwhile."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import PurePath

from pytreeckpt.checkpoint import Checkpoint
from pytreeckpt.errors import CheckpointNotFoundError
from pytreeckpt.run.choosing import Choice, choose, several
from pytreeckpt.run.finding import locate, opened, settled, use_step
from pytreeckpt.run.history_file import readable_history
from pytreeckpt.run.leftovers import Leftovers, find_leftovers
from pytreeckpt.run.listing import Listing, list_steps
from pytreeckpt.steps.history import History, all_records, unknown, with_records
from pytreeckpt.steps.names import inside, step_file
from pytreeckpt.steps.records import Mode, StepRecord
from pytreeckpt.storage import LocalStorage, Storage

StrPath = str | os.PathLike[str]


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """The folder of a run as it was when it was read.

    `records`: the steps that are there, ascending; `history`: all steps that are known, ascending, those that were
    pruned or only have metrics too; `pins`: names of steps; `metric`, `mode`: which metric tells the best step, as the
    manager that wrote there was told; `damaged`: steps whose files are there and cannot be read; `leftovers`: files
    that no step needs, of saves that were killed or are in the making; `problems`: all that is wrong, in words.
    """

    root: str
    records: tuple[StepRecord, ...]
    history: tuple[StepRecord, ...]
    pins: Mapping[str, int]
    metric: str | None
    mode: Mode
    damaged: tuple[int, ...]
    leftovers: tuple[str, ...]
    problems: tuple[str, ...]
    choice: Choice = field(repr=False)
    storage: Storage = field(repr=False)

    @property
    def latest(self) -> int | None:
        """The latest step that is there and whose file can be read."""
        return self.choice.latest

    @property
    def best(self) -> int | None:
        """The best step that is there; None where nothing tells which it is."""
        return self.choice.best

    def path(self, step: int | str = "latest") -> str:
        """The path of the file of a step: its number, "latest", "best", or the name of a pin."""
        return inside(self.root, step_file(choose(self.choice, step)))

    def paths(
        self,
        *,
        best: int | None = None,
        last: int | None = None,
        metric: str | None = None,
        mode: Mode | None = None,
    ) -> list[str]:
        """The files of the `best` so many steps, by `metric` and `mode` (by default those of the run), or of the `last`
        so many; the newest last, as `average` takes them, and none that an exception left.
        """
        records = several(self.choice, best=best, last=last, metric=metric, mode=mode)
        return [inside(self.root, step_file(record.step)) for record in records]

    def open(self, step: int | str = "latest") -> Checkpoint:
        """Open the checkpoint of a step. What was pruned since the folder was read is looked for again."""
        choices = chain([self.choice], iter(self._look_again, None))
        return use_step(
            self.storage,
            lambda: locate(next(choices), step),
            lambda found: opened(self.storage, found.path),
        )

    def _look_again(self) -> Choice:
        history, _ = readable_history(self.storage, self.root)
        listing, known = look(self.storage, self.root, history)
        return Choice(self.root, listing, known.pins, self.metric, self.mode)


def read_run(root: StrPath, *, storage: Storage | None = None) -> Run:
    """Look into the folder of a run.

    Raises `CheckpointNotFoundError` if there is no such folder, and `StorageError` if it cannot be read; what is wrong
    with its files is in `Run.problems`. Warns if the history is damaged; the steps then tell of themselves.
    """
    place = LocalStorage() if storage is None else storage
    folder = folder_name(root)
    if folder != "." and not place.exists(folder):
        raise CheckpointNotFoundError(f"there is no folder {folder}")
    history, problem = readable_history(place, folder)
    if problem is not None:
        warnings.warn(problem, stacklevel=2)
    listing, known = look(place, folder, history)
    leftovers = find_leftovers(place, folder, listing)
    return Run(
        root=folder,
        records=listing.records,
        history=tuple(all_records(known)),
        pins=known.pins,
        metric=known.metric,
        mode=known.mode,
        damaged=tuple(listing.damaged),
        leftovers=_names(leftovers),
        problems=(
            *([] if problem is None else [problem]),
            *listing.damaged.values(),
            *listing.problems,
            *leftovers.problems,
            *leftovers.unknown,
        ),
        choice=Choice(folder, listing, known.pins, known.metric, known.mode),
        storage=place,
    )


def _names(leftovers: Leftovers) -> tuple[str, ...]:
    return tuple(each.name for each in (*leftovers.data_files, *leftovers.temporaries))


def folder_name(root: StrPath) -> str:
    """The path of a folder in its shortest form."""
    return str(PurePath(os.fsdecode(root)))


def look(storage: Storage, root: str, history: History | None) -> tuple[Listing, History]:
    """The steps that are there, and the history with all of them."""
    listing = settled(lambda: list_steps(storage, root, history))
    return listing, with_present(History() if history is None else history, listing)


def with_present(history: History, listing: Listing) -> History:
    """The history, with the steps that are there and that it does not know."""
    return with_records(history, unknown(history, listing.records))
