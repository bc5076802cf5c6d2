"""Put checkpoint formats through the same torture: `python -m benchmarks.torture [--markdown | --json | --details]`.

Each peer runs in a process of its own, and saves and restores every case in the way that its documentation gives for
restoring without a template. Exits with 1 if pytreeckpt fails a case.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from benchmarks.torture_cases import CASES, Case
from benchmarks.torture_checks import LEGEND, Outcome, run_case
from benchmarks.torture_peers import PEERS, Peer

ROOT = Path(__file__).parents[1]
Table = dict[str, dict[str, Outcome | None]]
"""Outcomes by peer and case; None where something that the case needs is not installed."""


def runnable(case: Case) -> bool:
    return all(importlib.util.find_spec(module) for module in case.needs)


def work(peer: Peer, cases: Sequence[Case], out: TextIO) -> None:
    """Run cases in this process; a line of JSON for each."""
    for case in cases:
        for module in case.needs:
            importlib.import_module(module)
        with tempfile.TemporaryDirectory() as folder:
            outcome = run_case(case, peer, Path(folder))
        print(json.dumps([case.name, asdict(outcome)]), file=out, flush=True)


def measure(peer: Peer, cases: Sequence[Case], *, timeout_s: float) -> Iterator[tuple[str, Outcome]]:
    """Run cases in a process, and in another one after each case that ends it."""
    left = list(cases)
    while left:
        command = [sys.executable, "-m", "benchmarks.torture", "--worker", peer.name, *(case.name for case in left)]
        with tempfile.TemporaryFile("w+") as errors:
            environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
            worker = subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
            )
            try:
                output, _ = worker.communicate(timeout=timeout_s)
                ended = f"exit status {worker.returncode}"
            except subprocess.TimeoutExpired:
                worker.kill()
                output, _ = worker.communicate()
                ended = f"nothing came back in {timeout_s:.0f} s"
            for line in output.splitlines():
                name, fields = json.loads(line)
                yield name, Outcome(**fields)
                left.pop(0)
            if left:
                errors.seek(0)
                last = (errors.read().strip().splitlines() or [""])[-1]
                yield left.pop(0).name, Outcome("crashed", f"{ended}: {last}" if last else ended)


def tabulate(peers: Sequence[Peer], cases: Sequence[Case], *, timeout_s: float) -> Table:
    table: Table = {}
    for peer in peers:
        if peer.version is None:
            continue
        print(f"{peer.name} {peer.version} …", file=sys.stderr, flush=True)
        row: dict[str, Outcome | None] = dict.fromkeys([case.name for case in cases])
        row.update(measure(peer, [case for case in cases if runnable(case)], timeout_s=timeout_s))
        table[peer.name] = row
    return table


def as_text(table: Table, peers: Sequence[Peer], cases: Sequence[Case]) -> str:
    names = [peer.name for peer in peers]
    width = max(len(case.name) for case in cases) + 2
    columns = [max(len(name), 9 if name in table else len("not installed")) + 1 for name in names]
    lines = [" " * (width + 2) + "".join(name.ljust(column) for name, column in zip(names, columns, strict=True))]
    group = ""
    for case in cases:
        if case.group != group:
            group = case.group
            lines += ["", group]
        cells = [cell(table, name, case) for name in names]
        lines.append(f"  {case.name:{width}}" + "".join(t.ljust(c) for t, c in zip(cells, columns, strict=True)))
    totals = [score(table, name) for name in names]
    lines += ["", f"  {'passed':{width}}" + "".join(t.ljust(c) for t, c in zip(totals, columns, strict=True))]
    return "\n".join([*(line.rstrip() for line in lines), "", LEGEND])


def as_markdown(table: Table, peers: Sequence[Peer], cases: Sequence[Case]) -> str:
    names = [peer.name for peer in peers]
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    group = ""
    for case in cases:
        if case.group != group:
            group = case.group
            lines.append(f"| **{group}** |" + " |" * len(names))
        cells = [cell(table, name, case, plain=False) for name in names]
        lines.append(f"| {_code(case.name)} | " + " | ".join(cells) + " |")
    lines.append("| **passed** | " + " | ".join(score(table, name) for name in names) + " |")
    versions = ", ".join(f"{peer.name} {peer.version}" for peer in peers if peer.version)
    return "\n".join([*lines, "", f"Measured with {versions}."])


def _code(name: str) -> str:
    return f"`{name}`" if "{" in name else name


def cell(table: Table, peer: str, case: Case, *, plain: bool = True) -> str:
    if peer not in table:
        return "not installed"
    outcome = table[peer][case.name]
    if outcome is None:
        return "–"
    if plain:
        return outcome.verdict
    mark = "✓" if outcome.good else "✗" if outcome.verdict.isupper() or outcome.verdict in {"lost", "crashed"} else ""
    return f"{mark} {outcome.verdict}".strip()


def score(table: Table, peer: str) -> str:
    outcomes = [outcome for outcome in table.get(peer, {}).values() if outcome is not None]
    return f"{sum(outcome.good for outcome in outcomes)}/{len(outcomes)}"


def details(table: Table, cases: Sequence[Case]) -> str:
    lines = []
    for case in cases:
        lines.append(f"{case.group}: {case.name}")
        for peer, row in table.items():
            outcome = row[case.name]
            if outcome is not None:
                lines.append(
                    f"    {peer:13} {outcome.verdict:9} {outcome.elapsed_s:6.2f} s  {outcome.detail[:200]}".rstrip()
                )
    return "\n".join(lines)


def as_json(table: Table, peers: Sequence[Peer], cases: Sequence[Case]) -> str:
    outcomes: Mapping[str, object] = {
        peer: {name: outcome and asdict(outcome) for name, outcome in row.items()} for peer, row in table.items()
    }
    versions = {peer.name: peer.version for peer in peers}
    return json.dumps(
        {"versions": versions, "cases": {case.name: case.group for case in cases}, "outcomes": outcomes},
        indent=2,
        ensure_ascii=False,
    )


def failures(table: Table) -> list[str]:
    """The cases that pytreeckpt fails; a run without it has none to show, which is a failure too."""
    if "pytreeckpt" not in table:
        return ["pytreeckpt was not run"]
    return [
        f"{name}: {outcome.verdict} {outcome.detail}"
        for name, outcome in table["pytreeckpt"].items()
        if outcome is not None and not outcome.good
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--markdown", action="store_true", help="a table for the README")
    output.add_argument("--json", action="store_true", help="all outcomes with their details")
    output.add_argument("--details", action="store_true", help="the table, and below it what happened in each cell")
    parser.add_argument("--peers", nargs="+", default=[peer.name for peer in PEERS], metavar="NAME")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose group or name holds this text")
    parser.add_argument("--timeout", type=float, default=600, metavar="S", help="for all cases of a peer (%(default)s)")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        # Peers print; the answers go where nothing else can.
        answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        peer_name, *names = options.worker
        work(next(peer for peer in PEERS if peer.name == peer_name), [c for c in CASES if c.name in names], answers)
        return 0
    peers = [peer for peer in PEERS if peer.name in options.peers]
    cases = [case for case in CASES if options.only in f"{case.group} {case.name}"]
    if not peers or not cases:
        parser.error("nothing is left to run")
    table = tabulate(peers, cases, timeout_s=options.timeout)
    if options.json:
        print(as_json(table, peers, cases))
    elif options.markdown:
        print(as_markdown(table, peers, cases))
    else:
        print(as_text(table, peers, cases))
    if options.details:
        print("\n" + details(table, cases))
    failed = failures(table)
    for failure in failed:
        print(f"pytreeckpt fails {failure}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
