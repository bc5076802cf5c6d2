"""One array in full: its place in the file, its chunks, and its first values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from pytreeckpt.checkpoint import Checkpoint
from pytreeckpt.cli.inspect_json import codec_counts
from pytreeckpt.cli.layout import Line, Span, fields
from pytreeckpt.cli.names import array_text, path_text, step_text
from pytreeckpt.cli.navigation import array_number, unwrap
from pytreeckpt.cli.outline import Outline
from pytreeckpt.cli.selected import Selected
from pytreeckpt.cli.statistics import Statistics
from pytreeckpt.cli.statistics_text import line_text
from pytreeckpt.cli.text import count, percent, size, visible
from pytreeckpt.cli.values import item_texts, value_text
from pytreeckpt.codecs import CODECS
from pytreeckpt.index import ArrayEntry
from pytreeckpt.paths import Path
from pytreeckpt.reading import chunk_reads

_PREVIEWED: Final = 8
_MAX_LISTED: Final = 24


def array_lines(
    checkpoint: Checkpoint,
    selected: Selected,
    statistics: Mapping[int, Statistics] | None,
    width: int | None,
    *,
    everything: bool,
) -> list[Line]:
    """What there is to say about the selected array."""
    outline = selected.outline
    array = array_number(outline, unwrap(outline, selected.position).position)
    pairs = _fields(outline, selected.position, array)
    pairs.append(("values", ", ".join(first_values(checkpoint, array)) or "none"))
    if statistics is not None:
        pairs.append(("statistics", line_text(statistics.get(array))))
    lines = [[Span(path_text(selected.path or Path()), "heading")], *fields(pairs, width)]
    if outline.index.arrays[array].chunk_counts:
        lines += [[], *_chunk_lines(outline, array, everything=everything)]
    return lines


def _fields(outline: Outline, position: int, array: int) -> list[tuple[str, str]]:
    wrapped = unwrap(outline, position)
    entry = outline.index.arrays[array]
    raw, stored = outline.raw_sizes[array], outline.stored_sizes[array]
    pairs = [("array", array_text(outline.descriptor(array), entry.shape))]
    pairs += [("type", visible(type_.name)) for type_ in wrapped.types]
    pairs += [
        (step_text(child.step).removeprefix("."), value_text(outline, child.position)) for child in wrapped.attributes
    ]
    pairs += [
        ("elements", f"{math.prod(entry.shape):,}"),
        ("in memory", f"{size(raw)}{_exact(raw)}{_order(entry)}"),
    ]
    if outline.index.own:
        place = _chunks_text(codec_counts(outline.index, array)) if entry.chunk_counts else "in the index"
        place += " with others" if entry.pooled else ""
        pairs.append(
            ("in the file", f"{size(stored)}{_exact(stored)}, {percent(stored, raw)} {place}" if raw else place)
        )
    others = [other.path for other in outline.shared_paths.get(array, ()) if other.position != wrapped.position]
    pairs += [("shared with", path_text(path)) for path in others[:_MAX_LISTED]]
    if entry.cuts is not None:
        pairs += [
            (f"box {number}", f"{list(box.shape)} at {list(box.offset)}")
            for number, box in enumerate(entry.boxes[:_MAX_LISTED])
        ]
    return pairs


def _exact(nbytes: int) -> str:
    return f" ({nbytes:,} bytes)" if nbytes >= 1024 else ""


def _chunks_text(codecs: Mapping[str, int]) -> str:
    number = sum(codecs.values())
    if len(codecs) == 1:
        return f"in {count(number, f'{next(iter(codecs))} chunk')}"
    return f"in {count(number, 'chunk')} ({', '.join(f'{times:,} {name}' for name, times in codecs.items())})"


def _order(entry: ArrayEntry) -> str:
    if entry.axes is None:
        return ""
    if list(entry.axes) == list(range(len(entry.shape)))[::-1]:
        return ", in Fortran order"
    return f", axes from slowest to fastest {list(entry.axes)}"


def first_values(checkpoint: Checkpoint, array: int) -> list[str]:
    """The texts of the first values of an array in C order, and `…` if there are more; reads only what holds them."""
    shape = checkpoint.index.arrays[array].shape
    if 0 in shape:
        return []
    # As many whole rows as are needed, of as many axes as are needed.
    selection: list[Any] = [0] * len(shape)
    wanted = _PREVIEWED
    for axis in reversed(range(len(shape))):
        taken = min(shape[axis], wanted)
        selection[axis] = slice(0, taken)
        wanted = -(-wanted // taken)
        if wanted <= 1:
            break
    values = np.asarray(checkpoint.read_region(array, tuple(selection))).reshape(-1)[:_PREVIEWED]
    texts = item_texts(values)
    return [*texts, "…"] if math.prod(shape) > len(texts) else texts


_HEADER: Final = ("chunk", "offset", "stored", "raw", "", "codec", "items", "digest")
_LEFT: Final = (5, 7, 8)


def _chunk_lines(outline: Outline, array: int, *, everything: bool) -> list[Line]:
    """The chunks of an array as a table: where each lies, how it is stored, and which items of its box it holds."""
    chunks, files = outline.index.chunks, outline.index.files
    reads = chunk_reads(outline.index, array)
    shown = reads if everything else reads[:_MAX_LISTED]
    body: list[Sequence[str]] = []
    for number, read in enumerate(shown):
        row = read.row
        stored, raw = int(chunks.stored[row]), int(chunks.raw[row])
        body.append(
            (
                f"{number:,}",
                f"{int(chunks.offset[row]):,}",
                size(stored),
                size(raw),
                percent(stored, raw),
                CODECS[int(chunks.codec[row])].name,
                f"{read.start:,} to {read.stop:,}",
                chunks.digest[16 * row : 16 * row + 16].hex()[:16] + "…",
                # Enough of the name to find it.
                *([files[number - 1].name[:16] + "…" if (number := int(chunks.file[row])) else ""] if files else []),
            )
        )
    header = (*_HEADER, "data file") if files else _HEADER
    cells = [header, *body]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines: list[Line] = []
    for row_cells in cells:
        padded = [
            cell.ljust(width) if column in _LEFT else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row_cells, widths, strict=True))
        ]
        lines.append([Span("  " + "  ".join(padded), "note" if row_cells is header else "number")])
    if len(shown) < len(reads):
        lines.append([Span(f"  … {count(len(reads) - len(shown), 'more chunk')}; --all shows every one", "note")])
    return lines
