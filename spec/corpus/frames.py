"""Zstandard frames made by hand (RFC 8878), so that the vectors depend on no version of an encoder.

Blocks are raw or run-length encoded; every field of the header can be set.
"""

import struct
from collections.abc import Sequence
from itertools import groupby

import xxhash

__all__ = ["RAW", "RESERVED", "RLE", "block", "blocks_of", "skippable_frame", "zstd_frame"]

MAGIC = b"\x28\xb5\x2f\xfd"
RAW, RLE, RESERVED = 0, 1, 3
MAX_BLOCK_NBYTES = 128 << 10
# From this many equal bytes on, a block of its own is shorter.
MIN_RUN_NBYTES = 8


def block(kind: int, size: int, payload: bytes, *, last: bool = False) -> bytes:
    """A block: of `size` bytes of content for RLE, of the length of the payload for the others."""
    return (size << 3 | kind << 1 | last).to_bytes(3, "little") + payload


def blocks_of(content: bytes) -> bytes:
    """Blocks that decode to `content`: runs of one byte as RLE, all else raw."""
    pieces: list[tuple[int, bytes]] = []
    for byte, group in groupby(content):
        run = len(list(group))
        if run >= MIN_RUN_NBYTES:
            pieces += [(RLE, bytes([byte]) * min(MAX_BLOCK_NBYTES, run - at)) for at in range(0, run, MAX_BLOCK_NBYTES)]
        elif pieces and pieces[-1][0] == RAW and len(pieces[-1][1]) + run <= MAX_BLOCK_NBYTES:
            pieces[-1] = (RAW, pieces[-1][1] + bytes([byte]) * run)
        else:
            pieces.append((RAW, bytes([byte]) * run))
    pieces = pieces or [(RAW, b"")]
    return b"".join(
        block(kind, len(piece), piece[:1] if kind == RLE else piece, last=number == len(pieces) - 1)
        for number, (kind, piece) in enumerate(pieces)
    )


def zstd_frame(
    content: bytes,
    *,
    blocks: bytes | None = None,
    content_size: int | None = -1,
    window: tuple[int, int] | None = None,
    dictionary: bytes = b"",
    checksum: int | None = None,
    with_checksum: bool = False,
    reserved_bit: bool = False,
) -> bytes:
    """A frame of `content`.

    `content_size`: None leaves it out. `window`: exponent and mantissa of the window descriptor; None makes a
    single-segment frame. `dictionary`: the bytes of the dictionary ID, 0, 1, 2 or 4 of them.
    """
    size = len(content) if content_size == -1 else content_size
    sizes: Sequence[tuple[int, bytes]] = [(0, b"")]
    if size is not None:
        sizes = [(3, size.to_bytes(8, "little"))]
        if size < 1 << 32:
            sizes = [(2, size.to_bytes(4, "little"))]
        if 256 <= size < 256 + (1 << 16):
            sizes = [(1, (size - 256).to_bytes(2, "little"))]
        if size < 256 and window is None:
            sizes = [(0, size.to_bytes(1, "little"))]
    ((size_flag, size_field),) = sizes
    dictionary_flag = {0: 0, 1: 1, 2: 2, 4: 3}[len(dictionary)]
    has_checksum = with_checksum or checksum is not None
    descriptor = size_flag << 6 | (window is None) << 5 | reserved_bit << 3 | has_checksum << 2 | dictionary_flag
    window_field = b"" if window is None else bytes([window[0] << 3 | window[1]])
    tail = b""
    if has_checksum:
        tail = struct.pack("<I", xxhash.xxh64_intdigest(content) & 0xFFFFFFFF if checksum is None else checksum)
    body = blocks_of(content) if blocks is None else blocks
    return MAGIC + bytes([descriptor]) + window_field + dictionary + size_field + body + tail


def skippable_frame(payload: bytes) -> bytes:
    """A frame that a decoder of streams passes over."""
    return b"\x50\x2a\x4d\x18" + struct.pack("<I", len(payload)) + payload
