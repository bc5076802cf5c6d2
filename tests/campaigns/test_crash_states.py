"""Every crash state of a save, on a storage that keeps what is volatile apart from what is durable.

What must hold, whenever the power goes: the path holds exactly the old tree or exactly the new one (or nothing, where
nothing was there); the new one, once the save has returned; the other checkpoints as they were. The tests at the end
break the order of the operations in every way that matters, and show that this campaign notices.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

import pytest

from pytreeckpt import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    CorruptionError,
    FormatVersionError,
    NotDurableError,
    PytreeckptError,
    StorageError,
    current_limits,
    encode,
)
from pytreeckpt import writer as writer_module
from pytreeckpt.checkpoint import Checkpoint
from pytreeckpt.commit import (
    CreateFile,
    FinishFile,
    IfExists,
    LinkFile,
    MakeDirectory,
    Operation,
    RemoveFile,
    RenameFile,
    SyncDirectory,
    SyncFile,
    WriteFile,
    commit,
)
from pytreeckpt.expand import make_expand
from pytreeckpt.flatten import flatten
from pytreeckpt.planning import plan_save
from pytreeckpt.storage import LocalStorage, Storage
from pytreeckpt.writer import write_checkpoint
from tests.campaigns.trees import tree
from tests.exact import difference
from tests.simulated_storage import CrashState, Fault, Image, PagesDropped, SimulatedStorage

OLD, NEW, OTHER = tree(1), tree(2), tree(3)
OLD_FILE, NEW_FILE, OTHER_FILE = (encode(each) for each in (OLD, NEW, OTHER))
STALE = ".new.ptck.0.tmp"


def save_to(storage: Storage, tree_: object, path: str, *, if_exists: IfExists = "replace", durability="durable"):
    """`pytreeckpt.save`, on another storage."""
    plan = plan_save(flatten(None, tree_, expand=make_expand(), limits=current_limits()), current_limits())
    return write_checkpoint(
        storage, path, plan, compression="auto", if_exists=if_exists, durability=durability, threads=1
    )


def found(storage: SimulatedStorage, path: str) -> str:
    """What reading the path gives: the tree's name, "nothing", or the error."""
    try:
        with Checkpoint(storage.open(path), path) as checkpoint:
            read = checkpoint.restore()
    except CheckpointNotFoundError:
        return "nothing"
    except (CorruptionError, FormatVersionError) as error:
        return f"damaged ({error.rule})"
    return next((name for name, each in (("old", OLD), ("new", NEW)) if difference(each, read) is None), "WRONG DATA")


@dataclass(frozen=True, slots=True)
class Scenario:
    """A save, what is on the disk before it, and where it fails."""

    name: str
    path: str
    before: Image
    if_exists: IfExists = "replace"
    durability: str = "durable"
    fault: Fault | None = None

    @property
    def old(self) -> str:
        """What reading the path gives before the save."""
        return found(SimulatedStorage(self.before), self.path)


_OTHERS: Image = {"other.ptck": OTHER_FILE, "kept": None, "kept/step-1.ptck": OTHER_FILE}
_STALE: Image = {STALE: NEW_FILE[:700], ".new.ptck.1.tmp": b""}

SUCCEEDING = [
    Scenario("new, replace", "new.ptck", _OTHERS),
    Scenario("new, error", "new.ptck", _OTHERS, if_exists="error"),
    Scenario("new beside others, replace", "kept/new.ptck", _OTHERS),
    Scenario("new directories, replace", "a/b/c/new.ptck", _OTHERS),
    Scenario("new directories, error", "kept/b/new.ptck", _OTHERS, if_exists="error"),
    Scenario("replacing", "new.ptck", {**_OTHERS, "new.ptck": OLD_FILE}),
    Scenario("replacing beside others", "kept/new.ptck", {**_OTHERS, "kept/new.ptck": OLD_FILE}),
    Scenario("replacing, stale temporary files", "new.ptck", {**_OTHERS, **_STALE, "new.ptck": OLD_FILE}),
]


MakeStorage = Callable[..., SimulatedStorage]


@dataclass(slots=True)
class Counts:
    """How many crash states were looked at, and what reading the path gave in each."""

    states: int = 0
    images: set[int] = field(default_factory=set)
    verdicts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def line(self, name: str) -> str:
        verdicts = ", ".join(f"{n} {verdict}" for verdict, n in sorted(self.verdicts.items()))
        return f"{name}: {len(self.images)} distinct crash states ({self.states} visited): {verdicts}"


def run(scenario: Scenario, make: MakeStorage = SimulatedStorage) -> tuple[SimulatedStorage, BaseException | None]:
    """Save the new tree; the storage with what happened, and the error if it failed."""
    storage = make(scenario.before, fault=scenario.fault)
    try:
        save_to(storage, NEW, scenario.path, if_exists=scenario.if_exists, durability=scenario.durability)
    except Exception as error:  # noqa: BLE001 - the campaign judges it
        return storage, error
    return storage, None


def judge(state: CrashState, scenario: Scenario, allowed: set[str], counts: Counts) -> None:
    """Count a state, and say what is wrong with it."""
    counts.states += 1
    key = hash(frozenset(state.image.items()))
    if key in counts.images:
        return
    counts.images.add(key)
    verdict = found(SimulatedStorage(state.image), scenario.path)
    counts.verdicts[verdict] += 1
    if verdict not in allowed:
        counts.violations.append(f"after {state.n_events} events: {verdict}, not {' or '.join(sorted(allowed))}")
    for path, content in scenario.before.items():
        if path != scenario.path and state.image.get(path, b"") != content:
            counts.violations.append(f"after {state.n_events} events: {path} was touched")


def campaign(
    scenario: Scenario, *, n_random: int, seed: int = 0, last: int | None = None, make: MakeStorage = SimulatedStorage
) -> Counts:
    """Every crash state of a scenario, judged; or those of the `last` events."""
    storage, error = run(scenario, make)
    counts = Counts()
    old = scenario.old
    # First what holds after the end, so that a state that is also an earlier one is judged by the stricter rule.
    end = len(storage.events)
    first = 0 if last is None else max(0, end - last)
    at_the_end = {"new"} if error is None else {old, "new"} if isinstance(error, NotDurableError) else {old}
    for state in storage.crash_states(n_random=n_random, seed=seed, first=end):
        judge(state, scenario, at_the_end, counts)
    for state in itertools.chain(
        storage.crash_states(n_random=n_random, seed=seed, first=first), storage.kill_states()
    ):
        if state.n_events < end:
            judge(state, scenario, {old, "new"}, counts)
    return counts


def n_operations(scenario: Scenario) -> int:
    """How many operations the scenario has when nothing fails."""
    storage, error = run(dataclasses.replace(scenario, fault=None))
    assert error is None
    return len(storage.operations)


def failing(scenario: Scenario) -> list[Scenario]:
    """The scenario with a failure at each of its operations."""
    numbers = (errno.ENOSPC, errno.EIO, errno.EDQUOT)
    return [
        dataclasses.replace(scenario, name=f"{scenario.name}, failing", fault=Fault(at, numbers[at % 3]))
        for at in range(n_operations(scenario))
    ]


def crashed(scenario: Scenario, n_random: int = 2, every: int = 7) -> list[Image]:
    """Some of what a crash may leave."""
    storage, _ = run(scenario)
    images: dict[int, Image] = {}
    for state in storage.crash_states(n_random=n_random, seed=0):
        images.setdefault(hash(frozenset(state.image.items())), state.image)
    return list(images.values())[::every]


# The campaign.


@pytest.mark.parametrize("scenario", SUCCEEDING, ids=lambda scenario: scenario.name)
def test_a_power_cut_leaves_the_old_checkpoint_or_the_new_one_and_the_new_one_once_acknowledged(
    scenario, record_property
):
    counts = campaign(scenario, n_random=3)
    record_property("campaign", counts.line(f"fast slice, {scenario.name}"))
    assert not counts.violations
    assert set(counts.verdicts) == {scenario.old, "new"}
    assert len(counts.images) > 100


@pytest.mark.parametrize("scenario", SUCCEEDING[1::3], ids=lambda scenario: scenario.name)
def test_a_failing_save_leaves_the_old_checkpoint_alone_at_whatever_operation_it_fails(scenario, record_property):
    n_images = 0
    for each in failing(scenario):
        counts = campaign(each, n_random=0, last=2)
        assert not counts.violations, each
        n_images += len(counts.images)
        storage, error = run(each)
        assert isinstance(error, StorageError)
        assert each.fault is not None
        assert error.errno == each.fault.errno
        published = any(isinstance(operation, RenameFile | LinkFile) for operation in storage.operations[:-1])
        assert isinstance(error, NotDurableError) is published
        # The running system sees the same, and no temporary file, and the descriptor is closed.
        assert found(storage, each.path) == ("new" if published else each.old)
        new = {path for path, content in storage.image.items() if content is not None} - set(each.before)
        assert new == ({each.path} - set(each.before) if published else set())
        assert not storage.open_nodes
    record_property("campaign", f"fast slice, {scenario.name}, failing: {n_images} crash states")
    assert n_images > 50


@pytest.mark.slow
def test_more_than_ten_thousand_distinct_crash_states_lose_nothing_and_accept_nothing_corrupt(record_property):
    all_images: set[int] = set()
    total: Counter[str] = Counter()
    for number, scenario in enumerate(SUCCEEDING):
        counts = campaign(scenario, n_random=600, seed=number)
        assert not counts.violations, scenario
        record_property("campaign", counts.line(scenario.name))
        all_images |= counts.images
        total += counts.verdicts
    for number, scenario in enumerate(SUCCEEDING):
        of_scenario = Counts()
        for at, each in enumerate(failing(scenario)):
            counts = campaign(each, n_random=25, seed=1000 * number + at)
            assert not counts.violations, each
            of_scenario.images |= counts.images
            of_scenario.states += counts.states
            of_scenario.verdicts += counts.verdicts
        record_property("campaign", of_scenario.line(f"{scenario.name}, failing at each operation"))
        all_images |= of_scenario.images
        total += of_scenario.verdicts
    for scenario in SUCCEEDING:
        twice = Counts()
        for at, before in enumerate(crashed(scenario)):
            again = dataclasses.replace(scenario, before=before)
            counts = campaign(again, n_random=0, seed=at, last=6)
            assert not counts.violations, scenario
            twice.images |= counts.images
            twice.states += counts.states
            twice.verdicts += counts.verdicts
        record_property("campaign", twice.line(f"{scenario.name}, a crash, a second save, a second crash"))
        all_images |= twice.images
        total += twice.verdicts
    record_property("campaign", f"in all {len(all_images)} distinct crash states; 0 lost, 0 corrupt accepted")
    assert len(all_images) >= 10_000
    # Each verdict was seen often: the campaign looked at more than the states before the first operation.
    assert set(total) == {"old", "new", "nothing"}
    assert min(total.values()) > 20


def test_saving_again_after_a_crash_succeeds_whatever_the_crash_left():
    scenario = SUCCEEDING[-1]
    images = crashed(scenario, every=1)
    assert len(images) > 100
    for image in images:
        again = SimulatedStorage(image)
        save_to(again, NEW, scenario.path)
        assert found(again, scenario.path) == "new"
        assert {path: again.image[path] for path in image if path != scenario.path} == {
            path: content for path, content in image.items() if path != scenario.path
        }


def test_a_second_save_keeps_the_first_one_that_was_acknowledged():
    storage = SimulatedStorage()
    save_to(storage, OLD, "run/step-1.ptck")
    acknowledged = len(storage.events)
    save_to(storage, NEW, "run/step-2.ptck", if_exists="error")
    n_states = 0
    for state in storage.crash_states(n_random=5, seed=0, first=acknowledged):
        n_states += 1
        left = SimulatedStorage(state.image)
        assert found(left, "run/step-1.ptck") == "old"
        assert found(left, "run/step-2.ptck") in {"new", "nothing"}
    assert n_states > 150


def test_when_only_the_process_dies_a_save_without_fsync_leaves_old_or_new():
    for scenario in SUCCEEDING:
        storage, error = run(dataclasses.replace(scenario, durability="atomic"))
        assert error is None
        assert not any(isinstance(operation, SyncFile | SyncDirectory) for operation in storage.operations)
        states = list(storage.kill_states())
        verdicts = [found(SimulatedStorage(state.image), scenario.path) for state in states]
        assert verdicts == sorted(verdicts, key=["old", "nothing", "new"].index)
        assert verdicts[-1] == "new"


@pytest.mark.parametrize("n_random", [5, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_torn_checkpoint_is_refused_and_never_read_as_data(n_random, record_property):
    # Without fsync a power cut may leave a torn file under the final name: then the format has to notice.
    counts = Counts()
    for scenario in SUCCEEDING:
        scenario_ = dataclasses.replace(scenario, durability="atomic")
        storage, _ = run(scenario_)
        for state in storage.crash_states(n_random=n_random, seed=1, first=len(storage.events) - 1):
            counts.states += 1
            key = hash(frozenset(state.image.items()))
            if key not in counts.images:
                counts.images.add(key)
                counts.verdicts[found(SimulatedStorage(state.image), scenario.path)] += 1
    record_property("campaign", counts.line('durability="atomic" and a power cut'))
    assert not counts.verdicts["WRONG DATA"]
    assert sum(n for verdict, n in counts.verdicts.items() if verdict.startswith("damaged")) > 10 * n_random


# What a save must not do, whatever the storage.


def test_a_failing_sync_is_never_retried_and_nothing_follows_it_but_the_clean_up():
    for scenario in SUCCEEDING:
        for each in failing(scenario):
            storage, _ = run(each)
            kinds = [type(operation) for operation in storage.operations]
            # The failing operation is the last that the writer asks for: only `discard` comes after it.
            assert each.fault is not None
            assert len(kinds) == each.fault.at + 1
            assert kinds.count(SyncFile) <= 1


def test_if_a_file_appears_meanwhile_the_loser_says_so_and_leaves_it_alone():
    class Raced(SimulatedStorage):
        def apply(self, operation: Operation) -> None:
            if isinstance(operation, LinkFile):
                other = SimulatedStorage()
                save_to(other, OLD, "new.ptck")
                self._change("new.ptck", self._add(bytearray(other.image["new.ptck"] or b"")))
            super().apply(operation)

    storage = Raced(_OTHERS)
    with pytest.raises(CheckpointExistsError, match="another writer was first"):
        save_to(storage, NEW, "new.ptck", if_exists="error")
    assert found(storage, "new.ptck") == "old"
    assert set(storage.image) == {*_OTHERS, "new.ptck"}


def test_an_existing_checkpoint_is_refused_before_anything_is_done():
    storage = SimulatedStorage({"new.ptck": OLD_FILE})
    with pytest.raises(CheckpointExistsError):
        save_to(storage, NEW, "new.ptck", if_exists="error")
    assert not storage.operations


def test_a_directory_that_someone_else_made_is_theirs_to_make_durable():
    # The limit of the guarantee, in a model that is stricter than the journals of today's file systems.
    storage = SimulatedStorage()
    storage.apply(MakeDirectory("run"))
    save_to(storage, NEW, "run/new.ptck")
    end = len(storage.events)
    verdicts = {
        found(SimulatedStorage(state.image), "run/new.ptck")
        for state in storage.crash_states(n_random=0, seed=0, first=end)
    }
    assert verdicts == {"new", "nothing"}


# Guard the guard: break the commit, and see that the campaign notices.

Commit = Callable[..., Generator[Operation, None, object]]
Change = Callable[[list[Operation]], list[Operation]]


def changed_commit(change: Change) -> Commit:
    """`commit`, with its list of operations changed."""

    def changed(target, pieces, **options):
        original = commit(target, pieces, **options)
        operations = []
        try:
            while True:
                operations.append(next(original))
        except StopIteration as end:
            yield from change(operations)
            return end.value

    return changed


def violations(scenario: Scenario, make: MakeStorage = SimulatedStorage) -> list[str]:
    return campaign(scenario, n_random=5, last=8, make=make).violations


def sync_positions(scenario: Scenario) -> list[int]:
    storage, _ = run(scenario)
    return [n for n, each in enumerate(storage.operations) if isinstance(each, SyncFile | SyncDirectory)]


EVERY_SYNC = [(scenario, at) for scenario in SUCCEEDING for at in sync_positions(scenario)]


def test_there_are_syncs_to_remove():
    # Content and directory, and the parent of each new directory: three and one.
    assert len(EVERY_SYNC) == 2 * len(SUCCEEDING) + 4


@pytest.mark.parametrize(("scenario", "at"), EVERY_SYNC, ids=lambda value: getattr(value, "name", value))
def test_the_campaign_notices_when_any_one_sync_is_missing(scenario, at, monkeypatch):
    monkeypatch.setattr(writer_module, "commit", changed_commit(lambda ops: ops[:at] + ops[at + 1 :]))
    assert violations(scenario)


def swapped(operations: list[Operation]) -> list[Operation]:
    """Publish first, sync the content afterwards."""
    sync = next(n for n, each in enumerate(operations) if isinstance(each, SyncFile))
    publish = next(n for n, each in enumerate(operations) if isinstance(each, RenameFile | LinkFile))
    order = [*range(sync), publish, *(n for n in range(sync, len(operations)) if n != publish)]
    return [operations[n] for n in order]


@pytest.mark.parametrize("scenario", SUCCEEDING, ids=lambda scenario: scenario.name)
def test_the_campaign_notices_when_the_name_comes_before_the_sync(scenario, monkeypatch):
    monkeypatch.setattr(writer_module, "commit", changed_commit(swapped))
    assert violations(scenario)


@pytest.mark.parametrize("scenario", SUCCEEDING, ids=lambda scenario: scenario.name)
def test_the_campaign_notices_when_the_directory_is_synced_before_the_name_is_given(scenario, monkeypatch):
    def early(operations: list[Operation]) -> list[Operation]:
        publish = next(n for n, each in enumerate(operations) if isinstance(each, RenameFile | LinkFile))
        return [*operations[:publish], operations[-1], *operations[publish:-1]]

    monkeypatch.setattr(writer_module, "commit", changed_commit(early))
    assert violations(scenario)


REPLACING = [scenario for scenario in SUCCEEDING if scenario.old == "old"]


def in_place(operations: list[Operation]) -> list[Operation]:
    """Write under the final name."""
    target = next(each.target for each in operations if isinstance(each, RenameFile))
    return [
        each if isinstance(each, SyncDirectory) else dataclasses.replace(each, path=target)
        for each in operations
        if isinstance(each, CreateFile | WriteFile | SyncFile | FinishFile | SyncDirectory)
    ]


@pytest.mark.parametrize("scenario", REPLACING, ids=lambda scenario: scenario.name)
def test_the_campaign_notices_writing_in_place(scenario, monkeypatch):
    monkeypatch.setattr(writer_module, "commit", changed_commit(in_place))
    assert violations(scenario, functools.partial(SimulatedStorage, in_place=True))


@pytest.mark.parametrize("scenario", REPLACING, ids=lambda scenario: scenario.name)
def test_the_campaign_notices_when_the_old_checkpoint_is_deleted_first(scenario, monkeypatch):
    def deleting(operations: list[Operation]) -> list[Operation]:
        publish = next(n for n, each in enumerate(operations) if isinstance(each, RenameFile))
        return [*operations[:publish], RemoveFile(scenario.path), *operations[publish:]]

    monkeypatch.setattr(writer_module, "commit", changed_commit(deleting))
    assert violations(scenario)


def test_the_campaign_notices_a_sync_that_is_retried():
    class Retrying(SimulatedStorage):
        def apply(self, operation: Operation) -> None:
            try:
                super().apply(operation)
            except OSError:
                if not isinstance(operation, SyncFile):
                    raise
                super().apply(operation)

    found_violations = []
    for each in failing(SUCCEEDING[0]):
        storage, error = run(each, Retrying)
        retried = any(isinstance(event, PagesDropped) for event in storage.events)
        assert (error is None) is retried
        if retried:
            found_violations += violations(each, Retrying)
    assert any("damaged" in each for each in found_violations)


def test_the_campaign_notices_a_save_that_leaves_the_temporary_file(monkeypatch):
    def keeping(operations: list[Operation]) -> list[Operation]:
        return [each for each in operations if not isinstance(each, RemoveFile)]

    monkeypatch.setattr(writer_module, "commit", changed_commit(keeping))
    storage, error = run(SUCCEEDING[1])
    assert error is None
    assert found(storage, "new.ptck") == "new"
    # The writer's own clean-up takes it away on the running system, but not durably.
    assert set(storage.image) == {*_OTHERS, "new.ptck"}


# The simulated storage does what the real one does.


@pytest.mark.parametrize("if_exists", ["replace", "error"])
@pytest.mark.parametrize("path", ["new.ptck", "a/b/new.ptck"])
def test_the_simulated_storage_ends_up_like_the_file_system(if_exists, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    simulated = SimulatedStorage()
    for storage in (LocalStorage(), simulated):
        save_to(storage, NEW, path, if_exists=if_exists)
    real = {
        str(each.relative_to(tmp_path)): None if each.is_dir() else each.read_bytes() for each in tmp_path.rglob("*")
    }
    assert real == simulated.image


WRONG_OPERATIONS: list[list[Operation]] = [
    [CreateFile("there")],
    [CreateFile("missing/new")],
    [CreateFile("new"), FinishFile("new"), LinkFile("new", "there")],
    [CreateFile("new"), FinishFile("new"), RenameFile("new", "folder")],
    [RemoveFile("missing")],
    [MakeDirectory("missing/folder")],
    [SyncDirectory("missing")],
]


@pytest.mark.parametrize("operations", WRONG_OPERATIONS, ids=repr)
def test_the_simulated_storage_refuses_what_the_file_system_refuses(operations, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").write_bytes(b"1")
    (tmp_path / "folder").mkdir()
    refused = []
    for storage in (LocalStorage(), SimulatedStorage({"there": b"1", "folder": None})):
        for operation in operations[:-1]:
            storage.apply(operation)
        with pytest.raises(OSError) as error:  # noqa: PT011 - the type and number are what is compared
            storage.apply(operations[-1])
        assert not isinstance(error.value, PytreeckptError)
        refused.append((type(error.value), error.value.errno))
    assert refused[0] == refused[1]
