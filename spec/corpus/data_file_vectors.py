"""Manifests with their data files: some that keep all rules, and some that break one that data files brought."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from spec.corpus.data_files import DATA_FILES, Parted, Piece, data_file, name_of, part, root_of
from spec.corpus.frames import zstd_frame
from spec.corpus.parts import FILL, PLANES, RAW, ZSTD, Chunk, File, Row, blank, changed, of_arrays
from spec.corpus.planes import planes_chunk
from spec.corpus.valid import BY_HAND, Valid, of_tree
from spec.reference import reader

__all__ = ["broken_with_data_files", "future_with_data_files", "valid_with_data_files"]

Broken = tuple[str, str, bytes, Mapping[str, bytes]]  # rule, what is wrong, file, data files by name
Make = Callable[[Sequence[Piece]], File]


# Files that keep all rules.


def valid_with_data_files() -> Iterator[Valid]:
    """All vectors, in order."""
    for name, build in VALID.items():
        parted, tree = build()
        yield Valid(f"data-files-{name}", parted.manifest.encode(), tree, files=parted.named)


def by_hand(name: str, place_of: Callable[[int], int]) -> Callable[[], tuple[Parted, Any]]:
    """A vector of one file, its chunks in data files."""

    def build() -> tuple[Parted, Any]:
        file, tree = BY_HAND[name]()
        return part(file, place_of), tree

    return build


def frozen_and_changed() -> tuple[Parted, Any]:
    """As a second step of a training leaves it: what is frozen in an older file, what has changed in a newer one."""
    frozen = [np.arange(start, start + 300, dtype="<f4") for start in (0, 1000)]
    changed_since = np.arange(2000, 2200, dtype="<f4").reshape(20, 10)
    tree = {"frozen": frozen, "trained": {"w": changed_since, "m": np.zeros((20, 10), "<f4")}, "step": 2}
    file = of_tree(tree, chunk_nbytes=1000)
    # Two chunks of each frozen array; those of the changed ones are in a file of their own.
    return part(file, lambda number: 1 if number < 4 else 2), tree


def with_own_chunks() -> tuple[Parted, Any]:
    """Every third chunk in the manifest itself, the others in two data files that were used in turn."""
    tree = [np.arange(500, dtype="<i2"), np.arange(100, dtype="<f8"), np.zeros(200, "u1")]
    return part(of_tree(tree), lambda number: number % 3), tree


def same_chunk() -> tuple[Parted, Any]:
    """One chunk in several rows: within an array, and in others of other dtypes of its itemsize."""
    raw = np.arange(64, dtype="<f4").tobytes()
    chunk = Chunk(raw, raw)
    file = of_arrays(
        Row("float32", [128], None, [[chunk, chunk]]),
        Row("float32", [8, 8], None, [[chunk]]),
        Row("int32", [64], None, [[chunk]], axes=None),
        Row("uint8", [256], None, [[chunk]]),
    )
    parted = part(file, lambda _: 1)
    values = np.frombuffer(raw, "<f4")
    tree = [np.tile(values, 2), values.reshape(8, 8), values.view("<i4"), values.view("u1")]
    return parted, tree


def two_itemsizes() -> tuple[Parted, Any]:
    """A chunk that is one of both arrays of its data file, which are of different itemsizes."""
    raw = np.arange(32, dtype="<f8").tobytes()
    file, made = (
        _two_arrays(Chunk(raw, raw), *dtypes) for dtypes in (("float64", "int16"), (["void", 8], ["void", 2]))
    )
    parted = part(file, lambda _: 1, make=lambda _: made)
    parted.manifest.index["chunks"]["offset"] = [64, 64]
    return parted, [np.frombuffer(raw, "<f8"), np.frombuffer(raw, "<i2")]


def _two_arrays(chunk: Chunk, first: Any, second: Any) -> File:
    """Two arrays, of items of 8 and of 2 bytes, that are one chunk, stored once."""
    file = of_arrays(
        *(Row(dtype, [len(chunk.raw) // size], None, [[chunk]]) for dtype, size in ((first, 8), (second, 2)))
    )
    file.index["chunks"]["offset"] = [64, 64]
    file.body = file.body[: len(file.body) // 2]
    return file


def any_tree() -> tuple[Parted, Any]:
    """The data file is a checkpoint of something else, with metadata; two chunks of it are used, in another order."""
    weights = [np.arange(start, start + 100, dtype="<f4") for start in (0, 100, 200)]
    other = of_tree({"model": weights, "note": "any tree will do"}, {"step": 1}, chunk_nbytes=1000)
    tree = [weights[2], weights[0]]
    parted = part(of_tree(tree, chunk_nbytes=1000), lambda _: 1, make=lambda _: other)
    table = parted.manifest.index["chunks"]
    table["offset"] = [other.index["chunks"]["offset"][number] for number in (2, 0)]
    return parted, tree


def unused_chunks() -> tuple[Parted, Any]:
    """A data file of which only one chunk in the middle is used."""
    values = np.arange(50, dtype="<u2")
    before, after = Piece(1, Chunk(b"\7", b"\7" * 70, FILL)), Piece(4, unique("after it", 80))
    file = of_arrays(Row("uint16", [50], None, [[Chunk(values.tobytes(), values.tobytes())]]))
    parted = part(file, lambda _: 1, make=lambda members: data_file(before, *members, after))
    parted.manifest.index["chunks"]["offset"] = [128]
    return parted, [values]


def zstd_indexes() -> tuple[Parted, Any]:
    """The index of the manifest and that of its data file are compressed."""
    tree = [np.arange(100, dtype="<i4")]

    def make(members: Sequence[Piece]) -> File:
        file = data_file(*members)
        file.codec = ZSTD
        return file

    parted = part(of_tree(tree), lambda _: 1, make=make)
    parted.manifest.codec = ZSTD
    return parted, tree


def many_files() -> tuple[Parted, Any]:
    """A file for each chunk."""
    values = np.arange(12 * 8, dtype="<u8")
    chunks = [Chunk(row.tobytes(), row.tobytes()) for row in values.reshape(12, 8)]
    return part(of_arrays(Row("uint64", [96], None, [chunks])), lambda number: number + 1), [values]


VALID: dict[str, Callable[[], tuple[Parted, Any]]] = {
    "frozen-and-changed": frozen_and_changed,
    "with-own-chunks": with_own_chunks,
    "all-elsewhere": by_hand("chunks-mixed", lambda _: 1),
    "zstd": by_hand("chunks-zstd", lambda _: 1),
    "pools": by_hand("pools-mixed", lambda _: 1),
    "pools-in-two": by_hand("pools-mixed", lambda number: 1 + number % 2),
    "planes": by_hand("planes-mixed", lambda number: number % 3),
    "planes-dtypes": by_hand("planes-dtypes", lambda _: 1),
    "same-rows": by_hand("chunks-identical-rows", lambda number: number),
    "same-chunk": same_chunk,
    "two-itemsizes": two_itemsizes,
    "any-tree": any_tree,
    "unused-chunks": unused_chunks,
    "zstd-indexes": zstd_indexes,
    "many": many_files,
}


# Files that break one rule.


def unique(text: str, nbytes: int) -> Chunk:
    """A raw chunk of bytes that no other vector has."""
    raw = (hashlib.sha256(text.encode()).digest() * (nbytes // 32 + 1))[:nbytes]
    return Chunk(raw, raw)


def example(name: str, *, place_of: Callable[[int], int] = lambda _: 1, make: Make | None = None) -> Parted:
    """Arrays of 128 and of 60 bytes, their chunks at 64 and 192 of a data file that no other vector names."""
    chunks = [unique(f"{name} {nbytes}", nbytes) for nbytes in (128, 60)]
    rows = (Row("uint8", [len(chunk.raw)], None, [[chunk]]) for chunk in chunks)
    return part(of_arrays(*rows), place_of, make=make)


def broken_with_data_files() -> Iterator[Broken]:
    """All vectors, in order."""
    yield from file_rules()
    yield from table_rules()
    yield from use_rules()
    yield from range_rules()
    yield from content_rules()


def future_with_data_files() -> Iterator[Broken]:
    """Data files of a later version."""
    for rule, name, changes in [
        ("F-2", "version-2", {"preamble/8": 2}),
        ("F-3", "feature-63", {"preamble/23": 0x80}),
        ("F-3", "feature-1", {"preamble/16": 2}),
    ]:
        parted = example(f"future {name}")
        file = data_file(*(Piece(1, unique(f"future {name} {nbytes}", nbytes)) for nbytes in (128, 60)))
        yield rule, f"data-file-{name}", parted.manifest.encode(), {name_of(parted.files[0]): changed(file, changes)}

    def make(members: Sequence[Piece]) -> File:
        file = data_file(*members, Piece(1, unique("of a later codec", 10)))
        file.index["chunks"]["codec"][-1] = 4
        return file

    parted = example("future codec", make=make)
    yield "C-2", "codec-4-of-a-data-file", parted.manifest.encode(), parted.named


def flipped(data: bytes, at: int) -> bytes:
    """The data with one bit flipped, and nothing repaired."""
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def file_rules() -> Iterator[Broken]:
    """F-15 to F-18, and rules of all files that a data file breaks."""
    parted = example("missing")
    yield "F-15", "missing", parted.manifest.encode(), {}
    parted = example("second missing", place_of=lambda number: number + 1)
    yield "F-15", "second-missing", parted.manifest.encode(), {name_of(parted.files[0]): parted.files[0]}
    changes_of: dict[str, Callable[[bytes], bytes]] = {
        "cut-by-a-byte": lambda data: data[:-1],
        "cut-within-a-chunk": lambda data: data[:100],
        "empty": lambda _: b"",
        "a-byte-after-the-end": lambda data: data + b"\0",
        "a-block-put-in": lambda data: data[:-128] + bytes(64) + data[-128:],
    }
    for name, change in changes_of.items():
        parted = example(name)
        yield "F-16", name, parted.manifest.encode(), {name_of(parted.files[0]): change(parted.files[0])}
    for name, by in [("entry-longer", 64), ("entry-a-byte-longer", 1), ("entry-of-two-to-the-62", 1 << 62)]:
        parted = example(name)
        yield "F-16", name, changed(parted.manifest, {"files/1/1": len(parted.files[0]) + by}), parted.named
    inner: list[Parted] = []

    def make_manifest(members: Sequence[Piece]) -> File:
        file = data_file(*members, Piece(1, unique("of a data file of a data file", 100)))
        inner.append(part(file, lambda number: number // len(members)))
        return inner[-1].manifest

    parted = example("with data files", make=make_manifest)
    yield "F-17", "data-file-with-data-files", parted.manifest.encode(), inner[-1].named | parted.named
    parted, other = example("replaced"), example("put in its place")
    yield "F-18", "another-file", parted.manifest.encode(), {name_of(parted.files[0]): other.files[0]}
    parted = example("with another index")
    renamed = data_file(*(Piece(1, unique(f"with another index {nbytes}", nbytes)) for nbytes in (128, 60)))
    renamed.index["nodes"]["strings"], renamed.index["nodes"]["ints"] = ["1"], []
    renamed.index["nodes"]["kinds"] = [0, 18, 8, 10]
    data = renamed.encode()
    assert len(data) == len(parted.files[0])
    yield "F-18", "same-chunks-other-tree", parted.manifest.encode(), {name_of(parted.files[0]): data}
    yield from damaged_files()


def damaged_files() -> Iterator[Broken]:
    """Rules of all files, broken by a data file of the right length and, but for F-6, root."""
    for rule, name, at in [
        ("F-1", "magic", 0),
        ("F-5", "end-magic", -1),
        ("F-6", "root-flipped", -60),
        ("F-6", "reserved-flipped", 30),
        ("F-11", "index-flipped", -192),
        ("C-7", "padding-flipped", 252 + 1),
        ("C-8", "chunk-flipped", 70),
    ]:
        parted = example(f"damaged {name}")
        data = parted.files[0]
        yield rule, f"data-file-{name}", parted.manifest.encode(), {name_of(data): flipped(data, at % len(data))}
    zeros = example("not a file of ours")
    yield "F-1", "data-file-of-zeros", zeros.manifest.encode(), {name_of(zeros.files[0]): bytes(len(zeros.files[0]))}
    unused = Piece(1, unique("unused", 40))

    def make(members: Sequence[Piece]) -> File:
        return data_file(*members, unused)

    for rule, name, at in [("C-8", "unused-chunk-flipped", 256), ("C-7", "after-an-unused-chunk", 300)]:
        parted = example(name, make=make)
        data = parted.files[0]
        yield rule, f"data-file-{name}", parted.manifest.encode(), {name_of(data): flipped(data, at)}

    def with_other_nodes(members: Sequence[Piece]) -> File:
        file = data_file(*members)
        file.index["nodes"]["counts"] = [2]
        return file

    parted = example("not a tree", make=with_other_nodes)
    yield "N-2", "data-file-that-is-no-tree", parted.manifest.encode(), parted.named

    def with_a_gap(members: Sequence[Piece]) -> File:
        file = data_file(*members)
        file.body += bytes(64)
        return file

    parted = example("gap", make=with_a_gap)
    yield "C-6", "data-file-with-a-gap", parted.manifest.encode(), parted.named


def table_rules() -> Iterator[Broken]:
    """C-1 for further entries, and C-12."""
    parted = example("of all that is wrong with the file table")
    (data,) = parted.files
    root, nbytes = root_of(data), len(data)
    name = name_of(data)
    entries: dict[str, list[Any]] = {
        "upper-case": [[name.upper(), nbytes, root]],
        "upper-case-digits": [[root.hex().upper() + ".ptck", nbytes, root]],
        "no-suffix": [[root.hex(), nbytes, root]],
        "another-suffix": [[root.hex() + ".pt", nbytes, root]],
        "a-path": [[f"data/{name}", nbytes, root]],
        "a-path-up": [[f"../data/{name}", nbytes, root]],
        "an-absolute-path": [["/etc/passwd", nbytes, root]],
        "empty-name": [["", nbytes, root]],
        "a-zero-after-it": [[name + "\0", nbytes, root]],
        "name-of-bytes": [[name.encode(), nbytes, root]],
        "name-of-another-root": [[bytes(32).hex() + ".ptck", nbytes, root]],
        "root-of-31-bytes": [[root[:31].hex() + ".ptck", nbytes, root[:31]]],
        "root-of-33-bytes": [[root.hex() + "00.ptck", nbytes, root + b"\0"]],
        "root-in-text": [[name, nbytes, root.hex()]],
        "length-negative": [[name, -nbytes, root]],
        "length-a-bool": [[name, True, root]],
        "length-two-to-the-63": [[name, 1 << 63, root]],
        "length-in-text": [[name, str(nbytes), root]],
        "entry-of-four": [[name, nbytes, root, None]],
        "entry-of-two": [[name, nbytes]],
        "entry-a-name": [name],
        "entry-nil": [None],
        "twice": [[name, nbytes, root], [name, nbytes, root]],
        "twice-in-two-lengths": [[name, nbytes, root], [name, nbytes + 64, root]],
        "none-but-the-feature": [],
    }
    for fault, further in entries.items():
        yield "C-1", f"data-files-{fault}", changed(parted.manifest, {"files": [["", 0, b""], *further]}), parted.named
    yield "C-1", "data-files-without-the-feature", changed(parted.manifest, {"preamble/16": 0}), parted.named
    yield (
        "C-1",
        "data-files-without-this-file",
        changed(parted.manifest, {"files": lambda files: files[1:]}),
        parted.named,
    )
    yield (
        "C-1",
        "data-files-before-this-file",
        changed(parted.manifest, {"files": lambda files: files[::-1]}),
        parted.named,
    )
    yield "C-1", "feature-without-data-files", changed(blank(), {"preamble/16": DATA_FILES}), {}
    yield "I-3", "identity-of-31-bytes", changed(parted.manifest, {"chunks/identity": bytes(63)}), parted.named
    for fault, column in {"none": [], "too-few": [bytes(32)], "too-many": [bytes(32)] * 3}.items():
        yield "C-12", f"identities-{fault}", changed(parted.manifest, {"chunks/identity": column}), parted.named
    alone = example("alone", place_of=lambda _: 0)
    identities = [reader.blake3(piece) for piece in (alone.manifest.body[:128], alone.manifest.body[128:188])]
    yield "C-12", "identities-without-data-files", changed(alone.manifest, {"chunks/identity": identities}), {}


def use_rules() -> Iterator[Broken]:
    """C-11."""
    yield "C-11", "row-of-another-file", changed(example("", place_of=lambda _: 0).manifest, {"chunks/file/0": 1}), {}
    far = changed(example("", place_of=lambda _: 0).manifest, {"chunks/file/1": 2**32 - 1})
    yield "C-11", "row-of-a-file-far-away", far, {}
    parted = example("of two", place_of=lambda number: number + 1)
    swapped = {"files": lambda files: [files[0], files[2], files[1]], "chunks/file": [2, 1]}
    yield "C-11", "not-in-order-of-first-use", changed(parted.manifest, swapped), parted.named
    one = example("of one")
    more = {"files": lambda files: [*files, _entry(parted)]}
    yield "C-11", "second-not-used", changed(one.manifest, more), parted.named | one.named
    yield "C-11", "beyond-the-last", changed(parted.manifest, {"chunks/file/1": 3}), parted.named
    own = example("of none", place_of=lambda _: 0)
    identities = [reader.blake3(piece) for piece in (own.manifest.body[:128], own.manifest.body[128:188])]
    changes = {
        "preamble/16": DATA_FILES,
        "files": lambda files: [*files, _entry(parted)],
        "chunks/identity": identities,
    }
    yield "C-11", "none-used", changed(own.manifest, changes), parted.named


def _entry(parted: Parted) -> list[Any]:
    data = parted.files[0]
    return [name_of(data), len(data), root_of(data)]


def range_rules() -> Iterator[Broken]:
    """C-13, and C-6 for what a manifest holds itself."""
    parted = example("of all that is wrong with ranges")
    nbytes = len(parted.files[0])
    for name, offsets in {
        "in-the-preamble": [0, 192],
        "not-aligned": [64, 193],
        "overlap": [64, 128],
        "at-the-footer": [64, nbytes - 128],
        "at-the-last-block-of-the-index": [64, nbytes - 192],
        "after-the-file": [64, nbytes],
        "far-away": [64, 2**40],
        "offset-that-wraps": [64, 2**64 - 64],
        "same-place-other-bytes": [64, 64],
    }.items():
        yield "C-13", f"data-file-{name}", changed(parted.manifest, {"chunks/offset": offsets}), parted.named
    for name, size in [("shorter", 192 + 64 + 64), ("of-nothing", 0), ("of-an-index", 256)]:
        yield "C-13", f"data-file-entry-{name}", changed(parted.manifest, {"files/1/1": size}), parted.named
    chunk = unique("in two rows", 100)
    twice = of_arrays(*[Row("uint8", [100], None, [[chunk]])] * 2)
    same_place: dict[str, dict[str, Any]] = {
        "identity": {"chunks/identity/1": bytes(32)},
        "digest": {"chunks/digest/1": bytes(16), "chunks/check/1": bytes(8)},
    }
    # The second manifest has a row of a data file too, so that it is one.
    beside = Row("uint8", [60], None, [[unique("beside them", 60)]])
    for rule, both in [
        ("C-13", part(twice, lambda _: 1)),
        ("C-6", part(of_arrays(*[Row("uint8", [100], None, [[chunk]])] * 2, beside), lambda number: number)),
    ]:
        for name, changes in same_place.items():
            yield rule, f"manifest-same-place-another-{name}", changed(both.manifest, changes), both.named


def content_rules() -> Iterator[Broken]:
    """C-7 to C-10 for what a manifest holds itself, C-14 and C-15."""
    mixed = example("of what it holds itself", place_of=lambda number: number)
    yield "C-8", "manifest-chunk", changed(mixed.manifest, {"body": lambda body: flipped(body, 5)}), mixed.named
    mixed = example("of the zeros after what it holds itself", place_of=lambda number: 1 - number)
    yield "C-7", "manifest-padding", changed(mixed.manifest, {"body": lambda body: flipped(body, 63)}), mixed.named
    parted = example("of wrong identities")
    for name, number in [("first", 0), ("last", 1)]:
        yield (
            "C-14",
            f"identity-{name}",
            changed(parted.manifest, {f"chunks/identity/{number}": bytes(32)}),
            parted.named,
        )
    yield (
        "C-14",
        "identities-swapped",
        changed(parted.manifest, {"chunks/identity": lambda column: column[::-1]}),
        parted.named,
    )
    of_own = changed(mixed.manifest, {"chunks/identity/1": bytes(32)})
    yield "C-14", "identity-of-an-own-chunk", of_own, mixed.named
    sha = [hashlib.sha256(unique(f"of wrong identities {nbytes}", nbytes).raw).digest() for nbytes in (128, 60)]
    yield "C-14", "identity-is-sha-256", changed(parted.manifest, {"chunks/identity": sha}), parted.named
    yield from encoded_identities()
    yield from row_rules()


def encoded_identities() -> Iterator[Broken]:
    """C-14: identities of the stored bytes."""
    run = bytes(range(100)) + bytes(100)
    words = b"".join(bytes([byte, 0x3F]) for byte in range(1, 102))
    for name, size, chunk in [
        ("fill", 1, Chunk(b"\7", b"\7" * 100, FILL)),
        ("zstd", 1, Chunk(zstd_frame(run), run, ZSTD)),
        ("planes", 2, planes_chunk(words, 2, 0, (1, FILL), (1, RAW))),
    ]:
        file = of_arrays(Row(["void", size], [len(chunk.raw) // size], None, [[chunk]]))
        parted = part(file, lambda _: 1)
        wrong = changed(parted.manifest, {"chunks/identity/0": reader.blake3(chunk.stored)})
        assert chunk.codec in {FILL, ZSTD, PLANES}
        yield "C-14", f"identity-of-the-stored-bytes-of-{name}", wrong, parted.named


def row_rules() -> Iterator[Broken]:
    """C-15."""
    whole = unique("of one chunk", 128)
    halves = [Chunk(whole.raw[:64], whole.raw[:64]), Chunk(whole.raw[64:], whole.raw[64:])]
    as_one = of_arrays(Row("uint8", [128], None, [[whole]]))
    in_two = of_arrays(Row("uint8", [128], None, [halves]))

    def of(file: File, made: File) -> Parted:
        return part(file, lambda _: 1, make=lambda _: made)

    parted = of(in_two, data_file(Piece(1, whole)))
    yield "C-15", "two-halves-of-a-chunk", parted.manifest.encode(), parted.named
    parted = of(as_one, data_file(*(Piece(1, half) for half in halves)))
    yield "C-15", "two-chunks-as-one", parted.manifest.encode(), parted.named
    parted = of(as_one, data_file(Piece(4, whole)))
    yield "C-15", "of-another-itemsize", parted.manifest.encode(), parted.named
    parted = of(_two_arrays(whole, "float64", "int16"), data_file(Piece(8, whole)))
    parted.manifest.index["chunks"]["offset"] = [64, 64]
    yield "C-15", "of-one-of-two-itemsizes", parted.manifest.encode(), parted.named
    filled = Chunk(b"\7", b"\7" * 100, FILL)
    short = Chunk(b"\7", b"\7" * 50, FILL)
    file = of_arrays(Row("uint8", [50], None, [[short]]))
    parted = of(file, data_file(Piece(1, filled)))
    yield "C-15", "of-another-raw-length", parted.manifest.encode(), parted.named
    byte = Chunk(b"\7", b"\7")
    parted = of(of_arrays(Row("uint8", [1], None, [[byte]])), data_file(Piece(1, filled)))
    yield "C-15", "of-another-codec", parted.manifest.encode(), parted.named
    # Bytes of the index of the data file, which no chunk is.
    made = data_file(Piece(1, whole))
    data = made.encode()
    index = Chunk(data[192:256], data[192:256])
    file = of_arrays(Row("uint8", [128], None, [[whole]]), Row("uint8", [64], None, [[index]]))
    parted = of(file, made)
    assert parted.manifest.index["chunks"]["offset"] == [64, 192]
    yield "C-15", "bytes-of-the-index", parted.manifest.encode(), parted.named
