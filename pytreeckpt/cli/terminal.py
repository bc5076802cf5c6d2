"""Where a command prints: how wide it is, whether it is painted, and progress for what takes long.

Rich paints where it is installed and the output is a terminal; otherwise the same lines come as plain text.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final, TextIO

from pytreeckpt.cli.layout import Line, Style, plain_line
from pytreeckpt.pipeline import Progress, ReportProgress

_STYLES: Final[Mapping[Style, str]] = {
    "plain": "",
    "guide": "bright_black",
    "container": "bold",
    "array": "cyan",
    "value": "green",
    "number": "",
    "note": "bright_black",
    "heading": "bold",
    "good": "green",
    "bad": "bold red",
    "curve1": "cyan",
    "curve2": "yellow",
    "curve3": "magenta",
    "curve4": "green",
    "curve5": "red",
    "curve6": "blue",
}
# For a terminal or file that cannot hold the characters that the lines are drawn with.
_ASCII: Final = str.maketrans({"…": "..", **dict(zip("├└│─┤┴▲★×·−", "|`|-++^*x--", strict=True))})
_MIN_WIDTH: Final = 40
_DELAY_S: Final = 0.5
_INTERVAL_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Terminal:
    """The two streams. `width` is None where lines need not end. `painted`: with colours, by rich."""

    out: TextIO
    err: TextIO
    width: int | None
    painted: bool

    @property
    def draws(self) -> bool:
        """Whether it can show characters beyond ASCII, such as braille."""
        return _can_encode(self.out)

    def print(self, lines: Sequence[Line]) -> None:
        """Write the lines to standard output."""
        if self.painted:
            self._paint(lines)
            return
        encodable = _can_encode(self.out)
        for line in lines:
            text = plain_line(line)
            self.out.write((text if encodable else _as_ascii(text, self.out)) + "\n")

    def _paint(self, lines: Sequence[Line]) -> None:
        from rich.console import Console
        from rich.text import Text

        console = Console(file=self.out, highlight=False, markup=False, emoji=False, soft_wrap=True)
        for line in lines:
            console.print(Text.assemble(*((span.text, _STYLES[span.style]) for span in line)))

    def write(self, pieces: Iterable[str]) -> None:
        """Write text that is ASCII, such as JSON, to standard output."""
        self.out.writelines(pieces)

    def complain(self, message: str) -> None:
        """Write a message to standard error."""
        text = f"pytreeckpt: {message}"
        self.err.write((text if _can_encode(self.err) else _as_ascii(text, self.err)) + "\n")


def terminal() -> Terminal:
    """The terminal of this process."""
    is_terminal = sys.stdout.isatty()
    width: int | None = None
    if is_terminal or os.environ.get("COLUMNS", "").isdecimal():
        width = max(_MIN_WIDTH, shutil.get_terminal_size().columns)
    # https://no-color.org: set and not empty.
    asked_plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    painted = is_terminal and not asked_plain and _can_encode(sys.stdout) and _has_rich()
    return Terminal(sys.stdout, sys.stderr, width, painted)


def _has_rich() -> bool:
    return find_spec("rich") is not None


def _can_encode(stream: TextIO) -> bool:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return encoding.lower().replace("-", "").replace("_", "") in {"utf8", "utf16", "utf32", "utf8sig"}


def _as_ascii(text: str, stream: TextIO) -> str:
    encoding = getattr(stream, "encoding", None) or "ascii"
    return text.translate(_ASCII).encode(encoding, "backslashreplace").decode(encoding)


@contextmanager
def shown_progress(terminal: Terminal, what: str) -> Generator[ReportProgress | None]:
    """Something to report progress to. Shown on standard error, if that is a terminal and the work takes a while."""
    if not terminal.err.isatty():
        yield None
        return
    meter = _bar(terminal.err, what) if terminal.painted else _percentage(terminal.err, what)
    report = _later(meter)
    try:
        yield report
    finally:
        meter.close()


_Meter = Generator[None, Progress, None]
"""Is sent how far the work is, shows it, and wipes it out when it is closed."""


def _later(meter: _Meter) -> ReportProgress:
    """Starts a meter when the work has taken a while."""
    begin = time.monotonic()
    started = False

    def report(progress: Progress) -> None:
        nonlocal started
        if not started and time.monotonic() - begin < _DELAY_S:
            return
        if not started:
            next(meter)
            started = True
        meter.send(progress)

    return report


def _percentage(stream: TextIO, what: str) -> _Meter:
    text = ""
    shown_at = 0.0
    try:
        while True:
            progress = yield
            if time.monotonic() - shown_at > _INTERVAL_S:
                shown_at = time.monotonic()
                text = f"{what}: {100 * progress.done_nbytes // max(progress.total_nbytes, 1)} %"
                stream.write(f"\r{text}")
                stream.flush()
    finally:
        stream.write(f"\r{' ' * len(text)}\r")
        stream.flush()


def _bar(stream: TextIO, what: str) -> _Meter:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    progress = yield
    with Bar(*columns, console=Console(file=stream), transient=True) as bar:
        task = bar.add_task(what, total=progress.total_nbytes)
        while True:
            bar.update(task, completed=progress.done_nbytes)
            progress = yield
