"""Plain pickles, such as those of arrays or tensors in dicts, read without anything that they name."""

from __future__ import annotations

from typing import Any

from pytreeckpt.interop.foreign import ForeignTree
from pytreeckpt.interop.pickle_loading import load_from
from pytreeckpt.interop.torch_legacy import plain_vocabulary
from pytreeckpt.reading import BytesSource, RangedSource


def load_pickle(data: bytes) -> Any:
    """The value of a pickle that fills `data`: plain values, `ForeignArray`s and records.

    Raises `CorruptionError`, `LimitError`, and `UnsupportedTypeError` for a value that contains itself.
    """
    tree, _, _ = load_from(BytesSource(memoryview(data)), 0, plain_vocabulary(), whole=True)
    return tree


def read_pickle(source: RangedSource) -> ForeignTree:
    """A file that is one pickle. Raises errors as `load_pickle`."""
    tree, notes, _ = load_from(source, 0, plain_vocabulary(), whole=True)
    return ForeignTree("pickle", tree, notes=notes)
