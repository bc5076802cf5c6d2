"""Strided tensors on their way into a checkpoint: what is stored, in which order, and how it gets to the host.

A CPU tensor is read from its own memory. One on a device is copied to the host a run at a time, so that no second copy
of it is needed as a whole; so are tensors with a lazy conjugation or negation, which is worked out for each run.

A save in the background copies tensors on devices as a whole, before the program goes on: into pinned memory, which
torch keeps for the next time, and on a stream of its own, so that the copies of all tensors are on their way at once.
That stream first waits for what the program's stream has been given until then.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch

from pytreeckpt import ArraySource, PendingSnapshot, UnsupportedTypeError, runs, source_of
from pytreeckpt_torch.dtypes import AnyArray, AnyDType, as_numpy, to_carrier


def tensor_source(tensor: torch.Tensor, dtype: AnyDType, identity: Hashable) -> ArraySource:
    """The items of a strided tensor, as numpy's `dtype`. A tensor that is dense in some order of its axes keeps it."""
    tensor = tensor.detach()
    shape = tuple(tensor.shape)
    # Most are: it takes no look at their strides to see it.
    in_order = tensor.is_contiguous() and 1 not in shape
    axes = None if in_order else memory_order(shape, tensor.stride())
    stored = tensor if axes is None else tensor.permute(axes)
    if tensor.is_cpu and not is_lazy(tensor):
        # Where `axes` is None, source_of finds no order either.
        source = source_of(as_numpy(stored, dtype), identity=identity)
        return source if axes is None else replace(source, shape=shape, axes=axes)
    _wait_for(tensor.device)
    source = ArraySource(dtype, shape, (StagedRuns(stored, dtype),), axes=axes, identity=identity)
    if tensor.is_cpu:
        return source
    return replace(source, snapshot=lambda: begin_snapshot(source, stored))


def begin_snapshot(source: ArraySource, stored: torch.Tensor) -> PendingSnapshot:
    """Begin to copy a tensor of a device to the host, as it is once all is done that the program's stream has been
    given.
    """
    device = stored.device
    module: Any = torch.get_device_module(device)
    # Other memory cannot be pinned for it, and a device that has no streams does not copy beside the program.
    accelerator = torch.accelerator.current_accelerator()
    pinned = accelerator is not None and accelerator.type == device.type
    if not hasattr(module, "Stream"):
        host, conjugated = resolved_bits(stored)
        staged = StagedRuns(host.to("cpu", copy=True), source.dtype, conjugated=conjugated)
        return PendingSnapshot(replace(source, boxes=(staged,), immutable=True), _nothing)
    with module.device(device):
        side = _side_stream(module, device)
        side.wait_stream(module.current_stream())
        with module.stream(side):
            bits, conjugated = resolved_bits(stored)
            host = torch.empty(bits.shape, dtype=bits.dtype, device="cpu", pin_memory=pinned)
            host.copy_(bits, non_blocking=True)
        # Should nobody wait, because of an interrupt: until it is copied, its memory goes to no other tensor.
        bits.record_stream(side)
    staged = StagedRuns(host, source.dtype, conjugated=conjugated)
    return PendingSnapshot(replace(source, boxes=(staged,), immutable=True), side.synchronize)


def _nothing() -> None:
    """It is complete already."""


@cache
def _side_stream(module: Any, _device: torch.device) -> Any:
    return module.Stream()


def memory_order(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...] | None:
    """The axes from slowest to fastest of a tensor that is dense in another order than that of its axes; else None.

    An axis of extent 1 stands where a dense tensor would give it the same stride, if there is such a place.
    """
    if 0 in shape:
        return None
    order = sorted(range(len(shape)), key=lambda axis: (-strides[axis], shape[axis] == 1))
    expected = 1
    for axis in reversed(order):
        if shape[axis] != 1 and strides[axis] != expected:
            return None
        expected *= shape[axis]
    return None if order == list(range(len(shape))) else tuple(order)


def lazy_bits(stored: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """The memory of a tensor as a dtype that every operation knows, or the tensor itself, if it is lazily negated; and
    whether its items are still to be conjugated, which in numpy spares torch a tensor of complex32, of which it warns.
    """
    conjugated = stored.is_conj()
    plain = stored.conj() if conjugated else stored
    return plain if plain.is_neg() else to_carrier(plain), conjugated


def resolved_bits(stored: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """As `lazy_bits`, with the negation done, where the tensor is."""
    bits, conjugated = lazy_bits(stored)
    return to_carrier(bits.resolve_neg()) if bits.is_neg() else bits, conjugated


class StagedRuns:
    """Reads runs of items of a tensor, conjugated if that is asked for, by copying only them to the host: an
    `ArraySource` box.
    """

    def __init__(self, stored: torch.Tensor, dtype: AnyDType, *, conjugated: bool = False) -> None:
        bits, lazily = lazy_bits(stored)
        # One run of a contiguous tensor is one piece.
        self._items = bits.view(-1) if bits.is_contiguous() else bits
        self._dtype = dtype
        self._conjugated = lazily != conjugated

    def __call__(self, start: int, stop: int) -> AnyArray:
        """Items `start` to `stop` in C order."""
        pieces = [self._copied(self._items[run.box.slices]) for run in runs(tuple(self._items.shape), start, stop)]
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.empty(0, self._dtype)

    def _copied(self, part: torch.Tensor) -> AnyArray:
        items = as_numpy(part.resolve_neg().to("cpu"), self._dtype).reshape(-1)
        return np.conjugate(items) if self._conjugated else items


def view_identity(tensor: torch.Tensor) -> Hashable:
    """Equal for tensors that show exactly the same memory in the same way; for empty ones, for the same object.

    Raises `UnsupportedTypeError` for a tensor without memory of its own.
    """
    try:
        address = tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        address = None
    if address is None or (address == 0 and tensor.numel()):
        raise UnsupportedTypeError(
            "a tensor without memory of its own (inside torch.func or vmap, or on a backend without storages) cannot "
            "be stored; save outside of the transformation, or store tensor.detach().cpu()"
        )
    if tensor.numel() == 0:
        return ("torch", id(tensor))
    place = (tensor.device, address, tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
    return ("torch", *place, tensor.dtype, tensor.is_conj(), tensor.is_neg())


def is_lazy(tensor: torch.Tensor) -> bool:
    """Whether its items are still to be conjugated or negated."""
    return tensor.is_conj() or tensor.is_neg()


def _wait_for(device: torch.device) -> None:
    # Worker threads copy on streams of their own, which do not wait for what the caller's stream still computes.
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is not None and accelerator.type == device.type:
        torch.accelerator.synchronize(device)
