"""Folders of `torch.distributed.checkpoint`: tensors in shards, each a small file of `torch.save` within a larger one.

The file `.metadata` is a pickle, read by the same inert machine as any other. It says which chunks a tensor has, and in
which bytes of which file each is. What comes back is what torch gives without a template: tensors without gradients,
and the nested dicts and lists that the planner noted (it makes texts of integer keys when it saves).

Sources, in `torch/distributed/checkpoint`: `metadata.py`, `filesystem.py` (`_StorageInfo`, `read_data`),
`_nested_dict.py` and `_traverse.py` (`set_element`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from pytreeckpt.errors import CorruptionError, LimitError, UnsupportedTypeError
from pytreeckpt.geometry import Box, Shape
from pytreeckpt.interop.archives import Window
from pytreeckpt.interop.constructors_numpy import shape_of
from pytreeckpt.interop.constructors_torch import vocabulary
from pytreeckpt.interop.foreign import Check, Folder, ForeignArray, ForeignTree, Piece
from pytreeckpt.interop.layouts import check_array
from pytreeckpt.interop.pickle_loading import load_from
from pytreeckpt.interop.torch_files import read_torch
from pytreeckpt.interop.torch_storages import DTYPE_NAMES, dtype_of
from pytreeckpt.interop.torch_tensors import damaged, name_of, tensor_record
from pytreeckpt.limits import current_limits
from pytreeckpt.objects import Record, fields_of
from pytreeckpt.reading import RangedSource

METADATA: Final = ".metadata"
_MODULE: Final = "torch.distributed.checkpoint."
_METADATA: Final = _MODULE + "metadata:Metadata"
_TENSOR: Final = _MODULE + "metadata:TensorStorageMetadata"
_BYTES: Final = _MODULE + "metadata:BytesStorageMetadata"
_CHUNK: Final = _MODULE + "metadata:ChunkStorageMetadata"
_INDEX: Final = _MODULE + "metadata:MetadataIndex"
_INFO: Final = _MODULE + "filesystem:_StorageInfo"

_Key = tuple[str, Shape | None]


def is_distributed(names: Sequence[str]) -> bool:
    """Whether a folder with these files is one of torch.distributed.checkpoint."""
    return METADATA in names


@dataclass(frozen=True, slots=True)
class _Item:
    """Where an item is: `nbytes` bytes at `start` of a file."""

    file: str
    start: int
    nbytes: int


def read_distributed(folder: Folder) -> ForeignTree:
    """A folder of torch.distributed.checkpoint.

    Raises `CorruptionError` where the metadata and the files do not agree, `UnsupportedTypeError` for items that went
    through an extension (such as compression), and `LimitError` beyond the limits.
    """
    tree, _, _ = load_from(folder.open(METADATA), 0, vocabulary(None), whole=True)
    metadata = _fields(tree, _METADATA, "the metadata")
    entries = metadata.get("state_dict_metadata")
    if type(entries) is not dict or not all(type(name) is str for name in entries):
        raise damaged("the metadata has no table of what was saved")
    reading = _Reading(folder, _items(metadata.get("storage_data")))
    values = {name: reading.value(name, entry) for name, entry in entries.items()}
    facts = {"version": metadata.get("version")}
    return ForeignTree(
        "torch distributed",
        _nested(values, metadata.get("planner_data")),
        {key: value for key, value in facts.items() if type(value) is str},
        tuple(reading.notes),
        tuple(reading.checks),
        tuple(reading.files.values()),
    )


class _Reading:
    """The files that are open, and what was found in them."""

    def __init__(self, folder: Folder, items: Mapping[_Key, _Item]) -> None:
        self._folder = folder
        self._items = items
        self.files: dict[str, RangedSource] = {}
        # Bytes that no item has taken yet, by file: to read all items is to read each file once.
        self._left: dict[str, int] = {}
        self.notes: dict[str, None] = {}
        self.checks: list[Check] = []

    def value(self, name: str, entry: object) -> object:
        """What was saved under a name: a tensor, or any other object."""
        kind = name_of(entry)
        if kind == _BYTES:
            return self._item(name, None)
        return self._tensor(name, _fields(entry, _TENSOR, f"the entry of {name}"))

    def _item(self, name: str, offset: Shape | None) -> Any:
        place = self._items.get((name, offset))
        where = name if offset is None else f"{name} at {list(offset)}"
        if place is None:
            raise damaged(f"the metadata does not say where {where} is")
        if place.file not in self.files:
            self.files[place.file] = self._folder.open(place.file)
            self._left[place.file] = self.files[place.file].nbytes
        file = self.files[place.file]
        if place.start + place.nbytes > file.nbytes:
            raise damaged(
                f"{where} should be bytes {place.start} to {place.start + place.nbytes} of {place.file}, which has "
                f"{file.nbytes}"
            )
        self._left[place.file] -= place.nbytes
        if self._left[place.file] < 0:
            raise damaged(f"{where} shares its bytes of {place.file} with other items: together, they have more")
        try:
            found = read_torch(Window(file, place.start, place.nbytes))
        except CorruptionError as error:
            raise CorruptionError(f"{where}, at byte {place.start} of {place.file}: {error}", rule=error.rule) from None
        self.notes.update(dict.fromkeys(found.notes))
        self.checks.extend(
            Check(f"{place.file} at {place.start}, {check.name}", check.source, check.crc32) for check in found.checks
        )
        return found.tree

    def _tensor(self, name: str, entry: Mapping[str, Any]) -> Record:
        shape = shape_of(entry.get("size"))
        chunks = entry.get("chunks")
        dtype = _dtype_name(entry.get("properties"))
        if shape is None or type(chunks) is not list or dtype is None or dtype not in DTYPE_NAMES:
            raise damaged(f"the entry of the tensor {name} has no size, dtype or chunks")
        boxes = [_box(name, chunk, shape) for chunk in chunks]
        if len({box.offset for box in boxes}) != len(boxes):
            # Each would be read before it is known that they overlap.
            raise damaged(f"the chunks of {name} overlap: two are at one place")
        pieces: list[Piece] = []
        for box in boxes:
            part = _fields(self._item(name, box.offset), None, f"{name} at {list(box.offset)}").get("data")
            if not isinstance(part, ForeignArray) or part.shape != box.shape or part.dtype != dtype_of(dtype):
                raise damaged(
                    f"{name} at {list(box.offset)} is not the tensor of {dtype}{list(box.shape)} that it should be"
                )
            pieces += [piece._replace(box=box) for piece in part.pieces]
        # Each is an array of its own: nothing says which were shared.
        data = ForeignArray(dtype_of(dtype), shape, tuple(pieces), ("torch distributed", name))
        try:
            check_array(data)
        except CorruptionError as error:
            raise damaged(f"the chunks of {name}: {error}") from None
        return tensor_record(data, dtype)


def _fields(value: object, name: str | None, what: str) -> Mapping[str, Any]:
    """The fields of a record of this name (None: of any)."""
    if not isinstance(value, Record) or name not in {None, name_of(value)}:
        raise damaged(f"{what} is a {name_of(value) or type(value).__name__}, and should be a {name or 'tensor'}")
    return fields_of(value)


def _items(table: object) -> dict[_Key, _Item]:
    """Where each item is, by its name and the offset of its chunk."""
    match table:
        case dict():
            pairs: Any = list(table.items())
        case Record() if list(table) == ["pairs"]:
            pairs = table["pairs"]
        case _:
            raise damaged("the metadata has no table of where the items are; was it written by another storage?")
    items: dict[_Key, _Item] = {}
    for index, info in pairs:
        key = _fields(index, _INDEX, "the index of an item")
        place = _fields(info, _INFO, "the place of an item")
        name, offset = key.get("fqn"), key.get("offset")
        file, start, nbytes = (place.get(field) for field in ("relative_path", "offset", "length"))
        at = None if offset is None else shape_of(offset)
        if type(name) is not str or (at is None) != (offset is None):
            raise damaged("the index of an item has no name, or an offset that is none")
        if type(file) is not str or type(start) is not int or type(nbytes) is not int or start < 0 or nbytes < 0:
            raise damaged(f"the place of {name} is not some bytes of a file")
        if place.get("transform_descriptors"):
            raise UnsupportedTypeError(
                f"{name} was written through the extensions {place['transform_descriptors']!r}, which are not read "
                "here; load it with torch and save it without them"
            )
        if (name, at) in items:
            raise damaged(f"the metadata has two places for {name}")
        items[name, at] = _Item(file, start, nbytes)
    return items


def _dtype_name(properties: object) -> str | None:
    """The dtype of a tensor's properties, which come as a tuple, or in old versions as attributes."""
    if not isinstance(properties, Record):
        return None
    fields = fields_of(properties)
    state = fields.get("state")
    dtype = state[0] if type(state) is tuple and state else fields.get("dtype")
    if name_of(dtype) != "torch.dtype" or not isinstance(dtype, Record):
        return None
    name = fields_of(dtype)["name"]
    return name if isinstance(name, str) else None


def _box(name: str, chunk: object, shape: Shape) -> Box:
    fields = _fields(chunk, _CHUNK, f"a chunk of {name}")
    offset, sizes = shape_of(fields.get("offsets")), shape_of(fields.get("sizes"))
    if offset is None or sizes is None or not len(offset) == len(sizes) == len(shape):
        raise damaged(f"a chunk of {name} has no offsets and sizes of its rank")
    if any(start + extent > whole for start, extent, whole in zip(offset, sizes, shape, strict=True)):
        raise damaged(f"the chunk of {name} at {list(offset)} of shape {list(sizes)} is not within {list(shape)}")
    return Box(offset, sizes)


def _nested(values: Mapping[str, object], paths: object) -> object:
    """The dicts and lists that were flattened, or one dict by names where nothing says how."""
    if paths is None:
        return dict(values)
    if type(paths) is not dict:
        raise damaged("what the planner noted is not a table of paths")
    root: dict[Any, Any] = {}
    # Lists are filled as dicts, by their indices: these are made in order, so those inside come later.
    lists: list[tuple[dict[Any, Any], Any]] = []
    containers: dict[int, bool] = {id(root): False}
    for name, value in values.items():
        path = paths.get(name)
        if type(path) is not tuple or not path or not all(type(step) in {str, int} for step in path):
            raise damaged(f"what the planner noted has no path for {name}")
        if len(path) > current_limits().depth:
            raise LimitError(f"the path of {name} is deeper than the limit of {current_limits().depth}")
        at = root
        for step, following in pairwise((*path, None)):
            if containers[id(at)] and (type(step) is not int or not 0 <= step < len(values)):
                raise damaged(f"the path of {name} has the index {step!r}, of a list of at most {len(values)} items")
            if following is None:
                if step in at:
                    raise damaged(f"the path of {name} is that of something else as well")
                at[step] = value
                break
            if step not in at:
                at[step] = {}
                containers[id(at[step])] = type(following) is int
                if type(following) is int:
                    lists.append((at, step))
            if containers.get(id(at[step])) is not (type(following) is int):
                raise damaged(f"the path of {name} leads through something else")
            at = at[step]
    n_items = sum(max(parent[key]) + 1 for parent, key in lists)
    if n_items > current_limits().nodes:
        raise LimitError(
            f"the lists of the tree have {n_items} items, more than the limit of {current_limits().nodes}; raise it "
            "with pytreeckpt.limits(nodes=…)"
        )
    for parent, key in reversed(lists):
        items = parent[key]
        # As torch has it, what is between is None.
        parent[key] = [items.get(index) for index in range(max(items) + 1)]
    return root
