"""What a comparison of two checkpoints gives: plain records, in the order of the paths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from pytreeckpt.dtypes import AnyDType
from pytreeckpt.geometry import Shape
from pytreeckpt.paths import Path

Kind = Literal["removed", "added", "moved", "type", "dtype", "shape", "value", "layout", "order", "tie"]
"""What is different at a path.

removed, added: a leaf that only the first has, or only the second. moved: a leaf of the first whose content stands at
`moved_to` in the second. type: another type of value, of container, or of what wraps the value (in place of a numpy
array a torch.Tensor). dtype, shape: of an array or a numpy scalar. value: other bits of the same type, dtype and
shape. layout: the same items in another memory order. order: the same keys or fields in another order. tie: the same
array as another leaf in one, and not in the other.
"""
KINDS: Final[tuple[Kind, ...]] = (
    *("removed", "added", "moved", "type", "dtype", "shape", "value", "layout", "order", "tie"),
)
Part = Literal["tree", "metadata", "attribute"]
"""Where a path leads: into the tree, into the metadata, or to what belongs to a wrapper (`requires_grad`)."""


@dataclass(frozen=True, slots=True)
class Side:
    """What stands at a path of one checkpoint.

    `type`: of a Python value, container or numpy scalar its type, of an array that of what wraps it, or `array`.
    `value`: of plain values, sets, scalars and the like; None for arrays and containers. `dtype`, `shape` and `nbytes`
    (in memory): of arrays and scalars. `n_leaves`: of what is no leaf, how many are below it.
    """

    type: str
    value: object = None
    dtype: AnyDType | None = None
    shape: Shape | None = None
    nbytes: int = 0
    n_leaves: int = 1


@dataclass(frozen=True, slots=True)
class ValueDifference:
    """By how much the numbers of two arrays of one shape differ.

    `n_different`: items with other bits; of arrays with different dtypes, with other values. `n_beyond`: items that
    are not within the tolerance. The others are of items that are finite in both, n_finite of them, in float64 (of
    integers exactly, of complex numbers the absolute values): d = |a − b|, its greatest and its mean,
    `max_relative`: the greatest d / max(|a|, |b|), `rms`: √mean(d²), and the cosine of the angle between the two as
    vectors, None where one has no length. None of these if the items are no numbers.
    """

    n_items: int
    n_different: int
    n_beyond: int
    n_finite: int
    n_nan: tuple[int, int]
    n_infinite: tuple[int, int]
    max_abs: int | float | None
    mean_abs: float | None
    max_relative: float | None
    rms: float | None
    cosine: float | None

    @property
    def share(self) -> float:
        """How many of the items differ, from 0 to 1."""
        return self.n_different / self.n_items if self.n_items else 0.0


@dataclass(frozen=True, slots=True)
class Change:
    """A difference at a path: what stands there in the first checkpoint and in the second (None: nothing).

    `tied`, of a tie: the path of the first leaf that is the same array, in each, or None. `within_tolerance`: a value
    that is close enough. A leaf may have several changes, such as of its dtype and of its shape.
    """

    path: Path
    kind: Kind
    part: Part
    a: Side | None
    b: Side | None
    moved_to: Path | None = None
    tied: tuple[Path | None, Path | None] = (None, None)
    values: ValueDifference | None = None
    within_tolerance: bool = False


@dataclass(frozen=True, slots=True)
class Diff:
    """How two checkpoints differ; iterating over it gives the changes in the order of their paths.

    `n_leaves`: those of each that were compared. `n_equal`: leaves at the same path of both without any change.
    `read_nbytes`: bytes of arrays, as they are in memory, that had to be read of both to decide. `content_only`: how
    the content is held was not compared.
    """

    path_a: str | None
    path_b: str | None
    changes: tuple[Change, ...]
    n_leaves: tuple[int, int]
    n_equal: int
    read_nbytes: int
    rtol: float
    atol: float
    content_only: bool = False

    @property
    def same(self) -> bool:
        """Whether restoring both gives the same, to the bit; with a tolerance, but for numbers within it; with
        `content_only`, but for how the content is held.
        """
        return all(change.within_tolerance for change in self.changes)

    def __iter__(self) -> Iterator[Change]:
        return iter(self.changes)

    def __len__(self) -> int:
        return len(self.changes)

    @property
    def counts(self) -> Mapping[Kind, int]:
        """How many changes of each kind there are, those within the tolerance left out."""
        found = Counter(change.kind for change in self.changes if not change.within_tolerance)
        return {kind: found[kind] for kind in KINDS if found[kind]}

    @property
    def n_within_tolerance(self) -> int:
        """How many values differ by no more than the tolerance."""
        return sum(change.within_tolerance for change in self.changes)

    def summary(self) -> str:
        """What differs, in a sentence."""
        parts = [count_text(kind, times) for kind, times in self.counts.items()]
        close = f"{_leaves(self.n_within_tolerance)} within the tolerance" if self.n_within_tolerance else ""
        if not parts:
            what = f"the same but for {close}" if close else "the same"
            return f"{what}: {_leaves(max(self.n_leaves))}"
        return f"{', '.join([*parts, close] if close else parts)}; {_leaves(self.n_equal)} the same"


_WORDS: Final[Mapping[Kind, str]] = {
    "removed": "{} only in the first",
    "added": "{} only in the second",
    "moved": "{} moved",
    "type": "{} of another type",
    "dtype": "{} of another dtype",
    "shape": "{} of another shape",
    "value": "{} with other values",
    "layout": "{} in another memory order",
    "order": "{} with keys in another order",
    "tie": "{} tied otherwise",
}


def count_text(kind: Kind, number: int) -> str:
    """So many changes of a kind, in words."""
    container = f"{number:,} container{'' if number == 1 else 's'}"
    return _WORDS[kind].format(container if kind == "order" else _leaves(number))


def _leaves(number: int) -> str:
    return f"{number:,} {'leaf' if number == 1 else 'leaves'}"
