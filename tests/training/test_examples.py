"""The examples, ended again and again, with and without a warning, come to the same end as if they had never been
stopped.
"""

import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import pytreeckpt as ptc
from pytreeckpt.run import read_run
from tests.exact import difference

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
ENDS = {
    "train_torch.py": [signal.SIGTERM, signal.SIGKILL],
    "train_flax.py": [signal.SIGINT, signal.SIGKILL],
}


def command(example, run):
    return [sys.executable, str(EXAMPLES / example), str(run), "--epochs", "2", "--save-every", "10"]


def result_of(output):
    return re.findall(r"^done: .*$", output, re.MULTILINE)


def losses_of(output):
    return dict(re.findall(r"step (\d+): loss ([\d.]+)", output))


@pytest.mark.parametrize("example", ["train_torch.py", "train_flax.py"])
def test_what_the_docs_show_is_in_the_examples(example):
    page = (ROOT / "docs" / "training.md").read_text()
    part = page.partition(f"From `examples/{example}`:")[2].partition("\n| object |")[0]
    shown = re.findall(r"```python\n(.*?)```", part, re.DOTALL)
    assert len(shown) == 2
    for block in shown:
        # In a function, one blank line stands where on the page there are two.
        within = textwrap.indent(block.replace("\n\n\n", "\n\n"), "    ")
        assert within in (EXAMPLES / example).read_text()


@pytest.mark.parametrize("example", ["train_torch.py", "train_flax.py"])
def test_an_example_that_is_ended_in_whatever_way_goes_on_as_if_it_had_not_been(example, tmp_path):
    whole = subprocess.run(command(example, tmp_path / "whole"), capture_output=True, text=True, check=True).stdout
    assert len(result_of(whole)) == 1
    assert len(losses_of(whole)) == 12
    output = ""
    for n_ended, signum in enumerate(ENDS[example]):
        # Without a buffer, in which `communicate` would not find what was read ahead of the lines.
        with subprocess.Popen(
            command(example, tmp_path / "ended"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        ) as process:
            # Somewhere between two saves, or within one.
            for _ in range(2 + n_ended):
                output += process.stdout.readline().decode()
            time.sleep(random.random() / 20)
            process.send_signal(signum)
            rest, errors = process.communicate()
            output += rest.decode()
        run = read_run(tmp_path / "ended")
        if signum == signal.SIGKILL:
            assert process.returncode == -signum
        else:
            assert process.returncode == 128 + signum
            assert re.fullmatch(rf"{signum.name} came: step {run.latest} was saved, as .*\n", errors.decode())
        assert run.problems == ()
    last = subprocess.run(command(example, tmp_path / "ended"), capture_output=True, text=True, check=True).stdout
    assert f"resumed at step {run.latest}" in last
    assert result_of(last) == result_of(whole)
    said = losses_of(output + last).items()
    # That of the step at which the process was left is not said.
    assert len(said) >= 10
    assert said <= losses_of(whole).items()
    # Nothing draws from the generators of Python and numpy, and each first process has its own.
    trees = [
        ptc.restore(read_run(tmp_path / name).path(), to="numpy", select=lambda path: path[0].key != "rng")
        for name in ("whole", "ended")
    ]
    assert difference(*trees) is None
