"""A file system in memory that keeps what is volatile apart from what is durable, and says what a power cut may leave.

The model is POSIX at its weakest:

- Content is durable after a `SyncFile` of that file that succeeded. Until then each block may be on disk as it was
  after any of the writes, be missing (zeros, or beyond the end of the file) or hold garbage, and the length may be
  any that the file has had, or end at any block: all independent of each other, and of the names.
- A name is durable after a `SyncDirectory` of its directory that succeeded. Until then any of the changes of a
  directory may be on disk, in any order; a rename is one change, and never half done. A new directory is a name in its
  parent, and all that is below it is lost with it.
- A `SyncFile` that fails drops the pages: what was not durable by then stays undefined, whatever a later one says.
"""

from __future__ import annotations

import errno
import itertools
import os
import posixpath
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pytreeckpt.commit import (
    CreateFile,
    FinishFile,
    LinkFile,
    MakeDirectory,
    Operation,
    RemoveFile,
    RenameFile,
    StartWriteback,
    SyncDirectory,
    SyncExisting,
    SyncFile,
    Target,
    WriteFile,
)
from pytreeckpt.errors import CheckpointNotFoundError, ConcurrentWriterError
from pytreeckpt.reading import BytesSource

Image = Mapping[str, bytes | None]
"""What a disk holds: the content of each file by its path, and None for each directory."""

Entries = dict[str, int]
"""The names in a directory, each with the number of a node."""

ROOT = "."
_ROOT_NODE = 0


# What happened to a node, in order. The events are the operations with their names resolved.


@dataclass(frozen=True, slots=True)
class Truncated:
    node: int


@dataclass(frozen=True, slots=True)
class Wrote:
    node: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ContentSynced:
    node: int


@dataclass(frozen=True, slots=True)
class PagesDropped:
    node: int


@dataclass(frozen=True, slots=True)
class NamesChanged:
    """One atomic change of a directory: names given to nodes, or (None) taken away."""

    node: int
    changes: tuple[tuple[str, int | None], ...]


@dataclass(frozen=True, slots=True)
class NamesSynced:
    node: int


Event = Truncated | Wrote | ContentSynced | PagesDropped | NamesChanged | NamesSynced


@dataclass(frozen=True, slots=True)
class Fault:
    """Operation number `at` fails. A write is done up to its middle, a sync of a file drops its pages."""

    at: int
    errno: int


@dataclass(frozen=True, slots=True)
class CrashState:
    """What the disk may hold when the power goes after `n_events` events."""

    n_events: int
    image: Image


@dataclass(frozen=True, slots=True)
class SimulatedLock:
    storage: SimulatedStorage
    path: str

    def is_held(self) -> bool:
        return self.path in self.storage.locks

    def release(self) -> None:
        self.storage.locks.discard(self.path)


class SimulatedStorage:
    """A `Storage` in memory that records what it is asked to do. See the module for what it promises, and to whom."""

    def __init__(
        self, image: Image | None = None, *, fault: Fault | None = None, block_nbytes: int = 256, in_place: bool = False
    ) -> None:
        self.fault = fault
        self.block_nbytes = block_nbytes
        # For the test of a writer that overwrites: creating a file that exists truncates it.
        self.in_place = in_place
        self.operations: list[Operation] = []
        self.events: list[Event] = []
        self.nodes: list[bytearray | Entries] = [{}]
        self.created: dict[str, int] = {}
        self.locks: set[str] = set()
        self.open_nodes: dict[str, int] = {}
        for path, content in sorted((image or {}).items()):
            directory, name = self._split(path)
            directory[name] = self._add({} if content is None else bytearray(content))
        self.initial = [_frozen(node) for node in self.nodes]

    # The protocol.

    def target(self, path: str) -> Target:
        directory = posixpath.dirname(path) or ROOT
        missing = []
        above = directory
        while not self.exists(above):
            missing.append((above, posixpath.dirname(above) or ROOT))
            above = posixpath.dirname(above) or ROOT
        stem = posixpath.join(posixpath.dirname(path), f".{posixpath.basename(path)}")
        temporary = next(name for n in itertools.count() if not self.exists(name := f"{stem}.{n}.tmp"))
        return Target(path, temporary, directory, tuple(reversed(missing)))

    def exists(self, path: str) -> bool:
        return self._lookup(path) is not None

    def apply(self, operation: Operation) -> None:
        number = len(self.operations)
        self.operations.append(operation)
        if self.fault is not None and self.fault.at == number:
            self._fail(operation, self.fault.errno)
        self._do(operation)

    def discard(self, temporary: str) -> None:
        self.open_nodes.pop(temporary, None)
        number = self.created.pop(temporary, None)
        if number is not None and self._lookup(temporary) == number:
            self._do(RemoveFile(temporary))

    def open(self, path: str) -> BytesSource:
        number = self._lookup(path)
        content = None if number is None else self.nodes[number]
        if not isinstance(content, bytearray):
            raise CheckpointNotFoundError(f"there is no checkpoint at {path}")
        return BytesSource(memoryview(bytes(content)))

    def names(self, directory: str) -> list[str]:
        number = self._lookup(directory)
        entries = {} if number is None else self.nodes[number]
        if not isinstance(entries, dict):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return sorted(entries)

    def lock(self, path: str) -> SimulatedLock:
        # Locks are the system's, and are gone after a crash: nothing of them is on the disk.
        if path in self.locks:
            raise ConcurrentWriterError(f"{path} is held")
        self.locks.add(path)
        return SimulatedLock(self, path)

    # Applying operations.

    def _fail(self, operation: Operation, number: int) -> None:
        match operation:
            case WriteFile(path, data):
                self._do(WriteFile(path, bytes(data)[: len(data) // 2]))
            case SyncFile(path):
                self._record(PagesDropped(self.open_nodes[path]))
            case SyncExisting(path):
                self._record(PagesDropped(self._found(path)))
            case FinishFile(path):
                # Whatever close says, the descriptor is gone.
                del self.open_nodes[path]
            case _:
                pass
        raise OSError(number, os.strerror(number))

    def _do(self, operation: Operation) -> None:
        match operation:
            case MakeDirectory(path):
                if not self.exists(path):
                    self._change(path, self._add({}))
            case CreateFile(path):
                self._create(path)
            case WriteFile(path, data):
                self._record(Wrote(self.open_nodes[path], bytes(data)))
            case StartWriteback():
                # It promises nothing.
                pass
            case SyncFile(path):
                self._record(ContentSynced(self.open_nodes[path]))
            case SyncExisting(path):
                self._record(ContentSynced(self._found(path)))
            case FinishFile(path):
                del self.open_nodes[path]
            case RenameFile(source, target):
                self._rename(source, target)
            case LinkFile(source, target):
                if self.exists(target):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
                self._change(target, self._found(source))
            case RemoveFile(path):
                self._found(path)
                self._change(path, None)
                self.created.pop(path, None)
            case SyncDirectory(path):
                self._record(NamesSynced(self._found(path)))

    def _create(self, path: str) -> None:
        number = self._lookup(path)
        if number is None:
            number = self._add(bytearray())
            self._change(path, number)
        elif self.in_place:
            self._record(Truncated(number))
        else:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        self.open_nodes[path] = self.created[path] = number

    def _rename(self, source: str, target: str) -> None:
        number = self._found(source)
        if source == target:
            return
        if posixpath.dirname(source) != posixpath.dirname(target):
            raise NotImplementedError("a rename between directories is two changes")
        replaced = self._lookup(target)
        if replaced is not None and isinstance(self.nodes[replaced], dict):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        directory = self._found(posixpath.dirname(target) or ROOT)
        changes = ((posixpath.basename(source), None), (posixpath.basename(target), number))
        self._record(NamesChanged(directory, changes))
        self.created.pop(source, None)

    def _change(self, path: str, number: int | None) -> None:
        directory = self._found(posixpath.dirname(path) or ROOT)
        self._record(NamesChanged(directory, ((posixpath.basename(path), number),)))

    def _record(self, event: Event) -> None:
        self.events.append(event)
        node = self.nodes[event.node]
        match event:
            case NamesChanged(_, changes) if isinstance(node, dict):
                _change_names(node, changes)
            case Wrote(_, data) if isinstance(node, bytearray):
                node += data
            case Truncated() if isinstance(node, bytearray):
                node.clear()
            case _:
                pass

    def _add(self, node: bytearray | Entries) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1

    def _lookup(self, path: str) -> int | None:
        number: int | None = _ROOT_NODE
        for name in [] if path == ROOT else path.split("/"):
            entries = None if number is None else self.nodes[number]
            number = entries.get(name) if isinstance(entries, dict) else None
        return number

    def _found(self, path: str) -> int:
        number = self._lookup(path)
        if number is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return number

    def _split(self, path: str) -> tuple[Entries, str]:
        entries = self.nodes[self._found(posixpath.dirname(path) or ROOT)]
        if not isinstance(entries, dict):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return entries, posixpath.basename(path)

    # What is left.

    @property
    def image(self) -> Image:
        """What the running system sees: what is left when only the process is killed."""
        return _image(dict(enumerate(self.nodes)))

    def kill_states(self) -> Iterator[CrashState]:
        """What is left when the process is killed after each event, and the system runs on."""
        disk = self._disk()
        for n_events, event in enumerate([None, *self.events]):
            if event is not None:
                disk.add(event)
            yield CrashState(n_events, _image({n: disk.volatile(n) for n in range(len(self.nodes))}))

    def crash_states(self, *, n_random: int, seed: int, first: int = 0) -> Iterator[CrashState]:
        """What may be left when the power goes after each event from number `first` on. States may repeat.

        Orders and subsets of names are complete. Of content: the whole, every prefix, every single block missing or
        garbage, all blocks so, and `n_random` random mixtures.
        """
        rng = random.Random(seed)
        disk = self._disk()
        for n_events, event in enumerate([None, *self.events]):
            if event is not None:
                disk.add(event)
            if n_events >= first:
                for image in disk.images(self.block_nbytes, n_random, rng):
                    yield CrashState(n_events, image)

    def _disk(self) -> _Disk:
        new: list[bytes | Entries] = [{} if isinstance(node, dict) else b"" for node in self.nodes]
        return _Disk([*self.initial, *new[len(self.initial) :]])


@dataclass(slots=True)
class _Disk:
    """What is durable of each node, and what happened to it since."""

    durable: list[bytes | Entries]
    pending: dict[int, list[Event]] = field(default_factory=dict)
    # Files whose pages were dropped: no later sync settles them.
    dropped: set[int] = field(default_factory=set)

    def add(self, event: Event) -> None:
        number = event.node
        match event:
            case PagesDropped():
                self.dropped.add(number)
            case ContentSynced() | NamesSynced():
                if number not in self.dropped:
                    self.durable[number] = self.volatile(number)
                    self.pending.pop(number, None)
            case _:
                self.pending.setdefault(number, []).append(event)

    def volatile(self, number: int) -> bytes | Entries:
        """A node as the running system sees it."""
        return self.steps(number)[-1]

    def steps(self, number: int) -> list[bytes | Entries]:
        """A node as it is durable, and after each event since then."""
        found = [self.durable[number]]
        for event in self.pending.get(number, []):
            found.append(_after(found[-1], event))
        return found

    def images(self, block_nbytes: int, n_random: int, rng: random.Random) -> Iterator[Image]:
        names = {number: list(self.possible_names(number)) for number in self.pending if self.holds_names(number)}
        for chosen in itertools.product(*names.values()):
            nodes: dict[int, bytes | Entries] = dict(enumerate(self.durable))
            nodes.update(zip(names, chosen, strict=True))
            torn = [n for n in _reachable(nodes) if n in self.pending and n not in names]
            contents = [list(self.possible_content(n, block_nbytes, n_random, rng)) for n in torn]
            for content in itertools.product(*contents):
                yield _image(nodes | dict(zip(torn, content, strict=True)))

    def holds_names(self, number: int) -> bool:
        return any(isinstance(event, NamesChanged) for event in self.pending[number])

    def possible_names(self, number: int) -> Iterable[Entries]:
        """The results of any of the changes of a directory, in any order."""
        changes = self.pending[number]
        found: dict[tuple[tuple[str, int], ...], Entries] = {}
        for n_changes in range(len(changes) + 1):
            for order in itertools.permutations(changes, n_changes):
                entries = self.durable[number]
                for event in order:
                    entries = _after(entries, event)
                if isinstance(entries, dict):
                    found[tuple(sorted(entries.items()))] = entries
        return found.values()

    def possible_content(self, number: int, block_nbytes: int, n_random: int, rng: random.Random) -> Iterable[bytes]:
        versions = [step for step in self.steps(number) if isinstance(step, bytes)]
        return torn_content(versions, block_nbytes, n_random, rng)


def torn_content(versions: Sequence[bytes], block_nbytes: int, n_random: int, rng: random.Random) -> Iterable[bytes]:
    """What may be on disk of a file that was durable as the first of these versions, and was each of the others."""
    last = versions[-1]
    n_blocks = -(-max(map(len, versions)) // block_nbytes)

    def block(version: bytes, number: int) -> bytes:
        return version[number * block_nbytes : (number + 1) * block_nbytes].ljust(block_nbytes, b"\0")

    zeros = bytes(block_nbytes)
    garbage = [random.Random(number).randbytes(block_nbytes) for number in range(n_blocks)]
    new = [block(last, number) for number in range(n_blocks)]
    # Of each block what each version has there, no matter what the others have.
    choices = [[*dict.fromkeys(block(version, n) for version in versions), zeros, garbage[n]] for n in range(n_blocks)]
    lengths = sorted({*map(len, versions), *range(0, len(last), block_nbytes)})

    found = set(versions)
    found.update(last[:length] for length in lengths)
    found.update(last[:length].ljust(len(last), b"\0") for length in lengths)
    found.update(b"".join(blocks)[: len(last)] for blocks in ([zeros] * n_blocks, garbage))
    for number, other in itertools.product(range(n_blocks), (zeros, versions[0], None)):
        changed = garbage[number] if other is None else block(other, number)
        found.add(b"".join([*new[:number], changed, *new[number + 1 :]])[: len(last)])
    for _ in range(n_random if n_blocks else 0):
        share = rng.random()
        mixed = b"".join(new[n] if rng.random() < share else rng.choice(choices[n]) for n in range(n_blocks))
        found.add(mixed[: rng.choice(lengths) if rng.random() < 0.3 else len(last)])
    return sorted(found)


def _after(state: bytes | Entries, event: Event) -> bytes | Entries:
    """A node after an event."""
    match event, state:
        case NamesChanged(_, changes), dict():
            entries = dict(state)
            _change_names(entries, changes)
            return entries
        case Wrote(_, data), bytes():
            return state + data
        case Truncated(), bytes():
            return b""
    raise AssertionError(event)


def _frozen(node: bytearray | Entries) -> bytes | Entries:
    return dict(node) if isinstance(node, dict) else bytes(node)


def _change_names(entries: Entries, changes: Iterable[tuple[str, int | None]]) -> None:
    for name, number in changes:
        if number is None:
            entries.pop(name, None)
        else:
            entries[name] = number


def _reachable(nodes: Mapping[int, bytes | Entries]) -> list[int]:
    """The nodes that have a name, or a name in a directory that has one."""
    found: list[int] = []
    waiting = [_ROOT_NODE]
    while waiting:
        number = waiting.pop()
        if number not in found:
            found.append(number)
            node = nodes[number]
            waiting += node.values() if isinstance(node, dict) else []
    return found


def _image(nodes: Mapping[int, bytes | bytearray | Entries]) -> Image:
    image: dict[str, bytes | None] = {}
    waiting = [("", _ROOT_NODE)]
    while waiting:
        directory, number = waiting.pop()
        entries = nodes[number]
        if not isinstance(entries, dict):
            raise TypeError(f"{directory} is no directory")
        for name, child in entries.items():
            node = nodes[child]
            image[directory + name] = None if isinstance(node, dict) else bytes(node)
            if isinstance(node, dict):
                waiting.append((f"{directory}{name}/", child))
    return image
