"""Chunks of codec 3 made by hand from a description: the word, the rotation, and width and codec of each plane.

They are cut word by word in integers of any size, unlike what a reader does that is to be quick.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from spec.corpus.frames import zstd_frame
from spec.corpus.parts import FILL, PLANES, RAW, ZSTD, Chunk

__all__ = ["Plane", "cut", "join", "plane_of", "planes_chunk"]


@dataclass(frozen=True)
class Plane:
    """A plane as stored. `declared` is the stored length in its entry, if that is not to be what it is."""

    width: int
    codec: int
    stored: bytes
    declared: int | None = None


def cut(raw: bytes, word: int, rotation: int, widths: Sequence[int]) -> list[bytes]:
    """The planes of these widths, each as it is before it is compressed."""
    lower = 8 * word - 16
    pieces: list[list[bytes]] = [[] for _ in widths]
    for at in range(0, len(raw), word):
        upper, rest = divmod(int.from_bytes(raw[at : at + word], "little"), 1 << lower)
        rotated = (upper << rotation | upper >> 16 - rotation) & 0xFFFF
        digits = (rotated << lower | rest).to_bytes(word, "big")
        for piece, width in zip(pieces, widths, strict=True):
            piece.append(digits[:width][::-1])
            digits = digits[width:]
    planes = [b"".join(piece) for piece in pieces]
    assert sum(map(len, planes)) == len(raw)
    return planes


def plane_of(content: bytes, width: int, codec: int) -> Plane:
    """A plane, stored by a codec that can store it."""
    stored = {RAW: content, FILL: content[:width], ZSTD: zstd_frame(content)}[codec]
    assert codec != FILL or content == stored * (len(content) // width), content
    assert codec != ZSTD or len(stored) < len(content), content
    return Plane(width, codec, stored)


def join(word: int, rotation: int, *planes: Plane, n_planes: int | None = None) -> bytes:
    """The stored bytes of a chunk: header, entries and planes."""
    header = struct.pack("<BBB5x", word, rotation, len(planes) if n_planes is None else n_planes)
    lengths = [len(plane.stored) if plane.declared is None else plane.declared for plane in planes]
    entries = [
        struct.pack("<BB2xI", plane.width, plane.codec, nbytes) for plane, nbytes in zip(planes, lengths, strict=True)
    ]
    return header + b"".join(entries) + b"".join(plane.stored + bytes(-len(plane.stored) % 8) for plane in planes)


def planes_chunk(raw: bytes, word: int, rotation: int, *planes: tuple[int, int]) -> Chunk:
    """A chunk of planes, given by width and codec."""
    contents = cut(raw, word, rotation, [width for width, _ in planes])
    stored = join(word, rotation, *(plane_of(content, *plane) for content, plane in zip(contents, planes, strict=True)))
    assert len(stored) < len(raw), (len(stored), len(raw))
    return Chunk(stored, raw, PLANES)
