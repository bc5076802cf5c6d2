"""A job, done: what is read, planned, checked and written, in this order."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import pytreeckpt
from pytreeckpt.checkpoint import Checkpoint
from pytreeckpt.cli.convert_job import Job, OptionError
from pytreeckpt.cli.convert_leaves import Files, nbytes_of
from pytreeckpt.cli.convert_making import Sides, Values, made_tree, values_in
from pytreeckpt.cli.convert_residuals import read_residuals, residuals_metadata, residuals_tree
from pytreeckpt.cli.convert_tree import lazy_tree, planned_part
from pytreeckpt.cli.terminal import Terminal, shown_progress
from pytreeckpt.cli.text import visible
from pytreeckpt.content import OWN_FORMAT
from pytreeckpt.convert import Plan, draft, to_document
from pytreeckpt.convert.leaves import values_by_path
from pytreeckpt.convert.problems import Problems
from pytreeckpt.errors import CheckpointExistsError, UnsupportedTypeError
from pytreeckpt.interop.writing import PlannedFile, publish_files
from pytreeckpt.navigation import descend
from pytreeckpt.operations.formats import Content, Options, Outcome, carried, leaves_in
from pytreeckpt.operations.lazy import data_of, lazy, part_at
from pytreeckpt.operations.roles import model_path
from pytreeckpt.operations.sources import Files as StoredFiles
from pytreeckpt.operations.stored import Meter
from pytreeckpt.paths import Path
from pytreeckpt.storage import LocalStorage


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a job. `source_format`: of the file that was read; `n_leaves`: of the tree that was or would be
    written; `plan`: None between formats alone; `outcome`: None if nothing was written.
    """

    job: Job
    source_format: str
    n_leaves: int
    plan: Plan | None
    problems: Problems
    notes: tuple[str, ...]
    outcome: Outcome | None


@dataclass(frozen=True, slots=True)
class _Ready:
    """What is to be written: the content, and the whole of the tree that it is like; and of a plan, what it is carried
    out on, and the tree and metadata that it begins with.
    """

    content: Content
    whole: Any
    plan: Plan | None = None
    sides: Sides | None = None
    origin: Any = None
    metadata: Any = None


def do(job: Job, terminal: Terminal) -> Result:
    """Convert, unless the job is only to look, or something is not decided.

    Raises what reading and writing raise, and `ConversionError` for arrays that are not what the plan was made for.
    """
    if job.if_exists == "error" and FilePath(job.destination).exists():
        raise CheckpointExistsError(f"{job.destination} exists; choose another path, or --if-exists replace")
    meter = Meter()
    with ExitStack() as stack:

        def opened(file: str) -> Checkpoint:
            return stack.enter_context(pytreeckpt.open(file))

        source = opened(job.source.file)
        if job.invert:
            ready: _Ready | tuple[Plan, Problems] = _inverted(source, opened(str(job.residuals)), meter)
        elif not job.has_plan:
            ready = _reformatted(job, source, meter)
        else:
            target = None if job.target is None else opened(job.target.file)
            ready = _planned(job, source, target, meter)
        if isinstance(ready, tuple):
            plan, problems = ready
            return Result(job, source.format, 0, plan, problems, source.notes, None)
        return _written(job, source, ready, meter, terminal)


# What is to be written.


def _reformatted(job: Job, source: Checkpoint, meter: Meter) -> _Ready:
    # Raises, and says what is there instead.
    _ = source[job.source.path]
    metadata, tree = lazy(source, StoredFiles(meter=meter), order=job.format.order).build()
    return _Ready(Content(part_at(tree, job.source.path), carried(source, metadata)), lazy_tree(source)[1])


def _planned(job: Job, source: Checkpoint, target: Checkpoint | None, meter: Meter) -> _Ready | tuple[Plan, Problems]:
    metadata, tree = lazy_tree(source)
    part, inner = planned_part(tree, job.source.path)
    files = Files([source], meter)
    # Without a target, the tree stays what it is, in another dtype.
    wanted: Any = part if job.scheme is None else job.scheme
    whole = tree
    own: Values = {}
    if target is not None:
        files = Files([source, target], meter)
        _, whole = lazy_tree(target)
        wanted, inner = planned_part(whole, job.target.path if job.target is not None else Path())
        own = values_by_path(wanted)
    drafted = draft(part, wanted, rules=job.rules, cast=job.cast, dtype=job.dtype)
    if drafted.problems:
        return drafted.plan, drafted.problems
    sides = Sides(values_by_path(part), own, {}, files)
    made = made_tree(drafted.plan, sides, None if job.scheme is not None else wanted)
    own_metadata = carried(source, metadata)
    # Those of a safetensors file say that it is one of torch.
    kept = own_metadata if wanted is part or source.format == OWN_FORMAT else None
    written = made if job.scheme is not None else descend(made, inner)
    return _Ready(Content(written, kept), whole, drafted.plan, sides, part, own_metadata)


def _inverted(source: Checkpoint, residuals: Checkpoint, meter: Meter) -> _Ready:
    kept = read_residuals(residuals)
    plan = kept.plan.invert()
    metadata, tree = lazy_tree(source)
    values = values_in(tree, plan.source, _aliases(source, metadata))
    sides = Sides(values, {}, kept.residuals, Files([source, residuals], meter))
    return _Ready(Content(made_tree(plan, sides, kept.origin), kept.metadata), kept.origin, plan, sides, tree)


def _aliases(source: Checkpoint, metadata: object) -> Mapping[str, str]:
    """The names that a safetensors file has no tensors for, because others have the same."""
    if source.format != "safetensors" or not isinstance(metadata, Mapping):
        return {}
    return {str(name): str(kept) for name, kept in metadata.items()}


# Writing.


def _written(job: Job, source: Checkpoint, ready: _Ready, meter: Meter, terminal: Terminal) -> Result:
    content, notes = job.format.prepared(ready.content)
    leaves = leaves_in(content.tree)
    outcome: Outcome | None = None
    with shown_progress(terminal, f"converting {visible(job.source.file)}") as progress:
        try:
            job.format.check(content)
        except UnsupportedTypeError as error:
            raise OptionError(f"{job.destination}: {error}{_advice(job, ready.whole)}") from error
        if not job.dry_run:
            _write_beside(job, ready)
            options = Options(job.if_exists, job.max_shard_nbytes, progress)
            if job.format.name != "ptck":
                meter.begin(progress, nbytes_of(data_of(value) for _, value in leaves))
            outcome = job.format.write(content, job.destination, options)
            notes = (*notes, *_outcome_notes(outcome))
    plan = None if job.invert else ready.plan
    return Result(job, source.format, len(leaves), plan, Problems(), (*source.notes, *notes), outcome)


def _write_beside(job: Job, ready: _Ready) -> None:
    """The files of `--residuals` and `--plan`: before the result, so that there is none without its way back."""
    if ready.plan is None or ready.sides is None or job.invert:
        return
    if job.residuals is not None:
        pytreeckpt.save(
            residuals_tree(ready.plan, ready.sides, ready.origin),
            job.residuals,
            metadata=residuals_metadata(ready.metadata),
            if_exists=job.if_exists,
        )
    if job.plan is not None:
        text = json.dumps(to_document(ready.plan), indent=1) + "\n"
        file = PlannedFile(job.plan, lambda: [text.encode()])
        publish_files(LocalStorage(), [file], if_exists=job.if_exists, durability="durable")


def _outcome_notes(outcome: Outcome) -> Iterator[str]:
    if outcome.shared:
        yield f"{outcome.shared} names have no array of their own, but share one: the metadata say which"
    if outcome.superseded:
        yield f"not needed any more: {', '.join(outcome.superseded)}"


def _advice(job: Job, whole: object) -> str:
    """How to choose a part that the format can hold; `whole`: the tree of which all or a part was to be written."""
    example = str(model_path(whole) or "")
    if job.target is not None:
        option = f"--target {job.target.file}:{example or 'PATH'}"
    else:
        option = "--select PATH" + (f", such as --select {example}" if example else "")
    return f"\nwrite a part of the tree with {option}; or write a .ptck file, which holds all of it"
