"""A tree like a given one with other leaves, and a tree of plain dicts from leaves by their paths."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from pytreeckpt.adapters import Adapter, active_adapters
from pytreeckpt.arrays import AnyArray
from pytreeckpt.build import Builder
from pytreeckpt.convert.leaves import children_of, leaf_at, plain_path
from pytreeckpt.errors import UnsupportedTypeError
from pytreeckpt.expand import make_expand
from pytreeckpt.flatten import Expand
from pytreeckpt.objects import ClassKind, Expansion
from pytreeckpt.paths import DictKey, Field, Index, Path, Step
from pytreeckpt.references import ArrayRef
from pytreeckpt.template import is_number, number_for

Place = Callable[[Path, Any], object]


def rebuilt(tree: object, arrays: Mapping[Path, AnyArray], *, to: str = "auto") -> Any:
    """`tree` with these arrays in place of its leaves: each as the leaf was, an array of the same framework on the same
    device, or the same kind of number; `to`: or all as another framework's. Leaves without one stay as they are.
    """
    by_path = {plain_path(path): array for path, array in arrays.items()}
    placing = _Placing(to)

    def place(path: Path, value: object) -> object:
        array = by_path.get(plain_path(path))
        return value if array is None else placing.leaf(value, array)

    return mapped(tree, place)


def mapped(tree: object, place: Place) -> Any:
    """The tree with what `place` gives for the path and value of each leaf; containers of which nothing changes are
    the same objects.
    """
    adapters = active_adapters()
    expand = make_expand()
    # Children before parents: what is done when all of them are there is a frame with a function.
    done: list[Any] = []
    stack: list[tuple[Any, tuple[Step, ...] | Callable[[], None]]] = [(tree, ())]
    while stack:
        value, path = stack.pop()
        if callable(path):
            path()
            continue
        # Abstract leaves cannot be expanded.
        is_leaf = leaf_at(Path(), value, adapters, expand) is not None
        children = None if is_leaf else children_of(value, expand)
        if children is None:
            done.append(place(Path(path), value))
        elif not children:
            done.append(value)
        else:
            stack.append((None, _finisher(done, value, children, expand)))
            stack.extend((child, path if step is None else (*path, step)) for step, child in reversed(children))
    return done[0]


def _finisher(
    done: list[Any], value: Any, children: Sequence[tuple[Step | None, object]], expand: Expand
) -> Callable[[], None]:
    def finish() -> None:
        new = done[-len(children) :]
        del done[-len(children) :]
        if all(a is b for a, (_, b) in zip(new, children, strict=True)):
            done.append(value)
        elif type(value) is dict:
            done.append(dict(zip(value, new, strict=True)))
        elif type(value) in {list, tuple}:
            done.append(type(value)(new))
        else:
            done.append(_rebuilt(value, expand, new))

    return finish


def _rebuilt(value: object, expand: Expand, new: Sequence[Any]) -> object:
    expansion = expand(value)
    if not isinstance(expansion, Expansion) or expansion.rebuild is None:
        raise UnsupportedTypeError(f"a {type(value).__name__} cannot be made anew")
    if expansion.type.class_kind is ClassKind.WRAPPER:
        return expansion.rebuild([new[0], *expansion.children[1:]])
    return expansion.rebuild(new)


_MAX_GAPS: Final = 16


class _Placing:
    """Puts arrays where leaves were: one array for leaves that were tied, and for others memory of their own."""

    def __init__(self, to: str) -> None:
        self.builder = Builder(to, ())
        self.adapters: list[Adapter] = active_adapters()
        self.expand = make_expand()
        self.placed: dict[int, dict[Hashable, object]] = {}
        # Their ids are to stay theirs.
        self.kept: list[AnyArray] = []

    def leaf(self, value: Any, array: AnyArray) -> object:
        leaf = leaf_at(Path(), value, self.adapters, self.expand)
        tied = self.placed.setdefault(id(array), {})
        identity = None if leaf is None else leaf.identity
        if identity is None or identity not in tied:
            self.kept.append(array)
            # In C order, and no part of a larger array, all of which it would keep alive.
            own = array if _is_whole(array) and not tied else np.array(array, order="C")
            tied[identity if identity is not None else object()] = found = self._placed(value, own)
            return found
        return tied[identity]

    def _placed(self, value: Any, array: AnyArray) -> object:
        if self.builder.to != "auto":
            return self.builder.leaf(array)
        if isinstance(value, ArrayRef):
            if value.type is None:
                return array
            return self.builder.build_object(value.type, [array, *value.attributes])
        if isinstance(value, np.ndarray):
            return array
        if is_number(value):
            return number_for(value, array) if array.ndim == 0 else array
        for adapter in self.adapters:
            template = adapter.template(value)
            if template is not None:
                return template.place(array)
        return array


def _is_whole(array: AnyArray) -> bool:
    return array.flags.c_contiguous and array.flags.owndata


def nested(arrays: Mapping[Path, AnyArray], *, to: str = "numpy") -> Any:
    """A tree of dicts with these leaves; steps that are indices are keys of lists, where all of a level are, with None
    where nothing is.
    """
    builder = Builder(to, ())
    root: dict[Any, Any] = {}
    for path, array in arrays.items():
        at = root
        for step in path[:-1]:
            at = at.setdefault(_key(step), {})
        at[_key(path[-1])] = builder.leaf(np.array(array, order="C"))
    return _with_lists(root)


def _key(step: Step) -> Any:
    match step:
        case DictKey(key):
            return key
        case Field(name):
            return name
    return step


def _with_lists(root: Any) -> Any:
    if not isinstance(root, dict):
        return root
    items = {key: _with_lists(value) for key, value in root.items()}
    numbers = {key.index: item for key, item in items.items() if isinstance(key, Index)}
    # A document may have any numbers.
    if len(numbers) < len(items) or not numbers or max(numbers) >= len(numbers) * _MAX_GAPS:
        return {_index(key): item for key, item in items.items()}
    return [numbers.get(index) for index in range(max(numbers) + 1)]


def _index(key: Any) -> Any:
    return key.index if isinstance(key, Index) else key
