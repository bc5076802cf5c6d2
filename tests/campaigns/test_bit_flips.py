"""Damage, byte by byte and bit by bit: `restore` and `verify` notice every one, and name the leaf that it hit.

Each damaged file is read through the public functions from a real file. What counts as noticed is an error of ours
that says that the file is damaged, or that it is not a checkpoint of this version.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import pytreeckpt as ptc
from pytreeckpt import reader as reader_module
from pytreeckpt import reading as reading_module
from pytreeckpt.reading import BytesSource
from pytreeckpt.wire import FOOTER_NBYTES, PREAMBLE_NBYTES, align

NOTICED = (ptc.CorruptionError, ptc.FormatVersionError)


def small_tree() -> dict[str, object]:
    """An array of each codec, arrays and scalars inline, and enough plain values for a compressed index."""
    rng = np.random.default_rng(0)
    return {
        "raw": rng.integers(0, 256, (9, 33), dtype=np.uint8),
        "fill": np.full(100, -0.0),
        "zstd": np.arange(200, dtype=np.int16),
        "inline": {"b": rng.standard_normal(7).astype(np.float32), "empty": np.zeros((0, 3)), "s": np.float16(0.1)},
        "names": [f"layer.{n}.weight" for n in range(20)],
        "plain": (1, -(2**70), 2.5, 1j, None, True, "text", b"bytes", {1, 2}),
    }


def larger_tree() -> dict[str, object]:
    """More of each; arrays of more than one chunk, in Fortran order, structured and tied."""
    rng = np.random.default_rng(1)
    return {
        "params": [{"w": rng.standard_normal((12, 20)).astype(np.float32), "b": np.zeros(65)} for _ in range(3)],
        "fortran": np.asfortranarray(rng.integers(0, 256, (37, 31), dtype=np.uint8)),
        "table": np.arange(900, dtype=np.int32),
        "struct": np.array([(1, 2.0)] * 40, dtype=[("a", "<u2"), ("b", "<f8")]),
        "tied": [tied := np.arange(250.0), tied],
    }


def small_file() -> bytes:
    return ptc.encode(small_tree())


def larger_file(compression: str = "auto") -> bytes:
    with mock.patch("pytreeckpt.planning.CHUNK_NBYTES", 1024):
        return ptc.encode(larger_tree(), compression=compression)


def tiny_file() -> bytes:
    """One array, and an index that is not compressed, as a file has it where zstd does not make it shorter."""
    tree = {"w": np.random.default_rng(2).integers(0, 256, 260, dtype=np.uint8)}
    with mock.patch("pytreeckpt.zstd.compress", lambda raw, _level: bytes(raw)):
        return ptc.encode(tree)


def planes_file() -> bytes:
    """A chunk of planes of each size of word."""
    weights = np.random.default_rng(3).standard_normal(4200) * 0.02
    data = ptc.encode({name: weights.astype(name)[: 8400 // np.dtype(name).itemsize] for name in ("f2", "f4", "f8")})
    assert [part.name for part in regions(data)].count("planes chunk") == 3
    return data


FILES = pytest.mark.parametrize(
    "make", [small_file, larger_file, tiny_file, planes_file], ids=lambda make: make.__name__
)


@dataclass(frozen=True, slots=True)
class Region:
    """A part of a file: what it is, and the leaf whose chunk (or the padding after it) it is."""

    start: int
    stop: int
    name: str
    leaf: str | None = None


def regions(data: bytes) -> list[Region]:
    """The parts of a checkpoint, in order, without gaps."""
    with ptc.Checkpoint(BytesSource(memoryview(data)), None) as checkpoint:
        index, footer = checkpoint.index, checkpoint.footer
        leaves: dict[int, str] = {}
        for path, leaf in checkpoint.leaves():
            if isinstance(leaf, ptc.ArrayRef):
                leaves.setdefault(leaf.array, str(path))
    found = [Region(0, PREAMBLE_NBYTES, "preamble")]
    codecs = {0: "raw", 1: "fill", 2: "zstd", 3: "planes"}
    for array, entry in enumerate(index.arrays):
        first = index.first_chunk[array]
        for row in range(first, first + sum(entry.chunk_counts)):
            start, stored = int(index.chunks.offset[row]), int(index.chunks.stored[row])
            codec = codecs[int(index.chunks.codec[row])]
            found.append(Region(start, start + stored, f"{codec} chunk", leaves[array]))
            found.append(Region(start + stored, align(start + stored), "chunk padding", leaves[array]))
    stop = footer.index_offset + footer.index_stored_nbytes
    found.append(Region(footer.index_offset, stop, "zstd index" if footer.index_codec else "raw index"))
    found.append(Region(stop, align(stop), "index padding"))
    found.append(Region(len(data) - FOOTER_NBYTES, len(data), "footer"))
    return [region for region in found if region.start < region.stop]


@dataclass(slots=True)
class Counts:
    """How many damaged files were read, by the part that was hit, and by how they were noticed."""

    files: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    missed: list[str] = field(default_factory=list)

    def lines(self, name: str) -> Iterator[str]:
        total = sum(self.files.values())
        parts = ", ".join(f"{n} in the {part}" for part, n in self.files.items())
        rules = ", ".join(f"{rule} {n}" for rule, n in sorted(self.rules.items()))
        yield f"{name}: {total - len(self.missed)} of {total} detected, by restore and by verify ({parts})"
        yield f"    rules named: {rules}"


def look(path: Path, region: Region, what: str, counts: Counts) -> None:
    """Read a damaged file in both ways."""
    counts.files[region.name] += 1
    try:
        ptc.restore(path, to="numpy")
    except NOTICED as error:
        counts.rules[error.rule] += 1
        if region.leaf is not None and (getattr(error, "leaf", None) != region.leaf or region.leaf not in str(error)):
            counts.missed.append(f"{what}: the error does not name {region.leaf}: {error}")
    except Exception as error:  # noqa: BLE001 - any other error is what the campaign looks for
        counts.missed.append(f"{what}: restore raised {error!r}")
    else:
        counts.missed.append(f"{what}: restored")
    try:
        report = ptc.verify(path)
    except Exception as error:  # noqa: BLE001 - likewise
        counts.missed.append(f"{what}: verify raised {error!r}")
        return
    if report.ok or len(report.problems) != 1:
        counts.missed.append(f"{what}: verify said {report}")
    elif region.leaf is not None and report.problems[0].leaf != region.leaf:
        counts.missed.append(f"{what}: verify named {report.problems[0].leaf}, not {region.leaf}")


def changed_bytes(data: bytes, path: Path, changes: Iterable[tuple[int, int]]) -> Counts:
    """Write each of these bytes (offset, value) into the file by itself, and read it."""
    path.write_bytes(data)
    parts = regions(data)
    of_offset = [region for region in parts for _ in range(region.start, region.stop)]
    assert len(of_offset) == len(data), "the parts of the file leave a gap or overlap"
    counts = Counts()
    descriptor = os.open(path, os.O_WRONLY)
    try:
        for offset, value in changes:
            assert value != data[offset]
            os.pwrite(descriptor, bytes([value]), offset)
            look(path, of_offset[offset], f"byte {offset} = {value:#04x}", counts)
            os.pwrite(descriptor, data[offset : offset + 1], offset)
    finally:
        os.close(descriptor)
    assert path.read_bytes() == data
    assert ptc.verify(path).ok
    return counts


def bit_flips(data: bytes, offsets: Iterable[int] | None = None) -> Iterator[tuple[int, int]]:
    """Every bit of the file, or of these bytes of it."""
    for offset in range(len(data)) if offsets is None else offsets:
        for bit in range(8):
            yield offset, data[offset] ^ (1 << bit)


def all_detected(counts: Counts, name: str, record_property) -> None:
    for line in counts.lines(name):
        record_property("campaign", line)
    assert not counts.missed, "\n".join(counts.missed[:20])
    assert counts.files


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    # A pool of threads for each of so many tiny files would take most of the time.
    monkeypatch.setenv("PYTREECKPT_THREADS", "1")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "damaged.ptck"


def test_the_small_file_has_a_part_of_every_kind():
    names = {region.name for region in regions(small_file())}
    assert names == {
        "preamble",
        "raw chunk",
        "fill chunk",
        "zstd chunk",
        "chunk padding",
        "zstd index",
        "index padding",
        "footer",
    }
    assert "raw index" in {region.name for region in regions(tiny_file())}


def test_a_flipped_bit_is_detected_and_named_in_every_part_of_a_file(path, record_property):
    data = small_file()
    # The bytes at both ends of each part, and every seventh.
    ends = {at for region in regions(data) for at in (region.start, region.stop - 1)}
    counts = changed_bytes(data, path, bit_flips(data, sorted(ends | set(range(0, len(data), 7)))))
    all_detected(counts, "fast slice, bit flips", record_property)
    assert set(counts.files) == {region.name for region in regions(data)}


@pytest.mark.slow
@FILES
def test_every_single_bit_flip_is_detected_and_named(make, path, record_property):
    data = make()
    counts = changed_bytes(data, path, bit_flips(data))
    all_detected(counts, f"every bit of the {make.__name__} ({len(data)} bytes)", record_property)
    assert sum(counts.files.values()) == 8 * len(data)


@pytest.mark.slow
def test_every_value_of_every_byte_is_detected(path, record_property):
    data = tiny_file()
    changes = ((at, value) for at in range(len(data)) for value in range(256) if value != data[at])
    counts = changed_bytes(data, path, changes)
    all_detected(counts, f"every value of every byte of {len(data)} bytes", record_property)
    assert sum(counts.files.values()) == 255 * len(data)


@pytest.mark.parametrize("compression", ["auto", "none", 19])
def test_a_flipped_bit_is_detected_with_every_compression(compression, path, record_property):
    data = ptc.encode(small_tree(), compression=compression)
    counts = changed_bytes(data, path, bit_flips(data, range(0, len(data), 29)))
    all_detected(counts, f"fast slice, compression={compression!r}", record_property)


def test_a_flipped_bit_of_planes_is_detected(path, record_property):
    data = planes_file()
    # All of the headers of the chunks, and every 211th byte.
    headers = {at for part in regions(data) if part.name == "planes chunk" for at in range(part.start, part.start + 40)}
    counts = changed_bytes(data, path, bit_flips(data, sorted(headers | set(range(0, len(data), 211)))))
    all_detected(counts, "fast slice, planes", record_property)
    assert counts.files["planes chunk"] >= 8 * len(headers)


def _chunk_bytes(data: bytes) -> list[tuple[int, Region]]:
    """The middle byte of each chunk."""
    return [((part.start + part.stop) // 2, part) for part in regions(data) if part.name.endswith(" chunk")]


def test_the_leaves_that_a_flip_did_not_hit_are_still_readable(path):
    tree = larger_tree()
    data = ptc.encode(tree)
    chunks = _chunk_bytes(data)
    assert len({part.leaf for _, part in chunks}) > 5
    for offset, part in chunks:
        damaged = bytearray(data)
        damaged[offset] ^= 16
        path.write_bytes(damaged)
        assert part.leaf is not None
        # A tied array has two paths; the first of them is the one that is named.
        hit = {part.leaf, "tied[1]"} if part.leaf == "tied[0]" else {part.leaf}
        names = [str(leaf_path) for leaf_path, _ in ptc.open(path).leaves()]
        for name in names:
            if name in hit:
                with pytest.raises(ptc.CorruptionError, match=r"digest|check"):
                    ptc.restore(path, select=name)
            else:
                ptc.restore(path, select=name)


def test_a_flip_is_detected_when_only_a_part_of_the_array_is_read(path):
    data = larger_file()
    for offset, part in _chunk_bytes(data):
        damaged = bytearray(data)
        damaged[offset] ^= 1
        path.write_bytes(damaged)
        assert part.leaf is not None
        with ptc.open(path) as checkpoint:
            ref = checkpoint[part.leaf]
            named = []
            for row in range(len(ref)):
                try:
                    ref[row : row + 1]
                except ptc.CorruptionError as error:
                    named.append(error.leaf)
        assert set(named) == {part.leaf}
        if part.leaf in {"table", "tied[0]"}:
            # These have several chunks; the rows in the others can be read.
            assert len(named) < len(ref)


def test_a_flip_is_detected_in_a_mapped_file(path):
    data = larger_file("none")
    for offset, part in _chunk_bytes(data):
        damaged = bytearray(data)
        damaged[offset] ^= 128
        path.write_bytes(damaged)
        with pytest.raises(ptc.CorruptionError) as error:
            ptc.restore(path, mmap=True)
        assert error.value.leaf == part.leaf


def test_all_damaged_chunks_are_reported_at_once(path):
    data = bytearray(larger_file())
    chunks = _chunk_bytes(bytes(data))
    for offset, _ in chunks:
        data[offset] ^= 2
    path.write_bytes(data)
    assert [problem.leaf for problem in ptc.verify(path).problems] == [part.leaf for _, part in chunks]


# Truncation and extension.


def _whole(data: bytes) -> Region:
    return Region(0, len(data), "whole file")


def truncations(data: bytes, path: Path, lengths: Iterable[int]) -> Counts:
    counts = Counts()
    path.write_bytes(data)
    for length in sorted(lengths, reverse=True):
        os.truncate(path, length)
        look(path, _whole(data), f"cut to {length} bytes", counts)
    return counts


def test_a_file_that_was_cut_is_refused(path, record_property):
    data = small_file()
    ends = {at for region in regions(data) for at in (region.start, region.stop - 1)}
    counts = truncations(data, path, ends | set(range(0, len(data), 13)))
    all_detected(counts, "fast slice, truncation", record_property)


@pytest.mark.slow
@FILES
def test_a_file_is_refused_when_cut_to_any_length(make, path, record_property):
    data = make()
    counts = truncations(data, path, range(len(data)))
    all_detected(counts, f"every truncation of the {make.__name__}", record_property)
    assert sum(counts.files.values()) == len(data)


def extensions(data: bytes) -> Iterator[bytes]:
    """Bytes to append: every single one, zeros, parts of the file itself, whole files."""
    yield from (bytes([value]) for value in range(256))
    yield from (bytes(length) for length in (2, 63, 64, 65, 128, 192, 4096))
    yield from (data[-length:] for length in (8, 64, 128, 192, 256))
    yield data
    yield ptc.encode({"other": 1})
    rng = np.random.default_rng(3)
    yield from (rng.bytes(length) for length in range(1, 300, 7))


@pytest.mark.parametrize("where", ["after", "before"])
def test_a_file_that_was_extended_is_refused(where, path, record_property):
    data = small_file()
    counts = Counts()
    for extra in extensions(data):
        path.write_bytes(data + extra if where == "after" else extra + data)
        look(path, _whole(data), f"{len(extra)} bytes {where}", counts)
    all_detected(counts, f"extension {where} the file", record_property)
    assert sum(counts.files.values()) > 300


def test_lost_swapped_and_zeroed_blocks_are_detected(path, record_property):
    data = larger_file()
    counts = Counts()
    for nbytes in (64, 512, 4096):
        for start in range(0, len(data) - nbytes, nbytes):
            stop = start + nbytes
            variants = {
                "zeroed": data[:start] + bytes(nbytes) + data[stop:],
                "lost": data[:start] + data[stop:],
                "doubled": data[:stop] + data[start:],
                "swapped": data[:start] + data[stop : stop + nbytes] + data[start:stop] + data[stop + nbytes :],
            }
            for name, damaged in variants.items():
                if damaged != data:
                    path.write_bytes(damaged)
                    counts.files[f"{name} block"] += 1
                    try:
                        ptc.restore(path)
                        counts.missed.append(f"{name} at {start}: restored")
                    except NOTICED as error:
                        counts.rules[error.rule] += 1
                    if ptc.verify(path).ok:
                        counts.missed.append(f"{name} at {start}: verified")
    all_detected(counts, "blocks of 64, 512 and 4096 bytes", record_property)


def test_the_campaign_notices_a_reader_that_does_not_look_at_digests(path, monkeypatch):
    # A check that cannot fail is none: without the digests, flips go unnoticed, and the campaign says so.
    for module in (reader_module, reading_module):
        monkeypatch.setattr(module, "check_chunk", lambda *_, **__: None)
    data = small_file()
    counts = changed_bytes(data, path, ((offset, data[offset] ^ 1) for offset, _ in _chunk_bytes(data)))
    assert any("verify said" in missed for missed in counts.missed)
