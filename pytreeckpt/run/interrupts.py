"""Signals that tell a training to end: noted when they come, obeyed where its state is whole.

The law: a handler takes down what came and nothing else, so that it may come anywhere, also in the middle of a save or
of an optimizer's step. What has to be done is done by the program, at its next safe point, and until then nothing that
follows from the signal comes in between. Only the second SIGINT is obeyed where it comes, by a KeyboardInterrupt.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, Final

Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None
"""What `signal.getsignal` returns."""

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
"""How schedulers, spot instances and containers end a process, and how a person at a terminal does."""


class Interrupted(SystemExit):
    """A signal told the process to end, which it does with the usual status, 128 + `signum`: 143 for SIGTERM, 130 for
    SIGINT. As for any SystemExit, finally-blocks, with-blocks and atexit run.

    `signum`: the signal that came first. `message`: what was saved.
    """

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(128 + signum)
        self.signum = signum
        self.message = message

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.signum, self.message)


class Watch:
    """Handlers for some signals, from `start` to `stop`.

    `pid`: the process that they are of. Watches nest: a signal is noted by all that are there for it.

    Ignored signals stay ignored, as for a program that runs under nohup. A handler of Python's that was there before
    is not called when the signal comes, since it might leave the program there; `pass_on` is for when all is saved.
    """

    __slots__ = ("_first", "_muted", "_n_sigint", "_previous", "_put_off", "_running", "_settling", "_signals", "pid")

    def __init__(self, signals: Iterable[int]) -> None:
        self._signals = tuple(dict.fromkeys(map(_checked, signals)))
        self._previous: dict[int, Handler] = {}
        self.pid = os.getpid()
        self._running = False
        self._n_sigint = 0
        self._muted: Handler = None
        # No exception may come between the changes of two handlers: it is put off until all are changed.
        self._settling = False
        self._put_off = False
        self._first: int | None = None

    @property
    def signum(self) -> int | None:
        """The signal that came first, or None. What came before a fork is for the parent to obey, not for the child."""
        return self._first if os.getpid() == self.pid else None

    def start(self) -> None:
        """Install the handlers. Raises `RuntimeError` outside of the main thread, and `ValueError` for a signal with a
        handler that Python could not put back.
        """
        if not self._signals:
            return
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError(
                f"signals can only be handled in the main thread, and this is {threading.current_thread().name}: "
                "enter the guard there, or give it signals=()"
            )
        for signum in self._signals:
            if signal.getsignal(signum) is None:
                raise ValueError(
                    f"{name_of(signum)} has a handler that was not installed by Python, and could not be put back: "
                    "leave it out of signals="
                )
        self.pid = os.getpid()
        self._running = self._settling = True
        try:
            for signum in self._signals:
                previous = signal.getsignal(signum)
                if previous != signal.SIG_IGN:
                    self._previous[signum] = previous
                    signal.signal(signum, self._receive)
        except BaseException:
            self.stop()
            raise
        self._settle()

    def stop(self) -> None:
        """Put the earlier handlers back, but where another has taken our place in the meantime."""
        self._settling = True
        if self._muted is not None and signal.getsignal(signal.SIGCHLD) is _do_nothing:
            signal.signal(signal.SIGCHLD, self._muted)
        self._muted = None
        # SIGINT comes last: its earlier handler may raise.
        for signum in sorted(self._previous, key=lambda each: each == signal.SIGINT):
            if signal.getsignal(signum) == self._receive:
                signal.signal(signum, self._previous[signum])
        self._running = False
        self._settle()

    def pass_on(self, signum: int) -> None:
        """Tell of the signal the handler that was there before, if that was a function. What it raises passes."""
        previous = self._previous.get(signum)
        outer = getattr(previous, "__self__", None)
        if isinstance(outer, Watch):
            outer.pass_on(signum)
        elif callable(previous) and previous is not signal.default_int_handler:
            previous(signum, None)

    def _settle(self) -> None:
        self._settling = False
        if self._put_off:
            self._put_off = False
            raise KeyboardInterrupt

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self.pid:
            self._receive_in_child(signum, frame)
        elif not self._running:
            # Whoever took our place calls us as the handler that was there before.
            self._hand_back(signum, frame)
        else:
            self.note(signum)
            self._mute_children()
            if signum == signal.SIGINT and self._n_sigint > 1:
                if not self._settling:
                    raise KeyboardInterrupt
                self._put_off = True

    def note(self, signum: int) -> None:
        """Take down that a signal came, here and in the watches around this one."""
        if self._first is None:
            self._first = signum
        if signum == signal.SIGINT:
            self._n_sigint += 1
        outer = getattr(self._previous.get(signum), "__self__", None)
        if isinstance(outer, Watch):
            outer.note(signum)

    def _mute_children(self) -> None:
        """Workers that got the same signal end, too, and torch's DataLoader would raise then, anywhere."""
        before = signal.getsignal(signal.SIGCHLD)
        if callable(before) and before is not _do_nothing:
            self._muted = before
            signal.signal(signal.SIGCHLD, _do_nothing)

    def _receive_in_child(self, signum: int, frame: FrameType | None) -> None:
        """A forked child, such as a worker that loads data, has our handlers, and no state to save.

        SIGTERM is how its parent ends it. What a terminal or a scheduler sends to a whole group of processes is left to
        the parent, which needs its workers until the safe point; a second SIGINT is obeyed here, too.
        """
        if signum == signal.SIGTERM:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        elif signum == signal.SIGINT:
            self._n_sigint += 1
            if self._n_sigint > 1:
                signal.default_int_handler(signum, frame)

    def _hand_back(self, signum: int, frame: FrameType | None) -> None:
        previous = self._previous.get(signum)
        if callable(previous):
            previous(signum, frame)
        elif previous == signal.SIG_DFL:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)


def _do_nothing(_signum: int, _frame: FrameType | None) -> None:
    pass


def name_of(signum: int) -> str:
    """SIGTERM, or what else it is."""
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"


def _checked(signum: int) -> int:
    if signum not in signal.valid_signals():
        raise ValueError(f"{signum!r} is no signal of this system; signals are those of the module signal")
    if signum in {signal.SIGKILL, signal.SIGSTOP}:
        raise ValueError(f"{name_of(signum)} cannot be handled by any program: leave it out of signals=")
    return int(signum)
