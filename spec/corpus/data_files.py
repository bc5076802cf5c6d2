"""Checkpoints whose chunks lie in data files: any file taken apart into a manifest and its data files.

This shares no code with the library: identities are those of the reference reader.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from spec.corpus.parts import Chunk, File, Row, of_arrays, padded
from spec.reference import reader

__all__ = ["DATA_FILES", "Parted", "Piece", "data_file", "name_of", "part", "root_of"]

DATA_FILES = 1
"""The bit of the required feature, in the byte of the preamble at 16."""


class Piece(NamedTuple):
    """A chunk apart from where it lies, and the size of its items."""

    itemsize: int
    chunk: Chunk


@dataclass
class Parted:
    """A checkpoint: the file itself, and its data files in the order of the file table."""

    manifest: File
    files: list[bytes]

    @property
    def named(self) -> dict[str, bytes]:
        """The data files by their names."""
        return {name_of(data): data for data in self.files}

    def write(self, folder: Path, name: str = "x.ptck") -> Path:
        """All files into a folder; the path of the manifest."""
        (folder / "data").mkdir(parents=True, exist_ok=True)
        for data_name, data in self.named.items():
            (folder / "data" / data_name).write_bytes(data)
        (folder / name).write_bytes(self.manifest.encode())
        return folder / name


def root_of(data: bytes) -> bytes:
    """The root that a file says it has."""
    return data[-80:-48]


def name_of(data: bytes) -> str:
    """What a file is called as a data file."""
    return f"{root_of(data).hex()}.ptck"


def data_file(*pieces: Piece) -> File:
    """A file of these chunks: a dict from sizes of items, in the order in which they come, to arrays."""
    sizes = list(dict.fromkeys(piece.itemsize for piece in pieces))
    rows = []
    for size in sizes:
        chunks = [piece.chunk for piece in pieces if piece.itemsize == size]
        rows.append(Row(["void", size], [sum(len(chunk.raw) for chunk in chunks) // size], None, [chunks]))
    file = of_arrays(*rows)
    file.index["nodes"] |= {"kinds": [0, 18, *[4] * len(sizes), *[10] * len(sizes)], "ints": sizes}
    return file


def part(
    file: File, place_of: Callable[[int], int], *, make: Callable[[Sequence[Piece]], File] | None = None
) -> Parted:
    """The file with its chunks in data files: `place_of` gives, for each distinct chunk in their order, a number for
    the data file that it goes to, or 0 for the file itself. `make` makes a data file of its chunks.
    """
    pieces = pieces_of(file)
    chosen = {piece: place_of(number) for number, piece in enumerate(dict.fromkeys(pieces))}
    # Numbered in order of first use.
    order = {group: number for number, group in enumerate(dict.fromkeys(filter(None, chosen.values())), 1)}
    numbers = {piece: order.get(group, 0) for piece, group in chosen.items()}
    files: list[bytes] = []
    offsets: dict[Piece, int] = {}
    manifest = File(file.index | {"chunks": dict(file.index["chunks"])}, codec=file.codec)
    for number in range(len(order) + 1):
        members = [piece for piece in chosen if numbers[piece] == number]
        if number:
            members.sort(key=lambda piece: piece.itemsize)
            files.append((data_file(*members) if make is None else make(members)).encode())
        at = 64
        for piece in members:
            offsets[piece] = at
            at += len(padded(piece.chunk.stored))
        if not number:
            manifest.body = b"".join(padded(piece.chunk.stored) for piece in members)
    manifest.index["chunks"] |= {
        "file": [numbers[piece] for piece in pieces],
        "offset": [offsets[piece] for piece in pieces],
        "identity": [reader.blake3(piece.chunk.raw) for piece in pieces] if files else [],
    }
    manifest.index["files"] = [["", 0, b""], *([name_of(data), len(data), root_of(data)] for data in files)]
    manifest.preamble[16] = DATA_FILES if files else 0
    return Parted(manifest, files)


def pieces_of(file: File) -> list[Piece]:
    """The chunk of each row of a file without data files."""
    data = memoryview(file.encode())
    raw, index_offset, _ = reader.read_frame(data)
    index = reader.read_index(raw)
    table = reader.read_chunk_table(index, reader.read_arrays(index), index_offset, [])
    pieces = []
    for row, size in table:
        _, offset, nbytes, _, codec, *_ = row
        chunk = Chunk(bytes(data[offset : offset + nbytes]), reader.read_chunk(data, row, size, "chunk"), codec)
        pieces.append(Piece(size, chunk))
    return pieces
