"""What `pytreeckpt prune` says: what went, what stays and why, and what that frees."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from pytreeckpt.cli.encoding import Encoded, dumps, encode_plain
from pytreeckpt.cli.layout import Line, Span, fields, paragraph
from pytreeckpt.cli.ls_json import record_fields
from pytreeckpt.cli.text import count, size, visible
from pytreeckpt.run import PruneReport
from pytreeckpt.steps.names import step_file

SCHEMA: Final = "pytreeckpt-prune/1"

Reasons = Mapping[int, Sequence[str]]


def report(arguments: Namespace, outcome: PruneReport, reasons: Reasons, width: int | None) -> list[Line]:
    """The lines."""
    going = {step_file(record.step) for record in outcome.removed}
    others = [name for name in outcome.removed_files if name not in going]
    what = count(len(outcome.removed), "step") + (f" and {count(len(others), 'leftover')}" if others else "")
    about = [
        ("would remove" if arguments.dry_run else "removed", f"{what}, {size(outcome.freed_nbytes)}"),
        ("kept", count(len(outcome.kept), "step")),
    ]
    lines: list[Line] = [[Span(visible(arguments.root), "heading")], *fields(about, width)]
    if outcome.kept:
        lines += [[], [Span("kept", "heading")], *_kept(outcome, reasons, width)]
    if outcome.removed:
        # Each of them: of what is gone, this is all that is left to see.
        steps = ", ".join(str(record.step) for record in outcome.removed)
        lines += [[], [Span(about[0][0], "heading")], *_indented(steps, width)]
    if others:
        title = "would remove, as no step needs it" if arguments.dry_run else "removed, as no step needs it"
        lines += [[], [Span(title, "heading")], *(line for name in others for line in _indented(name, width))]
    if outcome.notes:
        lines += [
            [],
            [Span("to know", "heading")],
            *(line for text in outcome.notes for line in _indented(text, width)),
        ]
    return lines


def _kept(outcome: PruneReport, reasons: Reasons, width: int | None) -> Iterator[Line]:
    numbers = [str(record.step) for record in outcome.kept]
    longest = max(map(len, numbers))
    for record, number in zip(outcome.kept, numbers, strict=True):
        texts = reasons[record.step] or ["could not be removed"]
        room = None if width is None else max(20, width - longest - 4)
        first, *rest = paragraph(visible(", ".join(texts)), "note", room)
        yield [Span(f"  {number:>{longest}}  ", "plain"), *first]
        yield from ([Span(" " * (longest + 4), "plain"), *line] for line in rest)


def _indented(text: str, width: int | None) -> Iterator[Line]:
    for line in paragraph(visible(text), "plain", None if width is None else width - 2):
        yield [Span("  ", "plain"), *line]


def sections(arguments: Namespace, outcome: PruneReport, reasons: Reasons) -> Mapping[str, object]:
    """The document of `--json`."""
    return {
        "schema": SCHEMA,
        "path": arguments.root,
        "dry_run": arguments.dry_run,
        "freed_nbytes": outcome.freed_nbytes,
        "files": list(outcome.removed_files),
        "notes": list(outcome.notes),
        "removed": Encoded(
            [dumps({"step": encode_plain(record.step), **record_fields(record)}) for record in outcome.removed]
        ),
        "kept": Encoded(
            [
                dumps({"step": encode_plain(record.step), "reasons": reasons[record.step], **record_fields(record)})
                for record in outcome.kept
            ]
        ),
    }
