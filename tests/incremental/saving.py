"""Incremental saves and what they leave, on any storage."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from pytreeckpt import PytreeckptError, current_limits, planning
from pytreeckpt.errors import CheckpointNotFoundError
from pytreeckpt.expand import make_expand
from pytreeckpt.flatten import flatten
from pytreeckpt.incremental import IncrementalWritten, Known, write_incremental
from pytreeckpt.incremental.known import data_path
from pytreeckpt.index import DATA_FOLDER, DataFile
from pytreeckpt.opening import open_own
from pytreeckpt.planning import SavePlan, plan_save
from pytreeckpt.reading import read_footer
from pytreeckpt.storage import Storage
from pytreeckpt.wire import PREAMBLE_NBYTES, align
from tests.exact import difference
from tests.strategies import TYPES

NOTHING = Known()


def plan_of(tree: object) -> SavePlan:
    return plan_save(flatten(None, tree, expand=make_expand(), limits=current_limits()), current_limits())


def save(storage: Storage, path: str, tree: object, known: Known = NOTHING, **options) -> IncrementalWritten:
    """An incremental save, in this thread, with the usual options."""
    chosen = {"compression": "auto", "if_exists": "replace", "durability": "durable", "threads": 1, **options}
    return write_incremental(storage, path, plan_of(tree), known=known, **chosen)


def found(storage: Storage, path: str, tree: object) -> str:
    """What reading the path gives: "exact", "nothing", or what is wrong."""
    try:
        with open_own(storage, path) as checkpoint:
            damage = list(checkpoint.damage())
            wrong = difference(tree, checkpoint.restore(types=TYPES))
    except CheckpointNotFoundError:
        return "nothing"
    except PytreeckptError as error:
        return f"damaged: {error}"
    return f"damaged: {damage[0]}" if damage else "exact" if wrong is None else f"WRONG DATA: {wrong}"


def held_nbytes(storage: Storage, path: str, file: DataFile) -> int:
    """The bytes of the chunks of a data file, with their padding."""
    footer = read_footer(storage.open(data_path(path, file.name)))
    return footer.index_offset - PREAMBLE_NBYTES


def needed_nbytes(storage: Storage, path: str) -> int:
    """The bytes of the chunks that a checkpoint needs, with their padding, each once."""
    with open_own(storage, path) as checkpoint:
        chunks = checkpoint.index.chunks
    ranges = {*zip(chunks.file.tolist(), chunks.offset.tolist(), chunks.stored.tolist(), strict=True)}
    return sum(align(stored) for _, _, stored in ranges)


def data_names(storage: Storage, folder: str) -> list[str]:
    return storage.names(f"{folder}/{DATA_FOLDER}" if folder else DATA_FOLDER)


@contextmanager
def chunks_of_nbytes(nbytes: int) -> Iterator[None]:
    """Save in chunks of so many bytes, so that small trees have many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "CHUNK_NBYTES", nbytes)
        yield


def noise(nbytes: int, seed: int, dtype: str = "u1") -> np.ndarray:
    """Bytes that cannot be compressed, and are those of no other seed."""
    return np.frombuffer(np.random.default_rng(seed).bytes(nbytes), dtype).copy()
