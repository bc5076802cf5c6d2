"""Running the command line, in this process and in another one."""

import fcntl
import io
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from contextlib import redirect_stderr, redirect_stdout, suppress
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


def run_in_terminal(*command: object, width: int = 100, **variables: str) -> tuple[int, str]:
    """The exit code of a process whose streams are a terminal, and all that it prints there."""
    pid, descriptor = pty.fork()
    if pid == 0:
        clean = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "NO_COLOR"}}
        environment = {**clean, "TERM": "xterm-256color", "PYTHONPATH": str(REPOSITORY), **variables}
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
        os.execve(str(command[0]), list(map(str, command)), environment)
    output = b""
    # At the end, Linux raises an error.
    with suppress(OSError):
        while read := os.read(descriptor, 1 << 16):
            output += read
    os.close(descriptor)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), output.decode().replace("\r\n", "\n")


def inspected(path: object, *arguments: object) -> Any:
    """The document of `inspect --json`."""
    ran = run("inspect", path, "--json", *arguments)
    assert (ran.code, ran.err) == (0, "")
    return ran.document
