"""Faults on a real file system: killed at every system call, refused by every system call, interrupted at every opcode,
starved, forked, raced.

What must hold: the path holds exactly the old checkpoint or exactly the new one; a save that raises has left neither a
temporary file nor a descriptor; the error is one of ours and keeps the system's number.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import pytreeckpt as ptc
from tests.campaigns.fault_processes import (
    TREES,
    Child,
    call,
    calls_of_a_save,
    injected,
    interrupted_saves,
    read_while_replaced,
    save_and_fork,
    save_on_a_small_disk,
    save_once,
    save_steps,
    save_under_signals,
    signalled_saves,
    starved_saves,
    strace_missing,
)
from tests.campaigns.trees import large_tree, tree
from tests.exact import difference

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="system calls are traced and counted on Linux")

ROOT = Path(__file__).parents[2]
OLD_FILE, NEW_FILE = ptc.encode(tree(1)), ptc.encode(tree(2))


def slowly(*values):
    """Parameters for the slow campaign alone."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def strace():
    missing = strace_missing()
    if missing is not None:
        pytest.skip(f"no system call can be made to fail or kill: {missing}")


@pytest.fixture
def folder(tmp_path):
    """A directory for checkpoints alone, so that whatever else is in it was left behind."""
    path = tmp_path / "run"
    path.mkdir()
    return path


def put_old(path: Path) -> None:
    path.write_bytes(OLD_FILE)


def holds(path: Path) -> str:
    """What reading the path gives: "old", "new" or "nothing"; an error if it is anything else."""
    try:
        value = ptc.restore(path)
    except ptc.CheckpointNotFoundError:
        return "nothing"
    name, expected = {1: ("old", tree(1)), 2: ("new", tree(2))}[value["step"]]
    assert difference(expected, value) is None
    return name


def names(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir()}


# Killed at every system call.

# The first of each kind that matters, for the normal suite.
SAMPLE = [
    ("openat", 0),
    ("write", 0),
    ("writev", 0),
    ("fsync", 0),
    ("close", 0),
    ("rename", 0),
    ("linkat", 0),
    ("unlink", 0),
]


def positions(calls: list[tuple[str, int]], sample: bool) -> list[tuple[str, int]]:
    if not sample:
        return calls
    first: dict[str, tuple[str, int]] = {}
    for name, at in calls:
        first.setdefault(name, (name, at))
    return [first[name] for name, _ in SAMPLE if name in first]


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("if_exists", ["replace", "error"])
@pytest.mark.parametrize("sample", [True, slowly(False)], ids=["sample", "every call"])
def test_killed_at_a_system_call_a_save_leaves_the_old_checkpoint_or_the_new_one(
    sample, if_exists, folder, tmp_path, record_property
):
    log = tmp_path / "trace"
    calls = calls_of_a_save(log, path=str(folder / "counted.ptck"), if_exists=if_exists)
    verdicts: Counter[str] = Counter()
    old = "old" if if_exists == "replace" else "nothing"
    cases = positions(calls, sample)
    for number, (name, at) in enumerate(cases):
        # A directory for each, as in each at most one temporary file may be left.
        path = folder / str(number) / "new.ptck"
        path.parent.mkdir()
        (path.parent / "other.ptck").write_bytes(OLD_FILE)
        if if_exists == "replace":
            put_old(path)
        result, code, trace = injected(log, f"{name}:signal=KILL:when={at}", path=str(path), if_exists=if_exists)
        assert (result, code) == (None, -9), trace
        verdict = holds(path)
        assert verdict in {old, "new"}
        verdicts[verdict] += 1
        assert (path.parent / "other.ptck").read_bytes() == OLD_FILE
        assert len(names(path.parent) - {"new.ptck", "other.ptck"}) <= 1
        # What was left does not stand in the way of the next save.
        ptc.save(tree(2), path)
        assert holds(path) == "new"
    record_property(
        "campaign",
        f'killed at {"each of " if not sample else ""}{len(cases)} system calls of a save, if_exists="{if_exists}": '
        + ", ".join(f"{n} {verdict}" for verdict, n in sorted(verdicts.items())),
    )
    assert verdicts[old] >= 3
    assert verdicts["new"] >= 1 or sample


def kill_later(child: Child, delay_s: float) -> int:
    """Let the process save, and kill it some time after its first save; the last step that it reported."""
    child.go()
    last: int = child.received()
    time.sleep(delay_s)
    child.process.kill()
    while (reported := child.received()) is not None:
        last = reported
    assert child.end() == -9
    return last


@pytest.mark.parametrize("kind", ["small", "large"])
@pytest.mark.parametrize("durability", ["durable", "atomic"])
@pytest.mark.parametrize("n_kills", [3, slowly(60)])
def test_killed_at_random_a_loop_of_saves_loses_nothing_that_was_acknowledged(
    n_kills, durability, kind, folder, record_property
):
    rng = random.Random(n_kills)
    path = folder / "x.ptck"
    acknowledged = unacknowledged = 0
    step = 1
    for _ in range(n_kills):
        child = Child(
            save_steps,
            path=str(path),
            kind=kind,
            threads=rng.choice([1, 2]),
            durability=durability,
            if_exists="replace",
            first=step,
        )
        last = kill_later(child, rng.uniform(0, 0.02 if kind == "small" else 0.1))
        value = ptc.restore(path)
        assert difference(TREES[kind](value["step"]), value) is None
        assert value["step"] in {last, last + 1}
        acknowledged += last - step + 1
        unacknowledged += value["step"] == last + 1
        step = value["step"] + 1
    record_property(
        "campaign",
        f"{n_kills} random kills, {kind}, {durability}: {acknowledged} acknowledged saves, none lost; "
        f"{unacknowledged} times the save in flight was already visible",
    )


@pytest.mark.parametrize("n_kills", [3, slowly(40)])
def test_killed_at_random_every_acknowledged_step_is_there_whole(n_kills, folder):
    rng = random.Random(n_kills)
    first = 1
    for _ in range(n_kills):
        child = Child(
            save_steps,
            path=str(folder / "{step}.ptck"),
            kind="small",
            threads=1,
            durability="durable",
            if_exists="error",
            first=first,
        )
        last = kill_later(child, rng.uniform(0, 0.02))
        for step in range(first, last + 1):
            assert difference(tree(step), ptc.restore(folder / f"{step}.ptck")) is None
        # The one in flight is there whole, or not at all.
        if (folder / f"{last + 1}.ptck").exists():
            last += 1
            assert difference(tree(last), ptc.restore(folder / f"{last}.ptck")) is None
        first = last + 1
    assert first > n_kills


@pytest.mark.usefixtures("strace")
def test_the_campaign_notices_a_save_that_overwrites(folder, tmp_path):
    # A check that cannot fail is none: a file that is written in place is torn by some of these kills.
    path = folder / "x.ptck"
    calls = calls_of_a_save(tmp_path / "trace", path=str(path), careless=True)
    damaged = 0
    for name, at in positions(calls, sample=True):
        put_old(path)
        injected(tmp_path / "trace", f"{name}:signal=KILL:when={at}", path=str(path), careless=True)
        damaged += not ptc.verify(path).ok
    assert damaged


# Refused by a system call.

FAILING_CALLS = ("openat", "writev", "fsync", "close", "rename", "linkat", "unlink", "mkdir")


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("if_exists", ["replace", "error"])
@pytest.mark.parametrize(
    "fault", [("ENOSPC", "small"), *(slowly((each, "large")) for each in ("ENOSPC", "EIO", "EDQUOT", "EROFS"))], ids=str
)
def test_an_error_of_any_system_call_is_a_typed_error_and_leaves_no_trace(
    fault, if_exists, folder, tmp_path, record_property
):
    number, kind = fault
    log = tmp_path / "trace"
    nested = "a/b/new.ptck"
    calls = calls_of_a_save(log, path=str(folder / "counted" / nested), if_exists=if_exists, kind=kind)
    cases = [(name, at) for name, at in calls if name in FAILING_CALLS]
    expected = {"openat": 4, "writev": 1 if kind == "small" else 3, "fsync": 4, "close": 4, "mkdir": 3}
    kinds = Counter(name for name, _ in cases)
    assert all(kinds[name] >= n for name, n in expected.items()), kinds
    assert kinds["rename"] + kinds["linkat"] == 1
    ended: Counter[str] = Counter()
    for n_case, (name, at) in enumerate(cases):
        path = folder / f"case {n_case:03}" / nested
        before = names(folder)
        result, code, trace = injected(
            log, f"{name}:error={number}:when={at}", path=str(path), if_exists=if_exists, kind=kind
        )
        assert code == 0
        assert result is not None
        assert "(INJECTED)" in trace
        assert {"StorageError", "PytreeckptError", "OSError"} <= set(result["bases"]), result
        assert result["errno"] == getattr(errno, number)
        # strace answers close in place of the kernel, so that one stays open in truth.
        assert result["descriptors"] == (1 if name == "close" else 0)
        left = {each.name for each in path.parent.iterdir()} if path.parent.exists() else set()
        if result["error"] == "NotDurableError":
            assert left == {"new.ptck"}
            assert difference(TREES[kind](2), ptc.restore(path)) is None
        else:
            assert left == set()
        assert names(folder) - before <= {f"case {n_case:03}"}
        ended[result["error"]] += 1
        if name == "fsync":
            # A failing fsync is not tried again on that descriptor: once the pages are dropped, it would succeed.
            after = trace.split("(INJECTED)", 1)[1]
            assert "fsync(" not in after
    record_property(
        "campaign",
        f'{number} at each of {len(cases)} calls ({", ".join(kinds)}), if_exists="{if_exists}": '
        + ", ".join(f"{n} {error}" for error, n in sorted(ended.items())),
    )
    # Only what comes after the publishing leaves the new checkpoint visible.
    assert set(ended) == {"StorageError", "NotDurableError"}


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("number", ["EIO", "ENOSPC", "EDQUOT"])
@pytest.mark.parametrize("name", ["writev", "fsync", "close", "rename"])
def test_a_failing_replacement_leaves_the_old_checkpoint_and_nothing_else(name, number, folder, tmp_path):
    path = folder / "x.ptck"
    put_old(path)
    calls = calls_of_a_save(tmp_path / "trace", path=str(tmp_path / "counted.ptck"))
    at = next(at for each, at in calls if each == name)
    result, _, _ = injected(tmp_path / "trace", f"{name}:error={number}:when={at}", path=str(path))
    assert result is not None
    assert (result["error"], result["errno"]) == ("StorageError", getattr(errno, number))
    assert str(path) in result["message"]
    assert os.strerror(result["errno"]) in result["message"]
    assert names(folder) == {"x.ptck"}
    assert holds(path) == "old"


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("name", ["mmap", "brk", "munmap", "mremap"])
def test_when_the_system_gives_no_memory_the_old_checkpoint_stays(name, folder, tmp_path):
    path = folder / "x.ptck"
    put_old(path)
    result, code, _ = injected(tmp_path / "trace", f"{name}:error=ENOMEM:when=1+", path=str(path), kind="large")
    # The interpreter may give up before it can say anything; the file system must not notice.
    if result is None or result["error"] is not None:
        assert holds(path) == "old"
        assert code is not None
        assert names(folder) == {"x.ptck"} or result is None
    else:
        assert difference(large_tree(2), ptc.restore(path)) is None
        assert names(folder) == {"x.ptck"}


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("number", ["EPERM", "EOPNOTSUPP", "ENOSYS"])
def test_a_file_system_without_hard_links_is_told_apart_and_named(number, folder, tmp_path):
    path = folder / "x.ptck"
    result, _, _ = injected(tmp_path / "trace", f"linkat:error={number}:when=1", path=str(path), if_exists="error")
    assert result is not None
    assert result["error"] == "StorageError"
    assert result["errno"] == getattr(errno, number)
    assert "no hard links" in result["message"]
    assert 'if_exists="replace"' in result["message"]
    assert names(folder) == set()


# Full and read-only disks, limits, permissions.


@pytest.mark.parametrize("read_only", [False, True], ids=["full", "read-only"])
def test_on_a_disk_that_is_full_or_read_only_the_old_checkpoint_stays(read_only, folder):
    result = call(save_on_a_small_disk, directory=str(folder), read_only=read_only)
    if "skip" in result:
        pytest.skip(result["skip"])
    assert result["error"] == "StorageError"
    assert result["errno"] == (errno.EROFS if read_only else errno.ENOSPC)
    assert result["names"] == ["x.ptck"]
    assert result["old"]
    assert result["descriptors"] == 0


@pytest.mark.parametrize("threads", [1, 2])
def test_at_the_limit_of_file_sizes_the_old_checkpoint_stays(threads, folder):
    path = folder / "x.ptck"
    put_old(path)
    result = call(save_once, path=str(path), kind="large", threads=threads, file_limit=1_000_000)
    assert (result["error"], result["errno"], result["descriptors"]) == ("StorageError", errno.EFBIG, 0)
    assert names(folder) == {"x.ptck"}
    assert holds(path) == "old"


@pytest.mark.parametrize("if_exists", ["replace", "error"])
def test_without_permission_a_save_says_so_and_changes_nothing(if_exists):
    # Not below pytest's folder, which another user cannot enter.
    folder = Path(tempfile.mkdtemp())
    nobody = 65534
    try:
        path = folder / "x.ptck"
        if if_exists == "replace":
            put_old(path)
        before = names(folder)
        folder.chmod(0o555)
        user = nobody if os.geteuid() == 0 else None
        result = call(save_once, path=str(path), if_exists=if_exists, user=user)
        assert (result["error"], result["errno"], result["descriptors"]) == ("StorageError", errno.EACCES, 0)
        assert names(folder) == before
        nested = call(save_once, path=str(folder / "a" / "x.ptck"), if_exists=if_exists, user=user)
        assert (nested["error"], nested["errno"]) == ("StorageError", errno.EACCES)
        assert names(folder) == before
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_an_immutable_directory_is_an_error_even_for_root(folder):
    path = folder / "x.ptck"
    put_old(path)
    chattr = shutil.which("chattr")
    if chattr is None or subprocess.run([chattr, "+i", folder], capture_output=True, check=False).returncode:
        pytest.skip("directories cannot be made immutable here")
    try:
        with pytest.raises(ptc.StorageError) as error:
            ptc.save(tree(2), path)
    finally:
        subprocess.run([chattr, "-i", folder], check=True)
    assert error.value.errno == errno.EPERM
    assert names(folder) == {"x.ptck"}
    assert holds(path) == "old"


def test_a_directory_that_is_removed_while_saving_is_an_error(folder):
    with pytest.raises(ptc.StorageError) as error:
        ptc.save(large_tree(2), folder / "x.ptck", progress=lambda _: shutil.rmtree(folder, ignore_errors=True))
    assert error.value.errno == errno.ENOENT
    assert not folder.exists()


# Short writes and reads, signals, a close that fails.

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

int shim_count = 0;
static unsigned state = 1;

static unsigned number(void) { state = state * 1103515245u + 12345u; return state >> 8; }

static int regular(int fd) {
    struct stat status;
    return fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && getenv("SHIM") != NULL;
}

static int interrupted(void) { shim_count++; if (number() % 4) return 0; errno = EINTR; return 1; }

#define REAL(name, type) static __typeof__(type) *real; if (!real) real = (__typeof__(type) *)dlsym(RTLD_NEXT, name)

ssize_t writev(int fd, const struct iovec *parts, int n) {
    struct iovec part = parts[0];
    REAL("writev", ssize_t(int, const struct iovec *, int));
    if (!regular(fd)) return real(fd, parts, n);
    if (interrupted()) return -1;
    if (part.iov_len > 1) part.iov_len = 1 + number() % part.iov_len;
    return real(fd, &part, 1);
}

static ssize_t shortened(int fd, const struct iovec *parts, off64_t offset) {
    struct iovec part = parts[0];
    if (part.iov_len > 1) part.iov_len = 1 + number() % part.iov_len;
    REAL("preadv64", ssize_t(int, const struct iovec *, int, off64_t));
    return real(fd, &part, 1, offset);
}

ssize_t preadv64v2(int fd, const struct iovec *parts, int n, off64_t offset, int flags) {
    if (regular(fd)) { if (interrupted()) return -1; return shortened(fd, parts, offset); }
    REAL("preadv64v2", ssize_t(int, const struct iovec *, int, off64_t, int));
    return real(fd, parts, n, offset, flags);
}

ssize_t preadv64(int fd, const struct iovec *parts, int n, off64_t offset) {
    if (regular(fd)) { if (interrupted()) return -1; return shortened(fd, parts, offset); }
    REAL("preadv64", ssize_t(int, const struct iovec *, int, off64_t));
    return real(fd, parts, n, offset);
}

ssize_t preadv2(int fd, const struct iovec *parts, int n, off_t offset, int flags) {
    return preadv64v2(fd, parts, n, offset, flags);
}

ssize_t preadv(int fd, const struct iovec *parts, int n, off_t offset) { return preadv64(fd, parts, n, offset); }

int fsync(int fd) {
    REAL("fsync", int(int));
    if (regular(fd) && interrupted()) return -1;
    return real(fd);
}

int close(int fd) {
    REAL("close", int(int));
    const char *fail = getenv("SHIM_CLOSE");
    int written = (fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY;
    int hit = fail && *fail && written && regular(fd);
    int result = real(fd);
    if (hit) { shim_count++; errno = atoi(fail); return -1; }
    return result;
}
"""

UNDER_SHIM = """
import ctypes, os, sys
import pytreeckpt as ptc
from tests.campaigns.fault_processes import outcome_of
from tests.campaigns.trees import large_tree, tree
from tests.exact import difference
path, close_errno = sys.argv[1:]
count = ctypes.c_int.in_dll(ctypes.CDLL(None), "shim_count")
expected = [ptc.encode(make(2)) for make in (tree, large_tree)]
os.environ["SHIM"] = "1"
if close_errno:
    os.environ["SHIM_CLOSE"] = close_errno
    result = outcome_of(lambda: ptc.save(tree(2), path))
    del os.environ["SHIM_CLOSE"]
    print(result["error"], result["errno"], result["descriptors"], count.value)
    sys.exit()
for round in range(3):
    for make, data in zip((tree, large_tree), expected):
        ptc.save(make(2), path)
        with open(path, "rb") as file:
            assert file.read() == data
        assert difference(make(2), ptc.restore(path)) is None
        assert ptc.verify(path).ok
print(count.value)
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make the shim with")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(SHIM)
    library = folder / "shim.so"
    made = subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", library, folder / "shim.c", "-ldl"],
        capture_output=True,
        check=False,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    return library


def under_shim(shim: Path, path: Path, close_errno: int | None) -> str:
    done = subprocess.run(
        [sys.executable, "-B", "-c", UNDER_SHIM, str(path), str(close_errno or "")],
        env={**os.environ, "LD_PRELOAD": str(shim), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_short_writes_short_reads_and_interrupted_calls_change_no_byte(shim, folder, record_property):
    n_faults = int(under_shim(shim, folder / "x.ptck", None))
    record_property("campaign", f"{n_faults} writes, reads and fsyncs cut short or interrupted: no byte changed")
    assert n_faults > 500
    assert names(folder) == {"x.ptck"}


@pytest.mark.parametrize("number", [errno.EIO, errno.EDQUOT, errno.ENOSPC, errno.EINTR])
def test_a_close_that_fails_is_an_error_and_the_descriptor_is_gone(number, shim, folder):
    # Unlike strace's, this close closes.
    put_old(folder / "x.ptck")
    error, found, descriptors, n_faults = under_shim(shim, folder / "x.ptck", number).split()
    assert (error, int(found), int(descriptors)) == ("StorageError", number, 0)
    assert int(n_faults) >= 1
    assert names(folder) == {"x.ptck"}
    assert holds(folder / "x.ptck") == "old"


@pytest.mark.parametrize("most", [1, 7, 1000])
def test_writes_and_reads_of_a_few_bytes_change_none(most, folder, monkeypatch):
    calls: Counter[str] = Counter()
    writev, preadv = os.writev, os.preadv

    def short_writev(descriptor, buffers):
        calls["writev"] += 1
        return writev(descriptor, [buffers[0][:most]])

    def short_preadv(descriptor, buffers, offset):
        calls["preadv"] += 1
        return preadv(descriptor, [buffers[0][:most]], offset)

    with monkeypatch.context() as patched:
        patched.setattr(os, "writev", short_writev)
        patched.setattr(os, "preadv", short_preadv)
        ptc.save(tree(2), folder / "x.ptck")
        value = ptc.restore(folder / "x.ptck")
    assert (folder / "x.ptck").read_bytes() == NEW_FILE
    assert difference(tree(2), value) is None
    assert min(calls["writev"], calls["preadv"]) > len(NEW_FILE) // (2 * most)


@pytest.mark.parametrize("n_saves", [3, slowly(60)])
def test_a_storm_of_signals_changes_no_byte(n_saves, folder, record_property):
    result = call(save_under_signals, path=str(folder / "x.ptck"), n_saves=n_saves)
    record_property("campaign", f"{result['signals']} signals during {n_saves} saves: no byte changed")
    assert result["signals"] > 10 * n_saves
    assert names(folder) == {"x.ptck"}


def test_a_checkpoint_that_shrinks_while_it_is_read_is_reported(folder):
    path = folder / "x.ptck"
    ptc.save(large_tree(2), path)
    with ptc.open(path) as checkpoint:
        os.truncate(path, 5000)
        with pytest.raises(ptc.CorruptionError, match=r"leaf w, .* was cut to 5000 bytes while it was read") as error:
            checkpoint.restore()
    assert error.value.leaf == "w"


# Writers and readers at once.


def race(folder: Path, n_writers: int, if_exists: str) -> list[dict]:
    path = folder / "x.ptck"
    children = [
        Child(save_once, path=str(path), seed=seed, kind="large" if seed % 4 == 0 else "small", if_exists=if_exists)
        for seed in range(n_writers)
    ]
    for child in children:
        child.go()
    results = [child.received() for child in children]
    for child in children:
        child.end()
    return results


def whole_tree_of_one_writer(path: Path) -> int:
    value = ptc.restore(path)
    seed: int = value["step"]
    assert difference(TREES["large" if seed % 4 == 0 else "small"](seed), value) is None
    return seed


@pytest.mark.parametrize("n_rounds", [1, slowly(20)])
def test_of_sixteen_writers_of_a_new_checkpoint_exactly_one_wins_and_wins_whole(n_rounds, tmp_path, record_property):
    for number in range(n_rounds):
        folder = tmp_path / str(number)
        folder.mkdir()
        results = race(folder, 16, "error")
        won = [seed for seed, result in enumerate(results) if result["error"] is None]
        assert won == [whole_tree_of_one_writer(folder / "x.ptck")]
        lost = [result for result in results if result["error"] is not None]
        assert all(result["error"] == "CheckpointExistsError" for result in lost)
        assert all("FileExistsError" in result["bases"] for result in lost)
        assert names(folder) == {"x.ptck"}
    record_property("campaign", f"{n_rounds} races of 16 writers, if_exists='error': one whole winner each")


@pytest.mark.parametrize("n_rounds", [1, slowly(20)])
def test_of_sixteen_replacing_writers_the_last_one_is_there_whole(n_rounds, tmp_path, record_property):
    for number in range(n_rounds):
        folder = tmp_path / str(number)
        folder.mkdir()
        results = race(folder, 16, "replace")
        assert all(result["error"] is None for result in results)
        whole_tree_of_one_writer(folder / "x.ptck")
        assert names(folder) == {"x.ptck"}
    record_property("campaign", f"{n_rounds} races of 16 writers, if_exists='replace': a whole checkpoint each")


@pytest.mark.parametrize("kind", ["small", "large"])
@pytest.mark.parametrize("n_steps", [5, slowly(100)])
def test_readers_see_whole_checkpoints_while_they_are_replaced(n_steps, kind, folder, record_property):
    path = folder / "x.ptck"
    ptc.save(TREES[kind](0), path)
    readers = [Child(read_while_replaced, path=str(path), kind=kind, n_steps=n_steps, mmap=False) for _ in range(2)]
    writer = Child(
        save_steps,
        path=str(path),
        kind=kind,
        threads=1,
        durability="atomic",
        if_exists="replace",
        first=1,
        quiet=True,
    )
    for child in [*readers, writer]:
        child.go()
    results = [reader.received() for reader in readers]
    writer.process.kill()
    assert all(result is not None and result["read"] >= n_steps for result in results), results
    for child in [*readers, writer]:
        child.end()
    record_property(
        "campaign",
        f"{sum(result['read'] for result in results)} reads of a {kind} checkpoint while it was replaced "
        f"{max(result['last'] for result in results)} times: each whole",
    )


@pytest.mark.parametrize("mmap", [False, True])
def test_an_open_checkpoint_stays_what_it_was_when_its_file_is_replaced_or_removed(mmap, folder):
    path = folder / "x.ptck"
    ptc.save(large_tree(1), path, compression="none")
    with ptc.open(path) as checkpoint:
        ptc.save(large_tree(2), path)
        first = checkpoint.restore(mmap=mmap)
        path.unlink()
        again = checkpoint.restore(mmap=mmap)
    assert difference(large_tree(1), first) is None
    assert difference(large_tree(1), again) is None


# Forks.


@pytest.mark.parametrize("then", ["go on", "exit", "raise"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("where", ["progress", "source"])
def test_a_child_that_is_forked_while_saving_neither_publishes_nor_disturbs(where, threads, then, folder):
    path = folder / "x.ptck"
    put_old(path)
    result = call(save_and_fork, path=str(path), threads=threads, where=where, then=then, timeout_s=60)
    assert result["forked"]
    assert result["error"] is None, result
    assert result["descriptors"] == 0
    assert path.read_bytes() == ptc.encode(large_tree(2))
    assert names(folder) == {"x.ptck"}
    if then == "exit" or (where, threads) == ("source", 2):
        # Forked in a thread of the pool, the child has nothing to return to, and was ended.
        assert result["child"] == ""
    elif then == "raise":
        assert result["child"] == "SystemExit"
    else:
        assert result["child"] in {"StorageError", "PytreeckptError"}


def test_the_campaign_notices_a_child_that_goes_on_with_its_parents_save(folder):
    path = folder / "x.ptck"
    result = call(save_and_fork, path=str(path), threads=1, where="source", then="go on", careless=True)
    assert result["forked"]
    assert result["error"] is not None or not path.exists() or path.read_bytes() != ptc.encode(large_tree(2))


# Interrupts.


@pytest.mark.parametrize("if_exists", ["replace", "error"])
@pytest.mark.parametrize("stride", [151, slowly(1)], ids=["sample", "every opcode"])
def test_interrupted_at_an_opcode_a_save_leaves_old_or_new_and_no_trace(stride, if_exists, folder, record_property):
    result = call(
        interrupted_saves,
        path_=str(folder / "x.ptck"),
        if_exists=if_exists,
        threads=1,
        first=1,
        stride=stride,
        timeout_s=580,
    )
    record_property(
        "campaign",
        f'KeyboardInterrupt at every {stride}. of {result["opcodes"]} opcodes, if_exists="{if_exists}": '
        f"{result['counts']}, {len(result['wrong'])} wrong",
    )
    assert not result["wrong"], result["wrong"][:20]
    assert result["counts"]["interrupted"] > result["opcodes"] // stride * 0.9
    assert set(result["counts"]) <= {"interrupted", "saved"}


@pytest.mark.parametrize("stride", [97, slowly(1)], ids=["sample", "every opcode"])
def test_interrupted_at_an_opcode_of_ours_a_save_with_threads_leaves_old_or_new_and_no_trace(
    stride, folder, record_property
):
    # Opcodes of the standard library's threads are left out: an interrupt there can stop them for good.
    result = call(
        interrupted_saves,
        path_=str(folder / "x.ptck"),
        if_exists="replace",
        threads=2,
        first=1,
        stride=stride,
        only_in="pytreeckpt",
        timeout_s=580,
    )
    record_property(
        "campaign",
        f"KeyboardInterrupt at every {stride}. of {result['opcodes']} opcodes of pytreeckpt, two threads: "
        f"{result['counts']}, {len(result['wrong'])} wrong",
    )
    assert not result["wrong"], result["wrong"][:20]
    assert result["counts"]["interrupted"] > result["opcodes"] // stride * 0.9


def test_the_campaign_notices_a_save_that_does_not_clean_up(folder):
    result = call(
        interrupted_saves,
        path_=str(folder / "x.ptck"),
        if_exists="replace",
        threads=1,
        first=1,
        stride=151,
        careless=True,
    )
    assert any("is left" in wrong for wrong in result["wrong"])


@pytest.mark.parametrize(("kind", "threads"), [("small", 1), ("large", 1), ("large", 2)])
@pytest.mark.parametrize("n_saves", [10, slowly(300)])
def test_ctrl_c_at_a_random_time_leaves_old_or_new_and_no_trace(n_saves, kind, threads, folder, record_property):
    result = call(
        signalled_saves,
        path_=str(folder / "x.ptck"),
        threads=threads,
        kind=kind,
        n_saves=n_saves,
        seed=n_saves,
        timeout_s=580,
    )
    record_property(
        "campaign",
        f"{n_saves} {kind} saves with {threads} threads and a SIGINT at a random time: {result['counts']}, "
        f"{len(result['wrong'])} wrong",
    )
    assert not result["wrong"], result["wrong"][:20]
    assert result["counts"]["interrupted"] > n_saves // 5


# No memory.


@pytest.mark.parametrize("stride", [13, slowly(1)], ids=["sample", "every allocation"])
def test_starved_of_memory_a_save_leaves_old_or_new_and_no_trace(stride, folder, record_property):
    pytest.importorskip("_testcapi", reason="this Python cannot make allocations fail")
    path = folder / "x.ptck"
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    crashes = 0
    first = 0
    while True:
        child = Child(starved_saves, path_=str(path), first=first, stride=stride)
        child.go()
        at = first
        while (reported := child.received()) not in {"done", None}:
            if isinstance(reported, int):
                at = reported
                continue
            ended, found = reported
            counts[ended] += 1
            if found is not None:
                wrong.append(f"allocation {at}: {ended}, {found}")
        code = child.end()
        if reported == "done":
            break
        # The interpreter itself did not survive it; the file must have.
        crashes += 1
        assert code is not None
        assert code < 0
        assert path.read_bytes() in {OLD_FILE, NEW_FILE}, at
        assert crashes < 50
        first = at + stride
        path.unlink()
        for left in folder.iterdir():
            left.unlink()
    record_property(
        "campaign",
        f"every {stride}. allocation of a save failing: {dict(counts)}, {crashes} crashes of the interpreter, "
        f"{len(wrong)} wrong",
    )
    assert not wrong, wrong[:20]
    assert counts["MemoryError"] > 20


def test_at_the_limit_of_memory_the_old_checkpoint_stays(folder):
    path = folder / "x.ptck"
    put_old(path)
    result = call(save_once, path=str(path), kind="large", threads=1, memory_limit=1 << 20)
    assert names(folder) == {"x.ptck"}
    if result["error"] is None:
        pytest.skip("the save needed less memory than was left")
    assert result["error"] == "MemoryError"
    assert result["descriptors"] == 0
    assert holds(path) == "old"


# What lies at the names.


def test_stale_temporary_files_are_ignored_and_stay(folder):
    foreign = {".x.ptck.1-0123456789abcdef.tmp": b"torn", ".x.ptck.tmp": b"", "x.ptck.tmp": NEW_FILE[:100]}
    for name, content in foreign.items():
        (folder / name).write_bytes(content)
    for if_exists in ("error", "replace"):
        ptc.save(tree(2), folder / "x.ptck", if_exists=if_exists)
        assert holds(folder / "x.ptck") == "new"
        assert {name: (folder / name).read_bytes() for name in foreign} == foreign
        assert names(folder) == {*foreign, "x.ptck"}


@pytest.fixture
def known_temporary(monkeypatch, folder):
    """The name under which the next save will write."""
    monkeypatch.setattr("pytreeckpt.storage.secrets.token_hex", lambda _: "0" * 16)
    return folder / f".x.ptck.{os.getpid()}-{'0' * 16}.tmp"


@pytest.mark.parametrize("kind", ["file", "symlink", "dangling symlink", "directory"])
def test_whatever_lies_at_the_temporary_name_is_neither_followed_nor_removed(kind, folder, tmp_path, known_temporary):
    victim = tmp_path / "victim"
    if kind != "dangling symlink":
        victim.write_bytes(b"precious")
    match kind:
        case "file":
            known_temporary.write_bytes(b"foreign")
        case "directory":
            known_temporary.mkdir()
        case _:
            known_temporary.symlink_to(victim)
    put_old(folder / "x.ptck")
    with pytest.raises(ptc.StorageError) as error:
        ptc.save(tree(2), folder / "x.ptck")
    assert error.value.errno == errno.EEXIST
    assert not victim.exists() or victim.read_bytes() == b"precious"
    assert victim.exists() is (kind != "dangling symlink")
    assert names(folder) == {"x.ptck", known_temporary.name}
    assert known_temporary.is_symlink() is ("symlink" in kind)
    assert holds(folder / "x.ptck") == "old"


@pytest.mark.parametrize("dangling", [False, True])
def test_a_symlink_at_the_target_is_replaced_and_what_it_points_to_stays(dangling, folder, tmp_path):
    victim = tmp_path / "victim.ptck"
    if not dangling:
        put_old(victim)
    (folder / "x.ptck").symlink_to(victim)
    with pytest.raises(ptc.CheckpointExistsError):
        ptc.save(tree(2), folder / "x.ptck", if_exists="error")
    assert (folder / "x.ptck").is_symlink()
    ptc.save(tree(2), folder / "x.ptck")
    assert not (folder / "x.ptck").is_symlink()
    assert holds(folder / "x.ptck") == "new"
    assert holds(victim) == ("nothing" if dangling else "old")
    assert names(folder) == {"x.ptck"}


def test_a_symlink_to_a_directory_above_the_target_is_followed(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    ptc.save(tree(2), tmp_path / "link" / "x.ptck")
    assert holds(folder / "x.ptck") == "new"


@pytest.mark.parametrize("if_exists", ["replace", "error"])
def test_a_file_where_a_directory_should_be_is_an_error(if_exists, folder):
    put_old(folder / "x.ptck")
    with pytest.raises(ptc.StorageError) as error:
        ptc.save(tree(2), folder / "x.ptck" / "y.ptck", if_exists=if_exists)
    assert error.value.errno == errno.ENOTDIR
    assert names(folder) == {"x.ptck"}
    assert holds(folder / "x.ptck") == "old"


def test_a_directory_at_the_target_is_an_error_that_says_so(folder):
    (folder / "x.ptck").mkdir()
    with pytest.raises(ptc.StorageError, match="is a directory"):
        ptc.save(tree(2), folder / "x.ptck")
    assert names(folder) == {"x.ptck"}


@pytest.mark.parametrize("name", ["a\0b", "", "x" * 256, "folder/"])
def test_a_name_that_cannot_be_one_is_an_error(name, folder):
    with pytest.raises(ptc.StorageError):
        ptc.save(tree(2), f"{folder}/{name}")
    assert names(folder) == set()


def test_the_longest_name_and_names_of_any_bytes_can_be_saved_to(folder):
    for name in ("x" * 255, "é" * 127, "a\nb", os.fsdecode(b"\xff\xfe"), "..ptck", "-rf", " "):
        ptc.save(tree(2), folder / name)
        assert holds(folder / name) == "new"
        assert names(folder) == {name}
        (folder / name).unlink()


# What the caller's own functions raise.


class CancelledError(Exception):
    pass


CALLBACK_ERRORS = [CancelledError, OSError(errno.ENOSPC, "mine"), FileExistsError("mine"), StopIteration, SystemExit]


@pytest.mark.parametrize("error", CALLBACK_ERRORS)
@pytest.mark.parametrize("last", [False, True], ids=["first call", "last call"])
@pytest.mark.parametrize("threads", ["1", "2"])
def test_an_error_of_the_progress_callback_cancels_the_save(threads, last, error, folder, monkeypatch):
    monkeypatch.setenv("PYTREECKPT_THREADS", threads)
    put_old(folder / "x.ptck")

    def progress(so_far: ptc.Progress) -> None:
        if not last or so_far.done_nbytes == so_far.total_nbytes:
            raise error

    before = {each.name for each in Path("/proc/self/fd").iterdir()}
    with pytest.raises(BaseException) as raised:  # noqa: PT011 - its identity is checked below
        ptc.save(large_tree(2), folder / "x.ptck", progress=progress)
    expected = error if isinstance(error, type) else type(error)
    # Python itself turns a StopIteration in a generator into a RuntimeError.
    assert isinstance(raised.value, (expected, RuntimeError) if expected is StopIteration else expected)
    assert not isinstance(raised.value, ptc.PytreeckptError)
    assert names(folder) == {"x.ptck"}
    assert holds(folder / "x.ptck") == "old"
    assert len({each.name for each in Path("/proc/self/fd").iterdir()} - before) == 0


@pytest.mark.parametrize("threads", ["1", "2"])
@pytest.mark.parametrize("error", [CancelledError, OSError(errno.EIO, "mine"), StopIteration, MemoryError])
def test_an_error_of_an_array_that_cannot_be_read_passes_through_and_nothing_is_published(
    error, threads, folder, monkeypatch
):
    from tests.campaigns.fault_processes import Staged, use_staged_arrays

    monkeypatch.setenv("PYTREECKPT_THREADS", threads)
    monkeypatch.setattr("pytreeckpt.adapters._added", {})
    use_staged_arrays()
    n_calls = 0

    def fail() -> None:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 2:
            raise error

    value = {"w": Staged(np.arange(1 << 20), fail), "v": np.arange(1000.0)}
    with pytest.raises(Exception) as raised:  # noqa: PT011 - its identity is checked below
        ptc.save(value, folder / "x.ptck")
    # Which error a StopIteration becomes is Python's affair; it must not end the file early.
    expected = (
        (RuntimeError, ValueError) if error is StopIteration else error if isinstance(error, type) else type(error)
    )
    assert isinstance(raised.value, expected)
    assert not isinstance(raised.value, ptc.PytreeckptError)
    assert names(folder) == set()
    n_calls = 0
    with pytest.raises(expected):
        ptc.encode(value)


def test_an_array_that_gives_too_few_items_is_refused_and_nothing_is_published(folder, monkeypatch):
    from tests.campaigns.fault_processes import Staged, use_staged_arrays

    monkeypatch.setattr("pytreeckpt.adapters._added", {})
    use_staged_arrays()
    staged = Staged(np.arange(1000.0), lambda: None)
    source = staged.source()
    monkeypatch.setattr(staged, "source", lambda: ptc.ArraySource(source.dtype, (2000,), source.boxes))
    with pytest.raises(ValueError, match=r"gave 8000 bytes for its items 0 to 2000"):
        ptc.save({"w": staged}, folder / "x.ptck")
    assert names(folder) == set()
