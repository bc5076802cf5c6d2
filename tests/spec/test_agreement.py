"""Library and reference reader agree on files that nobody has seen before: of drawn trees, and damaged ones."""

import json
import warnings
from pathlib import Path

import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st

import pytreeckpt
from pytreeckpt import CorruptionError, FormatVersionError, LimitError
from pytreeckpt.testing import identical, trees
from spec import generate
from spec.reference import reader
from tests.mutations import mutate
from tests.spec.neutral import library_neutral, open_bytes

VALID = sorted((Path(generate.__file__).parent / "vectors" / "valid").glob("*.ptck"))
ARRAYS_NBYTES = 64 << 20


@pytest.fixture(scope="module", autouse=True)
def reader_with_small_limits():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "MAX_ARRAYS_NBYTES", ARRAYS_NBYTES)
        yield


@given(trees(), st.none() | st.dictionaries(st.text(), st.integers()), st.sampled_from(["auto", "none", 3]))
def test_the_reader_reads_what_the_library_writes(tree, metadata, compression):
    data = pytreeckpt.encode(tree, metadata=metadata, compression=compression)
    document = json.loads(json.dumps(reader.neutral(reader.decode(data))))
    checkpoint = open_bytes(data)
    assert document == library_neutral(checkpoint)
    if not document["types"]:
        # Without objects, a reader that knows none gives the same values.
        read_metadata, read_tree = reader.read(data)
        assert identical(tree, read_tree) == []
        assert identical(metadata, read_metadata) == []


def verdict_of_the_library(data):
    try:
        with pytreeckpt.limits(arrays_nbytes=ARRAYS_NBYTES), warnings.catch_warnings():
            # Of objects that need another platform.
            warnings.simplefilter("ignore")
            pytreeckpt.decode(data, to="numpy")
    except (CorruptionError, FormatVersionError) as error:
        return error.rule
    except LimitError:
        return "limit"
    return "accepted"


def verdict_of_the_reader(data):
    try:
        reader.decode(data)
    except reader.Refused as refusal:
        return refusal.rule
    return "accepted"


def test_there_are_files_to_damage():
    assert len(VALID) >= 50


@given(st.sampled_from(VALID), st.integers(0, 2**32))
@example(VALID[0], 0)
def test_library_and_reader_agree_on_damaged_files(path, seed):
    data = mutate(path.read_bytes(), seed)
    library, reference = verdict_of_the_library(data), verdict_of_the_reader(data)
    if library != reference:
        event(f"{library} and {reference}")
    if "limit" in {library, reference}:
        return
    if library == "T-4" or (library == "D-1" and path.stem.startswith("dtypes-")):
        # The library builds objects, and has not every dtype.
        return
    assert (library == "accepted") == (reference == "accepted"), (library, reference)
