"""The data file of a checkpoint as a stream, and the manifest as another.

A data file is an ordinary checkpoint: a dict from sizes of items to an array of such items, each chunk of which is one
that manifests refer to. Its index is not compressed, so that its root determines each of its bytes: whoever makes
a data file of some name makes the same one.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import groupby

import numpy as np

from pytreeckpt.arrays import ArraySource
from pytreeckpt.flatten import flatten
from pytreeckpt.incremental.known import ChunkKey, Place
from pytreeckpt.index import ArrayEntry, ArrayTable, Chunks
from pytreeckpt.limits import Limits
from pytreeckpt.nodes import Nodes
from pytreeckpt.planning import SavePlan
from pytreeckpt.reading import ChunkRow
from pytreeckpt.streaming import EncodedBatch, stream_chunks, stream_end
from pytreeckpt.wire import DATA_FILES, Buffer, Footer, encode_preamble


def stream_data_file(
    keys: Sequence[ChunkKey], encoded: Iterable[EncodedBatch], *, n_batches: int, limits: Limits
) -> Generator[Buffer, None, tuple[Footer, list[ChunkRow]]]:
    """The pieces of a data file of these chunks, ascending by the size of their items. The generator's return value is
    its footer and the row of each chunk.
    """
    yield encode_preamble()
    chunks = yield from stream_chunks(encoded, n_batches=n_batches)
    nodes, table = _data_tree(keys, limits)
    footer = yield from stream_end(nodes, table, chunks, limits=limits, compress_index=False)
    return footer, list(_rows(chunks))


def stream_manifest(
    plan: SavePlan, keys: Sequence[ChunkKey], places: Sequence[Place]
) -> Generator[Buffer, None, Footer]:
    """The pieces of a manifest of chunks that are what `keys` say and lie at `places`, both as they stand in the plan.
    The generator's return value is its footer.
    """
    files = list(dict.fromkeys(place.file for place in places))
    numbers = {file: number for number, file in enumerate(files, 1)}
    columns = np.array([(row.offset, row.stored, row.raw, row.codec) for _, row in places], np.int64)
    offset, stored, raw, codec = columns.T
    chunks = Chunks(
        offset,
        stored,
        raw,
        codec,
        check=b"".join([place.row.check for place in places]),
        digest=b"".join([place.row.digest for place in places]),
        file=np.array([numbers[place.file] for place in places], np.int64),
        identity=b"".join([key.identity for key in keys]),
    )
    yield encode_preamble(DATA_FILES)
    return (yield from stream_end(plan.nodes, plan.table, chunks, limits=plan.limits, files=files))


def _data_tree(keys: Sequence[ChunkKey], limits: Limits) -> tuple[Nodes, ArrayTable]:
    tree: dict[int, ArraySource] = {}
    entries: list[ArrayEntry] = []
    for number, (itemsize, group) in enumerate(groupby(keys, key=lambda key: key.itemsize)):
        sizes = [key.nbytes for key in group]
        shape = (sum(sizes) // itemsize,)
        entries.append(ArrayEntry(number, shape, chunk_counts=(len(sizes),)))
        # Of the array the structure alone is told here: its chunks come from elsewhere.
        tree[itemsize] = ArraySource(np.dtype((np.void, itemsize)), shape, ())
    nodes = flatten(None, tree, expand=lambda _: None, limits=limits).nodes
    return nodes, ArrayTable([("void", itemsize) for itemsize in tree], entries, b"", [])


def _rows(chunks: Chunks) -> Iterator[ChunkRow]:
    columns = (chunks.offset, chunks.stored, chunks.raw, chunks.codec)
    numbers = (column.tolist() for column in columns)
    checks = (chunks.check[at : at + 8] for at in range(0, len(chunks.check), 8))
    digests = (chunks.digest[at : at + 16] for at in range(0, len(chunks.digest), 16))
    return map(ChunkRow, *numbers, checks, digests)
