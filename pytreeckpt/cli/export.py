"""`pytreeckpt export`: a checkpoint or a part of it in a file of its own, smaller and with other names if asked."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from pytreeckpt.cli.codes import DAMAGED, FINE, USAGE, code_of
from pytreeckpt.cli.command import Command
from pytreeckpt.cli.encoding import document, encode_plain
from pytreeckpt.cli.layout import Line, Span, fields, paragraph
from pytreeckpt.cli.run_folder import newest_in
from pytreeckpt.cli.terminal import Terminal, shown_progress
from pytreeckpt.cli.text import amount, count, percent, size, visible
from pytreeckpt.errors import ConversionError, PytreeckptError, UnsupportedTypeError

if TYPE_CHECKING:
    from pytreeckpt.operations import ExportReport

SCHEMA: Final = "pytreeckpt-export/1"
FORMATS: Final = ("ptck", "safetensors", "torch", "npz", "msgpack")

_EXAMPLES: Final = """\
examples:
  pytreeckpt export run/step-00001000.ptck model.ptck --role model      weights alone, for inference
  pytreeckpt export step.ptck model.safetensors --role model --dtype bfloat16
  pytreeckpt export step.ptck lora.ptck --at model/state --select '*lora*'
  pytreeckpt export step.ptck model.safetensors --role model --rename encoder=bert --rename head.=
  pytreeckpt export run/step-00001000.ptck alone.ptck     a step of an incremental run, in one file
  pytreeckpt export step.ptck model.safetensors --role model --max-shard-size 5GB

The options are applied in this order: --at or --role, --select, --rename, --dtype. For another framework, and the names
and layouts of its layers, see `pytreeckpt convert`.
"""


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("source", metavar="FILE", help="a checkpoint, or a file or folder of another format")
    parser.add_argument("output", metavar="OUT", help="the file to write; its suffix says the format")
    parser.add_argument("--at", metavar="PATH", help="the part at this path is to be the whole, such as model/state")
    parser.add_argument("--role", metavar="ROLE", help="the part of a training with this role: model, optimizer …")
    parser.add_argument(
        "--select", metavar="GLOB", action="append", help="only these leaves, of what is left; may be repeated"
    )
    parser.add_argument(
        "--rename",
        metavar="OLD=NEW",
        action="append",
        default=[],
        help="names that begin with OLD begin with NEW; may be repeated; an empty OLD puts NEW before all",
    )
    parser.add_argument("--dtype", metavar="DTYPE", help="round floats to it, and say what that loses")
    parser.add_argument("--allow-overflow", action="store_true", help="even where values become infinite or NaN")
    parser.add_argument("--format", choices=FORMATS, help="where the suffix of OUT does not say it")
    parser.add_argument("--max-shard-size", metavar="SIZE", help="of safetensors: several files and an index, as 5GB")
    parser.add_argument("--if-exists", choices=["replace", "error"], default="replace", help="(default: replace)")
    parser.add_argument("--json", action="store_true", help="the report as one JSON document (docs/command-line.md)")


def _run(arguments: Namespace, terminal: Terminal) -> int:
    # Other commands need not wait for these.
    from pytreeckpt.cli.convert_job import nbytes_of
    from pytreeckpt.operations import export

    if step := newest_in(arguments.source):
        folder = visible(arguments.source)
        terminal.complain(f"error: {folder} is the folder of a run: give the file of a step, such as {visible(step)}")
        return USAGE
    try:
        shard = None if arguments.max_shard_size is None else nbytes_of(arguments.max_shard_size)
        with shown_progress(terminal, f"exporting {visible(arguments.source)}") as progress:
            report = export(
                arguments.source,
                arguments.output,
                at=arguments.at,
                role=arguments.role,
                select=arguments.select,
                rename=_rules(arguments.rename) or None,
                dtype=arguments.dtype,
                format=arguments.format,
                allow_overflow=arguments.allow_overflow,
                max_shard_nbytes=shard,
                if_exists=arguments.if_exists,
                progress=progress,
            )
    except PytreeckptError as error:
        # Of several lines, each is made safe to print.
        terminal.complain("error: " + "\n".join(map(visible, str(error).split("\n"))))
        if isinstance(error, UnsupportedTypeError) and str(error).startswith(f"{arguments.output}: "):
            # Nothing is wrong with the source.
            return USAGE
        return DAMAGED if isinstance(error, ConversionError) else code_of(error)
    except ValueError as error:
        terminal.complain(f"error: {visible(str(error))}")
        return USAGE
    if arguments.json:
        terminal.write(document(_sections(report)))
    else:
        terminal.print([*_lines(report, terminal.width)])
    return FINE


def _rules(texts: Sequence[str]) -> Mapping[str, str]:
    rules: dict[str, str] = {}
    for text in texts:
        old, found, new = text.partition("=")
        if not found:
            raise ValueError(f"--rename {text}: it is OLD=NEW, such as encoder=bert")
        if old in rules:
            raise ValueError(f"--rename {text}: {old!r} is renamed already")
        rules[old] = new
    return rules


def _lines(report: ExportReport, width: int | None) -> Iterator[Line]:
    yield [Span(visible(report.path), "heading")]
    about = [("format", report.format)]
    if report.parts:
        about.append(("parts", visible(", ".join(report.parts))))
    about += [
        (
            "file",
            _change(size(report.nbytes_before), size(report.nbytes_after), report.nbytes_before, report.nbytes_after),
        ),
        (
            "in memory",
            _change(
                size(report.raw_nbytes_before),
                size(report.raw_nbytes_after),
                report.raw_nbytes_before,
                report.raw_nbytes_after,
            ),
        ),
        (
            "elements",
            _change(
                f"{amount(report.n_elements_before)} in {count(report.n_arrays_before, 'array')}",
                f"{amount(report.n_elements_after)} in {count(report.n_arrays_after, 'array')}",
                report.n_elements_before,
                report.n_elements_after,
            ),
        ),
    ]
    if len(report.paths) > 1:
        about.append(("files", f"{len(report.paths):,}, of which this is the one to open"))
    if report.cast is not None:
        about.append(("rounded", _rounded(report)))
    yield from fields(about, width)
    notes = [*report.notes]
    if report.superseded:
        notes.append(f"not needed any more: {', '.join(report.superseded)}")
    for note in notes:
        yield from paragraph(f"  {visible(note)}", "note", width)


def _change(before: str, after: str, number_before: int, number_after: int) -> str:
    ratio = percent(number_after, number_before)
    return f"{before} → {after}" + (f", {ratio}" if ratio else "")


def _rounded(report: ExportReport) -> str:
    cast = report.cast
    if cast is None or not cast.n_arrays:
        return "nothing: all floats have this dtype"
    text = f"{count(cast.n_arrays, 'array')} to {cast.dtype}"
    if not cast.n_inexact:
        return f"{text}, exactly"
    text += (
        f", {cast.n_inexact:,} not exactly: by at most {cast.max_abs_error:.3g}, relatively {cast.max_rel_error:.3g}"
    )
    if cast.n_underflowed:
        text += f"; {count(cast.n_underflowed, 'value')} became 0"
    if cast.n_overflowed:
        text += f"; {count(cast.n_overflowed, 'value')} became infinite or NaN"
    return text


def _sections(report: ExportReport) -> Mapping[str, Any]:
    cast = None if report.cast is None else {name: encode_plain(each) for name, each in asdict(report.cast).items()}
    return {
        "schema": SCHEMA,
        "format": report.format,
        "source_format": report.source_format,
        "files": list(report.paths),
        "parts": list(report.parts),
        "before": _sizes(
            report.nbytes_before, report.raw_nbytes_before, report.n_arrays_before, report.n_elements_before
        ),
        "after": _sizes(report.nbytes_after, report.raw_nbytes_after, report.n_arrays_after, report.n_elements_after),
        "cast": cast,
        "notes": list(report.notes),
        "superseded": list(report.superseded),
    }


def _sizes(nbytes: int, raw_nbytes: int, arrays: int, elements: int) -> Mapping[str, int]:
    return {"nbytes": nbytes, "raw_nbytes": raw_nbytes, "arrays": arrays, "elements": elements}


COMMAND: Final = Command("export", "write a checkpoint or a part of it to a file", _EXAMPLES, _add_arguments, _run)
