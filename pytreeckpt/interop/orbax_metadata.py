"""What Orbax writes of a tree beside its arrays: `_METADATA`, with each leaf, and `array_metadatas`.

The layout is that of orbax/checkpoint/_src/metadata/tree.py and array_metadata_store.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from pytreeckpt.errors import CorruptionError, LimitError, UnsupportedTypeError
from pytreeckpt.limits import current_limits

TREE: Final = "_METADATA"
SEQUENCE: Final = 1
DICT: Final = 2
EMPTY: Final[Mapping[str, type | None]] = {"None": None, "Dict": dict, "List": list, "Tuple": tuple}
"""What stands for an empty container, or nothing."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf as `_METADATA` tells it: the steps to it, each a kind and a key, the type of its value, and the name under
    which its array is stored, or None if it has none. `is_described`: more of the array stands in `array_metadatas`,
    from where the shape that is told here is.
    """

    steps: tuple[tuple[int, str], ...]
    value_type: str
    name: str | None
    is_described: bool


def leaf_of(text: str, entry: object) -> Leaf:
    """A leaf. Raises `CorruptionError`, `UnsupportedTypeError` for one that was not stored, and `LimitError`."""
    match entry:
        case {
            "key_metadata": [*keys],
            "value_metadata": {"value_type": str(value_type), "skip_deserialize": bool(skip), **more},
        }:
            pass
        case _:
            refuse(f"the entry {text[:80]!r} is not made of key_metadata and value_metadata")
    steps: list[tuple[int, str]] = []
    for key in keys:
        match key:
            case {"key": str(name), "key_type": int(kind)} if kind in {SEQUENCE, DICT}:
                steps.append((kind, name))
            case _:
                refuse(f"a key of the entry {text[:80]!r} is not made of key and key_type")
    if len(steps) >= current_limits().depth:
        raise LimitError(f"{text[:80]!r} is deeper than the limit of {current_limits().depth} levels")
    if skip and value_type not in EMPTY and value_type != "NamedTuple":
        raise UnsupportedTypeError(f"the entry {text[:80]!r} is of the type {value_type[:40]!r}, which is not stored")
    stored = None if skip else ".".join(name for _, name in steps)
    return Leaf(tuple(steps), value_type, stored, more.get("write_shape") is not None)


def check_names(leaves: Sequence[Leaf]) -> None:
    """Orbax joins keys with dots: two leaves may have been written to one place, and one of them is lost."""
    seen: dict[str, Leaf] = {}
    for leaf in leaves:
        if leaf.name is not None and seen.setdefault(leaf.name, leaf) is not leaf:
            paths = ["/".join(key for _, key in each.steps) for each in (seen[leaf.name], leaf)]
            raise CorruptionError(
                f"Orbax wrote the leaves {paths[0]!r} and {paths[1]!r} to one place, {leaf.name!r}; the values of one "
                "are lost",
                rule="orbax",
            )


def key_impls(documents: Mapping[str, object], leaves: Sequence[Leaf]) -> dict[str, str]:
    """The implementation of each array that holds typed PRNG keys of JAX, by the name of the array. `documents`: the
    files of `array_metadatas` by their names. Raises `CorruptionError`, also where one that a leaf is told in is lost.
    """
    found: dict[str, str] = {}
    seen: set[str] = set()
    for name, document in documents.items():
        match document:
            case {"array_metadatas": [*entries]}:
                pass
            case _:
                refuse(f"{name} has no array_metadatas")
        for entry in entries:
            match entry:
                case {"array_metadata": {"param_name": str(array), **about}}:
                    seen.add(array)
                case _:
                    refuse(f"an entry of {name} does not name its array")
            match about.get("ext_metadata"):
                case {"random_key_impl": str(impl)}:
                    found[array] = impl
                case _:
                    # An array of numbers.
                    pass
    for leaf in leaves:
        if leaf.is_described and leaf.name is not None and leaf.name not in seen:
            refuse(f"array_metadatas, which tells keys of random numbers from numbers, lacks {leaf.name[:80]!r}")
    return found


def refuse(message: str) -> NoReturn:
    """Raise `CorruptionError`."""
    raise CorruptionError(f"{TREE}: {message}", rule="orbax")
