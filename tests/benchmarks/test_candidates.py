"""Every candidate gives back the trees that it is measured with: what is fast and wrong would not count."""

import copy
import warnings

import numpy as np
import pytest

from benchmarks import states
from benchmarks.candidates import CANDIDATES, is_installed, remove, stored_nbytes, sync_to_disk, version
from benchmarks.codec import CODECS, as_bytes
from benchmarks.exactness import as_array, differences
from benchmarks.figures import OURS, OURS_MAPPED, OURS_RAW
from benchmarks.slices import ROW_NITEMS
from benchmarks.states import BFLOAT16, flatten, leaves, map_leaves, nbytes_of

TREES = {
    "float32": lambda: states.weights(np.dtype("float32"), 1 << 16),
    "bfloat16": lambda: states.weights(BFLOAT16, 1 << 16),
    "mixed": lambda: states.mixed_state(1 << 17),
    "leaves": lambda: states.small_leaves(40, 64),
}


def by_candidate(attribute="save"):
    """Those candidates that have the function."""
    able = [candidate for candidate in CANDIDATES if getattr(candidate, attribute) is not None]
    assert len(able) >= 5
    return pytest.mark.parametrize("candidate", able, ids=lambda candidate: candidate.name)


@pytest.fixture
def few_blocks(monkeypatch):
    # Some peers need milliseconds for each array.
    monkeypatch.setattr(states, "N_BLOCKS", 1)


def skip_if_absent(one):
    if not is_installed(one.modules):
        pytest.skip(f"{one.name} is not installed")


def restored_kind(candidate, state):
    """What the candidate says that it gives back, where that is not what it was given."""
    return map_leaves(np.asarray, state) if candidate.name == "flax msgpack" else state


@pytest.mark.parametrize("name", TREES)
@by_candidate()
@pytest.mark.usefixtures("few_blocks")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_candidate_gives_back_what_it_saved(candidate, name, tmp_path):
    skip_if_absent(candidate)
    state = candidate.prepare(TREES[name]())
    for save in (candidate.save, candidate.save_durable):
        path = tmp_path / save.__name__
        save(state, path)
        assert stored_nbytes(path) > nbytes_of(state) / 2
        restored = candidate.restore(path, state)
        texts = [str(text) for text in differences(restored_kind(candidate, state), restored)]
        # Formats of flat names may give them back sorted.
        assert not [text for text in texts if "other order of keys" not in text]
        remove(path)
    assert not list(tmp_path.iterdir())


@by_candidate("restore_into")
@pytest.mark.usefixtures("few_blocks")
def test_a_candidate_fills_the_arrays_that_it_is_given(candidate, tmp_path):
    skip_if_absent(candidate)
    tree = TREES["mixed"]()
    target = map_leaves(np.zeros_like, tree)
    candidate.save(candidate.prepare(tree), tmp_path / "checkpoint")
    filled = candidate.restore_into(tmp_path / "checkpoint", candidate.prepare(target))
    assert not differences(candidate.prepare(tree), filled)
    assert not differences(tree, target)


@by_candidate("read_rows")
def test_a_candidate_reads_the_rows_that_it_is_asked_for(candidate, tmp_path):
    skip_if_absent(candidate)
    array = states.fill_gaussian(np.empty((32, ROW_NITEMS), np.float32), np.random.default_rng(0))
    candidate.save(candidate.prepare({"w": array}), tmp_path / "checkpoint")
    rows, _mapped = candidate.read_rows(tmp_path / "checkpoint", 5, 9)
    assert as_array(rows).tobytes() == array[5:9].tobytes()


@pytest.mark.parametrize("threads", [0, 1])
@pytest.mark.parametrize("dtype", [np.dtype("float32"), BFLOAT16], ids=str)
@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
# ZipNN: importing it.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_a_codec_gives_back_what_it_compressed(codec, dtype, threads):
    skip_if_absent(codec)
    tree = states.weights(dtype, 1 << 20)
    before = copy.deepcopy(tree)
    compressed = codec.compress(codec.prepare(tree), str(dtype), threads)
    # Whoever overwrites its input gets a copy to do it to.
    assert not differences(before, tree)
    assert len(compressed) < 0.9 * nbytes_of(tree)
    plain = codec.decompress(compressed, str(dtype), threads)
    assert (as_bytes(plain) if isinstance(plain, dict) else bytes(plain)) == as_bytes(tree)


def test_pytreeckpt_takes_part_and_all_have_different_names():
    names = [candidate.name for candidate in CANDIDATES]
    assert names[:3] == [OURS, OURS_RAW, OURS_MAPPED]
    assert len(set(names)) == len(names) >= 9
    assert {codec.name for codec in CODECS} == {OURS, "ZipNN"}
    assert all(candidate.notes for candidate in CANDIDATES)


def test_installed_candidates_have_a_version_and_absent_modules_are_told():
    assert is_installed(("numpy",))
    assert not is_installed(("numpy", "no_such_module.inner"))
    assert version("numpy") == np.__version__


def test_syncing_takes_files_and_folders(tmp_path):
    (tmp_path / "folder/inner").mkdir(parents=True)
    (tmp_path / "folder/inner/file").write_bytes(b"12345")
    sync_to_disk(tmp_path / "folder")
    sync_to_disk(tmp_path / "folder/inner/file")
    assert stored_nbytes(tmp_path / "folder") == stored_nbytes(tmp_path / "folder/inner/file") == 5
    with pytest.raises(FileNotFoundError):
        sync_to_disk(tmp_path / "absent")
    remove(tmp_path / "absent")


@pytest.mark.parametrize("dtype", [np.dtype("float32"), BFLOAT16], ids=str)
def test_weights_have_about_the_size_asked_for(dtype):
    tree = states.weights(dtype, 1 << 23)
    assert 0.8 < nbytes_of(tree) / (1 << 23) < 1.2
    assert {leaf.dtype for leaf in leaves(tree)} == {dtype}
    values = np.concatenate([leaf.reshape(-1) for leaf in leaves(tree)]).astype(np.float32)
    assert 0.019 < values.std() < 0.021
    assert not any(leaf.any() for leaf in leaves(states.weights(dtype, 1 << 20, fill=False)))


def test_gpt2_is_among_the_shapes():
    shapes = flatten(states.gpt2_shapes(124_439_808))
    assert shapes["wte.weight"] == (50257, 768)
    assert shapes["wpe.weight"] == (1024, 768)
    assert shapes["h.11.mlp.c_fc.weight"] == (768, 3072)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 124_439_808


def test_a_mixed_state_has_parameters_their_copies_and_both_moments():
    state = states.mixed_state(1 << 20)
    optimizer = state["optimizer"]
    assert {leaf.dtype for leaf in leaves(state["parameters"])} == {BFLOAT16}
    rounded = map_leaves(lambda array: array.astype(BFLOAT16), optimizer["master"])
    assert not differences(rounded, state["parameters"])
    assert all((leaf >= 0).all() for leaf in leaves(optimizer["exp_avg_sq"]))
    assert 0.7 < nbytes_of(state) / (1 << 20) < 1.3


def test_small_leaves_are_as_many_as_asked_for():
    tree = states.small_leaves(2345, 4)
    assert len(list(leaves(tree))) == 2345
    assert len(flatten(tree)) == 2345


def test_states_are_the_same_each_time():
    assert not differences(TREES["mixed"](), TREES["mixed"]())


@pytest.mark.weights
@pytest.mark.skipif(not states.MINILM.exists(), reason="no real weights in .cache/weights: run `make weights`")
def test_minilm_is_published_in_float32():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tree = states.minilm(np.dtype("float32"))
    assert {leaf.dtype for leaf in leaves(tree)} == {np.dtype("float32")}
    assert nbytes_of(states.minilm(BFLOAT16)) == nbytes_of(tree) / 2
