"""Two trees side by side: what stands at the same path of both is paired, and what differs in structure is noted.

Children are paired by their keys, by their type as well as their value, so that `{1: x}` and `{True: x}` have none in
common. Nothing recurses, whatever the depth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from pytreeckpt import nodes as n
from pytreeckpt.keys import key_string
from pytreeckpt.operations.diff_records import Change, Kind, Part
from pytreeckpt.operations.diff_trees import Unwrapped, VisitedTree
from pytreeckpt.paths import DictKey, Field, Path, Step


class ArrayPair(NamedTuple):
    """Arrays at the same path: their places (of their wrappers) and numbers. `order`: see `Alignment`; `leaf`: the
    order of the leaf that they are, or belong to.
    """

    order: int
    part: Part
    place_a: int
    place_b: int
    array_a: int
    array_b: int
    leaf: int | None


class Single(NamedTuple):
    """A leaf that only one tree has."""

    order: int
    part: Part
    place: int


@dataclass(slots=True)
class Alignment:
    """Two trees side by side. Everything has an `order`, which is that of the paths of both together.

    `n_leaves`: of each, those that were asked for. `n_common`: leaves at the same path of both; `changed`: those of
    them, by their orders, of which a change is known. `content_only`: what arrays, values and containers hold is
    compared, and not how it is held: types of wrappers and containers, attributes, orders and ties.
    """

    a: VisitedTree
    b: VisitedTree
    content_only: bool = False
    changes: list[tuple[int, Change]] = field(default_factory=list)
    arrays: list[ArrayPair] = field(default_factory=list)
    removed: list[Single] = field(default_factory=list)
    added: list[Single] = field(default_factory=list)
    n_leaves: list[int] = field(default_factory=lambda: [0, 0])
    n_common: int = 0
    changed: set[int] = field(default_factory=set)


class _Task(NamedTuple):
    """Places to look at; `_NOWHERE` in the tree that has none. `path` and `leaf`: of what an attribute belongs to."""

    a: int
    b: int
    path: tuple[Step, ...] | None = None
    leaf: int | None = None


_NOWHERE: Final = -1

Close = Callable[[object, object], bool]
"""Whether two values of one type that differ are numbers within the tolerance."""


def align(
    a: VisitedTree,
    b: VisitedTree,
    *,
    part: Part,
    chosen: Callable[[Path], bool] | None,
    close: Close,
    content_only: bool = False,
) -> Alignment:
    """Compare two trees in all but the items of their arrays, at the paths that are `chosen`."""
    walk = _Walk(Alignment(a, b, content_only), part, chosen, close)
    walk.run()
    return walk.found


def compare_leaf(found: Alignment, place: int, close: Close) -> None:
    """Compare a leaf of the tree, no array, that is at one place of both, whose wrappers are the same."""
    outer = found.a.outermost(place)
    _Walk(found, "tree", None, close, order=place).both(_Task(outer, outer))


class _Pair(NamedTuple):
    """What stands at the same path of both. `takes`: it is compared (None: see `taken`); `leaf`: the leaf that it is or
    belongs to.
    """

    task: _Task
    a: Unwrapped
    b: Unwrapped
    takes: bool | None
    leaf: int | None


@dataclass(slots=True)
class _Walk:
    found: Alignment
    part: Part
    chosen: Callable[[Path], bool] | None
    close: Close
    order: int = 0
    stack: list[_Task] = field(default_factory=lambda: [_Task(0, 0)])

    def run(self) -> None:
        while self.stack:
            task = self.stack.pop()
            self.order += 1
            if task.b == _NOWHERE:
                self.found.n_leaves[0] += self.single(task, self.found.a, task.a, self.found.removed)
            elif task.a == _NOWHERE:
                self.found.n_leaves[1] += self.single(task, self.found.b, task.b, self.found.added)
            else:
                self.both(task)

    def single(self, task: _Task, tree: VisitedTree, top: int, found: list[Single]) -> int:
        """Note the leaves at and below a place, and how many of the tree they are."""
        n_before = len(found)
        for place in tree.leaves(top, attributes=task.path is not None):
            if self.takes(task, tree.visits[place].path):
                found.append(Single(self.order, self.part_of(task), place))
            self.order += 1
        return len(found) - n_before if task.path is None else 0

    def both(self, task: _Task) -> None:
        a, b = self.found.a, self.found.b
        of_a, of_b = a.unwrap(task.a), b.unwrap(task.b)
        visit_a, visit_b = a.visits[of_a.place], b.visits[of_b.place]
        leaf = task.leaf
        # Of containers it is found out when there is something to say of them.
        takes = self.takes(task, visit_a.path) if visit_a.is_leaf or visit_b.is_leaf else None
        if takes and task.path is None:
            self.found.n_leaves[0] += visit_a.is_leaf
            self.found.n_leaves[1] += visit_b.is_leaf
            if visit_a.is_leaf and visit_b.is_leaf:
                self.found.n_common += 1
                leaf = self.order
        pair = _Pair(task, of_a, of_b, takes, leaf)
        is_one_type = a.type_of(of_a) == b.type_of(of_b)
        if self.found.content_only:
            is_one_type = is_one_type or _hold_alike(a, of_a.place, b, of_b.place)
        if not is_one_type:
            self.change(pair, "type")
        self.inner(pair, is_one_type=is_one_type)
        if self.found.content_only:
            return
        are_alike = [type_.name for type_ in of_a.types] == [type_.name for type_ in of_b.types]
        if of_a.attributes and are_alike and self.taken(pair):
            self.attributes(pair)

    def inner(self, pair: _Pair, *, is_one_type: bool) -> None:
        """Compare what is inside of the wrappers."""
        a, b = self.found.a, self.found.b
        place_a, place_b = pair.a.place, pair.b.place
        kind = a.visits[place_a].kind if a.visits[place_a].kind == b.visits[place_b].kind else _NOWHERE
        if kind == n.ARRAY:
            if pair.takes:
                task, numbers = pair.task, (a.array_number(place_a), b.array_number(place_b))
                found = ArrayPair(self.order, self.part_of(task), task.a, task.b, *numbers, pair.leaf)
                self.found.arrays.append(found)
        elif kind == n.SCALAR:
            self.scalars(pair)
        elif a.is_value(place_a) and b.is_value(place_b):
            if pair.takes and is_one_type and a.token(place_a) != b.token(place_b):
                self.change(pair, "value", close=self.close(a.value(place_a), b.value(place_b)))
        elif _family(a, place_a) == _family(b, place_b) != "":
            self.children(pair)
        else:
            below = [_Task(place, _NOWHERE, pair.task.path, pair.task.leaf) for place in a.children(place_a)]
            below += [_Task(_NOWHERE, place, pair.task.path, pair.task.leaf) for place in b.children(place_b)]
            self.stack += reversed(below)

    def scalars(self, pair: _Pair) -> None:
        a, b = self.found.a, self.found.b
        if not pair.takes:
            return
        if a.descriptor(pair.a.place) != b.descriptor(pair.b.place):
            self.change(pair, "dtype")
        elif a.scalar_bytes(pair.a.place) != b.scalar_bytes(pair.b.place):
            values = a.side(pair.a.place).value, b.side(pair.b.place).value
            self.change(pair, "value", close=self.close(*values))

    def children(self, pair: _Pair) -> None:
        """Pair the children of two containers of one family by their keys."""
        a, b = self.found.a, self.found.b
        path, leaf = pair.task.path, pair.task.leaf
        below_a, below_b = a.children(pair.a.place), b.children(pair.b.place)
        keys_a, keys_b = _keys(a, below_a), _keys(b, below_b)
        if keys_a == keys_b:
            tasks = [_Task(*places, path, leaf) for places in zip(below_a, below_b, strict=True)]
        else:
            by_key = dict(zip(keys_b, below_b, strict=True))
            in_both = [key for key in keys_a if key in by_key]
            known = set(in_both)
            if in_both != [key for key in keys_b if key in known] and not self.found.content_only:
                self.change(pair, "order")
            tasks = [
                _Task(place, by_key.get(key, _NOWHERE), path, leaf) for key, place in zip(keys_a, below_a, strict=True)
            ]
            tasks += [_Task(_NOWHERE, place, path, leaf) for key, place in by_key.items() if key not in known]
        self.stack += reversed(tasks)

    def attributes(self, pair: _Pair) -> None:
        """Pair the attributes of wrappers of the same types by their names."""
        a, b = self.found.a, self.found.b
        path = a.visits[pair.a.place].path if pair.task.path is None else pair.task.path
        # Of several wrappers, each may have one of the same name.
        keys_a, keys_b = (_numbered(_keys(tree, of.attributes)) for tree, of in ((a, pair.a), (b, pair.b)))
        by_key = dict(zip(keys_b, pair.b.attributes, strict=True))
        tasks = [
            _Task(place, by_key.pop(key, _NOWHERE), path, pair.leaf)
            for key, place in zip(keys_a, pair.a.attributes, strict=True)
        ]
        tasks += [_Task(_NOWHERE, place, path, pair.leaf) for place in by_key.values()]
        self.stack += reversed(tasks)

    def takes(self, task: _Task, path: tuple[Step, ...]) -> bool:
        """Whether the leaf at a path is compared. Attributes are if what they belong to is."""
        return self.chosen is None or task.path is not None or self.chosen(Path(path))

    def taken(self, pair: _Pair) -> bool:
        """Whether a pair is compared: of containers, whether all leaves of both are."""
        if pair.takes is not None or self.chosen is None or pair.task.path is not None:
            return pair.takes is not False
        sides = ((self.found.a, pair.a.place), (self.found.b, pair.b.place))
        paths = (tree.visits[leaf].path for tree, top in sides for leaf in tree.leaves(top, attributes=False))
        return all(self.chosen(Path(path)) for path in paths)

    def part_of(self, task: _Task) -> Part:
        return self.part if task.path is None else "attribute"

    def change(self, pair: _Pair, kind: Kind, *, close: bool = False) -> None:
        if not self.taken(pair):
            return
        a, b, task = self.found.a, self.found.b, pair.task
        path = Path(a.visits[task.a].path)
        change = Change(path, kind, self.part_of(task), a.side(task.a), b.side(task.b), within_tolerance=close)
        self.found.changes.append((self.order, change))
        # Another order is one of the container, and not of a leaf.
        if pair.leaf is not None and kind != "order" and not close:
            self.found.changed.add(pair.leaf)


def _hold_alike(a: VisitedTree, place_a: int, b: VisitedTree, place_b: int) -> bool:
    """Whether what is inside of the wrappers can be compared: two arrays, containers of one family, or values of one
    type.
    """
    if a.is_value(place_a) or b.is_value(place_b):
        return a.type_of(Unwrapped((), (), place_a)) == b.type_of(Unwrapped((), (), place_b))
    family = _family(a, place_a)
    return family == _family(b, place_b) and (family != "" or a.visits[place_a].kind == b.visits[place_b].kind)


def _family(tree: VisitedTree, place: int) -> str:
    """Containers of one family have the same sort of keys."""
    kind = tree.visits[place].kind
    if kind in {n.LIST, n.TUPLE}:
        return "items"
    if kind == n.OBJECT:
        return "" if tree.is_value(place) else "fields"
    return "keys" if kind == n.DICT else ""


def _keys(tree: VisitedTree, places: Sequence[int]) -> list[object]:
    """The last steps of the paths of these places, in a form that compares by type and bits."""
    return [_key(tree.visits[place].path[-1]) for place in places]


def _numbered(keys: Sequence[object]) -> list[tuple[object, int]]:
    return [(key, keys[:place].count(key)) for place, key in enumerate(keys)]


def _key(step: Step) -> object:
    if isinstance(step, DictKey):
        return step.key if type(step.key) is str else key_string(step.key)
    return (step.name,) if isinstance(step, Field) else step.index
