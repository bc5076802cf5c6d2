"""Records that stand for what a pickle holds and a tree cannot, or the vocabulary does not know.

An object that the vocabulary does not know, or whose parts do not fit, becomes a `Record` of the class kind RECORD:

- one named `module:qualified name` for an object of a class. Its fields are the attributes of its state, if that is a
  dict with texts as keys (or such a dict and one of slots). Before them stand, where there are any, `args` (a tuple:
  what the class was called with), `keywords` (a dict), `elements` (a list: what was appended) and `items` (a dict:
  what was set by key). A state of any other form, or whose attributes have one of these names, is a field `state`.
- `pickle:global` with `module` and `name` for a class or function itself: no class can have that name.
- `pickle:call` with the further field `callee` for the call of something that is no name.
- `builtins:dict` (or another class of dicts) with `pairs`, a list of key and value, for a dict with keys that a tree
  cannot have, and `builtins:set` with `elements` for such a set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

from pytreeckpt.errors import LimitError
from pytreeckpt.interop.pickle_values import Global, Ledger
from pytreeckpt.keys import is_key
from pytreeckpt.limits import current_limits
from pytreeckpt.objects import MAX_FIELDS, ClassKind, ObjectType, Record

CALL: Final = "pickle:call"
_GLOBAL: Final = ObjectType(ClassKind.RECORD, "pickle:global", ("module", "name"))
_PARTS: Final = frozenset(["callee", "args", "keywords", "elements", "items", "state"])
_MAX_SAME_HASH: Final = 256


def global_record(value: Global) -> Record:
    """A class or function itself."""
    return Record(_GLOBAL, (value.module, value.name))


def object_record(name: str, parts: dict[str, Any], states: Sequence[Any], ledger: Ledger) -> Record:
    """An object of the class `name`, of its parts and states."""
    attributes = _attributes(states, ledger)
    if attributes is None:
        parts["state"] = states[0] if len(states) == 1 else list(states)
    else:
        parts |= attributes
    ledger.classes[name] += 1
    return Record(ObjectType(ClassKind.RECORD, name, tuple(parts)), tuple(parts.values()))


def _attributes(states: Sequence[Any], ledger: Ledger) -> dict[str, Any] | None:
    """The attributes that an object's state gives, or None if it is not made of attributes with names of their own."""
    if not states:
        return {}
    state = states[0]
    dicts = state if type(state) is tuple and len(state) == 2 else (state,)
    attributes: dict[str, Any] = {}
    for part in dicts:
        if part is None:
            continue
        if type(part) is dict:
            ledger.spend(len(part))
        if type(part) is not dict or not all(type(key) is str for key in part) or attributes.keys() & part.keys():
            return None
        attributes |= part
    if len(states) > 1 or attributes.keys() & _PARTS or len(attributes) > MAX_FIELDS:
        return None
    return attributes


def mapping(
    keys: Sequence[Any], values: Sequence[Any], ledger: Ledger, *, name: str, build: Callable[[Any], Any] | None = None
) -> Any:
    """A dict, as `build` takes it, or a record of `name` if one of the keys cannot be one in a tree.

    Raises `LimitError` if very many keys have the same hash.
    """
    ledger.spend(len(keys))
    limits = current_limits()
    if not all(type(key) is str for key in keys):
        for key in keys:
            if type(key) is tuple:
                ledger.spend(_parts_of(key))
            if not is_key(key, limits):
                pairs = list(zip(keys, values, strict=True))
                return Record(ObjectType(ClassKind.RECORD, name, ("pairs",)), (pairs,))
        crowds = Counter(hash(key) for key in keys)
        if max(crowds.values(), default=0) > _MAX_SAME_HASH:
            raise LimitError(f"more than {_MAX_SAME_HASH} keys of a dict have the same hash")
    items = dict(zip(keys, values, strict=True))
    return items if build is None else build(items)


def _parts_of(key: tuple[Any, ...]) -> int:
    """How many values are in a tuple and in the tuples in it, up to more than may be paid for."""
    count = 0
    pending: list[Any] = [key]
    while pending and count < _MANY_PARTS:
        item = pending.pop()
        count += 1
        if type(item) is tuple:
            pending.extend(item)
    return count


_MANY_PARTS: Final = 1 << 20
