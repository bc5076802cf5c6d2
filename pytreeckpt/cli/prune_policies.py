"""The policies that `pytreeckpt prune` is given, by the options that ask for them; and which of them keeps a step."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence

from pytreeckpt.run import PruneReport, Run
from pytreeckpt.steps.records import Mode, StepRecord
from pytreeckpt.steps.retention import Retention, keep_best, keep_every, keep_every_hours, keep_last, keep_steps


class Mistake(Exception):  # noqa: N818 - of the command line, and not of a checkpoint
    """What is asked for cannot be meant."""


def policies_of(arguments: Namespace, run: Run, metric: str | None, mode: Mode) -> dict[str, Retention]:
    """A policy for each option. Raises `Mistake` if there are none, or if one would not keep what it seems to."""
    if not run.records:
        raise Mistake(f"there are no steps in {run.root}")
    policies: dict[str, Retention] = {}
    if arguments.keep_last is not None:
        policies[f"--keep-last {arguments.keep_last}"] = keep_last(arguments.keep_last)
    if arguments.keep_best is not None:
        name = _metric_of_best(run, metric)
        policies[f"--keep-best {arguments.keep_best} by {name}"] = keep_best(arguments.keep_best, name, mode)
    if arguments.keep_every is not None:
        policies[f"--keep-every {arguments.keep_every}"] = keep_every(arguments.keep_every)
    if arguments.keep_every_hours is not None:
        hours = arguments.keep_every_hours
        policies[f"--keep-every-hours {hours:g}"] = keep_every_hours(hours)
    if arguments.keep:
        policies["--keep"] = keep_steps(_that_are_there(arguments.keep, run))
    if not policies:
        raise Mistake(
            "nothing says what to keep, and by default nothing is removed: give --keep-last N, --keep-best K, "
            "--keep-every N, --keep-every-hours HOURS or --keep STEP"
        )
    return policies


def _metric_of_best(run: Run, metric: str | None) -> str:
    if metric is None:
        raise Mistake("--keep-best: it is not known which metric tells the best steps; --metric NAME says it")
    names = dict.fromkeys(name for record in run.records for name in record.metrics)
    if metric not in names:
        # It would keep nothing.
        there = f"there is {', '.join(names)}" if names else "there are no metrics"
        raise Mistake(f"--keep-best: no step that is there has a metric {metric!r}; {there}")
    return metric


def _that_are_there(steps: Sequence[int], run: Run) -> Sequence[int]:
    there = {*(record.step for record in run.records), *run.damaged}
    absent = sorted(set(steps) - there)
    if absent:
        # A slip of the pen would remove the step that was meant.
        raise Mistake(f"--keep {absent[0]}: there is no such step in {run.root}; pytreeckpt ls lists them")
    return steps


def reasons_to_keep(run: Run, policies: Mapping[str, Retention], outcome: PruneReport) -> dict[int, list[str]]:
    """For each step that stays, what keeps it: in the order of the options, then pins, then being the newest."""
    records = sorted((*outcome.kept, *outcome.removed), key=lambda record: record.step)
    # As in pruning: what an exception left takes no other step's place.
    sound = [record for record in records if record.reason != "exception"]
    kept_by = {name: policy(sound) for name, policy in policies.items()}
    reasons: dict[int, list[str]] = {}
    for record in outcome.kept:
        texts = [name for name, kept in kept_by.items() if record.step in kept]
        texts += [f"pin {name}" for name, step in run.pins.items() if step == record.step]
        reasons[record.step] = texts + _newest(record, sound, records)
    return reasons


def _newest(record: StepRecord, sound: Sequence[StepRecord], records: Sequence[StepRecord]) -> list[str]:
    if sound and record.step == sound[-1].step:
        return ["the newest"]
    left = [each for each in records if each.reason == "exception"]
    return ["the newest that an exception left"] if left and record.step == left[-1].step else []
