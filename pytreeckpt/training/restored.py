"""What putting a state back came to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Restored(Mapping[str, Any]):
    """The objects that were restored and the plain values of the checkpoint (step, metrics, …), by name.

    `missing`, `unexpected`: what did not fit and `strict=False` let pass; `skipped`: objects of the checkpoint that
    were not asked for; `notes`: what fits, and is worth knowing.
    """

    values_by_name: Mapping[str, Any]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def __getitem__(self, name: str) -> Any:
        if name in self.values_by_name:
            return self.values_by_name[name]
        if name in self.skipped:
            raise KeyError(f"{name} is an object of the checkpoint: give one with {name}=… to have it restored")
        raise KeyError(
            f"{name}; the checkpoint has {', '.join(map(str, [*self.values_by_name, *self.skipped])) or 'nothing'}"
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_name)

    def __len__(self) -> int:
        return len(self.values_by_name)

    def __str__(self) -> str:
        lines = [f"restored: {', '.join(map(str, self.values_by_name)) or 'nothing'}"]
        for title in ("skipped", "missing", "unexpected"):
            names: tuple[str, ...] = getattr(self, title)
            lines += [f"{title}: {', '.join(map(str, names))}"] if names else []
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)
