"""What is done with a case and a peer, and what came of it: nothing is known beforehand, every outcome is measured."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from benchmarks.exactness import Difference, differences
from benchmarks.torture_cases import Case, executed, noise
from benchmarks.torture_peers import PEERS, Peer

Verdict = Literal["exact", "detected", "kept", "safe", "changed", "refused", "CORRUPT", "lost", "RAN CODE", "crashed"]
GOOD: frozenset[Verdict] = frozenset({"exact", "detected", "kept", "safe"})
LEGEND = """\
exact     the same tree came back: structure, types, dtypes, every bit, tied arrays still tied
changed   another tree came back, without an error: the numbers are there, types or structure are not
refused   an error when saving or restoring
CORRUPT   other numbers came back, or some are gone, without an error
detected  damage to the file was noticed (CORRUPT: it was not, and wrong numbers came back)
kept      the earlier checkpoint survived (lost: neither the earlier nor the new one can be restored)
safe      a function that the saved object names was not called (RAN CODE: it was)
crashed   the process died"""
N_FLIPS = 64


@dataclass(frozen=True, slots=True)
class Outcome:
    """A cell of the table."""

    verdict: Verdict
    detail: str = ""
    elapsed_s: float = 0

    @property
    def good(self) -> bool:
        """Whether this is what one wants of a checkpoint."""
        return self.verdict in GOOD


def run_case(case: Case, peer: Peer, folder: Path) -> Outcome:
    """Do to a peer what the case says, with files in an empty folder."""
    executed.clear()
    begin = time.perf_counter()
    outcome = _CHECKS[case.check](case, peer, folder / "checkpoint")
    return replace(outcome, elapsed_s=time.perf_counter() - begin)


def _round_trip(case: Case, peer: Peer, path: Path) -> Outcome:
    tree = case.make(peer.array)
    return _save(tree, peer, path) or _compare(tree, case, peer, path)


def _save(tree: Any, peer: Peer, path: Path) -> Outcome | None:
    try:
        peer.save(tree, path)
    except Exception as error:  # noqa: BLE001 - whatever a peer raises
        return Outcome("refused", f"save: {_text(error)}")
    return None


def _compare(tree: Any, case: Case, peer: Peer, path: Path) -> Outcome:
    try:
        restored = peer.restore(path, case.types())
    except Exception as error:  # noqa: BLE001 - whatever a peer raises
        return Outcome("refused", f"restore: {_text(error)}")
    found = differences(tree, restored)
    if not found:
        return Outcome("exact")
    # The worst is what counts.
    found.sort(key=lambda difference: not difference.silent)
    return Outcome("CORRUPT" if found[0].silent else "changed", _list(found))


def _relative_path(case: Case, peer: Peer, path: Path) -> Outcome:
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        return _round_trip(case, peer, Path(path.name))
    finally:
        os.chdir(before)


def _flipped_bits(case: Case, peer: Peer, path: Path) -> Outcome:
    """Flip bits, one at a time and evenly spread over all files; each must be noticed or do no harm."""
    tree = case.make(peer.array)
    if refused := _save(tree, peer, path):
        return refused
    files = _files(path)
    total = sum(file.stat().st_size for file in files)

    def damages() -> Iterator[Callable[[], None]]:
        for number in range(N_FLIPS):
            at = (2 * number + 1) * total // (2 * N_FLIPS)
            for file in files:
                if at < (size := file.stat().st_size):
                    yield partial(_flip, file, at, number % 8)
                    break
                at -= size

    return _under_damage(tree, case, peer, path, damages())


def _cut_short(case: Case, peer: Peer, path: Path) -> Outcome:
    tree = case.make(peer.array)
    if refused := _save(tree, peer, path):
        return refused
    largest = max(_files(path), key=lambda file: file.stat().st_size)
    nbytes = largest.stat().st_size
    lengths = (0, nbytes // 4, nbytes // 2, nbytes - 4096, nbytes - 1)
    damages = (partial(os.truncate, largest, length) for length in lengths)
    return _under_damage(tree, case, peer, path, damages)


def _under_damage(tree: Any, case: Case, peer: Peer, path: Path, damages: Iterator[Callable[[], None]]) -> Outcome:
    accepted, n_damages = 0, 0
    originals = {file: file.read_bytes() for file in _files(path)}
    for damage in damages:
        damage()
        n_damages += 1
        outcome = _compare(tree, case, peer, path)
        accepted += outcome.verdict in {"changed", "CORRUPT"}
        for file, content in originals.items():
            file.write_bytes(content)
    # What cannot be restored undamaged would look as if all damage were noticed.
    if not (intact := _compare(tree, case, peer, path)).good:
        return intact
    if accepted:
        return Outcome("CORRUPT", f"{accepted} of {n_damages} not noticed, wrong numbers returned")
    return Outcome("detected", f"{n_damages} of {n_damages} noticed or harmless")


def _interrupted(case: Case, peer: Peer, path: Path) -> Outcome:
    """Save; then save another tree to the same path in a process whose files may be half as long.

    There it is killed at that byte, or its writes fail.
    """
    tree = case.make(peer.array)
    if refused := _save(tree, peer, path):
        return refused
    limit = max(file.stat().st_size for file in _files(path)) // 2
    command = [sys.executable, "-m", "benchmarks.torture_checks", peer.name, str(path), str(limit), case.check]
    child = subprocess.run(
        command, cwd=Path(__file__).parents[1], check=False, capture_output=True, text=True, errors="replace"
    )
    if "saving" not in child.stdout:
        raise RuntimeError(f"{peer.name} did not get as far as saving: {child.stderr[-500:]}")
    if child.returncode == 0:
        raise RuntimeError(f"{peer.name} saved {limit * 2} bytes although no file could have more than {limit}")
    if case.check == "killed" and child.returncode != -signal.SIGXFSZ:
        raise RuntimeError(f"{peer.name} was not killed by the kernel: {child.stderr[-500:]}")
    outcome = _compare(tree, case, peer, path)
    if outcome.good:
        return Outcome("kept", "the earlier one is restored")
    if _compare(noise(peer.array, 1), case, peer, path).good:
        return Outcome("kept", "the new one is restored")
    return Outcome("lost", outcome.detail)


def _save_limited(peer_name: str, path: str, limit: str, check: str) -> None:
    peer = next(peer for peer in PEERS if peer.name == peer_name)
    tree = noise(peer.array, 1)
    print("saving", flush=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    # Writing beyond the limit kills the process at that byte; or, with the signal ignored, fails as on a full disk.
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL if check == "killed" else signal.SIG_IGN)
    peer.save(tree, Path(path))


def _runs_code(case: Case, peer: Peer, path: Path) -> Outcome:
    outcome = _round_trip(case, peer, path)
    return Outcome("RAN CODE", "when restoring") if executed else Outcome("safe", outcome.detail)


_CHECKS: dict[str, Callable[[Case, Peer, Path], Outcome]] = {
    "round trip": _round_trip,
    "relative path": _relative_path,
    "flipped bits": _flipped_bits,
    "cut short": _cut_short,
    "killed": _interrupted,
    "disk full": _interrupted,
    "runs code": _runs_code,
}


def _files(path: Path) -> list[Path]:
    """The files of a checkpoint, whether it is one or a folder; np.savez adds a suffix."""
    folder = path if path.is_dir() else path.parent
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _flip(file: Path, at: int, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1 << bit
    file.write_bytes(content)


def _text(error: Exception) -> str:
    # Some messages are coloured.
    message = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return f"{type(error).__name__}: {(message.splitlines() or [''])[0]}"


def _list(found: list[Difference]) -> str:
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return f"{found[0]}{more}"


if __name__ == "__main__":
    _save_limited(*sys.argv[1:])
