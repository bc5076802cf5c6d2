"""The persistent ids of torch: what a pickle says of a storage that is beside it.

Source: `torch/serialization.py` (`persistent_id` in `_save` and `_legacy_save`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pytreeckpt.errors import CorruptionError
from pytreeckpt.interop.pickle_values import Global
from pytreeckpt.interop.torch_storages import STORAGE_DTYPES

_STORAGE_MODULES: Final = ("torch", "torch.storage", "torch.cuda", "torch.sparse")


def _storage_dtype(value: object) -> str | None:
    """The dtype of a class of storages, or None for anything else."""
    if type(value) is not Global or value.module not in _STORAGE_MODULES:
        return None
    return STORAGE_DTYPES.get(value.name)


@dataclass(frozen=True, slots=True)
class StorageId:
    """A persistent id: the dtype of the storage, its key, and how many items it has."""

    dtype: str
    key: str
    count: int
    view: object = None


def storage_id(id_: object, *, with_view: bool) -> StorageId:
    """`("storage", class, key, location, count)`, and in old files the view that it is of that storage, or None."""
    match id_:
        case ("storage" | b"storage", cls, str() | int() as key, str() | bytes(), int() as count, *view) if (
            type(count) is int and 0 <= count < 1 << 62 and len(view) == with_view
        ):
            dtype = _storage_dtype(cls)
            if dtype is not None:
                return StorageId(dtype, str(key), count, view[0] if view else None)
            name = cls.full_name if type(cls) is Global else type(cls).__name__
            raise CorruptionError(f"{name} is no class of storages", rule="torch")
    raise CorruptionError("a persistent id is not that of a storage of torch", rule="torch")
