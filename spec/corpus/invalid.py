"""Files that break exactly one rule, with every digest before the fault right, and files of the future.

Each generator yields the rule, what is wrong, and the bytes of the file.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from spec.corpus.frames import RAW as RAW_BLOCK
from spec.corpus.frames import RESERVED, block, blocks_of, skippable_frame, zstd_frame
from spec.corpus.parts import (
    FILL,
    MAGIC,
    PLANES,
    RAW,
    ZSTD,
    Chunk,
    File,
    Row,
    blank,
    changed,
    check_of,
    digest_of,
    of_arrays,
    of_nodes,
    pack_index,
)
from spec.corpus.planes import Plane, cut, join, plane_of, planes_chunk

__all__ = ["future_vectors", "invalid_vectors"]

Broken = tuple[str, str, bytes]  # rule, what is wrong, file

NONE, FALSE, TRUE, ELLIPSIS, INT, BIGINT, FLOAT, COMPLEX, STR, BYTES, ARRAY, SCALAR = range(12)
LIST, TUPLE, DICT, SET, FROZENSET, OBJECT = range(16, 22)


def invalid_vectors() -> Iterator[Broken]:
    """All that is damaged or was never right."""
    for rules in (
        frame_rules,
        index_rules,
        node_rules,
        key_rules,
        type_rules,
        dtype_rules,
        array_rules,
        pool_rules,
        chunk_rules,
    ):
        yield from rules()
    yield from planes_rules()
    yield from zstd_rules()


def future_vectors() -> Iterator[Broken]:
    """What a later version may write."""
    yield "F-2", "version-2", changed(blank(), {"preamble/8": 2})
    yield "F-2", "version-0", changed(blank(), {"preamble/8": 0})
    yield "F-2", "version-2-to-the-24", changed(blank(), {"preamble/11": 1})
    # A later version may mean something else by all that follows.
    yield "F-2", "version-2-and-nothing-known-after-it", changed(blank(), {"preamble/8": 2, "end": b"ANOTHER!"})
    yield "F-3", "feature-1", changed(blank(), {"preamble/16": 2})
    yield "F-3", "feature-63", changed(blank(), {"preamble/23": 0x80})
    yield "F-3", "features-all", changed(blank(), {f"preamble/{at}": 0xFF for at in range(16, 24)})
    for codec in (4, 5, 255):
        yield "C-2", f"codec-{codec}", changed(raw_chunks(100), {"chunks/codec/0": codec})


def named(cases: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    """Cases with their names."""
    return cases.items()


# Section 2: the file.


def frame_rules() -> Iterator[Broken]:
    """F-1 to F-14."""
    good = blank().encode()
    yield "F-1", "empty", b""
    yield "F-1", "one-byte", MAGIC[:1]
    yield "F-1", "part-of-the-magic", MAGIC[:7]
    yield "F-1", "zeros", bytes(len(good))
    yield "F-1", "another-format", b"PK\x03\x04" + good[4:]
    yield "F-1", "line-ends-changed", good.replace(b"\r\n", b"\n", 1)
    yield "F-1", "seven-bits", bytes([good[0] & 0x7F]) + good[1:]
    yield "F-1", "something-before-it", b"\xef\xbb\xbf" + good
    for nbytes in (8, 11, 12, 23, 24, 63, 64, 128, 191):
        yield "F-4", f"cut-to-{nbytes}-bytes", good[:nbytes]
    large = raw_chunks(1000).encode()
    yield "F-5", "cut-by-a-byte", good[:-1]
    yield "F-5", "cut-within-the-index", large[:-200]
    yield "F-5", "cut-within-a-chunk", large[:300]
    yield "F-5", "a-byte-after-the-end", good + b"\0"
    yield "F-5", "a-page-after-the-end", good + bytes(4096)
    yield "F-5", "end-magic-like-the-first", changed(blank(), {"end": MAGIC})
    yield "F-6", "check", changed(blank(), {"footer/check": bytes(8)})
    for where, at in [
        ("version", 12),
        ("reserved", 30),
        ("offset", -128),
        ("codec", -104),
        ("root", -60),
        ("length", -24),
    ]:
        yield "F-6", f"{where}-flipped", flipped(good, at)
    yield "F-7", "longer", changed(blank(), {"footer/length": len(good) + 64})
    yield "F-7", "shorter", changed(blank(), {"footer/length": len(good) - 64})
    yield "F-7", "zero", changed(blank(), {"footer/length": 0})
    yield "F-7", "bytes-put-in", good[:-128] + bytes(64) + good[-128:]
    yield "F-7", "two-to-the-63", changed(blank(), {"footer/length": len(good) + (1 << 63)})
    for at in (12, 15, 24, 63):
        yield "F-8", f"preamble-{at}", changed(blank(), {f"preamble/{at}": 1})
    yield "F-8", "footer-25", changed(blank(), {"footer/zeros": b"\1" + bytes(6)})
    yield "F-8", "footer-31", changed(blank(), {"footer/zeros": bytes(6) + b"\x80"})
    yield "F-8", "footer-80", changed(blank(), {"footer/more_zeros": b"\1" + bytes(23)})
    yield "F-8", "footer-103", changed(blank(), {"footer/more_zeros": bytes(23) + b"\xff"})
    nbytes = len(pack_index(blank().index))
    for name, fields in named(
        {
            "offset-not-aligned": {"offset": 65},
            "offset-zero": {"offset": 0, "stored_nbytes": len(good) - 128},
            "offset-after-the-end": {"offset": len(good)},
            "offset-of-the-next-block": {"offset": 128},
            "nothing-stored": {"offset": len(good) - 128, "stored_nbytes": 0, "raw_nbytes": 0},
            "stored-into-the-footer": {"stored_nbytes": nbytes + 64, "raw_nbytes": nbytes + 64},
            "stored-up-to-2-to-the-64": {"stored_nbytes": 2**64 - 1, "raw_nbytes": 2**64 - 1},
            "sum-that-wraps": {"offset": 2**64 - 64, "stored_nbytes": len(good) - 64, "raw_nbytes": len(good) - 64},
        }
    ):
        yield "F-9", name, changed(blank(), {f"footer/{field}": value for field, value in fields.items()})
    yield "F-9", "bytes-before-the-footer", changed(blank(), {"padding": bytes(64 + -nbytes % 64)})
    for codec in (1, 3, 255):
        yield "F-10", f"codec-{codec}", changed(blank(), {"footer/codec": codec})
    yield "F-10", "raw-lengths-differ", changed(blank(), {"footer/raw_nbytes": nbytes + 1})
    yield "F-10", "raw-length-zero", changed(blank(), {"footer/raw_nbytes": 0})
    yield "F-11", "digest", changed(blank(), {"footer/digest": bytes(16)})
    yield "F-11", "first-byte-of-the-index", flipped(good, 64)
    yield "F-11", "last-byte-of-the-index", flipped(good, 64 + nbytes - 1)
    padding = -nbytes % 64
    yield "F-12", "first-byte", changed(blank(), {"padding": b"\1" + bytes(padding - 1)})
    yield "F-12", "last-byte", changed(blank(), {"padding": bytes(padding - 1) + b"\1"})
    yield "F-14", "root", changed(blank(), {"footer/root": bytes(32)})
    yield "F-14", "root-of-a-zstd-index", changed(blank(), {"codec": ZSTD, "footer/root": bytes(32)})
    yield "F-14", "root-of-the-stored-bytes", changed(blank(), {"codec": ZSTD, "footer/root": stored_root()})


def flipped(data: bytes, at: int) -> bytes:
    """The data with one bit flipped, and nothing repaired."""
    changed_data = bytearray(data)
    changed_data[at] ^= 1
    return bytes(changed_data)


def stored_root() -> bytes:
    """The SHA-256 of a compressed index, as if the root were that of the stored bytes."""
    return File(blank().index, raw=zstd_frame(pack_index(blank().index))).encode()[-80:-48]


# Section 3: the index.


def rich() -> File:
    """An index with an entry in every table."""
    file = of_nodes(
        [NONE, LIST, STR, STR, BYTES, ARRAY, OBJECT, INT],
        counts=[4 + 1],
        strings=["text", "more"],
        bytes=[b"\0"],
        ints=[7],
    )
    file.index["nodes"] |= {"objects": [0], "arrays": [0]}
    file.index["types"] = [[1, "a.Record", ["field"]]]
    file.index["dtypes"] = [["bytes", 300]]
    file.index["arrays"] |= {"dtype": [0], "rank": [1], "shape": [2], "layout": [0]}
    file.index["inline"] = bytes(600)
    return file


def with_raw(old: bytes, new: bytes) -> bytes:
    """The rich file with some bytes of its raw index replaced."""
    raw = pack_index(rich().index)
    assert raw.count(old) == 1, old
    return changed(rich(), {"raw": raw.replace(old, new)})


def index_rules() -> Iterator[Broken]:
    """I-1 to I-4."""
    raw = pack_index(rich().index)
    for name, bad in named(
        {
            "nothing-after-it-but-nil": raw + b"\xc0",
            "a-zero-after-it": raw + b"\0",
            "itself-again-after-it": raw + raw,
            "cut-by-a-byte": raw[:-1],
            "cut-in-half": raw[: len(raw) // 2],
            "only-its-first-byte": raw[:1],
            "map-16": b"\xde\0\7" + raw[1:],
            "map-32": b"\xdf\0\0\0\7" + raw[1:],
            "more-entries-than-bytes": b"\xdf\xff\xff\xff\xff" + raw[1:],
        }
    ):
        yield "I-1", name, changed(rich(), {"raw": bad})
    yield (
        "I-1",
        "empty",
        changed(rich(), {"codec": ZSTD, "stored": zstd_frame(b""), "footer/raw_nbytes": 0, "raw": b""}),
    )
    for name, old, new in [
        ("str-8", b"\xa5types", b"\xd9\x05types"),
        ("str-16", b"\xa5types", b"\xda\0\x05types"),
        ("str-32", b"\xa5types", b"\xdb\0\0\0\x05types"),
        ("value-str-8", b"\xa4text", b"\xd9\x04text"),
        ("bin-16", b"\xa4ints\xc4\x08", b"\xa4ints\xc5\0\x08"),
        ("bin-32", b"\xa6inline\xc5\x02\x58", b"\xa6inline\xc6\0\0\x02\x58"),
        ("array-16", b"\xa5types\x91", b"\xa5types\xdc\0\1"),
        ("array-32", b"\xa5types\x91", b"\xa5types\xdd\0\0\0\1"),
        ("uint-8", b"\x93\1\xa8a.Record", b"\x93\xcc\1\xa8a.Record"),
        ("uint-64", b"\x93\1\xa8a.Record", b"\x93\xcf\0\0\0\0\0\0\0\1\xa8a.Record"),
        ("int-8", b"\x93\1\xa8a.Record", b"\x93\xd0\1\xa8a.Record"),
        ("int-64", b"\x93\1\xa8a.Record", b"\x93\xd3\0\0\0\0\0\0\0\1\xa8a.Record"),
        ("int-16-for-uint-16", b"\xa5bytes\xcd\x01\x2c", b"\xa5bytes\xd1\x01\x2c"),
        ("uint-32-for-uint-16", b"\xa5bytes\xcd\x01\x2c", b"\xa5bytes\xce\0\0\x01\x2c"),
        ("float-32", b"\x93\1\xa8a.Record", b"\x93\xca\x3f\x80\0\0\xa8a.Record"),
        ("never-used", b"\x93\1\xa8a.Record", b"\x93\xc1\xa8a.Record"),
        ("extension", b"\x93\1\xa8a.Record", b"\x93\xd4\x05\0\xa8a.Record"),
    ]:
        yield "I-1", name, with_raw(old, new)
    yield from schema_rules()
    for table, column in [
        ("nodes", "counts"),
        ("nodes", "ints"),
        ("nodes", "floats"),
        ("nodes", "objects"),
        ("arrays", "shape"),
    ]:
        yield "I-3", f"{table}-{column}-of-3-bytes", changed(blank(), {f"{table}/{column}": bytes(3)})
    for column, nbytes in [("offset", 7), ("check", 7), ("digest", 8), ("file", 1)]:
        yield "I-3", f"chunks-{column}-of-{nbytes}-bytes", changed(blank(), {f"chunks/{column}": bytes(nbytes)})
    for column in ("dtype", "rank", "layout"):
        yield "I-3", f"arrays-{column}-not-parallel", changed(rich(), {f"arrays/{column}": more(0)})
    for column, entry in named(
        {
            "file": 0,
            "offset": 64,
            "stored": 1,
            "raw": 1,
            "codec": 0,
            "check": bytes(8),
            "digest": bytes(16),
        }
    ):
        yield "I-3", f"chunks-{column}-not-parallel", changed(raw_chunks(8), {f"chunks/{column}": more(entry)})
    for name, text in named(
        {
            "lone-byte": b"\xff",
            "cut-short": b"\xe6\x97",
            "overlong": b"\xc0\x80",
            "surrogate": b"\xed\xa0\x80",
            "surrogate-pair": b"\xed\xa0\xbd\xed\xb9\x82",
            "beyond-unicode": b"\xf4\x90\x80\x80",
        }
    ):
        header = bytes([0xA0 | len(text)])
        yield "I-4", name, with_raw(b"\xa4text", header + text)
    yield "I-4", "field-name", with_raw(b"\xa5field", b"\xa5fiel\x80")
    yield "I-4", "type-name", with_raw(b"\xa8a.Record", b"\xa8a.Recor\xe9")


def more(entry: object) -> Callable[[list[Any]], list[Any]]:
    """A change: one entry more at the end of a column."""
    return lambda column: [*column, entry]


def less(column: Sequence[Any]) -> Any:
    """A change: without the last entry."""
    return column[:-1]


def reordered(section: dict[str, Any]) -> dict[str, Any]:
    """A change: the first key of a map last."""
    first, *others = section
    return {name: section[name] for name in (*others, first)}


def schema_rules() -> Iterator[Broken]:
    """I-2: the keys and the types of the index."""
    yield "I-2", "not-a-map", changed(rich(), {"raw": b"\x90"})
    yield "I-2", "nil", changed(rich(), {"raw": b"\xc0"})
    yield "I-2", "empty-map", changed(rich(), {"raw": b"\x80"})
    file = rich()
    file.index = reordered(file.index)
    yield "I-2", "order-of-the-index", file.encode()
    for section in ("nodes", "arrays", "chunks"):
        yield "I-2", f"order-of-{section}", changed(rich(), {section: reordered})
        yield "I-2", f"{section}-with-another-key", changed(rich(), {f"{section}/more": b""})
        yield "I-2", f"{section}-an-array", changed(rich(), {section: []})
    yield "I-2", "another-key", changed(rich(), {"more": None})
    yield "I-2", "another-key-of-an-empty-map", changed(rich(), {"more": {}})
    file = rich()
    del file.index["files"]
    yield "I-2", "files-missing", file.encode()
    file = rich()
    del file.index["arrays"]["cuts"]
    yield "I-2", "cuts-missing", file.encode()
    yield "I-2", "misspelt-key", with_raw(b"\xa6inline", b"\xa6Inline")
    yield "I-2", "integer-key", with_raw(b"\xa6inline", b"\7")
    yield "I-2", "nil-key", with_raw(b"\xa6inline", b"\xc0")
    yield (
        "I-2",
        "same-key-twice",
        changed(rich(), {"raw": lambda _: b"\x88" + pack_index(rich().index)[1:] + b"\xa5files\x90"}),
    )
    for path, value in named(
        {
            "nodes/kinds": (0, 0),
            "nodes/counts": None,
            "nodes/ints": "",
            "nodes/strings": b"",
            "nodes/strings/0": b"text",
            "nodes/strings/1": None,
            "nodes/bytes": {},
            "nodes/bytes/0": "text",
            "arrays/rank": "\1",
            "arrays/shape": (2,),
            "inline": "",
            "chunks/check": (),
            "types": {},
            "types/0": {"class kind": 1},
            "dtypes": b"",
            "files": None,
        }
    ):
        yield "I-2", f"{path.replace('/', '-')}-a-{type(value).__name__.lower()}", changed(rich(), {path: value})
    for name, entry in named(
        {
            "type-of-two-items": [1, "a.Record"],
            "type-of-four-items": [1, "a.Record", ["field"], None],
            "type-with-a-bool": [True, "a.Record", ["field"]],
            "type-with-a-text": ["1", "a.Record", ["field"]],
            "type-with-a-name-of-bytes": [1, b"a.Record", ["field"]],
            "type-with-fields-in-a-text": [1, "a.Record", "field"],
            "type-with-a-field-of-bytes": [1, "a.Record", [b"field"]],
            "type-with-a-field-of-nil": [1, "a.Record", [None]],
        }
    ):
        yield "I-2", name, changed(rich(), {"types/0": entry})


# Section 4: the node stream.


def node_rules() -> Iterator[Broken]:
    """N-1 to N-4, N-7, N-9 to N-11."""
    for kind in (12, 15, 22, 255):
        yield "N-1", f"kind-{kind}", of_nodes([NONE, kind]).encode()
    yield "N-1", "kind-13-in-a-list", of_nodes([NONE, LIST, NONE, 13], counts=[2]).encode()
    for name, kinds, counts in [
        ("no-nodes", [], []),
        ("no-tree", [NONE], []),
        ("three-trees", [NONE, NONE, NONE], []),
        ("third-tree-begun", [NONE, NONE, LIST], [1]),
        ("list-a-child-short", [NONE, LIST, NONE], [2]),
        ("list-with-a-child-too-many", [NONE, LIST, NONE, NONE], [1]),
        ("dict-without-its-last-value", [NONE, DICT, NONE, TRUE, FALSE], [2]),
        ("metadata-that-takes-the-tree", [LIST, NONE], [1]),
        ("count-2-to-the-63", [NONE, LIST, NONE], [2**63]),
        ("count-2-to-the-64-minus-1", [NONE, LIST, NONE], [2**64 - 1]),
        ("dict-count-that-wraps", [NONE, DICT], [2**63]),
        ("counts-whose-sum-wraps", [NONE, LIST, LIST, NONE], [2**64 - 1, 3]),
    ]:
        yield "N-2", name, of_nodes(kinds, counts=counts).encode()
    two_fields = [[1, "a.Record", ["a", "b"]]]
    yield "N-2", "object-a-field-short", of_nodes([NONE, OBJECT, NONE], objects=[0], types=two_fields).encode()
    every: dict[str, list[Any]] = {
        "counts": [0],
        "ints": [1],
        "floats": [1.0, 2.0, 3.0],
        "strings": ["x"],
        "bytes": [b"x"],
        "objects": [0],
    }
    kinds = [NONE, TUPLE, LIST, INT, FLOAT, COMPLEX, STR, BYTES, OBJECT]
    for column, entries in every.items():
        file = of_nodes(kinds, **{**every, "counts": [7, 0]}, types=[[1, "a.Record", []]])
        yield "N-3", f"{column}-too-long", changed(file, {f"nodes/{column}": more(entries[0])})
        yield "N-3", f"{column}-too-short", changed(file, {f"nodes/{column}": less})
    yield "N-3", "arrays-too-long", changed(u1_array(), {"nodes/arrays": more(0)})
    yield "N-3", "complex-with-one-float", of_nodes([NONE, COMPLEX], floats=[1.0]).encode()
    for name, blob in named(
        {
            "empty": b"",
            "zero": b"\0",
            "an-int": (2**62).to_bytes(8, "little"),
            "greatest-int": (2**63 - 1).to_bytes(8, "little"),
            "least-int": (1 << 63).to_bytes(8, "little"),
            "greatest-int-in-9-bytes": (2**63 - 1).to_bytes(9, "little"),
            "least-int-in-9-bytes": (-(2**63)).to_bytes(9, "little", signed=True),
            "a-zero-too-many": (2**70).to_bytes(10, "little"),
            "a-sign-byte-too-many": (-(2**70)).to_bytes(10, "little", signed=True),
            "many-zeros-too-many": (2**63).to_bytes(30, "little"),
        }
    ):
        yield "N-4", name, of_nodes([NONE, BIGINT], bytes=[blob]).encode()
    for name, (kinds, columns) in named(
        {
            "ellipsis": ([ELLIPSIS], {}),
            "complex": ([COMPLEX], {"floats": [0.0, 1.0]}),
            "set": ([SET], {"counts": [0]}),
            "frozenset": ([FROZENSET], {"counts": [0]}),
            "object": ([OBJECT], {"objects": [0], "types": [[1, "a.Record", []]]}),
            "ellipsis-in-a-list": ([LIST, NONE, ELLIPSIS], {"counts": [2]}),
        }
    ):
        yield "N-7", name, of_nodes([*kinds, NONE], **columns).encode()
    for name, kind in [("array", ARRAY), ("scalar", SCALAR)]:
        yield "N-7", name, changed(u1_array(), {"nodes/kinds": [kind, NONE], "nodes/counts": []})
    yield from reference_rules()


def reference_rules() -> Iterator[Broken]:
    """N-9 to N-11."""
    types = [[1, "a.A", []], [1, "a.B", []]]
    kinds = [NONE, LIST, OBJECT, OBJECT, OBJECT]
    for name, objects in named(
        {
            "out-of-range": [0, 1, 2],
            "far-out-of-range": [0, 1, 2**32 - 1],
            "not-in-order": [1, 0, 1],
            "not-from-the-first": [1, 1, 1],
            "type-not-used": [0, 0, 0],
        }
    ):
        yield "N-9", name, of_nodes(kinds, counts=[3], objects=objects, types=types).encode()
    yield "N-9", "type-without-objects", of_nodes([NONE, NONE], types=types[:1]).encode()
    yield "N-9", "object-without-types", of_nodes([NONE, OBJECT], objects=[0]).encode()
    three = [Row("uint8", [1], b"\0"), Row("uint8", [2], bytes(2))]
    for name, arrays in named(
        {
            "out-of-range": [0, 1, 2],
            "far-out-of-range": [0, 1, 2**32 - 1],
            "not-in-order": [1, 0, 1],
            "not-from-the-first": [1, 1, 1],
            "array-not-used": [0, 0, 0],
        }
    ):
        changes = {"nodes/kinds": [NONE, LIST, ARRAY, ARRAY, ARRAY], "nodes/counts": [3], "nodes/arrays": arrays}
        yield "N-10", name, changed(of_arrays(*three), changes)
    yield (
        "N-10",
        "array-without-nodes",
        changed(u1_array(), {"nodes/kinds": [NONE, NONE], "nodes/counts": [], "nodes/arrays": []}),
    )
    one_scalar = {"nodes/kinds": [NONE, SCALAR], "nodes/counts": []}
    yield "N-11", "rank-1", changed(u1_array(), one_scalar)
    pooled = of_arrays(Row("uint8", [], None, pooled=True), pools=[[Chunk(b"\1", b"\1")]])
    yield "N-11", "pooled", changed(pooled, one_scalar)
    yield "N-11", "chunked", changed(of_arrays(Row("uint8", [], None, [[Chunk(b"\1", b"\1")]])), one_scalar)
    for name, nodes in {"shared-by-scalars": [SCALAR, SCALAR], "shared-with-an-array": [ARRAY, SCALAR]}.items():
        changes = {"nodes/kinds": [NONE, LIST, *nodes], "nodes/counts": [2], "nodes/arrays": [0, 0]}
        yield "N-11", name, changed(of_arrays(Row("uint8", [], b"\0")), changes)
    for dtype, content in named(
        {
            "str": b"\0\0\x11\0",
            "str_be": b"\0\x11\0\0",
        }
    ):
        yield "N-11", f"{dtype}-beyond-unicode", changed(of_arrays(Row([dtype, 1], [], content)), one_scalar)
    yield "N-11", "str-negative", changed(of_arrays(Row(["str", 2], [], b"x\0\0\0\xff\xff\xff\xff")), one_scalar)


def u1_array() -> File:
    """A list of one inline array."""
    return of_arrays(Row("uint8", [3], b"\1\2\3"))


def key_rules() -> Iterator[Broken]:
    """N-5, N-6 and N-8."""
    for name, (kinds, columns) in named(
        {
            "ellipsis": ([ELLIPSIS], {}),
            "complex": ([COMPLEX], {"floats": [0.0, 1.0]}),
            "list": ([LIST], {"counts": [0]}),
            "dict": ([DICT], {"counts": [0]}),
            "set": ([SET], {"counts": [0]}),
            "frozenset": ([FROZENSET], {"counts": [0]}),
            "list-in-a-tuple": ([TUPLE, LIST], {"counts": [1, 0]}),
            "ellipsis-deep-in-tuples": ([TUPLE, NONE, TUPLE, ELLIPSIS], {"counts": [2, 1]}),
            "object": ([OBJECT], {"objects": [0], "types": [[1, "a.Record", []]]}),
        }
    ):
        counts = [1, *columns.get("counts", [])]
        yield "N-5", f"key-{name}", of_nodes([NONE, DICT, *kinds, NONE], **{**columns, "counts": counts}).encode()
    for name, (kinds, columns) in named(
        {
            "list": ([LIST], {"counts": [0]}),
            "dict": ([DICT], {"counts": [0]}),
            "set": ([SET], {"counts": [0]}),
            "set-in-a-frozenset": ([FROZENSET, SET], {"counts": [1, 0]}),
            "list-in-a-tuple": ([TUPLE, LIST], {"counts": [1, 0]}),
            "object": ([OBJECT], {"objects": [0], "types": [[1, "a.Record", []]]}),
        }
    ):
        for kind, container in [(SET, "set"), (FROZENSET, "frozenset")]:
            counts = [1, *columns.get("counts", [])]
            file = of_nodes([NONE, kind, *kinds], **{**columns, "counts": counts})
            yield "N-5", f"element-of-a-{container}-{name}", file.encode()
    for name, kind in [("array", ARRAY), ("scalar", SCALAR)]:
        changes = {"nodes/kinds": [NONE, DICT, kind, NONE], "nodes/counts": [1]}
        yield "N-5", f"key-{name}", changed(of_arrays(Row("uint8", [], b"\0")), changes)
        yield (
            "N-5",
            f"element-{name}",
            changed(of_arrays(Row("uint8", [], b"\0")), changes | {"nodes/kinds": [NONE, SET, kind]}),
        )
    for name, pair in EQUAL_KEYS.items():
        yield "N-6", f"keys-{name}", of_parts(DICT, pair, also=[NONE, NONE]).encode()
        yield "N-6", f"keys-in-tuples-{name}", of_parts(DICT, [(key, 1) for key in pair], also=[NONE, NONE]).encode()
    yield "N-6", "key-again-after-others", of_parts(DICT, ["a", "b", "c", "a"], also=[NONE] * 4).encode()
    yield (
        "N-6",
        "in-metadata",
        changed(of_parts(DICT, ["a", "a"], also=[NONE] * 2), {"nodes/kinds": [DICT, STR, STR, NONE, NONE, NONE]}),
    )
    for name, pair in (EQUAL_KEYS | EQUAL_ELEMENTS).items():
        yield "N-6", f"elements-{name}", of_parts(SET, pair).encode()
    yield "N-6", "elements-of-a-frozenset", of_parts(FROZENSET, [True, 1]).encode()
    for name, elements in named(
        {
            "texts": ["b", "a"],
            "a-longer-text-before": ["aa", "b"],
            "a-prefix-after": [(1, 2), (1,)],
            "kinds": [1, None],
            "ints-by-value": [-1, 0],
            "ints-by-value-not-bytes": [1, 256],
            "floats-by-value": [-1.0, 1.0],
            "three": [0, 2, 1],
            "tuples": [(2,), (1,)],
        }
    ):
        yield "N-8", name, of_parts(SET, elements).encode()
    yield "N-8", "in-a-frozenset", of_parts(FROZENSET, ["b", "a"]).encode()
    yield (
        "N-8",
        "in-a-frozenset-in-a-set",
        of_nodes([NONE, SET, FROZENSET, STR, STR], counts=[1, 2], strings=["b", "a"]).encode(),
    )


NAN = float("nan")
# Each pair in the order of N-8, so that as the elements of a set it breaks no other rule.
EQUAL_KEYS: dict[str, list[Any]] = {
    "same-text": ["a", "a"],
    "same-bytes": [b"", b""],
    "nones": [None, None],
    "true-and-1": [True, 1],
    "false-and-0": [False, 0],
    "true-and-1.0": [True, 1.0],
    "1-and-1.0": [1, 1.0],
    "zeros-of-both-signs": [0.0, -0.0],
    "0-and-minus-0.0": [0, -0.0],
    "2-to-the-53": [2**53, 2.0**53],
    "bigint-and-float": [2**70, 2.0**70],
    "same-nan": [NAN, NAN],
}
EQUAL_ELEMENTS: dict[str, list[Any]] = {
    "ellipses": [..., ...],
    "complex-and-int": [1, complex(1, 0)],
    "complex-and-float": [0.5, complex(0.5, -0.0)],
    "complex-and-complex": [complex(0.0, 1.0), complex(-0.0, 1.0)],
    "same-complex-nan": [complex(0.0, NAN), complex(0.0, NAN)],
    "frozensets": [frozenset([True]), frozenset([1])],
    "frozensets-in-tuples": [(frozenset([True]),), (frozenset([1.0]),)],
    "nan-and-equal-numbers": [(NAN, True), (NAN, 1)],
}


def of_parts(kind: int, parts: Sequence[Any], also: Sequence[int] = ()) -> File:
    """A file whose tree is a container of these keys or elements in this order, and then of nodes of other kinds."""
    kinds: list[int] = []
    columns: dict[str, list[Any]] = {name: [] for name in ("counts", "ints", "floats", "strings", "bytes")}

    def put(value: Any) -> None:
        match value:
            case None | bool():
                kinds.append({None: NONE, False: FALSE, True: TRUE}[value])
            case int() if -(2**63) <= value < 2**63:
                kinds.append(INT)
                columns["ints"].append(value)
            case int():
                kinds.append(BIGINT)
                columns["bytes"].append(value.to_bytes(value.bit_length() // 8 + 1, "little"))
            case float():
                kinds.append(FLOAT)
                columns["floats"].append(value)
            case complex():
                kinds.append(COMPLEX)
                columns["floats"] += [value.real, value.imag]
            case str() | bytes():
                kinds.append(STR if isinstance(value, str) else BYTES)
                columns["strings" if isinstance(value, str) else "bytes"].append(value)
            case tuple() | frozenset():
                kinds.append(TUPLE if isinstance(value, tuple) else FROZENSET)
                columns["counts"].append(len(value))
                for part in value:
                    put(part)
            case _:
                kinds.append(ELLIPSIS)

    for part in parts:
        put(part)
    return of_nodes([NONE, kind, *kinds, *also], **{**columns, "counts": [len(parts), *columns["counts"]]})


# Section 5: types.


def type_rules() -> Iterator[Broken]:
    """T-1 to T-4."""
    for class_kind in (6, 255, -1, 2**63):
        yield "T-1", f"class-kind-{class_kind}", of_types([class_kind, "a.Record", []]).encode()
    for name, entry in named(
        {
            "field-twice": [1, "a.Record", ["a", "b", "a"]],
            "no-name": [1, "", []],
            "wrapper-without-fields": [0, "a.Wrapper", []],
            "enum-without-fields": [4, "m:Enum", []],
            "enum-with-other-fields": [4, "m:Enum", ["name", "number"]],
            "enum-with-fields-in-another-order": [4, "m:Enum", ["value", "name"]],
            "enum-with-more-fields": [4, "m:Enum", ["name", "value", "more"]],
        }
    ):
        yield "T-2", name, of_types(entry).encode()
    yield "T-3", "same-entry-twice", of_types([1, "a.Record", ["a"]], [1, "a.Record", ["a"]]).encode()
    yield "T-3", "same-entry-after-others", of_types([1, "a.A", []], [1, "a.B", []], [1, "a.A", []]).encode()
    for name, entry in named(
        {
            "wrapper-as-a-record": [1, "torch.Tensor", ["data", "requires_grad"]],
            "record-as-a-wrapper": [0, "python.range", ["start", "stop", "step"]],
            "record-as-a-dataclass": [3, "torch.device", ["type", "index"]],
            "any-fields-as-a-wrapper": [0, "python.SimpleNamespace", ["a"]],
            "field-missing": [0, "torch.Tensor", ["data"]],
            "field-too-many": [0, "jax.Array", ["data", "weak_type", "sharding"]],
            "fields-in-another-order": [0, "python.deque", ["maxlen", "items"]],
            "another-field": [1, "torch.dtype", ["names"]],
            "no-fields": [1, "numpy.dtype", []],
        }
    ):
        yield "T-4", name, of_types(entry).encode()


def of_types(*types: list[Any]) -> File:
    """A list of objects of these types, all fields None."""
    nodes = [kind for _, _, fields in types for kind in (OBJECT, *[NONE] * len(fields))]
    return of_nodes([NONE, LIST, *nodes], counts=[len(types)], objects=range(len(types)), types=types)


# Section 6: dtypes.


def of_dtype(dtype: Any) -> File:
    """An array without items, which is right whatever the itemsize."""
    return of_arrays(Row(dtype, [0], b""))


def struct(itemsize: Any, *fields: Any, aligned: Any = False) -> list[Any]:
    """A struct dtype."""
    return ["struct", itemsize, aligned, list(fields)]


def a_field(name: Any = "a", dtype: Any = "uint8", offset: Any = 0, extents: Any = (), title: Any = None) -> list[Any]:
    """A field of a struct dtype."""
    return [name, title, dtype, offset, list(extents)]


def structs(depth: int) -> Any:
    """A struct that nests this deep."""
    dtype: Any = "uint8"
    for _ in range(depth):
        dtype = struct(1, a_field(dtype=dtype))
    return dtype


def dtype_rules() -> Iterator[Broken]:
    """D-1 to D-3."""
    for name, dtype in named(
        {
            "unknown": "float31",
            "empty": "",
            "upper-case": "Float32",
            "numpy-code": "<f4",
            "object": "object",
            "without-a-big-endian-form": "bfloat16_be",
            "one-byte-big-endian": "int8_be",
            "extended-big-endian": "float128_be",
            "little-endian-suffix": "int16_le",
            "nil": None,
            "int": 4,
            "bool": True,
            "map": {"float32": 4},
            "bytes": b"float32",
            "empty-array": [],
            "simple-in-an-array": ["float32"],
            "parametric-without-an-array": "void",
            "parametric-without-a-number": ["bytes"],
            "parametric-unknown": ["unicode", 3],
            "parametric-with-too-much": ["bytes", 3, 3],
            "length-negative": ["bytes", -1],
            "length-a-text": ["bytes", "3"],
            "length-a-bool": ["void", True],
            "length-2-to-the-31": ["bytes", 2**31],
            "length-2-to-the-64-minus-1": ["void", 2**64 - 1],
            "str-of-2-to-the-31-bytes": ["str", 2**29],
            "str_be-of-2-to-the-31-bytes": ["str_be", 2**29],
            "void-big-endian": ["void_be", 2],
            "time-without-a-unit": ["datetime64"],
            "time-without-a-count": ["datetime64", "s"],
            "time-unit-unknown": ["datetime64", "min", 1],
            "time-unit-empty": ["timedelta64", "", 1],
            "time-unit-nil": ["timedelta64", None, 1],
            "time-unit-an-array": ["timedelta64", ["s"], 1],
            "time-count-zero": ["datetime64", "s", 0],
            "time-count-negative": ["datetime64", "s", -1],
            "time-count-a-bool": ["datetime64", "s", True],
            "time-count-2-to-the-31": ["timedelta64_be", "s", 2**31],
            "time-generic-count-2": ["datetime64", "generic", 2],
            "struct-without-aligned": ["struct", 1, []],
            "struct-aligned-an-int": struct(1, a_field(), aligned=0),
            "struct-aligned-nil": struct(1, a_field(), aligned=None),
            "struct-itemsize-negative": struct(-1),
            "struct-itemsize-2-to-the-31": struct(2**31),
            "struct-itemsize-nil": struct(None),
            "struct-fields-a-map": ["struct", 1, False, {}],
            "struct-field-of-4-items": struct(1, a_field()[:4]),
            "struct-field-of-6-items": struct(1, [*a_field(), None]),
            "struct-field-a-text": struct(1, "a"),
            "struct-field-name-nil": struct(1, a_field(None)),
            "struct-field-name-bytes": struct(1, a_field(b"a")),
            "struct-field-title-an-int": struct(1, a_field(title=1)),
            "struct-field-dtype-unknown": struct(1, a_field(dtype="object")),
            "struct-field-offset-a-bool": struct(1, a_field(offset=False)),
            "struct-field-offset-nil": struct(1, a_field(offset=None)),
            "struct-field-extents-nil": struct(1, [*a_field()[:4], None]),
            "struct-field-extents-an-int": struct(1, [*a_field()[:4], 1]),
            "struct-field-extent-a-text": struct(1, a_field(extents=["1"])),
            "struct-field-extent-a-bool": struct(1, a_field(extents=[True])),
            "structs-33-deep": structs(33),
        }
    ):
        yield "D-1", name, of_dtype(dtype).encode()
    for name, dtype in named(
        {
            "same-name": struct(2, a_field(), a_field(offset=1)),
            "same-name-empty": struct(2, a_field(""), a_field("", offset=1)),
            "same-title": struct(2, a_field(title="t"), a_field("b", offset=1, title="t")),
            "title-of-its-own-name": struct(1, a_field(title="a")),
            "title-of-another-name": struct(2, a_field(title="b"), a_field("b", offset=1)),
            "beyond-the-item": struct(1, a_field(dtype="uint16")),
            "offset-beyond-the-item": struct(1, a_field(offset=1)),
            "no-bytes-beyond-the-item": struct(1, a_field(dtype=["void", 0], offset=2)),
            "extents-beyond-the-item": struct(5, a_field(dtype="uint16", extents=[3])),
            "extents-whose-product-wraps": struct(8, a_field(extents=[2**30, 2**30, 2**4])),
            "inner-field-beyond-the-item": struct(4, a_field(dtype=struct(1, a_field(dtype="uint16")))),
            "offset-negative": struct(1, a_field(offset=-1)),
            "offset-negative-of-no-bytes": struct(1, a_field(dtype=["void", 0], offset=-1)),
            "offset-2-to-the-31": struct(1, a_field(dtype=["void", 0], offset=2**31)),
            "extent-negative": struct(1, a_field(extents=[-1])),
            "extents-both-negative": struct(1, a_field(extents=[-1, -1])),
            "extent-2-to-the-31": struct(1, a_field(extents=[0, 2**31])),
            "extents-65": struct(1, a_field(extents=[1] * 65)),
        }
    ):
        yield "D-2", name, of_dtype(dtype).encode()
    two = of_arrays(Row("uint8", [1], b"\0"), Row("int8", [1], b"\0"), Row("uint8", [1], b"\0"))
    for name, changes in named(
        {
            "equal-entries": {"dtypes": ["uint8", "uint8"]},
            "equal-entries-of-arrays": {"dtypes": [["void", 1], ["void", 1]]},
            "out-of-range": {"arrays/dtype": [0, 1, 2]},
            "far-out-of-range": {"arrays/dtype": [0, 1, 2**32 - 1]},
            "not-in-order": {"arrays/dtype": [1, 0, 1]},
            "not-used": {"arrays/dtype": [0, 0, 0]},
            "another-entry": {"dtypes": ["uint8", "int8", "bool"]},
        }
    ):
        yield "D-3", name, changed(two, changes)
    yield "D-3", "without-arrays", changed(blank(), {"dtypes": ["uint8"]})


# Section 7: arrays.


def array_rules() -> Iterator[Broken]:
    """A-1 to A-10."""
    yield "A-1", "rank-65", of_arrays(Row("uint8", [1] * 65, b"\0")).encode()
    yield "A-1", "rank-255", of_arrays(Row("uint8", [1] * 255, b"\0")).encode()
    for layout in (16, 128):
        yield "A-1", f"layout-{layout}", changed(u1_array(), {"arrays/layout/0": layout})
    for name, shape, axes in [
        ("identity", [2, 3], [0, 1]),
        ("identity-of-rank-1", [6], [0]),
        ("identity-of-rank-0", [], []),
        ("same-axis-twice", [2, 3], [1, 1]),
        ("axis-out-of-range", [2, 3], [2, 0]),
        ("axis-255", [2, 3], [1, 255]),
    ]:
        yield "A-2", name, of_arrays(Row("uint8", shape, bytes(math.prod(shape)), axes=axes)).encode()
    for name, cuts in named(
        {
            "descending": [[2, 1], []],
            "equal": [[2, 2], []],
            "zero": [[0], []],
            "the-extent": [[4], []],
            "beyond-the-extent": [[], [7]],
            "2-to-the-63": [[1, 2**63], []],
            "of-the-array-not-as-stored": [[], [4]],
        }
    ):
        order = [1, 0] if name.startswith("of-the-array") else None
        yield "A-3", name, of_arrays(Row("uint8", [4, 6], None, boxes_of(24, cuts), order, cuts)).encode()
    yield "A-3", "none", of_arrays(Row("uint8", [24], None, [[Chunk(bytes(24), bytes(24))]], None, [[]])).encode()
    yield "A-3", "inline", of_arrays(Row("uint8", [24], bytes(24), cuts=[[12]])).encode()
    for name, dtype, shape in [
        ("extent-2-to-the-63", "uint8", [2**63, 0]),
        ("extent-2-to-the-64-minus-1", "uint8", [0, 2**64 - 1]),
        ("product", "uint8", [2**32, 2**31, 0]),
        ("product-with-the-itemsize", "float64", [2**60, 0]),
        ("product-that-wraps", "uint8", [2**32, 2**32, 0]),
        ("product-without-bytes", ["void", 0], [2**32, 2**31]),
    ]:
        yield "A-4", name, of_arrays(Row(dtype, shape, b"")).encode()
    yield "A-5", "axes", of_arrays(Row("uint8", [0, 3], b"", axes=[1, 0])).encode()
    yield "A-5", "axes-of-no-itemsize", of_arrays(Row(["void", 0], [2, 3], b"", axes=[1, 0])).encode()
    yield (
        "A-5",
        "chunked",
        changed(of_arrays(Row("uint8", [0], b"")), {"arrays/layout": [1], "arrays/chunk_counts": [1]}),
    )
    every = of_arrays(Row("uint8", [4, 6], None, boxes_of(24, [[2], []]), [1, 0], [[3], []]))
    for column, entry in {"shape": 1, "axes": 0, "cut_counts": 0, "cuts": 1, "chunk_counts": 1}.items():
        yield "A-6", f"{column}-too-long", changed(every, {f"arrays/{column}": more(entry)})
        yield "A-6", f"{column}-too-short", changed(every, {f"arrays/{column}": less})
    yield "A-6", "cut-counts-2-to-the-32-minus-1", changed(every, {"arrays/cut_counts/0": 2**32 - 1})
    grid = [list(range(1, 9))] * 9
    file = of_arrays(Row("uint8", [9] * 9, None, boxes_of(9, [[1]]), None, grid))
    yield "A-6", "more-boxes-than-counts", file.encode()
    yield "A-7", "too-long", changed(u1_array(), {"inline": bytes(4)})
    yield "A-7", "too-short", changed(u1_array(), {"inline": bytes(2)})
    yield "A-7", "empty", changed(u1_array(), {"inline": b""})
    yield "A-7", "without-arrays", changed(blank(), {"inline": b"\0"})
    yield "A-7", "of-a-vast-array", changed(u1_array(), {"arrays/shape/0": 2**62})
    for name, counts in {"none": [0, 2], "too-many": [1, 2], "too-few": [1, 0], "vast": [2**32 - 1, 2**32 - 1]}.items():
        yield "A-8", name, changed(raw_chunks(8, 8), {"arrays/chunk_counts": counts})
    yield (
        "A-8",
        "rows-without-arrays",
        changed(raw_chunks(8), {"nodes/kinds": [0, 0], "nodes/counts": [], "nodes/arrays": [], **NO_ARRAYS}),
    )


def pool_rules() -> Iterator[Broken]:
    """A-8 to A-10, and what other rules say of pools."""
    two = [Row("uint8", [3], None, pooled=True), Row("uint8", [2, 2], None, pooled=True)]
    content = bytes(range(7))
    pool = of_arrays(*two, pools=[[Chunk(content, content)]])
    for name, counts in {"pool-of-none": [0], "pool-of-two": [2], "pool-of-very-many": [2**32 - 1]}.items():
        yield "A-8", name, changed(pool, {"arrays/pools": counts})
    yield "A-9", "chunked-and-pooled", changed(pool, {"arrays/layout/0": 9, "arrays/chunk_counts": [1]})
    yield "A-9", "no-pools", of_arrays(*two).encode()
    chunk = Chunk(content, content)
    yield "A-9", "pools-without-arrays", of_arrays(Row("uint8", [7], None, [[chunk]]), pools=[[chunk]]).encode()
    yield (
        "A-9",
        "two-pools-of-one-dtype",
        of_arrays(*two, pools=[[Chunk(content[:3], content[:3])], [Chunk(content[3:], content[3:])]]).encode(),
    )
    other = Row("int8", [1], None, pooled=True)
    yield (
        "A-9",
        "one-pool-of-two-dtypes",
        of_arrays(*two, other, pools=[[Chunk(content + b"x", content + b"x")]]).encode(),
    )
    for name, end in {"first": 2, "second": 5}.items():
        parts = [Chunk(part, part) for part in (content[:end], content[end:])]
        yield "A-10", f"{name}-in-two-chunks", of_arrays(*two, pools=[parts]).encode()
    yield (
        "A-3",
        "pooled",
        of_arrays(Row("uint8", [4], None, cuts=[[2]], pooled=True), pools=[[Chunk(bytes(4), bytes(4))]]).encode(),
    )
    yield (
        "A-5",
        "pooled",
        of_arrays(Row("uint8", [0], None, pooled=True), *two, pools=[[Chunk(content, content)]]).encode(),
    )
    for name, raw in {"pool-too-short": content[:3], "pool-too-long": content + b"x"}.items():
        yield "C-3", name, of_arrays(*two, pools=[[Chunk(raw, raw)]]).encode()
    yield (
        "C-3",
        "pool-with-an-empty-chunk",
        of_arrays(*two, pools=[[Chunk(content, content), Chunk(b"", b"")]]).encode(),
    )
    half = [Row("uint16", [1], None, pooled=True), Row("uint16", [1], None, pooled=True)]
    odd = [Chunk(content[:3], content[:3]), Chunk(content[:1], content[:1])]
    yield "C-3", "pool-with-half-an-item", of_arrays(*half, pools=[odd]).encode()
    yield "C-4", "pool", changed(pool, {"chunks/codec": [2]})


NO_ARRAYS: dict[str, Any] = {
    "dtypes": [],
    "arrays/dtype": [],
    "arrays/rank": [],
    "arrays/shape": [],
    "arrays/layout": [],
    "arrays/chunk_counts": [],
}


def boxes_of(nbytes: int, cuts: Sequence[Sequence[int]]) -> list[list[Chunk]]:
    """A chunk for each box, together as long as the array."""
    n_boxes = math.prod(len(axis) + 1 for axis in cuts)
    raw = [bytes([box]) * (nbytes // n_boxes) for box in range(n_boxes)]
    return [[Chunk(content, content)] for content in raw]


# Section 8: chunks.


def raw_chunks(*nbytes: int) -> File:
    """Arrays of bytes, each one raw chunk."""
    raw = [bytes((at + number) % 256 for at in range(size)) for number, size in enumerate(nbytes)]
    return of_arrays(*(Row("uint8", [len(content)], None, [[Chunk(content, content)]]) for content in raw))


def of_chunks(dtype: Any, itemsize: int, *chunks: Chunk) -> File:
    """One array of these chunks."""
    n_items = sum(len(chunk.raw) for chunk in chunks) // itemsize
    return of_arrays(Row(dtype, [n_items], None, [chunks]))


RUN = bytes(300)
ZSTD_CHUNK = Chunk(zstd_frame(RUN), RUN, ZSTD)
FILL_CHUNK = Chunk(b"\7", b"\7" * 100, FILL)
# 101 words of two bytes: 0x3f above 1 to 101. Seven zero bytes follow the first plane and three the second.
LOWER = bytes(range(1, 102))
WORDS = b"".join(bytes([byte, 0x3F]) for byte in LOWER)
PLANES_CHUNK = planes_chunk(WORDS, 2, 0, (1, FILL), (1, RAW))
UPPER_PLANE = Plane(1, FILL, b"\x3f")


def chunk_rules() -> Iterator[Broken]:
    """C-1 to C-8 and C-10."""
    for name, files in named(
        {
            "empty": [],
            "two": [["", 0, b""], ["other", 64, bytes(32)]],
            "same-twice": [["", 0, b""], ["", 0, b""]],
            "name": [["x", 0, b""]],
            "length": [["", 1, b""]],
            "root": [["", 0, bytes(32)]],
            "name-bytes": [[b"", 0, b""]],
            "length-a-bool": [["", False, b""]],
            "root-a-text": [["", 0, ""]],
            "entry-of-two-items": [["", 0]],
            "entry-nil": [None],
        }
    ):
        yield "C-1", f"files-{name}", changed(blank(), {"files": files})
    for name, dtype, n_items, lengths in [
        ("within-an-item", ["void", 8], 16, [60, 68]),
        ("less-than-an-item", ["void", 8], 1, [4, 4]),
        ("zero", "uint8", 64, [64, 0]),
        ("sum-too-small", "uint8", 128, [64, 63]),
        ("sum-too-large", "uint8", 128, [64, 65]),
    ]:
        chunks = [Chunk(bytes([length]) * length, bytes([length]) * length) for length in lengths]
        yield "C-3", name, of_arrays(Row(dtype, [n_items], None, [chunks])).encode()
    halves = [[Chunk(b"\1" * 31, b"\1" * 31)], [Chunk(b"\2" * 33, b"\2" * 33)]]
    yield "C-3", "sum-of-a-box", of_arrays(Row("uint8", [8, 8], None, halves, cuts=[[4], []])).encode()
    for name, chunk, stored in [
        ("raw-shorter", Chunk(RUN, RUN), 299),
        ("raw-longer", Chunk(RUN, RUN), 301),
        ("fill-of-two-items", FILL_CHUNK, 2),
        ("fill-of-nothing", FILL_CHUNK, 0),
        ("zstd-of-nothing", ZSTD_CHUNK, 0),
    ]:
        yield "C-4", name, changed(of_chunks("uint8", 1, chunk), {"chunks/stored/0": stored})
    yield "C-4", "fill-less-than-an-item", of_chunks("uint16", 2, Chunk(b"\7", b"\7" * 100, FILL)).encode()
    for name, length in [("zstd-as-long", 0), ("zstd-longer", 1)]:
        content = uncompressed(length)
        yield "C-4", name, of_chunks("uint8", 1, Chunk(zstd_frame(content), content, ZSTD)).encode()
    yield "C-4", "planes-of-nothing", changed(of_words(PLANES_CHUNK.stored), {"chunks/stored/0": 0})
    for name, n_words in [("planes-as-long", 32), ("planes-longer", 31)]:
        planes = join(2, 0, UPPER_PLANE, plane_of(LOWER[:n_words], 1, RAW))
        yield "C-4", name, of_words(planes, WORDS[: 2 * n_words]).encode()
    yield "C-5", "check", changed(raw_chunks(100), {"chunks/check/0": bytes(8)})
    yield "C-5", "check-of-the-stored-bytes", changed(raw_chunks(100), {"chunks/check/0": check_of(bytes(range(100)))})
    yield (
        "C-5",
        "last-bytes-of-the-digest",
        changed(raw_chunks(100), {"chunks/check/0": digest_of(bytes(range(100)))[8:]}),
    )
    yield from range_rules()
    files = {name: of_chunks("uint8", 1, chunk) for name, chunk in [("fill", FILL_CHUNK), ("zstd", ZSTD_CHUNK)]}
    files["planes"] = of_words(PLANES_CHUNK.stored)
    for name, file in ({"raw": of_chunks("uint8", 1, Chunk(RUN, RUN))} | files).items():
        (end,) = file.index["chunks"]["stored"]
        yield "C-7", f"{name}-first-byte", changed(file, {"body": put(end, b"\1")})
        yield "C-7", f"{name}-last-byte", changed(file, {"body": put(-1, b"\1")})
        for where, at in [("first", 0), ("last", end - 1)]:
            flip = bytes([file.body[at] ^ 0x80])
            yield "C-8", f"{name}-{where}-byte", changed(file, {"body": put(at, flip)})
    for name, file in files.items():
        (end,) = file.index["chunks"]["stored"]
        yield "C-8", f"{name}-check", changed(file, {"chunks/check/0": bytes(8)})
        yield "C-10", f"{name}-digest", changed(file, {"chunks/digest/0": bytes(16)})
        yield (
            "C-10",
            f"{name}-digest-of-the-stored-bytes",
            changed(file, {"chunks/digest/0": digest_of(file.body[:end])}),
        )
    yield from misread_planes()
    digest = digest_of(RUN)
    wrong = {"chunks/digest/0": digest[:8] + bytes(8)}
    yield "C-8", "raw-second-half-of-the-digest", changed(of_chunks("uint8", 1, Chunk(RUN, RUN)), wrong)


def put(at: int, new: bytes) -> Callable[[bytes], bytes]:
    """A change: other bytes at a place of the body."""

    def change(body: bytes) -> bytes:
        place = at % len(body)
        return body[:place] + new + body[place + len(new) :]

    return change


def uncompressed(longer: int) -> bytes:
    """Content whose frame is exactly as long as it is, or longer by so many bytes."""
    for run in range(8, 100):
        content = bytes(range(1, 100)) + bytes(run)
        if len(zstd_frame(content)) == len(content) + longer:
            return content
    raise AssertionError


def same_place() -> File:
    """Two arrays that are stored in the same bytes."""
    file = of_chunks("uint8", 1, FILL_CHUNK)
    file.index["chunks"] = {name: column * 2 for name, column in file.index["chunks"].items()}
    table = file.index["arrays"]
    file.index["arrays"] |= {name: column * 2 for name, column in table.items()}
    file.index["nodes"] |= {"kinds": [NONE, LIST, ARRAY, ARRAY], "counts": [2], "arrays": [0, 1]}
    return file


def range_rules() -> Iterator[Broken]:
    """C-6."""
    two = raw_chunks(100, 60)
    gap = two.body[:128] + bytes(64) + two.body[128:]
    for name, changes in named(
        {
            "gap": {"body": gap, "chunks/offset": [64, 256]},
            "gap-before-the-first": {"body": bytes(64) + two.body, "chunks/offset": [128, 256]},
            "gap-before-the-index": {"body": two.body + bytes(64)},
            "out-of-order": {"body": two.body[128:] + two.body[:128], "chunks/offset": [128, 64]},
            "overlap": {"chunks/offset": [64, 128]},
            "not-aligned": {"body": two.body[:101] + two.body[128:] + bytes(27), "chunks/offset": [64, 165]},
            "in-the-preamble": {"chunks/offset": [0, 192]},
            "in-the-index": {"chunks/offset": [64, 256]},
            "after-the-file": {"chunks/offset": [64, 2**40]},
            "offset-that-wraps": {"chunks/offset": [64, 2**64 - 64]},
            "same-place-other-bytes": {"chunks/offset": [64, 64]},
        }
    ):
        yield "C-6", name, changed(two, changes)
    for name, changes in named(
        {
            "another-digest": {"chunks/digest/1": digest_of(b"x")},
            "another-check": {"chunks/check/1": bytes(8)},
            "another-length": {
                "chunks/raw/1": 50,
                "chunks/digest/1": digest_of(FILL_CHUNK.raw[:50]),
                "arrays/shape/1": 50,
            },
            "another-codec": {"chunks/codec/1": RAW, "chunks/raw/1": 1, "arrays/shape/1": 1}
            | {"chunks/digest/1": digest_of(b"\7"), "chunks/check/1": digest_of(b"\7")[:8]},
        }
    ):
        yield "C-6", f"same-place-{name}", changed(same_place(), changes)
    again = {"chunks/offset": [64, 192], "body": two.body + bytes(64)}
    yield "C-6", "bytes-after-the-last", changed(two, again)
    yield "C-6", "body-without-rows", changed(blank(), {"body": bytes(64)})


# Section 8: planes.


def of_words(stored: bytes, raw: bytes = WORDS, itemsize: int = 2) -> File:
    """An array that is one chunk of planes."""
    return of_chunks(["void", itemsize], itemsize, Chunk(stored, raw, PLANES))


def misread_planes() -> Iterator[Broken]:
    """C-10: planes that are right to one who understands the text in another way."""
    raw, widths = bytes(200) + bytes(range(0x80, 0xB0)), (1, 1, 2)
    first, second, third = cut(raw, 4, 1, widths)
    swapped = b"".join(third[at : at + 2][::-1] for at in range(0, len(third), 2))
    words = [int.from_bytes(raw[at : at + 4], "little") for at in range(0, len(raw), 4)]
    turned = b"".join(((word << 1 | word >> 31) & 0xFFFFFFFF).to_bytes(4, "little") for word in words)
    for name, contents in named(
        {
            "least-significant-first": cut(raw, 4, 1, (2, 1, 1))[::-1],
            "not-rotated": cut(raw, 4, 0, widths),
            "rotated-to-the-right": cut(raw, 4, 15, widths),
            "rotated-as-a-whole": cut(turned, 4, 0, widths),
            "big-endian-parts": [first, second, swapped],
        }
    ):
        planes = [plane_of(content, width, ZSTD) for content, width in zip(contents, widths, strict=True)]
        yield "C-10", f"planes-{name}", of_words(join(4, 1, *planes), raw, 4).encode()


def filled(word: int, widths: Sequence[int], rotation: int = 0) -> bytes:
    """Planes of these widths, all zero."""
    return join(word, rotation, *(Plane(width, FILL, bytes(width)) for width in widths))


def planes_rules() -> Iterator[Broken]:
    """P-1 to P-4, and Z-1 to Z-5 within a plane."""
    stored = PLANES_CHUNK.stored
    for name, bad in named(
        {
            "one-byte": stored[:1],
            "header-cut": stored[:7],
            "header-alone": stored[:8],
            "one-entry-of-two": stored[:16],
            "entry-cut": stored[:23],
            "no-planes": join(2, 0),
            "no-planes-but-bytes": join(2, 0) + stored[8:],
            "255-planes-of-two": join(2, 0, UPPER_PLANE, plane_of(LOWER, 1, RAW), n_planes=255),
            "rotation-16": filled(2, [2], 16),
            "rotation-17": filled(2, [2], 17),
            "rotation-255": filled(2, [2], 255),
        }
        | {f"byte-{at}-not-zero": stored[:at] + b"\1" + stored[at + 1 :] for at in (3, 7, 10, 11, 18, 19)}
    ):
        yield "P-1", name, of_words(bad).encode()
    for name, word, itemsize, widths in [
        ("word-0", 0, 2, [2]),
        ("word-0-width-0", 0, 2, [0]),
        ("word-1", 1, 1, [1]),
        ("word-3", 3, 3, [1, 2]),
        ("word-6", 6, 6, [2, 4]),
        ("word-16", 16, 16, [8, 8]),
        ("word-2-of-items-of-1", 2, 1, [2]),
        ("word-2-of-items-of-3", 2, 3, [2]),
        ("word-4-of-items-of-2", 4, 2, [4]),
        ("word-4-of-items-of-6", 4, 6, [1, 1, 2]),
        ("word-8-of-items-of-4", 8, 4, [8]),
        ("word-8-of-items-of-12", 8, 12, [8]),
    ]:
        yield "P-1", name, of_words(filled(word, widths), bytes(64 * itemsize), itemsize).encode()
    for word, widths in [
        *[(2, [0, 2]), (2, [2, 0]), (2, [1, 0, 1]), (4, [3, 1]), (4, [1, 3]), (8, [6, 2]), (8, [7, 1])],
        *[
            (2, [1]),
            (4, [2]),
            (8, [4]),
            (4, [1, 1]),
            (8, [1, 1, 2]),
            (2, [4]),
            (2, [2, 2]),
            (4, [8]),
            (8, [8, 8]),
            (2, [16]),
        ],
        *[(4, [1, 2, 1]), (8, [2, 4, 2]), (8, [1, 1, 4, 2]), (8, [1, 2, 1, 4]), (8, [4, 1, 2, 1]), (8, [1, 4, 1, 2])],
    ]:
        name = f"word-{word}-widths-{'-'.join(map(str, widths))}"
        yield "P-2", name, of_words(filled(word, widths), bytes(64 * word), word).encode()
    # 264 is 8 in a byte.
    yield "P-2", "33-widths-of-8", of_words(filled(8, [8] * 33), bytes(800), 8).encode()
    yield "P-2", "255-widths-of-1", of_words(filled(8, [1] * 255), bytes(4800), 8).encode()
    yield from plane_rules()
    for name, bad in named(
        {
            "a-zero-after-them": stored + b"\0",
            "8-zeros-after-them": stored + bytes(8),
            "64-zeros-after-them": stored + bytes(64),
            "8-bytes-after-them": stored + b"\1" * 8,
            "no-zeros-after-the-last": stored[:-3],
            "a-zero-missing-after-the-last": stored[:-1],
            "last-plane-cut": stored[:-8],
            "last-plane-missing": stored[:32],
            "no-plane-there": stored[:24],
            "first-zero-after-the-first": stored[:25] + b"\1" + stored[26:],
            "last-zero-after-the-first": stored[:31] + b"\1" + stored[32:],
            "first-zero-after-the-last": stored[:-3] + b"\1\0\0",
            "last-zero-after-the-last": stored[:-1] + b"\1",
            "no-zeros-between": stored[:25] + stored[32:],
            "8-zeros-before-the-first": stored[:24] + bytes(8) + stored[24:],
            "8-zeros-between": stored[:32] + bytes(8) + stored[32:],
        }
    ):
        yield "P-4", name, of_words(bad).encode()
    # Lengths that P-3 allows.
    frame = zstd_frame(RUN)
    far = join(2, 0, UPPER_PLANE, Plane(1, ZSTD, frame, declared=299))
    yield "P-4", "zstd-beyond-the-end", of_words(far, b"\0\x3f" * 300).encode()
    far = join(8, 0, *[Plane(1, ZSTD, frame, declared=299)] * 8)
    yield "P-4", "all-beyond-the-end", of_words(far, bytes(2400), 8).encode()


def plane_rules() -> Iterator[Broken]:
    """P-3, and Z-1 to Z-5."""
    for name, plane in named(
        {
            "raw-shorter": Plane(1, RAW, LOWER[:-1]),
            "raw-longer": Plane(1, RAW, LOWER + b"\0"),
            "raw-of-nothing": Plane(1, RAW, b""),
            "raw-up-to-2-to-the-32": Plane(1, RAW, LOWER, declared=2**32 - 1),
            "raw-101-and-2-to-the-31": Plane(1, RAW, LOWER, declared=101 + 2**31),
            "codec-3": Plane(1, PLANES, LOWER),
            "codec-4": Plane(1, 4, LOWER),
            "codec-255": Plane(1, 255, LOWER),
        }
    ):
        yield "P-3", name, of_words(join(2, 0, UPPER_PLANE, plane)).encode()
    for name, plane in named(
        {
            "fill-of-nothing": Plane(1, FILL, b""),
            "fill-of-two-parts": Plane(1, FILL, b"\x3f\x3f"),
            "fill-up-to-2-to-the-32": Plane(1, FILL, b"\x3f", declared=2**32 - 1),
        }
    ):
        yield "P-3", name, of_words(join(2, 0, plane, plane_of(LOWER, 1, RAW))).encode()
    whole = join(2, 0, Plane(1, FILL, b"\x3f" * 101), Plane(1, FILL, b"\7"))
    yield "P-3", "fill-of-the-whole-plane", of_words(whole, b"\7\x3f" * 101).encode()
    for name, length in [("less-than-a-part", 1), ("of-a-part-and-a-byte", 3)]:
        yield "P-3", f"fill-{name}", of_words(join(2, 0, Plane(2, FILL, bytes(length))), bytes(256)).encode()
    run = b"\0\x3f" * len(RUN)
    for name, declared in [("of-nothing", 0), ("up-to-2-to-the-32", 2**32 - 1), ("declared-as-long", len(RUN))]:
        plane = Plane(1, ZSTD, zstd_frame(RUN) if declared else b"", declared)
        yield "P-3", f"zstd-{name}", of_words(join(2, 0, UPPER_PLANE, plane), run).encode()
    for name, longer in [("as-long", 0), ("longer", 1)]:
        content = uncompressed(longer)
        words = b"".join(bytes([byte, 0x3F]) for byte in content)
        stored = join(2, 0, UPPER_PLANE, Plane(1, ZSTD, zstd_frame(content)))
        yield "P-3", f"zstd-{name}", of_words(stored, words).encode()
    frames = [*FRAMES, ("Z-2", "of-the-whole-chunk", lambda content: zstd_frame(content * 2))]
    for rule, name, make in frames:
        stored = join(2, 0, UPPER_PLANE, Plane(1, ZSTD, make(RUN)))
        yield rule, f"plane-{name}", of_words(stored, run).encode()
    vast = Plane(1, ZSTD, zstd_frame(bytes((8 << 20) + 1)))
    yield "Z-4", "plane-8-mib-and-a-byte", of_words(join(2, 0, vast, vast), bytes((16 << 20) + 2)).encode()


# Section 8: zstd frames, of chunks and of the index.


def zstd_rules() -> Iterator[Broken]:
    """Z-1 to Z-5."""
    raw = pack_index(blank().index)
    for rule, name, make in FRAMES:
        stored = make(RUN)
        yield rule, f"chunk-{name}", of_chunks("uint8", 1, Chunk(stored, RUN, ZSTD)).encode()
        yield rule, f"index-{name}", changed(blank(), {"codec": ZSTD, "stored": make(raw)})
    for name, window, dictionary in [("chunk-8-mib-and-a-byte", None, b"")]:
        content = bytes((8 << 20) + 1)
        stored = zstd_frame(content, window=window, dictionary=dictionary)
        yield "Z-4", name, of_chunks("uint8", 1, Chunk(stored, content, ZSTD)).encode()


def shortened(content: bytes) -> bytes:
    """A frame that declares more than its blocks hold."""
    return zstd_frame(content, blocks=blocks_of(content[:-1]))


def without_last_block(content: bytes) -> bytes:
    """A frame whose last block is not marked as the last."""
    return zstd_frame(content, blocks=blocks_of(content)[:0] + block(RAW_BLOCK, 5, content[:5]))


def wrong_checksum(content: bytes) -> bytes:
    """A frame with another checksum than that of its content."""
    return zstd_frame(content, checksum=0)


Frame = Callable[[bytes], bytes]
FRAMES: list[tuple[str, str, Frame]] = [
    ("Z-1", "not-a-frame", lambda content: b"\x1f\x8b\x08\0" + zstd_frame(content)[4:]),
    ("Z-1", "legacy-magic", lambda content: b"\x27\xb5\x2f\xfd" + zstd_frame(content)[4:]),
    ("Z-1", "skippable-frame-first", lambda content: skippable_frame(b"xyz") + zstd_frame(content)),
    ("Z-1", "skippable-frame-alone", lambda _: skippable_frame(b"xyz")),
    ("Z-1", "magic-cut", lambda content: zstd_frame(content)[:3]),
    ("Z-1", "magic-reversed", lambda content: zstd_frame(content)[3::-1] + zstd_frame(content)[4:]),
    ("Z-2", "no-size", lambda content: zstd_frame(content, content_size=None, window=(0, 0))),
    ("Z-2", "smaller", lambda content: zstd_frame(content[:-1])),
    ("Z-2", "larger", lambda content: zstd_frame(content + b"\0")),
    ("Z-2", "vast", lambda content: zstd_frame(content, content_size=2**40, window=(0, 0))),
    ("Z-2", "all-ones", lambda content: zstd_frame(content, content_size=2**64 - 1, window=(0, 0))),
    ("Z-3", "dictionary-1", lambda content: zstd_frame(content, dictionary=b"\1")),
    ("Z-3", "dictionary-of-2-bytes", lambda content: zstd_frame(content, dictionary=b"\0\1")),
    ("Z-3", "dictionary-of-4-bytes", lambda content: zstd_frame(content, dictionary=b"\0\0\0\1")),
    ("Z-4", "window-a-step-above-8-mib", lambda content: zstd_frame(content, window=(13, 1))),
    ("Z-4", "window-16-mib", lambda content: zstd_frame(content, window=(14, 0))),
    ("Z-4", "window-2-gib", lambda content: zstd_frame(content, window=(21, 0))),
    ("Z-4", "window-4-gib", lambda content: zstd_frame(content, window=(22, 0))),
    ("Z-4", "window-greatest", lambda content: zstd_frame(content, window=(31, 7))),
    ("Z-5", "a-byte-after-it", lambda content: zstd_frame(content) + b"\0"),
    ("Z-5", "an-empty-frame-after-it", lambda content: zstd_frame(content) + zstd_frame(b"")),
    ("Z-5", "a-skippable-frame-after-it", lambda content: zstd_frame(content) + skippable_frame(b"")),
    ("Z-5", "cut-by-a-byte", lambda content: zstd_frame(content)[:-1]),
    ("Z-5", "cut-after-the-header", lambda content: zstd_frame(content, blocks=b"")),
    ("Z-5", "cut-within-the-header", lambda content: zstd_frame(content)[:5]),
    ("Z-5", "no-last-block", without_last_block),
    ("Z-5", "less-than-declared", shortened),
    ("Z-5", "more-than-declared", lambda content: zstd_frame(content, blocks=blocks_of(content + b"\0"))),
    ("Z-5", "checksum", wrong_checksum),
    ("Z-5", "checksum-missing", lambda content: zstd_frame(content, with_checksum=True)[:-4]),
    ("Z-5", "reserved-bit", lambda content: zstd_frame(content, reserved_bit=True)),
    ("Z-5", "reserved-block", lambda content: zstd_frame(content, blocks=block(RESERVED, 0, b"", last=True))),
    (
        "Z-5",
        "block-beyond-the-frame",
        lambda content: zstd_frame(content, blocks=block(RAW_BLOCK, 90, b"\0", last=True)),
    ),
]
