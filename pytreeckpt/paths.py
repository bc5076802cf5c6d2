"""Typed paths: sequences of keys. Text is only their display, defined in spec/registries.md, and parses back.

A step is a dict key, the index of an item, or a field of an object, and never confuses them:
`{"0": a}`, `{0: a}`, `[a]` and `Point(x=a)` give `"0"`, `0`, `[0]` and `.x`.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice

from pytreeckpt.errors import PathError


@dataclass(frozen=True, slots=True)
class DictKey:
    """The value of a dict under `key`."""

    key: object

    def __str__(self) -> str:
        return _key_text(self.key)


@dataclass(frozen=True, slots=True)
class Index:
    """Item `index` of a list, tuple, set or frozenset (sets in their stored order)."""

    index: int

    def __str__(self) -> str:
        return f"[{self.index}]"


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a record, namedtuple, dataclass, enum member or pytree node."""

    name: str

    def __str__(self) -> str:
        return "." + (self.name if _NAME.fullmatch(self.name) else json.dumps(self.name))


Step = DictKey | Index | Field


class Path(tuple[Step, ...]):
    """The steps from the root to a node; `str(path)` is its text, `Path.parse(text)` the way back."""

    __slots__ = ()

    def __str__(self) -> str:
        parts: list[str] = []
        for step in self:
            if parts and not isinstance(step, Index):
                parts.append("/")
            parts.append(str(step))
        return "".join(parts)

    def __repr__(self) -> str:
        return f"Path({str(self)!r})"

    @classmethod
    def parse(cls, text: str) -> Path:
        """The path that `text` writes. Raises `PathError` with the position where it cannot be read."""
        parser = _Parser(text)
        try:
            return cls(parser.steps())
        except RecursionError:
            raise parser.error("tuples nest too deeply") from None


_NAME = re.compile(r"[^\W\d]\w*")
_DIGITS = re.compile(r"0|[1-9][0-9]*")
_LITERAL = re.compile(
    r"None|True|False|-?(?:0|[1-9][0-9]*)|-?inf|nan:[0-9a-f]{16}|nan|0x(?:[0-9a-f]{2})*"
    r"|-?[0-9]+\.[0-9]+(?:e[+-]?[0-9]+)?|-?[0-9]+e[+-]?[0-9]+"
)
_BARE = re.compile(r'[^/\[\](),\\."\x00-\x1f\x7f][^/\[\](),\\\x00-\x1f\x7f]*')
_QUOTED = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"')


def _key_text(key: object, *, quote: bool = False) -> str:
    match key:
        case str():
            bare = _BARE.fullmatch(key) and not _LITERAL.fullmatch(key) and key.isprintable()
            return key if bare and not quote else json.dumps(key)
        case float() if math.isnan(key):
            return "nan:" + struct.pack(">d", key).hex()
        case None | bool() | float():
            return repr(key)
        case int():
            return _decimal(key)
        case bytes():
            return "0x" + key.hex()
        case tuple():
            return "(" + ",".join(_key_text(item, quote=True) for item in key) + ")"
    raise PathError(f"{key!r} of type {type(key).__name__} is not a key that a path can hold")


def _literal(text: str) -> object:
    if text in {"None", "True", "False"}:
        return {"None": None, "True": True, "False": False}[text]
    if text.startswith("0x"):
        return bytes.fromhex(text[2:])
    if text.startswith("nan:"):
        return struct.unpack(">d", bytes.fromhex(text[4:]))[0]
    return _integer(text) if re.fullmatch(r"-?[0-9]+", text) else float(text)


# Python refuses to convert longer integers at once (sys.set_int_max_str_digits, at least 640).
_MAX_DIGITS = 600


def _decimal(value: int) -> str:
    """The digits of an integer of any size."""
    if abs(value).bit_length() <= 3 * _MAX_DIGITS:
        return str(value)
    if value < 0:
        return "-" + _decimal(-value)
    # log10(2) is a little more than 3/10, and so the upper part is never 0.
    n_low = value.bit_length() * 3 // 20
    high, low = divmod(value, 10**n_low)
    return _decimal(high) + _decimal(low).rjust(n_low, "0")


def _integer(text: str) -> int:
    """The integer that these digits write."""
    if len(text) <= _MAX_DIGITS:
        return int(text)
    if text[0] == "-":
        return -_integer(text[1:])
    half = len(text) // 2
    scale: int = 10 ** (len(text) - half)
    return _integer(text[:half]) * scale + _integer(text[half:])


class _Parser:
    """A cursor over the text of a path."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def steps(self) -> Iterable[Step]:
        while self.at < len(self.text):
            if self.text[self.at] == "[":
                yield self.index()
                continue
            if self.at > 0:
                self.expect("/")
            yield self.index() if self.text[self.at : self.at + 1] == "[" else self.step()

    def index(self) -> Index:
        self.expect("[")
        index = Index(_integer(self.take(_DIGITS, "the digits of an index")))
        self.expect("]")
        return index

    def step(self) -> Step:
        if self.text[self.at : self.at + 1] == ".":
            self.at += 1
            quoted = self.text[self.at : self.at + 1] == '"'
            return Field(self.quoted() if quoted else self.take(_NAME, "the name of a field"))
        return DictKey(self.key())

    def key(self, *, quoted_only: bool = False) -> object:
        character = self.text[self.at : self.at + 1]
        if character == '"':
            return self.quoted()
        if character == "(":
            return self.tuple()
        bare = self.take(_BARE, "a key")
        if _LITERAL.fullmatch(bare):
            return _literal(bare)
        if quoted_only:
            raise self.error("a text inside a tuple is written in double quotes")
        return bare

    def tuple(self) -> object:
        self.expect("(")
        items: list[object] = []
        while self.text[self.at : self.at + 1] != ")":
            if items:
                self.expect(",")
            items.append(self.key(quoted_only=True))
        self.expect(")")
        return tuple(items)

    def quoted(self) -> str:
        text = self.take(_QUOTED, "a text in double quotes")
        try:
            return str(json.loads(text))
        except ValueError:
            raise self.error("a text in double quotes is written as in JSON") from None

    def take(self, pattern: re.Pattern[str], what: str) -> str:
        match = pattern.match(self.text, self.at)
        if match is None:
            raise self.error(f"expected {what}")
        self.at = match.end()
        return match.group()

    def expect(self, character: str) -> None:
        if self.text[self.at : self.at + 1] != character:
            raise self.error(f"expected {character!r}")
        self.at += 1

    def error(self, problem: str) -> PathError:
        return PathError(f"cannot read the path {self.text!r}: {problem} at position {self.at}")


def suggest(text: str, candidates: Iterable[str], *, count: int, cutoff: float) -> list[str]:
    """The candidates that are most like `text`, for an error; of many or long ones, only some are looked at."""
    short = (candidate for candidate in candidates if len(candidate) <= _MAX_SUGGESTED_LENGTH)
    return get_close_matches(text[:_MAX_SUGGESTED_LENGTH], list(islice(short, _MAX_SUGGESTED)), count, cutoff)


_MAX_SUGGESTED = 2000
_MAX_SUGGESTED_LENGTH = 200


def compile_glob(pattern: str) -> Callable[[Path], bool]:
    """A predicate that tells whether `pattern` matches a path or one of its ancestors.

    A pattern is the text of a path in which, in bare steps, `*` stands for any text, `?` for one character, and a
    step `**` for any number of steps; `[*]` is any index. So `params` and `params/**` both select all below.
    """
    steps: list[str] = []
    for part in _parts(pattern):
        if part == "**":
            steps.append("(?:\0[^\0]+)*")
        else:
            literal = part.startswith(('"', '."', "("))
            steps.append("\0" + (re.escape(part) if literal else _wildcards(part)))
    compiled = re.compile("".join(steps) + "(?:\0.*)?", re.DOTALL)

    def matches(path: Path) -> bool:
        return compiled.fullmatch("".join(f"\0{step}" for step in path)) is not None

    return matches


def _wildcards(part: str) -> str:
    return "".join({"*": "[^\0]*", "?": "[^\0]"}.get(character, re.escape(character)) for character in part)


# A bare key may hold double quotes, but not begin with one.
_PART = re.compile(r'\[(?:\*|[0-9]+)\]|\.?"(?:[^"\\\x00-\x1f]|\\.)*"|[^/\["(][^/\[]*')
_IN_TUPLE = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"|[^"]')


def _parts(pattern: str) -> list[str]:
    parts: list[str] = []
    at = 0
    while at < len(pattern):
        if pattern[at] == "/" and parts:
            at += 1
        match = _PART.match(pattern, at)
        end = _end_of_tuple(pattern, at) if match is None else match.end()
        if end is None:
            raise PathError(
                f"cannot read the pattern {pattern!r} at position {at}: a pattern is a path such as "
                "params/*/kernel, opt/mu[0] or **/bias"
            )
        parts.append(pattern[at:end])
        at = end
    return parts


def _end_of_tuple(pattern: str, start: int) -> int | None:
    """Where the tuple that begins at `start` ends, or None if none does."""
    depth = 0
    for item in _IN_TUPLE.finditer(pattern, start):
        depth += {"(": 1, ")": -1}.get(item.group(), 0)
        if depth <= 0:
            return item.end() if item.group() == ")" else None
    return None
