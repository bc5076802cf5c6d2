"""The command line as a process: exit codes, streams, terminals."""

import io
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

import pytreeckpt as ptc
from pytreeckpt import cli
from pytreeckpt.cli import entry, terminal
from pytreeckpt.cli.text import cell_width
from tests.cli.running import REPOSITORY, run, run_in_terminal, run_process
from tests.cli.trees import training_run


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "run.ptck"
    ptc.save(training_run(), path)
    return path


def test_the_console_script_and_the_module_are_the_same_command(saved):
    as_module = run_process("inspect", saved)
    assert as_module.code == 0
    assert as_module == run("inspect", saved)
    script = next(iter(ptc.adapters.entry_points(group="console_scripts", name="pytreeckpt")))
    assert script.load() is cli.main


def test_the_version_and_the_help_are_printed():
    assert run("--version") == (0, f"pytreeckpt {ptc.__version__}\n", "")
    for arguments in (["--help"], ["inspect", "--help"], ["verify", "--help"]):
        ran = run(*arguments)
        assert (ran.code, ran.err) == (0, "")
        assert "exit codes:" in ran.out or "examples:" in ran.out
    assert [command.name for command in entry.COMMANDS if command.name not in run("--help").out] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "COMMAND"),
        (["purge"], "invalid choice"),
        (["prune"], "RUN"),
        (["inspect"], "FILE"),
        (["inspect", "{saved}", "--depth", "-1"], "--depth"),
        (["inspect", "{saved}", "--depth", "x"], "not a number of levels"),
        (["inspect", "{saved}", "--sort", "colour"], "--sort"),
        (["inspect", "{saved}", "--nothing"], "--nothing"),
        (["inspect", "{saved}", "a", "b"], "b"),
        (["inspect", "{saved}", "params["], "cannot read the path"),
        (["inspect", "{saved}", "params/nothing"], "there is params/h, params/wte"),
        (["inspect", "{saved}", "step/.x"], "nothing at"),
        (["inspect", "{saved}", "schedule/name[0]"], "nothing at"),
        (["inspect", "{saved}", "--match", "nothing/**"], "matches no leaf"),
        (["inspect", "{saved}", "params", "--match", "opt"], "at or below 'params'"),
        (["inspect", "{saved}", "--match", "a["], "cannot read the pattern"),
        (["inspect", "{saved}.none"], "there is no checkpoint at"),
        (["verify"], "FILE"),
    ],
)
def test_mistakes_end_with_2_and_say_what_is_wrong(saved, arguments, words):
    ran = run(*(argument.format(saved=saved) for argument in arguments))
    assert ran.code == 2
    assert ran.out == ""
    assert words in ran.err
    assert "Traceback" not in ran.err


def test_a_path_into_a_value_leads_nowhere(tmp_path):
    path = tmp_path / "t.ptck"
    ptc.save({"r": range(3)}, path)
    assert run("inspect", path, "r").out == "range(0, 3, 1)\n"
    assert run("inspect", path, "r[0]").err == f"pytreeckpt: error: {path}: nothing at 'r[0]'\n"


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Full(io.StringIO):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text):
        raise self.error


@pytest.mark.parametrize(("error", "code"), [(BrokenPipeError(), 141), (OSError(28, "no space"), 2)])
def test_an_output_that_refuses_ends_it(saved, monkeypatch, error, code):
    monkeypatch.setattr(sys, "stdout", Full(error))
    assert cli.main(["inspect", str(saved)]) == code


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}])
def test_work_on_a_terminal_is_painted_and_shows_progress(saved, monkeypatch, variables):
    for name in ("COLUMNS", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(terminal, "_DELAY_S", 0.0)
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert cli.main(["inspect", str(saved), "params", "--stats"]) == 0
    assert ("\x1b[1mparams\x1b[0m" in out.getvalue()) == (not variables)
    assert "reading the arrays" in err.getvalue()
    assert max(map(cell_width, re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()).splitlines())) <= 80


def test_a_path_may_stand_after_options_and_begin_with_a_minus(tmp_path):
    path = tmp_path / "t.ptck"
    ptc.save({-1: {"a": 1}, "-x": 2}, path)
    assert run("inspect", path, "--all", "--", "-x").out == "2\n"
    assert run("inspect", "--depth", "1", path, "--", "-1/a").out == "1\n"


def test_a_file_that_cannot_be_read_is_told_apart_from_a_damaged_one(saved, tmp_path):
    damaged = tmp_path / "damaged.ptck"
    damaged.write_bytes(saved.read_bytes()[:-10])
    ran = run("inspect", damaged)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith(f"pytreeckpt: error: {damaged}: the file of ")
    assert run("inspect", tmp_path).code == 1
    assert run("inspect", tmp_path / "a\0b").code == 2
    locked = tmp_path / "loop.ptck"
    locked.symlink_to(locked)
    assert run("inspect", locked).code == 2
    assert run("verify", locked).code == 2


def test_damage_that_inspecting_meets_ends_with_1(tmp_path):
    path = tmp_path / "t.ptck"
    ptc.save({"w": np.random.default_rng(0).standard_normal(1000)}, path, compression="none")
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    assert run("inspect", path).code == 0
    for arguments in (["--stats"], ["w"], ["--stats", "--json"]):
        ran = run("inspect", path, *arguments)
        assert (ran.code, ran.out) == (1, "")
        assert "leaf w, chunk 0 (offset 64, 8000 bytes): digest mismatch" in ran.err


def test_a_reader_that_stops_ends_it_quietly(saved):
    command = f"{sys.executable} -m pytreeckpt inspect {saved} metrics/loss --all | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=True, cwd=REPOSITORY, text=True)
    assert done.stdout.splitlines()[1:] == ["141"]
    assert done.stderr == ""


def test_output_that_cannot_be_written_ends_with_2(saved):
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        done = subprocess.run(
            [sys.executable, "-m", "pytreeckpt", "inspect", saved],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            cwd=REPOSITORY,
            text=True,
        )
    assert done.returncode == 2
    assert done.stderr.startswith("pytreeckpt: error: cannot write the output")


def test_an_interrupt_ends_with_130(saved, monkeypatch):
    def interrupted(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(ptc, "verify", interrupted)
    assert run("verify", saved) == (130, "", "")


def test_a_signal_leaves_no_traceback(tmp_path):
    fifo = tmp_path / "go"
    os.mkfifo(fifo)
    script = (
        "import pytreeckpt, os, sys\n"
        "from pytreeckpt.cli import main\n"
        f"pytreeckpt.verify = lambda *a, **k: (open({str(fifo)!r}, 'w').close(), __import__('time').sleep(60))\n"
        "sys.exit(main(['verify', 'x']))\n"
    )
    # A process that was started in the background of a shell ignores interrupts, and so would its children.
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stderr=subprocess.PIPE,
        cwd=REPOSITORY,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    fifo.read_bytes()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert (process.returncode, errors) == (130, b"")


def test_a_terminal_gets_colours_and_its_width_and_a_pipe_plain_text(saved):
    code, output = run_in_terminal(sys.executable, "-m", "pytreeckpt", "inspect", saved, width=90)
    assert code == 0
    assert "\x1b[1mparams\x1b[0m" in output
    plain = re.sub(r"\x1b\[[0-9;]*m", "", output)
    assert plain == run_process("inspect", saved, COLUMNS="90").out
    assert max(map(len, plain.splitlines()[1:])) <= 90
    assert "\x1b" not in run_process("inspect", saved).out


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"PYTHONIOENCODING": "latin-1"}])
def test_colours_can_be_switched_off(saved, variables):
    _, output = run_in_terminal(sys.executable, "-m", "pytreeckpt", "inspect", saved, width=90, **variables)
    assert "\x1b" not in output
    assert "wte" in output


def test_without_rich_the_text_is_plain(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    assert not terminal._has_rich()


def test_an_output_that_is_not_unicode_gets_ascii(saved):
    ran = run_process("inspect", saved, "params", PYTHONIOENCODING="ascii")
    assert ran.code == 0
    assert ran.out.isascii()
    assert "|- h[0..11]" in ran.out
    ran = run_process("inspect", saved, "params/é", PYTHONIOENCODING="ascii")
    assert ran.err.startswith("pytreeckpt: error: ")
    assert "params/\\xe9" in ran.err


def test_an_undecodable_file_name_is_printed(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff.ptck"
    ptc.save({"a": 1}, os.fsdecode(path))
    ran = run("inspect", os.fsdecode(path))
    assert ran.code == 0
    assert ran.lines[0].endswith("/\\udcff.ptck")


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}])
def test_long_work_shows_its_progress_on_a_terminal(variables):
    script = (
        "import sys, time, pytreeckpt\n"
        "from pytreeckpt import Progress\n"
        "from pytreeckpt.cli import main, terminal\n"
        "terminal._DELAY_S, terminal._INTERVAL_S = 0.0, 0.0\n"
        "def verify(path, progress):\n"
        "    for done in range(0, 101, 20):\n"
        "        progress(Progress(done << 20, 100 << 20)); time.sleep(0.12)\n"
        "    return pytreeckpt.VerifyReport(path, (), 5, 1, 1, '00' * 32)\n"
        "pytreeckpt.verify = verify\n"
        "sys.exit(main(['verify', 'some.ptck']))\n"
    )
    code, output = run_in_terminal(sys.executable, "-c", script, **variables)
    assert code == 0
    assert "verifying some.ptck" in output
    assert ("60 %" if variables else "60.0/100.0 MiB") in output
    # Wiped out before the result.
    before, after = output.rsplit("ok ", 1)
    assert before.endswith(("\r", "\x1b[2K", "\x1b[?25h", "\x1b[32m"))
    assert "verifying" not in after


def test_nothing_of_a_framework_or_of_rich_is_imported_without_need(saved):
    script = (
        "import sys\n"
        "from pytreeckpt.cli import main\n"
        f"code = main(['inspect', {str(saved)!r}, '--stats']) + main(['verify', {str(saved)!r}])\n"
        "print([name for name in ('torch', 'jax', 'rich') if name in sys.modules], code, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, cwd=REPOSITORY, text=True)
    assert done.stderr == "[] 0\n"


def test_a_torch_checkpoint_is_shown_without_torch(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("pytreeckpt_torch")
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(6)))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    path = tmp_path / "torch.ptck"
    ptc.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "dtype": torch.bfloat16}, path)
    ran = run_process("inspect", path)
    assert ran.code == 0
    assert "types   48 torch.Tensor" in ran.out
    assert "float32[4, 4] ×6" in ran.row("{0…5}.weight")
    assert ran.row("dtype").endswith("torch.bfloat16")
