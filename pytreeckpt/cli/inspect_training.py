"""What `pytreeckpt inspect` says of the state of a training."""

from __future__ import annotations

from typing import Final

from pytreeckpt.checkpoint import Checkpoint
from pytreeckpt.cli.layout import Line, fields
from pytreeckpt.cli.navigation import find
from pytreeckpt.cli.outline import Outline
from pytreeckpt.cli.text import visible
from pytreeckpt.errors import PytreeckptError
from pytreeckpt.paths import DictKey, Path
from pytreeckpt.training.summary import Summary, summarize

# One of these is in every tree that can be a training's: making the objects of another one takes time for nothing.
_KEYS: Final = ("training", "optimizer", "optimizer_state_dict", "optimizer_state", "optim", "optimizers")


def summary_of(checkpoint: Checkpoint, outline: Outline) -> Summary | None:
    """The summary of the tree, or None if it is no state of a training."""
    if all(find(outline, Path((DictKey(key),))) is None for key in _KEYS):
        return None
    try:
        return summarize(checkpoint.tree)
    except PytreeckptError:
        # The tree below says what there is.
        return None


def training_lines(summary: Summary, width: int | None) -> list[Line]:
    """A line for each of the training's objects, and for the values that tell how far it is."""
    pairs = [("training", visible(summary.framework))] if summary.framework else []
    pairs += [(visible(name), visible(text)) for name, _, text in summary.facts if text]
    return [*fields(pairs, width), []]
