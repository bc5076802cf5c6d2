"""The page, the tables and the plots of a run: `python -m benchmarks.report [results.json] [--out docs/benchmarks]`.

All of it is a function of the JSON: nothing is measured, and the same file gives the same bytes.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.figures import OURS, Figure, Results, distinct, read, summary
from benchmarks.plots import Chart, charts, draw
from benchmarks.targets import TARGETS, Verdict, judge

ROOT = Path(__file__).parents[1]
LATEST = ROOT / "benchmarks/results/latest.json"
OUT = ROOT / "docs/benchmarks"
MIB = 1 << 20

STATE_OPERATIONS = ("save", "save, durable", "restore", "restore in place")
# The cases whose tables say what candidates do less; slices and codecs do not depend on it.
NOTED = ("state", "leaves")
BESIDE_OPERATIONS = ("call", "step, alone", "step, while saving", "until saved", "training lost")
CODEC_OPERATIONS = ("compress", "decompress", "compress, 1 thread", "decompress, 1 thread")

METHOD = """\
- Every round has each candidate once, in one process, beginning with the next one each time; the first round is not
  counted. Figures are medians, with the quartiles in parentheses. Ratios are of the medians of this run: `2.00×` beside
  a peer says that it took twice as long as pytreeckpt.
- What takes longer than two minutes in all has fewer rounds; the [table of all figures](TABLES) has their
  numbers. A candidate of which a 50th of the small leaves takes longer than four seconds is left out there.
- "save" may leave the bytes to the page cache (pytreeckpt: `durability="atomic"`; torch DCP: `sync_files=False`).
  "save, durable" has them on the disk when it ends: pytreeckpt sees to that itself; for the others each file and
  directory is then synced with fsync, which is part of their time.
- Before each save the old checkpoint is deleted and everything else is synced, outside of the timed part, and garbage
  is collected before each operation.
- Restoring reads from a warm page cache, and ends when one byte of each 64-byte line of the result has been read, so
  that what is only mapped has to arrive. Of arrays smaller than 4 KiB one in each 4 KiB is looked at. This is the same
  for all.
- "restore in place" fills arrays that exist: `restore(path, like=state)`, `torch.load` and `copy_`, `dcp.load`,
  `safe_open` and `copy_` or `copyto`.
- Every candidate gets the arrays that its users have: numpy, torch or JAX, on the CPU. Where it holds no trees,
  flattening into dotted names is not counted.
- Against safetensors, the faster of its numpy and torch modules counts. A target is judged on the worst of what its row
  is about.
- The Gaussian weights (standard deviation 0.02) have the shapes of a GPT-2; "mixed" is mixed precision training:
  bfloat16 parameters with float32 copies and both moments of Adam; "MiniLM" are published weights, unchanged and cast.
- In memory, `encode` and `decode` make and read a whole file, with its index and digests; ZipNN compresses all arrays
  as one piece of bytes, is told their dtype, and otherwise has its defaults, which are its best for weights. It
  changes what it is given, and gets a new copy each time, untimed. With one array for Gaussian weights.
- Slices are read in new processes that have done the same with a small file. Bytes read are those of read calls and of
  file pages mapped (`/proc/self/io`, `/proc/self/status`).
- Extra memory is the peak resident size of a process over what it had before, with the state; for a restore, beyond the
  result. Each figure comes from a process of its own, which has done the same with a small state. Saves are durable.
  Pages of a file that a format maps count while they are mapped, though the kernel could take them back.
- "call" is what a training stands still for when it saves in the background: `save_async`, for torch DCP
  `async_save`, for Orbax `save` of an `AsyncCheckpointer`. "plain copy" copies every array to one that was written to
  before, with numpy, one after the other. JAX arrays are on the CPU.
- Meanwhile, a training of a small network with Adam goes on in torch on all cores. A "step" is the mean of those that
  began while a save was in the making, or in the two seconds before it; "training lost" is the time from the call to
  the end of the save, less what as many steps take alone. No one syncs to the disk.
- "size" is that of all files of a checkpoint as a fraction of the arrays in memory."""


def page(results: Results, folder: str) -> str:
    """The page, which embeds the plots in `folder` beside it."""
    drawn = {chart.name for chart in charts(results)}

    def plots(*names: str) -> Iterator[str]:
        for name in names:
            if name in drawn:
                yield f"![{name}]({folder}/{name}.svg)\n"

    sections = [
        "# Benchmarks\n",
        "Written by `make bench` from its measurements; nothing in here is written by hand.\n",
    ]
    sections += [setting_text(results), "## Targets\n", targets_table(results)]
    for title, case, operations, names in (
        ("Saving and restoring", "state", STATE_OPERATIONS, ("save-durable", "save", "restore", "restore-in-place")),
        ("Very many small leaves", "leaves", STATE_OPERATIONS[:3], ("small-leaves-save", "small-leaves-restore")),
        ("One MiB of a large file", "slice", ("slice", "slice, bytes read"), ()),
        ("Saving in the background: the call", "stall", ("call",), ()),
        ("Saving in the background: the training meanwhile", "beside", BESIDE_OPERATIONS, ()),
        ("Compressing in memory", "codec", CODEC_OPERATIONS, ("codec-compress", "codec-decompress", "codec-size")),
    ):
        tables = [case_table(results, case, data, operations, notes=case in NOTED) for data in _data(results, case)]
        if tables:
            sections += [f"## {title}\n", *plots(*names), *tables]
    if memory := memory_table(results):
        sections += ["## Extra memory\n", *plots("memory"), memory]
    sections += [
        "## How it is measured\n",
        METHOD.replace("TABLES", f"{folder}/tables.md") + "\n",
        entrants_text(results),
    ]
    if results.failures:
        sections += ["## What failed\n", failures_text(results)]
    return "\n".join(sections).rstrip("\n") + "\n"


def setting_text(results: Results) -> str:
    """What it was measured on, and with which sizes."""
    machine, settings = results.machine, results.settings
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    memory_sizes = " and ".join(f"{size:g}" for size in settings["memory_sizes_gib"])
    quick = " **A quick run of small sizes, whose times mean little.**" if settings["quick"] else ""
    return (
        f"On {machine['processor']} with {machine['cores']} cores and {machine['memory_gib']:g} GiB, "
        f"{machine['kernel']}, {machine['file_system']}, Python {machine['python']}.{quick} "
        f"Rounds: {settings['rounds']}; states of {settings['size_mib']:g} MiB, {settings['leaves']:,} small leaves, "
        f"a large file of {settings['large_size_gib']:g} GiB, and {memory_sizes} GiB for memory.\n\n{packages}.\n"
    )


def targets_table(results: Results) -> str:
    """Each target, what was measured, and whether it was met."""
    rows = [_target_row(judge(results, target)) for target in TARGETS]
    return _table(("", "target", "measured", "met", "the worst of them"), rows)


def _target_row(verdict: Verdict) -> tuple[str, ...]:
    target = verdict.target
    value = "–" if verdict.value is None else quantity(verdict.value, target.unit)
    met = {True: "yes", False: "**no**", None: "–"}[verdict.met]
    return target.text, f"{target.better} {quantity(target.limit, target.unit)}", value, met, verdict.where


def case_table(results: Results, case: str, data: str, operations: Sequence[str], *, notes: bool) -> str:
    """The candidates of a case, one to a row, with what each does less or otherwise."""
    figures = [figure for figure in results.figures if (figure.case, figure.data) == (case, data)]
    there = {(figure.candidate, figure.operation): figure for figure in figures}
    operations = [operation for operation in operations if any(name == operation for _, name in there)]
    sizes = any(name == "size" for _, name in there)
    said = {entrant.name: (entrant.notes,) if notes else () for entrant in results.entrants}
    rows = []
    for candidate in distinct(figure.candidate for figure in figures):
        size = there.get((candidate, "size"))
        fraction = [f"{summary(size.values).median / size.nbytes:.3f}" if size else "–"] if sizes else []
        cells = [_cell(there.get((candidate, operation)), there.get((OURS, operation))) for operation in operations]
        rows.append((candidate, *fraction, *cells, *said.get(candidate, ())))
    head = ("", *(("size",) if sizes else ()), *operations, *(("notes",) if notes else ()))
    return f"**{data}**, {quantity(figures[0].nbytes, 'B')}\n\n{_table(head, rows)}"


def _cell(figure: Figure | None, ours: Figure | None) -> str:
    if figure is None:
        return "–"
    found = summary(figure.values)
    text = quantity(found.median, figure.unit)
    if found.n > 1 and figure.unit == "s":
        text += f" ({quantity(found.lower, 's')} – {quantity(found.upper, 's')})"
    if ours is not None and ours.candidate != figure.candidate and (our_median := summary(ours.values).median):
        text += f", {found.median / our_median:.2f}×"
    return text


def memory_table(results: Results) -> str:
    """The extra memory of each candidate, one size and operation to a column; nothing where it was not measured."""
    figures = [figure for figure in results.figures if figure.case == "memory"]
    if not figures:
        return ""
    # Data are called "float32, 1 GiB".
    columns = distinct(_memory_column(figure) for figure in figures)
    rows = []
    for candidate, dtype in dict.fromkeys((figure.candidate, _dtype(figure)) for figure in figures):
        mine = {_memory_column(f): f for f in figures if (f.candidate, _dtype(f)) == (candidate, dtype)}
        cells = [quantity(summary(mine[column].values).median, "B") if column in mine else "–" for column in columns]
        rows.append((candidate, dtype, *cells))
    return _table(("", "", *columns), rows)


def _dtype(figure: Figure) -> str:
    return figure.data.partition(", ")[0]


def _memory_column(figure: Figure) -> str:
    return f"{figure.operation}, {figure.data.partition(', ')[2]}"


def entrants_text(results: Results) -> str:
    """The candidates, and what each does less or otherwise."""
    return "\n".join(f"- **{one.name}** ({one.version}): {one.notes}." for one in results.entrants) + "\n"


def failures_text(results: Results) -> str:
    """What could not be measured."""
    return "\n".join(f"- {one.candidate}, {one.case}, {one.data}: {one.error}" for one in results.failures) + "\n"


def tables(results: Results) -> str:
    """Every figure, with its spread."""
    rows = []
    for figure in results.figures:
        found = summary(figure.values)
        spread = (found.median, found.minimum, found.lower, found.upper)
        numbers = [quantity(value, figure.unit) for value in spread]
        nbytes = quantity(figure.nbytes, "B")
        rows.append((figure.case, figure.data, nbytes, figure.candidate, figure.operation, *numbers, str(found.n)))
    head = (
        "case",
        "data",
        "in memory",
        "candidate",
        "operation",
        "median",
        "minimum",
        "quartile",
        "quartile",
        "rounds",
    )
    return "# All figures\n\nWritten by `make bench`.\n\n" + _table(head, rows)


def as_text(results: Results) -> str:
    """What a terminal is shown: the tables of the page, without its plots."""
    lines = page(results, OUT.name).splitlines()
    return "\n".join(line for line in lines if not line.startswith("![")) + "\n"


def quantity(value: float, unit: str) -> str:
    """A number with its unit, in three digits or so."""
    match unit:
        case "s":
            return f"{value * 1000:.3g} ms" if value < 0.9995 else f"{value:.2f} s"
        case "B":
            return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / MIB:.1f} MiB"
        case "×":
            return f"{value:.2f}×"
    return f"{value:.3f}"


def _data(results: Results, case: str) -> list[str]:
    return distinct(figure.data for figure in results.figures if figure.case == case)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def write(results: Results, out: Path, *, draws: bool) -> None:
    """Write `out.md`, `out/tables.md` and the plots; those of earlier results go."""
    out.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".md").write_text(page(results, out.name), encoding="utf-8")
    (out / "tables.md").write_text(tables(results), encoding="utf-8")
    if not draws:
        return
    drawn: dict[str, Chart] = {f"{chart.name}.svg": chart for chart in charts(results)}
    for old in out.glob("*.svg"):
        if old.name not in drawn:
            old.unlink()
    for name, chart in drawn.items():
        (out / name).write_text(draw(chart), encoding="utf-8")


def can_draw() -> bool:
    """Whether matplotlib is there, which only the extra `bench` brings."""
    return importlib.util.find_spec("matplotlib") is not None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=LATEST)
    parser.add_argument("--out", type=Path, default=OUT, help="folder of plots and tables; the page is beside it")
    options = parser.parse_args()
    if not can_draw():
        print("matplotlib is not installed (`make bench` installs it): no plots", file=sys.stderr)
    write(read(options.results), options.out, draws=can_draw())
    return 0


if __name__ == "__main__":
    sys.exit(main())
