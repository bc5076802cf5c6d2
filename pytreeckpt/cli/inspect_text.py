"""What `pytreeckpt inspect` prints: the file, the metadata, the tree as a table, and what was left out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pytreeckpt import nodes as n
from pytreeckpt.checkpoint import Checkpoint
from pytreeckpt.cli.branches import Branch
from pytreeckpt.cli.describe import Description, is_value
from pytreeckpt.cli.inspect_array import array_lines
from pytreeckpt.cli.inspect_json import used_of_data_files
from pytreeckpt.cli.inspect_training import summary_of, training_lines
from pytreeckpt.cli.layout import Column, Line, Span, fields, paragraph, table
from pytreeckpt.cli.names import dtype_text, path_text
from pytreeckpt.cli.navigation import kind_at, unwrap
from pytreeckpt.cli.outline import METADATA, Outline, Totals, arrays_below, totals
from pytreeckpt.cli.selected import Selected
from pytreeckpt.cli.statistics import Statistics
from pytreeckpt.cli.statistics_text import COLUMNS, alarm, cells, summary
from pytreeckpt.cli.text import amount, count, percent, shorten, size, visible
from pytreeckpt.cli.values import value_text
from pytreeckpt.cli.view import View, rows, unfold
from pytreeckpt.index import DATA_FOLDER
from pytreeckpt.wire import VERSION

_SIZES: Final = (Column("elements", 2), Column("size"), Column("stored", 3), Column("", 1))
_MAX_NOTES: Final = 8
# Wider than any value.
_WHOLE: Final = 1 << 40


@dataclass(frozen=True, slots=True)
class Options:
    """How much of the tree is shown, and in what order."""

    depth: int | None
    order: str
    everything: bool


def report(
    checkpoint: Checkpoint,
    selected: Selected,
    statistics: Mapping[int, Statistics] | None,
    options: Options,
    width: int | None,
) -> list[Line]:
    """All lines."""
    outline, position = selected.outline, selected.position
    if selected.path is None:
        head = [*_header(checkpoint, selected, width), []]
        if selected.pattern is None:
            training = summary_of(checkpoint, outline)
            head += training_lines(training, width) if training is not None else []
            head += _metadata(outline, width)
        return head + _tree(selected, "tree", statistics, options, width)
    value = unwrap(outline, position).position
    if kind_at(outline, value) == n.ARRAY:
        return array_lines(checkpoint, selected, statistics, width, everything=options.everything)
    if is_value(outline, value):
        return [[Span(value_text(outline, value, _WHOLE), "plain")]]
    return _tree(selected, path_text(selected.path), statistics, options, width)


def _tree(
    selected: Selected, label: str, statistics: Mapping[int, Statistics] | None, options: Options, width: int | None
) -> list[Line]:
    outline = selected.outline
    size_cells = _size_cells if outline.index.own else _foreign_size_cells
    view = unfold(
        outline,
        Branch(label, (selected.position,)),
        depth=options.depth,
        order=options.order,
        everything=options.everything,
        repeats=statistics is not None,
    )
    if statistics is None:
        return [*table(rows(outline, view, size_cells), _SIZES, width), *_footnotes(view, width)]
    found = statistics
    shown = rows(
        outline,
        view,
        lambda branch, description: cells(found, outline, branch, description),
        lambda branch: alarm(found, outline, branch),
    )
    return [*table(shown, COLUMNS, width), *summary(found), *_footnotes(view, width)]


def _header(checkpoint: Checkpoint, selected: Selected, width: int | None) -> list[Line]:
    """The file, and all of the tree that is shown."""
    outline = selected.outline
    summed = totals(outline, [outline.tree])
    pairs = [
        ("file", _file_text(checkpoint)),
        ("data", _data_files_text(checkpoint)),
        ("leaves" if selected.pattern is None else "matching", _leaves_text(summed)),
    ]
    if summed.n_arrays:
        pairs += [
            ("types", ", ".join(f"{times:,} {visible(name)}" for name, times in [*outline.array_types.items()][:4])),
            ("dtypes", ", ".join(f"{size(nbytes)} {name}" for name, nbytes in _dtype_sizes(outline)[:4])),
        ]
    if summed.n_arrays and checkpoint.footer is not None:
        index = size(checkpoint.footer.index_stored_nbytes)
        pairs.append(("stored", f"{_stored_text(summed)}; index {index}"))
    pairs += [("note", visible(note)) for note in checkpoint.notes[:_MAX_NOTES]]
    if len(checkpoint.notes) > _MAX_NOTES:
        pairs.append(("", f"… {count(len(checkpoint.notes) - _MAX_NOTES, 'more note')}; --json has all"))
    name = visible(checkpoint.path or "")
    heading = Span(name if width is None else shorten(name, width), "heading")
    return [[heading], *fields([pair for pair in pairs if pair[1]], width)]


def _file_text(checkpoint: Checkpoint) -> str:
    if checkpoint.root is None:
        return f"{size(checkpoint.nbytes)}, {visible(checkpoint.format)}"
    return f"{size(checkpoint.nbytes)}, format version {VERSION}, root {checkpoint.root[:16]}…"


def _data_files_text(checkpoint: Checkpoint) -> str:
    """Where the bytes of a manifest are, and how many of those there it uses."""
    index, footer = checkpoint.index, checkpoint.footer
    if not index.files or footer is None:
        return ""
    nbytes = checkpoint.nbytes - footer.file_nbytes
    among = f"{count(len(index.files), 'data file')} of {size(nbytes)} in {DATA_FOLDER}/"
    used_nbytes = sum(used_of_data_files(index))
    return f"{among}, which hold {size(used_nbytes)} of its chunks; the file itself has {size(footer.file_nbytes)}"


def _leaves_text(summed: Totals) -> str:
    others = count(summed.n_values, "other value" if summed.n_arrays else "value")
    if not summed.n_arrays:
        return others
    elements = f"{amount(summed.n_items)} {'element' if summed.n_items == 1 else 'elements'}"
    arrays = f"{count(summed.n_arrays, 'array')} of {elements}"
    return f"{arrays}, {others}" if summed.n_values else arrays


def _stored_text(summed: Totals) -> str:
    part = percent(summed.stored_nbytes, summed.raw_nbytes)
    return f"{size(summed.stored_nbytes)}, {part} of {size(summed.raw_nbytes)} in memory" if part else "0 B"


def _dtype_sizes(outline: Outline) -> list[tuple[str, int]]:
    """Bytes in memory by dtype, most first."""
    sizes: dict[str, int] = {}
    for array in sorted(set(arrays_below(outline, [outline.tree]).tolist())):
        name = dtype_text(outline.descriptor(array))
        sizes[name] = sizes.get(name, 0) + outline.raw_sizes[array]
    return sorted(sizes.items(), key=lambda item: -item[1])


def _metadata(outline: Outline, width: int | None) -> list[Line]:
    """The metadata as a tree of its own, if there are any."""
    if kind_at(outline, METADATA) == n.NONE:
        return []
    view = unfold(outline, Branch("metadata", (METADATA,)), depth=None, order="order", everything=False, repeats=False)
    return [*table(rows(outline, view, lambda _branch, _description: ()), (), width), []]


def _size_cells(_branch: Branch, description: Description) -> Sequence[str]:
    summed = description.totals
    if not summed.n_arrays:
        return ("",) * len(_SIZES)
    part = percent(summed.stored_nbytes, summed.raw_nbytes)
    return (amount(summed.n_items), size(summed.raw_nbytes), size(summed.stored_nbytes), part)


def _foreign_size_cells(_branch: Branch, description: Description) -> Sequence[str]:
    # How much of the file an array takes, a foreign file does not say.
    summed = description.totals
    return (amount(summed.n_items), size(summed.raw_nbytes), "", "") if summed.n_arrays else ("",) * len(_SIZES)


def _footnotes(view: View, width: int | None) -> list[Line]:
    """What the rows do not show, and how to see it."""
    notes = ["×n: n siblings alike in one row"] if view.grouped else []
    notes += ["like: the same names, dtypes and shapes"] if view.repeated else []
    if view.closed_at is not None:
        notes.append(f"closed below level {view.closed_at}: --depth N opens more, PATH a part")
    if notes or view.left_out:
        notes.append("--all shows every leaf")
    return [[], *paragraph("; ".join(notes), "note", width)] if notes else []
