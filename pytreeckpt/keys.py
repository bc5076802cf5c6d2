"""Dict keys and set elements: which values may be one, and their order (the key strings of section 4)."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pytreeckpt import nodes as n
from pytreeckpt.errors import LimitError
from pytreeckpt.limits import Limits

PLAIN_KEY_TYPES: Final[frozenset[type]] = frozenset({str, int, bool, float, bytes, type(None)})
PLAIN_ELEMENT_TYPES: Final[frozenset[type]] = PLAIN_KEY_TYPES | {complex, type(...)}


def is_key(value: object, limits: Limits) -> bool:
    """Whether `value` may be a dict key: a plain value or a tuple of keys, by exact type. Raises `LimitError`."""
    return _made_of(value, PLAIN_KEY_TYPES, (tuple,), limits)


def is_element(value: object, limits: Limits) -> bool:
    """Whether `value` may be an element of a set. Raises `LimitError`."""
    return _made_of(value, PLAIN_ELEMENT_TYPES, (tuple, frozenset), limits)


def _made_of(value: object, plain: frozenset[type], nested: tuple[type, ...], limits: Limits) -> bool:
    pending: list[tuple[Any, int]] = [(value, 1)]
    seen = 0
    while pending:
        item, depth = pending.pop()
        seen += 1
        if seen > limits.nodes:
            raise LimitError(f"a key or an element of a set has more parts than the limit of {limits.nodes} nodes")
        if type(item) in plain:
            continue
        if type(item) not in nested:
            return False
        check_key_depth(depth, limits.key_depth)
        pending.extend((child, depth + 1) for child in item)
    return True


def check_key_depth(depth: int, max_depth: int) -> None:
    """Python hashes and compares keys recursively, so their depth has a limit of its own."""
    if depth > max_depth:
        raise LimitError(
            f"a key or an element of a set nests deeper than the limit of {max_depth}; "
            "raise it with pytreeckpt.limits(key_depth=…)"
        )


def check_hashes(values: Sequence[object]) -> None:
    """Raise `LimitError` if very many keys or elements have the same hash, so that a dict or set of them would take
    quadratic time. Python hashes texts with a secret, and numbers without one.
    """
    if len(values) > _MAX_SAME_HASH and max(Counter(map(hash, values)).values()) > _MAX_SAME_HASH:
        raise LimitError(f"more than {_MAX_SAME_HASH} keys of a dict, or elements of a set, have the same hash")


_MAX_SAME_HASH = 256


def is_too_long(key: object, max_nbytes: int) -> bool:
    """Whether the texts, bytes and integers in a dict key take more than `max_nbytes` bytes."""
    # A character takes at most 4: most keys need not be encoded to be measured.
    if type(key) is str and 4 * len(key) <= max_nbytes:
        return False
    return key_nbytes(key) > max_nbytes


def key_nbytes(key: object) -> int:
    """Bytes of the texts, bytes and integers in a dict key."""
    match key:
        case str():
            return len(key) if key.isascii() else len(key.encode(errors="surrogatepass"))
        case bytes():
            return len(key)
        case int():
            return key.bit_length() // 8 + 1
        case tuple():
            return sum(map(key_nbytes, key))
    return 0


def key_string(value: object) -> bytes:
    """The key string K of a key or element: injective on values, and the order of elements in a set."""
    match value:
        case None | bool():
            return _framed({None: n.NONE, False: n.FALSE, True: n.TRUE}[value], b"")
        case int() if n.MIN_INT <= value <= n.MAX_INT:
            return _framed(n.INT, struct.pack("<q", value))
        case int():
            return _framed(n.BIGINT, bigint_bytes(value))
        case float():
            return _framed(n.FLOAT, struct.pack("<d", value))
        case complex():
            return _framed(n.COMPLEX, struct.pack("<dd", value.real, value.imag))
        case str():
            return _framed(n.STR, value.encode(errors="surrogatepass"))
        case bytes():
            return _framed(n.BYTES, value)
        case tuple():
            return _framed(n.TUPLE, b"".join(map(key_string, value)))
        case frozenset():
            return _framed(n.FROZENSET, b"".join(sorted(map(key_string, value))))
    return _framed(n.ELLIPSIS, b"")


@dataclass(frozen=True, slots=True)
class _NotANumber:
    bits: bytes


def equality_form(value: object) -> object:
    """A value that compares as N-6 says: like `value`, but that a NaN equals itself."""
    match value:
        case float() | complex() if value != value:  # noqa: PLR0124 - only a NaN differs from itself
            return _NotANumber(key_string(value))
        case tuple():
            return tuple(map(equality_form, value))
        case frozenset():
            return frozenset(map(equality_form, value))
    return value


def sorted_elements(elements: Iterable[object]) -> list[object]:
    """The elements of a set in the order in which they are stored."""
    return sorted(elements, key=key_string)


def bigint_bytes(value: int) -> bytes:
    """The shortest two's complement little-endian form."""
    return value.to_bytes((value if value >= 0 else ~value).bit_length() // 8 + 1, "little", signed=True)


def _framed(kind: int, payload: bytes) -> bytes:
    return struct.pack("<BQ", kind, len(payload)) + payload
