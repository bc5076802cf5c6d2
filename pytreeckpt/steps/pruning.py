"""Pruning as a value: which files of a run go, and in which order.

The law: a data file goes only after the names of all steps that need it are gone durably, so that whenever the power
goes, every step that is there is whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pytreeckpt.commit import Operation, RemoveFile, SyncDirectory
from pytreeckpt.steps.names import data_folder, inside, step_file
from pytreeckpt.steps.records import StepRecord
from pytreeckpt.steps.retention import Retention


@dataclass(frozen=True, slots=True)
class Leftover:
    """A file of ours that no step needs: the rest of a save that was killed, or a data file.

    `name`: its path in the folder of the run; `nbytes`: its length.
    """

    name: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What goes and what stays. `files`: the names of all that goes, in order, within the folder of the run;
    `nbytes`: of all that goes.
    """

    removed: tuple[StepRecord, ...]
    kept: tuple[StepRecord, ...]
    files: tuple[str, ...]
    operations: tuple[Operation, ...]
    nbytes: int


def steps_to_keep(records: Sequence[StepRecord], retention: Retention, pinned: Iterable[int] = ()) -> frozenset[int]:
    """The steps of those that are there that stay: what the policy keeps, the pinned ones, and the newest.

    What exceptions left takes no other step's place: the policy is asked about the others alone, too. Of what they
    left, the one that was saved last stays.
    """
    there = frozenset(record.step for record in records)
    sound = [record for record in records if record.reason != "exception"]
    broken = [record for record in records if record.reason == "exception"]
    # Not the largest number: a training that failed and went back may fail earlier.
    broken.sort(key=lambda record: (record.saved_at, record.step))
    newest = {record.step for record in (*sound[-1:], *broken[-1:])}
    emergencies = frozenset(retention(records)) & {record.step for record in broken} if broken else frozenset[int]()
    return there & (frozenset(retention(sound)) | emergencies | frozenset(pinned) | newest)


def plan_prune(
    root: str,
    records: Sequence[StepRecord],
    keep: frozenset[int],
    *,
    step_nbytes: Mapping[int, int],
    data_files: Sequence[Leftover] = (),
    temporaries: Sequence[Leftover] = (),
) -> PrunePlan:
    """Remove the steps that are not in `keep`, the oldest first, and then what nobody needs any more.

    `records`: of the steps that are there, ascending; `step_nbytes`: the lengths of their files; `data_files`: those
    that no step of `keep` needs; `temporaries`: what was left by saves that were killed.
    """
    removed = tuple(record for record in records if record.step not in keep)
    steps = [Leftover(step_file(record.step), step_nbytes[record.step]) for record in removed]
    operations: list[Operation] = []
    operations += [RemoveFile(inside(root, each.name)) for each in steps]
    if steps or data_files:
        # Of a step that went before, in a pruning that was killed, the name may not be gone durably either.
        operations.append(SyncDirectory(root or "."))
    if data_files:
        operations += [RemoveFile(inside(root, each.name)) for each in data_files]
        operations.append(SyncDirectory(data_folder(root)))
    # Not waited for: nobody minds if they are back after a power cut.
    operations += [RemoveFile(inside(root, each.name)) for each in temporaries]
    going = [*steps, *data_files, *temporaries]
    return PrunePlan(
        removed,
        tuple(record for record in records if record.step in keep),
        tuple(each.name for each in going),
        tuple(operations),
        sum(each.nbytes for each in going),
    )
