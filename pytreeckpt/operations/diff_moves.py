"""Leaves that only one of two trees has; and those of them that moved: an array that only the first has at its path,
and only the second at another one.

It has moved if as many leaves that were removed as were added hold this content, in the same type, and if these are
tied to each other in the same way: the first to the first, and so on. Where both files cut such arrays alike, the
digests in the indexes tell; otherwise arrays are read, if there are any of the same dtype and shape on both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

from pytreeckpt import nodes as n
from pytreeckpt.operations.diff_alignment import Alignment, Single
from pytreeckpt.operations.diff_contents import content, layout
from pytreeckpt.operations.diff_reading import digests_of
from pytreeckpt.operations.diff_records import Change
from pytreeckpt.operations.diff_trees import VisitedTree
from pytreeckpt.paths import Path


class Move(NamedTuple):
    """A leaf of the first and one of the second."""

    removed: Single
    added: Single


def single_changes(alignment: Alignment, was_read: Callable[[int], None]) -> list[tuple[int, Change]]:
    """What was removed, added and moved. `was_read` is told of bytes of arrays that had to be read."""
    moves = find_moves(alignment, was_read)
    moved_from = {move.removed.place: move for move in moves}
    moved_to = {move.added.place for move in moves}
    changes: list[tuple[int, Change]] = []
    a, b = alignment.a, alignment.b
    for single in alignment.removed:
        path, side = Path(a.visits[single.place].path), a.side(a.outermost(single.place))
        move = moved_from.get(single.place)
        if move is None:
            changes.append((single.order, Change(path, "removed", single.part, side, None)))
            continue
        target = move.added.place
        new_path, new_side = Path(b.visits[target].path), b.side(b.outermost(target))
        changes.append((single.order, Change(path, "moved", single.part, side, new_side, moved_to=new_path)))
    for single in alignment.added:
        if single.place not in moved_to:
            path, side = Path(b.visits[single.place].path), b.side(b.outermost(single.place))
            changes.append((single.order, Change(path, "added", single.part, None, side)))
    return changes


class _Candidate(NamedTuple):
    single: Single
    tree: VisitedTree
    array: int


def find_moves(alignment: Alignment, was_read: Callable[[int], None]) -> list[Move]:
    """The moves among what was removed and added. `was_read` is told of bytes of arrays that had to be read."""
    of_removed = _candidates(alignment.a, alignment.removed, content_only=alignment.content_only)
    of_added = _candidates(alignment.b, alignment.added, content_only=alignment.content_only)
    moves: list[Move] = []
    for form, removed in of_removed.items():
        added = of_added.get(form)
        if added is None:
            continue
        contents_a, contents_b = _contents(removed, added, was_read)
        by_content = _by_content(added, contents_b)
        for held, ones in _by_content(removed, contents_a).items():
            others = by_content.get(held, [])
            if _ties(ones) == _ties(others):
                moves += [Move(one.single, other.single) for one, other in zip(ones, others, strict=True)]
    return moves


def _candidates(
    tree: VisitedTree, singles: Sequence[Single], *, content_only: bool
) -> dict[Hashable, list[_Candidate]]:
    """The arrays that have items, by their dtype and shape, and, unless that does not matter, type and memory order."""
    found: dict[Hashable, list[_Candidate]] = {}
    index = tree.checkpoint.index
    for single in singles:
        if single.part != "tree" or tree.visits[single.place].kind != n.ARRAY:
            continue
        array = tree.array_number(single.place)
        entry = index.arrays[array]
        if index.nbytes(array):
            held = () if content_only else (tree.wrapping(single.place), entry.axes)
            form = (index.descriptors[entry.dtype], entry.shape, held)
            found.setdefault(form, []).append(_Candidate(single, tree, array))
    return found


def _contents(
    removed: Sequence[_Candidate], added: Sequence[_Candidate], was_read: Callable[[int], None]
) -> tuple[list[bytes], list[bytes]]:
    """What tells the contents of the candidates apart, from the indexes if they are cut alike."""
    both = [*removed, *added]
    layouts = {layout(one.tree.checkpoint.index, one.array) for one in both}
    entry = both[0].tree.checkpoint.index.arrays[both[0].array]
    decided = len(layouts) == 1 and not (entry.pooled or entry.foreign)

    if decided:
        of_each = [[content(one.tree.checkpoint.index, one.array) for one in side] for side in (removed, added)]
        return of_each[0], of_each[1]
    return _read(removed, was_read), _read(added, was_read)


def _read(side: Sequence[_Candidate], was_read: Callable[[int], None]) -> list[bytes]:
    checkpoint = side[0].tree.checkpoint
    wanted = sorted({one.array for one in side})
    digests = digests_of(checkpoint, wanted)
    was_read(sum(map(checkpoint.index.nbytes, wanted)))
    return [digests[one.array] for one in side]


def _ties(ones: Sequence[_Candidate]) -> list[int]:
    """Of each, the place of the first that is the same array."""
    first: dict[int, int] = {}
    return [first.setdefault(one.array, place) for place, one in enumerate(ones)]


def _by_content(side: Sequence[_Candidate], contents: Sequence[bytes]) -> dict[bytes, list[_Candidate]]:
    found: dict[bytes, list[_Candidate]] = {}
    for one, held in zip(side, contents, strict=True):
        found.setdefault(held, []).append(one)
    return found
