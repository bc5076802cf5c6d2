"""What a save in the background came to, for whoever asks. An error is told once, to someone: to who asks for the
result, else to who saves next, else on stderr when the interpreter ends.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from typing import Final

from pytreeckpt.api import SaveReport
from pytreeckpt.errors import PytreeckptError

_untold: Final[dict[int, SaveHandle]] = {}
"""Those that failed, by id, until somebody was told. They are kept alive for it."""


class SaveHandle:
    """A save that is being made, or was. `path`: where the checkpoint goes."""

    __slots__ = ("_maker", "_outcome", "_running", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        # A lock that is held until it has ended. Unlike an Event, which has Python within, it can also be waited for by
        # the handler of a signal that comes in the middle of waiting for it.
        self._running = threading.Lock()
        self._running.acquire()
        self._maker: int | None = None
        self._outcome: SaveReport | BaseException | None = None

    def __repr__(self) -> str:
        if isinstance(self._outcome, BaseException):
            return f"<SaveHandle of {self.path}: {type(self._outcome).__name__}>"
        return f"<SaveHandle of {self.path}: {'saved' if self.done() else 'being saved'}>"

    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self._outcome is not None

    def result(self, timeout: float | None = None) -> SaveReport:
        """Wait until it has ended, at most `timeout` seconds, and say what was written.

        Raises `TimeoutError`, while the save goes on, and what the save raised; each time that it is asked. Raises
        `RuntimeError` in the `progress` of the save itself.
        """
        self._wait_or_raise(timeout)
        _untold.pop(id(self), None)
        if isinstance(self._outcome, SaveReport):
            return self._outcome
        raise self._outcome if self._outcome is not None else AssertionError("finished without an outcome")

    def raise_untold(self, timeout: float | None = None) -> None:
        """Wait as `result`, and raise what the save raised, if nobody was told."""
        self._wait_or_raise(timeout)
        # Of several threads that ask at once, one is told.
        if _untold.pop(id(self), None) is not None and isinstance(self._outcome, BaseException):
            self._outcome.add_note(f"It is the save of {self.path}, in the background, that raised this.")
            raise self._outcome

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has ended, at most `timeout` seconds, and say whether it has. An error stays untold. Raises
        `RuntimeError` as `result`.
        """
        self.refuse_maker()
        if self.done():
            return True
        if timeout is None:
            # Not `acquire`, after which an interrupt would leave it held.
            with self._running:
                pass
        elif self._running.acquire(timeout=min(max(timeout, 0), threading.TIMEOUT_MAX)):
            self._running.release()
        return self.done()

    def _wait_or_raise(self, timeout: float | None) -> None:
        if not self.wait(timeout):
            raise TimeoutError(f"{self.path} was not saved within {timeout} s; the save goes on")

    def refuse_maker(self) -> None:
        """Raise `RuntimeError` in the thread that makes the save, which would wait for itself."""
        if self._maker == threading.get_ident() and not self.done():
            raise RuntimeError(
                f"the save of {self.path} cannot wait for itself: ask for its result, or begin the next one, outside "
                "of its `progress`"
            )

    @property
    def was_interrupted(self) -> bool:
        """Whether it was ended by what ends a program, such as a KeyboardInterrupt."""
        return isinstance(self._outcome, BaseException) and not isinstance(self._outcome, Exception)

    def begin(self) -> None:
        """For who makes the save: this thread does so."""
        self._maker = threading.get_ident()

    def finish(self, outcome: SaveReport | BaseException) -> None:
        """For who makes the save: it has ended like this."""
        if isinstance(outcome, BaseException):
            _untold[id(self)] = self
        self._outcome = outcome
        self._running.release()

    def lose(self) -> None:
        """For who makes the save: this process was forked meanwhile, and it is its parent's."""
        self._outcome = PytreeckptError(
            f"this process was forked while its parent was saving {self.path}: only the parent knows what became of it"
        )
        self._running.release()


def finished(path: str, outcome: SaveReport | BaseException) -> SaveHandle:
    """The handle of a save that has ended already."""
    handle = SaveHandle(path)
    handle.finish(outcome)
    return handle


def _tell() -> None:
    """Tell of what failed and nobody has asked about: nobody will."""
    while _untold:
        _, handle = _untold.popitem()
        try:
            handle.result()
        except BaseException as error:  # noqa: BLE001 - it is told of here, whatever it is
            text = f"pytreeckpt: {handle.path} was not saved: {type(error).__name__}: {error}"
            # A program may have closed it, or never had it.
            if sys.stderr is not None:
                print(text, file=sys.stderr)  # noqa: T201 - there is no one else left to tell


# By then the threads that save have ended: the interpreter waits for them before it does this.
atexit.register(_tell)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_untold.clear)
