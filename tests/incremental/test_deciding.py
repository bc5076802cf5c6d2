from hypothesis import given
from hypothesis import strategies as st

from pytreeckpt.incremental.deciding import Wanted, decide
from pytreeckpt.incremental.known import ChunkKey, Place
from pytreeckpt.index import DataFile
from pytreeckpt.reading import ChunkRow
from pytreeckpt.wire import align

SIZES = st.integers(1, 500)


def key(number: int, itemsize: int = 1) -> ChunkKey:
    return ChunkKey(itemsize, 1000, number.to_bytes(32, "big"))


def digest(number: int) -> bytes:
    return number.to_bytes(16, "big")


def file(number: int) -> DataFile:
    return DataFile(1 << 20, number.to_bytes(32, "big"))


def place(in_file: int, at: int, stored: int, of: int) -> Place:
    return Place(file(in_file), ChunkRow(at, stored, 1000, 2, b"c" * 8, digest(of)))


@st.composite
def situations(draw):
    """Wanted chunks, known ones in up to six files, and what these files hold."""
    n_chunks = draw(st.integers(1, 30))
    known, used = {}, {}
    for number in range(n_chunks):
        where = draw(st.integers(0, 6))
        if where:
            at, stored = used.get(where, 64), draw(SIZES)
            used[where] = at + align(stored)
            known[key(number, draw(st.sampled_from([1, 4])))] = place(where, at, stored, number)
    capacities = {
        file(where): end - 64 + draw(st.integers(0, 3000)) // 64 * 64
        for where, end in used.items()
        if draw(st.integers(0, 9))
    }
    numbers = draw(st.lists(st.integers(0, n_chunks - 1), min_size=1, max_size=40))
    wanted = [Wanted(key(number, draw(st.sampled_from([1, 4]))), digest(number)) for number in numbers]
    return wanted, known, capacities, draw(st.integers(1, 8))


@given(situations())
def test_every_chunk_comes_from_one_place_and_no_file_is_kept_for_less_than_half_of_it(situation):
    wanted, known, capacities, max_files = situation
    decision = decide(wanted, known, capacities, max_files=max_files)
    stored = [wanted[each.number].key for each in decision.to_store]
    assert len(stored) == len(set(stored))
    assert set(stored) | set(decision.reused) == {each.key for each in wanted}
    assert not set(stored) & set(decision.reused)
    # In the order of a data file, and each at its first use.
    assert [each.itemsize for each in stored] == sorted(each.itemsize for each in stored)
    assert all([each.key for each in wanted].index(wanted[number].key) == number for number, _ in decision.to_store)
    used: dict[DataFile, int] = {}
    for name, at in decision.reused.items():
        assert at == known[name]
        used[at.file] = used.get(at.file, 0) + align(at.row.stored)
    assert all(2 * nbytes >= capacities[name] for name, nbytes in used.items())
    assert len(used) + bool(stored) <= max_files
    for number, copied in decision.to_store:
        expected = known.get(wanted[number].key)
        assert copied == (expected if expected is not None and expected.file in capacities else None)


@given(situations())
def test_a_file_is_left_only_for_a_reason(situation):
    wanted, known, capacities, _ = situation
    decision = decide(wanted, known, capacities, max_files=100)
    places = {each.key: known[each.key] for each in wanted if each.key in known}
    for name, nbytes in capacities.items():
        of_file = {key: at for key, at in places.items() if at.file == name}
        enough = 2 * sum(align(at.row.stored) for at in of_file.values()) >= nbytes
        assert {key for key in decision.reused if key in of_file} == (set(of_file) if enough else set())


def test_exactly_half_of_a_file_is_enough():
    wanted = [Wanted(key(0), digest(0))]
    known = {key(0): place(1, 64, 640, 0)}
    assert decide(wanted, known, {file(1): 1280}).reused == known
    assert decide(wanted, known, {file(1): 1344}).to_store == [(0, known[key(0)])]


def test_a_chunk_whose_digest_differs_is_neither_used_nor_copied():
    known = {key(0): place(1, 64, 640, of=5)}
    assert decide([Wanted(key(0), digest(0))], known, {file(1): 640}).to_store == [(0, None)]


def test_when_there_are_too_many_files_half_of_them_are_left_at_once():
    known = {key(n): place(n + 1, 64, 100 + 64 * n, n) for n in range(10)}
    capacities = {at.file: align(at.row.stored) for at in known.values()}
    wanted = [Wanted(key(n), digest(n)) for n in range(10)]
    assert not decide(wanted, known, capacities, max_files=10).to_store
    # One more, of the new chunk, is too many: the five largest stay.
    decision = decide([*wanted, Wanted(key(99), digest(99))], known, capacities, max_files=10)
    assert set(decision.reused) == {key(n) for n in range(5, 10)}
    assert len(decision.to_store) == 6


def test_a_new_file_of_copies_alone_counts_too():
    # Of the third file there is too little, so that a new one is needed, and of two others one is too many.
    known = {key(n): place(n + 1, 64, 640, n) for n in range(3)}
    capacities = {file(1): 640, file(2): 640, file(3): 6400}
    decision = decide([Wanted(key(n), digest(n)) for n in range(3)], known, capacities, max_files=2)
    assert set(decision.reused) == {key(0)}
    assert decision.to_store == [(1, known[key(1)]), (2, known[key(2)])]
