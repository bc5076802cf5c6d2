"""A position in a ranged source, for formats that are read token by token: small reads come from one larger one."""

from __future__ import annotations

from pytreeckpt.errors import CorruptionError
from pytreeckpt.reading import RangedSource, read

_NBYTES = 64 << 10


class Cursor:
    """Takes bytes one after the other, and steps over those that nobody asks for without reading them."""

    __slots__ = ("_buffer", "_source", "_start", "at", "nbytes")

    def __init__(self, source: RangedSource) -> None:
        self._source = source
        self._buffer = b""
        self._start = 0
        self.at = 0
        self.nbytes = source.nbytes

    @property
    def left(self) -> int:
        """How many bytes are left."""
        return self.nbytes - self.at

    def take(self, nbytes: int) -> bytes:
        """The next `nbytes` bytes. Raises `CorruptionError` if there are not as many."""
        begin = self.at - self._start
        if begin < 0 or begin + nbytes > len(self._buffer):
            if nbytes > self.left:
                raise CorruptionError(f"byte {self.at}: the file ends {nbytes - self.left} bytes too early", rule="end")
            if nbytes > _NBYTES:
                taken = bytes(read(self._source, self.at, nbytes))
                self.at += nbytes
                return taken
            self._buffer = bytes(read(self._source, self.at, min(_NBYTES, self.left)))
            self._start, begin = self.at, 0
        self.at += nbytes
        return self._buffer[begin : begin + nbytes]

    def skip(self, nbytes: int) -> None:
        """Step over bytes, of which there are as many."""
        self.at += nbytes
