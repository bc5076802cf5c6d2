"""The torch adapter: every tensor comes back bit for bit, or is refused with what to do instead."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt
import pytreeckpt_torch
from pytreeckpt import UnsupportedTypeError, decode, encode, testing
from pytreeckpt_torch.dtypes import DTYPES, NUMPY_OF
from pytreeckpt_torch.dtypes import PACKED as PACKED_BY_NAME
from pytreeckpt_torch.staging import StagedRuns, memory_order
from tests.adapters.torch_tensors import PACKED, PLAIN, bits, differences, from_bytes, is_dense, tensors

ADAPTER: Any = pytreeckpt_torch.ADAPTER
SPARSE_BETA = "ignore:Sparse (CSR|CSC|BSR|BSC) tensor support is in beta:UserWarning"


@pytest.fixture(autouse=True)
def _checked_sparse_tensors():
    # Without a decision torch warns of each sparse tensor that is made.
    with torch.sparse.check_sparse_tensor_invariants(True):
        yield


def coo(indices, shape):
    """A sparse tensor that is not coalesced, with the values 1, 2, 3 …."""
    return torch.sparse_coo_tensor(torch.tensor(indices), torch.arange(1.0, len(indices[0]) + 1), shape)


# Properties.


@given(tensors())
def test_a_tensor_comes_back_with_its_class_dtype_bits_strides_and_gradient_flag(tensor):
    assert differences(tensor, decode(encode(tensor))) == []


@given(tensors())
def test_a_tensor_comes_back_into_itself_as_a_template(tensor):
    assert differences(tensor, decode(encode(tensor), like=tensor)) == []


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")
@given(tensors(PLAIN))
def test_a_meta_tensor_is_a_template_for_a_tensor_on_the_cpu(tensor):
    template = tensor.to("meta").requires_grad_(tensor.requires_grad)
    restored = decode(encode(tensor), like=template)
    assert restored.device.type == "cpu"
    assert (bits(restored), restored.dtype, restored.shape) == (bits(tensor), tensor.dtype, tensor.shape)


@given(tensors(PLAIN))
def test_a_tensor_reads_as_a_numpy_array_of_the_same_bits(tensor):
    array = decode(encode(tensor), to="numpy")
    assert array.dtype == NUMPY_OF[tensor.dtype]
    assert array.shape == tensor.shape
    assert array.tobytes() == bits(tensor)


@given(testing.trees(tensors()))
def test_trees_with_tensors_come_back_identical(tree):
    assert testing.identical(tree, decode(encode(tree), types=testing.TYPES)) == []


@given(testing.arrays(st.sampled_from(sorted(set(NUMPY_OF.values()), key=str))))
def test_an_array_becomes_a_tensor_of_the_same_bits(array):
    tensor = decode(encode(array), to="torch")
    assert NUMPY_OF[tensor.dtype] == array.dtype
    assert tensor.shape == array.shape
    assert bits(tensor) == array.tobytes()


@given(tensors(), st.data())
def test_a_staged_run_holds_just_the_items_that_were_asked_for(tensor, data):
    dtype = np.dtype(f"V{tensor.dtype.itemsize}") if tensor.dtype in PACKED else NUMPY_OF[tensor.dtype]
    read = StagedRuns(tensor.detach(), dtype)
    start = data.draw(st.integers(0, tensor.numel()))
    stop = data.draw(st.integers(start, tensor.numel()))
    itemsize = tensor.dtype.itemsize
    run = read(start, stop)
    assert run.shape == (stop - start,)
    assert run.tobytes() == bits(tensor)[start * itemsize : stop * itemsize]


@given(tensors(PLAIN))
def test_the_memory_order_is_found_exactly_where_there_is_one(tensor):
    axes = memory_order(tuple(tensor.shape), tensor.stride())
    stored = tensor if axes is None else tensor.permute(axes)
    assert stored.is_contiguous() == is_dense(tensor) or tensor.numel() == 0
    assert axes is None or axes != tuple(range(tensor.ndim))


# Examples.


def test_the_adapter_keeps_the_contract():
    examples = [
        torch.arange(6.0).reshape(2, 3).t(),
        torch.nn.Parameter(torch.ones(2)),
        torch.nn.Buffer(torch.ones(2), persistent=False),
        torch.ones(3, dtype=torch.complex64).conj(),
        torch.zeros(2, 0),
        torch.Size([1, 2]),
        torch.device("cuda", 1),
        torch.device("cpu"),
        torch.strided,
        torch.channels_last,
        *(from_bytes(bytes(range(16)), dtype) for dtype in PLAIN + PACKED),
        *DTYPES.values(),
        coo([[0, 1, 1], [1, 1, 1]], (2, 3)),
    ]
    testing.check_adapter(ADAPTER, examples, compare=differences)


def test_every_dtype_of_torch_is_stored_or_refused():
    assert set(DTYPES.values()) == {*PLAIN, *PACKED, *(getattr(torch, name) for name in QUANTIZED)}
    assert set(NUMPY_OF) == set(PLAIN)
    assert set(PACKED_BY_NAME.values()) == set(PACKED)


QUANTIZED = ["qint8", "qint32", "quint8", "quint4x2", "quint2x4"]


@pytest.mark.parametrize(
    ("tensor", "strides"),
    [
        (torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), (60, 1, 15, 3)),
        (torch.randn(2, 1, 4, 5).to(memory_format=torch.channels_last), (20, 1, 5, 1)),
        (torch.randn(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d), (360, 1, 90, 18, 3)),
        (torch.randn(3, 4).t(), (1, 4)),
        (torch.randn(3, 1).t(), (1, 1)),
        (torch.randn(4, 6)[:, ::2], (3, 1)),
        (torch.randn(1).expand(5), (1,)),
    ],
    ids=["channels last", "one channel", "volumes", "transposed", "a row", "with gaps", "expanded"],
)
def test_a_dense_tensor_keeps_its_strides_and_another_one_becomes_contiguous(tensor, strides):
    restored = decode(encode(tensor))
    assert restored.stride() == strides
    assert torch.equal(restored, tensor)


def test_large_tensors_of_any_layout_come_back_from_many_chunks():
    base = torch.arange(1_500_000, dtype=torch.int64).reshape(1000, 1500)
    tree = [base, base.t(), base[:, ::3], base.reshape(10, 100, 1500).permute(2, 0, 1)[1:], base[1:-1, 1:-1].conj()]
    restored = decode(encode(tree))
    assert all(torch.equal(a, b) for a, b in zip(tree, restored, strict=True))
    lazy = torch.complex(base.double(), -base.double()).conj()
    assert torch.equal(decode(encode(lazy)), lazy)
    assert torch.equal(decode(encode(lazy.imag)), lazy.imag)


def test_tensors_of_the_same_view_come_back_as_one_and_of_other_views_do_not():
    base = torch.randn(4, 4)
    tree = {
        "a": base,
        "same object": base,
        "same view": base.view(4, 4),
        "transposed": base.t(),
        "part": base[:2],
        "part again": base[:2],
        "equal": base.clone(),
        "other dtype": base.view(torch.int32),
        "conjugated": torch.complex(base, base).conj(),
    }
    restored = decode(encode(tree))
    assert restored["a"] is restored["same object"] is restored["same view"]
    assert restored["part"] is restored["part again"]
    others = ["a", "transposed", "part", "equal", "other dtype"]
    assert len({restored[name].data_ptr() for name in others}) == len(others)


def test_a_parameter_and_its_data_share_their_memory_again():
    parameter = torch.nn.Parameter(torch.ones(3))
    restored = decode(encode([parameter, parameter.data, parameter.detach()]))
    assert type(restored[0]) is torch.nn.Parameter
    assert type(restored[1]) is torch.Tensor
    assert restored[1] is restored[2]
    restored[1][0] = 7
    assert restored[0][0] == 7


def test_empty_tensors_are_shared_by_object_alone():
    empty = torch.empty(0, 3)
    restored = decode(encode([empty, empty, torch.empty(0, 3)]))
    assert restored[0] is restored[1]
    assert restored[0] is not restored[2]


def test_tied_weights_of_a_module_stay_tied():
    embedding = torch.nn.Embedding(5, 3)
    head = torch.nn.Linear(3, 5, bias=False)
    head.weight = embedding.weight
    state = torch.nn.Sequential(embedding, head).state_dict()
    restored = decode(encode(state))
    assert restored["0.weight"] is restored["1.weight"]
    assert torch.equal(restored["0.weight"], embedding.weight)


def test_a_computed_tensor_comes_back_as_a_leaf_that_requires_a_gradient():
    computed = torch.ones(2, requires_grad=True) * 2
    restored = decode(encode(computed))
    assert restored.requires_grad
    assert restored.is_leaf
    assert torch.equal(restored, computed)


def test_grad_is_not_stored():
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.sum().backward()
    assert decode(encode(parameter)).grad is None


def test_saving_copies_no_cpu_tensor():
    for tensor in (torch.randn(100), torch.randn(3, 4).t(), torch.ones(9, dtype=torch.bfloat16)):
        source = ADAPTER.expand(tensor).children[0]
        run = source.boxes[0](0, tensor.numel())
        assert run.__array_interface__["data"][0] == tensor.data_ptr()


def test_restoring_copies_no_array():
    array = np.arange(12.0).reshape(3, 4)
    tensor = ADAPTER.from_array(array)
    array[0, 0] = 5
    assert tensor[0, 0] == 5


def test_a_read_only_or_big_endian_array_is_copied_for_torch():
    for array in (np.arange(3, dtype=">f4"), np.broadcast_to(np.float32(1), (2, 3))):
        tensor = ADAPTER.from_array(array)
        assert tensor.tolist() == array.tolist()
        tensor += 1


def test_restored_tensors_can_be_written_to_also_when_they_were_mapped(tmp_path):
    path = tmp_path / "t.ptck"
    pytreeckpt.save({"w": torch.ones(1000)}, path, compression="none")
    for mmap in (False, True):
        restored = pytreeckpt.restore(path, mmap=mmap)
        restored["w"] += 1
        assert pytreeckpt.restore(path)["w"].sum() == 1000


@pytest.mark.parametrize("dtype", ["M8[s]", "U3", "S2", [("a", "i4")], "longdouble"], ids=str)
def test_a_dtype_that_torch_lacks_is_refused_by_name(dtype):
    data = encode({"a": {"b": np.zeros(2, dtype)}})
    with pytest.raises(UnsupportedTypeError, match=r"(?s)a/b.*torch has no dtype.*to=\"numpy\""):
        decode(data, to="torch")


def test_a_template_gives_its_class_gradient_flag_and_persistence():
    data = encode({"w": torch.ones(2)})
    for wanted in (
        torch.nn.Parameter(torch.ones(2)),
        torch.nn.Parameter(torch.ones(2), requires_grad=False),
        torch.nn.Buffer(torch.ones(2), persistent=False),
        torch.ones(2, requires_grad=True),
        torch.ones(2),
    ):
        assert differences(wanted, decode(data, like={"w": wanted})["w"]) == []


def test_a_numpy_array_goes_into_a_tensor_of_a_template_and_back():
    assert torch.equal(
        decode(encode([np.ones(2)]), like=[torch.zeros(2, dtype=torch.float64)])[0], torch.ones(2).double()
    )
    assert isinstance(decode(encode([torch.ones(2)]), like=[np.zeros(2, np.float32)])[0], np.ndarray)


def test_a_template_of_another_dtype_or_shape_is_a_mismatch():
    data = encode({"w": torch.ones(2), "p": from_bytes(b"ab", torch.bits8)})
    template = {"w": torch.ones(3), "p": torch.zeros(2, dtype=torch.uint8)}
    with pytest.raises(pytreeckpt.StructureMismatchError) as caught:
        decode(data, like=template)
    assert [line.split(":")[0] for line in caught.value.mismatched] == ["w", "p"]
    assert "bits of torch.bits8" in caught.value.mismatched[1]


def test_a_key_of_jax_is_no_tensor_for_a_template():
    import jax

    data = encode({"key": jax.random.key(0)})
    with pytest.raises(pytreeckpt.StructureMismatchError, match="typed PRNG key of JAX"):
        decode(data, like={"key": torch.zeros(2, dtype=torch.uint32)})


def test_a_slice_of_a_stored_tensor_is_a_tensor_of_its_class_and_dtype(tmp_path):
    path = tmp_path / "t.ptck"
    tree = {"w": torch.nn.Parameter(torch.arange(10.0)), "p": from_bytes(bytes(range(10)), torch.float4_e2m1fn_x2)}
    pytreeckpt.save(tree, path)
    with pytreeckpt.open(path) as checkpoint:
        assert checkpoint["w"].shape == (10,)
        assert differences(checkpoint["w"][2:4], torch.nn.Parameter(torch.tensor([2.0, 3.0]))) == []
        assert differences(checkpoint["p"][2:4], tree["p"][2:4]) == []
        assert differences(checkpoint["w"][::-3], torch.nn.Parameter(torch.tensor([9.0, 6.0, 3.0, 0.0]))) == []
        assert (
            differences(checkpoint["p"][::-1][::2], tree["p"].view(torch.uint8).flip(0)[::2].view(tree["p"].dtype))
            == []
        )
        assert isinstance(np.asarray(checkpoint["w"]), np.ndarray)


# Sparse tensors.


@pytest.mark.filterwarnings(SPARSE_BETA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool], ids=str)
@pytest.mark.parametrize(
    "to_sparse",
    [
        lambda dense: dense.to_sparse(),
        lambda dense: dense.to_sparse(1),
        lambda dense: dense.to_sparse_csr(),
        lambda dense: dense.to_sparse_csc(),
        lambda dense: dense.to_sparse_bsr((2, 2)),
        lambda dense: dense.to_sparse_bsc((2, 2)),
        lambda dense: (dense * 0).to_sparse_csr(),
    ],
    ids=["COO", "hybrid COO", "CSR", "CSC", "BSR", "BSC", "empty CSR"],
)
def test_a_sparse_tensor_comes_back_with_its_parts(dtype, to_sparse):
    tensor = to_sparse((torch.arange(24).reshape(4, 6) % 5 == 0).to(dtype))
    for options in ({}, {"like": tensor}, {"to": "torch"}):
        assert differences(tensor, decode(encode(tensor), **options)) == []
    record = decode(encode(tensor), to="numpy")
    assert record.layout == str(tensor.layout).removeprefix("torch.")
    assert isinstance(record.values, np.ndarray)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_duplicates_of_a_coo_tensor_are_kept_with_its_gradient_flag(requires_grad):
    tensor = coo([[1, 0, 1]], (3,)).requires_grad_(requires_grad)
    assert differences(tensor, decode(encode(tensor))) == []


def test_indices_out_of_bounds_in_a_file_are_refused():
    expansion = ADAPTER.expand(coo([[0, 1]], (3,)))
    values, _, *rest = expansion.children
    hostile = pytreeckpt.Record(expansion.type, [values, (torch.tensor([[0, 9]]),), *rest])
    with pytest.raises(pytreeckpt.CorruptionError, match=r"torch\.SparseTensor"):
        decode(encode(hostile))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("torch.Tensor", {"data": np.zeros(1), "requires_grad": 1}),
        ("torch.Tensor", {"data": [0.0], "requires_grad": False}),
        ("torch.Tensor", {"data": np.zeros(1, int), "requires_grad": True}),
        ("torch.nn.Buffer", {"data": np.zeros(1), "requires_grad": False, "persistent": None}),
        (
            "torch.PackedTensor",
            {"data": np.zeros(1), "dtype": "bits8", "shape": (1,), "requires_grad": False, "parameter": False},
        ),
        ("torch.Size", {"shape": (1, True)}),
        ("torch.Size", {"shape": [1]}),
        ("torch.dtype", {"name": 5}),
        ("torch.device", {"type": "cpu", "index": "0"}),
    ],
)
def test_fields_that_make_no_object_are_refused_as_such(name, fields):
    with pytest.raises((TypeError, ValueError)) as caught:
        ADAPTER.build(name, fields)
    assert not isinstance(caught.value, pytreeckpt.PytreeckptError)


def test_a_part_of_a_sparse_tensor_can_be_selected():
    data = encode({"s": coo([[0, 1]], (3,))})
    assert decode(data, select="s/.values")["s"].values.tolist() == [1.0, 2.0]


# Refusals.


class Tagged(torch.Tensor):
    pass


def fake_tensor():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.ones(2)


def named_tensor():
    # As in versions that have named axes.
    tensor: Any = torch.ones(2)
    tensor.names = ("rows",)
    return tensor


@pytest.mark.parametrize(
    ("make", "advice"),
    [
        (lambda: torch.ones(2, device="meta"), "like="),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "dequantize"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "unbind"),
        (lambda: torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged), "unbind"),
        (fake_tensor, "FakeTensorMode"),
        (lambda: torch.ones(2).as_subclass(Tagged), "as_subclass"),
        (torch.nn.UninitializedParameter, "run the module"),
        (lambda: torch.ones(2).to_mkldnn(), "to_dense"),
        (lambda: torch._efficientzerotensor((2,)), "without memory"),
        (named_tensor, "rename"),
        (lambda: torch.nn.Parameter(torch.eye(2).to_sparse()), r"\.data"),
        (lambda: torch.nn.Buffer(from_bytes(b"a", torch.bits8)), r"\.data"),
        (lambda: torch.nn.Linear(1, 1), r"state_dict\(\)"),
        (lambda: torch.optim.SGD([torch.ones(1, requires_grad=True)]), r"state_dict\(\)"),
        (torch.Generator, "get_state"),
        (lambda: torch.ones(2).untyped_storage(), "a tensor over it"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_stored_is_refused_with_its_path_and_what_to_do(make, advice):
    with pytest.raises(UnsupportedTypeError, match=rf"a/b: .*{advice}"):
        encode({"a": {"b": make()}})


def test_a_tensor_inside_a_transformation_is_refused():
    def save(tensor):
        with pytest.raises(UnsupportedTypeError, match="outside of the transformation"):
            encode(tensor)
        return tensor.sum()

    torch.vmap(save)(torch.ones(2, 3))
    torch.vmap(save)(torch.ones(2, 0))
    torch.func.grad(save)(torch.ones(2))


@pytest.mark.parametrize("template", [fake_tensor, lambda: torch.ones(2).as_subclass(Tagged)], ids=["fake", "subclass"])
def test_a_template_that_cannot_be_made_is_refused(template):
    with pytest.raises(UnsupportedTypeError):
        decode(encode(torch.ones(2)), like=template())


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("torch.dtype", ("no_such_dtype",)),
        ("torch.dtype", ("save",)),
        ("torch.layout", ("dtype",)),
        ("torch.device", ("no-such-device", None)),
        ("torch.PackedTensor", (np.zeros(1, np.uint8), "int99", (1,), False, False)),
    ],
)
def test_a_name_that_this_torch_lacks_is_told_apart_from_damage(name, fields):
    known = next(e for e in map(ADAPTER.expand, KNOWN) if e.type.name == name)
    with pytest.raises(UnsupportedTypeError, match=r"to=\"numpy\""):
        ADAPTER.build(name, dict(zip(known.type.fields, fields, strict=True)))


KNOWN = [torch.float32, torch.strided, torch.device("cpu"), from_bytes(b"a", torch.bits8)]


@pytest.mark.parametrize("torch_mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_restoring_works_in_every_gradient_mode(torch_mode):
    parameter = torch.nn.Parameter(torch.ones(2))
    data = encode([parameter, torch.ones(2)])
    with torch_mode():
        restored = decode(data)
        assert encode(restored) == data
    assert restored[0].requires_grad


def test_a_default_device_or_dtype_does_not_touch_what_is_restored():
    data = encode(torch.ones(2))
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert differences(torch.ones(2, dtype=torch.float32, device="cpu"), decode(data)) == []
    finally:
        torch.set_default_dtype(torch.float32)


# Accelerators.


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.complex64], ids=str)
def test_cuda_tensors_are_staged_run_by_run_and_restored_to_the_template(dtype):
    base = torch.arange(3_000_000, device="cuda").reshape(1000, 3000).to(dtype)
    tree = {"dense": base, "transposed": base.t(), "gaps": base[:, ::2], "lazy": base.conj()}
    torch.cuda.synchronize()
    before = torch.cuda.max_memory_allocated()
    data = encode(tree)
    assert torch.cuda.max_memory_allocated() - before < base.nbytes / 2
    restored = decode(data)
    for name, tensor in tree.items():
        assert restored[name].device.type == "cpu"
        assert bits(restored[name]) == bits(tensor.cpu())
    placed = decode(data, like=tree)
    assert all(placed[name].device == tensor.device for name, tensor in tree.items())


# Filling in place.


def blank_module():
    module = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.BatchNorm1d(30))
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.zero_()
    return module


def test_the_tensors_of_a_template_are_filled_where_they_are():
    saved = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.BatchNorm1d(30))
    module = blank_module()
    parameters = list(module.parameters())
    back = decode(encode(saved.state_dict()), like=module.state_dict())
    assert all(torch.equal(tensor, saved.state_dict()[name]) for name, tensor in module.state_dict().items())
    assert all(new is old for new, old in zip(module.parameters(), parameters, strict=True))
    assert all(back[name].data_ptr() == tensor.data_ptr() for name, tensor in module.state_dict().items())


def test_a_filled_parameter_is_the_same_object_and_autograd_knows_that_it_changed():
    parameter = torch.nn.Parameter(torch.zeros(1000))
    result = (parameter**2).sum()
    (back,) = decode(encode([torch.arange(1000.0)]), like=[parameter])
    assert back is parameter
    assert torch.equal(parameter.detach(), torch.arange(1000.0))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.complex64, torch.bool, torch.int64])
def test_tensors_of_every_kind_and_memory_order_are_filled(dtype):
    source = torch.randint(0, 2, (4, 6, 5, 7)).to(dtype)
    for target in (
        torch.zeros(4, 6, 5, 7, dtype=dtype),
        torch.zeros(4, 6, 5, 7, dtype=dtype).to(memory_format=torch.channels_last),
        torch.zeros(7, 5, 6, 4, dtype=dtype).permute(3, 2, 1, 0),
        torch.zeros(4, 6, 5, 14, dtype=dtype)[..., ::2],
    ):
        strides = target.stride()
        (back,) = decode(encode([source]), like=[target])
        assert back is target
        assert back.stride() == strides
        assert torch.equal(
            back.view(torch.uint8) if dtype.itemsize == 1 else back,
            source.view(torch.uint8) if dtype.itemsize == 1 else source,
        )


def test_tensors_that_cannot_be_filled_are_made_anew():
    values = torch.arange(12.0).reshape(3, 4)
    for target in (torch.zeros(1).expand(3, 4), torch.empty(3, 4, device="meta")):
        (back,) = decode(encode([values]), like=[target])
        assert back is not target
        assert torch.equal(back, values)
    with torch.inference_mode():
        target = torch.zeros(3, 4)
    (back,) = decode(encode([values]), like=[target])
    assert back is target
    assert torch.equal(back, values)


def test_tied_weights_stay_tied_when_they_are_filled():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(50, 20)
            self.head = torch.nn.Linear(20, 50, bias=False)
            self.head.weight = self.embed.weight

    saved, module = Tied(), Tied()
    weight = module.head.weight
    # state_dict gives a tensor of its own for each name, over the same memory.
    back = decode(encode(saved.state_dict()), like=module.state_dict())
    assert module.head.weight is module.embed.weight is weight
    assert torch.equal(weight, saved.embed.weight)
    assert back["head.weight"].data_ptr() == back["embed.weight"].data_ptr() == weight.data_ptr()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensors_on_a_device_are_filled_there():
    values = torch.arange(1000.0)
    target = torch.zeros(1000, device="cuda")
    address = target.data_ptr()
    (back,) = decode(encode([values]), like=[target])
    assert back is target
    assert back.data_ptr() == address
    assert torch.equal(back.cpu(), values)
