"""What docs/by-hand.md shows of ours is run, from top to bottom; what it shows of others is at least Python."""

import ast
import re
import shlex

import torch

from pytreeckpt.cli.entry import parse
from tests.cli.running import REPOSITORY

PAGE = (REPOSITORY / "docs" / "by-hand.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = re.findall(r"^    pytreeckpt (.+)$", PAGE, re.MULTILINE)


def training():
    """What the page takes for granted."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.BatchNorm1d(64), torch.nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

    def train_one_epoch():
        points = torch.randn(32, 4)
        loss = (model(points) - points.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        return loss.item()

    objects = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    return {"model": model, "objects": objects, "train_one_epoch": train_one_epoch}


def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    assert {language for language, _ in BLOCKS} == {"python", "py"}
    assert PAGE.count("```") == 2 * len(BLOCKS)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page", **training()}
    for language, text in BLOCKS:
        if language == "python":
            exec(compile(text, "docs/by-hand.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "[4, 5, 6] latest 6 best" in printed or "latest 6 best" in printed
    assert names["manager"].steps() == [1, 2, 3]
    assert set(names["restored"]["state"]) == {"params", "step", "key"}


def test_what_others_write_is_python():
    others = [
        text.replace("\n...\n    if stop", "\nif True:\n    if stop") for language, text in BLOCKS if language == "py"
    ]
    assert len(others) >= 8
    for text in others:
        ast.parse(text)


def test_the_commands_are_commands():
    assert len(COMMANDS) == 3
    for command in COMMANDS:
        assert parse(shlex.split(command)).run is not None
