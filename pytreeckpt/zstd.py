"""zstd, from the standard library or its backport, and the strict reading of one frame (rules Z-1 to Z-5)."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from typing import Final

from pytreeckpt.errors import CorruptionError

if sys.version_info >= (3, 14):
    from compression import zstd as _zstd
else:
    from backports import zstd as _zstd

_FRAME_MAGIC = b"\x28\xb5\x2f\xfd"
_MAX_WINDOW_LOG = 23
# Magic, descriptor, window or size, and the header of a block.
_MIN_FRAME_NBYTES = 9

Buffer = bytes | bytearray | memoryview

# Entropy coding alone. With a large target length, the fast strategy skips ahead and finds next to no matches; what it
# skips is then Huffman-coded, because ZSTD_c_literalCompressionMode (1002, which the bindings do not name) is
# ZSTD_ps_enable.
LITERALS: Final = 0
_Parameter = _zstd.CompressionParameter
_LITERALS_OPTIONS: Final[Mapping[int, int]] = {
    _Parameter.compression_level: 1,
    _Parameter.strategy: _zstd.Strategy.fast,
    _Parameter.target_length: 1 << 17,
    _Parameter.min_match: 7,
    1002: 1,
}


class _Compressors(threading.local):
    """A thread's compressors, because making one costs more than a small frame does."""

    def __init__(self) -> None:
        self.by_options: dict[tuple[int, bool], _zstd.ZstdCompressor] = {}


_compressors = _Compressors()


def compress(raw: Buffer, level: int) -> bytes:
    """One frame of `raw` that declares its content size and needs a window of at most 8 MiB.

    `level`: 1 to 22, or `LITERALS` for Huffman coding without matches, which is faster than any level.
    """
    key = (level, len(raw) > 1 << _MAX_WINDOW_LOG)
    # Taken out while it is at work, so that what an error leaves behind is not used again.
    compressor = _compressors.by_options.pop(key, None) or _new_compressor(*key)
    compressor.set_pledged_input_size(len(raw))
    frame = compressor.compress(raw, compressor.FLUSH_FRAME)
    _compressors.by_options[key] = compressor
    return frame


def _new_compressor(level: int, capped: bool) -> _zstd.ZstdCompressor:  # noqa: FBT001 - the fields of a key
    options = dict(_LITERALS_OPTIONS) if level == LITERALS else {int(_Parameter.compression_level): level}
    options[_Parameter.content_size_flag] = 1
    if capped:
        options[_Parameter.window_log] = _MAX_WINDOW_LOG
    try:
        return _zstd.ZstdCompressor(options=options)
    except (ValueError, _zstd.ZstdError):
        if level != LITERALS:
            raise
        # A zstd without its experimental parameters: slower, and as exact.
        return _new_compressor(1, capped)


def decompress(stored: Buffer, raw_nbytes: int) -> bytes:
    """The content of the one frame that `stored` must be, of exactly `raw_nbytes` bytes.

    Allocates no more than `raw_nbytes` and what a window of 8 MiB takes. Raises `CorruptionError` (Z-1 to Z-5).
    """
    # Z-1: skippable frames and legacy formats begin with another magic.
    if bytes(stored[:4]) != _FRAME_MAGIC:
        raise CorruptionError("the stored bytes are not a zstd frame", rule="Z-1")
    # Z-4, before the decoder looks: it refuses windows of more than 2 GiB without saying why.
    if len(stored) >= _MIN_FRAME_NBYTES and _window_nbytes(stored, raw_nbytes) > 1 << _MAX_WINDOW_LOG:
        raise CorruptionError("the zstd frame needs a window of more than 8 MiB", rule="Z-4")
    try:
        info = _zstd.get_frame_info(stored)
    except _zstd.ZstdError as error:
        raise CorruptionError(f"the header of the zstd frame cannot be read: {error}", rule="Z-5") from None
    # Z-2, Z-3
    if info.decompressed_size != raw_nbytes:
        raise CorruptionError(
            f"the zstd frame declares {info.decompressed_size} bytes and {raw_nbytes} are due", rule="Z-2"
        )
    if info.dictionary_id:
        raise CorruptionError("the zstd frame asks for a dictionary", rule="Z-3")
    # Z-5
    decompressor = _zstd.ZstdDecompressor(options={_zstd.DecompressionParameter.window_log_max: _MAX_WINDOW_LOG})
    try:
        # One byte more than is due, so that the decoder reaches the end of the frame.
        raw = decompressor.decompress(stored, max_length=raw_nbytes + 1)
    except _zstd.ZstdError as error:
        raise CorruptionError(f"the zstd frame cannot be decoded: {error}", rule="Z-5") from None
    if len(raw) != raw_nbytes or not decompressor.eof or decompressor.unused_data:
        raise CorruptionError("the stored bytes are not exactly one whole zstd frame", rule="Z-5")
    return raw


def _window_nbytes(frame: Buffer, content_nbytes: int) -> int:
    """The window size that a frame header asks for (RFC 8878, section 3.1.1.1)."""
    descriptor = frame[4]
    if descriptor & 0x20:  # single segment: the content is the window
        return content_nbytes
    exponent, mantissa = divmod(frame[5], 8)
    base = 1 << (10 + exponent)
    return base + base // 8 * mantissa
