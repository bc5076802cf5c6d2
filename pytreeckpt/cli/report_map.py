"""The treemap as SVG: names where there is room, everything else as tooltips, and two ways to colour it without a
script.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pytreeckpt import nodes as n
from pytreeckpt.cli.names import array_text, dtype_text
from pytreeckpt.cli.navigation import array_number, kind_at, unwrap
from pytreeckpt.cli.outline import Outline, arrays_below, totals
from pytreeckpt.cli.report_cells import HEADER, Cell, cells_of
from pytreeckpt.cli.report_html import Html, element, joined, text
from pytreeckpt.cli.report_treemap import Rectangle
from pytreeckpt.cli.text import count, cut, percent, shorten, size

N_COLOURS: Final = 7
"""Colours for dtypes, the last one for all others."""
N_SHADES: Final = 10
_WHOLE: Final = Rectangle(0.0, 0.0, 1200.0, 620.0)
# Of the fonts below, per character.
_WIDTH: Final = 6.7
_LINE: Final = 14.0
_SHORT: Final = 9


def colours_of(outline: Outline) -> Mapping[str, int]:
    """A number for each dtype, those that take most bytes first."""
    sizes: dict[str, int] = {}
    for array in sorted(set(outline.array_numbers.tolist())):
        name = dtype_text(outline.descriptor(array))
        sizes[name] = sizes.get(name, 0) + outline.raw_sizes[array]
    names = sorted(sizes, key=lambda name: -sizes[name])
    return {name: min(number, N_COLOURS - 1) for number, name in enumerate(names)}


def treemap(outline: Outline, position: int) -> Html:
    """The treemap of what is below a position, with its legend; empty if that has no size."""
    cells = cells_of(outline, position, _WHOLE)
    if not cells:
        return Html("")
    colours = colours_of(outline)
    drawing = element(
        "svg",
        *(_cell(outline, cell, colours) for cell in cells),
        viewBox=f"0 0 {_WHOLE.width:.0f} {_WHOLE.height:.0f}",
        role="img",
        aria_label="treemap of the sizes of the arrays",
    )
    if not outline.index.own:
        return element("div", _dtype_legend(colours), drawing, class_="map")
    return element(
        "div",
        element("input", type="radio", name="colour", id="by-dtype", checked=True),
        element("label", text("by dtype"), for_="by-dtype"),
        element("input", type="radio", name="colour", id="by-stored"),
        element("label", text("by share stored"), for_="by-stored"),
        _dtype_legend(colours),
        _stored_legend(),
        drawing,
        class_="map",
    )


def _dtype_legend(colours: Mapping[str, int]) -> Html:
    named = [(name, number) for name, number in colours.items() if number < N_COLOURS - 1]
    entries = [_swatch(f"d{number}", name) for name, number in named]
    if len(named) < len(colours):
        entries.append(_swatch(f"d{N_COLOURS - 1}", "other dtypes"))
    return element("span", *entries, class_="legend dtypes")


def _stored_legend() -> Html:
    shades = (element("b", class_=f"s{shade}") for shade in range(N_SHADES))
    return element("span", text("0 % of its size "), *shades, text(" 100 %"), class_="legend shades")


def _swatch(class_: str, name: str) -> Html:
    return element("span", element("b", class_=class_), text(shorten(name, 40)))


def _cell(outline: Outline, cell: Cell, colours: Mapping[str, int]) -> Html:
    box = cell.rectangle
    arrays = sorted(set(arrays_below(outline, cell.positions).tolist()))
    names = {dtype_text(outline.descriptor(array)) for array in arrays}
    raw = sum(outline.raw_sizes[array] for array in arrays)
    stored = sum(outline.stored_sizes[array] for array in arrays)
    shown = element("title", joined(map(text, _tooltip(outline, cell, names, raw, stored)), "\n"))
    frame = {"x": round(box.x, 2), "y": round(box.y, 2), "width": round(box.width, 2), "height": round(box.height, 2)}
    if cell.is_divided:
        label = _words(box, [cell.label], first=12.0) if cell.has_header else Html("")
        if cell.depth == 0 and not cell.label:
            return Html("")
        return element("g", shown, element("rect", **frame), label, class_=f"box level{min(cell.depth, 3)}")
    colour = colours[next(iter(names))] if len(names) == 1 else N_COLOURS - 1
    shade = min(N_SHADES - 1, N_SHADES * stored // raw) if raw else 0
    lines = [cell.label]
    single = unwrap(outline, cell.parts[0].position).position
    if len(cell.parts) == 1 and kind_at(outline, single) == n.ARRAY:
        array = array_number(outline, single)
        lines.append(array_text(outline.descriptor(array), outline.index.arrays[array].shape))
    lines.append(size(raw))
    kind = f"cell d{colour} s{shade}"
    return element("g", shown, element("rect", **frame, rx=1.5), _words(box, lines, first=_LINE), class_=kind)


def _words(box: Rectangle, lines: Sequence[str], *, first: float) -> Html:
    """As many of the lines as there is room for, cut to its width."""
    room = int((box.width - 8) / _WIDTH)
    n_lines = int((box.height - 4) / _LINE)
    # A name of one or two characters says nothing.
    if room < 3 or (n_lines < 1 and box.height < HEADER):
        return Html("")
    shown = [lines[0], *(line for line in lines[1:] if len(line) <= room)][: max(n_lines, 1)]
    return joined(
        element(
            "text",
            text(cut(line, room) if room < _SHORT else shorten(line, room)),
            x=round(box.x + 4, 2),
            y=round(box.y + first + _LINE * place, 2),
        )
        for place, line in enumerate(shown)
    )


def _tooltip(outline: Outline, cell: Cell, dtypes: set[str], raw: int, stored: int) -> list[str]:
    """The lines."""
    summed = totals(outline, cell.positions)
    named = shorten(cell.path or "the root", 200)
    lines = [f"{named}: {cell.label}" if len(cell.positions) > 1 else named]
    inner = unwrap(outline, cell.parts[0].position).position
    if len(cell.parts) == 1 and kind_at(outline, inner) == n.ARRAY:
        array = array_number(outline, inner)
        lines.append(array_text(outline.descriptor(array), outline.index.arrays[array].shape))
    else:
        lines.append(f"{count(summed.n_arrays, 'array')}, {', '.join(sorted(dtypes)[:4])}")
    lines.append(f"{summed.n_items:,} elements, {size(raw)} in memory")
    if outline.index.own:
        lines.append(f"{size(stored)} stored, {percent(stored, raw)}")
    return lines
