"""Library and reference reader agree on files that nobody has seen before: of drawn trees, and damaged ones."""

import json
import shutil
import struct
import warnings
from contextlib import contextmanager
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st

import pytreeckpt
from pytreeckpt import Checkpoint, CheckpointNotFoundError, CorruptionError, FormatVersionError, LimitError
from pytreeckpt.content import own_content
from pytreeckpt.reading import BytesSource
from pytreeckpt.testing import identical, trees
from spec import generate
from spec.corpus.data_files import DATA_FILES, name_of, root_of
from spec.corpus.parts import PLANES, Chunk, Row, of_arrays, take_apart
from spec.reference import reader
from tests.mutations import mutate
from tests.spec.neutral import library_neutral, open_bytes

VALID = sorted((Path(generate.__file__).parent / "vectors" / "valid").glob("*.ptck"))
DATA = VALID[0].parent / "data"
MANIFESTS = [path for path in VALID if path.stem.startswith("data-files-")]
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


def weights(dtype):
    """20,011 items or more: integers, or floats of similar exponents and some of every kind."""
    dtype = np.dtype(dtype)
    values = np.random.default_rng(7).standard_normal(40_022) * 0.02
    if dtype.kind in "iuMU":
        return (values * 1000).astype("<i8").astype(dtype)
    values[:7] = [np.nan, -np.nan, np.inf, -np.inf, -0.0, 1e-45, 5e-324]
    with np.errstate(under="ignore"):
        return values.astype(f"<f{dtype.itemsize // 2}").view(dtype) if dtype.kind == "c" else values.astype(dtype)


FLOATS = ["<f2", ml_dtypes.bfloat16, "<f4", "<f8", "<c8", "<c16"]
OTHERS = ["<i2", "<i4", "<u8", ">f4", ">f8", "<M8[ns]", "<U2"]


@pytest.mark.parametrize("compression", ["auto", 3])
@pytest.mark.parametrize("dtype", FLOATS + OTHERS, ids=str)
def test_the_reader_reads_the_planes_that_the_library_writes(dtype, compression):
    array = weights(dtype)
    tree = [array, array[:20_000].reshape(100, 200).T]
    data = pytreeckpt.encode(tree, compression=compression)
    codecs = set(open_bytes(data).index.chunks.codec.tolist())
    assert dtype in OTHERS or codecs == {3}
    assert identical(tree, reader.read(data)[1]) == []
    assert identical(tree, pytreeckpt.decode(data)) == []


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


def verdict_of_the_reader(data, folder=None):
    try:
        reader.decode(data, folder)
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


def verdict_on_all_files(data, folder=DATA):
    """What the library finds in a manifest and all of its data files, which are in a folder: that of the vectors."""

    def open_data_file(name):
        try:
            return BytesSource(memoryview((folder / name).read_bytes()))
        except FileNotFoundError:
            raise CheckpointNotFoundError(name) from None

    try:
        with pytreeckpt.limits(arrays_nbytes=ARRAYS_NBYTES) as limits, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            checkpoint = Checkpoint(own_content(BytesSource(memoryview(data)), limits, open_data_file), None)
            for problem in checkpoint.damage():
                raise problem
            checkpoint.restore(to="numpy")
    except (CorruptionError, FormatVersionError) as error:
        return error.rule
    except LimitError:
        return "limit"
    return "accepted"


def test_there_are_manifests_to_damage():
    assert len(MANIFESTS) >= 10


@given(st.sampled_from(MANIFESTS), st.none() | st.integers(0, 2**32))
@example(MANIFESTS[0], None)
def test_library_and_reader_agree_on_damaged_manifests(path, seed):
    data = path.read_bytes() if seed is None else mutate(path.read_bytes(), seed)
    library, reference = verdict_on_all_files(data), verdict_of_the_reader(data, DATA)
    event(reference)
    if library != reference:
        event(f"{library} and {reference}")
    if "limit" in {library, reference} or library == "T-4":
        return
    assert seed is not None or library == "accepted"
    assert (library == "accepted") == (reference == "accepted"), (library, reference)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The data files of the vectors, and more."""
    return Path(shutil.copytree(DATA, tmp_path_factory.mktemp("vectors") / "data"))


@given(st.sampled_from(MANIFESTS), st.integers(0, 2**32), st.booleans())
def test_library_and_reader_agree_on_damaged_data_files(folder, path, seed, as_told):
    manifest = take_apart(path.read_bytes())
    manifest.preamble[16] = DATA_FILES
    entries = manifest.index["files"]
    number = 1 + seed % (len(entries) - 1)
    changed = mutate((DATA / entries[number][0]).read_bytes(), seed)
    entries[number] = [name_of(changed), len(changed), root_of(changed)]
    if as_told:
        # So that not every change of its table is C-15.
        adopt_rows(manifest.index["chunks"], number, changed)
    with in_place(folder / name_of(changed), changed):
        data = manifest.encode()
        library, reference = verdict_on_all_files(data, folder), verdict_of_the_reader(data, folder)
    event(reference)
    if library != reference:
        event(f"{library} and {reference}")
    if "limit" in {library, reference} or library == "T-4":
        return
    assert (library == "accepted") == (reference == "accepted"), (library, reference)


@contextmanager
def in_place(path, data):
    """A file for a while, in place of the one that may be there: the root is of the index alone."""
    before = path.read_bytes() if path.exists() else None
    path.write_bytes(data)
    try:
        yield
    finally:
        path.unlink() if before is None else path.write_bytes(before)


def adopt_rows(table, number, data):
    """Say of the chunks of a data file what it says itself of those at their places."""
    try:
        own = take_apart(data).index["chunks"]
        told = zip(own["offset"], zip(own["check"], own["digest"], own["codec"], strict=True), strict=True)
        by_offset = dict(told)
    except (reader.Refused, struct.error, ValueError, TypeError, KeyError, AttributeError):
        return
    for at, place in enumerate(zip(table["file"], table["offset"], strict=True)):
        if place[0] == number and place[1] in by_offset:
            table["check"][at], table["digest"][at], table["codec"][at] = by_offset[place[1]]


@st.composite
def damaged_planes(draw):
    """A chunk of planes with some bytes of its header, entries, planes or length changed, and its check right."""
    vectors = [path for path in VALID if path.stem.startswith("planes-") and path.stem != "planes-zstd-8-mib"]
    file = take_apart(draw(st.sampled_from(vectors)).read_bytes())
    chunks = file.index["chunks"]
    of_planes = [row for row, codec in enumerate(chunks["codec"]) if codec == PLANES]
    row = draw(st.sampled_from(of_planes))
    begin, raw_nbytes = chunks["offset"][row] - 64, chunks["raw"][row]
    stored = bytearray(file.body[begin : begin + chunks["stored"][row]])
    edges = st.sampled_from([0, 1, 2, 3, 4, 8, 15, 16, 255]) | st.integers(0, 255)
    places = st.integers(0, min(len(stored), 8 + 8 * stored[2]) - 1) | st.integers(0, len(stored) - 1)
    for at, byte in draw(st.lists(st.tuples(places, edges), min_size=1, max_size=3)):
        stored[at] = byte
    cut = draw(st.sampled_from([0, 0, 0, 1, 8, 9]))
    stored = bytes(stored[: len(stored) - cut]) + bytes(draw(st.sampled_from([0, 0, 0, 1, 8, 16])))
    itemsize = draw(st.sampled_from([size for size in (2, 4, 8, 6, 12, 16, 1) if raw_nbytes % size == 0]))
    return stored, raw_nbytes, itemsize


@given(damaged_planes())
def test_library_and_reader_agree_on_damaged_planes(chunk):
    stored, raw_nbytes, itemsize = chunk
    try:
        # What is accepted has to be the same too, so the digest is that of what the reader makes of it.
        raw = reader.read_planes(memoryview(stored), raw_nbytes, itemsize, "chunk")
    except reader.Refused:
        raw = bytes(raw_nbytes)
    chunks = [[Chunk(stored, raw, PLANES)]]
    data = of_arrays(Row(["void", itemsize], [raw_nbytes // itemsize], None, chunks)).encode()
    library, reference = verdict_of_the_library(data), verdict_of_the_reader(data)
    event(reference)
    if library != reference:
        event(f"{library} and {reference}")
    assert (library == "accepted") == (reference == "accepted"), (library, reference)
