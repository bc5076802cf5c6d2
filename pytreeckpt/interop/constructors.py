"""What Python's own names in a pickle mean: containers, bytes, numbers, namespaces and paths.

Closed, as all of these tables: a class or function that is not named here is never looked for, and its objects become
records. So do objects of these whose parts are not what the class itself would have pickled.
"""

from __future__ import annotations

import pathlib
import types
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final

from pytreeckpt.expand import counter, default_dict, full_deque, namespace, path_class
from pytreeckpt.interop.pickle_records import mapping
from pytreeckpt.interop.pickle_values import UNFIT, Finish, Global, Instance, Ledger, Span, Vocabulary
from pytreeckpt.keys import check_hashes, is_element
from pytreeckpt.limits import current_limits
from pytreeckpt.objects import ClassKind, ObjectType, Record

_LATIN_1: Final = frozenset(["latin1", "latin-1"])
_MAX_LENGTH: Final = (1 << 63) - 1


def _bare(instance: Instance, *args: type) -> bool:
    """Whether there is nothing but arguments of exactly these types."""
    return tuple(map(type, instance.args)) == args and not (
        instance.keywords or instance.states or instance.elements or instance.pairs
    )


def _pairs(instance: Instance, ledger: Ledger) -> tuple[list[Any], list[Any]] | None:
    """Keys and values of a dict-like object: those of its argument, and then those that were set."""
    keys: list[Any] = []
    values: list[Any] = []
    match instance.args:
        case ():
            pass
        case (dict() as items,):
            ledger.spend(len(items))
            keys, values = list(items), list(items.values())
        case (list() as items,) if all(type(item) in {list, tuple} and len(item) == 2 for item in items):
            # As Python 2 has it.
            ledger.spend(4 * len(items))
            keys, values = [item[0] for item in items], [item[1] for item in items]
        case _:
            return None
    return [*keys, *instance.pairs[::2]], [*values, *instance.pairs[1::2]]


def _dict_like(build: Callable[[dict[Any, Any]], object], name: str) -> Finish:
    def finish(instance: Instance, ledger: Ledger) -> object:
        if instance.is_bare and not instance.args:
            # As the hooks of each tensor of torch.
            return build({})
        pairs = _pairs(instance, ledger)
        if pairs is None or instance.elements or instance.keywords:
            return UNFIT
        _drop_attributes(instance, ledger, name)
        return mapping(*pairs, ledger, name=name, build=build)

    return finish


def _drop_attributes(instance: Instance, ledger: Ledger, name: str) -> None:
    """The tree has no place for attributes of containers. The one that every state dict of torch has, with the versions
    of its modules, is told by name.
    """
    for state in instance.states:
        if type(state) is dict and state.keys() == {"_metadata"}:
            ledger.remarks[f"the _metadata of a {name}, the versions of torch's modules, was left out"] += 1
        elif state != {}:
            ledger.remarks[f"the attributes of a {name} were left out"] += 1


def _default_dict(instance: Instance, ledger: Ledger) -> object:
    # The factory is code.
    rest = Instance(instance.callee, instance.args[1:], instance.offset, None, instance.states, pairs=instance.pairs)
    if instance.elements or instance.keywords:
        return UNFIT
    return _dict_like(default_dict, "collections:defaultdict")(rest, ledger)


def _deque(instance: Instance, ledger: Ledger) -> object:
    items: list[Any]
    maxlen: int | None
    match instance.args:
        case ():
            items, maxlen = [], None
        case (list() | tuple() as first,):
            items, maxlen = list(first), None
        case (list() | tuple() as first, None | int() as maxlen) if not isinstance(maxlen, bool):
            items = list(first)
        case _:
            return UNFIT
    if instance.pairs or instance.keywords or (maxlen is not None and not 0 <= maxlen <= _MAX_LENGTH):
        return UNFIT
    ledger.spend(len(items))
    items += instance.elements
    _drop_attributes(instance, ledger, "collections:deque")
    return full_deque(items if maxlen is None else items[max(0, len(items) - maxlen) :], maxlen)


def _set(build: Callable[[list[Any]], object], name: str) -> Finish:
    def finish(instance: Instance, ledger: Ledger) -> object:
        elements = list(instance.elements)
        match instance.args:
            case ():
                pass
            case (list() | tuple() as first,):
                elements = [*first, *elements]
            case _:
                return UNFIT
        if instance.pairs or instance.keywords:
            return UNFIT
        ledger.spend(len(elements))
        _drop_attributes(instance, ledger, name)
        limits = current_limits()
        for element in elements:
            if type(element) in {tuple, frozenset}:
                ledger.spend(_PARTS_OF_ELEMENT)
            if not is_element(element, limits):
                return Record(ObjectType(ClassKind.RECORD, name, ("elements",)), (elements,))
        check_hashes(elements)
        return build(elements)

    return finish


_PARTS_OF_ELEMENT: Final = 32


def _encode(instance: Instance, ledger: Ledger) -> object:
    """`_codecs.encode(text, "latin1")`, as protocol 2 writes bytes."""
    if not _bare(instance, str, str):
        return UNFIT
    text, encoding = instance.args
    ledger.spend(len(text))
    if encoding not in _LATIN_1:
        return UNFIT
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return UNFIT


def _bytes(instance: Instance, _ledger: Ledger) -> object:
    if _bare(instance):
        return b""
    if _bare(instance, bytes) or (_bare(instance, Span) and not instance.args[0].is_array):
        return instance.args[0]
    return UNFIT


def _bytearray(instance: Instance, ledger: Ledger) -> object:
    if _bare(instance):
        return bytearray()
    if _bare(instance, str, str):
        content = _encode(instance, ledger)
    elif _bare(instance, bytes):
        content = instance.args[0]
    elif _bare(instance, Span):
        content = instance.args[0].read()
    else:
        return UNFIT
    if not isinstance(content, bytes | bytearray):
        return UNFIT
    ledger.spend(len(content))
    return bytearray(content)


def _complex(instance: Instance, _ledger: Ledger) -> object:
    return complex(*instance.args) if _bare(instance, float, float) else UNFIT


def _slice(instance: Instance, _ledger: Ledger) -> object:
    return slice(*instance.args) if len(instance.args) == 3 and not instance.states else UNFIT


def _range(instance: Instance, _ledger: Ledger) -> object:
    if not _bare(instance, int, int, int) or instance.args[2] == 0:
        return UNFIT
    return range(*instance.args)


def _plain(cls: Callable[[], object]) -> Finish:
    """A number or text without arguments; with one of its own type, that."""

    def finish(instance: Instance, _ledger: Ledger) -> object:
        if _bare(instance):
            return cls()
        return instance.args[0] if isinstance(cls, type) and _bare(instance, cls) else UNFIT

    return finish


def _namespace(cls: type) -> Finish:
    def finish(instance: Instance, ledger: Ledger) -> object:
        attributes: dict[str, Any] = {}
        for state in instance.states:
            if type(state) is not dict or not all(type(key) is str for key in state):
                return UNFIT
            ledger.spend(len(state))
            attributes |= state
        if instance.args or instance.keywords or instance.elements or instance.pairs:
            return UNFIT
        return namespace(cls, list(attributes), list(attributes.values()))

    return finish


def _path(flavour: str) -> Finish:
    def finish(instance: Instance, ledger: Ledger) -> object:
        if not _bare(instance, *(str for _ in instance.args)):
            return UNFIT
        ledger.spend(sum(map(len, instance.args)))
        return path_class(flavour)(*instance.args)

    return finish


_FLAVOURS: Final = {
    pathlib.PurePosixPath.__name__: "pure-posix",
    pathlib.PureWindowsPath.__name__: "pure-windows",
    pathlib.PosixPath.__name__: "posix",
    pathlib.WindowsPath.__name__: "windows",
}
# Python 3.13 has them in another module.
_PATH_MODULES: Final = ("pathlib", "pathlib._local")
_IN_BUILTINS: Final[Mapping[str, Finish]] = {
    "set": _set(set, "builtins:set"),
    "frozenset": _set(frozenset, "builtins:frozenset"),
    "bytes": _bytes,
    "bytearray": _bytearray,
    "complex": _complex,
    "slice": _slice,
    "range": _range,
    "xrange": _range,
    "int": _plain(int),
    "float": _plain(float),
    "bool": _plain(bool),
    "str": _plain(str),
    "list": _plain(list),
    "tuple": _plain(tuple),
    "dict": _dict_like(dict, "builtins:dict"),
}

CONSTRUCTORS: Final[Mapping[tuple[str, str], Finish]] = {
    ("collections", "OrderedDict"): _dict_like(OrderedDict, "collections:OrderedDict"),
    ("collections", "Counter"): _dict_like(counter, "collections:Counter"),
    ("collections", "defaultdict"): _default_dict,
    ("collections", "deque"): _deque,
    ("_codecs", "encode"): _encode,
    ("argparse", "Namespace"): _namespace(Namespace),
    ("types", "SimpleNamespace"): _namespace(types.SimpleNamespace),
    **{("builtins", name): finish for name, finish in _IN_BUILTINS.items()},
    **{(module, name): _path(flavour) for module in _PATH_MODULES for name, flavour in _FLAVOURS.items()},
}
"""How the objects of Python's own classes are made."""


def _reconstructor(instance: Instance) -> None:
    """`copyreg._reconstructor(cls, base, state)`: an object of `cls`, from a state of `base` unless that is object."""
    if len(instance.args) == 3:
        cls, base, state = instance.args
        instance.callee = cls
        instance.args = () if base == _OBJECT else (state,)


def _newobj(instance: Instance) -> None:
    """`copyreg.__newobj__(cls, *args)`."""
    if instance.args:
        instance.callee, *args = instance.args
        instance.args = tuple(args)


_OBJECT: Final = Global("builtins", "object")
REWRITERS: Final[Mapping[tuple[str, str], Callable[[Instance], None]]] = {
    ("copyreg", "_reconstructor"): _reconstructor,
    ("copyreg", "__newobj__"): _newobj,
}
"""Functions of `copyreg` that only call another."""

PYTHON: Final = Vocabulary({("builtins", "Ellipsis"): ...}, CONSTRUCTORS, REWRITERS)
"""What every pickle may name."""
