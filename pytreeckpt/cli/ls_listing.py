"""What `pytreeckpt ls` tells, as a value: the steps of a run, their states, and what else is in its folder."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pytreeckpt.content import close
from pytreeckpt.errors import CheckpointNotFoundError, NotACheckpointError, PytreeckptError
from pytreeckpt.index import SUFFIX
from pytreeckpt.reading import read_footer
from pytreeckpt.run import Run, read_run
from pytreeckpt.steps.choosing import best
from pytreeckpt.steps.names import HISTORY, data_folder, inside, is_data_file, step_file, step_of
from pytreeckpt.steps.records import Mode, StepRecord
from pytreeckpt.storage import Storage
from pytreeckpt.wire import DATA_FILES

State = Literal["whole", "damaged", "pruned", "never saved"]
Problems = Callable[[str], Sequence[str]]
"""What is wrong with the file of a step, for who wants every byte checked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A step. `record` is None if nothing is known of it but its damaged file; `file_nbytes` is the length of that, if
    it is there; `incremental`: it needs data files.
    """

    step: int
    record: StepRecord | None
    state: State
    path: str
    file_nbytes: int | None = None
    incremental: bool = False
    pins: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherFile:
    """A checkpoint that is no step of the run, or a leftover. `problem` says what is wrong with it; `foreign`: it is no
    checkpoint at all.
    """

    name: str
    nbytes: int
    modified_at: float
    problem: str = ""
    foreign: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """The folder of a run.

    `metric` and `mode` tell the best step; `n_past`: steps that are known and not there;
    `nbytes`: of all files that are ours; `others`: checkpoints that no manager
    wrote; `damage`: what is wrong; `notes`: what is to know.
    """

    root: str
    entries: tuple[Entry, ...]
    n_past: int
    latest: int | None
    best: int | None
    metric: str | None
    mode: Mode
    pins: Mapping[str, int]
    nbytes: int
    others: tuple[OtherFile, ...]
    leftovers: tuple[OtherFile, ...]
    damage: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damage


def look(
    root: str, *, metric: str | None = None, mode: Mode | None = None, everything: bool = False, verify: Problems | None
) -> Overview:
    """The overview of a folder; with `everything`, the steps that were pruned too.

    Raises `CheckpointNotFoundError` if there is no such folder, or no checkpoint in it.
    """
    run, lost = read(root)
    damage: list[str] = [*lost]
    entries = [*_present(run, verify, damage), *(_past(run) if everything else ())]
    entries.sort(key=lambda entry: entry.step)
    there = [entry.record for entry in entries if entry.state == "whole" and entry.record is not None]
    metric, mode = metric_and_mode(run, metric, mode)
    found = None if metric is None else best(there, metric, mode)
    others = tuple(_others(run))
    broken = {inside(run.root, file.name): file for file in others if file.problem}
    told = tuple(f"{path} " for path in broken)
    about_others = [(_with_path(path, file.problem), file.foreign) for path, file in broken.items()]
    overview = Overview(
        root=root,
        entries=tuple(entries),
        n_past=_n_past(run),
        latest=run.latest,
        best=None if found is None else found.step,
        metric=metric,
        mode=mode,
        pins=run.pins,
        nbytes=_nbytes(run),
        others=others,
        leftovers=tuple(file for name in run.leftovers for file in _other_file(run.storage, run.root, name)),
        damage=(*damage, *(text for text, foreign in about_others if not foreign)),
        notes=(
            *(text for text in run.problems if text not in {*lost, *damage} and not text.startswith(told)),
            *(text for text, foreign in about_others if foreign),
        ),
    )
    if not (overview.entries or overview.others or overview.leftovers or run.history):
        raise CheckpointNotFoundError(f"there are no checkpoints in {root}")
    return overview


def read(root: str) -> tuple[Run, tuple[str, ...]]:
    """The run in a folder, and what is wrong with its history. Raises `CheckpointNotFoundError` for what is none."""
    if os.path.isfile(root):  # noqa: PTH113 - the path is text, as it was given
        raise CheckpointNotFoundError(f"{root} is a file, not the folder of a run: pytreeckpt inspect looks into it")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = read_run(root)
    texts = {str(warning.message) for warning in caught}
    return run, tuple(problem for problem in run.problems if problem in texts)


def metric_and_mode(run: Run, metric: str | None, mode: Mode | None) -> tuple[str | None, Mode]:
    """What tells the best step: what was asked for, or what the run says.

    Raises `CheckpointNotFoundError` for a metric that no step has.
    """
    if metric is not None:
        names = list(dict.fromkeys(name for record in run.history for name in record.metrics))
        if metric not in names:
            there = f"there is {', '.join(names[:10])}" if names else "there are no metrics"
            raise CheckpointNotFoundError(f"{run.root}: no step has a metric {metric!r}; {there}")
    own = metric is None or metric == run.metric
    return (run.metric if metric is None else metric), mode or (run.mode if own else "min")


def _present(run: Run, verify: Problems | None, damage: list[str]) -> Iterator[Entry]:
    """The steps whose files are there. What is wrong with them comes into `damage`."""
    pins = _pins_by_step(run)
    known = {record.step: record for record in run.history}
    found = run.choice.listing.damaged
    for step in sorted(_there(run)):
        path = inside(run.root, step_file(step))
        incremental = False
        problems: tuple[str, ...] = (found[step],) if step in found else ()
        if not problems:
            try:
                incremental = _needs_data_files(run.storage, path)
                if incremental:
                    # Opening looks at its data files.
                    run.open(step).close()
                problems = () if verify is None else tuple(verify(path))
            except PytreeckptError as error:
                if not run.storage.exists(path):
                    # Pruned meanwhile, by the training.
                    continue
                problems = (str(error),)
        damage += [_with_path(path, text) for text in problems]
        yield Entry(
            step=step,
            record=known.get(step),
            state="damaged" if problems else "whole",
            path=path,
            file_nbytes=_nbytes_of(run.storage, path),
            incremental=incremental,
            pins=pins.get(step, ()),
        )


def _with_path(path: str, text: str) -> str:
    return text if path in text else f"{path}: {text}"


def _n_past(run: Run) -> int:
    there = _there(run)
    return sum(record.step not in there for record in run.history)


def _there(run: Run) -> frozenset[int]:
    """The steps whose files are there."""
    return frozenset([*(record.step for record in run.records), *run.damaged])


def _past(run: Run) -> Iterator[Entry]:
    """The steps that are known and not there."""
    there = _there(run)
    for record in run.history:
        if record.step not in there:
            state: State = "pruned" if record.was_saved else "never saved"
            yield Entry(step=record.step, record=record, state=state, path=inside(run.root, step_file(record.step)))


def _pins_by_step(run: Run) -> dict[int, tuple[str, ...]]:
    found: dict[int, tuple[str, ...]] = {}
    for name, step in run.pins.items():
        found[step] = (*found.get(step, ()), name)
    return found


def _needs_data_files(storage: Storage, path: str) -> bool:
    source = storage.open(path)
    try:
        return bool(read_footer(source).features & DATA_FILES)
    finally:
        close([source])


# What else is in the folder.


def _others(run: Run) -> Iterator[OtherFile]:
    """Checkpoints by their suffix that are not steps of the run."""
    steps = _there(run)
    for name in run.storage.names(run.root):
        if name.endswith(SUFFIX) and not name.startswith(".") and name != HISTORY and step_of(name) not in steps:
            yield from _other_file(run.storage, run.root, name, check=True)


def _other_file(storage: Storage, root: str, name: str, *, check: bool = False) -> Iterator[OtherFile]:
    """What there is to say of a file; nothing if it is gone meanwhile."""
    path = inside(root, name)
    nbytes, modified_at = 0, 0.0
    problem, foreign = "", False
    try:
        status = os.lstat(path)
        nbytes, modified_at = status.st_size, status.st_mtime
        if stat.S_ISLNK(status.st_mode) and not os.path.exists(path):  # noqa: PTH110 - likewise
            problem, foreign = "a link to what is not there", True
        elif check:
            # Of a link, what it leads to.
            nbytes = os.stat(path).st_size  # noqa: PTH116 - likewise
            _needs_data_files(storage, path)
    except (CheckpointNotFoundError, FileNotFoundError):
        return
    except (PytreeckptError, OSError) as error:
        problem, foreign = str(error), isinstance(error, NotACheckpointError)
    yield OtherFile(name=name, nbytes=nbytes, modified_at=modified_at, problem=problem, foreign=foreign)


def _nbytes(run: Run) -> int:
    """The bytes of all files that are ours."""
    steps: Iterable[str] = (step_file(step) for step in _there(run))
    folder = data_folder(run.root)
    try:
        data = [name for name in run.storage.names(folder) if is_data_file(name)]
    except PytreeckptError:
        # It is no folder, and not ours.
        data = []
    temporaries = [name for name in run.leftovers if "/" not in name or not is_data_file(name.rpartition("/")[2])]
    paths = [
        *(inside(run.root, name) for name in (*steps, HISTORY, *temporaries)),
        *(inside(folder, name) for name in data),
    ]
    return sum(_nbytes_of(run.storage, path) for path in paths)


def _nbytes_of(storage: Storage, path: str) -> int:
    try:
        source = storage.open(path)
    except PytreeckptError:
        # Gone meanwhile, or never there.
        return 0
    try:
        return source.nbytes
    finally:
        close([source])
