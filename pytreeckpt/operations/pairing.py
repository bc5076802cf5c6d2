"""Two trees of one structure, leaf by leaf: what stands at the same path in both, and the first of them with other
leaves.

Containers are the same if their children have the same names: a dict is as good as an OrderedDict, a FrozenDict or any
other mapping, and a list as a tuple, because which of them a program has at hand is a matter of its libraries.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, Final

import numpy as np

from pytreeckpt.adapters import Blend
from pytreeckpt.errors import LimitError, UnsupportedTypeError
from pytreeckpt.expand import make_expand
from pytreeckpt.limits import current_limits
from pytreeckpt.objects import ClassKind, Expansion, is_atomic
from pytreeckpt.paths import DictKey, Field, Index, Path, Step

_PLAIN: Final = (str, bytes, bool, int, float, complex, type(None), type(...), np.generic, set, frozenset)

_Rebuild = Callable[[Sequence[Any]], object]
_Level = tuple[Sequence[tuple[Step, object]], _Rebuild]


class Pairs:
    """The pairs of two trees. `leaves`: of both, and what blends them, or None for plain values; `different`: texts on
    what differs, with its path.
    """

    def __init__(self, known: Sequence[Blend], first: object, second: object) -> None:
        """Take both apart. Raises `UnsupportedTypeError` for what cannot be looked into."""
        self._known = known
        self._expand = make_expand()
        # In preorder: a container of the first, its children and how it is made of others; or a leaf.
        self._nodes: list[tuple[object, Sequence[object], _Rebuild | None]] = []
        self.leaves: list[tuple[Any, Any, Blend | None]] = []
        self.different: list[str] = []
        stack: list[tuple[object, object, tuple[Step, ...]]] = [(first, second, ())]
        while stack:
            a, b, path = stack.pop()
            if len(path) >= current_limits().depth:
                raise LimitError(
                    f"the average is deeper than the limit of {current_limits().depth} levels, or contains itself; "
                    "raise it with pytreeckpt.limits(depth=…)"
                )
            of = self._blend_of(a)
            level = None if of is not None else self._level(a, path)
            other = None if self._blend_of(b) is not None else self._level(b, path)
            if level is None or other is None:
                problem = "a container and a leaf" if (level is None) != (other is None) else _problem(of, a, b)
                if problem:
                    self.different.append(f"{_text(path)}: {problem}")
                self._nodes.append((a, (), None))
                self.leaves.append((a, b, of))
                continue
            children, rebuild = level
            twins = dict(other[0])
            if len(twins) != len(children) or any(step not in twins for step, _ in children):
                self.different.append(f"{_text(path)}: {_other_names(dict(children), twins)}")
                continue
            self._nodes.append((a, [child for _, child in children], rebuild))
            # By their names: what has been through JAX has them in another order.
            stack.extend((child, twins[step], (*path, step)) for step, child in reversed(children))

    def _blend_of(self, value: object) -> Blend | None:
        return next((each for each in self._known if each.kind(value) is not None), None)

    def _level(self, value: Any, path: tuple[Step, ...]) -> _Level | None:
        """The children of a container with their steps, and how it is made of others; None for a leaf."""
        cls = type(value)
        if cls is list or cls is tuple:
            return _items(value), cls
        if cls is dict:
            return _named(value, dict)
        if isinstance(value, _PLAIN):
            return None
        expansion = self._expand(value)
        if isinstance(expansion, Expansion) and expansion.type.class_kind is ClassKind.PYTREE:
            return _fields(value, expansion)
        if isinstance(value, Mapping):
            return _named(value, lambda items: _like(value, items))
        if not isinstance(expansion, Expansion):
            # The layers of Equinox have functions among their leaves.
            if callable(value):
                return None
            raise UnsupportedTypeError(
                f"{_text(path)}: cannot look into a {cls.__name__}; give arrays, plain values, and containers of them"
            )
        if expansion.rebuild is None or is_atomic(expansion.type):
            return None
        if expansion.type.class_kind is ClassKind.WRAPPER:
            inner, rebuild = expansion.children[0], expansion.rebuild
            if type(inner) is not list and type(inner) is not tuple:
                return None
            return _items(inner), lambda new: rebuild([new, *expansion.children[1:]])
        return _fields(value, expansion)

    def rebuilt(self, values: Sequence[object]) -> Any:
        """The first tree with other leaves; containers of which nothing changes are the same objects."""
        stack: list[Any] = []
        left = len(values)
        for container, children, rebuild in reversed(self._nodes):
            if rebuild is None:
                left -= 1
                stack.append(values[left])
                continue
            place = len(stack) - len(children)
            new = stack[place:][::-1]
            del stack[place:]
            same = all(a is b for a, b in zip(new, children, strict=True))
            stack.append(container if same else rebuild(new))
        return stack[0]


def _items(values: Sequence[object]) -> Sequence[tuple[Step, object]]:
    return [(Index(index), child) for index, child in enumerate(values)]


def _named(mapping: Mapping[Any, object], make: Callable[[dict[Any, Any]], object]) -> _Level:
    keys = list(mapping)
    children: list[tuple[Step, object]] = [(DictKey(key), mapping[key]) for key in keys]
    return children, lambda new: make(dict(zip(keys, new, strict=True)))


def _like(mapping: Mapping[Any, Any], items: dict[Any, Any]) -> object:
    """These items for the same keys in a mapping as the given one, with all that it has besides: the `_metadata` of a
    state dict, the factory of a defaultdict.
    """
    if not isinstance(mapping, MutableMapping):
        return items
    made = copy.copy(mapping)
    for key, value in items.items():
        made[key] = value
    return made


def _fields(value: object, expansion: Expansion) -> _Level | None:
    if expansion.rebuild is None:
        return None
    keys = {str(key): key for key in value} if isinstance(value, Mapping) else {}
    steps = [DictKey(keys[name]) if name in keys else Field(name) for name in expansion.type.fields]
    return list(zip(steps, expansion.children, strict=True)), expansion.rebuild


def _wrapped(longer: Mapping[Step, object], shorter: Mapping[Step, object]) -> str:
    """What wrappers, such as those of parallel training and compilation, put before all names; empty if none did."""
    names, inner = (sorted(str(getattr(step, "key", "")) for step in steps) for steps in (longer, shorter))
    begin = names[0].removesuffix(inner[0]) if names and inner else ""
    return begin if [begin + name for name in inner] == names else ""


def _text(path: tuple[Step, ...]) -> str:
    return str(Path(path)) or "the root"


def _problem(of: Blend | None, a: Any, b: Any) -> str:
    """What is wrong with two leaves; empty if nothing is."""
    if of is None:
        # A plain value is taken over, whatever it is.
        return "" if not hasattr(b, "__array__") or isinstance(b, np.generic) else "a plain value and an array"
    if of.kind(b) is None:
        return f"a {type(a).__name__} and a {type(b).__name__}: convert one of them"
    if tuple(a.shape) != tuple(b.shape):
        return f"shapes {tuple(a.shape)} and {tuple(b.shape)}"
    if of.kind(a) != of.kind(b):
        return f"dtypes {a.dtype} and {b.dtype}"
    return ""


def _other_names(ours: Mapping[Step, object], theirs: Mapping[Step, object]) -> str:
    for longer, shorter, name in ((theirs, ours, "tree"), (ours, theirs, "average")):
        if begin := _wrapped(longer, shorter):
            return f"all names of the {name} begin with {begin!r}: give the state dict of what is wrapped, as `.module`"
    only = [f"{step} in the average alone" for step in ours if step not in theirs]
    only += [f"{step} in the tree alone" for step in theirs if step not in ours]
    return ", ".join(only[:4]) + (f" and {len(only) - 4} more" if len(only) > 4 else "")
