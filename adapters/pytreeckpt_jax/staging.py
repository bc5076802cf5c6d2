"""JAX arrays on their way into a checkpoint: their shards as the cells of a grid, each read on its own.

A sharded array is never put together. Shards on the CPU are read from their own memory; one on another device is
copied to the host when its first run is asked for, and let go after its last.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise, product
from threading import Lock

import jax
import jax.core
import numpy as np

from pytreeckpt import ArraySource, UnsupportedTypeError, source_of

AnyArray = np.ndarray[tuple[int, ...], np.dtype[np.generic]]
Spans = tuple[tuple[int, int], ...]
"""Where a shard begins and ends on each axis."""


def check_storable(array: jax.Array) -> None:
    """Raise `UnsupportedTypeError` for an array whose values this process cannot have."""
    if isinstance(array, jax.core.Tracer):
        raise UnsupportedTypeError("a JAX tracer has no values; save outside of jit, grad, vmap and scan")
    if array.is_deleted():
        raise UnsupportedTypeError(
            "the JAX array was deleted or donated to a computation; save before, or save its result"
        )
    if not array.is_fully_addressable:
        raise UnsupportedTypeError(
            "the JAX array is spread over several processes; gather it with "
            "jax.experimental.multihost_utils.process_allgather(array, tiled=True), and save in one process"
        )


def array_source(array: jax.Array, identity: Hashable) -> ArraySource:
    """The items of an array that `check_storable` has passed, shard by shard."""
    shape = tuple(array.shape)
    dtype = np.dtype(array.dtype)
    # Replicas show the same part: one of them is enough.
    shards = {_spans(shard.index, shape): shard.data for shard in array.addressable_shards}
    cuts = [sorted({spans[axis][0] for spans in shards} - {0}) for axis in range(len(shape))]
    cells = list(product(*(list(pairwise([0, *axis, extent])) for axis, extent in zip(cuts, shape, strict=True))))
    if len(shards) == 1 or sorted(shards) != cells:
        # Not a grid: no sharding of JAX is known to give this.
        whole = next(iter(shards.values())) if len(shards) == 1 else array
        return ArraySource(dtype, shape, (_run_reader(whole),), identity=identity)
    return ArraySource(dtype, shape, [_run_reader(shards[cell]) for cell in cells], cuts=cuts, identity=identity)


def _spans(index: Sequence[slice], shape: tuple[int, ...]) -> Spans:
    return tuple(part.indices(extent)[:2] for part, extent in zip(index, shape, strict=True))


class HostCopy:
    """Reads runs of an array that is not in the host's memory: an `ArraySource` box.

    All of it is copied at once, because JAX would compile each slice; the copy is kept while its runs are being read.
    """

    def __init__(self, array: jax.Array) -> None:
        self._array = array
        self._lock = Lock()
        self._host: AnyArray | None = None
        self._unread = 0

    def __call__(self, start: int, stop: int) -> AnyArray:
        """Items `start` to `stop` in C order."""
        with self._lock:
            if self._host is None:
                self._host = _to_host(self._array)
                self._unread = self._host.size
            host = self._host
            self._unread -= stop - start
            if self._unread <= 0:
                self._host = None
        return host[start:stop]


def _run_reader(array: jax.Array) -> Callable[[int, int], AnyArray]:
    if all(device.platform == "cpu" for device in array.devices()):
        return source_of(np.ascontiguousarray(np.asarray(array))).boxes[0]
    return HostCopy(array)


def _to_host(array: jax.Array) -> AnyArray:
    # np.asarray of a device array keeps its copy for as long as the array lives; one of a CPU array makes none.
    on_cpu = jax.device_put(array, jax.local_devices(backend="cpu")[0])
    return np.ascontiguousarray(np.asarray(on_cpu)).reshape(-1)
