"""A change in words: what stands at a path of the first checkpoint, and what in the second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from pytreeckpt.cli.layout import Column
from pytreeckpt.cli.names import array_text, dtype_text, path_text
from pytreeckpt.cli.statistics_text import number_text
from pytreeckpt.cli.text import count, cut, percent, visible
from pytreeckpt.cli.values import item_text, plain_text
from pytreeckpt.dtypes import describe
from pytreeckpt.operations.diff_records import Change, Side
from pytreeckpt.paths import Path

COLUMNS: Final = (
    Column("differ", 1),
    Column("max |Δ|"),
    Column("mean |Δ|", 2),
    Column("rms", 4),
    Column("max rel", 3),
    Column("cosine", 5),
)
_WIDTH: Final = 32


def change_text(change: Change) -> str:
    """A change in a few words."""
    a, b = change.a, change.b
    match change.kind:
        case "removed" if a is not None:
            return f"- {what(a)}"
        case "added" if b is not None:
            return f"+ {what(b)}"
        case "moved":
            return f"→ {path_text(change.moved_to or Path())}"
        case "layout":
            return "another memory order"
        case "order":
            return "keys in another order"
        case "tie":
            return " → ".join("apart" if path is None else f"same as {path_text(path)}" for path in change.tied)
    if a is None or b is None:
        return change.kind
    if change.kind == "type":
        return _arrow(*(_typed(side) for side in (a, b)))
    if change.kind == "dtype":
        return _arrow(*(dtype_text(describe(side.dtype)) for side in (a, b) if side.dtype is not None))
    if a.shape is None or a.type == "numpy scalar":
        texts = [value_text(side.value) for side in (a, b)]
        return _arrow(*texts) if texts[0] != texts[1] else f"{texts[0]}, but for its bits"
    return what(a) if change.kind == "value" else _arrow(what(a), what(b))


def _arrow(*texts: str) -> str:
    return " → ".join(texts)


def what(side: Side) -> str:
    """What stands somewhere: a dtype and shape, or a value."""
    if side.dtype is not None and side.shape is not None and side.type != "numpy scalar":
        return array_text(describe(side.dtype), side.shape)
    if side.n_leaves > 1:
        return f"{visible(side.type)} of {count(side.n_leaves, 'leaf')}"
    return value_text(side.value) if side.value is not None or side.type == "NoneType" else visible(side.type)


def _typed(side: Side) -> str:
    """A type, and the value if there is one."""
    shown = "" if side.value is None else f" {value_text(side.value)}"
    return visible(side.type) + shown


def value_text(value: object) -> str:
    """A value in Python's notation, cut to a few words."""
    if isinstance(value, np.generic):
        return cut(item_text(value), _WIDTH)
    if value is None or isinstance(value, bool | int | float | complex | str | bytes) or value is ...:
        return cut(visible(plain_text(value, _WIDTH)), _WIDTH)
    try:
        return cut(visible(repr(value)), _WIDTH)
    except (ValueError, OverflowError, UnicodeError, RecursionError):
        return visible(type(value).__name__)


def cells_of(changes: Sequence[Change]) -> tuple[str, ...]:
    """The columns: by how much the numbers differ, of several arrays together."""
    found = [change.values for change in changes if change.values is not None]
    if not found:
        return ()
    n_items, n_different = sum(each.n_items for each in found), sum(each.n_different for each in found)
    known = [each for each in found if each.max_abs is not None]
    if not known:
        return (percent(n_different, n_items), "", "", "", "", "")
    n_finite = sum(each.n_finite for each in known)
    mean = sum((each.mean_abs or 0.0) * each.n_finite for each in known) / n_finite
    squares = sum((each.rms or 0.0) ** 2 * each.n_finite for each in known) / n_finite
    cosine = known[0].cosine if len(known) == 1 else None
    return (
        percent(n_different, n_items),
        number_text(max(each.max_abs or 0 for each in known)),
        number_text(mean),
        number_text(squares**0.5),
        number_text(max(each.max_relative or 0.0 for each in known)),
        "" if cosine is None else f"{cosine:.6f}",
    )


def finite_text(change: Change) -> str:
    """How many NaN and infinities there are, if any."""
    values = change.values
    if values is None or not any((*values.n_nan, *values.n_infinite)):
        return ""
    pairs = (("NaN", values.n_nan), ("infinite", values.n_infinite))
    return ", ".join(f"{a:,} → {b:,} {name}" for name, (a, b) in pairs if a or b)
