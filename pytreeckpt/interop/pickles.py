"""Plain pickles, such as those of arrays or tensors in dicts, read without anything that they name."""

from __future__ import annotations

import re
from typing import Any, Final

from pytreeckpt.interop.foreign import ForeignTree
from pytreeckpt.interop.pickle_loading import load_from
from pytreeckpt.interop.torch_legacy import plain_vocabulary
from pytreeckpt.reading import BytesSource, RangedSource

# Protocols 2 to 5 begin with their number. Those before, such as all of what Python 2 wrote if not told otherwise, only
# with their first value: a dict or list that goes into the memo, or the name of a class.
_BEGINNINGS: Final = re.compile(
    rb"\x80[\x02-\x05]|\([dl]p[0-9]+\n|[}\]](?:q|r...\x00)|\(?[ci][A-Za-z_][\w.]*\n[A-Za-z_][\w.]*\n", re.DOTALL
)


def begins_as_pickle(head: bytes) -> bool:
    """Whether a file with this beginning may be a pickle, which reading all of it tells."""
    return _BEGINNINGS.match(head) is not None


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
