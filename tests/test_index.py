"""The raw index: one encoding, every table consistent, each refusal by the number of its rule."""

import copy
import struct
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given

import pytreeckpt as ptc
from pytreeckpt import planning
from pytreeckpt.index import ArrayTable, Chunks, encode_index
from pytreeckpt.index_decoding import decode_index
from tests import strategies as some
from tests.forge import (
    ARRAY,
    DATACLASS,
    ENUM,
    NAMEDTUPLE,
    OBJECT,
    PYTREE,
    RECORD,
    WRAPPER,
    ArrayRow,
    Tree,
    document_of,
    forge,
    frame,
    pack,
    record,
    take_frame,
    zstd_frame,
)

pytestmark = pytest.mark.filterwarnings("ignore:.* came back as")


@given(some.TREES)
def test_encoding_a_decoded_index_gives_the_same_bytes(tree):
    file = ptc.encode(tree)
    document, body = take_frame(file)
    raw = msgpack.packb(document)
    index = decode_index(raw, index_offset=64 + len(body), limits=ptc.current_limits())
    table = ArrayTable(index.descriptors, index.arrays, index.inline, index.pools)
    assert encode_index(index.nodes, table, index.chunks, index.files) == raw


def decode(document: Any, body: bytes = b"") -> Any:
    return ptc.decode(forge(document, body))


def example() -> tuple[dict[str, Any], bytes]:
    """An index with something in every table."""
    ramp, zeros, text = bytes(range(240)), bytes(400), b"abcdefgh" * 100
    tree = [
        [1, 2.5, "text", b"bytes"],
        record("a.Record", {"x": 1, "y": 2}),
        record("a.Other", {"x": Tree(ARRAY, 0)}),
        Tree(ARRAY, 1),
        Tree(ARRAY, 2),
        Tree(ARRAY, 3),
        Tree(ARRAY, 4),
    ]
    arrays = [
        ArrayRow("uint8", (3,), b"abc"),
        ArrayRow("float32", (6, 10), None, [[(ramp[:120], ramp[:120], 0), (ramp[120:], ramp[120:], 0)]]),
        ArrayRow("float32", (10, 10), None, [[(zeros[:4], zeros, 1)]], axes=[1, 0]),
        ArrayRow(
            "uint8",
            (40, 20),
            None,
            [[(zstd_frame(text[:200]), text[:200], 2)], [(text[200:800], text[200:800], 0)]],
            cuts=[[10], []],
        ),
        ArrayRow("uint8", (2, 0, 5), b""),
    ]
    return document_of(tree, arrays)


def test_the_example_is_valid():
    document, body = example()
    tree = decode(document, body)
    assert tree[5].shape == (40, 20)
    assert tree[5][30:].tobytes() == b"abcdefgh" * 25


Change = Callable[[dict[str, Any]], None]


def put(*keys: Any) -> Change:
    """Put the last of the arguments at the place that the others name."""

    def change(document: dict[str, Any]) -> None:
        holder: Any = document
        for key in keys[:-2]:
            holder = holder[key]
        holder[keys[-2]] = keys[-1]

    return change


def remove(*keys: Any) -> Change:
    def change(document: dict[str, Any]) -> None:
        holder: Any = document
        for key in keys[:-1]:
            holder = holder[key]
        del holder[keys[-1]]

    return change


def reorder(*keys: Any) -> Change:
    def change(document: dict[str, Any]) -> None:
        holder: Any = document
        for key in keys[:-1]:
            holder = holder[key]
        holder[keys[-1]] = holder.pop(keys[-1])

    return change


def entry(table: str, column: str, format_: str, place: int, value: int) -> Change:
    """Change an entry of a column."""

    def change(document: dict[str, Any]) -> None:
        width = struct.calcsize(format_)
        buffer = bytearray(document[table][column])
        struct.pack_into("<" + format_, buffer, place * width, value)
        document[table][column] = bytes(buffer)

    return change


def grow(table: str, column: str, more: bytes) -> Change:
    def change(document: dict[str, Any]) -> None:
        document[table][column] += more

    return change


def cut(table: str, column: str, nbytes: int) -> Change:
    def change(document: dict[str, Any]) -> None:
        document[table][column] = document[table][column][:-nbytes]

    return change


def both(*changes: Change) -> Change:
    def change(document: dict[str, Any]) -> None:
        for one in changes:
            one(document)

    return change


U64 = (1 << 64) - 1
BROKEN: list[tuple[str, str, Change]] = [
    ("I-2", "no nodes", remove("nodes")),
    ("I-2", "another key", put("more", 1)),
    ("I-2", "another empty map", put("more", {})),
    ("I-2", "keys in another order", reorder("types")),
    ("I-2", "keys of nodes in another order", reorder("nodes", "ints")),
    ("I-2", "a column missing", remove("chunks", "check")),
    ("I-2", "a column too many", put("arrays", "more", b"")),
    ("I-2", "nodes that is a list", put("nodes", [])),
    ("I-2", "types that is a map", put("types", {})),
    ("I-2", "a column that is a text", put("nodes", "kinds", "\x00")),
    ("I-2", "a column that is a list", put("arrays", "shape", [1])),
    ("I-2", "inline that is nil", put("inline", None)),
    ("I-2", "a text that is bytes", put("nodes", "strings", 0, b"text")),
    ("I-2", "a text that is an integer", put("nodes", "strings", 0, 7)),
    ("I-2", "a text that is a map with a list as key", put("nodes", "strings", 0, {(1,): 1})),
    ("I-2", "bytes that are a text", put("nodes", "bytes", 0, "bytes")),
    ("I-2", "a type that is a map", put("types", 0, {})),
    ("I-2", "a type of two parts", put("types", 0, [1, "a.Record"])),
    ("I-2", "a type of four parts", put("types", 0, [1, "a.Record", ["x", "y"], 0])),
    ("I-2", "a class kind that is a bool", put("types", 0, 0, True)),
    ("I-2", "a class kind that is a float", put("types", 0, 0, 1.0)),
    ("I-2", "a name that is bytes", put("types", 0, 1, b"a.Record")),
    ("I-2", "a field that is an integer", put("types", 0, 2, 0, 5)),
    ("I-3", "a column that is no multiple of its width", grow("nodes", "ints", b"\0")),
    ("I-3", "parallel columns of arrays that differ", grow("arrays", "rank", b"\0")),
    ("I-3", "parallel columns of chunks that differ", cut("chunks", "raw", 4)),
    ("I-3", "a check of 7 bytes", cut("chunks", "check", 1)),
    ("I-3", "a digest of 12 bytes", cut("chunks", "digest", 4)),
    ("T-1", "an unknown class kind", put("types", 0, 0, 6)),
    ("T-1", "a negative class kind", put("types", 0, 0, -1)),
    ("T-1", "a huge class kind", put("types", 0, 0, 1 << 63)),
    ("T-2", "a field twice", put("types", 0, 2, ["x", "x"])),
    ("T-2", "no name", put("types", 0, 1, "")),
    ("T-2", "a wrapper without fields", put("types", 0, [WRAPPER, "a.Record", []])),
    ("T-2", "an enum with other fields", put("types", 0, [ENUM, "a:E", ["value", "name"]])),
    ("T-3", "the same type twice", put("types", 1, [RECORD, "a.Record", ["x", "y"]])),
    (
        "T-4",
        "a registered name with another class kind",
        put("types", 0, [RECORD, "python.deque", ["items", "maxlen"]]),
    ),
    ("T-4", "a registered name with other fields", put("types", 0, [WRAPPER, "python.deque", ["maxlen", "items"]])),
    (
        "T-4",
        "a registered name with another class kind and any fields",
        put("types", 0, [WRAPPER, "python.Namespace", ["x", "y"]]),
    ),
    ("D-1", "a dtype that is unknown", put("dtypes", 0, "f4")),
    ("D-1", "a dtype that is a map", put("dtypes", 0, {"a": 1})),
    ("D-1", "a dtype that is a float", put("dtypes", 0, 1.5)),
    ("D-2", "a struct that is too small", put("dtypes", 0, ["struct", 1, False, [["a", None, "float64", 0, []]]])),
    (
        "D-3",
        "the same dtype twice",
        both(put("dtypes", ["uint8", "uint8"]), put("arrays", "dtype", pack("I", [0, 1, 1, 0, 0]))),
    ),
    ("D-3", "a dtype that is not used", put("dtypes", ["uint8", "float32", "int8"])),
    (
        "D-3",
        "dtypes not in order of first use",
        both(put("dtypes", ["float32", "uint8"]), put("arrays", "dtype", pack("I", [1, 0, 0, 1, 1]))),
    ),
    ("D-3", "a dtype out of range", entry("arrays", "dtype", "I", 0, 9)),
    ("A-1", "65 axes", entry("arrays", "rank", "B", 0, 65)),
    ("A-1", "an unknown layout bit", entry("arrays", "layout", "B", 0, 16)),
    ("A-2", "axes that are the identity", put("arrays", "axes", bytes([0, 1]))),
    ("A-2", "axes that are no permutation", put("arrays", "axes", bytes([1, 1]))),
    ("A-2", "axes out of range", put("arrays", "axes", bytes([2, 0]))),
    ("A-3", "a cut at 0", entry("arrays", "cuts", "Q", 0, 0)),
    ("A-3", "a cut at the end", entry("arrays", "cuts", "Q", 0, 40)),
    (
        "A-3",
        "cuts that do not ascend",
        both(put("arrays", "cuts", pack("Q", [10, 10])), put("arrays", "cut_counts", pack("I", [2, 0]))),
    ),
    (
        "A-3",
        "cuts on no axis",
        both(
            put("arrays", "cuts", b""),
            put("arrays", "cut_counts", pack("I", [0, 0])),
            put("arrays", "chunk_counts", pack("I", [2, 1, 2])),
        ),
    ),
    ("A-4", "an extent of 2^63", entry("arrays", "shape", "Q", 0, 1 << 63)),
    (
        "A-4",
        "extents that overflow 64 bits to 0",
        both(entry("arrays", "shape", "Q", 1, 1 << 32), entry("arrays", "shape", "Q", 2, 1 << 32)),
    ),
    (
        "A-4",
        "extents beside a 0 that overflow",
        both(entry("arrays", "shape", "Q", 7, 1 << 62), entry("arrays", "shape", "Q", 9, 2)),
    ),
    ("A-5", "an empty array that is chunked", entry("arrays", "layout", "B", 4, 1)),
    (
        "A-5",
        "an empty array with axes",
        both(entry("arrays", "layout", "B", 4, 2), put("arrays", "axes", bytes([1, 0, 2, 1, 0]))),
    ),
    ("A-6", "an extent too many", grow("arrays", "shape", bytes(8))),
    ("A-6", "an extent too few", cut("arrays", "shape", 8)),
    ("A-6", "axes too many", grow("arrays", "axes", b"\0")),
    ("A-6", "axes too few", cut("arrays", "axes", 1)),
    ("A-6", "cut counts too many", grow("arrays", "cut_counts", bytes(4))),
    ("A-6", "cuts too many", grow("arrays", "cuts", bytes(8))),
    ("A-6", "more cuts than there are", entry("arrays", "cut_counts", "I", 0, (1 << 32) - 1)),
    ("A-6", "a chunk count too many", grow("arrays", "chunk_counts", pack("I", [1]))),
    ("A-6", "a chunk count too few", cut("arrays", "chunk_counts", 4)),
    ("A-7", "an inline byte too many", put("inline", b"abcd")),
    ("A-7", "an inline byte too few", put("inline", b"ab")),
    ("A-8", "a box without chunks", put("arrays", "chunk_counts", pack("I", [3, 0, 1, 1]))),
    ("A-8", "more chunks than there are rows", entry("arrays", "chunk_counts", "I", 0, 3)),
    ("A-8", "more chunks than there is memory", entry("arrays", "chunk_counts", "I", 0, (1 << 32) - 1)),
    ("C-1", "another file", put("files", [["", 0, b""], ["other", 5, bytes(32)]])),
    ("C-1", "no file", put("files", [])),
    ("C-1", "a file with a name", put("files", [["a", 0, b""]])),
    ("C-1", "a length that is false", put("files", [["", False, b""]])),
    ("C-1", "a length that is a float", put("files", [["", 0.0, b""]])),
    ("C-1", "a root that is a text", put("files", [["", 0, ""]])),
    ("C-11", "a chunk in another file", entry("chunks", "file", "I", 1, 1)),
    ("C-12", "identities without data files", put("chunks", "identity", bytes(5 * 32))),
    ("I-3", "an identity of 31 bytes", put("chunks", "identity", bytes(31))),
    ("C-2", "an unknown codec", entry("chunks", "codec", "B", 0, 200)),
    ("C-3", "a raw length of 0", both(entry("chunks", "raw", "I", 0, 0), entry("chunks", "raw", "I", 1, 240))),
    (
        "C-3",
        "a raw length that is no multiple",
        both(entry("chunks", "raw", "I", 0, 119), entry("chunks", "raw", "I", 1, 121)),
    ),
    ("C-3", "raw lengths that sum to less", entry("chunks", "raw", "I", 0, 116)),
    ("C-3", "raw lengths that sum to more", entry("chunks", "raw", "I", 0, 124)),
    ("C-4", "a raw chunk of another length", entry("chunks", "stored", "I", 0, 119)),
    ("C-4", "a fill of another length", entry("chunks", "stored", "I", 2, 8)),
    ("C-4", "a zstd chunk of 0 bytes", entry("chunks", "stored", "I", 3, 0)),
    ("C-4", "a zstd chunk as long as its content", entry("chunks", "stored", "I", 3, 200)),
    ("C-5", "a raw chunk with another check", entry("chunks", "check", "Q", 0, 7)),
    ("C-6", "a first chunk that is not at 64", entry("chunks", "offset", "Q", 0, 128)),
    ("C-6", "a chunk that begins in another", entry("chunks", "offset", "Q", 1, 128)),
    ("C-6", "a chunk off the grid", entry("chunks", "offset", "Q", 1, 193)),
    ("C-6", "a chunk after a gap", entry("chunks", "offset", "Q", 4, 1 << 40)),
    ("C-6", "a chunk at the end of the address space", entry("chunks", "offset", "Q", 4, U64)),
    ("C-6", "two chunks at the same place that differ", entry("chunks", "offset", "Q", 1, 64)),
]


@pytest.mark.parametrize(
    ("rule", "change"),
    [(rule, change) for rule, _, change in BROKEN],
    ids=[f"{rule} {name}" for rule, name, _ in BROKEN],
)
def test_an_index_that_breaks_a_rule_is_refused_by_its_number(rule, change):
    document, body = example()
    before = copy.deepcopy(document)
    change(document)
    assert document != before or list(document) != list(before) or msgpack.packb(document) != msgpack.packb(before)
    with pytest.raises((ptc.CorruptionError, ptc.FormatVersionError)) as caught:
        decode(document, body)
    assert caught.value.rule == rule


def test_every_rule_of_the_index_has_a_case():
    rules = {rule for rule, _, _ in BROKEN}
    assert {f"A-{i}" for i in range(1, 9)} | {f"C-{i}" for i in range(1, 7)} | {f"T-{i}" for i in range(1, 5)} | {
        f"D-{i}" for i in range(1, 4)
    } <= rules


@pytest.mark.parametrize("document", [None, True, 1, 1.5, "x", b"x", [], [1], {}, {"a": 1}, {1: 2}])
def test_an_index_that_is_another_value_is_refused(document):
    with pytest.raises(ptc.CorruptionError) as caught:
        decode(document)
    assert caught.value.rule == "I-2"


def raw_example() -> bytes:
    return msgpack.packb(document_of([0, "ab"])[0])


@pytest.mark.parametrize(
    ("rule", "raw"),
    [
        ("I-1", b"\xc1"),
        ("I-1", b"\x87"),
        ("I-1", raw_example()[:-1]),
        ("I-1", raw_example() + b"\xc0"),
        ("I-1", raw_example() + raw_example()),
        ("I-1", b"\xde\x00\x07" + raw_example()[1:]),
        ("I-1", raw_example().replace(b"\xa2ab", b"\xd9\x02ab")),
        ("I-1", raw_example().replace(b"\xa0\x00\xc4\x00", b"\xa0\xd0\x00\xc4\x00")),
        ("I-1", raw_example().replace(b"\xa0\x00\xc4\x00", b"\xa0\xcc\x00\xc4\x00")),
        ("I-1", raw_example().replace(b"\xa2ab", b"\xd4\x05a")),
        # A timestamp: msgpack makes a value of it.
        ("I-2", raw_example().replace(b"\xa2ab", b"\xd6\xff\0\0\0\0")),
        ("I-1", b"\x91" * 100_000 + b"\xc0"),
        ("I-1", b"\xdd\xff\xff\xff\xff"),
        ("I-1", b"\xc6\xff\xff\xff\xff"),
        ("I-4", raw_example().replace(b"\xa2ab", b"\xa2\xff\xfe")),
        ("I-4", raw_example().replace(b"\xa2ab", b"\xa3\xed\xa0\x80")),
        ("I-4", raw_example().replace(b"\xa2ab", b"\xa2\xc0\x80")),
    ],
)
def test_bytes_that_are_not_one_shortest_msgpack_object_are_refused(rule, raw):
    assert raw != raw_example()
    with pytest.raises(ptc.CorruptionError) as caught:
        ptc.decode(frame(raw))
    assert caught.value.rule == rule


def _with_nested(table: str, depth: int, innermost: bytes = b"\xc0") -> bytes:
    """The bytes of an index in which an entry of a table is an array that nests."""
    document = document_of(["text", record("a.b", {})], [])[0]
    holder = {
        "strings": document["nodes"]["strings"],
        "types": document["types"],
        "dtypes": document["dtypes"],
        "files": document["files"],
    }[table]
    holder[:] = ["@@mark@@"]
    return msgpack.packb(document).replace(b"\xa8@@mark@@", b"\x91" * depth + innermost)


@pytest.mark.parametrize("depth", [1, 100, 130, 400, 600, 1000, 1100, 100_000])
@pytest.mark.parametrize("table", ["strings", "types", "dtypes", "files"])
def test_arrays_in_arrays_without_end_are_refused_at_every_depth(table, depth):
    with pytest.raises(ptc.CorruptionError) as caught:
        ptc.decode(frame(_with_nested(table, depth)))
    assert caught.value.rule in {"I-1", "I-2", "D-1", "C-1"}


def test_arrays_that_declare_many_items_on_every_level_do_not_take_that_memory():
    # 8 MiB of index, in which each of 900 levels declares 8 million items.
    header = b"\xdd" + struct.pack(">I", 1 << 23)
    raw = _with_nested("strings", 0, header * 900 + b"\xc0" * (1 << 23))
    with pytest.raises(ptc.PytreeckptError):
        ptc.decode(frame(raw, codec=2))


def test_a_type_with_more_fields_than_this_library_allows_is_beyond_a_limit(monkeypatch):
    monkeypatch.setattr("pytreeckpt.index_decoding.MAX_FIELDS", 1000)
    namespace = record("python.Namespace", {f"x{i}": 0 for i in range(1001)})
    with pytest.raises(ptc.LimitError, match="more than 1000"):
        decode(*document_of(namespace))


def test_class_kinds_of_all_numbers_are_known():
    for kind in (WRAPPER, RECORD, NAMEDTUPLE, DATACLASS, PYTREE):
        decode(*document_of(Tree(OBJECT, (kind, "a.b", ("x",)), [Tree(0)])))
    decode(*document_of(Tree(OBJECT, (ENUM, "a:E", ("name", "value")), [Tree(8, "A"), Tree(4, 1)])))


def test_an_index_larger_than_the_limit_is_refused_before_it_is_read():
    file = ptc.encode(list(range(10_000)))
    with ptc.limits(index_nbytes=1000), pytest.raises(ptc.LimitError, match=r"limits\(index_nbytes=…\)"):
        ptc.decode(file)
    with ptc.limits(index_nbytes=1000), pytest.raises(ptc.LimitError, match=r"limits\(index_nbytes=…\)"):
        ptc.encode(list(range(10_000)))


def test_a_chunk_larger_than_the_limit_is_refused():
    file = ptc.encode(np.zeros(100_000))
    with ptc.limits(chunk_nbytes=1000), pytest.raises(ptc.LimitError, match=r"limits\(chunk_nbytes=…\)"):
        ptc.decode(file)


def test_equal_rows_of_chunks_share_their_bytes():
    text = bytes(range(64)) * 2
    row = ArrayRow("uint8", (256,), None, [[(text, text, 0), (text, text, 0)]])
    document, body = document_of([Tree(ARRAY, 0)], [row])
    document["chunks"]["offset"] = pack("Q", [64, 64])
    back = decode(document, body[:128])
    assert back[0].tobytes() == text + text


def test_planning_and_reading_agree_on_what_is_inline(monkeypatch):
    tree = [np.arange(n, dtype=np.uint8) for n in (0, 1, 255, 256, 257, 1000)] + [np.float32(1)]
    for inline_nbytes in (0, 1, 256, 10_000):
        monkeypatch.setattr(planning, "INLINE_NBYTES", inline_nbytes)
        document, body = take_frame(ptc.encode(tree))
        layouts = document["arrays"]["layout"]
        assert [bool(layout & 1) for layout in layouts[:6]] == [
            n > 0 and n > inline_nbytes for n in (0, 1, 255, 256, 257, 1000)
        ]
        assert [array.tolist() for array in decode(document, body)[:6]] == [array.tolist() for array in tree[:6]]


@pytest.mark.parametrize("n_rows", [0, 1, 5000])
def test_rows_by_file_ascend(n_rows):
    file = np.random.default_rng(n_rows).integers(0, 4, n_rows).astype("<u4")
    column = np.zeros(n_rows, np.int64)
    chunks = Chunks(column, column, column, column, b"", b"", file)
    found = chunks.by_file(3)
    assert [rows.tolist() for rows in found] == [np.flatnonzero(file == number).tolist() for number in range(4)]
