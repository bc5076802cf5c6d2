"""Pruning the folder of a run: only what is ours goes, and only after what is newer is durable."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pytreeckpt.commit import Operation, SyncDirectory
from pytreeckpt.errors import CheckpointNotFoundError, PytreeckptError
from pytreeckpt.run.history_file import history_to_go_on, publish_history, readable_history
from pytreeckpt.run.leftovers import Leftovers, Needs, find_leftovers
from pytreeckpt.run.listing import Listing, look_at
from pytreeckpt.run.locking import locked_folder
from pytreeckpt.run.reading import StrPath, folder_name, look
from pytreeckpt.steps.names import inside, step_file
from pytreeckpt.steps.pruning import PrunePlan, plan_prune, steps_to_keep
from pytreeckpt.steps.records import StepRecord
from pytreeckpt.steps.retention import Retention
from pytreeckpt.storage import LocalStorage, Storage, storage_error


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What went, or what would go.

    `removed_files`: all files, in order, named within the folder of the run: steps, data files, leftovers of saves that
    were killed. `freed_nbytes`: their lengths. `notes`: what could have gone and stays,
    and why.
    """

    removed: tuple[StepRecord, ...]
    removed_files: tuple[str, ...]
    freed_nbytes: int
    kept: tuple[StepRecord, ...]
    notes: tuple[str, ...] = ()


def prune(
    root: StrPath,
    retention: Retention,
    *,
    dry_run: bool = False,
    lock: bool = True,
    storage: Storage | None = None,
) -> PruneReport:
    """Remove the steps of a run that `retention` does not keep; pinned steps and the newest one stay.

    `dry_run`: say what would go, write and remove nothing, and take no lock. `lock=False`: do without the lock; who
    asks for that vouches that nobody else writes there. The history keeps what is known of the steps that go.
    Raises `ConcurrentWriterError` if somebody is writing there, `CheckpointNotFoundError`, and `StorageError`.
    """
    place = LocalStorage() if storage is None else storage
    folder = folder_name(root)
    if folder != "." and not place.exists(folder):
        raise CheckpointNotFoundError(f"there is no folder {folder}")
    with locked_folder(place, folder, lock=lock and not dry_run):
        history, problem = (readable_history if dry_run else history_to_go_on)(place, folder)
        if problem is not None:
            warnings.warn(problem, stacklevel=2)
        listing, known = look(place, folder, history)
        plan, notes = plan_pruning(place, folder, listing, retention, pinned=known.pins.values())
        if not dry_run:
            if known is not history and (plan.removed or problem is not None):
                publish_history(place, folder, known, "durable")
            elif plan.operations:
                settle_names(place, folder)
            apply_prune(place, folder, plan.operations)
    return report_of(plan, notes)


def plan_pruning(
    storage: Storage,
    root: str,
    listing: Listing,
    retention: Retention,
    *,
    pinned: Iterable[int] = (),
    with_leftovers: bool = True,
    needs: Needs | None = None,
) -> tuple[PrunePlan, tuple[str, ...]]:
    """What goes of the steps that are there, and what they leave; and what could have gone and stays, and why."""
    keep = steps_to_keep(listing.records, retention, pinned)
    notes: list[str] = []
    for record in listing.records:
        # Looked at again, and last: what is not the step that was listed is not ours to remove.
        if record.step not in keep and not _is_still_there(storage, root, listing, record, notes):
            keep |= {record.step}
    going = [record.step for record in listing.records if record.step not in keep]
    leftovers = find_leftovers(storage, root, listing, going=going, needs=needs) if with_leftovers else Leftovers()
    plan = plan_prune(
        root,
        listing.records,
        keep,
        step_nbytes={step: file.nbytes for step, file in listing.files.items()},
        data_files=leftovers.data_files,
        temporaries=leftovers.temporaries,
    )
    return plan, (*notes, *leftovers.unknown)


def _is_still_there(storage: Storage, root: str, listing: Listing, record: StepRecord, notes: list[str]) -> bool:
    path = inside(root, step_file(record.step))
    try:
        found = look_at(storage, path)
    except CheckpointNotFoundError:
        return False
    except PytreeckptError as error:
        notes.append(f"{path} is not removed, because it cannot be read any more: {error}")
        return False
    if found != listing.files[record.step]:
        notes.append(f"{path} is not removed, because somebody replaced it")
        return False
    return True


def settle_names(storage: Storage, root: str) -> None:
    """Make the names in the folder durable, before anything goes: those of the newer steps and of the history may be
    of a save that was killed before it came to do so. Raises `StorageError`.
    """
    apply_prune(storage, root, [SyncDirectory(root)])


def apply_prune(storage: Storage, root: str, operations: Sequence[Operation]) -> None:
    """Remove what a plan says. What is gone already is fine. Raises `StorageError`."""
    for operation in operations:
        try:
            storage.apply(operation)
        except FileNotFoundError:
            continue
        except PytreeckptError:
            raise
        except OSError as error:
            raise storage_error(error, f"pruning {root} stopped at {operation}") from error


def report_of(plan: PrunePlan, notes: Sequence[str] = ()) -> PruneReport:
    """A plan as what it comes to."""
    return PruneReport(plan.removed, plan.files, plan.nbytes, plan.kept, tuple(notes))
