"""The machine of pickle, without anything that acts: its stack, its memo, and objects in parts.

A name is only kept (`Global`), and what would be called is written down (`Instance`): settling makes of it what the
closed vocabulary knows. The time that the machine takes and the memory that it fills are linear in the pickle: there
are no copies but of references that the pickle itself put on the stack, and keys are hashed only up to a budget.
"""

from __future__ import annotations

from typing import Any, Final

from pytreeckpt.errors import CorruptionError, LimitError
from pytreeckpt.interop.pickle_opcodes import Feed
from pytreeckpt.interop.pickle_values import Global, Instance, Ledger
from pytreeckpt.limits import current_limits

# As protocols 0 to 2 call them, which are those of Python 2.
_RENAMED: Final = {"__builtin__": "builtins", "copy_reg": "copyreg"}
# What reading a pickle may cost: so much, and so much more for each of its bytes.
_FREE: Final = 1 << 18
_PER_BYTE: Final = 16
# An object in parts, and what is made of it, takes as much memory as so many lists or tuples.
PER_INSTANCE: Final = 4
# Integers below are their own hashes; above, and in floats and tuples, equal hashes can be made at will.
_OWN_HASH: Final = (1 << 61) - 1
_MAX_SAME_HASH: Final = 256
_MAX_PARTS: Final = 1 << 17


class Machine:
    """One run over one pickle."""

    __slots__ = (
        "_crowds",
        "_kept",
        "_made",
        "_most",
        "_paid",
        "_per_byte",
        "feed",
        "fence",
        "ledger",
        "marks",
        "memo",
        "offset",
        "stack",
    )

    def __init__(self, feed: Feed, ledger: Ledger | None = None) -> None:
        self.feed = feed
        # One that is given pays for all of it.
        self._per_byte = _PER_BYTE if ledger is None else 0
        self.ledger = Ledger(_FREE) if ledger is None else ledger
        self.stack: list[Any] = []
        # Where marks are on the stack: the last one, and those before it.
        self.fence = 0
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.offset = feed.position
        self._crowds: dict[tuple[int, int], int] = {}
        self._kept: list[object] = []
        self._paid = feed.position
        self._made = 0
        self._most = current_limits().nodes

    def count(self, made: int) -> None:
        """Count containers and names that were made, and objects in parts, `PER_INSTANCE` each. Raises `LimitError` for
        more of these, or of marks or of what is remembered, than a tree may have nodes: a byte of a pickle is enough to
        make hundreds in memory.
        """
        self._made += made
        if self._made > self._most or len(self.memo) > self._most or len(self.marks) > self._most:
            raise LimitError(
                f"the pickle makes more objects than there may be nodes of a tree ({self._most}); raise the limit with "
                "pytreeckpt.limits(nodes=…)"
            )

    def make(self, container: object) -> None:
        """Put a new container, or name, on the stack."""
        self.count(1)
        self.stack.append(container)

    def pay(self) -> None:
        """The longer the pickle, the more it may cost."""
        self.ledger.allowance += self._per_byte * (self.feed.position - self._paid)
        self._paid = self.feed.position

    def last(self) -> Any:
        """The only value on the stack."""
        value = self.pop()
        self.pay()
        if self.stack or self.marks:
            raise CorruptionError(f"{len(self.stack)} more values are left on the stack", rule="pickle")
        return value

    # The stack. What is below the last mark is out of reach.

    def push(self, value: object) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def pop(self) -> Any:
        """Take the value on top."""
        if len(self.stack) <= self.fence:
            self.need(1)
        return self.stack.pop()

    def need(self, count: int) -> None:
        """Raise `CorruptionError` if there are fewer values above the last mark."""
        have = len(self.stack) - self.fence
        if have < count:
            raise CorruptionError(f"the stack has {have} values here, and {count} are needed", rule="pickle")

    def top(self) -> Any:
        """The value on top, which stays."""
        if len(self.stack) <= self.fence:
            self.need(1)
        return self.stack[-1]

    def mark(self) -> None:
        """Put a mark on the stack."""
        self.marks.append(self.fence)
        self.fence = len(self.stack)

    def pop_mark(self) -> list[Any]:
        """Take all above the last mark, and the mark."""
        if not self.marks:
            raise CorruptionError("there is no mark on the stack", rule="pickle")
        start = self.fence
        self.fence = self.marks.pop()
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def remember(self, index: int) -> None:
        """Put the value on top into the memo."""
        if len(self.stack) <= self.fence:
            self.need(1)
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        """Put a value of the memo on the stack."""
        if index not in self.memo:
            raise CorruptionError(f"there is nothing at {index} in the memo", rule="pickle")
        self.stack.append(self.memo[index])

    # Objects, in parts.

    def call(self, callee: object, args: object, keywords: object = None) -> None:
        """Write down a call."""
        if type(args) is not tuple:
            raise CorruptionError(f"the arguments are a {type(args).__name__}, not a tuple", rule="pickle")
        if keywords is not None and type(keywords) is not dict:
            raise CorruptionError(f"the keywords are a {type(keywords).__name__}, not a dict", rule="pickle")
        self.count(PER_INSTANCE)
        self.stack.append(Instance(callee, args, self.offset, keywords or None))

    def name(self, module: object, name: object) -> Global:
        """A name, as a value."""
        if type(module) is not str or type(name) is not str:
            raise CorruptionError("the name is not made of two texts", rule="pickle")
        if not module.isascii() or not name.isascii():
            try:
                (module + name).encode()
            except UnicodeEncodeError:
                raise CorruptionError("the name has a lone surrogate in it", rule="pickle") from None
        return Global(_RENAMED.get(module, module), name)

    def append(self, values: list[Any]) -> None:
        """Add to the list on top of the stack."""
        target = self.top()
        if type(target) is list:
            target.extend(values)
        elif type(target) is Instance:
            target.add_elements(values)
        else:
            raise CorruptionError(f"a {kind_of(target)} takes no items", rule="pickle")

    def set_items(self, items: list[Any]) -> None:
        """Set keys and values, by turns, of the dict on top of the stack."""
        target = self.top()
        if len(items) % 2:
            raise CorruptionError("a key is without its value", rule="pickle")
        if type(target) is Instance:
            target.add_pairs(items)
            return
        if type(target) is not dict:
            raise CorruptionError(f"a {kind_of(target)} takes no keys", rule="pickle")
        for place in range(0, len(items), 2):
            key = items[place]
            if type(key) is not str:
                self.check_key(target, key)
            target[key] = items[place + 1]

    def check_key(self, target: dict[Any, Any], key: object) -> None:
        """Raise an error for a key that has no hash, or would take long to be hashed or found."""
        if key is None or (isinstance(key, int) and -_OWN_HASH < key < _OWN_HASH):
            return
        self.pay()
        self.ledger.spend(_weight(key))
        crowd = (id(target), hash(key))
        # As long as it is counted, no other dict may have its id.
        self._kept.append(target)
        self._crowds[crowd] = count = self._crowds.get(crowd, 0) + 1
        if count > _MAX_SAME_HASH:
            raise LimitError(f"more than {_MAX_SAME_HASH} keys of a dict have the same hash")

    def build(self) -> None:
        """BUILD: give the object on top its state."""
        state = self.pop()
        target = self.top()
        if type(target) is not Instance:
            raise CorruptionError(f"a {kind_of(target)} takes no state", rule="pickle")
        target.add_state(state)

    def new_dict(self, items: list[Any]) -> None:
        """DICT: a dict of keys and values by turns."""
        self.make({})
        self.set_items(items)


def kind_of(value: object) -> str:
    """What a value is, for an error."""
    return "name" if type(value) is Global else type(value).__name__


def _weight(key: object) -> int:
    """What hashing a key costs. Raises `CorruptionError` for what has no hash, `LimitError` for what nests deep."""
    max_depth = current_limits().key_depth
    weight = 0
    pending: list[tuple[Any, int]] = [(key, 1)]
    while pending:
        item, depth = pending.pop()
        weight += 1
        if weight > _MAX_PARTS:
            raise LimitError(f"a key has more than {_MAX_PARTS} parts")
        cls = type(item)
        if cls is tuple:
            if depth > max_depth:
                raise LimitError(
                    f"a key nests deeper than the limit of {max_depth}; raise it with pytreeckpt.limits(key_depth=…)"
                )
            pending.extend((part, depth + 1) for part in item)
        elif cls is int:
            weight += item.bit_length() // 64
        elif cls in _UNHASHABLE:
            raise CorruptionError(f"a {cls.__name__} is the key of a dict, or in one", rule="pickle")
    return weight


_UNHASHABLE: Final = frozenset([list, dict, bytearray])
