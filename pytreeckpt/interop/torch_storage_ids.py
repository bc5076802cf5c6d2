"""The persistent ids of torch: what a pickle says of a storage that is beside it.

Source: `torch/serialization.py` (`persistent_id` in `_save` and `_legacy_save`).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from pytreeckpt.errors import CorruptionError
from pytreeckpt.interop.pickle_values import Global
from pytreeckpt.interop.torch_storages import STORAGE_DTYPES

_STORAGE_MODULES: Final = frozenset(["torch", "torch.storage", "torch.cuda", "torch.sparse"])


def _storage_dtype(value: object) -> str | None:
    """The dtype of a class of storages, or None for anything else."""
    if type(value) is not Global or value.module not in _STORAGE_MODULES:
        return None
    return STORAGE_DTYPES.get(value.name)


class StorageId(NamedTuple):
    """A persistent id: the dtype of the storage, its key, and how many items it has."""

    dtype: str
    key: str
    n_items: int
    view: object = None


def storage_id(id_: object, *, with_view: bool) -> StorageId:
    """`("storage", class, key, location, count)`, and in old files the view that it is of that storage, or None."""
    if type(id_) is not tuple or len(id_) != (6 if with_view else 5):
        raise CorruptionError(_NO_STORAGE, rule="torch")
    kind, cls, key, location, count, *view = id_
    if (
        kind not in ("storage", b"storage")
        or not isinstance(key, str | int)
        or not isinstance(location, str | bytes)
        or type(count) is not int
        or not 0 <= count < 1 << 62
    ):
        raise CorruptionError(_NO_STORAGE, rule="torch")
    dtype = _storage_dtype(cls)
    if dtype is None:
        name = cls.full_name if type(cls) is Global else type(cls).__name__
        raise CorruptionError(f"{name} is no class of storages", rule="torch")
    return StorageId(dtype, str(key), count, view[0] if view else None)


_NO_STORAGE: Final = "a persistent id is not that of a storage of torch"
