"""A plan, carried out: arrays go through the operations of their entries, and a tree like the target is made of them.

What an inverse would not give back to the bit is kept as a residual, by the path of the leaf that it was. On the way
back a residual is used if it still comes to what is there; if training has gone on since, that is computed back.

What comes out is what the plan says, in shape and dtype. Nothing of it is an array that was given, but for views, nor
one of the residuals.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pytreeckpt.arrays import AnyArray
from pytreeckpt.convert.entries import Spec
from pytreeckpt.convert.leaves import FoundLeaf, array_of, plain_path
from pytreeckpt.convert.names import steps_of, text_of
from pytreeckpt.convert.operations import (
    INEXACT,
    LOSSY,
    Crop,
    Drop,
    First,
    Operation,
    Operations,
    Recall,
    Repeat,
    SplitSum,
    Tie,
    inverse,
    inverse_of,
)
from pytreeckpt.convert.records import Entry
from pytreeckpt.convert.running import run
from pytreeckpt.convert.values import cast_to, same_bits
from pytreeckpt.errors import ConversionError
from pytreeckpt.paths import Path


class Converted(NamedTuple):
    """A tree like the target, and by the paths of the source what `invert` needs to give that back to the bit."""

    tree: Any
    residuals: dict[str, AnyArray]


def convert_arrays(
    entries: Sequence[Entry],
    values: Mapping[Path, FoundLeaf],
    source: Mapping[Path, Spec],
    target: Mapping[Path, Spec],
    *,
    residuals: Mapping[str, AnyArray],
    own: Mapping[Path, FoundLeaf],
) -> tuple[dict[Path, AnyArray], dict[str, AnyArray]]:
    """The arrays of the target by their paths, and residuals. `own`: the leaves of the target itself, for what nothing
    comes to. Raises `ConversionError` with all that does not go.
    """
    problems = _differences(entries, values, source)
    if problems:
        raise ConversionError(
            "the tree is not the one that this plan was made for:\n  " + "\n  ".join(problems), mismatched=problems
        )
    found: dict[Path, AnyArray] = {}
    kept: dict[str, AnyArray] = {}
    for entry in entries:
        try:
            given = [_given(values[plain_path(path)], source[path]) for path in entry.sources]
            made = _made(entry, given, target, residuals=residuals, own=own)
        except ValueError as error:
            problems.append(f"{', '.join(map(str, entry.sources or entry.targets))}: {error}{_advice(entry)}")
            continue
        lost = _residuals(entry, given, made)
        # The caller's own arrays stay the caller's; what is one array several times stays one.
        callers = {id(array) for array in (*given, *lost.values())}
        copies = {id(array): array.copy() for array in made if id(array) in callers}
        made = [copies.get(id(array), array) for array in made]
        problems += _misfits(entry, made, target, found)
        found.update(zip(entry.targets, made, strict=True))
        kept.update((path, array.copy()) for path, array in lost.items())
    if problems:
        raise ConversionError("the arrays cannot be converted:\n  " + "\n  ".join(problems), mismatched=problems)
    return found, kept


def _given(leaf: FoundLeaf, spec: Spec) -> AnyArray:
    array = array_of(leaf.value)
    # A number of Python has no dtype of its own.
    return cast_to(array, spec.dtype) if _is_number(leaf.value) else array


def _made(
    entry: Entry,
    given: list[AnyArray],
    target: Mapping[Path, Spec],
    *,
    residuals: Mapping[str, AnyArray],
    own: Mapping[Path, FoundLeaf],
) -> list[AnyArray]:
    """The arrays that an entry makes of those given. Raises `ValueError`."""
    earlier = [_earlier(path, residuals.get(str(path)), target) for path in entry.targets]
    if any(isinstance(operation, Recall) for operation in entry.operations):
        return [_recalled(path, each, target, own) for path, each in zip(entry.targets, earlier, strict=True)]
    return _converted(entry.operations, given, earlier, keeps_nonzero=entry.quantity == "second moment")


def _earlier(path: Path, residual: AnyArray | None, target: Mapping[Path, Spec]) -> AnyArray | None:
    """A residual, as an array of its own."""
    if residual is None:
        return None
    array = np.array(array_of(residual), order="C")
    spec = target.get(path)
    if spec is not None and (array.shape, array.dtype) != (spec.shape, spec.dtype):
        raise ValueError(
            f"the residual of {path} is {array.dtype}{list(array.shape)}, and not {spec.dtype}{list(spec.shape)}: "
            "it is of another plan"
        )
    return array


def _misfits(
    entry: Entry, made: Sequence[AnyArray], target: Mapping[Path, Spec], found: Mapping[Path, AnyArray]
) -> list[str]:
    """What of an entry's arrays is not as the plan says, or not as another entry has it that comes to the same leaf."""
    problems: list[str] = []
    for path, array in zip(entry.targets, made, strict=True):
        spec = target.get(path)
        if spec is not None and (array.shape, array.dtype) != (spec.shape, spec.dtype):
            problems.append(
                f"{path}: {array.dtype}{list(array.shape)} comes to it, and not {spec.dtype}{list(spec.shape)}"
            )
        elif entry.quantity != "count" and path in found and not same_bits(found[path], array):
            # What an optimizer counts, several may count; its last word is that of its moments.
            problems.append(
                f"{path}: several come to it, the last from {', '.join(map(str, entry.sources)) or 'nothing'}, and "
                "they differ: what is one here has parted on the other side"
            )
    return problems


def _advice(entry: Entry) -> str:
    match entry.operations:
        case (Drop(_, fill),) if fill is not None and fill.implied:
            # A variable of nnx has its value below its name.
            steps = [step for step in steps_of(entry.sources[0]) if step != "value"]
            return (
                ", and torch's layer has no place for it; declare "
                f'Fill("**/{text_of(tuple(steps[-2:]))}", {fill.value:g}) to leave it out (it is kept as a residual)'
            )
    return ""


def _differences(entries: Iterable[Entry], values: Mapping[Path, FoundLeaf], source: Mapping[Path, Spec]) -> list[str]:
    problems: list[str] = []
    for path in (path for entry in entries for path in entry.sources):
        leaf = values.get(plain_path(path))
        spec = source[path]
        if leaf is None or leaf.shape is None:
            problems.append(f"{path}: there is none")
        elif leaf.shape != spec.shape or (leaf.dtype != spec.dtype and not _is_number(leaf.value)):
            problems.append(f"{path}: {leaf.dtype}{list(leaf.shape)}, and not {spec.dtype}{list(spec.shape)}")
    return problems


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _converted(
    operations: Operations, given: list[AnyArray], earlier: Sequence[AnyArray | None], *, keeps_nonzero: bool
) -> list[AnyArray]:
    """The arrays that the operations make; `earlier`: what was kept of each of them."""
    known = [array for array in earlier if array is not None]
    if known and len(known) == len(earlier):
        try:
            # Several that became one need not have been equal.
            again = run([First(each.count) if isinstance(each, Tie) else each for each in inverse(operations)], known)
        except ValueError:
            again = []
        if len(again) == len(given) and all(map(same_bits, again, given)):
            is_tied = any(isinstance(each, Repeat) and each.equal for each in operations[-1:])
            return known[:1] * len(known) if is_tied and all(same_bits(known[0], each) for each in known) else known
    if operations and known and len(known) == len(earlier):
        # It has changed since: what only the residual has is taken from there.
        return _merged(operations[-1], run(operations[:-1], given, keeps_nonzero=keeps_nonzero), known)
    return run(operations, given, keeps_nonzero=keeps_nonzero)


def _merged(operation: Operation, arrays: list[AnyArray], earlier: list[AnyArray]) -> list[AnyArray]:
    """The last operation of the way back, with what was kept of its results."""
    made = run((operation,), arrays)
    match operation:
        case SplitSum() if len(earlier) == 2 and earlier[1].shape == made[1].shape:
            # Which of both has changed is not known, and does not matter: the second stays.
            return [(arrays[0] - earlier[1]).astype(arrays[0].dtype, copy=False), earlier[1]]
        case _ if _is_padding(operation) and earlier[0].shape == made[0].shape and len(made) == 1:
            # Around what has changed is what was cropped.
            whole = earlier[0].copy()
            inner = tuple(
                slice(before, extent - after)
                for extent, (before, after) in zip(whole.shape, _widths(operation), strict=True)
            )
            whole[inner] = arrays[0]
            return [whole]
    return made


def _is_padding(operation: Operation) -> bool:
    return isinstance(inverse_of(operation), Crop)


def _widths(operation: Any) -> Any:
    return operation.widths


def _recalled(
    path: Path, earlier: AnyArray | None, target: Mapping[Path, Spec], own: Mapping[Path, FoundLeaf]
) -> AnyArray:
    if earlier is not None:
        return earlier
    leaf = own.get(plain_path(path))
    if leaf is not None:
        try:
            return array_of(leaf.value).copy()
        except TypeError:
            # Abstract.
            pass
    spec = target[path]
    if spec.dtype.kind in "iu":
        # A count that the other side does not keep, such as num_batches_tracked.
        return np.zeros(spec.shape, spec.dtype)
    raise ValueError("it was dropped on the way here: give residuals=, or a target that has values")


def _residuals(entry: Entry, given: Sequence[AnyArray], made: Sequence[AnyArray]) -> dict[str, AnyArray]:
    """What of the sources the inverse would not give back to the bit."""
    if not any(isinstance(operation, (*LOSSY, *INEXACT)) for operation in entry.operations):
        return {}
    texts = list(map(str, entry.sources))
    back = inverse(entry.operations)
    if any(isinstance(operation, Recall) for operation in back):
        return dict(zip(texts, given, strict=True))
    try:
        again = run(back, made)
    except ValueError:
        # Rounded values may be beyond the other dtype.
        again = []
    if len(again) == len(given) and all(map(same_bits, again, given)):
        return {}
    # All of an entry's: what is used on the way back is all of them or none.
    return dict(zip(texts, given, strict=True))
