"""A plan of what goes: in an order in which every step that is there is whole, wherever it stops."""

from hypothesis import given, settings
from hypothesis import strategies as st

from pytreeckpt.commit import RemoveFile, SyncDirectory
from pytreeckpt.steps.pruning import Leftover, plan_prune, steps_to_keep
from pytreeckpt.steps.retention import keep_all, keep_best, keep_last
from tests.steps.step_records import of, records

LEFTOVERS = st.lists(st.sampled_from("abcd"), unique=True, max_size=3)


@given(records(), st.sets(st.integers(0, 60)), LEFTOVERS, LEFTOVERS)
def test_steps_go_before_data_files_and_durably(given_records, keep, data, temporaries):
    plan = plan_prune(
        "run",
        given_records,
        frozenset(keep),
        step_nbytes={record.step: 10 for record in given_records},
        data_files=[Leftover(f"data/{name}", 3) for name in data],
        temporaries=[Leftover(f".{name}.tmp", 1) for name in temporaries],
    )
    assert {record.step for record in plan.removed} == {record.step for record in given_records} - keep
    assert sorted([r.step for r in (*plan.removed, *plan.kept)]) == [record.step for record in given_records]
    gone = [operation.path for operation in plan.operations if isinstance(operation, RemoveFile)]
    assert gone == [f"run/{name}" for name in plan.files]
    assert plan.nbytes == 10 * len(plan.removed) + 3 * len(data) + len(temporaries)
    kinds = [
        "data" if path.startswith("run/data/") else "temporary" if path.startswith("run/.") else "step" for path in gone
    ]
    assert kinds == sorted(kinds, key=["step", "data", "temporary"].index)
    if plan.removed:
        # The oldest first.
        assert [r.step for r in plan.removed] == sorted(r.step for r in plan.removed)
    if plan.removed or data:
        # Also where the steps that needed the data went before.
        assert plan.operations.index(SyncDirectory("run")) == len(plan.removed)
    assert (SyncDirectory("run/data") in plan.operations) == bool(data)


@given(records(), st.sets(st.integers(0, 60)))
@settings(max_examples=50)
def test_the_newest_and_the_pinned_steps_stay(given_records, pinned):
    there = {record.step for record in given_records}
    kept = steps_to_keep(given_records, lambda _: frozenset([1000]), pinned)
    sound = [record.step for record in given_records if record.reason != "exception"]
    emergencies = [record.step for record in given_records if record.reason == "exception"]
    assert kept == (pinned & there) | set(sound[-1:]) | set(emergencies[-1:])


def test_what_an_exception_left_takes_no_other_steps_place():
    some = [of(1), of(2), of(3), of(4, reason="exception"), of(5, reason="exception")]
    assert steps_to_keep(some, keep_last(2)) == {2, 3, 4, 5}
    assert steps_to_keep(some, keep_last(1)) == {3, 5}
    assert steps_to_keep(some, keep_best(1, "x")) == {3, 5}
    assert steps_to_keep(some, keep_all()) == {1, 2, 3, 4, 5}


def test_nothing_to_do_is_no_operation():
    assert plan_prune("run", [], frozenset(), step_nbytes={}).operations == ()


def test_of_what_exceptions_left_the_one_that_was_saved_last_stays_also_if_it_failed_earlier():
    some = [of(1), of(4, saved_at=20.0, reason="exception"), of(5, saved_at=10.0, reason="exception")]
    assert steps_to_keep(some, keep_best(1, "x")) == {1, 4}
