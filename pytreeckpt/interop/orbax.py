"""Orbax folders: a tree as JSON in `_METADATA`, and its arrays in zarr folders or an OCDBT database beside it.

The layout is that of orbax-checkpoint 0.5 to 0.12 (orbax/checkpoint/_src/metadata/tree.py and handlers/): each leaf has
its key path, whose steps are of sequences or dicts, and the type of its value. Tuples, namedtuples and keys that are no
texts are not told by it: sequences come back as lists, all else as dicts with texts as keys. A step of a
CheckpointManager is a dict of its items, unless it is the one item `default`.

Orbax stores every chunk, and says so (`store_array_data_equal_to_fill_value`), so that one that is not there is an
error. Old versions left out chunks of zeros, which cannot be told from lost ones: a note says so.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pytreeckpt.errors import CorruptionError, LimitError, UnsupportedTypeError
from pytreeckpt.interop.foreign import Folder, ForeignArray, ForeignTree, read_whole
from pytreeckpt.interop.json_documents import parse_json
from pytreeckpt.interop.orbax_metadata import (
    DICT,
    EMPTY,
    SEQUENCE,
    TREE,
    Leaf,
    check_names,
    key_impls,
    leaf_of,
    refuse,
)
from pytreeckpt.interop.registered import registered
from pytreeckpt.interop.zarr_arrays import ZarrStore, open_arrays
from pytreeckpt.limits import current_limits
from pytreeckpt.reading import read

_STEP: Final = "_CHECKPOINT_METADATA"
_STRINGS: Final = "_strings.json"
_DATABASE: Final = "manifest.ocdbt"
_JSON_ITEM: Final = "metadata"
# What the items of each handler have, by the end of its name.
_FILES_OF_HANDLERS: Final = {
    "PyTreeCheckpointHandler": TREE,
    "StandardCheckpointHandler": TREE,
    "JsonCheckpointHandler": _JSON_ITEM,
}
_DEFAULT: Final = "default"

# Numbers of Python were written as these.
_PYTHON_DTYPES: Final = frozenset(["bool", "int64", "float64"])
_INCOMPLETE: Final = (
    "this version of Orbax left out chunks of zeros: if a file of an array was lost, it has zeros in its place"
)


def is_orbax(names: Sequence[str]) -> bool:
    """Whether a folder with these files is a checkpoint of Orbax, a step of several items, or one of several steps."""
    return any(name.rpartition("/")[2] in {TREE, _STEP} and name.count("/") <= 2 for name in names)


def read_orbax(folder: Folder) -> ForeignTree:
    """A checkpoint, or a step of a CheckpointManager with its items.

    Raises `CorruptionError`; `LimitError`; `UnsupportedTypeError` if tensorstore is not installed, or the folder holds
    several steps (it names them).
    """
    names = folder.names()
    path = getattr(folder, "path", None)
    if not isinstance(path, str):
        raise UnsupportedTypeError("an Orbax checkpoint is read from a folder of the file system")
    if TREE in names:
        tree, custom, notes = _item(_Item(folder, "", path, frozenset(names)))
        return ForeignTree("Orbax", tree, _metadata(folder, names, {} if custom is None else {"": custom}), notes)
    items = sorted({name.partition("/")[0] for name in names if name.count("/") == 1 and name.endswith(f"/{TREE}")})
    if not items and _STEP not in names:
        steps = sorted({name.partition("/")[0] for name in names if name.rpartition("/")[2] in {TREE, _STEP}})
        raise UnsupportedTypeError(
            f"the folder holds several checkpoints of Orbax; open one of them: {', '.join(steps[:20])}"
        )
    return _step(folder, path, names)


def _step(folder: Folder, path: str, names: Sequence[str]) -> ForeignTree:
    found: dict[str, object] = {}
    customs: dict[str, object] = {}
    notes: list[str] = []
    everything = frozenset(names)
    _check_items(folder, everything)
    for item in sorted({name.partition("/")[0] for name in names if "/" in name}):
        if f"{item}/{TREE}" in everything:
            found[item], custom, of_item = _item(_Item(folder, f"{item}/", f"{path.rstrip('/')}/{item}", everything))
            notes += [f"{item}: {note}" for note in of_item]
            if custom is not None:
                customs[item] = custom
        elif f"{item}/{_JSON_ITEM}" in everything:
            found[item] = _document(folder, f"{item}/{_JSON_ITEM}")
        else:
            notes.append(f"{item}: an item of Orbax that is neither a tree nor JSON, and was not read")
    tree: object = found[_DEFAULT] if set(found) == {_DEFAULT} else found
    return ForeignTree("Orbax", tree, _metadata(folder, names, customs), tuple(notes))


def _check_items(folder: Folder, names: Collection[str]) -> None:
    """Whether what the step says that it has is there: in a dict of items, nobody would miss one."""
    match _document(folder, _STEP) if _STEP in names else None:
        case {"item_handlers": dict(found)}:
            handlers = {f"{item}/": str(handler) for item, handler in found.items()}
        case {"item_handlers": str(handler)}:
            handlers = {"": handler}
        case _:
            handlers = {}
    for prefix, handler in handlers.items():
        for end, file in _FILES_OF_HANDLERS.items():
            if handler.endswith(end) and prefix + file not in names:
                raise CorruptionError(f"{_STEP} tells of {(prefix + file)[:80]!r}, which is not there", rule="orbax")


def _metadata(folder: Folder, names: Sequence[str], customs: Mapping[str, object]) -> object:
    """What the checkpoint says of itself, and what its trees say by the names of their items."""
    found = _document(folder, _STEP) if _STEP in names else None
    return {"checkpoint": found, "trees": dict(customs)} if customs else found


def _document(folder: Folder, name: str) -> object:
    source = folder.open(name)
    limit = current_limits().index_nbytes
    if source.nbytes > limit:
        raise LimitError(f"{name} has {source.nbytes} bytes, more than the limit of {limit}")
    return parse_json(read(source, 0, source.nbytes), name)


@dataclass(frozen=True, slots=True)
class _Item:
    """A tree that Orbax has saved: its folder, the beginning of the names in it, its path, and all names there are."""

    folder: Folder
    prefix: str
    path: str
    names: frozenset[str]


def _item(item: _Item) -> tuple[object, object, tuple[str, ...]]:
    """The tree, its own metadata, and notes."""
    match _document(item.folder, item.prefix + TREE):
        case {"tree_metadata": dict(entries), **settings}:
            version, custom = 3 if settings.get("use_zarr3") else 2, settings.get("custom_metadata")
            is_complete = bool(settings.get("store_array_data_equal_to_fill_value"))
            leaves = [leaf_of(text, entry) for text, entry in entries.items()]
        case _:
            refuse("there is no tree_metadata")
    check_names(leaves)
    strings = _texts(item) if any(leaf.value_type == "string" for leaf in leaves) else {}
    stored = [leaf.name for leaf in leaves if leaf.name is not None and leaf.value_type != "string"]
    arrays = open_arrays(_store(item, stored, version=version, is_complete=is_complete), stored) if stored else {}
    described = sorted(name for name in item.names if name.startswith(f"{item.prefix}array_metadatas/"))
    impls = key_impls({name: _document(item.folder, name) for name in described}, leaves)
    notes = (_INCOMPLETE,) if stored and not is_complete else ()
    return _tree([(leaf, _value(leaf, arrays, strings, impls)) for leaf in leaves]), custom, notes


def _store(item: _Item, stored: Sequence[str], *, version: int, is_complete: bool) -> ZarrStore:
    is_ocdbt = item.prefix + _DATABASE in item.names
    if not is_ocdbt:
        begin = "zarr.json" if version == 3 else ".zarray"
        for name in stored:
            # So that no key, such as "..", leads out of the folder.
            if f"{item.prefix}{name}/{begin}" not in item.names:
                raise CorruptionError(f"there is no array {name[:80]!r} in {item.path}", rule="orbax")
    _check_links(item)
    return ZarrStore(item.path, is_ocdbt, version, is_complete)


def _check_links(item: _Item) -> None:
    """Files are opened by tensorstore itself: see that none is a link out of the folder, which opening one refuses."""
    for name in sorted(item.names):
        if name.startswith(item.prefix):
            close = getattr(item.folder.open(name), "close", None)
            if close is not None:
                close()


def _texts(item: _Item) -> Mapping[str, object]:
    name = item.prefix + _STRINGS
    found = _document(item.folder, name) if name in item.names else {}
    if not isinstance(found, dict):
        refuse(f"{name} is not an object")
    return found


def _value(
    leaf: Leaf, arrays: Mapping[str, ForeignArray], strings: Mapping[str, object], impls: Mapping[str, str]
) -> object:
    if leaf.name is None:
        # An empty namedtuple, such as optax.EmptyState, is one without fields.
        empty = EMPTY.get(leaf.value_type, dict)
        return None if empty is None else empty()
    if leaf.value_type == "string":
        if not isinstance(strings.get(leaf.name), str):
            refuse(f"there is no text {leaf.name[:80]!r} in {_STRINGS}")
        return strings[leaf.name]
    array = arrays[leaf.name]
    if leaf.value_type == "scalar":
        return _scalar(leaf.name, array)
    if leaf.name in impls:
        return registered("jax.PRNGKeyArray", array, impls[leaf.name])
    if leaf.value_type != "jax.Array":
        return array
    return registered("jax.Array", array, False)  # noqa: FBT003 - the fields of the type, in order


def _scalar(name: str, array: ForeignArray) -> object:
    if array.shape:
        refuse(f"the scalar {name[:80]!r} has the shape {list(array.shape)}")
    value: Any = read_whole(array)[()]
    return value.item() if array.dtype.name in _PYTHON_DTYPES else value


@dataclass(slots=True)
class _Node:
    """A container that is being put together: its kind, and its children by their keys."""

    kind: int
    children: dict[str, object] = field(default_factory=dict)


def _tree(leaves: Sequence[tuple[Leaf, object]]) -> object:
    """The leaves at their places. Raises `CorruptionError` if there is none for one of them."""
    if len(leaves) == 1 and not leaves[0][0].steps:
        return leaves[0][1]
    root = _Node(DICT)
    if leaves and leaves[0][0].steps:
        root.kind = leaves[0][0].steps[0][0]
    nodes = [root]
    for leaf, value in leaves:
        node = root
        for at, (kind, key) in enumerate(leaf.steps):
            if kind != node.kind:
                refuse(f"keys of sequences and dicts stand beside each other, at {key[:80]!r}")
            if at == len(leaf.steps) - 1:
                break
            if key not in node.children:
                nodes.append(_Node(leaf.steps[at + 1][0]))
                node.children[key] = nodes[-1]
            below = node.children[key]
            if not isinstance(below, _Node):
                refuse(f"{key[:80]!r} is a leaf, and has others in it")
            node = below
        if not leaf.steps or leaf.steps[-1][1] in node.children:
            refuse("two leaves have the same place")
        node.children[leaf.steps[-1][1]] = value
    # Those that were made later are further down.
    built: dict[int, object] = {}
    for node in reversed(nodes):
        children = {
            key: built.pop(id(child)) if isinstance(child, _Node) else child for key, child in node.children.items()
        }
        built[id(node)] = _listed(children) if node.kind == SEQUENCE else children
    return built[id(root)]


def _listed(children: Mapping[str, object]) -> list[object]:
    if set(children) != set(map(str, range(len(children)))):
        refuse(f"the items of a sequence are numbered {', '.join(sorted(children)[:20])}")
    return [children[str(number)] for number in range(len(children))]
