"""Text for people: names and values made safe to print, sizes and counts, and cutting to a width.

A checkpoint is data from a stranger, and a terminal obeys what it is sent: everything that comes from a file or from
the command line passes through `visible` before it is printed.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import takewhile


def visible(text: str) -> str:
    r"""The text with everything unprintable (controls, escapes, bidi marks, surrogates) as `\x1b` or `\u202e`."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else _escaped(character) for character in text)


def _escaped(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def cell_width(text: str) -> int:
    """How many columns of a terminal the (visible) text takes."""
    return len(text) if text.isascii() else _wide_width(text)


@lru_cache(maxsize=4096)
def _wide_width(text: str) -> int:
    return sum(map(_character_width, text))


def _character_width(character: str) -> int:
    if unicodedata.category(character) in {"Mn", "Me"}:
        return 0
    return 2 if unicodedata.east_asian_width(character) in {"W", "F"} else 1


def shorten(text: str, width: int, *, ellipsis: str = "…") -> str:
    """The text cut to at most `width` columns, in the middle, because names differ at both ends."""
    if cell_width(text) <= width:
        return text
    room = width - cell_width(ellipsis)
    if room <= 0:
        return ellipsis if room == 0 else ""
    tail = room // 2
    return _head(text, room - tail) + ellipsis + _head(text[::-1], tail)[::-1]


def cut(text: str, width: int, *, ellipsis: str = "…") -> str:
    """The text cut to at most `width` columns at its end."""
    if cell_width(text) <= width:
        return text
    return _head(text, width - cell_width(ellipsis)) + ellipsis if width >= cell_width(ellipsis) else ""


def _head(text: str, width: int) -> str:
    used = 0

    def fits(character: str) -> bool:
        nonlocal used
        used += _character_width(character)
        return used <= width

    return "".join(takewhile(fits, text))


_SIZE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_AMOUNT_UNITS = ("", "k", "M", "G", "T", "P", "E")


def size(nbytes: int) -> str:
    """A number of bytes in binary units, with three or four digits: `1.42 GiB`."""
    # 1023.95 would be shown as 1024.0.
    scaled, unit = _scaled(nbytes, 1024, 1023.95, _SIZE_UNITS)
    if unit == "B":
        return f"{nbytes} B"
    return f"{scaled:.2f} {unit}" if scaled < 9.995 else f"{scaled:.1f} {unit}"


def amount(number: int) -> str:
    """A large number to four digits: `124.4 M`."""
    if number < 10_000:
        return f"{number:,}"
    scaled, unit = _scaled(number, 1000, 999.95, _AMOUNT_UNITS)
    return f"{scaled:.1f} {unit}"


def _scaled(number: int, base: int, limit: float, units: Sequence[str]) -> tuple[float, str]:
    scaled: float = number
    place = 0
    while scaled >= limit and place < len(units) - 1:
        scaled /= base
        place += 1
    return scaled, units[place]


def count(number: int, noun: str) -> str:
    """`1 leaf`, `12,345 leaves`, `444 arrays`."""
    if number != 1:
        noun = {"leaf": "leaves"}.get(noun, noun + "s")
    return f"{number:,} {noun}"


def percent(part: int, whole: int) -> str:
    """A ratio of sizes: `93 %`; `0.4 %` below one, and never 0 % of something or 100 % of something less."""
    if whole == 0:
        return ""
    ratio = 100 * part / whole
    if ratio == 0 or 0.95 <= ratio < 99.5 or part >= whole:
        return f"{ratio:.0f} %"
    if ratio < 0.05:
        return "<0.1 %"
    return f"{ratio:.1f} %" if ratio < 99.95 else ">99.9 %"
