"""The manager against a plain dict: any order of saves, failures, crashes, restarts, pins and readers.

The model knows what each acknowledged step holds and what a plain version of the policy keeps of them. Whatever happens
between any two operations of the storage: no acknowledged step that the policy keeps is lost or changed, no step that
is there lacks data, nothing is forgotten of what the history was told, and nothing foreign is touched.
"""

import errno
import itertools
import math
import warnings

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pytreeckpt import CheckpointManager, NotDurableError, PytreeckptError, encode
from pytreeckpt.commit import RemoveFile
from pytreeckpt.run import prune, read_run
from pytreeckpt.run.history_file import read_history
from pytreeckpt.run.listing import list_steps
from pytreeckpt.steps.history import unknown
from pytreeckpt.steps.names import step_of
from pytreeckpt.steps.retention import keep_last
from tests.exact import difference
from tests.simulated_storage import Fault, SimulatedStorage

ROOT = "run"
FOREIGN = {
    ROOT: None,
    f"{ROOT}/data": None,
    f"{ROOT}/notes.txt": b"mine",
    f"{ROOT}/step-1.ptck": b"not quite our name",
    f"{ROOT}/step-00000003.ptck": b"our name, and none of our files",
    f"{ROOT}/step-00000020.ptck": b"the newest, by its name",
    f"{ROOT}/step-00000021.ptck": encode({"mine": 1}),
    f"{ROOT}/mine.ptck": encode({"mine": 1}),
    f"{ROOT}/.step-00000001.ptck.tmp": b"nearly one of our temporary names",
    f"{ROOT}/data/{'ab' * 32}.ptck": b"the name of a data file, and none",
    f"{ROOT}/data/notes.txt": b"mine too",
}
# Of which step 3 is taken by the foreign file.
STEPS = st.sampled_from([0, 1, 2, *range(4, 15)])
METRICS = st.none() | st.sampled_from([math.nan, -1.0, 0.0, 0.5, 0.5, 2.0, math.inf])
ERRNOS = st.sampled_from([errno.ENOSPC, errno.EIO])


class CrashError(BaseException):
    """The machine stops here."""


class Machine(SimulatedStorage):
    """A storage whose machine may stop before any operation, and that lets others look before each one."""

    def __init__(self, image):
        super().__init__(image)
        self.stop_at = None
        self.is_dead = False
        self.look = None
        self.told_late = []

    def apply(self, operation):
        if self.is_dead or self.stop_at == len(self.operations):
            self.is_dead = True
            raise CrashError
        if self.look is not None:
            # What looking does is not looked at.
            look, self.look = self.look, None
            look()
            self.look = look
        if isinstance(operation, RemoveFile) and step_of(operation.path.removeprefix(f"{ROOT}/")) is not None:
            # Whatever is there, the history knows before anything goes.
            there = list_steps(self, ROOT, None).records
            self.told_late += unknown(read_history(self, ROOT), there)
        super().apply(operation)

    def discard(self, temporary):
        if not self.is_dead:
            super().discard(temporary)

    def start_again(self):
        """The process was killed, and the system runs on: what was not durable is not, but all is there."""
        self.stop_at = self.look = self.fault = None
        self.is_dead = False
        self.locks.clear()
        self.created.clear()
        self.open_nodes.clear()


def tree_of(number, step):
    """A tree of which most is the same for all numbers, as in fine-tuning, and some is for all steps of a number."""
    return {
        "frozen": np.arange(200, dtype=np.float32),
        "shared": np.full(120, number, np.int64),
        "own": np.arange(100.0) * (step + 1) + number,
        "small": [step, number],
    }


def kept(steps, policy):
    """What the policy keeps of these steps (numbers with their metric or None), said plainly."""
    n_last, n_best, period = policy
    if n_last is n_best is period is None:
        return set(steps)
    found = set(sorted(steps)[-n_last:]) if n_last else set()
    measured = [step for step in steps if steps[step] is not None]
    measured.sort(key=lambda step: (math.isnan(steps[step]), 0.0 if math.isnan(steps[step]) else steps[step], -step))
    found |= set(measured[: n_best or 0])
    if period:
        # Of each multiple the first step at or after it.
        periods = {step // period for step in steps if step >= period or step == 0}
        found |= {min(step for step in steps if step // period == number) for number in periods}
    return found | {max(steps)} if steps else found


def what_goes(report):
    """A report as values that can be compared, which NaN cannot."""
    removed = [(record.step, record.root, sorted(map(repr, record.metrics.items()))) for record in report.removed]
    return removed, report.removed_files, report.freed_nbytes


class ManagerMachine(RuleBasedStateMachine):
    """`held`: what each acknowledged step that must be there holds; `metric`: of each step that was acknowledged ever.

    `may_hold`: what steps may hold instead, or (None) that they may be gone, after a crash or a failure.
    """

    incremental = False

    def __init__(self):
        super().__init__()
        self.storage = Machine(FOREIGN)
        self.held = {}
        self.metric = {}
        self.may_hold = {}
        self.pins = {}
        # Of each step what `log` may have left of its metric "lr", and of those that may not be written yet, what was
        # before.
        self.logged = {}
        self.unwritten = {}
        self.doubted = set()
        # What steps and pins were or were not before, where what they are may not be durable.
        self.ghosts = {}
        self.old_pins = {}
        # Whether all was pruned since something stopped or failed.
        self.is_tidy = True
        self.clock = itertools.count()
        self.numbers = itertools.count()
        self.manager = None

    @initialize(
        policy=st.tuples(st.none() | st.integers(1, 3), st.none() | st.integers(1, 2), st.none() | st.integers(2, 4))
    )
    def begin(self, policy):
        self.policy = policy
        self.restart()

    def restart(self):
        n_last, n_best, period = self.policy
        self.manager = CheckpointManager(
            ROOT,
            keep_last=n_last,
            keep_best=n_best,
            keep_every=period,
            metric="loss",
            incremental=self.incremental,
            storage=self.storage,
            clock=lambda: float(next(self.clock)),
        )

    # What the model expects.

    def expected_after(self, step):
        """The steps that stay when `step` has been saved and all is pruned."""
        steps = {each: self.metric[each] for each in self.held}
        return kept(steps, self.policy) | (set(self.pins.values()) & set(steps)) | {step}

    def saved(self, step, tree, metric):
        if step in self.metric and step in self.logged:
            # What is known of an earlier save is replaced.
            if step not in self.unwritten:
                del self.logged[step]
            elif step in self.doubted:
                self.logged[step] = [None, *self.logged[step]]
        self.held[step], self.metric[step] = tree, metric
        self.may_hold.pop(step, None)

    def maybe_saved(self, step, tree, metric):
        """A save of which nobody knows how it ended: also whether it came to prune."""
        if step in self.logged:
            self.unwritten.setdefault(step, self.logged[step])
            self.doubted.add(step)
            self.logged[step] = [None, *self.logged[step]]
        before = self.held.pop(step, None)
        old = self.may_hold.get(step, [None if before is None else (before, self.metric[step])])
        self.may_hold[step] = [*old, (tree, metric)]
        steps = {each: self.metric[each] for each in self.held} | {step: metric}
        staying = kept(steps, self.policy) | set(self.pins.values()) | {step}
        for each in set(self.held) - staying:
            self.may_hold[each] = [None, (self.held.pop(each), self.metric[each])]

    def forget_pruned(self, step):
        """The step was saved, and what the policy does not keep is gone, or will be."""
        for each in set(self.held) - self.expected_after(step):
            self.may_hold[each] = [None, (self.held.pop(each), self.metric[each])]

    def doubt_logs(self):
        """What was logged may not have been written, and never will be."""
        for step, before in self.unwritten.items():
            self.logged[step] = [*before, *self.logged[step]]
            self.doubted.add(step)

    def settle(self, found):
        """Of what may be or not be, take what is."""
        for step, options in list(self.may_hold.items()):
            if step in found:
                content = next((o for o in options if o is not None and difference(o[0], found[step]) is None), None)
                assert content is not None, f"step {step} holds what it never held"
                self.held[step], self.metric[step] = content
            else:
                content = None
                assert None in options, f"step {step} is lost"
                if step in self.ghosts:
                    # What was known of it since may be gone with it.
                    self.metric.pop(step, None)
                    self.logged.pop(step, None)
                    self.unwritten.pop(step, None)
            # After a power cut it may be as it was before, until the folder has been synced.
            self.ghosts[step] = [*self.ghosts.get(step, []), *(each for each in options if each is not content)]
            del self.may_hold[step]

    # What is done.

    @rule(step=STEPS, metric=METRICS, blocking=st.booleans(), late=st.none() | st.floats(0, 1))
    def save(self, step, metric, blocking, late):
        tree = tree_of(next(self.numbers), step)
        metrics = {} if metric is None else {"loss": metric}
        handle = self.manager.save(
            step, tree, metrics=metrics, if_exists="replace", blocking=blocking, metadata={"n": step}
        )
        if late is not None:
            # Maybe while it is being saved.
            self.manager.log(step, {"lr": late})
        assert handle.result(10).path == f"{ROOT}/step-{step:08d}.ptck"
        self.saved(step, tree, metric)
        self.is_tidy = True
        if late is not None:
            self.manager.wait()
            self.logged[step] = [late]
        self.unwritten = {}
        expected = self.expected_after(step)
        self.settle(self.read_all())
        # What was saved but could not be pruned before may be among them, or is pruned now.
        expected |= kept({each: self.metric[each] for each in self.held}, self.policy)
        present = set(self.manager.steps())
        assert present <= expected | {step}
        assert self.expected_after(step) <= present
        self.held = {each: content for each, content in self.held.items() if each in present}
        self.synced()

    @rule(step=STEPS)
    def save_what_is_there_already(self, step):
        if step not in self.manager.steps():
            return
        with pytest.raises(FileExistsError):
            self.manager.save(step, {"x": 1})

    @rule(step=STEPS, metric=METRICS, within=st.integers(0, 45), number=ERRNOS, logged=st.none() | st.floats(0, 1))
    def fail_to_save(self, step, metric, within, number, logged):
        if logged is not None:
            self.log(step, logged)
        tree = tree_of(next(self.numbers), step)
        self.is_tidy = False
        self.storage.fault = Fault(len(self.storage.operations) + within, number)
        before = set(self.manager.steps())
        metrics = {} if metric is None else {"loss": metric}
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                self.manager.save(step, tree, metrics=metrics, if_exists="replace")
            except NotDurableError:
                self.maybe_saved(step, tree, metric)
            except PytreeckptError:
                assert set(self.manager.steps()) == before
            else:
                self.saved(step, tree, metric)
                self.forget_pruned(step)
                # After that, a save of one of these again would replace what was logged.
                self.doubt_logs()
                # That it could not write the history, or could not prune, or not use a data file.
                texts = [str(each.message) for each in told]
                assert all("tried again" in text or "stored again" in text for text in texts), texts
        self.storage.fault = None
        self.settle(self.read_all())

    @rule(step=STEPS, metric=METRICS, within=st.integers(0, 45), power=st.booleans(), data=st.data())
    def crash_while_saving(self, step, metric, within, power, data):
        tree = tree_of(next(self.numbers), step)
        self.storage.stop_at = len(self.storage.operations) + within
        metrics = {} if metric is None else {"loss": metric}
        try:
            self.manager.save(step, tree, metrics=metrics, if_exists="replace")
        except CrashError:
            self.maybe_saved(step, tree, metric)
        else:
            self.saved(step, tree, metric)
            self.forget_pruned(step)
        self.reboot(data, power=power)

    @rule(name=st.sampled_from(["a", "b"]), within=st.integers(0, 12), power=st.booleans(), data=st.data())
    @precondition(lambda self: self.held)
    def crash_while_pinning(self, name, within, power, data):
        step = data.draw(st.sampled_from(sorted(self.held)))
        before = self.pins.get(name)
        self.storage.stop_at = len(self.storage.operations) + within
        try:
            self.manager.pin(name, step)
        except CrashError:
            # As with steps: it may be as it was before, until the folder has been synced.
            self.old_pins[name] = [*self.old_pins.get(name, []), before, step]
            self.settle_pin(name)
        else:
            self.pins[name] = step
            self.synced()
        self.reboot(data, power=power)

    def settle_pin(self, name):
        """Of what a pin may be, take what it is."""
        found = read_run(ROOT, storage=self.storage).pins.get(name)
        assert found in self.old_pins[name]
        self.pins.pop(name, None)
        if found is not None:
            self.pins[name] = found

    def synced(self):
        """The names in the folder are durable, and so is what they were given to."""
        self.ghosts, self.old_pins = {}, {}

    def reboot(self, data, *, power):
        """The process is killed, or the power goes; the next process finds what the disk has."""
        storage = self.storage
        self.is_tidy = False
        if power:
            states = storage.crash_states(n_random=1, seed=len(storage.events), first=len(storage.events))
            images = [state.image for state in itertools.islice(states, 64)]
            image = images[data.draw(st.integers(0, len(images) - 1), label="which of the disks that are possible")]
            self.storage = Machine(image)
            for step, options in self.ghosts.items():
                now = (self.held.pop(step), self.metric[step]) if step in self.held else None
                self.may_hold[step] = [*self.may_hold.get(step, [now]), *options]
        else:
            self.storage.start_again()
        self.doubt_logs()
        if power:
            for name in self.old_pins:
                self.settle_pin(name)
            self.unwritten = {}
        self.restart()
        self.settle(self.read_all())
        if power:
            self.synced()

    @rule(name=st.sampled_from(["a", "b"]), data=st.data())
    @precondition(lambda self: self.held)
    def pin(self, name, data):
        step = data.draw(st.sampled_from(sorted(self.held)))
        self.manager.pin(name, step)
        self.pins[name] = step
        self.synced()

    @rule(data=st.data())
    @precondition(lambda self: self.pins)
    def unpin(self, data):
        name = data.draw(st.sampled_from(sorted(self.pins)))
        self.manager.unpin(name)
        del self.pins[name]
        self.synced()

    @rule()
    def prune(self):
        planned = self.manager.prune(dry_run=True)
        done = self.manager.prune()
        assert what_goes(planned) == what_goes(done)
        self.is_tidy, self.unwritten = True, {}
        self.synced()
        # Without a newer step, the largest number is the newest.
        steps = {each: self.metric[each] for each in self.held}
        gone = {record.step for record in done.removed}
        assert gone == set(steps) - kept(steps, self.policy) - set(self.pins.values()), (steps, self.pins)
        self.held = {step: tree for step, tree in self.held.items() if step not in gone}

    @rule(n=st.integers(1, 2), within=st.none() | st.integers(0, 10), power=st.booleans(), data=st.data())
    def prune_from_outside(self, n, within, power, data):
        """Somebody prunes the folder that nobody writes to, by a policy that keeps less; his machine may stop."""
        self.manager.close()
        staying = kept({each: self.metric[each] for each in self.held}, (n, None, None)) | set(self.pins.values())
        for each in set(self.held) - staying:
            self.may_hold[each] = [None, (self.held.pop(each), self.metric[each])]
        self.storage.stop_at = None if within is None else len(self.storage.operations) + within
        try:
            prune(ROOT, keep_last(n), storage=self.storage)
        except CrashError:
            pass
        else:
            assert set(self.read_all()) == set(self.held)
        self.reboot(data, power=power)

    @rule(step=STEPS, value=st.floats(0, 1))
    def log(self, step, value):
        self.manager.log(step, {"lr": value})
        self.unwritten[step] = [*self.unwritten.get(step, []), *self.logged.get(step, [None])]
        self.doubted.discard(step)
        self.logged[step] = [value]

    @rule()
    def wait(self):
        self.manager.wait()
        self.unwritten = {}

    @rule()
    def close_and_open(self):
        self.manager.close()
        self.unwritten = {}
        self.restart()

    @rule(step=STEPS, metric=METRICS)
    def save_while_others_look(self, step, metric):
        """Before each operation of the save, somebody lists the run and restores the latest step."""
        tree = tree_of(next(self.numbers), step)
        at_most = {**self.held, step: tree}
        replaced = self.held.get(step)
        newest = max(self.held, default=None)
        reader = CheckpointManager(ROOT, storage=self.storage, metric="loss")

        def look():
            run = read_run(ROOT, storage=self.storage)
            there = {record.step for record in run.records}
            assert there <= set(at_most)
            assert newest is None or max(there) >= newest
            if there:
                found = reader.restore("latest")
                either = [at_most[max(there)], replaced if max(there) == step else None]
                assert any(each is not None and difference(each, found) is None for each in either)

        self.storage.look = look
        metrics = {} if metric is None else {"loss": metric}
        self.manager.save(step, tree, metrics=metrics, if_exists="replace")
        self.storage.look = None
        self.saved(step, tree, metric)
        self.unwritten = {}
        self.is_tidy = True
        self.forget_pruned(step)
        self.settle(self.read_all())
        self.synced()

    # What always holds.

    def read_all(self):
        """Every step that is there, restored; what cannot be restored is no step."""
        run = read_run(ROOT, storage=self.storage)
        assert run.damaged == ()
        found = {}
        for record in run.records:
            with run.open(record.step) as checkpoint:
                found[record.step] = checkpoint.restore()
        return found

    @invariant()
    def every_step_is_there_and_whole(self):
        found = self.read_all()
        assert set(found) == set(self.held)
        for step, tree in self.held.items():
            assert difference(tree, found[step]) is None

    @invariant()
    def latest_and_best_are_computed(self):
        if self.manager is None:
            return
        assert self.manager.latest == max(self.held, default=None)
        measured = kept({step: self.metric[step] for step in self.held}, (None, 1, None)) if self.held else set()
        measured = {step for step in measured if self.metric[step] is not None}
        best = self.manager.best
        assert (best is None) == all(self.metric[step] is None for step in self.held)
        assert best is None or best in measured

    @invariant()
    def the_history_forgets_nothing(self):
        if self.manager is None:
            return
        assert not self.may_hold
        history = {record.step: record.metrics for record in self.manager.history()}
        for step, metric in self.metric.items():
            if metric is None:
                assert "loss" not in history[step]
            else:
                found = history[step].get("loss")
                assert found == metric or (math.isnan(metric) and math.isnan(found)), (step, metric, found)
        for step, options in self.logged.items():
            found = history[step].get("lr") if step in history else None
            assert found in options, (step, options, found)
            if step not in self.unwritten:
                self.logged[step] = [found]

    @invariant()
    def nothing_goes_before_the_history_knows_it_and_what_is_newer(self):
        assert self.storage.told_late == []

    @invariant()
    def pins_stay(self):
        if self.manager is not None:
            assert self.manager.pins == self.pins

    @invariant()
    def nothing_foreign_is_touched(self):
        image = self.storage.image
        for path, content in FOREIGN.items():
            assert image[path] == content

    @invariant()
    def nothing_is_left_over(self):
        # What a crash or a failure left goes with the next pruning.
        if self.is_tidy:
            assert read_run(ROOT, storage=self.storage).leftovers == ()


class IncrementalMachine(ManagerMachine):
    incremental = True


@pytest.mark.parametrize("machine", [ManagerMachine, IncrementalMachine])
def test_the_manager_agrees_with_a_plain_dict(machine):
    quick = settings(max_examples=18, stateful_step_count=14, deadline=None, derandomize=True)
    run_state_machine_as_test(machine, settings=quick)


@pytest.mark.slow
@pytest.mark.parametrize("machine", [ManagerMachine, IncrementalMachine])
def test_the_manager_agrees_with_a_plain_dict_for_long(machine):
    run_state_machine_as_test(machine, settings=settings(max_examples=1500, stateful_step_count=30, deadline=None))
