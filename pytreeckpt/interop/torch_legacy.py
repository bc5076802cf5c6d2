"""The old files of `torch.save`: pickles one after the other, and then the storages.

Sources: `torch/serialization.py` (`_legacy_save`, `_legacy_load`), `torch/storage.py` (`_load_from_bytes`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from pytreeckpt.errors import CorruptionError
from pytreeckpt.interop.archives import Window
from pytreeckpt.interop.constructors_numpy import raw_source
from pytreeckpt.interop.constructors_torch import vocabulary
from pytreeckpt.interop.foreign import ForeignTree
from pytreeckpt.interop.pickle_loading import load_from
from pytreeckpt.interop.pickle_values import UNFIT, Instance, Ledger, Vocabulary
from pytreeckpt.interop.torch_storage_ids import storage_id
from pytreeckpt.interop.torch_storages import Storage, dtype_of
from pytreeckpt.reading import RangedSource, read

LEGACY_MAGIC: Final = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL: Final = 1001


@dataclass(frozen=True, slots=True)
class _Root:
    """A storage of an old file: its dtype, how many items it has, and where they are, once that is known."""

    dtype: str
    count: int


class _LegacyStorages:
    """Gives the storages of an old file, whose places are only known when the tree has been read once."""

    def __init__(self, source: RangedSource, starts: Mapping[str, int], name: Hashable) -> None:
        self._name = name
        self._source = source
        self._starts = starts
        self.roots: dict[str, _Root] = {}

    def __call__(self, id_: object) -> object:
        match id_:
            case ("module" | b"module", cls, _, _):
                # A class, with its source code, which is not looked at.
                return cls
        wanted = storage_id(id_, with_view=True)
        itemsize = dtype_of(wanted.dtype).itemsize
        root = _Root(wanted.dtype, wanted.n_items)
        if self.roots.setdefault(wanted.key, root) != root:
            raise CorruptionError(f"the storage {wanted.key} has two dtypes or lengths", rule="torch")
        start, count = 0, wanted.n_items
        match wanted.view:
            case None:
                pass
            case (_, int() as start, int() as count) if start >= 0 and count >= 0 and start + count <= wanted.n_items:
                pass
            case _:
                raise CorruptionError(f"a view of the storage {wanted.key} is not within it", rule="torch")
        base = self._starts.get(wanted.key, 0)
        # Views of one storage share its bytes: where they are is what they are.
        key = (self._name, wanted.key, start * itemsize)
        return Storage(key, self._source, base + start * itemsize, count * itemsize, wanted.dtype)


def read_legacy(source: RangedSource) -> ForeignTree:
    """An old file. Raises errors as `torch_files.read_torch`."""
    tree, metadata, notes = _legacy(source, object(), vocabulary(None).internal, None)
    return ForeignTree("torch legacy", tree, metadata, notes)


def _legacy(
    source: RangedSource,
    name: Hashable,
    internal: Mapping[type, Callable[[Any, Ledger], object]],
    ledger: Ledger | None,
) -> tuple[Any, dict[str, object], tuple[str, ...]]:
    """The value of an old file, what it says of itself, and what there is to say about it. `name` tells its storages
    from those of other files.
    """
    none = vocabulary(None)
    notes: tuple[str, ...]
    magic, _, at = load_from(source, 0, none, ledger=ledger)
    if type(magic) is not int or magic != LEGACY_MAGIC:
        raise CorruptionError("the file does not begin with the magic number of torch", rule="torch")
    protocol, _, at = load_from(source, at, none, ledger=ledger)
    if protocol != _LEGACY_PROTOCOL:
        raise CorruptionError(f"the file is of torch's protocol {protocol!r}, not {_LEGACY_PROTOCOL}", rule="torch")
    system, _, at = load_from(source, at, none, ledger=ledger)
    # Once to see which storages there are and where the tree ends, and once more when their places are known.
    first = _LegacyStorages(_Endless(), {}, name)
    _, _, end = load_from(source, at, replace(vocabulary(first), internal={}), ledger=ledger)
    keys, _, after = load_from(source, end, none, ledger=ledger)
    starts, after = _starts(source, after, keys, first.roots)
    second = replace(vocabulary(_LegacyStorages(source, starts, name)), internal=internal)
    tree, notes, _ = load_from(source, at, second, ledger=ledger)
    if after != source.nbytes:
        notes = (f"{source.nbytes - after} more bytes come after the storages and were not read", *notes)
    return tree, {"protocol_version": protocol, "sys_info": system}, notes


@dataclass(frozen=True, slots=True)
class _Endless:
    """A source of which nothing is read: where storages are before their places are known."""

    nbytes: int = 1 << 63

    def read_into(self, offset: int, buffers: object) -> None:
        """Never asked for."""
        raise CorruptionError(f"byte {offset} of a storage without a place: {buffers}", rule="torch")


def plain_vocabulary() -> Vocabulary:
    """What a plain pickle may name: tensors too, whose storages are each an old file of torch within the pickle."""
    return _PLAIN


def _load_from_bytes(instance: Instance, ledger: Ledger) -> object:
    """`_load_from_bytes(data)`: a storage, as `torch.storage.TypedStorage.__reduce__` pickles it."""
    found = raw_source(instance.args[0]) if len(instance.args) == 1 else None
    if found is None:
        return UNFIT
    source, start, nbytes = found
    ledger.spend(nbytes)
    value = _legacy(Window(source, start, nbytes), object(), {}, ledger)[0]
    return value if type(value) is Storage else UNFIT


_PLAIN: Final = replace(
    vocabulary(None),
    constructors={**vocabulary(None).constructors, ("torch.storage", "_load_from_bytes"): _load_from_bytes},
)


def _starts(source: RangedSource, at: int, keys: object, roots: Mapping[str, _Root]) -> tuple[dict[str, int], int]:
    """Where each storage begins, and where the last one ends."""
    if type(keys) is not list or not all(type(key) in {str, int} for key in keys):
        raise CorruptionError("the keys of the storages are not a list of texts", rule="torch")
    starts: dict[str, int] = {}
    for key in map(str, keys):
        root = roots.get(key)
        if root is None or key in starts:
            raise CorruptionError(f"the storage {key[:80]!r} is not in the tree, or twice in the file", rule="torch")
        if at + 8 > source.nbytes:
            raise CorruptionError(f"the file ends before its storage {key}", rule="torch")
        count = int.from_bytes(read(source, at, 8), "little", signed=True)
        if count != root.count:
            raise CorruptionError(
                f"the storage {key} at byte {at} has {count} items, and the tree says {root.count}", rule="torch"
            )
        starts[key] = at + 8
        at += 8 + count * dtype_of(root.dtype).itemsize
        if at > source.nbytes:
            raise CorruptionError(
                f"the file ends within its storage {key}, {at - source.nbytes} bytes early", rule="torch"
            )
    missing = roots.keys() - starts.keys()
    if missing:
        raise CorruptionError(f"the storage {min(missing)[:80]!r} of the tree is not in the file", rule="torch")
    return starts, at
