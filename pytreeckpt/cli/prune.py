"""`pytreeckpt prune`: remove the steps of a run that no option keeps; without options none. It asks nothing."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from dataclasses import replace
from typing import Final

from pytreeckpt.cli.codes import DAMAGED, FINE, USAGE
from pytreeckpt.cli.command import Command
from pytreeckpt.cli.encoding import document
from pytreeckpt.cli.terminal import Terminal
from pytreeckpt.cli.text import visible

_EXAMPLES: Final = """\
examples:
  pytreeckpt prune run --keep-last 3 --dry-run         say what would go
  pytreeckpt prune run --keep-last 3 --keep-best 2 --metric val_loss
  pytreeckpt prune run --keep-every 10000 --keep 1500 2500
  pytreeckpt prune run --keep-last 1 --json | jq '.freed_nbytes'

What any of the options keeps is kept, and so are pinned steps and the newest one. A step that is being trained from is
not told apart: a run whose training is at work is locked, and not pruned.
"""


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("root", metavar="RUN", help="the folder of a run")
    keep = parser.add_argument_group("what to keep (at least one)")
    keep.add_argument("--keep-last", type=_count, metavar="N", help="the newest N steps")
    keep.add_argument("--keep-best", type=_count, metavar="K", help="the best K steps by --metric")
    keep.add_argument("--keep-every", type=_count, metavar="N", help="the first step of each N")
    keep.add_argument("--keep-every-hours", type=_hours, metavar="HOURS", help="the first step of each so many hours")
    keep.add_argument("--keep", type=_step, metavar="STEP", nargs="+", action="extend", help="these steps")
    parser.add_argument("--metric", metavar="NAME", help="the metric of --keep-best (default: the run's own)")
    parser.add_argument("--mode", choices=["min", "max"], help="whether its smallest or largest values are the best")
    parser.add_argument("--dry-run", action="store_true", help="remove nothing; say what would be removed")
    parser.add_argument("--json", action="store_true", help="one JSON document (docs/command-line.md)")


def _count(text: str) -> int:
    number = _step(text)
    if not number:
        raise ArgumentTypeError("0 is not at least 1")
    return number


def _step(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 19 and int(text) < 1 << 63):
        raise ArgumentTypeError(f"{text!r} is not a number of steps")
    return int(text)


def _hours(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise ArgumentTypeError(f"{text!r} is not a number of hours")
    return number


def _run(arguments: Namespace, terminal: Terminal) -> int:
    # Other commands need not wait for these.
    from pytreeckpt.cli.ls_listing import metric_and_mode, read
    from pytreeckpt.cli.prune_policies import Mistake, policies_of, reasons_to_keep
    from pytreeckpt.cli.prune_text import report, sections
    from pytreeckpt.run import prune
    from pytreeckpt.steps.retention import any_of

    run, lost = read(arguments.root)
    if lost:
        terminal.complain(
            f"error: {visible(lost[0])}; nothing is removed while that is so: restore the history from a backup, or "
            "move it away to go on without it"
        )
        return DAMAGED
    metric, mode = metric_and_mode(run, arguments.metric, arguments.mode)
    try:
        policies = policies_of(arguments, run, metric, mode)
    except Mistake as mistake:
        terminal.complain(f"error: {visible(str(mistake))}")
        return USAGE
    outcome = prune(arguments.root, any_of(*policies.values()), dry_run=arguments.dry_run)
    if run.damaged:
        steps = ", ".join(map(str, run.damaged))
        outcome = replace(outcome, notes=(*outcome.notes, f"damaged steps are left where they are: {steps}"))
    reasons = reasons_to_keep(run, policies, outcome)
    if arguments.json:
        terminal.write(document(sections(arguments, outcome, reasons)))
    else:
        terminal.print(report(arguments, outcome, reasons, terminal.width))
    return FINE


COMMAND: Final = Command("prune", "remove steps of a run", _EXAMPLES, _add_arguments, _run)
