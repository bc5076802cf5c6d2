"""Page, tables and plots are functions of the figures; and one quick run of all makes every file."""

import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.figures import COPY, OURS, OURS_MAPPED, OURS_RAW, Entrant, Failure, Figure, Results, read, to_text
from benchmarks.plots import charts, draw
from benchmarks.targets import TARGETS, judge

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
PEERS = ("safetensors", "safetensors torch", "torch.save", "torch DCP", "Orbax", "flax msgpack")
SETTINGS = {
    "quick": False,
    "rounds": 3,
    "size_mib": 512,
    "leaves": 100_000,
    "large_size_gib": 2,
    "memory_sizes_gib": [1, 2],
}
MACHINE = {
    "processor": "abacus",
    "cores": 2,
    "memory_gib": 8.0,
    "kernel": "Linux 1",
    "file_system": "ext4",
    "python": "3.11.7",
    "packages": {"numpy": "2"},
}
OPERATIONS = ("save", "save, durable", "restore", "restore in place")


def synthetic(ours_s: float = 0.1, theirs_s: float = 1.0) -> Results:
    """Results in which pytreeckpt takes `ours_s` for everything, and each peer `theirs_s`."""
    figures = []
    for candidate in (OURS, OURS_RAW, OURS_MAPPED, *PEERS):
        time_s = ours_s if candidate.startswith("pytreeckpt") else theirs_s
        times = (time_s, time_s * 0.9, time_s * 1.1)
        for data in ("float32", "bfloat16", "mixed"):
            figures += [Figure("state", data, candidate, operation, "s", 512 * MIB, times) for operation in OPERATIONS]
            fraction = 0.66 if data == "bfloat16" else 0.83
            figures.append(Figure("state", data, candidate, "size", "B", 1000, (1000 * fraction,)))
        figures += [
            Figure("leaves", "many leaves", candidate, operation, "s", MIB, times) for operation in OPERATIONS[:3]
        ]
        figures.append(Figure("slice", "1 MiB of 2 GiB", candidate, "slice", "s", 2048 * MIB, (time_s / 50,)))
        figures.append(Figure("slice", "1 MiB of 2 GiB", candidate, "slice, bytes read", "B", 2048 * MIB, (3 * MIB,)))
        for size in ("1 GiB", "2 GiB"):
            figures += [
                Figure("memory", f"float32, {size}", candidate, operation, "B", 1024 * MIB, (20 * MIB,))
                for operation in ("save", "restore", "restore in place")
            ]
    for data in ("numpy", "torch", "jax"):
        for candidate, time_s in ((OURS, ours_s / 20), (COPY, theirs_s / 20)):
            figures.append(Figure("stall", data, candidate, "call", "s", 512 * MIB, (time_s,)))
    for data in ("float32", "bfloat16", "MiniLM float32", "MiniLM bfloat16"):
        for candidate, time_s in ((OURS, ours_s), ("ZipNN", theirs_s)):
            figures.append(Figure("codec", data, candidate, "size", "B", 1000, (830,)))
            for suffix in ("", ", 1 thread"):
                for operation in ("compress", "decompress"):
                    figures.append(Figure("codec", data, candidate, operation + suffix, "s", 1000, (time_s,)))
    names = (OURS, OURS_RAW, OURS_MAPPED, *PEERS, "ZipNN")
    return Results(MACHINE, SETTINGS, tuple(Entrant(name, "1.2", f"notes on {name}") for name in names), tuple(figures))


RESULTS = synthetic()


def rows_of(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_the_page_is_a_function_of_the_results():
    assert report.page(RESULTS, "benchmarks") == report.page(synthetic(), "benchmarks")
    assert report.tables(RESULTS) == report.tables(synthetic())


def test_every_target_is_judged_and_each_met_by_results_that_are_good_enough():
    rows = rows_of(report.targets_table(RESULTS))[2:]
    assert len(rows) == len(TARGETS) > 20
    assert {row[3] for row in rows} == {"yes"}


def test_the_limits_are_those_that_were_set():
    stated = {target.text: (target.better, target.limit) for target in TARGETS}
    assert len(stated) == len(TARGETS)
    assert stated["size of Gaussian float32"] == ("≤", 0.835)
    assert stated["size of Gaussian bfloat16"] == ("≤", 0.665)
    assert stated["compress in memory, against ZipNN"] == ("≥", 2.5)
    assert stated["decompress in memory, against ZipNN"] == ("≥", 1.3)
    assert stated["durable save, against safetensors and fsync"] == ("≥", 1)
    assert stated["durable save, uncompressed, against the same"] == ("≥", 1.1)
    copied = "restore, uncompressed and every byte verified, against safetensors (numpy, which copies)"
    assert stated[copied] == stated["the same, mapped, against safetensors (torch, which maps)"] == ("≥", 1.3)
    assert stated["restore, against torch.load"] == ("≥", 1.3)
    assert stated["save, against flax msgpack"] == ("≥", 6)
    assert stated["save, against torch DCP"] == ("≥", 1.2)
    assert stated["1 MiB of a large file: time"] == ("<", 0.010)
    assert stated["save in the background: the call, against a plain copy"] == ("≤", 1.2)
    assert stated["extra memory: restore in place"] == ("≤", 32 * MIB)


def test_slow_results_meet_no_target_of_speed():
    slow = synthetic(ours_s=1.0, theirs_s=0.5)
    missed = {target.text for target in TARGETS if judge(slow, target).met is False}
    assert {target.text for target in TARGETS if target.unit in {"×", "s"}} == missed


def test_a_target_is_judged_on_the_worst_and_says_where_that_is():
    figures = tuple(
        replace(figure, values=(0.5, 0.5, 0.5))
        if (figure.data, figure.candidate, figure.operation) == ("bfloat16", OURS, "save, durable")
        else figure
        for figure in RESULTS.figures
    )
    target = next(target for target in TARGETS if target.text == "save, durable, against torch DCP")
    verdict = judge(replace(RESULTS, figures=figures), target)
    assert verdict.value == 2.0
    assert verdict.where == "bfloat16, save, durable"
    assert verdict.met


def test_a_limit_itself_is_met_unless_it_must_be_stayed_below():
    at_limit = {"≤": True, "≥": True, "<": False}
    for target in TARGETS:
        found = replace(target, found=lambda _results, limit=target.limit: iter([("here", limit)]))
        assert judge(RESULTS, found).met is at_limit[target.better], target.text


def test_what_was_not_measured_is_neither_met_nor_missed():
    nothing = replace(RESULTS, figures=())
    assert all(judge(nothing, target).met is None for target in TARGETS)
    assert {row[3] for row in rows_of(report.targets_table(nothing))[2:]} == {"–"}
    assert charts(nothing) == ()
    assert "## Targets" in report.page(nothing, "benchmarks")


def test_tables_show_median_quartiles_and_how_many_times_ours_a_peer_takes():
    table = report.case_table(RESULTS, "state", "float32", OPERATIONS, notes=True)
    rows = {row[0]: row for row in rows_of(table)}
    assert rows[OURS][1:3] == ["0.830", "100 ms (95 ms – 105 ms)"]
    assert rows["Orbax"][2] == "1.00 s (950 ms – 1.05 s), 10.00×"
    assert rows["Orbax"][-1] == "notes on Orbax"
    assert {len(row) for row in rows.values()} == {7}


def test_every_figure_is_in_the_tables():
    assert len(rows_of(report.tables(RESULTS))) == 2 + len(RESULTS.figures)


def test_every_table_of_the_page_has_rows_of_one_length():
    text = report.page(RESULTS, "benchmarks")
    assert len(re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)) >= 10
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(row) for row in rows_of(table)}) == 1


def test_memory_has_a_column_for_each_operation_and_size():
    head, _, first, *_ = rows_of(report.memory_table(RESULTS))
    assert head[2:4] == ["save, 1 GiB", "restore, 1 GiB"]
    assert len(head) == 8
    assert first == [OURS, "float32", *["20.0 MiB"] * 6]


def test_failures_and_quick_runs_are_told():
    failed = replace(RESULTS, failures=(Failure("leaves", "many", "Orbax", "left out: too slow"),))
    assert "- Orbax, leaves, many: left out: too slow" in report.page(failed, "benchmarks")
    assert "What failed" not in report.page(RESULTS, "benchmarks")
    quick = replace(RESULTS, settings={**SETTINGS, "quick": True})
    assert "quick run" in report.page(quick, "benchmarks")
    assert "quick run" not in report.page(RESULTS, "benchmarks")


def test_the_page_embeds_every_plot_that_there_is():
    text = report.page(RESULTS, "figures")
    embedded = re.findall(r"!\[.*\]\(figures/(.*)\.svg\)", text)
    assert sorted(embedded) == sorted(chart.name for chart in charts(RESULTS))
    assert len(embedded) >= 10


def test_plots_are_the_same_each_time_and_have_no_date():
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: `make bench` installs it")
    for chart in [chart for chart in charts(RESULTS) if chart.name in {"save", "memory"}]:
        drawn = draw(chart)
        assert drawn == draw(chart)
        assert drawn.startswith("<?xml")
        assert chart.title in drawn
        assert "dc:date" not in drawn


def test_the_report_is_written_from_the_file_alone_and_old_plots_go(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: `make bench` installs it")
    codecs = replace(RESULTS, figures=tuple(figure for figure in RESULTS.figures if figure.case == "codec"))
    (tmp_path / "results.json").write_text(to_text(codecs))
    out = tmp_path / "docs/figures"
    out.mkdir(parents=True)
    (out / "old.svg").write_text("")
    report.write(read(tmp_path / "results.json"), out, draws=True)
    names = {path.name for path in out.iterdir()}
    assert names == {"tables.md"} | {f"{chart.name}.svg" for chart in charts(codecs)}
    assert (tmp_path / "docs/figures.md").read_text() == report.page(codecs, "figures")


def test_numbers_have_units():
    values = {"s": 0.0123, "B": 3 * MIB, "×": 1.234, "": 0.8351}
    assert [report.quantity(value, unit) for unit, value in values.items()] == ["12.3 ms", "3.0 MiB", "1.23×", "0.835"]
    assert report.quantity(2.5, "s") == "2.50 s"
    assert report.quantity(3 * 2**30, "B") == "3.00 GiB"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_quick_run_makes_every_file_and_names_no_place(tmp_path):
    pytest.importorskip("safetensors")
    work = tmp_path / "work"
    work.mkdir()
    arguments = ["--folder", work, "--json", tmp_path / "results.json", "--out", tmp_path / "docs/benchmarks"]
    command = [sys.executable, "-m", "benchmarks.suite", "--quick", *map(str, arguments)]
    command += ["--candidates", OURS, "safetensors", "--cases", "float32", "leaves", "slice", "codec"]
    # Real weights are too large for a quick run.
    environment = os.environ | {"PYTREECKPT_WEIGHTS": str(tmp_path / "none")}
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert not list(work.iterdir())
    results = read(tmp_path / "results.json")
    assert not results.failures
    measured = {(figure.case, figure.candidate) for figure in results.figures}
    both = {(case, name) for case in ("state", "leaves", "slice") for name in (OURS, "safetensors")}
    assert measured == both | {("codec", OURS)}
    assert all(figure.values for figure in results.figures)
    in_place = [figure for figure in results.figures if figure.operation == "restore in place"]
    assert {figure.case for figure in in_place} == {"state"}
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in written} >= {"results.json", "benchmarks.md", "tables.md"}
    if report.can_draw():
        assert [path for path in written if path.suffix == ".svg"]
    for path in written:
        text = path.read_text()
        for place in (str(tmp_path), str(ROOT), str(Path.home()), socket.gethostname()):
            assert place not in text, path.name
    assert "## Targets" in done.stdout
    assert json.loads((tmp_path / "results.json").read_text())["settings"]["quick"]
