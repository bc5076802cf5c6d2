"""Strided tensors on their way into a checkpoint: what is stored, in which order, and how it gets to the host.

A CPU tensor is read from its own memory. One on a device is copied to the host a run at a time, so that no second copy
of it is needed as a whole; so are tensors with a lazy conjugation or negation, which is worked out for each run.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

import numpy as np
import torch

from pytreeckpt import ArraySource, UnsupportedTypeError, runs, source_of
from pytreeckpt_torch.dtypes import AnyArray, AnyDType, as_numpy, to_carrier


def tensor_source(tensor: torch.Tensor, dtype: AnyDType, identity: Hashable) -> ArraySource:
    """The items of a strided tensor, as numpy's `dtype`. A tensor that is dense in some order of its axes keeps it."""
    tensor = tensor.detach()
    shape = tuple(tensor.shape)
    axes = memory_order(shape, tensor.stride())
    stored = tensor if axes is None else tensor.permute(axes)
    if tensor.device.type == "cpu" and not is_lazy(tensor):
        # Where `axes` is None, source_of finds no order either.
        return replace(source_of(as_numpy(stored, dtype)), shape=shape, axes=axes, identity=identity)
    _wait_for(tensor.device)
    return ArraySource(dtype, shape, (StagedRuns(stored, dtype),), axes=axes, identity=identity)


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


class StagedRuns:
    """Reads runs of items of a tensor by copying only them to the host: an `ArraySource` box."""

    def __init__(self, stored: torch.Tensor, dtype: AnyDType) -> None:
        # Conjugating in numpy spares torch a tensor of complex32, of which it warns.
        self._conjugated = stored.is_conj()
        plain = stored.conj() if self._conjugated else stored
        bits = plain if plain.is_neg() else to_carrier(plain)
        # One run of a contiguous tensor is one piece.
        self._items = bits.view(-1) if bits.is_contiguous() else bits
        self._dtype = dtype

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
    place = (str(tensor.device), address, tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
    return ("torch", *place, tensor.dtype, tensor.is_conj(), tensor.is_neg())


def is_lazy(tensor: torch.Tensor) -> bool:
    """Whether its items are still to be conjugated or negated."""
    return tensor.is_conj() or tensor.is_neg()


def _wait_for(device: torch.device) -> None:
    # Worker threads copy on streams of their own, which do not wait for what the caller's stream still computes.
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is not None and accelerator.type == device.type:
        torch.accelerator.synchronize(device)
