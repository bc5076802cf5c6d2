"""The parameters of an optimizer of torch by what it calls them: a number, a name, or an object and a name there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

from pytreeckpt.convert.names import steps_of
from pytreeckpt.convert.records import Inventory, Leaf, Name
from pytreeckpt.paths import DictKey, Path

_WRAPPERS: Final = frozenset(["module", "_orig_mod"])
"""What torch's wrappers (DistributedDataParallel, torch.compile) put before names."""


@dataclass(frozen=True, slots=True)
class Named:
    """A parameter of a group: the object that holds it and its name there, as stored, and where its states are."""

    owner: str
    name: str
    state: Path

    @property
    def text(self) -> str:
        """For people."""
        return "/".join(part for part in (self.owner, self.name) if part)


def captured_names(root: Path, groups: Sequence[Mapping[str, Any]], order: Sequence[str] | None) -> list[list[Named]]:
    """Of what `pytreeckpt_torch.capture` made. Raises `ValueError` where only numbers are known, and no `order`."""
    state = (*root, DictKey("state"))
    stored = [[(owner, name) for owner, name in group["parameters"]] for group in groups]
    if any(owner for owner, _ in chain(*stored)):
        return [
            [Named(owner, name, Path((*state, DictKey(owner), DictKey(name)))) for owner, name in group]
            for group in stored
        ]
    # Captured without the objects that hold them.
    given = iter(_ordered(order, sum(map(len, stored))))
    return [
        [Named("", next(given), Path((*state, DictKey(""), DictKey(number)))) for _, number in group]
        for group in stored
    ]


def state_dict_names(root: Path, groups: Sequence[Mapping[str, Any]], order: Sequence[str] | None) -> list[list[Named]]:
    """Of torch's own state dict. Raises `ValueError` where only numbers are known, and no `order`."""
    state = (*root, DictKey("state"))
    keys = [list(group["params"]) for group in groups]
    named = [list(group.get("param_names") or ()) for group in groups]
    if all(isinstance(key, str) for key in chain(*keys)):
        names = keys
    elif all(len(each) == len(group) for each, group in zip(named, keys, strict=True)):
        names = named
    else:
        given = iter(_ordered(order, sum(map(len, keys))))
        names = [[next(given) for _ in group] for group in keys]
    return [
        [Named("", str(name), Path((*state, DictKey(key)))) for name, key in zip(each, group, strict=True)]
        for each, group in zip(names, keys, strict=True)
    ]


def _ordered(order: Sequence[str] | None, count: int) -> Sequence[str]:
    if order is None:
        raise ValueError(
            f"its {count} parameters are numbered, and nothing says which is which: save with "
            "pytreeckpt_torch.capture(model=…, optimizer=…), or make the optimizer of model.named_parameters(), whose "
            "names torch then stores as param_names, or give parameter_order, the names in the order in which the "
            "optimizer was given them"
        )
    if len(order) != count:
        raise ValueError(f"it has {count} parameters, and parameter_order names {len(order)}")
    return order


@dataclass(frozen=True, slots=True)
class Names:
    """The leaves of a model by what an optimizer may call them: by paths, by names, by names without wrappers."""

    by_path: Mapping[Name, Leaf]
    by_name: Mapping[Name, Sequence[Leaf]]
    by_bare_name: Mapping[Name, Sequence[Leaf]]


def names_of(source: Inventory) -> Names:
    """The names of the leaves of the model of a side."""
    by_name: dict[Name, list[Leaf]] = {}
    by_bare_name: dict[Name, list[Leaf]] = {}
    for leaf in source.model.leaves.values():
        # With the name of the object that holds it, if there are several, and without.
        for name in dict.fromkeys([leaf.name, steps_of(leaf.path[-1:], dotted=True)]):
            by_name.setdefault(name, []).append(leaf)
        for name in dict.fromkeys([_bare(leaf.name), _bare(steps_of(leaf.path[-1:], dotted=True))]):
            by_bare_name.setdefault(name, []).append(leaf)
    return Names({steps_of(leaf.path): leaf for leaf in source.model.leaves.values()}, by_name, by_bare_name)


def _bare(name: Name) -> Name:
    return tuple(step for step in name if step not in _WRAPPERS)


def find_parameter(names: Names, named: Named, root: Path) -> Leaf | str:
    """The parameter that an optimizer at `root` calls so, or what is wrong."""
    owner = tuple(named.owner.split("/")) if named.owner else ()
    if owner:
        # Beside the optimizer, or in a tree that holds both somewhere.
        for depth in range(len(root), -1, -1):
            for between in (("state",), ()):
                last = (named.name,) if named.name else ()
                leaf = names.by_path.get((*steps_of(root[:depth]), *owner, *between, *last))
                if leaf is not None:
                    return leaf
    steps = tuple(named.name.split("."))
    for found in (
        names.by_name.get((*owner, *steps)),
        names.by_name.get(steps),
        names.by_bare_name.get(_bare((*owner, *steps))),
        names.by_bare_name.get(_bare(steps)),
    ):
        if found:
            paths = ", ".join(str(leaf.path) for leaf in found[:3])
            return found[0] if len(found) == 1 else f"could be {paths}: convert a tree of one model and its optimizer"
    return "is no parameter of the model"
