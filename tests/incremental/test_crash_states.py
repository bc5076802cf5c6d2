"""Every crash state of a sequence of incremental saves, on a storage that keeps what is volatile apart from what is
durable; and every operation that may fail or be interrupted.
"""

import errno
import itertools
from collections.abc import Generator
from dataclasses import dataclass, field

import numpy as np
import pytest

from pytreeckpt import NotDurableError, StorageError
from pytreeckpt.commit import (
    LinkFile,
    MakeDirectory,
    Operation,
    RenameFile,
    SyncDirectory,
    SyncExisting,
    SyncFile,
    commit,
)
from pytreeckpt.incremental import files_needed, read_known
from pytreeckpt.reading import BytesSource
from tests.incremental.saving import NOTHING, data_names, found, noise, save
from tests.simulated_storage import Fault, Image, SimulatedStorage

SHARED, LARGE = noise(300, 0), noise(900, 1)
# The second refers to the file of the first, and the third needs so little of both that it is cleaned.
TREES = [
    {"step": 1, "shared": SHARED, "large": LARGE},
    {"step": 2, "shared": SHARED, "large": LARGE, "own": noise(300, 2)},
    {"step": 3, "shared": SHARED, "own": np.arange(300.0)},
]
PATHS = [f"run/step-{number}.ptck" for number in range(len(TREES))]


def steps(storage: SimulatedStorage, known=NOTHING, first: int = 0, **options) -> list[int | None]:
    """Save all steps; after how many events each was acknowledged."""
    ends = []
    for path, tree in list(zip(PATHS, TREES, strict=True))[first:]:
        known = save(storage, path, tree, known, **options).known
        ends.append(len(storage.events))
    return ends


def test_the_steps_are_what_they_are_meant_to_be():
    storage = SimulatedStorage()
    steps(storage)
    needed = [files_needed(storage, path) for path in PATHS]
    assert [len(names) for names in needed] == [1, 2, 1]
    assert needed[0] < needed[1]
    assert not needed[2] & needed[1]
    assert all(found(storage, path, tree) == "exact" for path, tree in zip(PATHS, TREES, strict=True))


@dataclass
class Counts:
    images: set[int] = field(default_factory=set)
    violations: list[str] = field(default_factory=list)

    def judge(self, n_events: int, image: Image, acknowledged: list[int | None]) -> None:
        """An acknowledged step is exact; any other is exact or not there, and never damaged. Nothing is said of one that
        was not to be durable (None).
        """
        signature = hash((frozenset(image.items()), tuple(end is not None and end <= n_events for end in acknowledged)))
        if signature in self.images:
            return
        self.images.add(signature)
        left = SimulatedStorage(image)
        for path, tree, end in zip(PATHS, TREES, acknowledged, strict=True):
            if end is None:
                continue
            verdict = found(left, path, tree)
            if verdict not in ({"exact"} if end <= n_events else {"exact", "nothing"}):
                self.violations.append(f"after {n_events} events, {path}: {verdict}")


def campaign(storage: SimulatedStorage, ends: list[int | None], *, n_random: int = 1) -> Counts:
    counts = Counts()
    for state in itertools.chain(storage.crash_states(n_random=n_random, seed=0), storage.kill_states()):
        counts.judge(state.n_events, state.image, ends)
    return counts


def is_violated(storage: SimulatedStorage, ends: list[int | None], *, first: int = 0) -> bool:
    """Whether the campaign notices something in the states from so many events on."""
    counts = Counts()
    for state in storage.crash_states(n_random=0, seed=0, first=first):
        counts.judge(state.n_events, state.image, ends)
        if counts.violations:
            return True
    return False


class KilledError(Exception):
    """The process was killed; the system runs on."""


class Scripted(SimulatedStorage):
    """Leaves one operation out, or is killed or interrupted at one."""

    def __init__(
        self,
        *,
        image: Image | None = None,
        block_nbytes: int = 256,
        without: int = -1,
        killed_at: int = -1,
        interrupted_at: int = -1,
        late: bool = False,
    ) -> None:
        super().__init__(image, block_nbytes=block_nbytes)
        self.without = without
        self.killed_at = killed_at
        self.interrupted_at = interrupted_at
        self.late = late
        self.n_events_without = 0

    def apply(self, operation: Operation) -> None:
        number = len(self.operations)
        if number == self.killed_at:
            self.killed_at = -1
            raise KilledError
        if number == self.without:
            self.operations.append(operation)
            self.n_events_without = len(self.events)
            return
        interrupted = number == self.interrupted_at
        if interrupted and not self.late:
            self.operations.append(operation)
            raise KeyboardInterrupt
        super().apply(operation)
        if interrupted:
            raise KeyboardInterrupt


def after_a_kill(without: int = -1) -> tuple[Scripted, list[int | None]]:
    """The first save is killed when the folder of the data files is made, and not yet durable; then all is saved."""
    storage = Scripted(without=without, killed_at=3)
    with pytest.raises(KilledError):
        steps(storage)
    assert storage.operations[-1] == MakeDirectory("run/data")
    return storage, steps(storage)


def in_order(without: int = -1) -> tuple[Scripted, list[int | None]]:
    storage = Scripted(without=without)
    return storage, steps(storage)


def made_durable_later(without: int = -1) -> tuple[Scripted, list[int | None]]:
    """The first step is not durable, and those that refer to its data file are."""
    storage = Scripted(image={"run": None}, block_nbytes=4096, without=without)
    known = save(storage, PATHS[0], TREES[0], durability="atomic").known
    return storage, [None, *steps(storage, known, first=1)]


SEQUENCES = {
    "in order": in_order,
    "after a kill": after_a_kill,
    "made durable later": made_durable_later,
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_crash_loses_no_acknowledged_step_and_leaves_none_that_is_not_whole(name, record_property):
    counts = campaign(*SEQUENCES[name](), n_random=0)
    record_property("campaign", f"incremental steps, {name}: {len(counts.images)} distinct crash states")
    assert not counts.violations
    assert len(counts.images) > 100


@pytest.mark.slow
@pytest.mark.parametrize("name", SEQUENCES)
def test_many_crash_states_lose_nothing_either(name, record_property):
    counts = campaign(*SEQUENCES[name](), n_random=300)
    record_property("campaign", f"incremental steps, {name}: {len(counts.images)} distinct crash states")
    assert not counts.violations
    assert len(counts.images) > 1_500


def syncs(name: str) -> list[int]:
    storage, _ = SEQUENCES[name]()
    return [
        number
        for number, each in enumerate(storage.operations)
        if isinstance(each, SyncFile | SyncDirectory | SyncExisting)
    ]


EVERY_SYNC = [(name, at) for name in SEQUENCES for at in syncs(name)]


def test_there_are_syncs_to_remove():
    # For each step those of two files and their folders, and once those above the new folders.
    assert len(syncs("in order")) == 3 * 4 + 2
    # Here those of `run`, and once more, because it cannot be told whether it is durable.
    assert len(syncs("after a kill")) == 3 * 4 + 2
    # The data file of the first step, and the folder that it lies in.
    assert len(syncs("made durable later")) == 2 * 4 + 2


@pytest.mark.parametrize(("name", "at"), EVERY_SYNC)
def test_the_campaign_notices_when_any_one_sync_is_missing(name, at):
    storage, ends = SEQUENCES[name](at)
    # At the latest when the manifest has its name, or when the step is acknowledged, which is an event later.
    end = next(end for end in ends if end is not None and end >= storage.n_events_without)
    assert is_violated(storage, ends, first=end - 1)


def test_the_campaign_notices_a_manifest_that_is_published_before_its_data_file(monkeypatch):
    # A commit of the manifest comes first: the data file gets its name afterwards.
    storage = SimulatedStorage()
    steps(storage)
    manifest_first = SimulatedStorage({"run": None, "run/data": None})
    for path in sorted(
        (path for path, content in storage.image.items() if content is not None), key=PATHS.__contains__
    )[::-1]:
        for operation in commit(
            manifest_first.target(path), _pieces(storage.image[path]), if_exists="replace", durability="durable"
        ):
            manifest_first.apply(operation)
    assert is_violated(manifest_first, [len(manifest_first.events)] * len(PATHS))


def _pieces(content: bytes | None) -> Generator[bytes, None, None]:
    yield content or b""


def test_a_durable_step_of_which_all_is_known_makes_that_durable():
    def saved(without: int = -1) -> tuple[Scripted, list[int]]:
        storage = Scripted(image={"run": None}, block_nbytes=4096, without=without)
        known = save(storage, PATHS[0], TREES[0], durability="atomic").known
        save(storage, PATHS[1], TREES[0], known)
        return storage, [len(storage.events)]

    def violated(storage: SimulatedStorage, end: int) -> bool:
        return any(
            found(SimulatedStorage(state.image), PATHS[1], TREES[0]) != "exact"
            for state in storage.crash_states(n_random=0, seed=0, first=end)
        )

    storage, (end,) = saved()
    assert not violated(storage, end)
    each_sync = [
        n for n, each in enumerate(storage.operations) if isinstance(each, SyncFile | SyncDirectory | SyncExisting)
    ]
    # The data file, its folder and the one above; then the manifest and its name, which is the second in that one.
    assert len(each_sync) == 5
    assert [violated(*_flat(saved(at))) for at in each_sync] == [True, True, False, True, True]


def _flat(saved: tuple[Scripted, list[int]]) -> tuple[Scripted, int]:
    storage, (end,) = saved
    return storage, end


def test_what_is_known_to_be_durable_is_not_made_so_again():
    storage = SimulatedStorage()
    known = save(storage, PATHS[0], TREES[0]).known
    n_done = len(storage.operations)
    save(storage, PATHS[1], TREES[1], known)
    assert not any(isinstance(each, SyncExisting) for each in storage.operations)
    # Of what was read it cannot be told; the first save makes it so.
    known = read_known(storage, PATHS[:2])
    again = save(storage, PATHS[1], TREES[1], known)
    assert sum(isinstance(each, SyncExisting) for each in storage.operations[n_done:]) == 2
    assert again.known.durable == again.known.files
    assert again.known.within(()).durable == frozenset()


def test_a_data_file_that_cannot_be_made_durable_is_not_used():
    plain = SimulatedStorage({"run": None})
    save(plain, PATHS[0], TREES[0], durability="atomic")
    at = len(plain.operations)
    storage = SimulatedStorage({"run": None}, fault=Fault(at, errno.EIO), block_nbytes=4096)
    known = save(storage, PATHS[0], TREES[0], durability="atomic").known
    written = save(storage, PATHS[1], TREES[1], known)
    assert isinstance(storage.operations[at], SyncExisting)
    assert written.notes
    assert not {*written.files} & known.files
    assert not written.known.files & known.files
    for state in storage.crash_states(n_random=0, seed=0, first=len(storage.events)):
        assert found(SimulatedStorage(state.image), PATHS[1], TREES[1]) == "exact"


# Operations that fail, and interrupts.


def n_operations() -> int:
    storage = SimulatedStorage()
    steps(storage)
    return len(storage.operations)


N_OPERATIONS = n_operations()


def check_what_is_left(storage: SimulatedStorage, n_saved: int) -> None:
    """So many steps, exact, with the data files that they need, and nothing else."""
    verdicts = [found(storage, path, tree) for path, tree in zip(PATHS, TREES, strict=True)]
    assert verdicts == ["exact"] * n_saved + ["nothing"] * (len(TREES) - n_saved)
    needed = frozenset().union(*(files_needed(storage, path) for path in PATHS[:n_saved]))
    assert needed == set(data_names(storage, "run"))
    files = {path for path, content in storage.image.items() if content is not None}
    assert files == {*PATHS[:n_saved], *(f"run/data/{name}" for name in needed)}
    assert not storage.open_nodes


@pytest.mark.parametrize("at", range(N_OPERATIONS))
def test_a_save_that_fails_at_any_operation_leaves_what_was_there_and_succeeds_the_next_time(at):
    storage = SimulatedStorage(fault=Fault(at, [errno.ENOSPC, errno.EIO, errno.EDQUOT][at % 3]))
    known, n_saved = NOTHING, 0
    for path, tree in zip(PATHS, TREES, strict=True):
        begin = len(storage.operations)
        try:
            known = save(storage, path, tree, known).known
            n_saved += 1
        except StorageError as error:
            published = isinstance(error, NotDurableError)
            of_manifest = [each for each in storage.operations[begin:at] if isinstance(each, RenameFile)]
            assert published is any(each.target == path for each in of_manifest)
            assert error.errno == storage.fault.errno
            assert path in str(error) or "run/data" in str(error)
            check_what_is_left(storage, n_saved + published)
            # With what was known before.
            known = save(storage, path, tree, known).known
            n_saved += 1
            storage.fault = None
    assert storage.fault is None
    check_what_is_left(storage, len(TREES))
    plain = SimulatedStorage()
    steps(plain)
    assert storage.image == plain.image


def test_a_checkpoint_that_was_published_and_cannot_be_read_back_keeps_its_data_file():
    class Unreadable(SimulatedStorage):
        def open(self, path: str) -> BytesSource:
            if path == PATHS[0]:
                raise StorageError(f"cannot open {path}")
            return super().open(path)

    plain = SimulatedStorage()
    save(plain, PATHS[0], TREES[0])
    last = len(plain.operations) - 1
    storage = Unreadable(fault=Fault(last, errno.EIO))
    with pytest.raises(NotDurableError):
        save(storage, PATHS[0], TREES[0])
    assert storage.image == plain.image
    # One whose name was not there before, and is not now, needs nothing.
    storage = SimulatedStorage(fault=Fault(last - 1, errno.EIO))
    with pytest.raises(StorageError):
        save(storage, PATHS[0], TREES[0])
    check_what_is_left(storage, 0)


@pytest.mark.parametrize("before", [{"run": None}, {"run": None, "run/data": None}])
def test_a_first_save_that_fails_at_any_operation_leaves_nothing(before):
    plain = SimulatedStorage(before)
    save(plain, PATHS[0], TREES[0])
    for at in range(len(plain.operations)):
        storage = SimulatedStorage(before, fault=Fault(at, errno.ENOSPC))
        with pytest.raises(StorageError) as caught:
            save(storage, PATHS[0], TREES[0])
        published = at == len(plain.operations) - 1
        assert isinstance(caught.value, NotDurableError) is published
        check_what_is_left(storage, int(published))


def test_a_save_that_need_not_be_durable_does_not_put_a_durable_data_file_at_risk():
    storage = SimulatedStorage(block_nbytes=2048)
    save(storage, PATHS[0], TREES[0])
    # Nothing is known, so that the same data file is made again.
    save(storage, PATHS[1], TREES[0], durability="atomic")
    assert found(storage, PATHS[1], TREES[0]) == "exact"
    seen = set()
    for state in storage.crash_states(n_random=0, seed=0, first=len(storage.events)):
        # Whatever may have become of the other one.
        image = {path: content for path, content in state.image.items() if path != PATHS[1]}
        if frozenset(image.items()) not in seen:
            seen.add(frozenset(image.items()))
            assert found(SimulatedStorage(image), PATHS[0], TREES[0]) == "exact"
    assert len(seen) > 1
    # What is damaged already is replaced.
    (name,) = data_names(storage, "run")
    damaged = SimulatedStorage({**storage.image, f"run/data/{name}": b""})
    save(damaged, PATHS[1], TREES[0], durability="atomic")
    assert found(damaged, PATHS[0], TREES[0]) == "exact"


def test_a_durable_save_that_makes_the_data_file_of_one_that_was_not_again_makes_it_durable():
    storage = SimulatedStorage({"run": None}, block_nbytes=4096)
    save(storage, PATHS[0], TREES[0], durability="atomic")
    save(storage, PATHS[1], TREES[0])
    n_states = 0
    for state in storage.crash_states(n_random=0, seed=0, first=len(storage.events)):
        assert found(SimulatedStorage(state.image), PATHS[1], TREES[0]) == "exact"
        n_states += 1
    assert n_states


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("at", range(N_OPERATIONS))
def test_an_interrupt_at_any_operation_leaves_whole_steps_and_nothing_else(at, late):
    storage = Scripted(interrupted_at=at, late=late)
    with pytest.raises(KeyboardInterrupt):
        steps(storage)
    published = [each.target for each in storage.operations if isinstance(each, RenameFile) and each.target in PATHS]
    interrupted = storage.operations[at]
    if not late and isinstance(interrupted, RenameFile) and interrupted.target in PATHS:
        published.remove(interrupted.target)
    check_what_is_left(storage, len(published))


@pytest.mark.parametrize("at", range(N_OPERATIONS))
def test_a_process_that_is_killed_is_followed_by_one_that_reads_what_is_known(at):
    storage = Scripted(killed_at=at)
    with pytest.raises(KilledError):
        steps(storage)
    saved = [path for path in PATHS if storage.exists(path)]
    known = read_known(storage, saved)
    assert not known.notes
    steps(storage, known, first=len(saved))
    assert [found(storage, path, tree) for path, tree in zip(PATHS, TREES, strict=True)] == ["exact"] * 3


def test_a_step_that_may_not_replace_another_is_refused_before_anything_is_written():
    storage = SimulatedStorage()
    steps(storage, if_exists="error")
    assert any(isinstance(each, LinkFile) for each in storage.operations)
    n_done = len(storage.operations)
    with pytest.raises(FileExistsError):
        save(storage, PATHS[0], TREES[0], if_exists="error")
    assert len(storage.operations) == n_done


def test_a_step_that_another_writer_has_made_meanwhile_takes_its_data_file_with_it():
    class Raced(SimulatedStorage):
        def apply(self, operation: Operation) -> None:
            if isinstance(operation, LinkFile):
                self._change(PATHS[0], self._add(bytearray(other.image[PATHS[0]] or b"")))
            super().apply(operation)

    other = SimulatedStorage()
    save(other, PATHS[0], {"another": noise(400, 9)})
    storage = Raced()
    with pytest.raises(FileExistsError, match="another writer was first"):
        save(storage, PATHS[0], TREES[0], if_exists="error")
    assert data_names(storage, "run") == []
    assert storage.image[PATHS[0]] == other.image[PATHS[0]]
