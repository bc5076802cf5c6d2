"""The frame of a file: preamble, footer, alignment (section 2 of the format). Bytes in, records out, no I/O."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Final

import xxhash

from pytreeckpt.errors import CorruptionError, FormatVersionError, NotACheckpointError

Buffer = bytes | bytearray | memoryview

MAGIC: Final = b"\x89PTCK\r\n\x1a"
END_MAGIC: Final = MAGIC[::-1]
VERSION: Final = 1
DATA_FILES: Final = 1 << 0
"""The required feature of a file whose chunks lie in further files."""
ALIGNMENT: Final = 64
PREAMBLE_NBYTES: Final = 64
FOOTER_NBYTES: Final = 128
ROOT_NBYTES: Final = 32
IDENTITY_NBYTES: Final = 32

_PREAMBLE = struct.Struct("<8sI4sQ40s")
_FOOTER = struct.Struct("<QQQB7s16s32s24sQ8s8s")
_CHECKED_FOOTER_NBYTES = 112


def align(nbytes: int) -> int:
    """The smallest multiple of 64 that is not below `nbytes`."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def padding(nbytes: int) -> bytes:
    """The zero bytes that follow `nbytes` up to the next multiple of 64."""
    return bytes(align(nbytes) - nbytes)


def xxh64(*buffers: Buffer) -> bytes:
    """XXH3-64 in canonical form of the buffers, one after the other: detects accidents, not attacks."""
    if len(buffers) == 1:
        return xxhash.xxh3_64_digest(buffers[0])
    state = xxhash.xxh3_64()
    for buffer in buffers:
        state.update(buffer)
    return state.digest()


def xxh128(buffer: Buffer) -> bytes:
    """XXH3-128 in canonical form: detects accidents, not attacks."""
    return xxhash.xxh3_128_digest(buffer)


def sha256(buffer: Buffer) -> bytes:
    """SHA-256, the root of a checkpoint when taken over its raw index."""
    return hashlib.sha256(buffer).digest()


@dataclass(frozen=True, slots=True)
class Footer:
    """Where the index is, how it is stored, and its digests; and the features, which stand in the preamble. Lengths and
    offsets in bytes.
    """

    index_offset: int
    index_stored_nbytes: int
    index_raw_nbytes: int
    index_codec: int
    index_digest: bytes
    root: bytes
    file_nbytes: int
    features: int = 0


def encode_preamble(features: int = 0) -> bytes:
    """The 64 bytes with which every file begins."""
    return _PREAMBLE.pack(MAGIC, VERSION, bytes(4), features, bytes(40))


def encode_footer(footer: Footer) -> bytes:
    """The 128 bytes with which a file ends; their check covers its preamble too."""
    packed = _FOOTER.pack(
        footer.index_offset,
        footer.index_stored_nbytes,
        footer.index_raw_nbytes,
        footer.index_codec,
        bytes(7),
        footer.index_digest,
        footer.root,
        bytes(24),
        footer.file_nbytes,
        bytes(8),
        END_MAGIC,
    )[:_CHECKED_FOOTER_NBYTES]
    return packed + xxh64(encode_preamble(footer.features) + packed) + END_MAGIC


def check_preamble(preamble: bytes) -> None:
    """F-1 to F-3, on the first 64 bytes of a file (or as many as it has). Features that are known are no fault."""
    if preamble[:8] != MAGIC:
        raise NotACheckpointError("not a pytreeckpt file: it does not begin with the magic", rule="F-1")
    if len(preamble) < PREAMBLE_NBYTES:
        raise CorruptionError(f"the file ends after {len(preamble)} bytes, within its preamble", rule="F-4")
    _, version, _, features, _ = _PREAMBLE.unpack(preamble)
    if version != VERSION:
        raise FormatVersionError(
            f"the file has format version {version}, and this reader knows version {VERSION}; the file need not be "
            "damaged: a newer pytreeckpt may read it",
            rule="F-2",
        )
    unknown = features & ~DATA_FILES
    if unknown:
        bits = ", ".join(str(bit) for bit in range(64) if unknown >> bit & 1)
        raise FormatVersionError(
            f"the file needs the features {bits}, which this reader does not know; a newer pytreeckpt reads it",
            rule="F-3",
        )


def decode_footer(preamble: bytes, footer: bytes, file_nbytes: int) -> Footer:
    """F-4 to F-10: check the preamble (of a known version) and the footer against each other and the length of the
    file.
    """
    if file_nbytes < PREAMBLE_NBYTES + FOOTER_NBYTES:
        raise CorruptionError(
            f"the file is {file_nbytes} bytes long, shorter than any checkpoint: it is torn", rule="F-4"
        )
    if footer[-8:] != END_MAGIC:
        raise CorruptionError(
            f"the file of {file_nbytes} bytes has no footer: it was not written to its end, was cut, or has "
            "bytes after its end",
            rule="F-5",
        )
    if footer[112:120] != xxh64(preamble + footer[:_CHECKED_FOOTER_NBYTES]):
        raise CorruptionError("the preamble or the footer is damaged: their check does not match", rule="F-6")
    offset, stored, raw, codec, zero_1, digest, root, zero_2, declared_nbytes, _, _ = _FOOTER.unpack(footer)
    if declared_nbytes != file_nbytes:
        raise CorruptionError(
            f"the file is {file_nbytes} bytes long and was written with {declared_nbytes}", rule="F-7"
        )
    if any(preamble[12:16]) or any(preamble[24:]) or any(zero_1) or any(zero_2):
        raise CorruptionError("reserved bytes of the preamble or the footer are not zero", rule="F-8")
    if (
        offset % ALIGNMENT
        or offset < PREAMBLE_NBYTES
        or stored < 1
        or offset + align(stored) + FOOTER_NBYTES != file_nbytes
    ):
        raise CorruptionError(f"the index at {offset} with {stored} bytes does not end at the footer", rule="F-9")
    if codec not in {0, 2} or (codec == 0 and stored != raw):
        raise CorruptionError(f"the index has codec {codec}, {stored} stored and {raw} raw bytes", rule="F-10")
    _, _, _, features, _ = _PREAMBLE.unpack(preamble)
    return Footer(offset, stored, raw, codec, digest, root, declared_nbytes, features)
