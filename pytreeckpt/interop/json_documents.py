"""JSON out of files: bounded, UTF-8, without duplicate keys, and nothing that JSON does not have. Total.

What a document means is its reader's to check; here it becomes dicts, lists, str, int, float, bool and None.
"""

from __future__ import annotations

import json
from typing import NoReturn

from pytreeckpt.errors import CorruptionError, LimitError
from pytreeckpt.limits import current_limits


def parse_json(data: bytes | bytearray | memoryview, what: str) -> object:
    """The value of a document; `what` it is begins the errors. Raises `CorruptionError` and `LimitError`."""
    limits = current_limits()
    raw = bytes(data)
    # Each of these begins a value: counted first, so that a small document cannot fill the memory.
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") > limits.nodes:
        raise LimitError(
            f"{what} has more values than the limit of {limits.nodes}; raise it with pytreeckpt.limits(nodes=…)"
        )

    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(items)
        if len(found) != len(items):
            seen: set[str] = set()
            twice = next(key for key, _ in items if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # add gives None, which is false
            raise CorruptionError(f"{what} has the key {twice[:80]!r} twice in one object", rule="json")
        return found

    def no_constant(text: str) -> NoReturn:
        raise CorruptionError(f"{what} holds {text}, which is no JSON", rule="json")

    try:
        text = raw.decode()
        return json.loads(text, object_pairs_hook=pairs, parse_constant=no_constant)
    except UnicodeDecodeError as error:
        raise CorruptionError(f"{what} is not UTF-8: {error.reason} at byte {error.start}", rule="json") from None
    except CorruptionError:
        raise
    except ValueError as error:
        # Not JSON, or an integer of more digits than Python reads at once.
        raise CorruptionError(f"{what} is not JSON: {error}", rule="json") from None
    except RecursionError:
        raise LimitError(f"{what} nests too deeply to be read") from None


def is_text(value: object) -> bool:
    """Whether a value is a str of whole characters: an escape in JSON may write one half of a surrogate pair."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
