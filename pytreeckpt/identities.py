"""Identities of chunks: BLAKE3 of their raw bytes. Equal identities are equal content, against accident and attack."""

from __future__ import annotations

from blake3 import blake3

from pytreeckpt.wire import IDENTITY_NBYTES, Buffer

__all__ = ["IDENTITY_NBYTES", "identity"]


def identity(raw: Buffer) -> bytes:
    """BLAKE3 of the raw bytes of a chunk, 32 bytes (https://github.com/BLAKE3-team/BLAKE3-specs)."""
    return blake3(raw).digest()
