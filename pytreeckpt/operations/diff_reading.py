"""Two arrays of one shape, item beside item, in blocks of bounded size, whatever the layout of either in its file."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Final, NamedTuple

import xxhash

from pytreeckpt.arrays import AnyArray, run_reader
from pytreeckpt.checkpoint import Checkpoint
from pytreeckpt.errors import CorruptionError
from pytreeckpt.geometry import runs
from pytreeckpt.operations.diff_contents import memory_order
from pytreeckpt.reading import flat_bytes

# Arrays up to this size are read many at a time, because many small ones share a chunk.
_SMALL_NBYTES: Final = 1 << 20
_BATCH_NBYTES: Final = 32 << 20
# Of an array that is not stored in C order and one piece, so much is read at a time: each time, all chunks that hold
# a part of it are read.
_BLOCK_NBYTES: Final = 64 << 20
# It is compared in parts, because several are in the making at a time.
_PART_NBYTES: Final = 4 << 20


class Numbers(NamedTuple):
    """The numbers of an array of each checkpoint."""

    a: int
    b: int


Block = tuple[AnyArray, AnyArray]
"""Some items of each array, of rank 1 and as many of both, from the same places."""


def pairs_of_blocks(a: Checkpoint, b: Checkpoint, pairs: Sequence[Numbers]) -> Generator[tuple[int, Iterator[Block]]]:
    """For each of these pairs, of one shape: its place in `pairs`, and its blocks, of which one need not take all.

    Not in the order of `pairs`. Raises `CorruptionError` with the leaf.
    """
    batch: list[int] = []
    nbytes = 0
    for place, pair in enumerate(pairs):
        if not are_small(a, b, pair):
            with closing(_large(a, b, pair)) as blocks:
                yield place, blocks
            continue
        batch.append(place)
        nbytes += _nbytes(a, b, pair)
        if nbytes > _BATCH_NBYTES:
            yield from _small(a, b, pairs, batch)
            batch, nbytes = [], 0
    yield from _small(a, b, pairs, batch)


def are_small(a: Checkpoint, b: Checkpoint, pair: Numbers) -> bool:
    """Whether the arrays are of one block."""
    return _nbytes(a, b, pair) <= _SMALL_NBYTES


def _nbytes(a: Checkpoint, b: Checkpoint, pair: Numbers) -> int:
    return max(a.index.nbytes(pair.a), b.index.nbytes(pair.b))


@contextmanager
def _named(checkpoint: Checkpoint) -> Generator[None]:
    """Of two files, an error says which one is damaged."""
    try:
        yield
    except CorruptionError as error:
        if checkpoint.path is not None:
            error.args = (f"{checkpoint.path}: {error}", *error.args[1:])
        raise


def _small(
    a: Checkpoint, b: Checkpoint, pairs: Sequence[Numbers], batch: Sequence[int]
) -> Iterator[tuple[int, Iterator[Block]]]:
    with _named(a):
        arrays_a = a.read_arrays(sorted({pairs[place].a for place in batch}))
    with _named(b):
        arrays_b = b.read_arrays(sorted({pairs[place].b for place in batch}))
    for place in batch:
        pair = pairs[place]
        yield place, iter([(_flat(arrays_a[pair.a]), _flat(arrays_b[pair.b]))])


def _flat(array: AnyArray) -> AnyArray:
    """The items in C order, bit by bit."""
    return array.reshape(-1) if array.flags.c_contiguous else run_reader(array)(0, array.size)


def _large(a: Checkpoint, b: Checkpoint, pair: Numbers) -> Generator[Block]:
    entry_a, entry_b = a.index.arrays[pair.a], b.index.arrays[pair.b]
    # In the order in which both are stored, if it is one.
    in_order = entry_a.cuts is None and entry_b.cuts is None and memory_order(entry_a) == memory_order(entry_b)
    read = _stored if in_order else items_of
    with closing(read(a, pair.a)) as items_a, closing(read(b, pair.b)) as items_b:
        yield from _side_by_side(items_a, items_b)


def _side_by_side(items_a: Iterator[AnyArray], items_b: Iterator[AnyArray]) -> Iterator[Block]:
    """Blocks of both, cut where either ends, and none very large."""
    rest_b: AnyArray | None = None
    for block in items_a:
        rest_a = block
        while len(rest_a):
            if rest_b is None or not len(rest_b):
                rest_b = next(items_b)
            most = _PART_NBYTES // max(rest_a.itemsize, rest_b.itemsize)
            number = min(len(rest_a), len(rest_b), max(most, 1))
            yield rest_a[:number], rest_b[:number]
            rest_a, rest_b = rest_a[number:], rest_b[number:]


def _stored(checkpoint: Checkpoint, array: int) -> Generator[AnyArray]:
    """The items of an array of one box, in the order in which they are stored."""
    # A copy, because the memory is used again.
    with _named(checkpoint):
        for _, part in checkpoint.content.reader.scan([array], lambda items: items.reshape(-1).copy()):
            yield part


def items_of(checkpoint: Checkpoint, array: int) -> Generator[AnyArray]:
    """The items of an array in C order, in blocks."""
    entry = checkpoint.index.arrays[array]
    if entry.cuts is None and memory_order(entry) is None and not entry.pooled:
        yield from _stored(checkpoint, array)
        return
    dtype = checkpoint.index.dtypes[entry.dtype]
    size = math.prod(entry.shape)
    step = max(1, _BLOCK_NBYTES // max(dtype.itemsize, 1))
    for start in range(0, size, step):
        for run in runs(entry.shape, start, min(start + step, size)):
            with _named(checkpoint):
                values = checkpoint.read_region(array, run.box.slices)
            yield _flat(values)


def digests_of(checkpoint: Checkpoint, arrays: Sequence[int]) -> dict[int, bytes]:
    """Digests of the items of arrays in C order, without the bytes that no value determines."""
    found: dict[int, bytes] = {}
    small = [array for array in arrays if checkpoint.index.nbytes(array) <= _SMALL_NBYTES]
    for batch in _batches(checkpoint, small):
        with _named(checkpoint):
            arrays_read = checkpoint.read_arrays(batch)
        found |= {array: _digest([_flat(values)]) for array, values in arrays_read.items()}
    for array in arrays:
        if array not in found:
            with closing(items_of(checkpoint, array)) as parts:
                found[array] = _digest(parts)
    return found


def _batches(checkpoint: Checkpoint, arrays: Sequence[int]) -> Iterator[list[int]]:
    batch: list[int] = []
    nbytes = 0
    for array in arrays:
        batch.append(array)
        nbytes += checkpoint.index.nbytes(array)
        if nbytes > _BATCH_NBYTES:
            yield batch
            batch, nbytes = [], 0
    if batch:
        yield batch


def _digest(parts: Iterable[AnyArray]) -> bytes:
    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(flat_bytes(run_reader(part)(0, part.size)))
    return digest.digest()
