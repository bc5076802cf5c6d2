"""The arrays that two trees have at the same paths: which of them are read, and what comes of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import reduce

from pytreeckpt.checkpoint import Checkpoint
from pytreeckpt.operations.diff_alignment import Alignment, ArrayPair
from pytreeckpt.operations.diff_contents import memory_order, same_content, same_dtype
from pytreeckpt.operations.diff_reading import Block, Numbers, are_small, pairs_of_blocks
from pytreeckpt.operations.diff_records import Change, Kind, ValueDifference
from pytreeckpt.operations.diff_values import (
    Sums,
    Tolerance,
    equal_items,
    merge,
    number_kind,
    sums_of,
    value_difference,
)
from pytreeckpt.paths import Path
from pytreeckpt.pipeline import Progress, ReportProgress, default_threads, ordered_map


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether two arrays of one shape are the same, bit by bit, and by how much they differ, if that was asked."""

    same: bool
    values: ValueDifference | None = None


_OTHER = Outcome(same=False)


@dataclass(slots=True)
class ArrayComparison:
    """The arrays of two checkpoints. `values`: whether to say by how much they differ. `read_nbytes`: bytes of arrays
    that were read; `outcomes`: of pairs of arrays of one shape.
    """

    a: Checkpoint
    b: Checkpoint
    values: bool
    tolerance: Tolerance
    read_nbytes: int = 0
    outcomes: dict[Numbers, Outcome] = field(default_factory=dict)

    def compare(self, arrays: Sequence[ArrayPair], progress: ReportProgress | None) -> None:
        """Find the outcomes of all pairs, and read those of which the indexes do not tell enough."""
        wanted: dict[Numbers, None] = {}
        for pair in arrays:
            numbers = Numbers(pair.array_a, pair.array_b)
            if numbers not in self.outcomes and numbers not in wanted:
                outcome = self.from_indexes(numbers)
                if outcome is None:
                    wanted[numbers] = None
                else:
                    self.outcomes[numbers] = outcome
        pairs = list(wanted)
        total = sum(self.a.index.nbytes(numbers.a) + self.b.index.nbytes(numbers.b) for numbers in pairs)
        done = 0
        with closing(pairs_of_blocks(self.a, self.b, pairs)) as read:
            for place, blocks in read:
                numbers = pairs[place]
                self.outcomes[numbers] = self.from_blocks(numbers, blocks)
                done += self.a.index.nbytes(numbers.a) + self.b.index.nbytes(numbers.b)
                if progress is not None:
                    progress(Progress(done, total))

    def from_indexes(self, pair: Numbers) -> Outcome | None:
        """What the indexes tell; None if the arrays are to be read."""
        a, b = self.a.index, self.b.index
        entry_a, entry_b = a.arrays[pair.a], b.arrays[pair.b]
        if entry_a.shape != entry_b.shape:
            return _OTHER
        if not same_dtype(a, pair.a, b, pair.b):
            are_numbers = None not in {number_kind(a.dtypes[entry_a.dtype]), number_kind(b.dtypes[entry_b.dtype])}
            return None if self.values and are_numbers else _OTHER
        same = same_content(a, pair.a, b, pair.b)
        return None if same is None or (self.values and not same) else Outcome(same)

    def from_blocks(self, pair: Numbers, blocks: Iterable[Block]) -> Outcome:
        """What the items tell, all of them if it is asked by how much they differ."""
        if not self.values:
            return Outcome(all(equal_items(*block).all() for block in self.counted(blocks)))
        is_same = same_dtype(self.a.index, pair.a, self.b.index, pair.b)

        def of_block(block: Block) -> Sums:
            return sums_of(*block, same_dtype=is_same, tolerance=self.tolerance)

        threads = 1 if are_small(self.a, self.b, pair) else default_threads()
        found = value_difference(reduce(merge, ordered_map(of_block, self.counted(blocks), threads=threads), Sums()))
        return Outcome(found.n_different == 0, found)

    def counted(self, blocks: Iterable[Block]) -> Iterator[Block]:
        """The same blocks, as they are read."""
        for block in blocks:
            self.read_nbytes += block[0].nbytes + block[1].nbytes
            yield block

    def changes(self, alignment: Alignment) -> list[tuple[int, Change]]:
        """The changes of the arrays that both have at a path, and notes which leaves have any."""
        found: list[tuple[int, Change]] = []
        for pair in alignment.arrays:
            outcome = self.outcomes[Numbers(pair.array_a, pair.array_b)]
            for kind in self.kinds(pair, outcome):
                if kind == "layout" and alignment.content_only:
                    continue
                is_close = kind == "value" and self.is_close(outcome)
                values = outcome.values if kind in {"value", "dtype"} else None
                change = array_change(alignment, pair, kind, values=values, within_tolerance=is_close)
                found.append((pair.order, change))
                if pair.leaf is not None and not is_close:
                    alignment.changed.add(pair.leaf)
        return found

    def kinds(self, pair: ArrayPair, outcome: Outcome) -> list[Kind]:
        """In what two arrays differ."""
        a, b = self.a.index, self.b.index
        entry_a, entry_b = a.arrays[pair.array_a], b.arrays[pair.array_b]
        kinds: list[Kind] = [] if same_dtype(a, pair.array_a, b, pair.array_b) else ["dtype"]
        if entry_a.shape != entry_b.shape:
            return [*kinds, "shape"]
        if not kinds and not outcome.same:
            kinds.append("value")
        return [*kinds, "layout"] if memory_order(entry_a) != memory_order(entry_b) else kinds

    def is_close(self, outcome: Outcome) -> bool:
        """Whether all items are within the tolerance."""
        return bool(self.tolerance) and outcome.values is not None and outcome.values.n_beyond == 0


def array_change(
    alignment: Alignment,
    pair: ArrayPair,
    kind: Kind,
    *,
    values: ValueDifference | None = None,
    within_tolerance: bool = False,
    tied: tuple[Path | None, Path | None] = (None, None),
) -> Change:
    """A change of an array that both have at a path."""
    a, b = alignment.a, alignment.b
    path = Path(a.visits[pair.place_a].path)
    sides = a.side(pair.place_a), b.side(pair.place_b)
    return Change(path, kind, pair.part, *sides, tied=tied, values=values, within_tolerance=within_tolerance)


def tie_changes(alignment: Alignment) -> list[tuple[int, Change]]:
    """Of the arrays that both have at a path, those that are one with an earlier one in one tree, and not in the other;
    and notes which leaves are.
    """
    if alignment.content_only:
        return []
    found: list[tuple[int, Change]] = []
    first_a: dict[int, ArrayPair] = {}
    first_b: dict[int, ArrayPair] = {}
    for pair in alignment.arrays:
        of_a, of_b = first_a.setdefault(pair.array_a, pair), first_b.setdefault(pair.array_b, pair)
        if of_a is of_b:
            continue
        tied_a = None if of_a is pair else Path(alignment.a.visits[of_a.place_a].path)
        tied_b = None if of_b is pair else Path(alignment.b.visits[of_b.place_b].path)
        found.append((pair.order, array_change(alignment, pair, "tie", tied=(tied_a, tied_b))))
        if pair.leaf is not None:
            alignment.changed.add(pair.leaf)
    return found
