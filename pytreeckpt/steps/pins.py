"""Pins: names that a person gives to steps, which are then kept until the name is taken away."""

from __future__ import annotations

from typing import Final

RESERVED: Final = frozenset({"latest", "best"})
_MAX_CHARACTERS: Final = 200


def checked_pin(name: object) -> str:
    """The name of a pin. Raises `TypeError` and `ValueError` for what could be taken for something else."""
    if not isinstance(name, str):
        raise TypeError(f"the name of a pin is text, not {name!r}")
    if not 0 < len(name) <= _MAX_CHARACTERS or not name.isprintable() or name != name.strip():
        raise ValueError(
            f"{name!r} cannot be the name of a pin: it has 1 to {_MAX_CHARACTERS} printable characters, and no space "
            "around them"
        )
    if name in RESERVED or name.removeprefix("-").isdecimal():
        raise ValueError(f"{name!r} cannot be the name of a pin: it means a step already")
    return str(name)
