"""What stands on the stack of the pickle machine beside plain values: names, objects still in parts, and bytes that
were left in the file. All of it is data; nothing is looked up, imported or called.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pytreeckpt.errors import LimitError
from pytreeckpt.reading import RangedSource, read


@dataclass(frozen=True, slots=True)
class Global:
    """A class or function that the pickle names."""

    module: str
    name: str

    @property
    def full_name(self) -> str:
        """`module:qualified name`, as records are called."""
        return f"{self.module}:{self.name}"


@dataclass(slots=True, eq=False)
class Instance:
    """An object in parts: what the pickle would have called, with what, and what it would have put in afterwards.

    `offset`: where in the pickle it is made. `states`: what BUILD gives it; `elements`: what APPENDS or ADDITEMS do;
    `pairs`: keys and values of SETITEMS by turns. Most have none of these, and no lists for them either.
    """

    callee: object
    args: tuple[Any, ...]
    offset: int
    keywords: dict[Any, Any] | None = None
    states: list[Any] | tuple[Any, ...] = ()
    elements: list[Any] | tuple[Any, ...] = ()
    pairs: list[Any] | tuple[Any, ...] = ()

    @property
    def is_bare(self) -> bool:
        """Whether there is nothing but positional arguments."""
        return not (self.states or self.keywords or self.elements or self.pairs)

    def add_state(self, state: object) -> None:
        """BUILD."""
        if isinstance(self.states, tuple):
            self.states = []
        self.states.append(state)

    def add_elements(self, values: list[Any]) -> None:
        """APPENDS and ADDITEMS."""
        if isinstance(self.elements, tuple):
            self.elements = []
        self.elements.extend(values)

    def add_pairs(self, items: list[Any]) -> None:
        """SETITEMS."""
        if isinstance(self.pairs, tuple):
            self.pairs = []
        self.pairs.extend(items)


@dataclass(frozen=True, slots=True, eq=False)
class Persistent:
    """A reference to something beside the pickle, such as a storage of torch."""

    id: object
    offset: int


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """Bytes, or a bytearray, of the pickle that were left where they are."""

    source: RangedSource
    start: int
    nbytes: int
    is_array: bool = False

    def read(self) -> bytes | bytearray:
        """All of them."""
        found = read(self.source, self.start, self.nbytes)
        return found if self.is_array else bytes(found)


UNFIT: Final = object()
"""What a constructor gives for parts that it makes nothing of: the object then becomes a record."""


@dataclass(slots=True, eq=False)
class Ledger:
    """What reading one pickle may still cost, and what is to be said about it.

    Each copy of something that the pickle holds once is paid for, so that a small pickle that refers to the same
    large thing over and over ends in an error rather than in a long wait.
    """

    allowance: int
    classes: Counter[str] = field(default_factory=Counter)
    remarks: Counter[str] = field(default_factory=Counter)

    def spend(self, cost: int) -> None:
        """Pay for `cost` items or bytes. Raises `LimitError` when there is nothing left."""
        self.allowance -= cost
        if self.allowance < 0:
            raise LimitError(
                "the pickle is small for what it asks for: it refers to the same parts so often that reading it would "
                "take very long, which no program writes by itself"
            )

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to say, for people."""
        shown = [
            f"{_times(count, 'object')} of {name} became {'a record' if count == 1 else 'records'}"
            for name, count in self.classes.most_common(_MAX_NOTES)
        ]
        if len(self.classes) > _MAX_NOTES:
            shown.append(f"objects of {len(self.classes) - _MAX_NOTES} other classes became records")
        return (*shown, *(f"{remark} ({_times(count, 'time')})" for remark, count in sorted(self.remarks.items())))


_MAX_NOTES: Final = 20


def _times(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


Finish = Callable[[Instance, Ledger], object]
"""Makes an object of its parts, which are settled already, or gives `UNFIT`."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The closed table of what names mean. Whatever is not in it becomes a record.

    `constants`: names that stand for a value. `constructors`: how the objects of a name are made of their parts.
    `rewriters`: names that stand for another call than their own, which they put into the instance. `persistent`:
    what a persistent id refers to. `internal`: how values that only constructors understand become part of a tree.
    """

    constants: Mapping[tuple[str, str], object]
    constructors: Mapping[tuple[str, str], Finish]
    rewriters: Mapping[tuple[str, str], Callable[[Instance], None]]
    internal: Mapping[type, Callable[[Any, Ledger], object]] = field(default_factory=dict)
    persistent: Callable[[object], object] | None = None
