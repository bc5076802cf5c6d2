"""Tree to node stream: one iterative walk that knows the plain types and asks `expand` for all others.

Each container is looked at once, as a copy: what another thread does to it during the walk is in the stream or is not,
and never makes it one that cannot be read.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from pytreeckpt import nodes as n
from pytreeckpt.arrays import AnyArray, ArraySource, array_identity
from pytreeckpt.dtypes import describe
from pytreeckpt.errors import LimitError, UnsupportedTypeError
from pytreeckpt.keys import (
    PLAIN_KEY_TYPES,
    bigint_bytes,
    equality_form,
    is_element,
    is_key,
    is_too_long,
    key_nbytes,
    sorted_elements,
)
from pytreeckpt.limits import Limits
from pytreeckpt.nodes import Nodes, path_at
from pytreeckpt.objects import MAX_FIELDS, Expansion, NamedTupleRecord, ObjectType, Record, record_expansion

Expand = Callable[[object], "ArraySource | Expansion | None"]
"""One level of an object that is not a plain type: an array, an object with fields, or None if it is unknown."""


@dataclass(slots=True)
class FlatTree:
    """A metadata and a tree as a node stream, and the arrays that it refers to, in order of first use."""

    nodes: Nodes = field(default_factory=Nodes)
    arrays: list[AnyArray | ArraySource] = field(default_factory=list)
    scalars: set[int] = field(default_factory=set)
    """Which of the arrays hold numpy scalars."""


class _Close:
    """On the stack: the container with this id ends here."""

    __slots__ = ("id",)

    def __init__(self, id_: int) -> None:
        self.id = id_


_CONSTANTS: Final[dict[object, int]] = {None: n.NONE, False: n.FALSE, True: n.TRUE, ...: n.ELLIPSIS}
# From this many children on, it pays to look whether all are of one plain type and can be added at once.
_BULK = 8


def flatten(metadata: object, tree: object, *, expand: Expand, limits: Limits) -> FlatTree:
    """The node stream of `metadata` and `tree`.

    Raises `UnsupportedTypeError` with the path of what cannot be stored, and `LimitError` beyond the limits.
    """
    flat = FlatTree()
    builder = _Builder(flat, expand, limits)
    builder.add(metadata, root=0)
    if flat.nodes.kinds.translate(None, n.METADATA_KINDS):
        first = next(place for place, kind in enumerate(flat.nodes.kinds) if kind not in n.METADATA_KINDS)
        raise UnsupportedTypeError(
            f"metadata: {str(path_at(flat.nodes, first, root=0)) or 'the root'} is something other than None, bool, "
            "int, float, str, bytes, lists, tuples and dicts; put it in the tree"
        )
    builder.add(tree, root=1)
    return flat


class _Builder:
    """The walk and what it remembers: which arrays and types it has met, and which containers are open."""

    def __init__(self, flat: FlatTree, expand: Expand, limits: Limits) -> None:
        self.nodes = flat.nodes
        self.arrays = flat.arrays
        self.scalars = flat.scalars
        self.expand = expand
        self.limits = limits
        self.array_ids: dict[Hashable, int] = {}
        self.type_ids: dict[ObjectType, int] = {}
        self.open: set[int] = set()
        self.root = 1
        # Whatever is met outlives the walk, also what nobody else holds any more: identities are memory addresses.
        self.kept: list[object] = []

    def add(self, tree: object, *, root: int) -> None:
        self.root = root
        nodes = self.nodes
        kinds = nodes.kinds
        stack: list[Any] = [tree]
        while stack:
            value = stack.pop()
            cls = type(value)
            if cls is np.ndarray and not value.dtype.hasobject:
                self.add_array(value, array_identity(value))
            elif cls is str:
                self.add_text(value)
            elif cls is dict:
                self.add_dict(value, stack)
            elif cls is int:
                self.add_int(value)
            elif cls is float:
                kinds.append(n.FLOAT)
                nodes.floats.append(value)
            elif cls is bool or value is None or value is ...:
                kinds.append(_CONSTANTS[value])
            elif cls is list or cls is tuple:
                self.enter(value, stack)
                items = value.copy() if cls is list else value
                kinds.append(n.LIST if cls is list else n.TUPLE)
                nodes.counts.append(len(items))
                self.push(items, stack)
            elif cls is _Close:
                self.open.discard(value.id)
            else:
                self.other(value, cls, stack)
        self.check_size()

    def check_size(self) -> None:
        # A tree that holds the same list twice, and that list another one twice, … is larger than memory.
        if len(self.nodes.kinds) > self.limits.nodes:
            raise LimitError(
                f"the tree has more nodes than the limit of {self.limits.nodes}; raise it with "
                "pytreeckpt.limits(nodes=…)"
            )

    def add_text(self, text: str) -> None:
        self.check_text(text)
        self.nodes.kinds.append(n.STR)
        self.nodes.strings.append(text)

    def check_text(self, text: str) -> None:
        """I-4: UTF-8 has no form for one half of a surrogate pair."""
        if text.isascii():
            return
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UnsupportedTypeError(
                f"{self.where()}: the text {reprlib.repr(text)} has a lone surrogate at {error.start}, which is no "
                "character; store it as bytes: text.encode(errors='surrogatepass')"
            ) from None

    def add_int(self, value: int) -> None:
        if n.MIN_INT <= value <= n.MAX_INT:
            self.nodes.kinds.append(n.INT)
            self.nodes.ints.append(value)
        else:
            self.nodes.kinds.append(n.BIGINT)
            self.nodes.blobs.append(bigint_bytes(value))

    def add_dict(self, value: dict[object, object], stack: list[Any]) -> None:
        self.enter(value, stack)
        value = value.copy()
        keys = list(value)
        self.check_keys(keys)
        self.nodes.kinds.append(n.DICT)
        self.nodes.counts.append(len(keys))
        values = list(value.values())
        if all(type(key) is str for key in keys):
            self.bulk(keys, str)
            self.push(values, stack)
        else:
            self.push(keys + values, stack)

    def check_keys(self, keys: list[Any]) -> None:
        plain = True
        for key in keys:
            cls = type(key)
            if cls is float or cls is tuple:
                plain = False
                if not is_key(key, self.limits):
                    raise self.bad_key(key)
            elif cls not in PLAIN_KEY_TYPES:
                raise self.bad_key(key)
            if is_too_long(key, self.limits.key_nbytes):
                raise LimitError(
                    f"{self.where()}: a dict key of {key_nbytes(key)} bytes is longer than the limit of "
                    f"{self.limits.key_nbytes}; raise it with pytreeckpt.limits(key_nbytes=…)"
                )
        # Two NaN keys, alone or in tuples, may differ as objects and not in their bits.
        if not plain and len(set(map(equality_form, keys))) != len(keys):
            raise UnsupportedTypeError(
                f"{self.where()}: two keys of this dict are the same NaN and cannot be told apart"
            )

    def bad_key(self, key: object) -> UnsupportedTypeError:
        return UnsupportedTypeError(
            f"{self.where()}: the dict key {_shown(key)} is a {_type_text(type(key))}; keys are str, int, bool, "
            "float, bytes, None and tuples of these. Convert it, for example with int(key) or str(key)"
        )

    def push(self, children: Sequence[object], stack: list[Any]) -> None:
        """Add the children now if they are many and of one plain type, else leave them to the walk."""
        if len(children) >= _BULK:
            first = type(children[0])
            if first in {float, int, bool, str, type(None)} and all(type(child) is first for child in children):
                return self.bulk(children, first)
        self.kept.append(children)
        stack.extend(reversed(children))
        return None

    def bulk(self, children: Sequence[Any], cls: type) -> None:
        nodes = self.nodes
        if cls is float:
            nodes.floats.extend(children)
            nodes.kinds.extend(bytes([n.FLOAT]) * len(children))
        elif cls is str and all(map(str.isascii, children)):
            nodes.strings.extend(children)
            nodes.kinds.extend(bytes([n.STR]) * len(children))
        elif cls is str:
            for child in children:
                self.add_text(child)
        elif cls is int and min(children) >= n.MIN_INT and max(children) <= n.MAX_INT:
            nodes.ints.extend(children)
            nodes.kinds.extend(bytes([n.INT]) * len(children))
        elif cls is int:
            for child in children:
                self.add_int(child)
        else:
            nodes.kinds.extend([_CONSTANTS[child] for child in children])

    def enter(self, container: object, stack: list[Any]) -> None:
        """Open a container, and have it closed when the walk is past its children."""
        id_ = id(container)
        if id_ in self.open:
            raise UnsupportedTypeError(
                f"{self.where()}: the tree contains itself here; a checkpoint holds trees, without cycles"
            )
        if len(self.open) + 1 >= self.limits.depth:
            raise LimitError(
                f"{self.where()}: the tree is deeper than the limit of {self.limits.depth} levels; raise it "
                "with pytreeckpt.limits(depth=…)"
            )
        self.check_size()
        self.open.add(id_)
        stack.append(_Close(id_))

    def other(self, value: Any, cls: type, stack: list[Any]) -> None:
        nodes = self.nodes
        if cls is ArraySource:
            self.add_array(value, value.identity)
        elif cls is bytes:
            nodes.kinds.append(n.BYTES)
            nodes.blobs.append(value)
        elif cls is complex:
            nodes.kinds.append(n.COMPLEX)
            nodes.floats.extend((value.real, value.imag))
        elif cls is set or cls is frozenset:
            self.add_set(value, n.SET if cls is set else n.FROZENSET, stack)
        elif cls is Record or isinstance(value, NamedTupleRecord):
            self.add_object(value, record_expansion(value), stack)
        elif isinstance(value, np.generic) and (scalar := _scalar_array(value)).dtype.type is cls:
            # A scalar is a value: no identity, so it is never shared.
            self.scalars.add(len(self.arrays))
            self.add_array(scalar, None, kind=n.SCALAR)
        else:
            try:
                expansion = self.expand(value)
            except UnsupportedTypeError as error:
                raise UnsupportedTypeError(f"{self.where()}: {error}") from error
            if isinstance(expansion, ArraySource):
                self.add_array(expansion, expansion.identity)
            elif expansion is not None:
                self.add_object(value, expansion, stack)
            else:
                raise UnsupportedTypeError(
                    f"{self.where()}: cannot store {_kind_text(value)}. Leave it out, convert it to plain "
                    "values or arrays, or register its class with pytreeckpt.register_class"
                )

    def add_array(self, array: AnyArray | ArraySource, identity: Hashable, *, kind: int = n.ARRAY) -> None:
        nodes = self.nodes
        known = self.array_ids.get(identity) if identity is not None else None
        if known is None:
            try:
                describe(array.dtype)
            except UnsupportedTypeError as error:
                raise UnsupportedTypeError(f"{self.where()}: {error}") from None
            known = len(self.arrays)
            self.arrays.append(array)
            if identity is not None:
                self.array_ids[identity] = known
        nodes.kinds.append(kind)
        nodes.arrays.append(known)

    def add_set(self, value: Any, kind: int, stack: list[Any]) -> None:
        elements = list(value)
        for element in elements:
            if not is_element(element, self.limits):
                raise UnsupportedTypeError(
                    f"{self.where()}: a {type(value).__name__} holds a {_type_text(type(element))}; elements are "
                    "plain values, and tuples and frozensets of these"
                )
        elements = sorted_elements(elements)
        if len(set(map(equality_form, elements))) != len(elements):
            raise UnsupportedTypeError(
                f"{self.where()}: two elements of this set are the same NaN and cannot be told apart"
            )
        self.enter(value, stack)
        self.nodes.kinds.append(kind)
        self.nodes.counts.append(len(elements))
        stack.extend(reversed(elements))

    def add_object(self, value: object, expansion: Expansion, stack: list[Any]) -> None:
        self.enter(value, stack)
        type_id = self.type_ids.setdefault(expansion.type, len(self.type_ids))
        if type_id == len(self.nodes.types):
            self.check_type(expansion.type)
            self.nodes.types.append(expansion.type)
        if len(expansion.children) != len(expansion.type.fields):
            raise UnsupportedTypeError(
                f"{self.where()}: a {expansion.type.name} has {len(expansion.children)} values for "
                f"{len(expansion.type.fields)} fields"
            )
        self.kept.append(expansion.children)
        self.nodes.kinds.append(n.OBJECT)
        self.nodes.objects.append(type_id)
        stack.extend(reversed(expansion.children))

    def check_type(self, type_: ObjectType) -> None:
        """T-2, which any class that the caller has registered could break."""
        texts = (type_.name, *type_.fields)
        if not all(isinstance(text, str) for text in texts) or not type_.name or len(set(texts[1:])) != len(texts) - 1:
            raise UnsupportedTypeError(
                f"{self.where()}: the fields of a {type_.name} are not distinct texts: {reprlib.repr(type_.fields)}"
            )
        if len(type_.fields) > MAX_FIELDS:
            raise LimitError(
                f"{self.where()}: a {type_.name} has {len(type_.fields)} fields, more than {MAX_FIELDS}; put them in "
                "a dict"
            )
        for text in texts:
            self.check_text(text)

    def where(self) -> str:
        """The path of the node that is about to be added, for an error."""
        path = str(path_at(self.nodes, len(self.nodes.kinds), root=self.root)) or "the root"
        return path if self.root else f"metadata: {path}"


def _scalar_array(value: np.generic) -> AnyArray:
    # numpy makes arrays of at least one character.
    if isinstance(value, np.str_ | np.bytes_) and not value:
        return np.ndarray((), np.dtype((type(value), 0)))
    return np.asarray(value)


def _shown(key: object) -> str:
    try:
        return reprlib.repr(key)
    except (ValueError, RecursionError):
        # An integer of too many digits, or sets too deep in each other.
        return "here"


def _kind_text(value: object) -> str:
    return f"the class {_type_text(value)}" if isinstance(value, type) else f"a {_type_text(type(value))}"


def _type_text(cls: type) -> str:
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
