"""Safe points: where the state of a training is whole, so that steps are saved and signals are obeyed there.

The law: a training that was told to end saves one step, the one that it is at, and what was begun before is finished;
then the process is left. One that fails saves what it has under another reason, never over a step, and the error that
it failed with is what is raised.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, Final, NoReturn, Protocol

from pytreeckpt.commit import IfExists
from pytreeckpt.run.interrupts import Interrupted, Watch, name_of
from pytreeckpt.saving import SaveHandle
from pytreeckpt.steps.records import Reason

State = Callable[[], tuple[int, object]]
"""Makes the number of the step that a training is at, and its tree."""

_log: Final = logging.getLogger("pytreeckpt")


class Steps(Protocol):
    """What safe points need of a manager."""

    @property
    def latest(self) -> int | None:
        """The newest step, but for those that an exception left."""
        ...

    def steps(self) -> list[int]:
        """All steps that are there."""
        ...

    def path(self, step: int) -> str:
        """Where a step is."""
        ...

    def should_save(self, step: int, *, metrics: Mapping[str, float] | None = None, epoch: float | None = None) -> bool:
        """Whether it is time."""
        ...

    def save(
        self,
        step: int,
        tree: object,
        *,
        metrics: Mapping[str, float] | None = None,
        metadata: object = None,
        epoch: float | None = None,
        blocking: bool = True,
        if_exists: IfExists = "error",
        reason: Reason = "scheduled",
    ) -> SaveHandle:
        """Save a step."""
        ...

    def wait(self) -> None:
        """Wait for what is saved in the background; raises what that raised."""
        ...


class Guards:
    """The guards that a manager is in, the innermost last, and the last error that came out of a safe point."""

    __slots__ = ("failure", "watches")

    def __init__(self) -> None:
        self.watches: list[Watch] = []
        self.failure: Exception | None = None

    @property
    def signum(self) -> int | None:
        """The signal that the innermost of them that has noted one has noted."""
        return next((watch.signum for watch in reversed(self.watches) if watch.signum is not None), None)

    def fail(self, error: Exception) -> None:
        """Saving failed with this error, which a guard will meet."""
        if self.watches:
            self.failure = error

    def pass_on(self, signum: int) -> None:
        """Tell of it whoever would have handled it."""
        for watch in reversed(self.watches):
            if watch.signum is not None:
                watch.pass_on(signum)
                return


def checkpoint(
    manager: Steps,
    guards: Guards,
    step: int,
    state: object,
    *,
    metrics: Mapping[str, float] | None,
    metadata: object,
    epoch: float | None,
    blocking: bool,
) -> SaveHandle | None:
    """Save the step if it is time; if a signal came, save it in any case, and raise `Interrupted`."""
    more: dict[str, Any] = {"metrics": metrics, "metadata": metadata, "epoch": epoch}
    try:
        handle = None
        if guards.signum is None and manager.should_save(step, metrics=metrics, epoch=epoch):
            # A step that is there is of an earlier process, which went on from before it to beyond it and failed, or
            # from which this one has gone back. This training is the one that counts; the file is replaced atomically.
            handle = manager.save(step, _made(state), blocking=blocking, if_exists="replace", **more)
        signum = guards.signum
        if signum is None:
            return handle
        message = _save_last(manager, step, lambda: _made(state), saved=handle is not None, **more)
    except Exception as error:
        guards.fail(error)
        raise
    raise _leaving(guards, signum, message)


@contextmanager
def guarded(manager: Steps, guards: Guards, state: State | None, signals: Iterable[int]) -> Generator[None]:
    """Note signals within, and save a step if an exception comes out. The end is a safe point, too."""
    watch = Watch(signals)
    watch.start()
    guards.watches.append(watch)
    try:
        yield
        if watch.signum is not None and not any(outer.signum for outer in guards.watches if outer is not watch):
            # Otherwise it is for a guard around this one to obey.
            _end(manager, guards, watch.signum, state)
    except Exception as error:
        # A forked child has no part in the training.
        if state is not None and watch.pid == os.getpid():
            error.add_note(_emergency(manager, guards, state, error))
        if watch.signum is not None:
            error.add_note(f"{name_of(watch.signum)} had come before, to end the process")
        raise
    finally:
        guards.failure = None
        try:
            watch.stop()
        finally:
            guards.watches.remove(watch)
    if watch.signum is not None and guards.signum is None:
        # It came after the last look, and nobody else would know of it.
        _end(manager, guards, watch.signum, state)


def _end(manager: Steps, guards: Guards, signum: int, state: State | None) -> NoReturn:
    try:
        if state is None:
            manager.wait()
            message = f"no step was saved, since the guard has no state; the newest is {manager.latest}"
        else:
            step, tree = _numbered(state)
            message = _save_last(manager, step, lambda: tree, saved=False)
    except Exception as error:
        guards.fail(error)
        raise
    raise _leaving(guards, signum, message)


def _save_last(manager: Steps, step: int, tree: Callable[[], object], *, saved: bool, **more: Any) -> str:
    """Finish what was begun, and save the step unless it is the newest already; a line that tells of it."""
    if saved:
        manager.wait()
        return f"step {step} was saved, as {manager.path(step)}"
    earlier = _finish(manager)
    if manager.latest == step:
        return f"step {step} was there already, as {manager.path(step)}{earlier}"
    manager.save(step, tree(), reason="interrupt", if_exists="replace", **more)
    return f"step {step} was saved, as {manager.path(step)}{earlier}"


def _finish(manager: Steps) -> str:
    """Wait for what is saved in the background. What failed there does not keep a later step from being saved."""
    try:
        manager.wait()
    except Exception as error:  # noqa: BLE001 - it is told of, beside what becomes of the later step
        return f" (an earlier save had failed: {type(error).__name__}: {error})"
    return ""


def _leaving(guards: Guards, signum: int, message: str) -> Interrupted:
    """What to leave the process with, unless an earlier handler of the signal leaves it."""
    text = f"{name_of(signum)} came: {message}"
    # Python says nothing when a process is left so.
    _log.warning("%s", text)
    guards.pass_on(signum)
    return Interrupted(signum, text)


def _emergency(manager: Steps, guards: Guards, state: State, error: Exception) -> str:
    """Save a step if that can be done, and tell what was."""
    if error is guards.failure:
        return "no emergency step was saved, since it is saving that failed"
    try:
        # What is saved in the background may be this very step.
        earlier = _finish(manager)
        step, tree = _numbered(state)
        if step in manager.steps():
            return f"no emergency step was saved, since step {step} was there already, as {manager.path(step)}{earlier}"
        manager.save(step, tree, reason="exception")
    except Exception as failure:  # noqa: BLE001 - the error of the training is the one to raise, and this one its note
        return f"no emergency step was saved: {type(failure).__name__}: {failure}"
    return (
        f"an emergency step was saved, step {step}, as {manager.path(step)}: look into it before going on from it. "
        f'restore("latest") does not take it, restore({step}) does{earlier}'
    )


def _made(state: object) -> object:
    """The tree: `state` itself, or what it makes. Objects that can be called, as modules can, are trees."""
    if isinstance(state, FunctionType | MethodType | BuiltinFunctionType | functools.partial):
        return state()
    return state


def _numbered(state: State) -> tuple[int, object]:
    """What the function that was given to a guard makes."""
    made: object = state()
    if isinstance(made, tuple) and len(made) == 2:
        return made
    raise TypeError(
        f"the function that was given to guard() makes a {type(made).__name__}; it has to make a tuple of a step's "
        "number and a tree"
    )
