"""Files made to exhaust: each ends in an error, in a process that may use little memory and has little time.

Every case is a file of at most a few megabytes. `PYTREECKPT` limits are the defaults unless a case says otherwise.
"""

import hashlib
import json
import resource
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from blake3 import blake3

import pytreeckpt as ptc
from tests.forge import (
    ARRAY,
    BIGINT,
    DICT,
    LIST,
    NAMEDTUPLE,
    OBJECT,
    PREAMBLE,
    RECORD,
    SET,
    TUPLE,
    WRAPPER,
    ArrayRow,
    Tree,
    document_of,
    file_of,
    forge,
    frame,
    leaf,
    pack,
    record,
    take_frame,
)

MEMORY_NBYTES = 3 << 30
TIME_S = 120

RUN = f"""
import json, resource, sys
import numpy, pytreeckpt as ptc
from pytreeckpt import adapters
adapters._installed = dict
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY_NBYTES}, {MEMORY_NBYTES}))
try:
    tree = ptc.restore(sys.argv[1], to="numpy")
    result = ["value", type(tree).__name__]
except ptc.PytreeckptError as error:
    result = [type(error).__name__, str(error)[:300]]
except BaseException as error:
    result = ["ESCAPED " + type(error).__name__, str(error)[:300]]
try:
    report = ptc.verify(sys.argv[1])
    result.append(report.ok)
except BaseException as error:
    result.append("ESCAPED " + type(error).__name__)
print(json.dumps(result))
"""


def _chunk(raw_nbytes: int) -> tuple[bytes, bytes, int]:
    return b"\0", bytes(raw_nbytes), 1


def _repeated(n_rows: int, raw_nbytes: int) -> bytes:
    """An array of `n_rows` chunks that are all the same few bytes."""
    document, body = document_of(Tree(ARRAY, 0), [ArrayRow("uint8", (raw_nbytes,), None, [[_chunk(raw_nbytes)]])])
    document["arrays"]["shape"] = pack("Q", [n_rows * raw_nbytes])
    document["arrays"]["chunk_counts"] = pack("I", [n_rows])
    document["chunks"] = {name: column * n_rows for name, column in document["chunks"].items()}
    return forge(document, body, codec=2)


def _chain(depth: int, make: Callable[[Tree], Tree], bottom: Tree | None = None) -> Tree:
    tree = bottom or leaf(1)
    for _ in range(depth):
        tree = make(tree)
    return tree


def _with_column(table: str, column: str, value: Any, tree: Any = 0) -> bytes:
    document, body = document_of(tree)
    document[table][column] = value
    return forge(document, body, codec=2)


def _big(value: int) -> Tree:
    return Tree(BIGINT, value.to_bytes(value.bit_length() // 8 + 1, "little"))


def _many_types(n: int, class_kind: int) -> bytes:
    tree = Tree(LIST, None, [Tree(OBJECT, (class_kind, f"m:N{i}", ("x",)), [leaf(1)]) for i in range(n)])
    return forge(*document_of(tree), codec=2)


def _struct(fields: list[Any], itemsize: int) -> bytes:
    return file_of(Tree(ARRAY, 0), [ArrayRow(["struct", itemsize, False, fields], (0,), b"")])


def _nested_header(depth: int, n: int) -> bytes:
    """Arrays in arrays, each of which declares as many items as the index has bytes."""
    document = document_of(["@@mark@@"])[0]
    raw = msgpack.packb(document).replace(b"\xa8@@mark@@", (b"\xdd" + struct.pack(">I", n)) * depth + b"\xc0" * n)
    return frame(raw, codec=2)


CASES: dict[str, tuple[Callable[[], bytes], str]] = {
    "an index of 250 MB of zeros": (lambda: frame(bytes(250 << 20), codec=2), "CorruptionError"),
    "an index that declares 2^62 bytes": (lambda: frame(b"\xc0", codec=2, raw_nbytes=1 << 62), "LimitError"),
    "an index that declares 200 MB and has none": (
        lambda: frame(b"\xc0", codec=2, raw_nbytes=200 << 20),
        "CorruptionError",
    ),
    "200 MB of nodes": (lambda: _with_column("nodes", "kinds", bytes(200 << 20)), "LimitError"),
    "29 million nodes": (lambda: _with_column("nodes", "kinds", b"\0\x10" + bytes(29_000_000), []), "CorruptionError"),
    "a list of 2^64 - 1 items": (lambda: file_of(Tree(LIST, (1 << 64) - 1)), "CorruptionError"),
    "a dict of 2^63 items": (lambda: file_of(Tree(DICT, 1 << 63)), "CorruptionError"),
    "counts whose sum overflows": (lambda: file_of(Tree(LIST, 1 << 63, [Tree(LIST, 1 << 63)])), "CorruptionError"),
    "arrays that declare 8 million items on 1000 levels": (lambda: _nested_header(1000, 8 << 20), "CorruptionError"),
    "arrays that declare 1 million items on 1000 levels": (lambda: _nested_header(1000, 1 << 20), "CorruptionError"),
    "a million rows of one chunk": (lambda: _repeated(1 << 20, 1 << 20), "LimitError"),
    "8 TiB of one chunk": (lambda: _repeated(1 << 15, 1 << 28), "LimitError"),
    "8 GiB of one chunk": (lambda: _repeated(1 << 5, 1 << 28), "LimitError"),
    "a chunk of 4 GiB": (lambda: _with_chunk_of((1 << 32) - 1), "LimitError"),
    "an array of 2^62 items of nothing": (
        lambda: file_of(Tree(ARRAY, 0), [ArrayRow(["void", 0], (1 << 62,), b"")]),
        "value",
    ),
    "an array of 2^62 × 0 items": (lambda: file_of(Tree(ARRAY, 0), [ArrayRow("uint8", (1 << 62, 0), b"")]), "value"),
    "an empty array of items of 2^31 - 1 bytes": (
        lambda: file_of(Tree(ARRAY, 0), [ArrayRow(["void", (1 << 31) - 1], (0,), b"")]),
        "value",
    ),
    "an array of 64 axes": (lambda: file_of(Tree(ARRAY, 0), [ArrayRow("uint8", (1,) * 64, b"\1")]), "value"),
    "cuts that make 2^64 boxes": (lambda: _with_many_boxes(), "CorruptionError"),
    "a tree 5 million deep": (lambda: _deep_stream(5_000_000), "LimitError"),
    "a tree 9,990 deep": (lambda: _deep_stream(9_990), "value"),
    "a wrapper in wrappers": (
        lambda: file_of(_chain(9_000, lambda inner: record("a.W", {"x": inner}, WRAPPER))),
        "value",
    ),
    "a namedtuple in namedtuples": (
        lambda: file_of(_chain(9_000, lambda inner: record("a:N", {"x": inner}, NAMEDTUPLE))),
        "value",
    ),
    "a record in records": (lambda: file_of(_chain(9_000, lambda inner: record("a:R", {"x": inner}, RECORD))), "value"),
    "a key 9,000 deep": (
        lambda: file_of(Tree(DICT, None, [_chain(9_000, lambda inner: Tree(TUPLE, None, [inner])), leaf(1)])),
        "LimitError",
    ),
    "an element 9,000 deep": (
        lambda: file_of(Tree(SET, None, [_chain(9_000, lambda inner: Tree(TUPLE, None, [inner]))])),
        "LimitError",
    ),
    "200,000 keys of one hash": (
        lambda: file_of(
            Tree(DICT, None, [_big((k + 10) * ((1 << 61) - 1)) for k in range(200_000)] + [leaf(0)] * 200_000)
        ),
        "LimitError",
    ),
    "a million keys that are the same": (
        lambda: forge(*document_of(Tree(DICT, None, [leaf(7)] * 2_000_000)), codec=2),
        "LimitError",
    ),
    "an integer of 20 million digits": (lambda: forge(*document_of(_big(1 << 66_000_000)), codec=2), "value"),
    "an integer of 20 million digits as a key": (
        lambda: forge(*document_of(Tree(DICT, None, [_big(1 << 66_000_000), leaf(1)])), codec=2),
        "LimitError",
    ),
    "an integer of 20 million digits in a range": (
        lambda: forge(
            *document_of(record("python.range", {"start": 0, "stop": _big(1 << 66_000_000), "step": 1})), codec=2
        ),
        "value",
    ),
    "a text of 100 MB": (lambda: forge(*document_of(["x" * 100_000_000]), codec=2), "value"),
    "a text of 100 MB as a key": (lambda: forge(*document_of({"x" * 100_000_000: 1}), codec=2), "LimitError"),
    "a type with 2 million fields": (
        lambda: forge(*document_of(record("a.R", {f"x{i}": 0 for i in range(2_000_000)})), codec=2),
        "LimitError",
    ),
    "a type with 2 million fields that are the same": (lambda: _type_with_fields(["x"] * 2_000_000), "LimitError"),
    "a type with a million fields and no object": (
        lambda: _type_with_fields([f"x{i}" for i in range(1_000_000)]),
        "CorruptionError",
    ),
    "20,000 types of namedtuples": (lambda: _many_types(20_000, NAMEDTUPLE), "value"),
    "100,000 types of records": (lambda: _many_types(100_000, RECORD), "value"),
    "a struct of 100,000 fields": (
        lambda: _struct([[f"x{i}", None, "uint8", 0, []] for i in range(100_000)], 1),
        "value",
    ),
    "a sub-array of 2^62 items": (
        lambda: _struct([["a", None, "uint8", 0, [(1 << 31) - 1, (1 << 31) - 1]]], (1 << 31) - 1),
        "CorruptionError",
    ),
    "a sub-array of 2^62 × 0 items": (
        lambda: _struct([["a", None, "uint8", 0, [(1 << 31) - 1, (1 << 31) - 1, 0]]], 0),
        "value",
    ),
    "a struct of items of 2 GiB": (
        lambda: _struct([["a", None, ["void", (1 << 31) - 1], 0, []]], (1 << 31) - 1),
        "value",
    ),
    "structs in structs that double": (lambda: _doubling_struct(30), "CorruptionError"),
    "a bytearray of 2^40 zeros": (
        lambda: file_of(record("python.bytearray", {"value": 1 << 40}, WRAPPER)),
        "CorruptionError",
    ),
    "an array of 2^60 objects": (
        lambda: file_of(record("numpy.ObjectArray", {"values": [], "shape": (1 << 60,)}, WRAPPER)),
        "CorruptionError",
    ),
    "a slice of a deep list": (
        lambda: file_of(
            record(
                "python.slice", {"start": _chain(9_000, lambda inner: Tree(LIST, None, [inner])), "stop": 1, "step": 1}
            )
        ),
        "value",
    ),
    "a dtype that is a deep list": (
        lambda: file_of(record("numpy.dtype", {"descriptor": _chain(9_000, lambda inner: Tree(LIST, None, [inner]))})),
        "CorruptionError",
    ),
}


MANIFEST = PREAMBLE[:16] + b"\1" + PREAMBLE[17:]


def _manifest(n_rows: int, files: list[Any], file_of_row: Sequence[int], offsets: Sequence[int]) -> bytes:
    """An array of fills of a byte each, in data files."""
    chunk = (b"\0", bytes(1), 0)
    document, _ = document_of(Tree(ARRAY, 0), [ArrayRow("uint8", (1,), None, [[chunk]])])
    document["arrays"]["shape"] = pack("Q", [n_rows])
    document["arrays"]["chunk_counts"] = pack("I", [n_rows])
    document["chunks"] = {name: column * n_rows for name, column in document["chunks"].items()}
    document["chunks"] |= {
        "file": np.array(file_of_row, "<u4").tobytes(),
        "offset": np.array(offsets, "<u8").tobytes(),
        "identity": blake3(bytes(1)).digest() * n_rows,
    }
    document["files"] += files
    return frame(msgpack.packb(document), codec=2, preamble=MANIFEST)


def _entry(number: int, nbytes: int = 320) -> list[Any]:
    root = hashlib.sha256(struct.pack("<I", number)).digest()
    return [f"{root.hex()}.ptck", nbytes, root]


def _with_data_file(raw_index: bytes, **changes: Any) -> tuple[bytes, dict[str, bytes]]:
    """A manifest of one chunk, and the data file that it is in, with any index."""
    data = frame(raw_index, bytes(64), codec=2, **changes)
    root = data[-80:-48]
    name = f"{root.hex()}.ptck"
    return _manifest(1, [[name, len(data), root]], [1], [64]), {name: data}


MANY = 4096
FOLDERS: dict[str, tuple[Callable[[], tuple[bytes, dict[str, bytes]]], str]] = {
    "more data files than the limit": (
        lambda: (_manifest(1, [_entry(n) for n in range(MANY + 1)], [1], [64]), {}),
        "LimitError",
    ),
    "200,000 data files": (
        lambda: (_manifest(1, [_entry(n) for n in range(200_000)], [1], [64]), {}),
        "LimitError",
    ),
    "as many data files as the limit, none of which is there": (
        lambda: (_manifest(MANY, [_entry(n) for n in range(MANY)], range(1, MANY + 1), [64] * MANY), {}),
        "CorruptionError",
    ),
    "250,000 rows in as many data files as the limit": (
        lambda: (
            _manifest(
                1 << 18,
                [_entry(n, 1 << 40) for n in range(MANY)],
                np.arange(1 << 18) % MANY + 1,
                np.arange(1 << 18) // MANY * 64 + 64,
            ),
            {},
        ),
        "CorruptionError",
    ),
    "250,000 rows that overlap": (
        lambda: (_manifest(1 << 18, [_entry(0, 1 << 62)], np.ones(1 << 18), np.arange(1 << 18) + 64), {}),
        "CorruptionError",
    ),
    "a data file of nearly 2^63 bytes": (
        lambda: (_manifest(1, [_entry(0, (1 << 63) - 1)], [1], [(1 << 63) - 256]), {}),
        "CorruptionError",
    ),
    # What is wrong with the index of a data file, `verify` finds.
    "a data file with an index of 250 MB of zeros": (lambda: _with_data_file(bytes(250 << 20)), "value"),
    "a data file whose index declares 2^62 bytes": (lambda: _with_data_file(b"\xc0", raw_nbytes=1 << 62), "value"),
    "a data file 5 million nodes deep": (
        lambda: _with_data_file(msgpack.packb(take_frame(_deep_stream(5_000_000))[0])),
        "value",
    ),
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is limited by RLIMIT_AS")
@pytest.mark.parametrize(("make", "expected"), FOLDERS.values(), ids=FOLDERS)
def test_a_folder_made_to_exhaust_ends_in_a_value_or_an_error(tmp_path, make, expected):
    manifest, files = make()
    (tmp_path / "x").write_bytes(manifest)
    (tmp_path / "data").mkdir()
    for name, data in files.items():
        (tmp_path / "data" / name).write_bytes(data)
    kind, message, verified = _judged(tmp_path / "x")
    assert kind == expected, message
    assert verified is False


def _judged(path: Path) -> tuple[str, str, object]:
    assert path.stat().st_size < 64 << 20
    run = subprocess.run(
        [sys.executable, "-c", RUN, str(path)], capture_output=True, text=True, timeout=TIME_S, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    kind, message, verified = json.loads(run.stdout)
    return kind, message, verified


def _with_chunk_of(raw_nbytes: int) -> bytes:
    document, body = document_of(Tree(ARRAY, 0), [ArrayRow("uint8", (1,), None, [[_chunk(1)]])])
    document["arrays"]["shape"] = pack("Q", [raw_nbytes])
    document["chunks"]["raw"] = pack("I", [raw_nbytes])
    return forge(document, body)


def _with_many_boxes() -> bytes:
    document, body = document_of(Tree(ARRAY, 0), [ArrayRow("uint8", (2,) * 64, None, [[_chunk(1)]], cuts=[[1]] * 64)])
    return forge(document, body)


def _deep_stream(depth: int) -> bytes:
    document, body = document_of(0)
    document["nodes"] |= {"kinds": b"\0" + b"\x10" * depth + b"\4", "counts": struct.pack("<Q", 1) * depth}
    return forge(document, body, codec=2)


def _type_with_fields(fields: list[str]) -> bytes:
    document, body = document_of(0)
    document["types"] = [[RECORD, "a.R", fields]]
    return forge(document, body, codec=2)


def _doubling_struct(depth: int) -> bytes:
    dtype: Any = "uint8"
    for level in range(depth):
        dtype = [
            "struct",
            2 << level,
            False,
            [["a", None, dtype, 0, []], ["b", None, "uint8", 0, [1 << level, 1 << level, 1 << level]]],
        ]
    return file_of(Tree(ARRAY, 0), [ArrayRow(dtype, (0,), b"")])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is limited by RLIMIT_AS")
@pytest.mark.parametrize(("make", "expected"), CASES.values(), ids=CASES)
def test_a_file_made_to_exhaust_ends_in_a_value_or_an_error(tmp_path, make, expected):
    path = tmp_path / "x"
    path.write_bytes(make())
    kind, message, verified = _judged(path)
    assert kind == expected, message
    assert verified in {True, False}


def test_a_bomb_takes_the_memory_that_it_declares_and_no_more(tmp_path):
    # 64 MiB of zeros in a chunk that declares 1 MiB.
    from tests.forge import zstd_frame

    bomb = zstd_frame(bytes(64 << 20))
    (tmp_path / "x").write_bytes(
        file_of(Tree(ARRAY, 0), [ArrayRow("uint8", (1 << 20,), None, [[(bomb, bytes(1 << 20), 2)]])])
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ptc.CorruptionError) as caught:
        ptc.restore(tmp_path / "x")
    assert caught.value.rule == "Z-2"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10


def test_a_slice_of_an_array_that_no_memory_holds_reads_what_it_touches(tmp_path):
    (tmp_path / "x").write_bytes(_repeated(1 << 12, 1 << 27))
    with ptc.open(tmp_path / "x") as checkpoint:
        assert checkpoint.tree.shape == (1 << 39,)
        assert np.array_equal(checkpoint.tree[(1 << 38) - 5 : (1 << 38) + 5], np.zeros(10, np.uint8))
        with pytest.raises(ptc.LimitError), ptc.limits(arrays_nbytes=1 << 38):
            checkpoint.tree[:]
