"""Processes to break: what runs in them, how they are started, traced and killed.

They are forked from a server that has imported what they need, so that one costs some milliseconds, and wait for a
word before they begin, so that a tracer can be attached and several can begin at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import inspect
import itertools
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Self

import numpy as np

import pytreeckpt as ptc
from pytreeckpt.arrays import ArraySource, run_reader
from pytreeckpt.storage import LocalStorage
from tests.campaigns.trees import large_tree, tree
from tests.exact import difference

TREES: dict[str, Callable[[int], dict[str, Any]]] = {"small": tree, "large": large_tree}

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["numpy", "pytest", "pytreeckpt", "msgpack", "concurrent.futures.thread"])

BEGIN, END = "/pytreeckpt-begin", "/pytreeckpt-end"
"""Names that are looked up before and after a save, to be seen in a trace."""


class Child:
    """A process that calls `function(**arguments)` after `go` and reports what it returns.

    A function with a parameter `report` can report before that, by calling it.
    """

    def __init__(self, function: Callable[..., object], **arguments: object) -> None:
        self.connection, theirs = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=_run, args=(theirs, function, arguments), daemon=True)
        self.process.start()
        theirs.close()
        self.pid: int = self.received(60)

    def go(self) -> None:
        self.connection.send("go")

    def received(self, timeout_s: float = 120) -> Any:
        """What the process sends next; None if it ended without."""
        if not self.connection.poll(timeout_s):
            self.process.kill()
            raise TimeoutError("the process hangs")
        try:
            return self.connection.recv()
        except (EOFError, ConnectionResetError):
            return None

    def end(self) -> int | None:
        """Wait for the end; the exit code, or minus the number of the signal."""
        self.process.join(120)
        self.connection.close()
        return self.process.exitcode


def _run(connection: Any, function: Callable[..., object], arguments: dict[str, object]) -> None:
    with contextlib.suppress(OSError, AttributeError):
        # Where Yama restricts tracing: any process may trace this one.
        ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)
    if "report" in inspect.signature(function).parameters:
        arguments["report"] = connection.send
    connection.send(os.getpid())
    connection.recv()
    connection.send(function(**arguments))


def call(function: Callable[..., object], *, timeout_s: float = 120, **arguments: object) -> Any:
    """Call a function in a process of its own."""
    child = Child(function, **arguments)
    child.go()
    result = child.received(timeout_s)
    child.end()
    return result


# Saving and reading.


def open_descriptors() -> set[str]:
    return {each.name for each in Path("/proc/self/fd").iterdir()}


def outcome_of(do: Callable[[], object]) -> dict[str, Any]:
    """Do it; how it ended, as plain values: the error, and how many descriptors are open that were not before."""
    before = open_descriptors()
    result: dict[str, Any] = {"error": None, "bases": [], "errno": None, "message": ""}
    try:
        do()
    except BaseException as error:  # noqa: BLE001 - reported to the test
        result = {
            "error": type(error).__name__,
            "bases": [each.__name__ for each in type(error).__mro__],
            "errno": getattr(error, "errno", None),
            "message": str(error),
        }
    result["descriptors"] = len(open_descriptors() - before)
    return result


def save_once(
    path: str,
    *,
    seed: int = 2,
    kind: str = "small",
    threads: int = 1,
    if_exists: Any = "replace",
    durability: Any = "durable",
    file_limit: int | None = None,
    memory_limit: int | None = None,
    user: int | None = None,
    careless: bool = False,
) -> dict[str, Any]:
    """One save; how it ended. With limits on the size of files and on memory, or as another user, if asked for.

    `careless`: the file is written in place, as others do it.
    """
    os.environ["PYTREECKPT_THREADS"] = str(threads)
    value = TREES[kind](seed)
    # What is done once per process is not part of the save.
    ptc.encode(tree(0))
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    if memory_limit is not None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory_limit,) * 2)
    if user is not None:
        os.setgid(user)
        os.setuid(user)

    def save() -> None:
        os.access(BEGIN, os.F_OK)
        if careless:
            Path(path).write_bytes(ptc.encode(value))
        else:
            ptc.save(value, path, if_exists=if_exists, durability=durability)
        os.access(END, os.F_OK)

    return outcome_of(save)


def save_steps(
    path: str,
    *,
    kind: str,
    threads: int,
    durability: Any,
    if_exists: Any,
    first: int,
    report: Callable[[int], None],
    quiet: bool = False,
) -> None:
    """Save without end: the same path, or with `{step}` in it a path per step; report each step that is saved.

    `quiet`: without reporting, which stops the process when no one listens.
    """
    os.environ["PYTREECKPT_THREADS"] = str(threads)
    for step in itertools.count(first):
        ptc.save(TREES[kind](step), path.format(step=step), if_exists=if_exists, durability=durability)
        if not quiet:
            report(step)


def read_while_replaced(path: str, *, kind: str, n_steps: int, mmap: bool) -> dict[str, int]:
    """Read a checkpoint that others replace, until so many steps have been seen; how often it was read."""
    n_read = seen = last = 0
    while seen < n_steps:
        value = ptc.restore(path, mmap=mmap)
        found = difference(TREES[kind](value["step"]), value)
        if found is not None or value["step"] < last:
            raise AssertionError(f"after {n_read} reads, step {value['step']} after {last}: {found}")
        seen += value["step"] > last
        last = value["step"]
        n_read += 1
    return {"read": n_read, "last": last}


# Tracing.


def strace_missing() -> str | None:
    """Why processes cannot be traced here, or None."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    child = Child(os.getpid)
    try:
        with traced(child, Path(os.devnull), "-e", "trace=none"):
            child.go()
            child.received()
    except OSError as error:
        return str(error)
    finally:
        child.process.kill()
        child.end()
    return None


@contextlib.contextmanager
def traced(child: Child, log: Path, *options: str) -> Iterator[None]:
    """strace on a process that waits for `go`. Calls are counted from here on."""
    command = ["strace", "-f", "-o", str(log), *options, "-p", str(child.pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as tracer:
        assert tracer.stderr is not None
        line = tracer.stderr.readline()
        if "attached" not in line:
            raise OSError(f"strace cannot attach here: {line.strip()}")
        try:
            yield
            # It ends with the last process that it traces.
            child.process.join(60)
            tracer.wait(60)
        finally:
            tracer.kill()


_CALL = re.compile(r"^\d+ +(\w+)\((.*)$")


def calls_of_a_save(log: Path, **arguments: Any) -> list[tuple[str, int]]:
    """The system calls of a save: the name, and the how-manieth of that name since the tracer came."""
    child = Child(save_once, **arguments)
    with traced(child, log):
        child.go()
        assert child.received()["error"] is None
    child.end()
    counts: Counter[str] = Counter()
    found: list[tuple[str, int]] = []
    for line in log.read_text().splitlines():
        if (match := _CALL.match(line)) is None:
            continue
        name, rest = match.groups()
        counts[name] += 1
        if found or BEGIN in rest:
            found.append((name, counts[name]))
        if END in rest:
            return found
    raise AssertionError("the trace does not show the end of the save")


def injected(log: Path, injection: str, **arguments: Any) -> tuple[dict[str, Any] | None, int | None, str]:
    """A save with a system call that fails or kills: how it ended (None if killed), the exit code, and the trace."""
    child = Child(save_once, **arguments)
    name = injection.partition(":")[0]
    with traced(child, log, "-e", f"trace={name}", "-e", f"inject={injection}"):
        child.go()
        result = child.received()
    return result, child.end(), log.read_text()


# Forks.


class Staged:
    """An array of a framework that does not exist: its chunks are read by a function of ours."""

    def __init__(self, array: np.ndarray, before_reading: Callable[[], None]) -> None:
        self.array, self.before_reading = array, before_reading

    def source(self) -> ArraySource:
        read = run_reader(self.array)

        def staged(start: int, stop: int) -> np.ndarray:
            self.before_reading()
            return read(start, stop)

        return ArraySource(self.array.dtype, self.array.shape, (staged,))


def use_staged_arrays() -> None:
    """Let trees hold `Staged`."""

    def expand(value: object) -> ArraySource | None:
        return value.source() if isinstance(value, Staged) else None

    def not_asked(*_: object) -> Any:
        raise NotImplementedError

    # An adapter is active when its framework has been imported; `array` is as good as any.
    sys.modules.setdefault("array", sys)
    ptc.register_adapter(ptc.Adapter("array", expand, not_asked, not_asked, lambda _: None))


def save_and_fork(path: str, *, threads: int, where: str, then: str, careless: bool = False) -> dict[str, Any]:
    """Fork in the middle of a save, wait until the child is through, and go on. The child goes on too, exits or raises.

    Says how both ended. `where`: in "progress", or in "source", which reads a chunk (in a thread, if there are some).
    `careless`: no one asks whose save it is.
    """
    if careless:
        LocalStorage.own_stage = lambda self, temporary: self.stages[temporary]  # type: ignore[method-assign]
    os.environ["PYTREECKPT_THREADS"] = str(threads)
    use_staged_arrays()
    receive, send = os.pipe()
    parent = os.getpid()
    forks: list[int] = []

    def fork(*_: object) -> None:
        if forks:
            return
        forks.append(0)
        forks[0] = os.fork()
        if forks[0]:
            os.waitpid(forks[0], 0)
            return
        # In a thread of a pool, the child has nowhere to return to.
        signal.alarm(1)
        if then == "exit":
            os._exit(0)
        if then == "raise":
            raise SystemExit

    value = large_tree(2)
    value["w"] = Staged(value["w"], fork if where == "source" else lambda: None)
    result = outcome_of(lambda: ptc.save(value, path, progress=fork if where == "progress" else None))
    if os.getpid() != parent:
        os.write(send, str(result["error"]).encode())
        os._exit(0)
    os.close(send)
    result["forked"] = bool(forks)
    result["child"] = os.read(receive, 1000).decode()
    return result


# Interrupts.


class Interrupter:
    """Raises KeyboardInterrupt before the opcode with a number, counted in what is called under it."""

    def __init__(self, at: int, only_in: str = "") -> None:
        self.at, self.only_in, self.count = at, only_in, 0

    def __call__(self, frame: FrameType, event: str, _: object) -> Interrupter | None:
        if self.only_in not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.count += 1
            if self.count == self.at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self

    def __enter__(self) -> Self:
        sys.settrace(self)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)


def _reset(path: Path, old: bytes | None) -> set[str]:
    """Put the old file in its place, or none; the names and descriptors that there are."""
    for each in path.parent.iterdir():
        each.unlink()
    if old is not None:
        path.write_bytes(old)
    return open_descriptors()


def _left(path: Path, old: bytes | None, new: bytes, before: set[str], *, published: bool) -> str | None:
    """What is wrong with what a broken save has left, or None."""
    names = {each.name for each in path.parent.iterdir()} - {path.name}
    content = path.read_bytes() if path.exists() else None
    if content not in ({new} if published else {old, new}):
        return "neither the old nor the new checkpoint" if content is not None else "nothing is left"
    if names:
        return f"{sorted(names)} is left"
    if open_descriptors() - before:
        gc.collect()
        if open_descriptors() - before:
            return "a descriptor is open"
    return None


def interrupted_saves(
    path_: str, *, if_exists: Any, threads: int, first: int, stride: int, only_in: str = "", careless: bool = False
) -> dict[str, Any]:
    """Save again and again, interrupted at every `stride`th opcode in turn; the counts, and what was wrong.

    `careless`: no one cleans up.
    """
    if careless:
        LocalStorage.discard = lambda *_: None  # type: ignore[method-assign]
    os.environ["PYTREECKPT_THREADS"] = str(threads)
    path = Path(path_)
    value, new = tree(2), ptc.encode(tree(2))
    old = ptc.encode(tree(1)) if if_exists == "replace" else None
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    # Within `__del__`, Python reports an exception and goes on.
    sys.unraisablehook = lambda _: None
    for at in itertools.count(first, stride):
        before = _reset(path, old)
        interrupter = Interrupter(at, only_in)
        try:
            with interrupter:
                ptc.save(value, path, if_exists=if_exists)
            ended = "saved"
        except KeyboardInterrupt:
            ended = "interrupted"
        except Exception as error:  # noqa: BLE001 - counted
            ended = type(error).__name__
        found = _left(path, old, new, before, published=ended == "saved")
        if found is not None:
            wrong.append(f"opcode {at}: {ended}, {found}")
        counts[ended] += 1
        if interrupter.count < at:
            return {"opcodes": interrupter.count, "counts": dict(counts), "wrong": wrong}
    raise AssertionError("unreachable")


def signalled_saves(path_: str, *, threads: int, kind: str, n_saves: int, seed: int) -> dict[str, Any]:
    """Save again and again, with a SIGINT at a random time in each; the counts, and what was wrong."""
    os.environ["PYTREECKPT_THREADS"] = str(threads)
    path = Path(path_)
    value = TREES[kind](2)
    old, new = ptc.encode(TREES[kind](1)), ptc.encode(value)
    rng = np.random.default_rng(seed)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    longest = 0.05
    for number in range(n_saves):
        before = _reset(path, old)
        try:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, longest))
            report = ptc.save(value, path)
            signal.setitimer(signal.ITIMER_REAL, 0)
            ended = "saved"
            longest = report.elapsed_s * 1.2
        except KeyboardInterrupt:
            ended = "interrupted"
        signal.setitimer(signal.ITIMER_REAL, 0)
        found = _left(path, old, new, before, published=ended == "saved")
        if found is not None:
            wrong.append(f"save {number}: {ended}, {found}")
        counts[ended] += 1
    return {"counts": dict(counts), "wrong": wrong}


def starved_saves(path_: str, *, first: int, stride: int, report: Callable[[object], None]) -> str:
    """Save again and again; of the memory allocations of each, one fails, every `stride`th in turn.

    Reports its number before, and after the save how that ended and what was wrong; "done" when no more are met.
    """
    import _testcapi  # type: ignore[import-not-found]

    os.environ["PYTREECKPT_THREADS"] = "1"
    path = Path(path_)
    value, new, old = tree(2), ptc.encode(tree(2)), ptc.encode(tree(1))
    unharmed = 0
    at = first
    # The save is through when a failure of so late an allocation is met no more.
    while unharmed < 200 // stride + 2:
        report(at)
        before = _reset(path, old)
        ended = "saved"
        try:
            _testcapi.set_nomemory(at, at + 1)
            ptc.save(value, path)
        except MemoryError:
            ended = "MemoryError"
        except Exception as error:  # noqa: BLE001 - counted
            ended = type(error).__name__
        finally:
            _testcapi.remove_mem_hooks()
        report((ended, _left(path, old, new, before, published=ended == "saved")))
        unharmed = unharmed + 1 if ended == "saved" else 0
        at += stride
    return "done"


def save_under_signals(path: str, *, n_saves: int) -> dict[str, int]:
    """Save and restore while a signal comes every fraction of a millisecond; how many came."""
    n_signals = 0

    def count(*_: object) -> None:
        nonlocal n_signals
        n_signals += 1

    signal.signal(signal.SIGALRM, count)
    value = large_tree(2)
    expected = ptc.encode(value)
    signal.setitimer(signal.ITIMER_REAL, 2e-4, 2e-4)
    for _ in range(n_saves):
        ptc.save(value, path)
        if Path(path).read_bytes() != expected or difference(value, ptc.restore(path)) is not None:
            raise AssertionError("the file is not what it should be")
    signal.setitimer(signal.ITIMER_REAL, 0)
    return {"signals": n_signals}


# File systems of our own.


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


def save_on_a_small_disk(directory: str, *, read_only: bool) -> dict[str, Any]:
    """Mount a file system of 256 KiB for this process alone, save there what fits, and then what does not.

    `read_only`: what would fit, after making it read-only. {"skip": why} where mounting is not allowed.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace = 0x20000
    if libc.unshare(new_namespace) != 0:
        return {"skip": f"no mount namespace: {os.strerror(ctypes.get_errno())}"}
    try:
        _mount("--make-rprivate", "/")
        _mount("-t", "tmpfs", "-o", "size=256k", "none", directory)
    except (OSError, subprocess.CalledProcessError) as error:
        return {"skip": f"cannot mount: {error}"}
    path = Path(directory) / "x.ptck"
    ptc.save(tree(1), path)
    if read_only:
        _mount("-o", "remount,ro", directory)
    result = outcome_of(lambda: ptc.save(tree(2) if read_only else large_tree(2), path))
    result["names"] = [each.name for each in path.parent.iterdir()]
    result["old"] = difference(tree(1), ptc.restore(path)) is None
    return result
