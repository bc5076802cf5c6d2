"""JAX arrays on their way into a checkpoint: their shards as the cells of a grid, each read on its own.

A sharded array is never put together. Shards on the CPU are read from their own memory; one on another device is
copied to the host when its first run is asked for, and let go after its last.

A save in the background copies nothing of an array on the CPU. JAX arrays do not change; deleting one gives up its name
for the memory, which our view keeps; and XLA does not let a computation that an array is donated to have memory that is
viewed: it gives it other memory. (Memory of a numpy array that JAX was lent and that is written to nevertheless
changes under JAX as it does under us.) An array on another device is donated without regard to us, so all of its shards
are copied to the host before the program goes on.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from itertools import pairwise, product
from threading import Lock

import jax
import jax.core
import numpy as np

from pytreeckpt import ArraySource, PendingSnapshot, UnsupportedTypeError, source_of

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
    if len(array.devices()) == 1:
        if is_on_host(array):
            return source_of(_on_host(array), identity=identity, immutable=True)
        return _source([array], shape, None, identity)
    # Replicas show the same part: one of them is enough.
    shards = {_spans(shard.index, shape): shard.data for shard in array.addressable_shards}
    cuts = [sorted({spans[axis][0] for spans in shards} - {0}) for axis in range(len(shape))]
    cells = list(product(*(list(pairwise([0, *axis, extent])) for axis, extent in zip(cuts, shape, strict=True))))
    if len(shards) == 1 or sorted(shards) != cells:
        # Not a grid: no sharding of JAX is known to give this.
        return _source([next(iter(shards.values())) if len(shards) == 1 else array], shape, None, identity)
    return _source([shards[cell] for cell in cells], shape, cuts, identity)


def _source(
    parts: Sequence[jax.Array], shape: tuple[int, ...], cuts: list[list[int]] | None, identity: Hashable
) -> ArraySource:
    on_host = [is_on_host(part) for part in parts]
    boxes = [
        source_of(_on_host(part)).boxes[0] if there else HostCopy(part)
        for part, there in zip(parts, on_host, strict=True)
    ]
    dtype = np.dtype(parts[0].dtype)
    source = ArraySource(dtype, shape, boxes, cuts=cuts, identity=identity, immutable=all(on_host))
    if source.immutable:
        return source
    return replace(source, snapshot=lambda: begin_snapshot(source, parts))


def begin_snapshot(source: ArraySource, parts: Sequence[jax.Array]) -> PendingSnapshot:
    """Begin to copy the parts that are not on the host, all of them before any is waited for."""
    coming = {number: ComingCopy(part) for number, part in enumerate(parts) if not is_on_host(part)}
    boxes = [coming.get(number, read) for number, read in enumerate(source.boxes)]

    def wait() -> None:
        for copy in coming.values():
            copy.wait()

    return PendingSnapshot(replace(source, boxes=boxes, immutable=True), wait)


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


class ComingCopy:
    """An array on its way to the host, and its runs once it is there: an `ArraySource` box."""

    def __init__(self, array: jax.Array) -> None:
        # Another name for the same memory: an array keeps what was copied of it to the host for as long as it lives.
        shards = [shard.data for shard in array.addressable_shards]
        self._array: jax.Array | None = jax.make_array_from_single_device_arrays(array.shape, array.sharding, shards)
        self._array.copy_to_host_async()
        self._host: AnyArray = np.empty(0, array.dtype)

    def wait(self) -> None:
        """Have all of it on the host, and let go of the device's memory."""
        if self._array is not None:
            self._host = _on_host(self._array).reshape(-1)
            self._array = None

    def __call__(self, start: int, stop: int) -> AnyArray:
        """Items `start` to `stop` in C order."""
        return self._host[start:stop]


def is_on_host(array: jax.Array) -> bool:
    """Whether all of it is in memory that numpy can look at."""
    return all(device.platform == "cpu" for device in array.devices())


def _on_host(array: jax.Array) -> AnyArray:
    return np.asarray(array, order="C")


def _to_host(array: jax.Array) -> AnyArray:
    # np.asarray of a device array keeps its copy for as long as the array lives; one of a CPU array makes none.
    return _on_host(jax.device_put(array, jax.local_devices(backend="cpu")[0])).reshape(-1)
