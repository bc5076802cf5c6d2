"""From what the machine built to a tree: every object in parts becomes what the vocabulary knows, or a record.

Children come before their parents, without recursion, and each once, however often it is referred to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

from pytreeckpt.errors import CorruptionError, LimitError, UnsupportedTypeError
from pytreeckpt.interop.pickle_records import CALL, global_record, mapping, object_record
from pytreeckpt.interop.pickle_values import UNFIT, Finish, Global, Instance, Ledger, Persistent, Span, Vocabulary
from pytreeckpt.limits import current_limits
from pytreeckpt.objects import Record

_PLAIN: Final = frozenset([str, int, float, bool, bytes, complex, type(None), type(...)])
_TEXTS: Final = frozenset([str])
# What has a turn of its own.
_PARTED: Final = frozenset([list, tuple, dict, Instance, Persistent, Global])
# A tuple of so many, and an object of so many parts on so many levels, is settled at once.
_SHORT: Final = 64
_FEW: Final = 16
_LEVELS: Final = 3
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


class _Meaning(NamedTuple):
    """What the vocabulary has for a name."""

    rewriter: Callable[[Instance], None] | None
    finish: Finish | None


_UNKNOWN: Final = _Meaning(None, None)


class _Opened(NamedTuple):
    """A container whose parts are being settled: how many these are, which of them are settled by themselves, and how
    many nodes the others are.
    """

    value: Any
    n_parts: int
    parted: Sequence[Any]
    n_others: int

    def n_nodes(self, sizes: Mapping[int, int]) -> int:
        """How many nodes it is in the tree, from the sizes of its parts by their ids."""
        return 1 + self.n_others + sum([sizes[id(part)] for part in self.parted])


class _Settling:
    """One walk, and what it has made so far."""

    def __init__(self, vocabulary: Vocabulary, ledger: Ledger) -> None:
        self.vocabulary = vocabulary
        self.ledger = ledger
        self.limits = current_limits()
        # Nodes of the trees, which may be far more than objects.
        self.max_nodes = min(self.limits.nodes, _NODES_PER_COST * ledger.allowance)
        # What names mean, and what became of each value, by their ids.
        self.meanings: dict[int, _Meaning] = {}
        self.done: dict[int, Any] = {}
        self.sizes: dict[int, int] = {}
        # The bytes of spans, which are read once.
        self.contents: dict[int, bytes | bytearray] = {}
        # From the root to what is being settled.
        self.open: dict[int, _Opened] = {}
        # Ids are of objects that live.
        self.kept: list[object] = []

    def settle(self, root: Any) -> Any:
        if type(root) not in _PARTED:
            return self.public(root)
        done, opened, depth = self.done, self.open, self.limits.depth
        stack: list[Any] = [root]
        while stack:
            value = stack[-1]
            key = id(value)
            if key in done:
                stack.pop()
                continue
            if key in opened:
                # All that was above it on the stack, its parts, is done.
                self.leave(value, opened[key].n_parts, opened[key].n_nodes(self.sizes))
                del opened[key]
                continue
            if len(opened) >= depth:
                raise LimitError(
                    f"the pickle is deeper than the limit of {depth} levels; raise it with pytreeckpt.limits(depth=…)"
                )
            if type(value) is Instance:
                self.rewrite(value)
            self.kept.append(value)
            parts = _parts_of(value)
            parted: list[Any] = []
            n_others = 0
            for part in parts:
                cls = type(part)
                if cls is tuple and _is_plain(part):
                    n_others += 1 + len(part)
                elif cls in _PARTED:
                    parted.append(part)
                else:
                    n_others += 1
            ahead = [part for part in parted if id(part) not in done and not self.leave_at_once(part)]
            opened[key] = _Opened(value, len(parts), parted, n_others)
            stack.extend(ahead)
            for part in ahead:
                if id(part) in opened:
                    raise UnsupportedTypeError(
                        f"{self.where()}: the pickle holds an object that contains itself here; a tree has no cycles"
                    )
        return self.public(done[id(root)])

    def rewrite(self, instance: Instance) -> None:
        # One may stand for another; more than a few never do, and each may copy the arguments.
        for _ in range(_MAX_REWRITES):
            rewriter = self.meaning(instance.callee).rewriter
            if rewriter is None:
                return
            rewriter(instance)

    def meaning(self, callee: object) -> _Meaning:
        """What the vocabulary has for a name; for anything else, nothing."""
        found = self.meanings.get(id(callee))
        if found is None:
            found = _UNKNOWN
            if type(callee) is Global:
                name = (callee.module, callee.name)
                found = _Meaning(self.vocabulary.rewriters.get(name), self.vocabulary.constructors.get(name))
            self.meanings[id(callee)] = found
            self.kept.append(callee)
        return found

    def leave_at_once(self, value: Any, levels: int = _LEVELS) -> bool:
        """Settle an object with few arguments and nothing else, if they need no turns of their own: such as a tensor,
        its storage and its hooks. Whether that was so.
        """
        done = self.done
        cls = type(value)
        if cls is Global:
            self.kept.append(value)
            self.leave(value, 0, 1)
            return True
        if len(self.open) + _LEVELS + 1 >= self.limits.depth:
            return False
        if cls is Instance:
            parts = value.args
            if not value.is_bare or len(parts) > _FEW or self.meaning(value.callee).rewriter is not None:
                return False
            callee = value.callee
            if id(callee) not in done and (type(callee) is not Global or not self.leave_at_once(callee, 0)):
                # A call of what another call gives, and that perhaps of another: one of any depth.
                return False
        elif cls is Persistent and type(value.id) is tuple and len(value.id) <= _FEW:
            parts = value.id
        else:
            return False
        n_parts = len(parts) + (cls is Instance)
        size = 1 + n_parts
        for part in parts:
            cls = type(part)
            if cls in _PLAIN:
                continue
            if cls is tuple and _is_plain(part):
                size += len(part)
            elif cls in _PARTED:
                if id(part) not in done and (levels == 0 or not self.leave_at_once(part, levels - 1)):
                    return False
                size += self.sizes[id(part)] - 1
        self.kept.append(value)
        self.leave(value, n_parts, size)
        return True

    def leave(self, value: Any, n_parts: int, size: int) -> None:
        """All parts of a container are settled: settle it. `size`: how many nodes it is in the tree."""
        key = id(value)
        self.ledger.spend(n_parts)
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
        elif cls is dict:
            self.done[key] = self.settled_dict(value)
        elif cls is Global:
            self.done[key] = self.vocabulary.constants.get((value.module, value.name), value)
        elif _PLAIN.issuperset(map(type, value)):
            self.done[key] = value
        elif cls is tuple:
            self.done[key] = tuple(self.public_all(value))
        else:
            value[:] = self.public_all(value)
            self.done[key] = value

    def settled(self, value: Any) -> Any:
        """A value whose turn was before, or that needs none: in the form that constructors understand."""
        return self.done.get(id(value), value)

    def settled_all(self, values: Iterable[Any]) -> tuple[Any, ...]:
        get = self.done.get
        return tuple([get(id(value), value) for value in values])

    def public(self, value: Any) -> Any:
        """As part of a tree."""
        cls = type(value)
        if cls is Global:
            return global_record(value)
        if cls is Span:
            if id(value) not in self.contents:
                self.contents[id(value)] = value.read()
                self.kept.append(value)
            return self.contents[id(value)]
        convert = self.vocabulary.internal.get(cls)
        return value if convert is None else convert(value, self.ledger)

    def public_all(self, values: Iterable[Any]) -> list[Any]:
        return [value if type(value) in _PLAIN else self.public(self.settled(value)) for value in values]

    def settled_dict(self, value: dict[Any, Any]) -> Any:
        for key, item in value.items():
            if type(item) not in _PLAIN:
                value[key] = self.public(self.settled(item))
        if _TEXTS.issuperset(map(type, value)):
            return value
        return mapping(self.public_all(value), list(value.values()), self.ledger, name="builtins:dict")

    def finished(self, instance: Instance) -> Any:
        """An object, from its settled parts."""
        # Old files of torch refer to classes beside the pickle.
        callee = self.settled(instance.callee)
        finish = self.meaning(callee).finish
        if finish is None:
            return self.record(instance)
        parts = Instance(callee, self.settled_all(instance.args), instance.offset)
        if not instance.is_bare:
            parts.keywords = self.settled(instance.keywords)
            parts.states = [
                self.settled_all(state) if type(state) is tuple else self.settled(state) for state in instance.states
            ]
            parts.elements = self.public_all(instance.elements)
            parts.pairs = self.public_all(instance.pairs)
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
        id_ = self.settled_all(value.id) if type(value.id) is tuple else self.settled(value.id)
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
        steps = [_step(parent.value, child.value) for parent, child in pairwise(self.open.values())]
        shown = "".join(steps[:_MAX_STEPS])
        return (shown + ("…" if len(steps) > _MAX_STEPS else "")) or "the root"


_MAX_STEPS: Final = 20


def _is_plain(value: tuple[Any, ...]) -> bool:
    """Whether a tuple is short, and nothing in it has to be settled: such as the shape of a tensor."""
    return len(value) <= _SHORT and _PLAIN.issuperset(map(type, value))


def _parts_of(value: Any) -> Sequence[Any]:
    """What a container holds; of tuples that are arguments or a state, what is in them."""
    cls = type(value)
    if cls is Global:
        return ()
    if cls is list or cls is tuple:
        return value  # type: ignore[no-any-return]  # one of these two
    if cls is dict:
        return [*value, *value.values()]
    if cls is Persistent:
        return value.id if type(value.id) is tuple else (value.id,)
    if value.is_bare:
        return (value.callee, *value.args)
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
