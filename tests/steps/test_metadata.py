import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytreeckpt import CorruptionError, FormatVersionError, PytreeckptError, decode, encode
from pytreeckpt.checkpoint import Checkpoint
from pytreeckpt.reading import BytesSource
from pytreeckpt.steps.metadata import KEY, record_in, with_record, without_record
from tests.steps.step_records import of, one_record
from tests.strategies import TREES

METADATA = st.one_of(
    st.none(),
    st.integers(),
    st.lists(st.text()),
    st.dictionaries(st.sampled_from(["metadata", KEY, "a"]) | st.text(), st.integers() | st.none()),
)


@given(METADATA, st.integers(0, 2**63 - 1).flatmap(one_record))
def test_what_is_known_of_a_step_and_what_the_caller_gave_come_back(metadata, record):
    data = encode(None, metadata=with_record(metadata, record))
    found = Checkpoint(BytesSource(memoryview(data)), None).metadata
    assert repr(record_in(found, root=record.root, nbytes=record.nbytes)) == repr(record)
    assert repr(without_record(found)) == repr(metadata)
    assert decode(data) is None


def test_the_fields_of_the_caller_stay_where_they_are():
    assert with_record({"model": "gpt"}, of(1))["model"] == "gpt"


@given(TREES)
def test_metadata_without_a_step_tell_of_none(metadata):
    assert record_in(metadata, root="", nbytes=0) is None


@given(TREES | st.fixed_dictionaries({"version": st.just(1)}, optional={"step": st.integers()}))
def test_anything_in_the_place_of_a_step_is_refused(value):
    with pytest.raises(PytreeckptError):
        record_in({KEY: value}, root="", nbytes=0)


@pytest.mark.parametrize(
    "change",
    [
        {"step": -1},
        {"step": True},
        {"step": "1"},
        {"saved_at": float("nan")},
        {"saved_at": 1},
        {"metrics": {"x": 1}},
        {"metrics": {1: 1.0}},
        {"metrics": []},
        {"epoch": float("inf")},
        {"epoch": 1},
        {"reason": "boredom"},
        {"more": 1},
    ],
)
def test_what_cannot_be_is_refused(change):
    about = dict(with_record(None, of(1, {"x": 1.0}))[KEY])
    assert record_in({KEY: about}, root="", nbytes=0) is not None
    with pytest.raises(CorruptionError) as refused:
        record_in({KEY: {**about, **change}}, root="", nbytes=0)
    assert refused.value.rule == "R-2"


def test_a_newer_version_is_not_damage():
    with pytest.raises(FormatVersionError):
        record_in({KEY: {"version": 2}}, root="", nbytes=0)
