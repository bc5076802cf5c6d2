"""From what the machine built to a tree: every object in parts becomes what the vocabulary knows, or a record.

Children come before their parents, without recursion, and each once, however often it is referred to.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from pytreeckpt.errors import CorruptionError, LimitError, UnsupportedTypeError
from pytreeckpt.interop.pickle_records import CALL, global_record, mapping, object_record
from pytreeckpt.interop.pickle_values import UNFIT, Global, Instance, Ledger, Persistent, Span, Vocabulary
from pytreeckpt.limits import current_limits
from pytreeckpt.objects import Record

_PLAIN: Final = frozenset([str, int, float, bool, bytes, complex, type(None), type(...)])
_CONTAINERS: Final = frozenset([list, tuple, dict, Instance, Persistent])
_MAX_REWRITES: Final = 4
_NODES_PER_COST: Final = 4


def settle(value: object, vocabulary: Vocabulary, ledger: Ledger) -> Any:
    """The tree of what a machine has built.

    Raises `UnsupportedTypeError` for a value that contains itself, `LimitError` for one that is too deep or whose
    tree would be far larger than the pickle, and `CorruptionError` for what no program writes.
    """
    try:
        return _Settling(vocabulary, ledger).settle(value)
    except MemoryError:
        raise LimitError("the pickle needs more memory than there is") from None


class _Settling:
    """One walk, and what it has made so far."""

    def __init__(self, vocabulary: Vocabulary, ledger: Ledger) -> None:
        self.vocabulary = vocabulary
        self.ledger = ledger
        self.limits = current_limits()
        # Nodes of the trees, which may be far more than objects.
        self.max_nodes = min(self.limits.nodes, _NODES_PER_COST * ledger.allowance)
        self.done: dict[int, Any] = {}
        self.sizes: dict[int, int] = {}
        self.open: dict[int, Any] = {}
        # Ids are of objects that live.
        self.kept: list[object] = []

    def settle(self, root: Any) -> Any:
        if type(root) not in _CONTAINERS:
            return self.public(root)
        stack: list[Any] = [root]
        while stack:
            value = stack.pop()
            if type(value) is _Leave:
                self.leave(value.value)
                continue
            key = id(value)
            if key in self.done:
                continue
            if key in self.open:
                raise UnsupportedTypeError(
                    f"{self.where()}: the pickle holds an object that contains itself here; a tree has no cycles"
                )
            if len(self.open) >= self.limits.depth:
                raise LimitError(
                    f"the pickle is deeper than the limit of {self.limits.depth} levels; raise it with "
                    "pytreeckpt.limits(depth=…)"
                )
            self.open[key] = value
            self.kept.append(value)
            if type(value) is Instance:
                self.rewrite(value)
            stack.append(_Leave(value))
            stack.extend([child for child in _children(value) if type(child) in _CONTAINERS])
        return self.public(self.done[id(root)])

    def rewrite(self, instance: Instance) -> None:
        # One may stand for another; more than a few never do, and each may copy the arguments.
        for _ in range(_MAX_REWRITES):
            callee = instance.callee
            if type(callee) is not Global:
                return
            rewriter = self.vocabulary.rewriters.get((callee.module, callee.name))
            if rewriter is None:
                return
            rewriter(instance)

    def leave(self, value: Any) -> None:
        """All children of a container are settled: settle it."""
        key = id(value)
        children = _children(value)
        self.ledger.spend(len(children))
        size = 1 + len(children)
        for child in children:
            if type(child) in _CONTAINERS:
                size += self.sizes[id(child)] - 1
        if size > self.max_nodes:
            raise LimitError(
                "the pickle refers to the same objects so often that as a tree it would be far larger than the file; "
                "no program writes that by itself"
            )
        self.sizes[key] = size
        cls = type(value)
        if cls is Instance:
            self.done[key] = self.finished(value)
        elif cls is Persistent:
            self.done[key] = self.persistent(value)
        elif cls is list:
            for place, child in enumerate(value):
                if type(child) not in _PLAIN:
                    value[place] = self.public(self.settled(child))
            self.done[key] = value
        elif cls is tuple:
            self.done[key] = tuple(self.public_all(value)) if any(type(each) not in _PLAIN for each in value) else value
        else:
            self.done[key] = self.settled_dict(value)
        del self.open[key]

    def settled(self, value: Any) -> Any:
        """A value whose turn was before: in the form that constructors understand."""
        cls = type(value)
        if cls in _CONTAINERS:
            return self.done[id(value)]
        if cls is Global:
            return self.vocabulary.constants.get((value.module, value.name), value)
        return value

    def public(self, value: Any) -> Any:
        """As part of a tree."""
        cls = type(value)
        if cls is Global:
            known = self.vocabulary.constants.get((value.module, value.name))
            return global_record(value) if known is None else known
        if cls is Span:
            if id(value) not in self.done:
                self.done[id(value)] = value.read()
                self.kept.append(value)
            return self.done[id(value)]
        convert = self.vocabulary.internal.get(cls)
        return value if convert is None else convert(value, self.ledger)

    def public_all(self, values: Iterable[Any]) -> list[Any]:
        return [self.public(self.settled(value)) for value in values]

    def settled_dict(self, value: dict[Any, Any]) -> Any:
        only_texts = True
        for key, item in value.items():
            if type(item) not in _PLAIN:
                value[key] = self.public(self.settled(item))
            only_texts = only_texts and type(key) is str
        if only_texts:
            return value
        return mapping(self.public_all(value), list(value.values()), self.ledger, name="builtins:dict")

    def finished(self, instance: Instance) -> Any:
        """An object, from its settled parts."""
        # Old files of torch refer to classes beside the pickle.
        callee = self.settled(instance.callee)
        finish = None
        if type(callee) is Global:
            finish = self.vocabulary.constructors.get((callee.module, callee.name))
        if finish is None:
            return self.record(instance)
        parts = Instance(
            callee,
            tuple(map(self.settled, instance.args)),
            instance.offset,
            self.settled(instance.keywords),
            [
                tuple(map(self.settled, state)) if type(state) is tuple else self.settled(state)
                for state in instance.states
            ],
            self.public_all(instance.elements),
            self.public_all(instance.pairs),
        )
        try:
            made = finish(parts, self.ledger)
        except CorruptionError as error:
            raise CorruptionError(
                f"the object that is made at byte {instance.offset} of the pickle: {error}", rule=error.rule
            ) from None
        return self.record(instance) if made is UNFIT else made

    def persistent(self, value: Persistent) -> Any:
        lookup = self.vocabulary.persistent
        if lookup is None:
            raise CorruptionError(
                f"byte {value.offset} of the pickle refers to something beside the pickle (a persistent id), which "
                "this kind of file does not have",
                rule="pickle",
            )
        id_ = tuple(map(self.settled, value.id)) if type(value.id) is tuple else self.settled(value.id)
        try:
            return lookup(id_)
        except CorruptionError as error:
            raise CorruptionError(f"byte {value.offset} of the pickle: {error}", rule=error.rule) from None

    def record(self, instance: Instance) -> Record:
        """What stands for an object that nothing else can be made of."""
        callee = self.settled(instance.callee)
        parts: dict[str, Any] = {}
        if instance.args:
            parts["args"] = tuple(self.public_all(instance.args))
        if instance.keywords:
            parts["keywords"] = self.settled(instance.keywords)
        if instance.elements:
            parts["elements"] = self.public_all(instance.elements)
        if instance.pairs:
            flat = self.public_all(instance.pairs)
            parts["items"] = mapping(flat[::2], flat[1::2], self.ledger, name="builtins:dict")
        states = [
            tuple(self.public_all(state)) if type(state) is tuple else self.public(self.settled(state))
            for state in instance.states
        ]
        name = callee.full_name if type(callee) is Global else CALL
        if type(callee) is not Global:
            parts["callee"] = self.public(callee)
        return object_record(name, parts, states, self.ledger)

    def where(self) -> str:
        """The way to what is being settled, for an error."""
        steps = [_step(parent, child) for parent, child in zip(*_pairwise(self.open.values()), strict=True)]
        shown = "".join(steps[:_MAX_STEPS])
        return (shown + ("…" if len(steps) > _MAX_STEPS else "")) or "the root"


_MAX_STEPS: Final = 20


class _Leave:
    """On the stack: all below this container is settled."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


def _pairwise(values: Iterable[Any]) -> tuple[list[Any], list[Any]]:
    every = list(values)
    return every[:-1], every[1:]


def _children(value: Any) -> Sequence[Any]:
    """What a container holds; of tuples that are arguments or a state, what is in them."""
    cls = type(value)
    if cls is list or cls is tuple:
        return value  # type: ignore[no-any-return]  # one of these two
    if cls is dict:
        return [*value, *value.values()]
    if cls is Persistent:
        return value.id if type(value.id) is tuple else (value.id,)
    children: list[Any] = [value.callee, *value.args, *value.elements, *value.pairs]
    if value.keywords is not None:
        children.append(value.keywords)
    for state in value.states:
        children.extend(state if type(state) is tuple else (state,))
    return children


def _step(parent: Any, child: Any) -> str:
    if type(parent) is list or type(parent) is tuple:
        return f"[{next((place for place, item in enumerate(parent) if item is child), '?')}]"
    if type(parent) is dict:
        key = next((key for key, item in parent.items() if item is child), None)
        return f"/{key[:40]}" if type(key) is str else "/?"
    if type(parent) is Instance and type(parent.callee) is Global:
        return f"<{parent.callee.full_name[:80]}>"
    return "<…>"
