"""Averages are those of the straightforward computation, to the bit, of whatever size and layout."""

import math
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
import pytreeckpt_torch as ptt
from pytreeckpt import planning
from pytreeckpt.operations import average, averaged, sources
from pytreeckpt.operations.arithmetic import real_dtype, rounded
from tests.exact import assert_same, item_bytes
from tests.strategies import LAYOUTS, ML_DTYPES, NUMPY_DTYPES, fill, laid_out

FLOATS = [dtype for dtype in [*NUMPY_DTYPES, *ML_DTYPES] if real_dtype(dtype) is not None]


def straightforward(arrays, weights):
    """As one would write it down in numpy, with everything in memory."""
    dtype, real = arrays[0].dtype, real_dtype(arrays[0].dtype)
    wide = np.longdouble if real.type is np.longdouble else np.float64
    with np.errstate(all="ignore"):
        parts = [np.ascontiguousarray(array).reshape(-1).view(real).astype(wide) for array in arrays]
        # As a sum that is rounded once: `sum` gives others in Python 3.11 and 3.12.
        total = wide(math.fsum(weights))
        result = wide(weights[0]) * parts[0]
        for weight, part in zip(weights[1:], parts[1:], strict=True):
            result = result + wide(weight) * part
        return rounded(result / total, real).view(dtype).reshape(arrays[0].shape)


def without_nans(array):
    """The bytes of an array, with one NaN for all."""
    real = real_dtype(array.dtype)
    parts = np.ascontiguousarray(array).reshape(-1).view(real).copy()
    with np.errstate(all="ignore"):
        parts[np.isnan(parts)] = np.nan if real.name != "float4_e2m1fn" else 0
    return item_bytes(parts)


def saved(folder, trees, **options):
    paths = [folder / f"{number}.ptck" for number in range(len(trees))]
    for path, tree in zip(paths, trees, strict=True):
        ptc.save(tree, path, durability="atomic", **options)
    return paths


def test_there_are_floats():
    assert len(FLOATS) >= 22


@st.composite
def cases(draw):
    """Arrays of one shape and dtype, as they lie in memory, and how the files are made and read."""
    dtype = draw(st.sampled_from(FLOATS))
    shape = draw(st.sampled_from([(), (0, 3), (5,), (70, 3), (4, 5, 6), (1, 300)]))
    number = draw(st.integers(1, 4))
    layouts = st.sampled_from([layout for layout in LAYOUTS if layout != "broadcast"])
    arrays = [laid_out(fill(dtype, shape, draw(st.integers(0, 99))), draw(layouts), 7) for _ in range(number)]
    weights = draw(st.none() | st.lists(st.sampled_from([0.5, 1.0, 2.0, 0.3, 7.0]), min_size=number, max_size=number))
    return arrays, weights, draw(st.sampled_from([64, 192, 1 << 20])), draw(st.sampled_from(["auto", "none"]))


@given(case=cases(), threads=st.sampled_from(["1", "3"]), small_nbytes=st.sampled_from([0, 1000, 16 << 20]))
def test_an_average_is_the_straightforward_one(case, threads, small_nbytes, tmp_path_factory):
    arrays, weights, chunk_nbytes, compression = case
    folder = tmp_path_factory.mktemp("average")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTREECKPT_THREADS", threads)
        patch.setattr(planning, "INLINE_NBYTES", 16)
        patch.setattr(sources, "_SMALL_NBYTES", small_nbytes)
        paths = []
        for number, array in enumerate(arrays):
            # Files whose chunks begin elsewhere.
            patch.setattr(planning, "CHUNK_NBYTES", chunk_nbytes if number % 2 else 3 * chunk_nbytes)
            paths += [folder / f"{number}.ptck"]
            ptc.save({"w": array, "n": number}, paths[-1], compression=compression, durability="atomic")
        average(paths, folder / "out.ptck", weights=weights, durability="atomic")
        found = ptc.restore(folder / "out.ptck")
    assert found["n"] == len(arrays) - 1
    newest = ptc.restore(paths[-1])["w"]
    assert (found["w"].dtype, found["w"].shape, found["w"].strides) == (newest.dtype, newest.shape, newest.strides)
    if len(arrays) == 1:
        assert item_bytes(found["w"]) == item_bytes(arrays[0])
    else:
        expected = straightforward(arrays, weights or [1.0] * len(arrays))
        assert without_nans(found["w"]) == without_nans(expected)


def test_what_is_no_float_is_that_of_the_newest(tmp_path):
    def tree(n):
        return {
            "w": np.full(4, n, np.float32),
            "int": np.arange(n, n + 5),
            "bool": np.array([n > 1, True]),
            "struct": np.array([(n, n / 2)], [("a", "i4"), ("b", "f4")]),
            "time": np.array([n], "M8[s]"),
            "scalar": np.float32(n),
            "number": n / 3,
            "text": f"step {n}",
            "losses": [1.0] * n,
            "seen": {"a": None} if n == 1 else {"a": 2.0, "b": ()},
        }

    paths = saved(tmp_path, [tree(n) for n in (1, 2, 6)])
    report = average(paths, tmp_path / "out.ptck", metadata={"by": "me"})
    assert_same(ptc.restore(report.path), {**tree(6), "w": np.full(4, 3, np.float32)})
    with ptc.open(report.path) as found, ptc.open(paths[1]) as second:
        assert found.metadata["by"] == "me"
        told = found.metadata["averaged"]
        assert (len(told), told[1]) == (3, {"root": second.root, "format": "pytreeckpt", "weight": 1.0})


def test_nan_and_infinities_propagate_and_signs_of_zeros_stay(tmp_path):
    paths = saved(
        tmp_path,
        [
            {"w": np.array([np.nan, np.inf, np.inf, -0.0, 1.0])},
            {"w": np.array([1.0, 1.0, -np.inf, -0.0, 2.0])},
        ],
    )
    average(paths, tmp_path / "out.ptck")
    found = ptc.restore(tmp_path / "out.ptck")["w"]
    assert without_nans(found) == np.array([np.nan, np.inf, np.nan, -0.0, 1.5]).tobytes()


def test_complex_numbers_are_averaged_by_their_parts(tmp_path):
    paths = saved(tmp_path, [{"w": np.array([complex(np.inf, 1), 2j])}, {"w": np.array([complex(1, 3), 4])}])
    average(paths, tmp_path / "out.ptck", weights=[1, 1])
    assert_same(ptc.restore(tmp_path / "out.ptck")["w"], np.array([complex(np.inf, 2), 2 + 1j]))


@pytest.mark.parametrize("dtype", [np.longdouble, np.clongdouble])
def test_an_average_of_extended_floats_has_one_file(dtype, tmp_path):
    paths = saved(tmp_path, [{"w": np.arange(n, n + 500).astype(dtype)} for n in range(2)])
    average(paths, tmp_path / "out.ptck")
    with ptc.open(tmp_path / "out.ptck") as checkpoint:
        ptc.save(ptc.restore(tmp_path / "out.ptck"), tmp_path / "again.ptck", metadata=checkpoint.metadata)
    assert (tmp_path / "out.ptck").read_bytes() == (tmp_path / "again.ptck").read_bytes()


def test_ties_wrappers_and_memory_order_stay(tmp_path):
    def tree(n):
        tied = torch.nn.Parameter(torch.full((40, 30), float(n)))
        column = np.asfortranarray(np.full((50, 40), n, np.float32))
        return {
            "a": tied,
            "b": tied,
            "t": torch.full((3, 4), n, dtype=torch.bfloat16).t(),
            "j": jnp.full(3, n, jnp.bfloat16),
            "f": column,
            "g": [column],
        }

    average(saved(tmp_path, [tree(1), tree(2)]), tmp_path / "out.ptck")
    found = ptc.restore(tmp_path / "out.ptck")
    assert type(found["a"]) is torch.nn.Parameter
    assert found["a"] is found["b"]
    assert found["g"][0] is found["f"]
    assert found["f"].flags.f_contiguous
    assert found["t"].stride() == (1, 4)
    assert all(float(np.float32(each.reshape(-1)[0])) == 1.5 for each in (found["a"].detach(), found["j"], found["f"]))


def test_what_is_tied_in_one_of_them_only_is_not_tied_in_the_average(tmp_path):
    one = np.full(100, 1, np.float32)
    two = np.full(100, 2, np.float32)
    average(saved(tmp_path, [{"a": one, "b": two}, {"a": one, "b": one}]), tmp_path / "out.ptck")
    found = ptc.restore(tmp_path / "out.ptck")
    assert (found["a"][0], found["b"][0]) == (1.0, 1.5)


def test_select_averages_these_and_takes_all_others_from_the_newest(tmp_path):
    paths = saved(
        tmp_path,
        [
            {"model": {"w": np.zeros(3), "v": np.zeros(3)}, "order": np.arange(3.0), "old": np.zeros(2)},
            {"model": {"w": np.ones(3), "v": np.ones(3)}, "order": np.arange(9.0)},
        ],
    )
    with pytest.raises(ptc.StructureMismatchError) as error:
        average(paths, tmp_path / "out.ptck")
    assert not (tmp_path / "out.ptck").exists()
    assert error.value.unexpected == ("old in 0.ptck; 1.ptck has it not",)
    assert error.value.mismatched == ("order: float64[9] in 1.ptck, float64[3] in 0.ptck",)
    average(paths, tmp_path / "out.ptck", select="model/w")
    expected = {"model": {"w": np.full(3, 0.5), "v": np.ones(3)}, "order": np.arange(9.0)}
    assert_same(ptc.restore(tmp_path / "out.ptck"), expected)
    with pytest.raises(ptc.StructureMismatchError, match="select 'modle' matches no leaf; there is model"):
        average(paths, tmp_path / "out.ptck", select="modle")


def test_all_differences_are_listed_with_their_files(tmp_path):
    trees = [
        {"a": np.zeros(3), "b": np.zeros(2, np.float32)},
        {"a": np.zeros(4), "b": np.zeros(2), "c": {"d": np.zeros(1)}},
        {"a": np.zeros(3), "b": np.zeros(2), "e": np.zeros(1)},
    ]
    with pytest.raises(ptc.StructureMismatchError) as error:
        average(saved(tmp_path, trees), tmp_path / "out.ptck")
    assert error.value.missing == ("e in 0.ptck; 2.ptck has it", "e in 1.ptck; 2.ptck has it")
    assert error.value.unexpected == ("c/d in 1.ptck; 2.ptck has it not",)
    assert error.value.mismatched == (
        "b: float64[2] in 2.ptck, float32[2] in 0.ptck",
        "a: float64[3] in 2.ptck, float64[4] in 1.ptck",
    )


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "1 weights for 2"),
        ([1.0, np.nan], "finite"),
        ([np.inf, 1.0], "finite"),
        ([1.0, -1.0], "sum greater than 0"),
        ([0.0, 0.0], "sum greater than 0"),
    ],
)
def test_weights_that_make_no_average_are_refused(weights, message, tmp_path):
    paths = saved(tmp_path, [{"w": np.zeros(3)}, {"w": np.ones(3)}])
    with pytest.raises(ValueError, match=message):
        average(paths, tmp_path / "out.ptck", weights=weights)


def test_what_makes_no_sense_is_refused(tmp_path):
    [path] = saved(tmp_path, [{"n": np.arange(3)}])
    with pytest.raises(ptc.StructureMismatchError, match="nothing to average"):
        average([path], tmp_path / "out.ptck")
    with pytest.raises(ValueError, match="at least one"):
        average([], tmp_path / "out.ptck")
    with pytest.raises(TypeError, match="a list of them"):
        average(str(path), tmp_path / "out.ptck")
    with pytest.raises(ValueError, match="'averaged' already"):
        average([path], tmp_path / "out.ptck", metadata={"averaged": 1})
    with pytest.raises(ptc.CheckpointNotFoundError):
        average([path, tmp_path / "none.ptck"], tmp_path / "out.ptck")


def test_packed_and_sparse_tensors_have_no_mean(tmp_path):
    packed = torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    sparse = torch.eye(3).to_sparse()
    paths = saved(tmp_path, [{"w": torch.ones(2), "p": packed, "s": sparse}] * 2)
    with pytest.raises(ptc.UnsupportedTypeError, match="p: numbers that numpy does not have(?s:.*)of a sparse tensor"):
        average(paths, tmp_path / "out.ptck")
    average(paths, tmp_path / "out.ptck", select="w")
    assert torch.equal(ptc.restore(tmp_path / "out.ptck")["s"].to_dense(), torch.eye(3))


def trained(folder, steps=3):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 2))
    optimizer = torch.optim.Adam(model.parameters())
    paths = []
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 6)).square().sum().backward()
        optimizer.step()
        paths.append(folder / f"{step}.ptck")
        ptt.save_training(paths[-1], model=model, optimizer=optimizer, step=step, losses=[0.5] * step)
    return model, optimizer, paths


def test_of_a_training_the_weights_are_averaged_and_the_optimizer_is_the_newest(tmp_path):
    model, optimizer, paths = trained(tmp_path)
    average(paths, tmp_path / "out.ptck")
    resumed = ptt.resume(tmp_path / "out.ptck", model=model, optimizer=optimizer)
    assert (resumed["step"], resumed["losses"]) == (2, [0.5, 0.5])
    states = [ptc.restore(path) for path in paths]
    for name, value in model.state_dict().items():
        arrays = [state["model"]["state"][name].numpy() for state in states]
        if value.is_floating_point():
            assert_same(value.numpy(), straightforward(arrays, [1.0, 1.0, 1.0]))
        else:
            assert_same(value.numpy(), arrays[-1])
    newest = ptc.restore(paths[-1], to="numpy")
    found = ptc.restore(tmp_path / "out.ptck", to="numpy")
    assert_same(found["optimizer"], newest["optimizer"])
    assert_same(found["rng"], newest["rng"])


def test_the_state_of_an_optimizer_by_hand_is_the_newest_too(tmp_path):
    model, optimizer, _ = trained(tmp_path, 1)
    paths = []
    for factor in (0, 1):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(factor)
                optimizer.state[parameter]["exp_avg"].fill_(factor)
        paths.append(tmp_path / f"by-hand-{factor}.pt")
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, paths[-1])
    average(paths, tmp_path / "out.ptck")
    found = ptc.restore(tmp_path / "out.ptck")
    assert float(found["model"]["0.bias"][0]) == 0.5
    assert float(found["optimizer"]["state"][0]["exp_avg"].reshape(-1)[0]) == 1.0


def test_files_of_any_formats_are_averaged(tmp_path):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((300, 70)).astype(np.float32) for _ in range(4)]
    tensors = [{"w": torch.from_numpy(array), "b": torch.ones(3).bfloat16()} for array in arrays]
    paths = [tmp_path / name for name in ("0.safetensors", "1.pt", "2.npz", "3.ptck")]
    safetensors.torch.save_file(tensors[0], paths[0])
    torch.save(tensors[1], paths[1])
    ptc.save(tensors[3], paths[3])
    used = [paths[place] for place in (0, 1, 3)]
    average(used, tmp_path / "out.ptck", weights=[1, 2, 3])
    found = ptc.restore(tmp_path / "out.ptck")
    assert_same(found["w"].numpy(), straightforward([arrays[place] for place in (0, 1, 3)], [1.0, 2.0, 3.0]))
    assert found["b"].dtype is torch.bfloat16


def test_trees_in_memory_and_references_are_averaged_alike(tmp_path):
    arrays = [np.random.default_rng(n).standard_normal((20, 30)).astype(ml_dtypes.bfloat16) for n in range(3)]
    paths = saved(tmp_path, [{"w": array} for array in arrays])
    with ptc.open(paths[0]) as first:
        tree = averaged([first.tree, {"w": np.asfortranarray(arrays[1])}, {"w": arrays[2]}], weights=[1, 2, 3])
        ptc.save(tree, tmp_path / "mixed.ptck")
    average(paths, tmp_path / "files.ptck", weights=[1, 2, 3])
    assert_same(ptc.restore(tmp_path / "mixed.ptck"), ptc.restore(tmp_path / "files.ptck"))


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_average_may_replace_any_of_its_inputs(order, tmp_path):
    arrays = [np.array(np.random.default_rng(n).random((500, 700)), order="CF"[n % 2]) for n in range(3)]
    arrays[-1] = np.array(arrays[-1], order=order)
    for place in range(3):
        paths = saved(tmp_path, [{"w": array} for array in arrays])
        average(paths, paths[place])
        assert_same(ptc.restore(paths[place])["w"].copy("C"), straightforward(arrays, [1.0] * 3))
    [path] = saved(tmp_path, [{"w": arrays[0]}])
    average([path, path], path)
    assert_same(ptc.restore(path)["w"], arrays[0])


def test_an_interrupt_publishes_nothing_and_leaves_nothing_behind(tmp_path):
    paths = saved(tmp_path, [{"w": np.random.default_rng(n).random(600_000)} for n in range(2)])
    before = (paths[0].read_bytes(), sorted(tmp_path.iterdir()))

    def interrupt(progress):
        if progress.done_nbytes > 2 << 20:
            raise KeyboardInterrupt

    for out in (paths[0], tmp_path / "out.ptck"):
        with pytest.raises(KeyboardInterrupt):
            average(paths, out, progress=interrupt)
        assert (paths[0].read_bytes(), sorted(tmp_path.iterdir())) == before


def test_damage_is_told_with_file_and_leaf_and_nothing_is_published(tmp_path):
    paths = saved(tmp_path, [{"w": np.random.default_rng(n).random(5000)} for n in range(2)], compression="none")
    data = bytearray(paths[0].read_bytes())
    data[5000] ^= 1
    paths[0].write_bytes(data)
    with pytest.raises(ptc.CorruptionError, match=r"0\.ptck: leaf w, chunk 0"):
        average(paths, tmp_path / "out.ptck")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.ptck", "1.ptck"]


OUT_OF_CORE = """
import resource, sys
import numpy as np
import pytreeckpt as ptc
from pytreeckpt.operations import sources

folder, room = sys.argv[1], int(sys.argv[2])
# What is imported when it is first needed is not what is measured.
ptc.average([f"{folder}/small.ptck"] * 2, f"{folder}/small-out.ptck", durability="atomic")
with open("/proc/self/status") as status:
    used = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (used + room, used + room))
ptc.average([f"{folder}/{n}.ptck" for n in range(10)], f"{folder}/out.ptck", durability="atomic")
try:
    np.ones(2 * room, np.uint8)
except MemoryError:
    print("limited")
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")
@pytest.mark.parametrize("nbytes", [30 << 20, pytest.param(400 << 20, marks=pytest.mark.slow)])
def test_ten_checkpoints_each_larger_than_the_memory_are_averaged(nbytes, tmp_path):
    room = 26 << 20
    for number in range(10):
        array = np.full(nbytes // 4, number, np.float32)
        array[:: 1 << 16] = 1
        assert array.nbytes > room
        ptc.save({"w": array}, tmp_path / f"{number}.ptck", durability="atomic")
    ptc.save({"w": np.ones(1 << 20, np.float32)}, tmp_path / "small.ptck")
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_CORE, str(tmp_path), str(room)],
        env={"PYTREECKPT_THREADS": "1", "PYTHONPATH": str(Path(ptc.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "limited\n"), done.stderr
    found = ptc.restore(tmp_path / "out.ptck")["w"]
    assert (found[0], found[1], found[-1]) == (1.0, 4.5, 4.5)
