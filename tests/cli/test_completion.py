"""Completion: the script that is printed, and what a real bash offers with it."""

import subprocess

import pytest

from pytreeckpt.cli import completion, entry
from tests.cli.running import run

COMMANDS = [command.name for command in entry.COMMANDS]


@pytest.fixture(scope="module")
def script():
    pytest.importorskip("shtab")
    ran = run("completion", "bash")
    assert (ran.code, ran.err) == (0, "")
    return ran.out


def offered(script, folder, *words):
    """What bash offers for the last of the words."""
    typed = " ".join(f"'{word}'" for word in ("pytreeckpt", *words))
    lines = f"{script}\nCOMP_WORDS=({typed})\nCOMP_CWORD={len(words)}\n_shtab_pytreeckpt\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n"
    done = subprocess.run(["bash", "-s"], input=lines, capture_output=True, text=True, cwd=folder, check=True)
    assert done.stderr == ""
    return set(done.stdout.split())


def test_bash_takes_the_script(script):
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_the_script_of_each_shell_knows_each_command(shell):
    pytest.importorskip("shtab")
    ran = run("completion", shell)
    assert (ran.code, ran.err) == (0, "")
    assert [name for name in COMMANDS if name not in ran.out] == []
    assert run("completion", shell) == ran


def test_bash_offers_commands_options_and_choices(script, tmp_path):
    assert offered(script, tmp_path, "") == set(COMMANDS)
    assert offered(script, tmp_path, "ver") == {"verify"}
    assert {"--json", "--stats"} <= offered(script, tmp_path, "inspect", "--")
    assert offered(script, tmp_path, "plot", "--x", "") >= {"step", "time", "epoch"}
    assert offered(script, tmp_path, "completion", "") == set(completion.SHELLS)


def test_bash_offers_files_as_files_and_runs_as_folders(script, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "step.ptck").touch()
    assert offered(script, tmp_path, "inspect", "") == {"run", "step.ptck"}
    assert offered(script, tmp_path, "inspect", "st") == {"step.ptck"}
    for command in ("ls", "prune", "plot"):
        assert offered(script, tmp_path, command, "") == {"run"}
    assert offered(script, tmp_path, "plot", "run", "-o", "") == {"run", "step.ptck"}


@pytest.mark.parametrize("command", entry.COMMANDS, ids=COMMANDS)
def test_each_place_for_a_file_or_folder_is_known_as_one(command):
    actions = completion.arguments_of(entry.parsers()[1][command.name])
    assert actions
    named = [action.metavar for action in actions if isinstance(action.metavar, str) and action.choices is None]
    # What is no file. A new kind of argument is one or the other.
    others = {
        *("D", "DTYPE", "GLOB", "HOURS", "K", "N", "NAME", "OLD=NEW", "PATH", "PATTERN", "PATTERN=KIND"),
        *("R", "ROLE", "SIZE", "STEP", "W", "W,W,…", "WHAT"),
    }
    places = {action.metavar for action in actions if completion.kind_of(action)}
    assert {metavar for metavar in named if metavar not in others} == places


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_the_script_is_ascii_whatever_the_help_says(shell):
    pytest.importorskip("shtab")
    assert run("completion", shell).out.isascii()


def test_without_shtab_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(completion, "_has_shtab", lambda: False)
    ran = run("completion", "bash")
    assert (ran.code, ran.out) == (2, "")
    assert "pip install 'pytreeckpt[cli]'" in ran.err


def test_a_shtab_that_does_not_know_the_shell_is_told_of(monkeypatch):
    shtab = pytest.importorskip("shtab")
    monkeypatch.setattr(shtab, "SUPPORTED_SHELLS", ["bash", "zsh"])
    ran = run("completion", "fish")
    assert (ran.code, ran.out) == (2, "")
    assert "knows bash, zsh, not fish" in ran.err


def test_a_shell_that_is_none_is_a_mistake():
    ran = run("completion", "cmd.exe")
    assert (ran.code, ran.out) == (2, "")
    assert "invalid choice" in ran.err
