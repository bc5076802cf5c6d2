"""Python literals as text, as the headers of `.npy` files hold them: read without evaluating anything. Total.

Texts, ints, True, False, None, and tuples, lists and dicts of these (ast.literal_eval knows more, and can exhaust the
stack of the interpreter).
"""

from __future__ import annotations

import re
from typing import Final, NoReturn

from pytreeckpt.errors import CorruptionError

_MAX_DEPTH: Final = 64
_SPACE: Final = re.compile(r"[ \t\r\n]*")
_WORD: Final = re.compile(r"[A-Za-z_]+")
# Python 2 wrote its long integers with an L.
_INTEGER: Final = re.compile(r"(-?[0-9]{1,20})L?")
# Python 2 wrote a prefix to some texts.
_TEXT: Final = re.compile(r"""[uU]?(?:'((?:[^'\\\n]|\\.)*)'|"((?:[^"\\\n]|\\.)*)")""")
_ESCAPE: Final = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_ESCAPED: Final = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", "'": "'", '"': '"'}
_WORDS: Final[dict[str, object]] = {"True": True, "False": False, "None": None}
_ENDS: Final = {"(": ")", "[": "]", "{": "}"}


def parse_literal(text: str) -> object:
    """The value that a text writes, with nothing but spaces around it. Raises `CorruptionError`."""
    parser = _Parser(text)
    value = parser.value(0)
    parser.space()
    if parser.at != len(text):
        parser.fail("something follows the value")
    return value


class _Parser:
    """A cursor over the text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def fail(self, problem: str) -> NoReturn:
        raise CorruptionError(f"the header is not a Python literal: {problem} at character {self.at}", rule="npy")

    def space(self) -> None:
        found = _SPACE.match(self.text, self.at)
        self.at = found.end() if found else self.at

    def next(self) -> str:
        self.space()
        return self.text[self.at : self.at + 1]

    def value(self, depth: int) -> object:
        first = self.next()
        if depth > _MAX_DEPTH:
            self.fail("it nests too deeply")
        if first in _ENDS:
            self.at += 1
            return self.mapping(depth) if first == "{" else self.sequence(first, depth)
        for pattern in (_TEXT, _INTEGER, _WORD):
            found = pattern.match(self.text, self.at)
            if found is not None:
                value = self.leaf(pattern, found)
                self.at = found.end()
                return value
        return self.fail("no value begins")

    def leaf(self, pattern: re.Pattern[str], found: re.Match[str]) -> object:
        if pattern is _INTEGER:
            return int(found[1])
        if pattern is _TEXT:
            return _ESCAPE.sub(self.character, found[1] if found[1] is not None else found[2])
        if found[0] not in _WORDS:
            self.fail(f"{found[0][:20]!r} is a name")
        return _WORDS[found[0]]

    def character(self, escape: re.Match[str]) -> str:
        digits = escape[1] or escape[2] or escape[3]
        if digits is None:
            if escape[4] not in _ESCAPED:
                self.fail(f"the escape {escape[0]!r} is not one of repr")
            return _ESCAPED[escape[4]]
        point = int(digits, 16)
        if point > 0x10FFFF:
            self.fail(f"the escape {escape[0]!r} is no character")
        return chr(point)

    def sequence(self, first: str, depth: int) -> object:
        items: list[object] = []
        comma = False
        while self.next() != _ENDS[first]:
            if items and not comma:
                self.fail(f"no comma or {_ENDS[first]}")
            items.append(self.value(depth + 1))
            comma = self.comma()
        self.at += 1
        if first == "(":
            # A value in parentheses is that value.
            return tuple(items) if comma or len(items) != 1 else items[0]
        return items

    def mapping(self, depth: int) -> dict[str, object]:
        items: dict[str, object] = {}
        comma = True
        while self.next() != "}":
            if not comma:
                self.fail("no comma or }")
            key = self.value(depth + 1)
            if not isinstance(key, str) or key in items:
                self.fail("a key is no text, or stands there twice")
            if self.next() != ":":
                self.fail("no colon")
            self.at += 1
            items[key] = self.value(depth + 1)
            comma = self.comma()
        self.at += 1
        return items

    def comma(self) -> bool:
        found = self.next() == ","
        self.at += found
        return found
