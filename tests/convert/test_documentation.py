"""What docs/conversion.md shows is run: Python in order, rules read, commands with the lines that they print."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from flax import linen

import pytreeckpt as ptc
from pytreeckpt.convert import parse_rules
from pytreeckpt.convert.rules import Rule
from tests.cli.running import REPOSITORY, run

PAGE = (REPOSITORY / "docs" / "conversion.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
LANGUAGES = {"python", "console", "toml"}


def of(language):
    found = [text for name, text in BLOCKS if name == language]
    assert found
    return found


def test_all_blocks_are_of_a_language_that_is_run():
    assert {language for language, _ in BLOCKS} == LANGUAGES
    assert PAGE.count("```") == 2 * len(BLOCKS)


def test_the_rules_are_rules():
    rules = [rule for text in of("toml") for rule in parse_rules(text)]
    assert {type(rule) for rule in rules} == set(Rule.__args__)


def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers", minversion="4.57", reason="the last versions with Flax models")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for language, text in BLOCKS:
        if language == "python":
            exec(compile(text, "docs/conversion.md", "exec"), names)
        elif language == "console":
            if not Path("net.pt").exists():
                torch.save(names["model"].state_dict(), "net.pt")
                ptc.save(
                    names["jax_model"].init(names["jax"].random.key(0), names["jnp"].zeros((1, 8))), "variables.ptck"
                )
            for shown in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                check_command(*shown.splitlines())
    printed = capsys.readouterr().out
    assert "torch to flax, 4 entries" in printed
    assert "admits 2 layouts" in printed
    assert "optax.chain(optax.scale_by_adam(b1=0.9" in printed
    assert isinstance(names["jax_model"], linen.Module)


def check_command(command, *lines):
    name, *arguments = shlex.split(command)
    if name == "cmp":
        first, second = arguments
        assert Path(first).read_bytes() == Path(second).read_bytes()
        return
    assert name == "pytreeckpt"
    ran = run(*arguments)
    assert ran.err == ""
    assert ran.code == (1 if any(line.startswith("ambiguous") for line in lines) else 0), ran.out
    missing = [line for line in lines if line not in ran.lines]
    assert not missing, ran.out
