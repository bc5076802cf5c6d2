"""Damage to files that leaves every digest right: structured changes of the index, and of the bytes of chunks."""

import copy
import random
import struct
from collections.abc import Callable
from typing import Any

import msgpack
import xxhash

from tests.forge import forge, frame, take_frame, zstd_frame

# Where the integers and floats are, and how wide.
WIDTHS = {
    ("nodes", "kinds"): "B",
    ("nodes", "counts"): "Q",
    ("nodes", "ints"): "q",
    ("nodes", "floats"): "d",
    ("nodes", "objects"): "I",
    ("nodes", "arrays"): "I",
    ("arrays", "dtype"): "I",
    ("arrays", "rank"): "B",
    ("arrays", "shape"): "Q",
    ("arrays", "layout"): "B",
    ("arrays", "axes"): "B",
    ("arrays", "cut_counts"): "I",
    ("arrays", "cuts"): "Q",
    ("arrays", "chunk_counts"): "I",
    ("arrays", "pools"): "I",
    ("chunks", "file"): "I",
    ("chunks", "offset"): "Q",
    ("chunks", "stored"): "I",
    ("chunks", "raw"): "I",
    ("chunks", "codec"): "B",
    ("chunks", "check"): "Q",
    ("chunks", "digest"): "Q",
    ("chunks", "identity"): "Q",
}
KINDS = [*range(12), *range(16, 22)]
_INTEGERS = [0, 1, 2, 3, 4, 7, 8, 16, 63, 64, 65, 127, 128, 255, 256, 1000, 65535, 65536, 10**6, 1 << 20, 1 << 30]
_INTEGERS += [(1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 62) - 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
_NAMES = ["", "a", "\u00e9", "x" * 70_000, "[0]", "a/b", "python.deque", "numpy.dtype", "torch.Tensor", "m:N", "\0"]
_DTYPES: list[Any] = [
    "uint8",
    "float32",
    "bfloat16",
    "int16_be",
    "object",
    "f4",
    "float80_x87",
    "float128",
    ["bytes", 0],
    ["bytes", 3],
    ["bytes", True],
    ["str", 2],
    ["str_be", 1],
    ["str", 1 << 29],
    ["void", (1 << 31) - 1],
    ["datetime64", "s", 1],
    ["datetime64", "generic", 2],
    ["timedelta64_be", "generic", 1],
    ["datetime64", "s", 1 << 31],
    ["struct", 0, False, []],
    ["struct", 8, True, [["a", None, "uint8", 0, []], ["b", "t", "float32", 4, []]]],
    ["struct", 8, False, [["a", None, "uint8", 7, [2]]]],
    ["struct", 4, False, [["a", None, "uint8", 0, []], ["a", None, "uint8", 1, []]]],
    ["struct", 1 << 30, False, [["a", None, "uint8", 0, [1 << 15, 1 << 15]]]],
    ["struct", 4, 1, []],
]


def number(rng: random.Random, format_: str, near: Any = 0) -> Any:
    """A number for a column, often on an edge."""
    if format_ == "d":
        return (
            struct.unpack("<d", rng.randbytes(8))[0]
            if rng.random() < 0.5
            else rng.choice([0.0, -0.0, 1.0, float("nan")])
        )
    bits = 8 * struct.calcsize(format_)
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if format_.islower() else (0, (1 << bits) - 1)
    value = rng.choice(
        [
            rng.choice(_INTEGERS),
            near + rng.choice([-64, -2, -1, 1, 2, 64]),
            near * rng.choice([2, 3]),
            rng.randrange(low, high + 1),
            rng.randrange(0, 4),
        ]
    )
    return min(max(value, low), high)


def anything(rng: random.Random, depth: int = 0) -> Any:
    """Any msgpack value."""
    choice = rng.randrange(9 if depth < 4 else 7)
    match choice:
        case 0:
            return None
        case 1:
            return rng.random() < 0.5
        case 2:
            return rng.choice(_INTEGERS)
        case 3:
            return rng.random()
        case 4:
            return rng.choice(_NAMES)
        case 5:
            return rng.randbytes(rng.randrange(20))
        case 6:
            return copy.deepcopy(rng.choice(_DTYPES))
        case 7:
            return {rng.choice(_NAMES): anything(rng, depth + 1) for _ in range(rng.randrange(3))}
    return [anything(rng, depth + 1) for _ in range(rng.randrange(4))]


def _change_column(document: dict[str, Any], rng: random.Random) -> None:
    table, name = rng.choice(list(WIDTHS))
    format_ = WIDTHS[table, name]
    buffer: bytes = document[table][name]
    width = struct.calcsize(format_)
    if len(buffer) % width:
        return
    column = list(struct.unpack(f"<{len(buffer) // width}{format_}", buffer))
    place = rng.randrange(len(column)) if column else 0
    other = rng.randrange(len(column)) if column else 0
    match rng.randrange(8):
        case 0 | 1 | 2 if column:
            kind = (table, name) == ("nodes", "kinds")
            column[place] = rng.choice(KINDS) if kind and rng.random() < 0.8 else number(rng, format_, column[place])
        case 3 if column:
            del column[place]
        case 4 if column:
            column.insert(other, column[place])
        case 5 if column:
            column[place], column[other] = column[other], column[place]
        case 6:
            column.insert(place, number(rng, format_))
        case 7 if column:
            column[place:] = [column[place]] * (len(column) - place)
    document[table][name] = struct.pack(f"<{len(column)}{format_}", *column)


def _change_bytes(document: dict[str, Any], rng: random.Random) -> None:
    table, name = rng.choice([*WIDTHS, ("inline", "")])
    holder, key = (document, "inline") if table == "inline" else (document[table], name)
    if not isinstance(holder[key], bytes):
        return
    buffer = bytearray(holder[key])
    match rng.randrange(4):
        case 0:
            buffer += rng.randbytes(rng.randrange(1, 9))
        case 1:
            del buffer[rng.randrange(len(buffer) + 1) :]
        case 2 if buffer:
            buffer[rng.randrange(len(buffer))] ^= 1 << rng.randrange(8)
        case 3:
            start = rng.randrange(len(buffer) + 1)
            del buffer[start : start + rng.randrange(9)]
    holder[key] = bytes(buffer)


def _change_list(document: dict[str, Any], rng: random.Random) -> None:
    nodes = document["nodes"]
    items = rng.choice([nodes["strings"], nodes["bytes"], document["types"], document["dtypes"], document["files"]])
    place = rng.randrange(len(items)) if items else 0
    match rng.randrange(6):
        case 0 if items:
            del items[place]
        case 1 if items:
            items.insert(rng.randrange(len(items)), copy.deepcopy(items[place]))
        case 2 if items:
            other = rng.randrange(len(items))
            items[place], items[other] = items[other], items[place]
        case 3:
            items.insert(place, anything(rng))
        case 4 if items:
            items[place] = rng.choice(_NAMES) if isinstance(items[place], str) else anything(rng)
        case 5 if items and isinstance(items[place], list):
            _change_nested(items[place], rng)


def _change_nested(value: list[Any], rng: random.Random) -> None:
    """Change something within a type or dtype."""
    while value:
        place = rng.randrange(len(value))
        if isinstance(value[place], list) and rng.random() < 0.8:
            value = value[place]
            continue
        match rng.randrange(4):
            case 0:
                value[place] = anything(rng)
            case 1:
                value[place] = number(rng, "q", value[place] if isinstance(value[place], int) else 0)
            case 2:
                del value[place]
            case 3:
                value.insert(place, copy.deepcopy(value[place]))
        return


def _swap_columns(document: dict[str, Any], rng: random.Random) -> None:
    (table, name), (other_table, other) = rng.choice(list(WIDTHS)), rng.choice(list(WIDTHS))
    document[table][name], document[other_table][other] = document[other_table][other], document[table][name]


def _change_shape_of_document(document: dict[str, Any], rng: random.Random) -> None:
    holder = rng.choice([document, document["nodes"], document["arrays"], document["chunks"]])
    key = rng.choice(list(holder))
    match rng.randrange(4):
        case 0:
            del holder[key]
        case 1:
            holder[rng.choice(_NAMES)] = anything(rng)
        case 2:
            holder[key] = anything(rng)
        case 3:
            holder[key] = holder.pop(key)


def _retype(document: dict[str, Any], rng: random.Random) -> None:
    """Give an object another class kind, a registered name, other fields."""
    entries = [entry for entry in document["types"] if isinstance(entry, list) and len(entry) == 3]
    if not entries:
        return
    entry = rng.choice(entries)
    registered: list[tuple[int, str, list[str]]] = [
        (0, "python.deque", ["items", "maxlen"]),
        (0, "python.OrderedDict", ["items"]),
        (0, "python.Counter", ["items"]),
        (0, "python.bytearray", ["value"]),
        (0, "python.Path", ["text", "flavour"]),
        (1, "python.range", ["start", "stop", "step"]),
        (1, "python.slice", ["start", "stop", "step"]),
        (0, "numpy.ObjectArray", ["values", "shape"]),
        (0, "numpy.StringArray", ["values", "shape", "coerce", "missing"]),
        (1, "numpy.dtype", ["descriptor"]),
        (4, "m:E", ["name", "value"]),
    ]
    if rng.random() < 0.5:
        fitting = [[*kind] for kind in registered if isinstance(entry[2], list) and len(kind[2]) == len(entry[2])]
        if fitting:
            entry[:] = copy.deepcopy(rng.choice(fitting))
            return
    entry[:] = copy.deepcopy([*rng.choice(registered)])


_CHANGES: list[tuple[int, Callable[[dict[str, Any], random.Random], None]]] = [
    (8, _change_column),
    (2, _change_bytes),
    (3, _change_list),
    (1, _swap_columns),
    (1, _change_shape_of_document),
    (2, _retype),
]


def repair_chunks(document: dict[str, Any], body: bytes) -> None:
    """Make the checks of all chunks of the file itself right, and their digests where that is possible."""
    try:
        chunks = document["chunks"]
        columns = {
            name: struct.iter_unpack("<" + WIDTHS["chunks", name], chunks[name])
            for name in ("offset", "stored", "codec", "file")
        }
        rows = list(zip(columns["offset"], columns["stored"], columns["codec"], columns["file"], strict=False))
        digests = [chunks["digest"][at : at + 16] for at in range(0, len(chunks["digest"]), 16)]
        checks = []
        for place, ((offset,), (stored,), (codec,), (number,)) in enumerate(rows):
            if number:
                checks.append(chunks["check"][8 * place : 8 * place + 8])
                continue
            bytes_ = body[offset - 64 : offset - 64 + stored] if offset >= 64 else b""
            if codec == 0:
                digests[place] = xxhash.xxh3_128_digest(bytes_)
                checks.append(digests[place][:8])
            else:
                checks.append(xxhash.xxh3_64_digest(bytes_))
        chunks["digest"], chunks["check"] = b"".join(digests), b"".join(checks)
    except (struct.error, KeyError, TypeError, IndexError, OverflowError, AttributeError):
        # Already beyond repair.
        return


def _change_body(body: bytes, rng: random.Random) -> bytes:
    changed = bytearray(body)
    match rng.randrange(4):
        case 0 | 1 if changed:
            for _ in range(rng.randrange(1, 4)):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
        case 2:
            changed += bytes(64)
        case 3 if changed:
            start = 64 * rng.randrange(len(changed) // 64)
            frame = zstd_frame(bytes(rng.choice([1, 64, 256, 1 << 20])))[:64]
            changed[start : start + len(frame)] = frame
    return bytes(changed)


def mutate(file: bytes, seed: int) -> bytes:
    """The file with one or more changes to its index or chunks, all digests of the frame right again."""
    rng = random.Random(seed)
    document, body = take_frame(file)
    preamble = file[:64]
    for _ in range(rng.choice([1, 1, 1, 2, 3, 6])):
        try:
            rng.choices([change for _, change in _CHANGES], [weight for weight, _ in _CHANGES])[0](document, rng)
        except (KeyError, TypeError, AttributeError, struct.error, ValueError, IndexError):
            # An earlier change has left nothing to change here.
            break
    if rng.random() < 0.2:
        body = _change_body(body, rng)
    if rng.random() < 0.6:
        repair_chunks(document, body)
    raw = bytearray(msgpack.packb(document))
    if rng.random() < 0.1:
        for _ in range(rng.randrange(1, 4)):
            raw[rng.randrange(len(raw))] = rng.choice(
                [0x91, 0x81, 0xC0, 0xC1, 0xDD, 0xDF, 0xC6, 0xD9, rng.randrange(256)]
            )
        return frame(bytes(raw), body, codec=rng.choice([0, 2]), preamble=preamble)
    return forge(document, body, codec=rng.choice([0, 2]), preamble=preamble)
