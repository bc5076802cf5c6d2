import dataclasses
import os

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytreeckpt import (
    LimitError,
    NotMappableError,
    Progress,
    PytreeckptError,
    codecs,
    encode,
    limits,
    planning,
    restore,
    streaming,
    verify,
)
from pytreeckpt.arrays import ArraySource
from pytreeckpt.incremental import Known, files_needed, read_known, storing, writing
from pytreeckpt.incremental import known as known_module
from pytreeckpt.incremental.deciding import MAX_FILES
from pytreeckpt.incremental.known import data_path
from pytreeckpt.index import DataFile
from pytreeckpt.opening import open_own
from pytreeckpt.pipeline import THREADS_VARIABLE
from pytreeckpt.reading import read_footer
from pytreeckpt.storage import LocalStorage
from tests.exact import difference
from tests.incremental.saving import (
    NOTHING,
    chunks_of_nbytes,
    data_names,
    found,
    held_nbytes,
    needed_nbytes,
    noise,
    save,
)
from tests.simulated_storage import SimulatedStorage
from tests.strategies import trees_with_sharing


@pytest.fixture(autouse=True, scope="module")
def _small_chunks():
    with chunks_of_nbytes(1024):
        yield


# Several of each size, which are cut, filled and padded in different ways; all sizes divide 48.
DTYPES = [
    *map(np.dtype, ["u1", "i1", "S1", ">i2", "f2", "V3", "<f4", ">f4", "i4", "U1", "<f8", ">u8", "c8", "<M8[s]", "V8"]),
    *map(np.dtype, ["c16", "V16", "S48", "U12"]),
    *map(np.dtype, [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]),
    np.dtype([("a", "u1"), ("b", "<u4")], align=True),
    np.dtype([("a", "<u4"), ("b", ">u4")]),
]


@st.composite
def contents(draw):
    """Bytes that are stored raw, as a fill, as one frame or in planes."""
    nbytes = draw(st.integers(20, 100)) * 48
    seed = draw(st.integers(0, 5))
    match draw(st.sampled_from(["noise", "zeros", "same", "few", "floats"])):
        case "zeros":
            return np.zeros(nbytes, "u1")
        case "same":
            return np.tile(noise(draw(st.sampled_from([1, 2, 4, 8, 16])), seed), nbytes)[:nbytes]
        case "few":
            return noise(nbytes, seed) & 1
        case "floats":
            return np.random.default_rng(seed).standard_normal(nbytes // 4).astype("f4").view("u1")
    return noise(nbytes, seed)


def of_dtype(raw: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The bytes as items, of which text is text."""
    if dtype.kind == "U":
        return (np.frombuffer(raw.tobytes(), "u4") % 0xD800).astype("u4").view(dtype)
    return np.frombuffer(raw.tobytes(), dtype).copy()


@st.composite
def histories(draw):
    """Trees, of which each shares arrays, and parts of arrays, with the earlier ones."""
    pool: list[np.ndarray] = []
    trees = []
    for _ in range(draw(st.integers(1, 5))):
        tree = {}
        for number in range(draw(st.integers(1, 5))):
            how = draw(st.sampled_from(["new", "same", "copied", "changed", "joined", "viewed"])) if pool else "new"
            before = pool[draw(st.integers(0, len(pool) - 1))] if pool else None
            if how == "new" or before is None:
                array = of_dtype(draw(contents()), draw(st.sampled_from(DTYPES)))
            elif how == "same":
                array = before
            elif how == "copied":
                array = before.copy()
            elif how == "changed":
                raw = np.frombuffer(before.tobytes(), "u1").copy()
                raw[draw(st.integers(0, len(raw) - 1))] ^= 1
                array = of_dtype(raw, before.dtype)
            elif how == "joined":
                array = np.concatenate([before, before])
            else:
                array = of_dtype(np.frombuffer(before.tobytes(), "u1"), draw(st.sampled_from(DTYPES)))
            pool.append(array)
            tree[f"{number}"] = array
        if draw(st.booleans()):
            # Many of one dtype share chunks, with others before and behind them than in another tree.
            start, dtype = draw(st.integers(0, 40)), draw(st.sampled_from(["<f4", ">f4", "<i4"]))
            tree["small"] = [np.full(70, start + number, dtype) for number in range(draw(st.integers(32, 40)))]
        trees.append({"step": len(trees), "params": tree})
    return trees


@given(histories(), st.sampled_from(["auto", "none", 3]), st.booleans(), st.randoms(use_true_random=False))
def test_each_step_is_exact_whatever_becomes_of_the_others_and_holds_at_most_twice_what_it_needs(
    trees, compression, reread, random
):
    storage = SimulatedStorage()
    known = NOTHING
    paths = [f"step-{number}.ptck" for number in range(len(trees))]
    for number, (path, tree) in enumerate(zip(paths, trees, strict=True)):
        if reread:
            known = read_known(storage, paths[:number])
        written = save(storage, path, tree, known, compression=compression)
        known = written.known
        held = sum(held_nbytes(storage, path, file) for file in written.files)
        assert held <= 2 * needed_nbytes(storage, path)
        assert files_needed(storage, path) == {file.name for file in written.files}
        assert not written.notes
    assert read_known(storage, paths).chunks == known.chunks
    left = dict(zip(paths, trees, strict=True))
    while left:
        assert [found(storage, path, tree) for path, tree in left.items()] == ["exact"] * len(left)
        needed = frozenset().union(*(files_needed(storage, path) for path in left))
        gone = set(data_names(storage, "")) - needed
        for name in gone:
            storage._change(f"data/{name}", None)
        del left[random.choice(list(left))]


@given(trees_with_sharing())
def test_any_tree_comes_back_as_from_an_ordinary_save_and_is_then_saved_as_one(tree):
    storage = SimulatedStorage()
    first = save(storage, "a.ptck", tree)
    second = save(storage, "b.ptck", tree, first.known)
    assert found(storage, "a.ptck", tree) == "exact"
    assert storage.image["a.ptck"] == storage.image["b.ptck"]
    assert second.new_nbytes == len(storage.image["b.ptck"] or b"")


@given(histories())
def test_what_is_restored_from_a_step_is_saved_byte_for_byte_as_the_tree_is(tmp_path_factory, trees):
    folder = tmp_path_factory.mktemp("run")
    known = NOTHING
    for number, tree in enumerate(trees):
        path = str(folder / f"{number}.ptck")
        known = save(LocalStorage(), path, tree, known, durability="atomic").known
        assert encode(restore(path)) == encode(tree)
        assert verify(path).ok


@given(histories(), st.sampled_from(["auto", "none"]))
def test_the_same_saves_give_the_same_bytes_with_any_number_of_threads(trees, compression):
    images = []
    for threads in (1, 3):
        storage = SimulatedStorage()
        known = NOTHING
        for number, tree in enumerate(trees):
            known = save(storage, f"{number}.ptck", tree, known, compression=compression, threads=threads).known
        images.append(storage.image)
    assert images[0] == images[1]


# What is stored once.


def raw_nbytes_of_data(storage: SimulatedStorage) -> int:
    """Of all chunks of all data files."""
    chunks = read_known(storage, [name for name in storage.names(".") if name.endswith(".ptck")]).chunks
    return sum(key.nbytes for key in chunks)


def test_frozen_weights_are_stored_once_and_a_step_costs_what_has_changed():
    base = noise(100 << 10, 1, "f4")
    storage, known = SimulatedStorage(), NOTHING
    for step in range(10):
        tree = {"base": base.copy(), "lora": noise(1024, 100 + step, "f4"), "step": step}
        written = save(storage, f"{step}.ptck", tree, known, compression="none")
        known = written.known
        if step:
            assert written.reused_nbytes == base.nbytes
            assert written.new_nbytes == written.file_nbytes + 1024 + 64 + len_of_end(storage, written.files[1])
    assert raw_nbytes_of_data(storage) == base.nbytes + 10 * 1024


def len_of_end(storage, file) -> int:
    """The index and the footer of a data file."""
    return file.nbytes - 64 - held_nbytes(storage, "0.ptck", file)


def test_copies_of_averages_and_of_tied_weights_are_stored_once_within_one_step_too():
    weights = noise(10 << 10, 1, "f4")
    storage = SimulatedStorage()
    tree = {"params": {"embed": weights, "head": weights.copy()}, "ema": weights.copy(), "bits": weights.view("i4")}
    written = save(storage, "a.ptck", tree)
    assert raw_nbytes_of_data(storage) == weights.nbytes
    assert written.n_chunks == 4 * 10
    assert found(storage, "a.ptck", tree) == "exact"
    # Items of another size are another matter: they may be stored in another way.
    save(storage, "b.ptck", {"bytes": weights.view("u1")}, written.known)
    assert raw_nbytes_of_data(storage) == 2 * weights.nbytes


def test_old_data_files_are_left_when_less_than_half_of_them_is_needed():
    blocks = [noise(1024, number) for number in range(10)]
    storage = SimulatedStorage()
    first = save(storage, "0.ptck", blocks, compression="none")
    half = save(storage, "1.ptck", [*blocks[:5], noise(1024, 99)], first.known, compression="none")
    assert first.files[0] in half.files
    less = save(storage, "2.ptck", [*blocks[:4], noise(1024, 98)], first.known, compression="none")
    assert first.files[0] not in less.files
    assert less.reused_nbytes == 0
    # They are known at their new place from now on.
    again = save(storage, "3.ptck", blocks[:4], less.known, compression="none")
    assert again.files == less.files


def test_copied_chunks_stay_as_they_were_compressed(monkeypatch):
    weights = np.arange(10 << 10, dtype="f4")
    storage = SimulatedStorage()
    first = save(storage, "a.ptck", {"w": weights}, compression=9)
    second = save(storage, "b.ptck", {"w": weights[: 256 * 8]}, first.known, compression="auto")
    assert second.files != first.files
    for key, at in second.known.chunks.items():
        assert at.row._replace(offset=0) == first.known.chunks[key].row._replace(offset=0)


@pytest.mark.parametrize("compression", ["auto", "none", 3])
@pytest.mark.parametrize("few_small_mean_nbytes", [300, 100_000])
def test_chunks_are_stored_as_by_an_ordinary_save(compression, few_small_mean_nbytes, monkeypatch):
    monkeypatch.setattr(planning, "_FEW_SMALL_MEAN_NBYTES", few_small_mean_nbytes)
    floats = np.random.default_rng(0).standard_normal(3000)
    tree = {"a": floats.astype("f4"), "b": floats, "c": np.zeros(999), "d": np.arange(2000) // 7}
    storage = SimulatedStorage({"plain": encode(tree, compression=compression)})
    save(storage, "a.ptck", tree, compression=compression)
    with open_own(storage, "a.ptck") as mine, open_own(storage, "plain") as plain:
        ours, others = mine.index.chunks, plain.index.chunks
    assert (ours.check, ours.digest) == (others.check, others.digest)
    for column in ("stored", "raw", "codec"):
        assert getattr(ours, column).tolist() == getattr(others, column).tolist()


def test_chunks_of_pools_of_several_dtypes_are_known_by_the_sizes_of_their_items():
    storage = SimulatedStorage()
    # In the order in which they come, which is not that of their sizes, nor of their digests.
    dtypes = ["f8", "u1", "c16", "i2", ">f4", "u2", "V3"]
    tree = [noise(48 * (6 + number), 100 * number + at, each) for at, each in enumerate(dtypes) for number in range(32)]
    known = save(storage, "a.ptck", tree).known
    assert len({key.itemsize for key in known.chunks}) == 6
    assert read_known(storage, ["a.ptck"]).chunks == known.chunks


def test_the_index_of_a_data_file_is_not_compressed_so_that_its_root_determines_all_of_it():
    storage = SimulatedStorage()
    tree = np.arange(100 << 10)
    (file,) = save(storage, "a.ptck", tree).files
    footer = read_footer(storage.open(data_path("a.ptck", file.name)))
    assert footer.index_codec == codecs.RAW.number
    assert footer.index_raw_nbytes > 1000
    assert read_footer(storage.open("a.ptck")).index_codec == codecs.ZSTD.number


def test_a_checkpoint_needs_only_so_many_data_files_however_many_steps_there_were():
    storage, known, n_files = SimulatedStorage(), NOTHING, []
    blocks = noise(1024 * (MAX_FILES + 40), 0)
    for step in range(MAX_FILES + 40):
        written = save(storage, f"{step}.ptck", blocks[: 1024 * (step + 1)], known)
        known = written.known
        n_files.append(len(written.files))
    assert max(n_files) == MAX_FILES
    assert n_files.count(MAX_FILES) == 2
    assert found(storage, f"{MAX_FILES + 39}.ptck", blocks) == "exact"
    with limits(data_files=5):
        assert len(save(storage, "few.ptck", blocks, known).files) <= 5
    with limits(data_files=0), pytest.raises(LimitError, match="data_files"):
        save(storage, "none.ptck", blocks, known)


def test_a_tree_without_chunks_is_an_ordinary_file():
    storage = SimulatedStorage()
    tree = {"step": 3, "small": np.arange(5), "empty": np.zeros((0, 7))}
    written = save(storage, "a.ptck", tree)
    assert storage.image == {"a.ptck": encode(tree)}
    assert (written.files, written.new_nbytes, written.reused_nbytes) == ((), len(encode(tree)), 0)
    assert files_needed(storage, "a.ptck") == frozenset()
    assert read_known(storage, ["a.ptck"]) == Known()


def test_uncompressed_steps_can_be_mapped_and_use_nothing_that_is_compressed(tmp_path):
    tree = {"w": np.arange(5000) // 4}
    storage = LocalStorage()
    first = save(storage, str(tmp_path / "a.ptck"), tree)
    with pytest.raises(NotMappableError):
        restore(tmp_path / "a.ptck", mmap=True)
    second = save(storage, str(tmp_path / "b.ptck"), tree, first.known, compression="none")
    assert difference(tree, restore(tmp_path / "b.ptck", mmap=True)) is None
    assert save(storage, str(tmp_path / "c.ptck"), tree, second.known, compression="none").files == second.files


# What has become of data files since.


def two_steps(storage) -> Known:
    first = save(storage, "a.ptck", [noise(2000, 1), noise(4000, 2)])
    return first.known


def damaged(content: bytes, how: str) -> bytes | None:
    match how:
        case "gone":
            return None
        case "cut":
            return content[:-1]
        case "empty":
            return b""
        case "another":
            return encode(np.arange(2000.0))
        case "a manifest":
            other = SimulatedStorage()
            save(other, "x.ptck", [noise(700, 7)])
            return other.image["x.ptck"]
    raise AssertionError(how)


@pytest.mark.parametrize("how", ["gone", "cut", "empty", "another", "a manifest"])
def test_a_data_file_that_is_not_as_it_was_is_not_used(how):
    storage = SimulatedStorage()
    known = two_steps(storage)
    (file,) = known.files
    left = dict(storage.image)
    content = damaged(left.pop(data_path("a.ptck", file.name)) or b"", how)
    storage = SimulatedStorage(left | ({} if content is None else {data_path("a.ptck", file.name): content}))
    tree = [noise(2000, 1), noise(700, 3)]
    written = save(storage, "b.ptck", tree, known)
    assert found(storage, "b.ptck", tree) == "exact"
    assert file not in written.files
    assert file not in written.known.files
    assert bool(written.notes) is (how != "gone")
    assert all(file.name in note for note in written.notes)


def test_a_manifest_is_not_used_as_a_data_file_whoever_says_that_it_is_one():
    plain = SimulatedStorage()
    known = two_steps(plain)
    manifest = plain.image["a.ptck"] or b""
    footer = read_footer(plain.open("a.ptck"))
    file = DataFile(footer.file_nbytes, footer.root)
    claimed = Known({key: place._replace(file=file) for key, place in known.chunks.items()})
    storage = SimulatedStorage({"data": None, data_path("b.ptck", file.name): manifest})
    tree = [noise(2000, 1)]
    written = save(storage, "b.ptck", tree, claimed)
    assert written.notes
    assert file not in written.files
    assert found(storage, "b.ptck", tree) == "exact"


def test_saving_the_same_again_makes_a_damaged_data_file_whole():
    storage = SimulatedStorage()
    known = two_steps(storage)
    (file,) = known.files
    name = data_path("a.ptck", file.name)
    tree = [noise(2000, 1), noise(4000, 2)]
    for content in (b"", (storage.image[name] or b"").replace(b"PTCK", b"ptck")):
        broken = SimulatedStorage({**storage.image, name: content})
        assert found(broken, "a.ptck", tree).startswith("damaged")
        written = save(broken, "b.ptck", tree, known)
        assert written.notes
        assert found(broken, "a.ptck", tree) == found(broken, "b.ptck", tree) == "exact"


def test_damaged_chunks_are_not_copied_but_encoded_anew():
    storage = SimulatedStorage()
    blocks = [noise(1024, number) for number in range(10)]
    known = save(storage, "a.ptck", blocks).known
    (file,) = known.files
    name = data_path("a.ptck", file.name)
    content = bytearray(storage.image[name] or b"")
    content[64 + 10] ^= 1
    storage = SimulatedStorage({**storage.image, name: bytes(content)})
    tree = blocks[:3]
    written = save(storage, "b.ptck", tree, known)
    assert file not in written.files
    assert found(storage, "b.ptck", tree) == "exact"
    assert found(storage, "a.ptck", blocks).startswith("damaged")


def test_a_data_file_that_vanishes_while_it_is_to_be_copied_from_is_done_without():
    class Vanishing(SimulatedStorage):
        n_opened = 0

        def open(self, path):
            if path.startswith("data/"):
                self.n_opened += 1
                if self.n_opened == 2:
                    self._change(path, None)
            return super().open(path)

    plain = SimulatedStorage()
    blocks = [noise(1024, number) for number in range(10)]
    known = save(plain, "a.ptck", blocks).known
    storage = Vanishing(plain.image)
    save(storage, "b.ptck", blocks[:3], known)
    assert storage.n_opened == 2
    assert found(storage, "b.ptck", blocks[:3]) == "exact"


def test_checkpoints_that_cannot_be_read_are_noted_and_left_out():
    storage = SimulatedStorage()
    known = two_steps(storage)
    image = {**storage.image, "cut.ptck": (storage.image["a.ptck"] or b"")[:-9], "other.ptck": b"text"}
    found_known = read_known(SimulatedStorage(image), ["cut.ptck", "a.ptck", "gone.ptck", "other.ptck"])
    assert found_known.chunks == known.chunks
    assert [note.split(":")[0] for note in found_known.notes] == ["cut.ptck", "gone.ptck", "other.ptck"]
    for path in ("cut.ptck", "gone.ptck", "other.ptck"):
        with pytest.raises(PytreeckptError):
            files_needed(SimulatedStorage(image), path)


def test_what_is_known_within_some_files_is_what_lies_in_them():
    storage = SimulatedStorage()
    first = save(storage, "a.ptck", [noise(2000, 1)])
    second = save(storage, "b.ptck", [noise(2000, 1), noise(2000, 2)], first.known)
    assert second.known.within({file.name for file in second.files}) == second.known
    assert second.known.within({first.files[0].name}) == first.known
    assert second.known.within(()) == NOTHING


def test_a_data_file_without_known_chunks_that_has_gone_is_not_known_to_be_durable():
    storage = SimulatedStorage()
    blocks = [noise(1024, number) for number in range(10)]
    first = save(storage, "a.ptck", blocks[:3])
    # All chunks of the first file are known at another place now.
    known = save(storage, "b.ptck", blocks[:3], Known(durable=first.known.durable)).known
    known = known.with_places({}, known.durable | {DataFile(999, bytes(32))})
    known = save(storage, "c.ptck", blocks, known).known
    assert known.durable == known.files


def test_what_is_known_is_bounded_and_is_that_of_the_latest_steps(monkeypatch):
    monkeypatch.setattr(known_module, "MAX_KNOWN", 10)
    storage, known = SimulatedStorage(), NOTHING
    trees = [{"shared": noise(2048, 0), "own": noise(3072, 1 + number)} for number in range(6)]
    for number, tree in enumerate(trees):
        known = save(storage, f"{number}.ptck", tree, known).known
    # Two chunks that all have in common, and three of each step: those of the third latest one in part.
    assert len(known.chunks) == 10
    steps = [f"{number}.ptck" for number in range(6)]
    latest = read_known(storage, steps[-1:]).chunks.items()
    assert latest <= read_known(storage, steps[-2:]).chunks.items() <= known.chunks.items()
    # So many entries of an index has each step: one for each of two arrays, and five for their chunks.
    assert read_known(storage, [*steps, "gone.ptck"]).chunks == read_known(storage, steps[-2:]).chunks
    # What was read is forgotten in the same order: first that of the second latest step.
    later = save(storage, "6.ptck", noise(3072, 7), read_known(storage, steps)).known
    assert len(later.chunks) == 10
    assert latest <= later.chunks.items()
    # Nothing is left out of the step itself.
    large = save(storage, "large.ptck", [noise(50 << 10, 99), trees[0]], known)
    assert len(large.known.chunks) == 55
    assert len(read_known(storage, [*steps, "large.ptck"]).chunks) == 55
    assert found(storage, "large.ptck", [noise(50 << 10, 99), trees[0]]) == "exact"


def test_of_two_places_of_a_chunk_the_one_that_the_later_step_uses_is_known():
    storage = SimulatedStorage()
    block = noise(1024, 1)
    for name, others in (("a", 2), ("b", 3)):
        save(storage, f"{name}.ptck", [block, noise(1024, others)])
    of_b = read_known(storage, ["b.ptck"]).chunks
    assert of_b.items() <= read_known(storage, ["a.ptck", "b.ptck"]).chunks.items()
    assert not of_b.items() <= read_known(storage, ["b.ptck", "a.ptck"]).chunks.items()


def test_a_checkpoint_that_is_beyond_the_limits_leaves_no_data_file():
    storage = SimulatedStorage()
    tree = {"x" * 3000: noise(3000, 1)}
    with limits(index_nbytes=2000), pytest.raises(LimitError, match="index_nbytes"):
        save(storage, "a.ptck", tree)
    assert storage.image == {"data": None}


# Sources.


def source(read) -> ArraySource:
    return ArraySource(np.dtype("u1"), (3000,), (read,))


def test_an_array_that_changes_while_it_is_saved_is_an_error_and_nothing_is_left():
    array = noise(3000, 1)

    def read(start, stop):
        array[0] ^= 1
        return array[start:stop]

    storage = SimulatedStorage()
    with pytest.raises(PytreeckptError, match="was changed while it was being saved"):
        save(storage, "a.ptck", source(read))
    assert storage.image == {"data": None}


class Changing:
    """Bytes that another thread changes when they, or a copy of them, were hashed or encoded `at` times."""

    def __init__(self, monkeypatch, array: np.ndarray, at: int) -> None:
        self.array, self.at, self.n_calls = array, at, 0
        for module, name in (
            (writing, "xxh128"),
            (writing, "identity"),
            (streaming, "xxh128"),
            (streaming, "encode_chunk"),
            (storing, "xxh128"),
        ):
            monkeypatch.setattr(module, name, self.watched(getattr(module, name)))

    def watched(self, function):
        def call(*arguments, **options):
            result = function(*arguments, **options)
            # The index is hashed too.
            if self.is_of_array(arguments[0]):
                self.n_calls += 1
                if self.n_calls == self.at:
                    self.array[:] = noise(len(self.array), 77)
            return result

        return call

    def is_of_array(self, buffer) -> bool:
        return bytes(buffer) == self.array.tobytes()


@pytest.mark.parametrize("compression", ["none", "auto"])
@pytest.mark.parametrize("at", range(1, 6))
def test_an_array_that_another_thread_changes_at_any_time_leaves_no_chunk_that_is_not_what_it_is_said_to_be(
    at, compression, monkeypatch
):
    quiet, before, after = noise(700, 1), np.zeros(900, "u1"), noise(900, 77)
    before[::3] = noise(300, 2)
    storage = SimulatedStorage()
    array = before.copy()
    known = NOTHING
    with monkeypatch.context() as patch:
        changing = Changing(patch, array, at)
        try:
            known = save(storage, "a.ptck", [quiet, array], compression=compression).known
        except PytreeckptError as error:
            assert "was changed while it was being saved" in str(error)
        else:
            # What it was before, or after.
            assert "exact" in {found(storage, "a.ptck", [quiet, each]) for each in (before, after)}
        # What is stored raw is copied, and hashed once more.
        assert changing.n_calls >= min(at, 5 if compression == "none" else 4)
    tree = [quiet, before, after]
    known = save(storage, "b.ptck", tree, known, compression=compression).known
    assert found(storage, "b.ptck", tree) == "exact"


@pytest.mark.parametrize("n_good", range(6))
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("error", [ZeroDivisionError, StopIteration, KeyboardInterrupt, MemoryError])
def test_what_a_source_raises_comes_through_and_nothing_is_left(n_good, threads, error):
    array, n_read = noise(3000, 1), []

    def read(start, stop):
        n_read.append(start)
        if len(n_read) > n_good:
            raise error
        return array[start:stop]

    storage = SimulatedStorage()
    known = save(storage, "a.ptck", noise(500, 2)).known
    before = dict(storage.image)
    with pytest.raises((error, ValueError, RuntimeError) if error is StopIteration else error):
        save(storage, "b.ptck", source(read), known, threads=threads)
    assert storage.image == before


def test_progress_never_goes_back_and_ends_with_all():
    storage = SimulatedStorage()
    blocks = [noise(1024, number) for number in range(6)]
    known = save(storage, "a.ptck", blocks).known
    for tree in (blocks, [*blocks, noise(1024, 9)], [noise(5000, 10)], {"w": noise(1024, 11), "v": noise(1024, 11)}):
        seen: list[Progress] = []
        written = save(storage, "b.ptck", tree, known, progress=seen.append)
        assert {each.total_nbytes for each in seen} == {written.raw_nbytes}
        done = [each.done_nbytes for each in seen]
        assert done == sorted(set(done))
        assert done[-1] == written.raw_nbytes
        assert len(done) > 1


def test_a_child_that_is_forked_during_a_save_neither_writes_nor_removes_anything(tmp_path):
    path = str(tmp_path / "a.ptck")
    statuses = []

    def fork(progress: Progress) -> None:
        # Now the data file is there, and its manifest is to be when the child has ended.
        if progress.done_nbytes == progress.total_nbytes and (child := os.fork()):
            statuses.append(os.waitpid(child, 0)[1])

    parent = os.getpid()
    try:
        save(LocalStorage(), path, noise(3000, 1), progress=fork)
    except BaseException:  # noqa: BLE001 - the child must not go on with the tests
        os._exit(7 if os.getpid() != parent else 1)
    finally:
        if os.getpid() != parent:
            os._exit(8)
    (status,) = statuses
    assert os.waitstatus_to_exitcode(status) == 7
    assert verify(path).ok
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.ptck", "data"]


def test_the_default_number_of_threads_is_that_of_a_save(tmp_path, monkeypatch):
    monkeypatch.setenv(THREADS_VARIABLE, "0")
    with pytest.raises(ValueError, match=THREADS_VARIABLE):
        save(LocalStorage(), str(tmp_path / "a.ptck"), noise(300, 1), threads=None)


def test_what_is_reported_adds_up():
    storage = SimulatedStorage()
    first = save(storage, "a.ptck", {"w": noise(5000, 1), "x": noise(100, 2)}, compression="none")
    assert (first.raw_nbytes, first.stored_nbytes, first.n_chunks) == (5100, 5100, 5)
    assert first.new_nbytes == sum(len(content) for content in storage.image.values() if content)
    assert first.file_nbytes == len(storage.image["a.ptck"] or b"")
    second = save(storage, "b.ptck", {"w": noise(5000, 1)}, first.known, compression="none")
    assert (second.reused_nbytes, second.new_nbytes) == (5000, second.file_nbytes)
    assert dataclasses.replace(second, known=NOTHING).files == first.files
