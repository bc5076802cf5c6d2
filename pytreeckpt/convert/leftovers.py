"""What is left over on either side, what is known about why, and what of it was waived."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from pytreeckpt.convert.draft import Draft
from pytreeckpt.convert.fitting import layer_text
from pytreeckpt.convert.lookup import close_names
from pytreeckpt.convert.names import match_name, steps_of, text_of
from pytreeckpt.convert.operations import Drop
from pytreeckpt.convert.records import Entry, Leaf, Model, Name
from pytreeckpt.convert.rules import Rule, Waive, of_type
from pytreeckpt.paths import Path


@dataclass(slots=True)
class Leftovers:
    """Of the source and of the target of the plan: `unused` and `missing` as texts, for an error; the paths of what was
    waived; and the entries that drop what is waived of torch, so that it is kept.
    """

    unused: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    waived_unused: tuple[Path, ...] = ()
    waived_missing: tuple[Path, ...] = ()
    dropped: list[Entry] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        made: Draft,
        unused_states: Iterable[Path],
        missing_states: Iterable[Path],
        rules: Sequence[Rule],
        *,
        is_backward: bool,
    ) -> Leftovers:
        """What a draft, made from torch, leaves over; `is_backward`: if the plan goes to torch."""
        first = [leaf for name, leaf in made.source.leaves.items() if name not in made.sources]
        second = [leaf for name, leaf in made.target.leaves.items() if name not in made.targets]
        waives = of_type(rules, Waive)
        unused = [waive.unused for waive in waives if waive.unused is not None]
        missing = [waive.missing for waive in waives if waive.missing is not None]
        of_first, of_second = (missing, unused) if is_backward else (unused, missing)
        texts_first, waived_first = _apart(first, of_first, made, made.target)
        texts_second, waived_second = _apart(second, of_second, made, made.source)
        states_first, waived_states_first = _states(unused_states, of_first)
        states_second, waived_states_second = _states(missing_states, of_second)
        texts_first += states_first
        texts_second += states_second
        paths_first = (*(leaf.path for leaf in waived_first), *waived_states_first)
        paths_second = (*(leaf.path for leaf in waived_second), *waived_states_second)
        dropped = [Entry((leaf.path,), (), (Drop(),), "parameter", "waived") for leaf in waived_first]
        if is_backward:
            # What is waived of the target keeps its values, and is no affair of the plan.
            return cls(texts_second, texts_first, paths_second, paths_first)
        return cls(texts_first, texts_second, paths_first, paths_second, dropped)


def _apart(leaves: Sequence[Leaf], patterns: Sequence[str], made: Draft, other: Model) -> tuple[list[str], list[Leaf]]:
    waived = [leaf for leaf in leaves if any(match_name(pattern, leaf.name) is not None for pattern in patterns)]
    names = {leaf.name for leaf in waived}
    left = [leaf for leaf in leaves if leaf.name not in names]
    free = [name for name in other.leaves if name not in made.targets and name not in made.sources]
    # Looking for what is close takes its time, and of very many, the first are enough to see what is wrong.
    texts = [f"{leaf.path}: {_why(leaf, made, free if n < _MAX_HINTS else [])}" for n, leaf in enumerate(left)]
    return texts, waived


_MAX_HINTS: Final = 40


def _why(leaf: Leaf, made: Draft, free: Sequence[Name]) -> str:
    if leaf.name in made.source.leaves:
        for depth in range(len(leaf.name), -1, -1):
            if leaf.name[:depth] in made.unmatched:
                wanted = made.unmatched[leaf.name[:depth]]
                close = close_names(wanted, list(dict.fromkeys(name[:-1] for name in free)))
                return f"there is no layer {layer_text(wanted)}" + (f"; there is {', '.join(close)}" if close else "")
    shown = f"{leaf.dtype}{list(leaf.shape)}"
    if leaf.name in made.lacking:
        return f"{shown}: {made.lacking[leaf.name]}"
    close = close_names(leaf.name, free)
    return shown + (f"; left over there is {', '.join(close)}" if close else "")


def _states(paths: Iterable[Path], patterns: Sequence[str]) -> tuple[list[str], list[Path]]:
    left: list[str] = []
    waived: list[Path] = []
    for path in paths:
        name = steps_of(path)
        if any(match_name(pattern, name) is not None for pattern in patterns):
            waived.append(path)
        else:
            left.append(f"{path}: {text_of(name[-1:])} of an optimizer")
    return left, waived
