"""Torch files as we write them: `torch.load` gives back the same objects, bit by bit, tied where they were tied."""

import argparse
import collections
import enum
import io
import pathlib
import pickle
import pickletools
import types
import zipfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt import testing
from pytreeckpt.interop.registered import registered
from pytreeckpt.interop.torch_files import read_torch
from pytreeckpt.interop.write_torch import plan_torch, write_torch
from pytreeckpt.objects import ClassKind, ObjectType, build_record
from tests.exact import assert_same
from tests.interop.sources import source
from tests.strategies import Point, State


def encoded(tree):
    return b"".join(plan_torch(tree)())


def loaded(tree, *, weights_only=True):
    return torch.load(io.BytesIO(encoded(tree)), weights_only=weights_only)


# What weights_only takes: its own closed list.
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**300), 2**300),
    testing.floats(),
    st.text(max_size=20),
    st.binary(max_size=20),
    st.builds(complex, testing.floats(), testing.floats()),
    st.sets(st.integers(-5, 5) | st.text(max_size=2), max_size=3),
    st.binary(max_size=5).map(bytearray),
)
KEYS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.text(max_size=4)
    | st.tuples(st.integers(), st.text(max_size=2))
)
TREES = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.lists(inner, max_size=5).map(tuple),
        st.dictionaries(KEYS, inner, max_size=4),
        st.dictionaries(KEYS, inner, max_size=4).map(collections.OrderedDict),
        st.dictionaries(KEYS, st.integers(0, 9), max_size=3).map(collections.Counter),
    ),
    max_leaves=15,
)


@given(TREES)
def test_plain_values_come_back_through_the_safe_loader(tree):
    assert_same(tree, loaded(tree))


@given(testing.trees())
def test_all_else_comes_back_as_from_pythons_own_pickle_or_is_refused(tree):
    try:
        data = encoded(tree)
    except ptc.UnsupportedTypeError as error:
        assert "is not written to torch files" in str(error)
        return
    assert_same(pickle.loads(pickle.dumps(tree, 2)), torch.load(io.BytesIO(data), weights_only=False))


TORCH_DTYPES = [
    *(
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.uint16,
        torch.uint32,
        torch.uint64,
    ),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex32, torch.complex64, torch.complex128),
    *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz, torch.float8_e8m0fnu),
    *(torch.float4_e2m1fn_x2, torch.bits8, torch.bits16),
]


def bits(tensor):
    flat = tensor.detach().clone(memory_format=torch.contiguous_format) if tensor.numel() else tensor.detach()
    return flat.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def random_tensor(dtype, shape, layout, seed):
    n = int(np.prod(shape)) * dtype.itemsize
    octets = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, max(n, 16), np.uint8))
    if dtype is torch.bool:
        octets &= 1
    tensor = octets[: n - n % dtype.itemsize].view(dtype).reshape(shape)
    if layout == "transposed" and len(shape) > 1:
        return tensor.transpose(0, -1)
    if layout == "strided" and len(shape) and dtype is not torch.float4_e2m1fn_x2:
        return tensor[..., ::2]
    return tensor


# Of numbers that torch holds but hardly computes with, it warns.
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")
@given(
    st.sampled_from(TORCH_DTYPES),
    st.lists(st.integers(0, 3), max_size=4),
    st.sampled_from(["C", "transposed", "strided"]),
    st.booleans(),
    st.integers(0, 9),
)
def test_tensors_come_back_bit_by_bit(dtype, shape, layout, parameter, seed):
    tensor = random_tensor(dtype, shape, layout, seed)
    if parameter:
        tensor = torch.nn.Parameter(tensor, requires_grad=dtype.is_floating_point and dtype.itemsize > 1)
    found = loaded({"t": tensor})["t"]
    assert type(found) is type(tensor)
    assert found.dtype == tensor.dtype
    assert found.shape == tensor.shape
    assert found.requires_grad == tensor.requires_grad
    assert found.is_contiguous() == tensor.is_contiguous() or layout == "strided"
    assert bits(found) == bits(tensor)
    if layout != "strided" and tensor.numel():
        assert found.untyped_storage().nbytes() == tensor.numel() * dtype.itemsize


def test_requires_grad_and_buffers_are_kept():
    tree = {
        "leaf": torch.ones(2, requires_grad=True),
        "computed": torch.ones(2, requires_grad=True) * 2,
        "frozen": torch.nn.Parameter(torch.ones(2), requires_grad=False),
        "buffer": torch.nn.Buffer(torch.ones(2), persistent=False),
    }
    found = loaded(tree)
    assert [found[name].requires_grad for name in tree] == [True, True, False, False]
    assert type(found["frozen"]) is torch.nn.Parameter
    assert isinstance(found["buffer"], torch.nn.Buffer)
    assert found["buffer"].persistent is False


def test_tied_tensors_stay_tied():
    weight = torch.nn.Parameter(torch.arange(4.0))
    tree = {"a": weight, "b": [weight], "c": weight.data, "d": weight.data.clone(), "e": weight.data}
    found = loaded(tree)
    assert found["a"] is found["b"][0]
    assert found["c"].data_ptr() == found["a"].data_ptr() != found["d"].data_ptr()
    assert type(found["c"]) is torch.Tensor
    with zipfile.ZipFile(io.BytesIO(encoded(tree))) as archive:
        assert [name for name in archive.namelist() if "/data/" in name] == ["archive/data/0", "archive/data/1"]


def test_a_state_dict_and_an_optimizer_resume():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(5, 4)).sum().backward()
    optimizer.step()
    tree = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state(), "epoch": 3}
    found = loaded(tree)
    assert type(found["model"]) is collections.OrderedDict
    model.load_state_dict(found["model"])
    optimizer.load_state_dict(found["optimizer"])
    assert torch.equal(found["rng"], tree["rng"])
    assert testing.identical(ptc.decode(ptc.encode(tree)), ptc.decode(ptc.encode(found))) == []


@pytest.mark.filterwarnings("ignore:Sparse CS. tensor support is in beta state:UserWarning")
def test_descriptors_and_sparse_tensors_come_back():
    eye = torch.eye(3)
    tree = {
        "size": torch.Size([2, 3]),
        "dtype": torch.bfloat16,
        "device": torch.device("cuda", 1),
        "cpu": torch.device("cpu"),
        "layout": torch.sparse_coo,
        "coo": eye.to_sparse(),
        "csr": eye.to_sparse_csr(),
        "csc": eye.to_sparse_csc(),
    }
    found = loaded(tree)
    for name in ("size", "dtype", "device", "cpu", "layout"):
        assert found[name] == tree[name]
        assert type(found[name]) is type(tree[name])
    for name in ("coo", "csr", "csc"):
        assert found[name].layout == tree[name].layout
        assert torch.equal(found[name].to_dense(), eye)
    assert loaded(torch.channels_last, weights_only=False) is torch.channels_last


def test_arrays_and_scalars_of_numpy_stay_numpys():
    tree = {
        "c": np.arange(6.0).reshape(2, 3),
        "f": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "strided": np.arange(10)[::2],
        "bf16": np.ones(3, ml_dtypes.bfloat16),
        "text": np.array(["a", "bcd"]),
        "struct": np.zeros(2, [("a", "f4"), (("title", "b"), "S3")]),
        "when": np.array(["2020-01-01"], "M8[s]"),
        "objects": np.array([1, "x", None], object),
        "zero": np.zeros((0, 3)),
        "scalar": np.float32(1.5),
        "name": np.str_("é"),
        "dtype": np.dtype("<f4"),
    }
    found = loaded(tree, weights_only=False)
    for name, value in tree.items():
        assert type(found[name]) is type(value)
        if isinstance(value, np.ndarray):
            assert found[name].dtype == value.dtype
            assert found[name].tolist() == value.tolist()
        else:
            assert found[name] == value
    assert found["f"].flags.f_contiguous
    # numpy turns big-endian arrays round when it reads a pickle, whoever wrote it.
    assert loaded(np.arange(3, dtype=">u2"), weights_only=False).tolist() == [0, 1, 2]
    array = np.zeros(3)
    pair = loaded([array, array], weights_only=False)
    assert pair[0] is pair[1]


def test_python_objects_come_back():
    tree = {
        "deque": collections.deque([1, 2], 5),
        "default": collections.defaultdict(None, a=1),
        "counter": collections.Counter("abca"),
        "range": range(1, 9, 2),
        "slice": slice(None, 3),
        "path": pathlib.PurePosixPath("a/b"),
        "namespace": argparse.Namespace(lr=0.1, name="x"),
        "simple": types.SimpleNamespace(a=[1]),
        "frozen": frozenset([1, "a", frozenset([2])]),
        "ellipsis": ...,
    }
    assert_same(tree, loaded(tree, weights_only=False))


def test_arrays_of_jax_become_tensors():
    found = loaded({"a": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3)})["a"]
    assert found.dtype == torch.bfloat16
    assert found.tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(ptc.UnsupportedTypeError, match=r"k: .*key_data"):
        encoded({"k": jax.random.key(0)})
    with pytest.raises(ptc.UnsupportedTypeError, match=r"a/b: torch has no dtype for arrays of int4"):
        encoded({"a": {"b": jnp.zeros(2, jnp.int4)}})


def test_packed_parameters_and_odd_records():
    packed = torch.nn.Parameter(torch.arange(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2), requires_grad=False)
    found = loaded(packed)
    assert type(found) is torch.nn.Parameter
    assert (found.dtype, found.requires_grad) == (packed.dtype, False)
    with pytest.raises(ptc.UnsupportedTypeError, match="detach it"):
        encoded([torch.eye(2).to_sparse().requires_grad_()])
    odd = build_record(ObjectType(ClassKind.WRAPPER, "python.Path", ("text", "flavour")), ["a", "of nobody"])
    with pytest.raises(ptc.CorruptionError, match="flavour"):
        encoded(odd)


def record(name, *values):
    return registered(name, *values)


def tensor(*values):
    return record("torch.Tensor", *(values or (np.zeros(2), False)))


INJECTED = "float32\ncos\nsystem\n(S'true'\ntR."
HOSTILE = {
    "a tensor of a number": tensor(5, False),
    "a tensor of nothing": tensor(None, False),
    "a tensor of objects": tensor(np.array([1, "a"], object), False),
    "a tensor of a tensor": tensor(tensor(), False),
    "a tensor of items of no bytes": tensor(np.zeros(3, "V0"), False),
    "a tensor of texts of no bytes": tensor(np.zeros(3, "S0"), False),
    "a tensor of a struct": tensor(np.zeros(3, [("a", "f4")]), False),
    "a tensor of times": tensor(np.zeros(3, "M8[s]"), False),
    "a gradient that is a list": tensor(np.zeros(2), [1]),
    "a gradient that is a number": tensor(np.zeros(2), 1),
    "a parameter of a number": record("torch.nn.Parameter", 5, True),
    "a buffer that is kept by a list": record("torch.nn.Buffer", np.zeros(2), False, [1]),
    "an array of jax of a text": record("jax.Array", "x", False),
    "a dtype with a line break": record("torch.dtype", INJECTED),
    "a dtype that is a function": record("torch.dtype", "load"),
    "a dtype that is in a module": record("torch.dtype", "hub.load"),
    "a dtype that is a list": record("torch.dtype", ["float32"]),
    "a memory format with a line break": record("torch.memory_format", INJECTED),
    "a memory format of nobody": record("torch.memory_format", "load"),
    "a layout that is a number": record("torch.layout", 5),
    "bits of a dtype with a line break": record("torch.PackedTensor", np.zeros(3, "u1"), INJECTED, (3,), False, False),
    "bits of a dtype that has none": record("torch.PackedTensor", np.zeros(3, "u1"), "float32", (3,), False, False),
    "bits of another size": record("torch.PackedTensor", np.zeros(3, "u4"), "bits8", (3,), False, False),
    "bits of a parameter that is a list": record("torch.PackedTensor", np.zeros(3, "u1"), "bits8", (3,), False, [1]),
    "a sparse tensor of numbers": record("torch.SparseTensor", 1, (tensor(),), "sparse_coo", (3,), True, False),
    "a sparse tensor without indices": record("torch.SparseTensor", tensor(), 5, "sparse_coo", (3,), True, False),
    "a sparse tensor without a shape": record(
        "torch.SparseTensor", tensor(), (tensor(),), "sparse_coo", 3, True, False
    ),
    "a size that is a number": record("torch.Size", 5),
    "a device of lists": record("torch.device", ["cpu"], [1]),
    "an ordered dict of a number": record("python.OrderedDict", 5),
    "a counter of a list": record("python.Counter", [1]),
    "a deque of a number": record("python.deque", 5, None),
    "octets of a number": record("python.bytearray", 1 << 60),
    "a path of a list": record("python.Path", "a", ["posix"]),
    "a range of texts": record("python.range", "a", "b", "c"),
    "an array of objects without a shape": record("numpy.ObjectArray", [1], 5),
    "a dtype of numpy of a number": record("numpy.dtype", 5),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_objects_with_fields_of_other_types_are_refused_with_their_path(name, tmp_path):
    with pytest.raises(ptc.UnsupportedTypeError, match=r"^a\[1\]/b"):
        write_torch({"a": [0, {"b": HOSTILE[name]}]}, tmp_path / "x.pt")
    # As a stranger's checkpoint has it, where what is checked when it is opened is checked then.
    try:
        ptc.save({"a": [0, {"b": HOSTILE[name]}]}, tmp_path / "x.ptck")
        with ptc.open(tmp_path / "x.ptck") as checkpoint:
            write_torch(checkpoint.tree, tmp_path / "x.pt")
    except ptc.PytreeckptError as error:
        assert str(error)
        return
    # It was a wrapper that nothing is left of, and never runs anything.
    torch.load(tmp_path / "x.pt", weights_only=False)
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        assert b"system" not in archive.read("archive/data.pkl")


class Odd(enum.Enum):
    ONE = 1


@pytest.mark.parametrize("value", [Point(1, 2), State(1), Odd.ONE])
def test_instances_of_classes_are_refused_with_their_path(tmp_path, value):
    with pytest.raises(ptc.UnsupportedTypeError, match=r"a\[1\]/b: .*is not written to torch files"):
        write_torch({"a": [0, {"b": value}]}, tmp_path / "x.pt")
    assert list(tmp_path.iterdir()) == []


def test_references_to_a_checkpoint_are_written_as_its_values(tmp_path):
    weight = torch.nn.Parameter(torch.randn(3, 4).t())
    tree = {"w": weight, "tied": weight, "n": np.arange(1000), "j": jnp.ones(3), "step": 3}
    ptc.save(tree, tmp_path / "x.ptck")
    with ptc.open(tmp_path / "x.ptck") as checkpoint:
        write_torch(checkpoint.tree, tmp_path / "x.pt")
    found = torch.load(tmp_path / "x.pt", weights_only=False)
    assert found["w"] is found["tied"]
    assert torch.equal(found["w"], weight)
    assert found["n"].tolist() == list(range(1000))
    assert found["j"].tolist() == [1, 1, 1]


def test_our_reader_gives_back_what_was_written(tmp_path):
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).t())
    tree = {
        "w": weight,
        "tied": [weight],
        "b": np.arange(3, dtype=">f4"),
        "s": torch.Size([1]),
        "n": (None, 1 << 80, b"x"),
    }
    write_torch(tree, tmp_path / "x.pt")
    assert testing.identical(tree, ptc.restore(tmp_path / "x.pt")) == []
    assert read_torch(source((tmp_path / "x.pt").read_bytes())).checks


def test_storages_are_aligned_and_can_be_mapped(tmp_path):
    tree = {str(n): torch.full((n + 1,), n, dtype=torch.float32) for n in range(20)}
    report = write_torch(tree, tmp_path / "x.pt")
    assert report.nbytes == (tmp_path / "x.pt").stat().st_size
    found = torch.load(tmp_path / "x.pt", mmap=True, weights_only=True)
    for name, tensor in found.items():
        assert torch.equal(tensor, tree[name])
        assert tensor.data_ptr() % 64 == 0
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        assert archive.testzip() is None
        assert archive.read("archive/byteorder") == b"little"
        assert archive.read("archive/version") == b"3\n"


def test_the_pickle_is_of_protocol_2_and_names_nothing_else():
    tree = {"w": torch.nn.Parameter(torch.zeros(2)), "n": [np.float32(1), b"x", {1}]}
    with zipfile.ZipFile(io.BytesIO(encoded(tree))) as archive:
        operations = list(pickletools.genops(archive.read("archive/data.pkl")))
    assert (operations[0][0].name, operations[0][1]) == ("PROTO", 2)
    assert max(operation.proto for operation, _, _ in operations) == 2
    assert {argument for operation, argument, _ in operations if operation.name == "GLOBAL"} == {
        "__builtin__ set",
        "_codecs encode",
        "collections OrderedDict",
        "numpy dtype",
        "numpy._core.multiarray scalar",
        "torch FloatStorage",
        "torch._utils _rebuild_parameter",
        "torch._utils _rebuild_tensor_v2",
    }


def test_large_containers_and_many_names_are_written_in_batches():
    tree = {
        "l": list(range(2500)),
        "d": {f"key {n}": n for n in range(2500)},
        "t": tuple(range(300)),
        "e": [[], {}, ()],
    }
    assert_same(tree, loaded(tree))


def test_deep_trees_need_no_recursion():
    tree = None
    for _ in range(3000):
        tree = [tree]
    with zipfile.ZipFile(io.BytesIO(encoded(tree))) as archive:
        assert archive.read("archive/data.pkl").startswith(b"\x80\x02](](](")


def test_the_same_tree_gives_the_same_bytes():
    tree = {"w": torch.ones(3), "n": np.arange(3)}
    assert encoded(tree) == encoded(tree)
