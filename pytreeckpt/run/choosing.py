"""Which step a person means: by its number, as the latest, as the best, or by the name of a pin."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pytreeckpt.errors import CheckpointNotFoundError, CorruptionError
from pytreeckpt.run.listing import Listing
from pytreeckpt.steps.choosing import best, latest, top
from pytreeckpt.steps.metadata import RULE
from pytreeckpt.steps.records import Mode, StepRecord, checked_step


@dataclass(frozen=True, slots=True)
class Choice:
    """What is chosen from: the steps that are there, the pins, and the metric that tells the best."""

    root: str
    listing: Listing
    pins: Mapping[str, int]
    metric: str | None
    mode: Mode

    @property
    def records(self) -> tuple[StepRecord, ...]:
        """The steps that are there."""
        return self.listing.records

    @property
    def latest(self) -> int | None:
        """The latest of them."""
        return _number(latest(self.records))

    @property
    def best(self) -> int | None:
        """The best of them; None where nothing tells which it is."""
        return None if self.metric is None else _number(best(self.records, self.metric, self.mode))


def _number(record: StepRecord | None) -> int | None:
    return None if record is None else record.step


def choose(choice: Choice, step: int | str) -> int:
    """The number of a step that is there.

    Raises `CheckpointNotFoundError` with what is there, `CorruptionError` if the step is there and damaged, and, for
    what means no step, `TypeError` or `ValueError`.
    """
    if not isinstance(step, str):
        number = checked_step(step)
    elif step == "latest":
        number = _latest(choice)
    elif step == "best":
        number = _best(choice)
    elif step in choice.pins:
        number = choice.pins[step]
    else:
        pins = f"the pins there are {', '.join(map(repr, choice.pins))}" if choice.pins else "there are no pins"
        raise CheckpointNotFoundError(
            f"{choice.root} has no step called {step!r}: give a number, 'latest', 'best' or the name of a pin; {pins}"
        )
    if number in choice.listing.damaged:
        raise CorruptionError(
            f"step {number} is damaged: {choice.listing.damaged[number]}; fallback=True takes the newest one before it "
            "that is whole",
            rule=RULE,
        )
    if number not in choice.listing.files:
        what = f"step {number}" if not isinstance(step, str) else f"step {number}, which is {step!r},"
        raise CheckpointNotFoundError(f"{what} is not in {choice.root}; {_there(choice.records)}")
    return number


def several(
    choice: Choice, *, best: int | None, last: int | None, metric: str | None, mode: Mode | None
) -> list[StepRecord]:
    """The best or the last few of the steps that are there, the newest last; none that an exception left.

    Raises `ValueError` unless one of `best` and `last` is given, and `CheckpointNotFoundError` if there is no step, or
    none with the metric.
    """
    sound = [record for record in choice.records if record.reason != "exception"]
    number = last if best is None else best
    if number is None or (best is not None and last is not None) or number < 1:
        raise ValueError("give best= or last=, a number of steps, at least 1")
    if not sound:
        raise CheckpointNotFoundError(f"{choice.root} has no step yet")
    if best is None:
        if metric is not None or mode is not None:
            raise ValueError("metric= and mode= go with best=")
        return sound[-number:]
    name = choice.metric if metric is None else metric
    # The mode of the run is that of its own metric.
    way = mode or (choice.mode if name == choice.metric else "min")
    found = [] if name is None else top(sound, number, name, way)
    if not found:
        names = sorted({each for record in sound for each in record.metrics})
        raise CheckpointNotFoundError(
            f"no step in {choice.root} has the metric {name!r}; "
            + (f"there are {', '.join(map(repr, names))}" if names else "none has any")
        )
    return sorted(found, key=lambda record: record.step)


def candidates(choice: Choice, step: int | str) -> list[int]:
    """The steps that may be taken for this one if it is damaged, in order: for "best" the next best, for all else the
    ones before it, newest first. Damaged ones are among them.
    """
    if step == "best":
        _best(choice)
        ranked = [] if choice.metric is None else top(choice.records, len(choice.records), choice.metric, choice.mode)
        return [record.step for record in ranked]
    if isinstance(step, str) and step != "latest":
        first = choose_quietly(choice, step)
    else:
        first = _latest(choice) if isinstance(step, str) else checked_step(step)
    emergencies = {record.step for record in choice.records if record.reason == "exception"} - {first}
    there = sorted({*choice.listing.files, *choice.listing.damaged} - emergencies, reverse=True)
    found = [number for number in there if number <= first]
    if not found:
        raise CheckpointNotFoundError(f"no step up to {first} is in {choice.root}; {_there(choice.records)}")
    return found


def choose_quietly(choice: Choice, step: str) -> int:
    """The number of a pinned step, whatever its state."""
    if step in choice.pins:
        return choice.pins[step]
    return choose(choice, step)


def _latest(choice: Choice) -> int:
    # A damaged one is not passed over in silence.
    sound = [] if choice.latest is None else [choice.latest]
    if sound or choice.listing.damaged:
        return max([*sound, *choice.listing.damaged])
    if choice.records:
        raise CheckpointNotFoundError(
            f"{choice.root} only has steps that were saved when the training failed; look into them, and restore "
            f"one by its number; {_there(choice.records)}"
        )
    raise CheckpointNotFoundError(f"{choice.root} has no step yet")


def _best(choice: Choice) -> int:
    if choice.best is not None:
        return choice.best
    if not choice.records:
        raise CheckpointNotFoundError(f"{choice.root} has no step yet")
    if choice.metric is None:
        raise CheckpointNotFoundError(f"it is not known which metric tells the best step of {choice.root}")
    names = sorted({name for record in choice.records for name in record.metrics})
    raise CheckpointNotFoundError(
        f"no step in {choice.root} has the metric {choice.metric!r}, so none is the best; "
        + (f"there are {', '.join(map(repr, names))}" if names else "give metrics= to save")
    )


def _there(records: Iterable[StepRecord]) -> str:
    steps = [record.step for record in records]
    if not steps:
        return "there are no steps"
    if len(steps) > 12:
        return f"there are {len(steps)} steps from {steps[0]} to {steps[-1]}"
    return f"there is {', '.join(map(str, steps))}"
