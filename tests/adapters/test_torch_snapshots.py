"""Tensors that are saved in the background: what the program does to them afterwards does not reach the file."""

import contextlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pytreeckpt import ArraySource, decode, encode, save_async
from pytreeckpt_torch import staging
from pytreeckpt_torch.staging import begin_snapshot, tensor_source
from tests.adapters.torch_tensors import bits, tensors


def overwrite(tensor: torch.Tensor) -> None:
    plain = tensor.detach()
    if plain.layout is torch.sparse_coo:
        parts = [plain._indices(), plain._values()]
    elif plain.layout is torch.sparse_csr:
        parts = [plain.crow_indices(), plain.col_indices(), plain.values()]
    else:
        parts = [plain]
    for part in parts:
        if part.numel():
            part.untyped_storage().fill_(0xA5)


@given(st.lists(tensors(), max_size=4))
def test_tensors_of_every_dtype_that_change_right_afterwards_are_saved_as_they_were(tmp_path_factory, tree):
    path = tmp_path_factory.getbasetemp() / "tensors.ptck"
    expected = encode(tree)
    handle = save_async(tree, path, durability="atomic")
    for tensor in tree:
        overwrite(tensor)
    handle.result()
    assert path.read_bytes() == expected


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
def test_large_lazy_sparse_tied_and_strided_tensors_are_saved_as_they_were(tmp_path):
    base = torch.randn(300, 400)
    values = torch.randn(20_000, dtype=torch.complex64)
    tree = {
        "tied": [base, base, base[:]],
        "transposed": torch.randn(200, 300).t(),
        "gaps": torch.randn(300, 400)[:, ::3],
        "conjugated": torch.randn(200, 100, dtype=torch.complex64).conj(),
        "negated": torch.randn(200, 100, dtype=torch.complex64).conj().imag,
        "sparse": torch.sparse_coo_tensor(torch.arange(20_000)[None], values, check_invariants=True),
        "rows": torch.eye(200).to_sparse_csr(),
        "half": torch.randn(50_000).to(torch.bfloat16),
        "parameter": torch.nn.Parameter(torch.randn(300, 300)),
        "shared": torch.randn(40_000).share_memory_(),
        "computed": torch.ones(20_000, requires_grad=True) * 3,
    }
    expected = encode(tree)
    handle = save_async(tree, tmp_path / "x.ptck", durability="atomic")
    for value in tree.values():
        for tensor in value if isinstance(value, list) else [value]:
            overwrite(tensor)
    handle.result()
    assert (tmp_path / "x.ptck").read_bytes() == expected


def test_a_training_may_step_at_once(tmp_path):
    model = torch.nn.Linear(300, 300)
    momenta = [torch.zeros_like(parameter) for parameter in model.parameters()]

    def step():
        # What optimizers do, which take seconds to be imported.
        model(torch.ones(4, 300)).sum().backward()
        with torch.no_grad():
            for parameter, momentum in zip(model.parameters(), momenta, strict=True):
                momentum.mul_(0.9).add_(parameter.grad)
                parameter.sub_(momentum, alpha=0.1)

    def state():
        return {"model": model.state_dict(), "momenta": momenta}

    step()
    expected = encode(state())
    handle = save_async(state(), tmp_path / "x.ptck", durability="atomic")
    step()
    handle.result()
    assert (tmp_path / "x.ptck").read_bytes() == expected
    assert encode(state()) != expected


# Streams, without a device: what is asked of them, in which order.


class Streams:
    """Stands in for `torch.cuda`."""

    def __init__(self):
        self.events = []
        log = self.events.append

        class Stream:
            def wait_stream(self, other):
                log(f"wait for {other}")

            def synchronize(self):
                log("synchronize")

        self.Stream = Stream

    def current_stream(self):
        return "the program"

    @contextlib.contextmanager
    def device(self, device):
        self.events.append(f"on {device}")
        yield

    @contextlib.contextmanager
    def stream(self, _stream):
        self.events.append("side stream")
        yield
        self.events.append("program's stream")


class Watched(torch.Tensor):
    """Tells what is done to it."""

    events: list[str]

    def record_stream(self, _stream):
        # torch's own wants a stream of its own.
        self.events.append("record")

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.Tensor.copy_:
            cls.events.append(f"copy, non_blocking={(kwargs or {})['non_blocking']}")
        return super().__torch_function__(function, types, args, kwargs or {})


def plain_source(tensor: torch.Tensor, dtype: object) -> ArraySource:
    return tensor_source(tensor, np.dtype(dtype), None)


def test_a_copy_is_made_on_a_side_stream_that_waits_for_the_program(monkeypatch):
    streams = Streams()
    monkeypatch.setattr(Watched, "events", streams.events, raising=False)
    monkeypatch.setattr(torch, "get_device_module", lambda _device: streams)
    tensor = torch.arange(6.0).reshape(2, 3)
    source = plain_source(tensor, np.float32)
    pending = begin_snapshot(source, tensor.as_subclass(Watched))
    assert streams.events == [
        "on cpu",
        "wait for the program",
        "side stream",
        "copy, non_blocking=True",
        "program's stream",
        "record",
    ]
    pending.wait()
    assert streams.events[6:] == ["synchronize"]
    tensor.zero_()
    assert pending.source.boxes[0](1, 5).tolist() == [1, 2, 3, 4]
    assert pending.source.immutable
    second = begin_snapshot(source, tensor.as_subclass(Watched))
    assert second.wait.__self__ is pending.wait.__self__
    staging._side_stream.cache_clear()


@given(tensors([torch.float32, torch.bfloat16, torch.complex64, torch.complex32, torch.int8]))
def test_a_device_without_streams_is_copied_at_once(tensor):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "get_device_module", lambda _device: object())
        source = plain_source(tensor, staging_dtype(tensor))
        stored = tensor.detach() if source.axes is None else tensor.detach().permute(source.axes)
        expected = bits(stored)
        pending = begin_snapshot(source, stored)
    if tensor.numel():
        tensor.untyped_storage().fill_(0xA5)
    pending.wait()
    assert pending.source.boxes[0](0, tensor.numel()).tobytes() == expected
    assert (pending.source.shape, pending.source.axes) == (source.shape, source.axes)


def staging_dtype(tensor):
    from pytreeckpt_torch.dtypes import NUMPY_OF

    return NUMPY_OF[tensor.dtype]


# With a device.

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.complex64], ids=str)
def test_cuda_tensors_that_change_or_are_freed_right_afterwards_are_saved_as_they_were(tmp_path, dtype):
    base = torch.arange(3_000_000, device="cuda").reshape(1000, 3000).to(dtype)
    tree = {"dense": base, "transposed": base.t(), "gaps": base[:, ::2], "lazy": base.conj(), "tied": base}
    for _ in range(3):
        expected = encode(tree)
        handle = save_async(tree, tmp_path / "x.ptck", durability="atomic")
        base.copy_(base.flip(0))
        handle.result()
        assert (tmp_path / "x.ptck").read_bytes() == expected
    handle = save_async({"own": base.clone()}, tmp_path / "x.ptck")
    others = [torch.zeros_like(base) for _ in range(4)]
    handle.result()
    assert bits(decode((tmp_path / "x.ptck").read_bytes())["own"]) == bits(base.cpu())
    assert len(others) == 4


@pytest.mark.gpu
@needs_cuda
def test_what_the_program_still_computes_on_its_own_stream_is_waited_for(tmp_path):
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        tensor = torch.ones(4000, 4000, device="cuda")
        for _ in range(50):
            tensor = tensor @ torch.full((4000, 4000), 1 / 4000, device="cuda")
        tensor = tensor.round()
        handle = save_async(tensor, tmp_path / "x.ptck")
        tensor.zero_()
    handle.result()
    assert (decode((tmp_path / "x.ptck").read_bytes()) == 1).all()
