"""Compressing and decompressing in memory: the codecs without the disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.figures import OURS
from benchmarks.rounds import Job, timed
from benchmarks.states import Tree, leaves

ZIPNN = "ZipNN"


@dataclass(frozen=True, slots=True)
class Codec:
    """`prepare(tree)` gives, untimed and anew for each round, what `compress(data, dtype, threads)` takes; 0 threads
    stand for the default.
    """

    name: str
    distribution: str
    modules: tuple[str, ...]
    notes: str
    prepare: Callable[[Tree], Any]
    compress: Callable[[Any, str, int], Any]
    decompress: Callable[[Any, str, int], Any]


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """The threads of pytreeckpt, which it is told by the environment."""
    before = os.environ.pop("PYTREECKPT_THREADS", None)
    if number:
        os.environ["PYTREECKPT_THREADS"] = str(number)
    try:
        yield
    finally:
        os.environ.pop("PYTREECKPT_THREADS", None)
        if before is not None:
            os.environ["PYTREECKPT_THREADS"] = before


def _encode(tree: Tree, _dtype: str, threads: int) -> bytes:
    import pytreeckpt as ptc

    with _threads(threads):
        return ptc.encode(tree)


def _decode(data: bytes, _dtype: str, threads: int) -> Any:
    import pytreeckpt as ptc

    with _threads(threads):
        return ptc.decode(data)


def _same(tree: Tree) -> Tree:
    return tree


def as_bytes(tree: Tree) -> bytes:
    """All arrays in one piece, which spares ZipNN a header for each."""
    return b"".join(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).tobytes() for leaf in leaves(tree))


def _zipnn(dtype: str, threads: int) -> Any:
    from zipnn import ZipNN

    # It is told the dtype, without which it takes all for bfloat16. Its other defaults (Huffman over byte groups,
    # chunks of 256 KiB) are its best for weights: the methods give the same bytes, smaller chunks larger files.
    return ZipNN(input_format="byte", bytearray_dtype=dtype, threads=threads)


def _zipnn_compress(data: bytes, dtype: str, threads: int) -> Any:
    return _zipnn(dtype, threads).compress(data)


def _zipnn_decompress(data: Any, dtype: str, threads: int) -> Any:
    return _zipnn(dtype, threads).decompress(data)


CODECS = (
    Codec(
        OURS,
        "pytreeckpt",
        ("pytreeckpt",),
        "",
        _same,
        _encode,
        _decode,
    ),
    Codec(
        ZIPNN,
        "zipnn",
        ("zipnn", "torch"),
        "bytes of one dtype, in memory only; no digest; overwrites its input",
        as_bytes,
        _zipnn_compress,
        _zipnn_decompress,
    ),
)

# Operations are named after the threads they ran with.
THREADS: Mapping[str, int] = {"": 0, ", 1 thread": 1}


def jobs(codecs: Sequence[Codec], tree: Tree, dtype: str) -> list[Job]:
    """A job for each codec."""
    return [Job(codec.name, lambda codec=codec: _once(codec, tree, dtype)) for codec in codecs]


def _once(codec: Codec, tree: Tree, dtype: str) -> dict[str, float]:
    values: dict[str, float] = {}
    for suffix, threads in THREADS.items():
        # Anew each time, because ZipNN changes what it is given.
        compress = partial(codec.compress, codec.prepare(tree), dtype, threads)
        values["compress" + suffix], compressed = timed(compress)
        del compress
        values["size"] = len(compressed)
        values["decompress" + suffix], _ = timed(partial(codec.decompress, compressed, dtype, threads))
    return values
