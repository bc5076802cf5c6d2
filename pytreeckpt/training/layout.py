"""The layout of the state of a training: a dict of its objects by name, and a header that says what each was."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pytreeckpt.errors import FormatVersionError
from pytreeckpt.paths import DictKey, Path

HEADER: Final = "training"
RNG: Final = "rng"
_LAYOUT: Final = 1


@dataclass(frozen=True, slots=True)
class Header:
    """What a tree says of itself under `"training"`.

    `framework` and its `version`; `roles`: the role of each object by its name, or for a dict or list of objects
    a dict or list of theirs. What has no role is a plain value.
    """

    framework: str
    version: str
    roles: Mapping[str, Any]

    def as_tree(self) -> dict[str, object]:
        """How it is stored."""
        return {
            "layout": _LAYOUT,
            "framework": self.framework,
            "version": self.version,
            "roles": dict(self.roles),
        }


def header_of(tree: object) -> Header | None:
    """The header of a tree, or None if the tree is no state of a training.

    Raises `FormatVersionError` for one of a newer layout.
    """
    stored = tree.get(HEADER) if isinstance(tree, Mapping) else None
    match stored:
        case {"layout": int(layout), "framework": str(framework), "version": str(version), "roles": dict(roles)}:
            if layout != _LAYOUT:
                raise FormatVersionError(
                    f"the state of a training has layout {layout}, and this pytreeckpt knows {_LAYOUT}; use a newer "
                    "one, or take what you need from the tree itself",
                    rule="layout",
                )
            if all(isinstance(name, str) and _is_role(role) for name, role in roles.items()):
                return Header(framework, version, roles)
    return None


def _is_role(role: object) -> bool:
    if isinstance(role, dict | list):
        return all(isinstance(each, str) for each in (role.values() if isinstance(role, dict) else role))
    return isinstance(role, str)


def check_names(names: Iterable[str]) -> None:
    """Raise `ValueError` for a name that the layout needs itself."""
    for name in names:
        if name == HEADER:
            raise ValueError(f"{name!r} is what the header of the state is called; give the object another name")


def wants_rng(header: Header, names: Collection[str], rng: bool | None) -> bool:  # noqa: FBT001 - as it is given
    """Whether the states of the global generators are to be put back: as `rng` says, or else if all objects of the
    checkpoint are, because then the training goes on.
    """
    return rng if rng is not None else all(name in names for name in header.roles)


def leaves_for(tree: object, names: Collection[str], *, rng: bool | None) -> Callable[[Path], bool] | None:
    """Which leaves of a tree are needed to restore these objects (`select=`): plain values too, and other objects not;
    `rng`: as for `wants_rng`. None: all, because the tree does not say what it holds.
    """
    header = header_of(tree)
    if header is None:
        return None
    left_out = {name for name in header.roles if name not in names}
    if not wants_rng(header, names, rng):
        left_out.add(RNG)

    def is_needed(path: Path) -> bool:
        first = path[0]
        return not (isinstance(first, DictKey) and first.key in left_out)

    return is_needed
