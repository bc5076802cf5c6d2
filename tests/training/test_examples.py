"""The examples, killed again and again without a warning, end as if they had never been stopped."""

import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
KILLS = 2


def command(example, run):
    return [sys.executable, str(EXAMPLES / example), str(run), "--epochs", "2", "--save-every", "10"]


def result_of(output):
    return re.findall(r"^done: .*$", output, re.MULTILINE)


def losses_of(output):
    return dict(re.findall(r"step (\d+): loss ([\d.]+)", output))


@pytest.mark.parametrize("example", ["train_torch.py", "train_flax.py"])
def test_what_the_docs_show_is_in_the_examples(example):
    page = (ROOT / "docs" / "training.md").read_text()
    part = page.partition(f"From `examples/{example}`:")[2].partition("\n| ")[0].partition("The names are yours")[0]
    shown = re.findall(r"```python\n(.*?)```", part, re.DOTALL)
    assert len(shown) == 2
    for block in shown:
        assert textwrap.indent(block, "    ") in (EXAMPLES / example).read_text()


@pytest.mark.parametrize("example", ["train_torch.py", "train_flax.py"])
def test_an_example_that_is_killed_goes_on_as_if_it_had_not_been(example, tmp_path):
    whole = subprocess.run(command(example, tmp_path / "whole"), capture_output=True, text=True, check=True).stdout
    assert len(result_of(whole)) == 1
    assert len(losses_of(whole)) == 12
    killed = 0
    output = ""
    while killed < KILLS:
        with subprocess.Popen(command(example, tmp_path / "killed"), stdout=subprocess.PIPE, text=True) as process:
            # Somewhere between two saves, or within one.
            for _ in range(2 + killed):
                output += process.stdout.readline()
            time.sleep(random.random() / 20)
            process.send_signal(signal.SIGKILL)
            output += process.stdout.read()
        assert process.returncode == -signal.SIGKILL
        killed += 1
    last = subprocess.run(command(example, tmp_path / "killed"), capture_output=True, text=True, check=True).stdout
    assert "resumed at step" in last
    assert result_of(last) == result_of(whole)
    assert losses_of(output + last) == losses_of(whole)
