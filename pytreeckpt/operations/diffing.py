"""How two checkpoints differ: in structure, types, dtypes, shapes and values, from the digests in their indexes.

Arrays are read only if the indexes do not tell whether they are the same (they are cut into chunks in another way, or a
file is of another format), or if it is asked by how much they differ.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from pytreeckpt.api import open as open_checkpoint
from pytreeckpt.checkpoint import Checkpoint, Select
from pytreeckpt.collection import paused_collection
from pytreeckpt.errors import StructureMismatchError
from pytreeckpt.operations.diff_alignment import align
from pytreeckpt.operations.diff_alike import align_alike
from pytreeckpt.operations.diff_arrays import ArrayComparison, tie_changes
from pytreeckpt.operations.diff_moves import single_changes
from pytreeckpt.operations.diff_records import Change, Diff
from pytreeckpt.operations.diff_trees import VisitedTree, visited_tree
from pytreeckpt.operations.diff_values import Tolerance
from pytreeckpt.paths import Path, compile_glob, suggest
from pytreeckpt.pipeline import ReportProgress

Source = str | os.PathLike[str] | Checkpoint


def diff(
    a: Source,
    b: Source,
    *,
    select: Select | None = None,
    values: bool = False,
    rtol: float = 0.0,
    atol: float = 0.0,
    content_only: bool = False,
    progress: ReportProgress | None = None,
) -> Diff:
    """Compare two checkpoints, given by their paths or open, of whatever formats.

    Compared is everything that a restore gives back: structure, the types of containers and of wrapped arrays, the
    order of keys, dtypes, shapes, memory order, every bit of every value, ties between arrays (but for arrays within a
    slice or another object that is one value), and the metadata (not with `select`, which chooses leaves as in
    `restore`). Whether arrays are the same is told by the digests in the
    indexes, if both files cut them into the same chunks; others, and those of files of other formats, are read,
    a few tens of MiB at a time, and `Diff.read_nbytes` says how much that was. Arrays that stand at other
    paths in the second, as many with the same content, have moved.

    With `content_only`, only what stands at each path is compared, and not how it is held: the types of containers and
    of what wraps arrays, attributes, the order of keys, memory order, ties and the metadata may differ. So files of
    other formats and frameworks can be the same: a state dict in a .pt file and in one of safetensors.

    With `values`, arrays that differ and have the same shape are read, to say by how much: see `ValueDifference`. With
    `rtol` or `atol` too, and `Diff.same` is then true if all numbers are within the tolerance, as `numpy.isclose`
    has it with `equal_nan=True` (|a − b| ≤ atol + rtol · |b|): floats, ints and complex numbers, in arrays or not, but
    no bools. Everything else must be equal.

    Raises what `open` raises, `CorruptionError` with the leaf for damage in what is read, and `StructureMismatchError`
    for a pattern of `select` that matches no leaf of either.
    """
    if not all(0 <= tolerance < math.inf for tolerance in (rtol, atol)):
        raise ValueError(f"rtol={rtol} and atol={atol}: a tolerance is a number from 0 on")
    tolerance = Tolerance(float(rtol), float(atol))
    with ExitStack() as opened, paused_collection():
        one, other = (
            each if isinstance(each, Checkpoint) else opened.enter_context(open_checkpoint(each)) for each in (a, b)
        )
        one.check_structure()
        arrays = ArrayComparison(one, other, values or bool(tolerance), tolerance)
        if select is None and one.root is not None and one.root == other.root:
            return _of_equal_roots(arrays, content_only=content_only)
        return _run(arrays, select, progress, content_only=content_only)


def _run(
    arrays: ArrayComparison, select: Select | None, progress: ReportProgress | None, *, content_only: bool
) -> Diff:
    chosen = None if select is None else _Chosen.of(select)
    close = arrays.tolerance.close

    def was_read(nbytes: int) -> None:
        arrays.read_nbytes += nbytes

    found = align_alike(arrays.a, arrays.b, close, content_only=content_only) if chosen is None else None
    if found is None:
        arrays.b.check_structure()
        trees = [visited_tree(each, root=1) for each in (arrays.a, arrays.b)]
        found = align(trees[0], trees[1], part="tree", chosen=chosen, close=close, content_only=content_only)
        if chosen is not None:
            chosen.check(trees)
    arrays.compare(found.arrays, progress)
    of_arrays = arrays.changes(found)
    changes = _in_order([*found.changes, *of_arrays, *tie_changes(found), *single_changes(found, was_read)])
    if select is None and not content_only:
        trees = [visited_tree(each, root=0) for each in (arrays.a, arrays.b)]
        metadata = align(trees[0], trees[1], part="metadata", chosen=None, close=close)
        changes = _in_order([*metadata.changes, *single_changes(metadata, was_read)]) + changes
    n_leaves = found.n_leaves[0], found.n_leaves[1]
    return _diff(arrays, changes, n_leaves, found.n_common - len(found.changed), content_only=content_only)


def _in_order(changes: list[tuple[int, Change]]) -> list[Change]:
    return [change for _, change in sorted(changes, key=lambda one: one[0])]


def _of_equal_roots(arrays: ArrayComparison, *, content_only: bool) -> Diff:
    n_leaves = sum(1 for _ in visited_tree(arrays.a, root=1).leaves(0, attributes=False))
    return _diff(arrays, [], (n_leaves, n_leaves), n_leaves, content_only=content_only)


def _diff(
    arrays: ArrayComparison,
    changes: Sequence[Change],
    n_leaves: tuple[int, int],
    n_equal: int,
    *,
    content_only: bool,
) -> Diff:
    tolerance = arrays.tolerance
    return Diff(
        arrays.a.path,
        arrays.b.path,
        tuple(changes),
        n_leaves,
        n_equal,
        arrays.read_nbytes,
        tolerance.rtol,
        tolerance.atol,
        content_only,
    )


@dataclass(frozen=True, slots=True)
class _Chosen:
    """What `select` chooses. `used`: which of its patterns have matched a leaf."""

    patterns: Sequence[str]
    matchers: Sequence[Callable[[Path], bool]]

    @classmethod
    def of(cls, select: Select) -> _Chosen:
        if callable(select):
            return cls((), (select,))
        patterns = [select] if isinstance(select, str) else list(select)
        return cls(patterns, [compile_glob(pattern) for pattern in patterns])

    def __call__(self, path: Path) -> bool:
        return any(matcher(path) for matcher in self.matchers)

    def check(self, trees: Sequence[VisitedTree]) -> None:
        """Raise `StructureMismatchError` if a pattern matches no leaf of any."""
        paths = list(
            dict.fromkeys(Path(tree.visits[place].path) for tree in trees for place in tree.leaves(0, attributes=False))
        )
        idle = [matcher for matcher in self.matchers if not any(map(matcher, paths))]
        if not idle:
            return
        named = [pattern for pattern, matcher in zip(self.patterns, self.matchers, strict=False) if matcher in idle]
        meant = named[0].replace("*", "").strip("/") if named else ""
        texts = [str(path) for path in paths[:1000]]
        close = suggest(meant, texts, count=3, cutoff=0.5) or texts[:3]
        what = f"select {', '.join(map(repr, named))}" if named else "select"
        raise StructureMismatchError(f"{what} matches no leaf of either; there is {', '.join(close)}", missing=named)
