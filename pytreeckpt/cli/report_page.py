"""The page of `pytreeckpt report`: one HTML document that needs nothing else, and no script.

A content security policy of its own lets it load nothing, whatever a file might hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pytreeckpt import nodes as n
from pytreeckpt.checkpoint import Checkpoint
from pytreeckpt.cli.inspect_training import summary_of
from pytreeckpt.cli.names import array_text, dtype_text, path_text
from pytreeckpt.cli.navigation import kind_at
from pytreeckpt.cli.outline import METADATA, Outline, arrays_below, totals
from pytreeckpt.cli.report_histograms import histogram
from pytreeckpt.cli.report_html import Html, element, joined, text
from pytreeckpt.cli.report_map import N_COLOURS, N_SHADES, colours_of, treemap
from pytreeckpt.cli.report_style import style_sheet
from pytreeckpt.cli.report_tree import tree_of
from pytreeckpt.cli.report_values import Read, is_float
from pytreeckpt.cli.statistics_text import number_text
from pytreeckpt.cli.text import amount, count, percent, size
from pytreeckpt.errors import PytreeckptError
from pytreeckpt.nodes import walk
from pytreeckpt.paths import Path
from pytreeckpt.steps.metadata import record_in
from pytreeckpt.wire import VERSION

_N_HISTOGRAMS: Final = 24
_N_OPEN: Final = 8
_MAX_NOTES: Final = 40
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def floats_of(outline: Outline) -> list[int]:
    """The numbers of the arrays of floats of the tree, in order."""
    arrays = sorted(set(arrays_below(outline, [outline.tree]).tolist()))
    are_floats = [is_float(dtype) for dtype in outline.index.dtypes]
    return [array for array in arrays if are_floats[outline.index.arrays[array].dtype]]


def shown_arrays(outline: Outline, floats: Sequence[int]) -> list[int]:
    """Those with a histogram of their own: the largest, in descending order."""
    largest = sorted(floats, key=lambda array: (-outline.raw_sizes[array], array))
    return [array for array in largest[:_N_HISTOGRAMS] if outline.raw_sizes[array]]


@dataclass(frozen=True, slots=True)
class Source:
    """What the page is made of."""

    name: str
    checkpoint: Checkpoint
    outline: Outline
    read: Read


def page(source: Source) -> Iterator[str]:
    """The document, in pieces."""
    yield "<!DOCTYPE html>\n"
    head = [
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", text(source.name)),
        element("style", style_sheet(N_COLOURS, N_SHADES)),
    ]
    yield f'<html lang="en">\n{element("head", *head)}\n<body>\n'
    for section in _sections(source):
        if section:
            yield section + "\n"
    yield "</body>\n</html>\n"


def _sections(source: Source) -> Iterator[Html]:
    yield _header(source)
    yield _facts(source)
    yield _training(source)
    yield _step(source)
    yield _map(source)
    yield _histograms(source)
    yield _metadata(source)
    yield _tree(source)
    yield _notes(source)


def _header(source: Source) -> Html:
    checkpoint = source.checkpoint
    what = checkpoint.format if checkpoint.root is None else f"pytreeckpt, format version {VERSION}, root "
    root = Html("") if checkpoint.root is None else element("code", text(checkpoint.root))
    return joined([element("h1", text(source.name)), element("p", text(what), root, class_="lead")])


def _facts(source: Source) -> Html:
    outline, checkpoint = source.outline, source.checkpoint
    summed = totals(outline, [outline.tree])
    facts = [
        ("file", size(checkpoint.nbytes)),
        ("arrays", f"{summed.n_arrays:,}"),
        ("elements", amount(summed.n_items)),
    ]
    if summed.n_arrays:
        facts.append(("in memory", size(summed.raw_nbytes)))
    if outline.index.own and summed.raw_nbytes:
        share = percent(summed.stored_nbytes, summed.raw_nbytes)
        facts.append((f"stored, {share} of memory", size(summed.stored_nbytes)))
    if summed.n_values or not summed.n_arrays:
        facts.append(("other values" if summed.n_arrays else "values", f"{summed.n_values:,}"))
    cards = [
        element("div", element("b", text(value)), element("span", text(name)), class_="card") for name, value in facts
    ]
    rows = [("dtypes", ", ".join(f"{name} {size(nbytes)}" for name, nbytes in _dtype_sizes(outline)[:8]))]
    rows.append(("types", ", ".join(f"{times:,} {name}" for name, times in [*outline.array_types.items()][:8])))
    if checkpoint.footer is not None:
        n_chunks = (
            f"{count(len(checkpoint.index.chunks), 'chunk')}, index {size(checkpoint.footer.index_stored_nbytes)}"
        )
        rows.append(("layout", n_chunks))
    if checkpoint.index.files:
        rows.append(
            ("data files", ", ".join(f"{each.name} ({size(each.nbytes)})" for each in checkpoint.index.files[:8]))
        )
    return joined([element("div", *cards, class_="cards"), element("h2", text("File")), _table(rows)])


def _dtype_sizes(outline: Outline) -> list[tuple[str, int]]:
    sizes: dict[str, int] = {}
    for array in sorted(set(outline.array_numbers.tolist())):
        name = dtype_text(outline.descriptor(array))
        sizes[name] = sizes.get(name, 0) + outline.raw_sizes[array]
    return sorted(sizes.items(), key=lambda item: (-item[1], item[0]))


def _table(rows: Iterable[tuple[str, str]]) -> Html:
    cells = [
        element("tr", element("td", text(name), class_="key"), element("td", text(value), class_="value"))
        for name, value in rows
        if value
    ]
    return element("div", element("table", *cells), class_="panel") if cells else Html("")


def _section(title: str, note: str, *content: Html) -> Html:
    small = element("small", text(note)) if note else Html("")
    return joined([element("h2", text(title), small), *content])


def _training(source: Source) -> Html:
    summary = summary_of(source.checkpoint, source.outline)
    if summary is None:
        return Html("")
    return _section("Training", summary.framework, _table((name, said) for name, _, said in summary.facts))


def _step(source: Source) -> Html:
    """Of a step of a run: its number, its metrics, why it was saved."""
    checkpoint = source.checkpoint
    try:
        record = record_in(checkpoint.metadata, root=checkpoint.root or "", nbytes=checkpoint.nbytes)
    except PytreeckptError:
        # The metadata below show what there is.
        return Html("")
    if record is None:
        return Html("")
    rows = [(name, number_text(value)) for name, value in record.metrics.items()]
    rows += [("epoch", number_text(record.epoch))] if record.epoch is not None else []
    rows += [("saved because of", record.reason)] if record.is_emergency else []
    return _section(f"Step {record.step:,}", "" if rows else "without metrics", _table(rows))


def _map(source: Source) -> Html:
    drawn = treemap(source.outline, source.outline.tree)
    if not drawn:
        return Html("")
    return _section(
        "Sizes", "areas are bytes in memory; shared arrays count once", element("div", drawn, class_="panel")
    )


def _histograms(source: Source) -> Html:
    read, outline = source.read, source.outline
    if not read.of_arrays:
        return Html("")
    colours = colours_of(outline)
    where = _first_paths(outline, list(read.of_arrays))
    every = read.of_all
    n_floats = len(floats_of(outline))
    panels = [histogram("all floats", f"{amount(every.n_items)} in {count(n_floats, 'array')}", every, N_COLOURS - 1)]
    for array, values in read.of_arrays.items():
        descriptor = outline.descriptor(array)
        shown = array_text(descriptor, outline.index.arrays[array].shape)
        panels.append(histogram(where[array], shown, values, colours[dtype_text(descriptor)]))
    whole = every.n_read == every.n_items
    how = "all values were read" if whole else f"a sample of {amount(every.n_read)} values was read"
    rest = f"; the {len(read.of_arrays)} largest arrays" if n_floats > len(read.of_arrays) else ""
    shown = element("div", *panels[:_N_OPEN], class_="histograms")
    if len(panels) > _N_OPEN:
        label = element("summary", text(f"{len(panels) - _N_OPEN} more"))
        more = element("details", label, element("div", *panels[_N_OPEN:], class_="histograms"), class_="more")
        shown = joined([shown, more])
    return _section("Values", how + rest, shown)


def _first_paths(outline: Outline, arrays: Sequence[int]) -> dict[int, str]:
    wanted = set(arrays)
    found: dict[int, str] = {}
    for visit in walk(outline.nodes):
        if visit.kind == n.ARRAY and (array := outline.nodes.arrays[visit.entry]) in wanted and array not in found:
            found[array] = path_text(Path(visit.path))
            if len(found) == len(wanted):
                break
    return {array: found.get(array, f"array {array}") for array in arrays}


def _metadata(source: Source) -> Html:
    if kind_at(source.outline, METADATA) == n.NONE:
        return Html("")
    tree = tree_of(source.outline, METADATA, "metadata")
    return _section("Metadata", _left_out(tree.n_left_out), element("div", tree.html, class_="panel tree plain"))


def _tree(source: Source) -> Html:
    outline = source.outline
    tree = tree_of(outline, outline.tree, "tree")
    titles = ("elements", "size", "stored") if outline.index.own else ("elements", "size")
    head = element(
        "div",
        element("span", class_="label"),
        *(element("span", text(title), class_="number") for title in titles),
        element("span", text("share"), class_="bar"),
        class_="head",
    )
    return _section("Tree", _left_out(tree.n_left_out), element("div", head, tree.html, class_="panel tree"))


def _left_out(number: int) -> str:
    return f"{count(number, 'part')} not shown: pytreeckpt inspect FILE PATH shows any part" if number else ""


def _notes(source: Source) -> Html:
    notes = source.checkpoint.notes
    if not notes:
        return Html("")
    shown = [element("li", text(note)) for note in notes[:_MAX_NOTES]]
    if len(notes) > _MAX_NOTES:
        shown.append(element("li", text(f"… {count(len(notes) - _MAX_NOTES, 'more note')}")))
    return _section("How it was read", "", element("ul", *shown))
