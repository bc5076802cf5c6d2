"""Running the command line, in this process and in another one."""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from pytreeckpt.cli import main

REPOSITORY = Path(__file__).parents[2]


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def document(self) -> Any:
        """The output as JSON, strictly: NaN and infinities are errors."""
        assert self.out.isascii()
        return json.loads(self.out, parse_constant=_refuse)

    def row(self, label: str) -> str:
        """The one line of a tree with this label."""
        found = [line for line in self.lines if line.lstrip(" │├└─").split("  ")[0] == label]
        assert len(found) == 1, f"{len(found)} rows are called {label!r}:\n{self.out}"
        return found[0]


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def run(*arguments: object) -> Ran:
    """`main` with these arguments, its output captured."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return Ran(code, out.getvalue(), err.getvalue())


def run_process(*arguments: object, **variables: str) -> Ran:
    """`python -m pytreeckpt` with these arguments and environment variables."""
    clean = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "NO_COLOR"}}
    done = subprocess.run(
        [sys.executable, "-m", "pytreeckpt", *map(str, arguments)],
        capture_output=True,
        check=False,
        cwd=REPOSITORY,
        env={**clean, "PYTHONIOENCODING": "utf-8", **variables},
    )
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())


def inspected(path: object, *arguments: object) -> Any:
    """The document of `inspect --json`."""
    ran = run("inspect", path, "--json", *arguments)
    assert (ran.code, ran.err) == (0, "")
    return ran.document
