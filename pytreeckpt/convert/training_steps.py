"""The step that a training was at, where it was captured beside the model: `capture(model=…, step=100)`.

Most optimizers of torch count their steps, and those of SGD do not: a train state's own count is then this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pytreeckpt.convert.names import steps_of
from pytreeckpt.convert.operations import Cast, Operations
from pytreeckpt.convert.records import Entry, Inventory, Leaf
from pytreeckpt.paths import DictKey, Path

_CAPTURED: Final = Path([DictKey("step")])


def plan_training_step(
    first: Inventory, second: Inventory, states: Sequence[Entry], *, is_backward: bool
) -> list[Entry]:
    """The entries of the step from a side of torch to the counts of the other side, but for those to which the entries
    of optimizers come. For a way back, the first count of all gives the step in any case.
    """
    taken = {path for entry in states for path in (*entry.sources, *entry.targets)}
    captured = first.rest.get(_CAPTURED)
    if captured is None or captured.path in taken or not _is_count(captured):
        return []
    counts = [leaf for leaf in second.rest.values() if _is_count(leaf) and _name(leaf) == "step"]
    targets = [leaf for leaf in counts if leaf.path not in taken] or counts[: int(is_backward)]
    return [
        Entry((captured.path,), (leaf.path,), _cast(captured, leaf), "count", "the step of the training")
        for leaf in targets
    ]


def _cast(captured: Leaf, leaf: Leaf) -> Operations:
    # A number that the other cannot hold is refused when it is met.
    return (Cast(captured.dtype.name, leaf.dtype.name),) if captured.dtype != leaf.dtype else ()


def _is_count(leaf: Leaf) -> bool:
    return not leaf.shape and leaf.dtype.kind in "iu"


def _name(leaf: Leaf) -> str:
    """The last step, of a variable of nnx without that of its value."""
    steps = [step for step in steps_of(leaf.path) if step != "value"]
    return steps[-1] if steps else ""
