"""`pytreeckpt convert`: any file into a file of another format, or of another framework, with nothing guessed."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import Final

from pytreeckpt.cli.codes import DAMAGED, FINE, code_of
from pytreeckpt.cli.command import Command
from pytreeckpt.cli.encoding import document
from pytreeckpt.cli.terminal import Terminal
from pytreeckpt.cli.text import visible
from pytreeckpt.errors import ConversionError, PytreeckptError

SCHEMES: Final = ("linen", "flax", "nnx", "equinox")
FORMATS: Final = ("ptck", "safetensors", "torch", "npz", "msgpack")

_EXAMPLES: Final = """\
examples:
  pytreeckpt convert model.pt model.safetensors        another format, by the suffix
  pytreeckpt convert run.ptck weights.safetensors --select model/state
  pytreeckpt convert model.safetensors big.safetensors --max-shard-size 5GB
  pytreeckpt convert model.pt half.pt --dtype bfloat16
  pytreeckpt convert run.ptck params.msgpack --to linen            of another framework
  pytreeckpt convert model.pt jax.ptck --target template.ptck --kind '**.query=Linear'
  pytreeckpt convert jax.ptck model.pt --target template.pt        and from there to torch
  pytreeckpt convert model.pt jax.ptck --target template.ptck --dry-run
  pytreeckpt convert run.ptck jax.ptck --target template.ptck --residuals way-back.ptck
  pytreeckpt convert jax.ptck again.ptck --invert --residuals way-back.ptck

Nothing is guessed: what names, layers and rules do not decide is listed, and nothing is written (docs/conversion.md).
"""


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="a checkpoint, or a file or folder of another format")
    parser.add_argument("destination", metavar="DST", help="the file to write; its suffix says the format")
    parser.add_argument(
        "--to",
        choices=[*SCHEMES, *FORMATS],
        metavar="WHAT",
        help="linen (or flax), nnx or equinox: the tree that the framework makes of a model of torch; "
        "ptck, safetensors, torch, npz or msgpack: the format, where the suffix does not say it",
    )
    parser.add_argument(
        "--target",
        metavar="FILE[:PATH]",
        help="a checkpoint of the other framework: the result has its structure, shapes and dtypes",
    )
    parser.add_argument("--select", metavar="PATH", help="convert only what is at this path, such as model/state")
    parser.add_argument(
        "--rules",
        metavar="FILE.toml",
        action="append",
        default=[],
        help="rules; may be repeated; transformers-flax:gpt2 and such are shipped",
    )
    parser.add_argument(
        "--kind", metavar="PATTERN=KIND", action="append", default=[], help="what layers are: '**.query=Linear'"
    )
    parser.add_argument(
        "--waive-unused", metavar="PATTERN", action="append", default=[], help="leaves of SRC that may be left over"
    )
    parser.add_argument(
        "--waive-missing",
        metavar="PATTERN",
        action="append",
        default=[],
        help="leaves of the target that may keep their values",
    )
    parser.add_argument("--dtype", metavar="DTYPE", help="round parameters and buffers that are floats to it")
    parser.add_argument("--cast", action="store_true", help="round to the dtypes of --target, where they are narrower")
    parser.add_argument("--dry-run", action="store_true", help="write nothing; say what would be, or is undecided")
    parser.add_argument("--json", action="store_true", help="the report as one JSON document (docs/command-line.md)")
    parser.add_argument("--plan", metavar="FILE", help="write the plan, as JSON")
    parser.add_argument("--residuals", metavar="FILE.ptck", help="write what --invert needs; with --invert, read it")
    parser.add_argument("--invert", action="store_true", help="the way back: SRC is what the way here has written")
    parser.add_argument("--if-exists", choices=["replace", "error"], default="replace", help="(default: replace)")
    parser.add_argument("--max-shard-size", metavar="SIZE", help="of safetensors: several files and an index, as 5GB")


def _run(arguments: Namespace, terminal: Terminal) -> int:
    # Other commands need not wait for these.
    from pytreeckpt.cli.convert_job import job_of
    from pytreeckpt.cli.convert_json import sections
    from pytreeckpt.cli.convert_steps import do
    from pytreeckpt.cli.convert_text import report

    try:
        job = job_of(arguments)
        result = do(job, terminal)
    except PytreeckptError as error:
        # Of several lines, each is made safe to print.
        terminal.complain("error: " + "\n".join(map(visible, str(error).split("\n"))))
        return DAMAGED if isinstance(error, ConversionError) else code_of(error)
    if job.json:
        terminal.write(document(sections(result)))
    else:
        terminal.print(report(result, terminal.width))
    return DAMAGED if result.problems else FINE


COMMAND: Final = Command("convert", "convert between formats and frameworks", _EXAMPLES, _add_arguments, _run)
